//! The content keys of one vault, as far as this device was given them.
//!
//! Epochs are additive: a key that was held stays, and opens what was sealed under it. Each is kept
//! beside the box in which it came, so that it can be stored without being opened: only this device's
//! own key opens it again.

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

/// A key as it came, and all that is needed to open it again.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Boxed {
    scope: Scope,
    epoch: u32,
    sender: DeviceKey,
    #[serde(with = "serde_bytes")]
    aad: Vec<u8>,
    sealed: SealedKey,
}

impl Boxed {
    /// Whether both are of the same scope and epoch.
    pub(super) fn opens_as(&self, other: &Self) -> bool {
        (self.scope, self.epoch) == (other.scope, other.epoch)
    }
}

/// By scope and epoch.
#[derive(Clone, Default)]
pub(super) struct Keys(BTreeMap<(Scope, u32), (EpochKey, Boxed)>);

impl Keys {
    /// The newest epoch of a scope that is held; 0 for none.
    pub(super) fn epoch(&self, scope: Scope) -> u32 {
        self.0.range((scope, 0)..=(scope, u32::MAX)).next_back().map_or(0, |((_, epoch), _)| *epoch)
    }

    pub(super) fn get(&self, scope: Scope, epoch: u32) -> Option<&EpochKey> {
        self.0.get(&(scope, epoch)).map(|(key, _)| key)
    }

    /// Every epoch of a scope that is held.
    pub(super) fn all(&self, scope: Scope) -> Vec<(u32, EpochKey)> {
        let held = self.0.range((scope, 0)..=(scope, u32::MAX));
        held.map(|((_, epoch), (key, _))| (*epoch, key.clone())).collect()
    }

    /// The scopes of which keys are held.
    pub(super) fn scopes(&self) -> BTreeSet<Scope> {
        self.0.keys().map(|(scope, _)| *scope).collect()
    }

    /// How many are held.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes the key out of a rotation or delivery, if there is one for this device. The first one of
    /// an epoch stands: a later delivery cannot take its place.
    pub(super) fn take(&mut self, device: &Identity, place: &Place<'_>, body: &KeyBody) {
        let me = device.key();
        let Some(sealed) = body.keys.iter().find(|sealed| sealed.recipient == me) else { return };
        let boxed = Boxed {
            scope: body.scope,
            epoch: body.epoch,
            sender: place.sender,
            aad: place.aad.to_vec(),
            sealed: sealed.clone(),
        };
        if !self.0.contains_key(&(body.scope, body.epoch))
            && let Some(key) = open(device, place.log, &boxed)
        {
            self.0.insert((body.scope, body.epoch), (key, boxed));
        }
    }

    /// Takes what is held elsewhere and not here.
    pub(super) fn join(&mut self, others: Self) {
        for (name, key) in others.0 {
            self.0.entry(name).or_insert(key);
        }
    }

    /// The keys as they came.
    pub(super) fn boxed(&self) -> Vec<Boxed> {
        self.0.values().map(|(_, boxed)| boxed.clone()).collect()
    }

    /// Opens keys that were stored. What does not open any more is left out.
    pub(super) fn unboxed(
        device: &Identity,
        log: sealwire_protocol::LogId,
        boxed: Vec<Boxed>,
    ) -> Self {
        let open = |boxed: Boxed| {
            let key = open(device, log, &boxed)?;
            Some(((boxed.scope, boxed.epoch), (key, boxed)))
        };
        Self(boxed.into_iter().filter_map(open).collect())
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
