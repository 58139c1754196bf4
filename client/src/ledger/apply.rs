//! What a message does to a ledger.
//!
//! Applying is a function of the records that are there and the message, and of nothing else: no
//! clock, no order of arrival beyond what the records say. A message that comes twice changes
//! nothing the second time. Messages whose stamps differ give the same ledger in any order; of two
//! with one stamp the first stands (expenses) or the last (names), as in the app.

use sealwire_protocol::{DeviceKey, LogId};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::record::{Activity, Expense, Group, Key, Person, Record, Unknown, is_name};
use super::succession::Succession;
use crate::totals::payload::{
    ExpenseMessage, GroupSnapshot, Nudge, Party, Payload, PayloadError, PaymentAddress,
};

/// Something about a ledger that is not as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Change {
    /// An expense or settlement is new, changed or deleted.
    Expense(String),
    /// Something new stands in the list of what has happened; a reminder, too.
    Activity(String),
    /// A person's name, payment address or standing.
    Person(Party),
    /// The group's name or settings.
    Group,
    /// Somebody asks for the history.
    HistoryAsked(Party),
    /// A message of a kind that this version does not know; it is kept.
    Unknown,
}

/// An opened message, and what is known of where it came from.
#[derive(Clone, Copy)]
pub struct Said<'a> {
    /// The group.
    pub log: LogId,
    /// Its author: proven in a native group, vouched for by the relay in a `totals` group.
    pub sender: DeviceKey,
    /// When the relay ordered it, in milliseconds since the epoch.
    pub at: u64,
    /// Whether the group decides by approvals who belongs to it, as the app does. In a native group
    /// signed entries decide, and messages about approval mean nothing.
    pub approvals: bool,
    /// The JSON that was sealed.
    pub message: &'a [u8],
}

/// Where records are.
pub(crate) trait Shelf {
    type Error;

    fn get(&self, key: &Key) -> Result<Option<Record>, Self::Error>;
    fn put(&mut self, key: &Key, record: &Record) -> Result<(), Self::Error>;
    /// Forgets a record.
    fn drop(&mut self, key: &Key) -> Result<(), Self::Error>;
    /// How many messages of unknown kinds are kept.
    fn unknown(&self) -> Result<usize, Self::Error>;
}

/// Most messages of unknown kinds that are kept of one group; beyond it the newest are not kept.
const UNKNOWN_MAX: usize = 1000;

/// Applies a message, and says what is not as it was. What cannot be read changes nothing.
pub(crate) fn apply<S: Shelf>(shelf: &mut S, said: Said<'_>) -> Result<Vec<Change>, S::Error> {
    let payload = match Payload::decode(said.message) {
        Ok(payload) => payload,
        Err(PayloadError::Unknown) => return keep_unknown(shelf, said),
        Err(PayloadError::Malformed | PayloadError::TooLong) => return Ok(Vec::new()),
    };
    let mut applying = Applying { shelf, said, changes: Vec::new() };
    applying.apply(&payload)?;
    Ok(applying.changes)
}

fn keep_unknown<S: Shelf>(shelf: &mut S, said: Said<'_>) -> Result<Vec<Change>, S::Error> {
    let digest = sealwire_protocol::digest::sha256(&[&said.sender.0, said.message].concat());
    let key = Key::Unknown(digest.to_hex());
    if shelf.get(&key)?.is_some() || shelf.unknown()? >= UNKNOWN_MAX {
        return Ok(Vec::new());
    }
    let unknown = Unknown { sender: said.sender, at: said.at, message: said.message.to_vec() };
    shelf.put(&key, &Record::Unknown(unknown))?;
    Ok(vec![Change::Unknown])
}

struct Applying<'a, 'm, S> {
    shelf: &'a mut S,
    said: Said<'m>,
    changes: Vec<Change>,
}

