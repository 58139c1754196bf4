//! A body is kept until all whom it is for have acked it, and no longer.

use sealwire_protocol::frame::{Ack, AckState, Ping, StubReason};
use sealwire_protocol::{AckSet, Control, ErrorCode};

use crate::support::device::together;
use crate::support::on_both_databases;
use crate::support::place::Database;
use crate::support::world::World;

on_both_databases!(
    a_body_goes_when_its_last_addressee_has_acked_it_and_not_before,
    an_ack_that_was_lost_heals_with_the_next_subscribe,
    an_ack_past_the_head_is_refused_and_frees_nothing,
    an_ack_of_another_incarnation_frees_nothing,
    acks_are_flushed_when_the_relay_stops,
    what_only_a_device_that_leaves_was_waiting_for_goes_with_it,
);

async fn a_body_goes_when_its_last_addressee_has_acked_it_and_not_before(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(3).await;
    let log = together(&mut devices).await.log;
    let second = devices[1].key();
    let for_all = devices[0].append(log, b"for all").await.seq;
    let for_one = devices[0].append_to(log, &[second], b"for one").await.seq;
    world.until_bodies(log, &[for_all, for_one]).await;

    devices[1].read_to(log, for_one).await;
    devices[1].ack_all(log).await;
    // The addressed one goes at the word of its addressee; the other one waits for the third device.
    world.until_bodies(log, &[for_all]).await;
    devices[2].read_to(log, for_all).await;
    devices[2].ack_all(log).await;
    world.until_bodies(log, &[]).await;

    // Where a body was, a stub says why there is none.
    devices[2].connect().await;
    devices[2].view_mut(log).forget();
    devices[2].follow(log).await;
    assert_eq!(devices[2].view(log).stub(for_all), Some(StubReason::Acked));
    assert_eq!(devices[2].view(log).stub(for_one), Some(StubReason::NotAddressed));
}

async fn an_ack_that_was_lost_heals_with_the_next_subscribe(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let log = together(&mut devices).await.log;
    let seq = devices[0].append(log, b"acked in vain").await.seq;
    let reader = &mut devices[1];
    reader.read_to(log, seq).await;
    // The device has decided to ack; the connection is cut before it could say so.
    reader.view_mut(log).acked = AckSet::up_to(seq);
    reader.connect().await;
    assert_eq!(world.bodies(log).await, [seq]);
    reader.follow(log).await;
    world.until_bodies(log, &[]).await;
}

async fn an_ack_past_the_head_is_refused_and_frees_nothing(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let log = together(&mut devices).await.log;
    let [writer, reader] = devices.as_mut_slice() else { panic!("two devices") };
    let seq = writer.append(log, b"kept").await.seq;
    reader.ack(log, AckSet::up_to(seq + 1)).await;
    reader
        .until("the ack is refused", |device| device.errors(log) == [ErrorCode::AckPastHead])
        .await;
    writer.append(log, b"the next").await;
    assert_eq!(world.bodies(log).await, [seq, seq + 1]);
}

async fn an_ack_of_another_incarnation_frees_nothing(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let log = together(&mut devices).await.log;
    let [writer, reader] = devices.as_mut_slice() else { panic!("two devices") };
    let seq = writer.append(log, b"kept").await.seq;
    let other = reader.incarnation() ^ 1;
    let state = AckState { incarnation: other, acked: AckSet::up_to(seq).to_wire() };
    reader.send(Ack { log, state }).await;
    // A true ack of the next entry shows that the false one has been looked at.
    let next = writer.append(log, b"acked").await.seq;
    reader.read_to(log, next).await;
    let mut acked = AckSet::new();
    acked.insert(next, next);
    reader.ack(log, acked).await;
    world.until_bodies(log, &[seq]).await;
}

async fn acks_are_flushed_when_the_relay_stops(database: Database) {
    let mut world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let log = together(&mut devices).await.log;
    let seq = devices[0].append(log, b"acked at last").await.seq;
    let reader = &mut devices[1];
    reader.read_to(log, seq).await;
    reader.ack_all(log).await;
    // An answer shows that the ack before it has been heard.
    reader.request(Ping {}).await.expect("a heartbeat");
    world.stop().await;
    world.run().await;
    assert_eq!(world.bodies(log).await, [0; 0]);
}

async fn what_only_a_device_that_leaves_was_waiting_for_goes_with_it(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(3).await;
    let log = together(&mut devices).await.log;
    let seq = devices[0].append(log, b"for all").await.seq;
    devices[1].read_to(log, seq).await;
    devices[1].ack_all(log).await;
    assert_eq!(world.bodies(log).await, [seq]);
    devices[2].control(log, &Control::Leave).await.expect("left");
    world.until_bodies(log, &[]).await;
}
