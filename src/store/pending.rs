//! Pending pages: what a member has not acked yet, however much of it there is.
//!
//! Three short reads: where the member stands; seq and length of what may wait for it, as one row; and
//! the bodies of those that were chosen. Nothing that is not given is read from the disk. A body that
//! is deleted in between was acked in between, and is merely not there any more.

use std::collections::HashMap;

use sealwire_actors::limits::PENDING_SCAN_MAX;
use sealwire_actors::ports::{LogKey, PendingRequest, StoreError, StoredEntry};
use sealwire_protocol::AckSet;
use sqlx::Executor;

use super::dialect::Kind::Int;
use super::dialect::{Columns, Dialect, Step, Table, Value};
use super::failure::corrupt;
use super::lanes::Lanes;
use super::pages::{lists, stored_entry};
use super::reads::{bound, seq};

/// Bodies of log `$1` after `$2` that are for the reader `$3`, at most `$4`: seq, length, and whether
/// they name one recipient, which is then this one. The header holds its sender at byte 18 (from 1).
const WAITING: &str = "select string_agg(p.seq || ' ' || p.bytes || ' ' || p.alone, ',') from ( \
        select b.seq, length(b.body) as bytes, \
            case when length(e.recipients) = 32 then 1 else 0 end as alone \
        from bodies b join entries e on e.log = b.log and e.seq = b.seq \
        where b.log = $1 and b.seq > $2 and substr(e.header, 18, 32) <> $3 \
            and (e.recipients is null or instr(e.recipients, $3) > 0) \
        order by b.seq limit $4 + 0) p";

static CHOSEN: Step = Step::new(
    &[("log", Int), ("seq", Int)],
    "select e.seq, e.at, e.header, e.signature, e.recipients, e.chain, b.body, b.totals_kind \
     from given g cross join entries e cross join bodies b \
     where e.log = g.log and e.seq = g.seq and b.log = g.log and b.seq = g.seq",
);

/// Walks the control entries of one log, of which there are as many as changes of membership.
const CONTROL_AT: &str =
    "select max(at) from entries where log = $1 and control_body is not null and control_body = $2";

/// What waits: its seq, its length, and whether it is for the reader alone.
#[derive(Clone, Copy)]
struct Waiting {
    seq: i64,
    bytes: i64,
    alone: bool,
}

impl<D: Dialect> Lanes<D>
where
    for<'c> &'c mut D::Connection: Executor<'c, Database = D>,
{
    pub(super) async fn read_pending(
        &self,
        request: &PendingRequest,
    ) -> Result<Option<Vec<StoredEntry>>, StoreError> {
        let Some(record) = self.subscription(request.key, request.reader).await? else {
            return Ok(None);
        };
        let after = record.joined_seq.max(record.floor.seq).max(record.acked.floor());
        let values = [
            Value::Int(request.key.0),
            seq(after),
            Value::bytes(&request.reader.0),
            bound(PENDING_SCAN_MAX),
        ];
        let mut lease = self.read().await?;
        let rows = lease.rows(WAITING, &values).await?;
        let list = rows.first().map(|row| row.maybe_text(0)).transpose()?.flatten();
        let waiting = list.map_or(Ok(Vec::new()), |list| waiting(list, &record.acked))?;
        let chosen = choose(waiting, request);
        let mut table = Table::new(&CHOSEN);
        for one in &chosen {
            table.push([Value::Int(request.key.0), Value::Int(one.seq)]);
        }
        let mut entries: HashMap<u64, StoredEntry> = HashMap::with_capacity(chosen.len());
        for row in lease.each(table).await? {
            let entry = stored_entry(&row)?;
            entries.insert(entry.seq, entry);
        }
        let entry = |one: &Waiting| entries.remove(&one.seq.cast_unsigned());
        Ok(Some(chosen.iter().filter_map(entry).collect()))
    }

    pub(super) async fn control_at(
        &self,
        key: LogKey,
        body: &[u8],
    ) -> Result<Option<u64>, StoreError> {
        let rows = self.query(CONTROL_AT, &[Value::Int(key.0), Value::bytes(body)]).await?;
        let at = rows.first().map(|row| row.maybe_int(0)).transpose()?.flatten();
        at.map(|at| u64::try_from(at).map_err(|_| corrupt("a negative time"))).transpose()
    }
}

fn waiting(list: &str, acked: &AckSet) -> Result<Vec<Waiting>, StoreError> {
    let mut waiting = Vec::new();
    for numbers in lists(list) {
        let [seq, bytes, alone] = numbers?;
        if !acked.contains(seq.cast_unsigned()) {
            waiting.push(Waiting { seq, bytes, alone: alone == 1 });
        }
    }
    Ok(waiting)
}

/// As many as fit, in order; if that is not all, those for the reader alone come first.
fn choose(mut waiting: Vec<Waiting>, request: &PendingRequest) -> Vec<Waiting> {
    let mut fitting = fitting(&waiting, request);
    if fitting < waiting.len() {
        // A stable sort: each part stays in order.
        waiting.sort_by_key(|one| !one.alone);
        fitting = self::fitting(&waiting, request);
    }
    waiting.truncate(fitting);
    waiting
}

/// How many fit a page; at least one, if there is any.
fn fitting(waiting: &[Waiting], request: &PendingRequest) -> usize {
    let bytes_max = i64::try_from(request.bytes_max).unwrap_or(i64::MAX);
    let mut bytes = 0_i64;
    waiting
        .iter()
        .take(request.entries_max)
        .enumerate()
        .take_while(|(place, one)| {
            bytes = bytes.saturating_add(one.bytes);
            *place == 0 || bytes <= bytes_max
        })
        .count()
}
