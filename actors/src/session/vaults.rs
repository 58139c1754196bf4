//! What a session does for vaults beside reading and writing entries: it verifies what comes, and
//! moves the bytes of snapshots.
//!
//! The relay never opens a snapshot. It knows that its bytes are those of the digest, and that the
//! head that it is said to hold stands in the vault; whether it holds that, other devices say.

use std::sync::Arc;

use sealwire_protocol::bounded::{Bounded, BoundedBytes};
use sealwire_protocol::digest::Sha256Stream;
use sealwire_protocol::frame::{
    Done, GetSnapshotChunk, PutSnapshotChunk, SnapshotChunk, Snapshots, Token,
};
use sealwire_protocol::limits::{
    SNAPSHOT_BYTES_MAX, SNAPSHOT_CHUNK_BYTES_MAX, SNAPSHOT_CHUNK_BYTES_MIN, TOKEN_LIFETIME,
};
use sealwire_protocol::token::{Claims, Purpose};
use sealwire_protocol::{Control, Digest, ErrorCode, Failure, LogId, LogType};
use tokio::task::yield_now;

use super::requests::{cast_append, later, refuse, run_job};
use super::{Core, Step, ask, known};
use crate::catch_up::FloorMark;
use crate::entry::{CheckedEntry, Content};
use crate::limits::VERIFIED_AT_ONCE;
use crate::ports::{ChunkResult, LogKey, NewChunk, Position, SnapshotRecord, StoreError, Upload};
use crate::reply::{Reply, unavailable};

/// Verifies every entry in order, and hands them to their log.
pub(super) async fn append(core: Arc<Core>, key: LogKey, entries: Vec<CheckedEntry>, reply: Reply) {
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
        && let Err(failure) = check_snapshot(&core, key, control).await
    {
        return reply.refuse(failure);
    }
    cast_append(&core, key, entries, reply);
}

/// A snapshot becomes real only if its bytes are here and its head is the vault's.
async fn check_snapshot(core: &Core, key: LogKey, control: &Control) -> Result<(), Failure> {
    let Control::Snapshot { head, digest, size, chunks } = control else {
        return Ok(());
    };
    let (digest, now) = (*digest, core.shared.clock.now_ms());
    let claimed = run_job(core, move |store| {
        Box::pin(async move { ask(store.claim_upload(key, digest, now)).await })
    });
    let upload = claimed
        .await
        .map_err(|_| unavailable())?
        .filter(|upload| upload.verified)
        .ok_or(Failure::new(ErrorCode::NoSuchSnapshot))?;
    let chain = ask(core.shared.store.chain_at(key, head.seq)).await.map_err(|_| unavailable())?;
    let fits = upload.size == *size && upload.chunks == *chunks && chain == Some(head.chain);
    if fits { Ok(()) } else { Err(Failure::new(ErrorCode::BadSnapshot)) }
}

/// Where a device begins that starts from a snapshot.
pub(super) async fn start_from(
    core: &Core,
    key: LogKey,
    digest: Digest,
    floor_seq: u64,
) -> Result<FloorMark, Failure> {
    let snapshots = ask(core.shared.store.snapshots(key)).await.map_err(|_| unavailable())?;
    let snapshot = snapshots
        .into_iter()
        // The entries above its head must all be here.
        .find(|snapshot| snapshot.digest == digest && snapshot.head.seq >= floor_seq)
        .ok_or(Failure::new(ErrorCode::NoSuchSnapshot))?;
    let position = Position { seq: snapshot.head.seq, chain: snapshot.head.chain };
    Ok(FloorMark { position, snapshot: Some(snapshot) })
}

// ---- requests

pub(super) async fn get_token(core: Arc<Core>, request: u32, log: LogId) {
    if let Err(failure) = enrolled(&core, log).await {
        return core.refuse(request, failure);
    }
    let issued = core.shared.clock.now_ms() / 1000;
    let expires = issued + TOKEN_LIFETIME.as_secs();
    let device = core.outbox.device;
    let claims = Claims { purpose: Purpose::Vault, device, log, issued, expires };
    let token = core.shared.issue(&claims);
    core.answer(request, &Token { token, expires }.into());
}

pub(super) async fn list_snapshots(core: Arc<Core>, request: u32, log: LogId) {
    match snapshots(&core, log).await {
        Ok((_, mut snapshots)) => {
            snapshots.truncate(sealwire_protocol::limits::SNAPSHOTS_MAX);
            let summaries = snapshots.iter().map(SnapshotRecord::summary).collect();
            let snapshots = Bounded::new(summaries).unwrap_or_default();
            core.answer(request, &Snapshots { snapshots }.into());
        }
        Err(failure) => core.refuse(request, failure),
    }
}

