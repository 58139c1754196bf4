//! What a store does beside serving: one task from opening to closing.
//!
//! It writes the gathered days of devices and notes the newest head every second, and raises the counter
//! every hour, while the
//! database's own work ([`Aside`]: SQLite's checkpoints, PostgreSQL's lock) goes on beside it. When
//! told to stop, it finishes all of that and closes the connections; it holds the relay's lock until
//! then.
//!
//! Holds always: the lock is given up after the last write, never before.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sqlx::Executor;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{error, warn};

use super::Standing;
use super::dialect::Dialect;
use super::sql_store::{Count, SqlStore};

/// How often gathered days are written.
const TICK: Duration = Duration::from_secs(1);

/// How often the counter is raised between start and end: a copy that is put back is noticed if it is
/// older than this.
const RAISE_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// What a database needs done all the time.
#[async_trait]
pub(super) trait Aside<D: Dialect>: Send {
    /// Does it, for ever.
    async fn run(&mut self, store: &SqlStore<D>) -> Infallible;

    /// The last of it, after all other connections have been closed.
    async fn end(self: Box<Self>);
}

/// Keeps house until told to stop, or until whoever could tell is gone.
pub(super) async fn keep<D: Count>(
    store: Arc<SqlStore<D>>,
    mut aside: Box<dyn Aside<D>>,
    mut stop: oneshot::Receiver<()>,
) where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    {
        let mut beside = pin!(aside.run(&store));
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut raised = Instant::now();
        let mut noting = true;
        loop {
            tokio::select! {
                _ = &mut stop => break,
                never = &mut beside => match never {},
                _ = ticks.tick() => {
                    // A day that could not be noted is noted when the device is here again.
                    let _ = store.flush_touches().await;
                    note_head(&store, &mut noting).await;
                    if raised.elapsed() >= RAISE_INTERVAL {
                        raised = Instant::now();
                        raise(&store).await;
                    }
                }
            }
        }
    }
    let _ = store.flush_touches().await;
    note_head(&store, &mut true).await;
    raise(&store).await;
    store.lanes.close().await;
    aside.end().await;
}

/// Notes the newest head, and says once that it cannot be done.
async fn note_head<D: Count>(store: &SqlStore<D>, noting: &mut bool)
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    match store.tenure.note_head().await {
        Ok(()) => *noting = true,
        Err(failure) if std::mem::replace(noting, false) => {
            warn!(%failure, "the newest head was not noted beside the witness");
        }
        Err(_) => {}
    }
}

async fn raise<D: Count>(store: &SqlStore<D>)
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    if *store.standing.borrow() != Standing::Serving {
        return;
    }
    match store.tenure.raise(&store.lanes).await {
        Ok(true) => {}
        Ok(false) => {
            error!("another relay has served this store although this one held the lock");
            store.standing.send_replace(Standing::Superseded);
        }
        Err(failure) => warn!(%failure, "the store's counter was not raised"),
    }
}
