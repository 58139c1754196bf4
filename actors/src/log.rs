//! One log: the order of its entries, and who may append to it.
//!
//! A log exists as an actor because order must be decided in exactly one place. It gives each entry
//! the next seq, extends the chain in memory, and hands it to its committer; when the committer says
//! that it is durable, it is answered and published. It never waits for a database or a reader.
//!
//! What it holds in memory is a hint; the store is the judge. On a mismatch, an error or an unknown
//! outcome it drops everything, answers what is in flight `unavailable`, and loads anew through the
//! same committer's queue. The devices resend, and (sender, count) tells what had been committed.
//!
//! It lives only while there is work: appends, acks, or a load. A subscribed, silent log has none.
//!
//! ```text
//!            first message                Loaded                 idle, nothing dirty
//!   (none) ───────────────> Loading ───────────────> Ready ─────────────────────────> (none)
//!                              ^  load failed: Lost    │
//!                              └───────────────────────┘ Stale, Failed, Refused
//! ```
//!
//! Holds always:
//! - an entry is answered and published only after its commit;
//! - parts are finished in the order in which they were submitted;
//! - a refusal is told when all that it may rest on is durable: an entry that came to nothing leaves no
//!   trace, not even in the answer to another;
//! - every request is answered, if only by the drop of its [`Reply`].

mod bells;
mod ending;
mod loading;
mod policy;
mod queue;
mod resend;
pub(crate) mod resting;
mod state;
mod vault;

use std::collections::VecDeque;
use std::sync::Arc;

use metrics::counter;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef};
use sealwire_protocol::ack::AckWire;
use sealwire_protocol::frame::{self, Appended, MembershipState};
use sealwire_protocol::{Control, DeviceKey, ErrorCode, Failure, Head, Kind};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::committer::{Part, PartResult};
use crate::entry::{CheckedEntry, Content, Published};
use crate::limits::{
    ACK_FLUSH, LOAD_RETRY, LOG_IDLE, LOG_MAILBOX_MAX, QUOTA_MARKER_PAUSE, WAITING_ACKS_MAX,
};
use crate::mailbox::{Mailbox, Posted, Waiting};
use crate::metrics::{ActorKind, Alive, ENTRIES, GROUPS_ENDED, LOGS_PASSIVATED, Outcome, Outcomes};
use crate::ports::{CompactStep, LogKey, LogRecord, Position, StoreError};
use crate::registry::Presence;
use crate::reply::{Reply, unavailable};
use crate::system::Shared;
use state::{Change, Decided, NotAppended, Sent, State};
pub(crate) use state::{NewPayload, relay_header};

/// The way into one log's actor.
pub(crate) type LogRef = Mailbox<LogMessage>;

/// Entries of one request, checked by their session.
pub(crate) struct AppendRequest {
    pub(crate) sender: DeviceKey,
    pub(crate) entries: Vec<CheckedEntry>,
    /// Whether a membership was reserved for the sender just now: nobody becomes a member without.
    pub(crate) reserved: bool,
    pub(crate) reply: Reply,
}

/// A member's permission to delete.
pub(crate) struct AckRequest {
    pub(crate) device: DeviceKey,
    pub(crate) incarnation: u64,
    pub(crate) acked: AckWire,
    /// How often this log had lost history when its session compared what is acked here with what it
    /// has shown; none where the incarnation is all that is compared.
    pub(crate) losses: Option<u64>,
}

/// What a device asks of a `totals` group with a single request.
pub(crate) enum TotalsWish {
    /// To be a member: the same as being one. Whoever is none needs a membership that was `reserved`.
    Join { reserved: bool },
    /// To be none.
    Leave,
    /// To send a payload.
    Send(Box<NewPayload>),
    /// To have these seqs deleted from its queue.
    Ack(Vec<u64>),
}

/// Where a `totals` group stands after a request of a device, durably.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TotalsDone {
    /// The entry that it made; joining: the one that made the device a member; of acks, how many
    /// there are entries for. 0 for none.
    pub(crate) seq: u64,
    /// When that was ordered, in milliseconds since the epoch.
    pub(crate) at: u64,
    pub(crate) head: Head,
}

/// Who asked: dropping it says that the store is unavailable.
pub(crate) type TotalsReply = oneshot::Sender<Result<TotalsDone, Failure>>;

