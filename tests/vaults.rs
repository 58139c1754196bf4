//! One encrypted database on every device: enrolled, revoked, from a snapshot on.

use std::sync::Arc;
use std::time::Duration;

use sealwire_actors::Options;
use sealwire_client::entry::{Outline, Rejection};
use sealwire_client::identity::Identity;
use sealwire_client::numbering::Mark;
use sealwire_client::seal;
use sealwire_client::vault::{Changeset, SnapshotError, Vault, VaultError};
use sealwire_client::wire::{self, Wire, WireError};
use sealwire_protocol::bounded::BoundedBytes;
use sealwire_protocol::digest::{entry_digest, sha256};
use sealwire_protocol::frame::{
    Append, GetSnapshotChunk, GetVaultToken, ListMembers, ListSnapshots, PutSnapshotChunk,
    Subscribe, SubscribeFrom,
};
use sealwire_protocol::token::{Purpose, TokenKey};
use sealwire_protocol::{
    ClientFrame, Control, Digest, ErrorCode, Failure, Head, Kind, LogId, RelayFrame,
};
use tokio::time::{Instant, timeout};

use crate::support::fcm::Fcm;
use crate::support::on_both_databases;
use crate::support::place::Database;
use crate::support::world::World;
use crate::support::{DEADLINE, eventually};

on_both_databases!(
    a_household_reads_what_each_of_its_devices_has_written,
    a_revoked_device_hears_no_more_and_never_gets_the_next_key,
    a_revoked_device_is_told_so_by_every_frame_and_nobody_else_is,
    what_came_before_its_key_is_opened_however_little_of_it_can_wait,
    what_waits_for_its_key_outlives_the_process,
    what_is_read_on_the_way_is_given_by_the_next_pull,
    a_new_device_starts_from_a_snapshot_and_the_changesets_after_it,
    a_device_that_was_away_is_told_where_to_start,
    a_snapshot_that_is_not_what_it_says_is_refused_by_relay_or_reader,
    a_snapshot_is_sealed_under_no_key_of_a_device_that_was_removed,
    what_is_sent_wrong_over_a_session_is_refused_and_nothing_changes,
    an_upload_goes_on_after_a_restart_of_the_relay,
    a_token_is_for_one_vault_and_one_device,
    what_the_sdk_has_acknowledged_wakes_nobody,
);

/// A device, its connection, and what it knows of the vault.
struct Member {
    identity: Arc<Identity>,
    wire: Wire,
    vault: Vault,
}

async fn connect(world: &World, identity: &Identity) -> Wire {
    let options = wire::Options::default();
    wire::connect(&world.url(), identity, &options).await.expect("a session").0
}

fn identity(number: u8) -> Arc<Identity> {
    Arc::new(Identity::from_seed(&[number; 32]))
}

impl Member {
    async fn found(world: &World) -> Self {
        Self::with(world, 1).await
    }

    /// The first device of a vault.
    async fn with(world: &World, number: u8) -> Self {
        let identity = identity(number);
        let mut wire = connect(world, &identity).await;
        let vault = Vault::create(identity.clone(), &mut wire).await.expect("founded");
        Self { identity, wire, vault }
    }

    /// Another device, enrolled by this one.
    async fn enrol(&mut self, world: &World, number: u8) -> Self {
        let identity = identity(number);
        let log = self.vault.log();
        let consent = Vault::consent(&identity, log, self.identity.key());
        self.vault.enrol(&mut self.wire, identity.key(), consent).await.expect("enrolled");
        let wire = connect(world, &identity).await;
        Self { vault: Vault::new(identity.clone(), log), identity, wire }
    }

    async fn push(&mut self, payloads: &[&[u8]]) -> u64 {
        let payloads: Vec<Vec<u8>> = payloads.iter().map(|payload| payload.to_vec()).collect();
        self.vault.push(&mut self.wire, &payloads).await.expect("appended").head.seq
    }

    async fn pull(&mut self) -> Vec<Changeset> {
        let pulled = timeout(DEADLINE, self.vault.pull(&mut self.wire)).await.expect("in time");
        let pulled = pulled.expect("pulled");
        assert!(pulled.rejected.is_empty() && pulled.sealed.is_empty());
        pulled.changesets
    }
}

fn payloads(changesets: &[Changeset]) -> Vec<&[u8]> {
    changesets.iter().map(|changeset| changeset.payload.as_slice()).collect()
}

