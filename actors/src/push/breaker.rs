//! Whether a push service is asked at all.
//!
//! One that fails many times in a row is left alone for a while, longer each time, and is then asked
//! once. Otherwise an outage of a day would be a day of failing calls.

use std::time::Duration;

use crate::limits::{PUSH_FAILURES_MAX, PUSH_REST_MAX, PUSH_REST_MIN, PUSH_RETRY_ASKED_MAX};

/// Times are milliseconds on the actor's own clock.
#[derive(Default)]
pub(super) struct Breaker {
    failures: u32,
    rests: u32,
    /// Until when it is left alone.
    until: Option<u64>,
    /// Whether it is being asked once.
    probing: bool,
}

impl Breaker {
    /// How many calls may begin now, of so many that could.
    pub(super) fn room(&self, now: u64, free: usize) -> usize {
        match self.until {
            None => free,
            Some(until) if now >= until && !self.probing => free.min(1),
            Some(_) => 0,
        }
    }

    /// When it may be asked again, if not now.
    pub(super) fn rests_until(&self, now: u64) -> Option<u64> {
        self.until.filter(|until| *until > now)
    }

    /// Whether it is left alone, or is being asked once.
    pub(super) fn is_open(&self) -> bool {
        self.until.is_some()
    }

    /// A call begins. Tells whether it is the one that decides how it goes on.
    pub(super) fn begin(&mut self) -> bool {
        let probe = self.until.is_some();
        self.probing |= probe;
        probe
    }

    /// The service has answered for itself.
    pub(super) fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// A call failed. `asked` is what the service asked for, `hopeless` that the next one would fail
    /// as well, and `share` a random number of thousandths.
    pub(super) fn failed(
        &mut self,
        now: u64,
        asked: Option<Duration>,
        probe: bool,
        hopeless: bool,
        share: u64,
    ) {
        if self.until.is_some() && !probe {
            // It began before the service was left alone, and says nothing new.
            return;
        }
        self.failures += 1;
        if !probe && !hopeless && self.failures < PUSH_FAILURES_MAX {
            return;
        }
        let pause = backoff(PUSH_REST_MIN, PUSH_REST_MAX, self.rests, asked, share);
        self.until = Some(now + pause);
        self.rests += 1;
        self.probing = false;
    }
}

/// A pause in milliseconds that doubles with each failure, between half of it and all of it by chance;
/// and not shorter than what was asked for, plus up to a quarter, so that not all come back at once.
pub(super) fn backoff(
    least: Duration,
    most: Duration,
    failures: u32,
    asked: Option<Duration>,
    share: u64,
) -> u64 {
    let doubled = ms(least).saturating_mul(1 << failures.min(20)).min(ms(most));
    let own = doubled / 2 + doubled / 2 * share.min(1000) / 1000;
    let asked = asked.map_or(0, |asked| ms(asked.min(PUSH_RETRY_ASKED_MAX)));
    own.max(asked + asked / 4 * share.min(1000) / 1000)
}

pub(super) fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_fails_in_a_row_is_left_alone_and_then_asked_once() {
        let mut breaker = Breaker::default();
        for _ in 1..PUSH_FAILURES_MAX {
            let probe = breaker.begin();
            breaker.failed(0, None, probe, false, 1000);
            assert_eq!(breaker.room(0, 64), 64);
        }
        breaker.failed(0, None, false, false, 1000);
        assert_eq!((breaker.room(999, 64), breaker.room(1000, 64)), (0, 1));
        // What had begun before changes nothing.
        breaker.failed(500, Some(Duration::from_secs(60)), false, false, 1000);
        assert_eq!(breaker.room(1000, 64), 1);
        let probe = breaker.begin();
        assert!(probe);
        assert_eq!(breaker.room(1000, 64), 0, "only one is asked");
        breaker.failed(1000, None, probe, false, 1000);
        assert_eq!((breaker.room(2999, 64), breaker.room(3000, 64)), (0, 1), "twice as long");
        breaker.begin();
        breaker.succeeded();
        assert_eq!(breaker.room(3000, 64), 64);
    }

    #[test]
    fn what_was_asked_for_is_honoured_and_a_wrong_credential_rests_at_once() {
        let mut breaker = Breaker::default();
        breaker.failed(0, Some(Duration::from_secs(30)), false, true, 0);
        assert_eq!(breaker.rests_until(0), Some(30_000));
        assert!(breaker.is_open());
    }

    #[test]
    fn a_pause_doubles_up_to_the_longest_and_is_never_below_half_of_it() {
        let pause = |failures, share| backoff(PUSH_REST_MIN, PUSH_REST_MAX, failures, None, share);
        assert_eq!((pause(0, 0), pause(0, 1000)), (500, 1000));
        assert_eq!((pause(3, 0), pause(3, 1000)), (4000, 8000));
        assert_eq!(pause(60, 1000), ms(PUSH_REST_MAX));
        let asked =
            |share| backoff(PUSH_REST_MIN, PUSH_REST_MAX, 0, Some(Duration::from_secs(8)), share);
        assert_eq!((asked(0), asked(1000)), (8000, 10_000));
    }
}
