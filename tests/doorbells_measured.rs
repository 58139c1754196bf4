//! Two thousand sleeping devices, and a burst: how soon they are rung, and what it costs those who
//! append. Measured, and run only when it is asked for:
//!
//! ```sh
//! ./scripts/test --release --run-ignored only --no-capture -E 'test(/^doorbells_measured/)'
//! ```
//!
//! 500 groups of one who writes and four who sleep; 20,000 entries, 40 in each group, as fast as they
//! are answered. The push service takes 50 ms, calls one doorbell in twenty too many (429, one second)
//! and does not know one token in a hundred. With push and without it in turns, in one process, which
//! the push service shares.

use std::collections::BTreeMap;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use sealwire_actors::Options;
use sealwire_actors::System;
use sealwire_actors::limits::DOORBELL_WINDOW;
use sealwire_actors::totals::Outgoing;
use sealwire_protocol::signing::device_key;
use sealwire_protocol::{DeviceKey, LogId};
use tokio::time::{Instant, sleep};

use crate::support::eventually;
use crate::support::fcm::{Fcm, Reply};
use crate::support::place::Database;
use crate::support::world::World;

const GROUPS: usize = 500;
const SLEEPERS: usize = 4;
const ENTRIES: usize = 40;
const ROUNDS: usize = 3;
const FCM_TAKES: Duration = Duration::from_millis(50);

