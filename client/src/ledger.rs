//! The shared-expense ledger of a group: who has paid what for whom, and who owes whom.
//!
//! A ledger is what its messages make of it, and nothing else: [`Ledger::take`] is a function of the
//! ledger and an opened message. The messages are the Totals app's ([`crate::totals::payload`]); in
//! a `totals` group they travel in the app's blobs, in a `native` group inside ordinary sealed
//! bodies, and mean the same in both. A device keeps its ledgers in its own file, each message in
//! the transaction that takes the entry, so everything here works without a relay.
//!
//! ```
//! use sealwire_client::identity::Identity;
//! use sealwire_client::ledger::{Ledger, Said};
//! use sealwire_protocol::LogId;
//!
//! # fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let anna = Identity::generate()?.key();
//! let message = format!(
//!     r#"{{"type":"expense","id":"1","amount":30.0,"currency":"ETB","reason":"Lunch",
//!         "paidBy":"{anna}","splitAmong":["{anna}","ben"],"timestamp":1767225600000}}"#,
//!     anna = anna.to_hex(),
//! );
//! let mut ledger = Ledger::default();
//! let said = Said { log: LogId([7; 16]), sender: anna, at: 0, approvals: false, message: message.as_bytes() };
//! ledger.take(said);
//! let plan = ledger.pairwise();
//! assert_eq!(plan[0].from.0, "ben");
//! assert_eq!(plan[0].amount.to_string(), "15.00 ETB");
//! # Ok(())
//! # }
//! # example().expect("a plan");
//! ```
//!
//! # What holds always
//!
//! - Balances sum to zero, in every currency.
//! - A message that comes twice changes nothing the second time; messages whose stamps differ give
//!   the same ledger in any order.
//! - What is not readable changes nothing; a message of a kind that is not known is kept and tried
//!   again after an upgrade.
//! - Amounts are whole minor units ([`money`]); nothing is added up in floating point.
//!
//! Any member may change anything, as in the app: a ledger is for people who trust each other with
//! their dinners. In a native group the author of each message is proven, in a `totals` group the
//! relay vouches for it. A device that was lost and restored natively goes on under another key; what
//! its person owes and is owed follows it ([`Succession`]).

mod apply;
mod author;
mod balance;
pub mod money;
mod record;
mod snapshot;
mod succession;

use std::collections::BTreeMap;
use std::convert::Infallible;

pub use apply::{Change, Said};
pub use author::{Edit, LedgerError, NewExpense};
pub use balance::Transfer;
pub use record::{Activity, Expense, Group, Kind, NAME_BYTES_MAX, Person, SPLIT_MAX};
pub use snapshot::{PART_UNITS_MAX, SnapshotOf};
pub use succession::Succession;

pub(crate) use apply::{Shelf, apply};
pub(crate) use author::new_id;
pub(crate) use record::{Key, Record, Unknown};
pub(crate) use succession::KEPT_MAX as SUCCESSIONS_MAX;

use crate::ledger::money::Currency;
use crate::totals::payload::{Party, Payload};

/// The ledger of one group, as a value: a copy of what the device keeps. It has no `Debug`.
#[derive(Clone, Default, PartialEq)]
pub struct Ledger {
    group: Group,
    people: BTreeMap<Party, Person>,
    expenses: BTreeMap<String, Expense>,
    activity: BTreeMap<String, Activity>,
    successions: BTreeMap<String, Succession>,
    unknown: BTreeMap<String, Unknown>,
    /// Lost devices, and who has taken their place: of a ledger as members see it.
    successors: BTreeMap<Party, Party>,
}

impl Ledger {
    /// Takes an opened message, and says what is not as it was.
    pub fn take(&mut self, said: Said<'_>) -> Vec<Change> {
        let Ok(changes) = apply(self, said);
        changes
    }

    /// The name and settings of the group.
    #[must_use]
    pub fn group(&self) -> &Group {
        &self.group
    }

    /// The people that were ever heard of.
    pub fn people(&self) -> impl Iterator<Item = (&Party, &Person)> {
        self.people.iter()
    }

    /// What is known of a person.
    #[must_use]
    pub fn person(&self, party: &Party) -> Option<&Person> {
        self.people.get(self.who(party))
    }

    /// What to call somebody: the name that it said, else the beginning of its key.
    #[must_use]
    pub fn name_of(&self, party: &Party) -> String {
        let told = self.person(party).and_then(|person| person.name.clone());
        told.unwrap_or_else(|| self.who(party).0.chars().take(8).collect())
    }

    /// Expenses and settlements that were not deleted, the newest day first.
    #[must_use]
    pub fn expenses(&self) -> Vec<&Expense> {
        let mut live: Vec<&Expense> = self.expenses.values().filter(|one| !one.deleted).collect();
        live.sort_by(|a, b| (b.at, &a.id).cmp(&(a.at, &b.id)));
        live
    }

    /// An expense, even a deleted one.
    #[must_use]
    pub fn expense(&self, id: &str) -> Option<&Expense> {
        self.expenses.get(id)
    }

    /// What has happened, the oldest first.
    #[must_use]
    pub fn activity(&self) -> Vec<&Activity> {
        let mut all: Vec<&Activity> = self.activity.values().collect();
        all.sort_by(|a, b| (a.timestamp, &a.id).cmp(&(b.timestamp, &b.id)));
        all
    }

