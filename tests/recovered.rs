//! A person who has lost a device comes back with a code and a PIN.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use sealwire_client::address::RelayUrl;
use sealwire_client::device::{Device, KeyKeeping, Options, Outgoing};
use sealwire_client::entry::Outline;
use sealwire_client::error::Error;
use sealwire_client::event::Event;
use sealwire_client::identity::Identity;
use sealwire_client::keybox::{self, Grant};
use sealwire_client::ledger::NewExpense;
use sealwire_client::ledger::money::{Currency, Money};
use sealwire_client::recovery::{Format, RecoveryCode, RecoveryError, VaultError};
use sealwire_client::seal::{EpochKey, KeyName, Place};
use sealwire_client::sync::{Schema, SyncError, Table, Whose};
use sealwire_client::totals::seal::{self, GroupKey};
use sealwire_client::vault::Vault;
use sealwire_client::wire;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::frame::Append;
use sealwire_protocol::ids::Scope;
use sealwire_protocol::keys::KeyBody;
use sealwire_protocol::{DeviceKey, Digest, Kind, LogId};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::support::person::Person;
use crate::support::phone::{Phone, Proof};
use crate::support::place::Database;
use crate::support::world::World;
use crate::support::{DEADLINE, eventually, on_both_databases};

on_both_databases!(
    a_new_device_takes_the_place_of_the_lost_one,
    the_vaults_of_the_lost_device_are_the_new_one_s,
    a_database_goes_on_in_the_vault_of_the_lost_device,
    a_log_that_could_not_be_read_is_not_given_up,
    who_was_alone_in_a_group_finds_its_way_back,
    the_key_that_a_totals_group_knows_comes_back,
    a_wrong_pin_is_reported_and_locks_in_the_end,
    a_changed_pin_counts_and_the_code_stays,
    a_native_code_is_never_sent,
    what_a_relay_has_done_and_not_answered_is_put_right,
    what_a_relay_may_have_and_nobody_was_shown_is_deleted,
    of_two_programs_that_change_a_recovery_vault_the_slower_one_undoes_nothing,
    the_key_of_a_lost_device_stays_until_that_is_ended,
);

const PIN: &str = "246810";

fn wrong_pin() -> Error {
    RecoveryError::from(VaultError::WrongPin).into()
}

fn lunch() -> NewExpense {
    let currency = Currency::parse("ETB").expect("a currency");
    NewExpense {
        amount: Money::parse("30", &currency).expect("an amount"),
        reason: "Lunch".to_owned(),
        paid_by: None,
        split_among: Vec::new(),
        at: None,
    }
}

async fn a_new_device_takes_the_place_of_the_lost_one(database: Database) {
    let world = World::start(database).await;
    let (mut alice, mut bob) = (Person::new().await, Person::new().await);
    alice.connect(&world.url()).await;
    bob.connect(&world.url()).await;
    let code =
        alice.device.set_up_recovery(&world.url(), Format::Native, PIN).await.expect("set up");
    let log = alice.found(&world.url()).await;
    bob.join(&alice, log).await;
    bob.device.add_expense(log, lunch()).await.expect("written");
    assert_eq!(alice.device.keep_recovery().await, Ok(true), "there is a group now");
    assert_eq!(alice.device.keep_recovery().await, Ok(false), "nothing has changed");
    let lost = alice.key();
    alice.disconnect().await;
    drop(alice);

    let wrong = Person::restored(&world.url(), &code, "135790").await;
    assert_eq!(wrong.err(), Some(wrong_pin()));
    let mut back = Person::restored(&world.url(), &code, PIN).await.expect("restored");
    assert_ne!(back.key(), lost);
    back.connect(&world.url()).await;
    back.device.wait_ready(log, DEADLINE).await.expect("in the group again");
    let gone = |event: &Event| matches!(event, Event::Revoked { device, .. } if *device == lost);
    bob.until("the lost one is out", |bob| bob.told.iter().any(gone)).await;
    back.say(log, "it is me").await;
    bob.hears(log, "it is me").await;
    bob.say(log, "welcome back").await;
    back.hears(log, "welcome back").await;
    // He is asked for what was written before, and gives it.
    eventually("the history", async || {
        back.device.ledger(log).await.expect("a ledger").expenses().len() == 1
    })
    .await;
    let members: Vec<DeviceKey> =
        back.device.members(log).await.expect("a group").iter().map(|it| it.device).collect();
    assert!(!members.contains(&lost) && members.len() == 2);

    // The old vault goes, and the same code and PIN open the new one.
    eventually("the old device is ended", async || {
        back.device.keep_recovery().await.expect("kept")
    })
    .await;
    back.disconnect().await;
    let again = Person::restored(&world.url(), &code, PIN).await.expect("restored again");
    assert_ne!(again.key(), back.key());
    let own = Identity::from_seed(&back.seed().try_into().expect("a seed")).key();
    assert_eq!(own, back.key());
}

