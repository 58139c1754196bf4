//! What a log decides: plain functions over what it knows, without a wait.
//!
//! Everything here changes memory ahead of the database. That is sound because nothing of it is
//! shown to anybody before its commit, not even by a refusal that rests on it, and because the whole of
//! it is dropped and loaded anew when the store says that it was wrong.

mod checks;
mod totals;
mod vault;

use std::collections::{BTreeMap, HashMap};

use sealwire_protocol::ack::AckWire;
use sealwire_protocol::digest::chain_next;
use sealwire_protocol::frame::{Member, MembershipState};
use sealwire_protocol::{
    AckSet, Control, DeviceKey, Digest, ErrorCode, Failure, Head, Kind, LogId, LogType,
};

use super::bells::Bell;
use super::policy::Policy;
use super::queue::{NewBody, Reader};
use crate::entry::{CheckedEntry, Content, EntryFrame, EntryParts, Published, rings};
use crate::limits::VaultLimits;
use crate::metrics::{Outcome, Outcomes};
use crate::pace::key_units;
use crate::ports::{
    DUE_ENTRIES_MAX, LogCommit, LogKey, LogPlace, LogRecord, MemberChange, NewEntry, Position,
    SenderRecord,
};
use crate::totals::payload::{Payload, PayloadId};
pub(crate) use totals::{NewPayload, relay_header};

/// A member, and what it has acked.
#[derive(Clone)]
pub(super) struct MemberState {
    pub(super) member: Member,
    pub(super) acked: AckSet,
    /// Whether `acked` is newer than what the store has.
    dirty: bool,
    /// What was said about its doorbell.
    pub(super) bell: Bell,
}

/// What a log knows.
pub(super) struct State {
    pub(super) key: LogKey,
    pub(super) id: LogId,
    pub(super) log_type: LogType,
    incarnation: u64,
    /// The head that entries in flight will make; the committed one is the actor's.
    pub(super) head: Position,
    version: u64,
    floor: Position,
    join_key: Option<DeviceKey>,
    guard_seq: u64,
    last_entry_at: u64,
    pub(super) members: BTreeMap<DeviceKey, MemberState>,
    revoked: HashMap<DeviceKey, u64>,
    senders: HashMap<DeviceKey, SenderRecord>,
    next_slot: i32,
    pub(super) policy: Policy,
    /// `totals` groups: who has just left, and when: they may still say goodbye.
    departed: HashMap<DeviceKey, u64>,
    /// Outcomes that the next commit makes true.
    outcomes: Outcomes,
}

/// A membership that a commit changes, for the sessions of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) device: DeviceKey,
    pub(super) state: MembershipState,
    pub(super) seq: u64,
}

/// What was decided of a request: to be committed, and after that to be told.
pub(super) struct Decided {
    pub(super) commit: LogCommit,
    pub(super) published: Vec<std::sync::Arc<Published>>,
    pub(super) changes: Vec<Change>,
    pub(super) outcomes: Outcomes,
    /// The head that the commit makes.
    pub(super) head: Position,
    /// Sender, first and last count, and last digest of the entries, to recognise a resend.
    pub(super) sent: Option<Sent>,
    pub(super) ended: bool,
}

/// Which entries a request in flight holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) sender: DeviceKey,
    pub(super) first_count: u64,
    pub(super) last_count: u64,
    pub(super) last_digest: Digest,
    pub(super) first_seq: u64,
}

/// Why a request is not appended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotAppended {
    /// It is refused.
    Refused(Failure),
    /// Its counts were used before: the store knows by which entries, or an earlier request in
    /// flight does.
    Known,
}

impl From<Failure> for NotAppended {
    fn from(failure: Failure) -> Self {
        Self::Refused(failure)
    }
}

fn refused<T>(code: ErrorCode) -> Result<T, NotAppended> {
    Err(NotAppended::Refused(Failure::new(code)))
}

impl State {
    pub(super) fn new(record: LogRecord, incarnation: u64, limits: VaultLimits) -> Self {
        let mut state = Self {
            key: record.key,
            id: record.id,
            log_type: record.log_type,
            incarnation,
            head: record.head,
            version: record.version,
            floor: record.floor,
            join_key: record.join_key,
            guard_seq: record.guard_seq,
            last_entry_at: record.last_entry_at,
            members: record
                .members
                .into_iter()
                .map(|record| {
                    let (member, acked) = (record.member, record.acked);
                    let state = MemberState { member, acked, dirty: false, bell: Bell::Unknown };
                    (record.member.device, state)
                })
                .collect(),
            revoked: record.revoked.into_iter().collect(),
            next_slot: record.senders.iter().map(|sender| sender.slot).max().unwrap_or(0) + 1,
            senders: record.senders.iter().map(|sender| (sender.device, *sender)).collect(),
            policy: Policy::of(record.log_type, record.vault, limits),
            departed: HashMap::new(),
            outcomes: Outcomes::default(),
        };
        let slots: HashMap<i32, DeviceKey> =
            record.senders.iter().map(|sender| (sender.slot, sender.device)).collect();
        for live in record.live {
            let body = NewBody {
                seq: live.seq,
                sender: slots.get(&live.sender_slot).copied().unwrap_or(DeviceKey::ZERO),
                recipients: live.recipients.into(),
                bytes: live.bytes as usize,
                at: live.at,
                // Its kind is not loaded; if it does not ring, somebody is rung once too often.
                rings: true,
            };
            let readers = readers(&state.members);
            if let Some(queue) = state.policy.queue_mut() {
                queue.add(body, readers);
            }
        }
        state
    }

