//! Devices of one vault, one of which is hostile, and a relay that is a list.

use sealwire_protocol::frame::{Entry, EntryIn, Floor, Recipients, SnapshotSummary};

use super::*;
use crate::entry::{Signed, digest_of};
use crate::seal::{EpochKey, KeyName, Place};
use sealwire_protocol::{Digest, Kind};

/// A list that gives every entry its place.
#[derive(Default)]
struct Relay(Vec<Entry>);

impl Relay {
    fn take(&mut self, log: LogId, signed: Signed) -> &Entry {
        let EntryIn { header, body, signature, recipients, totals_kind } = signed.entry;
        let (seq, at) = (self.0.len() as u64 + 1, 1);
        self.0.push(Entry { log, seq, at, header, body, signature, recipients, totals_kind });
        self.0.last().expect("just pushed")
    }
}

/// A vault of several devices, the first of which has founded it and enrolled the others.
struct World {
    relay: Relay,
    vaults: Vec<Vault>,
}

impl World {
    fn of(devices: u8) -> Self {
        let device = |number: u8| Arc::new(Identity::from_seed(&[number; 32]));
        let found = Control::Found { log_type: LogType::Vault, random: [7; 32], join_key: None };
        let signed = Outline::first().sign(&device(1), &found.encode()).expect("short");
        let log = native_log_id(&signed.entry.header);
        let vaults = (1..=devices).map(|number| Vault::new(device(number), log)).collect();
        let mut world = Self { relay: Relay::default(), vaults };
        world.append(signed);
        for number in 2..=devices {
            let new = device(number);
            let signature = Vault::consent(&new, log, device(1).key());
            let enrol = Control::Enrol { device: new.key(), signature };
            let signed = world.vaults[0].sign(Kind::Control, &[], &enrol.encode()).expect("short");
            world.append(signed);
        }
        let scope = world.vaults[0].scope();
        world.rotate(0, scope, 1, &EpochKey::from_bytes([1; 32]));
        world
    }

    /// Everybody reads it.
    fn append(&mut self, signed: Signed) {
        let log = self.vaults[0].log();
        let entry = self.relay.take(log, signed).clone();
        for vault in &mut self.vaults {
            vault.take(&entry).expect("one history");
        }
    }

    fn keys(
        &self,
        by: usize,
        scope: Scope,
        epoch: u32,
        key: &EpochKey,
        to: Option<usize>,
    ) -> Signed {
        let vault = &self.vaults[by];
        let devices = |one: usize| vec![self.vaults[one].device.key()];
        let recipients = to.map(devices).unwrap_or_default();
        let all = vault.devices.enrolled().map(|(device, _)| device).collect::<Vec<_>>();
        let sealed_to = if to.is_some() { &recipients } else { &all };
        let outline = Outline {
            log: vault.log,
            count: vault.own.count + 1,
            prev: vault.own.digest,
            kind: Kind::Key,
            recipients: recipients.clone(),
            seen: vault.head().unwrap_or(Head::NONE),
        };
        let sender = vault.device.key();
        let aad = outline.aad(sender);
        let place = Place { log: vault.log, sender, aad: &aad };
        let body = keys::seal(key, KeyName { scope, epoch }, &place, sealed_to).expect("sealed");
        outline.sign(&vault.device, &body).expect("short")
    }

    fn rotate(&mut self, by: usize, scope: Scope, epoch: u32, key: &EpochKey) {
        self.append(self.keys(by, scope, epoch, key, None));
    }

    fn deliver(&mut self, by: usize, to: usize, scope: Scope, epoch: u32, key: &EpochKey) {
        self.append(self.keys(by, scope, epoch, key, Some(to)));
    }

    fn write(&mut self, by: usize, payload: &[u8]) {
        let mut rest = &[payload.to_vec()][..];
        let signed = self.vaults[by].batch(&mut rest).expect("sealed").remove(0);
        self.append(signed);
    }

    fn rejected(&mut self, by: usize) -> usize {
        self.vaults[by].unread.rejected.len()
    }
}

/// What a relay or the way there may make of an entry, without touching the chain.
fn spoil(entry: &Entry, how: usize) -> Entry {
    let mut spoiled = entry.clone();
    match how {
        0 => spoiled.body = sealwire_protocol::Body::copy_from(b"something else"),
        1 => spoiled.signature = None,
        _ => spoiled.recipients = Recipients::new(vec![DeviceKey([9; 32])]).expect("one"),
    }
    spoiled
}

/// A device that reads what the others have read, entry by entry.
fn late_reader(world: &World, of: usize) -> Vault {
    Vault::new(world.vaults[of].device.clone(), world.vaults[of].log())
}

