//! A code and a PIN bring an identity back, and nobody can try them for long.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::stream::{self, StreamExt};
use sealwire_client::identity::Identity;
use sealwire_protocol::RelayFrame;
use sealwire_protocol::frame::Ping;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::device::Device;
use crate::support::phone::{Answer, Phone, Proof};
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;
use crate::support::world::World;
use crate::support::{eventually, on_both_databases};

on_both_databases!(
    what_was_stored_comes_back_byte_for_byte,
    a_code_belongs_to_one_device_and_a_device_has_one_code,
    five_reports_lock_for_an_hour_and_the_owner_unlocks,
    a_thousand_fetches_at_once_are_granted_ten_times,
    a_thousand_reports_at_once_lock_once,
    what_is_weak_or_no_vault_is_refused,
    a_deleted_vault_is_gone,
    an_unknown_code_is_answered_as_late_as_a_known_one,
    the_owner_is_told_of_a_fetch,
    a_killed_relay_has_given_nothing_away,
);

const CODE: &str = "0123456789ABCDE9";
const OTHER: &str = "TVWXYZABCDEFGHJ9";
const UNKNOWN: &str = "0000000000000000";
const FETCH: &str = "/identity/vault/fetch";
const REPORT: &str = "/identity/vault/report-failure";

/// How many ask at the same time.
const ABREAST: usize = 50;

fn vault(code: &str, byte: u8) -> Value {
    json!({
        "recoveryCode": code,
        "version": 1,
        "salt": STANDARD.encode([byte; 16]),
        "kdfParams": { "memoryKb": 65_536, "iterations": 3, "parallelism": 4 },
        "encryptedBlob": STANDARD.encode(vec![byte; 407]),
    })
}

fn with(field: &str, value: Value) -> Value {
    let mut vault = vault(CODE, 1);
    vault[field] = value;
    vault
}

async fn put(phone: &Phone, vault: Value) -> Answer {
    phone.call("PUT", "/identity/vault", Some(vault)).await.expect("an answer")
}

/// A call by code, as of a device that has lost everything: without any proof.
async fn by_code(phone: &Phone, path: &str, code: &str) -> Answer {
    try_by_code(phone, path, code).await.expect("an answer")
}

async fn try_by_code(phone: &Phone, path: &str, code: &str) -> Result<Answer, String> {
    let body = json!({ "recoveryCode": code }).to_string().into_bytes();
    phone.send("POST", path, &Proof::None, Some(body)).await
}

/// Seconds from now until a lock ends, which the answer says in both of its ways.
fn locked_for(answer: Answer) -> u64 {
    let seconds = answer.header("retry-after").and_then(|text| text.parse().ok());
    let body = answer.refused(429, "locked");
    let until = body["lockedUntil"].as_str().expect("a time");
    assert!(until.ends_with('Z') && until.len() == "2026-01-01T00:00:00.000Z".len(), "{until}");
    seconds.expect("whole seconds")
}

/// Asks so many times, [`ABREAST`] at once, and gives the statuses of the answers that came.
async fn storm(relay: SocketAddr, path: &'static str, times: usize) -> Vec<u16> {
    counted_storm(relay, path, times, Arc::default()).await
}

async fn counted_storm(
    relay: SocketAddr,
    path: &'static str,
    times: usize,
    answered: Arc<AtomicUsize>,
) -> Vec<u16> {
    let phone = Arc::new(Phone::new(relay, 9));
    stream::iter(0..times)
        .map(|_| {
            let (phone, answered) = (phone.clone(), answered.clone());
            async move {
                let answer = try_by_code(&phone, path, CODE).await;
                answered.fetch_add(1, Ordering::Relaxed);
                // A relay that was killed has answered nothing.
                answer.map_or(0, |answer| answer.status)
            }
        })
        .buffer_unordered(ABREAST)
        .collect()
        .await
}

fn count(statuses: &[u16], status: u16) -> usize {
    statuses.iter().filter(|other| **other == status).count()
}

async fn what_was_stored_comes_back_byte_for_byte(database: Database) {
    let world = World::start(database).await;
    let (phone, lost) = (Phone::new(world.address(), 1), Phone::new(world.address(), 2));
    put(&phone, vault(CODE, 7)).await.ok();
    let fetched = by_code(&lost, FETCH, CODE).await.ok();
    let mut stored = vault(CODE, 7);
    stored.as_object_mut().expect("an object").remove("recoveryCode");
    assert_eq!(fetched, stored);
    by_code(&lost, FETCH, UNKNOWN).await.refused(404, "no_such_vault");
    by_code(&lost, REPORT, UNKNOWN).await.ok();
}

