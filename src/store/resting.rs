//! A PostgreSQL store as a worker sees it: beside the relay, for retention alone.
//!
//! It takes a lock of its own, by which the relay knows that retention is done elsewhere, and never the
//! relay's. It migrates nothing, raises no counter and has no incarnation: it cannot append.
//!
//! Holds always: a log is altered only with its head locked, and its version is raised in the same
//! transaction.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sealwire_actors::ports::{Alter, DueLog, LogKey, LogRecord, RestingLogs, StoreError};
use sqlx::Postgres;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::advisory::{self, AdvisoryLock, RETENTION_LOCK};
use super::dialect::{Dialect, Value};
use super::failure::Judge;
use super::lanes::{Lanes, Lease, Verdict};
use super::{OpenError, STANDBY_PAUSE, Scheme, StoreOptions, commit, load, postgres};

const LOCK_HEAD: &str = "select seq from logs where key = $1 for no key update";

const RAISE_VERSION: &str = "update logs set version = version + 1 where key = $1";

/// A store that is open for a worker.
pub struct OpenResting {
    logs: Arc<Resting>,
    stop: oneshot::Sender<()>,
    watching: JoinHandle<()>,
}

impl OpenResting {
    /// The logs.
    #[must_use]
    pub fn logs(&self) -> Arc<dyn RestingLogs> {
        Arc::clone(&self.logs) as Arc<dyn RestingLogs>
    }

    /// Follows whether this process holds the lock for retention. While it does not, everything is
    /// answered [`StoreError::Unavailable`].
    #[must_use]
    pub fn holding(&self) -> watch::Receiver<bool> {
        self.logs.holding.subscribe()
    }

    /// Closes all connections and gives up the lock.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if that has not ended within `deadline`.
    pub async fn close(self, deadline: Duration) -> Result<(), StoreError> {
        // Whoever listened and is gone has closed it.
        let _ = self.stop.send(());
        match timeout(deadline, self.watching).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(StoreError::Unavailable),
        }
    }
}

/// Opens a store for a worker: takes the lock for retention, waiting for it if so told.
///
/// # Errors
/// An [`OpenError`]; nothing is left open.
pub async fn open_resting(options: &StoreOptions) -> Result<OpenResting, OpenError> {
    let Scheme::Postgres = Scheme::of(&options.url)? else {
        return Err(OpenError::NeedsPostgres);
    };
    let judge = Judge::new();
    let connect: PgConnectOptions = postgres::options(&options.url)?;
    postgres::check_migrated(&connect, &judge).await?;
    let lock = advisory::lock(RETENTION_LOCK, &connect, options.lock, &judge).await?;
    let logs = Arc::new(Resting {
        lanes: postgres::lanes(&connect, &judge),
        holding: watch::Sender::new(true),
        swept: parking_lot::Mutex::default(),
    });
    let (stop, stopped) = oneshot::channel();
    let watching = tokio::spawn(keep(Arc::clone(&logs), lock, stopped));
    Ok(OpenResting { logs, stop, watching })
}

/// Watches over the lock until told to stop, or until whoever could tell is gone.
async fn keep(logs: Arc<Resting>, mut lock: AdvisoryLock, mut stop: oneshot::Receiver<()>) {
    let watching = async {
        loop {
            lock.until_lost().await;
            logs.holding.send_replace(false);
            warn!("the connection that holds the lock for retention is lost: nothing is done");
            while !lock.try_again().await {
                sleep(STANDBY_PAUSE).await;
            }
            info!("the lock for retention is held again");
            logs.holding.send_replace(true);
        }
    };
    tokio::select! {
        _ = &mut stop => {}
        () = watching => {}
    }
    logs.lanes.close().await;
    lock.give_up().await;
}

struct Resting {
    lanes: Lanes<Postgres>,
    holding: watch::Sender<bool>,
    swept: parking_lot::Mutex<Option<sealwire_protocol::DeviceKey>>,
}

impl Resting {
    fn may_work(&self) -> Result<(), StoreError> {
        if *self.holding.borrow() { Ok(()) } else { Err(StoreError::Unavailable) }
    }
}

#[async_trait]
impl RestingLogs for Resting {
    async fn due_for_expiry(
        &self,
        after: LogKey,
        before: u64,
        limit: usize,
    ) -> Result<(Vec<DueLog>, Option<LogKey>), StoreError> {
        self.may_work()?;
        self.lanes.due_for_expiry(after, before, limit).await
    }

    async fn idle_groups(&self, before: u64, limit: usize) -> Result<Vec<LogKey>, StoreError> {
        self.may_work()?;
        self.lanes.idle_groups(before, limit).await
    }

    async fn load(&self, keys: &[LogKey]) -> Result<Vec<Option<LogRecord>>, StoreError> {
        self.may_work()?;
        self.lanes.load(keys).await
    }

    async fn alter(&self, key: LogKey, alter: Alter) -> Result<bool, StoreError> {
        self.may_work()?;
        let mut lease = self.lanes.write().await?;
        lease.begin(Postgres::BEGIN).await?;
        let outcome = altered(&mut lease, key, alter).await;
        lease.end(outcome).await
    }

    async fn sweep(
        &self,
        reservations_before: u64,
        devices_before: u64,
        now: u64,
        limit: usize,
    ) -> Result<u64, StoreError> {
        self.may_work()?;
        let gone = self.lanes.sweep(reservations_before, devices_before, now, limit).await?;
        let after = *self.swept.lock();
        let (empty, last) = self.lanes.sweep_empty_devices(after, limit).await?;
        *self.swept.lock() = last;
        Ok(gone + empty + self.lanes.forget_recovery_counts(now, limit).await?)
    }
}

async fn altered(
    lease: &mut Lease<Postgres>,
    key: LogKey,
    alter: Alter,
) -> Result<Verdict<bool>, StoreError> {
    let values = [Value::Int(key.0)];
    // Every commit locks the head first, so from here on nothing of this log changes.
    if lease.rows(LOCK_HEAD, &values).await?.is_empty() {
        return Ok(Verdict::Undo(false));
    }
    let record = load::records(lease, &[key].into()).await?.remove(&key);
    let Some(part) = record.and_then(alter) else { return Ok(Verdict::Undo(false)) };
    commit::write(lease, &[&part]).await?;
    lease.rows(RAISE_VERSION, &values).await?;
    Ok(Verdict::Keep(true))
}
