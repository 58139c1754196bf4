//! What a device does with what a relay says, and what it has to say itself.
//!
//! The engine has no socket and no clock: it is given frames and times, and gives frames and events.
//! It belongs to one connection's worth of one relay; when it fails, it is made anew from the store,
//! which is the only truth.
//!
//! Holds always:
//! - one call is one transaction: what it gives out is said only after the commit;
//! - an ack says only what is committed here;
//! - nothing that a relay or a member sends stops a log: it is taken, or kept sealed and reported;
//! - an empty or shorter log deletes nothing.

mod answers;
mod desk;
mod giving;
mod history;
mod keys;
mod ledger;
mod log;
mod opening;
mod reading;
mod restored;
mod sending;
mod spoiled;
mod taking;
mod totals;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sealwire_protocol::codec::Envelope;
use sealwire_protocol::frame::{self, SetPushToken};
use sealwire_protocol::{ClientFrame, Failure, LogId, RelayFrame};

use self::desk::{Asked, Call, Desk};
use self::log::{Log, Subscription};
use crate::address::RelayUrl;
use crate::event::Event;
use crate::identity::Identity;
use crate::store::{Store, StoreError, logs};

pub(crate) use self::desk::Now;
pub use self::giving::patience;
pub(crate) use self::ledger::history;
pub(crate) use self::spoiled::Spoiled;
pub(crate) use self::totals::GROUP_KEY;

type Result<T> = std::result::Result<T, StoreError>;

/// How long the relay may take to answer a request before the connection is given up.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// Why a connection is over.
#[derive(Clone, Debug)]
pub(crate) enum End {
    /// A newer connection of this process is there.
    Superseded,
    /// The relay is shutting down, and everything is answered: come back as it says.
    Drained,
    /// The relay has refused the connection as a whole.
    Refused(Box<Failure>),
    /// A request was not answered in time.
    Unanswered,
}

/// How to come back to a relay that is shutting down.
#[derive(Clone)]
pub(crate) struct Return {
    /// Not before this long.
    pub(crate) after: Duration,
    /// With this token in place of a signature.
    pub(crate) token: Vec<u8>,
}

/// What one call has to say.
#[derive(Default)]
pub(crate) struct Said {
    /// Frames to be sent, with their request ids.
    pub(crate) frames: Vec<(u32, ClientFrame)>,
    /// Events that are not stored.
    pub(crate) live: Vec<Event>,
    /// How to come back, if the relay is shutting down.
    pub(crate) come_back: Option<Return>,
    /// Whether the connection is over.
    pub(crate) end: Option<End>,
}

/// The logs of one relay, over one connection.
pub(crate) struct Engine {
    device: Arc<Identity>,
    store: Arc<Store>,
    relay: RelayUrl,
    /// What makes this process the one that numbers and sends: it must outlive the last call, even
    /// if nobody waits for that any more.
    _lock: Arc<File>,
    logs: BTreeMap<LogId, Log>,
    desk: Desk,
    /// The log with which the next round of sending begins, so that a busy one leaves room.
    turn: Option<LogId>,
}

impl Engine {
    /// The engine of a connection that has just been made.
    pub(crate) fn new(
        device: Arc<Identity>,
        store: Arc<Store>,
        relay: RelayUrl,
        lock: Arc<File>,
    ) -> Self {
        Self {
            device,
            store,
            relay,
            _lock: lock,
            logs: BTreeMap::new(),
            desk: Desk::new(),
            turn: None,
        }
    }

    /// Subscribes to the logs of this relay, and sends what waits. Also when another part of the
    /// program, or another process, has changed something.
    pub(crate) fn wake(&mut self, now: Now) -> Result<Said> {
        self.call(now, |_, _| Ok(()))
    }

    /// Takes frames in the order in which they came.
    pub(crate) fn receive(&mut self, frames: Vec<Envelope<RelayFrame>>, now: Now) -> Result<Said> {
        self.call(now, |logs, call| {
            for envelope in frames {
                on_frame(logs, call, envelope)?;
            }
            Ok(())
        })
    }

    /// Says where the device's doorbell is.
    pub(crate) fn doorbell(&mut self, place: SetPushToken, now: Now) -> Result<Said> {
        self.desk.doorbell = Some((place, Some(now.at)));
        self.wake(now)
    }

