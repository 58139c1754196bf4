//! What a run has measured, as a table for people and as JSON for programs.
//!
//! A figure without the command that made it is a rumour, so the arguments, the relay and the machine
//! stand beside the figures.

pub(crate) mod compare;
mod kept;
mod machine;
mod numbers;
mod page;
mod plot;
mod written;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

pub(crate) use self::kept::Kept;
pub(crate) use self::numbers::{duration, mebibytes, memory, percentiles, quantity, rate, whole};
use self::written::Written;
use crate::ceiling::Ceilings;
use crate::frame::relay::About;
use crate::frame::timeline::Timeline;
use crate::latency::Percentiles;

/// The figures of one run.
pub(crate) trait Figures: Serialize {
    /// The lines of the table.
    fn lines(&self) -> Vec<Line>;

    /// Figures that two reports can be compared by.
    fn measures(&self) -> Vec<Measure>;

    /// What should not be believed without a second look.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// What the relay did that it must never do; none if it did nothing such.
    fn broken_promise(&self) -> Option<String> {
        None
    }

    /// What cannot be, given what this machine does at best.
    fn doubts(&self, _ceilings: &Ceilings) -> Vec<String> {
        Vec::new()
    }

    /// What of this machine's best was reached.
    fn ratios(&self, _ceilings: &Ceilings) -> Vec<Ratio> {
        Vec::new()
    }

    /// Reports that this one is made of; taken out, since a page shows them apart.
    fn take_kept(&mut self) -> Vec<Kept> {
        Vec::new()
    }

    /// All that was seen over time, if anything was; taken out, since it is written down apart.
    fn take_timeline(&mut self) -> Timeline {
        Timeline::default()
    }
}

/// One line of the table.
pub(crate) struct Line {
    label: String,
    /// One value, or one of each column.
    values: Vec<String>,
}

pub(crate) fn line(label: impl Into<String>, value: impl Into<String>) -> Line {
    row(label, vec![value.into()])
}

/// A line with several columns.
pub(crate) fn row(label: impl Into<String>, values: Vec<String>) -> Line {
    Line { label: label.into(), values }
}

/// Which way a figure should go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Better {
    Lower,
    Higher,
    /// It says something, but not good or bad.
    Neither,
}

/// A figure that two reports can be compared by.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measure {
    pub(crate) name: String,
    pub(crate) unit: String,
    pub(crate) better: Better,
    /// One of each run, or one of each of its rounds.
    pub(crate) values: Vec<f64>,
}

impl Measure {
    pub(crate) fn lower(name: impl Into<String>, unit: &str, value: f64) -> Self {
        Self::new(name.into(), unit, Better::Lower, value)
    }

    /// One that each run has several values of.
    pub(crate) fn lower_each(name: impl Into<String>, unit: &str, values: Vec<f64>) -> Self {
        Self { name: name.into(), unit: unit.to_owned(), better: Better::Lower, values }
    }

    pub(crate) fn higher(name: impl Into<String>, unit: &str, value: f64) -> Self {
        Self::new(name.into(), unit, Better::Higher, value)
    }

    pub(crate) fn neutral(name: impl Into<String>, unit: &str, value: f64) -> Self {
        Self::new(name.into(), unit, Better::Neither, value)
    }

    /// Three measures of a latency.
    pub(crate) fn latencies(name: &str, of: &Percentiles) -> Vec<Self> {
        let at = |which: &str, value| Self::lower(format!("{name}, {which}"), "µs", value);
        vec![at("p50", of.p50_us), at("p99", of.p99_us), at("max", of.max_us)]
    }

    fn new(name: String, unit: &str, better: Better, value: f64) -> Self {
        Self { name, unit: unit.to_owned(), better, values: vec![value] }
    }

    /// Its median, and its range.
    fn line(&self) -> Line {
        let (low, high) = range(&self.values);
        let unit = &self.unit;
        let [median, low, high] = [self.median(), low, high].map(|it| quantity(it, unit));
        line(self.name.clone(), format!("{median} ({low} to {high})"))
    }

    /// The middle of its values, the higher one of two.
    pub(crate) fn median(&self) -> f64 {
        median(&self.values)
    }
}

/// A figure as a share of what this machine does at best.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Ratio {
    name: String,
    value: f64,
    pub(crate) best: f64,
    pub(crate) share: f64,
    of: &'static str,
}

impl Ratio {
    pub(crate) fn new(name: impl Into<String>, value: f64, best: f64, of: &'static str) -> Self {
        Self { name: name.into(), value, best, share: value / best, of }
    }

    /// What it says, without its name.
    pub(crate) fn text(&self) -> String {
        let Self { value, best, share, of, .. } = self;
        let [value, best] = [*value, *best].map(rate);
        format!("{:.1} % of {of}: {value} of {best}", share * 100.0)
    }

    fn line(&self) -> Line {
        line(self.name.clone(), self.text())
    }

    fn measure(&self) -> Measure {
        Measure::higher(format!("{}, of {}", self.name, self.of), "%", self.share * 100.0)
    }
}

/// One run of a measurement.
#[derive(Serialize)]
pub(crate) struct Run<F> {
    figures: F,
    warnings: Vec<String>,
    broken_promise: Option<String>,
    timeline: Timeline,
    /// The reports that it is made of, if it is made of any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reports: Vec<Kept>,
}

impl<F: Figures> Run<F> {
    /// What was seen, beside what the machine does at best if that is known.
    pub(crate) fn new(mut figures: F, ceilings: Option<&Ceilings>) -> Self {
        let (timeline, reports) = (figures.take_timeline(), figures.take_kept());
        let (mut warnings, broken_promise) = (figures.warnings(), figures.broken_promise());
        warnings.extend(ceilings.into_iter().flat_map(|ceilings| figures.doubts(ceilings)));
        Self { figures, warnings, broken_promise, timeline, reports }
    }

