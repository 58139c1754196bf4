//! What a vault holds after a cursor, a page at a time, for clients without a session.
//!
//! Holds always: a page has no hole above the floor; whoever stands below it is told where to start.

use sealwire_protocol::{DeviceKey, Digest, ErrorCode, Failure, Head, LogId};

use crate::catch_up::FloorMark;
use crate::limits::{PAGE_BYTES_MAX, PAGE_ENTRIES_MAX};
use crate::ports::{
    Controls, ControlsRequest, LogKey, LogPlace, PageRequest, SnapshotRecord, StoreError,
    StoredEntry, SubscriptionRecord,
};
use crate::push::doorstep::Awake;
use crate::reply::unavailable;
use crate::session::ask;
use crate::system::{Shared, System};
use crate::totals::payload::PayloadId;
use crate::turns::Turn;

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
    /// After which seq the next page begins.
    pub reached: u64,
    /// If the cursor was below the floor: the floor, and the snapshot to start from. The changesets
    /// are then what is kept from below, up to the floor.
    pub floor: Option<(Head, Option<SnapshotRecord>)>,
}

impl Page {
    /// Whether more stands behind these.
    #[must_use]
    pub fn more(&self) -> bool {
        self.reached < self.head.seq
    }
}

impl System {
    /// What a vault holds after a cursor: its seq, and the chain there if the client has it; and whether
    /// the vault is full, which whoever asks now and then learns by no event.
    ///
    /// # Errors
    /// `no_such_log`, `revoked`, `history_changed` or `unavailable`.
    pub async fn pull_from_vault(
        &self,
        device: DeviceKey,
        log: LogId,
        after: u64,
        chain: Option<Digest>,
    ) -> Result<(Page, bool), Failure> {
        let shared = &self.shared;
        let LogPlace { key, .. } = shared.vault_place(log).await?;
        let record = shared.vault_record(device, log, key).await?;
        shared.compare(key, &record, after, chain).await?;
        let read = async {
            // The semaphore is never closed; if it were, reading without a turn is still correct.
            let _turn = shared.pending_reads.acquire().await;
            let page = shared.vault_page(device, key, &record, after).await?;
            let counts = shared.store.vault_counts(key).await?;
            Ok((page, shared.options.vaults.is_full(counts)))
        };
        let (page, full) = ask(read).await.map_err(|_| unavailable())?;
        shared.doorstep.awake(Awake { log: key, device, read: Some(page.reached) });
        Ok((page, full))
    }
}

impl Shared {
    /// Where the vault stands, for a device that is enrolled in it now.
    pub(super) async fn vault_record(
        &self,
        device: DeviceKey,
        log: LogId,
        key: LogKey,
    ) -> Result<SubscriptionRecord, Failure> {
        let record = self.turns.ask(Turn::Request, self.store.subscription(key, device)).await;
        match record.map_err(|_| unavailable())? {
            Some(record) => Ok(record),
            None => Err(self.why_no_member(Turn::Request, device, log).await),
        }
    }

    /// Whether a cursor stands on the vault's chain.
    pub(super) async fn compare(
        &self,
        key: LogKey,
        record: &SubscriptionRecord,
        after: u64,
        chain: Option<Digest>,
    ) -> Result<(), Failure> {
        let changed = Failure::at_head(ErrorCode::HistoryChanged, self.head(record.head));
        if after > record.head.seq {
            return Err(changed);
        }
        // Below the floor there is no entry to compare with.
        let Some(chain) = chain.filter(|_| after > 0 && after >= record.floor.seq) else {
            return Ok(());
        };
        let known = if after == record.head.seq {
            Some(record.head.chain)
        } else if after == record.floor.seq {
            Some(record.floor.chain)
        } else {
            let known = self.turns.ask(Turn::Request, self.store.chain_at(key, after)).await;
            known.map_err(|_| unavailable())?
        };
        if known == Some(chain) { Ok(()) } else { Err(changed) }
    }

    /// The page after a cursor that stands on the chain.
    pub(super) async fn vault_page(
        &self,
        device: DeviceKey,
        key: LogKey,
        record: &SubscriptionRecord,
        after: u64,
    ) -> Result<Page, StoreError> {
        let head = self.head(record.head);
        if after < record.floor.seq {
            let mark = FloorMark::of(self.store.as_ref(), key, record.floor).await?;
            let floor = Some((self.head(mark.position), mark.snapshot));
            let up_to = record.floor.seq;
            let request = ControlsRequest {
                key,
                after,
                up_to,
                entries_max: PAGE_ENTRIES_MAX,
                bytes_max: PAGE_BYTES_MAX,
            };
            let Controls { entries, complete } = self.store.read_controls(&request).await?;
            let reached = entries.last().filter(|_| !complete).map_or(up_to, |entry| entry.seq);
            return Ok(Page { changesets: self.changesets(key, entries), head, reached, floor });
        }
        let request = PageRequest {
            key,
            after,
            up_to: record.head.seq,
            reader: device,
            joined_seq: record.joined_seq,
            entries_max: PAGE_ENTRIES_MAX,
            bytes_max: PAGE_BYTES_MAX,
        };
        let mut entries = self.store.read_page(&request).await?;
        // A hole is where the floor has risen meanwhile: the next page is told of it.
        let whole = entries.iter().zip(after + 1..).take_while(|(e, seq)| e.seq == *seq).count();
        entries.truncate(whole);
        let reached = entries.last().map_or(after, |entry| entry.seq);
        Ok(Page { changesets: self.changesets(key, entries), head, reached, floor: None })
    }

    fn changesets(&self, key: LogKey, entries: Vec<StoredEntry>) -> Vec<Changeset> {
        let incarnation = self.store.incarnation();
        let changeset = |entry: StoredEntry| {
            let author = entry.header.decode().ok()?.sender;
            let id = PayloadId::new(key, entry.seq, incarnation).to_text();
            Some(Changeset { id, author, entry })
        };
        entries.into_iter().filter_map(changeset).collect()
    }
}
