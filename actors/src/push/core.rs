//! Who is rung, and when: plain functions over what is known of each device, without a wait.
//!
//! A device for which something waits is rung once, and not again until it has acked something or its
//! window is over, whatever comes meanwhile. A device that is here has [`DOORBELL_GRACE`] to ack what it
//! was offered. What it acks before its turn comes is not rung for.
//!
//! ```text
//!             something waits            its time                  its turn
//!   (unknown) ───────────────> Waiting ───────────> Ready (a queue ─────────> Calling
//!                                 ^                  for each log)               │
//!                                 │ something new, or it was not taken           │ taken
//!                                 └──────────────── Resting <────────────────────┘
//! ```
//!
//! Times are milliseconds on the actor's own clock. Nothing here knows a token, and nothing is rung
//! here: [`Core::take`] says whom to ring, and [`Core::rang`] is told what became of it.
//!
//! Holds always:
//! - a device is in one stage, and in at most one queue;
//! - a device that was rung is not rung again before it acks or its window is over, but once if what
//!   came since is more urgent;
//! - there are at most [`Core::devices_max`] devices, with [`DOORBELL_LOGS_MAX`] logs each.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use sealwire_protocol::{DeviceKey, LogId};

use super::breaker::{backoff, ms};
use super::fair::{Fair, Ticket};
use crate::limits::{
    DOORBELL_GRACE, DOORBELL_LOGS_MAX, DOORBELL_PAUSE, DOORBELL_WINDOW, DOORBELL_WINDOW_MAX,
    PUSH_RETRY_MAX, PUSH_RETRY_MIN,
};
use crate::ports::{LogKey, Urgency};

/// Something waits for a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct News {
    pub(super) log: LogKey,
    pub(super) id: LogId,
    pub(super) seq: u64,
    pub(super) urgency: Urgency,
    /// When it became visible.
    pub(super) since: u64,
    /// Whether the device acks in this log.
    pub(super) acks: bool,
    /// Whether the device has an outbox now.
    pub(super) here: bool,
    /// Whether this is no news if the device is known to be waited for in this log.
    pub(super) again: bool,
}

/// What became of a piece of news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// The device will be rung for it, in its time.
    Queued,
    /// It will be rung anyway.
    Coalesced,
    /// There is no room.
    Full,
}

/// A device to ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(super) device: DeviceKey,
    pub(super) log: LogKey,
    pub(super) id: LogId,
    pub(super) seq: u64,
    pub(super) urgency: Urgency,
    /// When what it is rung for became visible.
    pub(super) since: u64,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The push service has it.
    Taken,
    /// The device has no doorbell, or none that can be rung.
    NoDoorbell,
    /// It failed, and is tried again after a pause; not before so long, if that was asked for.
    Failed(Option<Duration>),
    /// It was not tried: not before then.
    NotTried(u64),
}

/// Somebody who was to be rung, and need not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spared {
    /// Because the device has acked.
    pub(super) acked: u64,
    /// Because it is here, in a log where nothing is acked.
    pub(super) here: u64,
}

/// In one log, something that a device has not acked.
struct Wait {
    log: LogKey,
    id: LogId,
    seq: u64,
    urgency: Urgency,
    since: u64,
    /// Not rung for before this.
    due: u64,
    acks: bool,
    /// Whether the device was not rung for it yet.
    fresh: bool,
    /// Whether the device had its time to ack, or was not here.
    graced: bool,
    /// Whether more came while the device was being rung for it.
    more: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting(u64),
    Ready(Ticket),
    Calling,
    Resting(u64),
}

struct Device {
    waits: Vec<Wait>,
    stage: Stage,
    rung_at: Option<u64>,
    rung: Urgency,
    /// Doorbells since the device last acked anything.
    unanswered: u32,
    /// Calls that failed since the last one that did not.
    failures: u32,
    /// No call before this.
    not_before: u64,
}

impl Device {
    fn new() -> Self {
        Self {
            waits: Vec::new(),
            stage: Stage::Resting(0),
            rung_at: None,
            rung: Urgency::Normal,
            unanswered: 0,
            failures: 0,
            not_before: 0,
        }
    }

    /// How long after a doorbell that is not answered there is no other.
    fn window(&self) -> u64 {
        let doubled = ms(DOORBELL_WINDOW) << self.unanswered.saturating_sub(1).min(10);
        doubled.min(ms(DOORBELL_WINDOW_MAX))
    }

    /// When it may be rung for this.
    fn may_ring(&self, wait: &Wait) -> u64 {
        let after = match self.rung_at {
            None => 0,
            Some(at) if self.unanswered == 0 || wait.urgency > self.rung => at + ms(DOORBELL_PAUSE),
            Some(at) => at + self.window(),
        };
        after.max(wait.due).max(self.not_before)
    }

