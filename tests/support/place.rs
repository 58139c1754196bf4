//! Where a relay keeps its data: a directory that is gone with the test, and one of two databases.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::databases;

/// Which kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Database {
    Sqlite,
    Postgres,
}

/// A directory and a database.
pub(crate) struct Place {
    directory: TempDir,
    url: String,
    /// None if the test looks after the database itself.
    database: Option<databases::Database>,
}

impl Place {
    /// An empty directory and an empty database.
    pub(crate) async fn new(database: Database) -> Self {
        let database = match database {
            Database::Sqlite => databases::Database::sqlite(),
            Database::Postgres => databases::Database::postgres().await,
        };
        let url = database.url();
        Self { database: Some(database), ..Self::beside(url) }
    }

    /// An empty directory, beside a database that the test looks after itself.
    pub(crate) fn beside(url: String) -> Self {
        Self { directory: tempfile::tempdir().expect("a directory"), url, database: None }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// The relay's own directory; SQLite's database is in it.
    pub(crate) fn data(&self) -> &Path {
        self.database.as_ref().map_or(self.directory.path(), databases::Database::directory)
    }

    /// Where what the relay says is written to.
    pub(crate) fn log(&self) -> PathBuf {
        self.directory.path().join("relay.log")
    }

    /// The SQLite file.
    pub(crate) fn file(&self) -> PathBuf {
        self.data().join("sealwire.db")
    }
}
