//! Staying connected to one relay: the task behind a [`Connection`].
//!
//! It waits until no other process of this device talks to this relay, connects, moves frames
//! between the wire and the engine, and after a break comes back, later and later. Whatever it does
//! with the device's file happens on a thread that may block.
//!
//! Holds always:
//! - one process of a device numbers and sends entries to one relay: it holds a file lock;
//! - a relay whose key has changed, and a newer connection of this process, end it: a person, or
//!   that connection, decides;
//! - every wait ends: by a frame, a deadline, or the wish to stop.

mod after;

use std::fs::{File, OpenOptions, TryLockError};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use sealwire_protocol::RelayFrame;
use sealwire_protocol::codec::Envelope;
use sealwire_protocol::digest::sha256;
use sealwire_protocol::frame::SetPushToken;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, sleep_until, timeout};

use self::after::{After, after_break, after_end, after_error, failed, passes};
use crate::address::RelayUrl;
use crate::backoff::Backoff;
use crate::device::shared::Shared;
use crate::engine::{Engine, Now, Said};
use crate::error::{Error, StoreError};
use crate::event::Event;
use crate::store;
use crate::wire::{self, Session, Wire, WireError};

/// How often it is tried to become the process that talks to the relay.
const LOCK_POLL: Duration = Duration::from_millis(250);

/// Most frames that are taken in one transaction.
const GATHERED_FRAMES_MAX: usize = 512;

/// How long a connection must have lasted for the next attempt to be a first one.
const STABLE: Duration = Duration::from_secs(5);

/// How long to leave the device's file alone after it has failed.
const FILE_PAUSE: Duration = Duration::from_secs(2);

/// How long a connection may take to say goodbye.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// How a connection to a relay is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Another process of this device talks to this relay, and does it for this one, too.
    Standby,
    /// The relay is being reached.
    Connecting,
    /// It is up.
    Connected,
    /// It is down, and is tried again by itself.
    Waiting(WireError),
    /// It is over. A person, or whoever took its place, has to act first.
    Over(WireError),
    /// The device's file failed. A disk that is full, or a file that is in use, is tried again.
    Failed(StoreError),
    /// It was told to stop.
    Stopped,
}

/// A relay that this device stays connected to, for as long as this value lives.
pub struct Connection {
    stop: watch::Sender<bool>,
    status: watch::Receiver<Status>,
    task: JoinHandle<()>,
}

impl Connection {
    pub(crate) fn start(shared: Arc<Shared>, relay: RelayUrl) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (report, status) = watch::channel(Status::Connecting);
        let task = tokio::spawn(async move {
            let mut keeper = Keeper { shared, relay, report, stopped };
            let last = keeper.run().await;
            keeper.report.send_replace(last);
        });
        Self { stop, status, task }
    }

    /// How it is doing now.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// Waits until it is up, or another process is.
    ///
    /// # Errors
    /// [`Error::Timeout`]; [`Error::RelayKeyChanged`] and [`Error::Stopped`] when it will not be.
    pub async fn wait_connected(&self, deadline: Duration) -> Result<(), Error> {
        let mut status = self.status.clone();
        let up =
            status.wait_for(|status| !matches!(status, Status::Connecting | Status::Waiting(_)));
        let status = timeout(deadline, up).await.map_err(|_| Error::Timeout)?;
        match status.map_err(|_| Error::Stopped)?.clone() {
            Status::Connected | Status::Standby => Ok(()),
            Status::Over(WireError::RelayKeyChanged { pinned, presented }) => {
                Err(Error::RelayKeyChanged { pinned, presented })
            }
            Status::Failed(error) => Err(error.into()),
            Status::Over(_) | Status::Stopped | Status::Connecting | Status::Waiting(_) => {
                Err(Error::Stopped)
            }
        }
    }

    /// Ends it: what was taken is committed, and the relay is told goodbye.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        // It ends by itself within its own deadlines; whether it was cancelled makes no difference.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Keeper {
    shared: Arc<Shared>,
    relay: RelayUrl,
    report: watch::Sender<Status>,
    stopped: watch::Receiver<bool>,
}

