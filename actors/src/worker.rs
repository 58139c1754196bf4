//! Retention in a process of its own, beside a relay that serves the same database.
//!
//! It decides what the relay's own retention decides, but has no actor to ask. So it touches only logs
//! that rest: without an entry and without an ack for an hour. When an entry was ordered is stored; when
//! an ack came is not, and is not to be: the worker remembers what had been acked when it first saw that
//! a log was due, and comes back an hour later. A log that never rests is left to the relay, which takes
//! what is overdue.
//!
//! Holds always: a log is altered with its head locked, from what it is then; whoever serves it finds
//! its memory stale and loads anew.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use parking_lot::Mutex;

use crate::limits::{
    DEVICE_IDLE, GROUP_IDLE, RESERVATION_LIFETIME, RESTING, RETENTION_LOGS_MAX, RETENTION_ROWS_MAX,
    WORKER_LOGS_MAX,
};
use crate::log::resting;
use crate::metrics::{GROUPS_ENDED, Outcomes, SWEPT};
use crate::ports::{Clock, LogCommit, LogKey, LogRecord, Position, RestingLogs, StoreError};
use crate::retention::before;
use crate::session::ask;

/// Retention's decisions over logs that rest.
pub struct Worker {
    logs: Arc<dyn RestingLogs>,
    clock: Arc<dyn Clock>,
    body_lifetime: Duration,
    resting: Duration,
    /// The last log that was looked at; the next step goes on after it.
    after: LogKey,
    /// Logs that are due, and what they were when they were first seen so.
    seen: HashMap<LogKey, Seen>,
    round: u64,
}

/// What a log was, and since when.
struct Seen {
    state: u64,
    since: u64,
    round: u64,
}

/// What is to be done to a log.
#[derive(Clone, Copy)]
enum Due {
    Expire(Position, u64),
    End(u64),
}

/// What a step has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stepped {
    /// Logs that were altered.
    pub logs: u64,
    /// Rows that were swept.
    pub rows: u64,
}

impl Worker {
    /// A worker that keeps bodies for `body_lifetime`.
    #[must_use]
    pub fn new(logs: Arc<dyn RestingLogs>, clock: Arc<dyn Clock>, body_lifetime: Duration) -> Self {
        Self {
            logs,
            clock,
            body_lifetime,
            resting: RESTING,
            after: LogKey(0),
            seen: HashMap::new(),
            round: 0,
        }
    }

    /// The same with another time that a log must have rested.
    #[must_use]
    pub fn resting_for(self, resting: Duration) -> Self {
        Self { resting, ..self }
    }

    /// One step: some logs, some rows.
    ///
    /// # Errors
    /// [`StoreError`]; the step is taken again.
    pub async fn step(&mut self) -> Result<Stepped, StoreError> {
        let now = self.clock.now_ms();
        let mut stepped = Stepped::default();
        for (key, due) in self.due(now).await? {
            stepped.logs += u64::from(self.take(key, due, now).await?);
        }
        let sweep = self.logs.sweep(
            before(now, RESERVATION_LIFETIME),
            before(now, DEVICE_IDLE),
            now,
            RETENTION_ROWS_MAX,
        );
        stepped.rows = ask(sweep).await?;
        counter!(SWEPT).increment(stepped.rows);
        Ok(stepped)
    }

    /// The next logs that are due.
    async fn due(&mut self, now: u64) -> Result<Vec<(LogKey, Due)>, StoreError> {
        let old = before(now, self.body_lifetime);
        let (expiring, last) =
            ask(self.logs.due_for_expiry(self.after, old, RETENTION_LOGS_MAX)).await?;
        let idle = before(now, GROUP_IDLE);
        let ending = ask(self.logs.idle_groups(idle, RETENTION_LOGS_MAX)).await?;
        let mut due: Vec<_> = ending.iter().map(|key| (*key, Due::End(idle))).collect();
        let others = expiring.iter().filter(|log| !ending.contains(&log.key));
        due.extend(others.map(|log| (log.key, Due::Expire(log.up_to, old))));
        match last {
            Some(last) => self.after = last,
            None => {
                // All have been looked at: what was not met again is not due any more.
                self.after = LogKey(0);
                let round = self.round;
                self.seen.retain(|_, seen| seen.round >= round);
                self.round += 1;
            }
        }
        Ok(due)
    }

    /// Takes a log in hand if it has rested. Tells whether it was altered.
    async fn take(&mut self, key: LogKey, due: Due, now: u64) -> Result<bool, StoreError> {
        let loaded = ask(self.logs.load(&[key])).await?;
        let Some(record) = loaded.into_iter().next().flatten() else { return Ok(false) };
        let state = state_of(&record);
        if !self.has_rested(key, &record, state, now) {
            return Ok(false);
        }
        self.seen.remove(&key);
        let outcomes = Arc::new(Mutex::new(Outcomes::default()));
        let decided = outcomes.clone();
        let alter = move |record: LogRecord| -> Option<LogCommit> {
            // Between looking and locking it may have awoken.
            if state_of(&record) != state {
                return None;
            }
            let (commit, outcomes) = match due {
                Due::Expire(up_to, old) => resting::expire(record, up_to, old)?,
                Due::End(idle) => resting::end_if_idle(record, idle)?,
            };
            *decided.lock() = outcomes;
            Some(commit)
        };
        let altered = ask(self.logs.alter(key, Box::new(alter))).await?;
        if altered {
            std::mem::take(&mut *outcomes.lock()).count();
            if let Due::End(_) = due {
                counter!(GROUPS_ENDED).increment(1);
            }
        }
        Ok(altered)
    }

    fn has_rested(&mut self, key: LogKey, record: &LogRecord, state: u64, now: u64) -> bool {
        if record.last_entry_at > before(now, self.resting) {
            self.seen.remove(&key);
            return false;
        }
        let (round, known) = (self.round, self.seen.len());
        match self.seen.get_mut(&key) {
            Some(seen) if seen.state == state => {
                seen.round = round;
                seen.since <= before(now, self.resting)
            }
            Some(seen) => {
                *seen = Seen { state, since: now, round };
                self.resting.is_zero()
            }
            // Beyond the bound, logs wait until others have been done.
            None if known >= WORKER_LOGS_MAX => false,
            None => {
                self.seen.insert(key, Seen { state, since: now, round });
                self.resting.is_zero()
            }
        }
    }
}

/// What an entry, an ack or a change of membership changes.
fn state_of(record: &LogRecord) -> u64 {
    let mut hasher = DefaultHasher::new();
    (record.head.seq, record.version, record.floor.seq).hash(&mut hasher);
    for known in &record.members {
        known.member.device.hash(&mut hasher);
        known.acked.floor().hash(&mut hasher);
        known.acked.stored_ranges().hash(&mut hasher);
    }
    hasher.finish()
}
