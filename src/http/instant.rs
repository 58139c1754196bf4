//! Times as the app reads them: ISO 8601 in UTC, with milliseconds and a `Z`.
//!
//! The app compares join times to the millisecond and takes a time without an offset for local time.

use std::time::{Duration, SystemTime};

/// Latest time that is written, in milliseconds since the epoch: the last of the year 9999.
const LATEST_MS: u64 = 253_402_300_799_999;

/// `ms`, milliseconds since the epoch, such as `2026-01-01T00:00:00.000Z`.
#[must_use]
pub fn iso(ms: u64) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(ms.min(LATEST_MS));
    humantime::format_rfc3339_millis(at).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_milliseconds_and_a_z() {
        assert_eq!(iso(1_767_225_600_000), "2026-01-01T00:00:00.000Z");
        assert_eq!(iso(1_767_225_600_007), "2026-01-01T00:00:00.007Z");
        assert_eq!(iso(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(iso(u64::MAX), "9999-12-31T23:59:59.999Z");
    }
}
