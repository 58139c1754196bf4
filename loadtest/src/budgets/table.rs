//! What was seen of all databases, side by side and beside what is asked for.

use anyhow::{Result, ensure};
use serde::Serialize;

use super::budget::{Budget, LEAN_MACHINE};
use super::judge::{Judged, Taken, Verdict};
use super::part::{Manner, Shown};
use crate::report::{Figures, Kept, Line, Measure, RATIOS, line, rate, row};

/// What a shortened run is worth.
const SHORTENED: &str = "a shortened run: few devices and entries, for moments, and push to deliver at \
                         100/s. Its figures say nothing, and nothing is judged";

/// Everything that was taken of a relay on one database.
pub(super) struct Column {
    name: &'static str,
    takings: Vec<(Budget, Taken)>,
    reports: Vec<Kept>,
    failures: Vec<String>,
}

/// All of them, judged.
#[derive(Serialize)]
pub(super) struct Table {
    /// Entries a second that a lean server delivers.
    lean_fan_out: f64,
    /// Whether that is of this machine, as whoever ran this says.
    lean_fan_out_given: bool,
    shortened: bool,
    columns: Vec<&'static str>,
    rows: Vec<Row>,
    /// What has failed, and so why what was not taken was not.
    failures: Vec<String>,
    #[serde(skip)]
    reports: Vec<Kept>,
    #[serde(skip)]
    said: Vec<String>,
    #[serde(skip)]
    broken_promise: Option<String>,
}

/// A budget, and its figure of each database.
#[derive(Serialize)]
struct Row {
    budget: Budget,
    asked: String,
    judged: Vec<Judged>,
}

impl Column {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, takings: Vec::new(), reports: Vec::new(), failures: Vec::new() }
    }

    pub(super) fn add(&mut self, shown: Shown) {
        self.takings.extend(shown.figures);
        self.reports.push(shown.report);
    }

    /// Something has failed, and the rest goes on.
    pub(super) fn says(&mut self, failure: String) {
        self.failures.push(failure);
    }

    fn of(&self, budget: Budget) -> Vec<Taken> {
        let mine = self.takings.iter().filter(|(of, _)| *of == budget);
        mine.map(|(_, taken)| taken.clone()).collect()
    }
}

impl Table {
    pub(super) fn new(manner: Manner, columns: Vec<Column>) -> Self {
        let judge = |budget: Budget| {
            let judged =
                columns.iter().map(|column| Judged::new(budget, column.of(budget), manner.short));
            let asked = budget.asked(manner.lean_fan_out());
            Row { budget, asked, judged: judged.collect() }
        };
        let rows = Budget::ALL.into_iter().map(judge).collect();
        let names = columns.iter().map(|column| column.name).collect();
        let (mut reports, mut failures) = (Vec::new(), Vec::new());
        for mut column in columns {
            reports.append(&mut column.reports);
            failures.append(&mut column.failures);
        }
        let said = reports.iter().flat_map(Kept::warnings).cloned().collect();
        let broken = reports.iter().find_map(Kept::broken_promise).map(str::to_owned);
        Self {
            lean_fan_out: manner.lean_fan_out(),
            lean_fan_out_given: manner.fan_out.is_some(),
            shortened: manner.short,
            columns: names,
            rows,
            failures,
            reports,
            said,
            broken_promise: broken,
        }
    }

    /// Whether everything was taken that was to be, and, if that is asked for, no budget missed.
    pub(super) fn conclusion(&self, strict: bool) -> Result<()> {
        ensure!(self.failures.is_empty(), "not everything was taken: {}", self.failures.join("; "));
        let lacking = self.all(Verdict::NotTaken);
        let complete = self.shortened || lacking.is_empty();
        ensure!(complete, "not everything was taken: {}", lacking.join("; "));
        let missed = self.all(Verdict::Missed);
        ensure!(!strict || missed.is_empty(), "missed: {}", missed.join("; "));
        Ok(())
    }

    /// Names of what has this verdict, with their databases.
    fn all(&self, verdict: Verdict) -> Vec<String> {
        let of_row = |row: &Row| {
            let judged = self.columns.iter().zip(&row.judged);
            let mine = judged.filter(|(_, judged)| judged.verdict == verdict);
            let what = row.budget.what();
            mine.map(|(column, _)| format!("{column}: {what}")).collect::<Vec<_>>()
        };
        self.rows.iter().flat_map(of_row).collect()
    }
}

