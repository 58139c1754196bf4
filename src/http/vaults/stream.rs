//! A vault's changesets as they come: server-sent events from a cursor on.
//!
//! The same events for whoever begins, whoever comes back, and whoever was never away: a client that
//! can read the stream needs no other way to pull. Like all streams it has no queue
//! ([`sealwire_actors::vaults::VaultStream`]).

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use bytes::{Bytes, BytesMut};
use futures_util::stream::unfold;
use sealwire_actors::vaults::{Page, VaultEvent, VaultStream};
use sealwire_protocol::LogId;
use serde::Serialize;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::changesets::{Cursor, PulledEntry, VaultFloor};
use super::{VaultHead, VaultId};
use crate::http::Api;
use crate::http::auth::Device;
use crate::http::body::Asked;
use crate::http::error::{ApiError, Refusal};
use crate::http::streams::{COMMENT, SILENCE_MAX, as_events, refuse_when_draining};

/// The vault refuses entries, because it is full.
const FULL: &[u8] = b"event: full\ndata: {}\n\n";

/// The stream.
pub(super) fn router() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(follow))
}

/// Events `changeset`: what stands after a cursor, and then what comes; `floor`, `drained` and `full`.
#[utoipa::path(
    get, path = "/vaults/{id}/changesets/stream", operation_id = "stream_changesets", tag = "vaults",
    params(("id" = String, Path, description = "The vault's UUID"), Cursor),
    responses(
        (status = 200, content_type = "text/event-stream", body = String, description = "Server-sent events, until either end closes, or the device is enrolled no more"),
        (status = 409, body = Refusal, description = "`history_changed`: the cursor is not on this vault's chain"),
    ),
)]
async fn follow(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    VaultId(vault): VaultId,
    Asked(cursor): Asked<Cursor>,
) -> Result<Response, ApiError> {
    refuse_when_draining(&api)?;
    let chain = cursor.chain()?;
    let stream = api.system.follow_vault(device, vault, cursor.after, chain).await?;
    let reader = Reader { vault, stream, floor: 0, drained: false };
    Ok(as_events(unfold(reader, |mut reader| async move {
        let chunk = match reader.stream.next(SILENCE_MAX).await? {
            VaultEvent::Page(page) => reader.written(&page),
            VaultEvent::Full => Bytes::from_static(FULL),
            VaultEvent::Silence => Bytes::from_static(COMMENT),
        };
        Some((chunk, reader))
    })))
}

/// Who reads, and what it was told.
struct Reader {
    vault: LogId,
    stream: VaultStream,
    /// The floor that it was told of last.
    floor: u64,
    /// Whether it was told that it had reached the end.
    drained: bool,
}

impl Reader {
    fn written(&mut self, page: &Page) -> Bytes {
        let mut chunk = BytesMut::new();
        if let Some((head, _)) = &page.floor
            && head.seq != self.floor
        {
            self.floor = head.seq;
            write(&mut chunk, "floor", &VaultFloor::of(page));
        }
        for changeset in &page.changesets {
            write(&mut chunk, "changeset", &PulledEntry::of(self.vault, changeset));
        }
        if !page.more() && !self.drained {
            self.drained = true;
            write(&mut chunk, "drained", &VaultHead::from(page.head));
        }
        chunk.freeze()
    }
}

/// JSON has no line breaks of its own, so one data line holds it.
fn write(chunk: &mut BytesMut, event: &str, data: &impl Serialize) {
    // Structs of strings and numbers: writing them cannot fail.
    let json = serde_json::to_string(data).unwrap_or_default();
    chunk.extend_from_slice(format!("event: {event}\ndata: {json}\n\n").as_bytes());
}
