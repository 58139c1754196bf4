//! One run of a relay on a store: which incarnation it serves, and how a lost past is noticed.
//!
//! The incarnation is one random number per store. Devices keep it beside their cursors, and another
//! one tells them that history may have been lost. It changes when the store says that it is not
//! where it was: its counter is below the witness's, or it does not hold the head that was noted beside
//! it (an older copy was put back), or PostgreSQL has
//! another system identifier or timeline (a dump was loaded elsewhere, a replica took over, a point
//! in time was restored), or a person says so (`sealwire restored`).
//!
//! Holds always: an incarnation is never 0, never chosen twice, and in the store before anybody is
//! told it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use sealwire_actors::ports::{LogKey, Position, StoreError};
use sqlx::Executor;
use tracing::warn;

use super::OpenError;
use super::dialect::Kind::{Int, Text};
use super::dialect::{Columns, Dialect, Step, Table, Value};
use super::lanes::{Lanes, Lease, Verdict};
use super::reads::{position, seq};
use super::witness::{self, NotedHead, Witness};

const STORE_ID: &str = "store_id";
const INCARNATION: &str = "incarnation";
const COUNTER: &str = "start_counter";
const RUN: &str = "run";
const SYSTEM: &str = "system_identifier";
const TIMELINE: &str = "timeline";

const READ_META: &str = "select name, value from meta";

const RAISE_COUNTER: &str = "update meta set value = value + 1 where name = 'start_counter' \
     and exists (select 1 from meta r where r.name = 'run' and r.value = $1) returning value";

/// Where a log ends, what is left of it, and its chain at a seq.
const HEAD_AND_CHAIN_AT: &str = "select l.seq, l.chain, l.floor_seq, e.chain from logs l \
     left join entries e on e.log = l.key and e.seq = $2 where l.key = $1";

static WRITE_META: Step = Step::new(
    &[("name", Text), ("value", Int)],
    "insert into meta (name, value) select name, value from given where true \
     on conflict (name) do update set value = excluded.value",
);

/// For the test that looks at their plans.
#[cfg(test)]
pub(super) const STEPS: &[&Step] = &[&WRITE_META];

/// Which server holds the store: PostgreSQL's system identifier and timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) system: i64,
    pub(super) timeline: i64,
}

/// Why a new incarnation was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// The store is new.
    New,
    /// Its counter is below the witness's.
    OlderCopy,
    /// It is on another server, or on another timeline.
    OtherOrigin,
    /// A person said so.
    Restored,
}

/// What the store says of itself.
struct Meta(HashMap<String, i64>);

impl Meta {
    fn number(&self, name: &str) -> Option<u64> {
        // Random numbers use all 64 bits, so the bit pattern is what is kept.
        self.0.get(name).map(|value| value.cast_unsigned())
    }

    fn origin(&self) -> Option<Origin> {
        Some(Origin { system: *self.0.get(SYSTEM)?, timeline: *self.0.get(TIMELINE)? })
    }
}

/// This relay's run on the store.
pub(super) struct Tenure {
    pub(super) incarnation: u64,
    store_id: u64,
    /// Random; another one in the store means that another relay has served it since.
    run: u64,
    /// Where the witness is.
    directory: PathBuf,
    /// The newest head that this run has committed.
    newest: Mutex<Newest>,
}

/// A head, and whether it stands beside the witness.
#[derive(Default)]
struct Newest {
    head: Option<NotedHead>,
    noted: bool,
}

/// Begins a run: decides on the incarnation, raises the counter, writes the witness.
pub(super) async fn begin<D: Dialect>(
    lanes: &Lanes<D>,
    directory: &Path,
    origin: Option<Origin>,
    restored: bool,
) -> Result<Tenure, OpenError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    let seen = on_disk(directory, witness::read).await?;
    let noted = on_disk(directory, witness::read_head).await?;
    let fresh = Fresh::draw()?;
    let mut lease = lanes.write().await?;
    lease.begin(D::BEGIN).await?;
    let outcome = begin_within(&mut lease, seen, noted, origin, restored, fresh).await;
    let begun = lease.end(outcome.map(Verdict::Keep)).await?;
    let tenure = Tenure {
        incarnation: begun.incarnation,
        store_id: begun.store_id,
        run: fresh.run,
        directory: directory.to_owned(),
        newest: Mutex::default(),
    };
    tenure.testify(begun.counter).await?;
    if begun.anew {
        // It is of a past that the store does not have.
        on_disk(directory, witness::forget_head).await?;
    }
    Ok(tenure)
}

