//! The rules of capture and replay alone, in a model: whatever the order in which changesets are made and
//! replayed, everybody ends with the same.
//!
//! It is quick, and its devices may have wrong clocks. There are no keys, seals, numbers, cuts, snapshots
//! or chains in it, and what is private is kept from others by the model itself: all of that happens
//! between real devices and a real relay in the relay's own tests, `tests/interleavings.rs`.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::sync::changeset::What;
use crate::sync::clock::{Reading, Stamp, now_ms};

/// What may happen.
#[derive(Clone, Debug)]
enum Step {
    Insert {
        phone: usize,
        id: u8,
        amount: u16,
        card: bool,
    },
    Replace {
        phone: usize,
        id: u8,
        amount: u16,
    },
    Amount {
        phone: usize,
        id: u8,
        amount: u16,
    },
    Note {
        phone: usize,
        id: u8,
        note: u8,
    },
    Card {
        phone: usize,
        id: u8,
        card: u8,
    },
    Rename {
        phone: usize,
        from: u8,
        to: u8,
    },
    Delete {
        phone: usize,
        id: u8,
    },
    Pin {
        phone: usize,
        id: u8,
        pin: u8,
    },
    Unpin {
        phone: usize,
        id: u8,
    },
    /// Several writes in one transaction.
    Many {
        phone: usize,
        id: u8,
        amount: u16,
    },
    Push {
        phone: usize,
    },
    Pull {
        phone: usize,
        count: usize,
    },
    /// What was read is read again.
    Again {
        phone: usize,
        from: u8,
    },
    /// In the middle of a pull, before it is committed.
    Crash {
        phone: usize,
    },
    /// Between two transactions.
    Restart {
        phone: usize,
    },
}

fn any_step() -> impl Strategy<Value = Step> {
    let (phone, id) = (|| 0usize..4, || 0u8..4);
    prop_oneof![
        4 => (phone(), id(), 0u16..900, any::<bool>())
            .prop_map(|(phone, id, amount, card)| Step::Insert { phone, id, amount, card }),
        2 => (phone(), id(), 0u16..900)
            .prop_map(|(phone, id, amount)| Step::Replace { phone, id, amount }),
        4 => (phone(), id(), 0u16..900)
            .prop_map(|(phone, id, amount)| Step::Amount { phone, id, amount }),
        4 => (phone(), id(), any::<u8>()).prop_map(|(phone, id, note)| Step::Note { phone, id, note }),
        2 => (phone(), id(), any::<u8>()).prop_map(|(phone, id, card)| Step::Card { phone, id, card }),
        1 => (phone(), id(), id()).prop_map(|(phone, from, to)| Step::Rename { phone, from, to }),
        3 => (phone(), id()).prop_map(|(phone, id)| Step::Delete { phone, id }),
        1 => (phone(), id(), any::<u8>()).prop_map(|(phone, id, pin)| Step::Pin { phone, id, pin }),
        1 => (phone(), id()).prop_map(|(phone, id)| Step::Unpin { phone, id }),
        1 => (phone(), id(), 0u16..900)
            .prop_map(|(phone, id, amount)| Step::Many { phone, id, amount }),
        5 => phone().prop_map(|phone| Step::Push { phone }),
        5 => (phone(), 1usize..5).prop_map(|(phone, count)| Step::Pull { phone, count }),
        1 => (phone(), any::<u8>()).prop_map(|(phone, from)| Step::Again { phone, from }),
        1 => phone().prop_map(|phone| Step::Crash { phone }),
        1 => phone().prop_map(|phone| Step::Restart { phone }),
    ]
}

fn take(step: &Step, phones: &mut [Phone], vault: &mut Vec<Entry>) {
    match *step {
        Step::Insert { phone, id, amount, card } => {
            let card = if card { "'card'" } else { "null" };
            phones[phone].app(&format!(
                "insert or ignore into transactions values ('{id}', {amount}, null, {card})"
            ));
        }
        Step::Replace { phone, id, amount } => phones[phone].app(&format!(
            "insert or replace into transactions values ('{id}', {amount}, 'replaced', null)"
        )),
        Step::Amount { phone, id, amount } => {
            phones[phone]
                .app(&format!("update transactions set amount = {amount} where id = '{id}'"));
        }
        Step::Note { phone, id, note } => {
            phones[phone].app(&format!("update transactions set note = {note} where id = '{id}'"));
        }
        Step::Card { phone, id, card } => {
            phones[phone].app(&format!("update transactions set card = {card} where id = '{id}'"));
        }
        Step::Rename { phone, from, to } => phones[phone]
            .app(&format!("update or replace transactions set id = '{to}' where id = '{from}'")),
        Step::Delete { phone, id } => {
            phones[phone].app(&format!("delete from transactions where id = '{id}'"));
        }
        Step::Pin { phone, id, pin } => {
            phones[phone].app(&format!("insert or replace into pins values (x'0{id}', {pin})"));
        }
        Step::Unpin { phone, id } => {
            phones[phone].app(&format!("delete from pins where id = x'0{id}'"));
        }
        Step::Many { phone, id, amount } => phones[phone].app(&format!(
            "begin; delete from transactions where id = '{id}';
             insert into transactions values ('{id}', {amount}, 'many', null);
             insert or replace into transactions values ('many', {amount}, 'many', 'c');
             update transactions set amount = amount + 1 where amount < 900; commit"
        )),
        Step::Push { phone } => phones[phone].push(vault),
        Step::Pull { phone, count } => {
            phones[phone].pull(vault, count, false);
        }
        Step::Again { phone, from } => {
            let from = usize::from(from).min(phones[phone].read);
            let entries = vault[from..phones[phone].read].to_vec();
            phones[phone].replay(&entries, false);
        }
        Step::Crash { phone } => {
            phones[phone].pull(vault, 3, true);
            phones[phone].crash();
        }
        Step::Restart { phone } => phones[phone].crash(),
    }
}

