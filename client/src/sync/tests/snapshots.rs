//! Snapshots as another device judges them before it confirms one.

use std::sync::Arc;

use sealwire_protocol::LogId;

use super::rules::meet;
use super::*;
use crate::identity::Identity;
use crate::sync::coverage::Coverage;
use crate::sync::intake::Keyring;
use crate::sync::state::{StateRow, StateRows, edited};
use crate::vault::Vault;

/// What a device makes a snapshot of, after somebody has changed it.
fn state(phone: &mut Phone, edit: impl Fn(&mut StateRows)) -> Vec<u8> {
    let state = phone.engine().write(|writer| {
        writer.drain()?;
        edited(writer, edit)
    });
    state.expect("a state")
}

/// Whether a device would confirm it.
fn confirms(phone: &mut Phone, author: DeviceKey, packed: &[u8]) -> bool {
    let vault = Vault::new(Arc::new(Identity::from_seed(&[9; 32])), LogId([1; 16]));
    let confirmed = phone.engine().write(|writer| {
        let keys = Keyring { vault: &vault, private: None };
        let mut coverage = Coverage::of(keys, author, 1000, writer)?;
        coverage.take(writer, packed)?;
        writer.is_covered(&coverage)
    });
    confirmed.expect("compared")
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
