//! A refusal over HTTP: a status, a stable code, a sentence, and what the device needs to act.

use std::borrow::Cow;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use sealwire_actors::passes::NotProved;
use sealwire_actors::ports::StoreError;
use sealwire_protocol::{ErrorCode, Failure};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::operator::json_answer;

/// How long whoever meets a store that does not answer should wait, in seconds.
const UNAVAILABLE_RETRY_S: u64 = 2;

/// How long whoever meets a relay that is shutting down should wait, in seconds.
const DRAINING_RETRY_S: u64 = 5;

/// A refusal. It has no `Debug`: what it carries may come from a request.
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: Cow<'static, str>,
    retry_after_s: Option<u64>,
    details: Map<String, Value>,
}

/// The body of every refusal. Some have further fields.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it says in the API's document what `into_response` writes")]
pub struct Refusal {
    /// A stable code for the program.
    error: String,
    /// A sentence for a person.
    message: String,
    /// `group_limit_reached`, `group_full` and the limits of a vault: the limit.
    limit: Option<u64>,
    /// `out_of_order`: the count, or the offset in an upload, that comes next.
    expected: Option<u64>,
    /// `revoked`: the sequence of the revocation.
    sequence: Option<u64>,
    /// `conflict`: the last count of this device.
    count: Option<u64>,
    /// `stale` and `history_changed`: the newest sequence.
    latest_sequence: Option<u64>,
    /// 429 about a recovery vault: until when, as ISO 8601.
    #[schema(rename = "lockedUntil")]
    locked_until: Option<String>,
}

impl ApiError {
    /// A refusal of this status.
    #[must_use]
    pub fn new(
        status: StatusCode,
        code: &'static str,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { status, code, message: message.into(), retry_after_s: None, details: Map::new() }
    }

    /// With a further field in its body.
    #[must_use]
    pub fn with(mut self, field: &'static str, value: impl Into<Value>) -> Self {
        self.details.insert(field.to_owned(), value.into());
        self
    }

    /// With a time to wait, in whole seconds, at least one: the app reads no other form.
    #[must_use]
    pub fn after(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds.max(1));
        self
    }

    /// 400: the request is not what it must be.
    #[must_use]
    pub fn bad_request(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", message)
    }

    /// 401: one answer for every way of not being authenticated.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthorized", "authentication failed")
    }

    /// 503: the relay cannot do it now; nothing is known to have happened.
    #[must_use]
    pub fn unavailable() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "temporarily unavailable")
            .after(UNAVAILABLE_RETRY_S)
    }

    /// 503: the relay is shutting down.
    #[must_use]
    pub fn draining() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "draining", "the relay is shutting down")
            .after(DRAINING_RETRY_S)
    }

    /// 413: the request is longer than it may be.
    #[must_use]
    pub fn too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the request is larger than allowed")
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut body = self.details;
        body.insert("error".to_owned(), self.code.into());
        body.insert("message".to_owned(), self.message.into());
        let mut answer = json_answer(self.status, &body);
        if let Some(seconds) = self.retry_after_s {
            answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        answer
    }
}

impl From<StoreError> for ApiError {
    fn from(_: StoreError) -> Self {
        // Whatever is wrong with the store, the app is asked to come back: it must never take a
        // fault for an empty list.
        Self::unavailable()
    }
}

impl From<NotProved> for ApiError {
    fn from(error: NotProved) -> Self {
        match error {
            NotProved::Refused => Self::unauthorized(),
            NotProved::Unavailable => Self::unavailable(),
        }
    }
}

impl From<Failure> for ApiError {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "whatever else is refused is the caller's mistake"
    )]
    fn from(failure: Failure) -> Self {
        let code = failure.code;
        let status = match code {
            ErrorCode::Unavailable | ErrorCode::Draining => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::NoSuchLog | ErrorCode::NoSuchSnapshot => StatusCode::NOT_FOUND,
            ErrorCode::OutOfOrder
            | ErrorCode::Conflict
            | ErrorCode::Stale
            | ErrorCode::AlreadyMember
            | ErrorCode::HistoryChanged => StatusCode::CONFLICT,
            ErrorCode::GroupLimitReached
            | ErrorCode::GroupFull
            | ErrorCode::EntriesLimitReached
            | ErrorCode::BytesLimitReached
            | ErrorCode::DevicesLimitReached
            | ErrorCode::SnapshotsLimitReached
            | ErrorCode::Revoked => StatusCode::FORBIDDEN,
            ErrorCode::Quota | ErrorCode::RateLimited | ErrorCode::TooManyInFlight => {
                StatusCode::TOO_MANY_REQUESTS
            }
            ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::BAD_REQUEST,
        };
        let mut error = Self::new(status, code.name(), code.sentence());
        if let Some(limit) = failure.limit {
            error = error.with("limit", limit);
        }
        if let Some(expected) = failure.expected {
            error = error.with("expected", expected);
        }
        if let Some(seq) = failure.seq {
            error = error.with("sequence", seq);
        }
        if let Some(count) = failure.count {
            error = error.with("count", count);
        }
        if let Some(head) = failure.head {
            error = error.with("latest_sequence", head.seq);
        }
        match failure.retry_after_ms {
            Some(wait) => error.after(wait.div_ceil(1000)),
            None if status == StatusCode::SERVICE_UNAVAILABLE => error.after(UNAVAILABLE_RETRY_S),
            None => error,
        }
    }
}
