//! A way back after losing a device: its secrets, sealed under a PIN and a recovery code, kept by a
//! relay.
//!
//! The person keeps the code on paper and the PIN in the head. Two formats exist, and the code itself
//! says which one it belongs to ([`code`]):
//!
//! * **Totals**, as the app makes it: the relay is given the code, and only the PIN seals. It brings
//!   back the same key, which is what the members of a `totals` group know a person by.
//! * **native** ([`sealed`]): the relay is given something derived from the code, and the code is
//!   mixed into the key, so that whoever watches the relay cannot try PINs. What it brings back
//!   admits a new key in the old one's place.
//!
//! Holds always:
//! - neither code nor PIN is printed or logged, and the PIN is stored nowhere; the code is kept on the
//!   device in the Totals format alone, where the relay is given it each time;
//! - a recovery vault that somebody else has made is opened or refused, and never believed halfway.

pub(crate) mod calls;
pub mod code;
pub mod sealed;

pub use calls::RecoveryError;
pub use code::{CodeError, Format, RecoveryCode};
pub use sealed::{Contents, SavedGroup, SavedKey, SavedSeed, SealedVault, VaultError};
