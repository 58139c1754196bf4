//! Which messages about keys and newcomers may be believed.
//!
//! The app believes every `key_exchange` that opens, from whomever, and lets it overwrite the key of
//! a group: a relay that makes up a device could feed it a key of its own. A device of this SDK asks
//! for more. What it asks for is true of every honest app.

use sealwire_protocol::{DeviceKey, LogId};
use thiserror::Error;

use super::payload::{JoinRequest, KeyExchange};
use super::seal::{GroupKey, Sealed};

/// Why a message is not believed. It is acked, and changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Error)]
pub enum Refusal {
    /// It was not sealed between the two devices.
    #[error("the message was not sealed to this device alone")]
    Seal,
    /// It names another group, or none.
    #[error("the message is about another group")]
    Group,
    /// It speaks for another device than the one that sent it.
    #[error("the message speaks for another device than its sender")]
    Sender,
    /// It is meant for another device.
    #[error("the message is meant for another device")]
    Recipient,
    /// Its sender is not a member.
    #[error("the sender is not a member")]
    NotAMember,
}

/// What to do with a `key_exchange` that may be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// This device has no key: it takes this one.
    Take,
    /// It is the key that this device has.
    Known,
    /// It is another key than this device has. Only a person can decide which one is right.
    AskPerson,
}

/// Whether a `key_exchange` may be believed, and what follows.
///
/// # Errors
/// [`Refusal`].
pub fn key_exchange(
    exchange: &KeyExchange,
    sealed: Sealed,
    group: LogId,
    sender: DeviceKey,
    sender_is_member: bool,
    me: DeviceKey,
    held: Option<&GroupKey>,
) -> Result<Offer, Refusal> {
    if sealed != Sealed::Pair {
        return Err(Refusal::Seal);
    }
    if LogId::from_uuid_text(&exchange.group_id) != Some(group) {
        return Err(Refusal::Group);
    }
    if exchange.approved_by.device() != Some(sender) || sender == me {
        return Err(Refusal::Sender);
    }
    if exchange.approved_public_key.device() != Some(me) {
        return Err(Refusal::Recipient);
    }
    if !sender_is_member {
        return Err(Refusal::NotAMember);
    }
    Ok(match held {
        None => Offer::Take,
        Some(held) if *held == exchange.group_key => Offer::Known,
        Some(_) => Offer::AskPerson,
    })
}

/// Whether a `join_request` may be shown to a person.
///
/// # Errors
/// [`Refusal`].
pub fn join_request(
    request: &JoinRequest,
    sealed: Sealed,
    sender: DeviceKey,
    sender_is_member: bool,
) -> Result<(), Refusal> {
    if sealed != Sealed::Pair {
        return Err(Refusal::Seal);
    }
    if request.public_key.device() != Some(sender) {
        return Err(Refusal::Sender);
    }
    if sender_is_member { Ok(()) } else { Err(Refusal::NotAMember) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::totals::payload::Party;

    const GROUP: LogId = LogId([0x44; 16]);
    const ANNA: DeviceKey = DeviceKey([1; 32]);
    const BEN: DeviceKey = DeviceKey([2; 32]);
    const EVE: DeviceKey = DeviceKey([3; 32]);

    fn from_anna_to_ben() -> KeyExchange {
        KeyExchange::new(GROUP, GroupKey::from_bytes([9; 32]), BEN, ANNA, false, 1)
    }

    fn offered(change: impl FnOnce(&mut KeyExchange)) -> Result<Offer, Refusal> {
        let mut exchange = from_anna_to_ben();
        change(&mut exchange);
        key_exchange(&exchange, Sealed::Pair, GROUP, ANNA, true, BEN, None)
    }

    #[test]
    fn a_key_is_taken_from_a_member_who_approves_this_device_in_this_group() {
        assert_eq!(offered(|_| {}), Ok(Offer::Take));
        assert_eq!(offered(|it| it.group_id = LogId([5; 16]).to_uuid_text()), Err(Refusal::Group));
        assert_eq!(offered(|it| it.group_id.clear()), Err(Refusal::Group));
        assert_eq!(offered(|it| it.approved_by = Party::from(EVE)), Err(Refusal::Sender));
        let other = offered(|it| it.approved_public_key = Party::from(EVE));
        assert_eq!(other, Err(Refusal::Recipient));
        let exchange = from_anna_to_ben();
        let outsider = key_exchange(&exchange, Sealed::Pair, GROUP, ANNA, false, BEN, None);
        assert_eq!(outsider, Err(Refusal::NotAMember));
        let by_relay = key_exchange(&exchange, Sealed::Pair, GROUP, EVE, true, BEN, None);
        assert_eq!(by_relay, Err(Refusal::Sender));
        let to_all = key_exchange(&exchange, Sealed::Group, GROUP, ANNA, true, BEN, None);
        assert_eq!(to_all, Err(Refusal::Seal));
    }

    #[test]
    fn a_key_never_takes_the_place_of_another_one_unasked() {
        let exchange = from_anna_to_ben();
        let offer = |held: &GroupKey| {
            key_exchange(&exchange, Sealed::Pair, GROUP, ANNA, true, BEN, Some(held))
        };
        assert_eq!(offer(&GroupKey::from_bytes([9; 32])), Ok(Offer::Known));
        assert_eq!(offer(&GroupKey::from_bytes([8; 32])), Ok(Offer::AskPerson));
    }

    #[test]
    fn nobody_asks_to_join_for_somebody_else() {
        let request = JoinRequest::new(BEN, None, 1);
        assert_eq!(join_request(&request, Sealed::Pair, BEN, true), Ok(()));
        assert_eq!(join_request(&request, Sealed::Pair, EVE, true), Err(Refusal::Sender));
        assert_eq!(join_request(&request, Sealed::Pair, BEN, false), Err(Refusal::NotAMember));
        assert_eq!(join_request(&request, Sealed::Group, BEN, true), Err(Refusal::Seal));
    }
}
