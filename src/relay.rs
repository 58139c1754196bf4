//! A running relay: its parts wired together, started in order and stopped in order.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use sealwire_actors::ports::{Clock, StoreError};
use sealwire_actors::push::TestRing;
use sealwire_actors::recovery::{Recovery, RecoveryKeys};
use sealwire_actors::{Options, StartError, System};
use sealwire_protocol::DeviceKey;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::client_address::{AddressLimits, TrustedProxies};
use crate::config::{AddressRequests, UnauthenticatedLimits};
use crate::gateway::{self, Gateway};
use crate::http::limits::RequestLimits;
use crate::http::long::Room;
use crate::http::{self, Api};
use crate::listener::{Slots, accept_until};
use crate::operator::answer::with_json_fallbacks;
use crate::operator::connection::{self, OPERATOR_CONNECTIONS_MAX};
use crate::operator::{Observed, Operator, Stats};
use crate::store::{self, OpenError, OpenStore, Standing, StoreOptions};
use crate::telemetry::Metrics;

/// What a relay is started with.
pub struct RelayOptions {
    /// Where its store is.
    pub store: StoreOptions,
    /// What its actors are told.
    pub actors: Options,
    /// What finds recovery vaults.
    pub recovery_keys: RecoveryKeys,
    /// What holds strangers back.
    pub unauthenticated: UnauthenticatedLimits,
    /// How much may be asked over HTTP from one address.
    pub address_requests: AddressRequests,
    /// The proxies whose word about addresses is believed.
    pub proxies: TrustedProxies,
    /// Most connections at the same time.
    pub connections_max: usize,
    /// How long a shutdown may take.
    pub shutdown_deadline: Duration,
    /// What the process counts.
    pub metrics: Metrics,
}

