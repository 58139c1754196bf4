//! What a vault owes to its devices beside order: verification of what comes, the bytes of snapshots,
//! and single requests of clients that have no session.
//!
//! The relay never opens a snapshot. It knows that its bytes are those of the digest, and that the head
//! that it is said to hold stands in the vault; whether it holds that, other devices say.
//!
//! Holds always: every request asks the log or the store whether the device is enrolled *now*; entries
//! of one device and vault are handed to the log in the order in which they came, also without a
//! session: those take turns.

use std::sync::Arc;

use dashmap::DashMap;
use sealwire_protocol::bounded::BoundedBytes;
use sealwire_protocol::digest::Sha256Stream;
use sealwire_protocol::frame::{Appended, Member};
use sealwire_protocol::limits::{
    BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, SNAPSHOT_BYTES_MAX, SNAPSHOT_CHUNK_BYTES_MAX,
    SNAPSHOT_CHUNK_BYTES_MIN, TOKEN_LIFETIME,
};
use sealwire_protocol::token::{Claims, Purpose, TOKEN_BYTES};
use sealwire_protocol::{
    Control, DeviceKey, Digest, EntryIn, ErrorCode, Failure, Head, LogId, LogType,
};
use tokio::task::yield_now;
use tokio::time::timeout;

use crate::catch_up::FloorMark;
use crate::entry::{CheckedEntry, Content};
use crate::limits::{PAGE_BYTES_MAX, PAGE_ENTRIES_MAX, STORE_DEADLINE, VERIFIED_AT_ONCE};
use crate::ports::{
    ChunkResult, LogKey, NewChunk, PageRequest, Position, SnapshotRecord, StoreError, StoredEntry,
    Upload,
};
use crate::reply::{Reply, unavailable};
use crate::session::ask;
use crate::session::requests::found;
use crate::system::{Shared, System};
use crate::totals::payload::PayloadId;
use crate::turns::Turn;

/// Verifies every entry in order, and hands them to their log.
pub(crate) async fn append(
    shared: Arc<Shared>,
    device: DeviceKey,
    key: LogKey,
    entries: Vec<CheckedEntry>,
    reply: Reply,
) {
    for (number, entry) in entries.iter().enumerate() {
        if number > 0 && number.is_multiple_of(VERIFIED_AT_ONCE) {
            yield_now().await;
        }
        let verified = match &entry.content {
            // Verified when they were read.
            Content::Control(_) | Content::Rotation => Ok(()),
            Content::Plain => entry.verify(),
        };
        if let Err(failure) = verified.and_then(|()| entry.check_for_vault()) {
            return reply.refuse(failure);
        }
    }
    if let [CheckedEntry { content: Content::Control(control), .. }] = entries.as_slice()
        && let Err(failure) = check_snapshot(&shared, key, control).await
    {
        return reply.refuse(failure);
    }
    shared.cast_append(device, key, entries, reply);
}

/// A snapshot becomes real only if its bytes are here and its head is the vault's.
async fn check_snapshot(shared: &Shared, key: LogKey, control: &Control) -> Result<(), Failure> {
    let Control::Snapshot { head, digest, size, chunks } = control else {
        return Ok(());
    };
    let (digest, now) = (*digest, shared.clock.now_ms());
    let claimed = shared.run_job(move |store| {
        Box::pin(async move { ask(store.claim_upload(key, digest, now)).await })
    });
    let upload = claimed
        .await
        .map_err(|_| unavailable())?
        .filter(|upload| upload.verified)
        .ok_or(Failure::new(ErrorCode::NoSuchSnapshot))?;
    let chain = shared
        .turns
        .ask(Turn::Question, shared.store.chain_at(key, head.seq))
        .await
        .map_err(|_| unavailable())?;
    let fits = upload.size == *size && upload.chunks == *chunks && chain == Some(head.chain);
    if fits { Ok(()) } else { Err(Failure::new(ErrorCode::BadSnapshot)) }
}

