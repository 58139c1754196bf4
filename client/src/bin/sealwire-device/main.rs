//! `sealwire-device`: a device on the command line.
//!
//! ```text
//! sealwire-device init
//! sealwire-device group create               prints the name of the new group
//! sealwire-device group invite <group>       prints a link; whoever has it can join
//! sealwire-device --dir other group join <link>
//! sealwire-device expense add <group> 30 Lunch
//! sealwire-device balances <group>
//! sealwire-device chat <group>
//! sealwire-device recovery setup             prints a code for the day on which the device is lost
//! ```
//!
//! It is a thin layer over the SDK: everything that it does, an app can do in as few lines. Results
//! go to standard output, for people or, with `--json`, for scripts; everything else to standard
//! error.

mod args;
mod chat;
mod commands;
mod expense_args;
mod expenses;
mod group;
mod keeping;
mod output;
mod place;
mod recovery;
mod tables;
mod vault;
mod watch;

use std::process::ExitCode;

use clap::Parser;

use crate::args::Args;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let args = Args::parse();
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .init();
    match Box::pin(commands::run(args)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&error);
            ExitCode::FAILURE
        }
    }
}
