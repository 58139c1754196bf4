//! What is signed or authenticated: entries, the handshake, joining and enrolling, tokens.

use sealwire_protocol::codec::{decode_relay, encode_relay};
use sealwire_protocol::digest::{entry_digest, sha256};
use sealwire_protocol::ids::Signature;
use sealwire_protocol::signing::{
    auth_message, enrol_message, entry_message, join_message, relay_message, sign,
    succession_message, verify,
};
use sealwire_protocol::token::{Claims, Purpose, TokenKey};
use sealwire_protocol::{Audience, Digest, Header, Kind, LogId, LogType, frame, handshake};
use serde_json::{Value, json};

use crate::cast::{NOW, bytes32, found, key, seed, sign_entry, signing_key};
use crate::check;
use crate::json::{hex, int};

/// A seed, its key, a message and the signature that they make.
fn signed(name: &str, signer: &str, message: &[u8], signature: &Signature) -> Value {
    assert_eq!(verify(key(signer), message, signature), Ok(()));
    json!({
        "name": name,
        "seed": hex(seed(signer)),
        "key": hex(key(signer).0),
        "message": hex(message),
        "signature": hex(signature.0),
    })
}

/// Adds what a case has beside the signature.
fn with(mut case: Value, more: &[(&str, Value)]) -> Value {
    let names = case.as_object_mut().expect("a case");
    for (name, value) in more {
        names.insert((*name).to_owned(), value.clone());
    }
    case
}

#[test]
fn entry_signatures() {
    let founded = found(LogType::Group, "ada");
    let second = Header {
        log: founded.log,
        sender: key("ada"),
        count: 2,
        prev: entry_digest(&founded.header),
        kind: Kind::Quiet,
        audience: Audience::All,
        seen: founded.head,
        body: sha256(b"a sealed body"),
    }
    .encode();
    let cases =
        [("a first entry", founded.header), ("a second entry", second)].map(|(name, header)| {
            let digest = entry_digest(&header);
            let signature = sign_entry("ada", &header);
            let case = signed(name, "ada", &entry_message(digest), &signature);
            with(case, &[("header", hex(header.0)), ("entry_digest", hex(digest.0))])
        });
    check(
        "entry_signatures.json",
        "An author signs \"sealwire entry signature v1\" || 0x00 || entry digest with the Ed25519 key \
         of this seed (RFC 8032).",
        &cases,
    );
}

/// The greeting that the handshake and the conversation begin with.
pub(crate) fn greeting(connection: &str) -> frame::Greeting {
    frame::Greeting {
        challenge: Digest(bytes32(&format!("challenge of the relay to {connection}"))),
        relay: key("relay"),
        versions: (1, 1),
        capabilities: frame::Names::default(),
        now: NOW,
    }
}

#[test]
fn handshakes() {
    let cases: Vec<Value> = ["ada", "ben"]
        .iter()
        .map(|device| {
            let greeting_frame = encode_relay(0, &greeting(device).into());
            assert!(decode_relay(&greeting_frame).is_ok_and(|envelope| envelope.frame.is_ok()));
            let greeting_digest = sha256(&greeting_frame);
            let challenge = Digest(bytes32(&format!("challenge of {device} to the relay")));

            let proof = handshake::prove_device(&signing_key(device), &greeting_frame);
            assert_eq!(handshake::check_device(key(device), &greeting_frame, &proof), Ok(()));
            let device_proof =
                signed("device", device, &auth_message(greeting_digest, key(device)), &proof);

            let relay_key = signing_key("relay");
            let proof = handshake::prove_relay(&relay_key, &greeting_frame, key(device), challenge);
            let message = relay_message(greeting_digest, key(device), challenge);
            let relay_proof = signed("relay", "relay", &message, &proof);
            json!({
                "name": format!("{device} connects"),
                "greeting_frame": hex(&greeting_frame),
                "greeting_sha256": hex(greeting_digest.0),
                "device_challenge": hex(challenge.0),
                "device_proof": device_proof,
                "relay_proof": relay_proof,
            })
        })
        .collect();
    check(
        "handshakes.json",
        "The device signs \"sealwire auth v1\" || 0x00 || SHA-256(greeting frame as received) || \
         device key. The relay signs \"sealwire relay v1\" || 0x00 || the same digest || device key || \
         the challenge in the device's Authenticate.",
        &cases,
    );
}

#[test]
fn admissions() {
    let (group, vault) = (found(LogType::Group, "ada").log, found(LogType::Vault, "ada").log);
    let join = join_message(group, key("ben"));
    let enrol = enrol_message(vault, key("ben"), key("ada"));
    let cases = [
        with(
            signed("ben joins a group", "join key", &join, &sign(&signing_key("join key"), &join)),
            &[("log", hex(group.0)), ("joiner", hex(key("ben").0))],
        ),
        with(
            signed("ada enrols ben in a vault", "ben", &enrol, &sign(&signing_key("ben"), &enrol)),
            &[("log", hex(vault.0)), ("device", hex(key("ben").0)), ("author", hex(key("ada").0))],
        ),
    ];
    check(
        "admissions.json",
        "A join key signs \"sealwire join v1\" || 0x00 || log id || joiner key. A device that is to be \
         enrolled signs \"sealwire enrol v1\" || 0x00 || log id || its key || key of the entry's author.",
        &cases,
    );
}

#[test]
fn successions() {
    let log = found(LogType::Group, "ada").log;
    let message = succession_message(log, key("ben"), key("ada"));
    let named = [("log", hex(log.0)), ("old", hex(key("ben").0)), ("new", hex(key("ada").0))];
    let cases =
        [("the lost device signs", "ben"), ("its successor signs", "ada")].map(|(name, signer)| {
            let case = signed(name, signer, &message, &sign(&signing_key(signer), &message));
            with(case, &named)
        });
    check(
        "successions.json",
        "In a native group a lost device and its successor both sign \"sealwire succession v1\" || \
         0x00 || log id || old key || new key.",
        &cases,
    );
}

#[test]
fn tokens() {
    let secret = b"a secret of the operator";
    let token_key = TokenKey::derive(secret);
    let purposes = [
        ("http", Purpose::Http, LogId::ZERO),
        ("resume", Purpose::Resume, LogId::ZERO),
        ("vault", Purpose::Vault, found(LogType::Vault, "ada").log),
    ];
    let issued = NOW / 1000;
    let cases = purposes.map(|(name, purpose, log)| {
        let claims = Claims { purpose, device: key("ada"), log, issued, expires: issued + 600 };
        let token = token_key.issue(&claims);
        assert_eq!(token_key.check(&token, purpose, issued + 599), Ok(claims));
        assert!(token_key.check(&token, purpose, issued + 600).is_err());
        json!({
            "name": name,
            "secret": hex(secret),
            "key_id": hex(&token[1..5]),
            "purpose": token[5],
            "device": hex(key("ada").0),
            "log": hex(log.0),
            "issued": int(issued),
            "expires": int(issued + 600),
            "token": hex(token),
        })
    });
    check(
        "tokens.json",
        "To a device a token is 102 opaque bytes; this is for whoever reads a relay's. The key is \
         HKDF-SHA256(secret, no salt, info \"sealwire token v1\")[32], the key id the first 4 bytes of \
         SHA-256(key), the last 32 bytes HMAC-SHA256(key, the 70 bytes before).",
        &cases,
    );
}
