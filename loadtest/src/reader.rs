//! One device's reading of one log, and everything that could be wrong with what it was sent.
//!
//! The chain makes this exact: a reader that has arrived at the head which `Appended` named has read
//! every entry before it, once and in order.

use std::collections::BTreeSet;
use std::fmt;

use sealwire_client::chain::{Step, Track};
use sealwire_protocol::digest::entry_digest;
use sealwire_protocol::frame::{Entry, StubReason, Stubs};
use sealwire_protocol::{Digest, Head, Kind, LogId};
use serde::{Deserialize, Serialize};

use crate::limits::MISSING_MAX;

/// How one reader has read.
pub(crate) struct Reader {
    log: LogId,
    track: Track,
    /// Whether entries of this log may name others.
    others_named: bool,
    /// Whether all entries that the chain is made of have come.
    whole: bool,
    /// What was left out and has not come since.
    missing: BTreeSet<u64>,
    faults: Faults,
    /// Entries that came whole, control entries not counted.
    pub(crate) delivered: u64,
}

/// What must never happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Faults {
    /// Appended and not delivered.
    pub(crate) lost: u64,
    /// Delivered more than once.
    pub(crate) duplicate: u64,
    /// Delivered before an entry that stands before it.
    pub(crate) disorder: u64,
    /// Delivered with another body, or in another history than the one that was answered.
    pub(crate) altered: u64,
}

impl Faults {
    pub(crate) fn add(&mut self, other: Self) {
        self.lost += other.lost;
        self.duplicate += other.duplicate;
        self.disorder += other.disorder;
        self.altered += other.altered;
    }

    /// What has to be said of them; nothing if there are none.
    pub(crate) fn broken_promise(self) -> Option<String> {
        (self != Self::default()).then(|| format!("the relay has broken its promise: {self}"))
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lost, duplicate, disorder, altered } = self;
        write!(f, "{lost} lost, {duplicate} duplicate, {disorder} out of order, {altered} altered")
    }
}

impl Reader {
    /// Nothing was read, and everything is for this reader.
    pub(crate) fn new(log: LogId) -> Self {
        Self::of(log, Track::new(log))
    }

    /// Everything was read up to this head.
    pub(crate) fn at(log: LogId, head: Head) -> Self {
        Self::of(log, Track::at(head))
    }

    /// Nothing was read of a log whose entries name their addressees.
    pub(crate) fn of_named(log: LogId) -> Self {
        Self { others_named: true, ..Self::new(log) }
    }

    fn of(log: LogId, track: Track) -> Self {
        Self {
            log,
            track,
            others_named: false,
            whole: true,
            missing: BTreeSet::new(),
            faults: Faults::default(),
            delivered: 0,
        }
    }

    /// The log that is read.
    pub(crate) fn log(&self) -> LogId {
        self.log
    }

    /// Seq of the last entry that was read.
    pub(crate) fn seq(&self) -> u64 {
        self.track.position().seq
    }

    /// Where reading goes on, as a subscription names it.
    pub(crate) fn head(&self) -> Option<Head> {
        self.track.head()
    }

    /// What was wrong so far; what is missing may still come.
    pub(crate) fn faults(&self) -> Faults {
        self.faults
    }

    /// Takes an entry. Gives whether it was content that had not come before, in its place.
    pub(crate) fn entry(&mut self, entry: &Entry) -> bool {
        let Ok(header) = entry.header.decode() else {
            self.faults.altered += 1;
            return false;
        };
        if !header.holds(entry.body.as_ref()) {
            self.faults.altered += 1;
        }
        let is_control = header.kind == Kind::Control;
        let is_next = self.item(entry.seq, entry_digest(&entry.header));
        self.delivered += u64::from(is_next && !is_control);
        is_next && !is_control
    }

    /// The entry that was taken last is not its sender's.
    pub(crate) fn disbelieve(&mut self) {
        self.faults.altered += 1;
    }

    /// Takes stubs. Nobody acks what it has not read, so nothing may come as a stub but the reader's
    /// own entries and those that name others.
    pub(crate) fn stubs(&mut self, stubs: &Stubs) {
        for (seq, stub) in (stubs.seq..).zip(stubs.stubs.iter()) {
            self.item(seq, stub.digest);
            match stub.reason {
                StubReason::Own => {}
                StubReason::NotAddressed if self.others_named => {}
                StubReason::NotAddressed | StubReason::Acked | StubReason::Expired => {
                    self.faults.lost += 1;
                }
            }
        }
    }

