//! Snapshots as another device judges them before it confirms one.

use std::sync::Arc;

use sealwire_protocol::LogId;
use sealwire_protocol::ids::Scope;

use super::rules::meet;
use super::*;
use crate::identity::Identity;
use crate::seal::{self, EpochKey, KeyName, Place};
use crate::sync::coverage::Coverage;
use crate::sync::intake::{At, Kept, Keyring};
use crate::sync::state::{Frame, StateRow, StateRows, StateSealed, edited, with_frame};
use crate::vault::{SnapshotError, Vault};

/// What a device makes a snapshot of, after somebody has changed it.
fn state(phone: &mut Phone, edit: impl Fn(&mut StateRows)) -> Vec<u8> {
    let state = phone.engine().write(|writer| {
        writer.drain()?;
        edited(writer, edit)
    });
    state.expect("a state")
}

/// Whether a device would confirm it as one at `seq`.
fn compared(
    phone: &mut Phone,
    author: DeviceKey,
    seq: usize,
    packed: &[u8],
) -> Result<bool, SyncError> {
    let vault = Vault::new(Arc::new(Identity::from_seed(&[9; 32])), LogId([1; 16]));
    phone.engine().write(|writer| {
        writer.drain()?;
        let keys = Keyring { vault: &vault, private: None };
        let mut coverage = Coverage::of(keys, author, seq as u64, writer)?;
        coverage.take(writer, packed)?;
        writer.is_covered(&coverage)
    })
}

/// Whether a device would confirm it as one of everything that it has read.
fn confirms(phone: &mut Phone, author: DeviceKey, packed: &[u8]) -> bool {
    let read = phone.read;
    compared(phone, author, read, packed).expect("compared")
}

/// Changes one row of the shared table.
fn forge(id: &'static str, edit: impl Fn(&mut StateRow)) -> impl Fn(&mut StateRows) {
    move |rows| {
        let found = rows.rows.iter_mut().filter(|row| row.0 == [Value::text(id)]);
        found.for_each(&edit);
    }
}

#[test]
fn a_snapshot_that_has_others_say_what_they_have_not_is_not_confirmed() {
    let (mut ada, mut ben, mut cleo) = (Phone::new(1, 1), Phone::new(2, 2), Phone::new(3, 3));
    let mut vault = Vec::new();
    ada.app("insert into transactions values ('a', 1, 'x', null), ('b', 2, 'y', null)");
    meet(&mut [&mut ada, &mut ben, &mut cleo], &mut vault);
    ben.app("delete from transactions where id = 'b'");
    meet(&mut [&mut ada, &mut ben, &mut cleo], &mut vault);

    let honest = state(&mut cleo, |_| ());
    assert!(confirms(&mut ada, cleo.key, &honest) && confirms(&mut ben, cleo.key, &honest));
    let cell = |edit: fn(&mut (u16, u64, u32, Value))| {
        forge("a", move |row| row.2.iter_mut().take(1).for_each(edit))
    };
    let false_ones = [
        ("another value", state(&mut cleo, cell(|cell| cell.3 = Value::Integer(666)))),
        ("a later write of hers", state(&mut cleo, cell(|cell| cell.1 += 1))),
        ("an older write alone", state(&mut cleo, cell(|cell| cell.1 -= 1))),
        ("a row that she deleted", {
            let back = |row: &mut StateRow| row.1.iter_mut().for_each(|life| life.2 = true);
            state(&mut cleo, forge("b", back))
        }),
        ("a row that is nobody's", {
            state(&mut cleo, |rows| {
                let mut new = rows.rows.clone();
                new.truncate(1);
                new.iter_mut().for_each(|row| row.0 = vec![Value::text("c")]);
                rows.rows.extend(new);
            })
        }),
    ];
    for (what, packed) in &false_ones {
        assert!(!confirms(&mut ada, cleo.key, packed), "{what}");
    }
    // What its author has written and not sent is the author's own.
    cleo.app(
        "update transactions set amount = 3; insert into transactions values ('d', 4, 'z', null)",
    );
    let ahead = state(&mut cleo, |_| ());
    assert!(confirms(&mut ada, cleo.key, &ahead) && !confirms(&mut ada, ben.key, &ahead));
}

#[test]
fn a_snapshot_that_says_otherwise_what_was_written_behind_it_is_not_confirmed() {
    let (mut ada, mut cleo, mut vault) = (Phone::new(1, 1), Phone::new(3, 3), Vec::new());
    ada.app("insert into transactions values ('a', 0, 'x', null), ('b', 2, 'y', null)");
    meet(&mut [&mut ada, &mut cleo], &mut vault);
    let (before, at) = (state(&mut cleo, |_| ()), vault.len());
    ada.app("update transactions set amount = 1 where id = 'a'");
    meet(&mut [&mut ada, &mut cleo], &mut vault);
    ada.app("delete from transactions where id = 'b'");
    meet(&mut [&mut ada, &mut cleo], &mut vault);
    // She has not sent this yet.
    ada.app("insert into transactions values ('c', 3, 'z', null)");

    let author = cleo.key;
    let mut says = |packed: &[u8]| compared(&mut ada, author, at, packed).expect("compared");
    assert!(says(&before), "it need not have what came behind it");
    let mut behind = |edit: &dyn Fn(&mut StateRows)| state(&mut cleo, edit);
    assert!(says(&behind(&|_| ())), "and may have it as it was written");
    let value = behind(&forge("a", |row| {
        let newest = row.2.iter().map(|cell| cell.1).max();
        let written = row.2.iter_mut().filter(|cell| Some(cell.1) == newest);
        written.for_each(|cell| cell.3 = Value::Integer(666));
    }));
    let back = behind(&forge("b", |row| row.1.iter_mut().for_each(|life| life.2 = true)));
    assert!(!says(&value), "a newcomer would keep the greater value as hers");
    assert!(!says(&back), "and the row that she deleted");
}

