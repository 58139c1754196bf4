//! Who is here: sessions by device, subscribers by log, and the actors of active logs.
//!
//! The registry outlives log actors, so that a subscribed, silent log costs a [`Presence`] and no
//! actor. It decides nothing about order: it hands messages to the one actor of a log, starting it
//! when it is first needed, and hands what has been published to whoever listens.
//!
//! Lock order: shard of a map, then a log's subscribers, then an outbox, then a log's head. Nothing
//! is awaited under any of them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use crate::entry::Published;
use crate::limits::{RING_BYTES_MAX, RING_ENTRIES_MAX, STREAMS_PER_DEVICE_MAX};
use crate::listener::{Listener, Scope};
use crate::log::{LogMessage, LogRef};
use crate::mailbox::Refused;
use crate::metrics::{ActorKind, Alive, SESSIONS};
use crate::outbox::Outbox;
use crate::ports::{LogKey, LogPlace, Position, SubscriptionRecord};
use crate::unheard::{Missed, Unheard};
use dashmap::DashMap;
use metrics::gauge;
use parking_lot::Mutex;
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::frame::{MembershipState, RecoveryFetched, Superseded};
use sealwire_protocol::limits::INSTANCES_MAX;
use sealwire_protocol::{AckSet, DeviceKey, Digest, Instance, RelayFrame};

/// A log with subscribers here: its newest committed head and their outboxes.
pub(crate) struct Presence {
    head: Mutex<Position>,
    subscribers: Mutex<Vec<Arc<Outbox>>>,
    streams: Mutex<Vec<Arc<Listener>>>,
    ring: Mutex<Option<Box<Ring>>>,
    /// How often the log was found to have lost history.
    losses: AtomicU64,
}

/// The last frames of a busy log.
#[derive(Default)]
struct Ring {
    entries: VecDeque<Arc<Published>>,
    bytes: usize,
}

impl Presence {
    fn new() -> Self {
        Self {
            head: Mutex::new(Position { seq: 0, chain: Digest::ZERO }),
            subscribers: Mutex::new(Vec::new()),
            streams: Mutex::new(Vec::new()),
            ring: Mutex::new(None),
            losses: AtomicU64::new(0),
        }
    }

    /// How often the log was found to have lost history: what was checked before the last time was
    /// checked against another log.
    pub(crate) fn losses(&self) -> u64 {
        self.losses.load(Ordering::Acquire)
    }

    /// The newest committed head that is known here.
    pub(crate) fn head(&self) -> Position {
        *self.head.lock()
    }

    /// Learns of a committed head; an older one is nothing new.
    pub(crate) fn raise_head(&self, position: Position) {
        let mut head = self.head.lock();
        if position.seq > head.seq {
            *head = position;
        }
    }

    /// The published entries after `after`, from the ring, if it goes back that far.
    pub(crate) fn recent(&self, after: u64) -> Vec<Arc<Published>> {
        let ring = self.ring.lock();
        let Some(ring) = ring.as_deref() else {
            return Vec::new();
        };
        let starts = ring.entries.front().map(|entry| entry.seq);
        if starts.is_none_or(|first| first > after + 1) {
            return Vec::new();
        }
        ring.entries.iter().filter(|entry| entry.seq > after).cloned().collect()
    }

    /// Tells every subscriber something that is no entry.
    pub(crate) fn tell_all(&self, frame: &RelayFrame) {
        for outbox in self.subscribers.lock().iter() {
            outbox.answer(0, frame);
        }
    }

    /// Tells every reader of a vault that streams that it takes no more.
    pub(crate) fn tell_streams_full(&self) {
        for stream in self.streams.lock().iter() {
            stream.full();
        }
    }

    /// The devices that listen.
    pub(crate) fn devices(&self) -> Vec<DeviceKey> {
        let mut devices: Vec<DeviceKey> =
            self.subscribers.lock().iter().map(|outbox| outbox.device).collect();
        devices.extend(self.streams.lock().iter().map(|stream| stream.device));
        devices.sort_unstable();
        devices.dedup();
        devices
    }