async fn the_vaults_of_the_lost_device_are_the_new_one_s(database: Database) {
    let world = World::start(database).await;
    let mut alice = Person::new().await;
    alice.connect(&world.url()).await;
    let log = alice.found(&world.url()).await;
    let code =
        alice.device.set_up_recovery(&world.url(), Format::Native, PIN).await.expect("set up");
    alice.disconnect().await;
    let connect = async |device: &Arc<Identity>| {
        let options = wire::Options::default();
        wire::connect(&world.url(), device, &options).await.expect("a session").0
    };
    let old = Arc::new(Identity::from_seed(&alice.seed().try_into().expect("a seed")));
    let mut wire = connect(&old).await;
    let mut vault = Vault::create(old.clone(), &mut wire).await.expect("founded");
    vault.push(&mut wire, &[b"a changeset".to_vec()]).await.expect("pushed");
    wire.close().await;

    let mut back = Person::restored(&world.url(), &code, PIN).await.expect("restored");
    back.connect(&world.url()).await;
    back.device.wait_ready(log, DEADLINE).await.expect("in the group");
    eventually("the old device is ended", async || {
        back.device.keep_recovery().await.expect("kept")
    })
    .await;
    let new = Arc::new(Identity::from_seed(&back.seed().try_into().expect("a seed")));
    let mut wire = connect(&new).await;
    let mut seen = Vault::new(new.clone(), vault.log());
    let pulled = seen.pull(&mut wire).await.expect("enrolled");
    let devices: Vec<DeviceKey> = seen.devices().enrolled().map(|(device, _)| device).collect();
    assert_eq!(devices, [new.key()]);
    assert!(seen.devices().revoked_at(old.key()).is_some());
    let texts: Vec<&[u8]> = pulled.changesets.iter().map(|it| it.payload.as_slice()).collect();
    assert_eq!(texts, [b"a changeset"]);
    seen.push(&mut wire, &[b"another".to_vec()]).await.expect("pushed");
}

