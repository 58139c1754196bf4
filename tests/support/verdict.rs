//! What the devices of a vault must hold in the end, from what their apps have written, by the rules of
//! docs/SYNC.md and nothing else.
//!
//! It knows no code of sync but its clock's order: it takes each app's writes as they were seen in its
//! tables, and the stamps that they were given, and says which of them stand.

use std::collections::{BTreeMap, HashMap};
use std::mem;

use sealwire_client::sync::clock::{Reading, Stamp};
use sealwire_protocol::DeviceKey;

use super::app::{Cell, Change, Key, Noted, Row, SHAPES};

/// A person's number.
pub(crate) type Person = usize;

/// A column's place in its row; none for whether the row is there.
type Place = (Key, Option<usize>);

/// What one row or cell became: when, and as what.
type Newest = BTreeMap<Place, (Stamp, Cell)>;

/// What stands in a cell to which nothing was written.
const NULL: &str = "Null";

/// What a row is that is there.
const ALIVE: &str = "there";

/// Everything that was written.
#[derive(Default)]
pub(crate) struct Verdict {
    shared: Newest,
    private: HashMap<Person, Newest>,
    /// When each value was written first.
    first: HashMap<(Place, Cell), Stamp>,
    /// What each write took the place of.
    replaced: Vec<(Place, Cell, Stamp)>,
}

impl Verdict {
    /// Takes what happened on a device.
    pub(crate) fn take(&mut self, person: Person, device: DeviceKey, noted: &[Noted]) {
        let (mut pending, mut queued, mut last) = (Change::new(), None, Reading(0));
        for event in noted {
            match event {
                Noted::Written(change) => fold(&mut pending, change),
                Noted::Queued(reading) => {
                    assert!(*reading >= last, "a device's stamps rise");
                    queued = Some(*reading);
                }
                Noted::Drained => {
                    let mut change = mem::take(&mut pending);
                    change.retain(|_, (before, after)| before != after);
                    if change.is_empty() {
                        continue;
                    }
                    let reading = queued.take().expect("what was captured is queued");
                    assert!(reading > last, "each has a stamp of its own");
                    last = reading;
                    self.write(person, Stamp { reading, device }, change);
                }
            }
        }
        assert!(pending.is_empty(), "{device:?} has not captured {pending:?}");
    }

    fn write(&mut self, person: Person, stamp: Stamp, change: Change) {
        for (key, (before, after)) in change {
            let shape = &SHAPES[key.0];
            let mut own = after.is_none() || before.is_none();
            for (at, (_, alone)) in shape.columns.iter().enumerate() {
                let at = shape.keys + at;
                let Some(after) = &after else { continue };
                let was = before.as_ref().map(|row| &row[at]);
                if was == Some(&after[at]) || (was.is_none() && *alone && after[at] == NULL) {
                    continue;
                }
                own |= *alone == shape.private;
                let place = (key.clone(), Some(at));
                // Of all values only this one is written more than once.
                if let Some(was) = was.filter(|was| *was != NULL) {
                    self.replaced.push((place.clone(), was.clone(), stamp));
                }
                let value = (place.clone(), after[at].clone());
                let first = self.first.entry(value).or_insert(stamp);
                *first = stamp.min(*first);
                self.newest(person, *alone, place, stamp, after[at].clone());
            }
            if own {
                let life = after.map_or("gone", |_| ALIVE).to_owned();
                self.newest(person, shape.private, (key, None), stamp, life);
            }
        }
    }

    fn newest(&mut self, person: Person, alone: bool, place: Place, stamp: Stamp, what: Cell) {
        let of = if alone { self.private.entry(person).or_default() } else { &mut self.shared };
        let newest = of.entry(place).or_insert_with(|| (stamp, what.clone()));
        if stamp > newest.0 {
            *newest = (stamp, what);
        }
    }

    /// Checks that no write was stamped before what it took the place of, which its device had seen.
    pub(crate) fn causes_come_first(&self) {
        for (place, was, stamp) in &self.replaced {
            if let Some(first) = self.first.get(&(place.clone(), was.clone())) {
                assert!(first < stamp, "{place:?} was {was} before");
            }
        }
    }

    /// What a device of this person must show, in the order of the rows as text.
    pub(crate) fn rows(&self, person: Person, table: usize) -> Vec<Row> {
        let shape = &SHAPES[table];
        let nothing = Newest::new();
        let private = self.private.get(&person).unwrap_or(&nothing);
        let of = |alone: bool| if alone { private } else { &self.shared };
        let mut rows = Vec::new();
        for ((key, place), (_, life)) in of(shape.private) {
            if key.0 != table || place.is_some() || life != ALIVE {
                continue;
            }
            let mut row = key.1.clone();
            for (at, (_, alone)) in shape.columns.iter().enumerate() {
                let cell = of(*alone).get(&(key.clone(), Some(shape.keys + at)));
                row.push(cell.map_or_else(|| NULL.to_owned(), |(_, value)| value.clone()));
            }
            rows.push(row);
        }
        rows.sort();
        rows
    }
}

/// Two writes that travel together are one.
fn fold(all: &mut Change, next: &Change) {
    for (key, (before, after)) in next {
        let (_, last) = all.entry(key.clone()).or_insert_with(|| (before.clone(), None));
        last.clone_from(after);
    }
}
