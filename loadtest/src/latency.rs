//! Durations, counted in a histogram of three significant digits.

use std::sync::Mutex;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest duration that is told apart from longer ones, in nanoseconds: two minutes, more than any
/// run waits for an answer.
const LONGEST_NS: u64 = 120_000_000_000;

const SIGNIFICANT_DIGITS: u8 = 3;

/// A histogram that many devices fill.
pub(crate) struct Latencies(Mutex<Filled>);

struct Filled {
    all: Histogram<u64>,
    /// Since it was last asked for.
    recent: Histogram<u64>,
}

/// What was counted in another process: durations, and how often each came.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    measured: Vec<(u64, u64)>,
    /// With those that are not measured.
    recent: Vec<(u64, u64)>,
}

/// What a histogram says, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) count: u64,
    pub(crate) mean_us: f64,
    pub(crate) p50_us: f64,
    pub(crate) p90_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) p999_us: f64,
    pub(crate) max_us: f64,
}

/// Where a histogram is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Point {
    Mean,
    P50,
    P90,
    P99,
    P999,
    Max,
}

impl Point {
    /// What is told of a latency.
    pub(crate) const TOLD: [Self; 5] = [Self::P50, Self::P90, Self::P99, Self::P999, Self::Max];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mean => "mean",
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::Max => "max",
        }
    }

    /// Share of what was counted that is no longer than what stands there; of the mean, half.
    pub(crate) fn share(self) -> f64 {
        match self {
            Self::Mean | Self::P50 => 0.5,
            Self::P90 => 0.9,
            Self::P99 => 0.99,
            Self::P999 => 0.999,
            Self::Max => 1.0,
        }
    }
}

impl Latencies {
    pub(crate) fn new() -> Self {
        let all = Histogram::new_with_bounds(1, LONGEST_NS, SIGNIFICANT_DIGITS)
            .expect("the bounds are in order and the digits are few");
        Self(Mutex::new(Filled { recent: all.clone(), all }))
    }

    /// Counts durations in nanoseconds and empties the list: one lock for all of them.
    pub(crate) fn record(&self, nanoseconds: &mut Vec<u64>) {
        self.add(nanoseconds, true);
    }

    /// Counts them among the recent ones alone: what is seen, but not part of what is measured.
    pub(crate) fn record_aside(&self, nanoseconds: &mut Vec<u64>) {
        self.add(nanoseconds, false);
    }

    fn add(&self, nanoseconds: &mut Vec<u64>, measured: bool) {
        if nanoseconds.is_empty() {
            return;
        }
        let mut filled = self.lock();
        for value in nanoseconds.drain(..) {
            filled.recent.saturating_record(value.max(1));
            if measured {
                filled.all.saturating_record(value.max(1));
            }
        }
    }

    pub(crate) fn percentiles(&self) -> Percentiles {
        Percentiles::of(&self.lock().all)
    }

    /// The same of all that came since this was last asked; none if nothing did.
    pub(crate) fn take_recent(&self) -> Option<Percentiles> {
        let mut filled = self.lock();
        let recent = (!filled.recent.is_empty()).then(|| Percentiles::of(&filled.recent));
        filled.recent.reset();
        recent
    }

    /// Takes out everything that was counted, for another process.
    pub(crate) fn take(&self) -> Spread {
        let drain = |histogram: &mut Histogram<u64>| {
            let counted = histogram.iter_recorded();
            let spread = counted.map(|it| (it.value_iterated_to(), it.count_at_value())).collect();
            histogram.reset();
            spread
        };
        let mut filled = self.lock();
        Spread { measured: drain(&mut filled.all), recent: drain(&mut filled.recent) }
    }

    /// Adds what another process has counted.
    pub(crate) fn absorb(&self, spread: &Spread) {
        let mut filled = self.lock();
        for (value, count) in &spread.measured {
            filled.all.saturating_record_n(*value, *count);
        }
        for (value, count) in &spread.recent {
            filled.recent.saturating_record_n(*value, *count);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Filled> {
        // A counter that panicked elsewhere has counted all the same.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Percentiles {
    /// In microseconds.
    pub(crate) fn at(&self, point: Point) -> f64 {
        match point {
            Point::Mean => self.mean_us,
            Point::P50 => self.p50_us,
            Point::P90 => self.p90_us,
            Point::P99 => self.p99_us,
            Point::P999 => self.p999_us,
            Point::Max => self.max_us,
        }
    }

    fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile: f64| microseconds(histogram.value_at_quantile(quantile));
        Self {
            count: histogram.len(),
            mean_us: (histogram.mean() / 100.0).round() / 10.0,
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: microseconds(histogram.max()),
        }
    }
}

fn microseconds(nanoseconds: u64) -> f64 {
    (nanoseconds as f64 / 100.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_what_was_counted() {
        let latencies = Latencies::new();
        latencies.record(&mut (1..=100).map(|n| n * 1000).collect());
        latencies.record(&mut vec![500_000_000_000]);
        let percentiles = latencies.percentiles();
        assert_eq!(percentiles.count, 101);
        assert!((percentiles.p50_us - 51.0).abs() < 0.2, "{percentiles:?}");
        assert!(percentiles.max_us >= 120_000_000.0, "{percentiles:?}");
    }

    #[test]
    fn what_another_process_has_counted_is_counted_once() {
        let (here, there) = (Latencies::new(), Latencies::new());
        here.record(&mut vec![1000]);
        there.record(&mut vec![3000, 3000, 5000]);
        there.record_aside(&mut vec![9000]);
        here.absorb(&there.take());
        here.absorb(&there.take());
        assert_eq!(here.percentiles().count, 4);
        assert!((here.percentiles().max_us - 5.0).abs() < 0.1);
        assert_eq!(here.take_recent().expect("five").count, 5);
    }

    #[test]
    fn what_is_recent_is_told_once_and_what_is_aside_is_not_measured() {
        let latencies = Latencies::new();
        latencies.record(&mut vec![1000]);
        latencies.record_aside(&mut vec![3000, 3000]);
        assert_eq!(latencies.take_recent().expect("three").count, 3);
        assert_eq!(latencies.take_recent(), None);
        assert_eq!(latencies.percentiles().count, 1);
    }
}
