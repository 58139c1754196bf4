//! Vaults for clients that ask over HTTP now and then: the same log, the same rules.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use sealwire_actors::Options;
use sealwire_client::entry::{Outline, Signed};
use sealwire_client::numbering::Mark;
use sealwire_protocol::digest::{chain_next, chain_start, entry_digest, sha256};
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::token::{Claims, Purpose, TokenKey};
use sealwire_protocol::{Control, DeviceKey, Digest, Head, Kind, LogId};
use serde_json::{Value, json};

use crate::support::phone::Proof;
use crate::support::place::Database;
use crate::support::vault_client::{Client, pushed};
use crate::support::world::World;
use crate::support::{eventually, on_both_databases};

on_both_databases!(
    a_client_without_a_session_pushes_and_pulls_and_is_revoked_at_once,
    a_token_opens_its_vault_for_its_device_and_nothing_else,
    every_route_of_a_vault_asks_who_it_is_and_whether_it_is_enrolled,
    what_is_pushed_wrong_is_refused_and_nothing_is_appended,
    a_snapshot_goes_up_and_comes_down_in_pieces,
    whoever_asks_now_and_then_learns_that_the_vault_is_full,
);

fn bytes(value: &Value) -> Vec<u8> {
    STANDARD.decode(value.as_str().expect("text")).expect("base64")
}

/// The bodies of changesets, in order; the chain is followed as any client must.
fn bodies(log: LogId, pulled: &Value) -> Vec<Vec<u8>> {
    let mut chain = chain_start(log);
    let mut bodies = Vec::new();
    for (changeset, seq) in pulled["changesets"].as_array().expect("a list").iter().zip(1_u64..) {
        assert_eq!(changeset["sequence"], seq);
        assert_eq!(changeset["vault_id"], log.to_uuid_text());
        let header = HeaderBytes::from_slice(&bytes(&changeset["header"])).expect("a header");
        chain = chain_next(chain, seq, entry_digest(&header));
        let sender = header.decode().expect("a header").sender;
        assert_eq!(changeset["origin_device"], sender.to_hex());
        bodies.push(bytes(&changeset["payload_encrypted"]));
    }
    assert_eq!(pulled["head"]["chain"], hex::encode(chain.0));
    bodies
}

async fn a_client_without_a_session_pushes_and_pulls_and_is_revoked_at_once(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Client::found(&world).await;
    let mut tablet = laptop.enrol(&world, 2).await;
    let token = tablet.vault_token().await;
    let batch: Vec<Signed> =
        (0..20_u8).map(|number| tablet.sign(Kind::Quiet, &[number; 100])).collect();
    let answer = tablet.push(&batch).await.ok();
    assert_eq!((&answer["sequence"], &answer["ack"]), (&json!(3), &json!(22)));
    let again = tablet.push(&batch).await.ok();
    assert_eq!((&again["ack"], &again["duplicate"]), (&json!(22), &json!(true)));
    // Both read all of it, the author too.
    for client in [&laptop, &tablet] {
        let pulled = client.pull(0).await;
        let read = bodies(client.log, &pulled);
        assert_eq!((read.len(), &read[21][..]), (22, &[19; 100][..]));
        assert_eq!(pulled["more"], false);
    }
    assert_eq!(laptop.pull(20).await["changesets"].as_array().map(Vec::len), Some(2));
    let devices = laptop.phone.get(&laptop.path("/devices")).await.ok();
    assert_eq!(devices["devices"].as_array().map(Vec::len), Some(2));
    assert!(tablet.pull_with(&token).await.is_success());

    let revoke = Control::Revoke { device: tablet.identity.key(), join_key: None };
    let signed = laptop.sign(Kind::Control, &revoke.encode());
    let seq = laptop.push(&[signed]).await.ok()["ack"].as_u64().expect("a seq");
    // With every proof, and every route: it is told where.
    let refused = tablet.pull_with(&token).await.refused(403, "revoked");
    assert_eq!(refused["sequence"], seq);
    let signed = tablet.sign(Kind::Quiet, b"too late");
    tablet.push(&[signed]).await.refused(403, "revoked");
    for route in ["/devices", "/snapshots", "/changesets"] {
        tablet.phone.get(&tablet.path(route)).await.refused(403, "revoked");
    }
    let stranger = Client::new(&world, 9, laptop.log);
    for route in ["/devices", "/snapshots", "/changesets"] {
        stranger.phone.get(&stranger.path(route)).await.refused(404, "no_such_log");
    }
}

