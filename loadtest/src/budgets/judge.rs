//! Whether a figure is within its budget.
//!
//! Holds always: what was not taken is never met, what is no number was not taken, and nothing of a run
//! that was shortened is judged.

use serde::Serialize;

use super::budget::Budget;
use crate::ceiling::Ceilings;
use crate::report::{Better, Ratio, quantity, range};

/// One taking of a figure, and what it had to be then.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Taken {
    value: f64,
    bound: f64,
    /// As a ratio to what this machine does at best, in the same run; none of a ratio or a count, or where
    /// that was not measured.
    held: Option<Ratio>,
    /// What it is made of.
    note: String,
}

/// What is to be said of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Verdict {
    Met,
    Missed,
    NotTaken,
    /// Of a run too short to say anything.
    NotJudged,
}

/// A figure with its verdict.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Judged {
    pub(super) verdict: Verdict,
    /// The figure over its bound; none of a bound of zero.
    ratio: Option<f64>,
    /// Of several takings the middle one, by how near each is to its bound; of what must never happen
    /// the sum.
    taken: Option<Taken>,
    all: Vec<Taken>,
}

impl Taken {
    /// A figure whose bound is the same in every run.
    pub(super) fn new(budget: Budget, value: f64, note: impl Into<String>) -> Self {
        // Where the bound is made of something after all, this makes it no number, and nothing met.
        Self::beside(budget, value, f64::NAN, note)
    }

    /// A figure whose bound is made of another one.
    pub(super) fn beside(budget: Budget, value: f64, basis: f64, note: impl Into<String>) -> Self {
        Self { value, bound: budget.bound(basis), held: None, note: note.into() }
    }

    /// The same, held against what this machine does at best.
    pub(super) fn hold(mut self, budget: Budget, ceilings: Option<&Ceilings>) -> Self {
        self.held = budget.against().and_then(|against| {
            against.ratio(budget.what(), self.value, budget.unit(), budget.better(), ceilings)
        });
        self
    }

    fn over_bound(&self) -> f64 {
        self.value / self.bound
    }

    fn is_within(&self, better: Better) -> bool {
        match better {
            Better::Higher => self.value >= self.bound,
            Better::Lower => self.value <= self.bound,
            Better::Neither => false,
        }
    }
}

impl Judged {
    /// All takings of a figure, judged unless they are of a run too short for that.
    pub(super) fn new(budget: Budget, mut all: Vec<Taken>, shortened: bool) -> Self {
        all.retain(|taken| taken.value.is_finite() && taken.bound.is_finite());
        let taken = if budget == Budget::Faults { sum(&all) } else { middle(&all) };
        let verdict = match &taken {
            None => Verdict::NotTaken,
            Some(_) if shortened => Verdict::NotJudged,
            Some(taken) if taken.is_within(budget.better()) => Verdict::Met,
            Some(_) => Verdict::Missed,
        };
        let ratio = taken.as_ref().map(Taken::over_bound).filter(|ratio| ratio.is_finite());
        Self { verdict, ratio, taken, all }
    }

    /// What stands in the table.
    pub(super) fn cell(&self, budget: Budget) -> String {
        let Some(taken) = &self.taken else { return "not taken".to_owned() };
        let value = quantity(taken.value, budget.unit());
        let bound = if budget.is_bound_by_its_run() {
            format!(" of {}", quantity(taken.bound, budget.unit()))
        } else {
            String::new()
        };
        let ratio = self.ratio.map_or_else(String::new, |ratio| format!(" (× {ratio:.2})"));
        match self.verdict {
            Verdict::Met => format!("{value}{bound}: met{ratio}"),
            Verdict::Missed => format!("{value}{bound}: MISSED{ratio}"),
            Verdict::NotTaken | Verdict::NotJudged => format!("{value}{bound}"),
        }
    }

    /// What the figure is made of, and its range if it was taken several times; empty if that says
    /// nothing more.
    pub(super) fn note(&self, budget: Budget) -> String {
        let note = self.taken.as_ref().map_or("", |taken| &taken.note);
        if self.all.len() < 2 || budget == Budget::Faults {
            return note.to_owned();
        }
        let (low, high) = range(&self.values());
        let [low, high] = [low, high].map(|value| quantity(value, budget.unit()));
        format!("{low} to {high}; of the middle one: {note}")
    }

    /// What the machine does at best beside it; of several takings of the middle one.
    pub(super) fn held(&self) -> Option<&Ratio> {
        self.taken.as_ref()?.held.as_ref()
    }

    /// The same of each taking.
    pub(super) fn all_held(&self) -> Vec<Ratio> {
        self.all.iter().filter_map(|taken| taken.held.clone()).collect()
    }

    /// The value of each taking.
    pub(super) fn values(&self) -> Vec<f64> {
        self.all.iter().map(|taken| taken.value).collect()
    }
}

