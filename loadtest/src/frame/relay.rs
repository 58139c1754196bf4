//! The relay that is measured: one that runs already, or one that is started here.
//!
//! A relay that is started here has a directory of its own, ports that nobody else uses, and the
//! environment of this program, so that its settings can be given as its own documentation says.
//!
//! Holds always: only a process that was started here is ever sent a signal.

use std::fmt;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tempfile::TempDir;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};

use super::disk::Disk;
use super::metrics::Operator;
use crate::limits::{RELAY_START_DEADLINE, RELAY_STOP_DEADLINE};
use crate::process::Process;
use crate::progress;

/// Between two questions whether the relay is ready.
const READY_PAUSE: Duration = Duration::from_millis(20);

/// Lines of the relay's log that are shown: when it ends too soon the last, of warnings the first.
const LOG_LINES: usize = 10;

/// Which relay is measured.
#[derive(Args, Serialize)]
pub(crate) struct Target {
    /// Start this relay for the measurement, with an empty directory, and stop it afterwards. Its
    /// settings can be given in the environment.
    #[arg(long, value_name = "PROGRAM", conflicts_with_all = ["url", "pid", "operator"])]
    pub(crate) relay: Option<PathBuf>,
    /// With --relay: its database, an empty one. By default a new SQLite file.
    #[arg(long, value_name = "URL", requires = "relay")]
    #[serde(skip)]
    pub(crate) database: Option<String>,
    /// With --relay: where its directory is made. By default where the system keeps what is
    /// temporary.
    #[arg(long, value_name = "DIRECTORY", requires = "relay")]
    pub(crate) directory: Option<PathBuf>,
    /// A relay that runs already, on this machine.
    #[arg(long, default_value = "ws://127.0.0.1:4000")]
    pub(crate) url: String,
    /// Its process id, to see its memory and processor time.
    #[arg(long)]
    pub(crate) pid: Option<u32>,
    /// Its operator's listener, to read its metrics: http://127.0.0.1:4001.
    #[arg(long, value_name = "URL")]
    pub(crate) operator: Option<String>,
    /// A directory on the disk of the relay's database, to see how often the disk is made to keep
    /// what it was given. Known for a relay that is started here with SQLite.
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) disk: Option<PathBuf>,
}

impl Target {
    /// Where directories are to be made.
    pub(crate) fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }
}

/// What a report says of the relay.
#[derive(Clone, Serialize)]
pub(crate) struct About {
    /// What the program says of itself, if it was started here.
    version: Option<String>,
    /// Kind of the database, if it was started here.
    database: Option<&'static str>,
}

impl About {
    /// Whether its database is known to be a server of PostgreSQL.
    pub(crate) fn is_on_postgres(&self) -> bool {
        self.database == Some("postgres")
    }

    /// Of a program that is measured with several databases.
    pub(crate) async fn of_program(program: &Path) -> Result<Self> {
        Ok(Self { version: Some(version_of(program).await?), database: None })
    }
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = self.version.as_deref().unwrap_or("a relay that ran already");
        write!(f, "{version}")?;
        self.database.map_or(Ok(()), |database| write!(f, " on {database}"))
    }
}

/// A relay that can be measured.
pub(crate) struct Relay {
    pub(crate) url: String,
    pid: Arc<AtomicU32>,
    pub(crate) operator: Option<Operator>,
    pub(crate) disk: Option<Disk>,
    started: Option<Started>,
}

/// What belongs to a relay that was started here.
struct Started {
    program: PathBuf,
    database: Option<String>,
    directory: TempDir,
    ports: [u16; 2],
    version: String,
    /// How long it took until it was ready for the first time.
    first_start: Duration,
    /// What it is told in its environment, beside what this program was.
    variables: Vec<(&'static str, String)>,
    child: Child,
}

impl Relay {
    /// Finds the relay that was named, or starts it.
    pub(crate) async fn reach(target: &Target) -> Result<Self> {
        if let Some(program) = &target.relay {
            return Self::start(target, program.clone()).await;
        }
        target.pid.map(Process::find).transpose().context("the relay's process")?;
        let pid = Arc::new(AtomicU32::new(target.pid.unwrap_or_default()));
        let operator = target.operator.as_deref().map(Operator::at).transpose()?;
        let disk = target.disk.as_deref().map(Disk::of).transpose()?.flatten();
        Ok(Self { url: target.url.clone(), pid, operator, disk, started: None })
    }

