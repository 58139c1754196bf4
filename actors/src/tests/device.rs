//! A device that speaks to the actors without a socket, and a world to put it in.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ed25519_dalek::SigningKey;
use sealwire_protocol::ack::AckWire;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::codec::{decode_relay, encode_client};
use sealwire_protocol::digest::{entry_digest, native_log_id, sha256};
use sealwire_protocol::frame::{self, AckState, Authenticate};
use sealwire_protocol::handshake::prove_device;
use sealwire_protocol::keys::KeyBody;
use sealwire_protocol::signing::{device_key, enrol_message, entry_message, join_message, sign};
use sealwire_protocol::token::TokenKey;
use sealwire_protocol::{
    Audience, Body, ClientFrame, Control, DeviceKey, Digest, EntryIn, ErrorCode, Failure, Head,
    Header, Instance, Kind, LogId, LogType, RelayFrame,
};
use tokio::time::timeout;

use crate::fakes::{HandClock, MemoryStore};
use crate::limits::VaultLimits;
use crate::log::LogMessage;
use crate::ports::{LogKey, Push, Store};
use crate::session::{Greeter, Session, Step};
use crate::system::{Options, System};

/// Longest that a test waits for anything.
const DEADLINE: Duration = Duration::from_secs(10);

/// When worlds begin, in milliseconds since the epoch.
const START: u64 = 1_700_000_000_000;

/// A relay's actors over a store in memory.
pub(super) struct World {
    pub(super) store: Arc<MemoryStore>,
    pub(super) clock: Arc<HandClock>,
    pub(super) system: System,
}

impl World {
    pub(super) async fn new() -> Self {
        Self::over(Arc::new(MemoryStore::new())).await
    }

    pub(super) async fn over(store: Arc<MemoryStore>) -> Self {
        Self::with(store, VaultLimits::default()).await
    }

    pub(super) async fn with(store: Arc<MemoryStore>, vaults: VaultLimits) -> Self {
        let clock = Arc::new(HandClock::at(START));
        Self::start(store, clock, vaults, Vec::new(), Duration::ZERO).await
    }

    /// A world with a push service, where nobody is given time to come back after a start.
    pub(super) async fn ringing(store: Arc<MemoryStore>, push: Arc<dyn Push>) -> Self {
        Self::ringing_after(store, push, Duration::ZERO).await
    }

    /// The same, so long after every other world.
    pub(super) async fn ringing_after(
        store: Arc<MemoryStore>,
        push: Arc<dyn Push>,
        later: Duration,
    ) -> Self {
        let clock = Arc::new(HandClock::at(START + later.as_millis() as u64));
        Self::start(store, clock, VaultLimits::default(), vec![push], Duration::ZERO).await
    }

    /// A world with a push service, where devices have so long to come back after its start.
    pub(super) async fn settling(
        store: Arc<MemoryStore>,
        push: Arc<dyn Push>,
        settle: Duration,
    ) -> Self {
        let clock = Arc::new(HandClock::at(START));
        Self::start(store, clock, VaultLimits::default(), vec![push], settle).await
    }

    async fn start(
        store: Arc<MemoryStore>,
        clock: Arc<HandClock>,
        vaults: VaultLimits,
        push: Vec<Arc<dyn Push>>,
        settle: Duration,
    ) -> Self {
        let mut options =
            Options::new(SigningKey::from_bytes(&[99; 32]), vec![TokenKey::derive(b"secret")]);
        // Days pass in a moment where doorbells are rung; nothing expires there.
        let ringing = !push.is_empty();
        options.retention_pause = Duration::from_millis(if ringing { 3_600_000 } else { 20 });
        options.vaults = vaults;
        options.push = push;
        options.doorbell_settle = settle;
        let system =
            System::start(store.clone(), clock.clone(), options).await.expect("actors start");
        Self { store, clock, system }
    }

    /// Waits until a log has flushed its acks and deletions.
    pub(super) async fn flush(&self, key: LogKey) {
        let (done, flushed) = tokio::sync::oneshot::channel();
        self.system.shared.cast_log(key, LogMessage::Flush(done));
        // An error says that there was nothing to flush.
        let _ = timeout(DEADLINE, flushed).await.expect("flushed in time");
    }