/// A single request to a `totals` group.
pub(crate) struct TotalsRequest {
    pub(crate) device: DeviceKey,
    pub(crate) wish: TotalsWish,
    pub(crate) reply: TotalsReply,
}

/// Everything that a log can be told.
pub(crate) enum LogMessage {
    /// Append these.
    Append(Box<AppendRequest>),
    /// Delete what every addressee has acked.
    Ack(Box<AckRequest>),
    /// A single request, in a `totals` group.
    Totals(TotalsRequest),
    /// From the committer: what became of a part.
    Finished(u64, PartResult),
    /// From the committer: what the store holds.
    Loaded(Result<Option<Box<LogRecord>>, StoreError>),
    /// Once a second: flush, retry, or end.
    Tick,
    /// Retention: entries up to this one that were ordered before then have expired.
    Expire(Position, u64),
    /// Retention: let go what a confirmed snapshot covers; of a vault of one device, one that was made
    /// before then.
    Compact(CompactStep, u64),
    /// Retention: end if the newest entry was ordered before then.
    EndIfIdle(u64),
    /// From the store: how far the floor may be raised by the next step of an end.
    Ending(Result<Option<Position>, StoreError>),
    /// Flush now and say when it is durable.
    Flush(oneshot::Sender<()>),
    /// Panic, as a bug would.
    #[cfg(test)]
    Panic,
}

/// A part that the committer has.
struct InFlight {
    id: u64,
    published: Vec<Arc<Published>>,
    kinds: Vec<Kind>,
    changes: Vec<Change>,
    outcomes: Outcomes,
    head: Position,
    sent: Option<Sent>,
    /// Who is answered, and whether as a duplicate.
    replies: Vec<(Reply, bool)>,
    flushes: Vec<oneshot::Sender<()>>,
    /// Who is answered with what over a single request.
    totals: Vec<(TotalsReply, TotalsDone)>,
    /// Who was refused since it was decided.
    refusals: Vec<Refusal>,
    ends_log: bool,
}

/// Who is refused, and why.
enum Refusal {
    /// Entries.
    Entries(Reply, Failure),
    /// A single request.
    Single(TotalsReply, Failure),
}

enum Memory {
    /// A load is under way; messages wait for it.
    Loading(VecDeque<LogMessage>),
    /// The store could not be read; the next message or tick tries again.
    Lost(Instant),
    /// What the store holds, and what is in flight.
    Ready(Box<State>),
}

struct LogActor {
    key: LogKey,
    shared: Arc<Shared>,
    myself: LogRef,
    presence: Arc<Presence>,
    memory: Memory,
    in_flight: VecDeque<InFlight>,
    next_part: u64,
    /// The newest head whose commit is known.
    committed: Option<Position>,
    last_work: Instant,
    quota_marked: Option<Instant>,
    draining: bool,
    ended: bool,
    /// Whether the store is being asked for the next step of an end.
    ending: bool,
    _gone: Gone,
    _alive: Alive,
}

/// Takes the log out of the registry, however its actor ends.
struct Gone {
    key: LogKey,
    shared: Arc<Shared>,
    log: LogRef,
}

impl Drop for Gone {
    fn drop(&mut self) {
        self.shared.registry.log_ended(self.key, &self.log);
    }
}

/// Starts the actor of a log.
pub(crate) fn start(key: LogKey, shared: Arc<Shared>, supervisor: ActorCell) -> Option<LogRef> {
    let waiting = Arc::new(Waiting::default());
    let arguments = (key, shared, waiting.clone());
    let (actor, _) =
        ractor::ActorRuntime::spawn_linked_instant(None, Log, arguments, supervisor).ok()?;
    Some(Mailbox::new(actor, ActorKind::Log, LOG_MAILBOX_MAX, waiting))
}

struct Log;

