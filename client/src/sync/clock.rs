//! When a write happened, so that all devices agree which of two came last.
//!
//! A [`Stamp`] is a hybrid logical clock's reading and the device that took it. Readings follow the
//! wall clock where they can, and causality always: a device never stamps a write below something
//! that it had seen. Two readings that are equal are told apart by the devices' keys, so any two
//! stamps of two devices have an order, and it is the same everywhere. One device stamps each write
//! differently, unless its memory was set back or it means harm: what it has written twice under one
//! stamp is told apart by what it says ([`super::record`]).
//!
//! A device whose clock is wrong must not drag the others along. A [`Clock`] therefore follows what it
//! sees by at most [`DRIFT_MAX_MS`]; a write that takes the place of one from further in the future is
//! stamped just after that one ([`Clock::stamp`]), and only that write is.
//!
//! Holds always:
//! - stamps of one device only rise;
//! - a stamp is above all that its write takes the place of.

use std::time::{SystemTime, UNIX_EPOCH};

use sealwire_protocol::DeviceKey;

/// How far the clock of another device is followed, in milliseconds: what two honest phones differ by
/// at most, with an hour of daylight saving that somebody set by hand.
pub const DRIFT_MAX_MS: u64 = 2 * 60 * 60 * 1000;

/// Bits of a reading that count within a millisecond.
const COUNTER_BITS: u32 = 16;

/// Highest reading that is taken from others, in milliseconds since the epoch: the year 6429. Above it
/// is room for everything that has to be stamped later.
const WALL_MAX_MS: u64 = 1 << 47;

/// How far in the future a reading may be that a write is stamped just after, in milliseconds: a
/// century, more than any clock is wrong by. Who writes over one from further away cannot exceed it, and
/// could not be exceeded by others if it did: that write stays on its device.
pub const REACH_MS: u64 = 100 * 366 * 24 * 60 * 60 * 1000;

/// A reading of the hybrid clock: milliseconds since the epoch, and a counter in the lowest 16 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reading(pub u64);

impl Reading {
    /// Before everything that is ever written: what was in a database before it was attached. The first
    /// of as many as there are numbers of 32 bits, for each changeset has one of its own.
    pub const ADOPTED: Self = Self(1);

    /// The reading of the changeset with this number among those of rows that were there before.
    #[must_use]
    pub fn adopted(number: u32) -> Self {
        Self(u64::from(number).max(Self::ADOPTED.0))
    }

    /// Whether it is of rows that were there before.
    #[must_use]
    pub fn is_adopted(self) -> bool {
        self.0 <= u64::from(u32::MAX)
    }

    /// The last reading that a write at `now` is stamped after.
    #[must_use]
    pub fn reach(now: u64) -> Self {
        Self::at(now.saturating_add(REACH_MS))
    }

    /// The first reading of a millisecond.
    #[must_use]
    pub fn at(ms: u64) -> Self {
        Self(ms.min(WALL_MAX_MS - 1) << COUNTER_BITS)
    }

    /// Its milliseconds since the epoch.
    #[must_use]
    pub fn ms(self) -> u64 {
        self.0 >> COUNTER_BITS
    }

    /// Whether it may come from another device.
    #[must_use]
    pub fn is_sound(self) -> bool {
        self.0 > 0 && self.ms() < WALL_MAX_MS
    }

    fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// When, and by whom. Ordered: the greater one is the last writer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// When.
    pub reading: Reading,
    /// By whom.
    pub device: DeviceKey,
}

/// The clock of one device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    last: Reading,
}

impl Clock {
    /// Goes on behind the newest reading that was kept.
    #[must_use]
    pub fn after(last: Reading) -> Self {
        Self { last }
    }

    /// The newest reading: to be kept.
    #[must_use]
    pub fn last(self) -> Reading {
        self.last
    }

    /// A reading for a write that happened `at` (milliseconds since the epoch, never later than `now`)
    /// and takes the place of what has `over` as its newest reading, which is within reach.
    pub fn stamp(&mut self, at: u64, now: u64, over: Option<Reading>) -> Reading {
        let reading = Reading::at(at.min(now)).max(self.last.next());
        self.last = reading;
        match over {
            // The clock itself does not follow: one field from the future stays alone.
            Some(over) if over >= reading => over.next(),
            _ => reading,
        }
    }

    /// Another device's reading was seen. Says whether it was followed.
    pub fn observe(&mut self, seen: Reading, now: u64) -> bool {
        let bound = Reading::at(now.saturating_add(DRIFT_MAX_MS));
        if seen <= bound {
            self.last = self.last.max(seen);
        }
        seen <= bound
    }
}

/// Milliseconds since the epoch, by this machine's clock.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn stamps_rise_and_exceed_what_they_replace(
            steps in proptest::collection::vec((0u64..1 << 46, 0u64..1 << 46, any::<bool>()), 1..50),
        ) {
            let mut clock = Clock::after(Reading(0));
            let mut last = Reading(0);
            for (at, seen, replaces) in steps {
                let seen = Reading::at(seen);
                clock.observe(seen, at);
                let reading = clock.stamp(at, at, replaces.then_some(seen));
                prop_assert!(!replaces || reading > seen);
                prop_assert!(clock.last() > last, "the clock goes on");
                last = clock.last();
            }
        }
    }

    #[test]
    fn a_clock_from_the_future_is_not_followed_and_yet_can_be_overwritten() {
        let now = 1_700_000_000_000;
        let mut clock = Clock::after(Reading(0));
        let future = Reading::at(now + DRIFT_MAX_MS + 1);
        assert!(!clock.observe(future, now));
        assert_eq!(clock.stamp(now, now, None), Reading::at(now));
        assert!(clock.stamp(now, now, Some(future)) > future);
        assert_eq!(clock.stamp(now, now, None).ms(), now, "and is where it was");
        assert!(clock.observe(Reading::at(now + DRIFT_MAX_MS), now));
        assert!(clock.stamp(now, now, None) > Reading::at(now + DRIFT_MAX_MS));
    }

    #[test]
    fn a_write_that_claims_to_be_from_the_future_is_stamped_now() {
        let mut clock = Clock::after(Reading(0));
        assert_eq!(clock.stamp(900, 500, None), Reading::at(500));
        assert!(!Reading(u64::MAX).is_sound() && !Reading(0).is_sound());
        assert!(Reading::ADOPTED.is_sound() && Reading::at(500).is_sound());
    }

    #[test]
    fn equal_readings_are_told_apart_by_the_devices_keys() {
        let stamp = |key| Stamp { reading: Reading(7), device: DeviceKey([key; 32]) };
        assert!(stamp(2) > stamp(1));
    }
}
