//! The commands for shared expenses. All but `watch` work without a relay: what is written counts
//! here at once and is sent when the relay is reached.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow, bail};
use sealwire_client::device::{Device, LogInfo};
use sealwire_client::error::Error;
use sealwire_client::event::Event;
use sealwire_client::ledger::money::{Currency, Money};
use sealwire_client::ledger::{Edit, Ledger, LedgerError, NewExpense, Transfer};
use sealwire_client::numbering::DraftId;
use sealwire_client::session::Status;
use sealwire_client::totals::payload::Party;
use serde_json::json;

use crate::args::Args;
use crate::commands::{linger, say_lacking, unless_unreached};
use crate::expense_args::{ExpenseCommand, MoneyCommand, Who};
use crate::output::{Output, key_given, remark};
use crate::place::{group, open};
use crate::tables;
use crate::watch;

pub(crate) async fn run(args: &Args, out: Output, command: &MoneyCommand) -> Result<()> {
    let device = open(args).await?;
    let desk = async |name: &str| Desk::of(args, out, &device, name).await;
    match command {
        MoneyCommand::Expense(ExpenseCommand::Add { group, amount, reason, currency, who }) => {
            desk(group).await?.add(amount, reason, currency.as_deref(), who).await
        }
        MoneyCommand::Expense(ExpenseCommand::Edit {
            group,
            expense,
            amount,
            currency,
            reason,
            who,
        }) => {
            let amount = amount.as_deref().map(|amount| (amount, currency.as_deref()));
            desk(group).await?.edit(expense, amount, reason.clone(), who).await
        }
        MoneyCommand::Expense(ExpenseCommand::Delete { group, expense }) => {
            desk(group).await?.delete(expense).await
        }
        MoneyCommand::Expense(ExpenseCommand::List { group, sync }) => {
            let mut desk = desk(group).await?;
            desk.sync_if(*sync).await?;
            say_lacking(&desk.group);
            tables::expenses(out, &desk.ledger, device.key())
        }
        MoneyCommand::Settle { group, member, amount, currency, received } => {
            let (amount, currency) = (amount.as_deref(), currency.as_deref());
            desk(group).await?.settle(member, amount, currency, *received).await
        }
        MoneyCommand::Balances { group, simplified, sync } => {
            let mut desk = desk(group).await?;
            desk.sync_if(*sync).await?;
            say_lacking(&desk.group);
            tables::balances(out, &desk.group, &desk.ledger, device.key(), *simplified)
        }
        MoneyCommand::Nudge { group, currency } => {
            desk(group).await?.nudge(currency.as_deref()).await
        }
        MoneyCommand::Watch { group, once } => {
            watch::watch(args, out, &device, group.as_deref(), *once).await
        }
    }
}

/// How long nothing must have come before what another process of this device reads is taken as all.
const QUIET: Duration = Duration::from_secs(1);

/// A group, its ledger, and somebody who writes.
struct Desk<'a> {
    args: &'a Args,
    out: Output,
    device: &'a Device,
    group: LogInfo,
    ledger: Ledger,
    members: BTreeSet<Party>,
}

impl<'a> Desk<'a> {
    async fn of(args: &'a Args, out: Output, device: &'a Device, name: &str) -> Result<Self> {
        let group = group(device, name).await?;
        let ledger = device.ledger(group.log).await?;
        let members = device.members(group.log).await?;
        let members = members.into_iter().map(|member| member.device.into()).collect();
        Ok(Self { args, out, device, group, ledger, members })
    }

    async fn add(
        &self,
        amount: &str,
        reason: &str,
        currency: Option<&str>,
        who: &Who,
    ) -> Result<()> {
        let new = NewExpense {
            amount: self.money(amount, currency)?,
            reason: reason.to_owned(),
            paid_by: who.paid_by.as_deref().map(|name| self.party(name)).transpose()?,
            split_among: self.parties(&who.split)?,
            at: who.on.as_deref().map(day).transpose()?,
        };
        let shown = new.amount.to_string();
        let written = self.device.add_expense(self.group.log, new).await.map_err(explain)?;
        // Who shares it is who is known here to be a member: whoever has just joined may not be.
        let ledger = self.device.ledger(self.group.log).await?;
        let among = ledger.expense(&written.expense).map(|it| &it.split_among);
        let me = self.device.key();
        let among: Vec<String> =
            among.into_iter().flatten().map(|it| tables::name(&ledger, it, me)).collect();
        let what = format!("{shown} for {reason}, shared by {}", among.join(", "));
        self.deliver(written.draft, &written.expense, &what).await
    }

