//! Ledgers on a screen: a table for people, one JSON object for scripts.

use anyhow::Result;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use sealwire_client::device::LogInfo;
use sealwire_client::ledger::money::{Currency, Money};
use sealwire_client::ledger::{Kind, Ledger};
use sealwire_client::totals::payload::Party;
use sealwire_protocol::DeviceKey;
use serde_json::{Value, json};

use crate::output::Output;

/// Text of other people as it may be printed: nothing in it steers the terminal.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Prints expenses and settlements.
pub(crate) fn expenses(out: Output, ledger: &Ledger, me: DeviceKey) -> Result<()> {
    let expenses = ledger.expenses();
    if out.json {
        for expense in expenses {
            out.line(
                "",
                &json!({
                    "expense": expense.id,
                    "kind": kind(&expense.kind),
                    "minor": expense.amount.minor,
                    "amount": expense.amount.to_string(),
                    "currency": expense.amount.currency,
                    "reason": expense.reason,
                    "paid_by": expense.paid_by,
                    "split_among": expense.split_among,
                    "at": expense.at,
                    "revised_at": expense.revised_at,
                }),
            )?;
        }
        return Ok(());
    }
    if expenses.is_empty() {
        return out.line("nothing was paid yet; `expense add` writes something down", &Value::Null);
    }
    let mut table = table(&["expense", "day", "amount", "for", "paid by", "shared by"]);
    for expense in expenses {
        let among: Vec<String> =
            expense.split_among.iter().map(|party| name(ledger, party, me)).collect();
        table.add_row([
            plain(&expense.id.chars().take(8).collect::<String>()),
            day(expense.at),
            expense.amount.to_string(),
            plain(&expense.reason),
            name(ledger, &expense.paid_by, me),
            among.join(", "),
        ]);
    }
    right(&mut table, 2);
    out.line(&table.to_string(), &Value::Null)
}

/// Prints what everybody is owed, and a plan that makes all even.
pub(crate) fn balances(
    out: Output,
    group: &LogInfo,
    ledger: &Ledger,
    me: DeviceKey,
    simplified: bool,
) -> Result<()> {
    let balances = ledger.balances();
    let plan = if simplified { ledger.simplified() } else { ledger.pairwise() };
    let of = |currency: &Currency, minor: i64| Money { minor, currency: currency.clone() };
    if out.json {
        let balances: Vec<Value> = balances
            .iter()
            .flat_map(|(currency, of_all)| of_all.iter().map(move |it| (currency, it)))
            .map(|(currency, (party, minor))| {
                json!({
                    "party": party,
                    "name": ledger.name_of(party),
                    "currency": currency,
                    "minor": minor,
                    "amount": of(currency, *minor).to_string(),
                })
            })
            .collect();
        let plan: Vec<Value> = plan
            .iter()
            .map(|it| {
                json!({
                    "from": it.from,
                    "to": it.to,
                    "currency": it.amount.currency,
                    "minor": it.amount.minor,
                    "amount": it.amount.to_string(),
                })
            })
            .collect();
        return out.line(
            "",
            &json!({
                "log": group.log.to_uuid_text(),
                "name": ledger.group().name,
                "whole": group.holds_key && group.holds_history,
                "balances": balances,
                "plan": plan,
            }),
        );
    }
    if balances.is_empty() {
        return out.line("nobody owes anybody anything", &Value::Null);
    }
    let mut table = table(&["who", "is owed"]);
    for (currency, of_all) in &balances {
        for (party, minor) in of_all {
            table.add_row([name(ledger, party, me), of(currency, *minor).to_string()]);
        }
    }
    right(&mut table, 1);
    out.line(&table.to_string(), &Value::Null)?;
    if plan.is_empty() {
        return out.line("all are even", &Value::Null);
    }
    let mut table = self::table(&["pays", "to", "amount"]);
    for it in &plan {
        table.add_row([
            name(ledger, &it.from, me),
            name(ledger, &it.to, me),
            it.amount.to_string(),
        ]);
    }
    right(&mut table, 2);
    out.line(&table.to_string(), &Value::Null)
}

/// What to call somebody.
pub(crate) fn name(ledger: &Ledger, party: &Party, me: DeviceKey) -> String {
    let name = plain(&ledger.name_of(party));
    if party.device() == Some(me) { format!("{name} (you)") } else { name }
}

fn kind(kind: &Kind) -> &str {
    match kind {
        Kind::Expense => "expense",
        Kind::Settlement => "settlement",
        Kind::Other(other) => other,
    }
}

/// The day of a time in milliseconds since the epoch.
fn day(at: i64) -> String {
    let since = u64::try_from(at).ok().map(std::time::Duration::from_millis);
    let time = since.and_then(|since| std::time::SystemTime::UNIX_EPOCH.checked_add(since));
    // humantime prints years of four digits only.
    match time.filter(|_| at < 253_402_300_800_000) {
        Some(time) => humantime::format_rfc3339_seconds(time).to_string()[..10].to_owned(),
        None => "-".to_owned(),
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table
}

fn right(table: &mut Table, column: usize) {
    if let Some(column) = table.column_mut(column) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}
