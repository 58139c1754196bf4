//! Devices that sleep are woken, and whoever wakes them learns nothing.
//!
//! Against a push service on this machine, over real HTTP, which keeps every byte that it is sent.

use std::collections::BTreeSet;
use std::process::Output;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{StatusCode, Version};
use ed25519_dalek::SigningKey;
use sealwire_actors::Options;
use sealwire_actors::ports::{LogKey, Push, Rang, Ring, Trouble, Urgency};
use sealwire_actors::totals::payload::PayloadId;
use sealwire_client::entry::Outline;
use sealwire_client::identity::Identity;
use sealwire_client::numbering::Mark;
use sealwire_protocol::bounded::BoundedText;
use sealwire_protocol::digest::native_log_id;
use sealwire_protocol::frame::SetPushToken;
use sealwire_protocol::signing::{device_key, enrol_message, sign};
use sealwire_protocol::{Control, DeviceKey, Kind, LogId, LogType};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use crate::support::device::Device;
use crate::support::fcm::{Fcm, Heard, Reply};
use crate::support::needles::Needle;
use crate::support::person::Person;
use crate::support::phone::Phone;
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;
use crate::support::vault_client::Client;
use crate::support::world::World;
use crate::support::{eventually, on_both_databases};

on_both_databases!(
    the_push_service_is_told_three_words_and_nothing_else,
    whatever_happens_the_push_service_is_told_nothing_else,
    after_a_kill_a_sleeping_device_of_a_vault_is_rung,
    a_phone_that_sleeps_is_rung_and_one_that_has_acked_is_not,
    a_device_whose_socket_is_half_open_is_rung_after_its_time_to_ack,
    a_burst_of_ten_thousand_rings_a_handful_of_times,
    a_token_that_moves_to_another_device_rings_there_alone,
    only_unregistered_forgets_a_token_and_only_that_one,
    what_the_push_service_fails_to_take_it_is_asked_again,
    a_push_service_that_says_for_how_long_it_is_down_is_left_alone_by_everybody,
    a_push_service_that_never_answers_one_device_rings_the_others,
    a_relay_that_is_killed_with_doorbells_pending_rings_them_after_its_start,
    devices_of_a_vault_are_rung_like_everybody,
    whoever_listens_to_a_vault_is_rung_unless_it_pulls_from_where_it_stands,
    a_device_of_the_sdk_says_where_it_is_rung,
    an_operator_can_try_a_doorbell,
    doorbells_to_a_push_service_behind_tls_share_one_connection_of_http_2,
);

/// A relay in this process that rings at the fake, and gives nobody time to come back after its start.
async fn ringing(database: Database, fcm: &Fcm) -> World {
    let client = fcm.client();
    World::start_with(database, move |options: &mut Options| {
        options.push = vec![client.clone()];
        options.doorbell_settle = Duration::ZERO;
    })
    .await
}

/// A relay's process that rings at the fake.
async fn process(database: Database, fcm: &Fcm, more: &[(&str, &str)]) -> RelayProcess {
    let place = Place::new(database).await;
    let own = fcm.variables();
    let mut variables: Vec<(&str, &str)> =
        own.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    variables.extend(more);
    RelayProcess::start(place, &variables).await
}

fn token(seed: u8) -> String {
    format!("token-{seed:03}-of-a-phone-at-its-push-service")
}

/// Phones in one group; all but the first can be rung.
async fn asleep(world: &World, count: u8) -> (Vec<Phone>, String) {
    let phones: Vec<Phone> = (1..=count).map(|seed| Phone::new(world.address(), seed)).collect();
    let group = phones[0].create().await;
    for (phone, seed) in phones.iter().zip(1..).skip(1) {
        phone.join(&group).await.ok();
        phone.register(Some(&token(seed))).await;
    }
    (phones, group)
}

/// Until when Apple may keep a doorbell of today: to the end of tomorrow.
fn expiration() -> String {
    const DAY: u64 = 86_400;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after the epoch").as_secs();
    ((now / DAY + 2) * DAY).to_string()
}

/// What every doorbell must be, with these ids.
fn expected(token: &str, group: &str, payload: &str, priority: &str) -> Value {
    json!({ "message": {
        "token": token,
        "data": { "type": "shared_expense_activity", "groupId": group, "payloadId": payload },
        "android": { "collapse_key": "doorbell", "priority": priority, "ttl": "86400s" },
        "apns": {
            "headers": {
                "apns-collapse-id": "doorbell", "apns-expiration": expiration(),
                "apns-priority": "5", "apns-push-type": "background",
            },
            "payload": { "aps": { "content-available": 1 } },
        },
    } })
}