async fn a_token_opens_its_vault_for_its_device_and_nothing_else(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Client::found(&world).await;
    let tablet = laptop.enrol(&world, 2).await;
    let token = laptop.vault_token().await;
    assert!(laptop.pull_with(&token).await.is_success());
    tablet.pull_with(&token).await.refused(401, "unauthorized");
    let other = Client::new(&world, 1, LogId([0x8a; 16]));
    other.pull_with(&token).await.refused(401, "unauthorized");
    laptop.pull_with("").await.refused(401, "unauthorized");
    laptop.pull_with("AAAA").await.refused(401, "unauthorized");
    // Made by this relay, and over; or for something else.
    let key = TokenKey::derive(b"a secret of the tests");
    let made = |purpose, expires| {
        let device = laptop.identity.key();
        let claims = Claims { purpose, device, log: laptop.log, issued: 1, expires };
        URL_SAFE_NO_PAD.encode(key.issue(&claims))
    };
    assert!(laptop.pull_with(&made(Purpose::Vault, u64::MAX)).await.is_success());
    laptop.pull_with(&made(Purpose::Vault, 600)).await.refused(401, "unauthorized");
    laptop.pull_with(&made(Purpose::Http, u64::MAX)).await.refused(401, "unauthorized");
}

/// A request to a route of a vault that is good if whoever asks is.
struct Asked {
    route: &'static str,
    method: &'static str,
    path: String,
    body: Option<Vec<u8>>,
}

/// One for every route. What it writes is new where `mark` is; it is in no list of the client's own.
fn every_route(client: &Client, mark: &str, snapshot: Digest) -> Vec<Asked> {
    let outline = Outline {
        log: client.log,
        count: client.own.count + 1,
        prev: client.own.digest,
        kind: Kind::Quiet,
        recipients: Vec::new(),
        seen: Head::NONE,
    };
    let signed = outline.sign(&client.identity, mark.as_bytes()).expect("short");
    let push = json!({ "changesets": [pushed(&signed)] }).to_string().into_bytes();
    let (known, new) = (hex::encode(snapshot.0), hex::encode(sha256(mark.as_bytes()).0));
    let put = format!("/snapshots/{new}?size={}&offset=0", mark.len());
    let get = format!("/snapshots/{known}?offset=0&length=10");
    let asked = |route, method, rest: &str, body| {
        let path = client.path(rest);
        Asked { route, method, path, body }
    };
    vec![
        asked("push", "POST", "/changesets", Some(push)),
        asked("pull", "GET", "/changesets", None),
        asked("stream", "GET", "/changesets/stream", None),
        asked("devices", "GET", "/devices", None),
        asked("snapshots", "GET", "/snapshots", None),
        asked("upload", "PUT", &put, Some(mark.as_bytes().to_vec())),
        asked("download", "GET", &get, None),
        asked("token", "POST", "/token", None),
    ]
}

/// What such a request is refused with; nothing if it is not.
async fn refusal(client: &Client, asked: &Asked, proof: &Proof) -> Option<(u16, String, Value)> {
    let answer = if asked.route == "stream" {
        // One that is given does not end.
        client.phone.listen_once(&asked.path, proof).await.err()?
    } else {
        let sent = client.phone.send(asked.method, &asked.path, proof, asked.body.clone()).await;
        sent.expect("an answer")
    };
    let refused = !answer.is_success();
    refused.then(|| (answer.status, answer.error().to_owned(), answer.json["sequence"].clone()))
}

