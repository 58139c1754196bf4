//! The rules, one by one.

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::*;
use crate::sync::changeset::{Cell, RowChange, TableChanges, What};
use crate::sync::clock::{DRIFT_MAX_MS, Reading, now_ms};
use crate::sync::schema::SchemaError;
use crate::vault::{Packer, Unpacked};

const ALL: &str = "select id, amount, note, card from transactions order by id";

fn text(it: &str) -> Value {
    Value::text(it)
}

fn row(id: &str, amount: i64, note: &str) -> Vec<Value> {
    vec![text(id), Value::Integer(amount), text(note), Value::Null]
}

/// Waits until the clock shows that time has passed.
fn later() {
    let now = now_ms();
    while now_ms() < now + 3 {
        std::hint::spin_loop();
    }
}

/// Everybody pushes and reads everything.
pub(super) fn meet(phones: &mut [&mut Phone], vault: &mut Vec<Entry>) {
    for phone in phones.iter_mut() {
        phone.push(vault);
    }
    for phone in phones {
        phone.pull(vault, usize::MAX, false);
    }
}

#[test]
fn two_devices_that_write_different_cells_both_have_their_way() {
    let (mut one, mut two, mut vault) = (Phone::new(1, 1), Phone::new(2, 1), Vec::new());
    one.app("insert into transactions values ('a', 42, 'IKEA', '1234')");
    meet(&mut [&mut one, &mut two], &mut vault);
    one.app("update transactions set amount = 43");
    two.app("update transactions set note = 'IKEA, chairs'");
    meet(&mut [&mut one, &mut two], &mut vault);
    let expected = vec![vec![text("a"), Value::Integer(43), text("IKEA, chairs"), text("1234")]];
    assert_eq!((one.rows(ALL), two.rows(ALL)), (expected.clone(), expected));
}

#[test]
fn a_replay_is_never_captured() {
    let (mut one, mut two, mut vault) = (Phone::new(1, 1), Phone::new(2, 1), Vec::new());
    one.app(
        "insert into transactions values ('a', 1, 'x', null); insert into pins values (x'01', 7)",
    );
    one.app(
        "update transactions set amount = 2; delete from pins; insert into pins values (x'02', 8)",
    );
    meet(&mut [&mut one, &mut two], &mut vault);
    assert_eq!(two.count("select count(*) from sealwire_capture"), 0);
    two.push(&mut vault);
    assert!(vault.iter().all(|entry| entry.author == one.key), "nothing comes back");
    assert_eq!(two.count("select count(*) from sealwire_replaying"), 0);
}

#[test]
fn a_rolled_back_write_is_not_captured_and_a_replacing_one_knows_what_was_before() {
    let (mut one, mut vault) = (Phone::new(1, 1), Vec::new());
    one.app("insert into transactions values ('a', 1, 'x', null)");
    one.push(&mut vault);
    one.app("begin; update transactions set amount = 9; rollback");
    one.app("insert or ignore into transactions values ('a', 5, 'y', null)");
    one.push(&mut vault);
    assert_eq!(vault.len(), 1);
    one.app("insert or replace into transactions values ('a', 2, 'x', null)");
    one.push(&mut vault);
    let changes = Changes::decode(vault[1].part.group.as_ref().expect("a box")).expect("sound");
    let cells = &changes.tables[0].rows[0].cells;
    assert_eq!(cells.len(), 1, "what is as it was is not written");
    assert_eq!(cells[0].before, Some(Value::Integer(1)));
    assert_eq!(cells[0].after, Some(Value::Integer(2)));
}

#[test]
fn a_later_edit_brings_a_deleted_row_back_whole() {
    let (mut one, mut two, mut vault) = (Phone::new(1, 1), Phone::new(2, 1), Vec::new());
    one.app("insert into transactions values ('a', 1, 'x', null)");
    meet(&mut [&mut one, &mut two], &mut vault);
    one.app("delete from transactions");
    one.push(&mut vault);
    later();
    two.app("update transactions set amount = 2");
    meet(&mut [&mut one, &mut two], &mut vault);
    let back = vec![row("a", 2, "x")];
    assert_eq!((one.rows(ALL), two.rows(ALL)), (back.clone(), back));
    // One that was made before the deletion does not.
    two.app("update transactions set amount = 3");
    two.push(&mut vault);
    later();
    one.app("delete from transactions");
    meet(&mut [&mut one, &mut two], &mut vault);
    assert!(one.rows(ALL).is_empty() && two.rows(ALL).is_empty());
}