fn payloads(vault: &mut Vault) -> Vec<(u64, Vec<u8>)> {
    let given = vault.take_read().changesets;
    given.into_iter().map(|it| (it.seq, it.payload)).collect()
}

#[test]
fn an_entry_that_came_spoiled_mutes_nobody_and_is_given_when_it_comes_whole() {
    for how in 0..3 {
        let mut world = World::of(3);
        for text in [&b"one"[..], b"two", b"three", b"four"] {
            world.write(1, text);
        }
        let first = world.relay.0.len() - 4;
        let mut reader = late_reader(&world, 2);
        let read = |reader: &mut Vault, world: &World, bad: &[usize]| {
            let from = reader.head().map_or(0, |head| head.seq as usize);
            for (at, entry) in world.relay.0.iter().enumerate().skip(from) {
                let entry = if bad.contains(&at) { spoil(entry, how) } else { entry.clone() };
                reader.take(&entry).expect("one history");
            }
        };
        // Two in a row: the one behind them vouches for both.
        read(&mut reader, &world, &[first + 1, first + 2]);
        let rejected = std::mem::take(&mut reader.unread.rejected);
        assert_eq!(rejected.len(), 2);
        assert!(rejected.iter().all(|(_, rejection)| rejection.is_spoiled()), "{rejected:?}");
        let seq = |at: usize| at as u64 + 1;
        let texts = payloads(&mut reader);
        let expected = [(seq(first), b"one".to_vec()), (seq(first + 3), b"four".to_vec())];
        assert_eq!(texts, expected);
        assert_eq!(reader.check_whole(), Err(VaultError::Spoiled), "no snapshot would be whole");

        // One of them is whole the second time, and its place outlives the process.
        let mut reader = Vault::restore(reader.device.clone(), &reader.save()).expect("sound");
        reader.go_back_to_spoiled(0);
        read(&mut reader, &world, &[first + 2]);
        assert_eq!(payloads(&mut reader), [(seq(first + 1), b"two".to_vec())]);
        // The next question waits.
        reader.go_back_to_spoiled(0);
        assert_eq!(reader.head(), world.vaults[0].head());
        reader.go_back_to_spoiled(1_000_000);
        read(&mut reader, &world, &[]);
        assert_eq!(payloads(&mut reader), [(seq(first + 2), b"three".to_vec())]);
        assert_eq!(reader.check_whole(), Ok(()));
        assert_eq!(reader.head(), world.vaults[0].head());
    }
}

#[test]
fn what_follows_from_a_spoiled_enrolment_heals_with_it() {
    let mut world = World::of(3);
    world.write(2, b"by the third");
    let enrolment = 2;
    let mut reader = late_reader(&world, 1);
    for (at, entry) in world.relay.0.iter().enumerate() {
        let entry = if at == enrolment { spoil(entry, 0) } else { entry.clone() };
        reader.take(&entry).expect("one history");
    }
    assert!(payloads(&mut reader).is_empty() && !reader.devices.has(world.vaults[2].device.key()));
    reader.go_back_to_spoiled(0);
    let from = reader.head().map_or(0, |head| head.seq as usize);
    assert_eq!(from, enrolment, "what was before is not read again");
    world.relay.0.iter().skip(from).for_each(|entry| reader.take(entry).expect("one history"));
    assert_eq!(payloads(&mut reader).len(), 1);
    assert_eq!(reader.devices, world.vaults[0].devices);
    assert_eq!(reader.check_whole(), Ok(()));
}

#[test]
fn what_an_author_has_not_written_is_not_vouched_for() {
    let mut world = World::of(2);
    for text in [&b"one"[..], b"two", b"three"] {
        world.write(1, text);
    }
    let last = world.relay.0.len() - 1;
    let mut reader = late_reader(&world, 0);
    world.relay.0.iter().take(last - 1).for_each(|it| reader.take(it).expect("one history"));
    // In the place of an entry that the relay keeps to itself it shows one of its own making.
    let mut forged = spoil(&world.relay.0[last - 1], 1);
    forged.header.0[203 - 1] ^= 1;
    reader.take(&forged).expect("what chain this is shows in the head");
    reader.take(&world.relay.0[last]).expect("likewise");
    let rejected: Vec<_> = reader.unread.rejected.iter().map(|(_, it)| *it).collect();
    assert_eq!(rejected[1], crate::entry::Rejection::OutOfOrder);
    assert_eq!(payloads(&mut reader).len(), 1, "the one before");
}

fn key(number: u8) -> EpochKey {
    EpochKey::from_bytes([number; 32])
}