/// Where a device begins that starts from a snapshot.
pub(crate) async fn start_from(
    shared: &Shared,
    key: LogKey,
    digest: Digest,
    floor_seq: u64,
) -> Result<FloorMark, Failure> {
    let snapshots = shared
        .turns
        .ask(Turn::Question, shared.store.snapshots(key))
        .await
        .map_err(|_| unavailable())?;
    let snapshot = snapshots
        .into_iter()
        // The entries above its head must all be here.
        .find(|snapshot| snapshot.digest == digest && snapshot.head.seq >= floor_seq)
        .ok_or(Failure::new(ErrorCode::NoSuchSnapshot))?;
    let position = Position { seq: snapshot.head.seq, chain: snapshot.head.chain };
    Ok(FloorMark { position, snapshot: Some(snapshot) })
}

/// The device must be enrolled now.
pub(crate) async fn enrolled(
    shared: &Shared,
    device: DeviceKey,
    key: LogKey,
) -> Result<(), Failure> {
    let record = shared.turns.ask(Turn::Question, shared.store.subscription(key, device)).await;
    record.map_err(|_| unavailable())?.ok_or(Failure::new(ErrorCode::NoSuchLog))?;
    Ok(())
}

/// The real snapshots of a vault, newest first.
pub(crate) async fn snapshots(
    shared: &Shared,
    device: DeviceKey,
    key: LogKey,
) -> Result<Vec<SnapshotRecord>, Failure> {
    enrolled(shared, device, key).await?;
    shared.turns.ask(Turn::Question, shared.store.snapshots(key)).await.map_err(|_| unavailable())
}

/// Bytes of a snapshot, at most [`SNAPSHOT_CHUNK_BYTES_MAX`].
pub(crate) async fn read_piece(
    shared: &Shared,
    device: DeviceKey,
    key: LogKey,
    digest: Digest,
    offset: u64,
    length: usize,
) -> Result<Vec<u8>, Failure> {
    let snapshots = snapshots(shared, device, key).await?;
    let known = snapshots.iter().find(|snapshot| snapshot.digest == digest);
    let size = known.ok_or(Failure::new(ErrorCode::NoSuchSnapshot))?.size;
    if offset > size {
        return Err(Failure::new(ErrorCode::BadSnapshot));
    }
    let length = length.min(SNAPSHOT_CHUNK_BYTES_MAX);
    // The semaphore is never closed; if it were, reading without a turn is still correct.
    let _turn = shared.turns.pages.acquire().await;
    ask(shared.store.read_chunk(key, digest, offset, length)).await.map_err(|_| unavailable())
}

/// A piece of a snapshot that is being uploaded. It has no `Debug`: its bytes are nobody's to print.
pub struct NewPiece {
    /// SHA-256 of the whole.
    pub digest: Digest,
    /// Size of the whole in bytes.
    pub size: u64,
    /// Where it begins.
    pub offset: u64,
    /// The piece; empty to ask how far the upload is.
    pub bytes: Vec<u8>,
}

/// Keeps a piece of an upload; when it was the last, says whether the whole is what its digest says.
pub(crate) async fn keep_piece(
    shared: &Shared,
    device: DeviceKey,
    key: LogKey,
    piece: NewPiece,
) -> Result<(), Failure> {
    let NewPiece { digest, size, offset, bytes } = piece;
    if size > SNAPSHOT_BYTES_MAX {
        return Err(Failure::limit(ErrorCode::TooLarge, SNAPSHOT_BYTES_MAX));
    }
    let end = offset.checked_add(bytes.len() as u64);
    let last = end == Some(size);
    let fits = size > 0
        && end.is_some_and(|end| end <= size)
        && (last || bytes.is_empty() || bytes.len() >= SNAPSHOT_CHUNK_BYTES_MIN);
    if !fits {
        return Err(Failure::new(ErrorCode::BadSnapshot));
    }
    let (now, limits) = (shared.clock.now_ms(), shared.options.vaults);
    let kept = shared.run_job(move |store| {
        Box::pin(async move {
            let chunk = NewChunk {
                device,
                digest,
                size,
                offset,
                bytes: &bytes,
                now,
                snapshots_max: limits.snapshots_max,
                bytes_max: limits.snapshot_bytes_max,
            };
            ask(store.put_chunk(key, &chunk)).await
        })
    });
    let kept = kept.await.map_err(|error| match error {
        StoreError::Refused => Failure::new(ErrorCode::BadSnapshot),
        StoreError::Unavailable | StoreError::Corrupt => unavailable(),
    })?;
    match kept {
        ChunkResult::Kept(upload) => verify_whole(shared, key, digest, upload).await,
        ChunkResult::NotNext(upload) => {
            verify_whole(shared, key, digest, upload).await?;
            Err(Failure::out_of_order(upload.received))
        }
        ChunkResult::OtherSize => Err(Failure::new(ErrorCode::BadSnapshot)),
        ChunkResult::Full => {
            let limit = limits.snapshots_max as u64;
            Err(Failure::limit(ErrorCode::SnapshotsLimitReached, limit))
        }
        ChunkResult::NotEnrolled => Err(Failure::new(ErrorCode::NoSuchLog)),
    }
}

