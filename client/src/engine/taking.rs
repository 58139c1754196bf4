//! What one entry changes: members, keys, and what the app is told.

use sealwire_protocol::frame::Entry;
use sealwire_protocol::{Control, DeviceKey, Digest, Head, Header, Kind};

use super::Result;
use super::desk::Call;
use super::log::Log;
use crate::chain::HeadCheck;
use crate::entry::{Judged, Rejection};
use crate::event::Event;
use crate::membership::{Change, Refusal};
use crate::store::history::{self, Sender};
use crate::store::logs;
use crate::store::outbox::{self, Own};

type Taken = std::result::Result<(), Rejection>;

impl Log {
    /// Takes an entry that is whole: what it may change, it changes.
    pub(super) fn take(
        &mut self,
        call: &mut Call<'_>,
        entry: &Entry,
        judged: &Judged,
        below: bool,
    ) -> Result<Taken> {
        let header = &judged.header;
        if header.sender == call.device.key() {
            return self.take_own(call, entry, judged);
        }
        if header.kind != Kind::Control && !self.membership.has(header.sender) {
            return Ok(Err(Rejection::NotAMember));
        }
        let mut sender = self.sender(call.db, header.sender)?;
        if let Err(rejection) = self.follows(call, &sender, entry.seq, header, below)? {
            return Ok(Err(rejection));
        }
        self.compare_seen(call, entry.seq, header)?;
        let taken = match header.kind {
            Kind::Control => self.take_control(call, entry, header)?,
            Kind::Key => self.take_keys(call, entry, header)?,
            Kind::Ring | Kind::Quiet | Kind::Bulk => {
                self.take_content(call, entry, header, &mut sender)?;
                Ok(())
            }
            Kind::Totals => Err(Rejection::Header),
        };
        if header.count > sender.count {
            sender.count = header.count;
            sender.digest = judged.digest;
            sender.seq = entry.seq;
        }
        self.set_sender(header.sender, sender);
        Ok(taken)
    }

    /// An own entry that comes whole.
    fn take_own(&mut self, call: &mut Call<'_>, entry: &Entry, judged: &Judged) -> Result<Taken> {
        if let Some(own) = outbox::find_own(call.db, self.id, judged.digest)? {
            if !own.appended {
                self.settle(call, own.count, entry.seq, &own)?;
            }
        } else {
            self.note_unknown_own(call, entry.seq)?;
        }
        if judged.header.kind == Kind::Control {
            return self.take_control(call, entry, &judged.header);
        }
        self.apply_own_keys(&judged.header, entry.body.as_ref(), entry.seq);
        Ok(Ok(()))
    }

    /// The stub of an own entry.
    pub(super) fn on_own(&mut self, call: &mut Call<'_>, seq: u64, digest: Digest) -> Result<()> {
        let Some(own) = outbox::find_own(call.db, self.id, digest)? else {
            return self.note_unknown_own(call, seq);
        };
        if !own.appended {
            self.settle(call, own.count, seq, &own)?;
        }
        self.apply_own(seq, &own);
        Ok(())
    }

    /// What an own entry changes, once it is read at its place. Control entries come whole, and change
    /// things then.
    pub(super) fn apply_own(&mut self, seq: u64, own: &Own) {
        if let Ok(header) = own.header.decode() {
            self.apply_own_keys(&header, &own.body, seq);
        }
    }

    /// The relay says that an entry is this device's, and this device does not know it.
    fn note_unknown_own(&mut self, call: &mut Call<'_>, seq: u64) -> Result<()> {
        // In a totals group a phone of the same person writes under the same key.
        if seq <= self.pruned_seq || self.blocked || self.log.is_totals() {
            return Ok(());
        }
        self.block(call)
    }

    /// This device's key is used somewhere else, or its memory was set back: nothing more is sent.
    pub(super) fn block(&mut self, call: &mut Call<'_>) -> Result<()> {
        self.blocked = true;
        logs::set_blocked(call.db, self.id, true)?;
        call.tell(self.id, &Event::Cloned { log: self.log })
    }

    /// Whether an entry follows its sender's entry before.
    fn follows(
        &self,
        call: &Call<'_>,
        sender: &Sender,
        seq: u64,
        header: &Header,
        below: bool,
    ) -> Result<Taken> {
        // Below a floor, and before anything was read of a sender, there is nothing to compare with.
        if below || sender.count == 0 {
            let first = header.count > 1 || header.prev.is_zero();
            return Ok(if first { Ok(()) } else { Err(Rejection::OutOfOrder) });
        }
        if header.count <= sender.count {
            return Ok(Err(Rejection::OutOfOrder));
        }
        if header.count == sender.count + 1 {
            let follows = header.prev == sender.digest;
            return Ok(if follows { Ok(()) } else { Err(Rejection::OutOfOrder) });
        }
        // Those between came as stubs: there must have been room for them, and the one before this
        // one must be among them.
        let room = seq - sender.seq >= header.count - sender.count;
        let last = seq - 1;
        let known = history::stands_between(call.db, self.id, sender.seq, last, header.prev)?;
        Ok(if room && known != Some(false) { Ok(()) } else { Err(Rejection::OutOfOrder) })
    }