    /// Whether anybody listens.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.subscribers.lock().is_empty() || !self.streams.lock().is_empty()
    }

    /// Tells every stream that there may be more.
    fn wake_streams(&self, key: LogKey) {
        for stream in self.streams.lock().iter() {
            stream.more(key);
        }
    }

    fn remember(&self, entries: &[Arc<Published>]) {
        let mut ring = self.ring.lock();
        let ring = ring.get_or_insert_default();
        for entry in entries {
            // A ring with a hole would hide entries: begin anew after one.
            if ring.entries.back().is_some_and(|last| last.seq + 1 != entry.seq) {
                ring.entries.clear();
                ring.bytes = 0;
            }
            ring.bytes += entry.bytes;
            ring.entries.push_back(entry.clone());
        }
        while ring.entries.len() > RING_ENTRIES_MAX || ring.bytes > RING_BYTES_MAX {
            if let Some(oldest) = ring.entries.pop_front() {
                ring.bytes -= oldest.bytes;
            }
        }
    }
}

/// Starts log actors; implemented by the `Logs` supervisor's handle.
pub(crate) trait StartLog: Send + Sync {
    /// Starts the actor of a log; `None` while the relay is stopping.
    fn start(&self, key: LogKey) -> Option<LogRef>;
}

/// See the module's header.
pub struct Registry {
    presences: DashMap<LogKey, Arc<Presence>>,
    logs: DashMap<LogKey, LogRef>,
    sessions: DashMap<DeviceKey, Vec<Arc<Outbox>>>,
    listeners: DashMap<DeviceKey, Vec<Arc<Listener>>>,
    unheard: Unheard,
    next_session: AtomicU64,
    incarnation: u64,
}

impl Registry {
    pub(crate) fn new(incarnation: u64) -> Self {
        Self {
            presences: DashMap::new(),
            logs: DashMap::new(),
            sessions: DashMap::new(),
            listeners: DashMap::new(),
            unheard: Unheard::new(),
            next_session: AtomicU64::new(1),
            incarnation,
        }
    }

    // ---- sessions

    /// Opens a session's outbox. The same device and instance supersedes the older session; more
    /// than [`INSTANCES_MAX`] instances are refused.
    pub(crate) fn open_session(
        self: &Arc<Self>,
        device: DeviceKey,
        instance: Instance,
        window: Option<u64>,
    ) -> Option<SessionGuard> {
        let id = self.next_session.fetch_add(1, Ordering::Relaxed);
        let outbox = Outbox::new(id, device, instance, self.incarnation, window);
        let superseded = {
            let mut sessions = self.sessions.entry(device).or_default();
            let older = sessions.iter().position(|other| other.instance == instance);
            let older = older.map(|index| sessions.remove(index));
            if sessions.len() >= INSTANCES_MAX {
                return None;
            }
            sessions.push(outbox.clone());
            older
        };
        if let Some(older) = superseded {
            older.answer(0, &Superseded {}.into());
            older.close(CloseReason::Superseded);
            // Its socket may take long to close; what it would be offered is the newer one's.
            for key in older.subscribed() {
                self.unsubscribe(key, &older);
            }
        }
        gauge!(SESSIONS).increment(1.0);
        Some(SessionGuard {
            registry: self.clone(),
            outbox,
            _alive: Alive::new(ActorKind::Session),
        })
    }

    /// The open sessions.
    #[must_use]
    pub fn sessions(&self) -> Vec<Arc<Outbox>> {
        self.sessions.iter().flat_map(|entry| entry.value().clone()).collect()
    }

    /// Looks at every session, under the lock of its part of the map.
    pub(crate) fn each_session(&self, mut look: impl FnMut(&Outbox)) {
        for sessions in &self.sessions {
            sessions.value().iter().for_each(|outbox| look(outbox));
        }
    }

    /// Looks at the actor of every active log, in the same way.
    pub(crate) fn each_log(&self, mut look: impl FnMut(&LogRef)) {
        self.logs.iter().for_each(|log| look(log.value()));
    }

    /// How many sessions are open.
    #[must_use]
    pub fn session_count(&self) -> usize {
        self.sessions.iter().map(|entry| entry.value().len()).sum()
    }

    fn close_session(&self, outbox: &Arc<Outbox>) {
        for key in outbox.subscribed() {
            self.unsubscribe(key, outbox);
        }
        if let Some(mut sessions) = self.sessions.get_mut(&outbox.device) {
            sessions.retain(|other| other.id != outbox.id);
        }
        self.sessions.remove_if(&outbox.device, |_, sessions| sessions.is_empty());
        gauge!(SESSIONS).decrement(1.0);
    }

