//! Who is rung by a whole system, over a push service that only listens.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use super::*;
use crate::fakes::{FakePush, trouble};
use crate::limits::{
    DOORBELL_GRACE, DOORBELL_LOOKBACK, DOORBELL_REREAD_PAUSE, DOORBELL_WINDOW, PUSH_REST_MAX,
    PUSH_RETRY_MAX, PUSH_YIELD_CALLS, PUSH_YIELD_PAUSE,
};
use crate::ports::{LogKey, Rang, Trouble, Urgency};
use crate::totals::Outgoing;
use crate::totals::payload::PayloadId;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn key(seed: u8) -> DeviceKey {
    device_key(&ed25519_dalek::SigningKey::from_bytes(&[seed; 32]))
}

fn token(seed: u8) -> String {
    format!("token {seed}")
}

struct Ringing {
    world: World,
    push: Arc<FakePush>,
}

impl Ringing {
    async fn new() -> Self {
        Self::over(Arc::new(MemoryStore::new())).await
    }

    async fn over(store: Arc<MemoryStore>) -> Self {
        let push = Arc::new(FakePush::default());
        Self { world: World::ringing(store, push.clone()).await, push }
    }

    async fn register(&self, seed: u8) {
        let place = Some(("fcm".to_owned(), token(seed)));
        self.world.system.set_push_token(key(seed), place).await.expect("registered");
    }

    /// A `totals` group of these devices, all of which can be rung.
    async fn group_of(&self, members: &[u8]) -> LogId {
        let system = &self.world.system;
        let group = system.create_totals(key(members[0])).await.expect("created").group;
        for seed in &members[1..] {
            system.join_totals(key(*seed), group).await.expect("joined");
        }
        for seed in members {
            self.register(*seed).await;
        }
        group
    }

    async fn say(&self, sender: u8, group: LogId, kind: &str) -> PayloadId {
        let payload = Outgoing { body: b"sealed".to_vec(), kind: kind.to_owned(), named: None };
        let sent = self.world.system.send_totals(key(sender), group, payload).await;
        sent.expect("sent").expect("kept").id
    }

    async fn until_heard(&self, count: usize) {
        self.world.until(|| self.push.heard() >= count).await;
    }

    fn tokens_heard(&self) -> Vec<String> {
        let mut heard: Vec<String> =
            self.push.take_heard().into_iter().map(|(token, _)| token).collect();
        heard.sort_unstable();
        heard
    }
}