async fn a_code_belongs_to_one_device_and_a_device_has_one_code(database: Database) {
    let world = World::start(database).await;
    let (alice, bob) = (Phone::new(world.address(), 1), Phone::new(world.address(), 2));
    put(&alice, vault(CODE, 1)).await.ok();
    put(&bob, vault(CODE, 2)).await.refused(409, "recovery_code_taken");
    put(&alice, vault(OTHER, 3)).await.ok();
    by_code(&bob, FETCH, CODE).await.refused(404, "no_such_vault");
    put(&bob, vault(CODE, 2)).await.ok();
    let fetched = by_code(&alice, FETCH, CODE).await.ok();
    assert_eq!(fetched["salt"], vault(CODE, 2)["salt"]);
}

async fn five_reports_lock_for_an_hour_and_the_owner_unlocks(database: Database) {
    let world = World::start(database).await;
    let phone = Phone::new(world.address(), 1);
    put(&phone, vault(CODE, 1)).await.ok();
    for _ in 0..5 {
        by_code(&phone, FETCH, CODE).await.ok();
        by_code(&phone, REPORT, CODE).await.ok();
    }
    for path in [FETCH, REPORT] {
        let seconds = locked_for(by_code(&phone, path, CODE).await);
        assert!((3500..=3600).contains(&seconds), "{seconds}");
    }
    put(&phone, vault(CODE, 1)).await.ok();
    for _ in 0..10 {
        by_code(&phone, FETCH, CODE).await.ok();
    }
    let seconds = locked_for(by_code(&phone, FETCH, CODE).await);
    assert!((3500..=3600).contains(&seconds), "{seconds}");
    by_code(&phone, REPORT, CODE).await.ok();
}

async fn a_thousand_fetches_at_once_are_granted_ten_times(database: Database) {
    let world = World::start(database).await;
    let phone = Phone::new(world.address(), 1);
    put(&phone, vault(CODE, 1)).await.ok();
    let statuses = storm(world.address(), FETCH, 1000).await;
    assert_eq!((count(&statuses, 200), count(&statuses, 429)), (10, 990));
}

async fn a_thousand_reports_at_once_lock_once(database: Database) {
    let world = World::start(database).await;
    let phone = Phone::new(world.address(), 1);
    put(&phone, vault(CODE, 1)).await.ok();
    let statuses = storm(world.address(), REPORT, 1000).await;
    assert_eq!((count(&statuses, 200), count(&statuses, 429)), (5, 995));
    let seconds = locked_for(by_code(&phone, FETCH, CODE).await);
    assert!(seconds <= 3600, "one lock, of an hour: {seconds}");
}

async fn what_is_weak_or_no_vault_is_refused(database: Database) {
    let world = World::start(database).await;
    let phone = Phone::new(world.address(), 1);
    let kdf = |memory: u64, iterations: u64, parallelism: u64| json!({ "memoryKb": memory, "iterations": iterations, "parallelism": parallelism });
    for weak in [kdf(1024, 1, 1), kdf(8, 3, 4), kdf(65_536, 0, 4), kdf(65_536, 3, 0)] {
        put(&phone, with("kdfParams", weak)).await.refused(400, "kdf_params");
    }
    for vault in [
        with("recoveryCode", json!("not-a-code-12345")),
        with("recoveryCode", json!("")),
        with("recoveryCode", json!("UUUUUUUUUUUUUUUU")),
        with("recoveryCode", json!(16)),
        with("version", json!(2)),
        with("version", json!("1")),
        with("salt", json!("not base64")),
        with("salt", json!(STANDARD.encode([1; 8]))),
        with("kdfParams", json!("{}")),
        with("kdfParams", kdf(u64::MAX, 3, 4)),
        with("encryptedBlob", json!(STANDARD.encode([1; 20]))),
        with("encryptedBlob", Value::Null),
        json!([]),
        json!({}),
    ] {
        put(&phone, vault).await.refused(400, "bad_request");
    }
    let large = json!(STANDARD.encode(vec![1; 20 * 1024]));
    put(&phone, with("encryptedBlob", large)).await.refused(413, "too_large");
    let body = vault(CODE, 1).to_string().into_bytes();
    let unproved = phone.send("PUT", "/identity/vault", &Proof::None, Some(body)).await;
    unproved.expect("an answer").refused(401, "unauthorized");
    for path in [FETCH, REPORT] {
        by_code(&phone, path, "no code").await.refused(400, "bad_request");
        by_code(&phone, path, CODE).await;
    }
    by_code(&phone, FETCH, CODE).await.refused(404, "no_such_vault");
}

