//! Who holds which generation of a group's content key, as far as this device can know.
//!
//! A rotation says in the clear whom it was sealed to. A delivery is seen by its addressees only;
//! but whoever seals an entry under an epoch shows that it holds it. From the two follows who still
//! lacks the current key, so that somebody gives it to them, and in which order the members try.

use std::collections::BTreeMap;

use sealwire_protocol::DeviceKey;
use sealwire_protocol::digest::sha256;
use serde::{Deserialize, Serialize};

/// The epochs of a group's scope.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Holders {
    /// The newest epoch that is known of; 0 for none.
    epoch: u32,
    /// Whether it is known from a rotation, which the log orders, and no rotation can have been
    /// passed over since.
    rotated: bool,
    /// The newest epoch that each device is known to hold, of those for whom this device has seen
    /// what they were given. Of the others it is believed that they hold the current one: somebody
    /// else has seen to that.
    held: BTreeMap<DeviceKey, u32>,
}

impl Holders {
    /// The newest epoch that is known of; 0 for none.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The epoch of the next rotation; none if there can be no more.
    #[must_use]
    pub fn next_epoch(&self) -> Option<u32> {
        self.epoch.checked_add(1)
    }

    /// Whether a rotation to `epoch` may stand: the next one, or any if none is known yet.
    #[must_use]
    pub fn accepts(&self, epoch: u32) -> bool {
        epoch > 0 && (!self.rotated && epoch > self.epoch || Some(epoch) == self.next_epoch())
    }

    /// A rotation that [`Holders::accepts`] was sealed to `recipients`, when these were the members.
    pub fn rotation(
        &mut self,
        epoch: u32,
        recipients: &[DeviceKey],
        members: impl IntoIterator<Item = DeviceKey>,
    ) {
        self.epoch = epoch;
        self.rotated = true;
        for device in members {
            let held = self.held.entry(device).or_insert(0);
            if recipients.contains(&device) {
                *held = epoch;
            }
        }
    }

    /// This device was given the key of `epoch` by a delivery. It is believed to be the current one
    /// only while no rotation was seen, or one may have been passed over.
    pub fn delivery(&mut self, epoch: u32) {
        if !self.rotated {
            self.epoch = self.epoch.max(epoch);
        }
    }

    /// Entries were passed over whose bodies are gone: a rotation may have been among them.
    pub fn doubt(&mut self) {
        self.rotated = false;
    }

    /// `device` was given, or has shown that it holds, the key of `epoch`. Says whether that is
    /// news.
    pub fn holds(&mut self, device: DeviceKey, epoch: u32) -> bool {
        let Some(held) = self.held.get_mut(&device) else { return false };
        let news = epoch > *held && epoch <= self.epoch;
        if news {
            *held = epoch;
        }
        news
    }

    /// This device has become a member: of what was before it knows nothing.
    pub fn entered(&mut self) {
        *self = Self::default();
    }

    /// Another device has become a member: it holds nothing.
    pub fn joined(&mut self, device: DeviceKey) {
        self.held.insert(device, 0);
    }

    /// `device` is no member any more.
    pub fn removed(&mut self, device: DeviceKey) {
        self.held.remove(&device);
    }

    /// Whether `device` is known not to hold the current key.
    #[must_use]
    pub fn lacks(&self, device: DeviceKey) -> bool {
        self.epoch > 0 && self.held.get(&device).is_some_and(|held| *held < self.epoch)
    }
}

/// How many of `members` try before `device` to give the key to `newcomer`: an order that all of
/// them compute alike, and another one for every newcomer.
#[must_use]
pub fn rank(
    device: DeviceKey,
    newcomer: DeviceKey,
    members: impl Iterator<Item = DeviceKey>,
) -> usize {
    let place = |member: DeviceKey| sha256(&[newcomer.0, member.0].concat());
    let own = place(device);
    members.filter(|member| *member != newcomer && place(*member) < own).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: DeviceKey = DeviceKey([1; 32]);
    const B: DeviceKey = DeviceKey([2; 32]);
    const C: DeviceKey = DeviceKey([3; 32]);

    #[test]
    fn who_was_not_sealed_to_lacks_the_key_until_it_shows_that_it_has_it() {
        let mut holders = Holders::default();
        holders.joined(B);
        assert!(!holders.lacks(B), "there is no key yet");
        holders.rotation(1, &[A], [A, B]);
        assert!(holders.lacks(B) && !holders.lacks(A));
        assert!(holders.holds(B, 1));
        assert!(!holders.holds(B, 1), "no news");
        assert!(!holders.lacks(B));
        holders.rotation(2, &[A], [A, B]);
        assert!(holders.lacks(B));
        assert!(!holders.holds(B, 3), "there is no such epoch");
        assert!(holders.lacks(B));
        holders.removed(B);
        assert!(!holders.lacks(B));
    }

    #[test]
    fn a_newcomer_leaves_those_before_it_to_others() {
        let mut holders = Holders::default();
        holders.joined(A);
        holders.joined(B);
        holders.entered();
        holders.delivery(4);
        assert!(!holders.lacks(A) && !holders.lacks(B));
        holders.joined(C);
        assert!(holders.lacks(C));
    }

    #[test]
    fn rotations_count_up_one_by_one() {
        let mut holders = Holders::default();
        assert!(!holders.accepts(0));
        assert!(holders.accepts(7), "a newcomer takes what it sees first");
        holders.rotation(7, &[A], [A]);
        assert!(holders.accepts(8));
        for epoch in [0, 7, 9, u32::MAX] {
            assert!(!holders.accepts(epoch), "{epoch}");
        }
        holders.doubt();
        assert!(holders.accepts(9), "one may have been passed over");
        holders.rotation(u32::MAX, &[A], [A]);
        assert_eq!(holders.next_epoch(), None);
        assert!(!holders.accepts(u32::MAX));
    }

    #[test]
    fn a_delivery_does_not_outdo_a_rotation() {
        let mut holders = Holders::default();
        holders.delivery(4);
        assert_eq!(holders.epoch(), 4);
        assert!(holders.accepts(5));
        holders.rotation(5, &[A], [A]);
        holders.delivery(900);
        assert_eq!(holders.epoch(), 5);
        holders.doubt();
        holders.delivery(7);
        assert_eq!(holders.epoch(), 7);
    }

    #[test]
    fn members_take_turns_in_an_order_that_all_compute_alike() {
        let members = [A, B, C];
        let mut ranks: Vec<usize> =
            [A, B].iter().map(|device| rank(*device, C, members.into_iter())).collect();
        ranks.sort_unstable();
        assert_eq!(ranks, [0, 1]);
    }
}
