//! Payloads reach those whom they are for, stay until they are acked, and no longer.

use serde_json::json;

use crate::support::on_both_databases;
use crate::support::phone::Phone;
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;
use crate::support::world::World;
use sealwire_protocol::LogId;

on_both_databases!(
    a_payload_reaches_every_member_but_its_sender,
    a_named_payload_reaches_those_who_are_named_and_there,
    a_joiner_is_given_nothing_from_before,
    an_ack_can_be_repeated_and_frees_the_body_when_it_is_the_last,
    acks_between_payloads_that_stay_are_all_kept,
    an_ack_that_was_answered_outlives_a_kill,
    a_page_that_does_not_hold_everything_begins_with_what_is_for_me_alone,
    five_thousand_payloads_that_nobody_acks_hide_nothing,
    the_largest_blob_is_taken,
);

/// Phones in one group.
async fn together(world: &World, count: u8) -> (Vec<Phone>, String) {
    let phones: Vec<Phone> = (1..=count).map(|seed| Phone::new(world.address(), seed)).collect();
    let group = phones[0].create().await;
    for phone in &phones[1..] {
        phone.join(&group).await.ok();
    }
    (phones, group)
}

fn id(payload: &serde_json::Value) -> String {
    payload["id"].as_str().expect("an id").to_owned()
}

async fn a_payload_reaches_every_member_but_its_sender(database: Database) {
    let world = World::start(database).await;
    let (phones, group) = together(&world, 3).await;
    let sent = phones[0].send_all(&group, "expense", "00ABff").await;
    assert_eq!(sent.status, 201);
    let sent = sent.ok();
    // Without a kind, as the oldest apps send it, and with fields that nobody knows.
    let body = json!({
        "encryptedBlob": "01", "encryptedNotificationPreview": "x", "senderPublicKey": phones[2].name(),
    });
    phones[1].post(&format!("/groups/{group}/payloads"), body).await.ok();
    let pending = phones[2].pending(&group).await;
    assert_eq!(
        pending[0],
        json!({
            "id": sent["id"], "groupId": group, "senderPublicKey": phones[0].name(),
            "encryptedBlob": "00abff", "kind": "expense", "createdAt": sent["createdAt"],
        })
    );
    assert_eq!((&pending[1]["kind"], pending.len()), (&json!("group"), 2));
    assert_eq!(pending[1]["senderPublicKey"], phones[1].name(), "the key that was proved");
    assert_eq!(phones[0].blobs(&group).await, ["01"]);
    assert_eq!(phones[1].blobs(&group).await, ["00abff"]);
    assert_eq!(id(&phones[1].pending(&group).await[0]), id(&pending[0]));
}

async fn a_named_payload_reaches_those_who_are_named_and_there(database: Database) {
    let world = World::start(database).await;
    let (phones, group) = together(&world, 4).await;
    let eve = Phone::new(world.address(), 9);
    phones[3].leave(&group).await.ok();
    phones[0].send_to(&group, "key_exchange", &[&phones[1]], "01").await.ok();
    let named = json!({
        "encryptedBlob": "02", "kind": "nudge",
        "recipientPublicKeys": [phones[2].name(), phones[1].name(), phones[3].name(), eve.name(), phones[1].name(), phones[0].name()],
    });
    phones[0].post(&format!("/groups/{group}/nudges"), named).await.ok();
    // For nobody is not for all.
    for nobody in [vec![&phones[3]], vec![&eve, &phones[0]], vec![]] {
        let answer = phones[0].send_to(&group, "nudge", &nobody, "03").await;
        assert_eq!((answer.status, &answer.json["id"]), (200, &json!(null)));
    }
    let unnamed = json!({ "encryptedBlob": "04", "recipientPublicKeys": [phones[1].name()] });
    phones[0].post(&format!("/groups/{group}/nudges"), unnamed).await.ok();
    assert_eq!(phones[1].blobs(&group).await, ["01", "02", "04"]);
    assert_eq!(phones[1].pending(&group).await[2]["kind"], "nudge");
    assert_eq!(phones[2].blobs(&group).await, ["02"]);
    assert_eq!(phones[0].blobs(&group).await, Vec::<String>::new());
}

