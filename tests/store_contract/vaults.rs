//! Vaults: counts, uploads, snapshots, and what is due to go.

use sealwire_actors::ports::{
    COMPACT_BYTES_MAX, COMPACT_ENTRIES_MAX, ChunkResult, CommitResult, CompactStep, LogKey,
    MemberChange, NewChunk, Position, SnapshotRecord, Store, StoreError, Upload, VaultChange,
    VaultCounts, VaultRecord,
};
use sealwire_protocol::digest::sha256;
use sealwire_protocol::{Digest, Head, LogType};

use super::on_every_store;
use super::scribe::{Draft, NOON, Scribe, commit, device, found, outline};
use crate::support::databases::Database;

on_every_store! {
    a_new_vault_holds_its_first_entry
    an_upload_grows_chunk_by_chunk_and_by_nothing_else
    only_an_enrolled_device_uploads
    a_vault_takes_no_more_uploads_than_it_may
    a_range_of_an_upload_is_read_across_its_chunks
    an_upload_that_was_not_verified_is_never_claimed
    a_commit_makes_an_upload_a_snapshot_and_confirms_it
    a_snapshot_that_goes_is_gone_and_may_come_again
    uploads_are_swept_and_snapshots_are_not
    entries_below_a_confirmed_snapshot_are_due
    a_vault_of_one_device_is_due_when_its_snapshot_has_stood
    what_was_made_before_the_others_went_does_not_count_alone
    a_long_vault_is_due_in_steps
    due_vaults_are_looked_for_in_steps
    nothing_is_left_of_a_vault_that_ended
}

async fn vault(store: &dyn Store, seed: u64) -> Scribe {
    found(store, seed, LogType::Vault, device(1)).await
}

fn chunk<'a>(whole: &[u8], offset: u64, bytes: &'a [u8]) -> NewChunk<'a> {
    NewChunk {
        device: device(1),
        digest: sha256(whole),
        size: whole.len() as u64,
        offset,
        bytes,
        now: NOON,
        snapshots_max: 3,
        bytes_max: 10_000,
    }
}

const fn upload(size: u64, received: u64, chunks: u32) -> Upload {
    Upload { size, received, chunks, verified: false }
}

/// Uploads all of it in one chunk.
async fn upload_whole(store: &dyn Store, key: LogKey, whole: &[u8]) -> Digest {
    let kept = store.put_chunk(key, &chunk(whole, 0, whole)).await;
    assert_eq!(kept, Ok(ChunkResult::Kept(upload(whole.len() as u64, whole.len() as u64, 1))));
    store.end_upload(key, sha256(whole), true).await.expect("verified");
    sha256(whole)
}

fn record(log: &Scribe, digest: Digest, size: u64, head: Position) -> SnapshotRecord {
    SnapshotRecord {
        digest,
        head: Head { incarnation: u64::MAX - 5, seq: head.seq, chain: head.chain },
        size,
        author: device(1),
        seq: log.head.seq,
        at: NOON + 7,
        confirmed: false,
    }
}

fn change(snapshots: &[SnapshotRecord], dropped: &[Digest]) -> VaultChange {
    let counts = VaultCounts { entries: 100, bytes: 1000 };
    VaultChange { counts, snapshots: snapshots.to_vec(), dropped: dropped.to_vec() }
}

async fn commit_change(store: &dyn Store, log: &Scribe, change: VaultChange) {
    let mut part = log.part();
    part.vault = Some(change);
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
}

async fn a_new_vault_holds_its_first_entry(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let log = vault(store, 1).await;
    let counts = VaultCounts { entries: 1, bytes: 8 };
    let expected = VaultRecord { counts, snapshots: Vec::new() };
    assert_eq!(log.load(store).await.vault, expected);
    assert_eq!(store.vault_counts(log.key).await, Ok(counts));
    let group = found(store, 2, LogType::Group, device(1)).await;
    assert_eq!(group.load(store).await.vault, VaultRecord::default());
    assert_eq!(store.vault_counts(group.key).await, Ok(VaultCounts::default()));
    opened.close().await;
}