    /// A position as devices know it.
    pub(super) fn head_of(&self, position: Position) -> Head {
        Head { incarnation: self.incarnation, seq: position.seq, chain: position.chain }
    }

    /// Where sessions find the log.
    pub(super) fn place(&self) -> LogPlace {
        LogPlace { id: self.id, key: self.key, log_type: self.log_type }
    }

    /// The newest count and digest of a sender, entries in flight among them.
    pub(super) fn last_of(&self, sender: DeviceKey) -> (u64, Digest) {
        self.senders
            .get(&sender)
            .map_or((0, Digest::ZERO), |record| (record.last_count, record.last_digest))
    }

    /// What the keys among these entries use of their author's pace, where keys stay for as long as
    /// the log.
    pub(super) fn key_units(&self, entries: &[CheckedEntry]) -> u32 {
        if !self.policy.keeps(Kind::Key) {
            return 0;
        }
        let keys = entries.iter().filter(|entry| entry.header.kind == Kind::Key);
        keys.map(|entry| key_units(entry.body.len())).sum()
    }

    /// Decides about a request: all of its entries or none. `pace` is what is said to entries that are
    /// not known yet.
    pub(super) fn append(
        &mut self,
        sender: DeviceKey,
        entries: Vec<CheckedEntry>,
        pace: Result<(), Failure>,
        now: u64,
    ) -> Result<Decided, NotAppended> {
        if let Some(seq) = self.revoked.get(&sender) {
            return Err(Failure::revoked(*seq).into());
        }
        let joins = matches!(
            entries.first().map(|entry| &entry.content),
            Some(Content::Control(Control::Join { .. }))
        );
        let member = self.members.contains_key(&sender);
        if !joins && !member {
            return refused(ErrorCode::NoSuchLog);
        }
        match self.check_counts(sender, &entries) {
            // Whoever has left learns nothing more of the log, not even by sending an old entry.
            Err(NotAppended::Known) if !member => return refused(ErrorCode::NoSuchLog),
            checked => checked?,
        }
        self.check_contents(sender, &entries, pace)?;
        Ok(self.apply(sender, entries, now))
    }

    /// Gives the entries their places. Nothing can be refused from here on.
    fn apply(&mut self, sender: DeviceKey, entries: Vec<CheckedEntry>, now: u64) -> Decided {
        let mut commit = LogCommit::new(self.key, self.head.seq, self.version);
        let mut published = Vec::with_capacity(entries.len());
        let mut changes = Vec::new();
        let mut record = self.sender(sender);
        let mut sent = None;
        // The clock may step back; a log's entries do not.
        let at = now.max(self.last_entry_at);
        self.last_entry_at = at;
        for entry in entries {
            let seq = self.head.seq + 1;
            let chain = chain_next(self.head.chain, seq, entry.digest);
            self.head = Position { seq, chain };
            record.last_count = entry.header.count;
            record.last_digest = entry.digest;
            sent = Some(Sent {
                sender,
                first_count: sent.map_or(entry.header.count, |sent: Sent| sent.first_count),
                last_count: entry.header.count,
                last_digest: entry.digest,
                first_seq: sent.map_or(seq, |sent| sent.first_seq),
            });
            match &entry.content {
                Content::Control(control) => {
                    self.apply_control(sender, seq, at, control, &mut commit, &mut changes);
                }
                Content::Rotation => {
                    self.guard_seq = seq;
                    commit.guard_seq = Some(seq);
                }
                Content::Plain => {}
            }
            let shown = self.publish(seq, at, &entry);
            let rings = shown.rings.is_some();
            published.push(std::sync::Arc::new(shown));
            let body = NewBody {
                seq,
                sender,
                recipients: entry.recipients.clone().into(),
                bytes: entry.body.len(),
                at,
                rings,
            };
            self.policy.add(&entry.content, body, readers(&self.members));
            commit.entries.push(NewEntry {
                seq,
                at,
                header: entry.bytes,
                body: entry.body,
                control: self.policy.keeps(entry.header.kind),
                signature: entry.signature,
                recipients: entry.recipients,
                totals_kind: entry.totals_kind,
                chain,
                sender_slot: record.slot,
                count: entry.header.count,
            });
        }
        self.senders.insert(sender, record);
        commit.senders.push(record);
        let ended = self.members.is_empty();
        if ended {
            // Nobody comes in while it goes.
            self.join_key = None;
            commit.join_key = Some(None);
        }
        self.take_acks(&mut commit);
        commit.vault = self.policy.take_change();
        Decided {
            commit,
            published,
            changes,
            outcomes: std::mem::take(&mut self.outcomes),
            head: self.head,
            sent,
            ended,
        }
    }

