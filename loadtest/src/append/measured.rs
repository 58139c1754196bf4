//! What `append` has seen, rate by rate.

use serde::Serialize;

use super::{Arguments, Disturbance, Rate};
use crate::ceiling::{Best, Ceilings};
use crate::frame::timeline::{Server, Timeline};
use crate::latency::{Percentiles, Point};
use crate::reader::Faults;
use crate::report::{self, Against, Figures, Line, Measure, Unit, line, whole};
use crate::tally::Tally;

/// Share of the entries that were due below which a rate counts as more than the relay takes.
pub(crate) const KEPT_UP: f64 = 0.98;

/// What `append` has seen.
#[derive(Default, Serialize)]
pub(crate) struct Measured {
    steps: Vec<Step>,
    #[serde(skip)]
    timeline: Timeline,
}

/// What it has seen at one rate.
#[derive(Serialize)]
pub(crate) struct Step {
    pub(crate) rate: Rate,
    /// Entries that were answered as durable in the time that was measured, per second.
    pub(crate) appended_per_second: f64,
    /// Entries that reached a member in that time, per second, without the senders' own.
    pub(crate) delivered_per_second: f64,
    /// From when an entry was due until it was answered as durable.
    pub(crate) push_to_appended: Percentiles,
    /// From when an entry was due until a member had it.
    pub(crate) push_to_deliver: Option<Percentiles>,
    /// The same for those who read slowly on purpose, over the whole run.
    pub(crate) slow: Option<Percentiles>,
    disturbed: Option<Disturbed>,
    /// From when a connection was lost until its device had everything again.
    pub(crate) returned: Option<Percentiles>,
    /// Longest time in which no device had an answer or an entry, in milliseconds.
    pub(crate) longest_silence_ms: f64,
    /// Entries that were answered as durable, warm-up and end included.
    pub(crate) appended: u64,
    /// Copies of them that were read by members and found whole.
    pub(crate) checked: u64,
    pub(crate) faults: Faults,
    /// Answers that asked to wait and send again.
    pub(crate) refused: u64,
    /// Entries that were due and not sent before the end.
    pub(crate) unsent: u64,
    pub(crate) server: Option<Server>,
}

/// Something that happened in the middle.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Disturbed {
    pub(super) kind: Disturbance,
    /// How long that took, in milliseconds: with a relay that is started again, until it was ready.
    pub(super) took_ms: f64,
    /// How long its first start took, with an empty database; none of a relay that ran already.
    pub(super) first_start_ms: Option<f64>,
}

/// What readers have found.
#[derive(Clone, Copy)]
pub(crate) struct Checked {
    pub(crate) faults: Faults,
    pub(crate) checked: u64,
}

impl Measured {
    /// Adds what was seen at the next rate.
    pub(super) fn add(&mut self, step: Step, timeline: Timeline) {
        let end_s = self.timeline.end_s();
        self.timeline.mark(end_s, step.mark());
        self.steps.push(step);
        self.timeline.extend(timeline, end_s);
    }

    /// What was seen at this rate, if it was one of those asked for.
    pub(crate) fn at(&self, rate: Rate) -> Option<&Step> {
        self.steps.iter().find(|step| step.rate == rate)
    }

    /// What was wrong at any rate.
    pub(crate) fn faults(&self) -> Faults {
        let mut faults = Faults::default();
        self.steps.iter().for_each(|step| faults.add(step.faults));
        faults
    }

    /// What a sentence about a step begins with, if there are several.
    fn part(&self, step: &Step) -> String {
        if self.steps.len() > 1 { step.prefix() } else { String::new() }
    }
}

