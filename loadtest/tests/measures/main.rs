//! The load tester itself: every subcommand runs against a real relay, on real sockets, and says
//! what it saw.

mod budgets;
mod honest;

use std::path::Path;
use std::process::{Command, ExitStatus, Output, Stdio};
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
        run(without_ceilings(arguments)).await;
        figures(&json)
    }

    async fn stop(self) {
        self.relay.shutdown().await.expect("an orderly end");
    }
}

/// The same, without the half minute that it takes to see what the machine does at best, unless that is
/// what is looked at.
fn without_ceilings(arguments: String) -> String {
    if arguments.contains("--ceiling") {
        arguments
    } else {
        format!("{arguments} --ceilings=false")
    }
}

fn relay_key() -> ed25519_dalek::SigningKey {
    ed25519_dalek::SigningKey::from_bytes(&[3; 32])
}

async fn run(arguments: String) {
    assert!(load_test(arguments).await.success());
}

async fn load_test(arguments: String) -> ExitStatus {
    let status = tokio::task::spawn_blocking(move || {
        Command::new(env!("CARGO_BIN_EXE_sealwire-loadtest"))
            .args(arguments.split_whitespace())
            .stdout(Stdio::null())
            .status()
    });
    status.await.expect("it ends").expect("it runs")
}

fn figures(json: &Path) -> Value {
    document(json)["runs"][0]["figures"].take()
}