/// The middle one, by how near each is to its bound; the higher one of two.
fn middle(all: &[Taken]) -> Option<Taken> {
    let mut sorted: Vec<&Taken> = all.iter().collect();
    sorted.sort_by(|a, b| a.over_bound().total_cmp(&b.over_bound()));
    sorted.get(sorted.len() / 2).copied().cloned()
}

/// One that lost something is enough.
fn sum(all: &[Taken]) -> Option<Taken> {
    let value = all.iter().map(|taken| taken.value).sum();
    (!all.is_empty()).then(|| Taken::new(Budget::Faults, value, ""))
}

#[cfg(test)]
mod tests {
    use super::super::budget::LEAN_FAN_OUT;
    use super::*;

    fn verdict(budget: Budget, value: f64, basis: f64) -> Verdict {
        Judged::new(budget, vec![Taken::beside(budget, value, basis, "")], false).verdict
    }

    #[test]
    fn a_figure_at_its_bound_is_within_it_and_one_beyond_is_not() {
        for (budget, basis, met, missed) in [
            (Budget::StoreShare, 0.0, 70.0, 69.99),
            (Budget::FanOut, LEAN_FAN_OUT, 42_000.0, 41_999.0),
            (Budget::FanOut, 10_000.0, 7_000.0, 6_999.0),
            (Budget::DeliverP50, 760.0, 1_760.0, 1_760.1),
            (Budget::DeliverP99, 3_700.0, 11_100.0, 11_100.1),
            (Budget::SaturatedEntries, 0.0, 50.0, 49.9),
            (Budget::TrickleEntries, 0.0, 1.0, 1.1),
            (Budget::IdleSession, 0.0, 12_288.0, 12_289.0),
            (Budget::AfterCrowd, 0.0, 1.2, 1.21),
            (Budget::CatchUp, 0.0, 55_000.0, 55_001.0),
            (Budget::Signature, 0.0, 50.0, 50.1),
            (Budget::Faults, 0.0, 0.0, 1.0),
        ] {
            assert_eq!(verdict(budget, met, basis), Verdict::Met, "{budget:?}");
            assert_eq!(verdict(budget, missed, basis), Verdict::Missed, "{budget:?}");
        }
    }

    #[test]
    fn what_was_not_taken_is_never_met() {
        for budget in Budget::ALL {
            let judged = Judged::new(budget, Vec::new(), false);
            assert_eq!(judged.verdict, Verdict::NotTaken);
            assert_eq!(judged.cell(budget), "not taken");
            for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                assert_eq!(verdict(budget, value, 1.0), Verdict::NotTaken, "{budget:?}");
            }
        }
        // A bound that is made of something that was not taken is none.
        for budget in [Budget::FanOut, Budget::DeliverP50, Budget::DeliverP99] {
            assert_eq!(verdict(budget, 1.0, f64::NAN), Verdict::NotTaken, "{budget:?}");
            let forgotten = Judged::new(budget, vec![Taken::new(budget, 1.0, "")], false);
            assert_eq!(forgotten.verdict, Verdict::NotTaken, "{budget:?}");
        }
    }

    #[test]
    fn a_run_that_was_shortened_judges_nothing() {
        for budget in Budget::ALL {
            let judged = Judged::new(budget, vec![Taken::beside(budget, 1e9, 1.0, "")], true);
            assert_eq!(judged.verdict, Verdict::NotJudged);
            assert!(!judged.cell(budget).contains("MISSED"), "{}", judged.cell(budget));
            assert_eq!(Judged::new(budget, Vec::new(), true).verdict, Verdict::NotTaken);
        }
    }

    #[test]
    fn of_several_takings_the_middle_one_counts_beside_its_own_bound() {
        // The second is the fastest, and the farthest beyond what its own commits allow.
        let takings = [(4_000.0, 2_000.0), (3_000.0, 500.0), (5_000.0, 4_500.0)];
        let takings = takings.map(|(value, commit)| {
            Taken::beside(Budget::DeliverP50, value, commit, format!("{commit}"))
        });
        let judged = Judged::new(Budget::DeliverP50, takings.to_vec(), false);
        assert_eq!(judged.verdict, Verdict::Missed);
        assert_eq!(judged.cell(Budget::DeliverP50), "4.00 ms of 3.00 ms: MISSED (× 1.33)");
        let note = judged.note(Budget::DeliverP50);
        assert_eq!(note, "3.00 ms to 5.00 ms; of the middle one: 2000");
        assert_eq!(judged.values(), [4_000.0, 3_000.0, 5_000.0]);
    }

    #[test]
    fn one_copy_that_was_lost_once_is_missed() {
        let takings = [0.0, 0.0, 1.0].map(|value| Taken::new(Budget::Faults, value, ""));
        let judged = Judged::new(Budget::Faults, takings.to_vec(), false);
        assert_eq!(judged.cell(Budget::Faults), "1: MISSED");
        assert_eq!(judged.verdict, Verdict::Missed);
        let judged = Judged::new(Budget::Faults, takings[..2].to_vec(), false);
        assert_eq!(judged.cell(Budget::Faults), "0: met");
    }
}
