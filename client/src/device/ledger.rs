//! The ledgers of groups: reading them, and writing into them.
//!
//! Everything here works without a relay in reach. What is written is in this device's own ledger at
//! once, and reaches the others when it can.

use rusqlite::Connection as Db;
use sealwire_protocol::limits::RECIPIENTS_MAX;
use sealwire_protocol::{DeviceKey, Kind, LogId};

use super::{Device, member_row};
use crate::engine::Now;
use crate::error::Error;
use crate::event::Event;
use crate::ledger::money::Currency;
use crate::ledger::{Edit, Ledger, LedgerError, NewExpense, Person, Said, Transfer};
use crate::numbering::DraftId;
use crate::store::logs::LogRow;
use crate::store::outbox::Draft;
use crate::store::{self, inbox, ledger, logs, outbox};
use crate::totals::payload::{
    Activity, GroupMeta, MemberMeta, Party, Payload, PaymentAddress, SnapshotRequest,
};

/// How many members are asked for the history: all that there usually are. Each answers with all of
/// it, so more would cost more than they bring.
const PEERS: usize = 4;

/// What a written expense is called, and the entry that carries it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// The name of the expense.
    pub expense: String,
    /// Its place in the outbox.
    pub draft: DraftId,
}

/// A message, to whom it goes (all if nobody is named), and how loudly.
struct Message {
    payload: Payload,
    to: Vec<DeviceKey>,
    kind: Kind,
}

impl Message {
    fn to_all(payload: Payload) -> Self {
        Self { payload, to: Vec::new(), kind: Kind::Ring }
    }

    fn quietly(payload: Payload) -> Self {
        Self { payload, to: Vec::new(), kind: Kind::Quiet }
    }
}

/// Who writes, when, and into what.
struct Desk<'a> {
    ledger: &'a Ledger,
    row: &'a LogRow,
    me: Party,
    /// Whether the relay has not heard of the group yet, which this device has founded.
    founding: bool,
    /// Milliseconds since the epoch.
    now: i64,
}

impl Desk<'_> {
    /// Those who share an expense if nobody is named: all who can read it.
    fn members(&self) -> Vec<Party> {
        let all = self.row.membership.members().map(|(device, _)| Party::from(device));
        let known = |party: &Party| self.ledger.person(party).is_some_and(Person::is_approved);
        let native = !self.row.log.is_totals();
        if self.founding {
            return vec![self.me.clone()];
        }
        all.filter(|party| native || *party == self.me || known(party)).collect()
    }
}

impl Device {
    /// The ledger of a group, as far as it was read. It is a copy.
    ///
    /// # Errors
    /// [`Error::NoSuchLog`].
    pub async fn ledger(&self, log: LogId) -> Result<Ledger, Error> {
        self.shared
            .read(move |db| {
                let row = logs::find(db, log)?.ok_or(Error::NoSuchLog)?;
                Ok::<_, Error>(ledger::load(db, row.id)?.of_members(&row.membership))
            })
            .await
    }

    /// Writes an expense: shared by all members if nobody is named.
    ///
    /// # Errors
    /// [`Error::Ledger`], [`Error::NotAMember`].
    pub async fn add_expense(&self, log: LogId, new: NewExpense) -> Result<Written, Error> {
        self.write_expense(log, move |desk| {
            let everybody = new.split_among.is_empty();
            let split_among = if everybody { desk.members() } else { new.split_among };
            desk.ledger.create(&desk.me, NewExpense { split_among, ..new }, desk.now)
        })
        .await
    }

    /// Changes an expense.
    ///
    /// # Errors
    /// [`Error::Ledger`], [`Error::NotAMember`].
    pub async fn edit_expense(&self, log: LogId, id: &str, edit: Edit) -> Result<Written, Error> {
        let id = id.to_owned();
        self.write_expense(log, move |desk| desk.ledger.edit(&desk.me, &id, edit, desk.now)).await
    }

    /// Deletes an expense or a settlement.
    ///
    /// # Errors
    /// [`Error::Ledger`], [`Error::NotAMember`].
    pub async fn delete_expense(&self, log: LogId, id: &str) -> Result<Written, Error> {
        let id = id.to_owned();
        self.write_expense(log, move |desk| desk.ledger.delete(&desk.me, &id, desk.now)).await
    }

