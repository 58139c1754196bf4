//! What goes: bodies, entries below the floor, whole logs; and what is counted.

use sealwire_actors::ports::{
    CommitResult, DUE_ENTRIES_MAX, DueLog, FoundResult, LogKey, MemberChange, Position,
    ReserveResult, Store, StoreStats,
};
use sealwire_protocol::{AckSet, LogType};

use super::on_every_store;
use super::scribe::{Draft, NOON, Scribe, commit, device, found, new_log, outline, reserve};
use crate::support::databases::Database;

on_every_store! {
    a_freed_body_is_gone_and_its_entry_stays
    a_body_can_be_freed_in_the_commit_that_brings_it
    only_bodies_that_wait_are_live
    below_the_floor_only_control_entries_stay
    an_ended_log_leaves_nothing
    a_key_is_never_used_twice
    logs_are_due_up_to_the_last_entry_that_is_old_enough
    due_logs_are_looked_for_in_steps
    a_long_log_comes_due_in_steps
    idle_groups_are_found_and_vaults_are_never_idle
    a_sweep_is_bounded_and_spares_what_is_young
    a_device_that_was_here_is_not_swept_as_idle
    counts_are_of_everything_that_is_kept
}

const DAY: u64 = 86_400_000;

async fn free(store: &dyn Store, log: &Scribe, ranges: &[(u64, u64)]) {
    let mut part = log.part();
    part.freed = ranges.to_vec();
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
}

async fn a_freed_body_is_gone_and_its_entry_stays(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let mut other = found(store, 2, LogType::Group, device(1)).await;
    let mut drafts: Vec<Draft> = (0..6).map(|number| Draft::of(device(1), &[number])).collect();
    drafts.push(Draft::of(device(1), b"control").control());
    for log in [&mut log, &mut other] {
        log.commit(store, &drafts).await;
    }
    free(store, &log, &[(1, 2), (4, 5), (7, 8)]).await;
    let read = async |log: &Scribe| {
        outline(&store.read_page(&log.page(device(2), 0)).await.expect("read"))
    };
    let expected = [
        (1, true),
        (2, false),
        (3, true),
        (4, false),
        (5, false),
        (6, true),
        (7, false),
        (8, true),
    ];
    assert_eq!(read(&log).await, expected, "control bodies stay");
    assert!(read(&other).await.iter().all(|(_, body)| *body), "another log's are its own");
    assert_eq!(store.chain_at(log.key, 4).await.map(|chain| chain.is_some()), Ok(true));
    assert!(store.find_entry(log.key, device(1), 4).await.expect("read").is_some());
    let live: Vec<u64> = log.load(store).await.live.iter().map(|live| live.seq).collect();
    assert_eq!(live, [3, 6]);
    opened.close().await;
}

async fn a_body_can_be_freed_in_the_commit_that_brings_it(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let mut part = log.write(&[Draft::of(device(1), b"for nobody"), Draft::of(device(1), b"b")]);
    part.freed = vec![(2, 2)];
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let page = store.read_page(&log.page(device(2), 1)).await.expect("read");
    assert_eq!(outline(&page), [(2, false), (3, true)]);
    opened.close().await;
}

async fn only_bodies_that_wait_are_live(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut group = found(store, 1, LogType::Group, device(1)).await;
    let drafts = [
        Draft::of(device(1), &[1; 100]).at(NOON + 1),
        Draft::of(device(2), &[2; 200]).to(&[device(1), device(3)]).at(NOON + 2),
        Draft::of(device(1), b"control").control(),
    ];
    group.commit(store, &drafts).await;
    let live = group.load(store).await.live;
    assert_eq!(live.len(), 2);
    assert_eq!((live[0].seq, live[0].bytes, live[0].at), (2, 100, NOON + 1));
    assert_eq!((live[0].sender_slot, live[0].recipients.len()), (1, 0));
    assert_eq!((live[1].seq, live[1].bytes, live[1].sender_slot), (3, 200, 2));
    assert_eq!(live[1].recipients, [device(1), device(3)]);
    let mut vault = found(store, 2, LogType::Vault, device(1)).await;
    vault.commit(store, &drafts).await;
    assert!(vault.load(store).await.live.is_empty(), "a vault has no queue");
    opened.close().await;
}

async fn below_the_floor_only_control_entries_stay(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let mut drafts: Vec<Draft> = (0..4).map(|number| Draft::of(device(1), &[number])).collect();
    drafts.insert(2, Draft::of(device(1), b"control").control());
    log.commit(store, &drafts).await;
    let floor =
        Position { seq: 5, chain: store.chain_at(log.key, 5).await.expect("read").expect("kept") };
    let mut part = log.write(&[Draft::of(device(1), b"and one more")]);
    part.floor = Some(floor);
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let record = log.load(store).await;
    assert_eq!((record.floor, record.head), (floor, log.head));
    let page = store.read_page(&log.page(device(2), 0)).await.expect("read");
    assert_eq!(outline(&page), [(1, true), (4, true), (6, true), (7, true)]);
    let live: Vec<u64> = record.live.iter().map(|live| live.seq).collect();
    assert_eq!(live, [6, 7]);
    assert_eq!(store.chain_at(log.key, 5).await, Ok(None));
    assert_eq!(store.find_entry(log.key, device(1), 2).await, Ok(None));
    assert!(store.find_entry(log.key, device(1), 4).await.expect("read").is_some());
    assert_eq!(record.senders[0].last_count, 7, "counts survive the floor");
    let controls = store.read_controls(&log.controls(0, 7)).await.expect("read").entries;
    assert_eq!(outline(&controls), [(1, true), (4, true)]);
    opened.close().await;
}

