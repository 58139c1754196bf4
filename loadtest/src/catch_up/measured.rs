//! What `catch-up` has seen.

use std::time::Duration;

use serde::Serialize;

use super::waiting::Reading;
use crate::append::Step;
use crate::ceiling::Best;
use crate::frame::timeline::Timeline;
use crate::reader::Faults;
use crate::report::{
    Against, Figures, Line, Measure, Unit, duration, line, mebibytes, median, range, rate, whole,
};

/// Readings whose times are shown one by one.
const SHOWN_MAX: usize = 10;

/// What `catch-up` has seen.
#[derive(Serialize)]
pub(crate) struct Measured {
    pub(crate) entries: usize,
    pub(crate) devices: usize,
    /// Without signatures, and with them if that was asked for.
    pub(crate) readings: Vec<Readings>,
    /// What other groups saw meanwhile.
    pub(crate) live: Option<Step>,
    #[serde(skip)]
    pub(crate) timeline: Timeline,
}

/// Readings of one kind, of all devices.
#[derive(Serialize)]
pub(crate) struct Readings {
    pub(crate) signatures: bool,
    /// Bytes of all frames with entries, of one reading.
    pub(crate) bytes: u64,
    /// From `Subscribe` to the first entry, in milliseconds, of each reading.
    pub(crate) first_ms: Vec<f64>,
    /// From `Subscribe` to the last byte of the last entry.
    pub(crate) last_ms: Vec<f64>,
    pub(crate) faults: Faults,
}

impl Measured {
    pub(super) fn new(entries: usize, devices: usize) -> Self {
        let timeline = Timeline::default();
        Self { entries, devices, readings: Vec::new(), live: None, timeline }
    }

    /// What was wrong in any reading.
    pub(crate) fn faults(&self) -> Faults {
        let mut faults = Faults::default();
        self.readings.iter().for_each(|readings| faults.add(readings.faults));
        faults
    }
}

impl Readings {
    pub(super) fn new(signatures: bool) -> Self {
        let faults = Faults::default();
        Self { signatures, bytes: 0, first_ms: Vec::new(), last_ms: Vec::new(), faults }
    }

    pub(super) fn add(&mut self, reading: &Reading) {
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1000.0;
        self.first_ms.push(milliseconds(reading.first));
        self.last_ms.push(milliseconds(reading.last));
        self.bytes = reading.bytes;
        self.faults.add(reading.faults);
    }

    pub(crate) fn name(&self) -> &'static str {
        if self.signatures { "to the last, signatures checked" } else { "to the last" }
    }

    /// What reading all of so many entries is held against.
    pub(crate) fn against(&self, entries: usize) -> Against {
        let signatures = if self.signatures { entries } else { 0 };
        Against::Best(Best::StreamLast { signatures })
    }

    /// Figures to compare by.
    pub(crate) fn measures(&self, entries: usize, part: &str) -> Vec<Measure> {
        let microseconds = |ms: &[f64]| ms.iter().map(|ms| ms * 1000.0).collect::<Vec<_>>();
        let measure = |name: &str, ms: &[f64], against| {
            let name = format!("{part}{name}");
            Measure::lower_middle(name, Unit::Microseconds, &microseconds(ms), against)
        };
        let first = if self.signatures { "to the first, checked" } else { "to the first" };
        vec![
            measure(first, &self.first_ms, Against::Best(Best::StreamFirst)),
            measure(self.name(), &self.last_ms, self.against(entries)),
        ]
    }

    pub(crate) fn lines(&self, entries: usize) -> Vec<Line> {
        let median_ms = median(&self.last_ms);
        let per_second = entries as f64 / (median_ms / 1000.0);
        let middle = format!("median {}, {}", duration(median_ms * 1000.0), rate(per_second));
        vec![
            line("to the first", all(&self.first_ms)),
            line(self.name(), format!("{middle}: {}", all(&self.last_ms))),
            line("checked", self.faults.to_string()),
        ]
    }
}

/// All times, or their range where they are many.
fn all(times_ms: &[f64]) -> String {
    let show = |ms: &f64| duration(ms * 1000.0);
    if times_ms.len() > SHOWN_MAX {
        let (low, high) = range(times_ms);
        return format!("{} to {}", show(&low), show(&high));
    }
    times_ms.iter().map(show).collect::<Vec<_>>().join(", ")
}

impl Figures for Measured {
    fn lines(&self) -> Vec<Line> {
        let bytes = self.readings.first().map_or(0, |readings| readings.bytes);
        let text = format!(
            "{}, {}, for {} at the same time",
            whole(self.entries as u64),
            mebibytes(bytes),
            self.devices
        );
        let mut lines = vec![line("entries", text)];
        lines.extend(self.readings.iter().flat_map(|readings| readings.lines(self.entries)));
        if let Some(live) = &self.live {
            lines.push(line("-- other groups meanwhile", ""));
            lines.extend(live.lines());
        }
        lines
    }

    fn measures(&self) -> Vec<Measure> {
        let of = |readings: &Readings| readings.measures(self.entries, "");
        let mut measures: Vec<Measure> = self.readings.iter().flat_map(of).collect();
        measures.extend(self.live.iter().flat_map(Step::measures));
        measures
    }

    fn warnings(&self) -> Vec<String> {
        self.live.iter().flat_map(Step::warnings).collect()
    }

    fn broken_promise(&self) -> Option<String> {
        self.faults().broken_promise().or_else(|| self.live.as_ref()?.broken_promise())
    }

    fn take_timeline(&mut self) -> Timeline {
        std::mem::take(&mut self.timeline)
    }
}
