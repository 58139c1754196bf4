//! What all members count together, and the clock that they share.
//!
//! A body begins with the nanosecond of the run at which it was due: whoever receives it knows how
//! long it was under way, and nothing has to be looked up.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use crate::latency::{Latencies, Percentiles};

/// Length of the time at the beginning of each body.
pub(super) const STAMP_BYTES: usize = size_of::<u64>();

const NANOSECONDS: u64 = 1_000_000_000;

/// The time that is measured, in nanoseconds of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub(super) begin: u64,
    pub(super) end: u64,
}

impl Window {
    fn holds(self, at: u64) -> bool {
        (self.begin..self.end).contains(&at)
    }
}

/// Sums over a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) appended: u64,
    pub(super) appended_in_window: u64,
    pub(super) delivered_in_window: u64,
    pub(super) refused: u64,
    pub(super) unsent: u64,
}

pub(super) struct Tally {
    began: OnceLock<Instant>,
    window: Window,
    appended: AtomicU64,
    appended_in_window: AtomicU64,
    delivered_in_window: AtomicU64,
    refused: AtomicU64,
    unsent: AtomicU64,
    push_to_appended: Latencies,
    push_to_deliver: Latencies,
}

/// What one member has counted since it last told the tally.
#[derive(Default)]
pub(super) struct Unsaid {
    appended: u64,
    appended_in_window: u64,
    delivered_in_window: u64,
    push_to_appended: Vec<u64>,
    push_to_deliver: Vec<u64>,
}

impl Tally {
    pub(super) fn new(warm_up_s: u64, seconds: u64) -> Self {
        let begin = warm_up_s * NANOSECONDS;
        Self {
            began: OnceLock::new(),
            window: Window { begin, end: begin + seconds * NANOSECONDS },
            appended: AtomicU64::new(0),
            appended_in_window: AtomicU64::new(0),
            delivered_in_window: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
            push_to_appended: Latencies::new(),
            push_to_deliver: Latencies::new(),
        }
    }

    /// The run begins now.
    pub(super) fn begin(&self) {
        self.began.get_or_init(Instant::now);
    }

    /// When the run began.
    pub(super) fn began(&self) -> Instant {
        *self.began.get_or_init(Instant::now)
    }

    /// Nanoseconds since the run began.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.began().elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(super) fn window(&self) -> Window {
        self.window
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn unsent(&self, entries: u64) {
        self.unsent.fetch_add(entries, Ordering::Relaxed);
    }

    /// An entry that was due at `due` was answered at `now`.
    pub(super) fn appended(&self, unsaid: &mut Unsaid, due: u64, now: u64) {
        unsaid.appended += 1;
        unsaid.appended_in_window += u64::from(self.window.holds(now));
        if self.window.holds(due) {
            unsaid.push_to_appended.push(now.saturating_sub(due));
        }
    }

    /// An entry with this body has come at `now`.
    pub(super) fn delivered(&self, unsaid: &mut Unsaid, body: &[u8], now: u64) {
        unsaid.delivered_in_window += u64::from(self.window.holds(now));
        let due = body.first_chunk().map_or(0, |stamp| u64::from_be_bytes(*stamp));
        if self.window.holds(due) {
            unsaid.push_to_deliver.push(now.saturating_sub(due));
        }
    }

    /// Adds what a member has counted.
    pub(super) fn add(&self, unsaid: &mut Unsaid) {
        let count = |sum: &AtomicU64, number: &mut u64| {
            if *number > 0 {
                sum.fetch_add(std::mem::take(number), Ordering::Relaxed);
            }
        };
        count(&self.appended, &mut unsaid.appended);
        count(&self.appended_in_window, &mut unsaid.appended_in_window);
        count(&self.delivered_in_window, &mut unsaid.delivered_in_window);
        self.push_to_appended.record(&mut unsaid.push_to_appended);
        self.push_to_deliver.record(&mut unsaid.push_to_deliver);
    }

    pub(super) fn counts(&self) -> Counts {
        let read = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        Counts {
            appended: read(&self.appended),
            appended_in_window: read(&self.appended_in_window),
            delivered_in_window: read(&self.delivered_in_window),
            refused: read(&self.refused),
            unsent: read(&self.unsent),
        }
    }

    pub(super) fn push_to_appended(&self) -> Percentiles {
        self.push_to_appended.percentiles()
    }

    pub(super) fn push_to_deliver(&self) -> Percentiles {
        self.push_to_deliver.percentiles()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_lies_in_the_window_is_measured() {
        let tally = Tally::new(1, 2);
        let second = NANOSECONDS;
        let mut unsaid = Unsaid::default();
        // Due before the window and answered in it: a rate, but no latency.
        tally.appended(&mut unsaid, second - 1, second);
        tally.appended(&mut unsaid, second, second + 5_000);
        // Due in it and answered after it: a latency, but no rate.
        tally.appended(&mut unsaid, 2 * second, 3 * second);
        tally.delivered(&mut unsaid, &(2 * second).to_be_bytes(), 2 * second + 7_000);
        tally.add(&mut unsaid);
        let counts = tally.counts();
        assert_eq!((counts.appended, counts.appended_in_window), (3, 2));
        assert_eq!(tally.push_to_appended().count, 2);
        assert_eq!(counts.delivered_in_window, 1);
        assert!((tally.push_to_deliver().p50_us - 7.0).abs() < 0.1);
    }
}
