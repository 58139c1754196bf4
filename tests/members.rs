//! Who is a member, who is not any more, and who never was.

use std::time::{Duration, Instant};

use sealwire_client::identity::JoinSeed;
use sealwire_client::numbering::Mark;
use sealwire_protocol::bounded::{Bounded, BoundedBytes};
use sealwire_protocol::frame::{
    Ack, AckState, ListLogs, ListMembers, Member, MembershipState, Ping, Subscribe, Unsubscribe,
};
use sealwire_protocol::ids::Scope;
use sealwire_protocol::keys::{KeyBody, SealedKey};
use sealwire_protocol::{AckSet, Control, ErrorCode, Failure, Kind, LogId, RelayFrame};

use crate::support::device::{Device, Group, together};
use crate::support::place::Database;
use crate::support::world::World;
use crate::support::{eventually, on_both_databases};

/// How soon after its revocation is durable a device's subscription must have ended.
const CUT_OFF_WITHIN: Duration = Duration::from_secs(1);

on_both_databases!(
    a_member_that_leaves_hears_nothing_more,
    a_revoked_device_is_told_so_and_hears_nothing_more,
    a_revoked_device_never_comes_back,
    a_revoked_device_finds_out_when_it_was_away,
    a_stranger_is_told_of_no_log,
    an_invitation_is_good_until_its_key_is_replaced,
    a_rotation_whose_author_had_not_seen_the_removal_is_stale,
    a_device_joins_no_more_groups_than_it_may,
    who_comes_back_waits_only_for_what_comes_then,
    a_long_group_goes_when_its_last_member_leaves,
);

async fn a_member_that_leaves_hears_nothing_more(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(3).await;
    let log = together(&mut devices).await.log;
    let left = devices[2].control(log, &Control::Leave).await.expect("left").seq;
    devices[2].until("it is told", |device| membership(device, left).is_some()).await;
    assert_eq!(membership(&devices[2], left), Some(MembershipState::Left));
    let after = devices[0].append(log, b"among ourselves").await.seq;
    devices[1].read_to(log, after).await;
    devices[2].request(Ping {}).await.expect("a heartbeat");
    assert!(devices[2].view(log).seq() <= left);
    assert_eq!(devices[2].refusal(subscribe(log)).await, ErrorCode::NoSuchLog);
    assert_eq!(devices[2].refusal(ListMembers { log }).await, ErrorCode::NoSuchLog);
}

async fn a_revoked_device_is_told_so_and_hears_nothing_more(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(3).await;
    let group = together(&mut devices).await;
    let log = group.log;
    let other = devices[2].found().await.log;
    devices[2].follow(other).await;
    let seq = revoke(&mut devices, 2, &group).await;

    let appended = Instant::now();
    devices[2].until("it is told", |device| membership(device, seq).is_some()).await;
    assert!(appended.elapsed() < CUT_OFF_WITHIN, "{:?}", appended.elapsed());
    assert_eq!(membership(&devices[2], seq), Some(MembershipState::Revoked));
    assert_eq!(devices[2].view(log).seq(), seq, "it hears of the entry that removed it");
    let after = devices[0].append(log, b"among ourselves").await.seq;
    devices[1].read_to(log, after).await;
    devices[2].request(Ping {}).await.expect("a heartbeat");
    assert_eq!(devices[2].view(log).seq(), seq);

    let signed = devices[2].sign(log, Kind::Ring, &[], b"too late");
    let failure = devices[2].send_signed(&signed).await.expect_err("revoked");
    assert_eq!((failure.code, failure.seq), (ErrorCode::Revoked, Some(seq)));
    is_told_of_its_revocation(&mut devices[2], log, seq).await;
    // Its other logs go on.
    let mine = devices[2].append(other, b"still here").await.seq;
    devices[2].read_to(other, mine).await;
}

async fn a_revoked_device_never_comes_back(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(3).await;
    let group = together(&mut devices).await;
    let fresh = JoinSeed::generate().expect("randomness");
    let revoked = devices[2].key();
    let control = Control::Revoke { device: revoked, join_key: Some(fresh.public()) };
    let seq = devices[0].control(group.log, &control).await.expect("revoked").seq;
    let again = Group { log: group.log, seed: fresh };
    let failure = devices[2].try_join(&again).await.expect_err("revoked");
    assert_eq!((failure.code, failure.seq), (ErrorCode::Revoked, Some(seq)));
    assert_eq!(members(&mut devices[0], group.log).await.len(), 2);
}

