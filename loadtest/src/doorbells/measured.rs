//! What `doorbells` has seen.

use serde::Serialize;

use crate::latency::Percentiles;
use crate::report::{self, Figures, Line, Measure, line, whole};

/// What `doorbells` has seen.
#[derive(Serialize)]
pub(crate) struct Measured {
    /// Devices that sleep and have a doorbell.
    pub(super) devices: u64,
    /// Devices that were not rung in time, and were to be.
    pub(super) never_rung: u64,
    /// Calls to the push service, in all.
    pub(super) calls: u64,
    /// Calls that it answered with 429.
    pub(super) limited: u64,
    /// From when a group's first payload was answered to when its doorbell reached the push service and
    /// was not refused: of each device, the first.
    pub(super) commit_to_doorbell: Percentiles,
    /// From when a payload was sent until it was answered, by a relay that rings nobody.
    pub(super) answer_without: Percentiles,
    /// The same, by one that rings.
    pub(super) answer_with: Percentiles,
    pub(super) seconds_without: f64,
    pub(super) seconds_with: f64,
}

impl Measured {
    /// How much longer an answer takes while doorbells are rung.
    fn ratio(&self, of: fn(&Percentiles) -> f64) -> f64 {
        of(&self.answer_with) / of(&self.answer_without)
    }
}

impl Figures for Measured {
    fn lines(&self) -> Vec<Line> {
        let (p50, p99) = (self.ratio(|of| of.p50_us), self.ratio(|of| of.p99_us));
        vec![
            line(
                "rung",
                format!(
                    "{} devices with {} calls, {} of them 429; {} never",
                    whole(self.devices - self.never_rung),
                    whole(self.calls),
                    whole(self.limited),
                    whole(self.never_rung)
                ),
            ),
            line("commit to doorbell", report::percentiles(&self.commit_to_doorbell)),
            line("answer, nobody rung", report::percentiles(&self.answer_without)),
            line("answer, with doorbells", report::percentiles(&self.answer_with)),
            line("doorbells cost", format!("p50 × {p50:.2}, p99 × {p99:.2}")),
            line(
                "burst",
                format!("{:.1} s, with doorbells {:.1} s", self.seconds_without, self.seconds_with),
            ),
        ]
    }

    fn measures(&self) -> Vec<Measure> {
        let mut measures = Measure::latencies("commit to doorbell", &self.commit_to_doorbell);
        measures.extend(Measure::latencies("answer, nobody rung", &self.answer_without));
        measures.extend(Measure::latencies("answer, with doorbells", &self.answer_with));
        measures.push(Measure::lower("doorbells cost, p50", "×", self.ratio(|of| of.p50_us)));
        measures.push(Measure::lower("calls", "", self.calls as f64));
        measures
    }

    fn broken_promise(&self) -> Option<String> {
        (self.never_rung > 0).then(|| format!("{} sleeping devices were not rung", self.never_rung))
    }
}
