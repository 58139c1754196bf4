//! Where the relay keeps what must outlive it: SQLite or PostgreSQL.
//!
//! ```text
//! open ── relay's lock ── migrations ── incarnation ── Arc<dyn Store>
//!                                                        │
//!    commit, changes   one transaction for many logs, compare-and-set on every head
//!    at_once  what most commits change, as one call, on PostgreSQL
//!    lanes    committers' connections, and everybody else's
//!    reads, pages, pending, load, writes, recovery, vaults   every statement, once for both databases
//!    dialect  what the two do differently: sqlite, postgres
//!    tenure, witness   how a lost past is noticed
//!    resting   what a worker may do beside the relay
//!    housekeeping   checkpoints, the watch over the lock, the orderly end
//! ```
//!
//! What a store must do is written down in [`sealwire_actors::ports::Store`] and, as tests, in
//! `tests/store_contract.rs`. The database is the judge: a commit names the head that it extends, and
//! nothing that an actor remembers is believed.
//!
//! Holds always: one relay serves a database; an answer from [`Store::commit`] means fsynced; no body,
//! key or text of a database error is ever logged.

mod advisory;
mod at_once;
mod changes;
mod commit;
mod dialect;
mod failure;
mod housekeeping;
mod lanes;
mod load;
mod pages;
mod pending;
mod postgres;
mod push;
mod reads;
mod recovery;
mod resting;
mod sql_store;
mod sqlite;
mod tenure;
mod vaults;
mod witness;
mod writes;

use std::fs::DirBuilder;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fmt, io};

use sealwire_actors::ports::{Store, StoreError};
use sqlx::Executor;
use sqlx::migrate::MigrateError;
use thiserror::Error;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::info;

pub use self::resting::{OpenResting, open_resting};

use self::failure::Judge;
use self::housekeeping::Aside;
use self::sql_store::{Count, SqlStore};

/// How often a relay that waits for the lock tries to take it.
const STANDBY_PAUSE: Duration = Duration::from_millis(500);

/// Where the store is and how to open it.
pub struct StoreOptions {
    /// `sqlite://path` or `postgres://…`. May hold a password, so this type does not print.
    pub url: String,
    /// The directory for the witness; made if it is not there.
    pub data_dir: PathBuf,
    /// What to do while another relay serves the store.
    pub lock: Lock,
}

/// What to do while another relay holds the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Wait for it, for ever: a hot standby.
    Wait,
    /// Give up with [`OpenError::Locked`]: a command.
    Try,
}

/// Why a store could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum OpenError {
    /// The URL is neither.
    #[error("the store's URL is not a sqlite:// path or a postgres:// address")]
    Url,
    /// Another relay holds the lock.
    #[error("another relay serves this store")]
    Locked,
    /// Retention beside a relay needs a database that two processes can write to.
    #[error(
        "a worker needs PostgreSQL: on SQLite the relay is the only writer, and does retention itself"
    )]
    NeedsPostgres,
    /// The database was made by an older relay, or by none.
    #[error("the database is not up to date: start the relay, or run `sealwire migrate`, first")]
    Older,
    /// The data directory cannot be made.
    #[error("the data directory: {0}")]
    DataDir(io::ErrorKind),
    /// The lock file cannot be made or locked.
    #[error("the lock file beside the database: {0}")]
    LockFile(io::ErrorKind),
    /// The database cannot be reached, or holds what it must not.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The database was made by a newer relay.
    #[error(
        "the database was made by a newer relay: it holds migration {0}, which this one does not know"
    )]
    Newer(i64),
    /// A migration could not be run; nothing of it has happened.
    #[error("migration {0} could not be run")]
    Migration(i64),
    /// The witness cannot be read or written.
    #[error("the witness file in the data directory: {0}")]
    Witness(io::ErrorKind),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// Why `Appended` would mean less than fsynced. Only PostgreSQL can be configured so, and a debug build of
/// the relay be told so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Warning {
    /// `fsync` is off.
    NoFsync,
    /// `full_page_writes` is off.
    NoFullPageWrites,
    /// `synchronous_commit` is off.
    AsynchronousCommit,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoFsync => "fsync is off: a crash of the machine can destroy the database",
            Self::NoFullPageWrites => {
                "full_page_writes is off: a crash of the machine can tear pages of the database"
            }
            Self::AsynchronousCommit => {
                "synchronous_commit is off: entries that were answered can be lost in a crash"
            }
        })
    }
}

/// Whether this relay may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It holds the lock.
    Serving,
    /// It has lost the lock and tries to take it again; every write is answered
    /// [`StoreError::Unavailable`].
    Waiting,
    /// Another relay has served the store, or the database has moved: what the actors remember is
    /// another past. The process must end, and start anew.
    Superseded,
}

/// A store that is open. Dropping it closes it in the background, for as long as the runtime lives.
pub struct OpenStore {
    store: Arc<dyn Store>,
    warnings: Vec<Warning>,
    standing: watch::Receiver<Standing>,
    stop: oneshot::Sender<()>,
    housekeeping: JoinHandle<()>,
}

impl OpenStore {
    /// The store.
    #[must_use]
    pub fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store)
    }

    /// What an operator should know about the database's settings.
    #[must_use]
    pub fn warnings(&self) -> &[Warning] {
        &self.warnings
    }

    /// Follows whether this relay may write. On [`Standing::Superseded`] the process must end.
    #[must_use]
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Writes what is still gathered, checkpoints, closes all connections and gives up the lock.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if that has not ended within `deadline`; it goes on in the
    /// background, and nothing that was committed is in doubt.
    pub async fn close(self, deadline: Duration) -> Result<(), StoreError> {
        // Whoever listened and is gone has closed the store.
        let _ = self.stop.send(());
        match timeout(deadline, self.housekeeping).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(StoreError::Unavailable),
        }
    }
}

