//! One HTTP connection of the operator, from its first byte to its last.
//!
//! Every wait ends: a head that does not come, an answer that is not read, a connection that is kept
//! open for ever.

use std::future::Future;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::time::timeout;

use crate::listener::Accepted;

/// Most connections of the operator at once: several monitors, each with some.
pub const OPERATOR_CONNECTIONS_MAX: usize = 64;

/// How long the head of a request may take, the pause before it included.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// How long a connection may last: long enough for a monitor that asks every 15 seconds to keep it.
const CONNECTION_DEADLINE: Duration = Duration::from_secs(300);

/// Longest head of a request, in bytes; monitors send a few hundred.
const HEAD_BYTES_MAX: usize = 16 * 1024;

/// Answers requests on this connection until it ends or `closing` is ready; then the one under way
/// is still answered.
pub async fn serve(accepted: Accepted, router: Router, closing: impl Future<Output = ()>) {
    let Accepted { stream, peer: _, slot } = accepted;
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let until_closed = async {
        tokio::pin!(connection);
        // Whatever went wrong on the operator's connection, the operator sees it on his own side.
        tokio::select! {
            _ = connection.as_mut() => return,
            () = closing => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    };
    let _ = timeout(CONNECTION_DEADLINE, until_closed).await;
    drop(slot);
}
