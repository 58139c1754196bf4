//! How far a device has read a log, and whether what it reads is one history.
//!
//! A [`Track`] extends the chain by every entry and every stub, in order and without a gap. It knows
//! nothing of senders or bodies: it is what makes the relay's word about order checkable.
//!
//! Below a floor the relay has only control entries left. They are accepted out of the chain (their
//! signatures speak for them), and the chain goes on from the floor's.

use sealwire_protocol::digest::{chain_next, chain_start};
use sealwire_protocol::{Digest, Head, LogId};

/// A position in a log and the chain up to and with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Seq of the last entry; 0 before the first.
    pub seq: u64,
    /// The chain after it.
    pub chain: Digest,
}

/// What is to be done with an item at some seq.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was read before: pass over it.
    Known,
    /// It is the next one: take it.
    Next,
    /// A control entry at or below the floor: take it, outside the chain.
    Below,
    /// Something between was left out.
    Gap,
}

/// What a head that the relay names is to this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadCheck {
    /// It lies on the chain that was read.
    Ours,
    /// It lies further than was read, or further back than is remembered: nothing can be said.
    Unknown,
    /// It is of another incarnation: history may have been lost.
    OtherIncarnation,
    /// Another chain stands at its seq: two histories.
    Differs,
}

/// How far one log was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Track {
    incarnation: u64,
    at: Position,
    floor: Option<Position>,
    /// Seq of the newest entry at or below a floor that was taken.
    below: u64,
}

impl Track {
    /// Nothing was read.
    #[must_use]
    pub fn new(log: LogId) -> Self {
        let at = Position { seq: 0, chain: chain_start(log) };
        Self { incarnation: 0, at, floor: None, below: 0 }
    }

    /// Read up to `head`.
    #[must_use]
    pub fn at(head: Head) -> Self {
        Self {
            incarnation: head.incarnation,
            at: Position { seq: head.seq, chain: head.chain },
            floor: None,
            below: 0,
        }
    }

    /// Where reading goes on: what a subscription names, and what `seen` says. None if nothing was
    /// read.
    #[must_use]
    pub fn head(&self) -> Option<Head> {
        (self.at.seq > 0).then_some(Head {
            incarnation: self.incarnation,
            seq: self.at.seq,
            chain: self.at.chain,
        })
    }

    /// The position up to which everything was read.
    #[must_use]
    pub fn position(&self) -> Position {
        self.at
    }

