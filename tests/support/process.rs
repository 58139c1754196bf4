//! The real relay, as a process that can be killed.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use sealwire_client::address::RelayUrl;

use super::http::{self, Answer};
use super::place::Place;
use super::{eventually, holds_within};

/// What lets a crowd of devices on one machine in; a test that wants limits sets its own.
const GENEROUS: &[(&str, &str)] = &[
    ("SEALWIRE_UNAUTHENTICATED_MAX", "100000"),
    ("SEALWIRE_UNAUTHENTICATED_PER_ADDRESS_MAX", "100000"),
    ("SEALWIRE_CONNECTS_PER_SECOND", "100000"),
    ("SEALWIRE_CONNECTS_BURST", "100000"),
    ("SEALWIRE_CONNECTS_PER_ADDRESS_PER_SECOND", "100000"),
    ("SEALWIRE_CONNECTS_PER_ADDRESS_BURST", "100000"),
];

/// How long a relay may take to be ready.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// A relay's process, its data, and what it has said.
pub(crate) struct RelayProcess {
    place: Place,
    variables: Vec<(String, String)>,
    log: PathBuf,
    public: SocketAddr,
    operator: SocketAddr,
    /// Where devices connect, if it is handed to the relay at each start.
    listener: Option<TcpListener>,
    /// Largest file that the process may write, in bytes.
    file_bytes_max: Option<u64>,
    child: Option<Child>,
}

impl RelayProcess {
    /// Starts a relay and waits until it is ready. The variables are added to the usual ones, or
    /// stand in their place.
    pub(crate) async fn start(place: Place, variables: &[(&str, &str)]) -> Self {
        let mut relay = Self::prepare(place, variables);
        relay.run().await;
        relay
    }

    /// A relay that is not started yet.
    pub(crate) fn prepare(place: Place, variables: &[(&str, &str)]) -> Self {
        let variables = GENEROUS
            .iter()
            .chain(variables)
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let log = place.log();
        let [public, operator] = free_addresses();
        let (listener, file_bytes_max, child) = (None, None, None);
        Self { place, variables, log, public, operator, listener, file_bytes_max, child }
    }

    /// Another relay for the same database, with a directory and addresses of its own.
    pub(crate) fn beside(&self) -> Self {
        let place = Place::beside(self.place.url().to_owned());
        let log = place.log();
        let [public, operator] = free_addresses();
        let variables = self.variables.clone();
        let (listener, file_bytes_max, child) = (None, None, None);
        Self { place, variables, log, public, operator, listener, file_bytes_max, child }
    }

