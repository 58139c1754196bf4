//! What retention does to a log that no actor here holds: the same decisions, on what was just loaded.

use super::state::{Decided, State};
use crate::limits::VaultLimits;
use crate::metrics::Outcomes;
use crate::ports::{LogCommit, LogRecord, Position};

/// No decision of retention names an incarnation, or a limit of vaults.
const NO_INCARNATION: u64 = 0;

/// As [`super::LogMessage::Expire`].
pub(crate) fn expire(
    record: LogRecord,
    up_to: Position,
    before: u64,
) -> Option<(LogCommit, Outcomes)> {
    State::new(record, NO_INCARNATION, VaultLimits::default()).expire(up_to, before).map(parts)
}

/// As [`super::LogMessage::EndIfIdle`].
pub(crate) fn end_if_idle(record: LogRecord, before: u64) -> Option<(LogCommit, Outcomes)> {
    State::new(record, NO_INCARNATION, VaultLimits::default()).end_if_idle(before).map(parts)
}

fn parts(decided: Decided) -> (LogCommit, Outcomes) {
    (decided.commit, decided.outcomes)
}
