//! The API's own description, made from the routes: what is not written at a handler is added here for
//! all that it is true of.
//!
//! The relay serves it at `/openapi.json`; docs/openapi.json is the same, and a test compares them.

use std::sync::{Arc, LazyLock};

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Serialize;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, SecurityScheme};
use utoipa::openapi::{
    Components, ContentBuilder, HeaderBuilder, InfoBuilder, ObjectBuilder, OpenApi, PathItem, Ref,
    RefOr, ResponseBuilder, SecurityRequirement, Type,
};
use utoipa::{PartialSchema, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::Api;
use super::auth::{CHALLENGE_HEADER, DEVICE_HEADER, SESSION_HEADER, SIGNATURE_HEADER};
use super::error::Refusal;
use super::vaults::VAULT_HEADER;

/// An object without fields: the app looks at none.
#[derive(Serialize, ToSchema)]
pub struct Nothing {}

/// The form of every answer but a stream.
const JSON: &str = "application/json";

const ABOUT: &str = "What the Totals app speaks with a relay, and vaults for clients without a session. The relay orders and delivers sealed boxes and \
     cannot open them. Every refusal is an object with a stable `error` and a `message` for people; every 429 \
     and 503 has `Retry-After` in whole seconds. The native protocol is on the same port (`/v1/ws`).";

/// Adds what every call may be refused with, and what every call with a body may.
pub(super) fn describe_all(document: &mut OpenApi) {
    each(document, |operation| {
        if operation.request_body.is_some() {
            refusal(operation, StatusCode::BAD_REQUEST, "The body is not what it must be");
            refusal(operation, StatusCode::REQUEST_TIMEOUT, "`timeout`: the body took too long");
            refusal(operation, StatusCode::PAYLOAD_TOO_LARGE, "`too_large`");
        }
        refusal(operation, StatusCode::TOO_MANY_REQUESTS, "Too many requests, or too much kept");
        refusal(operation, StatusCode::INTERNAL_SERVER_ERROR, "`internal`: a bug, which is logged");
        refusal(operation, StatusCode::SERVICE_UNAVAILABLE, "`unavailable` or `draining`");
    });
}

/// Adds what stands before the calls of a device that has to be known.
pub(super) fn describe_known(document: &mut OpenApi) {
    let none = || Vec::<String>::new();
    let device = || SecurityRequirement::new("device", none());
    each(document, |operation| {
        refusal(operation, StatusCode::UNAUTHORIZED, "`unauthorized`: whatever is wrong");
        operation.security = Some(vec![
            device().add("session", none()),
            device().add("challenge", none()).add("signature", none()),
        ]);
    });
}

/// The same for the calls about vaults, which take a token of their vault as well, but the one that gives
/// it.
pub(super) fn describe_vaults(document: &mut OpenApi) {
    describe_known(document);
    for (path, item) in &mut document.paths.paths {
        let PathItem { get, put, post, .. } = item;
        for operation in [get, put, post].into_iter().flatten() {
            refusal(operation, StatusCode::BAD_REQUEST, "What cannot be repeated as it is");
            refusal(operation, StatusCode::FORBIDDEN, "A limit of the vault; `revoked`");
            if path != "/vaults" {
                refusal(operation, StatusCode::NOT_FOUND, "`no_such_log`, `no_such_snapshot`");
            }
            if path != "/vaults" && !path.ends_with("/token") {
                let none = Vec::<String>::new;
                let token = SecurityRequirement::new("device", none()).add("vault", none());
                operation.security.get_or_insert_default().push(token);
            }
        }
    }
}

/// Adds what the document says of itself, and what its parts refer to.
pub(super) fn complete(document: &mut OpenApi) {
    document.info = InfoBuilder::new()
        .title("Sealwire")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .build();
    let components = document.components.get_or_insert_with(Components::new);
    components.schemas.insert(Refusal::name().into_owned(), Refusal::schema());
    for (name, header, about) in [
        ("device", DEVICE_HEADER, "The device's public key: 64 lower-case hex digits"),
        ("session", SESSION_HEADER, "A token of `POST /auth/session`"),
        ("vault", VAULT_HEADER, "A token of `POST /vaults/{id}/token`"),
        ("challenge", CHALLENGE_HEADER, "A challenge of `POST /auth/challenge`"),
        ("signature", SIGNATURE_HEADER, "Ed25519 over the challenge's bytes: 128 hex digits"),
    ] {
        let key = ApiKeyValue::with_description(header.as_str(), about);
        components.add_security_scheme(name, SecurityScheme::ApiKey(ApiKey::Header(key)));
    }
}

/// Where it is served.
pub(super) fn router() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(describe))
}

/// This description.
#[utoipa::path(
    get, path = "/openapi.json", operation_id = "describe", tag = "operator",
    responses((status = 200, content_type = "application/json", body = Object, description = "OpenAPI")),
)]
async fn describe() -> Response {
    static WRITTEN: LazyLock<Bytes> = LazyLock::new(|| {
        // It is made of constants, which can be written.
        Bytes::from(super::document().to_pretty_json().unwrap_or_default())
    });
    ([(header::CONTENT_TYPE, JSON)], WRITTEN.clone()).into_response()
}

fn each(document: &mut OpenApi, change: impl Fn(&mut Operation)) {
    for item in document.paths.paths.values_mut() {
        let PathItem { get, put, post, delete, .. } = item;
        [get, put, post, delete].into_iter().flatten().for_each(&change);
    }
}

fn refusal(operation: &mut Operation, status: StatusCode, about: &str) {
    let content =
        ContentBuilder::new().schema(Some(Ref::from_schema_name(Refusal::name()))).build();
    let mut response = ResponseBuilder::new().description(about).content(JSON, content);
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        let seconds = ObjectBuilder::new().schema_type(Type::Integer).build();
        let header = HeaderBuilder::new()
            .schema(seconds)
            .description(Some("Whole seconds after which to come back"))
            .build();
        response = response.header("Retry-After", header);
    }
    let known = &mut operation.responses.responses;
    match known.get_mut(status.as_str()) {
        // What the handler says of it is more to the point.
        Some(RefOr::T(said)) => said.headers = response.build().headers,
        Some(RefOr::Ref(_)) => {}
        None => drop(known.insert(status.as_str().to_owned(), RefOr::T(response.build()))),
    }
}
