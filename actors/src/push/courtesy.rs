//! Appends go first: how many doorbells begin while entries wait for a committer.
//!
//! A doorbell may be seconds late where an append may not, and ringing takes the cores that appends
//! need: two thousand devices that are rung at once are some hundred milliseconds of a core. So while
//! entries wait, a few doorbells begin together, then there is a pause. The more wait, the more begin, up to
//! [`PUSH_CALLS_MAX`](crate::limits::PUSH_CALLS_MAX) at a time, which is 2,560 in a second where each call
//! takes 50 ms. What comes faster than that waits, and what no room is left for is read again later.

use super::breaker::ms;
use crate::limits::{
    PUSH_YIELD, PUSH_YIELD_CALLS, PUSH_YIELD_DEPTH, PUSH_YIELD_PAUSE, PUSH_YIELD_STEPS,
};

/// See the module's header. Times are milliseconds of the actor's clock.
#[derive(Default)]
pub(super) struct Courtesy {
    /// Until when appends go first.
    until: u64,
    /// When the next calls may begin meanwhile.
    next: u64,
}

impl Courtesy {
    /// So many requests wait for the busiest committer.
    pub(super) fn see(&mut self, depth: usize, now: u64) {
        // What was waiting is committed at this moment, and there is more at the next.
        if depth >= PUSH_YIELD_DEPTH {
            self.until = now + ms(PUSH_YIELD);
        }
    }

    /// How many calls may begin now, where there is room for `free` and `ready` devices wait.
    pub(super) fn room(&self, free: usize, ready: usize, now: u64) -> usize {
        if now >= self.until {
            free
        } else if now < self.next {
            0
        } else {
            free.min(PUSH_YIELD_CALLS.max(ready / PUSH_YIELD_STEPS))
        }
    }

    /// Calls have begun.
    pub(super) fn began(&mut self, now: u64) {
        self.next = now + ms(PUSH_YIELD_PAUSE);
    }

    /// When the next may begin, if appends go first.
    pub(super) fn next(&self, now: u64) -> Option<u64> {
        (now < self.until).then_some(self.next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{DOORBELL_DEVICES_MAX, PUSH_CALLS_MAX};

    #[test]
    fn as_many_as_there_is_room_for_begin_when_no_entries_wait() {
        let mut courtesy = Courtesy::default();
        courtesy.see(PUSH_YIELD_DEPTH - 1, 10);
        courtesy.began(10);
        assert_eq!((courtesy.room(100, 500, 10), courtesy.next(10)), (100, None));
    }

    #[test]
    fn a_few_begin_after_each_pause_for_as_long_as_entries_were_seen_to_wait() {
        let (pause, lasts) = (ms(PUSH_YIELD_PAUSE), ms(PUSH_YIELD));
        let mut courtesy = Courtesy::default();
        courtesy.see(PUSH_YIELD_DEPTH, 10);
        assert_eq!(courtesy.room(100, 500, 10), PUSH_YIELD_CALLS);
        assert_eq!(courtesy.room(3, 500, 10), 3, "no more than there is room for");
        courtesy.began(10);
        assert_eq!((courtesy.room(100, 500, 11), courtesy.next(11)), (0, Some(10 + pause)));
        assert_eq!(courtesy.room(100, 500, 10 + pause), PUSH_YIELD_CALLS);
        courtesy.see(0, 10 + pause);
        assert_eq!(courtesy.room(100, 500, 10 + lasts), 100, "none was seen since");
    }

    #[test]
    fn however_many_wait_all_are_rung_within_a_minute() {
        let mut courtesy = Courtesy::default();
        let (mut now, mut ready) = (0, DOORBELL_DEVICES_MAX);
        while ready > 0 {
            courtesy.see(usize::MAX, now);
            let begin = courtesy.room(PUSH_CALLS_MAX, ready, now);
            ready -= begin.min(ready);
            if begin > 0 {
                courtesy.began(now);
            }
            now += 1;
        }
        assert!(now < 60_000, "{now} ms");
    }

    /// How many wait after so many more pauses, in each of which so many come and each call ends.
    fn waiting_after(pauses: usize, mut ready: usize, come: usize) -> usize {
        let (mut courtesy, mut now) = (Courtesy::default(), 0);
        for _ in 0..pauses {
            courtesy.see(usize::MAX, now);
            ready -= courtesy.room(PUSH_CALLS_MAX, ready, now).min(ready);
            courtesy.began(now);
            now += ms(PUSH_YIELD_PAUSE);
            ready += come;
        }
        ready
    }

    #[test]
    fn a_hundred_that_come_in_each_pause_are_kept_up_with() {
        // As many begin as come when that is the share of those that wait: they are 3.2 seconds late.
        let steady = 100 * PUSH_YIELD_STEPS..101 * PUSH_YIELD_STEPS;
        for backlog in [0, DOORBELL_DEVICES_MAX] {
            let waiting = waiting_after(10_000, backlog, 100);
            assert!(steady.contains(&waiting), "{waiting} of {backlog}");
        }
    }

    #[test]
    fn more_than_there_is_room_for_in_each_pause_are_not_kept_up_with() {
        let come = PUSH_CALLS_MAX + 1;
        let (before, after) = (waiting_after(10_000, 0, come), waiting_after(11_000, 0, come));
        assert_eq!(after - before, 1000, "one more in each");
    }
}