async fn an_upload_grows_chunk_by_chunk_and_by_nothing_else(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let log = vault(store, 1).await;
    let whole = b"0123456789";
    let put = async |offset, bytes| store.put_chunk(log.key, &chunk(whole, offset, bytes)).await;
    assert_eq!(put(0, b"").await, Ok(ChunkResult::NotNext(upload(10, 0, 0))), "only asked");
    assert_eq!(put(4, b"45").await, Ok(ChunkResult::NotNext(upload(10, 0, 0))));
    assert_eq!(put(0, b"0123").await, Ok(ChunkResult::Kept(upload(10, 4, 1))));
    assert_eq!(put(0, b"0123").await, Ok(ChunkResult::NotNext(upload(10, 4, 1))));
    let other = NewChunk { size: 11, ..chunk(whole, 4, b"4567") };
    assert_eq!(store.put_chunk(log.key, &other).await, Ok(ChunkResult::OtherSize));
    assert_eq!(put(4, b"456789").await, Ok(ChunkResult::Kept(upload(10, 10, 2))));
    assert_eq!(put(10, b"").await, Ok(ChunkResult::NotNext(upload(10, 10, 2))));
    store.end_upload(log.key, sha256(whole), true).await.expect("verified");
    let verified = Upload { verified: true, ..upload(10, 10, 2) };
    assert_eq!(put(10, b"").await, Ok(ChunkResult::NotNext(verified)));
    opened.close().await;
}

async fn only_an_enrolled_device_uploads(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let log = vault(store, 1).await;
    let group = found(store, 2, LogType::Group, device(1)).await;
    let stranger = NewChunk { device: device(2), ..chunk(b"ab", 0, b"a") };
    for (key, chunk) in [
        (log.key, stranger),
        (group.key, chunk(b"ab", 0, b"a")),
        (LogKey(99), chunk(b"ab", 0, b"a")),
    ] {
        assert_eq!(store.put_chunk(key, &chunk).await, Ok(ChunkResult::NotEnrolled));
    }
    opened.close().await;
}

async fn a_vault_takes_no_more_uploads_than_it_may(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let (log, other) = (vault(store, 1).await, vault(store, 2).await);
    for number in 0..3_u8 {
        let whole = [number; 10];
        let kept = store.put_chunk(log.key, &chunk(&whole, 0, b"a")).await;
        assert_eq!(kept, Ok(ChunkResult::Kept(upload(10, 1, 1))));
    }
    let fourth = store.put_chunk(log.key, &chunk(&[9; 10], 0, b"a")).await;
    assert_eq!(fourth, Ok(ChunkResult::Full));
    let known = store.put_chunk(log.key, &chunk(&[2; 10], 1, b"b")).await;
    assert_eq!(known, Ok(ChunkResult::Kept(upload(10, 2, 2))), "one that was begun goes on");
    // By what was announced, not by what has come.
    let large = [7; 9_000];
    let kept = store.put_chunk(other.key, &chunk(&large, 0, b"a")).await;
    assert_eq!(kept, Ok(ChunkResult::Kept(upload(9_000, 1, 1))));
    let second = store.put_chunk(other.key, &chunk(&[8; 1_001], 0, b"a")).await;
    assert_eq!(second, Ok(ChunkResult::Full));
    opened.close().await;
}

