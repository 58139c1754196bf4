//! A crowd of devices against a Sealwire relay on this machine, and the numbers that they saw.
//!
//! `README.md` beside this program says how each measurement is run, what it means, and what noise
//! to expect.

mod append;
mod budgets;
mod catch_up;
mod ceiling;
mod crowd;
mod doorbells;
mod frame;
mod group;
mod hear;
mod helper;
mod idle;
mod latency;
mod limits;
mod pace;
mod parts;
#[cfg(any(feature = "nats", feature = "mosquitto"))]
mod peers;
mod phones;
mod process;
mod progress;
mod reader;
mod report;
mod tally;
mod vaults;

use std::ffi::OsString;
use std::io::Write;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::frame::{Framed, scenario};
use crate::report::compare;

/// Measures a Sealwire relay on this machine.
#[derive(Parser)]
#[command(name = "sealwire-loadtest", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a scenario: a measurement with parameters that belong together.
    Run {
        /// Its name, or a file.
        scenario: String,
        /// Options of its measurement, which win over the scenario's.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<OsString>,
    },
    /// Show all scenarios.
    Scenarios,
    /// What a session costs while nothing happens.
    Idle(Box<Framed<idle::Arguments>>),
    /// How many entries a second become durable, and how soon they are there.
    Append(Box<Framed<append::Arguments>>),
    /// How long a device takes to catch up.
    CatchUp(Box<Framed<catch_up::Arguments>>),
    /// Phones that speak HTTP and listen to event streams.
    Phones(Box<Framed<phones::Arguments>>),
    /// A burst to devices that sleep, and how soon they are rung.
    Doorbells(Box<Framed<doorbells::Arguments>>),
    /// Vaults: changesets pushed in batches, pulled live, and by a device that was away.
    Vaults(Box<Framed<vaults::Arguments>>),
    /// What the machine does at best: the disk, WebSockets and the relay's store alone.
    Ceiling(ceiling::Arguments),
    /// Everything that there is a budget for, in one run.
    Budgets(budgets::Arguments),
    /// The same load on other systems, side by side.
    #[cfg(any(feature = "nats", feature = "mosquitto"))]
    Peers(peers::Arguments),
    /// Show how two reports differ, and whether that is more than noise.
    Compare(compare::Arguments),
    /// A WebSocket server that does nothing but pass on; `ceiling` starts it.
    #[command(hide = true)]
    RawRelay {
        #[arg(long)]
        lean: bool,
    },
    /// A part of a crowd that is too large for one process; the measurements start it.
    #[command(hide = true)]
    CrowdPart,
    /// A push service that stands in for Google's; `doorbells` starts it.
    #[command(hide = true)]
    PushService(doorbells::service::Manners),
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut command = Cli::parse().command;
    if let Command::Run { scenario, options } = &command {
        command = Cli::parse_from(scenario::arguments(scenario, options)?).command;
    }
    let (mut interrupted, mut terminated) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    // What was started here ends with what is dropped here.
    tokio::select! {
        done = Box::pin(run(&command)) => done,
        _ = interrupted.recv() => bail!("interrupted"),
        _ = terminated.recv() => bail!("terminated"),
    }
}

async fn run(command: &Command) -> Result<()> {
    match command {
        Command::Run { .. } => bail!("a scenario is an application of a measurement"),
        Command::Scenarios => show_scenarios(),
        Command::Idle(framed) => frame::run(framed).await,
        Command::Append(framed) => frame::run(framed).await,
        Command::CatchUp(framed) => frame::run(framed).await,
        Command::Phones(framed) => frame::run(framed).await,
        Command::Doorbells(framed) => frame::run(framed).await,
        Command::Vaults(framed) => frame::run(framed).await,
        Command::Ceiling(arguments) => Box::pin(ceiling::run(arguments)).await,
        Command::Budgets(arguments) => Box::pin(budgets::run(arguments)).await,
        #[cfg(any(feature = "nats", feature = "mosquitto"))]
        Command::Peers(arguments) => Box::pin(peers::run(arguments)).await,
        Command::Compare(arguments) => compare::run(arguments),
        Command::RawRelay { lean } => ceiling::raw::serve(*lean).await,
        Command::CrowdPart => parts::serve().await,
        Command::PushService(manners) => doorbells::service::serve(*manners).await,
    }
}

fn show_scenarios() -> Result<()> {
    let mut out = std::io::stdout().lock();
    for (name, scenario) in scenario::all() {
        let scenario = scenario?;
        writeln!(out, "{name:<20} {} ({})", scenario.about, scenario.command)?;
    }
    Ok(())
}
