//! What the in-memory store holds, and every decision about it as a plain function.
//!
//! It exists to say, in the shortest way, what the two SQL stores must do: it is their model in the
//! contract tests. Nothing here waits or fails but for what the trait says.
//!
//! Holds always: a commit is checked whole before any of it is applied.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Bound;

use sealwire_protocol::challenge::CHALLENGE_BYTES;
use sealwire_protocol::digest::{chain_start, entry_digest};
use sealwire_protocol::frame::Member;
use sealwire_protocol::limits::SEQ_MAX;
use sealwire_protocol::{DeviceKey, Digest, LogId, LogType};

use super::log::{Log, Membership};
use crate::ports::{
    CommitResult, Controls, ControlsRequest, DueLog, FoundResult, GroupRecord, LogBrief, LogCommit,
    LogKey, LogRecord, MemberChange, NewLog, PageRequest, PendingRequest, Position, ReserveResult,
    SenderRecord, StoreError, StoreStats, StoredEntry, SubscriptionRecord,
};

const DAY_MS: u64 = 86_400_000;

#[derive(Default)]
pub(super) struct State {
    last_key: i64,
    pub(super) logs: BTreeMap<LogKey, Log>,
    ids: HashMap<LogId, LogKey>,
    /// The day on which each was last seen.
    devices: BTreeMap<DeviceKey, u64>,
    /// Where devices' doorbells are.
    push_tokens: BTreeMap<DeviceKey, (String, String)>,
    /// Claimed challenges, and when each expires.
    challenges: BTreeMap<[u8; CHALLENGE_BYTES], u64>,
    /// The last device that a sweep has looked at.
    swept: Option<DeviceKey>,
}

impl State {
    pub(super) fn commit(&mut self, batch: &[LogCommit]) -> Result<Vec<CommitResult>, StoreError> {
        let mut seen = HashSet::new();
        for part in batch {
            if !seen.insert(part.key) {
                return Err(StoreError::Refused);
            }
            check(part)?;
            if let Some(log) = self.matching(part) {
                log.check(part)?;
            }
        }
        Ok(batch.iter().map(|part| self.apply(part)).collect())
    }

    fn matching(&self, part: &LogCommit) -> Option<&Log> {
        self.logs.get(&part.key).filter(|log| {
            log.head.seq == part.expected_seq
                && log.version == part.expected_version
                && log.has_places_for(part)
        })
    }

    fn apply(&mut self, part: &LogCommit) -> CommitResult {
        if self.matching(part).is_none() {
            return CommitResult::Stale;
        }
        if part.ended {
            if let Some(log) = self.logs.remove(&part.key) {
                self.ids.remove(&log.id);
            }
        } else if let Some(log) = self.logs.get_mut(&part.key) {
            log.apply(part);
        }
        CommitResult::Committed
    }

    pub(super) fn raise_version(&mut self, key: LogKey) {
        if let Some(log) = self.logs.get_mut(&key) {
            log.version += 1;
        }
    }

    pub(super) fn found(
        &mut self,
        new: &NewLog,
        groups_max: u32,
    ) -> Result<FoundResult, StoreError> {
        if let Some(key) = self.ids.get(&new.id) {
            return Ok(FoundResult::Exists(*key));
        }
        if new.log_type == LogType::Group {
            if self.places_of(new.founder, 0) >= groups_max as usize {
                return Ok(FoundResult::LimitReached);
            }
            self.note_device(new.founder, new.entry.at);
        }
        let key = LogKey(self.last_key + 1);
        let mut part = LogCommit::new(key, 0, 0);
        part.entries.push(new.entry.clone());
        part.senders.extend(first_sender(new));
        part.members.push(MemberChange::Joined {
            device: new.founder,
            seq: new.entry.seq,
            at: new.entry.at,
        });
        part.join_key = Some(new.join_key);
        part.vault = new.vault_change();
        check(&part)?;
        let mut log = Log::new(new.id, new.log_type, chain_start(new.id), new.entry.at);
        log.apply(&part);
        self.last_key = key.0;
        self.ids.insert(new.id, key);
        self.logs.insert(key, log);
        Ok(FoundResult::Created(key))
    }