impl Actor for Log {
    type Msg = Posted<LogMessage>;
    type State = LogActor;
    type Arguments = (LogKey, Arc<Shared>, Arc<Waiting>);

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (key, shared, waiting): Self::Arguments,
    ) -> Result<LogActor, ActorProcessingErr> {
        let id = myself.get_id();
        let myself = Mailbox::new(myself, ActorKind::Log, LOG_MAILBOX_MAX, waiting);
        // Before anything can go wrong: its supervisor must know which log it was.
        shared.started_logs.insert(id, (key, myself.clone()));
        let mut log = LogActor {
            key,
            presence: shared.registry.presence(key),
            memory: Memory::Lost(Instant::now()),
            in_flight: VecDeque::new(),
            next_part: 1,
            committed: None,
            last_work: Instant::now(),
            quota_marked: None,
            draining: false,
            ended: false,
            ending: false,
            _gone: Gone { key, shared: shared.clone(), log: myself.clone() },
            _alive: Alive::new(ActorKind::Log),
            shared,
            myself,
        };
        log.load();
        log.tick_later();
        Ok(log)
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        posted: Self::Msg,
        log: &mut LogActor,
    ) -> Result<(), ActorProcessingErr> {
        let (message, _handling) = posted.open(ActorKind::Log);
        log.receive(message);
        if log.ended {
            myself.stop(None);
        } else if !log.draining && log.may_rest() {
            log.draining = true;
            counter!(LOGS_PASSIVATED).increment(1);
            // Whatever is cast from now on is refused and starts the next actor.
            let _ = myself.drain();
        }
        Ok(())
    }
}

impl LogActor {
    fn receive(&mut self, message: LogMessage) {
        if self.draining {
            // It was posted just before the drain: the next actor takes it.
            self.shared.cast_log(self.key, message);
            return;
        }
        match (&mut self.memory, message) {
            (_, LogMessage::Finished(id, result)) => self.finished(id, result),
            (_, LogMessage::Loaded(result)) => self.loaded(result),
            (_, LogMessage::Tick) => self.tick(),
            #[cfg(test)]
            (_, LogMessage::Panic) => panic!("a log was told to panic"),
            // What does not fit is dropped: requests are answered by that, acks come again.
            (Memory::Loading(waiting), _) if waiting.len() >= LOG_MAILBOX_MAX => {}
            (Memory::Loading(waiting), LogMessage::Ack(_)) if waiting.len() >= WAITING_ACKS_MAX => {
            }
            (Memory::Loading(waiting), message) => waiting.push_back(message),
            (Memory::Lost(_), message) => {
                self.load();
                self.receive(message);
            }
            (Memory::Ready(_), LogMessage::Append(request)) => self.append(*request),
            (Memory::Ready(_), LogMessage::Ack(request)) => self.ack(&request),
            (Memory::Ready(_), LogMessage::Totals(request)) => self.totals(request),
            (Memory::Ready(state), LogMessage::Expire(up_to, before)) => {
                let decided = state.expire(up_to, before);
                self.submit_decided(decided);
            }
            (Memory::Ready(state), LogMessage::Compact(step, alone_before)) => {
                let decided = state.compact(&step, alone_before);
                self.submit_decided(decided);
            }
            (Memory::Ready(state), LogMessage::EndIfIdle(before)) => {
                let decided = state.end_if_idle(before);
                self.submit_decided(decided);
            }
            (Memory::Ready(_), LogMessage::Ending(up_to)) => self.end_up_to(up_to),
            (Memory::Ready(_), LogMessage::Flush(done)) => self.flush(Some(done)),
        }
    }

    // ---- requests

