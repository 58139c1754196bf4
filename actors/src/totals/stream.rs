//! A stream of payloads, or of news about groups, towards one phone.
//!
//! A stream has no queue. It knows up to where it has given each log and whether there may be more;
//! whoever publishes only says so. What there is, the stream fetches itself, at the pace at which its
//! phone takes it: from the log's ring of last entries, or a page at a time from the store. So a
//! phone that takes nothing costs a page, and a publisher never waits.
//!
//! Holds always: everything that a device has not acked when its stream opens is given, and everything
//! that is published after; in each log in order, and once.
//!
//! Lock order: a log's streams, then a listener. Nothing is awaited under either.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use metrics::gauge;
use parking_lot::Mutex;
use sealwire_protocol::{AckSet, DeviceKey, LogId};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::limits::{
    CHANGES_INTERVAL, CHANGES_PAUSE, STORE_DEADLINE, STREAM_PAGE_BYTES_MAX, STREAM_PAGE_ENTRIES_MAX,
};
use crate::metrics::STREAMS;
use crate::ports::{LogKey, PageRequest, StoreError, SubscriptionRecord};
use crate::registry::{Presence, Registry};
use crate::reply::jitter;
use crate::system::Shared;
use crate::totals::payload::Payload;

/// Pause after a page that could not be read, in milliseconds, jittered.
const FAILED_PAUSE_MS: (u64, u64) = (500, 1500);

/// What a stream is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The payloads of one group, for as long as the phone listens, also over leaving and rejoining.
    One(LogKey),
    /// The payloads of every `totals` group of the device.
    All,
    /// Changes of the device's groups.
    Changes,
}

/// What a stream gives.
pub enum StreamEvent {
    /// Payloads of one group, in order.
    Payloads(Vec<Arc<Payload>>),
    /// The device's groups are not what they were.
    GroupsChanged,
    /// The device's recovery vault was fetched with its code at this time, in milliseconds since the
    /// epoch.
    RecoveryFetched(u64),
    /// Nothing has happened for a while.
    Silence,
}

/// One stream's place in the registry.
pub(crate) struct Listener {
    pub(crate) id: u64,
    pub(crate) device: DeviceKey,
    pub(crate) scope: Scope,
    wake: Notify,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    logs: BTreeMap<LogKey, Place>,
    /// The log that was looked at last: the others have their turn first.
    last: Option<LogKey>,
    changed: bool,
    /// When the device's recovery vault was fetched, if that is still to be told.
    fetched: Option<u64>,
    ended: bool,
}

/// Where a stream stands in one log.
struct Place {
    id: LogId,
    presence: Arc<Presence>,
    /// Everything up to this seq was given, or was not for this device.
    after: u64,
    joined_seq: u64,
    /// What the device had acked when the stream began here.
    acked: AckSet,
    /// Whether there may be more.
    dirty: bool,
    /// Whether it was begun by the news of a membership, which does not say what was acked.
    assumed: bool,
}

static NEXT_LISTENER: AtomicU64 = AtomicU64::new(1);

impl Listener {
    pub(crate) fn new(device: DeviceKey, scope: Scope) -> Arc<Self> {
        Arc::new(Self {
            id: NEXT_LISTENER.fetch_add(1, Ordering::Relaxed),
            device,
            scope,
            wake: Notify::new(),
            inner: Mutex::default(),
        })
    }

    /// Whether it wants the payloads of this log.
    pub(crate) fn wants(&self, key: LogKey, id: LogId) -> bool {
        match self.scope {
            Scope::One(one) => one == key,
            Scope::All => id.is_totals(),
            Scope::Changes => false,
        }
    }

    /// Begins in a log of which the device is a member since `record.joined_seq`. If `assumed`, the
    /// record says no more than that, and one that was read from the store comes before it and after.
    pub(crate) fn begin(
        &self,
        key: LogKey,
        id: LogId,
        presence: Arc<Presence>,
        record: &SubscriptionRecord,
        assumed: bool,
    ) {
        let mut after = record.joined_seq.max(record.floor.seq).max(record.acked.floor());
        let mut inner = self.inner.lock();
        if let Some(place) = inner.logs.get(&key) {
            let same = place.joined_seq == record.joined_seq;
            if place.joined_seq > record.joined_seq || (same && (assumed || !place.assumed)) {
                return;
            }
            if same {
                after = after.max(place.after);
            }
        }
        let place = Place {
            id,
            presence,
            after,
            joined_seq: record.joined_seq,
            acked: record.acked.clone(),
            dirty: true,
            assumed,
        };
        inner.logs.insert(key, place);
        drop(inner);
        self.wake.notify_one();
    }