async fn the_push_service_is_told_three_words_and_nothing_else(database: Database) {
    const WORDS: &str = "planted: forty for the boat";
    let fcm = Fcm::start().await;
    let relay = process(database, &fcm, &[("ENABLE_DEBUG", "true"), ("RUST_LOG", "trace")]).await;
    let (mut sent, mut needles) = (Vec::new(), vec![Needle::text("a body", WORDS)]);
    let mut phones = Vec::new();
    for (index, words) in [WORDS.to_owned(), WORDS.repeat(300)].into_iter().enumerate() {
        let seed = 10 * (index as u8 + 1);
        let (alice, bob) = (Phone::new(relay.public(), seed), Phone::new(relay.public(), seed + 1));
        let group = alice.create().await;
        bob.join(&group).await.ok();
        bob.register(Some(&token(seed + 1))).await;
        let blob = hex::encode(words);
        // Neither the name of a kind nor how much there is may show.
        let kind = ["group_meta", "nudge"][index];
        let payload = alice.send_all(&group, kind, &blob).await.ok();
        fcm.until_doorbells(index + 1).await;
        alice.send_to(&group, kind, &[&bob], &blob).await.ok();
        sent.push((token(seed + 1), group, payload["id"].as_str().expect("an id").to_owned()));
        needles.push(Needle::text("a kind", kind));
        for phone in [&alice, &bob] {
            needles.push(Needle::bytes("a public key", &phone.key().0));
            needles.push(Needle::bytes("a private key", phone.signing.as_bytes()));
        }
        phones.extend([alice, bob]);
    }
    // A device with a session, and what is told about it.
    let mut device = Device::connected(relay.url(), 77).await;
    let group = device.found().await;
    device.append(group.log, WORDS.as_bytes()).await;
    let doorbells = fcm.doorbells();
    assert_eq!(doorbells.len(), 2);
    for (heard, (token, group, payload)) in doorbells.iter().zip(&sent) {
        assert_eq!(heard.json(), expected(token, group, payload, "HIGH"));
        let names: BTreeSet<&str> = heard.headers.keys().map(String::as_str).collect();
        let allowed = ["authorization", "content-length", "content-type", "host"];
        assert_eq!(names, BTreeSet::from(allowed));
    }
    let sizes: BTreeSet<usize> = doorbells.iter().map(|heard| heard.everything().len()).collect();
    assert_eq!(sizes.len(), 1, "whatever was written, and to whomever: {sizes:?}");
    let blind = |heard: &Heard, (token, group, payload): &(String, String, String)| {
        let text = String::from_utf8(heard.body.clone()).expect("text");
        text.replace(token, "T").replace(group, "G").replace(payload, "P")
    };
    assert_eq!(blind(&doorbells[0], &sent[0]), blind(&doorbells[1], &sent[1]));
    for heard in doorbells.iter().chain(&fcm.grants()) {
        for needle in &needles {
            assert!(!needle.is_in(&heard.everything()), "{} was told", needle.name);
        }
    }
    // And nothing of what the push service is told is said or counted here, or told to whoever shares
    // a group with a phone.
    let mut told = relay.ask("/metrics").await.expect("metrics").body + &relay.said();
    let group = &sent[0].1;
    for path in
        ["/groups", &format!("/groups/{group}/members"), &format!("/groups/{group}/pending")]
    {
        told += &phones[0].get(path).await.ok().to_string();
    }
    assert!(told.contains(&phones[1].name()), "its peer is among its members");
    let secret = [token(11), token(21), "access-1".to_owned(), "PRIVATE".to_owned()];
    for secret in secret {
        assert!(!Needle::text("a token", &secret).is_in(told.as_bytes()), "{secret}");
    }
    assert!(told.contains("sealwire_doorbells_sent_total 2"), "{told}");
}

/// Says where a device is rung, over its session.
async fn register(device: &mut Device, token: &str) {
    let frame = SetPushToken {
        platform: BoundedText::new("fcm").expect("short"),
        token: Some(BoundedText::new(token).expect("short")),
    };
    device.request(frame).await.expect("registered");
}