    /// Listens itself from now on where devices connect, and hands the listener to the relay at each
    /// start, as systemd does.
    pub(crate) fn keep_listener(&mut self) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        self.public = listener.local_addr().expect("an address");
        self.listener = Some(listener);
    }

    /// Lets the relay write no file that is longer than this: its disk is full when one is. The limit
    /// can be raised while it runs.
    pub(crate) fn limit_files(&mut self, bytes_max: u64) {
        self.file_bytes_max = Some(bytes_max);
    }

    /// Starts the relay on its data and waits until it is ready.
    pub(crate) async fn run(&mut self) {
        self.spawn();
        self.until_ready().await;
    }

    /// Starts the relay and does not wait.
    pub(crate) fn spawn(&mut self) {
        assert!(self.child.is_none(), "the relay runs already");
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log).expect("a log");
        let child = self
            .program()
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("the relay's binary runs");
        self.child = Some(child);
    }

    /// Runs one of the program's other commands to its end.
    pub(crate) async fn command(&self, name: &str) {
        let mut child = self.program().arg(name).spawn().expect("the relay's binary runs");
        assert!(wait(&mut child, name).await.success(), "{name}");
    }

    /// Runs a command to its end, and gives what it said and how it ended.
    pub(crate) async fn say(&self, arguments: &[&str]) -> std::process::Output {
        let mut program = self.program();
        program.args(arguments);
        let ended = tokio::task::spawn_blocking(move || program.output());
        ended.await.expect("no panic").expect("the relay's binary runs")
    }

    fn program(&self) -> Command {
        let binary = env!("CARGO_BIN_EXE_sealwire");
        let mut before = String::new();
        if self.listener.is_some() {
            // The shell becomes the relay, so its number is the relay's.
            before += "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; ";
        }
        let mut limit = String::new();
        if let Some(bytes_max) = self.file_bytes_max {
            // Without the trap a write beyond the limit would be a signal that kills.
            before += "trap '' XFSZ; ";
            limit = format!("prlimit --fsize={bytes_max}: ");
        }
        let mut program = if before.is_empty() {
            Command::new(binary)
        } else {
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(format!("{before}exec {limit}\"$0\" \"$@\"")).arg(binary);
            shell
        };
        let input = self.listener.as_ref().map_or_else(Stdio::null, |listener| {
            OwnedFd::from(listener.try_clone().expect("a descriptor")).into()
        });
        program
            .env_clear()
            .envs(std::env::var_os("PATH").map(|path| ("PATH", path)))
            .env("SEALWIRE_DATA_DIR", self.place.data())
            .env("DATABASE_URL", self.place.url())
            .env("SEALWIRE_LISTEN", self.public.to_string())
            .env("SEALWIRE_OPERATOR_LISTEN", self.operator.to_string())
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(input);
        program
    }

    /// Waits until the relay says that it is ready.
    pub(crate) async fn until_ready(&mut self) {
        let operator = self.operator;
        let ready = holds_within(START_DEADLINE, async || {
            assert!(self.is_running(), "the relay has ended:\n{}", self.said());
            http::get(operator, "/ready").await.is_some_and(|answer| answer.status == 200)
        });
        assert!(ready.await, "the relay is not ready in time:\n{}", self.said());
    }

    /// Waits until the relay has said something.
    pub(crate) async fn until_said(&self, words: &str) {
        eventually(words, async || self.said().contains(words)).await;
    }

    /// Waits until the relay has noted, beside its witness, that a log has an entry at this seq.
    pub(crate) async fn until_noted(&self, seq: u64) {
        let file = self.place.data().join("witness.head");
        let line = format!("seq {seq:016x}");
        eventually("the head is noted", async || {
            fs::read_to_string(&file).is_ok_and(|text| text.lines().any(|it| it == line))
        })
        .await;
    }

    /// Kills the relay: no handler of its own runs, nothing is flushed.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("the relay runs");
        child.kill().expect("killed");
        child.wait().expect("gone");
    }

    /// Asks the relay to stop (SIGTERM) and waits until it has.
    pub(crate) async fn stop(&mut self) -> Stopped {
        self.ask_to_stop();
        self.until_stopped().await
    }

    /// Asks the relay to stop (SIGTERM).
    pub(crate) fn ask_to_stop(&mut self) {
        signal(self.child.as_ref().expect("the relay runs"), "TERM");
    }

    /// Waits until the relay has ended.
    pub(crate) async fn until_stopped(&mut self) -> Stopped {
        let begun = Instant::now();
        let mut child = self.child.take().expect("the relay runs");
        let status = wait(&mut child, "the relay ends").await;
        Stopped { status, after: begun.elapsed() }
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| child.try_wait().expect("asked").is_none())
    }

    /// Where devices connect.
    pub(crate) fn url(&self) -> RelayUrl {
        RelayUrl::parse(&format!("ws://{}", self.public)).expect("a URL")
    }

    pub(crate) fn public(&self) -> SocketAddr {
        self.public
    }

    pub(crate) fn operator(&self) -> SocketAddr {
        self.operator
    }

    /// The process's number.
    pub(crate) fn id(&self) -> u32 {
        self.child.as_ref().expect("the relay runs").id()
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Everything that it has written.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks on the operator's listener.
    pub(crate) async fn ask(&self, path: &str) -> Option<Answer> {
        http::get(self.operator, path).await
    }

    /// A metric's sum over all labels, or over those that hold `label`.
    pub(crate) async fn metric(&self, name: &str, label: &str) -> f64 {
        let answer = self.ask("/metrics").await.expect("the operator is answered");
        http::metric(&answer.body, name, label)
    }

    /// Waits until a metric's sum satisfies a condition.
    pub(crate) async fn until_metric(&self, name: &str, is: impl Fn(f64) -> bool) {
        eventually(name, async || is(self.metric(name, "").await)).await;
    }

    /// Bytes of memory that the process holds now.
    pub(crate) fn memory(&self) -> u64 {
        let id = self.id();
        let status = fs::read_to_string(format!("/proc/{id}/status")).expect("Linux");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("a size");
        let kib: u64 = line.split_whitespace().nth(1).expect("a number").parse().expect("one");
        kib * 1024
    }
}

impl Drop for RelayProcess {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It has ended already, or ends now.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let said = self.said();
            let tail = said.len().saturating_sub(8 * 1024);
            println!("the relay had said:\n{}", said.get(tail..).unwrap_or(&said));
        }
    }
}

/// How a process ended.
pub(crate) struct Stopped {
    pub(crate) status: ExitStatus,
    pub(crate) after: Duration,
}

/// Sends a signal to a process that was started here.
pub(crate) fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    let sent = Command::new("kill").args(["-s", name, &id]).status().expect("kill runs");
    assert!(sent.success(), "the process is there");
}

/// Waits until a process has ended.
pub(crate) async fn wait(child: &mut Child, what: &str) -> ExitStatus {
    let mut status = None;
    eventually(what, async || {
        status = child.try_wait().expect("asked");
        status.is_some()
    })
    .await;
    status.expect("it has ended")
}

/// Addresses that nobody uses now. A relay that is started again is to be where it was.
fn free_addresses() -> [SocketAddr; 2] {
    let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    listeners.map(|listener| listener.local_addr().expect("an address"))
}