    /// The device is no member any more.
    pub(crate) fn gone(&self, key: LogKey) {
        self.inner.lock().logs.remove(&key);
    }

    /// There may be more in a log.
    pub(crate) fn more(&self, key: LogKey) {
        let mut inner = self.inner.lock();
        if let Some(place) = inner.logs.get_mut(&key) {
            place.dirty = true;
            drop(inner);
            self.wake.notify_one();
        }
    }

    /// The device's groups have changed.
    pub(crate) fn changed(&self) {
        if self.scope == Scope::Changes {
            self.inner.lock().changed = true;
            self.wake.notify_one();
        }
    }

    /// The device's recovery vault was fetched.
    pub(crate) fn fetched(&self, at: u64) {
        if self.scope == Scope::Changes {
            self.inner.lock().fetched = Some(at);
            self.wake.notify_one();
        }
    }

    fn take_fetched(&self) -> Option<u64> {
        self.inner.lock().fetched.take()
    }

    /// Ends the stream: its phone comes back and is given everything anew.
    pub(crate) fn end(&self) {
        self.inner.lock().ended = true;
        self.wake.notify_one();
    }

    /// Whether it has ended, and whether the device's groups have changed.
    fn state(&self) -> (bool, bool) {
        let inner = self.inner.lock();
        (inner.ended, inner.changed)
    }

    /// The logs that it stands in.
    pub(crate) fn followed(&self) -> Vec<LogKey> {
        self.inner.lock().logs.keys().copied().collect()
    }
}

/// A page to fetch.
struct Wanted {
    key: LogKey,
    id: LogId,
    presence: Arc<Presence>,
    after: u64,
    joined_seq: u64,
}

/// The receiving end: dropping it removes every trace.
pub struct PayloadStream {
    shared: Arc<Shared>,
    listener: Arc<Listener>,
    last_change: Option<Instant>,
}

impl PayloadStream {
    pub(crate) fn new(shared: Arc<Shared>, listener: Arc<Listener>) -> Self {
        gauge!(STREAMS).increment(1.0);
        Self { shared, listener, last_change: None }
    }

    /// The next event; [`StreamEvent::Silence`] when nothing has happened for so long, `None` when
    /// the stream has ended. Not to be dropped while it waits, but with the stream.
    pub async fn next(&mut self, silence: Duration) -> Option<StreamEvent> {
        let silent_at = Instant::now() + silence;
        loop {
            let (ended, changed) = self.listener.state();
            if ended {
                return None;
            }
            if let Some(at) = self.listener.take_fetched() {
                return Some(StreamEvent::RecoveryFetched(at));
            }
            if changed {
                return self.tell_changes().await;
            }
            if let Some(wanted) = self.wanted() {
                let payloads = self.fetch(&wanted).await;
                if !payloads.is_empty() {
                    return Some(StreamEvent::Payloads(payloads));
                }
                continue;
            }
            tokio::select! {
                () = self.listener.wake.notified() => {}
                () = sleep_until(silent_at) => return Some(StreamEvent::Silence),
            }
        }
    }

    /// Waits for what changes along with it, and not to tell too often.
    async fn tell_changes(&mut self) -> Option<StreamEvent> {
        let now = Instant::now();
        let rested = self.last_change.map_or(now, |last| last + CHANGES_INTERVAL);
        sleep_until(rested.max(now + CHANGES_PAUSE)).await;
        let mut inner = self.listener.inner.lock();
        inner.changed = false;
        if inner.ended {
            return None;
        }
        self.last_change = Some(Instant::now());
        Some(StreamEvent::GroupsChanged)
    }