/// Phones, devices of groups and vaults, calls that fail in every way, and an operator's test.
async fn whatever_happens_the_push_service_is_told_nothing_else(database: Database) {
    const WORDS: &str = "planted: forty for the boat";
    const KIND: &str = "a_planted_kind";
    let fcm = Fcm::start().await;
    let relay = process(database, &fcm, &[]).await;
    let mut needles = vec![Needle::text("a body", WORDS), Needle::text("a kind", KIND)];
    let mut logs = Vec::new();
    // Phones: a push service that is broken, then has had too many, and an access token that expires.
    let phones: Vec<Phone> = (1..=3).map(|seed| Phone::new(relay.public(), seed)).collect();
    let group = phones[0].create().await;
    for (phone, seed) in phones.iter().zip(1..).skip(1) {
        phone.join(&group).await.ok();
        phone.register(Some(&token(seed))).await;
    }
    logs.push(group.clone());
    for reply in [Reply::Broken, Reply::Limited(1), Reply::Expired, Reply::Taken] {
        fcm.reply(reply);
    }
    let blob = hex::encode(WORDS);
    phones[0].send_to(&group, KIND, &[&phones[1]], &blob).await.ok();
    fcm.until_doorbells(4).await;
    fcm.reply_to(&token(3), Reply::Unregistered);
    phones[0].send_to(&group, "nudge", &[&phones[2]], &blob).await.ok();
    fcm.until_doorbells(5).await;
    for phone in &phones {
        needles.push(Needle::bytes("a phone's key", &phone.key().0));
        needles.push(Needle::bytes("a phone's private key", phone.signing.as_bytes()));
    }
    // A native group and a vault.
    let mut owner = Device::connected(relay.url(), 61).await;
    let mut member = Device::connected(relay.url(), 62).await;
    let native = owner.found().await;
    member.join(&native).await;
    register(&mut member, &token(62)).await;
    member.cut();
    owner.append(native.log, WORDS.as_bytes()).await;
    let (vault, _) = vault_of(&mut owner).await;
    let mut sleeper = sleeper(&relay).await;
    register(&mut sleeper, &token(33)).await;
    sleeper.cut();
    owner.append(vault, WORDS.as_bytes()).await;
    fcm.until_doorbells(7).await;
    for device in [&owner, &member, &sleeper] {
        needles.push(Needle::bytes("a device's key", &device.key().0));
    }
    for secret in [secret(61), secret(62), SLEEPER] {
        needles.push(Needle::bytes("a device's private key", &secret));
    }
    logs.extend([native.log.to_uuid_text(), vault.to_uuid_text()]);
    // An operator looks whether it works.
    let output = relay.say(&["push", "test", &phones[1].name()]).await;
    assert!(output.status.success(), "{output:?}");
    logs.push(LogId::ZERO.to_uuid_text());

    let doorbells = fcm.doorbells();
    let rung: BTreeSet<String> = fcm.rung().into_iter().collect();
    assert_eq!(rung, BTreeSet::from([token(2), token(3), token(33), token(62)]));
    let mut sizes = BTreeSet::new();
    let mut seen = BTreeSet::new();
    for heard in &doorbells {
        let json = heard.json();
        let text = |place: &str| json.pointer(place).and_then(Value::as_str).expect("text");
        let log = text("/message/data/groupId");
        let priority = text("/message/android/priority");
        let payload = text("/message/data/payloadId");
        assert_eq!(json, expected(&heard.token(), log, payload, priority));
        assert!(logs.iter().any(|known| known == log), "{log}");
        assert!(LogId::from_uuid_text(payload).is_some(), "{payload}");
        sizes.insert((priority.len(), heard.everything().len()));
        seen.insert(log.to_owned());
    }
    assert_eq!(seen.len(), logs.len(), "each kind of log has rung");
    assert_eq!(sizes.len(), 2, "one size for each of two priorities: {sizes:?}");
    for heard in doorbells.iter().chain(&fcm.grants()) {
        for needle in &needles {
            assert!(!needle.is_in(&heard.everything()), "{} was told", needle.name);
        }
    }
    assert!(fcm.grants().len() >= 2, "an access token was renewed");
}

async fn after_a_kill_a_sleeping_device_of_a_vault_is_rung(database: Database) {
    let fcm = Fcm::start().await;
    fcm.reply_always(Reply::Broken);
    let mut relay = process(database, &fcm, &[]).await;
    let mut owner = Device::connected(relay.url(), 61).await;
    register(&mut owner, &token(61)).await;
    let (vault, _) = vault_of(&mut owner).await;
    let mut sleeper = sleeper(&relay).await;
    register(&mut sleeper, &token(33)).await;
    sleeper.cut();
    owner.append(vault, b"a changeset").await;
    fcm.until_doorbells(1).await;
    relay.kill();
    let before = fcm.doorbells().len();
    fcm.reply_always(Reply::Taken);
    relay.run().await;
    fcm.until_doorbells(before + 1).await;
    let heard = fcm.doorbells()[before].json();
    let payload = heard["message"]["data"]["payloadId"].as_str().expect("an id").to_owned();
    assert_eq!(heard, expected(&token(33), &vault.to_uuid_text(), &payload, "NORMAL"));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fcm.doorbells().len(), before + 1, "its author wrote it");
}

