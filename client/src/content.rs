//! What is inside a sealed body: a MessagePack map, so that fields can be added.
//!
//! ```text
//! { "payload": bin,              what the app sent
//!   "ledger":  bin,              a message of the group's ledger ([`crate::ledger`]): JSON
//!   "before":  [count, …] }      addressed entries: for each named key, in their sorted order, the
//!                                count of the sender's addressed entry before it to that key, or 0
//! ```
//!
//! A *receipt* has neither payload nor ledger. A device writes one when it has been given a key by a delivery, which
//! the other members do not see: that it can seal under the key tells them that it holds it.
//!
//! `before` makes withholding show. A relay may say that an entry was not addressed to a device; a
//! later entry from the same sender then names a count that the device has never seen.

use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::limits::RECIPIENTS_MAX;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::seal::CONTENT_BYTES_MAX;

/// Longest payload of an app, in bytes: the longest content less the map around it.
pub const PAYLOAD_BYTES_MAX: usize = CONTENT_BYTES_MAX - 1024;

/// Deepest nesting that is followed in a map from another device: fields that are not known may hold
/// anything.
const NESTING_MAX: usize = 16;

const _: () = {
    // Names, markers and the counts of a full list of addressees.
    assert!(64 + RECIPIENTS_MAX * 9 < CONTENT_BYTES_MAX - PAYLOAD_BYTES_MAX);
};

/// The bytes are not a content map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the content is not readable")]
pub struct ContentError;

/// What a body holds. It has no `Debug`: it is what the relay may not see.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Content {
    /// What the app sent.
    #[serde(default, with = "serde_bytes", skip_serializing_if = "Option::is_none")]
    pub payload: Option<Vec<u8>>,
    /// A message of the group's ledger. The app is given what it changes, not the message.
    #[serde(default, with = "serde_bytes", skip_serializing_if = "Option::is_none")]
    pub ledger: Option<Vec<u8>>,
    /// See the module.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub before: Bounded<u64, RECIPIENTS_MAX>,
}

fn is_empty(before: &Bounded<u64, RECIPIENTS_MAX>) -> bool {
    before.is_empty()
}

impl Content {
    /// Whether it only shows that its author holds the key.
    #[must_use]
    pub fn is_receipt(&self) -> bool {
        self.payload.is_none() && self.ledger.is_none()
    }

    /// The bytes to be sealed.
    ///
    /// # Errors
    /// [`ContentError`] if they cannot be written; they always can.
    pub fn encode(&self) -> Result<Vec<u8>, ContentError> {
        rmp_serde::to_vec_named(self).map_err(|_| ContentError)
    }

    /// Reads what was opened. Fields that are not known are passed over.
    ///
    /// # Errors
    /// [`ContentError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, ContentError> {
        let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
        deserializer.set_max_depth(NESTING_MAX);
        Self::deserialize(&mut deserializer).map_err(|_| ContentError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fields_that_are_not_known_are_passed_over() {
        #[derive(Serialize)]
        struct Newer<'a> {
            #[serde(with = "serde_bytes")]
            payload: &'a [u8],
            colour: &'a str,
        }
        let bytes = rmp_serde::to_vec_named(&Newer { payload: b"hello", colour: "red" });
        let content = Content::decode(&bytes.expect("encoded")).expect("readable");
        assert_eq!(content.payload.as_deref(), Some(&b"hello"[..]));
        assert!(content.before.is_empty());
    }

    #[test]
    fn the_fullest_content_fits() {
        let content = Content {
            payload: Some(vec![7; PAYLOAD_BYTES_MAX]),
            ledger: None,
            before: Bounded::new(vec![u64::MAX; RECIPIENTS_MAX]).expect("as many as allowed"),
        };
        let bytes = content.encode().expect("encoded");
        assert!(bytes.len() <= CONTENT_BYTES_MAX);
        assert!(Content::decode(&bytes) == Ok(content));
    }

    #[test]
    fn a_receipt_says_nothing() {
        let said = Content { ledger: Some(b"{}".to_vec()), ..Content::default() };
        let read = Content::decode(&said.encode().expect("encoded")).expect("readable");
        assert!(read == said && !read.is_receipt());
        assert!(Content::default().is_receipt());
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read_without_a_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let _ = Content::decode(&bytes);
        }
    }
}