async fn a_revoked_device_finds_out_when_it_was_away(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(3).await;
    let group = together(&mut devices).await;
    devices[2].cut();
    let seq = revoke(&mut devices, 2, &group).await;
    let welcome = devices[2].connect().await;
    assert!(welcome.logs.is_empty());
    is_told_of_its_revocation(&mut devices[2], group.log, seq).await;
    let signed = devices[2].sign(group.log, Kind::Ring, &[], b"written while away");
    let failure = devices[2].send_signed(&signed).await.expect_err("revoked");
    assert_eq!((failure.code, failure.seq), (ErrorCode::Revoked, Some(seq)));
}

async fn a_stranger_is_told_of_no_log(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let mut stranger = devices.pop().expect("two devices");
    let group = together(&mut devices).await;
    let mut imagined = group.log;
    imagined.0[0] ^= 1;
    let state = AckState { incarnation: stranger.incarnation(), acked: AckSet::up_to(1).to_wire() };
    for log in [group.log, imagined] {
        assert_eq!(stranger.refusal(subscribe(log)).await, ErrorCode::NoSuchLog);
        assert_eq!(stranger.refusal(Unsubscribe { log }).await, ErrorCode::NoSuchLog);
        assert_eq!(stranger.refusal(ListMembers { log }).await, ErrorCode::NoSuchLog);
        let ack = Ack { log, state: state.clone() };
        assert_eq!(stranger.refusal(ack).await, ErrorCode::NoSuchLog);
        let signed = stranger.sign(log, Kind::Ring, &[], b"let me in");
        let failure = stranger.send_signed(&signed).await.expect_err("no member");
        assert_eq!(failure, Failure::new(ErrorCode::NoSuchLog));
        stranger.view_mut(log).own = Mark::NONE;
        let forged = Group { log, seed: JoinSeed::generate().expect("randomness") };
        let failure = stranger.try_join(&forged).await.expect_err("no invitation");
        assert_eq!(failure, Failure::new(ErrorCode::InviteInvalid));
    }
    let logs = match stranger.request(ListLogs { after: None }).await {
        Ok(RelayFrame::Logs(frame)) => frame.logs,
        other => panic!("{other:?}"),
    };
    assert!(logs.is_empty());
    assert_eq!(members(&mut devices[0], group.log).await.len(), 1);
}

async fn an_invitation_is_good_until_its_key_is_replaced(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(4).await;
    let (mut fourth, mut third) = (devices.pop().expect("four"), devices.pop().expect("four"));
    let group = together(&mut devices).await;
    devices[0].read_to(group.log, 2).await;
    third.join(&group).await;
    devices[0].read_to(group.log, 3).await;
    let fresh = JoinSeed::generate().expect("randomness");
    let control = Control::JoinKey { join_key: fresh.public() };
    devices[0].control(group.log, &control).await.expect("replaced");
    let failure = fourth.try_join(&group).await.expect_err("an old invitation");
    assert_eq!(failure.code, ErrorCode::InviteInvalid);
    fourth.join(&Group { log: group.log, seed: fresh }).await;
}

async fn a_rotation_whose_author_had_not_seen_the_removal_is_stale(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(3).await;
    let group = together(&mut devices).await;
    let log = group.log;
    for device in &mut devices {
        device.read_to(log, 3).await;
    }
    let rotation = rotation(&devices);
    let before = devices[1].view(log).own;
    let early = devices[1].sign(log, Kind::Key, &[], &rotation);
    let seq = revoke(&mut devices, 2, &group).await;
    let failure = devices[1].send_signed(&early).await.expect_err("stale");
    assert_eq!(failure.code, ErrorCode::Stale);
    assert_eq!(failure.head.map(|head| head.seq), Some(seq));
    // It catches up and writes anew.
    devices[1].read_to(log, seq).await;
    devices[1].view_mut(log).own = before;
    let rebased = devices[1].sign(log, Kind::Key, &[], &rotation);
    devices[1].send_signed(&rebased).await.expect("appended");
}

