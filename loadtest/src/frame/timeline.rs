//! All samples of a run, and what they say of a part of it.

use std::time::Duration;

use serde::Serialize;

use super::metrics::Counts;
use super::sampler::{RelaySample, Sample};
use crate::ceiling::Best;
use crate::latency::Point;
use crate::process::{Cpu, Memory};
use crate::report::{self, Against, Better, Line, Measure, Plain, Unit, line};

/// Cores of other programs above which a run says more of them than of the relay.
const OTHER_CORES_MAX: f64 = 0.15;

/// What a warning of them begins with.
pub(crate) const NOISE_WARNING: &str = "noise";

/// Flushes of the disk per commit below which something has been called durable that was not: two
/// committers may share one, and a few samples lie a commit apart.
const FLUSHES_PER_COMMIT_MIN: f64 = 0.4;

/// Commits of a part of a run below which nothing is said about their flushes.
const COMMITS_MIN: u64 = 50;

/// All samples of a run, in order.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Timeline {
    pub(crate) samples: Vec<Sample>,
    /// What began at which second.
    pub(crate) marks: Vec<(f64, String)>,
}

/// The machine's side of a part of a run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Server {
    /// Seconds between the samples that this is made of.
    pub(crate) elapsed_s: f64,
    pub(crate) relay: Option<RelayFigures>,
    /// Cores that this program used: on a small machine, they are the relay's loss.
    pub(crate) tester_cores: f64,
    /// Cores that everything else used, a database server included; known with the relay's process.
    pub(crate) other_cores: Option<f64>,
    pub(crate) store: Option<StoreFigures>,
    disk: Option<DiskFigures>,
    /// Whether the database is a server of its own, whose cores are among the others'.
    #[serde(skip)]
    pub(crate) database_apart: bool,
}

/// The relay's process.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct RelayFigures {
    pub(crate) cores_user: f64,
    pub(crate) cores_system: f64,
    pub(crate) voluntary_switches_per_second: f64,
    pub(crate) memory_before: Memory,
    pub(crate) memory_most: Memory,
    pub(crate) memory_after: Memory,
}

/// What the relay counted.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct StoreFigures {
    pub(crate) commits: u64,
    commits_per_second: f64,
    /// 0 if there was no commit.
    pub(crate) entries_per_commit: f64,
    /// Time that one commit took.
    commit_mean_us: f64,
    /// From the relay's buckets, and as coarse as these.
    commit_p50_us: f64,
    pub(crate) commit_p99_us: f64,
    /// The bounds of the bucket that it lies in; the second is none where that has none.
    pub(crate) commit_p99_within_us: (u64, Option<u64>),
    /// Time in the database per second: above one if several commits run at the same time.
    busy: f64,
    /// Subscriptions that became behind.
    behind: u64,
    outbox_bytes_most: u64,
}

/// What the disk's driver counted.
#[derive(Clone, Copy, Debug, Serialize)]
struct DiskFigures {
    bytes_per_second: f64,
    writes_per_second: f64,
    flushes_per_second: Option<f64>,
    flushes_per_commit: Option<f64>,
}

impl Timeline {
    /// What happened from one second of the run to another; none of too few samples.
    pub(crate) fn between(&self, begin_s: f64, end_s: f64) -> Option<Server> {
        let begin = self.samples.partition_point(|sample| sample.at_s < begin_s);
        let end = self.samples.partition_point(|sample| sample.at_s <= end_s);
        Server::of(self.samples.get(begin..end)?)
    }

    /// Adds the samples of a part of the run that came after `seconds` of it.
    pub(crate) fn extend(&mut self, mut later: Self, seconds: f64) {
        for sample in &mut later.samples {
            sample.at_s += seconds;
        }
        self.samples.append(&mut later.samples);
        self.marks.extend(later.marks.into_iter().map(|(at_s, name)| (at_s + seconds, name)));
    }

    /// Names what began at a second.
    pub(crate) fn mark(&mut self, at_s: f64, name: impl Into<String>) {
        self.marks.push((at_s, name.into()));
    }

    /// When the last sample was taken.
    pub(crate) fn end_s(&self) -> f64 {
        self.samples.last().map_or(0.0, |sample| sample.at_s)
    }
}

impl Server {
    fn of(samples: &[Sample]) -> Option<Self> {
        let (first, last) = (samples.first()?, samples.last()?);
        let elapsed_s = last.at_s - first.at_s;
        if elapsed_s <= 0.0 {
            return None;
        }
        let elapsed = Duration::from_secs_f64(elapsed_s);
        let tester_cores = last.tester.since(first.tester).cores(elapsed);
        let relay = relay(samples, elapsed_s);
        let other_cores = relay.map(|relay| {
            let known = relay.cores_user + relay.cores_system + tester_cores;
            ((last.machine - first.machine) / elapsed_s - known).max(0.0)
        });
        let store = store(samples);
        let disk = disk(samples, elapsed_s, store.map(|store| store.commits_per_second));
        let database_apart = false;
        Some(Self { elapsed_s, relay, tester_cores, other_cores, store, disk, database_apart })
    }

