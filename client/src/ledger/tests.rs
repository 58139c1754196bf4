//! The contract's vectors, and what holds whatever comes in whatever order.

use proptest::prelude::*;
use sealwire_protocol::{DeviceKey, LogId};
use serde_json::{Value, json};

use super::money::{Currency, Money};
use super::*;
use crate::totals::payload::tests::any_message;
use crate::totals::payload::{Expense as Sent, ExpenseMessage};

const LOG: LogId = LogId([0x44; 16]);
const ANNA: DeviceKey = DeviceKey([1; 32]);

fn said(message: &[u8]) -> Said<'_> {
    Said { log: LOG, sender: ANNA, at: 5, approvals: true, message }
}

fn take(ledger: &mut Ledger, message: &Value) -> Vec<Change> {
    ledger.take(said(message.to_string().as_bytes()))
}

fn ledger(messages: &[Value]) -> Ledger {
    let mut ledger = Ledger::default();
    for message in messages {
        take(&mut ledger, message);
    }
    ledger
}

fn paid(id: &str, by: &str, among: &[&str], amount: f64) -> Value {
    json!({ "type": "expense", "id": id, "amount": amount, "currency": "ETB", "reason": id,
            "paidBy": by, "splitAmong": among, "timestamp": 1000, "kind": "expense" })
}

fn with(mut message: Value, changes: &Value) -> Value {
    let object = message.as_object_mut().expect("an object");
    object.extend(changes.as_object().expect("an object").clone());
    message
}

fn plan(transfers: Vec<Transfer>) -> Vec<(String, String, String)> {
    let text = |it: Transfer| (it.from.0, it.to.0, it.amount.to_string());
    transfers.into_iter().map(text).collect()
}

fn expected(plan: &[(&str, &str, &str)]) -> Vec<(String, String, String)> {
    plan.iter().map(|(from, to, much)| ((*from).into(), (*to).into(), (*much).into())).collect()
}

fn four_friends() -> Vec<Value> {
    vec![
        paid("1", "eyos", &["aimen"], 3000.0),
        paid("2", "hale", &["aimen"], 8000.0),
        paid("3", "hale", &["aimen"], 3500.0),
        paid("4", "hale", &["yohannes"], 11100.0),
    ]
}

#[test]
fn both_plans_are_those_of_the_contract() {
    let ledger = ledger(&four_friends());
    assert_eq!(
        plan(ledger.pairwise()),
        expected(&[
            ("aimen", "hale", "11500.00 ETB"),
            ("yohannes", "hale", "11100.00 ETB"),
            ("aimen", "eyos", "3000.00 ETB"),
        ])
    );
    assert_eq!(
        plan(ledger.simplified()),
        expected(&[
            ("aimen", "hale", "14500.00 ETB"),
            ("yohannes", "hale", "8100.00 ETB"),
            ("yohannes", "eyos", "3000.00 ETB"),
        ])
    );
}

#[test]
fn a_settlement_takes_from_a_debt_as_in_the_contract() {
    let settled = with(paid("5", "aimen", &["eyos"], 1000.0), &json!({ "kind": "settlement" }));
    let ledger = ledger(&[paid("1", "eyos", &["aimen"], 3000.0), settled]);
    assert_eq!(plan(ledger.pairwise()), expected(&[("aimen", "eyos", "2000.00 ETB")]));
}

#[test]
fn a_share_that_does_not_divide_is_owed_as_on_a_phone() {
    let among = ["a", "b", "c"];
    let dinners: Vec<Value> = (0..100).map(|i| paid(&i.to_string(), "a", &among, 10.0)).collect();
    let ledger = ledger(&dinners);
    assert_eq!(
        plan(ledger.pairwise()),
        expected(&[("b", "a", "333.33 ETB"), ("c", "a", "333.33 ETB")])
    );
    let balances = &ledger.balances()[&Currency::parse("ETB").expect("a currency")];
    assert_eq!(balances.values().sum::<i64>(), 0);
    let one = self::ledger(&[paid("1", "a", &["a", "b"], 0.01)]);
    assert_eq!(one.pairwise(), [], "half a cent is dropped");
}

