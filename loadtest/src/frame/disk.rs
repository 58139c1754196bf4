//! How often a disk was made to keep what it was given, as its driver counts it.
//!
//! This is the one figure that a database cannot embellish: whatever calls itself durable has made
//! the disk flush. It counts for the whole disk, so other programs' flushes are in it: it can show
//! that something is missing, and never that nothing is.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{major, minor};
use serde::Serialize;

/// Length of a sector in `/sys/block/*/stat`, whatever the disk's own is, in bytes.
const SECTOR_BYTES: u64 = 512;

/// A disk whose driver counts.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    stat: PathBuf,
}

/// Counts since the machine started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct DiskCounts {
    pub(crate) writes: u64,
    pub(crate) bytes: u64,
    /// None from a disk that has nothing to flush, or a kernel that does not count it.
    pub(crate) flushes: Option<u64>,
}

impl Disk {
    /// The disk that this directory is on; none if it is on no disk of its own, as in memory.
    pub(crate) fn of(directory: &Path) -> Result<Option<Self>> {
        let device = fs::metadata(directory)
            .with_context(|| format!("the disk of {}", directory.display()))?
            .dev();
        let path = format!("/sys/dev/block/{}:{}", major(device), minor(device));
        let Ok(mut path) = fs::canonicalize(path) else { return Ok(None) };
        // Flushes are counted for the whole disk alone.
        if path.join("partition").exists() {
            path.pop();
        }
        let disk = Self { stat: path.join("stat") };
        Ok(disk.counts().map(|_| disk))
    }

    pub(crate) fn counts(&self) -> Option<DiskCounts> {
        parse(&fs::read_to_string(&self.stat).ok()?)
    }
}

fn parse(stat: &str) -> Option<DiskCounts> {
    let fields: Vec<u64> =
        stat.split_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    Some(DiskCounts {
        writes: *fields.get(4)?,
        bytes: fields.get(6)? * SECTOR_BYTES,
        flushes: fields.get(15).copied().filter(|flushes| *flushes > 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_counts_are_read_with_and_without_flushes() {
        let stat = " 4 5 6 7 70 9 16 11 0 13 14 15 16 17 18 1746 20\n";
        let counts = DiskCounts { writes: 70, bytes: 16 * 512, flushes: Some(1746) };
        assert_eq!(parse(stat), Some(counts));
        let counts = DiskCounts { flushes: None, ..counts };
        assert_eq!(parse(" 4 5 6 7 70 9 16 11 0 13 14\n"), Some(counts));
        assert_eq!(parse("x"), None);
    }
}
