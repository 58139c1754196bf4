//! What `phones` has seen.

use serde::Serialize;

use super::Arguments;
use super::start::Started;
use crate::ceiling::Best;
use crate::frame::timeline::{Server, Timeline};
use crate::latency::{Percentiles, Point};
use crate::reader::Faults;
use crate::report::{self, Against, Figures, Line, Measure, Unit, line, quantity, whole};
use crate::tally::Tally;

/// What `phones` has seen.
#[derive(Serialize)]
pub(crate) struct Measured {
    /// What the start has shown, if there was one.
    pub(super) started: Option<Started>,
    /// Payloads that were answered in the time that was measured, per second.
    posted_per_second: f64,
    delivered_per_second: f64,
    /// From when a payload was due until it was answered.
    due_to_answer: Percentiles,
    /// From when a payload was due until a phone had its event.
    due_to_event: Percentiles,
    longest_silence_ms: f64,
    posted: u64,
    /// Events that came, each once.
    checked: u64,
    faults: Faults,
    /// Answers that asked to wait and post again.
    refused: u64,
    unsent: u64,
    /// The relay's memory for each phone that came and listens.
    pub(super) bytes_per_phone: Option<f64>,
    /// Connections of each.
    pub(super) connections: usize,
    server: Option<Server>,
    #[serde(skip)]
    timeline: Timeline,
}

impl Measured {
    pub(super) fn new(
        arguments: &Arguments,
        tally: &Tally,
        faults: Faults,
        checked: u64,
        server: Option<Server>,
        timeline: Timeline,
    ) -> Self {
        let counts = tally.counts();
        let seconds = arguments.seconds as f64;
        Self {
            started: None,
            posted_per_second: counts.appended_in_window as f64 / seconds,
            delivered_per_second: counts.delivered_in_window as f64 / seconds,
            due_to_answer: tally.push_to_appended(),
            due_to_event: tally.push_to_deliver(),
            longest_silence_ms: counts.silence_ns as f64 / 1e6,
            posted: counts.appended,
            checked,
            faults,
            refused: counts.refused,
            unsent: counts.unsent,
            bytes_per_phone: None,
            connections: 1,
            server,
            timeline,
        }
    }
}

impl Figures for Measured {
    fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        if let Some(started) = &self.started {
            let (phones, streams) = (whole(started.phones as u64), whole(started.streams as u64));
            let took = report::duration(started.took_ms * 1000.0);
            lines.extend([
                line("start at once", format!("{phones} phones, {streams} streams, in {took}")),
                line("start: plain calls", report::percentiles(&started.calls)),
                line("start: streams open", report::percentiles(&started.opened)),
            ]);
        }
        lines.extend([
            line("payloads answered", report::rate(self.posted_per_second)),
            line("events", report::rate(self.delivered_per_second)),
            line("due to answer", report::percentiles(&self.due_to_answer)),
            line("due to event", report::percentiles(&self.due_to_event)),
            line("longest silence", report::duration(self.longest_silence_ms * 1000.0)),
            line(
                "checked",
                format!(
                    "{} payloads, {} events: {}",
                    whole(self.posted),
                    whole(self.checked),
                    self.faults
                ),
            ),
            line(
                "held back",
                format!("{} answers asked to wait, {} not posted", self.refused, self.unsent),
            ),
        ]);
        if let Some(bytes) = self.bytes_per_phone {
            lines.push(line("memory per phone", quantity(bytes, "bytes")));
        }
        lines.extend(self.server.iter().flat_map(Server::lines));
        lines
    }

    fn measures(&self) -> Vec<Measure> {
        let sync = Against::sync;
        let mut measures = Measure::latencies("due to answer", &self.due_to_answer, sync);
        measures.extend(Measure::latencies("due to event", &self.due_to_event, sync));
        measures.extend(self.started.iter().flat_map(Started::measures));
        let per_second = |name: &str, value, best| {
            Measure::higher(name, Unit::PerSecond, value, Against::Best(best))
        };
        measures.push(per_second(
            "payloads answered",
            self.posted_per_second,
            Best::Store { acked: true },
        ));
        measures.push(per_second("events", self.delivered_per_second, Best::FanOut));
        let silence = self.longest_silence_ms * 1000.0;
        let longest = Against::sync(Point::Max);
        measures.push(Measure::lower("longest silence", Unit::Microseconds, silence, longest));
        if let Some(bytes) = self.bytes_per_phone {
            let sessions = Against::Best(Best::Sessions(self.connections));
            measures.push(Measure::lower("memory per phone", Unit::Bytes, bytes, sessions));
        }
        measures.extend(self.server.iter().flat_map(|server| server.measures("")));
        measures
    }

    fn warnings(&self) -> Vec<String> {
        self.server.iter().flat_map(Server::warnings).collect()
    }

    fn broken_promise(&self) -> Option<String> {
        self.faults.broken_promise()
    }

    fn take_timeline(&mut self) -> Timeline {
        std::mem::take(&mut self.timeline)
    }
}
