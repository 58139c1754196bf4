//! Phones send, pull, ack and listen while the relay is killed, or its database stopped, again and
//! again: what they were told stays true.

use std::time::Duration;

use tokio::time::sleep;

use crate::support::cluster::Cluster;
use crate::support::on_both_databases;
use crate::support::phones::{Phones, Verdict};
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;
use crate::support::random::Random;

on_both_databases!(nothing_that_a_phone_was_told_is_untrue_after_kills);

/// The shortest and longest time between two deaths of the relay, in milliseconds.
const LIFE_MS: (u64, u64) = (600, 2_500);

fn is_true(verdict: &Verdict) {
    println!("{} sent, {} acked, {} seen", verdict.sent, verdict.acked, verdict.seen);
    assert_eq!(verdict.complaints, []);
    assert!(verdict.sent > 50 && verdict.acked > 50, "the phones were not busy");
}

async fn nothing_that_a_phone_was_told_is_untrue_after_kills(database: Database) {
    let seed = Random::seed("SEALWIRE_TEST_SEED");
    let mut relay = RelayProcess::start(Place::new(database).await, &[]).await;
    let phones = Phones::gather(relay.public(), 6).await;
    let mut random = Random::new(seed ^ 1);
    let verdict = phones
        .run(seed, async {
            for _ in 0..6 {
                let life = LIFE_MS.0 + random.next() % (LIFE_MS.1 - LIFE_MS.0);
                sleep(Duration::from_millis(life)).await;
                relay.kill();
                relay.run().await;
            }
        })
        .await;
    is_true(&verdict);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_a_phone_was_told_is_untrue_after_outages() {
    let seed = Random::seed("SEALWIRE_TEST_SEED");
    let mut cluster = Cluster::start().await;
    let mut relay = RelayProcess::start(Place::beside(cluster.url()), &[]).await;
    let phones = Phones::gather(relay.public(), 5).await;
    let mut random = Random::new(seed ^ 1);
    let verdict = phones
        .run(seed, async {
            for _ in 0..3 {
                sleep(Duration::from_millis(800 + random.next() % 1500)).await;
                cluster.stop_at_once().await;
                cluster.run().await;
                relay.until_ready().await;
            }
            sleep(Duration::from_secs(2)).await;
        })
        .await;
    is_true(&verdict);
    assert!(relay.is_running(), "the relay has ended");
}