    /// The database is a server of its own: its work is no noise.
    pub(crate) fn with_database_apart(mut self, apart: bool) -> Self {
        self.database_apart = apart;
        self
    }

    /// None if there was no commit.
    pub(crate) fn commit_mean_us(&self) -> Option<f64> {
        self.store.filter(|store| store.commits >= COMMITS_MIN).map(|store| store.commit_mean_us)
    }

    /// None of a disk that does not count, or if there was no commit.
    pub(crate) fn flushes_per_commit(&self) -> Option<f64> {
        self.disk?.flushes_per_commit
    }

    pub(crate) fn lines(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        if let Some(store) = &self.store {
            lines.push(line(
                "commits",
                format!(
                    "{:.1}/s of {:.1} entries, mean {}, p99 about {}; {:.2} s in the database per \
                     second",
                    store.commits_per_second,
                    store.entries_per_commit,
                    report::duration(store.commit_mean_us),
                    report::duration(store.commit_p99_us),
                    store.busy
                ),
            ));
            if store.behind > 0 || store.outbox_bytes_most > 0 {
                let most = report::mebibytes(store.outbox_bytes_most);
                let text = format!("{} times behind; outboxes at most {most}", store.behind);
                lines.push(line("readers", text));
            }
        }
        if let Some(disk) = &self.disk {
            let flushes = disk.flushes_per_second.map_or_else(String::new, |per_second| {
                let each = disk
                    .flushes_per_commit
                    .map_or_else(String::new, |each| format!(" ({each:.2} per commit)"));
                format!("{per_second:.1} flushes/s{each}, ")
            });
            let bytes = report::mebibytes(disk.bytes_per_second as u64);
            let text = format!("{flushes}{:.1} writes/s, {bytes}/s", disk.writes_per_second);
            lines.push(line("disk", text));
        }
        if let Some(relay) = &self.relay {
            lines.push(line(
                "relay",
                format!(
                    "{:.2} cores user, {:.2} system; {} voluntary switches; at most {}",
                    relay.cores_user,
                    relay.cores_system,
                    report::rate(relay.voluntary_switches_per_second),
                    report::memory(relay.memory_most)
                ),
            ));
        }
        let other = self.other_cores.map_or_else(String::new, |cores| {
            let what = if self.database_apart {
                "everything else, with the database"
            } else {
                "everything else"
            };
            format!("; {what} {cores:.2}")
        });
        lines.push(line("load tester", format!("{:.2} cores{other}", self.tester_cores)));
        lines
    }

    /// What should not be believed without a second look.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let (Some(flushes), Some(store)) = (self.flushes_per_commit(), self.store)
            && store.commits >= COMMITS_MIN
            && flushes < FLUSHES_PER_COMMIT_MIN
        {
            warnings.push(format!(
                "not durable: the disk flushed {flushes:.2} times per commit; what was answered as \
                 durable was not on the disk"
            ));
        }
        if let Some(cores) = self.other_cores
            && !self.database_apart
            && cores > OTHER_CORES_MAX
        {
            warnings.push(format!(
                "{NOISE_WARNING}: other programs used {cores:.2} cores; run it again on a quiet machine"
            ));
        }
        warnings
    }

    /// All that is a speed or a size, named after the part of the run.
    pub(crate) fn measures(&self, part: &str) -> Vec<Measure> {
        let mut measures = self.store.iter().flat_map(|it| it.measures(part)).collect::<Vec<_>>();
        measures.extend(self.disk.iter().flat_map(|it| it.measures(part)));
        measures.extend(self.relay.iter().flat_map(|it| it.measures(part)));
        let mut cores = |name: &str, cores| {
            let name = format!("{part}{name}");
            measures.push(Measure::neutral(name, Unit::Cores, cores, Against::Cores));
        };
        cores("load tester's cores", self.tester_cores);
        if let Some(others) = self.other_cores {
            cores("everything else's cores", others);
        }
        measures
    }
}

impl StoreFigures {
    fn measures(&self, part: &str) -> Vec<Measure> {
        let latency = |name: &str, value, point| {
            Measure::lower(format!("{part}{name}"), Unit::Microseconds, value, Against::sync(point))
        };
        let commits = (format!("{part}commits"), self.commits_per_second);
        let per_commit = (format!("{part}entries per commit"), self.entries_per_commit);
        let mut measures = vec![
            Measure::plain(per_commit.0, Plain::Number, Better::Neither, per_commit.1),
            Measure::neutral(commits.0, Unit::PerSecond, commits.1, Against::Best(Best::Syncs)),
            latency("commit, mean", self.commit_mean_us, Point::Mean),
            latency("commit, about p50", self.commit_p50_us, Point::P50),
            latency("commit, about p99", self.commit_p99_us, Point::P99),
        ];
        if self.outbox_bytes_most > 0 {
            let bytes = self.outbox_bytes_most as f64;
            let name = format!("{part}outboxes, most");
            measures.push(Measure::lower(name, Unit::Bytes, bytes, Against::Memory));
        }
        measures
    }
}

