//! What the store does at best, without a relay: the relay's own statements in full batches, and the
//! disk alone.
//!
//! This is the one part of the load tester that knows the relay from inside: it opens the relay's
//! store, with the relay's code, and does nothing with it but what a committer does at saturation.
//! What a relay reaches through sockets and actors is a share of this.

mod batches;
mod disk;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use sealwire::store::{self, Lock, StoreOptions};
use sealwire_actors::limits::{COMMIT_BYTES_MAX, COMMIT_ENTRIES_MAX};
use sealwire_actors::ports::{CommitResult, Store};
use sealwire_protocol::limits::BODY_BYTES_MAX;
use serde::Serialize;
use tokio::sync::mpsc;

use self::batches::{Batches, Shape};
use crate::latency::{Latencies, Percentiles};
use crate::limits::SECONDS_MAX;
use crate::progress;
use crate::report::{self, Document, Figures, Line, Measure, Run, line};

/// How long the store may take to close, with all that it has gathered.
const CLOSE_DEADLINE: Duration = Duration::from_secs(30);

/// Batches that wait for a committer, made ahead so that it never waits for them.
const BATCHES_AHEAD: usize = 2;

/// What `ceiling` is asked to do.
#[derive(Args, Serialize)]
pub(crate) struct Arguments {
    /// A database that may be filled: `sqlite:PATH` of a file that does not exist, or `postgres://…`.
    #[arg(long)]
    #[serde(skip)]
    database_url: String,
    /// A directory for the store's own files, and to measure the disk in: on the disk of the
    /// database. Made if it is not there.
    #[arg(long)]
    directory: PathBuf,
    /// Logs that the entries are spread over.
    #[arg(long, default_value_t = 250)]
    groups: usize,
    /// Length of each body, in bytes.
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// Entries in one commit; by default as many as the relay puts into one.
    #[arg(long, default_value_t = COMMIT_ENTRIES_MAX)]
    batch: usize,
    /// Entries of one log in a commit. In a saturated relay these are what its senders have under way.
    #[arg(long, default_value_t = 8)]
    per_log: usize,
    /// Seconds that are measured, of the store and of the disk each.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// What `append --json` wrote: its highest rate is told as a share of this ceiling.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Also write everything to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) json: Option<PathBuf>,
}

/// What `ceiling` has seen.
#[derive(Serialize)]
pub(crate) struct Measured {
    /// `fdatasync` of 8 KiB that make a file longer.
    append_and_sync: Percentiles,
    /// `fdatasync` of 8 KiB over what was there.
    overwrite_and_sync: Percentiles,
    /// How many committers the store allows.
    committers: usize,
    commits_per_second: f64,
    entries_per_second: f64,
    commit: Percentiles,
    /// Share of this ceiling that a run of `append` has reached.
    share: Option<f64>,
}

/// Measures the ceiling once, and reports.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let runs = [Run::new(measure(arguments).await?)];
    let document =
        Document { scenario: "ceiling", command: "ceiling", arguments, relay: None, runs: &runs };
    report::publish(&document, arguments.json.as_deref())
}

async fn measure(arguments: &Arguments) -> Result<Measured> {
    ensure!(arguments.body <= BODY_BYTES_MAX, "a body has at most {BODY_BYTES_MAX} bytes");
    ensure!(
        (1..=COMMIT_ENTRIES_MAX).contains(&arguments.batch)
            && arguments.batch * arguments.body <= COMMIT_BYTES_MAX,
        "a commit has at most {COMMIT_ENTRIES_MAX} entries and {COMMIT_BYTES_MAX} bytes"
    );
    ensure!(arguments.per_log > 0, "a log in a commit has an entry there");
    ensure!((1..=SECONDS_MAX).contains(&arguments.seconds), "1 to {SECONDS_MAX} seconds");
    let reached = arguments.against.as_deref().map(reached).transpose()?;
    std::fs::create_dir_all(&arguments.directory).context("the directory")?;
    let time = Duration::from_secs(arguments.seconds);

    let line = progress::wait("the disk alone");
    let directory = arguments.directory.clone();
    let disk = tokio::task::spawn_blocking(move || disk::measure(&directory, time)).await??;
    line.finish_and_clear();

    let line = progress::wait("the store alone");
    let options = StoreOptions {
        url: arguments.database_url.clone(),
        data_dir: arguments.directory.clone(),
        lock: Lock::Try,
    };
    let open = store::open(&options).await?;
    let committed = commit(arguments, &open.store(), time).await;
    open.close(CLOSE_DEADLINE).await?;
    let committed = committed?;
    line.finish_and_clear();
    Ok(Measured {
        append_and_sync: disk.append,
        overwrite_and_sync: disk.overwrite,
        committers: committed.committers,
        commits_per_second: committed.commits as f64 / committed.elapsed.as_secs_f64(),
        entries_per_second: committed.entries_per_second,
        commit: committed.latencies.percentiles(),
        share: reached.map(|reached| reached / committed.entries_per_second),
    })
}