async fn every_route_of_a_vault_asks_who_it_is_and_whether_it_is_enrolled(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Client::found(&world).await;
    let mut tablet = laptop.enrol(&world, 2).await;
    let (digest, _) = laptop.snapshot(b"a sealed state").await;
    let key = TokenKey::derive(b"a secret of the tests");
    let made = |purpose, device: &Client, log, expires| {
        let device = device.identity.key();
        let claims = Claims { purpose, device, log, issued: 1, expires };
        Proof::Vault(URL_SAFE_NO_PAD.encode(key.issue(&claims)))
    };
    let (log, other, ever) = (laptop.log, LogId([0x8a; 16]), u64::MAX);
    let unauthorized = (401, "unauthorized".to_owned(), Value::Null);
    let wrong = [
        ("no proof", Proof::None),
        ("no token", Proof::Vault("AAAA".to_owned())),
        ("an expired one", made(Purpose::Vault, &tablet, log, 600)),
        ("another vault's", made(Purpose::Vault, &tablet, other, ever)),
        ("another device's", made(Purpose::Vault, &laptop, log, ever)),
        ("one for something else", made(Purpose::Http, &tablet, log, ever)),
    ];
    let before = laptop.pull(0).await;
    for asked in every_route(&tablet, "wrong", digest) {
        for (what, proof) in &wrong {
            let refused = refusal(&tablet, &asked, proof).await;
            assert_eq!(refused.as_ref(), Some(&unauthorized), "{} with {what}", asked.route);
        }
    }
    assert_eq!(laptop.pull(0).await, before, "nothing was changed");

    // Its own ways in: a token of the vault, on every route but the one that gives it, and its proof.
    let token = Proof::Vault(tablet.vault_token().await);
    let device = tablet.phone.proof().await.expect("a token");
    for (proof, mark) in [(&token, "by a token"), (&device, "by the device")] {
        for asked in every_route(&tablet, mark, digest) {
            let refused = refusal(&tablet, &asked, proof).await;
            let expected =
                (asked.route == "token" && proof == &token).then(|| unauthorized.clone());
            assert_eq!(refused, expected, "{} {mark}", asked.route);
        }
        tablet.sign(Kind::Quiet, mark.as_bytes());
    }

    let revoke = Control::Revoke { device: tablet.identity.key(), join_key: None };
    let signed = laptop.sign(Kind::Control, &revoke.encode());
    let seq = laptop.push(&[signed]).await.ok()["ack"].clone();
    let before = laptop.pull(0).await;
    let stranger = Client::new(&world, 9, log);
    let strange = stranger.phone.proof().await.expect("a token");
    let made = made(Purpose::Vault, &stranger, log, ever);
    for (client, proof, expected) in [
        (&tablet, &token, (403, "revoked".to_owned(), seq.clone())),
        (&tablet, &device, (403, "revoked".to_owned(), seq)),
        (&stranger, &made, (404, "no_such_log".to_owned(), Value::Null)),
        (&stranger, &strange, (404, "no_such_log".to_owned(), Value::Null)),
    ] {
        for asked in every_route(client, "too late", digest) {
            let no_way_in = asked.route == "token" && matches!(proof, Proof::Vault(_));
            let expected = if no_way_in { &unauthorized } else { &expected };
            let refused = refusal(client, &asked, proof).await;
            assert_eq!(refused.as_ref(), Some(expected), "{}", asked.route);
        }
    }
    assert_eq!(laptop.pull(0).await, before, "nothing was changed");
}

async fn what_is_pushed_wrong_is_refused_and_nothing_is_appended(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Client::found(&world).await;
    let tablet = laptop.enrol(&world, 2).await;
    let before = laptop.own;
    let fits = laptop.sign(Kind::Quiet, b"true");
    // Another device's entry, another vault's, a forged one, and one from the future.
    tablet.push(std::slice::from_ref(&fits)).await.refused(400, "bad_header");
    let elsewhere = Client { log: LogId([0x8a; 16]), ..Client::new(&world, 1, laptop.log) };
    elsewhere.push(std::slice::from_ref(&fits)).await.refused(400, "bad_header");
    let mut forged = fits.clone();
    forged.entry.signature.as_mut().expect("signed").0[5] ^= 1;
    laptop.push(&[forged]).await.refused(400, "bad_signature");
    laptop.own = Mark { count: before.count + 5, ..before };
    let future = laptop.sign(Kind::Quiet, b"from the future");
    let refused = laptop.push(&[future]).await.refused(409, "out_of_order");
    assert_eq!(refused["expected"], before.count + 1);
    let nothing = laptop.phone.post(&laptop.path("/changesets"), json!({ "changesets": [] })).await;
    nothing.refused(400, "bad_request");
    let unreadable =
        json!({ "changesets": [{ "header": "?", "signature": "", "payload_encrypted": "" }] });
    let unreadable = laptop.phone.post(&laptop.path("/changesets"), unreadable).await;
    unreadable.refused(400, "bad_request");
    let lost = laptop.phone.get(&laptop.path("/changesets?after=9")).await;
    assert_eq!(lost.refused(409, "history_changed")["latest_sequence"], 2);
    assert_eq!(laptop.pull(0).await["latest_sequence"], 2, "nothing was appended");
    assert_eq!(laptop.push(&[fits]).await.ok()["ack"], 3);
}

