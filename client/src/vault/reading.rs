//! Pulling: what is new is read, verified and opened.
//!
//! What was read is the vault's until it is given: a connection that breaks, a future that is dropped, or
//! a rotation that reads on loses none of it.

use std::collections::BTreeSet;
use std::time::Duration;

use sealwire_protocol::ack::AckWire;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::codec::Envelope;
use sealwire_protocol::frame::{
    Ack, AckState, Entry, Floor, SnapshotSummary, Subscribe, Unsubscribe,
};
use sealwire_protocol::ids::Scope;
use sealwire_protocol::keys::KeyBody;
use sealwire_protocol::{
    ClientFrame, Control, DeviceKey, Digest, Head, Header, Kind, LogType, RelayFrame,
};
use tokio::time::{Instant, timeout_at};

use super::waiting::Rereading;
use super::{Vault, VaultError};
use crate::chain::{Step, Track};
use crate::entry::{Judged, Rejection, digest_of, judge};
use crate::numbering::Mark;
use crate::seal::{self, Place};
use crate::sync::clock::now_ms;
use crate::wire::{Step as WireStep, Wire, WireError};

/// A changeset of a device, opened.
#[derive(Clone, PartialEq, Eq)]
pub struct Changeset {
    /// Its position.
    pub seq: u64,
    /// When the relay ordered it, in milliseconds since the epoch, by the relay's clock.
    pub at: u64,
    /// Whose it is.
    pub author: DeviceKey,
    /// What the app wrote.
    pub payload: Vec<u8>,
}

/// What was read.
#[derive(Default)]
pub struct Pulled {
    /// Changesets, in order, own ones among them; those that waited for a key that has come are older
    /// than what was given before.
    pub changesets: Vec<Changeset>,
    /// Changesets that this device cannot open: their seqs and epochs. They come with the pull that
    /// brings their key.
    pub sealed: Vec<(u64, u32)>,
    /// Entries that are in the vault and not believed. Those that came otherwise than they were written
    /// ([`Rejection::is_spoiled`]) are read again by later pulls, and given when they are whole.
    pub rejected: Vec<(u64, Rejection)>,
    /// Of those that are sealed, how many were too much to keep in memory. They are read again by the
    /// pull that brings their key.
    pub forgotten: usize,
    /// How many bytes of frames with entries were received.
    pub bytes: u64,
    /// The relay has let go of changesets up to a head that this device had not read: what they were
    /// is in the snapshot, and the changesets here go on from that head.
    pub floor: Option<Floor>,
    /// The first entry whose author had seen another history than this device: the relay shows its
    /// readers two. Tell a person.
    pub forked: Option<u64>,
}

/// Longest pause between two frames of a reading: the relay sends them as fast as it can.
const FRAME_DEADLINE: Duration = Duration::from_secs(30);

/// A changeset that was checked and not opened.
#[derive(Clone)]
pub(crate) struct Arrived {
    pub(crate) seq: u64,
    pub(crate) author: DeviceKey,
    pub(crate) count: u64,
    pub(crate) digest: Digest,
    /// The additional data of its boxes.
    pub(crate) aad: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

/// A reading that is under way.
pub(crate) struct Reading {
    subscribing: u32,
    leaving: Option<u32>,
    /// What was read before lies below the floor: the snapshot has what is missing.
    pub(crate) floor: Option<SnapshotSummary>,
}

impl Vault {
    /// Reads everything that is new. A changeset is given once.
    ///
    /// # Errors
    /// A [`VaultError`]. What was read before the error is given by the next pull.
    pub async fn pull(&mut self, wire: &mut Wire) -> Result<Pulled, VaultError> {
        self.go_back_to_spoiled(now_ms());
        self.read_on(wire).await?;
        Ok(self.take_read())
    }

    /// Tells the relay that everything that was given so far is kept here, so that this device is not
    /// woken for it. It deletes nothing.
    ///
    /// # Errors
    /// A [`VaultError`] of the connection.
    pub async fn acknowledge(&self, wire: &mut Wire) -> Result<(), VaultError> {
        let Some(Head { incarnation, seq, .. }) = self.head() else {
            return Ok(());
        };
        let acked = AckWire { floor: seq, ranges: Bounded::default() };
        let state = AckState { incarnation, acked };
        wire.send(&Ack { log: self.log, state }.into()).await?;
        Ok(())
    }

    /// Reads everything that is new, for whoever pulls next.
    pub(super) async fn read_on(&mut self, wire: &mut Wire) -> Result<(), VaultError> {
        let frame = Subscribe { log: self.log, cursor: self.head(), acked: None };
        self.read(wire, frame.into()).await
    }

