//! What can go wrong for an app.

use sealwire_protocol::DeviceKey;
use sealwire_protocol::error::ErrorCode;
use thiserror::Error;

pub use crate::store::StoreError;

use crate::address::AddressError;
use crate::identity::NoRandomness;
use crate::identity::file::KeyFileError;
use crate::invite::InviteError;
use crate::ledger::LedgerError;
use crate::recovery::RecoveryError;
use crate::wire::WireError;

/// Why a device did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Error {
    /// The device's file.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The device's key file.
    #[error(transparent)]
    KeyFile(#[from] KeyFileError),
    /// The address of a relay.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// An invite.
    #[error(transparent)]
    Invite(#[from] InviteError),
    /// See [`NoRandomness`].
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// The device's directory cannot be used.
    #[error("the device's directory cannot be made or written to")]
    Directory,
    /// This device knows no such log.
    #[error("no such log")]
    NoSuchLog,
    /// This device is not a member of the log.
    #[error("this device is not a member")]
    NotAMember,
    /// This device is a member already, or is joining.
    #[error("this device is a member already")]
    AlreadyMember,
    /// This device was revoked; its key is never admitted to this log again.
    #[error("this device was revoked")]
    Revoked,
    /// The relay's address belongs to another key. Only a person can decide which one is right; see
    /// [`Device::trust_relay`](crate::device::Device::trust_relay).
    #[error("the relay's key has changed")]
    RelayKeyChanged {
        /// The key that belongs to the address.
        pinned: DeviceKey,
        /// The key that was presented.
        presented: DeviceKey,
    },
    /// The relay's key is not known yet: connect first.
    #[error("the relay was never reached, so its key is not known")]
    UnknownRelay,
    /// The payload is longer than [`PAYLOAD_BYTES_MAX`](crate::content::PAYLOAD_BYTES_MAX).
    #[error("the payload is too long")]
    TooLong,
    /// The group's outbox holds as much as it may: the relay was not reached for very long, or
    /// entries were refused and not discarded.
    #[error("the outbox is full")]
    OutboxFull,
    /// Too many recipients, or one who is not a member.
    #[error("a recipient is not a member, or there are too many")]
    Recipients,
    /// This device does not know the group's join key.
    #[error("this device cannot invite: it was not given the join key yet")]
    NoJoinKey,
    /// This device does not hold the group's content key yet.
    #[error("this device was not given the group's key yet")]
    NoKey,
    /// What is asked for is not done in groups of this format.
    #[error("{0}")]
    Format(&'static str),
    /// Nobody with this key asks to be let in, or offers a key.
    #[error("no such request")]
    NoSuchRequest,
    /// A recovery vault.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// The relay could not be asked.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The relay has refused it for good.
    #[error("the relay has refused it: {}", .0.sentence())]
    Refused(ErrorCode),
    /// The relay has entries of this device that it does not know itself: its key is used somewhere
    /// else, or it was restored from a backup.
    #[error("this device was cloned, or restored from a backup")]
    Cloned,
    /// Whoever made the invite that this device joined by was never a member of the group that the relay
    /// shows: the link was changed on its way, or the relay shows another history. No key was taken, and
    /// nothing is sent; [`Device::leave`](crate::device::Device::leave) ends it.
    #[error("whoever made the invite was never a member of the group that the relay shows")]
    InviterUnknown,
    /// It did not happen in the time given.
    #[error("it took too long")]
    Timeout,
    /// Nobody knows of it: the entry was forgotten, or never was.
    #[error("nothing is known of it")]
    Unknown,
    /// See [`LedgerError`].
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A task of the runtime was cancelled: it is shutting down.
    #[error("the runtime is shutting down")]
    Stopped,
}
