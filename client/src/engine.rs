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

mod keys;
mod log;
mod reading;
mod sending;
mod taking;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rusqlite::Connection;
use sealwire_protocol::codec::Envelope;
use sealwire_protocol::frame::{self, Ping};
use sealwire_protocol::limits::IN_FLIGHT_REQUESTS_MAX;
use sealwire_protocol::{ClientFrame, Failure, LogId, RelayFrame};

use self::log::{Log, Subscription};
use crate::address::RelayUrl;
use crate::event::Event;
use crate::identity::Identity;
use crate::store::{Store, StoreError, inbox, logs};

type Result<T> = std::result::Result<T, StoreError>;

/// Most requests that are unanswered: a little less than the relay allows, so that a ping or an
/// unsubscription always has room.
const REQUESTS_MAX: usize = IN_FLIGHT_REQUESTS_MAX - 8;

/// How long the relay may take to answer a request before the connection is given up.
const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// How long after a ping the next one may be sent to hurry what waits at the relay.
const HURRY_PAUSE: Duration = Duration::from_millis(500);

/// The time, by the clock that measures durations and by the one that dates things.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) at: Instant,
    /// Milliseconds since the epoch.
    pub(crate) ms: u64,
}

impl Now {
    /// The machine's clocks.
    pub(crate) fn read() -> Self {
        let ms = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        Self { at: Instant::now(), ms }
    }
}

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
#[derive(Clone, Debug)]
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

/// A request that is not answered.
#[derive(Clone, Copy, Debug)]
enum Asked {
    Subscribe(LogId),
    Unsubscribe(LogId),
    Append { log: LogId, count: u64, bytes: usize },
    Ping,
}

/// What all logs of one connection share while a call lasts.
struct Desk {
    frames: Vec<(u32, ClientFrame)>,
    live: Vec<Event>,
    end: Option<End>,
    /// Set when the relay is shutting down: nothing new is sent.
    come_back: Option<Return>,
    requests: HashMap<u32, (Asked, Instant)>,
    last_request: u32,
    bytes_in_flight: usize,
    pinged_at: Option<Instant>,
}

/// A call: its transaction, its time, and where to say things.
struct Call<'a> {
    db: &'a Connection,
    device: &'a Identity,
    desk: &'a mut Desk,
    now: Now,
}

impl Call<'_> {
    /// Keeps an event for the app.
    fn tell(&self, log: i64, event: &Event) -> Result<()> {
        inbox::tell(self.db, log, event, self.now.ms)
    }

    /// Sends a frame to which no answer is awaited.
    fn send(&mut self, frame: impl Into<ClientFrame>) {
        let request = self.desk.next_request();
        self.desk.frames.push((request, frame.into()));
    }

    /// Sends a request.
    fn ask(&mut self, asked: Asked, frame: impl Into<ClientFrame>) {
        let request = self.desk.next_request();
        if let Asked::Append { bytes, .. } = asked {
            self.desk.bytes_in_flight += bytes;
        }
        self.desk.requests.insert(request, (asked, self.now.at));
        self.desk.frames.push((request, frame.into()));
    }

    /// Whether another request may be sent.
    fn has_room(&self) -> bool {
        self.desk.requests.len() < REQUESTS_MAX
    }

    /// Asks the relay for a sign of life, before which it sends what it holds back. Says when it
    /// makes sense to ask again.
    fn hurry(&mut self) -> Instant {
        let next = self.desk.pinged_at.map(|at| at + HURRY_PAUSE);
        if next.is_none_or(|next| next <= self.now.at) {
            self.desk.pinged_at = Some(self.now.at);
            self.ask(Asked::Ping, Ping {});
            return self.now.at + HURRY_PAUSE;
        }
        next.unwrap_or(self.now.at)
    }
}

impl Desk {
    fn next_request(&mut self) -> u32 {
        self.last_request = self.last_request.checked_add(1).unwrap_or(1);
        self.last_request
    }

    fn answered(&mut self, request: u32) -> Option<Asked> {
        let (asked, _) = self.requests.remove(&request)?;
        if let Asked::Append { bytes, .. } = asked {
            self.bytes_in_flight = self.bytes_in_flight.saturating_sub(bytes);
        }
        Some(asked)
    }

    /// Answers to these appends mean nothing any more.
    fn forget_appends(&mut self, of: LogId, from: u64) {
        let forgotten: Vec<u32> = self
            .requests
            .iter()
            .filter(|(_, (asked, _))| {
                matches!(asked, Asked::Append { log, count, .. } if *log == of && *count >= from)
            })
            .map(|(request, _)| *request)
            .collect();
        for request in forgotten {
            self.answered(request);
        }
    }
}

/// The logs of one relay, over one connection.
pub(crate) struct Engine {
    device: Arc<Identity>,
    store: Arc<Store>,
    relay: RelayUrl,
    logs: BTreeMap<LogId, Log>,
    desk: Desk,
    /// The log with which the next round of sending begins, so that a busy one leaves room.
    turn: Option<LogId>,
}

impl Engine {
    /// The engine of a connection that has just been made.
    pub(crate) fn new(device: Arc<Identity>, store: Arc<Store>, relay: RelayUrl) -> Self {
        let desk = Desk {
            frames: Vec::new(),
            live: Vec::new(),
            end: None,
            come_back: None,
            requests: HashMap::new(),
            // The handshake has used the first ones.
            last_request: 16,
            bytes_in_flight: 0,
            pinged_at: None,
        };
        Self { device, store, relay, logs: BTreeMap::new(), desk, turn: None }
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
        self.logs.values().filter_map(Log::deadline).chain(unanswered).min()
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
                    log.subscribe_if_due(&mut call);
                    log.run_timers(&mut call)?;
                }
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
            log.note_outer(&outer);
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
        RelayFrame::Subscribed(subscribed) => with(logs, call, subscribed.log, |log, call| {
            log.on_subscribed(call, subscribed.head);
            Ok(())
        }),
        RelayFrame::Appended(appended) => {
            let Some(Asked::Append { log, count, .. }) = asked else { return Ok(()) };
            with(logs, call, log, |log, call| log.on_appended(call, count, &appended))
        }
        RelayFrame::Done(_) => {
            let Some(Asked::Unsubscribe(log)) = asked else { return Ok(()) };
            with(logs, call, log, |log, _| {
                log.subscription = Subscription::Off;
                Ok(())
            })
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
        | RelayFrame::Joined(_)
        | RelayFrame::Token(_)
        | RelayFrame::Snapshots(_)
        | RelayFrame::SnapshotChunk(_)
        | RelayFrame::RecoveryFetched(_) => Ok(()),
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

/// A random part of `span`, so that devices do not do the same thing at the same time.
fn jitter(span: Duration) -> Duration {
    let random = crate::identity::random::<4>().map_or(0, u32::from_be_bytes);
    span.mul_f64(f64::from(random) / f64::from(u32::MAX))
}