#[test]
fn currencies_are_never_added_up() {
    let yen = with(paid("2", "b", &["a"], 1500.0), &json!({ "currency": "JPY" }));
    let ledger = ledger(&[paid("1", "a", &["b"], 15.0), yen]);
    assert_eq!(
        plan(ledger.pairwise()),
        expected(&[("b", "a", "15.00 ETB"), ("a", "b", "1500 JPY")])
    );
}

#[test]
fn only_a_newer_version_takes_the_place_of_an_expense() {
    let first = paid("1", "a", &["b"], 10.0);
    let newer = with(first.clone(), &json!({ "amount": 20.0, "revisedAt": 2000 }));
    let as_new = with(first.clone(), &json!({ "amount": 30.0, "revisedAt": 2000 }));
    let gone = with(first.clone(), &json!({ "deleted": true, "revisedAt": 3000 }));
    let mut ledger = Ledger::default();
    let amount = |ledger: &Ledger| ledger.expense("1").map(|it| it.amount.to_string());
    take(&mut ledger, &newer);
    assert_eq!(take(&mut ledger, &first), [Change::Activity("expense_created:1:1000".into())]);
    assert_eq!(amount(&ledger).as_deref(), Some("20.00 ETB"));
    assert_eq!(take(&mut ledger, &as_new), []);
    assert_eq!(amount(&ledger).as_deref(), Some("20.00 ETB"));
    take(&mut ledger, &gone);
    assert!(ledger.expenses().is_empty() && ledger.pairwise().is_empty());
    assert_eq!(take(&mut ledger, &newer), []);
    assert!(ledger.expenses().is_empty(), "what is deleted stays so");
}

#[test]
fn what_does_not_count_is_listed_and_owed_by_nobody() {
    let ledger = ledger(&[
        paid("1", "a", &["b"], 0.0),
        paid("2", "a", &["b"], -5.0),
        paid("3", "", &["b"], 5.0),
        paid("4", "a", &[], 5.0),
    ]);
    assert_eq!(ledger.expenses().len(), 4);
    assert_eq!((ledger.pairwise(), ledger.simplified()), (vec![], vec![]));
}

#[test]
fn an_expense_that_nothing_real_has_is_passed_over() {
    let long = "x".repeat(NAME_BYTES_MAX + 1);
    let ledger = ledger(&[
        paid("", "a", &["b"], 1.0),
        paid(&long, "a", &["b"], 1.0),
        paid("1", "a", &["b"], 1e300),
        with(paid("2", "a", &["b"], 1.0), &json!({ "currency": "no currency" })),
        with(paid("3", "a", &["b"], 1.0), &json!({ "splitAmong": vec!["x"; SPLIT_MAX + 1] })),
    ]);
    assert!(ledger == Ledger { people: ledger.people.clone(), ..Ledger::default() });
}

#[test]
fn names_are_those_said_last_and_a_made_up_name_is_none() {
    let me = Party::from(ANNA);
    let named = |name: &str, at: i64| json!({ "type": "member_meta", "displayName": name, "memberMetaUpdatedAt": at });
    let mut ledger = Ledger::default();
    assert_eq!(ledger.name_of(&me), "01010101");
    assert_eq!(take(&mut ledger, &named("Anna", 10)), [Change::Person(me.clone())]);
    for (name, at, then) in [
        ("Old", 9, "Anna"),
        ("Anne", 10, "Anne"),
        ("Me", 11, "Anne"),
        ("  ", 12, "Anne"),
        (" Annika ", 13, "Annika"),
    ] {
        take(&mut ledger, &named(name, at));
        assert_eq!(ledger.name_of(&me), then);
    }
    let paid = json!({ "type": "member_meta", "memberMetaUpdatedAt": 12,
                       "paymentAddress": { "bankId": 1, "accountNumber": "1000" } });
    take(&mut ledger, &paid);
    let person = ledger.person(&me).expect("known");
    assert_eq!(person.payment_address.as_ref().map(|it| it.bank_id), Some(1));
    assert_eq!(person.name.as_deref(), Some("Annika"));
}

