//! What all logs of one connection share: requests under way, and what is to be said.
//!
//! A [`Call`] is one transaction with its time. Whatever a log wants to say goes onto the desk, and
//! leaves it after the commit.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use rusqlite::Connection;
use sealwire_protocol::frame::{Ping, SetPushToken};
use sealwire_protocol::limits::IN_FLIGHT_REQUESTS_MAX;
use sealwire_protocol::{ClientFrame, Failure, LogId};

use super::{End, Result, Return};
use crate::event::Event;
use crate::identity::Identity;
use crate::numbering::DraftId;
use crate::store::inbox;

/// Most requests that are unanswered: a little less than the relay allows, so that a ping or an
/// unsubscription always has room.
const REQUESTS_MAX: usize = IN_FLIGHT_REQUESTS_MAX - 8;

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

/// A request that is not answered.
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked {
    Subscribe(LogId),
    Unsubscribe(LogId),
    Doorbell,
    Append {
        log: LogId,
        count: u64,
        bytes: usize,
    },
    /// To become a member of a `totals` group, by this draft.
    Join(LogId, DraftId),
    /// To be a member of a `totals` group no more, by this draft.
    Leave(LogId),
    Ping,
}

/// What all logs of one connection share while a call lasts.
pub(super) struct Desk {
    pub(super) frames: Vec<(u32, ClientFrame)>,
    pub(super) live: Vec<Event>,
    pub(super) end: Option<End>,
    /// Set when the relay is shutting down: nothing new is sent.
    pub(super) come_back: Option<Return>,
    pub(super) requests: HashMap<u32, (Asked, Instant)>,
    pub(super) last_request: u32,
    pub(super) bytes_in_flight: usize,
    pub(super) pinged_at: Option<Instant>,
    /// Where the device's doorbell is, and when to say so; none once it was said.
    pub(super) doorbell: Option<(SetPushToken, Option<Instant>)>,
}

/// A call: its transaction, its time, and where to say things.
pub(super) struct Call<'a> {
    pub(super) db: &'a Connection,
    pub(super) device: &'a Identity,
    pub(super) desk: &'a mut Desk,
    pub(super) now: Now,
}

impl Call<'_> {
    /// Keeps an event for the app.
    pub(super) fn tell(&self, log: i64, event: &Event) -> Result<()> {
        inbox::tell(self.db, log, event, self.now.ms)
    }

    /// Sends a frame to which no answer is awaited.
    pub(super) fn send(&mut self, frame: impl Into<ClientFrame>) {
        let request = self.desk.next_request();
        self.desk.frames.push((request, frame.into()));
    }

    /// Sends a request.
    pub(super) fn ask(&mut self, asked: Asked, frame: impl Into<ClientFrame>) {
        let request = self.desk.next_request();
        if let Asked::Append { bytes, .. } = asked {
            self.desk.bytes_in_flight += bytes;
        }
        self.desk.requests.insert(request, (asked, self.now.at));
        self.desk.frames.push((request, frame.into()));
    }

    /// Says where the device's doorbell is, if that is due.
    pub(super) fn say_doorbell(&mut self) {
        if let Some((frame, due)) = &mut self.desk.doorbell
            && due.is_some_and(|due| due <= self.now.at)
        {
            *due = None;
            let frame = frame.clone();
            self.ask(Asked::Doorbell, frame);
        }
    }

    /// The relay could not note where the device's doorbell is: it is said again later.
    pub(super) fn doorbell_refused(&mut self, failure: &Failure) {
        if let (Some((_, due)), Some(pause)) = (&mut self.desk.doorbell, failure.retry_after_ms) {
            *due = Some(self.now.at + Duration::from_millis(pause));
        }
    }

    /// Whether another request may be sent.
    pub(super) fn has_room(&self) -> bool {
        self.desk.requests.len() < REQUESTS_MAX
    }

    /// Asks the relay for a sign of life, before which it sends what it holds back. Says when it
    /// makes sense to ask again.
    pub(super) fn hurry(&mut self) -> Instant {
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
    /// The desk of a new connection.
    pub(super) fn new() -> Self {
        Self {
            frames: Vec::new(),
            live: Vec::new(),
            end: None,
            come_back: None,
            requests: HashMap::new(),
            // The handshake has used the first ones.
            last_request: 16,
            bytes_in_flight: 0,
            pinged_at: None,
            doorbell: None,
        }
    }

    pub(super) fn next_request(&mut self) -> u32 {
        self.last_request = self.last_request.checked_add(1).unwrap_or(1);
        self.last_request
    }

    pub(super) fn answered(&mut self, request: u32) -> Option<Asked> {
        let (asked, _) = self.requests.remove(&request)?;
        if let Asked::Append { bytes, .. } = asked {
            self.bytes_in_flight = self.bytes_in_flight.saturating_sub(bytes);
        }
        Some(asked)
    }

    /// Answers to these appends mean nothing any more.
    pub(super) fn forget_appends(&mut self, of: LogId, from: u64) {
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

/// A random part of `span`, so that devices do not do the same thing at the same time.
pub(super) fn jitter(span: Duration) -> Duration {
    let random = crate::identity::random::<4>().map_or(0, u32::from_be_bytes);
    span.mul_f64(f64::from(random) / f64::from(u32::MAX))
}