    fn append(&mut self, request: AppendRequest) {
        let Memory::Ready(state) = &mut self.memory else {
            return;
        };
        self.last_work = Instant::now();
        let AppendRequest { sender, entries, reserved, reply } = request;
        if !reserved && state.member(sender).is_none() && self.in_flight.is_empty() {
            // Its session believed otherwise: it has missed a commit whose outcome was unknown.
            let (how, seq) = state.gone(sender);
            self.shared.registry.member_gone(sender, self.key, how, seq);
        }
        let Some(last) = entries.last().map(|entry| (entry.header.count, entry.digest)) else {
            return reply.refuse(Failure::new(ErrorCode::Malformed));
        };
        let first_count = entries.first().map_or(0, |entry| entry.header.count);
        let kinds = entries.iter().map(|entry| entry.header.kind).collect();
        let paces = &self.shared.paces;
        let (control, pace) = match entries.first().map(|entry| &entry.content) {
            // It is no member any more, and the store does not know that yet: what it reserves only
            // counts once its leave is durable.
            Some(Content::Control(control @ Control::Join { .. }))
                if !reserved && state.member(sender).is_none() =>
            {
                (true, paces.may_control(self.key, sender, control).and(Err(unavailable())))
            }
            Some(Content::Control(control)) => (true, paces.may_control(self.key, sender, control)),
            Some(Content::Rotation | Content::Plain) | None => (false, Ok(())),
        };
        let keys = state.key_units(&entries);
        let pace = pace.and_then(|()| match keys {
            0 => Ok(()),
            keys => paces.may_keep_keys(self.key, sender, keys),
        });
        match state.append(sender, entries, pace, self.shared.clock.now_ms()) {
            Ok(decided) => {
                if control {
                    paces.controlled(self.key, sender);
                }
                if keys > 0 {
                    paces.kept_keys(self.key, sender, keys);
                }
                let ends = decided.ended;
                self.submit(decided, kinds, Some(reply), None);
                if ends {
                    // The last member is leaving: the log goes as soon as that is durable.
                    self.go_on_ending();
                }
            }
            Err(NotAppended::Refused(failure)) => self.refuse(Refusal::Entries(reply, failure)),
            Err(NotAppended::Known) => self.resent(sender, first_count, last, reply),
        }
    }

    /// Refuses, when everything that is under way is durable: memory is ahead of the store, and the
    /// refusal may rest on what comes to nothing. Then it does as well, and its drop says so.
    fn refuse(&mut self, refusal: Refusal) {
        match self.in_flight.back_mut() {
            Some(part) => part.refusals.push(refusal),
            None => self.tell(refusal),
        }
    }

    fn tell(&mut self, refusal: Refusal) {
        let failure = match refusal {
            Refusal::Entries(reply, failure) => {
                reply.refuse(failure);
                failure
            }
            Refusal::Single(reply, failure) => {
                // Whoever has gone meanwhile asks again.
                let _ = reply.send(Err(failure));
                failure
            }
        };
        if is_full(failure.code) {
            self.mark_quota();
        }
    }

    /// Tells the readers that entries are being refused, once in a while.
    fn mark_quota(&mut self) {
        let due = self.quota_marked.is_none_or(|at| at.elapsed() >= QUOTA_MARKER_PAUSE);
        if due && let Memory::Ready(state) = &self.memory {
            self.quota_marked = Some(Instant::now());
            self.presence.tell_all(&frame::QuotaReached { log: state.id }.into());
            self.presence.tell_streams_full();
        }
    }

    fn ack(&mut self, request: &AckRequest) {
        if request.losses.is_some_and(|losses| losses != self.presence.losses()) {
            // It was compared with a history that is lost.
            return;
        }
        // A reader may know of a commit before this log does: it has read it from the store.
        let committed = self.committed.map_or(0, |position| position.seq);
        let committed = committed.max(self.presence.head().seq);
        let Memory::Ready(state) = &mut self.memory else {
            return;
        };
        let AckRequest { device, incarnation, acked, losses: _ } = request;
        state.ack(*device, *incarnation, acked, committed, Outcome::Delivered);
        self.last_work = Instant::now();
        self.stop_ringing(*device);
    }

    fn flush(&mut self, done: Option<oneshot::Sender<()>>) {
        let Memory::Ready(state) = &mut self.memory else {
            return;
        };
        match state.flush() {
            Some(decided) => self.submit(decided, Vec::new(), None, done),
            None => match (done, self.in_flight.back_mut()) {
                (Some(done), Some(part)) => part.flushes.push(done),
                // Nothing waits and nothing is under way: dropping says so.
                (done, _) => drop(done),
            },
        }
    }

    // ---- single requests

