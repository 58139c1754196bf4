//! Entries arrive live, in one order, and what was missed is there on return.

use futures_util::future::join_all;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::frame::{Append, AppendBatch, Grant, Ping, StubReason, Unsubscribe};
use sealwire_protocol::{AckSet, ErrorCode, Kind};

use crate::support::device::{Device, together};
use crate::support::on_both_databases;
use crate::support::place::Database;
use crate::support::view::Item;
use crate::support::world::World;

on_both_databases!(
    entries_arrive_live_and_in_one_order_for_everybody,
    what_was_missed_is_there_on_return,
    one_s_own_entries_come_back_as_stubs,
    an_addressed_entry_reaches_its_addressees_alone,
    a_newcomer_reads_who_is_here_and_none_of_what_was_said_before,
    an_entry_that_is_sent_again_after_a_lost_answer_is_one_entry,
    a_batch_stands_together_and_a_bad_one_does_not_stand_at_all,
    a_device_that_was_cloned_is_told_so,
    an_entry_that_comes_too_early_is_told_what_is_missing,
    a_window_holds_entries_back_until_it_is_opened,
    a_log_that_is_no_longer_followed_is_silent,
    a_relay_that_is_started_again_goes_on_where_it_was,
);

async fn entries_arrive_live_and_in_one_order_for_everybody(database: Database) {
    const EACH: u64 = 40;
    let world = World::start(database).await;
    let mut devices = world.devices(4).await;
    let log = together(&mut devices).await.log;
    let end = 4 + 4 * EACH;

    let mut devices = join_all(devices.into_iter().map(|mut device| async move {
        for number in 0..EACH {
            device.append(log, format!("entry {number}").as_bytes()).await;
        }
        device.read_to(log, end).await;
        device
    }))
    .await;
    let first = devices.pop().expect("four devices");
    assert_eq!(first.view(log).bodies().len() as u64, 3 * EACH);
    for device in devices {
        assert_eq!(device.view(log).head(), first.view(log).head());
        assert_eq!(device.view(log).bodies().len() as u64, 3 * EACH);
    }
}

async fn what_was_missed_is_there_on_return(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let log = together(&mut devices).await.log;
    let [writer, reader] = devices.as_mut_slice() else { panic!("two devices") };
    writer.append(log, b"heard live").await;
    reader.read_to(log, 3).await;
    reader.cut();

    // More than fits a page by count, and than fits one by bytes.
    let small: Vec<&[u8]> = vec![b"small"; 100];
    for _ in 0..4 {
        writer.append_batch(log, &small).await;
    }
    let large = vec![7; 100 * 1024];
    for _ in 0..12 {
        writer.append(log, &large).await;
    }
    reader.connect().await;
    reader.follow(log).await;
    let end = 3 + 400 + 12;
    assert_eq!(reader.view(log).drained.map(|head| head.seq), Some(end));
    assert_eq!(reader.view(log).bodies().len(), 1 + 400 + 12);
    writer.append(log, b"live again").await;
    reader.read_to(log, end + 1).await;
    assert_eq!(reader.view(log).bodies().last(), Some(&&b"live again"[..]));
}

async fn one_s_own_entries_come_back_as_stubs(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let log = together(&mut devices).await.log;
    let author = &mut devices[0];
    let appended = author.append(log, b"mine").await;
    author.read_to(log, appended.seq).await;
    assert_eq!(author.view(log).stub(appended.seq), Some(StubReason::Own));
    assert_eq!(author.view(log).head(), Some(appended.head));

    // The same to another instance of the device, which has not written it, and from the store.
    let mut twin = Device::new(world.url(), 1);
    twin.options.instance.0[0] = 99;
    twin.connect().await;
    twin.follow(log).await;
    assert_eq!(twin.view(log).stub(appended.seq), Some(StubReason::Own));
}

async fn an_addressed_entry_reaches_its_addressees_alone(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(3).await;
    let log = together(&mut devices).await.log;
    let addressee = devices[1].key();
    let seq = devices[0].append_to(log, &[addressee], b"for one").await.seq;
    for device in &mut devices {
        device.read_to(log, seq).await;
    }
    assert!(matches!(devices[1].view(log).item(seq), Some(Item::Entry { .. })));
    assert_eq!(devices[2].view(log).stub(seq), Some(StubReason::NotAddressed));

    // And the same for who was away.
    for device in &mut devices[1..] {
        device.connect().await;
        device.view_mut(log).forget();
        device.follow(log).await;
    }
    assert!(matches!(devices[1].view(log).item(seq), Some(Item::Entry { .. })));
    assert_eq!(devices[2].view(log).stub(seq), Some(StubReason::NotAddressed));
    assert_eq!(devices[2].view(log).head(), devices[1].view(log).head());
}

async fn a_newcomer_reads_who_is_here_and_none_of_what_was_said_before(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(3).await;
    let mut newcomer = devices.pop().expect("three devices");
    let group = together(&mut devices).await;
    devices[0].append(group.log, b"before").await;
    devices[1].append(group.log, b"before").await;
    let joined = newcomer.join(&group).await;
    newcomer.follow(group.log).await;
    let view = newcomer.view(group.log);
    assert!(view.bodies().is_empty(), "nothing that was said before");
    for (seq, _, item) in &view.items {
        let control = matches!(item, Item::Entry { kind: Kind::Control, .. });
        assert_eq!(control, [1, 2, joined].contains(seq), "seq {seq}");
    }
    let seq = devices[0].append(group.log, b"after").await.seq;
    newcomer.read_to(group.log, seq).await;
    assert_eq!(newcomer.view(group.log).bodies(), [b"after"]);
}

