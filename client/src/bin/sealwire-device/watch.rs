//! Watching the ledgers: a line for everything that happens, on whichever device.

use std::collections::BTreeSet;

use anyhow::Result;
use sealwire_client::device::Device;
use sealwire_client::event::Event;
use sealwire_client::ledger::money::Money;
use sealwire_client::ledger::{Activity, Change, Ledger};
use sealwire_client::totals::payload::Party;
use sealwire_protocol::{DeviceKey, LogId};
use serde_json::{Value, json};
use tokio::signal::ctrl_c;

use crate::args::Args;
use crate::commands::connect_all;
use crate::output::{Output, remark};
use crate::place::group;
use crate::tables::{name, plain};

pub(crate) async fn watch(
    args: &Args,
    out: Output,
    device: &Device,
    named: Option<&str>,
    once: bool,
) -> Result<()> {
    let groups = match named {
        Some(name) => vec![group(device, name).await?],
        None => device.logs().await?,
    };
    let only = named.and_then(|_| groups.first()).map(|group| group.log);
    let mut events = device.events().await?;
    let connections = connect_all(device, &groups);
    let mut undrained: BTreeSet<LogId> =
        groups.iter().filter(|group| group.phase.is_open()).map(|group| group.log).collect();
    let deadline = tokio::time::sleep(args.deadline());
    tokio::pin!(deadline);
    while !(once && undrained.is_empty()) {
        tokio::select! {
            event = events.next() => {
                let event = event?;
                if only.is_some() && event.log().is_some() && event.log() != only {
                    continue;
                }
                if let Event::Drained { log, .. } | Event::Ended { log, .. } = &event {
                    undrained.remove(log);
                }
                if let Event::Ledger { log, sender, changes } = &event {
                    let ledger = device.ledger(*log).await?;
                    print(out, device.key(), *log, *sender, &ledger, changes)?;
                } else if !matches!(event, Event::Entry(_)) {
                    out.event(&event)?;
                }
            }
            _ = ctrl_c() => break,
            () = &mut deadline, if once => {
                remark("not everything could be read in time");
                break;
            }
        }
    }
    for connection in connections {
        connection.stop().await;
    }
    Ok(())
}

fn print(
    out: Output,
    me: DeviceKey,
    log: LogId,
    sender: DeviceKey,
    ledger: &Ledger,
    changes: &[Change],
) -> Result<()> {
    let mut told = false;
    for change in changes {
        let Some((what, text)) = describe(ledger, change, me) else { continue };
        told = true;
        line(out, log, sender, what, &text)?;
    }
    if !told && changes.iter().any(|change| matches!(change, Change::Expense(_))) {
        let text = format!("{} has told what was paid before", name(ledger, &sender.into(), me));
        line(out, log, sender, "expense", &text)?;
    }
    Ok(())
}

fn line(out: Output, log: LogId, sender: DeviceKey, what: &str, text: &str) -> Result<()> {
    let value = json!({
        "event": "ledger",
        "what": what,
        "log": log.to_uuid_text(),
        "sender": sender.to_hex(),
        "text": text,
    });
    out.line(text, &value)
}

/// What a change means to a person; nothing for what only devices care about.
fn describe<'a>(ledger: &'a Ledger, change: &Change, me: DeviceKey) -> Option<(&'a str, String)> {
    match change {
        Change::Activity(id) => {
            let entry = ledger.happened(id)?;
            Some((entry.kind.as_str(), happened(ledger, entry, me)))
        }
        Change::Unknown => {
            Some(("unknown", "something that this version does not know; it is kept".to_owned()))
        }
        Change::Expense(_) | Change::Person(_) | Change::Group | Change::HistoryAsked(_) | _ => {
            None
        }
    }
}

fn happened(ledger: &Ledger, entry: &Activity, me: DeviceKey) -> String {
    let actor = name(ledger, &entry.actor, me);
    let text = |field: &str| plain(entry.data.get(field).and_then(Value::as_str).unwrap_or("?"));
    let party = |field: &str| name(ledger, &Party(text(field)), me);
    let expense = ledger.expense(&text("expenseId"));
    let units = |field: &str| {
        let units = entry.data.get(field).and_then(Value::as_f64);
        let currency = expense.map(|expense| &expense.amount.currency);
        let money = units.zip(currency).map(|(units, of)| Money::from_units(units, of));
        money.and_then(Result::ok).map_or_else(|| "?".to_owned(), |money| money.to_string())
    };
    let reason = expense.map_or_else(|| text("reason"), |expense| plain(&expense.reason));
    match entry.kind.as_str() {
        "expense_created" => {
            format!("{actor} wrote down {}: {}", text("reason"), units("amount"))
        }
        "settlement_created" => {
            let to = entry.data.get("splitAmong").and_then(|among| among.get(0));
            let to = to.and_then(Value::as_str).unwrap_or("?");
            let to = name(ledger, &Party(to.to_owned()), me);
            format!("{} has paid {to} {}", party("paidBy"), units("amount"))
        }
        "expense_amount_changed" => {
            format!("{actor} changed {reason} from {} to {}", units("before"), units("after"))
        }
        "expense_reason_changed" => {
            format!("{actor} changed {} to {}", text("before"), text("after"))
        }
        "expense_paid_by_changed" => {
            format!("{actor} changed who has paid {reason} to {}", party("after"))
        }
        "expense_split_changed" => format!("{actor} changed who share {reason}"),
        "expense_date_changed" => format!("{actor} changed the day of {reason}"),
        "expense_deleted" => format!("{actor} deleted {}", text("reason")),
        "nudge_sent" => {
            let debtors = entry.data.get("debtorPks").and_then(Value::as_array);
            let names: Vec<String> = debtors
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .map(|party| name(ledger, &Party(party.to_owned()), me))
                .collect();
            format!("{actor} reminds {}", names.join(", "))
        }
        "group_renamed" => format!("{actor} calls the group {}", text("after")),
        "member_joined" => format!("{actor} has joined"),
        "member_left" => format!("{actor} has left"),
        "member_approved" => format!("{actor} has let somebody in"),
        "join_requested" => format!("{actor} asks to be let in"),
        other => format!("{actor}: {}", plain(&other.replace('_', " "))),
    }
}
