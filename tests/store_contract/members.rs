//! Founding, reserving, memberships: who is in which log, and in how many.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sealwire_actors::ports::{
    CommitResult, FoundResult, LogCommit, LogKey, MemberChange, ReserveResult, Store,
};
use sealwire_protocol::{LogId, LogType};

use super::on_every_store;
use super::scribe::{Draft, MANY, NOON, Scribe, commit, device, found, new_log, reserve};
use crate::support::databases::Database;

on_every_store! {
    founding_twice_gives_the_same_log
    one_of_many_that_found_the_same_log_creates_it
    a_founder_is_the_first_member_and_sender
    groups_are_limited_and_vaults_are_not
    founding_never_exceeds_the_limit_however_many_try_at_once
    reservations_never_exceed_the_limit_however_many_try_at_once
    a_reservation_counts_until_it_is_swept
    a_reservation_that_is_too_old_does_not_count
    a_reservation_is_no_membership_until_it_joins
    nobody_joins_a_group_without_a_place_and_a_vault_keeps_none
    a_place_is_taken_up_once
    a_place_that_went_to_another_group_admits_nobody
    a_device_that_leaves_and_joins_in_one_commit_keeps_its_place
    however_they_meet_nobody_is_in_more_groups_than_allowed
    reserving_tells_members_revoked_devices_and_missing_logs_apart
    memberships_are_listed_by_key
    a_subscription_begins_at_head_and_floor
    a_totals_group_has_no_sender_for_its_first_entry
    the_totals_groups_of_a_device_come_with_all_their_members
    a_challenge_is_claimed_once_however_many_try
}

const MINUTE: u64 = 60_000;

async fn joins(store: &dyn Store, log: &mut Scribe, number: u8) {
    let part = join(log, number);
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
}

fn join(log: &mut Scribe, number: u8) -> LogCommit {
    let mut part = log.write(&[Draft::of(device(number), b"join").control()]);
    let seq = part.entries[0].seq;
    part.members.push(MemberChange::Joined { device: device(number), seq, at: NOON });
    part
}

fn leave(log: &mut Scribe, number: u8) -> LogCommit {
    let mut part = log.write(&[Draft::of(device(number), b"leave").control()]);
    part.members.push(MemberChange::Left { device: device(number) });
    part
}

async fn founding_twice_gives_the_same_log(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let new = new_log(1, LogType::Group, device(1), NOON);
    let FoundResult::Created(key) = store.found(&new, 1).await.expect("founded") else {
        panic!("it was not there");
    };
    assert_eq!(store.found(&new, 1).await, Ok(FoundResult::Exists(key)), "even at the limit");
    let brief = store.find_log(new.id).await.expect("read").expect("there");
    assert_eq!((brief.key, brief.id, brief.head.seq), (key, new.id, 1));
    assert_eq!(store.find_log(LogId([9; 16])).await, Ok(None));
    opened.close().await;
}

async fn one_of_many_that_found_the_same_log_creates_it(database: &Database) {
    let opened = database.open().await;
    let new = new_log(1, LogType::Vault, device(1), NOON);
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let (store, new) = (Arc::clone(&opened.store), new.clone());
        tasks.push(tokio::spawn(async move { store.found(&new, MANY).await.expect("founded") }));
    }
    let (mut created, mut keys) = (0, Vec::new());
    for task in tasks {
        match task.await.expect("no panic") {
            FoundResult::Created(key) => {
                created += 1;
                keys.push(key);
            }
            FoundResult::Exists(key) => keys.push(key),
            FoundResult::LimitReached => panic!("vaults have no limit"),
        }
    }
    keys.dedup();
    assert_eq!((created, keys.len()), (1, 1));
    opened.close().await;
}

async fn a_founder_is_the_first_member_and_sender(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let new = new_log(1, LogType::Group, device(1), NOON + 3);
    let FoundResult::Created(key) = store.found(&new, MANY).await.expect("founded") else {
        panic!("it was not there");
    };
    let (head, members) = store.members(key).await.expect("read").expect("there");
    assert_eq!((head.seq, head.chain), (1, new.entry.chain));
    assert_eq!(members.len(), 1);
    let founder = &members[0];
    assert_eq!((founder.device, founder.joined_seq, founder.joined_at), (device(1), 1, NOON + 3));
    let record = store.load(&[key]).await.expect("loaded").remove(0).expect("there");
    assert_eq!(record.senders.len(), 1);
    let sender = record.senders[0];
    assert_eq!((sender.slot, sender.device, sender.last_count), (1, device(1), 1));
    assert_eq!(sender.last_digest, new.digest);
    assert_eq!(record.last_entry_at, NOON + 3);
    assert!(record.live.is_empty(), "a control entry waits for nobody");
    assert_eq!(store.members(LogKey(404)).await.expect("read"), None);
    opened.close().await;
}