/// When all bytes are there: whether they are those of the digest. If not, the upload is over.
async fn verify_whole(
    shared: &Shared,
    key: LogKey,
    digest: Digest,
    upload: Upload,
) -> Result<(), Failure> {
    if upload.verified || upload.received < upload.size {
        return Ok(());
    }
    let mut hash = Sha256Stream::default();
    let mut offset = 0;
    while offset < upload.size {
        let turn = shared.turns.pages.acquire().await;
        let read = shared.store.read_chunk(key, digest, offset, SNAPSHOT_CHUNK_BYTES_MAX);
        let bytes = ask(read).await.map_err(|_| unavailable())?;
        drop(turn);
        if bytes.is_empty() {
            // It was swept meanwhile.
            return Err(Failure::new(ErrorCode::NoSuchSnapshot));
        }
        offset += bytes.len() as u64;
        hash.update(&bytes);
        yield_now().await;
    }
    let verified = hash.finish() == digest;
    let ended = shared.run_job(move |store| {
        Box::pin(async move { ask(store.end_upload(key, digest, verified)).await })
    });
    ended.await.map_err(|_| unavailable())?;
    if verified { Ok(()) } else { Err(Failure::new(ErrorCode::BadSnapshot)) }
}

// ---- without a session

/// Whose turn it is: one request of a device to a vault at a time.
#[derive(Default)]
pub(crate) struct PushTurns(DashMap<(DeviceKey, LogId), Arc<tokio::sync::Mutex<()>>>);

impl PushTurns {
    async fn take<T>(
        &self,
        whose: (DeviceKey, LogId),
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let turn = self.0.entry(whose).or_default().clone();
        let done = match timeout(STORE_DEADLINE, turn.lock()).await {
            Ok(_held) => work.await,
            Err(_) => Err(unavailable()),
        };
        // The map's and this one: nobody else waits.
        self.0.remove_if(&whose, |_, turn| Arc::strong_count(turn) == 2);
        done
    }
}

/// An entry of a vault as a client without a session is given it.
pub struct Changeset {
    /// Computed from where it stands: a UUID in its text form.
    pub id: String,
    /// Its author's key.
    pub author: DeviceKey,
    /// The entry.
    pub entry: StoredEntry,
}

/// What a vault holds after a cursor.
pub struct Page {
    /// In order, bounded by count and bytes; at least one if there is any.
    pub changesets: Vec<Changeset>,
    /// The newest committed head.
    pub head: Head,
    /// Whether more stands behind these.
    pub more: bool,
    /// If the cursor was below the floor: the floor, and the snapshot to start from. The changesets
    /// are then what is kept from below, up to the floor; the next page begins at it.
    pub floor: Option<(Head, Option<SnapshotRecord>)>,
}

impl Shared {
    /// A token for the routes of one vault, and until when it is good, in seconds since the epoch.
    pub(crate) fn vault_token(
        &self,
        device: DeviceKey,
        log: LogId,
    ) -> (BoundedBytes<TOKEN_BYTES>, u64) {
        let issued = self.clock.now_ms() / 1000;
        let expires = issued + TOKEN_LIFETIME.as_secs();
        let claims = Claims { purpose: Purpose::Vault, device, log, issued, expires };
        (self.issue(&claims), expires)
    }

    /// The key of a vault, if there is one of this name.
    async fn vault_key(&self, log: LogId) -> Result<LogKey, Failure> {
        let brief = self
            .turns
            .ask(Turn::Question, self.store.find_log(log))
            .await
            .map_err(|_| unavailable())?;
        let vault = brief.filter(|brief| brief.log_type == LogType::Vault);
        Ok(vault.ok_or(Failure::new(ErrorCode::NoSuchLog))?.key)
    }

