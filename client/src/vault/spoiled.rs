//! Reading again what came spoiled ([`crate::spoiled`]): from the place before the first of it, with what
//! the vault knew there, so that every check is made as if it had come whole at once.
//!
//! The relay of a vault has checked every entry before it gave it a place. So a copy that is not whole is
//! never its author's doing.
//!
//! Holds always:
//! - what was given before is not given again;
//! - until all of it has come whole, this device makes no snapshot and confirms none: it could lack what
//!   the entry holds.

use std::collections::BTreeSet;

use sealwire_protocol::frame::Entry;
use serde::{Deserialize, Serialize};

use super::saved::Saved;
use super::{Vault, VaultError};
use crate::chain::Step;
use crate::entry::{Rejection, digest_of};
use crate::spoiled::pause_ms;

/// Most entries that are noted as not believed behind a spoiled one: what follows from it. Those beyond
/// are as lost as they were.
const OWED_MAX: usize = 4096;

/// What is to be read again.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Spoiled {
    /// What the vault knew before the first entry that came spoiled.
    before: Box<Saved>,
    /// The seqs of that and of what was not believed since.
    owed: BTreeSet<u64>,
    /// How often it was read again.
    tries: u32,
    /// Not before this time, in milliseconds since the epoch; none if that was not asked yet.
    again_at: Option<u64>,
}

/// A reading of it that is under way.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Healing {
    /// How far everything was read before.
    until: u64,
    /// What of it was not believed, and was given to nobody.
    owed: BTreeSet<u64>,
    tries: u32,
}

impl Vault {
    /// Whether something came spoiled and was not whole since.
    pub(crate) fn is_spoiled(&self) -> bool {
        self.spoiled.is_some() || self.healing.is_some()
    }

    /// As an error, for what needs all that is in the vault.
    pub(super) fn check_whole(&self) -> Result<(), VaultError> {
        if self.is_spoiled() { Err(VaultError::Spoiled) } else { Ok(()) }
    }

    /// Notes an entry that is not believed. Nothing of it was taken.
    pub(super) fn note_rejected(&mut self, entry: &Entry, step: Step, rejection: Rejection) {
        self.unread.rejected.push((entry.seq, rejection));
        if step == Step::Next {
            self.unproven.push(digest_of(&entry.header));
        }
        if rejection.is_spoiled() && self.spoiled.is_none() {
            let before = self.state().without_spoiled();
            let tries = self.healing.as_ref().map_or(0, |healing| healing.tries);
            let owed = self.healing.as_ref().map(|healing| healing.owed.clone());
            self.spoiled = Some(Spoiled {
                before: Box::new(before),
                owed: owed.unwrap_or_default(),
                tries,
                again_at: None,
            });
        }
        if let Some(spoiled) = self.spoiled.as_mut().filter(|it| it.owed.len() < OWED_MAX) {
            spoiled.owed.insert(entry.seq);
        }
    }

    /// An entry that was noted before has been believed.
    pub(super) fn note_believed(&mut self, seq: u64) {
        if let Some(spoiled) = &mut self.spoiled {
            spoiled.owed.remove(&seq);
        }
    }

    /// Whether whoever reads was given the changeset at `seq` when it was read before.
    pub(super) fn was_given(&self, seq: u64) -> bool {
        let Some(Healing { until, owed, .. }) = &self.healing else { return false };
        // Whoever keeps changesets as they came may be given some twice, if not all are noted.
        let noted = owed.len() < OWED_MAX || self.arrived.is_none();
        seq <= *until && noted && !owed.contains(&seq)
    }

    /// Everything up to `seq` was read.
    pub(super) fn heal_up_to(&mut self, seq: u64) {
        self.healing.take_if(|healing| seq >= healing.until);
    }

    /// Goes back to before what came spoiled, if it is time to: the next reading begins there. `now` is in
    /// milliseconds since the epoch.
    pub(crate) fn go_back_to_spoiled(&mut self, now: u64) {
        let Some(spoiled) = &mut self.spoiled else { return };
        let first = if spoiled.tries == 0 { 0 } else { pause_ms(spoiled.tries - 1) };
        if *spoiled.again_at.get_or_insert(now.saturating_add(first)) > now {
            return;
        }
        let Some(Spoiled { before, owed, tries, .. }) = self.spoiled.take() else { return };
        // A reading that was broken off: what it had not come to was given before, all the same.
        let read = self.track.position().seq;
        let until = self.healing.take().map_or(read, |healing| healing.until.max(read));
        let before = Self::from_saved(self.device.clone(), *before);
        self.track = before.track;
        self.devices = before.devices;
        self.senders = before.senders;
        self.loose = before.loose;
        self.unproven = before.unproven;
        self.scopes = before.scopes;
        self.epochs = before.epochs;
        self.enroller = before.enroller;
        self.chains = before.chains;
        self.expected = before.expected;
        self.healing = Some(Healing { until, owed, tries: tries.saturating_add(1) });
    }
}
