//! One log of the relay: who may append what, and what each reader gets.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use sealwire_protocol::digest::{entry_digest, native_log_id, sha256};
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::frame::{Entry, EntryIn, Floor, Stub, StubReason, Stubs};
use sealwire_protocol::{
    AckSet, Audience, Body, Control, DeviceKey, Digest, Failure, Head, Header, Kind, LogId,
    RelayFrame, signing,
};

use super::{State, chain_of};

/// An entry as the relay keeps it.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) seq: u64,
    pub(crate) header: Header,
    pub(crate) entry: EntryIn,
    pub(crate) digest: Digest,
    /// Why there is no body any more.
    pub(crate) gone: Option<StubReason>,
}

pub(crate) struct FakeLog {
    pub(super) id: LogId,
    pub(crate) entries: Vec<Stored>,
    /// Members and the seq at which they became ones.
    pub(super) members: BTreeMap<DeviceKey, u64>,
    pub(super) revoked: BTreeSet<DeviceKey>,
    join_key: Option<DeviceKey>,
    counts: HashMap<DeviceKey, (u64, Digest)>,
    guard: u64,
    pub(super) acked: HashMap<DeviceKey, AckSet>,
    pub(super) floor: u64,
}

/// What an append has come to.
pub(super) struct Done {
    pub(super) log: LogId,
    pub(super) seq: u64,
    pub(super) duplicate: bool,
}

type Answer = Result<Done, Box<Failure>>;

fn refuse(code: ErrorCode) -> Answer {
    Err(Box::new(Failure::new(code)))
}

impl State {
    /// Appends an entry, or says why not.
    pub(super) fn append(&mut self, device: DeviceKey, entry: &EntryIn) -> Answer {
        let header = entry.header.decode().map_err(|_| Failure::new(ErrorCode::BadHeader))?;
        let signature = entry.signature.ok_or_else(|| Failure::new(ErrorCode::BadSignature))?;
        let digest = entry_digest(&entry.header);
        signing::verify(header.sender, &signing::entry_message(digest), &signature)
            .map_err(|_| Failure::new(ErrorCode::BadSignature))?;
        if header.sender != device {
            return refuse(ErrorCode::BadHeader);
        }
        if !header.holds(entry.body.as_ref()) {
            return refuse(ErrorCode::BadBody);
        }
        if header.log.is_zero() {
            return self.found(entry, header, digest);
        }
        let incarnation = self.incarnation;
        let Some(log) = self.logs.get_mut(&header.log) else {
            return refuse(ErrorCode::NoSuchLog);
        };
        log.append(entry, header, digest, incarnation)
    }

    fn found(&mut self, entry: &EntryIn, header: Header, digest: Digest) -> Answer {
        let id = native_log_id(&entry.header);
        if self.logs.contains_key(&id) {
            return Ok(Done { log: id, seq: 1, duplicate: true });
        }
        let Ok(Control::Found { join_key, .. }) = Control::decode(entry.body.as_ref()) else {
            return refuse(ErrorCode::BadControl);
        };
        let mut log = FakeLog::new(id, join_key);
        log.members.insert(header.sender, 1);
        log.counts.insert(header.sender, (1, digest));
        log.push(entry, header, digest);
        self.logs.insert(id, log);
        Ok(Done { log: id, seq: 1, duplicate: false })
    }
}

impl FakeLog {
    fn new(id: LogId, join_key: Option<DeviceKey>) -> Self {
        Self {
            id,
            entries: Vec::new(),
            members: BTreeMap::new(),
            revoked: BTreeSet::new(),
            join_key,
            counts: HashMap::new(),
            guard: 0,
            acked: HashMap::new(),
            floor: 0,
        }
    }

    pub(crate) fn head(&self, incarnation: u64) -> Head {
        let seq = self.entries.len() as u64;
        Head { incarnation, seq, chain: self.chain_at(seq) }
    }

    pub(super) fn chain_at(&self, seq: u64) -> Digest {
        chain_of(self.id, self.entries.iter().take(seq as usize).map(|stored| stored.digest))
    }

