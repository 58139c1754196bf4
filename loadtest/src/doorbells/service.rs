//! A push service that stands in for Google's, in a process of its own: it grants access tokens to
//! whoever asks, and answers doorbells after a while, some of them with 429 and those at dead tokens
//! with UNREGISTERED.
//!
//! It believes every signature and listens on loopback alone. What it was told it keeps, with the time,
//! and tells whoever asks for it.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::helper;
use crate::process::machine_ns;

/// Where it tells what came: the number of calls that are known already follows.
pub(super) const RUNG_PATH: &str = "/rung/";

/// Where it takes as long as for a doorbell, and keeps nothing.
pub(super) const ALONE_PATH: &str = "/alone";

const TOKEN_PREFIX: &str = "token-";

/// The least claim to a processor that there is.
const NICENESS: i32 = 19;

/// How a push service answers.
#[derive(Args, Clone, Copy, Serialize)]
pub(crate) struct Manners {
    /// Milliseconds that the push service takes for a doorbell.
    #[arg(long, default_value_t = 50)]
    pub(super) takes_ms: u64,
    /// One doorbell in so many is answered with 429; 0 for none.
    #[arg(long, default_value_t = 20)]
    pub(super) limited_every: usize,
    /// One token in so many is not known to the push service; 0 for none.
    #[arg(long, default_value_t = 100)]
    pub(super) dead_every: usize,
}

/// A doorbell that came.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Call {
    /// When, in nanoseconds of the machine's own clock.
    pub(super) at_ns: u64,
    pub(super) token: String,
    pub(super) group: String,
    /// Whether it was one too many.
    pub(super) limited: bool,
}

/// The token of the device with this number.
pub(super) fn token(number: usize) -> String {
    format!("{TOKEN_PREFIX}{number:08}")
}

impl Manners {
    /// The same as options of `push-service`.
    pub(super) fn options(self) -> Vec<String> {
        let Self { takes_ms, limited_every, dead_every } = self;
        vec![
            format!("--takes-ms={takes_ms}"),
            format!("--limited-every={limited_every}"),
            format!("--dead-every={dead_every}"),
        ]
    }

    fn is_dead(self, token: &str) -> bool {
        let number = token.strip_prefix(TOKEN_PREFIX).and_then(|number| number.parse().ok());
        number.is_some_and(|number: usize| {
            self.dead_every > 0 && number.is_multiple_of(self.dead_every)
        })
    }

    /// Whether the call with this number, from 0, is one too many.
    fn is_limited(self, number: usize) -> bool {
        self.limited_every > 0 && (number + 1).is_multiple_of(self.limited_every)
    }
}

/// Serves until nobody holds its standard input open, behind everybody else who wants a processor: in the
/// world it has its own.
pub(crate) async fn serve(manners: Manners) -> Result<()> {
    let serving = tokio::task::spawn_blocking(move || {
        rustix::process::nice(NICENESS).context("stepping back")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(serve_here(manners))
    });
    serving.await?
}

async fn serve_here(manners: Manners) -> Result<()> {
    let service = Arc::new(Service { manners, calls: Mutex::default() });
    helper::serve(|stream| {
        let service = service.clone();
        let answers = service_fn(move |request| {
            let service = service.clone();
            async move { Ok::<_, Infallible>(service.answer(request).await) }
        });
        // A connection that fails is missed by whoever counts.
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answers));
    })
    .await
}

struct Service {
    manners: Manners,
    calls: Mutex<Vec<Call>>,
}

impl Service {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let at_ns = machine_ns();
        let path = request.uri().path();
        if path == "/token" {
            let token = json!({ "access_token": "measured", "expires_in": 3600 });
            return reply(StatusCode::OK, &token);
        }
        if let Some(known) = path.strip_prefix(RUNG_PATH) {
            let known = known.parse().unwrap_or(0);
            let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            return reply(StatusCode::OK, &json!(calls.get(known..).unwrap_or_default()));
        }
        if path == ALONE_PATH {
            sleep(Duration::from_millis(self.manners.takes_ms)).await;
            return reply(StatusCode::OK, &json!({ "name": "alone" }));
        }
        let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes);
        let json: Value = serde_json::from_slice(&body.unwrap_or_default()).unwrap_or_default();
        let message = &json["message"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (token, group) = (text(&message["token"]), text(&message["data"]["groupId"]));
        let is_dead = self.manners.is_dead(&token);
        let limited = self.take(at_ns, token, group);
        sleep(Duration::from_millis(self.manners.takes_ms)).await;
        if limited {
            let mut reply = refusal(StatusCode::TOO_MANY_REQUESTS, "QUOTA_EXCEEDED");
            reply.headers_mut().insert("retry-after", HeaderValue::from_static("1"));
            reply
        } else if is_dead {
            refusal(StatusCode::NOT_FOUND, "UNREGISTERED")
        } else {
            reply(StatusCode::OK, &json!({ "name": "projects/measured/messages/1" }))
        }
    }

    /// Keeps a call, and says whether it is one too many.
    fn take(&self, at_ns: u64, token: String, group: String) -> bool {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let limited = self.manners.is_limited(calls.len());
        calls.push(Call { at_ns, token, group, limited });
        limited
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_token_and_one_call_in_so_many_fail() {
        let manners = Manners { takes_ms: 0, limited_every: 4, dead_every: 3 };
        let dead: Vec<bool> = (0..5).map(|number| manners.is_dead(&token(number))).collect();
        assert_eq!(dead, [true, false, false, true, false]);
        let limited: Vec<bool> = (0..5).map(|number| manners.is_limited(number)).collect();
        assert_eq!(limited, [false, false, false, true, false]);
        let none = Manners { takes_ms: 0, limited_every: 0, dead_every: 0 };
        assert!(!none.is_dead(&token(0)) && !none.is_limited(0));
    }
}
