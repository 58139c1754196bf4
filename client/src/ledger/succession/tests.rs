//! Whoever takes a lost device's place, it is the same one everywhere, and nobody else.

use proptest::prelude::*;
use sealwire_protocol::{Control, Header, LogType};
use serde_json::{Value, json};

use super::*;
use crate::identity::JoinSeed;
use crate::ledger::Said;
use crate::ledger::money::Currency;
use crate::totals::payload::Payload;

const LOG: LogId = LogId([0x44; 16]);

/// As many devices as a group of the tests has.
const DEVICES: u8 = 6;

fn device(number: u8) -> Identity {
    Identity::from_seed(&[number + 1; 32])
}

fn party(number: u8) -> Party {
    device(number).key().into()
}

fn header(sender: u8) -> Header {
    Header {
        log: LOG,
        sender: device(sender).key(),
        count: 1,
        prev: Digest::ZERO,
        kind: sealwire_protocol::Kind::Control,
        audience: sealwire_protocol::Audience::All,
        seen: sealwire_protocol::Head::NONE,
        body: Digest::ZERO,
    }
}

/// A group of all devices, in which some have revoked others: (by whom, whom).
fn group(revocations: &[(u8, u8)]) -> Membership {
    let seed = JoinSeed::from_bytes([9; 32]);
    let random = [7; 32];
    let found = Control::Found { log_type: LogType::Group, random, join_key: Some(seed.public()) };
    let mut membership = Membership::new();
    let mut acts = vec![(0, found)];
    for joiner in 1..DEVICES {
        let signature = seed.admit(LOG, device(joiner).key());
        acts.push((joiner, Control::Join { signature }));
    }
    for (by, whom) in revocations {
        let join_key = Some(seed.public());
        acts.push((*by, Control::Revoke { device: device(*whom).key(), join_key }));
    }
    for (seq, (by, control)) in (1..).zip(acts) {
        // What the rules refuse changes nothing.
        membership.apply(LOG, seq, 0, &header(by), &control).ok();
    }
    membership
}

fn succession(old: u8, new: u8) -> Succession {
    Succession::new(LOG, &device(old), &device(new))
}

fn message(succession: Succession) -> Vec<u8> {
    Payload::Succession(succession).encode().expect("encoded").to_vec()
}

fn paid(id: u8, by: u8, among: &[u8], cents: u32) -> Vec<u8> {
    let among: Vec<Party> = among.iter().map(|number| party(*number)).collect();
    json!({ "type": "expense", "id": id.to_string(), "amount": f64::from(cents) / 100.0,
            "currency": "ETB", "reason": "Lunch", "paidBy": party(by), "splitAmong": among,
            "timestamp": 1000 + i64::from(id), "kind": "expense" })
    .to_string()
    .into_bytes()
}

fn ledger(messages: &[Vec<u8>]) -> Ledger {
    let mut ledger = Ledger::default();
    for message in messages {
        let sender = device(0).key();
        ledger.take(Said { log: LOG, sender, at: 0, approvals: false, message });
    }
    ledger
}

fn balances(ledger: &Ledger) -> BTreeMap<Party, i64> {
    let etb = Currency::parse("ETB").expect("a currency");
    ledger.balances().remove(&etb).unwrap_or_default()
}

