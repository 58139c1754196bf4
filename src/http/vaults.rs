//! Vaults, for clients that ask now and then rather than hold a session.
//!
//! Entries travel as the bytes that were signed, in base64: the relay reads what it must know from the
//! header and makes nothing itself. Control entries and keys are pushed and pulled like changesets.
//! Every route asks whether the device is enrolled now; a token says only who is asking.
//!
//! Holds always: a device that was revoked is told so, and at which seq; any other that is not enrolled
//! is told what is told of a vault that does not exist.

pub mod changesets;
pub mod snapshots;
pub mod stream;

use std::sync::Arc;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sealwire_protocol::{DeviceKey, Digest, Head, LogId, frame};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::auth::{self, DEVICE_HEADER, Device};
use super::error::ApiError;
use super::instant::iso;
use crate::gateway::Connection;
use crate::operator::json_answer;

/// A token for one vault and device.
pub const VAULT_HEADER: HeaderName = HeaderName::from_static("x-vault-token");

/// Longest body of a request, in bytes: a full batch in base64, its headers and signatures.
pub const REQUEST_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The calls about vaults.
pub(super) fn router() -> OpenApiRouter<Arc<Api>> {
    changesets::router().merge(snapshots::router()).merge(stream::router()).routes(routes!(devices))
}

/// The call for a token: a device proves itself for it. A token that could be had for a token would never
/// end for whoever has stolen one.
pub(super) fn token_router() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(token))
}

/// A vault token, or whatever else proves a device.
pub(super) async fn authenticate(
    State(api): State<Arc<Api>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let Some(shown) = Shown::of(request.headers(), request.uri().path()) else {
        return auth::authenticate(State(api), request, next).await;
    };
    let Shown { token, device: Some(device), vault: Some(vault) } = shown else {
        return Err(ApiError::unauthorized());
    };
    if !api.system.check_vault_token(device, vault, &token) {
        return Err(ApiError::unauthorized());
    }
    if let Some(connection) = request.extensions().get::<Connection>() {
        connection.authenticated();
    }
    request.extensions_mut().insert(Device(device));
    Ok(next.run(request).await)
}

/// What a request with a vault token shows. It has no `Debug`: a token is nobody's to print.
struct Shown {
    token: Vec<u8>,
    device: Option<DeviceKey>,
    vault: Option<LogId>,
}

impl Shown {
    /// None if the request has no vault token.
    fn of(headers: &HeaderMap, path: &str) -> Option<Self> {
        let text = |name: &HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
        let token = headers.get(&VAULT_HEADER)?.to_str().unwrap_or_default().trim();
        Some(Self {
            token: URL_SAFE_NO_PAD.decode(token).unwrap_or_default(),
            device: text(&DEVICE_HEADER).and_then(DeviceKey::from_hex),
            vault: vault_in(path),
        })
    }
}

/// The vault that a path names.
fn vault_in(path: &str) -> Option<LogId> {
    path.split('/').nth(2).and_then(LogId::from_uuid_text).filter(LogId::is_native)
}

/// The vault that a path names.
#[derive(Clone, Copy)]
pub struct VaultId(pub LogId);

impl<S: Send + Sync> FromRequestParts<S> for VaultId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let message = "there is no such vault";
        vault_in(parts.uri.path())
            .map(Self)
            .ok_or_else(|| ApiError::new(StatusCode::NOT_FOUND, "no_such_log", message))
    }
}

/// Where a vault ends, or up to where it was read.
#[derive(Serialize, ToSchema)]
pub struct VaultHead {
    /// A number as text: it uses all 64 bits, which many readers of JSON have not.
    incarnation: String,
    /// The sequence of its last changeset.
    sequence: u64,
    /// The chain there, in hex.
    chain: String,
}

impl From<Head> for VaultHead {
    fn from(head: Head) -> Self {
        Self {
            incarnation: head.incarnation.to_string(),
            sequence: head.seq,
            chain: hex::encode(head.chain.0),
        }
    }
}

/// Answer to `POST /vaults/{id}/token`.
#[derive(Serialize, ToSchema)]
pub struct VaultToken {
    /// What to send as `X-Vault-Token`.
    token: String,
    /// Until when, as ISO 8601.
    expires_at: String,
}

/// A token for the routes of one vault.
#[utoipa::path(
    post, path = "/vaults/{id}/token", operation_id = "get_vault_token", tag = "vaults",
    params(("id" = String, Path, description = "The vault's UUID")),
    responses((status = 200, body = VaultToken, description = "A token, good for ten minutes")),
)]
async fn token(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    VaultId(vault): VaultId,
) -> Result<Response, ApiError> {
    let (token, expires) = api.system.vault_token(device, vault).await?;
    let expires_at = iso(expires.saturating_mul(1000));
    let answer = VaultToken { token: URL_SAFE_NO_PAD.encode(token), expires_at };
    Ok(json_answer(StatusCode::OK, &answer))
}

/// A device of a vault.
#[derive(Serialize, ToSchema)]
pub struct EnrolledDevice {
    /// Its key, 64 lower-case hex digits.
    device: String,
    /// The sequence of what enrolled it.
    enrolled_sequence: u64,
    /// When the relay ordered that, as ISO 8601.
    enrolled_at: String,
}

impl From<frame::Member> for EnrolledDevice {
    fn from(member: frame::Member) -> Self {
        Self {
            device: member.device.to_hex(),
            enrolled_sequence: member.joined_seq,
            enrolled_at: iso(member.joined_at),
        }
    }
}

/// Answer to `GET /vaults/{id}/devices`.
#[derive(Serialize, ToSchema)]
pub struct VaultDevices {
    /// All that are enrolled at the head.
    devices: Vec<EnrolledDevice>,
    /// Where the vault ends.
    head: VaultHead,
}

/// The devices that are enrolled.
#[utoipa::path(
    get, path = "/vaults/{id}/devices", operation_id = "list_vault_devices", tag = "vaults",
    params(("id" = String, Path, description = "The vault's UUID")),
    responses((status = 200, body = VaultDevices, description = "All of them, at one moment")),
)]
async fn devices(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    VaultId(vault): VaultId,
) -> Result<Response, ApiError> {
    let (head, members) = api.system.vault_devices(device, vault).await?;
    let devices = members.into_iter().map(EnrolledDevice::from).collect();
    Ok(json_answer(StatusCode::OK, &VaultDevices { devices, head: head.into() }))
}

/// A hash that a request names.
fn digest(text: &str) -> Option<Digest> {
    let mut bytes = [0; Digest::LEN];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(Digest(bytes))
}