/// One row as the vault's entries say: another way to the same end.
#[derive(Default)]
struct Told {
    life: Option<(Stamp, bool)>,
    cells: BTreeMap<String, (Stamp, Value)>,
}

/// What a person's devices must hold, from the entries alone.
fn told(vault: &[Entry], person: u8, table: &str, scope: KeyScope) -> Vec<Vec<Value>> {
    let mut rows: BTreeMap<Vec<u8>, (Vec<Value>, Told)> = BTreeMap::new();
    for entry in vault {
        let private = entry.part.private.as_ref().filter(|_| entry.person == person);
        let boxes =
            [(KeyScope::Group, entry.part.group.as_ref()), (KeyScope::UserPrivate, private)];
        for (of, bytes) in boxes {
            let Some(bytes) = bytes else { continue };
            let changes = Changes::decode(bytes).expect("sound");
            let stamp = Stamp { reading: changes.reading, device: entry.author };
            for changed in changes.tables.iter().filter(|it| it.table == table) {
                for row in &changed.rows {
                    let name = rmp_serde::to_vec(&row.key).expect("a key");
                    let (_, told) =
                        rows.entry(name).or_insert_with(|| (row.key.clone(), Told::default()));
                    let alive = row.what == What::Written;
                    let newer = told.life.is_none_or(|(known, _)| stamp > known);
                    if row.what != What::Cells && of == scope && newer {
                        told.life = Some((stamp, alive));
                    }
                    for cell in &row.cells {
                        let Some(after) = &cell.after else { continue };
                        let known = told.cells.get(&changed.columns[cell.column]);
                        if known.is_none_or(|(known, _)| stamp > *known) {
                            let name = changed.columns[cell.column].clone();
                            told.cells.insert(name, (stamp, after.clone()));
                        }
                    }
                }
            }
        }
    }
    let columns: &[&str] = if table == "pins" { &["pin"] } else { &["amount", "note", "card"] };
    let alive = rows.into_values().filter(|(_, told)| told.life.is_some_and(|(_, alive)| alive));
    let mut shown: Vec<Vec<Value>> = alive
        .map(|(key, told)| {
            let cell = |name: &&str| told.cells.get(*name).map_or(Value::Null, |it| it.1.clone());
            key.into_iter().chain(columns.iter().map(cell)).collect()
        })
        .collect();
    shown.sort_by_key(|row| rmp_serde::to_vec(row).expect("values"));
    shown
}

fn shown(phone: &Phone, sql: &str) -> Vec<Vec<Value>> {
    let mut rows = phone.rows(sql);
    rows.sort_by_key(|row| rmp_serde::to_vec(row).expect("values"));
    rows
}

fn an_hour_late() -> u64 {
    now_ms() - 3_600_000
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn changesets_in_any_order_give_the_same_tables_and_none_is_lost(
        steps in proptest::collection::vec(any_step(), 1..60),
    ) {
        // Two of Ada, two of Ben; one of each with a clock that is wrong.
        let mut phones: Vec<Phone> = (0..4).map(|it| Phone::new(it + 1, it / 2)).collect();
        let mut vault = Vec::new();
        for step in &steps {
            for phone in [1, 2] {
                phones[phone].engine().set_now(an_hour_late);
            }
            take(step, &mut phones, &mut vault);
        }
        for phone in &mut phones {
            phone.push(&mut vault);
        }
        for phone in &mut phones {
            phone.pull(&vault, usize::MAX, false);
        }
        for phone in &phones {
            let (person, group) = (phone.person, KeyScope::Group);
            let transactions = shown(phone, "select id, amount, note, card from transactions");
            prop_assert_eq!(transactions, told(&vault, person, "transactions", group));
            let pins = shown(phone, "select id, pin from pins");
            prop_assert_eq!(pins, told(&vault, person, "pins", KeyScope::UserPrivate));
            prop_assert_eq!(phone.count("select count(*) from sealwire_capture"), 0);
        }
        // Byte for byte the same among those who hold the same keys, and what is shared among all.
        let shared = "select id, amount, note from transactions";
        for (one, other, sql) in [
            (0, 1, "select id, amount, note, card from transactions"),
            (2, 3, "select id, amount, note, card from transactions"),
            (0, 2, shared),
        ] {
            prop_assert_eq!(shown(&phones[one], sql), shown(&phones[other], sql));
        }
        // A device that comes last, and reads it all in another order, has the same.
        let mut late = Phone::new(9, 0);
        let mut entries = vault.clone();
        entries.reverse();
        late.replay(&entries, false);
        prop_assert_eq!(shown(&late, shared), shown(&phones[0], shared));
        let readings = vault.iter().filter_map(|entry| entry.part.group.as_ref());
        for bytes in readings {
            let changes = Changes::decode(bytes).expect("sound");
            prop_assert!(changes.reading > Reading::ADOPTED);
        }
    }
}