#[test]
fn a_snapshot_passes_the_group_s_name_on_and_never_undoes_a_newer_one() {
    let group = LOG.to_uuid_text();
    let passed = |name: &str| {
        json!({ "type": "group_snapshot", "groupId": group, "part": "meta", "groupName": name,
                "timestamp": 9999, "createdAt": 7 })
    };
    let mut ledger = Ledger::default();
    take(&mut ledger, &passed("Trip"));
    assert_eq!(ledger.group().name.as_deref(), Some("Trip"));
    take(&mut ledger, &json!({ "type": "group_meta", "name": "Journey", "timestamp": 10 }));
    take(&mut ledger, &passed("Trip"));
    take(&mut ledger, &json!({ "type": "group_meta", "name": "Shared group", "timestamp": 20 }));
    assert_eq!(ledger.group().name.as_deref(), Some("Journey"));
    assert_eq!(ledger.group().created_at, Some(7));
    let other = json!({ "type": "group_snapshot", "groupId": LogId([9; 16]).to_uuid_text(),
                        "expenses": [paid("1", "a", &["b"], 1.0)] });
    assert_eq!(take(&mut ledger, &other), [], "another group's history");
}

#[test]
fn a_nudge_stands_once_in_the_list_of_what_has_happened() {
    let nudge = json!({ "type": "nudge", "id": "n", "timestamp": 3, "actor": "a", "amount": 5.0,
                        "debtorPks": ["b"], "amountByDebtorPk": { "b": 5.0 } });
    let mut ledger = Ledger::default();
    assert_eq!(take(&mut ledger, &nudge).last(), Some(&Change::Activity("n".into())));
    assert_eq!(take(&mut ledger, &nudge), []);
    let entry = ledger.happened("n").expect("there");
    assert_eq!((entry.kind.as_str(), &entry.data["debtorPks"]), ("nudge_sent", &json!(["b"])));
}

#[test]
fn whoever_seals_under_the_group_s_key_is_approved_until_it_asks_anew() {
    let me = Party::from(ANNA);
    let asks = |at: i64| json!({ "type": "join_request", "publicKey": me, "timestamp": at });
    let mut ledger = Ledger::default();
    let approved = |ledger: &Ledger| ledger.person(&me).is_some_and(Person::is_approved);
    take(&mut ledger, &asks(3));
    assert!(!approved(&ledger));
    take(&mut ledger, &paid("1", "a", &["b"], 1.0));
    assert!(approved(&ledger), "at 5, by the relay's clock");
    take(&mut ledger, &asks(3));
    assert!(approved(&ledger), "a repeated request changes nothing");
    let again = asks(6).to_string();
    ledger.take(Said { at: 7, ..said(again.as_bytes()) });
    assert!(!approved(&ledger));
    let id = format!("join_requested:{}:{me}:6", LOG.to_uuid_text());
    assert!(ledger.happened(&id).is_some());
    let native = Said { approvals: false, ..said(b"") };
    let mut other = Ledger::default();
    let message = asks(3).to_string();
    assert_eq!(other.take(Said { message: message.as_bytes(), ..native }), []);
}

#[test]
fn a_clock_that_is_ahead_or_behind_leaves_nobody_out() {
    const DAY: i64 = 86_400_000;
    let (asks, lets_in) = (Party::from(ANNA), Party::from(DeviceKey([2; 32])));
    let request = json!({ "type": "join_request", "publicKey": asks, "timestamp": 9 * DAY });
    let (request, at) = (request.to_string(), u64::try_from(5 * DAY).expect("a time"));
    let is_in = |ledger: &Ledger| ledger.person(&asks).is_some_and(Person::is_approved);
    // The newcomer's clock is four days ahead, that of whoever lets it in four days behind.
    let mut ledger = Ledger::default();
    ledger.take(Said { at, ..said(request.as_bytes()) });
    let approved = json!({ "type": "member_approved", "approvedPublicKey": asks,
                           "approvedBy": lets_in, "timestamp": DAY });
    let approved = approved.to_string();
    ledger.take(Said { sender: DeviceKey([2; 32]), at: at + 1, ..said(approved.as_bytes()) });
    assert!(is_in(&ledger));
    // It speaks under the group's key before anybody has told of it.
    let mut ledger = Ledger::default();
    ledger.take(Said { at, ..said(request.as_bytes()) });
    assert!(!is_in(&ledger));
    let spent = paid("1", "a", &["b"], 1.0).to_string();
    ledger.take(Said { at: at + 1, ..said(spent.as_bytes()) });
    assert!(is_in(&ledger));
}

