//! What this device has to say: expenses, changes, settlements and reminders, as the app writes
//! them.
//!
//! Every message brings along what is to stand in the list of what has happened, one entry for each
//! field that has changed, so that all members show the same.

use sealwire_protocol::LogId;
use serde_json::{Map, Value, json};
use thiserror::Error;

use super::apply::data;
use super::balance::Transfer;
use super::money::{Currency, Money};
use super::record::{Activity, Expense, Kind, SPLIT_MAX};
use crate::identity::{NoRandomness, random};
use crate::totals::payload::{ExpenseMessage, Nudge, Party};

/// What a settlement is for.
const SETTLEMENT: &str = "Settlement";

/// Longest reason that this program writes, in bytes: many a page of text, and far from the longest
/// message.
const REASON_BYTES_MAX: usize = 16 * 1024;

/// Why an expense cannot be written, changed or deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LedgerError {
    /// The amount is zero or less.
    #[error("the amount must be more than zero")]
    Amount,
    /// Nobody shares it, or too many do.
    #[error("an expense is shared by 1 to {SPLIT_MAX} people")]
    Split,
    /// The reason is too long.
    #[error("the reason is too long")]
    Reason,
    /// There is no such expense, or it was deleted.
    #[error("there is no such expense")]
    NoSuchExpense,
    /// The expense is as it should be already.
    #[error("nothing would change")]
    NothingToChange,
    /// A version of it claims to be from the end of time, so that none can be newer.
    #[error("the expense cannot be changed any more: its time is the greatest there is")]
    EndOfTime,
    /// Payer and payee are one.
    #[error("nobody pays back to themselves")]
    Oneself,
    /// Nobody owes this device enough to be reminded.
    #[error("nobody owes you enough for a reminder")]
    NobodyOwes,
    /// See [`NoRandomness`].
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// An expense that is to be written.
#[derive(Clone)]
pub struct NewExpense {
    /// How much.
    pub amount: Money,
    /// What it was for.
    pub reason: String,
    /// Who has paid; this device if nobody is named.
    pub paid_by: Option<Party>,
    /// Who share it, in equal parts; all members if it is empty.
    pub split_among: Vec<Party>,
    /// The day, in milliseconds since the epoch; now if none is named.
    pub at: Option<i64>,
}

/// What is to be changed of an expense; what is `None` stays.
#[derive(Clone, Default)]
pub struct Edit {
    /// How much.
    pub amount: Option<Money>,
    /// What it was for.
    pub reason: Option<String>,
    /// Who has paid.
    pub paid_by: Option<Party>,
    /// Who share it.
    pub split_among: Option<Vec<Party>>,
    /// The day, in milliseconds since the epoch.
    pub at: Option<i64>,
}

/// A random UUID.
pub(crate) fn new_id() -> Result<String, NoRandomness> {
    let mut bytes = random::<16>()?;
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(LogId(bytes).to_uuid_text())
}

/// Writes an expense. `paid_by` and `split_among` of `new` are filled in.
pub(super) fn create(me: &Party, new: NewExpense, now: i64) -> Result<ExpenseMessage, LedgerError> {
    let NewExpense { amount, reason, paid_by, split_among, at } = new;
    let expense = Expense {
        id: new_id()?,
        amount,
        said: None,
        reason,
        paid_by: paid_by.unwrap_or_else(|| me.clone()),
        split_among,
        at: at.unwrap_or(now),
        revised_at: None,
        deleted: false,
        kind: Kind::Expense,
        linked_tx_ref: None,
    };
    write(me, &expense, "expense_created")
}

/// Writes that `from` has paid back to `to`.
pub(super) fn settle(
    me: &Party,
    transfer: Transfer,
    now: i64,
) -> Result<ExpenseMessage, LedgerError> {
    let Transfer { from, to, amount } = transfer;
    if from == to {
        return Err(LedgerError::Oneself);
    }
    let expense = Expense {
        id: new_id()?,
        amount,
        said: None,
        reason: SETTLEMENT.to_owned(),
        paid_by: from,
        split_among: vec![to],
        at: now,
        revised_at: None,
        deleted: false,
        kind: Kind::Settlement,
        linked_tx_ref: None,
    };
    write(me, &expense, "settlement_created")
}

fn write(me: &Party, expense: &Expense, kind: &str) -> Result<ExpenseMessage, LedgerError> {
    check(expense)?;
    let activity = Activity {
        id: new_id()?,
        timestamp: expense.stamp(),
        actor: me.clone(),
        kind: kind.to_owned(),
        data: described(expense),
    };
    Ok(message(expense, vec![activity]))
}

