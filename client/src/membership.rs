//! Who is a member of a group, derived from control entries and from nothing else.
//!
//! Every device runs the same rules over the same entries, so all of them agree without asking the
//! relay. The relay runs them too and refuses what they refuse; a device checks all the same.
//!
//! Holds always:
//! - the first entry founds the group, and no other does;
//! - a revoked key is never a member again;
//! - who is not a member changes nothing but by joining;
//! - positions only rise, so entries that are read twice change nothing.

use std::collections::BTreeMap;

use sealwire_protocol::ids::Scope;
use sealwire_protocol::limits::{NATIVE_MEMBERS_MAX, TOTALS_MEMBERS_MAX};
use sealwire_protocol::{Control, DeviceKey, Header, LogId, LogType, signing};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Since when somebody is a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    /// The seq of the control entry that made it one.
    pub seq: u64,
    /// When, in milliseconds since the epoch, by the relay's clock.
    pub at: u64,
}

/// The end of a device in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The seq of the control entry that revoked it.
    pub seq: u64,
    /// By whom.
    pub by: DeviceKey,
}

/// What a control entry has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// The group exists; this is its founder.
    Founded(DeviceKey),
    /// A new member.
    Joined(DeviceKey),
    /// A member less.
    Left(DeviceKey),
    /// A member less, for good; need not have been one.
    Revoked(DeviceKey),
    /// Another join key is good from now on.
    JoinKey,
}

/// Why a control entry changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// It was applied before.
    #[error("already applied")]
    Known,
    /// The group is founded already, or not yet.
    #[error("only the first entry founds the log, and nothing comes before it")]
    Founding,
    /// The author is not a member.
    #[error("the author is not a member")]
    NotAMember,
    /// The joiner is a member already.
    #[error("the joiner is a member already")]
    Member,
    /// The joiner was revoked.
    #[error("the joiner was revoked")]
    Revoked,
    /// The join key's signature does not verify, or there is no join key now.
    #[error("the join key did not sign")]
    JoinKey,
    /// The key of the founder, the joiner or the join key may not speak at all.
    #[error("a key is not admissible")]
    Key,
    /// The one who is to be revoked is the author, or was revoked before.
    #[error("that device cannot be revoked by this one")]
    Target,
    /// As many members as allowed.
    #[error("the group is full")]
    Full,
    /// The author had not seen a newer leave, revoke, join key or rotation.
    #[error("the author had not seen a newer change")]
    Stale,
    /// Not for native groups.
    #[error("not for a native group")]
    NotForGroups,
}

/// The members of one native group, as of [`Membership::applied`].
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Membership {
    /// The scope of the group's content keys: the first half of the founding entry's random bytes,
    /// so that every member knows it from entry 1. None before that.
    scope: Option<Scope>,
    members: BTreeMap<DeviceKey, Since>,
    revoked: BTreeMap<DeviceKey, Revocation>,
    join_key: Option<DeviceKey>,
    /// The seq of the newest control entry that was applied.
    applied: u64,
    /// The newest seq of a leave, revoke, join key or rotation.
    guard: u64,
    /// The newest seq of a leave or revoke.
    removal: u64,
    /// The newest seq of a rotation.
    rotation: u64,
}

impl Membership {
    /// Nothing is known yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether the founding entry is known.
    #[must_use]
    pub fn is_founded(&self) -> bool {
        self.scope.is_some()
    }

    /// The scope of the group's content keys.
    #[must_use]
    pub fn scope(&self) -> Option<Scope> {
        self.scope
    }

