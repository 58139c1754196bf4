//! Promises about vaults.

use std::sync::Arc;
use std::time::Duration;

use sealwire_protocol::bounded::{Bounded, BoundedBytes};
use sealwire_protocol::digest::{chain_next, chain_start, entry_digest, sha256};
use sealwire_protocol::frame::{self, MembershipState, SnapshotSummary};
use sealwire_protocol::ids::{Scope, Signature};
use sealwire_protocol::keys::{KeyBody, SealedKey};
use sealwire_protocol::limits::SNAPSHOT_CHUNK_BYTES_MIN;
use sealwire_protocol::{
    ClientFrame, Control, Digest, EntryIn, ErrorCode, Failure, Head, Kind, LogId, RelayFrame,
};
use tokio::time::Instant;

use super::device::{Device, Item, Reading, World, code};
use crate::fakes::{MemoryStore, Mishap};
use crate::limits::{
    KEYS_BURST, KEYS_UNIT_BYTES, OUTBOX_BYTES_LOW, OUTBOX_BYTES_MAX, PAGE_BYTES_MAX,
    SNAPSHOT_STANDS, UPLOAD_LIFETIME, VaultLimits,
};
use crate::log::LogMessage;
use crate::ports::{
    CompactStep, LogKey, LogRecord, Position, Store, StoreError, VaultCounts, VaultStore,
};
use crate::vaults::VaultEvent;

const KEY: LogKey = LogKey(1);

async fn two_in_a_vault(world: &World) -> (Device, Device, LogId) {
    let mut laptop = Device::connected(1, world).await;
    let vault = laptop.found_vault().await;
    let phone = Device::connected(2, world).await;
    let entry = laptop.enrol_entry(vault, &phone);
    laptop.append(entry).await.expect("enrolled");
    (laptop, phone, vault)
}

async fn read_all(device: &mut Device, vault: LogId) -> (Reading, Head) {
    device.subscribe(vault, None).await.expect("subscribed");
    let mut reading = Reading::new(vault);
    let head = device.drain(&mut reading).await;
    (reading, head)
}

async fn stored(world: &World) -> LogRecord {
    world.store.load(&[KEY]).await.expect("a store").remove(0).expect("a vault")
}

fn body(text: &[u8]) -> Item {
    Item::Body(text.to_vec())
}

#[tokio::test]
async fn every_device_reads_every_body_its_author_and_later_devices_included() {
    let world = World::new().await;
    let mut laptop = Device::connected(1, &world).await;
    let vault = laptop.found_vault().await;
    laptop.subscribe(vault, None).await.expect("subscribed");
    let mut live = Reading::new(vault);
    laptop.drain(&mut live).await;
    laptop.say(vault, b"before the phone").await;
    let mut phone = Device::connected(2, &world).await;
    let entry = laptop.enrol_entry(vault, &phone);
    laptop.append(entry).await.expect("enrolled");
    phone.say(vault, b"from the phone").await;
    while live.seq < 4 {
        live.take(&laptop.next_content().await);
    }
    let expected = [
        Item::Control("found"),
        body(b"before the phone"),
        Item::Control("enrol"),
        body(b"from the phone"),
    ];
    assert_eq!(live.items, expected);
    let (read, _) = read_all(&mut phone, vault).await;
    assert_eq!(read.items, expected);
    laptop.connect(&world).await;
    let (read, _) = read_all(&mut laptop, vault).await;
    assert_eq!(read.items, expected);
}

#[tokio::test]
async fn a_device_is_enrolled_by_its_own_signature_and_that_of_an_enrolled_one() {
    let world = World::new().await;
    let (mut laptop, mut phone, vault) = two_in_a_vault(&world).await;
    let mut tablet = Device::connected(3, &world).await;

    // Signed for another author, or by nobody.
    let other = phone.enrol_entry(vault, &tablet);
    let control = Control::decode(other.body.as_ref()).expect("a control");
    let (count, prev) = (laptop.count, laptop.prev);
    let entry = laptop.control(vault, &control, Head::NONE);
    assert_eq!(code(laptop.append(entry).await), ErrorCode::BadSignature);
    (laptop.count, laptop.prev) = (count, prev);
    let control = Control::Enrol { device: tablet.id(), signature: Signature([0; 64]) };
    let entry = laptop.control(vault, &control, Head::NONE);
    assert_eq!(code(laptop.append(entry).await), ErrorCode::BadSignature);
    (laptop.count, laptop.prev) = (count, prev);
    // A device cannot enrol itself, nor can a stranger.
    let mut stranger = Device::connected(4, &world).await;
    let entry = stranger.enrol_entry(vault, &tablet);
    assert_eq!(code(stranger.append(entry).await), ErrorCode::NoSuchLog);
    let entry = tablet.entry(vault, Kind::Ring, b"let me in", &[], Head::NONE);
    assert_eq!(code(tablet.append(entry).await), ErrorCode::NoSuchLog);
    (tablet.count, tablet.prev) = (1, Digest::ZERO);
    assert_eq!(stored(&world).await.head.seq, 2, "nothing was appended");

    let entry = laptop.enrol_entry(vault, &tablet);
    laptop.append(entry).await.expect("enrolled");
    match tablet.next().await {
        RelayFrame::Membership(it) => assert_eq!((it.state, it.seq), (MembershipState::Joined, 3)),
        other => panic!("expected to be told, not {other:?}"),
    }
    tablet.say(vault, b"here").await;
    let entry = laptop.enrol_entry(vault, &tablet);
    assert_eq!(code(laptop.append(entry).await), ErrorCode::AlreadyMember);
}

