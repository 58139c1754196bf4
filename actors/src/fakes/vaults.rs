//! What the in-memory store keeps of vaults beside their entries.

use std::collections::BTreeMap;
use std::ops::Bound;

use async_trait::async_trait;
use sealwire_protocol::{Digest, LogType};

use super::MemoryStore;
use super::log::Log;
use super::state::State;
use crate::ports::{
    COMPACT_BYTES_MAX, COMPACT_ENTRIES_MAX, ChunkResult, CompactStep, LogKey, NewChunk, Position,
    SnapshotRecord, StoreError, Upload, VaultChange, VaultCounts, VaultRecord, VaultStore,
};

/// The bytes of a snapshot, or of what may become one.
struct Kept {
    upload: Upload,
    bytes: Vec<u8>,
    touched_at: u64,
}

/// One vault.
#[derive(Default)]
pub(super) struct Vault {
    counts: VaultCounts,
    snapshots: BTreeMap<Digest, SnapshotRecord>,
    kept: BTreeMap<Digest, Kept>,
}

impl Vault {
    pub(super) fn record(&self) -> VaultRecord {
        let mut snapshots: Vec<SnapshotRecord> = self.snapshots.values().copied().collect();
        snapshots.sort_by_key(|snapshot| snapshot.seq);
        VaultRecord { counts: self.counts, snapshots }
    }

    pub(super) fn apply(&mut self, change: &VaultChange) {
        self.counts = change.counts;
        for snapshot in &change.snapshots {
            self.snapshots.insert(snapshot.digest, *snapshot);
        }
        for digest in &change.dropped {
            self.snapshots.remove(digest);
            self.kept.remove(digest);
        }
    }

    fn put(&mut self, chunk: &NewChunk<'_>) -> ChunkResult {
        let begun = Upload { size: chunk.size, received: 0, chunks: 0, verified: false };
        let known = self.kept.get(&chunk.digest).map_or(begun, |kept| kept.upload);
        if known.size != chunk.size {
            return ChunkResult::OtherSize;
        }
        if known.received != chunk.offset || chunk.bytes.is_empty() {
            return ChunkResult::NotNext(known);
        }
        let announced: u64 = self.kept.values().map(|kept| kept.upload.size).sum();
        let full =
            self.kept.len() >= chunk.snapshots_max || announced + chunk.size > chunk.bytes_max;
        if full && !self.kept.contains_key(&chunk.digest) {
            return ChunkResult::Full;
        }
        let new = Kept { upload: begun, bytes: Vec::new(), touched_at: chunk.now };
        let kept = self.kept.entry(chunk.digest).or_insert(new);
        kept.touched_at = chunk.now;
        kept.bytes.extend_from_slice(chunk.bytes);
        kept.upload.received = kept.bytes.len() as u64;
        kept.upload.chunks += 1;
        ChunkResult::Kept(kept.upload)
    }

    /// Uploads and bytes of snapshots that are to go.
    fn sweep(&mut self, before: u64, limit: usize) -> usize {
        let due: Vec<Digest> = self
            .kept
            .iter()
            .filter(|(digest, kept)| {
                !self.snapshots.contains_key(*digest) && kept.touched_at < before
            })
            .map(|(digest, _)| *digest)
            .take(limit)
            .collect();
        for digest in &due {
            self.kept.remove(digest);
        }
        due.len()
    }
}

/// The next step of compaction of one vault.
fn step(key: LogKey, log: &Log, alone_before: u64) -> Option<CompactStep> {
    let members = log.member_records();
    let alone = members.first().filter(|_| members.len() == 1).map(|it| it.member.device);
    let stands = |snapshot: &&SnapshotRecord| {
        alone == Some(snapshot.author) && snapshot.seq > log.guard_seq && snapshot.at < alone_before
    };
    let covered = log
        .vault
        .snapshots
        .values()
        .filter(|snapshot| snapshot.confirmed || stands(snapshot))
        .map(|snapshot| snapshot.head.seq)
        .max()?;
    let mut gone = VaultCounts::default();
    let mut up_to = None;
    if covered <= log.floor.seq {
        return None;
    }
    let range = (Bound::Excluded(log.floor.seq), Bound::Included(covered));
    for (seq, entry) in log.entries.range(range).take(COMPACT_ENTRIES_MAX) {
        let bytes = if entry.new.control { 0 } else { entry.new.body.len() as u64 };
        if up_to.is_some() && gone.bytes + bytes > COMPACT_BYTES_MAX {
            break;
        }
        gone.entries += u64::from(!entry.new.control);
        gone.bytes += bytes;
        up_to = Some(Position { seq: *seq, chain: entry.new.chain });
    }
    up_to.map(|up_to| CompactStep { key, from: log.floor.seq, up_to, gone })
}