async fn an_ended_log_leaves_nothing(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let mut other = found(store, 2, LogType::Group, device(1)).await;
    for log in [&mut log, &mut other] {
        let mut part = log.write(&[Draft::of(device(1), b"a"), Draft::of(device(2), b"b")]);
        reserve(store, log.key, &[2]).await;
        part.members.push(MemberChange::Joined { device: device(2), seq: 3, at: NOON });
        part.members.push(MemberChange::Revoked { device: device(3), seq: 3 });
        part.acks.push((device(2), AckSet::up_to(2)));
        assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    }
    let mut part = log.part();
    part.ended = true;
    let mut stale = part.clone();
    stale.expected_seq = 1;
    assert_eq!(commit(store, stale).await, Ok(CommitResult::Stale));
    assert_eq!(commit(store, part.clone()).await, Ok(CommitResult::Committed));
    assert_eq!(commit(store, part).await, Ok(CommitResult::Stale), "it is gone");
    assert_eq!(store.find_log(log.id).await, Ok(None));
    assert!(store.load(&[log.key]).await.expect("loaded")[0].is_none());
    assert!(store.read_page(&log.page(device(2), 0)).await.expect("read").is_empty());
    assert!(store.read_controls(&log.controls(0, 9)).await.expect("read").entries.is_empty());
    assert_eq!(store.members(log.key).await, Ok(None));
    assert_eq!(store.chain_at(log.key, 1).await, Ok(None));
    let left: Vec<LogKey> =
        store.memberships(device(2)).await.expect("read").iter().map(|log| log.key).collect();
    assert_eq!(left, [other.key]);
    let page = store.read_page(&other.page(device(3), 0)).await.expect("read");
    assert_eq!(outline(&page), [(1, true), (2, true), (3, true)]);
    let stats = store.stats().await.expect("counted");
    assert_eq!((stats.groups, stats.entries, stats.undelivered, stats.memberships), (1, 3, 2, 2));
    opened.close().await;
}

async fn a_key_is_never_used_twice(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let log = found(store, 1, LogType::Group, device(1)).await;
    let mut part = log.part();
    part.ended = true;
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let new = new_log(1, LogType::Group, device(1), NOON);
    let again = store.found(&new, 1).await.expect("founded");
    assert!(matches!(again, FoundResult::Created(key) if key > log.key));
    opened.close().await;
}

async fn logs_are_due_up_to_the_last_entry_that_is_old_enough(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut due = found(store, 1, LogType::Group, device(1)).await;
    let at = |at| Draft::of(device(1), b"x").at(at);
    due.commit(store, &[at(NOON), at(NOON + 1), at(NOON + 5), at(NOON + 2)]).await;
    let chain = async |seq| store.chain_at(due.key, seq).await.expect("read").expect("kept");
    let mut vault = found(store, 2, LogType::Vault, device(1)).await;
    vault.commit(store, &[at(NOON)]).await;
    let ask = async |before| store.due_for_expiry(LogKey(0), before, 100).await.expect("read");
    assert_eq!(ask(NOON).await, (Vec::new(), None));
    let up_to = |seq, chain| (vec![DueLog { key: due.key, up_to: Position { seq, chain } }], None);
    assert_eq!(ask(NOON + 1).await, up_to(2, chain(2).await));
    assert_eq!(ask(NOON + 2).await, up_to(3, chain(3).await));
    assert_eq!(ask(NOON + 5).await, up_to(3, chain(3).await), "never past a younger one");
    assert_eq!(ask(NOON + 6).await, up_to(5, chain(5).await));
    let mut part = due.part();
    part.floor = Some(Position { seq: 3, chain: chain(3).await });
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    assert_eq!(ask(NOON + 5).await, (Vec::new(), None), "what is left is younger");
    let mut part = due.part();
    part.floor = Some(due.head);
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    assert_eq!(ask(NOON + 9).await, (Vec::new(), None), "nothing is left");
    opened.close().await;
}

async fn due_logs_are_looked_for_in_steps(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut keys = Vec::new();
    for seed in 0..5 {
        keys.push(found(store, seed, LogType::Group, device(1)).await.key);
    }
    let step = async |after| {
        let (due, last) = store.due_for_expiry(after, NOON + 1, 2).await.expect("read");
        (due.iter().map(|log| log.key).collect::<Vec<_>>(), last)
    };
    assert_eq!(step(LogKey(0)).await, (keys[..2].to_vec(), Some(keys[1])));
    assert_eq!(step(keys[1]).await, (keys[2..4].to_vec(), Some(keys[3])));
    assert_eq!(step(keys[3]).await, (keys[4..].to_vec(), None));
    assert_eq!(step(keys[4]).await, (Vec::new(), None));
    opened.close().await;
}

