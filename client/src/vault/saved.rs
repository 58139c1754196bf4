//! What must outlive the process, as bytes: how far a vault was read, who is enrolled, which keys came.
//!
//! Keys are kept sealed to this device, as they came; nothing in here is of use without its own key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sealwire_protocol::ids::Scope;
use sealwire_protocol::{DeviceKey, Digest, Head, LogId};
use serde::{Deserialize, Serialize};

use super::chains::Chains;
use super::keys::{Boxed, Keys};
use super::scopes::Scopes;
use super::spoiled::{Healing, Spoiled};
use super::waiting::Waiting;
use super::{Devices, Vault};
use crate::chain::Track;
use crate::identity::Identity;
use crate::numbering::Mark;
use crate::spoiled::Unproven;

/// The version of this encoding.
const VERSION: u8 = 1;

/// What a vault knows at one place.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Saved {
    version: u8,
    log: LogId,
    head: Option<Head>,
    devices: Devices,
    scopes: Scopes,
    senders: BTreeMap<DeviceKey, (u64, Digest)>,
    loose: BTreeSet<DeviceKey>,
    own: (u64, Digest),
    keys: Vec<Boxed>,
    /// From where changesets are to be read again when a key comes: they were read and not opened.
    #[serde(default)]
    again: Option<Box<Saved>>,
    #[serde(default)]
    epochs: BTreeMap<Scope, u32>,
    #[serde(default)]
    enroller: Option<DeviceKey>,
    #[serde(default)]
    chains: Chains,
    #[serde(default)]
    expected: Option<Head>,
    #[serde(default)]
    unproven: Unproven,
    #[serde(default)]
    spoiled: Option<Spoiled>,
    #[serde(default)]
    healing: Option<Healing>,
}

impl Saved {
    /// How many keys are held.
    pub(super) fn keys_held(&self) -> usize {
        self.keys.len()
    }

    /// From where changesets are to be read again when a key comes.
    pub(super) fn set_again(&mut self, again: Option<&Self>) {
        self.again = again.cloned().map(Box::new);
    }

    /// The same, with nothing to be read again.
    pub(super) fn without_spoiled(self) -> Self {
        Self { spoiled: None, healing: None, ..self }
    }

    /// From now on these keys are held as well.
    pub(super) fn tried_with(&mut self, keys: &Keys) {
        for boxed in keys.boxed() {
            if !self.keys.iter().any(|held| held.is(&boxed)) {
                self.keys.push(boxed);
            }
        }
    }
}

impl Vault {
    /// Everything that has to be kept. What was read and [`Vault::pull`] has not given yet is not in it:
    /// it is read again.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let mut saved = self.settled.clone().unwrap_or_else(|| self.state());
        saved.own = (self.own.count, self.own.digest);
        if self.settled.is_none() {
            saved.set_again(self.waiting.before());
        }
        rmp_serde::to_vec(&saved).expect("numbers and bytes can be written to memory")
    }

    /// Goes on where [`Vault::save`] was. None if the bytes are damaged.
    #[must_use]
    pub fn restore(device: Arc<Identity>, bytes: &[u8]) -> Option<Self> {
        let mut saved: Saved = rmp_serde::from_slice(bytes).ok()?;
        if saved.version != VERSION {
            return None;
        }
        let again = saved.again.take();
        let mut vault = Self::from_saved(device, saved);
        vault.waiting = Waiting::from_before(again.map(|again| *again));
        Some(vault)
    }

    /// What is known here and now.
    pub(super) fn state(&self) -> Saved {
        Saved {
            version: VERSION,
            log: self.log,
            head: self.head(),
            devices: self.devices.clone(),
            scopes: self.scopes.clone(),
            senders: self.senders.iter().map(|(key, it)| (*key, (it.count, it.digest))).collect(),
            loose: self.loose.clone(),
            own: (self.own.count, self.own.digest),
            keys: self.keys.boxed(),
            again: None,
            epochs: self.epochs.clone(),
            enroller: self.enroller,
            chains: self.chains.clone(),
            expected: self.expected,
            unproven: self.unproven.clone(),
            spoiled: self.spoiled.clone(),
            healing: self.healing.clone(),
        }
    }

    pub(super) fn from_saved(device: Arc<Identity>, saved: Saved) -> Self {
        let keys = Keys::unboxed(&device, saved.log, saved.keys);
        let mut vault = Self::new(device, saved.log);
        vault.track = saved.head.map_or(vault.track, Track::at);
        vault.devices = saved.devices;
        vault.scopes = saved.scopes;
        let mark = |(count, digest)| Mark { count, digest };
        vault.senders = saved.senders.into_iter().map(|(key, it)| (key, mark(it))).collect();
        vault.loose = saved.loose;
        vault.own = mark(saved.own);
        vault.epochs = saved.epochs;
        for scope in keys.scopes() {
            vault.epochs.entry(scope).or_insert_with(|| keys.epoch(scope));
        }
        vault.keys = keys;
        vault.enroller = saved.enroller;
        vault.chains = saved.chains;
        vault.expected = saved.expected;
        vault.unproven = saved.unproven;
        vault.spoiled = saved.spoiled;
        vault.healing = saved.healing;
        vault
    }
}
