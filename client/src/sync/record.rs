//! What is known of one row besides the values that stand in the app's table: when each of its cells
//! was written last and by whom, and whether it is there.
//!
//! Each cell is a register whose greatest [`Stamp`] wins, and so is the row's being there: a write says
//! that it is, a deletion that it is not. Hence the rules:
//!
//! - two devices that write different cells of a row both have their way;
//! - of two that write the same cell, the later one has;
//! - a row is deleted unless something was written to it later; then it is back, with that and with
//!   whatever else was known of it;
//! - a cell that is its user's alone says nothing of whether the row is there;
//! - of two writes under one stamp, which only a device makes whose memory was set back or that means
//!   harm, the greater value has its way, and a row that is there goes before one that is not.
//!
//! Values that the app's table cannot hold are *kept* in here: those of deleted rows, of tables and
//! columns that this version of the app does not know, of rows that a constraint forbids, and those
//! that the table makes others of (a text in a column of numbers).
//!
//! Taking the same changes twice, or in another order, gives the same record.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::clock::{Reading, Stamp};
use super::schema::KeyScope;
use super::value::Value;

/// The number of a name ([`super::names`]).
pub(crate) type NameId = i64;

/// Whether a row is there, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) stamp: Stamp,
    pub(crate) alive: bool,
}

/// One register.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Register {
    pub(crate) stamp: Stamp,
    /// Its value, if the app's table does not hold it.
    pub(crate) kept: Option<Value>,
    /// Whether the app has written what stays on this device: it is too long to be sent, or cannot be
    /// stamped later than what it takes the place of.
    pub(crate) alone: bool,
}

/// One row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Record {
    /// Whether it stands in the app's table.
    pub(crate) shown: bool,
    group: Option<Life>,
    private: Option<Life>,
    pub(crate) cells: BTreeMap<(NameId, KeyScope), Register>,
    /// Whether some cell stayed on this device when the record was stored last.
    was_alone: bool,
}

impl Record {
    pub(crate) fn life(&self, scope: KeyScope) -> Option<Life> {
        match scope {
            KeyScope::Group => self.group,
            KeyScope::UserPrivate => self.private,
        }
    }

    /// Whether the row is there, for a table whose rows have this scope.
    pub(crate) fn is_alive(&self, scope: KeyScope) -> bool {
        self.life(scope).is_some_and(|life| life.alive)
    }

    /// Says that the row is there or not. Gives whether that was news. Under one stamp a row that is
    /// there goes before one that is not.
    pub(crate) fn live(&mut self, scope: KeyScope, stamp: Stamp, alive: bool) -> bool {
        let life = match scope {
            KeyScope::Group => &mut self.group,
            KeyScope::UserPrivate => &mut self.private,
        };
        let newer = life.is_none_or(|life| (stamp, alive) > (life.stamp, life.alive));
        if newer {
            *life = Some(Life { stamp, alive });
        }
        newer
    }

    /// Writes a cell if that is its newest write. The value is kept until the app's table holds it.
    /// `shown` gives what the app's table holds of it; it is asked only if another write has the same
    /// stamp.
    ///
    /// # Errors
    /// Those of `shown`; nothing has changed then.
    pub(crate) fn write<E>(
        &mut self,
        column: NameId,
        scope: KeyScope,
        stamp: Stamp,
        value: Value,
        shown: impl FnOnce() -> Result<Option<Value>, E>,
    ) -> Result<bool, E> {
        let newer = match self.cells.get(&(column, scope)) {
            None => true,
            Some(cell) if stamp != cell.stamp => stamp > cell.stamp,
            // What the app has written after it stays, though it cannot be sent.
            Some(cell) if cell.alone => false,
            Some(Register { kept: Some(kept), .. }) => value.order(kept).is_gt(),
            // If it is nowhere, the table has lost its column since.
            Some(_) => shown()?.is_none_or(|shown| value.order(&shown).is_gt()),
        };
        if newer {
            self.cells.insert((column, scope), Register { stamp, kept: Some(value), alone: false });
        }
        Ok(newer)
    }

