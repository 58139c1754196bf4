//! Whose business retention is.

use std::time::Duration;

use super::device::{Device, World};
use crate::limits::RETENTION_OVERDUE;
use crate::ports::LogKey;

const LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).expect("short")
}

#[tokio::test]
async fn beside_a_worker_retention_takes_only_what_is_overdue() {
    let world = World::new().await;
    world.store.hold_retention(true);
    let mut alice = Device::connected(1, &world).await;
    let old = alice.found().await;
    let mut bob = Device::connected(2, &world).await;
    bob.join(&old).await;
    alice.say(old.id, b"overdue by a minute").await;

    world.clock.turn(ms(Duration::from_secs(90 * 60)));
    let mut carol = Device::connected(3, &world).await;
    let young = carol.found().await;
    let mut dora = Device::connected(4, &world).await;
    dora.join(&young).await;
    carol.say(young.id, b"due, and the worker's").await;

    world.clock.turn(ms(LIFETIME + RETENTION_OVERDUE) - ms(Duration::from_secs(89 * 60)));
    world.until_async(|| async { world.bodies(LogKey(1)).await.is_empty() }).await;
    assert_eq!(world.bodies(LogKey(2)).await, [3]);
    world.store.hold_retention(false);
    world.until_async(|| async { world.bodies(LogKey(2)).await.is_empty() }).await;
}
