//! A push service that stands in for Google's: it grants access tokens to whoever asks, and answers
//! doorbells after a while, some of them with 429 and those at dead tokens with UNREGISTERED.
//!
//! It believes every signature and listens on loopback alone. What it was told it keeps, with the time.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// A key that nothing but a stand-in believes: the one of the relay's own tests, PKCS#8 in base64.
const KEY: &str = include_str!("../../../tests/support/fcm-key.txt");

/// How it answers.
pub(super) struct Manners {
    /// How long it takes.
    pub(super) takes: Duration,
    /// One doorbell in so many is one too many; 0 for none.
    pub(super) limited_every: u64,
    /// Tokens that it does not know.
    pub(super) dead: HashSet<String>,
}

/// A doorbell that came.
#[derive(Clone)]
pub(super) struct Rung {
    pub(super) at: Instant,
    pub(super) token: String,
    pub(super) group: String,
    /// Whether it was one too many.
    pub(super) limited: bool,
}

struct Inner {
    manners: Manners,
    seen: AtomicU64,
    rung: Mutex<Vec<Rung>>,
}

/// See the module's header.
pub(super) struct Provider {
    address: SocketAddr,
    directory: TempDir,
    inner: Arc<Inner>,
    serving: JoinHandle<()>,
}

impl Provider {
    pub(super) async fn start(manners: Manners) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let directory = TempDir::new()?;
        let key: String = KEY.split_whitespace().collect();
        let file = json!({
            "type": "service_account",
            "project_id": "measured",
            "private_key": format!("-----BEGIN PRIVATE {0}-----\n{key}\n-----END PRIVATE {0}-----\n", "KEY"),
            "client_email": "doorbells@measured.example",
            "token_uri": format!("http://{address}/token"),
        });
        std::fs::write(credentials(&directory), file.to_string()).context("credentials")?;
        let inner = Arc::new(Inner { manners, seen: AtomicU64::new(0), rung: Mutex::default() });
        let serving = tokio::spawn(serve(listener, inner.clone()));
        Ok(Self { address, directory, inner, serving })
    }

    /// What a relay has to be told to ring here.
    pub(super) fn variables(&self) -> Vec<(&'static str, String)> {
        vec![
            ("GOOGLE_APPLICATION_CREDENTIALS", credentials(&self.directory).display().to_string()),
            ("FCM_BASE_URL", format!("http://{}", self.address)),
        ]
    }

    /// What came so far.
    pub(super) fn rung(&self) -> Vec<Rung> {
        self.inner.rung.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn credentials(directory: &TempDir) -> std::path::PathBuf {
    Path::new(directory.path()).join("account.json")
}

async fn serve(listener: TcpListener, inner: Arc<Inner>) {
    // It ends with the measurement.
    while let Ok((stream, _)) = listener.accept().await {
        let inner = inner.clone();
        let answers = service_fn(move |request| {
            let inner = inner.clone();
            async move { Ok::<_, Infallible>(inner.answer(request).await) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answers));
    }
}

impl Inner {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let at = Instant::now();
        if request.uri().path() == "/token" {
            return reply(
                StatusCode::OK,
                &json!({ "access_token": "measured", "expires_in": 3600 }),
            );
        }
        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
        let json: Value = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
        let message = &json["message"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (token, group) = (text(&message["token"]), text(&message["data"]["groupId"]));
        let every = self.manners.limited_every;
        let number = self.seen.fetch_add(1, Ordering::Relaxed);
        let limited = every > 0 && number % every == every - 1;
        let dead = self.manners.dead.contains(&token);
        let rung = Rung { at, token, group, limited };
        self.rung.lock().unwrap_or_else(PoisonError::into_inner).push(rung);
        sleep(self.manners.takes).await;
        if limited {
            let mut reply = refusal(StatusCode::TOO_MANY_REQUESTS, "QUOTA_EXCEEDED");
            reply.headers_mut().insert("retry-after", hyper::header::HeaderValue::from_static("1"));
            reply
        } else if dead {
            refusal(StatusCode::NOT_FOUND, "UNREGISTERED")
        } else {
            reply(StatusCode::OK, &json!({ "name": "projects/measured/messages/1" }))
        }
    }
}

fn refusal(status: StatusCode, code: &str) -> Response<Full<Bytes>> {
    reply(status, &json!({ "error": { "details": [{ "errorCode": code }] } }))
}

fn reply(status: StatusCode, json: &Value) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::new(Bytes::from(json.to_string())));
    *reply.status_mut() = status;
    reply
}