    /// Whether a device has an outbox: a session, or a stream of payloads.
    pub(crate) fn is_here(&self, device: DeviceKey) -> bool {
        let streams = |listeners: &Vec<Arc<Listener>>| {
            listeners.iter().any(|listener| listener.scope != Scope::Changes)
        };
        self.sessions.get(&device).is_some_and(|sessions| !sessions.is_empty())
            || self.listeners.get(&device).is_some_and(|listeners| streams(&listeners))
    }

    fn sessions_of(&self, device: DeviceKey) -> Vec<Arc<Outbox>> {
        self.sessions.get(&device).map(|sessions| sessions.clone()).unwrap_or_default()
    }

    // ---- subscriptions

    /// Adds an outbox to a log's subscribers and gives the log's presence. What is published from
    /// now on is offered to it.
    pub(crate) fn subscribe(&self, key: LogKey, outbox: &Arc<Outbox>) -> Arc<Presence> {
        let presence = self.presences.entry(key).or_insert_with(|| Arc::new(Presence::new()));
        let mut subscribers = presence.subscribers.lock();
        if !subscribers.iter().any(|other| other.id == outbox.id) {
            subscribers.push(outbox.clone());
        }
        drop(subscribers);
        presence.value().clone()
    }

    /// Ends a subscription.
    pub(crate) fn unsubscribe(&self, key: LogKey, outbox: &Outbox) {
        outbox.unsubscribe(key);
        if let Some(presence) = self.presences.get(&key) {
            presence.subscribers.lock().retain(|other| other.id != outbox.id);
        }
        self.forget_presence(key);
    }

    /// The presence of a log, for its actor; made if there is none.
    pub(crate) fn presence(&self, key: LogKey) -> Arc<Presence> {
        self.presences.entry(key).or_insert_with(|| Arc::new(Presence::new())).value().clone()
    }

    /// Drops a presence that nobody needs: no subscriber, and nobody who holds it.
    pub(crate) fn forget_presence(&self, key: LogKey) {
        self.presences.remove_if(&key, |_, presence| {
            !presence.is_wanted() && Arc::strong_count(presence) == 1
        });
    }

    // ---- publishing

    /// Publishes entries that are durable: first the head, then the entries, to every subscriber.
    pub(crate) fn publish(
        &self,
        key: LogKey,
        presence: &Presence,
        position: Position,
        entries: &[Arc<Published>],
    ) {
        presence.raise_head(position);
        if !presence.is_wanted() {
            return;
        }
        let subscribers = presence.subscribers.lock();
        presence.remember(entries);
        for outbox in subscribers.iter() {
            outbox.offer(key, entries);
        }
        drop(subscribers);
        presence.wake_streams(key);
    }

    /// Publishes the head of a log that was just loaded. Subscribers that stand before it catch up;
    /// if it is *behind* what was published, history was lost, and they are told.
    pub(crate) fn publish_loaded(&self, key: LogKey, presence: &Presence, position: Position) {
        let lost = {
            let mut head = presence.head.lock();
            let lost = head.seq > position.seq
                || (head.seq == position.seq && head.seq > 0 && head.chain != position.chain);
            if lost || position.seq > head.seq {
                *head = position;
            }
            lost
        };
        if lost {
            *presence.ring.lock() = None;
            let subscribers = std::mem::take(&mut *presence.subscribers.lock());
            tracing::warn!(log = key.0, "history of a log was lost; its subscribers are told");
            for outbox in subscribers {
                outbox.history_changed(key, position);
            }
            let streams = presence.streams.lock().clone();
            streams.iter().for_each(|stream| stream.end());
            // After the subscriptions have gone: whoever still saw one has read the number before.
            presence.losses.fetch_add(1, Ordering::Release);
            return;
        }
        presence.wake_streams(key);
        // Whoever stands before this head is behind now; an offer of nothing marks nobody, so the
        // outboxes are told of the gap by the head itself.
        for outbox in presence.subscribers.lock().iter() {
            outbox.check_head(key, position.seq);
        }
    }

