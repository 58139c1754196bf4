//! Whose debts are whose after a device was lost.
//!
//! A device that comes out of a native recovery vault has a new key, and the ledger knows its person
//! by the old one. The vault also brings back the old key, so the new device can show that both are
//! one person's: a [`Succession`] that both keys have signed for one group. It is a message of the
//! ledger like all others, kept, and passed on with the history.
//!
//! A succession counts once the old device was revoked, which every member reads at the same place of
//! the log: nobody who is still active is succeeded. One device has one successor: if several show
//! its signature, one that is a member or leads to one goes before those that a thief may have made
//! up, then the one that revoked it, then the one whose digest is least. So the same messages and the
//! same log make the same successors everywhere, in whatever order they came.
//!
//! What was written stays as it was written. The ledger that a device shows has the successor's key
//! in the place of the lost one's, everywhere ([`Ledger::of_members`]).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use sealwire_protocol::digest::sha256;
use sealwire_protocol::ids::Signature;
use sealwire_protocol::{DeviceKey, Digest, LogId, signing};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value};

use super::{Expense, Ledger};
use crate::identity::Identity;
use crate::membership::Membership;
use crate::totals::payload::Party;

/// A lost device and the one that takes its place say that they are one person's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Succession {
    /// The group.
    pub group_id: String,
    /// The lost device.
    pub old_public_key: Party,
    /// The one that takes its place.
    pub new_public_key: Party,
    /// The lost device's signature, as hex digits.
    pub old_signature: String,
    /// The new one's.
    pub new_signature: String,
}

impl Succession {
    /// Says that `new` takes the place of `old` in a group.
    #[must_use]
    pub fn new(log: LogId, old: &Identity, new: &Identity) -> Self {
        let sign = |device: &Identity| device.sign_succession(log, old.key(), new.key()).to_hex();
        Self {
            group_id: log.to_uuid_text(),
            old_public_key: old.key().into(),
            new_public_key: new.key().into(),
            old_signature: sign(old),
            new_signature: sign(new),
        }
    }

    /// The lost device and its successor, if both have signed for this group.
    #[must_use]
    pub fn proven(&self, log: LogId) -> Option<(DeviceKey, DeviceKey)> {
        let (old, new) = (self.old_public_key.device()?, self.new_public_key.device()?);
        if LogId::from_uuid_text(&self.group_id) != Some(log) || old == new {
            return None;
        }
        let message = signing::succession_message(log, old, new);
        for (key, text) in [(old, &self.old_signature), (new, &self.new_signature)] {
            // A signature by a key of mixed order verifies here and not there.
            signing::admissible(key).ok()?;
            signing::verify(key, &message, &Signature::from_hex(text)?).ok()?;
        }
        Some((old, new))
    }

    /// The name under which it is kept.
    pub(super) fn name(&self) -> String {
        format!("{}:{}", self.old_public_key, self.new_public_key)
    }
}

/// How often the lost devices are gone through, from the one that was revoked last to the first. Whoever
/// was revoked before the device whose place it takes costs a turn more; nobody honest does often.
const TURNS_MAX: usize = 16;

/// Most successions of one lost device that are passed on, or kept when there are too many: the first
/// counts, the others are for the case that it leaves the group.
const RIVALS_MAX: usize = 8;

/// Most successions that a newcomer is given, each in an entry of its own.
const GIVEN_MAX: usize = 256;

/// Most successions that are kept of one group, a quarter of a mebibyte or so, but for those that
/// count. Beyond it half as many stay, so that not each further one means to choose anew.
pub(crate) const KEPT_MAX: usize = 500;

/// Who may take a place, the first first: the revoker, then by digest.
type Candidates = BTreeSet<(bool, Digest, DeviceKey)>;

