//! A store in memory and a clock that is turned by hand: the world, as unit tests want it.
//!
//! [`MemoryStore`] keeps the promises of [`Store`] and passes the same contract tests as SQLite and
//! PostgreSQL (`tests/store_contract.rs` of the relay crate), where it also serves as the model that
//! the two are compared with. On top of that it can be told to fail, to be held, to lose an answer
//! or to panic, which no database does on demand. It is never part of a relay: the module exists
//! under `cfg(test)` and the feature `fakes` only.
//!
//! Holds always: a failed, refused or held commit has changed nothing.

mod log;
mod push;
mod recovery;
mod state;
pub mod trouble;
mod vaults;

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use sealwire_protocol::challenge::CHALLENGE_BYTES;
use sealwire_protocol::frame::Member;
use sealwire_protocol::{DeviceKey, Digest, LogId};
use tokio::sync::{Barrier, watch};

pub use self::push::FakePush;
use self::state::State;
use crate::ports::{
    Clock, CommitResult, Controls, ControlsRequest, Doorbell, DueLog, FoundResult, GroupRecord,
    LogBrief, LogCommit, LogKey, LogRecord, NewLog, PageRequest, PendingRequest, Position,
    ReserveResult, Store, StoreError, StoreStats, StoredEntry, SubscriptionRecord,
};

/// A clock that stands still until it is turned.
#[derive(Debug)]
pub struct HandClock(AtomicU64);

impl HandClock {
    /// A clock at `now`, in milliseconds since the epoch.
    #[must_use]
    pub const fn at(now: u64) -> Self {
        Self(AtomicU64::new(now))
    }

    /// Turns it forward by `by` milliseconds.
    pub fn turn(&self, by: u64) {
        self.0.fetch_add(by, Ordering::SeqCst);
    }