fn document(json: &Path) -> Value {
    let text = std::fs::read_to_string(json).expect("a result");
    serde_json::from_str(&text).expect("JSON")
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
    let figures = world.measure(&format!("{saturated} --pid {pid}")).await["steps"][0].take();
    assert_no_faults(&figures);
    assert!(number(&figures, "appended_per_second") > 0.0);
    // Each entry reaches both others, once.
    assert_eq!(figures["checked"].as_u64(), figures["appended"].as_u64().map(|sent| sent * 2));
    let relay = &figures["server"]["relay"];
    assert!(relay["memory_most"]["resident"].as_u64() > Some(0), "{figures}");

    let paced = "append --groups 2 --members 2 --seconds 1 --warm-up 0 --rate 50,80";
    let figures = world.measure(paced).await;
    for (step, entries) in [50, 80].into_iter().enumerate() {
        let figures = &figures["steps"][step];
        assert_no_faults(figures);
        assert_eq!(figures["appended"], entries);
        assert_eq!(figures["checked"], entries);
        assert_eq!(figures["push_to_appended"]["count"], entries);
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_that_are_cut_off_come_back_and_lack_nothing() {
    let world = World::start().await;
    let figures = world
        .measure("run reconnect-storm --groups 4 --rate 50 --seconds 2 --warm-up 0 --disturb-at 1")
        .await["steps"][0]
        .take();
    assert_no_faults(&figures);
    assert_eq!(figures["returned"]["count"], 16);
    assert_eq!(figures["appended"], 100);
    assert_eq!(figures["checked"], 300);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_readers_and_those_who_come_and_go_read_everything_in_the_end() {
    let world = World::start().await;
    let figures = world
        .measure("append --groups 2 --members 3 --receivers --rate 40 --seconds 2 --warm-up 0 --slow 1 --churn 4")
        .await["steps"][0]
        .take();
    assert_no_faults(&figures);
    assert_eq!(figures["checked"], 160);
    assert!(figures["returned"]["count"].as_u64() > Some(2), "{figures}");
    let slow = number(&figures["slow"], "p50_us");
    assert!(slow > number(&figures["push_to_deliver"], "p50_us"), "{figures}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scenario_is_run_by_its_name_and_what_is_given_wins() {
    let world = World::start().await;
    let figures = world
        .measure("run group-chat --groups 2 --members=3 --seconds 1 --warm-up 0 --rate 20,max")
        .await;
    assert_eq!(figures["steps"][0]["appended"], 20);
    assert_eq!(figures["steps"][0]["checked"], 40);
    assert_eq!(figures["steps"][1]["rate"], "max");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn phones_hear_every_payload_once_over_event_streams() {
    let world = World::start().await;
    let figures =
        world.measure("run phones --groups 3 --members 3 --rate 30 --seconds 2 --warm-up 0").await;
    assert_no_faults(&figures);
    assert_eq!(figures["posted"], 60);
    assert_eq!(figures["checked"], 120);
    assert_eq!(figures["due_to_event"]["count"], 120);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn phones_that_start_at_once_are_timed_apart() {
    let world = World::start().await;
    let options = "--groups 3 --members 3 --shared 2 --rate 30 --seconds 2 --warm-up 0";
    let figures = world.measure(&format!("run phones-start {options}")).await;
    assert_no_faults(&figures);
    assert_eq!((&figures["posted"], &figures["checked"]), (&60.into(), &120.into()));
    let started = &figures["started"];
    assert_eq!((&started["phones"], &started["streams"]), (&9.into(), &45.into()));
    // Three logins of two calls, a registration, and twice a list and two pages.
    assert_eq!(started["calls"]["count"], 9 * (3 * 2 + 1 + 2 * 3));
    assert_eq!(started["opened"]["count"], 45);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sleeping_devices_are_rung_although_the_push_service_fails_now_and_then() {
    let directory = TempDir::new().expect("a directory");
    let json = directory.path().join("figures.json");
    let load = "run doorbells --groups 6 --sleepers 2 --payloads 5 --rate 60 --rounds 2 --settle 0 \
                --limited-every 4 --dead-every 6";
    let relay = honest::relay();
    let arguments = format!("{load} --relay {} --json {}", relay.display(), json.display());
    assert!(load_test(without_ceilings(arguments)).await.success());
    let figures = figures(&json);
    // Each round has devices of its own.
    assert_eq!((number(&figures, "devices"), number(&figures, "never_rung")), (24.0, 0.0));
    assert_eq!(figures["commit_to_doorbell"]["count"], 24);
    assert_eq!(figures["rounds"].as_array().map(Vec::len), Some(2));
    // A burst that rings lies between two that do not.
    assert_eq!(figures["answer_without"]["count"], 120);
    assert_eq!(figures["answer_with"]["count"], 60);
    let round = &figures["rounds"][0];
    assert_eq!(round["answer_with"]["count"], 30);
    for quiet in [0, 1] {
        assert_eq!(round["answer_without"][quiet]["count"], 30);
        assert!(number(round, "seconds_with") > 0.0, "{figures}");
    }
    let (calls, limited) = (number(&figures, "calls"), number(&figures, "limited"));
    assert!(limited >= 2.0 && calls - limited == 24.0, "one for each device: {figures}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_shown_as_a_page_and_can_be_compared() {
    let world = World::start().await;
    let directory = world.directory.path();
    let (page, json) = (directory.join("page.html"), directory.join("figures.json"));
    let append = "append --groups 2 --members 2 --receivers --rate 50 --seconds 1 --repeat 2";
    let pid = std::process::id();
    world.measure(&format!("{append} --pid {pid} --html {}", page.display())).await;
    let page = std::fs::read_to_string(page).expect("a page");
    assert!(page.matches("<svg").count() >= 6, "three plots of each run at least");
    assert!(page.contains("--groups 2") && page.contains("Run 2 of 2"));

    let compared = Command::new(env!("CARGO_BIN_EXE_sealwire-loadtest"))
        .args(["compare".as_ref(), json.as_os_str(), json.as_os_str()])
        .output()
        .expect("it runs");
    let text = String::from_utf8(compared.stdout).expect("text");
    assert!(compared.status.success() && text.contains("at 50/s: durable appends"), "{text}");
    assert!(!text.contains("WORSE") && !text.contains("better?"), "{text}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_catch_up_is_timed_to_its_last_entry() {
    let world = World::start().await;
    let figures = world
        .measure("catch-up --entries 700 --body 2000 --runs 2 --signatures --devices 3 --live-rate 20 --live-groups 2 --live-seconds 3")
        .await;
    for (readings, signatures) in [false, true].into_iter().enumerate() {
        let readings = &figures["readings"][readings];
        assert_no_faults(readings);
        assert_eq!(readings["signatures"], signatures);
        assert_eq!(readings["last_ms"].as_array().map(Vec::len), Some(6));
        assert!(number(readings, "bytes") > 700.0 * 2000.0);
    }
    assert_no_faults(&figures["live"]);
    assert_eq!(figures["live"]["push_to_deliver"]["count"], 180);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changesets_of_vaults_are_pushed_pulled_and_checked() {
    let world = World::start().await;
    let load = "run vaults --vaults 3 --devices 3 --batch 4 --rate 40 --seconds 2 --warm-up 0";
    let figures = world.measure(&format!("{load} --away 600 --pulls 2")).await;
    let live = &figures["live"];
    assert_no_faults(live);
    // Ten pushes a second, for two seconds, to both others.
    assert_eq!((&live["appended"], &live["checked"]), (&80.into(), &160.into()));
    assert_eq!(live["push_to_appended"]["count"], 80);
    assert_eq!(live["push_to_deliver"]["count"], 160);
    for (readings, signatures) in [false, true].into_iter().enumerate() {
        let readings = &figures["away"]["readings"][readings];
        assert_no_faults(readings);
        assert_eq!(readings["signatures"], signatures);
        assert_eq!(readings["last_ms"].as_array().map(Vec::len), Some(2));
        assert!(number(readings, "bytes") > 600.0 * 512.0);
    }
    let saturated = "vaults --vaults 2 --devices 2 --rate max --seconds 1 --warm-up 0 --away 0";
    let live = world.measure(saturated).await["live"].take();
    assert_no_faults(&live);
    assert_eq!(live["appended"], live["checked"]);
    assert!(live["appended"].as_u64() > Some(0));
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

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_of_several_processes_is_counted_as_one() {
    let world = World::start().await;
    let figures = world
        .measure("run reconnect-storm --groups 5 --rate 50 --seconds 2 --warm-up 0 --disturb-at 1 --process-max 8")
        .await["steps"][0]
        .take();
    assert_no_faults(&figures);
    assert_eq!(figures["returned"]["count"], 20);
    assert_eq!((&figures["appended"], &figures["checked"]), (&100.into(), &300.into()));
    assert_eq!(figures["push_to_appended"]["count"], 100);
    assert_eq!(figures["push_to_deliver"]["count"], 300);
    assert!(number(&figures, "longest_silence_ms") < 2000.0);

    // Where nobody receives, each part reads its own groups again.
    let saturated = "append --groups 4 --members 2 --seconds 1 --warm-up 0 --process-max 4";
    let figures = world.measure(saturated).await["steps"][0].take();
    assert_no_faults(&figures);
    assert!(figures["appended"].as_u64() > Some(0));
    assert_eq!(figures["checked"], figures["appended"]);

    let idle = "idle --sessions 4,16 --body 1000 --rest 0 --after 0 --process-max 8";
    let figures = world.measure(&format!("{idle} --pid {}", std::process::id())).await;
    assert_eq!(figures["steps"][1]["sessions"], 16);
    number(&figures, "bytes_per_session");
    world.stop().await;
}

/// What a speed or a size is told in.
const SPEEDS_AND_SIZES: [&str; 5] = ["µs", "bytes", "/s", "bytes/s", "cores"];

/// Names of the speeds and sizes of a report that stand without a ratio.
fn without_ratio(document: &Value) -> Vec<&str> {
    let measures = document["measures"].as_array().expect("measures");
    assert!(!measures.is_empty());
    let lacks = |measure: &&Value| {
        let counted = |name: &str| measure[name].as_array().map_or(0, Vec::len);
        let unit = measure["unit"].as_str().expect("a unit");
        SPEEDS_AND_SIZES.contains(&unit) && counted("ratios") != counted("values")
    };
    let names = measures.iter().filter(lacks);
    names.map(|measure| measure["name"].as_str().expect("a name")).collect()
}

/// Runs these measurements with what the machine does at best, and looks for figures without a ratio.
async fn assert_ratios(loads: &[&str]) {
    let directory = TempDir::new().expect("a directory");
    let (json, page) = (directory.path().join("report.json"), directory.path().join("report.html"));
    for load in loads {
        let arguments = format!(
            "{load} --ceiling-seconds 1 --relay {} --json {} --html {}",
            honest::relay().display(),
            json.display(),
            page.display()
        );
        assert!(load_test(arguments).await.success(), "{load}");
        let document = document(&json);
        assert_eq!(without_ratio(&document), Vec::<&str>::new(), "{load}");
        let page = std::fs::read_to_string(&page).expect("a page");
        for ratio in document["ratios"][0].as_array().expect("ratios") {
            assert!(ratio["share"].as_f64().is_some_and(f64::is_finite), "{load}: {ratio}");
            let name = ratio["name"].as_str().expect("a name");
            assert!(page.contains(&format!("<td>{name}</td>")), "{load}: {name}");
            let is_store = ratio["of"].as_str().is_some_and(|of| of.starts_with("the store alone"));
            assert!(!is_store || cfg!(feature = "ceiling"), "{load}: {ratio}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_speed_and_size_of_groups_is_told_as_a_ratio() {
    assert_ratios(&[
        "append --groups 5 --members 2 --receivers --seconds 2 --warm-up 0 --rate 50,max",
        "append --groups 2 --members 3 --receivers --rate 40 --seconds 2 --slow 1 --churn 4",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_speed_and_size_of_a_disturbance_is_told_as_a_ratio() {
    assert_ratios(&[
        "run reconnect-storm --groups 4 --rate 50 --seconds 3 --warm-up 0 --disturb-at 1",
        "run relay-killed --groups 4 --rate 50 --seconds 3 --warm-up 0 --disturb-at 1",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_speed_and_size_of_silence_and_absence_is_told_as_a_ratio() {
    assert_ratios(&[
        "catch-up --entries 300 --runs 2 --signatures --live-rate 20 --live-groups 2 --live-seconds 3",
        "idle --sessions 4,8 --body 1000 --rest 0 --after 0",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_speed_and_size_of_vaults_and_phones_is_told_as_a_ratio() {
    assert_ratios(&[
        "run phones-start --groups 3 --members 3 --shared 2 --rate 30 --seconds 2 --warm-up 0",
        "run vaults --vaults 3 --devices 3 --batch 4 --rate 40 --seconds 2 --away 300 --pulls 2",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_speed_and_size_of_doorbells_is_told_as_a_ratio() {
    assert_ratios(&[
        "run doorbells --groups 6 --sleepers 2 --payloads 5 --rate 60 --rounds 1 --settle 0",
    ])
    .await;
}

#[cfg(feature = "ceiling")]
#[tokio::test]
async fn the_store_alone_is_the_ceiling() {
    let directory = TempDir::new().expect("a directory");
    let (directory, json) = (directory.path(), directory.path().join("figures.json"));
    let reached = directory.join("append.json");
    let steps = r#"{"runs": [{"figures": {"steps": [{"appended_per_second": 10.0}]}}]}"#;
    std::fs::write(&reached, steps).expect("a file");
    run(format!(
        "ceiling --database-url sqlite://{0}/store.db --directory {0} --groups 5 --batch 16 \
         --seconds 1 --against {1} --json {2}",
        directory.display(),
        reached.display(),
        json.display()
    ))
    .await;
    let figures = figures(&json);
    let store = &figures["store"];
    let share = number(&figures, "share") * number(store, "entries_per_second");
    assert!((share - 10.0).abs() < 0.001, "{figures}");
    assert!(number(store, "commits_per_second") > 0.0);
}

/// Runs the load tester in a process that may open so few files.
async fn with_few_files(files: usize, arguments: String) -> Output {
    let output = tokio::task::spawn_blocking(move || {
        Command::new("sh")
            .arg("-c")
            .arg(format!("ulimit -n {files} && exec \"$0\" \"$@\""))
            .arg(env!("CARGO_BIN_EXE_sealwire-loadtest"))
            .args(arguments.split_whitespace())
            .output()
    });
    output.await.expect("it ends").expect("it runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crowd_that_is_too_large_for_the_open_files_is_spread_or_refused_before_it_begins() {
    let world = World::start().await;
    let (url, json) = (world.relay.address(), world.directory.path().join("figures.json"));
    let there = format!("--url ws://{url} --ceilings=false --json {}", json.display());
    let idle = format!(
        "idle --sessions 40,160 --body 1000 --rest 0 --after 0 --pid {}",
        std::process::id()
    );
    for load in ["append --groups 40 --receivers --rate 40 --seconds 1 --warm-up 0", &idle] {
        let output = with_few_files(200, format!("{load} {there}")).await;
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{load}: {told}");
    }
    for load in [
        "phones --groups 40",
        "phones --groups 10 --shared 3 --start",
        "vaults --vaults 60",
        "catch-up --devices 150 --entries 10",
        "catch-up --live-rate 10 --live-groups 50 --entries 10",
        "doorbells --groups 150",
    ] {
        let output = with_few_files(200, format!("{load} {there}")).await;
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && told.contains("need more open files"),
            "{load}: {told}"
        );
        assert!(output.stdout.is_empty(), "{load}");
    }
    world.stop().await;
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
