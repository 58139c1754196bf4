//! Promises about who is rung, with a clock that is a number.

use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const GRACE: u64 = DOORBELL_GRACE.as_millis() as u64;
const WINDOW: u64 = DOORBELL_WINDOW.as_millis() as u64;
const PAUSE: u64 = DOORBELL_PAUSE.as_millis() as u64;

fn device(n: u8) -> DeviceKey {
    DeviceKey([n; 32])
}

fn news(log: i64, seq: u64, since: u64) -> News {
    News {
        log: LogKey(log),
        id: LogId([log as u8; 16]),
        seq,
        urgency: Urgency::High,
        since,
        here: false,
        again: false,
    }
}

fn room(devices: usize) -> Room {
    Room { devices, waits: 2 * devices }
}

struct Desk {
    core: Core,
    now: u64,
    here: bool,
}

impl Desk {
    fn new() -> Self {
        Self { core: Core::new(room(1000)), now: 1_000_000, here: false }
    }

    fn tell(&mut self, who: u8, log: i64, seq: u64) -> Taken {
        let news = News { here: self.here, ..news(log, seq, self.now) };
        self.core.waits(device(who), &news, None, self.now)
    }

    fn take(&mut self) -> Vec<Call> {
        let here = self.here;
        let calls = self.core.take(self.now, 64, |_| here);
        self.core.check_invariants();
        calls
    }

    /// Takes and rings, with success.
    fn ring(&mut self) -> Vec<(u8, i64, u64)> {
        let calls = self.take();
        for call in &calls {
            self.core.rang(call.device, call.log, Outcome::Taken, self.now, 0);
        }
        self.core.check_invariants();
        calls.iter().map(|call| (call.device.0[0], call.log.0, call.seq)).collect()
    }

    fn ack(&mut self, who: u8, log: i64) -> Spared {
        self.core.acked(device(who), LogKey(log), None, self.now)
    }
}

#[test]
fn a_sleeping_device_is_rung_at_once_and_a_burst_rings_it_a_handful_of_times() {
    let mut desk = Desk::new();
    let mut rung = 0;
    for seq in 1..=10_000 {
        desk.tell(1, 1, seq);
        rung += desk.ring().len();
        desk.now += 10;
        if seq == 1 {
            assert_eq!(rung, 1);
        }
    }
    assert!(rung <= 2, "{rung} doorbells in 100 seconds");
}

#[test]
fn the_window_doubles_for_a_device_that_does_not_answer_and_ends_with_an_ack() {
    let mut desk = Desk::new();
    let mut at = Vec::new();
    let start = desk.now;
    for _ in 0..1_000 {
        desk.tell(1, 1, desk.now);
        if !desk.ring().is_empty() {
            at.push((desk.now - start) / WINDOW);
        }
        desk.now += 6_000;
    }
    assert_eq!(at, [0, 1, 3, 7, 15, 31, 51, 71, 91]);
    desk.ack(1, 1);
    desk.tell(1, 1, desk.now);
    assert_eq!(desk.ring().len(), 1, "it is awake");
    desk.ack(1, 1);
    desk.tell(1, 1, desk.now);
    assert_eq!(desk.ring().len(), 0, "not twice in one moment");
    desk.now += PAUSE;
    assert_eq!(desk.ring().len(), 1);
}

#[test]
fn nobody_is_rung_twice_for_the_same_entry() {
    let mut desk = Desk::new();
    desk.tell(1, 1, 1);
    assert_eq!(desk.ring().len(), 1);
    for _ in 0..1_000 {
        desk.now += WINDOW;
        assert_eq!(desk.ring(), []);
    }
    assert!(desk.core.devices.is_empty(), "and it is forgotten");
}

#[test]
fn a_device_that_acks_before_its_turn_is_not_rung() {
    let mut desk = Desk::new();
    desk.tell(1, 1, 1);
    desk.tell(1, 2, 1);
    desk.tell(2, 1, 1);
    assert_eq!(desk.ack(1, 1), Spared { here: 0, fetched: 1 });
    assert_eq!(desk.ring(), [(2, 1, 1), (1, 2, 1)]);
    assert_eq!(desk.ack(1, 2), Spared::default(), "it was rung for that");
}

#[test]
fn a_device_that_is_here_has_its_time_to_ack() {
    let mut desk = Desk::new();
    desk.here = true;
    desk.tell(1, 1, 1);
    desk.tell(2, 1, 1);
    desk.now += GRACE - 1;
    assert_eq!(desk.ring(), []);
    desk.ack(1, 1);
    desk.now += 1;
    assert_eq!(desk.ring(), [(2, 1, 1)], "its socket may be half open");
}

