//! Connections: who may use which, for how long, and when one is thrown away.
//!
//! There are two lanes. Committers have connections of their own, kept between commits, so that no
//! crowd of readers ever makes a commit wait; everything else shares a pool. A connection is lent as
//! a [`Lease`]. sqlx's pool would give a connection back however it was left, after asking the
//! server whether it is well; a server that hangs never answers, and the place stays taken. So a
//! lease whose work was not seen to its end is closed at once, which also rolls back what it had
//! begun.
//!
//! Holds always: every wait here ends by a deadline; a connection with an open transaction is never
//! lent again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use sealwire_actors::ports::StoreError;
use sqlx::database::HasStatementCache;
use sqlx::pool::{PoolConnection, PoolOptions};
use sqlx::{AssertSqlSafe, Connection, Executor, Pool, SqlSafeStr};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::dialect::{Bound, Dialect, Table, Value};
use super::failure::Judge;

/// A kept connection that has rested longer than this is asked whether it still answers: a restart
/// of the server then costs nobody a commit.
const REST_UNASKED: Duration = Duration::from_secs(1);

/// How long a connection may take to be free or to be made.
const ACQUIRE_DEADLINE: Duration = Duration::from_secs(2);

/// How long that answer may take. A server that needs longer cannot commit in time either.
const ASK_DEADLINE: Duration = Duration::from_millis(500);

/// A pool whose every wait is bounded.
pub(super) fn pool<D: Dialect>(connections_max: u32) -> PoolOptions<D> {
    PoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_DEADLINE)
        // Every lending would cost a round trip; those that have rested are asked.
        .test_before_acquire(false)
        .before_acquire(|connection, rest| {
            Box::pin(async move {
                let well = rest.idle_for <= REST_UNASKED || answers::<D>(connection).await;
                Ok(well)
            })
        })
}

async fn answers<D: Dialect>(connection: &mut D::Connection) -> bool {
    matches!(timeout(ASK_DEADLINE, connection.ping()).await, Ok(Ok(())))
}

/// The connections of one store.
pub(super) struct Lanes<D: Dialect> {
    reads: Pool<D>,
    commits: Pool<D>,
    committers: usize,
    permits: Arc<Semaphore>,
    kept: Kept<D>,
    judge: Judge,
}

/// Committers' connections between commits, each since when.
type Kept<D> = Arc<Mutex<Vec<(PoolConnection<D>, Instant)>>>;

impl<D: Dialect> Lanes<D> {
    pub(super) fn new(reads: Pool<D>, commits: Pool<D>, committers: usize, judge: Judge) -> Self {
        Self {
            reads,
            commits,
            committers,
            permits: Arc::new(Semaphore::new(committers)),
            kept: Arc::new(Mutex::new(Vec::with_capacity(committers))),
            judge,
        }
    }

    pub(super) fn committers(&self) -> usize {
        self.committers
    }

    /// A connection for reading.
    pub(super) async fn read(&self) -> Result<Lease<D>, StoreError> {
        let connection = self.reads.acquire().await.map_err(|failure| self.judge.of(&failure))?;
        Ok(self.lease(connection, None))
    }

    /// The connections for reading that nobody uses at the moment.
    pub(super) fn resting_readers(&self) -> Vec<Lease<D>> {
        let resting = std::iter::from_fn(|| self.reads.try_acquire());
        resting.map(|connection| self.lease(connection, None)).collect()
    }

    /// A connection for a small write that is no committer's.
    pub(super) async fn write(&self) -> Result<Lease<D>, StoreError> {
        if D::ONE_WRITER { self.commit().await } else { self.read().await }
    }

    /// A committer's connection.
    pub(super) async fn commit(&self) -> Result<Lease<D>, StoreError> {
        let permit = timeout(D::DEADLINE, Arc::clone(&self.permits).acquire_owned())
            .await
            .map_err(|_| self.judge.late())?
            .map_err(|_| StoreError::Unavailable)?;
        let kept = self.kept.lock().pop();
        let connection = match kept {
            Some((connection, since)) => self.rested(connection, since).await?,
            None => self.commit_connection().await?,
        };
        let home = Home {
            kept: Arc::clone(&self.kept),
            permits: Arc::clone(&self.permits),
            _permit: permit,
        };
        Ok(self.lease(connection, Some(home)))
    }

    /// A kept connection, or another one if it has rested and does not answer.
    async fn rested(
        &self,
        mut connection: PoolConnection<D>,
        since: Instant,
    ) -> Result<PoolConnection<D>, StoreError> {
        if since.elapsed() <= REST_UNASKED || answers::<D>(&mut connection).await {
            return Ok(connection);
        }
        drop(connection.detach());
        self.commit_connection().await
    }

    async fn commit_connection(&self) -> Result<PoolConnection<D>, StoreError> {
        self.commits.acquire().await.map_err(|failure| self.judge.of(&failure))
    }

    fn lease(&self, connection: PoolConnection<D>, home: Option<Home<D>>) -> Lease<D> {
        Lease {
            connection: Some(connection),
            well: true,
            open: false,
            beginning: None,
            home,
            judge: self.judge.clone(),
        }
    }

    /// Closes all connections, waiting for those that are lent.
    pub(super) async fn close(&self) {
        self.permits.close();
        self.kept.lock().clear();
        self.reads.close().await;
        self.commits.close().await;
    }
}

