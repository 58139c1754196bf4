//! Whether a push service is asked at all.
//!
//! One that fails many times in a row is left alone for a while, longer each time, and is then asked
//! once. Otherwise an outage of a day would be a day of failing calls. One that says that it is down and
//! until when, or that our quota is used up, is left alone at once. That there were too many may be said of
//! one device: it counts against the whole service only where it is said of every third call or more.

use std::time::Duration;

use crate::limits::{
    PUSH_FAILURES_MAX, PUSH_LIMITED_MAX, PUSH_QUOTA_REST, PUSH_REST_MAX, PUSH_REST_MIN,
    PUSH_RETRY_ASKED_MAX,
};
use crate::ports::Trouble;

/// Times are milliseconds on the actor's own clock.
#[derive(Default)]
pub(super) struct Breaker {
    failures: u32,
    /// Raised by two with each call that was one too many, lowered by one with each other.
    limited: u32,
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
    pub(super) fn succeeded(&mut self, probe: bool) {
        if self.until.is_some() && !probe {
            // As below.
            return;
        }
        let limited = self.limited.saturating_sub(1);
        *self = Self { limited, ..Self::default() };
    }

    /// A call failed. `asked` is what the service asked for, and `share` a random number of thousandths.
    pub(super) fn failed(
        &mut self,
        now: u64,
        trouble: Trouble,
        asked: Option<Duration>,
        probe: bool,
        share: u64,
    ) {
        if self.until.is_some() && !probe {
            // It began before the service was left alone, and says nothing new.
            return;
        }
        let mut asked = asked;
        let at_once = match trouble {
            // The next one would fail as well.
            Trouble::Unauthorised => true,
            Trouble::Quota => {
                asked = asked.or(Some(PUSH_QUOTA_REST));
                true
            }
            Trouble::Unavailable => asked.is_some(),
            Trouble::Limited => {
                self.limited += 2;
                self.limited >= PUSH_LIMITED_MAX
            }
            Trouble::Unreachable => false,
            Trouble::ThirdParty => return self.succeeded(probe),
        };
        self.failures += 1;
        if !probe && !at_once && self.failures < PUSH_FAILURES_MAX {
            return;
        }
        let pause = backoff(PUSH_REST_MIN, PUSH_REST_MAX, self.rests, asked, share);
        self.until = Some(now + pause);
        self.rests += 1;
        self.limited = 0;
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

    const FAILS: Trouble = Trouble::Unreachable;

    #[test]
    fn a_service_that_fails_in_a_row_is_left_alone_and_then_asked_once() {
        let mut breaker = Breaker::default();
        for _ in 1..PUSH_FAILURES_MAX {
            let probe = breaker.begin();
            breaker.failed(0, FAILS, None, probe, 1000);
            assert_eq!(breaker.room(0, 64), 64);
        }
        breaker.failed(0, FAILS, None, false, 1000);
        assert_eq!((breaker.room(999, 64), breaker.room(1000, 64)), (0, 1));
        // What had begun before changes nothing.
        breaker.failed(500, FAILS, Some(Duration::from_secs(60)), false, 1000);
        assert_eq!(breaker.room(1000, 64), 1);
        let probe = breaker.begin();
        assert!(probe);
        assert_eq!(breaker.room(1000, 64), 0, "only one is asked");
        breaker.failed(1000, FAILS, None, probe, 1000);
        assert_eq!((breaker.room(2999, 64), breaker.room(3000, 64)), (0, 1), "twice as long");
        // Also that it was taken.
        breaker.succeeded(false);
        assert_eq!(breaker.room(3000, 64), 1);
        let probe = breaker.begin();
        breaker.succeeded(probe);
        assert_eq!(breaker.room(3000, 64), 64);
    }

    #[test]
    fn what_is_said_of_the_whole_service_is_honoured_at_once() {
        let rest = |trouble, asked: Option<u64>| {
            let mut breaker = Breaker::default();
            breaker.failed(0, trouble, asked.map(Duration::from_secs), false, 0);
            breaker.rests_until(0)
        };
        assert_eq!(rest(Trouble::Unauthorised, Some(30)), Some(30_000));
        assert_eq!(rest(Trouble::Unauthorised, None), Some(500));
        assert_eq!(rest(Trouble::Unavailable, Some(30)), Some(30_000));
        assert_eq!(rest(Trouble::Quota, Some(30)), Some(30_000));
        assert_eq!(rest(Trouble::Quota, None), Some(ms(PUSH_QUOTA_REST)));
        assert_eq!(rest(Trouble::Unavailable, None), None, "it may be this call's");
        assert_eq!(rest(Trouble::Limited, Some(30)), None, "it may be this device's");
        assert_eq!(rest(Trouble::ThirdParty, None), None, "others are not concerned");
    }

    #[test]
    fn too_many_here_and_there_rests_nobody_and_too_many_of_all_does() {
        let asked = Some(Duration::from_secs(7));
        let after = |every: u32, calls: u32| {
            let mut breaker = Breaker::default();
            for call in 1..=calls {
                match call % every {
                    0 => breaker.failed(0, Trouble::Limited, asked, false, 0),
                    _ => breaker.succeeded(false),
                }
            }
            breaker.rests_until(0)
        };
        assert_eq!(after(20, 10_000), None, "of twenty one");
        assert_eq!(after(2, 100), Some(7_000), "of two one");
        assert_eq!(after(1, 20), Some(7_000));
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
