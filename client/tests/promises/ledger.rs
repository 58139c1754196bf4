//! Shared expenses in a native group: what all see, what is kept, and what a newcomer is given.

use sealwire_client::error::Error;
use sealwire_client::event::Event;
use sealwire_client::ledger::money::{Currency, Money};
use sealwire_client::ledger::{Change, Edit, LedgerError, NewExpense, Transfer};
use sealwire_client::totals::payload::Party;
use sealwire_protocol::{Kind, LogId};

use crate::world::{Person, SOON, World, until};

fn etb(text: &str) -> Money {
    Money::parse(text, &Currency::parse("ETB").expect("a currency")).expect("an amount")
}

fn lunch(amount: &str) -> NewExpense {
    NewExpense {
        amount: etb(amount),
        reason: "Lunch".into(),
        paid_by: None,
        split_among: Vec::new(),
        at: None,
    }
}

/// Who pays whom, as `person` sees it: from, to, minor units.
async fn plan(person: &Person, log: LogId) -> Vec<(String, String, i64)> {
    let ledger = person.device.ledger(log).await.expect("a ledger");
    ledger.pairwise().into_iter().map(|it| (it.from.0, it.to.0, it.amount.minor)).collect()
}

async fn sees_plan(person: &Person, log: LogId, expected: &[(&Person, &Person, i64)]) {
    let mut expected: Vec<(String, String, i64)> = expected
        .iter()
        .map(|(from, to, minor)| (from.key().to_hex(), to.key().to_hex(), *minor))
        .collect();
    expected.sort_by_key(|(from, to, minor)| (-minor, from.clone(), to.clone()));
    until("the same balances", async || plan(person, log).await == expected).await;
}

#[tokio::test]
async fn an_expense_is_owed_on_every_device_and_paid_back_on_every_device() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let written = anna.device.add_expense(log, lunch("30")).await.expect("written");
    sees_plan(&anna, log, &[(&ben, &anna, 1500)]).await;
    sees_plan(&ben, log, &[(&ben, &anna, 1500)]).await;

    let edit = Edit { amount: Some(etb("50")), ..Edit::default() };
    ben.device.edit_expense(log, &written.expense, edit).await.expect("anybody may");
    sees_plan(&anna, log, &[(&ben, &anna, 2500)]).await;

    ben.device.introduce(log, Some("Ben"), None).await.expect("said");
    until("his name", async || {
        anna.device.ledger(log).await.expect("a ledger").name_of(&ben.key().into()) == "Ben"
    })
    .await;
    let owes = etb("25");
    let paid = Transfer { from: ben.key().into(), to: anna.key().into(), amount: owes };
    let settled = ben.device.settle(log, paid).await.expect("written");
    sees_plan(&anna, log, &[]).await;
    ben.device.delete_expense(log, &settled.expense).await.expect("written");
    sees_plan(&anna, log, &[(&ben, &anna, 2500)]).await;
    let gone = ben.device.delete_expense(log, &settled.expense).await;
    assert_eq!(gone, Err(Error::Ledger(LedgerError::NoSuchExpense)));
}

#[tokio::test]
async fn what_is_written_without_a_relay_counts_at_once_and_reaches_the_others_later() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    anna.disconnect().await;
    ben.disconnect().await;
    anna.device.add_expense(log, lunch("30")).await.expect("written");
    sees_plan(&anna, log, &[(&ben, &anna, 1500)]).await;
    ben.device.add_expense(log, lunch("10")).await.expect("written");
    sees_plan(&ben, log, &[(&anna, &ben, 500)]).await;
    // Another process finds it in the device's file.
    let other = world.process_of(&anna).await;
    sees_plan(&other, log, &[(&ben, &anna, 1500)]).await;
    anna.connect().await;
    ben.connect().await;
    for person in [&anna, &ben] {
        sees_plan(person, log, &[(&ben, &anna, 1000)]).await;
    }
    for stored in world.relay.entries(log) {
        let body = stored.entry.body.as_ref();
        assert!(!body.windows(5).any(|window| window == b"Lunch"), "seq {}", stored.seq);
    }
}

#[tokio::test]
async fn a_newcomer_is_given_the_history_and_whoever_asks_is_given_it_again() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    anna.device.add_expense(log, lunch("30")).await.expect("written");
    anna.device.name_group(log, "Trip").await.expect("said");
    sees_plan(&ben, log, &[(&ben, &anna, 1500)]).await;
    let mut carl = world.online("carl").await;
    let invite = anna.device.invite(log).await.expect("an invite");
    carl.join(&invite).await;
    sees_plan(&carl, log, &[(&ben, &anna, 1500)]).await;
    until("the group's name", async || {
        let ledger = carl.device.ledger(log).await.expect("a ledger");
        ledger.group().name.as_deref() == Some("Trip")
    })
    .await;
    carl.device.add_expense(log, lunch("9")).await.expect("written");
    sees_plan(&anna, log, &[(&ben, &anna, 1500), (&anna, &carl, 300), (&ben, &carl, 300)]).await;
    let asked = ben.device.ask_history(log).await.expect("asked");
    ben.device.wait_appended(asked, SOON).await.expect("appended");
}

