//! Vaults, for clients that ask now and then rather than hold a session.
//!
//! Entries travel as the bytes that were signed, in base64: the relay reads what it must know from the
//! header and makes nothing itself. Control entries and keys are pushed and pulled like changesets.
//! Every route asks whether the device is enrolled now; a token says only who is asking.
//!
//! Holds always: a device that was revoked is told so, and at which seq; any other that is not enrolled
//! is told what is told of a vault that does not exist.

use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sealwire_actors::ports::SnapshotRecord;
use sealwire_actors::vaults::{Changeset, NewPiece, Page};
use sealwire_protocol::frame::Recipients;
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::ids::Signature;
use sealwire_protocol::limits::{BATCH_ENTRIES_MAX, BODY_BYTES_MAX, SNAPSHOT_CHUNK_BYTES_MAX};
use sealwire_protocol::{Body, DeviceKey, Digest, EntryIn, Head, LogId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Api;
use super::auth::{self, DEVICE_HEADER, Device};
use super::body::Given;
use super::error::ApiError;
use super::instant::iso;
use super::limits;
use crate::gateway::Connection;
use crate::operator::json_answer;

/// A token for one vault and device.
pub const VAULT_HEADER: HeaderName = HeaderName::from_static("x-vault-token");

/// Longest body of a push, in bytes: a full batch in base64, its headers and signatures.
const PUSH_BYTES_MAX: usize = 2 * 1024 * 1024;

/// The form of a changeset in these answers.
const SCHEMA_VERSION: u32 = 1;

/// The calls about vaults.
pub(super) fn router(api: &Arc<Api>) -> Router<Arc<Api>> {
    Router::new()
        .route("/vaults", post(create))
        .route("/vaults/{id}/token", post(token))
        .route("/vaults/{id}/changesets", get(pull).post(push))
        .route("/vaults/{id}/devices", get(devices))
        .route("/vaults/{id}/snapshots", get(snapshots))
        .route("/vaults/{id}/snapshots/{digest}", get(read).put(upload))
        .layer(middleware::from_fn_with_state(api.clone(), limits::by_device))
        .layer(middleware::from_fn_with_state(api.clone(), authenticate))
        .layer(DefaultBodyLimit::max(PUSH_BYTES_MAX))
}

/// A vault token, or whatever else proves a device.
async fn authenticate(
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

/// An entry as it is pushed. It has no `Debug`: it holds a body.
#[derive(Deserialize)]
pub struct PushedEntry {
    /// The canonical header, base64.
    header: String,
    /// The author's signature, base64.
    signature: String,
    /// The body, base64: sealed, but of control entries clear.
    payload_encrypted: String,
    /// Of a delivery of keys: whom it is for, 64 hex digits each.
    #[serde(default)]
    recipients: Vec<String>,
}

/// Body of `POST /vaults/{id}/changesets`.
#[derive(Deserialize)]
pub struct PushRequest {
    /// The entries, in order: all or none.
    changesets: Vec<PushedEntry>,
}

/// An entry as it is pulled.
#[derive(Serialize)]
pub struct PulledEntry {
    id: String,
    vault_id: String,
    sequence: u64,
    origin_device: String,
    timestamp: String,
    schema_version: u32,
    header: String,
    signature: Option<String>,
    payload_encrypted: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    recipients: Vec<String>,
}

fn entry(pushed: &PushedEntry) -> Option<EntryIn> {
    let header = HeaderBytes::from_slice(&STANDARD.decode(&pushed.header).ok()?).ok()?;
    let signature = Signature::from_slice(&STANDARD.decode(&pushed.signature).ok()?)?;
    let body = STANDARD.decode(&pushed.payload_encrypted).ok()?;
    let recipients: Option<Vec<DeviceKey>> =
        pushed.recipients.iter().map(|text| DeviceKey::from_hex(text)).collect();
    Some(EntryIn {
        header,
        body: Body(body.into()),
        signature: Some(signature),
        recipients: Recipients::new(recipients?)?,
        totals_kind: None,
    })
}

fn entries(pushed: &[PushedEntry]) -> Result<Vec<EntryIn>, ApiError> {
    if pushed.is_empty() || pushed.len() > BATCH_ENTRIES_MAX {
        return Err(ApiError::bad_request("a push has one to 256 changesets"));
    }
    let entries: Option<Vec<EntryIn>> = pushed.iter().map(entry).collect();
    let entries =
        entries.ok_or_else(|| ApiError::bad_request("a changeset's fields cannot be read"))?;
    if entries.iter().any(|entry| entry.body.len() > BODY_BYTES_MAX) {
        return Err(ApiError::too_large());
    }
    Ok(entries)
}

async fn create(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    Given(request): Given<PushedEntry>,
) -> Result<Response, ApiError> {
    let entries = entries(std::slice::from_ref(&request))?;
    let appended = api.system.push_to_vault(device, None, entries).await?;
    let answer = json!({
        "vault_id": appended.log.to_uuid_text(),
        "ack": appended.seq,
        "head": head(&appended.head),
    });
    Ok(json_answer(StatusCode::CREATED, &answer))
}

async fn push(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    VaultId(vault): VaultId,
    Given(request): Given<PushRequest>,
) -> Result<Response, ApiError> {
    let entries = entries(&request.changesets)?;
    let count = entries.len() as u64;
    let appended = api.system.push_to_vault(device, Some(vault), entries).await?;
    let answer = json!({
        "sequence": appended.seq,
        "ack": appended.seq + count - 1,
        "duplicate": appended.duplicate,
        "head": head(&appended.head),
    });
    Ok(json_answer(StatusCode::OK, &answer))
}

/// Where a pull begins.
#[derive(Deserialize)]
pub struct Cursor {
    #[serde(default)]
    after: u64,
    /// The chain at that seq, 64 hex digits.
    chain: Option<String>,
}

async fn pull(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    VaultId(vault): VaultId,
    Query(cursor): Query<Cursor>,
) -> Result<Response, ApiError> {
    let chain = match &cursor.chain {
        Some(text) => {
            Some(digest(text).ok_or_else(|| ApiError::bad_request("the chain is no hash"))?)
        }
        None => None,
    };
    let page = api.system.pull_from_vault(device, vault, cursor.after, chain).await?;
    let Page { changesets, head: newest, more, floor } = page;
    let changesets: Vec<PulledEntry> = changesets.iter().map(|it| pulled(vault, it)).collect();
    let floor = floor
        .map(|(at, from)| json!({ "head": head(&at), "snapshot": from.as_ref().map(snapshot) }));
    let answer = json!({
        "changesets": changesets,
        "latest_sequence": newest.seq,
        "head": head(&newest),
        "more": more,
        "floor": floor,
    });
    Ok(json_answer(StatusCode::OK, &answer))
}

fn pulled(vault: LogId, changeset: &Changeset) -> PulledEntry {
    let Changeset { id, author, entry } = changeset;
    PulledEntry {
        id: id.clone(),
        vault_id: vault.to_uuid_text(),
        sequence: entry.seq,
        origin_device: author.to_hex(),
        timestamp: iso(entry.at),
        schema_version: SCHEMA_VERSION,
        header: STANDARD.encode(entry.header.0),
        signature: entry.signature.map(|signature| STANDARD.encode(signature.0)),
        payload_encrypted: entry.body.as_ref().map(|body| STANDARD.encode(body)),
        recipients: entry.recipients.iter().map(DeviceKey::to_hex).collect(),
    }
}

async fn token(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    VaultId(vault): VaultId,
) -> Result<Response, ApiError> {
    let (token, expires) = api.system.vault_token(device, vault).await?;
    let token = URL_SAFE_NO_PAD.encode(token);
    let answer = json!({ "token": token, "expires_at": iso(expires.saturating_mul(1000)) });
    Ok(json_answer(StatusCode::OK, &answer))
}

async fn devices(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    VaultId(vault): VaultId,
) -> Result<Response, ApiError> {
    let (at, members) = api.system.vault_devices(device, vault).await?;
    let devices: Vec<Value> = members
        .iter()
        .map(|member| {
            json!({
                "device": member.device.to_hex(),
                "enrolled_sequence": member.joined_seq,
                "enrolled_at": iso(member.joined_at),
            })
        })
        .collect();
    Ok(json_answer(StatusCode::OK, &json!({ "devices": devices, "head": head(&at) })))
}

async fn snapshots(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    VaultId(vault): VaultId,
) -> Result<Response, ApiError> {
    let listed = api.system.vault_snapshots(device, vault).await?;
    let listed: Vec<Value> = listed.iter().map(snapshot).collect();
    Ok(json_answer(StatusCode::OK, &json!({ "snapshots": listed })))
}

/// Which part of a snapshot is wanted.
#[derive(Deserialize)]
pub struct Range {
    #[serde(default)]
    offset: u64,
    length: Option<usize>,
}

async fn read(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    VaultId(vault): VaultId,
    Path((_, name)): Path<(String, String)>,
    Query(range): Query<Range>,
) -> Result<Response, ApiError> {
    let length = range.length.unwrap_or(SNAPSHOT_CHUNK_BYTES_MAX);
    let name = named(&name)?;
    let bytes = api.system.vault_piece(device, vault, name, range.offset, length).await?;
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, bytes).into_response())
}

