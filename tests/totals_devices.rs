//! Devices with the SDK and phones with the Totals app let each other in, and understand each other.

use sealwire_client::device::{JoinRequest, Outgoing, Phase};
use sealwire_client::error::Error;
use sealwire_client::event::Event;
use sealwire_client::identity::Identity;
use sealwire_client::totals::payload::Payload;
use sealwire_client::totals::seal::{self, GroupKey, PairKey};
use sealwire_protocol::{DeviceKey, LogId};
use serde_json::{Value, json};

use crate::support::person::Person;
use crate::support::phone::Phone;
use crate::support::place::Database;
use crate::support::world::World;
use crate::support::{DEADLINE, eventually, on_both_databases};

on_both_databases!(
    a_device_makes_a_group_and_lets_a_phone_in,
    a_phone_lets_a_device_in_and_both_read_each_other,
    a_key_is_taken_from_who_may_give_it_and_never_replaced_unasked,
    who_leaves_says_goodbye_and_may_ask_again,
    what_native_groups_can_do_is_refused_with_a_reason,
);

/// A phone, and what its app knows.
struct App {
    phone: Phone,
    device: Identity,
}

impl App {
    fn new(world: &World, seed: u8) -> Self {
        let phone = Phone::new(world.address(), seed);
        let device = Identity::from_seed(&phone.signing.to_bytes());
        Self { phone, device }
    }

    fn key(&self) -> DeviceKey {
        self.device.key()
    }

    /// Sends a message that is sealed for one.
    async fn tell(&self, log: LogId, to: DeviceKey, kind: &str, message: &Value) {
        let pair = PairKey::between(&self.device, to).expect("a good key");
        let blob = pair.seal(message.to_string().as_bytes()).expect("sealed");
        let body = json!({
            "encryptedBlob": hex::encode(blob),
            "recipientPublicKeys": [to.to_hex()],
            "kind": kind,
        });
        let path = format!("/groups/{}/payloads/targeted", log.to_uuid_text());
        self.phone.post(&path, body).await.ok();
    }

    /// Sends a message to all.
    async fn say(&self, log: LogId, key: &GroupKey, kind: &str, message: &Value) {
        let blob = key.seal(message.to_string().as_bytes()).expect("sealed");
        self.phone.send_all(&log.to_uuid_text(), kind, &hex::encode(blob)).await.ok();
    }

    /// Waits for a payload of this kind, opens it, and acks it.
    async fn hears(&self, log: LogId, kind: &str, key: Option<&GroupKey>) -> (DeviceKey, Value) {
        let group = log.to_uuid_text();
        let mut found = None;
        eventually(&format!("the phone is sent a {kind}"), async || {
            let pending = self.phone.pending(&group).await;
            found = pending.into_iter().find(|payload| payload["kind"] == kind);
            found.is_some()
        })
        .await;
        let payload = found.expect("it was found");
        let text = |name: &str| payload[name].as_str().expect("text").to_owned();
        let sender = DeviceKey::from_hex(&text("senderPublicKey")).expect("a key");
        let blob = hex::decode(text("encryptedBlob")).expect("hex");
        let opened = seal::open(key, &self.device, sender, &blob).expect("it opens");
        self.phone.ack(&text("id")).await.ok();
        (sender, serde_json::from_slice(&opened.plaintext).expect("JSON"))
    }

    fn join_request(&self, name: &str) -> Value {
        json!({
            "type": "join_request",
            "publicKey": self.key().to_hex(),
            "displayName": name,
            "memberMetaUpdatedAt": 1_767_225_600_000_u64,
            "timestamp": 1_767_225_600_000_u64,
        })
    }

    fn key_exchange(&self, log: LogId, to: DeviceKey, key: &GroupKey) -> Value {
        json!({
            "type": "key_exchange",
            "groupId": log.to_uuid_text(),
            "groupName": "Lunch",
            "groupKey": key.to_hex().as_str(),
            "approvedPublicKey": to.to_hex(),
            "approvedBy": self.key().to_hex(),
            "backfillNewMembers": false,
            "timestamp": 1_767_225_600_000_u64,
        })
    }
}