/// The successors of the devices that have one: always the last in its line. All of `proven` were
/// signed by both.
fn successors<'a>(
    proven: impl Iterator<Item = &'a Succession>,
    membership: &Membership,
) -> BTreeMap<DeviceKey, DeviceKey> {
    let mut lost: BTreeMap<(Reverse<u64>, DeviceKey), Candidates> = BTreeMap::new();
    for succession in proven {
        let (old, new) = (&succession.old_public_key, &succession.new_public_key);
        let (Some(old), Some(new)) = (old.device(), new.device()) else { continue };
        let Some(revoked) = membership.revocation(old) else { continue };
        let candidate = (revoked.by != new, sha256(&[old.0, new.0].concat()), new);
        lost.entry((Reverse(revoked.seq), old)).or_default().insert(candidate);
    }
    if lost.is_empty() {
        return BTreeMap::new();
    }
    // Whoever leads to a member goes before whoever leads to nobody, who may be a thief's invention.
    let mut ends: BTreeMap<_, _> = membership.members().map(|(key, _)| (key, key)).collect();
    follow(&lost, &mut ends);
    let old: BTreeSet<DeviceKey> = lost.keys().map(|(_, old)| *old).collect();
    let named = lost.values().flatten().map(|(_, _, new)| *new);
    for new in named.filter(|new| !old.contains(new)) {
        ends.insert(new, new);
    }
    follow(&lost, &mut ends);
    old.into_iter().filter_map(|old| Some((old, *ends.get(&old)?))).collect()
}

/// Gives each lost device the end of the line of its first candidate that has one. Whoever has an end
/// keeps it, so lines have no rings and nobody is followed twice.
fn follow(
    lost: &BTreeMap<(Reverse<u64>, DeviceKey), Candidates>,
    ends: &mut BTreeMap<DeviceKey, DeviceKey>,
) {
    for _ in 0..TURNS_MAX {
        let before = ends.len();
        for ((_, old), candidates) in lost {
            let end = candidates.iter().find_map(|(_, _, new)| ends.get(new).copied());
            if let Some(end) = end.filter(|_| !ends.contains_key(old)) {
                ends.insert(*old, end);
            }
        }
        if ends.len() == before {
            break;
        }
    }
}

impl Ledger {
    /// The ledger as the members of its group are to see it: what lost devices have paid and owe, how
    /// they are called and what they did is their successors'. In a `totals` group it is the same,
    /// for there a restored device has the key that it had.
    #[must_use]
    pub fn of_members(mut self, membership: &Membership) -> Self {
        let successors = successors(self.successions.values(), membership);
        if successors.is_empty() {
            return self;
        }
        self.successors =
            successors.into_iter().map(|(old, new)| (old.into(), new.into())).collect();
        let successors = &self.successors;
        for expense in self.expenses.values_mut() {
            hand_over(successors, expense);
        }
        for activity in self.activity.values_mut() {
            put_party(successors, &mut activity.actor);
            activity.data = told_of(successors, &activity.data);
        }
        for (old, new) in successors {
            if let Some(person) = self.people.remove(old) {
                self.people.entry(new.clone()).or_default().succeed(person);
            }
        }
        self
    }

    /// The successions that a newcomer is given: of devices that are or were in the group, those that
    /// count first.
    pub(crate) fn successions_given(&self, membership: &Membership) -> Vec<&Succession> {
        let worth = self.successions_worth(membership).into_iter();
        worth.take(GIVEN_MAX).map(|(_, succession)| succession).collect()
    }

    /// The names of the successions that are not worth keeping when there are more than
    /// [`KEPT_MAX`]: anybody can sign any number of them, for keys that nobody has.
    pub(crate) fn successions_surplus(&self, membership: &Membership) -> Vec<String> {
        let worth = self.successions_worth(membership).into_iter().enumerate();
        let kept: BTreeSet<String> = worth
            .filter(|(number, (counts, _))| *counts || *number < KEPT_MAX / 2)
            .map(|(_, (_, succession))| succession.name())
            .collect();
        self.successions.keys().filter(|name| !kept.contains(*name)).cloned().collect()
    }

