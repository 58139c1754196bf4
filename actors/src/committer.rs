//! Persistence: batches what logs ask into transactions, one fsync for many.
//!
//! A committer never awaits the database. It takes what comes, and if nothing is under way it starts
//! the next piece of work in a task, which casts back when it is done; whatever came meanwhile is
//! the next piece. There is no timer: an idle relay commits at once, a busy one in large batches.
//!
//! A log always has the same committer, and a committer does one thing at a time: that is why a log
//! that drops its memory and loads again sees everything that it had asked for before.
//!
//! Holds always:
//! - a part (one request's entries) is committed whole or not at all, and in its log's order;
//! - a batch that the store refuses for its data is halved until the culprit stands alone;
//! - a part is answered exactly once, by a cast to the log that sent it, if that log still lives.

use std::collections::{HashMap, HashSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use metrics::{counter, histogram};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};
use tokio::time::timeout;

use crate::limits::{
    COMMIT_BYTES_MAX, COMMIT_ENTRIES_MAX, COMMITTER_MAILBOX_MAX, JOBS_PER_TURN_MAX, LOAD_LOGS_MAX,
    STORE_DEADLINE,
};
use crate::log::{LogMessage, LogRef};
use crate::mailbox::{self, Mailbox, Place, Posted, Waiting};
use crate::metrics::{
    ActorKind, Alive, COMMIT_ENTRIES, COMMIT_TIME, COMMITS_FAILED, COMMITS_STALE, LOGS_LOADED,
};
use crate::ports::{CommitResult, LogCommit, LogKey, LogRecord, Store, StoreError, VaultChange};

/// What became of one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PartResult {
    /// Durable.
    Committed,
    /// The store holds another head: the log's memory is wrong.
    Stale,
    /// The store refused this very part for its data.
    Refused,
    /// Nothing is known.
    Failed,
}

/// One request of one log, to be committed whole. Dropping it unanswered answers that nothing is
/// known, so that a committer that panics leaves no log waiting.
pub(crate) struct Part {
    commit: LogCommit,
    /// The log's number for it.
    id: u64,
    log: LogRef,
    answered: bool,
}

impl Part {
    pub(crate) fn new(commit: LogCommit, id: u64, log: LogRef) -> Self {
        Self { commit, id, log, answered: false }
    }

    fn finish(mut self, result: PartResult) {
        self.answered = true;
        // A log that has ended meanwhile is loaded anew by whoever needs it, after this commit.
        let _ = self.log.post(LogMessage::Finished(self.id, result));
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if !self.answered {
            let _ = self.log.post(LogMessage::Finished(self.id, PartResult::Failed));
        }
    }
}

/// A log that wants to be loaded. Dropping it unanswered answers that the store is unavailable.
struct Load {
    key: LogKey,
    log: LogRef,
    answered: bool,
}

impl Load {
    fn deliver(mut self, record: Result<Option<LogRecord>, StoreError>) {
        self.answered = true;
        let _ = self.log.post(LogMessage::Loaded(record.map(|record| record.map(Box::new))));
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if !self.answered {
            let _ = self.log.post(LogMessage::Loaded(Err(StoreError::Unavailable)));
        }
    }
}

/// A write that is no part of a log's order: it takes its turn like everything else.
pub(crate) type Job =
    Box<dyn FnOnce(Arc<dyn Store>) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send>;

/// The only way in.
#[derive(Clone)]
pub(crate) struct CommitterRef(Mailbox<Message>);

impl CommitterRef {
    pub(crate) async fn spawn(
        store: Arc<dyn Store>,
        supervisor: ActorCell,
    ) -> Result<Self, SpawnErr> {
        let (kind, limit) = (ActorKind::Committer, COMMITTER_MAILBOX_MAX);
        Ok(Self(mailbox::start(Committer, kind, limit, store, supervisor).await?))
    }

    /// Asks for a part to be committed. Gives false if the committer takes no more now.
    pub(crate) fn submit(&self, part: Part) -> bool {
        self.0.cast(Message::Part(Box::new(part))).is_ok()
    }

    /// Asks for a log to be loaded, after everything that it asked for before.
    pub(crate) fn load(&self, key: LogKey, log: LogRef) -> bool {
        self.0.cast(Message::Load(Load { key, log, answered: false })).is_ok()
    }