async fn a_joiner_is_given_nothing_from_before(database: Database) {
    let world = World::start(database).await;
    let (phones, group) = together(&world, 3).await;
    phones[0].send_all(&group, "expense", "01").await.ok();
    let late = Phone::new(world.address(), 9);
    late.join(&group).await.ok();
    assert_eq!(late.blobs(&group).await, Vec::<String>::new());
    phones[0].send_all(&group, "expense", "02").await.ok();
    assert_eq!(late.blobs(&group).await, ["02"]);
    // Who leaves gives up what waits, and who joins again waits for what comes later.
    late.leave(&group).await.ok();
    phones[0].send_all(&group, "expense", "03").await.ok();
    late.join(&group).await.ok();
    phones[0].send_all(&group, "expense", "04").await.ok();
    assert_eq!(late.blobs(&group).await, ["04"]);
    assert_eq!(phones[2].blobs(&group).await, ["01", "02", "03", "04"]);
}

async fn an_ack_can_be_repeated_and_frees_the_body_when_it_is_the_last(database: Database) {
    let world = World::start(database).await;
    let (phones, group) = together(&world, 3).await;
    let log = LogId::from_uuid_text(&group).expect("it is there");
    for blob in ["01", "02", "03"] {
        phones[0].send_all(&group, "expense", blob).await.ok();
    }
    let pending = phones[1].pending(&group).await;
    let ids: Vec<String> = pending.iter().map(id).collect();
    phones[1].ack(&ids[1]).await.ok();
    assert_eq!(phones[1].blobs(&group).await, ["01", "03"]);
    assert_eq!(phones[2].blobs(&group).await, ["01", "02", "03"], "another's are not touched");
    phones[1].ack(&ids[1]).await.ok();
    assert_eq!(world.bodies(log).await.len(), 3);
    phones[2].ack_all(&ids[1..]).await.ok();
    // What is not known is passed over.
    let mut all = ids.clone();
    all.extend(["nonsense".to_owned(), group.clone()]);
    phones[1].ack_all(&all).await.ok();
    assert_eq!(phones[1].blobs(&group).await, Vec::<String>::new());
    let first = world.stored(log).await.live.first().map(|live| live.seq).expect("it is there");
    world.until_bodies(log, &[first]).await;

    let eve = Phone::new(world.address(), 9);
    for unknown in ["nonsense", "00000000-0000-8000-8000-000000000000", &group] {
        phones[1].ack(unknown).await.refused(404, "payload_not_found");
    }
    eve.ack(&ids[0]).await.refused(404, "payload_not_found");
    eve.ack_all(&ids).await.ok();
    assert_eq!(phones[2].blobs(&group).await, ["01"], "nobody acks for another");
    phones[2].ack(&ids[0]).await.ok();
    world.until_bodies(log, &[]).await;
}

async fn acks_between_payloads_that_stay_are_all_kept(database: Database) {
    const COUNT: usize = 700;
    let mut world = World::start(database).await;
    let (phones, group) = together(&world, 2).await;
    for number in 0..COUNT {
        // Others' and one's own stand in between.
        phones[0].send_all(&group, "expense", &format!("{number:08x}")).await.ok();
        if number % 5 == 0 {
            phones[1].send_all(&group, "expense", "ee").await.ok();
        }
    }
    let pending = phones[1].pending(&group).await;
    assert_eq!(pending.len(), COUNT);
    let acked: Vec<String> = pending.iter().skip(1).step_by(2).map(id).collect();
    // One by one, then many at once.
    for id in &acked[..20] {
        phones[1].ack(id).await.ok();
    }
    phones[1].ack_all(&acked).await.ok();
    let left: Vec<String> = (0..COUNT).step_by(2).map(|number| format!("{number:08x}")).collect();
    assert_eq!(phones[1].blobs(&group).await, left);
    world.stop().await;
    world.run().await;
    assert_eq!(phones[1].blobs(&group).await, left);
    let rest: Vec<String> = phones[1].pending(&group).await.iter().map(id).collect();
    phones[1].ack_all(&rest).await.ok();
    assert_eq!(phones[1].blobs(&group).await, Vec::<String>::new());
    let log = LogId::from_uuid_text(&group).expect("it is there");
    let record = world.stored(log).await;
    let mine =
        record.members.iter().find(|it| it.member.device == phones[1].key()).expect("it is there");
    assert!(mine.acked.ranges().len() <= 1, "what does not wait holds up no floor");
}

