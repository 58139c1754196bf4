//! One device's conversation after its socket is open.
//!
//! A session is the task that serves its socket, together with what stands here: the greeting, the
//! proof, and what is done about each frame. The socket loop (in the relay crate) reads, hands the
//! bytes to [`Session::receive`], and writes what the [`Outbox`] holds; it decides nothing.
//!
//! Two states are two types: a [`Greeter`] hears nothing but `Authenticate`, and gives a [`Session`].
//!
//! Holds always:
//! - frames are acted on in the order in which they came: one that has to ask the store holds back
//!   the ones behind it, while the outbox goes on being written;
//! - what the session knows of its device's logs is a filter; the log or the store decides.

pub(crate) mod requests;
mod vaults;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use metrics::counter;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::codec::{DecodeError, decode_client, encode_relay};
use sealwire_protocol::frame::{Authenticate, Error, Greeting, LogSummary, Welcome};
use sealwire_protocol::handshake::{check_device, prove_relay};
use sealwire_protocol::limits::{HEARTBEAT_MAX, HEARTBEAT_MIN, PROTOCOL_VERSION};
use sealwire_protocol::{
    ClientFrame, DeviceKey, Digest, ErrorCode, Failure, Head, LogId, RelayFrame,
};
use tokio::time::timeout;

use crate::catch_up;
use crate::limits::STORE_DEADLINE;
use crate::mailbox::Handling;
use crate::metrics::{ActorKind, AuthFailure, FRAMES_IN};
use crate::outbox::Outbox;
use crate::ports::{LogBrief, LogKey, LogPlace, StoreError};
use crate::registry::SessionGuard;
use crate::reply::unavailable;
use crate::system::{Shared, System};
use crate::turns::Turn;

/// Frames that cannot be decoded, after which a session ends: a few may be a newer device's, more
/// are a bug or an attack.
const MALFORMED_FRAMES_MAX: u32 = 8;

/// What is still to be done about a frame.
pub enum Step {
    /// Nothing.
    Done,
    /// This, before the next frame is read.
    Later(Pin<Box<dyn Future<Output = ()> + Send>>),
    /// The session is over.
    Close(CloseReason),
}

/// A connection that has not proved its key.
pub struct Greeter {
    shared: Arc<Shared>,
    greeting: Bytes,
}

/// Why a connection did not become a session: what to send, and how to close.
pub struct Rejected {
    /// The last frame.
    pub frame: Bytes,
    /// The close reason.
    pub reason: CloseReason,
}

impl Greeter {
    /// Makes a greeting with a fresh challenge; `None` if there is no randomness to be had, without
    /// which nobody can be authenticated.
    #[must_use]
    pub fn new(system: &System) -> Option<Self> {
        let shared = system.shared.clone();
        let mut challenge = [0; 32];
        getrandom::fill(&mut challenge).ok()?;
        let greeting = Greeting {
            challenge: Digest(challenge),
            relay: shared.relay_device(),
            versions: system.versions(),
            capabilities: Bounded::default(),
            now: shared.clock.now_ms(),
        };
        let greeting = Bytes::from(encode_relay(0, &greeting.into()));
        Some(Self { shared, greeting })
    }

    /// The greeting frame to send.
    #[must_use]
    pub fn greeting(&self) -> Bytes {
        self.greeting.clone()
    }

    /// Hears the first frame. The welcome is in the session's outbox.
    ///
    /// # Errors
    /// What to send and how to close. A wrong key, a wrong proof, and an expired, forged or foreign
    /// token look alike.
    pub async fn authenticate(self, bytes: &[u8]) -> Result<Session, Rejected> {
        let envelope = decode_client(bytes).map_err(|_| {
            AuthFailure::Malformed.count();
            rejected(0, ErrorCode::Malformed, CloseReason::Malformed)
        })?;
        let request = envelope.request;
        let frame = match envelope.frame {
            Ok(ClientFrame::Authenticate(frame)) => frame,
            Ok(_) => {
                AuthFailure::Missing.count();
                let reason = CloseReason::AuthenticationFailed;
                return Err(rejected(request, ErrorCode::NotAuthenticated, reason));
            }
            Err(_) => {
                AuthFailure::Malformed.count();
                return Err(rejected(request, ErrorCode::Malformed, CloseReason::Malformed));
            }
        };
        counter!(FRAMES_IN, "frame" => "Authenticate").increment(1);
        if frame.version != PROTOCOL_VERSION {
            AuthFailure::Version.count();
            let reason = CloseReason::AuthenticationFailed;
            return Err(rejected(request, ErrorCode::VersionUnsupported, reason));
        }
        if let Some(failure) = self.unproved(&frame) {
            failure.count();
            let reason = CloseReason::AuthenticationFailed;
            return Err(rejected(request, ErrorCode::AuthenticationFailed, reason));
        }
        self.open(request, &frame).await
    }

