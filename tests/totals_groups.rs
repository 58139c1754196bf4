//! Phones make, join, list and leave groups, and everybody sees the same.

use serde_json::json;

use crate::support::cluster::Cluster;
use crate::support::eventually;
use crate::support::on_both_databases;
use crate::support::phone::Phone;
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;
use crate::support::world::World;

on_both_databases!(
    a_group_is_listed_whole_and_the_same_to_all_its_members,
    joining_twice_changes_nothing_and_joining_again_is_new,
    a_device_is_in_no_more_groups_than_allowed,
    a_group_has_no_more_members_than_allowed,
    a_stranger_is_told_the_same_on_every_route,
    a_farewell_is_heard_after_leaving_and_nothing_else_is,
    a_group_ends_when_its_last_member_leaves,
    a_push_token_is_one_devices_at_a_time,
    nonsense_is_refused_in_words,
);

async fn a_group_is_listed_whole_and_the_same_to_all_its_members(database: Database) {
    let world = World::start(database).await;
    let phones: Vec<Phone> = (1..=4).map(|seed| Phone::new(world.address(), seed)).collect();
    let made = phones[0].post("/groups", json!({})).await;
    assert_eq!(made.status, 201);
    let made = made.ok();
    let group = made["id"].as_str().expect("it is there").to_owned();
    assert_eq!((group.len(), &group[14..15]), (36, "4"), "a UUID of version 4");
    assert_eq!(group, group.to_lowercase());
    let created_at = made["createdAt"].as_str().expect("it is there");
    assert!(created_at.ends_with('Z') && made["expiresAt"].is_null());
    for phone in &phones[1..] {
        // A pasted code may be in any case.
        phone.join(&group.to_uppercase()).await.ok();
    }
    let listed = phones[0].get("/groups").await.ok();
    assert_eq!(listed["groups"][0]["createdAt"], created_at);
    assert!(listed["groups"][0]["expiresAt"].is_null());
    let expected = phones[0].groups().await;
    assert_eq!(expected.len(), 1);
    assert_eq!(expected[0].0, group);
    assert_eq!(expected[0].1[0], (phones[0].name(), created_at.to_owned()));
    let names: Vec<&String> = expected[0].1.iter().map(|(name, _)| name).collect();
    assert_eq!(
        names,
        phones.iter().map(Phone::name).collect::<Vec<_>>().iter().collect::<Vec<_>>()
    );
    for phone in &phones {
        assert_eq!(phone.groups().await, expected);
        assert_eq!(phone.members(&group).await, expected[0].1);
    }
    // The same after a restart.
    let mut world = world;
    world.stop().await;
    world.run().await;
    assert_eq!(phones[2].groups().await, expected);
}

async fn joining_twice_changes_nothing_and_joining_again_is_new(database: Database) {
    let world = World::start(database).await;
    let (alice, bob) = (Phone::new(world.address(), 1), Phone::new(world.address(), 2));
    let group = alice.create().await;
    let first = bob.join(&group).await.ok()["joinedAt"].clone();
    let (twice, thrice) = tokio::join!(bob.join(&group), bob.join(&group));
    assert_eq!(twice.ok()["joinedAt"], first);
    assert_eq!(thrice.ok()["joinedAt"], first);
    alice.join(&group).await.ok();
    let before = alice.members(&group).await;
    assert_eq!(before.len(), 2);

    bob.leave(&group).await.ok();
    assert_eq!(bob.groups().await, []);
    assert_eq!(alice.members(&group).await, before[..1]);
    bob.leave(&group).await.refused(403, "not_member");
    let again = bob.join(&group).await.ok()["joinedAt"].clone();
    assert_ne!(again, first, "a new time of joining");
    let after = alice.members(&group).await;
    assert_eq!(after[1], (bob.name(), again.as_str().expect("it is there").to_owned()));
    assert_eq!(after[0], before[0]);
}

async fn a_device_is_in_no_more_groups_than_allowed(database: Database) {
    let world = World::start(database).await;
    let (alice, bob) = (Phone::new(world.address(), 1), Phone::new(world.address(), 2));
    let mut groups = Vec::new();
    for _ in 0..6 {
        groups.push(alice.create().await);
    }
    let refused = alice.post("/groups", json!({})).await.refused(403, "group_limit_reached");
    assert_eq!(refused["limit"], 6);
    let seventh = bob.create().await;
    assert_eq!(alice.join(&seventh).await.refused(403, "group_limit_reached")["limit"], 6);
    assert_eq!(alice.groups().await.len(), 6);
    // What one is in already can be joined as often as one likes, and a place that is given back
    // can be had again.
    alice.join(&groups[0]).await.ok();
    bob.join(&groups[0]).await.ok();
    alice.leave(&groups[0]).await.ok();
    alice.join(&seventh).await.ok();
    alice.post("/groups", json!({})).await.refused(403, "group_limit_reached");
    assert_eq!(alice.groups().await.len(), 6);
}