#[test]
fn what_is_its_users_alone_never_reaches_the_others() {
    let (mut ada, mut ben, mut vault) = (Phone::new(1, 1), Phone::new(2, 2), Vec::new());
    let mut tablet = Phone::new(3, 1);
    ada.app("insert into transactions values ('a', 1, 'x', 'planted card')");
    ada.app("insert into pins values (x'01', 'planted pin')");
    meet(&mut [&mut ada, &mut ben, &mut tablet], &mut vault);
    assert_eq!(ben.rows(ALL), [row("a", 1, "x")]);
    assert_eq!(ben.count("select count(*) from pins"), 0);
    assert_eq!(tablet.rows("select card from transactions"), [[text("planted card")]]);
    assert_eq!(tablet.count("select count(*) from pins"), 1);
    drop(ben.engine.take());
    let file = std::fs::read(&ben.path).expect("a file");
    assert!(!file.windows(7).any(|window| window == b"planted"));
    for entry in &vault {
        let group = entry.part.group.as_deref().unwrap_or_default();
        assert!(!group.windows(7).any(|window| window == b"planted"));
        assert!(!group.windows(4).any(|window| window == b"card" || window == b"pins"));
    }
    // Nor does the shared part of a snapshot name it.
    let state = ada.engine().look(|writer| {
        let (mut packer, mut state) = (Packer::new()?, Vec::new());
        writer.write_state(KeyScope::Group, &mut packer, &mut || {})?;
        let read = Unpacked::new(&packer.finish()?, 1 << 20)?.read_to_end(&mut state);
        read.expect("small");
        Ok(state)
    });
    let state = state.expect("a state");
    assert!(state.windows(12).any(|window| window == b"transactions"));
    for planted in ["planted", "card", "pin"] {
        let window = planted.len();
        assert!(!state.windows(window).any(|it| it == planted.as_bytes()), "{planted}");
    }
    // Ben edits the shared half, and Ada's private one stays.
    ben.app("update transactions set amount = 2");
    meet(&mut [&mut ada, &mut ben, &mut tablet], &mut vault);
    assert_eq!(
        ada.rows("select amount, card from transactions"),
        [[Value::Integer(2), text("planted card")]]
    );
}

#[test]
fn rows_that_were_there_before_are_adopted_and_yield_to_everything() {
    let seeded = format!("{APP} insert into transactions values ('default', 1, 'mine', null);");
    let (mut one, mut vault) = (Phone::with(1, 1, &seeded, &schema()), Vec::new());
    one.app("update transactions set note = 'edited'");
    one.push(&mut vault);
    let mut two = Phone::with(2, 1, &seeded, &schema());
    two.app("insert into transactions values ('new', 2, 'z', null)");
    meet(&mut [&mut one, &mut two], &mut vault);
    let expected = vec![row("default", 1, "edited"), row("new", 2, "z")];
    assert_eq!((one.rows(ALL), two.rows(ALL)), (expected.clone(), expected));
}

#[test]
fn tables_and_columns_of_a_newer_app_are_kept_until_this_one_knows_them() {
    let newer = format!(
        "{APP} alter table transactions add column place text;
         create table budgets (id text primary key, amount integer);"
    );
    let wide = schema().table(Table::group("budgets"));
    let (mut new, mut old, mut vault) =
        (Phone::with(1, 1, &newer, &wide), Phone::new(2, 1), Vec::new());
    new.app("insert into transactions values ('a', 1, 'x', null, 'Berlin')");
    new.app("insert into budgets values ('food', 300), ('fun', 50); ");
    meet(&mut [&mut new, &mut old], &mut vault);
    assert_eq!(old.rows(ALL), [row("a", 1, "x")]);
    old.app("update transactions set amount = 5");
    new.app("delete from budgets where id = 'fun'");
    meet(&mut [&mut new, &mut old], &mut vault);
    // The update.
    old.app("alter table transactions add column place text; create table budgets (id text primary key, amount integer)");
    old.attach(&wide);
    let place = "select amount, place from transactions";
    assert_eq!(old.rows(place), [[Value::Integer(5), text("Berlin")]]);
    assert_eq!(old.rows("select * from budgets"), [[text("food"), Value::Integer(300)]]);
    old.app("update budgets set amount = 310");
    meet(&mut [&mut new, &mut old], &mut vault);
    assert_eq!(new.rows("select amount from budgets"), [[Value::Integer(310)]]);
    assert_eq!(new.rows(place), old.rows(place));
}

