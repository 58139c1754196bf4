//! Sending: numbering, sealing and signing what waits, and making sense of the answers.

use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::frame::Append;
use sealwire_protocol::keys::KeyBody;
use sealwire_protocol::limits::IN_FLIGHT_BYTES_MAX;
use sealwire_protocol::{Control, DeviceKey, Head, Kind};

use super::Result;
use super::desk::{Asked, Call};
use super::log::{Log, Subscription};
use crate::content::Content;
use crate::entry::{Outline, Signed};
use crate::identity::JoinSeed;
use crate::keybox::{self, Grant};
use crate::numbering::DraftId;
use crate::seal::{self, EpochKey, KeyName, Place};
use crate::store::logs::Phase;
use crate::store::outbox::{self, Draft, Waiting};
use crate::store::{StoreError, keys, logs};

/// Most own entries of one log that are numbered and not settled: enough to keep a commit of the
/// relay busy, few enough that a refusal does not cost much.
const UNSETTLED_MAX: usize = 32;

/// What became of the draft that was next.
pub(super) enum Next {
    /// It has a number.
    Numbered,
    /// It was dropped or refused, or another one goes before it: look again.
    Again,
    /// It waits for something.
    Waits,
}

/// A body, and what belongs to it.
struct Made {
    kind: Kind,
    recipients: Vec<DeviceKey>,
    body: Vec<u8>,
    barrier: bool,
    secret: Option<EpochKey>,
}

impl Log {
    /// Sends what can be sent.
    pub(super) fn pump(&mut self, call: &mut Call<'_>) -> Result<()> {
        while self.phase.is_open() && !self.blocked && self.is_free(call.now.at) {
            if let Some((id, count)) = self.numbering.to_send() {
                if !self.send_numbered(call, id, count)? {
                    return Ok(());
                }
                continue;
            }
            if self.numbering.is_barred() || self.numbering.unsettled() >= UNSETTLED_MAX {
                return Ok(());
            }
            let Some(waiting) = outbox::next_waiting(call.db, self.id)? else { return Ok(()) };
            match self.number(call, waiting)? {
                Next::Numbered | Next::Again => {}
                Next::Waits => return Ok(()),
            }
        }
        Ok(())
    }

    /// Sends a numbered entry, if there is room for it.
    fn send_numbered(&mut self, call: &mut Call<'_>, id: DraftId, count: u64) -> Result<bool> {
        let entry = outbox::bytes(call.db, id)?;
        let bytes = entry.body.len();
        let fits = call.desk.bytes_in_flight + bytes <= IN_FLIGHT_BYTES_MAX;
        if !call.has_room() || !fits {
            return Ok(false);
        }
        self.numbering.sent(count);
        call.ask(Asked::Append { log: self.log, count, bytes }, Append { entry });
        Ok(true)
    }

    /// Gives the next draft its number, if its time has come.
    fn number(&mut self, call: &mut Call<'_>, waiting: Waiting) -> Result<Next> {
        if self.log.is_totals() {
            return self.number_totals(call, waiting);
        }
        let Waiting { id, draft, after_seq } = waiting;
        if self.stranger && draft != Draft::Leave {
            match draft {
                // What a person has written is kept.
                Draft::Content { .. } | Draft::Ledger { .. } => {
                    outbox::refuse(call.db, id, ErrorCode::InviteInvalid)?;
                }
                Draft::Found
                | Draft::Join
                | Draft::Leave
                | Draft::Revoke { .. }
                | Draft::Rotate { .. }
                | Draft::Deliver { .. }
                | Draft::Ask { .. }
                | Draft::Totals { .. } => outbox::drop_waiting(call.db, id)?,
            }
            return Ok(Next::Again);
        }
        if draft == Draft::Join {
            return self.number_join(call, id);
        }
        if self.phase != Phase::Member || self.subscription != Subscription::Drained {
            return Ok(Next::Waits);
        }
        if self.track.position().seq < self.read_first.max(after_seq) {
            self.hurry_at = Some(call.hurry());
            return Ok(Next::Waits);
        }
        match draft {
            Draft::Join | Draft::Found | Draft::Totals { .. } => {
                // A first entry has its number since it was made.
                outbox::refuse(call.db, id, ErrorCode::Internal)?;
                Ok(Next::Again)
            }
            // What was not answered before a leave could not be asked about after it.
            Draft::Leave if self.numbering.unsettled() > 0 => Ok(Next::Waits),
            Draft::Leave => self.number_control(call, id, &Control::Leave),
            Draft::Revoke { device, seed } => {
                let seed = JoinSeed::from_bytes(seed.0);
                logs::set_next_seed(call.db, self.id, &seed)?;
                let control = Control::Revoke { device, join_key: Some(seed.public()) };
                self.number_control(call, id, &control)
            }
            Draft::Rotate { asked } => self.number_rotation(call, id, asked),
            Draft::Deliver { to, epoch } => self.number_delivery(call, id, to, epoch),
            Draft::Ask { to, epoch } => self.number_question(call, id, to, epoch),
            Draft::Content { kind, payload, to } => {
                let kind = Kind::from_u8(kind).unwrap_or(Kind::Ring);
                let content = Content { payload, ..Content::default() };
                self.number_content(call, id, kind, content, to)
            }
            Draft::Ledger { kind, message, to } => {
                let kind = Kind::from_u8(kind).unwrap_or(Kind::Ring);
                let content = Content { ledger: Some(message), ..Content::default() };
                self.number_content(call, id, kind, content, to)
            }
        }
    }

