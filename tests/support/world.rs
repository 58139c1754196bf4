//! A relay in the test's own process, whose store a test can look into.

use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use sealwire::client_address::TrustedProxies;
use sealwire::config::{AddressRequests, UnauthenticatedLimits};
use sealwire::relay::{Relay, RelayOptions};
use sealwire::store::{Lock, StoreOptions};
use sealwire::telemetry;
use sealwire_actors::ports::{LogRecord, Store, SystemClock};
use sealwire_actors::recovery::{RecoveryKey, RecoveryKeys};
use sealwire_actors::{Options, System};
use sealwire_client::address::RelayUrl;
use sealwire_protocol::LogId;
use sealwire_protocol::token::TokenKey;
use tokio::net::TcpListener;

use super::device::Device;
use super::eventually;
use super::place::{Database, Place};

/// A relay on a port of its own.
pub(crate) struct World {
    place: Place,
    relay: Option<Relay>,
    /// Where it listens; kept over a restart, so that devices find it again.
    address: SocketAddr,
    decide: Decide,
}

/// What an operator decides.
type Decide = Box<dyn Fn(&mut Options) + Send + Sync>;

impl World {
    pub(crate) async fn start(database: Database) -> Self {
        Self::start_with(database, |_| {}).await
    }

    /// A relay whose operator has decided something else than usual.
    pub(crate) async fn start_with(
        database: Database,
        decide: impl Fn(&mut Options) + Send + Sync + 'static,
    ) -> Self {
        let decide = Box::new(decide);
        let place = Place::new(database).await;
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut world = Self { place, relay: None, address: nowhere, decide };
        world.run().await;
        world
    }

    /// Starts the relay on its data.
    pub(crate) async fn run(&mut self) {
        let public = TcpListener::bind(self.address).await.expect("a port");
        self.address = public.local_addr().expect("an address");
        let relay_key = SigningKey::from_bytes(&[42; 32]);
        let mut actors = Options::new(relay_key, vec![TokenKey::derive(b"a secret of the tests")]);
        (self.decide)(&mut actors);
        let options = RelayOptions {
            store: StoreOptions {
                url: self.place.url().to_owned(),
                data_dir: self.place.data().to_owned(),
                lock: Lock::Wait,
            },
            actors,
            recovery_keys: RecoveryKeys {
                current: RecoveryKey::derive(b"another secret of the tests"),
                previous: None,
            },
            unauthenticated: generous(),
            address_requests: AddressRequests {
                rate: 100_000.try_into().expect("not zero"),
                burst: 100_000.try_into().expect("not zero"),
            },
            proxies: TrustedProxies::default(),
            connections_max: 1000,
            shutdown_deadline: Duration::from_secs(25),
            metrics: telemetry::metrics().expect("the process counts"),
        };
        let relay = Relay::start(options, Arc::new(SystemClock), public, None).await;
        self.relay = Some(relay.expect("the relay starts"));
    }

    /// Stops the relay in order.
    pub(crate) async fn stop(&mut self) {
        let relay = self.relay.take().expect("the relay runs");
        relay.shutdown().await.expect("the relay stops");
    }

    pub(crate) fn url(&self) -> RelayUrl {
        RelayUrl::parse(&format!("ws://{}", self.address)).expect("a URL")
    }

    /// Where its data is.
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        self.system().store()
    }

    /// Its actors.
    pub(crate) fn system(&self) -> &System {
        self.relay.as_ref().expect("the relay runs").system()
    }

    /// A connected device.
    pub(crate) async fn device(&self, seed: u8) -> Device {
        Device::connected(self.url(), seed).await
    }

    /// So many connected devices.
    pub(crate) async fn devices(&self, count: u8) -> Vec<Device> {
        let mut devices = Vec::new();
        for seed in 1..=count {
            devices.push(self.device(seed).await);
        }
        devices
    }

    /// What the store holds of a log.
    pub(crate) async fn stored(&self, log: LogId) -> LogRecord {
        let brief = self.store().find_log(log).await.expect("a store").expect("a log");
        let records = self.store().load(&[brief.key]).await.expect("a store");
        records.into_iter().next().flatten().expect("a log")
    }

    /// Whether the store has a log of this name.
    pub(crate) async fn has(&self, log: LogId) -> bool {
        self.store().find_log(log).await.expect("a store").is_some()
    }

    /// The seqs of a log whose bodies the store still has.
    pub(crate) async fn bodies(&self, log: LogId) -> Vec<u64> {
        self.stored(log).await.live.iter().map(|live| live.seq).collect()
    }

    /// Waits until the store has the bodies of these seqs and no others.
    pub(crate) async fn until_bodies(&self, log: LogId, seqs: &[u64]) {
        let what = format!("the store has the bodies of {seqs:?}");
        eventually(&what, async || self.bodies(log).await == seqs).await;
    }
}

fn generous() -> UnauthenticatedLimits {
    let many = NonZeroU32::new(100_000).expect("not zero");
    UnauthenticatedLimits {
        max: 10_000,
        per_address_max: 10_000,
        rate: many,
        burst: many,
        per_address_rate: many,
        per_address_burst: many,
    }
}
