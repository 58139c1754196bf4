//! A burst: each group's writer posts its payloads, when they are due or as fast as they are answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use hyper::Method;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::Arguments;
use super::groups::Group;
use crate::frame::relay::Relay;
use crate::frame::sampler::Sampler;
use crate::frame::timeline::Timeline;
use crate::group::random_body;
use crate::latency::{Latencies, Percentiles};
use crate::limits::SECONDS_MAX;
use crate::phones::http::Answer;
use crate::process::machine_ns;
use crate::tally::{Tally, Unsaid};
use crate::{pace, progress};

/// What one burst has shown. Times are in nanoseconds.
pub(super) struct Burst {
    /// When it began, by the machine's own clock.
    pub(super) began_ns: u64,
    pub(super) seconds: f64,
    /// When the first payload of each group was answered, by the machine's own clock.
    pub(super) first: BTreeMap<String, u64>,
    answers: Vec<Answered>,
}

/// A payload that was answered.
#[derive(Clone, Copy)]
struct Answered {
    /// When it was due, after the beginning of the burst.
    due_ns: u64,
    took_ns: u64,
}

/// What one writer has seen.
struct Written {
    group: Group,
    first_ns: u64,
    answers: Vec<Answered>,
}

impl Burst {
    /// From when a payload was due until it was answered, of those that were due before.
    pub(super) fn before(&self, due_ns: u64) -> Percentiles {
        let latencies = Latencies::new();
        latencies.record(&mut self.durations(due_ns));
        latencies.percentiles()
    }

    /// The same durations, one by one.
    pub(super) fn durations(&self, due_ns: u64) -> Vec<u64> {
        let due = self.answers.iter().filter(|answer| answer.due_ns < due_ns);
        due.map(|answer| answer.took_ns).collect()
    }
}

/// Runs a burst. Gives the groups back.
pub(super) async fn run(
    arguments: &Arguments,
    relay: &Relay,
    groups: Vec<Group>,
) -> Result<(Vec<Group>, Burst, Timeline)> {
    let seconds = match u64::from(arguments.rate) {
        0 => SECONDS_MAX,
        rate => (arguments.total() as u64).div_ceil(rate),
    };
    let tally = Arc::new(Tally::new(0, seconds));
    let (mut writers, mut ticks) = (JoinSet::new(), Vec::new());
    let blob = hex::encode(random_body(arguments.body)?);
    let (began_ns, began) = (machine_ns(), tally.began());
    for group in groups {
        let due = (arguments.rate > 0).then(|| {
            let (tick, due) = mpsc::channel(pace::TICKS_MAX);
            ticks.push(tick);
            due
        });
        writers.spawn(write(group, arguments.payloads, blob.clone(), due, tally.clone()));
    }
    let length = Duration::from_secs(if arguments.rate > 0 { seconds } else { 0 });
    let sampler = Sampler::begin(relay, Some(tally.clone()), length);
    let pacer = (arguments.rate > 0).then(|| pace::start(arguments.rate, ticks, &tally));
    let bar = progress::bar(arguments.groups as u64, "bursts");
    let (mut groups, mut first, mut answers) = (Vec::new(), BTreeMap::new(), Vec::new());
    while let Some(written) = writers.join_next().await {
        let written = written.context("a phone has panicked")??;
        first.insert(written.group.id.clone(), written.first_ns);
        answers.extend(written.answers);
        groups.push(written.group);
        bar.inc(1);
    }
    let seconds = began.elapsed().as_secs_f64();
    bar.finish_and_clear();
    if let Some(pacer) = pacer {
        let ended = tokio::task::spawn_blocking(move || pacer.join()).await?;
        ended.map_err(|_| anyhow!("the pacer has panicked"))?;
    }
    Ok((groups, Burst { began_ns, seconds, first, answers }, sampler.end()?))
}

async fn write(
    mut group: Group,
    payloads: usize,
    blob: String,
    mut due: Option<mpsc::Receiver<u64>>,
    tally: Arc<Tally>,
) -> Result<Written> {
    let path = format!("/groups/{}/payloads", group.id);
    let payload = json!({ "encryptedBlob": blob, "kind": "expense" });
    let (mut answers, mut first) = (Vec::with_capacity(payloads), None);
    for _ in 0..payloads {
        let due_ns = match &mut due {
            Some(due) => due.recv().await.context("the pacer has ended too soon")?,
            None => tally.now(),
        };
        while let Answer::Later(wait) = group.writer.call(Method::POST, &path, &payload).await? {
            tally.refused();
            sleep(wait).await;
        }
        let now = tally.now();
        first.get_or_insert_with(machine_ns);
        answers.push(Answered { due_ns, took_ns: now.saturating_sub(due_ns) });
        let mut unsaid = Unsaid::default();
        tally.appended(&mut unsaid, due_ns, now);
        tally.add(&mut unsaid);
    }
    Ok(Written { group, first_ns: first.context("a group has payloads")?, answers })
}
