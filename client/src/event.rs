//! What a device tells its app.
//!
//! Most events are durable: they are committed together with what caused them, and wait until the
//! app has read them. The few that speak of the connection are told to whoever listens at the time.

use std::fmt;
use std::time::Duration;

use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::{DeviceKey, Head, Kind, LogId};
use serde::{Deserialize, Serialize};

use crate::address::RelayUrl;
use crate::entry::Rejection;
use crate::ledger::Change;
use crate::numbering::DraftId;
use crate::wire::WireError;

/// Something that has happened.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Event {
    /// An entry of another member was opened.
    Entry(Received),
    /// The group's ledger is not as it was
    /// ([`Device::ledger`](crate::device::Device::ledger)): somebody, maybe this device, has written
    /// into it.
    Ledger {
        /// Which group.
        log: LogId,
        /// Who.
        sender: DeviceKey,
        /// What is new.
        changes: Vec<Change>,
    },
    /// A device has become a member; maybe this one.
    Joined {
        /// Which group.
        log: LogId,
        /// Who.
        device: DeviceKey,
        /// By which entry.
        seq: u64,
    },
    /// A device is no member any more; maybe this one.
    Left {
        /// Which group.
        log: LogId,
        /// Who.
        device: DeviceKey,
        /// By which entry.
        seq: u64,
    },
    /// A device was removed for good; maybe this one.
    Revoked {
        /// Which group.
        log: LogId,
        /// Who.
        device: DeviceKey,
        /// By whom; not known when only the relay says so.
        by: Option<DeviceKey>,
        /// By which entry.
        seq: u64,
    },
    /// This device holds a key that it did not hold.
    KeyReceived {
        /// Which group.
        log: LogId,
        /// Its generation.
        epoch: u32,
        /// Who has given it.
        from: DeviceKey,
    },
    /// Whoever made the invite that this device joined by is no member any more: it has left, or was
    /// removed. A person may want to ask somebody else who these members are.
    InviterGone {
        /// Which group.
        log: LogId,
        /// Who made the invite.
        inviter: DeviceKey,
    },
    /// Whoever made the invite that this device joined by was never a member of the group that the relay
    /// shows: the link was changed on its way, or the relay shows another history. No key is taken from
    /// these members, and nothing is sent to them. Tell a person.
    InviterUnknown {
        /// Which group.
        log: LogId,
        /// Who made the invite.
        inviter: DeviceKey,
    },
    /// An entry cannot be opened. It is kept sealed; if a key comes that opens it,
    /// [`Event::Entry`] follows.
    Unreadable {
        /// Which group.
        log: LogId,
        /// Its position.
        seq: u64,
        /// Its author.
        sender: DeviceKey,
        /// Why.
        reason: Unreadable,
    },
    /// An entry is not believed. It is kept sealed for a while and changes nothing.
    Rejected {
        /// Which group.
        log: LogId,
        /// Its position.
        seq: u64,
        /// Why.
        reason: Rejection,
    },
    /// A sender names an entry to this device that it never got: it was withheld, or it expired, or
    /// it was under way when this device left.
    Missing {
        /// Which group.
        log: LogId,
        /// The author.
        sender: DeviceKey,
        /// The count of the entry that is missing.
        count: u64,
    },
    /// The relay has refused an entry of this device for good. Its content is kept
    /// ([`Device::unsent`](crate::device::Device::unsent)).
    Refused {
        /// Which group.
        log: LogId,
        /// Which entry.
        id: DraftId,
        /// Why.
        code: ErrorCode,
    },
    /// The relay has lost history, for instance because it was restored from a backup. Nothing is
    /// deleted here; the group is read again from its beginning.
    HistoryChanged {
        /// Which group.
        log: LogId,
        /// Where the relay's history ends now.
        head: Option<Head>,
    },
    /// Two histories of one group exist: the relay shows this device another one than it had shown
    /// it before, or than it shows the author of an entry.
    Forked {
        /// Which group.
        log: LogId,
        /// The seq at which they differ, or before.
        seq: u64,
        /// Whose entry shows it; none if the relay's own word does.
        sender: Option<DeviceKey>,
    },
    /// The relay has entries of this device that this device does not know: its key is used
    /// somewhere else, or it was restored from a backup. It sends nothing more to this group until
    /// a person decides.
    Cloned {
        /// Which group.
        log: LogId,
    },
    /// The relay does not serve this group to this device, which believes to be a member: it may have
    /// forgotten. Everything is kept, and the next connection asks again.
    Ended {
        /// Which group.
        log: LogId,
        /// Why.
        code: ErrorCode,
    },
    /// A member of a `totals` group asks to be let in: a person compares its fingerprint and approves
    /// ([`Device::approve`](crate::device::Device::approve)).
    JoinRequested {
        /// Which group.
        log: LogId,
        /// Who.
        device: DeviceKey,
        /// What the person calls itself. Anybody can claim any name.
        name: Option<String>,
    },
    /// A member offers a key for a `totals` group whose key this device has already: another one. A
    /// person decides ([`Device::accept_key`](crate::device::Device::accept_key)); until then
    /// nothing changes.
    KeyOffered {
        /// Which group.
        log: LogId,
        /// Who offers it.
        sender: DeviceKey,
    },
    /// The connection to a relay is up.
    #[serde(skip)]
    Connected {
        /// Which.
        relay: RelayUrl,
    },
    /// The connection to a relay is down.
    #[serde(skip)]
    Disconnected {
        /// Which.
        relay: RelayUrl,
        /// Why.
        reason: WireError,
        /// When it is tried again; none if a person has to decide.
        retry_in: Option<Duration>,
    },
    /// A group was read to its end; what comes from here on is live.
    #[serde(skip)]
    Drained {
        /// Which group.
        log: LogId,
        /// Where it ends.
        head: Head,
    },
    /// Somebody has fetched this device's recovery vault: if it was not its person, the code is in
    /// wrong hands.
    #[serde(skip)]
    RecoveryFetched {
        /// When, in milliseconds since the epoch, by the relay's clock.
        at: u64,
    },
    /// A group is full of entries that somebody has not acked.
    #[serde(skip)]
    QuotaReached {
        /// Which group.
        log: LogId,
    },
}