impl Keeper {
    async fn run(&mut self) -> Status {
        let lock = match self.lock().await {
            Ok(Some(lock)) => Arc::new(lock),
            Ok(None) => return Status::Stopped,
            Err(error) => return Status::Failed(error),
        };
        let mut backoff = Backoff::new(self.shared.options.backoff);
        let mut token = None;
        loop {
            self.report.send_replace(Status::Connecting);
            let began = Instant::now();
            let after = self.connect_once(&lock, &mut token).await;
            if began.elapsed() >= STABLE {
                backoff.reset();
            }
            let (reason, wait) = match after {
                After::Again(reason, asked) => (reason, backoff.next(asked)),
                After::At(reason, wait) => (reason, wait),
                After::Over(reason) => {
                    self.tell_disconnected(&reason, None);
                    return Status::Over(reason);
                }
                After::Failed(error) if passes(error) => {
                    tracing::warn!(%error, "the device's file failed; trying again");
                    self.report.send_replace(Status::Failed(error));
                    let wait = backoff.next(FILE_PAUSE);
                    tokio::select! {
                        () = wish(&mut self.stopped) => return Status::Stopped,
                        () = sleep(wait) => continue,
                    }
                }
                After::Failed(error) => return Status::Failed(error),
                After::Stopped => return Status::Stopped,
            };
            self.tell_disconnected(&reason, Some(wait));
            self.report.send_replace(Status::Waiting(reason));
            tokio::select! {
                () = wish(&mut self.stopped) => return Status::Stopped,
                () = sleep(wait) => {}
            }
        }
    }

