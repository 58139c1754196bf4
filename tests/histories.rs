//! A crowd writes and reads while the relay is killed again and again: what it was told stays true.

use std::time::Duration;

use tokio::time::sleep;

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

/// The shortest and longest time between two deaths of the relay, in milliseconds.
const LIFE_MS: (u64, u64) = (600, 3_000);

async fn nothing_that_was_answered_is_lost_doubled_reordered_or_taken_back(database: Database) {
    let seed = Random::seed("SEALWIRE_TEST_SEED");
    let busy = busy();
    let mut relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let size = Size { devices: 50, groups: 20, members: 7 };
    let crowd = Crowd::gather(relay.url(), &size, seed).await;

    let mut deaths = 0;
    let history =
        crowd.run(async { deaths = kill_again_and_again(&mut relay, busy, seed).await }).await;
    let (appended, reads) = (history.appended(), history.reads());
    println!("{deaths} deaths, {appended} entries appended, {reads} read");
    assert_eq!(history.check(), []);
    assert!(deaths >= 3 && appended > 1000 && reads > appended, "the crowd was not busy");
}

/// How long a crowd is busy.
fn busy() -> Duration {
    std::env::var("SEALWIRE_TEST_CROWD_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .map_or(BUSY, Duration::from_secs)
}

/// Kills the relay and starts it again for so long. Gives how often.
async fn kill_again_and_again(relay: &mut RelayProcess, busy: Duration, seed: u64) -> u32 {
    let mut random = Random::new(seed ^ 1);
    let mut deaths = 0;
    let mut left = busy;
    while !left.is_zero() {
        let life = LIFE_MS.0 + random.next() % (LIFE_MS.1 - LIFE_MS.0);
        let life = Duration::from_millis(life).min(left);
        sleep(life).await;
        left -= life;
        relay.kill();
        relay.run().await;
        deaths += 1;
    }
    deaths
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
    let beside = async { deaths = kill_again_and_again(&mut relay, busy, seed).await };
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
