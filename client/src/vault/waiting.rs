//! Changesets that came before their key: that of a new device stands behind all that it opens.
//!
//! They wait in memory, up to a bound. What does not fit is read again when a key has come: from the
//! first one that did not fit, with what the vault knew there, so that every check is made as it was.
//! Only what could not be opened the first time is given then.
//!
//! Holds always:
//! - a changeset is given once, however often it is read;
//! - what waits, or is to be read again, outlives the process: [`Vault::save`] says from where.

use std::collections::BTreeSet;

use sealwire_protocol::frame::{Entry, Subscribe};
use sealwire_protocol::{DeviceKey, Head};

use super::keys::Keys;
use super::reading::{Changeset, Pulled};
use super::saved::Saved;
use super::{Vault, VaultError};
use crate::seal::{self, Place};
use crate::wire::Wire;

/// Most bytes of changesets that wait for their key, unless [`Vault::keep_waiting`] says otherwise: the
/// tail of a busy household after a snapshot.
const WAITING_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Changesets that wait for their key.
pub(super) struct Waiting {
    entries: Vec<Entry>,
    bytes: usize,
    bytes_max: usize,
    /// How many keys were held when they were last tried.
    tried: usize,
    /// What the vault knew before the first one that was not opened, with the keys that all after it
    /// were tried with.
    first: Option<Saved>,
    /// As before, of the first one that did not fit. From there on none is kept.
    forgotten: Option<Forgotten>,
}

impl Default for Waiting {
    fn default() -> Self {
        let bytes_max = WAITING_BYTES_MAX;
        Self { entries: Vec::new(), bytes: 0, bytes_max, tried: 0, first: None, forgotten: None }
    }
}

#[derive(Clone)]
struct Forgotten {
    before: Saved,
    tried: usize,
}

impl Waiting {
    /// What a vault that was stored has to read again.
    pub(super) fn from_before(before: Option<Saved>) -> Self {
        let forgotten =
            before.clone().map(|before| Forgotten { tried: before.keys_held(), before });
        Self { first: before, forgotten, ..Self::default() }
    }

    /// What is to be stored of it.
    pub(super) fn before(&self) -> Option<&Saved> {
        self.first.as_ref()
    }

    fn fits(&self, entry: &Entry) -> bool {
        self.forgotten.is_none() && self.bytes + entry.body.len() <= self.bytes_max
    }

    fn push(&mut self, entry: Entry) {
        self.bytes += entry.body.len();
        self.entries.push(entry);
    }
}

/// A reading of what was read before.
pub(super) struct Rereading {
    /// All keys that are held now; the vault that reads has those of then.
    keys: Keys,
    /// How far it was read before.
    until: Head,
}

impl Rereading {
    pub(super) fn until(&self) -> Head {
        self.until
    }
}

/// What an attempt to open a changeset ends with.
enum Opened {
    Payload(Vec<u8>),
    /// Its key is not held.
    NoKey(u32),
    /// It will never open.
    Never(u32),
    /// It was given before.
    Given,
}

impl Vault {
    /// How many bytes of changesets wait in memory for a key that has not come. What is beyond is read
    /// again when it has: the less memory, the more is read twice.
    pub fn keep_waiting(&mut self, bytes_max: usize) {
        self.waiting.bytes_max = bytes_max;
    }

    /// Opens a changeset that has just been read, or lets it wait.
    pub(super) fn open_changeset(&mut self, entry: &Entry, author: DeviceKey) {
        match self.try_changeset(entry, author) {
            Opened::Payload(payload) => self.give(entry, author, payload),
            Opened::NoKey(epoch) => {
                self.unread.sealed.push((entry.seq, epoch));
                self.wait(entry);
            }
            Opened::Never(epoch) => self.unread.sealed.push((entry.seq, epoch)),
            Opened::Given => {}
        }
    }

    fn try_changeset(&self, entry: &Entry, author: DeviceKey) -> Opened {
        let Ok(name) = seal::key_name(entry.body.as_ref()) else { return Opened::Never(0) };
        let then = self.keys.get(name.scope, name.epoch);
        let keys = match &self.rereading {
            Some(again) if entry.seq <= again.until.seq && then.is_some() => return Opened::Given,
            Some(again) if then.is_none() => &again.keys,
            _ => &self.keys,
        };
        if keys.get(name.scope, name.epoch).is_none() {
            return Opened::NoKey(name.epoch);
        }
        let place = Place { log: self.log, sender: author, aad: entry.header.aad() };
        let mut candidates = keys.candidates(name.scope, name.epoch);
        match candidates.find_map(|key| seal::open(key, &place, entry.body.as_ref()).ok()) {
            Some(payload) => Opened::Payload(payload.to_vec()),
            None => Opened::Never(name.epoch),
        }
    }

