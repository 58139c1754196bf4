//! Whether the load tester shows what is wrong: a relay that stands still, one that loses, doubles,
//! swaps or alters a delivery, and one that is killed.

use std::path::PathBuf;

use serde_json::Value;
use tempfile::TempDir;

use super::{World, assert_no_faults, document, load_test, number};

/// The relay as a program: `examples/relay.rs`, which cargo builds with the tests.
pub(super) fn relay() -> PathBuf {
    let relay = PathBuf::from(env!("CARGO_BIN_EXE_sealwire-loadtest"))
        .with_file_name("examples")
        .join("relay");
    assert!(relay.exists(), "cargo builds {} with the tests", relay.display());
    relay
}

/// Measures a relay that is started for it, and gives the figures of the only rate.
async fn measure(arguments: &str) -> Value {
    let directory = TempDir::new().expect("a directory");
    let json = directory.path().join("figures.json");
    let relay = relay();
    let arguments = format!("{arguments} --relay {} --json {}", relay.display(), json.display());
    assert!(load_test(arguments).await.success());
    document(&json)["runs"][0]["figures"]["steps"][0].take()
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
        assert!(!load_test(arguments).await.success(), "a broken promise ends with a failure");
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
