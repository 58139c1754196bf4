//! What whoever types `sealwire` can rely on: the real program, its real output, its real end.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{sleep, timeout};

/// How long anything here may take: a start in a debug build takes a tenth of a second.
const DEADLINE: Duration = Duration::from_secs(20);

/// Pause between two looks at something that is awaited.
const PAUSE: Duration = Duration::from_millis(20);

/// A secret that must not come out anywhere.
const PLANTED: &str = "planted-planted-planted-planted-planted";

#[tokio::test]
async fn the_relay_says_where_it_serves_and_stops_when_it_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let mut relay = Running::start(directory.path()).await;
    for address in [relay.public, relay.operator] {
        assert_eq!(get(address, "/health").await, (200, r#"{"status":"ok"}"#.to_owned()));
        relay.until_ready(address).await;
        let stats: Value = serde_json::from_str(&get(address, "/stats").await.1).unwrap();
        assert_eq!(stats["groups"], 0);
    }
    assert!(get(relay.operator, "/metrics").await.1.contains("# HELP sealwire_connections "));
    assert_eq!(get(relay.public, "/metrics").await.0, 404);
    assert!(relay.stop("TERM").await.success());

    let mut again = Running::start(directory.path()).await;
    assert_eq!(again.relay_key, relay.relay_key, "devices have pinned it");
    assert!(again.stop("INT").await.success());
}

#[tokio::test]
async fn a_second_relay_waits_and_takes_over() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = Running::start(directory.path()).await;
    first.until_ready(first.public).await;
    let mut standby = Running::start(directory.path()).await;
    assert_eq!(get(standby.operator, "/health").await.0, 200);
    assert_eq!(get(standby.operator, "/ready").await.0, 503);

    for command in ["migrate", "restored"] {
        let refused = finished(directory.path(), &[command], &[]).await;
        assert!(!refused.status.success(), "{command}");
        assert!(text(&refused.stderr).contains("another relay serves this store"));
    }
    assert!(first.stop("TERM").await.success());
    standby.until_ready(standby.public).await;
    assert!(standby.stop("TERM").await.success());

    let mut third = Running::start(directory.path()).await;
    third.until_ready(third.public).await;
    let mut waiting = Running::start(directory.path()).await;
    assert!(waiting.stop("TERM").await.success(), "a standby ends when it is told");
    assert!(third.stop("TERM").await.success());
}

#[tokio::test]
async fn a_database_is_prepared_and_told_that_it_was_restored_without_a_relay() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    for command in ["migrate", "restored", "migrate"] {
        let done = finished(&data, &[command], &[]).await;
        assert!(done.status.success(), "{command}: {}", text(&done.stderr));
    }
}

#[tokio::test]
async fn a_worker_on_sqlite_ends_with_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let refused =
        finished(directory.path(), &["worker", "--operator-listen", "127.0.0.1:0"], &[]).await;
    assert!(!refused.status.success());
    assert!(
        text(&refused.stderr).contains("a worker needs PostgreSQL"),
        "{}",
        text(&refused.stderr)
    );
}

#[tokio::test]
async fn a_mistake_ends_the_process_with_a_sentence_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    for (arguments, variables, sentence) in [
        (vec![], vec![("MAX_GROUPS_PER_DEVICE", "0")], "max_groups_per_device = \"0\""),
        (vec!["--listen", "here"], vec![], "listen = \"here\" (flag --listen)"),
        (vec![], vec![("DATABASE_URL", "mysql://x")], "database_url (environment DATABASE_URL)"),
        (vec!["frobnicate"], vec![], "frobnicate"),
    ] {
        let ended = finished(directory.path(), &arguments, &variables).await;
        assert!(!ended.status.success());
        assert!(text(&ended.stderr).contains(sentence), "{}", text(&ended.stderr));
    }
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "nothing was made");
}

#[tokio::test]
async fn no_output_shows_a_secret() {
    let directory = tempfile::tempdir().unwrap();
    let url = format!("postgres://user:{PLANTED}@127.0.0.1:1/none");
    let variables =
        [("DEVICE_SESSION_SECRET", PLANTED), ("DATABASE_URL", &url), ("RUST_LOG", "trace")];
    let shown = finished(directory.path(), &["config"], &variables).await;
    assert!(shown.status.success());
    assert!(text(&shown.stdout).contains("# database_url: postgres://127.0.0.1:1/none"));
    // No server is there; what the drivers have to say about it is not written.
    let failed = finished(directory.path(), &["migrate"], &variables).await;
    assert!(!failed.status.success());
    for output in [shown.stdout, shown.stderr, failed.stdout, failed.stderr] {
        assert!(!text(&output).contains("planted"), "{}", text(&output));
    }
}

/// A relay of its own process, on ports that the system chose.
struct Running {
    process: Child,
    public: SocketAddr,
    operator: SocketAddr,
    relay_key: String,
    _output: Lines<BufReader<ChildStdout>>,
}

impl Running {
    /// Starts it and waits until it says where it listens.
    async fn start(data: &Path) -> Self {
        let anywhere = ["--listen", "127.0.0.1:0", "--operator-listen", "127.0.0.1:0"];
        let mut process = program(data, &anywhere, &[]).spawn().unwrap();
        let mut output = BufReader::new(process.stdout.take().unwrap()).lines();
        let started = timeout(DEADLINE, async {
            loop {
                let line = output.next_line().await.unwrap().expect("it says that it starts");
                let line: Value = serde_json::from_str(&line).unwrap();
                if line["message"] == "starting" {
                    return line;
                }
            }
        });
        let started = started.await.unwrap();
        let field = |name: &str| started[name].as_str().unwrap().to_owned();
        Self {
            process,
            public: field("public").parse().unwrap(),
            operator: field("operator").parse().unwrap(),
            relay_key: field("relay_key"),
            _output: output,
        }
    }

    async fn until_ready(&self, address: SocketAddr) {
        timeout(DEADLINE, async {
            while get(address, "/ready").await.0 != 200 {
                sleep(PAUSE).await;
            }
        })
        .await
        .expect("ready in time");
    }

    async fn stop(&mut self, signal: &str) -> ExitStatus {
        let pid = self.process.id().expect("it runs").to_string();
        let sent = Command::new("kill").args([&format!("-{signal}"), &pid]).status().await;
        assert!(sent.unwrap().success());
        timeout(DEADLINE, self.process.wait()).await.expect("it ends in time").unwrap()
    }
}

/// Runs the program to its end.
async fn finished(data: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    timeout(DEADLINE, program(data, arguments, variables).output()).await.expect("in time").unwrap()
}

fn program(data: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_sealwire"));
    program
        .args(arguments)
        .env_clear()
        .env("SEALWIRE_DATA_DIR", data)
        .env("SEALWIRE_LOG_FORMAT", "json")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    program
}

/// Status and body of one request; 0 if nobody answers.
async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let asked = timeout(DEADLINE, async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    });
    let Ok(Ok(answer)) = asked.await else { return (0, String::new()) };
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or(0), body.to_owned())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
