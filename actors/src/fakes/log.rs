//! One log of the in-memory store.
//!
//! It is apart from [`super::state`] because a log knows nothing of other logs or of devices: what
//! stands here is what SQL keeps under one log key.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use sealwire_protocol::frame::Member;
use sealwire_protocol::{AckSet, DeviceKey, Digest, LogId, LogType};

use super::vaults::Vault;
use crate::ports::{
    DUE_ENTRIES_MAX, LiveRecord, LogBrief, LogCommit, LogKey, LogRecord, MemberChange,
    MemberRecord, NewEntry, PageRequest, PendingRequest, Position, SenderRecord, StoreError,
    StoredEntry,
};

pub(super) enum Membership {
    Joining { reserved_at: u64 },
    Active { joined_seq: u64, joined_at: u64, acked: AckSet },
}

pub(super) struct KeptEntry {
    pub(super) new: NewEntry,
    freed: bool,
}

impl KeptEntry {
    pub(super) fn stored(&self, with_body: bool) -> StoredEntry {
        let body = (with_body && !self.freed).then(|| self.new.body.clone());
        StoredEntry {
            seq: self.new.seq,
            at: self.new.at,
            header: self.new.header,
            signature: self.new.signature,
            recipients: self.new.recipients.clone(),
            chain: self.new.chain,
            totals_kind: body.as_ref().and(self.new.totals_kind.clone()),
            body,
        }
    }

    /// Whether the body waits for somebody's ack.
    pub(super) fn lives(&self) -> bool {
        !self.new.control && !self.freed
    }

    /// Whether the body is for this reader of a group.
    fn is_for(&self, request: &PageRequest) -> bool {
        let sender = &self.new.header.0[17..49];
        let named = self.new.recipients.is_empty()
            || self.new.recipients.binary_search(&request.reader).is_ok();
        self.new.control
            || (self.new.seq > request.joined_seq && sender != request.reader.0 && named)
    }
}

pub(super) struct Log {
    pub(super) id: LogId,
    pub(super) log_type: LogType,
    pub(super) head: Position,
    pub(super) version: u64,
    pub(super) floor: Position,
    pub(super) created_at: u64,
    pub(super) last_entry_at: u64,
    pub(super) entries: BTreeMap<u64, KeptEntry>,
    /// (slot, count) of the entries that are kept and have a count.
    pub(super) counts: HashMap<(i32, u64), u64>,
    pub(super) senders: BTreeMap<i32, SenderRecord>,
    pub(super) members: BTreeMap<DeviceKey, Membership>,
    pub(super) revoked: BTreeMap<DeviceKey, u64>,
    join_key: Option<DeviceKey>,
    pub(super) guard_seq: u64,
    pub(super) vault: Vault,
}

impl Log {
    pub(super) fn new(id: LogId, log_type: LogType, chain_start: Digest, created_at: u64) -> Self {
        let start = Position { seq: 0, chain: chain_start };
        Self {
            id,
            log_type,
            head: start,
            version: 0,
            floor: start,
            created_at,
            last_entry_at: 0,
            entries: BTreeMap::new(),
            counts: HashMap::new(),
            senders: BTreeMap::new(),
            members: BTreeMap::new(),
            revoked: BTreeMap::new(),
            join_key: None,
            guard_seq: 0,
            vault: Vault::default(),
        }
    }

    /// What this log, as it is now, could not hold.
    pub(super) fn check(&self, part: &LogCommit) -> Result<(), StoreError> {
        let counts_fit = part
            .entries
            .iter()
            .all(|e| e.count == 0 || !self.counts.contains_key(&(e.sender_slot, e.count)));
        let senders_fit = part.senders.iter().all(|new| {
            self.senders.values().all(|old| (old.slot == new.slot) == (old.device == new.device))
        });
        if counts_fit && senders_fit { Ok(()) } else { Err(StoreError::Refused) }
    }

    /// Whether everybody whom a part lets join has a place: reserved or taken up, in a group.
    pub(super) fn has_places_for(&self, part: &LogCommit) -> bool {
        part.members.iter().all(|change| match change {
            MemberChange::Joined { device, .. } => {
                self.log_type == LogType::Vault || self.members.contains_key(device)
            }
            MemberChange::Left { .. } | MemberChange::Revoked { .. } => true,
        })
    }

    pub(super) fn apply(&mut self, part: &LogCommit) {
        for entry in &part.entries {
            self.head = Position { seq: entry.seq, chain: entry.chain };
            self.last_entry_at = entry.at;
            if entry.count > 0 {
                self.counts.insert((entry.sender_slot, entry.count), entry.seq);
            }
            self.entries.insert(entry.seq, KeptEntry { new: entry.clone(), freed: false });
        }
        for sender in &part.senders {
            self.senders.insert(sender.slot, *sender);
        }
        for change in &part.members {
            self.change_member(change);
        }
        if let Some(guard_seq) = part.guard_seq {
            self.guard_seq = guard_seq;
        }
        if let Some(join_key) = part.join_key {
            self.join_key = join_key;
        }
        for (device, new) in &part.acks {
            if let Some(Membership::Active { acked, .. }) = self.members.get_mut(device) {
                *acked = new.clone();
            }
        }
        for (first, last) in part.freed.iter().filter(|(first, last)| first <= last) {
            for entry in self.entries.range_mut(first..=last).map(|(_, entry)| entry) {
                entry.freed |= !entry.new.control;
            }
        }
        if let Some(change) = &part.vault {
            self.vault.apply(change);
        }
        if let Some(floor) = part.floor {
            self.floor = floor;
            self.entries.retain(|seq, entry| *seq > floor.seq || entry.new.control);
            let entries = &self.entries;
            self.counts.retain(|_, seq| entries.contains_key(seq));
        }
    }

