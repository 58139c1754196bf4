//! A copy of a relay's database, made while it runs and put back when it does not, as
//! docs/OPERATING.md says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, SqliteConnection};

use super::place::Place;

/// Where PostgreSQL's programs are.
const BIN: &str = "SEALWIRE_TEST_POSTGRES_BIN";

/// A copy of a database.
pub(crate) struct Backup {
    file: PathBuf,
}

impl Backup {
    /// Copies the database of a relay that may be running.
    pub(crate) async fn of(place: &Place) -> Self {
        let file = place.log().with_file_name("backup");
        if is_postgres(place) {
            run("pg_dump", &["--format=custom", "--dbname", &libpq(place.url()), "--file"], &file);
        } else {
            let mut connection = SqliteConnection::connect(place.url()).await.expect("SQLite");
            let copy = format!("vacuum into '{}'", file.display());
            connection.execute(AssertSqlSafe(copy)).await.expect("copied");
            connection.close().await.expect("closed");
        }
        Self { file }
    }

    /// Puts the copy back in place of what is there. Nothing else may use the database.
    pub(crate) async fn put_back(&self, place: &Place) {
        if is_postgres(place) {
            let mut connection = PgConnection::connect(place.url()).await.expect("PostgreSQL");
            let empty = "drop schema public cascade; create schema public";
            connection.execute(empty).await.expect("emptied");
            connection.close().await.expect("closed");
            run("pg_restore", &["--no-owner", "--dbname", &libpq(place.url())], &self.file);
        } else {
            for suffix in ["", "-wal", "-shm"] {
                let mut name = place.file().into_os_string();
                name.push(suffix);
                // After an orderly end there is only the database itself.
                let _ = fs::remove_file(name);
            }
            fs::copy(&self.file, place.file()).expect("copied");
        }
    }
}

fn is_postgres(place: &Place) -> bool {
    place.url().starts_with("postgres:")
}

/// The URL without what PostgreSQL's own programs do not know.
fn libpq(url: &str) -> String {
    let (address, query) = url.split_once('?').unwrap_or((url, ""));
    let known: Vec<&str> = query.split('&').filter(|part| part.starts_with("host=")).collect();
    format!("{address}?{}", known.join("&"))
}

fn run(program: &str, options: &[&str], file: &Path) {
    let programs = PathBuf::from(std::env::var_os(BIN).expect("run ./scripts/test"));
    let output = Command::new(programs.join(program)).args(options).arg(file).output();
    let output = output.expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
