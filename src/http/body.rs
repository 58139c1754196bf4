//! The body of a request, read within a bound and a deadline.
//!
//! The app says `application/json` with every request, also with those that have no body; older ones
//! add a charset. So the content type is not looked at, and an empty body is an empty object.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, FromRequestParts, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::error::ApiError;

/// How long the body of a request may take to come: 512 KiB over a link of 20 KiB/s. The app itself
/// gives up after 12 seconds.
const BODY_DEADLINE: Duration = Duration::from_secs(30);

/// The body of a request.
pub struct Sent(pub Bytes);

impl<S: Send + Sync> FromRequest<S> for Sent {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, state: &S) -> Result<Self, ApiError> {
        match timeout(BODY_DEADLINE, Bytes::from_request(request, state)).await {
            Ok(Ok(bytes)) => Ok(Self(bytes)),
            Ok(Err(rejection)) if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                Err(ApiError::too_large())
            }
            Ok(Err(_)) => Err(ApiError::bad_request("the body could not be read")),
            Err(_) => {
                let message = "the body took too long";
                Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "timeout", message))
            }
        }
    }
}

/// What a request says, read from its JSON.
pub struct Given<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Given<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request<Body>, state: &S) -> Result<Self, ApiError> {
        let Sent(bytes) = Sent::from_request(request, state).await?;
        let bytes: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        // What serde says may quote the request: it goes nowhere.
        serde_json::from_slice(bytes)
            .map(Self)
            .map_err(|_| ApiError::bad_request("the body is not the JSON object that it must be"))
    }
}

/// What a request asks for behind the question mark of its path.
pub struct Asked<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let asked = Query::<T>::from_request_parts(parts, state).await;
        asked.map(|Query(asked)| Self(asked)).map_err(|_| {
            ApiError::bad_request("what stands behind the question mark is not what it must be")
        })
    }
}
