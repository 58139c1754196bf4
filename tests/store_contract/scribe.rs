//! Writes well-formed histories for the tests: headers, chains, counts.

use sealwire_actors::ports::{
    CommitResult, ControlsRequest, FoundResult, LogCommit, LogKey, LogRecord, NewEntry, NewLog,
    PageRequest, Position, ReserveResult, SenderRecord, Store, StoreError, StoredEntry,
};
use sealwire_protocol::digest::{chain_next, chain_start, entry_digest, native_log_id, sha256};
use sealwire_protocol::ids::Signature;
use sealwire_protocol::{Audience, Body, DeviceKey, Digest, Head, Header, Kind, LogId, LogType};

/// A time that no test compares with another one's clock.
pub(crate) const NOON: u64 = 1_800_000_000_000;

/// Most groups, where a test does not care.
pub(crate) const MANY: u32 = 1000;

/// A device's key.
pub(crate) fn device(number: u8) -> DeviceKey {
    DeviceKey([number; 32])
}

/// The first entry of a native log; `seed` makes the log.
pub(crate) fn new_log(seed: u64, log_type: LogType, founder: DeviceKey, at: u64) -> NewLog {
    let body = Body::copy_from(&seed.to_be_bytes());
    let header = Header {
        log: LogId::ZERO,
        sender: founder,
        count: 1,
        prev: Digest::ZERO,
        kind: Kind::Control,
        audience: Audience::All,
        seen: Head::NONE,
        body: sha256(body.as_ref()),
    }
    .encode();
    let (id, digest) = (native_log_id(&header), entry_digest(&header));
    NewLog {
        id,
        log_type,
        join_key: (log_type == LogType::Group).then_some(device(0xee)),
        founder,
        digest,
        entry: NewEntry {
            seq: 1,
            at,
            header,
            body,
            control: true,
            signature: Some(Signature([7; 64])),
            recipients: Vec::new(),
            totals_kind: None,
            chain: chain_next(chain_start(id), 1, digest),
            sender_slot: 1,
            count: 1,
        },
    }
}

/// Founds a log and gives who writes in it.
pub(crate) async fn found(
    store: &dyn Store,
    seed: u64,
    log_type: LogType,
    founder: DeviceKey,
) -> Scribe {
    let log = new_log(seed, log_type, founder, NOON);
    let FoundResult::Created(key) = store.found(&log, MANY).await.expect("founded") else {
        panic!("a log of this seed is there already");
    };
    Scribe::of(key, &log)
}

/// Keeps a place in a group for each of these devices.
pub(crate) async fn reserve(store: &dyn Store, key: LogKey, numbers: &[u8]) {
    for number in numbers {
        let reserved = store.reserve(key, device(*number), MANY, NOON, NOON).await;
        assert_eq!(reserved, Ok(ReserveResult::Reserved));
    }
}

/// Knows where a log ends and makes what comes next.
#[derive(Clone)]
pub(crate) struct Scribe {
    pub(crate) key: LogKey,
    pub(crate) id: LogId,
    pub(crate) head: Position,
    pub(crate) version: u64,
    pub(crate) floor: u64,
    senders: Vec<SenderRecord>,
}

/// What an entry is to be.
#[derive(Clone)]
pub(crate) struct Draft {
    pub(crate) sender: DeviceKey,
    pub(crate) body: Vec<u8>,
    pub(crate) control: bool,
    pub(crate) recipients: Vec<DeviceKey>,
    pub(crate) totals_kind: Option<String>,
    pub(crate) at: u64,
}

impl Draft {
    pub(crate) fn of(sender: DeviceKey, body: &[u8]) -> Self {
        Self {
            sender,
            body: body.to_vec(),
            control: false,
            recipients: Vec::new(),
            totals_kind: None,
            at: NOON,
        }
    }

    pub(crate) fn control(mut self) -> Self {
        self.control = true;
        self
    }

    pub(crate) fn to(mut self, recipients: &[DeviceKey]) -> Self {
        self.recipients = recipients.to_vec();
        self.recipients.sort();
        self
    }

    pub(crate) fn at(mut self, at: u64) -> Self {
        self.at = at;
        self
    }
}

impl Scribe {
    pub(crate) fn of(key: LogKey, log: &NewLog) -> Self {
        let head = Position { seq: 1, chain: log.entry.chain };
        let founder = SenderRecord {
            slot: 1,
            device: log.founder,
            last_count: log.entry.count,
            last_digest: log.digest,
        };
        Self { key, id: log.id, head, version: 0, floor: 0, senders: vec![founder] }
    }

    /// A commit that asks for nothing yet, at the head.
    pub(crate) fn part(&self) -> LogCommit {
        LogCommit::new(self.key, self.head.seq, self.version)
    }