    /// Takes an item, wherever it stands. Gives whether it was the next one, or the next after a hole.
    fn item(&mut self, seq: u64, digest: Digest) -> bool {
        match self.track.step(seq, false) {
            Step::Next => {
                self.track.advance(digest);
                true
            }
            Step::Known | Step::Below => {
                if self.missing.remove(&seq) {
                    self.faults.disorder += 1;
                } else {
                    self.faults.duplicate += 1;
                }
                false
            }
            Step::Gap => {
                self.leave_out(seq);
                self.track.advance(digest);
                true
            }
        }
    }

    /// Goes on behind a hole. The chain cannot be known from there on.
    fn leave_out(&mut self, seq: u64) {
        let missing = self.seq() + 1..seq;
        let room = MISSING_MAX - self.missing.len();
        self.faults.lost += (missing.end - missing.start).saturating_sub(room as u64);
        self.missing.extend(missing.take(room));
        self.whole = false;
        let incarnation = self.track.incarnation();
        self.track = Track::at(Head { incarnation, seq: seq - 1, chain: Digest::ZERO });
    }

    /// The end of the log as its authors were told it: what is missing up to there is lost, and
    /// another chain there is another history.
    pub(crate) fn conclude(mut self, head: Head) -> Faults {
        let position = self.track.position();
        self.faults.lost += head.seq.saturating_sub(position.seq) + self.missing.len() as u64;
        if self.whole && position.seq == head.seq && position.chain != head.chain {
            self.faults.altered += 1;
        }
        self.faults
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use sealwire_protocol::bounded::Bounded;
    use sealwire_protocol::digest::{chain_next, chain_start, sha256};
    use sealwire_protocol::frame::{Recipients, Stub};
    use sealwire_protocol::{Audience, Body, DeviceKey, Header};

    use super::*;

    const LOG: LogId = LogId([7; 16]);

    fn entry(seq: u64) -> Entry {
        let body = Bytes::from(seq.to_be_bytes().to_vec());
        let header = Header {
            log: LOG,
            sender: DeviceKey([1; 32]),
            count: seq,
            prev: Digest::ZERO,
            kind: Kind::Ring,
            audience: Audience::All,
            seen: Head::NONE,
            body: sha256(&body),
        };
        Entry {
            log: LOG,
            seq,
            at: 0,
            header: header.encode(),
            body: Body(body),
            signature: None,
            recipients: Recipients::default(),
            totals_kind: None,
        }
    }

    fn head(seq: u64) -> Head {
        let chain = (1..=seq).fold(chain_start(LOG), |chain, n| {
            chain_next(chain, n, entry_digest(&entry(n).header))
        });
        Head { incarnation: 1, seq, chain }
    }

    fn faults_after(seqs: &[u64]) -> Faults {
        let mut reader = Reader::new(LOG);
        for seq in seqs {
            reader.entry(&entry(*seq));
        }
        reader.conclude(head(4))
    }

    #[test]
    fn what_is_lost_repeated_or_out_of_order_is_counted() {
        assert_eq!(faults_after(&[1, 2, 3, 4]), Faults::default());
        assert_eq!(faults_after(&[1, 2, 3]), Faults { lost: 1, ..Faults::default() });
        assert_eq!(faults_after(&[1, 2, 2, 3, 4]), Faults { duplicate: 1, ..Faults::default() });
        let late = Faults { disorder: 1, ..Faults::default() };
        assert_eq!(faults_after(&[1, 2, 4, 3]), late);
        let left_out = Faults { lost: 2, ..Faults::default() };
        assert_eq!(faults_after(&[1, 4]), left_out);
    }

    #[test]
    fn another_body_or_another_history_is_counted() {
        let mut reader = Reader::new(LOG);
        let changed = Entry { body: Body::copy_from(b"another"), ..entry(1) };
        reader.entry(&changed);
        assert_eq!(reader.conclude(head(1)), Faults { altered: 1, ..Faults::default() });

        let mut reader = Reader::new(LOG);
        let stub = Stub { digest: Digest([9; 32]), reason: StubReason::Own };
        let stubs = Bounded::new(vec![stub]).expect("one stub");
        reader.stubs(&Stubs { log: LOG, seq: 1, stubs });
        assert_eq!(reader.conclude(head(1)), Faults { altered: 1, ..Faults::default() });
    }

    #[test]
    fn a_body_that_is_gone_before_it_was_read_is_lost() {
        let mut reader = Reader::new(LOG);
        let digest = entry_digest(&entry(1).header);
        let stubs = Bounded::new(vec![Stub { digest, reason: StubReason::Expired }]);
        reader.stubs(&Stubs { log: LOG, seq: 1, stubs: stubs.expect("one stub") });
        assert_eq!(reader.conclude(head(1)), Faults { lost: 1, ..Faults::default() });
    }
}
