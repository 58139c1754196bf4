//! Figures that two reports can be compared by, and what each is held against.
//!
//! A rate of one machine says little on another one; as a ratio to what the same machine was seen to do
//! in the same run, it says as much. So a figure that is a speed or a size cannot be made without saying
//! what it is held against; only counts and what is a ratio already stand alone.

use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::{Line, line, quantity};
use crate::ceiling::{Best, Ceilings};
use crate::latency::{Percentiles, Point};

/// Which way a figure should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Lower,
    Higher,
    /// It says something, but not good or bad.
    Neither,
}

/// What a speed or a size is told in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Microseconds,
    Bytes,
    PerSecond,
    BytesPerSecond,
    Cores,
}

impl Unit {
    #[cfg(test)]
    pub(crate) const ALL: [Self; 5] =
        [Self::Microseconds, Self::Bytes, Self::PerSecond, Self::BytesPerSecond, Self::Cores];

    /// As `quantity` reads it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Microseconds => "µs",
            Self::Bytes => "bytes",
            Self::PerSecond => "/s",
            Self::BytesPerSecond => "bytes/s",
            Self::Cores => "cores",
        }
    }
}

/// What a figure is told in that is no speed and no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plain {
    Number,
    /// How many times as much as something else.
    Times,
}

impl Plain {
    fn name(self) -> &'static str {
        match self {
            Self::Number => "",
            Self::Times => "×",
        }
    }
}

/// What a speed or a size is told as a ratio to.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Against {
    /// What this machine does at best, as it was measured in the same run.
    Best(Best),
    /// All cores of this machine.
    Cores,
    /// All memory of this machine.
    Memory,
    /// Another figure of the same run, in the same unit.
    Figure { of: String, value: f64 },
    /// Nothing: it is itself what others are held against.
    #[default]
    Itself,
}

impl Against {
    /// The same of the disk alone, of what waits for a commit.
    pub(crate) fn sync(point: Point) -> Self {
        Self::Best(Best::Sync(point))
    }

    /// Another figure of the same run.
    pub(crate) fn figure(of: impl Into<String>, value: f64) -> Self {
        Self::Figure { of: of.into(), value }
    }

    /// Its name and its value; none where it was not measured.
    pub(crate) fn resolve(&self, ceilings: Option<&Ceilings>) -> Option<(String, f64)> {
        let (of, value) = match self {
            Self::Best(best) => ceilings?.best(*best),
            Self::Cores => ("all cores of this machine".to_owned(), Machine::this().cores as f64),
            Self::Memory => {
                ("all memory of this machine".to_owned(), Machine::this().memory_bytes? as f64)
            }
            Self::Figure { of, value } => (of.clone(), *value),
            Self::Itself => return None,
        };
        (value.is_finite() && value > 0.0).then_some((of, value))
    }

    /// A figure as a ratio to it; none where it was not measured.
    pub(crate) fn ratio(
        &self,
        name: impl Into<String>,
        value: f64,
        unit: &str,
        better: Better,
        ceilings: Option<&Ceilings>,
    ) -> Option<Ratio> {
        let (of, best) = self.resolve(ceilings)?;
        let (name, unit) = (name.into(), unit.to_owned());
        Some(Ratio { name, unit, better, value, best, share: value / best, of })
    }
}

/// A figure as a ratio to something that was seen in the same run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Ratio {
    name: String,
    unit: String,
    #[serde(skip)]
    better: Better,
    value: f64,
    best: f64,
    /// The one over the other.
    pub(crate) share: f64,
    of: String,
}

impl Ratio {
    /// What it says, without its name: a share of what is good if it is much, times what is good if it
    /// is little.
    pub(crate) fn text(&self) -> String {
        let Self { value, best, of, unit, .. } = self;
        let [value, best] = [*value, *best].map(|it| quantity(it, unit));
        format!("{} {of}: {value} of {best}", self.times())
    }

    fn times(&self) -> String {
        if self.better == Better::Higher || self.share < 1.0 {
            // What is next to nothing is still something.
            let digits = if self.share.abs() < 0.01 { 3 } else { 1 };
            format!("{:.digits$} % of", self.share * 100.0)
        } else {
            format!("{:.2} ×", self.share)
        }
    }

    pub(super) fn line(&self) -> Line {
        line(self.name.clone(), self.text())
    }
}

/// A figure that two reports can be compared by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measure {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) better: Better,
    /// One of each run, and no more: what differs within a run says nothing of two runs.
    pub(crate) values: Vec<f64>,
    /// Each of them as a ratio to what it is held against; none where that was not measured.
    #[serde(default)]
    pub(crate) ratios: Vec<f64>,
    /// What that is.
    #[serde(default)]
    pub(crate) of: Option<String>,
    #[serde(skip)]
    against: Against,
}

impl Measure {
    pub(crate) fn lower(name: impl Into<String>, unit: Unit, value: f64, against: Against) -> Self {
        Self::new(name.into(), unit.name(), Better::Lower, value, against)
    }

    pub(crate) fn higher(
        name: impl Into<String>,
        unit: Unit,
        value: f64,
        against: Against,
    ) -> Self {
        Self::new(name.into(), unit.name(), Better::Higher, value, against)
    }

    /// One that is neither good nor bad.
    pub(crate) fn neutral(
        name: impl Into<String>,
        unit: Unit,
        value: f64,
        against: Against,
    ) -> Self {
        Self::new(name.into(), unit.name(), Better::Neither, value, against)
    }