    /// A commit of these entries. The scribe goes on from behind them.
    pub(crate) fn write(&mut self, drafts: &[Draft]) -> LogCommit {
        let mut part = self.part();
        for draft in drafts {
            let entry = self.entry(draft);
            part.entries.push(entry);
        }
        for draft in drafts {
            let sender = self.sender(draft.sender);
            if !part.senders.contains(&sender) {
                part.senders.push(sender);
            }
        }
        part
    }

    pub(crate) fn sender(&mut self, device: DeviceKey) -> SenderRecord {
        if let Some(known) = self.senders.iter().find(|known| known.device == device) {
            return *known;
        }
        let slot = i32::try_from(self.senders.len() + 1).expect("few senders");
        let new = SenderRecord { slot, device, last_count: 0, last_digest: Digest::ZERO };
        self.senders.push(new);
        new
    }

    fn entry(&mut self, draft: &Draft) -> NewEntry {
        let mut sender = self.sender(draft.sender);
        let body = Body::copy_from(&draft.body);
        let header = Header {
            log: self.id,
            sender: draft.sender,
            count: sender.last_count + 1,
            prev: sender.last_digest,
            kind: if draft.control { Kind::Control } else { Kind::Ring },
            audience: Audience::of(&draft.recipients),
            seen: Head::NONE,
            body: sha256(&draft.body),
        }
        .encode();
        sender.last_count += 1;
        sender.last_digest = entry_digest(&header);
        let seq = self.head.seq + 1;
        let chain = chain_next(self.head.chain, seq, sender.last_digest);
        self.head = Position { seq, chain };
        let place = usize::try_from(sender.slot - 1).expect("slots begin at 1");
        self.senders[place] = sender;
        NewEntry {
            seq,
            at: draft.at,
            header,
            body,
            control: draft.control,
            signature: seq.is_multiple_of(2).then_some(Signature([9; 64])),
            recipients: draft.recipients.clone(),
            totals_kind: draft.totals_kind.clone(),
            chain,
            sender_slot: sender.slot,
            count: sender.last_count,
        }
    }

    /// Commits these entries alone.
    pub(crate) async fn commit(&mut self, store: &dyn Store, drafts: &[Draft]) {
        let part = self.write(drafts);
        assert_eq!(store.commit(&[part]).await, Ok(vec![CommitResult::Committed]));
    }

    /// A page for a reader who was there from the start, with everything after `after`.
    pub(crate) fn page(&self, reader: DeviceKey, after: u64) -> PageRequest {
        PageRequest {
            key: self.key,
            after,
            up_to: self.head.seq,
            reader,
            joined_seq: 0,
            entries_max: 1000,
            bytes_max: 1 << 30,
        }
    }

    /// All entries between the two whose bodies are kept with them.
    pub(crate) fn controls(&self, after: u64, up_to: u64) -> ControlsRequest {
        let (entries_max, bytes_max) = (1000, 1 << 30);
        ControlsRequest { key: self.key, after, up_to, entries_max, bytes_max }
    }

    /// One that knows where the log ends now.
    pub(crate) async fn known(self, store: &dyn Store) -> Self {
        let LogRecord { head, version, floor, senders, .. } = self.load(store).await;
        Self { head, version, floor: floor.seq, senders, ..self }
    }

    pub(crate) async fn load(&self, store: &dyn Store) -> LogRecord {
        let mut loaded = store.load(&[self.key]).await.expect("loaded");
        loaded.remove(0).expect("the log is there")
    }
}

/// Commits one part and gives what became of it.
pub(crate) async fn commit(store: &dyn Store, part: LogCommit) -> Result<CommitResult, StoreError> {
    store.commit(&[part]).await.map(|results| results[0])
}

/// Everything in an entry, in a form that can be compared.
pub(crate) fn plain(entry: &StoredEntry) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        (entry.seq, entry.at, entry.header.0, entry.signature.map(|signature| signature.0)),
        (entry.recipients.clone(), entry.chain.0),
        entry.body.as_ref().map(|body| body.as_ref().to_vec()),
        entry.totals_kind.clone(),
    )
}

/// The seqs of a page and whether each has its body.
pub(crate) fn outline(page: &[StoredEntry]) -> Vec<(u64, bool)> {
    page.iter().map(|entry| (entry.seq, entry.body.is_some())).collect()
}

/// Everything in a loaded log, in a form that can be compared.
pub(crate) fn plain_log(log: &LogRecord) -> impl PartialEq + std::fmt::Debug + use<> {
    (
        (log.key, log.id.0, log.log_type, log.head.seq, log.head.chain.0, log.version),
        (log.floor.seq, log.floor.chain.0, log.join_key, log.guard_seq, log.last_entry_at),
        (log.members.clone(), log.revoked.clone(), log.senders.clone(), log.live.clone()),
    )
}