#[tokio::test]
async fn what_a_revoked_device_sends_is_refused_whenever_it_was_signed() {
    let world = World::new().await;
    let (mut laptop, mut phone, vault) = two_in_a_vault(&world).await;
    phone.subscribe(vault, None).await.expect("subscribed");
    let mut reading = Reading::new(vault);
    phone.drain(&mut reading).await;
    phone.say(vault, b"stands").await;
    let early = phone.entry(vault, Kind::Ring, b"signed before, sent after", &[], Head::NONE);
    let revoke = Control::Revoke { device: phone.id(), join_key: None };
    let entry = laptop.control(vault, &revoke, Head::NONE);
    let revoked = laptop.append(entry).await.expect("revoked").seq;
    // Its subscription ends with the entry that did it.
    reading.take(&phone.next().await);
    reading.take(&phone.next().await);
    assert_eq!(reading.items.last(), Some(&Item::Control("revoke")));
    match phone.next().await {
        RelayFrame::Membership(it) => {
            assert_eq!((it.state, it.seq), (MembershipState::Revoked, revoked));
        }
        other => panic!("expected to be told, not {other:?}"),
    }
    laptop.say(vault, b"without the phone").await;
    let failure = phone.append(early).await.expect_err("refused");
    assert_eq!((failure.code, failure.seq), (ErrorCode::Revoked, Some(revoked)));
    let told = (ErrorCode::Revoked, Some(revoked));
    for frame in vault_frames(vault) {
        let failure = refused(&mut phone, frame).await;
        assert_eq!((failure.code, failure.seq), told);
    }
    // It is told to nobody else, and the device does not come back.
    let mut stranger = Device::connected(5, &world).await;
    let entry = stranger.entry(vault, Kind::Ring, b"?", &[], Head::NONE);
    assert_eq!(code(stranger.append(entry).await), ErrorCode::NoSuchLog);
    for frame in vault_frames(vault) {
        let failure = refused(&mut stranger, frame).await;
        assert_eq!((failure.code, failure.seq), (ErrorCode::NoSuchLog, None));
    }
    let entry = laptop.enrol_entry(vault, &phone);
    assert_eq!(code(laptop.append(entry).await), ErrorCode::BadControl);
    (laptop.count, laptop.prev) = (laptop.count - 1, Digest::ZERO);
    let (read, _) = read_all(&mut laptop, vault).await;
    let expected = [body(b"stands"), Item::Control("revoke"), body(b"without the phone")];
    assert_eq!(read.items[2..], expected);
}

/// Whatever a session may ask of a vault, but to append.
fn vault_frames(log: LogId) -> Vec<ClientFrame> {
    let digest = Digest([1; 32]);
    vec![
        frame::GetVaultToken { log }.into(),
        frame::ListSnapshots { log }.into(),
        chunk(log, &sealed(1), 0).into(),
        frame::GetSnapshotChunk { log, digest, offset: 0, length: 10 }.into(),
        frame::Subscribe { log, cursor: None, acked: None }.into(),
        frame::SubscribeFrom { log, snapshot: digest }.into(),
        frame::ListMembers { log }.into(),
    ]
}