    /// What a device is told that is not enrolled: if it was revoked, that it was.
    async fn not_enrolled(&self, device: DeviceKey, log: LogId) -> Failure {
        match self.turns.ask(Turn::Question, self.store.revoked_at(log, device)).await {
            Ok(Some(seq)) => Failure::revoked(seq),
            Ok(None) => Failure::new(ErrorCode::NoSuchLog),
            Err(_) => unavailable(),
        }
    }

    /// The key of a vault that the device is enrolled in now.
    async fn own_vault(&self, device: DeviceKey, log: LogId) -> Result<LogKey, Failure> {
        let key = self.vault_key(log).await?;
        match enrolled(self, device, key).await {
            Err(failure) if failure.code == ErrorCode::NoSuchLog => {
                Err(self.not_enrolled(device, log).await)
            }
            checked => checked.map(|()| key),
        }
    }
}

impl System {
    /// Whether a token is good for requests of this device to this vault now. Whether it is enrolled,
    /// each request asks.
    #[must_use]
    pub fn check_vault_token(&self, device: DeviceKey, log: LogId, token: &[u8]) -> bool {
        let now = self.shared.clock.now_ms() / 1000;
        self.shared
            .options
            .token_keys
            .iter()
            .filter_map(|key| key.check(token, Purpose::Vault, now).ok())
            .any(|claims| claims.device == device && claims.log == log)
    }

    /// A token for the routes of one vault, and until when it is good, in seconds since the epoch.
    ///
    /// # Errors
    /// `no_such_log`, `revoked` or `unavailable`.
    pub async fn vault_token(
        &self,
        device: DeviceKey,
        log: LogId,
    ) -> Result<(Vec<u8>, u64), Failure> {
        self.shared.own_vault(device, log).await?;
        let (token, expires) = self.shared.vault_token(device, log);
        Ok((token.to_vec(), expires))
    }

    /// Founds a vault with its first entry, or appends entries to the vault `log`: all or none.
    ///
    /// # Errors
    /// As over a session.
    pub async fn push_to_vault(
        &self,
        device: DeviceKey,
        log: Option<LogId>,
        entries: Vec<EntryIn>,
    ) -> Result<Appended, Failure> {
        let shared = &self.shared;
        let bytes: usize = entries.iter().map(|entry| entry.body.len()).sum();
        if entries.len() > BATCH_ENTRIES_MAX || bytes > BATCH_BYTES_MAX {
            return Err(Failure::new(ErrorCode::TooLarge));
        }
        let (reply, answer) = Reply::to_caller(&shared.budget, bytes)?;
        let named = log.unwrap_or(LogId::ZERO);
        let work = async {
            let checked: Result<Vec<CheckedEntry>, Failure> =
                entries.into_iter().map(|entry| CheckedEntry::check(entry, device)).collect();
            let entries = checked?;
            let first = entries.first().ok_or(Failure::new(ErrorCode::Malformed))?;
            if entries.iter().any(|entry| entry.header.log != named) {
                return Err(Failure::new(ErrorCode::BadHeader));
            }
            match (&first.content, log) {
                (Content::Control(Control::Found { log_type: LogType::Vault, .. }), None) => {
                    found(shared.clone(), device, entries, reply).await;
                }
                (_, None) => return Err(Failure::new(ErrorCode::BadControl)),
                (_, Some(log)) => {
                    let key = shared.own_vault(device, log).await?;
                    append(shared.clone(), device, key, entries, reply).await;
                }
            }
            // Dropped only with the actor that should have answered.
            answer.await.unwrap_or_else(|_| Err(unavailable()))
        };
        shared.vault_turns.take((device, named), work).await
    }

