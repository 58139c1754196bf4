//! A bounded, measured way into a ractor actor.
//!
//! ractor's mailboxes are unbounded and show no depth. Everything that is cast to one of our actors
//! goes through a [`Mailbox`], which refuses when as many messages wait as its bound says, counts
//! what waits, and measures how long each message waited. A message that never arrives (its actor
//! died) leaves the count as well: the count is a guard inside it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use metrics::counter;
use ractor::{Actor, ActorCell, ActorRef, MessagingErr, SpawnErr};

use crate::meters;
use crate::metrics::{ActorKind, MAILBOX_REFUSALS};

/// A message on its way, with its place in the count.
pub(crate) struct Posted<M> {
    pub(crate) message: M,
    posted_at: Instant,
    place: Place,
}

/// What waits in one mailbox.
#[derive(Default)]
pub(crate) struct Waiting {
    depth: AtomicUsize,
    /// Nothing that waits was posted before this, in nanoseconds of the process: the later of when
    /// the mailbox was last empty, and when what left it last was posted.
    since: AtomicU64,
}

impl Waiting {
    /// For how long the oldest message has waited, up to the time between it and the one before;
    /// nothing if none waits.
    fn oldest(&self) -> Duration {
        if self.depth.load(Ordering::Relaxed) == 0 {
            return Duration::ZERO;
        }
        let since = self.since.load(Ordering::Relaxed);
        Duration::from_nanos(process_ns(Instant::now()).saturating_sub(since))
    }
}

/// Nanoseconds since this process first asked.
fn process_ns(at: Instant) -> u64 {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    let began = *BEGAN.get_or_init(Instant::now);
    u64::try_from(at.saturating_duration_since(began).as_nanos()).unwrap_or(u64::MAX)
}

/// One place in a mailbox's count. An actor that queues its messages keeps it with them.
pub(crate) struct Place {
    kind: ActorKind,
    waiting: Arc<Waiting>,
    posted_ns: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.waiting.since.fetch_max(self.posted_ns, Ordering::Relaxed);
        self.waiting.depth.fetch_sub(1, Ordering::Relaxed);
        meters::actor(self.kind).depth.decrement(1.0);
    }
}

/// Why a message was not taken; it comes back.
pub(crate) enum Refused<M> {
    /// As many messages wait as may.
    Full(M),
    /// The actor has ended or takes no more.
    Gone(M),
}

/// The sending end.
pub(crate) struct Mailbox<M: Send + 'static> {
    actor: ActorRef<Posted<M>>,
    waiting: Arc<Waiting>,
    kind: ActorKind,
    limit: usize,
}

impl<M: Send + 'static> Clone for Mailbox<M> {
    fn clone(&self) -> Self {
        Self {
            actor: self.actor.clone(),
            waiting: self.waiting.clone(),
            kind: self.kind,
            limit: self.limit,
        }
    }
}

/// Starts an actor under its supervisor, and gives the way in. The actor is given what waits as well, for
/// a mailbox of its own.
pub(crate) async fn start<A, T, M>(
    actor: A,
    kind: ActorKind,
    limit: usize,
    argument: T,
    supervisor: ActorCell,
) -> Result<Mailbox<M>, SpawnErr>
where
    A: Actor<Msg = Posted<M>, Arguments = (T, Arc<Waiting>)>,
    T: Send + 'static,
    M: Send + 'static,
{
    let waiting = Arc::new(Waiting::default());
    let arguments = (argument, waiting.clone());
    let (actor, _) = Actor::spawn_linked(None, actor, arguments, supervisor).await?;
    Ok(Mailbox::new(actor, kind, limit, waiting))
}

impl<M: Send + 'static> Mailbox<M> {
    pub(crate) fn new(
        actor: ActorRef<Posted<M>>,
        kind: ActorKind,
        limit: usize,
        waiting: Arc<Waiting>,
    ) -> Self {
        Self { actor, waiting, kind, limit }
    }

    /// Posts a message, if there is room.
    pub(crate) fn cast(&self, message: M) -> Result<(), Refused<M>> {
        if self.depth() >= self.limit {
            counter!(MAILBOX_REFUSALS, "actor" => self.kind.name()).increment(1);
            return Err(Refused::Full(message));
        }
        self.post(message)
    }

    /// Posts a message that answers one of the actor's own: there is at most one for each, so it is
    /// not held back by the bound.
    pub(crate) fn post(&self, message: M) -> Result<(), Refused<M>> {
        let posted_at = Instant::now();
        let posted_ns = process_ns(posted_at);
        if self.waiting.depth.fetch_add(1, Ordering::Relaxed) == 0 {
            self.waiting.since.fetch_max(posted_ns, Ordering::Relaxed);
        }
        meters::actor(self.kind).depth.increment(1.0);
        let place = Place { kind: self.kind, waiting: self.waiting.clone(), posted_ns };
        let posted = Posted { message, posted_at, place };
        self.actor.send_message(posted).map_err(|error| match error {
            MessagingErr::SendErr(posted) => Refused::Gone(posted.message),
            // The mailbox was made from this very actor's reference, so its type fits; and a cast
            // opens no channel that could be closed.
            MessagingErr::ChannelClosed | MessagingErr::InvalidActorType => {
                unreachable!("a cast to an actor of the right type")
            }
        })
    }

    /// Messages that wait now, the one being handled not among them.
    pub(crate) fn depth(&self) -> usize {
        self.waiting.depth.load(Ordering::Relaxed)
    }

    /// For how long the oldest message that waits has waited.
    pub(crate) fn oldest(&self) -> Duration {
        self.waiting.oldest()
    }

    pub(crate) fn cell(&self) -> ActorCell {
        self.actor.get_cell()
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.actor.get_id() == other.actor.get_id()
    }
}

impl<M> Posted<M> {
    /// Takes the message out for handling; the [`Handling`] measures until it is dropped.
    pub(crate) fn open(self, kind: ActorKind) -> (M, Handling) {
        let (message, handling, _) = self.open_keeping(kind);
        (message, handling)
    }

    /// The same, with the message's place: it counts as waiting for as long as the place is kept.
    pub(crate) fn open_keeping(self, kind: ActorKind) -> (M, Handling, Place) {
        let waited = Some(self.posted_at.elapsed());
        let handling = Handling { kind, waited, started: Instant::now() };
        (self.message, handling, self.place)
    }
}

/// Measures the handling of one message.
pub(crate) struct Handling {
    kind: ActorKind,
    /// None of what came by no mailbox of ours.
    waited: Option<Duration>,
    started: Instant,
}

impl Handling {
    /// Of something that came by no mailbox of ours: a frame of a device, or word that an actor has
    /// ended.
    pub(crate) fn begin(kind: ActorKind) -> Self {
        Self { kind, waited: None, started: Instant::now() }
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        meters::actor(self.kind).handled(self.waited, self.started.elapsed());
    }
}
