//! `sealwire-device` as a person types it: the real program, with its files in a directory of a test.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use sealwire_client::address::RelayUrl;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::timeout;

use super::DEADLINE;

/// A terminal: the variables that its commands see.
#[derive(Clone)]
pub(crate) struct Terminal {
    variables: Vec<(String, String)>,
}

/// What a command has printed, and whether it has succeeded.
pub(crate) struct Printed {
    pub(crate) success: bool,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Terminal {
    pub(crate) fn new(relay: &RelayUrl) -> Self {
        Self { variables: vec![("SEALWIRE_RELAY".to_owned(), relay.as_str().to_owned())] }
    }

    /// With another variable.
    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Runs a command to its end.
    pub(crate) async fn run(&self, arguments: &[&str]) -> Printed {
        let output = self.command(arguments).stdin(Stdio::null()).output();
        let output = timeout(2 * DEADLINE, output).await.expect("an end in time").expect("it ran");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        Printed {
            success: output.status.success(),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    /// Runs a command that must succeed, and gives what it prints.
    pub(crate) async fn ok(&self, arguments: &[&str]) -> String {
        let printed = self.run(arguments).await;
        assert!(printed.success, "{arguments:?}: {}", printed.err);
        printed.out
    }

    /// Runs a command to its end that says its remarks on a screen, where a person is looking. Gives
    /// whether it succeeded, and all that was written there.
    pub(crate) async fn on_screen(&self, arguments: &[&str]) -> (bool, String) {
        let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a screen");
        grantpt(&controller).expect("granted");
        unlockpt(&controller).expect("unlocked");
        let name = ptsname(&controller, Vec::new()).expect("its name");
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let screen = open(name.as_c_str(), flags, Mode::empty()).expect("the screen");
        let mut command = self.command(arguments);
        command.env("TERM", "xterm").stdin(Stdio::null()).stdout(Stdio::null()).stderr(screen);
        let mut child = command.spawn().expect("it starts");
        // The screen is the program's alone, and ends with it.
        drop(command);
        let seen = tokio::task::spawn_blocking(move || {
            let mut seen = Vec::new();
            // The end of a screen is told as an error.
            let _ = File::from(controller).read_to_end(&mut seen);
            String::from_utf8_lossy(&seen).into_owned()
        });
        let ended = timeout(2 * DEADLINE, child.wait()).await.expect("an end in time");
        (ended.expect("it ran").success(), seen.await.expect("what was seen"))
    }

    /// The objects that a command prints.
    pub(crate) async fn json(&self, arguments: &[&str]) -> Vec<Value> {
        let out = self.ok(&[&["--json"], arguments].concat()).await;
        out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    /// Starts a command that goes on.
    pub(crate) fn start(&self, arguments: &[&str]) -> Typing {
        let mut command = self.command(arguments);
        let mut child = command.stdin(Stdio::piped()).spawn().expect("it starts");
        let out = BufReader::new(child.stdout.take().expect("piped")).lines();
        let input = child.stdin.take();
        Typing { child, input, out, seen: Vec::new() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command
            .args(arguments)
            .env_remove("SEALWIRE_PASSPHRASE")
            // No session with a keychain: the person who runs this is not to find keys of tests in it.
            .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere")
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }
}

/// A command that goes on.
pub(crate) struct Typing {
    child: Child,
    input: Option<ChildStdin>,
    out: Lines<BufReader<ChildStdout>>,
    seen: Vec<String>,
}

impl Typing {
    /// Types a line.
    pub(crate) async fn types(&mut self, line: &str) {
        let input = self.input.as_mut().expect("its input is open");
        input.write_all(format!("{line}\n").as_bytes()).await.expect("typed");
        input.flush().await.expect("typed");
    }

    /// Waits until it has printed a line that holds this.
    pub(crate) async fn shows(&mut self, text: &str) {
        let shown = timeout(DEADLINE, async {
            while let Some(line) = self.out.next_line().await.expect("lines") {
                self.seen.push(line);
                if self.seen.last().is_some_and(|line| line.contains(text)) {
                    return;
                }
            }
            panic!("it has ended without {text:?}: {:?}", self.seen);
        });
        shown.await.unwrap_or_else(|_| panic!("not in time: {text:?} in {:?}", self.seen));
    }

    /// Waits for its end, or kills it when something has happened. Says whether it was killed.
    pub(crate) async fn killed_when(mut self, happens: impl Future<Output = ()>) -> bool {
        tokio::select! {
            ended = self.child.wait() => {
                ended.expect("it ran");
                false
            }
            () = happens => {
                self.child.kill().await.expect("killed");
                true
            }
        }
    }

    /// Ends its input, and waits for its end.
    pub(crate) async fn end(mut self) {
        self.input = None;
        let ended = timeout(DEADLINE, self.child.wait()).await.expect("an end in time");
        assert!(ended.expect("it ran").success());
    }
}

/// The program, beside the relay's.
fn program() -> PathBuf {
    let program = Path::new(env!("CARGO_BIN_EXE_sealwire")).with_file_name("sealwire-device");
    assert!(program.exists(), "not built: cargo build -p sealwire-client");
    program
}