/// The rate in a result of `append`.
fn reached(path: &Path) -> Result<f64> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let run: serde_json::Value = serde_json::from_str(&text).context("not JSON")?;
    let steps = run["runs"][0]["figures"]["steps"].as_array();
    let rates = steps.into_iter().flatten().filter_map(|it| it["appended_per_second"].as_f64());
    rates.max_by(f64::total_cmp).context("not a result of `append`")
}

struct Committed {
    committers: usize,
    commits: u64,
    entries_per_second: f64,
    elapsed: Duration,
    latencies: Arc<Latencies>,
}

/// Fills commits for `time`, with as many committers as the store allows.
async fn commit(
    arguments: &Arguments,
    store: &Arc<dyn Store>,
    time: Duration,
) -> Result<Committed> {
    let committers = store.committers();
    ensure!(
        arguments.groups / committers * arguments.per_log >= arguments.batch,
        "{} groups with {} entries each do not fill a commit of each of {committers} committers",
        arguments.groups,
        arguments.per_log
    );
    let latencies = Arc::new(Latencies::new());
    let mut makers = Vec::with_capacity(committers);
    for number in 0..committers {
        let groups =
            arguments.groups / committers + usize::from(number < arguments.groups % committers);
        makers.push(Batches::found(store, groups, Shape::of(arguments)).await?);
    }
    let begin = Instant::now();
    let mut work = tokio::task::JoinSet::new();
    for maker in makers {
        work.spawn(commit_until(store.clone(), maker, begin + time, latencies.clone()));
    }
    let mut commits = 0;
    while let Some(done) = work.join_next().await {
        commits += done??;
    }
    let elapsed = begin.elapsed();
    let entries_per_second = (commits * arguments.batch as u64) as f64 / elapsed.as_secs_f64();
    Ok(Committed { committers, commits, entries_per_second, elapsed, latencies })
}

/// One committer: the next batch is ready when a commit ends. Gives how many it has committed.
async fn commit_until(
    store: Arc<dyn Store>,
    mut maker: Batches,
    end: Instant,
    latencies: Arc<Latencies>,
) -> Result<u64> {
    let (sender, mut batches) = mpsc::channel(BATCHES_AHEAD);
    let making = tokio::task::spawn_blocking(move || {
        // The committer has ended when nobody takes the batch.
        while sender.blocking_send(maker.next()).is_ok() {}
    });
    let mut commits = 0;
    while Instant::now() < end
        && let Some(batch) = batches.recv().await
    {
        let begin = Instant::now();
        let results = store.commit(&batch).await.context("a commit has failed")?;
        let nanoseconds = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        latencies.record(&mut vec![nanoseconds]);
        ensure!(
            results.iter().all(|result| *result == CommitResult::Committed),
            "somebody else has written to the store"
        );
        commits += 1;
    }
    drop(batches);
    making.await?;
    Ok(commits)
}

impl Figures for Measured {
    fn lines(&self) -> Vec<Line> {
        let mut lines = vec![
            line("8 KiB more, fdatasync", report::percentiles(&self.append_and_sync)),
            line("8 KiB over, fdatasync", report::percentiles(&self.overwrite_and_sync)),
            line("entries committed", report::rate(self.entries_per_second)),
            line(
                "commits",
                format!(
                    "{:.1}/s by {} committers: {}",
                    self.commits_per_second,
                    self.committers,
                    report::percentiles(&self.commit)
                ),
            ),
        ];
        if let Some(share) = self.share {
            lines.push(line("reached through a relay", format!("{:.1} %", share * 100.0)));
        }
        lines
    }
    fn measures(&self) -> Vec<Measure> {
        let mut measures = Measure::latencies("8 KiB more, fdatasync", &self.append_and_sync);
        let per_second = self.entries_per_second;
        measures.push(Measure::higher("entries committed", "/s", per_second));
        measures.extend(Measure::latencies("commit", &self.commit));
        measures
    }
}
