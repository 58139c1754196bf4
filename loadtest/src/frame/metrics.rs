//! What the relay counts, read from its operator's listener like any other operator does.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use ureq::Agent;
use ureq::http::Uri;

/// How long the relay may take to answer. One that takes longer is busy or stopped, and there is no
/// sample.
const ANSWER_DEADLINE: Duration = Duration::from_millis(500);

const ENTRIES: &str = "sealwire_commit_entries";
const COMMITS: &str = "sealwire_commit_seconds";

/// The operator's listener of a relay on this machine.
#[derive(Clone)]
pub(crate) struct Operator {
    agent: Agent,
    url: String,
}

/// What the relay has counted since it started.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Counts {
    pub(crate) commits: u64,
    /// Entries in these commits.
    pub(crate) entries: u64,
    /// Time that these commits took, in seconds: time in the database.
    pub(crate) commit_seconds: f64,
    /// Commits by the upper bound of their time, in microseconds; each holds those below.
    pub(crate) commits_within_us: BTreeMap<u64, u64>,
    /// Subscriptions that became behind.
    pub(crate) behind: u64,
    /// Refusals that were sent.
    pub(crate) refusals: u64,
    /// Bytes in all outboxes.
    pub(crate) outbox_bytes: u64,
    /// Sessions open now.
    pub(crate) sessions: u64,
}

impl Counts {
    /// What was counted since `before`; all of it, if the relay was started meanwhile.
    pub(crate) fn since(&self, before: &Self) -> Self {
        if self.commits < before.commits || self.behind < before.behind {
            return self.clone();
        }
        let mut since = self.clone();
        since.commits -= before.commits;
        since.entries = self.entries.saturating_sub(before.entries);
        since.commit_seconds = (self.commit_seconds - before.commit_seconds).max(0.0);
        since.behind -= before.behind;
        since.refusals = self.refusals.saturating_sub(before.refusals);
        for (bound, commits) in &mut since.commits_within_us {
            let known = before.commits_within_us.get(bound).copied().unwrap_or(0);
            *commits = commits.saturating_sub(known);
        }
        since
    }

    /// Adds what was counted next to each other.
    pub(crate) fn add(&mut self, later: &Self) {
        self.commits += later.commits;
        self.entries += later.entries;
        self.commit_seconds += later.commit_seconds;
        self.behind += later.behind;
        self.refusals += later.refusals;
        self.outbox_bytes = self.outbox_bytes.max(later.outbox_bytes);
        for (bound, commits) in &later.commits_within_us {
            *self.commits_within_us.entry(*bound).or_default() += commits;
        }
    }
}

impl Operator {
    pub(crate) fn at(url: &str) -> Result<Self> {
        let uri: Uri = url.parse().context("the operator's listener")?;
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let on_this_machine = host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        ensure!(
            on_this_machine && uri.scheme_str() == Some("http"),
            "the operator's listener is on this machine: http://127.0.0.1:4001"
        );
        let agent = Agent::config_builder()
            .timeout_global(Some(ANSWER_DEADLINE))
            .proxy(None)
            .build()
            .new_agent();
        Ok(Self { agent, url: url.trim_end_matches('/').to_owned() })
    }

    /// Whether the relay says that it can append.
    pub(crate) fn is_ready(&self) -> bool {
        self.agent.get(format!("{}/ready", self.url)).call().is_ok()
    }

    /// What it has counted; none if it does not answer.
    pub(crate) fn counts(&self) -> Option<Counts> {
        let mut answer = self.agent.get(format!("{}/metrics", self.url)).call().ok()?;
        Some(parse(&answer.body_mut().read_to_string().ok()?))
    }
}

/// Reads Prometheus' text format, as far as it is looked at here. Labels are summed up.
fn parse(text: &str) -> Counts {
    let mut counts = Counts::default();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, value)) = line.rsplit_once(' ') else { continue };
        let Ok(value) = value.parse::<f64>() else { continue };
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let whole = value as u64;
        match name.strip_prefix(COMMITS).or_else(|| name.strip_prefix(ENTRIES)) {
            Some("_count") if name.starts_with(COMMITS) => counts.commits += whole,
            Some("_sum") if name.starts_with(COMMITS) => counts.commit_seconds += value,
            Some("_sum") => counts.entries += whole,
            Some("_bucket") if name.starts_with(COMMITS) => {
                if let Some(bound) = upper_bound(labels) {
                    *counts.commits_within_us.entry(bound).or_default() += whole;
                }
            }
            Some(_) | None => match name {
                "sealwire_behind_total" => counts.behind += whole,
                "sealwire_errors_sent_total" => counts.refusals += whole,
                "sealwire_outbox_bytes" => counts.outbox_bytes += whole,
                "sealwire_sessions" => counts.sessions += whole,
                _ => {}
            },
        }
    }
    counts
}

/// The upper bound of a bucket, in microseconds; none for the one that has no bound.
fn upper_bound(labels: &str) -> Option<u64> {
    let (_, rest) = labels.split_once("le=\"")?;
    let seconds: f64 = rest.split_once('"')?.0.parse().ok()?;
    seconds.is_finite().then(|| (seconds * 1e6).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_relay_counts_is_read_and_labels_are_summed_up() {
        let text = "# HELP sealwire_sessions Sessions open now.\n\
            sealwire_sessions 7\n\
            sealwire_errors_sent_total{code=\"quota\"} 2\n\
            sealwire_errors_sent_total{code=\"unavailable\"} 3\n\
            sealwire_commit_seconds_bucket{le=\"0.0005\"} 4\n\
            sealwire_commit_seconds_bucket{le=\"+Inf\"} 9\n\
            sealwire_commit_seconds_sum 1.5\n\
            sealwire_commit_seconds_count 9\n\
            sealwire_commit_entries_sum 450\n\
            sealwire_commit_entries_count 9\n";
        let counts = parse(text);
        assert_eq!((counts.sessions, counts.refusals), (7, 5));
        assert_eq!((counts.commits, counts.entries), (9, 450));
        assert!((counts.commit_seconds - 1.5).abs() < f64::EPSILON);
        assert_eq!(counts.commits_within_us, BTreeMap::from([(500, 4)]));
    }

    #[test]
    fn only_a_listener_on_this_machine_is_asked() {
        assert!(Operator::at("http://127.0.0.1:4001").is_ok());
        assert!(Operator::at("http://[::1]:4001/").is_ok());
        for url in ["http://192.0.2.1:4001", "https://127.0.0.1", "http://relay.example", "x"] {
            assert!(Operator::at(url).is_err(), "{url}");
        }
    }
}