    fn apply_control(
        &mut self,
        sender: DeviceKey,
        seq: u64,
        at: u64,
        control: &Control,
        commit: &mut LogCommit,
        changes: &mut Vec<Change>,
    ) {
        match control {
            Control::Join { .. } => self.admit(sender, seq, at, commit, changes),
            Control::Enrol { device, .. } => self.admit(*device, seq, at, commit, changes),
            Control::Leave => {
                self.remove_member(sender);
                self.guard_seq = seq;
                commit.members.push(MemberChange::Left { device: sender });
                changes.push(Change { device: sender, state: MembershipState::Left, seq });
            }
            Control::Revoke { device, join_key } => {
                self.remove_member(*device);
                self.revoked.insert(*device, seq);
                self.join_key = *join_key;
                self.guard_seq = seq;
                commit.join_key = Some(*join_key);
                commit.members.push(MemberChange::Revoked { device: *device, seq });
                changes.push(Change { device: *device, state: MembershipState::Revoked, seq });
            }
            Control::JoinKey { join_key } => {
                self.join_key = Some(*join_key);
                self.guard_seq = seq;
                commit.join_key = Some(Some(*join_key));
            }
            Control::Snapshot { .. } | Control::SnapshotOpened { .. } => {
                self.apply_snapshot(sender, seq, at, control);
            }
            Control::Found { .. }
            | Control::TotalsFound { .. }
            | Control::TotalsJoin { .. }
            | Control::TotalsLeave { .. } => {
                unreachable!("check_control refuses it in a native log")
            }
        }
        commit.guard_seq = (self.guard_seq == seq).then_some(seq).or(commit.guard_seq);
    }

    fn admit(
        &mut self,
        device: DeviceKey,
        seq: u64,
        at: u64,
        commit: &mut LogCommit,
        changes: &mut Vec<Change>,
    ) {
        let member = Member { device, joined_seq: seq, joined_at: at };
        let acked = AckSet::new();
        let state = MemberState { member, acked, dirty: false, bell: Bell::Silent };
        self.members.insert(device, state);
        commit.members.push(MemberChange::Joined { device, seq, at });
        changes.push(Change { device, state: MembershipState::Joined, seq });
    }

    fn remove_member(&mut self, device: DeviceKey) {
        if let Some(member) = self.members.remove(&device) {
            let reader = reader(&member);
            self.policy.left(&reader, &mut self.outcomes);
        }
    }

    /// The sender's record, or a new one with the next slot.
    fn sender(&mut self, device: DeviceKey) -> SenderRecord {
        if let Some(record) = self.senders.get(&device) {
            return *record;
        }
        let slot = self.next_slot;
        self.next_slot += 1;
        SenderRecord { slot, device, last_count: 0, last_digest: Digest::ZERO }
    }

    /// A member permits bodies to be deleted. `committed` is the newest committed seq: an ack past
    /// it frees nothing.
    pub(super) fn ack(
        &mut self,
        device: DeviceKey,
        incarnation: u64,
        acked: &AckWire,
        committed: u64,
        outcome: Outcome,
    ) {
        // Seqs of another incarnation name other entries, and those past the head none.
        if incarnation != self.incarnation || acked.highest() > committed {
            return;
        }
        let Some(member) = self.members.get_mut(&device) else {
            return;
        };
        let new = member.acked.merge(acked);
        if !new.is_empty() {
            member.dirty = self.policy.stores_acks();
            self.policy.acked(&reader(member), &new, outcome, &mut self.outcomes);
        }
    }

    /// Since which entry a device is a member, if it is one.
    pub(super) fn member_since(&self, device: DeviceKey) -> Option<u64> {
        self.members.get(&device).map(|member| member.member.joined_seq)
    }

    /// How a device that is no member has gone, and where that was known.
    pub(super) fn gone(&self, device: DeviceKey) -> (MembershipState, u64) {
        match self.revoked.get(&device) {
            Some(seq) => (MembershipState::Revoked, *seq),
            None => (MembershipState::Left, self.head.seq),
        }
    }

