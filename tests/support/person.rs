//! A person with a device: the real SDK, its file, its outbox, its connection.

use std::fs;
use std::time::Duration;

use sealwire_client::address::RelayUrl;
use sealwire_client::backoff::Bounds;
use sealwire_client::device::{Device, Events, KeyKeeping, Options, Outgoing};
use sealwire_client::error::Error;
use sealwire_client::event::Event;
use sealwire_client::recovery::RecoveryCode;
use sealwire_client::session::Connection;
use sealwire_protocol::{DeviceKey, LogId};
use tempfile::TempDir;
use tokio::time::timeout;

use super::DEADLINE;

/// A relay that is started again is found soon.
fn options() -> Options {
    let backoff = Bounds { first: Duration::from_millis(20), max: Duration::from_millis(200) };
    Options { backoff, watch_others: None, ..Options::default() }
}

/// A person with one device.
pub(crate) struct Person {
    directory: TempDir,
    pub(crate) device: Device,
    events: Events,
    /// Everything that the device has told, in order.
    pub(crate) told: Vec<Event>,
    connection: Option<Connection>,
}

impl Person {
    /// A person with a new device.
    pub(crate) async fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let made = Device::create(directory.path(), KeyKeeping::Unsealed, options()).await;
        Self::with(directory, made.expect("a device")).await
    }

    /// A person who comes back with a code and a PIN.
    pub(crate) async fn restored(
        relay: &RelayUrl,
        code: &RecoveryCode,
        pin: &str,
    ) -> Result<Self, Error> {
        let directory = tempfile::tempdir().expect("a directory");
        let made =
            Device::restore(directory.path(), KeyKeeping::Unsealed, relay, code, pin, options())
                .await?;
        Ok(Self::with(directory, made).await)
    }

    async fn with(directory: TempDir, device: Device) -> Self {
        let events = device.events().await.expect("events");
        Self { directory, device, events, told: Vec::new(), connection: None }
    }

    pub(crate) fn key(&self) -> DeviceKey {
        self.device.key()
    }

    /// The seed of the device's key.
    pub(crate) fn seed(&self) -> Vec<u8> {
        let text = fs::read_to_string(self.directory.path().join("device.key")).expect("a key");
        let digits = text.lines().find_map(|line| line.strip_prefix("clear ")).expect("in clear");
        hex::decode(digits).expect("digits")
    }

    /// Connects and stays connected.
    pub(crate) async fn connect(&mut self, relay: &RelayUrl) {
        let connection = self.device.connect(relay);
        connection.wait_connected(DEADLINE).await.expect("connected");
        self.connection = Some(connection);
    }

    /// Goes offline.
    pub(crate) async fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.stop().await;
        }
    }

    /// Founds a group at a relay that it is connected to.
    pub(crate) async fn found(&self, relay: &RelayUrl) -> LogId {
        let log = self.device.found_group(relay).await.expect("founded");
        self.device.wait_ready(log, DEADLINE).await.expect("ready");
        log
    }

    /// Is invited by somebody and joins.
    pub(crate) async fn join(&self, host: &Self, log: LogId) {
        let invite = host.device.invite(log).await.expect("an invite");
        self.device.join(&invite).await.expect("joining");
        self.device.wait_ready(log, DEADLINE).await.expect("in the group, with its key");
    }

    /// Says something to all, and waits until the relay has it.
    pub(crate) async fn say(&self, log: LogId, words: &str) -> u64 {
        let id = self.device.send(log, Outgoing::to_all(words)).await.expect("in the outbox");
        self.device.wait_appended(id, DEADLINE).await.expect("appended")
    }

    /// Listens until a condition holds.
    pub(crate) async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        let held = async {
            while !condition(self) {
                let event = self.events.next().await.expect("an event");
                self.told.push(event);
            }
        };
        timeout(DEADLINE, held).await.unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    /// Listens until it has heard these words.
    pub(crate) async fn hears(&mut self, log: LogId, words: &str) {
        let what = format!("heard {words:?}");
        self.until(&what, |person| person.heard(log).iter().any(|heard| heard == words)).await;
    }

    /// What it has heard in a group, in order.
    pub(crate) fn heard(&self, log: LogId) -> Vec<String> {
        self.told
            .iter()
            .filter_map(|event| match event {
                Event::Entry(received) if received.log == log => {
                    Some(String::from_utf8_lossy(&received.payload).into_owned())
                }
                _ => None,
            })
            .collect()
    }

    /// Waits until the device has read a group up to `seq`.
    pub(crate) async fn reads_to(&self, log: LogId, seq: u64) {
        super::eventually("the group is read", async || {
            let info = self.device.log(log).await.expect("a group");
            info.head.is_some_and(|head| head.seq >= seq)
        })
        .await;
    }
}