    /// Writes that one member has paid another one back.
    ///
    /// # Errors
    /// [`Error::Ledger`], [`Error::NotAMember`].
    pub async fn settle(&self, log: LogId, paid: Transfer) -> Result<Written, Error> {
        self.write_expense(log, move |desk| desk.ledger.settle(&desk.me, paid, desk.now)).await
    }

    /// Reminds everybody who owes this device at least half a unit of a currency, and says whom. Those
    /// who have left are not reached; of more than 64, those who owe most are.
    ///
    /// # Errors
    /// [`LedgerError::NobodyOwes`], [`Error::NotAMember`].
    pub async fn nudge(
        &self,
        log: LogId,
        currency: &Currency,
    ) -> Result<(Vec<Transfer>, DraftId), Error> {
        let currency = currency.clone();
        self.say(log, move |desk| {
            let has = |device| desk.row.membership.has(device);
            let owed = reached(desk.ledger.debtors(&desk.me), &currency, has);
            let payload = desk.ledger.nudge(&desk.me, &owed, desk.now)?;
            let mut to: Vec<DeviceKey> = owed.iter().filter_map(|it| it.from.device()).collect();
            to.sort_unstable();
            Ok((owed, Message { payload, to, kind: Kind::Ring }))
        })
        .await
    }

    /// Tells a group what this device's person is called and how it is paid; `None` leaves what was
    /// told before.
    ///
    /// # Errors
    /// [`Error::NotAMember`].
    pub async fn introduce(
        &self,
        log: LogId,
        name: Option<&str>,
        payment_address: Option<PaymentAddress>,
    ) -> Result<DraftId, Error> {
        let name = name.map(str::to_owned);
        self.say(log, move |desk| {
            let known = desk.ledger.person(&desk.me);
            let payload = Payload::MemberMeta(MemberMeta {
                display_name: name.or_else(|| known.and_then(|me| me.name.clone())),
                payment_address: payment_address
                    .or_else(|| known.and_then(|me| me.payment_address.clone())),
                member_meta_updated_at: desk.now,
                timestamp: desk.now,
                activity: None,
            });
            Ok(((), Message::quietly(payload)))
        })
        .await
        .map(|((), draft)| draft)
    }

    /// Gives a group its name.
    ///
    /// # Errors
    /// [`Error::NotAMember`].
    pub async fn name_group(&self, log: LogId, name: &str) -> Result<DraftId, Error> {
        let name = name.to_owned();
        self.say(log, move |desk| {
            let before = desk.ledger.group().name.clone().unwrap_or_default();
            let mut data = serde_json::Map::new();
            data.insert("before".to_owned(), before.into());
            data.insert("after".to_owned(), name.clone().into());
            let activity = Activity {
                id: crate::ledger::new_id()?,
                timestamp: desk.now,
                actor: desk.me.clone(),
                kind: "group_renamed".to_owned(),
                data,
            };
            let payload = Payload::GroupMeta(GroupMeta {
                name: Some(name),
                backfill_new_members: desk.ledger.group().backfill,
                timestamp: desk.now,
                activity: Some(activity),
            });
            Ok(((), Message::quietly(payload)))
        })
        .await
        .map(|((), draft)| draft)
    }

    /// Asks the other members for the history of the ledger: after a restore, or when something is
    /// missing. What they have and this device has not is added.
    ///
    /// # Errors
    /// [`Error::Recipients`] if there is nobody else, [`Error::NotAMember`].
    pub async fn ask_history(&self, log: LogId) -> Result<DraftId, Error> {
        let me = self.key();
        self.say(log, move |desk| {
            let members = desk.row.membership.members().map(|(device, _)| device);
            let to: Vec<DeviceKey> = members.filter(|device| *device != me).take(PEERS).collect();
            if to.is_empty() {
                return Err(Error::Recipients);
            }
            let payload = Payload::SnapshotRequest(SnapshotRequest::new(me, desk.now));
            Ok(((), Message { payload, to, kind: Kind::Ring }))
        })
        .await
        .map(|((), draft)| draft)
    }

    async fn write_expense(
        &self,
        log: LogId,
        make: impl FnOnce(Desk<'_>) -> Result<Payload, LedgerError> + Send + 'static,
    ) -> Result<Written, Error> {
        let make = |desk: Desk<'_>| {
            let payload = make(desk)?;
            let Payload::Expense(message) = &payload else {
                return Err(Error::Ledger(LedgerError::NoSuchExpense));
            };
            Ok((message.expense.id.clone(), Message::to_all(payload)))
        };
        let (expense, draft) = self.say(log, make).await?;
        Ok(Written { expense, draft })
    }

