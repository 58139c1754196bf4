//! A commit of everyday traffic as one call, on PostgreSQL.
//!
//! Every statement of a transaction is a message to another process and an answer that waits for a core,
//! and PostgreSQL plans it anew each time. So the statements of a commit ([`super::commit`],
//! [`super::changes`]) stand in a function of the committer's session, made of the very same texts when
//! it connects: one message for all of them, planned once. Planning once is safe here, because
//! none of these texts leaves the planner a choice that could turn bad while a table grows.
//!
//! The function locks and compares all heads first, and writes nothing unless every one of them is as
//! expected. If one is not, or if a batch changes more than everyday traffic does, it goes on statement by
//! statement. Whether a call is a transaction of its own is decided in [`super::commit`].
//!
//! Holds always: what the function writes and in which order is what those statements would; each of
//! them sees what the one before it has done, and what was committed while it waited for the locks.

use std::ptr;
use std::sync::{Arc, OnceLock};

use sealwire_actors::ports::{LogCommit, StoreError};
use sqlx::postgres::PgArguments;
use sqlx::{AssertSqlSafe, Executor, PgConnection, Postgres, SqlSafeStr, SqlStr};

use super::changes::{EVERYDAY, changes};
use super::dialect::Kind::Int;
use super::dialect::{Bound, Step, Table, Value};
use super::postgres::add_columns;

/// Locks the heads that are as expected, in the order of the list, and counts them. A head that changed
/// while it was waited for is compared again as it is then.
static LOCK_MATCHING: Step = Step::new(
    &[("key", Int), ("seq", Int), ("version", Int)],
    "select count(*) from given g cross join lateral ( \
        select l.key from logs l \
        where l.key = g.key and l.seq = g.seq and l.version = g.version for no key update) l",
);

/// The parameters of the function: the columns of [`LOCK_MATCHING`], then those of each of [`EVERYDAY`].
fn parameters() -> impl Iterator<Item = &'static str> {
    let steps = [&LOCK_MATCHING].into_iter().chain(EVERYDAY);
    steps.flat_map(|step| step.columns().iter().map(|(_, kind)| kind.postgres_array()))
}

/// Makes the function, in the session's own schema: nobody else sees it, and it goes with the session.
fn definition() -> &'static Arc<str> {
    static TEXT: OnceLock<Arc<str>> = OnceLock::new();
    TEXT.get_or_init(|| {
        let types = parameters().collect::<Vec<_>>().join(", ");
        let lock = LOCK_MATCHING.postgres_text(1);
        let mut first = 1 + LOCK_MATCHING.columns().len();
        let mut writes = String::new();
        for step in EVERYDAY {
            let text = step.postgres_text(first);
            writes.push_str(&format!("if cardinality(${first}) > 0 then {text}; end if; "));
            first += step.columns().len();
        }
        // The cache's mode is the function's alone: other statements are planned anew each time.
        format!(
            "create or replace function pg_temp.commit_at_once({types}) returns boolean \
             language plpgsql set plan_cache_mode = force_generic_plan as $function$ begin \
             if ({lock}) < cardinality($1) then return false; end if; \
             {writes} return true; end $function$"
        )
        .into()
    })
}

/// Prepares a committer's connection.
pub(super) async fn prepare(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    connection.execute(AssertSqlSafe(Arc::clone(definition()))).await.map(|_| ())
}

/// The call for a whole batch, if it has no other changes than everyday ones. It gives 1 if all heads
/// were as expected; else nothing was written.
pub(super) fn call(batch: &[LogCommit]) -> Result<Option<Bound<Postgres>>, StoreError> {
    // Everybody locks heads in the order of their keys.
    let mut parts: Vec<&LogCommit> = batch.iter().collect();
    parts.sort_unstable_by_key(|part| part.key.0);
    let twice = parts.windows(2).any(|two| two[0].key == two[1].key);
    // What cannot be written may belong to a stale log, which loses it anyway.
    let Ok(groups) = changes(&parts) else { return Ok(None) };
    let mut changed = groups.iter().flatten().filter(|table| !table.is_empty()).peekable();
    let tables = EVERYDAY.map(|step| changed.next_if(|table| ptr::eq(table.step, step)));
    if parts.is_empty() || twice || changed.peek().is_some() {
        return Ok(None);
    }
    let mut heads = Table::new(&LOCK_MATCHING);
    for part in parts {
        let (seq, version) = (part.expected_seq, part.expected_version);
        heads.push([part.key.0, seq.cast_signed(), version.cast_signed()].map(Value::Int));
    }
    let mut arguments = PgArguments::default();
    add_columns(&mut arguments, &heads)?;
    for (step, table) in EVERYDAY.into_iter().zip(tables) {
        add_columns(&mut arguments, table.unwrap_or(&Table::new(step)))?;
    }
    Ok(Some((text(), arguments)))
}