async fn a_household_reads_what_each_of_its_devices_has_written(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Member::found(&world).await;
    laptop.push(&[b"one", b"two"]).await;
    let mut phone = laptop.enrol(&world, 2).await;
    // Also what was written before it came: an epoch's key opens all of it.
    assert_eq!(payloads(&phone.pull().await), [b"one", b"two"]);
    phone.push(&[b"three"]).await;
    let read = laptop.pull().await;
    assert_eq!(payloads(&read), [b"one", b"two", b"three".as_slice()]);
    assert_eq!(read[2].author, phone.identity.key());
    assert_eq!(phone.pull().await.len(), 1, "its own comes back");
    assert!(laptop.pull().await.is_empty(), "once");
    // A large push is cut into batches.
    let many: Vec<Vec<u8>> = (0..700_u32).map(|number| number.to_be_bytes().to_vec()).collect();
    let appended = phone.vault.push(&mut phone.wire, &many).await.expect("appended");
    let read = laptop.pull().await;
    assert_eq!((read.len(), appended.head.seq), (700, read[699].seq));
    assert!(read.iter().map(|it| &it.payload).eq(&many));
    let members = laptop.wire.request(&ListMembers { log: laptop.vault.log() }.into()).await;
    match members {
        Ok(RelayFrame::Members(members)) => assert_eq!(members.members.len(), 2),
        other => panic!("a list was answered with {other:?}"),
    }
}

async fn a_revoked_device_hears_no_more_and_never_gets_the_next_key(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Member::found(&world).await;
    let mut phone = laptop.enrol(&world, 2).await;
    let mut tablet = laptop.enrol(&world, 3).await;
    laptop.push(&[b"for all"]).await;
    for member in [&mut phone, &mut tablet] {
        assert_eq!(payloads(&member.pull().await), [b"for all"]);
    }
    let log = laptop.vault.log();
    let frame = Subscribe { log, cursor: phone.vault.head(), acked: None };
    phone.wire.request(&frame.into()).await.expect("subscribed");
    laptop.pull().await;
    let lost = phone.identity.key();
    laptop.vault.revoke(&mut laptop.wire, lost).await.expect("revoked");
    laptop.push(&[b"not for the lost phone"]).await;
    // Its subscription ends by itself, and soon.
    let ended = async {
        loop {
            let envelope = phone.wire.receive().await.expect("a frame");
            if let Ok(RelayFrame::Membership(_)) = envelope.frame {
                return;
            }
        }
    };
    timeout(Duration::from_secs(5), ended).await.expect("the subscription ends");
    let refused = phone.vault.push(&mut phone.wire, &[b"from the lost phone".to_vec()]).await;
    let failure = refused.expect_err("refused").refusal().expect("by the relay");
    assert_eq!(failure.code, ErrorCode::Revoked);
    assert!(failure.seq.is_some());
    assert!(phone.vault.pull(&mut phone.wire).await.is_err());
    // Whoever stays has the next key; the lost one's is the old one.
    assert_eq!(payloads(&tablet.pull().await), [b"not for the lost phone"]);
    assert_eq!((tablet.vault.epoch(), phone.vault.epoch()), (2, 1));
    assert_eq!(tablet.vault.devices().revoked_at(lost), failure.seq);
    // Whoever comes later opens both epochs.
    let mut watch = laptop.enrol(&world, 4).await;
    assert_eq!(payloads(&watch.pull().await), [b"for all", b"not for the lost phone".as_slice()]);
}

async fn a_revoked_device_is_told_so_by_every_frame_and_nobody_else_is(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Member::found(&world).await;
    let mut phone = laptop.enrol(&world, 2).await;
    phone.pull().await;
    let log = laptop.vault.log();
    let lost = phone.identity.key();
    let seq = laptop.vault.revoke(&mut laptop.wire, lost).await.expect("revoked");
    let mut stranger = connect(&world, &identity(9)).await;
    let (digest, bytes) = (sha256(b"?"), BoundedBytes::new(b"?".to_vec()).expect("short"));
    let frames: Vec<ClientFrame> = vec![
        GetVaultToken { log }.into(),
        ListSnapshots { log }.into(),
        PutSnapshotChunk { log, digest, size: 1, offset: 0, bytes }.into(),
        GetSnapshotChunk { log, digest, offset: 0, length: 1 }.into(),
        Subscribe { log, cursor: None, acked: None }.into(),
        SubscribeFrom { log, snapshot: digest }.into(),
        ListMembers { log }.into(),
    ];
    for frame in frames {
        let told = async |wire: &mut Wire| {
            let failure = refused(wire.request(&frame).await);
            (failure.code, failure.seq)
        };
        assert_eq!(told(&mut phone.wire).await, (ErrorCode::Revoked, Some(seq)), "{frame:?}");
        assert_eq!(told(&mut stranger).await, (ErrorCode::NoSuchLog, None), "{frame:?}");
    }
}

