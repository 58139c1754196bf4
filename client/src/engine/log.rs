//! One log as the engine holds it: what is stored of it, and what this connection knows besides.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use sealwire_protocol::frame::{Ack, AckState, Subscribe};
use sealwire_protocol::{AckSet, DeviceKey, Digest, LogId};

use super::Result;
use super::desk::{Asked, Call};
use super::spoiled::Spoiled;
use crate::chain::Track;
use crate::holders::Holders;
use crate::membership::Membership;
use crate::numbering::Numbering;
use crate::store::history::{self, HISTORY_MAX, Sender};
use crate::store::logs::{self, Asking, LogRow, Outer, Phase};
use crate::store::outbox;

/// How far the subscription is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subscription {
    /// There is none, and one is wanted if this device is a member.
    Off,
    /// Asked for, and not answered.
    Asked,
    /// Entries are coming; the end was not reached.
    Reading,
    /// The end was reached; what comes is live.
    Drained,
    /// Given back, and not answered: what still comes is not looked at.
    Leaving,
    /// Not to be had on this connection.
    Denied,
}

impl Subscription {
    /// Whether what comes is looked at.
    pub(super) fn reads(self) -> bool {
        matches!(self, Self::Reading | Self::Drained)
    }
}

/// One log.
pub(super) struct Log {
    pub(super) id: i64,
    pub(super) log: LogId,
    pub(super) phase: Phase,
    pub(super) blocked: bool,
    pub(super) invited: bool,
    pub(super) pruned_seq: u64,
    /// The seq of the newest own entry that made this device a member.
    pub(super) joined_seq: u64,
    pub(super) track: Track,
    pub(super) membership: Membership,
    pub(super) holders: Holders,
    pub(super) numbering: Numbering,
    acked_incarnation: u64,
    acked: AckSet,

    pub(super) subscription: Subscription,
    /// How often the relay was asked anew because something did not fit.
    pub(super) resyncs: u32,
    /// Whether the app was told on this connection that two histories exist.
    pub(super) forked: bool,
    /// While set, nothing is sent or asked before it.
    pub(super) hold_until: Option<Instant>,
    /// The log must have been read up to here before the next entry is numbered.
    pub(super) read_first: u64,
    /// When the relay is to be hurried again because of that.
    pub(super) hurry_at: Option<Instant>,
    /// Entries up to here were read before the relay's history changed.
    pub(super) read_before: u64,
    /// Whom this device will give the current key, and when.
    pub(super) deliveries: BTreeMap<DeviceKey, Instant>,
    /// When a peer is asked for a key, and how long after that again.
    pub(super) ask_at: Option<Instant>,
    pub(super) ask_pause: Duration,
    /// When each member was last given a key that it had asked for.
    pub(super) answered: HashMap<DeviceKey, Instant>,
    /// When each member was last given the history of the ledger.
    pub(super) told: HashMap<DeviceKey, Instant>,

    senders: HashMap<DeviceKey, Sender>,
    changed_senders: BTreeSet<DeviceKey>,
    pub(super) members_changed: bool,
    progress_changed: bool,
    /// Where the remembered history was last cut.
    pruned_at: u64,
    /// Whose invite this device joins by, and whether that one was met among the members.
    pub(super) inviter: Option<(DeviceKey, bool)>,
    /// Whether it never was: no key is taken, and nothing sent.
    pub(super) stranger: bool,
    /// Entries that came otherwise than they were written: not acked, and looked at again.
    pub(super) spoiled: Spoiled,
    /// When, as far as that is known on this connection.
    pub(super) look_again_at: Option<Instant>,
    /// Whether something was taken that this device has to ack.
    pub(super) ack_due: bool,
    /// The device whose place this one takes, until that is out of the group.
    pub(super) replaces: Option<DeviceKey>,
    /// Whether what was said before is still to come, or the members are to be asked for it.
    pub(super) wants_history: bool,
    /// Who was asked for it, and who has asked for it meanwhile.
    pub(super) asking: Asking,
    /// When the next member is asked, or those who have asked are given it.
    pub(super) history_at: Option<Instant>,
    /// How long the first member is not asked.
    pub(super) history_wait: Duration,
    /// When the newest part of it came on this connection.
    pub(super) history_part_at: Option<Instant>,
    /// Who has given this device a key on this connection.
    pub(super) key_from: Option<DeviceKey>,
    /// `totals` groups: whether joining or leaving was asked for and not answered.
    pub(super) membership_asked: bool,
    /// `totals` groups: whether it was leaving.
    pub(super) leaving: bool,
}

