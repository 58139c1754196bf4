//! Event streams: payloads as they come, and news about groups.
//!
//! A stream begins with everything that the device has not acked, because the app asks for nothing
//! when it connects again. It is written as server-sent events, each with a data line (the app drops
//! those without), and with a comment now and then so that no proxy takes it for dead. A stream has no
//! queue of its own ([`sealwire_actors::totals::stream`]); a phone that takes nothing stops its stream
//! and nobody else.
//!
//! Holds always: the two streams that are about no single group are open to every device, also to one
//! without groups: the app would ask again at once and for ever.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use futures_util::stream::{Stream, StreamExt, once, unfold};
use sealwire_actors::totals::payload::Payload;
use sealwire_actors::totals::stream::{PayloadStream, StreamEvent};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::auth::Device;
use super::error::{ApiError, Refusal};
use super::groups::{GroupId, stranger};
use super::instant::iso;
use super::payloads::PendingPayload;

/// How long a stream may say nothing: proxies commonly give up after thirty or sixty seconds.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(20);

/// A comment: a sign of life that the app skips.
pub(super) const COMMENT: &[u8] = b":\n\n";

/// The app drops an event without a data line.
const GROUPS_CHANGED: &[u8] = b"event: groups_changed\ndata: {}\n\n";

/// Tells nginx not to gather what is to be passed on.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The streams.
pub(super) fn router() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(changes)).routes(routes!(all)).routes(routes!(one))
}

/// Events `groups_changed`: the list of groups, or members in one, are others now; and `recovery_fetched`.
#[utoipa::path(
    get, path = "/groups/stream", operation_id = "stream_changes", tag = "streams",
    responses(
        (status = 200, content_type = "text/event-stream", body = String, description = "Server-sent events, until either end closes"),
    ),
)]
async fn changes(
    State(api): State<Arc<Api>>,
    Device(device): Device,
) -> Result<Response, ApiError> {
    refuse_when_draining(&api)?;
    Ok(events(api.system.follow_changes(device).await))
}

/// Events `payload`: everything that is not acked in any group, and then what comes.
#[utoipa::path(
    get, path = "/groups/pending/stream", operation_id = "stream_all", tag = "streams",
    responses(
        (status = 200, content_type = "text/event-stream", body = String, description = "Server-sent events, until either end closes"),
    ),
)]
async fn all(State(api): State<Arc<Api>>, Device(device): Device) -> Result<Response, ApiError> {
    refuse_when_draining(&api)?;
    Ok(events(api.system.follow_all(device).await?))
}

/// Events `payload` of one group.
#[utoipa::path(
    get, path = "/groups/{id}/pending/stream", operation_id = "stream_group", tag = "streams",
    params(("id" = String, Path, description = "The group's UUID")),
    responses(
        (status = 200, content_type = "text/event-stream", body = String, description = "Server-sent events, until either end closes"),
        (status = 403, body = Refusal, description = "`not_member`"),
        (status = 404, body = Refusal, description = "`group_not_found`"),
        (status = 409, body = Refusal, description = "`native_group`: this group speaks the native protocol"),
    ),
)]
async fn one(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    GroupId(group): GroupId,
) -> Result<Response, ApiError> {
    refuse_when_draining(&api)?;
    match api.system.follow_group(device, group).await? {
        Some(stream) => Ok(events(stream)),
        None => Err(stranger(&api, group).await),
    }
}

pub(super) fn refuse_when_draining(api: &Api) -> Result<(), ApiError> {
    if *api.draining.borrow() { Err(ApiError::draining()) } else { Ok(()) }
}

/// The answer that a stream is.
fn events(stream: PayloadStream) -> Response {
    as_events(unfold(stream, |mut stream| async move {
        let chunk = match stream.next(SILENCE_MAX).await? {
            StreamEvent::Payloads(payloads) => written(&payloads),
            StreamEvent::RecoveryFetched(at) => recovery_fetched(at),
            StreamEvent::GroupsChanged => Bytes::from_static(GROUPS_CHANGED),
            StreamEvent::Silence => Bytes::from_static(COMMENT),
        };
        Some((chunk, stream))
    }))
}

/// An answer that goes on for as long as there are chunks of events.
pub(super) fn as_events(chunks: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store, no-transform")),
        (X_ACCEL_BUFFERING, HeaderValue::from_static("no")),
    ];
    // The first comment brings the head on its way.
    let chunks = once(ready(Bytes::from_static(COMMENT))).chain(chunks);
    (headers, Body::from_stream(chunks.map(Ok::<Bytes, Infallible>))).into_response()
}

/// An app that does not know the event passes over it.
fn recovery_fetched(at: u64) -> Bytes {
    Bytes::from(format!("event: recovery_fetched\ndata: {{\"at\":\"{}\"}}\n\n", iso(at)))
}

fn written(payloads: &[Arc<Payload>]) -> Bytes {
    if let [payload] = payloads {
        return payload.rendered(event);
    }
    let events: Vec<Bytes> = payloads.iter().map(|payload| payload.rendered(event)).collect();
    let mut chunk = BytesMut::with_capacity(events.iter().map(Bytes::len).sum());
    for event in events {
        chunk.extend_from_slice(&event);
    }
    chunk.freeze()
}

/// The event of a payload. JSON has no line breaks of its own, so one data line holds it.
fn event(payload: &Payload) -> Bytes {
    // A struct of strings: writing it cannot fail.
    let json = serde_json::to_string(&PendingPayload::from(payload)).unwrap_or_default();
    Bytes::from(format!("event: payload\ndata: {json}\n\n"))
}
