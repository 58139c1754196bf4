//! Every message of the app, as a value and as its JSON; and one that native groups alone have,
//! `succession`, which the app would pass over.
//!
//! Field names and their order are the app's. Writing is exact; reading is as generous as the app
//! is, and no more: a field of another type counts as missing, a number may come with a fraction, an
//! element of another type is passed over. Amounts are JSON numbers here, because that is what the
//! app has; [`crate::ledger`] makes minor units of them.

mod lenient;

use std::collections::BTreeMap;
use std::fmt;

use sealwire_protocol::{DeviceKey, LogId};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::ledger::Succession;

use super::seal::{GroupKey, PLAINTEXT_BYTES_MAX, Sealed};

/// Whoever a message names: a device key as 64 lower-case hex digits, if its author wrote one.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Party(pub String);

impl Party {
    /// The device; none if this is not the name of one.
    #[must_use]
    pub fn device(&self) -> Option<DeviceKey> {
        DeviceKey::from_hex(&self.0).filter(|key| key.to_hex() == self.0)
    }

    /// Whether nobody is named.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<DeviceKey> for Party {
    fn from(device: DeviceKey) -> Self {
        Self(device.to_hex())
    }
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a plaintext is not a message that this program knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PayloadError {
    /// It is not a JSON object with a type, or lacks what its type needs.
    #[error("the message is not readable")]
    Malformed,
    /// Its type is not known: it may come from a newer app.
    #[error("the message is of a kind that this version does not know")]
    Unknown,
    /// It is longer than a message may be.
    #[error("the message is too long")]
    TooLong,
}

/// A message. It has no `Debug`: it is what the relay may not see.
#[derive(Clone, PartialEq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Payload {
    /// A newcomer asks to be approved.
    JoinRequest(JoinRequest),
    /// A member approves one, and gives the group's key.
    KeyExchange(KeyExchange),
    /// A part of the group's history, to one device.
    GroupSnapshot(GroupSnapshot),
    /// A member tells all that somebody was approved.
    MemberApproved(MemberApproved),
    /// A member says how it is called and paid.
    MemberMeta(MemberMeta),
    /// The group's name and settings.
    GroupMeta(GroupMeta),
    /// An expense or a settlement: new, changed or deleted.
    Expense(ExpenseMessage),
    /// A reminder to those who owe.
    Nudge(Nudge),
    /// Somebody who has lost the history asks for it.
    SnapshotRequest(SnapshotRequest),
    /// An approved member leaves.
    MemberLeft(MemberLeft),
    /// A newcomer takes its request back.
    JoinCancel(JoinCancel),
    /// Native groups: a restored device takes the place of the lost one.
    Succession(Succession),
}

