//! The newest chains that were read, so that what others had seen can be compared with it.
//!
//! An entry names the newest head that its author had verified. If another chain stood there for this
//! device, the relay shows its readers two histories. A head that is not remembered says nothing.

use std::collections::BTreeMap;

use sealwire_protocol::{Digest, Head};
use serde::{Deserialize, Serialize};

use crate::chain::{HeadCheck, Position, Track};

/// How many are remembered: about a day of a busy household, in 11 KiB.
const CHAINS_MAX: usize = 256;

/// By seq.
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Chains(BTreeMap<u64, Digest>);

impl Chains {
    pub(super) fn push(&mut self, at: Position) {
        self.0.insert(at.seq, at.chain);
        if self.0.len() > CHAINS_MAX {
            self.0.pop_first();
        }
    }

    /// Whether a head that the author of the entry at `seq` had seen shows another history.
    pub(super) fn differs(&self, track: &Track, seq: u64, seen: &Head) -> bool {
        if *seen == Head::NONE || seen.incarnation != track.incarnation() {
            return false;
        }
        let known = |at: u64| self.0.get(&at).copied();
        seen.seq >= seq || track.check(seen, known) == HeadCheck::Differs
    }
}
