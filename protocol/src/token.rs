//! The one token format: who, for what, until when, and an HMAC over it.
//!
//! ```text
//! offset  width  field
//!      0      1  version (1)
//!      1      4  key id: first 4 bytes of SHA-256(token key)
//!      5      1  purpose: 1 http, 2 resume, 3 vault
//!      6     32  device
//!     38     16  log id, or zeros
//!     54      8  issued, seconds since the epoch
//!     62      8  expires, seconds since the epoch
//!     70     32  HMAC-SHA256 over all before it
//!    102
//! ```
//!
//! A token is stateless, so it survives a restart of the relay; to a device it is opaque. The key is
//! HKDF-SHA256(secret, info "sealwire token v1"), so that nothing else made from the secret can
//! stand in for it.

use hkdf::Hkdf;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::ids::{DeviceKey, LogId};

/// Length of a token, in bytes.
pub const TOKEN_BYTES: usize = 102;

const SIGNED_BYTES: usize = 70;
const VERSION: u8 = 1;
const KEY_LABEL: &[u8] = b"sealwire token v1";

/// What a token is good for; checked on every use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Requests of the HTTP API.
    Http,
    /// Opening a WebSocket session without a signature.
    Resume,
    /// Requests to one vault.
    Vault,
}

impl Purpose {
    const fn to_u8(self) -> u8 {
        match self {
            Self::Http => 1,
            Self::Resume => 2,
            Self::Vault => 3,
        }
    }
}

/// What a valid token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claims {
    /// For what.
    pub purpose: Purpose,
    /// For whom.
    pub device: DeviceKey,
    /// For which log; zero when it is for none.
    pub log: LogId,
    /// Seconds since the epoch.
    pub issued: u64,
    /// Seconds since the epoch; not good from then on.
    pub expires: u64,
}

/// Unknown, expired, forged, for another purpose or another device: all the same to whoever asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("token is not valid")]
pub struct TokenError;

/// A key that makes and checks tokens. It has no `Debug`.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct TokenKey {
    key: [u8; 32],
    id: [u8; 4],
}

impl TokenKey {
    /// Derives the key from the operator's secret.
    #[must_use]
    pub fn derive(secret: &[u8]) -> Self {
        let mut key = [0; 32];
        // 32 bytes is below HKDF's limit of 255 blocks, so this cannot fail.
        let _ = Hkdf::<Sha256>::new(None, secret).expand(KEY_LABEL, &mut key);
        let hash: [u8; 32] = Sha256::digest(key).into();
        Self { key, id: [hash[0], hash[1], hash[2], hash[3]] }
    }

    /// Makes a token.
    #[must_use]
    pub fn issue(&self, claims: &Claims) -> [u8; TOKEN_BYTES] {
        let mut token = [0; TOKEN_BYTES];
        token[0] = VERSION;
        token[1..5].copy_from_slice(&self.id);
        token[5] = claims.purpose.to_u8();
        token[6..38].copy_from_slice(&claims.device.0);
        token[38..54].copy_from_slice(&claims.log.0);
        token[54..62].copy_from_slice(&claims.issued.to_be_bytes());
        token[62..70].copy_from_slice(&claims.expires.to_be_bytes());
        let tag = self.mac(&token[..SIGNED_BYTES]).finalize().into_bytes();
        token[SIGNED_BYTES..].copy_from_slice(&tag);
        token
    }

    /// Reads a token if this key made it, it is for `purpose` and it has not expired at `now`
    /// (seconds since the epoch). The tag is compared in constant time before anything is believed.
    ///
    /// # Errors
    /// [`TokenError`], whatever was wrong.
    pub fn check(&self, token: &[u8], purpose: Purpose, now: u64) -> Result<Claims, TokenError> {
        if token.len() != TOKEN_BYTES {
            return Err(TokenError);
        }
        self.mac(&token[..SIGNED_BYTES])
            .verify_slice(&token[SIGNED_BYTES..])
            .map_err(|_| TokenError)?;
        let claims = Claims {
            purpose,
            device: DeviceKey(fixed(token, 6)),
            log: LogId(fixed(token, 38)),
            issued: u64::from_be_bytes(fixed(token, 54)),
            expires: u64::from_be_bytes(fixed(token, 62)),
        };
        if token[0] != VERSION || token[5] != purpose.to_u8() || now >= claims.expires {
            return Err(TokenError);
        }
        Ok(claims)
    }

    /// Whether this key has the id that a token names: which of two keys to try.
    #[must_use]
    pub fn made(&self, token: &[u8]) -> bool {
        token.get(1..5) == Some(&self.id[..])
    }

    pub(crate) fn mac(&self, bytes: &[u8]) -> Hmac<Sha256> {
        // HMAC takes a key of any length, so this cannot fail; an all-zero key would verify nothing
        // that `issue` has made.
        let mut mac = <Hmac<Sha256> as KeyInit>::new(&self.key.into_hmac_key());
        mac.update(bytes);
        mac
    }
}

trait IntoHmacKey {
    fn into_hmac_key(self) -> hmac::digest::Key<Hmac<Sha256>>;
}

impl IntoHmacKey for [u8; 32] {
    fn into_hmac_key(self) -> hmac::digest::Key<Hmac<Sha256>> {
        let mut block = hmac::digest::Key::<Hmac<Sha256>>::default();
        block[..32].copy_from_slice(&self);
        block
    }
}

fn fixed<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[offset..offset + N]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLAIMS: Claims = Claims {
        purpose: Purpose::Resume,
        device: DeviceKey([3; 32]),
        log: LogId::ZERO,
        issued: 1_000,
        expires: 1_600,
    };

    #[test]
    fn a_token_is_good_for_one_purpose_until_it_expires() {
        let key = TokenKey::derive(b"secret");
        let token = key.issue(&CLAIMS);
        assert_eq!(key.check(&token, Purpose::Resume, 1_599), Ok(CLAIMS));
        assert_eq!(key.check(&token, Purpose::Resume, 1_600), Err(TokenError));
        assert_eq!(key.check(&token, Purpose::Http, 1_000), Err(TokenError));
        assert_eq!(
            TokenKey::derive(b"other").check(&token, Purpose::Resume, 1_000),
            Err(TokenError)
        );
    }

    #[test]
    fn a_token_with_any_bit_turned_is_refused() {
        let key = TokenKey::derive(b"secret");
        let token = key.issue(&CLAIMS);
        for bit in 0..TOKEN_BYTES * 8 {
            let mut forged = token;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(key.check(&forged, Purpose::Resume, 1_000), Err(TokenError), "bit {bit}");
        }
    }
}
