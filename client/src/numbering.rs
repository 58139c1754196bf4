//! Which number an entry of this device gets, and what an answer to it means for the others.
//!
//! One of these per log. An entry is numbered when it is first sent, and from then on its header
//! and signature stand until the relay has answered. An entry that the relay has refused for good
//! frees its number, and with it those behind it, which are numbered anew.
//!
//! Holds always:
//! - counts are dense: the newest that was appended, then those that are numbered, in order;
//! - two entries of this device never stand under one count, unless the relay has refused the first;
//! - what was numbered and not answered is sent again, byte for byte, after every reconnect.

use std::collections::VecDeque;
use std::time::Duration;

use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::{Digest, Failure, Head};

/// How long to wait when the relay asks for patience and does not say how much.
const HOLD_DEFAULT: Duration = Duration::from_secs(1);

/// Longest wait that a relay may ask for. More is a relay that is not worth waiting for, and a wait
/// that a person would not understand.
const HOLD_MAX: Duration = Duration::from_secs(300);

/// The name of a draft in the device's outbox.
pub type DraftId = i64;

/// Number and digest of an entry of this device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Its count.
    pub count: u64,
    /// Its digest.
    pub digest: Digest,
}

impl Mark {
    /// Before the first entry.
    pub const NONE: Self = Self { count: 0, digest: Digest::ZERO };
}

/// What an answer of the relay means for the outbox of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is about nothing that is still numbered.
    Nothing,
    /// The same bytes are to be sent again, after this long.
    Again(Duration),
    /// The first of these is refused for good; the others are to be numbered anew.
    Refused(Vec<DraftId>),
    /// All of these are to be numbered anew, once the log has been read up to the head.
    CatchUp(Vec<DraftId>, Option<Head>),
    /// The relay has lost entries that it had appended: those from this count on are to be sent
    /// again, as they were.
    Restore(u64),
    /// The relay has another entry under a count of this device: it was cloned, or restored from a
    /// backup.
    Conflict,
    /// This device is not a member: nothing more can be sent. These are to be numbered anew if it
    /// becomes one.
    Ended(Vec<DraftId>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// To be sent, or sent again.
    Waiting,
    /// Sent on this connection.
    Sent,
    /// Appended, but one before it is not known to be.
    Appended,
}

#[derive(Clone, Copy, Debug)]
struct Numbered {
    id: DraftId,
    mark: Mark,
    /// Whether nothing may be numbered behind it before it is answered.
    barrier: bool,
    state: State,
}

/// The numbers of one log.
#[derive(Clone, Debug)]
pub struct Numbering {
    appended: Mark,
    numbered: VecDeque<Numbered>,
}

impl Numbering {
    /// The newest entry that the relay has appended, and nothing numbered behind it.
    #[must_use]
    pub fn new(appended: Mark) -> Self {
        Self { appended, numbered: VecDeque::new() }
    }

    /// The newest entry of this device that the relay has appended, with all before it.
    #[must_use]
    pub fn appended(&self) -> Mark {
        self.appended
    }

    /// The entry behind which the next one is numbered.
    #[must_use]
    pub fn last(&self) -> Mark {
        self.numbered.back().map_or(self.appended, |numbered| numbered.mark)
    }

    /// Whether nothing may be numbered now.
    #[must_use]
    pub fn is_barred(&self) -> bool {
        self.numbered.iter().any(|numbered| numbered.barrier)
    }

    /// How many are numbered and not yet settled.
    #[must_use]
    pub fn unsettled(&self) -> usize {
        self.numbered.len()
    }

    /// Takes the next number for a draft. `barrier` says that nothing may be numbered behind it
    /// before it is answered.
    pub fn push(&mut self, id: DraftId, digest: Digest, barrier: bool) {
        let mark = Mark { count: self.last().count + 1, digest };
        self.numbered.push_back(Numbered { id, mark, barrier, state: State::Waiting });
    }

    /// The next draft to be sent.
    #[must_use]
    pub fn to_send(&self) -> Option<(DraftId, u64)> {
        self.numbered
            .iter()
            .find(|numbered| numbered.state == State::Waiting)
            .map(|numbered| (numbered.id, numbered.mark.count))
    }

    /// The entry with this count was sent.
    pub fn sent(&mut self, count: u64) {
        self.set(count, |state| if state == State::Waiting { State::Sent } else { state });
    }

    /// The connection is gone: whatever is not answered is to be sent again.
    pub fn disconnected(&mut self) {
        for numbered in &mut self.numbered {
            if numbered.state == State::Sent {
                numbered.state = State::Waiting;
            }
        }
    }

    /// The draft under this count, if it is not settled.
    #[must_use]
    pub fn find(&self, count: u64) -> Option<(DraftId, Digest)> {
        self.numbered
            .iter()
            .find(|numbered| numbered.mark.count == count)
            .map(|numbered| (numbered.id, numbered.mark.digest))
    }