#[test]
fn a_lost_device_s_money_names_and_doings_are_its_successor_s() {
    let named = |number: u8, name: &str, at: i64| {
        json!({ "type": "group_snapshot", "groupId": LOG.to_uuid_text(), "part": "meta",
                "displayNames": { (party(number).0): name },
                "memberMetaUpdatedAt": { (party(number).0): at } })
    };
    let nudge = json!({ "type": "nudge", "id": "n", "timestamp": 3, "actor": party(0), "amount": 5.0,
                        "debtorPks": [party(1)], "amountByDebtorPk": { (party(1).0): 5.0 } });
    let kept = ledger(&[
        paid(1, 0, &[0, 1], 3000),
        paid(2, 1, &[0, 1], 1000),
        named(0, "Anna", 5).to_string().into_bytes(),
        nudge.to_string().into_bytes(),
        message(succession(0, 2)),
    ]);
    let before = kept.clone().of_members(&group(&[]));
    assert!(before == kept, "nobody who was not revoked is succeeded");
    let seen = kept.clone().of_members(&group(&[(2, 0)]));
    let expected = BTreeMap::from([(party(1), -1000), (party(2), 1000)]);
    assert_eq!(balances(&seen), expected);
    assert_eq!((seen.name_of(&party(2)), seen.name_of(&party(0))), ("Anna".into(), "Anna".into()));
    assert!(seen.people().all(|(who, _)| *who != party(0)));
    let old = party(0).0;
    for entry in seen.activity() {
        assert_ne!(entry.actor.0, old);
        assert!(!Value::Object(entry.data.clone()).to_string().contains(&old), "{}", entry.kind);
    }
    // It can be said again under the new key, and that counts.
    let renamed = ledger(&[
        message(succession(0, 2)),
        named(0, "Anna", 5).to_string().into_bytes(),
        named(2, "Annika", 6).to_string().into_bytes(),
    ]);
    assert_eq!(renamed.of_members(&group(&[(2, 0)])).name_of(&party(0)), "Annika");
}

#[test]
fn a_reminder_of_both_keys_says_what_they_owe_together() {
    let nudge = json!({ "type": "nudge", "id": "n", "timestamp": 3, "actor": party(1), "amount": 0.3,
                        "debtorPks": [party(0), party(2)],
                        "amountByDebtorPk": { (party(0).0): 0.1, (party(2).0): 0.2 } });
    let kept = ledger(&[nudge.to_string().into_bytes(), message(succession(0, 2))]);
    let seen = kept.of_members(&group(&[(2, 0)]));
    let told = &seen.activity()[0].data;
    assert_eq!(told["amountByDebtorPk"], json!({ (party(2).0): 0.3 }));
}

#[test]
fn what_both_paid_for_each_other_is_owed_by_nobody() {
    let kept = ledger(&[paid(1, 0, &[2], 3000), message(succession(0, 2))]);
    let seen = kept.of_members(&group(&[(1, 0)]));
    assert!(balances(&seen).values().all(|minor| *minor == 0) && seen.pairwise().is_empty());
}

#[test]
fn a_successor_may_be_succeeded_and_the_revoker_goes_before_others() {
    let lines =
        ledger(&[paid(1, 0, &[5], 3000), message(succession(0, 1)), message(succession(1, 2))]);
    let seen = lines.clone().of_members(&group(&[(1, 0), (2, 1)]));
    assert_eq!(balances(&seen), BTreeMap::from([(party(2), 3000), (party(5), -3000)]));
    assert_eq!(*seen.who(&party(0)), party(2));
    let rivals = ledger(&[
        paid(1, 0, &[5], 3000),
        message(succession(0, 1)),
        message(succession(0, 2)),
        message(succession(0, 3)),
    ]);
    for revoker in 1..4 {
        let seen = rivals.clone().of_members(&group(&[(revoker, 0)]));
        assert_eq!(*seen.who(&party(0)), party(revoker));
    }
    let ring = ledger(&[message(succession(0, 1)), message(succession(1, 0))]);
    let seen = ring.of_members(&group(&[(2, 0), (2, 1)]));
    assert_eq!([seen.who(&party(0)), seen.who(&party(1))], [&party(0), &party(1)]);
}

/// A key that was never in the group, made up by a thief until its digest goes before that of `new`.
fn ground(old: u8, new: u8) -> Identity {
    let digest = |new: DeviceKey| sha256(&[device(old).key().0, new.0].concat());
    let mut made_up = (1..=u8::MAX).map(|number| Identity::from_seed(&[number; 32]));
    let stranger = |one: &Identity| (0..DEVICES).all(|member| device(member).key() != one.key());
    made_up
        .find(|one| stranger(one) && digest(one.key()) < digest(device(new).key()))
        .expect("one in two hundred")
}

