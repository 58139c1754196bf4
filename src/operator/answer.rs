//! The form of JSON answers, refusals among them: `{"error": code, "message": sentence}`.

use axum::Router;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

/// An answer in JSON that nobody on the way may keep.
#[must_use]
pub fn json_answer(status: StatusCode, body: &impl Serialize) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    match serde_json::to_vec(body) {
        Ok(bytes) => (status, headers, bytes).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// A refusal: a stable code for programs, a sentence for people.
#[must_use]
pub fn error_response(status: StatusCode, code: &str, message: &str) -> Response {
    json_answer(status, &json!({ "error": code, "message": message }))
}

/// A refusal that ends by waiting so many seconds.
#[must_use]
pub fn retry_later(status: StatusCode, code: &str, message: &str, seconds: u64) -> Response {
    let mut answer = error_response(status, code, message);
    answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    answer
}

/// The router, with refusals in JSON for paths and methods that it does not have.
pub fn with_json_fallbacks(router: Router) -> Router {
    router.fallback(not_found).method_not_allowed_fallback(method_not_allowed)
}

async fn not_found() -> Response {
    error_response(StatusCode::NOT_FOUND, "not_found", "there is nothing at this path")
}

async fn method_not_allowed() -> Response {
    let message = "this path does not take this method";
    error_response(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}
