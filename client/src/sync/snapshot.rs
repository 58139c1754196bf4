//! The forms in which snapshots and changesets come, read without a database or a key: for whoever
//! checks a backup, and for the fuzz targets.

use super::error::SyncError;
use super::{boxes, state};

/// Reads a state that was opened and is still compressed, up to so many bytes, as a new device does, and
/// keeps nothing of it. Gives how many rows it holds.
///
/// # Errors
/// The [`SyncError`] that a new device would meet.
pub fn check(packed: &[u8], bytes_max: u64) -> Result<usize, SyncError> {
    state::check(packed, bytes_max)
}

/// As [`check`], of a state that is not compressed.
///
/// # Errors
/// As of [`check`].
pub fn check_unpacked(state: &[u8]) -> Result<usize, SyncError> {
    state::check_frames(&mut &state[..], state.len())
}

/// The sealed boxes in the body of a changeset's entry; none if it is not such a body.
#[must_use]
pub fn boxes(body: &[u8]) -> Option<Vec<Vec<u8>>> {
    Some(boxes::split(body)?.into_iter().map(serde_bytes::ByteBuf::into_vec).collect())
}
