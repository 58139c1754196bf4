//! An app's own database is the same on all devices, and what is private to one person is that
//! person's.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::Connection;
use sealwire_actors::Options;
use sealwire_actors::limits::VaultLimits;
use sealwire_client::address::RelayUrl;
use sealwire_client::entry::Outline;
use sealwire_client::identity::Identity;
use sealwire_client::seal;
use sealwire_client::sync::{
    Attached, Keeping, Offer, Phase, Report, Schema, SyncError, Table, Whose,
};
use sealwire_client::vault::Vault;
use sealwire_client::wire::{self, Session, Wire};
use sealwire_protocol::frame::Append;
use sealwire_protocol::{Control, DeviceKey, Digest, Head, Kind, LogId};
use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::task::block_in_place;
use tokio::time::timeout;

use crate::support::backup::Backup;
use crate::support::on_both_databases;
use crate::support::place::Database;
use crate::support::world::World;
use crate::support::{DEADLINE, eventually};

on_both_databases!(
    a_household_shares_its_tables_and_keeps_what_is_private,
    what_is_written_while_the_relay_is_away_arrives_when_it_is_back,
    a_new_device_begins_with_a_snapshot_that_another_one_has_confirmed,
    a_snapshot_that_is_made_while_the_app_writes_lacks_nothing,
    a_snapshot_during_whose_making_a_device_goes_is_not_sealed_under_its_key,
    a_snapshot_that_does_not_open_and_nobody_confirmed_keeps_no_newcomer_out,
    an_offer_that_was_changed_on_its_way_enrols_nobody,
    an_offer_that_is_made_while_the_device_is_kept_synced_names_its_one_scope,
    whoever_waits_for_its_persons_key_makes_none_that_nobody_believes,
    two_devices_that_are_kept_synced_see_each_others_writes_at_once,
    a_revoked_device_sends_nothing_and_reads_nothing_more,
    a_database_that_was_set_back_takes_its_own_changes_from_the_vault,
    a_relay_that_was_set_back_is_given_back_what_it_had_lost,
    what_a_relay_that_was_set_back_refuses_is_kept_and_sealed_anew,
);

const TABLES: &str = "
    pragma journal_mode = wal;
    create table transactions (id text primary key, amount integer not null, note text, card text);
    create table pins (id text primary key, pin text);
";

const ALL: &str = "select id, amount, note, card from transactions order by id";
const SHARED: &str = "select id, amount, note from transactions order by id";

fn schema() -> Schema {
    Schema::version(1)
        .table(Table::group("transactions").user_private_column("card"))
        .table(Table::user_private("pins"))
}

/// A device with an app and its database.
struct Phone {
    directory: TempDir,
    identity: Arc<Identity>,
    database: Attached,
}

impl Phone {
    async fn new(number: u8) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("app.db");
        Connection::open(&path).expect("a database").execute_batch(TABLES).expect("tables");
        let identity = Arc::new(Identity::from_seed(&[number; 32]));
        let database =
            Attached::attach(&path, identity.clone(), &schema()).await.expect("attached");
        Self { directory, identity, database }
    }

    fn key(&self) -> DeviceKey {
        self.identity.key()
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("app.db")
    }

    /// The app writes, with a connection of its own.
    fn app(&self, sql: &str) {
        let db = Connection::open(self.path()).expect("a database");
        db.execute_batch(sql).expect("written");
    }

    fn rows(&self, sql: &str) -> Vec<String> {
        rows(&self.path(), sql)
    }

    async fn sync(&self) -> Report {
        let report = timeout(DEADLINE, self.database.sync()).await.expect("in time");
        let report = report.unwrap_or_else(|error| panic!("{:?}: {error:?}", self.key()));
        assert_eq!((report.rejected, report.damaged), (0, 0));
        report
    }

    /// Enrols another device.
    async fn enrol(&self, other: &Self, whose: Whose) {
        let offer = self.database.offer(whose).await.expect("an offer").code();
        let offer = Offer::parse(&offer).expect("an offer");
        let consent = other.database.accept(&offer).await.expect("a consent");
        let enrolled = timeout(DEADLINE, self.database.enrol(&consent, whose)).await;
        enrolled.expect("in time").expect("enrolled");
    }
}

/// The rows of a query, each as its values in SQL.
fn rows(path: &Path, sql: &str) -> Vec<String> {
    let db = Connection::open(path).expect("a database");
    let mut statement = db.prepare(sql).expect("a query");
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        let values: rusqlite::Result<Vec<String>> =
            (0..columns).map(|at| Ok(format!("{:?}", row.get_ref(at)?))).collect();
        Ok(values?.join(" "))
    });
    rows.expect("read").collect::<rusqlite::Result<_>>().expect("rows")
}

