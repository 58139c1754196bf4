//! The rules of membership, against a model that keeps plain sets, and one by one.

use std::collections::BTreeSet;

use proptest::prelude::*;
use sealwire_protocol::{Audience, Digest, Head, Kind};

use super::*;
use crate::identity::{Identity, JoinSeed};

const LOG: LogId = LogId([1; 16]);
const PEOPLE: u8 = 5;
const SEEDS: u8 = 3;

fn person(n: u8) -> Identity {
    Identity::from_seed(&[n + 1; 32])
}

fn key(n: u8) -> DeviceKey {
    person(n).key()
}

fn seed(n: u8) -> JoinSeed {
    JoinSeed::from_bytes([0xa0 + n; 32])
}

fn header(author: u8, seen: u64) -> Header {
    Header {
        log: LOG,
        sender: key(author),
        count: 1,
        prev: Digest::ZERO,
        kind: Kind::Control,
        audience: Audience::All,
        seen: Head { incarnation: 1, seq: seen, chain: Digest::ZERO },
        body: Digest::ZERO,
    }
}

fn found(join_key: Option<DeviceKey>) -> Control {
    Control::Found { log_type: LogType::Group, random: [7; 32], join_key }
}

fn join(by: u8, seed_number: u8) -> Control {
    Control::Join { signature: seed(seed_number).admit(LOG, key(by)) }
}

/// A group of the founder, person 0, with join key 0.
fn founded() -> Membership {
    let mut membership = Membership::new();
    let change = membership.apply(LOG, 1, 10, &header(0, 0), &found(Some(seed(0).public())));
    assert_eq!(change, Ok(Change::Founded(key(0))));
    membership
}

#[derive(Clone, Debug)]
enum Act {
    Found(u8),
    Join(u8, u8),
    Leave(u8),
    Revoke(u8, u8, Option<u8>),
    JoinKey(u8, u8, u64),
    Rotate,
}

fn act() -> impl Strategy<Value = Act> {
    let person = 0..PEOPLE;
    let seed = 0..SEEDS;
    prop_oneof![
        1 => person.clone().prop_map(Act::Found),
        8 => (person.clone(), seed.clone()).prop_map(|(by, seed)| Act::Join(by, seed)),
        2 => person.clone().prop_map(Act::Leave),
        2 => (person.clone(), person.clone(), proptest::option::of(seed.clone()))
            .prop_map(|(by, whom, seed)| Act::Revoke(by, whom, seed)),
        2 => (person, seed, 0u64..30).prop_map(|(by, seed, seen)| Act::JoinKey(by, seed, seen)),
        1 => Just(Act::Rotate),
    ]
}

/// The rules in the plainest words.
#[derive(Default)]
struct Model {
    founded: bool,
    members: BTreeSet<u8>,
    revoked: BTreeSet<u8>,
    join_key: Option<u8>,
    guard: u64,
}

impl Model {
    fn apply(&mut self, seq: u64, act: &Act) -> bool {
        match *act {
            Act::Found(by) => {
                let allowed = !self.founded && seq == 1;
                if allowed {
                    self.founded = true;
                    self.members.insert(by);
                    self.join_key = Some(0);
                }
                allowed
            }
            Act::Join(by, seed) => {
                self.founded
                    && !self.revoked.contains(&by)
                    && self.join_key == Some(seed)
                    && self.members.insert(by)
            }
            Act::Leave(by) => {
                let allowed = self.members.remove(&by);
                if allowed {
                    self.guard = seq;
                }
                allowed
            }
            Act::Revoke(by, whom, seed) => {
                let allowed =
                    self.members.contains(&by) && by != whom && !self.revoked.contains(&whom);
                if allowed {
                    self.members.remove(&whom);
                    self.revoked.insert(whom);
                    self.join_key = seed;
                    self.guard = seq;
                }
                allowed
            }
            Act::JoinKey(by, seed, seen) => {
                let allowed = self.members.contains(&by) && seen >= self.guard;
                if allowed {
                    self.join_key = Some(seed);
                    self.guard = seq;
                }
                allowed
            }
            Act::Rotate => {
                self.guard = seq;
                true
            }
        }
    }
}

