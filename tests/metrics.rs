//! Every metric moves, and none of them tells of anybody.
//!
//! What the relay does is done here to real actors: by devices and phones to a relay's process, and, what
//! no device can bring about, to a system over a store in memory that is told to fail. Each scene names
//! the metrics that it moves; together they are the table of what moves which.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::SigningKey;
use sealwire::telemetry;
use sealwire_actors::fakes::{FakePush, HandClock, MemoryStore, Mishap, trouble};
use sealwire_actors::limits::LOG_IDLE;
use sealwire_actors::metrics::{self as names, TABLE};
use sealwire_actors::ports::{LogKey, Rang, Store, StoreError, Trouble};
use sealwire_actors::totals::Outgoing;
use sealwire_actors::{Options, System};
use sealwire_protocol::frame::Subscribe;
use sealwire_protocol::signing::{device_key, sign};
use sealwire_protocol::token::TokenKey;
use sealwire_protocol::{DeviceKey, LogId};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::time::sleep;

use crate::support::device::{Device, together};
use crate::support::eventually;
use crate::support::http;
use crate::support::phone::Phone;
use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;
use crate::support::raw::{BINARY, LAST, Raw, frame};

/// Labels of all metrics; docs/PRIVACY.md names them. `le` is the bound of a bucket.
const LABELS: [&str; 10] =
    ["actor", "code", "error", "frame", "kind", "outcome", "reason", "source", "step", "what"];

/// Requests of one address: fifty at once, and then one in a second.
const FIFTY: [(&str, &str); 2] = [
    ("SEALWIRE_REQUESTS_PER_ADDRESS_PER_SECOND", "1"),
    ("SEALWIRE_REQUESTS_PER_ADDRESS_BURST", "50"),
];

/// What was told last, and which metrics have moved so far.
#[derive(Default)]
struct Seen {
    before: BTreeMap<&'static str, f64>,
    moved: BTreeSet<&'static str>,
    /// Everything that was ever told, line by line.
    told: BTreeSet<String>,
}

impl Seen {
    /// Looks at everything without asking what has moved.
    async fn begin(&mut self, tell: &impl AsyncFn() -> String) {
        let text = tell().await;
        self.before = sums(&text);
    }

    /// Waits until all of these have moved, by what was just done.
    async fn moves(&mut self, by: &str, metrics: &[&'static str], tell: &impl AsyncFn() -> String) {
        for name in metrics {
            let what = format!("{by}: {name} moves");
            let mut text = String::new();
            eventually(&what, async || {
                text = tell().await;
                sums(&text).get(name) != self.before.get(name)
            })
            .await;
            self.told.extend(text.lines().map(str::to_owned));
            self.moved.insert(name);
        }
        self.before = sums(&tell().await);
    }
}

/// The sum over all labels of each metric, of histograms the number of their samples.
fn sums(text: &str) -> BTreeMap<&'static str, f64> {
    let sum = |name: &str, kind: &str| match kind {
        "histogram" => http::metric(text, &format!("{name}_count"), ""),
        _ => http::metric(text, name, ""),
    };
    TABLE.iter().map(|(name, kind, ..)| (*name, sum(name, kind))).collect()
}

#[test]
fn every_metric_moves_and_no_label_tells_of_anybody() {
    let mut seen = Seen::default();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(devices_and_phones(&mut seen));
    // Minutes pass in a moment, and nothing runs while something is done.
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(misfortunes(&mut seen));
    let unmoved: Vec<_> =
        TABLE.iter().map(|(name, ..)| *name).filter(|name| !seen.moved.contains(name)).collect();
    assert!(unmoved.is_empty(), "nothing here moves {unmoved:?}");
    seen.told.iter().for_each(|line| assert_tells_of_nobody(line));
}

/// Labels are words of a closed set, in closed sets of words; a key, an id or an address is no word.
fn assert_tells_of_nobody(line: &str) {
    let Some((name, rest)) = line.split_once('{').filter(|_| !line.starts_with('#')) else {
        return;
    };
    let (labels, _) = rest.split_once('}').expect("labels end");
    for label in labels.split(',') {
        let (key, value) = label.split_once('=').expect("a label has a value");
        let value = value.trim_matches('"');
        if key == "le" {
            assert!(value == "+Inf" || value.parse::<f64>().is_ok(), "{line}");
            continue;
        }
        assert!(LABELS.contains(&key), "{name} has a label that is not known: {line}");
        let is_word = |word: &str| word.chars().all(|it| it.is_ascii_alphabetic() || it == '_');
        assert!(is_word(value) && value.len() < 32, "{line}");
    }
}

