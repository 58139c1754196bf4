//! What the relay tells its operator: is it alive, is it ready, how much is there, what is it doing.
//!
//! `/health`, `/ready` and `/stats` are on the public listener as well, where anybody may ask at any
//! rate: their answers are kept for a while, whoever asks in between gets the same one, and while one
//! is being fetched the others wait for it. Metrics are on the operator's listener alone.
//!
//! Nothing here knows a device, a log or an address: there are only sums to be told.

pub mod answer;
pub mod connection;
pub mod push_test;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use sealwire_actors::push::TestRing;
use sealwire_protocol::DeviceKey;
use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};
use utoipa::ToSchema;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::http::error::Refusal;

pub use answer::{error_response, json_answer, retry_later, with_json_fallbacks};

/// How long the store may take to say that it is there. A load balancer that asks waits about five
/// seconds.
const READY_DEADLINE: Duration = Duration::from_secs(2);

/// How long "ready" is taken for granted.
const READY_KEPT: Duration = Duration::from_secs(1);

/// How long the store may take to count.
const STATS_DEADLINE: Duration = Duration::from_secs(10);

/// How long counts are kept: they are sums over tables, and nobody needs them to the second.
const STATS_KEPT: Duration = Duration::from_secs(30);

/// What a caller should wait before it asks again, in seconds.
const RETRY_AFTER_SECONDS: u64 = 2;

/// What the operator can ask of a relay.
#[async_trait]
pub trait Observed: Send + Sync + 'static {
    /// Whether the relay can append now.
    async fn ready(&self) -> bool;

    /// The sums; none if the store does not answer.
    async fn stats(&self) -> Option<Stats>;

    /// Everything that is counted, in Prometheus' text format.
    fn metrics(&self) -> String;

    /// Rings a device once; none if the store does not answer. Only a relay has anybody to ask.
    async fn ring(&self, _device: DeviceKey) -> Option<TestRing> {
        Some(TestRing::Off)
    }
}

/// Sums that tell nothing about anybody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, ToSchema)]
pub struct Stats {
    /// Group logs.
    pub groups: u64,
    /// Vault logs.
    pub vaults: u64,
    /// Memberships in all logs.
    pub memberships: u64,
    /// Entries that are kept.
    pub entries: u64,
    /// Bodies that wait for an ack.
    pub undelivered: u64,
    /// Sessions open now.
    pub sessions: u64,
}

/// What both listeners share of one relay, with the answers that are kept.
#[derive(Clone)]
pub struct Operator(Arc<Shared>);

struct Shared {
    relay: Arc<dyn Observed>,
    ready: Kept<bool>,
    stats: Kept<Option<Stats>>,
}

impl Operator {
    /// Watches this relay.
    #[must_use]
    pub fn new(relay: Arc<dyn Observed>) -> Self {
        let ready = Kept::new(READY_KEPT);
        let stats = Kept::new(STATS_KEPT);
        Self(Arc::new(Shared { relay, ready, stats }))
    }

    /// `/health`, `/ready` and `/stats`, to be merged into the public router.
    pub fn public_routes(&self) -> Router {
        Router::from(public_router()).with_state(self.clone())
    }

    /// The operator's whole router: metrics too, and JSON for what is not there.
    pub fn operator_routes(&self) -> Router {
        let metrics = Router::new()
            .route("/metrics", get(metrics))
            .route(push_test::PATH, post(push_test::ring))
            .with_state(self.clone());
        answer::with_json_fallbacks(self.public_routes().merge(metrics))
    }
}

fn public_router() -> OpenApiRouter<Operator> {
    OpenApiRouter::new().routes(routes!(health)).routes(routes!(ready)).routes(routes!(stats))
}

/// What anybody may ask, as a part of the API's document.
#[must_use]
pub fn document() -> OpenApi {
    public_router().into_openapi()
}

/// How a relay is.
#[derive(Serialize, ToSchema)]
struct Said {
    /// `ok` or `ready`.
    status: &'static str,
}

/// Says that the process is alive, and asks nobody.
#[utoipa::path(
    get, path = "/health", operation_id = "health", tag = "operator",
    responses((status = 200, body = Said, description = "The process lives")),
)]
async fn health() -> Response {
    json_answer(StatusCode::OK, &Said { status: "ok" })
}

/// Says whether the relay can append now.
#[utoipa::path(
    get, path = "/ready", operation_id = "ready", tag = "operator",
    responses(
        (status = 200, body = Said, description = "The store answers"),
        (status = 503, body = Refusal, description = "`unavailable`"),
    ),
)]
async fn ready(State(operator): State<Operator>) -> Response {
    let shared = &operator.0;
    let answer = timeout(READY_DEADLINE, shared.relay.ready());
    let is_ready = shared.ready.get(async { answer.await.unwrap_or(false) }, |is| *is).await;
    if is_ready {
        json_answer(StatusCode::OK, &Said { status: "ready" })
    } else {
        unavailable("the store does not answer")
    }
}

/// Sums that tell nothing about anybody.
#[utoipa::path(
    get, path = "/stats", operation_id = "stats", tag = "operator",
    responses(
        (status = 200, body = Stats, description = "Counted at most half a minute ago"),
        (status = 503, body = Refusal, description = "`unavailable`"),
    ),
)]
async fn stats(State(operator): State<Operator>) -> Response {
    let shared = &operator.0;
    let answer = timeout(STATS_DEADLINE, shared.relay.stats());
    match shared.stats.get(async { answer.await.ok().flatten() }, Option::is_some).await {
        Some(stats) => json_answer(StatusCode::OK, &stats),
        None => unavailable("the store does not answer"),
    }
}

async fn metrics(State(operator): State<Operator>) -> Response {
    let kind = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (kind, operator.0.relay.metrics()).into_response()
}

fn unavailable(message: &str) -> Response {
    retry_later(StatusCode::SERVICE_UNAVAILABLE, "unavailable", message, RETRY_AFTER_SECONDS)
}

/// An answer that is kept for a while, and fetched by one caller at a time.
struct Kept<T> {
    lifetime: Duration,
    last: Mutex<Option<(Instant, T)>>,
}

impl<T: Copy> Kept<T> {
    fn new(lifetime: Duration) -> Self {
        Self { lifetime, last: Mutex::new(None) }
    }

    /// The kept answer, or a new one, which is kept if it is `worth` it.
    async fn get(&self, fetch: impl Future<Output = T>, worth: impl FnOnce(&T) -> bool) -> T {
        let mut last = self.last.lock().await;
        if let Some((at, answer)) = *last
            && at.elapsed() < self.lifetime
        {
            return answer;
        }
        let answer = fetch.await;
        *last = worth(&answer).then(|| (Instant::now(), answer));
        answer
    }
}

#[cfg(test)]
mod tests;