    /// Asks for a write of its own.
    pub(crate) fn job(&self, job: Job) -> bool {
        self.0.cast(Message::Job(job)).is_ok()
    }

    pub(crate) fn cell(&self) -> ActorCell {
        self.0.cell()
    }

    /// How much it is asked for that waits.
    pub(crate) fn depth(&self) -> usize {
        self.0.depth()
    }

    /// For how long the oldest of what it is asked for has waited.
    pub(crate) fn oldest(&self) -> Duration {
        self.0.oldest()
    }
}

enum Message {
    Part(Box<Part>),
    Load(Load),
    Job(Job),
    /// What was under way has ended, and these parts of it are still to be answered.
    Done(Answers),
}

/// Parts of a transaction, and what became of each, in the order in which they were asked for.
type Answers = Vec<(Part, PartResult)>;

struct State {
    store: Arc<dyn Store>,
    /// A clone of the mailbox for the tasks' `Done`, which is never refused.
    mailbox: Mailbox<Message>,
    parts: VecDeque<Queued<Part>>,
    loads: VecDeque<Queued<Load>>,
    jobs: VecDeque<Queued<Job>>,
    turn: Turn,
    busy: bool,
    _alive: Alive,
}

/// Something that waits, with its place in the mailbox's count: the mailbox's bound is theirs.
struct Queued<T> {
    item: T,
    place: Place,
}

/// Whose turn it is when several kinds of work wait: none of them can keep the others out.
#[derive(Clone, Copy)]
enum Turn {
    Parts,
    Loads,
    Jobs,
}

struct Committer;

impl Actor for Committer {
    type Msg = Posted<Message>;
    type State = State;
    type Arguments = (Arc<dyn Store>, Arc<Waiting>);

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (store, waiting): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        Ok(State {
            store,
            mailbox: Mailbox::new(myself, ActorKind::Committer, usize::MAX, waiting),
            parts: VecDeque::new(),
            loads: VecDeque::new(),
            jobs: VecDeque::new(),
            turn: Turn::Parts,
            busy: false,
            _alive: Alive::new(ActorKind::Committer),
        })
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        posted: Self::Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (message, _handling, place) = posted.open_keeping(ActorKind::Committer);
        let newest = place.posted_ns();
        match message {
            Message::Part(part) => state.parts.push_back(Queued { item: *part, place }),
            Message::Load(load) => state.loads.push_back(Queued { item: load, place }),
            Message::Job(job) => state.jobs.push_back(Queued { item: job, place }),
            Message::Done(answers) => {
                state.busy = false;
                // The disk first: it would rest while hundreds of logs are told. A read comes after
                // the answers, because its log must have them before it is given what the store holds.
                if state.is_commit_next() {
                    state.start_next();
                }
                for (part, result) in answers {
                    part.finish(result);
                }
            }
        }
        state.start_next();
        // What is still in the mailbox was posted after this one.
        state.mailbox.waits_since(state.oldest_queued().unwrap_or(newest));
        Ok(())
    }
}

impl State {
    /// Whether the next piece of work is a transaction of parts.
    fn is_commit_next(&self) -> bool {
        let others = match self.turn {
            Turn::Parts => true,
            Turn::Loads => self.loads.is_empty() && self.jobs.is_empty(),
            Turn::Jobs => self.jobs.is_empty(),
        };
        others && !self.parts.is_empty()
    }

    /// When the oldest of what is queued was posted: the queues take turns, each in its order.
    fn oldest_queued(&self) -> Option<u64> {
        let parts = self.parts.front().map(|queued| &queued.place);
        let loads = self.loads.front().map(|queued| &queued.place);
        let jobs = self.jobs.front().map(|queued| &queued.place);
        [parts, loads, jobs].into_iter().flatten().map(Place::posted_ns).min()
    }

