//! What the relay must not know it does not keep, does not log and does not count.
//!
//! Words, seeds and addresses are planted; then every file of the database, everything that the relay
//! says when it says most, and everything that it tells its operator is searched for them.

use std::net::Ipv4Addr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sealwire_client::device::Outgoing;
use sealwire_client::identity::{Identity, JoinSeed};
use sealwire_protocol::frame::{Append, Ping};
use sealwire_protocol::{Control, Kind};
use serde_json::json;

use crate::support::DEADLINE;
use crate::support::cluster::Cluster;
use crate::support::device::{Device, Group};
use crate::support::needles::{Needle, everything_in};
use crate::support::person::Person;
use crate::support::phone::{Phone, Proof};
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;
use crate::support::raw::{BINARY, LAST, Raw, UPGRADE, frame};

/// What somebody writes to somebody. A PIN is in it, because people do that.
const WORDS: &str = "planted: I paid 48151.62 for the boat, the PIN is 7319-planted";

/// What a device that seals nothing writes: a body. The database has to keep it; nothing else may.
const BODY: &str = "planted-body-that-only-the-database-may-hold";

/// Recovery codes: one that has a vault, and one that has none.
const CODE: &str = "TVWXYZABCDEFGHJ9";
const OTHER_CODE: &str = "0123456789ABCDE9";

/// Where a device comes from, and where another one comes from through a proxy.
const DIRECT: Ipv4Addr = Ipv4Addr::new(127, 13, 37, 1);
const FORWARDED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 77);
const PROXY: Ipv4Addr = Ipv4Addr::new(127, 13, 37, 9);

/// The relay says as much as it can be made to.
const LOUD: [(&str, &str); 3] =
    [("ENABLE_DEBUG", "true"), ("RUST_LOG", "trace"), ("TRUSTED_PROXY_IPS", "127.13.37.9")];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_planted_is_found_nowhere_on_sqlite() {
    let place = Place::new(Database::Sqlite).await;
    let mut relay = RelayProcess::start(place, &LOUD).await;
    let planted = plant(&relay).await;
    planted.are_not_told(&relay).await;
    // With its write-ahead log, as a killed relay leaves it; and as an orderly end leaves it.
    relay.kill();
    planted.are_not_in_the_database(&everything_in(relay.place().data()));
    relay.run().await;
    assert!(relay.stop().await.status.success());
    planted.are_not_in_the_database(&everything_in(relay.place().data()));
    planted.are_not_said(&relay.said());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_planted_is_found_nowhere_on_postgres() {
    let mut cluster = Cluster::start().await;
    let mut relay = RelayProcess::start(Place::beside(cluster.url()), &LOUD).await;
    let planted = plant(&relay).await;
    planted.are_not_told(&relay).await;
    // Queries, errors and slow statements are in the server's own log, too.
    relay.kill();
    relay.run().await;
    assert!(relay.stop().await.status.success());
    let dump = cluster.program("pg_dump").arg("--dbname").arg(cluster.url()).output();
    let dump = dump.expect("pg_dump runs");
    assert!(dump.status.success(), "{}", String::from_utf8_lossy(&dump.stderr));
    planted.are_not_in_the_database(&dump.stdout);
    cluster.stop_in_order().await;
    planted.are_not_in_the_database(&everything_in(cluster.directory()));
    planted.are_not_in_the_database(&everything_in(relay.place().data()));
    planted.are_not_said(&relay.said());
}

/// What was planted, and what shows that the search would have found it.
struct Planted {
    /// May be nowhere.
    nowhere: Vec<Needle>,
    /// May be in the database, and nowhere else.
    kept: Vec<Needle>,
}

/// People and devices do everything that could make the relay say something.
async fn plant(relay: &RelayProcess) -> Planted {
    let url = relay.url();
    let (mut alice, mut bob) = (Person::new().await, Person::new().await);
    alice.connect(&url).await;
    bob.connect(&url).await;
    let log = alice.found(&url).await;
    bob.join(&alice, log).await;
    alice.say(log, WORDS).await;
    bob.hears(log, WORDS).await;
    bob.disconnect().await;
    // This one waits at the relay.
    alice.say(log, WORDS).await;
    let invite = alice.device.invite(log).await.expect("an invite");

    // A device that seals nothing, from an address of its own.
    let mut device = Device::new(url.clone(), 5);
    device.options.source = Some(DIRECT.into());
    device.connect().await;
    device.join(&Group { log, seed: invite.seed.clone() }).await;
    device.append(log, BODY.as_bytes()).await;
    let addressed = [bob.key()];
    device.append_to(log, &addressed, BODY.as_bytes()).await;
    let signed = device.sign(log, Kind::Ring, &[], BODY.as_bytes());
    for _ in 0..2 {
        // The second time it is a duplicate, and then a conflict.
        device.send_signed(&signed).await.expect("appended");
    }
    let mut other = signed.entry.clone();
    other.header.0[60] ^= 1;
    device.request(Append { entry: other }).await.expect_err("a conflict");
    misbehave(relay, &mut device).await;

    // A recovery vault, fetched, and asked for with wrong PINs and wrong codes.
    let phone = Phone::new(relay.public(), 7);
    let blob: Vec<u8> = planted_bytes().into_iter().chain([7; 300]).collect();
    let salt = planted_bytes();
    let body = json!({
        "recoveryCode": CODE, "version": 1, "salt": STANDARD.encode(salt),
        "kdfParams": { "memoryKb": 65_536, "iterations": 3, "parallelism": 4 },
        "encryptedBlob": STANDARD.encode(&blob),
    });
    phone.call("PUT", "/identity/vault", Some(body)).await.expect("an answer").ok();
    for (path, code) in [("fetch", CODE), ("report-failure", CODE), ("fetch", OTHER_CODE)] {
        let body = json!({ "recoveryCode": code }).to_string().into_bytes();
        let path = format!("/identity/vault/{path}");
        phone.send("POST", &path, &Proof::None, Some(body)).await.expect("an answer");
    }

    // A group whose invitations are made from a seed that is known here.
    let planted_seed = getrandom::u64().expect("randomness").to_be_bytes().repeat(4);
    let planted_seed: [u8; 32] = planted_seed.try_into().expect("32 bytes");
    let seed = JoinSeed::from_bytes(planted_seed);
    let quiet = device.found().await.log;
    device.follow(quiet).await;
    let control = Control::JoinKey { join_key: seed.public() };
    device.control(quiet, &control).await.expect("appended");
    let mut guest = Device::connected(url, 6).await;
    guest.join(&Group { log: quiet, seed }).await;

    let id = alice.device.revoke(log, device.key()).await.expect("in the outbox");
    alice.device.wait_appended(id, DEADLINE).await.expect("appended");
    let outgoing = Outgoing::to_all(WORDS);
    alice.device.send(log, outgoing).await.expect("in the outbox");
    alice.say(log, WORDS).await;

    Planted {
        nowhere: vec![
            Needle::text("words", WORDS),
            Needle::text("a part of the words", "7319-planted"),
            Needle::bytes("alice's seed", &alice.seed()),
            Needle::bytes("bob's seed", &bob.seed()),
            Needle::text("a recovery code", CODE),
            Needle::text("another recovery code", OTHER_CODE),
            Needle::bytes("what a recovery vault holds", &blob[..32]),
            Needle::text("the same in base64", &STANDARD.encode(&blob[..30])),
            Needle::bytes("its salt", &salt),
            Needle::text("the invite's link", &invite.link()),
            Needle::bytes("an invitation's seed", &planted_seed),
            Needle::address("a device's address", DIRECT),
            Needle::address("a forwarded address", FORWARDED),
        ],
        kept: vec![
            Needle::text("a body", BODY),
            Needle::bytes("alice's key", &alice.key().0),
            Needle::bytes("bob's key", &bob.key().0),
            Needle::bytes("the key of the recovery vault's owner", &phone.key().0),
            Needle::bytes("a log's id", &log.0),
        ],
    }
}

/// Bytes that are nowhere else.
fn planted_bytes() -> [u8; 32] {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).expect("randomness");
    bytes
}

