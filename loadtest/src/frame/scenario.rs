//! Named scenarios: a file for each, that says which measurement is run with which parameters.
//!
//! A scenario is nothing but arguments that somebody has thought about: every parameter is an option
//! of the measurement, and what is given on the command line wins.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, FromArgMatches};
use serde::Deserialize;
use toml::{Table, Value};

use super::{Framed, Measurement};

/// Every scenario that is part of the program: its name and its file.
const FILES: &[(&str, &str)] = &[
    ("catch-up", include_str!("../../scenarios/catch-up.toml")),
    ("catch-up-crowd", include_str!("../../scenarios/catch-up-crowd.toml")),
    ("group-chat", include_str!("../../scenarios/group-chat.toml")),
    ("hot-group", include_str!("../../scenarios/hot-group.toml")),
    ("idle", include_str!("../../scenarios/idle.toml")),
    ("phones", include_str!("../../scenarios/phones.toml")),
    ("doorbells", include_str!("../../scenarios/doorbells.toml")),
    ("phones-start", include_str!("../../scenarios/phones-start.toml")),
    ("reconnect-storm", include_str!("../../scenarios/reconnect-storm.toml")),
    ("relay-killed", include_str!("../../scenarios/relay-killed.toml")),
    ("saturation", include_str!("../../scenarios/saturation.toml")),
    ("slow-readers", include_str!("../../scenarios/slow-readers.toml")),
    ("vaults", include_str!("../../scenarios/vaults.toml")),
    ("soak", include_str!("../../scenarios/soak.toml")),
];

/// A scenario as its file tells it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scenario {
    /// What it is for, in one sentence.
    pub(crate) about: String,
    /// The subcommand that it is an application of.
    pub(crate) command: String,
    /// Options of that subcommand, by name.
    #[serde(default)]
    parameters: Table,
}

/// All scenarios of the program.
pub(crate) fn all() -> impl Iterator<Item = (&'static str, Result<Scenario>)> {
    FILES.iter().map(|(name, text)| (*name, read(name, text)))
}

/// The arguments of a scenario, which is one of the program's or a file, with what was given after its
/// name.
pub(crate) fn arguments(name: &str, given: &[OsString]) -> Result<Vec<OsString>> {
    let scenario = match FILES.iter().find(|(known, _)| *known == name) {
        Some((name, text)) => read(name, text)?,
        None if Path::new(name).is_file() => read(name, &std::fs::read_to_string(name)?)?,
        None => bail!("there is no scenario `{name}`: `sealwire-loadtest scenarios` shows them"),
    };
    let stem = Path::new(name).file_stem().unwrap_or_default();
    let mut arguments = vec!["sealwire-loadtest".into(), scenario.command.clone().into()];
    arguments.extend(["--scenario".into(), stem.to_owned()]);
    for (name, value) in &scenario.parameters {
        let option = format!("--{}", name.replace('_', "-"));
        if !is_given(&option, given) {
            let value = plain(value).with_context(|| format!("`{name}` has no plain value"))?;
            arguments.push(format!("{option}={value}").into());
        }
    }
    arguments.extend_from_slice(given);
    Ok(arguments)
}

/// A scenario as the measurement that it is an application of, with what is given besides.
pub(crate) fn framed<M: Measurement>(name: &str, given: &[OsString]) -> Result<Framed<M>> {
    let mut arguments = arguments(name, given)?;
    let command = arguments.remove(1);
    ensure!(command == M::NAME, "the scenario `{name}` is no application of `{}`", M::NAME);
    let parser = Framed::<M>::augment_args(clap::Command::new("sealwire-loadtest"));
    Ok(Framed::from_arg_matches(&parser.try_get_matches_from(arguments)?)?)
}

fn read(name: &str, text: &str) -> Result<Scenario> {
    toml::from_str(text).with_context(|| format!("the scenario `{name}`"))
}

fn is_given(option: &str, given: &[OsString]) -> bool {
    given.iter().filter_map(|argument| argument.to_str()).any(|argument| {
        argument.strip_prefix(option).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

/// A value as it would be typed.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(number) => Some(number.to_string()),
        Value::Float(number) => Some(number.to_string()),
        Value::Boolean(switch) => Some(switch.to_string()),
        Value::Array(list) => {
            let texts: Option<Vec<String>> = list.iter().map(plain).collect();
            Some(texts?.join(","))
        }
        Value::Datetime(_) | Value::Table(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser;

    use super::*;
    use crate::{Cli, catch_up, idle};

    fn words(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn every_file_is_a_scenario_of_the_program_and_can_be_run() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let files: BTreeSet<String> = std::fs::read_dir(directory)
            .expect("a directory")
            .map(|file| file.expect("a file").path())
            .map(|path| path.file_stem().expect("a name").to_str().expect("text").to_owned())
            .collect();
        assert_eq!(files, FILES.iter().map(|(name, _)| (*name).to_owned()).collect());
        for (name, text) in FILES {
            read(name, text).expect("a scenario");
            assert!(text.starts_with("# "), "{name} says nothing about itself");
            let arguments = arguments(name, &words(&["--pid", "1"])).expect("arguments");
            Cli::try_parse_from(arguments).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    #[test]
    fn what_is_given_wins_over_the_file() {
        let given = words(&["--groups", "7", "--rate=5"]);
        let arguments = arguments("group-chat", &given).expect("arguments");
        let text: Vec<&str> = arguments.iter().map(|it| it.to_str().expect("text")).collect();
        assert_eq!(text.iter().filter(|word| word.starts_with("--groups")).count(), 1);
        assert_eq!(text.iter().filter(|word| word.starts_with("--rate")).count(), 1);
        assert!(text.contains(&"--receivers=true"));
        assert!(text.ends_with(&["--groups", "7", "--rate=5"]));
    }

    #[test]
    fn a_scenario_is_an_application_of_one_measurement() {
        let given = words(&["--pid", "1", "--entries=7"]);
        let framed: Framed<catch_up::Arguments> = framed("catch-up", &given).expect("parameters");
        assert_eq!((framed.measurement.entries, framed.measurement.runs), (7, 5));
        assert!(super::framed::<idle::Arguments>("catch-up", &[]).is_err());
    }

    #[test]
    fn a_scenario_that_is_not_there_is_named() {
        let error = arguments("no-such", &[]).expect_err("no scenario");
        assert!(error.to_string().contains("no-such"));
    }
}
