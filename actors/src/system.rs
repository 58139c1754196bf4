//! The actor system of one relay: what every part of it shares, how it starts, and how it ends.
//!
//! ```text
//! Supervisor ─┬─ Committer × n     replaced when one fails; its logs load anew
//!             ├─ Retention         replaced when it fails
//!             ├─ Push              replaced when it fails; absent without a push service
//!             └─ Logs ── Log × n   replaced when one fails with work or subscribers
//! Sessions    (socket tasks, each watched through a guard)
//! ```

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dashmap::DashMap;
use ed25519_dalek::SigningKey;
use parking_lot::{Mutex, RwLock};
use ractor::{ActorCell, ActorId};
use sealwire_protocol::bounded::BoundedBytes;
use sealwire_protocol::frame::Draining;
use sealwire_protocol::limits::{PROTOCOL_VERSION, TOKEN_LIFETIME};
use sealwire_protocol::token::{Claims, Purpose, TOKEN_BYTES, TokenKey};
use sealwire_protocol::{DeviceKey, Head, LogId, signing};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::committer::CommitterRef;
use crate::entry::CheckedEntry;
use crate::heartbeat;
use crate::limits::{
    DOORBELL_SETTLE, PENDING_READS_MAX, RECONNECT_AFTER_MS_MAX, RECONNECT_AFTER_MS_MIN,
    RETENTION_PAUSE, SEEN_DEVICES_MAX, SNAPSHOT_STANDS, STREAM_READS_MAX, VaultLimits,
};
use crate::log::{self, AppendRequest, LogMessage, LogRef};
use crate::pace::Paces;
use crate::passes::WaitingClaims;
use crate::ports::{Clock, LogKey, Position, Push, Store, StoreError};
use crate::push::doorstep::Doorstep;
use crate::push_token::WaitingDoorbells;
use crate::registry::{Registry, StartLog};
use crate::reply::{Budget, Reply, jitter};
use crate::session::ask;
use crate::supervisor;
use crate::turns::{Turn, Turns};
use crate::vaults::PushTurns;
use sealwire_protocol::close::CloseReason;

/// What an operator decides. It has no `Debug`: it holds keys.
pub struct Options {
    /// Most active groups of one device.
    pub groups_max: u32,
    /// How long a body that nobody has acked is kept.
    pub body_lifetime: Duration,
    /// Pause between two steps of retention.
    pub retention_pause: Duration,
    /// How much a vault may hold.
    pub vaults: VaultLimits,
    /// How long a snapshot stands before it counts as confirmed in a vault of one device.
    pub snapshot_stands: Duration,
    /// The push services that can ring doorbells; none to ring nobody.
    pub push: Vec<Arc<dyn Push>>,
    /// How long after the start it is looked who was not rung before it.
    pub doorbell_settle: Duration,
    /// The relay's key, which devices pin.
    pub relay_key: SigningKey,
    /// The first makes tokens; all check them.
    pub token_keys: Vec<TokenKey>,
}

impl Options {
    /// The defaults, with these keys.
    #[must_use]
    pub fn new(relay_key: SigningKey, token_keys: Vec<TokenKey>) -> Self {
        Self {
            groups_max: 6,
            body_lifetime: Duration::from_secs(30 * 24 * 3600),
            retention_pause: RETENTION_PAUSE,
            vaults: VaultLimits::default(),
            snapshot_stands: SNAPSHOT_STANDS,
            push: Vec::new(),
            doorbell_settle: DOORBELL_SETTLE,
            relay_key,
            token_keys,
        }
    }
}

/// What every part of the system can reach.
pub(crate) struct Shared {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) options: Options,
    pub(crate) budget: Arc<Budget>,
    pub(crate) turns: Turns,
    pub(crate) paces: Paces,
    /// Pages that streams read.
    pub(crate) stream_reads: Semaphore,
    /// Pending pages.
    pub(crate) pending_reads: Semaphore,
    pub(crate) heartbeats: heartbeat::Wheel,
    /// Devices that were seen and are still to be noted, to the day.
    pub(crate) seen: Mutex<HashSet<DeviceKey>>,
    /// Whose turn it is to push to a vault without a session.
    pub(crate) vault_turns: PushTurns,
    /// HTTP challenges that wait to be claimed.
    pub(crate) claims: WaitingClaims,
    /// Push tokens that wait to be noted.
    pub(crate) doorbells: WaitingDoorbells,
    /// Where logs leave word for whom something waits.
    pub(crate) doorstep: Doorstep,
    pub(crate) started_logs: DashMap<ActorId, (LogKey, LogRef)>,
    pub(crate) committers: RwLock<Vec<CommitterRef>>,
    pub(crate) logs_supervisor: RwLock<Option<ActorCell>>,
    /// No new sessions from now on.
    pub(crate) draining: AtomicBool,
    pub(crate) stopping: AtomicBool,
    /// Becomes true when the supervision tree has ended.
    pub(crate) ended: watch::Sender<bool>,
    /// When everything that lives was last looked at.
    pub(crate) looked: Mutex<Option<Instant>>,
    started: Instant,
    /// When the relay started, in milliseconds since the epoch.
    pub(crate) started_ms: u64,
    me: Weak<Self>,
}