impl<S: Shelf> Applying<'_, '_, S> {
    fn apply(&mut self, payload: &Payload) -> Result<(), S::Error> {
        let sender = Party::from(self.said.sender);
        if self.said.approvals && payload.sealed() == crate::totals::seal::Sealed::Group {
            // Whoever seals under the group's key holds it.
            self.approved(&sender, self.ordered_at())?;
        }
        match payload {
            Payload::Expense(message) => self.expense(message),
            Payload::Nudge(nudge) => self.nudge(nudge, &sender),
            Payload::MemberMeta(meta) => {
                self.person_told(
                    &sender,
                    meta.display_name.as_deref(),
                    meta.payment_address.as_ref(),
                    meta.member_meta_updated_at,
                )?;
                self.happened_maybe(meta.activity.as_ref())
            }
            Payload::GroupMeta(meta) => {
                self.group(|group| {
                    group.tell(meta.name.as_deref(), meta.backfill_new_members, meta.timestamp);
                })?;
                self.happened_maybe(meta.activity.as_ref())
            }
            Payload::GroupSnapshot(snapshot) => self.snapshot(snapshot),
            Payload::SnapshotRequest(request) if request.public_key == sender => {
                self.changes.push(Change::HistoryAsked(sender));
                Ok(())
            }
            // Nobody asks for somebody else.
            Payload::SnapshotRequest(_) => Ok(()),
            Payload::MemberLeft(left) if left.public_key == sender => {
                self.person(&sender, |person| person.left_at = person.left_at.max(left.left_at))?;
                self.happened_maybe(left.activity.as_ref())
            }
            Payload::MemberLeft(_) => Ok(()),
            Payload::JoinRequest(_)
            | Payload::KeyExchange(_)
            | Payload::MemberApproved(_)
            | Payload::JoinCancel(_)
                if !self.said.approvals =>
            {
                Ok(())
            }
            Payload::JoinRequest(request) if request.public_key == sender => {
                self.person_told(
                    &sender,
                    request.display_name.as_deref(),
                    request.payment_address.as_ref(),
                    request.member_meta_updated_at,
                )?;
                // Its own clock may be ahead: whoever lets it in does so after it has asked.
                let asked_at = request.timestamp.min(self.ordered_at());
                self.person(&sender, |person| person.asked_at = person.asked_at.max(asked_at))?;
                let group = self.said.log.to_uuid_text();
                self.happened(Activity {
                    id: format!("join_requested:{group}:{sender}:{}", request.timestamp),
                    timestamp: request.timestamp,
                    actor: sender.clone(),
                    kind: "join_requested".to_owned(),
                    data: data(&json!({ "memberPk": sender })),
                })
            }
            Payload::JoinRequest(_) => Ok(()),
            Payload::KeyExchange(exchange) if exchange.approved_by == sender => {
                let group = LogId::from_uuid_text(&exchange.group_id);
                if group != Some(self.said.log) {
                    return Ok(());
                }
                self.group(|group| {
                    let name = exchange.group_name.as_deref();
                    group.tell(name, exchange.backfill_new_members, 0);
                })?;
                self.person_told(
                    &sender,
                    exchange.approver_display_name.as_deref(),
                    exchange.approver_payment_address.as_ref(),
                    exchange.approver_member_meta_updated_at.unwrap_or_default(),
                )?;
                let at = exchange.timestamp.max(self.ordered_at());
                self.approved(&sender, at)?;
                self.approved(&exchange.approved_public_key, at)
            }
            Payload::KeyExchange(_) => Ok(()),
            Payload::MemberApproved(approved) => {
                if approved.approved_by == sender {
                    // The approver's own clock may be behind.
                    let at = approved.timestamp.max(self.ordered_at());
                    self.approved(&approved.approved_public_key, at)?;
                }
                self.happened_maybe(approved.activity.as_ref())
            }
            Payload::JoinCancel(cancel) if cancel.public_key == sender => {
                self.person(&sender, |person| person.left_at = person.left_at.max(cancel.timestamp))
            }
            Payload::JoinCancel(_) => Ok(()),
            // In a totals group nobody changes its key.
            Payload::Succession(_) if self.said.approvals => Ok(()),
            Payload::Succession(succession) => self.succession(succession),
        }
    }

    /// When the relay ordered the message, as the app's messages have times.
    fn ordered_at(&self) -> i64 {
        i64::try_from(self.said.at).unwrap_or(i64::MAX)
    }

    /// Whoever says it, both devices have signed it.
    fn succession(&mut self, succession: &Succession) -> Result<(), S::Error> {
        let key = Key::Succession(succession.name());
        if self.shelf.get(&key)?.is_some() || succession.proven(self.said.log).is_none() {
            return Ok(());
        }
        self.changes.push(Change::Person(succession.new_public_key.clone()));
        self.shelf.put(&key, &Record::Succession(succession.clone()))
    }

    fn expense(&mut self, message: &ExpenseMessage) -> Result<(), S::Error> {
        let Some(expense) = Expense::from_payload(&message.expense) else { return Ok(()) };
        let told = message.activities.iter().chain(message.activity.as_ref());
        let mut any = false;
        for activity in told {
            any |= is_name(&activity.id) && is_name(&activity.kind);
            self.happened(activity.clone())?;
        }
        if let Some(activity) = implied(&expense).filter(|_| !any) {
            self.happened(activity)?;
        }
        self.put_expense(expense)
    }

    fn put_expense(&mut self, expense: Expense) -> Result<(), S::Error> {
        let key = Key::Expense(expense.id.clone());
        if let Some(Record::Expense(old)) = self.shelf.get(&key)?
            && !expense.replaces(&old)
        {
            return Ok(());
        }
        self.changes.push(Change::Expense(expense.id.clone()));
        self.shelf.put(&key, &Record::Expense(expense))
    }

