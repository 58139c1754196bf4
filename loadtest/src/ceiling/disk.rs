//! What the disk alone does: 8 KiB, and the wait until they are on it; and as many bytes as it takes.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::latency::{Latencies, Percentiles};

/// A page of PostgreSQL, two of SQLite: the least that a commit writes.
const PIECE_BYTES: usize = 8 * 1024;

/// Longest that the file may become, in bytes.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Length of a piece where only the bytes count.
const LARGE_PIECE_BYTES: usize = 1024 * 1024;

/// Large pieces that are made durable together.
const LARGE_PIECES: usize = 16;

/// How long a write takes until it is durable.
#[derive(Serialize)]
pub(super) struct Disk {
    /// Where it makes the file longer: the file system has to write down the new length, too.
    pub(super) append: Percentiles,
    /// Where it does not: a log that is written again from its beginning.
    pub(super) overwrite: Percentiles,
    /// Many bytes in a row, durable every 16 MiB.
    pub(super) bytes_per_second: f64,
}

impl Disk {
    /// Writes that one program makes durable in a second, one after the other: by their mean, because
    /// slow ones count as well.
    pub(super) fn syncs_per_second(&self) -> f64 {
        1e6 / self.overwrite.mean_us
    }
}

/// Writes to a file in this directory, for a third of `time` each.
pub(super) fn measure(directory: &Path, time: Duration) -> Result<Disk> {
    let path = directory.join("fdatasync.tmp");
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(|| format!("making {}", path.display()))?;
    let measured = all(&mut file, time / 3);
    std::fs::remove_file(&path).context("removing the file again")?;
    measured
}

fn all(file: &mut File, time: Duration) -> Result<Disk> {
    let append = write(file, time, FILE_BYTES_MAX)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(0))?;
    let overwrite = write(file, time, length)?;
    let bytes_per_second = write_much(file, time)?;
    Ok(Disk { append, overwrite, bytes_per_second })
}

/// Bytes a second, over what is there and beyond.
fn write_much(file: &mut File, time: Duration) -> Result<f64> {
    let piece = vec![0xa5; LARGE_PIECE_BYTES];
    let begin = Instant::now();
    let (mut bytes, mut position) = (0_u64, FILE_BYTES_MAX);
    while begin.elapsed() < time {
        if position + (LARGE_PIECES * LARGE_PIECE_BYTES) as u64 > FILE_BYTES_MAX {
            file.seek(SeekFrom::Start(0))?;
            position = 0;
        }
        for _ in 0..LARGE_PIECES {
            file.write_all(&piece)?;
        }
        file.sync_data()?;
        position += (LARGE_PIECES * LARGE_PIECE_BYTES) as u64;
        bytes += (LARGE_PIECES * LARGE_PIECE_BYTES) as u64;
    }
    Ok(bytes as f64 / begin.elapsed().as_secs_f64())
}

/// Writes one piece after the other from where the file stands, and from its beginning when `length`
/// is reached.
fn write(file: &mut File, time: Duration, length: u64) -> Result<Percentiles> {
    let piece = [0xa5; PIECE_BYTES];
    let latencies = Latencies::new();
    let end = Instant::now() + time;
    let mut position = 0;
    while Instant::now() < end {
        if position + PIECE_BYTES as u64 > length {
            file.seek(SeekFrom::Start(0))?;
            position = 0;
        }
        let begin = Instant::now();
        file.write_all(&piece)?;
        file.sync_data()?;
        let nanoseconds = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
        latencies.record(&mut vec![nanoseconds]);
        position += PIECE_BYTES as u64;
    }
    Ok(latencies.percentiles())
}