fn expense(id: &str, by: DeviceKey) -> Value {
    json!({
        "type": "expense", "id": id, "amount": 30.0, "currency": "ETB", "reason": "Lunch",
        "paidBy": by.to_hex(), "splitAmong": [by.to_hex()], "timestamp": 1_767_225_600_000_u64,
        "kind": "expense", "status": "pending",
    })
}

fn requested(person: &Person, who: DeviceKey) -> bool {
    let asks =
        |event: &Event| matches!(event, Event::JoinRequested { device, .. } if *device == who);
    person.told.iter().any(asks)
}

/// Messages of the group that a person's app was given, by their type.
fn given(person: &Person, log: LogId, kind: &str) -> Vec<Value> {
    person
        .heard(log)
        .iter()
        .filter_map(|text| serde_json::from_str::<Value>(text).ok())
        .filter(|message| message["type"] == kind)
        .collect()
}

async fn a_device_makes_a_group_and_lets_a_phone_in(database: Database) {
    let world = World::start(database).await;
    let mut alice = Person::new().await;
    alice.connect(&world.url()).await;
    alice.device.set_name("Alice").await.expect("a name");
    let log = alice.device.create_totals_group(&world.url()).await.expect("made");
    alice.device.wait_ready(log, DEADLINE).await.expect("she has the key");
    let bob = App::new(&world, 2);
    bob.phone.join(&log.to_uuid_text()).await.ok();
    bob.tell(log, alice.key(), "join_request", &bob.join_request("Bob")).await;
    let him = bob.key();
    alice.until("bob asks", |alice| requested(alice, him)).await;
    let requests = alice.device.join_requests(log).await.expect("read");
    let asked_at = 1_767_225_600_000;
    assert_eq!(requests, [JoinRequest { device: him, name: Some("Bob".to_owned()), asked_at }]);

    alice.device.approve(log, him, Some("Lunch".to_owned())).await.expect("in the outbox");
    assert!(alice.device.join_requests(log).await.expect("read").is_empty());
    let again = alice.device.approve(log, him, None).await;
    assert_eq!(again, Err(Error::NoSuchRequest));
    let (sender, exchange) = bob.hears(log, "key_exchange", None).await;
    assert_eq!(sender, alice.key());
    for (name, value) in [
        ("groupId", log.to_uuid_text()),
        ("approvedPublicKey", him.to_hex()),
        ("approvedBy", alice.key().to_hex()),
        ("approverDisplayName", "Alice".to_owned()),
        ("groupName", "Lunch".to_owned()),
    ] {
        assert_eq!(exchange[name], value, "{name}");
    }
    let key = GroupKey::from_hex(exchange["groupKey"].as_str().expect("text")).expect("a key");
    let (_, approved) = bob.hears(log, "member_approved", Some(&key)).await;
    assert_eq!(approved["approvedPublicKey"], him.to_hex());

    bob.say(log, &key, "expense", &expense("one", him)).await;
    alice.until("the expense", |alice| !given(alice, log, "expense").is_empty()).await;
    assert_eq!(given(&alice, log, "expense")[0], expense("one", him));
    let two = expense("two", alice.key());
    let outgoing = Outgoing::to_all(two.to_string()).called("expense");
    let id = alice.device.send(log, outgoing).await.expect("in the outbox");
    alice.device.wait_appended(id, DEADLINE).await.expect("appended");
    assert_eq!(bob.hears(log, "expense", Some(&key)).await, (alice.key(), two));
}

