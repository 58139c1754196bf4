//! What a run has measured, as a table for people and as JSON for programs.
//!
//! A figure without the command that made it is a rumour, so the arguments, the relay and the machine
//! stand beside the figures.

pub(crate) mod compare;
mod kept;
mod machine;
mod measure;
mod numbers;
mod page;
mod plot;
mod written;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::Result;
use serde::Serialize;

pub(crate) use self::kept::Kept;
pub(crate) use self::measure::{Against, Better, Measure, Plain, Ratio, Unit, median, range};
pub(crate) use self::numbers::{duration, mebibytes, memory, percentiles, quantity, rate, whole};
use self::written::Written;
use crate::ceiling::Ceilings;
use crate::frame::relay::About;
use crate::frame::timeline::Timeline;

/// What ratios stand under.
pub(crate) const RATIOS: &str = "as ratios to what this machine does, in the same run";

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
    /// The figures of each run as ratios to what the machine does, as far as that is known.
    fn ratios(&self) -> Vec<Vec<Ratio>> {
        let of = |run: &Run<F>| {
            let measures = run.figures.measures();
            measures.iter().filter_map(|measure| measure.ratio(self.ceilings)).collect()
        };
        self.runs.iter().map(of).collect()
    }

    /// What it can be compared by.
    fn measures(&self) -> Vec<Measure> {
        let all = self.runs.iter().flat_map(|run| run.figures.measures());
        together(all.map(|measure| measure.hold(self.ceilings)))
    }

    /// What has to be said where figures stand without what they are to be held against.
    fn lacks(&self) -> Option<&'static str> {
        let needs = |run: &Run<F>| run.figures.measures().iter().any(Measure::needs_ceilings);
        let lacks = self.ceilings.is_none() && self.runs.iter().any(needs);
        lacks.then_some(
            "what this machine does at best was not measured (--ceilings=false): its ratios are \
             left out",
        )
    }
}

/// Prints the table, writes JSON and a page if they are asked for, and fails if a promise was broken.
pub(crate) fn publish<A: Serialize, F: Figures>(
    document: &Document<'_, A, F>,
    json: Option<&Path>,
    html: Option<&Path>,
) -> Result<()> {
    let ratios = document.ratios();
    let measures = document.measures();
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
            Some(&place) => {
                measures[place].values.extend(measure.values);
                measures[place].ratios.extend(measure.ratios);
            }
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
            print_lines(&mut out, vec![line(format!("-- {RATIOS}"), "")])?;
            print_lines(&mut out, ratios.iter().map(Ratio::line).collect())?;
        }
        for warning in &run.warnings {
            writeln!(out, "! {warning}")?;
        }
    }
    if let Some(lacks) = document.lacks() {
        writeln!(out, "{lacks}")?;
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
            let against = Against::figure("b", 2.0);
            vec![
                Measure::higher("a", Unit::PerSecond, self.0, against.clone()),
                Measure::lower("b", Unit::Microseconds, 1.0, against),
            ]
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
