//! A crowd of devices against a Sealwire relay on this machine, and the numbers that they saw.
//!
//! `README.md` beside this program says how each measurement is run, what it means, and what noise
//! to expect.

mod append;
mod catch_up;
#[cfg(feature = "ceiling")]
mod ceiling;
mod crowd;
mod group;
mod hear;
mod idle;
mod latency;
mod limits;
mod process;
mod progress;
mod reader;
mod report;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Measures a Sealwire relay on this machine.
#[derive(Parser)]
#[command(name = "sealwire-loadtest", version)]
struct Cli {
    /// Also write the figures to this file, as JSON.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What a session costs while nothing happens.
    Idle(idle::Arguments),
    /// How many entries a second become durable, and how soon they are there.
    Append(append::Arguments),
    /// How long a device takes to catch up.
    CatchUp(catch_up::Arguments),
    /// What the store does at best, without a relay.
    #[cfg(feature = "ceiling")]
    Ceiling(ceiling::Arguments),
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let json = cli.json.as_deref();
    match &cli.command {
        Command::Idle(arguments) => {
            report::publish("idle", arguments, &Box::pin(idle::run(arguments)).await?, json)
        }
        Command::Append(arguments) => {
            report::publish("append", arguments, &Box::pin(append::run(arguments)).await?, json)
        }
        Command::CatchUp(arguments) => {
            report::publish("catch-up", arguments, &Box::pin(catch_up::run(arguments)).await?, json)
        }
        #[cfg(feature = "ceiling")]
        Command::Ceiling(arguments) => {
            report::publish("ceiling", arguments, &Box::pin(ceiling::run(arguments)).await?, json)
        }
    }
}
