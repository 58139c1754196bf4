//! Payloads: sent to all or to named members, pulled, and acked.
//!
//! The sender is the key that was proved, whatever a body says. A blob travels as hex and is kept as
//! bytes; it is never looked into. What a body holds beyond the fields below is ignored, as the app's
//! field builds send more.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use sealwire_actors::totals::Outgoing;
use sealwire_actors::totals::kinds::{DEFAULT_KIND, rule_of};
use sealwire_actors::totals::payload::{Payload, PayloadId};
use sealwire_protocol::limits::{BODY_BYTES_MAX, NAME_BYTES_MAX};
use sealwire_protocol::{DeviceKey, LogId};
use serde::{Deserialize, Serialize};
use utoipa::{IntoResponses, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::auth::Device;
use super::body::Given;
use super::error::{ApiError, Refusal};
use super::groups::{GroupId, refused, stranger};
use super::instant::iso;
use crate::operator::json_answer;

/// Most ids in one ack: more than a pending page has payloads.
const ACKED_MAX: usize = 16_384;

/// The calls about payloads.
pub(super) fn router() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(broadcast))
        .routes(routes!(targeted))
        .routes(routes!(nudge))
        .routes(routes!(pending))
        .routes(routes!(ack_all))
        .routes(routes!(ack))
}

/// Body of the calls that send a payload.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PayloadRequest {
    /// The sealed bytes, in hex.
    #[schema(pattern = "^([0-9a-fA-F]{2})+$")]
    encrypted_blob: String,
    /// Whom it is for, each 64 hex digits; not looked at in a broadcast.
    #[serde(default)]
    recipient_public_keys: Option<Vec<String>>,
    /// What the app calls it: at most 64 bytes.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 64)]
    kind: Option<String>,
}

/// Answer to the calls that send a payload.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PayloadSent {
    /// Its id; none if nobody who was named is there to receive it: then nothing is kept.
    id: Option<String>,
    /// When the relay ordered it, as ISO 8601.
    created_at: Option<String>,
}

/// A payload, in a pending page and in a stream.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PendingPayload {
    /// Its id, a UUID.
    id: String,
    /// Its group's UUID.
    group_id: String,
    /// The key that sent it, 64 lower-case hex digits.
    sender_public_key: String,
    /// The sealed bytes, in lower-case hex.
    encrypted_blob: String,
    /// What the app calls it.
    kind: String,
    /// When the relay ordered it, as ISO 8601.
    created_at: String,
}

/// The answers of the three calls that send a payload.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "they say in the API's document what `send` answers")]
enum SendAnswers {
    /// Kept
    #[response(status = 201)]
    Kept(#[to_schema] PayloadSent),
    /// Nobody who was named is there: nothing is kept
    #[response(status = 200)]
    ForNobody(#[to_schema] PayloadSent),
    /// `not_member`
    #[response(status = 403)]
    Stranger(Refusal),
    /// `group_not_found`
    #[response(status = 404)]
    Unknown(Refusal),
    /// `native_group`: this group speaks the native protocol
    #[response(status = 409)]
    Native(Refusal),
}

/// Answer to `GET /groups/{id}/pending`.
#[derive(Serialize, ToSchema)]
pub struct Pending {
    /// What the device has not acked.
    payloads: Vec<PendingPayload>,
}

/// Body of `POST /payloads/ack`.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AckRequest {
    /// The ids. Those that name nothing are passed over.
    payload_ids: Vec<String>,
}

/// Answer to the calls that ack.
#[derive(Serialize, ToSchema)]
pub struct Acked {
    /// How many of the ids named a payload of this device.
    acked: u64,
}

impl From<&Payload> for PendingPayload {
    fn from(payload: &Payload) -> Self {
        Self {
            id: payload.id.to_text(),
            group_id: payload.group.to_uuid_text(),
            sender_public_key: payload.sender.to_hex(),
            encrypted_blob: hex::encode(payload.body.as_ref()),
            kind: payload.kind.clone(),
            created_at: iso(payload.at),
        }
    }
}

/// Sends a payload to everybody in a group.
#[utoipa::path(
    post, path = "/groups/{id}/payloads", operation_id = "send_to_all", tag = "payloads",
    params(("id" = String, Path, description = "The group's UUID")),
    request_body = PayloadRequest,
    responses(SendAnswers),
)]
async fn broadcast(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    GroupId(group): GroupId,
    Given(request): Given<PayloadRequest>,
) -> Result<Response, ApiError> {
    let outgoing = outgoing(request, DEFAULT_KIND, false)?;
    send(&api, device, group, outgoing).await
}

/// Sends a payload to named members.
#[utoipa::path(
    post, path = "/groups/{id}/payloads/targeted", operation_id = "send_to_named", tag = "payloads",
    params(("id" = String, Path, description = "The group's UUID")),
    request_body = PayloadRequest,
    responses(SendAnswers),
)]
async fn targeted(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    GroupId(group): GroupId,
    Given(request): Given<PayloadRequest>,
) -> Result<Response, ApiError> {
    let outgoing = outgoing(request, DEFAULT_KIND, true)?;
    send(&api, device, group, outgoing).await
}