    pub(super) fn reserve(
        &mut self,
        key: LogKey,
        device: DeviceKey,
        groups_max: u32,
        now: u64,
        since: u64,
    ) -> ReserveResult {
        let Some(log) = self.logs.get(&key).filter(|log| log.log_type == LogType::Group) else {
            return ReserveResult::NoSuchLog;
        };
        if let Some(seq) = log.revoked.get(&device) {
            return ReserveResult::Revoked(*seq);
        }
        if log.member(device).is_some() {
            return ReserveResult::AlreadyMember;
        }
        let own = usize::from(matches!(
            log.members.get(&device),
            Some(Membership::Joining { reserved_at }) if *reserved_at >= since
        ));
        if self.places_of(device, since) - own >= groups_max as usize {
            return ReserveResult::LimitReached;
        }
        for log in self.logs.values_mut() {
            if matches!(log.members.get(&device),
                Some(Membership::Joining { reserved_at }) if *reserved_at < since)
            {
                log.members.remove(&device);
            }
        }
        self.note_device(device, now);
        if let Some(log) = self.logs.get_mut(&key) {
            log.members.insert(device, Membership::Joining { reserved_at: now });
        }
        ReserveResult::Reserved
    }

    /// Groups that `device` is in or has reserved at `since` or later.
    fn places_of(&self, device: DeviceKey, since: u64) -> usize {
        self.logs
            .values()
            .filter(|log| log.log_type == LogType::Group)
            .filter(|log| match log.members.get(&device) {
                Some(Membership::Active { .. }) => true,
                Some(Membership::Joining { reserved_at }) => *reserved_at >= since,
                None => false,
            })
            .count()
    }

    fn note_device(&mut self, device: DeviceKey, now: u64) {
        let seen = self.devices.entry(device).or_default();
        *seen = (*seen).max(now / DAY_MS);
    }

    pub(super) fn set_push_token(
        &mut self,
        device: DeviceKey,
        place: Option<(String, String)>,
        now: u64,
    ) {
        let Some(place) = place else {
            self.push_tokens.remove(&device);
            return;
        };
        self.push_tokens.retain(|_, other| *other != place);
        self.push_tokens.insert(device, place);
        self.note_device(device, now);
    }

    pub(super) fn push_token(&self, device: DeviceKey) -> Option<(String, String)> {
        self.push_tokens.get(&device).cloned()
    }

    pub(super) fn touch_device(&mut self, device: DeviceKey, now: u64) {
        if let Some(seen) = self.devices.get_mut(&device) {
            *seen = (*seen).max(now / DAY_MS);
        }
    }

    pub(super) fn sweep(
        &mut self,
        reservations_before: u64,
        devices_before: u64,
        now: u64,
        limit: usize,
    ) -> u64 {
        self.sweep_reservations(reservations_before, limit)
            + self.sweep_idle_devices(devices_before / DAY_MS, limit)
            + self.sweep_challenges(now, limit)
            + self.sweep_empty_devices(limit)
    }

    pub(super) fn claim_challenges(
        &mut self,
        challenges: &[([u8; CHALLENGE_BYTES], u64)],
    ) -> Vec<bool> {
        let mut claim = |(challenge, expires_at): &([u8; CHALLENGE_BYTES], u64)| {
            self.challenges.insert(*challenge, *expires_at).is_none()
        };
        challenges.iter().map(&mut claim).collect()
    }

    fn sweep_challenges(&mut self, now: u64, limit: usize) -> u64 {
        let before = self.challenges.len();
        let mut left = limit;
        self.challenges.retain(|_, expires_at| {
            let goes = *expires_at < now && left > 0;
            left -= usize::from(goes);
            !goes
        });
        (before - self.challenges.len()) as u64
    }

    fn sweep_reservations(&mut self, before: u64, limit: usize) -> u64 {
        let mut gone = 0;
        for log in self.logs.values_mut() {
            log.members.retain(|_, membership| match membership {
                Membership::Joining { reserved_at } if *reserved_at < before && gone < limit => {
                    gone += 1;
                    false
                }
                Membership::Joining { .. } | Membership::Active { .. } => true,
            });
        }
        gone as u64
    }

