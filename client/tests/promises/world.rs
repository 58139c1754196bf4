//! Devices with names, and waiting for what must happen.

use std::path::PathBuf;
use std::time::Duration;

use sealwire_client::address::RelayUrl;
use sealwire_client::backoff::Bounds;
use sealwire_client::device::{Device, Events, KeyKeeping, Options, Outgoing};
use sealwire_client::event::{Event, Received};
use sealwire_client::invite::Invite;
use sealwire_client::numbering::DraftId;
use sealwire_client::session::Connection;
use sealwire_protocol::{DeviceKey, LogId};
use tempfile::TempDir;
use tokio::time::{Instant, timeout};

use crate::relay::Relay;

/// How long anything may take that must happen. Far longer than it does.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) fn options() -> Options {
    Options {
        heartbeat: Duration::from_secs(25),
        backoff: Bounds { first: Duration::from_millis(5), max: Duration::from_millis(50) },
        watch_others: Some(Duration::from_millis(20)),
    }
}

/// A relay and the directories of devices.
pub(crate) struct World {
    pub(crate) relay: Relay,
    directories: TempDir,
}

/// A device, its events, and its connection while it is online.
pub(crate) struct Person {
    pub(crate) device: Device,
    pub(crate) directory: PathBuf,
    events: Events,
    connection: Option<Connection>,
    relay: RelayUrl,
}

impl World {
    pub(crate) async fn start() -> Self {
        Self { relay: Relay::start().await, directories: tempfile::tempdir().expect("a directory") }
    }

    /// A new device that is not connected.
    pub(crate) async fn offline(&self, name: &str) -> Person {
        let directory = self.directories.path().join(name);
        let device = Device::create(&directory, KeyKeeping::Unsealed, options())
            .await
            .expect("a new device");
        Person::new(device, directory, &self.relay.url).await
    }

    /// A new device that is connected.
    pub(crate) async fn online(&self, name: &str) -> Person {
        let mut person = self.offline(name).await;
        person.connect().await;
        person
    }

    /// Another process of a device.
    pub(crate) async fn process_of(&self, other: &Person) -> Person {
        let device = Device::open(&other.directory, None, options()).await.expect("a device");
        Person::new(device, other.directory.clone(), &self.relay.url).await
    }

    /// A copy of a device's directory, as a backup makes it.
    pub(crate) async fn copy_of(&self, other: &Person, name: &str) -> Person {
        let directory = self.directories.path().join(name);
        std::fs::create_dir(&directory).expect("a directory");
        for file in std::fs::read_dir(&other.directory).expect("files") {
            let file = file.expect("a file");
            std::fs::copy(file.path(), directory.join(file.file_name())).expect("copied");
        }
        let device = Device::open(&directory, None, options()).await.expect("a device");
        Person::new(device, directory, &self.relay.url).await
    }

    /// A group of these, all of whom hold its key; the first has founded it.
    pub(crate) async fn group(&self, people: &mut [&mut Person]) -> LogId {
        let (founder, others) = people.split_first_mut().expect("a founder");
        let log = founder.device.found_group(&self.relay.url).await.expect("founded");
        founder.device.wait_ready(log, SOON).await.expect("ready");
        for person in others {
            let invite = founder.device.invite(log).await.expect("an invite");
            person.join(&invite).await;
        }
        log
    }
}

impl Person {
    async fn new(device: Device, directory: PathBuf, relay: &RelayUrl) -> Self {
        let events = device.events().await.expect("events");
        Self { device, directory, events, connection: None, relay: relay.clone() }
    }

    pub(crate) fn key(&self) -> DeviceKey {
        self.device.key()
    }

    pub(crate) async fn connect(&mut self) {
        let connection = self.device.connect(&self.relay);
        connection.wait_connected(SOON).await.expect("connected");
        self.connection = Some(connection);
    }

    pub(crate) fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("online")
    }

    pub(crate) async fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.stop().await;
        }
    }

    pub(crate) async fn join(&mut self, invite: &Invite) {
        let log = self.device.join(invite).await.expect("joining");
        self.device.wait_ready(log, SOON).await.expect("ready");
    }

    pub(crate) async fn say(&self, log: LogId, text: &str) -> DraftId {
        self.device.send(log, Outgoing::to_all(text)).await.expect("sent")
    }

    pub(crate) async fn say_to(&self, log: LogId, to: &[&Person], text: &str) -> DraftId {
        let to: Vec<DeviceKey> = to.iter().map(|person| person.key()).collect();
        self.device.send(log, Outgoing::to(to, text)).await.expect("sent")
    }

    pub(crate) async fn appended(&self, id: DraftId) -> u64 {
        self.device.wait_appended(id, SOON).await.expect("appended")
    }

    /// Says something and waits until it is on the relay's disk.
    pub(crate) async fn say_for_good(&self, log: LogId, text: &str) -> u64 {
        let id = self.say(log, text).await;
        self.appended(id).await
    }

    /// The next event that `pick` takes; those before it are dropped.
    pub(crate) async fn event<T>(&mut self, what: &str, pick: impl Fn(&Event) -> Option<T>) -> T {
        let mut seen = Vec::new();
        let wait = async {
            loop {
                let event = self.events.next().await.expect("an event");
                if let Some(found) = pick(&event) {
                    return found;
                }
                seen.push(format!("{event:?}"));
            }
        };
        match timeout(SOON, wait).await {
            Ok(found) => found,
            Err(_) => panic!("no {what}, but:\n{}", seen.join("\n")),
        }
    }

    /// The next opened entry.
    pub(crate) async fn entry(&mut self) -> Received {
        self.event("entry", |event| {
            if let Event::Entry(received) = event { Some(received.clone()) } else { None }
        })
        .await
    }

    /// The text of the next opened entry.
    pub(crate) async fn hears(&mut self) -> String {
        String::from_utf8(self.entry().await.payload).expect("text")
    }

    /// Everything that waits in the inbox.
    pub(crate) async fn inbox(&self, log: LogId) -> Vec<String> {
        let received = self.device.inbox(Some(log), 1000).await.expect("an inbox");
        received
            .into_iter()
            .map(|received| String::from_utf8(received.payload).expect("text"))
            .collect()
    }

    pub(crate) async fn members(&self, log: LogId) -> Vec<DeviceKey> {
        let members = self.device.members(log).await.expect("members");
        members.into_iter().map(|member| member.device).collect()
    }

    /// Waits until as many as these are members.
    pub(crate) async fn sees_members(&self, log: LogId, people: &[DeviceKey]) {
        let mut expected = people.to_vec();
        expected.sort_unstable();
        let deadline = Instant::now() + SOON;
        while self.members(log).await != expected {
            if Instant::now() > deadline {
                let (members, info) = (self.members(log).await, self.device.log(log).await);
                panic!("it has {members:?} for {expected:?}: {info:?}");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until the group was read up to where the relay has it.
    pub(crate) async fn catches_up(&self, relay: &Relay, log: LogId) {
        until("reading to the end", async || {
            let info = self.device.log(log).await.expect("a log");
            info.head == Some(relay.head(log))
        })
        .await;
    }
}

/// Waits until something holds.
pub(crate) async fn until(what: &str, holds: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds().await {
        assert!(Instant::now() < deadline, "it never came to {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
