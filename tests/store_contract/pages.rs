//! Pages: in order, bounded, and without the bodies that are not for their reader.

use sealwire_actors::ports::{CommitResult, ControlsRequest, LogKey, PageRequest};
use sealwire_protocol::{Body, LogType};

use super::on_every_store;
use super::scribe::{Draft, NOON, commit, device, found, outline, plain};
use crate::support::databases::Database;

on_every_store! {
    pages_follow_each_other_without_gap_or_repetition
    a_page_ends_before_the_body_that_does_not_fit
    the_first_entry_is_given_however_long_its_body_is
    nothing_beyond_the_published_head_is_read
    bodies_that_are_not_for_the_reader_are_not_given_and_count_for_nothing
    in_a_vault_every_device_reads_every_body
    control_bodies_are_for_everyone_who_reads
    a_stored_entry_is_what_was_committed
    control_entries_are_read_alone_and_in_order
    a_page_of_controls_is_bounded_by_bytes_and_never_empty
    an_empty_body_is_a_body
}

async fn pages_follow_each_other_without_gap_or_repetition(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    for round in 0..5_u8 {
        let drafts: Vec<Draft> =
            (0..20).map(|length| Draft::of(device(1), &vec![round; length * 10])).collect();
        log.commit(store, &drafts).await;
    }
    let mut read = Vec::new();
    let mut pages = 0;
    while read.len() < 101 {
        let after = read.last().copied().unwrap_or(0);
        let request = PageRequest { entries_max: 7, bytes_max: 500, ..log.page(device(2), after) };
        let page = store.read_page(&request).await.expect("read");
        let bytes: usize =
            page.iter().map(|entry| entry.body.as_ref().expect("for all").len()).sum();
        assert!((1..=7).contains(&page.len()) && (bytes <= 500 || page.len() == 1));
        read.extend(page.iter().map(|entry| entry.seq));
        pages += 1;
    }
    assert!(read.iter().copied().eq(1..=101));
    assert!(pages > 101 / 7, "bytes have ended some pages early");
    opened.close().await;
}

async fn a_page_ends_before_the_body_that_does_not_fit(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let drafts: Vec<Draft> = (0..4).map(|_| Draft::of(device(1), &[5; 100])).collect();
    log.commit(store, &drafts).await;
    for (bytes_max, expected) in [(0, 1), (99, 1), (100, 1), (199, 1), (200, 2), (300, 3)] {
        let request = PageRequest { bytes_max, ..log.page(device(2), 1) };
        let page = store.read_page(&request).await.expect("read");
        assert_eq!(page.len(), expected, "of {bytes_max} bytes");
        assert!(page.iter().all(|entry| entry.body.is_some()));
    }
    opened.close().await;
}

async fn the_first_entry_is_given_however_long_its_body_is(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let long = vec![6; 256 * 1024];
    log.commit(store, &[Draft::of(device(1), &long), Draft::of(device(1), b"")]).await;
    let request = PageRequest { bytes_max: 10, ..log.page(device(2), 1) };
    let page = store.read_page(&request).await.expect("read");
    assert_eq!(outline(&page), [(2, true)]);
    assert_eq!(page[0].body.as_ref().map(AsRef::as_ref), Some(&long[..]));
    opened.close().await;
}

async fn nothing_beyond_the_published_head_is_read(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    log.commit(store, &[Draft::of(device(1), b"a"), Draft::of(device(1), b"b")]).await;
    let request = PageRequest { up_to: 2, ..log.page(device(2), 0) };
    assert_eq!(outline(&store.read_page(&request).await.expect("read")), [(1, true), (2, true)]);
    let request = PageRequest { up_to: u64::MAX, ..log.page(device(2), 3) };
    assert!(store.read_page(&request).await.expect("read").is_empty());
    let request = PageRequest { after: u64::MAX, ..log.page(device(2), 0) };
    assert!(store.read_page(&request).await.expect("read").is_empty());
    let request = PageRequest { key: LogKey(404), ..log.page(device(2), 0) };
    assert!(store.read_page(&request).await.expect("read").is_empty());
    opened.close().await;
}

async fn bodies_that_are_not_for_the_reader_are_not_given_and_count_for_nothing(
    database: &Database,
) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let long = [1; 1000];
    log.commit(
        store,
        &[
            Draft::of(device(1), &long),
            Draft::of(device(2), &long),
            Draft::of(device(1), &long).to(&[device(3), device(4)]),
            Draft::of(device(1), &long).to(&[device(2), device(3)]),
            Draft::of(device(1), &long).to(&[device(2)]),
            Draft::of(device(3), b"short"),
        ],
    )
    .await;
    let page = |reader, joined_seq, bytes_max| {
        let request = PageRequest { joined_seq, bytes_max, ..log.page(reader, 1) };
        async move { outline(&store.read_page(&request).await.expect("read")) }
    };
    let expected = [(2, true), (3, false), (4, false), (5, true), (6, true), (7, true)];
    assert_eq!(page(device(2), 0, 5000).await, expected);
    let expected = [(2, false), (3, true), (4, false), (5, false), (6, false), (7, true)];
    // Five names in three entries are 160 bytes.
    assert_eq!(page(device(1), 0, 1165).await, expected, "bodies that are not given cost nothing");
    assert_eq!(page(device(1), 0, 1164).await, expected[..5], "names do");
    let expected = [(2, false), (3, false), (4, true), (5, true), (6, false), (7, false)];
    assert_eq!(page(device(3), 3, 5000).await, expected, "nothing from before it joined");
    let expected = [(2, true), (3, true), (4, true), (5, false), (6, false), (7, true)];
    assert_eq!(page(device(4), 1, 5000).await, expected);
    opened.close().await;
}

