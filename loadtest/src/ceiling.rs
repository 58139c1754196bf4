//! What this machine does at best, in the same shape as a measurement: the disk alone, WebSockets
//! alone, handshakes and sessions alone, and the relay's store alone.
//!
//! What a relay reaches is told as a ratio to these, and a ratio can be compared from one machine to
//! another.

mod best;
mod disk;
mod fan_out;
pub(crate) mod raw;
mod session;
#[cfg(feature = "ceiling")]
mod store;
mod stream;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use sealwire_protocol::limits::{BODY_BYTES_MAX, IN_FLIGHT_REQUESTS_MAX};
use serde::Serialize;

pub(crate) use self::best::Best;
use self::disk::Disk;
use self::fan_out::FanOut;
use self::session::Sessions;
use self::store::Committed;
use self::stream::Streams;
use crate::limits::{DEVICES_MAX, MEMBERS_MAX, SECONDS_MAX};
use crate::progress;
use crate::report::{self, Against, Document, Figures, Line, Measure, Run, Unit, line};

#[cfg(not(feature = "ceiling"))]
mod store {
    //! A build that does not know the relay's store: there is no ceiling of it.

    use std::path::Path;
    use std::time::Duration;

    use anyhow::Result;

    use super::Shape;
    use crate::report::{Line, Measure};

    /// Nothing of this is ever made.
    #[derive(serde::Serialize)]
    pub(super) enum Committed {}

    impl Committed {
        pub(super) fn entries_per_second(&self, _acked: bool) -> f64 {
            match *self {}
        }

        pub(super) fn lines(&self) -> Vec<Line> {
            match *self {}
        }

        pub(super) fn measures(&self) -> Vec<Measure> {
            match *self {}
        }
    }

    pub(super) async fn measure(
        _shape: &Shape,
        _url: Option<&str>,
        _directory: &Path,
        _time: Duration,
    ) -> Result<Option<Committed>> {
        Ok(None)
    }
}

/// Share of the time that the disk takes to keep 8 KiB, below which a commit has not waited for it.
const DURABLE_SHARE: f64 = 0.5;

/// Most messages in a row.
const MESSAGES_MAX: usize = 1_000_000;

/// What a load is made of.
#[derive(Clone, Copy, Debug, Args, Serialize)]
pub(crate) struct Shape {
    /// Logs that the entries are spread over.
    #[arg(long, default_value_t = 250)]
    pub(crate) groups: usize,
    /// Members of each.
    #[arg(long, default_value_t = 4)]
    pub(crate) members: usize,
    /// Length of each body, in bytes.
    #[arg(long, default_value_t = 1024)]
    pub(crate) body: usize,
    /// Entries of one log in a commit, and under way: what the senders of a saturated relay have.
    #[arg(long, default_value_t = 8)]
    pub(crate) per_log: usize,
    /// Entries in one commit; by default as many as the relay puts into one.
    #[arg(long)]
    pub(crate) batch: Option<usize>,
    /// Connections that are sent messages in a row at the same time: devices that were away.
    #[arg(long, default_value_t = 1)]
    pub(crate) readers: usize,
    /// Messages that wait for each of these.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) messages: usize,
}

impl Shape {
    /// Groups that talk, and one device that was away.
    pub(crate) fn talk(groups: usize, members: usize, body: usize, per_log: usize) -> Self {
        Self { groups, members, body, per_log, batch: None, readers: 1, messages: 10_000 }
    }
}

/// What `ceiling` is asked to do.
#[derive(Args, Serialize)]
pub(crate) struct Arguments {
    /// A database that may be filled: `sqlite:PATH` of a file that does not exist, or `postgres://…`.
    /// By default a new SQLite file.
    #[arg(long)]
    #[serde(skip)]
    database_url: Option<String>,
    /// A directory on the database's disk, for the store's own files and to measure the disk in. By
    /// default where the system keeps what is temporary.
    #[arg(long)]
    directory: Option<PathBuf>,
    #[command(flatten)]
    shape: Shape,
    /// Seconds that are measured, of each.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// What `append --json` wrote: its highest rate is told as a share of this ceiling.
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Also write everything to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    json: Option<PathBuf>,
}

/// What this machine does at best.
#[derive(Serialize)]
pub(crate) struct Ceilings {
    disk: Disk,
    fan_out: FanOut,
    streams: Streams,
    sessions: Sessions,
    /// None of a build without the feature `ceiling`.
    store: Option<Committed>,
    /// Share of the store's ceiling that a run of `append` has reached.
    share: Option<f64>,
}

