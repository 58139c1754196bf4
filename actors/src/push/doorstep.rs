//! What the rest of the relay sees of doorbells: a place to leave word, which never makes it wait.
//!
//! Logs say for whom something waits, and who has acked. Word that does not fit is dropped and
//! counted; the actor then re-reads what the store has of the last minutes, as it does after a restart.
//!
//! Devices that have no doorbell are remembered here, so that logs need not speak of them at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use dashmap::DashMap;
use metrics::counter;
use parking_lot::{Mutex, RwLock};
use sealwire_protocol::{DeviceKey, LogId, LogType};
use tokio::time::Instant;

use super::Message;
use crate::limits::{DEAF_DEVICES_MAX, PUSH_TOLD_MAX};
use crate::mailbox::Mailbox;
use crate::metrics::DOORBELLS_DROPPED;
use crate::ports::{LogKey, Urgency};

/// Something became visible in a log, and these have not acked it.
pub(crate) struct Told {
    pub(crate) log: LogKey,
    pub(crate) id: LogId,
    pub(crate) log_type: LogType,
    pub(crate) since: Instant,
    /// Who, the entry, and how soon to wake them.
    pub(crate) devices: Vec<(DeviceKey, u64, Urgency)>,
}

/// A device has acked in a log.
pub(crate) struct Acked {
    pub(crate) log: LogKey,
    pub(crate) device: DeviceKey,
    /// The first entry that it was told of, or one after it, that it has not acked, and since when that
    /// is visible.
    pub(crate) left: Option<(u64, Instant)>,
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
    /// How often a device has said where its doorbell is. Held while that changes who is deaf.
    registrations: Mutex<u64>,
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
            registrations: Mutex::new(0),
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
        let these = told.devices.len();
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

    /// From now on word is left with this actor.
    pub(super) fn attend(&self, mailbox: Mailbox<Message>) {
        *self.mailbox.write() = Some(mailbox);
    }

    /// A device has said where its doorbell is, and that is durable.
    pub(crate) fn registered(&self, device: DeviceKey) {
        let mut registrations = self.registrations.lock();
        *registrations += 1;
        self.deaf.remove(&device);
    }

    /// A number that changes whenever a device says where its doorbell is.
    pub(crate) fn registrations(&self) -> u64 {
        *self.registrations.lock()
    }

    /// These had no doorbell when that number was looked at.
    pub(super) fn are_deaf(&self, devices: &[DeviceKey], registrations: u64) {
        let now = self.registrations.lock();
        if *now != registrations {
            // One of them may have one by now.
            return;
        }
        if self.deaf.len() + devices.len() > DEAF_DEVICES_MAX {
            self.deaf.clear();
        }
        for device in devices {
            self.deaf.insert(*device, ());
        }
    }
}
