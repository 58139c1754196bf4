//! The history, cut into messages, for somebody who lacks it.
//!
//! A phone reads a part of at most 45,000 characters of JSON, counted as it counts them: in UTF-16
//! units. The app never cuts the part about the group; nor is it cut here in a group of the app's size.
//! Every part is merged for itself, in any order, so a lost one costs what is in it and a
//! repeated one nothing.

use std::time::{Duration, SystemTime};

use sealwire_protocol::{DeviceKey, LogId};
use serde::Serialize;

use super::{Ledger, Person};
use crate::totals::payload::{GroupSnapshot, Party, SnapshotMember};

/// Longest part, in UTF-16 units of JSON. One item that is longer stands alone.
pub const PART_UNITS_MAX: usize = 45_000;

/// A member, as the group has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotOf {
    /// Who.
    pub device: DeviceKey,
    /// When it joined, in milliseconds since the epoch.
    pub joined_at: u64,
}

impl Ledger {
    /// The whole ledger as messages. `members` are those of the group, `approved` those among them
    /// who are known to belong to it, `at` is the time in milliseconds since the epoch.
    #[must_use]
    pub fn snapshot(
        &self,
        log: LogId,
        snapshot_id: &str,
        members: &[SnapshotOf],
        approved: &[DeviceKey],
        at: i64,
    ) -> Vec<GroupSnapshot> {
        let part = |name: &str| GroupSnapshot {
            snapshot_id: snapshot_id.to_owned(),
            timestamp: at,
            group_id: log.to_uuid_text(),
            part: name.to_owned(),
            ..GroupSnapshot::default()
        };
        let mut meta = part("meta");
        meta.group_name.clone_from(&self.group.name);
        meta.backfill_new_members = self.group.backfill;
        meta.created_at = self.group.created_at;
        meta.members = members.iter().map(member).collect();
        meta.approved_member_keys = approved.iter().map(|device| Party::from(*device)).collect();
        let mut parts = self.with_people(meta, &part("meta"));
        let expenses = self.expenses.values().map(|expense| expense.to_payload("synced"));
        parts.extend(
            cut(expenses.collect(), units(&part("expenses")))
                .into_iter()
                .map(|expenses| GroupSnapshot { expenses, ..part("expenses") }),
        );
        let activity = self.activity.values().cloned().collect();
        parts.extend(
            cut(activity, units(&part("activity")))
                .into_iter()
                .map(|activity| GroupSnapshot { activity, ..part("activity") }),
        );
        parts
    }

    /// The part about the group, with what is known of its people; and further ones if there are too many
    /// for one.
    fn with_people(&self, meta: GroupSnapshot, further: &GroupSnapshot) -> Vec<GroupSnapshot> {
        let nothing = units(&GroupSnapshot::default());
        let mut left = PART_UNITS_MAX.saturating_sub(units(&meta));
        let mut parts = vec![meta];
        for (party, person) in &self.people {
            let mut alone = GroupSnapshot::default();
            tell(&mut alone, party, person);
            // With the names of the lists, which stand there once: it is a little too much.
            let length = units(&alone).saturating_sub(nothing);
            if length > left {
                parts.push(further.clone());
                left = PART_UNITS_MAX.saturating_sub(units(further));
            }
            left = left.saturating_sub(length);
            if let Some(part) = parts.last_mut() {
                tell(part, party, person);
            }
        }
        parts
    }
}

/// What is known of a person.
fn tell(part: &mut GroupSnapshot, party: &Party, person: &Person) {
    if let Some(name) = &person.name {
        part.display_names.insert(party.clone(), name.clone());
    }
    if let Some(address) = &person.payment_address {
        part.payment_addresses.insert(party.clone(), address.clone());
    }
    if person.told_at() > 0 {
        part.member_meta_updated_at.insert(party.clone(), person.told_at());
    }
}

fn member(member: &SnapshotOf) -> SnapshotMember {
    let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(member.joined_at));
    SnapshotMember {
        device_public_key: member.device.into(),
        joined_at: at
            .filter(is_printable)
            .map(|at| humantime::format_rfc3339_millis(at).to_string()),
    }
}

/// Whether a time has a year of four digits: else it cannot be written.
fn is_printable(at: &SystemTime) -> bool {
    /// The first second of the year 10000.
    const END: Duration = Duration::from_secs(253_402_300_800);
    at.duration_since(SystemTime::UNIX_EPOCH).is_ok_and(|since| since < END)
}

/// Items in the order in which they are, in as few lists as fit.
fn cut<T: Serialize>(items: Vec<T>, around: usize) -> Vec<Vec<T>> {
    // `,"activity":[]`
    const NAME: usize = 14;
    let mut lists: Vec<Vec<T>> = Vec::new();
    let mut left = 0;
    for item in items {
        // And a comma.
        let length = units(&item) + 1;
        match lists.last_mut().filter(|_| length <= left) {
            Some(list) => {
                list.push(item);
                left -= length;
            }
            None => {
                lists.push(vec![item]);
                left = PART_UNITS_MAX.saturating_sub(around + NAME + length);
            }
        }
    }
    lists
}

/// The length of a value's JSON, with what says its type, in UTF-16 units.
fn units<T: Serialize>(value: &T) -> usize {
    // `"type":"group_snapshot",`
    const TYPE: usize = 24;
    serde_json::to_string(value).map_or(0, |json| TYPE + json.encode_utf16().count())
}