async fn a_phone_that_sleeps_is_rung_and_one_that_has_acked_is_not(database: Database) {
    let fcm = Fcm::start().await;
    let world = ringing(database, &fcm).await;
    let (phones, group) = asleep(&world, 4).await;
    // It has taken its doorbell back.
    phones[3].register(None).await;
    fcm.reply_to(&token(3), Reply::Limited(2));
    let payload = phones[0].send_all(&group, "expense", "00").await.ok();
    fcm.until_doorbells(2).await;
    assert_eq!(fcm.rung(), [token(2), token(3)]);
    // The third phone fetches while its doorbell waits to be tried again.
    phones[2].ack(payload["id"].as_str().expect("an id")).await.ok();
    sleep(Duration::from_secs(4)).await;
    assert_eq!(fcm.rung(), [token(2), token(3)]);
}

async fn a_device_whose_socket_is_half_open_is_rung_after_its_time_to_ack(database: Database) {
    let fcm = Fcm::start().await;
    let world = ringing(database, &fcm).await;
    let phone = Phone::new(world.address(), 1);
    let group = phone.create().await;
    let log = LogId::from_uuid_text(&group).expect("an id");
    let stream_phone = Phone::new(world.address(), 2);
    stream_phone.join(&group).await.ok();
    stream_phone.register(Some(&token(2))).await;
    // It listens, and takes nothing in: as a phone does whose network has gone.
    let _listening = stream_phone.listen(&format!("/groups/{group}/pending/stream")).await;
    let at = Instant::now();
    phone.send_all(&group, "expense", "00").await.ok();
    fcm.until_doorbells(1).await;
    let took = at.elapsed();
    assert!(took >= Duration::from_secs(10) && took < Duration::from_secs(15), "{took:?}");
    assert_eq!(fcm.rung(), [token(2)]);
    assert!(world.has(log).await);
}

async fn a_burst_of_ten_thousand_rings_a_handful_of_times(database: Database) {
    let fcm = Fcm::start().await;
    let world = ringing(database, &fcm).await;
    let (phones, group) = asleep(&world, 3).await;
    let log = LogId::from_uuid_text(&group).expect("an id");
    let system = world.system();
    for _ in 0..100 {
        let sending = (0..100).map(|_| {
            let payload = sealwire_actors::totals::Outgoing {
                body: vec![7; 100],
                kind: "expense".to_owned(),
                named: None,
            };
            system.send_totals(phones[0].key(), log, payload)
        });
        for sent in futures_util::future::join_all(sending).await {
            sent.expect("sent");
        }
    }
    fcm.until_doorbells(2).await;
    let rung = fcm.doorbells().len();
    assert!(rung <= 2 * 5, "{rung} doorbells for two phones");
}

async fn a_token_that_moves_to_another_device_rings_there_alone(database: Database) {
    let fcm = Fcm::start().await;
    let world = ringing(database, &fcm).await;
    let (phones, group) = asleep(&world, 3).await;
    // The third phone was the second one: the app was set up anew, with another key.
    phones[2].register(Some(&token(2))).await;
    let payload = phones[0].send_to(&group, "nudge", &[&phones[1]], "00").await.ok();
    phones[0].send_to(&group, "nudge", &[&phones[2]], "01").await.ok();
    fcm.until_doorbells(1).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fcm.rung(), [token(2)], "the older device has no doorbell any more");
    let rung = fcm.doorbells()[0].json();
    assert_ne!(rung["message"]["data"]["payloadId"], payload["id"], "and it is not for it");
}

async fn only_unregistered_forgets_a_token_and_only_that_one(database: Database) {
    let fcm = Fcm::start().await;
    let world = ringing(database, &fcm).await;
    let (phones, group) = asleep(&world, 4).await;
    fcm.reply_to(&token(2), Reply::Unregistered);
    fcm.reply_to(&token(3), Reply::Limited(1));
    fcm.reply_to(&token(4), Reply::Broken);
    phones[0].send_all(&group, "expense", "00").await.ok();
    let store = world.store();
    let key = phones[1].key();
    eventually("it is forgotten", async || store.push_token(key).await == Ok(None)).await;
    fcm.until_doorbells(5).await;
    for (phone, seed) in [(&phones[2], 3), (&phones[3], 4)] {
        let place = Some(("fcm".to_owned(), token(seed)));
        assert_eq!(store.push_token(phone.key()).await, Ok(place));
    }
    assert_eq!(fcm.rung().iter().filter(|rung| **rung == token(2)).count(), 1);
}

