//! What may happen to the devices of a family, and how to draw any of it.

use proptest::prelude::*;

use super::line::Fault;
use super::verdict::Person;

pub(crate) const ADA: Person = 0;
pub(crate) const BEN: Person = 1;
/// She has no key of her own, and writes nothing that is private.
pub(crate) const CLEO: Person = 2;

/// Whose the four devices are. Those who come later stand behind them.
pub(crate) const PEOPLE: [Person; 4] = [ADA, ADA, BEN, CLEO];

/// Most devices that come later, within the steps.
pub(crate) const NEWCOMERS_MAX: usize = 2;

/// What every private value of a person begins with.
pub(crate) const PLANTED: [&str; 3] = ["private-to-Ada-", "private-to-Ben-", "private-to-Cleo-"];

/// What every note begins with that the family shares.
pub(crate) const SHARED: &str = "shared-by-all-";

/// What an app writes. Rows are named by numbers, so that devices meet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Write {
    Insert(u8),
    Replace(u8),
    Amount(u8),
    Note(u8),
    Card(u8),
    NoCard(u8),
    Rename(u8, u8),
    Delete(u8),
    Pin(u8),
    Unpin(u8),
    Budget(u8),
    NoBudget(u8),
    /// Several writes, of several tables, in one transaction.
    Many(u8),
    /// A row that is there and gone again in one transaction.
    Nothing(u8),
}

/// What goes wrong in a turn, and whether the device crashes of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trouble {
    pub(crate) fault: Option<Fault>,
    pub(crate) crashes: bool,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Write(usize, Write),
    /// The app's process ends within its transaction.
    InVain(usize, Write),
    Sync(usize, Trouble),
    /// Both at once.
    Both(usize, usize),
    /// The app writes while its device syncs.
    Meanwhile(usize, Write),
    /// The device's process is killed when so many messages of the relay have reached it.
    Kill(usize, usize),
    /// The device's process ends between two transactions.
    Crash(usize),
    /// From now on the device reaches nobody.
    Away(usize),
    Back(usize),
    Snapshot(usize, Trouble),
    /// The device lets a guest in and throws it out again: new keys. If the guest is of the same person,
    /// new private ones, too.
    Rotate(usize, bool, Trouble),
    /// The device lets in another one of its person, which begins with nothing.
    Newcomer(usize, Trouble),
    /// The relay is stopped and started.
    Restart,
}

impl Trouble {
    pub(crate) const NONE: Self = Self { fault: None, crashes: false };
}

fn any_write() -> impl Strategy<Value = Write> {
    let id = || 0u8..4;
    prop_oneof![
        4 => id().prop_map(Write::Insert),
        2 => id().prop_map(Write::Replace),
        3 => id().prop_map(Write::Amount),
        3 => id().prop_map(Write::Note),
        3 => id().prop_map(Write::Card),
        1 => id().prop_map(Write::NoCard),
        1 => (id(), id()).prop_map(|(from, to)| Write::Rename(from, to)),
        3 => id().prop_map(Write::Delete),
        2 => id().prop_map(Write::Pin),
        1 => id().prop_map(Write::Unpin),
        2 => id().prop_map(Write::Budget),
        1 => id().prop_map(Write::NoBudget),
        1 => id().prop_map(Write::Many),
        1 => id().prop_map(Write::Nothing),
    ]
}

fn any_trouble() -> impl Strategy<Value = Trouble> {
    let fault = prop_oneof![
        2 => (0usize..4).prop_map(Fault::AnswerLost),
        2 => (0usize..4).prop_map(Fault::PushLost),
        3 => (0usize..16).prop_map(Fault::Gone),
        1 => Just(Fault::Doubled),
    ];
    prop_oneof![
        2 => Just(Trouble { fault: None, crashes: false }),
        3 => (fault, any::<bool>())
            .prop_map(|(fault, crashes)| Trouble { fault: Some(fault), crashes }),
    ]
}

pub(crate) fn any_step() -> impl Strategy<Value = Step> {
    let device = || {
        prop_oneof![
            12 => 0..PEOPLE.len(),
            1 => PEOPLE.len()..PEOPLE.len() + NEWCOMERS_MAX,
        ]
    };
    prop_oneof![
        24 => (device(), any_write()).prop_map(|(at, write)| Step::Write(at, write)),
        1 => (device(), any_write()).prop_map(|(at, write)| Step::InVain(at, write)),
        16 => (device(), any_trouble()).prop_map(|(at, trouble)| Step::Sync(at, trouble)),
        2 => (device(), device()).prop_map(|(one, other)| Step::Both(one, other)),
        2 => (device(), any_write()).prop_map(|(at, write)| Step::Meanwhile(at, write)),
        1 => (device(), 0usize..24).prop_map(|(at, after)| Step::Kill(at, after)),
        1 => device().prop_map(Step::Crash),
        2 => device().prop_map(Step::Away),
        2 => device().prop_map(Step::Back),
        3 => (device(), any_trouble()).prop_map(|(at, trouble)| Step::Snapshot(at, trouble)),
        1 => (device(), any::<bool>(), any_trouble())
            .prop_map(|(at, own, trouble)| Step::Rotate(at, own, trouble)),
        1 => (device(), any_trouble()).prop_map(|(at, trouble)| Step::Newcomer(at, trouble)),
        1 => Just(Step::Restart),
    ]
}

impl Write {
    /// As SQL, with values that nobody else writes. None if this person does not write such a thing.
    pub(crate) fn sql(self, person: Person, number: u32) -> Option<String> {
        let note = format!("'{SHARED}{number}'");
        let own = format!("'{}{number}'", PLANTED[person]);
        let card = if person == CLEO { "null".to_owned() } else { own.clone() };
        let row = |id: u8| format!("('{id}', {number}, {note}, {card})");
        Some(match self {
            Self::Card(_) | Self::NoCard(_) | Self::Pin(_) | Self::Unpin(_) if person == CLEO => {
                return None;
            }
            Self::Insert(id) => format!("insert or ignore into transactions values {}", row(id)),
            Self::Replace(id) => format!("insert or replace into transactions values {}", row(id)),
            Self::Amount(id) => {
                format!("update transactions set amount = {number} where id = '{id}'")
            }
            Self::Note(id) => format!("update transactions set note = {note} where id = '{id}'"),
            Self::Card(id) => format!("update transactions set card = {own} where id = '{id}'"),
            Self::NoCard(id) => format!("update transactions set card = null where id = '{id}'"),
            Self::Rename(from, to) => format!(
                "update or replace transactions
                 set id = '{to}', amount = {number}, note = {note}, card = {card}
                 where id = '{from}'"
            ),
            Self::Delete(id) => format!("delete from transactions where id = '{id}'"),
            Self::Pin(id) => format!("insert or replace into pins values (x'0{id}', {own})"),
            Self::Unpin(id) => format!("delete from pins where id = x'0{id}'"),
            Self::Budget(id) => format!(
                "insert into budgets values ('May', {id}, {number}.5)
                 on conflict do update set amount = excluded.amount"
            ),
            Self::NoBudget(id) => format!("delete from budgets where kind = {id}"),
            Self::Many(id) => format!(
                "delete from transactions where id = '{id}';
                 insert into transactions values {};
                 insert or replace into transactions values {};
                 insert or replace into budgets values ('June', {id}, {number}.25);
                 update transactions set note = {note} where id > '1'",
                row(id),
                row(9),
            ),
            Self::Nothing(id) => format!(
                "insert or ignore into budgets values ('July', {id}, {number});
                 delete from budgets where month = 'July'"
            ),
        })
    }
}