/// Why a relay could not be started.
#[derive(Debug, Error)]
pub enum RelayError {
    /// The store could not be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The actors could not be started.
    #[error(transparent)]
    Actors(#[from] StartError),
    /// A listener has no address.
    #[error("the listener has no address: {0}")]
    Listener(#[from] io::Error),
}

/// A relay that serves.
pub struct Relay {
    system: Arc<System>,
    store: OpenStore,
    gateway: Arc<Gateway>,
    address: SocketAddr,
    draining: watch::Sender<bool>,
    accepting: Vec<JoinHandle<()>>,
    upkeep: JoinHandle<()>,
    shutdown_deadline: Duration,
}

impl Relay {
    /// Opens the store (waiting for its lock, as a hot standby, if another relay serves it), starts
    /// the actors, and accepts connections.
    ///
    /// # Errors
    /// [`RelayError`]; nothing is left running.
    pub async fn start(
        options: RelayOptions,
        clock: Arc<dyn Clock>,
        public: TcpListener,
        operator: Option<TcpListener>,
    ) -> Result<Self, RelayError> {
        let address = public.local_addr()?;
        let (draining, drain) = watch::channel(false);
        let mut accepting = Vec::new();
        let view = Arc::new(View { system: OnceLock::new(), metrics: options.metrics.clone() });
        let watch = Operator::new(view.clone());
        if let Some(listener) = operator {
            // A standby waits for the store for as long as it takes, and says so meanwhile.
            accepting.push(accept_operator(listener, watch.operator_routes(), drain.clone()));
        }
        let store = store::open(&options.store).await?;
        for warning in store.warnings() {
            tracing::warn!("{warning}");
        }
        let system = Arc::new(System::start(store.store(), clock, options.actors).await?);
        view.system.get_or_init(|| system.clone());
        let recovery = Recovery::new(&system, options.recovery_keys);
        tell_of_other_secrets(&recovery).await;
        let limits = Arc::new(AddressLimits::new(&options.unauthenticated));
        let requests = RequestLimits::new(options.address_requests, options.proxies.clone());
        let gateway =
            Arc::new(Gateway::new(system.clone(), limits.clone(), options.proxies, drain.clone()));
        let api = Arc::new(Api {
            system: system.clone(),
            limits: requests,
            room: Room::default(),
            recovery,
            draining: drain.clone(),
        });
        let requests = api.clone();
        let routes = watch.public_routes().merge(gateway.clone().route()).merge(http::router(api));
        let routes = with_json_fallbacks(routes);
        let slots = Slots::new(options.connections_max);
        accepting.push(accept_devices(public, slots, gateway.clone(), routes, drain));
        let upkeep = tokio::spawn(async move {
            tokio::join!(
                limits.keep_swept(),
                requests.limits.keep_swept(),
                options.metrics.keep_up()
            );
        });
        Ok(Self {
            system,
            store,
            gateway,
            address,
            draining,
            accepting,
            upkeep,
            shutdown_deadline: options.shutdown_deadline,
        })
    }

    /// Where devices connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The relay's actors.
    #[must_use]
    pub fn system(&self) -> &System {
        &self.system
    }

    /// Resolves when the relay must end and be started anew: another one has served its store, so
    /// that what it remembers is another past; or its actors have ended, which only a bug makes them
    /// do.
    pub fn superseded(&self) -> impl Future<Output = ()> + use<> {
        let mut standing = self.store.standing();
        let ended = self.system.ended();
        async move {
            let taken_over = async {
                // If the store has closed, nobody has taken it over.
                if standing.wait_for(|now| *now == Standing::Superseded).await.is_err() {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = taken_over => {}
                () = ended => {}
            }
        }
    }

    /// Stops in order: no new connections; sessions are asked to come back later; their requests and
    /// those over HTTP are answered; acks are flushed; the store is closed.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] if the store did not close within the deadline. Nothing that was
    /// answered is in doubt.
    pub async fn shutdown(self) -> Result<(), StoreError> {
        let deadline = Instant::now() + self.shutdown_deadline;
        self.draining.send_replace(true);
        for accepting in self.accepting {
            let _ = timeout_at(deadline, accepting).await;
        }
        self.upkeep.abort();
        let http = deadline.min(Instant::now() + HTTP_DEADLINE);
        let (_, ()) = tokio::join!(
            timeout_at(http, self.gateway.http_ended()),
            self.system.drain_sessions(deadline),
        );
        // So do acks that logs hold, however long sessions took.
        self.system.stop(deadline.max(Instant::now() + FLUSH_SHARE)).await;
        // Closing has a share of its own: it checkpoints, and must not be cut short by slow devices.
        let left = deadline.saturating_duration_since(Instant::now());
        self.store.close(left.max(CLOSE_SHARE)).await
    }
}

/// Says which recovery vaults depend on a secret that is about to go, or has gone.
async fn tell_of_other_secrets(recovery: &Recovery) {
    let Ok((older, lost)) = recovery.under_other_secrets().await else {
        return tracing::warn!("whether all recovery vaults can be found could not be asked");
    };
    if older > 0 {
        tracing::info!(vaults = older, "recovery vaults still need the previous recovery secret");
    }
    if lost > 0 {
        tracing::warn!(vaults = lost, "no recovery secret that is set finds these recovery vaults");
    }
}

/// How long requests over HTTP that are under way may hold up a shutdown: as long as the store may
/// take to answer one.
const HTTP_DEADLINE: Duration = Duration::from_secs(10);

/// The least time that logs are given to write what they hold.
const FLUSH_SHARE: Duration = Duration::from_secs(1);

/// The least time that the store is given to close.
const CLOSE_SHARE: Duration = Duration::from_secs(5);

/// What the operator may see of this relay.
struct View {
    /// Nothing while the relay waits for its store.
    system: OnceLock<Arc<System>>,
    metrics: Metrics,
}

#[async_trait]
impl Observed for View {
    async fn ready(&self) -> bool {
        match self.system.get() {
            Some(system) => system.is_alive() && system.store().ready().await.is_ok(),
            None => false,
        }
    }

    async fn stats(&self) -> Option<Stats> {
        let system = self.system.get()?;
        let stats = system.store().stats().await.ok()?;
        Some(Stats {
            groups: stats.groups,
            vaults: stats.vaults,
            memberships: stats.memberships,
            entries: stats.entries,
            undelivered: stats.undelivered,
            sessions: system.registry().session_count() as u64,
        })
    }

    fn metrics(&self) -> String {
        if let Some(system) = self.system.get() {
            system.look();
        }
        self.metrics.render()
    }

    async fn ring(&self, device: DeviceKey) -> Option<TestRing> {
        self.system.get()?.ring_for_test(device).await.ok()
    }
}

fn accept_devices(
    listener: TcpListener,
    slots: Slots,
    gateway: Arc<Gateway>,
    routes: Router,
    drain: watch::Receiver<bool>,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        accept_until(listener, slots, drained(drain), |accepted| {
            tokio::spawn(gateway::serve_connection(accepted, gateway.clone(), routes.clone()));
        })
        .await;
    })
}

fn accept_operator(
    listener: TcpListener,
    routes: Router,
    drain: watch::Receiver<bool>,
) -> JoinHandle<()> {
    let slots = Slots::uncounted(OPERATOR_CONNECTIONS_MAX);
    tokio::spawn(async move {
        accept_until(listener, slots, drained(drain.clone()), |accepted| {
            let closing = drained(drain.clone());
            tokio::spawn(connection::serve(accepted, routes.clone(), closing));
        })
        .await;
    })
}

/// Resolves when the relay is shutting down, or is gone.
async fn drained(mut drain: watch::Receiver<bool>) {
    let _ = drain.wait_for(|draining| *draining).await;
}
