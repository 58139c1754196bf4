//! Every message of the native protocol.
//!
//! A frame is the MessagePack array `[type, request id, {"name": value, …}]`. The request id is the
//! device's; an answer repeats it, and 0 is nobody's. A field that is absent has its default; a field
//! that is not known is ignored. Types below 128 are a device's, the others the relay's: one table,
//! so that no number is ever used twice.

use serde::{Deserialize, Serialize};

use crate::ack::AckWire;
use crate::body::Body;
use crate::bounded::{Bounded, BoundedBytes, BoundedText};
use crate::error::{ErrorCode, Failure};
use crate::header::HeaderBytes;
use crate::ids::{DeviceKey, Digest, Head, Instance, LogId, Signature};
use crate::limits::{
    BATCH_ENTRIES_MAX, CAPABILITIES_MAX, NAME_BYTES_MAX, NATIVE_MEMBERS_MAX, PUSH_TOKEN_BYTES_MAX,
    RECIPIENTS_MAX, SNAPSHOT_CHUNK_BYTES_MAX, SNAPSHOTS_MAX, SUBSCRIPTIONS_MAX,
};
use crate::token::TOKEN_BYTES;

/// A list of names: capabilities of either end.
pub type Names = Bounded<BoundedText<NAME_BYTES_MAX>, CAPABILITIES_MAX>;

/// The keys that an addressed entry names; empty for an entry to all.
pub type Recipients = Bounded<DeviceKey, RECIPIENTS_MAX>;

