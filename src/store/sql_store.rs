//! The [`Store`] of the relay, over either database.
//!
//! It adds to the statements what no statement can: writing stops while another relay may hold the
//! lock, the days on which devices were here are gathered for a second before they are written, and
//! aggregate counts are kept for a minute.
//!
//! Holds always: nothing is written while this relay's [`Standing`] is not serving.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use sealwire_actors::ports::{
    CommitResult, Controls, ControlsRequest, Doorbell, DueLog, FoundResult, GroupRecord, LogBrief,
    LogCommit, LogKey, LogRecord, NewLog, PageRequest, PendingRequest, Position, ReserveResult,
    Store, StoreError, StoreStats, StoredEntry, SubscriptionRecord,
};
use sealwire_protocol::challenge::CHALLENGE_BYTES;
use sealwire_protocol::frame::Member;
use sealwire_protocol::{DeviceKey, Digest, LogId};
use sqlx::Executor;
use tokio::sync::watch;

use super::Standing;
use super::advisory::RETENTION_LOCK;
use super::commit;
use super::dialect::{Columns, Dialect, Value};
use super::lanes::Lanes;
use super::tenure::Tenure;
use super::writes::day;

/// How long aggregate counts are kept: they are for people, and cost a walk through tables.
const STATS_AGE_MAX: Duration = Duration::from_secs(60);

/// Most devices whose day is gathered before it is written; more are written at once. A wave of
/// returning devices fits a few such statements.
const TOUCHES_MAX: usize = 4096;

/// For how long a failed commit means that the store is not ready. Devices that were told to come back
/// do so within it, and try for real.
const FAILED_LATELY: Duration = Duration::from_secs(5);

/// When a commit last failed, if none has succeeded since. A disk that is full takes a small write
/// that is undone, and only a commit shows it.
#[derive(Default)]
struct Failed(Mutex<Option<Instant>>);

impl Failed {
    fn since(&self) -> Option<Duration> {
        self.0.lock().map(|at| at.elapsed())
    }

    fn attempt(&self) -> Attempt<'_> {
        Attempt { failed: self, fails: true }
    }
}

/// A commit under way. Dropped before its end, as at a deadline, it has failed.
struct Attempt<'a> {
    failed: &'a Failed,
    fails: bool,
}

impl Attempt<'_> {
    fn ends(mut self, error: Option<&StoreError>) {
        self.fails = error == Some(&StoreError::Unavailable);
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        *self.failed.0.lock() = self.fails.then(Instant::now);
    }
}

/// How a database counts what it holds.
#[async_trait]
pub(super) trait Count: Dialect {
    /// Counts now, without regard to cost.
    async fn count(lanes: &Lanes<Self>) -> Result<StoreStats, StoreError>;
}

/// A store in an SQL database.
pub(super) struct SqlStore<D: Dialect> {
    pub(super) lanes: Lanes<D>,
    pub(super) tenure: Tenure,
    pub(super) standing: watch::Sender<Standing>,
    failed: Failed,
    touches: Mutex<HashMap<DeviceKey, u64>>,
    swept: Mutex<Option<DeviceKey>>,
    stats: tokio::sync::Mutex<Option<(Instant, StoreStats)>>,
}

