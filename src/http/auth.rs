//! Who is asking: a token, or a challenge that the device has signed for this request.
//!
//! Both forms are taken on every authenticated route, streams included. A token is asked for with one
//! signed challenge, lives ten minutes and is replaced in the headers of answers once half of that is
//! over; a request that was signed gets one with its answer. Tokens of one device do not know of each
//! other: the app has several at once.
//!
//! Holds always: a handler behind [`authenticate`] runs for the key that was proved, and for no key
//! that a body or path names; every way of not being authenticated has one answer.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sealwire_actors::metrics::AuthFailure;
use sealwire_actors::passes::{HttpSession, NotProved};
use sealwire_protocol::DeviceKey;
use sealwire_protocol::challenge::CHALLENGE_BYTES;
use sealwire_protocol::ids::Signature;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::body::Given;
use super::error::{ApiError, Refusal};
use super::instant::iso;
use crate::gateway::Connection;
use crate::operator::json_answer;

/// The device's key, 64 hex digits.
pub const DEVICE_HEADER: HeaderName = HeaderName::from_static("x-device-public-key");

/// The token; in answers, the one to use from now on.
pub const SESSION_HEADER: HeaderName = HeaderName::from_static("x-device-session");

/// In answers: until when the new token is good.
pub const SESSION_EXPIRES_HEADER: HeaderName =
    HeaderName::from_static("x-device-session-expires-at");

/// The challenge that was signed, in hex.
pub const CHALLENGE_HEADER: HeaderName = HeaderName::from_static("x-challenge");

/// The signature over its bytes, in hex.
pub const SIGNATURE_HEADER: HeaderName = HeaderName::from_static("x-signature");

/// The share of a token's lifetime, in percent, below which an answer brings the next one.
const RENEW_BELOW_PERCENT: u64 = 50;

/// The calls that nobody needs to be known for.
pub(super) fn router() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(challenge)).routes(routes!(open_session))
}

/// The device that has proved its key: what a handler takes to know who is asking.
#[derive(Clone, Copy)]
pub struct Device(pub DeviceKey);

impl<S: Send + Sync> FromRequestParts<S> for Device {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Self>().copied().ok_or_else(ApiError::unauthorized)
    }
}

/// Answer to `POST /auth/challenge`.
#[derive(Serialize, ToSchema)]
pub struct ChallengeAnswer {
    /// 32 bytes to sign, in hex.
    challenge: String,
}

/// A challenge to sign.
#[utoipa::path(
    post, path = "/auth/challenge", operation_id = "get_challenge", tag = "auth",
    params(("x-device-public-key" = Option<String>, Header, description = "Not looked at; newer apps send it")),
    responses(
        (status = 200, body = ChallengeAnswer, description = "A challenge, good for 60 seconds and one use"),
    ),
)]
async fn challenge(State(api): State<Arc<Api>>) -> Result<Response, ApiError> {
    let challenge = api.system.challenge().ok_or_else(ApiError::unavailable)?;
    Ok(json_answer(StatusCode::OK, &ChallengeAnswer { challenge: hex::encode(challenge) }))
}

/// Body of `POST /auth/session`.
#[derive(Deserialize, ToSchema)]
pub struct SessionRequest {
    /// The challenge, in hex.
    challenge: String,
    /// The signature over its bytes, in hex.
    signature: String,
}

/// Answer to `POST /auth/session`.
#[derive(Serialize, ToSchema)]
pub struct SessionAnswer {
    /// What to send as `X-Device-Session`.
    token: String,
    /// Until when, as ISO 8601.
    #[serde(rename = "expiresAt")]
    expires_at: String,
}

/// A token in exchange for a signed challenge.
#[utoipa::path(
    post, path = "/auth/session", operation_id = "open_session", tag = "auth",
    params(("x-device-public-key" = String, Header, description = "64 hex digits")),
    request_body = SessionRequest,
    responses(
        (status = 200, body = SessionAnswer, description = "A token, good for ten minutes"),
        (status = 401, body = Refusal, description = "`unauthorized`: whatever is wrong"),
    ),
)]
async fn open_session(
    State(api): State<Arc<Api>>,
    headers: HeaderMap,
    Given(request): Given<SessionRequest>,
) -> Result<Response, ApiError> {
    let device = device(&headers)?;
    prove(&api, device, &request.challenge, &request.signature).await?;
    let session = api.system.open_http(device)?;
    let answer = SessionAnswer { token: token(&session), expires_at: iso(session.expires_at) };
    Ok(json_answer(StatusCode::OK, &answer))
}

/// Lets a request through if it proves its device, and renews its token.
pub(super) async fn authenticate(
    State(api): State<Arc<Api>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let headers = request.headers();
    let device = device(headers)?;
    let renew = match (text(headers, &SESSION_HEADER), signed(headers)) {
        (Some(token), _) => {
            let token = URL_SAFE_NO_PAD.decode(token).unwrap_or_default();
            let left = api.system.check_http(device, &token);
            let left = left.ok_or_else(|| refuse(AuthFailure::Token))?;
            left < RENEW_BELOW_PERCENT
        }
        (None, Some((challenge, signature))) => {
            prove(&api, device, challenge, signature).await?;
            true
        }
        (None, None) => return Err(refuse(AuthFailure::Missing)),
    };
    if let Some(connection) = request.extensions().get::<Connection>() {
        connection.authenticated();
    }
    request.extensions_mut().insert(Device(device));
    let mut answer = next.run(request).await;
    if renew && let Ok(session) = api.system.open_http(device) {
        renew_in(answer.headers_mut(), &session);
    }
    Ok(answer)
}

async fn prove(
    api: &Api,
    device: DeviceKey,
    challenge: &str,
    signature: &str,
) -> Result<(), ApiError> {
    let mut bytes = [0; CHALLENGE_BYTES];
    let is_challenge = hex::decode_to_slice(challenge, &mut bytes).is_ok();
    match Signature::from_hex(signature) {
        Some(signature) if is_challenge => {
            let proved = api.system.prove(device, &bytes, &signature).await;
            if proved == Err(NotProved::Refused) {
                AuthFailure::Proof.count();
            }
            proved.map_err(ApiError::from)
        }
        _ => Err(refuse(AuthFailure::Malformed)),
    }
}

/// The one answer to whoever is not authenticated; why is counted.
fn refuse(failure: AuthFailure) -> ApiError {
    failure.count();
    ApiError::unauthorized()
}

/// The key that a request claims.
fn device(headers: &HeaderMap) -> Result<DeviceKey, ApiError> {
    match text(headers, &DEVICE_HEADER) {
        None => Err(refuse(AuthFailure::Missing)),
        Some(text) => DeviceKey::from_hex(text).ok_or_else(|| refuse(AuthFailure::Malformed)),
    }
}

fn signed(headers: &HeaderMap) -> Option<(&str, &str)> {
    Some((text(headers, &CHALLENGE_HEADER)?, text(headers, &SIGNATURE_HEADER)?))
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim).filter(|text| !text.is_empty())
}

fn token(session: &HttpSession) -> String {
    URL_SAFE_NO_PAD.encode(session.token)
}

fn renew_in(headers: &mut HeaderMap, session: &HttpSession) {
    let values = [token(session), iso(session.expires_at)].map(|text| HeaderValue::from_str(&text));
    // Both are made of characters that a header may hold.
    if let [Ok(token), Ok(expires_at)] = values {
        headers.insert(SESSION_HEADER, token);
        headers.insert(SESSION_EXPIRES_HEADER, expires_at);
    }
}