#[tokio::test(start_paused = true)]
async fn sleeping_devices_are_told_the_log_and_the_entry_and_a_burst_rings_once() {
    let ringing = Ringing::new().await;
    let group = ringing.group_of(&[1, 2, 3]).await;
    let first = ringing.say(1, group, "expense").await;
    for _ in 0..500 {
        ringing.say(1, group, "expense").await;
    }
    ringing.until_heard(2).await;
    sleep(Duration::from_secs(5)).await;
    let mut heard = ringing.push.take_heard();
    heard.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(heard.len(), 2, "one for each, and none for the sender");
    for (seed, (at, ring)) in [2, 3].into_iter().zip(heard) {
        assert_eq!((at, ring.log, ring.payload), (token(seed), group, first));
        assert_eq!(ring.urgency, Urgency::High);
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_after_a_doorbell_rings_once_when_the_window_ends() {
    let ringing = Ringing::new().await;
    let group = ringing.group_of(&[1, 2]).await;
    let before = Instant::now();
    ringing.say(1, group, "expense").await;
    ringing.until_heard(1).await;
    sleep(Duration::from_secs(8)).await;
    let second = ringing.say(1, group, "expense").await;
    ringing.say(1, group, "expense").await;
    ringing.until_heard(2).await;
    let took = before.elapsed();
    assert!(took >= DOORBELL_WINDOW && took < DOORBELL_WINDOW * 2, "{took:?}");
    assert_eq!(ringing.push.take_heard()[1].1.payload, second);
    sleep(DOORBELL_WINDOW * 10).await;
    assert_eq!(ringing.push.heard(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_phone_that_comes_and_cannot_ack_is_rung_for_what_comes_then() {
    let ringing = Ringing::new().await;
    let group = ringing.group_of(&[1, 2]).await;
    for round in 0..6 {
        let before = Instant::now();
        ringing.say(1, group, "expense").await;
        ringing.until_heard(1).await;
        assert!(before.elapsed() < DOORBELL_GRACE, "round {round}");
        ringing.push.take_heard();
        // It looks, and cannot open what there is.
        let pending = ringing.world.system.pending(key(2), group).await.expect("read");
        assert_eq!(pending.map(|them| them.len()), Some(round + 1));
        sleep(DOORBELL_WINDOW).await;
    }
}

#[tokio::test(start_paused = true)]
async fn kinds_that_do_not_ring_wake_nobody() {
    let ringing = Ringing::new().await;
    let group = ringing.group_of(&[1, 2]).await;
    for kind in ["member_meta", "group_snapshot", "join_cancel"] {
        ringing.say(1, group, kind).await;
    }
    sleep(DOORBELL_GRACE * 2).await;
    assert_eq!(ringing.push.heard(), 0);
    ringing.say(1, group, "snapshot_request").await;
    ringing.until_heard(1).await;
    assert_eq!(ringing.push.take_heard()[0].1.urgency, Urgency::Normal);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_is_here_is_rung_if_it_does_not_ack_in_time() {
    let ringing = Ringing::new().await;
    let mut alice = Device::connected(1, &ringing.world).await;
    let group = alice.found().await;
    let mut bob = Device::connected(2, &ringing.world).await;
    bob.join(&group).await;
    for seed in [1, 2] {
        ringing.register(seed).await;
    }
    bob.subscribe(group.id, None).await.expect("subscribed");
    let mut reading = Reading::new(group.id);
    bob.drain(&mut reading).await;
    // It acks: it is not rung.
    let said = alice.say(group.id, b"one").await;
    sleep(DOORBELL_GRACE / 2).await;
    reading.take(&bob.next_content().await);
    bob.ack(group.id, 1, said.seq).await;
    sleep(DOORBELL_GRACE * 3).await;
    assert_eq!(ringing.push.heard(), 0);
    // Its socket is half open: it does not ack.
    let before = Instant::now();
    alice.say(group.id, b"two").await;
    ringing.until_heard(1).await;
    let took = before.elapsed();
    assert!(took >= DOORBELL_GRACE && took < DOORBELL_GRACE * 2, "{took:?}");
    assert_eq!(ringing.tokens_heard(), [token(2)]);
}

#[tokio::test(start_paused = true)]
async fn a_phone_that_fetches_before_its_doorbell_leaves_is_not_rung() {
    let ringing = Ringing::new().await;
    let group = ringing.group_of(&[1, 2]).await;
    ringing.push.always_say(Some(Rang::Later(Trouble::Unavailable, None)));
    let id = ringing.say(1, group, "expense").await;
    ringing.until_heard(1).await;
    let acked = ringing.world.system.ack_totals(key(2), &[id]).await;
    acked.expect("acked");
    ringing.push.always_say(None);
    ringing.push.take_heard();
    sleep(PUSH_RETRY_MAX * 2).await;
    assert_eq!(ringing.push.heard(), 0);
}

#[tokio::test(start_paused = true)]
async fn whoever_comes_while_its_token_is_looked_up_is_not_rung_if_it_acks() {
    let ringing = Ringing::new().await;
    let group = ringing.group_of(&[1, 2, 3]).await;
    ringing.world.store.take_long_for_tokens(Duration::from_secs(2));
    let id = ringing.say(1, group, "expense").await;
    sleep(Duration::from_secs(1)).await;
    // One acks; the other one asks what there is, and then acks nothing.
    ringing.world.system.ack_totals(key(2), &[id]).await.expect("acked");
    ringing.world.system.pending(key(3), group).await.expect("read");
    sleep(DOORBELL_GRACE - Duration::from_secs(1)).await;
    assert_eq!(ringing.push.heard(), 0);
    sleep(DOORBELL_WINDOW).await;
    assert_eq!(ringing.tokens_heard(), [token(3)]);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_gone_is_forgotten_and_no_other() {
    let ringing = Ringing::new().await;
    let group = ringing.group_of(&[1, 2, 3]).await;
    let store = ringing.world.store.clone();
    ringing.push.always_say(Some(Rang::Refused));
    ringing.say(1, group, "expense").await;
    ringing.until_heard(2).await;
    assert!(store.push_token(key(2)).await.expect("read").is_some(), "refused is not gone");
    ringing.register(2).await;
    ringing.push.always_say(None);
    ringing.push.take_heard();
    ringing.push.say(Rang::Unregistered);
    sleep(DOORBELL_WINDOW).await;
    ringing.say(1, group, "expense").await;
    ringing.world.until_async(|| async { store.push_token(key(2)).await == Ok(None) }).await;
    assert_eq!(ringing.tokens_heard(), [token(2)], "the other one was refused, and is left alone");
    assert!(store.push_token(key(3)).await.expect("read").is_some());
    // From the moment when it says where it is now, it is rung again.
    sleep(DOORBELL_WINDOW).await;
    ringing.register(2).await;
    ringing.say(1, group, "expense").await;
    ringing.until_heard(1).await;
    assert_eq!(ringing.tokens_heard(), [token(2)]);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_moves_while_it_is_rung_is_not_taken_from_its_new_device() {
    let ringing = Ringing::new().await;
    let group = ringing.group_of(&[1, 2]).await;
    ringing.push.take_long(Duration::from_secs(1));
    ringing.push.say(Rang::Unregistered);
    ringing.say(1, group, "expense").await;
    sleep(Duration::from_millis(500)).await;
    // Meanwhile the device says that it has another one, and somebody else has its old one.
    let place = |name: &str| Some(("fcm".to_owned(), name.to_owned()));
    let system = &ringing.world.system;
    system.set_push_token(key(2), place("new")).await.expect("registered");
    system.set_push_token(key(3), place(&token(2))).await.expect("registered");
    ringing.until_heard(2).await;
    assert_eq!(ringing.tokens_heard(), ["new".to_owned(), token(2)]);
    assert_eq!(ringing.world.store.push_token(key(3)).await, Ok(place(&token(2))));
    assert_eq!(ringing.world.store.push_token(key(2)).await, Ok(place("new")));
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_whoever_has_not_seen_the_last_minutes_is_rung() {
    let store = Arc::new(MemoryStore::new());
    let first = Ringing::over(store.clone()).await;
    first.push.always_say(Some(Rang::Later(Trouble::Unreachable, None)));
    let group = first.group_of(&[1, 2, 3, 4]).await;
    let id = first.say(1, group, "expense").await;
    let named = Outgoing {
        body: b"sealed".to_vec(),
        kind: "key_exchange".to_owned(),
        named: Some(vec![key(4)]),
    };
    first.world.system.send_totals(key(1), group, named).await.expect("sent");
    let system = &first.world.system;
    system.ack_totals(key(3), &[id]).await.expect("acked");
    first.world.system.stop(Instant::now() + Duration::from_secs(1)).await;

    let second = Ringing::over(store.clone()).await;
    second.until_heard(2).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(second.tokens_heard(), [token(2), token(4)], "the third has acked");
    second.world.system.stop(Instant::now() + Duration::from_secs(1)).await;

    // What is older than that is left to the device.
    let push = Arc::new(FakePush::default());
    let _third = World::ringing_after(store, push.clone(), DOORBELL_LOOKBACK * 2).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(push.heard(), 0);
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_the_devices_of_a_vault_that_are_not_here_are_rung_once() {
    let store = Arc::new(MemoryStore::new());
    let first = Ringing::over(store.clone()).await;
    first.push.always_say(Some(Rang::Later(Trouble::Unreachable, None)));
    let (mut alice, bob, carol, vault) = household(&first).await;
    alice.say(vault, b"changes").await;
    drop((alice, bob, carol));
    first.world.system.stop(Instant::now() + Duration::from_secs(1)).await;

    let push = Arc::new(FakePush::default());
    let settle = Duration::from_secs(5);
    let world = World::settling(store.clone(), push.clone(), settle).await;
    let second = Ringing { world, push };
    let mut bob = Device::connected(2, &second.world).await;
    bob.subscribe(vault, None).await.expect("subscribed");
    second.until_heard(1).await;
    sleep(DOORBELL_WINDOW * 2).await;
    assert_eq!(second.tokens_heard(), [token(3)], "the author and who is here are not");
}

#[tokio::test(start_paused = true)]
async fn a_row_that_does_not_decode_is_not_read_again_and_again() {
    let store = Arc::new(MemoryStore::new());
    let first = Ringing::over(store.clone()).await;
    first.push.always_say(Some(Rang::Later(Trouble::Unreachable, None)));
    let group = first.group_of(&[1, 2]).await;
    first.say(1, group, "expense").await;
    first.world.system.stop(Instant::now() + Duration::from_secs(1)).await;
    store.spoil_recent_entries();
    let second = Ringing::over(store.clone()).await;
    sleep(DOORBELL_REREAD_PAUSE * 10).await;
    assert_eq!((store.recent_reads(), second.push.heard()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_actor_of_doorbells_that_fails_is_replaced_and_forgets_nobody() {
    let ringing = Ringing::new().await;
    let group = ringing.group_of(&[1, 2, 3]).await;
    // One doorbell fails and is to be tried again, and the other is being rung.
    ringing.push.always_say(Some(Rang::Later(Trouble::Unavailable, None)));
    let id = ringing.say(1, group, "expense").await;
    ringing.until_heard(2).await;
    ringing.push.take_heard();
    ringing.push.take_long(Duration::from_secs(5));
    sleep(Duration::from_secs(2)).await;
    trouble::fail_doorbells(&ringing.world.system);
    ringing.push.take_long(Duration::ZERO);
    ringing.push.always_say(None);
    let rung = || ringing.push.heard();
    ringing.world.until(|| rung() >= 2).await;
    let mut heard = ringing.push.take_heard();
    heard.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    let heard: Vec<_> = heard.into_iter().map(|(token, ring)| (token, ring.payload)).collect();
    assert_eq!(heard, [(token(2), id), (token(3), id)]);
    // And whoever comes after that is told to the new one.
    for seed in [2, 3] {
        ringing.world.system.ack_totals(key(seed), &[id]).await.expect("acked");
    }
    sleep(DOORBELL_WINDOW * 3).await;
    ringing.push.take_heard();
    ringing.say(1, group, "expense").await;
    ringing.until_heard(2).await;
    assert_eq!(ringing.tokens_heard(), [token(2), token(3)]);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_no_failure_of_the_push_service() {
    let ringing = Ringing::new().await;
    let members: Vec<u8> = (1..=60).collect();
    let group = ringing.group_of(&members).await;
    let other = ringing.group_of(&[1, 70]).await;
    // Nobody's token can be looked up, more often in a row than a push service may fail.
    ringing.world.store.fail_token_lookups(true);
    ringing.say(1, group, "expense").await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(ringing.push.heard(), 0);
    ringing.world.store.fail_token_lookups(false);
    // So those who had no part in it are rung at once.
    let before = Instant::now();
    ringing.say(1, other, "expense").await;
    let rung = || ringing.push.heard() > 0;
    ringing.world.until(rung).await;
    assert!(before.elapsed() < Duration::from_millis(100), "{:?}", before.elapsed());
    ringing.until_heard(members.len()).await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_cannot_be_forgotten_now_is_asked_about_again() {
    let ringing = Ringing::new().await;
    let group = ringing.group_of(&[1, 2]).await;
    let store = ringing.world.store.clone();
    ringing.push.always_say(Some(Rang::Unregistered));
    store.fail_forgetting(2);
    ringing.say(1, group, "expense").await;
    ringing.world.until_async(|| async { store.push_token(key(2)).await == Ok(None) }).await;
    assert_eq!(ringing.tokens_heard().len(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_finds_no_room_leaves_nothing_behind() {
    let ringing = Ringing::new().await;
    let system = &ringing.world.system;
    let (open, gate) = oneshot::channel();
    trouble::fill_a_committer(system, gate);
    let place = Some(("fcm".to_owned(), token(1)));
    let refused = system.set_push_token(key(1), place).await.map_err(|failure| failure.code);
    assert_eq!(refused, Err(ErrorCode::Unavailable));
    assert!(system.shared.doorbells.lock().is_empty());
    drop(open);
}

#[tokio::test(start_paused = true)]
async fn a_log_that_cannot_be_read_after_a_restart_is_read_again() {
    let store = Arc::new(MemoryStore::new());
    let first = Ringing::over(store.clone()).await;
    first.push.always_say(Some(Rang::Later(Trouble::Unreachable, None)));
    for sleeper in [2, 3] {
        let group = first.group_of(&[1, sleeper]).await;
        first.say(1, group, "expense").await;
    }
    first.world.system.stop(Instant::now() + Duration::from_secs(1)).await;
    store.fail_recent_entries(1);
    let second = Ringing::over(store).await;
    second.until_heard(1).await;
    assert_eq!(second.tokens_heard(), [token(3)], "the other log could not be read");
    sleep(DOORBELL_REREAD_PAUSE * 2).await;
    assert_eq!(second.tokens_heard(), [token(2)]);
}

#[tokio::test(start_paused = true)]
async fn a_push_service_that_is_down_for_a_day_is_hardly_asked_and_then_rings_everybody() {
    let ringing = Ringing::new().await;
    let members: Vec<u8> = (1..=40).collect();
    let group = ringing.group_of(&members).await;
    ringing.push.always_say(Some(Rang::Later(Trouble::Unavailable, None)));
    ringing.say(1, group, "expense").await;
    sleep(DAY).await;
    let asked = ringing.push.take_heard().len();
    let at_most = DAY.as_secs() / (PUSH_REST_MAX.as_secs() / 2) + 200;
    assert!((asked as u64) < at_most, "{asked} calls in a day");
    ringing.push.always_say(None);
    sleep(PUSH_REST_MAX + PUSH_RETRY_MAX).await;
    let mut heard: BTreeMap<String, usize> = BTreeMap::new();
    for token in ringing.tokens_heard() {
        *heard.entry(token).or_default() += 1;
    }
    assert_eq!(heard.len(), members.len() - 1);
    assert!(heard.values().all(|count| *count == 1), "{heard:?}");
}

#[tokio::test(start_paused = true)]
async fn doorbells_step_back_while_entries_crowd_before_a_committer_and_none_is_lost() {
    let ringing = Ringing::over(Arc::new(MemoryStore::with(1, 2))).await;
    let members: Vec<u8> = (1..=60).collect();
    let group = ringing.group_of(&members).await;
    let (open, gate) = oneshot::channel();
    // The first log of a store has this key.
    trouble::crowd_another_committer(&ringing.world.system, LogKey(1), gate);
    let before = Instant::now();
    ringing.say(1, group, "expense").await;
    ringing.until_heard(1).await;
    for steps in 0..3 {
        sleep(PUSH_YIELD_PAUSE / 2).await;
        let (heard, most) = (ringing.push.heard(), (steps + 1) * PUSH_YIELD_CALLS);
        assert!(heard <= most, "{heard} rung after {:?}", before.elapsed());
        sleep(PUSH_YIELD_PAUSE / 2).await;
    }
    ringing.until_heard(members.len() - 1).await;
    let took = before.elapsed();
    assert!(took >= PUSH_YIELD_PAUSE * 3 && took < Duration::from_secs(1), "{took:?}");
    ringing.push.take_heard();
    // Once the crowd has gone, nobody steps back.
    drop(open);
    sleep(DOORBELL_WINDOW * 2).await;
    ringing.push.take_heard();
    let before = Instant::now();
    ringing.say(1, group, "expense").await;
    ringing.until_heard(members.len() - 1).await;
    assert!(before.elapsed() < PUSH_YIELD_PAUSE, "{:?}", before.elapsed());
}

/// A vault of alice, bob and carol; bob has a session and is subscribed, carol sleeps.
async fn household(ringing: &Ringing) -> (Device, Device, Device, LogId) {
    let mut alice = Device::connected(1, &ringing.world).await;
    let vault = alice.found_vault().await;
    let mut bob = Device::connected(2, &ringing.world).await;
    let carol = Device::new(3);
    for other in [&bob, &carol] {
        let enrol = alice.enrol_entry(vault, other);
        alice.append(enrol).await.expect("enrolled");
    }
    for seed in [1, 2, 3] {
        ringing.register(seed).await;
    }
    bob.subscribe(vault, None).await.expect("subscribed");
    bob.drain(&mut Reading::new(vault)).await;
    (alice, bob, carol, vault)
}

#[tokio::test(start_paused = true)]
async fn in_a_vault_whoever_sleeps_is_rung_at_once_and_whoever_acks_is_not() {
    let ringing = Ringing::new().await;
    let (mut alice, mut bob, _, vault) = household(&ringing).await;
    let said = alice.say(vault, b"changes").await;
    bob.ack(vault, 1, said.seq).await;
    ringing.until_heard(1).await;
    sleep(DOORBELL_WINDOW * 3).await;
    let heard = ringing.push.take_heard();
    assert_eq!(heard.len(), 1, "nobody is rung twice for one entry");
    assert_eq!((heard[0].0.clone(), heard[0].1.log), (token(3), vault));
    assert_eq!(heard[0].1.urgency, Urgency::Normal);
}

#[tokio::test(start_paused = true)]
async fn in_a_vault_a_device_that_is_here_is_rung_if_it_does_not_ack_in_time() {
    let ringing = Ringing::new().await;
    let (mut alice, _bob, _, vault) = household(&ringing).await;
    let before = Instant::now();
    alice.say(vault, b"changes").await;
    ringing.until_heard(2).await;
    let took = before.elapsed();
    assert!(took >= DOORBELL_GRACE && took < DOORBELL_GRACE * 2, "{took:?}");
    assert_eq!(ringing.tokens_heard(), [token(2), token(3)], "and its author never");
}

#[tokio::test(start_paused = true)]
async fn in_a_vault_what_comes_after_a_doorbell_rings_when_the_window_ends() {
    let ringing = Ringing::new().await;
    let (mut alice, mut bob, _, vault) = household(&ringing).await;
    alice.say(vault, b"one").await;
    ringing.until_heard(1).await;
    sleep(Duration::from_secs(8)).await;
    let said = alice.say(vault, b"two").await;
    bob.ack(vault, 1, said.seq).await;
    sleep(DOORBELL_WINDOW * 10).await;
    assert_eq!(ringing.tokens_heard(), [token(3), token(3)], "for each of them");
}

#[tokio::test(start_paused = true)]
async fn in_a_vault_whoever_has_gone_is_rung_for_what_comes_then() {
    let ringing = Ringing::new().await;
    let (mut alice, mut bob, _, vault) = household(&ringing).await;
    // The log's memory stays through all of it.
    for _ in 0..2 {
        let said = alice.say(vault, b"changes").await;
        bob.ack(vault, 1, said.seq).await;
        sleep(Duration::from_secs(6)).await;
    }
    bob.disconnect();
    ringing.push.take_heard();
    alice.say(vault, b"more").await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(ringing.tokens_heard(), [token(2)], "at once");
}

#[tokio::test(start_paused = true)]
async fn in_a_vault_a_device_that_comes_and_reads_is_rung_anew_for_what_comes_then() {
    let ringing = Ringing::new().await;
    let (mut alice, bob, mut carol, vault) = household(&ringing).await;
    drop(bob);
    ringing.world.system.set_push_token(key(2), None).await.expect("taken back");
    let mut cursor = None;
    for round in 0..8 {
        let before = Instant::now();
        alice.say(vault, b"changes").await;
        ringing.until_heard(1).await;
        assert!(before.elapsed() < DOORBELL_GRACE, "round {round}: {:?}", before.elapsed());
        assert_eq!(ringing.tokens_heard(), [token(3)]);
        // It reads, and says no more than where it stood.
        if round % 2 == 0 {
            carol.connect(&ringing.world).await;
            carol.subscribe(vault, cursor).await.expect("subscribed");
            let mut reading = Reading::new(vault);
            if let Some(Head { seq, chain, .. }) = cursor {
                (reading.seq, reading.chain) = (seq, chain);
            }
            cursor = Some(carol.drain(&mut reading).await);
            carol.disconnect();
        } else {
            let after = cursor.map_or(0, |head| head.seq);
            let pulled = ringing.world.system.pull_from_vault(carol.id(), vault, after, None).await;
            assert!(!pulled.expect("a page").0.more());
        }
        sleep(Duration::from_secs(60)).await;
    }
    assert_eq!(ringing.push.heard(), 0);
}

#[tokio::test(start_paused = true)]
async fn in_a_vault_a_burst_of_ten_thousand_rings_whoever_sleeps_a_handful_of_times() {
    let ringing = Ringing::new().await;
    let (mut alice, _bob, _, vault) = household(&ringing).await;
    for _ in 0..10_000 {
        alice.say(vault, b"changes").await;
        sleep(Duration::from_millis(10)).await;
    }
    sleep(DOORBELL_WINDOW * 10).await;
    let heard = ringing.tokens_heard();
    for seed in [2, 3] {
        let rung = heard.iter().filter(|rung| **rung == token(seed)).count();
        assert!((2..=4).contains(&rung), "{rung} doorbells for one device in 100 seconds");
    }
}

#[tokio::test(start_paused = true)]
async fn a_push_service_that_never_answers_holds_up_no_append() {
    let ringing = Ringing::new().await;
    let group = ringing.group_of(&[1, 2, 3]).await;
    ringing.push.take_long(DAY);
    for _ in 0..100 {
        let before = Instant::now();
        ringing.say(1, group, "expense").await;
        assert!(before.elapsed() < Duration::from_millis(100));
    }
    assert_eq!(ringing.push.heard(), 0);
}