    /// Why a frame does not prove its device; none if it does.
    fn unproved(&self, frame: &Authenticate) -> Option<AuthFailure> {
        let (proved, failure) = match (&frame.signature, &frame.token) {
            (Some(proof), _) => {
                (check_device(frame.device, &self.greeting, proof).is_ok(), AuthFailure::Proof)
            }
            (None, Some(token)) => {
                (self.shared.may_resume(frame.device, token), AuthFailure::Token)
            }
            (None, None) => (false, AuthFailure::Missing),
        };
        (!proved).then_some(failure)
    }

    async fn open(self, request: u32, frame: &Authenticate) -> Result<Session, Rejected> {
        let shared = self.shared;
        let draining = || rejected(request, ErrorCode::Draining, CloseReason::GoingAway);
        let Some(guard) = shared.registry.open_session(frame.device, frame.instance, frame.window)
        else {
            let reason = CloseReason::TooManyInstances;
            return Err(rejected(request, ErrorCode::TooManyInstances, reason));
        };
        // Looked at when the session is registered: whoever drains has either seen it or is seen.
        if shared.draining.load(Ordering::SeqCst) {
            return Err(draining());
        }
        // The outbox is registered first and what the store knows is added after: a membership that
        // begins in between is in both, one that ends in between is refused by its log.
        let Ok(logs) = briefs(&shared, Turn::Arrival, frame.device).await else {
            let error = Error::from(unavailable());
            let frame = Bytes::from(encode_relay(request, &error.into()));
            return Err(Rejected { frame, reason: CloseReason::GoingAway });
        };
        let outbox = guard.outbox();
        for log in &logs {
            outbox.add_log(log.place());
        }
        let wished = u64::from(frame.heartbeat_s);
        let heartbeat_s = wished.clamp(HEARTBEAT_MIN.as_secs(), HEARTBEAT_MAX.as_secs()) as u16;
        let incarnation = shared.store.incarnation();
        let welcome = Welcome {
            proof: prove_relay(
                &shared.options.relay_key,
                &self.greeting,
                frame.device,
                frame.challenge,
            ),
            incarnation,
            heartbeat_s,
            resume_token: shared.resume_token(frame.device),
            logs: summaries(incarnation, &logs, None),
        };
        outbox.answer(request, &welcome.into());
        outbox.heard(shared.uptime_s());
        shared.heartbeats.add(guard.downgrade(), heartbeat_s, shared.uptime_s());
        shared.note_seen(frame.device);
        Ok(Session {
            core: Arc::new(Core {
                shared,
                outbox: outbox.clone(),
                reading: AtomicBool::new(false),
            }),
            malformed: AtomicU32::new(0),
            guard,
        })
    }
}

/// A connection whose device is known.
pub struct Session {
    core: Arc<Core>,
    malformed: AtomicU32,
    guard: SessionGuard,
}

/// What a session's requests need, apart from its life.
pub(crate) struct Core {
    pub(crate) shared: Arc<Shared>,
    pub(crate) outbox: Arc<Outbox>,
    /// Whether a page is being read.
    reading: AtomicBool,
}

impl Session {
    /// The queue towards the device.
    #[must_use]
    pub fn outbox(&self) -> &Arc<Outbox> {
        self.guard.outbox()
    }

    /// Notes a sign of life.
    pub fn heard(&self) {
        self.core.outbox.heard(self.core.shared.uptime_s());
    }

