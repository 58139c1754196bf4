//! Commits: compare-and-set, atomicity, and what they leave behind.

use std::sync::Arc;
use std::time::Duration;

use sealwire_actors::ports::{
    CommitResult, LogCommit, LogKey, MemberChange, Position, SenderRecord, StoreError,
};
use sealwire_protocol::digest::{chain_start, entry_digest};
use sealwire_protocol::{AckSet, Digest, LogType};

use tokio::time::timeout;

use super::on_every_store;
use super::scribe::{Draft, NOON, commit, device, found, outline, plain, reserve};
use crate::support::databases::Database;

on_every_store! {
    what_was_committed_is_there_after_reopening
    a_stale_part_loses_its_own_entries_and_nobody_elses
    a_raised_head_is_seen_by_every_later_part
    one_of_two_commits_at_the_same_head_wins
    a_log_that_is_not_there_is_stale
    seqs_that_are_not_contiguous_are_refused
    one_refused_part_undoes_the_whole_batch
    numbers_that_no_database_holds_are_refused
    an_entry_is_found_by_its_sender_and_count
    the_chain_at_a_kept_entry_is_known_and_at_zero_never
    a_part_without_entries_changes_only_what_it_says
    acks_are_kept_whole_and_only_for_members
    a_full_batch_of_many_logs_is_one_commit
    sender_counts_survive_leaving
    a_revocation_ends_a_membership_and_is_loaded
    of_several_changes_of_one_member_the_last_counts
    a_commit_whose_caller_goes_away_is_whole_or_nothing
}

async fn what_was_committed_is_there_after_reopening(database: &Database) {
    let opened = database.open().await;
    let mut log = found(&*opened.store, 1, LogType::Group, device(1)).await;
    log.commit(&*opened.store, &[Draft::of(device(1), b"one"), Draft::of(device(2), b"two")]).await;
    let before = opened.store.read_page(&log.page(device(3), 0)).await.expect("read");
    let incarnation = opened.store.incarnation();
    assert_ne!(incarnation, 0);
    opened.close().await;

    let opened = database.open().await;
    assert_eq!(opened.store.incarnation(), incarnation);
    let after = opened.store.read_page(&log.page(device(3), 0)).await.expect("read");
    assert_eq!(outline(&after), [(1, true), (2, true), (3, true)]);
    assert!(before.iter().map(plain).eq(after.iter().map(plain)));
    assert_eq!(after[1].body.as_ref().map(AsRef::as_ref), Some(&b"one"[..]));
    let record = log.load(&*opened.store).await;
    assert_eq!(record.head, log.head);
    assert_eq!(record.floor, Position { seq: 0, chain: chain_start(log.id) });
    assert_eq!(record.senders, [log.sender(device(1)), log.sender(device(2))]);
    assert_eq!(record.join_key, Some(device(0xee)));
    assert_eq!(record.last_entry_at, NOON);
    opened.close().await;
}

async fn a_stale_part_loses_its_own_entries_and_nobody_elses(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut fresh = found(store, 1, LogType::Group, device(1)).await;
    let mut stale = found(store, 2, LogType::Group, device(1)).await;
    let mut changed = found(store, 3, LogType::Vault, device(1)).await;
    stale.head.seq = 7;
    changed.version = 1;
    let batch = [
        stale.write(&[Draft::of(device(1), b"never")]),
        fresh.write(&[Draft::of(device(1), b"kept")]),
        changed.write(&[Draft::of(device(1), b"never")]),
    ];
    let results = store.commit(&batch).await;
    use CommitResult::{Committed, Stale};
    assert_eq!(results, Ok(vec![Stale, Committed, Stale]));
    assert_eq!(fresh.load(store).await.head, fresh.head);
    for log in [stale, changed] {
        assert_eq!(log.load(store).await.head.seq, 1);
        assert_eq!(store.chain_at(log.key, 2).await, Ok(None));
        assert_eq!(store.chain_at(log.key, 8).await, Ok(None));
    }
    opened.close().await;
}

