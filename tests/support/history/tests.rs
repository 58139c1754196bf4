//! The judge is judged: a whole history passes, and each way to break it is objected to.

use sealwire_protocol::digest::sha256;

use super::*;

const LOG: LogId = LogId([7; 16]);

fn device(number: u8) -> DeviceKey {
    DeviceKey([number; 32])
}

fn entry(sender: u8, count: u64) -> Digest {
    sha256(&[&[sender][..], &count.to_be_bytes()].concat())
}

/// Two devices write three entries; both read them; the relay names the head behind them.
fn whole() -> Vec<(u8, Event)> {
    let order = vec![entry(1, 1), entry(2, 1), entry(1, 2)];
    let read = |seq: u64, digest| Event::Read { seq, digest };
    vec![
        (1, Event::Sent { digest: order[0], count: 1 }),
        (1, Event::Appended { digest: order[0], seq: 1 }),
        (2, Event::Subscribed { after: 0 }),
        (2, read(1, order[0])),
        (2, Event::Sent { digest: order[1], count: 1 }),
        (2, Event::Appended { digest: order[1], seq: 2 }),
        (1, Event::Sent { digest: order[2], count: 2 }),
        (1, Event::Appended { digest: order[2], seq: 3 }),
        (2, read(2, order[1])),
        (2, Event::Told { head: head(&order) }),
        (2, Event::Subscribed { after: 2 }),
        (2, read(3, order[2])),
        (1, Event::End { order: order.clone() }),
        (2, Event::End { order }),
    ]
}

fn head(order: &[Digest]) -> Head {
    let chain = order
        .iter()
        .zip(1..)
        .fold(chain_start(LOG), |chain, (digest, seq)| chain_next(chain, seq, *digest));
    Head { incarnation: 9, seq: order.len() as u64, chain }
}

fn judge(events: Vec<(u8, Event)>) -> Vec<Objection> {
    let records = (0..)
        .zip(events)
        .map(|(at, (number, event))| Record { at, device: device(number), log: LOG, event })
        .collect();
    History::new(records).check()
}

/// The history after `change`, judged.
fn judge_after(change: impl FnOnce(&mut Vec<(u8, Event)>)) -> Vec<Objection> {
    let mut events = whole();
    change(&mut events);
    judge(events)
}

/// Replaces what everybody reads in the end.
fn end_with(events: &mut [(u8, Event)], order: &[Digest]) {
    for (_, event) in events {
        if let Event::End { order: end } = event {
            *end = order.to_vec();
        }
    }
}

#[test]
fn a_whole_history_passes() {
    assert_eq!(judge(whole()), []);
    let records = whole().into_iter().map(|(number, event)| Record {
        at: 0,
        device: device(number),
        log: LOG,
        event,
    });
    let history = History::new(records.collect());
    assert_eq!((history.appended(), history.reads()), (3, 3));
}

#[test]
fn an_entry_that_nobody_was_told_of_may_be_there_once_or_not_at_all() {
    let unanswered = |events: &mut Vec<(u8, Event)>| {
        events.push((2, Event::Sent { digest: entry(2, 2), count: 2 }));
    };
    assert_eq!(judge_after(unanswered), []);
    let there = judge_after(|events| {
        unanswered(events);
        end_with(events, &[entry(1, 1), entry(2, 1), entry(1, 2), entry(2, 2)]);
    });
    assert_eq!(there, []);
}

#[test]
fn an_appended_entry_that_is_gone_is_objected_to() {
    let objections = judge_after(|events| end_with(events, &[entry(1, 1), entry(2, 1)]));
    assert!(objections.contains(&Objection::Lost { log: LOG, seq: 3 }), "{objections:?}");
    assert!(objections.contains(&Objection::TakenBack { log: LOG, seq: 3 }), "{objections:?}");
}

#[test]
fn an_entry_at_two_places_is_objected_to() {
    let order = [entry(1, 1), entry(2, 1), entry(1, 2), entry(2, 1)];
    let objections = judge_after(|events| end_with(events, &order));
    assert_eq!(objections, [Objection::Twice { log: LOG, seq: 4 }]);
}