#[test]
fn whoever_wrote_an_entry_that_is_not_believed_is_read_on() {
    let mut world = World::of(3);
    let scope = world.vaults[0].scope();
    world.rotate(1, scope, 9, &key(9));
    assert_eq!(world.rejected(0), 1);
    world.write(1, b"still here");
    let given = &world.vaults[0].unread.changesets;
    assert_eq!(given.last().map(|it| it.payload.as_slice()), Some(&b"still here"[..]));
    assert_eq!(world.rejected(0), 1, "and nothing else is held against it");
}

#[test]
fn a_device_that_makes_up_scopes_takes_the_room_of_nobody() {
    let mut world = World::of(2);
    let log = world.vaults[0].log();
    let of = |vault: &Vault| new_scope(log, vault.device.key()).expect("randomness");
    for number in 0..100 {
        let scope = of(&world.vaults[1]);
        world.rotate(1, scope, 1, &key(number));
    }
    let own = of(&world.vaults[0]);
    world.rotate(0, own, 1, &key(5));
    assert!(world.vaults[1].is_holder(own, world.vaults[0].device.key()));
    assert!(world.vaults[0].holds_key(own));
}

#[test]
fn a_key_for_the_scope_of_somebody_else_is_not_taken() {
    let mut world = World::of(2);
    let own = new_scope(world.vaults[0].log(), world.vaults[0].device.key()).expect("randomness");
    // The second device knows the name before there is a key, and is quicker.
    world.rotate(1, own, 1, &key(66));
    assert!(!world.vaults[0].holds_key(own), "what is sealed under it the other one would read");
    world.rotate(0, own, 1, &key(5));
    assert!(world.vaults[0].keys.get(own, 1) == Some(&key(5)));
}

#[test]
fn what_only_the_lost_device_opens_is_not_handed_over() {
    let own = |world: &World| {
        let mut reader = late_reader(world, 1);
        reader.note_own_scopes();
        world.relay.0.iter().for_each(|entry| reader.take(entry).expect("one history"));
        reader
    };
    let write_under = |world: &mut World, by: usize, scope: Scope| {
        let vault = &world.vaults[by];
        let place = Place { log: vault.log, sender: vault.device.key(), aad: b"" };
        let name = KeyName { scope, epoch: 1 };
        let sealed = crate::seal::seal(&key(5), name, &place, b"private").expect("short");
        let boxes = vec![serde_bytes::ByteBuf::from(sealed)];
        let body = rmp_serde::to_vec(&boxes).expect("short");
        let signed = vault.sign(Kind::Ring, &[], &body).expect("short");
        world.append(signed);
    };
    // As they were named before.
    let old = Scope([9; 16]);
    let mut world = World::of(3);
    world.rotate(0, old, 1, &key(66));
    world.rotate(2, old, 1, &key(66));
    write_under(&mut world, 0, old);
    let first = world.vaults[1].scope();
    write_under(&mut world, 1, first);
    assert_eq!(own(&world).check_held(), Ok(()), "others do not keep a lost device from its end");
    let mut made = World::of(2);
    made.rotate(1, old, 1, &key(5));
    assert_eq!(own(&made).check_held(), Err(VaultError::OldScope));
    // Another device of this person has made it.
    write_under(&mut world, 1, old);
    assert_eq!(own(&world).check_held(), Err(VaultError::OldScope));
    let mut new = World::of(2);
    let scope = new_scope(new.vaults[0].log(), new.vaults[1].device.key()).expect("randomness");
    new.rotate(1, scope, 1, &key(5));
    write_under(&mut new, 1, scope);
    assert_eq!(own(&new).check_held(), Ok(()));
    assert_eq!(own(&new).private_scope(), Some(scope));
}

#[test]
fn nobody_names_an_epoch_that_no_rotation_has_made() {
    let mut world = World::of(3);
    let scope = world.vaults[0].scope();
    world.deliver(2, 1, scope, u32::MAX, &key(66));
    world.rotate(2, scope, u32::MAX, &key(66));
    world.deliver(2, 1, scope, 2, &key(66));
    assert_eq!((world.vaults[1].epoch(), world.vaults[1].newest_epoch(scope)), (1, 1));
    // The false key for the next epoch was not kept: the rotation's is the one.
    world.rotate(0, scope, 2, &key(2));
    assert!(world.vaults[1].keys.get(scope, 2) == Some(&key(2)));
    world.write(1, b"sealed under it");
    let last = world.vaults[0].unread.changesets.last().map(|it| it.payload.clone());
    assert_eq!(last.as_deref(), Some(&b"sealed under it"[..]));
}