    /// Sends a sign of life.
    pub(crate) fn ping(&mut self, now: Now) -> Result<Said> {
        self.call(now, |_, call| {
            if call.desk.come_back.is_none() {
                call.hurry();
            }
            Ok(())
        })
    }

    /// When something is to be done without being asked.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let unanswered =
            self.desk.requests.values().map(|(_, asked_at)| *asked_at + ANSWER_DEADLINE).min();
        let doorbell = self.desk.doorbell.as_ref().and_then(|(_, due)| *due);
        self.logs.values().filter_map(Log::deadline).chain(unanswered).chain(doorbell).min()
    }

    /// One transaction: first the logs as they are stored, then `work`, then whatever follows from
    /// it.
    fn call(
        &mut self,
        now: Now,
        work: impl FnOnce(&mut BTreeMap<LogId, Log>, &mut Call<'_>) -> Result<()>,
    ) -> Result<Said> {
        let store = self.store.clone();
        let device = self.device.clone();
        store.write(|db| {
            let logs = &mut self.logs;
            let mut call = Call { db, device: &device, desk: &mut self.desk, now };
            load_new(logs, &call, &self.relay)?;
            work(logs, &mut call)?;
            if call.desk.end.is_none() && call.desk.come_back.is_none() {
                for log in logs.values_mut() {
                    log.subscribe_if_due(&mut call)?;
                    log.run_timers(&mut call)?;
                    // Before the lost device goes: it is asked for nothing.
                    log.see_to_history(&call)?;
                    log.settle_restored(&mut call)?;
                }
                call.say_doorbell();
                self.turn = pump(logs, &mut call, self.turn)?;
            }
            for log in logs.values_mut() {
                log.save(&mut call)?;
            }
            let overdue = |(_, at): &(Asked, Instant)| now.at >= *at + ANSWER_DEADLINE;
            if call.desk.end.is_none() && call.desk.requests.values().any(overdue) {
                call.desk.end = Some(End::Unanswered);
            }
            if call.desk.come_back.is_some() && call.desk.requests.is_empty() {
                call.desk.end = Some(End::Drained);
            }
            Ok::<_, StoreError>(())
        })?;
        Ok(Said {
            frames: std::mem::take(&mut self.desk.frames),
            live: std::mem::take(&mut self.desk.live),
            come_back: self.desk.come_back.clone(),
            end: self.desk.end.take(),
        })
    }
}

/// Loads logs that were founded or joined since, and notes what others have changed.
fn load_new(logs: &mut BTreeMap<LogId, Log>, call: &Call<'_>, relay: &RelayUrl) -> Result<()> {
    for outer in logs::outer(call.db, relay)? {
        if let Some(log) = logs.get_mut(&outer.log) {
            log.note_outer(call.db, &outer)?;
        } else if let Some(row) = logs::find(call.db, outer.log)? {
            logs.insert(outer.log, Log::load(call.db, row)?);
        }
    }
    Ok(())
}

/// Lets each log send, beginning with another one each time.
fn pump(
    logs: &mut BTreeMap<LogId, Log>,
    call: &mut Call<'_>,
    turn: Option<LogId>,
) -> Result<Option<LogId>> {
    let order: Vec<LogId> = match turn {
        Some(turn) => logs.range(turn..).chain(logs.range(..turn)).map(|(id, _)| *id).collect(),
        None => logs.keys().copied().collect(),
    };
    for id in &order {
        if let Some(log) = logs.get_mut(id) {
            log.pump(call)?;
        }
    }
    Ok(order.get(1).copied())
}