#[test]
fn nobody_leaves_asks_or_approves_in_another_s_name() {
    let other = Party::from(DeviceKey([2; 32]));
    let mut ledger = Ledger::default();
    for message in [
        json!({ "type": "member_left", "publicKey": other, "leftAt": 9 }),
        json!({ "type": "join_cancel", "publicKey": other, "timestamp": 9 }),
        json!({ "type": "join_request", "publicKey": other, "timestamp": 9 }),
        json!({ "type": "snapshot_request", "publicKey": other, "timestamp": 9 }),
        json!({ "type": "member_approved", "approvedPublicKey": "x", "approvedBy": other,
                "timestamp": 9 }),
    ] {
        take(&mut ledger, &message);
    }
    assert!(ledger.person(&other).is_none() && ledger.person(&Party("x".into())).is_none());
}

#[test]
fn what_is_not_known_is_kept_once_and_what_is_not_readable_is_not() {
    let mut ledger = Ledger::default();
    let dance = json!({ "type": "dance", "steps": 3 });
    assert_eq!(take(&mut ledger, &dance), [Change::Unknown]);
    assert_eq!(take(&mut ledger, &dance), []);
    assert_eq!(ledger.take(said(b"not json")), []);
    assert_eq!(ledger.unknown(), 1);
}

#[test]
fn what_this_device_writes_is_what_others_read() {
    let me = Party::from(ANNA);
    let etb = Currency::parse("ETB").expect("a currency");
    let amount = |text| Money::parse(text, &etb).expect("an amount");
    let new = NewExpense {
        amount: amount("30"),
        reason: "Lunch".into(),
        paid_by: None,
        split_among: vec![me.clone(), Party("b".into())],
        at: Some(9_000),
    };
    let mut ledger = Ledger::default();
    let tell = |ledger: &mut Ledger, payload: Payload| {
        ledger.take(said(&payload.encode().expect("encoded")))
    };
    let written =
        |payload: Result<Payload, LedgerError>| payload.unwrap_or_else(|error| panic!("{error}"));
    let message = written(ledger.create(&me, new, 1_000));
    let Payload::Expense(ExpenseMessage { expense: Sent { id, .. }, .. }) = message.clone() else {
        panic!("not an expense")
    };
    assert_eq!(tell(&mut ledger, message).len(), 3, "the author, what happened, the expense");
    assert_eq!(plan(ledger.pairwise()), expected(&[("b", &me.0, "15.00 ETB")]));

    // It is dated in the future, and can be changed all the same.
    let change =
        Edit { amount: Some(amount("40")), reason: Some("Dinner".into()), ..Edit::default() };
    let message = written(ledger.edit(&me, &id, change.clone(), 2_000));
    let Payload::Expense(edited) = &message else { panic!("not an expense") };
    assert_eq!((edited.activities.len(), edited.expense.revised_at), (2, Some(9_001)));
    tell(&mut ledger, message);
    assert_eq!(plan(ledger.pairwise()), expected(&[("b", &me.0, "20.00 ETB")]));
    let again = ledger.edit(&me, &id, change, 2_000).err();
    assert_eq!(again, Some(LedgerError::NothingToChange));

    let owed = ledger.debtors(&me);
    let Payload::Nudge(nudge) = written(ledger.nudge(&me, &owed, 3_000)) else {
        panic!("not a nudge")
    };
    assert_eq!((nudge.amount, nudge.debtor_pks.len()), (20.0, 1));
    let pay = Transfer { from: Party("b".into()), to: me.clone(), amount: amount("20") };
    let message = written(ledger.settle(&me, pay, 4_000));
    tell(&mut ledger, message);
    assert_eq!(ledger.pairwise(), []);
    let message = written(ledger.delete(&me, &id, 5_000));
    tell(&mut ledger, message);
    assert!(ledger.delete(&me, &id, 6_000).err() == Some(LedgerError::NoSuchExpense));
    assert_eq!(plan(ledger.pairwise()), expected(&[(&me.0, "b", "20.00 ETB")]));
}

