//! A PostgreSQL server of a test's own, for tests that stop it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use sqlx::{Connection, Executor, PgConnection};
use tempfile::TempDir;

use super::{eventually, process};

/// Where `initdb` and `postgres` are.
const BIN: &str = "SEALWIRE_TEST_POSTGRES_BIN";

/// Whom PostgreSQL runs as, if the tests run as root, which it refuses.
const USER: &str = "SEALWIRE_TEST_POSTGRES_USER";

/// A server with its data in a directory of its own, reached by a Unix socket and nothing else.
pub(crate) struct Cluster {
    /// Short, and under /tmp: the path of a Unix socket has at most 107 bytes.
    directory: TempDir,
    programs: PathBuf,
    owner: Option<(u32, u32)>,
    server: Option<Child>,
}

impl Cluster {
    /// Makes a cluster and starts it.
    pub(crate) async fn start() -> Self {
        let programs = PathBuf::from(std::env::var_os(BIN).expect("run ./scripts/test"));
        let owner = std::env::var(USER).ok().map(|user| (id(&user, "-u"), id(&user, "-g")));
        let directory = tempfile::Builder::new()
            .prefix("sealwire-pg.")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in("/tmp")
            .expect("a directory");
        if let Some((user, group)) = owner {
            chown(directory.path(), Some(user), Some(group)).expect("chown");
        }
        let mut cluster = Self { directory, programs, owner, server: None };
        let made = cluster
            .program("initdb")
            .arg("--pgdata")
            .arg(cluster.data())
            .args(["--username=sealwire", "--auth=trust", "--encoding=UTF8", "--no-locale"])
            .args(["--no-sync"])
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        cluster.run().await;
        let mut connection = cluster.connect("postgres").await.expect("a connection");
        connection.execute("create database sealwire").await.expect("a database");
        cluster
    }

    /// The URL of its database.
    pub(crate) fn url(&self) -> String {
        self.url_of("sealwire")
    }

    fn url_of(&self, database: &str) -> String {
        let host = self.directory.path().display();
        format!("postgres://sealwire@localhost/{database}?host={host}")
    }

    /// Starts the server and waits until it takes connections.
    pub(crate) async fn run(&mut self) {
        let log = self.directory.path().join("log");
        let log = fs::OpenOptions::new().create(true).append(true).open(log).expect("a log");
        let child = self
            .program("postgres")
            .arg("-D")
            .arg(self.data())
            .arg("-k")
            .arg(self.directory.path())
            .args(["-c", "listen_addresses=", "-c", "shared_buffers=32MB"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("postgres runs");
        self.server = Some(child);
        eventually("postgres takes connections", async || self.connect("postgres").await.is_ok())
            .await;
    }

    /// Stops the server in the middle of whatever it is doing, as a power failure would, but that
    /// what it had written stays ("immediate shutdown").
    pub(crate) async fn stop_at_once(&mut self) {
        self.stop("QUIT").await;
    }

    /// Stops the server in order ("fast shutdown").
    pub(crate) async fn stop_in_order(&mut self) {
        self.stop("INT").await;
    }

    async fn stop(&mut self, signal: &str) {
        let Some(mut server) = self.server.take() else { return };
        process::signal(&server, signal);
        process::wait(&mut server, "postgres ends").await;
    }

    async fn connect(&self, database: &str) -> Result<PgConnection, sqlx::Error> {
        PgConnection::connect(&self.url_of(database)).await
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Copies the data of the stopped server.
    pub(crate) fn copy(&self) {
        assert!(self.server.is_none(), "a running server cannot be copied");
        copy(&self.data(), &self.directory.path().join("copy"));
    }

    /// Puts the copy in place of the stopped server's data.
    pub(crate) fn put_back(&self) {
        assert!(self.server.is_none(), "a running server's data cannot be replaced");
        fs::remove_dir_all(self.data()).expect("removed");
        copy(&self.directory.path().join("copy"), &self.data());
    }

    /// Its files, and what it says.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// One of PostgreSQL's programs, run as the server is.
    pub(crate) fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.current_dir(self.directory.path());
        if let Some((user, group)) = self.owner {
            command.uid(user).gid(group);
        }
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            process::signal(&server, "QUIT");
            // Whatever it says, it is gone after this.
            let _ = server.wait();
        }
    }
}

fn id(user: &str, which: &str) -> u32 {
    let output = Command::new("id").args([which, user]).output().expect("id runs");
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("a number")
}

/// Copies a directory with its owners and permissions.
fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success());
}