    /// Tells the sessions of a device that it is a member of a log, those that do not know.
    pub(crate) fn member_joined(&self, device: DeviceKey, log: LogPlace, seq: u64) {
        for outbox in self.sessions_of(device) {
            if outbox.log_place(log.id).is_none() {
                outbox.member_joined(log, seq);
            }
        }
        let LogPlace { id, key, .. } = log;
        for listener in self.listeners_of(device) {
            if listener.wants(key, id) {
                let presence = self.follow(key, &listener);
                // A new member waits for nothing before its joining, and has acked nothing after.
                let start = Position { seq: 0, chain: Digest::ZERO };
                let record = SubscriptionRecord {
                    head: start,
                    floor: start,
                    joined_seq: seq,
                    acked: AckSet::new(),
                };
                listener.begin(key, id, presence, &record, true);
            }
        }
    }

    /// Tells the sessions of a device that it is no member of a log any more, and ends their
    /// subscriptions.
    pub(crate) fn member_gone(
        &self,
        device: DeviceKey,
        key: LogKey,
        state: MembershipState,
        seq: u64,
    ) {
        for outbox in self.sessions_of(device) {
            outbox.member_gone(key, state, seq);
        }
        for listener in self.listeners_of(device) {
            listener.gone(key);
        }
        let presence = self.presences.get(&key).map(|presence| presence.value().clone());
        if let Some(presence) = presence {
            presence.streams.lock().retain(|stream| stream.device != device);
            // Also one that is no session any more and has not gone yet.
            presence.subscribers.lock().retain(|other| {
                if other.device == device {
                    other.member_gone(key, state, seq);
                }
                other.device != device
            });
        }
    }

    // ---- streams

    /// Opens a stream. Beyond [`STREAMS_PER_DEVICE_MAX`] the device's oldest one ends: its phone is
    /// the one that has gone.
    pub(crate) fn open_stream(&self, device: DeviceKey, scope: Scope) -> Arc<Listener> {
        let listener = Listener::new(device, scope);
        let oldest = {
            let mut listeners = self.listeners.entry(device).or_default();
            let oldest = (listeners.len() >= STREAMS_PER_DEVICE_MAX).then(|| listeners.remove(0));
            listeners.push(listener.clone());
            oldest
        };
        if let Some(oldest) = oldest {
            oldest.end();
        }
        if self.missed_by(device) == Missed::Something {
            listener.changed();
        }
        listener
    }

    /// Adds a stream to those of a log, and gives the log's presence.
    pub(crate) fn follow(&self, key: LogKey, listener: &Arc<Listener>) -> Arc<Presence> {
        let presence = self.presences.entry(key).or_insert_with(|| Arc::new(Presence::new()));
        let mut streams = presence.streams.lock();
        if !streams.iter().any(|other| other.id == listener.id) {
            streams.push(listener.clone());
        }
        drop(streams);
        presence.value().clone()
    }

    /// Takes a stream out of a log again.
    pub(crate) fn unfollow(&self, key: LogKey, listener: &Listener) {
        listener.gone(key);
        if let Some(presence) = self.presences.get(&key) {
            presence.streams.lock().retain(|other| other.id != listener.id);
        }
        self.forget_presence(key);
    }

    /// Removes every trace of a stream.
    pub(crate) fn close_stream(&self, listener: &Listener) {
        if let Some(mut listeners) = self.listeners.get_mut(&listener.device) {
            listeners.retain(|other| other.id != listener.id);
        }
        self.listeners.remove_if(&listener.device, |_, listeners| listeners.is_empty());
        for key in listener.followed() {
            self.unfollow(key, listener);
        }
        if listener.scope == Scope::Changes {
            self.unheard.gone(listener.device);
        }
    }

    /// What a device has missed of the changes of its groups.
    pub(crate) fn missed_by(&self, device: DeviceKey) -> Missed {
        self.unheard.missed_by(device)
    }

    /// Tells devices that their groups have changed. `by`: those that have done it themselves.
    pub(crate) fn groups_changed(
        &self,
        devices: impl Iterator<Item = DeviceKey>,
        by: &[DeviceKey],
    ) {
        for device in devices {
            let listeners = self.listeners_of(device);
            let listening = listeners.iter().any(|listener| listener.scope == Scope::Changes);
            self.unheard.changed(device, !listening && !by.contains(&device));
            for listener in listeners {
                listener.changed();
            }
        }
    }

