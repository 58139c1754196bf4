//! Who is asked for the history, who is given it, and when that is over, with the time in hand.

use std::cell::RefCell;

use rusqlite::Connection;

use super::*;
use crate::engine::giving::tests::{LOG, device, with_newcomer};
use crate::store::outbox::Draft;
use crate::totals::payload::GroupSnapshot;

/// Longer than any pause.
const LONG: Duration = Duration::from_secs(3600);

/// The messages that wait to be sent, and to whom.
fn said(db: &Connection, log: &Log) -> Vec<(Payload, Vec<DeviceKey>)> {
    let all = RefCell::new(Vec::new());
    let note = |draft: &Draft| {
        if let Draft::Ledger { message, to, .. } = draft {
            let payload = Payload::decode(message).expect("a message");
            all.borrow_mut().push((payload, to.clone()));
        }
        false
    };
    outbox::any_unsettled(db, log.id, note).expect("an outbox");
    all.into_inner()
}

/// Whom this device has asked.
fn asked(db: &Connection, log: &Log) -> Vec<DeviceKey> {
    let questions = said(db, log).into_iter();
    let questions = questions.filter(|(it, _)| matches!(it, Payload::SnapshotRequest(_)));
    questions.flat_map(|(_, to)| to).collect()
}

/// Whom this device has given the history, and whether it was a part of it.
fn given(db: &Connection, log: &Log) -> Vec<(Vec<DeviceKey>, bool)> {
    let all = said(db, log).into_iter();
    all.filter_map(|(payload, to)| {
        let Payload::GroupSnapshot(it) = payload else { return None };
        Some((to, it.partial == Some(true)))
    })
    .collect()
}

fn takes(log: &mut Log, call: &mut Call<'_>, from: DeviceKey, payload: &Payload) {
    let message = payload.encode().expect("a message");
    log.take_ledger(call, from, 1, &message).expect("taken");
    log.see_to_history(call).expect("looked");
}

/// A part of the history of a group in which nothing was ever said.
fn empty_part(group: LogId) -> GroupSnapshot {
    let (part, group_id) = ("meta".to_owned(), group.to_uuid_text());
    GroupSnapshot { part, group_id, ..GroupSnapshot::default() }
}

/// Lets time pass until everybody was asked who is to be.
fn ask_all(log: &mut Log, call: &mut Call<'_>) {
    log.begin_history(call).expect("begun");
    for _ in 0..10 {
        log.see_to_history(call).expect("looked");
        call.now.at += LONG;
        call.now.ms += 3_600_000;
    }
    log.see_to_history(call).expect("looked");
}

#[test]
fn who_has_asked_everybody_waits_until_this_groups_whole_history_comes() {
    with_newcomer(|db, log, call, newcomer| {
        let anna = device(0).key();
        ask_all(log, call);
        assert_eq!(asked(db, log).len(), 3, "each once");
        assert!(log.deadline().is_none(), "it is at rest");
        assert!(log.wants_history && !log.has_whole_history(call.now));

        let question = Payload::SnapshotRequest(SnapshotRequest::new(newcomer, 1));
        takes(log, call, newcomer, &question);
        assert!(given(db, log).is_empty(), "it has nothing to give");
        let other = Payload::GroupSnapshot(empty_part(LogId([0x45; 16])));
        takes(log, call, anna, &other);
        assert!(log.wants_history, "that was the history of another group");
        let partial = GroupSnapshot { partial: Some(true), ..empty_part(LOG) };
        takes(log, call, anna, &Payload::GroupSnapshot(partial));
        assert!(log.wants_history, "she waits as well");

        takes(log, call, anna, &Payload::GroupSnapshot(empty_part(LOG)));
        assert!(!log.wants_history);
        assert!(given(db, log).is_empty(), "the rest may still come");
        call.now.at += PARTS_PAUSE;
        log.see_to_history(call).expect("looked");
        assert_eq!(given(db, log), [(vec![newcomer], false)]);
        assert!(log.deadline().is_none() && log.asking.owed.is_empty());
    });
}

#[test]
fn what_is_given_while_the_history_is_still_to_come_says_that_it_is_not_all() {
    with_newcomer(|db, log, call, newcomer| {
        ask_all(log, call);
        let ours = GroupSnapshot { group_name: Some("Trip".into()), ..empty_part(LOG) };
        let partial = GroupSnapshot { partial: Some(true), ..ours };
        takes(log, call, device(0).key(), &Payload::GroupSnapshot(partial));
        let question = Payload::SnapshotRequest(SnapshotRequest::new(newcomer, 1));
        for _ in 0..2 {
            takes(log, call, newcomer, &question);
        }
        assert_eq!(given(db, log), [(vec![newcomer], true)], "once a minute");
        assert_eq!(log.asking.owed, [newcomer], "and the rest later");
    });
}

#[test]
fn a_device_that_is_open_for_seconds_asks_each_member_once_and_in_its_time() {
    with_newcomer(|db, log, call, _| {
        let again = |log: &mut Log, call: &Call<'_>| {
            let row = logs::find(db, LOG).expect("read").expect("a log");
            let (membership, holders) = (log.membership.clone(), log.holders.clone());
            *log = Log::load(db, row).expect("loaded");
            (log.membership, log.holders) = (membership, holders);
            log.subscription = Subscription::Drained;
            log.see_to_history(call).expect("looked");
        };
        log.begin_history(call).expect("begun");
        again(log, call);
        assert_eq!(asked(db, log).len(), 1);
        for _ in 0..5 {
            again(log, call);
        }
        assert_eq!(asked(db, log).len(), 1, "its time to answer is not over");
        for _ in 0..10 {
            call.now.at += LONG;
            call.now.ms += 3_600_000;
            again(log, call);
        }
        let mut all = asked(db, log);
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!((all.len(), count), (3, 3), "everybody, and nobody twice");
    });
}
