//! Whose turn it is to give a newcomer the key, with the time in hand.

use std::time::Instant;

use rusqlite::Connection;
use sealwire_protocol::{Audience, Control, Digest, Head, Header, Kind, LogId, LogType};

use super::*;
use crate::address::RelayUrl;
use crate::content::Content;
use crate::engine::desk::{Desk, Now};
use crate::engine::opening::Opened;
use crate::identity::{Identity, JoinSeed};
use crate::seal::{self, EpochKey, Place};
use crate::store::inbox::Sealed;
use crate::store::{Store, StoreError, logs};

pub(in crate::engine) const LOG: LogId = LogId([0x44; 16]);

/// The content key of epoch 1.
const KEY: [u8; 32] = [5; 32];

pub(in crate::engine) fn device(number: u8) -> Identity {
    Identity::from_seed(&[number + 1; 32])
}

/// A device that reads a group of four, of whom the last has just joined and lacks the key.
pub(in crate::engine) fn with_newcomer(
    test: impl FnOnce(&Connection, &mut Log, &mut Call<'_>, DeviceKey),
) {
    let me = device(1);
    let directory = tempfile::tempdir().expect("a directory");
    let store = Store::open(&directory.path().join("device.db"), me.key()).expect("a store");
    store
        .write(|db| {
            let relay = RelayUrl::parse("ws://127.0.0.1:1").expect("an address");
            let id = logs::insert(db, LOG, &relay, None)?;
            logs::set_phase(db, id, logs::Phase::Member)?;
            let row = logs::find(db, LOG)?.ok_or(StoreError::Damaged)?;
            let mut log = Log::load(db, row)?;
            let seed = JoinSeed::from_bytes([9; 32]);
            let join_key = Some(seed.public());
            let found = Control::Found { log_type: LogType::Group, random: [7; 32], join_key };
            let mut acts = vec![(0, found)];
            acts.extend((1..4).map(|number| {
                let signature = seed.admit(LOG, device(number).key());
                (number, Control::Join { signature })
            }));
            for (seq, (by, control)) in (1..).zip(acts) {
                let header = Header {
                    log: LOG,
                    sender: device(by).key(),
                    count: 1,
                    prev: Digest::ZERO,
                    kind: Kind::Control,
                    audience: Audience::All,
                    seen: Head::NONE,
                    body: Digest::ZERO,
                };
                log.membership.apply(LOG, seq, 0, &header, &control).expect("applied");
            }
            let scope = log.membership.scope().expect("founded");
            let everybody: Vec<DeviceKey> = (0..4).map(|number| device(number).key()).collect();
            log.holders.rotation(1, &everybody[..3], everybody.iter().copied());
            let key = EpochKey::from_bytes(KEY);
            keys::insert(db, id, KeyName { scope, epoch: 1 }, &key, Some(2))?;
            log.subscription = Subscription::Drained;
            let mut desk = Desk::new();
            let now = Now { at: Instant::now(), ms: 1_767_225_600_000 };
            let mut call = Call { db, device: &me, desk: &mut desk, now };
            test(db, &mut log, &mut call, device(3).key());
            Ok::<_, StoreError>(())
        })
        .expect("written");
}

fn delivers(db: &Connection, log: &Log) -> bool {
    let deliver = |draft: &Draft| matches!(draft, Draft::Deliver { .. });
    outbox::any_unsettled(db, log.id, deliver).expect("an outbox")
}

/// The device reads the receipt of one who was given the key by somebody else.
fn reads_receipt(log: &mut Log, call: &mut Call<'_>, author: DeviceKey) {
    let header = Header {
        log: LOG,
        sender: author,
        count: 2,
        prev: Digest::ZERO,
        kind: Kind::Quiet,
        audience: Audience::All,
        seen: Head::NONE,
        body: Digest::ZERO,
    };
    let bytes = header.encode();
    let place = Place { log: LOG, sender: author, aad: bytes.aad() };
    let content = Content::default().encode().expect("a receipt");
    let scope = log.membership.scope().expect("founded");
    let name = KeyName { scope, epoch: 1 };
    let body = seal::seal(&EpochKey::from_bytes(KEY), name, &place, &content).expect("sealed");
    let sealed = Sealed {
        sender: author,
        count: 2,
        seq: 5,
        at: 0,
        header: bytes,
        body,
        recipients: Vec::new(),
        epoch: Some(1),
        before: 0,
    };
    assert!(matches!(log.open(call, &header, &sealed), Ok(Opened::Content(_))));
}

/// Later than any turn.
const LONG: Duration = Duration::from_secs(60);

#[test]
fn a_device_gives_the_key_when_its_turn_has_come_and_nobody_has() {
    with_newcomer(|db, log, call, newcomer| {
        log.on_caught_up(call).expect("caught up");
        log.deliver_due(call).expect("looked");
        assert!(!delivers(db, log), "others go first, or it goes after a while");
        call.now.at += LONG;
        log.deliver_due(call).expect("looked");
        assert!(delivers(db, log));
        assert!(log.told.contains_key(&newcomer), "and the history with it");
    });
}

#[test]
fn who_was_given_the_key_by_a_member_gives_the_history_with_it_as_well() {
    with_newcomer(|db, log, call, newcomer| {
        let scope = log.membership.scope().expect("founded");
        let key = EpochKey::from_bytes(KEY);
        keys::replace(db, log.id, KeyName { scope, epoch: 1 }, &key).expect("by a delivery");
        log.on_caught_up(call).expect("caught up");
        call.now.at += LONG;
        log.deliver_due(call).expect("looked");
        assert!(delivers(db, log) && log.told.contains_key(&newcomer));
        let before = log.is_newcomer(call, device(0).key()).expect("looked");
        assert!(!before, "who was there before needs none");
    });
}

#[test]
fn who_has_shown_that_it_holds_the_key_is_given_none() {
    with_newcomer(|db, log, call, newcomer| {
        log.on_caught_up(call).expect("caught up");
        assert!(log.deliveries.contains_key(&newcomer));
        reads_receipt(log, call, newcomer);
        call.now.at += LONG;
        log.deliver_due(call).expect("looked");
        assert!(!delivers(db, log) && log.deadline().is_none());
    });
}

#[test]
fn successions_of_keys_that_nobody_has_fill_neither_the_ledger_nor_the_history() {
    use crate::ledger::Succession;
    use crate::store::{ledger, outbox};
    use crate::totals::payload::Payload;

    with_newcomer(|db, log, call, newcomer| {
        let say = |log: &mut Log, call: &mut Call<'_>, succession| {
            let message = Payload::Succession(succession).encode().expect("encoded");
            log.take_ledger(call, device(0).key(), 0, &message).expect("taken");
        };
        say(log, call, Succession::new(LOG, &device(2), &device(0)));
        let made_up = |number: u16| {
            let mut seed = [0xee; 32];
            seed[..2].copy_from_slice(&number.to_be_bytes());
            Identity::from_seed(&seed)
        };
        for number in 0..600 {
            say(log, call, Succession::new(LOG, &made_up(number), &made_up(number + 1)));
        }
        let kept = ledger::count_successions(db, log.id).expect("a number");
        assert!(kept <= crate::ledger::SUCCESSIONS_MAX, "{kept}");
        let before = outbox::count_unsent(db, log.id).expect("a number");
        log.give_history(call, newcomer).expect("given");
        let given = outbox::count_unsent(db, log.id).expect("a number") - before;
        assert_eq!(given, 2, "who is in the group, and the one succession of a member");
    });
}
