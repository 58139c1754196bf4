//! What every store knows of doorbells.

use sealwire_actors::ports::{Doorbell, LogKey, MemberChange, RecentEntry, RecentLog, Store};
use sealwire_protocol::{AckSet, DeviceKey, Kind, LogType};

use super::on_every_store;
use super::scribe::{Draft, NOON, Scribe, commit, device, found, reserve};
use crate::support::databases::Database;

on_every_store! {
    tokens_are_given_in_the_order_in_which_they_were_asked_for
    only_the_very_token_is_forgotten
    recent_logs_are_found_a_page_at_a_time
    recent_entries_come_newest_first_as_long_as_their_bodies_are_kept
    members_without_a_doorbell_are_left_out
}

fn place(token: &str) -> Option<(String, String)> {
    Some(("fcm".to_owned(), token.to_owned()))
}

async fn register(store: &dyn Store, who: DeviceKey, token: &str) {
    let doorbell = Doorbell { device: who, place: place(token) };
    store.set_push_tokens(&[doorbell], NOON).await.expect("noted");
}

/// A group of these devices, the first of which founded it.
async fn group_of(store: &dyn Store, seed: u64, others: &[u8]) -> Scribe {
    let mut log = found(store, seed, LogType::Group, device(1)).await;
    for other in others {
        let mut part = log.write(&[Draft::of(device(*other), b"join").control()]);
        let seq = log.head.seq;
        reserve(store, log.key, &[*other]).await;
        part.members.push(MemberChange::Joined { device: device(*other), seq, at: NOON });
        commit(store, part).await.expect("joined");
    }
    log
}

async fn tokens_are_given_in_the_order_in_which_they_were_asked_for(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    assert_eq!(store.push_tokens(&[]).await, Ok(vec![]));
    register(store, device(1), "one").await;
    register(store, device(2), "two").await;
    let asked = [device(3), device(2), device(1), device(2)];
    let told = store.push_tokens(&asked).await.expect("read");
    assert_eq!(told[..3], [None, place("two"), place("one")]);
    opened.close().await;
}

async fn only_the_very_token_is_forgotten(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    register(store, device(1), "new").await;
    register(store, device(2), "other").await;
    for (who, platform, token) in
        [(device(1), "fcm", "old"), (device(1), "apns", "new"), (device(2), "fcm", "new")]
    {
        assert_eq!(store.forget_push_token(who, platform, token).await, Ok(false));
    }
    assert_eq!(store.forget_push_token(device(1), "fcm", "new").await, Ok(true));
    assert_eq!(store.forget_push_token(device(1), "fcm", "new").await, Ok(false));
    let left = store.push_tokens(&[device(1), device(2)]).await;
    assert_eq!(left, Ok(vec![None, place("other")]));
    opened.close().await;
}

async fn recent_logs_are_found_a_page_at_a_time(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut recent = Vec::new();
    for seed in 1..=5 {
        let mut log = found(store, seed, LogType::Group, device(1)).await;
        if seed % 2 == 1 {
            log.commit(store, &[Draft::of(device(1), b"late").at(NOON + 10)]).await;
            recent.push(RecentLog { key: log.key, id: log.id, log_type: LogType::Group });
        }
    }
    let vault = found(store, 9, LogType::Vault, device(1)).await;
    let mut found = Vec::new();
    let mut after = LogKey(0);
    loop {
        let (page, last) = store.recent_logs(after, NOON + 10, 2).await.expect("read");
        found.extend(page);
        match last {
            Some(last) => after = last,
            None => break,
        }
    }
    assert_eq!(found, recent);
    let (all, last) = store.recent_logs(LogKey(0), 0, 100).await.expect("read");
    assert_eq!((all.len(), last), (6, None));
    assert_eq!((all[5].key, all[5].log_type), (vault.key, LogType::Vault));
    opened.close().await;
}

async fn recent_entries_come_newest_first_as_long_as_their_bodies_are_kept(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = group_of(store, 1, &[2, 3]).await;
    let totals = Draft { totals_kind: Some("expense".to_owned()), ..Draft::of(device(2), b"two") };
    let drafts = [
        Draft::of(device(1), b"gone"),
        Draft::of(device(1), b"named").to(&[device(3), device(2)]),
        totals.at(NOON + 5),
        Draft::of(device(1), b"control").control(),
    ];
    log.commit(store, &drafts).await;
    let mut part = log.part();
    part.freed = vec![(4, 4)];
    commit(store, part).await.expect("freed");
    let entry = |seq, at, sender: u8, kind: Option<&str>, named: &[DeviceKey]| RecentEntry {
        seq,
        at,
        sender: device(sender),
        kind: Kind::Ring,
        totals_kind: kind.map(str::to_owned),
        recipients: named.to_vec(),
    };
    let expected = [
        entry(6, NOON + 5, 2, Some("expense"), &[]),
        entry(5, NOON, 1, None, &[device(2), device(3)]),
    ];
    assert_eq!(store.recent_entries(log.key, u64::MAX, 100).await.as_deref(), Ok(&expected[..]));
    assert_eq!(store.recent_entries(log.key, 6, 100).await.as_deref(), Ok(&expected[1..]));
    assert_eq!(store.recent_entries(log.key, u64::MAX, 1).await.as_deref(), Ok(&expected[..1]));
    assert_eq!(store.recent_entries(LogKey(77), u64::MAX, 1).await, Ok(vec![]));
    opened.close().await;
}

async fn members_without_a_doorbell_are_left_out(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = group_of(store, 1, &[2, 3, 4]).await;
    for who in [2, 4, 5] {
        register(store, device(who), &format!("token {who}")).await;
    }
    let mut acked = AckSet::new();
    acked.insert(1, 2);
    let mut part = log.write(&[Draft::of(device(4), b"leave").control()]);
    part.members.push(MemberChange::Left { device: device(4) });
    part.acks.push((device(2), acked.clone()));
    commit(store, part).await.expect("committed");
    let members = store.members_with_doorbells(log.key).await.expect("read");
    assert_eq!(members.len(), 1);
    assert_eq!((members[0].member.device, members[0].member.joined_seq), (device(2), 2));
    assert_eq!(members[0].acked, acked);
    opened.close().await;
}