#[test]
fn what_makes_no_sense_is_not_written() {
    let me = Party::from(ANNA);
    let money = |minor| Money { minor, currency: Currency::parse("ETB").expect("a currency") };
    let new = |minor, among: &[Party]| NewExpense {
        amount: money(minor),
        reason: String::new(),
        paid_by: None,
        split_among: among.to_vec(),
        at: None,
    };
    let none = Ledger::default();
    let refused = |new| none.create(&me, new, 1).err();
    assert_eq!(refused(new(0, std::slice::from_ref(&me))), Some(LedgerError::Amount));
    assert_eq!(refused(new(1, &[])), Some(LedgerError::Split));
    let pay = Transfer { from: me.clone(), to: me.clone(), amount: money(5) };
    assert_eq!(none.settle(&me, pay, 1).err(), Some(LedgerError::Oneself));
    assert_eq!(none.nudge(&me, &[], 1).err(), Some(LedgerError::NobodyOwes));
    let last = with(paid("1", "a", &["b"], 1.0), &json!({ "revisedAt": i64::MAX }));
    let ledger = ledger(&[last]);
    assert_eq!(ledger.delete(&me, "1", 1).err(), Some(LedgerError::EndOfTime));
}

fn snapshot_of(ledger: &Ledger) -> Vec<Vec<u8>> {
    let members = [SnapshotOf { device: ANNA, joined_at: 1_767_225_600_000 }];
    let parts = ledger.snapshot(LOG, "s", &members, &[ANNA], 5);
    let encode = |part| Payload::GroupSnapshot(part).encode();
    parts.into_iter().map(|part| encode(part).expect("encoded").to_vec()).collect()
}

#[test]
fn a_snapshot_brings_everything_in_parts_that_a_phone_reads() {
    let reason = "እራት ".repeat(20);
    let mut messages: Vec<Value> = (0..600)
        .map(|i| with(paid(&i.to_string(), "a", &["b", "c"], 10.01), &json!({ "reason": reason })))
        .collect();
    messages.push(json!({ "type": "group_meta", "name": "Trip", "timestamp": 4 }));
    messages
        .push(json!({ "type": "member_meta", "displayName": "Anna", "memberMetaUpdatedAt": 3 }));
    let ledger = ledger(&messages);
    let parts = snapshot_of(&ledger);
    assert!(parts.len() > 5);
    let units = |part: &Vec<u8>| String::from_utf8_lossy(part).encode_utf16().count();
    assert!(parts.iter().all(|part| units(part) <= PART_UNITS_MAX));
    let full = parts.iter().filter(|part| units(part) > PART_UNITS_MAX * 9 / 10).count();
    assert!(full + 3 >= parts.len(), "no more parts than it takes");
    assert!(
        String::from_utf8_lossy(&parts[0]).contains("\"joinedAt\":\"2026-01-01T00:00:00.000Z\"")
    );
    let mut copy = Ledger::default();
    for part in parts.iter().rev() {
        copy.take(said(part));
    }
    assert!(copy.expenses == ledger.expenses && copy.activity == ledger.activity);
    assert_eq!(copy.group().name, ledger.group().name);
    assert_eq!(copy.name_of(&Party::from(ANNA)), "Anna");
}

#[test]
fn a_snapshot_of_many_people_fits_messages_too() {
    const PEOPLE: usize = 2_000;
    let names = |from: usize| -> BTreeMap<String, String> {
        (from..PEOPLE).step_by(4).map(|n| (format!("{n:064x}"), format!("Person {n}"))).collect()
    };
    let group = LOG.to_uuid_text();
    let messages: Vec<Value> = (0..4)
        .map(|from| {
            json!({ "type": "group_snapshot", "groupId": group, "part": "meta",
                    "groupName": "Village", "displayNames": names(from) })
        })
        .collect();
    let ledger = ledger(&messages);
    let parts = snapshot_of(&ledger);
    let units = |part: &Vec<u8>| String::from_utf8_lossy(part).encode_utf16().count();
    assert!(parts.iter().all(|part| units(part) <= PART_UNITS_MAX));
    let mut copy = Ledger::default();
    for part in &parts {
        copy.take(said(part));
    }
    assert_eq!(copy.group().name.as_deref(), Some("Village"));
    let named = |ledger: &Ledger| ledger.people().filter(|(_, it)| it.name.is_some()).count();
    assert_eq!((named(&ledger), named(&copy)), (PEOPLE, PEOPLE));
}