async fn groups_are_limited_and_vaults_are_not(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    for seed in 0..3 {
        let vault = new_log(seed, LogType::Vault, device(1), NOON);
        assert!(matches!(store.found(&vault, 1).await, Ok(FoundResult::Created(_))));
    }
    let first = new_log(10, LogType::Group, device(1), NOON);
    let second = new_log(11, LogType::Group, device(1), NOON);
    assert!(matches!(store.found(&first, 1).await, Ok(FoundResult::Created(_))));
    assert_eq!(store.found(&second, 1).await, Ok(FoundResult::LimitReached));
    assert_eq!(store.find_log(second.id).await, Ok(None), "nothing of it is left");
    assert!(matches!(store.found(&second, 2).await, Ok(FoundResult::Created(_))));
    let vault = new_log(12, LogType::Vault, device(1), NOON);
    assert!(matches!(store.found(&vault, 1).await, Ok(FoundResult::Created(_))));
    opened.close().await;
}

async fn founding_never_exceeds_the_limit_however_many_try_at_once(database: &Database) {
    let opened = database.open().await;
    let mut tasks = Vec::new();
    for seed in 0..12 {
        let store = Arc::clone(&opened.store);
        let new = new_log(seed, LogType::Group, device(1), NOON);
        tasks.push(tokio::spawn(async move { store.found(&new, 6).await.expect("answered") }));
    }
    let mut created = 0;
    for task in tasks {
        created += usize::from(matches!(task.await, Ok(FoundResult::Created(_))));
    }
    assert_eq!(created, 6);
    assert_eq!(opened.store.memberships(device(1)).await.expect("read").len(), 6);
    opened.close().await;
}

async fn reservations_never_exceed_the_limit_however_many_try_at_once(database: &Database) {
    let opened = database.open().await;
    let mut logs = Vec::new();
    for seed in 0..12 {
        logs.push(found(&*opened.store, seed, LogType::Group, device(1)).await);
    }
    let mut tasks = Vec::new();
    for log in &logs {
        for number in [2, 3] {
            let (store, key) = (Arc::clone(&opened.store), log.key);
            tasks.push(tokio::spawn(async move {
                let since = NOON - MINUTE;
                let reserved = store.reserve(key, device(number), 6, NOON, since).await;
                (number, reserved.expect("answered"))
            }));
        }
    }
    let mut reserved = [0; 4];
    for task in tasks {
        let (number, outcome) = task.await.expect("no panic");
        reserved[usize::from(number)] += usize::from(outcome == ReserveResult::Reserved);
    }
    assert_eq!(reserved, [0, 0, 6, 6], "one device's places are not another's");
    opened.close().await;
}

async fn a_reservation_counts_until_it_is_swept(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let first = found(store, 1, LogType::Group, device(1)).await;
    let second = found(store, 2, LogType::Group, device(1)).await;
    let reserve = |key| store.reserve(key, device(2), 1, NOON, NOON - MINUTE);
    assert_eq!(reserve(first.key).await, Ok(ReserveResult::Reserved));
    assert_eq!(reserve(first.key).await, Ok(ReserveResult::Reserved), "its own place is no other");
    assert_eq!(reserve(second.key).await, Ok(ReserveResult::LimitReached));
    let own = new_log(3, LogType::Group, device(2), NOON);
    assert_eq!(store.found(&own, 1).await, Ok(FoundResult::LimitReached));
    assert_eq!(store.sweep(NOON, 0, 0, 100).await, Ok(0), "it is not older than that");
    assert_eq!(reserve(second.key).await, Ok(ReserveResult::LimitReached));
    // The reservation, and the device on which nothing hangs any more.
    assert_eq!(store.sweep(NOON + 1, 0, 0, 100).await, Ok(2));
    assert_eq!(reserve(second.key).await, Ok(ReserveResult::Reserved));
    opened.close().await;
}

