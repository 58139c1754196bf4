//! All that the actors ask of the world: a [`Store`], a [`Clock`] and a [`Push`] service.
//!
//! The store is the judge. Whatever an actor holds in memory is a hint; a commit names the head that
//! it extends, and a store that holds another one refuses that log's part of the batch and nobody
//! else's. What every store must do is written down as tests (`tests/store_contract.rs` of the relay
//! crate), which SQLite, PostgreSQL and the in-memory store of the unit tests all pass.

mod push;
mod recovery;
mod resting;
mod vaults;

use async_trait::async_trait;
use sealwire_protocol::challenge::CHALLENGE_BYTES;
use sealwire_protocol::frame::Member;
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::ids::Signature;
use sealwire_protocol::{AckSet, Body, DeviceKey, Digest, LogId, LogType};
use thiserror::Error;

pub use push::{Push, PushStore, Rang, RecentEntry, RecentLog, Ring, Trouble, Urgency};
pub use recovery::{
    Counted, NewRecovery, RecoveryId, RecoveryIds, RecoveryPut, RecoveryRecord, RecoveryStore,
};
pub use resting::{Alter, RestingLogs};
pub use vaults::{
    COMPACT_BYTES_MAX, COMPACT_ENTRIES_MAX, ChunkResult, CompactStep, NewChunk, SnapshotRecord,
    Upload, VaultChange, VaultCounts, VaultRecord, VaultStore,
};

/// A log's small integer inside the relay. The UUID stays at the edge: rows that cluster by a
/// random UUID are four to six times slower on SQLite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LogKey(pub i64);

/// What a session must know of a log that its device is a member of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogPlace {
    /// The name on the wire.
    pub id: LogId,
    /// The relay's integer.
    pub key: LogKey,
    /// Group or vault.
    pub log_type: LogType,
}

/// Position and chain value: a head without the incarnation, which is the store's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Seq of the last entry; 0 before the first.
    pub seq: u64,
    /// The chain up to and with it.
    pub chain: Digest,
}

/// Why a store did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StoreError {
    /// It could not be reached, was busy, full or read-only. Nothing is known to have happened; for
    /// a commit this includes an unknown outcome.
    #[error("the store is unavailable")]
    Unavailable,
    /// It refused the data: a constraint or a value that it cannot hold. Nothing has happened.
    #[error("the store refused the data")]
    Refused,
    /// It holds what it must not: a row that does not decode.
    #[error("the store holds a row that does not decode")]
    Corrupt,
}

/// One entry to be inserted.
#[derive(Clone, Debug)]
pub struct NewEntry {
    /// Its position.
    pub seq: u64,
    /// When the relay ordered it, in milliseconds since the epoch.
    pub at: u64,
    /// The canonical header.
    pub header: HeaderBytes,
    /// The body. If it is not kept with the entry, it stands apart and may be deleted.
    pub body: Body,
    /// Whether the body is kept with the entry for as long as the log lives: of control entries, and
    /// of keys in a vault.
    pub control: bool,
    /// The author's signature; none in `totals` groups.
    pub signature: Option<Signature>,
    /// The named addressees, sorted and distinct; empty for all. Kept with the entry.
    pub recipients: Vec<DeviceKey>,
    /// Totals' own kind string; kept with the body.
    pub totals_kind: Option<String>,
    /// The chain after this entry.
    pub chain: Digest,
    /// The sender's small integer in this log ([`SenderRecord::slot`]); 0 for the relay's own
    /// entries, which have no sender.
    pub sender_slot: i32,
    /// The sender's count; 0 where there is no idempotency. With `sender_slot` it is unique in a
    /// log unless it is 0.
    pub count: u64,
}

/// A sender's place in a log. It survives leaving, rejoining and the floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SenderRecord {
    /// Small integer of this sender in this log, from 1.
    pub slot: i32,
    /// Who.
    pub device: DeviceKey,
    /// Count of its newest entry; 0 if it only has entries without one.
    pub last_count: u64,
    /// Digest of that entry; zeros if there is none.
    pub last_digest: Digest,
}

