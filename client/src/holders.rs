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
    /// The epoch in force; 0 for none.
    epoch: u32,
    /// Whether it is known from a rotation, which the log orders, and no rotation can have been
    /// passed over since.
    rotated: bool,
    /// The newest epoch that each device is known to hold, of those for whom this device has seen
    /// what they were given. Of the others it is believed that they hold the current one: somebody
    /// else has seen to that.
    held: BTreeMap<DeviceKey, u32>,
    /// Whether every rotation since the group's first was seen: what another number would be is known
    /// at first hand then. Everybody else has some member's word for where the counting was.
    #[serde(default)]
    counted: bool,
    /// The newest epoch that was counted so; no later rotation has one that is not above it.
    #[serde(default)]
    sure: u32,
    /// Somebody is gone, and it may be the one on whose word the number rests: the next rotation says
    /// where the others are.
    #[serde(default)]
    unsettled: bool,
}

impl Holders {
    /// The epoch in force, as far as this device knows; 0 for none.
    #[must_use]
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// The epoch of the next rotation; none if there can be no more.
    #[must_use]
    pub fn next_epoch(&self) -> Option<u32> {
        self.epoch.checked_add(1)
    }

    /// Whether an entry at `seq` can speak of `epoch`: rotations count up one by one from what is known
    /// at first hand, and each has stood in the log before `seq` or there.
    #[must_use]
    pub fn is_plausible(&self, epoch: u32, seq: u64) -> bool {
        epoch > 0 && u64::from(epoch) < u64::from(self.sure).saturating_add(seq)
    }

    /// Whether a rotation to `epoch` at `seq` may stand: the next one, or any that is plausible if the
    /// number rests on nothing better than a delivery.
    #[must_use]
    pub fn accepts(&self, epoch: u32, seq: u64) -> bool {
        let firm = self.counted || (self.rotated && !self.unsettled);
        if firm {
            Some(epoch) == self.next_epoch()
        } else {
            epoch > self.sure && self.is_plausible(epoch, seq)
        }
    }

    /// A rotation that [`Holders::accepts`], or an own one, was sealed to `recipients`, when these were
    /// the members.
    pub fn rotation(
        &mut self,
        epoch: u32,
        recipients: &[DeviceKey],
        members: impl IntoIterator<Item = DeviceKey>,
    ) {
        // Whoever was given a key of a generation that is none after all holds no newer one.
        for held in self.held.values_mut() {
            *held = (*held).min(epoch.saturating_sub(1));
        }
        self.epoch = epoch;
        self.rotated = true;
        self.unsettled = false;
        if self.counted {
            self.sure = epoch;
        }
        for device in members {
            let held = self.held.entry(device).or_insert(0);
            if recipients.contains(&device) {
                *held = epoch;
            }
        }
    }

    /// This device has opened a key of `epoch` that came by a delivery. It is believed to be the current
    /// one only while no rotation was seen, or one may have been passed over.
    pub fn delivery(&mut self, epoch: u32) {
        if !self.rotated {
            self.epoch = self.epoch.max(epoch);
        }
    }

    /// Entries were passed over whose bodies are gone: a rotation may have been among them.
    pub fn doubt(&mut self) {
        self.rotated = false;
        self.counted = false;
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

    /// This device has founded the group: there was nothing before.
    pub fn founded(&mut self) {
        *self = Self { counted: true, ..Self::default() };
    }

    /// Another device has become a member: it holds nothing.
    pub fn joined(&mut self, device: DeviceKey) {
        self.held.insert(device, 0);
    }

    /// `device` is no member any more.
    pub fn removed(&mut self, device: DeviceKey) {
        self.held.remove(&device);
        self.unsettled = !self.counted;
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
    fn whoever_has_seen_all_rotations_counts_them_one_by_one() {
        let mut holders = Holders::default();
        holders.founded();
        for epoch in [0, 2, u32::MAX] {
            assert!(!holders.accepts(epoch, 1000), "{epoch}");
        }
        for epoch in 1..=7 {
            assert!(holders.accepts(epoch, 1000));
            holders.rotation(epoch, &[A], [A]);
            holders.removed(B);
        }
        for epoch in [0, 7, 9, u32::MAX] {
            assert!(!holders.accepts(epoch, 1000), "{epoch}");
        }
        holders.doubt();
        assert!(holders.accepts(9, 1000), "one may have been passed over");
        assert!(!holders.accepts(7, 1000), "but none was taken back");
        assert!(holders.accepts(8, 2), "in a history that was set back");
        assert!(!holders.accepts(9, 2), "which has no room for more");
    }

    #[test]
    fn a_newcomer_counts_from_the_first_rotation_that_it_sees_and_again_after_a_removal() {
        let mut holders = Holders::default();
        holders.entered();
        assert!(!holders.accepts(0, 20) && !holders.accepts(20, 20));
        assert!(holders.accepts(7, 20), "it takes what it sees first");
        holders.rotation(7, &[A], [A, B]);
        assert!(holders.accepts(8, 21));
        for epoch in [0, 6, 7, 9, u32::MAX] {
            assert!(!holders.accepts(epoch, 21), "{epoch}");
        }
        holders.removed(B);
        assert!(holders.accepts(3, 22), "the number may have been the word of who is gone");
        holders.rotation(3, &[A], [A]);
        assert!(holders.accepts(4, 23) && !holders.accepts(8, 23));
    }

    #[test]
    fn after_the_last_number_there_is_none() {
        let mut holders = Holders::default();
        holders.rotation(u32::MAX, &[A], [A]);
        assert_eq!(holders.next_epoch(), None);
        assert!(!holders.accepts(u32::MAX, u64::MAX));
    }

    #[test]
    fn a_delivery_does_not_outdo_a_rotation() {
        let mut holders = Holders::default();
        holders.delivery(4);
        assert_eq!(holders.epoch(), 4);
        assert!(holders.accepts(5, 20));
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