async fn a_reservation_that_is_too_old_does_not_count(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let first = found(store, 1, LogType::Group, device(1)).await;
    let second = found(store, 2, LogType::Group, device(1)).await;
    let reserve = |key, now| store.reserve(key, device(2), 1, now, now - MINUTE);
    assert_eq!(reserve(first.key, NOON).await, Ok(ReserveResult::Reserved));
    assert_eq!(reserve(second.key, NOON + MINUTE).await, Ok(ReserveResult::LimitReached));
    assert_eq!(reserve(second.key, NOON + MINUTE + 1).await, Ok(ReserveResult::Reserved));
    opened.close().await;
}

async fn a_reservation_is_no_membership_until_it_joins(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let reserve = || store.reserve(log.key, device(2), 1, NOON, NOON);
    assert_eq!(reserve().await, Ok(ReserveResult::Reserved));
    assert_eq!(store.memberships(device(2)).await, Ok(Vec::new()));
    assert_eq!(store.subscription(log.key, device(2)).await, Ok(None));
    assert_eq!(log.load(store).await.members.len(), 1);
    assert_eq!(store.members(log.key).await.expect("read").expect("there").1.len(), 1);
    joins(store, &mut log, 2).await;
    assert_eq!(store.sweep(u64::MAX >> 1, 0, 0, 100).await, Ok(0), "a member is not swept");
    assert_eq!(store.memberships(device(2)).await.expect("read").len(), 1);
    let reserve = store.reserve(log.key, device(2), 1, NOON, NOON).await;
    assert_eq!(reserve, Ok(ReserveResult::AlreadyMember));
    opened.close().await;
}

async fn nobody_joins_a_group_without_a_place_and_a_vault_keeps_none(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut group = found(store, 1, LogType::Group, device(1)).await;
    let mut vault = found(store, 2, LogType::Vault, device(1)).await;
    let mut other = found(store, 3, LogType::Group, device(1)).await;
    reserve(store, other.key, &[3]).await;
    let before = group.clone();
    let batch = [join(&mut group, 2), join(&mut vault, 2), join(&mut other, 3)];
    use CommitResult::{Committed, Stale};
    assert_eq!(store.commit(&batch).await, Ok(vec![Stale, Committed, Committed]));
    let record = before.load(store).await;
    assert_eq!((record.head, record.members.len()), (before.head, 1), "nothing of it happened");
    // One place admits one device, and another one's admits nobody.
    group = before.clone();
    reserve(store, group.key, &[2]).await;
    let mut part = join(&mut group, 2);
    part.members.push(MemberChange::Joined { device: device(4), seq: 2, at: NOON });
    assert_eq!(commit(store, part).await, Ok(Stale));
    group = before;
    joins(store, &mut group, 2).await;
    opened.close().await;
}

async fn a_place_is_taken_up_once(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let mut other = found(store, 2, LogType::Group, device(1)).await;
    let take = |key| store.reserve(key, device(2), 1, NOON, NOON - MINUTE);
    // Two sessions reserve: it is one place. The device joins and leaves by the first, ...
    assert_eq!(take(log.key).await, Ok(ReserveResult::Reserved));
    assert_eq!(take(log.key).await, Ok(ReserveResult::Reserved));
    joins(store, &mut log, 2).await;
    assert_eq!(commit(store, leave(&mut log, 2)).await, Ok(CommitResult::Committed));
    assert_eq!(take(other.key).await, Ok(ReserveResult::Reserved));
    joins(store, &mut other, 2).await;
    // ... and then the second comes.
    let late = join(&mut log.clone(), 2);
    assert_eq!(commit(store, late).await, Ok(CommitResult::Stale));
    assert_eq!(store.memberships(device(2)).await.expect("read").len(), 1);
    opened.close().await;
}

async fn a_place_that_went_to_another_group_admits_nobody(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut first = found(store, 1, LogType::Group, device(1)).await;
    let mut second = found(store, 2, LogType::Group, device(1)).await;
    let take = |key, now| store.reserve(key, device(2), 1, now, now - MINUTE);
    assert_eq!(take(first.key, NOON).await, Ok(ReserveResult::Reserved));
    assert_eq!(take(second.key, NOON + MINUTE + 1).await, Ok(ReserveResult::Reserved));
    let late = join(&mut first.clone(), 2);
    assert_eq!(commit(store, late).await, Ok(CommitResult::Stale));
    joins(store, &mut second, 2).await;
    // What is refused takes nothing away.
    let third = found(store, 3, LogType::Group, device(1)).await;
    reserve(store, first.key, &[3]).await;
    let later = |key| store.reserve(key, device(3), 0, NOON + 2 * MINUTE, NOON + MINUTE);
    assert_eq!(later(third.key).await, Ok(ReserveResult::LimitReached));
    joins(store, &mut first, 3).await;
    opened.close().await;
}