async fn an_ack_that_was_answered_outlives_a_kill(database: Database) {
    let mut relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let (alice, bob) = (Phone::new(relay.public(), 1), Phone::new(relay.public(), 2));
    let group = alice.create().await;
    bob.join(&group).await.ok();
    for round in 0..3 {
        let first = format!("{round}0");
        alice.send_all(&group, "expense", &first).await.ok();
        let sent = alice.send_all(&group, "expense", &format!("{round}1")).await.ok();
        relay.kill();
        relay.run().await;
        bob.ack(sent["id"].as_str().expect("it is there")).await.ok();
        relay.kill();
        relay.run().await;
        let expected: Vec<String> = (0..=round).map(|round| format!("{round}0")).collect();
        assert_eq!(bob.blobs(&group).await, expected);
    }
    assert_eq!(relay.metric("sealwire_outcomes_total", "fetched").await, 0.0, "a new process");
    let rest: Vec<String> = bob.pending(&group).await.iter().map(id).collect();
    bob.ack_all(&rest).await.ok();
    assert_eq!(relay.metric("sealwire_outcomes_total", "fetched").await, 3.0);
}

async fn a_page_that_does_not_hold_everything_begins_with_what_is_for_me_alone(database: Database) {
    let world = World::start(database).await;
    let (phones, group) = together(&world, 3).await;
    let large = |number: usize| format!("{number:02x}").repeat(200 * 1024);
    for number in 0..12 {
        phones[0].send_all(&group, "group_snapshot", &large(number)).await.ok();
    }
    phones[0].send_to(&group, "nudge", &[&phones[1], &phones[2]], "f0").await.ok();
    phones[0].send_to(&group, "key_exchange", &[&phones[1]], "f1").await.ok();
    phones[0].send_to(&group, "key_exchange", &[&phones[1]], "f2").await.ok();
    let first = |blobs: Vec<String>| blobs.iter().map(|it| it[..2].to_owned()).collect::<Vec<_>>();
    let page = first(phones[1].blobs(&group).await);
    assert_eq!(page[..4], ["f1", "f2", "00", "01"]);
    assert!(page.len() < 14, "{page:?}");
    // Page after page, everything comes.
    let mut seen = Vec::new();
    loop {
        let page = phones[1].pending(&group).await;
        if page.is_empty() {
            break;
        }
        seen.extend(
            page.iter()
                .map(|it| it["encryptedBlob"].as_str().expect("it is there")[..2].to_owned()),
        );
        let ids: Vec<String> = page.iter().map(id).collect();
        phones[1].ack_all(&ids).await.ok();
    }
    let mut expected: Vec<String> = vec!["f1".to_owned(), "f2".to_owned()];
    expected.extend((0..12).map(|number| format!("{number:02x}")));
    expected.push("f0".to_owned());
    assert_eq!(seen, expected);
}

async fn five_thousand_payloads_that_nobody_acks_hide_nothing(database: Database) {
    const COUNT: usize = 5000;
    let world = World::start(database).await;
    let (phones, group) = together(&world, 3).await;
    let senders: Vec<Phone> = (0..50).map(|_| phones[0].beside()).collect();
    let sending = senders.iter().enumerate().map(|(number, phone)| {
        let group = &group;
        async move {
            for one in 0..COUNT / 50 {
                let blob = format!("{:08x}{}", number * 1000 + one, "ab".repeat(150));
                phone.send_all(group, "expense", &blob).await.ok();
            }
        }
    });
    futures_util::future::join_all(sending).await;
    phones[2].send_all(&group, "expense", "ff01").await.ok();
    phones[2].send_to(&group, "key_exchange", &[&phones[1]], "ff02").await.ok();
    let page = phones[1].pending(&group).await;
    assert_eq!(page.len(), COUNT + 2);
    let mut stream = phones[1].listen(&format!("/groups/{group}/pending/stream")).await;
    assert_eq!(stream.blobs(COUNT + 2).await[COUNT..], ["ff01", "ff02"]);
    for payload in &page[COUNT..] {
        phones[1].ack(&id(payload)).await.ok();
    }
    assert_eq!(phones[1].pending(&group).await.len(), COUNT);
    phones[2].send_all(&group, "expense", "ff03").await.ok();
    assert_eq!(stream.blobs(1).await, ["ff03"]);
}

async fn the_largest_blob_is_taken(database: Database) {
    let world = World::start(database).await;
    let (phones, group) = together(&world, 2).await;
    let largest = "5a".repeat(256 * 1024);
    phones[0].send_all(&group, "group_snapshot", &largest).await.ok();
    let mut stream = phones[1].listen("/groups/pending/stream").await;
    assert_eq!(stream.blobs(1).await[0].len(), largest.len());
    assert_eq!(phones[1].blobs(&group).await, std::slice::from_ref(&largest));
    let longer = format!("{largest}00");
    phones[0].send_all(&group, "group_snapshot", &longer).await.refused(413, "too_large");
}