    /// A cell was written by the app itself and stands in its table.
    pub(crate) fn wrote(&mut self, column: NameId, scope: KeyScope, stamp: Stamp) {
        self.cells.insert((column, scope), Register { stamp, kept: None, alone: false });
    }

    /// As before, but it stays on this device. Nothing older takes its place all the same.
    pub(crate) fn wrote_alone(&mut self, column: NameId, scope: KeyScope, stamp: Stamp) {
        let cell = self.cells.entry((column, scope)).or_insert(Register {
            stamp,
            kept: None,
            alone: true,
        });
        *cell = Register { stamp: stamp.max(cell.stamp), kept: None, alone: true };
    }

    /// Whether some cell stays on this device, or did when it was stored last.
    pub(crate) fn is_or_was_alone(&self) -> bool {
        self.was_alone || self.cells.values().any(|cell| cell.alone)
    }

    /// The columns of a row that is there, whose cells stay on this device.
    pub(crate) fn alone(&self) -> Vec<NameId> {
        let there = [self.group, self.private].into_iter().flatten().any(|life| life.alive);
        let alone = self.cells.iter().filter(|(_, cell)| there && cell.alone);
        alone.map(|((column, _), _)| *column).collect()
    }

    /// The newest reading of anything in it that is not beyond `reach`: what a write of the whole row
    /// must exceed.
    pub(crate) fn newest(&self, reach: Reading) -> Option<Reading> {
        let cells = self.cells.values().map(|cell| cell.stamp.reading);
        let lives = [self.group, self.private].into_iter().flatten().map(|life| life.stamp.reading);
        cells.chain(lives).filter(|reading| *reading <= reach).max()
    }
}

/// A record's stamp as it is stored: the reading, and the number of the device's key.
type StampWire = (u64, NameId);
type LifeWire = Option<(u64, NameId, bool)>;
/// Cells that were written together, which most are: by their columns.
type RunWire = (u64, NameId, KeyScope, Vec<NameId>);
type KeptWire = (NameId, KeyScope, Value);

#[derive(Serialize, Deserialize)]
struct Wire(
    bool,
    LifeWire,
    LifeWire,
    Vec<RunWire>,
    Vec<KeptWire>,
    #[serde(default)] Vec<(NameId, KeyScope)>,
);

impl Record {
    /// As it is stored. `device` gives the number of a device's key.
    pub(crate) fn encode<E>(
        &self,
        mut device: impl FnMut(Stamp) -> Result<NameId, E>,
    ) -> Result<Vec<u8>, E> {
        let mut life = |life: Option<Life>| -> Result<LifeWire, E> {
            life.map(|life| Ok((life.stamp.reading.0, device(life.stamp)?, life.alive))).transpose()
        };
        let (group, private) = (life(self.group)?, life(self.private)?);
        let mut runs: BTreeMap<(StampWire, KeyScope), Vec<NameId>> = BTreeMap::new();
        let mut kept = Vec::new();
        for ((column, scope), cell) in &self.cells {
            let stamp = (cell.stamp.reading.0, device(cell.stamp)?);
            runs.entry((stamp, *scope)).or_default().push(*column);
            if let Some(value) = &cell.kept {
                kept.push((*column, *scope, value.clone()));
            }
        }
        let runs = runs.into_iter().map(|((stamp, scope), it)| (stamp.0, stamp.1, scope, it));
        let alone = self.cells.iter().filter(|(_, cell)| cell.alone).map(|(of, _)| *of).collect();
        let wire = Wire(self.shown, group, private, runs.collect(), kept, alone);
        Ok(rmp_serde::to_vec(&wire).expect("numbers and bytes can be written to memory"))
    }