async fn a_group_has_no_more_members_than_allowed(database: Database) {
    let world = World::start(database).await;
    let founder = Phone::new(world.address(), 0);
    let group = founder.create().await;
    let joined = (1..64).map(|seed| {
        let phone = Phone::new(world.address(), seed);
        let group = group.clone();
        async move { phone.join(&group).await.ok() }
    });
    futures_util::future::join_all(joined).await;
    assert_eq!(founder.members(&group).await.len(), 64);
    let late = Phone::new(world.address(), 64);
    assert_eq!(late.join(&group).await.refused(403, "group_full")["limit"], 64);
    // A refused join takes no place among one's own.
    for _ in 0..6 {
        late.create().await;
    }
    Phone::new(world.address(), 63).leave(&group).await.ok();
    Phone::new(world.address(), 65).join(&group).await.ok();
}

async fn a_stranger_is_told_the_same_on_every_route(database: Database) {
    let world = World::start(database).await;
    let (alice, eve) = (Phone::new(world.address(), 1), Phone::new(world.address(), 2));
    let group = alice.create().await;
    let blob = json!({ "encryptedBlob": "00ff", "recipientPublicKeys": [alice.name()] });
    let mut device = world.device(9).await;
    let native = device.found().await.log.to_uuid_text();
    let missing = "00000000-0000-4000-8000-000000000001";
    for (id, status, code) in [
        (group.as_str(), 403, "not_member"),
        (missing, 404, "group_not_found"),
        ("nonsense", 404, "group_not_found"),
        (native.as_str(), 409, "native_group"),
    ] {
        for path in ["members", "pending", "pending/stream"] {
            eve.get(&format!("/groups/{id}/{path}")).await.refused(status, code);
        }
        for path in ["payloads", "payloads/targeted", "nudges"] {
            eve.post(&format!("/groups/{id}/{path}"), blob.clone()).await.refused(status, code);
        }
        eve.leave(id).await.refused(status, code);
        if id != group {
            eve.join(id).await.refused(status, code);
        }
        let refused = eve.try_listen(&format!("/groups/{id}/pending/stream")).await;
        refused.err().expect("refused").refused(status, code);
    }
    assert_eq!(eve.groups().await, []);
    assert_eq!(alice.blobs(&group).await, Vec::<String>::new());
}

async fn a_farewell_is_heard_after_leaving_and_nothing_else_is(database: Database) {
    let mut world = World::start(database).await;
    let phones: Vec<Phone> = (1..=4).map(|seed| Phone::new(world.address(), seed)).collect();
    let group = phones[0].create().await;
    for phone in &phones[1..] {
        phone.join(&group).await.ok();
    }
    // At the same time, as the app does it, and then in the worse order.
    let goodbye = phones[1].beside();
    let (left, said) =
        tokio::join!(phones[1].leave(&group), goodbye.send_all(&group, "member_left", "b1"));
    left.ok();
    said.ok();
    phones[2].leave(&group).await.ok();
    phones[2].send_all(&group, "member_left", "b2").await.ok();
    phones[2].send_to(&group, "join_cancel", &[&phones[3]], "b3").await.ok();
    for kind in ["expense", "member_meta", "group"] {
        phones[2].send_all(&group, kind, "bf").await.refused(403, "not_member");
    }
    phones[2].get(&format!("/groups/{group}/pending")).await.refused(403, "not_member");
    // Also if the relay has been started anew in between.
    world.stop().await;
    world.run().await;
    phones[2].send_all(&group, "member_left", "b4").await.ok();
    phones[2].send_all(&group, "expense", "bf").await.refused(403, "not_member");
    assert_eq!(phones[0].blobs(&group).await, ["b1", "b2", "b4"]);
    assert_eq!(phones[3].blobs(&group).await, ["b1", "b2", "b3", "b4"]);
    let senders: Vec<String> = phones[0]
        .pending(&group)
        .await
        .iter()
        .map(|payload| payload["senderPublicKey"].as_str().expect("it is there").to_owned())
        .collect();
    assert_eq!(senders, [phones[1].name(), phones[2].name(), phones[2].name()]);
    // Who was never there says no farewell.
    let eve = Phone::new(world.address(), 9);
    eve.send_all(&group, "member_left", "bf").await.refused(403, "not_member");
}

async fn a_group_ends_when_its_last_member_leaves(database: Database) {
    let world = World::start(database).await;
    let (alice, bob) = (Phone::new(world.address(), 1), Phone::new(world.address(), 2));
    let group = alice.create().await;
    bob.join(&group).await.ok();
    alice.send_all(&group, "expense", "aa").await.ok();
    alice.leave(&group).await.ok();
    assert_eq!(bob.blobs(&group).await, ["aa"], "what was sent stays");
    bob.leave(&group).await.ok();
    eventually("the group has ended", async || alice.join(&group).await.status == 404).await;
    assert_eq!(bob.groups().await, []);
}

