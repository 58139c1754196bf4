//! Nobody is heard before they prove their key; a device may be here several times.

use sealwire_client::wire::{Options, Wire, WireError};
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::frame::{Append, Authenticate, Names, Ping};
use sealwire_protocol::limits::INSTANCES_MAX;
use sealwire_protocol::{Digest, ErrorCode, Kind, RelayFrame};

use crate::support::device::{Device, together};
use crate::support::on_both_databases;
use crate::support::place::Database;
use crate::support::raw::{End, Raw};
use crate::support::world::World;

on_both_databases!(
    two_instances_of_a_device_live_side_by_side,
    the_same_instance_supersedes_the_older_session,
    one_instance_too_many_is_refused,
    a_resume_token_opens_a_session_of_its_own_device_and_of_no_other,
    a_proof_is_good_on_one_connection_only,
    nobody_is_heard_before_they_have_proved_their_key,
    what_cannot_be_decoded_before_the_proof_ends_the_connection,
    a_version_that_the_relay_does_not_speak_is_refused,
    the_heads_that_changed_come_with_a_heartbeat,
);

async fn two_instances_of_a_device_live_side_by_side(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let log = together(&mut devices).await.log;
    let mut twin = instance(&world, 2, 77).await;
    twin.follow(log).await;
    let seq = devices[0].append(log, b"to both").await.seq;
    for device in [&mut devices[1], &mut twin] {
        device.read_to(log, seq).await;
        assert_eq!(device.view(log).bodies(), [b"to both"]);
    }
    // What one of them acks is acked for the device.
    twin.ack_all(log).await;
    world.until_bodies(log, &[]).await;
}

async fn the_same_instance_supersedes_the_older_session(database: Database) {
    let world = World::start(database).await;
    let mut older = world.device(1).await;
    let log = older.found().await.log;
    let mut newer = world.device(1).await;
    assert_eq!(older.until_closed().await, WireError::Closed(Some(CloseReason::Superseded)));
    assert!(older.told.iter().any(|frame| matches!(frame, RelayFrame::Superseded(_))));
    newer.view_mut(log).own = older.view(log).own;
    newer.append(log, b"still here").await;
}

async fn one_instance_too_many_is_refused(database: Database) {
    let world = World::start(database).await;
    let mut instances = Vec::new();
    for number in 0..INSTANCES_MAX as u8 {
        instances.push(instance(&world, 1, number).await);
    }
    let mut extra = Device::new(world.url(), 1);
    let Err(error) = extra.try_connect().await else {
        panic!("a fifth instance was let in");
    };
    assert_eq!(error.code(), Some(ErrorCode::TooManyInstances));
    // The others are left alone, and when one goes there is a place.
    for device in &mut instances {
        device.request(Ping {}).await.expect("a heartbeat");
    }
    instances.pop();
    crate::support::eventually("there is a place", async || extra.try_connect().await.is_ok())
        .await;
}

async fn a_resume_token_opens_a_session_of_its_own_device_and_of_no_other(database: Database) {
    let world = World::start(database).await;
    let mut device = Device::new(world.url(), 1);
    let token = device.connect().await.resume_token.to_vec();
    device.options.resume_token = Some(token.clone());
    let session = device.try_connect().await.expect("a session");
    assert!(session.resumed);

    let mut other = Device::new(world.url(), 2);
    other.options.resume_token = Some(token.clone());
    let session = other.try_connect().await.expect("a session");
    assert!(!session.resumed, "the signature had to do");

    let mut forged = token;
    let last = forged.len() - 1;
    forged[last] ^= 1;
    device.options.resume_token = Some(forged);
    assert!(!device.try_connect().await.expect("a session").resumed);
}

async fn a_proof_is_good_on_one_connection_only(database: Database) {
    let world = World::start(database).await;
    let device = Device::new(world.url(), 1);
    let options = Options::default();
    let mut first = Wire::open(&world.url(), &options).await.expect("open");
    let (_, greeting) = first.greeting(&options).await.expect("a greeting");
    let proof = device.identity.prove(&greeting);
    for (mut wire, accepted) in
        [(Wire::open(&world.url(), &options).await.expect("open"), false), (first, true)]
    {
        if !accepted {
            wire.greeting(&options).await.expect("a greeting");
        }
        let answer = wire.request(&authenticate(&device, Some(proof)).into()).await;
        if accepted {
            assert_eq!(answer.expect("a welcome").name(), "Welcome");
        } else {
            let code = answer.expect_err("refused").code();
            assert_eq!(code, Some(ErrorCode::AuthenticationFailed));
            let closed = wire.receive().await.expect_err("closed");
            assert_eq!(closed, WireError::Closed(Some(CloseReason::AuthenticationFailed)));
        }
    }
}