async fn a_range_of_an_upload_is_read_across_its_chunks(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let log = vault(store, 1).await;
    let whole: Vec<u8> = (0..1000_u32).map(|at| at as u8).collect();
    for start in (0..1000).step_by(100) {
        let chunk = chunk(&whole, start as u64, &whole[start..start + 100]);
        assert!(matches!(store.put_chunk(log.key, &chunk).await, Ok(ChunkResult::Kept(_))));
    }
    let read = async |offset: u64, length| {
        store.read_chunk(log.key, sha256(&whole), offset, length).await.expect("read")
    };
    assert_eq!(read(0, 1000).await, whole);
    assert_eq!(read(0, 5000).await, whole);
    assert_eq!(read(150, 100).await, whole[150..250]);
    assert_eq!(read(199, 2).await, whole[199..201]);
    assert_eq!(read(200, 100).await, whole[200..300]);
    assert_eq!(read(950, 100).await, whole[950..]);
    assert!(read(1000, 1).await.is_empty());
    assert!(read(0, 0).await.is_empty());
    let unknown = store.read_chunk(log.key, Digest([1; 32]), 0, 9).await;
    assert_eq!(unknown, Ok(Vec::new()));
    opened.close().await;
}

async fn an_upload_that_was_not_verified_is_never_claimed(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let log = vault(store, 1).await;
    let whole = b"0123456789";
    let claim = async || store.claim_upload(log.key, sha256(whole), NOON).await;
    assert_eq!(claim().await, Ok(None));
    store.put_chunk(log.key, &chunk(whole, 0, whole)).await.expect("kept");
    assert_eq!(claim().await, Ok(None));
    // It was another's bytes: the next one begins anew.
    store.end_upload(log.key, sha256(whole), false).await.expect("forgotten");
    assert_eq!(claim().await, Ok(None));
    let begun = store.put_chunk(log.key, &chunk(whole, 0, b"01234")).await;
    assert_eq!(begun, Ok(ChunkResult::Kept(upload(10, 5, 1))));
    let read = store.read_chunk(log.key, sha256(whole), 0, 10).await;
    assert_eq!(read, Ok(b"01234".to_vec()));
    store.put_chunk(log.key, &chunk(whole, 5, b"56789")).await.expect("kept");
    store.end_upload(log.key, sha256(whole), true).await.expect("verified");
    let verified = Upload { verified: true, ..upload(10, 10, 2) };
    assert_eq!(claim().await, Ok(Some(verified)));
    opened.close().await;
}

async fn a_commit_makes_an_upload_a_snapshot_and_confirms_it(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = vault(store, 1).await;
    log.commit(store, &[Draft::of(device(1), b"a"), Draft::of(device(1), b"b")]).await;
    let first = upload_whole(store, log.key, b"the first").await;
    let second = upload_whole(store, log.key, b"the second").await;
    assert_eq!(store.snapshots(log.key).await, Ok(Vec::new()));
    let one = record(&log, first, 9, log.head);
    commit_change(store, &log, change(&[one], &[])).await;
    assert_eq!(store.snapshots(log.key).await, Ok(vec![one]));
    let loaded = log.load(store).await.vault;
    assert_eq!(loaded.counts, VaultCounts { entries: 100, bytes: 1000 });
    assert_eq!(loaded.snapshots, [one]);
    log.commit(store, &[Draft::of(device(1), b"c")]).await;
    let two = record(&log, second, 10, log.head);
    let one = SnapshotRecord { confirmed: true, ..one };
    commit_change(store, &log, change(&[one, two], &[])).await;
    assert_eq!(store.snapshots(log.key).await, Ok(vec![two, one]), "newest first");
    assert_eq!(log.load(store).await.vault.snapshots, [one, two]);
    // A commit that finds another head changes nothing.
    let mut stale = log.part();
    stale.expected_seq = 1;
    stale.vault = Some(change(&[], &[first]));
    assert_eq!(commit(store, stale).await, Ok(CommitResult::Stale));
    assert_eq!(store.snapshots(log.key).await.map(|it| it.len()), Ok(2));
    opened.close().await;
}

