//! The store alone: the relay's own statements in full batches, without a relay.
//!
//! This is the one part of the load tester that knows the relay from inside: it opens the relay's
//! store, with the relay's code, and does nothing with it but what a committer does at saturation.

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sealwire::store::{self, Lock, StoreOptions};
use sealwire_actors::limits::{COMMIT_BYTES_MAX, COMMIT_ENTRIES_MAX};
use sealwire_actors::ports::{CommitResult, Store};
use serde::Serialize;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor};
use tokio::sync::mpsc;
use tokio::time::timeout;

use self::batches::Batches;
use super::Shape;
use crate::latency::{Latencies, Percentiles};
use crate::report::{self, Against, Line, Measure, Unit, line};

mod batches;

/// How long the store may take to close, with all that it has gathered.
const CLOSE_DEADLINE: Duration = Duration::from_secs(30);

/// How long a PostgreSQL server may take to write out all that it holds: some gigabytes.
const CHECKPOINT_DEADLINE: Duration = Duration::from_secs(60);

/// Most logs: more than a commit takes entries of, and few enough to be founded at once.
const GROUPS_MAX: usize = 1000;

/// Batches that wait for a committer, made ahead so that it never waits for them.
const BATCHES_AHEAD: usize = 2;

/// What the store did.
#[derive(Serialize)]
pub(super) struct Committed {
    /// How many committers the store allows.
    committers: usize,
    /// Entries alone, as when nobody is connected to receive them.
    #[serde(flatten)]
    appended: Pace,
    /// Entries, and the acks of all other members for those of the commit before, whose bodies go.
    acked: Pace,
}

/// How fast the store was.
#[derive(Serialize)]
struct Pace {
    commits_per_second: f64,
    entries_per_second: f64,
    commit: Percentiles,
}

/// Fills this database, or a new one in this directory.
pub(super) async fn measure(
    shape: &Shape,
    url: Option<&str>,
    directory: &Path,
    time: Duration,
) -> Result<Option<Committed>> {
    let new = || format!("sqlite://{}", directory.join("store.db").display());
    let options = StoreOptions {
        url: url.map_or_else(new, str::to_owned),
        data_dir: directory.to_owned(),
        lock: Lock::Try,
    };
    let open = store::open(&options).await?;
    let shape = &Shape { groups: shape.groups.min(GROUPS_MAX), ..*shape };
    let committed = both(shape, &open.store(), time).await;
    open.close(CLOSE_DEADLINE).await?;
    let server = url.filter(|url| url.starts_with("postgres"));
    if let Some(server) = server.and_then(|url| PgConnectOptions::from_str(url).ok()) {
        // Who may not ask for it measures a server that still has to write.
        let _ = timeout(CHECKPOINT_DEADLINE, write_out(server)).await;
    }
    committed.map(Some)
}

/// Has a server write out what was left in its memory. Otherwise it does so while a relay is measured.
async fn write_out(server: PgConnectOptions) -> Result<(), sqlx::Error> {
    let mut connection = server.connect().await?;
    connection.execute("checkpoint").await?;
    connection.close().await
}

async fn both(shape: &Shape, store: &Arc<dyn Store>, time: Duration) -> Result<Committed> {
    let committers = store.committers().min(shape.groups);
    let appended = commit(shape, store, committers, 0, time).await?;
    let acked = commit(shape, store, committers, shape.members - 1, time).await?;
    Ok(Committed { committers, appended, acked })
}

impl Committed {
    /// With acks and deletions, or without.
    pub(super) fn entries_per_second(&self, acked: bool) -> f64 {
        if acked { self.acked.entries_per_second } else { self.appended.entries_per_second }
    }

    pub(super) fn lines(&self) -> Vec<Line> {
        let commits = |pace: &Pace| {
            format!(
                "{:.1}/s by {} committers: {}",
                pace.commits_per_second,
                self.committers,
                report::percentiles(&pace.commit)
            )
        };
        vec![
            line("entries committed", report::rate(self.appended.entries_per_second)),
            line("commits", commits(&self.appended)),
            line("and acked, and deleted", report::rate(self.acked.entries_per_second)),
            line("their commits", commits(&self.acked)),
        ]
    }

    pub(super) fn measures(&self) -> Vec<Measure> {
        let [appended, acked] = [&self.appended, &self.acked];
        let higher =
            |name: &str, value| Measure::higher(name, Unit::PerSecond, value, Against::Itself);
        let mut measures = vec![
            higher("entries committed", appended.entries_per_second),
            higher("entries committed and acked", acked.entries_per_second),
        ];
        let itself = |_| Against::Itself;
        measures.extend(Measure::latencies("commit", &appended.commit, itself));
        measures.extend(Measure::latencies("commit with acks", &acked.commit, itself));
        measures
    }
}

/// Fills commits for `time`, with so many committers, for logs with so many members that read.
async fn commit(
    shape: &Shape,
    store: &Arc<dyn Store>,
    committers: usize,
    readers: usize,
    time: Duration,
) -> Result<Pace> {
    // Few groups do not fill a commit of the relay either.
    let at_most = COMMIT_ENTRIES_MAX
        .min(COMMIT_BYTES_MAX / shape.body.max(1))
        .min(shape.groups / committers * shape.per_log);
    let batch = shape.batch.unwrap_or(at_most);
    ensure!(
        (1..=COMMIT_ENTRIES_MAX).contains(&batch) && batch * shape.body <= COMMIT_BYTES_MAX,
        "a commit has at most {COMMIT_ENTRIES_MAX} entries and {COMMIT_BYTES_MAX} bytes"
    );
    ensure!(
        shape.groups / committers * shape.per_log >= batch,
        "{} groups with {} entries each do not fill a commit of each of {committers} committers",
        shape.groups,
        shape.per_log
    );
    let latencies = Arc::new(Latencies::new());
    let mut makers = Vec::with_capacity(committers);
    for number in 0..committers {
        let groups = shape.groups / committers + usize::from(number < shape.groups % committers);
        makers.push(Batches::found(store, groups, shape, batch, readers).await?);
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
    let elapsed_s = begin.elapsed().as_secs_f64();
    Ok(Pace {
        commits_per_second: commits as f64 / elapsed_s,
        entries_per_second: (commits * batch as u64) as f64 / elapsed_s,
        commit: latencies.percentiles(),
    })
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
