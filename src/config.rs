//! What the operator has decided: every setting of the relay, checked, with its source.
//!
//! One table ([`knobs::ALL`]) says of each setting its names, default, range and reason. Flags, the
//! help text, the documentation and this module are made from it, so a second default cannot exist.
//! A flag wins over the environment, the environment over the file, the file over the default.
//!
//! Nothing here reads the process's environment or creates a file: variables are an argument, and
//! what has to be made once (keys, secrets) is made by [`crate::secrets`].
//!
//! Holds always: a value that was given and cannot be used is an error that names the setting and
//! where it was given; it is never replaced by a default.

pub mod database;
pub mod knobs;
pub mod settings;

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use http::Uri;
use sealwire_actors::limits::VaultLimits;
use tracing_subscriber::filter::Targets;
use zeroize::Zeroizing;

pub use database::Database;
pub use settings::{ConfigError, Settings, Source};

use crate::client_address::TrustedProxies;
use crate::fcm::is_private;
use crate::secrets::Secret;

/// Shortest secret of the operator, in bytes: 128 random bits, however they are written.
pub const SECRET_BYTES_MIN: usize = 32;

/// A MiB, in bytes.
const MIB: u64 = 1024 * 1024;

/// Everything that the relay is told. It has no `Debug`, because its secrets have none.
pub struct Config {
    /// Where the relay keeps its own files.
    pub data_dir: PathBuf,
    /// Which database.
    pub database: Database,
    /// Where devices connect.
    pub listen: SocketAddr,
    /// Where the operator looks.
    pub operator_listen: SocketAddr,
    /// What tokens are made with; none: the one in the data directory.
    pub device_session_secret: Option<Secret>,
    /// What the tokens of the last minutes were made with, during rotation.
    pub device_session_secret_previous: Option<Secret>,
    /// Seed of the relay's own key; none: the one in the data directory.
    pub relay_key: Option<Zeroizing<[u8; 32]>>,
    /// What finds recovery vaults; none: the one in the data directory.
    pub recovery_secret: Option<Secret>,
    /// What found them before.
    pub recovery_secret_previous: Option<Secret>,
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: TrustedProxies,
    /// Most active groups of one device.
    pub groups_max: u32,
    /// How long a group keeps a body that nobody has acked.
    pub retention: Duration,
    /// How much a vault may hold.
    pub vaults: VaultLimits,
    /// Most connections, before the process's limit of open files is looked at.
    pub connections_max: usize,
    /// What holds back those who have not proved a key.
    pub unauthenticated: UnauthenticatedLimits,
    /// How much may be asked from one address.
    pub address_requests: AddressRequests,
    /// How sleeping devices are woken; none to wake nobody.
    pub push: Option<PushSettings>,
    /// How long stopping may take.
    pub shutdown_deadline: Duration,
    /// What is written to the log, and how.
    pub log: LogSettings,
}

/// Limits on connections that have not authenticated yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnauthenticatedLimits {
    /// Most at the same time.
    pub max: usize,
    /// Most at the same time from one address.
    pub per_address_max: usize,
    /// New ones per second.
    pub rate: NonZeroU32,
    /// New ones at once, after a quiet time.
    pub burst: NonZeroU32,
    /// New ones per second from one address.
    pub per_address_rate: NonZeroU32,
    /// New ones at once from one address, after a quiet time.
    pub per_address_burst: NonZeroU32,
}

/// Requests over HTTP of one address, whoever is behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRequests {
    /// Per second.
    pub rate: NonZeroU32,
    /// At once, after a quiet time.
    pub burst: NonZeroU32,
}

/// How sleeping devices are woken.
#[derive(Clone, Debug)]
pub struct PushSettings {
    /// The file of a Google service account.
    pub credentials: PathBuf,
    /// Where doorbells are rung.
    pub base: Uri,
}

/// What is written to the log, and how.
#[derive(Clone, Debug)]
pub struct LogSettings {
    /// For people or for machines.
    pub format: LogFormat,
    /// What `RUST_LOG` asks for, if it was given.
    pub filter: Option<Targets>,
    /// Whether more is said by default.
    pub debug: bool,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object per line.
    Json,
}