    /// Subscribes as `frame` says, reads to the end, unsubscribes, and opens what waited.
    pub(super) async fn read(
        &mut self,
        wire: &mut Wire,
        frame: ClientFrame,
    ) -> Result<(), VaultError> {
        if self.arrived.is_some() {
            return self.read_to_the_end(wire, frame).await;
        }
        if self.settled.is_none() {
            let mut settled = self.state();
            settled.set_again(self.waiting.before());
            self.settled = Some(settled);
        }
        self.read_to_the_end(wire, frame).await?;
        self.open_waiting(wire).await
    }

    pub(super) async fn read_to_the_end(
        &mut self,
        wire: &mut Wire,
        frame: ClientFrame,
    ) -> Result<(), VaultError> {
        let mut reading = self.begin(wire, &frame);
        while !self.read_some(wire, &mut reading, usize::MAX).await? {}
        Ok(())
    }

    /// What was read and not yet given.
    pub(crate) fn take_read(&mut self) -> Pulled {
        self.settled = None;
        std::mem::take(&mut self.unread)
    }

    /// Subscribes as `frame` says.
    pub(crate) fn begin(&self, wire: &mut Wire, frame: &ClientFrame) -> Reading {
        Reading { subscribing: wire.queue(frame), leaving: None, floor: None }
    }

    /// Reads until so many bytes of entries have come, or to the end: says which.
    #[expect(clippy::wildcard_enum_match_arm, reason = "most frames are not about this reading")]
    pub(crate) async fn read_some(
        &mut self,
        wire: &mut Wire,
        reading: &mut Reading,
        bytes: usize,
    ) -> Result<bool, VaultError> {
        let until = self.unread.bytes.saturating_add(bytes as u64);
        let mut deadline = Instant::now() + FRAME_DEADLINE;
        while self.unread.bytes < until {
            let received = timeout_at(deadline, wire.receive()).await;
            let received = received.map_err(|_| WireError::Timeout(WireStep::Answer))?;
            let Envelope { request, frame } = received?;
            match frame.map_err(WireError::Frame)? {
                RelayFrame::Subscribed(subscribed) if request == reading.subscribing => {
                    self.track.accepted(subscribed.head.incarnation);
                }
                RelayFrame::Floor(floor) if floor.log == self.log => {
                    if let Some(snapshot) = self.begin_floor(floor)? {
                        reading.floor = Some(snapshot);
                    }
                }
                RelayFrame::Entry(entry) if entry.log == self.log => {
                    self.unread.bytes += entry.body.len() as u64 + HEADERS_BYTES;
                    self.take(&entry)?;
                }
                RelayFrame::Drained(drained) if drained.log == self.log => {
                    self.track.drained(drained.head.seq);
                    self.check_head(&drained.head)?;
                    if self.expected.is_some() {
                        return Err(VaultError::Withheld);
                    }
                    let frame = Unsubscribe { log: self.log }.into();
                    reading.leaving.get_or_insert_with(|| wire.queue(&frame));
                }
                RelayFrame::Done(_) if Some(request) == reading.leaving => {
                    return Ok(true);
                }
                RelayFrame::Error(error)
                    if request == reading.subscribing || error.log == Some(self.log) =>
                {
                    return Err(WireError::Refused(Box::new(error.failure())).into());
                }
                // Heartbeats, memberships, markers, and what belongs to others: they are no progress.
                _ => continue,
            }
            deadline = Instant::now() + FRAME_DEADLINE;
        }
        Ok(false)
    }

    /// From now on changesets are kept as they come, for [`Vault::take_arrived`].
    pub(crate) fn keep_arrived(&mut self) {
        self.arrived.get_or_insert_default();
    }

    /// From now on changesets are not kept: it is only noted under which scopes this device has written.
    pub(crate) fn note_own_scopes(&mut self) {
        self.noted.get_or_insert_default();
    }

    fn note(&mut self, scopes: impl IntoIterator<Item = Scope>) {
        let first = self.scope();
        if let Some(noted) = &mut self.noted {
            noted.extend(scopes.into_iter().filter(|scope| *scope != first));
        }
    }

    /// The scope that is its person's own: the one under which this device has written, or which it has
    /// rotated. That it was given a key proves nothing: any device of the vault can make a scope and
    /// give it to others. None if there is no such scope, or are several.
    pub(crate) fn private_scope(&self) -> Option<Scope> {
        let held = |scope: &&Scope| self.is_held(**scope) && self.holds_key(**scope);
        let mut own = self.noted.iter().flatten().filter(held);
        let first = own.next().copied();
        first.filter(|_| own.next().is_none())
    }

    /// Whether all that this device has written can be handed over, as far as was noted: it has written
    /// under no scope whose rotations are not believed. Only what it did itself counts: others may give it
    /// whatever they like.
    pub(super) fn check_held(&self) -> Result<(), VaultError> {
        let held = self.noted.iter().flatten().all(|scope| self.is_held(*scope));
        if held { Ok(()) } else { Err(VaultError::OldScope) }
    }

