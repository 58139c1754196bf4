//! Content keys: taking them from rotations and deliveries, and asking for those that this device
//! lacks.

use std::time::Duration;

use sealwire_protocol::frame::Entry;
use sealwire_protocol::keys::KeyBody;
use sealwire_protocol::{Control, DeviceKey, Head, Header, Kind};

use super::Result;
use super::desk::{Call, jitter};
use super::log::{Log, Subscription};
use crate::chain::HeadCheck;
use crate::entry::Rejection;
use crate::event::{Event, Unreadable};
use crate::identity::JoinSeed;
use crate::keybox::{self, Grant};
use crate::seal::{KeyName, Place};
use crate::store::outbox::{self, Draft};
use crate::store::{history, inbox, keys, logs};

type Taken = std::result::Result<(), Rejection>;

/// How long a device waits for a key to come by itself before it asks for it.
const ASK_FIRST: Duration = Duration::from_secs(3);

/// Shortest time from one question to the next; it doubles each time.
pub(super) const ASK_PAUSE_MIN: Duration = Duration::from_secs(30);

/// Longest time from one question to the next.
const ASK_PAUSE_MAX: Duration = Duration::from_secs(3600);

/// How many members are asked at once.
const ASK_PEERS: usize = 3;

/// How many epochs are asked for at once.
const ASK_EPOCHS_MAX: usize = 4;

/// Entries that are tried with a new key before others are read.
const RETRY_PAGE: usize = 256;

impl Log {
    /// A rotation, a delivery or a question.
    pub(super) fn take_keys(
        &mut self,
        call: &mut Call<'_>,
        entry: &Entry,
        header: &Header,
    ) -> Result<Taken> {
        let me = call.device.key();
        let Ok(body) = KeyBody::decode(entry.body.as_ref()) else {
            return Ok(Err(Rejection::Keys));
        };
        if self.stranger {
            return Ok(Err(Rejection::Keys));
        }
        if Some(body.scope) != self.membership.scope() {
            return Ok(Err(Rejection::Keys));
        }
        let name = KeyName { scope: body.scope, epoch: body.epoch };
        if entry.recipients.is_empty() {
            return self.take_rotation(call, entry, header, name, &body);
        }
        if !entry.recipients.contains(&me) {
            return Ok(Ok(()));
        }
        if body.keys.is_empty() {
            self.on_question(call, header.sender, body.epoch)?;
            return Ok(Ok(()));
        }
        if !self.holders.is_plausible(body.epoch, entry.seq) {
            return Ok(Err(Rejection::Keys));
        }
        let place = Place { log: self.log, sender: header.sender, aad: entry.header.aad() };
        self.take_grant(call, &body, name, &place, None)
    }

    fn take_rotation(
        &mut self,
        call: &mut Call<'_>,
        entry: &Entry,
        header: &Header,
        name: KeyName,
        body: &KeyBody,
    ) -> Result<Taken> {
        if self.membership.check_conditional(header).is_err() {
            return Ok(Err(Rejection::Stale));
        }
        let again = entry.seq <= self.read_before && name.epoch <= self.holders.epoch();
        if !again && !self.holders.accepts(name.epoch, entry.seq) {
            return Ok(Err(Rejection::Keys));
        }
        self.note_rotation(entry.seq, name.epoch, body, !again);
        let place = Place { log: self.log, sender: header.sender, aad: entry.header.aad() };
        self.take_grant(call, body, name, &place, Some(entry.seq))
    }

    /// A rotation stands; `news` if it was not read before.
    fn note_rotation(&mut self, seq: u64, epoch: u32, body: &KeyBody, news: bool) {
        self.membership.rotated(seq);
        if news {
            let recipients: Vec<DeviceKey> =
                body.keys.iter().map(|sealed| sealed.recipient).collect();
            let members = self.membership.members().map(|(device, _)| device);
            self.holders.rotation(epoch, &recipients, members);
        }
        self.members_changed = true;
    }

    /// What an own rotation or delivery changes, once it is read at its place.
    pub(super) fn apply_own_keys(&mut self, header: &Header, body: &[u8], seq: u64) {
        if header.kind != Kind::Key {
            return;
        }
        let Ok(body) = KeyBody::decode(body) else { return };
        if header.audience == sealwire_protocol::Audience::All {
            let news = body.epoch > self.holders.epoch();
            self.note_rotation(seq, body.epoch, &body, news);
            return;
        }
        for sealed in body.keys.iter() {
            self.holders.holds(sealed.recipient, body.epoch);
        }
        self.members_changed = true;
    }