#[test]
fn a_row_that_a_constraint_forbids_is_kept_and_shown_when_it_fits() {
    let strict =
        "create table transactions (id text primary key, amount integer not null, note text,
                  card text, check (amount < 10));
                  create table pins (id blob primary key, pin) without rowid;";
    let (mut one, mut two) = (Phone::new(1, 1), Phone::with(2, 1, strict, &schema()));
    let mut vault = Vec::new();
    one.app("insert into transactions values ('a', 5, 'x', null), ('b', 50, 'y', null)");
    meet(&mut [&mut one, &mut two], &mut vault);
    assert_eq!(two.rows(ALL), [row("a", 5, "x")]);
    one.app("update transactions set amount = 60 where id = 'a'");
    meet(&mut [&mut one, &mut two], &mut vault);
    assert!(two.rows(ALL).is_empty());
    assert_eq!(two.count("select count(*) from sealwire_withheld"), 2);
    one.app("update transactions set amount = 6, note = 'z' where id = 'a'");
    one.app("update transactions set amount = 7 where id = 'b'");
    meet(&mut [&mut one, &mut two], &mut vault);
    assert_eq!(two.rows(ALL), [row("a", 6, "z"), row("b", 7, "y")]);
    assert_eq!(two.count("select count(*) from sealwire_withheld"), 0);
}

#[test]
fn a_device_from_the_future_wins_once_and_is_overwritten_by_whoever_saw_it() {
    let (mut one, mut two, mut vault) = (Phone::new(1, 1), Phone::new(2, 1), Vec::new());
    one.app("insert into transactions values ('a', 1, 'x', null), ('b', 1, 'x', null)");
    meet(&mut [&mut one, &mut two], &mut vault);
    // What a wrong clock would have stamped.
    two.app("update transactions set amount = 2 where id = 'a'");
    two.push(&mut vault);
    let part = &mut vault.last_mut().expect("an entry").part;
    let mut changes = Changes::decode(part.group.as_ref().expect("a box")).expect("sound");
    changes.reading = super::super::clock::Reading::at(now_ms() + 100 * DRIFT_MAX_MS);
    part.group = Some(changes.encode().expect("sound"));
    one.pull(&vault, usize::MAX, false);
    assert_eq!(one.rows(ALL)[0], row("a", 2, "x"));
    one.app("update transactions set amount = 3 where id = 'a'");
    one.app("update transactions set amount = 4 where id = 'b'");
    one.push(&mut vault);
    let mut third = Phone::new(3, 1);
    third.pull(&vault, usize::MAX, false);
    assert_eq!(third.rows(ALL), [row("a", 3, "x"), row("b", 4, "x")]);
}

#[test]
fn a_lost_trigger_is_found_when_the_database_is_attached_again() {
    let (mut one, mut two, mut vault) = (Phone::new(1, 1), Phone::new(2, 1), Vec::new());
    one.app("insert into transactions values ('a', 1, 'x', null)");
    meet(&mut [&mut one, &mut two], &mut vault);
    // As migrations do it: a new table takes the place of the old one, and its triggers are gone.
    one.app(
        "create table t2 (id text primary key, amount integer not null, note text, card text);
         insert into t2 select * from transactions; drop table transactions;
         alter table t2 rename to transactions; insert into transactions values ('b', 2, 'y', null)",
    );
    one.attach(&schema());
    one.app("update transactions set amount = 3 where id = 'a'");
    meet(&mut [&mut one, &mut two], &mut vault);
    assert_eq!(two.rows(ALL), [row("a", 3, "x"), row("b", 2, "y")]);
}

