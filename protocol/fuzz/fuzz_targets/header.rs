//! A header that decodes has exactly these bytes: nobody can sign one header in two ways.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealwire_protocol::header::{AAD_BYTES, HEADER_BYTES, HeaderBytes};

fuzz_target!(|bytes: &[u8]| {
    let Ok(header) = HeaderBytes::from_slice(bytes) else {
        assert_ne!(bytes.len(), HEADER_BYTES);
        return;
    };
    assert_eq!(header.aad(), &bytes[..AAD_BYTES]);
    let Ok(fields) = header.decode() else { return };
    assert_eq!(fields.encode().0, bytes);
});