/// A version of one of a few expenses.
type Version = (u8, &'static str, Vec<&'static str>, i64, bool, bool);

fn version(i: usize, (id, by, among, minor, deleted, settled): Version) -> Value {
    let kind = if settled { "settlement" } else { "expense" };
    let currency = if id == 5 { "JPY" } else { "ETB" };
    with(
        paid(&id.to_string(), by, &among, minor as f64 / 100.0),
        &json!({ "deleted": deleted, "kind": kind, "currency": currency, "revisedAt": 5000 + i }),
    )
}

/// Versions of a few expenses, no two with one stamp.
fn messages() -> impl Strategy<Value = Vec<Value>> {
    let people = || proptest::sample::select(vec!["a", "b", "c", "d"]);
    let among = proptest::collection::vec(people(), 0..5);
    let one = (0..6u8, people(), among, 0..2_000_000i64, any::<bool>(), any::<bool>());
    proptest::collection::vec(one, 1..25)
        .prop_map(|all| all.into_iter().enumerate().map(|(i, one)| version(i, one)).collect())
}

proptest! {
    #[test]
    fn any_order_with_any_duplicates_ends_in_the_same_ledger(
        (messages, shuffled) in messages().prop_flat_map(|messages| {
            let twice = [messages.clone(), messages.clone()].concat();
            (Just(messages), Just(twice).prop_shuffle())
        }),
    ) {
        prop_assert!(ledger(&messages) == ledger(&shuffled));
    }

    #[test]
    fn balances_sum_to_zero_and_both_plans_make_all_even(messages in messages()) {
        let mut ledger = ledger(&messages);
        for balances in ledger.balances().values() {
            prop_assert_eq!(balances.values().sum::<i64>(), 0);
        }
        let mut balances = ledger.balances();
        for it in ledger.simplified() {
            let of = balances.get_mut(&it.amount.currency).expect("a currency");
            *of.get_mut(&it.from).expect("a debtor") += it.amount.minor;
            *of.get_mut(&it.to).expect("a creditor") -= it.amount.minor;
        }
        prop_assert!(balances.values().flat_map(BTreeMap::values).all(|minor| *minor == 0));
        for (i, it) in ledger.pairwise().into_iter().enumerate() {
            let settled = with(
                paid(&format!("s{i}"), &it.from.0, &[&it.to.0], it.amount.to_units()),
                &json!({ "kind": "settlement", "currency": it.amount.currency }),
            );
            take(&mut ledger, &settled);
        }
        prop_assert_eq!(ledger.pairwise(), []);
    }

    #[test]
    fn any_message_is_taken_without_a_panic_and_a_second_time_without_an_effect(
        messages in proptest::collection::vec(any_message(), 1..8),
    ) {
        let mut ledger = Ledger::default();
        for message in &messages {
            take(&mut ledger, message);
            let before = ledger.clone();
            take(&mut ledger, message);
            prop_assert!(ledger == before);
        }
        for balances in ledger.balances().values() {
            prop_assert_eq!(balances.values().map(|minor| i128::from(*minor)).sum::<i128>(), 0);
        }
        let _ = (ledger.pairwise(), ledger.simplified(), snapshot_of(&ledger));
    }

    #[test]
    fn a_snapshot_makes_the_same_ledger(messages in messages()) {
        let ledger = ledger(&messages);
        let mut copy = Ledger::default();
        for part in snapshot_of(&ledger) {
            copy.take(said(&part));
        }
        prop_assert!(copy.expenses == ledger.expenses && copy.activity == ledger.activity);
        prop_assert_eq!(copy.balances(), ledger.balances());
    }
}
