//! How long to wait before trying again.
//!
//! Full jitter: each wait is drawn from the whole span between nothing and a bound that doubles, so
//! that devices that were cut off together do not come back together.

use std::time::Duration;

use crate::identity::random;

/// Longest time that a relay may keep a device away with one word.
pub(crate) const ASKED_MAX: Duration = Duration::from_secs(3600);

/// Bounds of the waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// The bound of the first wait.
    pub first: Duration,
    /// The largest bound.
    pub max: Duration,
}

impl Default for Bounds {
    /// Half a second to a minute: a person who looks at the screen does not wait long, and a relay
    /// that is down for a day is not knocked down again.
    fn default() -> Self {
        Self { first: Duration::from_millis(500), max: Duration::from_secs(60) }
    }
}

/// The state of one series of attempts.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    bounds: Bounds,
    attempts: u32,
}

impl Backoff {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self { bounds, attempts: 0 }
    }

    /// An attempt has succeeded.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// How long to wait before the next attempt, at least `asked`.
    pub(crate) fn next(&mut self, asked: Duration) -> Duration {
        let bound = self.bound();
        self.attempts = self.attempts.saturating_add(1);
        let draw = random::<4>().map_or(u32::MAX, u32::from_be_bytes);
        asked + bound.mul_f64(f64::from(draw) / f64::from(u32::MAX))
    }

    fn bound(&self) -> Duration {
        let factor = 1u32.checked_shl(self.attempts).unwrap_or(u32::MAX);
        self.bounds.first.saturating_mul(factor).min(self.bounds.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_are_spread_below_it() {
        let bounds = Bounds { first: Duration::from_millis(500), max: Duration::from_secs(60) };
        let mut backoff = Backoff::new(bounds);
        let mut longest = Duration::ZERO;
        for attempt in 0..200 {
            let bound = backoff.bound();
            let wait = backoff.next(Duration::ZERO);
            assert!(wait <= bound && bound <= bounds.max, "attempt {attempt}");
            longest = longest.max(wait);
        }
        assert!(longest > Duration::from_secs(30), "spread over the whole span");
        backoff.reset();
        assert_eq!(backoff.bound(), bounds.first);
        assert!(backoff.next(Duration::from_secs(9)) >= Duration::from_secs(9));
    }
}
