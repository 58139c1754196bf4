//! Looking for what must not be there, in every form in which it could be.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

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

    /// Bytes, as they are, in hexadecimal digits, and as a list of numbers.
    pub(crate) fn bytes(name: &'static str, bytes: &[u8]) -> Self {
        let list = format!("{bytes:?}");
        let list = list.trim_matches(['[', ']']);
        let forms = vec![
            bytes.to_vec(),
            hex::encode(bytes).into_bytes(),
            hex::encode_upper(bytes).into_bytes(),
            list.as_bytes().to_vec(),
            list.replace(", ", ",").into_bytes(),
        ];
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
fn contains(hay: &[u8], needle: &[u8]) -> bool {
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
