//! Where a relay keeps its data: a directory that is gone with the test, and one of two databases.

use std::path::Path;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tempfile::TempDir;

/// The URL of a PostgreSQL database on a server where the tests may create others.
const SERVER: &str = "SEALWIRE_TEST_POSTGRES";

/// Which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Database {
    Sqlite,
    Postgres,
}

impl Database {
    /// Whether tests can use it. SQLite is always there; a PostgreSQL server is, if one was given
    /// (`scripts/test` gives one).
    pub(crate) fn is_there(self) -> bool {
        self == Self::Sqlite || std::env::var_os(SERVER).is_some()
    }
}

/// A directory and a database, both empty.
pub(crate) struct Place {
    directory: TempDir,
    url: String,
    postgres: Option<PostgresDatabase>,
}

impl Place {
    pub(crate) async fn new(database: Database) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let (url, postgres) = match database {
            Database::Sqlite => {
                let file = directory.path().join("sealwire.db");
                (format!("sqlite://{}", file.display()), None)
            }
            Database::Postgres => {
                let created = PostgresDatabase::create().await;
                (created.url(), Some(created))
            }
        };
        Self { directory, url, postgres }
    }

    /// A directory beside a database that the test looks after itself.
    pub(crate) fn beside(url: String) -> Self {
        Self { directory: tempfile::tempdir().expect("a directory"), url, postgres: None }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// The relay's own directory. What tests put beside it is none of its business.
    pub(crate) fn data(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn database(&self) -> Database {
        if self.postgres.is_some() { Database::Postgres } else { Database::Sqlite }
    }
}

/// A database on the server, dropped with this value.
struct PostgresDatabase {
    server: String,
    name: String,
}

impl PostgresDatabase {
    async fn create() -> Self {
        let server = std::env::var(SERVER).expect("is_there was asked");
        let name = format!("promise_{:016x}", getrandom::u64().expect("randomness"));
        execute(&server, format!("create database {name}")).await.expect("a database");
        Self { server, name }
    }

    /// The server's URL with this database in place of its own.
    fn url(&self) -> String {
        let (address, query) = self.server.split_once('?').unwrap_or((&self.server, ""));
        let (host, _) = address.rsplit_once('/').expect("the URL names a database");
        format!("{host}/{}?{query}", self.name)
    }
}

impl Drop for PostgresDatabase {
    fn drop(&mut self) {
        let (server, name) = (self.server.clone(), self.name.clone());
        // A runtime cannot be entered from within another one, so this has a thread of its own.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let statement = format!("drop database {name} with (force)");
            runtime.map(|runtime| runtime.block_on(execute(&server, statement)))
        });
        // It only takes room; the server is thrown away after the tests.
        let _ = dropped.join();
    }
}

async fn execute(url: &str, statement: String) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect(url).await?;
    connection.execute(AssertSqlSafe(statement)).await?;
    connection.close().await
}
