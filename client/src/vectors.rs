//! Keeps the published vectors equal to what the code does.
//!
//! A file is written only when the person who runs the tests asks for it: a test that wrote it on
//! every run could not fail.

use std::path::PathBuf;

use serde_json::Value;

/// Compares `value` with the file `protocol/vectors/<name>`; writes the file instead if the
/// variable `UPDATE_VECTORS` is set.
pub(crate) fn check(name: &str, value: &Value) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../protocol/vectors").join(name);
    if std::env::var_os("UPDATE_VECTORS").is_some() {
        let mut text = serde_json::to_string_pretty(value).expect("a JSON value");
        text.push('\n');
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("a directory");
        std::fs::write(&path, text).expect("a writable file");
        return;
    }
    let text = std::fs::read_to_string(&path).expect("the vector file");
    let published: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(&published, value, "{name} differs from what the code does");
}
