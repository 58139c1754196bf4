//! What `doorbells` has seen.

use serde::Serialize;

use super::burst::Burst;
use crate::ceiling::Best;
use crate::frame::timeline::Timeline;
use crate::latency::{Latencies, Percentiles, Point};
use crate::report::{
    self, Against, Better, Figures, Line, Measure, Plain, Unit, line, median, range, whole,
};

/// What was seen of doorbells after a burst. Times are in nanoseconds.
#[derive(Default)]
pub(super) struct Rung {
    /// From the first answer to a payload of a device's group to its first doorbell that was not
    /// answered with 429.
    pub(super) ages: Vec<u64>,
    /// When the last device was rung, after the beginning of the burst.
    pub(super) last: u64,
    /// Devices that were not rung.
    pub(super) never: u64,
    pub(super) calls: u64,
    pub(super) limited: u64,
}

/// One percentile of several, in microseconds.
type Percentile = fn(&Percentiles) -> f64;

/// What was seen so far.
pub(super) struct Seen {
    /// Payloads of each burst.
    payloads: usize,
    call_alone: Percentiles,
    rounds: Vec<Round>,
    ages: Latencies,
    without: Latencies,
    with: Latencies,
}

/// One round: a burst that rings, between two that ring nobody.
#[derive(Serialize)]
struct Round {
    devices: u64,
    never_rung: u64,
    calls: u64,
    limited: u64,
    seconds_without: [f64; 2],
    seconds_with: f64,
    /// From the beginning of the burst until the last device was rung.
    seconds_ringing: f64,
    answer_without: [Percentiles; 2],
    answer_with: Percentiles,
    /// The same of payloads that were due before the last device was rung, and of as much of the other
    /// bursts.
    answer_without_ringing: [Percentiles; 2],
    answer_with_ringing: Percentiles,
}

/// What `doorbells` has seen.
#[derive(Serialize)]
pub(crate) struct Measured {
    /// Payloads of each burst.
    payloads: usize,
    /// How long the push service takes for a call, without a relay.
    call_alone: Percentiles,
    /// Devices that sleep and have a doorbell.
    devices: u64,
    /// Devices that were not rung in time, and were to be.
    never_rung: u64,
    /// Calls to the push service, in all.
    calls: u64,
    /// Calls that it answered with 429.
    limited: u64,
    /// From when a group's first payload was answered to when its doorbell reached the push service and
    /// was not refused: of each device, the first.
    commit_to_doorbell: Percentiles,
    /// From when a payload was due, or sent where none is due, until it was answered by a relay that
    /// rings nobody.
    answer_without: Percentiles,
    /// The same, by one that rings.
    answer_with: Percentiles,
    rounds: Vec<Round>,
    #[serde(skip)]
    timeline: Timeline,
}

impl Seen {
    pub(super) fn new(payloads: usize, call_alone: Percentiles) -> Self {
        let [ages, without, with] = [(); 3].map(|()| Latencies::new());
        Self { payloads, call_alone, rounds: Vec::new(), ages, without, with }
    }

    /// Adds a round.
    pub(super) fn add(&mut self, quiet: [&Burst; 2], ringing: &Burst, mut rung: Rung) {
        self.rounds.push(Round {
            devices: rung.ages.len() as u64 + rung.never,
            never_rung: rung.never,
            calls: rung.calls,
            limited: rung.limited,
            seconds_without: quiet.map(|burst| burst.seconds),
            seconds_with: ringing.seconds,
            seconds_ringing: rung.last as f64 / 1e9,
            answer_without: quiet.map(|burst| burst.before(u64::MAX)),
            answer_with: ringing.before(u64::MAX),
            answer_without_ringing: quiet.map(|burst| burst.before(rung.last)),
            answer_with_ringing: ringing.before(rung.last),
        });
        self.ages.record(&mut rung.ages);
        for burst in quiet {
            self.without.record(&mut burst.durations(u64::MAX));
        }
        self.with.record(&mut ringing.durations(u64::MAX));
    }

    /// What all rounds have shown.
    pub(super) fn measured(self, timeline: Timeline) -> Measured {
        let sum = |of: fn(&Round) -> u64| self.rounds.iter().map(of).sum();
        Measured {
            payloads: self.payloads,
            call_alone: self.call_alone,
            devices: sum(|round| round.devices),
            never_rung: sum(|round| round.never_rung),
            calls: sum(|round| round.calls),
            limited: sum(|round| round.limited),
            commit_to_doorbell: self.ages.percentiles(),
            answer_without: self.without.percentiles(),
            answer_with: self.with.percentiles(),
            rounds: self.rounds,
            timeline,
        }
    }
}

impl Round {
    /// How much longer an answer takes while doorbells are rung, by a percentile.
    fn cost(&self, of: Percentile) -> f64 {
        of(&self.answer_with) / mean(self.answer_without.each_ref().map(of))
    }