impl DiskFigures {
    fn measures(&self, part: &str) -> Vec<Measure> {
        let measure = |name: &str, unit, value, best| {
            Measure::neutral(format!("{part}{name}"), unit, value, Against::Best(best))
        };
        let bytes = self.bytes_per_second;
        let mut measures = vec![
            measure("disk's writes", Unit::PerSecond, self.writes_per_second, Best::Syncs),
            measure("disk's bytes", Unit::BytesPerSecond, bytes, Best::DiskBytes),
        ];
        if let Some(flushes) = self.flushes_per_second {
            measures.push(measure("disk's flushes", Unit::PerSecond, flushes, Best::Syncs));
        }
        measures
    }
}

impl RelayFigures {
    fn measures(&self, part: &str) -> Vec<Measure> {
        let lower = |name: &str, unit, value, against| {
            Measure::lower(format!("{part}{name}"), unit, value, against)
        };
        let cores = |name: &str, cores| lower(name, Unit::Cores, cores, Against::Cores);
        let most = self.memory_most;
        let memory =
            |name: &str, bytes: u64| lower(name, Unit::Bytes, bytes as f64, Against::Memory);
        let switches = self.voluntary_switches_per_second;
        let best = Against::Best(Best::Switches);
        vec![
            cores("relay's cores", self.cores_user + self.cores_system),
            cores("relay's cores, user", self.cores_user),
            cores("relay's cores, system", self.cores_system),
            lower("relay's voluntary switches", Unit::PerSecond, switches, best),
            memory("relay's memory, most", most.resident),
            memory("relay's memory, most, anonymous", most.anonymous),
        ]
    }
}

/// A process that was started anew meanwhile counts from zero again.
fn relay(samples: &[Sample], elapsed_s: f64) -> Option<RelayFigures> {
    let seen: Vec<RelaySample> = samples.iter().filter_map(|sample| sample.relay).collect();
    let (first, last) = (seen.first()?, seen.last()?);
    let mut cpu = Cpu { user: 0.0, system: 0.0 };
    let mut switches = 0;
    for pair in seen.windows(2) {
        cpu = cpu + pair[1].cpu.since(pair[0].cpu);
        let (before, now) = (pair[0].voluntary_switches, pair[1].voluntary_switches);
        switches += now.checked_sub(before).unwrap_or(now);
    }
    let all = seen.iter().map(|relay| relay.memory);
    Some(RelayFigures {
        cores_user: cpu.user / elapsed_s,
        cores_system: cpu.system / elapsed_s,
        voluntary_switches_per_second: switches as f64 / elapsed_s,
        memory_before: first.memory,
        memory_most: all.max_by_key(|memory| memory.resident)?,
        memory_after: last.memory,
    })
}

fn store(samples: &[Sample]) -> Option<StoreFigures> {
    let seen: Vec<(f64, &Counts)> =
        samples.iter().filter_map(|sample| Some((sample.at_s, sample.counts.as_ref()?))).collect();
    let elapsed_s = seen.last()?.0 - seen.first()?.0;
    if elapsed_s <= 0.0 {
        return None;
    }
    let mut sum = Counts::default();
    for pair in seen.windows(2) {
        sum.add(&pair[1].1.since(pair[0].1));
    }
    let (commit_p50_us, _) = quantile(&sum, 0.5);
    let (commit_p99_us, commit_p99_within_us) = quantile(&sum, 0.99);
    let per_commit = |of: f64| if sum.commits == 0 { 0.0 } else { of / sum.commits as f64 };
    Some(StoreFigures {
        commits: sum.commits,
        commits_per_second: sum.commits as f64 / elapsed_s,
        entries_per_commit: per_commit(sum.entries as f64),
        commit_mean_us: per_commit(sum.commit_seconds * 1e6),
        commit_p50_us,
        commit_p99_us,
        commit_p99_within_us,
        busy: sum.commit_seconds / elapsed_s,
        behind: sum.behind,
        outbox_bytes_most: sum.outbox_bytes,
    })
}