    /// One thing that has happened.
    #[must_use]
    pub fn happened(&self, id: &str) -> Option<&Activity> {
        self.activity.get(id)
    }

    /// What each person is owed (or owes, below zero), in minor units, for each currency. They sum
    /// to zero in each currency.
    #[must_use]
    pub fn balances(&self) -> BTreeMap<Currency, BTreeMap<Party, i64>> {
        balance::balances(self.expenses.values())
    }

    /// Who pays whom, each pair for itself: the plan that the app shows, greatest first.
    #[must_use]
    pub fn pairwise(&self) -> Vec<Transfer> {
        balance::pairwise(self.expenses.values())
    }

    /// Who pays whom with few transfers, which may be between people who never shared anything.
    #[must_use]
    pub fn simplified(&self) -> Vec<Transfer> {
        balance::simplified(self.expenses.values())
    }

    /// Who owes `party` enough to be reminded, by the pairwise plan.
    #[must_use]
    pub fn debtors(&self, party: &Party) -> Vec<Transfer> {
        let enough =
            |owed: &Transfer| owed.to == *self.who(party) && author::is_enough(&owed.amount);
        self.pairwise().into_iter().filter(enough).collect()
    }

    /// The message by which `me` writes an expense, at a time in milliseconds since the epoch. It
    /// takes effect when it is taken.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn create(&self, me: &Party, new: NewExpense, now: i64) -> Result<Payload, LedgerError> {
        author::create(me, new, now).map(Payload::Expense)
    }

    /// The message by which `me` changes an expense.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn edit(&self, me: &Party, id: &str, edit: Edit, now: i64) -> Result<Payload, LedgerError> {
        author::edit(me, self.live(id)?, edit, now).map(Payload::Expense)
    }

    /// The message by which `me` deletes an expense.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn delete(&self, me: &Party, id: &str, now: i64) -> Result<Payload, LedgerError> {
        author::delete(me, self.live(id)?, now).map(Payload::Expense)
    }

    /// The message by which `me` says that one has paid another back.
    ///
    /// # Errors
    /// [`LedgerError`].
    pub fn settle(&self, me: &Party, paid: Transfer, now: i64) -> Result<Payload, LedgerError> {
        author::settle(me, paid, now).map(Payload::Expense)
    }

    /// The message by which `me` reminds those who owe; `owed` is of one currency.
    ///
    /// # Errors
    /// [`LedgerError::NobodyOwes`].
    pub fn nudge(&self, me: &Party, owed: &[Transfer], now: i64) -> Result<Payload, LedgerError> {
        author::nudge(me, owed, now).map(Payload::Nudge)
    }

    /// An expense that was not deleted.
    fn live(&self, id: &str) -> Result<&Expense, LedgerError> {
        self.expenses.get(id).filter(|it| !it.deleted).ok_or(LedgerError::NoSuchExpense)
    }

    /// The currency in which the group counts: that of its newest expense; ETB if there is none.
    #[must_use]
    pub fn usual_currency(&self) -> Option<Currency> {
        author::usual_currency(self.expenses.values())
    }

    /// How many messages are kept that this version does not know.
    #[must_use]
    pub fn unknown(&self) -> usize {
        self.unknown.len()
    }

    /// The ledger that these records make.
    pub(crate) fn from_records(records: impl IntoIterator<Item = (Key, Record)>) -> Self {
        let mut ledger = Self::default();
        for (key, record) in records {
            let Ok(()) = ledger.put(&key, &record);
        }
        ledger
    }
}

impl Shelf for Ledger {
    type Error = Infallible;

    fn get(&self, key: &Key) -> Result<Option<Record>, Infallible> {
        Ok(match key {
            Key::Group => Some(Record::Group(self.group.clone())),
            Key::Person(party) => self.people.get(party).cloned().map(Record::Person),
            Key::Expense(id) => self.expenses.get(id).cloned().map(Record::Expense),
            Key::Activity(id) => self.activity.get(id).cloned().map(Record::Activity),
            Key::Succession(name) => self.successions.get(name).cloned().map(Record::Succession),
            Key::Unknown(id) => self.unknown.get(id).cloned().map(Record::Unknown),
        })
    }

    fn put(&mut self, key: &Key, record: &Record) -> Result<(), Infallible> {
        match (key, record) {
            (Key::Group, Record::Group(group)) => self.group = group.clone(),
            (Key::Person(party), Record::Person(person)) => {
                self.people.insert(party.clone(), person.clone());
            }
            (Key::Expense(id), Record::Expense(expense)) => {
                self.expenses.insert(id.clone(), expense.clone());
            }
            (Key::Activity(id), Record::Activity(activity)) => {
                self.activity.insert(id.clone(), activity.clone());
            }
            (Key::Succession(name), Record::Succession(succession)) => {
                self.successions.insert(name.clone(), succession.clone());
            }
            (Key::Unknown(id), Record::Unknown(unknown)) => {
                self.unknown.insert(id.clone(), unknown.clone());
            }
            // A record stands under a key of its own kind; nothing makes another pair.
            _ => {}
        }
        Ok(())
    }

    fn drop(&mut self, key: &Key) -> Result<(), Infallible> {
        if let Key::Unknown(id) = key {
            self.unknown.remove(id);
        }
        Ok(())
    }

    fn unknown(&self) -> Result<usize, Infallible> {
        Ok(self.unknown.len())
    }
}

#[cfg(test)]
mod tests;