impl Disturbed {
    fn what(self) -> &'static str {
        match self.kind {
            Disturbance::Cut => "all connections cut",
            Disturbance::Kill => "the relay killed and started again",
            Disturbance::Stop => "the relay stopped and started again",
            Disturbance::Pause => "the relay's process paused",
        }
    }

    /// The same beside a line.
    pub(super) fn mark(self) -> &'static str {
        match self.kind {
            Disturbance::Cut => "cut",
            Disturbance::Kill => "killed",
            Disturbance::Stop => "stopped",
            Disturbance::Pause => "paused",
        }
    }

    /// Whether all devices lose their connections.
    fn cuts_all(self) -> bool {
        self.kind != Disturbance::Pause
    }

    /// How long it took, held against what it is at least: the relay's first start where it is started
    /// again, with an empty database; otherwise what the disk does at worst.
    fn measure(self, part: &str) -> Measure {
        let (name, against) = match (self.kind, self.first_start_ms) {
            (Disturbance::Kill | Disturbance::Stop, Some(first)) => {
                ("relay ready again", Against::figure("its first start", first * 1000.0))
            }
            _ => ("disturbance", Against::sync(Point::Max)),
        };
        let took = self.took_ms * 1000.0;
        Measure::lower(format!("{part}{name}"), Unit::Microseconds, took, against)
    }
}

impl Step {
    pub(crate) fn new(
        arguments: &Arguments,
        rate: Rate,
        tally: &Tally,
        server: Option<Server>,
        checked: Checked,
        disturbed: Option<Disturbed>,
    ) -> Self {
        let seconds = arguments.seconds as f64;
        let counts = tally.counts();
        Self {
            rate,
            appended_per_second: counts.appended_in_window as f64 / seconds,
            delivered_per_second: counts.delivered_in_window as f64 / seconds,
            push_to_appended: tally.push_to_appended(),
            push_to_deliver: arguments.receivers.then(|| tally.push_to_deliver()),
            slow: tally.slow(),
            disturbed,
            returned: tally.has_returned(),
            longest_silence_ms: counts.silence_ns as f64 / 1e6,
            appended: counts.appended,
            checked: checked.checked,
            faults: checked.faults,
            refused: counts.refused,
            unsent: counts.unsent,
            server,
        }
    }

    fn title(&self) -> String {
        match self.rate {
            Rate::PerSecond(rate) => format!("{} entries/s due", whole(rate.into())),
            Rate::Max => "as fast as it goes".to_owned(),
        }
    }

    /// Its name beside a line.
    fn mark(&self) -> String {
        match self.rate {
            Rate::PerSecond(rate) => format!("{rate}/s"),
            Rate::Max => "max".to_owned(),
        }
    }

    /// What names of its measures begin with.
    fn prefix(&self) -> String {
        match self.rate {
            Rate::PerSecond(rate) => format!("at {rate}/s: "),
            Rate::Max => "saturated: ".to_owned(),
        }
    }

    pub(crate) fn lines(&self) -> Vec<Line> {
        let mut lines = vec![
            line("durable appends", report::rate(self.appended_per_second)),
            line("deliveries", report::rate(self.delivered_per_second)),
            line("push to Appended", report::percentiles(&self.push_to_appended)),
        ];
        if let Some(deliver) = &self.push_to_deliver {
            lines.push(line("push to deliver", report::percentiles(deliver)));
        }
        if let Some(slow) = &self.slow {
            lines.push(line("push to deliver, slow ones", report::percentiles(slow)));
        }
        if let Some(disturbed) = &self.disturbed {
            let took = report::duration(disturbed.took_ms * 1000.0);
            lines.push(line("disturbed", format!("{}, which took {took}", disturbed.what())));
        }
        if let Some(returned) = &self.returned {
            let text = format!("{}: {}", whole(returned.count), report::percentiles(returned));
            lines.push(line("back and caught up", text));
        }
        let silence = report::duration(self.longest_silence_ms * 1000.0);
        lines.push(line("longest silence", silence));
        lines.push(line(
            "checked",
            format!(
                "{} entries, {} copies: {}",
                whole(self.appended),
                whole(self.checked),
                self.faults
            ),
        ));
        lines.push(line(
            "held back",
            format!("{} answers asked to wait, {} entries not sent", self.refused, self.unsent),
        ));
        lines.extend(self.server.iter().flat_map(Server::lines));
        lines
    }