    async fn edit(
        &self,
        expense: &str,
        amount: Option<(&str, Option<&str>)>,
        reason: Option<String>,
        who: &Who,
    ) -> Result<()> {
        let id = self.expense(expense)?;
        let old = self.ledger.expense(&id).map(|old| old.amount.currency.clone());
        let amount = match (amount, old) {
            (None, _) => None,
            (Some((amount, None)), Some(currency)) => Some(Money::parse(amount, &currency)?),
            (Some((amount, currency)), _) => Some(self.money(amount, currency)?),
        };
        let split = self.parties(&who.split)?;
        let edit = Edit {
            amount,
            reason,
            paid_by: who.paid_by.as_deref().map(|name| self.party(name)).transpose()?,
            split_among: Some(split).filter(|split| !split.is_empty()),
            at: who.on.as_deref().map(day).transpose()?,
        };
        let log = self.group.log;
        let written = self.device.edit_expense(log, &id, edit).await.map_err(explain)?;
        self.deliver(written.draft, &id, "changed").await
    }

    async fn delete(&self, expense: &str) -> Result<()> {
        let id = self.expense(expense)?;
        let log = self.group.log;
        let written = self.device.delete_expense(log, &id).await.map_err(explain)?;
        self.deliver(written.draft, &id, "deleted").await
    }

    async fn settle(
        &self,
        member: &str,
        amount: Option<&str>,
        currency: Option<&str>,
        received: bool,
    ) -> Result<()> {
        let (me, other) = (self.me(), self.party(member)?);
        let (from, to) = if received { (other, me) } else { (me, other) };
        let amount = match amount {
            Some(amount) => self.money(amount, currency)?,
            None => self.owed(&from, &to, currency)?,
        };
        let (payer, payee) = (self.ledger.name_of(&from), self.ledger.name_of(&to));
        let text = tables::plain(&format!("{payer} has paid {payee} {amount}"));
        let paid = Transfer { from, to, amount };
        let written = self.device.settle(self.group.log, paid).await.map_err(explain)?;
        self.deliver(written.draft, &written.expense, &text).await
    }

    async fn nudge(&self, currency: Option<&str>) -> Result<()> {
        let currency = self.currency(currency)?;
        let (owed, draft) = self.device.nudge(self.group.log, &currency).await.map_err(explain)?;
        let who =
            |owed: &Transfer| format!("{} ({})", self.ledger.name_of(&owed.from), owed.amount);
        let names: Vec<String> = owed.iter().map(who).collect();
        let text = tables::plain(&format!("reminded {}", names.join(", ")));
        let sent = self.send(draft).await?;
        let debtors: Vec<_> =
            owed.iter().map(|it| json!({ "party": it.from, "minor": it.amount.minor })).collect();
        let log = self.group.log.to_uuid_text();
        let value = json!({ "log": log, "currency": currency, "reminded": debtors, "sent": sent });
        self.out.line(&text, &value)
    }

    /// Prints what was written, and whether the relay has it.
    async fn deliver(&self, draft: DraftId, expense: &str, what: &str) -> Result<()> {
        let sent = self.send(draft).await?;
        let short: String = expense.chars().take(8).collect();
        let value = json!({
            "log": self.group.log.to_uuid_text(), "expense": expense, "sent": sent,
        });
        self.out.line(&tables::plain(&format!("{short}  {what}")), &value)
    }

    /// Waits until the relay has an entry. It is no error if it is not reached: the entry waits.
    async fn send(&self, draft: DraftId) -> Result<bool> {
        let connection = self.device.connect(&self.group.relay);
        let wait = self.device.wait_appended(draft, self.args.deadline());
        let appended = unless_unreached(&connection, wait).await;
        connection.stop().await;
        match appended {
            Ok(_) => Ok(true),
            Err(Error::Timeout) => {
                remark(
                    "written down here; the others get it when the relay is reached (any command \
                     that connects will send it, `watch` for instance)",
                );
                Ok(false)
            }
            Err(error) => Err(anyhow!(error)
                .context("the others will not get it, it stands in this device's ledger alone")),
        }
    }

    /// Reads what the relay has, if that is wanted.
    async fn sync_if(&mut self, wanted: bool) -> Result<()> {
        if !wanted {
            return Ok(());
        }
        let log = self.group.log;
        let mut events = self.device.events().await?;
        let connection = self.device.connect(&self.group.relay);
        let read = async {
            connection.wait_connected(self.args.deadline()).await?;
            let elsewhere = connection.status() == Status::Standby;
            loop {
                let event = if elsewhere {
                    // The process that is connected reads what comes at once: here it is enough to
                    // let it finish.
                    match tokio::time::timeout(QUIET, events.next()).await {
                        Ok(event) => event?,
                        Err(_) => return Ok(()),
                    }
                } else {
                    events.next().await?
                };
                if event.log() != Some(log) {
                    continue;
                }
                if let Event::KeyReceived { epoch, from, .. } = event {
                    remark(&key_given(epoch, from));
                }
                if let Event::Drained { .. } = event {
                    return Ok(());
                }
                if let Event::Ended { code, .. } = event {
                    bail!(
                        "the relay does not serve this group: {}; ask a member whether you are still in it",
                        code.sentence()
                    );
                }
            }
        };
        let read = tokio::time::timeout(self.args.deadline(), read).await;
        if let Ok(Ok(())) = read {
            linger(self.args, self.device, log).await?;
        }
        connection.stop().await;
        match read {
            Err(_) => remark("the relay was not reached; this is what was read before"),
            Ok(Err(error)) if error.is::<Error>() => {
                remark(&format!("{error}; this is what was read before"));
            }
            Ok(read) => read?,
        }
        self.ledger = self.device.ledger(log).await?;
        self.group = self.device.log(log).await?;
        Ok(())
    }

