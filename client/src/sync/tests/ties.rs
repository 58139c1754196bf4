//! What one device has written twice under one stamp: the same everywhere, whatever came first.

use proptest::prelude::*;

use super::*;
use crate::sync::changeset::{Cell, RowChange, TableChanges, What};
use crate::sync::clock::Reading;
use crate::sync::state::{StateRow, StateRows, shared_rows};

/// A device that is in two places, or means harm.
const TWIN: DeviceKey = DeviceKey([77; 32]);

const AT: Reading = Reading(1_700_000_000_000 << 16);

/// Columns that make other values of what is written to them, and one that does not.
const WIDE: &str = "create table wide (id text primary key, number integer, float real,
                    word text, any_of_them)";

const COLUMNS: [&str; 4] = ["number", "float", "word", "any_of_them"];

fn wide() -> Schema {
    Schema::version(1).table(Table::group("wide"))
}

/// One of the writes under the same stamp.
#[derive(Clone, Debug)]
struct Twice {
    column: usize,
    value: Value,
    what: What,
    in_snapshot: bool,
}

fn cells(it: &Twice) -> Vec<(usize, Value)> {
    if it.what == What::Deleted { Vec::new() } else { vec![(it.column, it.value.clone())] }
}

fn take(phone: &mut Phone, it: &Twice) {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let (table, key_columns, columns) = ("wide".to_owned(), names(&["id"]), names(&COLUMNS));
    let key = vec![Value::text("a")];
    let written = phone.engine().write(|writer| {
        writer.drain()?;
        let mut done = Replayed::default();
        writer.silently(|writer| {
            if it.in_snapshot {
                let cells = cells(it).into_iter();
                let cells = cells.map(|(column, value)| (column as u16, AT.0, 0, value)).collect();
                let life = (it.what != What::Cells).then_some((AT.0, 0, it.what == What::Written));
                let rows = vec![StateRow(key, life, cells)];
                let rows = StateRows { table, key_columns, columns, rows };
                return writer.merge_rows(KeyScope::Group, &[TWIN], rows, &mut done);
            }
            let cells = cells(it).into_iter();
            let cells =
                cells.map(|(column, value)| Cell { column, after: Some(value), before: None });
            let rows = vec![RowChange { key, what: it.what, cells: cells.collect() }];
            let tables = vec![TableChanges { table, key_columns, columns, rows }];
            let changes = Changes { schema_version: 1, reading: AT, tables };
            writer.replay(TWIN, KeyScope::Group, &changes, &mut done)
        })
    });
    written.expect("taken");
}

/// The table, and the state that others would begin with.
fn shows(phone: &mut Phone) -> (Vec<Vec<Value>>, Vec<u8>) {
    let state = phone.engine().look(shared_rows).expect("a state");
    (phone.rows("select * from wide order by id"), state)
}

fn any_write() -> impl Strategy<Value = Twice> {
    let value = prop_oneof![
        (-2i64..3).prop_map(Value::Integer),
        (-2i8..3).prop_map(|half| Value::Real(f64::from(half) / 2.0)),
        Just(Value::Real(-0.0)),
        (-2i64..3).prop_map(|number| Value::text(&number.to_string())),
        Just(Value::text("1.0")),
        Just(Value::text(" 1")),
        crate::sync::value::any_value(),
    ];
    let what = prop_oneof![
        4 => Just(What::Written), 2 => Just(What::Cells), 1 => Just(What::Deleted),
    ];
    (0..COLUMNS.len(), value, what, any::<bool>())
        .prop_map(|(column, value, what, in_snapshot)| Twice { column, value, what, in_snapshot })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_has_one_stamp_is_the_same_everywhere_whatever_came_first(
        (one, other) in proptest::collection::vec(any_write(), 2..9)
            .prop_flat_map(|writes| (Just(writes.clone()), Just(writes).prop_shuffle())),
        late in any::<bool>(),
    ) {
        let mut first = Phone::with(1, 1, WIDE, &wide());
        // An older version of the app does not know the table yet.
        let mut second = if late { Phone::new(2, 1) } else { Phone::with(2, 1, WIDE, &wide()) };
        one.iter().for_each(|it| take(&mut first, it));
        other.iter().for_each(|it| take(&mut second, it));
        one.iter().take(2).for_each(|it| take(&mut first, it));
        if late {
            second.app(WIDE);
            second.attach(&schema().table(Table::group("wide")));
        }
        prop_assert_eq!(shows(&mut first), shows(&mut second));
    }
}

#[test]
fn a_device_that_lost_its_database_and_adopts_another_one_agrees_with_the_others() {
    for (before, after) in [(1, 7), (7, 1)] {
        let seeded = |amount: i64| {
            format!("{APP} insert into transactions values ('a', {amount}, 'x', null);")
        };
        let (mut other, mut vault) = (Phone::new(2, 1), Vec::new());
        let mut lost = Phone::with(1, 1, &seeded(before), &schema());
        lost.push(&mut vault);
        // What was there before is stamped alike in the new file.
        let mut again = Phone::with(1, 1, &seeded(after), &schema());
        // It reads what it does not remember as anybody's.
        again.key = DeviceKey([99; 32]);
        again.pull(&vault, usize::MAX, false);
        again.key = lost.key;
        again.push(&mut vault);
        other.pull(&vault, usize::MAX, false);
        let amount = "select amount from transactions";
        assert_eq!(other.rows(amount), [[Value::Integer(7)]]);
        assert_eq!(again.rows(amount), other.rows(amount));
    }
}

#[test]
fn a_row_deleted_by_the_app_is_kept_as_it_was_written() {
    let mut phone = Phone::with(1, 1, WIDE, &wide());
    let what = What::Written;
    let text = Twice { column: 0, value: Value::text("3"), what, in_snapshot: false };
    take(&mut phone, &text);
    assert_eq!(phone.rows("select number from wide"), [[Value::Integer(3)]]);
    phone.app("delete from wide");
    phone.push(&mut Vec::new());
    // Nothing greater was written under this stamp.
    take(&mut phone, &Twice { value: Value::Integer(5), ..text });
    let state = shows(&mut phone).1;
    assert!(state.windows(2).any(|it| it == [0xa1, b'3']), "the text is still what was written");
}
