//! The content keys of one vault, as far as this device was given them.
//!
//! Epochs are additive: a key that was held stays, and opens what was sealed under it. Each is kept
//! beside the box in which it came, so that it can be stored without being opened: only this device's
//! own key opens it again.
//!
//! Any device of a vault can deliver a key, and a false one as well as the true one. So several keys of
//! an epoch may be held: each is tried on what is to be opened, and for sealing only one that came in a
//! rotation, or from the device that has enrolled this one, is trusted.

use std::collections::{BTreeMap, BTreeSet};

use sealwire_protocol::DeviceKey;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::ids::Scope;
use sealwire_protocol::keys::{KeyBody, SealedKey};
use serde::{Deserialize, Serialize};

use super::VaultError;
use crate::identity::Identity;
use crate::keybox::{self, Grant};
use crate::seal::{EpochKey, KeyName, Place};

/// Most keys of one epoch that are held: the true one, and what a few members may have slipped in.
const CANDIDATES_MAX: usize = 4;

/// A key as it came, and all that is needed to open it again.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Boxed {
    scope: Scope,
    epoch: u32,
    sender: DeviceKey,
    #[serde(with = "serde_bytes")]
    aad: Vec<u8>,
    sealed: SealedKey,
    /// Whether it came in a rotation, or from the device that has enrolled this one.
    #[serde(default)]
    trusted: bool,
}

impl Boxed {
    /// Whether both are the same box.
    pub(super) fn is(&self, other: &Self) -> bool {
        let name = |it: &Self| (it.scope, it.epoch, it.sender);
        name(self) == name(other) && self.aad == other.aad
    }
}

/// By scope and epoch: the one that is used first, and others that somebody has given.
#[derive(Clone, Default)]
pub(super) struct Keys(BTreeMap<(Scope, u32), Vec<(EpochKey, Boxed)>>);

impl Keys {
    /// The newest epoch of a scope that is held; 0 for none.
    pub(super) fn epoch(&self, scope: Scope) -> u32 {
        self.0.range((scope, 0)..=(scope, u32::MAX)).next_back().map_or(0, |((_, epoch), _)| *epoch)
    }

    pub(super) fn get(&self, scope: Scope, epoch: u32) -> Option<&EpochKey> {
        self.candidates(scope, epoch).next()
    }

    /// Every key that somebody has given as this one; the one to use first.
    pub(super) fn candidates(&self, scope: Scope, epoch: u32) -> impl Iterator<Item = &EpochKey> {
        self.0.get(&(scope, epoch)).into_iter().flatten().map(|(key, _)| key)
    }

    /// Whether this key is held and may be sealed under.
    pub(super) fn is_trusted(&self, scope: Scope, epoch: u32) -> bool {
        let held = self.0.get(&(scope, epoch)).and_then(|held| held.first());
        held.is_some_and(|(_, boxed)| boxed.trusted)
    }

    /// Every epoch of a scope that is held.
    pub(super) fn all(&self, scope: Scope) -> Vec<(u32, EpochKey)> {
        let held = self.0.range((scope, 0)..=(scope, u32::MAX));
        held.filter_map(|((_, epoch), held)| Some((*epoch, held.first()?.0.clone()))).collect()
    }

    /// The scopes of which keys are held.
    pub(super) fn scopes(&self) -> BTreeSet<Scope> {
        self.0.keys().map(|(scope, _)| *scope).collect()
    }

    /// How many are held.
    pub(super) fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }

    /// Takes the key out of a rotation or delivery, if there is one for this device. One that is
    /// trusted goes before all others, and takes the place of the last if there are too many.
    pub(super) fn take(
        &mut self,
        device: &Identity,
        place: &Place<'_>,
        body: &KeyBody,
        trusted: bool,
    ) {
        let me = device.key();
        let Some(sealed) = body.keys.iter().find(|sealed| sealed.recipient == me) else { return };
        let boxed = Boxed {
            scope: body.scope,
            epoch: body.epoch,
            sender: place.sender,
            aad: place.aad.to_vec(),
            sealed: sealed.clone(),
            trusted,
        };
        if let Some(key) = open(device, place.log, &boxed) {
            self.hold(key, boxed);
        }
    }

    fn hold(&mut self, key: EpochKey, boxed: Boxed) {
        let held = self.0.entry((boxed.scope, boxed.epoch)).or_default();
        if boxed.trusted {
            held.retain(|(other, _)| *other != key);
            held.insert(0, (key, boxed));
            held.truncate(CANDIDATES_MAX);
        } else if held.len() < CANDIDATES_MAX && held.iter().all(|(other, _)| *other != key) {
            held.push((key, boxed));
        }
    }

    /// Takes what is held elsewhere and not here.
    pub(super) fn join(&mut self, others: Self) {
        for (key, boxed) in others.0.into_values().flatten() {
            let held = self.0.entry((boxed.scope, boxed.epoch)).or_default();
            if held.len() < CANDIDATES_MAX && held.iter().all(|(other, _)| *other != key) {
                held.push((key, boxed));
            }
        }
    }

    /// The keys as they came.
    pub(super) fn boxed(&self) -> Vec<Boxed> {
        self.0.values().flatten().map(|(_, boxed)| boxed.clone()).collect()
    }

    /// Opens keys that were stored. What does not open any more is left out.
    pub(super) fn unboxed(
        device: &Identity,
        log: sealwire_protocol::LogId,
        boxed: Vec<Boxed>,
    ) -> Self {
        let mut keys = Self::default();
        for boxed in boxed {
            if let Some(key) = open(device, log, &boxed) {
                keys.0.entry((boxed.scope, boxed.epoch)).or_default().push((key, boxed));
            }
        }
        keys
    }
}

fn open(device: &Identity, log: sealwire_protocol::LogId, boxed: &Boxed) -> Option<EpochKey> {
    let place = Place { log, sender: boxed.sender, aad: &boxed.aad };
    let name = KeyName { scope: boxed.scope, epoch: boxed.epoch };
    keybox::open(device, name, &place, &boxed.sealed).ok().map(|grant| grant.key)
}

/// The body of a rotation or delivery.
pub(super) fn seal(
    key: &EpochKey,
    name: KeyName,
    place: &Place<'_>,
    recipients: &[DeviceKey],
) -> Result<Vec<u8>, VaultError> {
    let grant = Grant { key: key.clone(), join_seed: None, head: None };
    let mut sealed = Vec::with_capacity(recipients.len());
    for recipient in recipients {
        sealed.push(keybox::seal(&grant, name, place, *recipient).map_err(|_| VaultError::NoKey)?);
    }
    let keys = Bounded::new(sealed).ok_or(VaultError::TooLong)?;
    KeyBody { scope: name.scope, epoch: name.epoch, keys }.encode().map_err(|_| VaultError::TooLong)
}
