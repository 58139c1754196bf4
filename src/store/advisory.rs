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
use super::tenure::Origin;
use super::{Lock, OpenError, STANDBY_PAUSE, Standing, Warning};

/// The number of the relay's lock: "sealwire" in ASCII. Advisory locks are per database.
pub(super) const RELAY_LOCK: i64 = i64::from_be_bytes(*b"sealwire");

/// The number of the lock of whoever does retention beside a relay.
pub(super) const RETENTION_LOCK: i64 = i64::from_be_bytes(*b"swretent");

/// Whether somebody holds a lock. PostgreSQL shows its number in two halves.
pub(super) const IS_HELD: &str = "select count(*) from pg_locks where locktype = 'advisory' \
     and granted and objsubid = 1 and classid::bigint = $1 and objid::bigint = $2 \
     and database = (select oid from pg_database where datname = current_database())";

/// How often the lock's connection is asked.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// How long anything on that connection may take.
const ASK_DEADLINE: Duration = Duration::from_secs(2);

/// The lock, or the wish to have it again.
pub(super) struct AdvisoryLock {
    /// Which lock.
    number: i64,
    /// The connection that holds the lock; none while it is lost.
    connection: Option<PgConnection>,
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

/// Takes the lock. A standby waits on through outages: it is there for them.
pub(super) async fn lock(
    number: i64,
    options: &PgConnectOptions,
    how: Lock,
    judge: &Judge,
) -> Result<AdvisoryLock, OpenError> {
    let options = lock_options(options);
    let mut told = false;
    loop {
        match try_lock(number, &options, judge).await {
            Ok(Some(connection)) => {
                let connection = Some(connection);
                return Ok(AdvisoryLock { number, connection, options, judge: judge.clone() });
            }
            Ok(None) if how == Lock::Try => return Err(OpenError::Locked),
            Ok(None) => super::tell_waiting(&mut told, number == RETENTION_LOCK),
            Err(error) if !told => return Err(error.into()),
            Err(_) => {}
        }
        sleep(STANDBY_PAUSE).await;
    }
}

/// A connection with the lock; `None` if another relay has it.
async fn try_lock(
    number: i64,
    options: &PgConnectOptions,
    judge: &Judge,
) -> Result<Option<PgConnection>, StoreError> {
    let attempt = async {
        let mut connection = options.connect().await?;
        let row = sqlx::query("select pg_try_advisory_lock($1)")
            .bind(number)
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
    /// Which server holds the lock, and what an operator should know of it.
    pub(super) async fn inspect(&mut self) -> Result<(Origin, Vec<Warning>), StoreError> {
        let connection = self.connection.as_mut().ok_or(StoreError::Unavailable)?;
        let asked = async {
            let origin = postgres::origin(connection, &self.judge).await?;
            Ok((origin, postgres::warnings(connection, &self.judge).await?))
        };
        timeout(ASK_DEADLINE, asked).await.map_err(|_| self.judge.late())?
    }

    /// Gives up the lock. Closing the connection would as well, but some time after it is closed here.
    pub(super) async fn give_up(mut self) {
        if let Some(mut connection) = self.connection.take() {
            let unlock = sqlx::query("select pg_advisory_unlock($1)").bind(self.number);
            // If it does not answer, the server notices by itself that nobody is there.
            let _ = timeout(ASK_DEADLINE, unlock.execute(&mut connection)).await;
            let _ = timeout(ASK_DEADLINE, connection.close()).await;
        }
    }

    /// Returns when the connection has stopped answering.
    pub(super) async fn until_lost(&mut self) {
        while let Some(connection) = &mut self.connection {
            sleep(ASK_INTERVAL).await;
            let answer = timeout(ASK_DEADLINE, connection.ping()).await;
            if !matches!(answer, Ok(Ok(()))) {
                return;
            }
        }
    }

    /// Tries once to take the lock again.
    pub(super) async fn try_again(&mut self) -> bool {
        // Closed first: if it lives after all, it is what holds the lock.
        self.connection = None;
        let taken = try_lock(self.number, &self.options, &self.judge).await;
        self.connection = taken.ok().flatten();
        self.connection.is_some()
    }

    /// Takes the lock again, and tells whether this relay may go on where it was.
    async fn regain(&mut self, store: &SqlStore<Postgres>) -> bool {
        loop {
            if self.try_again().await
                && let Ok((origin, _)) = self.inspect().await
                && let Ok(same) = store.tenure.goes_on(&store.lanes, Some(origin)).await
            {
                return same;
            }
            sleep(STANDBY_PAUSE).await;
        }
    }
}

#[async_trait]
impl Aside<Postgres> for AdvisoryLock {
    async fn run(&mut self, store: &SqlStore<Postgres>) -> Infallible {
        loop {
            self.until_lost().await;
            store.standing.send_replace(Standing::Waiting);
            warn!("the connection that holds the relay's lock is lost: nothing is written");
            if !self.regain(store).await {
                // A standby may have it meanwhile.
                self.connection = None;
                store.standing.send_replace(Standing::Superseded);
                warn!("the store was served by another relay or has moved: this one must restart");
                return std::future::pending().await;
            }
            info!("the relay's lock is held again");
            store.standing.send_replace(Standing::Serving);
        }
    }

    async fn end(self: Box<Self>) {
        self.give_up().await;
    }
}