pub(super) async fn get_chunk(core: Arc<Core>, request: u32, frame: GetSnapshotChunk) {
    match read_chunk(&core, &frame).await {
        Ok(bytes) => {
            let bytes = BoundedBytes::new(bytes).unwrap_or_default();
            core.answer(request, &SnapshotChunk { offset: frame.offset, bytes }.into());
        }
        Err(failure) => core.refuse(request, failure),
    }
}

pub(super) fn put_chunk(core: &Arc<Core>, request: u32, frame: PutSnapshotChunk) -> Step {
    let Some(place) = known(core, frame.log) else {
        return refuse(core, request, ErrorCode::NoSuchLog);
    };
    if place.log_type != LogType::Vault {
        return refuse(core, request, ErrorCode::Unsupported);
    }
    // The credit bounds what all sessions together have brought and not written.
    match Reply::begin(&core.outbox, &core.shared.budget, request, frame.bytes.len()) {
        Ok(reply) => later(keep_chunk(core.clone(), place.key, frame, reply)),
        Err(failure) => {
            core.refuse(request, failure);
            Step::Done
        }
    }
}

async fn keep_chunk(core: Arc<Core>, key: LogKey, frame: PutSnapshotChunk, reply: Reply) {
    match store_chunk(&core, key, frame).await {
        Ok(()) => reply.frame(&Done {}.into()),
        Err(failure) => reply.refuse(failure),
    }
}

// ---- what is done

/// The device must be enrolled now, and the log a vault.
async fn enrolled(core: &Core, log: LogId) -> Result<LogKey, Failure> {
    let no_such_log = Failure::new(ErrorCode::NoSuchLog);
    let place = known(core, log).ok_or(no_such_log)?;
    if place.log_type != LogType::Vault {
        return Err(Failure::new(ErrorCode::Unsupported));
    }
    let record = ask(core.shared.store.subscription(place.key, core.outbox.device)).await;
    record.map_err(|_| unavailable())?.ok_or(no_such_log)?;
    Ok(place.key)
}

async fn snapshots(core: &Core, log: LogId) -> Result<(LogKey, Vec<SnapshotRecord>), Failure> {
    let key = enrolled(core, log).await?;
    let snapshots = ask(core.shared.store.snapshots(key)).await.map_err(|_| unavailable())?;
    Ok((key, snapshots))
}

async fn read_chunk(core: &Core, frame: &GetSnapshotChunk) -> Result<Vec<u8>, Failure> {
    let (key, snapshots) = snapshots(core, frame.log).await?;
    let known = snapshots.iter().find(|snapshot| snapshot.digest == frame.digest);
    let size = known.ok_or(Failure::new(ErrorCode::NoSuchSnapshot))?.size;
    if frame.offset > size {
        return Err(Failure::new(ErrorCode::BadSnapshot));
    }
    let length = (frame.length as usize).min(SNAPSHOT_CHUNK_BYTES_MAX);
    let _turn = core.shared.page_reads.acquire().await;
    ask(core.shared.store.read_chunk(key, frame.digest, frame.offset, length))
        .await
        .map_err(|_| unavailable())
}

async fn store_chunk(core: &Core, key: LogKey, frame: PutSnapshotChunk) -> Result<(), Failure> {
    let PutSnapshotChunk { digest, size, offset, bytes, .. } = frame;
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
    let (device, now, limits) =
        (core.outbox.device, core.shared.clock.now_ms(), core.shared.options.vaults);
    let kept = run_job(core, move |store| {
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
        ChunkResult::Kept(upload) => verify_whole(core, key, digest, upload).await,
        ChunkResult::NotNext(upload) => {
            verify_whole(core, key, digest, upload).await?;
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
    core: &Core,
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
        let turn = core.shared.page_reads.acquire().await;
        let read = core.shared.store.read_chunk(key, digest, offset, SNAPSHOT_CHUNK_BYTES_MAX);
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
    let ended = run_job(core, move |store| {
        Box::pin(async move { ask(store.end_upload(key, digest, verified)).await })
    });
    ended.await.map_err(|_| unavailable())?;
    if verified { Ok(()) } else { Err(Failure::new(ErrorCode::BadSnapshot)) }
}