    /// The successions of devices that are or were in the group, the first of each before all second
    /// ones, and whether each is the one that counts. Who was revoked earlier comes before who was
    /// later: those that are made up to crowd others out come last.
    fn successions_worth(&self, membership: &Membership) -> Vec<(bool, &Succession)> {
        let ends = successors(self.successions.values(), membership);
        let mut named: BTreeMap<_, BTreeMap<_, &Succession>> = BTreeMap::new();
        for succession in self.successions.values() {
            let (old, new) = (&succession.old_public_key, &succession.new_public_key);
            let (Some(from), Some(to)) = (old.device(), new.device()) else { continue };
            let revoked = membership.revocation(from);
            let known = match (revoked, membership.since(from)) {
                (Some(revoked), _) => (0, revoked.seq),
                (None, Some(since)) => (1, since.seq),
                // It has left: the ledger knows it if it ever said its name, or that it leaves.
                (None, None) if self.people.contains_key(old) => (2, 0),
                (None, None) => continue,
            };
            let end = *ends.get(&to).unwrap_or(&to);
            let leads = match revoked {
                Some(_) => ends.get(&from) == Some(&end),
                None => membership.has(end),
            };
            let revoker = revoked.is_some_and(|revoked| revoked.by == to);
            let rank = (!leads, !revoker, sha256(&[from.0, to.0].concat()), to);
            named.entry((known, from)).or_default().insert(rank, succession);
        }
        let mut worth = Vec::new();
        for (((class, seq), old), rivals) in named {
            for (place, succession) in rivals.into_values().take(RIVALS_MAX).enumerate() {
                let counts = place == 0 && class == 0;
                worth.push(((place, class, seq, old), (counts, succession)));
            }
        }
        worth.sort_by_key(|(order, _)| *order);
        worth.into_iter().map(|(_, one)| one).collect()
    }

    /// Under which key a person is known now: its own, or that of the device that has taken its place.
    #[must_use]
    pub fn who<'a>(&'a self, party: &'a Party) -> &'a Party {
        self.successors.get(party).unwrap_or(party)
    }
}

fn put_party(successors: &BTreeMap<Party, Party>, party: &mut Party) {
    if let Some(new) = successors.get(party) {
        party.clone_from(new);
    }
}

fn hand_over(successors: &BTreeMap<Party, Party>, expense: &mut Expense) {
    put_party(successors, &mut expense.paid_by);
    for party in &mut expense.split_among {
        put_party(successors, party);
    }
}

/// What belongs to something that has happened: whoever it names.
fn told_of(successors: &BTreeMap<Party, Party>, data: &Map<String, Value>) -> Map<String, Value> {
    let named = |text: &str| {
        let new = successors.get(&Party(text.to_owned()));
        new.map_or_else(|| text.to_owned(), |new| new.0.clone())
    };
    let value = |value: &Value| match value {
        Value::String(text) => Value::String(named(text)),
        Value::Array(items) => {
            let item =
                |item: &Value| item.as_str().map_or_else(|| item.clone(), |it| named(it).into());
            Value::Array(items.iter().map(item).collect())
        }
        Value::Object(fields) => {
            Value::Object(added(fields.iter().map(|(name, it)| (named(name), it.clone()))))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => value.clone(),
    };
    data.iter().map(|(name, it)| (name.clone(), value(it))).collect()
}

/// Values by name: of those that now have one name, numbers are added up; else the last stands.
fn added(fields: impl Iterator<Item = (String, Value)>) -> Map<String, Value> {
    let mut all = Map::new();
    for (name, value) in fields {
        let both = all.get(&name).and_then(Value::as_f64).zip(value.as_f64());
        // No currency has more than six digits, and 0.1 + 0.2 is to be shown as 0.3.
        let sum = both.map(|(one, other)| ((one + other) * 1e6).round() / 1e6);
        let sum = sum.and_then(Number::from_f64);
        all.insert(name, sum.map_or(value, Value::Number));
    }
    all
}

#[cfg(test)]
mod tests;
