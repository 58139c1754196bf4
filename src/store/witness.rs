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
//! Beside it, in `witness.head`, stands the newest head of some log that was committed, written over
//! every second while there are commits, without waiting for the disk: a store that does not hold it
//! is an older copy, though its counter may be the same. What a crash of the machine leaves of that
//! file is an older head, which the store holds too, or nothing that can be read, which says nothing.
//!
//! Holds always: `witness` is replaced whole or not at all; neither file ever runs ahead of the store.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sealwire_actors::ports::{LogKey, Position};
use sealwire_protocol::Digest;
use sealwire_protocol::digest::sha256;

const FIRST_LINE: &str = "sealwire witness v1";
const NAME: &str = "witness";
const HEAD_FIRST_LINE: &str = "sealwire head v1";
const HEAD_NAME: &str = "witness.head";

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

/// A head that a store has committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotedHead {
    /// Which store.
    pub(super) store_id: u64,
    /// Of which log.
    pub(super) log: LogKey,
    /// Where the log ended; seq 0 if it was deleted.
    pub(super) head: Position,
}

impl NotedHead {
    /// Always of one length, so that it can be written over.
    fn to_text(self) -> String {
        let Self { store_id, log, head } = self;
        let (log, seq, chain) = (log.0.cast_unsigned(), head.seq, head.chain.to_hex());
        let text = format!(
            "{HEAD_FIRST_LINE}\nstore {store_id:016x}\nlog {log:016x}\nseq {seq:016x}\nchain {chain}\n"
        );
        let check = sha256(text.as_bytes()).to_hex();
        format!("{text}check {check}\n")
    }

    fn from_text(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != HEAD_FIRST_LINE {
            return None;
        }
        let mut field = |name| lines.next()?.strip_prefix(name);
        let number = |hex: &str| u64::from_str_radix(hex, 16).ok();
        let noted = Self {
            store_id: number(field("store ")?)?,
            log: LogKey(number(field("log ")?)?.cast_signed()),
            head: Position {
                seq: number(field("seq ")?)?,
                chain: Digest::from_hex(field("chain ")?)?,
            },
        };
        // What was half written is not what it says.
        (noted.to_text() == text).then_some(noted)
    }
}

/// The noted head in `directory`; `None` if there is none, or none that is whole.
pub(super) fn read_head(directory: &Path) -> io::Result<Option<NotedHead>> {
    match fs::read(directory.join(HEAD_NAME)) {
        Ok(bytes) => Ok(std::str::from_utf8(&bytes).ok().and_then(NotedHead::from_text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Notes a head in `directory`. It is on the disk when the system likes.
pub(super) fn write_head(directory: &Path, noted: &NotedHead) -> io::Result<()> {
    let path = directory.join(HEAD_NAME);
    let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
    file.write_all(noted.to_text().as_bytes())
}

/// Forgets the noted head in `directory`.
pub(super) fn forget_head(directory: &Path) -> io::Result<()> {
    match fs::remove_file(directory.join(HEAD_NAME)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
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
    fn a_noted_head_is_read_as_it_was_written_and_a_torn_one_says_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(read_head(directory.path()).expect("no file is no error"), None);
        let noted = |log, seq, byte| NotedHead {
            store_id: 0xff,
            log: LogKey(log),
            head: Position { seq, chain: Digest([byte; 32]) },
        };
        let (first, second) = (noted(i64::MAX, 1 << 60, 1), noted(1, 0, 2));
        for noted in [first, second] {
            write_head(directory.path(), &noted).expect("written");
            assert_eq!(read_head(directory.path()).expect("read"), Some(noted));
        }
        let (old, new) = (first.to_text(), second.to_text());
        assert_eq!(old.len(), new.len());
        for cut in 1..new.len() {
            for torn in [new[..cut].to_owned(), format!("{}{}", &new[..cut], &old[cut..])] {
                if torn != old && torn != new {
                    assert_eq!(NotedHead::from_text(&torn), None, "{torn}");
                }
            }
        }
        fs::write(directory.path().join(HEAD_NAME), [0xff; 64]).expect("written");
        assert_eq!(read_head(directory.path()).expect("read"), None);
        forget_head(directory.path()).expect("forgotten");
        forget_head(directory.path()).expect("nothing to forget");
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
