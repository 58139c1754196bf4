//! An ack set does what a plain set of seqs does, in its one canonical form, and stays bounded.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use sealwire_protocol::AckSet;
use sealwire_protocol::ack::AckWire;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::limits::{ACK_RANGES_MAX, SEQ_MAX};

/// The seqs that the plain set holds. Half of them are room for twice as many ranges as fit.
const PLAIN_MAX: u64 = 1024;

/// Whether `first..=last` would be a range of its own in a set that has no room for one.
fn has_no_room(set: &AckSet, first: u64, last: u64) -> bool {
    let touches = |(start, end): &(u64, u64)| first <= end + 1 && *start <= last + 1;
    set.ranges().len() == ACK_RANGES_MAX
        && first > set.floor() + 1
        && !set.ranges().iter().any(touches)
}

fn is_canonical(set: &AckSet) -> bool {
    let mut end = set.floor();
    set.ranges().len() <= ACK_RANGES_MAX
        && set.ranges().iter().all(|(first, last)| {
            let apart = *first > end + 1 && first <= last;
            end = *last;
            apart
        })
        && end <= SEQ_MAX
}

fuzz_target!(|bytes: &[u8]| {
    let mut set = AckSet::new();
    let mut plain = BTreeSet::new();
    for piece in bytes.chunks_exact(3) {
        let first = u64::from(u16::from_be_bytes([piece[0], piece[1]])) % PLAIN_MAX;
        // Mostly single seqs, so that the ranges fill; also ranges that end before they begin.
        let last = (first + u64::from(piece[2] / 32)).wrapping_sub(1 - u64::from(piece[2] % 2));
        if last == u64::MAX {
            continue;
        }
        let refused = has_no_room(&set, first.max(1), last) && first <= last;
        let new: Vec<u64> = set.insert(first, last).into_iter().flat_map(|(a, b)| a..=b).collect();
        let expected: Vec<u64> = if refused {
            vec![]
        } else {
            (first.max(1)..=last).filter(|seq| plain.insert(*seq)).collect()
        };
        assert_eq!(new, expected);
        assert!(is_canonical(&set));
    }
    for seq in 1..PLAIN_MAX + 16 {
        assert_eq!(set.contains(seq), plain.contains(&seq));
    }
    assert_eq!(set.highest(), plain.last().copied().unwrap_or(0));
    assert_eq!(AckSet::from_stored(set.floor(), &set.stored_ranges()), set);
    let mut merged = AckSet::new();
    merged.merge(&set.to_wire());
    assert_eq!(merged, set);

    // Any state that a frame can hold keeps the set canonical.
    let words: Vec<u64> = bytes
        .chunks_exact(8)
        .filter_map(|word| word.try_into().ok().map(u64::from_be_bytes))
        .collect();
    let ranges = words.chunks_exact(2).take(ACK_RANGES_MAX).map(|pair| (pair[0], pair[1]));
    let ranges = Bounded::new(ranges.collect()).expect("taken as many as fit");
    set.merge(&AckWire { floor: words.first().copied().unwrap_or(0), ranges });
    assert!(is_canonical(&set));
    let mut stored = AckSet::from_stored(words.last().copied().unwrap_or(0), bytes);
    assert!(is_canonical(&stored));
    assert!(stored.insert(1, u64::MAX).iter().all(|(first, last)| first <= last));
    assert_eq!(stored.floor(), SEQ_MAX);
});
