//! Long random histories on a database and on the store in memory, every answer compared.
//!
//! The seed is printed when an answer differs, and `SEALWIRE_TEST_SEED` runs one again.

use std::ops::Range;
use std::time::{Duration, Instant};

use sealwire_actors::fakes::MemoryStore;
use sealwire_actors::ports::{
    CommitResult, ControlsRequest, FoundResult, LogCommit, LogKey, MemberChange, PageRequest,
    Position, Store,
};
use sealwire_protocol::{AckSet, DeviceKey, LogType};

use super::on_every_database;
use super::scribe::{Draft, NOON, Scribe, device, new_log, plain, plain_log};
use crate::support::databases::Database;

on_every_database! {
    a_random_history_is_the_same_as_in_memory
}

/// Steps of one history, unless the time is over before.
const STEPS: usize = 600;

/// The longest that a history goes on.
const TIME_MAX: Duration = Duration::from_secs(20);

const DEVICES: Range<u8> = 1..9;

/// SplitMix64: small, seeded, the same everywhere.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.roll() % end.max(1)
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    fn device(&mut self) -> DeviceKey {
        let count = u64::from(DEVICES.end - DEVICES.start);
        device(DEVICES.start + u8::try_from(self.below(count)).expect("few devices"))
    }
}

struct World<'a> {
    store: &'a dyn Store,
    model: &'a MemoryStore,
    logs: Vec<Scribe>,
    dice: Dice,
    now: u64,
}

