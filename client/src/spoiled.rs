//! Entries that came otherwise than they were written: their header stands in the chain, and the body,
//! the addressees or the signature that came with it are not its own.
//!
//! The chain holds headers alone, so such a copy is the one thing that may be wrong with an entry and be
//! right another time: a bad disk of the relay, or its ill will. Nothing of it is believed; it stops
//! nobody, neither the log nor its author; and it is read again, seldomer each time. How, is for
//! [`crate::vault`] and for [`crate::engine`]; here is only what both agree on.

use std::collections::VecDeque;
use std::time::Duration;

use sealwire_protocol::{Digest, Header};
use serde::{Deserialize, Serialize};

/// How long after a copy was not whole the relay is asked for another one; eight times as long after each
/// further one.
const PAUSE_FIRST: Duration = Duration::from_secs(2);

/// Longest time between two questions for the same entry.
const PAUSE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// How long to wait before the question after so many.
pub(crate) fn pause(tries: u32) -> Duration {
    PAUSE_FIRST.saturating_mul(8_u32.saturating_pow(tries)).min(PAUSE_MAX)
}

/// As milliseconds.
pub(crate) fn pause_ms(tries: u32) -> u64 {
    u64::try_from(pause(tries).as_millis()).unwrap_or(u64::MAX)
}

/// Most entries that are remembered for the one after them to name.
const UNPROVEN_MAX: usize = 64;

/// The digests of entries that were not believed, and stand in the chain all the same.
///
/// Whether an author has written one, only the author can say: its next entry, which is signed, names it
/// as the one before. So an entry that was spoiled on the way does not mute its author.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unproven(VecDeque<Digest>);

impl Unproven {
    /// One more.
    pub(crate) fn push(&mut self, digest: Digest) {
        if self.0.len() == UNPROVEN_MAX {
            self.0.pop_front();
        }
        self.0.push_back(digest);
    }

    /// Whether the author of an entry whose newest believed one has `count` says that it has written one
    /// of these since.
    pub(crate) fn is_vouched_for(&self, header: &Header, count: u64) -> bool {
        header.count > count + 1 && self.0.contains(&header.prev)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_relay_is_asked_seldomer_each_time_and_never_given_up() {
        assert_eq!(pause(0), Duration::from_secs(2));
        assert_eq!(pause(2), Duration::from_secs(128));
        assert_eq!(pause(u32::MAX), PAUSE_MAX);
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        let mut unproven = Unproven::default();
        (0..=255).for_each(|number| unproven.push(Digest([number; 32])));
        assert_eq!(unproven.0.len(), UNPROVEN_MAX);
        assert!(unproven.0.contains(&Digest([255; 32])));
    }
}