impl<D: Count> SqlStore<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    pub(super) fn new(lanes: Lanes<D>, tenure: Tenure, standing: watch::Sender<Standing>) -> Self {
        Self {
            lanes,
            tenure,
            standing,
            failed: Failed::default(),
            touches: Mutex::default(),
            swept: Mutex::default(),
            stats: tokio::sync::Mutex::default(),
        }
    }

    pub(super) fn may_write(&self) -> Result<(), StoreError> {
        match *self.standing.borrow() {
            Standing::Serving => Ok(()),
            Standing::Waiting | Standing::Superseded => Err(StoreError::Unavailable),
        }
    }

    async fn commit_once(&self, batch: &[LogCommit]) -> Result<Vec<CommitResult>, StoreError> {
        commit::run(self.lanes.commit().await?, batch).await
    }

    /// Learns where a log of a batch ends now: any of them does.
    fn learn(&self, batch: &[LogCommit], results: &[CommitResult]) {
        let gone = Position { seq: 0, chain: Digest::ZERO };
        let head = |part: &LogCommit| {
            let newest = part.entries.last();
            let head = newest.map(|entry| Position { seq: entry.seq, chain: entry.chain });
            if part.ended { Some(gone) } else { head }
        };
        let committed =
            batch.iter().zip(results).filter(|(_, result)| **result == CommitResult::Committed);
        let mut heads = committed.filter_map(|(part, _)| Some((part.key, head(part)?)));
        if let Some((key, head)) = heads.next_back() {
            self.tenure.committed(key, head);
        }
    }

    /// Writes the days that were gathered. What cannot be written now is forgotten: the device will
    /// be here again.
    pub(super) async fn flush_touches(&self) -> Result<(), StoreError> {
        let days: Vec<(DeviceKey, u64)> = self.touches.lock().drain().collect();
        if days.is_empty() {
            return Ok(());
        }
        self.may_write()?;
        self.lanes.touch_devices(&days).await
    }
}

