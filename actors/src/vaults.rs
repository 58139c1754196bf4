//! What a vault owes to its devices beside order: verification of what comes, the bytes of snapshots,
//! and single requests of clients that have no session.
//!
//! | module | holds |
//! |---|---|
//! | [`mod@snapshots`] | the bytes of snapshots |
//! | [`requests`] | tokens, pushing and lists, without a session |
//! | [`pages`] | what a vault holds after a cursor |
//! | [`stream`] | what comes after a cursor, for as long as a client listens |
//!
//! Holds always: every request asks the log or the store whether the device is enrolled *now*; entries
//! of one device and vault are handed to the log in the order in which they came, also without a
//! session: those take turns.

mod pages;
mod requests;
mod snapshots;
mod stream;

use std::sync::Arc;

use sealwire_protocol::{DeviceKey, Failure};
use tokio::task::yield_now;

use crate::entry::{CheckedEntry, Content};
use crate::limits::VERIFIED_AT_ONCE;
use crate::ports::{LogKey, LogPlace};
use crate::reply::{Reply, unavailable};
use crate::system::Shared;
use crate::turns::Turn;

pub use pages::{Changeset, Page};
pub(crate) use requests::PushTurns;
pub use snapshots::NewPiece;
pub(crate) use snapshots::{Piece, keep_piece, read_piece, snapshots, start_from};
pub use stream::{VaultEvent, VaultStream};

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
        && let Err(failure) = snapshots::check_snapshot(&shared, key, control).await
    {
        return reply.refuse(failure);
    }
    shared.cast_append(device, key, entries, reply);
}

/// The device must be enrolled now.
pub(crate) async fn enrolled(
    shared: &Shared,
    turn: Turn,
    device: DeviceKey,
    place: LogPlace,
) -> Result<(), Failure> {
    let record = shared.turns.ask(turn, shared.store.subscription(place.key, device)).await;
    match record.map_err(|_| unavailable())? {
        Some(_) => Ok(()),
        None => Err(shared.why_no_member(turn, device, place.id).await),
    }
}
