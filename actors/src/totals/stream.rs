//! A stream of payloads, or of news about groups, towards one phone.
//!
//! What there is, the stream fetches itself, at the pace at which its phone takes it: from the log's
//! ring of last entries, or a page at a time from the store. So a phone that takes nothing costs a
//! page, and a publisher never waits. Where it stands, its [`Listener`] knows.
//!
//! Holds always: everything that a device has not acked when its stream opens is given, and everything
//! that is published after; in each log in order, and once.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::limits::{
    CHANGES_INTERVAL, CHANGES_PAUSE, STORE_DEADLINE, STREAM_PAGE_BYTES_MAX, STREAM_PAGE_ENTRIES_MAX,
};
use crate::listener::{Listener, Listening, Wanted};
use crate::ports::{PageRequest, StoreError};
use crate::reply::jitter;
use crate::totals::payload::Payload;

/// Pause after a page that could not be read, in milliseconds, jittered.
const FAILED_PAUSE_MS: (u64, u64) = (500, 1500);

/// What a stream gives.
pub enum StreamEvent {
    /// Payloads of one group, in order.
    Payloads(Vec<Arc<Payload>>),
    /// The device's groups are not what they were.
    GroupsChanged,
    /// The device's recovery vault was fetched with its code at this time, in milliseconds since the
    /// epoch.
    RecoveryFetched(u64),
    /// Nothing has happened for a while.
    Silence,
}

/// The receiving end: dropping it removes every trace.
pub struct PayloadStream {
    listening: Listening,
    last_change: Option<Instant>,
}

impl PayloadStream {
    pub(crate) fn new(listening: Listening) -> Self {
        Self { listening, last_change: None }
    }

    /// Its place in the registry.
    pub(crate) fn listener(&self) -> &Arc<Listener> {
        &self.listening.listener
    }

    /// The next event; [`StreamEvent::Silence`] when nothing has happened for so long, `None` when
    /// the stream has ended. Not to be dropped while it waits, but with the stream.
    pub async fn next(&mut self, silence: Duration) -> Option<StreamEvent> {
        let silent_at = Instant::now() + silence;
        loop {
            let (ended, changed) = self.listener().state();
            if ended {
                return None;
            }
            if let Some(at) = self.listener().take_fetched() {
                return Some(StreamEvent::RecoveryFetched(at));
            }
            if changed {
                return self.tell_changes().await;
            }
            if let Some(wanted) = self.listener().wanted() {
                let payloads = self.fetch(&wanted).await;
                if !payloads.is_empty() {
                    return Some(StreamEvent::Payloads(payloads));
                }
                continue;
            }
            tokio::select! {
                () = self.listener().woken() => {}
                () = sleep_until(silent_at) => return Some(StreamEvent::Silence),
            }
        }
    }

    /// Waits for what changes along with it, and not to tell too often.
    async fn tell_changes(&mut self) -> Option<StreamEvent> {
        let now = Instant::now();
        let rested = self.last_change.map_or(now, |last| last + CHANGES_INTERVAL);
        sleep_until(rested.max(now + CHANGES_PAUSE)).await;
        if !self.listener().take_changed() {
            return None;
        }
        self.last_change = Some(Instant::now());
        Some(StreamEvent::GroupsChanged)
    }

    async fn fetch(&self, wanted: &Wanted) -> Vec<Arc<Payload>> {
        let device = self.listener().device;
        let head = wanted.presence.head().seq;
        if head <= wanted.after {
            return Vec::new();
        }
        let recent = wanted.presence.recent(wanted.after);
        if let Some(last) = recent.last().map(|entry| entry.seq) {
            let payloads = recent
                .iter()
                .filter(|entry| entry.stub_for(device, wanted.joined_seq).is_none())
                .filter_map(|entry| entry.payload.clone())
                .collect();
            return self.listener().arrive(wanted, last, payloads);
        }
        match timeout(STORE_DEADLINE, self.read(wanted, head)).await {
            Ok(Ok((last, payloads))) => self.listener().arrive(wanted, last, payloads),
            Ok(Err(_)) | Err(_) => {
                sleep(Duration::from_millis(jitter(FAILED_PAUSE_MS.0, FAILED_PAUSE_MS.1))).await;
                self.listener().more(wanted.key);
                Vec::new()
            }
        }
    }

    async fn read(
        &self,
        wanted: &Wanted,
        head: u64,
    ) -> Result<(u64, Vec<Arc<Payload>>), StoreError> {
        let request = PageRequest {
            key: wanted.key,
            after: wanted.after,
            up_to: head,
            reader: self.listener().device,
            joined_seq: wanted.joined_seq,
            entries_max: STREAM_PAGE_ENTRIES_MAX,
            bytes_max: STREAM_PAGE_BYTES_MAX,
        };
        // The semaphore is never closed; if it were, reading without a turn is still correct.
        let shared = &self.listening.shared;
        let turn = shared.stream_reads.acquire().await;
        let page = shared.store.read_page(&request).await?;
        drop(turn);
        let incarnation = shared.store.incarnation();
        // An empty page says that nothing is kept up to the head, as below a floor that has risen.
        let last = page.last().map_or(head, |entry| entry.seq);
        let payloads = page
            .into_iter()
            .filter(|entry| !is_control(entry))
            .filter_map(|entry| Payload::stored(wanted.key, wanted.id, incarnation, entry))
            .map(Arc::new)
            .collect();
        Ok((last, payloads))
    }
}

fn is_control(entry: &crate::ports::StoredEntry) -> bool {
    entry.header.decode().is_ok_and(|header| header.kind == sealwire_protocol::Kind::Control)
}