async fn a_deleted_vault_is_gone(database: Database) {
    let world = World::start(database).await;
    let (phone, other) = (Phone::new(world.address(), 1), Phone::new(world.address(), 2));
    put(&phone, vault(CODE, 1)).await.ok();
    for _ in 0..2 {
        other.call("DELETE", "/identity/vault", None).await.expect("an answer").ok();
        by_code(&phone, FETCH, CODE).await.ok();
    }
    for _ in 0..2 {
        phone.call("DELETE", "/identity/vault", None).await.expect("an answer").ok();
        by_code(&phone, FETCH, CODE).await.refused(404, "no_such_vault");
    }
    let unproved = phone.send("DELETE", "/identity/vault", &Proof::None, None).await;
    unproved.expect("an answer").refused(401, "unauthorized");
}

async fn an_unknown_code_is_answered_as_late_as_a_known_one(database: Database) {
    let world = World::start(database).await;
    let phone = Phone::new(world.address(), 1);
    put(&phone, vault(CODE, 1)).await.ok();
    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..9 {
        for (code, times) in [CODE, UNKNOWN].into_iter().zip(&mut times) {
            let begun = Instant::now();
            by_code(&phone, FETCH, code).await;
            times.push(begun.elapsed());
        }
    }
    let [known, unknown] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2]
    });
    let ratio = known.as_secs_f64() / unknown.as_secs_f64();
    assert!((0.77..1.3).contains(&ratio), "known {known:?}, unknown {unknown:?}");
}

async fn the_owner_is_told_of_a_fetch(database: Database) {
    let world = World::start(database).await;
    let phone = Phone::new(world.address(), 1);
    put(&phone, vault(CODE, 1)).await.ok();
    let mut laptop = Device::new(world.url(), 2);
    laptop.identity = Identity::from_seed(&phone.signing.to_bytes());
    laptop.connect().await;
    let mut stranger = world.device(3).await;
    let mut page = phone.listen("/groups/stream").await;
    by_code(&phone, FETCH, CODE).await.ok();
    let told = |device: &Device| {
        device.told.iter().any(|frame| matches!(frame, RelayFrame::RecoveryFetched(_)))
    };
    laptop.until("told of the fetch", told).await;
    // The app passes over an event that it does not know, and goes on.
    phone.create().await;
    page.change().await;
    let [(event, data)] = &page.passed_over[..] else { panic!("{:?}", page.passed_over) };
    assert_eq!(event, "recovery_fetched");
    let data: Value = serde_json::from_str(data).expect("an object");
    assert!(data["at"].as_str().is_some_and(|at| at.ends_with('Z')), "{data}");
    stranger.request(Ping {}).await.expect("a heartbeat");
    assert!(!told(&stranger));
}

async fn a_killed_relay_has_given_nothing_away(database: Database) {
    let mut relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let phone = Phone::new(relay.public(), 1);
    put(&phone, vault(CODE, 1)).await.ok();
    let mut granted = 0;
    for _ in 0..4 {
        let answered = Arc::new(AtomicUsize::new(0));
        let asking = tokio::spawn(counted_storm(relay.public(), FETCH, 100, answered.clone()));
        // Some have been answered, and others are being counted just now.
        eventually("an answer", async || answered.load(Ordering::Relaxed) > 0).await;
        relay.kill();
        granted += count(&asking.await.expect("no panic"), 200);
        relay.run().await;
    }
    granted += count(&storm(relay.public(), FETCH, 30).await, 200);
    assert!(granted <= 10, "{granted} were granted");
    let phone = Phone::new(relay.public(), 1);
    locked_for(by_code(&phone, FETCH, CODE).await);
    assert!(relay.stop().await.status.success());
}
