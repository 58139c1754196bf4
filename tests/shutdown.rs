//! Stopping loses nothing, ends on time, and tells the devices when to come back.

use std::time::Duration;

use sealwire_client::wire::WireError;
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::frame::{Append, Draining};
use sealwire_protocol::{ErrorCode, Kind, RelayFrame};

use crate::support::device::{Device, together};
use crate::support::holds_within;
use crate::support::http;
use crate::support::on_both_databases;
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;
use crate::support::raw::Raw;

on_both_databases!(
    devices_are_told_when_to_come_back_and_find_everything,
    nobody_who_takes_nothing_holds_up_the_end,
    a_second_relay_waits_until_the_first_has_gone,
);

/// How long an end may take when every device takes what it is sent.
const PROMPT: Duration = Duration::from_secs(6);

/// How long it may take when one does not: twice the two seconds that a goodbye has, and the rest.
const PATIENT: Duration = Duration::from_secs(12);

async fn devices_are_told_when_to_come_back_and_find_everything(database: Database) {
    const REQUESTS: usize = 60;
    let mut relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let mut devices = Vec::new();
    for seed in 1..=12 {
        devices.push(Device::connected(relay.url(), seed).await);
    }
    let log = together(&mut devices).await.log;
    let mut requests = Vec::new();
    let writer = &mut devices[0];
    for number in 0..REQUESTS {
        let signed = writer.sign(log, Kind::Ring, &[], format!("{number}").as_bytes());
        requests
            .push((writer.wire().queue(&Append { entry: signed.entry.clone() }.into()), signed));
    }
    writer.wire().flush().await.expect("sent");
    relay.ask_to_stop();

    // Every request that is under way is answered.
    let mut told = Vec::new();
    for device in &mut devices {
        assert_eq!(device.until_closed().await, WireError::Closed(Some(CloseReason::GoingAway)));
        let Some(RelayFrame::Draining(draining)) =
            device.told.iter().find(|frame| frame.name() == "Draining").cloned()
        else {
            panic!("a device was not told when to come back");
        };
        told.push(draining);
    }
    let stopped = relay.until_stopped().await;
    assert!(stopped.status.success(), "{:?}", stopped.status);
    assert!(stopped.after < PROMPT, "{:?}", stopped.after);
    let times: Vec<u64> = told.iter().map(|it| it.reconnect_after_ms).collect();
    assert!(times.iter().all(|time| (500..=8000).contains(time)), "{times:?}");
    assert!(times.iter().any(|time| *time != times[0]), "they would all come at once: {times:?}");
    let mut last = 0;
    for (request, _) in &requests {
        match devices[0].answered(*request).expect("an answer") {
            RelayFrame::Appended(appended) => last = appended.seq,
            RelayFrame::Error(error) => {
                assert!(matches!(error.code, ErrorCode::Unavailable | ErrorCode::OutOfOrder));
            }
            other => panic!("{other:?}"),
        }
    }

    relay.run().await;
    for (device, Draining { resume_token, .. }) in devices.iter_mut().zip(&told) {
        device.options.resume_token = Some(resume_token.to_vec());
        assert!(device.try_connect().await.expect("a session").resumed);
    }
    let mut there = 0;
    for (_, signed) in &requests {
        let appended = devices[0].send_signed(signed).await.expect("appended");
        there += u64::from(appended.duplicate);
    }
    assert!(12 + there >= last, "{last} was answered, and there are {there}");
    devices[1].follow(log).await;
    assert_eq!(devices[1].view(log).bodies().len(), REQUESTS);
}

async fn nobody_who_takes_nothing_holds_up_the_end(database: Database) {
    let mut relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let mut devices = Vec::new();
    for seed in 1..=2 {
        devices.push(Device::connected(relay.url(), seed).await);
    }
    let log = together(&mut devices).await.log;
    // More than the kernel and the relay's queue hold for the second device, which reads nothing.
    let body = vec![5; 200 * 1024];
    for _ in 0..60 {
        devices[0].append(log, &body).await;
    }
    // And connections that have only begun.
    let silent = Raw::connect(relay.public()).await;
    let unproved = Raw::upgraded(relay.public()).await;
    relay.ask_to_stop();
    let stopped = relay.until_stopped().await;
    assert!(stopped.status.success(), "{:?}", stopped.status);
    assert!(stopped.after < PATIENT, "{:?}", stopped.after);
    drop((silent, unproved));
    relay.run().await;
    devices[1].connect().await;
    devices[1].follow(log).await;
    assert_eq!(devices[1].view(log).bodies().len(), 60);
}

async fn a_second_relay_waits_until_the_first_has_gone(database: Database) {
    let secrets = [
        ("DEVICE_SESSION_SECRET", "a secret that both relays have, long enough"),
        ("SEALWIRE_RELAY_KEY", "7777777777777777777777777777777777777777777777777777777777777777"),
    ];
    let mut first = RelayProcess::start(Place::new(database).await, &secrets).await;
    let mut device = Device::new(first.url(), 1);
    let token = device.connect().await.resume_token.to_vec();
    let log = device.found().await.log;
    let mut second = first.beside();
    second.spawn();
    second.until_said("another relay serves this store").await;
    assert_eq!(second.ask("/health").await.map(|answer| answer.status), Some(200));
    assert_eq!(second.ask("/ready").await.map(|answer| answer.status), Some(503));
    device.append(log, b"to the first").await;

    // The first one dies without a word.
    first.kill();
    second.until_ready().await;
    device.relay = second.url();
    device.options.resume_token = Some(token);
    assert!(device.try_connect().await.expect("a session").resumed);
    let appended = device.append(log, b"to the second").await;
    assert_eq!(appended.seq, 3);

    // A relay that only waits ends as well when it is asked to.
    let mut third = second.beside();
    third.spawn();
    third.until_said("another relay serves this store").await;
    let stopped = third.stop().await;
    assert!(stopped.status.success() && stopped.after < PROMPT);
    let serves = holds_within(Duration::from_secs(5), async || {
        http::get(second.public(), "/ready").await.is_some_and(|answer| answer.status == 200)
    });
    assert!(serves.await, "the second relay serves on");
}