impl Payload {
    /// What the app writes beside the blob, in clear.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::JoinRequest(_) => "join_request",
            Self::KeyExchange(_) => "key_exchange",
            Self::GroupSnapshot(_) => "group_snapshot",
            Self::MemberApproved(_) => "member_approved",
            Self::MemberMeta(_) => "member_meta",
            Self::GroupMeta(_) => "group_meta",
            Self::Expense(_) => "expense",
            Self::Nudge(_) => "nudge",
            Self::SnapshotRequest(_) => "snapshot_request",
            Self::MemberLeft(_) => "member_left",
            Self::JoinCancel(_) => "join_cancel",
            Self::Succession(_) => "succession",
        }
    }

    /// What the app seals it under.
    #[must_use]
    pub fn sealed(&self) -> Sealed {
        match self {
            Self::JoinRequest(_) | Self::KeyExchange(_) | Self::JoinCancel(_) => Sealed::Pair,
            Self::GroupSnapshot(_)
            | Self::MemberApproved(_)
            | Self::MemberMeta(_)
            | Self::GroupMeta(_)
            | Self::Expense(_)
            | Self::Nudge(_)
            | Self::SnapshotRequest(_)
            | Self::MemberLeft(_)
            | Self::Succession(_) => Sealed::Group,
        }
    }

    /// The JSON object to be sealed.
    ///
    /// # Errors
    /// [`PayloadError::TooLong`].
    pub fn encode(&self) -> Result<Zeroizing<Vec<u8>>, PayloadError> {
        // It always can be written: every key is a string, and a number that is none becomes null.
        let json = Zeroizing::new(serde_json::to_vec(self).map_err(|_| PayloadError::Malformed)?);
        if json.len() > PLAINTEXT_BYTES_MAX { Err(PayloadError::TooLong) } else { Ok(json) }
    }

    /// Reads what was opened.
    ///
    /// # Errors
    /// [`PayloadError`].
    pub fn decode(plaintext: &[u8]) -> Result<Self, PayloadError> {
        if plaintext.len() > PLAINTEXT_BYTES_MAX {
            return Err(PayloadError::TooLong);
        }
        let object: Map<String, Value> =
            serde_json::from_slice(plaintext).map_err(|_| PayloadError::Malformed)?;
        let kind = object.get("type").and_then(Value::as_str).map(str::to_owned);
        let object = Value::Object(object);
        match kind.as_deref() {
            Some("join_request") => read(object, Self::JoinRequest),
            // Devices of an older version of the app still say it so.
            Some("key_exchange" | "group_key") => read(object, Self::KeyExchange),
            Some("group_snapshot") => read(object, Self::GroupSnapshot),
            Some("member_approved") => read(object, Self::MemberApproved),
            Some("member_meta") => read(object, Self::MemberMeta),
            Some("group_meta") => read(object, Self::GroupMeta),
            Some("expense") => read(object, Self::Expense),
            Some("nudge") => read(object, Self::Nudge),
            Some("snapshot_request") => read(object, Self::SnapshotRequest),
            Some("member_left") => read(object, Self::MemberLeft),
            Some("join_cancel") => read(object, Self::JoinCancel),
            Some("succession") => read(object, Self::Succession),
            Some(_) => Err(PayloadError::Unknown),
            None => Err(PayloadError::Malformed),
        }
    }
}

fn read<T: for<'de> Deserialize<'de>>(
    object: Value,
    make: impl FnOnce(T) -> Payload,
) -> Result<Payload, PayloadError> {
    T::deserialize(object).map(make).map_err(|_| PayloadError::Malformed)
}

/// A newcomer asks to be approved.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
pub struct JoinRequest {
    /// Who asks.
    #[serde(deserialize_with = "lenient::party")]
    pub public_key: Party,
    /// What its person is called.
    #[serde(deserialize_with = "lenient::text_opt", skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// How it is paid.
    #[serde(deserialize_with = "lenient::value_opt", skip_serializing_if = "Option::is_none")]
    pub payment_address: Option<PaymentAddress>,
    /// When the name or the payment address was changed, in milliseconds since the epoch.
    #[serde(deserialize_with = "lenient::number")]
    pub member_meta_updated_at: i64,
    /// When it was sent, in milliseconds since the epoch.
    #[serde(deserialize_with = "lenient::number")]
    pub timestamp: i64,
}

impl JoinRequest {
    /// A request of `device`, at a time in milliseconds since the epoch.
    #[must_use]
    pub fn new(device: DeviceKey, display_name: Option<String>, at: i64) -> Self {
        Self {
            public_key: device.into(),
            display_name,
            payment_address: None,
            member_meta_updated_at: at,
            timestamp: at,
        }
    }
}

/// A member approves a newcomer, and gives it the group's key.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeyExchange {
    /// The group; empty from very old apps.
    #[serde(default, deserialize_with = "lenient::text")]
    pub group_id: String,
    /// What it is called.
    #[serde(
        default,
        deserialize_with = "lenient::text_opt",
        skip_serializing_if = "Option::is_none"
    )]
    pub group_name: Option<String>,
    /// Its key.
    #[serde(serialize_with = "write_key", deserialize_with = "read_key")]
    pub group_key: GroupKey,
    /// Who is approved.
    #[serde(default, deserialize_with = "lenient::party")]
    pub approved_public_key: Party,
    /// By whom.
    #[serde(default, deserialize_with = "lenient::party")]
    pub approved_by: Party,
    /// What the approver is called.
    #[serde(
        default,
        deserialize_with = "lenient::text_opt",
        skip_serializing_if = "Option::is_none"
    )]
    pub approver_display_name: Option<String>,
    /// How the approver is paid.
    #[serde(
        default,
        deserialize_with = "lenient::value_opt",
        skip_serializing_if = "Option::is_none"
    )]
    pub approver_payment_address: Option<PaymentAddress>,
    /// When these two were changed, in milliseconds since the epoch.
    #[serde(
        default,
        deserialize_with = "lenient::number_opt",
        skip_serializing_if = "Option::is_none"
    )]
    pub approver_member_meta_updated_at: Option<i64>,
    /// Whether newcomers are given the history.
    #[serde(
        default,
        deserialize_with = "lenient::flag_opt",
        skip_serializing_if = "Option::is_none"
    )]
    pub backfill_new_members: Option<bool>,
    /// When it was sent, in milliseconds since the epoch.
    #[serde(default, deserialize_with = "lenient::number")]
    pub timestamp: i64,
}

