//! Whoever has not proved a key holds few places, from one address fewer, and none that is needed by
//! others.
//!
//! No store is asked about strangers, so one database is enough.

use sealwire_protocol::frame::Ping;

use crate::support::device::Device;
use crate::support::http;
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;
use crate::support::raw::{Raw, UPGRADE};
use crate::support::{eventually, holds_within};

const FIRST: [u8; 4] = [127, 0, 0, 2];
const SECOND: [u8; 4] = [127, 0, 0, 3];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_holds_no_more_places_than_it_may() {
    let relay = relay(&[("SEALWIRE_UNAUTHENTICATED_PER_ADDRESS_MAX", "8")]).await;
    let mut member = Device::connected(relay.url(), 1).await;
    let mut held = Vec::new();
    for _ in 0..8 {
        let mut raw = Raw::connect_from(relay.public(), FIRST).await;
        raw.upgrade("").await;
        held.push(raw);
    }
    let mut ninth = Raw::connect_from(relay.public(), FIRST).await;
    ninth.write(UPGRADE.as_bytes()).await;
    ninth.write(b"\r\n").await;
    let head = ninth.head().await;
    assert!(head.as_ref().is_none_or(|head| head.contains(" 429 ")), "{head:?}");
    assert_eq!(relay.metric(REFUSED, "reason=\"address_busy\"").await, 1.0);

    // Others are not concerned, and neither is who is known already.
    Raw::connect_from(relay.public(), SECOND).await.upgrade("").await;
    member.request(Ping {}).await.expect("a heartbeat");
    // A place that is given back can be had again.
    held.pop();
    let again = holds_within(crate::support::DEADLINE, async || {
        let mut raw = Raw::connect_from(relay.public(), FIRST).await;
        raw.write(UPGRADE.as_bytes()).await;
        raw.write(b"\r\n").await;
        raw.head().await.is_some_and(|head| head.contains(" 101 "))
    });
    assert!(again.await, "a place was not given back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_strangers_together_hold_no_more_places_than_they_may() {
    let relay = relay(&[("SEALWIRE_UNAUTHENTICATED_MAX", "10")]).await;
    let mut member = Device::connected(relay.url(), 1).await;
    let mut held = Vec::new();
    for number in 0..10 {
        let mut raw = Raw::connect_from(relay.public(), [127, 0, 1, number]).await;
        raw.upgrade("").await;
        held.push(raw);
    }
    let mut next = Raw::connect_from(relay.public(), [127, 0, 2, 1]).await;
    next.write(UPGRADE.as_bytes()).await;
    next.write(b"\r\n").await;
    let head = next.head().await;
    assert!(head.as_ref().is_none_or(|head| head.contains(" 429 ")), "{head:?}");
    assert_eq!(relay.metric(REFUSED, "reason=\"relay_busy\"").await, 1.0);
    member.request(Ping {}).await.expect("a heartbeat");
    // Five seconds later the places are free, because nobody has proved a key.
    eventually("a device gets in", async || {
        Device::new(relay.url(), 2).try_connect().await.is_ok()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_address_comes_no_more_often_than_it_may() {
    let relay = relay(&[
        ("SEALWIRE_CONNECTS_PER_ADDRESS_PER_SECOND", "1"),
        ("SEALWIRE_CONNECTS_PER_ADDRESS_BURST", "5"),
    ])
    .await;
    let mut admitted = 0;
    for _ in 0..40 {
        let mut raw = Raw::connect_from(relay.public(), FIRST).await;
        raw.write(UPGRADE.as_bytes()).await;
        raw.write(b"\r\n").await;
        admitted += u32::from(raw.head().await.is_some_and(|head| head.contains(" 101 ")));
    }
    assert!((5..=8).contains(&admitted), "{admitted} of 40 were admitted");
    assert!(relay.metric(REFUSED, "reason=\"address_rate\"").await >= 32.0);
    Raw::connect_from(relay.public(), SECOND).await.upgrade("").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_a_trusted_proxy_each_device_has_limits_of_its_own() {
    let relay = relay(&[
        ("SEALWIRE_UNAUTHENTICATED_PER_ADDRESS_MAX", "3"),
        ("TRUSTED_PROXY_IPS", "127.0.0.9"),
    ])
    .await;
    let mut held = Vec::new();
    for number in 0..9 {
        let mut raw = Raw::connect_from(relay.public(), [127, 0, 0, 9]).await;
        raw.upgrade(&format!("X-Forwarded-For: 203.0.113.{}\r\n", number / 3)).await;
        held.push(raw);
    }
    // Who is not a trusted proxy cannot choose his address.
    for number in 0..4 {
        let mut raw = Raw::connect_from(relay.public(), FIRST).await;
        raw.write(format!("{UPGRADE}X-Forwarded-For: 198.51.100.{number}\r\n\r\n").as_bytes())
            .await;
        let admitted = raw.head().await.is_some_and(|head| head.contains(" 101 "));
        assert_eq!(admitted, number < 3, "connection {number}");
        held.push(raw);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_upgrade_is_refused_in_words() {
    let relay = relay(&[]).await;
    let refused = [
        ("Upgrade: websocket", "Upgrade: h2c"),
        ("Connection: Upgrade", "Connection: keep-alive"),
        ("Version: 13", "Version: 8"),
        ("sealwire.v1", "graphql-ws"),
        ("dGhlIHNhbXBsZSBub25jZQ==", "short"),
    ];
    for (right, wrong) in refused {
        let request = format!("{}Connection: close\r\n\r\n", UPGRADE.replace(right, wrong));
        let answer = http::send(relay.public(), &request).await.expect("an answer");
        assert_eq!(answer.status, 400, "{wrong}");
        assert!(answer.body.contains("bad_upgrade"), "{}", answer.body);
    }
    let close = "Host: relay\r\nConnection: close\r\n";
    let long = "x".repeat(20_000);
    for (request, status) in [
        (format!("GET /nothing HTTP/1.1\r\n{close}\r\n"), 404),
        (format!("POST /v1/ws HTTP/1.1\r\n{close}Content-Length: 0\r\n\r\n"), 405),
        (format!("GET / HTTP/1.1\r\n{close}Long: {long}\r\n\r\n"), 431),
    ] {
        let answer = http::send(relay.public(), &request).await.expect("an answer");
        assert_eq!(answer.status, status);
    }
    Device::connected(relay.url(), 1).await.request(Ping {}).await.expect("a heartbeat");
}

/// Sealed bytes do not shrink, and lengths would tell what was said before them.
#[tokio::test]
async fn compression_is_never_agreed_upon() {
    let relay = relay(&[]).await;
    let mut raw = Raw::connect(relay.public()).await;
    let offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n";
    raw.write(format!("{UPGRADE}{offer}\r\n").as_bytes()).await;
    let head = raw.head().await.expect("an answer").to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    assert!(!head.contains("sec-websocket-extensions"), "{head}");
}

const REFUSED: &str = "sealwire_connections_refused_total";

async fn relay(variables: &[(&str, &str)]) -> RelayProcess {
    RelayProcess::start(Place::new(Database::Sqlite).await, variables).await
}