    fn append(
        &mut self,
        entry: &EntryIn,
        header: Header,
        digest: Digest,
        incarnation: u64,
    ) -> Answer {
        let sender = header.sender;
        if self.revoked.contains(&sender) {
            return Err(Box::new(Failure::revoked(self.removal_of(sender))));
        }
        let control = Control::decode(entry.body.as_ref()).ok();
        let joins = header.kind == Kind::Control && matches!(control, Some(Control::Join { .. }));
        if !joins && !self.members.contains_key(&sender) {
            return refuse(ErrorCode::NoSuchLog);
        }
        let (last, last_digest) = self.counts.get(&sender).copied().unwrap_or((0, Digest::ZERO));
        if header.count <= last {
            let stored = self
                .entries
                .iter()
                .filter(|stored| stored.seq > self.floor || stored.header.kind == Kind::Control)
                .find(|stored| stored.header.sender == sender && stored.digest == digest);
            return match stored {
                Some(stored) => Ok(Done { log: self.id, seq: stored.seq, duplicate: true }),
                None => Err(Box::new(Failure::conflict(last, last_digest))),
            };
        }
        if header.count > last + 1 {
            return Err(Box::new(Failure::out_of_order(last + 1)));
        }
        if header.prev != last_digest {
            return refuse(ErrorCode::BadHeader);
        }
        let named: Vec<DeviceKey> = entry.recipients.to_vec();
        if Audience::of(&named) != header.audience
            || named.iter().any(|device| !self.members.contains_key(device))
        {
            return refuse(ErrorCode::BadAudience);
        }
        let rotation = header.kind == Kind::Key && named.is_empty();
        let conditional = rotation || control.as_ref().is_some_and(Control::is_conditional);
        let stale = header.seen.incarnation != incarnation || header.seen.seq < self.guard;
        if conditional && stale {
            let head = self.head(incarnation);
            return Err(Box::new(Failure::at_head(ErrorCode::Stale, head)));
        }
        if header.kind == Kind::Control {
            let Some(control) = control else { return refuse(ErrorCode::BadControl) };
            self.apply(sender, &control)?;
        } else if rotation {
            self.guard = self.entries.len() as u64 + 1;
        }
        self.counts.insert(sender, (header.count, digest));
        let seq = self.push(entry, header, digest);
        Ok(Done { log: self.id, seq, duplicate: false })
    }

    fn apply(&mut self, sender: DeviceKey, control: &Control) -> Result<(), Box<Failure>> {
        let seq = self.entries.len() as u64 + 1;
        match control {
            Control::Join { signature } => {
                if self.members.contains_key(&sender) {
                    return Err(Box::new(Failure::new(ErrorCode::AlreadyMember)));
                }
                let message = signing::join_message(self.id, sender);
                let invited = self
                    .join_key
                    .is_some_and(|join_key| signing::verify(join_key, &message, signature).is_ok());
                if !invited {
                    return Err(Box::new(Failure::new(ErrorCode::InviteInvalid)));
                }
                self.members.insert(sender, seq);
                self.acked.remove(&sender);
            }
            Control::Leave => {
                self.members.remove(&sender);
                self.guard = seq;
            }
            Control::Revoke { device, join_key } => {
                self.members.remove(device);
                self.revoked.insert(*device);
                self.join_key = *join_key;
                self.guard = seq;
            }
            Control::JoinKey { join_key } => {
                self.join_key = Some(*join_key);
                self.guard = seq;
            }
            Control::Found { .. }
            | Control::Enrol { .. }
            | Control::Snapshot { .. }
            | Control::SnapshotOpened { .. }
            | Control::TotalsFound { .. }
            | Control::TotalsJoin { .. }
            | Control::TotalsLeave { .. } => {
                return Err(Box::new(Failure::new(ErrorCode::BadControl)));
            }
        }
        Ok(())
    }

    fn push(&mut self, entry: &EntryIn, header: Header, digest: Digest) -> u64 {
        let seq = self.entries.len() as u64 + 1;
        self.entries.push(Stored { seq, header, entry: entry.clone(), digest, gone: None });
        seq
    }

