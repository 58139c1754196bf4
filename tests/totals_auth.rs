//! A phone proves its key by a signed challenge or a token, and nobody else can.

use sealwire_protocol::signing::sign;
use serde_json::json;

use crate::support::on_both_databases;
use crate::support::phone::{Phone, Proof};
use crate::support::place::Database;
use crate::support::world::World;

on_both_databases!(
    a_challenge_is_signed_once,
    a_token_stands_for_its_key_and_for_no_other,
    several_tokens_of_one_key_live_beside_each_other,
    a_signed_request_is_answered_with_a_token,
    a_token_outlives_the_relay,
    many_phones_that_come_at_once_all_get_in,
);

async fn a_challenge_is_signed_once(database: Database) {
    let world = World::start(database).await;
    let phone = Phone::new(world.address(), 1);
    let challenge =
        phone.send("POST", "/auth/challenge", &Proof::None, None).await.expect("it is there").ok();
    assert_eq!(challenge["challenge"].as_str().map(str::len), Some(64), "32 bytes in hex");

    // The same proof, twice and at the same time: one is taken.
    let proof = phone.signed().await.expect("it is there");
    let (first, second) = tokio::join!(
        phone.send("GET", "/groups", &proof, None),
        phone.send("GET", "/groups", &proof, None)
    );
    let mut statuses = [first.expect("it is there").status, second.expect("it is there").status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 401]);
    phone
        .send("GET", "/groups", &proof, None)
        .await
        .expect("it is there")
        .refused(401, "unauthorized");

    // A session uses a challenge up as well.
    let Proof::Signed { challenge, signature } = phone.signed().await.expect("it is there") else {
        unreachable!("signed")
    };
    let body = json!({ "challenge": challenge, "signature": signature }).to_string().into_bytes();
    let opened = phone.send("POST", "/auth/session", &Proof::None, Some(body.clone())).await;
    opened.expect("it is there").ok();
    let again = phone.send("POST", "/auth/session", &Proof::None, Some(body)).await;
    again.expect("it is there").refused(401, "unauthorized");
}

async fn a_token_stands_for_its_key_and_for_no_other(database: Database) {
    let world = World::start(database).await;
    let (alice, bob) = (Phone::new(world.address(), 1), Phone::new(world.address(), 2));
    let session = alice.open_session().await.expect("it is there").ok();
    let expires_at = session["expiresAt"].as_str().expect("it is there");
    assert!(expires_at.ends_with('Z') && expires_at.len() == "2026-01-01T00:00:00.000Z".len());
    let token = Proof::Token(session["token"].as_str().expect("it is there").to_owned());
    alice.send("GET", "/groups", &token, None).await.expect("it is there").ok();
    // Another key with it, as after a recovery, is a 401, which the app heals by itself.
    bob.send("GET", "/groups", &token, None)
        .await
        .expect("it is there")
        .refused(401, "unauthorized");

    // One answer for everything that is no proof.
    let challenge =
        alice.send("POST", "/auth/challenge", &Proof::None, None).await.expect("it is there").ok();
    let challenge = challenge["challenge"].as_str().expect("it is there").to_owned();
    let Proof::Signed { challenge: bobs, signature: by_bob } =
        bob.signed().await.expect("it is there")
    else {
        unreachable!("signed")
    };
    let invented = "ab".repeat(32);
    let signature = sign(&alice.signing, &[0xab; 32]).to_hex();
    let wrong = [
        Proof::None,
        Proof::Token("not a token".to_owned()),
        Proof::Token(String::new()),
        Proof::Signed { challenge: bobs, signature: by_bob.clone() },
        Proof::Signed { challenge: challenge.clone(), signature: by_bob },
        Proof::Signed { challenge: invented, signature: signature.clone() },
        Proof::Signed { challenge: challenge.clone(), signature: "00".to_owned() },
        Proof::Signed { challenge: "zz".to_owned(), signature },
    ];
    for proof in wrong {
        let answer = alice.send("GET", "/groups", &proof, None).await.expect("it is there");
        answer.refused(401, "unauthorized");
    }
}

async fn several_tokens_of_one_key_live_beside_each_other(database: Database) {
    let world = World::start(database).await;
    let page = Phone::new(world.address(), 1);
    let coordinator = page.beside();
    page.get("/groups").await.ok();
    coordinator.get("/groups").await.ok();
    let tokens = (page.token(), coordinator.token());
    for phone in [&page, &coordinator] {
        let token = Proof::Token(phone.token().expect("it is there"));
        phone.send("GET", "/groups", &token, None).await.expect("it is there").ok();
    }
    assert_eq!((page.token(), coordinator.token()), tokens, "neither was replaced");
}

async fn a_signed_request_is_answered_with_a_token(database: Database) {
    let world = World::start(database).await;
    let phone = Phone::new(world.address(), 1);
    let proof = phone.signed().await.expect("it is there");
    let answer = phone.send("GET", "/groups", &proof, None).await.expect("it is there");
    let expires_at = answer.header("x-device-session-expires-at").expect("it is there");
    assert!(expires_at.ends_with('Z'));
    let token = Proof::Token(answer.header("x-device-session").expect("it is there").to_owned());
    let next = phone.send("GET", "/groups", &token, None).await.expect("it is there");
    assert_eq!(next.header("x-device-session"), None, "a fresh token is not replaced");
    next.ok();
}

async fn a_token_outlives_the_relay(database: Database) {
    let mut world = World::start(database).await;
    let phone = Phone::new(world.address(), 1);
    phone.get("/groups").await.ok();
    let token = Proof::Token(phone.token().expect("it is there"));
    let used = phone.signed().await.expect("it is there");
    phone.send("GET", "/groups", &used, None).await.expect("it is there").ok();
    world.stop().await;
    world.run().await;
    phone.get("/groups").await.ok();
    phone.send("GET", "/groups", &token, None).await.expect("it is there").ok();
    // What was used up stays used up.
    phone
        .send("GET", "/groups", &used, None)
        .await
        .expect("it is there")
        .refused(401, "unauthorized");
}

async fn many_phones_that_come_at_once_all_get_in(database: Database) {
    let world = World::start(database).await;
    let address = world.address();
    let phones = (0..200_u8).map(|seed| async move {
        let phone = Phone::new(address, seed);
        phone.get("/groups").await.ok()["groups"].as_array().cloned()
    });
    for groups in futures_util::future::join_all(phones).await {
        assert_eq!(groups, Some(Vec::new()));
    }
}