    /// The members, by key.
    pub fn members(&self) -> impl ExactSizeIterator<Item = (DeviceKey, Since)> + '_ {
        self.members.iter().map(|(key, since)| (*key, *since))
    }

    /// Since when `device` is a member; none if it is not.
    #[must_use]
    pub fn since(&self, device: DeviceKey) -> Option<Since> {
        self.members.get(&device).copied()
    }

    /// Whether `device` is a member.
    #[must_use]
    pub fn has(&self, device: DeviceKey) -> bool {
        self.members.contains_key(&device)
    }

    /// Where `device` was revoked, and by whom.
    #[must_use]
    pub fn revocation(&self, device: DeviceKey) -> Option<Revocation> {
        self.revoked.get(&device).copied()
    }

    /// The join key that is good now.
    #[must_use]
    pub fn join_key(&self) -> Option<DeviceKey> {
        self.join_key
    }

    /// The seq of the newest control entry that was applied.
    #[must_use]
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// The newest seq of a leave, revoke, join key or rotation: what the author of a conditional
    /// entry must have seen.
    #[must_use]
    pub fn guard(&self) -> u64 {
        self.guard
    }

    /// Whether somebody was removed since the newest rotation: whoever wants to write rotates
    /// first.
    #[must_use]
    pub fn wants_rotation(&self) -> bool {
        self.removal > self.rotation
    }

    /// `newcomer` was given the current key by a member who had seen the removals before its join:
    /// who would deliver a key that a removed device holds makes another one instead. The newcomer
    /// cannot see the rotations from before it came.
    pub fn given_current_key(&mut self, newcomer: DeviceKey) {
        if self.since(newcomer).is_some_and(|since| self.removal < since.seq) {
            self.rotation = self.rotation.max(self.removal);
        }
    }

    /// Whether a conditional entry with this header may stand.
    ///
    /// # Errors
    /// [`Refusal::Stale`].
    pub fn check_conditional(&self, header: &Header) -> Result<(), Refusal> {
        if header.seen.seq < self.guard { Err(Refusal::Stale) } else { Ok(()) }
    }

    /// A rotation stands at `seq`.
    pub fn rotated(&mut self, seq: u64) {
        self.rotation = self.rotation.max(seq);
        self.guard = self.guard.max(seq);
    }

    /// Applies the control entry at `seq`.
    ///
    /// # Errors
    /// A [`Refusal`]; nothing has changed then.
    pub fn apply(
        &mut self,
        log: LogId,
        seq: u64,
        at: u64,
        header: &Header,
        control: &Control,
    ) -> Result<Change, Refusal> {
        if seq <= self.applied {
            return Err(Refusal::Known);
        }
        let change = self.decide(log, seq, at, header, control)?;
        self.applied = seq;
        Ok(change)
    }

    /// Applies the relay's own control entry of a `totals` group at `seq`. Who is a member there is
    /// the relay's word.
    ///
    /// # Errors
    /// A [`Refusal`]; nothing has changed then.
    pub fn apply_totals(
        &mut self,
        seq: u64,
        at: u64,
        control: &Control,
    ) -> Result<Change, Refusal> {
        if seq <= self.applied {
            return Err(Refusal::Known);
        }
        let change = if let Control::TotalsFound { creator, .. } = *control {
            if self.is_founded() || seq != 1 {
                return Err(Refusal::Founding);
            }
            admissible(creator)?;
            self.scope = Some(Scope::ZERO);
            self.members.insert(creator, Since { seq, at });
            Change::Founded(creator)
        } else if !self.is_founded() {
            return Err(Refusal::Founding);
        } else if let Control::TotalsJoin { device, .. } = *control {
            admissible(device)?;
            if self.has(device) {
                return Err(Refusal::Member);
            }
            if self.members.len() >= TOTALS_MEMBERS_MAX {
                return Err(Refusal::Full);
            }
            self.members.insert(device, Since { seq, at });
            Change::Joined(device)
        } else if let Control::TotalsLeave { device } = *control {
            if self.members.remove(&device).is_none() {
                return Err(Refusal::NotAMember);
            }
            Change::Left(device)
        } else {
            return Err(Refusal::NotForGroups);
        };
        self.applied = seq;
        Ok(change)
    }

    fn decide(
        &mut self,
        log: LogId,
        seq: u64,
        at: u64,
        header: &Header,
        control: &Control,
    ) -> Result<Change, Refusal> {
        let author = header.sender;
        if let Control::Found { log_type, random, join_key } = control {
            return self.found(seq, at, author, *log_type, random, *join_key);
        }
        if !self.is_founded() {
            return Err(Refusal::Founding);
        }
        if let Control::Join { signature } = control {
            let join_key = self.may_join(author)?;
            // Signatures by a key of mixed order verify here and not there.
            admissible(author)?;
            admissible(join_key)?;
            signing::verify(join_key, &signing::join_message(log, author), signature)
                .map_err(|_| Refusal::JoinKey)?;
            self.members.insert(author, Since { seq, at });
            return Ok(Change::Joined(author));
        }
        if !self.has(author) {
            return Err(Refusal::NotAMember);
        }
        match control {
            Control::Leave => {
                self.remove(author, seq);
                Ok(Change::Left(author))
            }
            Control::Revoke { device, join_key } => {
                if *device == author || self.revoked.contains_key(device) {
                    return Err(Refusal::Target);
                }
                self.remove(*device, seq);
                self.revoked.insert(*device, Revocation { seq, by: author });
                self.join_key = *join_key;
                Ok(Change::Revoked(*device))
            }
            Control::JoinKey { join_key } => {
                self.check_conditional(header)?;
                self.join_key = Some(*join_key);
                self.guard = seq;
                Ok(Change::JoinKey)
            }
            Control::Found { .. }
            | Control::Join { .. }
            | Control::Enrol { .. }
            | Control::Snapshot { .. }
            | Control::SnapshotOpened { .. }
            | Control::TotalsFound { .. }
            | Control::TotalsJoin { .. }
            | Control::TotalsLeave { .. } => Err(Refusal::NotForGroups),
        }
    }

    fn found(
        &mut self,
        seq: u64,
        at: u64,
        founder: DeviceKey,
        log_type: LogType,
        random: &[u8; 32],
        join_key: Option<DeviceKey>,
    ) -> Result<Change, Refusal> {
        if self.is_founded() || seq != 1 {
            return Err(Refusal::Founding);
        }
        if log_type != LogType::Group {
            return Err(Refusal::NotForGroups);
        }
        admissible(founder)?;
        let mut scope = Scope::ZERO;
        scope.0.copy_from_slice(&random[..Scope::LEN]);
        self.scope = Some(scope);
        self.join_key = join_key;
        self.members.insert(founder, Since { seq, at });
        Ok(Change::Founded(founder))
    }

    /// The join key that must have signed for `joiner`.
    fn may_join(&self, joiner: DeviceKey) -> Result<DeviceKey, Refusal> {
        if self.has(joiner) {
            return Err(Refusal::Member);
        }
        if self.revoked.contains_key(&joiner) {
            return Err(Refusal::Revoked);
        }
        if self.members.len() >= NATIVE_MEMBERS_MAX {
            return Err(Refusal::Full);
        }
        self.join_key.ok_or(Refusal::JoinKey)
    }

    fn remove(&mut self, device: DeviceKey, seq: u64) {
        self.members.remove(&device);
        self.guard = seq;
        self.removal = seq;
    }
}

fn admissible(key: DeviceKey) -> Result<(), Refusal> {
    signing::admissible(key).map_err(|_| Refusal::Key)
}

#[cfg(test)]
mod tests;
