//! Whoever asks too much is told when to come back, and nobody else notices.

use serde_json::{Value, json};

use crate::support::http::{Answer, request};
use crate::support::phone::Phone;
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;

/// Requests of one address: five at once, and then one in a second.
const FIVE: [(&str, &str); 3] = [
    ("SEALWIRE_REQUESTS_PER_ADDRESS_PER_SECOND", "1"),
    ("SEALWIRE_REQUESTS_PER_ADDRESS_BURST", "5"),
    ("TRUSTED_PROXY_IPS", "127.0.0.1"),
];

async fn ask(relay: &RelayProcess, path: &str, forwarded_for: &str) -> Answer {
    let headers = format!("X-Forwarded-For: {forwarded_for}\r\n");
    let body = json!({ "recoveryCode": "0123456789ABCDE9" }).to_string();
    request(relay.public(), "POST", path, &headers, &body).await.expect("an answer")
}

#[tokio::test]
async fn an_address_that_asks_too_much_is_told_when_to_come_back_and_others_are_not() {
    let relay = RelayProcess::start(Place::new(Database::Sqlite).await, &FIVE).await;
    for _ in 0..5 {
        assert_eq!(ask(&relay, "/auth/challenge", "198.51.100.1").await.status, 200);
    }
    let refused = ask(&relay, "/auth/challenge", "198.51.100.1").await;
    assert_eq!(refused.status, 429);
    let seconds: u64 = refused.header("retry-after").expect("a time").parse().expect("whole");
    assert!((1..=2).contains(&seconds));
    let body: Value = serde_json::from_str(&refused.body).expect("an object");
    assert_eq!(body["error"], "rate_limited");
    // Behind the same proxy.
    assert_eq!(ask(&relay, "/auth/challenge", "198.51.100.2").await.status, 200);
    // What the proxy's caller wrote himself changes nothing.
    assert_eq!(ask(&relay, "/auth/challenge", "203.0.113.9, 198.51.100.1").await.status, 429);
    // Nobody is kept from asking whether the relay lives.
    for _ in 0..20 {
        let alive = request(relay.public(), "GET", "/health", "", "").await.expect("an answer");
        assert_eq!(alive.status, 200);
    }
    relay.until_metric("sealwire_requests_limited_total", |value| value >= 2.0).await;
}

#[tokio::test]
async fn about_a_recovery_vault_every_429_says_until_when() {
    let relay = RelayProcess::start(Place::new(Database::Sqlite).await, &FIVE).await;
    for path in ["/identity/vault/fetch", "/identity/vault/report-failure"] {
        let mut last = ask(&relay, path, "198.51.100.1").await;
        for _ in 0..6 {
            last = ask(&relay, path, "198.51.100.1").await;
        }
        assert_eq!(last.status, 429);
        let body: Value = serde_json::from_str(&last.body).expect("an object");
        let until = body["lockedUntil"].as_str().expect("a time");
        assert!(until.ends_with('Z'), "{until}");
        last.header("retry-after").expect("a time").parse::<u64>().expect("whole");
    }
}

#[tokio::test]
async fn an_app_that_starts_meets_no_limit() {
    let relay = RelayProcess::start(Place::new(Database::Sqlite).await, &[]).await;
    let phones = (1..=20_u8).map(|seed| {
        let address = relay.public();
        async move {
            for _ in 0..3 {
                let client = Phone::new(address, seed);
                for _ in 0..20 {
                    client.get("/groups").await.ok();
                }
            }
        }
    });
    futures_util::future::join_all(phones).await;
}