    fn change_member(&mut self, change: &MemberChange) {
        match change {
            MemberChange::Joined { device, seq, at } => {
                let acked = AckSet::new();
                let active = Membership::Active { joined_seq: *seq, joined_at: *at, acked };
                self.members.insert(*device, active);
            }
            MemberChange::Left { device } => {
                self.members.remove(device);
            }
            MemberChange::Revoked { device, seq } => {
                self.members.remove(device);
                self.revoked.insert(*device, *seq);
            }
        }
    }

    pub(super) fn member(&self, device: DeviceKey) -> Option<MemberRecord> {
        match self.members.get(&device)? {
            Membership::Joining { .. } => None,
            Membership::Active { joined_seq, joined_at, acked } => Some(MemberRecord {
                member: Member { device, joined_seq: *joined_seq, joined_at: *joined_at },
                acked: acked.clone(),
            }),
        }
    }

    /// By the seq at which they joined, then by key.
    pub(super) fn member_records(&self) -> Vec<MemberRecord> {
        let mut records: Vec<MemberRecord> =
            self.members.keys().filter_map(|device| self.member(*device)).collect();
        records.sort_by_key(|record| (record.member.joined_seq, record.member.device));
        records
    }

    pub(super) fn live(&self) -> Vec<LiveRecord> {
        self.entries
            .values()
            .filter(|entry| entry.lives())
            .map(|entry| LiveRecord {
                seq: entry.new.seq,
                sender_slot: entry.new.sender_slot,
                bytes: u32::try_from(entry.new.body.len()).unwrap_or(u32::MAX),
                at: entry.new.at,
                recipients: entry.new.recipients.clone(),
            })
            .collect()
    }

    pub(super) fn brief(&self, key: LogKey) -> LogBrief {
        LogBrief {
            key,
            id: self.id,
            log_type: self.log_type,
            join_key: self.join_key,
            head: self.head,
        }
    }

    pub(super) fn record(&self, key: LogKey) -> LogRecord {
        let mut revoked: Vec<(DeviceKey, u64)> =
            self.revoked.iter().map(|(device, seq)| (*device, *seq)).collect();
        revoked.sort_by_key(|(device, seq)| (*seq, *device));
        LogRecord {
            key,
            id: self.id,
            log_type: self.log_type,
            head: self.head,
            version: self.version,
            floor: self.floor,
            join_key: self.join_key,
            guard_seq: self.guard_seq,
            last_entry_at: self.last_entry_at,
            members: self.member_records(),
            revoked,
            senders: self.senders.values().copied().collect(),
            live: match self.log_type {
                LogType::Group => self.live(),
                LogType::Vault => Vec::new(),
            },
            vault: self.vault.record(),
        }
    }

    pub(super) fn page(&self, request: &PageRequest) -> Vec<StoredEntry> {
        if request.after >= request.up_to {
            return Vec::new();
        }
        let mut page = Vec::new();
        let mut bytes = 0;
        let entries =
            self.entries.range((Bound::Excluded(request.after), Bound::Included(request.up_to)));
        for (_, entry) in entries.take(request.entries_max) {
            let stored = entry.stored(self.log_type == LogType::Vault || entry.is_for(request));
            bytes += stored.body.as_ref().map_or(0, sealwire_protocol::Body::len);
            bytes += stored.recipients.len() * DeviceKey::LEN;
            if bytes > request.bytes_max && !page.is_empty() {
                break;
            }
            page.push(stored);
        }
        page
    }

    pub(super) fn pending(
        &self,
        request: &PendingRequest,
        member: &MemberRecord,
    ) -> Vec<StoredEntry> {
        let reader = PageRequest {
            key: request.key,
            after: 0,
            up_to: self.head.seq,
            reader: request.reader,
            joined_seq: member.member.joined_seq,
            entries_max: request.entries_max,
            bytes_max: request.bytes_max,
        };
        let waits = |entry: &&KeptEntry| {
            entry.lives() && entry.is_for(&reader) && !member.acked.contains(entry.new.seq)
        };
        let all: Vec<&KeptEntry> = self.entries.values().filter(waits).collect();
        let fits = |entries: &[&KeptEntry]| {
            let mut bytes = 0;
            entries
                .iter()
                .take(request.entries_max)
                .enumerate()
                .take_while(|(place, entry)| {
                    bytes += entry.new.body.len();
                    *place == 0 || bytes <= request.bytes_max
                })
                .count()
        };
        let mut chosen = all;
        if fits(&chosen) < chosen.len() {
            let alone = |entry: &&KeptEntry| entry.new.recipients.len() == 1;
            let (mut alone, others): (Vec<_>, Vec<_>) = chosen.into_iter().partition(alone);
            alone.extend(others);
            chosen = alone;
        }
        let count = fits(&chosen);
        chosen.iter().take(count).map(|entry| entry.stored(true)).collect()
    }

    /// The newest entry above the floor up to which all are older than `before`, in one step's reach.
    pub(super) fn old_up_to(&self, before: u64) -> Option<Position> {
        self.entries
            .range((Bound::Excluded(self.floor.seq), Bound::Unbounded))
            .take_while(|(seq, entry)| {
                entry.new.at < before && **seq <= self.floor.seq + DUE_ENTRIES_MAX
            })
            .last()
            .map(|(seq, entry)| Position { seq: *seq, chain: entry.new.chain })
    }
}