fn text() -> SqlStr {
    static TEXT: OnceLock<Arc<str>> = OnceLock::new();
    let text = TEXT.get_or_init(|| {
        let places: Vec<String> =
            (1..=parameters().count()).map(|place| format!("${place}")).collect();
        format!("select pg_temp.commit_at_once({})::int::bigint", places.join(", ")).into()
    });
    AssertSqlSafe(Arc::clone(text)).into_sql_str()
}

#[cfg(test)]
mod tests {
    use sealwire_actors::ports::{LogKey, MemberChange, Position, VaultChange};
    use sealwire_protocol::{AckSet, DeviceKey, Digest};
    use sqlx::{ConnectOptions, Connection};

    use super::super::dialect::Columns;
    use super::super::postgres;
    use super::*;

    fn part(key: i64) -> LogCommit {
        let mut part = LogCommit::new(LogKey(key), 7, 0);
        part.guard_seq = Some(7);
        part.acks.push((DeviceKey([1; 32]), AckSet::up_to(7)));
        part.freed.push((1, 7));
        part.vault = Some(VaultChange::default());
        part
    }

    fn is_one_call(batch: &[LogCommit]) -> bool {
        call(batch).expect("it binds").is_some()
    }

    #[test]
    fn everyday_changes_of_many_logs_are_one_call() {
        assert!(is_one_call(&[part(3), part(1), part(2)]));
        assert!(is_one_call(&[LogCommit::new(LogKey(1), 0, 0)]));
    }

    #[test]
    fn what_the_call_does_not_do_goes_statement_by_statement() {
        assert!(!is_one_call(&[]));
        assert!(!is_one_call(&[part(1), part(2), part(1)]), "the second one is stale");
        let changes: [fn(&mut LogCommit); 4] = [
            |part| part.members.push(MemberChange::Left { device: DeviceKey([1; 32]) }),
            |part| part.floor = Some(Position { seq: 7, chain: Digest::ZERO }),
            |part| part.ended = true,
            |part| part.freed[0].1 = u64::MAX,
        ];
        for change in changes {
            let mut other = part(2);
            change(&mut other);
            assert!(!is_one_call(&[part(1), other]));
        }
    }

    /// They are planned once, so what is planned for tables that are empty or tiny has to do for large
    /// ones.
    #[tokio::test]
    async fn no_statement_of_the_call_reads_a_whole_table() {
        const SERVER: &str = "SEALWIRE_TEST_POSTGRES";
        let url = std::env::var(SERVER).expect("./scripts/test starts a server and names it");
        let server = postgres::options(&url).expect("its URL");
        let name = format!("sealwire_plans_{}", std::process::id());
        let mut beside = server.connect().await.expect("it answers");
        let create = format!("create database {name}");
        beside.execute(AssertSqlSafe(create)).await.expect("a fresh database");
        let mut connection = server.database(&name).connect().await.expect("it answers");
        postgres::MIGRATIONS.run(&mut connection).await.expect("migrated");
        connection.execute("set plan_cache_mode = force_generic_plan").await.expect("set");
        const ONE_OF_EACH: &str = "\
            insert into logs (id, log_type, seq, chain, version, floor_seq, floor_chain, guard_seq, \
                created_at, last_entry_at) values ('', 1, 0, '', 0, 0, '', 0, 0, 0); \
            insert into members (log, device, state, joined_seq, joined_at, reserved_at, ack_floor, \
                ack_ranges) select key, '', 2, 0, 0, 0, 0, '' from logs; \
            insert into bodies (log, seq, body) select key, 1, '' from logs; \
            analyze";
        for sql in ["analyze", ONE_OF_EACH] {
            connection.execute(sqlx::raw_sql(sql)).await.expect("tiny tables");
            for step in [&LOCK_MATCHING].into_iter().chain(EVERYDAY) {
                let text = step.postgres_text(1);
                let nulls = vec!["null"; step.columns().len()].join(", ");
                let explain = format!(
                    "deallocate all; prepare p as {text}; explain (costs off) execute p({nulls})"
                );
                let rows = sqlx::raw_sql(AssertSqlSafe(explain)).fetch_all(&mut connection).await;
                let rows = rows.expect("planned");
                let plan: Vec<&str> = rows
                    .iter()
                    .map(|row| row.maybe_text(0).expect("a text").expect("one"))
                    .collect();
                for (line, next) in plan.iter().zip(plan.iter().skip(1).chain([&""])) {
                    let looks_up = next.contains("Index Cond")
                        || next.contains("TID Cond")
                        || next.contains("Recheck Cond");
                    let list = line.contains("Function Scan") || line.contains("Subquery Scan");
                    assert!(!line.contains("Scan") || list || looks_up, "{line} in {plan:#?}");
                }
            }
        }
        connection.close().await.expect("closed");
        let drop = format!("drop database {name}");
        beside.execute(AssertSqlSafe(drop)).await.expect("dropped");
    }
}
