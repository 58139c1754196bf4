//! Who owes whom.
//!
//! Shares are counted in *grains*, far below a minor unit, and rounded once at the end: three who
//! share 10.00 a hundred times owe 333.33 each, as on a phone, and not 333.00 or 334.00. The grains
//! that do not divide go to those named first, so that nothing is lost: balances sum to zero, always.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::money::{Currency, Money};
use super::record::Expense;
use crate::totals::payload::Party;

/// Grains in a minor unit. With it, the largest amount has 10^24 grains; so 10^14 expenses of it fit.
const GRAINS: i128 = 1_000_000_000;

/// What one person pays to another, so that both are even.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// Who pays.
    pub from: Party,
    /// Who is paid.
    pub to: Party,
    /// How much.
    pub amount: Money,
}

/// What each person is owed (or owes, below zero), in minor units, for each currency. The sum in
/// each currency is zero.
pub(super) fn balances<'a>(
    expenses: impl Iterator<Item = &'a Expense>,
) -> BTreeMap<Currency, BTreeMap<Party, i64>> {
    let mut grains: BTreeMap<&Currency, BTreeMap<&Party, i128>> = BTreeMap::new();
    for expense in expenses.filter(|expense| expense.counts()) {
        let of = grains.entry(&expense.amount.currency).or_default();
        for (debtor, share) in shares(expense) {
            *of.entry(&expense.paid_by).or_default() += share;
            *of.entry(debtor).or_default() -= share;
        }
    }
    let round = |(currency, grains): (&Currency, BTreeMap<&Party, i128>)| {
        (currency.clone(), rounded(&grains))
    };
    grains.into_iter().map(round).collect()
}

/// Rounds so that the sum stays zero: those whose rest is greatest are rounded up.
fn rounded(grains: &BTreeMap<&Party, i128>) -> BTreeMap<Party, i64> {
    let floor = |grains: i128| grains.div_euclid(GRAINS);
    let sum: i128 = grains.values().map(|grains| floor(*grains)).sum();
    let mut by_rest: Vec<(&Party, i128)> =
        grains.iter().map(|(party, grains)| (*party, *grains)).collect();
    by_rest.sort_by_key(|(party, grains)| (-grains.rem_euclid(GRAINS), *party));
    // What is missing to zero is less than one for each of them.
    let up = usize::try_from(-sum).unwrap_or(0);
    let places = by_rest.into_iter().enumerate();
    places
        .map(|(place, (party, grains))| {
            let minor = floor(grains) + i128::from(place < up);
            (party.clone(), to_minor(minor))
        })
        .collect()
}

/// The plan that the app shows: each pair for itself, both ways set off against each other. The
/// greatest come first.
pub(super) fn pairwise<'a>(expenses: impl Iterator<Item = &'a Expense>) -> Vec<Transfer> {
    // (currency, lesser, greater) → what the lesser owes the greater.
    let mut owed: BTreeMap<(&Currency, &Party, &Party), i128> = BTreeMap::new();
    for expense in expenses.filter(|expense| expense.counts()) {
        let currency = &expense.amount.currency;
        for (debtor, share) in shares(expense) {
            // A settlement is what its payer has paid to the one: it counts like what that one
            // would owe for it.
            match debtor.cmp(&expense.paid_by) {
                Ordering::Less => {
                    *owed.entry((currency, debtor, &expense.paid_by)).or_default() += share;
                }
                Ordering::Greater => {
                    *owed.entry((currency, &expense.paid_by, debtor)).or_default() -= share;
                }
                Ordering::Equal => {}
            }
        }
    }
    let plan = owed.into_iter().filter_map(|((currency, lesser, greater), grains)| {
        let (from, to) = if grains > 0 { (lesser, greater) } else { (greater, lesser) };
        transfer(currency, from, to, grains.abs())
    });
    sorted(plan.collect())
}

/// A plan with few transfers: the one who owes most pays the one who is owed most, until all are
/// even. Of equals, the one whose name is less comes first.
pub(super) fn simplified<'a>(expenses: impl Iterator<Item = &'a Expense>) -> Vec<Transfer> {
    let mut plan = Vec::new();
    for (currency, balances) in balances(expenses) {
        let mut left: Vec<(Party, i64)> = balances.into_iter().collect();
        loop {
            // Of equals the first in the order of names, in both searches.
            let debtor = left.iter().enumerate().min_by_key(|(_, (_, minor))| *minor);
            let creditor = left.iter().enumerate().rev().max_by_key(|(_, (_, minor))| *minor);
            let (Some((debtor, (_, least))), Some((creditor, (_, most)))) = (debtor, creditor)
            else {
                break;
            };
            let minor = most.min(&-least).to_owned();
            // Balances sum to zero: if nobody owes, nobody is owed.
            if minor <= 0 {
                break;
            }
            let (from, to) = (left[debtor].0.clone(), left[creditor].0.clone());
            let grains = i128::from(minor) * GRAINS;
            left[debtor].1 += minor;
            left[creditor].1 -= minor;
            plan.extend(transfer(&currency, &from, &to, grains));
        }
    }
    sorted(plan)
}

/// What each of those who share an expense owes for it, in grains; the sum is the whole.
fn shares(expense: &Expense) -> impl Iterator<Item = (&Party, i128)> {
    let whole = i128::from(expense.amount.minor) * GRAINS;
    // It counts, so somebody shares it, and at most SPLIT_MAX do.
    let parts = expense.split_among.len().max(1) as i128;
    let (share, rest) = (whole / parts, whole % parts);
    let share_of = move |place: usize| share + i128::from((place as i128) < rest);
    expense.split_among.iter().enumerate().map(move |(place, party)| (party, share_of(place)))
}

/// A transfer, if it is worth one: the app drops what is not above 0.005 units, and nobody can pay
/// half a minor unit or less.
fn transfer(currency: &Currency, from: &Party, to: &Party, grains: i128) -> Option<Transfer> {
    let scale = i128::from(currency.scale());
    let minor = (grains + GRAINS / 2) / GRAINS;
    if grains * 200 <= scale * GRAINS || grains * 2 <= GRAINS {
        return None;
    }
    let amount = Money { minor: to_minor(minor), currency: currency.clone() };
    Some(Transfer { from: from.clone(), to: to.clone(), amount })
}

/// The greatest first, then by who pays, then by who is paid; each currency for itself.
fn sorted(mut plan: Vec<Transfer>) -> Vec<Transfer> {
    plan.sort_by(|a, b| {
        (&a.amount.currency, -a.amount.minor, &a.from, &a.to).cmp(&(
            &b.amount.currency,
            -b.amount.minor,
            &b.from,
            &b.to,
        ))
    });
    plan
}

/// A sum of amounts as it is shown. That many expenses do not exist.
fn to_minor(minor: i128) -> i64 {
    i64::try_from(minor).unwrap_or(if minor > 0 { i64::MAX } else { i64::MIN + 1 })
}
