//! The same load on other systems that somebody would otherwise pick, side by side in one run.
//!
//! Each is driven through the client library that its users use. Payloads have the same length, groups
//! the same members, and each publish counts from when it was due until the system has answered that it
//! has it. What that answer is worth differs, and the table says so.
//!
//! None of them checks what Sealwire checks: they know no members, no signatures, no chain, and keep
//! no account of who has received what. What is compared is the work of carrying.

mod load;
#[cfg(feature = "mosquitto")]
mod mosquitto;
#[cfg(feature = "nats")]
mod nats;
mod peer;
mod sealwire;
mod server;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use clap::{ArgAction, Args, value_parser};
use sealwire_protocol::limits::{BODY_BYTES_MAX, IN_FLIGHT_REQUESTS_MAX};
use serde::Serialize;

use self::load::Talk;
use self::peer::Peer;
use self::table::{Column, Measured};
use crate::append::Rate;
use crate::ceiling::{Ceilings, Shape};
use crate::limits::{DEVICES_MAX, MEMBERS_MAX, RATES_MAX, SECONDS_MAX};
use crate::process;
use crate::report::{self, Document, Run};

/// What `peers` is asked to do.
#[derive(Args, Serialize)]
pub(crate) struct Arguments {
    /// The relay's program.
    #[arg(long, value_name = "PROGRAM")]
    relay: PathBuf,
    /// The relay's database, an empty one; by default a new SQLite file.
    #[arg(long, value_name = "URL")]
    #[serde(skip)]
    database: Option<String>,
    /// nats-server's program.
    #[cfg(feature = "nats")]
    #[arg(long, value_name = "PROGRAM")]
    nats: Option<PathBuf>,
    /// mosquitto's program.
    #[cfg(feature = "mosquitto")]
    #[arg(long, value_name = "PROGRAM")]
    mosquitto: Option<PathBuf>,
    #[command(flatten)]
    load: Load,
    /// Before that, measure what this machine does at best in the same shape, and tell every figure as a
    /// ratio to it; `--ceilings=false` leaves that out.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "true")]
    ceilings: bool,
    /// Seconds that are measured of each of these.
    #[arg(long, default_value_t = 5, value_parser = value_parser!(u64).range(1..=SECONDS_MAX))]
    ceiling_seconds: u64,
    /// Also write everything to this file, as JSON.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    json: Option<PathBuf>,
    /// Also write a page to this file.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    html: Option<PathBuf>,
}

/// The load that all get.
#[derive(Args, Clone, Serialize)]
struct Load {
    #[arg(long, default_value_t = 250)]
    groups: usize,
    /// Members of each group; one of them sends.
    #[arg(long, default_value_t = 4)]
    members: usize,
    /// Length of each body, in bytes.
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// Publishes of each group that may be under way.
    #[arg(long, default_value_t = 8)]
    in_flight: usize,
    /// Publishes per second that are due in all groups together, one rate after the other; `max` for as
    /// many as the system takes.
    #[arg(long, value_delimiter = ',', default_value = "10,1000,2500,5000,10000,max")]
    rate: Vec<Rate>,
    /// Seconds that are measured, of each rate.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Numbers of silent devices at which memory is read, rising; each is subscribed to three groups.
    #[arg(long, value_delimiter = ',', default_value = "1000,5000,10000")]
    sessions: Vec<usize>,
    /// Length in bytes of what each device sends and receives before it falls silent; 0 for nothing.
    #[arg(long, default_value_t = BODY_BYTES_MAX)]
    silent_body: usize,
    /// Least seconds of silence before memory is read.
    #[arg(long, default_value_t = 15)]
    rest: u64,
    /// Seconds between the disconnect of all and the last look at the memory.
    #[arg(long, default_value_t = 60)]
    after: u64,
    /// Entries that wait for a device that was away.
    #[arg(long, default_value_t = 10_000)]
    entries: usize,
}

/// What one system is measured by.
#[async_trait(?Send)]
trait Contender {
    /// Its name, and its version if it says one.
    fn name(&self) -> String;

    /// What its answer to a publish is worth.
    fn durability(&self) -> &'static str;

    /// As many publishes as it takes, or so many a second.
    async fn talk(&mut self, load: &Load, rate: Rate) -> Result<Talk>;

    /// Bytes of memory per silent device, and the memory after all have left over that before.
    async fn idle(&mut self, load: &Load) -> Result<(f64, f64)>;

