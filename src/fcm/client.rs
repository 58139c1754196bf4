//! Requests to the push service and its token endpoint: over kept connections, HTTP/2 where it is
//! spoken, and with an end to what is read. Whoever asks has the deadline.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use sealwire_actors::ports::Trouble;

use super::credentials::FcmError;

/// Longest answer that is read, in bytes; FCM's have some hundreds.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How often a connection that is kept is asked whether it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// How long it may take to answer that.
const KEEP_ALIVE_DEADLINE: Duration = Duration::from_secs(10);

/// How long a connection that nobody uses is kept.
const IDLE_MAX: Duration = Duration::from_secs(300);

/// How long connecting may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// An answer, as far as it is read.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// See the module's header. Clones share their connections.
#[derive(Clone)]
pub(super) struct Client(legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl Client {
    /// A client for these places; without TLS among them, no certificate is looked for.
    pub(super) fn new(places: &[&Uri]) -> Result<Self, FcmError> {
        let provider = rustls::crypto::ring::default_provider();
        let builder = HttpsConnectorBuilder::new();
        let builder = if places.iter().any(|uri| uri.scheme_str() == Some("https")) {
            builder.with_provider_and_native_roots(provider).map_err(FcmError::Certificates)?
        } else {
            let config = rustls::ClientConfig::builder_with_provider(provider.into())
                .with_safe_default_protocol_versions()
                .map_err(|error| FcmError::Certificates(std::io::Error::other(error)))?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            builder.with_tls_config(config)
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_DEADLINE));
        let connector = builder.https_or_http().enable_all_versions().wrap_connector(tcp);
        let client = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_MAX)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .http2_keep_alive_timeout(KEEP_ALIVE_DEADLINE)
            .build(connector);
        Ok(Self(client))
    }

    /// Sends a request and reads its answer.
    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Answer, Trouble> {
        let answer = self.0.request(request).await.map_err(|_| Trouble::Unreachable)?;
        let (parts, body) = answer.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|_| Trouble::Unreachable)?.to_bytes();
        Ok(Answer { status: parts.status, headers: parts.headers, body })
    }
}