    /// The incarnation of the relay's store.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation
    }

    /// The relay has taken the cursor, so what was read is a beginning of its history.
    pub fn accepted(&mut self, incarnation: u64) {
        self.incarnation = incarnation;
        self.floor = None;
    }

    /// Whether entries are missing between what was read and the next one in the chain.
    #[must_use]
    pub fn has_floor(&self) -> bool {
        self.floor.is_some()
    }

    /// The relay keeps only control entries up to `head`.
    pub fn begin_floor(&mut self, head: &Head) {
        if head.seq > self.at.seq {
            self.floor = Some(Position { seq: head.seq, chain: head.chain });
        }
    }

    /// Everything up to `seq` was sent: if that is the floor, nothing stands above it.
    pub fn drained(&mut self, seq: u64) {
        if let Some(floor) = self.floor
            && floor.seq == seq
        {
            self.end_floor(floor);
        }
    }

    /// The entry at `seq`, which [`Track::step`] has called one below the floor, was taken: should it come
    /// again, it is known. They come in order.
    pub fn take_below(&mut self, seq: u64) {
        self.below = seq;
    }

    /// What is to be done with the item at `seq`.
    #[must_use]
    pub fn step(&self, seq: u64, control: bool) -> Step {
        match self.floor {
            Some(floor) if seq <= floor.seq => {
                if control && seq <= self.below {
                    Step::Known
                } else if control {
                    Step::Below
                } else {
                    Step::Gap
                }
            }
            Some(floor) if seq == floor.seq + 1 => Step::Next,
            Some(_) => Step::Gap,
            None if seq <= self.at.seq => Step::Known,
            None if seq == self.at.seq + 1 => Step::Next,
            None => Step::Gap,
        }
    }

    /// Takes the item that [`Track::step`] has called the next.
    pub fn advance(&mut self, digest: Digest) -> Position {
        if let Some(floor) = self.floor {
            self.end_floor(floor);
        }
        let seq = self.at.seq + 1;
        self.at = Position { seq, chain: chain_next(self.at.chain, seq, digest) };
        self.at
    }

    /// What `head` is to this device, which remembers earlier chains as `chain_at` says.
    #[must_use]
    pub fn check(&self, head: &Head, chain_at: impl FnOnce(u64) -> Option<Digest>) -> HeadCheck {
        if head.incarnation != self.incarnation {
            return HeadCheck::OtherIncarnation;
        }
        let known = if head.seq == self.at.seq {
            Some(self.at.chain)
        } else if head.seq < self.at.seq {
            chain_at(head.seq)
        } else {
            None
        };
        match known {
            None => HeadCheck::Unknown,
            Some(chain) if chain == head.chain => HeadCheck::Ours,
            Some(_) => HeadCheck::Differs,
        }
    }

    fn end_floor(&mut self, floor: Position) {
        self.at = floor;
        self.floor = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOG: LogId = LogId([7; 16]);

    fn digest(n: u64) -> Digest {
        sealwire_protocol::digest::sha256(&n.to_be_bytes())
    }

    /// The chain after entries 1 to `seq`, as the protocol defines it.
    fn chain(seq: u64) -> Digest {
        (1..=seq).fold(chain_start(LOG), |before, n| chain_next(before, n, digest(n)))
    }

    fn head(seq: u64) -> Head {
        Head { incarnation: 5, seq, chain: chain(seq) }
    }

    fn read_to(seq: u64) -> Track {
        let mut track = Track::new(LOG);
        track.accepted(5);
        for n in 1..=seq {
            assert_eq!(track.step(n, false), Step::Next);
            track.advance(digest(n));
        }
        track
    }

    proptest! {
        #[test]
        fn a_log_read_in_order_ends_at_the_chain_that_the_protocol_defines(seq in 1u64..60) {
            let track = read_to(seq);
            prop_assert_eq!(track.head(), Some(head(seq)));
            prop_assert_eq!(track.check(&head(seq), |_| None), HeadCheck::Ours);
        }

        #[test]
        fn only_the_next_item_is_taken(read in 0u64..20, seq in 1u64..40, control: bool) {
            let expected = match seq {
                seq if seq <= read => Step::Known,
                seq if seq == read + 1 => Step::Next,
                _ => Step::Gap,
            };
            prop_assert_eq!(read_to(read).step(seq, control), expected);
        }

        #[test]
        fn above_a_floor_the_chain_goes_on_from_it(
            read in 0u64..10, floor in 11u64..20, above in 0u64..10,
        ) {
            let mut track = read_to(read);
            track.begin_floor(&head(floor));
            for n in read + 1..=floor {
                prop_assert_eq!(track.step(n, true), Step::Below);
                prop_assert_eq!(track.step(n, false), Step::Gap);
            }
            prop_assert_eq!(track.step(floor + 2, true), Step::Gap);
            prop_assert_eq!(track.position().seq, read, "a floor is not read before it is passed");
            for n in floor + 1..=floor + above {
                prop_assert_eq!(track.step(n, false), Step::Next);
                track.advance(digest(n));
            }
            track.drained(floor + above);
            prop_assert_eq!(track.head(), Some(head(floor + above)));
        }
    }

    #[test]
    fn a_head_on_another_chain_shows() {
        let track = read_to(9);
        let remember = |seq: u64| (seq > 4).then(|| chain(seq));
        assert_eq!(track.check(&head(6), remember), HeadCheck::Ours);
        assert_eq!(track.check(&head(4), remember), HeadCheck::Unknown);
        assert_eq!(track.check(&head(10), remember), HeadCheck::Unknown);
        let forked = |seq| Head { chain: Digest([1; 32]), ..head(seq) };
        assert_eq!(track.check(&forked(9), remember), HeadCheck::Differs);
        assert_eq!(track.check(&forked(6), remember), HeadCheck::Differs);
        let restored = Head { incarnation: 6, ..head(9) };
        assert_eq!(track.check(&restored, remember), HeadCheck::OtherIncarnation);
    }

    #[test]
    fn what_stands_below_a_floor_is_taken_once() {
        let mut track = Track::new(LOG);
        track.begin_floor(&head(9));
        for n in [1, 2, 5] {
            assert_eq!(track.step(n, true), Step::Below);
            track.take_below(n);
            assert_eq!(track.step(n, true), Step::Known);
        }
        // The connection breaks, and the relay begins again.
        track.accepted(5);
        track.begin_floor(&head(9));
        assert_eq!([1, 5, 6].map(|n| track.step(n, true)), [Step::Known, Step::Known, Step::Below]);
    }

    #[test]
    fn a_floor_below_the_cursor_changes_nothing() {
        let mut track = read_to(9);
        track.begin_floor(&head(5));
        assert_eq!(track.step(10, false), Step::Next);
        assert_eq!(track.step(5, true), Step::Known);
    }
}
