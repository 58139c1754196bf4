//! What `append` has seen, rate by rate.

use serde::Serialize;

use super::{Arguments, Disturbance, Rate};
use crate::ceiling::Ceilings;
use crate::frame::timeline::{Server, Timeline};
use crate::latency::Percentiles;
use crate::reader::Faults;
use crate::report::{self, Figures, Line, Measure, Ratio, line, whole};
use crate::tally::Tally;

/// Share of the entries that were due below which a rate counts as more than the relay takes.
const KEPT_UP: f64 = 0.98;

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

    fn restarts(self) -> bool {
        matches!(self.kind, Disturbance::Kill | Disturbance::Stop)
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
        let appends = self.appended_per_second;
        let mut measures = vec![Measure::higher(format!("{part}durable appends"), "/s", appends)];
        if let Some(deliver) = &self.push_to_deliver {
            let per_second = self.delivered_per_second;
            measures.push(Measure::higher(format!("{part}deliveries"), "/s", per_second));
            measures.extend(Measure::latencies(&format!("{part}push to deliver"), deliver));
        }
        if let Some(returned) = &self.returned {
            let name = format!("{part}back and caught up");
            measures.extend(Measure::latencies(&name, returned));
        }
        if let Some(disturbed) = self.disturbed.filter(|disturbed| disturbed.restarts()) {
            let took = disturbed.took_ms * 1000.0;
            measures.push(Measure::lower(format!("{part}relay ready again"), "µs", took));
        }
        let name = format!("{part}push to Appended");
        measures.extend(Measure::latencies(&name, &self.push_to_appended));
        let silence = self.longest_silence_ms * 1000.0;
        measures.push(Measure::lower(format!("{part}longest silence"), "µs", silence));
        measures.extend(self.server.iter().flat_map(|server| server.measures(&part)));
        measures
    }

    /// Only of as many as the relay takes: a rate that was asked for is no achievement.
    pub(crate) fn ratios(&self, ceilings: &Ceilings) -> Vec<Ratio> {
        if self.rate != Rate::Max {
            return Vec::new();
        }
        let mut ratios = Vec::new();
        let acked = self.push_to_deliver.is_some();
        ratios.extend(ceilings.of_store("durable appends", self.appended_per_second, acked));
        if acked {
            ratios.push(ceilings.of_fan_out("deliveries", self.delivered_per_second));
        }
        let commits = self.server.as_ref().and_then(Server::commits_per_second);
        ratios.extend(commits.map(|commits| ceilings.of_disk("commits", commits)));
        ratios
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

    fn ratios(&self, ceilings: &Ceilings) -> Vec<Ratio> {
        self.steps.iter().flat_map(|step| step.ratios(ceilings)).collect()
    }

    fn broken_promise(&self) -> Option<String> {
        self.steps.iter().find_map(Step::broken_promise)
    }

    fn take_timeline(&mut self) -> Timeline {
        std::mem::take(&mut self.timeline)
    }
}
