//! Whether the load tester shows what is wrong: a relay that stands still, one that loses, doubles,
//! swaps or alters a delivery, one that answers before the disk has anything, and one that is killed.

use std::path::PathBuf;
use std::process::{Command, ExitStatus, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use super::{World, assert_no_faults, document, load_test, number, without_ceilings};

/// How often a relay that lies is measured, until no other program flushes the disk meanwhile.
const ATTEMPTS: usize = 5;

/// The relay as a program: `examples/relay.rs`, which cargo builds with the tests.
pub(super) fn relay() -> PathBuf {
    let relay = PathBuf::from(env!("CARGO_BIN_EXE_sealwire-loadtest"))
        .with_file_name("examples")
        .join("relay");
    assert!(relay.exists(), "cargo builds {} with the tests", relay.display());
    relay
}

/// Measures a relay that is started for it, with this in its environment, and gives the only run.
async fn run(arguments: &str, variables: &[(&str, &str)]) -> (ExitStatus, Value) {
    let directory = TempDir::new().expect("a directory");
    let json = directory.path().join("figures.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealwire-loadtest"));
    command
        .args(without_ceilings(arguments.to_owned()).split_whitespace())
        .arg("--relay")
        .arg(relay())
        .arg("--json")
        .arg(&json)
        .envs(variables.iter().copied())
        .stdout(Stdio::null());
    let ended = tokio::task::spawn_blocking(move || command.status());
    let status = ended.await.expect("it ends").expect("it runs");
    (status, document(&json)["runs"][0].take())
}

/// The same of one that keeps its promises: the figures of the only rate.
async fn measure(arguments: &str) -> Value {
    let (status, mut run) = run(arguments, &[]).await;
    assert!(status.success());
    run["figures"]["steps"][0].take()
}

fn warns_of(run: &Value, words: &str) -> bool {
    let warnings = run["warnings"].as_array().expect("a list");
    warnings.iter().any(|warning| warning.as_str().is_some_and(|it| it.contains(words)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_answers_before_the_disk_has_anything_is_shown() {
    // One entry to a commit, as many commits as go.
    let load = "append --groups 1 --members 2 --body 64 --in-flight 1 --seconds 2 --warm-up 0";
    let (status, durable) = run(load, &[]).await;
    assert!(status.success() && !warns_of(&durable, "not durable"), "{}", durable["warnings"]);
    assert!(!warns_of(&durable, "the relay says"), "{}", durable["warnings"]);
    let flushes = |run: &Value| {
        let disk = &run["figures"]["steps"][0]["server"]["disk"];
        disk["flushes_per_commit"].as_f64()
    };
    // A disk whose driver counts no flushes tells nothing, and neither does one that others flush.
    let Some(with) = flushes(&durable) else { return };
    assert!(with > 0.9, "{with} flushes for each commit");
    for attempt in 1..=ATTEMPTS {
        let (status, lying) = run(load, &[("SEALWIRE_DEBUG_NO_FSYNC", "1")]).await;
        assert!(status.success());
        assert!(warns_of(&lying, "the relay says"), "the relay itself has not warned");
        if warns_of(&lying, "not durable") {
            assert!(flushes(&lying) < Some(0.4));
            return;
        }
        println!("attempt {attempt}: {:?} flushes for each commit", flushes(&lying));
    }
    panic!("entries were called durable that no disk had, and nothing shows it");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_delivery_in_ten_thousand_that_is_left_out_is_counted() {
    let load =
        "append --groups 10 --members 4 --receivers --body 64 --rate 1500 --seconds 5 --warm-up 0";
    let (status, mut run) = run(&format!("{load} --tamper drop"), &[]).await;
    assert!(!status.success(), "a broken promise ends with a failure");
    let figures = run["figures"]["steps"][0].take();
    // One of ten thousand, as often as they came: every entry goes to three others.
    let deliveries = figures["appended"].as_u64().expect("a number") * 3;
    assert!(deliveries > 10_000, "{figures}");
    assert_eq!(figures["faults"]["lost"], deliveries / 10_000, "{figures}");
    for other in ["duplicate", "disorder", "altered"] {
        assert_eq!(figures["faults"][other], 0, "{figures}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_stands_still_for_a_second_is_not_measured_kindly() {
    let load = "append --groups 4 --members 2 --receivers --rate 100 --seconds 3 --warm-up 0";
    let figures = measure(&format!("{load} --disturb pause --disturb-at 1")).await;
    assert_no_faults(&figures);
    // A hundred entries were due meanwhile: a third of all, and a tenth of all was due in its first
    // third.
    for latency in ["push_to_appended", "push_to_deliver"] {
        assert_eq!(figures[latency]["count"], 300);
        assert!(number(&figures[latency], "max_us") > 900_000.0, "{figures}");
        assert!(number(&figures[latency], "p90_us") > 300_000.0, "{figures}");
    }
    assert!(number(&figures, "longest_silence_ms") > 900.0, "{figures}");
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_that_a_stalled_relay_never_let_in_are_counted_as_long_as_they_waited() {
    // One entry under way, fifty thousand a second due: most of them are never sent.
    let load = "append --groups 1 --members 2 --receivers --in-flight 1 --rate 50000 --seconds 2";
    let figures = measure(&format!("{load} --warm-up 0")).await;
    assert_no_faults(&figures);
    let (sent, unsent) = (number(&figures, "appended"), number(&figures, "unsent"));
    assert!((sent + unsent - 100_000.0).abs() < 0.5 && unsent > 50_000.0, "{figures}");
    for latency in ["push_to_appended", "push_to_deliver"] {
        assert_eq!(figures[latency]["count"], 100_000);
        assert!(number(&figures[latency], "p50_us") > 900_000.0, "{figures}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_relay_has_what_it_answered_and_its_devices_come_back() {
    let figures = measure("run relay-killed --groups 4 --rate 50 --seconds 4 --disturb-at 1").await;
    assert_no_faults(&figures);
    assert_eq!(figures["appended"].as_u64(), Some(50 * 4 + 50 * 2));
    assert!(figures["returned"]["count"].as_u64() >= Some(16), "{figures}");
    assert!(number(&figures["disturbed"], "took_ms") > 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_delivery_in_many_that_is_tampered_with_is_seen() {
    let world = World::start().await;
    for (tamper, fault) in
        [("drop", "lost"), ("double", "duplicate"), ("swap", "disorder"), ("alter", "altered")]
    {
        let json = world.directory.path().join(format!("{tamper}.json"));
        // 200 deliveries: the 60th, the 120th and the 180th are tampered with.
        let load = "append --groups 2 --members 2 --receivers --rate 100 --seconds 2 --warm-up 0";
        let arguments = format!(
            "{load} --tamper {tamper} --tamper-one-in 60 --url ws://{} --json {}",
            world.relay.address(),
            json.display()
        );
        let ended = load_test(without_ceilings(arguments)).await;
        assert!(!ended.success(), "a broken promise ends with a failure");
        let mut document = document(&json);
        let figures = document["runs"][0]["figures"]["steps"][0].take();
        for one in ["lost", "duplicate", "disorder", "altered"] {
            let expected = if one == fault { 3 } else { 0 };
            assert_eq!(figures["faults"][one], expected, "{tamper}: {figures}");
        }
        assert!(document["runs"][0]["broken_promise"].is_string());
    }
    world.stop().await;
}
