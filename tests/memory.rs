//! What one device does costs that device, never others, and never memory.
//!
//! The relay is a process of its own, so that its memory can be seen.

use std::time::Duration;

use futures_util::future::join_all;
use sealwire_client::identity::Identity;
use sealwire_protocol::codec::encode_client;
use sealwire_protocol::frame::{ListLogs, Ping, Subscribe};
use tokio::time::{Instant, timeout};

use crate::support::DEADLINE;
use crate::support::device::{Device, together};
use crate::support::on_both_databases;
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;
use crate::support::raw::{BINARY, LAST, PING, Raw, frame};

on_both_databases!(
    a_slow_reader_costs_itself_and_nobody_else,
    a_device_that_asks_and_reads_nothing_is_heard_no_more,
    a_device_that_subscribes_and_takes_little_fills_no_memory,
);

/// What everything that a device can make the relay hold may amount to in these tests, in bytes: the
/// queues of a session, twice, and what an allocator keeps.
const GROWTH_MAX: u64 = 24 * 1024 * 1024;

/// What the kernel keeps of a connection that nobody reads, at both ends and in both directions, in
/// bytes, and what the relay may hold beside it.
const KERNEL_BYTES: usize = 32 * 1024 * 1024;

/// How long a relay that takes no more may hesitate before it is believed.
const STUCK: Duration = Duration::from_secs(2);

async fn a_slow_reader_costs_itself_and_nobody_else(database: Database) {
    const ENTRIES: u64 = 600;
    const BODY: usize = 128 * 1024;
    let relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let mut devices = Vec::new();
    for seed in 1..=5 {
        devices.push(Device::connected(relay.url(), seed).await);
    }
    let log = together(&mut devices).await.log;
    let mut slow = devices.pop().expect("five devices");
    let mut writer = devices.remove(0);
    let before = relay.memory();

    // 75 MiB for a device that takes nothing of it; the others ack, so that the group is not full.
    let end = 5 + ENTRIES;
    let reading = join_all(devices.into_iter().map(|mut device| async move {
        let mut longest = Duration::ZERO;
        while device.view(log).seq() < end {
            let begun = Instant::now();
            device.next().await.expect("an entry");
            longest = longest.max(begun.elapsed());
            device.ack_all(log).await;
        }
        longest
    }));
    let writing = async {
        let mut peak = 0;
        for number in 0..ENTRIES {
            let body = vec![number as u8; if number % 2 == 0 { BODY } else { 64 }];
            writer.append(log, &body).await;
            peak = relay.memory().max(peak);
        }
        peak
    };
    let (peak, longest) = timeout(DEADLINE * 3, async { tokio::join!(writing, reading) })
        .await
        .expect("everybody else gets everything");
    let grown = peak.saturating_sub(before);
    assert!(grown < GROWTH_MAX, "the relay has grown by {grown} bytes");
    let longest = longest.into_iter().max().expect("three readers");
    assert!(longest < Duration::from_secs(5), "a reader waited for {longest:?}");

    // Then it reads, and misses nothing.
    slow.read_to(log, end).await;
    assert_eq!(slow.view(log).bodies().len() as u64, ENTRIES);
}

async fn a_device_that_asks_and_reads_nothing_is_heard_no_more(database: Database) {
    let relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let mut bystander = Device::connected(relay.url(), 1).await;
    let log = bystander.found().await.log;
    bystander.follow(log).await;
    let before = relay.memory();
    let unknown = [0x93, 127, 1, 0x80];
    let requests = [
        &encode_client(1, &Ping {}.into())[..],
        &encode_client(2, &ListLogs { after: None }.into()),
    ];
    let floods = [
        frame(LAST | PING, &[7; 125]),
        requests.map(|request| frame(LAST | BINARY, request)).concat(),
        // A frame of a type that nobody knows is refused, and the refusal is a frame as well.
        frame(LAST | BINARY, &unknown),
    ];
    for flood in &floods {
        let device = Identity::generate().expect("randomness");
        let mut raw = Raw::authenticated(relay.public(), &device).await;
        let block = flood.repeat(64 * 1024 / flood.len());
        let written = raw.write_until_stuck(&block, 4 * KERNEL_BYTES, STUCK).await;
        assert!(written < 2 * KERNEL_BYTES, "the relay takes more and more");
        let waiting = relay.metric("sealwire_outbox_bytes", "").await;
        assert!(waiting < 2.0 * 1024.0 * 1024.0, "{waiting} bytes of answers wait");
        let grown = relay.memory().saturating_sub(before);
        assert!(grown < GROWTH_MAX, "the relay has grown by {grown} bytes");
        bystander.append(log, b"undisturbed").await;
    }
}

async fn a_device_that_subscribes_and_takes_little_fills_no_memory(database: Database) {
    // What may wait for one session, several times.
    const WAITING_MAX: f64 = 1024.0 * 1024.0;
    const SECONDS: u64 = 5;
    let relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let mut device = Device::connected(relay.url(), 1).await;
    let log = device.found().await.log;
    let before = relay.memory();
    let mut raw = Raw::authenticated(relay.public(), &device.identity).await;
    let request = encode_client(1, &Subscribe { log, cursor: None, acked: None }.into());
    let block = frame(LAST | BINARY, &request).repeat(1024);

    // Each of these asks the store, so they are slow: what counts is that there is an end to them.
    let stuck = raw.write_until_stuck(&block, usize::MAX, STUCK);
    let written = timeout(DEADLINE * 2, stuck).await.expect("the relay takes more and more");
    let waiting = relay.metric("sealwire_outbox_bytes", "").await;
    assert!(waiting < WAITING_MAX, "{waiting} bytes of answers wait");

    // Then it takes a little, and goes on where it was stuck.
    let mut at = written % block.len();
    for _ in 0..SECONDS {
        raw.take(8 * 1024).await;
        let next = [&block[at..], &block[..at]].concat();
        let second = Duration::from_secs(1);
        at = (at + raw.write_until_stuck(&next, next.len(), second).await) % block.len();
        let waiting = relay.metric("sealwire_outbox_bytes", "").await;
        assert!(waiting < WAITING_MAX, "{waiting} bytes of answers wait");
    }
    let grown = relay.memory().saturating_sub(before);
    assert!(grown < GROWTH_MAX, "the relay has grown by {grown} bytes");
}