async fn what_the_push_service_fails_to_take_it_is_asked_again(database: Database) {
    let fcm = Fcm::start().await;
    let world = ringing(database, &fcm).await;
    let (phones, group) = asleep(&world, 2).await;
    for reply in [Reply::Expired, Reply::Broken, Reply::Limited(3), Reply::Slow(DELAY)] {
        fcm.reply(reply);
    }
    phones[0].send_all(&group, "expense", "00").await.ok();
    fcm.until_doorbells(4).await;
    let doorbells = fcm.doorbells();
    let replies: Vec<Reply> = doorbells.iter().filter_map(|heard| heard.reply).collect();
    assert_eq!(
        replies,
        [Reply::Expired, Reply::Broken, Reply::Limited(3), Reply::Slow(DELAY)],
        "an expired access token is replaced at once"
    );
    assert_eq!(fcm.grants().len(), 2, "one access token for many doorbells, until it expires");
    let pause = doorbells[3].at - doorbells[2].at;
    assert!(pause >= Duration::from_secs(3), "what it asks for is honoured: {pause:?}");
    sleep(DELAY * 2).await;
    assert_eq!(fcm.doorbells().len(), 4, "and then it is rung");
}

const DELAY: Duration = Duration::from_millis(500);

async fn a_push_service_that_says_for_how_long_it_is_down_is_left_alone_by_everybody(
    database: Database,
) {
    let fcm = Fcm::start().await;
    let world = ringing(database, &fcm).await;
    let (phones, group) = asleep(&world, 4).await;
    // What is said of one device concerns that one.
    fcm.reply_to(&token(3), Reply::ThirdParty);
    phones[0].send_to(&group, "nudge", &[&phones[2]], "00").await.ok();
    fcm.until_doorbells(1).await;
    for reply in [Reply::Down(3), Reply::Quota(3)] {
        let before = fcm.doorbells().len();
        fcm.reply(reply);
        phones[0].send_to(&group, "nudge", &[&phones[1]], "01").await.ok();
        fcm.until_doorbells(before + 1).await;
        let said = fcm.doorbells()[before].at;
        phones[0].send_to(&group, "nudge", &[&phones[3]], "02").await.ok();
        eventually("both are rung", async || {
            let taken = |heard: &&Heard| heard.reply == Some(Reply::Taken);
            fcm.doorbells()[before..].iter().filter(taken).count() == 2
        })
        .await;
        for heard in &fcm.doorbells()[before + 1..] {
            let pause = heard.at - said;
            assert!(pause >= Duration::from_secs(3), "{:?} after {pause:?}", heard.reply);
        }
        for phone in [&phones[1], &phones[3]] {
            for payload in phone.pending(&group).await {
                phone.ack(payload["id"].as_str().expect("an id")).await.ok();
            }
        }
    }
    let place = Some(("fcm".to_owned(), token(3)));
    assert_eq!(world.store().push_token(phones[2].key()).await, Ok(place), "it is not to blame");
}

#[tokio::test]
async fn an_access_token_is_renewed_in_time_and_used_while_that_fails() {
    let fcm = Fcm::start().await;
    let client = fcm.client();
    let payload = PayloadId::new(LogKey(1), 1, 1);
    let ring = Ring { log: LogId([1; 16]), payload, urgency: Urgency::Normal };
    let rings = async || client.ring("a-token", &ring).await;
    let used = || fcm.doorbells().last().expect("one").headers["authorization"].clone();
    // One that is good for less than the usual five minutes is not fetched for every doorbell.
    fcm.grant_for(6);
    let at = Instant::now();
    for _ in 0..20 {
        assert_eq!(rings().await, Rang::Taken);
    }
    assert!(at.elapsed() < Duration::from_secs(2));
    assert_eq!((fcm.grants().len(), used()), (1, "Bearer access-1".to_owned()));
    // After half of its time it is renewed; while that fails, it is used, and nobody asks again at once.
    sleep_until(at + Duration::from_millis(3500)).await;
    fcm.refuse_grant(StatusCode::INTERNAL_SERVER_ERROR, None);
    for _ in 0..10 {
        assert_eq!(rings().await, Rang::Taken);
    }
    assert!(at.elapsed() < Duration::from_millis(5000));
    assert_eq!((fcm.grants().len(), used()), (2, "Bearer access-1".to_owned()));
    sleep_until(at + Duration::from_millis(6000)).await;
    assert_eq!(rings().await, Rang::Taken);
    assert_eq!((fcm.grants().len(), used()), (3, "Bearer access-2".to_owned()));
}

