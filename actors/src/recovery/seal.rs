//! The second seal of a recovery vault, and the name of its row.
//!
//! ```text
//! row     HMAC-SHA256(HKDF(recovery secret, "sealwire recovery row v1"), code)
//! sealed  nonce 24 ‖ XChaCha20-Poly1305(HKDF(code, "sealwire recovery at rest v1"), vault, device key)
//! vault   layout u8 = 1 ‖ memory u32 ‖ iterations u32 ‖ parallelism u32 ‖ salt length u8 ‖ salt ‖ blob
//! ```
//!
//! The key of the seal comes from the code alone, which the relay keeps nowhere: whoever has the
//! database, even with the relay's secrets, would have to try 75 bits of codes before the first PIN. The
//! row's name takes the recovery secret as well, so that a database alone cannot even tell whether it
//! holds a certain code.
//!
//! Nothing here prints, and keys are wiped.

use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sealwire_protocol::DeviceKey;
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::code::RecoveryCode;
use super::vault::{KdfParams, RecoveryVault};
use crate::ports::{RecoveryId, RecoveryIds, StoreError};

const ROW_LABEL: &[u8] = b"sealwire recovery row v1";
const KEY_ID_LABEL: &[u8] = b"sealwire recovery key id v1";
const SEAL_LABEL: &[u8] = b"sealwire recovery at rest v1";
const LAYOUT: u8 = 1;
const NONCE_BYTES: usize = 24;
const FIXED_BYTES: usize = 14;

/// What names the rows, from one recovery secret of the operator.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct RecoveryKey {
    key: [u8; 32],
    id: u64,
}

impl RecoveryKey {
    /// Derives it from the secret.
    #[must_use]
    pub fn derive(secret: &[u8]) -> Self {
        let (mut key, mut id) = ([0; 32], [0; 8]);
        let from = Hkdf::<Sha256>::new(None, secret);
        // Far below HKDF's limit of 255 blocks, so neither can fail.
        let _ = from.expand(ROW_LABEL, &mut key);
        let _ = from.expand(KEY_ID_LABEL, &mut id);
        Self { key, id: u64::from_be_bytes(id) }
    }

    /// Says, in a row, which secret named it; tells nothing of the secret.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    fn row(&self, code: &RecoveryCode) -> RecoveryId {
        // The key of an HMAC is a whole block of its hash, padded with zeros as HMAC itself does.
        let mut block = Zeroizing::new([0; 64]);
        block[..32].copy_from_slice(&self.key);
        let mut mac = <Hmac<Sha256> as KeyInit>::new((&*block).into());
        mac.update(code.bytes());
        RecoveryId(mac.finalize().into_bytes().into())
    }
}

/// The recovery secret, and the one before it while rows remain that it has named.
#[derive(Clone)]
pub struct RecoveryKeys {
    /// Names new rows.
    pub current: RecoveryKey,
    /// Finds older ones.
    pub previous: Option<RecoveryKey>,
}

impl RecoveryKeys {
    pub(crate) fn rows(&self, code: &RecoveryCode) -> RecoveryIds {
        RecoveryIds {
            current: self.current.row(code),
            previous: self.previous.as_ref().map(|key| key.row(code)),
        }
    }
}

fn sealing_key(code: &RecoveryCode) -> XChaCha20Poly1305 {
    let mut key = Zeroizing::new([0; 32]);
    let _ = Hkdf::<Sha256>::new(None, code.bytes()).expand(SEAL_LABEL, &mut key[..]);
    XChaCha20Poly1305::new((&*key).into())
}

/// Seals a vault that has been checked.
pub(super) fn seal(
    code: &RecoveryCode,
    owner: DeviceKey,
    vault: &RecoveryVault,
) -> Result<Vec<u8>, StoreError> {
    let mut nonce = [0; NONCE_BYTES];
    getrandom::fill(&mut nonce).map_err(|_| StoreError::Unavailable)?;
    let payload = Payload { msg: &encode(vault), aad: &owner.0 };
    let sealed = sealing_key(code).encrypt(&XNonce::from(nonce), payload);
    // It fails only on lengths that no vault has.
    Ok([&nonce[..], &sealed.map_err(|_| StoreError::Refused)?].concat())
}

