//! The numbers, against a relay that knows only counts and digests, and that fails in every way.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sealwire_protocol::digest::sha256;

use super::*;

/// What the relay does with the next thing that it is sent.
#[derive(Clone, Copy, Debug)]
enum Mood {
    Takes,
    /// It takes it, and the answer is lost with the connection.
    TakesAndBreaks,
    /// The connection is lost before it gets there.
    Breaks,
    Unavailable,
    /// It says that it could not, and has.
    UnavailableButTook,
    Refuses,
    Stale,
}

fn mood() -> impl Strategy<Value = Mood> {
    prop_oneof![
        6 => Just(Mood::Takes),
        1 => Just(Mood::TakesAndBreaks),
        1 => Just(Mood::Breaks),
        1 => Just(Mood::Unavailable),
        1 => Just(Mood::UnavailableButTook),
        1 => Just(Mood::Refuses),
        1 => Just(Mood::Stale),
    ]
}

fn refusal(code: ErrorCode) -> Result<(), Box<Failure>> {
    Err(Box::new(Failure::new(code)))
}

#[derive(Default)]
struct Relay {
    entries: Vec<(DraftId, Digest)>,
}

impl Relay {
    fn last(&self) -> Digest {
        self.entries.last().map_or(Digest::ZERO, |(_, digest)| *digest)
    }

    /// `Ok` if it is appended, or was.
    fn append(&mut self, sent: &OnTheWay) -> Result<(), Box<Failure>> {
        let have = self.entries.len() as u64;
        if sent.count <= have {
            let (_, digest) = self.entries[sent.count as usize - 1];
            return if digest == sent.digest {
                Ok(())
            } else {
                Err(Box::new(Failure::conflict(have, self.last())))
            };
        }
        if sent.count > have + 1 {
            return Err(Box::new(Failure::out_of_order(have + 1)));
        }
        if sent.prev != self.last() {
            return Err(Box::new(Failure::new(ErrorCode::BadHeader)));
        }
        self.entries.push((sent.id, sent.digest));
        Ok(())
    }

    /// Refuses it if it would be the next one: no other is looked at so closely.
    fn judge(&mut self, sent: &OnTheWay, code: ErrorCode) -> Result<(), Box<Failure>> {
        if sent.count == self.entries.len() as u64 + 1 { refusal(code) } else { self.append(sent) }
    }
}

#[derive(Clone, Copy)]
struct OnTheWay {
    id: DraftId,
    count: u64,
    prev: Digest,
    digest: Digest,
}

/// A device: drafts in order, and the bytes of those that are numbered.
struct Device {
    numbering: Numbering,
    waiting: Vec<DraftId>,
    bytes: BTreeMap<DraftId, (Digest, Digest)>,
    refused: Vec<DraftId>,
    signed: u64,
    way: VecDeque<OnTheWay>,
}

impl Device {
    fn new(drafts: i64) -> Self {
        Self {
            numbering: Numbering::new(Mark::NONE),
            waiting: (1..=drafts).collect(),
            bytes: BTreeMap::new(),
            refused: Vec::new(),
            signed: 0,
            way: VecDeque::new(),
        }
    }

    fn pump(&mut self) {
        while self.way.len() < 4 {
            if let Some((id, count)) = self.numbering.to_send() {
                let (prev, digest) = self.bytes[&id];
                self.numbering.sent(count);
                self.way.push_back(OnTheWay { id, count, prev, digest });
            } else if !self.waiting.is_empty() && !self.numbering.is_barred() {
                let id = self.waiting.remove(0);
                let last = self.numbering.last();
                self.signed += 1;
                let seed = [&last.digest.0[..], &id.to_be_bytes(), &self.signed.to_be_bytes()];
                let digest = sha256(&seed.concat());
                self.bytes.insert(id, (last.digest, digest));
                self.numbering.push(id, digest, id % 5 == 0);
            } else {
                return;
            }
        }
    }

    fn unnumber(&mut self, ids: Vec<DraftId>) {
        for id in ids.into_iter().rev() {
            self.bytes.remove(&id);
            self.waiting.insert(0, id);
        }
    }

    fn answered(&mut self, sent: OnTheWay, answer: Result<(), Box<Failure>>) {
        let failure = match answer {
            Ok(()) => return self.numbering.on_appended(sent.count),
            Err(failure) => failure,
        };
        let verdict = self.numbering.on_refused(sent.count, &failure);
        // Answers to what was sent behind it mean nothing any more.
        self.way.retain(|other| other.count < sent.count);
        match verdict {
            Verdict::Nothing | Verdict::Again(_) => {}
            Verdict::Refused(mut ids) => {
                self.refused.push(ids.remove(0));
                self.unnumber(ids);
            }
            Verdict::CatchUp(ids, _) => self.unnumber(ids),
            Verdict::Restore(_) | Verdict::Conflict | Verdict::Ended(_) => {
                panic!("the relay lost nothing and has nobody else's entries: {failure:?}")
            }
        }
    }