#[tokio::test]
async fn a_clock_that_is_a_little_ahead_is_no_reason_to_ring_nobody() {
    let fcm = Fcm::start().await;
    let client = fcm.client();
    let payload = PayloadId::new(LogKey(1), 1, 1);
    let ring = Ring { log: LogId([1; 16]), payload, urgency: Urgency::Normal };
    fcm.set_behind(30);
    assert_eq!(client.ring("a-token", &ring).await, Rang::Taken);
    // One that is far off is the operator's to set.
    let fcm = Fcm::start().await;
    fcm.set_behind(600);
    let refused = Rang::Later(Trouble::Unauthorised, None);
    assert_eq!(fcm.client().ring("a-token", &ring).await, refused);
}

#[tokio::test]
async fn a_token_endpoint_that_fails_is_asked_when_it_says_so_and_no_sooner() {
    let fcm = Fcm::start().await;
    let client = fcm.client();
    let payload = PayloadId::new(LogKey(1), 1, 1);
    let ring = Ring { log: LogId([1; 16]), payload, urgency: Urgency::Normal };
    let rings = async || client.ring("a-token", &ring).await;
    fcm.refuse_grant(StatusCode::SERVICE_UNAVAILABLE, Some(4));
    let at = Instant::now();
    let asked = Some(Duration::from_secs(4));
    assert_eq!(rings().await, Rang::Later(Trouble::Unavailable, asked));
    for _ in 0..10 {
        let Rang::Later(Trouble::Unavailable, Some(left)) = rings().await else {
            panic!("it cannot be rung without a token");
        };
        assert!(left <= Duration::from_secs(4) && left > Duration::from_secs(2), "{left:?}");
    }
    assert_eq!((fcm.grants().len(), fcm.doorbells().len()), (1, 0));
    sleep_until(at + Duration::from_secs(5)).await;
    assert_eq!(rings().await, Rang::Taken);
    // Without a word of how long, after two seconds.
    let fcm = Fcm::start().await;
    let client = fcm.client();
    fcm.refuse_grant(StatusCode::INTERNAL_SERVER_ERROR, None);
    let at = Instant::now();
    for _ in 0..5 {
        let failed = client.ring("a-token", &ring).await;
        assert_eq!(failed, Rang::Later(Trouble::Unavailable, None));
    }
    assert_eq!(fcm.grants().len(), 1);
    sleep_until(at + Duration::from_millis(2500)).await;
    assert_eq!(client.ring("a-token", &ring).await, Rang::Taken);
}

async fn a_push_service_that_never_answers_one_device_rings_the_others(database: Database) {
    let fcm = Fcm::start().await;
    let world = ringing(database, &fcm).await;
    let (phones, group) = asleep(&world, 5).await;
    fcm.reply_to(&token(2), Reply::Never);
    let at = Instant::now();
    phones[0].send_all(&group, "expense", "00").await.ok();
    fcm.until_doorbells(4).await;
    assert!(at.elapsed() < Duration::from_secs(5), "{:?}", at.elapsed());
    assert_eq!(fcm.rung(), [2, 3, 4, 5].map(token));
}

async fn a_relay_that_is_killed_with_doorbells_pending_rings_them_after_its_start(
    database: Database,
) {
    let fcm = Fcm::start().await;
    fcm.reply_always(Reply::Broken);
    let mut relay = process(database, &fcm, &[]).await;
    let phones: Vec<Phone> = (1..=3).map(|seed| Phone::new(relay.public(), seed)).collect();
    let group = phones[0].create().await;
    for (phone, seed) in phones.iter().zip(1..).skip(1) {
        phone.join(&group).await.ok();
        phone.register(Some(&token(seed))).await;
    }
    let payload = phones[0].send_all(&group, "expense", "00").await.ok();
    phones[2].ack(payload["id"].as_str().expect("an id")).await.ok();
    fcm.until_doorbells(1).await;
    relay.kill();
    let before = fcm.doorbells().len();
    fcm.reply_always(Reply::Taken);
    relay.run().await;
    fcm.until_doorbells(before + 1).await;
    let rung = &fcm.doorbells()[before];
    let payload = payload["id"].as_str().expect("an id");
    assert_eq!(rung.json(), expected(&token(2), &group, payload, "HIGH"));
    // The other one has acked, durably.
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fcm.doorbells().len(), before + 1);
}