    fn number_join(&mut self, call: &mut Call<'_>, id: DraftId) -> Result<Next> {
        if self.phase != Phase::Joining {
            outbox::drop_waiting(call.db, id)?;
            return Ok(Next::Again);
        }
        let Some(seed) = logs::join_seed(call.db, self.id)? else {
            outbox::refuse(call.db, id, ErrorCode::InviteInvalid)?;
            return Ok(Next::Again);
        };
        let signature = seed.admit(self.log, call.device.key());
        self.number_control(call, id, &Control::Join { signature })
    }

    fn number_control(
        &mut self,
        call: &mut Call<'_>,
        id: DraftId,
        control: &Control,
    ) -> Result<Next> {
        let made = Made {
            kind: Kind::Control,
            recipients: Vec::new(),
            body: control.encode(),
            barrier: true,
            secret: None,
        };
        self.write(call, id, made)
    }

    fn number_rotation(&mut self, call: &mut Call<'_>, id: DraftId, asked: bool) -> Result<Next> {
        let wanted = asked || self.membership.wants_rotation() || self.holders.epoch() == 0;
        let (Some(scope), Some(epoch)) = (self.membership.scope(), self.holders.next_epoch())
        else {
            outbox::refuse(call.db, id, ErrorCode::Internal)?;
            return Ok(Next::Again);
        };
        if !wanted {
            outbox::drop_waiting(call.db, id)?;
            return Ok(Next::Again);
        }
        if self.holders.epoch() == 0 && !self.founded_here(call) {
            // The group has a key; which generation it is, its holders must say.
            self.expect_key(call);
            outbox::drop_waiting(call.db, id)?;
            return Ok(Next::Again);
        }
        let Ok(key) = EpochKey::generate() else { return Err(StoreError::Io) };
        let name = KeyName { scope, epoch };
        let members: Vec<DeviceKey> = self.membership.members().map(|(device, _)| device).collect();
        let outline = self.outline(Kind::Key, Vec::new());
        let body = self.seal_keys(call, &outline, name, &key, &members)?;
        let made = Made {
            kind: Kind::Key,
            recipients: Vec::new(),
            body,
            barrier: true,
            secret: Some(key),
        };
        self.write(call, id, made)
    }

    fn number_delivery(
        &mut self,
        call: &mut Call<'_>,
        id: DraftId,
        to: Vec<DeviceKey>,
        epoch: u32,
    ) -> Result<Next> {
        let lacking = epoch == 0;
        if lacking && self.membership.wants_rotation() {
            // The one who was removed holds this key: another one, sealed to all, is what is lacked.
            outbox::drop_waiting(call.db, id)?;
            outbox::insert(call.db, self.id, &Draft::Rotate { asked: false })?;
            return Ok(Next::Again);
        }
        let epoch = if lacking { self.holders.epoch() } else { epoch };
        let mut to: Vec<DeviceKey> = to
            .into_iter()
            .filter(|device| self.membership.has(*device))
            .filter(|device| !lacking || self.holders.lacks(*device))
            .collect();
        to.sort_unstable();
        to.dedup();
        let key = match self.membership.scope() {
            Some(scope) => keys::find(call.db, self.id, KeyName { scope, epoch })?
                .into_iter()
                .next()
                .map(|key| (KeyName { scope, epoch }, key)),
            None => None,
        };
        let (false, Some((name, key))) = (to.is_empty(), key) else {
            outbox::drop_waiting(call.db, id)?;
            return Ok(Next::Again);
        };
        let outline = self.outline(Kind::Key, to.clone());
        let body = self.seal_keys(call, &outline, name, &key, &to)?;
        let made = Made { kind: Kind::Key, recipients: to, body, barrier: false, secret: None };
        self.write(call, id, made)
    }

    fn number_question(
        &mut self,
        call: &mut Call<'_>,
        id: DraftId,
        to: Vec<DeviceKey>,
        epoch: u32,
    ) -> Result<Next> {
        let mut to: Vec<DeviceKey> =
            to.into_iter().filter(|device| self.membership.has(*device)).collect();
        to.sort_unstable();
        to.dedup();
        let scope = self.membership.scope().filter(|_| !to.is_empty());
        let Some(scope) = scope else {
            outbox::drop_waiting(call.db, id)?;
            return Ok(Next::Again);
        };
        let body = KeyBody { scope, epoch, keys: Bounded::default() };
        let body = body.encode().map_err(|_| StoreError::Damaged)?;
        let made = Made { kind: Kind::Key, recipients: to, body, barrier: false, secret: None };
        self.write(call, id, made)
    }

