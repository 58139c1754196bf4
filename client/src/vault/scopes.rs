//! Who holds which scope besides the vault's first one, which every device holds.
//!
//! Derived from key entries alone: the first rotation of a scope makes it, its author and recipients
//! hold it, and only they give it to others. So a member of the household cannot slip a key of its own
//! into somebody else's private scope. Nor can it be quicker than its maker: an offer names a scope
//! before there is a key of it, and whoever sees the offer knows the name. So the name says whose it is.
//!
//! Holds always:
//! - a scope is made by the device that its name was drawn for, and by no other;
//! - a rotation or delivery of a scope is believed only if its author holds the scope;
//! - a removed device holds nothing, and a scope that it held wants a rotation.

use std::collections::{BTreeMap, BTreeSet};

use sealwire_protocol::digest::sha256;
use sealwire_protocol::ids::Scope;
use sealwire_protocol::keys::KeyBody;
use sealwire_protocol::{DeviceKey, LogId};
use serde::{Deserialize, Serialize};

use crate::identity::{NoRandomness, random};

/// Most scopes that one device makes: its person's own, and some more should it forget it. There is no
/// bound over all devices, for one that makes up scopes must not take the room of the others.
const MADE_MAX: usize = 4;

/// Bytes of a scope's name that say whose it is: to find another key with the same ones takes 2⁹⁶ tries.
/// The others tell the scopes of one device apart.
const MAKER_LEN: usize = 12;

/// A name for a scope that only `maker` can make in this vault.
pub(crate) fn new_scope(log: LogId, maker: DeviceKey) -> Result<Scope, NoRandomness> {
    let mut scope = Scope(random()?);
    scope.0[..MAKER_LEN].copy_from_slice(&of_maker(log, maker));
    Ok(scope)
}

/// How the names of a device's scopes begin.
fn of_maker(log: LogId, maker: DeviceKey) -> [u8; MAKER_LEN] {
    let named = sha256(&[&b"sealwire private scope v1\0"[..], &log.0, &maker.0].concat());
    let mut beginning = [0; MAKER_LEN];
    beginning.copy_from_slice(&named.0[..MAKER_LEN]);
    beginning
}

/// One scope.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Holding {
    holders: BTreeSet<DeviceKey>,
    /// Whether a holder was removed since the newest rotation.
    stale: bool,
    /// The newest key entry that was taken.
    seq: u64,
    /// Whose first rotation has made it.
    #[serde(default)]
    maker: Option<DeviceKey>,
}

/// All scopes but the first.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Scopes(BTreeMap<Scope, Holding>);

impl Scopes {
    /// Takes a rotation or delivery. Says whether its keys may be believed.
    pub(super) fn given(
        &mut self,
        log: LogId,
        seq: u64,
        sender: DeviceKey,
        body: &KeyBody,
        rotation: bool,
    ) -> bool {
        let known = self.0.contains_key(&body.scope);
        let made = || self.0.values().filter(|it| it.maker == Some(sender)).count();
        let its_own = || body.scope.0.starts_with(&of_maker(log, sender));
        if !known && (!rotation || !its_own() || made() >= MADE_MAX) {
            return false;
        }
        let maker = Some(sender);
        let holding =
            self.0.entry(body.scope).or_insert_with(|| Holding { maker, ..Holding::default() });
        if known && !holding.holders.contains(&sender) {
            return false;
        }
        if seq > holding.seq {
            holding.seq = seq;
            holding.holders.extend(body.keys.iter().map(|sealed| sealed.recipient));
            holding.holders.insert(sender);
            holding.stale &= !rotation;
        }
        true
    }

    /// A device was removed.
    pub(super) fn removed(&mut self, device: DeviceKey) {
        for holding in self.0.values_mut() {
            holding.stale |= holding.holders.remove(&device);
        }
    }

    /// Whether whoever writes next rotates first.
    pub(super) fn wants_rotation(&self, scope: Scope) -> bool {
        self.0.get(&scope).is_some_and(|holding| holding.stale)
    }

    /// Whether a device holds a scope.
    pub(super) fn holds(&self, scope: Scope, device: DeviceKey) -> bool {
        self.0.get(&scope).is_some_and(|holding| holding.holders.contains(&device))
    }
}

#[cfg(test)]
mod tests {
    use sealwire_protocol::bounded::{Bounded, BoundedBytes};
    use sealwire_protocol::keys::SealedKey;

    use super::*;

    const LOG: LogId = LogId([1; 16]);

    fn body(scope: Scope, to: &[u8]) -> KeyBody {
        let sealed = |key: &u8| SealedKey {
            recipient: DeviceKey([*key; 32]),
            enc: [0; 32],
            ciphertext: BoundedBytes::new(Vec::new()).expect("short"),
        };
        let keys = Bounded::new(to.iter().map(sealed).collect()).expect("few");
        KeyBody { scope, epoch: 1, keys }
    }

    #[test]
    fn only_a_holder_gives_a_scope_to_others() {
        let (ada, ben, tablet) = (DeviceKey([1; 32]), DeviceKey([2; 32]), DeviceKey([3; 32]));
        let scope = new_scope(LOG, ada).expect("randomness");
        let body = |to: &[u8]| body(scope, to);
        let mut scopes = Scopes::default();
        assert!(!scopes.given(LOG, 2, ada, &body(&[1]), false), "a delivery makes no scope");
        assert!(scopes.given(LOG, 3, ada, &body(&[1]), true));
        assert!(
            !scopes.given(LOG, 4, ben, &body(&[1, 2]), true),
            "not by one who does not hold it"
        );
        assert!(!scopes.holds(scope, ben));
        assert!(scopes.given(LOG, 5, ada, &body(&[3]), false) && scopes.holds(scope, tablet));
        scopes.removed(tablet);
        assert!(scopes.wants_rotation(scope) && !scopes.given(LOG, 6, tablet, &body(&[3]), true));
        assert!(scopes.given(LOG, 7, ada, &body(&[1]), true) && !scopes.wants_rotation(scope));
        assert!(scopes.holds(scope, ada) && !scopes.holds(scope, tablet));
    }

    #[test]
    fn nobody_makes_the_scope_of_another_one_before_its_maker() {
        let (ada, ben) = (DeviceKey([1; 32]), DeviceKey([2; 32]));
        let scope = new_scope(LOG, ada).expect("randomness");
        let mut scopes = Scopes::default();
        // He has seen her offer, and makes a key that she and he hold.
        assert!(!scopes.given(LOG, 2, ben, &body(scope, &[1, 2]), true));
        assert!(!scopes.given(LogId([2; 16]), 2, ada, &body(scope, &[1]), true), "elsewhere");
        assert!(scopes.given(LOG, 3, ada, &body(scope, &[1]), true));
        assert!(scopes.holds(scope, ada) && !scopes.holds(scope, ben));
    }
}