/// Ada with two devices.
async fn two_of_ada(world: &World) -> (Phone, Phone) {
    let (laptop, phone) = (Phone::new(1).await, Phone::new(2).await);
    laptop.database.found(&world.url()).await.expect("founded");
    laptop.enrol(&phone, Whose::Mine).await;
    (laptop, phone)
}

async fn a_household_shares_its_tables_and_keeps_what_is_private(database: Database) {
    let world = World::start(database).await;
    let (laptop, phone) = two_of_ada(&world).await;
    let ben = Phone::new(3).await;
    laptop.enrol(&ben, Whose::AnotherPersons).await;
    laptop.app("insert into transactions values ('a', 4200, 'IKEA', 'planted-card')");
    laptop.app("insert into pins values ('bank', 'planted-pin')");
    ben.app("insert into transactions values ('b', 100, 'bread', 'of-ben')");
    laptop.sync().await;
    ben.sync().await;
    phone.app("update transactions set note = 'nothing yet'");
    let report = phone.sync().await;
    assert_eq!(report.replayed.tables.len(), 2);
    laptop.sync().await;
    assert_eq!(laptop.rows(ALL), phone.rows(ALL));
    assert_eq!(phone.rows("select pin from pins").len(), 1);
    assert!(phone.rows(ALL)[0].contains("Text"), "the card is there");
    // Ben has the shared half, and his own.
    assert_eq!(ben.rows(SHARED), laptop.rows(SHARED));
    assert_eq!(ben.rows("select card from transactions where id = 'a'"), ["Null"]);
    assert!(ben.rows("select * from pins").is_empty());
    assert_eq!(laptop.rows("select card from transactions where id = 'b'"), ["Null"]);
    // Both edit one row at once, in different cells.
    ben.app("update transactions set amount = 4300 where id = 'a'");
    laptop.app("update transactions set note = 'IKEA, chairs' where id = 'a'");
    for device in [&ben, &laptop, &phone, &ben] {
        device.sync().await;
    }
    let expected = laptop.rows(SHARED);
    assert!(expected[0].contains("4300"), "{expected:?}");
    assert_eq!((phone.rows(SHARED), ben.rows(SHARED)), (expected.clone(), expected));
    let status = ben.database.status().await.expect("a status");
    assert_eq!((status.unsent_rows, status.withheld), (0, 0));
    assert!(status.sealed > 0, "what is Ada's alone is kept sealed");
    let file = std::fs::read(ben.path()).expect("a file");
    assert!(!file.windows(7).any(|window| window == b"planted"));
}

async fn what_is_written_while_the_relay_is_away_arrives_when_it_is_back(database: Database) {
    let mut world = World::start(database).await;
    let (laptop, phone) = two_of_ada(&world).await;
    laptop.sync().await;
    phone.sync().await;
    world.stop().await;
    laptop.app("insert into transactions values ('a', 1, 'offline', null)");
    phone.app("insert into transactions values ('b', 2, 'offline', null)");
    assert!(laptop.database.sync().await.is_err());
    assert_eq!(laptop.database.status().await.expect("a status").unsent_rows, 1);
    // The process ends, too.
    let laptop = reopened(laptop).await;
    world.run().await;
    let report = laptop.sync().await;
    assert_eq!(report.sent_rows, 1);
    phone.sync().await;
    laptop.sync().await;
    assert_eq!(laptop.rows(ALL).len(), 2);
    assert_eq!(laptop.rows(ALL), phone.rows(ALL));
    assert_eq!(laptop.sync().await.replayed.cells, 0, "nothing comes twice");
}

async fn reopened(phone: Phone) -> Phone {
    let Phone { directory, identity, database } = phone;
    drop(database);
    let path = directory.path().join("app.db");
    let database = Attached::open(&path, identity.clone()).await.expect("opened");
    Phone { directory, identity, database }
}