async fn a_device_that_leaves_and_joins_in_one_commit_keeps_its_place(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let other = found(store, 2, LogType::Group, device(1)).await;
    reserve(store, log.key, &[2]).await;
    joins(store, &mut log, 2).await;
    let mut part = log.write(&[
        Draft::of(device(2), b"leave").control(),
        Draft::of(device(2), b"join").control(),
    ]);
    part.members = vec![
        MemberChange::Left { device: device(2) },
        MemberChange::Joined { device: device(2), seq: 4, at: NOON },
    ];
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let taken = store.reserve(other.key, device(2), 1, NOON, NOON).await;
    assert_eq!(taken, Ok(ReserveResult::LimitReached));
    opened.close().await;
}

/// Many at once reserve, join and leave for one device, each with what it knew a moment ago, and
/// reservations are old as soon as they are made. Whoever looks never sees too many memberships.
async fn however_they_meet_nobody_is_in_more_groups_than_allowed(database: &Database) {
    const GROUPS: u64 = 6;
    const ALLOWED: usize = 2;
    const ROUNDS: u64 = 40;
    let opened = database.open().await;
    let mut tasks = Vec::new();
    let joined = Arc::new(AtomicUsize::new(0));
    for seed in 0..GROUPS {
        let log = found(&*opened.store, seed, LogType::Group, device(1)).await;
        for session in 0..2 {
            let (store, joined) = (Arc::clone(&opened.store), Arc::clone(&joined));
            let mut log = log.clone();
            tasks.push(tokio::spawn(async move {
                for round in 0..ROUNDS {
                    let now = NOON + round * (1 + session);
                    let reserved = store.reserve(log.key, device(2), ALLOWED as u32, now, now);
                    let reserved = reserved.await.expect("answered");
                    log = log.known(&*store).await;
                    if reserved == ReserveResult::Reserved
                        && commit(&*store, join(&mut log, 2)).await == Ok(CommitResult::Committed)
                    {
                        joined.fetch_add(1, Ordering::SeqCst);
                        let logs = store.memberships(device(2)).await.expect("read");
                        assert!(logs.len() <= ALLOWED, "in {} groups", logs.len());
                    }
                    log = log.known(&*store).await;
                    let _ = commit(&*store, leave(&mut log, 2)).await;
                }
            }));
        }
    }
    for task in tasks {
        task.await.expect("never in too many groups");
    }
    assert!(joined.load(Ordering::SeqCst) > 0, "somebody came in");
    opened.close().await;
}

async fn reserving_tells_members_revoked_devices_and_missing_logs_apart(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let vault = found(store, 2, LogType::Vault, device(1)).await;
    let reserve = |key, number| store.reserve(key, device(number), 1, NOON, NOON);
    assert_eq!(reserve(log.key, 1).await, Ok(ReserveResult::AlreadyMember));
    assert_eq!(reserve(LogKey(404), 1).await, Ok(ReserveResult::NoSuchLog));
    assert_eq!(reserve(vault.key, 2).await, Ok(ReserveResult::NoSuchLog), "vaults enrol");
    let mut part = log.write(&[Draft::of(device(1), b"revoke").control()]);
    part.members.push(MemberChange::Revoked { device: device(3), seq: 2 });
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    assert_eq!(reserve(log.key, 3).await, Ok(ReserveResult::Revoked(2)));
    let mut part = log.part();
    part.ended = true;
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    assert_eq!(reserve(log.key, 3).await, Ok(ReserveResult::NoSuchLog));
    opened.close().await;
}

