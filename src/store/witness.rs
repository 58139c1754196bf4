//! The witness: a small file in the data directory that remembers how far the store had come.
//!
//! A store that is put back from an older copy looks whole. Only something outside it can tell: the
//! witness keeps the store's id and the highest value of its counter, which is raised at every
//! start, every hour and at every orderly end, in the store first and here afterwards. A store whose
//! counter is below the witness's is an older copy.
//!
//! ```text
//! sealwire witness v1
//! store 8f03…   (16 hex digits)
//! counter 17
//! ```
//!
//! Holds always: the file is replaced whole or not at all, and never runs ahead of the store.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

const FIRST_LINE: &str = "sealwire witness v1";
const NAME: &str = "witness";

/// What the file says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Witness {
    /// Which store: another one's witness says nothing about this one.
    pub(super) store_id: u64,
    /// The highest value of that store's counter.
    pub(super) counter: u64,
}

/// Reads the witness in `directory`; `None` if there is none.
pub(super) fn read(directory: &Path) -> io::Result<Option<Witness>> {
    let text = match fs::read_to_string(directory.join(NAME)) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    parse(&text).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

fn parse(text: &str) -> Option<Witness> {
    let mut lines = text.lines();
    if lines.next()? != FIRST_LINE {
        return None;
    }
    let store_id = u64::from_str_radix(lines.next()?.strip_prefix("store ")?, 16).ok()?;
    let counter = lines.next()?.strip_prefix("counter ")?.parse().ok()?;
    Some(Witness { store_id, counter })
}

/// Replaces the witness in `directory`. On return it is on the disk.
pub(super) fn write(directory: &Path, witness: &Witness) -> io::Result<()> {
    let path = directory.join(NAME);
    let fresh: PathBuf = directory.join(format!("{NAME}.new"));
    let mut file = File::create(&fresh)?;
    let Witness { store_id, counter } = witness;
    file.write_all(format!("{FIRST_LINE}\nstore {store_id:016x}\ncounter {counter}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&fresh, &path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_witness_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(read(directory.path()).expect("no file is no error"), None);
        for counter in [1, u64::MAX] {
            let witness = Witness { store_id: 0x00ff_0000_0000_0001, counter };
            write(directory.path(), &witness).expect("written");
            assert_eq!(read(directory.path()).expect("read"), Some(witness));
        }
        let names: Vec<_> = fs::read_dir(directory.path()).expect("listed").collect();
        assert_eq!(names.len(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_witness_that_is_not_one_is_an_error_and_not_silence() {
        let directory = tempfile::tempdir().expect("a directory");
        for text in ["", "sealwire witness v1\nstore 1\n", "other\nstore 1\ncounter 1\n"] {
            fs::write(directory.path().join(NAME), text).expect("written");
            let error = read(directory.path()).expect_err("malformed");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }
}