async fn in_a_vault_every_device_reads_every_body(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Vault, device(1)).await;
    log.commit(store, &[Draft::of(device(1), b"a"), Draft::of(device(2), b"b").to(&[device(3)])])
        .await;
    for reader in [device(1), device(2), device(9)] {
        let request = PageRequest { joined_seq: 2, ..log.page(reader, 0) };
        let page = store.read_page(&request).await.expect("read");
        assert_eq!(outline(&page), [(1, true), (2, true), (3, true)]);
    }
    opened.close().await;
}

async fn control_bodies_are_for_everyone_who_reads(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    log.commit(store, &[Draft::of(device(1), b"a"), Draft::of(device(1), b"leave").control()])
        .await;
    let request = PageRequest { joined_seq: 3, ..log.page(device(1), 0) };
    let page = store.read_page(&request).await.expect("read");
    assert_eq!(outline(&page), [(1, true), (2, false), (3, true)]);
    assert_eq!(page[2].body.as_ref().map(AsRef::as_ref), Some(&b"leave"[..]));
    opened.close().await;
}

async fn a_stored_entry_is_what_was_committed(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let mut draft = Draft::of(device(1), &[0, 255, 0]).to(&[device(2), device(3)]).at(NOON + 7);
    draft.totals_kind = Some("expense".to_owned());
    let part = log.write(&[draft, Draft::of(device(1), b"x")]);
    let new = part.entries.clone();
    assert!(new[0].signature.is_some() && new[1].signature.is_none());
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let page = store.read_page(&log.page(device(2), 1)).await.expect("read");
    for (stored, new) in page.iter().zip(&new) {
        assert_eq!((stored.seq, stored.at), (new.seq, new.at));
        assert!(stored.header == new.header && stored.signature == new.signature);
        assert_eq!((&stored.recipients, stored.chain), (&new.recipients, new.chain));
        assert!(stored.body.as_ref() == Some(&new.body));
        assert_eq!(stored.totals_kind, new.totals_kind);
    }
    let other = store.read_page(&log.page(device(4), 1)).await.expect("read");
    assert!(other[0].body.is_none() && other[0].totals_kind.is_none(), "the kind goes with it");
    assert_eq!(other[0].recipients, [device(2), device(3)]);
    opened.close().await;
}

async fn control_entries_are_read_alone_and_in_order(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Vault, device(1)).await;
    for number in 0..4_u8 {
        let drafts = [Draft::of(device(1), &[number]), Draft::of(device(1), &[number]).control()];
        log.commit(store, &drafts).await;
    }
    let read = async |after, up_to, entries_max| {
        let request = ControlsRequest { entries_max, ..log.controls(after, up_to) };
        let controls = store.read_controls(&request).await.expect("read");
        assert!(controls.entries.iter().all(|entry| entry.body.is_some()));
        let seqs: Vec<u64> = controls.entries.iter().map(|entry| entry.seq).collect();
        (seqs, controls.complete)
    };
    assert_eq!(read(0, 9, 100).await, (vec![1, 3, 5, 7, 9], true));
    assert_eq!(read(1, 7, 100).await, (vec![3, 5, 7], true));
    assert_eq!(read(0, 9, 2).await, (vec![1, 3], false));
    assert_eq!(read(9, 9, 100).await, (Vec::new(), true));
    assert_eq!(read(9, 3, 100).await, (Vec::new(), true));
    let whole = store.read_page(&log.page(device(1), 2)).await.expect("read");
    let alone = store.read_controls(&log.controls(2, 3)).await.expect("read").entries;
    assert_eq!(plain(&alone[0]), plain(&whole[0]));
    opened.close().await;
}

async fn a_page_of_controls_is_bounded_by_bytes_and_never_empty(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Vault, device(1)).await;
    let names = [device(1), device(2)];
    for body in [&[7; 5000][..], &[7; 300], &[7; 300]] {
        let kept = Draft::of(device(1), body).control().to(&names);
        log.commit(store, &[kept, Draft::of(device(1), &[8; 9000])]).await;
    }
    let read = async |after, bytes_max| {
        let request = ControlsRequest { bytes_max, ..log.controls(after, 7) };
        let controls = store.read_controls(&request).await.expect("read");
        let seqs: Vec<u64> = controls.entries.iter().map(|entry| entry.seq).collect();
        (seqs, controls.complete)
    };
    // The founding has eight bytes, and each of the others two names of 32 beside its body.
    assert_eq!(read(0, 8 + 5064 + 364 + 364).await, (vec![1, 2, 4, 6], true));
    assert_eq!(read(0, 8 + 5064 + 364 + 363).await, (vec![1, 2, 4], false));
    assert_eq!(read(0, 5064).await, (vec![1], false));
    assert_eq!(read(1, 100).await, (vec![2], false), "the first is given however long it is");
    assert_eq!(read(2, 728).await, (vec![4, 6], true));
    assert_eq!(read(4, 0).await, (vec![6], true));
    opened.close().await;
}

async fn an_empty_body_is_a_body(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    log.commit(store, &[Draft::of(device(1), b""), Draft::of(device(1), b"").control()]).await;
    let page = store.read_page(&log.page(device(2), 1)).await.expect("read");
    assert_eq!(outline(&page), [(2, true), (3, true)]);
    assert!(page.iter().all(|entry| entry.body.as_ref().is_some_and(Body::is_empty)));
    assert_eq!(log.load(store).await.live.len(), 1);
    opened.close().await;
}
