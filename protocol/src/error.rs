//! Every refusal that a frame can meet: a stable code, a sentence, and what the device needs to act.

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::{Digest, Head};

/// Defines [`ErrorCode`] with its wire names and its sentences in one table.
macro_rules! error_codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $sentence:literal;)*) => {
        /// A stable error code: a string on the wire, never renamed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum ErrorCode {
            $($(#[$doc])* $variant,)*
            /// A code that this crate does not know: one of a newer relay.
            Unknown,
        }

        impl ErrorCode {
            /// Every code that a relay of this version sends.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The code on the wire, and the value of the metric label.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* Self::Unknown => "unknown" }
            }

            /// A sentence for a person.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $sentence,)* Self::Unknown => "unknown error" }
            }

            /// Reads a code; [`ErrorCode::Unknown`] for one that this crate does not know.
            #[must_use]
            pub fn from_name(name: &str) -> Self {
                match name { $($name => Self::$variant,)* _ => Self::Unknown }
            }
        }
    };
}

error_codes! {
    /// The frame or a field of it cannot be decoded. Do not repeat.
    Malformed = "malformed", "the frame could not be decoded";
    /// The frame's type is not known to this relay. The connection stays.
    UnknownFrame = "unknown_frame", "the frame type is not known";
    /// A known frame that this relay cannot serve. The connection stays.
    Unsupported = "unsupported", "this relay does not serve this request";
    /// A body, batch or frame is longer than its bound. Do not repeat.
    TooLarge = "too_large", "the request is larger than allowed";
    /// The device's version is outside the greeting's range.
    VersionUnsupported = "version_unsupported", "no common protocol version";
    /// The proof or token was not accepted; the connection closes.
    AuthenticationFailed = "authentication_failed", "authentication failed";
    /// Only `Authenticate` is heard before authentication; the connection closes.
    NotAuthenticated = "not_authenticated", "authenticate first";
    /// Four instances of this device are connected already.
    TooManyInstances = "too_many_instances", "too many sessions of this device";
    /// Too often; wait `retry_after_ms`.
    RateLimited = "rate_limited", "too many requests";
    /// More unanswered requests or bytes than allowed. Wait for answers, or `retry_after_ms`.
    TooManyInFlight = "too_many_in_flight", "too many unanswered requests";
    /// More subscriptions than one session may have.
    TooManySubscriptions = "too_many_subscriptions", "too many subscriptions";
    /// The relay cannot do it now. Nothing is known to have happened: resend the same bytes after
    /// `retry_after_ms`; (sender, count) makes that safe.
    Unavailable = "unavailable", "temporarily unavailable";
    /// There is no such log, or this device is not a member of it: one answer for both.
    NoSuchLog = "no_such_log", "no such log";
    /// The header is not one: wrong version, kind, sender, log type, or it does not fit its frame.
    BadHeader = "bad_header", "the entry's header is not acceptable";
    /// SHA-256(body) is not what the header says.
    BadBody = "bad_body", "the body does not match the header";
    /// The control or key body is not acceptable.
    BadControl = "bad_control", "the control or key body is not acceptable";
    /// The entry's signature, or a signature within it, does not verify.
    BadSignature = "bad_signature", "a signature does not verify";
    /// A named recipient is not a member, or the list does not hash to the audience.
    BadAudience = "bad_audience", "the recipients do not match the audience or the members";
    /// The count is higher than `expected`: send the ones before it first.
    OutOfOrder = "out_of_order", "an earlier entry of this sender is missing";
    /// This (sender, count) is another entry: this device was cloned or restored. `count` and
    /// `digest` are the newest that the relay has.
    Conflict = "conflict", "another entry has this sender and count";
    /// A rotation, `join_key` or `snapshot` whose author had not seen the newest change of
    /// membership or key. Catch up to `head`, rebase, and send anew.
    Stale = "stale", "a newer change must be seen first";
    /// This device was revoked at `seq`. Told to that device and nobody else.
    Revoked = "revoked", "this device was revoked";
    /// This device is a member already.
    AlreadyMember = "already_member", "already a member";
    /// The join key that signed is not the log's (any more).
    InviteInvalid = "invite_invalid", "the invitation is not valid";
    /// This device is in `limit` active groups already.
    GroupLimitReached = "group_limit_reached", "too many active groups";
    /// The group has `limit` members already.
    GroupFull = "group_full", "the group is full";
    /// The log holds as many undelivered bytes as it may. Wait `retry_after_ms`, or for acks.
    Quota = "quota", "the log is full of undelivered entries";
    /// The vault holds `limit` entries. A confirmed snapshot lets the ones below it go.
    EntriesLimitReached = "entries_limit_reached", "the vault holds too many entries";
    /// The vault holds `limit` bytes. A confirmed snapshot lets the entries below it go.
    BytesLimitReached = "bytes_limit_reached", "the vault holds too many bytes";
    /// The vault has `limit` devices.
    DevicesLimitReached = "devices_limit_reached", "the vault has too many devices";
    /// The vault has `limit` snapshots and uploads, or as many bytes of them.
    SnapshotsLimitReached = "snapshots_limit_reached", "the vault holds too many snapshots";
    /// The vault has no snapshot of this digest, or its upload is not complete.
    NoSuchSnapshot = "no_such_snapshot", "no such snapshot";
    /// A chunk that does not fit its snapshot, bytes that are not those of the digest, or a head that
    /// is not the vault's.
    BadSnapshot = "bad_snapshot", "the snapshot is not acceptable";
    /// The cursor is past the head, or on another chain: history was lost. `head` is the relay's.
    HistoryChanged = "history_changed", "the log's history has changed";
    /// An ack names a seq past the head. It freed nothing.
    AckPastHead = "ack_past_head", "an ack is past the head";
    /// An ack of a log that this session is not subscribed to, so that nothing shows that both ends
    /// mean the same history. It freed nothing: subscribe, with the ack state.
    NotSubscribed = "not_subscribed", "this session is not subscribed to the log";
    /// The relay is shutting down; reconnect after `retry_after_ms`.
    Draining = "draining", "the relay is shutting down";
    /// A bug in the relay; it has been logged.
    Internal = "internal", "internal error";
}

