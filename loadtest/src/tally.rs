//! What all members count together, and the clock that they share.
//!
//! A body begins with the nanosecond of the run at which it was due: whoever receives it knows how
//! long it was under way, and nothing has to be looked up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::latency::{Latencies, Percentiles, Spread};

/// Length of the time at the beginning of each body.
pub(crate) const STAMP_BYTES: usize = size_of::<u64>();

/// Most due times that are remembered of what was never sent; more are counted alone.
const UNSENT_MAX: usize = 4_000_000;

const NANOSECONDS: u64 = 1_000_000_000;

/// The time that is measured, in nanoseconds of the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) begin: u64,
    pub(crate) end: u64,
}

impl Window {
    fn holds(self, at: u64) -> bool {
        (self.begin..self.end).contains(&at)
    }
}

/// Sums over a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) appended: u64,
    pub(crate) appended_in_window: u64,
    pub(crate) delivered_in_window: u64,
    pub(crate) refused: u64,
    pub(crate) unsent: u64,
    /// Longest time within the window in which no device had an answer or an entry.
    pub(crate) silence_ns: u64,
}

/// What devices have counted since they were last asked.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Interval {
    pub(crate) appended: u64,
    pub(crate) delivered: u64,
    pub(crate) push_to_appended: Option<Percentiles>,
    pub(crate) push_to_deliver: Option<Percentiles>,
}

/// What the members of one process have counted since they were last asked, for another one.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Counted {
    /// Appended, delivered, the same two in the window, refused and unsent.
    sums: [u64; 6],
    /// Push to `Appended`, push to deliver, the same of slow ones, and returns.
    spreads: [Spread; 4],
}

pub(crate) struct Tally {
    began: OnceLock<Instant>,
    window: Window,
    appended: AtomicU64,
    delivered: AtomicU64,
    appended_in_window: AtomicU64,
    delivered_in_window: AtomicU64,
    refused: AtomicU64,
    unsent: AtomicU64,
    /// When these were due, until they are given up.
    unsent_dues: Mutex<Vec<u64>>,
    /// Nanosecond of the run at which a device last had something.
    heard: AtomicU64,
    silence: AtomicU64,
    /// How much of `appended` and `delivered` was told.
    told: [AtomicU64; 2],
    push_to_appended: Latencies,
    push_to_deliver: Latencies,
    /// The same of those who read slowly.
    slow: Latencies,
    /// From when a connection was lost until its device had everything again.
    returned: Latencies,
}

/// What one member has counted since it last told the tally.
#[derive(Default)]
pub(crate) struct Unsaid {
    appended: u64,
    delivered: u64,
    appended_in_window: u64,
    delivered_in_window: u64,
    push_to_appended: Vec<u64>,
    push_to_deliver: Vec<u64>,
    /// Latencies of what was due outside the window.
    appended_aside: Vec<u64>,
    delivered_aside: Vec<u64>,
    delivered_slowly: Vec<u64>,
    /// When it last had something.
    heard: u64,
}

impl Tally {
    pub(crate) fn new(warm_up_s: u64, seconds: u64) -> Self {
        let begin = warm_up_s * NANOSECONDS;
        Self {
            began: OnceLock::new(),
            window: Window { begin, end: begin + seconds * NANOSECONDS },
            appended: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            appended_in_window: AtomicU64::new(0),
            delivered_in_window: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
            unsent_dues: Mutex::default(),
            heard: AtomicU64::new(begin),
            silence: AtomicU64::new(0),
            told: [AtomicU64::new(0), AtomicU64::new(0)],
            push_to_appended: Latencies::new(),
            push_to_deliver: Latencies::new(),
            slow: Latencies::new(),
            returned: Latencies::new(),
        }
    }

    /// The run begins now.
    pub(crate) fn begin(&self) {
        self.began.get_or_init(Instant::now);
    }

    /// The run begins then.
    pub(crate) fn begin_at(&self, at: Instant) {
        self.began.get_or_init(|| at);
    }

    /// When the run began.
    pub(crate) fn began(&self) -> Instant {
        *self.began.get_or_init(Instant::now)
    }