async fn a_raised_head_is_seen_by_every_later_part(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Vault, device(1)).await;
    let mut late = log.clone();
    log.commit(store, &[Draft::of(device(1), b"first")]).await;
    let part = late.write(&[Draft::of(device(1), b"second")]);
    assert_eq!(commit(store, part).await, Ok(CommitResult::Stale));
    log.commit(store, &[Draft::of(device(1), b"second"), Draft::of(device(1), b"third")]).await;
    assert_eq!(log.load(store).await.head.seq, 4);
    opened.close().await;
}

async fn one_of_two_commits_at_the_same_head_wins(database: &Database) {
    let opened = database.open().await;
    let log = found(&*opened.store, 1, LogType::Group, device(1)).await;
    let mut tasks = Vec::new();
    for number in 0..8 {
        let store = Arc::clone(&opened.store);
        let mut log = log.clone();
        tasks.push(tokio::spawn(async move {
            commit(&*store, log.write(&[Draft::of(device(1), &[number])])).await
        }));
    }
    let mut committed = 0;
    for task in tasks {
        committed += usize::from(task.await.expect("no panic") == Ok(CommitResult::Committed));
    }
    assert_eq!(committed, 1);
    assert_eq!(log.load(&*opened.store).await.head.seq, 2);
    opened.close().await;
}

async fn a_log_that_is_not_there_is_stale(database: &Database) {
    let opened = database.open().await;
    let part = LogCommit::new(LogKey(404), 0, 0);
    assert_eq!(commit(&*opened.store, part).await, Ok(CommitResult::Stale));
    assert_eq!(opened.store.load(&[LogKey(404)]).await.expect("loaded").len(), 1);
    assert!(opened.store.load(&[LogKey(404)]).await.expect("loaded")[0].is_none());
    assert!(opened.store.commit(&[]).await.expect("nothing to do").is_empty());
    opened.close().await;
}

async fn seqs_that_are_not_contiguous_are_refused(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let start = log.clone();
    let whole = log.write(&[Draft::of(device(1), b"a"), Draft::of(device(1), b"b")]);
    let mut gap = whole.clone();
    gap.entries.remove(0);
    assert_eq!(commit(store, gap).await, Err(StoreError::Refused));
    let mut twice = whole.clone();
    twice.entries[1].seq = 2;
    assert_eq!(commit(store, twice).await, Err(StoreError::Refused));
    assert_eq!(start.load(store).await.head, start.head);
    assert_eq!(commit(store, whole).await, Ok(CommitResult::Committed));
    opened.close().await;
}

async fn one_refused_part_undoes_the_whole_batch(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut innocent = found(store, 1, LogType::Group, device(1)).await;
    let mut culprit = found(store, 2, LogType::Group, device(1)).await;
    let start = innocent.clone();
    let first = innocent.write(&[Draft::of(device(1), b"kept later")]);
    let mut second = culprit.write(&[Draft::of(device(1), b"bad")]);
    // The founding entry has this slot and count already.
    second.entries[0].count = 1;
    let batch = [first.clone(), second];
    assert_eq!(store.commit(&batch).await, Err(StoreError::Refused));
    assert_eq!(start.load(store).await.head, start.head);
    assert_eq!(store.chain_at(start.key, 2).await, Ok(None));
    assert_eq!(commit(store, first).await, Ok(CommitResult::Committed), "the half without it");
    opened.close().await;
}

async fn numbers_that_no_database_holds_are_refused(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let part = log.clone().write(&[Draft::of(device(1), b"far future").at(u64::MAX)]);
    assert_eq!(commit(store, part).await, Err(StoreError::Refused));
    let mut part = log.clone().write(&[Draft::of(device(1), b"many")]);
    part.entries[0].count = u64::MAX;
    assert_eq!(commit(store, part).await, Err(StoreError::Refused));
    log.commit(store, &[Draft::of(device(1), b"fine")]).await;
    opened.close().await;
}

