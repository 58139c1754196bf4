//! A frame has one reading, and whatever has another is refused.

use sealwire_protocol::codec::{DecodeError, decode_client, decode_relay};
use sealwire_protocol::frame::{self, AckState};
use sealwire_protocol::limits::{BODY_BYTES_MAX, FRAME_BYTES_MAX};
use sealwire_protocol::{ClientFrame, LogId};

/// The frame that these pieces make.
fn client(pieces: &[&[u8]]) -> Result<ClientFrame, DecodeError> {
    decode_client(&pieces.concat()).expect("an envelope").frame
}

/// `[3, 1, {"log": <value>}]`: `Unsubscribe`.
fn unsubscribe(value: &[u8]) -> Result<ClientFrame, DecodeError> {
    client(&[&[0x93, 3, 1, 0x81, 0xa3], b"log", value])
}

const LOG: [u8; 16] = [0xff; 16];
const BIN_LOG: &[u8] =
    &[0xc4, 16, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255];

fn good() -> Result<ClientFrame, DecodeError> {
    Ok(frame::Unsubscribe { log: LogId(LOG) }.into())
}

#[test]
fn fields_are_a_map_and_not_an_array_or_a_byte_string() {
    assert_eq!(client(&[&[0x93, 3, 1, 0x81, 0xa3], b"log", BIN_LOG]), good());
    assert_eq!(client(&[&[0x93, 3, 1, 0x91], BIN_LOG]), Err(DecodeError::Malformed));
    for empty in [&[0x90][..], &[0xc4, 0], &[0xc0], &[0xa0], &[0xd4, 1, 0]] {
        assert_eq!(client(&[&[0x93, 9, 1], empty]), Err(DecodeError::Malformed));
    }
    // An entry of a batch is a map as well.
    let entries = client(&[
        &[0x93, 5, 1, 0x81, 0xa7],
        b"entries",
        &[0x91, 0x92, 0xc4, 203],
        &[0; 203],
        &[0xc4, 0],
    ]);
    assert_eq!(entries, Err(DecodeError::Malformed));
}

#[test]
fn a_field_is_named_by_a_string_and_not_by_a_number_or_a_byte_string() {
    assert_eq!(client(&[&[0x93, 3, 1, 0x81, 0], BIN_LOG]), Err(DecodeError::Malformed));
    let named_by_bytes = client(&[&[0x93, 3, 1, 0x81, 0xc4, 3], b"log", BIN_LOG]);
    assert_eq!(named_by_bytes, Err(DecodeError::Malformed));
}

#[test]
fn bytes_are_bin_and_never_a_string_or_an_array_of_numbers() {
    assert_eq!(unsubscribe(BIN_LOG), good());
    // A longer width for the same length is the same value.
    assert_eq!(unsubscribe(&[&[0xc5, 0, 16][..], &LOG].concat()), good());
    // As a string once in UTF-8 and once not; as an array; as an extension type.
    assert_eq!(unsubscribe(&[&[0xb0][..], &[b'a'; 16]].concat()), Err(DecodeError::Malformed));
    assert_eq!(unsubscribe(&[&[0xb0][..], &LOG].concat()), Err(DecodeError::Malformed));
    assert_eq!(unsubscribe(&[&[0xdc, 0, 16][..], &[7; 16]].concat()), Err(DecodeError::Malformed));
    assert_eq!(unsubscribe(&[&[0xd8, 5][..], &LOG].concat()), Err(DecodeError::Malformed));
}

#[test]
fn a_number_is_an_integer_of_any_width_and_nothing_else() {
    let grant = |value: &[u8]| client(&[&[0x93, 10, 0, 0x81, 0xa5], b"bytes", value]);
    for five in [&[5][..], &[0xcc, 5], &[0xcd, 0, 5], &[0xcf, 0, 0, 0, 0, 0, 0, 0, 5], &[0xd0, 5]] {
        assert_eq!(grant(five), Ok(frame::Grant { bytes: 5 }.into()));
    }
    // -1; 5.0; NaN; true; "5"; nil.
    for other in [
        &[0xff][..],
        &[0xca, 0x40, 0xa0, 0, 0],
        &[0xca, 0x7f, 0xc0, 0, 0],
        &[0xc3],
        &[0xa1, b'5'],
        &[0xc0],
    ] {
        assert_eq!(grant(other), Err(DecodeError::Malformed));
    }
}