async fn a_new_device_begins_with_a_snapshot_that_another_one_has_confirmed(database: Database) {
    let world = World::start(database).await;
    let (laptop, phone) = two_of_ada(&world).await;
    let ben = Phone::new(3).await;
    laptop.enrol(&ben, Whose::AnotherPersons).await;
    for number in 0..300 {
        laptop.app(&format!(
            "insert into transactions values ('t{number:03}', {number}, 'many', 'card-{number}')"
        ));
    }
    laptop.app(
        "insert into pins values ('bank', '1234'); delete from transactions where id = 't007'",
    );
    ben.app("insert into transactions values ('ben', 1, 'bread', 'of-ben')");
    for device in [&laptop, &ben, &phone, &laptop] {
        device.sync().await;
    }
    // Ben's snapshot: he cannot open what is Ada's, and hands it on.
    let made = timeout(DEADLINE, ben.database.snapshot()).await.expect("in time").expect("made");
    assert!(phone.sync().await.confirmed, "everything that the phone has is in it");
    laptop.app("update transactions set note = 'after it' where id = 't001'");
    laptop.sync().await;
    let tablet = Phone::new(4).await;
    laptop.enrol(&tablet, Whose::Mine).await;
    let report = tablet.sync().await;
    assert!(report.replayed.rows >= 300 && report.sent == 0);
    assert_eq!(tablet.rows(ALL), laptop.rows(ALL));
    assert_eq!(tablet.rows("select * from pins"), laptop.rows("select * from pins"));
    // Ada's own snapshot takes the place of the boxes that Ben kept for her.
    let before = ben.database.status().await.expect("a status").sealed;
    let newer =
        timeout(DEADLINE, laptop.database.snapshot()).await.expect("in time").expect("made");
    assert!(newer.head.seq > made.head.seq);
    assert!(ben.sync().await.confirmed);
    let after = ben.database.status().await.expect("a status").sealed;
    assert!(before > 0 && after < before, "{before} boxes, then {after}");
    // And what he hands on since is enough for Ada's next device.
    timeout(DEADLINE, ben.database.snapshot()).await.expect("in time").expect("made");
    assert!(phone.sync().await.confirmed);
    let watch = Phone::new(5).await;
    laptop.enrol(&watch, Whose::Mine).await;
    watch.sync().await;
    assert_eq!(watch.rows(ALL), laptop.rows(ALL));
    assert_eq!(watch.rows("select * from pins").len(), 1);
}

async fn a_snapshot_that_is_made_while_the_app_writes_lacks_nothing(database: Database) {
    let world = World::start(database).await;
    let (laptop, phone) = two_of_ada(&world).await;
    laptop.app("insert into transactions values ('a', 1, 'x', null)");
    laptop.sync().await;
    phone.sync().await;
    // When everything was read for the second time, nothing but the snapshot is left to be made.
    let (readings, path) = (AtomicU64::new(0), laptop.path());
    laptop.database.on_progress(move |progress| {
        if progress.phase == Phase::Reading && readings.fetch_add(1, Ordering::Relaxed) == 1 {
            let db = Connection::open(&path).expect("a database");
            db.execute_batch("delete from transactions").expect("written");
        }
    });
    laptop.database.snapshot().await.expect("a snapshot");
    let tablet = Phone::new(3).await;
    laptop.enrol(&tablet, Whose::Mine).await;
    tablet.sync().await;
    // The phone does not know that the row is gone, and brings it back by a write of one cell.
    phone.app("update transactions set amount = 2");
    phone.sync().await;
    for device in [&laptop, &tablet] {
        device.sync().await;
        assert_eq!(device.rows(ALL), phone.rows(ALL));
    }
    assert!(tablet.rows(ALL)[0].contains("Text"), "with its note");
}

/// A device leaves, and makes no keys: it has written nothing before.
async fn leave(relay: &RelayUrl, identity: &Identity, log: LogId) {
    let (mut wire, _) = connect(relay, identity).await;
    let (kind, recipients) = (Kind::Control, Vec::new());
    let outline = Outline { log, count: 1, prev: Digest::ZERO, kind, recipients, seen: Head::NONE };
    let signed = outline.sign(identity, &Control::Leave.encode()).expect("short");
    wire.request(&Append { entry: signed.entry }.into()).await.expect("appended");
    wire.close().await;
}

async fn connect(relay: &RelayUrl, identity: &Identity) -> (Wire, Session) {
    let options = wire::Options::default();
    wire::connect(relay, identity, &options).await.expect("connected")
}

