//! What `vaults` has seen.

use serde::Serialize;

use crate::append::Step;
use crate::catch_up::Readings;
use crate::ceiling::Ceilings;
use crate::frame::timeline::{Server, Timeline};
use crate::report::{Figures, Line, Measure, line, mebibytes, whole};

/// What `vaults` has seen.
#[derive(Serialize)]
pub(crate) struct Measured {
    /// Changesets of one push.
    batch: usize,
    /// What was pushed, and pulled as it came.
    live: Step,
    away: Option<Away>,
    #[serde(skip)]
    timeline: Timeline,
}

/// What a device saw that was away.
#[derive(Serialize)]
pub(super) struct Away {
    pub(super) entries: usize,
    /// Without signatures, and with them.
    pub(super) readings: Vec<Readings>,
}

impl Measured {
    pub(super) fn new(batch: usize, live: Step, away: Option<Away>, timeline: Timeline) -> Self {
        Self { batch, live, away, timeline }
    }

    fn readings(&self) -> impl Iterator<Item = (usize, &Readings)> {
        self.away
            .iter()
            .flat_map(|away| away.readings.iter().map(move |readings| (away.entries, readings)))
    }
}

impl Figures for Measured {
    fn lines(&self) -> Vec<Line> {
        let mut lines = self.live.lines();
        let pushes = self.live.appended_per_second / self.batch as f64;
        lines.insert(1, line("pushes", format!("{pushes:.1}/s of {} changesets", self.batch)));
        if let Some(away) = &self.away {
            let bytes = away.readings.first().map_or(0, |readings| readings.bytes);
            lines.push(line("-- a device that was away", ""));
            lines.push(line(
                "changesets",
                format!("{}, {}, in one go", whole(away.entries as u64), mebibytes(bytes)),
            ));
            lines.extend(self.readings().flat_map(|(entries, it)| it.lines(entries)));
        }
        lines
    }

    fn measures(&self) -> Vec<Measure> {
        let mut measures = self.live.measures();
        let readings = self.readings();
        measures.extend(readings.flat_map(|(entries, it)| it.measures(entries, "away: ")));
        measures
    }

    fn warnings(&self) -> Vec<String> {
        self.live.warnings()
    }

    fn doubts(&self, ceilings: &Ceilings) -> Vec<String> {
        let commit_us = self.live.server.as_ref().and_then(Server::commit_mean_us);
        commit_us.and_then(|commit_us| ceilings.doubt(commit_us)).into_iter().collect()
    }

    fn broken_promise(&self) -> Option<String> {
        let of_readings = || self.readings().find_map(|(_, it)| it.faults.broken_promise());
        self.live.broken_promise().or_else(of_readings)
    }

    fn take_timeline(&mut self) -> Timeline {
        std::mem::take(&mut self.timeline)
    }
}
