//! The HTTP API: what the Totals app speaks, on the same port as the native protocol.
//!
//! ```text
//! request ─> gateway ─> limits ─> auth (who is it) ─> limits ─> a route (what is asked) ─> actors (what is decided)
//! ```
//!
//! Each file holds the routes of one group of calls and a `router()` that lists them; they meet here
//! and nowhere else. A handler reads the request, asks the actors, and writes the answer: it decides
//! nothing about order, membership or delivery, and never asks a store what an actor should know.
//!
//! Holds always: every answer is a JSON object; every refusal is `{"error": code, "message":
//! sentence}`; every 429 and 503 says in whole seconds when to come back; a list is whole or it is
//! not given.

pub mod auth;
pub mod body;
pub mod error;
pub mod groups;
pub mod instant;
pub mod limits;
pub mod long;
pub mod openapi;
pub mod payloads;
pub mod push;
pub mod recovery;
pub mod streams;
pub mod vaults;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use sealwire_actors::System;
use sealwire_actors::recovery::Recovery;
use tokio::sync::watch;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

pub use auth::Device;
pub use error::ApiError;
use limits::RequestLimits;
use long::Room;

/// Longest body of a request, in bytes: a blob of [`sealwire_protocol::limits::BODY_BYTES_MAX`] in
/// hex is 512 KiB, and its recipients and field names have the rest.
pub const REQUEST_BYTES_MAX: usize = 640 * 1024;

/// What every handler can reach.
pub struct Api {
    /// Where everything is decided.
    pub system: Arc<System>,
    /// How much anybody may ask.
    pub limits: RequestLimits,
    /// How much the answers may hold that are under way.
    pub room: Room,
    /// Recovery vaults.
    pub recovery: Recovery,
    /// Becomes true when the relay is shutting down: streams end, and nothing new begins.
    pub draining: watch::Receiver<bool>,
}

/// The calls that nobody needs to be known for.
fn open_routes() -> OpenApiRouter<Arc<Api>> {
    auth::router().merge(recovery::open_router()).merge(openapi::router())
}

/// The calls of a device that has proved its key.
fn known_routes() -> OpenApiRouter<Arc<Api>> {
    groups::router()
        .merge(payloads::router())
        .merge(streams::router())
        .merge(push::router())
        .merge(recovery::router())
}

/// What the API says of itself: made from the routes, and from those of `watch`, which anybody may ask.
#[must_use]
pub fn document() -> OpenApi {
    let mut known = known_routes().into_openapi();
    openapi::describe_known(&mut known);
    let mut vaults = vaults::router().merge(vaults::token_router()).into_openapi();
    openapi::describe_vaults(&mut vaults);
    let mut whole = open_routes().into_openapi().merge_from(known).merge_from(vaults);
    openapi::describe_all(&mut whole);
    let mut whole = whole.merge_from(crate::operator::document());
    openapi::complete(&mut whole);
    whole
}

/// Every route of the HTTP API.
pub fn router(api: Arc<Api>) -> Router {
    let known = middleware::from_fn_with_state(api.clone(), auth::authenticate);
    let enrolled = middleware::from_fn_with_state(api.clone(), vaults::authenticate);
    let limited = middleware::from_fn_with_state(api.clone(), limits::by_device);
    let bounded = middleware::from_fn_with_state(api.clone(), long::bounded);
    let known = Router::from(known_routes().merge(vaults::token_router()))
        .layer(bounded.clone())
        .layer(limited.clone())
        .layer(known);
    let vaults = Router::from(vaults::router())
        .layer(bounded)
        .layer(limited)
        .layer(enrolled)
        .layer(DefaultBodyLimit::max(vaults::REQUEST_BYTES_MAX));
    Router::from(open_routes())
        .merge(known)
        .merge(vaults)
        .layer(middleware::from_fn_with_state(api.clone(), limits::by_address))
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(api)
}
