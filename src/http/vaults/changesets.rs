//! Changesets: pushed in batches, pulled in pages.
//!
//! A push is appended whole or not at all, and its `ack` is given after the fsync. What is pulled is
//! what was pushed, byte for byte.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sealwire_actors::vaults::{Changeset, Page};
use sealwire_protocol::frame::Recipients;
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::ids::Signature;
use sealwire_protocol::limits::{BATCH_ENTRIES_MAX, BODY_BYTES_MAX};
use sealwire_protocol::{Body, DeviceKey, Digest, EntryIn, Head, LogId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::snapshots::VaultSnapshot;
use super::{VaultHead, VaultId, digest};
use crate::http::Api;
use crate::http::auth::Device;
use crate::http::body::{Asked, Given};
use crate::http::error::{ApiError, Refusal};
use crate::http::instant::iso;
use crate::operator::json_answer;

/// The form of a changeset in these answers.
const SCHEMA_VERSION: u32 = 1;

/// The calls that push and pull.
pub(super) fn router() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(create)).routes(routes!(pull, push))
}

/// An entry as it is pushed. It has no `Debug`: it holds a body.
#[derive(Deserialize, ToSchema)]
pub struct PushedEntry {
    /// The canonical header, base64.
    #[schema(format = Byte)]
    header: String,
    /// The author's signature, base64.
    #[schema(format = Byte)]
    signature: String,
    /// The body, base64: sealed, but of control entries clear.
    #[schema(format = Byte)]
    payload_encrypted: String,
    /// Of a delivery of keys: whom it is for, 64 hex digits each.
    #[serde(default)]
    recipients: Vec<String>,
}

/// Body of `POST /vaults/{id}/changesets`.
#[derive(Deserialize, ToSchema)]
pub struct PushRequest {
    /// The entries, in order: all or none.
    #[schema(min_items = 1, max_items = 256)]
    changesets: Vec<PushedEntry>,
}

/// Answer to `POST /vaults`.
#[derive(Serialize, ToSchema)]
pub struct VaultCreated {
    /// The vault's UUID.
    vault_id: String,
    /// The sequence up to which everything is durable: 1.
    ack: u64,
    /// Where the vault ends.
    head: VaultHead,
}

/// Answer to `POST /vaults/{id}/changesets`.
#[derive(Serialize, ToSchema)]
pub struct Pushed {
    /// The sequence of the first changeset.
    sequence: u64,
    /// That of the last: everything up to it is durable.
    ack: u64,
    /// Whether all of it had been appended before.
    duplicate: bool,
    /// The head behind the last.
    head: VaultHead,
}

/// An entry as it is pulled.
#[derive(Serialize, ToSchema)]
pub struct PulledEntry {
    /// A UUID that is computed from where it stands.
    id: String,
    /// The vault's UUID.
    vault_id: String,
    /// Its place in the vault.
    sequence: u64,
    /// Its author's key, 64 lower-case hex digits.
    origin_device: String,
    /// When the relay ordered it, as ISO 8601.
    timestamp: String,
    /// 1: the form of this object.
    schema_version: u32,
    /// The canonical header, base64.
    header: String,
    /// The author's signature, base64.
    signature: Option<String>,
    /// The body, base64: sealed, but of control entries clear.
    payload_encrypted: Option<String>,
    /// Of a delivery of keys: whom it is for, 64 hex digits each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    recipients: Vec<String>,
}

/// Where a reader begins that stands below the floor.
#[derive(Serialize, ToSchema)]
pub struct VaultFloor {
    /// The floor: below it only control entries and keys are kept.
    head: VaultHead,
    /// The snapshot to start from.
    snapshot: Option<VaultSnapshot>,
}

/// Answer to `GET /vaults/{id}/changesets`.
#[derive(Serialize, ToSchema)]
pub struct Pulled {
    /// In order; at least one if there is any.
    changesets: Vec<PulledEntry>,
    /// The newest sequence.
    latest_sequence: u64,
    /// Where the vault ends.
    head: VaultHead,
    /// Where the next page begins: its `after`.
    next: u64,
    /// Whether there is a next page.
    more: bool,
    /// If `after` was below the floor.
    floor: Option<VaultFloor>,
    /// Whether the vault has no room for another changeset of the largest size: pushes are refused now
    /// or soon, until a snapshot is confirmed. Reading never is.
    full: bool,
}