#[test]
fn a_device_that_acks_steadily_is_not_rung_although_something_is_always_left() {
    let mut desk = Desk::new();
    desk.here = true;
    for seq in 1..=1_000 {
        desk.tell(1, 1, seq);
        desk.core.acked(device(1), LogKey(1), Some((seq, desk.now)), desk.now);
        assert_eq!(desk.ring(), []);
        desk.now += 100;
    }
    desk.now += GRACE;
    assert_eq!(desk.ring(), [(1, 1, 1_000)]);
}

#[test]
fn a_device_that_wakes_up_and_acks_one_by_one_is_not_rung_for_the_old_ones_that_are_left() {
    let mut desk = Desk::new();
    let told = desk.now;
    desk.tell(1, 1, 1);
    assert_eq!(desk.ring(), [(1, 1, 1)]);
    // It takes a while to wake up; a hundred came meanwhile.
    desk.now += 3 * GRACE;
    for seq in 2..100 {
        desk.core.acked(device(1), LogKey(1), Some((seq, told + 1)), desk.now);
        assert_eq!(desk.ring(), [], "it is acking");
        desk.now += 100;
    }
    // Then its connection breaks.
    desk.now += GRACE;
    assert_eq!(desk.ring(), [(1, 1, 99)]);
}

#[test]
fn a_device_that_comes_while_its_doorbell_waits_has_its_time_to_ack() {
    let mut desk = Desk::new();
    desk.tell(1, 1, 1);
    desk.here = true;
    assert_eq!(desk.ring(), []);
    desk.now += GRACE;
    assert_eq!(desk.ring(), [(1, 1, 1)]);
}

#[test]
fn a_device_that_asks_what_there_is_has_answered() {
    let mut desk = Desk::new();
    // In a group it has its time to ack, and the window is over.
    for round in 0..5 {
        desk.tell(1, 1, round);
        assert_eq!(desk.ring().len(), 1, "round {round}");
        desk.now += PAUSE;
        assert_eq!(desk.core.awake(device(1), LogKey(1), None, desk.now), Spared::default());
        desk.tell(1, 1, 100 + round);
        assert_eq!(desk.ring(), [(1, 1, 100 + round)], "round {round}");
        assert_eq!(desk.tell(1, 1, 200 + round), Taken::Queued);
        desk.core.awake(device(1), LogKey(1), None, desk.now);
        desk.now += GRACE - 1;
        assert_eq!(desk.ring(), []);
        assert_eq!(desk.ack(1, 1), Spared { here: 0, fetched: 1 });
    }
}

#[test]
fn in_a_vault_a_device_that_has_read_it_is_not_rung_for_it() {
    let mut desk = Desk::new();
    desk.here = true;
    let tell = |desk: &mut Desk, seq| {
        let (word, given) = Word::new(seq);
        let news = News { here: true, ..news(1, seq, desk.now) };
        desk.core.waits(device(1), &news, Some(word), desk.now);
        given
    };
    let given = tell(&mut desk, 5);
    let read = |desk: &mut Desk, seq| desk.core.awake(device(1), LogKey(1), Some(seq), desk.now);
    assert_eq!(read(&mut desk, 4), Spared::default(), "that is not all");
    assert!(!given.stands(), "the log says anew what comes");
    let given = tell(&mut desk, 6);
    assert!(given.note(7));
    assert_eq!(read(&mut desk, 7), Spared { here: 1, fetched: 0 });
    assert!(!given.stands() && desk.core.devices.is_empty());
    // What it does not say that it has read, it is rung for.
    let given = tell(&mut desk, 8);
    assert!(given.note(9));
    assert_eq!(read(&mut desk, 8), Spared::default());
    desk.now += GRACE;
    assert_eq!(desk.ring(), [(1, 1, 8)]);
}

