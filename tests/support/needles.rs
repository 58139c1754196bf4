//! Looking for what must not be there, in every form in which it could be.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Fewer characters of base64 would be found in anything that is long enough.
const BASE64_CHARACTERS_MIN: usize = 8;

/// Something that is looked for.
pub(crate) struct Needle {
    pub(crate) name: &'static str,
    forms: Vec<Vec<u8>>,
}

impl Needle {
    /// A text, as it is and in hexadecimal digits.
    pub(crate) fn text(name: &'static str, text: &str) -> Self {
        Self::bytes(name, text.as_bytes())
    }

    /// Bytes, as they are, in hexadecimal digits, as a list of numbers, and in base64, wherever they stand
    /// in what was encoded.
    pub(crate) fn bytes(name: &'static str, bytes: &[u8]) -> Self {
        let list = format!("{bytes:?}");
        let list = list.trim_matches(['[', ']']);
        let mut forms = vec![
            bytes.to_vec(),
            hex::encode(bytes).into_bytes(),
            hex::encode_upper(bytes).into_bytes(),
            list.as_bytes().to_vec(),
            list.replace(", ", ",").into_bytes(),
        ];
        for before in 0..3 {
            let mut whole = vec![0; before];
            whole.extend_from_slice(bytes);
            // The characters that hold bits of these bytes and no others.
            let its = (before * 8).div_ceil(6)..whole.len() * 8 / 6;
            if its.len() >= BASE64_CHARACTERS_MIN {
                forms.push(STANDARD_NO_PAD.encode(&whole)[its.clone()].as_bytes().to_vec());
                forms.push(URL_SAFE_NO_PAD.encode(&whole)[its].as_bytes().to_vec());
            }
        }
        Self { name, forms }
    }

    /// An address, as text. Its four bytes alone would be found in anything that is random.
    pub(crate) fn address(name: &'static str, address: Ipv4Addr) -> Self {
        Self { name, forms: vec![address.to_string().into_bytes()] }
    }

    /// Whether it is in here.
    pub(crate) fn is_in(&self, hay: &[u8]) -> bool {
        self.forms.iter().any(|form| contains(hay, form))
    }
}

/// Whether a part of `hay` is `needle`.
pub(crate) fn contains(hay: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return true };
    let mut rest = hay;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        if rest[at..].starts_with(needle) {
            return true;
        }
        rest = &rest[at + 1..];
    }
    false
}

/// The bytes of every file below a directory, those that are all zero left out page by page.
pub(crate) fn everything_in(directory: &Path) -> Vec<u8> {
    const PAGE: usize = 4096;
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            all.extend(everything_in(&path));
        } else if path.is_file() {
            let bytes = fs::read(&path).unwrap_or_default();
            let pages = bytes.chunks(PAGE).filter(|page| page.iter().any(|byte| *byte != 0));
            all.extend(pages.flatten());
            // What ends one file and what begins the next one are not one thing.
            all.push(0);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_found_in_every_form() {
        let needle = Needle::bytes("seed", &[7, 200, 15]);
        for hay in ["x07c80fx", "x07C80Fx", "[1, 7, 200, 15]", "[7,200,15]"] {
            assert!(needle.is_in(hay.as_bytes()), "{hay}");
        }
        assert!(needle.is_in(&[1, 7, 7, 200, 15, 3]));
        assert!(!needle.is_in(&[7, 200, 7, 15]));
        assert!(!needle.is_in(b""));
        let address = Needle::address("address", Ipv4Addr::new(203, 0, 113, 77));
        assert!(address.is_in(b"from 203.0.113.77:443"));
        assert!(!address.is_in(b"from 203.0.113.7"));
    }

    #[test]
    fn what_is_there_in_base64_is_found_wherever_it_stands() {
        let secret = b"planted\xff\xfe\xfb: forty";
        let needle = Needle::bytes("secret", secret);
        for before in 0..7 {
            for after in 0..4 {
                let mut whole = vec![0x5a; before];
                whole.extend_from_slice(secret);
                whole.extend(std::iter::repeat_n(0xa5, after));
                for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                    assert!(needle.is_in(engine.encode(&whole).as_bytes()), "{before} {after}");
                }
            }
        }
        assert!(!needle.is_in(STANDARD_NO_PAD.encode(b"planted, and another one").as_bytes()));
    }

    #[test]
    fn every_file_is_looked_into() {
        let directory = tempfile::tempdir().expect("a directory");
        fs::create_dir(directory.path().join("below")).expect("made");
        let mut bytes = vec![0; 10_000];
        bytes.extend_from_slice(b"needle");
        fs::write(directory.path().join("below/file"), bytes).expect("written");
        let all = everything_in(directory.path());
        assert!(Needle::text("needle", "needle").is_in(&all));
        assert!(all.len() < 10_000);
    }
}
