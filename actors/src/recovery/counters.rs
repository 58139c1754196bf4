//! The two counters of a recovery vault, as plain decisions.
//!
//! Whoever finds a note with a code can fetch the vault and try PINs on a machine of his own; what the
//! relay can do is to be slow, and to tell the owner. It must never destroy: a lock ends by itself, and
//! the owner's next PUT clears everything.
//!
//! Holds always: a decision that grants has counted; within a lock nothing is granted and nothing is
//! counted, so that nobody can lengthen a lock.

/// Reported failures until a lock. The app reports one for each wrong PIN; a person mistypes twice or
/// thrice.
pub const FAILURES_MAX: u32 = 5;

/// The first lock, in milliseconds; each one after it is twice as long.
pub const LOCK_MS: u64 = 3_600_000;

/// The longest lock, in milliseconds: a day. An owner who was locked out by another comes back tomorrow.
pub const LOCK_MS_MAX: u64 = 24 * LOCK_MS;

/// After so many milliseconds without a lock or a reported failure, failures are forgotten.
pub const QUIET_MS: u64 = 24 * 3_600_000;

/// Fetches that are granted in one window. A restore takes one, with a bad network a few.
pub const FETCHES_MAX: u32 = 10;

/// The window of fetches, in milliseconds, from the first of them.
pub const FETCH_WINDOW_MS: u64 = 3_600_000;

/// What has been counted of one recovery vault. Times are milliseconds since the epoch; 0 for never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Failures reported since the last lock.
    pub failures: u32,
    /// Locks since the last quiet day.
    pub locks: u32,
    /// When the last failure was counted.
    pub failed_at: u64,
    /// Until when failures have locked it.
    pub locked_until: u64,
    /// Fetches granted in the window.
    pub fetches: u32,
    /// When the window began.
    pub fetches_since: u64,
}

/// Nothing is granted until then, in milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locked {
    /// When it will be granted again.
    pub until: u64,
}

impl Counters {
    /// Counts a fetch at `now`.
    ///
    /// # Errors
    /// [`Locked`] if it is not granted.
    pub fn fetch(self, now: u64) -> Result<Self, Locked> {
        self.not_locked(now)?;
        let window_ends = self.fetches_since.saturating_add(FETCH_WINDOW_MS);
        if self.fetches == 0 || window_ends <= now {
            return Ok(Self { fetches: 1, fetches_since: now, ..self });
        }
        if self.fetches >= FETCHES_MAX {
            return Err(Locked { until: window_ends });
        }
        Ok(Self { fetches: self.fetches + 1, ..self })
    }

    /// Counts a reported failure at `now`.
    ///
    /// # Errors
    /// [`Locked`] if it is locked already: then nothing is counted.
    pub fn fail(self, now: u64) -> Result<Self, Locked> {
        self.not_locked(now)?;
        let (failures, locks) =
            if self.failures_forgotten(now) { (0, 0) } else { (self.failures, self.locks) };
        let failures = failures + 1;
        if failures < FAILURES_MAX {
            return Ok(Self { failures, locks, failed_at: now, ..self });
        }
        let length = LOCK_MS.checked_shl(locks).map_or(LOCK_MS_MAX, |ms| ms.min(LOCK_MS_MAX));
        let locked_until = now.saturating_add(length);
        // Beyond the longest lock the number of locks says nothing more.
        let locks = if length == LOCK_MS_MAX { locks } else { locks + 1 };
        Ok(Self { failures: 0, locks, failed_at: now, locked_until, ..self })
    }

    /// From when on nothing here matters any more; 0 if nothing has been counted.
    #[must_use]
    pub fn forgotten_at(&self) -> u64 {
        let failures = match self.last_failure() {
            0 => 0,
            last => last.saturating_add(QUIET_MS),
        };
        let fetches = match self.fetches {
            0 => 0,
            _ => self.fetches_since.saturating_add(FETCH_WINDOW_MS),
        };
        failures.max(fetches)
    }

    fn not_locked(&self, now: u64) -> Result<(), Locked> {
        if now < self.locked_until { Err(Locked { until: self.locked_until }) } else { Ok(()) }
    }

    /// A lock is no quiet time: the day begins when it ends.
    fn last_failure(&self) -> u64 {
        self.failed_at.max(self.locked_until)
    }

    fn failures_forgotten(&self, now: u64) -> bool {
        self.last_failure().saturating_add(QUIET_MS) <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: u64 = 1_700_000_000_000;
    const HOUR: u64 = 3_600_000;

    fn failed(counters: Counters, times: u32, now: u64) -> Counters {
        (0..times).fold(counters, |counters, _| counters.fail(now).expect("not locked"))
    }

    #[test]
    fn the_fifth_failure_locks_for_an_hour() {
        let four = failed(Counters::default(), 4, NOON);
        assert_eq!(four.fetch(NOON).map(|counters| counters.fetches), Ok(1));
        let five = failed(four, 1, NOON);
        let locked = Err(Locked { until: NOON + HOUR });
        assert_eq!(five.fail(NOON), locked);
        assert_eq!(five.fetch(NOON + HOUR - 1), locked);
        assert!(five.fetch(NOON + HOUR).is_ok());
    }

    #[test]
    fn locks_double_up_to_a_day_and_never_beyond() {
        let (mut counters, mut now) = (Counters::default(), NOON);
        for hours in [1, 2, 4, 8, 16, 24, 24, 24] {
            counters = failed(counters, FAILURES_MAX, now);
            assert_eq!(counters.locked_until, now + hours * HOUR);
            now = counters.locked_until;
        }
    }

    #[test]
    fn a_quiet_day_after_the_lock_forgets_all_failures() {
        let counters = failed(Counters::default(), FAILURES_MAX, NOON);
        let free = counters.locked_until;
        let soon = failed(counters, FAILURES_MAX, free + QUIET_MS - 1);
        assert_eq!(soon.locked_until, free + QUIET_MS - 1 + 2 * HOUR);
        let later = failed(counters, FAILURES_MAX, free + QUIET_MS);
        assert_eq!(later.locked_until, free + QUIET_MS + HOUR);
        let some = failed(Counters::default(), 4, NOON);
        assert_eq!(failed(some, 1, NOON + QUIET_MS).failures, 1);
    }

    #[test]
    fn ten_fetches_are_granted_in_an_hour_from_the_first() {
        let mut counters = Counters::default();
        for minute in 0..u64::from(FETCHES_MAX) {
            counters = counters.fetch(NOON + minute * 60_000).expect("granted");
        }
        let locked = Err(Locked { until: NOON + HOUR });
        assert_eq!(counters.fetch(NOON + HOUR - 1), locked);
        let next = counters.fetch(NOON + HOUR).expect("granted");
        assert_eq!((next.fetches, next.fetches_since), (1, NOON + HOUR));
    }

    #[test]
    fn a_clock_that_steps_back_grants_nothing_more() {
        let counters = (0..FETCHES_MAX)
            .try_fold(Counters::default(), |counters, _| counters.fetch(NOON))
            .expect("granted");
        assert!(counters.fetch(NOON - HOUR).is_err());
        let locked = failed(Counters::default(), FAILURES_MAX, NOON);
        assert!(locked.fetch(NOON - HOUR).is_err());
    }

    #[test]
    fn what_counts_no_more_is_known_to() {
        assert_eq!(Counters::default().forgotten_at(), 0);
        let fetched = Counters::default().fetch(NOON).expect("granted");
        assert_eq!(fetched.forgotten_at(), NOON + HOUR);
        let failed = failed(fetched, 1, NOON);
        assert_eq!(failed.forgotten_at(), NOON + QUIET_MS);
    }
}