fn numbered(count: u32) -> Vec<Vec<u8>> {
    (0..count).map(|number| [&number.to_be_bytes()[..], &[7; 1000]].concat()).collect()
}

/// What a device can keep of what waits: a few changesets.
const LITTLE: usize = 8 * 1024;

async fn what_came_before_its_key_is_opened_however_little_of_it_can_wait(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Member::found(&world).await;
    let phone = laptop.enrol(&world, 2).await;
    let all = numbered(600);
    laptop.vault.push(&mut laptop.wire, &all[..300]).await.expect("appended");
    let lost = phone.identity.key();
    laptop.vault.revoke(&mut laptop.wire, lost).await.expect("revoked");
    laptop.vault.push(&mut laptop.wire, &all[300..]).await.expect("appended");
    // The keys of both epochs come behind all of it.
    let mut tablet = laptop.enrol(&world, 3).await;
    tablet.vault.keep_waiting(LITTLE);
    let pulled = tablet.vault.pull(&mut tablet.wire).await.expect("pulled");
    let twice = u64::try_from(all.len() * 1024 * 2 - LITTLE).expect("a number");
    assert!(pulled.bytes > twice, "it was read twice: {} bytes", pulled.bytes);
    assert!(payloads(&pulled.changesets).iter().eq(&all), "all, once, in order");
    assert!(pulled.sealed.is_empty() && pulled.rejected.is_empty());
    assert_eq!(pulled.forgotten, 0);
    assert!(tablet.pull().await.is_empty(), "once");
    laptop.push(&[b"and on"]).await;
    assert_eq!(payloads(&tablet.pull().await), [b"and on"]);
}

/// Enrols a device and gives it no key yet.
async fn enrol_without_keys(laptop: &mut Member, device: &Identity) {
    let log = laptop.vault.log();
    let mut own = Mark::NONE;
    laptop.wire.queue(&Subscribe { log, cursor: None, acked: None }.into());
    loop {
        let envelope = laptop.wire.receive().await.expect("a frame");
        match envelope.frame.expect("known") {
            RelayFrame::Entry(entry) => {
                let count = entry.header.decode().expect("a header").count;
                own = Mark { count, digest: entry_digest(&entry.header) };
            }
            RelayFrame::Drained(_) => break,
            _ => {}
        }
    }
    let consent = device.consent(log, laptop.identity.key());
    let control = Control::Enrol { device: device.key(), signature: consent };
    let outline = Outline {
        log,
        count: own.count + 1,
        prev: own.digest,
        kind: Kind::Control,
        recipients: Vec::new(),
        seen: Head::NONE,
    };
    let signed = outline.sign(&laptop.identity, &control.encode()).expect("short");
    laptop.wire.request(&Append { entry: signed.entry }.into()).await.expect("enrolled");
}

async fn what_waits_for_its_key_outlives_the_process(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Member::found(&world).await;
    let all = numbered(45);
    laptop.vault.push(&mut laptop.wire, &all[..40]).await.expect("appended");
    let identity = identity(2);
    enrol_without_keys(&mut laptop, &identity).await;
    laptop.wire = connect(&world, &laptop.identity).await;
    laptop.pull().await;
    let mut wire = connect(&world, &identity).await;
    let mut phone = Vault::new(identity.clone(), laptop.vault.log());
    phone.keep_waiting(LITTLE);
    let pulled = phone.pull(&mut wire).await.expect("pulled");
    assert_eq!((pulled.changesets.len(), pulled.sealed.len()), (0, 40));
    assert!((30..40).contains(&pulled.forgotten), "{}", pulled.forgotten);
    let saved = phone.save();

    laptop.vault.push(&mut laptop.wire, &all[40..]).await.expect("appended");
    laptop.vault.deliver(&mut laptop.wire, identity.key()).await.expect("delivered");
    // As if nothing had happened, and as after a crash.
    let restored = Vault::restore(identity.clone(), &saved).expect("whole");
    for mut phone in [phone, restored] {
        let pulled = phone.pull(&mut wire).await.expect("pulled");
        assert!(payloads(&pulled.changesets).iter().eq(&all), "all, once, in order");
        assert!(pulled.sealed.is_empty() && pulled.forgotten == 0);
        let mut again = Vault::restore(identity.clone(), &phone.save()).expect("whole");
        for phone in [&mut phone, &mut again] {
            assert!(phone.pull(&mut wire).await.expect("pulled").changesets.is_empty(), "once");
        }
    }
}