    /// Nanoseconds since the run began.
    pub(crate) fn now(&self) -> u64 {
        u64::try_from(self.began().elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn window(&self) -> Window {
        self.window
    }

    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Something was due then and was not sent before the end.
    pub(crate) fn never_sent(&self, due: u64) {
        let mut dues = self.unsent_dues.lock().unwrap_or_else(PoisonError::into_inner);
        if dues.len() < UNSENT_MAX {
            dues.push(due);
        } else {
            self.unsent.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// At `now` nobody waits any longer for what was never sent, each time so many entries, with so many
    /// copies. They count as if they had been answered and delivered now: no relay has them sooner, so
    /// that one which stalls is not measured by those alone whom it let in.
    pub(crate) fn give_up(&self, now: u64, entries: usize, copies: usize) {
        let dues =
            std::mem::take(&mut *self.unsent_dues.lock().unwrap_or_else(PoisonError::into_inner));
        self.unsent.fetch_add((dues.len() * entries) as u64, Ordering::Relaxed);
        for (latencies, times) in
            [(&self.push_to_appended, entries), (&self.push_to_deliver, copies)]
        {
            let waited = |measured: bool| {
                let dues = dues.iter().filter(|due| self.window.holds(**due) == measured);
                dues.flat_map(|due| std::iter::repeat_n(now.saturating_sub(*due), times)).collect()
            };
            latencies.record(&mut waited(true));
            latencies.record_aside(&mut waited(false));
        }
    }

    /// An entry that was due at `due` was answered at `now`.
    pub(crate) fn appended(&self, unsaid: &mut Unsaid, due: u64, now: u64) {
        unsaid.appended += 1;
        unsaid.appended_in_window += u64::from(self.window.holds(now));
        let latencies = if self.window.holds(due) {
            &mut unsaid.push_to_appended
        } else {
            &mut unsaid.appended_aside
        };
        latencies.push(now.saturating_sub(due));
        unsaid.heard = now;
    }

    /// An entry with this body has come at `now`, to a reader that may be slow by intent.
    pub(crate) fn delivered(&self, unsaid: &mut Unsaid, body: &[u8], now: u64, is_slow: bool) {
        unsaid.delivered += 1;
        unsaid.delivered_in_window += u64::from(self.window.holds(now));
        let due = body.first_chunk().map_or(0, |stamp| u64::from_be_bytes(*stamp));
        let latencies = match (is_slow, self.window.holds(due)) {
            (true, _) => &mut unsaid.delivered_slowly,
            (false, true) => &mut unsaid.push_to_deliver,
            (false, false) => &mut unsaid.delivered_aside,
        };
        latencies.push(now.saturating_sub(due));
        unsaid.heard = now;
    }

    /// A device whose connection was lost at `since` has everything again.
    pub(crate) fn returned(&self, since: u64) {
        self.returned.record(&mut vec![self.now().saturating_sub(since)]);
    }

    /// Adds what a member has counted.
    pub(crate) fn add(&self, unsaid: &mut Unsaid) {
        let count = |sum: &AtomicU64, number: &mut u64| {
            if *number > 0 {
                sum.fetch_add(std::mem::take(number), Ordering::Relaxed);
            }
        };
        count(&self.appended, &mut unsaid.appended);
        count(&self.delivered, &mut unsaid.delivered);
        count(&self.appended_in_window, &mut unsaid.appended_in_window);
        count(&self.delivered_in_window, &mut unsaid.delivered_in_window);
        self.push_to_appended.record(&mut unsaid.push_to_appended);
        self.push_to_deliver.record(&mut unsaid.push_to_deliver);
        self.push_to_appended.record_aside(&mut unsaid.appended_aside);
        self.push_to_deliver.record_aside(&mut unsaid.delivered_aside);
        self.slow.record(&mut unsaid.delivered_slowly);
        if unsaid.heard > 0 {
            let heard = std::mem::take(&mut unsaid.heard).min(self.window.end);
            let before = self.heard.fetch_max(heard, Ordering::Relaxed);
            self.silence.fetch_max(heard.saturating_sub(before), Ordering::Relaxed);
        }
    }

    fn sums(&self) -> [&AtomicU64; 6] {
        [
            &self.appended,
            &self.delivered,
            &self.appended_in_window,
            &self.delivered_in_window,
            &self.refused,
            &self.unsent,
        ]
    }

    fn spreads(&self) -> [&Latencies; 4] {
        [&self.push_to_appended, &self.push_to_deliver, &self.slow, &self.returned]
    }

    /// Takes out everything that was counted, for another process.
    pub(crate) fn take_counted(&self) -> Counted {
        Counted {
            sums: self.sums().map(|sum| sum.swap(0, Ordering::Relaxed)),
            spreads: self.spreads().map(Latencies::take),
        }
    }

    /// Adds what another process has counted.
    pub(crate) fn absorb(&self, counted: &Counted) {
        for (sum, more) in self.sums().into_iter().zip(counted.sums) {
            sum.fetch_add(more, Ordering::Relaxed);
        }
        for (latencies, spread) in self.spreads().into_iter().zip(&counted.spreads) {
            latencies.absorb(spread);
        }
    }

    /// Learns from other processes for how long no device had anything.
    pub(crate) fn was_silent(&self, silence_ns: u64) {
        self.silence.store(silence_ns, Ordering::Relaxed);
    }

    /// What was counted since this was last asked.
    pub(crate) fn take_interval(&self) -> Interval {
        let new = |sum: &AtomicU64, told: &AtomicU64| {
            let sum = sum.load(Ordering::Relaxed);
            sum.saturating_sub(told.swap(sum, Ordering::Relaxed))
        };
        Interval {
            appended: new(&self.appended, &self.told[0]),
            delivered: new(&self.delivered, &self.told[1]),
            push_to_appended: self.push_to_appended.take_recent(),
            push_to_deliver: self.push_to_deliver.take_recent(),
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        let read = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        Counts {
            appended: read(&self.appended),
            appended_in_window: read(&self.appended_in_window),
            delivered_in_window: read(&self.delivered_in_window),
            refused: read(&self.refused),
            unsent: read(&self.unsent),
            silence_ns: read(&self.silence),
        }
    }

    pub(crate) fn push_to_appended(&self) -> Percentiles {
        self.push_to_appended.percentiles()
    }

    pub(crate) fn push_to_deliver(&self) -> Percentiles {
        self.push_to_deliver.percentiles()
    }

    /// None if nobody read slowly.
    pub(crate) fn slow(&self) -> Option<Percentiles> {
        Some(self.slow.percentiles()).filter(|slow| slow.count > 0)
    }

    /// None if nobody has come back.
    pub(crate) fn has_returned(&self) -> Option<Percentiles> {
        Some(self.returned.percentiles()).filter(|returned| returned.count > 0)
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
        tally.delivered(&mut unsaid, &(2 * second).to_be_bytes(), 2 * second + 7_000, false);
        tally.add(&mut unsaid);
        let counts = tally.counts();
        assert_eq!((counts.appended, counts.appended_in_window), (3, 2));
        assert_eq!(tally.push_to_appended().count, 2);
        assert_eq!(counts.delivered_in_window, 1);
        assert!((tally.push_to_deliver().p50_us - 7.0).abs() < 0.1);
        let interval = tally.take_interval();
        assert_eq!((interval.appended, interval.delivered), (3, 1));
        assert_eq!(interval.push_to_appended.expect("three").count, 3);
        assert_eq!(tally.take_interval().appended, 0);
    }

    #[test]
    fn what_was_never_sent_counts_as_long_as_it_waited() {
        let tally = Tally::new(1, 2);
        let second = NANOSECONDS;
        let mut unsaid = Unsaid::default();
        tally.appended(&mut unsaid, second, second + 1_000_000);
        tally.add(&mut unsaid);
        // One before the window, two in it.
        [second / 2, 2 * second, 2 * second + 1].into_iter().for_each(|due| tally.never_sent(due));
        tally.give_up(5 * second, 1, 3);
        assert_eq!(tally.counts().unsent, 3);
        let (appended, delivered) = (tally.push_to_appended(), tally.push_to_deliver());
        assert_eq!((appended.count, delivered.count), (3, 6));
        assert!((appended.p50_us - 3_000_000.0).abs() < 3_000.0, "{appended:?}");
        assert!(delivered.p50_us > 2_990_000.0, "{delivered:?}");
        // They are given up once.
        tally.give_up(9 * second, 1, 3);
        assert_eq!(tally.counts().unsent, 3);
    }

    #[test]
    fn the_longest_silence_is_known() {
        let tally = Tally::new(1, 9);
        let second = NANOSECONDS;
        for heard in [second / 2, 2 * second, 5 * second, 5 * second + 1] {
            let mut unsaid = Unsaid::default();
            tally.appended(&mut unsaid, heard, heard);
            tally.add(&mut unsaid);
        }
        assert_eq!(tally.counts().silence_ns, 3 * second);
    }
}
