//! When an older copy of the database is put back, devices are told, and nothing is skipped silently.

use sealwire_client::entry::Signed;
use sealwire_protocol::frame::{Ack, AckState, Ping};
use sealwire_protocol::{ErrorCode, Head, Kind, LogId};

use crate::support::backup::Backup;
use crate::support::cluster::Cluster;
use crate::support::device::{Device, together};
use crate::support::on_both_databases;
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;

on_both_databases!(
    devices_are_told_of_an_older_copy_when_the_operator_says_so,
    an_older_copy_is_noticed_when_nobody_says_so,
    a_copy_of_the_same_run_is_noticed,
    a_copy_that_nobody_notices_deceives_no_device_and_frees_nothing,
);

/// Entries that the copy has beside those that made the group.
const KEPT: u64 = 9;

/// Entries that were written after the copy was made.
const LOST: u64 = 5;

/// Entries that are written when the copy has been put back: more than were lost.
const NEW: u64 = 8;

/// A group with three devices, and entries that a copy of the database misses.
struct Story {
    relay: RelayProcess,
    devices: Vec<Device>,
    log: LogId,
    copied: Head,
    lost: Vec<Signed>,
}

async fn devices_are_told_of_an_older_copy_when_the_operator_says_so(database: Database) {
    let mut story = Story::begin(Place::new(database).await).await;
    let backup = Backup::of(story.relay.place()).await;
    story.write_what_is_lost().await;
    story.relay.kill();
    backup.put_back(story.relay.place()).await;
    story.relay.command("restored").await;
    story.goes_on(true).await;
}

async fn an_older_copy_is_noticed_when_nobody_says_so(database: Database) {
    let mut story = Story::begin(Place::new(database).await).await;
    let backup = Backup::of(story.relay.place()).await;
    story.write_what_is_lost().await;
    assert!(story.relay.stop().await.status.success());
    backup.put_back(story.relay.place()).await;
    story.goes_on(true).await;
}

/// A copy that was made in the run that was killed has the same counter: what was committed since is
/// what tells.
async fn a_copy_of_the_same_run_is_noticed(database: Database) {
    let mut story = Story::begin(Place::new(database).await).await;
    let backup = Backup::of(story.relay.place()).await;
    story.write_what_is_lost().await;
    story.relay.until_noted(3 + KEPT + LOST).await;
    story.relay.kill();
    backup.put_back(story.relay.place()).await;
    story.goes_on(true).await;
}

/// The same on a machine where nothing tells: the incarnation stays, and the chains alone speak.
async fn a_copy_that_nobody_notices_deceives_no_device_and_frees_nothing(database: Database) {
    let mut story = Story::begin(Place::new(database).await).await;
    let backup = Backup::of(story.relay.place()).await;
    story.write_what_is_lost().await;
    story.relay.until_noted(3 + KEPT + LOST).await;
    story.relay.kill();
    backup.put_back(story.relay.place()).await;
    for file in ["witness", "witness.head"] {
        std::fs::remove_file(story.relay.place().data().join(file)).expect("removed");
    }
    story.goes_on(false).await;
}

/// While the relay waits for its database to come back, somebody exchanges the database's files.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_exchanged_under_a_running_relay_end_it() {
    let mut cluster = Cluster::start().await;
    let mut story = Story::begin(Place::beside(cluster.url())).await;
    cluster.stop_in_order().await;
    cluster.copy();
    cluster.run().await;
    story.relay.until_said("the relay's lock is held again").await;
    story.write_what_is_lost().await;
    cluster.stop_at_once().await;
    cluster.put_back();
    cluster.run().await;
    assert!(!story.relay.until_stopped().await.status.success(), "it must be started anew");
    story.goes_on(true).await;
}

impl Story {
    async fn begin(place: Place) -> Self {
        let relay = RelayProcess::start(place, &[]).await;
        let mut devices = Vec::new();
        for seed in 1..=3 {
            devices.push(Device::connected(relay.url(), seed).await);
        }
        let log = together(&mut devices).await.log;
        for number in 0..KEPT {
            devices[number as usize % 3].append(log, format!("kept {number}").as_bytes()).await;
        }
        Self { relay, devices, log, copied: Head::NONE, lost: Vec::new() }
    }

