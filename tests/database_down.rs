//! When the database fails, senders are told to come back, sockets stay open, and everything goes on
//! when it is there again: no restart, nothing lost.

use std::process::Command;

use sealwire_protocol::frame::Ping;
use sealwire_protocol::{ErrorCode, Failure, Kind, LogId};
use sqlx::{Connection, Executor, SqliteConnection};

use crate::support::cluster::Cluster;
use crate::support::device::{Device, together};
use crate::support::eventually;
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;

/// Largest file that the relay may write while its disk is "full", in bytes.
const FULL_BYTES: u64 = 8 * 1024 * 1024;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgresql_that_is_stopped_is_waited_for() {
    let mut cluster = Cluster::start().await;
    let mut scene = Scene::new(RelayProcess::start(Place::beside(cluster.url()), &[]).await).await;
    cluster.stop_at_once().await;
    scene.is_unavailable().await;
    scene.says_that_it_is_not_ready().await;
    cluster.run().await;
    scene.recovers().await;

    // The same when it is stopped in order, and for a while that is longer than the store's deadline.
    cluster.stop_in_order().await;
    scene.is_unavailable().await;
    cluster.run().await;
    scene.recovers().await;
    assert!(scene.relay.stop().await.status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sqlite_that_somebody_else_holds_is_waited_for() {
    let place = Place::new(Database::Sqlite).await;
    let mut scene = Scene::new(RelayProcess::start(place, &[]).await).await;
    let mut other =
        SqliteConnection::connect(scene.relay.place().url()).await.expect("a connection");
    other.execute("begin immediate").await.expect("the lock");
    scene.is_unavailable().await;
    scene.says_that_it_is_not_ready().await;
    other.execute("rollback").await.expect("no lock");
    other.close().await.expect("closed");
    scene.recovers().await;
    assert!(scene.relay.stop().await.status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_is_full_is_waited_for() {
    let place = Place::new(Database::Sqlite).await;
    let mut relay = RelayProcess::prepare(place, &[]);
    relay.limit_files(FULL_BYTES);
    relay.run().await;
    let mut scene = Scene::new(relay).await;
    let body = vec![6; 200 * 1024];
    let mut written = 0;
    let failure = loop {
        match scene.try_append(&body).await {
            Ok(()) => written += body.len() as u64,
            Err(failure) => break failure,
        }
        assert!(written < 4 * FULL_BYTES, "the disk is never full");
    };
    assert_eq!(failure.code, ErrorCode::Unavailable);
    assert!(failure.retry_after_ms.is_some());
    scene.says_that_it_is_not_ready().await;
    scene.sockets_are_open().await;
    let id = scene.relay.id().to_string();
    let raised = Command::new("prlimit").args(["--pid", &id, "--fsize=unlimited"]).status();
    assert!(raised.expect("prlimit runs").success());
    scene.recovers().await;
    assert!(scene.relay.stop().await.status.success());
}

/// A relay, and two devices in a group.
struct Scene {
    relay: RelayProcess,
    writer: Device,
    reader: Device,
    log: LogId,
    appended: Vec<Vec<u8>>,
}

impl Scene {
    async fn new(relay: RelayProcess) -> Self {
        let mut devices =
            vec![Device::connected(relay.url(), 1).await, Device::connected(relay.url(), 2).await];
        let log = together(&mut devices).await.log;
        let (reader, writer) = (devices.pop().expect("two"), devices.pop().expect("two"));
        let mut scene = Self { relay, writer, reader, log, appended: Vec::new() };
        scene.try_append(b"before").await.expect("appended");
        scene
    }

    /// Appends an entry. If it is refused, the same entry is sent by the next call of
    /// [`Scene::recovers`].
    async fn try_append(&mut self, body: &[u8]) -> Result<(), Failure> {
        let before = self.writer.view(self.log).own;
        let signed = self.writer.sign(self.log, Kind::Ring, &[], body);
        let answer = self.writer.send_signed(&signed).await;
        if answer.is_err() {
            self.writer.view_mut(self.log).own = before;
        } else {
            self.appended.push(body.to_vec());
        }
        answer.map(|_| ())
    }

    /// Appends are refused for now, and the sockets stay open.
    async fn is_unavailable(&mut self) {
        let body = format!("entry {}", self.appended.len());
        let failure = self.try_append(body.as_bytes()).await.expect_err("unavailable");
        assert_eq!(failure.code, ErrorCode::Unavailable);
        assert!(failure.retry_after_ms.is_some_and(|wait| (100..=5000).contains(&wait)));
        self.sockets_are_open().await;
    }

    async fn sockets_are_open(&mut self) {
        for device in [&mut self.writer, &mut self.reader] {
            device.request(Ping {}).await.expect("a heartbeat");
        }
    }

    async fn says_that_it_is_not_ready(&self) {
        eventually("the relay says that it is not ready", async || self.ready().await == 503).await;
    }

    async fn ready(&self) -> u16 {
        self.relay.ask("/ready").await.expect("the operator is answered").status
    }

    /// The same connections go on, and everything that was appended is there, once and in order.
    async fn recovers(&mut self) {
        let body = format!("entry {}", self.appended.len()).into_bytes();
        let signed = self.writer.sign(self.log, Kind::Ring, &[], &body);
        let mut seq = 0;
        eventually("appends go on", async || match self.writer.send_signed(&signed).await {
            Ok(appended) => {
                seq = appended.seq;
                true
            }
            Err(failure) => {
                assert_eq!(failure.code, ErrorCode::Unavailable);
                false
            }
        })
        .await;
        self.appended.push(body);
        self.reader.read_to(self.log, seq).await;
        assert_eq!(self.reader.view(self.log).bodies(), self.appended);
        eventually("the relay says that it is ready", async || self.ready().await == 200).await;
    }
}