/// A change of membership that a commit makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A member from now on, with an empty ack state. In a group it takes up the place that
    /// [`Store::reserve`] has kept, or that the device holds already; if there is none when this
    /// commits, the log's part is [`CommitResult::Stale`]. In a vault nothing is reserved.
    Joined {
        /// Who.
        device: DeviceKey,
        /// By which control entry.
        seq: u64,
        /// When, in milliseconds since the epoch.
        at: u64,
    },
    /// No member any more.
    Left {
        /// Who.
        device: DeviceKey,
    },
    /// Revoked for good: no member any more, [`Store::reserve`] refuses it from now on, and its
    /// `seq` is loaded with the log.
    Revoked {
        /// Who. Need not have been a member.
        device: DeviceKey,
        /// By which control entry.
        seq: u64,
    },
}

/// What one log asks of one transaction.
#[derive(Clone, Debug)]
pub struct LogCommit {
    /// Which log.
    pub key: LogKey,
    /// The head and version that the store must hold for any of this to happen.
    pub expected_seq: u64,
    /// Raised by whoever changes a log from outside of its committer; compared with the head. No
    /// commit raises it.
    pub expected_version: u64,
    /// New entries with contiguous seqs from `expected_seq + 1`; may be empty.
    pub entries: Vec<NewEntry>,
    /// Senders whose count moved, and new ones: inserted or replaced.
    pub senders: Vec<SenderRecord>,
    /// Changes of membership, in order.
    pub members: Vec<MemberChange>,
    /// The newest seq of a `leave`, `revoke`, `join_key` or rotation, if it moved.
    pub guard_seq: Option<u64>,
    /// The join key that is good from now on, if it changed; inner `None` ends joining.
    pub join_key: Option<Option<DeviceKey>>,
    /// Members' new ack states, whole.
    pub acks: Vec<(DeviceKey, AckSet)>,
    /// Bodies to delete, as inclusive ranges of seqs, sorted. Control bodies in them stay.
    pub freed: Vec<(u64, u64)>,
    /// A new floor, not below the one before: entries at or below it go, but for control entries.
    pub floor: Option<Position>,
    /// Vaults: how much it holds from now on, and its snapshots.
    pub vault: Option<VaultChange>,
    /// Delete the log and everything that hangs on it. Alone in its commit.
    pub ended: bool,
}

impl LogCommit {
    /// A commit that asks for nothing yet.
    #[must_use]
    pub fn new(key: LogKey, expected_seq: u64, expected_version: u64) -> Self {
        Self {
            key,
            expected_seq,
            expected_version,
            entries: Vec::new(),
            senders: Vec::new(),
            members: Vec::new(),
            guard_seq: None,
            join_key: None,
            acks: Vec::new(),
            freed: Vec::new(),
            floor: None,
            vault: None,
            ended: false,
        }
    }
}

/// What became of one log's part of a committed transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitResult {
    /// All of it is durable.
    Committed,
    /// The store holds another head or version, or no such log, or keeps no place in this group for
    /// a device that was to join: none of it happened.
    Stale,
}

/// A new native log, with its first entry.
#[derive(Clone, Debug)]
pub struct NewLog {
    /// Its id, derived from the first header.
    pub id: LogId,
    /// Group or vault.
    pub log_type: LogType,
    /// Groups: the join key.
    pub join_key: Option<DeviceKey>,
    /// Its first member.
    pub founder: DeviceKey,
    /// Digest of the first entry: the founder's `last_digest`.
    pub digest: Digest,
    /// The first entry: seq 1, sender slot 1.
    pub entry: NewEntry,
}