async fn an_entry_is_found_by_its_sender_and_count(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let mut part = log.write(&[
        Draft::of(device(2), b"a"),
        Draft::of(device(1), b"b"),
        Draft::of(device(2), b"c"),
        Draft::of(device(3), b"no count"),
    ]);
    part.entries[3].count = 0;
    part.senders.retain(|sender| sender.device != device(3));
    part.senders.push(SenderRecord {
        slot: 3,
        device: device(3),
        last_count: 0,
        last_digest: Digest::ZERO,
    });
    let digests: Vec<Digest> =
        part.entries.iter().map(|entry| entry_digest(&entry.header)).collect();
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let find = |sender, count| store.find_entry(log.key, sender, count);
    assert_eq!(find(device(2), 1).await, Ok(Some((2, digests[0]))));
    assert_eq!(find(device(2), 2).await, Ok(Some((4, digests[2]))));
    assert_eq!(find(device(1), 2).await, Ok(Some((3, digests[1]))));
    assert_eq!(find(device(2), 3).await, Ok(None));
    assert_eq!(find(device(3), 0).await, Ok(None), "0 is no count");
    assert_eq!(find(device(9), 1).await, Ok(None));
    assert_eq!(store.find_entry(LogKey(404), device(1), 1).await, Ok(None));
    opened.close().await;
}

async fn the_chain_at_a_kept_entry_is_known_and_at_zero_never(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Vault, device(1)).await;
    let first = log.head;
    log.commit(store, &[Draft::of(device(1), b"a")]).await;
    assert_eq!(store.chain_at(log.key, 0).await, Ok(None));
    assert_eq!(store.chain_at(log.key, 1).await, Ok(Some(first.chain)));
    assert_eq!(store.chain_at(log.key, 2).await, Ok(Some(log.head.chain)));
    assert_eq!(store.chain_at(log.key, 3).await, Ok(None));
    assert_eq!(store.chain_at(log.key, u64::MAX).await, Ok(None));
    opened.close().await;
}

async fn a_part_without_entries_changes_only_what_it_says(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let log = found(store, 1, LogType::Group, device(1)).await;
    let mut part = log.part();
    part.guard_seq = Some(1);
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let mut part = log.part();
    part.join_key = Some(None);
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let record = log.load(store).await;
    assert_eq!((record.head, record.guard_seq, record.join_key), (log.head, 1, None));
    assert_eq!(record.version, 0, "a commit does not raise the version");
    let mut part = log.part();
    part.join_key = Some(Some(device(0xdd)));
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let brief = store.find_log(log.id).await.expect("found").expect("there");
    assert_eq!((brief.key, brief.join_key), (log.key, Some(device(0xdd))));
    assert_eq!((brief.log_type, brief.head), (LogType::Group, log.head));
    opened.close().await;
}

async fn acks_are_kept_whole_and_only_for_members(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let mut part = log.write(&[Draft::of(device(2), b"join").control()]);
    reserve(store, log.key, &[2]).await;
    part.members.push(MemberChange::Joined { device: device(2), seq: 2, at: NOON + 5 });
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let mut acked = AckSet::up_to(3);
    acked.insert(5, 6);
    acked.insert(9, 200);
    let mut part = log.part();
    part.acks = vec![(device(2), acked.clone()), (device(8), AckSet::up_to(1))];
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let record = log.load(store).await;
    assert_eq!(record.members.len(), 2, "an ack makes no member");
    assert_eq!(record.members[0].acked, AckSet::new());
    assert_eq!(record.members[1].acked, acked);
    assert_eq!(record.members[1].member.device, device(2));
    assert_eq!(
        (record.members[1].member.joined_seq, record.members[1].member.joined_at),
        (2, NOON + 5)
    );

    let mut part = log.write(&[Draft::of(device(2), b"leave").control()]);
    part.members.push(MemberChange::Left { device: device(2) });
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let mut part = log.write(&[Draft::of(device(2), b"again").control()]);
    reserve(store, log.key, &[2]).await;
    part.members.push(MemberChange::Joined { device: device(2), seq: 4, at: NOON });
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let record = log.load(store).await;
    assert_eq!(record.members[1].acked, AckSet::new(), "who comes again has acked nothing");
    opened.close().await;
}

