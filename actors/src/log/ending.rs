//! How a log goes when its last member has left.
//!
//! It may have millions of entries, and one transaction that deletes them all would hold up every
//! other log for longer than a transaction may take. So the floor is raised over them a step at a
//! time, as when they expire, and what is left goes with the log itself. Nobody sees any of it: from
//! the last leaving on nobody is a member, and nobody can become one.

use super::{LogActor, LogMessage, Memory};
use crate::ports::{DUE_ENTRIES_MAX, DueLog, LogKey, Position, StoreError};
use crate::turns::Turn;

impl LogActor {
    /// Takes the next step towards the end, if nobody is a member any more and none is under way.
    pub(super) fn go_on_ending(&mut self) {
        let Memory::Ready(state) = &mut self.memory else {
            return;
        };
        let under_way = self.ending || self.in_flight.iter().any(|part| part.ends_log);
        if !state.is_deserted() || under_way {
            return;
        }
        if state.above_floor() <= DUE_ENTRIES_MAX {
            let end = state.end();
            return self.submit(end, Vec::new(), None, None);
        }
        self.ending = true;
        let (shared, key, myself) = (self.shared.clone(), self.key, self.myself.clone());
        tokio::spawn(async move {
            // Everything is due.
            let due = shared.store.due_for_expiry(LogKey(key.0 - 1), u64::MAX, 1);
            let due = shared.turns.ask(Turn::Question, due).await;
            let found = |(due, _): (Vec<DueLog>, _)| due.into_iter().find(|log| log.key == key);
            let up_to = due.map(|answer| found(answer).map(|log| log.up_to));
            // Refused only if the log has ended.
            let _ = myself.post(LogMessage::Ending(up_to));
        });
    }

    /// Raises the floor of a log that is going, or ends it where there is no such step. If the store
    /// could not be asked, the next tick does.
    pub(super) fn end_up_to(&mut self, up_to: Result<Option<Position>, StoreError>) {
        self.ending = false;
        let Memory::Ready(state) = &mut self.memory else {
            return;
        };
        let under_way = self.in_flight.iter().any(|part| part.ends_log);
        if !state.is_deserted() || under_way {
            return;
        }
        let decided = match up_to {
            Ok(Some(up_to)) => state.expire(up_to, u64::MAX),
            Ok(None) => Some(state.end()),
            Err(_) => None,
        };
        self.submit_decided(decided);
    }
}
