//! Entries of a group that came spoiled ([`crate::spoiled`]): looked at again, from the place before them.
//!
//! Everything else goes on meanwhile. Such an entry is not acked, so that the relay keeps its body; when a
//! copy is whole, it is taken as if it had come so at once. A key is not waited for: whoever lacks one
//! asks a member for it. Membership depends on the order of all control entries, so for one of these the
//! group is read anew from its beginning.
//!
//! In a group the relay does not check the signatures of ordinary entries: one may be wrong because its
//! author made it so. So a device asks a number of times only, for a number of entries, and then acks.

use std::time::Duration;

use sealwire_protocol::frame::{Entry, Unsubscribe};
use sealwire_protocol::{Digest, Head, Header, Kind};
use serde::{Deserialize, Serialize};

use super::Result;
use super::desk::{Asked, Call};
use super::log::{Log, Subscription};
use crate::entry::{digest_of, judge, judge_totals};
use crate::spoiled::pause_ms;
use crate::store::{history, inbox, logs};

/// Most entries of one group that are waited for.
const SPOILED_MAX: usize = 64;

/// How often they are looked at again: for about three days.
const TRIES_MAX: u32 = 8;

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Missing {
    seq: u64,
    /// As it stands in the chain.
    digest: Digest,
    control: bool,
}

/// The entries of one group that came spoiled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spoiled {
    /// By seq.
    entries: Vec<Missing>,
    /// How often they were looked at again.
    tries: u32,
    /// When they are, in milliseconds since the epoch.
    again_at: u64,
}

impl Spoiled {
    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the entry at `seq` is one.
    pub(super) fn has(&self, seq: u64) -> bool {
        self.entries.iter().any(|it| it.seq == seq)
    }

    /// The ranges up to `seq` that hold none of them.
    pub(super) fn between(&self, seq: u64) -> Vec<(u64, u64)> {
        let mut ranges = Vec::new();
        let mut from = 1;
        for it in self.entries.iter().filter(|it| it.seq <= seq) {
            if from < it.seq {
                ranges.push((from, it.seq - 1));
            }
            from = it.seq + 1;
        }
        if from <= seq {
            ranges.push((from, seq));
        }
        ranges
    }

    fn note(&mut self, missing: Missing, now: u64) {
        self.entries.retain(|it| it.seq != missing.seq);
        if self.entries.len() == SPOILED_MAX {
            return;
        }
        if self.entries.is_empty() {
            self.tries = 0;
        }
        self.entries.push(missing);
        self.entries.sort_by_key(|it| it.seq);
        self.again_at = now.saturating_add(pause_ms(self.tries));
    }
}

impl Log {
    /// An entry is not believed because it came otherwise than it was written.
    pub(super) fn note_spoiled(
        &mut self,
        call: &Call<'_>,
        entry: &Entry,
        header: &Header,
    ) -> Result<()> {
        if header.kind == Kind::Key {
            // It may have been a rotation, and sealed to this device.
            self.holders.doubt();
            self.members_changed = true;
            self.expect_key(call);
            return Ok(());
        }
        let control = header.kind == Kind::Control;
        if !control && !self.membership.has(header.sender) {
            return Ok(());
        }
        let missing = Missing { seq: entry.seq, digest: digest_of(&entry.header), control };
        self.spoiled.note(missing, call.now.ms);
        self.look_again_at = None;
        logs::set_spoiled(call.db, self.id, &self.spoiled)
    }

