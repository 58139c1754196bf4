//! A device that speaks the protocol and nothing above it: bodies are bytes, nothing is sealed.
//!
//! It applies every frame in the order in which it came, so a [`View`] is always what the relay has
//! shown so far; and every entry that it is shown is judged as any device must.

use std::collections::BTreeMap;

use sealwire_client::address::RelayUrl;
use sealwire_client::entry::{Outline, Signed};
use sealwire_client::identity::{Identity, JoinSeed};
use sealwire_client::numbering::Mark;
use sealwire_client::wire::{self, Options, Session, Wire, WireError};
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::digest::native_log_id;
use sealwire_protocol::frame::{
    Ack, AckState, Append, AppendBatch, Appended, Ping, Subscribe, Subscribed, Welcome,
};
use sealwire_protocol::ids::{Instance, LogType};
use sealwire_protocol::{
    AckSet, ClientFrame, Control, DeviceKey, ErrorCode, Failure, Head, Kind, LogId, RelayFrame,
};
use tokio::time::timeout;

use super::DEADLINE;
use super::view::View;

/// A group as its founder knows it.
#[derive(Clone)]
pub(crate) struct Group {
    pub(crate) log: LogId,
    pub(crate) seed: JoinSeed,
}

/// A device with one connection.
pub(crate) struct Device {
    pub(crate) identity: Identity,
    pub(crate) options: Options,
    pub(crate) relay: RelayUrl,
    wire: Option<Wire>,
    incarnation: u64,
    views: BTreeMap<LogId, View>,
    /// Everything that came and is neither an answer nor part of a log.
    pub(crate) told: Vec<RelayFrame>,
    answers: BTreeMap<u32, RelayFrame>,
}

impl Device {
    pub(crate) fn new(relay: RelayUrl, seed: u8) -> Self {
        let mut identity = [seed; 32];
        identity[0] = 0xde;
        let options = Options { instance: Instance([seed; 16]), ..Options::default() };
        Self {
            identity: Identity::from_seed(&identity),
            options,
            relay,
            wire: None,
            incarnation: 0,
            views: BTreeMap::new(),
            told: Vec::new(),
            answers: BTreeMap::new(),
        }
    }

    /// A connected device.
    pub(crate) async fn connected(relay: RelayUrl, seed: u8) -> Self {
        let mut device = Self::new(relay, seed);
        device.connect().await;
        device
    }

    pub(crate) fn key(&self) -> DeviceKey {
        self.identity.key()
    }

    pub(crate) fn incarnation(&self) -> u64 {
        self.incarnation
    }

    // ---- the connection

    pub(crate) async fn connect(&mut self) -> Welcome {
        self.try_connect().await.expect("a session").welcome
    }

    pub(crate) async fn try_connect(&mut self) -> Result<Session, WireError> {
        self.cut();
        let (wire, session) = wire::connect(&self.relay, &self.identity, &self.options).await?;
        self.incarnation = session.welcome.incarnation;
        self.wire = Some(wire);
        Ok(session)
    }

    /// Drops the connection without a word.
    pub(crate) fn cut(&mut self) {
        self.wire = None;
        self.answers.clear();
    }

    pub(crate) fn wire(&mut self) -> &mut Wire {
        self.wire.as_mut().expect("connected")
    }

    /// The next frame, applied.
    ///
    /// # Errors
    /// That the connection has ended.
    pub(crate) async fn next(&mut self) -> Result<(), WireError> {
        let received = timeout(DEADLINE, self.wire().receive()).await;
        let envelope = received.expect("a frame in time")?;
        let frame = envelope.frame.expect("a frame that is known");
        self.apply(envelope.request, frame);
        Ok(())
    }

    fn apply(&mut self, request: u32, frame: RelayFrame) {
        match frame {
            RelayFrame::Entry(entry) => self.view_mut(entry.log).take_entry(&entry),
            RelayFrame::Stubs(stubs) => self.view_mut(stubs.log).take_stubs(&stubs),
            RelayFrame::Floor(floor) => self.view_mut(floor.log).begin_floor(&floor.head),
            RelayFrame::Drained(drained) => self.view_mut(drained.log).drained(drained.head),
            RelayFrame::Subscribed(subscribed) => {
                let incarnation = subscribed.head.incarnation;
                self.view_mut(subscribed.log).subscribed(incarnation);
                self.answers.insert(request, subscribed.into());
            }
            other if request != 0 => {
                self.answers.insert(request, other);
            }
            other => self.told.push(other),
        }
    }