#[test]
fn a_log_is_silent_about_a_device_until_it_is_rung() {
    let mut desk = Desk::new();
    let mut given = None;
    let mut tell = |desk: &mut Desk, seq| {
        let (word, now_given) = Word::new(seq);
        desk.core.waits(device(1), &news(1, seq, desk.now), Some(word), desk.now);
        given.replace(now_given);
        given.clone().unwrap()
    };
    let given = tell(&mut desk, 1);
    assert!(given.stands());
    let calls = desk.take();
    assert!(!given.stands(), "what comes now may be too late for this one");
    let given = tell(&mut desk, 2);
    desk.core.rang(device(1), calls[0].log, Outcome::Taken, desk.now, 0);
    desk.core.check_invariants();
    assert!(given.stands(), "it is rung when the window ends");
    desk.now += WINDOW;
    assert_eq!(desk.ring(), [(1, 1, 2)]);
    assert!(!given.stands());
    let given = tell(&mut desk, 3);
    desk.core.rang(device(1), LogKey(1), Outcome::NoDoorbell, desk.now, 0);
    assert!(!given.stands(), "nobody rings it");
}

#[test]
fn what_was_told_and_never_heard_is_rung_for_once_it_is_read_and_what_was_rung_for_is_not() {
    let mut desk = Desk::new();
    let again = |desk: &mut Desk, seq| {
        let news = News { again: true, ..news(1, seq, desk.now) };
        desk.core.waits(device(1), &news, None, desk.now)
    };
    let (word, given) = Word::new(1);
    desk.core.waits(device(1), &news(1, 1, desk.now), Some(word), desk.now);
    assert!(given.note(2));
    assert_eq!(again(&mut desk, 2), Taken::Coalesced);
    assert!(given.stands(), "the log has nothing new to say");
    assert_eq!(desk.ring(), [(1, 1, 1)]);
    assert_eq!(again(&mut desk, 2), Taken::Coalesced, "it was rung for both");
    desk.now += WINDOW;
    assert_eq!(desk.ring(), []);
    // Word of the third was lost, and of the fourth while it is rung for the third.
    assert_eq!(again(&mut desk, 3), Taken::Queued);
    let calls = desk.take();
    assert_eq!(calls.len(), 1);
    again(&mut desk, 4);
    desk.core.rang(device(1), calls[0].log, Outcome::Taken, desk.now, 0);
    desk.now += 2 * WINDOW;
    assert_eq!(desk.ring(), [(1, 1, 4)]);
}

#[test]
fn a_device_that_is_here_when_it_is_read_has_its_time_to_ack_however_old_that_is() {
    let mut desk = Desk::new();
    let old = News { again: true, here: true, ..news(1, 1, desk.now - 10 * GRACE) };
    desk.core.waits(device(1), &old, None, desk.now);
    desk.here = true;
    desk.now += GRACE - 1;
    assert_eq!(desk.ring(), []);
    desk.now += 1;
    let calls = desk.take();
    assert_eq!((calls.len(), calls[0].since), (1, old.since), "its age is that of the entry");
}

#[test]
fn a_doorbell_that_is_refused_is_not_tried_with_everything_that_comes() {
    let mut desk = Desk::new();
    desk.tell(1, 1, 1);
    let calls = desk.take();
    desk.core.rang(device(1), calls[0].log, Outcome::Refused, desk.now, 0);
    for seq in 2..10 {
        desk.now += PAUSE;
        desk.tell(1, 1, seq);
        assert_eq!(desk.take(), []);
    }
    desk.now += WINDOW;
    assert_eq!(desk.take().len(), 1);
}

#[test]
fn what_is_more_urgent_does_not_wait_for_the_window_of_what_was_less() {
    let mut desk = Desk::new();
    let less = News { urgency: Urgency::Normal, ..news(1, 1, desk.now) };
    desk.core.waits(device(1), &less, None, desk.now);
    assert_eq!(desk.ring().len(), 1);
    desk.now += PAUSE;
    desk.core.waits(device(1), &News { seq: 2, ..less }, None, desk.now);
    assert_eq!(desk.ring(), []);
    desk.tell(1, 1, 3);
    assert_eq!(desk.ring().len(), 1);
    desk.now += PAUSE;
    desk.tell(1, 1, 4);
    assert_eq!(desk.ring(), []);
}

#[test]
fn what_comes_while_a_device_is_being_rung_is_not_lost() {
    let mut desk = Desk::new();
    desk.tell(1, 1, 1);
    let calls = desk.take();
    assert_eq!(desk.tell(1, 1, 2), Taken::Coalesced);
    desk.core.rang(device(1), calls[0].log, Outcome::Taken, desk.now, 0);
    assert_eq!(desk.ring(), []);
    desk.now += WINDOW;
    assert_eq!(desk.ring(), [(1, 1, 2)]);
}

