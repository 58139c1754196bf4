//! A device's frame that decodes is one frame: to this decoder, to rmp-serde, and after encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealwire_protocol::ClientFrame;
use sealwire_protocol::codec::{decode_client, encode_client};
use sealwire_protocol_fuzz::read_alike;

/// Fields that may be absent and are always written: the capabilities of an `Authenticate`.
const ADDED_BYTES_MAX: usize = 16;

fuzz_target!(|bytes: &[u8]| {
    let Ok(envelope) = decode_client(bytes) else { return };
    let Ok(frame) = envelope.frame else { return };
    let encoded = encode_client(envelope.request, &frame);
    assert!(encoded.len() <= bytes.len() + ADDED_BYTES_MAX, "it grew");
    let again = decode_client(&encoded).expect("an envelope");
    assert_eq!((again.request, again.frame.as_ref()), (envelope.request, Ok(&frame)));
    assert_eq!(encode_client(envelope.request, &frame), encoded);
    read_alike!(ClientFrame, &frame, bytes;
        Authenticate Subscribe Unsubscribe Append AppendBatch Ack ListMembers ListLogs Ping Grant
        CreateTotals JoinTotals LeaveTotals GetVaultToken SetPushToken ListSnapshots
        PutSnapshotChunk GetSnapshotChunk SubscribeFrom);
});