impl NewLog {
    /// How much a new vault holds; nothing of a group.
    #[must_use]
    pub fn vault_change(&self) -> Option<VaultChange> {
        let bytes = self.entry.body.len() as u64;
        let counts = VaultCounts { entries: 1, bytes };
        (self.log_type == LogType::Vault).then(|| VaultChange { counts, ..VaultChange::default() })
    }
}

/// What became of a [`NewLog`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundResult {
    /// It is durable under this key.
    Created(LogKey),
    /// A log of this id, and so with this first entry, was there already.
    Exists(LogKey),
    /// The founder is in as many active groups as allowed.
    LimitReached,
}

/// What became of a reservation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReserveResult {
    /// The device may join within a minute.
    Reserved,
    /// It is a member already.
    AlreadyMember,
    /// It is in as many active groups as allowed.
    LimitReached,
    /// It was revoked at this seq.
    Revoked(u64),
    /// The log is gone.
    NoSuchLog,
}

/// What can be known of a log without being its member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogBrief {
    /// The relay's integer.
    pub key: LogKey,
    /// The name on the wire.
    pub id: LogId,
    /// Group or vault.
    pub log_type: LogType,
    /// The join key that is good now.
    pub join_key: Option<DeviceKey>,
    /// Where it ends.
    pub head: Position,
}

impl LogBrief {
    /// Where sessions find the log.
    #[must_use]
    pub fn place(&self) -> LogPlace {
        LogPlace { id: self.id, key: self.key, log_type: self.log_type }
    }
}

/// A member as it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRecord {
    /// Who, since which control entry and when.
    pub member: Member,
    /// What it has acked since.
    pub acked: AckSet,
}

/// A body that has not been deleted: its place in a group's queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveRecord {
    /// Which entry.
    pub seq: u64,
    /// Its author's slot.
    pub sender_slot: i32,
    /// Length of the body in bytes.
    pub bytes: u32,
    /// When the relay ordered it, in milliseconds since the epoch.
    pub at: u64,
    /// The named addressees; empty for all.
    pub recipients: Vec<DeviceKey>,
}

/// Everything that a log's actor keeps in memory.
#[derive(Clone, Debug)]
pub struct LogRecord {
    /// The relay's integer.
    pub key: LogKey,
    /// The name on the wire.
    pub id: LogId,
    /// Group or vault.
    pub log_type: LogType,
    /// The newest committed head.
    pub head: Position,
    /// See [`LogCommit::expected_version`].
    pub version: u64,
    /// The newest head below which only control entries are kept; seq 0 for none.
    pub floor: Position,
    /// The join key that is good now.
    pub join_key: Option<DeviceKey>,
    /// See [`LogCommit::guard_seq`].
    pub guard_seq: u64,
    /// When the newest entry was ordered, in milliseconds since the epoch.
    pub last_entry_at: u64,
    /// Who is a member now.
    pub members: Vec<MemberRecord>,
    /// Who was revoked, and at which seq.
    pub revoked: Vec<(DeviceKey, u64)>,
    /// Everyone who ever sent.
    pub senders: Vec<SenderRecord>,
    /// Groups: the bodies that have not been deleted, by seq. Empty for vaults.
    pub live: Vec<LiveRecord>,
    /// Vaults: how much it holds, and its snapshots.
    pub vault: VaultRecord,
}

/// What a subscription begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubscriptionRecord {
    /// The newest committed head.
    pub head: Position,
    /// The floor.
    pub floor: Position,
    /// The seq of the control entry that made the device a member.
    pub joined_seq: u64,
    /// What the device has acked, as far as it was flushed.
    pub acked: AckSet,
}

/// A device, and where its doorbell is from now on: platform and token, or nowhere. It has no `Debug`:
/// a token is not printed.
#[derive(Clone)]
pub struct Doorbell {
    /// Whose.
    pub device: DeviceKey,
    /// Where.
    pub place: Option<(String, String)>,
}

