//! The operator sees whether the relay lives and works, and what it is doing, actor by actor.

use sealwire_protocol::frame::Ping;

use crate::support::device::{Device, together};
use crate::support::eventually;
use crate::support::http;
use crate::support::on_both_databases;
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;

on_both_databases!(metrics_move_with_what_happens, the_sums_are_those_of_the_store,);

const LIVE: &str = "sealwire_actors_live";
const HANDLED: &str = "sealwire_messages_handled_total";

async fn metrics_move_with_what_happens(database: Database) {
    let relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let committers = if database == Database::Postgres { 2.0 } else { 1.0 };
    for (actor, live) in [("session", 0.0), ("log", 0.0), ("committer", committers)] {
        assert_eq!(relay.metric(LIVE, &label(actor)).await, live, "{actor}");
    }
    let mut devices = Vec::new();
    for seed in 1..=3 {
        devices.push(Device::connected(relay.url(), seed).await);
    }
    let log = together(&mut devices).await.log;
    for _ in 0..10 {
        devices[0].append(log, b"counted").await;
    }
    for device in &mut devices[1..] {
        device.read_to(log, 13).await;
        device.ack_all(log).await;
        device.request(Ping {}).await.expect("a heartbeat");
    }
    let delivered = "outcome=\"delivered\"";
    eventually("the copies are delivered", async || {
        relay.metric("sealwire_outcomes_total", delivered).await == 20.0
    })
    .await;

    let moved = [
        ("sealwire_sessions", "", 3.0),
        (LIVE, "actor=\"session\"", 3.0),
        (LIVE, "actor=\"log\"", 1.0),
        ("sealwire_entries_appended_total", "kind=\"ring\"", 10.0),
        ("sealwire_entries_appended_total", "kind=\"control\"", 3.0),
        ("sealwire_frames_received_total", "frame=\"Append\"", 13.0),
        ("sealwire_frames_received_total", "frame=\"Authenticate\"", 3.0),
        ("sealwire_commits_failed_total", "", 0.0),
        ("sealwire_actor_restarts_total", "", 0.0),
    ];
    for (name, label, value) in moved {
        assert_eq!(relay.metric(name, label).await, value, "{name} {label}");
    }
    for actor in ["log", "committer"] {
        let handled = relay.metric(HANDLED, &label(actor)).await;
        assert!(handled >= 10.0, "{actor}: {handled}");
        for timing in ["sealwire_message_age_seconds", "sealwire_message_handling_seconds"] {
            let counted = relay.metric(&format!("{timing}_count"), &label(actor)).await;
            assert!(counted >= 10.0, "{timing} of {actor}: {counted}");
        }
        assert_eq!(relay.metric("sealwire_mailbox_depth", &label(actor)).await, 0.0);
    }
    assert!(relay.metric("sealwire_commit_seconds_count", "").await >= 10.0);
    assert!(relay.metric("sealwire_copies_offered_total", "").await >= 20.0);

    devices.truncate(1);
    relay.until_metric("sealwire_sessions", |value| value == 1.0).await;
    assert_eq!(relay.metric("sealwire_sessions_ended_total", "").await, 2.0);
}

async fn the_sums_are_those_of_the_store(database: Database) {
    let relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let mut devices =
        vec![Device::connected(relay.url(), 1).await, Device::connected(relay.url(), 2).await];
    let log = together(&mut devices).await.log;
    devices[0].found().await;
    for _ in 0..5 {
        devices[0].append(log, b"counted").await;
    }
    // The same to anybody who asks, and nothing that is about anybody.
    for address in [relay.public(), relay.operator()] {
        let answer = http::get(address, "/stats").await.expect("an answer");
        assert_eq!(answer.status, 200);
        let sums: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
        let expected = serde_json::json!({
            "groups": 2, "vaults": 0, "memberships": 3,
            "entries": 8, "undelivered": 5, "sessions": 2,
        });
        assert_eq!(sums, expected);
    }
    assert_eq!(http::get(relay.public(), "/metrics").await.map(|answer| answer.status), Some(404));
}

fn label(actor: &str) -> String {
    format!("actor=\"{actor}\"")
}
