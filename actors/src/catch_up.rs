//! Reads what a session has missed, a page at a time, and takes turns.
//!
//! A page comes from the log's ring of last frames if that goes back far enough, else from the
//! store. Only a few pages are read at a time over all sessions, first come, first served: a device
//! that was away for a week does not stand before one that missed two entries. Nothing is read while
//! the session's outbox has enough to send.

use std::sync::Arc;

use bytes::Bytes;
use metrics::counter;
use sealwire_protocol::codec::encode_relay;
use sealwire_protocol::frame::Floor;
use sealwire_protocol::{AckSet, DeviceKey, Head, LogId};
use std::time::Duration;
use tokio::time::{sleep, timeout};

use crate::entry::{EntryParts, Read, encode_entry, read_stored};
use crate::limits::{PAGE_BYTES_MAX, PAGE_ENTRIES_MAX, STORE_DEADLINE};
use crate::metrics::PAGES;
use crate::outbox::{CatchUp, Outbox, Phase};
use crate::ports::{
    Controls, ControlsRequest, LogKey, PageRequest, Position, SnapshotRecord, Store, StoreError,
};
use crate::reply::jitter;
use crate::system::Shared;
use sealwire_protocol::frame::Stub;

/// Pause after a page that could not be read, in milliseconds, jittered.
const FAILED_PAUSE_MS: (u64, u64) = (500, 1500);

/// Reads one page and puts it into the outbox.
pub(crate) async fn run(shared: &Shared, outbox: &Arc<Outbox>, page: CatchUp) {
    if page.phase == Phase::Entries && from_ring(outbox, &page) {
        counter!(PAGES, "source" => "ring").increment(1);
        return;
    }
    // The semaphore is never closed; if it were, reading without a turn is still correct.
    let turn = shared.turns.pages.acquire().await;
    let read = timeout(STORE_DEADLINE, from_store(shared.store.as_ref(), outbox, &page)).await;
    drop(turn);
    counter!(PAGES, "source" => "store").increment(1);
    if !matches!(read, Ok(Ok(()))) {
        tracing::warn!("a page for a reader could not be read");
        sleep(Duration::from_millis(jitter(FAILED_PAUSE_MS.0, FAILED_PAUSE_MS.1))).await;
        outbox.page_failed(page.key, page.generation);
    }
}

fn from_ring(outbox: &Outbox, page: &CatchUp) -> bool {
    let recent = page.presence.recent(page.after);
    if recent.is_empty() {
        return false;
    }
    let reads = recent
        .iter()
        .map(|entry| {
            let read = match entry.stub_for(outbox.device, page.joined_seq) {
                Some(reason) => Read::Stub(Stub { digest: entry.digest, reason }),
                None => Read::Entry(entry.frame.bytes()),
            };
            (entry.seq, read)
        })
        .collect();
    outbox.deliver_page(page.key, page.generation, reads);
    true
}

async fn from_store(store: &dyn Store, outbox: &Outbox, page: &CatchUp) -> Result<(), StoreError> {
    if let Phase::Controls(after, up_to) = page.phase {
        return controls_from_store(store, outbox, page, after, up_to).await;
    }
    let up_to = page.presence.head().seq;
    let request = PageRequest {
        key: page.key,
        after: page.after,
        up_to,
        reader: outbox.device,
        joined_seq: page.joined_seq,
        entries_max: PAGE_ENTRIES_MAX,
        bytes_max: PAGE_BYTES_MAX,
    };
    let mut entries =
        if page.after < up_to { store.read_page(&request).await? } else { Vec::new() };
    // A hole is where retention has raised the floor: a control entry may stand alone before it.
    let whole = entries.iter().zip(page.after + 1..).take_while(|(e, seq)| e.seq == *seq).count();
    entries.truncate(whole);
    if page.after < up_to && entries.is_empty() {
        return restart_at_floor(store, outbox, page).await;
    }
    let acked =
        acked_by(store, outbox.device, page, entries.iter().any(|e| e.body.is_none())).await?;
    let reads = entries
        .iter()
        .map(|entry| {
            let read = read_stored(page.id, entry, outbox.device, page.joined_seq, |seq| {
                acked.contains(seq)
            });
            (entry.seq, read)
        })
        .collect();
    outbox.deliver_page(page.key, page.generation, reads);
    Ok(())
}

/// What the reader has acked, which only matters for the reasons of stubs.
async fn acked_by(
    store: &dyn Store,
    device: DeviceKey,
    page: &CatchUp,
    has_stubs: bool,
) -> Result<AckSet, StoreError> {
    if !has_stubs {
        return Ok(AckSet::new());
    }
    let record = store.subscription(page.key, device).await?;
    Ok(record.map(|record| record.acked).unwrap_or_default())
}

async fn restart_at_floor(
    store: &dyn Store,
    outbox: &Outbox,
    page: &CatchUp,
) -> Result<(), StoreError> {
    let Some(record) = store.subscription(page.key, outbox.device).await? else {
        return Err(StoreError::Unavailable);
    };
    if record.floor.seq <= page.after {
        // Nothing to go on with, and no floor that would say why: look again after a pause.
        return Err(StoreError::Unavailable);
    }
    let floor = FloorMark::of(store, page.key, record.floor).await?;
    outbox.restart_at_floor(page.key, page.generation, page.after, floor);
    Ok(())
}

async fn controls_from_store(
    store: &dyn Store,
    outbox: &Outbox,
    page: &CatchUp,
    after: u64,
    up_to: u64,
) -> Result<(), StoreError> {
    let request = ControlsRequest {
        key: page.key,
        after,
        up_to,
        entries_max: PAGE_ENTRIES_MAX,
        bytes_max: PAGE_BYTES_MAX,
    };
    let Controls { entries, complete } = store.read_controls(&request).await?;
    let frames = entries
        .iter()
        .filter_map(|entry| {
            let parts = EntryParts {
                header: entry.header,
                body: entry.body.as_ref()?,
                signature: entry.signature,
                recipients: &entry.recipients,
                totals_kind: None,
            };
            Some((entry.seq, encode_entry(page.id, entry.seq, entry.at, &parts)))
        })
        .collect();
    outbox.deliver_controls(page.key, page.generation, frames, complete);
    Ok(())
}

/// Where the floor is, and what a reader below it starts from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FloorMark {
    pub(crate) position: Position,
    pub(crate) snapshot: Option<SnapshotRecord>,
}

impl FloorMark {
    /// The floor, with the newest snapshot that somebody has opened: entries are let go only below
    /// one. Groups have none.
    pub(crate) async fn of(
        store: &dyn Store,
        key: LogKey,
        position: Position,
    ) -> Result<Self, StoreError> {
        let snapshots = store.snapshots(key).await?;
        let confirmed = snapshots.into_iter().filter(|snapshot| snapshot.confirmed);
        Ok(Self { position, snapshot: confirmed.max_by_key(|snapshot| snapshot.head.seq) })
    }

    /// The frame that tells a reader.
    pub(crate) fn frame(&self, log: LogId, incarnation: u64) -> Bytes {
        let Position { seq, chain } = self.position;
        let head = Head { incarnation, seq, chain };
        let snapshot = self.snapshot.as_ref().map(SnapshotRecord::summary);
        Bytes::from(encode_relay(0, &Floor { log, head, snapshot }.into()))
    }
}