#[async_trait]
impl<D: Count> Store for SqlStore<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    fn incarnation(&self) -> u64 {
        self.tenure.incarnation
    }

    fn committers(&self) -> usize {
        self.lanes.committers()
    }

    async fn commit(&self, batch: &[LogCommit]) -> Result<Vec<CommitResult>, StoreError> {
        self.may_write()?;
        let attempt = self.failed.attempt();
        let results = self.commit_once(batch).await;
        attempt.ends(results.as_ref().err());
        self.learn(batch, results.as_deref().unwrap_or_default());
        results
    }

    async fn found(&self, log: &NewLog, groups_max: u32) -> Result<FoundResult, StoreError> {
        self.may_write()?;
        let result = self.lanes.found(log, groups_max).await?;
        if let FoundResult::Created(key) = result {
            self.tenure.committed(key, Position { seq: log.entry.seq, chain: log.entry.chain });
        }
        Ok(result)
    }

    async fn reserve(
        &self,
        key: LogKey,
        device: DeviceKey,
        groups_max: u32,
        now: u64,
        since: u64,
    ) -> Result<ReserveResult, StoreError> {
        self.may_write()?;
        self.lanes.reserve(key, device, groups_max, now, since).await
    }

    async fn load(&self, keys: &[LogKey]) -> Result<Vec<Option<LogRecord>>, StoreError> {
        self.lanes.load(keys).await
    }

    async fn find_log(&self, id: LogId) -> Result<Option<LogBrief>, StoreError> {
        self.lanes.find_log(id).await
    }

    async fn revoked_at(&self, id: LogId, device: DeviceKey) -> Result<Option<u64>, StoreError> {
        self.lanes.revoked_at(id, device).await
    }

    async fn memberships(&self, device: DeviceKey) -> Result<Vec<LogBrief>, StoreError> {
        self.lanes.memberships(device).await
    }

    async fn totals_groups(&self, device: DeviceKey) -> Result<Vec<GroupRecord>, StoreError> {
        self.lanes.totals_groups(device).await
    }

    async fn subscription(
        &self,
        key: LogKey,
        device: DeviceKey,
    ) -> Result<Option<SubscriptionRecord>, StoreError> {
        self.lanes.subscription(key, device).await
    }

    async fn members(&self, key: LogKey) -> Result<Option<(Position, Vec<Member>)>, StoreError> {
        self.lanes.members(key).await
    }

    async fn chain_at(&self, key: LogKey, seq: u64) -> Result<Option<Digest>, StoreError> {
        self.lanes.chain_at(key, seq).await
    }

    async fn find_entry(
        &self,
        key: LogKey,
        sender: DeviceKey,
        count: u64,
    ) -> Result<Option<(u64, Digest)>, StoreError> {
        self.lanes.find_entry(key, sender, count).await
    }

    async fn read_page(&self, request: &PageRequest) -> Result<Vec<StoredEntry>, StoreError> {
        self.lanes.read_page(request).await
    }

    async fn read_pending(
        &self,
        request: &PendingRequest,
    ) -> Result<Option<Vec<StoredEntry>>, StoreError> {
        self.lanes.read_pending(request).await
    }

    async fn control_at(&self, key: LogKey, body: &[u8]) -> Result<Option<u64>, StoreError> {
        self.lanes.control_at(key, body).await
    }

    async fn read_controls(&self, request: &ControlsRequest) -> Result<Controls, StoreError> {
        self.lanes.read_controls(request).await
    }

    async fn due_for_expiry(
        &self,
        after: LogKey,
        before: u64,
        limit: usize,
    ) -> Result<(Vec<DueLog>, Option<LogKey>), StoreError> {
        self.lanes.due_for_expiry(after, before, limit).await
    }

    async fn idle_groups(&self, before: u64, limit: usize) -> Result<Vec<LogKey>, StoreError> {
        self.lanes.idle_groups(before, limit).await
    }

    async fn sweep(
        &self,
        reservations_before: u64,
        devices_before: u64,
        now: u64,
        limit: usize,
    ) -> Result<u64, StoreError> {
        self.may_write()?;
        // A device that was here a second ago is not idle.
        self.flush_touches().await?;
        let gone = self.lanes.sweep(reservations_before, devices_before, now, limit).await?;
        let after = *self.swept.lock();
        let (empty, last) = self.lanes.sweep_empty_devices(after, limit).await?;
        *self.swept.lock() = last;
        Ok(gone + empty)
    }

    async fn claim_challenges(
        &self,
        challenges: &[([u8; CHALLENGE_BYTES], u64)],
    ) -> Result<Vec<bool>, StoreError> {
        self.may_write()?;
        self.lanes.claim_challenges(challenges).await
    }

    async fn set_push_tokens(&self, doorbells: &[Doorbell], now: u64) -> Result<(), StoreError> {
        self.may_write()?;
        self.lanes.set_push_tokens(doorbells, now).await
    }

    async fn push_token(&self, device: DeviceKey) -> Result<Option<(String, String)>, StoreError> {
        self.lanes.push_token(device).await
    }

    async fn touch_device(&self, device: DeviceKey, now: u64) -> Result<(), StoreError> {
        let full = {
            let mut touches = self.touches.lock();
            let seen = touches.entry(device).or_default();
            *seen = (*seen).max(day(now));
            touches.len() >= TOUCHES_MAX
        };
        if full { self.flush_touches().await } else { Ok(()) }
    }

    async fn retention_is_elsewhere(&self) -> Result<bool, StoreError> {
        let Some(sql) = D::RETENTION_HELD else { return Ok(false) };
        let [high, low] = [RETENTION_LOCK >> 32, RETENTION_LOCK & 0xffff_ffff];
        let rows = self.lanes.query(sql, &[Value::Int(high), Value::Int(low)]).await?;
        Ok(rows.first().map_or(Ok(0), |row| row.int(0))? > 0)
    }

    async fn ready(&self) -> Result<(), StoreError> {
        self.may_write()?;
        match self.failed.since() {
            None => self.lanes.ready(false).await,
            // Whoever has just failed tries again soon, and would fail again.
            Some(since) if since < FAILED_LATELY => Err(StoreError::Unavailable),
            Some(_) => {
                let attempt = self.failed.attempt();
                let written = self.lanes.ready(true).await;
                attempt.ends(written.as_ref().err());
                written
            }
        }
    }

    async fn stats(&self) -> Result<StoreStats, StoreError> {
        // Held while counting, so that a crowd of askers counts once.
        let mut kept = self.stats.lock().await;
        if let Some((since, stats)) = *kept
            && since.elapsed() < STATS_AGE_MAX
        {
            return Ok(stats);
        }
        let stats = D::count(&self.lanes).await?;
        *kept = Some((Instant::now(), stats));
        Ok(stats)
    }
}