async fn refused(device: &mut Device, frame: ClientFrame) -> Failure {
    let request = device.send(frame).await;
    match device.answer_to(request).await {
        RelayFrame::Error(error) => error.failure(),
        other => panic!("expected a refusal, not {other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_revoked_device_hears_no_more_within_a_second() {
    let world = World::new().await;
    let (mut laptop, mut phone, vault) = two_in_a_vault(&world).await;
    phone.subscribe(vault, None).await.expect("subscribed");
    phone.drain(&mut Reading::new(vault)).await;
    let listening = world.system.follow_vault(phone.id(), vault, 0, None).await;
    let mut stream = listening.map_err(|it| it.code).expect("a stream");
    let silence = Duration::from_secs(20);
    assert!(matches!(stream.next(silence).await, Some(VaultEvent::Page(_))));
    let revoke = Control::Revoke { device: phone.id(), join_key: None };
    let entry = laptop.control(vault, &revoke, Head::NONE);
    let begun = Instant::now();
    laptop.append(entry).await.expect("revoked");
    while !matches!(phone.next().await, RelayFrame::Membership(_)) {}
    while stream.next(silence).await.is_some() {}
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn nobody_is_told_of_a_revocation_that_came_to_nothing() {
    let world = World::new().await;
    let (mut laptop, mut phone, vault) = two_in_a_vault(&world).await;
    let revoke = Control::Revoke { device: phone.id(), join_key: None };
    let revoke = laptop.control(vault, &revoke, Head::NONE);
    let entry = phone.entry(vault, Kind::Ring, b"here", &[], Head::NONE);
    let both = async |laptop: &mut Device, phone: &mut Device| {
        world.store.hold_commits();
        let revoked = laptop.send(frame::Append { entry: revoke.clone() }).await;
        world.store.commits_held(1).await;
        // Judged while the revocation is under way.
        let said = phone.send(frame::Append { entry: entry.clone() }).await;
        (revoked, said)
    };
    let (revoked, said) = both(&mut laptop, &mut phone).await;
    world.store.next_commits(1, Mishap::Fails(StoreError::Unavailable));
    world.store.release_commits();
    assert_eq!(code(laptop.appended(revoked).await), ErrorCode::Unavailable);
    assert_eq!(code(phone.appended(said).await), ErrorCode::Unavailable);
    // It is enrolled, and so it stays.
    assert_eq!(stored(&world).await.head.seq, 2);
    phone.append(entry.clone()).await.expect("appended");

    let entry = phone.entry(vault, Kind::Ring, b"too late", &[], Head::NONE);
    world.store.hold_commits();
    let revoked = laptop.send(frame::Append { entry: revoke.clone() }).await;
    world.store.commits_held(1).await;
    let said = phone.send(frame::Append { entry }).await;
    world.store.release_commits();
    let revoked = laptop.appended(revoked).await.expect("revoked").seq;
    let failure = phone.appended(said).await.expect_err("refused");
    assert_eq!((failure.code, failure.seq), (ErrorCode::Revoked, Some(revoked)));
}

#[tokio::test]
async fn no_refusal_names_an_entry_that_came_to_nothing() {
    // What is under way, who asks then, and what it would hear if that were durable.
    let cases = [ErrorCode::Stale, ErrorCode::OutOfOrder, ErrorCode::Conflict];
    for expected in cases {
        for fails in [true, false] {
            let world = World::new().await;
            let (mut laptop, mut phone, vault) = two_in_a_vault(&world).await;
            let said = laptop.entry(vault, Kind::Ring, b"said", &[], Head::NONE);
            let (count, prev) = (laptop.count, laptop.prev);
            let seen = laptop.append(said).await.expect("appended").head;
            let first = laptop.rotation(vault, seen);
            let asked = match expected {
                ErrorCode::Stale => phone.rotation(vault, seen),
                ErrorCode::OutOfOrder => {
                    laptop.count += 1;
                    laptop.entry(vault, Kind::Ring, b"from the future", &[], Head::NONE)
                }
                // Another one under a count that the store knows: it hears which is the newest.
                _ => {
                    (laptop.count, laptop.prev) = (count - 1, prev);
                    laptop.entry(vault, Kind::Ring, b"another", &[], Head::NONE)
                }
            };
            world.store.hold_commits();
            let rotated = laptop.send(frame::Append { entry: first }).await;
            world.store.commits_held(1).await;
            let by = if expected == ErrorCode::Stale { &mut phone } else { &mut laptop };
            let request = by.send(frame::Append { entry: asked }).await;
            if fails {
                world.store.next_commits(1, Mishap::Fails(StoreError::Unavailable));
            }
            world.store.release_commits();
            let by = if expected == ErrorCode::Stale { &mut phone } else { &mut laptop };
            let failure = by.appended(request).await.expect_err("refused");
            let told = if fails { ErrorCode::Unavailable } else { expected };
            assert_eq!(failure.code, told, "{expected:?}, {fails}");
            assert_eq!(laptop.appended(rotated).await.is_err(), fails);
        }
    }
}

#[tokio::test]
async fn every_entry_of_a_vault_is_verified() {
    let world = World::new().await;
    let (mut laptop, mut phone, vault) = two_in_a_vault(&world).await;
    let mut entries: Vec<EntryIn> = (0..40_u8)
        .map(|number| laptop.entry(vault, Kind::Ring, &[number], &[], Head::NONE))
        .collect();
    let whole = Bounded::new(entries.clone()).expect("few");
    entries[33].signature = Some(Signature([1; 64]));
    let broken = Bounded::new(entries).expect("few");
    let request = laptop.send(frame::AppendBatch { entries: broken }).await;
    assert_eq!(code(laptop.appended(request).await), ErrorCode::BadSignature);
    assert_eq!(stored(&world).await.head.seq, 2, "all or none");
    let request = laptop.send(frame::AppendBatch { entries: whole }).await;
    let appended = laptop.appended(request).await.expect("appended");
    assert_eq!((appended.seq, appended.head.seq), (3, 42));
    // Another device's entry is not taken from this one, whoever has signed it.
    let stolen = laptop.entry(vault, Kind::Ring, b"mine", &[], Head::NONE);
    assert_eq!(code(phone.append(stolen).await), ErrorCode::BadHeader);
    // Only keys name whom they are for.
    let named = phone.entry(vault, Kind::Ring, b"for one", &[laptop.id()], Head::NONE);
    assert_eq!(code(phone.append(named).await), ErrorCode::BadAudience);
}

#[tokio::test]
async fn of_two_rotations_at_once_one_wins_and_the_other_is_made_anew() {
    let world = World::new().await;
    let (mut laptop, mut phone, vault) = two_in_a_vault(&world).await;
    let (_, head) = read_all(&mut laptop, vault).await;
    let first = laptop.rotation(vault, head);
    let (count, prev) = (phone.count, phone.prev);
    let second = phone.rotation(vault, head);
    laptop.append(first).await.expect("the first one wins");
    let failure = phone.append(second).await.expect_err("the second one is stale");
    assert_eq!((failure.code, failure.head.map(|head| head.seq)), (ErrorCode::Stale, Some(3)));
    // A delivery asks for nothing.
    (phone.count, phone.prev) = (count, prev);
    let delivery = delivery(&mut phone, vault, &laptop);
    phone.append(delivery).await.expect("appended");
    let rebased = phone.rotation(vault, failure.head.expect("a head"));
    phone.append(rebased).await.expect("appended");
}

fn delivery(author: &mut Device, vault: LogId, to: &Device) -> EntryIn {
    let sealed =
        SealedKey { recipient: to.id(), enc: [0; 32], ciphertext: BoundedBytes::default() };
    let keys = Bounded::new(vec![sealed]).expect("one");
    let body = KeyBody { scope: Scope([1; 16]), epoch: 1, keys }.encode().expect("small");
    author.entry(vault, Kind::Key, &body, &[to.id()], Head::NONE)
}

// ---- snapshots

/// Something that is not all zeros, of three chunks.
fn sealed(seed: u8) -> Vec<u8> {
    let length = 2 * SNAPSHOT_CHUNK_BYTES_MIN + 100;
    (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

async fn put(device: &mut Device, frame: frame::PutSnapshotChunk) -> Result<(), Failure> {
    let request = device.send(frame).await;
    match device.answer_to(request).await {
        RelayFrame::Done(_) => Ok(()),
        RelayFrame::Error(error) => Err(error.failure()),
        other => panic!("a chunk was answered with {other:?}"),
    }
}

fn chunk(log: LogId, whole: &[u8], number: usize) -> frame::PutSnapshotChunk {
    let offset = number * SNAPSHOT_CHUNK_BYTES_MIN;
    let end = whole.len().min(offset + SNAPSHOT_CHUNK_BYTES_MIN);
    frame::PutSnapshotChunk {
        log,
        digest: sha256(whole),
        size: whole.len() as u64,
        offset: offset as u64,
        bytes: BoundedBytes::new(whole[offset..end].to_vec()).expect("short"),
    }
}

async fn upload(device: &mut Device, log: LogId, whole: &[u8]) {
    for number in 0..3 {
        put(device, chunk(log, whole, number)).await.expect("kept");
    }
}

fn made(whole: &[u8], head: Head) -> Control {
    Control::Snapshot { head, digest: sha256(whole), size: whole.len() as u64, chunks: 3 }
}

/// Uploads a snapshot at `head` and makes it real.
async fn snapshot(device: &mut Device, log: LogId, seed: u8, head: Head) -> Digest {
    let whole = sealed(seed);
    upload(device, log, &whole).await;
    let entry = device.control(log, &made(&whole, head), head);
    device.append(entry).await.expect("real");
    sha256(&whole)
}

async fn opened(device: &mut Device, log: LogId, digest: Digest) -> Result<u64, Failure> {
    let (count, prev) = (device.count, device.prev);
    let entry = device.control(log, &Control::SnapshotOpened { digest }, Head::NONE);
    let result = device.append(entry).await;
    if result.is_err() {
        (device.count, device.prev) = (count, prev);
    }
    result.map(|appended| appended.seq)
}

async fn list(device: &mut Device, log: LogId) -> Vec<SnapshotSummary> {
    let request = device.send(frame::ListSnapshots { log }).await;
    match device.answer_to(request).await {
        RelayFrame::Snapshots(snapshots) => snapshots.snapshots.into_vec(),
        other => panic!("a list was answered with {other:?}"),
    }
}

#[tokio::test]
async fn an_upload_is_resumed_where_it_was_broken_off_and_is_real_by_its_control_entry() {
    let world = World::new().await;
    let (mut laptop, mut phone, vault) = two_in_a_vault(&world).await;
    let (_, head) = read_all(&mut laptop, vault).await;
    let whole = sealed(1);
    put(&mut laptop, chunk(vault, &whole, 0)).await.expect("kept");
    put(&mut laptop, chunk(vault, &whole, 1)).await.expect("kept");
    laptop.connect(&world).await;
    let failure = put(&mut laptop, chunk(vault, &whole, 0)).await.expect_err("known");
    let next = 2 * SNAPSHOT_CHUNK_BYTES_MIN as u64;
    assert_eq!((failure.code, failure.expected), (ErrorCode::OutOfOrder, Some(next)));
    let (count, prev) = (laptop.count, laptop.prev);
    let entry = laptop.control(vault, &made(&whole, head), head);
    assert_eq!(code(laptop.append(entry.clone()).await), ErrorCode::NoSuchSnapshot);
    put(&mut laptop, chunk(vault, &whole, 2)).await.expect("whole");
    assert!(list(&mut phone, vault).await.is_empty(), "it is not real");
    laptop.append(entry).await.expect("real");
    let expected = SnapshotSummary {
        head,
        digest: sha256(&whole),
        size: whole.len() as u64,
        confirmed: false,
    };
    assert_eq!(list(&mut phone, vault).await, [expected]);
    assert_ne!((count, prev), (laptop.count, laptop.prev));
    // In ranges, across the chunks that it came in.
    let mut read = Vec::new();
    while read.len() < whole.len() {
        let (offset, digest) = (read.len() as u64, sha256(&whole));
        let frame = frame::GetSnapshotChunk { log: vault, digest, offset, length: 10_000 };
        let request = phone.send(frame).await;
        match phone.answer_to(request).await {
            RelayFrame::SnapshotChunk(chunk) => read.extend_from_slice(&chunk.bytes),
            other => panic!("a range was answered with {other:?}"),
        }
    }
    assert_eq!(read, whole);
}

#[tokio::test]
async fn chunks_that_do_not_fit_are_refused_and_nothing_is_kept() {
    let world = World::new().await;
    let (mut laptop, _, vault) = two_in_a_vault(&world).await;
    let (_, head) = read_all(&mut laptop, vault).await;
    let whole = sealed(2);
    let fits = chunk(vault, &whole, 0);
    let wrong = [
        frame::PutSnapshotChunk {
            size: 0,
            offset: 0,
            bytes: BoundedBytes::default(),
            ..fits.clone()
        },
        frame::PutSnapshotChunk { offset: u64::MAX, ..fits.clone() },
        frame::PutSnapshotChunk { offset: fits.size - 1, ..fits.clone() },
        frame::PutSnapshotChunk {
            bytes: BoundedBytes::new(vec![1; 9]).expect("short"),
            ..fits.clone()
        },
    ];
    for frame in wrong {
        assert_eq!(code(put(&mut laptop, frame).await), ErrorCode::BadSnapshot);
    }
    let huge = frame::PutSnapshotChunk { size: u64::MAX, ..fits.clone() };
    assert_eq!(code(put(&mut laptop, huge).await), ErrorCode::TooLarge);
    let foreign = frame::PutSnapshotChunk { log: LogId([0x88; 16]), ..fits.clone() };
    assert_eq!(code(put(&mut laptop, foreign).await), ErrorCode::NoSuchLog);
    put(&mut laptop, fits.clone()).await.expect("kept");
    let other_size = frame::PutSnapshotChunk { size: fits.size + 1, ..chunk(vault, &whole, 1) };
    assert_eq!(code(put(&mut laptop, other_size).await), ErrorCode::BadSnapshot);
    // Bytes that are not those of the digest: the upload is over.
    let mut forged = chunk(vault, &whole, 1);
    let mut bytes = forged.bytes.to_vec();
    bytes[7] ^= 1;
    forged.bytes = BoundedBytes::new(bytes).expect("short");
    put(&mut laptop, forged).await.expect("kept");
    assert_eq!(code(put(&mut laptop, chunk(vault, &whole, 2)).await), ErrorCode::BadSnapshot);
    let entry = laptop.control(vault, &made(&whole, head), head);
    assert_eq!(code(laptop.append(entry).await), ErrorCode::NoSuchSnapshot);
    (laptop.count, laptop.prev) = (laptop.count - 1, laptop.prev);
    upload(&mut laptop, vault, &whole).await;
    assert!(list(&mut laptop, vault).await.is_empty());
}

#[tokio::test]
async fn a_snapshot_of_a_head_that_is_not_the_vaults_is_refused() {
    let world = World::new().await;
    let (mut laptop, _, vault) = two_in_a_vault(&world).await;
    let (_, head) = read_all(&mut laptop, vault).await;
    let whole = sealed(3);
    upload(&mut laptop, vault, &whole).await;
    let (count, prev) = (laptop.count, laptop.prev);
    let wrong = [
        made(&whole, Head { seq: 99, ..head }),
        made(&whole, Head { incarnation: head.incarnation + 1, ..head }),
        made(&whole, Head { chain: Digest([1; 32]), ..head }),
        Control::Snapshot { head, digest: sha256(&whole), size: 1, chunks: 3 },
        Control::Snapshot { head, digest: sha256(&whole), size: whole.len() as u64, chunks: 4 },
    ];
    for control in wrong {
        (laptop.count, laptop.prev) = (count, prev);
        let entry = laptop.control(vault, &control, head);
        assert_eq!(code(laptop.append(entry).await), ErrorCode::BadSnapshot);
    }
    (laptop.count, laptop.prev) = (count, prev);
    let entry = laptop.control(vault, &made(&whole, head), Head::NONE);
    assert_eq!(code(laptop.append(entry).await), ErrorCode::Stale, "it had seen no rotation");
}

/// A vault with a rotation, some changesets, a snapshot that covers them, and one more changeset.
async fn with_a_snapshot(world: &World) -> (Device, Device, LogId, Digest, Head) {
    let (mut laptop, phone, vault) = two_in_a_vault(world).await;
    let (_, head) = read_all(&mut laptop, vault).await;
    let rotation = laptop.rotation(vault, head);
    laptop.append(rotation).await.expect("rotated");
    let mut head = head;
    for number in 0..5_u8 {
        head = laptop.say(vault, &[number]).await.head;
    }
    let digest = snapshot(&mut laptop, vault, 4, head).await;
    laptop.say(vault, b"after").await;
    (laptop, phone, vault, digest, head)
}

#[tokio::test]
async fn entries_go_only_when_another_device_has_opened_a_snapshot() {
    let world = World::new().await;
    let (mut laptop, mut phone, vault, digest, head) = with_a_snapshot(&world).await;
    let due = world.store.due_for_compaction(LogKey(0), 0, 9).await.expect("a store");
    assert!(due.0.is_empty(), "nobody has opened it");
    assert_eq!(code(opened(&mut laptop, vault, digest).await), ErrorCode::BadControl);
    let unknown = opened(&mut phone, vault, Digest([9; 32])).await;
    assert_eq!(code(unknown), ErrorCode::NoSuchSnapshot);
    let before = stored(&world).await;
    let seq = opened(&mut phone, vault, digest).await.expect("confirmed");
    world.until_async(|| async { stored(&world).await.floor.seq == head.seq }).await;
    let after = stored(&world).await;
    assert_eq!(after.vault.counts.entries, before.vault.counts.entries + 1 - 5);
    assert_eq!((after.head.seq, after.floor.chain), (seq, head.chain));

    // A reader from the beginning is told where to start, and gets what is kept from below.
    phone.subscribe(vault, None).await.expect("subscribed");
    match phone.next_content().await {
        RelayFrame::Floor(floor) => {
            assert_eq!((floor.head, floor.snapshot.expect("one").digest), (head, digest));
        }
        other => panic!("expected the floor, not {other:?}"),
    }
    let mut kept = Vec::new();
    for _ in 0..3 {
        match phone.next_content().await {
            RelayFrame::Entry(entry) => {
                kept.push((entry.seq, entry.header.decode().expect("a header").kind));
            }
            other => panic!("expected what is kept, not {other:?}"),
        }
    }
    assert_eq!(kept, [(1, Kind::Control), (2, Kind::Control), (3, Kind::Key)]);
    let mut reading = Reading::new(vault);
    reading.at_floor(&head);
    phone.drain(&mut reading).await;
    let expected = [Item::Control("snapshot"), body(b"after"), Item::Control("snapshot_opened")];
    assert_eq!(reading.items, expected);
    assert!(list(&mut phone, vault).await[0].confirmed);
}

/// A vault of 32 devices whose floor stands above many keys, each sealed to all of them.
async fn with_many_keys(world: &World) -> (Device, LogId, usize) {
    let (mut laptop, mut phone, vault) = two_in_a_vault(world).await;
    let mut devices = vec![laptop.id(), phone.id()];
    for seed in 3..=32 {
        let other = Device::new(seed);
        let entry = laptop.enrol_entry(vault, &other);
        laptop.append(entry).await.expect("enrolled");
        devices.push(other.id());
    }
    let sealed = |recipient| SealedKey {
        recipient,
        enc: [0; 32],
        ciphertext: BoundedBytes::new(vec![1; 160]).expect("short"),
    };
    let keys = Bounded::new(devices.iter().copied().map(sealed).collect()).expect("few");
    let body = KeyBody { scope: Scope([1; 16]), epoch: 1, keys }.encode().expect("small");
    let mut bytes = 0;
    for _ in 0..2 {
        let entries = (0..120)
            .map(|_| laptop.entry(vault, Kind::Key, &body, &devices, Head::NONE))
            .collect::<Vec<_>>();
        bytes += entries.len() * body.len();
        let batch = frame::AppendBatch { entries: Bounded::new(entries).expect("few") };
        let request = laptop.send(batch).await;
        laptop.appended(request).await.expect("appended");
    }
    let head = laptop.say(vault, b"old").await.head;
    let digest = snapshot(&mut laptop, vault, 9, head).await;
    opened(&mut phone, vault, digest).await.expect("confirmed");
    world.until_async(|| async { stored(world).await.floor.seq == head.seq }).await;
    (phone, vault, bytes)
}

#[tokio::test]
async fn a_reader_below_the_floor_that_takes_nothing_holds_a_page_and_no_more() {
    let world = World::new().await;
    let (mut phone, vault, bytes) = with_many_keys(&world).await;
    assert!(bytes > 2 * OUTBOX_BYTES_MAX, "{bytes} bytes of keys");
    phone.connect(&world).await;
    phone.send(frame::Subscribe { log: vault, cursor: None, acked: None }).await;
    let outbox = phone.session().outbox().clone();
    // A page at a time, until there is no room for another.
    let full = || {
        phone.session().catch_up();
        outbox.queued_bytes() > OUTBOX_BYTES_LOW
    };
    world.until(full).await;
    let waiting = outbox.queued_bytes();
    assert!(waiting <= OUTBOX_BYTES_MAX, "{waiting} bytes wait for whoever takes nothing");
    // Whoever takes gets all of them: founding, enrolments, keys.
    let mut kept = 0;
    let end = loop {
        match phone.next_content().await {
            RelayFrame::Entry(entry) if entry.seq > 272 => break entry.seq,
            RelayFrame::Entry(_) => kept += 1,
            _ => {}
        }
    };
    assert_eq!((kept, end), (1 + 31 + 240, 274));
}

#[tokio::test]
async fn a_page_below_the_floor_without_a_session_is_as_short_as_any_other() {
    let world = World::new().await;
    let (phone, vault, _) = with_many_keys(&world).await;
    let (mut after, mut seqs) = (0, Vec::new());
    loop {
        let pulled = world.system.pull_from_vault(phone.id(), vault, after, None).await;
        let (page, _) = pulled.map_err(|it| it.code).expect("a page");
        let lengths = page.changesets.iter().map(|it| it.entry.body.as_ref().expect("kept").len());
        let names = page.changesets.iter().map(|it| it.entry.recipients.len() * 32);
        assert!(lengths.sum::<usize>() + names.sum::<usize>() <= PAGE_BYTES_MAX);
        seqs.extend(page.changesets.iter().map(|it| it.entry.seq));
        after = page.reached;
        if !page.more() {
            break;
        }
    }
    let expected: Vec<u64> = (1..=272).chain(274..=275).collect();
    assert_eq!(seqs, expected, "everything that is kept, in order and once");
}

#[tokio::test]
async fn a_device_that_writes_nothing_but_keys_is_told_to_wait() {
    let world = World::new().await;
    let (mut laptop, mut phone, vault) = two_in_a_vault(&world).await;
    let keys = (0..1000_u32).map(|number| {
        let mut recipient = [0; 32];
        recipient[..4].copy_from_slice(&number.to_be_bytes());
        let ciphertext = BoundedBytes::new(vec![1; 160]).expect("short");
        SealedKey { recipient: sealwire_protocol::DeviceKey(recipient), enc: [0; 32], ciphertext }
    });
    let keys = Bounded::new(keys.collect()).expect("few");
    let body = KeyBody { scope: Scope([1; 16]), epoch: 1, keys }.encode().expect("small");
    let units = body.len().div_ceil(KEYS_UNIT_BYTES) as u32;
    let mut head = laptop.say(vault, b"seen").await.head;
    for _ in 0..KEYS_BURST / units {
        let rotation = laptop.entry(vault, Kind::Key, &body, &[], head);
        head = laptop.append(rotation).await.expect("appended").head;
    }
    let (count, prev) = (laptop.count, laptop.prev);
    let rotation = laptop.entry(vault, Kind::Key, &body, &[], head);
    let failure = laptop.append(rotation).await.expect_err("too many");
    assert_eq!(failure.code, ErrorCode::RateLimited);
    assert!(failure.retry_after_ms.is_some());
    // Everything else goes on, and so does everybody else.
    (laptop.count, laptop.prev) = (count, prev);
    laptop.say(vault, b"all the same").await;
    let rotation = phone.rotation(vault, head);
    phone.append(rotation).await.expect("appended");
}

#[tokio::test]
async fn a_new_device_starts_from_a_snapshot_that_nobody_has_opened() {
    let world = World::new().await;
    let (_, mut phone, vault, digest, head) = with_a_snapshot(&world).await;
    let nothing = phone.send(frame::SubscribeFrom { log: vault, snapshot: Digest([8; 32]) }).await;
    match phone.answer_to(nothing).await {
        RelayFrame::Error(error) => assert_eq!(error.code, ErrorCode::NoSuchSnapshot),
        other => panic!("expected a refusal, not {other:?}"),
    }
    let request = phone.send(frame::SubscribeFrom { log: vault, snapshot: digest }).await;
    assert!(matches!(phone.answer_to(request).await, RelayFrame::Subscribed(_)));
    match phone.next_content().await {
        RelayFrame::Floor(floor) => assert_eq!(floor.head, head),
        other => panic!("expected the floor, not {other:?}"),
    }
    for seq in 1..=3 {
        match phone.next_content().await {
            RelayFrame::Entry(entry) => assert_eq!(entry.seq, seq),
            other => panic!("expected what is kept, not {other:?}"),
        }
    }
    let mut reading = Reading::new(vault);
    reading.at_floor(&head);
    phone.drain(&mut reading).await;
    assert_eq!(reading.items, [Item::Control("snapshot"), body(b"after")]);
}

#[tokio::test]
async fn alone_a_snapshot_counts_when_it_has_stood_for_long_enough() {
    let world = World::new().await;
    let mut laptop = Device::connected(1, &world).await;
    let vault = laptop.found_vault().await;
    let head = laptop.say(vault, b"old").await.head;
    snapshot(&mut laptop, vault, 5, head).await;
    let stands = SNAPSHOT_STANDS.as_millis() as u64;
    world.clock.turn(stands);
    let before = |world: &World| crate::ports::Clock::now_ms(world.clock.as_ref()) - stands;
    let due = world.store.due_for_compaction(LogKey(0), before(&world), 9).await;
    assert!(due.expect("a store").0.is_empty(), "not before the day is over");
    world.clock.turn(1);
    world.until_async(|| async { stored(&world).await.floor.seq == head.seq }).await;
    assert!(list(&mut laptop, vault).await[0].confirmed);
}

#[tokio::test]
async fn what_was_made_before_a_device_was_alone_is_not_confirmed_by_time() {
    for (by_lost, leaves) in [(true, false), (true, true), (false, false), (false, true)] {
        let world = World::new().await;
        let (mut laptop, mut phone, vault) = two_in_a_vault(&world).await;
        let head = laptop.say(vault, b"history").await.head;
        let author = if by_lost { &mut phone } else { &mut laptop };
        let digest = snapshot(author, vault, 5, head).await;
        if leaves {
            let entry = phone.control(vault, &Control::Leave, Head::NONE);
            phone.append(entry).await.expect("left");
        } else {
            let revoke = Control::Revoke { device: phone.id(), join_key: None };
            let entry = laptop.control(vault, &revoke, Head::NONE);
            laptop.append(entry).await.expect("revoked");
        }
        world.clock.turn(SNAPSHOT_STANDS.as_millis() as u64 + 1);
        // What it makes itself from now on stands alone, and the older one is below it.
        let head = laptop.say(vault, b"more").await.head;
        let newer = snapshot(&mut laptop, vault, 6, head).await;
        let now = crate::ports::Clock::now_ms(world.clock.as_ref());
        let stands = SNAPSHOT_STANDS.as_millis() as u64;
        let due = world.store.due_for_compaction(LogKey(0), now - stands, 9).await;
        assert!(due.expect("a store").0.is_empty(), "{digest:?}: nobody has ever opened it");
        let step = forged_step(&stored(&world).await, 3);
        world.system.shared.cast_log(KEY, LogMessage::Compact(step, now - stands));
        world.flush(KEY).await;
        assert!(list(&mut laptop, vault).await.iter().all(|snapshot| !snapshot.confirmed));
        assert_eq!(stored(&world).await.floor.seq, 0);
        world.clock.turn(stands + 1);
        world.until_async(|| async { stored(&world).await.floor.seq == head.seq }).await;
        let confirmed = list(&mut laptop, vault).await;
        let confirmed: Vec<_> = confirmed.iter().filter(|it| it.confirmed).collect();
        assert_eq!((confirmed.len(), confirmed[0].digest), (1, newer));
    }
}

/// A step of compaction that no store would name.
fn forged_step(record: &LogRecord, seq: u64) -> CompactStep {
    let up_to = Position { seq, chain: Digest::ZERO };
    CompactStep { key: record.key, from: record.floor.seq, up_to, gone: VaultCounts::default() }
}

#[tokio::test]
async fn a_device_that_goes_takes_its_snapshots_along_and_gives_their_room_back() {
    let limits = VaultLimits { snapshots_max: 3, ..VaultLimits::default() };
    for leaves in [false, true] {
        let world = World::with(Arc::new(MemoryStore::new()), limits).await;
        let (mut laptop, mut phone, vault) = two_in_a_vault(&world).await;
        let head = laptop.say(vault, b"history").await.head;
        let kept = snapshot(&mut phone, vault, 1, head).await;
        let gone = [
            snapshot(&mut phone, vault, 2, head).await,
            snapshot(&mut phone, vault, 3, head).await,
        ];
        let whole = sealed(4);
        let failure = put(&mut laptop, chunk(vault, &whole, 0)).await.expect_err("full");
        assert_eq!(failure.code, ErrorCode::SnapshotsLimitReached);
        opened(&mut laptop, vault, kept).await.expect("confirmed");
        if leaves {
            let entry = phone.control(vault, &Control::Leave, Head::NONE);
            phone.append(entry).await.expect("left");
        } else {
            let revoke = Control::Revoke { device: phone.id(), join_key: None };
            let entry = laptop.control(vault, &revoke, Head::NONE);
            laptop.append(entry).await.expect("revoked");
        }
        let listed = list(&mut laptop, vault).await;
        let listed: Vec<Digest> = listed.iter().map(|snapshot| snapshot.digest).collect();
        assert_eq!(listed, [kept], "somebody else has vouched for it");
        for digest in gone {
            let failure = opened(&mut laptop, vault, digest).await.expect_err("it is gone");
            assert_eq!(failure.code, ErrorCode::NoSuchSnapshot);
        }
        let head = laptop.say(vault, b"more").await.head;
        snapshot(&mut laptop, vault, 4, head).await;
        let stored = stored(&world).await.vault.snapshots;
        assert_eq!(stored.len(), 2, "in the store as in memory");
        for digest in gone {
            assert!(world.store.read_chunk(KEY, digest, 0, 10).await.expect("a store").is_empty());
        }
    }
}

#[tokio::test]
async fn an_upload_that_nobody_finishes_is_swept() {
    let world = World::new().await;
    let (mut laptop, _, vault, digest, _) = with_a_snapshot(&world).await;
    let whole = sealed(6);
    put(&mut laptop, chunk(vault, &whole, 0)).await.expect("kept");
    world.clock.turn(UPLOAD_LIFETIME.as_millis() as u64 + 1);
    let gone = async || {
        let bytes = world.store.read_chunk(KEY, sha256(&whole), 0, 10).await.expect("a store");
        bytes.is_empty()
    };
    world.until_async(gone).await;
    let bytes = world.store.read_chunk(KEY, digest, 0, 10).await.expect("a store");
    assert_eq!(bytes.len(), 10, "a snapshot is not");
}

#[tokio::test]
async fn a_full_vault_says_so_to_whoever_writes_and_whoever_reads() {
    let limits = VaultLimits {
        entries_max: 8,
        entries_reserve: 3,
        bytes_max: 200_000,
        bytes_reserve: 1000,
        devices_max: 2,
        snapshots_max: 1,
        ..VaultLimits::default()
    };
    let world = World::with(Arc::new(MemoryStore::new()), limits).await;
    let (mut laptop, mut phone, vault) = two_in_a_vault(&world).await;
    phone.subscribe(vault, None).await.expect("subscribed");
    phone.drain(&mut Reading::new(vault)).await;
    let tablet = Device::connected(3, &world).await;
    let entry = laptop.enrol_entry(vault, &tablet);
    let failure = laptop.append(entry).await.expect_err("full");
    assert_eq!((failure.code, failure.limit), (ErrorCode::DevicesLimitReached, Some(2)));
    laptop.count -= 1;
    laptop.prev = last_of(&world, &laptop).await;
    let long = laptop.entry(vault, Kind::Ring, &[0; 199_500], &[], Head::NONE);
    let failure = laptop.append(long).await.expect_err("full");
    assert_eq!((failure.code, failure.limit), (ErrorCode::BytesLimitReached, Some(200_000)));
    assert!(matches!(phone.next_content().await, RelayFrame::QuotaReached(_)));
    laptop.count -= 1;
    laptop.prev = last_of(&world, &laptop).await;
    let mut head = Head::NONE;
    for number in 0..3_u8 {
        head = laptop.say(vault, &[number]).await.head;
    }
    let (count, prev) = (laptop.count, laptop.prev);
    let entry = laptop.entry(vault, Kind::Ring, b"one too many", &[], Head::NONE);
    let failure = laptop.append(entry).await.expect_err("full");
    assert_eq!((failure.code, failure.limit), (ErrorCode::EntriesLimitReached, Some(8)));
    (laptop.count, laptop.prev) = (count, prev);
    // What brings it back fits the reserve.
    let digest = snapshot(&mut laptop, vault, 7, head).await;
    let second = sealed(8);
    let failure = put(&mut laptop, chunk(vault, &second, 0)).await.expect_err("full");
    assert_eq!(failure.code, ErrorCode::SnapshotsLimitReached);
    opened(&mut phone, vault, digest).await.expect("confirmed");
    world.until_async(|| async { stored(&world).await.floor.seq == head.seq }).await;
    laptop.say(vault, b"again").await;
}

async fn last_of(world: &World, device: &Device) -> Digest {
    let record = stored(world).await;
    let sender = record.senders.iter().find(|sender| sender.device == device.id());
    sender.map_or(Digest::ZERO, |sender| sender.last_digest)
}

#[tokio::test]
async fn acks_of_a_vault_are_not_stored() {
    let world = World::new().await;
    let (mut laptop, mut phone, vault) = two_in_a_vault(&world).await;
    laptop.say(vault, b"one").await;
    read_all(&mut phone, vault).await;
    phone.ack(vault, 1, 3).await;
    world.flush(KEY).await;
    assert!(stored(&world).await.members.iter().all(|member| member.acked.floor() == 0));
    tokio::time::timeout(Duration::from_secs(5), async {
        let (read, _) = read_all(&mut phone, vault).await;
        assert_eq!(read.items.last(), Some(&body(b"one")), "and free nothing");
    })
    .await
    .expect("in time");
}

#[tokio::test]
async fn the_chain_of_a_vault_is_that_of_its_entries() {
    let world = World::new().await;
    let (mut laptop, _, vault) = two_in_a_vault(&world).await;
    let entry = laptop.entry(vault, Kind::Ring, b"x", &[], Head::NONE);
    let digest = entry_digest(&entry.header);
    let before = stored(&world).await.head;
    let appended = laptop.append(entry).await.expect("appended");
    assert_eq!(appended.head.chain, chain_next(before.chain, appended.seq, digest));
    assert_ne!(before.chain, chain_start(vault));
}
