//! Where a phone's doorbell is: one token for each device, never shown to anybody.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::auth::Device;
use super::body::Given;
use super::error::ApiError;
use super::openapi::Nothing;
use crate::operator::json_answer;

/// The call about doorbells.
pub(super) fn router() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(register))
}

/// Body of `PUT /groups/push-registration`. It has no `Debug`: a token is not printed.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PushRegistration {
    /// The device's token at the push service; null to be rung no more.
    #[serde(default)]
    push_token: Option<String>,
    /// The push service: `fcm`.
    #[serde(default)]
    push_platform: Option<String>,
}

/// Says where the device's doorbell is; null for nowhere.
#[utoipa::path(
    put, path = "/groups/push-registration", operation_id = "register_push", tag = "push",
    request_body = PushRegistration,
    responses(
        (status = 200, body = Nothing, description = "Kept"),
    ),
)]
async fn register(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    Given(request): Given<PushRegistration>,
) -> Result<Response, ApiError> {
    let token = request.push_token.filter(|token| !token.is_empty());
    let place = match (token, request.push_platform) {
        (None, _) => None,
        (Some(token), Some(platform)) => Some((platform, token)),
        (Some(_), None) => {
            return Err(ApiError::bad_request("pushPlatform must say whose token this is"));
        }
    };
    api.system.set_push_token(device, place).await?;
    Ok(json_answer(StatusCode::OK, &json!({})))
}
