//! What a run has measured, as a table for people and as JSON for programs.
//!
//! A figure without the command that made it is a rumour, so the arguments and the machine's cores
//! stand beside the figures.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::latency::Percentiles;
use crate::process::Memory;

/// The figures of one subcommand.
pub(crate) trait Figures: Serialize {
    /// The lines of the table.
    fn lines(&self) -> Vec<Line>;

    /// What the relay did that it must never do; none if it did nothing such.
    fn broken_promise(&self) -> Option<String> {
        None
    }
}

/// One line of the table.
pub(crate) struct Line {
    label: String,
    value: String,
}

pub(crate) fn line(label: impl Into<String>, value: impl Into<String>) -> Line {
    Line { label: label.into(), value: value.into() }
}

/// A run: what was asked, and what was measured.
#[derive(Serialize)]
struct Run<'a, A, F> {
    version: &'static str,
    command: &'static str,
    arguments: &'a A,
    cores: usize,
    figures: &'a F,
}

/// Prints the table, writes the JSON if it is asked for, and fails if a promise was broken.
pub(crate) fn publish<A: Serialize, F: Figures>(
    command: &'static str,
    arguments: &A,
    figures: &F,
    json: Option<&Path>,
) -> Result<()> {
    print(&figures.lines())?;
    if let Some(path) = json {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let version = env!("CARGO_PKG_VERSION");
        let run = Run { version, command, arguments, cores, figures };
        let file = File::create(path).with_context(|| format!("writing {}", path.display()))?;
        let mut file = BufWriter::new(file);
        serde_json::to_writer_pretty(&mut file, &run)?;
        writeln!(file)?;
        file.flush()?;
    }
    figures.broken_promise().map_or(Ok(()), |promise| Err(anyhow::anyhow!(promise)))
}

fn print(lines: &[Line]) -> Result<()> {
    let width = lines.iter().map(|line| line.label.chars().count()).max().unwrap_or(0);
    let mut out = std::io::stdout().lock();
    for line in lines {
        writeln!(out, "{:width$}  {}", line.label, line.value)?;
    }
    Ok(())
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
    }
}