/// Changes an expense.
pub(super) fn edit(
    me: &Party,
    old: &Expense,
    edit: Edit,
    now: i64,
) -> Result<ExpenseMessage, LedgerError> {
    let Some(stamp) = next_stamp(old, now) else { return Err(LedgerError::EndOfTime) };
    let Edit { amount, reason, paid_by, split_among, at } = edit;
    let said = if amount.is_some() { None } else { old.said };
    let new = Expense {
        amount: amount.unwrap_or_else(|| old.amount.clone()),
        said,
        reason: reason.unwrap_or_else(|| old.reason.clone()),
        paid_by: paid_by.unwrap_or_else(|| old.paid_by.clone()),
        split_among: split_among.unwrap_or_else(|| old.split_among.clone()),
        at: at.unwrap_or(old.at),
        revised_at: Some(stamp),
        ..old.clone()
    };
    check(&new)?;
    let units = |expense: &Expense| expense.said.unwrap_or_else(|| expense.amount.to_units());
    let fields = [
        ("expense_amount_changed", json!(units(old)), json!(units(&new))),
        ("expense_reason_changed", json!(old.reason), json!(new.reason)),
        ("expense_paid_by_changed", json!(old.paid_by), json!(new.paid_by)),
        ("expense_split_changed", json!(old.split_among), json!(new.split_among)),
        ("expense_date_changed", json!(old.at), json!(new.at)),
    ];
    let mut activities = Vec::new();
    for (kind, before, after) in fields.into_iter().filter(|(_, before, after)| before != after) {
        activities.push(Activity {
            id: new_id()?,
            timestamp: stamp,
            actor: me.clone(),
            kind: kind.to_owned(),
            data: data(&json!({ "expenseId": new.id, "before": before, "after": after })),
        });
    }
    if activities.is_empty() && new.amount.currency == old.amount.currency {
        return Err(LedgerError::NothingToChange);
    }
    Ok(message(&new, activities))
}

/// Deletes an expense.
pub(super) fn delete(me: &Party, old: &Expense, now: i64) -> Result<ExpenseMessage, LedgerError> {
    let Some(stamp) = next_stamp(old, now) else { return Err(LedgerError::EndOfTime) };
    let new = Expense { deleted: true, revised_at: Some(stamp), ..old.clone() };
    let activity = Activity {
        id: new_id()?,
        timestamp: stamp,
        actor: me.clone(),
        kind: "expense_deleted".to_owned(),
        data: data(&json!({ "expenseId": new.id, "reason": old.reason })),
    };
    Ok(message(&new, vec![activity]))
}

/// Reminds those who owe, all of one currency.
pub(super) fn nudge(me: &Party, owed: &[Transfer], now: i64) -> Result<Nudge, LedgerError> {
    let Some(first) = owed.first() else { return Err(LedgerError::NobodyOwes) };
    let sum = Money {
        minor: owed.iter().fold(0, |sum: i64, owed| sum.saturating_add(owed.amount.minor)),
        currency: first.amount.currency.clone(),
    };
    Ok(Nudge {
        id: new_id()?,
        timestamp: now,
        actor: me.clone(),
        amount: sum.to_units(),
        debtor_pks: owed.iter().map(|owed| owed.from.clone()).collect(),
        amount_by_debtor_pk: owed
            .iter()
            .map(|owed| (owed.from.clone(), owed.amount.to_units()))
            .collect(),
    })
}

/// Whether a debt is enough for a reminder: half a unit, as in the app.
pub(super) fn is_enough(amount: &Money) -> bool {
    amount.minor.saturating_mul(2) >= amount.currency.scale()
}

/// What stands beside a new or deleted expense.
pub(super) fn described(expense: &Expense) -> Map<String, Value> {
    data(&json!({
        "expenseId": expense.id,
        "amount": expense.said.unwrap_or_else(|| expense.amount.to_units()),
        "reason": expense.reason,
        "paidBy": expense.paid_by,
        "splitAmong": expense.split_among,
    }))
}

/// The currency in which a group counts: that of its newest expense, else the app's.
pub(super) fn usual_currency<'a>(expenses: impl Iterator<Item = &'a Expense>) -> Option<Currency> {
    let live = expenses.filter(|expense| !expense.deleted);
    live.max_by_key(|expense| expense.stamp())
        .map(|expense| expense.amount.currency.clone())
        .or_else(|| Currency::parse("ETB").ok())
}

/// A change must be newer than what it changes, even if that is dated in the future.
fn next_stamp(old: &Expense, now: i64) -> Option<i64> {
    old.stamp().checked_add(1).map(|next| next.max(now))
}

fn check(expense: &Expense) -> Result<(), LedgerError> {
    if expense.amount.minor <= 0 {
        return Err(LedgerError::Amount);
    }
    if expense.split_among.is_empty() || expense.split_among.len() > SPLIT_MAX {
        return Err(LedgerError::Split);
    }
    if expense.reason.len() > REASON_BYTES_MAX {
        return Err(LedgerError::Reason);
    }
    Ok(())
}

fn message(expense: &Expense, activities: Vec<Activity>) -> ExpenseMessage {
    ExpenseMessage {
        expense: expense.to_payload("pending"),
        activity: activities.last().cloned(),
        activities,
    }
}