async fn nobody_is_heard_before_they_have_proved_their_key(database: Database) {
    let world = World::start(database).await;
    let mut member = world.device(1).await;
    let log = member.found().await.log;
    let entry = member.sign(log, Kind::Ring, &[], b"mine, but unproved").entry;
    let options = Options::default();
    let unproved = [Append { entry }.into(), Ping {}.into(), authenticate(&member, None).into()];
    for frame in unproved {
        let mut wire = Wire::open(&world.url(), &options).await.expect("open");
        wire.greeting(&options).await.expect("a greeting");
        let code = wire.request(&frame).await.expect_err("refused").code().expect("a code");
        assert!(
            matches!(code, ErrorCode::NotAuthenticated | ErrorCode::AuthenticationFailed),
            "{code:?}"
        );
        let closed = wire.receive().await.expect_err("closed");
        assert_eq!(closed, WireError::Closed(Some(CloseReason::AuthenticationFailed)));
    }
    assert_eq!(world.stored(log).await.head.seq, 1);
}

async fn what_cannot_be_decoded_before_the_proof_ends_the_connection(database: Database) {
    let world = World::start(database).await;
    // No MessagePack, a type that nobody knows, no fields, and a list over its bound.
    let long_list = [&[0x93, 1, 6, 0x81, 0xac][..], b"capabilities", &[0xdc, 0xff, 0xff]].concat();
    let cases: [(&[u8], u32); 4] =
        [(&[0xc1], 0), (&[0x93, 127, 6, 0x80], 6), (&[0x93, 1, 6, 0x80], 6), (&long_list, 6)];
    for (bytes, request) in cases {
        let mut raw = Raw::upgraded(world.address()).await;
        let greeting = raw.receive().await.expect("a greeting");
        assert_eq!(greeting.frame.map(|frame| frame.name()), Ok("Greeting"));
        raw.send_bytes(bytes).await;
        let answer = raw.receive().await.expect("an answer");
        let Ok(RelayFrame::Error(error)) = answer.frame else { panic!("{bytes:?} was taken") };
        assert_eq!((answer.request, error.code), (request, ErrorCode::Malformed), "{bytes:?}");
        assert_eq!(raw.end().await, End::of(CloseReason::Malformed), "{bytes:?}");
    }
}

async fn a_version_that_the_relay_does_not_speak_is_refused(database: Database) {
    let world = World::start(database).await;
    let device = Device::new(world.url(), 1);
    let options = Options::default();
    let mut wire = Wire::open(&world.url(), &options).await.expect("open");
    let (greeting, bytes) = wire.greeting(&options).await.expect("a greeting");
    let version = greeting.versions.1 + 1;
    let frame =
        Authenticate { version, ..authenticate(&device, Some(device.identity.prove(&bytes))) };
    let code = wire.request(&frame.into()).await.expect_err("refused").code();
    assert_eq!(code, Some(ErrorCode::VersionUnsupported));
}

async fn the_heads_that_changed_come_with_a_heartbeat(database: Database) {
    let world = World::start(database).await;
    let mut devices = world.devices(2).await;
    let log = together(&mut devices).await.log;
    let [writer, reader] = devices.as_mut_slice() else { panic!("two devices") };
    reader.request(Ping {}).await.expect("a heartbeat");
    let appended = writer.append(log, b"news").await;
    reader.read_to(log, appended.seq).await;
    // The first heartbeat after a change names the head, and those after it do not.
    let mut named = Vec::new();
    for _ in 0..2 {
        match reader.request(Ping {}).await {
            Ok(RelayFrame::Heartbeat(beat)) => named.extend(beat.heads.iter().map(|it| it.head)),
            other => panic!("{other:?}"),
        }
    }
    assert!(named.iter().all(|head| *head == appended.head), "{named:?}");
    assert!(named.len() <= 1, "{named:?}");
}

async fn instance(world: &World, seed: u8, number: u8) -> Device {
    let mut device = Device::new(world.url(), seed);
    device.options.instance.0[0] = 0x80 + number;
    device.connect().await;
    device
}

fn authenticate(
    device: &Device,
    signature: Option<sealwire_protocol::ids::Signature>,
) -> Authenticate {
    Authenticate {
        version: 1,
        device: device.key(),
        instance: device.options.instance,
        challenge: Digest([9; 32]),
        signature,
        token: None,
        heartbeat_s: 60,
        window: None,
        capabilities: Names::default(),
    }
}