impl PulledEntry {
    /// A changeset of this vault.
    pub(super) fn of(vault: LogId, changeset: &Changeset) -> Self {
        let Changeset { id, author, entry } = changeset;
        Self {
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
}

impl VaultFloor {
    /// The floor of a page, if it has one.
    pub(super) fn of(page: &Page) -> Option<Self> {
        let (head, snapshot): &(Head, _) = page.floor.as_ref()?;
        let snapshot = snapshot.as_ref().map(VaultSnapshot::from);
        Some(Self { head: (*head).into(), snapshot })
    }
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

/// Founds a vault with its first entry.
#[utoipa::path(
    post, path = "/vaults", operation_id = "create_vault", tag = "vaults",
    request_body = PushedEntry,
    responses(
        (status = 201, body = VaultCreated, description = "Durable"),
        (status = 409, body = Refusal, description = "`conflict`: this device has begun a vault of this id otherwise"),
    ),
)]
async fn create(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    Given(request): Given<PushedEntry>,
) -> Result<Response, ApiError> {
    let entries = entries(std::slice::from_ref(&request))?;
    let appended = api.system.push_to_vault(device, None, entries).await?;
    let vault_id = appended.log.to_uuid_text();
    let answer = VaultCreated { vault_id, ack: appended.seq, head: appended.head.into() };
    Ok(json_answer(StatusCode::CREATED, &answer))
}

/// Appends changesets: all or none.
#[utoipa::path(
    post, path = "/vaults/{id}/changesets", operation_id = "push_changesets", tag = "vaults",
    params(("id" = String, Path, description = "The vault's UUID")),
    request_body = PushRequest,
    responses(
        (status = 200, body = Pushed, description = "Durable"),
        (status = 409, body = Refusal, description = "`out_of_order` with `expected`, `conflict`, `stale`, `already_member`"),
    ),
)]
async fn push(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    VaultId(vault): VaultId,
    Given(request): Given<PushRequest>,
) -> Result<Response, ApiError> {
    let entries = entries(&request.changesets)?;
    let count = entries.len() as u64;
    let appended = api.system.push_to_vault(device, Some(vault), entries).await?;
    let answer = Pushed {
        sequence: appended.seq,
        ack: appended.seq + count - 1,
        duplicate: appended.duplicate,
        head: appended.head.into(),
    };
    Ok(json_answer(StatusCode::OK, &answer))
}

/// Where a reader begins.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Cursor {
    /// The sequence up to which everything is known; 0 for nothing.
    #[serde(default)]
    pub(super) after: u64,
    /// The chain at that sequence, 64 hex digits, to be compared.
    #[param(pattern = "^[0-9a-fA-F]{64}$")]
    chain: Option<String>,
}

impl Cursor {
    /// The chain to compare with, if one was given.
    pub(super) fn chain(&self) -> Result<Option<Digest>, ApiError> {
        let read = |text| digest(text).ok_or_else(|| ApiError::bad_request("the chain is no hash"));
        self.chain.as_deref().map(read).transpose()
    }
}

/// A page of what stands after a cursor.
#[utoipa::path(
    get, path = "/vaults/{id}/changesets", operation_id = "pull_changesets", tag = "vaults",
    params(("id" = String, Path, description = "The vault's UUID"), Cursor),
    responses(
        (status = 200, body = Pulled, description = "At most 256 changesets and 256 KiB of payloads"),
        (status = 409, body = Refusal, description = "`history_changed`: the cursor is not on this vault's chain"),
    ),
)]
async fn pull(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    VaultId(vault): VaultId,
    Asked(cursor): Asked<Cursor>,
) -> Result<Response, ApiError> {
    let chain = cursor.chain()?;
    let (page, full) = api.system.pull_from_vault(device, vault, cursor.after, chain).await?;
    let answer = Pulled {
        changesets: page.changesets.iter().map(|it| PulledEntry::of(vault, it)).collect(),
        latest_sequence: page.head.seq,
        head: page.head.into(),
        next: page.reached,
        more: page.more(),
        floor: VaultFloor::of(&page),
        full,
    };
    Ok(json_answer(StatusCode::OK, &answer))
}
