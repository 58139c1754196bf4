//! Forms of a frame that this crate does not write: which are read all the same, and which are not.

use sealwire_protocol::codec::{DecodeError, decode_client, encode_client};
use sealwire_protocol::limits::BODY_BYTES_MAX;
use sealwire_protocol::{ClientFrame, ErrorCode, LogId, frame};
use serde_json::{Value, json};

use crate::check;
use crate::json::hex;

const LOG: [u8; 16] = [0xff; 16];

/// `"log": <bin 16>`.
fn log_field() -> Vec<u8> {
    [&[0xa3][..], b"log", &[0xc4, 16], &LOG].concat()
}

/// The error code with which the relay answers what it could not decode.
fn answer(error: DecodeError) -> &'static str {
    match error {
        DecodeError::Malformed => ErrorCode::Malformed.name(),
        DecodeError::UnknownFrame => ErrorCode::UnknownFrame.name(),
        DecodeError::TooLong => ErrorCode::TooLarge.name(),
    }
}

fn read(name: &str, frame: &ClientFrame, pieces: &[&[u8]]) -> Value {
    let bytes = pieces.concat();
    let envelope = decode_client(&bytes).expect("an envelope");
    assert_eq!(envelope.frame.as_ref(), Ok(frame), "{name}");
    json!({
        "name": name,
        "bytes": hex(&bytes),
        "read_as": hex(encode_client(envelope.request, frame)),
    })
}

fn refused(name: &str, code: ErrorCode, pieces: &[&[u8]]) -> Value {
    let bytes = pieces.concat();
    let (request, error) = match decode_client(&bytes) {
        Ok(envelope) => (envelope.request, envelope.frame.expect_err(name)),
        Err(error) => (0, error),
    };
    assert_eq!(answer(error), code.name(), "{name}");
    json!({ "name": name, "bytes": hex(&bytes), "answer": code.name(), "request": request })
}

#[test]
fn frame_forms() {
    let field = log_field();
    let unsubscribe: ClientFrame = frame::Unsubscribe { log: LogId(LOG) }.into();
    let subscribe: ClientFrame =
        frame::Subscribe { log: LogId(LOG), cursor: None, acked: None }.into();
    let long_key = [&[0xd9, 3][..], b"log", &[0xc6, 0, 0, 0, 16], &LOG].concat();
    let entry_of = |body: usize| {
        let len = u32::try_from(body).expect("small").to_be_bytes();
        let header = [&[0xa6][..], b"header", &[0xc4, 203], &[0; 203]].concat();
        [&[0x93, 4, 5, 0x81, 0xa5][..], b"entry", &[0x82], &header, &[0xa4], b"body", &[0xc6], &len]
            .concat()
    };
    let cases = [
        read("as it is written", &unsubscribe, &[&[0x93, 3, 5, 0x81], &field]),
        read(
            "longer forms of the numbers, the lengths and the map",
            &unsubscribe,
            &[&[0xdc, 0, 3, 0xcc, 3, 0xce, 0, 0, 0, 5, 0xde, 0, 1], &long_key],
        ),
        read(
            "an unknown field before and after",
            &unsubscribe,
            &[
                &[0x93, 3, 5, 0x83, 0xa1, b'x', 0x92, 0xc0, 0x81, 1, 2],
                &field,
                &[0xa1, b'y', 0xcb],
                &[0x7f; 8],
            ],
        ),
        read(
            "an optional field that is nil",
            &subscribe,
            &[&[0x93, 2, 5, 0x82], &field, &[0xa6], b"cursor", &[0xc0]],
        ),
        refused("an array of two", ErrorCode::Malformed, &[&[0x92, 3, 5]]),
        refused("an array of four", ErrorCode::Malformed, &[&[0x94, 3, 5, 0x81], &field, &[0xc0]]),
        refused(
            "a request id of 2^32",
            ErrorCode::Malformed,
            &[&[0x93, 3, 0xcf, 0, 0, 0, 1, 0, 0, 0, 0, 0x81], &field],
        ),
        refused("a negative request id", ErrorCode::Malformed, &[&[0x93, 3, 0xff, 0x81], &field]),
        refused("type 256", ErrorCode::Malformed, &[&[0x93, 0xcd, 1, 0, 5, 0x80]]),
        refused("a type that nobody knows", ErrorCode::UnknownFrame, &[&[0x93, 100, 5, 0x80]]),
        refused("a type of the relay's", ErrorCode::UnknownFrame, &[&[0x93, 0xcc, 137, 5, 0x80]]),
        refused("fields as an array", ErrorCode::Malformed, &[&[0x93, 3, 5, 0x91, 0xc4, 16], &LOG]),
        refused(
            "a field named by a number",
            ErrorCode::Malformed,
            &[&[0x93, 3, 5, 0x81, 0, 0xc4, 16], &LOG],
        ),
        refused("a field that is missing", ErrorCode::Malformed, &[&[0x93, 3, 5, 0x80]]),
        refused(
            "a field that stands twice",
            ErrorCode::Malformed,
            &[&[0x93, 3, 5, 0x82], &field, &field],
        ),
        refused(
            "bytes as a string",
            ErrorCode::Malformed,
            &[&[0x93, 3, 5, 0x81, 0xa3], b"log", &[0xb0], &[b'a'; 16]],
        ),
        refused(
            "bytes as an array",
            ErrorCode::Malformed,
            &[&[0x93, 3, 5, 0x81, 0xa3], b"log", &[0xdc, 0, 16], &[7; 16]],
        ),
        refused(
            "a log id of 15 bytes",
            ErrorCode::Malformed,
            &[&[0x93, 3, 5, 0x81, 0xa3], b"log", &[0xc4, 15], &LOG[..15]],
        ),
        refused(
            "something after the frame",
            ErrorCode::Malformed,
            &[&[0x93, 3, 5, 0x81], &field, &[0xc0]],
        ),
        refused(
            "a list that claims 257 entries",
            ErrorCode::TooLarge,
            &[&[0x93, 5, 5, 0x81, 0xa7], b"entries", &[0xdc, 1, 1]],
        ),
        refused(
            "a frame that ends early",
            ErrorCode::Malformed,
            &[&entry_of(BODY_BYTES_MAX), b"only these"],
        ),
    ];
    check(
        "frame_forms.json",
        "Device frames in other forms than this crate's: with \"read_as\" they are read like those \
         bytes, with \"answer\" the relay answers an Error of that code to that request id.",
        &cases,
    );
}