    /// The members, each since which entry.
    pub(super) fn members(&self) -> impl Iterator<Item = (DeviceKey, u64)> {
        self.members.values().map(|member| (member.member.device, member.member.joined_seq))
    }

    /// Whether nobody is a member any more: the log only waits to be deleted.
    pub(super) fn is_deserted(&self) -> bool {
        self.members.is_empty()
    }

    /// How many entries there are above the floor.
    pub(super) fn above_floor(&self) -> u64 {
        self.head.seq - self.floor.seq
    }

    /// Whether acks or deletions wait to be flushed.
    pub(super) fn needs_flush(&self) -> bool {
        self.policy.has_freed() || self.members.values().any(|member| member.dirty)
    }

    /// A commit of what waits: acks, and the bodies that may go.
    pub(super) fn flush(&mut self) -> Option<Decided> {
        if !self.needs_flush() {
            return None;
        }
        let mut commit = LogCommit::new(self.key, self.head.seq, self.version);
        commit.freed = self.policy.take_freed();
        self.take_acks(&mut commit);
        Some(self.decided(commit))
    }

    /// Retention: ends the copies of entries up to `up_to` that were ordered before `before`, and
    /// raises the floor over what is finished.
    pub(super) fn expire(&mut self, up_to: Position, before: u64) -> Option<Decided> {
        if up_to.seq > self.head.seq || up_to.seq <= self.floor.seq {
            return None;
        }
        let queue = self.policy.queue_mut()?;
        queue.expire(up_to.seq, before, Outcome::Expired, &mut self.outcomes);
        // A body that is younger, below an older one, holds the floor until its time has come.
        if queue.first().is_none_or(|first| first > up_to.seq) {
            self.floor = up_to;
        }
        let mut commit = LogCommit::new(self.key, self.head.seq, self.version);
        commit.freed = self.policy.take_freed();
        commit.floor = (self.floor == up_to).then_some(up_to);
        self.take_acks(&mut commit);
        Some(self.decided(commit))
    }

    /// Retention: ends the group if its newest entry was ordered before `before`.
    pub(super) fn end_if_idle(&mut self, before: u64) -> Option<Decided> {
        // Of a longer one the entries expire first: a log is deleted in one transaction.
        let short = self.above_floor() <= DUE_ENTRIES_MAX;
        let idle = self.policy.ends_when_idle() && self.last_entry_at < before;
        (idle && short).then(|| self.end())
    }

    /// Ends the log: deletes everything that hangs on it.
    pub(super) fn end(&mut self) -> Decided {
        self.policy.ended(&mut self.outcomes);
        let changes = self
            .members
            .keys()
            .map(|device| Change {
                device: *device,
                state: MembershipState::Left,
                seq: self.head.seq,
            })
            .collect();
        self.members.clear();
        let mut commit = LogCommit::new(self.key, self.head.seq, self.version);
        commit.ended = true;
        Decided { changes, ended: true, ..self.decided(commit) }
    }

    fn decided(&mut self, commit: LogCommit) -> Decided {
        Decided {
            commit,
            published: Vec::new(),
            changes: Vec::new(),
            outcomes: std::mem::take(&mut self.outcomes),
            head: self.head,
            sent: None,
            ended: false,
        }
    }

    fn publish(&self, seq: u64, at: u64, entry: &CheckedEntry) -> Published {
        let addressed = self.policy.addressed(entry);
        let parts = EntryParts {
            header: entry.bytes,
            body: &entry.body,
            signature: entry.signature,
            recipients: &entry.recipients,
            totals_kind: entry.totals_kind.as_deref(),
        };
        let (frame, bytes) = (EntryFrame::new(self.id, seq, at, &parts), parts.bytes());
        let sender = entry.header.sender;
        let payload = self.id.is_totals().then(|| {
            let id = PayloadId::new(self.key, seq, self.incarnation);
            let (body, kind) = (entry.body.clone(), entry.totals_kind.clone());
            std::sync::Arc::new(Payload::new(id, self.id, sender, body, kind, at))
        });
        let kind = entry.header.kind;
        let rings = rings(self.log_type, kind, entry.totals_kind.as_deref());
        Published { seq, digest: entry.digest, sender, addressed, frame, bytes, rings, payload }
    }

    fn take_acks(&mut self, commit: &mut LogCommit) {
        for (device, member) in &mut self.members {
            if std::mem::take(&mut member.dirty) {
                commit.acks.push((*device, member.acked.clone()));
            }
        }
    }
}

fn readers(members: &BTreeMap<DeviceKey, MemberState>) -> impl Iterator<Item = Reader<'_>> {
    members.values().map(reader)
}

pub(super) fn reader(member: &MemberState) -> Reader<'_> {
    Reader {
        device: member.member.device,
        joined_seq: member.member.joined_seq,
        acked: &member.acked,
    }
}