async fn a_snapshot_that_goes_is_gone_and_may_come_again(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let log = vault(store, 1).await;
    let digest = upload_whole(store, log.key, b"a snapshot").await;
    commit_change(store, &log, change(&[record(&log, digest, 10, log.head)], &[])).await;
    commit_change(store, &log, change(&[], &[digest])).await;
    assert_eq!(store.snapshots(log.key).await, Ok(Vec::new()));
    assert_eq!(store.read_chunk(log.key, digest, 0, 10).await, Ok(Vec::new()));
    assert_eq!(store.claim_upload(log.key, digest, NOON).await, Ok(None));
    assert_eq!(upload_whole(store, log.key, b"a snapshot").await, digest);
    assert_eq!(store.read_chunk(log.key, digest, 0, 10).await, Ok(b"a snapshot".to_vec()));
    opened.close().await;
}

async fn uploads_are_swept_and_snapshots_are_not(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let log = vault(store, 1).await;
    let digest = upload_whole(store, log.key, b"a snapshot").await;
    commit_change(store, &log, change(&[record(&log, digest, 10, log.head)], &[])).await;
    let claimed = upload_whole(store, log.key, b"claimed").await;
    store.put_chunk(log.key, &chunk(b"begun", 0, b"b")).await.expect("kept");
    store.claim_upload(log.key, claimed, NOON + 5).await.expect("claimed");
    let sweep = async |before| {
        while store.sweep_snapshots(before, 2).await.expect("swept") > 0 {}
    };
    let there =
        async |digest| !store.read_chunk(log.key, digest, 0, 1).await.expect("read").is_empty();
    sweep(NOON).await;
    assert!(there(sha256(b"begun")).await, "not before its time");
    sweep(NOON + 5).await;
    assert!(!there(sha256(b"begun")).await);
    assert!(there(claimed).await, "touched when it was claimed");
    sweep(NOON + 6).await;
    assert!(!there(claimed).await);
    sweep(u64::MAX).await;
    assert!(there(digest).await);
    opened.close().await;
}

/// Two devices, five entries, one of them kept for ever, and a snapshot of the fifth.
async fn covered(store: &dyn Store, seed: u64) -> (Scribe, SnapshotRecord) {
    let mut log = vault(store, seed).await;
    let drafts = [
        Draft::of(device(1), b"0123456789"),
        Draft::of(device(1), b"kept").control(),
        Draft::of(device(1), b"01234"),
        Draft::of(device(1), b"012"),
    ];
    let mut part = log.write(&drafts);
    part.members.push(MemberChange::Joined { device: device(2), seq: 2, at: NOON });
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    let head = log.head;
    log.commit(store, &[Draft::of(device(1), b"above")]).await;
    let digest = upload_whole(store, log.key, &seed.to_be_bytes()).await;
    let snapshot = record(&log, digest, 8, head);
    commit_change(store, &log, change(&[snapshot], &[])).await;
    (log, snapshot)
}

async fn due(store: &dyn Store, alone_before: u64) -> Vec<CompactStep> {
    store.due_for_compaction(LogKey(0), alone_before, 100).await.expect("read").0
}

async fn entries_below_a_confirmed_snapshot_are_due(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let (log, snapshot) = covered(store, 1).await;
    assert_eq!(due(store, u64::MAX >> 1).await, [], "two devices, and nobody has opened it");
    let confirmed = SnapshotRecord { confirmed: true, ..snapshot };
    commit_change(store, &log, change(&[confirmed], &[])).await;
    let up_to = Position { seq: 5, chain: snapshot.head.chain };
    let gone = VaultCounts { entries: 3, bytes: 18 };
    let step = CompactStep { key: log.key, from: 0, up_to, gone };
    assert_eq!(due(store, 0).await, [step]);
    let mut part = log.part();
    part.floor = Some(up_to);
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    assert_eq!(due(store, 0).await, []);
    let page = store.read_page(&log.page(device(2), 0)).await.expect("read");
    assert_eq!(outline(&page), [(1, true), (3, true), (6, true)]);
    opened.close().await;
}