/// A device that is known, and strangers, do what is refused, closed or cut off.
async fn misbehave(relay: &RelayProcess, device: &mut Device) {
    for bytes in [&b"not a frame"[..], BODY.as_bytes()] {
        device.wire().queue_bytes(bytes.to_vec());
    }
    device.request(Ping {}).await.expect("a heartbeat");
    for wrong in ["", "\r\n", BODY] {
        let mut raw = Raw::connect_from(relay.public(), DIRECT.octets()).await;
        raw.write(format!("GET /{BODY} HTTP/1.1\r\n{wrong}\r\n\r\n").as_bytes()).await;
        raw.head().await;
        let mut raw = Raw::connect_from(relay.public(), PROXY.octets()).await;
        raw.write(format!("{UPGRADE}X-Forwarded-For: {FORWARDED}\r\n\r\n").as_bytes()).await;
        raw.head().await;
        raw.write(&frame(LAST | BINARY, wrong.as_bytes())).await;
        raw.end().await;
    }
    let mut raw = Raw::connect_from(relay.public(), PROXY.octets()).await;
    raw.upgrade(&format!("X-Forwarded-For: {FORWARDED}\r\n")).await;
    raw.authenticate(&Identity::from_seed(&[0x31; 32])).await;
    raw.write(&frame(LAST | 1, BODY.as_bytes())).await;
    raw.end().await;
    let refused = "sealwire_connections_refused_total";
    relay.until_metric(refused, |value| value >= 3.0).await;
}

impl Planted {
    fn are_not_in_the_database(&self, bytes: &[u8]) {
        for needle in &self.nowhere {
            assert!(!needle.is_in(bytes), "the database has {}", needle.name);
        }
        // The relay's own directory has no entries when the database is elsewhere.
        if bytes.len() > 64 * 1024 {
            for needle in &self.kept {
                assert!(needle.is_in(bytes), "{} was not found: nothing would be", needle.name);
            }
        }
    }

    fn are_not_said(&self, said: &str) {
        assert!(said.contains("serving"), "the relay has said nothing");
        for needle in self.nowhere.iter().chain(&self.kept) {
            assert!(!needle.is_in(said.as_bytes()), "the relay has said {}", needle.name);
        }
    }

    async fn are_not_told(&self, relay: &RelayProcess) {
        for path in ["/metrics", "/stats", "/ready", "/health"] {
            let answer = relay.ask(path).await.expect("an answer");
            assert!(!answer.body.is_empty());
            for needle in self.nowhere.iter().chain(&self.kept) {
                assert!(!needle.is_in(answer.body.as_bytes()), "{path} has {}", needle.name);
            }
        }
    }
}
