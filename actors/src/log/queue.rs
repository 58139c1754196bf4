//! Who still waits for which body of a group, and when a body may go.
//!
//! There is no row for each recipient: who waits for an entry follows from who was a member when it
//! was ordered, from the names that it carries, and from what each member has acked. The queue keeps
//! one count for each body that is left, and every addressed copy leaves it in exactly one way.

use std::collections::BTreeMap;

use sealwire_protocol::{AckSet, DeviceKey, ErrorCode, Failure, Kind};

use crate::entry::{CheckedEntry, Content};
use crate::limits::{
    BODY_OVERHEAD_BYTES, FREED_BODIES_MAX, GROUP_ENTRIES_MAX, GROUP_RESERVE_BODIES,
    GROUP_RESERVE_BYTES, GROUP_UNDELIVERED_BODIES_MAX, GROUP_UNDELIVERED_BYTES_MAX, QUOTA_RETRY_MS,
};
use crate::metrics::{Outcome, Outcomes};
use crate::totals::kinds::rule_of;

/// A body that is left.
struct Waiting {
    sender: DeviceKey,
    /// The named addressees, sorted; empty for all.
    recipients: Box<[DeviceKey]>,
    /// How many addressees have not acked.
    left: u32,
    bytes: u64,
    at: u64,
    rings: bool,
}

impl Waiting {
    fn is_for(&self, device: DeviceKey) -> bool {
        device != self.sender
            && (self.recipients.is_empty() || self.recipients.binary_search(&device).is_ok())
    }
}

/// A member, as far as the queue must know it.
pub(super) struct Reader<'a> {
    pub(super) device: DeviceKey,
    pub(super) joined_seq: u64,
    pub(super) acked: &'a AckSet,
}

/// The bodies of one group that are left.
#[derive(Default)]
pub(super) struct Queue {
    bodies: BTreeMap<u64, Waiting>,
    bytes: u64,
    /// Bodies that nobody waits for any more and that are still to be deleted.
    freed: Vec<u64>,
}

/// A body to be added.
pub(super) struct NewBody {
    pub(super) seq: u64,
    pub(super) sender: DeviceKey,
    pub(super) recipients: Box<[DeviceKey]>,
    /// Length of the body; what it costs beside that is added here.
    pub(super) bytes: usize,
    pub(super) at: u64,
    /// Whether a doorbell is rung for it.
    pub(super) rings: bool,
}

/// What a body counts for: itself, the names that it carries, and what every body costs.
pub(super) fn cost(body_bytes: usize, recipients: usize) -> u64 {
    (body_bytes + recipients * DeviceKey::LEN) as u64 + BODY_OVERHEAD_BYTES
}