/// As the real push service is reached: a certificate that is checked, and one connection for all.
async fn doorbells_to_a_push_service_behind_tls_share_one_connection_of_http_2(database: Database) {
    let fcm = Fcm::start_secure().await;
    let certificate = fcm.certificate().display().to_string();
    let relay = process(database, &fcm, &[("SSL_CERT_FILE", &certificate)]).await;
    let phones: Vec<Phone> = (1..=10).map(|seed| Phone::new(relay.public(), seed)).collect();
    let group = phones[0].create().await;
    phones[1].join(&group).await.ok();
    phones[1].register(Some(&token(2))).await;
    phones[0].send_all(&group, "expense", "00").await.ok();
    fcm.until_doorbells(1).await;
    let connections = fcm.connections();

    for (phone, seed) in phones.iter().zip(1..).skip(2) {
        phone.join(&group).await.ok();
        phone.register(Some(&token(seed))).await;
    }
    phones[0].send_all(&group, "expense", "01").await.ok();
    let all: Vec<String> = (2..=10).map(token).collect();
    eventually("every phone is rung", async || {
        let rung: BTreeSet<String> = fcm.rung().into_iter().collect();
        rung.into_iter().eq(all.iter().cloned())
    })
    .await;
    assert_eq!(fcm.connections(), connections, "what is open is used again");
    for heard in fcm.grants().iter().chain(&fcm.doorbells()) {
        assert_eq!(heard.version, Version::HTTP_2);
    }

    // Nobody else's word is taken for the push service's.
    let other = Fcm::start_secure().await;
    let certificate = fcm.certificate().display().to_string();
    let place = Place::new(database).await;
    let [credentials, base] = other.variables();
    let variables = [
        (credentials.0.as_str(), credentials.1.as_str()),
        (base.0.as_str(), base.1.as_str()),
        ("SSL_CERT_FILE", &certificate),
    ];
    let relay = RelayProcess::start(place, &variables).await;
    let phones: Vec<Phone> = (1..=2).map(|seed| Phone::new(relay.public(), seed)).collect();
    let group = phones[0].create().await;
    phones[1].join(&group).await.ok();
    phones[1].register(Some(&token(2))).await;
    phones[0].send_all(&group, "expense", "00").await.ok();
    eventually("it says that it could not reach the push service", async || {
        relay.metric("sealwire_doorbells_failed_total", "unreachable").await > 0.0
    })
    .await;
    assert!(other.grants().is_empty() && other.doorbells().is_empty());
}

/// The private key of a test's device.
fn secret(seed: u8) -> [u8; 32] {
    let mut secret = [seed; 32];
    secret[0] = 0xde;
    secret
}

/// That of the device that every vault here enrols.
const SLEEPER: [u8; 32] = [33; 32];

/// It, with a session.
async fn sleeper(relay: &RelayProcess) -> Device {
    let mut device = Device::new(relay.url(), 33);
    device.identity = Identity::from_seed(&SLEEPER);
    device.connect().await;
    device
}

/// A vault of this device and another one, which is never here.
async fn vault_of(owner: &mut Device) -> (LogId, DeviceKey) {
    let found = Control::Found { log_type: LogType::Vault, random: [9; 32], join_key: None };
    let signed = Outline::first().sign(&owner.identity, &found.encode()).expect("short");
    let vault = native_log_id(&signed.entry.header);
    owner.view_mut(vault).own = Mark { count: 1, digest: signed.digest };
    owner.send_signed(&signed).await.expect("founded");
    let sleeper = SigningKey::from_bytes(&SLEEPER);
    let device = device_key(&sleeper);
    let signature = sign(&sleeper, &enrol_message(vault, device, owner.key()));
    owner.control(vault, &Control::Enrol { device, signature }).await.expect("enrolled");
    (vault, device)
}

async fn devices_of_a_vault_are_rung_like_everybody(database: Database) {
    let fcm = Fcm::start().await;
    let world = ringing(database, &fcm).await;
    let system = world.system();
    let mut owner = Device::connected(world.url(), 1).await;
    let (vault, sleeper) = vault_of(&mut owner).await;
    let place = Some(("fcm".to_owned(), token(2)));
    system.set_push_token(sleeper, place).await.expect("registered");
    let place = Some(("fcm".to_owned(), token(1)));
    system.set_push_token(owner.key(), place).await.expect("registered");
    owner.append(vault, b"a changeset").await;
    fcm.until_doorbells(1).await;
    let heard = fcm.doorbells()[0].json();
    let payload = heard["message"]["data"]["payloadId"].as_str().expect("an id").to_owned();
    assert_eq!(heard, expected(&token(2), &vault.to_uuid_text(), &payload, "NORMAL"));
}

