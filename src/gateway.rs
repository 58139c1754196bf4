//! From an accepted connection to a request that is answered or a WebSocket that is served.
//!
//! HTTP and the upgrade share one port: hyper reads the request within a deadline and a small buffer,
//! axum routes it, and an upgrade gives the bare TCP connection back, so that a session costs no more
//! than if HTTP had never been there. An upgrade needs a place among the unauthenticated
//! connections of its address and of all; the place is given back when the device is known.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

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
use sealwire_actors::limits::STALLED_MAX;
use sealwire_actors::metrics::CONNECTIONS_REFUSED;
use sealwire_protocol::limits::{HANDSHAKE_DEADLINE, WEBSOCKET_PATH, WEBSOCKET_SUBPROTOCOL};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tower::ServiceExt;

use crate::client_address::limits::RETRY_AFTER_SECONDS;
use crate::client_address::{AddressLimits, Admission, ClientAddress, Refused, TrustedProxies};
use crate::drained::Drained;
use crate::listener::{Accepted, Slot};
use crate::operator::{error_response, retry_later};
use crate::socket;

/// Largest request head, in bytes: hyper's smallest buffer, and plenty for an upgrade.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// How long a connection may rest between two requests, once a device was proved on it. Longer than
/// the app's (15 s) and the common proxies' (60 s) own patience: the end that asks must be the one
/// that closes, or a request that is never sent twice is lost now and then.
const KEEP_ALIVE: Duration = Duration::from_secs(75);

/// How long a connection may rest on which something was asked and no device was proved: longer than
/// the app's own patience, for the same reason.
const STRANGER_REST: Duration = Duration::from_secs(20);

/// How long a connection may rest in all on which no device was proved, however much is asked on it: a
/// stranger who asks for nothing in particular, again and again, would keep his place for good. Three
/// times a stranger's rest: a phone has signed in by then.
const STRANGER_RESTS: Duration = Duration::from_secs(60);

/// How long a connection that rests is left open once the relay is shutting down: whoever asks
/// meanwhile is answered, and told to ask elsewhere from now on.
const CLOSING_PAUSE: Duration = Duration::from_secs(1);

/// How long whoever meets a relay that is shutting down should wait, in seconds.
const DRAINING_RETRY_S: u64 = 5;

/// What the upgrade needs.
pub struct Gateway {
    system: Arc<System>,
    limits: Arc<AddressLimits>,
    proxies: TrustedProxies,
    /// Becomes true when the relay is shutting down: no new sessions.
    draining: watch::Receiver<bool>,
    /// Held by every connection that speaks HTTP.
    open: Arc<()>,
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
        Self { system, limits, proxies, draining, open: Arc::new(()) }
    }

    /// The route of the upgrade.
    pub fn route(self: Arc<Self>) -> Router {
        Router::new().route(WEBSOCKET_PATH, get(upgrade)).with_state(self)
    }
}