async fn what_is_read_on_the_way_is_given_by_the_next_pull(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Member::found(&world).await;
    let mut phone = laptop.enrol(&world, 2).await;
    let tablet = laptop.enrol(&world, 3).await;
    phone.pull().await;
    phone.push(&[b"before the revocation"]).await;
    let before = Vault::restore(laptop.identity.clone(), &laptop.vault.save()).expect("whole");
    // A revocation reads what others have written before it makes the next key.
    laptop.vault.revoke(&mut laptop.wire, tablet.identity.key()).await.expect("revoked");
    let unread = Vault::restore(laptop.identity.clone(), &laptop.vault.save()).expect("whole");
    assert_eq!(unread.head(), before.head(), "what nobody was given is read again");
    assert_eq!(payloads(&laptop.pull().await), [b"before the revocation"]);
    laptop.vault = unread;
    assert_eq!(payloads(&laptop.pull().await), [b"before the revocation"]);
    laptop.push(&[b"and on"]).await;
}

fn often(options: &mut Options) {
    options.retention_pause = Duration::from_millis(20);
}

async fn a_new_device_starts_from_a_snapshot_and_the_changesets_after_it(database: Database) {
    let world = World::start_with(database, often).await;
    let mut laptop = Member::found(&world).await;
    let mut phone = laptop.enrol(&world, 2).await;
    let state: Vec<u8> = b"the state of the whole vault ".repeat(50_000);
    laptop.push(&[b"old", b"older"]).await;
    laptop.pull().await;
    let snapshot = laptop.vault.snapshot(&mut laptop.wire, &state).await.expect("made");
    assert!(snapshot.size < state.len() as u64 / 10, "it was compressed before it was sealed");
    laptop.push(&[b"new"]).await;
    phone.pull().await;
    let opened = phone.vault.open_snapshot(&mut phone.wire, &snapshot).await.expect("opened");
    assert!(opened == state);
    phone.vault.confirm(&mut phone.wire, snapshot.digest).await.expect("confirmed");
    let log = laptop.vault.log();
    eventually("the floor has risen", async || {
        world.stored(log).await.floor.seq == snapshot.head.seq
    })
    .await;
    // It gets the key from below the floor, the state, and what came after.
    let mut tablet = laptop.enrol(&world, 3).await;
    let (bootstrapped, pulled) =
        tablet.vault.bootstrap(&mut tablet.wire).await.expect("bootstrapped");
    assert!(bootstrapped.as_ref() == Some(&state));
    assert_eq!(payloads(&pulled.changesets), [b"new"]);
    assert!(pulled.rejected.is_empty());
    tablet.push(&[b"from the tablet"]).await;
    assert_eq!(payloads(&laptop.pull().await), [b"new", b"from the tablet".as_slice()]);
}