async fn a_push_token_is_one_devices_at_a_time(database: Database) {
    let world = World::start(database).await;
    let (alice, bob) = (Phone::new(world.address(), 1), Phone::new(world.address(), 2));
    let register = async |phone: &Phone, token: Option<&str>| {
        let platform = token.map(|_| "fcm");
        let body = json!({ "pushToken": token, "pushPlatform": platform });
        phone.call("PUT", "/groups/push-registration", Some(body)).await.expect("an answer")
    };
    let kept = async |phone: &Phone| {
        world.store().push_token(phone.key()).await.expect("read").map(|(_, token)| token)
    };
    register(&alice, Some("first")).await.ok();
    assert_eq!(kept(&alice).await.as_deref(), Some("first"));
    register(&alice, Some("second")).await.ok();
    register(&bob, Some("second")).await.ok();
    assert_eq!((kept(&alice).await, kept(&bob).await), (None, Some("second".to_owned())));
    register(&bob, None).await.ok();
    register(&alice, None).await.ok();
    assert_eq!((kept(&alice).await, kept(&bob).await), (None, None));
    let body = json!({ "pushToken": "x", "pushPlatform": "pigeon" });
    let refused =
        alice.call("PUT", "/groups/push-registration", Some(body)).await.expect("it is there");
    assert_eq!(refused.status, 400);
    register(&alice, Some(&"x".repeat(4000))).await.refused(400, "malformed");
}

async fn nonsense_is_refused_in_words(database: Database) {
    let world = World::start(database).await;
    let alice = Phone::new(world.address(), 1);
    let group = alice.create().await;
    let path = format!("/groups/{group}/payloads");
    for body in [
        json!({}),
        json!({ "encryptedBlob": "" }),
        json!({ "encryptedBlob": "abc" }),
        json!({ "encryptedBlob": "zz" }),
        json!({ "encryptedBlob": 7 }),
        json!({ "encryptedBlob": "aa", "kind": 7 }),
        json!({ "encryptedBlob": "aa", "kind": "x".repeat(65) }),
        json!({ "encryptedBlob": "aa", "kind": "a\u{0}b" }),
        json!([]),
    ] {
        alice.post(&path, body).await.refused(400, "bad_request");
    }
    let targeted = format!("{path}/targeted");
    for body in [
        json!({ "encryptedBlob": "aa" }),
        json!({ "encryptedBlob": "aa", "recipientPublicKeys": "all" }),
        json!({ "encryptedBlob": "aa", "recipientPublicKeys": ["abc"] }),
    ] {
        alice.post(&targeted, body).await.refused(400, "bad_request");
    }
    let proof = alice.proof().await.expect("it is there");
    let broken = alice.send("POST", &path, &proof, Some(b"{\"encryptedBlob".to_vec())).await;
    broken.expect("it is there").refused(400, "bad_request");
    let long = vec![b'x'; 700 * 1024];
    alice
        .send("POST", &path, &proof, Some(long))
        .await
        .expect("it is there")
        .refused(413, "too_large");
    alice.get("/groups/nothing/here").await.refused(404, "not_found");
    alice
        .call("DELETE", "/groups", None)
        .await
        .expect("it is there")
        .refused(405, "method_not_allowed");
}

/// An empty list would take all groups from the app.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_that_cannot_be_read_is_refused_and_never_empty() {
    let mut cluster = Cluster::start().await;
    let mut relay = RelayProcess::start(Place::beside(cluster.url()), &[]).await;
    let alice = Phone::new(relay.public(), 1);
    let bob = Phone::new(relay.public(), 2);
    let group = alice.create().await;
    bob.join(&group).await.ok();
    alice.send_all(&group, "expense", "aa").await.ok();
    let (groups, pending) = (bob.groups().await, bob.pending(&group).await);
    cluster.stop_at_once().await;
    for path in [
        "/groups".to_owned(),
        format!("/groups/{group}/members"),
        format!("/groups/{group}/pending"),
    ] {
        bob.get(&path).await.refused(503, "unavailable");
    }
    alice.send_all(&group, "expense", "bb").await.refused(503, "unavailable");
    bob.ack(pending[0]["id"].as_str().expect("it is there")).await.refused(503, "unavailable");
    alice.post("/groups", json!({})).await.refused(503, "unavailable");
    cluster.run().await;
    relay.until_ready().await;
    assert_eq!(bob.groups().await, groups);
    assert_eq!(bob.blobs(&group).await, ["aa"]);
    bob.ack(pending[0]["id"].as_str().expect("it is there")).await.ok();
    assert_eq!(bob.blobs(&group).await, Vec::<String>::new());
}