/// What a run begins with.
struct Begun {
    store_id: u64,
    incarnation: u64,
    counter: u64,
    /// Whether the incarnation is a new one.
    anew: bool,
}

/// Random numbers for a run, drawn before they are known to be needed.
#[derive(Clone, Copy)]
struct Fresh {
    store_id: u64,
    incarnation: u64,
    run: u64,
}

impl Fresh {
    fn draw() -> Result<Self, OpenError> {
        let draw = || getrandom::u64().map(|number| number.max(1)).map_err(|_| OpenError::Random);
        Ok(Self { store_id: draw()?, incarnation: draw()?, run: draw()? })
    }
}

async fn begin_within<D: Dialect>(
    lease: &mut Lease<D>,
    seen: Option<Witness>,
    noted: Option<NotedHead>,
    origin: Option<Origin>,
    restored: bool,
    fresh: Fresh,
) -> Result<Begun, StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    let meta = read_meta(lease).await?;
    let holds = holds(lease, &meta, noted).await?;
    let change = decide(&meta, seen, holds, origin, restored);
    let store_id = meta.number(STORE_ID).unwrap_or(fresh.store_id);
    let incarnation = match (change, meta.number(INCARNATION)) {
        (None, Some(incarnation)) => incarnation,
        (Some(_), _) | (None, None) => fresh.incarnation,
    };
    let witnessed = seen.filter(|seen| seen.store_id == store_id).map_or(0, |seen| seen.counter);
    let counter = meta.number(COUNTER).unwrap_or_default().max(witnessed).saturating_add(1);
    let mut table = Table::new(&WRITE_META);
    let mut note =
        |name, value: u64| table.push([Value::Text(name), Value::Int(value.cast_signed())]);
    note(STORE_ID, store_id);
    note(INCARNATION, incarnation);
    note(COUNTER, counter);
    note(RUN, fresh.run);
    if let Some(origin) = origin {
        note(SYSTEM, origin.system.cast_unsigned());
        note(TIMELINE, origin.timeline.cast_unsigned());
    }
    lease.each(table).await?;
    if let Some(reason) = change.filter(|change| *change != Change::New) {
        warn!(?reason, "history may have been lost: the store has a new incarnation");
    }
    Ok(Begun { store_id, incarnation, counter, anew: change.is_some() })
}

/// Whether the store holds a head that it is said to have committed.
async fn holds<D: Dialect>(
    lease: &mut Lease<D>,
    meta: &Meta,
    noted: Option<NotedHead>,
) -> Result<bool, StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    let Some(NotedHead { store_id, log, head }) = noted else { return Ok(true) };
    if meta.number(STORE_ID) != Some(store_id) {
        return Ok(true);
    }
    let rows = lease.rows(HEAD_AND_CHAIN_AT, &[Value::Int(log.0), seq(head.seq)]).await?;
    let Some(row) = rows.first() else { return Ok(head.seq == 0) };
    let newest = position(row, 0, 1)?;
    if newest.seq <= head.seq {
        return Ok(newest == head);
    }
    match row.maybe_bytes(3)? {
        Some(_) => Ok(head.seq > 0 && row.digest(3)? == head.chain),
        None => Ok(head.seq > 0 && row.number(2)? >= head.seq),
    }
}

async fn read_meta<D: Dialect>(lease: &mut Lease<D>) -> Result<Meta, StoreError>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    let mut meta = HashMap::new();
    for row in lease.rows(READ_META, &[]).await? {
        meta.insert(row.maybe_text(0)?.unwrap_or_default().to_owned(), row.int(1)?);
    }
    Ok(Meta(meta))
}

/// Whether history may have been lost since the last run.
fn decide(
    meta: &Meta,
    seen: Option<Witness>,
    holds: bool,
    origin: Option<Origin>,
    restored: bool,
) -> Option<Change> {
    let Some(store_id) = meta.number(STORE_ID) else { return Some(Change::New) };
    if restored {
        return Some(Change::Restored);
    }
    let counter = meta.number(COUNTER).unwrap_or_default();
    if !holds || seen.is_some_and(|seen| seen.store_id == store_id && seen.counter > counter) {
        return Some(Change::OlderCopy);
    }
    (origin != meta.origin()).then_some(Change::OtherOrigin)
}

impl Tenure {
    /// Raises the counter, in the store and then in the witness. `Ok(false)` if another relay has
    /// begun a run on this store since.
    pub(super) async fn raise<D: Dialect>(&self, lanes: &Lanes<D>) -> Result<bool, OpenError>
    where
        for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
    {
        let values = [Value::Int(self.run.cast_signed())];
        let rows = lanes.write().await?.rows(RAISE_COUNTER, &values).await?;
        let Some(row) = rows.first() else { return Ok(false) };
        let counter = row.number(0)?;
        self.testify(counter).await?;
        Ok(true)
    }

