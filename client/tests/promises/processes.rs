//! Several processes of one device, and devices that are one too many.

use sealwire_client::error::Error;
use sealwire_client::event::Event;
use sealwire_client::identity::file::KeyFileError;
use sealwire_client::session::Status;
use sealwire_client::wire::WireError;

use crate::relay::Relay;
use crate::world::{SOON, World, options, until};

#[tokio::test]
async fn a_second_process_sends_through_the_first_and_hears_what_it_hears() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let mut second = world.process_of(&anna).await;
    second.connect().await;
    until("standing by", async || second.connection().status() == Status::Standby).await;
    let said = second.say(log, "from the second process").await;
    second.appended(said).await;
    assert_eq!(ben.hears().await, "from the second process");
    ben.say(log, "to both").await;
    assert_eq!(anna.hears().await, "to both");
    assert_eq!(second.hears().await, "to both");
}

#[tokio::test]
async fn when_the_first_process_ends_the_second_takes_over() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let mut second = world.process_of(&anna).await;
    second.connect().await;
    anna.say_for_good(log, "first").await;
    anna.disconnect().await;
    until("taking over", async || second.connection().status() == Status::Connected).await;
    second.say(log, "second").await;
    assert_eq!(ben.hears().await, "first");
    assert_eq!(ben.hears().await, "second");
}

#[tokio::test]
async fn a_connection_that_is_dropped_at_any_moment_loses_and_doubles_nothing() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    anna.disconnect().await;
    for turn in 0..40u64 {
        anna.say(log, &turn.to_string()).await;
        let connection = anna.device.connect(&world.relay.url);
        tokio::time::sleep(std::time::Duration::from_millis(turn % 13)).await;
        drop(connection);
    }
    anna.connect().await;
    for turn in 0..40 {
        assert_eq!(ben.hears().await, turn.to_string());
    }
    let counts: Vec<u64> = world
        .relay
        .entries(log)
        .iter()
        .filter(|stored| stored.header.sender == anna.key())
        .map(|stored| stored.header.count)
        .collect();
    assert_eq!(counts, (1..=counts.len() as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_device_that_was_set_back_to_a_backup_says_so_and_overwrites_nothing() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    anna.say_for_good(log, "before the backup").await;
    anna.disconnect().await;
    let mut backup = world.copy_of(&anna, "backup").await;
    anna.connect().await;
    anna.say_for_good(log, "after the backup").await;
    anna.disconnect().await;

    let said = backup.say(log, "from the past").await;
    backup.connect().await;
    backup
        .event("being a clone", |event| matches!(event, Event::Cloned { .. }).then_some(()))
        .await;
    assert_eq!(backup.device.wait_appended(said, SOON).await, Err(Error::Cloned));
    assert!(backup.device.log(log).await.expect("a log").cloned);
    // It still reads.
    ben.say(log, "hello, whoever you are").await;
    assert_eq!(backup.hears().await, "hello, whoever you are");
    assert_eq!(ben.inbox(log).await, ["before the backup", "after the backup"]);
}

#[tokio::test]
async fn another_relay_at_a_known_address_is_for_a_person_to_decide() {
    let world = World::start().await;
    let mut anna = world.online("anna").await;
    anna.disconnect().await;
    let address = world.relay.url.authority();
    let World { relay, .. } = &world;
    let pinned = relay.key();
    assert_eq!(anna.device.relay_key(&world.relay.url).await, Ok(Some(pinned)));
    // Something else listens at another port; the person says that it is the same relay, moved.
    let listener = tokio::net::TcpListener::bind((address.0.as_str(), 0)).await.expect("a port");
    let impostor = Relay::on(listener, 0x88).await;
    anna.device.trust_relay(&impostor.url, pinned).await.expect("pinned");
    let connection = anna.device.connect(&impostor.url);
    let presented = impostor.key();
    let error = connection.wait_connected(SOON).await;
    assert_eq!(error, Err(Error::RelayKeyChanged { pinned, presented }));
    let over = Status::Over(WireError::RelayKeyChanged { pinned, presented });
    assert_eq!(connection.status(), over);
    connection.stop().await;
    anna.device.trust_relay(&impostor.url, presented).await.expect("pinned");
    let connection = anna.device.connect(&impostor.url);
    connection.wait_connected(SOON).await.expect("connected");
}

#[tokio::test]
async fn a_device_is_made_once_and_its_file_serves_no_other() {
    let world = World::start().await;
    let anna = world.offline("anna").await;
    let again = sealwire_client::device::Device::create(
        &anna.directory,
        sealwire_client::device::KeyKeeping::Unsealed,
        options(),
    )
    .await;
    assert_eq!(again.err(), Some(Error::KeyFile(KeyFileError::Exists)));
    let ben = world.offline("ben").await;
    std::fs::copy(ben.directory.join("device.key"), anna.directory.join("device.key"))
        .expect("copied");
    let mixed = sealwire_client::device::Device::open(&anna.directory, None, options()).await;
    assert_eq!(mixed.err(), Some(Error::Store(sealwire_client::error::StoreError::OtherDevice)));
}

#[cfg(unix)]
#[tokio::test]
async fn nobody_else_on_the_machine_can_read_a_devices_files() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::start().await;
    let mut anna = world.online("anna").await;
    world.group(&mut [&mut anna]).await;
    let mode = |path: &std::path::Path| {
        std::fs::metadata(path).expect("metadata").permissions().mode() & 0o077
    };
    assert_eq!(mode(&anna.directory), 0);
    for file in std::fs::read_dir(&anna.directory).expect("files") {
        let path = file.expect("a file").path();
        let lock = path.extension().is_some_and(|extension| extension == "lock");
        assert!(lock || mode(&path) == 0, "{}", path.display());
    }
}
