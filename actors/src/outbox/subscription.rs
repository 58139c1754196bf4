//! Where one session stands in one log.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::codec::encode_relay;
use sealwire_protocol::frame::{Stub, StubReason, Stubs};
use sealwire_protocol::{Digest, LogId, LogType};

use crate::limits::STUBS_PENDING_MAX;
use crate::ports::LogKey;
use crate::registry::Presence;

/// A log that the session's device is a member of.
pub(super) struct Membered {
    pub(super) key: LogKey,
    pub(super) id: LogId,
    pub(super) log_type: LogType,
    /// See [`super::Outbox::ground`].
    pub(super) ground: u64,
    pub(super) subscription: Option<Box<Subscription>>,
}

/// Whether live entries are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// They are: everything before `next` is queued.
    Live,
    /// They are not, and a page is wanted.
    Behind,
    /// They are not, and a page is being read.
    Reading,
}

/// What is being caught up on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Control entries below the floor: after the first seq, up to and with the second.
    Controls(u64, u64),
    /// Everything else.
    Entries,
}

/// One session's place in one log.
pub(crate) struct Subscription {
    pub(super) presence: Arc<Presence>,
    /// The seq that is expected next; what waits as a stub is before it.
    pub(super) next: u64,
    pub(super) state: State,
    pub(super) phase: Phase,
    /// Tells pages of this subscription from pages of one before it.
    pub(super) generation: u64,
    pub(super) joined_seq: u64,
    /// Whether the head changed since the last heartbeat.
    pub(super) changed: bool,
    stubs: Vec<Stub>,
}

static GENERATION: AtomicU64 = AtomicU64::new(0);

impl Subscription {
    /// A subscription that is to go on after `from`, once `phase` is over.
    pub(crate) fn new(presence: Arc<Presence>, from: u64, phase: Phase, joined_seq: u64) -> Self {
        Self {
            presence,
            next: from + 1,
            state: State::Behind,
            phase,
            generation: GENERATION.fetch_add(1, Ordering::Relaxed),
            joined_seq,
            changed: false,
            stubs: Vec::new(),
        }
    }

    /// Keeps the next entry as a stub; gives false, and keeps nothing, if too many wait.
    pub(super) fn add_stub(&mut self, digest: Digest, reason: StubReason) -> bool {
        if self.stubs.len() == STUBS_PENDING_MAX {
            return false;
        }
        self.stubs.push(Stub { digest, reason });
        self.next += 1;
        true
    }

    /// The stubs that wait, as a frame.
    pub(super) fn take_stubs(&mut self, log: LogId) -> Option<Bytes> {
        if self.stubs.is_empty() {
            return None;
        }
        let stubs = std::mem::take(&mut self.stubs);
        let seq = self.next - stubs.len() as u64;
        let stubs = Bounded::new(stubs).unwrap_or_default();
        Some(Bytes::from(encode_relay(0, &Stubs { log, seq, stubs }.into())))
    }

    /// Takes no live entries from now on. Stubs that wait are read again with the page.
    pub(super) fn fall_behind(&mut self) {
        self.next -= self.stubs.len() as u64;
        self.stubs = Vec::new();
        self.state = State::Behind;
    }

    pub(super) fn controls_sent(&mut self, up_to: u64) {
        if let Phase::Controls(_, last) = self.phase {
            self.phase = Phase::Controls(up_to, last);
        }
    }
}

/// A page to read.
pub(crate) struct CatchUp {
    pub(crate) key: LogKey,
    pub(crate) id: LogId,
    pub(crate) generation: u64,
    pub(crate) after: u64,
    pub(crate) phase: Phase,
    pub(crate) joined_seq: u64,
    pub(crate) presence: Arc<Presence>,
}

impl CatchUp {
    pub(super) fn new(key: LogKey, id: LogId, subscription: &Subscription) -> Self {
        Self {
            key,
            id,
            generation: subscription.generation,
            after: subscription.next - 1,
            phase: subscription.phase,
            joined_seq: subscription.joined_seq,
            presence: subscription.presence.clone(),
        }
    }
}
