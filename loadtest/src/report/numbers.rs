//! Numbers as people read them.

use crate::latency::Percentiles;
use crate::process::Memory;

/// A number of this unit, as short as it can be read.
pub(crate) fn quantity(value: f64, unit: &str) -> String {
    match unit {
        "µs" => duration(value),
        "bytes" if value.abs() < 1024.0 * 1024.0 => format!("{:.2} KiB", value / 1024.0),
        "bytes" => format!("{:.1} MiB", value / (1024.0 * 1024.0)),
        "/s" => rate(value),
        "bytes/s" => format!("{:.1} MiB/s", value / (1024.0 * 1024.0)),
        "cores" => format!("{value:.4} cores"),
        "" => format!("{value:.2}"),
        "copies" => whole(value as u64),
        _ => format!("{value:.2} {unit}"),
    }
}

/// A number with its thousands apart.
pub(crate) fn whole(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() * 2);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rate per second.
pub(crate) fn rate(per_second: f64) -> String {
    format!("{}/s", whole(per_second.round() as u64))
}

pub(crate) fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1024.0 * 1024.0))
}

pub(crate) fn memory(memory: Memory) -> String {
    format!(
        "{} resident, {} of it anonymous",
        mebibytes(memory.resident),
        mebibytes(memory.anonymous)
    )
}

/// Milliseconds, or microseconds where they say more.
pub(crate) fn duration(microseconds: f64) -> String {
    if microseconds < 1000.0 {
        format!("{microseconds:.0} µs")
    } else {
        format!("{:.2} ms", microseconds / 1000.0)
    }
}

pub(crate) fn percentiles(of: &Percentiles) -> String {
    format!(
        "p50 {}, p90 {}, p99 {}, p99.9 {}, max {}",
        duration(of.p50_us),
        duration(of.p90_us),
        duration(of.p99_us),
        duration(of.p999_us),
        duration(of.max_us)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_can_be_read() {
        assert_eq!(whole(0), "0");
        assert_eq!(whole(999), "999");
        assert_eq!(whole(1_000), "1,000");
        assert_eq!(whole(12_345_678), "12,345,678");
        assert_eq!(rate(1499.6), "1,500/s");
        assert_eq!(duration(12.4), "12 µs");
        assert_eq!(duration(1234.0), "1.23 ms");
        assert_eq!(mebibytes(3 * 1024 * 1024 / 2), "1.5 MiB");
        assert_eq!(quantity(2048.0, "bytes"), "2.00 KiB");
        assert_eq!(quantity(1500.0, "µs"), "1.50 ms");
    }
}
