//! The recovery code: 75 random bits that a person can write down, read aloud and type again.
//!
//! Fifteen characters of Crockford's alphabet and one that checks them, shown as four groups of four.
//! The check is the sum of the fifteen characters' places in the alphabet, modulo 32: as the Totals
//! app has it. In a code of the native format sixteen is added, so that each program refuses the
//! other's code before anything is sent: *a native code that is sent to a relay as it stands would
//! give away what the format is there to keep.*

use thiserror::Error;
use zeroize::Zeroizing;

use crate::identity::{NoRandomness, random};

/// Crockford's alphabet: no I, L, O and U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Characters of a code, the check included.
pub const CODE_CHARACTERS: usize = 16;

/// What is added to the check of a native code.
const NATIVE_OFFSET: usize = 16;

/// Longest text that is read as a code, in bytes: spaces and dashes are allowed.
const TEXT_BYTES_MAX: usize = 64;

/// Which format a code belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As the Totals app makes it.
    Totals,
    /// The SDK's own.
    Native,
}

/// Why a text is not a recovery code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CodeError {
    /// It has another length, or a character that no code has.
    #[error("a recovery code has 16 letters and digits")]
    Malformed,
    /// The last character does not fit the others: one of them is wrong.
    #[error("the recovery code is mistyped: its last character does not fit the others")]
    Check,
}

/// A recovery code. It has no `Debug` and is wiped.
#[derive(Clone)]
pub struct RecoveryCode {
    characters: Zeroizing<[u8; CODE_CHARACTERS]>,
    format: Format,
}

impl RecoveryCode {
    /// Makes a new one.
    ///
    /// # Errors
    /// [`NoRandomness`].
    pub fn generate(format: Format) -> Result<Self, NoRandomness> {
        let bytes = Zeroizing::new(random::<{ CODE_CHARACTERS - 1 }>()?);
        Ok(Self::from_places(&Zeroizing::new(bytes.map(|byte| byte % 32)), format))
    }

    /// Reads what a person has typed: in capitals or not, with spaces and dashes, with I and L for
    /// one and O for zero.
    ///
    /// # Errors
    /// See [`CodeError`].
    pub fn parse(text: &str) -> Result<Self, CodeError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(CodeError::Malformed);
        }
        let mut places = Zeroizing::new([0; CODE_CHARACTERS]);
        let mut count = 0;
        for character in text.chars().filter(|c| !c.is_whitespace() && *c != '-') {
            let place = place(character).ok_or(CodeError::Malformed)?;
            *places.get_mut(count).ok_or(CodeError::Malformed)? = place;
            count += 1;
        }
        let (check, rest) =
            places.split_last_chunk::<1>().map_or((0, &[][..]), |(rest, [last])| (*last, rest));
        let rest: &[u8; CODE_CHARACTERS - 1] = rest.try_into().map_err(|_| CodeError::Malformed)?;
        if count != CODE_CHARACTERS {
            return Err(CodeError::Malformed);
        }
        [Format::Totals, Format::Native]
            .into_iter()
            .find(|format| check_of(rest, *format) == check)
            .map(|format| Self::from_places(rest, format))
            .ok_or(CodeError::Check)
    }

    /// Which format it belongs to.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// As a person reads it: four groups of four.
    #[must_use]
    pub fn shown(&self) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::with_capacity(CODE_CHARACTERS + 3));
        for (at, character) in self.characters.iter().enumerate() {
            if at > 0 && at % 4 == 0 {
                text.push('-');
            }
            text.push(char::from(*character));
        }
        text
    }

    /// Its sixteen characters.
    pub(crate) fn bytes(&self) -> &[u8; CODE_CHARACTERS] {
        &self.characters
    }

    /// Its sixteen characters, as the app sends them.
    pub(crate) fn text(&self) -> Zeroizing<String> {
        Zeroizing::new(self.characters.iter().map(|character| char::from(*character)).collect())
    }

    /// The code of these fifteen places in the alphabet, each below 32.
    pub(super) fn from_places(places: &[u8; CODE_CHARACTERS - 1], format: Format) -> Self {
        let mut characters = Zeroizing::new([0; CODE_CHARACTERS]);
        for (character, place) in characters.iter_mut().zip(places) {
            *character = ALPHABET[usize::from(place % 32)];
        }
        characters[CODE_CHARACTERS - 1] = ALPHABET[usize::from(check_of(places, format))];
        Self { characters, format }
    }
}

fn check_of(places: &[u8; CODE_CHARACTERS - 1], format: Format) -> u8 {
    let sum: usize = places.iter().map(|place| usize::from(*place)).sum();
    let offset = if format == Format::Native { NATIVE_OFFSET } else { 0 };
    // Below 32, so it fits a byte.
    ((sum + offset) % 32) as u8
}

fn place(character: char) -> Option<u8> {
    let character = match character.to_ascii_uppercase() {
        'I' | 'L' => '1',
        'O' => '0',
        other => other,
    };
    let place = ALPHABET.iter().position(|known| char::from(*known) == character)?;
    u8::try_from(place).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_of_the_contract_are_codes_of_the_app() {
        for text in ["0000000000000000", "0123456789ABCDE9", "ZZZZZZZZZZZZZZZH", "TVWXYZABCDEFGHJ9"]
        {
            let code = RecoveryCode::parse(text).expect("a code");
            assert_eq!(code.format(), Format::Totals, "{text}");
            assert_eq!(*code.text(), text);
        }
        let code = RecoveryCode::parse("0123456789ABCDE9").expect("a code");
        assert_eq!(*code.shown(), "0123-4567-89AB-CDE9");
    }

    #[test]
    fn a_code_is_read_as_people_type_it() {
        let read = |text: &str| RecoveryCode::parse(text).map(|code| code.text().to_string());
        assert_eq!(read(" 0123-4567-89ab-cde9 "), Ok("0123456789ABCDE9".to_owned()));
        assert_eq!(read("ol23 4567 89ab cde9"), Ok("0123456789ABCDE9".to_owned()));
        assert_eq!(read("oi23 4567 89AB CDE9"), Ok("0123456789ABCDE9".to_owned()));
        for text in
            ["", "not-a-code-12345", "UUUUUUUUUUUUUUUU", "0123456789ABCDE", "0123456789ABCDE99"]
        {
            assert_eq!(read(text), Err(CodeError::Malformed), "{text}");
        }
        assert_eq!(read(&"0".repeat(100)), Err(CodeError::Malformed));
        assert_eq!(read("0123456789ABCDE8"), Err(CodeError::Check));
    }

    #[test]
    fn a_native_code_is_none_of_the_app() {
        let code = RecoveryCode::generate(Format::Native).expect("randomness");
        let read = RecoveryCode::parse(&code.shown()).expect("a code");
        assert_eq!(read.format(), Format::Native);
        let places = code.bytes()[..15]
            .iter()
            .map(|byte| usize::from(place(char::from(*byte)).expect("one")));
        let app = ALPHABET[places.sum::<usize>() % 32];
        assert_ne!(code.bytes()[15], app);
    }

    #[test]
    fn two_neighbours_that_are_another_character_are_noticed() {
        let code = RecoveryCode::generate(Format::Native).expect("randomness");
        let text = code.text();
        for at in 0..CODE_CHARACTERS {
            let mut typed = text.as_bytes().to_vec();
            let place = ALPHABET.iter().position(|known| *known == typed[at]).expect("one");
            typed[at] = ALPHABET[(place + 1) % 32];
            let typed = String::from_utf8(typed).expect("ASCII");
            assert_eq!(RecoveryCode::parse(&typed).err(), Some(CodeError::Check));
        }
    }
}
