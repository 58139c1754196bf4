//! What was typed: a command, and flags made from the table of settings.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::{Arg, ArgMatches, Command as Clap};
use sealwire_protocol::DeviceKey;

use crate::config::knobs::{self, Default, Knob};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Run the relay.
    Serve,
    /// Do retention beside a relay.
    Worker,
    /// Bring the database up to this version, and end.
    Migrate,
    /// Tell the database that it was restored from a backup, and end.
    Restored,
    /// Have the running relay ring a device, and end.
    PushTest(DeviceKey),
    /// Show all settings with their sources, and end.
    Config,
}

/// What was typed.
#[derive(Debug)]
pub struct Invocation {
    /// What to do.
    pub command: Command,
    /// Settings by key, as text.
    pub flags: BTreeMap<&'static str, String>,
}

/// Reads the arguments; the first is the program's name.
///
/// # Errors
/// What clap has to say to whoever typed: a mistake, the help or the version.
pub fn parse(
    arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>,
) -> Result<Invocation, clap::Error> {
    let matches = program().try_get_matches_from(arguments)?;
    let (command, flags) = match matches.subcommand() {
        None => (Command::Serve, flags(&matches)),
        Some((name, matches)) => {
            let command = match name {
                "worker" => Command::Worker,
                "migrate" => Command::Migrate,
                "restored" => Command::Restored,
                "push" => match matches.subcommand() {
                    Some(("test", matches)) => {
                        let device = matches.get_one::<DeviceKey>("device").copied();
                        let command = Command::PushTest(device.unwrap_or(DeviceKey::ZERO));
                        return Ok(Invocation { command, flags: flags(matches) });
                    }
                    Some(_) | None => Command::Serve,
                },
                "config" => Command::Config,
                _ => Command::Serve,
            };
            (command, flags(matches))
        }
    };
    Ok(Invocation { command, flags })
}

fn program() -> Clap {
    Clap::new("sealwire")
        .version(env!("CARGO_PKG_VERSION"))
        .about("A relay that orders and delivers sealed boxes between devices and cannot open them")
        .after_help("Settings can also be given in the environment or in a file: docs/OPERATING.md")
        .subcommand(Clap::new("serve").about("Run the relay (the default)"))
        .subcommand(Clap::new("worker").about(
            "Do retention in a process of its own, beside a relay with the same PostgreSQL database",
        ))
        .subcommand(Clap::new("migrate").about("Bring the database up to this version, and end"))
        .subcommand(Clap::new("restored").about(
            "Tell the database that it was restored from a backup or failed over, and end: devices \
             then compare what they have with what it has lost",
        ))
        .subcommand(
            Clap::new("push")
                .about("About doorbells")
                .subcommand_required(true)
                .subcommand(
                    Clap::new("test")
                        .about(
                            "Have the relay that runs on this machine ring a device once, and say what \
                             its push service answers",
                        )
                        .arg(
                            Arg::new("device")
                                .required(true)
                                .help("The device's public key: 64 hexadecimal digits")
                                .value_parser(device),
                        ),
                ),
        )
        .subcommand(Clap::new("config").about("Show all settings with their sources, and end"))
        .args(knobs::ALL.iter().filter_map(|knob| argument(knob)))
}

fn device(text: &str) -> Result<DeviceKey, &'static str> {
    let bytes = hex::decode(text.trim()).unwrap_or_default();
    DeviceKey::from_slice(&bytes).ok_or("must be 64 hexadecimal digits")
}

fn argument(knob: &'static Knob) -> Option<Arg> {
    let default = match knob.default {
        Default::Is("") => "none",
        Default::Is(text) | Default::Words(text) => text,
    };
    let help = format!("{} [default: {default}] [env: {}]", knob.why, knob.variable);
    let argument = Arg::new(knob.key).long(knob.flag()?).help(help).global(true).num_args(1);
    Some(if knob.key == knobs::ENABLE_DEBUG.key {
        argument.num_args(0..=1).require_equals(true).default_missing_value("true")
    } else {
        argument
    })
}

fn flags(matches: &ArgMatches) -> BTreeMap<&'static str, String> {
    knobs::ALL
        .iter()
        .filter(|knob| knob.flag().is_some())
        .filter_map(|knob| Some((knob.key, matches.get_one::<String>(knob.key)?.clone())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(line: &str) -> Invocation {
        parse(line.split_whitespace()).unwrap()
    }

    #[test]
    fn serving_is_what_is_meant_without_a_command() {
        assert_eq!(typed("sealwire").command, Command::Serve);
        assert_eq!(typed("sealwire serve").command, Command::Serve);
        assert_eq!(typed("sealwire worker").command, Command::Worker);
        assert_eq!(typed("sealwire migrate").command, Command::Migrate);
        assert_eq!(typed("sealwire restored").command, Command::Restored);
        assert_eq!(typed("sealwire config").command, Command::Config);
        let line = format!("sealwire push test {} --operator-listen x", hex::encode([7; 32]));
        let invocation = typed(&line);
        assert_eq!(invocation.command, Command::PushTest(DeviceKey([7; 32])));
        assert_eq!(invocation.flags["operator_listen"], "x");
    }

    #[test]
    fn flags_may_stand_before_and_after_the_command() {
        for line in [
            "sealwire --listen a --enable-debug config",
            "sealwire config --listen a --enable-debug",
        ] {
            let flags = typed(line).flags;
            assert_eq!((flags["listen"].as_str(), flags["enable_debug"].as_str()), ("a", "true"));
            assert_eq!(flags.len(), 2);
        }
        assert_eq!(typed("sealwire --enable-debug=false").flags["enable_debug"], "false");
    }

    #[test]
    fn a_secret_cannot_be_a_flag() {
        for knob in knobs::ALL.iter().filter(|knob| knob.kind == knobs::Kind::Secret) {
            let flag = format!("--{}", knob.key.replace('_', "-"));
            assert!(parse(["sealwire", &flag, "x"]).is_err(), "{flag}");
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        assert!(parse(["sealwire", "frobnicate"]).is_err());
        assert!(parse(["sealwire", "push"]).is_err());
        assert!(parse(["sealwire", "push", "test"]).is_err());
        assert!(parse(["sealwire", "push", "test", "abc"]).is_err());
        assert!(parse(["sealwire", "--listne", "x"]).is_err());
        program().debug_assert();
    }
}