/// Serves one accepted connection until it ends or is upgraded. A stranger takes his place among
/// the unauthenticated before his first byte is read, and gives it back with the first request that
/// proves a device; who stands behind a trusted proxy is known, and takes it, with the request.
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
    // A phone that is gone without a word takes nothing any more, and its kernel says nothing.
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(STALLED_MAX));
    let connection = Connection::new(Held { peer, admission, slot: Some(slot) });
    let kept = connection.clone();
    let of_requests = connection.clone();
    let draining = gateway.draining.clone();
    let service = tower::service_fn(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(of_requests.clone());
        let (router, answering) = (router.clone(), of_requests.answering());
        let draining = draining.clone();
        async move {
            let Ok(mut answer) =
                router.oneshot(request.map(|body| Body::new(Drained::new(body)))).await;
            drop(answering);
            if *draining.borrow() && answer.status() != StatusCode::SWITCHING_PROTOCOLS {
                // The next request finds another relay.
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(KEEP_ALIVE)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
        .with_upgrades();
    let _open = gateway.open.clone();
    let drained = async {
        gateway.drained().await;
        sleep(CLOSING_PAUSE).await;
    };
    tokio::pin!(serving, drained);
    let mut closing = false;
    let served = loop {
        tokio::select! {
            served = serving.as_mut() => break served.is_ok(),
            () = connection.outstayed(), if !closing => break false,
            () = connection.0.cut.notified() => break false,
            () = drained.as_mut(), if !closing => {
                // What is under way is answered; a connection that still rests is closed.
                closing = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    };
    // A peer that went away, was too slow, or does not speak HTTP.
    if !served {
        count_refused("http");
    }
    drop(kept);
}

fn count_refused(reason: &'static str) {
    counter!(CONNECTIONS_REFUSED, "reason" => reason).increment(1);
}

/// What a connection holds, for its requests to see or to take along.
#[derive(Clone)]
pub struct Connection(Arc<ConnectionState>);

struct ConnectionState {
    held: Mutex<Held>,
    /// Whether somebody has proved a device on it, or a trusted proxy is at its other end.
    known: AtomicBool,
    /// Whether anything was ever asked on it.
    asked: AtomicBool,
    /// Requests that are not answered yet.
    requests: AtomicUsize,
    /// Tells that one of the two has changed.
    changed: Notify,
    /// Tells that it is to be closed, whatever is under way.
    cut: Notify,
}

struct Held {
    peer: SocketAddr,
    admission: Option<Admission>,
    slot: Option<Slot>,
}

impl Connection {
    fn new(held: Held) -> Self {
        Self(Arc::new(ConnectionState {
            known: AtomicBool::new(held.admission.is_none()),
            held: Mutex::new(held),
            asked: AtomicBool::new(false),
            requests: AtomicUsize::new(0),
            changed: Notify::new(),
            cut: Notify::new(),
        }))
    }

    /// Who is at the other end: a device, or a proxy.
    pub fn peer(&self) -> SocketAddr {
        self.0.held.lock().peer
    }

    /// Notes that a request has proved its device: the connection is no stranger's any more, and its
    /// place among theirs is free.
    pub fn authenticated(&self) {
        if !self.0.known.swap(true, Ordering::AcqRel) {
            self.0.held.lock().admission = None;
            self.0.changed.notify_one();
        }
    }

    /// Closes the connection, whatever is under way: its other end takes its answer too slowly.
    pub fn cut(&self) {
        self.0.cut.notify_one();
    }

    /// Counts a request until the guard is dropped.
    fn answering(&self) -> Answering {
        self.0.asked.store(true, Ordering::Release);
        self.0.requests.fetch_add(1, Ordering::AcqRel);
        self.0.changed.notify_one();
        Answering(self.0.clone())
    }

    /// Resolves when a stranger has asked nothing for as long as a stranger may, at once or in all.
    async fn outstayed(&self) {
        let mut left = STRANGER_RESTS;
        loop {
            let changed = self.0.changed.notified();
            if self.0.known.load(Ordering::Acquire) {
                return std::future::pending().await;
            }
            if self.0.requests.load(Ordering::Acquire) > 0 {
                changed.await;
            } else {
                let asked = self.0.asked.load(Ordering::Acquire);
                let patience = if asked { STRANGER_REST } else { HANDSHAKE_DEADLINE };
                let began = Instant::now();
                if timeout(patience.min(left), changed).await.is_err() {
                    return;
                }
                left = left.saturating_sub(began.elapsed());
            }
        }
    }
}

/// A request that is not answered yet.
struct Answering(Arc<ConnectionState>);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.requests.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.notify_one();
    }
}

async fn upgrade(
    State(gateway): State<Arc<Gateway>>,
    Extension(connection): Extension<Connection>,
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
    let admission = match gateway.admission(&connection.0.held, request.headers()) {
        Ok(admission) => admission,
        Err(refused) => {
            count_refused(refused.reason());
            let sentence = "too many connections from this address, or in all";
            let status = StatusCode::TOO_MANY_REQUESTS;
            return retry_later(status, "rate_limited", sentence, RETRY_AFTER_SECONDS);
        }
    };
    let slot = connection.0.held.lock().slot.take();
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
    /// Resolves when no connection speaks HTTP any more.
    pub async fn http_ended(&self) {
        while Arc::strong_count(&self.open) > 1 {
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Resolves when the relay is shutting down, or is gone.
    fn drained(&self) -> impl Future<Output = ()> + use<> {
        let mut draining = self.draining.clone();
        async move {
            let _ = draining.wait_for(|draining| *draining).await;
        }
    }

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
mod tests;
