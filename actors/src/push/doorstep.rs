//! What the rest of the relay sees of doorbells: a place to leave word, which never makes it wait.
//!
//! Logs say for whom something waits, and who has acked. Word that does not fit is dropped and
//! counted; the actor then re-reads what the store has of the last minutes, as it does after a restart.
//!
//! With each telling goes a [`Word`]: while the actor has it, the device will be rung for what comes as
//! well, and the log need not speak of it again. So a burst is a few tellings, and nothing is lost when a
//! telling is: its word ends with it, wherever that happens.
//!
//! Devices that have no doorbell are remembered here, so that logs need not speak of them at all.

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dashmap::DashMap;
use metrics::counter;
use parking_lot::{Mutex, RwLock};
use sealwire_protocol::{DeviceKey, LogId};
use tokio::time::Instant;

use super::Message;
use crate::limits::{DEAF_DEVICES_MAX, PUSH_TOLD_MAX, REGISTRATIONS_KEPT};
use crate::mailbox::Mailbox;
use crate::metrics::DOORBELLS_DROPPED;
use crate::ports::{LogKey, Urgency};

/// Something became visible in a log, and these have not acked it.
pub(crate) struct Told {
    pub(crate) log: LogKey,
    pub(crate) id: LogId,
    /// When this was said.
    pub(crate) since: Instant,
    pub(crate) sleepers: Vec<Sleeper>,
}

/// A device for which something waits.
pub(crate) struct Sleeper {
    pub(crate) device: DeviceKey,
    /// The entry.
    pub(crate) seq: u64,
    /// How soon to wake it.
    pub(crate) urgency: Urgency,
    /// How long the entry was visible when this was said, in milliseconds.
    pub(crate) age_ms: u32,
    /// None if no log waits to speak of it again.
    pub(crate) word: Option<Word>,
}

/// The actor's end: while there is one, the device is going to be rung for the log.
pub(crate) struct Word(Arc<AtomicU64>);

/// The log's end.
#[derive(Clone)]
pub(crate) struct Given(Weak<AtomicU64>);

impl Word {
    /// Both ends, for this entry.
    pub(crate) fn new(seq: u64) -> (Self, Given) {
        let word = Arc::new(AtomicU64::new(seq));
        let given = Given(Arc::downgrade(&word));
        (Self(word), given)
    }

    /// The newest entry that was noted in it so far.
    pub(super) fn newest(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Ends it, and gives the newest entry that was noted in it. Whatever is noted later finds no word.
    pub(super) fn end(self) -> u64 {
        // Where one is being noted at this moment, nobody knows yet which.
        Arc::into_inner(self.0).map_or(u64::MAX, AtomicU64::into_inner)
    }
}

impl Given {
    /// Whether the word stands.
    #[cfg(test)]
    pub(crate) fn stands(&self) -> bool {
        self.0.strong_count() > 0
    }

    /// Notes a newer entry in it. Gives false if it has ended.
    pub(crate) fn note(&self, seq: u64) -> bool {
        let word = self.0.upgrade();
        word.is_some_and(|word| word.fetch_max(seq, Ordering::Relaxed) < u64::MAX)
    }
}

/// A device has acked in a group.
pub(crate) struct Acked {
    pub(crate) log: LogKey,
    pub(crate) device: DeviceKey,
    /// The first entry that it was told of, or one after it, that it has not acked, and since when that
    /// is visible.
    pub(crate) left: Option<(u64, Instant)>,
}

/// A device has asked what there is: it is awake.
#[derive(Clone, Copy)]
pub(crate) struct Awake {
    pub(crate) log: LogKey,
    pub(crate) device: DeviceKey,
    /// In a vault: it has, or is being given, everything up to and with this seq.
    pub(crate) read: Option<u64>,
}

/// Counts devices that the mailbox names, for as long as their message lives.
pub(crate) struct Named {
    all: Arc<AtomicUsize>,
    these: usize,
}

impl Drop for Named {
    fn drop(&mut self) {
        self.all.fetch_sub(self.these, Ordering::Relaxed);
    }
}

/// See the module's header.
pub(crate) struct Doorstep {
    on: bool,
    mailbox: RwLock<Option<Mailbox<Message>>>,
    named: Arc<AtomicUsize>,
    missed: AtomicBool,
    deaf: DashMap<DeviceKey, ()>,
    /// Held while it is changed who is deaf.
    registrations: Mutex<Registrations>,
}

/// Devices that have said where their doorbells are.
#[derive(Default)]
struct Registrations {
    /// How often that was.
    count: u64,
    /// Who the last ones were.
    last: VecDeque<DeviceKey>,
}

impl Registrations {
    /// Who has said so since there were so many; none if that was too long ago to be known.
    fn since(&self, count: u64) -> Option<HashSet<DeviceKey>> {
        let these = usize::try_from(self.count - count).ok()?;
        let first = self.last.len().checked_sub(these)?;
        Some(self.last.range(first..).copied().collect())
    }
}

impl Doorstep {
    /// `on` tells whether there is any push service.
    pub(crate) fn new(on: bool) -> Self {
        Self {
            on,
            mailbox: RwLock::new(None),
            named: Arc::default(),
            missed: AtomicBool::new(false),
            deaf: DashMap::new(),
            registrations: Mutex::default(),
        }
    }