#[test]
fn what_is_too_long_is_counted_for_as_long_as_it_is() {
    let (mut one, mut two, mut vault) = (Phone::new(1, 1), Phone::new(2, 1), Vec::new());
    let count = "select count(*) from sealwire_oversized";
    let long = "hex(zeroblob(100000))";
    one.app("insert into transactions values ('a', 1, 'x', null), ('b', 1, 'x', null)");
    meet(&mut [&mut one, &mut two], &mut vault);
    for shorter in ["update transactions set note = 'y'", "delete from transactions where id = 'a'"]
    {
        one.app(&format!("update transactions set note = {long} where id = 'a'"));
        one.push(&mut vault);
        assert_eq!(one.count(count), 1);
        one.app(shorter);
        one.push(&mut vault);
        assert_eq!(one.count(count), 0, "{shorter}");
    }
    // What another device writes later takes its place.
    one.app(&format!("update transactions set note = {long} where id = 'b'"));
    one.push(&mut vault);
    assert_eq!(one.count(count), 1);
    later();
    two.app("update transactions set note = 'z' where id = 'b'");
    meet(&mut [&mut two, &mut one], &mut vault);
    assert_eq!(one.rows("select note from transactions"), [[text("z")]]);
    assert_eq!(one.count(count), 0);
    // A whole row, whose key is too long.
    one.app(&format!("insert into transactions values ({long}, 1, 'x', null)"));
    one.push(&mut vault);
    assert_eq!(one.count(count), 1);
    one.app("delete from transactions where length(id) > 10");
    one.push(&mut vault);
    assert_eq!(one.count(count), 0);
}

#[test]
fn the_scope_of_a_column_is_for_life_and_the_database_has_one_device() {
    let mut one = Phone::new(1, 1);
    let changed = Schema::version(2).table(Table::group("transactions"));
    one.crash();
    let refused = Engine::attach(&one.path, one.key, &changed).map(|_| ());
    let card = SchemaError::ScopeChanged("transactions.card".into());
    assert_eq!(refused, Err(SyncError::Schema(card)));
    let other = Engine::open(&one.path, DeviceKey([9; 32])).map(|_| ());
    assert_eq!(other, Err(SyncError::OtherDevice));
}

#[test]
fn a_cell_that_is_too_long_stays_and_stops_nothing() {
    let (mut one, mut two, mut vault) = (Phone::new(1, 1), Phone::new(2, 1), Vec::new());
    one.app("insert into transactions values ('a', 1, printf('%.*c', 200000, 'x'), null)");
    one.app("insert into transactions values ('b', 2, 'y', null)");
    meet(&mut [&mut one, &mut two], &mut vault);
    assert_eq!(
        two.rows("select amount from transactions"),
        [[Value::Integer(1)], [Value::Integer(2)]]
    );
    assert_eq!(one.count("select count(*) from sealwire_oversized"), 1);
}

/// What a member sends who wants to be overwritten by nobody.
fn from_the_end_of_time(vault: &mut [Entry], reading: u64) {
    let part = &mut vault.last_mut().expect("an entry").part;
    let mut changes = Changes::decode(part.group.as_ref().expect("a box")).expect("sound");
    changes.reading = super::super::clock::Reading(reading);
    part.group = Some(changes.encode().expect("sound"));
}