async fn a_snapshot_during_whose_making_a_device_goes_is_not_sealed_under_its_key(
    database: Database,
) {
    // When everything was read for the second time, nothing but the snapshot is left to be made.
    for (during, times) in [(Phase::Reading, 1), (Phase::Uploading, 0)] {
        let world = World::start(database).await;
        let (laptop, phone) = two_of_ada(&world).await;
        let guest = Phone::new(3).await;
        laptop.enrol(&guest, Whose::AnotherPersons).await;
        laptop.app("insert into transactions values ('a', 1, 'x', '1234')");
        laptop.sync().await;
        phone.sync().await;
        let log = laptop.database.status().await.expect("a status").vault.expect("a vault").log;
        let (seen, path) = (AtomicU64::new(0), laptop.path());
        let (relay, leaver) = (world.url(), guest.identity.clone());
        laptop.database.on_progress(move |progress| {
            if progress.phase == during && seen.fetch_add(1, Ordering::Relaxed) == times {
                let db = Connection::open(&path).expect("a database");
                db.execute_batch("update transactions set amount = 2").expect("written");
                let gone = leave(&relay, &leaver, log);
                block_in_place(|| Handle::current().block_on(gone));
            }
        });
        let made = timeout(DEADLINE, laptop.database.snapshot()).await.expect("in time");
        let made = made.expect("a snapshot");
        let (mut wire, _) = connect(&world.url(), &phone.identity).await;
        let mut vault = Vault::new(phone.identity.clone(), log);
        vault.pull(&mut wire).await.expect("read");
        let sealed = vault.download(&mut wire, &made).await.expect("downloaded");
        let epoch = seal::key_name(&sealed).expect("sealed").epoch;
        assert_eq!(epoch, 2, "{during:?}: the guest has the first key");
        wire.close().await;
        assert!(phone.sync().await.confirmed, "{during:?}: and it is whole");
    }
}

async fn a_snapshot_that_does_not_open_and_nobody_confirmed_keeps_no_newcomer_out(
    database: Database,
) {
    let world = World::start(database).await;
    let (laptop, phone) = two_of_ada(&world).await;
    laptop.app("insert into transactions values ('a', 1, 'x', '1234')");
    laptop.sync().await;
    // The phone does harm.
    let options = wire::Options::default();
    let connected = wire::connect(&world.url(), &phone.identity, &options).await;
    let (mut wire, _) = connected.expect("connected");
    let log = laptop.database.status().await.expect("a status").vault.expect("a vault").log;
    let mut vault = Vault::new(phone.identity.clone(), log);
    vault.pull(&mut wire).await.expect("read");
    vault.snapshot(&mut wire, b"no state of anything").await.expect("a snapshot");
    let tablet = Phone::new(3).await;
    laptop.enrol(&tablet, Whose::Mine).await;
    assert!(tablet.sync().await.refused_snapshot);
    assert_eq!(tablet.rows(ALL), laptop.rows(ALL));
    tablet.app("update transactions set amount = 2");
    assert!(!tablet.sync().await.refused_snapshot);
    laptop.sync().await;
    assert_eq!(tablet.rows(ALL), laptop.rows(ALL));
}

async fn an_offer_that_was_changed_on_its_way_enrols_nobody(database: Database) {
    let world = World::start(database).await;
    let (laptop, phone) = (Phone::new(1).await, Phone::new(2).await);
    laptop.database.found(&world.url()).await.expect("founded");
    let shown = laptop.database.offer(Whose::Mine).await.expect("an offer");
    let mut changed = shown.clone();
    changed.relay_key = phone.key();
    let consent = phone.database.accept(&changed).await.expect("a consent");
    let enrol = async |consent, whose| laptop.database.enrol(consent, whose).await.err();
    assert_eq!(enrol(&consent, Whose::Mine).await, Some(SyncError::OtherOffer));
    let consent = phone.database.accept(&shown).await.expect("a consent");
    assert_eq!(enrol(&consent, Whose::AnotherPersons).await, Some(SyncError::OtherOffer));
    assert_eq!(enrol(&consent, Whose::Mine).await, None);
    let status = laptop.database.status().await.expect("a status");
    assert_eq!(status.vault.expect("a vault").devices.len(), 2);
}

async fn an_offer_that_is_made_while_the_device_is_kept_synced_names_its_one_scope(
    database: Database,
) {
    let world = World::start(database).await;
    let (laptop, phone) = (Phone::new(1).await, Phone::new(2).await);
    laptop.database.found(&world.url()).await.expect("founded");
    let keeper = laptop.database.keep_synced();
    eventually("it is up", async || matches!(keeper.now(), Keeping::Synced(..))).await;
    let offer = laptop.database.offer(Whose::Mine).await.expect("an offer");
    laptop.app("insert into pins values ('a', 'planted pin')");
    let sent = async || laptop.database.status().await.expect("a status").unsent_rows == 0;
    eventually("it is sent", sent).await;
    keeper.stop().await;
    let consent = phone.database.accept(&offer).await.expect("a consent");
    let enrolled = timeout(DEADLINE, laptop.database.enrol(&consent, Whose::Mine)).await;
    enrolled.expect("in time").expect("enrolled");
    phone.sync().await;
    let pins = "select * from pins";
    assert_eq!(phone.rows(pins).len(), 1);
    assert_eq!(phone.rows(pins), laptop.rows(pins));
}

