use ed25519_dalek::SigningKey;
use sealwire_actors::Options;
use sealwire_actors::fakes::{HandClock, MemoryStore};
use sealwire_protocol::token::TokenKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::*;
use crate::config::UnauthenticatedLimits;
use crate::listener::Slots;

#[test]
fn an_upgrade_must_be_one() {
    let mut headers = HeaderMap::new();
    assert!(check_upgrade(&headers).is_err());
    headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("WebSocket"));
    headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
    assert!(check_upgrade(&headers).is_err(), "without the subprotocol");
    headers.insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static("x, sealwire.v1"));
    // The example of RFC 6455 §1.3.
    let accept = check_upgrade(&headers).expect("an upgrade");
    assert_eq!(accept, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
}

/// How long an answer takes that is not there at once.
const SLOW: Duration = Duration::from_secs(50);

/// How much later than at its deadline a connection may close: whoever looks, looks now and then.
const LATER: Duration = Duration::from_secs(2);

/// A gateway in front of three requests: one that anybody may ask, one that proves a device, and one
/// that is answered late. Without the sender the relay would be gone.
async fn gateway() -> (Arc<Gateway>, Router, watch::Sender<bool>) {
    let (store, clock) = (Arc::new(MemoryStore::new()), Arc::new(HandClock::at(1)));
    let options = Options::new(SigningKey::from_bytes(&[1; 32]), vec![TokenKey::derive(b"secret")]);
    let system = System::start(store, clock, options).await.unwrap();
    let many = 1000.try_into().unwrap();
    let limits = AddressLimits::new(&UnauthenticatedLimits {
        max: 1000,
        per_address_max: 1000,
        rate: many,
        burst: many,
        per_address_rate: many,
        per_address_burst: many,
    });
    let (sender, draining) = watch::channel(false);
    let proxies = TrustedProxies::default();
    let gateway = Gateway::new(Arc::new(system), Arc::new(limits), proxies, draining);
    let proves = |Extension(connection): Extension<Connection>| async move {
        connection.authenticated();
    };
    let router = Router::new()
        .route("/ask", get(|| async {}))
        .route("/prove", get(proves))
        .route("/slow", get(|| sleep(SLOW)));
    (Arc::new(gateway), router, sender)
}

/// Connects, asks for these paths one after the other, and tells for how long the connection is left
/// open after the last answer.
async fn open_after(paths: &[&str]) -> Duration {
    let (gateway, router, _sender) = gateway().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let slot = Slots::new(1).take().unwrap();
    tokio::spawn(serve_connection(Accepted { stream, peer, slot }, gateway, router));
    let mut bytes = [0; 1024];
    for path in paths {
        let request = format!("GET {path} HTTP/1.1\r\nHost: relay\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let length = client.read(&mut bytes).await.unwrap();
        assert!(bytes[..length].starts_with(b"HTTP/1.1 200"), "{path}");
    }
    let answered = Instant::now();
    while client.read(&mut bytes).await.is_ok_and(|length| length > 0) {}
    answered.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_strangers_connection_rests_for_so_long_and_no_longer() {
    for (paths, rest) in [
        (&[][..], HANDSHAKE_DEADLINE),
        (&["/ask"], STRANGER_REST),
        // Its answer is waited for, however long that takes.
        (&["/ask", "/slow"], STRANGER_REST),
        // Who was a stranger and is none any more.
        (&["/ask", "/prove"], KEEP_ALIVE),
    ] {
        let open = open_after(paths).await;
        assert!((rest..rest + LATER).contains(&open), "{paths:?}: {open:?}, and not {rest:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stranger_who_asks_again_and_again_does_not_keep_his_place() {
    let (gateway, router, _sender) = gateway().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    let slot = Slots::new(1).take().unwrap();
    tokio::spawn(serve_connection(Accepted { stream, peer, slot }, gateway, router));
    let began = Instant::now();
    let mut bytes = [0; 1024];
    while client.write_all(b"GET /ask HTTP/1.1\r\nHost: relay\r\n\r\n").await.is_ok()
        && client.read(&mut bytes).await.is_ok_and(|length| length > 0)
    {
        sleep(STRANGER_REST - LATER).await;
        assert!(began.elapsed() < STRANGER_RESTS + STRANGER_REST, "it is kept for good");
    }
    assert!(began.elapsed() >= STRANGER_RESTS - STRANGER_REST);
}