async fn a_database_goes_on_in_the_vault_of_the_lost_device(database: Database) {
    let world = World::start(database).await;
    let place = tempfile::tempdir().expect("a directory");
    let attach = async |person: &Person, name: &str| {
        let path = place.path().join(name);
        let db = rusqlite::Connection::open(&path).expect("a database");
        db.execute_batch("create table notes (id text primary key, note text, mine text)")
            .expect("a table");
        let schema = Schema::version(1).table(Table::group("notes").user_private_column("mine"));
        (person.device.attach(&path, &schema).await.expect("attached"), db)
    };
    let rows = |db: &rusqlite::Connection| -> Vec<(String, Option<String>)> {
        let mut rows = db.prepare("select id, mine from notes order by id").expect("the table");
        let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("read");
        rows.collect::<rusqlite::Result<_>>().expect("rows")
    };
    let row = |id: &str, mine: Option<&str>| (id.to_owned(), mine.map(str::to_owned));
    let (alice, bob) = (Person::new().await, Person::new().await);
    let code =
        alice.device.set_up_recovery(&world.url(), Format::Native, PIN).await.expect("set up");
    let (lost, db) = attach(&alice, "alice.db").await;
    let (with_bob, bobs) = attach(&bob, "bob.db").await;
    lost.found(&world.url()).await.expect("founded");
    let offer = lost.offer(Whose::AnotherPersons).await.expect("an offer");
    let consent = with_bob.accept(&offer).await.expect("a consent");
    lost.enrol(&consent, Whose::AnotherPersons).await.expect("enrolled");
    // Bob makes a scope that is smaller than any other, and gives its key to Alice's device.
    let vault = offer.vault;
    plant_scope(&world.url(), &bob, vault, alice.key()).await;
    db.execute_batch("insert into notes values ('a', 'of alice', 'private')").expect("written");
    lost.sync().await.expect("synced");
    let was = alice.key();
    drop((lost, alice));

    let back = Person::restored(&world.url(), &code, PIN).await.expect("restored");
    assert_eq!(back.device.recovered_vaults().await, Ok(Vec::new()), "not before it is told");
    eventually("the old device is ended", async || {
        back.device.keep_recovery().await.expect("kept")
    })
    .await;
    let vaults = back.device.recovered_vaults().await.expect("listed");
    let (found, mine) = attach(&back, "back.db").await;
    mine.execute_batch("insert into notes values ('b', 'meanwhile', 'private too')")
        .expect("written");
    found.take_over(&vaults[0]).await.expect("joined");
    found.sync().await.expect("synced");
    with_bob.sync().await.expect("synced");
    let all = [row("a", Some("private")), row("b", Some("private too"))];
    assert_eq!(rows(&mine), all, "what was the person's own is there as well");
    assert_eq!(rows(&bobs), [row("a", None), row("b", None)], "and Bob's is not touched");
    let status = with_bob.status().await.expect("a status").vault.expect("a vault");
    let devices: Vec<DeviceKey> = status.devices.iter().map(|(device, _)| *device).collect();
    assert!(devices.contains(&back.key()) && !devices.contains(&was) && devices.len() == 2);
    bobs.execute_batch("update notes set note = 'of bob'").expect("written");
    with_bob.sync().await.expect("synced");
    found.sync().await.expect("synced");
    let count = "select count(*) from notes where note = 'of bob'";
    assert_eq!(mine.query_row(count, [], |row| row.get::<_, i64>(0)), Ok(2));
    // Another vault is not taken over what a database has.
    let other = with_bob.take_over(&vaults[0]).await;
    assert_eq!(other, Ok(()), "the same vault is no other");
    assert_eq!(found.found(&world.url()).await.err(), Some(SyncError::OtherVault));
}

/// Makes the scope with the smallest name of all, as an enrolled device of somebody may, and gives it to
/// another device.
async fn plant_scope(relay: &RelayUrl, person: &Person, vault: LogId, to: DeviceKey) {
    let device = Arc::new(Identity::from_seed(&person.seed().try_into().expect("a seed")));
    let options = wire::Options::default();
    let (mut wire, _) = wire::connect(relay, &device, &options).await.expect("a session");
    let mut seen = Vault::new(device.clone(), vault);
    seen.pull(&mut wire).await.expect("read");
    let mut scope = Scope::ZERO;
    scope.0[15] = 1;
    let outline = Outline {
        log: vault,
        count: 1,
        prev: Digest::ZERO,
        kind: Kind::Key,
        recipients: Vec::new(),
        seen: seen.head().expect("a head"),
    };
    let aad = outline.aad(device.key());
    let place = Place { log: vault, sender: device.key(), aad: &aad };
    let key = EpochKey::generate().expect("random bytes");
    let grant = Grant { key, join_seed: None, head: None };
    let name = KeyName { scope, epoch: 1 };
    let sealed =
        [device.key(), to].map(|to| keybox::seal(&grant, name, &place, to).expect("sealed"));
    let keys = Bounded::new(sealed.to_vec()).expect("two");
    let body = KeyBody { scope, epoch: 1, keys }.encode().expect("small");
    let signed = outline.sign(&device, &body).expect("small");
    wire.request(&Append { entry: signed.entry }.into()).await.expect("appended");
    wire.close().await;
}

async fn a_log_that_could_not_be_read_is_not_given_up(database: Database) {
    let world = World::start(database).await;
    let (mut alice, mut bob) = (Person::new().await, Person::new().await);
    let code =
        alice.device.set_up_recovery(&world.url(), Format::Native, PIN).await.expect("set up");
    let old = Arc::new(Identity::from_seed(&alice.seed().try_into().expect("a seed")));
    let options = wire::Options::default();
    let (mut wire, _) = wire::connect(&world.url(), &old, &options).await.expect("a session");
    let vault = Vault::create(old.clone(), &mut wire).await.expect("founded").log();
    wire.close().await;
    // A group as well, of which the recovery vault does not know.
    alice.connect(&world.url()).await;
    bob.connect(&world.url()).await;
    let group = bob.found(&world.url()).await;
    alice.join(&bob, group).await;
    alice.disconnect().await;
    drop(alice);

    let line = Line::to(world.address()).await;
    let back = Person::restored(&line.url(), &code, PIN).await.expect("restored");
    line.cut.store(true, Ordering::Relaxed);
    for _ in 0..2 {
        let kept = back.device.keep_recovery().await;
        assert!(kept.is_err(), "not before each log was read: {kept:?}");
    }
    line.cut.store(false, Ordering::Relaxed);
    assert_eq!(back.device.keep_recovery().await, Ok(true), "the old key is still there");
    let vaults = back.device.recovered_vaults().await.expect("listed");
    assert_eq!(vaults.iter().map(|it| it.vault).collect::<Vec<_>>(), [vault]);
}

