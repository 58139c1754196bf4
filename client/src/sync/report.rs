//! What was done, how far it is, and how things stand.

use std::fmt;

use sealwire_protocol::{DeviceKey, Head, LogId};

use super::replay::Replayed;
use crate::address::RelayUrl;

/// What a turn has done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// What came from other devices.
    pub replayed: Replayed,
    /// Entries that were sent and are on the relay's disk.
    pub sent: u64,
    /// Rows in them.
    pub sent_rows: u64,
    /// Boxes that came and whose key is not here: kept, and opened when it comes. In a household these
    /// are mostly what is private to others.
    pub sealed: usize,
    /// Boxes that came and are damaged. They are kept, too.
    pub damaged: usize,
    /// Entries that are in the vault and not believed.
    pub rejected: usize,
    /// Of these, entries that came otherwise than they were written: the relay's doing. They are read
    /// again; until they are whole, no snapshot is made or confirmed here.
    pub spoiled: usize,
    /// The device is enrolled, and no other one has given it a key yet: what it has written waits.
    pub waits_for_key: bool,
    /// The relay has lost history, or shows another one. Nothing was deleted here; what it had lost of
    /// this device was given back to it.
    pub history_changed: bool,
    /// An entry's author had seen another history than this device: the relay shows its readers two.
    /// Tell a person.
    pub forked: bool,
    /// A snapshot of another device was opened, compared, and confirmed.
    pub confirmed: bool,
    /// A snapshot of another device lacks something that this device has, or does not open. It was not
    /// confirmed.
    pub refused_snapshot: bool,
}

impl Report {
    pub(crate) fn take(&mut self, replayed: Replayed, sealed: usize, damaged: usize) {
        self.replayed.add(replayed);
        self.sealed += sealed;
        self.damaged += damaged;
    }
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Rows of other devices come.
    Reading,
    /// Rows of this device go.
    Sending,
    /// Bytes of a snapshot come.
    Downloading,
    /// Bytes of a snapshot go.
    Uploading,
    /// Rows of a snapshot are written.
    Opening,
    /// Rows are written to a snapshot.
    Packing,
}

/// How far something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// How much of it is done, in rows or bytes.
    pub done: u64,
    /// How much there is, if that is known.
    pub total: Option<u64>,
}

impl Progress {
    pub(crate) fn of(phase: Phase, done: u64) -> Self {
        Self { phase, done, total: None }
    }

    pub(crate) fn until(self, total: u64) -> Self {
        Self { total: Some(total), ..self }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reading => "rows read",
            Self::Sending => "rows sent",
            Self::Downloading => "bytes of the snapshot read",
            Self::Uploading => "bytes of the snapshot sent",
            Self::Opening => "rows of the snapshot opened",
            Self::Packing => "rows put into the snapshot",
        })
    }
}

/// How an attached database stands, without asking the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// This device.
    pub device: DeviceKey,
    /// Its vault; none if it has none yet.
    pub vault: Option<VaultStatus>,
    /// The registered tables.
    pub tables: Vec<String>,
    /// Rows that were changed and are not in the vault. What the app has written and nobody has looked
    /// at counts, too.
    pub unsent_rows: u64,
    /// Boxes that do not open yet, or never will.
    pub sealed: u64,
    /// Rows that a constraint of the app's tables forbids. They are kept.
    pub withheld: u64,
    /// Cells that are too long to be sent, or cannot be stamped later than what they take the place of, as
    /// of now: they stay on this device.
    pub oversized: u64,
}

/// How a database stands in its vault.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VaultStatus {
    /// The vault.
    pub log: LogId,
    /// Where it is.
    pub relay: RelayUrl,
    /// How far it was read; none if nothing was.
    pub head: Option<Head>,
    /// The enrolled devices, as far as it was read, each since which entry.
    pub devices: Vec<(DeviceKey, u64)>,
    /// The generation of the group's key that this device holds; 0 for none.
    pub epoch: u32,
    /// Whether it holds its person's own key.
    pub holds_private_key: bool,
    /// Whether nothing is sent any more, because the device's key is used elsewhere.
    pub cloned: bool,
}