    /// An entry came again that was read before: maybe whole, this time.
    pub(super) fn look_again(&mut self, call: &mut Call<'_>, entry: &Entry) -> Result<()> {
        let digest = digest_of(&entry.header);
        let is = |it: &Missing| it.seq == entry.seq && it.digest == digest && !it.control;
        if !self.spoiled.entries.iter().any(is) {
            return Ok(());
        }
        let totals = self.log.is_totals();
        let judged = if totals { judge_totals(self.log, entry) } else { judge(self.log, entry) };
        let Ok(judged) = judged else { return Ok(()) };
        inbox::forget_rejected(call.db, self.id, entry.seq)?;
        if totals {
            // Who it is of was the relay's word then, and is now; what does not fit was told.
            let _ = self.take_totals(call, entry, &judged)?;
        } else {
            let mut sender = self.sender(call.db, judged.header.sender)?;
            sender.delivered = judged.header.count - 1;
            self.take_content(call, entry, &judged.header, &mut sender)?;
        }
        self.is_whole(call, entry.seq)
    }

    /// The entry at `seq` has come whole, or cannot be had any more.
    pub(super) fn is_whole(&mut self, call: &Call<'_>, seq: u64) -> Result<()> {
        if !self.spoiled.has(seq) {
            return Ok(());
        }
        self.spoiled.entries.retain(|it| it.seq != seq);
        self.ack_due = true;
        self.progressed();
        logs::set_spoiled(call.db, self.id, &self.spoiled)
    }

    /// When the relay is to be asked again, asks it: the subscription ends, and the next one begins before
    /// what is missing.
    pub(super) fn look_again_when_due(&mut self, call: &mut Call<'_>) {
        if self.spoiled.is_empty() || self.subscription != Subscription::Drained {
            return;
        }
        // The clock may have been set back meanwhile.
        let wait = self.spoiled.again_at.saturating_sub(call.now.ms);
        let wait = Duration::from_millis(wait.min(pause_ms(self.spoiled.tries)));
        let at = *self.look_again_at.get_or_insert(call.now.at + wait);
        if at <= call.now.at {
            self.look_again_at = None;
            self.subscription = Subscription::Leaving;
            call.ask(Asked::Unsubscribe(self.log), Unsubscribe { log: self.log });
        }
    }

    /// Where the next subscription begins: where reading goes on, or before what came spoiled, if it is
    /// time to look again.
    pub(super) fn cursor(&mut self, call: &Call<'_>) -> Result<Option<Head>> {
        let head = self.track.head();
        if self.spoiled.is_empty() || self.spoiled.again_at > call.now.ms {
            return Ok(head);
        }
        self.spoiled.tries += 1;
        self.spoiled.again_at = call.now.ms.saturating_add(pause_ms(self.spoiled.tries));
        if self.spoiled.tries > TRIES_MAX {
            self.spoiled = Spoiled::default();
            self.ack_due = true;
            self.progressed();
        }
        logs::set_spoiled(call.db, self.id, &self.spoiled)?;
        if self.spoiled.entries.iter().any(|it| it.control) {
            self.forget_history(call.db)?;
            return Ok(None);
        }
        let (Some(first), Some(head)) = (self.spoiled.entries.first(), head) else {
            return Ok(head);
        };
        let seq = first.seq - 1;
        let chain = history::chain_at(call.db, self.id, seq)?;
        // If the place is not remembered any more, neither does the relay keep the body.
        Ok(Some(chain.map_or(head, |chain| Head { seq, chain, ..head })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(seq: u64) -> Missing {
        Missing { seq, digest: Digest([1; 32]), control: false }
    }

    #[test]
    fn everything_but_what_is_missing_is_acked() {
        let mut spoiled = Spoiled::default();
        assert_eq!(spoiled.between(9), [(1, 9)]);
        for seq in [7, 3, 4, 12] {
            spoiled.note(missing(seq), 0);
        }
        assert_eq!(spoiled.between(9), [(1, 2), (5, 6), (8, 9)]);
        assert_eq!(spoiled.between(3), [(1, 2)]);
        assert!(spoiled.has(12) && !spoiled.has(9));
        (20..200).for_each(|seq| spoiled.note(missing(seq), 0));
        assert_eq!(spoiled.entries.len(), SPOILED_MAX, "the others are acked");
    }
}
