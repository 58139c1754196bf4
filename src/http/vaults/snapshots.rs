//! The bytes of snapshots: uploaded in pieces, listed, read in ranges.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use sealwire_actors::ports::SnapshotRecord;
use sealwire_actors::vaults::NewPiece;
use sealwire_protocol::Digest;
use sealwire_protocol::limits::SNAPSHOT_CHUNK_BYTES_MAX;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{VaultHead, VaultId, digest};
use crate::http::Api;
use crate::http::auth::Device;
use crate::http::body::{Asked, Sent};
use crate::http::error::{ApiError, Refusal};
use crate::http::instant::iso;
use crate::operator::json_answer;

/// The calls about snapshots.
pub(super) fn router() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(read, upload))
}

/// A snapshot that is real.
#[derive(Serialize, ToSchema)]
pub struct VaultSnapshot {
    /// SHA-256 of its bytes, in hex: its name.
    digest: String,
    /// Its size in bytes.
    size: u64,
    /// What it holds: everything up to here.
    head: VaultHead,
    /// Who made it, 64 lower-case hex digits.
    author: String,
    /// The sequence of what made it real.
    sequence: u64,
    /// When the relay ordered that, as ISO 8601.
    timestamp: String,
    /// Whether another device has opened it.
    confirmed: bool,
}

impl From<&SnapshotRecord> for VaultSnapshot {
    fn from(snapshot: &SnapshotRecord) -> Self {
        Self {
            digest: hex::encode(snapshot.digest.0),
            size: snapshot.size,
            head: snapshot.head.into(),
            author: snapshot.author.to_hex(),
            sequence: snapshot.seq,
            timestamp: iso(snapshot.at),
            confirmed: snapshot.confirmed,
        }
    }
}

/// Answer to `GET /vaults/{id}/snapshots`.
#[derive(Serialize, ToSchema)]
pub struct VaultSnapshots {
    /// Newest first.
    snapshots: Vec<VaultSnapshot>,
}

/// The snapshots that are real.
#[utoipa::path(
    get, path = "/vaults/{id}/snapshots", operation_id = "list_snapshots", tag = "vaults",
    params(("id" = String, Path, description = "The vault's UUID")),
    responses((status = 200, body = VaultSnapshots, description = "All of them")),
)]
async fn list(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    VaultId(vault): VaultId,
) -> Result<Response, ApiError> {
    let listed = api.system.vault_snapshots(device, vault).await?;
    let snapshots = listed.iter().map(VaultSnapshot::from).collect();
    Ok(json_answer(StatusCode::OK, &VaultSnapshots { snapshots }))
}

/// Sealed bytes.
#[derive(ToSchema)]
#[schema(value_type = String, format = Binary)]
#[expect(dead_code, reason = "it says in the API's document what travels as it is")]
struct SnapshotBytes(Vec<u8>);

/// Which part of a snapshot is wanted.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Range {
    /// Where it begins.
    #[serde(default)]
    offset: u64,
    /// Most bytes; without it as many as are given at once.
    length: Option<usize>,
}

/// Bytes of a snapshot, at most 512 KiB.
#[utoipa::path(
    get, path = "/vaults/{id}/snapshots/{digest}", operation_id = "read_snapshot", tag = "vaults",
    params(
        ("id" = String, Path, description = "The vault's UUID"),
        ("digest" = String, Path, pattern = "^[0-9a-fA-F]{64}$", description = "SHA-256 of the whole"),
        Range,
    ),
    responses((status = 200, content_type = "application/octet-stream", body = SnapshotBytes, description = "The bytes; none at the end")),
)]
async fn read(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    VaultId(vault): VaultId,
    Path((_, name)): Path<(String, String)>,
    Asked(range): Asked<Range>,
) -> Result<Response, ApiError> {
    let length = range.length.unwrap_or(SNAPSHOT_CHUNK_BYTES_MAX);
    let name = named(&name)?;
    let bytes = api.system.vault_piece(device, vault, name, range.offset, length).await?;
    let headers =
        [(header::CONTENT_TYPE, "application/octet-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, bytes).into_response())
}

/// Where a piece of an upload belongs.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub struct Piece {
    /// Size of the whole in bytes.
    size: u64,
    /// Where the piece begins.
    #[serde(default)]
    offset: u64,
}

/// Answer to `PUT /vaults/{id}/snapshots/{digest}`.
#[derive(Serialize, ToSchema)]
pub struct Received {
    /// How many bytes are there from the beginning on.
    received: u64,
}

/// Keeps a piece of a snapshot: 16 to 512 KiB, but the last.
#[utoipa::path(
    put, path = "/vaults/{id}/snapshots/{digest}", operation_id = "upload_snapshot", tag = "vaults",
    params(
        ("id" = String, Path, description = "The vault's UUID"),
        ("digest" = String, Path, pattern = "^[0-9a-fA-F]{64}$", description = "SHA-256 of the whole"),
        Piece,
    ),
    request_body(content = SnapshotBytes, content_type = "application/octet-stream"),
    responses(
        (status = 200, body = Received, description = "Kept"),
        (status = 409, body = Refusal, description = "`out_of_order` with `expected`: the offset to go on from"),
    ),
)]
async fn upload(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    VaultId(vault): VaultId,
    Path((_, name)): Path<(String, String)>,
    Asked(piece): Asked<Piece>,
    Sent(bytes): Sent,
) -> Result<Response, ApiError> {
    if bytes.len() > SNAPSHOT_CHUNK_BYTES_MAX {
        return Err(ApiError::too_large());
    }
    let Piece { size, offset } = piece;
    let received = offset.saturating_add(bytes.len() as u64);
    let piece = NewPiece { digest: named(&name)?, size, offset, bytes: bytes.to_vec() };
    api.system.put_vault_piece(device, vault, piece).await?;
    Ok(json_answer(StatusCode::OK, &Received { received }))
}

fn named(text: &str) -> Result<Digest, ApiError> {
    digest(text).ok_or_else(|| ApiError::bad_request("the snapshot's name is no hash"))
}
