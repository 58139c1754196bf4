//! The files in `protocol/vectors/` say what this crate does, byte for byte.
//!
//! Every file is made again from the code and compared with what is checked in, so neither can
//! change alone. `UPDATE_VECTORS=1` writes the files instead. What the code makes is also read back
//! where there is something to read, and everything that a file says is refused is shown to be
//! refused.

mod bodies;
mod cast;
mod conversation;
mod document;
mod forms;
mod frames;
mod json;
mod names;
mod proofs;
mod refusals;
mod sealing;
mod tables;

use std::path::PathBuf;

use serde_json::{Map, Value};

/// Compares a vector file with what the code makes now, or writes it.
fn check(name: &str, about: &str, cases: &[Value]) {
    check_with(name, about, &[], cases);
}

/// The same for a file that says more than its cases.
fn check_with(name: &str, about: &str, more: &[(&str, Value)], cases: &[Value]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors").join(name);
    let mut made = Map::new();
    made.insert("about".to_owned(), about.into());
    made.extend(more.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    made.insert("cases".to_owned(), cases.into());
    let made = Value::Object(made);
    let made = json::text(&made) + "\n";
    if std::env::var_os("UPDATE_VECTORS").is_some() {
        std::fs::write(&path, made).expect("the vectors are writable");
        return;
    }
    let kept = std::fs::read_to_string(&path).expect("a vector file");
    if made == kept {
        return;
    }
    let line = made.lines().zip(kept.lines()).position(|(made, kept)| made != kept);
    let line = line.unwrap_or_else(|| made.lines().count().min(kept.lines().count()));
    panic!(
        "{name} differs from the code at line {}: the file has {:?}, the code makes {:?}",
        line + 1,
        kept.lines().nth(line),
        made.lines().nth(line),
    );
}