    /// Opens what is sealed to this device, if something is.
    fn take_grant(
        &mut self,
        call: &mut Call<'_>,
        body: &KeyBody,
        name: KeyName,
        place: &Place<'_>,
        rotation: Option<u64>,
    ) -> Result<Taken> {
        let me = call.device.key();
        let Some(sealed) = body.keys.iter().find(|sealed| sealed.recipient == me) else {
            // Its author did not know that this device is a member: another one will deliver it.
            self.expect_key(call);
            return Ok(Ok(()));
        };
        let Ok(grant) = keybox::open(call.device, name, place, sealed) else {
            self.expect_key(call);
            return Ok(Err(Rejection::Keys));
        };
        if rotation.is_none() {
            // Only what has opened is believed.
            self.holders.delivery(name.epoch);
            for other in body.keys.iter().filter(|sealed| sealed.recipient != me) {
                self.holders.holds(other.recipient, name.epoch);
            }
            self.members_changed = true;
        }
        self.use_grant(call, name, &grant, rotation, place.sender)?;
        Ok(Ok(()))
    }

    fn use_grant(
        &mut self,
        call: &mut Call<'_>,
        name: KeyName,
        grant: &Grant,
        rotation: Option<u64>,
        sender: DeviceKey,
    ) -> Result<()> {
        self.key_from = Some(sender);
        let had = keys::has(call.db, self.id, name)?;
        let news = keys::insert(call.db, self.id, name, &grant.key, rotation)?;
        if let Some(seed) = &grant.join_seed {
            self.adopt_seed(call, seed)?;
        }
        if let Some(head) = &grant.head {
            self.compare_given_head(call, head, sender)?;
        }
        if !news {
            return Ok(());
        }
        if !had {
            call.tell(
                self.id,
                &Event::KeyReceived { log: self.log, epoch: name.epoch, from: sender },
            )?;
        }
        self.ask_at = None;
        self.ask_pause = ASK_PAUSE_MIN;
        if self.holders.holds(call.device.key(), name.epoch) {
            self.members_changed = true;
        }
        if rotation.is_none() && name.epoch == self.holders.epoch() {
            self.membership.given_current_key(call.device.key());
            self.members_changed = true;
            self.acknowledge_key(call)?;
        }
        self.retry_sealed(call, name.epoch)?;
        if self.wants_key(call)?.is_some() {
            self.expect_key(call);
        }
        Ok(())
    }

    /// Whoever delivers a key says what history it has seen.
    fn compare_given_head(
        &mut self,
        call: &mut Call<'_>,
        head: &Head,
        sender: DeviceKey,
    ) -> Result<()> {
        let known = history::chain_at(call.db, self.id, head.seq)?;
        if self.track.check(head, |_| known) == HeadCheck::Differs {
            self.tell_forked(call, head.seq, Some(sender))?;
        }
        Ok(())
    }

    /// Keeps the seed of the join key that is good now.
    fn adopt_seed(&mut self, call: &mut Call<'_>, seed: &JoinSeed) -> Result<()> {
        if self.membership.join_key() == Some(seed.public()) {
            logs::set_join_seed(call.db, self.id, seed)?;
        }
        Ok(())
    }

    /// An own `revoke` stands: its join key is good from now on, and this device has its seed.
    pub(super) fn adopt_join_seed(&mut self, call: &mut Call<'_>, control: &Control) -> Result<()> {
        let Control::Revoke { join_key: Some(join_key), .. } = control else { return Ok(()) };
        if let Some(seed) = logs::next_seed(call.db, self.id)?
            && seed.public() == *join_key
        {
            logs::set_join_seed(call.db, self.id, &seed)?;
        }
        Ok(())
    }

    /// Shows the others that this device holds the key: they have not seen the delivery.
    fn acknowledge_key(&mut self, call: &mut Call<'_>) -> Result<()> {
        let others_wonder = self.membership.members().len() > 2;
        let will_show = outbox::any_unsettled(call.db, self.id, |draft| {
            matches!(draft, Draft::Content { .. } | Draft::Ledger { .. })
        })?;
        if others_wonder && !will_show {
            let receipt =
                Draft::Content { kind: Kind::Quiet.to_u8(), payload: None, to: Vec::new() };
            outbox::insert(call.db, self.id, &receipt)?;
        }
        Ok(())
    }