    fn sweep_idle_devices(&mut self, before_day: u64, limit: usize) -> u64 {
        let mut gone = 0;
        let push_tokens = &mut self.push_tokens;
        self.devices.retain(|device, seen| {
            let goes = *seen < before_day && gone < limit;
            gone += usize::from(goes);
            if goes {
                push_tokens.remove(device);
            }
            !goes
        });
        gone as u64
    }

    /// Looks at the next `limit` devices, round and round, for those on which nothing hangs.
    fn sweep_empty_devices(&mut self, limit: usize) -> u64 {
        let after = self.swept.map_or(Bound::Unbounded, Bound::Excluded);
        let next: Vec<DeviceKey> = self
            .devices
            .range((after, Bound::Unbounded))
            .take(limit)
            .map(|(device, _)| *device)
            .collect();
        self.swept = if next.len() < limit { None } else { next.last().copied() };
        let mut gone = 0;
        for device in next {
            let rung = self.push_tokens.contains_key(&device);
            if !rung && !self.logs.values().any(|log| log.members.contains_key(&device)) {
                self.devices.remove(&device);
                gone += 1;
            }
        }
        gone
    }

    pub(super) fn load(&self, key: LogKey) -> Option<LogRecord> {
        self.logs.get(&key).map(|log| log.record(key))
    }

    pub(super) fn find_log(&self, id: LogId) -> Option<LogBrief> {
        let key = self.ids.get(&id)?;
        self.logs.get(key).map(|log| log.brief(*key))
    }

    pub(super) fn revoked_at(&self, id: LogId, device: DeviceKey) -> Option<u64> {
        self.logs.get(self.ids.get(&id)?)?.revoked.get(&device).copied()
    }

    pub(super) fn memberships(&self, device: DeviceKey) -> Vec<LogBrief> {
        self.logs
            .iter()
            .filter(|(_, log)| log.member(device).is_some())
            .map(|(key, log)| log.brief(*key))
            .collect()
    }

    pub(super) fn totals_groups(&self, device: DeviceKey) -> Vec<GroupRecord> {
        self.logs
            .values()
            .filter(|log| log.id.is_totals() && log.member(device).is_some())
            .map(|log| GroupRecord {
                id: log.id,
                created_at: log.created_at,
                members: log.member_records().into_iter().map(|record| record.member).collect(),
            })
            .collect()
    }

    pub(super) fn subscription(
        &self,
        key: LogKey,
        device: DeviceKey,
    ) -> Option<SubscriptionRecord> {
        let log = self.logs.get(&key)?;
        let record = log.member(device)?;
        Some(SubscriptionRecord {
            head: log.head,
            floor: log.floor,
            joined_seq: record.member.joined_seq,
            acked: record.acked.clone(),
        })
    }

    pub(super) fn members(&self, key: LogKey) -> Option<(Position, Vec<Member>)> {
        let log = self.logs.get(&key)?;
        Some((log.head, log.member_records().into_iter().map(|record| record.member).collect()))
    }

    pub(super) fn chain_at(&self, key: LogKey, seq: u64) -> Option<Digest> {
        self.logs.get(&key)?.entries.get(&seq).map(|entry| entry.new.chain)
    }

    pub(super) fn find_entry(
        &self,
        key: LogKey,
        sender: DeviceKey,
        count: u64,
    ) -> Option<(u64, Digest)> {
        let log = self.logs.get(&key)?;
        let slot = log.senders.values().find(|record| record.device == sender)?.slot;
        let seq = log.counts.get(&(slot, count))?;
        log.entries.get(seq).map(|entry| (*seq, entry_digest(&entry.new.header)))
    }

    pub(super) fn read_page(&self, request: &PageRequest) -> Vec<StoredEntry> {
        self.logs.get(&request.key).map_or_else(Vec::new, |log| log.page(request))
    }

    pub(super) fn read_pending(&self, request: &PendingRequest) -> Option<Vec<StoredEntry>> {
        let log = self.logs.get(&request.key)?;
        let member = log.member(request.reader)?;
        Some(log.pending(request, &member))
    }