/// A line to a relay that breaks, if it is told to: after the welcome and before any entry, or when the
/// relay answers that it has changed a recovery vault; or that holds a request to change one back.
struct Line {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    changes: Arc<Changes>,
}

/// What a line does with requests to change a recovery vault.
#[derive(Default)]
struct Changes {
    /// Their answers are lost.
    deaf: AtomicBool,
    /// So many deletions have come by.
    deleted: AtomicUsize,
    /// The next one is held back until it is released.
    hold: AtomicBool,
    held: AtomicBool,
    release: Notify,
}

impl Line {
    async fn to(relay: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (cut, changes) = (Arc::new(AtomicBool::new(false)), Arc::new(Changes::default()));
        let (cuts, changing) = (cut.clone(), changes.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(relay).await.expect("the relay");
                tokio::spawn(Self::carry(near, far, cuts.clone(), changing.clone()));
            }
        });
        Self { address, cut, changes }
    }

    fn set_deaf(&self, deaf: bool) {
        self.changes.deaf.store(deaf, Ordering::Relaxed);
    }

    fn url(&self) -> RelayUrl {
        RelayUrl::parse(&format!("ws://{}", self.address)).expect("a URL")
    }

    /// What a device says in turn: the request to upgrade, who it is, and then what it wants.
    async fn carry(near: TcpStream, far: TcpStream, cut: Arc<AtomicBool>, changes: Arc<Changes>) {
        let (mut from_device, mut to_device) = near.into_split();
        let (mut from_relay, mut to_relay) = far.into_split();
        let change = Arc::new(AtomicBool::new(false));
        let (unheard, told) = (change.clone(), changes.clone());
        let back = tokio::spawn(async move {
            let mut bytes = vec![0; 64 * 1024];
            // However it ends, the line is over.
            while let Ok(read @ 1..) = from_relay.read(&mut bytes).await {
                let lost = unheard.load(Ordering::Relaxed) && told.deaf.load(Ordering::Relaxed);
                if lost || to_device.write_all(&bytes[..read]).await.is_err() {
                    break;
                }
            }
        });
        let mut bytes = vec![0; 64 * 1024];
        let mut upgraded = false;
        let mut said = 0;
        while let Ok(read @ 1..) = from_device.read(&mut bytes).await {
            said += 1;
            let text = String::from_utf8_lossy(&bytes[..read]);
            upgraded |= said == 1 && text.to_lowercase().contains("websocket");
            let deletes = text.starts_with("DELETE /identity/vault ");
            if deletes || text.starts_with("PUT /identity/vault ") {
                change.store(true, Ordering::Relaxed);
                changes.deleted.fetch_add(usize::from(deletes), Ordering::Relaxed);
                if changes.hold.swap(false, Ordering::Relaxed) {
                    changes.held.store(true, Ordering::Relaxed);
                    changes.release.notified().await;
                }
            }
            if upgraded && said > 2 && cut.load(Ordering::Relaxed) {
                break;
            }
            if to_relay.write_all(&bytes[..read]).await.is_err() {
                break;
            }
        }
        back.abort();
    }
}

async fn who_was_alone_in_a_group_finds_its_way_back(database: Database) {
    let world = World::start(database).await;
    let mut alice = Person::new().await;
    alice.connect(&world.url()).await;
    let log = alice.found(&world.url()).await;
    let code =
        alice.device.set_up_recovery(&world.url(), Format::Native, PIN).await.expect("set up");
    alice.disconnect().await;
    let mut back = Person::restored(&world.url(), &code, PIN).await.expect("restored");
    back.connect(&world.url()).await;
    back.device.wait_ready(log, DEADLINE).await.expect("with the key that the vault had");
    back.say(log, "anybody there?").await;
    // And can let others in.
    let mut bob = Person::new().await;
    bob.connect(&world.url()).await;
    eventually("the lost one is out", async || {
        back.device.members(log).await.expect("a group").len() == 1
    })
    .await;
    bob.join(&back, log).await;
    back.say(log, "at last").await;
    bob.hears(log, "at last").await;
}