async fn whoever_waits_for_its_persons_key_makes_none_that_nobody_believes(database: Database) {
    let world = World::start(database).await;
    let (laptop, phone) = two_of_ada(&world).await;
    let log = laptop.database.status().await.expect("a status").vault.expect("a vault").log;
    let tablet = Phone::new(3).await;
    let offer = laptop.database.offer(Whose::Mine).await.expect("an offer");
    let consent = tablet.database.accept(&offer).await.expect("a consent");
    // Its enrolment is cut off before it is given what is private.
    let (mut wire, _) = connect(&world.url(), &laptop.identity).await;
    let mut vault = Vault::new(laptop.identity.clone(), log);
    vault.pull(&mut wire).await.expect("read");
    let signature = Vault::consent(&tablet.identity, log, laptop.key());
    vault.enrol(&mut wire, tablet.key(), signature).await.expect("enrolled");
    wire.close().await;
    // One that holds the key goes, so that it is to be made anew.
    leave(&world.url(), &phone.identity, log).await;
    tablet.app("insert into transactions values ('a', 1, 'x', '1234')");
    assert!(tablet.sync().await.waits_for_key);
    laptop.sync().await;
    let enrolled = timeout(DEADLINE, laptop.database.enrol(&consent, Whose::Mine)).await;
    enrolled.expect("in time").expect("enrolled");
    tablet.sync().await;
    laptop.sync().await;
    assert_eq!(laptop.rows(ALL).len(), 1);
    assert_eq!(laptop.rows(ALL), tablet.rows(ALL));
}

async fn two_devices_that_are_kept_synced_see_each_others_writes_at_once(database: Database) {
    let world = World::start(database).await;
    let (laptop, phone) = two_of_ada(&world).await;
    let keepers = [laptop.database.keep_synced(), phone.database.keep_synced()];
    eventually("both are up", async || {
        keepers.iter().all(|keeper| matches!(keeper.now(), Keeping::Synced(..)))
    })
    .await;
    // With a connection of its own, which nobody is told of.
    laptop.app("insert into transactions values ('a', 1, 'live', null)");
    eventually("it is on the phone", async || phone.rows(ALL) == laptop.rows(ALL)).await;
    let written = phone.database.write(|db| db.execute("update transactions set amount = 2", []));
    assert_eq!(written.await.expect("written"), 1);
    eventually("it is on the laptop", async || laptop.rows(ALL) == phone.rows(ALL)).await;
    assert!(laptop.rows(ALL)[0].contains("Integer(2)"));
    // One process takes turns.
    assert_eq!(laptop.database.sync().await.err(), Some(SyncError::Running));
    for keeper in keepers {
        keeper.stop().await;
    }
    laptop.sync().await;
}

async fn a_revoked_device_sends_nothing_and_reads_nothing_more(database: Database) {
    let world = World::start(database).await;
    let (laptop, phone) = two_of_ada(&world).await;
    laptop.app("insert into transactions values ('a', 1, 'before', null)");
    laptop.sync().await;
    phone.sync().await;
    laptop.database.revoke(phone.key()).await.expect("revoked");
    laptop.app("insert into transactions values ('b', 2, 'after', 'card')");
    laptop.sync().await;
    phone.app("insert into transactions values ('c', 3, 'lost', null)");
    assert_eq!(phone.database.sync().await.err(), Some(SyncError::NotEnrolled));
    assert_eq!(phone.rows(ALL).len(), 2, "what it has written stays there");
    assert_eq!(phone.database.status().await.expect("a status").unsent_rows, 1);
    // Whoever is enrolled now has all of it, under the keys of both times.
    let tablet = Phone::new(3).await;
    laptop.enrol(&tablet, Whose::Mine).await;
    tablet.sync().await;
    assert_eq!(tablet.rows(ALL), laptop.rows(ALL));
}

