//! What was said about each setting, and where: flags, environment, file, defaults.
//!
//! Values stay text here; [`super::Config`] gives them types. Each is kept as a [`Secret`], so that
//! none can be printed by accident.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::database::Database;
use super::knobs::{self, Default, Kind, Knob, Shape};
use crate::secrets::Secret;

/// Name of the file in the data directory that is read if no other is named.
const FILE_NAME: &str = "sealwire.toml";

/// Longest file that is read, in bytes; the longest sensible one is a hundredth of it.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The beginning of the names of variables that are ours, and so worth a word if unknown.
const PREFIX: &str = "SEALWIRE_";

/// Variables of ours that are no settings of the relay.
const TEST_PREFIX: &str = "SEALWIRE_TEST_";

/// Variables that mean something to a build with debug assertions, and nothing to any other.
const DEBUG_PREFIX: &str = "SEALWIRE_DEBUG_";

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Nowhere.
    Default,
    /// In this file.
    File(PathBuf),
    /// In this environment variable.
    Environment(&'static str),
    /// As this flag.
    Flag(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "file {}", path.display()),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::Flag(flag) => write!(f, "flag --{flag}"),
        }
    }
}

/// What is wrong with the configuration, and where.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// A value cannot be used. Says the value unless it is secret.
    #[error("{key}{shown} ({source_of}): must be {range}")]
    Value {
        /// The setting.
        key: &'static str,
        /// The value as it was given, or nothing.
        shown: String,
        /// Where it was given.
        source_of: Source,
        /// What it must be.
        range: String,
    },
    /// The file has a key that means nothing.
    #[error("{}: unknown key `{key}`; `sealwire config` shows all keys", path.display())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// The file has a key that is needed to find the file.
    #[error("{}: `{key}` can only be a flag or a variable", path.display())]
    NotInFile {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// The file has a value of a kind that no setting takes.
    #[error("{}: `{key}` must be a string, a number, true or false, or a list of strings", path.display())]
    FileValue {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// The file is not TOML. Says the place; the text there may be secret.
    #[error("{}: line {line} is not TOML", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// One setting that somebody gave.
struct Given {
    value: Secret,
    source: Source,
}

/// What was said about each setting, and where.
pub struct Settings {
    given: BTreeMap<&'static str, Given>,
    unknown: Vec<String>,
}

impl Settings {
    /// Gathers what flags (by key), variables and the file say. Empty variables count as absent:
    /// that is how most tools that start containers say "unset".
    ///
    /// # Errors
    /// [`ConfigError`] if the file cannot be read or has a key that it must not have.
    pub fn gather(
        flags: &BTreeMap<&'static str, String>,
        variables: &BTreeMap<String, String>,
    ) -> Result<Self, ConfigError> {
        let mut settings = Self { given: BTreeMap::new(), unknown: unknown(variables) };
        for knob in knobs::ALL {
            let given = match (flags.get(knob.key), variables.get(knob.variable)) {
                (Some(value), _) => Some((value, Source::Flag(knob.flag().unwrap_or_default()))),
                (None, Some(value)) if !value.is_empty() => {
                    Some((value, Source::Environment(knob.variable)))
                }
                (None, _) => None,
            };
            if let Some((value, source)) = given {
                settings.give(knob, value.clone(), source);
            }
        }
        let path = match settings.text(&knobs::CONFIG) {
            Some(path) => Some(PathBuf::from(path)),
            None => Some(Path::new(settings.required(&knobs::DATA_DIR)).join(FILE_NAME))
                .filter(|path| path.exists()),
        };
        if let Some(path) = path {
            settings.read_file(&path)?;
        }
        Ok(settings)
    }

    /// Variables that begin like ours and mean nothing: most likely misspelt.
    #[must_use]
    pub fn unknown_variables(&self) -> &[String] {
        &self.unknown
    }

    /// All settings as a TOML file, each with its source. Secrets are not in it.
    #[must_use]
    pub fn to_toml(&self) -> String {
        let mut lines = String::new();
        for knob in knobs::ALL {
            let source = self.source(knob);
            let line = match (knob.kind, self.text(knob), &knob.default) {
                (_, None, Default::Is(words) | Default::Words(words)) => {
                    format!("# {}: {words}", knob.key)
                }
                (Kind::FindsFile, Some(text), _) => format!("# {} = {}", knob.key, quoted(text)),
                (Kind::Secret, Some(text), _) if knob.key == knobs::DATABASE_URL.key => {
                    let shown = Database::parse(text).map_or(String::new(), |it| it.redacted());
                    format!("# {}: {shown}", knob.key)
                }
                (Kind::Secret, Some(_), _) => format!("# {}: set, not shown", knob.key),
                (Kind::Plain, Some(text), _) => format!("{} = {}", knob.key, quoted(text)),
            };
            lines.push_str(&format!("{line:<56} # {source}\n"));
        }
        lines
    }

    /// The value, given or default; none if the default is no value.
    #[must_use]
    pub fn text(&self, knob: &Knob) -> Option<&str> {
        match (self.given.get(knob.key), &knob.default) {
            (Some(given), _) => Some(given.value.expose()),
            (None, Default::Is(value)) => Some(value),
            (None, Default::Words(_)) => None,
        }
    }

    /// The value of a setting that has a default.
    pub(super) fn required(&self, knob: &Knob) -> &str {
        self.text(knob).unwrap_or_default()
    }

    /// The value, read by `read`.
    pub(super) fn parse<T>(
        &self,
        knob: &Knob,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, ConfigError> {
        read(self.required(knob)).ok_or_else(|| self.refuse(knob))
    }

    /// The value as a whole number within the setting's range.
    pub(super) fn whole<T: FromWhole>(&self, knob: &Knob) -> Result<T, ConfigError> {
        let Shape::Whole { min, max, .. } = knob.shape else { return Err(self.refuse(knob)) };
        self.parse(knob, |text| {
            let number = text.trim().parse::<u64>().ok()?;
            if (min..=max).contains(&number) { T::from_whole(number) } else { None }
        })
    }

    fn source(&self, knob: &Knob) -> Source {
        self.given.get(knob.key).map_or(Source::Default, |given| given.source.clone())
    }

    fn refuse(&self, knob: &Knob) -> ConfigError {
        let shown = match knob.kind {
            Kind::Secret => String::new(),
            Kind::Plain | Kind::FindsFile => format!(" = {}", quoted(self.required(knob))),
        };
        ConfigError::Value {
            key: knob.key,
            shown,
            source_of: self.source(knob),
            range: knob.range(),
        }
    }

    fn give(&mut self, knob: &Knob, value: String, source: Source) {
        // Flags and variables are gathered first and win.
        self.given.entry(knob.key).or_insert(Given { value: Secret::new(value), source });
    }

    fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let failed = |source| ConfigError::File { path: path.to_owned(), source };
        let length = std::fs::metadata(path).map_err(failed)?.len();
        if length > FILE_BYTES_MAX {
            return Err(failed(std::io::ErrorKind::FileTooLarge.into()));
        }
        let text = Secret::new(std::fs::read_to_string(path).map_err(failed)?);
        let table: toml::Table = toml::from_str(text.expose()).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            let line = text.expose().as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count();
            ConfigError::Syntax { path: path.to_owned(), line: line + 1 }
        })?;
        for (key, value) in table {
            let Some(knob) = knobs::ALL.iter().find(|knob| knob.key == key) else {
                return Err(ConfigError::UnknownKey { path: path.to_owned(), key });
            };
            if knob.kind == Kind::FindsFile {
                return Err(ConfigError::NotInFile { path: path.to_owned(), key: knob.key });
            }
            let value = plain(&value)
                .ok_or(ConfigError::FileValue { path: path.to_owned(), key: knob.key })?;
            self.give(knob, value, Source::File(path.to_owned()));
        }
        Ok(())
    }
}

