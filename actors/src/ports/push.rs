//! What ringing doorbells asks of the world: a push service, and what the store knows of those who
//! have not been here.

use std::time::Duration;

use async_trait::async_trait;
use sealwire_protocol::{DeviceKey, Kind, LogId, LogType};

use super::{LogKey, MemberRecord, StoreError};
use crate::totals::payload::PayloadId;

/// How soon a device should wake up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// When it suits its battery.
    Normal,
    /// At once: its owner will see something.
    High,
}

/// All that a push service is told, beside the token: which log, and which entry of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// The log's name on the wire.
    pub log: LogId,
    /// The entry's id over HTTP.
    pub payload: PayloadId,
    /// How soon.
    pub urgency: Urgency,
}

/// Why a push service did not take a doorbell that it may take later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It says that there are too many, for this device or for the moment.
    Limited,
    /// It says that we, whoever is rung, have rung as often as we may.
    Quota,
    /// It says that it cannot do it now.
    Unavailable,
    /// It could not be reached, or did not answer in time.
    Unreachable,
    /// It does not know us: our credentials are wrong, or could not be renewed.
    Unauthorised,
    /// The one behind it, which the device listens to, does not know us.
    ThirdParty,
}

impl Trouble {
    /// The value of the `reason` label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Limited => "limited",
            Self::Quota => "quota",
            Self::Unavailable => "unavailable",
            Self::Unreachable => "unreachable",
            Self::Unauthorised => "unauthorised",
            Self::ThirdParty => "third_party",
        }
    }
}

/// What a push service said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rang {
    /// It will wake the device.
    Taken,
    /// It does not know this token any more: it is to be forgotten.
    Unregistered,
    /// It will never take this doorbell: the token is another sender's, or the message is wrong.
    Refused,
    /// Not now; not before so long, if it said so.
    Later(Trouble, Option<Duration>),
}

/// A push service. What it is asked is cancelled by dropping; it keeps its own deadlines shorter than
/// [`crate::limits::PUSH_CALL_DEADLINE`].
#[async_trait]
pub trait Push: Send + Sync + 'static {
    /// What devices call it when they register a token.
    fn platform(&self) -> &'static str;

    /// Rings once at this token.
    async fn ring(&self, token: &str, ring: &Ring) -> Rang;
}

/// A log that was looked at because it may have entries that somebody has not seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecentLog {
    /// The relay's integer.
    pub key: LogKey,
    /// The name on the wire.
    pub id: LogId,
    /// Group or vault.
    pub log_type: LogType,
}

/// An entry whose body is kept, as far as a doorbell depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecentEntry {
    /// Its position.
    pub seq: u64,
    /// When the relay ordered it, in milliseconds since the epoch.
    pub at: u64,
    /// Its author.
    pub sender: DeviceKey,
    /// Its kind.
    pub kind: Kind,
    /// Totals' own kind string.
    pub totals_kind: Option<String>,
    /// The named addressees, sorted; empty for all.
    pub recipients: Vec<DeviceKey>,
}

/// What the store knows of doorbells.
#[async_trait]
pub trait PushStore: Send + Sync + 'static {
    /// Where devices' doorbells are, in their order: platform and token, or nowhere.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn push_tokens(
        &self,
        devices: &[DeviceKey],
    ) -> Result<Vec<Option<(String, String)>>, StoreError>;

    /// Forgets where a device's doorbell is, if it is still exactly there. Gives whether it was.
    ///
    /// # Errors
    /// As [`super::Store::commit`].
    async fn forget_push_token(
        &self,
        device: DeviceKey,
        platform: &str,
        token: &str,
    ) -> Result<bool, StoreError>;

    /// Of the next `limit` logs after `after` (by key) those whose newest entry was ordered at `since`
    /// or later, and the last key looked at; `None` when there are no more logs.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn recent_logs(
        &self,
        after: LogKey,
        since: u64,
        limit: usize,
    ) -> Result<(Vec<RecentLog>, Option<LogKey>), StoreError>;

    /// Entries of a log before `before` whose bodies stand apart and are still there, the newest
    /// first, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], or [`StoreError::Corrupt`].
    async fn recent_entries(
        &self,
        key: LogKey,
        before: u64,
        limit: usize,
    ) -> Result<Vec<RecentEntry>, StoreError>;

    /// The members of a log that have a doorbell anywhere, with what they have acked.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn members_with_doorbells(&self, key: LogKey) -> Result<Vec<MemberRecord>, StoreError>;
}