    /// Milliseconds from the beginning of reading to the last of the entries that were waiting, of
    /// each reading.
    async fn catch_up(&mut self, load: &Load) -> Result<Vec<f64>>;

    /// Ends it.
    async fn stop(self: Box<Self>) -> Result<()>;
}

/// Measures all of them, and reports.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { load, .. } = arguments;
    check(load)?;
    let mut ceilings = None;
    if arguments.ceilings {
        let talk = Shape::talk(load.groups, load.members, load.body, load.in_flight);
        let shape = Shape { messages: load.entries, ..talk };
        let time = Duration::from_secs(arguments.ceiling_seconds);
        ceilings = Some(Box::pin(Ceilings::measure(&shape, None, None, time)).await?);
    }
    let mut columns = Vec::new();
    let relay = sealwire::start(&arguments.relay, arguments.database.clone()).await?;
    columns.push(measure(relay, &arguments.load).await?);
    #[cfg(feature = "nats")]
    if let Some(program) = &arguments.nats {
        let peer: Box<dyn Peer> = Box::new(nats::start(program).await?);
        columns.push(measure(Box::new(peer), &arguments.load).await?);
    }
    #[cfg(feature = "mosquitto")]
    if let Some(program) = &arguments.mosquitto {
        let peer: Box<dyn Peer> = Box::new(mosquitto::start(program).await?);
        columns.push(measure(Box::new(peer), &arguments.load).await?);
    }
    let runs = [Run::new(Measured::new(columns), ceilings.as_ref())];
    let document = Document {
        scenario: "peers",
        command: "peers",
        arguments,
        relay: None,
        ceilings: ceilings.as_ref(),
        runs: &runs,
    };
    report::publish(&document, arguments.json.as_deref(), arguments.html.as_deref())
}

fn check(load: &Load) -> Result<()> {
    ensure!(
        load.groups > 0 && load.groups * load.members <= DEVICES_MAX,
        "1 to {DEVICES_MAX} devices"
    );
    ensure!((2..=MEMBERS_MAX).contains(&load.members), "2 to {MEMBERS_MAX} members");
    ensure!(
        (load::HEAD_BYTES..=BODY_BYTES_MAX).contains(&load.body),
        "{} to {BODY_BYTES_MAX} bytes",
        load::HEAD_BYTES
    );
    ensure!((1..=IN_FLIGHT_REQUESTS_MAX).contains(&load.in_flight), "publishes under way");
    ensure!((1..=RATES_MAX).contains(&load.rate.len()), "1 to {RATES_MAX} rates");
    ensure!((1..=SECONDS_MAX).contains(&load.seconds), "1 to {SECONDS_MAX} seconds");
    ensure!(load.silent_body <= BODY_BYTES_MAX, "a body has at most {BODY_BYTES_MAX} bytes");
    ensure!(
        load.rest.max(load.after) <= SECONDS_MAX && load.entries > 0,
        "entries, and times of {SECONDS_MAX} seconds at most"
    );
    let rising = load.sessions.windows(2).all(|pair| pair[0] < pair[1]);
    let [first, .., last] = load.sessions[..] else {
        anyhow::bail!("two numbers of sessions at least");
    };
    ensure!(0 < first && rising && last <= DEVICES_MAX, "sessions that rise");
    ensure!(
        load.sessions.iter().all(|sessions| sessions.is_multiple_of(load.members)),
        "sessions are multiples of --members"
    );
    process::may_open((load.groups * load.members).max(last))
}

async fn measure(mut contender: Box<dyn Contender + '_>, load: &Load) -> Result<Column> {
    let name = contender.name();
    let measured = Box::pin(async {
        // Silence first: nothing has been said yet that could still take memory.
        let (idle_bytes, after_over_before) = contender.idle(load).await.context("silence")?;
        let mut talks = Vec::with_capacity(load.rate.len());
        for rate in &load.rate {
            let talk = Box::pin(contender.talk(load, *rate)).await;
            talks.push(talk.with_context(|| format!("talk at {rate}"))?);
        }
        let catch_up_ms = contender.catch_up(load).await.context("catching up")?;
        let durability = contender.durability();
        anyhow::Ok(Column {
            name: name.clone(),
            durability,
            idle_bytes,
            after_over_before,
            talks,
            catch_up_ms,
        })
    });
    let column = measured.await.with_context(|| name.clone())?;
    contender.stop().await.with_context(|| name)?;
    Ok(column)
}
