//! The process of a peer: started with a directory and a port of its own, and ended with what is kept
//! here.

use std::fs::File;
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::time::{Duration, Instant, sleep, timeout};

use crate::limits::{RELAY_START_DEADLINE, RELAY_STOP_DEADLINE};
use crate::process::Process;
use crate::progress;

/// Between two attempts to reach it.
const REACH_PAUSE: Duration = Duration::from_millis(20);

/// How often it is started at most, if it ends at once.
const STARTS_MAX: usize = 3;

/// A running peer.
pub(super) struct Server {
    child: Child,
    _directory: TempDir,
    pub(super) port: u16,
    pub(super) process: Process,
    pub(super) version: String,
}

impl Server {
    /// Writes its configuration and starts it. `configure` is given its directory, and a port more than
    /// is spoken to. It cannot be handed a listener, and a port that was free may be taken by a connection
    /// before it is listened on: whoever ends at once is started again, on other ports.
    pub(super) async fn start(
        program: &Path,
        version_flag: &str,
        configure: impl Fn(&Path, [u16; 2]) -> String,
    ) -> Result<Self> {
        for _ in 1..STARTS_MAX {
            match Self::start_once(program, version_flag, &configure).await {
                Ok(server) => return Ok(server),
                Err(error) => progress::say(&format!("{error:#}; once more, on other ports")),
            }
        }
        Self::start_once(program, version_flag, &configure).await
    }

    async fn start_once(
        program: &Path,
        version_flag: &str,
        configure: &impl Fn(&Path, [u16; 2]) -> String,
    ) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("sealwire-peer.").tempdir()?;
        let free = || -> Result<TcpListener> { Ok(TcpListener::bind("127.0.0.1:0")?) };
        let (first, second) = (free()?, free()?);
        let ports = [first.local_addr()?.port(), second.local_addr()?.port()];
        drop((first, second));
        let [port, _] = ports;
        let configuration = directory.path().join("configuration");
        std::fs::write(&configuration, configure(directory.path(), ports))?;
        let version = Command::new(program).arg(version_flag).kill_on_drop(true).output().await;
        let version = version.with_context(|| format!("running {}", program.display()))?;
        let version = String::from_utf8_lossy(&version.stdout);
        let version = version.lines().next().unwrap_or_default().trim().to_owned();
        let log = directory.path().join("said");
        let mut child = Command::new(program)
            .arg("-c")
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let process = Process::find(child.id().context("it has ended at once")?)?;
        let deadline = Instant::now() + RELAY_START_DEADLINE;
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if let Some(status) = child.try_wait()? {
                let said = std::fs::read_to_string(&log).unwrap_or_default();
                bail!("{} ended with {status}: {}", program.display(), said.trim());
            }
            ensure!(Instant::now() < deadline, "{} cannot be reached", program.display());
            sleep(REACH_PAUSE).await;
        }
        Ok(Self { child, _directory: directory, port, process, version })
    }

    /// Ends it in order.
    pub(super) async fn stop(mut self) -> Result<()> {
        let id = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        kill_process(id.context("it has ended before")?, Signal::TERM)?;
        timeout(RELAY_STOP_DEADLINE, self.child.wait()).await.context("it does not end")??;
        Ok(())
    }
}
