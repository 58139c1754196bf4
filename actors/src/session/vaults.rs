//! What a session does for vaults beside reading and writing entries: one function for each frame.
//! What is done about it stands in [`crate::vaults`], for requests without a session as well.

use std::sync::Arc;

use sealwire_protocol::bounded::{Bounded, BoundedBytes};
use sealwire_protocol::frame::{
    GetSnapshotChunk, PutSnapshotChunk, SnapshotChunk, Snapshots, Token,
};
use sealwire_protocol::limits::SNAPSHOTS_MAX;
use sealwire_protocol::{ErrorCode, Failure, LogId, LogType};

use super::requests::{later, why_unknown};
use super::{Core, Step, known};
use crate::entry::Weight;
use crate::ports::{LogPlace, SnapshotRecord};
use crate::reply::Reply;
use crate::turns::Turn;
use crate::vaults::{self, NewPiece, Piece};

/// A vault that the device is enrolled in, as far as its session knows.
async fn vault(core: &Core, log: LogId) -> Result<LogPlace, Failure> {
    match known(core, log) {
        Some(place) if place.log_type == LogType::Vault => Ok(place),
        Some(_) => Err(Failure::new(ErrorCode::Unsupported)),
        None => Err(why_unknown(core, log).await),
    }
}

pub(super) async fn get_token(core: Arc<Core>, request: u32, log: LogId) {
    let issued = async {
        let place = vault(&core, log).await?;
        vaults::enrolled(&core.shared, Turn::Question, core.outbox.device, place).await?;
        Ok(core.shared.vault_token(core.outbox.device, log))
    };
    match issued.await {
        Ok((token, expires)) => core.answer(request, &Token { token, expires }.into()),
        Err(failure) => core.refuse(request, failure),
    }
}

pub(super) async fn list_snapshots(core: Arc<Core>, request: u32, log: LogId) {
    let listed = async {
        let place = vault(&core, log).await?;
        vaults::snapshots(&core.shared, Turn::Question, core.outbox.device, place).await
    };
    match listed.await {
        Ok(mut snapshots) => {
            snapshots.truncate(SNAPSHOTS_MAX);
            let summaries = snapshots.iter().map(SnapshotRecord::summary).collect();
            let snapshots = Bounded::new(summaries).unwrap_or_default();
            core.answer(request, &Snapshots { snapshots }.into());
        }
        Err(failure) => core.refuse(request, failure),
    }
}

pub(super) async fn get_chunk(core: Arc<Core>, request: u32, frame: GetSnapshotChunk) {
    let GetSnapshotChunk { log, digest, offset, length } = frame;
    let read = async {
        let place = vault(&core, log).await?;
        let piece = Piece { digest, offset, length: length as usize };
        vaults::read_piece(&core.shared, Turn::Question, core.outbox.device, place, piece).await
    };
    match read.await {
        Ok(bytes) => {
            let bytes = BoundedBytes::new(bytes).unwrap_or_default();
            core.answer(request, &SnapshotChunk { offset, bytes }.into());
        }
        Err(failure) => core.refuse(request, failure),
    }
}

pub(super) fn put_chunk(core: &Arc<Core>, request: u32, frame: PutSnapshotChunk) -> Step {
    // The credit bounds what all sessions together have brought and not written.
    let weight = Weight::of_bytes(frame.bytes.len());
    match Reply::begin(&core.outbox, &core.shared.budget, request, weight) {
        Ok(reply) => later(keep_chunk(core.clone(), frame, reply)),
        Err(failure) => {
            core.refuse(request, failure);
            Step::Done
        }
    }
}

async fn keep_chunk(core: Arc<Core>, frame: PutSnapshotChunk, reply: Reply) {
    let PutSnapshotChunk { log, digest, size, offset, bytes } = frame;
    let kept = async {
        let place = vault(&core, log).await?;
        let piece = NewPiece { digest, size, offset, bytes: bytes.to_vec() };
        vaults::keep_piece(&core.shared, Turn::Question, core.outbox.device, place, piece).await
    };
    match kept.await {
        Ok(()) => reply.done(),
        Err(failure) => reply.refuse(failure),
    }
}