impl Log {
    /// What is stored of a log, on a new connection.
    pub(super) fn load(db: &Connection, row: LogRow) -> Result<Self> {
        let mut numbering = Numbering::new(row.appended);
        for (id, digest, barrier) in outbox::numbered(db, row.id)? {
            numbering.push(id, digest, barrier);
        }
        Ok(Self {
            id: row.id,
            log: row.log,
            phase: row.phase,
            blocked: row.blocked,
            invited: row.invited,
            pruned_seq: row.pruned_seq,
            joined_seq: row.joined_seq,
            track: row.track,
            membership: row.membership,
            holders: row.holders,
            numbering,
            acked_incarnation: row.acked_incarnation,
            acked: row.acked,
            subscription: Subscription::Off,
            resyncs: 0,
            forked: false,
            hold_until: None,
            read_first: 0,
            hurry_at: None,
            read_before: row.read_before,
            deliveries: BTreeMap::new(),
            ask_at: None,
            ask_pause: super::keys::ASK_PAUSE_MIN,
            answered: HashMap::new(),
            told: HashMap::new(),
            senders: HashMap::new(),
            changed_senders: BTreeSet::new(),
            members_changed: false,
            progress_changed: false,
            pruned_at: 0,
            ack_due: false,
            replaces: logs::replaces(db, row.id)?,
            inviter: logs::inviter(db, row.id)?,
            stranger: logs::is_stranger(db, row.id)?,
            spoiled: logs::spoiled(db, row.id)?,
            look_again_at: None,
            wants_history: logs::wants_history(db, row.id)?,
            asking: logs::asking(db, row.id)?,
            history_at: None,
            history_wait: Duration::ZERO,
            history_part_at: None,
            key_from: None,
            membership_asked: false,
            leaving: false,
        })
    }

    /// Another part of the program may have changed these.
    pub(super) fn note_outer(&mut self, db: &Connection, outer: &Outer) -> Result<()> {
        // Joining again after having left is decided there; everything else here.
        if !self.phase.is_open() && outer.phase == Phase::Joining {
            self.phase = Phase::Joining;
            self.subscription = Subscription::Off;
            self.inviter = logs::inviter(db, self.id)?;
            self.stranger = logs::is_stranger(db, self.id)?;
        }
        self.blocked = outer.blocked;
        self.invited |= outer.invited;
        Ok(())
    }

    /// Subscribes if this device is a member and nothing speaks against it.
    pub(super) fn subscribe_if_due(&mut self, call: &mut Call<'_>) -> Result<()> {
        let due = self.phase == Phase::Member
            && self.subscription == Subscription::Off
            && self.is_free(call.now.at);
        if !due || !call.has_room() {
            return Ok(());
        }
        let cursor = self.cursor(call)?;
        self.subscription = Subscription::Asked;
        let acked = AckState { incarnation: self.acked_incarnation, acked: self.acked.to_wire() };
        let frame = Subscribe { log: self.log, cursor, acked: Some(acked) };
        call.ask(Asked::Subscribe(self.log), frame);
        Ok(())
    }

    /// Whether nothing asks for patience.
    pub(super) fn is_free(&self, now: Instant) -> bool {
        self.hold_until.is_none_or(|until| until <= now)
    }