#[test]
fn a_field_that_stands_twice_is_refused() {
    let twice = client(&[&[0x93, 3, 1, 0x82, 0xa3], b"log", BIN_LOG, &[0xa3], b"log", BIN_LOG]);
    assert_eq!(twice, Err(DecodeError::Malformed));
}

#[test]
fn nothing_may_follow_a_frame() {
    let bytes = [&[0x93, 3, 1, 0x81, 0xa3][..], b"log", BIN_LOG, &[0xc0]].concat();
    assert_eq!(decode_client(&bytes).expect("an envelope").frame, Err(DecodeError::Malformed));
}

#[test]
fn an_absent_option_may_also_be_nil_and_an_absent_list_may_not() {
    let cursor = client(&[&[0x93, 2, 1, 0x82, 0xa3], b"log", BIN_LOG, &[0xa6], b"cursor", &[0xc0]]);
    let expected = frame::Subscribe { log: LogId(LOG), cursor: None, acked: None };
    assert_eq!(cursor, Ok(expected.into()));
    let heads = [&[0x93, 0xcc, 137, 0, 0x82, 0xa3][..], b"now", &[1, 0xa5], b"heads", &[0xc0]];
    let frame = decode_relay(&heads.concat()).expect("an envelope").frame;
    assert_eq!(frame, Err(DecodeError::Malformed));
}

#[test]
fn an_unknown_field_of_any_type_is_passed_over() {
    let values: [&[u8]; 14] = [
        &[0xc0],
        &[0xc3],
        &[0xd1, 0, 1],
        &[0xcb, 0x7f, 0xf8, 0, 0, 0, 0, 0, 0],
        &[0xd9, 2, b'a', b'b'],
        &[0xc4, 2, 0, 0],
        &[0xd4, 1, 0],
        &[0xd8, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[0xc7, 2, 1, 0, 0],
        &[0xc8, 0, 1, 1, 0],
        &[0xc9, 0, 0, 0, 0, 1],
        &[0xdc, 0, 2, 0x91, 0x90, 0x80],
        &[0xde, 0, 1, 0x91, 1, 0x81, 1, 2],
        &[0xdd, 0, 0, 0, 0],
    ];
    for value in values {
        let frame = client(&[&[0x93, 3, 1, 0x82, 0xa1, b'x'], value, &[0xa3], b"log", BIN_LOG]);
        assert_eq!(frame, good(), "{value:02x?}");
        for cut in 1..value.len() {
            let cut = client(&[&[0x93, 3, 1, 0x81, 0xa1, b'x'], &value[..cut]]);
            assert_eq!(cut, Err(DecodeError::Malformed), "{value:02x?}");
        }
    }
    assert_eq!(client(&[&[0x93, 9, 1, 0x81, 0xa1, b'x', 0xc1]]), Err(DecodeError::Malformed));
}

#[test]
fn what_is_longer_than_its_bound_is_too_long_and_not_malformed() {
    let header = [&[0xa6][..], b"header", &[0xc4, 203], &[0; 203]].concat();
    let body = |len: usize| {
        let len_bytes = u32::try_from(len).expect("small").to_be_bytes();
        let body = [&[0xa4][..], b"body", &[0xc6], &len_bytes, &vec![0; len]].concat();
        client(&[&[0x93, 4, 1, 0x81, 0xa5], b"entry", &[0x82], &header, &body])
    };
    assert!(body(BODY_BYTES_MAX).is_ok());
    assert_eq!(body(BODY_BYTES_MAX + 1), Err(DecodeError::TooLong));
    assert_eq!(decode_client(&vec![0; FRAME_BYTES_MAX + 1]), Err(DecodeError::TooLong));
}

#[test]
fn an_ack_names_its_state_as_a_subscribe_does() {
    let state =
        [&[0x82, 0xab][..], b"incarnation", &[1, 0xa5], b"acked", &[0x81, 0xa5], b"floor", &[7]]
            .concat();
    let ack = client(&[&[0x93, 6, 0, 0x82, 0xa3], b"log", BIN_LOG, &[0xa5], b"state", &state]);
    let Ok(ClientFrame::Ack(ack)) = ack else { panic!("{ack:?}") };
    let subscribe =
        client(&[&[0x93, 2, 1, 0x82, 0xa3], b"log", BIN_LOG, &[0xa5], b"acked", &state]);
    let Ok(ClientFrame::Subscribe(subscribe)) = subscribe else { panic!("{subscribe:?}") };
    let state: &AckState = &ack.state;
    assert_eq!((state.incarnation, state.acked.floor), (1, 7));
    assert_eq!(subscribe.acked.as_ref(), Some(state));
}
