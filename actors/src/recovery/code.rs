//! The recovery code: what finds a recovery vault, and what opens its second seal.
//!
//! Sixteen characters, the last of which is the app's own check: 75 random bits. The relay is given
//! the code with every request and keeps it nowhere, so the type does not print and is wiped.

use zeroize::{Zeroize, ZeroizeOnDrop};

/// Length of a code, in characters.
pub const CODE_CHARACTERS: usize = 16;

/// A code in its wire form.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct RecoveryCode([u8; CODE_CHARACTERS]);

impl RecoveryCode {
    /// Reads a code as the app sends it: digits and upper-case letters without I, L, O and U. The check
    /// character is the app's to check: other clients send values of this shape that have none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; CODE_CHARACTERS] = text.as_bytes().try_into().ok()?;
        let known = |byte: &u8| matches!(byte, b'0'..=b'9' | b'A'..=b'H' | b'J' | b'K' | b'M' | b'N' | b'P'..=b'T' | b'V'..=b'Z');
        bytes.iter().all(known).then_some(Self(bytes))
    }

    /// The characters, for deriving from.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_of_the_app_are_codes() {
        for code in ["0000000000000000", "0123456789ABCDE9", "ZZZZZZZZZZZZZZZH", "TVWXYZABCDEFGHJ9"]
        {
            assert!(RecoveryCode::parse(code).is_some(), "{code}");
        }
    }

    #[test]
    fn anything_else_is_none() {
        for text in [
            "",
            "not-a-code-12345",
            "UUUUUUUUUUUUUUUU",
            "0123456789abcde9",
            "0123-4567-89AB-C",
            "0123456789ABCDE",
            "0123456789ABCDE99",
            "0123456789ABCDEI",
            "0123456789ABCDEÉ",
        ] {
            assert!(RecoveryCode::parse(text).is_none(), "{text}");
        }
    }
}