    fn give(&mut self, entry: &Entry, author: DeviceKey, payload: Vec<u8>) {
        self.unread.changesets.push(Changeset { seq: entry.seq, at: entry.at, author, payload });
    }

    fn wait(&mut self, entry: &Entry) {
        if self.waiting.first.is_none() {
            self.waiting.first = Some(self.state());
        }
        if self.waiting.fits(entry) {
            self.waiting.push(entry.clone());
            return;
        }
        if self.waiting.forgotten.is_none() {
            let (before, tried) = (self.state(), self.keys.len());
            self.waiting.forgotten = Some(Forgotten { before, tried });
        }
        self.unread.forgotten += 1;
    }

    /// Gives what can be opened by now, and reads again what did not fit.
    pub(super) async fn open_waiting(&mut self, wire: &mut Wire) -> Result<(), VaultError> {
        self.try_waiting();
        while let Some(forgotten) = self.waiting.forgotten.clone()
            && self.keys.len() > forgotten.tried
        {
            self.read_again(wire, forgotten.before).await?;
            self.try_waiting();
        }
        self.unread.changesets.sort_by_key(|changeset| changeset.seq);
        if self.waiting.entries.is_empty() && self.waiting.forgotten.is_none() {
            self.waiting.first = None;
        }
        if let Some(first) = &mut self.waiting.first {
            first.tried_with(&self.keys);
        }
        Ok(())
    }

    fn try_waiting(&mut self) {
        if self.keys.len() == self.waiting.tried {
            return;
        }
        self.waiting.tried = self.keys.len();
        self.waiting.bytes = 0;
        let entries = std::mem::take(&mut self.waiting.entries);
        let seqs: BTreeSet<u64> = entries.iter().map(|entry| entry.seq).collect();
        self.unread.sealed.retain(|(seq, _)| !seqs.contains(seq));
        for entry in entries {
            let Ok(header) = entry.header.decode() else { continue };
            match self.try_changeset(&entry, header.sender) {
                Opened::Payload(payload) => self.give(&entry, header.sender, payload),
                Opened::NoKey(epoch) => {
                    self.unread.sealed.push((entry.seq, epoch));
                    self.waiting.push(entry);
                }
                Opened::Never(epoch) => self.unread.sealed.push((entry.seq, epoch)),
                Opened::Given => {}
            }
        }
    }

    /// Reads again from where `before` was, to the end. If it fails, nothing has changed.
    async fn read_again(&mut self, wire: &mut Wire, before: Saved) -> Result<(), VaultError> {
        let Some(until) = self.head() else { return Ok(()) };
        let mut again = Self::from_saved(self.device.clone(), before);
        (again.spoiled, again.healing) = (None, None);
        let from = again.head();
        let tried = self.keys.clone();
        again.rereading = Some(Rereading { keys: tried.clone(), until });
        again.waiting.bytes_max = self.waiting.bytes_max.saturating_sub(self.waiting.bytes);
        let frame = Subscribe { log: self.log, cursor: from, acked: None };
        again.read_to_the_end(wire, frame.into()).await?;

        let Pulled { changesets, sealed, rejected, forgotten, bytes, floor, forked } = again.unread;
        let from = from.map_or(0, |head| head.seq);
        let unread = &mut self.unread;
        unread.changesets.extend(changesets);
        unread.sealed.retain(|(seq, _)| *seq <= from);
        unread.sealed.extend(sealed);
        unread.rejected.extend(rejected.into_iter().filter(|(seq, _)| *seq > until.seq));
        unread.forgotten = forgotten;
        unread.bytes += bytes;
        unread.floor = floor.or(unread.floor.take());
        unread.forked = unread.forked.or(forked);
        self.track = again.track;
        self.devices = again.devices;
        self.senders = again.senders;
        self.loose = again.loose;
        self.scopes = again.scopes;
        self.epochs = again.epochs;
        self.enroller = again.enroller;
        self.chains = again.chains;
        self.expected = again.expected;
        self.unproven = again.unproven;
        if self.spoiled.is_none() {
            self.spoiled = again.spoiled;
        }
        if again.own.count > self.own.count {
            self.own = again.own;
        }
        let held = std::mem::replace(&mut self.keys, again.keys);
        self.keys.join(held);
        let Waiting { entries, first, forgotten, .. } = again.waiting;
        if self.waiting.entries.is_empty() {
            self.waiting.first = first;
        }
        entries.into_iter().for_each(|entry| self.waiting.push(entry));
        // Keys that came in this reading have not been tried on what came before them.
        self.waiting.tried = self.waiting.tried.min(tried.len());
        self.waiting.forgotten = forgotten.map(|Forgotten { mut before, .. }| {
            before.tried_with(&tried);
            Forgotten { before, tried: tried.len() }
        });
        Ok(())
    }
}