    /// Starts the next piece of work, if none is under way.
    fn start_next(&mut self) {
        if self.busy {
            return;
        }
        for _ in 0..3 {
            let turn = self.turn;
            self.turn = match turn {
                Turn::Parts => Turn::Loads,
                Turn::Loads => Turn::Jobs,
                Turn::Jobs => Turn::Parts,
            };
            let store = self.store.clone();
            let work: Pin<Box<dyn Future<Output = Answers> + Send>> = match turn {
                Turn::Parts => match take_batch(&mut self.parts) {
                    batch if batch.is_empty() => continue,
                    batch => Box::pin(commit(store, batch)),
                },
                Turn::Loads => match take_loads(&mut self.loads, &self.parts) {
                    loads if loads.is_empty() => continue,
                    loads => Box::pin(load(store, loads)),
                },
                Turn::Jobs => {
                    let count = self.jobs.len().min(JOBS_PER_TURN_MAX);
                    let jobs: Vec<Job> = self.jobs.drain(..count).map(|job| job.item).collect();
                    if jobs.is_empty() {
                        continue;
                    }
                    Box::pin(run_jobs(store, jobs))
                }
            };
            self.busy = true;
            let done = WorkDone { mailbox: self.mailbox.clone(), answers: Vec::new() };
            // The task is not a child: it ends by itself, within the store's deadline.
            tokio::spawn(async move { done.ended(work.await) });
            return;
        }
    }
}

/// Makes small writes one after the other.
async fn run_jobs(store: Arc<dyn Store>, jobs: Vec<Job>) -> Answers {
    for job in jobs {
        job(store.clone()).await;
    }
    Answers::new()
}

/// Tells the committer that its work has ended, even by a panic.
struct WorkDone {
    mailbox: Mailbox<Message>,
    answers: Answers,
}

impl WorkDone {
    /// It has ended in order.
    fn ended(mut self, answers: Answers) {
        self.answers = answers;
    }
}

impl Drop for WorkDone {
    fn drop(&mut self) {
        // Refused only if the committer has ended; then the logs hear that nothing is known.
        let _ = self.mailbox.post(Message::Done(std::mem::take(&mut self.answers)));
    }
}

/// Takes parts from the front, up to a transaction's bounds; at least one if there is any.
fn take_batch(parts: &mut VecDeque<Queued<Part>>) -> Vec<Part> {
    let (mut entries, mut bytes) = (0, 0);
    let mut batch = Vec::new();
    while let Some(Queued { item: part, .. }) = parts.front() {
        entries += part.commit.entries.len().max(1);
        bytes += part.commit.entries.iter().map(|entry| entry.body.len()).sum::<usize>();
        let full = entries > COMMIT_ENTRIES_MAX || bytes > COMMIT_BYTES_MAX;
        // The end of a log is alone in its transaction: nothing may be merged with it.
        let ends = part.commit.ended;
        if !batch.is_empty() && (full || ends) {
            break;
        }
        batch.extend(parts.pop_front().map(|queued| queued.item));
        if ends {
            break;
        }
    }
    batch
}

/// Takes loads of logs that have no part waiting: a load must see what its log asked for before.
fn take_loads(loads: &mut VecDeque<Queued<Load>>, parts: &VecDeque<Queued<Part>>) -> Vec<Load> {
    if loads.is_empty() {
        return Vec::new();
    }
    let pending: HashSet<LogKey> = parts.iter().map(|part| part.item.commit.key).collect();
    let mut taken: Vec<Load> = Vec::new();
    let mut passed = Vec::new();
    while taken.len() < LOAD_LOGS_MAX
        && let Some(load) = loads.pop_front()
    {
        let twice = taken.iter().any(|other| other.key == load.item.key);
        if pending.contains(&load.item.key) || twice {
            passed.push(load);
        } else {
            taken.push(load.item);
        }
    }
    // What was passed over keeps its turn.
    for load in passed.into_iter().rev() {
        loads.push_front(load);
    }
    taken
}