async fn a_long_log_comes_due_in_steps(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    while log.head.seq < DUE_ENTRIES_MAX + 500 {
        let drafts: Vec<Draft> = (0..500).map(|_| Draft::of(device(1), b"x")).collect();
        log.commit(store, &drafts).await;
    }
    let mut floors = Vec::new();
    loop {
        let (due, _) = store.due_for_expiry(LogKey(0), NOON + 1, 9).await.expect("read");
        let Some(due) = due.first() else { break };
        let mut part = log.part();
        part.floor = Some(due.up_to);
        assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
        floors.push(due.up_to.seq);
    }
    assert_eq!(floors, [DUE_ENTRIES_MAX, log.head.seq]);
    assert_eq!(log.load(store).await.floor, log.head);
    opened.close().await;
}

async fn idle_groups_are_found_and_vaults_are_never_idle(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let idle = found(store, 1, LogType::Group, device(1)).await;
    let mut busy = found(store, 2, LogType::Group, device(1)).await;
    let also = found(store, 3, LogType::Group, device(1)).await;
    found(store, 4, LogType::Vault, device(1)).await;
    busy.commit(store, &[Draft::of(device(1), b"x").at(NOON + 9)]).await;
    assert_eq!(store.idle_groups(NOON, 10).await, Ok(Vec::new()));
    assert_eq!(store.idle_groups(NOON + 1, 10).await, Ok(vec![idle.key, also.key]));
    assert_eq!(store.idle_groups(NOON + 1, 1).await, Ok(vec![idle.key]));
    assert_eq!(store.idle_groups(NOON + 10, 10).await, Ok(vec![idle.key, busy.key, also.key]));
    opened.close().await;
}

async fn a_sweep_is_bounded_and_spares_what_is_young(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(100)).await;
    let mut part = log.write(&[Draft::of(device(100), b"x")]);
    for number in 0..7 {
        let reserved = store.reserve(log.key, device(number), 9, NOON + u64::from(number), NOON);
        assert_eq!(reserved.await, Ok(ReserveResult::Reserved));
        reserve(store, log.key, &[50 + number]).await;
        part.members.push(MemberChange::Joined { device: device(50 + number), seq: 2, at: NOON });
    }
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    // Numbers 0 to 4 are older than that; each takes with it a device on which nothing hangs.
    let mut gone = 0;
    for _ in 0..8 {
        let step = store.sweep(NOON + 5, 0, 0, 2).await.expect("swept");
        assert!(step <= 4, "at most two reservations and two devices");
        gone += step;
    }
    assert_eq!(gone, 10);
    let again = |number| store.reserve(log.key, device(number), 1, NOON, NOON - 1);
    assert_eq!(again(6).await, Ok(ReserveResult::Reserved), "a young one was its own");
    assert_eq!(log.load(store).await.members.len(), 8);
    opened.close().await;
}

async fn a_device_that_was_here_is_not_swept_as_idle(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    for number in 1..=3 {
        found(store, number.into(), LogType::Group, device(number)).await;
    }
    let now = NOON + 90 * DAY;
    store.touch_device(device(1), now).await.expect("noted");
    store.touch_device(device(2), NOON - DAY).await.expect("an older day is no news");
    store.touch_device(device(9), now).await.expect("no row is made for it");
    assert_eq!(store.sweep(0, NOON, 0, 10).await, Ok(0), "the same day is not before it");
    assert_eq!(store.sweep(0, NOON + DAY, 0, 10).await, Ok(2));
    assert_eq!(store.sweep(0, now, 0, 10).await, Ok(0));
    assert_eq!(store.sweep(0, now + DAY, 0, 10).await, Ok(1));
    for number in 1..=3 {
        let logs = store.memberships(device(number)).await.expect("read");
        assert_eq!(logs.len(), 1, "a membership is never lost by it");
    }
    opened.close().await;
}

async fn counts_are_of_everything_that_is_kept(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut group = found(store, 1, LogType::Group, device(1)).await;
    let mut vault = found(store, 2, LogType::Vault, device(1)).await;
    let reserved = store.reserve(group.key, device(7), 9, NOON, NOON).await;
    assert_eq!(reserved, Ok(ReserveResult::Reserved));
    let drafts =
        [Draft::of(device(1), b"a"), Draft::of(device(1), b"b"), Draft::of(device(1), b"c")];
    group.commit(store, &drafts).await;
    vault.commit(store, &drafts).await;
    free(store, &group, &[(2, 2)]).await;
    store.ready().await.expect("it can be written to");
    let expected = StoreStats { groups: 1, vaults: 1, memberships: 2, entries: 8, undelivered: 2 };
    assert_eq!(store.stats().await, Ok(expected));
    opened.close().await;
}