impl Queue {
    /// Adds a body. If nobody waits for it, it is to be deleted at once.
    pub(super) fn add<'a>(&mut self, body: NewBody, readers: impl Iterator<Item = Reader<'a>>) {
        let mut waiting = Waiting {
            sender: body.sender,
            left: 0,
            bytes: cost(body.bytes, body.recipients.len()),
            recipients: body.recipients,
            at: body.at,
            rings: body.rings,
        };
        for reader in readers {
            if reader.joined_seq < body.seq
                && waiting.is_for(reader.device)
                && !reader.acked.contains(body.seq)
            {
                waiting.left += 1;
            }
        }
        if waiting.left == 0 {
            self.freed.push(body.seq);
        } else {
            self.bytes += waiting.bytes;
            self.bodies.insert(body.seq, waiting);
        }
    }

    /// Whether the bodies of these entries may be kept. Control entries are no queue's.
    pub(super) fn check_room(
        &self,
        entries: &[CheckedEntry],
        above_floor: u64,
    ) -> Result<(), Failure> {
        let (mut kept, mut bodies) = (0, 0);
        let mut only_small = true;
        for entry in entries {
            if !matches!(entry.content, Content::Control(_)) {
                kept += cost(entry.body.len(), entry.recipients.len());
                bodies += 1;
                only_small &= entry.header.kind == Kind::Key
                    || entry.totals_kind.as_deref().is_some_and(|kind| rule_of(kind).sent_once);
            }
        }
        if bodies > 0 && !self.has_room(bodies, kept, only_small, above_floor) {
            return Err(Failure::after_ms(ErrorCode::Quota, QUOTA_RETRY_MS));
        }
        Ok(())
    }

    /// Whether so many bodies of this [`cost`] in all may be kept in a group that holds so many entries
    /// above its floor. Keys and the kinds that are never sent twice may use the reserve.
    pub(super) fn has_room(
        &self,
        bodies: usize,
        cost: u64,
        may_use_reserve: bool,
        above_floor: u64,
    ) -> bool {
        let (reserve_bytes, reserve_bodies) =
            if may_use_reserve { (0, 0) } else { (GROUP_RESERVE_BYTES, GROUP_RESERVE_BODIES) };
        above_floor + bodies as u64 <= GROUP_ENTRIES_MAX
            && self.bytes + cost + reserve_bytes <= GROUP_UNDELIVERED_BYTES_MAX
            && self.bodies.len() + bodies + reserve_bodies <= GROUP_UNDELIVERED_BODIES_MAX
    }

    /// A member has newly acked these seqs.
    pub(super) fn acked(
        &mut self,
        device: DeviceKey,
        joined_seq: u64,
        new: &[(u64, u64)],
        outcome: Outcome,
        outcomes: &mut Outcomes,
    ) {
        for (first, last) in new {
            // Not addressed to whoever had not joined yet.
            let first = (*first).max(joined_seq + 1);
            if first <= *last {
                self.end_copies(device, first, *last, outcome, outcomes);
            }
        }
    }

    /// The seqs of these that `device` still waits for, in order. What it has acked must not be among
    /// them.
    pub(super) fn waiting_for(
        &self,
        device: DeviceKey,
        first: u64,
        last: u64,
    ) -> impl Iterator<Item = u64> {
        self.bodies
            .range(first..=last)
            .filter(move |(_, waiting)| waiting.is_for(device))
            .map(|(seq, _)| *seq)
    }

    /// The first entry at or after `from` that rings, was ordered at `since` or later and waits for a
    /// reader: its seq, and when it was ordered.
    pub(super) fn first_ringing(
        &self,
        reader: &Reader<'_>,
        from: u64,
        since: u64,
    ) -> Option<(u64, u64)> {
        let (_, last) = self.bodies.last_key_value().map(|(seq, _)| (0, *seq))?;
        let from = from.max(reader.joined_seq + 1);
        if from > last {
            return None;
        }
        reader.acked.gaps_within(from, last).into_iter().find_map(|(first, last)| {
            self.bodies
                .range(first..=last)
                .find(|(_, one)| one.rings && one.at >= since && one.is_for(reader.device))
                .map(|(seq, one)| (*seq, one.at))
        })
    }

    /// A member has left: it waits for nothing any more.
    pub(super) fn left(&mut self, reader: &Reader<'_>, outcomes: &mut Outcomes) {
        for (first, last) in reader.acked.gaps_within(reader.joined_seq + 1, u64::MAX) {
            self.end_copies(reader.device, first, last, Outcome::Left, outcomes);
        }
    }

    /// Ends the copies of these seqs that `device` waits for. Seqs that it has acked before must not
    /// be among them.
    fn end_copies(
        &mut self,
        device: DeviceKey,
        first: u64,
        last: u64,
        outcome: Outcome,
        outcomes: &mut Outcomes,
    ) {
        let mut done = Vec::new();
        for (seq, waiting) in self.bodies.range_mut(first..=last) {
            if waiting.is_for(device) {
                outcomes.add(outcome);
                waiting.left = waiting.left.saturating_sub(1);
                if waiting.left == 0 {
                    done.push(*seq);
                }
            }
        }
        for seq in done {
            self.forget(seq);
        }
    }

    /// Ends every copy that is left of entries up to and with `seq` that were ordered before
    /// `before`.
    pub(super) fn expire(
        &mut self,
        seq: u64,
        before: u64,
        outcome: Outcome,
        outcomes: &mut Outcomes,
    ) {
        let due: Vec<(u64, u32)> = self
            .bodies
            .range(..=seq)
            .filter(|(_, waiting)| waiting.at < before)
            .map(|(seq, waiting)| (*seq, waiting.left))
            .collect();
        for (seq, left) in due {
            for _ in 0..left {
                outcomes.add(outcome);
            }
            self.forget(seq);
        }
    }

    fn forget(&mut self, seq: u64) {
        if let Some(waiting) = self.bodies.remove(&seq) {
            self.bytes -= waiting.bytes;
            self.freed.push(seq);
        }
    }

    /// Whether bodies are to be deleted.
    pub(super) fn has_freed(&self) -> bool {
        !self.freed.is_empty()
    }

    /// The bodies to delete now, as inclusive ranges: at most [`FREED_BODIES_MAX`], the others later.
    pub(super) fn take_freed(&mut self) -> Vec<(u64, u64)> {
        let rest = self.freed.len().saturating_sub(FREED_BODIES_MAX);
        let mut freed = self.freed.split_off(rest);
        freed.sort_unstable();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for seq in freed {
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == seq => *last = seq,
                _ => ranges.push((seq, seq)),
            }
        }
        ranges
    }

    /// The lowest seq whose body is left.
    pub(super) fn first(&self) -> Option<u64> {
        self.bodies.keys().next().copied()
    }

    #[cfg(test)]
    pub(super) fn copies_left(&self) -> u64 {
        self.bodies.values().map(|waiting| u64::from(waiting.left)).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const MEMBERS: u8 = 4;

    #[derive(Clone, Debug)]
    enum Step {
        Append { sender: u8, named: Vec<u8> },
        Ack { device: u8, first: u64, more: u64 },
        Leave { device: u8 },
        Join { device: u8 },
        Expire { up_to: u64 },
    }

    fn step() -> impl Strategy<Value = Step> {
        let device = 0..MEMBERS;
        prop_oneof![
            4 => (device.clone(), vec(device.clone(), 0..3))
                .prop_map(|(sender, named)| Step::Append { sender, named }),
            4 => (device.clone(), 1_u64..40, 0_u64..10)
                .prop_map(|(device, first, more)| Step::Ack { device, first, more }),
            1 => device.clone().prop_map(|device| Step::Leave { device }),
            1 => device.prop_map(|device| Step::Join { device }),
            1 => (1_u64..40).prop_map(|up_to| Step::Expire { up_to }),
        ]
    }

    fn key(device: u8) -> DeviceKey {
        DeviceKey([device + 1; 32])
    }

    #[test]
    fn a_group_holds_so_many_bodies_however_small_they_are() {
        let nobody = AckSet::new();
        let mut queue = Queue::default();
        for seq in 1..=GROUP_UNDELIVERED_BODIES_MAX as u64 {
            let may_use_reserve = queue.has_room(1, cost(0, 0), true, 0);
            assert!(may_use_reserve, "{seq}");
            let reserved = GROUP_UNDELIVERED_BODIES_MAX - GROUP_RESERVE_BODIES;
            assert_eq!(queue.has_room(1, cost(0, 0), false, 0), seq <= reserved as u64, "{seq}");
            let recipients = Box::default();
            let body = NewBody { seq, sender: key(1), recipients, bytes: 0, at: 0, rings: true };
            let reader = Reader { device: key(2), joined_seq: 0, acked: &nobody };
            queue.add(body, std::iter::once(reader));
        }
        assert!(!queue.has_room(1, cost(0, 0), true, 0));
    }

    proptest! {
        #[test]
        fn each_addressed_copy_ends_in_exactly_one_way(steps in vec(step(), 1..80)) {
            let mut queue = Queue::default();
            let mut members: BTreeMap<u8, (u64, AckSet)> =
                (0..MEMBERS).map(|device| (device, (0, AckSet::new()))).collect();
            let mut seq = 0;
            let mut addressed = 0;
            let mut outcomes = Outcomes::default();
            for step in steps {
                match step {
                    Step::Append { sender, mut named } => {
                        if !members.contains_key(&sender) {
                            continue;
                        }
                        named.retain(|device| members.contains_key(device));
                        named.sort_unstable();
                        named.dedup();
                        seq += 1;
                        let is_for = |device: &&u8| {
                            **device != sender && (named.is_empty() || named.contains(*device))
                        };
                        addressed += members.keys().filter(is_for).count() as u64;
                        let body = NewBody {
                            seq,
                            sender: key(sender),
                            recipients: named.iter().map(|device| key(*device)).collect(),
                            bytes: 10,
                            at: seq,
                            rings: true,
                        };
                        let readers = members.iter().map(|(device, (joined_seq, acked))| Reader {
                            device: key(*device),
                            joined_seq: *joined_seq,
                            acked,
                        });
                        queue.add(body, readers);
                    }
                    Step::Ack { device, first, more } => {
                        let Some((joined_seq, acked)) = members.get_mut(&device) else {
                            continue;
                        };
                        let new = acked.insert(first, (first + more).min(seq));
                        let outcome = Outcome::Delivered;
                        queue.acked(key(device), *joined_seq, &new, outcome, &mut outcomes);
                    }
                    Step::Leave { device } => {
                        if let Some((joined_seq, acked)) = members.remove(&device) {
                            let acked = &acked;
                            let reader = Reader { device: key(device), joined_seq, acked };
                            queue.left(&reader, &mut outcomes);
                        }
                    }
                    Step::Join { device } => {
                        seq += 1;
                        members.entry(device).or_insert((seq, AckSet::new()));
                    }
                    Step::Expire { up_to } => {
                        queue.expire(up_to, u64::MAX, Outcome::Expired, &mut outcomes);
                    }
                }
                let ended = outcomes.delivered + outcomes.expired + outcomes.left;
                prop_assert_eq!(ended + queue.copies_left(), addressed);
            }
            queue.expire(u64::MAX, u64::MAX, Outcome::Expired, &mut outcomes);
            prop_assert_eq!(outcomes.delivered + outcomes.expired + outcomes.left, addressed);
            prop_assert_eq!(queue.bytes, 0);
        }
    }
}