    async fn start(target: &Target, program: PathBuf) -> Result<Self> {
        let version = version_of(&program).await?;
        let parent = target.directory.clone().unwrap_or_else(std::env::temp_dir);
        let directory = tempfile::Builder::new()
            .prefix("sealwire-measured.")
            .tempdir_in(&parent)
            .with_context(|| format!("a directory in {}", parent.display()))?;
        let ports = free_ports()?;
        let database = target.database.clone();
        let began = Instant::now();
        let child = spawn(&program, &directory, ports, database.as_deref(), &[])?;
        let pid = child.id().context("the relay has ended at once")?;
        let variables = Vec::new();
        let first_start = Duration::ZERO;
        let started =
            Started { program, database, directory, ports, version, first_start, variables, child };
        let disk = match &target.disk {
            Some(disk) => Disk::of(disk)?,
            None if started.is_sqlite() => Disk::of(started.directory.path())?,
            None => None,
        };
        let mut relay = Self {
            url: format!("ws://127.0.0.1:{}", ports[0]),
            pid: Arc::new(AtomicU32::new(pid)),
            operator: Some(Operator::at(&format!("http://127.0.0.1:{}", ports[1]))?),
            disk,
            started: Some(started),
        };
        relay.wait_until_ready().await?;
        relay.own()?.first_start = began.elapsed();
        Ok(relay)
    }

    /// Its process, if it is known and alive.
    pub(crate) fn process(&self) -> Option<Process> {
        process_of(&self.pid)
    }

    /// Its process id, 0 if it is not known.
    pub(crate) fn pid(&self) -> Arc<AtomicU32> {
        self.pid.clone()
    }

    /// How long it took to be ready with an empty database, if it was started here.
    pub(crate) fn first_start_ms(&self) -> Option<f64> {
        self.started.as_ref().map(|started| started.first_start.as_secs_f64() * 1000.0)
    }

    /// Whether its database is a server of its own, as far as is known.
    pub(crate) fn has_database_apart(&self) -> bool {
        self.started.as_ref().is_none_or(|started| !started.is_sqlite())
    }

    /// What it has warned of in its log, if it was started here: a database that does not keep what it
    /// is given, for example.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let Some(started) = &self.started else { return Vec::new() };
        warned(&fs::read_to_string(log_path(&started.directory)).unwrap_or_default())
    }

    /// What a report says of it.
    pub(crate) fn about(&self) -> About {
        let started = self.started.as_ref();
        let kind = |started: &Started| if started.is_sqlite() { "sqlite" } else { "postgres" };
        About { version: started.map(|it| it.version.clone()), database: started.map(kind) }
    }

    /// Ends the relay's process as a failure of the machine would.
    pub(crate) async fn kill(&mut self) -> Result<()> {
        self.own()?.child.kill().await.context("killing the relay")
    }

    /// Stops the relay's process for a while, in the middle of whatever it does.
    pub(crate) async fn pause(&mut self, time: Duration) -> Result<()> {
        let child = &self.own()?.child;
        signal(child, Signal::STOP)?;
        sleep(time).await;
        signal(child, Signal::CONT)
    }

    /// Starts it again, with what it had. Comes back once it is ready.
    pub(crate) async fn start_again(&mut self) -> Result<()> {
        let started = self.own()?;
        let Started { program, database, directory, ports, variables, .. } = &*started;
        started.child = spawn(program, directory, *ports, database.as_deref(), variables)?;
        let pid = started.child.id().context("the relay has ended at once")?;
        self.pid.store(pid, Ordering::Relaxed);
        self.wait_until_ready().await
    }

    /// Stops it in order, and starts another one in its place, told this as well: with an empty
    /// database, unless it was given one that is not in its directory.
    pub(crate) async fn start_anew(
        &mut self,
        variables: Vec<(&'static str, String)>,
    ) -> Result<()> {
        self.end().await?;
        let started = self.own()?;
        if started.database.is_none() {
            fs::remove_dir_all(data_path(&started.directory)).context("what the relay had")?;
        }
        started.variables = variables;
        self.start_again().await
    }

    /// Stops it in order, if it was started here.
    pub(crate) async fn stop(mut self) -> Result<()> {
        if self.started.is_some() { self.end().await } else { Ok(()) }
    }

    fn own(&mut self) -> Result<&mut Started> {
        self.started.as_mut().context("only a relay of --relay can be disturbed")
    }

    /// Stops it in order.
    pub(crate) async fn end(&mut self) -> Result<()> {
        let started = self.own()?;
        let line = progress::wait("the relay stops");
        signal(&started.child, Signal::TERM)?;
        let ended = timeout(RELAY_STOP_DEADLINE, started.child.wait()).await;
        line.finish_and_clear();
        match ended {
            Ok(status) => {
                let status = status.context("the relay's end")?;
                ensure!(status.success(), "the relay ended with {status}: {}", log_of(started));
                Ok(())
            }
            Err(_) => bail!("the relay did not stop within {RELAY_STOP_DEADLINE:?}"),
        }
    }

    async fn wait_until_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + RELAY_START_DEADLINE;
        let line = progress::wait("the relay starts");
        loop {
            if self.is_ready().await {
                line.finish_and_clear();
                return Ok(());
            }
            if let Some(started) = &mut self.started {
                if let Some(status) = started.child.try_wait()? {
                    bail!("the relay ended with {status}: {}", log_of(started));
                }
                ensure!(
                    Instant::now() < deadline,
                    "the relay is not ready after {RELAY_START_DEADLINE:?}: {}",
                    log_of(started)
                );
            }
            sleep(READY_PAUSE).await;
        }
    }