async fn whoever_listens_to_a_vault_is_rung_unless_it_pulls_from_where_it_stands(
    database: Database,
) {
    let fcm = Fcm::start().await;
    let world = ringing(database, &fcm).await;
    let mut laptop = Client::found(&world).await;
    let (tablet, phone) = (laptop.enrol(&world, 2).await, laptop.enrol(&world, 3).await);
    let mut streams = Vec::new();
    for (device, seed) in [(&tablet, 2), (&phone, 3)] {
        device.phone.register(Some(&token(seed))).await;
        streams.push(device.phone.listen(&device.path("/changesets/stream?after=3")).await);
    }
    let at = Instant::now();
    let signed = laptop.sign(Kind::Ring, b"a changeset");
    laptop.push(&[signed]).await.ok();
    for stream in &mut streams {
        while stream.next_raw().await.expect("it goes on").0 != "changeset" {}
    }
    // Both were given it; that one of them has it, it says by asking what comes next.
    let next = phone.pull(4).await;
    assert_eq!((&next["changesets"], &next["more"]), (&json!([]), &json!(false)));
    fcm.until_doorbells(1).await;
    let took = at.elapsed();
    assert!(took >= Duration::from_secs(10) && took < Duration::from_secs(15), "{took:?}");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fcm.rung(), [token(2)]);
}

async fn a_device_of_the_sdk_says_where_it_is_rung(database: Database) {
    let fcm = Fcm::start().await;
    let world = ringing(database, &fcm).await;
    let (mut alice, mut bob) = (Person::new().await, Person::new().await);
    // Before it is connected, and after: at each connection it is said anew.
    bob.device.set_push_token("fcm", Some(&token(1))).expect("short");
    alice.connect(&world.url()).await;
    bob.connect(&world.url()).await;
    let log = alice.found(&world.url()).await;
    bob.join(&alice, log).await;
    let (store, key) = (world.store(), bob.device.key());
    for seed in [1, 2] {
        let place = Some(("fcm".to_owned(), token(seed)));
        eventually("it is registered", async || store.push_token(key).await == Ok(place.clone()))
            .await;
        bob.device.set_push_token("fcm", Some(&token(2))).expect("short");
    }
    bob.disconnect().await;
    alice.say(log, "wake up").await;
    fcm.until_doorbells(1).await;
    let heard = fcm.doorbells()[0].json();
    let payload = heard["message"]["data"]["payloadId"].as_str().expect("an id").to_owned();
    assert_eq!(heard, expected(&token(2), &log.to_uuid_text(), &payload, "HIGH"));
    bob.device.set_push_token("fcm", None).expect("short");
    bob.connect(&world.url()).await;
    eventually("it is taken back", async || store.push_token(key).await == Ok(None)).await;
}

async fn an_operator_can_try_a_doorbell(database: Database) {
    let fcm = Fcm::start().await;
    let relay = process(database, &fcm, &[]).await;
    let phone = Phone::new(relay.public(), 1);
    let test = async || relay.say(&["push", "test", &phone.name()]).await;
    let said = |output: &Output| {
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    };
    let output = test().await;
    assert!(!output.status.success() && said(&output).contains("has not said where"), "{output:?}");
    phone.register(Some(&token(1))).await;
    let output = test().await;
    assert!(output.status.success() && said(&output).contains("has taken"), "{output:?}");
    let zeros = "00000000-0000-0000-0000-000000000000";
    let heard = fcm.doorbells()[0].json();
    assert_eq!(heard["message"]["data"]["groupId"], zeros);
    fcm.reply(Reply::Unregistered);
    let output = test().await;
    assert!(!output.status.success() && said(&output).contains("does not know"), "{output:?}");
    assert!(!said(&output).contains(&token(1)));
}

#[tokio::test]
async fn without_credentials_nobody_is_rung_and_that_is_said_once() {
    let mut relay = RelayProcess::start(Place::new(Database::Sqlite).await, &[]).await;
    let phone = Phone::new(relay.public(), 1);
    phone.register(Some(&token(1))).await;
    let other = Phone::new(relay.public(), 2);
    let group = other.create().await;
    phone.join(&group).await.ok();
    other.send_all(&group, "expense", "00").await.ok();
    let output = relay.say(&["push", "test", &phone.name()]).await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("GOOGLE_APPLICATION_CREDENTIALS"));
    assert!(relay.stop().await.status.success());
    assert_eq!(relay.said().matches("no push service").count(), 1);
}

#[tokio::test]
async fn credentials_that_cannot_be_used_are_an_error_at_start() {
    let place = Place::new(Database::Sqlite).await;
    let file = place.data().join("account.json");
    std::fs::write(&file, "{\"private_key\": \"planted\"}").expect("written");
    let path = file.display().to_string();
    let relay = RelayProcess::prepare(place, &[("GOOGLE_APPLICATION_CREDENTIALS", path.as_str())]);
    let output = relay.say(&["serve"]).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("account.json"), "{said}");
    assert!(said.contains("is no JSON file of a Google service account"), "{said}");
    assert!(!said.contains("planted"));
}
