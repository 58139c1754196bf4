//! Requests that come a second time: the device had no answer, or an old copy of it is running.

use sealwire_protocol::frame::Appended;
use sealwire_protocol::{DeviceKey, Digest, Failure};

use super::{LogActor, Memory};
use crate::reply::Reply;
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
        let newest = state.last_of(sender);
        let conflict = Failure::conflict(newest.0, newest.1);
        let in_flight = self.in_flight.iter_mut().find(|part| {
            part.sent.is_some_and(|sent| {
                sent.sender == sender && (sent.first_count..=sent.last_count).contains(&last_count)
            })
        });
        if let Some(part) = in_flight {
            match part.sent {
                Some(sent) if sent.last_count == last_count && sent.last_digest != digest => {
                    reply.refuse(conflict);
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
        let head = self.committed.map(|position| state.head_of(position));
        let (shared, key, log) = (self.shared.clone(), self.key, state.id);
        // Off the actor: the store is asked, and the order of other requests does not depend on it.
        tokio::spawn(async move {
            let find =
                |count| shared.turns.ask(Turn::Resend, shared.store.find_entry(key, sender, count));
            // Each entry names the one before it, so the last digest stands for all of them.
            let last = match find(last_count).await {
                Ok(Some((seq, known))) if known == digest => seq,
                Ok(_) => return reply.refuse(conflict),
                // Dropped: answered as unavailable.
                Err(_) => return,
            };
            let first = match find(first_count).await {
                Ok(Some((seq, _))) => seq,
                Ok(None) => return reply.refuse(conflict),
                Err(_) => return,
            };
            let Some(head) = head else {
                return;
            };
            if last - first == last_count - first_count {
                reply.appended(Appended { log, seq: first, duplicate: true, head });
            } else {
                // All are known, but not as one batch: they have no seqs in a row to be told.
                reply.refuse(Failure::out_of_order(newest.0 + 1));
            }
        });
    }
}