async fn a_phone_lets_a_device_in_and_both_read_each_other(database: Database) {
    let world = World::start(database).await;
    let (bob, key) = (App::new(&world, 2), GroupKey::generate().expect("randomness"));
    let log = LogId::from_uuid_text(&bob.phone.create().await).expect("an id");
    bob.say(log, &key, "expense", &expense("before", bob.key())).await;
    let mut alice = Person::new().await;
    alice.device.set_name("Alice").await.expect("a name");
    // Offline, all of it: the wish to join, and what is to be said there.
    alice.device.join_totals(&world.url(), log).await.expect("joining");
    let said = Outgoing::to_all(expense("early", alice.key()).to_string()).called("expense");
    alice.device.send(log, said).await.expect("in the outbox");
    alice.connect(&world.url()).await;

    let (sender, request) = bob.hears(log, "join_request", None).await;
    assert_eq!((sender, &request["displayName"]), (alice.key(), &json!("Alice")));
    assert!(matches!(Payload::decode(request.to_string().as_bytes()), Ok(Payload::JoinRequest(_))));
    bob.say(log, &key, "expense", &expense("meanwhile", bob.key())).await;
    let unread =
        |alice: &Person| alice.told.iter().any(|it| matches!(it, Event::Unreadable { .. }));
    alice.until("what she cannot read yet", unread).await;
    bob.tell(log, alice.key(), "key_exchange", &bob.key_exchange(log, alice.key(), &key)).await;
    alice.device.wait_ready(log, DEADLINE).await.expect("let in");
    alice.until("what was kept sealed", |alice| !given(alice, log, "expense").is_empty()).await;
    assert_eq!(given(&alice, log, "expense"), [expense("meanwhile", bob.key())]);
    // Her app learns who let her in, and not the key itself.
    let exchange = given(&alice, log, "key_exchange");
    assert_eq!(exchange[0]["groupName"], "Lunch");
    assert_eq!(exchange[0].get("groupKey"), None);

    assert_eq!(bob.hears(log, "member_meta", Some(&key)).await.1["displayName"], "Alice");
    assert_eq!(bob.hears(log, "expense", Some(&key)).await.1["id"], "early");
    alice.disconnect().await;
    alice.connect(&world.url()).await;
    bob.say(log, &key, "expense", &expense("after", bob.key())).await;
    alice.until("the next", |alice| given(alice, log, "expense").len() == 2).await;
    assert_eq!(bob.phone.pending(&log.to_uuid_text()).await, Vec::<Value>::new(), "asked once");
}

async fn a_key_is_taken_from_who_may_give_it_and_never_replaced_unasked(database: Database) {
    let world = World::start(database).await;
    let (bob, carol) = (App::new(&world, 2), App::new(&world, 3));
    let keys = [1; 3].map(|_| GroupKey::generate().expect("randomness"));
    let log = LogId::from_uuid_text(&bob.phone.create().await).expect("an id");
    carol.phone.join(&log.to_uuid_text()).await.ok();
    let mut alice = Person::new().await;
    alice.connect(&world.url()).await;
    alice.device.join_totals(&world.url(), log).await.expect("joining");
    bob.hears(log, "join_request", None).await;
    let me = alice.key();
    let good = |key: &GroupKey| bob.key_exchange(log, me, key);
    let with = |name: &str, value: Value| {
        let mut message = good(&keys[0]);
        message[name] = value;
        message
    };
    // For another group, for somebody else, in somebody else's name; and from one that is named.
    for wrong in [
        with("groupId", json!(LogId::totals([9; 16]).to_uuid_text())),
        with("approvedPublicKey", json!(carol.key().to_hex())),
        with("approvedBy", json!(carol.key().to_hex())),
        with("groupKey", json!("00")),
    ] {
        bob.tell(log, me, "key_exchange", &wrong).await;
    }
    carol.tell(log, me, "key_exchange", &good(&keys[0])).await;
    // Nobody asks for somebody else, either.
    bob.tell(log, me, "join_request", &carol.join_request("Carol")).await;
    let rejected = |alice: &Person| {
        alice.told.iter().filter(|event| matches!(event, Event::Rejected { .. })).count()
    };
    alice.until("none of them is believed", |alice| rejected(alice) == 6).await;
    assert!(!alice.device.log(log).await.expect("a group").holds_key);

    bob.tell(log, me, "key_exchange", &good(&keys[1])).await;
    alice.device.wait_ready(log, DEADLINE).await.expect("let in");
    carol.tell(log, me, "key_exchange", &carol.key_exchange(log, me, &keys[2])).await;
    let offered =
        |alice: &Person| alice.told.iter().any(|event| matches!(event, Event::KeyOffered { .. }));
    alice.until("she is asked", offered).await;
    bob.say(log, &keys[1], "expense", &expense("one", bob.key())).await;
    alice.until("the old key holds", |alice| !given(alice, log, "expense").is_empty()).await;
    carol.say(log, &keys[2], "expense", &expense("two", carol.key())).await;
    let unread =
        |alice: &Person| alice.told.iter().any(|it| matches!(it, Event::Unreadable { .. }));
    alice.until("the other does not", unread).await;

    assert_eq!(alice.device.offered_keys(log).await.expect("read"), [carol.key()]);
    assert_eq!(alice.device.accept_key(log, bob.key()).await, Err(Error::NoSuchRequest));
    alice.device.accept_key(log, carol.key()).await.expect("decided");
    alice.disconnect().await;
    alice.connect(&world.url()).await;
    alice.until("what was kept sealed", |alice| given(alice, log, "expense").len() == 2).await;
}

