//! Which figures of each part the budgets are about.
//!
//! A figure that a part has not seen is left out here, and so is told as not taken.

use super::budget::Budget;
use super::judge::Taken;
use crate::append::{self, Rate, Step};
use crate::ceiling::{Best, Ceilings};
use crate::frame::timeline::StoreFigures;
use crate::reader::Faults;
use crate::report::{
    Against, Better, Unit, duration, mebibytes, median, percentiles, quantity, rate,
};
use crate::{catch_up, idle};

type Figures = Vec<(Budget, Taken)>;

/// Durable appends without receivers, and what the store does alone.
pub(super) fn of_saturation(measured: &append::Measured, ceilings: Option<&Ceilings>) -> Figures {
    let mut figures = vec![faults(measured.faults())];
    let appended = measured.at(Rate::Max).map(|step| step.appended_per_second);
    // Only a build that knows the store has a ceiling of it.
    let ceilings = ceilings.filter(|ceilings| ceilings.knows_store());
    let ratio = appended.zip(ceilings).and_then(|(appended, ceilings)| {
        let store = Against::Best(Best::Store { acked: false });
        let unit = Unit::PerSecond.name();
        store.ratio("durable appends", appended, unit, Better::Higher, Some(ceilings))
    });
    figures.extend(ratio.map(|ratio| {
        let budget = Budget::StoreShare;
        (budget, Taken::new(budget, ratio.share * 100.0, ratio.text()))
    }));
    figures
}

/// Groups of four at three rates: a trickle, one that leaves room, and as many as the relay takes.
pub(super) fn of_group_chat(
    measured: &append::Measured,
    ceilings: Option<&Ceilings>,
    rates: [Rate; 3],
    lean_fan_out: f64,
) -> Figures {
    let [trickle, paced, saturated] = rates.map(|rate| measured.at(rate));
    let mut figures = vec![faults(measured.faults())];
    if let Some(step) = saturated {
        figures.push(fan_out(step, ceilings, lean_fan_out));
        figures.extend(entries(Budget::SaturatedEntries, step));
    }
    figures.extend(paced.into_iter().flat_map(delivered));
    figures.extend(trickle.and_then(|step| entries(Budget::TrickleEntries, step)));
    figures
}

/// A device that was away, at the socket and with every signature checked.
pub(super) fn of_catch_up(measured: &catch_up::Measured) -> Figures {
    let mut figures = vec![faults(measured.faults())];
    let of = |signatures: bool| {
        let readings = measured.readings.iter().find(|it| it.signatures == signatures)?;
        Some(median(&readings.last_ms) * 1000.0)
    };
    let Some(plain_us) = of(false) else { return figures };
    let note = rate(measured.entries as f64 * 1e6 / plain_us);
    figures.push((Budget::CatchUp, Taken::new(Budget::CatchUp, plain_us, note)));
    if let Some(checked_us) = of(true) {
        let each_us = (checked_us - plain_us) / measured.entries as f64;
        let note = format!("{} with all of them checked", duration(checked_us));
        figures.push((Budget::Signature, Taken::new(Budget::Signature, each_us, note)));
    }
    figures
}

/// Sessions that say nothing, and what is left when all have gone.
pub(super) fn of_idle(measured: &idle::Measured) -> Figures {
    let mut figures = Vec::new();
    let slopes = measured.bytes_per_session.zip(measured.anonymous_bytes_per_session);
    figures.extend(slopes.map(|(all, anonymous)| {
        let note = format!("{} of it anonymous", quantity(anonymous, "bytes"));
        (Budget::IdleSession, Taken::new(Budget::IdleSession, all, note))
    }));
    let [before, after] = [measured.before, measured.after].map(|it| mebibytes(it.resident));
    let note = format!("{after}, and {before} before the first came");
    let ratio = measured.after_over_before;
    figures.push((Budget::AfterCrowd, Taken::new(Budget::AfterCrowd, ratio, note)));
    figures
}

fn faults(faults: Faults) -> (Budget, Taken) {
    let Faults { lost, duplicate, disorder, altered } = faults;
    let sum = lost + duplicate + disorder + altered;
    (Budget::Faults, Taken::new(Budget::Faults, sum as f64, faults.to_string()))
}

fn fan_out(step: &Step, ceilings: Option<&Ceilings>, lean_fan_out: f64) -> (Budget, Taken) {
    let appended = step.appended_per_second;
    let share = appended / lean_fan_out * 100.0;
    let mut note = format!("{share:.1} % of {}", rate(lean_fan_out));
    let (unit, better) = (Unit::PerSecond.name(), Better::Higher);
    let sockets = Against::Best(Best::FanOut);
    let ratio = sockets.ratio("deliveries", step.delivered_per_second, unit, better, ceilings);
    if let Some(ratio) = ratio {
        note.push_str(&format!("; deliveries {}", ratio.text()));
    }
    (Budget::FanOut, Taken::beside(Budget::FanOut, appended, lean_fan_out, note))
}

/// Deliveries beside the commits of the same seconds.
fn delivered(step: &Step) -> Figures {
    let Some(deliver) = &step.push_to_deliver else { return Vec::new() };
    let Some((mean_us, store)) = commits(step) else { return Vec::new() };
    let p50 =
        (deliver.p50_us, format!("mean commit {}; {}", duration(mean_us), percentiles(deliver)));
    let (low, high) = store.commit_p99_within_us;
    let [low, high] = [Some(low), high].map(|bound| bound.map(|us| duration(us as f64)));
    let low = low.unwrap_or_default();
    let within = high.map_or_else(
        || format!("in the relay's last bucket, which begins at {low}"),
        |high| format!("a straight line in the relay's bucket from {low} to {high}"),
    );
    let p99 =
        (deliver.p99_us, format!("commits {} at p99: {within}", duration(store.commit_p99_us)));
    vec![
        (Budget::DeliverP50, Taken::beside(Budget::DeliverP50, p50.0, mean_us, p50.1)),
        (Budget::DeliverP99, Taken::beside(Budget::DeliverP99, p99.0, store.commit_p99_us, p99.1)),
    ]
}

/// The mean time of a commit, and the rest; none of too few.
fn commits(step: &Step) -> Option<(f64, StoreFigures)> {
    let server = step.server.as_ref()?;
    Some((server.commit_mean_us()?, server.store?))
}

/// Entries in each commit, of which each waits for the disk.
fn entries(budget: Budget, step: &Step) -> Option<(Budget, Taken)> {
    let server = step.server.as_ref()?;
    let store = server.store.filter(|store| store.commits > 0)?;
    let mut note = format!("{} commits", store.commits);
    if let Some(flushes) = server.flushes_per_commit() {
        note.push_str(&format!(", {flushes:.2} flushes of the disk for each"));
    }
    if let Some(mean_us) = server.commit_mean_us() {
        let p50_us = step.push_to_appended.p50_us;
        let [mean, p50] = [mean_us, p50_us].map(duration);
        note.push_str(&format!(", mean {mean}; push to Appended, p50 {p50}"));
    }
    Some((budget, Taken::new(budget, store.entries_per_commit, note)))
}