    /// Writes entries after the copy was made, which everybody reads and acks.
    async fn write_what_is_lost(&mut self) {
        let log = self.log;
        for number in 0..LOST {
            let body = format!("lost {number}");
            let signed = self.devices[0].sign(log, Kind::Ring, &[], body.as_bytes());
            self.devices[0].send_signed(&signed).await.expect("appended");
            self.lost.push(signed);
        }
        for device in &mut self.devices {
            device.read_to(log, 3 + KEPT + LOST).await;
            device.ack_all(log).await;
            device.request(Ping {}).await.expect("the ack before it was heard");
        }
        self.copied = self.devices[1].view(log).head_at(3 + KEPT);
    }

    /// The relay is started on the older copy, and the group goes on.
    async fn goes_on(mut self, noticed: bool) {
        let log = self.log;
        self.relay.run().await;
        let [author, reader, writer] = self.devices.as_mut_slice() else { panic!("three") };
        let before = writer.incarnation();
        writer.connect().await;
        assert_eq!(writer.incarnation() != before, noticed);
        is_told(writer, log, self.copied.seq).await;
        assert_eq!(writer.view(log).head_at(self.copied.seq).chain, self.copied.chain);
        for number in 0..NEW {
            writer.append(log, format!("new {number}").as_bytes()).await;
        }

        // The others come when the new history is already longer than the lost one, with cursors and
        // acks of the lost one: none of them takes an entry away.
        for device in [&mut *author, &mut *reader] {
            device.connect().await;
            let acked = device.view(log).acked.to_wire();
            assert_eq!(acked.floor, 3 + KEPT + LOST);
            device.send(Ack { log, state: AckState { incarnation: before, acked } }).await;
            device.request(Ping {}).await.expect("the ack before it was heard");
            let refused = if noticed { vec![] } else { vec![ErrorCode::NotSubscribed] };
            assert_eq!(device.errors(log), refused);
        }
        // What they have freed, if anything, is gone when the relay has stopped in order. And a new
        // history begins once, not at every start.
        let now = writer.incarnation();
        assert!(self.relay.stop().await.status.success());
        self.relay.run().await;
        for device in [&mut *author, &mut *reader, &mut *writer] {
            device.connect().await;
            assert_eq!(device.incarnation(), now);
        }
        writer.follow(log).await;
        for device in [&mut *author, &mut *reader] {
            is_told(device, log, 3 + KEPT + NEW).await;
        }
        for device in [&*author, &*reader] {
            let bodies = device.view(log).bodies();
            for number in 0..NEW {
                let body = format!("new {number}").into_bytes();
                assert!(bodies.contains(&body.as_slice()), "{number} was skipped");
            }
        }

        // The author learns which of its entries are gone, and gives them back as they were.
        let after_the_lost = author.sign(log, Kind::Ring, &[], b"after the lost");
        let failure = author.send_signed(&after_the_lost).await.expect_err("a gap");
        let first = self.lost[0].entry.header.decode().expect("a header").count;
        assert_eq!((failure.code, failure.expected), (ErrorCode::OutOfOrder, Some(first)));
        for signed in self.lost.iter().chain([&after_the_lost]) {
            assert!(!author.send_signed(signed).await.expect("appended").duplicate);
        }
        let end = 3 + KEPT + NEW + LOST + 1;
        for device in &mut self.devices {
            device.read_to(log, end).await;
        }
        let heads: Vec<_> = self.devices.iter().map(|device| device.view(log).head()).collect();
        assert!(heads.iter().all(|head| *head == heads[0] && head.is_some()));
        assert_eq!(self.devices[1].view(log).bodies().last(), Some(&&b"after the lost"[..]));
    }
}

/// A device with a cursor of the lost history is told so, forgets what it had read, and reads what
/// is there now.
async fn is_told(device: &mut Device, log: LogId, head: u64) {
    let failure = device.subscribe(log).await.expect_err("history has changed");
    assert_eq!(failure.code, ErrorCode::HistoryChanged);
    assert_eq!(failure.head.map(|head| head.seq), Some(head));
    device.view_mut(log).forget();
    device.follow(log).await;
    assert_eq!(device.view(log).seq(), head);
}
