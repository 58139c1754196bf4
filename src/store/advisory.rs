//! The relay's lock on PostgreSQL: a session-level advisory lock on a connection of its own.
//!
//! The lock lives as long as its connection. So the connection is asked every second; when it does
//! not answer, this relay stops writing at once and tries to get the lock back. Having it again it
//! goes on only if nobody has served the store meanwhile and the server is still the same on the same
//! timeline; else what the actors hold in memory describes another past, and the process must start
//! anew ([`Standing::Superseded`]).
//!
//! The lock keeps two relays from serving side by side. It is not what keeps a log whole: that is the
//! compare-and-set of every commit.

use std::convert::Infallible;
use std::time::Duration;

use async_trait::async_trait;
use sealwire_actors::ports::StoreError;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, Postgres, Row};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::failure::Judge;
use super::housekeeping::Aside;
use super::postgres;
use super::sql_store::SqlStore;
use super::{Lock, OpenError, STANDBY_PAUSE, Standing};

/// The lock's number: "sealwire" in ASCII. Advisory locks are per database.
const LOCK_KEY: i64 = i64::from_be_bytes(*b"sealwire");

/// How often the lock's connection is asked.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// How long anything on that connection may take.
const ASK_DEADLINE: Duration = Duration::from_secs(2);

/// A connection that holds the lock.
pub(super) struct AdvisoryLock {
    connection: PgConnection,
    options: PgConnectOptions,
    judge: Judge,
}

/// How the lock's connection is made: the server notices within seconds that its relay is gone, so
/// that the next one need not wait for long.
fn lock_options(options: &PgConnectOptions) -> PgConnectOptions {
    options.clone().options([
        ("tcp_keepalives_idle", "5"),
        ("tcp_keepalives_interval", "2"),
        ("tcp_keepalives_count", "3"),
    ])
}

/// Takes the lock.
pub(super) async fn lock(
    options: &PgConnectOptions,
    how: Lock,
    judge: &Judge,
) -> Result<AdvisoryLock, OpenError> {
    let options = lock_options(options);
    let mut told = false;
    loop {
        if let Some(connection) = try_lock(&options, judge).await? {
            return Ok(AdvisoryLock { connection, options, judge: judge.clone() });
        }
        match how {
            Lock::Try => return Err(OpenError::Locked),
            Lock::Wait => super::tell_waiting(&mut told),
        }
        sleep(STANDBY_PAUSE).await;
    }
}

/// A connection with the lock; `None` if another relay has it.
async fn try_lock(
    options: &PgConnectOptions,
    judge: &Judge,
) -> Result<Option<PgConnection>, StoreError> {
    let attempt = async {
        let mut connection = options.connect().await?;
        let row = sqlx::query("select pg_try_advisory_lock($1)")
            .bind(LOCK_KEY)
            .fetch_one(&mut connection)
            .await?;
        if row.try_get(0)? {
            Ok(Some(connection))
        } else {
            connection.close().await?;
            Ok(None)
        }
    };
    timeout(ASK_DEADLINE, attempt)
        .await
        .map_err(|_| judge.late())?
        .map_err(|failure| judge.of(&failure))
}

impl AdvisoryLock {
    /// The connection that holds the lock.
    pub(super) fn connection(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Gives up the lock. The end of its session would too, but only some time after the connection
    /// was closed: whoever comes next would still find it taken.
    pub(super) async fn release(mut self) {
        let unlocked = async {
            let unlock = sqlx::query("select pg_advisory_unlock($1)").bind(LOCK_KEY);
            unlock.execute(&mut self.connection).await?;
            self.connection.close().await
        };
        // What cannot be reached has no session left to hold it.
        let _ = timeout(ASK_DEADLINE, unlocked).await;
    }

    /// Returns when the connection has stopped answering.
    async fn until_lost(&mut self) {
        loop {
            sleep(ASK_INTERVAL).await;
            let answer = timeout(ASK_DEADLINE, self.connection.ping()).await;
            if !matches!(answer, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// Returns when the lock has been taken again.
    async fn regain(&mut self) {
        loop {
            if let Ok(Some(connection)) = try_lock(&self.options, &self.judge).await {
                self.connection = connection;
                return;
            }
            sleep(STANDBY_PAUSE).await;
        }
    }

    /// Whether this relay may go on where it was. `None` if the lock is lost again.
    async fn same_past(&mut self, store: &SqlStore<Postgres>) -> Option<bool> {
        let asked = postgres::origin(&mut self.connection, &self.judge);
        let origin = timeout(ASK_DEADLINE, asked).await.ok()?.ok()?;
        store.tenure.goes_on(&store.lanes, Some(origin)).await.ok()
    }
}

#[async_trait]
impl Aside<Postgres> for AdvisoryLock {
    async fn run(&mut self, store: &SqlStore<Postgres>) -> Infallible {
        loop {
            self.until_lost().await;
            store.standing.send_replace(Standing::Waiting);
            warn!("the connection that holds the relay's lock is lost: nothing is written");
            let same = loop {
                self.regain().await;
                if let Some(same) = self.same_past(store).await {
                    break same;
                }
            };
            if !same {
                store.standing.send_replace(Standing::Superseded);
                warn!("the store was served by another relay or has moved: this one must restart");
                return std::future::pending().await;
            }
            info!("the relay's lock is held again");
            store.standing.send_replace(Standing::Serving);
        }
    }

    async fn end(self: Box<Self>) {
        self.release().await;
    }
}