    async fn is_ready(&self) -> bool {
        let Some(operator) = self.operator.clone() else { return true };
        tokio::task::spawn_blocking(move || operator.is_ready()).await.unwrap_or(false)
    }
}

impl Started {
    fn is_sqlite(&self) -> bool {
        self.database.as_deref().is_none_or(|url| url.starts_with("sqlite:"))
    }
}

async fn version_of(program: &Path) -> Result<String> {
    let version = Command::new(program)
        .arg("--version")
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("{} cannot be run", program.display()))?;
    Ok(String::from_utf8_lossy(&version.stdout).trim().to_owned())
}

/// The process with this id; none if there is no id, or no such process.
pub(crate) fn process_of(pid: &AtomicU32) -> Option<Process> {
    match pid.load(Ordering::Relaxed) {
        0 => None,
        pid => Process::find(pid).ok(),
    }
}

fn spawn(
    program: &PathBuf,
    directory: &TempDir,
    ports: [u16; 2],
    database: Option<&str>,
    variables: &[(&'static str, String)],
) -> Result<Child> {
    let log = File::options()
        .create(true)
        .append(true)
        .open(log_path(directory))
        .context("the relay's log")?;
    let mut command = Command::new(program);
    command
        .arg("--data-dir")
        .arg(data_path(directory))
        .args(["--listen", &format!("127.0.0.1:{}", ports[0])])
        .args(["--operator-listen", &format!("127.0.0.1:{}", ports[1])])
        .env_remove("DATABASE_URL")
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .stdin(std::process::Stdio::null())
        .stderr(log.try_clone()?)
        .stdout(log)
        .kill_on_drop(true);
    if let Some(url) = database {
        command.env("DATABASE_URL", url);
    }
    command.spawn().with_context(|| format!("starting {}", program.display()))
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    let id = child.id().context("the relay has ended")?;
    let id = i32::try_from(id).ok().and_then(Pid::from_raw).context("no process id")?;
    kill_process(id, signal).context("sending a signal to the relay")
}

/// Ports that are free now; the listeners are closed, and the relay takes them a moment later.
fn free_ports() -> Result<[u16; 2]> {
    let listeners = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    let [public, operator] = listeners.each_ref().map(TcpListener::local_addr);
    Ok([public?.port(), operator?.port()])
}

fn data_path(directory: &TempDir) -> PathBuf {
    directory.path().join("data")
}

fn log_path(directory: &TempDir) -> PathBuf {
    directory.path().join("relay.log")
}

/// The last lines of its log.
fn log_of(started: &Started) -> String {
    let log = fs::read_to_string(log_path(&started.directory)).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

/// The first warnings of a log, but those about secrets: a relay that is measured makes its own.
fn warned(log: &str) -> Vec<String> {
    log.lines()
        .filter(|line| line.contains(" WARN ") || line.contains(" ERROR "))
        .filter(|line| !line.contains(" sealwire::secrets: "))
        .take(LOG_LINES)
        .map(|line| format!("the relay says: {}", line.trim()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_relay_warns_of_is_told_but_for_its_own_secrets() {
        let log = "2026-11-22T08:01:31Z  INFO sealwire::listener: listening\n\
            2026-11-22T08:01:31Z  WARN sealwire::secrets: this secret is not set\n\
            2026-11-22T08:01:31Z  WARN sealwire::relay: fsync is off\n";
        let warned = warned(log);
        assert_eq!(warned.len(), 1);
        assert!(warned[0].ends_with("sealwire::relay: fsync is off"), "{warned:?}");
    }
}
