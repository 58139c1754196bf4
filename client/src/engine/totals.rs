//! What a device reads in a `totals` group.
//!
//! Who is a member and who has written what is the relay's word: nothing here is signed. So a message
//! changes the group's key or lets somebody ask for it only by the rules of [`crate::totals::rules`],
//! and a key never takes the place of another one unless a person says so. What a message means for
//! money and names is not decided here: opened, it goes to the ledger and to the app.

mod asking;
mod sending;

use sealwire_protocol::frame::Entry;
use sealwire_protocol::ids::Scope;
use sealwire_protocol::{Control, DeviceKey, Header, Kind};
use zeroize::Zeroizing;

use super::Result;
use super::desk::Call;
use super::log::{Log, Subscription};
use crate::entry::{Judged, Rejection};
use crate::event::{Event, Received, Unreadable};
use crate::membership::{Change, Refusal};
use crate::seal::{EpochKey, KeyName};
use crate::store::inbox::{self, Sealed};
use crate::store::requests::{self, JoinRequest};
use crate::store::{keys, outbox};
use crate::totals::payload::Payload;
use crate::totals::rules::{self, Offer};
use crate::totals::seal::{self, GroupKey, Opened};

type Taken = std::result::Result<(), Rejection>;

/// The one key of a `totals` group, as it is kept among the keys of native ones.
pub(crate) const GROUP_KEY: KeyName = KeyName { scope: Scope::ZERO, epoch: 1 };

/// Entries that are tried with a new key before others are read.
const RETRY_PAGE: usize = 256;

/// What was found in a body.
enum Found {
    /// A message.
    Message(Opened),
    /// Nothing that this device can read now.
    Nothing(Unreadable),
}

impl Log {
    /// Takes an entry that is whole.
    pub(super) fn take_totals(
        &mut self,
        call: &mut Call<'_>,
        entry: &Entry,
        judged: &Judged,
    ) -> Result<Taken> {
        let header = &judged.header;
        if header.kind == Kind::Control {
            return self.take_totals_control(call, entry);
        }
        if header.sender == call.device.key() {
            if let Some(own) = outbox::find_own(call.db, self.id, judged.digest)?
                && !own.appended
            {
                self.settle(call, own.count, entry.seq, &own)?;
            }
            return Ok(Ok(()));
        }
        // What was read before the relay's history changed is no news.
        if entry.seq <= self.read_before {
            return Ok(Ok(()));
        }
        let named = !entry.recipients.is_empty();
        if named && !entry.recipients.contains(&call.device.key()) {
            return Ok(Ok(()));
        }
        let sealed = Sealed {
            sender: header.sender,
            count: header.count,
            seq: entry.seq,
            at: entry.at,
            header: entry.header,
            body: entry.body.as_ref().to_vec(),
            recipients: entry.recipients.to_vec(),
            epoch: Some(GROUP_KEY.epoch),
            before: 0,
        };
        match self.find(call, &sealed)? {
            Found::Message(opened) => self.take_message(call, header, &sealed, &opened),
            Found::Nothing(reason) => {
                inbox::keep_sealed(call.db, self.id, &sealed, call.now.ms)?;
                let (log, seq, sender) = (self.log, entry.seq, header.sender);
                call.tell(self.id, &Event::Unreadable { log, seq, sender, reason })?;
                Ok(Ok(()))
            }
        }
    }

    /// One of the relay's own entries.
    fn take_totals_control(&mut self, call: &mut Call<'_>, entry: &Entry) -> Result<Taken> {
        let control = Control::decode(entry.body.as_ref());
        let (Ok(control), true) = (control, entry.recipients.is_empty()) else {
            return Ok(Err(Rejection::Control));
        };
        match self.membership.apply_totals(entry.seq, entry.at, &control) {
            Ok(change) => {
                self.members_changed = true;
                self.on_totals_change(call, entry.seq, change)?;
                Ok(Ok(()))
            }
            Err(Refusal::Known) => Ok(Ok(())),
            Err(_) => Ok(Err(Rejection::Control)),
        }
    }

    fn on_totals_change(&mut self, call: &mut Call<'_>, seq: u64, change: Change) -> Result<()> {
        let (log, me) = (self.log, call.device.key());
        let news = seq > self.read_before;
        match change {
            Change::Founded(device) | Change::Joined(device) => {
                if news {
                    call.tell(self.id, &Event::Joined { log, device, seq })?;
                }
                if device != me && self.subscription == Subscription::Drained {
                    self.ask_to_be_let_in(call)?;
                }
            }
            Change::Left(device) => {
                self.forget_member(device);
                requests::forget(call.db, self.id, device)?;
                if device == me {
                    return self.removed_here(call, seq, false);
                }
                if news {
                    call.tell(self.id, &Event::Left { log, device, seq })?;
                }
            }
            // Nobody is revoked, and there are no join keys.
            Change::Revoked(_) | Change::JoinKey => {}
        }
        Ok(())
    }

    /// Opens a body, with the group's key or as sealed to this device alone.
    fn find(&self, call: &Call<'_>, sealed: &Sealed) -> Result<Found> {
        let key = self.group_key(call)?;
        Ok(match seal::open(key.as_ref(), call.device, sealed.sender, &sealed.body) {
            Ok(opened) => Found::Message(opened),
            Err(seal::SealError::Closed) if key.is_none() => Found::Nothing(Unreadable::NoKey),
            Err(_) => Found::Nothing(Unreadable::Damaged),
        })
    }

