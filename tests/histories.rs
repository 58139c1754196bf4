//! A crowd writes and reads while the relay is killed again and again: what it was told stays true.

use std::time::Duration;

use tokio::time::sleep;

use crate::support::crowd::{Crowd, Size};
use crate::support::on_both_databases;
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;
use crate::support::random::Random;

on_both_databases!(nothing_that_was_answered_is_lost_doubled_reordered_or_taken_back);

/// How long the crowd is busy, unless SEALWIRE_TEST_CROWD_SECONDS says otherwise.
const BUSY: Duration = Duration::from_secs(15);

/// The shortest and longest time between two deaths of the relay, in milliseconds.
const LIFE_MS: (u64, u64) = (600, 3_000);

async fn nothing_that_was_answered_is_lost_doubled_reordered_or_taken_back(database: Database) {
    let seed = Random::seed("SEALWIRE_TEST_SEED");
    let busy = std::env::var("SEALWIRE_TEST_CROWD_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .map_or(BUSY, Duration::from_secs);
    let mut relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let size = Size { devices: 50, groups: 20, members: 7 };
    let crowd = Crowd::gather(relay.url(), &size, seed).await;

    let mut random = Random::new(seed ^ 1);
    let mut deaths = 0;
    let history = crowd
        .run(async {
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
        })
        .await;
    let (appended, reads) = (history.appended(), history.reads());
    println!("{deaths} deaths, {appended} entries appended, {reads} read");
    assert_eq!(history.check(), []);
    assert!(deaths >= 3 && appended > 1000 && reads > appended, "the crowd was not busy");
}