/// A number type that a setting can have.
pub(super) trait FromWhole: Sized {
    /// None if it does not fit.
    fn from_whole(number: u64) -> Option<Self>;
}

impl FromWhole for u32 {
    fn from_whole(number: u64) -> Option<Self> {
        number.try_into().ok()
    }
}

impl FromWhole for u64 {
    fn from_whole(number: u64) -> Option<Self> {
        Some(number)
    }
}

impl FromWhole for usize {
    fn from_whole(number: u64) -> Option<Self> {
        number.try_into().ok()
    }
}

impl FromWhole for std::num::NonZeroU32 {
    fn from_whole(number: u64) -> Option<Self> {
        Self::new(number.try_into().ok()?)
    }
}

/// A value of the file as the text that a flag would have.
fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(switch) => Some(switch.to_string()),
        toml::Value::Array(list) => {
            let texts: Option<Vec<&str>> = list.iter().map(toml::Value::as_str).collect();
            Some(texts?.join(","))
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn unknown(variables: &BTreeMap<String, String>) -> Vec<String> {
    let known = |name: &str| {
        let is_debug = cfg!(debug_assertions) && name.starts_with(DEBUG_PREFIX);
        is_debug
            || name.starts_with(TEST_PREFIX)
            || knobs::ALL.iter().any(|knob| knob.variable == name)
    };
    variables.keys().filter(|name| name.starts_with(PREFIX) && !known(name)).cloned().collect()
}
