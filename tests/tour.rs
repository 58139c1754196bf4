//! The tour of the README, as it stands there, and what else `sealwire-device` does.

use std::collections::BTreeMap;
use std::path::Path;

use sealwire_client::device::{Device, KeyKeeping, Options};
use sealwire_client::identity::{Identity, fingerprint};
use sealwire_client::recovery::{RecoveryCode, RecoveryError};
use sealwire_client::totals::seal::{self, GroupKey, PairKey};
use sealwire_protocol::DeviceKey;
use serde_json::{Value, json};

use crate::support::cli::{Terminal, Typing};
use crate::support::phone::Phone;
use crate::support::place::Database;
use crate::support::world::World;
use crate::support::{eventually, on_both_databases};

on_both_databases!(
    the_tour_of_the_readme_does_what_it_says,
    the_vault_of_the_readme_is_shared_and_comes_back_as_it_says,
    a_group_of_the_command_line_is_shared_with_a_phone,
    what_goes_wrong_is_said_with_what_to_do_next,
    a_restore_that_was_interrupted_goes_on,
    a_device_is_restored_while_nobody_is_there,
    a_restore_says_what_it_waits_for,
    whoever_gives_a_key_is_named_by_its_fingerprint,
);

const PIN: &str = "246810";

/// The commands of a section of the README, in order.
fn commands_of(section: &str) -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let page = std::fs::read_to_string(page).expect("the README");
    let (_, rest) = page.split_once(&format!("## {section}\n")).expect("the section");
    let section = rest.split("\n## ").next().expect("a section");
    let blocks = section.split("```sh\n").skip(1);
    let blocks = blocks.map(|block| block.split("```").next().expect("an end"));
    let lines = blocks.flat_map(str::lines).map(str::to_owned);
    let run = |line: &String| {
        ["device ", "export ", "rm ", "sqlite3 "].iter().any(|it| line.starts_with(it))
    };
    lines.filter(run).collect()
}

/// The variable that a line sets, and its value.
fn exported(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix("export ")?.split_once('=')
}

