//! Another program, on the libraries that the Totals stack uses, opens what the SDK has sealed, and
//! the other way round.
//!
//! The program is `client/tests/interop/interop.mjs`. It needs Node and three small libraries, which
//! `./scripts/test` installs from the lock file where Node is there. Where they are not, there is
//! nothing to talk to: the test says so and passes. With `SEALWIRE_TEST_INTEROP=1`, which
//! `./scripts/test` sets once it has installed them, that is a failure.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use sealwire_client::identity::Identity;
use sealwire_client::ledger::{Ledger, Said};
use sealwire_client::totals::payload::{JoinRequest, Payload};
use sealwire_client::totals::recovery::{self, Contents, SealedVault};
use sealwire_client::totals::seal::{self, GroupKey, PairKey, Sealed};
use sealwire_protocol::LogId;
use serde_json::{Value, json};

/// Set by whoever has made sure that Node and the libraries are there.
const MUST_RUN: &str = "SEALWIRE_TEST_INTEROP";

const PIN: &str = "271828";

/// What the other program answers; none if it is not there.
fn ask(question: &Value) -> Option<Value> {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/interop");
    let there = directory.join("node_modules").is_dir();
    let spawned = Command::new("node")
        .arg(directory.join("interop.mjs"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let (true, Ok(mut node)) = (there, spawned) else {
        assert!(std::env::var_os(MUST_RUN).is_none(), "Node or its libraries are not there");
        eprintln!("skipped: needs node, and `npm ci` in {}", directory.display());
        return None;
    };
    let mut stdin = node.stdin.take().expect("a pipe");
    stdin.write_all(question.to_string().as_bytes()).expect("written");
    drop(stdin);
    let output = node.wait_with_output().expect("ended");
    assert!(output.status.success(), "the other program is not content: see above");
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

#[test]
fn another_program_opens_what_the_sdk_sealed_and_the_other_way_round() {
    let (anna, ben_seed) = (Identity::generate().expect("randomness"), [0x42; 32]);
    let ben = Identity::from_seed(&ben_seed);
    let group_key = GroupKey::generate().expect("randomness");
    let group = LogId([0x44; 16]);

    let lunch = json!({
        "type": "expense", "id": "e", "amount": 3000.0, "currency": "ETB", "reason": "እራት",
        "paidBy": anna.key().to_hex(), "splitAmong": [anna.key().to_hex(), ben.key().to_hex()],
        "timestamp": 1_767_225_600_000_i64, "kind": "expense",
    });
    // As JavaScript writes it: a whole number without a fraction.
    let from_js = lunch.to_string().replace("3000.0", "3000");
    let lunch = Payload::decode(lunch.to_string().as_bytes()).expect("readable");
    let ask_in = Payload::JoinRequest(JoinRequest::new(anna.key(), Some("Anna".into()), 7));
    let pair = PairKey::between(&anna, ben.key()).expect("a good key");
    let encode = |payload: &Payload| payload.encode().expect("encoded");
    let contents = Contents {
        device: Identity::from_seed(&ben_seed),
        group_keys: BTreeMap::from([(group, group_key.clone())]),
        display_name: Some("Ben".into()),
    };
    let plain_contents = json!({
        "version": 1, "seedHex": hex(&ben_seed),
        "groupKeys": { group.to_uuid_text(): group_key.to_hex().as_str() }, "displayName": "Ben",
    });
    let vectors = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../protocol/vectors");
    let answer = ask(&json!({
        "vectors": vectors,
        "seed": hex(&ben_seed),
        "peer": anna.key().to_hex(),
        "group_key": group_key.to_hex().as_str(),
        "to_group": seal::to_hex(&group_key.seal(&encode(&lunch)).expect("sealed")),
        "to_pair": seal::to_hex(&pair.seal(&encode(&ask_in)).expect("sealed")),
        "vault": recovery::seal(&contents, PIN).expect("sealed"),
        "pin": PIN,
        "message": from_js,
        "contents": plain_contents.to_string(),
    }));
    let Some(answer) = answer else { return };

    // What the other program has read, and written again in its way, means the same.
    let read = |name: &str| answer[name].as_str().expect("a text").to_owned();
    assert!(Payload::decode(read("to_group").as_bytes()) == Ok(lunch.clone()));
    assert!(Payload::decode(read("to_pair").as_bytes()) == Ok(ask_in));
    let vault: Value = serde_json::from_str(&read("vault")).expect("JSON");
    assert_eq!(vault, plain_contents);

    // What the other program has sealed.
    let from_group = seal::from_hex(&read("from_group")).expect("hex");
    let opened = seal::open(Some(&group_key), &anna, ben.key(), &from_group).expect("opened");
    assert!(opened.sealed == Sealed::Group);
    assert!(Payload::decode(&opened.plaintext) == Ok(lunch));
    let from_pair = seal::from_hex(&read("from_pair")).expect("hex");
    let paired = seal::open(Some(&group_key), &anna, ben.key(), &from_pair).expect("opened");
    assert!(paired.sealed == Sealed::Pair && paired.plaintext == opened.plaintext);
    let vault: SealedVault = serde_json::from_value(answer["from_vault"].clone()).expect("a vault");
    let restored = recovery::open(&vault, PIN).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(restored.device.key(), ben.key());
    assert!(restored.group_keys == contents.group_keys);

    // And it counts.
    let mut ledger = Ledger::default();
    ledger.take(Said {
        log: group,
        sender: ben.key(),
        at: 0,
        approvals: true,
        message: &opened.plaintext,
    });
    let plan = ledger.pairwise();
    assert_eq!(plan.len(), 1);
    assert_eq!((plan[0].from.device(), plan[0].amount.minor), (Some(ben.key()), 150_000));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