impl KeyExchange {
    /// `by` approves `approved`, at a time in milliseconds since the epoch.
    #[must_use]
    pub fn new(
        group: LogId,
        group_key: GroupKey,
        approved: DeviceKey,
        by: DeviceKey,
        backfill_new_members: bool,
        at: i64,
    ) -> Self {
        Self {
            group_id: group.to_uuid_text(),
            group_name: None,
            group_key,
            approved_public_key: approved.into(),
            approved_by: by.into(),
            approver_display_name: None,
            approver_payment_address: None,
            approver_member_meta_updated_at: None,
            backfill_new_members: Some(backfill_new_members),
            timestamp: at,
        }
    }
}

fn write_key<S: Serializer>(key: &GroupKey, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&key.to_hex())
}

fn read_key<'de, D: Deserializer<'de>>(deserializer: D) -> Result<GroupKey, D::Error> {
    let text = Zeroizing::new(String::deserialize(deserializer)?);
    // The error must not repeat what may be a key with a slip in it.
    GroupKey::from_hex(&text).map_err(|_| serde::de::Error::custom("not a group key"))
}

/// A part of the group's history. Each part is merged for itself; there is no end marker.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupSnapshot {
    /// The same for all parts.
    #[serde(deserialize_with = "lenient::text")]
    pub snapshot_id: String,
    /// When it was made, in milliseconds since the epoch.
    #[serde(deserialize_with = "lenient::number")]
    pub timestamp: i64,
    /// The group.
    #[serde(deserialize_with = "lenient::text")]
    pub group_id: String,
    /// `meta`, `expenses` or `activity`. Readers look at what is there.
    #[serde(deserialize_with = "lenient::text")]
    pub part: String,
    /// What the group is called.
    #[serde(deserialize_with = "lenient::text_opt", skip_serializing_if = "Option::is_none")]
    pub group_name: Option<String>,
    /// Whether newcomers are given the history.
    #[serde(deserialize_with = "lenient::flag_opt", skip_serializing_if = "Option::is_none")]
    pub backfill_new_members: Option<bool>,
    /// When the group was made, in milliseconds since the epoch.
    #[serde(deserialize_with = "lenient::number_opt", skip_serializing_if = "Option::is_none")]
    pub created_at: Option<i64>,
    /// Its members.
    #[serde(deserialize_with = "lenient::list", skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<SnapshotMember>,
    /// Those who are approved.
    #[serde(deserialize_with = "lenient::list", skip_serializing_if = "Vec::is_empty")]
    pub approved_member_keys: Vec<Party>,
    /// What they are called.
    #[serde(deserialize_with = "lenient::map", skip_serializing_if = "BTreeMap::is_empty")]
    pub display_names: BTreeMap<Party, String>,
    /// When a name or payment address was changed, in milliseconds since the epoch.
    #[serde(deserialize_with = "lenient::numbers", skip_serializing_if = "BTreeMap::is_empty")]
    pub member_meta_updated_at: BTreeMap<Party, i64>,
    /// How they are paid.
    #[serde(deserialize_with = "lenient::map", skip_serializing_if = "BTreeMap::is_empty")]
    pub payment_addresses: BTreeMap<Party, PaymentAddress>,
    /// Expenses and settlements.
    #[serde(deserialize_with = "lenient::list", skip_serializing_if = "Vec::is_empty")]
    pub expenses: Vec<Expense>,
    /// What has happened.
    #[serde(deserialize_with = "lenient::list", skip_serializing_if = "Vec::is_empty")]
    pub activity: Vec<Activity>,
    /// Native groups: true if its author still waits for the history itself, so that this is not all
    /// of it.
    #[serde(deserialize_with = "lenient::flag_opt", skip_serializing_if = "Option::is_none")]
    pub partial: Option<bool>,
}