    /// Sets it, forward or back.
    pub fn set(&self, now: u64) {
        self.0.store(now, Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// What happens to a commit in place of being committed and answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mishap {
    /// Nothing is committed, and the answer is this error.
    Fails(StoreError),
    /// All of it is committed, and the answer is [`StoreError::Unavailable`]: the unknown outcome.
    AnswerLost,
    /// Nothing is committed, and the store panics.
    Panics,
}

/// A [`Store`] in memory.
pub struct MemoryStore {
    incarnation: u64,
    committers: usize,
    state: Mutex<State>,
    vaults: Mutex<recovery::Vaults>,
    hooks: Mutex<Hooks>,
    held: watch::Sender<bool>,
    waiting: watch::Sender<usize>,
    commits: AtomicU64,
    reads_failed: watch::Sender<u64>,
}

#[derive(Default)]
struct Hooks {
    mishaps: VecDeque<Mishap>,
    poisoned: BTreeSet<LogKey>,
    unreadable: bool,
    elsewhere: bool,
    /// Logs whose readers panic.
    panicking: BTreeSet<LogKey>,
    /// Devices whose arrival panics.
    unwelcome: BTreeSet<DeviceKey>,
    /// What the next reservation's answer waits at.
    reservation: Option<Arc<Barrier>>,
    /// What the answer to the next question where a subscription begins waits at.
    subscription: Option<Arc<Barrier>>,
    /// How often entries that do not decode were read; none while all do.
    spoiled: Option<u64>,
    /// How many more times the store is unavailable when entries are looked at for doorbells.
    recent_failures: u32,
    tokens_unreadable: bool,
    /// How long it takes to look tokens up.
    token_lookups_take: Duration,
    /// How many more times the store is unavailable when a token is to be forgotten.
    forget_failures: u32,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store with one committer.
    #[must_use]
    pub fn new() -> Self {
        Self::with(1, 1)
    }

    /// An empty store of this incarnation and with so many committers.
    #[must_use]
    pub fn with(incarnation: u64, committers: usize) -> Self {
        Self {
            incarnation,
            committers,
            state: Mutex::new(State::default()),
            vaults: Mutex::default(),
            hooks: Mutex::new(Hooks::default()),
            held: watch::Sender::new(false),
            waiting: watch::Sender::new(0),
            commits: AtomicU64::new(0),
            reads_failed: watch::Sender::new(0),
        }
    }

    /// The next `times` commits (founding included) meet this mishap, after those asked for before.
    pub fn next_commits(&self, times: usize, mishap: Mishap) {
        self.hooks.lock().mishaps.extend(std::iter::repeat_n(mishap, times));
    }

    /// From now on every batch with entries for this log is refused as a whole.
    pub fn poison(&self, key: LogKey) {
        self.hooks.lock().poisoned.insert(key);
    }

    /// Ends [`Self::poison`] and [`Self::panic_on_reads`].
    pub fn heal(&self, key: LogKey) {
        let mut hooks = self.hooks.lock();
        hooks.poisoned.remove(&key);
        hooks.panicking.remove(&key);
    }

    /// While on, every read is answered [`StoreError::Unavailable`].
    pub fn fail_reads(&self, on: bool) {
        self.hooks.lock().unreadable = on;
    }

    /// Waits until a read has been answered [`StoreError::Unavailable`] since this was asked.
    pub async fn read_failed(&self) {
        let mut failed = self.reads_failed.subscribe();
        // The sender lives in self, so the wait ends only by the condition.
        let _ = failed.changed().await;
    }

    /// Whoever asks for a page of this log or for its members panics, as a bug would, until
    /// [`Self::heal`].
    pub fn panic_on_reads(&self, key: LogKey) {
        self.hooks.lock().panicking.insert(key);
    }

    /// While on, whoever asks for this device's logs panics.
    pub fn panic_on_arrival(&self, device: DeviceKey, on: bool) {
        let mut hooks = self.hooks.lock();
        if on {
            hooks.unwelcome.insert(device)
        } else {
            hooks.unwelcome.remove(&device)
        };
    }

    /// While on, another process holds the lock for retention.
    pub fn hold_retention(&self, on: bool) {
        self.hooks.lock().elsewhere = on;
    }

    /// Commits wait, before they change anything, until [`Self::release_commits`].
    pub fn hold_commits(&self) {
        self.held.send_replace(true);
    }

    /// Lets all held commits go on, and later ones pass.
    pub fn release_commits(&self) {
        self.held.send_replace(false);
    }

    /// Waits until at least `count` commits are held.
    pub async fn commits_held(&self, count: usize) {
        // The sender lives in self, so the wait ends only by the condition.
        let _ = self.waiting.subscribe().wait_for(|waiting| *waiting >= count).await;
    }

    /// How many transactions with at least one part have been committed.
    #[must_use]
    pub fn commits(&self) -> u64 {
        self.commits.load(Ordering::SeqCst)
    }

    /// The next place that is reserved is told of late: its answer meets this barrier of two when the
    /// place is kept, and once more before it goes.
    #[must_use]
    pub fn hold_next_reservation(&self) -> Arc<Barrier> {
        let barrier = Arc::new(Barrier::new(2));
        self.hooks.lock().reservation = Some(barrier.clone());
        barrier
    }

    /// The same of the next answer to where a subscription begins, once it was read.
    #[must_use]
    pub fn hold_next_subscription(&self) -> Arc<Barrier> {
        let barrier = Arc::new(Barrier::new(2));
        self.hooks.lock().subscription = Some(barrier.clone());
        barrier
    }

    /// Raises a log's version, as one who changes it without appending.
    pub fn raise_version(&self, key: LogKey) {
        self.state.lock().raise_version(key);
    }

    /// Waits while commits are held and gives the mishap that this one meets.
    async fn admit(&self) -> Option<Mishap> {
        let waiting = Waiting::enter(&self.waiting);
        let _ = self.held.subscribe().wait_for(|held| !*held).await;
        drop(waiting);
        self.hooks.lock().mishaps.pop_front()
    }

    fn meet<T>(
        &self,
        mishap: Option<Mishap>,
        write: impl FnOnce(&mut State) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match mishap {
            Some(Mishap::Fails(error)) => return Err(error),
            Some(Mishap::Panics) => panic!("the store was told to panic"),
            Some(Mishap::AnswerLost) | None => {}
        }
        let outcome = write(&mut self.state.lock())?;
        self.commits.fetch_add(1, Ordering::SeqCst);
        if mishap == Some(Mishap::AnswerLost) { Err(StoreError::Unavailable) } else { Ok(outcome) }
    }

    fn panic_if_told(&self, key: LogKey) {
        let told = self.hooks.lock().panicking.contains(&key);
        assert!(!told, "the store was told to panic");
    }

    fn read<T>(&self, read: impl FnOnce(&State) -> T) -> Result<T, StoreError> {
        if self.hooks.lock().unreadable {
            self.reads_failed.send_modify(|failed| *failed += 1);
            return Err(StoreError::Unavailable);
        }
        Ok(read(&self.state.lock()))
    }
}

/// Counts one held commit for as long as it lives.
struct Waiting<'a>(&'a watch::Sender<usize>);

impl<'a> Waiting<'a> {
    fn enter(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// Waits at a barrier of two, and once more.
async fn meet_twice(barrier: Option<Arc<Barrier>>) {
    if let Some(barrier) = barrier {
        barrier.wait().await;
        barrier.wait().await;
    }
}

#[async_trait]
impl Store for MemoryStore {
    fn incarnation(&self) -> u64 {
        self.incarnation
    }

    fn committers(&self) -> usize {
        self.committers
    }

    async fn commit(&self, batch: &[LogCommit]) -> Result<Vec<CommitResult>, StoreError> {
        let mishap = self.admit().await;
        let poisoned = {
            let hooks = self.hooks.lock();
            batch.iter().any(|part| !part.entries.is_empty() && hooks.poisoned.contains(&part.key))
        };
        let mishap = if poisoned { Some(Mishap::Fails(StoreError::Refused)) } else { mishap };
        self.meet(mishap, |state| state.commit(batch))
    }

    async fn found(&self, log: &NewLog, groups_max: u32) -> Result<FoundResult, StoreError> {
        let mishap = self.admit().await;
        self.meet(mishap, |state| state.found(log, groups_max))
    }

    async fn reserve(
        &self,
        key: LogKey,
        device: DeviceKey,
        groups_max: u32,
        now: u64,
        since: u64,
    ) -> Result<ReserveResult, StoreError> {
        let reserved = self.state.lock().reserve(key, device, groups_max, now, since);
        let barrier = self.hooks.lock().reservation.take();
        meet_twice(barrier).await;
        Ok(reserved)
    }

    async fn load(&self, keys: &[LogKey]) -> Result<Vec<Option<LogRecord>>, StoreError> {
        self.read(|state| keys.iter().map(|key| state.load(*key)).collect())
    }

    async fn find_log(&self, id: LogId) -> Result<Option<LogBrief>, StoreError> {
        self.read(|state| state.find_log(id))
    }

    async fn revoked_at(&self, id: LogId, device: DeviceKey) -> Result<Option<u64>, StoreError> {
        self.read(|state| state.revoked_at(id, device))
    }

    async fn memberships(&self, device: DeviceKey) -> Result<Vec<LogBrief>, StoreError> {
        let unwelcome = self.hooks.lock().unwelcome.contains(&device);
        assert!(!unwelcome, "the store was told to panic");
        self.read(|state| state.memberships(device))
    }

    async fn totals_groups(&self, device: DeviceKey) -> Result<Vec<GroupRecord>, StoreError> {
        self.read(|state| state.totals_groups(device))
    }

    async fn subscription(
        &self,
        key: LogKey,
        device: DeviceKey,
    ) -> Result<Option<SubscriptionRecord>, StoreError> {
        let record = self.read(|state| state.subscription(key, device));
        let barrier = self.hooks.lock().subscription.take();
        meet_twice(barrier).await;
        record
    }

    async fn members(&self, key: LogKey) -> Result<Option<(Position, Vec<Member>)>, StoreError> {
        self.panic_if_told(key);
        self.read(|state| state.members(key))
    }

    async fn chain_at(&self, key: LogKey, seq: u64) -> Result<Option<Digest>, StoreError> {
        self.read(|state| state.chain_at(key, seq))
    }

    async fn find_entry(
        &self,
        key: LogKey,
        sender: DeviceKey,
        count: u64,
    ) -> Result<Option<(u64, Digest)>, StoreError> {
        self.read(|state| state.find_entry(key, sender, count))
    }

    async fn read_page(&self, request: &PageRequest) -> Result<Vec<StoredEntry>, StoreError> {
        self.panic_if_told(request.key);
        self.read(|state| state.read_page(request))
    }

    async fn read_pending(
        &self,
        request: &PendingRequest,
    ) -> Result<Option<Vec<StoredEntry>>, StoreError> {
        self.read(|state| state.read_pending(request))
    }

    async fn control_at(&self, key: LogKey, body: &[u8]) -> Result<Option<u64>, StoreError> {
        self.read(|state| state.control_at(key, body))
    }

    async fn read_controls(&self, request: &ControlsRequest) -> Result<Controls, StoreError> {
        self.read(|state| state.read_controls(request))
    }

    async fn due_for_expiry(
        &self,
        after: LogKey,
        before: u64,
        limit: usize,
    ) -> Result<(Vec<DueLog>, Option<LogKey>), StoreError> {
        self.read(|state| state.due_for_expiry(after, before, limit))
    }

    async fn idle_groups(&self, before: u64, limit: usize) -> Result<Vec<LogKey>, StoreError> {
        self.read(|state| state.idle_groups(before, limit))
    }

    async fn sweep(
        &self,
        reservations_before: u64,
        devices_before: u64,
        now: u64,
        limit: usize,
    ) -> Result<u64, StoreError> {
        Ok(self.state.lock().sweep(reservations_before, devices_before, now, limit))
    }

    async fn claim_challenges(
        &self,
        challenges: &[([u8; CHALLENGE_BYTES], u64)],
    ) -> Result<Vec<bool>, StoreError> {
        let mishap = self.admit().await;
        self.meet(mishap, |state| Ok(state.claim_challenges(challenges)))
    }

    async fn set_push_tokens(&self, doorbells: &[Doorbell], now: u64) -> Result<(), StoreError> {
        let mut state = self.state.lock();
        for doorbell in doorbells {
            state.set_push_token(doorbell.device, doorbell.place.clone(), now);
        }
        Ok(())
    }

    async fn push_token(&self, device: DeviceKey) -> Result<Option<(String, String)>, StoreError> {
        self.read(|state| state.push_token(device))
    }

    async fn touch_device(&self, device: DeviceKey, now: u64) -> Result<(), StoreError> {
        self.state.lock().touch_device(device, now);
        Ok(())
    }

    async fn retention_is_elsewhere(&self) -> Result<bool, StoreError> {
        self.read(|_| self.hooks.lock().elsewhere)
    }

    async fn ready(&self) -> Result<(), StoreError> {
        self.read(|_| ())
    }

    async fn stats(&self) -> Result<StoreStats, StoreError> {
        self.read(State::stats)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_held_commit_has_changed_nothing_until_it_is_released() {
        let store = Arc::new(MemoryStore::new());
        store.hold_commits();
        let commit = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.commit(&[LogCommit::new(LogKey(1), 0, 0)]).await }
        });
        store.commits_held(1).await;
        assert_eq!(store.commits(), 0);
        store.release_commits();
        assert_eq!(commit.await.expect("no panic"), Ok(vec![CommitResult::Stale]));
        assert_eq!(store.commits(), 1);
    }

    #[tokio::test]
    async fn mishaps_are_met_in_the_order_in_which_they_were_asked_for() {
        let store = MemoryStore::new();
        store.next_commits(1, Mishap::Fails(StoreError::Refused));
        store.next_commits(1, Mishap::AnswerLost);
        let batch = [LogCommit::new(LogKey(1), 0, 0)];
        assert_eq!(store.commit(&batch).await, Err(StoreError::Refused));
        assert_eq!(store.commits(), 0);
        assert_eq!(store.commit(&batch).await, Err(StoreError::Unavailable));
        assert_eq!(store.commits(), 1);
        assert_eq!(store.commit(&batch).await, Ok(vec![CommitResult::Stale]));
    }

    #[test]
    fn the_clock_moves_only_when_it_is_turned() {
        let clock = HandClock::at(5);
        assert_eq!((clock.now_ms(), clock.now_ms()), (5, 5));
        clock.turn(3);
        assert_eq!(clock.now_ms(), 8);
        clock.set(1);
        assert_eq!(clock.now_ms(), 1);
    }
}