/// A `totals` group and everybody in it, as one moment saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupRecord {
    /// Its UUID.
    pub id: LogId,
    /// When its first entry was ordered, in milliseconds since the epoch.
    pub created_at: u64,
    /// Its members, by the entries that made them so.
    pub members: Vec<Member>,
}

/// An entry as it was stored. `body` is none if it was deleted or not asked for.
#[derive(Clone, Debug)]
pub struct StoredEntry {
    /// Its position.
    pub seq: u64,
    /// When the relay ordered it, in milliseconds since the epoch.
    pub at: u64,
    /// The canonical header.
    pub header: HeaderBytes,
    /// The author's signature; none in `totals` groups.
    pub signature: Option<Signature>,
    /// The named addressees; empty for all.
    pub recipients: Vec<DeviceKey>,
    /// The chain after this entry.
    pub chain: Digest,
    /// The body, if it is still there and was asked for.
    pub body: Option<Body>,
    /// Totals' own kind string.
    pub totals_kind: Option<String>,
}

/// Who reads a page: bodies that are not for this reader are not read from the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// Which log.
    pub key: LogKey,
    /// Entries after this seq.
    pub after: u64,
    /// Entries up to and with this seq: nothing beyond the published head is ever read.
    pub up_to: u64,
    /// The reader. Groups: its own entries come without their bodies, as do those that name others.
    /// Vaults: every body is for every reader.
    pub reader: DeviceKey,
    /// Groups: the seq at which the reader became a member: bodies at or below it are not for the
    /// reader, but for control entries. Vaults: not looked at.
    pub joined_seq: u64,
    /// Most entries.
    pub entries_max: usize,
    /// Most bytes of bodies and of the names of addressees; the first entry is given however long it
    /// is.
    pub bytes_max: usize,
}

/// Which of the entries are read whose bodies are kept with them. They are for every reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlsRequest {
    /// Which log.
    pub key: LogKey,
    /// Entries after this seq.
    pub after: u64,
    /// Entries up to and with this seq.
    pub up_to: u64,
    /// Most entries.
    pub entries_max: usize,
    /// Most bytes of bodies and of the names of addressees; the first entry is given however long it
    /// is.
    pub bytes_max: usize,
}

/// A page of them.
pub struct Controls {
    /// In order; at least one if there is any.
    pub entries: Vec<StoredEntry>,
    /// Whether it is known that there are no more up to the end that was asked for. A page of as many as
    /// it may hold does not say so.
    pub complete: bool,
}

/// Who asks for what it has not acked in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingRequest {
    /// Which group.
    pub key: LogKey,
    /// Who.
    pub reader: DeviceKey,
    /// Most entries.
    pub entries_max: usize,
    /// Most bytes of bodies; the first entry is given however long it is.
    pub bytes_max: usize,
}

/// Most entries of one log that come due at once: deleting them is one short transaction, and the
/// next look finds the rest.
pub const DUE_ENTRIES_MAX: u64 = 4096;

/// A group with entries that are older than the retention period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DueLog {
    /// Which log.
    pub key: LogKey,
    /// The newest seq before which all above the floor are old enough, with its chain; at most
    /// [`DUE_ENTRIES_MAX`] above the floor.
    pub up_to: Position,
}

/// Aggregate counts: all that `GET /stats` may tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreStats {
    /// Group logs.
    pub groups: u64,
    /// Vault logs.
    pub vaults: u64,
    /// Memberships in all logs.
    pub memberships: u64,
    /// Entries that are kept.
    pub entries: u64,
    /// Bodies that wait for an ack.
    pub undelivered: u64,
}

/// The durable half of the relay.
///
/// Every method is cancellation-safe in the sense that a dropped future leaves the store whole; the
/// outcome of a dropped write is unknown. Times are milliseconds since the epoch and come from the
/// caller's [`Clock`], never from the store's machine.
#[async_trait]
pub trait Store: PushStore + RecoveryStore + VaultStore {
    /// One random number per store; another one means that history may have been lost.
    fn incarnation(&self) -> u64;