/// A member, as a snapshot has it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotMember {
    /// Who.
    #[serde(deserialize_with = "lenient::party")]
    pub device_public_key: Party,
    /// When it joined, as an ISO 8601 date.
    #[serde(deserialize_with = "lenient::text_opt")]
    pub joined_at: Option<String>,
}

/// A member tells all that somebody was approved.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberApproved {
    /// Who.
    #[serde(deserialize_with = "lenient::party")]
    pub approved_public_key: Party,
    /// By whom.
    #[serde(deserialize_with = "lenient::party")]
    pub approved_by: Party,
    /// When, in milliseconds since the epoch.
    #[serde(deserialize_with = "lenient::number")]
    pub timestamp: i64,
    /// What is to stand in the list of what has happened.
    #[serde(deserialize_with = "lenient::value_opt", skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
}

/// A member says how it is called and paid.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberMeta {
    /// What its person is called.
    #[serde(deserialize_with = "lenient::text_opt", skip_serializing_if = "Option::is_none")]
    pub display_name: Option<String>,
    /// How it is paid.
    #[serde(deserialize_with = "lenient::value_opt", skip_serializing_if = "Option::is_none")]
    pub payment_address: Option<PaymentAddress>,
    /// When these two were changed, in milliseconds since the epoch.
    #[serde(deserialize_with = "lenient::number")]
    pub member_meta_updated_at: i64,
    /// When it was sent, in milliseconds since the epoch.
    #[serde(deserialize_with = "lenient::number")]
    pub timestamp: i64,
    /// What is to stand in the list of what has happened.
    #[serde(deserialize_with = "lenient::value_opt", skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
}

/// The group's name and settings.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GroupMeta {
    /// What it is called.
    #[serde(deserialize_with = "lenient::text_opt", skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether newcomers are given the history.
    #[serde(deserialize_with = "lenient::flag_opt", skip_serializing_if = "Option::is_none")]
    pub backfill_new_members: Option<bool>,
    /// When it was sent, in milliseconds since the epoch.
    #[serde(deserialize_with = "lenient::number")]
    pub timestamp: i64,
    /// What is to stand in the list of what has happened.
    #[serde(deserialize_with = "lenient::value_opt", skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
}

/// An expense, with what is to stand in the list of what has happened.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExpenseMessage {
    /// The expense as it is from now on.
    #[serde(flatten)]
    pub expense: Expense,
    /// The newest thing that has happened to it.
    #[serde(deserialize_with = "lenient::value_opt", skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
    /// Everything that has happened to it with this change.
    #[serde(deserialize_with = "lenient::list", skip_serializing_if = "Vec::is_empty")]
    pub activities: Vec<Activity>,
}

/// An expense, or a settlement between two.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Expense {
    /// Its name: a UUID.
    #[serde(deserialize_with = "lenient::text")]
    pub id: String,
    /// In units of the currency.
    #[serde(deserialize_with = "lenient::amount")]
    pub amount: f64,
    /// Three letters.
    #[serde(default = "usual_currency", deserialize_with = "lenient::currency")]
    pub currency: String,
    /// What it was for.
    #[serde(deserialize_with = "lenient::text")]
    pub reason: String,
    /// Who has paid.
    #[serde(deserialize_with = "lenient::party")]
    pub paid_by: Party,
    /// Who share it, in equal parts.
    #[serde(deserialize_with = "lenient::list")]
    pub split_among: Vec<Party>,
    /// The day that its author chose, in milliseconds since the epoch.
    #[serde(deserialize_with = "lenient::number")]
    pub timestamp: i64,
    /// When it was last changed, in milliseconds since the epoch; none if it never was.
    #[serde(deserialize_with = "lenient::number_opt", skip_serializing_if = "Option::is_none")]
    pub revised_at: Option<i64>,
    /// Whether it was deleted.
    #[serde(deserialize_with = "lenient::flag", skip_serializing_if = "is_false")]
    pub deleted: bool,
    /// `expense` or `settlement`.
    #[serde(default = "usual_kind", deserialize_with = "lenient::kind")]
    pub kind: String,
    /// The author's own note of where it comes from.
    #[serde(deserialize_with = "lenient::text_opt", skip_serializing_if = "Option::is_none")]
    pub linked_tx_ref: Option<String>,
    /// `pending` on its way, `synced` where it has arrived.
    #[serde(deserialize_with = "lenient::text_opt", skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
}