async fn a_vault_of_one_device_is_due_when_its_snapshot_has_stood(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let (log, snapshot) = covered(store, 1).await;
    let mut part = log.part();
    part.members.push(MemberChange::Left { device: device(2) });
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    assert_eq!(due(store, snapshot.at).await, []);
    assert_eq!(due(store, snapshot.at + 1).await.len(), 1);
    opened.close().await;
}

async fn what_was_made_before_the_others_went_does_not_count_alone(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    // Made by the one that is left, before the other went; and by the one that went.
    for (seed, stays, goes) in [(1, 1, 2), (2, 2, 1)] {
        let (mut log, snapshot) = covered(store, seed).await;
        assert_eq!(snapshot.author, device(1));
        let mut part = log.write(&[Draft::of(device(stays), b"revoke").control()]);
        part.guard_seq = (stays == 1).then_some(log.head.seq);
        part.members.push(MemberChange::Revoked { device: device(goes), seq: log.head.seq });
        assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    }
    assert_eq!(due(store, u64::MAX >> 1).await, []);
    opened.close().await;
}

async fn a_long_vault_is_due_in_steps(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = vault(store, 1).await;
    while log.head.seq < COMPACT_ENTRIES_MAX as u64 + 100 {
        let drafts: Vec<Draft> = (0..500).map(|_| Draft::of(device(1), b"x")).collect();
        log.commit(store, &drafts).await;
    }
    let large = vec![7; COMPACT_BYTES_MAX as usize / 2];
    for _ in 0..3 {
        log.commit(store, &[Draft::of(device(1), &large)]).await;
    }
    let digest = upload_whole(store, log.key, b"a snapshot").await;
    let snapshot = SnapshotRecord { confirmed: true, ..record(&log, digest, 10, log.head) };
    commit_change(store, &log, change(&[snapshot], &[])).await;
    let (mut floors, mut gone) = (Vec::new(), VaultCounts::default());
    while let Some(step) = due(store, 0).await.first() {
        let mut part = log.part();
        part.floor = Some(step.up_to);
        assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
        floors.push(step.up_to.seq);
        gone.entries += step.gone.entries;
        gone.bytes += step.gone.bytes;
    }
    assert_eq!((floors[0], floors.len()), (COMPACT_ENTRIES_MAX as u64, 3), "{floors:?}");
    assert_eq!(floors.last(), Some(&log.head.seq));
    let small = log.head.seq - 4;
    assert_eq!(gone.entries, log.head.seq - 1);
    assert_eq!(gone.bytes, small + 3 * large.len() as u64);
    opened.close().await;
}

async fn due_vaults_are_looked_for_in_steps(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let mut keys = Vec::new();
    for seed in 0..3 {
        keys.push(vault(store, seed).await.key);
    }
    let step = async |after| store.due_for_compaction(after, 0, 2).await;
    assert_eq!(step(LogKey(0)).await, Ok((Vec::new(), Some(keys[1]))));
    assert_eq!(step(keys[1]).await, Ok((Vec::new(), None)));
    opened.close().await;
}

async fn nothing_is_left_of_a_vault_that_ended(database: &Database) {
    let opened = database.open().await;
    let store = &*opened.store;
    let (log, snapshot) = covered(store, 1).await;
    let mut part = log.part();
    part.ended = true;
    assert_eq!(commit(store, part).await, Ok(CommitResult::Committed));
    assert_eq!(store.snapshots(log.key).await, Ok(Vec::new()));
    while store.sweep_snapshots(0, 10).await.expect("swept") > 0 {}
    assert_eq!(store.read_chunk(log.key, snapshot.digest, 0, 9).await, Ok(Vec::new()));
    let late = store.put_chunk(log.key, &chunk(b"late", 0, b"l")).await;
    assert_eq!(late, Ok::<_, StoreError>(ChunkResult::NotEnrolled));
    opened.close().await;
}