    /// What a vault holds after a cursor: its seq, and the chain there if the client has it.
    ///
    /// # Errors
    /// `no_such_log`, `revoked`, `history_changed` or `unavailable`.
    pub async fn pull_from_vault(
        &self,
        device: DeviceKey,
        log: LogId,
        after: u64,
        chain: Option<Digest>,
    ) -> Result<Page, Failure> {
        let shared = &self.shared;
        let key = shared.own_vault(device, log).await?;
        let store = &shared.store;
        let record = shared
            .turns
            .ask(Turn::Question, store.subscription(key, device))
            .await
            .map_err(|_| unavailable())?;
        let record = record.ok_or(Failure::new(ErrorCode::NoSuchLog))?;
        let head = shared.head(record.head);
        let changed = Failure::at_head(ErrorCode::HistoryChanged, head);
        if after > record.head.seq {
            return Err(changed);
        }
        let below = after < record.floor.seq;
        if let Some(chain) = chain.filter(|_| after > 0 && !below) {
            let known = if after == record.head.seq {
                Some(record.head.chain)
            } else if after == record.floor.seq {
                Some(record.floor.chain)
            } else {
                ask(store.chain_at(key, after)).await.map_err(|_| unavailable())?
            };
            if known != Some(chain) {
                return Err(changed);
            }
        }
        let _turn = shared.turns.pages.acquire().await;
        let floor = if below {
            let mark = ask(FloorMark::of(store.as_ref(), key, record.floor)).await;
            let mark = mark.map_err(|_| unavailable())?;
            Some((shared.head(mark.position), mark.snapshot))
        } else {
            None
        };
        let entries = if below {
            ask(store.read_controls(key, after, record.floor.seq, PAGE_ENTRIES_MAX)).await
        } else {
            let request = PageRequest {
                key,
                after,
                up_to: record.head.seq,
                reader: device,
                joined_seq: record.joined_seq,
                entries_max: PAGE_ENTRIES_MAX,
                bytes_max: PAGE_BYTES_MAX,
            };
            ask(store.read_page(&request)).await
        };
        let mut entries = entries.map_err(|_| unavailable())?;
        if !below {
            // A hole is where the floor has risen meanwhile: the next page is told of it.
            let whole =
                entries.iter().zip(after + 1..).take_while(|(e, seq)| e.seq == *seq).count();
            entries.truncate(whole);
        }
        let reached = entries.last().map_or(after, |entry| entry.seq);
        let kept_all = below && entries.len() < PAGE_ENTRIES_MAX;
        let reached = if kept_all { record.floor.seq } else { reached };
        let incarnation = shared.store.incarnation();
        let changesets = entries
            .into_iter()
            .filter_map(|entry| {
                let author = entry.header.decode().ok()?.sender;
                let id = PayloadId::new(key, entry.seq, incarnation).to_text();
                Some(Changeset { id, author, entry })
            })
            .collect();
        Ok(Page { changesets, head, more: reached < record.head.seq, floor })
    }

    /// The devices of a vault, and the head at which they are.
    ///
    /// # Errors
    /// `no_such_log`, `revoked` or `unavailable`.
    pub async fn vault_devices(
        &self,
        device: DeviceKey,
        log: LogId,
    ) -> Result<(Head, Vec<Member>), Failure> {
        let key = self.shared.own_vault(device, log).await?;
        let members = self
            .shared
            .turns
            .ask(Turn::Question, self.shared.store.members(key))
            .await
            .map_err(|_| unavailable())?;
        let (position, members) = members.ok_or(Failure::new(ErrorCode::NoSuchLog))?;
        Ok((self.shared.head(position), members))
    }

    /// The real snapshots of a vault, newest first.
    ///
    /// # Errors
    /// `no_such_log`, `revoked` or `unavailable`.
    pub async fn vault_snapshots(
        &self,
        device: DeviceKey,
        log: LogId,
    ) -> Result<Vec<SnapshotRecord>, Failure> {
        let key = self.shared.own_vault(device, log).await?;
        snapshots(&self.shared, device, key).await
    }

    /// Bytes of a snapshot, at most 512 KiB.
    ///
    /// # Errors
    /// Also `no_such_snapshot`.
    pub async fn vault_piece(
        &self,
        device: DeviceKey,
        log: LogId,
        digest: Digest,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, Failure> {
        let key = self.shared.own_vault(device, log).await?;
        read_piece(&self.shared, device, key, digest, offset, length).await
    }

    /// Keeps a piece of an upload.
    ///
    /// # Errors
    /// `bad_snapshot`, `out_of_order` with the next offset, `snapshots_limit_reached`, and as above.
    pub async fn put_vault_piece(
        &self,
        device: DeviceKey,
        log: LogId,
        piece: NewPiece,
    ) -> Result<(), Failure> {
        let key = self.shared.own_vault(device, log).await?;
        keep_piece(&self.shared, device, key, piece).await
    }
}
