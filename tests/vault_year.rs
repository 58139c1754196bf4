//! What a new device of an old vault has to do: measured, and run only when it is asked for.
//!
//! ```sh
//! ./scripts/test --release --run-ignored only --no-capture -E 'test(/^vault_year/)'
//! ```
//!
//! `SEALWIRE_TEST_YEAR` sets how many changesets a year has (200,000).

use std::sync::Arc;
use std::time::{Duration, Instant};

use sealwire_actors::Options;
use sealwire_client::identity::Identity;
use sealwire_client::vault::Vault;
use sealwire_client::wire::{self, Wire};
use sealwire_protocol::frame::Subscribe;
use sealwire_protocol::{Head, LogId, RelayFrame};

use crate::support::holds_within;
use crate::support::place::Database;
use crate::support::world::World;

/// Changesets of a year of a busy household: one every three minutes.
const YEAR: usize = 200_000;

/// Bytes of one changeset: a row before and after.
const CHANGESET_BYTES: usize = 300;

/// Changesets after the snapshot: a week's.
const TAIL: usize = YEAR / 52;

/// How long retention may take to let a year go.
const COMPACTION_MAX: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of minutes"]
async fn on_sqlite() {
    Box::pin(a_new_device_is_ready_from_snapshot_and_tail(Database::Sqlite)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement of minutes"]
async fn on_postgres() {
    Box::pin(a_new_device_is_ready_from_snapshot_and_tail(Database::Postgres)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn a_week_of_changesets_in_one_pull_on_sqlite() {
    Box::pin(a_week_of_changesets_in_one_pull(Database::Sqlite)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn a_week_of_changesets_in_one_pull_on_postgres() {
    Box::pin(a_week_of_changesets_in_one_pull(Database::Postgres)).await;
}

struct Member {
    identity: Arc<Identity>,
    wire: Wire,
    vault: Vault,
}

async fn connect(world: &World, identity: &Identity) -> Wire {
    wire::connect(&world.url(), identity, &wire::Options::default()).await.expect("a session").0
}

impl Member {
    async fn found(world: &World) -> Self {
        let identity = Arc::new(Identity::from_seed(&[1; 32]));
        let mut wire = connect(world, &identity).await;
        let vault = Vault::create(identity.clone(), &mut wire).await.expect("founded");
        Self { identity, wire, vault }
    }

    async fn enrol(&mut self, world: &World, number: u8) -> Self {
        let identity = Arc::new(Identity::from_seed(&[number; 32]));
        let log = self.vault.log();
        let consent = Vault::consent(&identity, log, self.identity.key());
        self.vault.enrol(&mut self.wire, identity.key(), consent).await.expect("enrolled");
        let mut wire = connect(world, &identity).await;
        let mut vault = Vault::new(identity.clone(), log);
        vault.pull(&mut wire).await.expect("pulled");
        Self { identity, wire, vault }
    }

    async fn push(mut self, count: usize, bytes: usize) -> Self {
        let mut left = count;
        while left > 0 {
            let now = left.min(2048);
            let payloads: Vec<Vec<u8>> =
                (left - now..left).map(|at| changeset(at, bytes)).collect();
            self.vault.push(&mut self.wire, &payloads).await.expect("appended");
            left -= now;
        }
        self
    }
}

/// A row as an app would write it: it compresses as rows do.
fn changeset(number: usize, bytes: usize) -> Vec<u8> {
    let amount = number.wrapping_mul(7919) % 100_000;
    let mut row = format!("{{\"id\":{number},\"amount\":{amount},\"category\":\"shopping\"}}");
    while row.len() < bytes {
        row.push_str(" and a note that somebody wrote");
    }
    row.truncate(bytes);
    row.into_bytes()
}

fn often(options: &mut Options) {
    options.retention_pause = Duration::from_millis(50);
}

async fn a_new_device_is_ready_from_snapshot_and_tail(database: Database) {
    let year =
        std::env::var("SEALWIRE_TEST_YEAR").ok().and_then(|text| text.parse().ok()).unwrap_or(YEAR);
    let world = World::start_with(database, often).await;
    let mut laptop = Member::found(&world).await;
    let phone = laptop.enrol(&world, 2).await;
    let tablet = laptop.enrol(&world, 3).await;
    let begun = Instant::now();
    let share = year / 3;
    let (mut laptop, mut phone, mut tablet) = tokio::join!(
        laptop.push(year - 2 * share, CHANGESET_BYTES),
        phone.push(share, CHANGESET_BYTES),
        tablet.push(share, CHANGESET_BYTES),
    );
    println!("{database:?}: {year} changesets pushed by three devices in {:?}", begun.elapsed());

    // Before anything has gone: everything, from the first entry.
    let mut old = laptop.enrol(&world, 4).await;
    old.vault = Vault::new(old.identity.clone(), laptop.vault.log());
    let begun = Instant::now();
    let replayed = old.vault.pull(&mut old.wire).await.expect("pulled");
    let (replay, replay_bytes) = (begun.elapsed(), replayed.bytes);
    assert_eq!(replayed.changesets.len(), year, "every changeset is opened, once");
    assert!(replayed.changesets.is_sorted_by_key(|changeset| changeset.seq));
    assert_eq!((replayed.sealed.len(), replayed.forgotten), (0, 0));
    println!(
        "  from the first entry: {year} changesets opened, {replay_bytes} bytes, what was read twice \
         among them, {replay:?}"
    );

    // Nobody has spoken on these connections for as long as that took.
    for member in [&mut laptop, &mut phone, &mut tablet] {
        member.wire = connect(&world, &member.identity).await;
    }
    laptop.vault.pull(&mut laptop.wire).await.expect("pulled");
    let state: Vec<u8> =
        replayed.changesets.iter().flat_map(|changeset| changeset.payload.clone()).collect();
    drop(replayed);
    let begun = Instant::now();
    let snapshot = laptop.vault.snapshot(&mut laptop.wire, &state).await.expect("made");
    println!(
        "  a snapshot of {} KiB is {} KiB sealed; made and uploaded in {:?}",
        state.len() >> 10,
        snapshot.size >> 10,
        begun.elapsed()
    );
    let tablet = Box::pin(tablet.push(TAIL.min(year), CHANGESET_BYTES)).await;
    phone.vault.pull(&mut phone.wire).await.expect("pulled");
    phone.vault.confirm(&mut phone.wire, snapshot.digest).await.expect("confirmed");
    let log = laptop.vault.log();
    let begun = Instant::now();
    let gone = holds_within(COMPACTION_MAX, async || {
        world.stored(log).await.floor.seq == snapshot.head.seq
    });
    assert!(gone.await, "a year does not go");
    println!("  entries below the snapshot were gone after {:?}", begun.elapsed());

    laptop.vault.pull(&mut laptop.wire).await.expect("pulled");
    let mut new = laptop.enrol(&world, 5).await;
    new.vault = Vault::new(new.identity.clone(), log);
    let begun = Instant::now();
    let (opened, tail) = new.vault.bootstrap(&mut new.wire).await.expect("bootstrapped");
    let ready = begun.elapsed();
    assert!(opened.is_some_and(|opened| opened == state));
    assert_eq!(tail.changesets.len(), TAIL.min(year));
    println!(
        "  snapshot and tail: {} changesets, {} bytes, {ready:?}",
        tail.changesets.len(),
        tail.bytes + snapshot.size,
    );
    drop(tablet);
    assert!(ready < replay && tail.bytes + snapshot.size < replay_bytes);
}

async fn a_week_of_changesets_in_one_pull(database: Database) {
    const WEEK: usize = 10_000;
    let world = World::start(database).await;
    let mut laptop = Member::found(&world).await;
    let mut phone = laptop.enrol(&world, 2).await;
    let log = laptop.vault.log();
    Box::pin(laptop.push(WEEK, 1024)).await;
    let cursor = phone.vault.head();
    let mut at_socket = Vec::new();
    for _ in 0..5 {
        at_socket.push(read(&mut connect(&world, &phone.identity).await, log, cursor).await);
    }
    at_socket.sort_unstable();
    let begun = Instant::now();
    let pulled = phone.vault.pull(&mut phone.wire).await.expect("pulled");
    assert_eq!(pulled.changesets.len(), WEEK);
    println!(
        "{database:?}: {WEEK} changesets of 1 KiB in one pull: {:?} at the socket (median of 5), \
         {:?} verified and opened",
        at_socket[2],
        begun.elapsed()
    );
}

/// How long it takes until everything is there, with nothing done about it.
async fn read(wire: &mut Wire, log: LogId, cursor: Option<Head>) -> Duration {
    let begun = Instant::now();
    wire.queue(&Subscribe { log, cursor, acked: None }.into());
    loop {
        let envelope = wire.receive().await.expect("a frame");
        if let Ok(RelayFrame::Drained(_)) = envelope.frame {
            return begun.elapsed();
        }
    }
}
