//! The bounded queue towards one session, and where that session stands in each of its logs.
//!
//! A publisher never waits for a reader. What it offers is taken only if it is the very next entry
//! of the log and fits; otherwise the log is *behind*, and the session catches up from the store at
//! its own pace. Expected seq and the behind flag stand under one lock, which the publisher takes as
//! well: that is what makes the change from catching up to live free of gaps and duplicates.
//!
//! Holds always:
//! - for each subscribed log, everything up to `next - 1` has been queued, as entry or stub, in
//!   order and once;
//! - stubs that wait are older than `next`, and are queued before any later frame of their log;
//! - frames of entries wait up to [`crate::limits::OUTBOX_BYTES_MAX`]; answers up to [`ANSWER_BYTES_MAX`] and what
//!   the credit of the requests in flight allows, since beyond it no further request is read.
//!
//! Lock order: a log's subscribers, then an outbox, then a log's head. See [`crate::registry`].

mod inner;
mod subscription;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use bytes::Bytes;
use metrics::counter;
use parking_lot::Mutex;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::codec::encode_relay;
use sealwire_protocol::frame::{self, Heartbeat, LogSummary, Membership};
use sealwire_protocol::limits::SUBSCRIPTIONS_MAX;
use sealwire_protocol::{DeviceKey, ErrorCode, Failure, Head, Instance, LogId, RelayFrame};
use tokio::sync::Notify;

use crate::catch_up::FloorMark;
use crate::entry::{Published, Read};
use crate::limits::{ANSWER_BYTES_MAX, FRAME_OVERHEAD_BYTES, OUTBOX_BYTES_LOW};
use crate::meters;
use crate::metrics::ERRORS_SENT;
use crate::ports::{LogKey, LogPlace, Position};
use crate::reply::InFlight;

pub(crate) use subscription::{CatchUp, Phase, Subscription};
use subscription::{Membered, State};

/// The queue towards one session.
pub struct Outbox {
    /// Number of this session in this process.
    pub(crate) id: u64,
    pub(crate) device: DeviceKey,
    pub(crate) instance: Instance,
    incarnation: u64,
    in_flight: InFlight,
    /// Seconds of the relay's uptime at which the device was last heard.
    last_heard: AtomicU64,
    /// Seconds of the relay's uptime since which the socket is being written to; 0 while it is not.
    writing_since: AtomicU64,
    /// Its slot on the wheel of heartbeats.
    beat: AtomicU16,
    wake: Notify,
    inner: Mutex<Inner>,
}

struct Inner {
    queue: VecDeque<Queued>,
    queued_bytes: usize,
    /// What the answers among them count for: see [`answer_cost`].
    answer_bytes: usize,
    /// The last number of a [`Membered::ground`].
    grounds: u64,
    /// Bytes of entries that the device still grants; none without a window.
    window: Option<u64>,
    /// The logs that the device is a member of, sorted by key.
    logs: Vec<Membered>,
    /// Subscribed logs that are behind and wait for a page, first come, first served.
    waiting: VecDeque<LogKey>,
    closing: Option<CloseReason>,
}

/// How far a session has been shown a log that it is subscribed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    /// Everything up to and with this seq was before the cursor that was compared, or was queued.
    pub(crate) up_to: u64,
    /// Where the log ends, as far as is known here.
    pub(crate) head: u64,
    /// How often the log had lost history when this was looked at.
    pub(crate) losses: u64,
}

/// A frame that waits.
struct Queued {
    frame: Bytes,
    /// Whether it counts as an answer: whatever a device's own requests can make the relay queue,
    /// rather than what is read for it from a log when there is room.
    answer: bool,
}

/// What an answer counts for while it waits: its bytes, and what every frame costs beside them.
fn answer_cost(frame: &Bytes) -> usize {
    frame.len() + FRAME_OVERHEAD_BYTES
}

