//! What stands around every measurement: a relay, samples of it, repetitions, and a report.
//!
//! A measurement is given a relay and says what its devices saw; everything else is here, so that all
//! of them are run, sampled and reported in the same way.
//!
//! Holds always:
//! - a relay that was started here is stopped here, however the measurement ends;
//! - nothing is measured while the system still writes out what came before, of other programs or of a
//!   ceiling: it would wait behind that at the disk.

pub(crate) mod disk;
pub(crate) mod metrics;
pub(crate) mod relay;
pub(crate) mod sampler;
pub(crate) mod scenario;
pub(crate) mod tamper;
pub(crate) mod timeline;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{ArgAction, Args, value_parser};
use serde::Serialize;
use tokio::time::timeout;

use self::relay::{About, Relay};
use crate::ceiling::{Ceilings, Shape};
use crate::crowd::on_this_machine;
use crate::limits::{REPEATS_MAX, SECONDS_MAX};
use crate::process::may_open;
use crate::report::{self, Document, Figures, Run};

/// What is said where the store alone was not measured on the relay's kind of database.
const OTHER_STORE: &str = "the relay is on PostgreSQL and the store alone was measured on SQLite: name \
                           an empty database of the server with --ceiling-database";

/// How long the system may take to write out what was left in its memory: some gigabytes.
const WRITE_OUT_DEADLINE: Duration = Duration::from_secs(60);

/// What every measurement can be asked to do.
#[derive(Args, Serialize)]
pub(crate) struct Frame {
    #[command(flatten)]
    pub(crate) target: relay::Target,
    #[command(flatten)]
    pub(crate) tampering: tamper::Tampering,
    /// Measure so many times; a relay that is started here is a new one each time.
    #[arg(long, default_value_t = 1)]
    pub(crate) repeat: usize,
    /// Before that, measure what this machine does at best in the same shape, and tell every figure as a
    /// ratio to it; `--ceilings=false` leaves that out.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "true")]
    pub(crate) ceilings: bool,
    /// With --ceilings: a database that may be filled, of the kind that the relay has. By default a
    /// new SQLite file.
    #[arg(long, value_name = "URL")]
    #[serde(skip)]
    pub(crate) ceiling_database: Option<String>,
    /// With --ceilings: seconds that are measured, of each.
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..=SECONDS_MAX))]
    pub(crate) ceiling_seconds: u64,
    /// Also write everything to this file, as JSON: what `compare` reads.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) json: Option<PathBuf>,
    /// Also write a page with plots to this file.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(crate) html: Option<PathBuf>,
    /// Name of the scenario, as it stands in the report; set by `run`.
    #[arg(long, hide = true)]
    pub(crate) scenario: Option<String>,
}

/// A measurement with its frame: the arguments of one subcommand.
#[derive(Args, Serialize)]
pub(crate) struct Framed<M: Args> {
    #[command(flatten)]
    frame: Frame,
    #[command(flatten)]
    #[serde(flatten)]
    measurement: M,
}

/// Something that can be measured of a relay.
pub(crate) trait Measurement: Args + Serialize {
    /// Name of the subcommand.
    const NAME: &'static str;

    /// What it has seen.
    type Measured: Figures;

    /// The shape of its load: what the machine does at best is measured in the same.
    fn shape(&self) -> Shape;

    /// Most connections that this process has at the same time; none of a crowd that is spread over
    /// several processes where it is too large for one.
    fn connections(&self) -> usize;

    /// Refuses arguments that make no sense, before anything is started.
    fn check(&self) -> Result<()>;

    /// Measures this relay once.
    async fn measure(&self, relay: &mut Relay) -> Result<Self::Measured>;
}

/// What a measurement has seen of a relay, and what stands beside it.
pub(crate) struct Taken<F> {
    relay: Option<About>,
    /// If they were asked for.
    pub(crate) ceilings: Option<Ceilings>,
    /// As many as were asked for.
    pub(crate) runs: Vec<Run<F>>,
}

/// Runs a measurement as often as it was asked for, and reports.
pub(crate) async fn run<M: Measurement>(framed: &Framed<M>) -> Result<()> {
    let taken = Box::pin(take(framed)).await?;
    let Frame { json, html, .. } = &framed.frame;
    report::publish(&framed.document(&taken), json.as_deref(), html.as_deref())
}

/// Runs a measurement as often as it was asked for.
pub(crate) async fn take<M: Measurement>(framed: &Framed<M>) -> Result<Taken<M::Measured>> {
    let Framed { frame, measurement } = framed;
    ensure!((1..=REPEATS_MAX).contains(&frame.repeat), "1 to {REPEATS_MAX} repetitions");
    measurement.check()?;
    on_this_machine(&frame.target.url)?;
    may_open(measurement.connections())?;
    let mut ceilings = None;
    if frame.ceilings {
        let (url, directory) = (frame.ceiling_database.as_deref(), frame.target.directory());
        let time = Duration::from_secs(frame.ceiling_seconds);
        let shape = measurement.shape();
        write_out().await;
        ceilings = Some(Box::pin(Ceilings::measure(&shape, url, directory, time)).await?);
    }
    let mut runs = Vec::with_capacity(frame.repeat);
    let mut about = None;
    for _ in 0..frame.repeat {
        write_out().await;
        let mut relay = Relay::reach(&frame.target).await?;
        about = Some(relay.about());
        let _proxy = frame.tampering.begin(&mut relay).await?;
        let measured = Box::pin(measurement.measure(&mut relay)).await;
        let mut said = relay.warnings();
        let other_store = frame.ceiling_database.is_none() && relay.about().is_on_postgres();
        if other_store && ceilings.as_ref().is_some_and(Ceilings::knows_store) {
            said.push(OTHER_STORE.to_owned());
        }
        // What the measurement has to say comes first.
        let stopped = relay.stop().await.context("stopping the relay");
        runs.push(Run::new(measured?, ceilings.as_ref()).with_warnings(said));
        stopped?;
    }
    Ok(Taken { relay: about, ceilings, runs })
}

/// Has the system write out what was left in its memory.
async fn write_out() {
    let writing = tokio::task::spawn_blocking(rustix::fs::sync);
    // What takes longer is measured as it is; no answer but that there is.
    let _ = timeout(WRITE_OUT_DEADLINE, writing).await;
}

impl<M: Measurement> Framed<M> {
    /// What a report of it is made of.
    pub(crate) fn document<'a>(
        &'a self,
        taken: &'a Taken<M::Measured>,
    ) -> Document<'a, Self, M::Measured> {
        Document {
            scenario: self.frame.scenario.as_deref().unwrap_or(M::NAME),
            command: M::NAME,
            arguments: self,
            relay: taken.relay.clone(),
            ceilings: taken.ceilings.as_ref(),
            runs: &taken.runs,
        }
    }
}