#[test]
fn a_write_over_one_from_the_end_of_time_stops_nothing() {
    for reading in [(1u64 << 63) - 1, (1u64 << 63) - 2] {
        let (mut one, mut two, mut vault) = (Phone::new(1, 1), Phone::new(2, 1), Vec::new());
        one.app("insert into transactions values ('a', 1, 'x', null), ('b', 1, 'x', null)");
        meet(&mut [&mut one, &mut two], &mut vault);
        two.app("update transactions set amount = 2 where id = 'a'");
        two.push(&mut vault);
        from_the_end_of_time(&mut vault, reading);
        one.pull(&vault, usize::MAX, false);
        for amount in 3..6 {
            one.app(&format!("update transactions set amount = {amount}"));
            one.push(&mut vault);
        }
        let mut third = Phone::new(3, 1);
        third.pull(&vault, usize::MAX, false);
        assert_eq!(third.rows(ALL), [row("a", 2, "x"), row("b", 5, "x")]);
        assert_eq!(one.rows(ALL)[0], row("a", 5, "x"), "what the app wrote stays");
        assert_eq!(one.count("select count(*) from sealwire_oversized"), 1);
        one.app("update transactions set note = 'y'");
        one.push(&mut vault);
        third.pull(&vault, usize::MAX, false);
        assert_eq!(third.rows(ALL)[0], row("a", 2, "y"), "its other cells go on");
    }
}

#[test]
fn a_cell_that_is_too_long_is_not_overwritten_by_an_older_one() {
    let (mut one, mut two, mut vault) = (Phone::new(1, 1), Phone::new(2, 1), Vec::new());
    one.app("insert into transactions values ('a', 1, 'old', null)");
    meet(&mut [&mut one, &mut two], &mut vault);
    two.app("update transactions set note = 'x'");
    later();
    one.app("update transactions set note = printf('%.*c', 200000, 'x')");
    meet(&mut [&mut one, &mut two], &mut vault);
    assert_eq!(one.count("select length(note) from transactions"), 200_000);
    assert_eq!(two.rows(ALL), [row("a", 1, "x")]);
    later();
    two.app("update transactions set note = 'newer'");
    meet(&mut [&mut one, &mut two], &mut vault);
    assert_eq!(one.rows(ALL), [row("a", 1, "newer")]);
}

#[test]
fn a_row_that_the_table_cannot_take_stops_nothing_behind_it() {
    let app = "create table notes (id integer primary key, text text);";
    let numbers = Schema::version(1).table(Table::group("notes").with_integer_key());
    let (mut one, mut two) = (Phone::with(1, 1, app, &numbers), Phone::with(2, 1, app, &numbers));
    let mut vault = Vec::new();
    one.app("insert into notes values (1, 'x')");
    one.push(&mut vault);
    let part = &mut vault[0].part;
    let mut changes = Changes::decode(part.group.as_ref().expect("a box")).expect("sound");
    changes.tables[0].rows[0].key = vec![text("abc")];
    part.group = Some(changes.encode().expect("sound"));
    one.app("insert into notes values (2, 'y')");
    one.push(&mut vault);
    two.pull(&vault, usize::MAX, false);
    assert_eq!(two.count("select count(*) from notes"), 1);
    assert_eq!(two.count("select count(*) from sealwire_withheld"), 1);
}

#[test]
fn a_trigger_that_needs_the_apps_own_functions_stops_nothing_and_takes_nothing_away() {
    let (mut one, mut two, mut vault) = (Phone::new(1, 1), Phone::new(2, 1), Vec::new());
    one.app("insert into transactions values ('a', 1, 'x', null)");
    meet(&mut [&mut one, &mut two], &mut vault);
    two.app(
        "create trigger indexed after update on transactions begin select of_the_app(new.note); end",
    );
    one.app("update transactions set note = 'y'");
    one.app("insert into transactions values ('b', 2, 'z', null)");
    meet(&mut [&mut one, &mut two], &mut vault);
    assert_eq!(two.rows(ALL), [row("a", 1, "x")], "what was there stays");
    assert_eq!(two.count("select count(*) from sealwire_withheld"), 2);
    two.app("drop trigger indexed");
    two.attach(&schema());
    assert_eq!(two.rows(ALL), [row("a", 1, "y"), row("b", 2, "z")]);
}

