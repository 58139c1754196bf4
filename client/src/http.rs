//! One HTTP request to a relay: for what a device asks before it has a session, or about its recovery
//! vault.
//!
//! Each request makes a connection of its own, under the rules of the WebSocket: TLS by the same
//! roots, without it only to this machine, nothing after the deadline. Bodies hold secrets: nothing
//! of them is printed.

use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use sealwire_protocol::Digest;
use sealwire_protocol::bounded::BoundedText;
use serde_json::Value;

use crate::address::RelayUrl;
use crate::identity::Identity;
use crate::limits::CONNECT_DEADLINE;
use crate::wire::{self, Step, WireError};

/// Longest answer that is read, in bytes: a recovery vault of 16 KiB is 22 KiB in base64.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How long a relay may take for one answer. It answers calls by code at whole steps of 50 ms.
const ANSWER_DEADLINE: std::time::Duration = std::time::Duration::from_secs(20);

/// An answer. It has no `Debug`.
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// An empty object if the body is none.
    pub(crate) json: Value,
}

impl Answer {
    /// The machine's code of a refusal.
    pub(crate) fn code(&self) -> BoundedText<64> {
        self.json["error"].as_str().and_then(BoundedText::new).unwrap_or_default()
    }
}

/// A request.
pub(crate) struct Request<'a> {
    pub(crate) method: &'static str,
    pub(crate) path: &'static str,
    /// None for no body.
    pub(crate) body: Option<&'a Value>,
}

/// Asks without saying who asks.
///
/// # Errors
/// That the relay was not reached, or what answers there is none.
pub(crate) async fn ask(relay: &RelayUrl, request: &Request<'_>) -> Result<Answer, WireError> {
    send(relay, request, &[]).await
}

/// Who asks, for one request. It has no `Debug`.
pub(crate) struct Proof {
    key: String,
    challenge: String,
    signature: String,
}

/// Has a device sign a challenge of the relay's.
///
/// # Errors
/// As [`ask`].
pub(crate) async fn prove(relay: &RelayUrl, device: &Identity) -> Result<Proof, WireError> {
    let key = device.key().to_hex();
    let asked = Request { method: "POST", path: "/auth/challenge", body: None };
    let answer = send(relay, &asked, &[("x-device-public-key", key.as_str())]).await?;
    let challenge = answer.json["challenge"].as_str().unwrap_or_default();
    // Nothing else that a device signs has 32 bytes, so this can be mistaken for nothing.
    let mut bytes = Digest::ZERO.0;
    hex::decode_to_slice(challenge, &mut bytes).map_err(|_| WireError::NotARelay)?;
    let signature = device.sign_challenge(&bytes).to_hex();
    Ok(Proof { key, challenge: challenge.to_owned(), signature })
}

/// Asks as the device that has made the proof.
///
/// # Errors
/// As [`ask`].
pub(crate) async fn ask_as(
    relay: &RelayUrl,
    proof: &Proof,
    request: &Request<'_>,
) -> Result<Answer, WireError> {
    let headers = [
        ("x-device-public-key", proof.key.as_str()),
        ("x-challenge", proof.challenge.as_str()),
        ("x-signature", proof.signature.as_str()),
    ];
    send(relay, request, &headers).await
}

async fn send(
    relay: &RelayUrl,
    request: &Request<'_>,
    headers: &[(&'static str, &str)],
) -> Result<Answer, WireError> {
    let options = wire::Options::default();
    // Boxed: the TLS handshake's state is large and is needed once.
    let reach = Box::pin(wire::stream(relay, &options));
    let stream = tokio::time::timeout(CONNECT_DEADLINE, reach)
        .await
        .unwrap_or(Err(WireError::Timeout(Step::Connect)))?;
    let exchange = Box::pin(exchange(relay, request, headers, stream));
    tokio::time::timeout(ANSWER_DEADLINE, exchange)
        .await
        .unwrap_or(Err(WireError::Timeout(Step::Answer)))
}

async fn exchange(
    relay: &RelayUrl,
    request: &Request<'_>,
    headers: &[(&'static str, &str)],
    stream: wire::Stream,
) -> Result<Answer, WireError> {
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| from_hyper(&error))?;
    let body = match request.body {
        Some(body) => serde_json::to_vec(body).map_err(|_| WireError::NotARelay)?,
        None => Vec::new(),
    };
    let mut built = hyper::Request::builder()
        .method(request.method)
        .uri(relay.http_path(request.path))
        .header("host", relay.http_host())
        .header("connection", "close")
        .header("content-type", "application/json");
    for (name, value) in headers {
        built = built.header(*name, *value);
    }
    let built =
        built.body(Full::new(bytes::Bytes::from(body))).map_err(|_| WireError::NotARelay)?;
    let ask = async {
        let answer = sender.send_request(built).await.map_err(|error| from_hyper(&error))?;
        let status = answer.status().as_u16();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX);
        let bytes = body.collect().await.map_err(|_| WireError::NotARelay)?.to_bytes();
        let json = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Ok(Answer { status, json })
    };
    // The connection does its part only while it is polled; it ends with the answer.
    tokio::pin!(ask);
    let mut connection = Box::pin(connection);
    tokio::select! {
        answer = &mut ask => answer,
        _ = &mut connection => ask.await,
    }
}

fn from_hyper(error: &hyper::Error) -> WireError {
    if error.is_parse() || error.is_user() { WireError::NotARelay } else { WireError::Closed(None) }
}
