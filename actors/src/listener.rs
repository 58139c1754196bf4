//! What the registry knows of a stream: whose it is, what it is about, and where it stands.
//!
//! A stream has no queue. It knows up to where it has given each log and whether there may be more;
//! whoever publishes only says so, and never waits. The streams themselves
//! ([`crate::totals::stream`], [`crate::vaults`]) fetch what there is.
//!
//! Lock order: a log's streams, then a listener. Nothing is awaited under either.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use metrics::gauge;
use parking_lot::Mutex;
use sealwire_protocol::{AckSet, DeviceKey, Digest, LogId};
use tokio::sync::Notify;

use crate::metrics::STREAMS;
use crate::ports::{LogKey, Position, SubscriptionRecord};
use crate::registry::{Presence, Registry};
use crate::system::Shared;
use crate::totals::payload::Payload;

/// What a stream is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The payloads of one group, for as long as the phone listens, also over leaving and rejoining.
    One(LogKey),
    /// The payloads of every `totals` group of the device.
    All,
    /// Changes of the device's groups.
    Changes,
    /// The entries of one vault.
    Vault(LogKey),
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
    /// A vault refuses entries because it is full, and that is still to be told.
    full: bool,
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
            // A vault's stream is begun by its opening, and ends with its device's enrolment.
            Scope::Changes | Scope::Vault(_) => false,
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

    /// Begins in a vault: what there is, is asked for page by page.
    pub(crate) fn begin_vault(&self, key: LogKey, id: LogId, presence: Arc<Presence>) {
        let start = Position { seq: 0, chain: Digest::ZERO };
        let record =
            SubscriptionRecord { head: start, floor: start, joined_seq: 0, acked: AckSet::new() };
        self.begin(key, id, presence, &record, false);
    }

    /// The device is no member any more.
    pub(crate) fn gone(&self, key: LogKey) {
        self.inner.lock().logs.remove(&key);
        if self.scope == Scope::Vault(key) {
            self.end();
        }
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

    /// The vault takes no more.
    pub(crate) fn full(&self) {
        if matches!(self.scope, Scope::Vault(_)) {
            self.inner.lock().full = true;
            self.wake.notify_one();
        }
    }

    pub(crate) fn take_full(&self) -> bool {
        std::mem::take(&mut self.inner.lock().full)
    }

    /// The device's recovery vault was fetched.
    pub(crate) fn fetched(&self, at: u64) {
        if self.scope == Scope::Changes {
            self.inner.lock().fetched = Some(at);
            self.wake.notify_one();
        }
    }

    pub(crate) fn take_fetched(&self) -> Option<u64> {
        self.inner.lock().fetched.take()
    }

    /// Ends the stream: its phone comes back and is given everything anew.
    pub(crate) fn end(&self) {
        self.inner.lock().ended = true;
        self.wake.notify_one();
    }

    /// Whether it has ended, and whether the device's groups have changed.
    pub(crate) fn state(&self) -> (bool, bool) {
        let inner = self.inner.lock();
        (inner.ended, inner.changed)
    }

    /// Takes the news that groups have changed; false if the stream has ended.
    pub(crate) fn take_changed(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.changed = false;
        !inner.ended
    }

    /// Resolves when something has happened since it last did.
    pub(crate) async fn woken(&self) {
        self.wake.notified().await;
    }

    /// The next log in which there may be more. What is published from now on marks it again.
    pub(crate) fn wanted(&self) -> Option<Wanted> {
        let mut inner = self.inner.lock();
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

    /// Moves on to `last`, and drops what the device had acked before.
    pub(crate) fn arrive(
        &self,
        wanted: &Wanted,
        last: u64,
        mut payloads: Vec<Arc<Payload>>,
    ) -> Vec<Arc<Payload>> {
        let mut inner = self.inner.lock();
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

    /// The logs that it stands in.
    pub(crate) fn followed(&self) -> Vec<LogKey> {
        self.inner.lock().logs.keys().copied().collect()
    }
}

/// A page to fetch.
pub(crate) struct Wanted {
    pub(crate) key: LogKey,
    pub(crate) id: LogId,
    pub(crate) presence: Arc<Presence>,
    pub(crate) after: u64,
    pub(crate) joined_seq: u64,
}

/// A listener that is registered: dropping it removes every trace of the stream.
pub(crate) struct Listening {
    pub(crate) shared: Arc<Shared>,
    pub(crate) listener: Arc<Listener>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        gauge!(STREAMS).decrement(1.0);
        self.shared.registry.close_stream(&self.listener);
    }
}

impl Shared {
    /// Registers a stream of a device.
    pub(crate) fn listen(self: &Arc<Self>, device: DeviceKey, scope: Scope) -> Listening {
        let listener = self.registry.open_stream(device, scope);
        gauge!(STREAMS).increment(1.0);
        // Looked at when the stream is registered: whoever drains has either seen it or is seen.
        if self.draining.load(Ordering::SeqCst) {
            listener.end();
        }
        self.note_seen(device);
        Listening { shared: self.clone(), listener }
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
