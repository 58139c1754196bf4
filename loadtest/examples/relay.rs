//! The relay as a program, for the tests of the load tester that have to kill it or let it stand
//! still: cargo gives a package's tests the programs of that package alone.

use listenfd::ListenFd;
use sealwire::config::{Config, Settings};
use sealwire::{cli, commands, telemetry};

fn main() -> anyhow::Result<()> {
    let invocation = cli::parse(std::env::args_os()).unwrap_or_else(|error| error.exit());
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let settings = Settings::gather(&invocation.flags, &variables)?;
    let config = Config::read(&settings)?;
    telemetry::start_log(&config.log)?;
    commands::run(invocation.command, &settings, config, &variables, ListenFd::empty())?;
    Ok(())
}