    /// The relay has appended the entry with this count.
    pub fn on_appended(&mut self, count: u64) {
        self.set(count, |_| State::Appended);
        while let Some(first) = self.numbered.front()
            && first.state == State::Appended
        {
            self.appended = first.mark;
            self.numbered.pop_front();
        }
    }

    /// The drafts that are numbered up to this count, in order.
    #[must_use]
    pub fn up_to(&self, count: u64) -> Vec<(DraftId, u64)> {
        let numbered = self.numbered.iter().map(|numbered| (numbered.id, numbered.mark.count));
        numbered.take_while(|(_, at)| *at <= count).collect()
    }

    /// What was sent from this count on is to be sent again.
    pub fn send_again_from(&mut self, count: u64) {
        self.wait_from(count);
    }

    /// The relay has refused the entry with this count.
    pub fn on_refused(&mut self, count: u64, failure: &Failure) -> Verdict {
        if self.find(count).is_none() {
            return Verdict::Nothing;
        }
        if is_passing(failure.code) {
            self.wait_from(count);
            return Verdict::Again(hold(failure));
        }
        let code = failure.code;
        if code == ErrorCode::OutOfOrder {
            self.on_out_of_order(count, failure.expected.unwrap_or(0))
        } else if code == ErrorCode::Conflict {
            Verdict::Conflict
        } else if code == ErrorCode::Stale {
            self.free_from(count, |ids| Verdict::CatchUp(ids, failure.head))
        } else if code == ErrorCode::Revoked || code == ErrorCode::NoSuchLog {
            self.free_from(count, Verdict::Ended)
        } else {
            self.free_from(count, Verdict::Refused)
        }
    }

    /// What the relay had lost is numbered again behind `before`: `kept` has its drafts and
    /// digests, in order.
    pub fn restore(&mut self, before: Mark, kept: Vec<(DraftId, Digest)>) {
        self.appended = before;
        let mut restored: VecDeque<Numbered> = (before.count + 1..)
            .zip(kept)
            .map(|(count, (id, digest))| Numbered {
                id,
                mark: Mark { count, digest },
                barrier: false,
                state: State::Waiting,
            })
            .collect();
        restored.append(&mut self.numbered);
        for numbered in &mut restored {
            numbered.state = State::Waiting;
        }
        self.numbered = restored;
    }

    /// The relay has entries of this device that it does not know: its own go behind them. Gives
    /// those that were numbered, in order; they are to be numbered anew.
    pub fn adopt(&mut self, newest: Mark) -> Vec<DraftId> {
        self.appended = newest;
        self.numbered.drain(..).map(|numbered| numbered.id).collect()
    }

    fn on_out_of_order(&mut self, count: u64, expected: u64) -> Verdict {
        if expected <= self.appended.count {
            Verdict::Restore(expected)
        } else if expected < count {
            // One before it did not get there: that one first.
            self.wait_from(expected);
            Verdict::Again(Duration::ZERO)
        } else {
            // Its turn, and yet it does not follow what the relay has; or the relay has more.
            Verdict::Conflict
        }
    }

    fn wait_from(&mut self, count: u64) {
        for numbered in &mut self.numbered {
            if numbered.mark.count >= count && numbered.state == State::Sent {
                numbered.state = State::Waiting;
            }
        }
    }

    fn free_from(&mut self, count: u64, verdict: impl FnOnce(Vec<DraftId>) -> Verdict) -> Verdict {
        let at = self.numbered.partition_point(|numbered| numbered.mark.count < count);
        let freed = self.numbered.split_off(at);
        if freed.iter().any(|numbered| numbered.state == State::Appended) {
            // The relay cannot have refused one and appended one behind it.
            self.numbered.extend(freed);
            return Verdict::Conflict;
        }
        verdict(freed.iter().map(|numbered| numbered.id).collect())
    }

    fn set(&mut self, count: u64, change: impl FnOnce(State) -> State) {
        if let Some(numbered) =
            self.numbered.iter_mut().find(|numbered| numbered.mark.count == count)
        {
            numbered.state = change(numbered.state);
        }
    }
}

/// Whether the same bytes may be taken later: nothing is known to have happened.
pub(crate) fn is_passing(code: ErrorCode) -> bool {
    matches!(
        code,
        ErrorCode::Unavailable
            | ErrorCode::RateLimited
            | ErrorCode::TooManyInFlight
            | ErrorCode::Quota
            | ErrorCode::Draining
            | ErrorCode::Internal
    )
}

/// How long the relay asks for patience.
pub(crate) fn hold(failure: &Failure) -> Duration {
    failure.retry_after_ms.map_or(HOLD_DEFAULT, Duration::from_millis).min(HOLD_MAX)
}

#[cfg(test)]
mod tests;