#[test]
fn docs_privacy_names_every_label() {
    let page = std::fs::read_to_string("docs/PRIVACY.md").expect("a page");
    let (_, counted) = page.split_once("## What is counted").expect("a section");
    for label in LABELS {
        assert!(counted.contains(&format!("`{label}`")), "{label} is not in docs/PRIVACY.md");
    }
}

// ---- what devices and phones do

async fn devices_and_phones(seen: &mut Seen) {
    let mut relay = RelayProcess::start(Place::new(Database::Sqlite).await, &FIFTY).await;
    {
        let tell = async || relay.ask("/metrics").await.expect("an answer").body;
        seen.begin(&tell).await;
        let mut devices =
            [Device::connected(relay.url(), 1).await, Device::connected(relay.url(), 2).await];
        let log = together(&mut devices).await.log;
        let [mut writer, mut reader] = devices;
        writer.append(log, b"counted").await;
        reader.read_to(log, 3).await;
        reader.ack_all(log).await;
        let metrics = [
            names::ACTORS_LIVE,
            names::SESSIONS,
            names::CONNECTIONS,
            names::MESSAGES_HANDLED,
            names::MESSAGE_AGE,
            names::HANDLING_TIME,
            names::FRAMES_IN,
            names::ENTRIES,
            names::COPIES_OFFERED,
            names::OUTCOMES,
            names::COMMIT_ENTRIES,
            names::COMMIT_TIME,
            names::PAGES,
            names::CHECKPOINT_TIME,
        ];
        seen.moves("devices talk", &metrics, &tell).await;
        every_kind_handles_messages(&tell().await, &["session", "log", "committer"]);

        writer.send(Subscribe { log: LogId([9; 16]), cursor: None, acked: None }).await;
        seen.moves("a device asks for no log of its own", &[names::ERRORS_SENT], &tell).await;

        reader.cut();
        seen.moves("a device leaves", &[names::SESSIONS_ENDED], &tell).await;

        let mut stranger = Raw::upgraded(relay.public()).await;
        stranger.write(&frame(LAST | BINARY, b"no proof")).await;
        let metrics = [names::AUTH_FAILURES, names::CONNECTIONS_REFUSED];
        seen.moves("a stranger proves nothing", &metrics, &tell).await;

        a_slow_reader(&relay, &mut writer, seen, &tell).await;
        phones(&relay, seen, &tell).await;
    }
    no_file_is_left(&mut relay, seen).await;
}

async fn a_slow_reader(
    relay: &RelayProcess,
    writer: &mut Device,
    seen: &mut Seen,
    tell: &impl AsyncFn() -> String,
) {
    let group = writer.found().await;
    let mut slow = Device::connected(relay.url(), 3).await;
    slow.join(&group).await;
    slow.follow(group.log).await;
    let metrics =
        [names::OUTBOX_BYTES, names::OUTBOX_BYTES_MOST, names::BEHIND, names::SESSIONS_BEHIND];
    // What the kernel keeps for it, and its outbox, and more.
    let writing = async {
        let body = vec![5; 128 * 1024];
        for _ in 0..400 {
            let told = tell().await;
            if http::metric(&told, names::SESSIONS_BEHIND, "") > 0.0 {
                return;
            }
            for _ in 0..8 {
                writer.append(group.log, &body).await;
            }
        }
    };
    writing.await;
    seen.moves("a device does not read", &metrics, tell).await;
}

