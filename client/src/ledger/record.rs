//! What a ledger keeps: expenses, people, what has happened, and the group itself; and when one
//! thing that was said takes the place of another.
//!
//! Each record is merged for itself, so that a message can be applied by reading and writing the few
//! records that it names.

use sealwire_protocol::DeviceKey;
use serde::{Deserialize, Serialize};

use super::money::{Currency, Money};
use super::succession::Succession;
use crate::totals::payload::{self, Party, PaymentAddress};

pub use crate::totals::payload::Activity;

/// Longest name of anything, in bytes; real ones have 36 to 150.
pub const NAME_BYTES_MAX: usize = 256;

/// Most people that share one expense: as many as a group has.
pub const SPLIT_MAX: usize = 1000;

/// What a device is called that has not been told a name.
const FALLBACK_PERSON: &str = "Me";

/// What a group is called that has not been told a name.
const FALLBACK_GROUP: &str = "Shared group";

/// What an expense is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Somebody has paid for all who share it.
    Expense,
    /// Somebody has paid back.
    Settlement,
    /// Something that a newer app knows; it counts like an expense.
    Other(String),
}

impl Kind {
    fn from_text(text: &str) -> Self {
        match text {
            "expense" => Self::Expense,
            "settlement" => Self::Settlement,
            other => Self::Other(other.to_owned()),
        }
    }

    fn as_text(&self) -> &str {
        match self {
            Self::Expense => "expense",
            Self::Settlement => "settlement",
            Self::Other(text) => text,
        }
    }
}

/// An expense or settlement. It has no `Debug`: it is what the relay may not see.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Expense {
    /// Its name: a UUID.
    pub id: String,
    /// How much.
    pub amount: Money,
    /// The number that its author wrote, if it has more digits than the currency: it is passed on
    /// as it was said.
    pub said: Option<f64>,
    /// What it was for.
    pub reason: String,
    /// Who has paid.
    pub paid_by: Party,
    /// Who share it, in equal parts; one who is named twice has two.
    pub split_among: Vec<Party>,
    /// The day that its author chose, in milliseconds since the epoch.
    pub at: i64,
    /// When it was last changed, in milliseconds since the epoch.
    pub revised_at: Option<i64>,
    /// Whether it was deleted.
    pub deleted: bool,
    /// What it is.
    pub kind: Kind,
    /// The author's own note of where it comes from.
    pub linked_tx_ref: Option<String>,
}

impl Expense {
    /// Reads an expense as the app has it. `None` if it has no name, or an amount, currency or
    /// length that nothing real has.
    #[must_use]
    pub fn from_payload(expense: &payload::Expense) -> Option<Self> {
        let named = is_name(&expense.id)
            && expense.paid_by.0.len() <= NAME_BYTES_MAX
            && expense.split_among.len() <= SPLIT_MAX
            && expense.split_among.iter().all(|party| is_name(&party.0))
            && expense.kind.len() <= NAME_BYTES_MAX;
        let currency = Currency::parse(&expense.currency).ok()?;
        let amount = Money::from_units(expense.amount, &currency).ok()?;
        let said =
            Some(expense.amount).filter(|said| amount.to_units().to_bits() != said.to_bits());
        named.then(|| Self {
            id: expense.id.clone(),
            amount,
            said,
            reason: expense.reason.clone(),
            paid_by: expense.paid_by.clone(),
            split_among: expense.split_among.clone(),
            at: expense.timestamp,
            revised_at: expense.revised_at,
            deleted: expense.deleted,
            kind: Kind::from_text(&expense.kind),
            linked_tx_ref: expense.linked_tx_ref.clone(),
        })
    }

    /// The expense as the app has it. `status` is `pending` on its way, `synced` in a snapshot.
    #[must_use]
    pub fn to_payload(&self, status: &str) -> payload::Expense {
        payload::Expense {
            id: self.id.clone(),
            amount: self.said.unwrap_or_else(|| self.amount.to_units()),
            currency: self.amount.currency.as_str().to_owned(),
            reason: self.reason.clone(),
            paid_by: self.paid_by.clone(),
            split_among: self.split_among.clone(),
            timestamp: self.at,
            revised_at: self.revised_at,
            deleted: self.deleted,
            kind: self.kind.as_text().to_owned(),
            linked_tx_ref: self.linked_tx_ref.clone(),
            status: Some(status.to_owned()),
        }
    }

    /// The time that decides which of two versions stands: the greater one.
    #[must_use]
    pub fn stamp(&self) -> i64 {
        self.revised_at.unwrap_or(self.at)
    }