    /// Writes a message into the own ledger and into the outbox, both or neither.
    async fn say<T: Send + 'static>(
        &self,
        log: LogId,
        make: impl FnOnce(Desk<'_>) -> Result<(T, Message), Error> + Send + 'static,
    ) -> Result<(T, DraftId), Error> {
        let me = self.key();
        self.shared
            .write(move |db| {
                let row = member_row(db, log)?;
                super::sending::check_room(db, &row)?;
                let kept = ledger::load(db, row.id)?.of_members(&row.membership);
                let now = to_i64(Now::read().ms);
                let founding = !row.membership.is_founded()
                    && outbox::any_unsettled(db, row.id, |draft| *draft == Draft::Found)?;
                let desk = Desk { ledger: &kept, row: &row, me: me.into(), founding, now };
                let (value, message) = make(desk)?;
                if let Some(name) = name_to_tell(db, &kept, me)? {
                    put(db, &row, me, Message::quietly(name))?;
                }
                Ok::<_, Error>((value, put(db, &row, me, message)?))
            })
            .await
    }
}

/// Of those who owe, the greatest first, whom one message in a currency reaches.
fn reached(
    mut owed: Vec<Transfer>,
    currency: &Currency,
    is_member: impl Fn(DeviceKey) -> bool,
) -> Vec<Transfer> {
    owed.retain(|it| it.amount.currency == *currency && it.from.device().is_some_and(&is_member));
    owed.truncate(RECIPIENTS_MAX);
    owed
}

/// Writes a message of this device into its own ledger and into the outbox.
fn put(db: &Db, row: &LogRow, me: DeviceKey, message: Message) -> Result<DraftId, Error> {
    let Message { payload, to, kind } = message;
    take_own_payload(db, row, me, &payload)?;
    Ok(outbox::insert_ledger(db, row.id, row.log, &payload, kind, to)?)
}

/// Takes a message of this device into its own ledger.
pub(super) fn take_own_payload(
    db: &Db,
    row: &LogRow,
    me: DeviceKey,
    payload: &Payload,
) -> Result<(), Error> {
    take_own(db, row, me, &payload.encode().map_err(|_| Error::TooLong)?)
}

/// Takes the JSON of a message of this device into its own ledger.
pub(super) fn take_own(db: &Db, row: &LogRow, me: DeviceKey, message: &[u8]) -> Result<(), Error> {
    let (log, at) = (row.log, Now::read().ms);
    let said = Said { log, sender: me, at, approvals: log.is_totals(), message };
    let changes = ledger::take(db, row.id, said)?;
    if !changes.is_empty() {
        inbox::tell(db, row.id, &Event::Ledger { log, sender: me, changes }, at)?;
    }
    Ok(())
}

/// What tells the group how this device's person is called, if it does not know.
fn name_to_tell(db: &Db, kept: &Ledger, me: DeviceKey) -> Result<Option<Payload>, Error> {
    let (Some(name), at) = store::name(db)? else { return Ok(None) };
    let known = kept.person(&me.into());
    let at = to_i64(at);
    if known.is_some_and(|known| known.name.as_deref() == Some(&name) || known.name_at >= at) {
        return Ok(None);
    }
    Ok(Some(Payload::MemberMeta(MemberMeta {
        display_name: Some(name),
        payment_address: known.and_then(|known| known.payment_address.clone()),
        member_meta_updated_at: at,
        timestamp: to_i64(Now::read().ms),
        activity: None,
    })))
}

/// A time as the app's messages have it.
fn to_i64(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::money::Money;

    #[test]
    fn a_reminder_goes_to_no_more_than_one_message_can_name() {
        let etb = Currency::parse("ETB").expect("a currency");
        let owes = |number: u8| Transfer {
            from: DeviceKey([number; 32]).into(),
            to: DeviceKey([0; 32]).into(),
            amount: Money { minor: 10_000 - i64::from(number), currency: etb.clone() },
        };
        let all = || (1..=100).map(owes).collect::<Vec<_>>();
        let named = reached(all(), &etb, |_| true);
        assert_eq!(named, all()[..RECIPIENTS_MAX]);
        assert_eq!(reached(all(), &etb, |device| device.0[0] == 7), [owes(7)]);
        let other = Currency::parse("JPY").expect("a currency");
        assert_eq!(reached(all(), &other, |_| true), []);
    }
}