    fn is_held(&self, scope: Scope) -> bool {
        self.scopes.holds(scope, self.device.key())
    }

    /// As what the log was founded; none if its first entry was not read.
    pub(crate) fn founded_as(&self) -> Option<LogType> {
        self.founded_as
    }

    /// What has arrived since the last time.
    pub(crate) fn take_arrived(&mut self) -> Vec<Arrived> {
        self.arrived.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Reads the vault anew from its beginning: the relay's history has changed. Keys stay.
    pub(crate) fn start_over(&mut self) {
        self.track = Track::new(self.log);
        self.senders.clear();
        self.loose.clear();
        self.devices = super::Devices::new();
        self.scopes = super::Scopes::default();
        self.epochs.clear();
        self.chains = super::Chains::default();
        self.expected = None;
        self.unproven = super::Unproven::default();
        self.spoiled = None;
        self.healing = None;
    }

    /// The relay has let go of what is at or below a floor. Gives the snapshot that holds what was not
    /// read of it; none if everything was.
    pub(super) fn begin_floor(
        &mut self,
        floor: Floor,
    ) -> Result<Option<SnapshotSummary>, VaultError> {
        if floor.head.seq > self.track.position().seq {
            self.expect_snapshot(&floor)?;
        }
        self.track.begin_floor(&floor.head);
        if !self.track.has_floor() {
            return Ok(None);
        }
        let snapshot = floor.snapshot;
        self.unread.floor = Some(floor);
        self.loose.extend(self.senders.keys().copied());
        Ok(snapshot)
    }

    /// What is gone must be in a snapshot, whose head lies on the chain that is read from there.
    fn expect_snapshot(&mut self, floor: &Floor) -> Result<(), VaultError> {
        let head = floor.snapshot.map(|snapshot| snapshot.head);
        let head = head.filter(|head| head.seq >= floor.head.seq).ok_or(VaultError::Withheld)?;
        if head.seq == floor.head.seq && head.chain != floor.head.chain {
            return Err(VaultError::Forked);
        }
        self.expected = (head.seq > floor.head.seq).then_some(head);
        Ok(())
    }

    /// Compares a head that the relay names with what was read.
    pub(super) fn check_head(&self, head: &Head) -> Result<(), VaultError> {
        let position = self.track.position();
        let same = position.seq == head.seq && position.chain == head.chain;
        if same { Ok(()) } else { Err(VaultError::Forked) }
    }

    pub(super) fn take(&mut self, entry: &Entry) -> Result<(), VaultError> {
        // Below a floor, control entries and keys are kept.
        let kept = entry
            .header
            .decode()
            .is_ok_and(|header| matches!(header.kind, Kind::Control | Kind::Key));
        let step = self.track.step(entry.seq, kept);
        match step {
            Step::Known => return Ok(()),
            Step::Gap => return Err(VaultError::Forked),
            Step::Next => self.track.drained(entry.seq - 1),
            Step::Below => {}
        }
        match self.believe(entry, step == Step::Below) {
            Ok(()) => self.note_believed(entry.seq),
            Err(rejection) => self.note_rejected(entry, step, rejection),
        }
        if step == Step::Below {
            self.track.take_below(entry.seq);
            return Ok(());
        }
        let position = self.track.advance(digest_of(&entry.header));
        self.chains.push(position);
        self.heal_up_to(position.seq);
        if let Some(expected) = self.expected.take_if(|head| head.seq <= position.seq)
            && expected.chain != position.chain
        {
            return Err(VaultError::Forked);
        }
        let was = self.rereading.as_ref().map(Rereading::until);
        match was.filter(|was| was.seq == position.seq) {
            Some(was) => self.check_head(&was),
            None => Ok(()),
        }
    }

    fn believe(&mut self, entry: &Entry, below: bool) -> Result<(), Rejection> {
        let judged = judge(self.log, entry)?;
        let header = &judged.header;
        let founding = entry.seq == 1;
        if !founding && !self.devices.has(header.sender) {
            return Err(Rejection::NotAMember);
        }
        self.check_order(header, below)?;
        if self.chains.differs(&self.track, entry.seq, &header.seen) {
            self.unread.forked.get_or_insert(entry.seq);
        }
        // Whatever it says, it is its author's, and the next one follows it.
        let believed = self.apply(entry, &judged);
        let mark = Mark { count: header.count, digest: judged.digest };
        if header.sender == self.device.key() && mark.count > self.own.count {
            self.own = mark;
        }
        // An entry that founds nothing has no author yet.
        if founding && believed.is_err() {
            return believed;
        }
        self.senders.insert(header.sender, mark);
        if below {
            self.loose.insert(header.sender);
        } else {
            self.loose.remove(&header.sender);
        }
        believed
    }

    /// Takes what an entry says.
    fn apply(&mut self, entry: &Entry, judged: &Judged) -> Result<(), Rejection> {
        let header = &judged.header;
        let founding = entry.seq == 1;
        match header.kind {
            Kind::Control => {
                let control =
                    Control::decode(entry.body.as_ref()).map_err(|_| Rejection::Control)?;
                if let Control::Found { log_type, .. } = &control
                    && founding
                {
                    self.founded_as = Some(*log_type);
                }
                self.devices
                    .apply(self.log, entry.seq, header, &control)
                    .map_err(|_| Rejection::Control)?;
                match control {
                    Control::Enrol { device, .. } if device == self.device.key() => {
                        self.enroller = Some(header.sender);
                    }
                    Control::Leave => self.scopes.removed(header.sender),
                    Control::Revoke { device, .. } => self.scopes.removed(device),
                    Control::Found { .. }
                    | Control::Enrol { .. }
                    | Control::Snapshot { .. }
                    | Control::SnapshotOpened { .. }
                    | Control::Join { .. }
                    | Control::JoinKey { .. }
                    | Control::TotalsFound { .. }
                    | Control::TotalsJoin { .. }
                    | Control::TotalsLeave { .. } => {}
                }
            }
            Kind::Key => self.take_keys(entry, header)?,
            Kind::Ring | Kind::Quiet | Kind::Bulk => self.take_changeset(entry, judged),
            Kind::Totals => return Err(Rejection::Header),
        }
        Ok(())
    }

    /// Counts rise by one and name the entry before, but where entries are gone or were not believed.
    fn check_order(&self, header: &Header, below: bool) -> Result<(), Rejection> {
        let Some(last) = self.senders.get(&header.sender) else {
            return Ok(());
        };
        let follows = header.count == last.count + 1 && header.prev == last.digest;
        // Of a sender whose newest known entry lies below the floor, others are missing.
        let may_skip = below || self.loose.contains(&header.sender);
        let vouched = self.unproven.is_vouched_for(header, last.count);
        let later = vouched || (may_skip && header.count > last.count);
        if follows || later { Ok(()) } else { Err(Rejection::OutOfOrder) }
    }

    fn take_keys(&mut self, entry: &Entry, header: &Header) -> Result<(), Rejection> {
        let body = KeyBody::decode(entry.body.as_ref()).map_err(|_| Rejection::Keys)?;
        let rotation = entry.recipients.is_empty();
        let first = body.scope == self.scope();
        // A rotation makes the next epoch, and only what was made is delivered: whoever could name a
        // later one would have everybody seal under a key of its own.
        let newest = self.newest_epoch(body.scope);
        let next = newest.checked_add(1) == Some(body.epoch);
        let possible = if rotation { next } else { (1..=newest).contains(&body.epoch) };
        if rotation {
            let counts = first && next;
            self.devices.rotated(entry.seq, header, counts).map_err(|_| Rejection::Stale)?;
        }
        if !possible {
            return Err(Rejection::Keys);
        }
        if rotation && header.sender == self.device.key() {
            self.note([body.scope]);
        }
        if !first && !self.scopes.given(self.log, entry.seq, header.sender, &body, rotation) {
            return Err(Rejection::Keys);
        }
        if rotation {
            self.epochs.insert(body.scope, body.epoch);
        }
        let place = Place { log: self.log, sender: header.sender, aad: entry.header.aad() };
        let device = self.device.clone();
        let trusted = rotation || self.enroller == Some(header.sender);
        self.keys.take(&device, &place, &body, trusted);
        Ok(())
    }

    fn take_changeset(&mut self, entry: &Entry, judged: &Judged) {
        let header = &judged.header;
        if self.noted.is_some() {
            if header.sender == self.device.key() {
                self.note(scopes_of(entry.body.as_ref()));
            }
            return;
        }
        if self.was_given(entry.seq) {
            return;
        }
        let Some(arrived) = &mut self.arrived else {
            return self.open_changeset(entry, header.sender);
        };
        arrived.push(Arrived {
            seq: entry.seq,
            author: header.sender,
            count: header.count,
            digest: judged.digest,
            aad: entry.header.aad().to_vec(),
            body: entry.body.as_ref().to_vec(),
        });
    }
}

/// The scopes of the boxes of a changeset.
fn scopes_of(body: &[u8]) -> BTreeSet<Scope> {
    let boxes: Vec<serde_bytes::ByteBuf> = rmp_serde::from_slice(body).unwrap_or_default();
    boxes.iter().filter_map(|sealed| Some(seal::key_name(sealed).ok()?.scope)).collect()
}

/// What an entry's frame has beside its body, in bytes: header, signature, names of fields.
const HEADERS_BYTES: u64 = 203 + 64 + 80;
