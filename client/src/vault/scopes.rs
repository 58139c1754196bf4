//! Who holds which scope besides the vault's first one, which every device holds.
//!
//! Derived from key entries alone: the first rotation of a scope makes it, its author and recipients
//! hold it, and only they give it to others. So a member of the household cannot slip a key of its own
//! into somebody else's private scope.
//!
//! Holds always:
//! - a rotation or delivery of a scope is believed only if its author holds the scope;
//! - a removed device holds nothing, and a scope that it held wants a rotation.

use std::collections::{BTreeMap, BTreeSet};

use sealwire_protocol::DeviceKey;
use sealwire_protocol::ids::Scope;
use sealwire_protocol::keys::KeyBody;
use serde::{Deserialize, Serialize};

/// Most scopes that one device makes: its person's own, and some more should it forget it. There is no
/// bound over all devices, for one that makes up scopes must not take the room of the others.
const MADE_MAX: usize = 4;

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
        seq: u64,
        sender: DeviceKey,
        body: &KeyBody,
        rotation: bool,
    ) -> bool {
        let known = self.0.contains_key(&body.scope);
        let made = || self.0.values().filter(|it| it.maker == Some(sender)).count();
        if !known && (!rotation || made() >= MADE_MAX) {
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

    const SCOPE: Scope = Scope([5; 16]);

    fn body(to: &[u8]) -> KeyBody {
        let sealed = |key: &u8| SealedKey {
            recipient: DeviceKey([*key; 32]),
            enc: [0; 32],
            ciphertext: BoundedBytes::new(Vec::new()).expect("short"),
        };
        let keys = Bounded::new(to.iter().map(sealed).collect()).expect("few");
        KeyBody { scope: SCOPE, epoch: 1, keys }
    }

    #[test]
    fn only_a_holder_gives_a_scope_to_others() {
        let (ada, ben, tablet) = (DeviceKey([1; 32]), DeviceKey([2; 32]), DeviceKey([3; 32]));
        let mut scopes = Scopes::default();
        assert!(!scopes.given(2, ben, &body(&[2]), false), "a delivery makes no scope");
        assert!(scopes.given(3, ada, &body(&[1]), true));
        assert!(!scopes.given(4, ben, &body(&[1, 2]), true), "not by one who does not hold it");
        assert!(!scopes.holds(SCOPE, ben));
        assert!(scopes.given(5, ada, &body(&[3]), false) && scopes.holds(SCOPE, tablet));
        scopes.removed(tablet);
        assert!(scopes.wants_rotation(SCOPE) && !scopes.given(6, tablet, &body(&[3]), true));
        assert!(scopes.given(7, ada, &body(&[1]), true) && !scopes.wants_rotation(SCOPE));
        assert!(scopes.holds(SCOPE, ada) && !scopes.holds(SCOPE, tablet));
    }
}