    /// Waits until this process is the one that talks to the relay.
    async fn lock(&mut self) -> Result<Option<File>, StoreError> {
        let name = format!("relay-{}.lock", &sha256(self.relay.as_str().as_bytes()).to_hex()[..16]);
        let path = self.shared.directory.join(name);
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
            self.report.send_replace(Status::Standby);
            tokio::select! {
                () = wish(&mut self.stopped) => return Ok(None),
                () = sleep(LOCK_POLL) => {}
            }
        }
    }

    /// One connection, from its beginning to its end.
    async fn connect_once(&mut self, lock: &Arc<File>, token: &mut Option<Vec<u8>>) -> After {
        let relay = self.relay.clone();
        let pinned = match self.shared.read(move |db| store::relay_key(db, &relay)).await {
            Ok(pinned) => pinned,
            Err(error) => return failed(&error),
        };
        let options = wire::Options {
            instance: self.shared.instance,
            relay: pinned,
            resume_token: token.take(),
            heartbeat: self.shared.options.heartbeat,
            ..wire::Options::default()
        };
        let connect = Box::pin(wire::connect(&self.relay, &self.shared.identity, &options));
        let connected = tokio::select! {
            () = wish(&mut self.stopped) => return After::Stopped,
            connected = connect => connected,
        };
        let (wire, session) = match connected {
            Ok(connected) => connected,
            Err(error) => return after_error(error),
        };
        if let Err(error) = self.shared.prune().await {
            return failed(&error);
        }
        if pinned.is_none() {
            let (relay, key) = (self.relay.clone(), session.relay);
            let pin = self.shared.write(move |db| store::pin_relay(db, &relay, key)).await;
            if let Err(error) = pin {
                return failed(&error);
            }
        }
        *token = Some(session.welcome.resume_token.to_vec());
        self.report.send_replace(Status::Connected);
        self.shared.tell(Event::Connected { relay: self.relay.clone() });
        self.converse(wire, &session, lock, token).await
    }

    /// Moves frames between the wire and the engine.
    async fn converse(
        &mut self,
        mut wire: Wire,
        session: &Session,
        lock: &Arc<File>,
        token: &mut Option<Vec<u8>>,
    ) -> After {
        let mut engine = Engine::new(
            self.shared.identity.clone(),
            self.shared.store.clone(),
            self.relay.clone(),
            lock.clone(),
        );
        let interval = Duration::from_secs(u64::from(session.welcome.heartbeat_s.max(1)));
        let mut heard = Instant::now();
        let mut ping_at = heard + interval;
        let mut outgoing = self.shared.outgoing.subscribe();
        let mut doorbell = self.shared.doorbell.subscribe();
        // A new session says it anew.
        doorbell.mark_changed();
        let mut seen_others = None;
        let mut step = Step::Wake;
        loop {
            let (returned, said) = match on_thread(engine, step).await {
                Ok(done) => done,
                Err(error) => return failed(&error),
            };
            engine = returned;
            let said = match said {
                Ok(said) => said,
                Err(error) => return After::Failed(error),
            };
            for (request, frame) in &said.frames {
                wire.queue_as(*request, frame);
            }
            self.shared.tell_all(said.live);
            self.shared.changed();
            if let Some(back) = &said.come_back {
                *token = Some(back.token.clone());
            }
            let come_back = said.come_back.map(|back| back.after);
            if let Some(end) = said.end {
                return after_end(end, come_back);
            }
            let silent_at = heard + interval * 2;
            let due = engine.deadline().unwrap_or(ping_at);
            step = tokio::select! {
                biased;
                () = wish(&mut self.stopped) => {
                    // Boxed with its deadline: goodbye is said once.
                    let _ = timeout(CLOSE_DEADLINE, Box::pin(wire.close())).await;
                    return After::Stopped;
                }
                gathered = gather(&mut wire) => match gathered {
                    Ok(frames) => {
                        heard = Instant::now();
                        Step::Frames(frames)
                    }
                    Err(error) => return after_break(error, come_back),
                },
                // The sender lives in what this task holds.
                _ = outgoing.changed() => Step::Wake,
                _ = doorbell.changed() => match doorbell.borrow_and_update().clone() {
                    Some(place) => Step::Doorbell(place),
                    None => Step::Wake,
                },
                () = sleep_until(silent_at.into()) => {
                    return After::Again(WireError::Silent, Duration::ZERO);
                }
                () = sleep_until(ping_at.into()) => {
                    ping_at += interval;
                    Step::Ping
                }
                () = sleep_until(due.into()) => Step::Wake,
                changed = self.shared.others_changed(&mut seen_others) => match changed {
                    Ok(()) => Step::Wake,
                    Err(error) => return failed(&error),
                },
            };
        }
    }

    fn tell_disconnected(&self, reason: &WireError, retry_in: Option<Duration>) {
        let relay = self.relay.clone();
        tracing::debug!(%relay, %reason, "disconnected");
        self.shared.tell(Event::Disconnected { relay, reason: reason.clone(), retry_in });
    }
}

/// What the engine is to do next.
enum Step {
    Wake,
    Ping,
    Doorbell(SetPushToken),
    Frames(Vec<Envelope<RelayFrame>>),
}

type Done = (Engine, Result<Said, StoreError>);

/// Runs the engine where it may block.
async fn on_thread(mut engine: Engine, step: Step) -> Result<Done, Error> {
    let work = move || {
        let now = Now::read();
        let said = match step {
            Step::Wake => engine.wake(now),
            Step::Ping => engine.ping(now),
            Step::Doorbell(place) => engine.doorbell(place, now),
            Step::Frames(frames) => engine.receive(frames, now),
        };
        (engine, said)
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Stopped)
}

/// The next frame and all that have come with it. Cancel-safe: only the first is waited for.
async fn gather(wire: &mut Wire) -> Result<Vec<Envelope<RelayFrame>>, WireError> {
    let mut frames = vec![wire.receive().await?];
    while frames.len() < GATHERED_FRAMES_MAX
        && let Some(Ok(frame)) = wire.receive().now_or_never()
    {
        frames.push(frame);
    }
    Ok(frames)
}

/// Waits for the wish to stop.
async fn wish(stopped: &mut watch::Receiver<bool>) {
    // If the sender is gone, the task is being aborted.
    let _ = stopped.wait_for(|stop| *stop).await;
}