/// Measures the ceilings once, and reports.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let shape = &arguments.shape;
    ensure!(shape.body <= BODY_BYTES_MAX, "a body has at most {BODY_BYTES_MAX} bytes");
    ensure!(
        (1..=IN_FLIGHT_REQUESTS_MAX).contains(&shape.per_log),
        "a log has an entry in a commit"
    );
    ensure!((2..=MEMBERS_MAX).contains(&shape.members), "2 to {MEMBERS_MAX} members");
    ensure!(shape.groups > 0 && shape.groups * shape.members <= DEVICES_MAX, "too many devices");
    ensure!((1..MEMBERS_MAX).contains(&shape.readers), "1 to {} readers", MEMBERS_MAX - 1);
    ensure!((1..=MESSAGES_MAX).contains(&shape.messages), "1 to {MESSAGES_MAX} messages");
    ensure!((1..=SECONDS_MAX).contains(&arguments.seconds), "1 to {SECONDS_MAX} seconds");
    let reached = arguments.against.as_deref().map(reached).transpose()?;
    let (reached, acked) = reached.unzip();
    let acked = acked.unwrap_or_default();
    let time = Duration::from_secs(arguments.seconds);
    let (url, directory) = (arguments.database_url.as_deref(), arguments.directory.as_deref());
    let mut ceilings = Ceilings::measure(shape, url, directory, time).await?;
    let store = ceilings.store.as_ref().map(|store| store.entries_per_second(acked));
    ceilings.share = reached.zip(store).map(|(reached, store)| reached / store);
    let runs = [Run::new(ceilings, None)];
    let document = Document {
        scenario: "ceiling",
        command: "ceiling",
        arguments,
        relay: None,
        ceilings: None,
        runs: &runs,
    };
    report::publish(&document, arguments.json.as_deref(), None)
}

/// The highest rate in a result of `append`, and whether there was anybody to ack.
fn reached(path: &Path) -> Result<(f64, bool)> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let run: serde_json::Value = serde_json::from_str(&text).context("not JSON")?;
    let steps = run["runs"][0]["figures"]["steps"].as_array();
    let steps = steps.into_iter().flatten().filter_map(|step| {
        let acked = !step["push_to_deliver"].is_null();
        Some((step["appended_per_second"].as_f64()?, acked))
    });
    steps.max_by(|one, other| one.0.total_cmp(&other.0)).context("not a result of `append`")
}

impl Ceilings {
    /// Of a load of this shape, each for so long.
    pub(crate) async fn measure(
        shape: &Shape,
        url: Option<&str>,
        directory: Option<&Path>,
        time: Duration,
    ) -> Result<Self> {
        let parent = directory.map_or_else(std::env::temp_dir, Path::to_owned);
        std::fs::create_dir_all(&parent).context("the directory")?;
        let directory = tempfile::Builder::new().prefix("sealwire-ceiling.").tempdir_in(parent)?;

        let line = progress::wait("the disk alone");
        let path = directory.path().to_owned();
        let disk = tokio::task::spawn_blocking(move || disk::measure(&path, time)).await??;
        line.finish_and_clear();
        let line = progress::wait("WebSockets alone");
        let fan_out = fan_out::measure(shape, time).await?;
        line.finish_and_clear();
        let line = progress::wait("messages in a row alone");
        let streams = stream::measure(shape, time).await?;
        line.finish_and_clear();
        let line = progress::wait("handshakes and sessions alone");
        let sessions = session::measure(time / 2).await?;
        line.finish_and_clear();
        let line = progress::wait("the store alone");
        let store = store::measure(shape, url, directory.path(), time).await?;
        line.finish_and_clear();
        Ok(Self { disk, fan_out, streams, sessions, store, share: None })
    }

    /// Whether this build has measured the store.
    pub(crate) fn knows_store(&self) -> bool {
        self.store.is_some()
    }

    /// Why commits that take so long cannot all be durable; nothing if they can.
    pub(crate) fn doubt(&self, commit_us: f64) -> Option<String> {
        let disk_us = self.disk.overwrite.p50_us;
        (commit_us < disk_us * DURABLE_SHARE).then(|| {
            format!(
                "not durable: a commit took {}, and the disk alone takes {} to keep 8 KiB",
                report::duration(commit_us),
                report::duration(disk_us)
            )
        })
    }
}

impl Figures for Ceilings {
    fn lines(&self) -> Vec<Line> {
        let mut lines = vec![
            line("8 KiB more, fdatasync", report::percentiles(&self.disk.append)),
            line("8 KiB over, fdatasync", report::percentiles(&self.disk.overwrite)),
        ];
        let per_second = self.disk.bytes_per_second;
        lines.push(line("many bytes", report::quantity(per_second, Unit::BytesPerSecond.name())));
        lines.extend(self.fan_out.lines());
        lines.extend(self.streams.lines());
        lines.extend(self.sessions.lines());
        match &self.store {
            Some(store) => lines.extend(store.lines()),
            None => lines.push(line("the store alone", "not in this build: feature `ceiling`")),
        }
        if let Some(share) = self.share {
            lines.push(line("reached through a relay", format!("{:.1} %", share * 100.0)));
        }
        lines
    }

    fn measures(&self) -> Vec<Measure> {
        let itself = |_| Against::Itself;
        let mut measures = Measure::latencies("8 KiB more, fdatasync", &self.disk.append, itself);
        let overwrite = &self.disk.overwrite;
        measures.extend(Measure::latencies("8 KiB over, fdatasync", overwrite, itself));
        let per_second = self.disk.bytes_per_second;
        measures.push(Measure::higher(
            "many bytes to the disk",
            Unit::BytesPerSecond,
            per_second,
            Against::Itself,
        ));
        measures.extend(self.fan_out.measures());
        measures.extend(self.streams.measures());
        measures.extend(self.sessions.measures());
        measures.extend(self.store.iter().flat_map(Committed::measures));
        measures
    }
}
