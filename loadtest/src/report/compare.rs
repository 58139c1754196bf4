//! Two reports side by side, and whether they differ by more than noise.
//!
//! Whoever measures twice gets two numbers. A difference counts only if it is larger than what the same
//! build shows from run to run: the spread within each report, where it has several runs, and a floor
//! that was seen on a quiet machine.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::{Better, Measure, quantity, range};
use crate::frame::timeline::NOISE_WARNING;

/// Share by which rates, memory and means differ between runs of the same build on a quiet machine.
const NOISE: f64 = 0.10;

/// The same of the slowest one in a hundred, and of the slowest.
const NOISE_OF_TAILS: f64 = 0.40;

/// The same where there are three runs or more on both sides: their spread says the rest.
const NOISE_OF_SEVERAL: f64 = 0.04;

/// Runs from which a spread says something.
const SEVERAL: usize = 3;

/// What `compare` is asked to do.
#[derive(Args)]
pub(crate) struct Arguments {
    /// What --json wrote before.
    before: PathBuf,
    /// What --json wrote after.
    after: PathBuf,
}

/// What is read of a report.
#[derive(Deserialize)]
struct Report {
    scenario: String,
    arguments: Value,
    machine: Value,
    relay: Option<Value>,
    measures: Vec<Measure>,
    runs: Vec<Warned>,
}

#[derive(Deserialize)]
struct Warned {
    warnings: Vec<String>,
    broken_promise: Option<String>,
}

impl Report {
    /// Whether other programs ran beside it.
    fn is_noisy(&self) -> bool {
        let mut warnings = self.runs.iter().flat_map(|run| &run.warnings);
        warnings.any(|warning| warning.contains(NOISE_WARNING))
    }
}

/// What a difference means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Noise,
    Better,
    Worse,
    /// More than noise, of something that is neither good nor bad.
    Other,
}

/// Prints the comparison.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let (before, after) = (read(&arguments.before)?, read(&arguments.after)?);
    let mut out = std::io::stdout().lock();
    for warning in unlike(&before, &after) {
        writeln!(out, "! {warning}")?;
    }
    for (name, report) in [("before", &before), ("after", &after)] {
        for run in &report.runs {
            for warning in run.broken_promise.iter().chain(&run.warnings) {
                writeln!(out, "! {name}: {warning}")?;
            }
        }
    }
    // What another machine does is told by what it reaches of its own.
    let by_ratio = before.machine != after.machine;
    if by_ratio {
        writeln!(
            out,
            "two machines: what has a ratio is compared by it, and the rest is left out"
        )?;
    }
    let noisy = [&before, &after].iter().any(|report| report.is_noisy());
    let measures = |report: &Report| -> Vec<Measure> {
        let all = report.measures.iter().cloned();
        if by_ratio { all.filter_map(Measure::by_ratio).collect() } else { all.collect() }
    };
    let (before, after) = (measures(&before), measures(&after));
    let pairs: Vec<_> = before
        .iter()
        .filter_map(|was| Some((was, after.iter().find(|is| is.name == was.name)?)))
        .collect();
    let width = pairs.iter().map(|(was, _)| was.name.chars().count()).max().unwrap_or(0);
    writeln!(out, "{:width$}  {:>12}  {:>12}  {:>8}  {:>6}", "", "before", "after", "", "noise")?;
    for (was, is) in pairs {
        let (verdict, change, noise) = judge(was, is);
        let [before, after] = [was, is].map(|it| quantity(it.median(), &it.unit));
        writeln!(
            out,
            "{:width$}  {before:>12}  {after:>12}  {:>+7.1}%  {:>5.0}%  {}",
            was.name,
            change * 100.0,
            noise * 100.0,
            verdict.word(noisy)
        )?;
    }
    writeln!(
        out,
        "\nA difference is called better or worse only if it is larger than the noise and the two \
         ranges of runs do not touch. Noise is what the runs of either side differ by, and {:.0} % at \
         least; of fewer than {SEVERAL} runs {:.0} % ({:.0} % at p90 and beyond), and --repeat \
         {SEVERAL} says more. A question mark: other programs ran beside a run.",
        NOISE_OF_SEVERAL * 100.0,
        NOISE * 100.0,
        NOISE_OF_TAILS * 100.0
    )?;
    Ok(())
}

fn read(path: &Path) -> Result<Report> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no report", path.display()))
}

/// In what the two cannot be compared.
fn unlike(before: &Report, after: &Report) -> Vec<String> {
    let mut unlike = Vec::new();
    if before.scenario != after.scenario {
        unlike.push(format!("two scenarios: {} and {}", before.scenario, after.scenario));
    }
    if before.machine != after.machine {
        unlike.push(format!("two machines: {} and {}", before.machine, after.machine));
    }
    let database = |report: &Report| report.relay.as_ref().map(|relay| relay["database"].clone());
    if database(before) != database(after) {
        unlike.push("two kinds of databases".to_owned());
    }
    let (Value::Object(was), Value::Object(is)) = (&before.arguments, &after.arguments) else {
        return unlike;
    };
    for (name, was) in was.iter().filter(|(name, _)| *name != "frame") {
        let is = is.get(name).unwrap_or(&Value::Null);
        if is != was {
            unlike.push(format!("two loads: {name} is {was} before, {is} after"));
        }
    }
    unlike
}