/// The currency of an expense that does not say one.
fn usual_currency() -> String {
    "ETB".to_owned()
}

/// The kind of an expense that does not say one.
fn usual_kind() -> String {
    "expense".to_owned()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

/// A reminder to those who owe.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Nudge {
    /// Its name: a UUID.
    #[serde(deserialize_with = "lenient::text")]
    pub id: String,
    /// When it was sent, in milliseconds since the epoch.
    #[serde(deserialize_with = "lenient::number")]
    pub timestamp: i64,
    /// Who reminds.
    #[serde(deserialize_with = "lenient::party")]
    pub actor: Party,
    /// What all of them owe together, in units of the currency.
    #[serde(deserialize_with = "lenient::amount")]
    pub amount: f64,
    /// Who owe.
    #[serde(deserialize_with = "lenient::list")]
    pub debtor_pks: Vec<Party>,
    /// What each of them owes.
    #[serde(deserialize_with = "lenient::amounts")]
    pub amount_by_debtor_pk: BTreeMap<Party, f64>,
}

/// Somebody who has lost the history asks for it.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SnapshotRequest {
    /// Who.
    #[serde(deserialize_with = "lenient::party")]
    pub public_key: Party,
    /// When, in milliseconds since the epoch.
    #[serde(deserialize_with = "lenient::number")]
    pub timestamp: i64,
}

impl SnapshotRequest {
    /// A request of `device`, at a time in milliseconds since the epoch.
    #[must_use]
    pub fn new(device: DeviceKey, at: i64) -> Self {
        Self { public_key: device.into(), timestamp: at }
    }
}

/// An approved member leaves.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MemberLeft {
    /// Who.
    #[serde(deserialize_with = "lenient::party")]
    pub public_key: Party,
    /// When, in milliseconds since the epoch.
    #[serde(deserialize_with = "lenient::number")]
    pub left_at: i64,
    /// What is to stand in the list of what has happened.
    #[serde(deserialize_with = "lenient::value_opt", skip_serializing_if = "Option::is_none")]
    pub activity: Option<Activity>,
}

/// A newcomer takes its request back.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JoinCancel {
    /// Who.
    #[serde(deserialize_with = "lenient::party")]
    pub public_key: Party,
    /// When, in milliseconds since the epoch.
    #[serde(deserialize_with = "lenient::number")]
    pub timestamp: i64,
}

/// Something that has happened in the group.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Activity {
    /// Its name: the first one that comes under a name stays.
    #[serde(deserialize_with = "lenient::text")]
    pub id: String,
    /// When, in milliseconds since the epoch.
    #[serde(deserialize_with = "lenient::number")]
    pub timestamp: i64,
    /// Who did it.
    #[serde(deserialize_with = "lenient::party")]
    pub actor: Party,
    /// What it is, for instance `expense_created`.
    #[serde(deserialize_with = "lenient::text")]
    pub kind: String,
    /// What belongs to it.
    #[serde(deserialize_with = "lenient::object")]
    pub data: Map<String, Value>,
}

/// An account to which a member is paid.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PaymentAddress {
    /// The bank, as the app numbers them.
    #[serde(deserialize_with = "lenient::number")]
    pub bank_id: i64,
    /// The account.
    #[serde(deserialize_with = "lenient::text")]
    pub account_number: String,
    /// Whose it is.
    #[serde(deserialize_with = "lenient::text", skip_serializing_if = "is_blank")]
    pub account_holder_name: String,
}

impl PaymentAddress {
    /// Whether one can pay to it.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.bank_id > 0 && !is_blank(&self.account_number)
    }
}

fn is_blank(text: &str) -> bool {
    text.trim().is_empty()
}

#[cfg(test)]
pub(crate) mod tests;