/// A quantile of the time of commits, in microseconds, a straight line within the bucket that it lies
/// in, and the bounds of that. In the last one, which has no upper bound, it is the lower bound.
fn quantile(counts: &Counts, quantile: f64) -> (f64, (u64, Option<u64>)) {
    let wanted = counts.commits as f64 * quantile;
    let (mut below_us, mut below) = (0, 0);
    for (&bound_us, &within) in &counts.commits_within_us {
        if within as f64 >= wanted && within > below {
            let share = (wanted - below as f64) / (within - below) as f64;
            let quantile_us = below_us as f64 + share * (bound_us - below_us) as f64;
            return (quantile_us, (below_us, Some(bound_us)));
        }
        (below_us, below) = (bound_us, within);
    }
    (below_us as f64, (below_us, None))
}

fn disk(samples: &[Sample], elapsed_s: f64, commits: Option<f64>) -> Option<DiskFigures> {
    let (first, last) = (samples.first()?.disk?, samples.last()?.disk?);
    let per_second = |last: u64, first: u64| last.saturating_sub(first) as f64 / elapsed_s;
    let flushes = last.flushes.map(|last| per_second(last, first.flushes.unwrap_or(0)));
    Some(DiskFigures {
        bytes_per_second: per_second(last.bytes, first.bytes),
        writes_per_second: per_second(last.writes, first.writes),
        flushes_per_second: flushes,
        flushes_per_commit: flushes
            .zip(commits.filter(|commits| *commits > 0.0))
            .map(|(flushes, commits)| flushes / commits),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::disk::DiskCounts;
    use super::*;

    fn sample(at_s: f64, commits: u64, flushes: u64) -> Sample {
        let cpu = Cpu { user: at_s * 0.5, system: at_s * 0.25 };
        Sample {
            at_s,
            devices: None,
            relay: Some(RelaySample {
                memory: Memory { resident: 1000 + at_s as u64, anonymous: 500 },
                cpu,
                voluntary_switches: at_s as u64 * 100,
            }),
            counts: Some(Counts {
                commits,
                entries: commits * 4,
                commit_seconds: commits as f64 * 0.001,
                commits_within_us: BTreeMap::from([(500, commits / 2), (1000, commits)]),
                ..Counts::default()
            }),
            disk: Some(DiskCounts { writes: flushes, bytes: 0, flushes: Some(flushes + 1) }),
            tester: Cpu { user: at_s * 0.1, system: 0.0 },
            machine: at_s * 0.9,
        }
    }

    #[test]
    fn figures_are_differences_over_the_part_that_is_asked_for() {
        let samples = vec![sample(0.0, 0, 0), sample(1.0, 100, 100), sample(3.0, 500, 500)];
        let server =
            Timeline { samples, marks: Vec::new() }.between(0.5, 3.5).expect("two samples");
        let store = server.store.expect("counts");
        assert_eq!(store.commits, 400);
        assert!((store.commits_per_second - 200.0).abs() < 1e-9);
        assert!((store.entries_per_commit - 4.0).abs() < 1e-9);
        assert!((store.commit_p50_us - 500.0).abs() < 1e-9);
        assert!((store.commit_p99_us - 990.0).abs() < 1e-9);
        assert_eq!(store.commit_p99_within_us, (500, Some(1000)));
        let relay = server.relay.expect("a process");
        assert!((relay.cores_user - 0.5).abs() < 1e-9);
        assert!((relay.voluntary_switches_per_second - 100.0).abs() < 1e-9);
        assert!((server.other_cores.expect("a process") - 0.05).abs() < 1e-9);
        assert_eq!(server.warnings(), Vec::<String>::new());
    }

    #[test]
    fn a_relay_that_was_started_anew_counts_on() {
        let mut samples = vec![sample(0.0, 0, 0), sample(1.0, 100, 100), sample(2.0, 30, 130)];
        if let Some(relay) = &mut samples[2].relay {
            relay.cpu = Cpu { user: 0.1, system: 0.1 };
            relay.voluntary_switches = 5;
        }
        let server = Timeline { samples, marks: Vec::new() }.between(0.0, 2.0).expect("samples");
        assert_eq!(server.store.expect("counts").commits, 130);
        let relay = server.relay.expect("a process");
        assert!((relay.cores_user - 0.3).abs() < 1e-9);
        assert!((relay.voluntary_switches_per_second - 52.5).abs() < 1e-9);
    }

    #[test]
    fn a_disk_that_was_not_flushed_is_named() {
        let samples = vec![sample(0.0, 0, 0), sample(2.0, 1000, 20)];
        let server =
            Timeline { samples, marks: Vec::new() }.between(0.0, 2.0).expect("two samples");
        assert!(server.warnings()[0].starts_with("not durable"), "{:?}", server.warnings());
    }

    #[test]
    fn one_sample_says_nothing() {
        assert!(
            Timeline { samples: vec![sample(0.0, 0, 0)], marks: Vec::new() }
                .between(0.0, 1.0)
                .is_none()
        );
        assert!(Timeline::default().between(0.0, 1.0).is_none());
    }
}
