//! Small writes that are no part of a log's order, each in its turn in a committer's queue.
//!
//! On SQLite there is one writer, so whoever wrote beside the committer would only wait for it, and
//! make it wait. Here a write waits in the queue like everything else, with a deadline.
//!
//! Holds always: a write whose asker has given up waiting is not begun.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::oneshot;

use crate::ports::{LogKey, Store, StoreError};
use crate::session::ask;
use crate::system::Shared;

/// A write under way.
pub(crate) type Writing<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

/// Runs a write in the queue of a committer and waits for its result. The write must have a deadline
/// of its own ([`ask`]): the committer waits for it.
pub(crate) async fn run_job<T: Send + 'static>(
    shared: &Shared,
    work: impl FnOnce(Arc<dyn Store>) -> Writing<T> + Send + 'static,
) -> Result<T, StoreError> {
    let (done, result) = oneshot::channel::<Result<T, StoreError>>();
    let queued = shared.committer(LogKey(0)).job(Box::new(move |store| {
        // Nobody waits for it any more: the device was told to come back, and doing it now would
        // only keep others waiting.
        let work = (!done.is_closed()).then(|| work(store));
        Box::pin(async move {
            if let Some(work) = work {
                // The asker may go meanwhile; the write stands all the same.
                let _ = done.send(work.await);
            }
        })
    }));
    if !queued {
        return Err(StoreError::Unavailable);
    }
    ask(async { result.await.unwrap_or(Err(StoreError::Unavailable)) }).await
}