async fn the_key_that_a_totals_group_knows_comes_back(database: Database) {
    let world = World::start(database).await;
    let mut alice = Person::new().await;
    alice.connect(&world.url()).await;
    alice.device.set_name("Alice").await.expect("a name");
    let log = alice.device.create_totals_group(&world.url()).await.expect("made");
    let group = log.to_uuid_text();
    let phone = Phone::new(world.address(), 2);
    phone.join(&group).await.ok();
    let (me, before) = (alice.key(), json!({ "type": "nudge", "id": "before" }).to_string());
    let id = alice.device.send(log, Outgoing::to_all(before).called("nudge")).await;
    alice.device.wait_appended(id.expect("in the outbox"), DEADLINE).await.expect("appended");
    let made = alice.device.set_up_recovery(&world.url(), Format::Totals, "12345").await;
    assert_eq!(made.err(), Some(RecoveryError::from(VaultError::Digits).into()));
    let code =
        alice.device.set_up_recovery(&world.url(), Format::Totals, PIN).await.expect("set up");
    alice.disconnect().await;
    drop(alice);

    let wrong = Person::restored(&world.url(), &code, "135790").await;
    assert_eq!(wrong.err(), Some(wrong_pin()));
    let mut back = Person::restored(&world.url(), &code, PIN).await.expect("restored");
    assert_eq!(back.key(), me);
    assert_eq!(back.device.name().await, Ok(Some("Alice".to_owned())));
    back.connect(&world.url()).await;
    back.device.wait_ready(log, DEADLINE).await.expect("a member as before");
    // It asks for what was said, behind what it had said before and does not know any more.
    let vault: Value = {
        let body = json!({ "recoveryCode": code.shown().replace('-', "") }).to_string();
        let path = "/identity/vault/fetch";
        let answer = phone.send("POST", path, &Proof::None, Some(body.into_bytes())).await;
        answer.expect("an answer").ok()
    };
    let stored = serde_json::from_value(vault).expect("as the app has it");
    let contents = sealwire_client::totals::recovery::open(&stored, PIN).expect("opened");
    let key: &GroupKey = contents.group_keys.get(&log).expect("the group");
    let device = Identity::from_seed(&phone.signing.to_bytes());
    eventually("the phone is asked", async || {
        phone.pending(&group).await.iter().any(|payload| {
            let blob = hex::decode(payload["encryptedBlob"].as_str().expect("text"));
            let opened = seal::open(Some(key), &device, me, &blob.expect("hex")).expect("opened");
            let message: Value = serde_json::from_slice(&opened.plaintext).expect("JSON");
            message["type"] == "snapshot_request" && message["publicKey"] == me.to_hex()
        })
    })
    .await;
    assert_eq!(back.device.keep_recovery().await, Ok(true), "with its groups, by the same code");
    let again = Person::restored(&world.url(), &code, PIN).await.expect("restored again");
    assert_eq!(again.key(), me);
}

async fn a_wrong_pin_is_reported_and_locks_in_the_end(database: Database) {
    let world = World::start(database).await;
    let alice = Person::new().await;
    let code =
        alice.device.set_up_recovery(&world.url(), Format::Native, PIN).await.expect("set up");
    for _ in 0..5 {
        let wrong = Person::restored(&world.url(), &code, "135790").await;
        assert_eq!(wrong.err(), Some(wrong_pin()));
    }
    let locked = Person::restored(&world.url(), &code, PIN).await.err();
    let Some(Error::Recovery(RecoveryError::Locked(Some(until)))) = locked else {
        panic!("{locked:?}")
    };
    assert!(until.ends_with('Z'), "{until}");
    // Its owner is not locked out of storing, which unlocks.
    alice.device.change_pin(PIN, "987654").await.expect("changed");
    Person::restored(&world.url(), &code, "987654").await.expect("restored");
    let unknown = RecoveryCode::generate(Format::Native).expect("randomness");
    let missing = Person::restored(&world.url(), &unknown, PIN).await.err();
    assert_eq!(missing, Some(RecoveryError::Missing.into()));
}