async fn phones(relay: &RelayProcess, seen: &mut Seen, tell: &impl AsyncFn() -> String) {
    let phone = Phone::new(relay.public(), 4);
    phone.create().await;
    let stream = phone.listen("/groups/pending/stream").await;
    seen.moves("a phone listens", &[names::STREAMS], tell).await;
    drop(stream);

    let ask = async || {
        let body = json!({ "recoveryCode": "0123456789ABCDE9" }).to_string();
        http::request(relay.public(), "POST", "/identity/vault/fetch", "", &body).await
    };
    ask().await.expect("an answer");
    seen.moves("somebody tries a recovery code", &[names::RECOVERY], tell).await;
    while ask().await.expect("an answer").status != 429 {}
    seen.moves("an address asks too much", &[names::REQUESTS_LIMITED], tell).await;
}

/// The relay may open no further file for a while.
async fn no_file_is_left(relay: &mut RelayProcess, seen: &mut Seen) {
    let limit = |files: &str| {
        let id = relay.id().to_string();
        let limited = Command::new("prlimit").args(["--pid", &id, files]).status();
        assert!(limited.expect("prlimit runs").success());
    };
    // Those below it have been open since the start.
    limit("--nofile=8:");
    let waiting = TcpStream::connect(relay.public()).await.expect("the kernel takes it");
    relay.until_said("connections cannot be accepted").await;
    limit("--nofile=1024:");
    drop(waiting);
    let tell = async || relay.ask("/metrics").await.expect("an answer").body;
    seen.moves("no file is left", &[names::ACCEPT_FAILURES], &tell).await;
}

/// That a kind of actor handles messages shows under its own name.
fn every_kind_handles_messages(text: &str, kinds: &[&str]) {
    for kind in kinds {
        let label = format!("actor=\"{kind}\"");
        for name in [names::ACTORS_LIVE, names::MESSAGES_HANDLED] {
            assert!(http::metric(text, name, &label) > 0.0, "{name} of {kind}");
        }
        let handled = format!("{}_count", names::HANDLING_TIME);
        assert!(http::metric(text, &handled, &label) > 0.0, "{handled} of {kind}");
    }
}

// ---- what no device can bring about

/// A system over a store in memory, with a push service that only listens.
struct Misfortunes {
    system: System,
    store: Arc<MemoryStore>,
    clock: Arc<HandClock>,
    push: Arc<FakePush>,
}

fn device(seed: u8) -> DeviceKey {
    device_key(&SigningKey::from_bytes(&[seed; 32]))
}

impl Misfortunes {
    async fn start() -> Self {
        let store = Arc::new(MemoryStore::new());
        let clock = Arc::new(HandClock::at(1_700_000_000_000));
        let push = Arc::new(FakePush::default());
        let key = SigningKey::from_bytes(&[99; 32]);
        let mut options = Options::new(key, vec![TokenKey::derive(b"a secret of the tests")]);
        options.retention_pause = Duration::from_millis(100);
        options.push = vec![push.clone()];
        options.doorbell_settle = Duration::ZERO;
        let system = System::start(store.clone(), clock.clone(), options).await;
        Self { system: system.expect("actors start"), store, clock, push }
    }

    /// A group of a phone that writes and others that sleep, whose doorbells are known.
    async fn group(&self, writer: u8, sleepers: RangeInclusive<u8>) -> (LogId, LogKey) {
        let group = self.system.create_totals(device(writer)).await.expect("created").group;
        for sleeper in sleepers {
            self.system.join_totals(device(sleeper), group).await.expect("joined");
            let place = Some(("fcm".to_owned(), format!("token {sleeper}")));
            self.system.set_push_token(device(sleeper), place).await.expect("registered");
        }
        let log = self.store.find_log(group).await.expect("a store").expect("a log");
        (group, log.key)
    }

    async fn say(&self, writer: u8, group: LogId) -> Option<sealwire_actors::totals::Sent> {
        let (body, kind) = (b"sealed".to_vec(), "expense".to_owned());
        let payload = Outgoing { body, kind, named: None };
        self.system.send_totals(device(writer), group, payload).await.ok().flatten()
    }
}