async fn a_random_history_is_the_same_as_in_memory(database: &Database) {
    let seed = std::env::var("SEALWIRE_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(|| getrandom::u64().expect("random numbers"));
    eprintln!("seed {seed}");
    let opened = database.open().await;
    let model = MemoryStore::new();
    let mut world = World {
        store: &*opened.store,
        model: &model,
        logs: Vec::new(),
        dice: Dice(seed),
        now: NOON,
    };
    let begun = Instant::now();
    for step in 0..STEPS {
        if begun.elapsed() > TIME_MAX {
            eprintln!("stopped after {step} steps");
            break;
        }
        world.step().await;
    }
    world.compare_all().await;
    opened.close().await;
}

impl World<'_> {
    async fn step(&mut self) {
        self.now += self.dice.below(40_000_000);
        match self.dice.below(20) {
            0 | 1 => self.found().await,
            2 | 3 => self.reserve().await,
            4 => self.sweep().await,
            5 => self.touch().await,
            6 => self.compare_lists().await,
            7..=9 => self.compare_page().await,
            10 => self.compare_all().await,
            _ => self.commit().await,
        }
    }

    async fn found(&mut self) {
        let log_type = if self.dice.one_in(3) { LogType::Vault } else { LogType::Group };
        let new = new_log(self.dice.below(60), log_type, self.dice.device(), self.now);
        let answer = self.store.found(&new, 4).await;
        assert_eq!(answer, self.model.found(&new, 4).await);
        if let Ok(FoundResult::Created(key)) = answer {
            self.logs.push(Scribe::of(key, &new));
        }
    }

    fn key(&mut self) -> LogKey {
        let place = usize::try_from(self.dice.below(self.logs.len() as u64 + 1)).expect("few");
        self.logs.get(place).map_or(LogKey(404), |log| log.key)
    }

    async fn reserve(&mut self) {
        let (key, device) = (self.key(), self.dice.device());
        let since = self.now.saturating_sub(self.dice.below(200_000_000));
        let answer = self.store.reserve(key, device, 4, self.now, since).await;
        assert_eq!(answer, self.model.reserve(key, device, 4, self.now, since).await);
    }

    /// Keeps places for most of those whom a batch lets join.
    async fn reserve_for(&mut self, batch: &[LogCommit]) {
        for part in batch {
            for change in &part.members {
                if let MemberChange::Joined { device, .. } = change
                    && !self.dice.one_in(6)
                {
                    let since = self.now.saturating_sub(self.dice.below(200_000_000));
                    let answer = self.store.reserve(part.key, *device, 20, self.now, since).await;
                    let expected = self.model.reserve(part.key, *device, 20, self.now, since).await;
                    assert_eq!(answer, expected);
                }
            }
        }
    }

    async fn sweep(&mut self) {
        let reservations = self.now - self.dice.below(400_000_000);
        let devices = self.now - self.dice.below(2_000_000_000);
        let limit = usize::try_from(1 + self.dice.below(5)).expect("small");
        let answer = self.store.sweep(reservations, devices, self.now, limit).await;
        // Which of several old reservations go first is nobody's promise, so all go.
        let _ = answer.expect("swept");
        self.model.sweep(reservations, devices, self.now, limit).await.expect("swept");
        for _ in 0..40 {
            self.store.sweep(reservations, devices, self.now, 100).await.expect("swept");
            self.model.sweep(reservations, devices, self.now, 100).await.expect("swept");
        }
    }

    async fn touch(&mut self) {
        let device = self.dice.device();
        self.store.touch_device(device, self.now).await.expect("noted");
        self.model.touch_device(device, self.now).await.expect("noted");
    }

    async fn commit(&mut self) {
        let mut batch = Vec::new();
        let mut after = self.logs.clone();
        for log in &mut after {
            if self.dice.one_in(3) {
                batch.push(part(&mut self.dice, log, self.now));
            }
        }
        self.reserve_for(&batch).await;
        let answer = self.store.commit(&batch).await;
        assert_eq!(answer, self.model.commit(&batch).await, "of {} parts", batch.len());
        let Ok(results) = answer else { return };
        for (part, result) in batch.iter().zip(results) {
            let place = after.iter().position(|log| log.key == part.key).expect("one of them");
            match result {
                CommitResult::Committed if part.ended => {
                    after.remove(place);
                    self.logs.remove(place);
                }
                CommitResult::Committed => self.logs[place] = after[place].clone(),
                CommitResult::Stale => after[place] = self.logs[place].clone(),
            }
        }
    }

    async fn compare_lists(&mut self) {
        let device = self.dice.device();
        let memberships = self.store.memberships(device).await;
        assert_eq!(memberships, self.model.memberships(device).await);
        let before = self.now - self.dice.below(400_000_000);
        let (after, limit) = (self.key(), usize::try_from(1 + self.dice.below(6)).expect("small"));
        let after = if after == LogKey(404) { LogKey(0) } else { after };
        let due = self.store.due_for_expiry(after, before, limit).await;
        assert_eq!(due, self.model.due_for_expiry(after, before, limit).await);
        let idle = self.store.idle_groups(before, limit).await;
        assert_eq!(idle, self.model.idle_groups(before, limit).await);
    }

    async fn compare_page(&mut self) {
        let Some(log) = self.logs.get(usize::try_from(self.dice.below(8)).expect("small")) else {
            return;
        };
        let (log, head) = (log.clone(), log.head.seq);
        let request = PageRequest {
            key: log.key,
            after: self.dice.below(head + 1),
            up_to: self.dice.below(head + 2),
            reader: self.dice.device(),
            joined_seq: self.dice.below(head + 1),
            entries_max: usize::try_from(self.dice.below(20)).expect("small"),
            bytes_max: usize::try_from(self.dice.below(3000)).expect("small"),
        };
        let page = self.store.read_page(&request).await.expect("read");
        let expected = self.model.read_page(&request).await.expect("read");
        assert!(page.iter().map(plain).eq(expected.iter().map(plain)), "of {request:?}");
        let PageRequest { key, after, entries_max, bytes_max, .. } = request;
        let asked = ControlsRequest { key, after, up_to: head, entries_max, bytes_max };
        let controls = self.store.read_controls(&asked).await.expect("read");
        let expected = self.model.read_controls(&asked).await.expect("read");
        assert!(controls.entries.iter().map(plain).eq(expected.entries.iter().map(plain)));
        assert_eq!(controls.complete, expected.complete, "of {asked:?}");
        let (sender, count) = (request.reader, self.dice.below(9));
        let entry = self.store.find_entry(log.key, sender, count).await;
        assert_eq!(entry, self.model.find_entry(log.key, sender, count).await);
        let seq = request.after;
        let chain = self.store.chain_at(log.key, seq).await;
        assert_eq!(chain, self.model.chain_at(log.key, seq).await);
        let subscription = self.store.subscription(log.key, sender).await;
        assert_eq!(subscription, self.model.subscription(log.key, sender).await);
        assert_eq!(self.store.members(log.key).await, self.model.members(log.key).await);
    }

    async fn compare_all(&mut self) {
        let mut keys: Vec<LogKey> = self.logs.iter().map(|log| log.key).collect();
        keys.push(LogKey(404));
        keys.extend(keys.first().copied());
        let loaded = self.store.load(&keys).await.expect("loaded");
        let expected = self.model.load(&keys).await.expect("loaded");
        for (record, expected) in loaded.iter().zip(&expected) {
            assert_eq!(record.as_ref().map(plain_log), expected.as_ref().map(plain_log));
        }
        for log in &self.logs {
            let request = PageRequest { joined_seq: 0, ..log.page(device(200), 0) };
            let page = self.store.read_page(&request).await.expect("read");
            let expected = self.model.read_page(&request).await.expect("read");
            assert!(page.iter().map(plain).eq(expected.iter().map(plain)));
        }
    }
}