async fn a_database_that_was_set_back_takes_its_own_changes_from_the_vault(database: Database) {
    let world = World::start(database).await;
    let (laptop, phone) = two_of_ada(&world).await;
    laptop.app("insert into transactions values ('a', 1, 'early', 'card')");
    laptop.sync().await;
    let backup = laptop.directory.path().join("backup.db");
    laptop.app(&format!("vacuum into '{}'", backup.display()));
    laptop.app("insert into transactions values ('b', 2, 'later', 'card')");
    laptop.app("update transactions set amount = 5 where id = 'a'");
    laptop.sync().await;
    phone.sync().await;
    // The backup takes the database's place.
    let Phone { directory, identity, database } = laptop;
    drop(database);
    for name in ["app.db", "app.db-wal", "app.db-shm"] {
        // Not all of them need to be there.
        let _ = std::fs::remove_file(directory.path().join(name));
    }
    std::fs::rename(&backup, directory.path().join("app.db")).expect("put back");
    let path = directory.path().join("app.db");
    let database = Attached::attach(&path, identity.clone(), &schema()).await.expect("attached");
    let laptop = Phone { directory, identity, database };
    laptop.sync().await;
    assert_eq!(laptop.rows(ALL), phone.rows(ALL));
    laptop.app("insert into transactions values ('c', 3, 'again', null)");
    laptop.sync().await;
    phone.sync().await;
    assert_eq!(phone.rows(ALL).len(), 3);
    assert_eq!(laptop.rows(ALL), phone.rows(ALL));
}

async fn a_relay_that_was_set_back_is_given_back_what_it_had_lost(database: Database) {
    let mut world = World::start(database).await;
    let (laptop, phone) = two_of_ada(&world).await;
    laptop.app("insert into transactions values ('a', 1, 'early', 'card')");
    laptop.sync().await;
    phone.sync().await;
    let backup = Backup::of(world.place()).await;
    laptop.app("insert into transactions values ('b', 2, 'lost', 'card')");
    laptop.sync().await;
    phone.sync().await;
    phone.app("insert into transactions values ('c', 3, 'lost, too', 'card')");
    phone.sync().await;
    laptop.sync().await;
    world.stop().await;
    backup.put_back(world.place()).await;
    world.run().await;
    // Nothing is deleted here because it is gone there; and both give back what was theirs.
    assert!(laptop.sync().await.history_changed);
    assert!(phone.sync().await.history_changed);
    laptop.sync().await;
    assert_eq!(laptop.rows(ALL).len(), 3);
    assert_eq!(laptop.rows(ALL), phone.rows(ALL));
    let tablet = Phone::new(3).await;
    laptop.enrol(&tablet, Whose::Mine).await;
    tablet.sync().await;
    assert_eq!(tablet.rows(ALL), laptop.rows(ALL));
}

async fn what_a_relay_that_was_set_back_refuses_is_kept_and_sealed_anew(database: Database) {
    let usual = VaultLimits::default();
    let entries_max = Arc::new(AtomicU64::new(usual.entries_max));
    let decided = entries_max.clone();
    let decide = move |options: &mut Options| {
        options.vaults.entries_max = decided.load(Ordering::SeqCst);
    };
    let mut world = World::start_with(database, decide).await;
    let (laptop, phone) = two_of_ada(&world).await;
    laptop.app("insert into transactions values ('a', 1, 'early', 'card')");
    laptop.sync().await;
    phone.sync().await;
    let backup = Backup::of(world.place()).await;
    // Two changesets that were appended once, of which only the sealed bytes are kept.
    laptop.app("insert into transactions values ('b', 2, 'lost', 'secret')");
    laptop.sync().await;
    laptop.app("update transactions set amount = 5, card = 'another' where id = 'a'");
    laptop.sync().await;
    world.stop().await;
    backup.put_back(world.place()).await;
    // The operator has also become mean: the relay does not take them back.
    entries_max.store(usual.entries_reserve, Ordering::SeqCst);
    world.run().await;
    let refused = timeout(DEADLINE, laptop.database.sync()).await.expect("in time");
    assert!(refused.is_err(), "{refused:?}");
    assert_eq!(laptop.rows(ALL).len(), 2);
    // They get other numbers behind what is written now, and lose nothing, least of all in private.
    world.stop().await;
    entries_max.store(usual.entries_max, Ordering::SeqCst);
    world.run().await;
    laptop.app("insert into transactions values ('c', 3, 'later', null)");
    laptop.sync().await;
    phone.sync().await;
    assert_eq!(phone.rows(ALL).len(), 3);
    assert_eq!(phone.rows(ALL), laptop.rows(ALL));
}