    /// Whether anybody can be rung.
    pub(crate) fn is_on(&self) -> bool {
        self.on
    }

    /// Whether a device is known to have no doorbell.
    pub(crate) fn is_deaf(&self, device: DeviceKey) -> bool {
        self.deaf.contains_key(&device)
    }

    /// Something waits for these devices.
    pub(crate) fn tell(&self, told: Told) {
        let these = told.sleepers.len();
        if self.named.fetch_add(these, Ordering::Relaxed) + these > PUSH_TOLD_MAX {
            self.named.fetch_sub(these, Ordering::Relaxed);
            return self.missed(these as u64);
        }
        let named = Named { all: self.named.clone(), these };
        if !self.leave(Message::Told(told, named)) {
            self.missed(these as u64);
        }
    }

    /// A device has acked. If that is not heard, the device is rung once too often.
    pub(crate) fn acked(&self, acked: Acked) {
        self.leave(Message::Acked(acked));
    }

    /// A device is awake. If that is not heard, it is rung once too often, or a little later.
    pub(crate) fn awake(&self, awake: Awake) {
        if self.on && !self.is_deaf(awake.device) {
            self.leave(Message::Awake(awake));
        }
    }

    /// A device is no member of a log any more: nothing waits for it there.
    pub(crate) fn gone(&self, log: LogKey, device: DeviceKey) {
        if self.on {
            self.acked(Acked { log, device, left: None });
        }
    }

    fn leave(&self, message: Message) -> bool {
        let mailbox = self.mailbox.read();
        mailbox.as_ref().is_some_and(|mailbox| mailbox.cast(message).is_ok())
    }

    /// Word of so many devices was lost, or may have been: what they miss is to be re-read.
    pub(crate) fn missed(&self, devices: u64) {
        if self.on {
            counter!(DOORBELLS_DROPPED).increment(devices);
            self.missed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether anything was missed since this was asked last.
    pub(super) fn take_missed(&self) -> bool {
        self.missed.swap(false, Ordering::Relaxed)
    }

    /// For how long the oldest word that was left has waited.
    pub(crate) fn oldest(&self) -> Duration {
        self.mailbox.read().as_ref().map_or(Duration::ZERO, Mailbox::oldest)
    }

    /// Ends the actor with which word is left.
    #[cfg(any(test, feature = "fakes"))]
    pub(crate) fn kill(&self) {
        if let Some(mailbox) = self.mailbox.read().as_ref() {
            mailbox.cell().kill();
        }
    }

    /// From now on word is left with this actor.
    pub(super) fn attend(&self, mailbox: Mailbox<Message>) {
        *self.mailbox.write() = Some(mailbox);
    }

    /// A device has said where its doorbell is, and that is durable.
    pub(crate) fn registered(&self, device: DeviceKey) {
        let mut registrations = self.registrations.lock();
        registrations.count += 1;
        if registrations.last.len() == REGISTRATIONS_KEPT {
            registrations.last.pop_front();
        }
        registrations.last.push_back(device);
        self.deaf.remove(&device);
    }

    /// A number that changes whenever a device says where its doorbell is.
    pub(crate) fn registrations(&self) -> u64 {
        self.registrations.lock().count
    }

    /// These had no doorbell when that number was looked at.
    pub(super) fn are_deaf(&self, devices: &[DeviceKey], registrations: u64) {
        let now = self.registrations.lock();
        // Those may have one by now.
        let Some(others) = now.since(registrations) else {
            return;
        };
        if self.deaf.len() + devices.len() > DEAF_DEVICES_MAX {
            self.deaf.clear();
        }
        for device in devices.iter().filter(|device| !others.contains(device)) {
            self.deaf.insert(*device, ());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_stands_until_it_ends_wherever_that_is() {
        let (word, given) = Word::new(3);
        assert!(given.stands() && given.note(5) && given.note(4));
        assert_eq!(word.end(), 5);
        assert!(!given.stands() && !given.note(6));
        let (word, given) = Word::new(3);
        drop(word);
        assert!(!given.stands());
    }

    #[test]
    fn whoever_had_no_doorbell_is_deaf_whatever_others_say_meanwhile() {
        let doorstep = Doorstep::new(true);
        let device = |n: u32| {
            let mut key = [9; 32];
            key[..4].copy_from_slice(&n.to_be_bytes());
            DeviceKey(key)
        };
        let looked = doorstep.registrations();
        doorstep.registered(device(1));
        doorstep.registered(device(2));
        doorstep.are_deaf(&[device(2), device(3)], looked);
        assert!(!doorstep.is_deaf(device(2)), "it has said where it is since");
        assert!(doorstep.is_deaf(device(3)));
        doorstep.registered(device(3));
        assert!(!doorstep.is_deaf(device(3)));
        // There is an end to what is remembered of that.
        for n in 0..REGISTRATIONS_KEPT as u32 + 1 {
            doorstep.registered(device(10 + n));
        }
        doorstep.are_deaf(&[device(4)], looked);
        assert!(!doorstep.is_deaf(device(4)), "it may be among those that are forgotten");
    }
}