impl Serialize for ErrorCode {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for ErrorCode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = crate::bounded::BoundedText::<{ crate::limits::NAME_BYTES_MAX }>::deserialize(
            deserializer,
        )?;
        Ok(Self::from_name(&name))
    }
}

/// A refusal: its code, and the values that the device needs to act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", code.sentence())]
pub struct Failure {
    /// Which.
    pub code: ErrorCode,
    /// How long to wait, in milliseconds, where waiting helps.
    pub retry_after_ms: Option<u64>,
    /// `out_of_order`: the count that is expected next; of a chunk, the offset.
    pub expected: Option<u64>,
    /// `stale`, `history_changed`: the relay's head.
    pub head: Option<Head>,
    /// `revoked`: where.
    pub seq: Option<u64>,
    /// `conflict`: the newest count that the relay has of this sender.
    pub count: Option<u64>,
    /// `conflict`: the digest of that entry.
    pub digest: Option<Digest>,
    /// `group_limit_reached`, `group_full` and the limits of vaults: the limit.
    pub limit: Option<u64>,
}

impl Failure {
    /// A refusal without values.
    #[must_use]
    pub const fn new(code: ErrorCode) -> Self {
        Self {
            code,
            retry_after_ms: None,
            expected: None,
            head: None,
            seq: None,
            count: None,
            digest: None,
            limit: None,
        }
    }

    /// With a time to wait.
    #[must_use]
    pub const fn after_ms(code: ErrorCode, retry_after_ms: u64) -> Self {
        Self { retry_after_ms: Some(retry_after_ms), ..Self::new(code) }
    }

    /// `out_of_order`.
    #[must_use]
    pub const fn out_of_order(expected: u64) -> Self {
        Self { expected: Some(expected), ..Self::new(ErrorCode::OutOfOrder) }
    }

    /// `conflict`.
    #[must_use]
    pub const fn conflict(count: u64, digest: Digest) -> Self {
        Self { count: Some(count), digest: Some(digest), ..Self::new(ErrorCode::Conflict) }
    }

    /// `stale` or `history_changed`.
    #[must_use]
    pub const fn at_head(code: ErrorCode, head: Head) -> Self {
        Self { head: Some(head), ..Self::new(code) }
    }

    /// `revoked`.
    #[must_use]
    pub const fn revoked(seq: u64) -> Self {
        Self { seq: Some(seq), ..Self::new(ErrorCode::Revoked) }
    }

    /// `group_limit_reached`, `group_full`, or a limit of vaults.
    #[must_use]
    pub const fn limit(code: ErrorCode, limit: u64) -> Self {
        Self { limit: Some(limit), ..Self::new(code) }
    }
}
