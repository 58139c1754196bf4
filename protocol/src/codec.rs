//! Bytes to frames and back: MessagePack, in two steps, type first.
//!
//! The first step reads three small values without allocating. Only then is the frame's own struct
//! decoded, strictly (`strict.rs`), by types that look at every length before they allocate for it.
//! An unknown type is an error of its own, so that the connection can be kept.

use serde::Serialize;
use thiserror::Error;

use crate::frame::{ClientFrame, RelayFrame};
use crate::ids::DeviceKey;
use crate::limits::FRAME_BYTES_MAX;

/// Bytes that a frame has room for from the start if it carries no entry.
const SMALL_BYTES_USUAL: usize = 64;

/// The same for a frame of one entry, beside its body and its recipients: header, signature and what
/// is around them take some 320. Busy relays write little else, and growing copies what is there.
const ENTRY_BYTES_USUAL: usize = 352;

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// Longer than [`FRAME_BYTES_MAX`], or a list, string or byte string in it is longer than its
    /// own bound.
    #[error("frame or field is too long")]
    TooLong,
    /// Not an array of type, request id and fields, or the fields do not fit the type.
    #[error("frame is malformed")]
    Malformed,
    /// The type is not known; the request id is.
    #[error("frame type is not known")]
    UnknownFrame,
}

/// A decoded frame and the request that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<F> {
    /// The device's request id; 0 for none.
    pub request: u32,
    /// The frame, or why there is none: the request id is known all the same.
    pub frame: Result<F, DecodeError>,
}

/// Reads a device's frame.
///
/// # Errors
/// [`DecodeError::TooLong`] or [`DecodeError::Malformed`] if not even the request id can be read.
pub fn decode_client(bytes: &[u8]) -> Result<Envelope<ClientFrame>, DecodeError> {
    let (number, request, fields) = split(bytes)?;
    Ok(Envelope { request, frame: ClientFrame::decode_fields(number, fields) })
}

/// Reads a relay's frame.
///
/// # Errors
/// [`DecodeError::TooLong`] or [`DecodeError::Malformed`] if not even the request id can be read.
pub fn decode_relay(bytes: &[u8]) -> Result<Envelope<RelayFrame>, DecodeError> {
    let (number, request, fields) = split(bytes)?;
    Ok(Envelope { request, frame: RelayFrame::decode_fields(number, fields) })
}

/// Writes a device's frame.
#[must_use]
pub fn encode_client(request: u32, frame: &ClientFrame) -> Vec<u8> {
    let usual = if let ClientFrame::Append(append) = frame {
        ENTRY_BYTES_USUAL + append.entry.body.as_ref().len()
    } else {
        SMALL_BYTES_USUAL
    };
    let mut out = begin(frame.number(), request, usual);
    frame.encode_fields(&mut out);
    out
}

/// Writes a relay's frame.
#[must_use]
pub fn encode_relay(request: u32, frame: &RelayFrame) -> Vec<u8> {
    let usual = if let RelayFrame::Entry(entry) = frame {
        let names = entry.recipients.len() * (DeviceKey::LEN + 2);
        ENTRY_BYTES_USUAL + entry.body.as_ref().len() + names
    } else {
        SMALL_BYTES_USUAL
    };
    let mut out = begin(frame.number(), request, usual);
    frame.encode_fields(&mut out);
    out
}

fn begin(number: u8, request: u32, bytes_usual: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes_usual);
    // Writing to a Vec cannot fail.
    let _ = rmp::encode::write_array_len(&mut out, 3);
    let _ = rmp::encode::write_uint(&mut out, u64::from(number));
    let _ = rmp::encode::write_uint(&mut out, u64::from(request));
    out
}

fn split(bytes: &[u8]) -> Result<(u8, u32, &[u8]), DecodeError> {
    if bytes.len() > FRAME_BYTES_MAX {
        return Err(DecodeError::TooLong);
    }
    let mut rest = bytes;
    let malformed = |_| DecodeError::Malformed;
    if rmp::decode::read_array_len(&mut rest).map_err(|_| DecodeError::Malformed)? != 3 {
        return Err(DecodeError::Malformed);
    }
    let number: u8 = rmp::decode::read_int(&mut rest).map_err(malformed)?;
    let request: u32 = rmp::decode::read_int(&mut rest).map_err(malformed)?;
    Ok((number, request, rest))
}

/// Writes a struct as a map of names, with byte strings as `bin`.
pub(crate) fn encode_value<T: Serialize>(value: &T, out: &mut Vec<u8>) {
    let mut serializer = rmp_serde::Serializer::new(&mut *out).with_struct_map();
    // Every frame is made of types that MessagePack can hold, and writing to a Vec cannot fail.
    let written = value.serialize(&mut serializer);
    debug_assert!(written.is_ok(), "a frame could not be encoded");
}