async fn a_device_that_was_away_is_told_where_to_start(database: Database) {
    let world = World::start_with(database, often).await;
    let mut laptop = Member::found(&world).await;
    let mut phone = laptop.enrol(&world, 2).await;
    let mut away = laptop.enrol(&world, 3).await;
    away.pull().await;
    laptop.push(&[b"missed", b"missed too"]).await;
    laptop.pull().await;
    let made = laptop.vault.snapshot(&mut laptop.wire, b"state").await.expect("made");
    phone.pull().await;
    phone.vault.confirm(&mut phone.wire, made.digest).await.expect("confirmed");
    let log = laptop.vault.log();
    eventually("the floor has risen", async || world.stored(log).await.floor.seq == made.head.seq)
        .await;
    laptop.push(&[b"after"]).await;
    // Nothing is skipped in silence: the floor is named, with the snapshot.
    let frame = Subscribe { log, cursor: away.vault.head(), acked: None };
    let asked = away.wire.queue(&frame.into());
    let floor = loop {
        let envelope = away.wire.receive().await.expect("a frame");
        match envelope.frame.expect("known") {
            RelayFrame::Floor(floor) => break floor,
            RelayFrame::Subscribed(_) => assert_eq!(envelope.request, asked),
            other => panic!("{} before the floor", other.name()),
        }
    };
    assert_eq!((floor.head, floor.snapshot.map(|it| it.digest)), (made.head, Some(made.digest)));
    away.wire = connect(&world, &away.identity).await;
    let pulled = away.vault.pull(&mut away.wire).await.expect("pulled");
    let floor = pulled.floor.expect("who pulls is told as well");
    assert_eq!((floor.head, floor.snapshot.map(|it| it.digest)), (made.head, Some(made.digest)));
    assert_eq!(payloads(&pulled.changesets), [b"after"]);
    let mut again = Vault::new(away.identity.clone(), log);
    let (state, pulled) = again.bootstrap(&mut away.wire).await.expect("bootstrapped");
    assert_eq!(state.as_deref(), Some(b"state".as_slice()));
    assert_eq!(payloads(&pulled.changesets), [b"after"]);
}

async fn put(
    wire: &mut Wire,
    log: LogId,
    whole: &[u8],
    digest: Digest,
) -> Result<RelayFrame, ErrorCode> {
    let bytes = BoundedBytes::new(whole.to_vec()).expect("short");
    let frame = PutSnapshotChunk { log, digest, size: whole.len() as u64, offset: 0, bytes };
    wire.request(&frame.into())
        .await
        .map_err(|error| VaultError::from(error).code().expect("a refusal"))
}

async fn a_snapshot_that_is_not_what_it_says_is_refused_by_relay_or_reader(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Member::found(&world).await;
    let mut phone = laptop.enrol(&world, 2).await;
    let log = laptop.vault.log();
    let wrong = put(&mut laptop.wire, log, b"bytes", Digest([1; 32])).await;
    assert_eq!(wrong.err(), Some(ErrorCode::BadSnapshot));
    let mut stranger = connect(&world, &identity(9)).await;
    let foreign = put(&mut stranger, log, b"bytes", sha256(b"bytes")).await;
    assert_eq!(foreign.err(), Some(ErrorCode::NoSuchLog));
    // The relay cannot tell what sealed bytes hold; a reader can.
    laptop.pull().await;
    let head = laptop.vault.head().expect("read");
    let forged = vec![7; 1000];
    put(&mut laptop.wire, log, &forged, sha256(&forged)).await.expect("kept");
    let digest = sha256(&forged);
    let size = forged.len() as u64;
    laptop.vault.make_real(&mut laptop.wire, digest, size, 1, head).await.expect("real");
    phone.pull().await;
    let listed = phone.vault.snapshots(&mut phone.wire).await.expect("listed");
    let opened = phone.vault.open_snapshot(&mut phone.wire, &listed[0]).await;
    assert_eq!(opened.err(), Some(VaultError::Snapshot(SnapshotError::Damaged)));
    let unknown = phone.vault.confirm(&mut phone.wire, Digest([5; 32])).await;
    assert_eq!(unknown.expect_err("refused").code(), Some(ErrorCode::NoSuchSnapshot));
    assert_eq!(world.stored(log).await.floor.seq, 0, "nothing went");
}

async fn a_snapshot_is_sealed_under_no_key_of_a_device_that_was_removed(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Member::found(&world).await;
    let mut phone = laptop.enrol(&world, 2).await;
    let guest = laptop.enrol(&world, 3).await;
    laptop.pull().await;
    phone.pull().await;
    phone.vault.revoke(&mut phone.wire, guest.identity.key()).await.expect("revoked");
    // The laptop has not heard of it.
    let made = laptop.vault.snapshot(&mut laptop.wire, b"state").await.expect("made");
    let sealed = phone.vault.download(&mut phone.wire, &made).await.expect("downloaded");
    assert_eq!(seal::key_name(&sealed).expect("sealed").epoch, 2);
    phone.pull().await;
    let opened = phone.vault.open_snapshot(&mut phone.wire, &made).await;
    assert_eq!(opened.as_deref(), Ok(&b"state"[..]));
}

fn refused(answer: Result<RelayFrame, WireError>) -> Failure {
    VaultError::from(answer.expect_err("refused")).refusal().expect("by the relay")
}