    /// Tries a new key on what is kept sealed.
    fn retry_sealed(&mut self, call: &mut Call<'_>, epoch: u32) -> Result<()> {
        let mut after = 0;
        loop {
            let page = inbox::sealed_of(call.db, self.id, epoch, after, RETRY_PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.seq;
            for sealed in &page {
                let Ok(header) = sealed.header.decode() else { continue };
                match self.open(call, &header, sealed)? {
                    super::opening::Opened::Content(content) => {
                        inbox::settle_sealed(call.db, self.id, sealed, true)?;
                        self.deliver(call, &header, sealed, *content)?;
                    }
                    super::opening::Opened::No(Unreadable::NoKey) => {}
                    super::opening::Opened::No(Unreadable::Damaged) => {
                        inbox::settle_sealed(call.db, self.id, sealed, false)?;
                    }
                }
            }
        }
    }

    /// Whether this device can do without more keys; else the epochs that it wants, 0 for the
    /// current one.
    pub(super) fn wants_key(&self, call: &Call<'_>) -> Result<Option<Vec<u32>>> {
        let Some(scope) = self.membership.scope() else { return Ok(None) };
        let mut epochs = Vec::new();
        let current = KeyName { scope, epoch: self.holders.epoch() };
        if current.epoch == 0 || !keys::has(call.db, self.id, current)? {
            epochs.push(0);
        }
        for epoch in inbox::wanted_epochs(call.db, self.id, ASK_EPOCHS_MAX)? {
            if !keys::has(call.db, self.id, KeyName { scope, epoch })? {
                epochs.push(epoch);
            }
        }
        Ok(Some(epochs).filter(|epochs| !epochs.is_empty()))
    }

    /// A key should come; if it does not, it is asked for.
    pub(super) fn expect_key(&mut self, call: &Call<'_>) {
        // In a totals group whoever approves gives the key.
        if self.ask_at.is_none() && !self.log.is_totals() {
            self.ask_at = Some(call.now.at + ASK_FIRST + jitter(ASK_FIRST / 4));
        }
    }

    /// Does what has become due.
    pub(super) fn run_timers(&mut self, call: &mut Call<'_>) -> Result<()> {
        if self.hold_until.is_some_and(|until| until <= call.now.at) {
            self.hold_until = None;
        }
        self.hurry_at = self.hurry_at.filter(|at| *at > call.now.at);
        self.deliver_due(call)?;
        self.look_again_when_due(call);
        if self.ask_at.is_some_and(|at| at <= call.now.at) {
            self.ask_peers(call)?;
        }
        Ok(())
    }

    /// Asks a few members for the keys that this device lacks.
    fn ask_peers(&mut self, call: &mut Call<'_>) -> Result<()> {
        self.ask_at = None;
        if self.subscription != Subscription::Drained {
            // Asked again when the log has been read to its end.
            return Ok(());
        }
        let Some(epochs) = self.wants_key(call)? else { return Ok(()) };
        let me = call.device.key();
        let mut peers: Vec<DeviceKey> =
            self.membership.members().map(|(device, _)| device).filter(|d| *d != me).collect();
        if peers.is_empty() || !self.membership.has(me) {
            return Ok(());
        }
        shuffle(&mut peers);
        peers.truncate(ASK_PEERS);
        for epoch in epochs {
            let question = Draft::Ask { to: peers.clone(), epoch };
            let asked = outbox::any_unsettled(
                call.db,
                self.id,
                |draft| matches!(draft, Draft::Ask { epoch: other, .. } if *other == epoch),
            )?;
            if !asked {
                outbox::insert(call.db, self.id, &question)?;
            }
        }
        self.ask_at = Some(call.now.at + self.ask_pause + jitter(self.ask_pause / 4));
        self.ask_pause = (self.ask_pause * 2).min(ASK_PAUSE_MAX);
        Ok(())
    }
}

fn shuffle(devices: &mut [DeviceKey]) {
    let salt = crate::identity::random::<16>().unwrap_or_default();
    devices.sort_by_cached_key(|device| {
        sealwire_protocol::digest::sha256(&[&salt[..], &device.0].concat())
    });
}

#[cfg(test)]
mod tests;
