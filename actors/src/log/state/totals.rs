//! What a `totals` group decides about single requests: joining, leaving, payloads, acks.
//!
//! The app neither numbers nor signs, so the relay writes the headers: its own control entries have
//! no sender, a payload has the key that was proved and no count. Everything else is as in any group:
//! one order, one queue, one commit.

use sealwire_protocol::digest::{chain_next, entry_digest, sha256};
use sealwire_protocol::frame::{Member, MembershipState};
use sealwire_protocol::limits::TOTALS_MEMBERS_MAX;
use sealwire_protocol::{
    AckSet, Audience, Body, Control, DeviceKey, Digest, ErrorCode, Failure, Head, Header, Kind,
    LogId,
};

use super::{Change, Decided, MemberState, NotAppended, State, reader, readers, refused};
use crate::entry::{Addressed, EntryFrame, EntryParts, Published, rings};
use crate::limits::{ACK_RANGES_STORED_MAX, FAREWELL, QUOTA_RETRY_MS};
use crate::log::bells::Bell;
use crate::log::queue::{NewBody, cost};
use crate::metrics::Outcome;
use crate::ports::{LogCommit, MemberChange, NewEntry, Position};
use crate::totals::kinds::rule_of;
use crate::totals::payload::{Payload, PayloadId};

/// A payload of the app, as its device gave it.
pub(crate) struct NewPayload {
    pub(crate) body: Body,
    /// SHA-256 of the body.
    pub(crate) hash: Digest,
    pub(crate) kind: String,
    /// The named recipients; none for all members.
    pub(crate) named: Option<Vec<DeviceKey>>,
    /// Whether the store knows that its sender has left so recently that it may say goodbye.
    pub(crate) farewell: bool,
}

/// What is to be written into the log.
struct Line {
    header: Header,
    body: Body,
    control: bool,
    totals_kind: Option<String>,
    recipients: Vec<DeviceKey>,
    slot: i32,
    at: u64,
}

/// The header of an entry that the relay writes itself.
pub(crate) fn relay_header(log: LogId, body: &[u8]) -> Header {
    Header {
        log,
        sender: DeviceKey::ZERO,
        count: 0,
        prev: Digest::ZERO,
        kind: Kind::Control,
        audience: Audience::All,
        seen: Head::NONE,
        body: sha256(body),
    }
}

impl State {
    /// The member of this key, if it is one.
    pub(crate) fn member(&self, device: DeviceKey) -> Option<Member> {
        self.members.get(&device).map(|state| state.member)
    }

    /// A device becomes a member; it must not be one.
    pub(crate) fn join_totals(
        &mut self,
        device: DeviceKey,
        now: u64,
    ) -> Result<Decided, NotAppended> {
        if self.is_deserted() {
            // It is going.
            return refused(ErrorCode::NoSuchLog);
        }
        if self.members.len() >= TOTALS_MEMBERS_MAX {
            return Err(Failure::limit(ErrorCode::GroupFull, TOTALS_MEMBERS_MAX as u64).into());
        }
        // Later than everything before it: who joins again has a time of joining that is new.
        let at = now.max(self.last_entry_at + 1);
        let mut commit = LogCommit::new(self.key, self.head.seq, self.version);
        let line = self.relay_line(&Control::TotalsJoin { device, at }, at);
        let published = self.put(&mut commit, line);
        let seq = self.head.seq;
        let member = Member { device, joined_seq: seq, joined_at: at };
        let acked = AckSet::new();
        let state = MemberState { member, acked, dirty: false, bell: Bell::Silent };
        self.members.insert(device, state);
        self.departed.remove(&device);
        commit.members.push(MemberChange::Joined { device, seq, at });
        let change = Change { device, state: MembershipState::Joined, seq };
        Ok(self.totals_decided(commit, published, vec![change]))
    }

