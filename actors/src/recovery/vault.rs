//! What a recovery vault holds, and what it must be to be kept.
//!
//! The relay cannot open it. It checks what it can see: lengths, and that the parameters by which a PIN
//! becomes a key are not weaker than anybody should use, since the device that restores believes them.

use zeroize::Zeroizing;

/// The one version of a recovery vault that the app writes and reads.
pub const VAULT_VERSION: u8 = 1;

/// Shortest salt, in bytes: the app's is 16.
pub const SALT_BYTES_MIN: usize = 16;

/// Longest salt, in bytes; more than that adds nothing.
pub const SALT_BYTES_MAX: usize = 64;

/// Shortest blob, in bytes: a nonce of 12, a tag of 16, and something.
pub const BLOB_BYTES_MIN: usize = 29;

/// Longest blob, in bytes. The app's is 240 and about 110 for each group: 16 KiB is room for a hundred.
pub const BLOB_BYTES_MAX: usize = 16 * 1024;

/// Least memory of Argon2id, in KiB: 19 MiB, the least that OWASP recommends for passwords, with two
/// iterations. The app uses 64 MiB and three.
pub const MEMORY_KIB_MIN: u32 = 19 * 1024;

/// Most memory, in KiB: 2 GiB. No phone could restore with more.
pub const MEMORY_KIB_MAX: u32 = 2 * 1024 * 1024;

/// Fewest iterations: see [`MEMORY_KIB_MIN`].
pub const ITERATIONS_MIN: u32 = 2;

/// Most iterations: minutes on a phone.
pub const ITERATIONS_MAX: u32 = 100;

/// Most lanes; Argon2 itself takes many more, and nobody has the cores.
pub const PARALLELISM_MAX: u32 = 64;

/// How a PIN becomes a key: Argon2id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KdfParams {
    /// In KiB.
    pub memory_kib: u32,
    /// Passes over the memory.
    pub iterations: u32,
    /// Lanes.
    pub parallelism: u32,
}

/// A recovery vault as it is given and given back.
#[derive(Clone, PartialEq, Eq)]
pub struct RecoveryVault {
    /// Salt of the PIN's key.
    pub salt: Vec<u8>,
    /// How the PIN becomes a key.
    pub kdf: KdfParams,
    /// Sealed under that key.
    pub blob: Zeroizing<Vec<u8>>,
}

/// What is wrong with a vault, or with its parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// The salt is too short or too long.
    Salt,
    /// The blob is too short to be one.
    TooShort,
    /// The blob is too long.
    TooLarge,
    /// The parameters are weaker than the floors, or more than any device could do.
    Kdf,
}

impl RecoveryVault {
    /// Looks at everything that can be seen from outside.
    ///
    /// # Errors
    /// [`Unfit`] says what is wrong first.
    pub fn check(&self) -> Result<(), Unfit> {
        if !(SALT_BYTES_MIN..=SALT_BYTES_MAX).contains(&self.salt.len()) {
            return Err(Unfit::Salt);
        }
        if self.blob.len() < BLOB_BYTES_MIN {
            return Err(Unfit::TooShort);
        }
        if self.blob.len() > BLOB_BYTES_MAX {
            return Err(Unfit::TooLarge);
        }
        let KdfParams { memory_kib, iterations, parallelism } = self.kdf;
        let within = (MEMORY_KIB_MIN..=MEMORY_KIB_MAX).contains(&memory_kib)
            && (ITERATIONS_MIN..=ITERATIONS_MAX).contains(&iterations)
            && (1..=PARALLELISM_MAX).contains(&parallelism);
        if within { Ok(()) } else { Err(Unfit::Kdf) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the app makes it.
    const APP: KdfParams = KdfParams { memory_kib: 65_536, iterations: 3, parallelism: 4 };

    fn vault(kdf: KdfParams) -> RecoveryVault {
        RecoveryVault { salt: vec![1; 16], kdf, blob: Zeroizing::new(vec![2; 300]) }
    }

    #[test]
    fn what_the_app_sends_is_fit() {
        assert_eq!(vault(APP).check(), Ok(()));
    }

    #[test]
    fn weak_and_impossible_parameters_are_refused() {
        for kdf in [
            KdfParams { memory_kib: 1024, iterations: 1, parallelism: 1 },
            KdfParams { memory_kib: MEMORY_KIB_MIN - 1, ..APP },
            KdfParams { iterations: 1, ..APP },
            KdfParams { iterations: ITERATIONS_MAX + 1, ..APP },
            KdfParams { parallelism: 0, ..APP },
            KdfParams { parallelism: 65, ..APP },
            KdfParams { memory_kib: u32::MAX, ..APP },
        ] {
            assert_eq!(vault(kdf).check(), Err(Unfit::Kdf), "{kdf:?}");
        }
    }

    #[test]
    fn lengths_have_bounds() {
        let with = |salt, blob| {
            let blob = Zeroizing::new(vec![2; blob]);
            RecoveryVault { salt: vec![1; salt], blob, ..vault(APP) }.check()
        };
        assert_eq!(with(15, 300), Err(Unfit::Salt));
        assert_eq!(with(65, 300), Err(Unfit::Salt));
        assert_eq!(with(16, 28), Err(Unfit::TooShort));
        assert_eq!(with(16, BLOB_BYTES_MAX + 1), Err(Unfit::TooLarge));
        assert_eq!(with(64, BLOB_BYTES_MAX), Ok(()));
    }
}
