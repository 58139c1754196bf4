//! A stream of a vault's entries, from a cursor on.
//!
//! Made as the streams of groups are: whoever publishes says that there is more, and the stream fetches
//! it, a page at a time, when its client takes it. A client that takes nothing costs a page.
//!
//! Holds always: everything after the cursor is given, in order and once, or the floor and what is kept
//! below it; each page asks whether the device is enrolled now, and the stream ends when it is no more.

use std::time::Duration;

use sealwire_protocol::{DeviceKey, Digest, ErrorCode, Failure, LogId};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Page;
use crate::limits::STORE_DEADLINE;
use crate::listener::{Listening, Scope};
use crate::ports::{LogKey, LogPlace};
use crate::push::doorstep::Awake;
use crate::reply::{jitter, unavailable};
use crate::system::System;

/// Pause after a page that could not be read, in milliseconds, jittered.
const FAILED_PAUSE_MS: (u64, u64) = (500, 1500);

/// What a stream gives.
pub enum VaultEvent {
    /// What comes next.
    Page(Box<Page>),
    /// The vault refuses entries, because it is full.
    Full,
    /// Nothing has happened for a while.
    Silence,
}

/// The receiving end: dropping it removes every trace.
pub struct VaultStream {
    listening: Listening,
    log: LogId,
    key: LogKey,
    /// Everything up to this seq was given.
    after: u64,
    /// Whether nothing was given yet: the first page is, also if it is empty, because it says where
    /// the vault ends.
    first: bool,
}

impl System {
    /// A stream of what a vault holds after a cursor, and of what comes.
    ///
    /// # Errors
    /// As [`System::pull_from_vault`].
    pub async fn follow_vault(
        &self,
        device: DeviceKey,
        log: LogId,
        after: u64,
        chain: Option<Digest>,
    ) -> Result<VaultStream, Failure> {
        let shared = &self.shared;
        let LogPlace { key, .. } = shared.vault_place(log).await?;
        shared.vault_record(device, log, key).await?;
        // First a listener, then the question where the vault stands: what is written in between is
        // in both.
        let listening = shared.listen(device, Scope::Vault(key));
        let presence = shared.registry.follow(key, &listening.listener);
        let record = shared.vault_record(device, log, key).await?;
        shared.compare(key, &record, after, chain).await?;
        presence.raise_head(record.head);
        listening.listener.begin_vault(key, log, presence);
        // Later pages say nothing of who takes them: whoever streams acks by pulling.
        shared.doorstep.awake(Awake { log: key, device, read: Some(record.head.seq) });
        Ok(VaultStream { listening, log, key, after, first: true })
    }
}

impl VaultStream {
    /// The next event; [`VaultEvent::Silence`] when nothing has happened for so long, `None` when the
    /// stream has ended. Not to be dropped while it waits, but with the stream.
    pub async fn next(&mut self, silence: Duration) -> Option<VaultEvent> {
        let silent_at = Instant::now() + silence;
        loop {
            let listener = self.listening.listener.clone();
            if listener.state().0 {
                return None;
            }
            if listener.wanted().is_some() {
                if let Some(page) = self.fetch().await? {
                    return Some(VaultEvent::Page(Box::new(page)));
                }
                continue;
            }
            if listener.take_full() {
                return Some(VaultEvent::Full);
            }
            tokio::select! {
                () = listener.woken() => {}
                () = sleep_until(silent_at) => return Some(VaultEvent::Silence),
            }
        }
    }

    /// The next page, if there is one now; the outer `None` when the stream has ended.
    async fn fetch(&mut self) -> Option<Option<Page>> {
        let page =
            timeout(STORE_DEADLINE, self.read()).await.unwrap_or_else(|_| Err(unavailable()));
        match page {
            Ok(page) => {
                let new = page.reached > self.after;
                self.after = page.reached;
                if page.more() {
                    self.listening.listener.more(self.key);
                }
                if !new && page.more() {
                    // The floor is rising: it is looked at again when that is done.
                    sleep(failed_pause()).await;
                }
                let given = new || std::mem::take(&mut self.first);
                Some(given.then_some(page))
            }
            // Whoever opens a stream again is told why.
            Err(failure) if failure.code != ErrorCode::Unavailable => None,
            Err(_) => {
                sleep(failed_pause()).await;
                self.listening.listener.more(self.key);
                Some(None)
            }
        }
    }

    async fn read(&self) -> Result<Page, Failure> {
        let Listening { shared, listener } = &self.listening;
        let record = shared.vault_record(listener.device, self.log, self.key).await?;
        // A head below what was given is another history.
        shared.compare(self.key, &record, self.after, None).await?;
        // The semaphore is never closed; if it were, reading without a turn is still correct.
        let _turn = shared.stream_reads.acquire().await;
        let page = shared.vault_page(listener.device, self.key, &record, self.after).await;
        page.map_err(|_| unavailable())
    }
}

fn failed_pause() -> Duration {
    Duration::from_millis(jitter(FAILED_PAUSE_MS.0, FAILED_PAUSE_MS.1))
}
