//! What a log says about doorbells: for whom something waits, and who need not be rung any more.
//!
//! The log knows both without asking anybody, so it says each once: of a device that it has told of it
//! is silent while its [`Word`] stands, which is until the device is rung, or need not be. Whoever appends
//! waits for none of it. When the log's memory goes, so does what it has told: the next entry tells again,
//! and the next ack as well.
//!
//! The word holds the newest entry of which the log was silent. In a vault nothing is kept of acks, so what
//! is left after one is not known here: [`Doorstep::awake`](crate::push::doorstep::Doorstep::awake) is told
//! of acks, and compares.

use sealwire_protocol::DeviceKey;
use tokio::time::{Duration, Instant};

use super::state::{State, reader};
use super::{LogActor, Memory};
use crate::entry::{Addressed, Published};
use crate::limits::DOORBELL_LOOKBACK;
use crate::metrics::DOORBELLS_COALESCED;
use crate::ports::Urgency;
use crate::push::doorstep::{Acked, Given, Sleeper, Told, Word};
use crate::retention::before;

/// What was said about a member.
#[derive(Clone)]
pub(super) enum Bell {
    /// Nothing is known of it: perhaps an actor before this one has said something.
    Unknown,
    /// Nothing waits for it, as far as was said.
    Silent,
    /// It had no doorbell when devices had said so often where theirs are.
    Deaf { registrations: u64 },
    /// This entry waits for it. `heard` tells whether it was said since that it has acked something.
    Told { seq: u64, urgency: Urgency, given: Given, heard: bool },
}

/// What is to be said after a commit.
#[derive(Default)]
pub(super) struct Bells {
    sleepers: Vec<Sleeper>,
    /// Copies of entries of which nothing new is to be said.
    coalesced: u64,
}

impl State {
    /// For whom these entries wait, but for those of whom it was said, or whom nobody can ring.
    pub(super) fn bells(
        &mut self,
        published: &[std::sync::Arc<Published>],
        registrations: u64,
        is_deaf: impl Fn(DeviceKey) -> bool,
    ) -> Bells {
        let mut bells = Bells::default();
        for entry in published {
            let Some(urgency) = entry.rings else {
                continue;
            };
            for (device, state) in &mut self.members {
                let for_it = match &entry.addressed {
                    Addressed::Everybody => true,
                    Addressed::All => entry.seq > state.member.joined_seq,
                    Addressed::Named(keys) => {
                        entry.seq > state.member.joined_seq && keys.binary_search(device).is_ok()
                    }
                };
                if !for_it || *device == entry.sender || state.acked.contains(entry.seq) {
                    continue;
                }
                match &state.bell {
                    Bell::Told { urgency: told, given, .. }
                        if *told >= urgency && given.note(entry.seq) =>
                    {
                        bells.coalesced += 1;
                        continue;
                    }
                    Bell::Deaf { registrations: then } if *then == registrations => continue,
                    Bell::Told { .. } | Bell::Deaf { .. } | Bell::Unknown | Bell::Silent => {}
                }
                if is_deaf(*device) {
                    state.bell = Bell::Deaf { registrations };
                    continue;
                }
                let (word, given) = Word::new(entry.seq);
                let word = Some(word);
                let (device, seq) = (*device, entry.seq);
                state.bell = Bell::Told { seq, urgency, given, heard: false };
                bells.sleepers.push(Sleeper { device, seq, urgency, age_ms: 0, word });
            }
        }
        bells
    }

    /// Whether it is to be said that a device has acked, and what is left for it then: its seq and when
    /// it was ordered.
    pub(super) fn acked_bell(&mut self, device: DeviceKey, now: u64) -> Option<Option<(u64, u64)>> {
        let member = self.members.get_mut(&device)?;
        let (from, since) = match &member.bell {
            Bell::Silent | Bell::Deaf { .. } => return None,
            // What is older was rung for long ago, if ever.
            Bell::Unknown => (0, before(now, DOORBELL_LOOKBACK)),
            // What is older waits for reasons of its own: the app cannot open it.
            Bell::Told { seq, .. } => (*seq, 0),
        };
        let left = self.policy.queue()?.first_ringing(&reader(member), from, since);
        match (left, &mut member.bell) {
            (Some((left, _)), Bell::Told { seq, heard, .. }) => {
                if *seq == left && *heard {
                    return None;
                }
                (*seq, *heard) = (left, true);
            }
            (Some(_), Bell::Unknown | Bell::Silent | Bell::Deaf { .. }) => {}
            (None, bell) => *bell = Bell::Silent,
        }
        Some(left)
    }
}

impl LogActor {
    /// Says for whom entries wait that have just become visible.
    pub(super) fn ring(&mut self, published: &[std::sync::Arc<Published>]) {
        let doorstep = &self.shared.doorstep;
        if !doorstep.is_on() || published.iter().all(|entry| entry.rings.is_none()) {
            return;
        }
        let Memory::Ready(state) = &mut self.memory else {
            return;
        };
        let Bells { sleepers, coalesced } =
            state.bells(published, doorstep.registrations(), |device| doorstep.is_deaf(device));
        if coalesced > 0 {
            metrics::counter!(DOORBELLS_COALESCED).increment(coalesced);
        }
        if !sleepers.is_empty() {
            doorstep.tell(Told { log: self.key, id: state.id, since: Instant::now(), sleepers });
        }
    }

    /// Says that a device has acked, if that is of interest.
    pub(super) fn stop_ringing(&mut self, device: DeviceKey) {
        if !self.shared.doorstep.is_on() {
            return;
        }
        let now = self.shared.clock.now_ms();
        let Memory::Ready(state) = &mut self.memory else {
            return;
        };
        if let Some(left) = state.acked_bell(device, now) {
            let visible_since = |at: u64| {
                let age = Duration::from_millis(now.saturating_sub(at));
                Instant::now().checked_sub(age).unwrap_or_else(Instant::now)
            };
            let left = left.map(|(seq, at)| (seq, visible_since(at)));
            self.shared.doorstep.acked(Acked { log: self.key, device, left });
        }
    }
}
