//! The relay's command line: read what was typed and said, then do it.

use std::process::ExitCode;

use listenfd::ListenFd;
use sealwire::cli::{self, Command};
use sealwire::config::{Config, Settings};
use sealwire::{commands, telemetry};

/// It gives memory back after many sessions have ended; see `.cargo/config.toml`. SQLite allocates
/// with it as well, through `malloc`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sealwire: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let invocation = cli::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let settings = Settings::gather(&invocation.flags, &variables)?;
    if invocation.command == Command::Config {
        commands::show(&settings)?;
    }
    let config = Config::read(&settings)?;
    if invocation.command != Command::Config {
        telemetry::start_log(&config.log)?;
        commands::run(invocation.command, &settings, config, &variables, ListenFd::from_env())?;
    }
    Ok(())
}
