//! docs/PROTOCOL.md says what the code does: every frame, field and code is in its tables, and every
//! byte of its conversation is in the vectors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use sealwire_protocol::close::CloseReason;
use sealwire_protocol::{ClientFrame, ErrorCode, RelayFrame};
use serde_json::Value;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(path).expect("a file of the repository")
}

/// The text of one numbered section.
fn section(number: u32) -> String {
    let document = read("../docs/PROTOCOL.md");
    let begin = document.find(&format!("\n## {number}. ")).expect("the section");
    let rest = &document[begin + 1..];
    rest.find("\n## ").map_or(rest, |end| &rest[..end]).to_owned()
}

fn vectors(name: &str) -> Vec<Value> {
    let file: Value = serde_json::from_str(&read(&format!("vectors/{name}"))).expect("JSON");
    file["cases"].as_array().expect("cases").clone()
}

/// The cells of a table's row.
fn cells(line: &str) -> Option<Vec<&str>> {
    let cells = line.trim().strip_prefix('|')?.strip_suffix('|')?;
    Some(cells.split('|').map(str::trim).collect())
}

fn name_in(cell: &str) -> Option<String> {
    Some(cell.strip_prefix('`')?.strip_suffix('`')?.to_owned())
}

#[test]
fn every_frame_stands_in_the_document_with_its_number_and_its_fields() {
    let mut document: BTreeMap<String, (u8, BTreeSet<String>)> = BTreeMap::new();
    let section = section(14);
    let mut frame = String::new();
    for row in section.lines().filter_map(cells) {
        let Some(name) = row
            .get(1)
            .and_then(|cell| name_in(cell))
            .or_else(|| row.first().is_some_and(|cell| cell.is_empty()).then(|| frame.clone()))
        else {
            continue;
        };
        let entry = document.entry(name.clone()).or_default();
        if let Ok(number) = row[0].parse() {
            entry.0 = number;
        }
        entry.1.extend(row.get(2).and_then(|cell| name_in(cell)));
        frame = name;
    }
    // Its fields are in a table of their own.
    document.remove("Error").expect("a row for errors");

    let mut code: BTreeMap<String, (u8, BTreeSet<String>)> = BTreeMap::new();
    for (number, name) in ClientFrame::TABLE.iter().chain(RelayFrame::TABLE) {
        code.insert((*name).to_owned(), (*number, BTreeSet::new()));
    }
    for case in [vectors("client_frames.json"), vectors("relay_frames.json")].concat() {
        let name = case["frame"].as_str().expect("a name");
        let fields = case["fields"].as_object().expect("fields").keys().cloned();
        code.get_mut(name).expect("a known frame").1.extend(fields);
    }
    let (_, error_fields) = code.remove("Error").expect("a frame");
    assert_eq!(document, code);

    let rows = self::section(15);
    let rows: BTreeSet<String> =
        rows.lines().filter_map(cells).filter_map(|row| name_in(row[0])).collect();
    for field in &error_fields {
        assert!(rows.contains(field), "{field} of Error is not in section 15");
    }
}

#[test]
fn every_error_code_stands_in_the_document() {
    let section = section(15);
    let rows: BTreeSet<String> =
        section.lines().filter_map(cells).filter_map(|row| name_in(row[0])).collect();
    for code in ErrorCode::ALL {
        assert!(rows.contains(code.name()), "{} is not in section 15", code.name());
    }
}

#[test]
fn every_close_code_stands_in_the_document() {
    let section = section(2);
    let rows: BTreeSet<(String, String)> = section
        .lines()
        .filter_map(cells)
        .filter_map(|row| Some((row[0].to_owned(), name_in(row.get(1)?)?)))
        .collect();
    let code: BTreeSet<(String, String)> = CloseReason::ALL
        .iter()
        .map(|reason| (reason.code().to_string(), reason.name().to_owned()))
        .collect();
    assert_eq!(rows, code);
}

#[test]
fn every_byte_of_the_conversation_is_in_the_vectors() {
    let frames: BTreeSet<String> = vectors("conversation.json")
        .iter()
        .map(|case| case["bytes"].as_str().expect("bytes").to_owned())
        .collect();
    let section = section(18);
    let mut shown = 0;
    for block in section.split("```").skip(1).step_by(2) {
        let bytes: String =
            block.lines().filter_map(|line| line.split_whitespace().next()).collect();
        assert!(frames.contains(&bytes), "no frame of the conversation has these bytes: {bytes}");
        shown += 1;
    }
    assert!(shown > 0, "the section shows no frame");
}