#[tokio::test]
async fn a_newcomer_that_a_rotation_gave_the_key_is_given_the_history_by_one_member() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let mut carl = world.online("carl").await;
    let log = world.group(&mut [&mut anna, &mut ben, &mut carl]).await;
    let both: Vec<Party> = vec![anna.key().into(), ben.key().into()];
    let new = NewExpense { split_among: both, ..lunch("30") };
    anna.device.add_expense(log, new).await.expect("written");
    sees_plan(&ben, log, &[(&ben, &anna, 1500)]).await;
    sees_plan(&carl, log, &[(&ben, &anna, 1500)]).await;
    let invite = anna.device.invite(log).await.expect("an invite");
    // Whoever has invited would give the key at once; the others leave each other time for it.
    anna.disconnect().await;
    let mut dora = world.offline("dora").await;
    dora.device.join(&invite).await.expect("joining");
    dora.connect().await;
    let everybody = [anna.key(), ben.key(), carl.key(), dora.key()];
    ben.sees_members(log, &everybody).await;
    let rotated = ben.device.rotate(log).await.expect("rotating");
    ben.appended(rotated).await;
    dora.device.wait_ready(log, SOON).await.expect("ready");
    sees_plan(&dora, log, &[(&ben, &anna, 1500)]).await;
    let to_dora = |sender: &Person| {
        let entries = world.relay.entries(log).into_iter();
        let named = entries.filter(|it| it.entry.recipients.contains(&dora.key()));
        named.filter(|it| it.header.sender == sender.key()).count()
    };
    assert!(to_dora(&ben) > 0, "he has made the key, so he is there, and is asked");
    assert_eq!(to_dora(&carl), 0, "one is enough");
    let asked = world.relay.entries(log).into_iter();
    let asked = asked.filter(|it| it.header.sender == dora.key() && it.header.kind == Kind::Ring);
    assert_eq!(asked.count(), 1);
}

#[tokio::test]
async fn who_waits_for_the_history_itself_does_not_pass_on_what_it_lacks() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    anna.device.add_expense(log, lunch("30")).await.expect("written");
    sees_plan(&ben, log, &[(&ben, &anna, 1500)]).await;
    // Carl joins and is given nothing, for whoever knows anything is away once he has the key.
    let carl = world.online("carl").await;
    let invite = anna.device.invite(log).await.expect("an invite");
    anna.disconnect().await;
    carl.device.join(&invite).await.expect("joining");
    ben.sees_members(log, &[anna.key(), ben.key(), carl.key()]).await;
    let rotated = ben.device.rotate(log).await.expect("rotating");
    ben.appended(rotated).await;
    ben.disconnect().await;
    carl.device.wait_ready(log, SOON).await.expect("ready");
    let invite = carl.device.invite(log).await.expect("an invite");
    let mut dora = world.online("dora").await;
    dora.join(&invite).await;
    // He gives her the key, and no history; when the others are back both are given it.
    let from_carl = world
        .relay
        .entries(log)
        .into_iter()
        .filter(|it| it.header.sender == carl.key() && it.header.kind == Kind::Bulk);
    assert_eq!(from_carl.count(), 0);
    anna.connect().await;
    ben.connect().await;
    sees_plan(&carl, log, &[(&ben, &anna, 1500)]).await;
    sees_plan(&dora, log, &[(&ben, &anna, 1500)]).await;
}

#[tokio::test]
async fn a_reminder_reaches_those_who_owe_and_nobody_else() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let mut carl = world.online("carl").await;
    let log = world.group(&mut [&mut anna, &mut ben, &mut carl]).await;
    let both: Vec<Party> = vec![anna.key().into(), ben.key().into()];
    let new = NewExpense { split_among: both, ..lunch("30") };
    anna.device.add_expense(log, new).await.expect("written");
    let currency = Currency::parse("ETB").expect("a currency");
    let (owed, id) = anna.device.nudge(log, &currency).await.expect("somebody owes");
    assert_eq!(owed.len(), 1);
    anna.device.wait_appended(id, SOON).await.expect("appended");
    let reminded = async |person: &Person| {
        let ledger = person.device.ledger(log).await.expect("a ledger");
        ledger.activity().iter().any(|entry| entry.kind == "nudge_sent")
    };
    until("the reminder", async || reminded(&ben).await).await;
    anna.say(log, "after that").await;
    assert_eq!(carl.hears().await, "after that");
    assert!(!reminded(&carl).await);
    let nobody = ben.device.nudge(log, &currency).await;
    assert!(nobody.err() == Some(Error::Ledger(LedgerError::NobodyOwes)));
}

#[tokio::test]
async fn the_app_is_told_what_has_changed() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let written = anna.device.add_expense(log, lunch("30")).await.expect("written");
    for person in [&mut anna, &mut ben] {
        let changed = |event: &Event| {
            if let Event::Ledger { changes, .. } = event { Some(changes.clone()) } else { None }
        };
        let changes = person.event("change of the ledger", changed).await;
        assert!(changes.contains(&Change::Expense(written.expense.clone())));
    }
}