#[test]
fn a_key_that_a_thief_made_up_does_not_take_the_place_of_a_member() {
    let rival = ground(0, 2);
    let theirs = message(Succession::new(LOG, &device(0), &rival));
    let owed = paid(1, 0, &[5], 3000);
    // A friend revokes the stolen device, and then its person comes back.
    let kept = ledger(&[owed.clone(), theirs.clone(), message(succession(0, 2))]);
    let seen = kept.of_members(&group(&[(1, 0)]));
    assert_eq!(balances(&seen), BTreeMap::from([(party(2), 3000), (party(5), -3000)]));
    // The same when the person has lost the next device as well.
    let line = [message(succession(0, 2)), message(succession(2, 3)), theirs, owed];
    let seen = ledger(&line).of_members(&group(&[(1, 0), (1, 2)]));
    assert_eq!(*seen.who(&party(0)), party(3));
}

#[test]
fn a_thief_that_was_revoked_has_no_place_to_give() {
    // The thief's device 4 revokes the lost one, and is revoked; a member in the line is not enough
    // if the line goes through the lost device itself.
    let made_up = ground(4, 2);
    for more in [
        vec![],
        vec![message(succession(4, 0))],
        vec![message(Succession::new(LOG, &device(4), &made_up))],
        vec![message(Succession::new(LOG, &device(4), &made_up)), message(succession(4, 0))],
    ] {
        let both = [message(succession(0, 4)), message(succession(0, 2))];
        let kept = ledger(&[both.to_vec(), more].concat());
        for revocations in [[(4, 0), (1, 4)], [(1, 0), (1, 4)], [(0, 4), (1, 0)]] {
            let seen = kept.clone().of_members(&group(&revocations));
            assert_eq!(*seen.who(&party(0)), party(2));
        }
    }
}