/// Defines the frames of one direction: a struct for each, an enum of them all, and the numbers.
macro_rules! frames {
    (
        $(#[$enum_doc:meta])* $enum_name:ident;
        $(
            $(#[$doc:meta])*
            $number:literal $name:ident {
                $( $(#[$field_doc:meta])* $field:ident : $type:ty ),* $(,)?
            }
        )*
    ) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
            pub struct $name {
                $( $(#[$field_doc])* pub $field: $type, )*
            }
        )*

        $(#[$enum_doc])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "each variant's struct has the doc comment")]
        pub enum $enum_name {
            $( $name($name), )*
        }

        impl $enum_name {
            /// Type number and name of every frame of this direction.
            pub const TABLE: &[(u8, &'static str)] = &[$(($number, stringify!($name)),)*];

            /// The number that stands first in the frame.
            #[must_use]
            pub const fn number(&self) -> u8 {
                match self { $( Self::$name(_) => $number, )* }
            }

            /// The frame's name: the value of a metric label.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self { $( Self::$name(_) => stringify!($name), )* }
            }

            /// Reads the fields of a frame of type `number`.
            pub(crate) fn decode_fields(
                number: u8,
                fields: &[u8],
            ) -> Result<Self, crate::codec::DecodeError> {
                match number {
                    $( $number => crate::strict::decode(fields).map(Self::$name), )*
                    _ => Err(crate::codec::DecodeError::UnknownFrame),
                }
            }

            /// Writes the fields.
            pub(crate) fn encode_fields(&self, out: &mut Vec<u8>) {
                match self { $( Self::$name(frame) => crate::codec::encode_value(frame, out), )* }
            }
        }

        $(
            impl From<$name> for $enum_name {
                fn from(frame: $name) -> Self {
                    Self::$name(frame)
                }
            }
        )*
    };
}

/// One entry as a device sends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryIn {
    /// The canonical header.
    pub header: HeaderBytes,
    /// The body that the header names by its hash.
    pub body: Body,
    /// The author's signature; absent only in `totals` groups.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<Signature>,
    /// The named addressees: they must hash to the header's audience.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub recipients: Recipients,
    /// `totals` groups: Totals' own kind string.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub totals_kind: Option<BoundedText<NAME_BYTES_MAX>>,
}

fn is_empty(recipients: &Recipients) -> bool {
    recipients.is_empty()
}

/// What a device has acked of a log, and in which incarnation. With every `Subscribe` it repeats the
/// whole of it, so that a lost ack heals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckState {
    /// The incarnation whose seqs these are; for another one they free nothing.
    pub incarnation: u64,
    /// What is acked.
    pub acked: AckWire,
}

frames! {
    /// What a device sends.
    ClientFrame;

    /// First frame of a connection. Answer: `Welcome`, or `Error` and a close.
    1 Authenticate {
        /// The protocol version that the device chose from the greeting's range.
        version: u16,
        /// The device's key.
        device: DeviceKey,
        /// The running process. The same device and instance supersedes the older session.
        instance: Instance,
        /// 32 random bytes, for this connection alone: the relay's proof covers them.
        challenge: Digest,
        /// Signature over the greeting (see [`crate::handshake`]). This or `token`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signature: Option<Signature>,
        /// A resume token of this device, in place of the signature.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<BoundedBytes<TOKEN_BYTES>>,
        /// Wished heartbeat interval in seconds; the relay clamps it to 25–300.
        heartbeat_s: u16,
        /// Bytes of `Entry` frames that the relay may send before a `Grant`; absent for no window.
        /// An entry is begun while any of it is left, so one may exceed it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        window: Option<u64>,
        /// What else the device can do.
        #[serde(default)]
        capabilities: Names,
    }

    /// Receive a log from a cursor on. Answer: `Subscribed`; then `Entry` and `Stubs`, then
    /// `Drained`, then live.
    2 Subscribe {
        /// Which log.
        log: LogId,
        /// The head up to which the device has read; absent to begin at the first entry.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cursor: Option<Head>,
        /// The device's whole ack state (groups).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        acked: Option<AckState>,
    }

    /// Receive a log no more. Answer: `Done`.
    3 Unsubscribe {
        /// Which log.
        log: LogId,
    }

    /// Append one entry; also `found` (log id zero) and `join` (not yet a member). Answer:
    /// `Appended`, when it is fsynced.
    4 Append {
        /// The entry.
        entry: EntryIn,
    }

    /// Append entries of one log with contiguous counts: all or none. Answer: `Appended`.
    5 AppendBatch {
        /// The entries, in order.
        entries: Bounded<EntryIn, BATCH_ENTRIES_MAX>,
    }

    /// Permit the relay to delete these from this device's queue, in a subscription. No answer, except
    /// an error.
    6 Ack {
        /// Which log.
        log: LogId,
        /// What is acked, in which incarnation.
        state: AckState,
    }

    /// Who is a member of a log. Answer: `Members`.
    7 ListMembers {
        /// Which log.
        log: LogId,
    }

    /// The device's logs, in the order of their ids. Answer: `Logs`.
    8 ListLogs {
        /// Those after this one: the last of the answer before. Absent to begin.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<LogId>,
    }

    /// A sign of life. Answer: `Heartbeat`, with the heads that changed.
    9 Ping {}

    /// The device has taken this many more bytes of entries. No answer.
    10 Grant {
        /// Bytes to add to the window.
        bytes: u64,
    }

    /// Make a `totals` group. Answer: `Joined`.
    11 CreateTotals {}

    /// Join a `totals` group by its id. Answer: `Joined`.
    12 JoinTotals {
        /// Which group.
        log: LogId,
    }

    /// Leave a `totals` group. Answer: `Done`.
    13 LeaveTotals {
        /// Which group.
        log: LogId,
    }

    /// A token for the HTTP routes of one vault. Answer: `Token`.
    14 GetVaultToken {
        /// Which vault.
        log: LogId,
    }

    /// Where this device's doorbell is; without a token, nowhere. Answer: `Done`.
    15 SetPushToken {
        /// The push service, such as `fcm`.
        platform: BoundedText<NAME_BYTES_MAX>,
        /// The device's token there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        token: Option<BoundedText<PUSH_TOKEN_BYTES_MAX>>,
    }

    /// The snapshots of a vault. Answer: `Snapshots`.
    16 ListSnapshots {
        /// Which vault.
        log: LogId,
    }

    /// A chunk of a sealed snapshot, which is not real before its control entry. Chunks come in
    /// order; an offset other than the next one is answered `out_of_order` with the next one, so an
    /// upload that was broken off is resumed by asking with any chunk. Answer: `Done`; of the last
    /// chunk, when the whole has been found to be what the digest says.
    17 PutSnapshotChunk {
        /// Which vault.
        log: LogId,
        /// SHA-256 of the whole sealed snapshot.
        digest: Digest,
        /// Its whole size in bytes.
        size: u64,
        /// Where this chunk begins.
        offset: u64,
        /// The chunk.
        bytes: BoundedBytes<SNAPSHOT_CHUNK_BYTES_MAX>,
    }

    /// A range of a snapshot. Answer: `SnapshotChunk`.
    18 GetSnapshotChunk {
        /// Which vault.
        log: LogId,
        /// Which snapshot.
        digest: Digest,
        /// Where to begin.
        offset: u64,
        /// How much, at most.
        length: u32,
    }

    /// Receive a vault from a snapshot on, as a device does that has nothing yet: as if the floor
    /// stood at the snapshot's head. Answer: `Subscribed` and `Floor`; then as of `Subscribe`.
    19 SubscribeFrom {
        /// Which vault.
        log: LogId,
        /// Which snapshot.
        snapshot: Digest,
    }
}

frames! {
    /// What the relay sends.
    RelayFrame;

    /// First frame of a connection, before anything is asked.
    128 Greeting {
        /// 32 random bytes, for this connection alone.
        challenge: Digest,
        /// The relay's key.
        relay: DeviceKey,
        /// Lowest and highest protocol version that the relay speaks.
        versions: (u16, u16),
        /// What else the relay can do.
        #[serde(default)]
        capabilities: Names,
        /// The relay's clock, in milliseconds since the epoch.
        now: u64,
    }

    /// The device is known. Answer to `Authenticate`.
    129 Welcome {
        /// The relay's signature over the greeting, the device's key and its challenge (see
        /// [`crate::handshake`]).
        proof: Signature,
        /// The store's incarnation: the one that acks must name.
        incarnation: u64,
        /// The heartbeat interval in force, in seconds.
        heartbeat_s: u16,
        /// Good for one reconnect without a signature, until it expires.
        resume_token: BoundedBytes<TOKEN_BYTES>,
        /// The logs that this device is a member of.
        #[serde(default)]
        logs: Bounded<LogSummary, SUBSCRIPTIONS_MAX>,
    }

    /// A refusal. With request id 0 it is about the connection.
    130 Error {
        /// The stable code.
        code: ErrorCode,
        /// A sentence for a person.
        message: BoundedText<256>,
        /// How long to wait, in milliseconds, where waiting helps.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
        /// `out_of_order`: the count that is expected next; of a chunk, the offset.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        expected: Option<u64>,
        /// `stale`, `history_changed`: the relay's head.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        head: Option<Head>,
        /// `revoked`: where.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        seq: Option<u64>,
        /// `conflict`: the newest count that the relay has of this sender.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        count: Option<u64>,
        /// `conflict`: the digest of that entry.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<Digest>,
        /// `group_limit_reached`, `group_full` and the limits of vaults: the limit.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        limit: Option<u64>,
        /// The log that an unrequested error (an ack past the head) is about.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        log: Option<LogId>,
    }

    /// The entry, or the whole batch, is fsynced.
    131 Appended {
        /// The log; for a `found` entry its new id.
        log: LogId,
        /// The seq of the (first) entry; a batch has the seqs from here on.
        seq: u64,
        /// Whether the relay had it already: nothing was appended now.
        duplicate: bool,
        /// The log's head after it; of a duplicate, the newest committed head.
        head: Head,
    }

    /// The subscription holds. Answer to `Subscribe`.
    132 Subscribed {
        /// Which log.
        log: LogId,
        /// The newest committed head: `Drained` follows when everything up to it was sent.
        head: Head,
    }

    /// An entry for this device, or a control entry.
    133 Entry {
        /// Which log.
        log: LogId,
        /// Its position.
        seq: u64,
        /// When it was committed, in milliseconds since the epoch, by the relay's clock.
        at: u64,
        /// The canonical header.
        header: HeaderBytes,
        /// The body.
        body: Body,
        /// The author's signature; absent in `totals` groups.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signature: Option<Signature>,
        /// The keys that the author named; empty for an entry to all.
        #[serde(default, skip_serializing_if = "is_empty")]
        recipients: Recipients,
        /// `totals` groups: Totals' own kind string.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        totals_kind: Option<BoundedText<NAME_BYTES_MAX>>,
    }

    /// What stands in place of entries whose body is gone or not for this device.
    134 Stubs {
        /// Which log.
        log: LogId,
        /// The seq of the first; the others follow without a gap.
        seq: u64,
        /// Entry digest and reason of each.
        stubs: Bounded<Stub, STUBS_MAX>,
    }

    /// Everything up to this head has been sent; from here on the log is live.
    135 Drained {
        /// Which log.
        log: LogId,
        /// Up to where.
        head: Head,
    }

    /// The cursor is below what the relay keeps. The control entries up to this head (of a vault
    /// also the keys) follow as `Entry`, then everything above it.
    136 Floor {
        /// Which log.
        log: LogId,
        /// The newest head below which only control entries are kept, and keys of a vault.
        head: Head,
        /// Vaults: the snapshot to start from. It may be of a later head than this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        snapshot: Option<SnapshotSummary>,
    }

    /// A sign of life, at each interval and in answer to `Ping`.
    137 Heartbeat {
        /// The relay's clock, in milliseconds since the epoch.
        now: u64,
        /// The subscribed logs whose head changed since the last one, with their newest heads.
        #[serde(default)]
        heads: Bounded<LogSummary, SUBSCRIPTIONS_MAX>,
    }

    /// Answer to `ListMembers`.
    138 Members {
        /// Which log.
        log: LogId,
        /// The head that this list is true at.
        head: Head,
        /// Who.
        members: Bounded<Member, NATIVE_MEMBERS_MAX>,
    }

    /// Answer to `ListLogs`.
    139 Logs {
        /// Logs that this device is a member of, in the order of their ids. If there are as many as
        /// fit, there may be more.
        logs: Bounded<LogSummary, SUBSCRIPTIONS_MAX>,
    }

    /// This device's membership in a log has changed; sent to all its sessions.
    140 Membership {
        /// Which log.
        log: LogId,
        /// `joined`, `left` or `revoked`. After the last two, the subscription is over.
        state: MembershipState,
        /// The seq of the control entry that did it.
        seq: u64,
    }

    /// A newer session of the same device and instance is here: do not reconnect.
    141 Superseded {}

    /// The relay is shutting down: reconnect after the time given.
    142 Draining {
        /// How long to wait, in milliseconds; jittered for each session.
        reconnect_after_ms: u64,
        /// Good for that reconnect.
        resume_token: BoundedBytes<TOKEN_BYTES>,
    }

    /// Done; there is nothing more to say.
    143 Done {}

    /// Answer to `CreateTotals` and `JoinTotals`.
    144 Joined {
        /// Which group.
        log: LogId,
        /// When, in milliseconds since the epoch: the device's `joinedAt`.
        at: u64,
        /// The head after joining.
        head: Head,
    }

    /// Answer to `GetVaultToken`.
    145 Token {
        /// The token.
        token: BoundedBytes<TOKEN_BYTES>,
        /// Good until then, in seconds since the epoch.
        expires: u64,
    }

    /// Answer to `ListSnapshots`.
    146 Snapshots {
        /// The snapshots that may be downloaded, newest first.
        snapshots: Bounded<SnapshotSummary, SNAPSHOTS_MAX>,
    }

    /// Answer to `GetSnapshotChunk`.
    147 SnapshotChunk {
        /// Where it begins.
        offset: u64,
        /// The bytes; fewer than asked for at the end.
        bytes: BoundedBytes<SNAPSHOT_CHUNK_BYTES_MAX>,
    }

    /// Entries are being refused because a log is full: of undelivered bytes, or a vault of entries or
    /// bytes.
    148 QuotaReached {
        /// Which log.
        log: LogId,
    }

    /// This device's recovery vault was fetched with its code.
    149 RecoveryFetched {
        /// When, in milliseconds since the epoch.
        at: u64,
    }
}

/// Most stubs in one frame: a page of a catch-up.
pub const STUBS_MAX: usize = 256;

/// Entry digest and reason of an entry that is not sent. In MessagePack an array of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(Digest, StubReason)", into = "(Digest, StubReason)")]
pub struct Stub {
    /// The entry's digest, for the chain.
    pub digest: Digest,
    /// Why there is no body.
    pub reason: StubReason,
}

impl From<(Digest, StubReason)> for Stub {
    fn from((digest, reason): (Digest, StubReason)) -> Self {
        Self { digest, reason }
    }
}

impl From<Stub> for (Digest, StubReason) {
    fn from(stub: Stub) -> Self {
        (stub.digest, stub.reason)
    }
}

/// Why a reader gets a stub: the first of these that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StubReason {
    /// The reader is the author.
    Own,
    /// It was never for this reader.
    NotAddressed,
    /// The reader has acked it, and the body is gone.
    Acked,
    /// The relay has deleted it without the reader's ack.
    Expired,
}

/// How a device's membership has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MembershipState {
    /// It is a member now.
    Joined,
    /// It has left.
    Left,
    /// It was revoked.
    Revoked,
}

/// A log and where it ends. In MessagePack an array of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(LogId, Head)", into = "(LogId, Head)")]
pub struct LogSummary {
    /// Which log.
    pub log: LogId,
    /// Its newest committed head.
    pub head: Head,
}

impl From<(LogId, Head)> for LogSummary {
    fn from((log, head): (LogId, Head)) -> Self {
        Self { log, head }
    }
}

impl From<LogSummary> for (LogId, Head) {
    fn from(summary: LogSummary) -> Self {
        (summary.log, summary.head)
    }
}

/// One member of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Who.
    pub device: DeviceKey,
    /// The seq of the control entry that made it a member.
    pub joined_seq: u64,
    /// When, in milliseconds since the epoch, by the relay's clock.
    pub joined_at: u64,
}

/// One downloadable snapshot of a vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSummary {
    /// The head whose state it holds.
    pub head: Head,
    /// SHA-256 of the sealed snapshot.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Whether another device has confirmed it.
    pub confirmed: bool,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self {
            code: failure.code,
            message: BoundedText::new(failure.code.sentence()).unwrap_or_default(),
            retry_after_ms: failure.retry_after_ms,
            expected: failure.expected,
            head: failure.head,
            seq: failure.seq,
            count: failure.count,
            digest: failure.digest,
            limit: failure.limit,
            log: None,
        }
    }
}

impl Error {
    /// The refusal without its sentence.
    #[must_use]
    pub fn failure(&self) -> Failure {
        Failure {
            code: self.code,
            retry_after_ms: self.retry_after_ms,
            expected: self.expected,
            head: self.head,
            seq: self.seq,
            count: self.count,
            digest: self.digest,
            limit: self.limit,
        }
    }
}
