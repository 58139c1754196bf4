//! Who is enrolled in a vault, derived from control entries and from nothing else.
//!
//! The relay runs the same rules and refuses what they refuse; a device checks all the same.
//!
//! Holds always:
//! - the first entry founds the vault, and no other does;
//! - a device is enrolled by one that is, and has signed for it itself;
//! - a revoked key is never enrolled again;
//! - positions only rise, so entries that are read twice change nothing.

use std::collections::BTreeMap;

use sealwire_protocol::ids::Scope;
use sealwire_protocol::{Control, DeviceKey, Digest, Header, LogId, LogType, signing};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a control entry changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The vault is founded already, or not yet, or it is no vault.
    #[error("only the first entry founds the vault, and nothing comes before it")]
    Founding,
    /// The author is not enrolled.
    #[error("the author is not enrolled")]
    NotEnrolled,
    /// The device is enrolled already, or was revoked, or has not signed, or may not speak at all.
    #[error("that device cannot be enrolled")]
    Enrolment,
    /// The device is not enrolled, or is the author.
    #[error("that device cannot be revoked by this one")]
    Target,
    /// The author had not seen a newer leave, revocation or rotation.
    #[error("the author had not seen a newer change")]
    Stale,
    /// Of a snapshot: it is not known, or its author has opened it itself.
    #[error("there is no such snapshot for this device to open")]
    Snapshot,
    /// Not for vaults.
    #[error("not for a vault")]
    NotForVaults,
}

/// The devices of one vault, as of what was applied.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Devices {
    scope: Option<Scope>,
    /// Each since which seq.
    enrolled: BTreeMap<DeviceKey, u64>,
    /// Each at which seq.
    revoked: BTreeMap<DeviceKey, u64>,
    /// Authors of snapshots.
    snapshots: BTreeMap<Digest, DeviceKey>,
    applied: u64,
    guard: u64,
    removal: u64,
    rotation: u64,
}

impl Devices {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The scope of the vault's first content key: the first half of the founding entry's random
    /// bytes. None before that was read.
    #[must_use]
    pub fn scope(&self) -> Option<Scope> {
        self.scope
    }

