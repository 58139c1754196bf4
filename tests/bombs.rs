//! A small snapshot that opens to a huge one costs whoever opens it nothing but an error.
//!
//! The relay cannot see what is in a snapshot: only a device of the vault can have made one that opens,
//! and only a device finds out.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use rusqlite::Connection;
use sealwire_client::identity::Identity;
use sealwire_client::keybox;
use sealwire_client::seal::{self, EpochKey, KeyName, Place, SNAPSHOT};
use sealwire_client::sync::{Attached, Schema, Table, Whose};
use sealwire_client::vault::{SnapshotError, Vault, VaultError};
use sealwire_client::wire::{self, Wire};
use sealwire_protocol::digest::sha256;
use sealwire_protocol::frame::Subscribe;
use sealwire_protocol::keys::KeyBody;
use sealwire_protocol::{Digest, Head, Kind, LogId, RelayFrame};
use tempfile::TempDir;

use crate::support::on_both_databases;
use crate::support::place::Database;
use crate::support::world::World;

on_both_databases!(
    a_device_that_begins_with_a_bomb_is_told_and_nothing_changes,
    a_database_that_begins_with_a_bomb_is_told_and_reads_everything_without_it,
);

/// What the bombs open to, in bytes.
const HUGE: usize = 128 * 1024 * 1024;

/// What the devices of these tests open at most, in bytes.
const STATE_MAX: u64 = 1024 * 1024;

/// What a device may take for all that it does, relay and all, in KiB: far less than the bomb.
const GROWTH_MAX: u64 = 64 * 1024;

fn identity(number: u8) -> Arc<Identity> {
    Arc::new(Identity::from_seed(&[number; 32]))
}

async fn connect(world: &World, identity: &Identity) -> Wire {
    wire::connect(&world.url(), identity, &wire::Options::default()).await.expect("a session").0
}

/// The most memory that this process has had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a Linux machine");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a line");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// That this process has not had much more memory than `before`. Other tests of one process hide what
/// this one takes, or take it themselves: only cargo-nextest gives each a process of its own.
fn assert_little_memory(before: u64) {
    let now = peak();
    if std::env::var_os("NEXTEST").is_none() {
        eprintln!(
            "not looked at, for other tests run in this process: memory, {before} to {now} KiB"
        );
        return;
    }
    assert!(now - before < GROWTH_MAX, "from {before} to {now} KiB");
}

/// The same bytes again and again, compressed.
fn bomb(first: &[u8], again: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).expect("an encoder");
    encoder.write_all(first).expect("compressed");
    let piece = again.repeat(64 * 1024 / again.len() + 1);
    for _ in 0..HUGE / piece.len() {
        encoder.write_all(&piece).expect("compressed");
    }
    let bomb = encoder.finish().expect("compressed");
    assert!(bomb.len() < HUGE / 500, "{} bytes", bomb.len());
    bomb
}

/// The newest content key that a device was given, as only that device can know it.
async fn content_key(wire: &mut Wire, device: &Identity, log: LogId) -> (KeyName, EpochKey) {
    let mut found = None;
    wire.queue(&Subscribe { log, cursor: None, acked: None }.into());
    loop {
        let frame = wire.receive().await.expect("a frame").frame.expect("known");
        let entry = match frame {
            RelayFrame::Entry(entry) => entry,
            RelayFrame::Drained(_) => return found.expect("a key"),
            _ => continue,
        };
        let header = entry.header.decode().expect("a header");
        if header.kind != Kind::Key {
            continue;
        }
        let body = KeyBody::decode(entry.body.as_ref()).expect("keys");
        let name = KeyName { scope: body.scope, epoch: body.epoch };
        let place = Place { log, sender: header.sender, aad: entry.header.aad() };
        for sealed in body.keys.iter().filter(|sealed| sealed.recipient == device.key()) {
            found = Some((name, keybox::open(device, name, &place, sealed).expect("mine").key));
        }
    }
}

/// Makes a snapshot that is everything that the relay and the seal can ask for, of whatever this is.
async fn plant(world: &World, device: &Arc<Identity>, log: LogId, packed: &[u8]) -> Digest {
    let mut wire = connect(world, device).await;
    let (name, key) = content_key(&mut wire, device, log).await;
    wire.close().await;
    let mut wire = connect(world, device).await;
    let mut vault = Vault::new(device.clone(), log);
    vault.pull(&mut wire).await.expect("pulled");
    let head = vault.head().expect("read");
    let sender = device.key();
    let Head { incarnation, seq, chain } = head;
    let aad = [&log.0[..], &sender.0, &incarnation.to_be_bytes(), &seq.to_be_bytes(), &chain.0];
    let aad = aad.concat();
    let place = Place { log, sender, aad: &aad };
    let sealed = seal::seal_for(SNAPSHOT, &key, name, &place, packed).expect("sealed");
    let (digest, size) = (sha256(&sealed), sealed.len() as u64);
    vault.upload(&mut wire, digest, &sealed).await.expect("uploaded");
    let chunks = u32::try_from(sealed.len().div_ceil(256 * 1024)).expect("few");
    vault.make_real(&mut wire, digest, size, chunks, head).await.expect("real");
    wire.close().await;
    digest
}