#[test]
fn rows_that_were_there_before_are_told_apart_by_when_they_were_adopted() {
    let seeded = format!("{APP} insert into transactions values ('a', 1, 'x', null);");
    let first = Schema::version(1).table(Table::group("transactions").user_private_column("card"));
    let (mut one, mut vault) = (Phone::with(1, 1, &seeded, &first), Vec::new());
    one.push(&mut vault);
    one.app("create table budgets (id text primary key, amount integer)");
    one.app("insert into budgets values ('food', 300)");
    one.attach(&first.table(Table::group("budgets")));
    one.push(&mut vault);
    let readings = vault.iter().map(|entry| {
        let bytes = entry.part.group.as_ref().expect("a box");
        Changes::decode(bytes).expect("sound").reading
    });
    let readings: Vec<_> = readings.collect();
    assert!(readings.len() == 2 && readings[0] != readings[1]);
    assert!(readings.iter().all(|reading| reading.is_adopted()));
}

#[test]
fn a_key_that_the_table_takes_for_another_one_shows_no_row_and_touches_none() {
    let app = "create table budgets (kind integer primary key, amount integer) without rowid";
    let schema = Schema::version(1).table(Table::group("budgets"));
    let (mut one, mut two) = (Phone::with(1, 1, app, &schema), Phone::with(2, 1, app, &schema));
    let mut vault = Vec::new();
    one.app("insert into budgets values (1, 300)");
    meet(&mut [&mut one, &mut two], &mut vault);
    // A device that means harm: '1' is 1 in a column of integers.
    for what in [What::Written, What::Deleted] {
        let value = Some(Value::Integer(7));
        let (after, before) = if what == What::Deleted { (None, value) } else { (value, None) };
        let cells = vec![Cell { column: 0, after, before }];
        let rows = vec![RowChange { key: vec![text("1")], what, cells }];
        let (key_columns, columns) = (vec!["kind".into()], vec!["amount".into()]);
        later();
        let changes = Changes {
            schema_version: 1,
            reading: Reading::at(now_ms()),
            tables: vec![TableChanges { table: "budgets".into(), key_columns, columns, rows }],
        };
        let group = Some(changes.encode().expect("sound"));
        let part = Part { group, private: None, rows: 1, reading: 0 };
        vault.push(Entry { author: DeviceKey([9; 32]), person: 9, part });
        meet(&mut [&mut one, &mut two], &mut vault);
        for phone in [&one, &two] {
            let rows = phone.rows("select * from budgets");
            assert_eq!(rows, [[Value::Integer(1), Value::Integer(300)]]);
            let withheld = i64::from(what == What::Written);
            assert_eq!(phone.count("select count(*) from sealwire_withheld"), withheld);
        }
    }
}

#[test]
fn whoever_has_the_file_open_follows_what_another_process_registers() {
    let wide = format!("{APP} alter table transactions add column place text;");
    let (mut one, mut two) = (Phone::new(1, 1), Phone::with(2, 1, &wide, &schema()));
    let mut vault = Vec::new();
    one.app("insert into transactions values ('a', 1, 'x', null)");
    meet(&mut [&mut one, &mut two], &mut vault);
    // A newer version of the app, in a process of its own.
    one.app("alter table transactions add column place text");
    drop(Engine::attach(&one.path, one.key, &schema()).expect("attached"));
    one.app("update transactions set note = 'y', place = 'Berlin'");
    meet(&mut [&mut one, &mut two], &mut vault);
    let expected = [[text("a"), Value::Integer(1), text("y"), Value::Null, text("Berlin")]];
    let all = "select id, amount, note, card, place from transactions";
    assert_eq!(one.rows(all), expected);
    assert_eq!(two.rows(all), expected);
}

#[test]
fn a_panic_in_a_transaction_leaves_nothing_behind() {
    let (mut one, mut two, mut vault) = (Phone::new(1, 1), Phone::new(2, 1), Vec::new());
    one.app("insert into transactions values ('a', 1, 'x', null)");
    let engine = one.engine();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        engine.write(|writer| -> Result<(), SyncError> {
            writer.drain()?;
            panic!("of the app");
        })
    }));
    assert!(panicked.is_err());
    meet(&mut [&mut one, &mut two], &mut vault);
    // Another process knows nothing but what is in the file.
    one.crash();
    one.app("update transactions set amount = 2");
    meet(&mut [&mut one, &mut two], &mut vault);
    assert_eq!((one.rows(ALL), two.rows(ALL)), (vec![row("a", 2, "x")], vec![row("a", 2, "x")]));
}