async fn a_changed_pin_counts_and_the_code_stays(database: Database) {
    let world = World::start(database).await;
    for format in [Format::Native, Format::Totals] {
        let alice = Person::new().await;
        let none = alice.device.change_pin(PIN, "987654").await;
        assert_eq!(none, Err(RecoveryError::Missing.into()));
        let code = alice.device.set_up_recovery(&world.url(), format, PIN).await.expect("set up");
        assert_eq!(alice.device.change_pin("000000", "987654").await, Err(wrong_pin()));
        alice.device.change_pin(PIN, "987654").await.expect("changed");
        let old = Person::restored(&world.url(), &code, PIN).await;
        assert_eq!(old.err(), Some(wrong_pin()));
        Person::restored(&world.url(), &code, "987654").await.expect("restored");
        alice.device.delete_recovery().await.expect("deleted");
        let gone = Person::restored(&world.url(), &code, "987654").await.err();
        assert_eq!(gone, Some(RecoveryError::Missing.into()));
    }
}

async fn a_native_code_is_never_sent(database: Database) {
    let world = World::start(database).await;
    let alice = Person::new().await;
    let code =
        alice.device.set_up_recovery(&world.url(), Format::Native, PIN).await.expect("set up");
    let phone = Phone::new(world.address(), 2);
    let body = json!({ "recoveryCode": code.shown().replace('-', "") }).to_string();
    let answer =
        phone.send("POST", "/identity/vault/fetch", &Proof::None, Some(body.into_bytes())).await;
    answer.expect("an answer").refused(404, "no_such_vault");
}

async fn what_a_relay_has_done_and_not_answered_is_put_right(database: Database) {
    let world = World::start(database).await;
    let line = Line::to(world.address()).await;
    for format in [Format::Native, Format::Totals] {
        let alice = Person::new().await;
        let code = alice.device.set_up_recovery(&line.url(), format, PIN).await.expect("set up");
        for change in 0..3 {
            line.set_deaf(true);
            let device = &alice.device;
            let failed = match change {
                0 => device.set_up_recovery(&line.url(), format, "987654").await.map(|_| ()),
                1 => device.change_pin(PIN, "987654").await,
                _ => device.delete_recovery().await,
            };
            assert!(matches!(failed, Err(Error::Recovery(_))), "{change}: {failed:?}");
            line.set_deaf(false);
            // The relay has it; the person was told that it was not done, and has the old code and PIN.
            let before = Person::restored(&world.url(), &code, PIN).await;
            assert!(before.is_err(), "{change}: the relay has done it");
            assert_eq!(alice.device.keep_recovery().await, Ok(true), "{change}");
            let back = Person::restored(&world.url(), &code, PIN).await;
            assert_eq!(back.err(), None, "{change}");
        }
    }
}

async fn what_a_relay_may_have_and_nobody_was_shown_is_deleted(database: Database) {
    let world = World::start(database).await;
    let line = Line::to(world.address()).await;
    let deleted = || line.changes.deleted.load(Ordering::Relaxed);
    let lost = async |alice: &Person| {
        line.set_deaf(true);
        let made = alice.device.set_up_recovery(&line.url(), Format::Native, "987654").await;
        assert!(matches!(made, Err(Error::Recovery(_))), "{:?}", made.err());
        line.set_deaf(false);
    };
    // There was none: the relay has one now, and the person has no code.
    let alice = Person::new().await;
    lost(&alice).await;
    assert_eq!(alice.device.recovery().await, Ok(None));
    assert_eq!((alice.device.keep_recovery().await, deleted() > 0), (Ok(true), true));
    assert_eq!(alice.device.keep_recovery().await, Ok(false), "nothing is left to be done");
    // Whoever deletes is not told that nothing is there before that is so.
    lost(&alice).await;
    line.set_deaf(true);
    let elsewhere = RecoveryError::Elsewhere(line.url());
    assert_eq!(alice.device.delete_recovery().await, Err(elsewhere.into()));
    line.set_deaf(false);
    let before = deleted();
    assert_eq!((alice.device.delete_recovery().await, deleted() > before), (Ok(()), true));
    // There is one, and the other relay turns out to be the same one: what is on paper opens.
    let (relay, format) = (world.url(), Format::Native);
    let code = alice.device.set_up_recovery(&relay, format, PIN).await.expect("set up");
    lost(&alice).await;
    assert!(Person::restored(&relay, &code, PIN).await.is_err(), "it has the other one");
    assert_eq!(alice.device.keep_recovery().await, Ok(true));
    assert_eq!(Person::restored(&relay, &code, PIN).await.err(), None);
    assert_eq!(alice.device.keep_recovery().await, Ok(false));
}