impl Shared {
    /// The committer of a log: always the same one.
    pub(crate) fn committer(&self, key: LogKey) -> CommitterRef {
        let committers = self.committers.read();
        let index = key.0.unsigned_abs() as usize % committers.len();
        committers[index].clone()
    }

    /// Requests that wait for the committer for which most do.
    pub(crate) fn busiest_committer(&self) -> usize {
        self.committers.read().iter().map(CommitterRef::depth).max().unwrap_or(0)
    }

    /// Makes a small write and waits for its result. A store with one writer makes it in its
    /// committer's queue; one with several makes it beside them, so that it does not wait for their
    /// batches.
    pub(crate) async fn run_job<T: Send + 'static>(
        &self,
        work: impl FnOnce(Arc<dyn Store>) -> Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>
        + Send
        + 'static,
    ) -> Result<T, StoreError> {
        if self.store.committers() > 1 {
            return self.turns.ask(Turn::Write, work(self.store.clone())).await;
        }
        let (done, result) = oneshot::channel::<Result<T, StoreError>>();
        let queued = self.committer(LogKey(0)).job(Box::new(move |store| {
            // Nobody waits for it any more: the device was told to come back, and doing it now would
            // only keep others waiting.
            let work = (!done.is_closed()).then(|| ask(work(store)));
            Box::pin(async move {
                if let Some(work) = work {
                    // Whoever asked may go meanwhile; the write stands all the same.
                    let _ = done.send(work.await);
                }
            })
        }));
        if !queued {
            return Err(StoreError::Unavailable);
        }
        ask(async { result.await.unwrap_or(Err(StoreError::Unavailable)) }).await
    }

    /// Hands a message to a log. One that cannot be taken is dropped, which answers its request.
    pub(crate) fn cast_log(&self, key: LogKey, message: LogMessage) {
        drop(self.registry.cast_log(self, key, message));
    }

    /// Hands checked entries to their log.
    pub(crate) fn cast_append(
        &self,
        sender: DeviceKey,
        key: LogKey,
        entries: Vec<CheckedEntry>,
        reply: Reply,
    ) {
        let request = AppendRequest { sender, entries, reserved: false, reply };
        self.cast_log(key, LogMessage::Append(Box::new(request)));
    }

    /// Hands the first entry of a new member to its log. See [`AppendRequest::reserved`].
    pub(crate) fn cast_join(
        &self,
        sender: DeviceKey,
        key: LogKey,
        entries: Vec<CheckedEntry>,
        reserved: bool,
        reply: Reply,
    ) {
        let request = AppendRequest { sender, entries, reserved, reply };
        self.cast_log(key, LogMessage::Append(Box::new(request)));
    }

    /// A position as devices know it.
    pub(crate) fn head(&self, position: Position) -> Head {
        let incarnation = self.store.incarnation();
        Head { incarnation, seq: position.seq, chain: position.chain }
    }

    /// Seconds since the relay started.
    pub(crate) fn uptime_s(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// A token that opens a session of this device without a signature.
    pub(crate) fn resume_token(&self, device: DeviceKey) -> BoundedBytes<TOKEN_BYTES> {
        let issued = self.clock.now_ms() / 1000;
        let claims = Claims {
            purpose: Purpose::Resume,
            device,
            log: LogId::ZERO,
            issued,
            expires: issued + TOKEN_LIFETIME.as_secs(),
        };
        self.issue(&claims)
    }

    /// A token that says so.
    pub(crate) fn issue(&self, claims: &Claims) -> BoundedBytes<TOKEN_BYTES> {
        let token = self.options.token_keys.first().map(|key| key.issue(claims).to_vec());
        BoundedBytes::new(token.unwrap_or_default()).unwrap_or_default()
    }

    /// Whether a token opens a session of this device.
    pub(crate) fn may_resume(&self, device: DeviceKey, token: &[u8]) -> bool {
        let now = self.clock.now_ms() / 1000;
        self.options
            .token_keys
            .iter()
            .filter_map(|key| key.check(token, Purpose::Resume, now).ok())
            .any(|claims| claims.device == device)
    }

    /// Remembers that a device was here, to be noted by retention; a device that does not fit is
    /// noted another day.
    pub(crate) fn note_seen(&self, device: DeviceKey) {
        let mut seen = self.seen.lock();
        if seen.len() < SEEN_DEVICES_MAX {
            seen.insert(device);
        }
    }

    pub(crate) fn relay_device(&self) -> DeviceKey {
        signing::device_key(&self.options.relay_key)
    }
}