    /// How many committers may work on it at once. A log always has the same one.
    fn committers(&self) -> usize;

    /// Commits parts of several logs in one transaction: one fsync. No log appears twice. The
    /// results are in the order of the parts.
    ///
    /// # Errors
    /// On any error nothing of the batch is known to have happened; on [`StoreError::Refused`]
    /// nothing has, and a smaller batch may succeed.
    async fn commit(&self, batch: &[LogCommit]) -> Result<Vec<CommitResult>, StoreError>;

    /// Creates a log with its first entry, if its founder is in fewer than `groups_max` active
    /// groups (vaults do not count and are not counted).
    ///
    /// # Errors
    /// As [`Store::commit`].
    async fn found(&self, log: &NewLog, groups_max: u32) -> Result<FoundResult, StoreError>;

    /// Reserves a membership for `device` in a group: under a lock on the device it notes a place as
    /// of `now`, lets go the device's places in other groups that were reserved before `since`, and
    /// gives all of that up if the device then holds more places than `groups_max`.
    ///
    /// A place is a row, reserved or taken up, and every row counts, however old. Rows of a device come
    /// to be here and in [`Store::found`] alone, under its lock; a commit that lets it join needs the
    /// row ([`MemberChange::Joined`]) and only changes what it says; leaving, sweeping and this method
    /// delete rows. So no device is in more groups than it may, whatever happens between a reservation
    /// and the commit of its join:
    ///
    /// - another session's join commits first: the row is taken up, and this join finds a member;
    /// - and the device leaves again: the row is gone, and this join is stale;
    /// - and reserves anew, here: there is a row, which counts; one join takes it up, the other finds a
    ///   member;
    /// - and another group gets the place that had become free: as before, this join is stale;
    /// - the reservation gets too old, and another group gets the place: the row went when that was
    ///   reserved, and this join is stale; or it had been taken up by then, and it counted;
    /// - the join and a leave before it are one transaction: the row was there before and counts after.
    ///
    /// Who is stale was promised nothing; a resend reserves again.
    ///
    /// # Errors
    /// As [`Store::commit`].
    async fn reserve(
        &self,
        key: LogKey,
        device: DeviceKey,
        groups_max: u32,
        now: u64,
        since: u64,
    ) -> Result<ReserveResult, StoreError>;

    /// Loads logs, in the order of the keys; `None` for one that is not there.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], or [`StoreError::Corrupt`].
    async fn load(&self, keys: &[LogKey]) -> Result<Vec<Option<LogRecord>>, StoreError>;

    /// Finds a log by its name.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn find_log(&self, id: LogId) -> Result<Option<LogBrief>, StoreError>;

    /// The seq at which a device was revoked in a log, if there is such a log and it was: one
    /// question, whatever there is.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn revoked_at(&self, id: LogId, device: DeviceKey) -> Result<Option<u64>, StoreError>;

    /// The logs that a device is a member of, ordered by key.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn memberships(&self, device: DeviceKey) -> Result<Vec<LogBrief>, StoreError>;

    /// The `totals` groups that a device is a member of, ordered by key, with all their members: read
    /// at one moment, whole or not at all.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn totals_groups(&self, device: DeviceKey) -> Result<Vec<GroupRecord>, StoreError>;

