//! What groups and vaults do differently with what was appended: when it may go, and how much there
//! may be.
//!
//! Everything else is the same log: one order, one append path, one delivery. Whoever is about to ask
//! elsewhere which of the two a log is has found something that belongs here.

use sealwire_protocol::{Failure, Kind, LogType};

use super::queue::{NewBody, Queue, Reader};
use super::vault::Vault;
use crate::entry::{Addressed, CheckedEntry, Content};
use crate::limits::VaultLimits;
use crate::metrics::{Outcome, Outcomes};
use crate::ports::{VaultChange, VaultRecord};

/// The retention of one log.
pub(super) enum Policy {
    /// A body stays until every addressee has acked it, or for a time.
    Group(Queue),
    /// A body stays until a confirmed snapshot covers it.
    Vault(Box<Vault>),
}

impl Policy {
    /// The policy of a log that was loaded. A group's bodies are added one by one.
    pub(super) fn of(log_type: LogType, record: VaultRecord, limits: VaultLimits) -> Self {
        match log_type {
            LogType::Group => Self::Group(Queue::default()),
            LogType::Vault => Self::Vault(Box::new(Vault::new(record, limits))),
        }
    }

    /// The vault, if it is one.
    pub(super) fn vault_mut(&mut self) -> Option<&mut Vault> {
        match self {
            Self::Group(_) => None,
            Self::Vault(vault) => Some(vault),
        }
    }

    /// The queue of a group.
    pub(super) fn queue(&self) -> Option<&Queue> {
        match self {
            Self::Group(queue) => Some(queue),
            Self::Vault(_) => None,
        }
    }

    /// The queue of a group.
    pub(super) fn queue_mut(&mut self) -> Option<&mut Queue> {
        match self {
            Self::Group(queue) => Some(queue),
            Self::Vault(_) => None,
        }
    }

    /// Whether entries of this kind keep their bodies for as long as the log lives.
    pub(super) fn keeps(&self, kind: Kind) -> bool {
        match self {
            Self::Group(_) => kind == Kind::Control,
            Self::Vault(_) => matches!(kind, Kind::Control | Kind::Key),
        }
    }

    /// For whom an entry is.
    pub(super) fn addressed(&self, entry: &CheckedEntry) -> Addressed {
        match (self, &entry.content) {
            (Self::Vault(_), _) | (_, Content::Control(_)) => Addressed::Everybody,
            (Self::Group(_), Content::Rotation) => Addressed::All,
            (Self::Group(_), Content::Plain) if entry.recipients.is_empty() => Addressed::All,
            (Self::Group(_), Content::Plain) => Addressed::Named(entry.recipients.clone().into()),
        }
    }

    /// Whether acks are stored.
    pub(super) fn stores_acks(&self) -> bool {
        matches!(self, Self::Group(_))
    }

    /// Whether the log ends when nobody has written for long.
    pub(super) fn ends_when_idle(&self) -> bool {
        matches!(self, Self::Group(_))
    }

    /// Whether these entries may be kept beside what is kept already: so many entries above the floor,
    /// and their bodies.
    pub(super) fn check_room(
        &self,
        entries: &[CheckedEntry],
        above_floor: u64,
    ) -> Result<(), Failure> {
        match self {
            Self::Group(queue) => queue.check_room(entries, above_floor),
            Self::Vault(vault) => vault.check_room(entries),
        }
    }

    /// An entry was appended.
    pub(super) fn add<'a>(
        &mut self,
        content: &Content,
        body: NewBody,
        readers: impl Iterator<Item = Reader<'a>>,
    ) {
        match self {
            Self::Group(queue) => {
                if !matches!(content, Content::Control(_)) {
                    queue.add(body, readers);
                }
            }
            Self::Vault(vault) => vault.add(body.bytes),
        }
    }

    /// A member has newly acked these seqs.
    pub(super) fn acked(
        &mut self,
        reader: &Reader<'_>,
        new: &[(u64, u64)],
        outcome: Outcome,
        outcomes: &mut Outcomes,
    ) {
        if let Self::Group(queue) = self {
            queue.acked(reader.device, reader.joined_seq, new, outcome, outcomes);
        }
    }

    /// A member has left.
    pub(super) fn left(&mut self, reader: &Reader<'_>, outcomes: &mut Outcomes) {
        match self {
            Self::Group(queue) => queue.left(reader, outcomes),
            Self::Vault(vault) => vault.removed(reader.device),
        }
    }

    /// The log ends: whoever still waits for something waits no more.
    pub(super) fn ended(&mut self, outcomes: &mut Outcomes) {
        if let Self::Group(queue) = self {
            queue.expire(u64::MAX, u64::MAX, Outcome::Left, outcomes);
        }
    }

    /// Whether bodies are to be deleted.
    pub(super) fn has_freed(&self) -> bool {
        match self {
            Self::Group(queue) => queue.has_freed(),
            Self::Vault(_) => false,
        }
    }

    /// The bodies to delete now, as inclusive ranges.
    pub(super) fn take_freed(&mut self) -> Vec<(u64, u64)> {
        match self {
            Self::Group(queue) => queue.take_freed(),
            Self::Vault(_) => Vec::new(),
        }
    }

    /// What a commit has to change beside entries and members.
    pub(super) fn take_change(&mut self) -> Option<VaultChange> {
        self.vault_mut().and_then(Vault::take_change)
    }
}