    /// The next log in which there may be more. What is published from now on marks it again.
    fn wanted(&self) -> Option<Wanted> {
        let mut inner = self.listener.inner.lock();
        let last = inner.last.unwrap_or(LogKey(i64::MIN));
        let mut waiting = inner.logs.iter().filter(|(_, place)| place.dirty).map(|(key, _)| *key);
        let first = waiting.next()?;
        let key =
            if first > last { first } else { waiting.find(|key| *key > last).unwrap_or(first) };
        inner.last = Some(key);
        let place = inner.logs.get_mut(&key)?;
        place.dirty = false;
        Some(Wanted {
            key,
            id: place.id,
            presence: place.presence.clone(),
            after: place.after,
            joined_seq: place.joined_seq,
        })
    }

    async fn fetch(&self, wanted: &Wanted) -> Vec<Arc<Payload>> {
        let device = self.listener.device;
        let head = wanted.presence.head().seq;
        if head <= wanted.after {
            return Vec::new();
        }
        let recent = wanted.presence.recent(wanted.after);
        if let Some(last) = recent.last().map(|entry| entry.seq) {
            let payloads = recent
                .iter()
                .filter(|entry| entry.stub_for(device, wanted.joined_seq).is_none())
                .filter_map(|entry| entry.payload.clone())
                .collect();
            return self.arrive(wanted, last, payloads);
        }
        match timeout(STORE_DEADLINE, self.read(wanted, head)).await {
            Ok(Ok((last, payloads))) => self.arrive(wanted, last, payloads),
            Ok(Err(_)) | Err(_) => {
                sleep(Duration::from_millis(jitter(FAILED_PAUSE_MS.0, FAILED_PAUSE_MS.1))).await;
                self.listener.more(wanted.key);
                Vec::new()
            }
        }
    }

    async fn read(
        &self,
        wanted: &Wanted,
        head: u64,
    ) -> Result<(u64, Vec<Arc<Payload>>), StoreError> {
        let request = PageRequest {
            key: wanted.key,
            after: wanted.after,
            up_to: head,
            reader: self.listener.device,
            joined_seq: wanted.joined_seq,
            entries_max: STREAM_PAGE_ENTRIES_MAX,
            bytes_max: STREAM_PAGE_BYTES_MAX,
        };
        // The semaphore is never closed; if it were, reading without a turn is still correct.
        let turn = self.shared.stream_reads.acquire().await;
        let page = self.shared.store.read_page(&request).await?;
        drop(turn);
        let incarnation = self.shared.store.incarnation();
        // An empty page says that nothing is kept up to the head, as below a floor that has risen.
        let last = page.last().map_or(head, |entry| entry.seq);
        let payloads = page
            .into_iter()
            .filter(|entry| !is_control(entry))
            .filter_map(|entry| Payload::stored(wanted.key, wanted.id, incarnation, entry))
            .map(Arc::new)
            .collect();
        Ok((last, payloads))
    }

    /// Moves on to `last`, and drops what the device had acked before.
    fn arrive(
        &self,
        wanted: &Wanted,
        last: u64,
        mut payloads: Vec<Arc<Payload>>,
    ) -> Vec<Arc<Payload>> {
        let mut inner = self.listener.inner.lock();
        // It may have left meanwhile, and even joined again.
        let place = inner.logs.get_mut(&wanted.key);
        let Some(place) = place.filter(|place| place.joined_seq == wanted.joined_seq) else {
            return Vec::new();
        };
        place.after = last;
        place.dirty |= wanted.presence.head().seq > last;
        payloads.retain(|payload| !place.acked.contains(payload.id.seq));
        if place.acked.highest() <= last {
            place.acked = AckSet::new();
        }
        payloads
    }
}

fn is_control(entry: &crate::ports::StoredEntry) -> bool {
    entry.header.decode().is_ok_and(|header| header.kind == sealwire_protocol::Kind::Control)
}

impl Drop for PayloadStream {
    fn drop(&mut self) {
        gauge!(STREAMS).decrement(1.0);
        self.shared.registry.close_stream(&self.listener);
    }
}

impl Registry {
    /// Ends every stream.
    pub(crate) fn end_streams(&self) {
        for listener in self.listeners() {
            listener.end();
        }
    }
}
