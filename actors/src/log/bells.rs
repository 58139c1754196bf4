//! What a log says about doorbells: for whom something waits, and who need not be rung any more.
//!
//! The log knows both without asking anybody, so it says each once: of a device that it has told of it
//! is silent until the device has acked, or [`DOORBELL_TOLD`] has passed. Whoever appends waits for none
//! of it. When the log's memory goes, so does what it has told: the next entry tells again, and the next
//! ack as well.

use sealwire_protocol::DeviceKey;
use tokio::time::{Duration, Instant};

use super::state::{State, reader};
use super::{LogActor, Memory};
use crate::entry::{Addressed, Published};
use crate::limits::{DOORBELL_LOOKBACK, DOORBELL_TOLD};
use crate::metrics::DOORBELLS_COALESCED;
use crate::ports::Urgency;
use crate::push::doorstep::{Acked, Told};
use crate::retention::before;

/// What was said about a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bell {
    /// Nothing is known of it: perhaps an actor before this one has said something.
    Unknown,
    /// Nothing waits for it, as far as was said.
    Silent,
    /// It had no doorbell when devices had said so often where theirs are.
    Deaf { registrations: u64 },
    /// This entry waits for it; said at this second of the relay's uptime.
    Told { seq: u64, urgency: Urgency, at_s: u64 },
}

/// What is to be said after a commit.
#[derive(Default)]
pub(super) struct Bells {
    devices: Vec<(DeviceKey, u64, Urgency)>,
    /// Copies of entries of which nothing new is to be said.
    coalesced: u64,
}

impl State {
    /// For whom these entries wait, but for those of whom it was said, or whom nobody can ring.
    pub(super) fn bells(
        &mut self,
        published: &[std::sync::Arc<Published>],
        uptime_s: u64,
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
                if let Bell::Told { urgency: told, at_s, .. } = state.bell
                    && told >= urgency
                    && uptime_s < at_s + DOORBELL_TOLD.as_secs()
                {
                    bells.coalesced += 1;
                    continue;
                }
                if state.bell == (Bell::Deaf { registrations }) {
                    continue;
                }
                if is_deaf(*device) {
                    state.bell = Bell::Deaf { registrations };
                    continue;
                }
                state.bell = Bell::Told { seq: entry.seq, urgency, at_s: uptime_s };
                bells.devices.push((*device, entry.seq, urgency));
            }
        }
        bells
    }

    /// Whether it is to be said that a device has acked, and what is left for it then: its seq and when
    /// it was ordered.
    pub(super) fn acked_bell(&mut self, device: DeviceKey, now: u64) -> Option<Option<(u64, u64)>> {
        let member = self.members.get_mut(&device)?;
        let (from, since) = match member.bell {
            Bell::Silent | Bell::Deaf { .. } => return None,
            // What is older was rung for long ago, if ever.
            Bell::Unknown => (0, before(now, DOORBELL_LOOKBACK)),
            // What is older waits for reasons of its own: the app cannot open it.
            Bell::Told { seq, .. } => (seq, 0),
        };
        // In a vault nothing waits for an ack.
        let left = self.policy.queue()?.first_ringing(&reader(member), from, since);
        match (left, &mut member.bell) {
            (Some((left, _)), Bell::Told { seq, .. }) if *seq == left => return None,
            (Some((left, _)), Bell::Told { seq, .. }) => *seq = left,
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
        let uptime_s = self.shared.uptime_s();
        let Bells { devices, coalesced } =
            state.bells(published, uptime_s, doorstep.registrations(), |device| {
                doorstep.is_deaf(device)
            });
        if coalesced > 0 {
            metrics::counter!(DOORBELLS_COALESCED).increment(coalesced);
        }
        if !devices.is_empty() {
            let since = Instant::now();
            let (id, log_type) = (state.id, state.log_type);
            doorstep.tell(Told { log: self.key, id, log_type, since, devices });
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
