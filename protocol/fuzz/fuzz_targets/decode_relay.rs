//! A relay's frame that decodes is one frame: to this decoder, to rmp-serde, and after encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealwire_protocol::codec::{decode_relay, encode_relay};
use sealwire_protocol::{ErrorCode, RelayFrame};
use sealwire_protocol_fuzz::read_alike;

/// Fields that may be absent and are always written: capabilities, logs, heads.
const ADDED_BYTES_MAX: usize = 16;

fuzz_target!(|bytes: &[u8]| {
    let Ok(envelope) = decode_relay(bytes) else { return };
    let Ok(frame) = envelope.frame else { return };
    let encoded = encode_relay(envelope.request, &frame);
    // A code of a newer relay is read, and written as "unknown".
    let renamed = matches!(&frame, RelayFrame::Error(error) if error.code == ErrorCode::Unknown);
    let added = ADDED_BYTES_MAX + if renamed { ErrorCode::Unknown.name().len() } else { 0 };
    assert!(encoded.len() <= bytes.len() + added, "it grew");
    let again = decode_relay(&encoded).expect("an envelope");
    assert_eq!((again.request, again.frame.as_ref()), (envelope.request, Ok(&frame)));
    assert_eq!(encode_relay(envelope.request, &frame), encoded);
    read_alike!(RelayFrame, &frame, bytes;
        Greeting Welcome Error Appended Subscribed Entry Stubs Drained Floor Heartbeat Members Logs
        Membership Superseded Draining Done Joined Token Snapshots SnapshotChunk QuotaReached
        RecoveryFetched);
});