impl State {
    fn vault_mut(&mut self, key: LogKey) -> Option<&mut Vault> {
        self.logs
            .get_mut(&key)
            .filter(|log| log.log_type == LogType::Vault)
            .map(|log| &mut log.vault)
    }

    fn put_chunk(&mut self, key: LogKey, chunk: &NewChunk<'_>) -> ChunkResult {
        let enrolled = self.logs.get(&key).is_some_and(|log| log.member(chunk.device).is_some());
        match self.vault_mut(key) {
            Some(vault) if enrolled => vault.put(chunk),
            Some(_) | None => ChunkResult::NotEnrolled,
        }
    }

    fn end_upload(&mut self, key: LogKey, digest: Digest, verified: bool) {
        let Some(vault) = self.vault_mut(key) else {
            return;
        };
        if verified && let Some(kept) = vault.kept.get_mut(&digest) {
            kept.upload.verified = true;
        } else if !vault.snapshots.contains_key(&digest) {
            vault.kept.remove(&digest);
        }
    }

    fn claim_upload(&mut self, key: LogKey, digest: Digest, now: u64) -> Option<Upload> {
        let kept =
            self.vault_mut(key)?.kept.get_mut(&digest).filter(|kept| kept.upload.verified)?;
        kept.touched_at = now;
        Some(kept.upload)
    }

    fn read_chunk(&self, key: LogKey, digest: Digest, offset: u64, length: usize) -> Vec<u8> {
        let kept = self.logs.get(&key).and_then(|log| log.vault.kept.get(&digest));
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = kept.and_then(|kept| kept.bytes.get(offset..)).unwrap_or_default();
        bytes[..length.min(bytes.len())].to_vec()
    }

    fn due_for_compaction(
        &self,
        after: LogKey,
        alone_before: u64,
        limit: usize,
    ) -> (Vec<CompactStep>, Option<LogKey>) {
        let looked: Vec<(LogKey, &Log)> = self
            .logs
            .range((Bound::Excluded(after), Bound::Unbounded))
            .filter(|(_, log)| log.log_type == LogType::Vault)
            .take(limit)
            .map(|(key, log)| (*key, log))
            .collect();
        let last = looked.last().map(|(key, _)| *key).filter(|_| looked.len() == limit);
        (looked.into_iter().filter_map(|(key, log)| step(key, log, alone_before)).collect(), last)
    }
}

#[async_trait]
impl VaultStore for MemoryStore {
    async fn put_chunk(
        &self,
        key: LogKey,
        chunk: &NewChunk<'_>,
    ) -> Result<ChunkResult, StoreError> {
        Ok(self.state.lock().put_chunk(key, chunk))
    }

    async fn end_upload(
        &self,
        key: LogKey,
        digest: Digest,
        verified: bool,
    ) -> Result<(), StoreError> {
        self.state.lock().end_upload(key, digest, verified);
        Ok(())
    }

    async fn claim_upload(
        &self,
        key: LogKey,
        digest: Digest,
        now: u64,
    ) -> Result<Option<Upload>, StoreError> {
        Ok(self.state.lock().claim_upload(key, digest, now))
    }

    async fn read_chunk(
        &self,
        key: LogKey,
        digest: Digest,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, StoreError> {
        self.read(|state| state.read_chunk(key, digest, offset, length))
    }

    async fn vault_counts(&self, key: LogKey) -> Result<VaultCounts, StoreError> {
        self.read(|state| state.logs.get(&key).map(|log| log.vault.counts).unwrap_or_default())
    }

    async fn snapshots(&self, key: LogKey) -> Result<Vec<SnapshotRecord>, StoreError> {
        self.read(|state| {
            let mut snapshots =
                state.logs.get(&key).map(|log| log.vault.record().snapshots).unwrap_or_default();
            snapshots.reverse();
            snapshots
        })
    }

    async fn due_for_compaction(
        &self,
        after: LogKey,
        alone_before: u64,
        limit: usize,
    ) -> Result<(Vec<CompactStep>, Option<LogKey>), StoreError> {
        self.read(|state| state.due_for_compaction(after, alone_before, limit))
    }

    async fn sweep_snapshots(&self, before: u64, limit: usize) -> Result<u64, StoreError> {
        let mut gone = 0;
        for log in self.state.lock().logs.values_mut() {
            gone += log.vault.sweep(before, limit - gone);
        }
        Ok(gone as u64)
    }
}
