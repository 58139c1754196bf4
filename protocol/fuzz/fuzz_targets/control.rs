//! A control body that decodes has exactly these bytes: one membership change has one spelling.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealwire_protocol::Control;
use sealwire_protocol::control::CONTROL_BYTES_MAX;

fuzz_target!(|bytes: &[u8]| {
    let Ok(control) = Control::decode(bytes) else { return };
    assert!(bytes.len() <= CONTROL_BYTES_MAX);
    assert_eq!(control.encode(), bytes);
    assert!(!control.name().is_empty());
});
