//! Keys and signatures that a lenient verifier takes and everyone here must refuse.
//!
//! They are made from the curve's torsion points. Where a verifier is lenient two devices can see
//! two histories, or one person can hold several names.

use curve25519_dalek::constants::{ED25519_BASEPOINT_POINT, EIGHT_TORSION};
use curve25519_dalek::edwards::{CompressedEdwardsY, EdwardsPoint};
use curve25519_dalek::scalar::Scalar;
use ed25519_dalek::{Verifier, VerifyingKey};
use sealwire_protocol::DeviceKey;
use sealwire_protocol::ids::Signature;
use sealwire_protocol::signing::{admissible, sign, verify};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

use crate::cast::{bytes32, key, signing_key};
use crate::check;
use crate::json::hex;

/// p = 2^255 - 19, little-endian.
const P: [u8; 32] = {
    let mut p = [0xff; 32];
    p[0] = 0xed;
    p[31] = 0x7f;
    p
};

/// L, the order of the base point, little-endian.
const L: [u8; 32] = [
    0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
];

/// The sum of two little-endian numbers.
fn add(a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
    let mut carry = 0;
    std::array::from_fn(|i| {
        let sum = u16::from(a[i]) + u16::from(b[i]) + carry;
        carry = sum >> 8;
        sum.to_le_bytes()[0]
    })
}

fn small(value: u8) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[0] = value;
    bytes
}

fn key_case(name: &str, bytes: [u8; 32], takes: bool) -> Value {
    assert_eq!(admissible(DeviceKey(bytes)).is_ok(), takes, "{name}");
    json!({ "name": name, "key": hex(bytes), "admissible": takes })
}

#[test]
fn device_keys() {
    let good = key("ada");
    let mut cases = vec![key_case("a good key", good.0, true)];
    for (n, point) in EIGHT_TORSION.iter().enumerate() {
        let name = format!("small order: {n} times a point of order eight");
        cases.push(key_case(&name, point.compress().0, false));
    }
    let negative_zero = |mut bytes: [u8; 32]| {
        bytes[31] |= 0x80;
        bytes
    };
    cases.push(key_case("y = 1 with the sign of a zero x", negative_zero(small(1)), false));
    let minus_one = EIGHT_TORSION[4].compress().0;
    cases.push(key_case("y = -1 with the sign of a zero x", negative_zero(minus_one), false));
    cases.push(key_case("y = p, another way to write 0", P, false));
    cases.push(key_case("y = p + 1, another way to write 1", add(P, small(1)), false));

    // Of the few y that have a second spelling, one that is a point of large order.
    let (y, _) = (2..19)
        .filter_map(|y| Some((y, CompressedEdwardsY(small(y)).decompress()?)))
        .find(|(_, point)| !point.is_small_order())
        .expect("a point with a small y");
    let name = format!("y = p + {y}, another way to write {y}, of large order");
    cases.push(key_case(&name, add(P, small(y)), false));

    let off = (2..).find(|y| CompressedEdwardsY(small(*y)).decompress().is_none());
    cases.push(key_case("a y that is on no point", small(off.expect("half of them")), false));

    let point = CompressedEdwardsY(good.0).decompress().expect("a point");
    for (n, torsion) in EIGHT_TORSION.iter().enumerate().skip(1) {
        let name = format!("mixed order: a good key plus {n} times a point of order eight");
        cases.push(key_case(&name, (point + torsion).compress().0, false));
    }
    check(
        "device_keys.json",
        "Whether a key may be a device or a join key: a canonically written point of the prime-order \
         subgroup, and not the identity.",
        &cases,
    );
}

fn hash(r: &[u8; 32], a: &[u8; 32], message: &[u8]) -> Scalar {
    let hash = Sha512::new().chain_update(r).chain_update(a).chain_update(message).finalize();
    Scalar::from_bytes_mod_order_wide(&hash.into())
}

fn signature(r: [u8; 32], s: [u8; 32]) -> Signature {
    Signature([r, s].concat().try_into().expect("64 bytes"))
}

