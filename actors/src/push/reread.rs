//! Who has not seen what was appended lately, as the store knows it.
//!
//! After a start nobody remembers for whom a doorbell waited; and word that did not fit a mailbox is
//! gone. Both heal the same way: the entries of the last minutes are read again, log by log and a page
//! at a time, and whoever has not acked one that rings is rung. What the actor knows already is no news.

use std::sync::{Arc, Weak};

use sealwire_protocol::LogType;
use tokio::sync::oneshot;
use tokio::time::{Duration, Instant, sleep};

use super::Message;
use super::doorstep::{Sleeper, Told};
use crate::entry::rings;
use crate::limits::{DOORBELL_ENTRIES_PAGE, DOORBELL_LOGS_PAGE, DOORBELL_LOOKBACK};
use crate::mailbox::Mailbox;
use crate::ports::{LogKey, MemberRecord, RecentEntry, RecentLog, StoreError};
use crate::retention::before;
use crate::system::Shared;
use crate::turns::Turn;

/// Pause before a page that could not be read is read again.
const FAILED_PAUSE: Duration = Duration::from_secs(2);

/// Reads once through all logs and tells the actor what it finds. Ends with the system.
pub(super) async fn reread(shared: Weak<Shared>, mailbox: Mailbox<Message>, settle: Duration) {
    sleep(settle).await;
    let mut after = LogKey(0);
    loop {
        let Some(shared) = shared.upgrade() else {
            return;
        };
        let since = before(shared.clock.now_ms(), DOORBELL_LOOKBACK);
        let page = shared.store.recent_logs(after, since, DOORBELL_LOGS_PAGE);
        match shared.turns.ask(Turn::Question, page).await {
            Err(StoreError::Unavailable) => {
                drop(shared);
                sleep(FAILED_PAUSE).await;
            }
            Err(_) => {
                // It would be the same each time.
                tracing::error!(after = after.0, "which logs are recent cannot be read");
                break;
            }
            Ok((logs, last)) => {
                for log in logs {
                    if !tell(&shared, &mailbox, log, since).await {
                        return;
                    }
                }
                match last {
                    Some(last) => after = last,
                    None => break,
                }
            }
        }
    }
    // Refused only if the actor has ended.
    let _ = mailbox.post(Message::Reread);
}

/// Tells of one log, and waits until that was heard. Gives false if nobody hears any more.
async fn tell(
    shared: &Arc<Shared>,
    mailbox: &Mailbox<Message>,
    log: RecentLog,
    since: u64,
) -> bool {
    let sleepers = match unseen(shared, log, since).await {
        Ok(sleepers) => sleepers,
        Err(StoreError::Unavailable) => {
            // It is one log's; the next reading, or the device itself, comes to it.
            shared.doorstep.missed(1);
            return true;
        }
        Err(_) => {
            // It would be the same each time.
            tracing::error!(log = log.key.0, "who is to be rung for a log cannot be read");
            return true;
        }
    };
    if sleepers.is_empty() {
        return true;
    }
    let told = Told { log: log.key, id: log.id, since: Instant::now(), sleepers };
    let (heard, waits) = oneshot::channel();
    mailbox.post(Message::Again(told, heard)).is_ok() && waits.await.is_ok()
}

/// Who has not seen which entry of a log: for each device the newest.
async fn unseen(
    shared: &Arc<Shared>,
    log: RecentLog,
    since: u64,
) -> Result<Vec<Sleeper>, StoreError> {
    let (store, now) = (&shared.store, shared.clock.now_ms());
    let members = shared.turns.ask(Turn::Question, store.members_with_doorbells(log.key)).await?;
    let mut left: Vec<MemberRecord> = members;
    let mut unseen = Vec::new();
    let mut before = u64::MAX;
    while !left.is_empty() {
        let page = store.recent_entries(log.key, before, DOORBELL_ENTRIES_PAGE);
        let page = shared.turns.ask(Turn::Question, page).await?;
        let more = page.len() == DOORBELL_ENTRIES_PAGE;
        for entry in &page {
            if entry.at < since {
                return Ok(unseen);
            }
            let Some(urgency) = rings(log.log_type, entry.kind, entry.totals_kind.as_deref())
            else {
                continue;
            };
            left.retain(|member| {
                let waits = is_unseen(shared, log.log_type, entry, member);
                if waits {
                    let (device, seq) = (member.member.device, entry.seq);
                    // Entries are of the last minutes.
                    let age_ms = u32::try_from(now.saturating_sub(entry.at)).unwrap_or(u32::MAX);
                    unseen.push(Sleeper { device, seq, urgency, age_ms, word: None });
                }
                !waits
            });
        }
        match page.last() {
            Some(last) if more => before = last.seq,
            _ => break,
        }
    }
    Ok(unseen)
}

fn is_unseen(
    shared: &Shared,
    log_type: LogType,
    entry: &RecentEntry,
    record: &MemberRecord,
) -> bool {
    let device = record.member.device;
    let named = entry.recipients.is_empty() || entry.recipients.binary_search(&device).is_ok();
    let for_it = named && entry.seq > record.member.joined_seq;
    device != entry.sender
        && match log_type {
            LogType::Group => for_it && !record.acked.contains(entry.seq),
            LogType::Vault => !shared.registry.is_here(device),
        }
}
