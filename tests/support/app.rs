//! An app on a device: its tables, its writes, and a list of both its writes and what sync made of them,
//! in the order in which they happened.
//!
//! The list stands in the app's own file (`judge`), written by triggers of the test in the transactions
//! that it tells of: so it is as true after a crash as the file is. Every value that is written is another
//! one, so that it can be told whose it is and when it was written.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::types::Value;
use rusqlite::{Connection, Transaction, TransactionBehavior};
use sealwire_client::sync::clock::Reading;
use sealwire_client::sync::{Schema, Table};

/// The app's tables.
const APP: &str = "
    pragma journal_mode = wal;
    create table transactions (id text primary key, amount integer not null, note text, card text);
    create table budgets (month text, kind integer, amount real, primary key (month, kind));
    create table pins (id blob primary key, pin text) without rowid;
";

/// What tells of each write, of each changeset that is put into the outbox, and of the moment when what
/// was captured is forgotten.
const JUDGE: &str = "
    create table judge (id integer primary key autoincrement, what integer not null, reading integer);
    create trigger judge_queued after insert on sealwire_outbox when new.reading is not null
        begin insert into judge (what, reading) values (1, new.reading); end;
    create trigger judge_drained after delete on sealwire_capture
        begin insert into judge (what) values (2); end;
";

/// How long the app waits while sync writes.
const BUSY_DEADLINE: Duration = Duration::from_secs(10);

/// How a registered table is shared.
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    /// Columns of the key, which come first.
    pub(crate) keys: usize,
    /// The other columns, and whether each is its person's alone.
    pub(crate) columns: &'static [(&'static str, bool)],
    /// Whether the rows are.
    pub(crate) private: bool,
}

/// The registered tables.
pub(crate) const SHAPES: [Shape; 3] = [
    Shape {
        name: "transactions",
        keys: 1,
        columns: &[("amount", false), ("note", false), ("card", true)],
        private: false,
    },
    Shape { name: "budgets", keys: 2, columns: &[("amount", false)], private: false },
    Shape { name: "pins", keys: 1, columns: &[("pin", true)], private: true },
];

pub(crate) fn schema() -> Schema {
    Schema::version(1)
        .table(Table::group("transactions").user_private_column("card"))
        .table(Table::group("budgets"))
        .table(Table::user_private("pins"))
}

/// A value with its type, as text.
pub(crate) type Cell = String;

/// A row: its key, then its other columns.
pub(crate) type Row = Vec<Cell>;

/// A table's place among the [`SHAPES`], and a row's key.
pub(crate) type Key = (usize, Vec<Cell>);

/// Rows as they were and as they are; none where there is none.
pub(crate) type Change = BTreeMap<Key, (Option<Row>, Option<Row>)>;

/// What happened in an app's file.
#[derive(Clone, Debug)]
pub(crate) enum Noted {
    /// The app wrote.
    Written(Change),
    /// A changeset with this reading was put into the outbox.
    Queued(Reading),
    /// What the app had written before was captured, and is dealt with.
    Drained,
}

/// An app's file, and what happened in it.
pub(crate) struct App {
    path: PathBuf,
    written: HashMap<i64, Change>,
    noted: Vec<Noted>,
    read: i64,
}

impl App {
    /// A new file with the app's tables.
    pub(crate) fn new(path: PathBuf) -> Self {
        connect(&path).execute_batch(APP).expect("tables");
        Self { path, written: HashMap::new(), noted: Vec::new(), read: 0 }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// From now on everything is noted. Sync has attached the file.
    pub(crate) fn judged(&self) {
        connect(&self.path).execute_batch(JUDGE).expect("tables");
    }

    /// Writes with a connection of the app's own, in one transaction.
    pub(crate) fn write(&mut self, sql: &str) {
        let (id, change) = write(&self.path, sql);
        self.note(id, change);
    }

    /// What was written by [`write`].
    pub(crate) fn note(&mut self, id: i64, change: Change) {
        self.written.insert(id, change);
    }

    /// As before, but the process ends before the transaction does.
    pub(crate) fn write_in_vain(&self, sql: &str) {
        let db = connect(&self.path);
        db.execute_batch("begin immediate").expect("a transaction");
        db.execute_batch(sql).expect("written");
    }

    /// What happened until now, in order.
    pub(crate) fn noted(&mut self) -> &[Noted] {
        let db = connect(&self.path);
        let mut statement = db
            .prepare("select id, what, reading from judge where id > ?1 order by id")
            .expect("a query");
        let mut rows = statement.query([self.read]).expect("read");
        while let Some(row) = rows.next().expect("a row") {
            self.read = row.get(0).expect("a number");
            self.noted.push(match row.get(1).expect("a number") {
                0 => Noted::Written(self.written.remove(&self.read).expect("a write of this app")),
                1 => {
                    let reading: i64 = row.get(2).expect("a number");
                    Noted::Queued(Reading(reading.cast_unsigned()))
                }
                _ => Noted::Drained,
            });
        }
        &self.noted
    }

    /// What stands in a table, in the order of its rows as text.
    pub(crate) fn rows(&self, shape: &Shape) -> Vec<Row> {
        let mut rows = rows(&connect(&self.path), shape);
        rows.sort();
        rows
    }
}

/// Writes in one transaction. Gives its number in the list, and what it did.
pub(crate) fn write(path: &Path, sql: &str) -> (i64, Change) {
    let mut db = connect(path);
    let transaction =
        Transaction::new(&mut db, TransactionBehavior::Immediate).expect("a transaction");
    let before = everything(&transaction);
    transaction.execute_batch(sql).expect("written");
    let after = everything(&transaction);
    transaction.execute("insert into judge (what) values (0)", []).expect("noted");
    let id = transaction.last_insert_rowid();
    transaction.commit().expect("committed");
    (id, change(before, after))
}

fn connect(path: &Path) -> Connection {
    let db = Connection::open(path).expect("a database");
    db.busy_timeout(BUSY_DEADLINE).expect("a deadline");
    // Files of a test need not survive the machine.
    db.pragma_update(None, "synchronous", "off").expect("a mode");
    db
}

fn rows(db: &Connection, shape: &Shape) -> Vec<Row> {
    let columns = shape.keys + shape.columns.len();
    let mut statement = db.prepare(&format!("select * from {}", shape.name)).expect("a query");
    let rows = statement.query_map([], |row| {
        (0..columns).map(|at| Ok(format!("{:?}", row.get::<_, Value>(at)?))).collect()
    });
    rows.expect("read").collect::<rusqlite::Result<_>>().expect("rows")
}

fn everything(db: &Connection) -> BTreeMap<Key, Row> {
    let mut all = BTreeMap::new();
    for (table, shape) in SHAPES.iter().enumerate() {
        all.extend(
            rows(db, shape).into_iter().map(|row| ((table, row[..shape.keys].to_vec()), row)),
        );
    }
    all
}

fn change(before: BTreeMap<Key, Row>, mut after: BTreeMap<Key, Row>) -> Change {
    let mut change = Change::new();
    for (key, was) in before {
        let is = after.remove(&key);
        if is.as_ref() != Some(&was) {
            change.insert(key, (Some(was), is));
        }
    }
    change.extend(after.into_iter().map(|(key, is)| (key, (None, Some(is)))));
    change
}
