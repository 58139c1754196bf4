//! Heartbeats of all sessions from one shared wheel.
//!
//! A timer for each session would be a task or an entry for each of tens of thousands. The wheel has
//! a slot for each second of the longest interval; one task turns it. A session that was silent for
//! [`SILENT_INTERVALS_MAX`] intervals is over: its socket may be half open, and nobody would notice.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::limits::HEARTBEAT_MAX;
use tokio::time::{MissedTickBehavior, interval};

use crate::limits::{SILENT_INTERVALS_MAX, STALLED_MAX};
use crate::outbox::Outbox;
use crate::system::Shared;

const SLOTS: usize = HEARTBEAT_MAX.as_secs() as usize + 1;

/// Seconds between two looks at whether the registry holds room for a crowd that has left.
const SHRINK_EVERY_S: u64 = 15;

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
        if let Some(outbox) = outbox.upgrade() {
            outbox.set_beat(slot as u16);
        }
        self.slots.lock()[slot].push(Place { outbox, interval_s });
    }

    /// Forgets a session that has ended. Its place would keep the memory of its outbox until the
    /// wheel comes round, and a crowd that leaves at once would leave all of it behind. One that is
    /// just having its turn is forgotten in the next.
    pub(crate) fn remove(&self, outbox: &Arc<Outbox>) {
        let mut slots = self.slots.lock();
        let Some(slot) = slots.get_mut(usize::from(outbox.beat())) else {
            return;
        };
        let found =
            slot.iter().position(|place| std::ptr::eq(place.outbox.as_ptr(), &raw const **outbox));
        if let Some(index) = found {
            slot.swap_remove(index);
        }
        if slot.is_empty() {
            *slot = Vec::new();
        }
    }

    /// How many sessions it beats for.
    #[cfg(test)]
    pub(crate) fn sessions(&self) -> usize {
        self.slots.lock().iter().map(Vec::len).sum()
    }

    /// Turns the wheel to this second of the relay's uptime.
    fn turn(&self, now_s: u64, now_ms: u64) {
        let due = std::mem::take(&mut self.slots.lock()[now_s as usize % SLOTS]);
        for place in due {
            let Some(outbox) = place.outbox.upgrade() else {
                continue;
            };
            // The wheel is everybody's: a session that makes it panic leaves it, and ends.
            let beat = || beat(&outbox, place.interval_s, now_s, now_ms);
            match catch_unwind(AssertUnwindSafe(beat)) {
                Ok(Ok(())) => self.add(place.outbox, place.interval_s, now_s),
                Ok(Err(reason)) => outbox.close(reason),
                Err(_) => {
                    tracing::error!("a heartbeat panicked");
                    outbox.close(CloseReason::Internal);
                }
            }
        }
    }
}

/// Gives a session its heartbeat, or says why it is over.
fn beat(outbox: &Outbox, interval_s: u16, now_s: u64, now_ms: u64) -> Result<(), CloseReason> {
    let silent_s = now_s.saturating_sub(outbox.last_heard());
    if silent_s > SILENT_INTERVALS_MAX * u64::from(interval_s) {
        return Err(CloseReason::Silent);
    }
    if outbox.stalled_for(now_s) > STALLED_MAX.as_secs() {
        return Err(CloseReason::SlowConsumer);
    }
    outbox.heartbeat(0, now_ms);
    Ok(())
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
            if now_s.is_multiple_of(SHRINK_EVERY_S) {
                shared.registry.shrink();
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use sealwire_protocol::limits::SUBSCRIPTIONS_MAX;
    use sealwire_protocol::{DeviceKey, Digest, Instance, LogId, LogType};

    use super::*;
    use crate::outbox::{Phase, Subscription};
    use crate::ports::{LogKey, LogPlace, Position};
    use crate::registry::Registry;

    /// Subscribes it to more logs than a heartbeat has room for, and tells it of them all.
    fn overload(outbox: &Outbox, registry: &Registry) {
        let head = Position { seq: 1, chain: Digest::ZERO };
        for number in 0..=SUBSCRIPTIONS_MAX as i64 {
            let (id, key) = (LogId((number as u128).to_be_bytes()), LogKey(number));
            outbox.add_log(LogPlace { id, key, log_type: LogType::Group });
            let presence = registry.presence(key);
            let subscription = Subscription::new(presence, 1, Phase::Entries, 1);
            let ground = outbox.ground(key).expect("a member");
            assert!(outbox.subscribe(1, ground, key, head, None, subscription));
            outbox.offer(key, &[]);
        }
    }

    #[test]
    fn a_session_that_makes_the_wheel_panic_ends_and_the_others_go_on() {
        let (wheel, registry) = (Wheel::default(), Registry::new(7));
        let outboxes =
            [1, 2, 3].map(|id| Outbox::new(id, DeviceKey([1; 32]), Instance([1; 16]), 7, None));
        for outbox in &outboxes {
            wheel.add(Arc::downgrade(outbox), 25, 0);
        }
        overload(&outboxes[1], &registry);
        wheel.turn(25, 0);
        let ends = outboxes.each_ref().map(|outbox| outbox.closing());
        assert_eq!(ends, [None, Some(CloseReason::Internal), None]);
        wheel.turn(50, 0);
        for outbox in [&outboxes[0], &outboxes[2]] {
            let mut frames = Vec::new();
            outbox.take(usize::MAX, usize::MAX, &mut frames);
            assert_eq!(frames.len(), 2);
        }
        assert_eq!(wheel.sessions(), 2);
    }

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

    #[test]
    fn a_session_ends_when_its_device_takes_nothing_for_too_long() {
        let outbox = Outbox::new(1, DeviceKey([1; 32]), Instance([1; 16]), 7, None);
        let most = STALLED_MAX.as_secs();
        let end = |now_s: u64| {
            // However often it is heard of meanwhile.
            outbox.heard(now_s);
            beat(&outbox, 25, now_s, 0)
        };
        outbox.writing(Some(10));
        assert_eq!(end(10 + most), Ok(()));
        assert_eq!(end(11 + most), Err(CloseReason::SlowConsumer));
        // What was taken is forgotten, and the next write has its own time.
        outbox.writing(None);
        assert_eq!(end(11 + most), Ok(()));
        outbox.writing(Some(11 + most));
        assert_eq!(end(11 + 2 * most), Ok(()));
        assert_eq!(end(12 + 2 * most), Err(CloseReason::SlowConsumer));
    }

    #[test]
    fn a_session_that_has_ended_leaves_nothing_on_the_wheel() {
        let wheel = Wheel::default();
        let outboxes =
            [1, 2, 3].map(|id| Outbox::new(id, DeviceKey([1; 32]), Instance([1; 16]), 7, None));
        for outbox in &outboxes {
            wheel.add(Arc::downgrade(outbox), 25, 0);
        }
        wheel.turn(25, 0);
        wheel.remove(&outboxes[1]);
        assert_eq!(outboxes.each_ref().map(Arc::weak_count), [1, 0, 1]);
    }
}