async fn what_is_sent_wrong_over_a_session_is_refused_and_nothing_changes(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Member::found(&world).await;
    let mut phone = laptop.enrol(&world, 2).await;
    let log = laptop.vault.log();
    let mut alone = Member::with(&world, 3).await;
    let elsewhere = alone.vault.log();
    let before = world.stored(log).await;
    let entry = |author: &Identity, log, count| {
        let (prev, seen) = (Digest::ZERO, Head::NONE);
        let outline = Outline { log, count, prev, kind: Kind::Ring, recipients: Vec::new(), seen };
        outline.sign(author, b"a changeset").expect("short").entry
    };
    let append =
        async |wire: &mut Wire, entry| refused(wire.request(&Append { entry }.into()).await);
    // Another device's key, another vault, somebody who is in none, a forged one, the future.
    let foreign = append(&mut laptop.wire, entry(&phone.identity, log, 1)).await;
    assert_eq!(foreign.code, ErrorCode::BadHeader);
    let other = append(&mut phone.wire, entry(&phone.identity, elsewhere, 1)).await;
    assert_eq!(other.code, ErrorCode::NoSuchLog);
    let outside = append(&mut alone.wire, entry(&alone.identity, log, 1)).await;
    assert_eq!(outside.code, ErrorCode::NoSuchLog);
    let mut forged = entry(&phone.identity, log, 1);
    forged.signature.as_mut().expect("signed").0[5] ^= 1;
    assert_eq!(append(&mut phone.wire, forged).await.code, ErrorCode::BadSignature);
    let future = append(&mut phone.wire, entry(&phone.identity, log, 7)).await;
    assert_eq!((future.code, future.expected), (ErrorCode::OutOfOrder, Some(1)));

    // Chunks that do not fit, of a snapshot that is not what it is called.
    let whole = vec![7; 100_000];
    let (size, digest) = (whole.len() as u64, sha256(&whole));
    let piece = |offset: usize, bytes: &[u8], digest| PutSnapshotChunk {
        log,
        digest,
        size,
        offset: offset as u64,
        bytes: BoundedBytes::new(bytes.to_vec()).expect("short"),
    };
    let put =
        async |wire: &mut Wire, chunk: PutSnapshotChunk| refused(wire.request(&chunk.into()).await);
    let early = put(&mut phone.wire, piece(50_000, &whole[50_000..], digest)).await;
    assert_eq!((early.code, early.expected), (ErrorCode::OutOfOrder, Some(0)));
    let tiny = put(&mut phone.wire, piece(0, &whole[..100], digest)).await;
    assert_eq!(tiny.code, ErrorCode::BadSnapshot);
    let long = PutSnapshotChunk { size: 1000, ..piece(0, &whole, digest) };
    assert_eq!(put(&mut phone.wire, long).await.code, ErrorCode::BadSnapshot);
    let huge = PutSnapshotChunk { size: u64::MAX, ..piece(0, &whole, digest) };
    assert_eq!(put(&mut phone.wire, huge).await.code, ErrorCode::TooLarge);
    let named = put(&mut phone.wire, piece(0, &whole, Digest([1; 32]))).await;
    assert_eq!(named.code, ErrorCode::BadSnapshot);
    let uninvited = put(&mut alone.wire, piece(0, &whole, digest)).await;
    assert_eq!(uninvited.code, ErrorCode::NoSuchLog);
    let unreal =
        laptop.vault.make_real(&mut laptop.wire, Digest([1; 32]), size, 1, Head::NONE).await;
    assert_eq!(unreal.expect_err("refused").code(), Some(ErrorCode::NoSuchSnapshot));

    let after = world.stored(log).await;
    assert_eq!((after.head, after.vault), (before.head, before.vault));
    assert!(phone.vault.snapshots(&mut phone.wire).await.expect("listed").is_empty());
    // And nothing of it is in the way of what is right.
    phone.pull().await;
    phone.push(&[b"right"]).await;
    phone.vault.upload(&mut phone.wire, digest, &whole).await.expect("uploaded");
    assert_eq!(payloads(&laptop.pull().await), [b"right"]);
}