#[test]
fn what_comes_after_an_ack_while_a_device_is_being_rung_is_not_lost() {
    let mut desk = Desk::new();
    desk.tell(1, 1, 1);
    let calls = desk.take();
    // It comes by itself and goes again; the doorbell for what it has acked is still on its way.
    desk.ack(1, 1);
    let (word, given) = Word::new(2);
    desk.core.waits(device(1), &news(1, 2, desk.now), Some(word), desk.now);
    desk.core.rang(device(1), calls[0].log, Outcome::Taken, desk.now, 0);
    desk.core.check_invariants();
    assert!(given.note(3), "it is still to be rung for that");
    desk.now += WINDOW;
    assert_eq!(desk.ring(), [(1, 1, 2)]);
    assert!(!given.stands());
}

#[test]
fn what_fails_is_tried_again_and_not_before_it_was_asked_for() {
    let mut desk = Desk::new();
    desk.tell(1, 1, 1);
    let mut pauses = Vec::new();
    for asked in [None, None, None, Some(Duration::from_secs(90))] {
        assert_eq!(desk.take().len(), 1);
        desk.core.rang(device(1), LogKey(1), Outcome::Failed(asked), desk.now, 1000);
        let due = desk.core.next_due().unwrap();
        pauses.push(due - desk.now);
        assert_eq!(desk.take(), []);
        desk.now = due;
    }
    assert_eq!(pauses, [1_000, 2_000, 4_000, 112_500]);
    assert_eq!(desk.ring().len(), 1);
}

#[test]
fn a_device_without_a_doorbell_is_forgotten() {
    let mut desk = Desk::new();
    desk.tell(1, 1, 1);
    desk.tell(1, 2, 1);
    assert_eq!(desk.take().len(), 1);
    desk.core.rang(device(1), LogKey(1), Outcome::NoDoorbell, desk.now, 0);
    assert!(desk.core.devices.is_empty());
    desk.core.check_invariants();
}

#[test]
fn one_huge_group_delays_nobody() {
    let mut desk = Desk::new();
    desk.core = Core::new(room(10_000));
    for n in 0..5_000_u32 {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&n.to_be_bytes());
        desk.core.waits(DeviceKey(key), &news(1, 1, desk.now), None, desk.now);
    }
    desk.tell(9, 2, 1);
    let calls = desk.core.take(desk.now, 2, |_| false);
    assert!(calls.iter().any(|call| call.log == LogKey(2)));
}

#[test]
fn there_is_an_end_to_what_is_remembered_and_those_who_wait_are_kept_longest() {
    let mut desk = Desk::new();
    desk.core = Core::new(room(3));
    desk.tell(1, 1, 1);
    desk.ring();
    desk.tell(2, 1, 1);
    desk.tell(3, 1, 1);
    assert_eq!(desk.tell(4, 1, 1), Taken::Queued, "the one that was rung is forgotten");
    assert_eq!(desk.tell(5, 1, 1), Taken::Full);
    assert_eq!(desk.ring().len(), 3);
    for log in 0..100 {
        desk.tell(2, log, 1);
    }
    desk.core.check_invariants();
    // Waits have an end of their own, and those that were rung for make room for others.
    desk.core = Core::new(Room { devices: 100, waits: 3 });
    for log in 0..3 {
        desk.tell(1, log, 1);
    }
    assert_eq!(desk.tell(1, 3, 1), Taken::Coalesced, "it is rung for the others");
    assert_eq!(desk.tell(2, 3, 1), Taken::Full);
    desk.core.check_invariants();
    while desk.core.next_due().is_some() || desk.core.ready() > 0 {
        if desk.ring().is_empty() {
            break;
        }
        desk.now += WINDOW * 4;
    }
    assert_eq!(desk.tell(2, 3, 1), Taken::Queued);
}

#[test]
fn a_device_that_was_rung_for_as_many_logs_as_are_told_apart_is_rung_for_one_more() {
    let mut desk = Desk::new();
    let many = DOORBELL_LOGS_MAX as i64;
    for log in 0..many {
        desk.tell(1, log, 1);
    }
    let mut rung = 0;
    while rung < DOORBELL_LOGS_MAX {
        rung += desk.ring().len();
        desk.now += WINDOW;
    }
    assert_eq!(desk.tell(1, many, 1), Taken::Queued);
    desk.now += DOORBELL_WINDOW_MAX.as_millis() as u64;
    assert_eq!(desk.ring(), [(1, many, 1)]);
}