impl Figures for Table {
    fn lines(&self) -> Vec<Line> {
        let names = self.columns.iter().map(|name| (*name).to_owned());
        let mut lines = vec![row("", names.chain(["budget".to_owned()]).collect())];
        for Row { budget, asked, judged } in &self.rows {
            let cells = judged.iter().map(|judged| judged.cell(*budget));
            lines.push(row(budget.what(), cells.chain([asked.clone()]).collect()));
        }
        for (place, name) in self.columns.iter().enumerate() {
            lines.push(line(format!("-- {name}: {RATIOS}"), ""));
            for Row { budget, judged, .. } in &self.rows {
                if let Some(held) = judged.get(place).and_then(Judged::held) {
                    lines.push(line(budget.what(), held.text()));
                }
            }
        }
        for (place, name) in self.columns.iter().enumerate() {
            lines.push(line(format!("-- {name}: what they are made of"), ""));
            for Row { budget, judged, .. } in &self.rows {
                let note = judged.get(place).map(|judged| judged.note(*budget));
                if let Some(note) = note.filter(|note| !note.is_empty()) {
                    lines.push(line(budget.what(), note));
                }
            }
        }
        let whose = if self.lean_fan_out_given { "--fan-out" } else { LEAN_MACHINE };
        lines.push(line("-- what is from elsewhere", ""));
        lines.push(line(rate(self.lean_fan_out), whose));
        lines
    }

    fn measures(&self) -> Vec<Measure> {
        let of_row = |row: &Row| {
            let Row { budget, judged, .. } = row;
            let measure = |(column, judged): (&&str, &Judged)| {
                let values = judged.values();
                let name = format!("{column}: {}", budget.what());
                let what = (name, budget.unit(), budget.better());
                let held = judged.all_held();
                (!values.is_empty()).then(|| Measure::held(what, values, &held))
            };
            self.columns.iter().zip(judged).filter_map(measure).collect::<Vec<_>>()
        };
        self.rows.iter().flat_map(of_row).collect()
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.shortened {
            warnings.push(SHORTENED.to_owned());
        }
        warnings.extend(self.failures.iter().chain(&self.said).cloned());
        warnings
    }

    fn broken_promise(&self) -> Option<String> {
        self.broken_promise.clone()
    }

    fn take_kept(&mut self) -> Vec<Kept> {
        std::mem::take(&mut self.reports)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On one database everything is as it should be, on the other one this has this value.
    fn table(budget: Budget, value: Option<f64>, manner: Manner) -> Table {
        let mut columns = [Column::new("SQLite"), Column::new("PostgreSQL")];
        for (place, column) in columns.iter_mut().enumerate() {
            let of = |it: Budget| {
                let bound = it.bound(1.0);
                let value = if place == 1 && it == budget { value? } else { bound };
                Some((it, Taken::beside(it, value, 1.0, "")))
            };
            column.takings = Budget::ALL.into_iter().filter_map(of).collect();
        }
        Table::new(manner, columns.into())
    }

    const WHOLE: Manner = Manner { fan_out: None, short: false };

    #[test]
    fn a_missed_budget_is_a_failure_only_if_that_is_asked_for() {
        let met = table(Budget::CatchUp, Some(55_000.0), WHOLE);
        assert!(met.conclusion(true).is_ok());
        let missed = table(Budget::CatchUp, Some(56_000.0), WHOLE);
        assert!(missed.conclusion(false).is_ok());
        let error = missed.conclusion(true).expect_err("missed").to_string();
        assert_eq!(error, "missed: PostgreSQL: catching up with 10,000 × 1 KiB");
    }

    #[test]
    fn what_was_not_taken_is_a_failure_unless_the_run_was_shortened() {
        let error = table(Budget::StoreShare, None, WHOLE).conclusion(false).expect_err("lacking");
        assert!(error.to_string().contains("PostgreSQL: durable appends"), "{error}");
        let short = Manner { short: true, ..WHOLE };
        assert!(table(Budget::StoreShare, None, short).conclusion(false).is_ok());
        // What has failed is one in any case.
        let mut failed = Column::new("SQLite");
        failed.says("SQLite, idle: not taken: no relay".to_owned());
        assert!(Table::new(short, vec![failed]).conclusion(false).is_err());
    }
}