impl Config {
    /// Reads all settings.
    ///
    /// # Errors
    /// [`ConfigError`] names the setting, its source and what it must be.
    pub fn read(settings: &Settings) -> Result<Self, ConfigError> {
        let data_dir = PathBuf::from(settings.required(&knobs::DATA_DIR));
        let database = match settings.text(&knobs::DATABASE_URL) {
            None => Database::in_directory(&data_dir),
            Some(_) => settings.parse(&knobs::DATABASE_URL, Database::parse)?,
        };
        Ok(Self {
            data_dir,
            database,
            listen: settings.parse(&knobs::LISTEN, socket_address)?,
            operator_listen: settings.parse(&knobs::OPERATOR_LISTEN, socket_address)?,
            device_session_secret: secret(settings, &knobs::DEVICE_SESSION_SECRET)?,
            device_session_secret_previous: secret(
                settings,
                &knobs::DEVICE_SESSION_SECRET_PREVIOUS,
            )?,
            relay_key: match settings.text(&knobs::RELAY_KEY) {
                None => None,
                Some(_) => Some(settings.parse(&knobs::RELAY_KEY, seed)?),
            },
            recovery_secret: secret(settings, &knobs::RECOVERY_SECRET)?,
            recovery_secret_previous: secret(settings, &knobs::RECOVERY_SECRET_PREVIOUS)?,
            trusted_proxies: settings.parse(&knobs::TRUSTED_PROXY_IPS, TrustedProxies::parse)?,
            groups_max: settings.whole(&knobs::MAX_GROUPS_PER_DEVICE)?,
            retention: Duration::from_secs(
                settings.whole::<u64>(&knobs::RETENTION_DAYS)? * 24 * 3600,
            ),
            vaults: VaultLimits {
                entries_max: settings.whole(&knobs::vaults::ENTRIES_MAX)?,
                bytes_max: settings.whole::<u64>(&knobs::vaults::MIB_MAX)? * MIB,
                snapshot_bytes_max: settings.whole::<u64>(&knobs::vaults::SNAPSHOTS_MIB_MAX)? * MIB,
                devices_max: settings.whole(&knobs::vaults::DEVICES_MAX)?,
                ..VaultLimits::default()
            },
            connections_max: settings.whole(&knobs::CONNECTIONS_MAX)?,
            unauthenticated: UnauthenticatedLimits {
                max: settings.whole(&knobs::UNAUTHENTICATED_MAX)?,
                per_address_max: settings.whole(&knobs::UNAUTHENTICATED_PER_ADDRESS_MAX)?,
                rate: settings.whole(&knobs::CONNECTS_PER_SECOND)?,
                burst: settings.whole(&knobs::CONNECTS_BURST)?,
                per_address_rate: settings.whole(&knobs::CONNECTS_PER_ADDRESS_PER_SECOND)?,
                per_address_burst: settings.whole(&knobs::CONNECTS_PER_ADDRESS_BURST)?,
            },
            address_requests: AddressRequests {
                rate: settings.whole(&knobs::REQUESTS_PER_ADDRESS_PER_SECOND)?,
                burst: settings.whole(&knobs::REQUESTS_PER_ADDRESS_BURST)?,
            },
            push: push(settings)?,
            shutdown_deadline: Duration::from_secs(
                settings.whole(&knobs::SHUTDOWN_DEADLINE_SECONDS)?,
            ),
            log: LogSettings {
                format: settings.parse(&knobs::LOG_FORMAT, log_format)?,
                filter: match settings.text(&knobs::LOG_FILTER) {
                    None => None,
                    Some(_) => Some(settings.parse(&knobs::LOG_FILTER, |text| text.parse().ok())?),
                },
                debug: settings.parse(&knobs::ENABLE_DEBUG, switch)?,
            },
        })
    }
}

fn secret(settings: &Settings, knob: &knobs::Knob) -> Result<Option<Secret>, ConfigError> {
    let Some(_) = settings.text(knob) else { return Ok(None) };
    let long_enough =
        |text: &str| (text.len() >= SECRET_BYTES_MIN).then(|| Secret::new(text.to_owned()));
    settings.parse(knob, long_enough).map(Some)
}

fn push(settings: &Settings) -> Result<Option<PushSettings>, ConfigError> {
    let base = settings.parse(&knobs::FCM_BASE_URL, |text| {
        let uri: Uri = text.trim().parse().ok()?;
        (is_private(&uri) && uri.query().is_none()).then_some(uri)
    })?;
    let credentials = settings.text(&knobs::GOOGLE_APPLICATION_CREDENTIALS).map(PathBuf::from);
    Ok(credentials.map(|credentials| PushSettings { credentials, base }))
}

fn seed(text: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut seed = Zeroizing::new([0; 32]);
    hex::decode_to_slice(text.trim(), &mut seed[..]).ok()?;
    Some(seed)
}

fn socket_address(text: &str) -> Option<SocketAddr> {
    text.parse().ok()
}

fn log_format(text: &str) -> Option<LogFormat> {
    match text {
        "human" => Some(LogFormat::Human),
        "json" => Some(LogFormat::Json),
        _ => None,
    }
}

fn switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