    fn number_content(
        &mut self,
        call: &mut Call<'_>,
        id: DraftId,
        kind: Kind,
        content: Content,
        to: Vec<DeviceKey>,
    ) -> Result<Next> {
        if to.iter().any(|device| !self.membership.has(*device)) {
            self.refuse(call, id, ErrorCode::BadAudience)?;
            return Ok(Next::Again);
        }
        let Some(scope) = self.membership.scope() else { return Ok(Next::Waits) };
        let epoch = self.holders.epoch();
        // Who was removed still holds the key: whoever writes next makes another one first.
        // A receipt tells such a one nothing.
        let makes_first = epoch == 0 && self.founded_here(call);
        let removed = epoch > 0 && !content.is_receipt() && self.membership.wants_rotation();
        if removed && self.holders.next_epoch().is_none() {
            // No rotation can come before it, ever.
            self.refuse(call, id, ErrorCode::Internal)?;
            return Ok(Next::Again);
        }
        if makes_first || removed {
            outbox::insert(call.db, self.id, &Draft::Rotate { asked: false })?;
            return Ok(Next::Again);
        }
        let name = KeyName { scope, epoch };
        let Some(key) = keys::find(call.db, self.id, name)?.into_iter().next() else {
            self.expect_key(call);
            return Ok(Next::Waits);
        };
        let before = outbox::newest_addressed(call.db, self.id, &to)?;
        let content = Content { before: Bounded::new(before).unwrap_or_default(), ..content };
        let content = content.encode().map_err(|_| StoreError::Damaged)?;
        let outline = self.outline(kind, to.clone());
        let sender = call.device.key();
        let aad = outline.aad(sender);
        let place = Place { log: self.log, sender, aad: &aad };
        let Ok(body) = seal::seal(&key, name, &place, &content) else {
            self.refuse(call, id, ErrorCode::TooLarge)?;
            return Ok(Next::Again);
        };
        let made = Made { kind, recipients: to, body, barrier: false, secret: None };
        self.write(call, id, made)
    }

    /// All of the next entry but its body.
    pub(super) fn outline(&self, kind: Kind, recipients: Vec<DeviceKey>) -> Outline {
        let last = self.numbering.last();
        Outline {
            log: self.log,
            count: last.count + 1,
            prev: last.digest,
            kind,
            recipients,
            seen: self.track.head().unwrap_or(Head::NONE),
        }
    }

    /// Signs the next entry and keeps it under its number.
    fn write(&mut self, call: &mut Call<'_>, id: DraftId, made: Made) -> Result<Next> {
        let Made { kind, recipients, body, barrier, secret } = made;
        let outline = self.outline(kind, recipients);
        let count = outline.count;
        let Ok(signed) = outline.sign(call.device, &body) else {
            self.refuse(call, id, ErrorCode::TooLarge)?;
            return Ok(Next::Again);
        };
        let Signed { digest, .. } = signed;
        outbox::number(call.db, id, count, &signed, barrier, secret.as_ref())?;
        self.numbering.push(id, digest, barrier);
        Ok(Next::Numbered)
    }

    /// The body of a rotation or delivery.
    fn seal_keys(
        &self,
        call: &Call<'_>,
        outline: &Outline,
        name: KeyName,
        key: &EpochKey,
        recipients: &[DeviceKey],
    ) -> Result<Vec<u8>> {
        let sender = call.device.key();
        let aad = outline.aad(sender);
        let place = Place { log: self.log, sender, aad: &aad };
        // Whoever holds the key may invite; so the seed goes with it, if it is the one in force.
        let join_seed = logs::join_seed(call.db, self.id)?
            .filter(|seed| self.membership.join_key() == Some(seed.public()));
        let grant = Grant { key: key.clone(), join_seed, head: self.track.head() };
        let mut sealed = Vec::with_capacity(recipients.len());
        for recipient in recipients {
            match keybox::seal(&grant, name, &place, *recipient) {
                Ok(copy) => sealed.push(copy),
                Err(keybox::KeyBoxError::NoRandomness(_)) => return Err(StoreError::Io),
                // A key that nothing can be sealed to belongs to nobody.
                Err(_) => tracing::warn!(device = ?recipient, "a member's key cannot be sealed to"),
            }
        }
        let keys = Bounded::new(sealed).ok_or(StoreError::Damaged)?;
        KeyBody { scope: name.scope, epoch: name.epoch, keys }
            .encode()
            .map_err(|_| StoreError::Damaged)
    }

    /// Whether this device has founded the log.
    fn founded_here(&self, call: &Call<'_>) -> bool {
        self.membership.since(call.device.key()).is_some_and(|since| since.seq == 1)
    }
}
