//! What must outlive the process, as bytes: how far a vault was read, who is enrolled, which keys came.
//!
//! Keys are kept sealed to this device, as they came; nothing in here is of use without its own key.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sealwire_protocol::{DeviceKey, Digest, Head, LogId};
use serde::{Deserialize, Serialize};

use super::keys::{Boxed, Keys};
use super::scopes::Scopes;
use super::{Devices, Vault};
use crate::identity::Identity;
use crate::numbering::Mark;

/// The version of this encoding.
const VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct Saved {
    version: u8,
    log: LogId,
    head: Option<Head>,
    devices: Devices,
    scopes: Scopes,
    senders: BTreeMap<DeviceKey, (u64, Digest)>,
    loose: BTreeSet<DeviceKey>,
    own: (u64, Digest),
    keys: Vec<Boxed>,
}

impl Vault {
    /// Everything that has to be kept. What [`Vault::pull`] has not given yet is not in it.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        let saved = Saved {
            version: VERSION,
            log: self.log,
            head: self.head(),
            devices: self.devices.clone(),
            scopes: self.scopes.clone(),
            senders: self.senders.iter().map(|(key, it)| (*key, (it.count, it.digest))).collect(),
            loose: self.loose.clone(),
            own: (self.own.count, self.own.digest),
            keys: self.keys.boxed(),
        };
        rmp_serde::to_vec(&saved).expect("numbers and bytes can be written to memory")
    }

    /// Goes on where [`Vault::save`] was. None if the bytes are damaged.
    #[must_use]
    pub fn restore(device: Arc<Identity>, bytes: &[u8]) -> Option<Self> {
        let saved: Saved = rmp_serde::from_slice(bytes).ok()?;
        if saved.version != VERSION {
            return None;
        }
        let keys = Keys::unboxed(&device, saved.log, saved.keys);
        let mut vault = Self::new(device, saved.log);
        vault.rewind(saved.head);
        vault.devices = saved.devices;
        vault.scopes = saved.scopes;
        let mark = |(count, digest)| Mark { count, digest };
        vault.senders = saved.senders.into_iter().map(|(key, it)| (key, mark(it))).collect();
        vault.loose = saved.loose;
        vault.own = mark(saved.own);
        vault.keys = keys;
        Some(vault)
    }
}