    /// Acts on one frame.
    pub fn receive(&self, bytes: &[u8]) -> Step {
        let _handling = Handling::begin(ActorKind::Session);
        self.heard();
        let Ok(envelope) = decode_client(bytes) else {
            self.core.refuse(0, Failure::new(ErrorCode::Malformed));
            return self.count_malformed();
        };
        let request = envelope.request;
        match envelope.frame {
            Ok(frame) => {
                counter!(FRAMES_IN, "frame" => frame.name()).increment(1);
                requests::act(&self.core, request, frame)
            }
            Err(DecodeError::UnknownFrame) => {
                self.core.refuse(request, Failure::new(ErrorCode::UnknownFrame));
                Step::Done
            }
            Err(DecodeError::TooLong) => {
                self.core.refuse(request, Failure::new(ErrorCode::TooLarge));
                self.count_malformed()
            }
            Err(DecodeError::Malformed) => {
                self.core.refuse(request, Failure::new(ErrorCode::Malformed));
                self.count_malformed()
            }
        }
    }

    fn count_malformed(&self) -> Step {
        if self.malformed.fetch_add(1, Ordering::Relaxed) + 1 >= MALFORMED_FRAMES_MAX {
            Step::Close(CloseReason::Malformed)
        } else {
            Step::Done
        }
    }

    /// Reads the next page for a log that is behind, if one is and none is being read. To be called
    /// whenever the outbox wakes or has been written.
    pub fn catch_up(&self) {
        if self.core.reading.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(page) = self.core.outbox.next_catch_up() else {
            self.core.reading.store(false, Ordering::Release);
            return;
        };
        let reading = Reading { core: self.core.clone(), key: page.key };
        tokio::spawn(async move {
            catch_up::run(&reading.core.shared, &reading.core.outbox, page).await;
        });
    }

    /// Notes that the socket is being written to, or that all was written.
    pub fn writing(&self, is: bool) {
        self.core.outbox.writing(is.then(|| self.core.shared.uptime_s()));
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.core.shared.heartbeats.remove(self.guard.outbox());
    }
}

/// A page that is being read; dropping it lets the next one begin.
struct Reading {
    core: Arc<Core>,
    key: LogKey,
}

impl Drop for Reading {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // This log would wait for its page for ever, and its device would never know.
            tracing::error!("reading a page for a session panicked");
            self.core.outbox.close(CloseReason::Internal);
        }
        self.core.reading.store(false, Ordering::Release);
        self.core.outbox.nudge();
        // The session may have ended meanwhile, and this page may have been the last to hold the
        // log's presence.
        self.core.shared.registry.forget_presence(self.key);
    }
}

impl Core {
    pub(crate) fn refuse(&self, request: u32, failure: Failure) {
        self.outbox.answer(request, &Error::from(failure).into());
    }

    /// Asks the store when it is this kind's turn.
    pub(crate) async fn ask<T>(
        &self,
        turn: Turn,
        question: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        self.shared.turns.ask(turn, question).await
    }

    pub(crate) fn answer(&self, request: u32, frame: &RelayFrame) {
        self.outbox.answer(request, frame);
    }
}

fn rejected(request: u32, code: ErrorCode, reason: CloseReason) -> Rejected {
    let error = Error::from(Failure::new(code));
    Rejected { frame: Bytes::from(encode_relay(request, &error.into())), reason }
}

/// Asks the store with a deadline, whoever else asks.
pub(crate) async fn ask<T>(
    question: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(STORE_DEADLINE, question).await.unwrap_or(Err(StoreError::Unavailable))
}

/// The logs of a device, as the store knows them.
pub(crate) async fn briefs(
    shared: &Shared,
    turn: Turn,
    device: DeviceKey,
) -> Result<Vec<LogBrief>, StoreError> {
    shared.turns.ask(turn, shared.store.memberships(device)).await
}

/// As many logs as fit, in the order of their ids, after the given one.
pub(crate) fn summaries<const MAX: usize>(
    incarnation: u64,
    logs: &[LogBrief],
    after: Option<LogId>,
) -> Bounded<LogSummary, MAX> {
    let mut logs: Vec<&LogBrief> =
        logs.iter().filter(|log| after.is_none_or(|after| log.id > after)).collect();
    logs.sort_unstable_by_key(|log| log.id);
    let summaries = logs.iter().take(MAX).map(|log| LogSummary {
        log: log.id,
        head: Head { incarnation, seq: log.head.seq, chain: log.head.chain },
    });
    Bounded::new(summaries.collect()).unwrap_or_default()
}

/// The log that a request is about, among the device's own.
pub(crate) fn known(core: &Core, log: LogId) -> Option<LogPlace> {
    core.outbox.log_place(log)
}
