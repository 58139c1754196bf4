//! The load tester itself: every subcommand runs against a real relay, on real sockets, and says
//! what it saw.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use sealwire::client_address::TrustedProxies;
use sealwire::config::{AddressRequests, UnauthenticatedLimits};
use sealwire::relay::{Relay, RelayOptions};
use sealwire::store::{Lock, StoreOptions};
use sealwire::telemetry;
use sealwire_actors::Options;
use sealwire_actors::ports::SystemClock;
use sealwire_actors::recovery::{RecoveryKey, RecoveryKeys};
use sealwire_protocol::token::TokenKey;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpListener;

struct World {
    relay: Relay,
    directory: TempDir,
}

impl World {
    async fn start() -> Self {
        let directory = TempDir::new().expect("a directory");
        let url = format!("sqlite://{}", directory.path().join("relay.db").display());
        let many = 10_000.try_into().expect("more than none");
        let options = RelayOptions {
            store: StoreOptions { url, data_dir: directory.path().to_owned(), lock: Lock::Try },
            actors: Options::new(relay_key(), vec![TokenKey::derive(&[7; 32])]),
            recovery_keys: RecoveryKeys { current: RecoveryKey::derive(&[8; 32]), previous: None },
            unauthenticated: UnauthenticatedLimits {
                max: 10_000,
                per_address_max: 10_000,
                rate: many,
                burst: many,
                per_address_rate: many,
                per_address_burst: many,
            },
            address_requests: AddressRequests {
                rate: 100_000.try_into().expect("not zero"),
                burst: 100_000.try_into().expect("not zero"),
            },
            proxies: TrustedProxies::default(),
            connections_max: 1000,
            shutdown_deadline: Duration::from_secs(10),
            metrics: telemetry::metrics().expect("a recorder"),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let relay = Relay::start(options, Arc::new(SystemClock), listener, None);
        Self { relay: relay.await.expect("a relay"), directory }
    }

    /// Runs the load tester against this relay and gives its figures.
    async fn measure(&self, arguments: &str) -> Value {
        let json = self.directory.path().join("figures.json");
        let url = format!("ws://{}", self.relay.address());
        let arguments = format!("{arguments} --url {url} --json {}", json.display());
        run(arguments).await;
        figures(&json)
    }

    async fn stop(self) {
        self.relay.shutdown().await.expect("an orderly end");
    }
}

fn relay_key() -> ed25519_dalek::SigningKey {
    ed25519_dalek::SigningKey::from_bytes(&[3; 32])
}

async fn run(arguments: String) {
    let status = tokio::task::spawn_blocking(move || {
        Command::new(env!("CARGO_BIN_EXE_sealwire-loadtest"))
            .args(arguments.split_whitespace())
            .stdout(Stdio::null())
            .status()
    });
    assert!(status.await.expect("it ends").expect("it runs").success());
}

fn figures(json: &Path) -> Value {
    let text = std::fs::read_to_string(json).expect("a result");
    serde_json::from_str::<Value>(&text).expect("JSON")["figures"].take()
}

fn assert_no_faults(figures: &Value) {
    for fault in ["lost", "duplicate", "disorder", "altered"] {
        assert_eq!(figures["faults"][fault], 0, "{figures}");
    }
}

fn number(figures: &Value, name: &str) -> f64 {
    figures[name].as_f64().unwrap_or_else(|| panic!("{name} is no number in {figures}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_are_counted_and_every_copy_is_checked() {
    let world = World::start().await;
    let pid = std::process::id();

    let saturated = "append --groups 3 --members 3 --senders 2 --seconds 1 --warm-up 0 --receivers";
    let figures = world.measure(&format!("{saturated} --pid {pid}")).await;
    assert_no_faults(&figures);
    assert!(number(&figures, "appended_per_second") > 0.0);
    // Each entry reaches both others, once.
    assert_eq!(figures["checked"].as_u64(), figures["appended"].as_u64().map(|sent| sent * 2));
    assert!(figures["relay"]["memory_most"]["resident"].as_u64() > Some(0));

    let paced = "append --groups 2 --members 2 --seconds 1 --warm-up 0 --rate 50";
    let figures = world.measure(paced).await;
    assert_no_faults(&figures);
    assert_eq!(figures["appended"], 50);
    assert_eq!(figures["checked"], 50);
    assert_eq!(figures["push_to_appended"]["count"], 50);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catch_up_is_timed_to_its_last_entry() {
    let world = World::start().await;
    let figures = world.measure("catch-up --entries 700 --body 2000 --runs 2 --signatures").await;
    assert_no_faults(&figures);
    assert_eq!(figures["last_ms"].as_array().map(Vec::len), Some(2));
    assert!(number(&figures, "bytes") > 700.0 * 2000.0);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_sessions_are_counted_step_by_step() {
    let world = World::start().await;
    let arguments = "idle --sessions 4,8 --body 1000 --rest 0 --after 0";
    let figures = world.measure(&format!("{arguments} --pid {}", std::process::id())).await;
    assert_eq!(figures["steps"][1]["sessions"], 8);
    assert!(figures["steps"][1]["memory"]["resident"].as_u64() > Some(0));
    number(&figures, "bytes_per_session");
    world.stop().await;
}

#[cfg(feature = "ceiling")]
#[tokio::test]
async fn the_store_alone_is_the_ceiling() {
    let directory = TempDir::new().expect("a directory");
    let (directory, json) = (directory.path(), directory.path().join("figures.json"));
    let reached = directory.join("append.json");
    std::fs::write(&reached, r#"{"figures": {"appended_per_second": 10.0}}"#).expect("a file");
    run(format!(
        "ceiling --database-url sqlite://{0}/store.db --directory {0} --groups 5 --batch 16 \
         --seconds 1 --against {1} --json {2}",
        directory.display(),
        reached.display(),
        json.display()
    ))
    .await;
    let figures = figures(&json);
    let share = number(&figures, "share") * number(&figures, "entries_per_second");
    assert!((share - 10.0).abs() < 0.001, "{figures}");
    assert!(number(&figures, "commits_per_second") > 0.0);
}

#[tokio::test]
async fn what_would_leave_this_machine_is_refused() {
    for url in ["wss://relay.example", "ws://192.0.2.1:4000"] {
        let refused = Command::new(env!("CARGO_BIN_EXE_sealwire-loadtest"))
            .args(["catch-up", "--url", url])
            .output()
            .expect("it runs");
        assert!(!refused.status.success() && refused.stdout.is_empty());
    }
}
