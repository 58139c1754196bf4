//! A key body that decodes survives encoding, does not grow, and names nobody twice.
#![no_main]

use std::collections::BTreeSet;

use libfuzzer_sys::fuzz_target;
use sealwire_protocol::keys::KeyBody;
use sealwire_protocol::limits::NATIVE_MEMBERS_MAX;

fuzz_target!(|bytes: &[u8]| {
    let Ok(body) = KeyBody::decode(bytes) else { return };
    let encoded = body.encode().expect("no longer than what it was read from");
    assert!(encoded.len() <= bytes.len(), "it grew");
    assert_eq!(KeyBody::decode(&encoded).as_ref(), Ok(&body));
    let recipients: BTreeSet<_> = body.keys.iter().map(|key| key.recipient).collect();
    assert_eq!(recipients.len(), body.keys.len());
    assert!(recipients.len() <= NATIVE_MEMBERS_MAX);
});
