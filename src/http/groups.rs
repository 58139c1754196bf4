//! Groups: the list that the app believes without a doubt.
//!
//! A group that is missing from the list is taken for one that the device was never admitted to, so
//! the list is whole, or the answer is a refusal.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use sealwire_actors::ports::GroupRecord;
use sealwire_protocol::frame;
use serde::Serialize;

use super::Api;
use super::auth::Device;
use super::error::ApiError;
use super::instant::iso;
use crate::operator::json_answer;

/// The calls about groups.
pub(super) fn router() -> Router<Arc<Api>> {
    Router::new().route("/groups", get(list))
}

/// Answer to `GET /groups`.
#[derive(Serialize)]
pub struct Groups {
    /// All of the device's groups.
    groups: Vec<Group>,
}

/// A group.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Group {
    /// Its UUID, lower case.
    id: String,
    /// When it was created, as ISO 8601: also when its creator joined.
    created_at: String,
    /// Never a time: a group ends a year after its last payload, which moves with every payload.
    expires_at: Option<String>,
    /// Everybody in it, approved or not.
    members: Vec<Member>,
}

/// A member of a group.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Its key, 64 lower-case hex digits.
    device_public_key: String,
    /// When it joined, as ISO 8601: another time after it has left and joined again.
    joined_at: String,
}

impl From<frame::Member> for Member {
    fn from(member: frame::Member) -> Self {
        Self { device_public_key: member.device.to_hex(), joined_at: iso(member.joined_at) }
    }
}

impl From<GroupRecord> for Group {
    fn from(group: GroupRecord) -> Self {
        Self {
            id: group.id.to_uuid_text(),
            created_at: iso(group.created_at),
            expires_at: None,
            members: group.members.into_iter().map(Member::from).collect(),
        }
    }
}

async fn list(State(api): State<Arc<Api>>, Device(device): Device) -> Result<Response, ApiError> {
    let groups = api.system.totals_groups(device).await?;
    let groups = Groups { groups: groups.into_iter().map(Group::from).collect() };
    Ok(json_answer(StatusCode::OK, &groups))
}