/// Commits a batch; halves it for as long as the store refuses its data.
async fn commit(store: Arc<dyn Store>, batch: Vec<Part>) -> Answers {
    let mut answers = Answers::with_capacity(batch.len());
    let mut pending = VecDeque::from([batch]);
    while let Some(batch) = pending.pop_front() {
        let merged = merge(&batch);
        let entries: usize = merged.iter().map(|commit| commit.entries.len()).sum();
        let started = Instant::now();
        let result = timeout(STORE_DEADLINE, store.commit(&merged)).await;
        let result = result.unwrap_or(Err(StoreError::Unavailable));
        match result {
            Ok(results) => {
                histogram!(COMMIT_TIME).record(started.elapsed().as_secs_f64());
                histogram!(COMMIT_ENTRIES).record(entries as f64);
                let by_key: HashMap<LogKey, CommitResult> =
                    merged.iter().map(|commit| commit.key).zip(results).collect();
                for part in batch {
                    let result = match by_key.get(&part.commit.key) {
                        Some(CommitResult::Committed) => PartResult::Committed,
                        Some(CommitResult::Stale) => PartResult::Stale,
                        None => PartResult::Failed,
                    };
                    if result == PartResult::Stale {
                        counter!(COMMITS_STALE).increment(1);
                    }
                    answers.push((part, result));
                }
            }
            Err(StoreError::Refused) if batch.len() > 1 => {
                let mut first = batch;
                let second = first.split_off(first.len() / 2);
                pending.push_front(second);
                pending.push_front(first);
            }
            Err(error) => {
                counter!(COMMITS_FAILED, "error" => error_name(error)).increment(1);
                tracing::warn!(%error, parts = batch.len(), entries, "a transaction failed");
                let result = if error == StoreError::Refused {
                    PartResult::Refused
                } else {
                    PartResult::Failed
                };
                answers.extend(batch.into_iter().map(|part| (part, result)));
            }
        }
    }
    answers
}

fn error_name(error: StoreError) -> &'static str {
    match error {
        StoreError::Unavailable => "unavailable",
        StoreError::Refused => "refused",
        StoreError::Corrupt => "corrupt",
    }
}

/// Joins the parts of each log into one. They follow each other, since a log that has dropped its
/// memory loads only when none of its parts waits any more: so the first one's expectation and the
/// last one's state hold for all.
fn merge(batch: &[Part]) -> Vec<LogCommit> {
    let mut merged: Vec<LogCommit> = Vec::new();
    let mut by_key: HashMap<LogKey, usize> = HashMap::new();
    for part in batch {
        let commit = &part.commit;
        let Some(index) = by_key.get(&commit.key) else {
            by_key.insert(commit.key, merged.len());
            merged.push(commit.clone());
            continue;
        };
        let whole = &mut merged[*index];
        debug_assert_eq!(commit.expected_seq, whole.expected_seq + whole.entries.len() as u64);
        whole.entries.extend(commit.entries.iter().cloned());
        for sender in &commit.senders {
            whole.senders.retain(|other| other.slot != sender.slot);
            whole.senders.push(*sender);
        }
        whole.members.extend_from_slice(&commit.members);
        whole.guard_seq = commit.guard_seq.or(whole.guard_seq);
        whole.join_key = commit.join_key.or(whole.join_key);
        for (device, acked) in &commit.acks {
            whole.acks.retain(|(other, _)| other != device);
            whole.acks.push((*device, acked.clone()));
        }
        whole.freed.extend_from_slice(&commit.freed);
        whole.freed.sort_unstable();
        whole.floor = commit.floor.or(whole.floor);
        merge_vault(&mut whole.vault, commit.vault.as_ref());
        whole.ended |= commit.ended;
    }
    merged
}

fn merge_vault(whole: &mut Option<VaultChange>, next: Option<&VaultChange>) {
    let Some(next) = next else {
        return;
    };
    let whole = whole.get_or_insert_default();
    whole.counts = next.counts;
    for snapshot in &next.snapshots {
        whole.snapshots.retain(|other| other.digest != snapshot.digest);
        whole.snapshots.push(*snapshot);
    }
    whole.snapshots.retain(|snapshot| !next.dropped.contains(&snapshot.digest));
    whole.dropped.extend_from_slice(&next.dropped);
}

/// Loads logs in one read, and one by one if one of them cannot be read.
async fn load(store: Arc<dyn Store>, loads: Vec<Load>) -> Answers {
    let keys: Vec<LogKey> = loads.iter().map(|load| load.key).collect();
    let result = timeout(STORE_DEADLINE, store.load(&keys)).await;
    match result.unwrap_or(Err(StoreError::Unavailable)) {
        Ok(records) => {
            counter!(LOGS_LOADED).increment(keys.len() as u64);
            for (load, record) in loads.into_iter().zip(records) {
                load.deliver(Ok(record));
            }
        }
        Err(StoreError::Corrupt) if loads.len() > 1 => {
            for one in loads {
                Box::pin(load(store.clone(), vec![one])).await;
            }
        }
        Err(error) => {
            tracing::warn!(%error, logs = keys.len(), "logs could not be loaded");
            for load in loads {
                load.deliver(Err(error));
            }
        }
    }
    Answers::new()
}