async fn who_leaves_says_goodbye_and_may_ask_again(database: Database) {
    let world = World::start(database).await;
    let (bob, key) = (App::new(&world, 2), GroupKey::generate().expect("randomness"));
    let log = LogId::from_uuid_text(&bob.phone.create().await).expect("an id");
    let mut alice = Person::new().await;
    alice.connect(&world.url()).await;
    alice.device.join_totals(&world.url(), log).await.expect("joining");
    bob.hears(log, "join_request", None).await;
    // Before she is let in: she takes her request back.
    let id = alice.device.leave(log).await.expect("in the outbox");
    alice.device.wait_appended(id, DEADLINE).await.expect("gone");
    let (sender, cancel) = bob.hears(log, "join_cancel", None).await;
    assert_eq!((sender, &cancel["publicKey"]), (alice.key(), &json!(alice.key().to_hex())));
    assert_eq!(bob.phone.members(&log.to_uuid_text()).await.len(), 1);
    assert!(matches!(alice.device.log(log).await.expect("known").phase, Phase::Left));

    alice.device.join_totals(&world.url(), log).await.expect("joining again");
    bob.hears(log, "join_request", None).await;
    bob.tell(log, alice.key(), "key_exchange", &bob.key_exchange(log, alice.key(), &key)).await;
    alice.device.wait_ready(log, DEADLINE).await.expect("let in");
    bob.hears(log, "member_meta", Some(&key)).await;
    let id = alice.device.leave(log).await.expect("in the outbox");
    assert_eq!(alice.device.leave(log).await, Ok(id), "once is enough");
    alice.device.wait_appended(id, DEADLINE).await.expect("gone");
    let (_, left) = bob.hears(log, "member_left", Some(&key)).await;
    assert_eq!(left["publicKey"], alice.key().to_hex());
    assert_eq!(bob.phone.members(&log.to_uuid_text()).await.len(), 1);
    let refused = alice.device.send(log, Outgoing::to_all("{}")).await;
    assert_eq!(refused, Err(Error::NotAMember));
    let missing = LogId::totals([7; 16]);
    alice.device.join_totals(&world.url(), missing).await.expect("she tries");
    let refused = alice.device.wait_ready(missing, DEADLINE).await;
    assert!(matches!(refused, Err(Error::Refused(_))), "{refused:?}");
}

async fn what_native_groups_can_do_is_refused_with_a_reason(database: Database) {
    let world = World::start(database).await;
    let mut alice = Person::new().await;
    alice.connect(&world.url()).await;
    let log = alice.device.create_totals_group(&world.url()).await.expect("made");
    let other = DeviceKey([7; 32]);
    assert!(matches!(alice.device.rotate(log).await, Err(Error::Format(_))));
    assert!(matches!(alice.device.revoke(log, other).await, Err(Error::Format(_))));
    assert!(matches!(alice.device.invite(log).await.err(), Some(Error::Format(_))));
    let native = alice.found(&world.url()).await;
    let joined = alice.device.join_totals(&world.url(), native).await;
    assert!(matches!(joined, Err(Error::Format(_))));
    let approved = alice.device.approve(native, other, None).await;
    assert!(matches!(approved, Err(Error::Format(_))));
}
