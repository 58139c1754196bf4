//! What only a vault's log decides: enrolment, snapshots, compaction.

use sealwire_protocol::{Control, DeviceKey, ErrorCode};

use super::super::vault::Vault;
use super::{Decided, NotAppended, State, refused};
use crate::ports::{CompactStep, LogCommit, SnapshotRecord};

impl State {
    /// What a control entry may do in a vault. That the new device has signed its enrolment, and that
    /// a snapshot's bytes and head are what they are said to be, its session has checked.
    pub(super) fn check_vault_control(
        &self,
        vault: &Vault,
        sender: DeviceKey,
        control: &Control,
    ) -> Result<(), NotAppended> {
        match control {
            Control::Enrol { device, .. } => {
                if self.members.contains_key(device) {
                    return refused(ErrorCode::AlreadyMember);
                }
                if self.revoked.contains_key(device) {
                    return refused(ErrorCode::BadControl);
                }
                Ok(vault.check_devices(self.members.len())?)
            }
            Control::Revoke { device, join_key } => {
                // Nobody comes into a vault but by a device of it: only one that is here can be
                // removed.
                let here = *device != sender && self.members.contains_key(device);
                if !here || join_key.is_some() {
                    return refused(ErrorCode::BadControl);
                }
                Ok(())
            }
            Control::Leave => Ok(()),
            Control::Snapshot { head, digest, .. } => {
                let reachable = head.seq >= self.floor.seq && head.seq <= self.head.seq;
                if !reachable || vault.snapshot(*digest).is_some() {
                    return refused(ErrorCode::BadSnapshot);
                }
                Ok(vault.check_snapshots()?)
            }
            Control::SnapshotOpened { digest } => match vault.snapshot(*digest) {
                None => refused(ErrorCode::NoSuchSnapshot),
                // That its author can open it says nothing.
                Some(snapshot) if snapshot.author == sender => refused(ErrorCode::BadControl),
                Some(_) => Ok(()),
            },
            Control::Found { .. }
            | Control::Join { .. }
            | Control::JoinKey { .. }
            | Control::TotalsFound { .. }
            | Control::TotalsJoin { .. }
            | Control::TotalsLeave { .. } => refused(ErrorCode::BadControl),
        }
    }

    pub(super) fn apply_snapshot(
        &mut self,
        author: DeviceKey,
        seq: u64,
        at: u64,
        control: &Control,
    ) {
        let Some(vault) = self.policy.vault_mut() else {
            return;
        };
        if let Control::Snapshot { head, digest, size, .. } = control {
            let (head, digest, size) = (*head, *digest, *size);
            let confirmed = false;
            vault.made(SnapshotRecord { digest, head, size, author, seq, at, confirmed });
        }
        if let Control::SnapshotOpened { digest } = control {
            vault.opened(*digest);
        }
    }

    /// Retention: lets entries go that a confirmed snapshot covers. In a vault of one device,
    /// snapshots made before `alone_before` count as confirmed, if that device has made them and nobody
    /// has left or been revoked since.
    pub(in crate::log) fn compact(
        &mut self,
        step: &CompactStep,
        alone_before: u64,
    ) -> Option<Decided> {
        let vault = self.policy.vault_mut()?;
        if let (1, Some(alone)) = (self.members.len(), self.members.keys().next()) {
            // The guard is at or above the newest leave or revoke.
            vault.stood(*alone, self.guard_seq, alone_before);
        }
        let fits = step.from == self.floor.seq && step.up_to.seq > self.floor.seq;
        if !fits || step.up_to.seq > vault.covered() {
            return None;
        }
        vault.compacted(step);
        self.floor = step.up_to;
        let mut commit = LogCommit::new(self.key, self.head.seq, self.version);
        commit.floor = Some(step.up_to);
        commit.vault = vault.take_change();
        Some(self.decided(commit))
    }
}