impl Event {
    /// The group that it is about.
    #[must_use]
    pub fn log(&self) -> Option<LogId> {
        match self {
            Self::Entry(received) => Some(received.log),
            Self::Ledger { log, .. }
            | Self::Joined { log, .. }
            | Self::Left { log, .. }
            | Self::Revoked { log, .. }
            | Self::KeyReceived { log, .. }
            | Self::InviterGone { log, .. }
            | Self::InviterUnknown { log, .. }
            | Self::Unreadable { log, .. }
            | Self::Rejected { log, .. }
            | Self::Missing { log, .. }
            | Self::Refused { log, .. }
            | Self::HistoryChanged { log, .. }
            | Self::Forked { log, .. }
            | Self::Cloned { log }
            | Self::Ended { log, .. }
            | Self::JoinRequested { log, .. }
            | Self::KeyOffered { log, .. }
            | Self::Drained { log, .. }
            | Self::QuotaReached { log } => Some(*log),
            Self::Connected { .. } | Self::Disconnected { .. } | Self::RecoveryFetched { .. } => {
                None
            }
        }
    }
}

/// An entry of another member, opened.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Received {
    /// The group.
    pub log: LogId,
    /// Its position.
    pub seq: u64,
    /// When the relay ordered it, in milliseconds since the epoch, by the relay's clock.
    pub at: u64,
    /// Its author.
    pub sender: DeviceKey,
    /// Its number among its author's entries: with the sender, its name.
    pub count: u64,
    /// The members that it names; empty for all.
    pub recipients: Vec<DeviceKey>,
    /// Its kind.
    #[serde(with = "kind_byte")]
    pub kind: Kind,
    /// What its author's app sent.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("log", &self.log)
            .field("seq", &self.seq)
            .field("sender", &self.sender)
            .field("count", &self.count)
            .field("payload", &format_args!("{} bytes", self.payload.len()))
            .finish_non_exhaustive()
    }
}

/// Why an entry cannot be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Unreadable {
    /// This device does not hold the key.
    NoKey,
    /// It is damaged, or was sealed by another program in a way that this one cannot read.
    Damaged,
}

mod kind_byte {
    //! A kind as the byte that stands in the header.

    use sealwire_protocol::Kind;
    use serde::{Deserialize, Deserializer, Serializer, de};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
    pub(super) fn serialize<S: Serializer>(kind: &Kind, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(kind.to_u8())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Kind, D::Error> {
        Kind::from_u8(u8::deserialize(deserializer)?).ok_or_else(|| de::Error::custom("not a kind"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_is_never_printed() {
        let received = Received {
            log: LogId([1; 16]),
            seq: 3,
            at: 0,
            sender: DeviceKey([2; 32]),
            count: 1,
            recipients: Vec::new(),
            kind: Kind::Ring,
            payload: b"planted".to_vec(),
        };
        let printed = format!("{:?}", Event::Entry(received));
        assert!(!printed.contains("planted") && !printed.contains("112, 108"), "{printed}");
        assert!(printed.contains("7 bytes"));
    }

    #[test]
    fn events_of_the_connection_are_not_stored() {
        let event = Event::QuotaReached { log: LogId([1; 16]) };
        assert!(rmp_serde::to_vec_named(&event).is_err());
        let event = Event::KeyReceived { log: LogId([1; 16]), epoch: 2, from: DeviceKey([3; 32]) };
        assert!(rmp_serde::to_vec_named(&event).is_ok());
    }
}