    /// Whether it counts: it is not deleted, and somebody has paid something for somebody.
    #[must_use]
    pub fn counts(&self) -> bool {
        !self.deleted
            && self.amount.minor > 0
            && !self.paid_by.is_empty()
            && !self.split_among.is_empty()
    }

    /// Whether this version takes the place of `old`: of two with the same stamp the first stands.
    pub(super) fn replaces(&self, old: &Self) -> bool {
        self.stamp() > old.stamp()
    }
}

/// What is known of a person. It has no `Debug`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Person {
    /// What it is called.
    pub name: Option<String>,
    /// When it said so, in milliseconds since the epoch.
    pub name_at: i64,
    /// How it is paid.
    pub payment_address: Option<PaymentAddress>,
    /// When it said so, in milliseconds since the epoch.
    pub payment_at: i64,
    /// When it was last approved, or showed that it holds the group's key; 0 for never.
    pub approved_at: i64,
    /// When it last asked to join, or, if its clock is ahead, when the relay was told of it; 0 for never.
    pub asked_at: i64,
    /// When it said that it leaves; 0 for never.
    pub left_at: i64,
}

impl Person {
    /// Whether it was approved since it asked.
    #[must_use]
    pub fn is_approved(&self) -> bool {
        self.approved_at > 0 && self.approved_at >= self.asked_at
    }

    /// It says how it is called and paid: what is newer or as new takes the place of what was said
    /// before, and a made-up name takes no place.
    pub(super) fn tell(
        &mut self,
        name: Option<&str>,
        payment_address: Option<&PaymentAddress>,
        at: i64,
    ) {
        let name = name.map(str::trim).filter(|name| !name.is_empty() && *name != FALLBACK_PERSON);
        if let Some(name) = name.filter(|_| self.name.is_none() || at >= self.name_at) {
            self.name = Some(name.to_owned());
            self.name_at = at;
        }
        let address = payment_address.filter(|address| address.is_valid());
        let newer = self.payment_address.is_none() || at >= self.payment_at;
        if let Some(address) = address.filter(|_| newer) {
            self.payment_address = Some(address.clone());
            self.payment_at = at;
        }
    }

    /// It takes the place of a lost device, and goes on under that one's name until it says another.
    pub(super) fn succeed(&mut self, lost: Self) {
        if lost.name.is_some() && (self.name.is_none() || lost.name_at > self.name_at) {
            (self.name, self.name_at) = (lost.name, lost.name_at);
        }
        let newer = self.payment_address.is_none() || lost.payment_at > self.payment_at;
        if lost.payment_address.is_some() && newer {
            (self.payment_address, self.payment_at) = (lost.payment_address, lost.payment_at);
        }
    }

    /// The newest time at which any of this was said.
    pub(super) fn told_at(&self) -> i64 {
        self.name_at.max(self.payment_at)
    }
}

/// What is known of the group. It has no `Debug`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// What it is called.
    pub name: Option<String>,
    /// When a member said so, in milliseconds since the epoch; 0 if it was only told along with
    /// something else.
    pub name_at: i64,
    /// Whether newcomers are given the history, and when a member said so.
    pub backfill: Option<bool>,
    /// When a member said so, in milliseconds since the epoch; 0 as above.
    pub backfill_at: i64,
    /// When it was made, in milliseconds since the epoch.
    pub created_at: Option<i64>,
}

impl Group {
    /// A member names the group or changes its settings, at `at`; or, with 0, passes on what it
    /// knows.
    pub(super) fn tell(&mut self, name: Option<&str>, backfill: Option<bool>, at: i64) {
        let name = name.map(str::trim).filter(|name| !name.is_empty() && *name != FALLBACK_GROUP);
        if let Some(name) = name.filter(|_| self.name.is_none() || at >= self.name_at) {
            self.name = Some(name.to_owned());
            self.name_at = at;
        }
        if backfill.is_some() && (self.backfill.is_none() || at >= self.backfill_at) {
            self.backfill = backfill;
            self.backfill_at = at;
        }
    }
}

/// Which record.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Key {
    Group,
    Person(Party),
    Expense(String),
    Activity(String),
    /// A lost device and its successor.
    Succession(String),
    /// A message of a type that is not known, by its digest.
    Unknown(String),
}

/// A record as it is kept.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Record {
    Group(Group),
    Person(Person),
    Expense(Expense),
    Activity(Activity),
    Succession(Succession),
    Unknown(Unknown),
}

/// A message that this version does not know, as it came: it is tried again after an upgrade.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unknown {
    pub(crate) sender: DeviceKey,
    pub(crate) at: u64,
    #[serde(with = "serde_bytes")]
    pub(crate) message: Vec<u8>,
}

/// Whether a text may be a name.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= NAME_BYTES_MAX
}