/// The words of a command, as a shell takes them.
fn words_of(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() && !rest.starts_with('#') {
        let quote = rest.chars().next().filter(|it| ['\'', '"'].contains(it));
        let (word, after) = match quote {
            Some(quote) => rest[1..].split_once(quote).expect("a closing quote"),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    words
}

async fn the_tour_of_the_readme_does_what_it_says(database: Database) {
    let world = World::start(database).await;
    let place = tempfile::tempdir().expect("a directory");
    let mut terminal = Terminal::new(&world.url()).with("SEALWIRE_PIN", PIN);
    let mut known: BTreeMap<&str, String> = BTreeMap::new();
    let mut chats: Vec<(String, Typing)> = Vec::new();
    let mut shown = String::new();
    for line in commands_of("Two people, three terminals") {
        let mut line = line.replace("/tmp/", &format!("{}/", place.path().display()));
        for (name, value) in &known {
            line = line.replace(&format!("<{name}>"), value);
        }
        let words = words_of(&line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["export", ..] => {
                let (name, value) = exported(&line).expect("a variable");
                terminal = terminal.with(name, value);
            }
            ["rm", "-r", directory] => std::fs::remove_dir_all(directory).expect("removed"),
            ["device", "--dir", directory, "chat", _] => {
                let name = directory.rsplit('/').next().expect("a name").to_owned();
                chats.push((name, terminal.start(&words[1..])));
            }
            ["device", arguments @ ..] => {
                if arguments.contains(&"setup") {
                    talk(&mut chats).await;
                }
                shown = terminal.ok(arguments).await;
                if arguments.contains(&"balances") {
                    // What the other has written may be on its way.
                    // One line for each person, and one for who pays whom: nobody is in it twice.
                    eventually("both see that Bob owes Alice nine", async || {
                        shown = terminal.ok(arguments).await;
                        let lines = |word: &str| shown.matches(word).count();
                        lines("-9.00 ETB") == 1
                            && lines("9.00 ETB") == 3
                            && (lines("Alice"), lines("Bob")) == (2, 2)
                    })
                    .await;
                }
                let printed = |value: &str| Some(value.to_owned());
                let name = match arguments {
                    [.., "create"] => Some(("group", printed(&shown))),
                    [.., "invite", _] => Some(("link", printed(&shown))),
                    [.., "setup"] => {
                        terminal = terminal.with("SEALWIRE_RECOVERY_CODE", &shown);
                        None
                    }
                    _ => None,
                };
                if let Some((name, Some(value))) = name {
                    known.insert(name, value);
                }
            }
            other => panic!("a command that this test does not know: {other:?}"),
        }
    }
    // The members are Bob and the new device; the lost one is out.
    let members: Vec<&str> = shown.lines().collect();
    assert_eq!(members.len(), 2, "{shown}");
    assert_eq!(members.iter().filter(|member| member.contains("(you)")).count(), 1, "{shown}");
    for (_, chat) in chats {
        chat.end().await;
    }
}

async fn the_vault_of_the_readme_is_shared_and_comes_back_as_it_says(database: Database) {
    let world = World::start(database).await;
    let place = tempfile::tempdir().expect("a directory");
    let home = |name: &str| place.path().join(name).to_str().expect("a path").to_owned();
    let file = |name: &str| format!("{}/app.db", home(name));
    let mut terminal = Terminal::new(&world.url()).with("SEALWIRE_PIN", PIN);
    // Alice and Bob from above.
    for line in commands_of("Two people, three terminals") {
        if let Some((name, value)) = exported(&line) {
            terminal = terminal.with(name, value);
        }
    }
    for name in ["alice", "bob"] {
        terminal.ok(&["--dir", &home(name), "init"]).await;
    }
    let code = terminal.ok(&["--dir", &home("alice"), "recovery", "setup"]).await;
    terminal = terminal.with("SEALWIRE_RECOVERY_CODE", &code);
    let bob = terminal.ok(&["--dir", &home("bob"), "whoami"]).await;
    let mut known = BTreeMap::from([("bob", bob[..10].to_owned())]);
    let rows = |name: &str| -> Vec<(String, Option<String>)> {
        let db = rusqlite::Connection::open(file(name)).expect("a database");
        let mut rows = db.prepare("select name, note from items").expect("the table");
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("read");
        rows.collect::<rusqlite::Result<_>>().expect("rows")
    };
    let mut watching = None;
    let mut status = String::new();
    for line in commands_of("One database on two devices") {
        let mut line = line.replace("/tmp/", &format!("{}/", place.path().display()));
        for (name, value) in &known {
            line = line.replace(&format!("<{name}>"), value);
        }
        let words = words_of(&line);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["rm", "-r", directory] => std::fs::remove_dir_all(directory).expect("removed"),
            ["sqlite3", path, sql] => {
                let db = rusqlite::Connection::open(path).expect("a database");
                db.execute_batch(sql).expect("as it stands there");
            }
            ["device", arguments @ .., "--watch"] => {
                watching = Some(terminal.start(&[arguments, &["--watch"]].concat()));
            }
            ["device", arguments @ ..] => {
                let shown = terminal.ok(arguments).await;
                match arguments {
                    [.., "--another-persons"] => drop(known.insert("offer", shown)),
                    [.., "--offer", _] => drop(known.insert("consent", shown)),
                    [.., "sync", _] => {
                        let bob = watching.as_mut().expect("Bob watches");
                        bob.shows("read 1 rows in 1 changesets").await;
                        assert_eq!(rows("bob"), [("Milk".to_owned(), None)]);
                    }
                    [.., "status", _] => status = shown,
                    [.., "revoke", _, _] => assert!(shown.starts_with("revoked "), "{shown}"),
                    _ => {}
                }
            }
            other => panic!("a command that this test does not know: {other:?}"),
        }
    }
    assert!(status.contains("(you)") && status.contains("0 rows are unsent"), "{status}");
    assert_eq!(rows("alice"), [("Milk".to_owned(), Some("for the cat".to_owned()))]);
    // Alice's new device is alone: the lost one is out as Bob is.
    let (home, alice) = (home("alice"), file("alice"));
    let status = terminal.json(&["--dir", &home, "vault", "status", &alice]).await;
    let me = terminal.ok(&["--dir", &home, "whoami"]).await;
    assert_eq!(status[0]["vault"]["devices"], json!([me]));
    assert_eq!((&status[0]["tables"], &status[0]["unsent_rows"]), (&json!(["items"]), &json!(0)));
    let made = terminal.json(&["--dir", &home, "vault", "snapshot", &alice]).await;
    assert!(made[0]["bytes"].as_u64() > Some(0), "{made:?}");
    let synced = terminal.json(&["--dir", &home, "vault", "sync", &alice]).await;
    assert_eq!((&synced[0]["sent_rows"], &synced[0]["damaged"]), (&json!(0), &json!(0)));
    drop(watching);
    let again = ["--dir", &home, "vault", "create", &alice];
    let printed = terminal.run(&again).await;
    assert!(printed.err.contains("belongs to another vault already"), "{}", printed.err);
}

/// Alice and Bob say something to each other; Alice goes.
async fn talk(chats: &mut Vec<(String, Typing)>) {
    let [(_, alice), (_, bob)] = &mut chats[..] else { panic!("two chats") };
    bob.types("hello alice").await;
    alice.shows("hello alice").await;
    alice.types("hello bob").await;
    bob.shows("hello bob").await;
    let (name, alice) = chats.remove(0);
    assert_eq!(name, "alice");
    alice.end().await;
}

async fn a_group_of_the_command_line_is_shared_with_a_phone(database: Database) {
    let world = World::start(database).await;
    let place = tempfile::tempdir().expect("a directory");
    let place = place.path().to_str().expect("a path");
    let terminal = Terminal::new(&world.url());
    let alice = terminal.clone().with("SEALWIRE_DEVICE_DIR", place);
    let made = alice.json(&["init", "--unsealed", "--name", "Alice"]).await;
    let me = DeviceKey::from_hex(made[0]["device"].as_str().expect("a key")).expect("a key");
    assert_eq!(made[0]["name"], "Alice");
    let made = alice.json(&["group", "create", "--totals"]).await;
    assert_eq!(made[0]["format"], "totals");
    let group = made[0]["log"].as_str().expect("a name").to_owned();
    let invite = alice.json(&["group", "invite", &group[..6]]).await;
    assert_eq!(invite[0]["code"], group.as_str());

    let phone = Phone::new(world.address(), 2);
    let bob = Identity::from_seed(&phone.signing.to_bytes());
    phone.join(&group).await.ok();
    let request = json!({
        "type": "join_request", "publicKey": phone.name(), "displayName": "Bob",
        "memberMetaUpdatedAt": 1, "timestamp": 1_767_225_600_000_u64,
    });
    let pair = PairKey::between(&bob, me).expect("a good key");
    let blob = pair.seal(request.to_string().as_bytes()).expect("sealed");
    let body = json!({
        "encryptedBlob": hex::encode(blob), "recipientPublicKeys": [me.to_hex()],
        "kind": "join_request",
    });
    phone.post(&format!("/groups/{group}/payloads/targeted"), body).await.ok();
    let asking = alice.json(&["group", "approve", &group]).await;
    assert_eq!((&asking[0]["device"], &asking[0]["name"]), (&json!(phone.name()), &json!("Bob")));
    let members = alice.json(&["group", "members", &group]).await;
    let asks = members.iter().find(|member| member["asks"] == true).expect("somebody asks");
    assert_eq!(asks["fingerprint"], asking[0]["fingerprint"]);
    // A key that begins so is quickly made.
    let short = alice.run(&["group", "approve", &group, &phone.name()[..8]]).await;
    assert!(!short.success && short.err.contains("too little"), "{}", short.err);
    let print = asking[0]["fingerprint"].as_str().expect("a fingerprint");
    alice.ok(&["group", "approve", &group, print, "--name", "Lunch"]).await;

    let pending = phone.pending(&group).await;
    let exchange = pending.iter().find(|it| it["kind"] == "key_exchange").expect("the key");
    let opened = |key: Option<&GroupKey>, payload: &Value| -> Value {
        let blob = hex::decode(payload["encryptedBlob"].as_str().expect("text")).expect("hex");
        let opened = seal::open(key, &bob, me, &blob).expect("opened");
        serde_json::from_slice(&opened.plaintext).expect("JSON")
    };
    let exchange = opened(None, exchange);
    assert_eq!(
        (&exchange["groupName"], &exchange["approverDisplayName"]),
        (&json!("Lunch"), &json!("Alice"))
    );
    let key = GroupKey::from_hex(exchange["groupKey"].as_str().expect("text")).expect("a key");
    // Each says something that the other reads.
    let note = json!({ "type": "note_of_a_newer_app", "text": "hello" }).to_string();
    alice.ok(&["send", &group, &note]).await;
    let pending = phone.pending(&group).await;
    assert_eq!(opened(Some(&key), pending.last().expect("a payload"))["text"], "hello");
    let answer = json!({ "type": "note_of_a_newer_app", "text": "hello yourself" }).to_string();
    let blob = hex::encode(key.seal(answer.as_bytes()).expect("sealed"));
    phone.send_all(&group, "group", &blob).await.ok();
    let heard = alice.ok(&["listen", &group, "--once"]).await;
    assert!(heard.contains("hello yourself"), "{heard}");

    alice.ok(&["group", "leave", &group]).await;
    assert_eq!(phone.members(&group).await.len(), 1);
    let listed = alice.json(&["group", "list"]).await;
    assert_eq!((&listed[0]["phase"], &listed[0]["format"]), (&json!("left"), &json!("totals")));
}

async fn what_goes_wrong_is_said_with_what_to_do_next(database: Database) {
    let world = World::start(database).await;
    let place = tempfile::tempdir().expect("a directory");
    let terminal = Terminal::new(&world.url())
        .with("SEALWIRE_DEVICE_DIR", place.path().to_str().expect("a path"))
        .with("SEALWIRE_PIN", PIN);
    let says = async |arguments: &[&str], sentence: &str| {
        let printed = terminal.run(arguments).await;
        assert!(!printed.success, "{arguments:?}");
        assert!(printed.err.contains(sentence), "{arguments:?}: {}", printed.err);
    };
    says(&["whoami"], "make one with `init`").await;
    let me = terminal.json(&["init", "--unsealed"]).await;
    assert_eq!(terminal.ok(&["whoami"]).await, me[0]["device"].as_str().expect("a key"));
    says(&["init"], "name another directory with --dir").await;
    let native = terminal.ok(&["group", "create"]).await;
    says(&["group", "approve", &native], "is let in by it").await;
    let totals = terminal.ok(&["group", "create", "--totals"]).await;
    says(&["group", "rotate", &totals], "never changed").await;
    terminal.ok(&["group", "rotate", &native]).await;
    says(&["recovery", "change-pin"], "there is no such recovery vault").await;
    let code = terminal.json(&["recovery", "setup", "--totals"]).await;
    assert_eq!(code[0]["format"], "totals");
    let code = code[0]["code"].as_str().expect("a code").to_owned();
    let other = tempfile::tempdir().expect("a directory");
    let lost = Terminal::new(&world.url())
        .with("SEALWIRE_DEVICE_DIR", other.path().to_str().expect("a path"))
        .with("SEALWIRE_RECOVERY_CODE", &code);
    let wrong = lost.clone().with("SEALWIRE_PIN", "135790");
    let printed = wrong.run(&["recovery", "restore"]).await;
    assert!(printed.err.contains("add --totals"), "{}", printed.err);
    let printed = wrong.run(&["recovery", "restore", "--totals", "--unsealed"]).await;
    assert!(!printed.success && printed.err.contains("the PIN is wrong"), "{}", printed.err);
    assert!(printed.err.contains("What to do: try again, but not often"), "{}", printed.err);
    let right = lost.with("SEALWIRE_PIN", PIN);
    // A key that can be kept nowhere is no device, and what was begun is not in the way of the next try.
    let kept_nowhere = ["recovery", "restore", "--totals", "--keychain"];
    assert!(!right.run(&kept_nowhere).await.success);
    let back = right.json(&["recovery", "restore", "--totals", "--unsealed"]).await;
    assert_eq!(back[0]["device"], me[0]["device"]);
    let changing = terminal.clone().with("SEALWIRE_NEW_PIN", "987654");
    let changed = changing.json(&["recovery", "change-pin"]).await;
    let deleted = terminal.json(&["recovery", "delete"]).await;
    let said = [json!({ "pin": "changed" }), json!({ "recovery_vault": "deleted" })];
    assert_eq!([changed, deleted].concat(), said);
    assert!(terminal.ok(&["completions", "bash"]).await.contains("sealwire-device"));
}

async fn a_restore_that_was_interrupted_goes_on(database: Database) {
    let world = World::start(database).await;
    let place = tempfile::tempdir().expect("a directory");
    let lost = tempfile::tempdir().expect("a directory");
    let terminal = Terminal::new(&world.url()).with("SEALWIRE_PIN", PIN);
    let at = |place: &Path| {
        terminal.clone().with("SEALWIRE_DEVICE_DIR", place.to_str().expect("a path"))
    };
    let alice = at(lost.path());
    alice.ok(&["init", "--unsealed"]).await;
    let group = alice.ok(&["group", "create"]).await;
    let code = alice.ok(&["recovery", "setup"]).await;
    // The device is made, and the program is gone before it has joined anything.
    let read = RecoveryCode::parse(&code).expect("a code");
    let url = world.url();
    let made =
        Device::restore(place.path(), KeyKeeping::Unsealed, &url, &read, PIN, Options::default())
            .await;
    let new = made.expect("restored").key();
    let back = at(place.path());
    // The old code is the lost device's, and ends with that.
    let ends = "which opens nothing any more";
    let set_up = back.run(&["recovery", "setup"]).await;
    assert!(set_up.success && !set_up.err.contains(ends), "{}", set_up.err);
    assert!(set_up.err.contains("until it is out of everything that it was in"), "{}", set_up.err);
    let still = tempfile::tempdir().expect("a directory");
    let (still, unsealed) = (still.path(), KeyKeeping::Unsealed);
    Device::restore(still, unsealed, &url, &read, PIN, Options::default()).await.expect("it opens");
    back.ok(&["recovery", "restore"]).await;
    let members = back.json(&["group", "members", &group]).await;
    assert_eq!(members.len(), 1);
    assert_eq!(members[0]["device"], new.to_hex());
    // Once is enough, and a device is not written over.
    let again = back.run(&["recovery", "restore"]).await;
    assert!(!again.success && again.err.contains("name another directory"), "{}", again.err);
    let none = tempfile::tempdir().expect("a directory");
    let (none, unsealed) = (none.path(), KeyKeeping::Unsealed);
    let ended = Device::restore(none, unsealed, &url, &read, PIN, Options::default()).await.err();
    assert_eq!(ended, Some(RecoveryError::Missing.into()));
    let set_up = back.run(&["recovery", "setup"]).await;
    assert!(set_up.success && set_up.err.contains(ends), "{}", set_up.err);
}

async fn a_device_is_restored_while_nobody_is_there(database: Database) {
    let world = World::start(database).await;
    let place = tempfile::tempdir().expect("a directory");
    let terminal = Terminal::new(&world.url()).with("SEALWIRE_PIN", PIN);
    let at = |name: &str| {
        let place = place.path().join(name);
        terminal.clone().with("SEALWIRE_DEVICE_DIR", place.to_str().expect("a path"))
    };
    let (alice, bob) = (at("alice"), at("bob"));
    alice.ok(&["init", "--unsealed", "--name", "Alice"]).await;
    bob.ok(&["init", "--unsealed", "--name", "Bob"]).await;
    let group = alice.ok(&["group", "create"]).await;
    let link = alice.ok(&["group", "invite", &group]).await;
    bob.ok(&["--wait", "1", "group", "join", &link]).await;
    alice.ok(&["balances", &group, "--sync"]).await;
    bob.ok(&["expense", "list", &group, "--sync"]).await;
    alice.ok(&["expense", "add", &group, "30", "Lunch"]).await;
    let file = place.path().join("app.db");
    let open = || rusqlite::Connection::open(&file).expect("a database");
    let table = "create table items (id text primary key, name text)";
    open().execute_batch(table).expect("a table");
    let app = file.to_str().expect("a path");
    alice.ok(&["vault", "create", app, "--table", "items"]).await;
    open().execute_batch("insert into items values ('1', 'Milk')").expect("written");
    alice.ok(&["vault", "sync", app]).await;
    let code = alice.ok(&["recovery", "setup"]).await;
    std::fs::remove_dir_all(place.path().join("alice")).expect("lost");
    std::fs::remove_file(&file).expect("lost");
    let alice = alice.with("SEALWIRE_RECOVERY_CODE", &code);
    let back = ["--wait", "2", "recovery", "restore", "--unsealed"];
    alice.ok(&back).await;
    // Her vault needs no friend.
    open().execute_batch(table).expect("a table");
    alice.ok(&["vault", "attach", app, "--table", "items", "--recovered"]).await;
    let name = |row: &rusqlite::Row<'_>| row.get::<_, String>(0);
    let found = open().query_row("select name from items", (), name).expect("the row");
    assert_eq!(found, "Milk");
    // One comes after the other, and never both.
    bob.ok(&["balances", &group, "--sync"]).await;
    alice.ok(&["balances", &group, "--sync"]).await;
    let members = bob.json(&["balances", &group, "--sync"]).await;
    let again = alice.json(&["balances", &group, "--sync"]).await;
    assert_eq!(members, again);
    assert_eq!(again[0]["plan"][0]["minor"], 1500, "{again:?}");
    let me = alice.ok(&["whoami"]).await;
    assert_eq!(again[0]["plan"][0]["to"], me.as_str(), "{again:?}");
    assert_eq!(bob.json(&["group", "members", &group]).await.len(), 2);
}

async fn a_restore_says_what_it_waits_for(database: Database) {
    let world = World::start(database).await;
    let place = tempfile::tempdir().expect("a directory");
    let terminal = Terminal::new(&world.url()).with("SEALWIRE_PIN", PIN);
    let at = |name: &str| {
        let place = place.path().join(name);
        terminal.clone().with("SEALWIRE_DEVICE_DIR", place.to_str().expect("a path"))
    };
    let (alice, bob) = (at("alice"), at("bob"));
    alice.ok(&["init", "--unsealed"]).await;
    bob.ok(&["init", "--unsealed"]).await;
    let group = alice.ok(&["group", "create"]).await;
    let link = alice.ok(&["group", "invite", &group]).await;
    // Whoever has the link can join: it need not stand in a command, which others see.
    bob.clone().with("SEALWIRE_INVITE", &link).ok(&["--wait", "1", "group", "join"]).await;
    alice.ok(&["balances", &group, "--sync"]).await;
    bob.ok(&["balances", &group, "--sync"]).await;
    let code = alice.ok(&["recovery", "setup"]).await;
    std::fs::remove_dir_all(place.path().join("alice")).expect("lost");
    let alice = alice.with("SEALWIRE_RECOVERY_CODE", &code);
    let back = ["--wait", "4", "recovery", "restore", "--unsealed"];
    let (done, seen) = alice.on_screen(&back).await;
    assert!(done, "{seen}");
    let wait = format!("waiting for a member of {group} who is connected, for its key");
    assert!(seen.contains(&wait), "{seen}");
    assert!(seen.contains("of at most 4 s; see --wait"), "{seen}");
    let said = format!("in {group}, but no member is connected who could give its key");
    assert!(seen.contains(&said), "{seen}");
    assert!(seen.contains("the lost device is not out of all groups yet"), "{seen}");
    // It is waited for by whoever comes later.
    bob.ok(&["balances", &group, "--sync"]).await;
    let (done, seen) = alice.on_screen(&["recovery", "restore"]).await;
    assert!(done && seen.contains("going on with the restore"), "{seen}");
}

async fn whoever_gives_a_key_is_named_by_its_fingerprint(database: Database) {
    let world = World::start(database).await;
    let place = tempfile::tempdir().expect("a directory");
    let place = place.path().to_str().expect("a path");
    let bob = Terminal::new(&world.url()).with("SEALWIRE_DEVICE_DIR", place);
    let made = bob.json(&["init", "--unsealed"]).await;
    let me = DeviceKey::from_hex(made[0]["device"].as_str().expect("a key")).expect("a key");
    let phone = Phone::new(world.address(), 2);
    let alice = Identity::from_seed(&phone.signing.to_bytes());
    let group = phone.create().await;
    bob.ok(&["--wait", "1", "group", "join", &group]).await;
    let key = GroupKey::generate().expect("randomness");
    let exchange = json!({
        "type": "key_exchange", "groupId": group, "groupKey": key.to_hex().as_str(),
        "approvedPublicKey": me.to_hex(), "approvedBy": phone.name(),
        "backfillNewMembers": false, "timestamp": 1_767_225_600_000_u64,
    });
    let pair = PairKey::between(&alice, me).expect("a good key");
    let blob = pair.seal(exchange.to_string().as_bytes()).expect("sealed");
    let body = json!({
        "encryptedBlob": hex::encode(blob), "recipientPublicKeys": [me.to_hex()],
        "kind": "key_exchange",
    });
    phone.post(&format!("/groups/{group}/payloads/targeted"), body).await.ok();
    let heard = bob.ok(&["listen", &group, "--once"]).await;
    assert!(heard.contains(&fingerprint(alice.key())), "{heard}");
}