    /// Tells whoever is here as this device that its recovery vault was fetched.
    pub(crate) fn recovery_fetched(&self, device: DeviceKey, at: u64) {
        let told = RecoveryFetched { at }.into();
        for outbox in self.sessions_of(device) {
            outbox.answer(0, &told);
        }
        for listener in self.listeners_of(device) {
            listener.fetched(at);
        }
    }

    /// The open streams.
    pub(crate) fn listeners(&self) -> Vec<Arc<Listener>> {
        self.listeners.iter().flat_map(|entry| entry.value().clone()).collect()
    }

    fn listeners_of(&self, device: DeviceKey) -> Vec<Arc<Listener>> {
        self.listeners.get(&device).map(|listeners| listeners.clone()).unwrap_or_default()
    }

    // ---- log actors

    /// Hands a message to the actor of a log, starting it if there is none. Gives the message back
    /// if the actor's mailbox is full or the relay is stopping.
    pub(crate) fn cast_log(
        &self,
        starter: &dyn StartLog,
        key: LogKey,
        message: LogMessage,
    ) -> Result<(), LogMessage> {
        let mut message = message;
        // Each round either delivers, or removes an actor that takes no more and starts another; one
        // that was just started takes a message, so a second round is already rare.
        for _ in 0..4 {
            let found = self.logs.get(&key).map(|log| log.value().clone());
            let log = match found {
                Some(log) => log,
                None => match self.logs.entry(key) {
                    dashmap::Entry::Occupied(log) => log.get().clone(),
                    dashmap::Entry::Vacant(place) => {
                        let Some(log) = starter.start(key) else {
                            return Err(message);
                        };
                        place.insert(log.clone());
                        log
                    }
                },
            };
            match log.cast(message) {
                Ok(()) => return Ok(()),
                Err(Refused::Full(back)) => return Err(back),
                Err(Refused::Gone(back)) => {
                    message = back;
                    self.logs.remove_if(&key, |_, other| other.is_same(&log));
                }
            }
        }
        Err(message)
    }

    /// Forgets the actor of a log that has ended.
    pub(crate) fn log_ended(&self, key: LogKey, ended: &LogRef) {
        self.logs.remove_if(&key, |_, log| log.is_same(ended));
        if let Some(presence) = self.presences.get(&key) {
            *presence.ring.lock() = None;
        }
        self.forget_presence(key);
    }

    /// Replaces the actor of a log that failed, so that its subscribers hear what was committed.
    pub(crate) fn replace_log(&self, starter: &dyn StartLog, key: LogKey, failed: &LogRef) {
        self.logs.remove_if(&key, |_, log| log.is_same(failed));
        if let dashmap::Entry::Vacant(place) = self.logs.entry(key)
            && let Some(log) = starter.start(key)
        {
            place.insert(log);
        }
    }

    /// The actors that are alive, to be stopped.
    pub(crate) fn active_logs(&self) -> Vec<(LogKey, LogRef)> {
        self.logs.iter().map(|entry| (*entry.key(), entry.value().clone())).collect()
    }

    /// Gives back the room that a crowd has left: a map keeps the size of its fullest hour, so each
    /// is made to fit when three quarters of it are empty.
    pub(crate) fn shrink(&self) {
        fn fit<K: Eq + std::hash::Hash, V>(map: &DashMap<K, V>) {
            if map.len() < map.capacity() / 4 {
                map.shrink_to_fit();
            }
        }
        fit(&self.presences);
        fit(&self.logs);
        fit(&self.sessions);
    }

    /// How many log actors are alive.
    #[must_use]
    pub fn active_log_count(&self) -> usize {
        self.logs.len()
    }
}

/// A session's place in the registry: dropping it removes every trace, however the session ended.
pub struct SessionGuard {
    registry: Arc<Registry>,
    outbox: Arc<Outbox>,
    _alive: Alive,
}

impl SessionGuard {
    /// The session's outbox.
    #[must_use]
    pub fn outbox(&self) -> &Arc<Outbox> {
        &self.outbox
    }

    pub(crate) fn downgrade(&self) -> Weak<Outbox> {
        Arc::downgrade(&self.outbox)
    }
}

impl Drop for SessionGuard {
    fn drop(&mut self) {
        self.registry.close_session(&self.outbox);
    }
}
