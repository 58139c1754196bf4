//! Groups: made, joined, left, and listed.
//!
//! A group that is missing from the list is taken by the app for one that the device was never
//! admitted to, so the list is whole, or the answer is a refusal. The group's id is the invitation:
//! whoever knows it may join.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::Response;
use sealwire_actors::ports::GroupRecord;
use sealwire_protocol::{ErrorCode, Failure, LogId, frame};
use serde::Serialize;
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::auth::Device;
use super::error::{ApiError, Refusal};
use super::instant::iso;
use super::openapi::Nothing;
use crate::operator::json_answer;

/// The calls about groups.
pub(super) fn router() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list, create))
        .routes(routes!(join))
        .routes(routes!(members))
        .routes(routes!(leave))
}

/// The group that a path names.
#[derive(Clone, Copy)]
pub struct GroupId(pub LogId);

impl<S: Send + Sync> FromRequestParts<S> for GroupId {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, state).await;
        let id = path.ok().and_then(|Path(text)| LogId::from_uuid_text(&text));
        match id {
            Some(id) if id.is_totals() => Ok(Self(id)),
            // Said of every id of that form, whether there is such a group or not.
            Some(id) if id.is_native() => {
                let message = "this group speaks the native protocol";
                Err(ApiError::new(StatusCode::CONFLICT, "native_group", message))
            }
            Some(_) | None => Err(group_not_found()),
        }
    }
}

/// 404: there is no such group.
pub(super) fn group_not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "group_not_found", "there is no such group")
}

/// 403: the device is no member of the group.
pub(super) fn not_member() -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "not_member", "you are not a member of this group")
}

/// A refusal by a group. Whether it is there is told to whoever knows its id: with it, he may join.
pub(super) async fn refused(api: &Api, group: LogId, failure: Failure) -> ApiError {
    if failure.code == ErrorCode::NoSuchLog {
        return stranger(api, group).await;
    }
    failure.into()
}

/// What is said to a device that is no member of a group.
pub(super) async fn stranger(api: &Api, group: LogId) -> ApiError {
    match api.system.totals_exists(group).await {
        Ok(true) => not_member(),
        Ok(false) => group_not_found(),
        Err(error) => error.into(),
    }
}

/// Answer to `GET /groups`.
#[derive(Serialize, ToSchema)]
pub struct Groups {
    /// All of the device's groups.
    groups: Vec<Group>,
}

/// A group.
#[derive(Serialize, ToSchema)]
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
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Member {
    /// Its key, 64 lower-case hex digits.
    device_public_key: String,
    /// When it joined, as ISO 8601: another time after it has left and joined again.
    joined_at: String,
}

/// Answer to `GET /groups/{id}/members`.
#[derive(Serialize, ToSchema)]
pub struct Members {
    /// Everybody in the group.
    members: Vec<Member>,
}

/// Answer to `POST /groups/{id}/join`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Joined {
    /// The group's UUID, lower case.
    id: String,
    /// When the device became a member, as ISO 8601.
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

/// All of the device's groups.
#[utoipa::path(
    get, path = "/groups", operation_id = "list_groups", tag = "groups",
    responses(
        (status = 200, body = Groups, description = "The whole list, never a part of it"),
    ),
)]
async fn list(State(api): State<Arc<Api>>, Device(device): Device) -> Result<Response, ApiError> {
    let groups = api.system.totals_groups(device).await?;
    let groups = Groups { groups: groups.into_iter().map(Group::from).collect() };
    Ok(json_answer(StatusCode::OK, &groups))
}

/// Makes a group. Its id is the invitation.
#[utoipa::path(
    post, path = "/groups", operation_id = "create_group", tag = "groups",
    responses(
        (status = 201, body = Group, description = "The group"),
        (status = 403, body = Refusal, description = "`group_limit_reached`, with `limit`"),
    ),
)]
async fn create(State(api): State<Arc<Api>>, Device(device): Device) -> Result<Response, ApiError> {
    let made = api.system.create_totals(device).await?;
    let member = Member { device_public_key: device.to_hex(), joined_at: iso(made.at) };
    let group = Group {
        id: made.group.to_uuid_text(),
        created_at: iso(made.at),
        expires_at: None,
        members: vec![member],
    };
    Ok(json_answer(StatusCode::CREATED, &group))
}

/// Joins a group; a member joins again without effect.
#[utoipa::path(
    post, path = "/groups/{id}/join", operation_id = "join_group", tag = "groups",
    params(("id" = String, Path, description = "The group's UUID")),
    responses(
        (status = 200, body = Joined, description = "A member now, or before"),
        (status = 403, body = Refusal, description = "`group_limit_reached` or `group_full`, with `limit`"),
        (status = 404, body = Refusal, description = "`group_not_found`"),
        (status = 409, body = Refusal, description = "`native_group`: this group speaks the native protocol"),
    ),
)]
async fn join(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    GroupId(group): GroupId,
) -> Result<Response, ApiError> {
    match api.system.join_totals(device, group).await {
        Ok(joined) => {
            let joined = Joined { id: group.to_uuid_text(), joined_at: iso(joined.at) };
            Ok(json_answer(StatusCode::OK, &joined))
        }
        Err(failure) => Err(refused(&api, group, failure).await),
    }
}

/// Everybody in a group.
#[utoipa::path(
    get, path = "/groups/{id}/members", operation_id = "list_members", tag = "groups",
    params(("id" = String, Path, description = "The group's UUID")),
    responses(
        (status = 200, body = Members, description = "The whole list"),
        (status = 403, body = Refusal, description = "`not_member`"),
        (status = 404, body = Refusal, description = "`group_not_found`"),
        (status = 409, body = Refusal, description = "`native_group`: this group speaks the native protocol"),
    ),
)]
async fn members(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    GroupId(group): GroupId,
) -> Result<Response, ApiError> {
    match api.system.totals_members(device, group).await? {
        Some(members) => {
            let members = Members { members: members.into_iter().map(Member::from).collect() };
            Ok(json_answer(StatusCode::OK, &members))
        }
        None => Err(stranger(&api, group).await),
    }
}

/// Leaves a group.
#[utoipa::path(
    delete, path = "/groups/{id}/members/me", operation_id = "leave_group", tag = "groups",
    params(("id" = String, Path, description = "The group's UUID")),
    responses(
        (status = 200, body = Nothing, description = "No member any more"),
        (status = 403, body = Refusal, description = "`not_member`"),
        (status = 404, body = Refusal, description = "`group_not_found`"),
        (status = 409, body = Refusal, description = "`native_group`: this group speaks the native protocol"),
    ),
)]
async fn leave(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    GroupId(group): GroupId,
) -> Result<Response, ApiError> {
    match api.system.leave_totals(device, group).await {
        Ok(()) => Ok(json_answer(StatusCode::OK, &json!({}))),
        Err(failure) => Err(refused(&api, group, failure).await),
    }
}