/// Opens what [`seal`] made.
pub(super) fn open(
    code: &RecoveryCode,
    owner: DeviceKey,
    sealed: &[u8],
) -> Result<RecoveryVault, StoreError> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_BYTES>().ok_or(StoreError::Corrupt)?;
    let payload = Payload { msg: sealed, aad: &owner.0 };
    let opened = sealing_key(code).decrypt(&XNonce::from(*nonce), payload);
    let opened = Zeroizing::new(opened.map_err(|_| StoreError::Corrupt)?);
    decode(&opened).ok_or(StoreError::Corrupt)
}

fn encode(vault: &RecoveryVault) -> Zeroizing<Vec<u8>> {
    let mut bytes =
        Zeroizing::new(Vec::with_capacity(FIXED_BYTES + vault.salt.len() + vault.blob.len()));
    bytes.push(LAYOUT);
    for number in [vault.kdf.memory_kib, vault.kdf.iterations, vault.kdf.parallelism] {
        bytes.extend_from_slice(&number.to_be_bytes());
    }
    // A checked vault's salt is at most 64 bytes long.
    bytes.push(u8::try_from(vault.salt.len()).unwrap_or(u8::MAX));
    bytes.extend_from_slice(&vault.salt);
    bytes.extend_from_slice(&vault.blob);
    bytes
}

fn decode(bytes: &[u8]) -> Option<RecoveryVault> {
    let (fixed, rest) = bytes.split_first_chunk::<FIXED_BYTES>()?;
    let [layout, numbers @ .., salt_length] = fixed;
    if *layout != LAYOUT {
        return None;
    }
    let number = |at: usize| Some(u32::from_be_bytes(numbers.get(at..at + 4)?.try_into().ok()?));
    let kdf = KdfParams { memory_kib: number(0)?, iterations: number(4)?, parallelism: number(8)? };
    let (salt, blob) = rest.split_at_checked((*salt_length).into())?;
    Some(RecoveryVault { salt: salt.to_vec(), kdf, blob: Zeroizing::new(blob.to_vec()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: DeviceKey = DeviceKey([7; 32]);

    fn code(text: &str) -> RecoveryCode {
        RecoveryCode::parse(text).expect("a code")
    }

    fn vault() -> RecoveryVault {
        let kdf = KdfParams { memory_kib: 65_536, iterations: 3, parallelism: 4 };
        RecoveryVault { salt: vec![9; 16], kdf, blob: Zeroizing::new((0..=255).collect()) }
    }

    #[test]
    fn only_the_code_and_the_owner_open_a_seal() {
        let right = code("0123456789ABCDE9");
        let sealed = seal(&right, OWNER, &vault()).expect("sealed");
        assert!(open(&right, OWNER, &sealed).is_ok_and(|opened| opened == vault()));
        assert!(open(&code("0000000000000000"), OWNER, &sealed).is_err());
        assert!(open(&right, DeviceKey([8; 32]), &sealed).is_err());
        assert!(open(&right, OWNER, &sealed[..20]).is_err());
        let mut bent = sealed.clone();
        bent[40] ^= 1;
        assert!(open(&right, OWNER, &bent).is_err());
    }

    #[test]
    fn a_seal_shows_nothing_and_is_never_the_same_twice() {
        let code = code("0123456789ABCDE9");
        let sealed = seal(&code, OWNER, &vault()).expect("sealed");
        assert_ne!(sealed, seal(&code, OWNER, &vault()).expect("sealed"));
        assert!(!sealed.windows(16).any(|part| vault().blob.windows(16).any(|blob| blob == part)));
        assert!(!sealed.windows(16).any(|part| part == vault().salt));
    }

    #[test]
    fn a_row_is_named_by_the_code_and_the_secret() {
        let (old, new) = (RecoveryKey::derive(b"one secret"), RecoveryKey::derive(b"another"));
        assert_ne!(old.id(), new.id());
        let ids = [
            old.row(&code("0123456789ABCDE9")),
            new.row(&code("0123456789ABCDE9")),
            new.row(&code("0000000000000000")),
        ];
        assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2]);
        let keys = RecoveryKeys { current: new, previous: Some(old) };
        let rows = keys.rows(&code("0123456789ABCDE9"));
        assert!(rows.current == ids[1] && rows.previous == Some(ids[0]));
    }
}