    /// Receives until a condition holds.
    pub(crate) async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let held = async {
            while !condition(self) {
                self.next().await.expect(what);
            }
        };
        timeout(DEADLINE, held).await.unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    /// Receives until the relay ends the connection, and says why it did.
    pub(crate) async fn until_closed(&mut self) -> WireError {
        let closed = async {
            loop {
                if let Err(error) = self.next().await {
                    return error;
                }
            }
        };
        let error = timeout(DEADLINE, closed).await.expect("closed in time");
        self.wire = None;
        error
    }

    // ---- requests

    /// Sends a frame without waiting for its answer.
    pub(crate) async fn send(&mut self, frame: impl Into<ClientFrame>) -> u32 {
        self.wire().send(&frame.into()).await.expect("sent")
    }

    /// Waits for the answer to a request.
    pub(crate) async fn answer(&mut self, request: u32) -> Result<RelayFrame, Failure> {
        self.until("an answer", |device| device.answers.contains_key(&request)).await;
        match self.answers.remove(&request).expect("it is there") {
            RelayFrame::Error(error) => Err(error.failure()),
            frame => Ok(frame),
        }
    }

    /// The answer to a request, if it has come.
    pub(crate) fn answered(&self, request: u32) -> Option<&RelayFrame> {
        self.answers.get(&request)
    }

    pub(crate) async fn request(
        &mut self,
        frame: impl Into<ClientFrame>,
    ) -> Result<RelayFrame, Failure> {
        let request = self.send(frame).await;
        self.answer(request).await
    }

    /// The code with which a request is refused.
    pub(crate) async fn refusal(&mut self, frame: impl Into<ClientFrame>) -> ErrorCode {
        self.request(frame).await.expect_err("a refusal").code
    }

    // ---- logs

    pub(crate) fn view(&self, log: LogId) -> &View {
        self.views.get(&log).expect("the log is known")
    }

    pub(crate) fn view_mut(&mut self, log: LogId) -> &mut View {
        self.views.entry(log).or_insert_with(|| View::new(log))
    }