    /// When it is to be rung next, and for what.
    fn next(&self) -> Option<(u64, LogKey)> {
        let fresh = self.waits.iter().filter(|wait| wait.fresh);
        fresh.map(|wait| (self.may_ring(wait), wait.log)).min_by_key(|(due, _)| *due)
    }

    /// Until when its last doorbell is remembered.
    fn remembered_until(&self) -> u64 {
        self.rung_at.map_or(0, |at| at + 2 * self.window())
    }

    fn wait(&mut self, log: LogKey) -> Option<&mut Wait> {
        self.waits.iter_mut().find(|wait| wait.log == log)
    }
}

/// See the module's header.
pub(super) struct Core {
    devices: HashMap<DeviceKey, Device>,
    timers: BTreeSet<(u64, DeviceKey)>,
    resting: BTreeSet<(u64, DeviceKey)>,
    ready: Fair,
    devices_max: usize,
}

impl Core {
    pub(super) fn new(devices_max: usize) -> Self {
        Self {
            devices: HashMap::new(),
            timers: BTreeSet::new(),
            resting: BTreeSet::new(),
            ready: Fair::default(),
            devices_max,
        }
    }

    /// Something waits for a device.
    pub(super) fn waits(&mut self, device: DeviceKey, news: &News, now: u64) -> Taken {
        if !self.devices.contains_key(&device) && !self.make_room() {
            return Taken::Full;
        }
        let grace = if news.here { ms(DOORBELL_GRACE) } else { 0 };
        let graced = news.here && news.acks;
        let known = self.devices.entry(device).or_insert_with(Device::new);
        let calling = known.stage == Stage::Calling;
        let full = known.waits.len() >= DOORBELL_LOGS_MAX;
        let taken = match known.wait(news.log) {
            Some(_) if news.again => Taken::Coalesced,
            Some(wait) if wait.fresh => {
                wait.urgency = wait.urgency.max(news.urgency);
                wait.more |= calling;
                if calling {
                    wait.seq = news.seq;
                }
                Taken::Coalesced
            }
            Some(wait) => {
                wait.seq = news.seq;
                wait.urgency = news.urgency;
                wait.since = news.since;
                wait.due = news.since + grace;
                wait.fresh = true;
                wait.graced = graced;
                Taken::Queued
            }
            None if full => Taken::Coalesced,
            None => {
                known.waits.push(Wait {
                    log: news.log,
                    id: news.id,
                    seq: news.seq,
                    urgency: news.urgency,
                    since: news.since,
                    due: news.since + grace,
                    acks: news.acks,
                    fresh: true,
                    graced,
                    more: false,
                });
                Taken::Queued
            }
        };
        self.place(device, now);
        taken
    }

    /// A device has acked in a log; what is left there, as its seq and when it became visible.
    pub(super) fn acked(
        &mut self,
        device: DeviceKey,
        log: LogKey,
        left: Option<(u64, u64)>,
        now: u64,
    ) -> Spared {
        let mut spared = Spared::default();
        let Some(known) = self.devices.get_mut(&device) else {
            return spared;
        };
        known.unanswered = 0;
        match left {
            None => known.waits.retain(|wait| {
                let goes = wait.log == log;
                spared.acked += u64::from(goes && wait.fresh && known.stage != Stage::Calling);
                !goes
            }),
            Some((seq, since)) => {
                if let Some(wait) = known.wait(log)
                    && (wait.fresh || seq > wait.seq)
                {
                    wait.seq = wait.seq.max(seq);
                    wait.since = since;
                    // It is awake: it has its time to go on.
                    wait.due = since.saturating_add(ms(DOORBELL_GRACE)).max(now);
                    wait.fresh = true;
                    wait.graced = true;
                }
            }
        }
        self.place(device, now);
        spared
    }

    /// Whom to ring now: at most `most`, log by log in turn. `here` tells who has an outbox.
    pub(super) fn take(
        &mut self,
        now: u64,
        most: usize,
        here: impl Fn(DeviceKey) -> bool,
    ) -> (Vec<Call>, Spared) {
        self.wake(now);
        let mut calls = Vec::new();
        let mut spared = Spared::default();
        while calls.len() < most {
            let Some((log, device)) = self.ready.pop() else {
                break;
            };
            let Some(known) = self.devices.get_mut(&device) else {
                continue;
            };
            // It has left the queue; what follows gives it another place.
            known.stage = Stage::Calling;
            let may_ring = known.next().is_some_and(|(due, _)| due <= now);
            match known.wait(log) {
                Some(wait) if may_ring && wait.fresh => {
                    if wait.graced || !here(device) {
                        wait.more = false;
                        let Wait { id, seq, urgency, since, .. } = *wait;
                        calls.push(Call { device, log, id, seq, urgency, since });
                        continue;
                    }
                    if wait.acks {
                        wait.graced = true;
                        wait.due = now + ms(DOORBELL_GRACE);
                    } else {
                        spared.here += 1;
                        known.waits.retain(|wait| wait.log != log);
                    }
                }
                Some(_) | None => {}
            }
            self.stay(device, now);
        }
        (calls, spared)
    }