    /// What an opened message changes here, and what the app is given of it.
    fn take_message(
        &mut self,
        call: &mut Call<'_>,
        header: &Header,
        sealed: &Sealed,
        opened: &Opened,
    ) -> Result<Taken> {
        let sender = header.sender;
        // A kind that is not known is the app's to keep.
        let message = Payload::decode(&opened.plaintext).ok();
        if opened.sealed == seal::Sealed::Group {
            // Whoever seals under the group's key was let in by somebody.
            requests::remove(call.db, self.id, sender)?;
            if let Some(Payload::MemberApproved(approved)) = &message
                && let Some(device) = approved.approved_public_key.device()
            {
                requests::remove(call.db, self.id, device)?;
            }
            if let Some(Payload::JoinRequest(_) | Payload::KeyExchange(_)) = message {
                return Ok(Err(Rejection::Message));
            }
            self.give_message(call, sealed, opened)?;
            return Ok(Ok(()));
        }
        let is_member = self.membership.has(sender);
        match message {
            Some(Payload::KeyExchange(exchange)) => {
                let held = self.group_key(call)?;
                let me = call.device.key();
                let offer = rules::key_exchange(
                    &exchange,
                    opened.sealed,
                    self.log,
                    sender,
                    is_member,
                    me,
                    held.as_ref(),
                );
                let Ok(offer) = offer else { return Ok(Err(Rejection::Message)) };
                if offer == Offer::Take {
                    self.give_message(call, sealed, opened)?;
                }
                self.on_offer(call, sender, offer, &exchange.group_key)?;
            }
            Some(Payload::JoinRequest(request)) => {
                if rules::join_request(&request, opened.sealed, sender, is_member).is_err() {
                    return Ok(Err(Rejection::Message));
                }
                let asked = JoinRequest {
                    device: sender,
                    name: request.display_name.clone(),
                    asked_at: u64::try_from(request.timestamp).unwrap_or(0),
                };
                self.on_join_request(call, asked)?;
                self.give_message(call, sealed, opened)?;
            }
            Some(Payload::JoinCancel(cancel)) if cancel.public_key.device() == Some(sender) => {
                requests::remove(call.db, self.id, sender)?;
                self.give_message(call, sealed, opened)?;
            }
            // Nothing else is sealed between two.
            _ => return Ok(Err(Rejection::Message)),
        }
        Ok(Ok(()))
    }

    /// Takes an opened message into the ledger, and gives it to the app.
    fn give_message(
        &mut self,
        call: &mut Call<'_>,
        sealed: &Sealed,
        opened: &Opened,
    ) -> Result<()> {
        self.take_ledger(call, sealed.sender, sealed.at, &opened.plaintext)?;
        let event = Event::Entry(Received {
            log: self.log,
            seq: sealed.seq,
            at: sealed.at,
            sender: sealed.sender,
            count: sealed.count,
            recipients: sealed.recipients.clone(),
            kind: Kind::Totals,
            payload: without_key(&opened.plaintext),
        });
        call.tell(self.id, &event)
    }

    fn on_offer(
        &mut self,
        call: &mut Call<'_>,
        sender: DeviceKey,
        offer: Offer,
        key: &GroupKey,
    ) -> Result<()> {
        let key = EpochKey::from_bytes(*key.bytes());
        match offer {
            Offer::Known => Ok(()),
            Offer::AskPerson => {
                requests::offer(call.db, self.id, sender, &key)?;
                call.tell(self.id, &Event::KeyOffered { log: self.log, sender })
            }
            Offer::Take => {
                keys::insert(call.db, self.id, GROUP_KEY, &key, None)?;
                requests::forget_asked(call.db, self.id)?;
                let event =
                    Event::KeyReceived { log: self.log, epoch: GROUP_KEY.epoch, from: sender };
                call.tell(self.id, &event)?;
                self.introduce(call)?;
                self.retry_totals(call)
            }
        }
    }

    fn on_join_request(&self, call: &Call<'_>, request: JoinRequest) -> Result<()> {
        // Who cannot let anybody in is not asked.
        if self.group_key(call)?.is_none() {
            return Ok(());
        }
        if requests::insert(call.db, self.id, &request)? {
            let JoinRequest { device, name, .. } = request;
            call.tell(self.id, &Event::JoinRequested { log: self.log, device, name })?;
        }
        Ok(())
    }

    /// Tries the group's key on what is kept sealed.
    pub(super) fn retry_totals(&mut self, call: &mut Call<'_>) -> Result<()> {
        let mut after = 0;
        loop {
            let page = inbox::sealed_of(call.db, self.id, GROUP_KEY.epoch, after, RETRY_PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.seq;
            for sealed in &page {
                let Ok(header) = sealed.header.decode() else { continue };
                let Found::Message(opened) = self.find(call, sealed)? else { continue };
                inbox::settle_sealed(call.db, self.id, sealed, true)?;
                if let Err(reason) = self.take_message(call, &header, sealed, &opened)? {
                    let event = Event::Rejected { log: self.log, seq: sealed.seq, reason };
                    call.tell(self.id, &event)?;
                }
            }
        }
    }

    /// The group's key.
    fn group_key(&self, call: &Call<'_>) -> Result<Option<GroupKey>> {
        let key = keys::find(call.db, self.id, GROUP_KEY)?.into_iter().next();
        Ok(key.map(|key| GroupKey::from_bytes(*key.bytes())))
    }
}

/// A message as the app is given it: the key of a `key_exchange` is not a message's to show.
fn without_key(plaintext: &Zeroizing<Vec<u8>>) -> Vec<u8> {
    if !matches!(Payload::decode(plaintext), Ok(Payload::KeyExchange(_))) {
        return plaintext.to_vec();
    }
    let Ok(serde_json::Value::Object(mut message)) = serde_json::from_slice(plaintext) else {
        return Vec::new();
    };
    message.remove("groupKey");
    serde_json::Value::Object(message).to_string().into_bytes()
}