/// Nudges named members.
#[utoipa::path(
    post, path = "/groups/{id}/nudges", operation_id = "send_nudge", tag = "payloads",
    params(("id" = String, Path, description = "The group's UUID")),
    request_body = PayloadRequest,
    responses(SendAnswers),
)]
async fn nudge(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    GroupId(group): GroupId,
    Given(request): Given<PayloadRequest>,
) -> Result<Response, ApiError> {
    let outgoing = outgoing(request, "nudge", true)?;
    send(&api, device, group, outgoing).await
}

/// What a request asks to be sent. To named members means to those alone: without a list, or with an
/// empty one, it is for nobody, never for all.
fn outgoing(
    request: PayloadRequest,
    default_kind: &str,
    to_named: bool,
) -> Result<Outgoing, ApiError> {
    if request.encrypted_blob.len() > BODY_BYTES_MAX * 2 {
        return Err(ApiError::too_large());
    }
    let body = hex::decode(&request.encrypted_blob)
        .ok()
        .filter(|body| !body.is_empty())
        .ok_or_else(|| ApiError::bad_request("encryptedBlob must be bytes in hex"))?;
    let kind = request.kind.unwrap_or_else(|| default_kind.to_owned());
    if kind.is_empty() || kind.len() > NAME_BYTES_MAX || kind.contains('\0') {
        return Err(ApiError::bad_request("kind must be a short name"));
    }
    let named = if to_named {
        let keys = request.recipient_public_keys.ok_or_else(|| {
            ApiError::bad_request("recipientPublicKeys must be a list of public keys")
        })?;
        let keys: Option<Vec<DeviceKey>> =
            keys.iter().map(|text| DeviceKey::from_hex(text)).collect();
        let message = "a public key must be 64 hex digits";
        Some(keys.ok_or_else(|| ApiError::bad_request(message))?)
    } else {
        None
    };
    Ok(Outgoing { body, kind, named })
}

async fn send(
    api: &Api,
    device: DeviceKey,
    group: LogId,
    outgoing: Outgoing,
) -> Result<Response, ApiError> {
    api.limits.payload(device, rule_of(&outgoing.kind).sent_once)?;
    match api.system.send_totals(device, group, outgoing).await {
        Ok(Some(sent)) => {
            let (id, created_at) = (Some(sent.id.to_text()), Some(iso(sent.at)));
            Ok(json_answer(StatusCode::CREATED, &PayloadSent { id, created_at }))
        }
        Ok(None) => {
            let nothing = PayloadSent { id: None, created_at: None };
            Ok(json_answer(StatusCode::OK, &nothing))
        }
        Err(failure) => Err(refused(api, group, failure).await),
    }
}

/// What the device has not acked in a group: oldest first, what is for it alone before what is for all.
#[utoipa::path(
    get, path = "/groups/{id}/pending", operation_id = "list_pending", tag = "payloads",
    params(("id" = String, Path, description = "The group's UUID")),
    responses(
        (status = 200, body = Pending, description = "A page, at least one payload if there is any"),
        (status = 403, body = Refusal, description = "`not_member`"),
        (status = 404, body = Refusal, description = "`group_not_found`"),
        (status = 409, body = Refusal, description = "`native_group`: this group speaks the native protocol"),
    ),
)]
async fn pending(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    GroupId(group): GroupId,
) -> Result<Response, ApiError> {
    match api.system.pending(device, group).await? {
        Some(payloads) => {
            let payloads = payloads.iter().map(PendingPayload::from).collect();
            Ok(json_answer(StatusCode::OK, &Pending { payloads }))
        }
        None => Err(stranger(&api, group).await),
    }
}

/// Acks one payload: it does not come again.
#[utoipa::path(
    post, path = "/payloads/{id}/ack", operation_id = "ack_one", tag = "payloads",
    params(("id" = String, Path, description = "The payload's id")),
    responses(
        (status = 200, body = Acked, description = "Durable"),
        (status = 404, body = Refusal, description = "`payload_not_found`: also if it was acked and has gone"),
    ),
)]
async fn ack(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let known = match PayloadId::from_text(&id) {
        Some(id) => api.system.ack_totals(device, &[id]).await?,
        None => 0,
    };
    if known == 0 {
        let message = "there is no such payload for you";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "payload_not_found", message));
    }
    Ok(json_answer(StatusCode::OK, &Acked { acked: known }))
}

/// Acks payloads. Ids that name nothing are passed over.
#[utoipa::path(
    post, path = "/payloads/ack", operation_id = "ack_many", tag = "payloads",
    request_body = AckRequest,
    responses(
        (status = 200, body = Acked, description = "Durable"),
    ),
)]
async fn ack_all(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    Given(request): Given<AckRequest>,
) -> Result<Response, ApiError> {
    if request.payload_ids.len() > ACKED_MAX {
        return Err(ApiError::too_large());
    }
    let ids: Vec<PayloadId> =
        request.payload_ids.iter().filter_map(|text| PayloadId::from_text(text)).collect();
    let known = api.system.ack_totals(device, &ids).await?;
    Ok(json_answer(StatusCode::OK, &Acked { acked: known }))
}