/// Whether the equation without cofactor holds, and nothing else is looked at.
#[expect(clippy::disallowed_methods, reason = "it shows what a lenient verifier takes")]
fn lenient(key: [u8; 32], message: &[u8], signature: &Signature) -> bool {
    VerifyingKey::from_bytes(&key).is_ok_and(|key| {
        key.verify(message, &ed25519_dalek::Signature::from_bytes(&signature.0)).is_ok()
    })
}

fn signature_case(name: &str, key: [u8; 32], message: &[u8], signature: Signature) -> Value {
    let taken = verify(DeviceKey(key), message, &signature).is_ok();
    json!({
        "name": name,
        "key": hex(key),
        "message": hex(message),
        "signature": hex(signature.0),
        "verifies": taken,
        "key_admissible": admissible(DeviceKey(key)).is_ok(),
    })
}

#[test]
fn strict_signatures() {
    let message = b"a message of more than 32 bytes, as all are".as_slice();
    let (ada, public) = (signing_key("ada"), key("ada").0);
    let a = ada.to_scalar();
    let good = sign(&ada, message);
    let (r, s): ([u8; 32], [u8; 32]) =
        (good.0[..32].try_into().expect("32"), good.0[32..].try_into().expect("32"));
    let identity = EIGHT_TORSION[0].compress().0;
    let mut cases = vec![signature_case("a good signature", public, message, good)];
    let mut refuse = |name: &str, key: [u8; 32], signature: Signature, is_lenient: bool| {
        assert!(verify(DeviceKey(key), message, &signature).is_err(), "{name}");
        assert_eq!(lenient(key, message, &signature), is_lenient, "{name}");
        cases.push(signature_case(name, key, message, signature));
    };

    refuse("S + L instead of S", public, signature(r, add(s, L)), false);
    refuse(
        "the identity as key: it verifies every message where keys are not looked at",
        identity,
        signature(identity, [0; 32]),
        true,
    );
    let s_of_zero = hash(&identity, &public, message) * a;
    refuse(
        "R is the identity, by the owner of a good key",
        public,
        signature(identity, s_of_zero.to_bytes()),
        true,
    );
    let order_two = EIGHT_TORSION[4];
    let nonce = Scalar::from_bytes_mod_order(bytes32("a nonce"));
    let mixed_r = (ED25519_BASEPOINT_POINT * nonce + order_two).compress().0;
    let mixed_s = nonce + hash(&mixed_r, &public, message) * a;
    refuse(
        "R of mixed order: only a verifier that multiplies by the cofactor takes it",
        public,
        signature(mixed_r, mixed_s.to_bytes()),
        false,
    );
    let mut other_message = message.to_vec();
    other_message[0] ^= 1;
    refuse("of another message", public, sign(&ada, &other_message), false);
    refuse("all zeros", public, Signature([0; 64]), false);

    // The one that no verifier without cofactor can tell from a good one: that is why a key is
    // looked at when it is admitted.
    let mixed_key: EdwardsPoint = ED25519_BASEPOINT_POINT * a + order_two;
    let mixed_key = mixed_key.compress().0;
    let taken = (0_u8..)
        .find_map(|n| {
            let nonce = Scalar::from_bytes_mod_order(bytes32(&format!("nonce {n}")));
            let r = (ED25519_BASEPOINT_POINT * nonce).compress().0;
            let s = nonce + hash(&r, &mixed_key, message) * a;
            let signature = signature(r, s.to_bytes());
            verify(DeviceKey(mixed_key), message, &signature).is_ok().then_some(signature)
        })
        .expect("every second one verifies");
    assert!(admissible(DeviceKey(mixed_key)).is_err());
    cases.push(signature_case(
        "by a key of mixed order, which is never admitted",
        mixed_key,
        message,
        taken,
    ));
    check(
        "strict_signatures.json",
        "Verification is strict: S < L, neither key nor R of small order, no cofactor, R compared as \
         bytes. A key that is not admissible is refused before its signatures are looked at.",
        &cases,
    );
}
