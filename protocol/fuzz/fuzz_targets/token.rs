//! A token is good if this key issued exactly these bytes for this purpose and time, and never else.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sealwire_protocol::token::{Claims, Purpose, TOKEN_BYTES, TokenKey};
use sealwire_protocol::{DeviceKey, LogId};

const PURPOSES: [Purpose; 3] = [Purpose::Http, Purpose::Resume, Purpose::Vault];

fn fixed<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    std::array::from_fn(|i| bytes.get(offset + i).copied().unwrap_or(0))
}

fuzz_target!(|bytes: &[u8]| {
    let key = TokenKey::derive(b"the relay's secret");
    // The corpus begins with tokens of another secret.
    for purpose in PURPOSES {
        assert!(key.check(bytes, purpose, 0).is_err());
    }

    let claims = Claims {
        purpose: PURPOSES[usize::from(fixed::<1>(bytes, 0)[0]) % 3],
        device: DeviceKey(fixed(bytes, 1)),
        log: LogId(fixed(bytes, 33)),
        issued: u64::from_be_bytes(fixed(bytes, 49)),
        expires: u64::from_be_bytes(fixed(bytes, 57)),
    };
    let now = u64::from_be_bytes(fixed(bytes, 65));
    let token = key.issue(&claims);
    assert!(key.made(&token));
    for purpose in PURPOSES {
        let good = purpose == claims.purpose && now < claims.expires;
        assert_eq!(key.check(&token, purpose, now).ok(), good.then_some(claims));
    }

    let mut other = token;
    let [offset, change] = fixed(bytes, 73);
    other[usize::from(offset) % TOKEN_BYTES] ^= change;
    if other != token {
        assert!(key.check(&other, claims.purpose, 0).is_err());
    }
    assert!(key.check(&token[..TOKEN_BYTES - 1], claims.purpose, 0).is_err());
    assert!(TokenKey::derive(b"another secret").check(&token, claims.purpose, 0).is_err());
});