#[test]
fn what_is_remembered_takes_what_the_limits_say() {
    use std::mem::size_of;
    const MIB: usize = 1024 * 1024;
    // A hash map has a byte beside each place and is between 7/16 and 7/8 full; a tree's leaf of 11
    // places is at least half full; a small allocation takes 16 bytes beside what is asked for.
    let hashed = |bytes: usize| (bytes + 1) * 16 / 7;
    let in_tree = |bytes: usize| bytes * 2 + 4;
    let allocated = |bytes: usize| bytes + 16;
    // A device has a timer, or rests, or has a place in a queue.
    let timer = in_tree(size_of::<(u64, DeviceKey)>());
    let (trees, map) = Fair::SIZES;
    let place = trees.map(in_tree).iter().sum::<usize>() + hashed(map);
    let device = hashed(size_of::<(DeviceKey, Device)>()) + timer.max(place);
    let word = allocated(3 * size_of::<u64>());
    // The first wait of a device is an allocation of its own.
    let wait = allocated(size_of::<Wait>()) + word;
    let devices = device * crate::limits::DOORBELL_DEVICES_MAX;
    let waits = wait * crate::limits::DOORBELL_WAITS_MAX;
    assert_eq!((devices.div_ceil(MIB), waits.div_ceil(MIB)), (59, 32));
}

#[derive(Clone, Debug)]
enum Step {
    News { who: u8, log: i64, here: bool, high: bool },
    Ack { who: u8, log: i64, left: bool },
    Ring { how: u8 },
    Later { by: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0_u8..4, 0_i64..3, any::<bool>(), any::<bool>())
            .prop_map(|(who, log, here, high)| Step::News { who, log, here, high }),
        2 => (0_u8..4, 0_i64..3, any::<bool>())
            .prop_map(|(who, log, left)| Step::Ack { who, log, left }),
        4 => (0_u8..8).prop_map(|how| Step::Ring { how }),
        3 => prop_oneof![0_u64..3_000, 0_u64..100_000].prop_map(|by| Step::Later { by }),
    ]
}

proptest! {
    #[test]
    fn whoever_sleeps_is_rung_in_the_end_and_never_too_often(steps in vec(step(), 1..120)) {
        let mut core = Core::new(room(100));
        let mut now = 1_000_000;
        let mut seq = 0;
        // What waits, and when each device was last rung without an answer.
        let mut waiting: BTreeMap<(u8, i64), bool> = BTreeMap::new();
        let mut rung: BTreeMap<u8, (u64, Urgency)> = BTreeMap::new();
        for step in steps {
            match step {
                Step::News { who, log, here, high } => {
                    seq += 1;
                    let urgency = if high { Urgency::High } else { Urgency::Normal };
                    let news = News { urgency, here, ..news(log, seq, now) };
                    core.waits(device(who), &news, None, now);
                    waiting.insert((who, log), true);
                }
                Step::Ack { who, log, left } => {
                    let left = left.then_some((seq, now));
                    core.acked(device(who), LogKey(log), left, now);
                    rung.remove(&who);
                    if left.is_none() {
                        waiting.remove(&(who, log));
                    }
                }
                Step::Ring { how } => {
                    let calls = core.take(now, 2, |_| false);
                    for call in calls {
                        let who = call.device.0[0];
                        prop_assert!(waiting.contains_key(&(who, call.log.0)), "for nothing");
                        if let Some((at, urgency)) = rung.get(&who) {
                            let spared = now - at >= WINDOW || call.urgency > *urgency;
                            prop_assert!(spared, "{} after {}", now, at);
                        }
                        let outcome = match how {
                            0 => Outcome::Failed(None),
                            1 => Outcome::NotTried(now + 500),
                            _ => Outcome::Taken,
                        };
                        core.rang(call.device, call.log, outcome, now, 500);
                        if outcome == Outcome::Taken {
                            rung.insert(who, (now, call.urgency));
                            waiting.insert((who, call.log.0), false);
                        }
                    }
                }
                Step::Later { by } => now += by,
            }
            core.check_invariants();
        }
        for _ in 0..200 {
            now += WINDOW;
            let calls = core.take(now, 64, |_| false);
            for call in calls {
                core.rang(call.device, call.log, Outcome::Taken, now, 0);
                waiting.insert((call.device.0[0], call.log.0), false);
            }
        }
        prop_assert!(waiting.values().all(|waits| !waits), "somebody was never rung");
        prop_assert!(core.devices.is_empty());
    }
}