    /// One that each run has several readings of: the run's figure is the middle one.
    pub(crate) fn lower_middle(
        name: impl Into<String>,
        unit: Unit,
        readings: &[f64],
        against: Against,
    ) -> Self {
        Self::lower(name, unit, median(readings), against)
    }

    /// One that is no speed and no size.
    pub(crate) fn plain(name: impl Into<String>, unit: Plain, better: Better, value: f64) -> Self {
        Self::new(name.into(), unit.name(), better, value, Against::Itself)
    }

    /// All that is told of a latency, each held against the same of another one.
    pub(crate) fn latencies(
        name: &str,
        of: &Percentiles,
        against: impl Fn(Point) -> Against,
    ) -> Vec<Self> {
        let at = |point: Point| {
            let name = format!("{name}, {}", point.name());
            Self::lower(name, Unit::Microseconds, of.at(point), against(point))
        };
        Point::TOLD.into_iter().map(at).collect()
    }

    /// One of several runs that have each been held against something already.
    pub(crate) fn held(
        (name, unit, better): (String, &str, Better),
        values: Vec<f64>,
        ratios: &[Ratio],
    ) -> Self {
        let of = ratios.first().map(|ratio| ratio.of.clone());
        let ratios = ratios.iter().map(|ratio| ratio.share).collect();
        let (unit, against) = (unit.to_owned(), Against::Itself);
        Self { name, unit, better, values, ratios, of, against }
    }

    fn new(name: String, unit: &str, better: Better, value: f64, against: Against) -> Self {
        let (unit, values, ratios) = (unit.to_owned(), vec![value], Vec::new());
        Self { name, unit, better, values, ratios, of: None, against }
    }

    /// The value of one run as a ratio to what it is held against.
    pub(super) fn ratio(&self, ceilings: Option<&Ceilings>) -> Option<Ratio> {
        let value = self.values.first().copied()?;
        self.against.ratio(self.name.clone(), value, &self.unit, self.better, ceilings)
    }

    /// The same measure, with that ratio kept.
    pub(super) fn hold(mut self, ceilings: Option<&Ceilings>) -> Self {
        if let Some(ratio) = self.ratio(ceilings) {
            self.ratios = vec![ratio.share];
            self.of = Some(ratio.of);
        }
        self
    }

    /// The same by its ratios alone, which are comparable where values are not; none without.
    pub(super) fn by_ratio(self) -> Option<Self> {
        let Self { ratios, better, .. } = self;
        let name = format!("{}, × {}", self.name, self.of?);
        let unit = Plain::Times.name().to_owned();
        let (values, against) = (ratios, Against::Itself);
        Some(Self { name, unit, better, values, ratios: Vec::new(), of: None, against })
    }

    /// Whether what it is held against has to be measured first.
    pub(super) fn needs_ceilings(&self) -> bool {
        matches!(self.against, Against::Best(_))
    }

    /// Its median, and its range.
    pub(super) fn line(&self) -> Line {
        let (low, high) = range(&self.values);
        let unit = &self.unit;
        let [middle, low, high] = [self.median(), low, high].map(|it| quantity(it, unit));
        let ratio = self
            .of
            .as_ref()
            .map_or_else(String::new, |of| format!("; {:.3} × {of}", median(&self.ratios)));
        line(self.name.clone(), format!("{middle} ({low} to {high}){ratio}"))
    }

    /// The middle of its values, the higher one of two.
    pub(crate) fn median(&self) -> f64 {
        median(&self.values)
    }
}

/// The middle of some numbers, the higher one of two.
pub(crate) fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// The lowest and the highest of some numbers.
pub(crate) fn range(numbers: &[f64]) -> (f64, f64) {
    let low = numbers.iter().copied().min_by(f64::total_cmp).unwrap_or_default();
    let high = numbers.iter().copied().max_by(f64::total_cmp).unwrap_or_default();
    (low, high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_told_as_a_ratio_to_what_it_is_held_against() {
        let against = || Against::figure("a commit alone", 500.0);
        let ratio = |measure: Measure| measure.ratio(None).expect("it was seen").text();
        let slow = Measure::lower("a", Unit::Microseconds, 1500.0, against());
        assert_eq!(ratio(slow), "3.00 × a commit alone: 1.50 ms of 500 µs");
        let good = Measure::higher("a", Unit::PerSecond, 250.0, against());
        assert_eq!(ratio(good), "50.0 % of a commit alone: 250/s of 500/s");
        // Nothing is a ratio to nothing.
        let none = Measure::lower("a", Unit::Bytes, 1.0, Against::figure("nothing", 0.0));
        assert_eq!(none.ratio(None), None);
    }

    #[test]
    fn what_is_no_speed_and_no_size_has_another_unit() {
        for unit in Unit::ALL {
            for plain in [Plain::Number, Plain::Times] {
                assert_ne!(unit.name(), plain.name());
            }
        }
    }

    #[test]
    fn several_readings_of_a_run_are_one_value() {
        let readings = [5.0, 1.0, 3.0];
        let measure =
            Measure::lower_middle("a", Unit::Microseconds, &readings, Against::figure("b", 2.0));
        assert_eq!(measure.values, [3.0]);
        let held = measure.hold(None);
        assert_eq!((held.ratios, held.of.as_deref()), (vec![1.5], Some("b")));
    }
}