/// What the difference of two measures means, its share, and the share that is noise: what runs of the
/// same build differ by, as they were seen to on either side, and a least share.
fn judge(was: &Measure, is: &Measure) -> (Verdict, f64, f64) {
    let (before, after) = (was.median(), is.median());
    let change = if before == 0.0 { 0.0 } else { after / before - 1.0 };
    let several = was.values.len().min(is.values.len()) >= SEVERAL;
    let is_tail = ["p90", "p99", "max", "silence"].iter().any(|word| was.name.contains(word));
    let least = match (several, is_tail) {
        (true, _) => NOISE_OF_SEVERAL,
        (false, false) => NOISE,
        (false, true) => NOISE_OF_TAILS,
    };
    let noise = least.max(spread(was)).max(spread(is));
    let ((low, high), (is_low, is_high)) = (range(&was.values), range(&is.values));
    let touch = low <= is_high && is_low <= high;
    let verdict = match was.better {
        _ if touch || change.abs() <= noise => Verdict::Noise,
        Better::Neither => Verdict::Other,
        Better::Lower if change < 0.0 => Verdict::Better,
        Better::Higher if change > 0.0 => Verdict::Better,
        Better::Lower | Better::Higher => Verdict::Worse,
    };
    (verdict, change, noise)
}

/// By how much the runs of one side differ, as a share of the middle one.
fn spread(of: &Measure) -> f64 {
    let ((low, high), middle) = (range(&of.values), of.median());
    if middle == 0.0 { 0.0 } else { (high - low) / middle.abs() }
}

impl Verdict {
    /// What is made on a noisy machine is no more than a guess.
    fn word(self, noisy: bool) -> &'static str {
        match (self, noisy) {
            (Self::Noise, _) => "",
            (Self::Better, false) => "better",
            (Self::Worse, false) => "WORSE",
            (Self::Other, false) => "differs",
            (Self::Better, true) => "better?",
            (Self::Worse, true) => "worse?",
            (Self::Other, true) => "differs?",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Against, Unit};
    use super::*;

    fn measure(name: &str, values: &[f64]) -> Measure {
        let mut measure = Measure::lower(name, Unit::Microseconds, 0.0, Against::Cores);
        measure.values = values.to_vec();
        measure.ratios = values.iter().map(|value| value / 50.0).collect();
        measure.of = Some("a commit alone".to_owned());
        measure
    }

    fn verdict(name: &str, was: &[f64], is: &[f64]) -> Verdict {
        judge(&measure(name, was), &measure(name, is)).0
    }

    #[test]
    fn only_what_is_larger_than_noise_is_a_difference() {
        assert_eq!(verdict("p50", &[100.0], &[108.0]), Verdict::Noise);
        assert_eq!(verdict("p50", &[100.0], &[115.0]), Verdict::Worse);
        assert_eq!(verdict("p50", &[100.0], &[85.0]), Verdict::Better);
        assert_eq!(verdict("p99", &[100.0], &[130.0]), Verdict::Noise);
        assert_eq!(verdict("p99", &[100.0], &[150.0]), Verdict::Worse);
        // Several runs: the spread decides.
        assert_eq!(verdict("p99", &[99.0, 100.0, 101.0], &[106.0, 107.0, 108.0]), Verdict::Worse);
        assert_eq!(verdict("p50", &[90.0, 100.0, 120.0], &[110.0, 125.0, 130.0]), Verdict::Noise);
        // Ranges that do not touch by chance, and no further apart than runs of one side are.
        assert_eq!(verdict("p50", &[90.0, 100.0, 110.0], &[111.0, 115.0, 130.0]), Verdict::Noise);
    }

    #[test]
    fn readings_of_one_run_do_not_make_it_several() {
        let read = |readings: &[f64]| {
            Measure::lower_middle("catching up", Unit::Microseconds, readings, Against::Cores)
        };
        // Each run agrees with itself, and five readings of it are nearer to each other than two runs.
        let was = read(&[100.0, 100.5, 101.0, 101.5, 102.0]);
        let is = read(&[107.0, 107.5, 108.0, 108.5, 109.0]);
        assert_eq!(
            judge(&was, &is).0,
            Verdict::Noise,
            "single runs differ by 10 % without a reason"
        );
        assert_eq!(judge(&was, &read(&[120.0, 121.0])).0, Verdict::Worse);
    }

    #[test]
    fn two_machines_are_compared_by_what_each_reaches_of_its_own() {
        let (slow, mut fast) = (measure("p50", &[200.0]), measure("p50", &[100.0]));
        fast.ratios = vec![4.0];
        let [slow, fast] = [slow, fast].map(|it| it.by_ratio().expect("a ratio"));
        assert_eq!(slow.name, "p50, × a commit alone");
        assert_eq!(judge(&slow, &fast).0, Verdict::Noise, "both are four times a commit");
    }

    #[test]
    fn higher_can_be_better_and_some_things_are_neither() {
        let (was, is) = (measure("a", &[100.0]), measure("a", &[150.0]));
        let with = |it: &Measure, better| {
            let mut measure = it.clone();
            measure.better = better;
            measure
        };
        let higher = |it: &Measure| with(it, Better::Higher);
        assert_eq!(judge(&higher(&was), &higher(&is)).0, Verdict::Better);
        let neither = |it: &Measure| with(it, Better::Neither);
        assert_eq!(judge(&neither(&was), &neither(&is)).0, Verdict::Other);
    }
}