    /// A member leaves.
    pub(crate) fn leave_totals(
        &mut self,
        device: DeviceKey,
        now: u64,
    ) -> Result<Decided, NotAppended> {
        if !self.members.contains_key(&device) {
            return refused(ErrorCode::NoSuchLog);
        }
        let at = now.max(self.last_entry_at);
        let mut commit = LogCommit::new(self.key, self.head.seq, self.version);
        let line = self.relay_line(&Control::TotalsLeave { device }, at);
        let published = self.put(&mut commit, line);
        self.remove_member(device);
        self.departed.retain(|_, left_at| is_recent(*left_at, now));
        self.departed.insert(device, now);
        commit.members.push(MemberChange::Left { device });
        let seq = self.head.seq;
        let change = Change { device, state: MembershipState::Left, seq };
        Ok(self.totals_decided(commit, published, vec![change]))
    }

    /// A payload is ordered. Gives nothing if it names nobody who is there to receive it.
    pub(crate) fn append_totals(
        &mut self,
        sender: DeviceKey,
        payload: NewPayload,
        now: u64,
    ) -> Result<Option<Decided>, NotAppended> {
        let rule = rule_of(&payload.kind);
        let member = self.members.contains_key(&sender);
        let left = self.departed.get(&sender).is_some_and(|left_at| is_recent(*left_at, now));
        if !member && !(rule.farewell && (left || payload.farewell)) {
            return refused(ErrorCode::NoSuchLog);
        }
        let recipients = match payload.named {
            None => Vec::new(),
            Some(named) => {
                let recipients = self.receivers(sender, named);
                if recipients.is_empty() {
                    return Ok(None);
                }
                recipients
            }
        };
        if !self.has_room(cost(payload.body.len(), recipients.len()), rule.sent_once) {
            return Err(Failure::after_ms(ErrorCode::Quota, QUOTA_RETRY_MS).into());
        }
        let record = self.sender(sender);
        let header = Header {
            kind: Kind::Totals,
            sender,
            audience: Audience::of(&recipients),
            body: payload.hash,
            ..relay_header(self.id, &[])
        };
        let mut commit = LogCommit::new(self.key, self.head.seq, self.version);
        let line = Line {
            header,
            body: payload.body,
            control: false,
            totals_kind: Some(payload.kind),
            recipients,
            slot: record.slot,
            at: now.max(self.last_entry_at),
        };
        let published = self.put(&mut commit, line);
        // A new sender's slot; a count is neither used nor moved.
        self.senders.insert(sender, record);
        commit.senders.push(record);
        Ok(Some(self.totals_decided(commit, published, Vec::new())))
    }

    /// Those of the named devices that are there to receive it, sorted and distinct.
    fn receivers(&self, sender: DeviceKey, mut named: Vec<DeviceKey>) -> Vec<DeviceKey> {
        named.retain(|device| *device != sender && self.members.contains_key(device));
        named.sort_unstable();
        named.dedup();
        named
    }

    /// A member permits these entries' bodies to be deleted. Gives how many of them there are. An
    /// entry that is under way may be among them: its reader can know of the commit before this log
    /// does, and the ack is answered after it.
    pub(crate) fn ack_seqs(&mut self, device: DeviceKey, seqs: &[u64]) -> Result<u64, Failure> {
        let head = self.head.seq;
        let Some(member) = self.members.get_mut(&device) else {
            return Err(Failure::new(ErrorCode::NoSuchLog));
        };
        let joined_seq = member.member.joined_seq;
        let before = member.acked.clone();
        // Nothing up to its joining was ever for it.
        member.acked.insert_within(1, joined_seq, ACK_RANGES_STORED_MAX);
        let mut new = Vec::new();
        let mut no_room = false;
        for seq in seqs.iter().copied().filter(|seq| (joined_seq + 1..=head).contains(seq)) {
            if !member.acked.contains(seq) {
                let taken = member.acked.insert_within(seq, seq, ACK_RANGES_STORED_MAX);
                no_room |= taken.is_empty();
                new.extend(taken);
            }
        }
        self.policy.acked(&reader(member), &new, Outcome::Fetched, &mut self.outcomes);
        self.close_gaps(device);
        if let Some(member) = self.members.get_mut(&device) {
            member.dirty |= member.acked != before;
        }
        if no_room {
            return Err(crate::reply::unavailable());
        }
        Ok(seqs.iter().filter(|seq| (1..=head).contains(*seq)).count() as u64)
    }