    /// Founds a group.
    pub(crate) async fn found(&mut self) -> Group {
        let seed = JoinSeed::generate().expect("randomness");
        let random = getrandom::u64().expect("randomness").to_be_bytes();
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&random);
        let found = Control::Found {
            log_type: LogType::Group,
            random: bytes,
            join_key: Some(seed.public()),
        };
        let signed = Outline::first().sign(&self.identity, &found.encode()).expect("short");
        let log = native_log_id(&signed.entry.header);
        self.view_mut(log).own = Mark { count: 1, digest: signed.digest };
        let appended = self.send_signed(&signed).await.expect("founded");
        assert_eq!((appended.log, appended.seq), (log, 1));
        Group { log, seed }
    }

    /// Joins a group and gives the seq of the entry that did it.
    pub(crate) async fn join(&mut self, group: &Group) -> u64 {
        self.try_join(group).await.expect("joined").seq
    }

    pub(crate) async fn try_join(&mut self, group: &Group) -> Result<Appended, Failure> {
        let signature = group.seed.admit(group.log, self.key());
        let before = self.view_mut(group.log).own;
        let answer = self.control(group.log, &Control::Join { signature }).await;
        if answer.is_err() {
            self.view_mut(group.log).own = before;
        }
        answer
    }

    /// Writes a control entry.
    pub(crate) async fn control(
        &mut self,
        log: LogId,
        control: &Control,
    ) -> Result<Appended, Failure> {
        let signed = self.sign(log, Kind::Control, &[], &control.encode());
        self.send_signed(&signed).await
    }

    /// Numbers and signs this device's next entry.
    pub(crate) fn sign(
        &mut self,
        log: LogId,
        kind: Kind,
        recipients: &[DeviceKey],
        body: &[u8],
    ) -> Signed {
        let view = self.views.entry(log).or_insert_with(|| View::new(log));
        let mut recipients = recipients.to_vec();
        recipients.sort_unstable();
        let outline = Outline {
            log,
            count: view.own.count + 1,
            prev: view.own.digest,
            kind,
            recipients,
            seen: view.head().unwrap_or(Head::NONE),
        };
        let signed = outline.sign(&self.identity, body).expect("short");
        view.own = Mark { count: view.own.count + 1, digest: signed.digest };
        signed
    }

    pub(crate) async fn send_signed(&mut self, signed: &Signed) -> Result<Appended, Failure> {
        match self.request(Append { entry: signed.entry.clone() }).await? {
            RelayFrame::Appended(appended) => Ok(appended),
            other => panic!("an append was answered with {}", other.name()),
        }
    }

    /// Appends an entry to all members.
    pub(crate) async fn append(&mut self, log: LogId, body: &[u8]) -> Appended {
        self.append_to(log, &[], body).await
    }

    /// Appends an entry to these members; to all, if none is named.
    pub(crate) async fn append_to(
        &mut self,
        log: LogId,
        recipients: &[DeviceKey],
        body: &[u8],
    ) -> Appended {
        let signed = self.sign(log, Kind::Ring, recipients, body);
        self.send_signed(&signed).await.expect("appended")
    }

    /// Appends entries as one batch.
    pub(crate) async fn append_batch(&mut self, log: LogId, bodies: &[&[u8]]) -> Appended {
        let entries =
            bodies.iter().map(|body| self.sign(log, Kind::Ring, &[], body).entry).collect();
        let entries = Bounded::new(entries).expect("few");
        match self.request(AppendBatch { entries }).await {
            Ok(RelayFrame::Appended(appended)) => appended,
            other => panic!("a batch was answered with {other:?}"),
        }
    }

    /// Subscribes from where it has read to, with all its acks.
    pub(crate) async fn subscribe(&mut self, log: LogId) -> Result<Subscribed, Failure> {
        let incarnation = self.incarnation;
        let view = self.view_mut(log);
        let state = AckState { incarnation, acked: view.acked.to_wire() };
        let frame = Subscribe { log, cursor: view.head(), acked: Some(state) };
        match self.request(frame).await? {
            RelayFrame::Subscribed(subscribed) => Ok(subscribed),
            other => panic!("a subscribe was answered with {}", other.name()),
        }
    }

    /// Subscribes, and reads until the log is live.
    pub(crate) async fn follow(&mut self, log: LogId) {
        self.subscribe(log).await.expect("subscribed");
        self.until("the log is read to its end", |device| device.view(log).drained.is_some()).await;
    }

    /// Reads a log it follows up to `seq`. Asks for a sign of life, which brings waiting stubs.
    pub(crate) async fn read_to(&mut self, log: LogId, seq: u64) {
        while self.view(log).seq() < seq {
            self.request(Ping {}).await.expect("a heartbeat");
            if self.view(log).seq() < seq {
                self.next().await.expect("an entry");
            }
        }
    }

    /// The codes of the errors about this log that nobody asked for: refused acks, for one.
    pub(crate) fn errors(&self, log: LogId) -> Vec<ErrorCode> {
        let mut codes = Vec::new();
        for frame in self.told.iter().chain(self.answers.values()) {
            if let RelayFrame::Error(error) = frame
                && error.log == Some(log)
            {
                codes.push(error.code);
            }
        }
        codes
    }

    /// Acks everything up to what was read.
    pub(crate) async fn ack_all(&mut self, log: LogId) {
        let seq = self.view(log).seq();
        self.ack(log, AckSet::up_to(seq)).await;
    }

    /// Acks these.
    pub(crate) async fn ack(&mut self, log: LogId, acked: AckSet) {
        let incarnation = self.incarnation;
        let view = self.view_mut(log);
        view.acked.merge(&acked.to_wire());
        let state = AckState { incarnation, acked: view.acked.to_wire() };
        self.send(Ack { log, state }).await;
    }
}

/// The first device founds a group, the others join it, and all follow it.
pub(crate) async fn together(devices: &mut [Device]) -> Group {
    let group = devices[0].found().await;
    for device in &mut devices[1..] {
        device.join(&group).await;
    }
    for device in devices.iter_mut() {
        device.follow(group.log).await;
    }
    group
}
