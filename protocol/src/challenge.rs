//! HTTP challenges: 32 bytes that a device signs to prove its key, made without storing anything.
//!
//! ```text
//! offset  width  field
//!      0      4  issued, seconds since the epoch
//!      4     12  random
//!     16     16  first half of HMAC-SHA256(token key, "sealwire challenge v1" ‖ 0x00 ‖ all before)
//!     32
//! ```
//!
//! A challenge is good for [`CHALLENGE_LIFETIME`] and for one request; only those that were used are
//! remembered, until they expire. A Totals app signs any bytes that it is given, so everything else
//! that is signed in Sealwire is longer than 32 bytes ([`crate::signing`]). Tokens of the same key
//! begin with a byte 1, the label with an `s`: neither can stand in for the other.

use hmac::Mac;

use crate::limits::CHALLENGE_LIFETIME;
use crate::token::TokenKey;

/// Length of a challenge, in bytes.
pub const CHALLENGE_BYTES: usize = 32;

const MADE_BYTES: usize = 16;
const LABEL: &[u8] = b"sealwire challenge v1\0";

impl TokenKey {
    /// Makes a challenge at `issued` (seconds since the epoch).
    #[must_use]
    pub fn challenge(&self, issued: u32, random: [u8; 12]) -> [u8; CHALLENGE_BYTES] {
        let mut challenge = [0; CHALLENGE_BYTES];
        challenge[..4].copy_from_slice(&issued.to_be_bytes());
        challenge[4..MADE_BYTES].copy_from_slice(&random);
        let tag = self.mac(&[LABEL, &challenge[..MADE_BYTES]].concat()).finalize().into_bytes();
        challenge[MADE_BYTES..].copy_from_slice(&tag[..CHALLENGE_BYTES - MADE_BYTES]);
        challenge
    }

    /// When a challenge that this key made expires, in seconds since the epoch; `None` if it did not
    /// make it, or it has expired at `now`.
    #[must_use]
    pub fn challenge_expiry(&self, challenge: &[u8; CHALLENGE_BYTES], now: u64) -> Option<u64> {
        self.mac(&[LABEL, &challenge[..MADE_BYTES]].concat())
            .verify_truncated_left(&challenge[MADE_BYTES..])
            .ok()?;
        let [a, b, c, d, ..] = *challenge;
        let expires = u64::from(u32::from_be_bytes([a, b, c, d])) + CHALLENGE_LIFETIME.as_secs();
        (now < expires).then_some(expires)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_good_for_a_minute_and_only_for_the_key_that_made_it() {
        let key = TokenKey::derive(b"secret");
        let challenge = key.challenge(1_000, [7; 12]);
        assert_eq!(key.challenge_expiry(&challenge, 1_000), Some(1_060));
        assert_eq!(key.challenge_expiry(&challenge, 1_059), Some(1_060));
        assert_eq!(key.challenge_expiry(&challenge, 1_060), None);
        assert_eq!(TokenKey::derive(b"other").challenge_expiry(&challenge, 1_000), None);
        for bit in 0..CHALLENGE_BYTES * 8 {
            let mut forged = challenge;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.challenge_expiry(&forged, 1_000), None, "bit {bit}");
        }
    }
}