async fn an_upload_goes_on_after_a_restart_of_the_relay(database: Database) {
    let mut world = World::start(database).await;
    let laptop = Member::found(&world).await;
    let log = laptop.vault.log();
    let whole: Vec<u8> = (0..600_000_u32).map(|at| (at % 251) as u8).collect();
    let digest = sha256(&whole);
    let Member { identity, mut wire, vault } = laptop;
    let frame = PutSnapshotChunk {
        log,
        digest,
        size: whole.len() as u64,
        offset: 0,
        bytes: BoundedBytes::new(whole[..100_000].to_vec()).expect("short"),
    };
    wire.request(&frame.into()).await.expect("kept");
    world.stop().await;
    world.run().await;
    let mut wire = connect(&world, &identity).await;
    vault.upload(&mut wire, digest, &whole).await.expect("uploaded");
    let again = vault.upload(&mut wire, digest, &whole).await;
    assert!(again.is_ok(), "whatever is there already is not sent");
}

async fn a_token_is_for_one_vault_and_one_device(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Member::found(&world).await;
    let log = laptop.vault.log();
    let Ok(RelayFrame::Token(token)) = laptop.wire.request(&GetVaultToken { log }.into()).await
    else {
        panic!("no token");
    };
    let key = TokenKey::derive(b"a secret of the tests");
    let claims = key.check(&token.token, Purpose::Vault, token.expires - 1).expect("valid");
    assert_eq!((claims.device, claims.log), (laptop.identity.key(), log));
    assert!(key.check(&token.token, Purpose::Resume, token.expires - 1).is_err());
    assert!(key.check(&token.token, Purpose::Vault, token.expires).is_err());
    let mut stranger = connect(&world, &identity(9)).await;
    let refused = stranger.request(&GetVaultToken { log }.into()).await;
    assert_eq!(VaultError::from(refused.expect_err("refused")).code(), Some(ErrorCode::NoSuchLog));
    // What is not believed is not read, and stops nothing.
    let pulled = laptop.vault.pull(&mut laptop.wire).await.expect("pulled");
    assert_eq!(pulled.rejected, Vec::<(u64, Rejection)>::new());
}

async fn what_the_sdk_has_acknowledged_wakes_nobody(database: Database) {
    let fcm = Fcm::start().await;
    let client = fcm.client();
    let world = World::start_with(database, move |options: &mut Options| {
        options.push = vec![client.clone()];
        options.doorbell_settle = Duration::ZERO;
    })
    .await;
    let mut laptop = Member::found(&world).await;
    let mut others = [laptop.enrol(&world, 2).await, laptop.enrol(&world, 3).await];
    let mut listening = Vec::new();
    for (number, member) in others.iter_mut().enumerate() {
        let token = Some(("fcm".to_owned(), format!("token-{number}")));
        world.system().set_push_token(member.identity.key(), token).await.expect("registered");
        member.pull().await;
        // And stays connected: it is given what comes, and has ten seconds to say that it has it.
        let mut wire = connect(&world, &member.identity).await;
        let (log, cursor) = (member.vault.log(), member.vault.head());
        wire.send(&Subscribe { log, cursor, acked: None }.into()).await.expect("sent");
        listening.push(wire);
    }
    let at = Instant::now();
    laptop.push(&[b"a changeset"]).await;
    for wire in &mut listening {
        let given = async {
            while !matches!(wire.receive().await.expect("a frame").frame, Ok(RelayFrame::Entry(_)))
            {
            }
        };
        timeout(DEADLINE, given).await.expect("in time");
    }
    // The phone says so, as one that has read as far as the laptop has.
    laptop.pull().await;
    let [_, phone] = &mut others;
    laptop.vault.acknowledge(&mut phone.wire).await.expect("sent");
    fcm.until_doorbells(1).await;
    assert!(at.elapsed() >= Duration::from_secs(10), "{:?}", at.elapsed());
    // Both were due at once, and one who is rung at once is rung after both.
    let away = identity(4);
    let consent = Vault::consent(&away, laptop.vault.log(), laptop.identity.key());
    laptop.vault.enrol(&mut laptop.wire, away.key(), consent).await.expect("enrolled");
    let token = Some(("fcm".to_owned(), "token-2".to_owned()));
    world.system().set_push_token(away.key(), token).await.expect("registered");
    laptop.push(&[b"another one"]).await;
    eventually("the one who is away is rung", async || fcm.rung().contains(&"token-2".to_owned()))
        .await;
    assert_eq!(fcm.rung(), ["token-0", "token-2"]);
}