async fn a_device_that_begins_with_a_bomb_is_told_and_nothing_changes(database: Database) {
    let world = World::start(database).await;
    let (laptop, phone, tablet) = (identity(1), identity(2), identity(3));
    let mut wire = connect(&world, &laptop).await;
    let mut vault = Vault::create(laptop.clone(), &mut wire).await.expect("founded");
    let log = vault.log();
    for device in [&phone, &tablet] {
        let consent = Vault::consent(device, log, laptop.key());
        vault.enrol(&mut wire, device.key(), consent).await.expect("enrolled");
    }
    vault.push(&mut wire, &[b"a changeset".to_vec()]).await.expect("pushed");
    let packed = bomb(&[], &[0]);
    plant(&world, &phone, log, &packed).await;
    let (stored, before) = (world.stored(log).await, peak());

    let mut own = connect(&world, &tablet).await;
    let mut begun = Vault::new(tablet.clone(), log);
    begun.open_at_most(STATE_MAX);
    let refused = begun.bootstrap(&mut own).await.err();
    assert_eq!(refused, Some(VaultError::Snapshot(SnapshotError::TooLong)));
    // Who has read everything compares it, and finds the same.
    vault.pull(&mut wire).await.expect("pulled");
    vault.open_at_most(STATE_MAX);
    let listed = vault.snapshots(&mut wire).await.expect("listed");
    let opened = vault.open_snapshot(&mut wire, &listed[0]).await.err();
    assert_eq!(opened, Some(VaultError::Snapshot(SnapshotError::TooLong)));
    assert_little_memory(before);
    // The relay has nothing more and nothing less, and without the snapshot all of it is read.
    let after = world.stored(log).await;
    assert_eq!((after.head, after.floor), (stored.head, stored.floor));
    let mut again = Vault::new(tablet, log);
    let pulled = again.pull(&mut own).await.expect("pulled");
    assert_eq!((pulled.changesets.len(), pulled.rejected.len()), (1, 0));
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
        let tables = "create table notes (id text primary key, note text)";
        Connection::open(&path).expect("a database").execute_batch(tables).expect("tables");
        let identity = identity(number);
        let schema = Schema::version(1).table(Table::group("notes"));
        let database = Attached::attach(&path, identity.clone(), &schema).await.expect("attached");
        database.open_at_most(STATE_MAX);
        Self { directory, identity, database }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("app.db")
    }

    fn app(&self, sql: &str) {
        Connection::open(self.path()).expect("a database").execute_batch(sql).expect("written");
    }

    fn ids(&self) -> Vec<String> {
        let db = Connection::open(self.path()).expect("a database");
        let mut statement = db.prepare("select id from notes order by id").expect("a query");
        let rows = statement.query_map([], |row| row.get(0)).expect("read");
        rows.collect::<rusqlite::Result<_>>().expect("rows")
    }

    async fn enrol(&self, other: &Self) {
        let offer = self.database.offer(Whose::Mine).await.expect("an offer");
        let consent = other.database.accept(&offer).await.expect("a consent");
        self.database.enrol(&consent, Whose::Mine).await.expect("enrolled");
    }
}

/// A frame of a state ([docs/SYNC.md] names no more of it than that it is one).
fn framed(body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    let length = u32::try_from(body.len()).expect("short");
    [&length.to_be_bytes()[..], &body].concat()
}

async fn a_database_that_begins_with_a_bomb_is_told_and_reads_everything_without_it(
    database: Database,
) {
    let world = World::start(database).await;
    let (laptop, phone) = (Phone::new(1).await, Phone::new(2).await);
    laptop.app("insert into notes values ('of the laptop', 'one')");
    let log = laptop.database.found(&world.url()).await.expect("founded");
    laptop.enrol(&phone).await;
    // A state that is one in every frame, and has no end.
    let start = framed(&[b"\x81\xa5Start\x93\x01\x01\x90"]);
    let rows = framed(&[b"\x81\xa4Rows\x94\xa5notes\x91\xa2id\x91\xa4note\x90"]);
    let packed = bomb(&start, &rows);
    plant(&world, &phone.identity, log, &packed).await;
    let tablet = Phone::new(3).await;
    tablet.app("insert into notes values ('of the tablet', 'two')");
    laptop.enrol(&tablet).await;
    let (stored, before) = (world.stored(log).await, peak());

    // For all of them it is a snapshot that they do not confirm, and no more.
    for device in [&tablet, &laptop] {
        let report = device.database.sync().await.expect("synced");
        assert!(report.refused_snapshot && !report.confirmed);
        assert!(!device.database.sync().await.expect("synced").refused_snapshot, "said once");
        assert_eq!(device.ids(), ["of the laptop", "of the tablet"]);
    }
    assert_little_memory(before);
    assert_eq!(world.stored(log).await.floor, stored.floor);

    laptop.database.snapshot().await.expect("made");
    assert!(tablet.database.sync().await.expect("synced").confirmed);
}