impl Outbox {
    pub(crate) fn new(
        id: u64,
        device: DeviceKey,
        instance: Instance,
        incarnation: u64,
        window: Option<u64>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id,
            device,
            instance,
            incarnation,
            in_flight: InFlight::default(),
            last_heard: AtomicU64::new(0),
            writing_since: AtomicU64::new(0),
            beat: AtomicU16::new(u16::MAX),
            wake: Notify::new(),
            inner: Mutex::new(Inner {
                queue: VecDeque::new(),
                queued_bytes: 0,
                answer_bytes: 0,
                grounds: 0,
                window,
                logs: Vec::new(),
                waiting: VecDeque::new(),
                closing: None,
            }),
        })
    }

    pub(crate) fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    /// Resolves when there may be something to take, to read or to close.
    pub async fn woken(&self) {
        self.wake.notified().await;
    }

    /// Wakes the session, which looks for what there is to do.
    pub(crate) fn nudge(&self) {
        self.wake.notify_one();
    }

    /// Bytes of frames that wait.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.inner.lock().queued_bytes
    }

    /// Takes queued frames in order: at most `frames_max`, and no more once `bytes_max` is reached.
    pub fn take(&self, frames_max: usize, bytes_max: usize, into: &mut Vec<Bytes>) {
        let mut inner = self.inner.lock();
        let mut bytes = 0;
        for _ in 0..frames_max {
            let Some(Queued { frame, answer }) = inner.queue.pop_front() else {
                break;
            };
            bytes += frame.len();
            if answer {
                inner.answer_bytes -= answer_cost(&frame);
            }
            into.push(frame);
            if bytes >= bytes_max {
                break;
            }
        }
        inner.release(bytes);
        if inner.queue.is_empty() {
            // An idle session keeps no queue: thousands of them are idle.
            inner.queue.shrink_to(0);
        }
    }

    /// Whether so many answers wait that the device should be heard no further.
    #[must_use]
    pub fn answers_are_full(&self) -> bool {
        self.inner.lock().answer_bytes >= ANSWER_BYTES_MAX
    }

    /// Notes that the socket is being written to, at this many seconds of the relay's uptime, or
    /// that all was written.
    pub fn writing(&self, since_uptime_s: Option<u64>) {
        let since = since_uptime_s.map_or(0, |uptime_s| uptime_s.max(1));
        self.writing_since.store(since, Ordering::Relaxed);
    }

    /// Notes its slot on the wheel of heartbeats.
    pub(crate) fn set_beat(&self, slot: u16) {
        self.beat.store(slot, Ordering::Relaxed);
    }

    pub(crate) fn beat(&self) -> u16 {
        self.beat.load(Ordering::Relaxed)
    }

    /// For how many seconds the socket has not taken what is being written to it.
    pub(crate) fn stalled_for(&self, uptime_s: u64) -> u64 {
        match self.writing_since.load(Ordering::Relaxed) {
            0 => 0,
            since => uptime_s.saturating_sub(since),
        }
    }

    /// Bytes that wait, and whether a log is behind.
    pub(crate) fn load(&self) -> (usize, bool) {
        let inner = self.inner.lock();
        let behind =
            |log: &Membered| log.subscription.as_deref().is_some_and(|it| it.state != State::Live);
        (inner.queued_bytes, inner.logs.iter().any(behind))
    }

    /// Why the session must end, if it must. What is queued goes out first.
    #[must_use]
    pub fn closing(&self) -> Option<CloseReason> {
        self.inner.lock().closing
    }

    /// Ends the session once what is queued has gone out. The first reason stands.
    pub fn close(&self, reason: CloseReason) {
        self.inner.lock().closing.get_or_insert(reason);
        self.wake.notify_one();
    }

    /// Queues an answer.
    pub(crate) fn answer(&self, request: u32, frame: &RelayFrame) {
        if let RelayFrame::Error(error) = frame {
            counter!(ERRORS_SENT, "code" => error.code.name()).increment(1);
        }
        let mut inner = self.inner.lock();
        inner.push_answer(Bytes::from(encode_relay(request, frame)));
        drop(inner);
        self.wake.notify_one();
    }

    /// Notes that the device was heard, at this many seconds of the relay's uptime.
    pub fn heard(&self, uptime_s: u64) {
        self.last_heard.store(uptime_s, Ordering::Relaxed);
    }

    pub(crate) fn last_heard(&self) -> u64 {
        self.last_heard.load(Ordering::Relaxed)
    }

    /// Queues a heartbeat with the heads that changed since the last one. Stubs that wait go first.
    pub(crate) fn heartbeat(&self, request: u32, now_ms: u64) {
        let mut inner = self.inner.lock();
        let mut heads = Vec::new();
        for index in 0..inner.logs.len() {
            let Some(subscription) = inner.logs[index].subscription.as_deref_mut() else {
                continue;
            };
            if !std::mem::take(&mut subscription.changed) {
                continue;
            }
            let position = subscription.presence.head();
            let id = inner.logs[index].id;
            heads.push(LogSummary { log: id, head: self.head(position) });
            inner.flush_stubs_as_answer(index);
        }
        debug_assert!(heads.len() <= SUBSCRIPTIONS_MAX);
        let frame = Heartbeat { now: now_ms, heads: Bounded::new(heads).unwrap_or_default() };
        inner.push_answer(Bytes::from(encode_relay(request, &frame.into())));
        drop(inner);
        self.wake.notify_one();
    }

    /// The device has taken this many bytes of entries.
    pub(crate) fn grant(&self, bytes: u64) {
        let mut inner = self.inner.lock();
        if let Some(window) = &mut inner.window {
            *window = window.saturating_add(bytes);
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// The logs that the device is a member of, by what the store said and what happened since.
    pub(crate) fn add_log(&self, log: LogPlace) {
        let mut inner = self.inner.lock();
        if let Err(index) = inner.find(log.key) {
            inner.grounds += 1;
            let (LogPlace { id, key, log_type }, ground) = (log, inner.grounds);
            inner.logs.insert(index, Membered { key, id, log_type, ground, subscription: None });
        }
    }

    /// Where one of the device's logs is.
    pub(crate) fn log_place(&self, id: LogId) -> Option<LogPlace> {
        let inner = self.inner.lock();
        let log = inner.logs.iter().find(|log| log.id == id)?;
        Some(LogPlace { id, key: log.key, log_type: log.log_type })
    }

    /// A number that changes when the device's membership in this log begins or ends, and with the log's
    /// history: what was begun before is begun on old ground. None if the device is no member.
    pub(crate) fn ground(&self, key: LogKey) -> Option<u64> {
        let inner = self.inner.lock();
        inner.find(key).ok().map(|index| inner.logs[index].ground)
    }

    /// Subscribes, or begins an existing subscription anew: queues the answer, then what belongs
    /// before the first entry. Gives false if the device is not a member of the log, as far as this
    /// outbox knows, or not on this ground any more.
    pub(crate) fn subscribe(
        &self,
        request: u32,
        ground: u64,
        key: LogKey,
        head: Position,
        floor: Option<FloorMark>,
        subscription: Subscription,
    ) -> bool {
        let mut inner = self.inner.lock();
        let Ok(index) = inner.find(key) else {
            return false;
        };
        if inner.logs[index].ground != ground || inner.closing.is_some() {
            return false;
        }
        let log = inner.logs[index].id;
        let subscribed = frame::Subscribed { log, head: self.head(head) };
        inner.push_answer(Bytes::from(encode_relay(request, &subscribed.into())));
        if let Some(floor) = floor {
            inner.push_answer(floor.frame(log, self.incarnation));
        }
        inner.logs[index].subscription = Some(Box::new(subscription));
        inner.fall_behind(index);
        drop(inner);
        self.wake.notify_one();
        true
    }

    /// How far this session has been shown a log; none if it is not subscribed to it.
    pub(crate) fn shown(&self, key: LogKey) -> Option<Shown> {
        let inner = self.inner.lock();
        let index = inner.find(key).ok()?;
        let subscription = inner.logs[index].subscription.as_deref()?;
        Some(Shown {
            up_to: subscription.next - 1,
            head: subscription.presence.head().seq,
            losses: subscription.presence.losses(),
        })
    }

    /// How many logs are subscribed, apart from `key`.
    pub(crate) fn subscriptions_beside(&self, key: LogKey) -> usize {
        let inner = self.inner.lock();
        inner.logs.iter().filter(|log| log.key != key && log.subscription.is_some()).count()
    }

    /// Ends a subscription. Gives whether there was one.
    pub(crate) fn unsubscribe(&self, key: LogKey) -> bool {
        let mut inner = self.inner.lock();
        inner.find(key).is_ok_and(|index| inner.logs[index].subscription.take().is_some())
    }

    /// The keys of the subscribed logs.
    pub(crate) fn subscribed(&self) -> Vec<LogKey> {
        let inner = self.inner.lock();
        inner.logs.iter().filter(|log| log.subscription.is_some()).map(|log| log.key).collect()
    }

    /// The device is a member from now on, and its sessions are told.
    pub(crate) fn member_joined(&self, log: LogPlace, seq: u64) {
        self.add_log(log);
        let frame = Membership { log: log.id, state: frame::MembershipState::Joined, seq };
        self.answer(0, &frame.into());
    }

    /// The device is no member from now on: its sessions are told, and hear no more of the log.
    pub(crate) fn member_gone(&self, key: LogKey, state: frame::MembershipState, seq: u64) {
        let mut inner = self.inner.lock();
        let Ok(index) = inner.find(key) else {
            return;
        };
        inner.flush_stubs(index);
        let log = inner.logs.remove(index).id;
        let frame = Membership { log, state, seq };
        inner.push_answer(Bytes::from(encode_relay(0, &frame.into())));
        drop(inner);
        self.wake.notify_one();
    }

    /// The log's history is not what this session was told: the subscription is over.
    pub(crate) fn history_changed(&self, key: LogKey, position: Position) {
        let mut inner = self.inner.lock();
        let Ok(index) = inner.find(key) else {
            return;
        };
        inner.grounds += 1;
        inner.logs[index].ground = inner.grounds;
        if inner.logs[index].subscription.take().is_none() {
            return;
        }
        let failure = Failure::at_head(ErrorCode::HistoryChanged, self.head(position));
        let frame = frame::Error { log: Some(inner.logs[index].id), ..failure.into() };
        inner.push_answer(Bytes::from(encode_relay(0, &frame.into())));
        drop(inner);
        self.wake.notify_one();
    }

    /// Offers entries that have just become durable, in order. Never waits.
    pub(crate) fn offer(&self, key: LogKey, entries: &[Arc<Published>]) {
        let mut inner = self.inner.lock();
        let Ok(index) = inner.find(key) else {
            return;
        };
        let Some(subscription) = inner.logs[index].subscription.as_deref_mut() else {
            return;
        };
        subscription.changed = true;
        if subscription.state != State::Live {
            return;
        }
        let mut offered = 0;
        let mut fell_behind = false;
        for entry in entries {
            let Some(subscription) = inner.logs[index].subscription.as_deref_mut() else {
                return;
            };
            if entry.seq < subscription.next {
                continue;
            }
            let taken = entry.seq == subscription.next
                && match entry.stub_for(self.device, subscription.joined_seq) {
                    Some(reason) => subscription.add_stub(entry.digest, reason),
                    None => inner.push_entry(index, entry.frame.bytes()),
                };
            if !taken {
                fell_behind = true;
                break;
            }
            offered += 1;
        }
        if fell_behind {
            inner.fall_behind(index);
        }
        drop(inner);
        meters::copies_offered().increment(offered);
        self.wake.notify_one();
    }

    /// Learns that a log has this head although nothing was offered: whoever expects one of its
    /// entries is behind.
    pub(crate) fn check_head(&self, key: LogKey, seq: u64) {
        let mut inner = self.inner.lock();
        if let Ok(index) = inner.find(key)
            && let Some(subscription) = inner.logs[index].subscription.as_deref_mut()
            && subscription.state == State::Live
            && subscription.next <= seq
        {
            subscription.changed = true;
            inner.fall_behind(index);
        }
        drop(inner);
        self.wake.notify_one();
    }

    /// The next log to read a page for, if one is behind and there is room for a page.
    pub(crate) fn next_catch_up(&self) -> Option<CatchUp> {
        let mut inner = self.inner.lock();
        let wanted = inner.closing.is_none() && inner.window != Some(0);
        if inner.queued_bytes > OUTBOX_BYTES_LOW || !wanted {
            return None;
        }
        while let Some(key) = inner.waiting.pop_front() {
            let Ok(index) = inner.find(key) else {
                continue;
            };
            let id = inner.logs[index].id;
            if let Some(subscription) = inner.logs[index].subscription.as_deref_mut()
                && subscription.state == State::Behind
            {
                subscription.state = State::Reading;
                return Some(CatchUp::new(key, id, subscription));
            }
        }
        None
    }

    /// A page could not be read: the log waits for its next turn.
    pub(crate) fn page_failed(&self, key: LogKey, generation: u64) {
        let mut inner = self.inner.lock();
        if let Some(index) = inner.reading(key, generation) {
            inner.fall_behind(index);
        }
    }

    /// Retention has raised the floor over the place where this reader stands: it is told, gets the
    /// control entries from there to the floor, and goes on above it.
    pub(crate) fn restart_at_floor(
        &self,
        key: LogKey,
        generation: u64,
        after: u64,
        floor: FloorMark,
    ) {
        let mut inner = self.inner.lock();
        let Some(index) = inner.reading(key, generation) else {
            return;
        };
        let seq = floor.position.seq;
        if after < seq {
            let id = inner.logs[index].id;
            inner.push(floor.frame(id, self.incarnation));
            if let Some(subscription) = inner.logs[index].subscription.as_deref_mut() {
                subscription.phase = Phase::Controls(after, seq);
                subscription.next = seq + 1;
            }
        }
        inner.fall_behind(index);
        drop(inner);
        self.wake.notify_one();
    }

    /// Queues a page of control entries from below the floor. `complete` says that these were the
    /// last.
    pub(crate) fn deliver_controls(
        &self,
        key: LogKey,
        generation: u64,
        page: Vec<(u64, Bytes)>,
        complete: bool,
    ) {
        let mut inner = self.inner.lock();
        let Some(index) = inner.reading(key, generation) else {
            return;
        };
        let mut all = complete;
        for (seq, frame) in page {
            // What the device has not granted is read again when it has.
            if inner.window == Some(0) {
                all = false;
                break;
            }
            inner.push_counted(frame);
            if let Some(subscription) = inner.logs[index].subscription.as_deref_mut() {
                subscription.controls_sent(seq);
            }
        }
        if all && let Some(subscription) = inner.logs[index].subscription.as_deref_mut() {
            subscription.phase = Phase::Entries;
        }
        inner.fall_behind(index);
        drop(inner);
        self.wake.notify_one();
    }

    /// Queues a page. When it ends at the published head the log is live again, and `Drained` says
    /// so: head and flag are looked at under the lock that a publisher must take to offer.
    pub(crate) fn deliver_page(&self, key: LogKey, generation: u64, page: Vec<(u64, Read)>) {
        let mut inner = self.inner.lock();
        let Some(index) = inner.reading(key, generation) else {
            return;
        };
        let mut copies = 0;
        for (seq, read) in page {
            let Some(subscription) = inner.logs[index].subscription.as_deref_mut() else {
                return;
            };
            if seq != subscription.next {
                // The store gave a page with a hole: it cannot, but if it did, the reader must not
                // be told that nothing is missing.
                tracing::error!("a page of a log does not follow the one before it");
                break;
            }
            match read {
                Read::Stub(stub) => {
                    if !subscription.add_stub(stub.digest, stub.reason) {
                        inner.flush_stubs(index);
                        if let Some(subscription) = inner.logs[index].subscription.as_deref_mut() {
                            subscription.add_stub(stub.digest, stub.reason);
                        }
                    }
                }
                // What the device has not granted is read again when it has.
                Read::Entry(_) if inner.window == Some(0) => break,
                Read::Entry(frame) => {
                    inner.flush_stubs(index);
                    inner.push_counted(frame);
                    if let Some(subscription) = inner.logs[index].subscription.as_deref_mut() {
                        subscription.next += 1;
                    }
                    copies += 1;
                }
            }
        }
        inner.arrive(index, self.incarnation);
        drop(inner);
        meters::copies_offered().increment(copies);
        self.wake.notify_one();
    }

    fn head(&self, position: Position) -> Head {
        Head { incarnation: self.incarnation, seq: position.seq, chain: position.chain }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        let mut inner = self.inner.lock();
        let bytes = inner.queued_bytes;
        inner.release(bytes);
    }
}
