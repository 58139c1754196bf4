//! A crowd writes and reads while the relay is killed and its database restarted, again and again: what it
//! was told stays true.

use std::time::Duration;

use sqlx::{Connection, Executor, SqliteConnection};
use tokio::time::sleep;

use crate::support::cluster::Cluster;
use crate::support::crowd::{Crowd, Size};
use crate::support::household::Household;
use crate::support::on_both_databases;
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;
use crate::support::random::Random;

on_both_databases!(
    nothing_that_was_answered_is_lost_doubled_reordered_or_taken_back,
    a_household_agrees_and_nothing_of_a_revoked_device_stands_behind_its_revocation,
);

/// How long the crowd is busy, unless SEALWIRE_TEST_CROWD_SECONDS says otherwise.
const BUSY: Duration = Duration::from_secs(15);

/// The shortest and longest time between two misfortunes, in milliseconds.
const LIFE_MS: (u64, u64) = (600, 3_000);

/// For how long somebody else holds SQLite's file, in milliseconds: longer than the relay waits for it,
/// and shorter.
const HELD_MS: [u64; 2] = [6_500, 300];

async fn nothing_that_was_answered_is_lost_doubled_reordered_or_taken_back(database: Database) {
    let seed = Random::seed("SEALWIRE_TEST_SEED");
    let busy = busy();
    let (mut kept, place) = Kept::start(database).await;
    let mut relay = RelayProcess::start(place, &[]).await;
    let size = Size { devices: 50, groups: 20, members: 7 };
    let crowd = Crowd::gather(relay.url(), &size, seed).await;

    let mut toll = Toll::default();
    let beside = async { toll = bring_down(&mut relay, Some(&mut kept), busy, seed).await };
    let history = crowd.run(beside).await;
    let (appended, reads) = (history.appended(), history.reads());
    let Toll { deaths, restarts } = toll;
    println!("{deaths} deaths, {restarts} restarts of the database");
    println!("{appended} entries appended, {reads} read");
    assert_eq!(history.check(), []);
    assert!(deaths >= 3 && restarts >= 2, "too little has happened");
    assert!(appended > 1000 && reads > appended, "the crowd was not busy");
}

/// How long a crowd is busy.
fn busy() -> Duration {
    std::env::var("SEALWIRE_TEST_CROWD_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .map_or(BUSY, Duration::from_secs)
}

/// A database that can be restarted under a relay.
enum Kept {
    /// A server of its own.
    Postgres(Cluster),
    /// The URL of a file.
    Sqlite(String),
}

impl Kept {
    async fn start(database: Database) -> (Self, Place) {
        match database {
            Database::Postgres => {
                let cluster = Cluster::start().await;
                let place = Place::beside(cluster.url());
                (Self::Postgres(cluster), place)
            }
            Database::Sqlite => {
                let place = Place::new(database).await;
                (Self::Sqlite(place.url().to_owned()), place)
            }
        }
    }

    /// Takes the database away from a relay that runs, and gives it back. PostgreSQL's server is stopped
    /// in the middle of whatever it does, and started. SQLite has no server: it is restarted with every
    /// death of its relay, and what is left is that somebody else holds its file.
    async fn restart(&mut self, number: u32) {
        match self {
            Self::Postgres(cluster) => {
                cluster.stop_at_once().await;
                cluster.run().await;
            }
            Self::Sqlite(url) => {
                let mut other = SqliteConnection::connect(url).await.expect("a connection");
                other.execute("pragma busy_timeout = 5000; begin immediate").await.expect("held");
                let held = HELD_MS[number as usize % HELD_MS.len()];
                sleep(Duration::from_millis(held)).await;
                other.execute("rollback").await.expect("given up");
                other.close().await.expect("closed");
            }
        }
    }
}

/// What a crowd has lived through.
#[derive(Default)]
struct Toll {
    /// Deaths of the relay.
    deaths: u32,
    /// Restarts of the database under it.
    restarts: u32,
}

/// Kills the relay and starts it again, and restarts its database if that is given, for so long.
async fn bring_down(
    relay: &mut RelayProcess,
    mut database: Option<&mut Kept>,
    busy: Duration,
    seed: u64,
) -> Toll {
    let mut random = Random::new(seed ^ 1);
    let mut toll = Toll::default();
    let mut left = busy;
    while !left.is_zero() {
        let life = LIFE_MS.0 + random.next() % (LIFE_MS.1 - LIFE_MS.0);
        let life = Duration::from_millis(life).min(left);
        sleep(life).await;
        left -= life;
        match &mut database {
            Some(database) if toll.deaths > toll.restarts => {
                database.restart(toll.restarts).await;
                toll.restarts += 1;
                assert!(relay.is_running(), "the relay does without its database for a while");
            }
            _ => {
                relay.kill();
                relay.run().await;
                toll.deaths += 1;
            }
        }
    }
    toll
}

async fn a_household_agrees_and_nothing_of_a_revoked_device_stands_behind_its_revocation(
    database: Database,
) {
    let seed = Random::seed("SEALWIRE_TEST_SEED");
    let busy = busy();
    let mut relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let household = Household::gather(relay.url(), 6, seed).await;
    let revocations = [busy.mul_f64(0.4), busy.mul_f64(0.7)];
    let mut deaths = 0;
    let beside = async { deaths = bring_down(&mut relay, None, busy, seed).await.deaths };
    let outcome = household.run(&revocations, beside).await;
    let history = outcome.history;
    let (appended, reads) = (history.appended(), history.reads());
    println!(
        "{deaths} deaths, {appended} entries appended, {reads} read, {} revocations, {} rotations, \
         of which one was made anew {} times at most",
        history.revocations(),
        outcome.rotations,
        outcome.late_max,
    );
    assert_eq!(history.check(), []);
    assert!(deaths >= 3 && appended > 300 && reads > appended, "the household was not busy");
    assert_eq!(history.revocations(), 2);
    assert!(outcome.rotations > 10 && outcome.late_max < 20, "a rotation was starved");
}