fn on_frame(
    logs: &mut BTreeMap<LogId, Log>,
    call: &mut Call<'_>,
    envelope: Envelope<RelayFrame>,
) -> Result<()> {
    // A frame of a newer relay is not for this version.
    let Ok(frame) = envelope.frame else { return Ok(()) };
    let asked = call.desk.answered(envelope.request);
    match frame {
        RelayFrame::Entry(entry) => {
            with(logs, call, entry.log, |log, call| log.on_entry(call, &entry))
        }
        RelayFrame::Stubs(stubs) => {
            with(logs, call, stubs.log, |log, call| log.on_stubs(call, &stubs))
        }
        RelayFrame::Drained(drained) => {
            with(logs, call, drained.log, |log, call| log.on_drained(call, drained.head))
        }
        RelayFrame::Floor(floor) => with(logs, call, floor.log, |log, _| {
            log.on_floor(&floor.head);
            Ok(())
        }),
        RelayFrame::Subscribed(subscribed) => {
            with(logs, call, subscribed.log, |log, call| log.on_subscribed(call, subscribed.head))
        }
        RelayFrame::Appended(appended) => {
            let Some(Asked::Append { log, count, .. }) = asked else { return Ok(()) };
            with(logs, call, log, |log, call| log.on_appended(call, count, &appended))
        }
        RelayFrame::Done(_) => {
            if let Some(Asked::Leave(log)) = asked {
                return with(logs, call, log, Log::on_totals_left);
            }
            let Some(Asked::Unsubscribe(log)) = asked else { return Ok(()) };
            with(logs, call, log, |log, _| {
                log.subscription = Subscription::Off;
                Ok(())
            })
        }
        RelayFrame::Joined(joined) => {
            let Some(Asked::Join(log, id)) = asked else { return Ok(()) };
            with(logs, call, log, |log, call| log.on_totals_joined(call, id, joined.head.seq))
        }
        RelayFrame::Error(error) => on_error(logs, call, envelope.request, asked, &error),
        RelayFrame::Heartbeat(heartbeat) => {
            for summary in heartbeat.heads.iter() {
                with(logs, call, summary.log, |log, call| log.on_head(call, &summary.head))?;
            }
            Ok(())
        }
        RelayFrame::Membership(membership) => with(logs, call, membership.log, |log, call| {
            log.on_membership(call, membership.state, membership.seq)
        }),
        RelayFrame::QuotaReached(quota) => {
            call.desk.live.push(Event::QuotaReached { log: quota.log });
            Ok(())
        }
        RelayFrame::Superseded(_) => {
            call.desk.end = Some(End::Superseded);
            Ok(())
        }
        RelayFrame::Draining(draining) => {
            let after = Duration::from_millis(draining.reconnect_after_ms);
            let token = draining.resume_token.to_vec();
            call.desk.come_back = Some(Return { after, token });
            Ok(())
        }
        // Answers to what this engine does not ask.
        RelayFrame::Greeting(_)
        | RelayFrame::Welcome(_)
        | RelayFrame::Members(_)
        | RelayFrame::Logs(_)
        | RelayFrame::Token(_)
        | RelayFrame::Snapshots(_)
        | RelayFrame::SnapshotChunk(_) => Ok(()),
        RelayFrame::RecoveryFetched(fetched) => {
            call.desk.live.push(Event::RecoveryFetched { at: fetched.at });
            Ok(())
        }
    }
}

fn on_error(
    logs: &mut BTreeMap<LogId, Log>,
    call: &mut Call<'_>,
    request: u32,
    asked: Option<Asked>,
    error: &frame::Error,
) -> Result<()> {
    let failure = error.failure();
    match asked {
        Some(Asked::Append { log, count, .. }) => {
            with(logs, call, log, |log, call| log.on_refused(call, count, &failure))
        }
        Some(Asked::Subscribe(log)) => {
            with(logs, call, log, |log, call| log.on_not_subscribed(call, &failure))
        }
        Some(Asked::Unsubscribe(log)) => with(logs, call, log, |log, _| {
            log.subscription = Subscription::Off;
            Ok(())
        }),
        Some(Asked::Doorbell) => {
            call.doorbell_refused(&failure);
            Ok(())
        }
        Some(Asked::Join(log, id)) => {
            with(logs, call, log, |log, call| log.on_totals_not_joined(call, id, &failure))
        }
        Some(Asked::Leave(log)) => {
            with(logs, call, log, |log, call| log.on_totals_not_left(call, &failure))
        }
        Some(Asked::Ping) => Ok(()),
        // What is answered to an ack, or said of a subscription that held, names its log.
        None => {
            if let Some(log) = error.log {
                with(logs, call, log, |log, call| log.on_trouble(call, &failure))
            } else if request == 0 {
                call.desk.end = Some(End::Refused(Box::new(failure)));
                Ok(())
            } else {
                // The answer to an entry that was taken back meanwhile.
                Ok(())
            }
        }
    }
}

fn with(
    logs: &mut BTreeMap<LogId, Log>,
    call: &mut Call<'_>,
    log: LogId,
    work: impl FnOnce(&mut Log, &mut Call<'_>) -> Result<()>,
) -> Result<()> {
    match logs.get_mut(&log) {
        Some(log) => work(log, call),
        // Not one of ours, or not any more.
        None => Ok(()),
    }
}
