//! The bytes of snapshots: kept in pieces, checked as a whole, read in ranges.
//!
//! The relay never opens a snapshot. It knows that its bytes are those of the digest, and that the head
//! that it is said to hold stands in the vault; whether it holds that, other devices say.
//!
//! Holds always: an upload is no snapshot before its control entry, and none becomes real whose bytes
//! were not all here and hashed.

use sealwire_protocol::digest::Sha256Stream;
use sealwire_protocol::limits::{
    SNAPSHOT_BYTES_MAX, SNAPSHOT_CHUNK_BYTES_MAX, SNAPSHOT_CHUNK_BYTES_MIN,
};
use sealwire_protocol::{Control, DeviceKey, Digest, ErrorCode, Failure};
use tokio::task::yield_now;

use super::enrolled;
use crate::catch_up::FloorMark;
use crate::ports::{
    ChunkResult, LogKey, LogPlace, NewChunk, Position, SnapshotRecord, StoreError, Upload,
};
use crate::reply::unavailable;
use crate::session::ask;
use crate::system::Shared;
use crate::turns::Turn;

/// A snapshot becomes real only if its bytes are here and its head is the vault's.
pub(super) async fn check_snapshot(
    shared: &Shared,
    key: LogKey,
    control: &Control,
) -> Result<(), Failure> {
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
    let of_this_store = chain == Some(head.chain) && head.incarnation == shared.store.incarnation();
    let fits = upload.size == *size && upload.chunks == *chunks && of_this_store;
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

/// The real snapshots of a vault, newest first.
pub(crate) async fn snapshots(
    shared: &Shared,
    turn: Turn,
    device: DeviceKey,
    place: LogPlace,
) -> Result<Vec<SnapshotRecord>, Failure> {
    enrolled(shared, turn, device, place).await?;
    shared.turns.ask(turn, shared.store.snapshots(place.key)).await.map_err(|_| unavailable())
}

/// Which bytes of a snapshot are wanted.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    /// SHA-256 of the whole.
    pub(crate) digest: Digest,
    pub(crate) offset: u64,
    /// Most bytes.
    pub(crate) length: usize,
}

/// Bytes of a snapshot, at most [`SNAPSHOT_CHUNK_BYTES_MAX`].
pub(crate) async fn read_piece(
    shared: &Shared,
    turn: Turn,
    device: DeviceKey,
    place: LogPlace,
    Piece { digest, offset, length }: Piece,
) -> Result<Vec<u8>, Failure> {
    let snapshots = snapshots(shared, turn, device, place).await?;
    let known = snapshots.iter().find(|snapshot| snapshot.digest == digest);
    let size = known.ok_or(Failure::new(ErrorCode::NoSuchSnapshot))?.size;
    if offset > size {
        return Err(Failure::new(ErrorCode::BadSnapshot));
    }
    let length = length.min(SNAPSHOT_CHUNK_BYTES_MAX);
    let pages = if turn == Turn::Request { &shared.pending_reads } else { &shared.turns.pages };
    let read = async {
        // The semaphore is never closed; if it were, reading without a turn is still correct.
        let _turn = pages.acquire().await;
        shared.store.read_chunk(place.key, digest, offset, length).await
    };
    ask(read).await.map_err(|_| unavailable())
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
    turn: Turn,
    device: DeviceKey,
    place: LogPlace,
    piece: NewPiece,
) -> Result<(), Failure> {
    let key = place.key;
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
        ChunkResult::NotEnrolled => Err(shared.why_no_member(turn, device, place.id).await),
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