async fn of_two_programs_that_change_a_recovery_vault_the_slower_one_undoes_nothing(
    database: Database,
) {
    let world = World::start(database).await;
    let line = Line::to(world.address()).await;
    let (place, format) = (tempfile::tempdir().expect("a directory"), Format::Native);
    let options = Options::default;
    let made = Device::create(place.path(), KeyKeeping::Unsealed, options()).await;
    let slow = made.expect("a device");
    let quick = Device::open(place.path(), None, options()).await.expect("the same device");
    let first = slow.set_up_recovery(&line.url(), format, PIN).await.expect("set up");
    let held = async || {
        eventually("it is held", async || line.changes.held.swap(false, Ordering::Relaxed)).await;
    };
    // One program brings the vault up to date, and its request hangs; another makes a new code.
    slow.set_name("Alice").await.expect("a name");
    line.changes.hold.store(true, Ordering::Relaxed);
    let keeping = tokio::spawn({
        let slow = slow.clone();
        async move { slow.keep_recovery().await }
    });
    held().await;
    let second = quick.set_up_recovery(&line.url(), format, PIN).await.expect("set up");
    line.changes.release.notify_one();
    assert_eq!(keeping.await.expect("it ran"), Ok(true));
    assert_eq!(Person::restored(&world.url(), &second, PIN).await.err(), None);
    let gone = Some(Error::from(RecoveryError::Missing));
    assert_eq!(Person::restored(&world.url(), &first, PIN).await.err(), gone);
    // One program changes the PIN, and its request hangs; another changes it too, and says so.
    line.changes.hold.store(true, Ordering::Relaxed);
    let changing = tokio::spawn({
        let slow = slow.clone();
        async move { slow.change_pin(PIN, "111111").await }
    });
    held().await;
    quick.change_pin(PIN, "987654").await.expect("changed");
    line.changes.release.notify_one();
    let late = changing.await.expect("it ran");
    assert_eq!(late, Err(RecoveryError::Changed.into()), "the person is told");
    assert_eq!(quick.keep_recovery().await, Ok(true));
    assert_eq!(Person::restored(&world.url(), &second, "987654").await.err(), None);
}

async fn the_key_of_a_lost_device_stays_until_that_is_ended(database: Database) {
    let world = World::start(database).await;
    let (mut alice, mut bob) = (Person::new().await, Person::new().await);
    let code =
        alice.device.set_up_recovery(&world.url(), Format::Native, PIN).await.expect("set up");
    alice.connect(&world.url()).await;
    bob.connect(&world.url()).await;
    let log = alice.found(&world.url()).await;
    bob.join(&alice, log).await;
    assert_eq!(alice.device.keep_recovery().await, Ok(true));
    alice.disconnect().await;
    let lost = alice.key();
    drop(alice);

    // In her group the lost device is revoked when the new one is in it, and not before.
    let mut back = Person::restored(&world.url(), &code, PIN).await.expect("restored");
    let unfinished = Some(Error::from(RecoveryError::Unfinished));
    assert_eq!(back.device.delete_recovery().await.err(), unfinished);
    let line = Line::to(world.address()).await;
    let elsewhere = back.device.set_up_recovery(&line.url(), Format::Native, PIN).await;
    assert_eq!(elsewhere.err(), unfinished);
    assert_eq!(back.device.is_restoring().await, Ok(true));
    back.connect(&world.url()).await;
    eventually("the lost one is ended", async || back.device.keep_recovery().await.expect("kept"))
        .await;
    let gone = |event: &Event| matches!(event, Event::Revoked { device, .. } if *device == lost);
    bob.until("the lost one is out", |bob| bob.told.iter().any(gone)).await;
    back.device.set_up_recovery(&line.url(), Format::Native, PIN).await.expect("elsewhere");
    back.device.delete_recovery().await.expect("deleted");
    assert_eq!(back.device.recovery().await, Ok(None));
}