    fn totals(&mut self, request: TotalsRequest) {
        let now = self.shared.clock.now_ms();
        let Memory::Ready(state) = &mut self.memory else {
            return;
        };
        self.last_work = Instant::now();
        let TotalsRequest { device, wish, reply } = request;
        let head = state.head_of(state.head);
        let nothing = TotalsDone { seq: 0, at: 0, head };
        let mut kind = Kind::Control;
        let decided = match wish {
            TotalsWish::Join { reserved } => {
                if let Some(member) = state.member(device) {
                    let (seq, at) = (member.joined_seq, member.joined_at);
                    return self.answer_after_all(reply, TotalsDone { seq, at, head });
                }
                if !reserved {
                    // As with a join of a session; at once, because it says nothing of the leave.
                    let _ = reply.send(Err(unavailable()));
                    return;
                }
                state.join_totals(device, now)
            }
            TotalsWish::Leave => state.leave_totals(device, now),
            TotalsWish::Send(payload) => {
                kind = Kind::Totals;
                match state.append_totals(device, *payload, now) {
                    Ok(Some(decided)) => Ok(decided),
                    Ok(None) => return self.answer_after_all(reply, nothing),
                    Err(refused) => Err(refused),
                }
            }
            TotalsWish::Ack(seqs) => {
                let known = match state.ack_seqs(device, &seqs) {
                    Ok(known) => TotalsDone { seq: known, ..nothing },
                    Err(failure) => return self.refuse(Refusal::Single(reply, failure)),
                };
                let decided = state.flush_acks();
                self.stop_ringing(device);
                match decided {
                    Some(decided) => return self.submit_totals(decided, None, reply, known),
                    // It was acked before; that may still be under way.
                    None => return self.answer_after_all(reply, known),
                }
            }
        };
        match decided {
            Ok(decided) => {
                let entry = decided.commit.entries.last();
                let (seq, at) = entry.map_or((0, 0), |entry| (entry.seq, entry.at));
                let head = state.head_of(decided.head);
                let ends = decided.ended;
                if kind == Kind::Control {
                    self.shared.paces.controlled(self.key, device);
                }
                self.submit_totals(decided, Some(kind), reply, TotalsDone { seq, at, head });
                if ends {
                    // The last member is leaving: the group goes as soon as that is durable.
                    self.go_on_ending();
                }
            }
            Err(NotAppended::Refused(failure)) => self.refuse(Refusal::Single(reply, failure)),
            // Only what has a count can be known.
            Err(NotAppended::Known) => drop(reply),
        }
    }

    fn submit_totals(
        &mut self,
        decided: Decided,
        kind: Option<Kind>,
        reply: TotalsReply,
        done: TotalsDone,
    ) {
        self.submit(decided, kind.into_iter().collect(), None, None);
        if let Some(part) = self.in_flight.back_mut() {
            part.totals.push((reply, done));
        }
    }

    /// Answers when everything that is under way is durable: what is answered may be part of it.
    fn answer_after_all(&mut self, reply: TotalsReply, done: TotalsDone) {
        match self.in_flight.back_mut() {
            Some(part) => part.totals.push((reply, done)),
            None => {
                let _ = reply.send(Ok(done));
            }
        }
    }

    // ---- commits

    fn submit_decided(&mut self, decided: Option<Decided>) {
        if let Some(decided) = decided {
            self.submit(decided, Vec::new(), None, None);
        }
    }

    fn submit(
        &mut self,
        decided: Decided,
        kinds: Vec<Kind>,
        reply: Option<Reply>,
        flush: Option<oneshot::Sender<()>>,
    ) {
        let id = self.next_part;
        self.next_part += 1;
        self.last_work = Instant::now();
        let ends_log = decided.commit.ended;
        self.in_flight.push_back(InFlight {
            id,
            published: decided.published,
            kinds,
            changes: decided.changes,
            outcomes: decided.outcomes,
            head: decided.head,
            sent: decided.sent,
            replies: reply.map(|reply| (reply, false)).into_iter().collect(),
            flushes: flush.into_iter().collect(),
            totals: Vec::new(),
            refusals: Vec::new(),
            ends_log,
        });
        let part = Part::new(decided.commit, id, self.myself.clone());
        // A part that is not taken is dropped, which answers as a failed one does.
        self.shared.committer(self.key).submit(part);
    }