    pub(crate) fn figures(&self) -> &F {
        &self.figures
    }

    /// The same, with what others had to say.
    pub(crate) fn with_warnings(mut self, warnings: Vec<String>) -> Self {
        self.warnings.extend(warnings);
        self
    }
}

/// Everything that a report is made of.
pub(crate) struct Document<'a, A, F> {
    pub(crate) scenario: &'a str,
    pub(crate) command: &'static str,
    pub(crate) arguments: &'a A,
    /// None where no relay took part.
    pub(crate) relay: Option<About>,
    /// If they were measured.
    pub(crate) ceilings: Option<&'a Ceilings>,
    pub(crate) runs: &'a [Run<F>],
}

impl<A, F: Figures> Document<'_, A, F> {
    /// The figures of each run as shares of what the machine does at best, if that is known.
    fn ratios(&self) -> Vec<Vec<Ratio>> {
        let of = |run: &Run<F>| {
            self.ceilings.map_or_else(Vec::new, |ceilings| run.figures.ratios(ceilings))
        };
        self.runs.iter().map(of).collect()
    }

    /// What it can be compared by.
    fn measures(&self, ratios: &[Vec<Ratio>]) -> Vec<Measure> {
        let ratios = ratios.iter().flatten().map(Ratio::measure);
        together(self.runs.iter().flat_map(|run| run.figures.measures()).chain(ratios))
    }
}

/// Prints the table, writes JSON and a page if they are asked for, and fails if a promise was broken.
pub(crate) fn publish<A: Serialize, F: Figures>(
    document: &Document<'_, A, F>,
    json: Option<&Path>,
    html: Option<&Path>,
) -> Result<()> {
    let ratios = document.ratios();
    let measures = document.measures(&ratios);
    print(document, &ratios, &measures)?;
    if let Some(path) = html {
        page::write(path, document, &ratios, &measures)?;
    }
    let broken = document.runs.iter().find_map(|run| run.broken_promise.clone());
    if let Some(path) = json {
        Written::of(document, ratios, measures).to_file(path)?;
    }
    broken.map_or(Ok(()), |promise| Err(anyhow::anyhow!(promise)))
}

/// The measures of all runs, each with its values of all of them.
fn together(all: impl Iterator<Item = Measure>) -> Vec<Measure> {
    let mut measures: Vec<Measure> = Vec::new();
    let mut places = BTreeMap::new();
    for measure in all {
        match places.get(&measure.name) {
            None => {
                places.insert(measure.name.clone(), measures.len());
                measures.push(measure);
            }
            Some(&place) => measures[place].values.extend(measure.values),
        }
    }
    measures
}

fn print<A, F: Figures>(
    document: &Document<'_, A, F>,
    ratios: &[Vec<Ratio>],
    measures: &[Measure],
) -> Result<()> {
    let mut out = std::io::stdout().lock();
    let runs = document.runs;
    if let Some(ceilings) = document.ceilings {
        writeln!(out, "what this machine does at best")?;
        print_lines(&mut out, ceilings.lines())?;
        writeln!(out)?;
    }
    for ((number, run), ratios) in (1..).zip(runs).zip(ratios) {
        if runs.len() > 1 {
            writeln!(out, "\nrun {number} of {}", runs.len())?;
        }
        print_lines(&mut out, run.figures.lines())?;
        if !ratios.is_empty() {
            print_lines(&mut out, vec![line("-- of what this machine does at best", "")])?;
            print_lines(&mut out, ratios.iter().map(Ratio::line).collect())?;
        }
        for warning in &run.warnings {
            writeln!(out, "! {warning}")?;
        }
    }
    if runs.len() > 1 {
        writeln!(out, "\nall runs: median (lowest to highest)")?;
        print_lines(&mut out, measures.iter().map(Measure::line).collect())?;
    }
    Ok(())
}

fn print_lines(out: &mut impl Write, lines: Vec<Line>) -> Result<()> {
    let width = |text: &String| text.chars().count();
    let labels = lines.iter().map(|line| width(&line.label)).max().unwrap_or(0);
    let columns = lines.iter().map(|line| line.values.len()).max().unwrap_or(0);
    // What stands alone has all the room there is.
    let rows = lines.iter().filter(|line| line.values.len() > 1);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.clone().filter_map(|row| row.values.get(column)).map(width).max())
        .map(Option::unwrap_or_default)
        .collect();
    for Line { label, values } in lines {
        let mut text = format!("{label:labels$}");
        for (value, width) in values.iter().zip(&widths) {
            text.push_str(&format!("  {value:width$}"));
        }
        writeln!(out, "{}", text.trim_end())?;
    }
    Ok(())
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

    #[derive(Serialize)]
    struct One(f64);

    impl Figures for One {
        fn lines(&self) -> Vec<Line> {
            Vec::new()
        }

        fn measures(&self) -> Vec<Measure> {
            vec![Measure::higher("a", "/s", self.0), Measure::lower("b", "µs", 1.0)]
        }
    }

    #[test]
    fn measures_of_several_runs_stand_together() {
        let runs = [3.0, 1.0, 2.0].map(|value| Run::new(One(value), None));
        let measures = together(runs.iter().flat_map(|run| run.figures.measures()));
        assert_eq!(measures.len(), 2);
        assert_eq!(measures[0].values, [3.0, 1.0, 2.0]);
        assert!((measures[0].median() - 2.0).abs() < f64::EPSILON);
        assert_eq!(range(&measures[0].values), (1.0, 3.0));
        assert!(median(&[]).abs() < f64::EPSILON);
    }
}