/// How long calls are counted after the last device was rung.
const LISTENED_ON: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn on_sqlite() {
    Box::pin(a_burst_to_sleeping_devices(Database::Sqlite)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn on_postgres() {
    Box::pin(a_burst_to_sleeping_devices(Database::Postgres)).await;
}

/// What one burst has shown.
struct Burst {
    /// How long each entry took to be answered.
    answers: Vec<Duration>,
    took: Duration,
    /// When the first entry of each group was answered.
    first: BTreeMap<LogId, Instant>,
}

fn key(number: usize) -> DeviceKey {
    let mut seed = [0x5e; 32];
    seed[..8].copy_from_slice(&(number as u64).to_be_bytes());
    device_key(&SigningKey::from_bytes(&seed))
}

fn token(number: usize) -> String {
    format!("token-{number:06}")
}

async fn make_groups(system: &System) -> Vec<LogId> {
    let mut groups = Vec::new();
    for number in 0..GROUPS {
        let first = number * (SLEEPERS + 1);
        let group = system.create_totals(key(first)).await.expect("a group").group;
        for sleeper in first + 1..=first + SLEEPERS {
            system.join_totals(key(sleeper), group).await.expect("joined");
            let place = Some(("fcm".to_owned(), token(sleeper)));
            system.set_push_token(key(sleeper), place).await.expect("registered");
        }
        groups.push(group);
    }
    groups
}

async fn burst(system: &System, groups: &[LogId]) -> Burst {
    let begun = Instant::now();
    let write = async |number: usize, group: LogId| {
        let writer = key(number * (SLEEPERS + 1));
        let (mut answers, mut first) = (Vec::new(), None);
        for _ in 0..ENTRIES {
            let body = vec![7; 1024];
            let payload = Outgoing { body, kind: "expense".to_owned(), named: None };
            let at = Instant::now();
            system.send_totals(writer, group, payload).await.expect("sent");
            answers.push(at.elapsed());
            first.get_or_insert_with(Instant::now);
        }
        (group, answers, first.expect("one was sent"))
    };
    let writers = groups.iter().enumerate().map(|(number, group)| write(number, *group));
    let done = futures_util::future::join_all(writers).await;
    let took = begun.elapsed();
    let first = done.iter().map(|(group, _, first)| (*group, *first)).collect();
    let mut answers: Vec<Duration> = done.into_iter().flat_map(|(_, answers, _)| answers).collect();
    answers.sort_unstable();
    Burst { answers, took, first }
}

fn share(sorted: &[Duration], of_thousand: usize) -> Duration {
    sorted[(sorted.len() - 1) * of_thousand / 1000]
}

async fn a_burst_to_sleeping_devices(database: Database) {
    println!("{database:?}: {GROUPS} groups, {SLEEPERS} sleepers each, {ENTRIES} entries each");
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let world = World::start(database).await;
        let groups = make_groups(world.system()).await;
        without.push(burst(world.system(), &groups).await);
        with.push(rung(database).await);
    }
    let median = |bursts: &[Burst], of: &dyn Fn(&Burst) -> Duration| {
        let mut all: Vec<Duration> = bursts.iter().map(of).collect();
        all.sort_unstable();
        all[all.len() / 2]
    };
    type Figure = (&'static str, fn(&Burst) -> Duration);
    let figures: [Figure; 3] = [
        ("answer p50", |burst| share(&burst.answers, 500)),
        ("answer p99", |burst| share(&burst.answers, 990)),
        ("whole burst", |burst| burst.took),
    ];
    for (name, of) in figures {
        let (off, on) = (median(&without, &of), median(&with, &of));
        let ratio = on.as_secs_f64() / off.as_secs_f64();
        println!("{name:<12} without {off:>10.1?}  with {on:>10.1?}  ratio {ratio:.2}");
    }
}

/// One burst with push, checked and told.
async fn rung(database: Database) -> Burst {
    let fcm = Fcm::start().await;
    fcm.reply_always(Reply::Slow(FCM_TAKES));
    fcm.limit_every(20);
    let client = fcm.client();
    let world = World::start_with(database, move |options: &mut Options| {
        options.push = vec![client.clone()];
    })
    .await;
    let groups = make_groups(world.system()).await;
    let sleepers: Vec<usize> =
        (0..GROUPS * (SLEEPERS + 1)).filter(|number| number % (SLEEPERS + 1) != 0).collect();
    for dead in sleepers.iter().step_by(100) {
        fcm.reply_to(&token(*dead), Reply::Unregistered);
    }
    let burst = burst(world.system(), &groups).await;
    let mut ages: Vec<Duration> = Vec::new();
    eventually("every device is rung", async || {
        // The first doorbell that was taken for each, or that found its token gone.
        let mut rung: BTreeMap<String, Duration> = BTreeMap::new();
        for heard in fcm.doorbells() {
            if matches!(heard.reply, Some(Reply::Slow(_) | Reply::Unregistered)) {
                let json = heard.json();
                let group = json["message"]["data"]["groupId"].as_str().expect("an id");
                let group = LogId::from_uuid_text(group).expect("an id");
                let age = heard.at.saturating_duration_since(burst.first[&group]);
                rung.entry(heard.token()).or_insert(age);
            }
        }
        ages = rung.into_values().collect();
        ages.len() == sleepers.len()
    })
    .await;
    ages.sort_unstable();
    // Whoever was rung for the burst is not rung again in its window.
    sleep(LISTENED_ON).await;
    let calls = fcm.doorbells();
    let limited = calls.iter().filter(|it| matches!(it.reply, Some(Reply::Limited(_)))).count();
    println!(
        "rung: {} devices with {} calls ({limited} of them 429); from commit to doorbell p50 {:.1?}, \
         p99 {:.1?}, longest {:.1?}; {:.0} entries a second",
        ages.len(),
        calls.len(),
        share(&ages, 500),
        share(&ages, 990),
        share(&ages, 1000),
        burst.answers.len() as f64 / burst.took.as_secs_f64(),
    );
    // One call for each device and window: that was taken, or that found its token gone. What was one too
    // many is tried again, and is none of them.
    let mut counted: BTreeMap<String, Vec<Instant>> = BTreeMap::new();
    for heard in &calls {
        if !matches!(heard.reply, Some(Reply::Limited(_))) {
            counted.entry(heard.token()).or_default().push(heard.at);
        }
    }
    for (token, times) in &counted {
        for (first, second) in times.iter().zip(times.iter().skip(1)) {
            let pause = *second - *first;
            assert!(pause + FCM_TAKES >= DOORBELL_WINDOW, "{token} after {pause:?}");
        }
    }
    let most = 1 + (burst.took + LISTENED_ON).as_secs() / DOORBELL_WINDOW.as_secs();
    assert!(counted.values().all(|times| times.len() as u64 <= most));
    burst
}