    /// Reads a stored record; none if it is damaged. `device` gives the key of a number.
    pub(crate) fn decode<E>(
        bytes: &[u8],
        mut device: impl FnMut(NameId) -> Result<sealwire_protocol::DeviceKey, E>,
    ) -> Result<Option<Self>, E> {
        let Ok(Wire(shown, group, private, runs, kept, alone)) = rmp_serde::from_slice(bytes)
        else {
            return Ok(None);
        };
        let mut stamp = |reading: u64, number: NameId| -> Result<Stamp, E> {
            Ok(Stamp { reading: Reading(reading), device: device(number)? })
        };
        let mut life = |wire: LifeWire| -> Result<Option<Life>, E> {
            wire.map(|(reading, number, alive)| Ok(Life { stamp: stamp(reading, number)?, alive }))
                .transpose()
        };
        let (group, private) = (life(group)?, life(private)?);
        let mut cells = BTreeMap::new();
        for (reading, number, scope, columns) in runs {
            let stamp = stamp(reading, number)?;
            cells.extend(
                columns
                    .into_iter()
                    .map(|it| ((it, scope), Register { stamp, kept: None, alone: false })),
            );
        }
        for (column, scope, value) in kept {
            if let Some(cell) = cells.get_mut(&(column, scope)) {
                cell.kept = Some(value);
            }
        }
        let was_alone = !alone.is_empty();
        for of in alone {
            if let Some(cell) = cells.get_mut(&of) {
                cell.alone = true;
            }
        }
        Ok(Some(Self { shown, group, private, cells, was_alone }))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use proptest::prelude::*;
    use sealwire_protocol::DeviceKey;

    use super::*;

    const GROUP: KeyScope = KeyScope::Group;

    fn stamp(reading: u64, device: u8) -> Stamp {
        Stamp { reading: Reading(reading), device: DeviceKey([device; 32]) }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Write(NameId, u64, u8, i64),
        Live(u64, u8, bool),
    }

    fn any_step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0i64..4, 1u64..9, 0u8..3, 0i64..3)
                .prop_map(|(column, at, by, value)| Step::Write(column, at, by, value)),
            (1u64..9, 0u8..3, any::<bool>()).prop_map(|(at, by, alive)| Step::Live(at, by, alive)),
        ]
    }

    fn nowhere() -> Result<Option<Value>, Infallible> {
        Ok(None)
    }

    fn take(record: &mut Record, step: &Step) {
        match step {
            // Several writes may have one stamp.
            Step::Write(column, at, by, value) => {
                let value = Value::Integer(*value);
                let Ok(_) = record.write(*column, GROUP, stamp(*at, *by), value, nowhere);
            }
            Step::Live(at, by, alive) => {
                record.live(GROUP, stamp(*at, *by), *alive);
            }
        }
    }

    proptest! {
        #[test]
        fn any_order_and_any_repetition_gives_the_same_record(
            steps in proptest::collection::vec(any_step(), 0..20), seed: u64,
        ) {
            let (mut one, mut other) = (Record::default(), Record::default());
            steps.iter().for_each(|step| take(&mut one, step));
            let mut shuffled = steps.clone();
            shuffled.extend(steps.iter().take(3).cloned());
            shuffled.sort_by_key(|step| {
                format!("{step:?}").bytes().fold(seed, |sum, it| sum.rotate_left(5) ^ u64::from(it))
            });
            shuffled.iter().for_each(|step| take(&mut other, step));
            prop_assert_eq!(&one, &other);
            let bytes = one.encode(|stamp| Ok::<_, Infallible>(i64::from(stamp.device.0[0])));
            let read = Record::decode(&bytes.expect("encoded"), |number| {
                Ok::<_, Infallible>(DeviceKey([number as u8; 32]))
            });
            prop_assert_eq!(read.expect("decoded"), Some(one));
        }
    }

    #[test]
    fn a_later_write_brings_a_deleted_row_back_and_an_earlier_one_does_not() {
        let mut row = Record::default();
        row.live(GROUP, stamp(5, 1), false);
        assert!(!row.live(GROUP, stamp(4, 9), true) && !row.is_alive(GROUP));
        assert!(row.live(GROUP, stamp(5, 2), true) && row.is_alive(GROUP));
        row.live(KeyScope::UserPrivate, stamp(9, 1), false);
        assert!(row.is_alive(GROUP), "what is private says nothing of the row");
    }
}