    /// What became of a call. `share` is a random number of thousandths.
    pub(super) fn rang(
        &mut self,
        device: DeviceKey,
        log: LogKey,
        outcome: Outcome,
        now: u64,
        share: u64,
    ) {
        let Some(known) = self.devices.get_mut(&device) else {
            return;
        };
        match outcome {
            Outcome::Taken => {
                known.failures = 0;
                known.rung_at = Some(now);
                known.unanswered += 1;
                if let Some(wait) = known.wait(log) {
                    wait.fresh = wait.more;
                    wait.more = false;
                    known.rung = wait.urgency;
                }
            }
            Outcome::NoDoorbell => {
                known.waits.clear();
                known.rung_at = None;
            }
            Outcome::Failed(asked) => {
                let pause = backoff(PUSH_RETRY_MIN, PUSH_RETRY_MAX, known.failures, asked, share);
                known.failures += 1;
                known.not_before = now + pause;
            }
            Outcome::NotTried(until) => known.not_before = known.not_before.max(until),
        }
        self.stay(device, now);
    }

    /// When there may be something to do next.
    pub(super) fn next_due(&self) -> Option<u64> {
        let first = |set: &BTreeSet<(u64, DeviceKey)>| set.first().map(|(due, _)| *due);
        match (first(&self.timers), first(&self.resting)) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        }
    }

    /// How many devices' turns have come, as far as was looked.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// How many devices are to be rung: those that only rest not among them.
    pub(super) fn waiting(&self) -> usize {
        self.devices.len() - self.resting.len()
    }

    /// Moves those whose time has come to their queues, and forgets those that have rested.
    fn wake(&mut self, now: u64) {
        while let Some((due, device)) = self.timers.first().copied().filter(|(due, _)| *due <= now)
        {
            self.timers.remove(&(due, device));
            if let Some(known) = self.devices.get_mut(&device) {
                known.stage = Stage::Calling;
                self.stay(device, now);
            }
        }
        while let Some((due, device)) = self.resting.first().copied().filter(|(due, _)| *due <= now)
        {
            self.resting.remove(&(due, device));
            self.devices.remove(&device);
        }
    }

    /// Gives a device the place that it should have, unless it is being rung.
    fn place(&mut self, device: DeviceKey, now: u64) {
        let Some(known) = self.devices.get(&device) else {
            return;
        };
        match known.stage {
            Stage::Calling => return,
            Stage::Waiting(due) => {
                self.timers.remove(&(due, device));
            }
            Stage::Resting(due) => {
                self.resting.remove(&(due, device));
            }
            Stage::Ready(ticket) => self.ready.remove(ticket),
        }
        self.stay(device, now);
    }

    /// Gives a device that has no place the one that it should have.
    fn stay(&mut self, device: DeviceKey, now: u64) {
        let Some(known) = self.devices.get_mut(&device) else {
            return;
        };
        known.stage = match known.next() {
            Some((due, log)) if due <= now => Stage::Ready(self.ready.push(log, device)),
            Some((due, _)) => {
                self.timers.insert((due, device));
                Stage::Waiting(due)
            }
            None if known.remembered_until() > now => {
                let until = known.remembered_until();
                self.resting.insert((until, device));
                Stage::Resting(until)
            }
            None => {
                self.devices.remove(&device);
                return;
            }
        };
    }

    /// Whether there is room for one more device, after forgetting one that only rests.
    fn make_room(&mut self) -> bool {
        if self.devices.len() >= self.devices_max
            && let Some((_, device)) = self.resting.pop_first()
        {
            self.devices.remove(&device);
        }
        self.devices.len() < self.devices_max
    }

    #[cfg(test)]
    fn check_invariants(&self) {
        let mut ready = 0;
        for (device, known) in &self.devices {
            assert!(known.waits.len() <= DOORBELL_LOGS_MAX);
            match known.stage {
                Stage::Waiting(due) => assert!(self.timers.contains(&(due, *device))),
                Stage::Resting(due) => assert!(self.resting.contains(&(due, *device))),
                Stage::Ready(_) => ready += 1,
                Stage::Calling => {}
            }
        }
        let count = |stage: fn(&Stage) -> bool| {
            self.devices.values().filter(|known| stage(&known.stage)).count()
        };
        assert_eq!(self.timers.len(), count(|stage| matches!(stage, Stage::Waiting(_))));
        assert_eq!(self.resting.len(), count(|stage| matches!(stage, Stage::Resting(_))));
        assert_eq!(self.ready.len(), ready);
        assert!(self.devices.len() <= self.devices_max);
    }
}

#[cfg(test)]
mod tests;