    /// The app acks what it was given and nothing else. What lies between and does not wait for it
    /// (its own, what named others, control entries, what has expired) must not hold up its floor.
    fn close_gaps(&mut self, device: DeviceKey) {
        let (Some(member), Some(queue)) = (self.members.get_mut(&device), self.policy.queue())
        else {
            return;
        };
        for (first, last) in member.acked.gaps_within(1, member.acked.highest()) {
            let mut next = first;
            for waiting in queue.waiting_for(device, first, last) {
                if waiting > next {
                    member.acked.insert_within(next, waiting - 1, usize::MAX);
                }
                next = waiting + 1;
            }
            if next <= last {
                member.acked.insert_within(next, last, usize::MAX);
            }
        }
    }

    /// A commit of the acks that wait; the bodies that may go are deleted later, in larger pieces.
    pub(crate) fn flush_acks(&mut self) -> Option<Decided> {
        if !self.members.values().any(|member| member.dirty) {
            return None;
        }
        let mut commit = LogCommit::new(self.key, self.head.seq, self.version);
        self.take_acks(&mut commit);
        Some(self.decided(commit))
    }

    fn relay_line(&self, control: &Control, at: u64) -> Line {
        let body = control.encode();
        Line {
            header: relay_header(self.id, &body),
            body: Body::copy_from(&body),
            control: true,
            totals_kind: None,
            recipients: Vec::new(),
            slot: 0,
            at,
        }
    }

    /// Gives an entry its place.
    fn put(&mut self, commit: &mut LogCommit, line: Line) -> std::sync::Arc<Published> {
        let header = line.header.encode();
        let digest = entry_digest(&header);
        let seq = self.head.seq + 1;
        let chain = chain_next(self.head.chain, seq, digest);
        self.head = Position { seq, chain };
        self.last_entry_at = line.at;
        let sender = line.header.sender;
        let addressed = if line.control {
            Addressed::Everybody
        } else if line.recipients.is_empty() {
            Addressed::All
        } else {
            Addressed::Named(line.recipients.clone().into())
        };
        let parts = EntryParts {
            header,
            body: &line.body,
            signature: None,
            recipients: &line.recipients,
            totals_kind: line.totals_kind.as_deref(),
        };
        let (frame, bytes) = (EntryFrame::new(self.id, seq, line.at, &parts), parts.bytes());
        let payload = (!line.control).then(|| {
            let id = PayloadId::new(self.key, seq, self.incarnation);
            let (body, kind) = (line.body.clone(), line.totals_kind.clone());
            std::sync::Arc::new(Payload::new(id, self.id, sender, body, kind, line.at))
        });
        let rings = rings(self.log_type, line.header.kind, line.totals_kind.as_deref());
        if !line.control {
            let body = NewBody {
                seq,
                sender,
                recipients: line.recipients.clone().into(),
                bytes: line.body.len(),
                at: line.at,
                rings: rings.is_some(),
            };
            if let Some(queue) = self.policy.queue_mut() {
                queue.add(body, readers(&self.members));
            }
        }
        commit.entries.push(NewEntry {
            seq,
            at: line.at,
            header,
            body: line.body,
            control: line.control,
            signature: None,
            recipients: line.recipients,
            totals_kind: line.totals_kind,
            chain,
            sender_slot: line.slot,
            count: 0,
        });
        let what = Published { seq, digest, sender, addressed, frame, bytes, rings, payload };
        std::sync::Arc::new(what)
    }

    fn totals_decided(
        &mut self,
        mut commit: LogCommit,
        published: std::sync::Arc<Published>,
        changes: Vec<Change>,
    ) -> Decided {
        self.take_acks(&mut commit);
        let ended = self.members.is_empty();
        Decided { published: vec![published], changes, ended, ..self.decided(commit) }
    }
}

fn is_recent(left_at: u64, now: u64) -> bool {
    now < left_at.saturating_add(FAREWELL.as_millis() as u64)
}