    fn me(&self) -> Party {
        self.device.key().into()
    }

    fn currency(&self, named: Option<&str>) -> Result<Currency> {
        match named {
            Some(name) => Ok(Currency::parse(name)?),
            None => self.ledger.usual_currency().context("name a currency with --currency"),
        }
    }

    fn money(&self, amount: &str, currency: Option<&str>) -> Result<Money> {
        let currency = self.currency(currency)?;
        Money::parse(amount, &currency)
            .with_context(|| format!("{amount} is no amount of {currency}"))
    }

    /// What one owes another by the plan.
    fn owed(&self, from: &Party, to: &Party, currency: Option<&str>) -> Result<Money> {
        let named = currency.map(Currency::parse).transpose()?;
        let between = |it: &Transfer| {
            it.from == *from
                && it.to == *to
                && named.as_ref().is_none_or(|named| it.amount.currency == *named)
        };
        let mut owed: Vec<Transfer> = self.ledger.pairwise().into_iter().filter(between).collect();
        match owed.len() {
            1 => owed.pop().map(|it| it.amount).ok_or_else(|| anyhow!("nothing is owed")),
            0 => bail!(
                "{} owes {} nothing; name the amount if it was paid all the same",
                tables::plain(&self.ledger.name_of(from)),
                tables::plain(&self.ledger.name_of(to)),
            ),
            _ => bail!("something is owed in several currencies; name one with --currency"),
        }
    }

    fn parties(&self, names: &[String]) -> Result<Vec<Party>> {
        names.iter().map(|name| self.party(name)).collect()
    }

    /// Whoever is called so, or has a key that begins so: members, and those whom the ledger names.
    fn party(&self, name: &str) -> Result<Party> {
        if name.eq_ignore_ascii_case("me") {
            return Ok(self.me());
        }
        let known = self.ledger.people().map(|(party, _)| party);
        let all: BTreeSet<&Party> = self.members.iter().chain(known).collect();
        let called = |party: &&&Party| {
            let person = self.ledger.person(party);
            let own = person.and_then(|person| person.name.as_deref());
            own.is_some_and(|own| own.to_lowercase() == name.trim().to_lowercase())
        };
        let mut found: Vec<&Party> = all.iter().filter(called).copied().collect();
        if found.is_empty() {
            let begins = |party: &&&Party| party.0.starts_with(&name.to_ascii_lowercase());
            found = all.iter().filter(begins).copied().collect();
        }
        match found.as_slice() {
            [one] => Ok((*one).clone()),
            [] => bail!(
                "nobody in this group is called {name} or has a key that begins so; `balances` shows who is there"
            ),
            _ => bail!(
                "{} people fit {name}; use the beginning of a key (see `balances`)",
                found.len()
            ),
        }
    }

    /// The expense that begins so.
    fn expense(&self, name: &str) -> Result<String> {
        let wanted = name.to_ascii_lowercase();
        let found: Vec<&str> = self
            .ledger
            .expenses()
            .into_iter()
            .map(|expense| expense.id.as_str())
            .filter(|id| id.to_ascii_lowercase().starts_with(&wanted))
            .collect();
        match found.as_slice() {
            [one] => Ok((*one).to_owned()),
            [] => bail!("no expense begins with {name}; `expense list` shows them"),
            _ => bail!("{} expenses begin with {name}; type more of it", found.len()),
        }
    }
}

/// A day as the ledger has it: its noon, which is the same day for nearly everybody.
fn day(text: &str) -> Result<i64> {
    let noon = humantime::parse_rfc3339(&format!("{text}T12:00:00Z"))
        .with_context(|| format!("{text} is no day; write it like 2026-01-31"))?;
    let since = noon
        .duration_since(SystemTime::UNIX_EPOCH)
        .context("that day is too long ago; name one since 1970")?;
    Ok(i64::try_from(since.as_millis())?)
}

/// Says what to do about what went wrong.
fn explain(error: Error) -> anyhow::Error {
    if error == Error::Ledger(LedgerError::Split) {
        return anyhow!("nobody shares it: name them with --split");
    }
    if error == Error::OutboxFull {
        return anyhow!("too much waits to be sent; connect with `watch` and try again");
    }
    if error == Error::NotAMember {
        return anyhow!(
            "you are not a member of this group any more; `group list` shows your groups"
        );
    }
    anyhow!(error)
}