    /// The seq of the entry that removed a device; 0 for none.
    pub(super) fn removal_of(&self, of: DeviceKey) -> u64 {
        let removes = |stored: &&Stored| match Control::decode(stored.entry.body.as_ref()) {
            Ok(Control::Leave) => stored.header.sender == of,
            Ok(Control::Revoke { device, .. }) => device == of,
            Ok(_) | Err(_) => false,
        };
        self.entries.iter().rev().find(removes).map_or(0, |stored| stored.seq)
    }

    /// Forgets what stands above `seq`, and who had joined, left and sent by it.
    pub(super) fn truncate(&mut self, seq: u64) {
        self.entries.truncate(seq as usize);
        self.counts.clear();
        for stored in &self.entries {
            self.counts.insert(stored.header.sender, (stored.header.count, stored.digest));
        }
        self.members.retain(|_, joined| *joined <= seq);
        self.guard = self.guard.min(seq);
        self.acked.clear();
    }

    /// What the reader gets after `after`: whole entries, and stubs for the rest; after a floor, its
    /// frame and control entries first.
    pub(super) fn read(
        &self,
        state: &State,
        reader: DeviceKey,
        after: u64,
    ) -> Vec<(u64, RelayFrame)> {
        let mut frames = Vec::new();
        let mut begin = after;
        if after < self.floor {
            let head = Head {
                incarnation: state.incarnation,
                seq: self.floor,
                chain: self.chain_at(self.floor),
            };
            frames.push((after, RelayFrame::Floor(Floor { log: self.id, head, snapshot: None })));
            for stored in &self.entries[after as usize..self.floor as usize] {
                if stored.header.kind == Kind::Control {
                    frames.push((after, self.whole(state, stored, reader)));
                }
            }
            begin = self.floor;
        }
        for stored in &self.entries[begin as usize..] {
            let frame = match self.stub_reason(state, stored, reader) {
                None => self.whole(state, stored, reader),
                Some(reason) => {
                    let stub = Stub { digest: stored.digest, reason };
                    RelayFrame::Stubs(Stubs {
                        log: self.id,
                        seq: stored.seq,
                        stubs: sealwire_protocol::bounded::Bounded::new(vec![stub]).expect("one"),
                    })
                }
            };
            frames.push((stored.seq, frame));
        }
        frames
    }

    fn stub_reason(&self, state: &State, stored: &Stored, reader: DeviceKey) -> Option<StubReason> {
        if stored.header.kind == Kind::Control {
            return None;
        }
        let named = !stored.entry.recipients.is_empty();
        let withheld = state.withheld.contains(&(reader, self.id, stored.seq));
        let joined = self.members.get(&reader).copied().unwrap_or(u64::MAX);
        if stored.header.sender == reader {
            Some(StubReason::Own)
        } else if withheld
            || (named && !stored.entry.recipients.contains(&reader))
            || stored.seq < joined
        {
            Some(StubReason::NotAddressed)
        } else if self.acked.get(&reader).is_some_and(|acked| acked.contains(stored.seq)) {
            Some(StubReason::Acked)
        } else {
            stored.gone
        }
    }

    fn whole(&self, state: &State, stored: &Stored, reader: DeviceKey) -> RelayFrame {
        let mut body = stored.entry.body.as_ref().to_vec();
        if state.spoiled.contains(&(reader, self.id, stored.seq)) {
            let last = body.len() - 1;
            body[last] ^= 1;
        }
        RelayFrame::Entry(Entry {
            log: self.id,
            seq: stored.seq,
            at: super::ordered_at(stored.seq),
            header: stored.entry.header,
            body: Body::copy_from(&body),
            signature: stored.entry.signature,
            recipients: stored.entry.recipients.clone(),
            totals_kind: None,
        })
    }

    /// The head as this device is shown it.
    pub(super) fn head_for(&self, state: &State, device: DeviceKey) -> Head {
        let mut head = self.head(state.incarnation);
        if state.forked.contains(&device) {
            head.chain = sha256(&head.chain.0);
        }
        head
    }
}
