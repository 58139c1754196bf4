//! Requests that come a second time: the device had no answer, or an old copy of it is running.

use sealwire_protocol::frame::Appended;
use sealwire_protocol::{DeviceKey, Digest, Failure};
use tokio::sync::oneshot;

use super::{LogActor, Memory, Refusal};
use crate::ports::{LogKey, StoreError};
use crate::reply::Reply;
use crate::system::Shared;
use crate::turns::Turn;

impl LogActor {
    /// A request whose counts were used before: by one in flight, or by one that the store knows.
    pub(super) fn resent(
        &mut self,
        sender: DeviceKey,
        first_count: u64,
        (last_count, digest): (u64, Digest),
        reply: Reply,
    ) {
        let Memory::Ready(state) = &self.memory else {
            return;
        };
        let (log, newest) = (state.id, state.last_of(sender));
        let head = self.committed.map(|position| state.head_of(position));
        let conflict = Failure::conflict(newest.0, newest.1);
        let in_flight = self.in_flight.iter_mut().find(|part| {
            part.sent.is_some_and(|sent| {
                sent.sender == sender && (sent.first_count..=sent.last_count).contains(&last_count)
            })
        });
        if let Some(part) = in_flight {
            match part.sent {
                Some(sent) if sent.last_count == last_count && sent.last_digest != digest => {
                    self.refuse(Refusal::Entries(reply, conflict));
                }
                Some(sent) if sent.last_count == last_count && sent.first_count == first_count => {
                    part.replies.push((reply, true));
                }
                // Cut differently from the request in flight: it is told to come back, and learns
                // then what became of it.
                Some(_) | None => drop(reply),
            }
            return;
        }
        let under_way = self.under_way();
        let shared = self.shared.clone();
        let asked = Asked { key: self.key, sender, counts: (first_count, last_count), digest };
        // Off the actor: the store is asked, and the order of other requests does not depend on it.
        tokio::spawn(async move {
            let (Ok(found), Some(head)) = (asked.of(&shared).await, head) else {
                // Dropped: answered as unavailable.
                return;
            };
            let refusal = match found {
                Found::Here(seq) => {
                    let duplicate = true;
                    return reply.appended(Appended { log, seq, duplicate, head });
                }
                Found::Other => conflict,
                // They have no seqs in a row to be told.
                Found::Scattered => Failure::out_of_order(newest.0 + 1),
            };
            // It names the sender's newest entry, which may come to nothing.
            if let Some(durable) = under_way
                && durable.await.is_err()
            {
                return;
            }
            reply.refuse(refusal);
        });
    }

    /// Resolves when everything that is under way is durable, to an error if it comes to nothing. None
    /// if nothing is.
    fn under_way(&mut self) -> Option<oneshot::Receiver<()>> {
        let part = self.in_flight.back_mut()?;
        let (done, durable) = oneshot::channel();
        part.flushes.push(done);
        Some(durable)
    }
}

/// Entries that may be in the store: by their first and last counts, and the digest of the last.
struct Asked {
    key: LogKey,
    sender: DeviceKey,
    counts: (u64, u64),
    digest: Digest,
}

/// What the store has of them.
enum Found {
    /// All of them, in a row from this seq on.
    Here(u64),
    /// All of them, but not as one batch.
    Scattered,
    /// Others, or none.
    Other,
}

impl Asked {
    async fn of(&self, shared: &Shared) -> Result<Found, StoreError> {
        let (first_count, last_count) = self.counts;
        let find = async |count| {
            let question = shared.store.find_entry(self.key, self.sender, count);
            shared.turns.ask(Turn::Resend, question).await
        };
        // Each entry names the one before it, so the last digest stands for all of them.
        let last = match find(last_count).await? {
            Some((seq, known)) if known == self.digest => seq,
            Some(_) | None => return Ok(Found::Other),
        };
        let Some((first, _)) = find(first_count).await? else {
            return Ok(Found::Other);
        };
        let in_a_row = last - first == last_count - first_count;
        Ok(if in_a_row { Found::Here(first) } else { Found::Scattered })
    }
}