/// Where a committer's connection goes back to.
struct Home<D: Dialect> {
    kept: Kept<D>,
    permits: Arc<Semaphore>,
    _permit: OwnedSemaphorePermit,
}

/// A connection that is lent.
pub(super) struct Lease<D: Dialect> {
    /// Taken only when the lease is dropped.
    connection: Option<PoolConnection<D>>,
    /// Whether the last statement was seen to its end.
    well: bool,
    /// Whether a transaction is open.
    open: bool,
    /// What begins a transaction, to be sent with its first statement.
    beginning: Option<&'static str>,
    home: Option<Home<D>>,
    judge: Judge,
}

impl<D: Dialect> Lease<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    /// Runs a statement and gives all of its rows.
    pub(super) async fn rows(
        &mut self,
        sql: &'static str,
        values: &[Value<'_>],
    ) -> Result<Vec<D::Row>, StoreError> {
        let arguments = D::bind(values)?;
        self.fetch((sql.into_sql_str(), arguments)).await
    }

    /// Runs a statement over rows, if there are any, and gives all of its rows.
    pub(super) async fn each(&mut self, table: Table<'_>) -> Result<Vec<D::Row>, StoreError> {
        self.all(vec![vec![table]]).await
    }

    /// Runs statements over rows, those that have any, group after group. Those of one group must not
    /// depend on each other: they may run as one.
    pub(super) async fn all(
        &mut self,
        mut groups: Vec<Vec<Table<'_>>>,
    ) -> Result<Vec<D::Row>, StoreError> {
        groups.iter_mut().for_each(|group| group.retain(|table| !table.is_empty()));
        groups.retain(|group| !group.is_empty());
        let mut rows = Vec::new();
        if groups.is_empty() {
            return Ok(rows);
        }
        for bound in D::bind_rows(&groups)? {
            rows.append(&mut self.fetch(bound).await?);
        }
        Ok(rows)
    }

    /// Runs a statement that is bound already, and gives all of its rows.
    pub(super) async fn fetch(&mut self, bound: Bound<D>) -> Result<Vec<D::Row>, StoreError> {
        let Some(connection) = self.connection.as_mut() else {
            return Err(StoreError::Unavailable);
        };
        // Stays so if this future is dropped.
        self.well = false;
        let (mut sql, arguments) = bound;
        if let Some(begin) = self.beginning.take() {
            self.open = true;
            sql = AssertSqlSafe(format!("{begin}; {}", sql.as_str())).into_sql_str();
        }
        match timeout(D::DEADLINE, D::fetch(connection, (sql, arguments))).await {
            Ok(Ok(rows)) => {
                self.well = true;
                Ok(rows)
            }
            Ok(Err(failure)) => {
                let error = self.judge.of(&failure);
                self.well = error == StoreError::Refused;
                Err(error)
            }
            Err(_) => Err(self.judge.late()),
        }
    }

    /// Gives back what is kept prepared: statements over long lists are large.
    pub(super) async fn forget_statements(&mut self) -> Result<(), StoreError>
    where
        D: HasStatementCache,
    {
        let Some(connection) = self.connection.as_mut() else {
            return Err(StoreError::Unavailable);
        };
        self.well = false;
        match timeout(D::DEADLINE, connection.clear_cached_statements()).await {
            Ok(Ok(())) => {
                self.well = true;
                Ok(())
            }
            Ok(Err(failure)) => Err(self.judge.of(&failure)),
            Err(_) => Err(self.judge.late()),
        }
    }

    /// Begins a transaction; where that is possible, together with its first statement.
    pub(super) async fn begin(&mut self, sql: &'static str) -> Result<(), StoreError> {
        if D::TEXTS_JOIN {
            self.beginning = Some(sql);
            return Ok(());
        }
        self.open = true;
        self.rows(sql, &[]).await.map(|_| ())
    }

    /// Ends the transaction: keeps what it did if all went well, else undoes it.
    pub(super) async fn end<T>(
        mut self,
        outcome: Result<Verdict<T>, StoreError>,
    ) -> Result<T, StoreError> {
        match outcome {
            Ok(Verdict::Keep(value)) => {
                if self.open {
                    // Whatever goes wrong with a commit, its outcome is unknown.
                    self.rows("commit", &[]).await.map_err(|_| StoreError::Unavailable)?;
                    self.open = false;
                }
                Ok(value)
            }
            Ok(Verdict::Undo(value)) => self.undo().await.map(|()| value),
            Err(error) => {
                if self.well {
                    // The answer is the error that led here, whatever comes of the rollback.
                    let _ = self.undo().await;
                }
                Err(error)
            }
        }
    }

    async fn undo(&mut self) -> Result<(), StoreError> {
        if self.open {
            self.rows("rollback", &[]).await?;
            self.open = false;
        }
        Ok(())
    }
}

/// What is to become of a transaction that met no error.
pub(super) enum Verdict<T> {
    Keep(T),
    Undo(T),
}

impl<D: Dialect> Drop for Lease<D> {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else { return };
        if !self.well || self.open {
            drop(connection.detach());
        } else if let Some(home) = &self.home
            && !home.permits.is_closed()
        {
            home.kept.lock().push((connection, Instant::now()));
        }
    }
}