    /// Compares the head that the author had seen with what was read here.
    fn compare_seen(&mut self, call: &mut Call<'_>, seq: u64, header: &Header) -> Result<()> {
        if header.seen == Head::NONE {
            return Ok(());
        }
        let known = history::chain_at(call.db, self.id, header.seen.seq)?;
        let forked = header.seen.seq >= seq
            || self.track.check(&header.seen, |_| known) == HeadCheck::Differs;
        if forked && header.seen.incarnation == self.track.incarnation() {
            self.tell_forked(call, header.seen.seq, Some(header.sender))?;
        }
        Ok(())
    }

    /// Two histories show. Once on a connection is enough: every entry of a member who was shown the
    /// other one will show it again.
    pub(super) fn tell_forked(
        &mut self,
        call: &Call<'_>,
        seq: u64,
        sender: Option<DeviceKey>,
    ) -> Result<()> {
        if std::mem::replace(&mut self.forked, true) {
            return Ok(());
        }
        call.tell(self.id, &Event::Forked { log: self.log, seq, sender })
    }

    /// A control entry.
    fn take_control(
        &mut self,
        call: &mut Call<'_>,
        entry: &Entry,
        header: &Header,
    ) -> Result<Taken> {
        let control = Control::decode(entry.body.as_ref());
        let (Ok(control), true) = (control, entry.recipients.is_empty()) else {
            return Ok(Err(Rejection::Control));
        };
        match self.membership.apply(self.log, entry.seq, entry.at, header, &control) {
            Ok(change) => {
                self.members_changed = true;
                self.on_change(call, entry.seq, header.sender, &control, change)?;
                Ok(Ok(()))
            }
            // Control entries below a floor are sent again when a connection breaks among them.
            Err(Refusal::Known) => Ok(Ok(())),
            Err(Refusal::NotAMember) => Ok(Err(Rejection::NotAMember)),
            Err(Refusal::Stale) => Ok(Err(Rejection::Stale)),
            Err(
                Refusal::Founding
                | Refusal::Member
                | Refusal::Revoked
                | Refusal::JoinKey
                | Refusal::Key
                | Refusal::Target
                | Refusal::Full
                | Refusal::NotForGroups,
            ) => Ok(Err(Rejection::Control)),
        }
    }

    fn on_change(
        &mut self,
        call: &mut Call<'_>,
        seq: u64,
        author: DeviceKey,
        control: &Control,
        change: Change,
    ) -> Result<()> {
        let (log, me) = (self.log, call.device.key());
        // What was read before the relay's history changed is no news.
        let news = seq > self.read_before;
        match change {
            Change::Founded(device) | Change::Joined(device) => {
                if news {
                    self.check_inviter(call, device)?;
                }
                if device == me && news {
                    if matches!(change, Change::Founded(_)) {
                        self.holders.founded();
                    } else {
                        self.holders.entered();
                    }
                    self.use_restored_key(call)?;
                } else if news {
                    self.holders.joined(device);
                    self.expect_to_deliver(call, device)?;
                }
                if news {
                    call.tell(self.id, &Event::Joined { log, device, seq })?;
                }
            }
            Change::Left(device) => {
                self.forget_member(device);
                if device == me {
                    return self.removed_here(call, seq, false);
                }
                if news {
                    call.tell(self.id, &Event::Left { log, device, seq })?;
                }
            }
            Change::Revoked(device) => {
                self.forget_member(device);
                if author == me {
                    self.adopt_join_seed(call, control)?;
                }
                if device == me {
                    return self.removed_here(call, seq, true);
                }
                if news {
                    let event = Event::Revoked { log, device, by: Some(author), seq };
                    call.tell(self.id, &event)?;
                    self.hand_over_ledger(call, device)?;
                }
            }
            Change::JoinKey => {}
        }
        Ok(())
    }

    /// Whoever made the invite that this device joins by must have been a member before it: only then are
    /// these the members that its person was invited by.
    fn check_inviter(&mut self, call: &Call<'_>, joined: DeviceKey) -> Result<()> {
        let Some((inviter, met)) = self.inviter else { return Ok(()) };
        if joined == inviter && !met {
            self.inviter = Some((inviter, true));
            return logs::set_inviter_met(call.db, self.id);
        }
        if joined != call.device.key() || self.membership.has(inviter) {
            return Ok(());
        }
        let log = self.log;
        if met {
            return call.tell(self.id, &Event::InviterGone { log, inviter });
        }
        self.stranger = true;
        logs::set_stranger(call.db, self.id)?;
        call.tell(self.id, &Event::InviterUnknown { log, inviter })
    }

    /// An entry says that this device is no member any more. On the way through older entries it may
    /// have joined again since.
    pub(super) fn removed_here(
        &mut self,
        call: &mut Call<'_>,
        seq: u64,
        revoked: bool,
    ) -> Result<()> {
        if seq > self.joined_seq { self.removed(call, revoked, seq) } else { Ok(()) }
    }

    pub(super) fn forget_member(&mut self, device: DeviceKey) {
        self.holders.removed(device);
        self.deliveries.remove(&device);
        self.answered.remove(&device);
    }
}
