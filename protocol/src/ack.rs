//! What a device has acked of a log: a floor and ranges above it.
//!
//! Every seq up to and with the floor is acked; so is every seq in a range. Ranges are inclusive,
//! sorted, disjoint and not adjacent to each other or to the floor, and there are at most
//! [`ACK_RANGES_MAX`] in a set that travels: no row per entry, however many entries there are.

use serde::{Deserialize, Serialize};

use crate::bounded::Bounded;
use crate::limits::{ACK_RANGES_MAX, SEQ_MAX};

/// A set of acked seqs, kept in its one canonical form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AckSet {
    floor: u64,
    ranges: Vec<(u64, u64)>,
}

/// An [`AckSet`] as it travels: the ranges may be in any order and may overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckWire {
    /// Every seq up to and with this one.
    pub floor: u64,
    /// Inclusive ranges above it.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub ranges: Bounded<(u64, u64), ACK_RANGES_MAX>,
}

fn is_empty(ranges: &Bounded<(u64, u64), ACK_RANGES_MAX>) -> bool {
    ranges.is_empty()
}

impl AckWire {
    /// What it says of seqs up to and with `last`.
    #[must_use]
    pub fn up_to(&self, last: u64) -> Self {
        let ranges = self.ranges.iter().filter(|(first, _)| *first <= last);
        let ranges = ranges.map(|(first, end)| (*first, (*end).min(last))).collect();
        Self { floor: self.floor.min(last), ranges: Bounded::new(ranges).unwrap_or_default() }
    }

    /// The highest seq that it names; 0 for none.
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.ranges.iter().map(|range| range.1).max().unwrap_or(0).max(self.floor)
    }
}

impl AckSet {
    /// Nothing is acked.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Everything up to and with `floor` is acked.
    #[must_use]
    pub fn up_to(floor: u64) -> Self {
        Self { floor: floor.min(SEQ_MAX), ranges: Vec::new() }
    }

    /// The seq up to and with which everything is acked.
    #[must_use]
    pub fn floor(&self) -> u64 {
        self.floor
    }

    /// The inclusive ranges above the floor.
    #[must_use]
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// Whether `seq` is acked. Seq 0 does not exist and counts as acked.
    #[must_use]
    pub fn contains(&self, seq: u64) -> bool {
        if seq <= self.floor {
            return true;
        }
        let after = self.ranges.partition_point(|(first, _)| *first <= seq);
        after > 0 && self.ranges[after - 1].1 >= seq
    }

    /// The highest acked seq.
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.ranges.last().map_or(self.floor, |(_, last)| *last)
    }

    /// Acks `first..=last` and gives what is newly acked by it, as inclusive ranges.
    ///
    /// A range for which there is no room is not taken; the device repeats its whole state with
    /// every `Subscribe`, by when the gaps below it have closed.
    pub fn insert(&mut self, first: u64, last: u64) -> Vec<(u64, u64)> {
        self.insert_within(first, last, ACK_RANGES_MAX)
    }

    /// As [`AckSet::insert`], with room for this many ranges: for a set that never travels.
    pub fn insert_within(&mut self, first: u64, last: u64, ranges_max: usize) -> Vec<(u64, u64)> {
        let (first, last) = (first.max(self.floor + 1), last.min(SEQ_MAX));
        if first > last {
            return Vec::new();
        }
        let new = self.gaps_within(first, last);
        if new.is_empty() {
            return new;
        }
        // Join with every range that overlaps or touches.
        let begin = self.ranges.partition_point(|(_, end)| end + 1 < first);
        let end = self.ranges.partition_point(|(start, _)| *start <= last + 1);
        let mut joined = (first, last);
        for (start, stop) in &self.ranges[begin..end] {
            joined = (joined.0.min(*start), joined.1.max(*stop));
        }
        if joined.0 == self.floor + 1 {
            self.floor = joined.1;
            self.ranges.drain(..end);
        } else {
            if begin == end && self.ranges.len() >= ranges_max {
                return Vec::new();
            }
            self.ranges.splice(begin..end, [joined]);
        }
        new
    }

    /// Acks all of `wire`, and gives what is newly acked by it.
    pub fn merge(&mut self, wire: &AckWire) -> Vec<(u64, u64)> {
        let mut new = self.insert(1, wire.floor);
        for (first, last) in wire.ranges.iter() {
            new.extend(self.insert(*first, *last));
        }
        new
    }

    /// The parts of `first..=last` that are not acked.
    #[must_use]
    pub fn gaps_within(&self, first: u64, last: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let (mut next, last) = (first.max(self.floor + 1), last.min(SEQ_MAX));
        let begin = self.ranges.partition_point(|(_, end)| *end < next);
        for (start, stop) in &self.ranges[begin..] {
            if next > last || *start > last {
                break;
            }
            if *start > next {
                gaps.push((next, start - 1));
            }
            next = stop + 1;
        }
        if next <= last {
            gaps.push((next, last));
        }
        gaps
    }

    /// How it travels: the lowest ranges, if there are more than may travel.
    #[must_use]
    pub fn to_wire(&self) -> AckWire {
        let ranges = self.ranges.iter().take(ACK_RANGES_MAX).copied().collect();
        AckWire { floor: self.floor, ranges: Bounded::new(ranges).unwrap_or_default() }
    }

    /// Reads what was stored, however many ranges: a floor and `(first, last)` pairs as 16 big-endian
    /// bytes each.
    #[must_use]
    pub fn from_stored(floor: u64, ranges: &[u8]) -> Self {
        let mut set = Self::up_to(floor);
        for pair in ranges.chunks_exact(16) {
            let (first, last) = pair.split_at(8);
            if let (Ok(first), Ok(last)) = (first.try_into(), last.try_into()) {
                set.insert_within(u64::from_be_bytes(first), u64::from_be_bytes(last), usize::MAX);
            }
        }
        set
    }

    /// The ranges as they are stored.
    #[must_use]
    pub fn stored_ranges(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.ranges.len() * 16);
        for (first, last) in &self.ranges {
            bytes.extend_from_slice(&first.to_be_bytes());
            bytes.extend_from_slice(&last.to_be_bytes());
        }
        bytes
    }
}
