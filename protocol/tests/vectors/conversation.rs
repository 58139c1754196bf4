//! A whole short conversation: a founder and a newcomer, from two greetings to a revocation.

use sealwire_protocol::ack::AckWire;
use sealwire_protocol::bounded::{Bounded, BoundedBytes};
use sealwire_protocol::codec::{decode_client, decode_relay, encode_client, encode_relay};
use sealwire_protocol::digest::{chain_next, chain_start, entry_digest, native_log_id, sha256};
use sealwire_protocol::frame::{self, AckState, MembershipState, Stub, StubReason};
use sealwire_protocol::handshake::{prove_device, prove_relay};
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::ids::Scope;
use sealwire_protocol::keys::{KeyBody, SealedKey};
use sealwire_protocol::signing::{join_message, sign};
use sealwire_protocol::token::{Claims, Purpose, TokenKey};
use sealwire_protocol::{
    Audience, Body, ClientFrame, Control, DeviceKey, Digest, EntryIn, Head, Header, Instance, Kind,
    LogId, LogType, RelayFrame,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::cast::{INCARNATION, NOW, bytes16, bytes32, key, seed, sign_entry, signing_key};
use crate::check_with;
use crate::json::{describe, hex};
use crate::proofs::greeting;
use crate::sealing::{Place, key_plaintext, seal_body, seal_key};

/// The log as it grows, and the frames as they pass.
struct Story {
    cases: Vec<Value>,
    log: LogId,
    head: Head,
    /// Of each device that has sent: its newest count and digest.
    sent: std::collections::BTreeMap<&'static str, (u64, Digest)>,
}

/// An entry that was appended.
struct Appended {
    entry: EntryIn,
    seq: u64,
}

impl Appended {
    fn digest(&self) -> Digest {
        entry_digest(&self.entry.header)
    }

    fn frame(&self, log: LogId) -> frame::Entry {
        let entry = self.entry.clone();
        frame::Entry {
            log,
            seq: self.seq,
            at: NOW + 1000 * self.seq,
            header: entry.header,
            body: entry.body,
            signature: entry.signature,
            recipients: entry.recipients,
            totals_kind: None,
        }
    }
}

impl Story {
    fn new() -> Self {
        Self { cases: vec![], log: LogId::ZERO, head: Head::NONE, sent: Default::default() }
    }

    fn tell(
        &mut self,
        about: &str,
        way: [&str; 2],
        request: u32,
        frame: (&str, u8),
        fields: &Value,
        bytes: &[u8],
    ) {
        self.cases.push(json!({
            "name": if about.is_empty() { frame.0 } else { about },
            "from": way[0],
            "to": way[1],
            "frame": frame.0,
            "type": frame.1,
            "request": request,
            "fields": fields,
            "bytes": hex(bytes),
        }));
    }

    fn sends<F>(&mut self, device: &str, request: u32, about: &str, frame: F)
    where
        F: Serialize + Into<ClientFrame>,
    {
        let fields = describe(&frame);
        let frame = frame.into();
        let bytes = encode_client(request, &frame);
        assert_eq!(decode_client(&bytes).expect("an envelope").frame.as_ref(), Ok(&frame));
        self.tell(
            about,
            [device, "relay"],
            request,
            (frame.name(), frame.number()),
            &fields,
            &bytes,
        );
    }

    fn gets<F>(&mut self, device: &str, request: u32, about: &str, frame: F)
    where
        F: Serialize + Into<RelayFrame>,
    {
        let fields = describe(&frame);
        let frame = frame.into();
        let bytes = encode_relay(request, &frame);
        assert_eq!(decode_relay(&bytes).expect("an envelope").frame.as_ref(), Ok(&frame));
        self.tell(
            about,
            ["relay", device],
            request,
            (frame.name(), frame.number()),
            &fields,
            &bytes,
        );
    }

    /// The header of the next entry of `device`, but for the hash of its body.
    fn header(&self, device: &'static str, kind: Kind, named: &[DeviceKey], seen: Head) -> Header {
        let (count, prev) = self.sent.get(device).copied().unwrap_or((0, Digest::ZERO));
        Header {
            log: self.log,
            sender: key(device),
            count: count + 1,
            prev,
            kind,
            audience: Audience::of(named),
            seen,
            body: Digest::ZERO,
        }
    }

    /// Signs an entry and gives it its place.
    fn append(
        &mut self,
        device: &'static str,
        header: &Header,
        named: &[DeviceKey],
        body: &[u8],
    ) -> Appended {
        let count = header.count;
        let header: HeaderBytes = Header { body: sha256(body), ..header.clone() }.encode();
        let digest = entry_digest(&header);
        if self.log.is_zero() {
            self.log = native_log_id(&header);
            self.head = Head { incarnation: INCARNATION, seq: 0, chain: chain_start(self.log) };
        }
        let seq = self.head.seq + 1;
        self.head = Head { seq, chain: chain_next(self.head.chain, seq, digest), ..self.head };
        self.sent.insert(device, (count, digest));
        let entry = EntryIn {
            header,
            body: Body::copy_from(body),
            signature: Some(sign_entry(device, &header)),
            recipients: Bounded::new(named.to_vec()).expect("few"),
            totals_kind: None,
        };
        Appended { entry, seq }
    }

    fn appended(&self, entry: &Appended, duplicate: bool) -> frame::Appended {
        frame::Appended { log: self.log, seq: entry.seq, duplicate, head: self.head }
    }

    fn stub(&self, entry: &Appended, reason: StubReason) -> frame::Stubs {
        let stubs = vec![Stub { digest: entry.digest(), reason }];
        frame::Stubs { log: self.log, seq: entry.seq, stubs: Bounded::new(stubs).expect("one") }
    }

    fn membership(&self, state: MembershipState) -> frame::Membership {
        frame::Membership { log: self.log, state, seq: self.head.seq }
    }

    fn connect(&mut self, device: &str) {
        let greeting = greeting(device);
        let greeting_frame = encode_relay(0, &greeting.clone().into());
        self.gets(device, 0, "the relay greets", greeting);
        let challenge = Digest(bytes32(&format!("challenge of {device} to the relay")));
        let authenticate = frame::Authenticate {
            version: 1,
            device: key(device),
            instance: Instance(bytes16(&format!("instance of {device}"))),
            challenge,
            signature: Some(prove_device(&signing_key(device), &greeting_frame)),
            token: None,
            heartbeat_s: 60,
            window: None,
            capabilities: frame::Names::default(),
        };
        self.sends(device, 1, "the device proves its key, and challenges the relay", authenticate);
        let issued = NOW / 1000;
        let claims = Claims {
            purpose: Purpose::Resume,
            device: key(device),
            log: LogId::ZERO,
            issued,
            expires: issued + 600,
        };
        let token = TokenKey::derive(b"a secret of the operator").issue(&claims);
        let welcome = frame::Welcome {
            proof: prove_relay(&signing_key("relay"), &greeting_frame, key(device), challenge),
            incarnation: INCARNATION,
            heartbeat_s: 60,
            resume_token: BoundedBytes::new(token.to_vec()).expect("102 bytes"),
            logs: Bounded::default(),
        };
        self.gets(device, 1, "the relay proves its own; the device is in no log yet", welcome);
    }
}

fn key_body(scope: Scope, epoch: u32, sealed: SealedKey) -> Vec<u8> {
    let keys = Bounded::new(vec![sealed]).expect("one");
    KeyBody { scope, epoch, keys }.encode().expect("small")
}

fn ack(floor: u64) -> AckState {
    AckState { incarnation: INCARNATION, acked: AckWire { floor, ranges: Bounded::default() } }
}

#[test]
fn conversation() {
    let mut story = Story::new();
    let random = bytes32("random of ada's group");
    let scope = Scope(random[..16].try_into().expect("16 of 32"));
    let (first_key, second_key) = (bytes32("epoch key 1"), bytes32("epoch key 2"));

    story.connect("ada");
    let control =
        Control::Found { log_type: LogType::Group, random, join_key: Some(key("join key")) };
    let header = story.header("ada", Kind::Control, &[], Head::NONE);
    let found = story.append("ada", &header, &[], &control.encode());
    let log = story.log;
    let append = |entry: &Appended| frame::Append { entry: entry.entry.clone() };
    story.sends("ada", 2, "ada founds a group: its log id is zero", append(&found));
    let joined = story.membership(MembershipState::Joined);
    story.gets("ada", 0, "told to all sessions of ada", joined);
    let appended = story.appended(&found, false);
    story.gets("ada", 2, "fsynced; here is the group's id", appended);
    let first = story.head;
    let subscribe = frame::Subscribe { log, cursor: Some(first), acked: None };
    story.sends("ada", 3, "ada has read entry 1: she wrote it", subscribe);
    story.gets("ada", 3, "from her cursor on", frame::Subscribed { log, head: first });
    story.gets("ada", 0, "and there is nothing more", frame::Drained { log, head: first });

    let header = story.header("ada", Kind::Key, &[], first);
    let aad = header.encode();
    let place = Place { log, scope, epoch: 1, sender: "ada", aad: aad.aad() };
    let sealed =
        seal_key(&key_plaintext(first_key, Some(seed("join key")), Some(first)), &place, "ada");
    let rotation = story.append("ada", &header, &[], &key_body(scope, 1, sealed));
    story.sends("ada", 4, "the first rotation, sealed to herself", append(&rotation));
    let appended = story.appended(&rotation, false);
    story.gets("ada", 4, "", appended);

    story.connect("ben");
    let signature = sign(&signing_key("join key"), &join_message(log, key("ben")));
    let header = story.header("ben", Kind::Control, &[], Head::NONE);
    let join = story.append("ben", &header, &[], &Control::Join { signature }.encode());
    story.sends("ben", 2, "ben has an invite: he joins by the join key's signature", append(&join));
    let joined = story.membership(MembershipState::Joined);
    story.gets("ben", 0, "", joined);
    let own = story.stub(&rotation, StubReason::Own);
    story.gets("ada", 0, "what was due to ada goes first: her own rotation, as a stub", own);
    story.gets("ada", 0, "ben has joined", join.frame(log));
    let appended = story.appended(&join, false);
    story.gets("ben", 2, "", appended);
    let subscribe = frame::Subscribe { log, cursor: None, acked: None };
    story.sends("ben", 3, "ben reads from the beginning", subscribe);
    let third = story.head;
    story.gets("ben", 3, "", frame::Subscribed { log, head: third });
    story.gets("ben", 0, "control entries come to everyone: the founding", found.frame(log));
    let before = story.stub(&rotation, StubReason::NotAddressed);
    story.gets("ben", 0, "the rotation was before his time", before);
    story.gets("ben", 0, "and his own join, whole", join.frame(log));
    story.gets("ben", 0, "", frame::Drained { log, head: third });

    let named = [key("ben")];
    let header = story.header("ada", Kind::Key, &named, third);
    let aad = header.encode();
    let place = Place { log, scope, epoch: 1, sender: "ada", aad: aad.aad() };
    let sealed =
        seal_key(&key_plaintext(first_key, Some(seed("join key")), Some(third)), &place, "ben");
    let delivery = story.append("ada", &header, &named, &key_body(scope, 1, sealed));
    story.sends("ada", 5, "ada gives ben the key: a delivery, addressed to him", append(&delivery));
    story.gets("ben", 0, "", delivery.frame(log));
    let appended = story.appended(&delivery, false);
    story.gets("ada", 5, "", appended);
    let state = ack(4);
    story.sends("ben", 0, "ben has stored it: the relay may delete it", frame::Ack { log, state });

    let header = story.header("ben", Kind::Ring, &[], story.head);
    let aad = header.encode();
    let place = Place { log, scope, epoch: 1, sender: "ben", aad: aad.aad() };
    let nonce = bytes32("nonce of ben")[..24].try_into().expect("24 of 32");
    // {"payload": bin}
    let content = [&[0x81, 0xa7][..], b"payload", &[0xc4, 12], b"coffee: 4.20"].concat();
    let content = seal_body(first_key, &place, nonce, &content);
    let message = story.append("ben", &header, &[], &content);
    story.sends("ben", 4, "ben writes something, sealed under epoch 1", append(&message));
    let own = story.stub(&delivery, StubReason::Own);
    story.gets("ada", 0, "", own);
    story.gets("ada", 0, "", message.frame(log));
    let appended = story.appended(&message, false);
    story.gets("ben", 4, "suppose that this answer is lost", appended);
    story.sends("ben", 5, "then ben sends the same bytes again", append(&message));
    let again = story.appended(&message, true);
    story.gets("ben", 5, "and learns that it was appended before", again);
    let state = ack(5);
    story.sends("ada", 0, "", frame::Ack { log, state });
    story.sends("ben", 6, "", frame::Ping {});
    let own = story.stub(&message, StubReason::Own);
    story.gets("ben", 0, "stubs that wait go before a heartbeat", own);
    let heads = vec![frame::LogSummary { log, head: story.head }];
    let heads = Bounded::new(heads).expect("one");
    story.gets("ben", 6, "", frame::Heartbeat { now: NOW + 9_000, heads });

    let control = Control::Revoke { device: key("ben"), join_key: Some(key("second join key")) };
    let header = story.header("ada", Kind::Control, &[], story.head);
    let revoke = story.append("ada", &header, &[], &control.encode());
    story.sends("ada", 6, "ada removes ben, and makes another join key", append(&revoke));
    story.gets("ada", 0, "control entries come back to their author as well", revoke.frame(log));
    story.gets("ben", 0, "ben is shown why", revoke.frame(log));
    let revoked = story.membership(MembershipState::Revoked);
    story.gets("ben", 0, "and hears no more of this log", revoked);
    let appended = story.appended(&revoke, false);
    story.gets("ada", 6, "", appended);
    let sixth = story.head;
    let header = story.header("ada", Kind::Key, &[], sixth);
    let aad = header.encode();
    let place = Place { log, scope, epoch: 2, sender: "ada", aad: aad.aad() };
    let plaintext = key_plaintext(second_key, Some(seed("second join key")), Some(sixth));
    let rotation =
        story.append("ada", &header, &[], &key_body(scope, 2, seal_key(&plaintext, &place, "ada")));
    story.sends("ada", 7, "whoever writes next after a removal rotates first", append(&rotation));
    let appended = story.appended(&rotation, false);
    story.gets("ada", 7, "", appended);

    let mut secrets = Map::new();
    for name in ["ada", "ben", "relay", "join key", "second join key"] {
        secrets.insert(format!("seed of {name}"), hex(seed(name)));
    }
    secrets.insert("epoch key 1".to_owned(), hex(first_key));
    secrets.insert("epoch key 2".to_owned(), hex(second_key));
    check_with(
        "conversation.json",
        "A founder and a newcomer, from two greetings to a revocation: every frame in the order in \
         which the relay sends or takes it, and the secrets with which all of it can be made and opened.",
        &[("log", hex(log.0)), ("scope", hex(scope.0)), ("secrets", Value::Object(secrets))],
        &story.cases,
    );
}
