//! Devices of two people, their databases, and a vault that is a list.

mod offers;
mod orders;
mod rules;
mod snapshots;
mod ties;

use std::path::PathBuf;

use rusqlite::{Connection, params_from_iter};
use sealwire_protocol::DeviceKey;
use tempfile::TempDir;

use super::changeset::Changes;
use super::engine::Engine;
use super::error::SyncError;
use super::pack::Part;
use super::replay::Replayed;
use super::schema::{KeyScope, Schema, Table};
use super::value::Value;

/// The app's tables.
const APP: &str = "
    create table transactions (
        id text primary key, amount integer not null, note text, card text, check (amount < 1000)
    );
    create table pins (id blob primary key, pin) without rowid;
";

fn schema() -> Schema {
    Schema::version(1)
        .table(Table::group("transactions").user_private_column("card"))
        .table(Table::user_private("pins"))
}

/// An entry: whose it is, and what it says to whom.
#[derive(Clone)]
struct Entry {
    author: DeviceKey,
    person: u8,
    part: Part,
}

/// One device.
struct Phone {
    path: PathBuf,
    key: DeviceKey,
    person: u8,
    engine: Option<Engine>,
    /// How many entries it has read.
    read: usize,
    _directory: TempDir,
}

impl Phone {
    fn new(number: u8, person: u8) -> Self {
        Self::with(number, person, APP, &schema())
    }

    fn with(number: u8, person: u8, tables: &str, schema: &Schema) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("app.db");
        let key = DeviceKey([number; 32]);
        let db = Connection::open(&path).expect("a database");
        // Files of a test need not survive the machine.
        db.execute_batch("pragma journal_mode = wal; pragma synchronous = off").expect("a mode");
        db.execute_batch(tables).expect("the app's tables");
        drop(db);
        let mut phone = Self { path, key, person, engine: None, read: 0, _directory: directory };
        phone.attach(schema);
        phone
    }

    fn attach(&mut self, schema: &Schema) {
        self.engine = None;
        let engine = Engine::attach(&self.path, self.key, schema).expect("attached");
        self.engine = Some(engine.without_fsync());
    }

    fn engine(&mut self) -> &mut Engine {
        let (path, key) = (&self.path, self.key);
        let open = || Engine::open(path, key).expect("opened").without_fsync();
        self.engine.get_or_insert_with(open)
    }

    /// The process dies.
    fn crash(&mut self) {
        self.engine = None;
    }

    /// The app writes with a connection of its own.
    fn app(&self, sql: &str) {
        let db = Connection::open(&self.path).expect("a database");
        db.pragma_update(None, "synchronous", "off").expect("a mode");
        db.execute_batch(sql).expect("written");
    }

    /// Puts what is new into the vault.
    fn push(&mut self, vault: &mut Vec<Entry>) {
        let (author, person) = (self.key, self.person);
        let parts = self.engine().write(|writer| {
            writer.drain()?;
            let mut statement = writer.db.prepare(
                "select group_part, private_part, rows from sealwire_outbox where state = 0 order by id",
            )?;
            let parts = statement
                .query_map([], |row| {
                    let rows = row.get::<_, u32>(2)? as usize;
                    Ok(Part { group: row.get(0)?, private: row.get(1)?, rows, reading: 0 })
                })?
                .collect::<rusqlite::Result<Vec<_>>>()?;
            writer.db.execute("update sealwire_outbox set state = 2", [])?;
            Ok(parts)
        });
        let parts = parts.expect("drained");
        vault.extend(parts.into_iter().map(|part| Entry { author, person, part }));
    }

    /// Reads some of what is new. With `fails`, the transaction is rolled back at its end.
    fn pull(&mut self, vault: &[Entry], count: usize, fails: bool) -> Replayed {
        let until = vault.len().min(self.read.saturating_add(count));
        let entries = vault[self.read..until].to_vec();
        let replayed = self.replay(&entries, fails);
        if !fails {
            self.note(&entries, self.read);
            self.read = until;
        }
        replayed
    }

    /// Notes which entries those behind the first `before` are. The first of all has seq 1.
    fn note(&mut self, entries: &[Entry], before: usize) {
        let noted = self.engine().write(|writer| {
            for (entry, seq) in entries.iter().zip(before + 1..) {
                let Some(bytes) = entry.part.group.as_ref().or(entry.part.private.as_ref()) else {
                    continue;
                };
                let reading = Changes::decode(bytes).expect("sound").reading.0.cast_signed();
                let author = writer.names.device(writer.db, entry.author)?;
                writer.db.execute(
                    "insert or replace into sealwire_history (seq, author, reading)
                     values (?1, ?2, ?3)",
                    (seq as i64, author, reading),
                )?;
            }
            Ok(())
        });
        noted.expect("noted");
    }

    fn replay(&mut self, entries: &[Entry], fails: bool) -> Replayed {
        let (me, person) = (self.key, self.person);
        let mut done = Replayed::default();
        let written = self.engine().write(|writer| {
            writer.drain()?;
            writer.silently(|writer| {
                for entry in entries.iter().filter(|entry| entry.author != me) {
                    if let Some(bytes) = &entry.part.group {
                        let changes = Changes::decode(bytes).expect("sound");
                        writer.replay(entry.author, KeyScope::Group, &changes, &mut done)?;
                    }
                    if let Some(bytes) =
                        entry.part.private.as_ref().filter(|_| entry.person == person)
                    {
                        let changes = Changes::decode(bytes).expect("sound");
                        writer.replay(entry.author, KeyScope::UserPrivate, &changes, &mut done)?;
                    }
                }
                Ok(())
            })?;
            if fails { Err(SyncError::Stopped) } else { Ok(()) }
        });
        assert_eq!(written.is_err(), fails);
        done
    }

    /// The rows of a query, in its order.
    fn rows(&self, sql: &str) -> Vec<Vec<Value>> {
        let db = Connection::open(&self.path).expect("a database");
        let mut statement = db.prepare(sql).expect("a query");
        let columns = statement.column_count();
        let rows = statement.query_map(params_from_iter::<[i64; 0]>([]), |row| {
            (0..columns).map(|at| Ok(Value::from(row.get_ref(at)?))).collect()
        });
        rows.expect("read").collect::<rusqlite::Result<_>>().expect("rows")
    }

    fn count(&self, sql: &str) -> i64 {
        let value = self.rows(sql).remove(0).remove(0);
        let Value::Integer(count) = value else { panic!("{value:?} is no count") };
        count
    }
}