fn apply(membership: &mut Membership, seq: u64, act: &Act) -> bool {
    let (header, control) = match *act {
        Act::Found(by) => (header(by, 0), found(Some(seed(0).public()))),
        Act::Join(by, number) => (header(by, 0), join(by, number)),
        Act::Leave(by) => (header(by, 0), Control::Leave),
        Act::Revoke(by, whom, number) => {
            let join_key = number.map(|number| seed(number).public());
            (header(by, 0), Control::Revoke { device: key(whom), join_key })
        }
        Act::JoinKey(by, number, seen) => {
            (header(by, seen), Control::JoinKey { join_key: seed(number).public() })
        }
        Act::Rotate => {
            membership.rotated(seq);
            return true;
        }
    };
    membership.apply(LOG, seq, seq * 10, &header, &control).is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn members_are_who_the_rules_say(acts in proptest::collection::vec(act(), 1..30)) {
        let mut membership = Membership::new();
        let mut model = Model::default();
        for (seq, act) in (1u64..).zip(&acts) {
            let before = membership.clone();
            let allowed = apply(&mut membership, seq, act);
            prop_assert_eq!(allowed, model.apply(seq, act), "{:?} at {}", act, seq);
            if !allowed {
                prop_assert_eq!(&membership, &before, "a refusal changes nothing");
            }
            let members: BTreeSet<DeviceKey> = membership.members().map(|(key, _)| key).collect();
            let expected: BTreeSet<DeviceKey> = model.members.iter().map(|n| key(*n)).collect();
            prop_assert_eq!(members, expected);
            for number in &model.revoked {
                prop_assert!(!membership.has(key(*number)), "revoked for good");
            }
            prop_assert_eq!(membership.guard(), model.guard);
        }
    }

    #[test]
    fn entries_that_are_read_twice_change_nothing(
        acts in proptest::collection::vec(act(), 1..20),
    ) {
        let mut membership = Membership::new();
        let mut applied = Vec::new();
        for (seq, act) in (1u64..).zip(&acts) {
            if apply(&mut membership, seq, act) {
                applied.push((seq, act.clone()));
            }
        }
        let once = membership.clone();
        for (seq, act) in &applied {
            apply(&mut membership, *seq, act);
        }
        prop_assert_eq!(membership, once);
    }

    #[test]
    fn a_stored_membership_is_the_same_one(acts in proptest::collection::vec(act(), 1..20)) {
        let mut membership = Membership::new();
        for (seq, act) in (1u64..).zip(&acts) {
            apply(&mut membership, seq, act);
        }
        let bytes = rmp_serde::to_vec(&membership).expect("encoded");
        let stored: Membership = rmp_serde::from_slice(&bytes).expect("decoded");
        prop_assert_eq!(stored, membership);
    }
}

#[test]
fn a_join_needs_the_signature_of_the_join_key_for_this_joiner() {
    let mut membership = founded();
    let by_another_key = membership.apply(LOG, 2, 0, &header(1, 0), &join(1, 1));
    assert_eq!(by_another_key, Err(Refusal::JoinKey));
    let for_another_joiner = membership.apply(LOG, 2, 0, &header(1, 0), &join(2, 0));
    assert_eq!(for_another_joiner, Err(Refusal::JoinKey));
    let own = membership.apply(LOG, 2, 20, &header(1, 0), &join(1, 0));
    assert_eq!(own, Ok(Change::Joined(key(1))));
    assert_eq!(membership.since(key(1)), Some(Since { seq: 2, at: 20 }));
}

#[test]
fn a_revoked_device_joins_no_more_not_even_with_the_new_join_key() {
    let mut membership = founded();
    assert!(apply(&mut membership, 2, &Act::Join(1, 0)));
    assert!(apply(&mut membership, 3, &Act::Revoke(0, 1, Some(1))));
    assert!(membership.wants_rotation());
    assert_eq!(membership.revocation(key(1)), Some(Revocation { seq: 3, by: key(0) }));
    let back = membership.apply(LOG, 4, 0, &header(1, 0), &join(1, 1));
    assert_eq!(back, Err(Refusal::Revoked));
    let old_key = membership.apply(LOG, 4, 0, &header(2, 0), &join(2, 0));
    assert_eq!(old_key, Err(Refusal::JoinKey));
    assert!(apply(&mut membership, 4, &Act::Join(2, 1)));
}