    /// What a subscription begins with; `None` if the device is not a member now.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn subscription(
        &self,
        key: LogKey,
        device: DeviceKey,
    ) -> Result<Option<SubscriptionRecord>, StoreError>;

    /// The members of a log and the head at which they are.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn members(&self, key: LogKey) -> Result<Option<(Position, Vec<Member>)>, StoreError>;

    /// The chain after entry `seq`, if the entry is kept; of seq 0 never.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn chain_at(&self, key: LogKey, seq: u64) -> Result<Option<Digest>, StoreError>;

    /// The entry with this sender and count, if it is kept: its seq and digest.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn find_entry(
        &self,
        key: LogKey,
        sender: DeviceKey,
        count: u64,
    ) -> Result<Option<(u64, Digest)>, StoreError>;

    /// A page of entries in order, bounded by count and bytes in one short read.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], or [`StoreError::Corrupt`].
    async fn read_page(&self, request: &PageRequest) -> Result<Vec<StoredEntry>, StoreError>;

    /// The entries that a member of a group has not acked and whose bodies are kept, its own not
    /// among them: in order, if all of them fit; otherwise those that name this reader alone come
    /// first, then the others, each in order. `None` if the reader is no member.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], or [`StoreError::Corrupt`].
    async fn read_pending(
        &self,
        request: &PendingRequest,
    ) -> Result<Option<Vec<StoredEntry>>, StoreError>;

    /// When the newest control entry of a log with exactly this body was ordered, in milliseconds
    /// since the epoch.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn control_at(&self, key: LogKey, body: &[u8]) -> Result<Option<u64>, StoreError>;

    /// A page of the entries whose bodies are kept with them (control entries, and keys of vaults), in
    /// order, bounded by count and bytes.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], or [`StoreError::Corrupt`].
    async fn read_controls(&self, request: &ControlsRequest) -> Result<Controls, StoreError>;

    /// Groups after `after` (by key) whose oldest entry above the floor was ordered before `before`:
    /// at most `limit` groups are looked at. Vaults do not expire. Gives the due ones and the last key looked at; `None`
    /// when there are no more logs.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn due_for_expiry(
        &self,
        after: LogKey,
        before: u64,
        limit: usize,
    ) -> Result<(Vec<DueLog>, Option<LogKey>), StoreError>;

    /// Groups whose newest entry was ordered before `before`, at most `limit`.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn idle_groups(&self, before: u64, limit: usize) -> Result<Vec<LogKey>, StoreError>;

    /// Deletes at most `limit` rows each of: reservations older than `reservations_before`,
    /// devices not seen since the day of `devices_before`, devices on which nothing hangs any more,
    /// spent challenges that expired before `now`. Gives how many rows went.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn sweep(
        &self,
        reservations_before: u64,
        devices_before: u64,
        now: u64,
        limit: usize,
    ) -> Result<u64, StoreError>;

    /// Claims HTTP challenges, each with the time at which it expires, in milliseconds since the
    /// epoch: in one transaction, and each as one atomic statement. Gives for each, in order, whether
    /// nobody had claimed it before; one that appears twice is claimed by its first place.
    ///
    /// # Errors
    /// As [`Store::commit`].
    async fn claim_challenges(
        &self,
        challenges: &[([u8; CHALLENGE_BYTES], u64)],
    ) -> Result<Vec<bool>, StoreError>;

    /// Notes at `now` where devices' doorbells are, in order and in one transaction: each as platform
    /// and token, or nowhere. Another device that had a token has none from then on.
    ///
    /// # Errors
    /// As [`Store::commit`].
    async fn set_push_tokens(&self, doorbells: &[Doorbell], now: u64) -> Result<(), StoreError>;

    /// Where a device's doorbell is, as platform and token.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn push_token(&self, device: DeviceKey) -> Result<Option<(String, String)>, StoreError>;

    /// Notes that a device was here, to the day, if a row of it exists.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn touch_device(&self, device: DeviceKey, now: u64) -> Result<(), StoreError>;

    /// Whether retention is the business of another process, which holds the lock for it: then the
    /// relay's own rests.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn retention_is_elsewhere(&self) -> Result<bool, StoreError>;

    /// Answers if the store can read and write now.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if it cannot.
    async fn ready(&self) -> Result<(), StoreError>;

    /// Aggregate counts.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn stats(&self) -> Result<StoreStats, StoreError>;
}

/// The relay's wall clock. Durations are measured by the runtime's own clock, never by this one.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since the epoch.
    fn now_ms(&self) -> u64;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }
}
