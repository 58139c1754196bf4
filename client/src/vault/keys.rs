//! The content keys of one vault's first scope, as far as this device was given them.
//!
//! Epochs are additive: a key that was held stays, and opens what was sealed under it.

use std::collections::BTreeMap;

use sealwire_protocol::DeviceKey;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::ids::Scope;
use sealwire_protocol::keys::KeyBody;

use super::VaultError;
use crate::identity::Identity;
use crate::keybox::{self, Grant};
use crate::seal::{EpochKey, KeyName, Place};

/// Most keys of other scopes that are kept.
const OTHERS_MAX: usize = 4096;

/// The keys of the first scope by epoch, and those of others, which are only handed on.
#[derive(Default)]
pub(super) struct Keys {
    first: BTreeMap<u32, EpochKey>,
    others: BTreeMap<(Scope, u32), EpochKey>,
}

impl Keys {
    /// The newest epoch that is held; 0 for none.
    pub(super) fn epoch(&self) -> u32 {
        self.first.keys().next_back().copied().unwrap_or(0)
    }

    pub(super) fn get(&self, epoch: u32) -> Option<&EpochKey> {
        self.first.get(&epoch)
    }

    /// Every epoch that is held.
    pub(super) fn all(&self) -> Vec<(u32, EpochKey)> {
        self.first.iter().map(|(epoch, key)| (*epoch, key.clone())).collect()
    }

    /// Every key of another scope that this device was given.
    pub(super) fn others(&self) -> Vec<(KeyName, EpochKey)> {
        let name = |(scope, epoch): (Scope, u32)| KeyName { scope, epoch };
        self.others.iter().map(|(of, key)| (name(*of), key.clone())).collect()
    }

    /// Keeps a key. The first one of an epoch stands: a later delivery cannot take its place.
    pub(super) fn keep(&mut self, epoch: u32, key: EpochKey) {
        self.first.entry(epoch).or_insert(key);
    }

    /// Takes the key out of a rotation or delivery, if there is one for this device.
    pub(super) fn take(
        &mut self,
        device: &Identity,
        scope: Scope,
        place: &Place<'_>,
        body: &KeyBody,
    ) -> bool {
        let me = device.key();
        let name = KeyName { scope: body.scope, epoch: body.epoch };
        let Some(sealed) = body.keys.iter().find(|sealed| sealed.recipient == me) else {
            return false;
        };
        match keybox::open(device, name, place, sealed) {
            Ok(grant) if body.scope == scope => {
                self.keep(body.epoch, grant.key);
                true
            }
            Ok(grant) => {
                if self.others.len() < OTHERS_MAX {
                    self.others.entry((body.scope, body.epoch)).or_insert(grant.key);
                }
                false
            }
            Err(_) => false,
        }
    }
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
