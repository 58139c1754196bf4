//! One device of a crowd.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use sealwire_client::address::RelayUrl;
use sealwire_client::chain::{Step, Track};
use sealwire_client::entry::{Outline, Signed};
use sealwire_client::identity::Identity;
use sealwire_client::numbering::Mark;
use sealwire_client::wire::{self, Options, Wire, WireError};
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::digest::entry_digest;
use sealwire_protocol::frame::{
    Ack, AckState, Append, AppendBatch, Appended, Error, Ping, Subscribe,
};
use sealwire_protocol::{
    AckSet, ClientFrame, DeviceKey, Digest, ErrorCode, Head, Kind, LogId, RelayFrame,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::{Recorder, Walks, moment};
use crate::support::device::Device;
use crate::support::history::Event;
use crate::support::random::Random;

/// Entries of one log that may be unanswered.
const UNANSWERED_MAX: usize = 12;

/// Longest pause before a device that was cut off is back. Short, so that much happens.
const PAUSE_MAX: Duration = Duration::from_millis(200);

/// Longest that a device listens before it does something itself.
const LISTEN_MAX: Duration = Duration::from_millis(12);

/// Longest body, in bytes.
const BODY_MAX: usize = 2048;

/// An entry that is not answered yet.
struct Unanswered {
    signed: Signed,
    count: u64,
    /// The request that it is in, on this connection.
    request: Option<u32>,
}

/// What a device keeps of one log, over every crash.
pub(super) struct Membership {
    log: LogId,
    pub(super) others: Vec<DeviceKey>,
    newest: Mark,
    track: Track,
    acked: AckSet,
    unanswered: VecDeque<Unanswered>,
    /// Some entry that was answered, to be sent again.
    answered: Option<Unanswered>,
    /// What was refused for now is sent again from then on.
    again_at: Option<Instant>,
    /// The request of the subscription, until it is answered.
    subscribing: Option<u32>,
    order: Vec<Digest>,
    drained: bool,
}

impl Membership {
    pub(super) fn new(log: LogId, newest: Mark) -> Self {
        Self {
            log,
            others: Vec::new(),
            newest,
            track: Track::new(log),
            acked: AckSet::new(),
            unanswered: VecDeque::new(),
            answered: None,
            again_at: None,
            subscribing: None,
            order: Vec::new(),
            drained: false,
        }
    }

    fn sign(&mut self, device: &Identity, recipients: Vec<DeviceKey>, body: &[u8]) -> &Unanswered {
        let count = self.newest.count + 1;
        let outline = Outline {
            log: self.log,
            count,
            prev: self.newest.digest,
            kind: Kind::Ring,
            recipients,
            seen: self.track.head().unwrap_or(Head::NONE),
        };
        let signed = outline.sign(device, body).expect("short");
        self.newest = Mark { count, digest: signed.digest };
        self.unanswered.push_back(Unanswered { signed, count, request: None });
        &self.unanswered[self.unanswered.len() - 1]
    }

    /// The connection is gone: nothing is under way any more.
    fn cut(&mut self) {
        self.again_at = None;
        self.subscribing = None;
        for entry in &mut self.unanswered {
            entry.request = None;
        }
    }

    /// Whether nothing is under way and something has to be sent again.
    fn is_stuck(&self) -> bool {
        !self.unanswered.is_empty() && self.unanswered.iter().all(|entry| entry.request.is_none())
    }
}

/// A device that writes and reads as it likes.
pub(super) struct Walker {
    identity: Identity,
    options: Options,
    relay: RelayUrl,
    incarnation: u64,
    memberships: BTreeMap<LogId, Membership>,
    /// Requests of entries that were answered before, on this connection.
    repeated: BTreeMap<u32, (LogId, Digest)>,
    recorder: Recorder,
    random: Random,
}

/// The connection is over: broken, or left by the device.
struct Over;

impl From<WireError> for Over {
    fn from(error: WireError) -> Self {
        let expected = matches!(error, WireError::Closed(_) | WireError::Io(_));
        assert!(expected, "a connection ended by {error:?}");
        Self
    }
}

impl Walks for Walker {
    /// Sends what is not answered until all of it is.
    async fn settle(&mut self) {
        while self.memberships.values().any(|membership| !membership.unanswered.is_empty()) {
            let session = async {
                let mut wire = self.connect().await?;
                while self.memberships.values().any(|it| !it.unanswered.is_empty()) {
                    self.send_again(&mut wire).await?;
                    self.listen(&mut wire, LISTEN_MAX).await?;
                }
                Ok::<(), Over>(())
            };
            let _ = session.await;
        }
    }

    /// Reads every log from its beginning, and notes what is there.
    async fn read_all(&mut self) {
        for membership in self.memberships.values_mut() {
            membership.track = Track::new(membership.log);
            membership.order.clear();
            membership.drained = false;
        }
        let session = async {
            let mut wire = self.connect().await?;
            while self.memberships.values().any(|membership| !membership.drained) {
                self.listen(&mut wire, LISTEN_MAX).await?;
            }
            Ok::<(), Over>(())
        };
        assert!(session.await.is_ok(), "the last connection was cut");
        for membership in self.memberships.values() {
            let end = Event::End { order: membership.order.clone() };
            self.recorder.note(self.identity.key(), membership.log, end);
        }
    }
}

impl Walker {
    pub(super) fn new(
        device: Device,
        memberships: Vec<Membership>,
        recorder: Recorder,
        random: Random,
    ) -> Self {
        let incarnation = device.incarnation();
        let Device { identity, options, relay, .. } = device;
        let memberships = memberships.into_iter().map(|it| (it.log, it)).collect();
        let repeated = BTreeMap::new();
        Self { identity, options, relay, incarnation, memberships, repeated, recorder, random }
    }

    /// Connects, writes and reads, is cut off, and comes back, until told to stop.
    pub(super) async fn walk(&mut self, stopped: watch::Receiver<bool>) {
        while !*stopped.borrow() {
            let steps = 20 + self.random.below(400);
            let session = async {
                let mut wire = self.connect().await?;
                for _ in 0..steps {
                    if *stopped.borrow() {
                        break;
                    }
                    self.step(&mut wire).await?;
                }
                Ok::<(), Over>(())
            };
            // However it ended, the connection was dropped without a word.
            let _ = session.await;
            sleep(moment(&mut self.random, PAUSE_MAX)).await;
        }
    }

    async fn connect(&mut self) -> Result<Wire, Over> {
        let connected = wire::connect(&self.relay, &self.identity, &self.options).await;
        let Ok((mut wire, session)) = connected else {
            // The relay is down or going: it is tried again.
            sleep(moment(&mut self.random, PAUSE_MAX)).await;
            return Err(Over);
        };
        assert_eq!(session.welcome.incarnation, self.incarnation, "nothing was restored");
        self.options.resume_token = Some(session.welcome.resume_token.to_vec());
        self.repeated.clear();
        for membership in self.memberships.values_mut() {
            membership.cut();
            let state =
                AckState { incarnation: self.incarnation, acked: membership.acked.to_wire() };
            let frame = Subscribe {
                log: membership.log,
                cursor: membership.track.head(),
                acked: Some(state),
            };
            membership.subscribing = Some(wire.queue(&frame.into()));
        }
        self.send_again(&mut wire).await?;
        Ok(wire)
    }

    async fn step(&mut self, wire: &mut Wire) -> Result<(), Over> {
        let chosen = self.random.below(self.memberships.len());
        let log = *self.memberships.keys().nth(chosen).expect("it has some");
        match self.random.below(20) {
            0..=9 => self.write(wire, log, 1),
            10..=11 => self.write(wire, log, 5),
            12 => self.repeat(wire, log),
            13..=15 => self.ack(wire, log),
            16 => {
                wire.queue(&Ping {}.into());
            }
            _ => {}
        }
        self.send_again(wire).await?;
        let longest = moment(&mut self.random, LISTEN_MAX);
        self.listen(wire, longest).await
    }

    // ---- writing

    /// Writes new entries: one as it is, several as a batch.
    fn write(&mut self, wire: &mut Wire, log: LogId, count: usize) {
        let membership = self.memberships.get_mut(&log).expect("one of its own");
        if membership.unanswered.len() + count > UNANSWERED_MAX || membership.is_stuck() {
            return;
        }
        for _ in 0..count {
            let length = self.random.below(BODY_MAX);
            let body = self.random.bytes(length);
            let addressed = self.random.one_in(4) && !membership.others.is_empty();
            let recipient = self.random.below(membership.others.len().max(1));
            let recipients =
                if addressed { vec![membership.others[recipient]] } else { Vec::new() };
            let entry = membership.sign(&self.identity, recipients, &body);
            let (digest, count) = (entry.signed.digest, entry.count);
            self.recorder.note(self.identity.key(), log, Event::Sent { digest, count });
        }
        let first = membership.unanswered.len() - count;
        send(wire, &mut membership.unanswered.make_contiguous()[first..]);
    }

    /// Sends again what was refused for now, and what was under way when the connection broke.
    async fn send_again(&mut self, wire: &mut Wire) -> Result<(), Over> {
        for membership in self.memberships.values_mut() {
            let due = membership.again_at.is_none_or(|at| at <= Instant::now());
            if due && membership.is_stuck() {
                membership.again_at = None;
                for entry in &mut membership.unanswered {
                    send(wire, std::slice::from_mut(entry));
                }
            }
        }
        Ok(wire.flush().await?)
    }

    /// Sends an entry that was answered long ago.
    fn repeat(&mut self, wire: &mut Wire, log: LogId) {
        let membership = &self.memberships[&log];
        if let Some(Unanswered { signed, .. }) = &membership.answered {
            let request = wire.queue(&Append { entry: signed.entry.clone() }.into());
            self.repeated.insert(request, (log, signed.digest));
        }
    }

    fn ack(&mut self, wire: &mut Wire, log: LogId) {
        let membership = self.memberships.get_mut(&log).expect("one of its own");
        let read = membership.track.position().seq;
        if self.random.one_in(2) {
            membership.acked.insert(1, read);
        } else if read > 0 {
            let first = 1 + self.random.below(read as usize) as u64;
            membership.acked.insert(first, (first + 3).min(read));
        }
        let state = AckState { incarnation: self.incarnation, acked: membership.acked.to_wire() };
        wire.queue(&Ack { log, state }.into());
    }

    // ---- reading

    /// Takes what comes for so long.
    async fn listen(&mut self, wire: &mut Wire, longest: Duration) -> Result<(), Over> {
        let until = Instant::now() + longest;
        while let Ok(received) =
            timeout(until.saturating_duration_since(Instant::now()), wire.receive()).await
        {
            let envelope = received?;
            let frame = envelope.frame.expect("a frame that is known");
            self.take(envelope.request, frame)?;
        }
        Ok(())
    }

    fn take(&mut self, request: u32, frame: RelayFrame) -> Result<(), Over> {
        match frame {
            RelayFrame::Entry(entry) => {
                let header = entry.header.decode().expect("a header");
                assert!(header.holds(entry.body.as_ref()), "a body is another one");
                self.read(entry.log, entry.seq, entry_digest(&entry.header))
            }
            RelayFrame::Stubs(stubs) => (stubs.seq..)
                .zip(stubs.stubs.iter())
                .try_for_each(|(seq, stub)| self.read(stubs.log, seq, stub.digest)),
            RelayFrame::Appended(appended) => {
                self.appended(request, &appended);
                Ok(())
            }
            RelayFrame::Subscribed(subscribed) => {
                let membership = self.memberships.get_mut(&subscribed.log).expect("its own");
                membership.track.accepted(subscribed.head.incarnation);
                let after = membership.track.position().seq;
                self.note(subscribed.log, Event::Subscribed { after });
                self.note(subscribed.log, Event::Told { head: subscribed.head });
                Ok(())
            }
            RelayFrame::Drained(drained) => {
                let membership = self.memberships.get_mut(&drained.log).expect("its own");
                membership.drained = membership.track.position().seq == drained.head.seq;
                self.note(drained.log, Event::Told { head: drained.head });
                Ok(())
            }
            RelayFrame::Heartbeat(beat) => {
                for summary in beat.heads.iter() {
                    self.note(summary.log, Event::Told { head: summary.head });
                }
                Ok(())
            }
            RelayFrame::Error(error) => self.refused(request, &error),
            RelayFrame::Draining(_) | RelayFrame::Membership(_) => Ok(()),
            other => panic!("a device was told {}", other.name()),
        }
    }

    fn note(&self, log: LogId, event: Event) {
        self.recorder.note(self.identity.key(), log, event);
    }

    fn read(&mut self, log: LogId, seq: u64, digest: Digest) -> Result<(), Over> {
        self.note(log, Event::Read { seq, digest });
        let membership = self.memberships.get_mut(&log).expect("its own");
        if membership.track.step(seq, false) != Step::Next {
            // The judge objects; the device begins anew where it was.
            return Err(Over);
        }
        membership.track.advance(digest);
        membership.order.push(digest);
        Ok(())
    }

    fn appended(&mut self, request: u32, appended: &Appended) {
        let log = appended.log;
        self.note(log, Event::Told { head: appended.head });
        if let Some((log, digest)) = self.repeated.remove(&request) {
            assert!(appended.duplicate, "an answered entry was appended again");
            return self.note(log, Event::Appended { digest, seq: appended.seq });
        }
        let membership = self.memberships.get_mut(&log).expect("its own");
        let mut seq = appended.seq;
        let mut answered = Vec::new();
        membership.unanswered.retain(|entry| {
            let is_answered = entry.request == Some(request);
            if is_answered {
                answered.push((entry.signed.digest, seq));
                seq += 1;
                membership.answered = Some(Unanswered {
                    signed: entry.signed.clone(),
                    count: entry.count,
                    request: None,
                });
            }
            !is_answered
        });
        for (digest, seq) in answered {
            self.note(log, Event::Appended { digest, seq });
        }
    }

    fn refused(&mut self, request: u32, error: &Error) -> Result<(), Over> {
        let passing = matches!(
            error.code,
            ErrorCode::Unavailable
                | ErrorCode::OutOfOrder
                | ErrorCode::TooManyInFlight
                | ErrorCode::Draining
        );
        assert!(passing, "a request was refused: {error:?}");
        if self.memberships.values().any(|it| it.subscribing == Some(request)) {
            // It cannot be read now: back in a moment.
            return Err(Over);
        }
        self.repeated.remove(&request);
        let pause = Duration::from_millis(error.retry_after_ms.unwrap_or(50)).min(PAUSE_MAX);
        for membership in self.memberships.values_mut() {
            for entry in &mut membership.unanswered {
                if entry.request == Some(request) {
                    entry.request = None;
                    membership.again_at = Some(Instant::now() + pause);
                }
            }
        }
        Ok(())
    }
}

/// Sends entries in one request.
fn send(wire: &mut Wire, entries: &mut [Unanswered]) {
    let frame: ClientFrame = match entries {
        [entry] => Append { entry: entry.signed.entry.clone() }.into(),
        _ => {
            let entries = entries.iter().map(|entry| entry.signed.entry.clone()).collect();
            AppendBatch { entries: Bounded::new(entries).expect("few") }.into()
        }
    };
    let request = wire.queue(&frame);
    for entry in entries {
        entry.request = Some(request);
    }
}