async fn misfortunes(seen: &mut Seen) {
    // Before the first actor, as in a relay's process.
    let told = telemetry::metrics().expect("the process counts");
    let it = Misfortunes::start().await;
    let tell = async || {
        it.system.look();
        told.render()
    };
    seen.begin(&tell).await;
    let (group, key) = it.group(1, 2..=2).await;

    it.push.take_long(Duration::from_secs(3));
    it.say(1, group).await.expect("sent");
    let metrics = [names::DOORBELLS_QUEUED, names::DOORBELLS_WAITING, names::LOGS_LOADED];
    seen.moves("something waits for a device that sleeps", &metrics, &tell).await;
    let metrics = [names::DOORBELLS_SENT, names::DOORBELL_AGE];
    seen.moves("it is rung", &metrics, &tell).await;
    it.push.take_long(Duration::ZERO);
    // The first of them will ring it when its window is over, and the second comes along.
    for _ in 0..2 {
        it.say(1, group).await.expect("sent");
    }
    seen.moves("more waits for it", &[names::DOORBELLS_COALESCED], &tell).await;
    every_kind_handles_messages(&tell().await, &["push", "retention", "log", "committer"]);

    doorbells_that_fail(&it, seen, &tell).await;

    it.store.hold_commits();
    let (asked, ()) = tokio::join!(
        async { tokio::join!(it.say(1, group), it.system.create_totals(device(9))) },
        async {
            it.store.commits_held(1).await;
            let metrics = [names::MAILBOX_DEPTH, names::OLDEST_MESSAGE];
            seen.moves("a commit takes long", &metrics, &tell).await;
            it.store.release_commits();
        }
    );
    asked.1.expect("created, after all");

    it.store.raise_version(key);
    it.say(1, group).await;
    seen.moves("somebody else changes a log", &[names::COMMITS_STALE], &tell).await;
    it.store.next_commits(1, Mishap::Fails(StoreError::Unavailable));
    it.say(1, group).await;
    seen.moves("a commit fails", &[names::COMMITS_FAILED], &tell).await;

    trouble::fail_a_committer(&it.system);
    seen.moves("a committer fails", &[names::ACTOR_RESTARTS], &tell).await;
    every_kind_handles_messages(&tell().await, &["supervisor"]);
    trouble::crowd_a_log(&it.system, key);
    seen.moves("a log is asked too much", &[names::MAILBOX_REFUSALS], &tell).await;
    trouble::crowd_doorbells(&it.system, key, group, device(2));
    seen.moves("too much word is left", &[names::DOORBELLS_DROPPED], &tell).await;

    sleep(LOG_IDLE * 3).await;
    seen.moves("a log rests", &[names::LOGS_PASSIVATED], &tell).await;
    for member in [1, 2] {
        it.system.leave_totals(device(member), group).await.expect("left");
    }
    seen.moves("the last member leaves", &[names::GROUPS_ENDED], &tell).await;

    let challenge = it.system.challenge().expect("randomness");
    let signature = sign(&SigningKey::from_bytes(&[1; 32]), &challenge);
    it.system.prove(device(1), &challenge, &signature).await.expect("proved");
    it.clock.turn(24 * 3600 * 1000);
    seen.moves("what was kept is old", &[names::SWEPT], &tell).await;
}

async fn doorbells_that_fail(it: &Misfortunes, seen: &mut Seen, tell: &impl AsyncFn() -> String) {
    // A device that is here has ten seconds to ack, and does.
    let (group, _) = it.group(3, 4..=4).await;
    let stream = it.system.follow_all(device(4)).await.expect("a stream");
    let sent = it.say(3, group).await.expect("sent");
    sleep(Duration::from_secs(3)).await;
    it.system.ack_totals(device(4), &[sent.id]).await.expect("acked");
    seen.moves("a device acks in time", &[names::DOORBELLS_SUPPRESSED], tell).await;
    drop(stream);

    let (group, _) = it.group(5, 6..=6).await;
    it.push.say(Rang::Unregistered);
    it.say(5, group).await.expect("sent");
    seen.moves("a token is gone", &[names::TOKENS_FORGOTTEN], tell).await;

    // It is left alone after sixteen failures in a row.
    let (group, _) = it.group(20, 21..=40).await;
    it.push.always_say(Some(Rang::Later(Trouble::Unavailable, None)));
    it.say(20, group).await.expect("sent");
    let metrics = [names::DOORBELLS_FAILED, names::PUSH_RESTING];
    seen.moves("a push service fails again and again", &metrics, tell).await;
    it.push.always_say(None);
}
