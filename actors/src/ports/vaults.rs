//! What a store keeps of vaults beside their entries: counts, snapshots, and uploads of snapshots.
//!
//! A snapshot is uploaded in chunks by requests of their own and is nobody's concern until a control
//! entry makes it real; that happens in the commit of the entry, like everything else that an entry
//! changes. What is uploaded and never made real is swept.

use async_trait::async_trait;
use sealwire_protocol::frame::SnapshotSummary;
use sealwire_protocol::{DeviceKey, Digest, Head};

use super::{LogKey, Position, StoreError};

/// A snapshot that its control entry has made real.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// SHA-256 of the sealed bytes: its name.
    pub digest: Digest,
    /// The head whose state it holds.
    pub head: Head,
    /// Its size in bytes.
    pub size: u64,
    /// Who made it real.
    pub author: DeviceKey,
    /// The control entry that did.
    pub seq: u64,
    /// When that was ordered, in milliseconds since the epoch.
    pub at: u64,
    /// Whether another device has opened it, or a vault of one device has waited for long enough.
    pub confirmed: bool,
}

impl SnapshotRecord {
    /// As devices are told of it.
    #[must_use]
    pub fn summary(&self) -> SnapshotSummary {
        SnapshotSummary {
            head: self.head,
            digest: self.digest,
            size: self.size,
            confirmed: self.confirmed,
        }
    }
}

/// How much a vault holds. Kept with it, because counting would walk through all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VaultCounts {
    /// Entries that are kept, control entries among them.
    pub entries: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
}

/// What a log's actor keeps in memory of a vault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VaultRecord {
    /// How much it holds.
    pub counts: VaultCounts,
    /// Its real snapshots, by the seq of their control entries.
    pub snapshots: Vec<SnapshotRecord>,
}

/// What a commit changes of a vault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VaultChange {
    /// How much it holds afterwards.
    pub counts: VaultCounts,
    /// Snapshots that become real, or whose `confirmed` has changed. Their bytes are there: a
    /// claimed upload is not swept for a day ([`VaultStore::claim_upload`]).
    pub snapshots: Vec<SnapshotRecord>,
    /// Snapshots that go. Their bytes are swept.
    pub dropped: Vec<Digest>,
}

/// A chunk of a snapshot, to be kept.
#[derive(Clone, Copy, Debug)]
pub struct NewChunk<'a> {
    /// Who sends it. Judged by the store: only an enrolled device's is kept.
    pub device: DeviceKey,
    /// SHA-256 of the whole.
    pub digest: Digest,
    /// Size of the whole in bytes.
    pub size: u64,
    /// Where it begins.
    pub offset: u64,
    /// The chunk; empty to ask how far the upload is.
    pub bytes: &'a [u8],
    /// Now, in milliseconds since the epoch.
    pub now: u64,
    /// Most snapshots and uploads of the vault.
    pub snapshots_max: usize,
    /// Most bytes of them, as they were announced.
    pub bytes_max: u64,
}

/// What became of a [`NewChunk`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkResult {
    /// It is durable; this is the upload now.
    Kept(Upload),
    /// Nothing was kept: another offset is the next one.
    NotNext(Upload),
    /// Nothing was kept: the upload was begun with another size.
    OtherSize,
    /// Nothing was kept: the vault has as many snapshots or bytes of them as it may.
    Full,
    /// There is no such log, it is no vault, or the device is not enrolled.
    NotEnrolled,
}

/// How far an upload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upload {
    /// Size of the whole in bytes.
    pub size: u64,
    /// Bytes that are there, from the beginning on.
    pub received: u64,
    /// In how many chunks.
    pub chunks: u32,
    /// Whether the whole was found to be what its digest says.
    pub verified: bool,
}

/// Most entries that one step of compaction lets go.
pub const COMPACT_ENTRIES_MAX: usize = 2048;

/// Most bytes of bodies that one step of compaction lets go; at least one entry goes.
pub const COMPACT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// A vault that holds entries below a confirmed snapshot: the next step of letting them go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactStep {
    /// Which vault.
    pub key: LogKey,
    /// The floor that the step begins at.
    pub from: u64,
    /// The floor that it would make.
    pub up_to: Position,
    /// What goes: control entries and keys stay and are not in it.
    pub gone: VaultCounts,
}

/// The part of a store that only vaults need.
#[async_trait]
pub trait VaultStore: Send + Sync + 'static {
    /// Keeps a chunk, if it is the next one.
    ///
    /// # Errors
    /// As [`Store::commit`](super::Store::commit).
    async fn put_chunk(&self, key: LogKey, chunk: &NewChunk<'_>)
    -> Result<ChunkResult, StoreError>;

    /// Ends an upload: verified, it may become a snapshot; otherwise it is forgotten, and its bytes
    /// are swept. A snapshot that is real already is not touched.
    ///
    /// # Errors
    /// As [`Store::commit`](super::Store::commit).
    async fn end_upload(
        &self,
        key: LogKey,
        digest: Digest,
        verified: bool,
    ) -> Result<(), StoreError>;

    /// An upload that is verified, or a snapshot that is real. It is not swept for a day from `now`.
    ///
    /// # Errors
    /// As [`Store::commit`](super::Store::commit).
    async fn claim_upload(
        &self,
        key: LogKey,
        digest: Digest,
        now: u64,
    ) -> Result<Option<Upload>, StoreError>;

    /// Bytes of an upload or snapshot from `offset` on, at most `length`; empty past its end, or if
    /// there is none.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn read_chunk(
        &self,
        key: LogKey,
        digest: Digest,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, StoreError>;

    /// How much a vault holds; nothing of a group.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn vault_counts(&self, key: LogKey) -> Result<VaultCounts, StoreError>;

    /// The real snapshots of a vault, newest first. None of a group.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn snapshots(&self, key: LogKey) -> Result<Vec<SnapshotRecord>, StoreError>;

    /// Vaults after `after` (by key) with entries above the floor that a confirmed snapshot covers; of
    /// a vault of one device every snapshot counts as confirmed that this device has made before
    /// `alone_before` and above the guard. At most `limit` vaults are looked at. Gives the next step of each that is due, and the last key looked
    /// at; `None` when there are no more.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn due_for_compaction(
        &self,
        after: LogKey,
        alone_before: u64,
        limit: usize,
    ) -> Result<(Vec<CompactStep>, Option<LogKey>), StoreError>;

    /// Deletes uploads that nobody has touched since `before`, and the bytes of snapshots that went:
    /// at most `limit` rows. Gives how many.
    ///
    /// # Errors
    /// As [`Store::commit`](super::Store::commit).
    async fn sweep_snapshots(&self, before: u64, limit: usize) -> Result<u64, StoreError>;
}