impl StartLog for Shared {
    fn start(&self, key: LogKey) -> Option<LogRef> {
        if self.stopping.load(Ordering::Relaxed) {
            return None;
        }
        let supervisor = self.logs_supervisor.read().clone()?;
        log::start(key, self.me.upgrade()?, supervisor)
    }
}

/// A running relay's actors.
pub struct System {
    pub(crate) shared: Arc<Shared>,
    root: ActorCell,
}

/// The system could not be started.
#[derive(Debug, thiserror::Error)]
#[error("the actors could not be started")]
pub struct StartError;

impl System {
    /// Starts the supervisors, committers and retention over an open store.
    ///
    /// # Errors
    /// [`StartError`] if an actor could not be spawned, or no token key was given.
    pub async fn start(
        store: Arc<dyn Store>,
        clock: Arc<dyn Clock>,
        options: Options,
    ) -> Result<Self, StartError> {
        if options.token_keys.is_empty() {
            return Err(StartError);
        }
        let (incarnation, started_ms) = (store.incarnation(), clock.now_ms());
        let doorstep = Doorstep::new(!options.push.is_empty());
        let shared = Arc::new_cyclic(|me| Shared {
            store,
            clock,
            registry: Arc::new(Registry::new(incarnation)),
            options,
            budget: Arc::new(Budget::default()),
            turns: Turns::new(),
            paces: Paces::default(),
            stream_reads: Semaphore::new(STREAM_READS_MAX),
            pending_reads: Semaphore::new(PENDING_READS_MAX),
            heartbeats: heartbeat::Wheel::default(),
            seen: Mutex::new(HashSet::new()),
            vault_turns: PushTurns::default(),
            claims: Mutex::default(),
            doorbells: Mutex::default(),
            doorstep,
            started_logs: DashMap::new(),
            committers: RwLock::new(Vec::new()),
            logs_supervisor: RwLock::new(None),
            draining: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            ended: watch::Sender::new(false),
            looked: Mutex::default(),
            started: Instant::now(),
            started_ms,
            me: me.clone(),
        });
        let root = supervisor::start(shared.clone()).await.map_err(|_| StartError)?;
        heartbeat::run(Arc::downgrade(&shared));
        Ok(Self { shared, root })
    }

    /// Who is here.
    #[must_use]
    pub fn registry(&self) -> &Arc<Registry> {
        &self.shared.registry
    }

    /// The store that the system works on.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// Whether the actors are alive. If not, the process must be started anew.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !*self.shared.ended.borrow()
    }

    /// Resolves when the actors have ended, which only a bug or [`System::stop`] makes them do.
    pub fn ended(&self) -> impl Future<Output = ()> + use<> {
        let mut ended = self.shared.ended.subscribe();
        async move {
            // An error means that the system is gone altogether.
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }

    /// Lowest and highest protocol version that is spoken.
    #[must_use]
    pub fn versions(&self) -> (u16, u16) {
        (PROTOCOL_VERSION, PROTOCOL_VERSION)
    }

    /// Asks every session to leave: each is given a jittered time to come back after, and a token
    /// to come back with, and is closed once its requests are answered.
    pub async fn drain_sessions(&self, deadline: Instant) {
        self.shared.draining.store(true, Ordering::SeqCst);
        self.shared.registry.end_streams();
        for outbox in self.shared.registry.sessions() {
            let draining = Draining {
                reconnect_after_ms: jitter(RECONNECT_AFTER_MS_MIN, RECONNECT_AFTER_MS_MAX),
                resume_token: self.shared.resume_token(outbox.device),
            };
            outbox.answer(0, &draining.into());
        }
        // The requests under way are answered before their session closes.
        let answered = async {
            while self.shared.registry.sessions().iter().any(|outbox| outbox.in_flight().any()) {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = timeout_at(deadline, answered).await;
        for outbox in self.shared.registry.sessions() {
            outbox.close(CloseReason::GoingAway);
        }
        let gone = async {
            while self.shared.registry.session_count() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = timeout_at(deadline, gone).await;
    }

    /// Flushes what logs hold, and stops every actor: first politely, then at the deadline.
    pub async fn stop(&self, deadline: Instant) {
        let mut flushes = Vec::new();
        for (_, log) in self.shared.registry.active_logs() {
            let (done, flushed) = oneshot::channel();
            if log.post(LogMessage::Flush(done)).is_ok() {
                flushes.push(flushed);
            }
        }
        let all = async {
            for flushed in flushes {
                // An error says that there was nothing to flush.
                let _ = flushed.await;
            }
        };
        let _ = timeout_at(deadline, all).await;
        self.shared.stopping.store(true, Ordering::Relaxed);
        let left =
            deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(50));
        if timeout(left, self.root.stop_and_wait(None, None)).await.is_err() {
            self.root.kill();
        }
    }
}