async fn an_entry_that_is_sent_again_after_a_lost_answer_is_one_entry(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let log = together(&mut devices).await.log;
    let [author, reader] = devices.as_mut_slice() else { panic!("two devices") };
    let signed = author.sign(log, Kind::Ring, &[], b"once");
    author.send(Append { entry: signed.entry.clone() }).await;
    // The answer is on its way, or will never be: the author does not wait for it.
    author.connect().await;
    let first = author.send_signed(&signed).await.expect("appended");
    let again = author.send_signed(&signed).await.expect("appended");
    assert!(again.duplicate);
    assert_eq!((first.seq, again.seq), (3, 3));
    // Long after, when others have written and the relay has been started anew.
    reader.append(log, b"another").await;
    author.append(log, b"the next").await;
    let late = author.send_signed(&signed).await.expect("appended");
    assert_eq!((late.duplicate, late.seq, late.head.seq), (true, 3, 5));
    reader.read_to(log, 5).await;
    assert_eq!(reader.view(log).bodies(), [&b"once"[..], b"the next"]);
}

async fn a_batch_stands_together_and_a_bad_one_does_not_stand_at_all(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let log = together(&mut devices).await.log;
    let [author, reader] = devices.as_mut_slice() else { panic!("two devices") };
    let appended = author.append_batch(log, &[b"one", b"two", b"three"]).await;
    assert_eq!((appended.seq, appended.head.seq), (3, 5));

    let before = author.view(log).own;
    let good = author.sign(log, Kind::Ring, &[], b"good").entry;
    let mut bad = author.sign(log, Kind::Ring, &[], b"bad").entry;
    bad.header.0[60] ^= 1;
    let entries = Bounded::new(vec![good, bad]).expect("two");
    let code = author.refusal(AppendBatch { entries }).await;
    assert_eq!(code, ErrorCode::BadHeader);
    author.view_mut(log).own = before;
    let next = author.append(log, b"four").await;
    assert_eq!(next.seq, 6);
    reader.read_to(log, 6).await;
    assert_eq!(reader.view(log).bodies(), [&b"one"[..], b"two", b"three", b"four"]);
}

async fn a_device_that_was_cloned_is_told_so(database: Database) {
    let world = World::start(database).await;
    let mut device = world.device(1).await;
    let log = device.found().await.log;
    let before = device.view(log).own;
    device.append(log, b"from the original").await;
    let original = device.view(log).own;
    // The clone has the same key and an older memory.
    let mut clone = Device::new(world.url(), 1);
    clone.options.instance.0[0] = 99;
    clone.connect().await;
    clone.view_mut(log).own = before;
    let signed = clone.sign(log, Kind::Ring, &[], b"from the clone");
    let failure = clone.send_signed(&signed).await.expect_err("a conflict");
    assert_eq!(failure.code, ErrorCode::Conflict);
    assert_eq!((failure.count, failure.digest), (Some(original.count), Some(original.digest)));
}

async fn an_entry_that_comes_too_early_is_told_what_is_missing(database: Database) {
    let world = World::start(database).await;
    let mut device = world.device(1).await;
    let log = device.found().await.log;
    let second = device.sign(log, Kind::Ring, &[], b"second");
    let third = device.sign(log, Kind::Ring, &[], b"third");
    let failure = device.send_signed(&third).await.expect_err("too early");
    assert_eq!((failure.code, failure.expected), (ErrorCode::OutOfOrder, Some(2)));
    assert_eq!(device.send_signed(&second).await.expect("appended").seq, 2);
    assert_eq!(device.send_signed(&third).await.expect("appended").seq, 3);
}

async fn a_window_holds_entries_back_until_it_is_opened(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let log = together(&mut devices).await.log;
    let [writer, reader] = devices.as_mut_slice() else { panic!("two devices") };
    reader.options.window = Some(3000);
    reader.connect().await;
    reader.follow(log).await;
    for _ in 0..20 {
        writer.append(log, &[1; 1000]).await;
    }
    // An answer comes after everything that was sent before it.
    reader.request(Ping {}).await.expect("a heartbeat");
    let held = reader.view(log).bodies().len();
    assert!((1..=3).contains(&held), "{held} entries in a window of 3000 bytes");
    while reader.view(log).seq() < 22 {
        reader.send(Grant { bytes: 3000 }).await;
        reader.next().await.expect("more");
    }
    assert_eq!(reader.view(log).bodies().len(), 20);
}

async fn a_log_that_is_no_longer_followed_is_silent(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let log = together(&mut devices).await.log;
    let [writer, reader] = devices.as_mut_slice() else { panic!("two devices") };
    reader.request(Unsubscribe { log }).await.expect("done");
    writer.append(log, b"unheard").await;
    reader.request(Ping {}).await.expect("a heartbeat");
    assert!(reader.view(log).bodies().is_empty());
    reader.follow(log).await;
    assert_eq!(reader.view(log).bodies(), [b"unheard"]);
}

async fn a_relay_that_is_started_again_goes_on_where_it_was(database: Database) {
    let mut world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let log = together(&mut devices).await.log;
    let before = devices[0].append(log, b"before").await;
    devices[1].read_to(log, before.seq).await;
    devices[1].ack(log, AckSet::up_to(before.seq)).await;
    world.stop().await;
    world.run().await;
    for device in &mut devices {
        device.connect().await;
        assert_eq!(device.incarnation(), before.head.incarnation);
        device.follow(log).await;
    }
    let after = devices[0].append(log, b"after").await;
    assert_eq!(after.seq, before.seq + 1);
    devices[1].read_to(log, after.seq).await;
    assert_eq!(devices[1].view(log).bodies(), [&b"before"[..], b"after"]);
    world.until_bodies(log, &[after.seq]).await;
}