    /// When something is to be done without being asked.
    pub(super) fn deadline(&self) -> Option<Instant> {
        [self.hold_until, self.hurry_at, self.ask_at, self.history_at, self.look_again_at]
            .into_iter()
            .flatten()
            .chain(self.deliveries.values().copied())
            .min()
    }

    /// What was read of a sender.
    pub(super) fn sender(&mut self, db: &Connection, device: DeviceKey) -> Result<Sender> {
        if let Some(sender) = self.senders.get(&device) {
            return Ok(*sender);
        }
        let sender = history::sender(db, self.id, device)?;
        self.senders.insert(device, sender);
        Ok(sender)
    }

    /// Keeps what was read of a sender.
    pub(super) fn set_sender(&mut self, device: DeviceKey, sender: Sender) {
        self.senders.insert(device, sender);
        self.changed_senders.insert(device);
    }

    /// Forgets what was read, to read it anew. The old history stays remembered until the new one
    /// has taken its place: as far as they agree, nothing is news.
    pub(super) fn forget_history(&mut self, db: &Connection) -> Result<()> {
        history::reset(db, self.id)?;
        outbox::forget_order(db, self.id)?;
        self.senders.clear();
        self.changed_senders.clear();
        self.read_before = self.track.position().seq;
        self.read_first = 0;
        self.pruned_at = 0;
        self.track = Track::new(self.log);
        self.membership = Membership::new();
        self.holders.doubt();
        self.members_changed = true;
        self.progress_changed = true;
        self.acked = AckSet::new();
        self.acked_incarnation = 0;
        Ok(())
    }

    /// While a log is read anew: notes where the new history leaves the old one.
    pub(super) fn compare_old(&mut self, db: &Connection, seq: u64, digest: Digest) -> Result<()> {
        if seq > self.read_before {
            return Ok(());
        }
        if let Some(old) = history::digest_at(db, self.id, seq)?
            && old != digest
        {
            self.read_before = seq - 1;
            self.progress_changed = true;
            history::forget_from(db, self.id, seq)?;
        }
        Ok(())
    }

    /// The log was read further.
    pub(super) fn progressed(&mut self) {
        self.progress_changed = true;
    }

    /// The relay has taken the cursor, in this incarnation: what lies before it is acked there too.
    pub(super) fn begin_incarnation(&mut self, incarnation: u64) {
        self.track.accepted(incarnation);
        if self.acked_incarnation != incarnation {
            self.acked_incarnation = incarnation;
            self.acked = AckSet::new();
            self.ack_due = self.track.position().seq > 0;
        }
        self.progress_changed = true;
    }

    /// Commits what has changed, and then acks it.
    pub(super) fn save(&mut self, call: &mut Call<'_>) -> Result<()> {
        if self.progress_changed {
            let seq = self.track.position().seq;
            // Everything up to the cursor is committed with this call; what came spoiled is not here.
            for (first, last) in self.spoiled.between(seq) {
                self.acked.insert(first, last);
            }
            logs::save_progress(
                call.db,
                self.id,
                &self.track,
                self.read_before,
                self.acked_incarnation,
                &self.acked,
            )?;
            if seq >= self.pruned_at + HISTORY_MAX / 8 {
                history::prune(call.db, self.id, seq)?;
                self.pruned_at = seq;
            }
            self.progress_changed = false;
        }
        if self.members_changed {
            logs::save_members(call.db, self.id, &self.membership, &self.holders)?;
            self.members_changed = false;
        }
        for device in std::mem::take(&mut self.changed_senders) {
            if let Some(sender) = self.senders.get(&device) {
                history::save_sender(call.db, self.id, device, sender)?;
            }
        }
        if std::mem::take(&mut self.ack_due) && self.subscription.reads() {
            let state =
                AckState { incarnation: self.acked_incarnation, acked: self.acked.to_wire() };
            call.send(Ack { log: self.log, state });
        }
        Ok(())
    }
}