/// Where a piece of an upload belongs.
#[derive(Deserialize)]
pub struct Piece {
    /// Size of the whole in bytes.
    size: u64,
    #[serde(default)]
    offset: u64,
}

async fn upload(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    VaultId(vault): VaultId,
    Path((_, name)): Path<(String, String)>,
    Query(piece): Query<Piece>,
    bytes: Bytes,
) -> Result<Response, ApiError> {
    if bytes.len() > SNAPSHOT_CHUNK_BYTES_MAX {
        return Err(ApiError::too_large());
    }
    let Piece { size, offset } = piece;
    let received = offset.saturating_add(bytes.len() as u64);
    let piece = NewPiece { digest: named(&name)?, size, offset, bytes: bytes.to_vec() };
    api.system.put_vault_piece(device, vault, piece).await?;
    Ok(json_answer(StatusCode::OK, &json!({ "received": received })))
}

fn named(text: &str) -> Result<Digest, ApiError> {
    digest(text).ok_or_else(|| ApiError::bad_request("the snapshot's name is no hash"))
}

fn digest(text: &str) -> Option<Digest> {
    let mut bytes = [0; Digest::LEN];
    hex::decode_to_slice(text, &mut bytes).ok()?;
    Some(Digest(bytes))
}

/// Incarnations use all 64 bits, which many readers of JSON have not: they travel as text.
fn head(head: &Head) -> Value {
    json!({
        "incarnation": head.incarnation.to_string(),
        "sequence": head.seq,
        "chain": hex::encode(head.chain.0),
    })
}

fn snapshot(snapshot: &SnapshotRecord) -> Value {
    json!({
        "digest": hex::encode(snapshot.digest.0),
        "size": snapshot.size,
        "head": head(&snapshot.head),
        "author": snapshot.author.to_hex(),
        "sequence": snapshot.seq,
        "timestamp": iso(snapshot.at),
        "confirmed": snapshot.confirmed,
    })
}