/// A box of `author` that nobody here can open, as it stands in a snapshot.
fn closed(author: DeviceKey, said: Scope, named: Scope) -> StateSealed {
    let place = Place { log: LogId([1; 16]), sender: author, aad: b"" };
    let name = KeyName { scope: named, epoch: 1 };
    let key = EpochKey::from_bytes([66; 32]);
    let sealed = seal::seal(&key, name, &place, b"anything").expect("short");
    StateSealed { seq: 1, place: 0, author, aad: Vec::new(), scope: said, epoch: 1, sealed }
}

#[test]
fn a_snapshot_whose_boxes_are_not_of_the_scope_that_it_says_is_refused() {
    let (mut ada, ben, mut cleo) = (Phone::new(1, 1), Phone::new(2, 2), Phone::new(3, 3));
    let mut vault = Vec::new();
    ada.app("insert into transactions values ('a', 1, 'x', null)");
    meet(&mut [&mut ada, &mut cleo], &mut vault);
    let (author, at, others) = (cleo.key, vault.len(), Scope([5; 16]));
    let mut with = |sealed: StateSealed| {
        let frame = Frame::Sealed(sealed);
        cleo.engine().write(|writer| with_frame(writer, &frame)).expect("a state")
    };
    let honest = with(closed(ben.key, others, others));
    assert_eq!(compared(&mut ada, author, at, &honest), Ok(true), "she cannot judge it");
    let damaged = Some(SyncError::from(SnapshotError::Damaged));
    let mut refused = |packed: &[u8]| compared(&mut ada, author, at, packed).err() == damaged;
    for (said, named) in
        [(Scope::ZERO, others), (Scope::ZERO, Scope::ZERO), (others, Scope([6; 16]))]
    {
        let packed = with(closed(ben.key, said, named));
        assert!(refused(&packed));
        assert!(crate::sync::snapshot::check(&packed, 1 << 20).is_err());
    }
    let mut other_epoch = closed(ben.key, others, others);
    other_epoch.epoch = 2;
    assert!(refused(&with(other_epoch)));
    let mut no_box = closed(ben.key, others, others);
    no_box.sealed = b"garbage".to_vec();
    assert!(refused(&with(no_box)));
}

#[test]
fn whose_boxes_do_not_open_may_have_written_anything_and_nobody_else() {
    let (mut ada, mut ben, mut cleo) = (Phone::new(1, 1), Phone::new(2, 2), Phone::new(3, 3));
    let mut vault = Vec::new();
    ada.app("insert into transactions values ('a', 1, 'x', null)");
    meet(&mut [&mut ada, &mut cleo], &mut vault);
    ben.app("insert into transactions values ('b', 2, 'y', null)");
    let mut unread = Vec::new();
    ben.push(&mut unread);
    cleo.replay(&unread, false);
    let with_bens = state(&mut cleo, |_| ());
    assert!(!confirms(&mut ada, cleo.key, &with_bens), "she has read nothing of him");
    // His entry was one that does not even split into boxes.
    let keep = |phone: &mut Phone, author: DeviceKey| {
        let kept = phone.engine().write(|writer| {
            let at = At { seq: 2, place: 0, author, aad: b"" };
            writer.keep_box(&at, Scope::ZERO, 0, Kept::Damaged, b"garbage")
        });
        kept.expect("kept");
    };
    keep(&mut ada, ben.key);
    assert!(confirms(&mut ada, cleo.key, &with_bens));
    // What is damaged is handed on to nobody, nor is what names no scope.
    let name = KeyName { scope: Scope::ZERO, epoch: 1 };
    let place = Place { log: LogId([1; 16]), sender: ben.key, aad: b"" };
    let nowhere = seal::seal(&EpochKey::from_bytes([66; 32]), name, &place, b"x").expect("short");
    let reader = Vault::new(Arc::new(Identity::from_seed(&[9; 32])), LogId([1; 16]));
    let taken = cleo.engine().write(|writer| {
        let keys = Keyring { vault: &reader, private: None };
        let at = At { seq: 3, place: 0, author: ben.key, aad: b"" };
        writer.take_box(keys, &at, &nowhere, &mut Replayed::default())
    });
    assert_eq!(taken.expect("taken"), Err(Kept::Damaged));
}