async fn a_full_batch_of_many_logs_is_one_commit(database: &Database) {
    const LOGS: u64 = 250;
    let opened = database.open().await;
    let store = &*opened.store;
    let mut logs = Vec::new();
    for seed in 0..LOGS {
        logs.push(found(store, seed, LogType::Vault, device(1)).await);
    }
    for round in 0..2_u8 {
        let batch: Vec<LogCommit> = logs
            .iter_mut()
            .map(|log| {
                let drafts = [Draft::of(device(1), &[round; 300]), Draft::of(device(2), &[round])];
                log.write(&drafts)
            })
            .collect();
        let results = store.commit(&batch).await.expect("committed");
        assert_eq!(results, vec![CommitResult::Committed; logs.len()]);
    }
    let keys: Vec<LogKey> = logs.iter().rev().map(|log| log.key).collect();
    let records = store.load(&keys).await.expect("loaded");
    for (log, record) in logs.iter().rev().zip(records) {
        let record = record.expect("there");
        assert_eq!((record.key, record.head), (log.key, log.head));
        assert_eq!(record.senders.len(), 2);
    }
    opened.close().await;
}

async fn sender_counts_survive_leaving(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    log.commit(store, &[Draft::of(device(2), b"a"), Draft::of(device(2), b"b")]).await;
    let mut part = log.write(&[Draft::of(device(2), b"leave").control()]);
    part.members.push(MemberChange::Left { device: device(2) });
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let record = log.load(store).await;
    let sender = record.senders.iter().find(|sender| sender.device == device(2)).expect("kept");
    assert_eq!(sender.last_count, 3);
    assert_eq!(record.members.len(), 1);
    opened.close().await;
}

async fn a_revocation_ends_a_membership_and_is_loaded(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let mut part = log.write(&[Draft::of(device(2), b"join").control()]);
    reserve(store, log.key, &[2]).await;
    part.members.push(MemberChange::Joined { device: device(2), seq: 2, at: NOON });
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let mut part = log.write(&[Draft::of(device(1), b"revoke").control()]);
    part.members.push(MemberChange::Revoked { device: device(2), seq: 3 });
    part.members.push(MemberChange::Revoked { device: device(9), seq: 3 });
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let record = log.load(store).await;
    assert_eq!(record.revoked, [(device(2), 3), (device(9), 3)]);
    assert_eq!(record.members.len(), 1);
    assert_eq!(store.memberships(device(2)).await, Ok(Vec::new()));
    opened.close().await;
}

async fn of_several_changes_of_one_member_the_last_counts(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let mut part = log.write(&[
        Draft::of(device(2), b"join").control(),
        Draft::of(device(3), b"join").control(),
        Draft::of(device(2), b"leave").control(),
    ]);
    reserve(store, log.key, &[2, 3]).await;
    part.members = vec![
        MemberChange::Joined { device: device(2), seq: 2, at: NOON },
        MemberChange::Joined { device: device(3), seq: 3, at: NOON },
        MemberChange::Left { device: device(2) },
        MemberChange::Left { device: device(1) },
        MemberChange::Joined { device: device(1), seq: 4, at: NOON + 1 },
    ];
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let members = store.members(log.key).await.expect("read").expect("there").1;
    let members: Vec<_> = members.iter().map(|member| (member.device, member.joined_seq)).collect();
    assert_eq!(members, [(device(3), 3), (device(1), 4)]);
    opened.close().await;
}

async fn a_commit_whose_caller_goes_away_is_whole_or_nothing(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let mut dropped = 0;
    for round in 0..60_u64 {
        let before = log.clone();
        let part = log.write(&[Draft::of(device(1), b"a"), Draft::of(device(1), b"b")]);
        let patience = Duration::from_micros(round * 30);
        dropped += u64::from(timeout(patience, store.commit(&[part])).await.is_err());
        // The store is asked again until it says, since what was dropped may still be under way.
        let probe = before.clone().write(&[Draft::of(device(1), b"c")]);
        log = match commit(store, probe).await.expect("answered") {
            CommitResult::Stale => log,
            CommitResult::Committed => {
                let mut other = before;
                other.write(&[Draft::of(device(1), b"c")]);
                other
            }
        };
        let record = log.load(store).await;
        assert_eq!((record.head, &record.senders[..]), (log.head, &[log.sender(device(1))][..]));
    }
    let page = store.read_page(&log.page(device(2), 0)).await.expect("read");
    assert!(outline(&page).into_iter().eq((1..=log.head.seq).map(|seq| (seq, true))));
    // A store in memory answers at once.
    assert!(dropped > 0 || database.is_memory());
    opened.close().await;
}