    /// The seqs of a log whose bodies are left.
    pub(super) async fn bodies(&self, key: LogKey) -> Vec<u64> {
        let records = self.store.load(&[key]).await.expect("a store");
        let record = records.into_iter().next().flatten().expect("a log");
        record.live.iter().map(|live| live.seq).collect()
    }

    /// Waits for a condition.
    pub(super) async fn until(&self, condition: impl Fn() -> bool) {
        self.until_async(|| std::future::ready(condition())).await;
    }

    /// Waits for a condition that has to be asked for.
    pub(super) async fn until_async<F: Future<Output = bool>>(&self, condition: impl Fn() -> F) {
        let holds = async {
            while !condition().await {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(Duration::from_secs(60), holds).await.expect("the condition in time");
    }
}

/// A device with one session.
pub(super) struct Device {
    pub(super) key: SigningKey,
    instance: Instance,
    session: Option<Session>,
    window: Option<u64>,
    request: u32,
    received: std::collections::VecDeque<(u32, RelayFrame)>,
    /// Of the log that the device writes to: its next count, and the digest before.
    pub(super) count: u64,
    pub(super) prev: Digest,
}

impl Device {
    pub(super) fn new(seed: u8) -> Self {
        Self {
            key: SigningKey::from_bytes(&[seed; 32]),
            instance: Instance([seed; 16]),
            session: None,
            window: None,
            request: 0,
            received: std::collections::VecDeque::new(),
            count: 1,
            prev: Digest::ZERO,
        }
    }

    pub(super) async fn connected(seed: u8, world: &World) -> Self {
        let mut device = Self::new(seed);
        device.connect(world).await;
        device
    }

    pub(super) fn id(&self) -> DeviceKey {
        device_key(&self.key)
    }

    pub(super) fn instance(mut self, byte: u8) -> Self {
        self.instance = Instance([byte; 16]);
        self
    }

    pub(super) fn window(mut self, bytes: u64) -> Self {
        self.window = Some(bytes);
        self
    }

    pub(super) async fn connect(&mut self, world: &World) -> frame::Welcome {
        self.session = None;
        self.received.clear();
        let greeter = Greeter::new(&world.system).expect("randomness");
        let hello = self.hello(&greeter.greeting());
        let session = greeter.authenticate(&hello).await.map_err(|r| r.reason).expect("welcome");
        self.session = Some(session);
        match self.next().await {
            RelayFrame::Welcome(welcome) => welcome,
            other => panic!("expected a welcome, not {other:?}"),
        }
    }

    pub(super) fn hello(&self, greeting: &[u8]) -> Vec<u8> {
        let frame = Authenticate {
            version: 1,
            device: self.id(),
            instance: self.instance,
            challenge: Digest([5; 32]),
            signature: Some(prove_device(&self.key, greeting)),
            token: None,
            heartbeat_s: 60,
            window: self.window,
            capabilities: Bounded::default(),
        };
        encode_client(1, &frame.into())
    }

    pub(super) fn disconnect(&mut self) {
        self.session = None;
    }

    pub(super) fn session(&self) -> &Session {
        self.session.as_ref().expect("connected")
    }

    /// Sends a frame and gives its request id. What it has to wait for is waited for.
    pub(super) async fn send(&mut self, frame: impl Into<ClientFrame>) -> u32 {
        let (request, work) = self.begin(frame);
        work.await;
        request
    }

    /// The same, but what it has to wait for is given: its connection reads nothing more before.
    pub(super) fn begin(
        &mut self,
        frame: impl Into<ClientFrame>,
    ) -> (u32, Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.request += 1;
        let bytes = encode_client(self.request, &frame.into());
        let work = match self.session().receive(&bytes) {
            Step::Done => Box::pin(std::future::ready(())),
            Step::Later(work) => work,
            Step::Close(reason) => panic!("closed: {reason:?}"),
        };
        (self.request, work)
    }

    /// Whatever the relay sends next.
    pub(super) async fn next(&mut self) -> RelayFrame {
        self.next_answer().await.1
    }

    async fn next_answer(&mut self) -> (u32, RelayFrame) {
        let waited = timeout(DEADLINE, async {
            loop {
                if let Some(received) = self.received.pop_front() {
                    return received;
                }
                self.pump();
                if self.received.is_empty() {
                    self.session().outbox().clone().woken().await;
                }
            }
        });
        waited.await.expect("a frame in time")
    }

    fn pump(&mut self) {
        let mut frames: Vec<Bytes> = Vec::new();
        self.session().outbox().take(usize::MAX, usize::MAX, &mut frames);
        self.session().catch_up();
        for bytes in frames {
            let envelope = decode_relay(&bytes).expect("an envelope");
            self.received.push_back((envelope.request, envelope.frame.expect("a known frame")));
        }
    }

    /// The answer to a request; what arrives in between is kept in order.
    pub(super) async fn answer_to(&mut self, request: u32) -> RelayFrame {
        let mut before = std::collections::VecDeque::new();
        loop {
            let (id, frame) = self.next_answer().await;
            if id == request {
                for kept in before.into_iter().rev() {
                    self.received.push_front(kept);
                }
                return frame;
            }
            before.push_back((id, frame));
        }
    }

    /// The next frame that is not about memberships.
    pub(super) async fn next_content(&mut self) -> RelayFrame {
        loop {
            match self.next().await {
                RelayFrame::Membership(_) => {}
                other => return other,
            }
        }
    }

    pub(super) fn nothing_waits(&mut self) -> bool {
        self.pump();
        self.received.is_empty()
    }

    // ---- entries

    pub(super) fn entry(
        &mut self,
        log: LogId,
        kind: Kind,
        body: &[u8],
        recipients: &[DeviceKey],
        seen: Head,
    ) -> EntryIn {
        let header = Header {
            log,
            sender: self.id(),
            count: self.count,
            prev: self.prev,
            kind,
            audience: Audience::of(recipients),
            seen,
            body: sha256(body),
        };
        let bytes = header.encode();
        let digest = entry_digest(&bytes);
        self.count += 1;
        self.prev = digest;
        EntryIn {
            header: bytes,
            body: Body::copy_from(body),
            signature: Some(sign(&self.key, &entry_message(digest))),
            recipients: Bounded::new(recipients.to_vec()).expect("few"),
            totals_kind: None,
        }
    }

    pub(super) fn control(&mut self, log: LogId, control: &Control, seen: Head) -> EntryIn {
        self.entry(log, Kind::Control, &control.encode(), &[], seen)
    }

    pub(super) fn rotation(&mut self, log: LogId, seen: Head) -> EntryIn {
        let body = KeyBody {
            scope: sealwire_protocol::ids::Scope([1; 16]),
            epoch: 1,
            keys: Bounded::default(),
        };
        self.entry(log, Kind::Key, &body.encode().expect("small"), &[], seen)
    }

    pub(super) async fn append(&mut self, entry: EntryIn) -> Result<frame::Appended, Failure> {
        let request = self.send(frame::Append { entry }).await;
        self.appended(request).await
    }

    pub(super) async fn appended(&mut self, request: u32) -> Result<frame::Appended, Failure> {
        match self.answer_to(request).await {
            RelayFrame::Appended(appended) => Ok(appended),
            RelayFrame::Error(error) => Err(error.failure()),
            other => panic!("expected an answer to an append, not {other:?}"),
        }
    }

    pub(super) async fn say(&mut self, log: LogId, body: &[u8]) -> frame::Appended {
        let entry = self.entry(log, Kind::Ring, body, &[], Head::NONE);
        self.append(entry).await.expect("appended")
    }

    pub(super) async fn found(&mut self) -> Group {
        let join = SigningKey::from_bytes(&[200; 32]);
        let control = Control::Found {
            log_type: LogType::Group,
            random: [self.count as u8; 32],
            join_key: Some(device_key(&join)),
        };
        let entry = self.control(LogId::ZERO, &control, Head::NONE);
        let id = native_log_id(&entry.header);
        let appended = self.append(entry).await.expect("founded");
        assert_eq!((appended.log, appended.seq), (id, 1));
        Group { id, join }
    }

    pub(super) async fn found_vault(&mut self) -> LogId {
        let log_type = LogType::Vault;
        let control = Control::Found { log_type, random: [7; 32], join_key: None };
        let entry = self.control(LogId::ZERO, &control, Head::NONE);
        self.append(entry).await.expect("founded").log
    }

    /// The entry that enrols another device, which has signed it.
    pub(super) fn enrol_entry(&mut self, vault: LogId, other: &Device) -> EntryIn {
        let message = enrol_message(vault, other.id(), self.id());
        let signature = sign(&other.key, &message);
        self.control(vault, &Control::Enrol { device: other.id(), signature }, Head::NONE)
    }

    pub(super) fn join_entry(&mut self, group: &Group) -> EntryIn {
        let signature = sign(&group.join, &join_message(group.id, self.id()));
        self.control(group.id, &Control::Join { signature }, Head::NONE)
    }

    pub(super) async fn join(&mut self, group: &Group) -> frame::Appended {
        let entry = self.join_entry(group);
        self.append(entry).await.expect("joined")
    }

    // ---- reading

    pub(super) async fn subscribe(
        &mut self,
        log: LogId,
        cursor: Option<Head>,
    ) -> Result<Head, Failure> {
        let request = self.send(frame::Subscribe { log, cursor, acked: None }).await;
        match self.answer_to(request).await {
            RelayFrame::Subscribed(subscribed) => Ok(subscribed.head),
            RelayFrame::Error(error) => Err(error.failure()),
            other => panic!("expected an answer to a subscribe, not {other:?}"),
        }
    }

    pub(super) async fn ack(&mut self, log: LogId, incarnation: u64, floor: u64) {
        let acked = AckWire { floor, ranges: Bounded::default() };
        self.send(frame::Ack { log, state: AckState { incarnation, acked } }).await;
    }

    /// Reads until `Drained`, checks the chain, and gives what was read with the head.
    pub(super) async fn drain(&mut self, reading: &mut Reading) -> Head {
        loop {
            let frame = self.next_content().await;
            if let RelayFrame::Drained(drained) = &frame {
                assert_eq!(drained.head.seq, reading.seq, "drained at what was sent");
                assert_eq!(drained.head.chain, reading.chain, "the chain is the relay's");
                return drained.head;
            }
            reading.take(&frame);
        }
    }
}

/// A group and the secret that admits to it.
pub(super) struct Group {
    pub(super) id: LogId,
    pub(super) join: SigningKey,
}

/// What a reader has read of one log.
pub(super) struct Reading {
    pub(super) seq: u64,
    pub(super) chain: Digest,
    /// Bodies of entries, and reasons of stubs, in order.
    pub(super) items: Vec<Item>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Body(Vec<u8>),
    Control(&'static str),
    Stub(frame::StubReason),
}

impl Reading {
    pub(super) fn new(log: LogId) -> Self {
        Self { seq: 0, chain: sealwire_protocol::digest::chain_start(log), items: Vec::new() }
    }

    /// Goes on above a floor; what is kept from below it is out of the chain.
    pub(super) fn at_floor(&mut self, floor: &Head) {
        self.seq = floor.seq;
        self.chain = floor.chain;
    }

    pub(super) fn take(&mut self, frame: &RelayFrame) {
        match frame {
            RelayFrame::Entry(entry) => {
                self.extend(entry.seq, entry_digest(&entry.header));
                let header = entry.header.decode().expect("a header");
                self.items.push(match header.kind {
                    Kind::Control => {
                        let control = Control::decode(entry.body.as_ref()).expect("a control");
                        Item::Control(control.name())
                    }
                    _ => Item::Body(entry.body.0.to_vec()),
                });
            }
            RelayFrame::Stubs(stubs) => {
                for (index, stub) in stubs.stubs.iter().enumerate() {
                    self.extend(stubs.seq + index as u64, stub.digest);
                    self.items.push(Item::Stub(stub.reason));
                }
            }
            other => panic!("expected an entry or stubs, not {other:?}"),
        }
    }

    fn extend(&mut self, seq: u64, digest: Digest) {
        assert_eq!(seq, self.seq + 1, "no gap and no duplicate");
        self.seq = seq;
        self.chain = sealwire_protocol::digest::chain_next(self.chain, seq, digest);
    }
}

pub(super) fn code<T: std::fmt::Debug>(result: Result<T, Failure>) -> ErrorCode {
    result.expect_err("a refusal").code
}
