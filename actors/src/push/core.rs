//! Who is rung, and when: plain functions over what is known of each device, without a wait.
//!
//! A device for which something waits is rung once, and not again until it has acked something or its
//! window is over, whatever comes meanwhile. A device that is here has [`DOORBELL_GRACE`] to ack what it
//! was offered. What it acks before its turn comes is not rung for. A device answers by acking, or by
//! asking what there is: in a vault the latter is an ack of what it is given.
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
//! - there are at most so many devices and waits as [`Room`] says, and [`DOORBELL_LOGS_MAX`] waits of one
//!   device;
//! - a wait holds a [`Word`] only while its device is still to be rung for what is noted in it.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use sealwire_protocol::{DeviceKey, LogId};

use super::breaker::{backoff, ms};
use super::doorstep::Word;
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
    /// Whether the device has an outbox now.
    pub(super) here: bool,
    /// Whether it was read in the store: it is no news if the device is, or was, rung for it.
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
    /// Whether the device was here then.
    pub(super) here: bool,
}

/// Whether a call that was to be made still is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Still {
    /// It is.
    Wanted,
    /// The device has come since, and has its time to ack.
    Later,
    /// It has acked.
    Needless(Spared),
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The push service has it.
    Taken,
    /// The device has no doorbell.
    NoDoorbell,
    /// Its doorbell will never be rung.
    Refused,
    /// It failed, and is tried again after a pause; not before so long, if that was asked for.
    Failed(Option<Duration>),
    /// It was not tried: not before then.
    NotTried(u64),
}

/// Somebody who was to be rung, and need not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Spared {
    /// Because the device was here when it came, and has acked.
    pub(super) here: u64,
    /// Because it slept when it came, and has been here since.
    pub(super) fetched: u64,
}

impl Spared {
    fn count(&mut self, here: bool) {
        if here {
            self.here += 1;
        } else {
            self.fetched += 1;
        }
    }
}

/// How much is remembered.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    pub(super) devices: usize,
    /// Logs in which something waits for them, in all.
    pub(super) waits: usize,
}

/// In one log, something that a device has not acked.
struct Wait {
    log: LogKey,
    id: LogId,
    seq: u64,
    /// The newest entry that the device is, or was, rung for along with it, but for what is noted in the
    /// word.
    newest: u64,
    urgency: Urgency,
    since: u64,
    /// Not rung for before this.
    due: u64,
    /// What the log was given.
    word: Option<Word>,
    /// Whether the device was here when it came.
    here: bool,
    /// Whether the device was not rung for it yet.
    fresh: bool,
    /// Whether the device had its time to ack, or was not here.
    graced: bool,
    /// Whether it, or more of it, came while the device was being rung.
    more: bool,
}

impl Wait {
    /// `calling` tells whether its device is being rung at this moment: that is not for this.
    fn new(news: &News, due: u64, word: Option<Word>, calling: bool) -> Self {
        Self {
            log: news.log,
            id: news.id,
            seq: news.seq,
            newest: news.seq,
            urgency: news.urgency,
            since: news.since,
            due,
            word,
            here: news.here,
            fresh: true,
            graced: news.here,
            more: calling,
        }
    }

    /// Whether this was read in the store and is known.
    fn knows(&self, news: &News) -> bool {
        let noted = self.word.as_ref().map_or(0, Word::newest);
        news.again && news.seq <= self.newest.max(noted)
    }

    /// Ends its word, and keeps what was noted in it.
    fn end_word(&mut self) {
        if let Some(word) = self.word.take() {
            self.newest = self.newest.max(word.newest());
        }
    }
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
    /// Doorbells since the device last answered.
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

    /// Lets go what is not wanted any more, and gives how many that were.
    fn forget(&mut self, wanted: impl FnMut(&mut Wait) -> bool) -> usize {
        let before = self.waits.len();
        self.waits.retain_mut(wanted);
        self.waits.shrink_to_fit();
        before - self.waits.len()
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
    /// Waits of all devices.
    waits: usize,
    room: Room,
}

impl Core {
    pub(super) fn new(room: Room) -> Self {
        Self {
            devices: HashMap::new(),
            timers: BTreeSet::new(),
            resting: BTreeSet::new(),
            ready: Fair::default(),
            waits: 0,
            room,
        }
    }

    /// Something waits for a device. The log was given the other end of `word`.
    pub(super) fn waits(
        &mut self,
        device: DeviceKey,
        news: &News,
        word: Option<Word>,
        now: u64,
    ) -> Taken {
        let has_waits =
            |core: &Self| core.devices.get(&device).is_some_and(|known| !known.waits.is_empty());
        if !has_waits(self) && !self.make_room(device) {
            return Taken::Full;
        }
        // What is read again was offered when the device came.
        let offered = if news.again { now } else { news.since };
        let due = offered + if news.here { ms(DOORBELL_GRACE) } else { 0 };
        let known = self.devices.entry(device).or_insert_with(Device::new);
        let calling = known.stage == Stage::Calling;
        let full = known.waits.len() >= DOORBELL_LOGS_MAX || self.waits >= self.room.waits;
        let taken = match known.wait(news.log) {
            Some(wait) if wait.knows(news) => Taken::Coalesced,
            Some(wait) if wait.fresh => {
                wait.urgency = wait.urgency.max(news.urgency);
                wait.more |= calling;
                if calling {
                    wait.seq = news.seq;
                }
                wait.newest = wait.newest.max(news.seq);
                // What is read in the store brings none.
                wait.word = word.or(wait.word.take());
                Taken::Coalesced
            }
            Some(wait) => {
                *wait = Wait::new(news, due, word, calling);
                Taken::Queued
            }
            None if full => {
                let rung_for = known.waits.iter_mut().filter(|wait| !wait.fresh);
                match rung_for.min_by_key(|wait| wait.since) {
                    Some(wait) => {
                        *wait = Wait::new(news, due, word, calling);
                        Taken::Queued
                    }
                    // A device that is rung for one of so many looks at them all.
                    None => Taken::Coalesced,
                }
            }
            None => {
                // Most devices wait in one log: they do not pay for more.
                known.waits.reserve_exact(1);
                known.waits.push(Wait::new(news, due, word, calling));
                self.waits += 1;
                Taken::Queued
            }
        };
        self.place(device, now);
        taken
    }