    fn disconnected(&mut self) {
        self.way.clear();
        self.numbering.disconnected();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_draft_is_appended_once_and_in_order_or_refused(
        drafts in 1i64..25,
        moods in proptest::collection::vec(mood(), 0..120),
    ) {
        let mut device = Device::new(drafts);
        let mut relay = Relay::default();
        let mut moods = moods.into_iter();
        for _ in 0..1000 {
            device.pump();
            let Some(sent) = device.way.pop_front() else { break };
            match moods.next().unwrap_or(Mood::Takes) {
                Mood::Takes => {
                    let answer = relay.append(&sent);
                    device.answered(sent, answer);
                }
                Mood::TakesAndBreaks => {
                    let _ = relay.append(&sent);
                    device.disconnected();
                }
                Mood::Breaks => device.disconnected(),
                Mood::Unavailable => device.answered(sent, refusal(ErrorCode::Unavailable)),
                Mood::UnavailableButTook => {
                    let _ = relay.append(&sent);
                    device.answered(sent, refusal(ErrorCode::Unavailable));
                }
                Mood::Refuses => {
                    let answer = relay.judge(&sent, ErrorCode::BadAudience);
                    device.answered(sent, answer);
                }
                Mood::Stale => {
                    let answer = relay.judge(&sent, ErrorCode::Stale);
                    device.answered(sent, answer);
                }
            }
        }
        prop_assert!(device.way.is_empty() && device.waiting.is_empty(), "all is settled");
        prop_assert_eq!(device.numbering.unsettled(), 0);
        prop_assert_eq!(device.numbering.appended().count, relay.entries.len() as u64);
        let mut settled: Vec<DraftId> = relay.entries.iter().map(|(id, _)| *id).collect();
        let in_order = settled.windows(2).all(|pair| pair[0] < pair[1]);
        prop_assert!(in_order, "the order of the drafts is the order of the log: {:?}", settled);
        settled.extend(&device.refused);
        settled.sort_unstable();
        prop_assert_eq!(settled, (1..=drafts).collect::<Vec<_>>(), "each once");
    }
}

fn digest(n: u8) -> Digest {
    Digest([n; 32])
}

fn numbered(count: u8) -> Numbering {
    let mut numbering = Numbering::new(Mark { count: 10, digest: digest(10) });
    for n in 1..=count {
        numbering.push(i64::from(n), digest(10 + n), false);
        numbering.sent(10 + u64::from(n));
    }
    numbering
}

#[test]
fn a_refused_entry_frees_its_number_and_those_behind_it() {
    let mut numbering = numbered(4);
    let verdict = numbering.on_refused(12, &Failure::new(ErrorCode::BadAudience));
    assert_eq!(verdict, Verdict::Refused(vec![2, 3, 4]));
    assert_eq!(numbering.last().count, 11);
    assert_eq!(
        numbering.on_refused(13, &Failure::out_of_order(12)),
        Verdict::Nothing,
        "an answer to what was freed means nothing"
    );
}

#[test]
fn what_a_restored_relay_has_lost_is_sent_again_as_it_was() {
    let mut numbering = numbered(1);
    assert_eq!(numbering.on_refused(11, &Failure::out_of_order(9)), Verdict::Restore(9));
    let before = Mark { count: 8, digest: digest(8) };
    numbering.restore(before, vec![(-2, digest(9)), (-1, digest(10))]);
    let mut sent = Vec::new();
    while let Some((id, count)) = numbering.to_send() {
        numbering.sent(count);
        sent.push((id, count));
    }
    assert_eq!(sent, [(-2, 9), (-1, 10), (1, 11)]);
    for count in 9..=11 {
        numbering.on_appended(count);
    }
    assert_eq!(numbering.appended(), Mark { count: 11, digest: digest(11) });
}

#[test]
fn answers_may_come_in_any_order() {
    let mut numbering = numbered(3);
    numbering.on_appended(13);
    numbering.on_appended(12);
    assert_eq!(numbering.appended().count, 10);
    numbering.on_appended(11);
    assert_eq!(numbering.appended().count, 13);
    assert_eq!(numbering.unsettled(), 0);
}

#[test]
fn another_entry_under_a_number_of_this_device_is_a_conflict() {
    let conflict = Failure::conflict(15, digest(99));
    assert_eq!(numbered(2).on_refused(11, &conflict), Verdict::Conflict);
    assert_eq!(
        numbered(2).on_refused(11, &Failure::out_of_order(11)),
        Verdict::Conflict,
        "the number is right and the entry before it is not"
    );
}

#[test]
fn the_relay_says_how_long_to_wait_within_reason() {
    let wait = |ms| numbered(1).on_refused(11, &Failure::after_ms(ErrorCode::Quota, ms));
    assert_eq!(wait(1500), Verdict::Again(Duration::from_millis(1500)));
    assert_eq!(wait(u64::MAX), Verdict::Again(HOLD_MAX));
}

#[test]
fn nothing_is_numbered_behind_a_barrier() {
    let mut numbering = Numbering::new(Mark::NONE);
    numbering.push(1, digest(1), true);
    assert!(numbering.is_barred());
    numbering.on_appended(1);
    assert!(!numbering.is_barred());
}