#[test]
fn a_false_key_of_an_epoch_does_not_keep_the_true_one_out() {
    let mut world = World::of(2);
    let scope = world.vaults[0].scope();
    let new = Arc::new(Identity::from_seed(&[3; 32]));
    let log = world.vaults[0].log();
    let signature = Vault::consent(&new, log, world.vaults[0].device.key());
    let enrol = Control::Enrol { device: new.key(), signature };
    let mut vault = Vault::new(new, log);
    for entry in &world.relay.0 {
        vault.take(entry).expect("one history");
    }
    world.vaults.push(vault);
    let signed = world.vaults[0].sign(Kind::Control, &[], &enrol.encode()).expect("short");
    world.append(signed);
    world.deliver(1, 2, scope, 1, &key(66));
    assert!(world.vaults[2].scope_wants_rotation(scope), "it may be anything");
    world.deliver(0, 2, scope, 1, &key(1));
    assert!(!world.vaults[2].scope_wants_rotation(scope));
    world.write(2, b"by the newcomer");
    let last = world.vaults[0].unread.changesets.last().map(|it| it.payload.clone());
    assert_eq!(last.as_deref(), Some(&b"by the newcomer"[..]));
    assert_eq!(world.vaults[2].keys.len(), 2, "what is under the other one opens, too");
    let restored = Vault::restore(world.vaults[2].device.clone(), &world.vaults[2].save());
    let restored = restored.expect("sound");
    assert!(restored.keys.len() == 2 && restored.keys.get(scope, 1) == Some(&key(1)));
}

#[test]
fn whoever_is_left_out_of_a_rotation_makes_another_one() {
    let mut world = World::of(3);
    let scope = world.vaults[0].scope();
    let gone = world.vaults[1].devices.clone();
    world.vaults[1].devices = Devices::new();
    let signed = world.keys(1, scope, 2, &key(2), None);
    world.vaults[1].devices = gone;
    world.append(signed);
    assert_eq!(world.vaults[0].newest_epoch(scope), 2);
    assert!(world.vaults[0].scope_wants_rotation(scope), "it would write under an older key");
}

#[test]
fn two_histories_show_by_what_others_have_seen() {
    let mut world = World::of(2);
    world.write(0, b"one");
    world.write(0, b"two");
    assert_eq!(world.vaults[0].unread.forked, None);
    let mut rest = &[b"three".to_vec()][..];
    // The relay has shown the second device something else at the last place.
    let vault = &mut world.vaults[1];
    let head = vault.head().expect("read");
    let track = vault.track;
    vault.track = Track::at(Head { chain: Digest([9; 32]), ..head });
    let signed = vault.batch(&mut rest).expect("sealed").remove(0);
    vault.track = track;
    world.append(signed);
    assert_eq!(world.vaults[0].unread.forked, Some(head.seq + 1));
    assert_eq!(world.rejected(0), 0, "what it says is still its author's");
}

#[test]
fn nothing_is_passed_over_without_a_snapshot_that_holds_it() {
    let mut world = World::of(2);
    for _ in 0..5 {
        world.write(0, b"hidden");
    }
    let head = world.vaults[0].head().expect("read");
    let mut late = Vault::new(world.vaults[1].device.clone(), world.vaults[1].log());
    for entry in &world.relay.0[..3] {
        late.take(entry).expect("one history");
    }
    let before = late.head();
    let log = late.log();
    let snapshot =
        |head| Some(SnapshotSummary { head, digest: Digest([5; 32]), size: 1, confirmed: true });
    let older = Head { seq: head.seq - 1, ..head };
    for snapshot in [None, snapshot(older)] {
        let floor = Floor { log, head, snapshot };
        assert_eq!(late.begin_floor(floor).map(|_| ()), Err(VaultError::Withheld));
        assert_eq!(late.head(), before, "and it asks again from where it was");
    }
    let other = snapshot(Head { chain: Digest([1; 32]), ..head });
    let lie = Floor { log, head, snapshot: other };
    assert_eq!(late.begin_floor(lie).map(|_| ()), Err(VaultError::Forked));
    // One of a later head must turn out to be of this chain.
    let earlier = Head { seq: 4, chain: world.chain(4), ..head };
    let lie = Head { seq: 6, chain: Digest([1; 32]), ..head };
    let floor = Floor { log, head: earlier, snapshot: snapshot(lie) };
    assert!(late.begin_floor(floor).is_ok());
    assert_eq!(late.take(&world.relay.0[4]), Ok(()));
    assert_eq!(late.take(&world.relay.0[5]), Err(VaultError::Forked));
}

impl World {
    fn chain(&self, seq: u64) -> Digest {
        let mut track = Track::new(self.vaults[0].log());
        for entry in self.relay.0.iter().take(seq as usize) {
            track.advance(digest_of(&entry.header));
        }
        track.position().chain
    }
}