    /// A device has acked in a group; what is left there, as its seq and when it became visible.
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
            None => {
                let calling = known.stage == Stage::Calling;
                self.waits -= known.forget(|wait| {
                    let goes = wait.log == log;
                    if goes && wait.fresh && !calling {
                        spared.count(wait.here);
                    }
                    !goes
                });
            }
            Some((seq, since)) => {
                if let Some(wait) = known.wait(log)
                    && (wait.fresh || seq > wait.seq)
                {
                    wait.seq = wait.seq.max(seq);
                    wait.since = since;
                    // It is awake: it has its time to go on, however old it is what is left.
                    wait.due = now + ms(DOORBELL_GRACE);
                    wait.fresh = true;
                    wait.graced = true;
                }
            }
        }
        self.place(device, now);
        spared
    }

    /// A device has asked what there is in a log. `read` is what it has, or is being given, of a vault.
    pub(super) fn awake(
        &mut self,
        device: DeviceKey,
        log: LogKey,
        read: Option<u64>,
        now: u64,
    ) -> Spared {
        let mut spared = Spared::default();
        let Some(known) = self.devices.get_mut(&device) else {
            return spared;
        };
        known.unanswered = 0;
        let calling = known.stage == Stage::Calling;
        self.waits -= known.forget(|wait| {
            let Some(read) = read.filter(|_| wait.log == log) else {
                return true;
            };
            let newest = wait.word.take().map_or(0, Word::end).max(wait.newest);
            if newest < u64::MAX {
                wait.newest = newest;
            }
            if newest <= read && wait.fresh && !calling {
                spared.count(wait.here);
            }
            newest > read
        });
        // It has its time to read and ack what is left.
        for wait in known.waits.iter_mut().filter(|wait| wait.fresh) {
            wait.due = wait.due.max(now + ms(DOORBELL_GRACE));
            wait.graced = true;
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
    ) -> Vec<Call> {
        self.wake(now);
        let mut calls = Vec::new();
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
                        // What comes from now on may be too late for this doorbell.
                        wait.end_word();
                        let Wait { id, seq, urgency, since, here, .. } = *wait;
                        calls.push(Call { device, log, id, seq, urgency, since, here });
                        continue;
                    }
                    wait.graced = true;
                    wait.due = now + ms(DOORBELL_GRACE);
                }
                Some(_) | None => {}
            }
            self.stay(device, now);
        }
        calls
    }

    /// Whether to go on with a call whose token was being looked up.
    pub(super) fn still(&self, call: &Call, now: u64) -> Still {
        let known = self.devices.get(&call.device);
        let wait = known.and_then(|known| known.waits.iter().find(|wait| wait.log == call.log));
        match wait {
            Some(wait) if wait.due <= now => Still::Wanted,
            Some(_) => Still::Later,
            None => {
                let mut spared = Spared::default();
                spared.count(call.here);
                Still::Needless(spared)
            }
        }
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
                self.waits -= known.forget(|_| false);
                known.rung_at = None;
            }
            Outcome::Refused => {
                // It is as pointless for whatever comes in the window.
                self.waits -= known.forget(|_| false);
                known.failures = 0;
                known.rung_at = Some(now);
                known.unanswered += 1;
                known.rung = Urgency::High;
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
            self.remove(device);
        }
    }

    fn remove(&mut self, device: DeviceKey) {
        if let Some(known) = self.devices.remove(&device) {
            self.waits -= known.waits.len();
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
            None => return self.remove(device),
        };
    }

    /// Whether there is room for a device with one wait, after forgetting some that only rest.
    fn make_room(&mut self, device: DeviceKey) -> bool {
        loop {
            let known = self.devices.contains_key(&device);
            if (known || self.devices.len() < self.room.devices) && self.waits < self.room.waits {
                return true;
            }
            let Some((_, rests)) = self.resting.pop_first() else {
                return false;
            };
            self.remove(rests);
        }
    }

    #[cfg(test)]
    fn check_invariants(&self) {
        let mut ready = 0;
        for (device, known) in &self.devices {
            assert!(known.waits.len() <= DOORBELL_LOGS_MAX);
            for wait in known.waits.iter().filter(|wait| wait.word.is_some()) {
                assert!(wait.fresh, "a word for what nobody will be rung for");
            }
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
        assert!(self.devices.len() <= self.room.devices);
        assert_eq!(self.waits, self.devices.values().map(|known| known.waits.len()).sum());
        assert!(self.waits <= self.room.waits);
    }
}

#[cfg(test)]
mod tests;
