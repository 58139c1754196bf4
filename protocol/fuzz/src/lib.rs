//! What the two frame targets share: whatever the strict decoder reads, rmp-serde reads alike.

use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Reads a whole frame with rmp-serde, which is more generous. `None` where it follows an unknown
/// field's nesting no further.
///
/// # Panics
/// If it refuses the frame: the strict decoder would then have taken what is not MessagePack.
pub fn generous<T: DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(bytes);
    match <(u8, u32, T)>::deserialize(&mut deserializer) {
        Ok((_, _, frame)) => Some(frame),
        Err(rmp_serde::decode::Error::DepthLimitExceeded) => None,
        Err(error) => panic!("rmp-serde refuses it: {error}"),
    }
}

/// Asserts that rmp-serde reads the same frame from the same bytes.
#[macro_export]
macro_rules! read_alike {
    ($enum:ident, $frame:expr, $bytes:expr; $($name:ident)*) => {
        match $frame {
            $( $enum::$name(frame) => {
                if let Some(generous) = $crate::generous::<sealwire_protocol::frame::$name>($bytes) {
                    assert_eq!(*frame, generous);
                }
            } )*
        }
    };
}
