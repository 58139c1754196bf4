//! A fresh database for each test, on every backend.
//!
//! SQLite gets a directory of its own. PostgreSQL gets a database of its own on the server that
//! `SEALWIRE_TEST_POSTGRES` names, a throw-away cluster that `./scripts/test` starts; without it the
//! tests fail, because a promise that was not checked is not kept.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sealwire::store::{Lock, OpenError, OpenStore, StoreOptions, open};
use sealwire_actors::fakes::MemoryStore;
use sealwire_actors::ports::Store;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};
use tempfile::TempDir;

/// Names the server for the PostgreSQL half, with a database that exists.
const SERVER: &str = "SEALWIRE_TEST_POSTGRES";

/// How long a store may take to close in a test.
pub(crate) const CLOSE_DEADLINE: Duration = Duration::from_secs(20);

/// Where a test's store is kept.
pub(crate) struct Database {
    backend: Backend,
    directory: TempDir,
}

enum Backend {
    Memory(Arc<MemoryStore>),
    Sqlite,
    Postgres { server: Box<PgConnectOptions>, name: String },
}

/// A store that a test has opened.
pub(crate) struct Opened {
    /// The store.
    pub(crate) store: Arc<dyn Store>,
    open: Option<OpenStore>,
}

impl Opened {
    /// What stands behind it; none in memory.
    pub(crate) fn open(&self) -> Option<&OpenStore> {
        self.open.as_ref()
    }

    /// Closes it in order.
    pub(crate) async fn close(self) {
        if let Some(open) = self.open {
            open.close(CLOSE_DEADLINE).await.expect("closed in time");
        }
    }
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory for the test")
}

impl Database {
    /// A store in memory, the same one at every opening.
    pub(crate) fn memory() -> Self {
        Self { backend: Backend::Memory(Arc::default()), directory: directory() }
    }

    /// A SQLite file that is not there yet.
    pub(crate) fn sqlite() -> Self {
        Self { backend: Backend::Sqlite, directory: directory() }
    }

    /// An empty PostgreSQL database.
    pub(crate) async fn postgres() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let Ok(url) = std::env::var(SERVER) else {
            panic!("{SERVER} names no server: run ./scripts/test, which starts one");
        };
        let server = PgConnectOptions::from_str(&url).expect("the server's URL");
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sealwire_{}_{number}", std::process::id());
        let mut connection = server.connect().await.expect("the test server answers");
        for sql in [format!("drop database if exists {name}"), format!("create database {name}")] {
            connection.execute(AssertSqlSafe(sql)).await.expect("a fresh database");
        }
        connection.close().await.expect("closed");
        Self {
            backend: Backend::Postgres { server: Box::new(server), name },
            directory: directory(),
        }
    }

    /// Whether this is the store in memory.
    pub(crate) fn is_memory(&self) -> bool {
        matches!(self.backend, Backend::Memory(_))
    }

    /// Whether this is PostgreSQL.
    pub(crate) fn is_postgres(&self) -> bool {
        matches!(self.backend, Backend::Postgres { .. })
    }

    /// The directory of the witness; for SQLite also of the database.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The SQLite file.
    pub(crate) fn file(&self) -> PathBuf {
        self.directory().join("sealwire.db")
    }

    /// The URL that a relay is given.
    pub(crate) fn url(&self) -> String {
        match &self.backend {
            Backend::Memory(_) => panic!("a store in memory has no URL"),
            Backend::Sqlite => format!("sqlite://{}", self.file().display()),
            Backend::Postgres { server, name } => {
                server.as_ref().clone().database(name).to_url_lossy().to_string()
            }
        }
    }

    /// How a relay opens it.
    pub(crate) fn options(&self, lock: Lock) -> StoreOptions {
        StoreOptions { url: self.url(), data_dir: self.directory().to_owned(), lock }
    }

    /// Opens it.
    pub(crate) async fn open(&self) -> Opened {
        self.try_open(Lock::Try).await.expect("the store opens")
    }

    /// Opens it, or not.
    pub(crate) async fn try_open(&self, lock: Lock) -> Result<Opened, OpenError> {
        if let Backend::Memory(store) = &self.backend {
            return Ok(Opened { store: Arc::clone(store) as Arc<dyn Store>, open: None });
        }
        let open = open(&self.options(lock)).await?;
        Ok(Opened { store: open.store(), open: Some(open) })
    }

    /// The socket on which the PostgreSQL server listens.
    pub(crate) fn socket(&self) -> PathBuf {
        let Backend::Postgres { server, .. } = &self.backend else {
            panic!("only PostgreSQL has a socket");
        };
        let directory = server.get_socket().expect("the test server listens on a unix socket");
        directory.join(format!(".s.PGSQL.{}", server.get_port()))
    }

    /// How a relay opens the PostgreSQL database through another port of the loopback.
    pub(crate) fn options_through(&self, port: u16, lock: Lock) -> StoreOptions {
        let Backend::Postgres { server, name } = &self.backend else {
            panic!("only PostgreSQL is reached through a port");
        };
        let user = server.get_username();
        let url = format!("postgres://{user}@127.0.0.1:{port}/{name}?sslmode=disable");
        StoreOptions { url, data_dir: self.directory().to_owned(), lock }
    }

    /// A connection beside the relay's, to look at what it wrote.
    pub(crate) async fn beside(&self) -> PgConnection {
        let Backend::Postgres { server, name } = &self.backend else {
            panic!("only PostgreSQL is looked at from beside");
        };
        server.as_ref().clone().database(name).connect().await.expect("the test server answers")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let Backend::Postgres { server, name } = &self.backend else { return };
        let (server, sql) =
            (server.clone(), format!("drop database if exists {name} with (force)"));
        // A runtime cannot be entered from within another one, so this has a thread of its own.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut connection = server.connect().await?;
                connection.execute(AssertSqlSafe(sql)).await?;
                connection.close().await
            })
        });
        // It only takes room; the server is thrown away after the tests.
        let _ = dropped.join();
    }
}