#[test]
fn a_long_line_is_followed_to_its_end_and_each_link_once() {
    const LINKS: u16 = 10_000;
    let key = |number: u16| {
        let mut key = [0xee; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        DeviceKey(key)
    };
    let link = |old: u16, new: u16| Succession {
        group_id: LOG.to_uuid_text(),
        old_public_key: key(old).into(),
        new_public_key: key(new).into(),
        old_signature: String::new(),
        new_signature: String::new(),
    };
    let mut members = group(&[]);
    for number in 0..LINKS {
        let control = Control::Revoke { device: key(number), join_key: None };
        let seq = u64::from(number) + 100;
        members.apply(LOG, seq, 0, &header(0), &control).expect("revoked");
    }
    let forwards: Vec<Succession> = (0..LINKS).map(|number| link(number, number + 1)).collect();
    let began = std::time::Instant::now();
    let all = successors(forwards.iter(), &members);
    assert!(all.len() == usize::from(LINKS) && all.values().all(|end| *end == key(LINKS)));
    // The other way round each link costs a turn, and there are few.
    let backwards: Vec<Succession> =
        (1..LINKS).map(|number| link(number, number - 1)).chain([link(0, LINKS)]).collect();
    let all = successors(backwards.iter(), &members);
    let reached: Vec<DeviceKey> = all.keys().copied().collect();
    let few = u16::try_from(TURNS_MAX).expect("few");
    assert_eq!(reached, (0..few).map(key).collect::<Vec<_>>());
    // Every link walked for every key takes minutes.
    assert!(began.elapsed() < std::time::Duration::from_secs(20), "{:?}", began.elapsed());
}

#[test]
fn made_up_successions_are_not_passed_on_and_crowd_out_none_that_counts() {
    let made_up = |number: u16| {
        let mut key = [0xee; 32];
        key[..2].copy_from_slice(&number.to_be_bytes());
        Party::from(DeviceKey(key))
    };
    let mut kept = ledger(&[message(succession(0, 2)), message(succession(4, 5))]);
    let signed = succession(0, 1);
    for number in 0..1500 {
        let (old, new) = (made_up(number), made_up(number + 1));
        let nobody = Succession { old_public_key: old, new_public_key: new, ..signed.clone() };
        let rival = Succession { old_public_key: party(0), ..nobody.clone() };
        for one in [nobody, rival] {
            kept.successions.insert(one.name(), one);
        }
    }
    let members = group(&[(1, 0)]);
    let given = kept.successions_given(&members);
    assert!(*given[0] == succession(0, 2) && given.contains(&&succession(4, 5)));
    assert_eq!(given.len(), RIVALS_MAX + 1, "a few of the lost device, one of the member");
    assert!(given.iter().all(|one| [party(0), party(4)].contains(&one.old_public_key)));
    let surplus = kept.successions_surplus(&members);
    assert_eq!(kept.successions.len() - surplus.len(), RIVALS_MAX + 1);
    for name in &surplus {
        kept.successions.remove(name);
    }
    assert_eq!(*kept.of_members(&members).who(&party(0)), party(2));
    // However many count, all of them stay.
    let mut members = group(&[]);
    let mut kept = Ledger::default();
    for number in 0..600 {
        let old = made_up(number);
        let control = Control::Revoke { device: old.device().expect("a device"), join_key: None };
        members.apply(LOG, u64::from(number) + 100, 0, &header(0), &control).expect("revoked");
        let one = Succession { old_public_key: old, new_public_key: party(1), ..signed.clone() };
        kept.successions.insert(one.name(), one);
    }
    assert!(kept.successions_surplus(&members).is_empty());
    assert_eq!(kept.successions_given(&members).len(), GIVEN_MAX);
}

#[test]
fn nobody_takes_a_place_without_both_keys() {
    let good = succession(0, 2);
    let other = succession(1, 2);
    let forged = [
        Succession { old_signature: good.new_signature.clone(), ..good.clone() },
        Succession { new_signature: good.old_signature.clone(), ..good.clone() },
        Succession { old_public_key: party(1), ..good.clone() },
        Succession { new_public_key: party(3), ..good.clone() },
        Succession { old_signature: other.old_signature, ..good.clone() },
        Succession { old_signature: String::new(), ..good.clone() },
        Succession { group_id: LogId([0x45; 16]).to_uuid_text(), ..good.clone() },
        Succession::new(LogId([0x45; 16]), &device(0), &device(2)),
        Succession {
            group_id: LOG.to_uuid_text(),
            ..Succession::new(LogId([0x45; 16]), &device(0), &device(2))
        },
        Succession::new(LOG, &device(0), &device(0)),
    ];
    for forged in forged {
        assert!(ledger(&[message(forged)]) == Ledger::default());
    }
    let totals = Said {
        log: LOG,
        sender: device(2).key(),
        at: 0,
        approvals: true,
        message: &message(good.clone()),
    };
    let mut app = Ledger::default();
    app.take(totals);
    assert!(app.successions.is_empty(), "in a totals group nobody changes its key");
    assert!(!ledger(&[message(good)]).successions.is_empty());
}

fn messages() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let number = || 0..DEVICES;
    let among = proptest::collection::vec(number(), 1..5);
    let expenses = proptest::collection::vec((number(), among, 1..1_000u32), 1..12);
    let successions = proptest::collection::vec((number(), number()), 0..8);
    (expenses, successions).prop_map(|(expenses, successions)| {
        let expenses = (0..).zip(expenses);
        // Whatever the number of shares, they are whole.
        let mut all: Vec<Vec<u8>> =
            expenses.map(|(id, (by, among, part))| paid(id, by, &among, part * 60)).collect();
        all.extend(successions.into_iter().map(|(old, new)| message(succession(old, new))));
        all
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn in_any_order_everybody_has_the_same_successors_and_no_cent_is_lost(
        (messages, shuffled) in messages().prop_flat_map(|messages| {
            let twice = [messages.clone(), messages.clone()].concat();
            (Just(messages), Just(twice).prop_shuffle())
        }),
        revocations in proptest::collection::vec((0..DEVICES, 0..DEVICES), 0..8),
    ) {
        let members = group(&revocations);
        let kept = ledger(&messages);
        let seen = kept.clone().of_members(&members);
        prop_assert!(seen == ledger(&shuffled).of_members(&members));
        let mut summed: BTreeMap<Party, i64> = BTreeMap::new();
        for (party, minor) in balances(&kept) {
            *summed.entry(seen.who(&party).clone()).or_default() += minor;
        }
        prop_assert_eq!(balances(&seen), summed);
        for number in 0..DEVICES {
            let active = members.has(device(number).key());
            let who = party(number);
            prop_assert!(!active || *seen.who(&who) == who, "somebody active was succeeded");
            let last = seen.who(&who);
            prop_assert!(seen.who(last) == last, "a successor has none");
        }
    }

    #[test]
    fn who_can_reach_a_member_does_and_places_go_by_the_simple_rule(
        links in proptest::collection::vec((0..DEVICES, 0..DEVICES), 0..12),
        revocations in proptest::collection::vec((0..DEVICES, 0..DEVICES), 0..8),
    ) {
        let members = group(&revocations);
        let signed: Vec<Succession> = links
            .iter()
            .filter(|(old, new)| old != new)
            .map(|(old, new)| succession(*old, *new))
            .collect();
        let found = successors(signed.iter(), &members);
        prop_assert_eq!(&found, &simple(&links, &members));
        for old in (0..DEVICES).filter(|old| members.revocation(device(*old).key()).is_some()) {
            let mut reached = BTreeSet::from([old]);
            for _ in 0..DEVICES {
                for (from, to) in &links {
                    let lost = members.revocation(device(*from).key()).is_some();
                    if lost && reached.contains(from) {
                        reached.insert(*to);
                    }
                }
            }
            let home = reached.iter().any(|one| members.has(device(*one).key()));
            let end = found.get(&device(old).key());
            prop_assert_eq!(home, end.is_some_and(|end| members.has(*end)));
        }
    }
}

/// The rule in the plainest words: as often as it takes, the last revoked that can be given an end.
fn simple(links: &[(u8, u8)], members: &Membership) -> BTreeMap<DeviceKey, DeviceKey> {
    let key = |number: u8| device(number).key();
    let mut lost: Vec<u8> =
        (0..DEVICES).filter(|one| members.revocation(key(*one)).is_some()).collect();
    lost.sort_by_key(|one| Reverse(members.revocation(key(*one)).map(|revoked| revoked.seq)));
    let choices = |old: u8| {
        let mut all: Vec<u8> = links
            .iter()
            .filter(|(from, to)| *from == old && to != from)
            .map(|(_, to)| *to)
            .collect();
        all.sort_by_key(|new| sha256(&[key(old).0, key(*new).0].concat()));
        all.sort_by_key(|new| members.revocation(key(old)).map(|it| it.by) != Some(key(*new)));
        all
    };
    let mut ends = BTreeMap::new();
    for members_only in [true, false] {
        let is_end = |one: u8| {
            members.has(key(one))
                || !members_only && (!lost.contains(&one) || choices(one).is_empty())
        };
        loop {
            let before = ends.clone();
            for old in lost.iter().copied() {
                let mut given = choices(old).into_iter().filter_map(|new| {
                    if is_end(new) { Some(new) } else { ends.get(&new).copied() }
                });
                if let Some(end) = given.next().filter(|_| !ends.contains_key(&old)) {
                    ends.insert(old, end);
                }
            }
            if before == ends {
                break;
            }
        }
    }
    ends.into_iter().map(|(old, end)| (key(old), key(end))).collect()
}