#[test]
fn nobody_revokes_itself_and_nobody_is_revoked_twice() {
    let mut membership = founded();
    let revoke = |whom| Control::Revoke { device: key(whom), join_key: None };
    let oneself = membership.apply(LOG, 2, 0, &header(0, 0), &revoke(0));
    assert_eq!(oneself, Err(Refusal::Target));
    assert!(apply(&mut membership, 2, &Act::Revoke(0, 3, Some(1))), "it need not be a member");
    let again = membership.apply(LOG, 3, 0, &header(0, 0), &revoke(3));
    assert_eq!(again, Err(Refusal::Target));
}

#[test]
fn a_key_that_may_not_speak_is_not_admitted() {
    let mut membership = Membership::new();
    let small = Header { sender: DeviceKey::ZERO, ..header(0, 0) };
    let founded_by_nobody = membership.apply(LOG, 1, 0, &small, &found(None));
    assert_eq!(founded_by_nobody, Err(Refusal::Key));
    let small_join_key = found(Some(DeviceKey::ZERO));
    assert!(membership.apply(LOG, 1, 0, &header(0, 0), &small_join_key).is_ok());
    assert_eq!(membership.apply(LOG, 2, 0, &header(1, 0), &join(1, 0)), Err(Refusal::Key));
}

#[test]
fn who_has_left_may_come_back_and_is_a_member_since_then() {
    let mut membership = founded();
    assert!(apply(&mut membership, 2, &Act::Join(1, 0)));
    assert!(apply(&mut membership, 3, &Act::Leave(1)));
    assert!(!membership.has(key(1)));
    assert!(apply(&mut membership, 4, &Act::Join(1, 0)));
    assert_eq!(membership.since(key(1)).map(|since| since.seq), Some(4));
}

#[test]
fn the_author_of_a_rotation_must_have_seen_the_newest_removal() {
    let mut membership = founded();
    assert!(apply(&mut membership, 2, &Act::Join(1, 0)));
    assert!(apply(&mut membership, 3, &Act::Leave(1)));
    assert_eq!(membership.check_conditional(&header(0, 2)), Err(Refusal::Stale));
    assert_eq!(membership.check_conditional(&header(0, 3)), Ok(()));
    membership.rotated(4);
    assert!(!membership.wants_rotation());
    assert_eq!(membership.check_conditional(&header(0, 3)), Err(Refusal::Stale));
}

#[test]
fn a_newcomer_believes_that_the_key_it_is_given_is_newer_than_the_removals_before_it() {
    let mut membership = founded();
    assert!(apply(&mut membership, 2, &Act::Join(1, 0)));
    assert!(apply(&mut membership, 3, &Act::Leave(1)));
    assert!(apply(&mut membership, 4, &Act::Join(2, 0)));
    assert!(membership.wants_rotation());
    membership.given_current_key(key(2));
    assert!(!membership.wants_rotation());
    assert!(apply(&mut membership, 5, &Act::Join(3, 0)));
    assert!(apply(&mut membership, 6, &Act::Leave(3)));
    membership.given_current_key(key(2));
    assert!(membership.wants_rotation(), "that one it has seen itself");
}

#[test]
fn what_belongs_to_vaults_is_not_for_groups() {
    let mut membership = Membership::new();
    let vault = Control::Found { log_type: LogType::Vault, random: [1; 32], join_key: None };
    assert_eq!(membership.apply(LOG, 1, 0, &header(0, 0), &vault), Err(Refusal::NotForGroups));
    let mut membership = founded();
    let opened = Control::SnapshotOpened { digest: Digest::ZERO };
    assert_eq!(membership.apply(LOG, 2, 0, &header(0, 0), &opened), Err(Refusal::NotForGroups));
}