    /// Whether the store is still where this run left it: nobody else has served it, it has not moved
    /// to another server, and it is no older copy. If so, the counter is raised: a copy from before
    /// now that is put back later is an older one.
    pub(super) async fn goes_on<D: Dialect>(
        &self,
        lanes: &Lanes<D>,
        origin: Option<Origin>,
    ) -> Result<bool, OpenError>
    where
        for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
    {
        let seen = on_disk(&self.directory, witness::read).await?;
        let newest = self.newest.lock().head;
        let mut lease = lanes.write().await?;
        let meta = read_meta(&mut lease).await?;
        let holds = holds(&mut lease, &meta, newest).await?;
        drop(lease);
        let same = meta.number(RUN) == Some(self.run)
            && decide(&meta, seen, holds, origin, false).is_none();
        if same { self.raise(lanes).await } else { Ok(false) }
    }

    /// Learns where a log ends by a commit; seq 0 if it was deleted.
    pub(super) fn committed(&self, log: LogKey, head: Position) {
        let head = Some(NotedHead { store_id: self.store_id, log, head });
        *self.newest.lock() = Newest { head, noted: false };
    }

    /// Notes the newest head beside the witness, if that is not done.
    pub(super) async fn note_head(&self) -> Result<(), OpenError> {
        let head = {
            let mut newest = self.newest.lock();
            if std::mem::replace(&mut newest.noted, true) { None } else { newest.head }
        };
        let Some(head) = head else { return Ok(()) };
        let written =
            on_disk(&self.directory, move |directory| witness::write_head(directory, &head)).await;
        if written.is_err() {
            self.newest.lock().noted = false;
        }
        written
    }

    async fn testify(&self, counter: u64) -> Result<(), OpenError> {
        let witness = Witness { store_id: self.store_id, counter };
        on_disk(&self.directory, move |directory| witness::write(directory, &witness)).await
    }
}

/// Runs what waits for the disk off the runtime's threads.
async fn on_disk<T: Send + 'static>(
    directory: &Path,
    work: impl FnOnce(&Path) -> std::io::Result<T> + Send + 'static,
) -> Result<T, OpenError> {
    let directory = directory.to_owned();
    tokio::task::spawn_blocking(move || work(&directory))
        .await
        .map_err(|_| OpenError::Witness(std::io::ErrorKind::Other))?
        .map_err(|error| OpenError::Witness(error.kind()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(counter: i64, origin: Option<Origin>) -> Meta {
        let mut facts = HashMap::from([(STORE_ID.to_owned(), 7), (COUNTER.to_owned(), counter)]);
        if let Some(origin) = origin {
            facts.insert(SYSTEM.to_owned(), origin.system);
            facts.insert(TIMELINE.to_owned(), origin.timeline);
        }
        Meta(facts)
    }

    #[test]
    fn a_new_store_gets_an_incarnation() {
        assert_eq!(decide(&Meta(HashMap::new()), None, true, None, false), Some(Change::New));
    }

    #[test]
    fn a_counter_below_the_witness_is_an_older_copy_and_another_store_s_witness_says_nothing() {
        let ahead = |store_id| Some(Witness { store_id, counter: 6 });
        assert_eq!(decide(&meta(5, None), ahead(7), true, None, false), Some(Change::OlderCopy));
        assert_eq!(decide(&meta(6, None), ahead(7), true, None, false), None);
        assert_eq!(decide(&meta(5, None), ahead(8), true, None, false), None);
        assert_eq!(decide(&meta(5, None), None, true, None, false), None);
    }

    #[test]
    fn a_store_without_a_head_that_was_committed_is_an_older_copy() {
        assert_eq!(decide(&meta(5, None), None, false, None, false), Some(Change::OlderCopy));
    }

    #[test]
    fn another_server_or_timeline_is_another_origin() {
        let here = Origin { system: 1, timeline: 1 };
        for origin in [Origin { system: 2, timeline: 1 }, Origin { system: 1, timeline: 2 }] {
            let changed = decide(&meta(5, Some(here)), None, true, Some(origin), false);
            assert_eq!(changed, Some(Change::OtherOrigin));
        }
        assert_eq!(decide(&meta(5, Some(here)), None, true, Some(here), false), None);
    }

    #[test]
    fn a_person_s_word_is_enough() {
        assert_eq!(decide(&meta(5, None), None, true, None, true), Some(Change::Restored));
    }
}
