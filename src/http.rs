//! The HTTP API: what the Totals app speaks, on the same port as the native protocol.
//!
//! ```text
//! request ─> gateway ─> auth (who is it) ─> a route (what is asked) ─> actors (what is decided)
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
pub mod payloads;
pub mod push;
pub mod streams;
pub mod vaults;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use sealwire_actors::System;
use tokio::sync::watch;

pub use auth::Device;
pub use error::ApiError;

/// Longest body of a request, in bytes: a blob of [`sealwire_protocol::limits::BODY_BYTES_MAX`] in
/// hex is 512 KiB, and its recipients and field names have the rest.
pub const REQUEST_BYTES_MAX: usize = 640 * 1024;

/// What every handler can reach.
pub struct Api {
    /// Where everything is decided.
    pub system: Arc<System>,
    /// Becomes true when the relay is shutting down: streams end, and nothing new begins.
    pub draining: watch::Receiver<bool>,
}

/// Every route of the HTTP API.
pub fn router(api: Arc<Api>) -> Router {
    let known = middleware::from_fn_with_state(api.clone(), auth::authenticate);
    let authenticated = groups::router()
        .merge(payloads::router())
        .merge(streams::router())
        .merge(push::router())
        .layer(known);
    let vaults = vaults::router(&api);
    auth::router()
        .merge(authenticated)
        .merge(vaults)
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(api)
}