/// Opens the store: takes the relay's lock, runs the migrations, decides on the incarnation.
///
/// # Errors
/// An [`OpenError`]; nothing is left open.
pub async fn open(options: &StoreOptions) -> Result<OpenStore, OpenError> {
    open_as(options, false).await
}

/// Says that the database was put back from a backup: it gets a new incarnation, which is given.
///
/// # Errors
/// As [`open`].
pub async fn restored(options: &StoreOptions) -> Result<u64, OpenError> {
    let open = open_as(options, true).await?;
    let incarnation = open.store.incarnation();
    open.close(COMMAND_DEADLINE).await?;
    Ok(incarnation)
}

/// Runs the migrations and nothing else.
///
/// # Errors
/// As [`open`].
pub async fn migrate(options: &StoreOptions) -> Result<(), OpenError> {
    let judge = Judge::new();
    match Scheme::of(&options.url)? {
        Scheme::Sqlite => {
            let connect = sqlite::options(&options.url)?;
            let _lock = sqlite::lock(connect.get_filename(), options.lock).await?;
            sqlite::migrate(&connect, &judge).await
        }
        Scheme::Postgres => {
            let connect = postgres::options(&options.url)?;
            let lock = advisory::lock(advisory::RELAY_LOCK, &connect, options.lock, &judge).await?;
            let migrated = postgres::migrate(&options.url, &judge).await;
            lock.give_up().await;
            migrated
        }
    }
}

/// How long a command waits for the store to close.
const COMMAND_DEADLINE: Duration = Duration::from_secs(30);

enum Scheme {
    Sqlite,
    Postgres,
}

impl Scheme {
    fn of(url: &str) -> Result<Self, OpenError> {
        match url.split_once(':') {
            Some(("sqlite", _)) => Ok(Self::Sqlite),
            Some(("postgres" | "postgresql", _)) => Ok(Self::Postgres),
            Some(_) | None => Err(OpenError::Url),
        }
    }
}

async fn open_as(options: &StoreOptions, restored: bool) -> Result<OpenStore, OpenError> {
    let judge = Judge::new();
    make_private(&options.data_dir).map_err(|error| OpenError::DataDir(error.kind()))?;
    match Scheme::of(&options.url)? {
        Scheme::Sqlite => {
            let connect = sqlite::options(&options.url)?;
            let lock = sqlite::lock(connect.get_filename(), options.lock).await?;
            sqlite::migrate(&connect, &judge).await?;
            let lanes = sqlite::lanes(&connect, &judge);
            let tenure = tenure::begin(&lanes, &options.data_dir, None, restored).await?;
            let aside = sqlite::Checkpointer::new(&connect, judge, lock).await?;
            let lies = (!sqlite::is_durable()).then_some(Warning::NoFsync);
            Ok(serve(lanes, tenure, Box::new(aside), lies.into_iter().collect()))
        }
        Scheme::Postgres => {
            let connect = postgres::options(&options.url)?;
            let mut lock =
                advisory::lock(advisory::RELAY_LOCK, &connect, options.lock, &judge).await?;
            postgres::migrate(&options.url, &judge).await?;
            let (origin, warnings) = lock.inspect().await?;
            let lanes = postgres::lanes(&connect, &judge);
            let tenure = tenure::begin(&lanes, &options.data_dir, Some(origin), restored).await?;
            Ok(serve(lanes, tenure, Box::new(lock), warnings))
        }
    }
}

/// Makes a directory that is its owner's alone, if it is not there.
fn make_private(directory: &Path) -> io::Result<()> {
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}

fn serve<D: Count>(
    lanes: lanes::Lanes<D>,
    tenure: tenure::Tenure,
    aside: Box<dyn Aside<D>>,
    warnings: Vec<Warning>,
) -> OpenStore
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    let (standing_sender, standing) = watch::channel(Standing::Serving);
    let (stop, stopped) = oneshot::channel();
    let store = Arc::new(SqlStore::new(lanes, tenure, standing_sender));
    let housekeeping = tokio::spawn(housekeeping::keep(Arc::clone(&store), aside, stopped));
    OpenStore { store, warnings, standing, stop, housekeeping }
}

/// What a migration's end means.
fn migrated(judge: &Judge, outcome: Result<(), MigrateError>) -> Result<(), OpenError> {
    let Err(failure) = outcome else { return Ok(()) };
    if let MigrateError::VersionMissing(version) | MigrateError::VersionTooNew(version, _) = failure
    {
        return Err(OpenError::Newer(version));
    }
    if let MigrateError::ExecuteMigration(error, version) = &failure {
        judge.of(error);
        return Err(OpenError::Migration(*version));
    }
    if let MigrateError::VersionMismatch(version) | MigrateError::Dirty(version) = failure {
        return Err(OpenError::Migration(version));
    }
    if let MigrateError::Execute(error) = &failure {
        return Err(judge.of(error).into());
    }
    Err(StoreError::Unavailable.into())
}

/// Says once that this process is a standby.
fn tell_waiting(told: &mut bool, as_worker: bool) {
    if !std::mem::replace(told, true) {
        if as_worker {
            info!("another worker serves this store: waiting for its lock");
        } else {
            info!("another relay serves this store: waiting for its lock");
        }
    }
}