#[test]
fn an_entry_that_is_answered_with_two_seqs_is_objected_to() {
    let objections = judge_after(|events| {
        events.push((1, Event::Appended { digest: entry(1, 1), seq: 2 }));
    });
    assert!(objections.contains(&Objection::Retold { log: LOG, first: 1, then: 2 }));
}

#[test]
fn members_that_read_different_orders_are_objected_to() {
    let objections = judge_after(|events| {
        if let Some((_, Event::End { order })) = events.last_mut() {
            order.swap(1, 2);
        }
    });
    assert_eq!(objections, [Objection::Disagree { log: LOG, seq: 2 }]);
    let objections = judge_after(|events| {
        if let Some((_, Event::End { order })) = events.last_mut() {
            order.pop();
        }
    });
    assert_eq!(objections, [Objection::Disagree { log: LOG, seq: 3 }]);
}

#[test]
fn a_sender_s_entries_in_another_order_are_objected_to() {
    let objections =
        judge_after(|events| end_with(events, &[entry(1, 2), entry(2, 1), entry(1, 1)]));
    assert!(objections.contains(&Objection::Shuffled { log: LOG, seq: 1 }), "{objections:?}");
}

#[test]
fn an_entry_that_nobody_sent_is_objected_to() {
    let objections = judge_after(|events| {
        end_with(events, &[entry(1, 1), entry(2, 1), entry(1, 2), entry(8, 1)]);
    });
    assert_eq!(objections, [Objection::Invented { log: LOG, seq: 4 }]);
}

#[test]
fn a_reader_s_gap_and_a_repetition_are_objected_to() {
    let gap = judge_after(|events| {
        events.retain(|(_, event)| !matches!(event, Event::Read { seq: 2, .. }));
        events.retain(|(_, event)| !matches!(event, Event::Subscribed { after: 2 }));
    });
    assert_eq!(gap, [Objection::Skipped { log: LOG, expected: 2, seq: 3 }]);
    let again = judge_after(|events| {
        events.insert(4, (2, Event::Read { seq: 1, digest: entry(1, 1) }));
    });
    assert_eq!(again, [Objection::Skipped { log: LOG, expected: 2, seq: 1 }]);
}

#[test]
fn a_reader_that_saw_what_is_not_there_is_objected_to() {
    let objections = judge_after(|events| {
        events.push((1, Event::Subscribed { after: 2 }));
        events.push((1, Event::Read { seq: 3, digest: entry(9, 9) }));
    });
    assert_eq!(objections, [Objection::TakenBack { log: LOG, seq: 3 }]);
}

#[test]
fn a_head_on_another_chain_or_of_another_incarnation_is_objected_to() {
    let order = [entry(1, 1), entry(2, 1), entry(1, 2)];
    for wrong in [
        Head { chain: Digest([3; 32]), ..head(&order) },
        Head { seq: 9, ..head(&order) },
        Head { incarnation: 8, ..head(&order) },
    ] {
        let objections = judge_after(|events| events.push((1, Event::Told { head: wrong })));
        assert_eq!(objections, [Objection::FalseHead { log: LOG, seq: wrong.seq }]);
    }
}

#[test]
fn an_entry_before_one_that_had_been_answered_when_it_was_sent_is_objected_to() {
    let objections = judge_after(|events| {
        // The second device first sends its entry when seq 3 has been answered.
        let sent = events.remove(4);
        events.insert(7, sent);
    });
    assert!(objections.contains(&Objection::Overtaken { log: LOG, seq: 2 }), "{objections:?}");
}

#[test]
fn a_log_that_nobody_reads_in_the_end_is_objected_to() {
    let objections =
        judge_after(|events| events.retain(|(_, event)| !matches!(event, Event::End { .. })));
    assert_eq!(objections, [Objection::Unread { log: LOG }]);
}

#[test]
fn what_stands_behind_the_revocation_of_its_sender_is_objected_to() {
    let mut events = whole();
    events.push((1, Event::Revoked { device: device(2), seq: 2 }));
    assert_eq!(judge(events.clone()), [], "its own entry stands before");
    events.push((2, Event::Revoked { device: device(1), seq: 2 }));
    assert_eq!(judge(events), [Objection::AfterRevocation { log: LOG, seq: 3 }]);
}
