//! What a database's error means to the relay, and what may be said of it in a log.
//!
//! The text of a database error can quote values: it is never logged. A code is (an SQLSTATE or a
//! SQLite result code), and no more than once a second, because an outage fails every request.
//!
//! Holds always: every error ends as one of the three [`StoreError`]s.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sealwire_actors::ports::StoreError;
use sqlx::sqlite::SqliteError;
use tracing::{error, warn};

/// Longest silence between two lines about the same outage. A second tells an operator as much as
/// ten thousand lines would.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);

/// Judges the errors of one store, and says so sparingly.
#[derive(Clone)]
pub(super) struct Judge(Arc<Complaints>);

struct Complaints {
    began: Instant,
    /// Milliseconds after `began` at which the last line was written, plus one; 0 for never.
    last: AtomicU64,
}

impl Judge {
    pub(super) fn new() -> Self {
        Self(Arc::new(Complaints { began: Instant::now(), last: AtomicU64::new(0) }))
    }

    /// What `failure` means.
    pub(super) fn of(&self, failure: &sqlx::Error) -> StoreError {
        let meaning = meaning(failure);
        let code = code(failure);
        let (code, reason) = (code.as_deref().unwrap_or("none"), reason(failure));
        match meaning {
            Meaning::Outage => {
                if self.may_complain() {
                    warn!(code, reason, "the database did not answer as it should");
                }
                StoreError::Unavailable
            }
            Meaning::Bug => {
                error!(code, reason, "the database does not know this statement");
                StoreError::Unavailable
            }
            Meaning::Refusal => {
                warn!(code, reason, "the database refused the data");
                StoreError::Refused
            }
            Meaning::Damage => {
                error!(code, reason, "the database holds what it must not");
                StoreError::Corrupt
            }
        }
    }

    /// A deadline has passed.
    pub(super) fn late(&self) -> StoreError {
        if self.may_complain() {
            warn!(code = "none", reason = "deadline", "the database did not answer as it should");
        }
        StoreError::Unavailable
    }

    fn may_complain(&self) -> bool {
        let now = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        let last = self.0.last.load(Ordering::Relaxed);
        let interval = u64::try_from(COMPLAINT_INTERVAL.as_millis()).unwrap_or(u64::MAX);
        (last == 0 || now - (last - 1) >= interval)
            && self
                .0
                .last
                .compare_exchange(last, now + 1, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

/// A row that does not decode, said once.
pub(super) fn corrupt(what: &'static str) -> StoreError {
    error!(what, "the database holds a row that does not decode");
    StoreError::Corrupt
}

/// What lies behind an error.
enum Meaning {
    /// The database is away, busy, full or read-only.
    Outage,
    /// A statement of ours is wrong.
    Bug,
    /// The data does not fit.
    Refusal,
    /// What is stored is not what was stored.
    Damage,
}

fn meaning(failure: &sqlx::Error) -> Meaning {
    if let sqlx::Error::Database(error) = failure {
        let sqlite = error.try_downcast_ref::<SqliteError>().is_some();
        let code = error.code().unwrap_or_default();
        return if sqlite { sqlite_meaning(&code) } else { postgres_meaning(&code) };
    }
    if matches!(
        failure,
        sqlx::Error::Decode(_)
            | sqlx::Error::ColumnDecode { .. }
            | sqlx::Error::ColumnNotFound(_)
            | sqlx::Error::ColumnIndexOutOfBounds { .. }
            | sqlx::Error::TypeNotFound { .. }
            | sqlx::Error::RowNotFound
    ) {
        return Meaning::Damage;
    }
    if matches!(failure, sqlx::Error::Encode(_)) { Meaning::Refusal } else { Meaning::Outage }
}

/// By SQLite's primary result code, the low byte: <https://www.sqlite.org/rescode.html>.
fn sqlite_meaning(code: &str) -> Meaning {
    match code.parse::<u32>().unwrap_or_default() & 0xff {
        // ERROR, MISUSE.
        1 | 21 => Meaning::Bug,
        // TOOBIG, CONSTRAINT, MISMATCH, RANGE.
        18 | 19 | 20 | 25 => Meaning::Refusal,
        // CORRUPT, NOTADB.
        11 | 26 => Meaning::Damage,
        _ => Meaning::Outage,
    }
}

/// By SQLSTATE: <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
fn postgres_meaning(code: &str) -> Meaning {
    match code.get(..2).unwrap_or_default() {
        // Cardinality, data exception, constraint, program limit.
        "21" | "22" | "23" | "54" => Meaning::Refusal,
        // Syntax, unknown names, missing rights.
        "42" => Meaning::Bug,
        // Data or index corrupted; XX000 is any internal error.
        "XX" if code != "XX000" => Meaning::Damage,
        _ => Meaning::Outage,
    }
}

fn code(failure: &sqlx::Error) -> Option<String> {
    failure.as_database_error()?.code().map(std::borrow::Cow::into_owned)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the enum is foreign and open")]
fn reason(failure: &sqlx::Error) -> &'static str {
    match failure {
        sqlx::Error::Database(_) => "answer",
        sqlx::Error::Io(_) => "connection",
        sqlx::Error::Tls(_) => "tls",
        sqlx::Error::PoolTimedOut => "no free connection",
        sqlx::Error::PoolClosed => "closed",
        sqlx::Error::WorkerCrashed => "worker",
        sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } => "decode",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_said_once_a_second_and_not_more() {
        let judge = Judge::new();
        assert!(judge.may_complain());
        assert!(!judge.may_complain());
    }

    #[test]
    fn a_broken_constraint_is_a_refusal_and_a_full_disk_is_an_outage() {
        assert!(matches!(sqlite_meaning("1555"), Meaning::Refusal));
        assert!(matches!(sqlite_meaning("13"), Meaning::Outage));
        assert!(matches!(sqlite_meaning("5"), Meaning::Outage));
        assert!(matches!(sqlite_meaning("267"), Meaning::Damage));
        assert!(matches!(postgres_meaning("23505"), Meaning::Refusal));
        assert!(matches!(postgres_meaning("53100"), Meaning::Outage));
        assert!(matches!(postgres_meaning("25006"), Meaning::Outage));
        assert!(matches!(postgres_meaning("40P01"), Meaning::Outage));
        assert!(matches!(postgres_meaning("XX001"), Meaning::Damage));
        assert!(matches!(postgres_meaning("42P01"), Meaning::Bug));
    }

    #[test]
    fn a_row_that_does_not_decode_is_corrupt_and_a_lost_connection_is_not() {
        let judge = Judge::new();
        assert_eq!(judge.of(&sqlx::Error::RowNotFound), StoreError::Corrupt);
        assert_eq!(judge.of(&sqlx::Error::PoolTimedOut), StoreError::Unavailable);
        assert_eq!(judge.of(&sqlx::Error::WorkerCrashed), StoreError::Unavailable);
    }
}