    fn finished(&mut self, id: u64, result: PartResult) {
        // A part of a memory that was dropped since is nobody's any more.
        let Some(place) = self.in_flight.iter().position(|part| part.id == id) else {
            return;
        };
        if place > 0 {
            // A later part has ended before an earlier one, as when its committer did: what became
            // of the earlier one is not known here any more.
            return self.drop_memory();
        }
        let Some(part) = self.in_flight.pop_front() else {
            return;
        };
        match result {
            PartResult::Committed => self.committed(part),
            PartResult::Refused => {
                tracing::error!(log = self.key.0, "the store refused the data of an entry");
                for (reply, _) in part.replies {
                    reply.refuse(Failure::new(ErrorCode::Internal));
                }
                for (reply, _) in part.totals {
                    let _ = reply.send(Err(Failure::new(ErrorCode::Internal)));
                }
                self.drop_memory();
            }
            PartResult::Stale | PartResult::Failed => {
                drop(part);
                self.drop_memory();
            }
        }
    }

    fn committed(&mut self, part: InFlight) {
        let Memory::Ready(state) = &self.memory else {
            return;
        };
        let (place, head) = (state.place(), state.head_of(part.head));
        self.committed = Some(part.head);
        part.outcomes.count();
        for kind in part.kinds {
            counter!(ENTRIES, "kind" => kind_name(kind)).increment(1);
        }
        let registry = &self.shared.registry;
        // A newcomer must know the log before it is answered, since it may subscribe at once.
        for change in &part.changes {
            if change.state == MembershipState::Joined {
                registry.member_joined(change.device, place, change.seq);
            }
        }
        if part.published.is_empty() {
            self.presence.raise_head(part.head);
        } else {
            registry.publish(self.key, &self.presence, part.head, &part.published);
        }
        // Whoever goes hears of the entry that did it first.
        for change in &part.changes {
            if change.state != MembershipState::Joined {
                let shared = &self.shared;
                shared.registry.member_gone(change.device, self.key, change.state, change.seq);
                shared.doorstep.gone(self.key, change.device);
            }
        }
        if !part.changes.is_empty() && place.id.is_totals() {
            let registry = &self.shared.registry;
            let by: Vec<DeviceKey> = part.changes.iter().map(|change| change.device).collect();
            let devices = state.members().map(|(device, _)| device).chain(by.iter().copied());
            registry.groups_changed(devices, &by);
        }
        if let Some(sent) = part.sent {
            for (reply, duplicate) in part.replies {
                reply.appended(Appended { log: place.id, seq: sent.first_seq, duplicate, head });
            }
        }
        for (reply, done) in part.totals {
            // Whoever has gone meanwhile asks again.
            let _ = reply.send(Ok(done));
        }
        for refusal in part.refusals {
            self.tell(refusal);
        }
        for done in part.flushes {
            let _ = done.send(());
        }
        self.ring(&part.published);
        if part.ends_log {
            counter!(GROUPS_ENDED).increment(1);
            self.ended = true;
        } else if self.in_flight.is_empty() {
            self.go_on_ending();
        }
    }

    // ---- time

    fn tick(&mut self) {
        match &self.memory {
            Memory::Ready(_) => {
                self.flush(None);
                if self.in_flight.is_empty() {
                    self.go_on_ending();
                }
            }
            // Its subscribers wait for what may have been committed before the store went away.
            Memory::Lost(since) if since.elapsed() >= LOAD_RETRY && self.presence.is_wanted() => {
                self.load();
            }
            Memory::Lost(_) | Memory::Loading(_) => {}
        }
        self.tick_later();
    }

    fn tick_later(&self) {
        let myself = self.myself.clone();
        tokio::spawn(async move {
            sleep(ACK_FLUSH).await;
            // Refused only if the log has ended.
            let _ = myself.post(LogMessage::Tick);
        });
    }

    fn may_rest(&self) -> bool {
        let nothing_to_do = match &self.memory {
            Memory::Ready(state) => !state.needs_flush() && !state.is_deserted(),
            Memory::Lost(_) => !self.presence.is_wanted(),
            Memory::Loading(_) => false,
        };
        nothing_to_do
            && self.in_flight.is_empty()
            && self.myself.depth() == 0
            && self.last_work.elapsed() >= LOG_IDLE
    }
}

/// Whether an entry was refused because the log holds as much as it may.
fn is_full(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Quota | ErrorCode::EntriesLimitReached | ErrorCode::BytesLimitReached)
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Control => "control",
        Kind::Key => "key",
        Kind::Ring => "ring",
        Kind::Quiet => "quiet",
        Kind::Bulk => "bulk",
        Kind::Totals => "totals",
    }
}
