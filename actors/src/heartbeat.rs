//! Heartbeats of all sessions from one shared wheel.
//!
//! A timer for each session would be a task or an entry for each of tens of thousands. The wheel has
//! a slot for each second of the longest interval; one task turns it. A session that was silent for
//! [`SILENT_INTERVALS_MAX`] intervals is over: its socket may be half open, and nobody would notice.

use std::sync::Weak;
use std::time::Duration;

use parking_lot::Mutex;
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::limits::HEARTBEAT_MAX;
use tokio::time::{MissedTickBehavior, interval};

use crate::limits::{SILENT_INTERVALS_MAX, STALLED_MAX};
use crate::outbox::Outbox;
use crate::system::Shared;

const SLOTS: usize = HEARTBEAT_MAX.as_secs() as usize + 1;

struct Place {
    outbox: Weak<Outbox>,
    interval_s: u16,
}

/// One slot for each second.
pub(crate) struct Wheel {
    slots: Mutex<Vec<Vec<Place>>>,
}

impl Default for Wheel {
    fn default() -> Self {
        Self { slots: Mutex::new((0..SLOTS).map(|_| Vec::new()).collect()) }
    }
}

impl Wheel {
    /// Gives a session its heartbeat, the first one interval from now.
    pub(crate) fn add(&self, outbox: Weak<Outbox>, interval_s: u16, now_s: u64) {
        let slot = (now_s as usize + usize::from(interval_s)) % SLOTS;
        self.slots.lock()[slot].push(Place { outbox, interval_s });
    }

    /// Turns the wheel to this second of the relay's uptime.
    fn turn(&self, now_s: u64, now_ms: u64) {
        let due = std::mem::take(&mut self.slots.lock()[now_s as usize % SLOTS]);
        for place in due {
            let Some(outbox) = place.outbox.upgrade() else {
                continue;
            };
            let silent_s = now_s.saturating_sub(outbox.last_heard());
            if silent_s > SILENT_INTERVALS_MAX * u64::from(place.interval_s) {
                outbox.close(CloseReason::Silent);
                continue;
            }
            if outbox.stalled_for(now_s) > STALLED_MAX.as_secs() {
                outbox.close(CloseReason::SlowConsumer);
                continue;
            }
            outbox.heartbeat(0, now_ms);
            self.add(place.outbox, place.interval_s, now_s);
        }
    }
}

/// Turns the wheel once a second for as long as the system lives.
pub(crate) fn run(shared: Weak<Shared>) {
    tokio::spawn(async move {
        let mut ticks = interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut turned_to = 0;
        loop {
            ticks.tick().await;
            let Some(shared) = shared.upgrade() else {
                return;
            };
            let now_s = shared.uptime_s();
            // A second that was missed is made up for, so that no slot is passed over.
            for second in turned_to + 1..=now_s {
                shared.heartbeats.turn(second, shared.clock.now_ms());
            }
            turned_to = turned_to.max(now_s);
        }
    });
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use sealwire_protocol::{DeviceKey, Instance};

    use super::*;

    #[test]
    fn a_session_is_heard_of_at_each_interval_and_ends_when_it_is_silent_for_two() {
        let wheel = Wheel::default();
        let outbox = Outbox::new(1, DeviceKey([1; 32]), Instance([1; 16]), 7, None);
        wheel.add(Arc::downgrade(&outbox), 25, 0);
        let mut frames = Vec::new();
        for second in 1..=50 {
            wheel.turn(second, 0);
            outbox.take(usize::MAX, usize::MAX, &mut frames);
            assert_eq!(frames.len() as u64, second / 25, "at second {second}");
        }
        assert_eq!(outbox.closing(), None);
        for second in 51..=75 {
            wheel.turn(second, 0);
        }
        assert_eq!(outbox.closing(), Some(CloseReason::Silent));
    }
}
