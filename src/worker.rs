//! Retention in a process of its own, beside the relays of one PostgreSQL database: `sealwire worker`.
//!
//! It serves no device. Its only listener is the operator's: whether it works, and what it has counted.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use sealwire_actors::limits::RETENTION_PAUSE;
use sealwire_actors::ports::Clock;
use sealwire_actors::worker::Worker;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::listener::{Slots, accept_until};
use crate::operator::connection::{self, OPERATOR_CONNECTIONS_MAX};
use crate::operator::{Observed, Operator, Stats};
use crate::store::{OpenError, OpenResting, StoreOptions, open_resting};
use crate::telemetry::Metrics;

/// How long the worker may take to close its connections.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);

/// What a worker is started with.
pub struct WorkerOptions {
    /// Where the store is.
    pub store: StoreOptions,
    /// How long a group keeps what nobody has acked; the same as the relay's.
    pub body_lifetime: Duration,
    /// What the process counts.
    pub metrics: Metrics,
}

/// Works until `stop`: waits for the lock for retention, then takes step after step.
///
/// # Errors
/// [`OpenError`] if the store could not be opened or closed.
pub async fn run(
    options: WorkerOptions,
    clock: Arc<dyn Clock>,
    operator: TcpListener,
    stop: impl Future<Output = ()>,
) -> Result<(), OpenError> {
    let (ending, end) = watch::channel(false);
    let view = Arc::new(View { holding: OnceLock::new(), metrics: options.metrics.clone() });
    let accepting = accept_operator(operator, &Operator::new(view.clone()), end);
    let metrics = options.metrics.clone();
    let upkeep = tokio::spawn(async move { metrics.keep_up().await });
    let mut stop = std::pin::pin!(stop);
    let opened = tokio::select! {
        () = &mut stop => None,
        opened = open_resting(&options.store) => Some(opened),
    };
    let outcome = match opened {
        None => Ok(()),
        Some(Err(error)) => Err(error),
        Some(Ok(store)) => {
            view.holding.get_or_init(|| store.holding());
            info!("working");
            tokio::select! {
                () = &mut stop => {}
                () = work(&store, clock, options.body_lifetime) => {}
            }
            info!("stopping");
            store.close(CLOSE_DEADLINE).await.map_err(OpenError::from)
        }
    };
    ending.send_replace(true);
    let _ = accepting.await;
    upkeep.abort();
    outcome
}

/// Steps, for ever. A step that is cut off by the end has been undone by the database.
async fn work(store: &OpenResting, clock: Arc<dyn Clock>, body_lifetime: Duration) {
    let mut worker = Worker::new(store.logs(), clock, body_lifetime);
    let mut holding = store.holding();
    loop {
        // An error says that the store is gone, and with it this task.
        let _ = holding.wait_for(|holding| *holding).await;
        match worker.step().await {
            Ok(stepped) => {
                if stepped.logs + stepped.rows > 0 {
                    info!(logs = stepped.logs, rows = stepped.rows, "retention took a step");
                }
            }
            Err(error) => warn!(%error, "a step of retention failed and is taken again"),
        }
        sleep(RETENTION_PAUSE).await;
    }
}

/// What the operator may see of a worker.
struct View {
    /// Nothing while the worker waits for the lock.
    holding: OnceLock<watch::Receiver<bool>>,
    metrics: Metrics,
}

#[async_trait]
impl Observed for View {
    async fn ready(&self) -> bool {
        self.holding.get().is_some_and(|holding| *holding.borrow())
    }

    async fn stats(&self) -> Option<Stats> {
        None
    }

    fn metrics(&self) -> String {
        self.metrics.render()
    }
}

fn accept_operator(
    listener: TcpListener,
    operator: &Operator,
    end: watch::Receiver<bool>,
) -> JoinHandle<()> {
    let slots = Slots::uncounted(OPERATOR_CONNECTIONS_MAX);
    let routes = operator.operator_routes();
    tokio::spawn(async move {
        accept_until(listener, slots, ended(end.clone()), |accepted| {
            tokio::spawn(connection::serve(accepted, routes.clone(), ended(end.clone())));
        })
        .await;
    })
}

/// Resolves when the worker ends, or is gone.
async fn ended(mut end: watch::Receiver<bool>) {
    let _ = end.wait_for(|ending| *ending).await;
}