async fn a_device_joins_no_more_groups_than_it_may(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let [host, guest] = devices.as_mut_slice() else { panic!("two devices") };
    let mut groups = Vec::new();
    for _ in 0..6 {
        groups.push(host.found().await);
    }
    for group in &groups[..5] {
        guest.join(group).await;
    }
    let own = guest.found().await;
    let failure = guest.try_join(&groups[5]).await.expect_err("a seventh");
    assert_eq!((failure.code, failure.limit), (ErrorCode::GroupLimitReached, Some(6)));
    guest.control(own.log, &Control::Leave).await.expect("left");
    guest.join(&groups[5]).await;
}

async fn who_comes_back_waits_only_for_what_comes_then(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let group = together(&mut devices).await;
    let [host, guest] = devices.as_mut_slice() else { panic!("two devices") };
    guest.control(group.log, &Control::Leave).await.expect("left");
    let absent = host.append(group.log, b"nobody is here").await.seq;
    let joined = guest.join(&group).await;
    assert_eq!(joined, absent + 1);
    guest.view_mut(group.log).forget();
    guest.follow(group.log).await;
    assert!(guest.view(group.log).bodies().is_empty());
    let after = host.append(group.log, b"welcome back").await.seq;
    guest.read_to(group.log, after).await;
    assert_eq!(guest.view(group.log).bodies(), [b"welcome back"]);
}

async fn a_long_group_goes_when_its_last_member_leaves(database: Database) {
    let world = World::start(database).await;
    let mut device = world.device(1).await;
    let group = device.found().await;
    // More than go in one step.
    for _ in 0..17 {
        device.append_batch(group.log, &[&b"for nobody"[..]; 256]).await;
    }
    device.control(group.log, &Control::Leave).await.expect("left");
    eventually("the log is gone", async || !world.has(group.log).await).await;
}

/// Whatever a revoked device asks about the log, it is told where it was revoked.
async fn is_told_of_its_revocation(device: &mut Device, log: LogId, seq: u64) {
    let state = AckState { incarnation: device.incarnation(), acked: AckSet::up_to(1).to_wire() };
    let revoked = Failure::revoked(seq);
    assert_eq!(device.request(subscribe(log)).await, Err(revoked));
    assert_eq!(device.request(Unsubscribe { log }).await, Err(revoked));
    assert_eq!(device.request(ListMembers { log }).await, Err(revoked));
    assert_eq!(device.request(Ack { log, state }).await, Err(revoked));
}

fn subscribe(log: LogId) -> Subscribe {
    Subscribe { log, cursor: None, acked: None }
}

/// What the relay has told a device about its membership by the entry at `seq`.
fn membership(device: &Device, seq: u64) -> Option<MembershipState> {
    device.told.iter().find_map(|frame| match frame {
        RelayFrame::Membership(membership) if membership.seq == seq => Some(membership.state),
        _ => None,
    })
}

/// The first device removes another one; gives the seq of the entry that did it.
async fn revoke(devices: &mut [Device], which: usize, group: &Group) -> u64 {
    let fresh = JoinSeed::generate().expect("randomness").public();
    let control = Control::Revoke { device: devices[which].key(), join_key: Some(fresh) };
    devices[0].control(group.log, &control).await.expect("revoked").seq
}

async fn members(device: &mut Device, log: LogId) -> Vec<Member> {
    match device.request(ListMembers { log }).await {
        Ok(RelayFrame::Members(frame)) => frame.members.into_vec(),
        other => panic!("{other:?}"),
    }
}

/// A rotation's body, as far as a relay looks into it.
fn rotation(devices: &[Device]) -> Vec<u8> {
    let sealed = |device: &Device| SealedKey {
        recipient: device.key(),
        enc: [1; 32],
        ciphertext: BoundedBytes::default(),
    };
    let keys = Bounded::new(devices.iter().map(sealed).collect()).expect("few");
    KeyBody { scope: Scope([5; 16]), epoch: 2, keys }.encode().expect("short")
}