/// A random part of a commit for this log: mostly sound, sometimes stale.
fn part(dice: &mut Dice, log: &mut Scribe, now: u64) -> LogCommit {
    let drafts: Vec<Draft> = (0..dice.below(4)).map(|_| draft(dice, now)).collect();
    let mut part = if dice.one_in(15) {
        let mut stale = log.part();
        stale.expected_seq += 1;
        return stale;
    } else {
        log.write(&drafts)
    };
    if dice.one_in(40) {
        let mut end = LogCommit::new(part.key, part.expected_seq, part.expected_version);
        end.ended = true;
        return end;
    }
    let head = log.head.seq;
    if dice.one_in(3) {
        for _ in 0..=dice.below(3) {
            part.members.push(member_change(dice, head, now));
        }
    }
    if dice.one_in(2) {
        for number in DEVICES.step_by(3) {
            let mut acked = AckSet::up_to(dice.below(head));
            acked.insert(dice.below(head) + 1, dice.below(head) + 1);
            part.acks.push((device(number), acked));
        }
    }
    if dice.one_in(3) {
        let first = dice.below(head) + 1;
        let last = first + dice.below(4);
        part.freed.push((first, last));
        part.freed.push((last + 2, last + 2 + dice.below(3)));
    }
    if dice.one_in(8) {
        // A floor only rises.
        let seq = log.floor + dice.below(head + 1 - log.floor);
        log.floor = seq;
        let chain = part.entries.last().map_or(log.head.chain, |entry| entry.chain);
        part.floor = Some(Position { seq, chain });
    }
    if dice.one_in(5) {
        part.guard_seq = Some(head);
    }
    if dice.one_in(6) {
        part.join_key = Some((!dice.one_in(3)).then(|| dice.device()));
    }
    part
}

fn draft(dice: &mut Dice, now: u64) -> Draft {
    let length = usize::try_from(dice.below(900)).expect("small");
    let fill = u8::try_from(dice.below(256)).expect("a byte");
    let mut draft = Draft::of(dice.device(), &vec![fill; length]).at(now - dice.below(1000));
    if dice.one_in(5) {
        draft = draft.control();
    } else {
        if dice.one_in(3) {
            let mut recipients: Vec<DeviceKey> =
                (0..=dice.below(4)).map(|_| dice.device()).collect();
            recipients.sort();
            recipients.dedup();
            draft = draft.to(&recipients);
        }
        draft.totals_kind = dice.one_in(4).then(|| "expense".to_owned());
    }
    draft
}

fn member_change(dice: &mut Dice, seq: u64, at: u64) -> MemberChange {
    let device = dice.device();
    match dice.below(5) {
        0..=2 => MemberChange::Joined { device, seq, at },
        3 => MemberChange::Left { device },
        _ => MemberChange::Revoked { device, seq },
    }
}
