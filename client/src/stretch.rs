//! Argon2id: making a guess at a short secret expensive.
//!
//! A passphrase or a PIN is all that stands between a thief of a sealed box and what is in it. What a
//! guess costs stands beside each box, so that it can be raised later; whoever opens a box believes
//! what stands there only within bounds, for it may come from somebody else.

use argon2::{Algorithm, Argon2, Params, Version};
use thiserror::Error;
use zeroize::Zeroizing;

/// What one guess costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Memory, in KiB.
    pub memory_kib: u32,
    /// Passes over that memory.
    pub passes: u32,
    /// Lanes of that memory.
    pub lanes: u32,
}

/// The cost is out of bounds, or the salt is too short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the cost of a guess is out of bounds")]
pub struct CostError;

impl Cost {
    /// RFC 9106's second recommendation, 64 MiB and three passes: about a tenth of a second on a
    /// phone. Also what the Totals app uses.
    pub const USUAL: Self = Self { memory_kib: 64 * 1024, passes: 3, lanes: 4 };

    /// The most that a box may ask for: it must not be able to take the machine down.
    const MAX: Self = Self { memory_kib: 1024 * 1024, passes: 16, lanes: 64 };

    /// Whether somebody else's box may ask for it.
    #[must_use]
    pub fn is_bounded(&self) -> bool {
        self.memory_kib <= Self::MAX.memory_kib
            && self.passes <= Self::MAX.passes
            && self.lanes <= Self::MAX.lanes
    }
}

/// The key that belongs to a secret and a salt. Takes a tenth of a second and more: not for a thread
/// that others wait for.
pub(crate) fn stretch(
    secret: &[u8],
    salt: &[u8],
    cost: Cost,
) -> Result<Zeroizing<[u8; 32]>, CostError> {
    if !cost.is_bounded() {
        return Err(CostError);
    }
    let params = Params::new(cost.memory_kib, cost.passes, cost.lanes, Some(32));
    let mut key = Zeroizing::new([0; 32]);
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params.map_err(|_| CostError)?)
        .hash_password_into(secret, salt, &mut *key)
        .map_err(|_| CostError)?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_cannot_take_the_machine_down() {
        let greedy = [
            Cost { memory_kib: 1024 * 1024 + 1, ..Cost::USUAL },
            Cost { passes: 17, ..Cost::USUAL },
            Cost { lanes: 65, ..Cost::USUAL },
            Cost { memory_kib: 0, ..Cost::USUAL },
            Cost { passes: 0, ..Cost::USUAL },
        ];
        for cost in greedy {
            assert!(stretch(b"secret", &[1; 16], cost).is_err(), "{cost:?}");
        }
    }

    #[test]
    fn a_pin_gives_the_key_of_the_contract() {
        let salt: Vec<u8> = (0..16).collect();
        for (cost, key) in [
            (Cost::USUAL, "f3d65df8ca135f936c3005aa8adec6d002e3bf2cf01e98052ae00385630b94af"),
            (
                Cost { memory_kib: 1024, passes: 1, lanes: 1 },
                "c5699c2168c8ef5beb4bff2b4c2fabe501a3daab342444465901eee93ac805e3",
            ),
        ] {
            let stretched = stretch(b"123456", &salt, cost).expect("in bounds");
            assert_eq!(hex::encode(*stretched), key);
        }
    }
}
