//! Content: opening it, giving it to the app, and keeping what cannot be opened.

use sealwire_protocol::frame::Entry;
use sealwire_protocol::{DeviceKey, Header};

use super::Result;
use super::desk::Call;
use super::log::Log;
use crate::content::Content;
use crate::event::{Event, Received, Unreadable};
use crate::seal::{self, KeyName, Place, SealError};
use crate::store::history::Sender;
use crate::store::inbox::{self, Sealed};
use crate::store::keys;

/// Whether an entry was opened.
pub(super) enum Opened {
    Content(Box<Content>),
    No(Unreadable),
}

impl Log {
    /// Content.
    pub(super) fn take_content(
        &mut self,
        call: &mut Call<'_>,
        entry: &Entry,
        header: &Header,
        sender: &mut Sender,
    ) -> Result<()> {
        let me = call.device.key();
        let named = !entry.recipients.is_empty();
        if named && !entry.recipients.contains(&me) {
            return Ok(());
        }
        let before = sender.addressed;
        if named {
            sender.addressed = sender.addressed.max(header.count);
        }
        if header.count <= sender.delivered && !self.spoiled.has(entry.seq) {
            // It was given to the app before: the relay's history has changed, and this part has not.
            return Ok(());
        }
        sender.delivered = sender.delivered.max(header.count);
        let sealed = Sealed {
            sender: header.sender,
            count: header.count,
            seq: entry.seq,
            at: entry.at,
            header: entry.header,
            body: entry.body.as_ref().to_vec(),
            recipients: entry.recipients.to_vec(),
            epoch: seal::key_name(entry.body.as_ref()).ok().map(|name| name.epoch),
            before,
        };
        match self.open(call, header, &sealed)? {
            Opened::Content(content) => self.deliver(call, header, &sealed, *content),
            Opened::No(reason) => {
                let epoch = sealed.epoch.filter(|_| reason == Unreadable::NoKey);
                inbox::keep_sealed(call.db, self.id, &Sealed { epoch, ..sealed }, call.now.ms)?;
                let event = Event::Unreadable {
                    log: self.log,
                    seq: entry.seq,
                    sender: header.sender,
                    reason,
                };
                call.tell(self.id, &event)?;
                if reason == Unreadable::NoKey {
                    self.expect_key(call);
                }
                Ok(())
            }
        }
    }

    /// Tries every key of the epoch.
    pub(super) fn open(
        &mut self,
        call: &mut Call<'_>,
        header: &Header,
        sealed: &Sealed,
    ) -> Result<Opened> {
        let Ok(name) = seal::key_name(&sealed.body) else {
            return Ok(Opened::No(Unreadable::Damaged));
        };
        if Some(name.scope) != self.membership.scope() {
            return Ok(Opened::No(Unreadable::Damaged));
        }
        let place = Place { log: self.log, sender: header.sender, aad: sealed.header.aad() };
        for key in keys::find(call.db, self.id, name)? {
            match seal::open(&key, &place, &sealed.body) {
                Ok(bytes) => {
                    self.note_proof(call, header.sender, name, &key)?;
                    return Ok(match Content::decode(&bytes) {
                        Ok(content) => Opened::Content(Box::new(content)),
                        Err(_) => Opened::No(Unreadable::Damaged),
                    });
                }
                Err(SealError::WrongKey) => {}
                Err(
                    SealError::Damaged
                    | SealError::Malformed
                    | SealError::TooLong
                    | SealError::NoRandomness(_),
                ) => return Ok(Opened::No(Unreadable::Damaged)),
            }
        }
        Ok(Opened::No(Unreadable::NoKey))
    }

    /// A key has opened an entry of `sender`, which therefore holds it, too.
    fn note_proof(
        &mut self,
        call: &mut Call<'_>,
        sender: DeviceKey,
        name: KeyName,
        key: &seal::EpochKey,
    ) -> Result<()> {
        keys::prove(call.db, self.id, name, key)?;
        if self.holders.holds(sender, name.epoch) {
            self.members_changed = true;
        }
        Ok(())
    }

    /// Gives opened content to the app.
    pub(super) fn deliver(
        &mut self,
        call: &mut Call<'_>,
        header: &Header,
        sealed: &Sealed,
        content: Content,
    ) -> Result<()> {
        self.look_for_missing(call, header, sealed, &content)?;
        if let Some(message) = &content.ledger {
            self.take_ledger(call, header.sender, sealed.at, message)?;
        }
        // A receipt says what it has to say by being opened.
        let Some(payload) = content.payload else { return Ok(()) };
        let event = Event::Entry(Received {
            log: self.log,
            seq: sealed.seq,
            at: sealed.at,
            sender: header.sender,
            count: header.count,
            recipients: sealed.recipients.clone(),
            kind: header.kind,
            payload,
        });
        call.tell(self.id, &event)
    }

    /// An addressed entry names the one before it to this device.
    fn look_for_missing(
        &self,
        call: &Call<'_>,
        header: &Header,
        sealed: &Sealed,
        content: &Content,
    ) -> Result<()> {
        let mut named = sealed.recipients.clone();
        named.sort_unstable();
        named.dedup();
        let me = call.device.key();
        let Some(place) = named.iter().position(|device| *device == me) else { return Ok(()) };
        let Some(count) = content.before.get(place).copied() else { return Ok(()) };
        if count > sealed.before {
            let event = Event::Missing { log: self.log, sender: header.sender, count };
            call.tell(self.id, &event)?;
        }
        Ok(())
    }
}
