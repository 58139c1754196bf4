//! What a newcomer believes of the keys that it is given, by members who lie as well.

use rusqlite::Connection;
use sealwire_protocol::ErrorCode;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::frame::Entry;

use super::*;
use crate::engine::giving::tests::{LOG, device, with_newcomer};
use crate::entry::Outline;
use crate::identity::Identity;
use crate::membership::Since;
use crate::seal::EpochKey;
use crate::store::outbox::Sending;

/// A device that has just joined a group of four: it has seen no rotation, and holds no key.
fn as_newcomer(test: impl FnOnce(&Connection, &mut Log, &mut Call<'_>)) {
    with_newcomer(|db, log, call, _| {
        log.holders.entered();
        db.execute("delete from keys", []).expect("deleted");
        test(db, log, call);
    });
}

/// What a rotation or delivery is sealed with, and to whom.
struct Gift {
    seq: u64,
    epoch: u32,
    key: [u8; 32],
    /// A rotation: to all.
    rotation: bool,
    /// Whether what is sealed opens.
    sound: bool,
}

/// Has the device read a key entry of a member.
fn read(log: &mut Log, call: &mut Call<'_>, author: &Identity, gift: &Gift) -> Taken {
    let me = call.device.key();
    let recipients = if gift.rotation { Vec::new() } else { vec![me] };
    let seen = Head { seq: gift.seq - 1, ..Head::NONE };
    let (count, prev) = (2, sealwire_protocol::Digest::ZERO);
    let outline = Outline { log: LOG, count, prev, kind: Kind::Key, recipients, seen };
    let aad = outline.aad(author.key());
    let place = Place { log: LOG, sender: author.key(), aad: &aad };
    let scope = log.membership.scope().expect("founded");
    let name = KeyName { scope, epoch: gift.epoch };
    let grant = Grant { key: EpochKey::from_bytes(gift.key), join_seed: None, head: None };
    let mut sealed = keybox::seal(&grant, name, &place, me).expect("sealed");
    if !gift.sound {
        sealed.enc = [0x77; 32];
    }
    let keys = Bounded::new(vec![sealed]).expect("few");
    let body = KeyBody { scope, epoch: gift.epoch, keys }.encode().expect("short");
    let signed = outline.sign(author, &body).expect("short");
    let entry = Entry {
        log: LOG,
        seq: gift.seq,
        at: 0,
        header: signed.entry.header,
        body: signed.entry.body,
        signature: signed.entry.signature,
        recipients: signed.entry.recipients,
        totals_kind: None,
    };
    let header = entry.header.decode().expect("a header");
    log.take_keys(call, &entry, &header).expect("read")
}

/// The key that the device would seal with.
fn seals_with(db: &Connection, log: &Log) -> Option<[u8; 32]> {
    let scope = log.membership.scope().expect("founded");
    let name = KeyName { scope, epoch: log.holders.epoch() };
    keys::find(db, log.id, name).expect("keys").first().map(|key| *key.bytes())
}

const HONEST: [u8; 32] = [0x0a; 32];
const HOSTILE: [u8; 32] = [0x0b; 32];

#[test]
fn a_delivery_that_does_not_open_changes_nothing() {
    as_newcomer(|db, log, call| {
        let lie = Gift { seq: 5, epoch: 3, key: HOSTILE, rotation: false, sound: false };
        assert_eq!(read(log, call, &device(2), &lie), Err(Rejection::Keys));
        assert_eq!(log.holders.epoch(), 0);
        let gift = Gift { seq: 6, epoch: 1, key: HONEST, rotation: false, sound: true };
        assert_eq!(read(log, call, &device(0), &gift), Ok(()));
        assert_eq!((log.holders.epoch(), seals_with(db, log)), (1, Some(HONEST)));
    });
}

#[test]
fn no_delivery_names_a_generation_that_the_log_has_no_room_for() {
    as_newcomer(|db, log, call| {
        for epoch in [5, 6, u32::MAX - 1, u32::MAX] {
            let lie = Gift { seq: 5, epoch, key: HOSTILE, rotation: false, sound: true };
            assert_eq!(read(log, call, &device(2), &lie), Err(Rejection::Keys), "{epoch}");
            let lie = Gift { rotation: true, ..lie };
            assert_eq!(read(log, call, &device(2), &lie), Err(Rejection::Keys), "{epoch}");
        }
        assert_eq!((log.holders.epoch(), seals_with(db, log)), (0, None));
        let gift = Gift { seq: 9, epoch: 1, key: HONEST, rotation: false, sound: true };
        assert_eq!(read(log, call, &device(0), &gift), Ok(()));
        assert_eq!((log.holders.epoch(), seals_with(db, log)), (1, Some(HONEST)));
    });
}

#[test]
fn a_rotation_outdoes_whatever_was_delivered_before_it() {
    as_newcomer(|db, log, call| {
        let lie = Gift { seq: 9, epoch: 8, key: HOSTILE, rotation: false, sound: true };
        // Nothing tells it from the truth yet.
        assert_eq!(read(log, call, &device(2), &lie), Ok(()));
        let real = Gift { seq: 10, epoch: 2, key: HONEST, rotation: true, sound: true };
        assert_eq!(read(log, call, &device(0), &real), Ok(()));
        assert_eq!((log.holders.epoch(), seals_with(db, log)), (2, Some(HONEST)));
        let again = Gift { seq: 11, ..lie };
        assert_eq!(read(log, call, &device(2), &again), Ok(()), "kept, to open with");
        assert_eq!((log.holders.epoch(), seals_with(db, log)), (2, Some(HONEST)));
    });
}

#[test]
fn a_rotation_under_the_number_of_a_delivered_key_gives_the_key_to_seal_with() {
    as_newcomer(|db, log, call| {
        let lie = Gift { seq: 9, epoch: 2, key: HOSTILE, rotation: false, sound: true };
        assert_eq!(read(log, call, &device(2), &lie), Ok(()));
        let scope = log.membership.scope().expect("founded");
        let key = EpochKey::from_bytes(HOSTILE);
        keys::prove(db, log.id, KeyName { scope, epoch: 2 }, &key).expect("opened something");
        let real = Gift { seq: 10, epoch: 2, key: HONEST, rotation: true, sound: true };
        assert_eq!(read(log, call, &device(0), &real), Ok(()));
        assert_eq!((log.holders.epoch(), seals_with(db, log)), (2, Some(HONEST)));
    });
}

#[test]
fn once_a_liar_is_out_the_next_rotation_of_the_others_stands() {
    as_newcomer(|db, log, call| {
        let lie = Gift { seq: 9, epoch: 8, key: HOSTILE, rotation: true, sound: true };
        assert_eq!(read(log, call, &device(2), &lie), Ok(()), "the first that it sees");
        let early = Gift { seq: 10, epoch: 2, key: HONEST, rotation: true, sound: true };
        assert_eq!(read(log, call, &device(0), &early), Err(Rejection::Keys));
        log.forget_member(device(2).key());
        let real = Gift { seq: 12, ..early };
        assert_eq!(read(log, call, &device(0), &real), Ok(()));
        assert_eq!((log.holders.epoch(), seals_with(db, log)), (2, Some(HONEST)));
        let late = Gift { seq: 13, epoch: 9, key: HOSTILE, rotation: true, sound: true };
        assert_eq!(read(log, call, &device(3), &late), Err(Rejection::Keys));
    });
}

#[test]
fn where_no_further_generation_can_be_named_sending_ends_and_is_refused() {
    as_newcomer(|db, log, call| {
        let me = call.device.key();
        log.holders.rotation(u32::MAX, &[me], [me]);
        let gone = sealwire_protocol::Control::Leave;
        let header = Header {
            log: LOG,
            sender: device(2).key(),
            count: 2,
            prev: sealwire_protocol::Digest::ZERO,
            kind: Kind::Control,
            audience: sealwire_protocol::Audience::All,
            seen: Head::NONE,
            body: sealwire_protocol::Digest::ZERO,
        };
        log.membership.apply(LOG, 6, 0, &header, &gone).expect("left");
        assert!(log.membership.wants_rotation());
        assert!(log.membership.since(me) == Some(Since { seq: 2, at: 0 }));
        let kind = Kind::Ring.to_u8();
        let text = Draft::Content { kind, payload: Some(b"hello".to_vec()), to: Vec::new() };
        let id = outbox::insert(db, log.id, &text).expect("kept");
        log.pump(call).expect("it ends");
        let sending = outbox::sending(db, id).expect("known");
        assert_eq!(sending, Sending::Refused(ErrorCode::Internal));
        let left: i64 =
            db.query_row("select count(*) from outbox", [], |row| row.get(0)).expect("a number");
        assert!(left <= 2, "{left}");
    });
}
