//! What a person owes and is owed outlives the device: after a restore it is the new device's, for
//! everybody, also for those who come later.

use sealwire_client::error::Error;
use sealwire_client::ledger::money::{Currency, Money};
use sealwire_client::ledger::{NewExpense, Transfer};
use sealwire_client::recovery::Format;
use sealwire_protocol::{ErrorCode, LogId};

use crate::support::person::Person;
use crate::support::place::Database;
use crate::support::world::World;
use crate::support::{DEADLINE, eventually, on_both_databases};

on_both_databases!(
    what_the_lost_device_owed_is_owed_by_the_new_one_and_paid_back_by_it,
    who_was_removed_before_it_came_back_owes_what_it_owed,
);

const PIN: &str = "246810";

fn etb(text: &str) -> Money {
    Money::parse(text, &Currency::parse("ETB").expect("a currency")).expect("an amount")
}

async fn pays(person: &Person, log: LogId, amount: &str) {
    let new = NewExpense {
        amount: etb(amount),
        reason: "Lunch".to_owned(),
        paid_by: None,
        split_among: Vec::new(),
        at: None,
    };
    let written = person.device.add_expense(log, new).await.expect("written");
    person.device.wait_appended(written.draft, DEADLINE).await.expect("appended");
}

/// Waits until everybody sees these transfers and no others, and nobody who is gone.
async fn all_see(everybody: &[&Person], log: LogId, plan: &[(&Person, &Person, &str)]) {
    let mut expected: Vec<Transfer> = plan
        .iter()
        .map(|(from, to, amount)| Transfer {
            from: from.key().into(),
            to: to.key().into(),
            amount: etb(amount),
        })
        .collect();
    expected.sort_by_key(|it| (-it.amount.minor, it.from.clone(), it.to.clone()));
    for (number, person) in everybody.iter().enumerate() {
        eventually(&format!("person {number} sees the plan"), async || {
            person.device.ledger(log).await.expect("a ledger").pairwise() == expected
        })
        .await;
        let ledger = person.device.ledger(log).await.expect("a ledger");
        for (party, minor) in ledger.balances().values().flatten() {
            let device = party.device().expect("a device");
            assert!(*minor == 0 || everybody.iter().any(|one| one.key() == device), "{party}");
        }
    }
}

async fn is_called(everybody: &[&Person], log: LogId, who: &Person, name: &str) {
    for person in everybody {
        eventually("the name", async || {
            person.device.ledger(log).await.expect("a ledger").name_of(&who.key().into()) == name
        })
        .await;
    }
}

async fn what_the_lost_device_owed_is_owed_by_the_new_one_and_paid_back_by_it(database: Database) {
    let world = World::start(database).await;
    let (mut alice, mut bob) = (Person::new().await, Person::new().await);
    alice.connect(&world.url()).await;
    bob.connect(&world.url()).await;
    let log = alice.found(&world.url()).await;
    bob.join(&alice, log).await;
    alice.device.introduce(log, Some("Alice"), None).await.expect("said");
    pays(&alice, log, "10").await;
    pays(&bob, log, "30").await;
    all_see(&[&alice, &bob], log, &[(&alice, &bob, "10")]).await;
    let code =
        alice.device.set_up_recovery(&world.url(), Format::Native, PIN).await.expect("set up");
    alice.disconnect().await;
    drop(alice);

    // It is lost twice, and the second time the debt has come a longer way.
    let mut back = Person::restored(&world.url(), &code, PIN).await.expect("restored");
    back.connect(&world.url()).await;
    back.device.wait_ready(log, DEADLINE).await.expect("in the group again");
    all_see(&[&bob, &back], log, &[(&back, &bob, "10")]).await;
    is_called(&[&bob, &back], log, &back, "Alice").await;
    eventually("the old device is ended", async || {
        back.device.keep_recovery().await.expect("kept")
    })
    .await;
    back.disconnect().await;
    drop(back);
    let mut again = Person::restored(&world.url(), &code, PIN).await.expect("restored again");
    again.connect(&world.url()).await;
    again.device.wait_ready(log, DEADLINE).await.expect("in the group again");
    all_see(&[&bob, &again], log, &[(&again, &bob, "10")]).await;

    // Carol comes later: nobody whom she meets has the lost keys.
    let mut carol = Person::new().await;
    carol.connect(&world.url()).await;
    carol.join(&bob, log).await;
    let everybody = [&bob, &again, &carol];
    all_see(&everybody, log, &[(&again, &bob, "10")]).await;
    is_called(&everybody, log, &again, "Alice").await;
    let (from, to) = (again.key().into(), bob.key().into());
    again.device.settle(log, Transfer { from, to, amount: etb("10") }).await.expect("written");
    all_see(&everybody, log, &[]).await;
    pays(&carol, log, "9").await;
    all_see(&everybody, log, &[(&bob, &carol, "3"), (&again, &carol, "3")]).await;
}

async fn who_was_removed_before_it_came_back_owes_what_it_owed(database: Database) {
    let world = World::start(database).await;
    let (mut alice, mut bob) = (Person::new().await, Person::new().await);
    alice.connect(&world.url()).await;
    bob.connect(&world.url()).await;
    let log = alice.found(&world.url()).await;
    bob.join(&alice, log).await;
    pays(&bob, log, "30").await;
    let code =
        alice.device.set_up_recovery(&world.url(), Format::Native, PIN).await.expect("set up");
    let lost = alice.key();
    alice.disconnect().await;
    drop(alice);
    // A friend removes the stolen device, and with that every invitation from before.
    let removed = bob.device.revoke(log, lost).await.expect("in the outbox");
    bob.device.wait_appended(removed, DEADLINE).await.expect("appended");

    let mut back = Person::restored(&world.url(), &code, PIN).await.expect("restored");
    back.connect(&world.url()).await;
    let refused = back.device.wait_ready(log, DEADLINE).await;
    assert_eq!(refused, Err(Error::Refused(ErrorCode::InviteInvalid)));
    // The recovery vault is not kept waiting by a group that needs a person.
    eventually("the old device is ended", async || {
        back.device.keep_recovery().await.expect("kept")
    })
    .await;
    back.join(&bob, log).await;
    all_see(&[&bob, &back], log, &[(&back, &bob, "15")]).await;
}