async fn a_snapshot_goes_up_and_comes_down_in_pieces(database: Database) {
    let world = World::start(database).await;
    let mut laptop = Client::found(&world).await;
    let mut tablet = laptop.enrol(&world, 2).await;
    let proof = Proof::Vault(laptop.vault_token().await);
    let whole: Vec<u8> = (0..50_000_u32).map(|at| (at % 253) as u8).collect();
    let name = hex::encode(sha256(&whole).0);
    let put = async |offset: usize, bytes: &[u8]| {
        let path = laptop.path(&format!("/snapshots/{name}?size=50000&offset={offset}"));
        laptop.phone.send("PUT", &path, &proof, Some(bytes.to_vec())).await.expect("an answer")
    };
    assert_eq!(put(0, &whole[..30_000]).await.ok()["received"], 30_000);
    assert_eq!(put(0, &whole[..30_000]).await.refused(409, "out_of_order")["expected"], 30_000);
    put(30_000, &whole[30_000..40_000]).await.refused(400, "bad_snapshot");
    // Another name, another size, somebody else: nothing of it is kept, and nothing is in the way.
    let wrong = async |client: &Client, path: String, bytes: &[u8]| {
        let proof = client.phone.proof().await.expect("a token");
        client.phone.send("PUT", &path, &proof, Some(bytes.to_vec())).await.expect("an answer")
    };
    let other = hex::encode([7; 32]);
    let named = laptop.path(&format!("/snapshots/{other}?size=50000&offset=0"));
    wrong(&laptop, named, &whole).await.refused(400, "bad_snapshot");
    let sized = laptop.path(&format!("/snapshots/{name}?size=60000&offset=30000"));
    wrong(&laptop, sized, &whole[30_000..]).await.refused(400, "bad_snapshot");
    let huge = laptop.path(&format!("/snapshots/{other}?size=99999999999&offset=0"));
    wrong(&laptop, huge, &whole).await.refused(413, "too_large");
    let stranger = Client::new(&world, 9, laptop.log);
    let path = laptop.path(&format!("/snapshots/{name}?size=50000&offset=30000"));
    wrong(&stranger, path, &whole[30_000..]).await.refused(404, "no_such_log");
    let listed = tablet.phone.get(&tablet.path("/snapshots")).await.ok();
    assert_eq!(listed["snapshots"], json!([]));
    assert_eq!(laptop.pull(0).await["latest_sequence"], 2);
    assert_eq!(put(30_000, &whole[30_000..]).await.ok()["received"], 50_000);
    let pulled = laptop.pull(0).await;
    let chain = pulled["head"]["chain"].as_str().expect("a chain");
    let incarnation =
        pulled["head"]["incarnation"].as_str().expect("text").parse().expect("a number");
    let mut head = Head { incarnation, seq: 2, ..Head::NONE };
    hex::decode_to_slice(chain, &mut head.chain.0).expect("hex");
    let digest = sha256(&whole);
    let control = Control::Snapshot { head, digest, size: 50_000, chunks: 2 };
    let outline = Outline {
        log: laptop.log,
        count: laptop.own.count + 1,
        prev: laptop.own.digest,
        kind: Kind::Control,
        recipients: Vec::new(),
        seen: head,
    };
    let signed = outline.sign(&laptop.identity, &control.encode()).expect("short");
    laptop.push(&[signed]).await.ok();
    let listed = tablet.phone.get(&tablet.path("/snapshots")).await.ok();
    assert_eq!(listed["snapshots"][0]["digest"], name);
    assert_eq!(listed["snapshots"][0]["author"], DeviceKey::to_hex(&laptop.identity.key()));
    let path = tablet.path(&format!("/snapshots/{name}?offset=49990&length=100"));
    let part = tablet.phone.get(&path).await;
    assert_eq!(part.header("content-length"), Some("10"));
    let nothing = tablet.path(&format!("/snapshots/{}", hex::encode([7; 32])));
    tablet.phone.get(&nothing).await.refused(404, "no_such_snapshot");
    let opened = tablet.sign(Kind::Control, &Control::SnapshotOpened { digest }.encode());
    tablet.push(&[opened]).await.ok();
    let listed = laptop.phone.get(&laptop.path("/snapshots")).await.ok();
    assert_eq!(listed["snapshots"][0]["confirmed"], true);
}

fn small(options: &mut Options) {
    options.vaults.entries_max = 10;
    options.vaults.entries_reserve = 4;
    options.retention_pause = Duration::from_millis(20);
}

async fn whoever_asks_now_and_then_learns_that_the_vault_is_full(database: Database) {
    let world = World::start_with(database, small).await;
    let mut laptop = Client::found(&world).await;
    let mut tablet = laptop.enrol(&world, 2).await;
    for number in 3..=6_u8 {
        assert_eq!(tablet.pull(0).await["full"], false);
        let signed = laptop.sign(Kind::Quiet, &[number]);
        laptop.push(&[signed]).await.ok();
    }
    // Everybody is told, on every page, and reads on.
    for client in [&laptop, &tablet] {
        let pulled = client.pull(1).await;
        assert_eq!((&pulled["full"], &pulled["latest_sequence"]), (&json!(true), &json!(6)));
    }
    let before = tablet.own;
    let signed = tablet.sign(Kind::Quiet, b"one too many");
    tablet.push(&[signed]).await.refused(403, "entries_limit_reached");
    tablet.own = before;
    // What brings it back has its own room.
    let (digest, head) = laptop.snapshot(b"a sealed state").await;
    let opened = tablet.sign(Kind::Control, &Control::SnapshotOpened { digest }.encode());
    tablet.push(&[opened]).await.ok();
    eventually("the vault has room again", async || tablet.pull(head.seq).await["full"] == false)
        .await;
}
