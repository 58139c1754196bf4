//! The devices of one vault that write, rotate keys, revoke each other and are cut off, and write down
//! everything for the judge ([`super::history`]).
//!
//! A device here keeps what every device must keep over a crash of the relay: its entries that were
//! not answered, signed, in order, and its cursor. What it is told is refused for now it sends again,
//! byte for byte; a rotation that came too late it makes anew.

use std::collections::VecDeque;
use std::time::Duration;

use sealwire_client::address::RelayUrl;
use sealwire_client::chain::{Step, Track};
use sealwire_client::entry::{Outline, Signed, digest_of};
use sealwire_client::identity::Identity;
use sealwire_client::numbering::Mark;
use sealwire_client::wire::{self, Options, Wire, WireError};
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::digest::native_log_id;
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::frame::{Append, AppendBatch, Error, Subscribe};
use sealwire_protocol::ids::{Instance, Scope};
use sealwire_protocol::keys::KeyBody;
use sealwire_protocol::{
    ClientFrame, Control, DeviceKey, Digest, Head, Kind, LogId, LogType, RelayFrame,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::crowd::{Recorder, Walks, walk_to_the_end};
use super::history::{Event, History};
use super::random::Random;

/// Entries that may be unanswered.
const UNANSWERED_MAX: usize = 12;

/// Longest pause before a device that was cut off is back.
const PAUSE_MAX: Duration = Duration::from_millis(150);

/// Longest that a device listens before it does something itself.
const LISTEN_MAX: Duration = Duration::from_millis(10);

/// An entry that is not answered yet.
struct Unanswered {
    signed: Signed,
    kind: Kind,
    revokes: Option<DeviceKey>,
    /// The batch that it was first sent in: it is sent again in the same cut.
    cut: Option<u32>,
    request: Option<u32>,
}

/// One device.
struct Walker {
    identity: Identity,
    options: Options,
    relay: RelayUrl,
    log: LogId,
    track: Track,
    newest: Mark,
    unanswered: VecDeque<Unanswered>,
    again_at: Option<Instant>,
    subscribing: Option<u32>,
    last_cut: u32,
    /// Whether a rotation is to be made, with what has been read by then.
    rotates: bool,
    /// Whom it revokes, once it is asked to.
    target: Option<DeviceKey>,
    revoked: bool,
    /// The head that a refused rotation had not seen: made anew before that is read, it would be too
    /// late again.
    behind: u64,
    /// How often the rotation under way was too late, and the most of any.
    late: u32,
    late_max: u32,
    rotations: u32,
    order: Vec<Digest>,
    drained: bool,
    recorder: Recorder,
    random: Random,
}

/// The connection is over.
struct Over;

impl From<WireError> for Over {
    fn from(error: WireError) -> Self {
        let expected = matches!(error, WireError::Closed(_) | WireError::Io(_));
        assert!(expected, "a connection ended by {error:?}");
        Self
    }
}

/// What a household did.
pub(crate) struct Outcome {
    pub(crate) history: History,
    pub(crate) rotations: u32,
    /// The most often that one rotation came too late.
    pub(crate) late_max: u32,
}

/// The devices of one vault.
pub(crate) struct Household {
    walkers: Vec<Walker>,
    recorder: Recorder,
}

impl Household {
    /// The first device founds the vault and enrols the others.
    pub(crate) async fn gather(relay: RelayUrl, devices: u8, seed: u64) -> Self {
        let recorder = Recorder::default();
        let mut random = Random::new(seed);
        let mut walkers: Vec<Walker> = (0..devices)
            .map(|number| Walker::new(number, &relay, recorder.clone(), random.next()))
            .collect();
        let found = Control::Found { log_type: LogType::Vault, random: [9; 32], join_key: None };
        let signed = Outline::first().sign(&walkers[0].identity, &found.encode()).expect("short");
        let log = native_log_id(&signed.entry.header);
        for walker in &mut walkers {
            walker.log = log;
            walker.track = Track::new(log);
        }
        walkers[0].newest = Mark { count: 1, digest: signed.digest };
        walkers[0].push(signed, Kind::Control, None);
        for number in 1..walkers.len() {
            let author = walkers[0].identity.key();
            let new = &walkers[number].identity;
            let (device, signature) = (new.key(), new.consent(log, author));
            walkers[0].write(Kind::Control, &Control::Enrol { device, signature }.encode(), None);
        }
        walkers[0].settle().await;
        Self { walkers, recorder }
    }

    /// Lets everybody write and read, and after each of `revocations` one device revoke another, while
    /// `beside` happens. Then everything is sent and read to its end.
    pub(crate) async fn run(
        self,
        revocations: &[Duration],
        beside: impl Future<Output = ()>,
    ) -> Outcome {
        let (stop, stopped) = watch::channel(false);
        let count = self.walkers.len();
        let keys: Vec<DeviceKey> = self.walkers.iter().map(|it| it.identity.key()).collect();
        let walking: Vec<_> = self
            .walkers
            .into_iter()
            .enumerate()
            .map(|(number, mut walker)| {
                let stopped = stopped.clone();
                // The first revoke the last.
                let after = revocations.get(number).copied();
                let target = keys[count - 1 - number];
                tokio::spawn(async move {
                    walker.walk(stopped, after.map(|after| (after, target))).await;
                    walker
                })
            })
            .collect();
        let walkers = walk_to_the_end(walking, &stop, beside).await;
        Outcome {
            history: self.recorder.take(),
            rotations: walkers.iter().map(|walker| walker.rotations).sum(),
            late_max: walkers.iter().map(|walker| walker.late_max).max().unwrap_or(0),
        }
    }
}

impl Walks for Walker {
    /// Sends what is not answered until all of it is.
    async fn settle(&mut self) {
        while self.is_unsettled() {
            let session = async {
                let mut wire = self.connect().await?;
                while self.is_unsettled() {
                    self.rotate_if_due();
                    self.send_again(&mut wire).await?;
                    self.listen(&mut wire, LISTEN_MAX).await?;
                }
                Ok::<(), Over>(())
            };
            let _ = session.await;
        }
    }

    /// Reads the vault from its beginning, and notes what is there. Who was revoked cannot.
    async fn read_all(&mut self) {
        if self.revoked {
            return;
        }
        self.track = Track::new(self.log);
        self.order.clear();
        self.drained = false;
        let session = async {
            let mut wire = self.connect().await?;
            while !self.drained && !self.revoked {
                self.listen(&mut wire, LISTEN_MAX).await?;
            }
            Ok::<(), Over>(())
        };
        assert!(session.await.is_ok(), "the last connection was cut");
        if !self.revoked {
            self.note(Event::End { order: self.order.clone() });
        }
    }
}

impl Walker {
    fn new(number: u8, relay: &RelayUrl, recorder: Recorder, seed: u64) -> Self {
        let mut identity = [number; 32];
        identity[0] = 0x5a;
        let log = LogId::ZERO;
        Self {
            identity: Identity::from_seed(&identity),
            options: Options { instance: Instance([number; 16]), ..Options::default() },
            relay: relay.clone(),
            log,
            track: Track::new(log),
            newest: Mark::NONE,
            unanswered: VecDeque::new(),
            again_at: None,
            subscribing: None,
            last_cut: 0,
            rotates: false,
            target: None,
            revoked: false,
            behind: 0,
            late: 0,
            late_max: 0,
            rotations: 0,
            order: Vec::new(),
            drained: false,
            recorder,
            random: Random::new(seed),
        }
    }

    async fn walk(
        &mut self,
        stopped: watch::Receiver<bool>,
        revocation: Option<(Duration, DeviceKey)>,
    ) {
        let begun = Instant::now();
        let mut revocation = revocation;
        while !*stopped.borrow() && !self.revoked {
            if let Some((after, target)) = revocation
                && begun.elapsed() >= after
            {
                self.target = Some(target);
                revocation = None;
            }
            let steps = 20 + self.random.below(300);
            let session = async {
                let mut wire = self.connect().await?;
                for _ in 0..steps {
                    if *stopped.borrow() || self.revoked {
                        break;
                    }
                    self.step(&mut wire).await?;
                }
                Ok::<(), Over>(())
            };
            // However it ended, the connection was dropped without a word.
            let _ = session.await;
            let pause = PAUSE_MAX.mul_f64(self.random.below(1000) as f64 / 1000.0);
            sleep(pause).await;
        }
    }

    fn is_unsettled(&self) -> bool {
        !self.revoked && (self.rotates || !self.unanswered.is_empty())
    }

    /// A rotation is conditional: it is made when nothing else is under way, and nothing is behind it
    /// that would have to be numbered anew.
    fn rotate_if_due(&mut self) {
        let has_read = self.track.position().seq >= self.behind;
        if self.rotates && has_read && self.unanswered.is_empty() {
            self.rotates = false;
            self.rotate();
        }
    }

    fn note(&self, event: Event) {
        self.recorder.note(self.identity.key(), self.log, event);
    }

    // ---- writing

    fn outline(&self, kind: Kind) -> Outline {
        Outline {
            log: self.log,
            count: self.newest.count + 1,
            prev: self.newest.digest,
            kind,
            recipients: Vec::new(),
            seen: self.track.head().unwrap_or(Head::NONE),
        }
    }

    fn write(&mut self, kind: Kind, body: &[u8], revokes: Option<DeviceKey>) {
        let signed = self.outline(kind).sign(&self.identity, body).expect("short");
        self.newest = Mark { count: self.newest.count + 1, digest: signed.digest };
        self.push(signed, kind, revokes);
    }

    fn push(&mut self, signed: Signed, kind: Kind, revokes: Option<DeviceKey>) {
        self.unanswered.push_back(Unanswered { signed, kind, revokes, cut: None, request: None });
    }

    fn rotate(&mut self) {
        let body = KeyBody { scope: Scope([1; 16]), epoch: 1, keys: Bounded::default() };
        self.write(Kind::Key, &body.encode().expect("small"), None);
    }

    async fn connect(&mut self) -> Result<Wire, Over> {
        self.again_at = None;
        for entry in &mut self.unanswered {
            entry.request = None;
        }
        let connected = wire::connect(&self.relay, &self.identity, &self.options).await;
        let Ok((mut wire, session)) = connected else {
            sleep(PAUSE_MAX).await;
            return Err(Over);
        };
        let known = session.welcome.logs.iter().any(|summary| summary.log == self.log);
        if known {
            let frame = Subscribe { log: self.log, cursor: self.track.head(), acked: None };
            self.subscribing = Some(wire.queue(&frame.into()));
        }
        self.send_again(&mut wire).await?;
        Ok(wire)
    }

    async fn step(&mut self, wire: &mut Wire) -> Result<(), Over> {
        self.rotate_if_due();
        let rotates = self.unanswered.iter().any(|entry| entry.kind == Kind::Key);
        if !rotates && let Some(target) = self.target.take() {
            let revoke = Control::Revoke { device: target, join_key: None };
            self.write(Kind::Control, &revoke.encode(), Some(target));
        } else if !rotates && !self.rotates && self.unanswered.len() < UNANSWERED_MAX {
            match self.random.below(16) {
                0 => self.rotates = true,
                1..=7 => self.changeset(),
                8..=9 => (0..5).for_each(|_| self.changeset()),
                _ => {}
            }
        }
        self.send_again(wire).await?;
        self.listen(wire, LISTEN_MAX).await
    }

    fn changeset(&mut self) {
        let length = self.random.below(1500);
        let body = self.random.bytes(length);
        self.write(Kind::Quiet, &body, None);
    }

    /// Sends what waits: changesets that stand together as a batch, everything else alone.
    async fn send_again(&mut self, wire: &mut Wire) -> Result<(), Over> {
        if self.again_at.is_some_and(|at| at > Instant::now()) {
            return Ok(());
        }
        // What is behind something that is under way, and was refused for now, waits for it.
        if self.unanswered.front().is_some_and(|entry| entry.request.is_none())
            && self.unanswered.iter().any(|entry| entry.request.is_some())
        {
            return Ok(());
        }
        self.again_at = None;
        let first = self.unanswered.iter().position(|entry| entry.request.is_none());
        let mut at = first.unwrap_or(self.unanswered.len());
        while at < self.unanswered.len() {
            let cut = self.unanswered[at].cut;
            let together = |entry: &Unanswered| match cut {
                Some(_) => entry.cut == cut,
                None => entry.kind == Kind::Quiet && entry.cut.is_none(),
            };
            let run = self.unanswered.iter().skip(at).take_while(|entry| together(entry)).count();
            self.last_cut += 1;
            let entries: Vec<_> = self
                .unanswered
                .iter()
                .skip(at)
                .take(run.max(1))
                .map(|entry| entry.signed.entry.clone())
                .collect();
            let sent = entries.len();
            let frame: ClientFrame = match <[_; 1]>::try_from(entries) {
                Ok([entry]) => Append { entry }.into(),
                Err(entries) => AppendBatch { entries: Bounded::new(entries).expect("few") }.into(),
            };
            let request = wire.queue(&frame);
            for entry in self.unanswered.iter_mut().skip(at).take(sent) {
                entry.request = Some(request);
                entry.cut.get_or_insert(self.last_cut);
            }
            for entry in self.unanswered.iter().skip(at).take(sent) {
                let count = entry.signed.entry.header.decode().expect("a header").count;
                self.note(Event::Sent { digest: entry.signed.digest, count });
            }
            at += sent;
        }
        Ok(wire.flush().await?)
    }

    // ---- reading

    async fn listen(&mut self, wire: &mut Wire, longest: Duration) -> Result<(), Over> {
        let until = Instant::now() + longest;
        while let Ok(received) = tokio::time::timeout_at(until, wire.receive()).await {
            let envelope = received?;
            self.take(envelope.request, envelope.frame.expect("a known frame"))?;
        }
        Ok(())
    }

    fn take(&mut self, request: u32, frame: RelayFrame) -> Result<(), Over> {
        match frame {
            RelayFrame::Subscribed(subscribed) => {
                self.subscribing = None;
                self.track.accepted(subscribed.head.incarnation);
                self.note(Event::Subscribed { after: self.track.position().seq });
                self.note(Event::Told { head: subscribed.head });
            }
            RelayFrame::Entry(entry) => {
                let digest = digest_of(&entry.header);
                assert_eq!(self.track.step(entry.seq, false), Step::Next, "seq {}", entry.seq);
                self.track.advance(digest);
                self.order.push(digest);
                self.note(Event::Read { seq: entry.seq, digest });
            }
            RelayFrame::Drained(drained) => {
                self.drained = true;
                self.note(Event::Told { head: drained.head });
            }
            RelayFrame::Appended(appended) => {
                self.note(Event::Told { head: appended.head });
                self.appended(request, appended.seq);
            }
            RelayFrame::Error(error) => return self.refused(request, &error),
            RelayFrame::Membership(membership) => {
                let revoked =
                    membership.state == sealwire_protocol::frame::MembershipState::Revoked;
                self.revoked |= revoked;
            }
            RelayFrame::Stubs(_) | RelayFrame::Floor(_) => panic!("a vault has no stubs"),
            _ => {}
        }
        Ok(())
    }

    fn appended(&mut self, request: u32, first: u64) {
        let all = std::mem::take(&mut self.unanswered);
        // One before it may have been refused for now, though it was appended as well.
        let (answered, rest): (VecDeque<_>, _) =
            all.into_iter().partition(|entry| entry.request == Some(request));
        self.unanswered = rest;
        for (entry, seq) in answered.into_iter().zip(first..) {
            self.note(Event::Appended { digest: entry.signed.digest, seq });
            if let Some(device) = entry.revokes {
                self.note(Event::Revoked { device, seq });
            }
            if entry.kind == Kind::Key {
                self.rotations += 1;
                self.late = 0;
            }
        }
    }

    fn refused(&mut self, request: u32, error: &Error) -> Result<(), Over> {
        if self.subscribing == Some(request) {
            return Err(Over);
        }
        match error.code {
            ErrorCode::Revoked => self.revoked = true,
            ErrorCode::Stale => {
                // It stands alone and last: its number is free again.
                let Some(last) = self.unanswered.pop_back() else { return Ok(()) };
                assert_eq!((last.kind, last.request), (Kind::Key, Some(request)));
                let header = last.signed.entry.header.decode().expect("a header");
                self.newest = Mark { count: header.count - 1, digest: header.prev };
                self.behind = error.head.map_or(0, |head| head.seq);
                self.late += 1;
                self.late_max = self.late_max.max(self.late);
                self.rotates = true;
            }
            ErrorCode::Unavailable
            | ErrorCode::OutOfOrder
            | ErrorCode::TooManyInFlight
            | ErrorCode::Draining => {
                let pause = Duration::from_millis(error.retry_after_ms.unwrap_or(50));
                self.again_at = Some(Instant::now() + pause.min(PAUSE_MAX));
                for entry in &mut self.unanswered {
                    if entry.request == Some(request) {
                        entry.request = None;
                    }
                }
            }
            _ => panic!("a request was refused: {error:?}"),
        }
        Ok(())
    }
}
