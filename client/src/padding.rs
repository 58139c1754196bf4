//! PADMÉ: how much of a length may be seen.
//!
//! A sealed body's length is visible to the relay. Padding to the next power of two would hide more
//! and cost up to twice the bytes; PADMÉ (Nikitin et al., PETS 2019) keeps only the leading bits of
//! the length, so that at most O(log log n) bits leak and the overhead stays below 12 %, and below
//! 3 % for large bodies.
//!
//! ```text
//! length u32, big-endian  ‖  content  ‖  zeros, up to padme(4 + length of the content)
//! ```

use thiserror::Error;

/// Width of the length before the content, in bytes.
pub const LENGTH_BYTES: usize = 4;

/// The bytes are not padded content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the padding is not one")]
pub struct PaddingError;

/// The padded length of `length` bytes.
#[must_use]
pub fn padme(length: usize) -> usize {
    if length < 2 {
        return length;
    }
    // Of the exponent's worth of bits, as many stay significant as the exponent itself has; the
    // rest become zero by rounding up. A length of at least 2 has an exponent of at least 1.
    let exponent = length.ilog2();
    let kept = exponent.ilog2() + 1;
    let mask = (1usize << (exponent - kept)) - 1;
    length.saturating_add(mask) & !mask
}

/// Content with its length before it and zeros after it.
///
/// # Errors
/// [`PaddingError`] if the length does not fit its field.
pub fn pad(content: &[u8]) -> Result<Vec<u8>, PaddingError> {
    let length = u32::try_from(content.len()).map_err(|_| PaddingError)?;
    let padded = padme(LENGTH_BYTES + content.len());
    let mut bytes = Vec::with_capacity(padded);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(content);
    bytes.resize(padded, 0);
    Ok(bytes)
}

/// The content of padded bytes.
///
/// # Errors
/// [`PaddingError`] if the length is not within the bytes, or if what follows the content is not
/// exactly the zeros that [`pad`] writes: nothing travels beside the content.
pub fn unpad(padded: &[u8]) -> Result<&[u8], PaddingError> {
    let (length, rest) = padded.split_first_chunk::<LENGTH_BYTES>().ok_or(PaddingError)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| PaddingError)?;
    let (content, zeros) = rest.split_at_checked(length).ok_or(PaddingError)?;
    if padme(LENGTH_BYTES + length) != padded.len() || zeros.iter().any(|byte| *byte != 0) {
        return Err(PaddingError);
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lengths_are_rounded_as_in_the_paper() {
        for (length, padded) in [
            (0, 0),
            (1, 1),
            (2, 2),
            (8, 8),
            (9, 10),
            (100, 104),
            (1_000, 1_024),
            (9_999, 10_240),
            (100_000, 100_352),
            (262_144, 262_144),
            (262_145, 270_336),
        ] {
            assert_eq!(padme(length), padded, "{length}");
        }
    }

    proptest! {
        #[test]
        fn padding_can_be_removed_and_costs_less_than_an_eighth(
            content in proptest::collection::vec(any::<u8>(), 0..5000),
        ) {
            let padded = pad(&content).expect("short enough");
            prop_assert_eq!(unpad(&padded), Ok(&content[..]));
            prop_assert!(padded.len() * 8 <= (content.len() + LENGTH_BYTES) * 9);
        }

        #[test]
        fn padding_is_idempotent_and_never_shrinks(length in 0usize..1 << 30) {
            let padded = padme(length);
            prop_assert!(padded >= length);
            prop_assert_eq!(padme(padded), padded);
        }

        #[test]
        fn any_bytes_can_be_unpadded_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let _ = unpad(&bytes);
        }
    }

    #[test]
    fn nothing_travels_beside_the_content() {
        let mut padded = pad(&[7; 99]).expect("short enough");
        assert!(padded.len() > 103);
        *padded.last_mut().expect("not empty") = 1;
        assert_eq!(unpad(&padded), Err(PaddingError));
        let mut longer = pad(&[7; 99]).expect("short enough");
        longer.push(0);
        assert_eq!(unpad(&longer), Err(PaddingError));
        assert_eq!(unpad(&[0, 0, 0, 9, 1]), Err(PaddingError));
        assert_eq!(unpad(&[0, 0]), Err(PaddingError));
    }
}