    pub(crate) fn measures(&self) -> Vec<Measure> {
        let part = self.prefix();
        let per_second = |name: &str, value, best| {
            let name = format!("{part}{name}");
            Measure::higher(name, Unit::PerSecond, value, Against::Best(best))
        };
        let acked = self.push_to_deliver.is_some();
        let (appended, delivered) = (self.appended_per_second, self.delivered_per_second);
        let mut measures = vec![per_second("durable appends", appended, Best::Store { acked })];
        let name = format!("{part}push to Appended");
        measures.extend(Measure::latencies(&name, &self.push_to_appended, Against::sync));
        if let Some(deliver) = &self.push_to_deliver {
            measures.push(per_second("deliveries", delivered, Best::FanOut));
            let name = format!("{part}push to deliver");
            measures.extend(Measure::latencies(&name, deliver, Against::sync));
        }
        if let Some(slow) = &self.slow {
            let name = format!("{part}push to deliver, slow ones");
            measures.extend(Measure::latencies(&name, slow, Against::sync));
        }
        if let Some(returned) = &self.returned {
            let name = format!("{part}back and caught up");
            measures.extend(Measure::latencies(&name, returned, |point| self.entrance(point)));
        }
        if let Some(disturbed) = &self.disturbed {
            measures.push(disturbed.measure(&part));
        }
        let silence = self.longest_silence_ms * 1000.0;
        let against = Against::sync(Point::Max);
        let name = format!("{part}longest silence");
        measures.push(Measure::lower(name, Unit::Microseconds, silence, against));
        measures.extend(self.server.iter().flat_map(|server| server.measures(&part)));
        measures
    }

    /// What coming back is held against: as many handshakes as came back at once, or one, where devices
    /// come and go one by one.
    fn entrance(&self, point: Point) -> Against {
        let at_once = self.disturbed.filter(|disturbed| disturbed.cuts_all());
        let devices = self.returned.map_or(0, |returned| returned.count);
        Against::Best(match (at_once, usize::try_from(devices)) {
            (Some(_), Ok(devices)) => Best::Entrances { devices, point },
            _ => Best::Entrance(point),
        })
    }

    pub(crate) fn broken_promise(&self) -> Option<String> {
        self.faults.broken_promise()
    }

    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Rate::PerSecond(rate) = self.rate
            && self.appended_per_second < f64::from(rate) * KEPT_UP
        {
            warnings.push(format!(
                "more than it takes: {} of {rate} entries a second became durable; latencies are \
                 those of a queue",
                self.appended_per_second.round()
            ));
        }
        warnings.extend(self.server.iter().flat_map(Server::warnings));
        warnings
    }
}

impl Figures for Measured {
    fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        for step in &self.steps {
            if self.steps.len() > 1 {
                lines.push(line(format!("-- {}", step.title()), ""));
            }
            lines.extend(step.lines());
        }
        lines
    }

    fn measures(&self) -> Vec<Measure> {
        self.steps.iter().flat_map(Step::measures).collect()
    }

    fn warnings(&self) -> Vec<String> {
        let said = |step: &Step| {
            let part = self.part(step);
            step.warnings().into_iter().map(move |warning| format!("{part}{warning}"))
        };
        self.steps.iter().flat_map(said).collect()
    }

    fn doubts(&self, ceilings: &Ceilings) -> Vec<String> {
        let doubt = |step: &Step| {
            let commit_us = step.server.as_ref()?.commit_mean_us()?;
            Some(format!("{}{}", self.part(step), ceilings.doubt(commit_us)?))
        };
        self.steps.iter().filter_map(doubt).collect()
    }

    fn broken_promise(&self) -> Option<String> {
        self.steps.iter().find_map(Step::broken_promise)
    }

    fn take_timeline(&mut self) -> Timeline {
        std::mem::take(&mut self.timeline)
    }
}
