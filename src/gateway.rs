//! From an accepted connection to a request that is answered or a WebSocket that is served.
//!
//! HTTP and the upgrade share one port: hyper reads the request within a deadline and a small buffer,
//! axum routes it, and an upgrade gives the bare TCP connection back, so that a session costs no more
//! than if HTTP had never been there. An upgrade needs a place among the unauthenticated
//! connections of its address and of all; the place is given back when the device is known.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::header::{
    CONNECTION, HeaderMap, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderValue, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use metrics::counter;
use parking_lot::Mutex;
use sealwire_actors::System;
use sealwire_actors::metrics::CONNECTIONS_REFUSED;
use sealwire_protocol::limits::{HANDSHAKE_DEADLINE, WEBSOCKET_PATH, WEBSOCKET_SUBPROTOCOL};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tower::ServiceExt;

use crate::client_address::limits::RETRY_AFTER_SECONDS;
use crate::client_address::{AddressLimits, Admission, ClientAddress, Refused, TrustedProxies};
use crate::listener::{Accepted, Slot};
use crate::operator::{error_response, retry_later};
use crate::socket;

/// Largest request head, in bytes: hyper's smallest buffer, and plenty for an upgrade.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// How long whoever meets a relay that is shutting down should wait, in seconds.
const DRAINING_RETRY_S: u64 = 5;

/// What the upgrade needs.
pub struct Gateway {
    system: Arc<System>,
    limits: Arc<AddressLimits>,
    proxies: TrustedProxies,
    /// Becomes true when the relay is shutting down: no new sessions.
    draining: watch::Receiver<bool>,
}

impl Gateway {
    /// A gateway to this system.
    #[must_use]
    pub fn new(
        system: Arc<System>,
        limits: Arc<AddressLimits>,
        proxies: TrustedProxies,
        draining: watch::Receiver<bool>,
    ) -> Self {
        Self { system, limits, proxies, draining }
    }

    /// The route of the upgrade.
    pub fn route(self: Arc<Self>) -> Router {
        Router::new().route(WEBSOCKET_PATH, get(upgrade)).with_state(self)
    }
}

/// Serves one accepted connection until it ends or is upgraded. A stranger takes his place among
/// the unauthenticated before his first byte is read; who stands behind a trusted proxy is known,
/// and takes it, with the request.
pub async fn serve_connection(accepted: Accepted, gateway: Arc<Gateway>, router: Router) {
    let Accepted { stream, peer, slot } = accepted;
    let address = ClientAddress::of_peer(peer);
    let admission = if gateway.proxies.trust(address) {
        None
    } else {
        match gateway.limits.admit(address) {
            Ok(admission) => Some(admission),
            Err(refused) => return count_refused(refused.reason()),
        }
    };
    let connection = Connection(Arc::new(Mutex::new(Held { peer, admission, slot: Some(slot) })));
    let kept = connection.clone();
    let service = tower::service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(connection.clone());
        let router = router.clone();
        async move { router.oneshot(request.map(Body::new)).await }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_DEADLINE)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    // An error here is a peer that went away, was too slow, or does not speak HTTP.
    if serving.await.is_err() {
        count_refused("http");
    }
    drop(kept);
}

fn count_refused(reason: &'static str) {
    counter!(CONNECTIONS_REFUSED, "reason" => reason).increment(1);
}

/// What a connection holds, for its requests to see or to take along.
#[derive(Clone)]
struct Connection(Arc<Mutex<Held>>);

struct Held {
    peer: SocketAddr,
    admission: Option<Admission>,
    slot: Option<Slot>,
}

async fn upgrade(
    State(gateway): State<Arc<Gateway>>,
    Extension(Connection(connection)): Extension<Connection>,
    mut request: Request,
) -> Response {
    let accept = match check_upgrade(request.headers()) {
        Ok(accept) => accept,
        Err(sentence) => return bad_upgrade(sentence),
    };
    if *gateway.draining.borrow() {
        let sentence = "the relay is shutting down";
        let status = StatusCode::SERVICE_UNAVAILABLE;
        return retry_later(status, "draining", sentence, DRAINING_RETRY_S);
    }
    let Some(upgraded) = request.extensions_mut().remove::<OnUpgrade>() else {
        return bad_upgrade("this connection cannot be upgraded");
    };
    let admission = match gateway.admission(&connection, request.headers()) {
        Ok(admission) => admission,
        Err(refused) => {
            count_refused(refused.reason());
            let sentence = "too many connections from this address, or in all";
            let status = StatusCode::TOO_MANY_REQUESTS;
            return retry_later(status, "rate_limited", sentence, RETRY_AFTER_SECONDS);
        }
    };
    let slot = connection.lock().slot.take();
    let system = gateway.system.clone();
    tokio::spawn(async move {
        match take_stream(upgraded).await {
            Some((stream, leftover)) => {
                socket::serve(stream, leftover, system, admission, slot).await;
            }
            None => count_refused("upgrade"),
        }
    });
    let headers = [
        (CONNECTION, HeaderValue::from_static("Upgrade")),
        (UPGRADE, HeaderValue::from_static("websocket")),
        (SEC_WEBSOCKET_ACCEPT, accept),
        (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(WEBSOCKET_SUBPROTOCOL)),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

fn bad_upgrade(sentence: &'static str) -> Response {
    error_response(StatusCode::BAD_REQUEST, "bad_upgrade", sentence)
}

impl Gateway {
    /// The connection's place among the unauthenticated, or a new one behind a trusted proxy.
    fn admission(
        &self,
        connection: &Mutex<Held>,
        headers: &HeaderMap,
    ) -> Result<Admission, Refused> {
        let mut held = connection.lock();
        if let Some(admission) = held.admission.take() {
            return Ok(admission);
        }
        self.limits.admit(ClientAddress::of_request(held.peer, headers, &self.proxies))
    }
}

/// Takes the bare connection out of hyper, with what the peer sent after its request.
async fn take_stream(upgraded: OnUpgrade) -> Option<(TcpStream, bytes::Bytes)> {
    let upgraded = tokio::time::timeout(HANDSHAKE_DEADLINE, upgraded).await.ok()?.ok()?;
    let parts = upgraded.downcast::<TokioIo<TcpStream>>().ok()?;
    Some((parts.io.into_inner(), parts.read_buf))
}

/// Checks an upgrade as RFC 6455 §4.2.1 asks, and gives the value of `Sec-WebSocket-Accept`.
fn check_upgrade(headers: &HeaderMap) -> Result<HeaderValue, &'static str> {
    if !has_token(headers, &CONNECTION, "upgrade") || !has_token(headers, &UPGRADE, "websocket") {
        return Err("this path is for WebSocket connections");
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err("the WebSocket version must be 13");
    }
    if !has_token(headers, &SEC_WEBSOCKET_PROTOCOL, WEBSOCKET_SUBPROTOCOL) {
        return Err("the subprotocol sealwire.v1 must be offered");
    }
    let key = headers.get(SEC_WEBSOCKET_KEY).ok_or("Sec-WebSocket-Key is missing")?;
    if key.len() != 24 {
        return Err("Sec-WebSocket-Key is not 16 bytes in base64");
    }
    HeaderValue::from_str(&derive_accept_key(key.as_bytes()))
        .map_err(|_| "Sec-WebSocket-Key is not acceptable")
}

/// Whether a comma-separated header holds a token, in any case.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