async fn memberships_are_listed_by_key(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut expected = Vec::new();
    for seed in 0..5 {
        let log_type = if seed % 2 == 0 { LogType::Group } else { LogType::Vault };
        let mut log = found(store, seed, log_type, device(1)).await;
        if seed != 2 {
            if log_type == LogType::Group {
                reserve(store, log.key, &[2]).await;
            }
            joins(store, &mut log, 2).await;
            expected.push((log.key, log.id, log_type, log.head));
        }
    }
    let listed = store.memberships(device(2)).await.expect("read");
    let listed: Vec<_> =
        listed.iter().map(|log| (log.key, log.id, log.log_type, log.head)).collect();
    assert_eq!(listed, expected);
    assert_eq!(store.memberships(device(9)).await, Ok(Vec::new()));
    opened.close().await;
}

async fn a_subscription_begins_at_head_and_floor(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    log.commit(store, &[Draft::of(device(1), b"a")]).await;
    let floor = log.head;
    reserve(store, log.key, &[2]).await;
    joins(store, &mut log, 2).await;
    let mut part = log.part();
    part.floor = Some(floor);
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let subscription =
        store.subscription(log.key, device(2)).await.expect("read").expect("a member");
    assert_eq!((subscription.head, subscription.floor), (log.head, floor));
    assert_eq!(subscription.joined_seq, 3);
    assert_eq!(store.subscription(log.key, device(9)).await, Ok(None));
    assert_eq!(store.subscription(LogKey(404), device(2)).await, Ok(None));
    opened.close().await;
}

async fn a_totals_group_has_no_sender_for_its_first_entry(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut new = new_log(1, LogType::Group, device(1), NOON);
    new.entry.sender_slot = 0;
    new.entry.count = 0;
    let FoundResult::Created(key) = store.found(&new, MANY).await.expect("founded") else {
        panic!("it was not there");
    };
    let record = store.load(&[key]).await.expect("loaded").remove(0).expect("there");
    assert!(record.senders.is_empty());
    assert_eq!(record.members.len(), 1);
    opened.close().await;
}

async fn the_totals_groups_of_a_device_come_with_all_their_members(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    assert_eq!(store.totals_groups(device(1)).await, Ok(Vec::new()));
    let mut expected = Vec::new();
    for number in 1..=3 {
        let mut new = new_log(number, LogType::Group, device(1), NOON + number);
        // The second is a native group.
        if number != 2 {
            new.id = LogId::totals([number as u8; 16]);
        }
        let Ok(FoundResult::Created(key)) = store.found(&new, MANY).await else {
            panic!("not founded");
        };
        let mut log = Scribe::of(key, &new);
        reserve(store, key, &[2]).await;
        joins(store, &mut log, 2).await;
        if number != 2 {
            expected.push((new.id, NOON + number, vec![device(1), device(2)]));
        }
    }
    for member in [1, 2] {
        let groups = store.totals_groups(device(member)).await.expect("read");
        let seen: Vec<_> = groups
            .iter()
            .map(|group| {
                let members = group.members.iter().map(|member| member.device).collect();
                (group.id, group.created_at, members)
            })
            .collect();
        assert_eq!(seen, expected);
    }
    assert_eq!(store.totals_groups(device(3)).await, Ok(Vec::new()));
    opened.close().await;
}

async fn a_challenge_is_claimed_once_however_many_try(database: &Database) {
    let opened = database.open().await;
    let claims = |numbers: &[u8]| numbers.iter().map(|it| ([*it; 32], NOON)).collect::<Vec<_>>();
    let mut tasks = Vec::new();
    for _ in 0..8 {
        let (store, claims) = (Arc::clone(&opened.store), claims(&[1, 2]));
        tasks.push(tokio::spawn(async move { store.claim_challenges(&claims).await }));
    }
    let mut granted = 0;
    for task in tasks {
        let answer = task.await.expect("no panic").expect("claimed");
        assert_eq!(answer[0], answer[1], "both or none");
        granted += usize::from(answer[0]);
    }
    assert_eq!(granted, 1);
    let store = &*opened.store;
    let answer = store.claim_challenges(&claims(&[3, 1, 3, 4])).await;
    assert_eq!(answer, Ok(vec![true, false, false, true]));
    // They are remembered until they expire, and no longer.
    assert_eq!(store.sweep(0, 0, NOON, 100).await, Ok(0));
    assert_eq!(store.claim_challenges(&claims(&[4])).await, Ok(vec![false]));
    assert_eq!(store.sweep(0, 0, NOON + 1, 100).await, Ok(4));
    assert_eq!(store.claim_challenges(&claims(&[4])).await, Ok(vec![true]));
    opened.close().await;
}