    /// The enrolled devices, each since which seq.
    pub fn enrolled(&self) -> impl ExactSizeIterator<Item = (DeviceKey, u64)> + '_ {
        self.enrolled.iter().map(|(device, seq)| (*device, *seq))
    }

    /// Whether `device` is enrolled.
    #[must_use]
    pub fn has(&self, device: DeviceKey) -> bool {
        self.enrolled.contains_key(&device)
    }

    /// Where `device` was revoked.
    #[must_use]
    pub fn revoked_at(&self, device: DeviceKey) -> Option<u64> {
        self.revoked.get(&device).copied()
    }

    /// Who made a snapshot real; none if nobody has.
    #[must_use]
    pub fn author(&self, snapshot: Digest) -> Option<DeviceKey> {
        self.snapshots.get(&snapshot).copied()
    }

    /// Whether a device was removed since the newest rotation: whoever writes next rotates first.
    #[must_use]
    pub fn wants_rotation(&self) -> bool {
        self.removal >= self.rotation && self.removal > 0
    }

    /// Checks a rotation at `seq`, and takes it. `first` says that it is one of the vault's first scope,
    /// with the epoch that comes next.
    ///
    /// # Errors
    /// [`Refusal::Stale`].
    pub fn rotated(&mut self, seq: u64, header: &Header, first: bool) -> Result<(), Refusal> {
        // What was read before is not judged by what came after.
        if seq > self.guard {
            self.check_conditional(header)?;
            self.guard = seq;
            if first {
                self.rotation = seq;
            }
        }
        Ok(())
    }

    /// Applies the control entry at `seq`.
    ///
    /// # Errors
    /// A [`Refusal`]; nothing has changed then.
    pub fn apply(
        &mut self,
        log: LogId,
        seq: u64,
        header: &Header,
        control: &Control,
    ) -> Result<(), Refusal> {
        if seq <= self.applied {
            return Ok(());
        }
        self.decide(log, seq, header, control)?;
        self.applied = seq;
        Ok(())
    }

    fn decide(
        &mut self,
        log: LogId,
        seq: u64,
        header: &Header,
        control: &Control,
    ) -> Result<(), Refusal> {
        let author = header.sender;
        if let Control::Found { log_type, random, .. } = control {
            let first = self.scope.is_none() && seq == 1 && *log_type == LogType::Vault;
            if !first || signing::admissible(author).is_err() {
                return Err(Refusal::Founding);
            }
            let mut scope = Scope::ZERO;
            scope.0.copy_from_slice(&random[..Scope::LEN]);
            self.scope = Some(scope);
            self.enrolled.insert(author, seq);
            return Ok(());
        }
        if self.scope.is_none() {
            return Err(Refusal::Founding);
        }
        if !self.has(author) {
            return Err(Refusal::NotEnrolled);
        }
        match control {
            Control::Enrol { device, signature } => {
                let known = self.has(*device) || self.revoked.contains_key(device);
                let message = signing::enrol_message(log, *device, author);
                let signed = signing::admissible(*device).is_ok()
                    && signing::verify(*device, &message, signature).is_ok();
                if known || !signed {
                    return Err(Refusal::Enrolment);
                }
                self.enrolled.insert(*device, seq);
            }
            Control::Leave => self.remove(author, seq),
            Control::Revoke { device, .. } => {
                if *device == author || !self.has(*device) {
                    return Err(Refusal::Target);
                }
                self.remove(*device, seq);
                self.revoked.insert(*device, seq);
            }
            Control::Snapshot { digest, .. } => {
                self.check_conditional(header)?;
                // Whoever says later that it is its own does not take it from its author.
                self.snapshots.entry(*digest).or_insert(author);
            }
            Control::SnapshotOpened { digest } => {
                if self.snapshots.get(digest).is_none_or(|by| *by == author) {
                    return Err(Refusal::Snapshot);
                }
            }
            Control::Found { .. }
            | Control::Join { .. }
            | Control::JoinKey { .. }
            | Control::TotalsFound { .. }
            | Control::TotalsJoin { .. }
            | Control::TotalsLeave { .. } => return Err(Refusal::NotForVaults),
        }
        Ok(())
    }

    fn remove(&mut self, device: DeviceKey, seq: u64) {
        self.enrolled.remove(&device);
        self.guard = seq;
        self.removal = seq;
    }

    fn check_conditional(&self, header: &Header) -> Result<(), Refusal> {
        if header.seen.seq < self.guard { Err(Refusal::Stale) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use sealwire_protocol::{Audience, Head, Kind};

    use super::*;
    use crate::identity::Identity;

    const LOG: LogId = LogId([1; 16]);

    fn device(number: u8) -> Identity {
        Identity::from_seed(&[number; 32])
    }

    fn header(author: &Identity, seen: u64) -> Header {
        Header {
            log: LOG,
            sender: author.key(),
            count: 1,
            prev: Digest::ZERO,
            kind: Kind::Control,
            audience: Audience::All,
            seen: Head { incarnation: 1, seq: seen, chain: Digest::ZERO },
            body: Digest::ZERO,
        }
    }

    fn enrol(author: &Identity, new: &Identity) -> Control {
        let signature = new.consent(LOG, author.key());
        Control::Enrol { device: new.key(), signature }
    }

    fn founded(founder: &Identity) -> Devices {
        let mut devices = Devices::new();
        let found = Control::Found { log_type: LogType::Vault, random: [7; 32], join_key: None };
        assert_eq!(devices.apply(LOG, 1, &header(founder, 0), &found), Ok(()));
        devices
    }

    #[test]
    fn a_device_is_enrolled_by_both_signatures_and_never_after_a_revocation() {
        let (one, two, three) = (device(1), device(2), device(3));
        let mut devices = founded(&one);
        let forged = Control::Enrol { device: two.key(), signature: two.consent(LOG, two.key()) };
        let refused = devices.apply(LOG, 2, &header(&one, 0), &forged);
        assert_eq!(refused, Err(Refusal::Enrolment));
        let outsider = devices.apply(LOG, 2, &header(&three, 0), &enrol(&three, &two));
        assert_eq!(outsider, Err(Refusal::NotEnrolled));
        assert_eq!(devices.apply(LOG, 2, &header(&one, 0), &enrol(&one, &two)), Ok(()));
        let revoke = Control::Revoke { device: two.key(), join_key: None };
        assert_eq!(devices.apply(LOG, 3, &header(&two, 0), &revoke), Err(Refusal::Target));
        assert_eq!(devices.apply(LOG, 3, &header(&one, 0), &revoke), Ok(()));
        assert!(devices.wants_rotation());
        let again = devices.apply(LOG, 4, &header(&one, 0), &enrol(&one, &two));
        assert_eq!(again, Err(Refusal::Enrolment));
        assert_eq!(devices.revoked_at(two.key()), Some(3));
        assert_eq!(devices.rotated(4, &header(&one, 2), true), Err(Refusal::Stale));
        assert_eq!(devices.rotated(4, &header(&one, 3), false), Ok(()));
        assert!(devices.wants_rotation(), "of the first scope");
        assert_eq!(devices.rotated(5, &header(&one, 4), true), Ok(()));
        assert!(!devices.wants_rotation());
    }

    #[test]
    fn only_another_device_opens_a_snapshot() {
        let (one, two) = (device(1), device(2));
        let mut devices = founded(&one);
        devices.apply(LOG, 2, &header(&one, 0), &enrol(&one, &two)).expect("enrolled");
        let digest = Digest([9; 32]);
        let opened = Control::SnapshotOpened { digest };
        let head = Head { incarnation: 1, seq: 2, chain: Digest::ZERO };
        let unknown = devices.apply(LOG, 3, &header(&two, 0), &opened);
        assert_eq!(unknown, Err(Refusal::Snapshot));
        let made = Control::Snapshot { head, digest, size: 1, chunks: 1 };
        assert_eq!(devices.apply(LOG, 3, &header(&one, 2), &made), Ok(()));
        assert_eq!(devices.apply(LOG, 4, &header(&one, 2), &opened), Err(Refusal::Snapshot));
        assert_eq!(devices.apply(LOG, 4, &header(&two, 0), &opened), Ok(()));
        assert_eq!(devices.apply(LOG, 5, &header(&two, 2), &made), Ok(()));
        assert_eq!(devices.author(digest), Some(one.key()), "it opens as whose it was first");
    }
}