    /// The same of the time in which devices are rung for the first time.
    fn cost_ringing(&self, of: Percentile) -> f64 {
        of(&self.answer_with_ringing) / mean(self.answer_without_ringing.each_ref().map(of))
    }

    /// How much longer an answer takes in the second burst that rings nobody than in the first.
    fn noise(&self, of: Percentile) -> f64 {
        let [before, after] = self.answer_without.each_ref().map(of);
        after / before
    }

    /// The same of as much of them as there were devices to be rung in the other burst.
    fn noise_ringing(&self, of: Percentile) -> f64 {
        let [before, after] = self.answer_without_ringing.each_ref().map(of);
        after / before
    }
}

impl Measured {
    /// A ratio of each round.
    fn ratios(&self, of: impl Fn(&Round) -> f64) -> Vec<f64> {
        self.rounds.iter().map(of).collect()
    }

    /// What doorbells cost, by name: a ratio of each round, and what two bursts without any differ by.
    fn costs(&self) -> [(&'static str, Vec<f64>, Vec<f64>); 4] {
        let (p50, p99): (Percentile, Percentile) = (|of| of.p50_us, |of| of.p99_us);
        let cost = |of| (self.ratios(|round| round.cost(of)), self.ratios(|round| round.noise(of)));
        let ringing = |of| {
            let costs = self.ratios(|round| round.cost_ringing(of));
            (costs, self.ratios(|round| round.noise_ringing(of)))
        };
        [
            ("doorbells cost, p50", cost(p50)),
            ("doorbells cost, p99", cost(p99)),
            ("while they are rung, p50", ringing(p50)),
            ("while they are rung, p99", ringing(p99)),
        ]
        .map(|(name, (costs, noise))| (name, costs, noise))
    }
}

impl Figures for Measured {
    fn lines(&self) -> Vec<Line> {
        let mut lines = vec![
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
        ];
        lines.extend(self.costs().map(|(name, costs, noise)| {
            line(name, format!("{}; nobody rung, again: {}", times(&costs), times(&noise)))
        }));
        let seconds = |of: fn(&Round) -> f64| median(&self.ratios(of));
        lines.push(line(
            "burst",
            format!(
                "{:.1} s, with doorbells {:.1} s; the last device was rung after {:.1} s",
                seconds(|round| mean(round.seconds_without)),
                seconds(|round| round.seconds_with),
                seconds(|round| round.seconds_ringing)
            ),
        ));
        lines
    }

    fn measures(&self) -> Vec<Measure> {
        let alone = |point: Point| {
            let of = format!("a call to the push service alone, {}", point.name());
            Against::figure(of, self.call_alone.at(point))
        };
        let (without, with) = (&self.answer_without, &self.answer_with);
        let mut measures =
            Measure::latencies("commit to doorbell", &self.commit_to_doorbell, alone);
        measures.extend(Measure::latencies("answer, nobody rung", without, Against::sync));
        measures.extend(Measure::latencies("answer, with doorbells", with, Against::sync));
        let sides = [
            ("nobody rung", self.ratios(|round| mean(round.seconds_without))),
            ("with doorbells", self.ratios(|round| round.seconds_with)),
        ];
        measures.extend(sides.map(|(side, seconds)| {
            let name = format!("payloads answered, {side}");
            let per_second = self.payloads as f64 / median(&seconds);
            let store = Against::Best(Best::Store { acked: false });
            Measure::higher(name, Unit::PerSecond, per_second, store)
        }));
        let last = median(&self.ratios(|round| round.seconds_ringing)) * 1e6;
        let mean = alone(Point::Mean);
        measures.push(Measure::lower("until the last was rung", Unit::Microseconds, last, mean));
        let costs = self.costs().into_iter();
        measures.extend(costs.map(|(name, costs, _)| {
            Measure::plain(name, Plain::Times, Better::Lower, median(&costs))
        }));
        let calls = self.calls as f64;
        measures.push(Measure::plain("calls", Plain::Number, Better::Lower, calls));
        measures
    }

    fn broken_promise(&self) -> Option<String> {
        (self.never_rung > 0).then(|| format!("{} sleeping devices were not rung", self.never_rung))
    }

    fn take_timeline(&mut self) -> Timeline {
        std::mem::take(&mut self.timeline)
    }
}

fn mean([one, other]: [f64; 2]) -> f64 {
    f64::midpoint(one, other)
}

/// Ratios of several rounds: the middle, and the range.
fn times(ratios: &[f64]) -> String {
    let (low, high) = range(ratios);
    let median = median(ratios);
    if ratios.len() > 1 {
        format!("× {median:.2} ({low:.2} to {high:.2} in {} rounds)", ratios.len())
    } else {
        format!("× {median:.2}")
    }
}
