//! A session that panics costs its device a connection, and nobody else anything.
//!
//! No database panics when it is told to, so the store is the one in memory. Everything in front of it is
//! the relay's own, up to real sockets.

use std::future::pending;
use std::sync::Arc;

use ed25519_dalek::SigningKey;
use sealwire::client_address::{AddressLimits, TrustedProxies};
use sealwire::config::UnauthenticatedLimits;
use sealwire::gateway::{Gateway, serve_connection};
use sealwire::listener::{Slots, accept_until};
use sealwire::telemetry;
use sealwire_actors::fakes::MemoryStore;
use sealwire_actors::ports::{LogKey, Store, SystemClock};
use sealwire_actors::{Options, System};
use sealwire_client::address::RelayUrl;
use sealwire_client::wire::WireError;
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::frame::{ListMembers, Subscribe};
use sealwire_protocol::token::TokenKey;
use sealwire_protocol::{ClientFrame, LogId};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::support::device::{Device, together};
use crate::support::eventually;
use crate::support::http::metric;

/// A relay over a store in memory, with room for so many connections and for one stranger.
struct Scene {
    store: Arc<MemoryStore>,
    system: Arc<System>,
    slots: Slots,
    url: RelayUrl,
    /// Without it the relay would be gone.
    _draining: watch::Sender<bool>,
}

impl Scene {
    async fn new(connections_max: usize) -> Self {
        telemetry::metrics().expect("the process counts");
        let store = Arc::new(MemoryStore::new());
        let tokens = vec![TokenKey::derive(b"a secret of the tests")];
        let options = Options::new(SigningKey::from_bytes(&[42; 32]), tokens);
        let system = System::start(store.clone(), Arc::new(SystemClock), options).await;
        let system = Arc::new(system.expect("actors start"));
        let many = 1000.try_into().expect("not zero");
        let limits = AddressLimits::new(&UnauthenticatedLimits {
            max: 1,
            per_address_max: 1,
            rate: many,
            burst: many,
            per_address_rate: many,
            per_address_burst: many,
        });
        let (sender, draining) = watch::channel(false);
        let proxies = TrustedProxies::default();
        let gateway = Arc::new(Gateway::new(system.clone(), Arc::new(limits), proxies, draining));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let slots = Slots::new(connections_max);
        let (places, routes) = (slots.clone(), gateway.clone().route());
        tokio::spawn(async move {
            accept_until(listener, places, pending(), |accepted| {
                tokio::spawn(serve_connection(accepted, gateway.clone(), routes.clone()));
            })
            .await;
        });
        let url = RelayUrl::parse(&format!("ws://{address}")).expect("a URL");
        Self { store, system, slots, url, _draining: sender }
    }

    async fn key(&self, log: LogId) -> LogKey {
        self.store.find_log(log).await.expect("a store").expect("a log").key
    }

    /// Waits until there are so many sessions, and as many places for connections are taken.
    async fn until_sessions(&self, count: usize, free: usize) {
        eventually("what a session held is free", async || {
            let places: Vec<_> = std::iter::from_fn(|| self.slots.take()).collect();
            self.system.registry().session_count() == count && places.len() == free
        })
        .await;
    }
}

/// Sessions and connections that have ended by a bug of the relay.
fn bugs() -> f64 {
    let metrics = telemetry::metrics().expect("the process counts").render();
    ["sealwire_sessions_ended_total", "sealwire_connections_refused_total"]
        .iter()
        .map(|name| metric(&metrics, name, "reason=\"internal\""))
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_panics_ends_and_nobody_else_notices() {
    let scene = Scene::new(3).await;
    let mut devices = Vec::new();
    for seed in 1..=3 {
        devices.push(Device::connected(scene.url.clone(), seed).await);
    }
    let log = together(&mut devices).await.log;
    let key = scene.key(log).await;
    let [alice, bob, carol] = devices.as_mut_slice() else { panic!("three devices") };
    carol.follow(log).await;
    scene.until_sessions(3, 0).await;
    // In what a session is asked, and in a page that is read for it.
    let subscribe = Subscribe { log, cursor: None, acked: None };
    let asked: [ClientFrame; 2] = [ListMembers { log }.into(), subscribe.into()];
    for (number, frame) in (1..).zip(asked) {
        let before = bugs();
        scene.store.panic_on_reads(key);
        bob.send(frame).await;
        let during = alice.append(log, b"during").await.seq;
        carol.read_to(log, during).await;
        assert_eq!(bob.until_closed().await, WireError::Closed(Some(CloseReason::Internal)));
        scene.until_sessions(2, 1).await;
        assert_eq!(bugs() - before, 1.0);
        scene.store.heal(key);

        let after = alice.append(log, b"after").await.seq;
        carol.read_to(log, after).await;
        *bob = Device::connected(scene.url.clone(), 2).await;
        bob.follow(log).await;
        assert_eq!(bob.view(log).bodies().len(), 2 * number);
        scene.until_sessions(3, 0).await;
    }
    let told = alice.told.iter().chain(&carol.told);
    assert!(told.into_iter().all(|frame| frame.name() == "Membership"), "nobody else was told");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_panics_before_it_is_a_session_gives_its_place_back() {
    let scene = Scene::new(2).await;
    let mut alice = Device::connected(scene.url.clone(), 1).await;
    let log = alice.found().await.log;
    let mut bob = Device::new(scene.url.clone(), 2);
    scene.store.panic_on_arrival(bob.key(), true);
    let before = bugs();
    for _ in 0..3 {
        // There is one place for strangers: it must be free again for the next try.
        let refused = bob.try_connect().await.map(|_| ());
        assert_eq!(refused, Err(WireError::Closed(Some(CloseReason::Internal))));
        scene.until_sessions(1, 1).await;
    }
    assert_eq!(bugs() - before, 3.0);
    scene.store.panic_on_arrival(bob.key(), false);
    bob.connect().await;
    alice.append(log, b"undisturbed").await;
    scene.until_sessions(2, 0).await;
}