    pub(super) fn control_at(&self, key: LogKey, body: &[u8]) -> Option<u64> {
        let entries = self.logs.get(&key)?.entries.values().rev();
        let mut controls = entries.filter(|entry| entry.new.control);
        controls.find(|entry| entry.new.body.as_ref() == body).map(|entry| entry.new.at)
    }

    pub(super) fn read_controls(&self, request: &ControlsRequest) -> Controls {
        let mut page = Controls { entries: Vec::new(), complete: request.entries_max > 0 };
        let Some(log) = self.logs.get(&request.key).filter(|_| request.after < request.up_to)
        else {
            return page;
        };
        let range = (Bound::Excluded(request.after), Bound::Included(request.up_to));
        let mut bytes = 0;
        for (_, entry) in log.entries.range(range).filter(|(_, entry)| entry.new.control) {
            bytes += entry.new.body.len() + entry.new.recipients.len() * DeviceKey::LEN;
            let full = bytes > request.bytes_max && !page.entries.is_empty();
            if full || page.entries.len() == request.entries_max {
                page.complete = false;
                break;
            }
            page.entries.push(entry.stored(true));
        }
        page.complete &= page.entries.len() < request.entries_max;
        page
    }

    pub(super) fn due_for_expiry(
        &self,
        after: LogKey,
        before: u64,
        limit: usize,
    ) -> (Vec<DueLog>, Option<LogKey>) {
        let groups: Vec<(LogKey, &Log)> = self
            .logs
            .range((Bound::Excluded(after), Bound::Unbounded))
            .filter(|(_, log)| log.log_type == LogType::Group)
            .take(limit)
            .map(|(key, log)| (*key, log))
            .collect();
        let last = groups.last().map(|(key, _)| *key).filter(|_| groups.len() == limit);
        let due = groups
            .into_iter()
            .filter_map(|(key, log)| Some(DueLog { key, up_to: log.old_up_to(before)? }))
            .collect();
        (due, last)
    }

    pub(super) fn idle_groups(&self, before: u64, limit: usize) -> Vec<LogKey> {
        self.logs
            .iter()
            .filter(|(_, log)| log.log_type == LogType::Group && log.last_entry_at < before)
            .map(|(key, _)| *key)
            .take(limit)
            .collect()
    }

    pub(super) fn stats(&self) -> StoreStats {
        let mut stats = StoreStats::default();
        for log in self.logs.values() {
            match log.log_type {
                LogType::Group => {
                    stats.groups += 1;
                    stats.undelivered += log.live().len() as u64;
                }
                LogType::Vault => stats.vaults += 1,
            }
            stats.memberships += log.member_records().len() as u64;
            stats.entries += log.entries.len() as u64;
        }
        stats
    }
}

/// The founder as a sender; the relay's own first entries have none.
fn first_sender(new: &NewLog) -> Option<SenderRecord> {
    (new.entry.sender_slot > 0).then_some(SenderRecord {
        slot: new.entry.sender_slot,
        device: new.founder,
        last_count: new.entry.count,
        last_digest: new.digest,
    })
}

/// What no log could hold, whatever it holds now.
fn check(part: &LogCommit) -> Result<(), StoreError> {
    let mut next = part.expected_seq;
    let mut counts = BTreeSet::new();
    for entry in &part.entries {
        next += 1;
        let fits = entry.seq == next
            && entry.seq <= SEQ_MAX
            && entry.count <= SEQ_MAX
            && i64::try_from(entry.at).is_ok()
            && (entry.count == 0 || counts.insert((entry.sender_slot, entry.count)));
        if !fits {
            return Err(StoreError::Refused);
        }
    }
    let floor_fits = part.floor.is_none_or(|floor| floor.seq <= next);
    let mut devices = BTreeSet::new();
    let senders_fit = part
        .senders
        .iter()
        .all(|record| record.last_count <= SEQ_MAX && devices.insert(record.device));
    if floor_fits && senders_fit { Ok(()) } else { Err(StoreError::Refused) }
}