    fn nudge(&mut self, nudge: &Nudge, sender: &Party) -> Result<(), S::Error> {
        let actor = if nudge.actor.is_empty() { sender } else { &nudge.actor };
        self.happened(Activity {
            id: nudge.id.clone(),
            timestamp: nudge.timestamp,
            actor: actor.clone(),
            kind: "nudge_sent".to_owned(),
            data: data(&json!({
                "amount": nudge.amount,
                "debtorPks": nudge.debtor_pks,
                "amountByDebtorPk": nudge.amount_by_debtor_pk,
            })),
        })
    }

    fn snapshot(&mut self, snapshot: &GroupSnapshot) -> Result<(), S::Error> {
        if LogId::from_uuid_text(&snapshot.group_id) != Some(self.said.log) {
            return Ok(());
        }
        let (name, backfill) = (snapshot.group_name.as_deref(), snapshot.backfill_new_members);
        self.group(|group| {
            group.tell(name, backfill, 0);
            // The oldest one who was there knows best.
            let created = [group.created_at, snapshot.created_at].into_iter().flatten().min();
            group.created_at = created;
        })?;
        let names = snapshot.display_names.keys();
        for party in names.chain(snapshot.payment_addresses.keys()) {
            let at = snapshot.member_meta_updated_at.get(party).copied().unwrap_or_default();
            let name = snapshot.display_names.get(party).map(String::as_str);
            self.person_told(party, name, snapshot.payment_addresses.get(party), at)?;
        }
        if self.said.approvals {
            for party in &snapshot.approved_member_keys {
                self.approved(party, snapshot.timestamp)?;
            }
        }
        for expense in snapshot.expenses.iter().filter_map(Expense::from_payload) {
            self.put_expense(expense)?;
        }
        for activity in &snapshot.activity {
            self.happened(activity.clone())?;
        }
        Ok(())
    }

    fn happened_maybe(&mut self, activity: Option<&Activity>) -> Result<(), S::Error> {
        activity.map_or(Ok(()), |activity| self.happened(activity.clone()))
    }

    /// The first that comes under a name stays.
    fn happened(&mut self, activity: Activity) -> Result<(), S::Error> {
        let key = Key::Activity(activity.id.clone());
        if !is_name(&activity.id) || !is_name(&activity.kind) || self.shelf.get(&key)?.is_some() {
            return Ok(());
        }
        self.changes.push(Change::Activity(activity.id.clone()));
        self.shelf.put(&key, &Record::Activity(activity))
    }

    fn approved(&mut self, party: &Party, at: i64) -> Result<(), S::Error> {
        self.person(party, |person| person.approved_at = person.approved_at.max(at))
    }

    fn person_told(
        &mut self,
        party: &Party,
        name: Option<&str>,
        payment_address: Option<&PaymentAddress>,
        at: i64,
    ) -> Result<(), S::Error> {
        self.person(party, |person| person.tell(name, payment_address, at))
    }

    fn person(&mut self, party: &Party, change: impl FnOnce(&mut Person)) -> Result<(), S::Error> {
        if !is_name(&party.0) {
            return Ok(());
        }
        let key = Key::Person(party.clone());
        let old = match self.shelf.get(&key)? {
            Some(Record::Person(person)) => person,
            _ => Person::default(),
        };
        let mut new = old.clone();
        change(&mut new);
        if new == old {
            return Ok(());
        }
        // Being seen again is no news to anybody.
        let shown = |person: &Person| {
            let Person { name, payment_address, left_at, .. } = person.clone();
            (name, payment_address, left_at, person.is_approved())
        };
        let change = Change::Person(party.clone());
        if shown(&new) != shown(&old) && !self.changes.contains(&change) {
            self.changes.push(change);
        }
        self.shelf.put(&key, &Record::Person(new))
    }

    fn group(&mut self, change: impl FnOnce(&mut Group)) -> Result<(), S::Error> {
        let old = match self.shelf.get(&Key::Group)? {
            Some(Record::Group(group)) => group,
            _ => Group::default(),
        };
        let mut new = old.clone();
        change(&mut new);
        if new == old {
            return Ok(());
        }
        self.changes.push(Change::Group);
        self.shelf.put(&Key::Group, &Record::Group(new))
    }
}

/// What an older app does not say along with a new or deleted expense. Its name follows from the
/// message alone, so that all devices make the same.
fn implied(expense: &Expense) -> Option<Activity> {
    use super::record::Kind;
    let kind = match (&expense.kind, expense.deleted, expense.revised_at) {
        (_, true, _) => "expense_deleted",
        (Kind::Settlement, false, None) => "settlement_created",
        (Kind::Expense | Kind::Other(_), false, None) => "expense_created",
        (_, false, Some(_)) => return None,
    };
    Some(Activity {
        id: format!("{kind}:{}:{}", expense.id, expense.stamp()),
        timestamp: expense.stamp(),
        actor: expense.paid_by.clone(),
        kind: kind.to_owned(),
        data: super::author::described(expense),
    })
}

/// An object as it is kept.
pub(super) fn data(value: &Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}
