//! Snapshots over a connection: beginning with one, and comparing one with what is here.

use std::cmp::Reverse;

use rusqlite::Connection;
use sealwire_protocol::frame::{SnapshotSummary, Subscribe, SubscribeFrom};
use sealwire_protocol::{DeviceKey, Digest};

use super::attached::Shared;
use super::coverage::Coverage;
use super::error::SyncError;
use super::intake::{At, Keyring};
use super::replay::Replayed;
use super::report::{Phase, Progress};
use super::schema::KeyScope;
use super::state::{self, StateBox, StateRows, StateSealed, Visit};
use super::turn::{Turn, ended};
use super::writer::{Writer, meta, set_meta};
use crate::error::StoreError;
use crate::vault::{SnapshotError, VaultError};

/// The snapshot that is still to be opened, as [`Pending`].
const PENDING: &str = "pending_snapshot";

/// The newest snapshot that was compared and found to lack something, or is being compared, as [`Tried`].
const REFUSED: &str = "refused_snapshot";

/// How often a snapshot is compared at most without coming to an end: it may have been this that has
/// ended the process, for want of memory, or something else.
const TRIES_MAX: u8 = 3;

/// The digest of a snapshot that nobody had confirmed and that did not open: without it everything was read.
const PASSED_OVER: &str = "passed_over_snapshot";

impl Turn {
    /// Begins a database that has read nothing with the newest snapshot that is confirmed, or else with
    /// the newest. Says whether there was one.
    pub(super) async fn bootstrap(&mut self) -> Result<bool, SyncError> {
        let snapshots = self.vault.snapshots(&mut self.wire).await.map_err(ended)?;
        let passed: Option<Vec<u8>> = self.shared.read(|db| meta(db, PASSED_OVER)).await?;
        let snapshots = snapshots.into_iter();
        let newest = snapshots
            .filter(|it| passed.as_ref().is_none_or(|passed| *passed != it.digest.0))
            .max_by_key(|it| (it.confirmed, it.head.seq));
        let Some(snapshot) = newest else { return Ok(false) };
        let digest = snapshot.digest;
        self.write(move |writer, _| Pending::of(&snapshot).keep(writer)).await?;
        // Entries behind it may be replayed before it is: the order makes no difference.
        let frame = SubscribeFrom { log: self.vault.log(), snapshot: digest };
        self.read(frame.into()).await?;
        self.finish_bootstrap().await?;
        Ok(true)
    }

    /// Opens the snapshot that is still to be opened, if there is one.
    pub(super) async fn finish_bootstrap(&mut self) -> Result<(), SyncError> {
        let pending: Option<Vec<u8>> = self.shared.read(|db| meta(db, PENDING)).await?;
        let Some(wanted) = pending.and_then(|bytes| Pending::read(&bytes)) else {
            return Ok(());
        };
        let mut first = None;
        let known = self.vault.snapshots(&mut self.wire).await.map_err(ended)?;
        let confirmed = known.iter().any(|snapshot| snapshot.confirmed);
        for snapshot in wanted.as_good_as(known) {
            match self.merge(&snapshot).await {
                // Whoever has made it has made it badly, or with a newer version: another one may do.
                Err(
                    error @ (SyncError::Vault(VaultError::Snapshot(_))
                    | SyncError::Store(StoreError::Newer)),
                ) => {
                    first.get_or_insert(error);
                }
                // It is enrolled, and whoever enrolled it has not given it the key yet.
                Err(SyncError::Vault(VaultError::NoKey)) => {
                    self.report.waits_for_key = true;
                    return Ok(());
                }
                other => return other,
            }
        }
        if !confirmed && first.is_some() {
            return self.pass_over(wanted.digest).await;
        }
        Err(first.unwrap_or(SnapshotError::Damaged.into()))
    }

    /// Reads everything from the beginning, without a snapshot that does not open. As nobody has confirmed
    /// one, nothing of the vault was let go of.
    async fn pass_over(&mut self, digest: Digest) -> Result<(), SyncError> {
        self.report.refused_snapshot = true;
        self.vault.start_over();
        self.write(move |writer, vault| {
            set_meta(writer.db, PASSED_OVER, &digest.0[..])?;
            forget_pending(writer)?;
            writer.keep_vault(vault)
        })
        .await?;
        let frame = Subscribe { log: self.vault.log(), cursor: None, acked: None };
        self.read(frame.into()).await
    }

    /// Whether a snapshot is still to be opened: this device is enrolled, and was not given its key yet.
    pub(super) async fn is_pending(&self) -> Result<bool, SyncError> {
        let pending: Option<Vec<u8>> = self.shared.read(|db| meta(db, PENDING)).await?;
        Ok(pending.is_some())
    }

    /// Opens a snapshot and merges it: all of it, or nothing.
    async fn merge(&mut self, snapshot: &SnapshotSummary) -> Result<(), SyncError> {
        let packed = self.open_snapshot(snapshot).await?;
        let private = self.private.map(|(scope, _)| scope);
        let shared = self.shared.clone();
        let seq = snapshot.head.seq;
        let replayed = self.write(move |writer, vault| {
            let keys = Keyring { vault, private };
            writer.drain()?;
            let done = writer.silently(|writer| {
                let done = Replayed::default();
                let mut merge = Merge { keys, seq, done, told: 0, shared: &shared };
                state::read(writer, keys, KeyScope::Group, &packed, &mut merge)?;
                Ok(merge.done)
            })?;
            forget_pending(writer)?;
            Ok(done)
        });
        let replayed = replayed.await?;
        self.report.take(replayed, 0, 0);
        Ok(())
    }

    /// Compares the newest snapshot of another device with what is here, and confirms it if nothing is
    /// missing.
    pub(crate) async fn confirm(&mut self) -> Result<(), SyncError> {
        let snapshots = self.vault.snapshots(&mut self.wire).await.map_err(ended)?;
        let newest = snapshots.into_iter().max_by_key(|snapshot| snapshot.head.seq);
        let Some(snapshot) = newest.filter(|snapshot| !snapshot.confirmed) else { return Ok(()) };
        let me = self.shared.identity.key();
        let read = self.vault.head().map_or(0, |head| head.seq);
        // Little is here then, and any snapshot would have it all.
        if self.vault.is_spoiled() || self.is_pending().await? {
            return Ok(());
        }
        let foreign = self.author_of(snapshot.digest).is_some_and(|author| author != me);
        let digest = snapshot.digest;
        let tried = self.shared.read(move |db| Tried::read(db, digest)).await?;
        if !foreign || tried.is_refused() || snapshot.head.seq > read {
            return Ok(());
        }
        let whole = match self.compare(snapshot).await {
            Ok(whole) => whole,
            // It says nothing of what is here, and never will.
            Err(SyncError::Vault(VaultError::Snapshot(_))) => false,
            Err(error) => {
                self.write(|writer, _| forget_refused(writer)).await?;
                // It can be compared when somebody has given the key.
                let later = matches!(error, SyncError::Vault(VaultError::NoKey));
                return if later { Ok(()) } else { Err(error) };
            }
        };
        if whole {
            self.vault.confirm(&mut self.wire, snapshot.digest).await.map_err(ended)?;
            self.report.confirmed = true;
            return self.settle().await;
        }
        self.write(move |writer, _| Tried::refused(digest).keep(writer.db)).await?;
        self.report.refused_snapshot = true;
        Ok(())
    }

    /// Whether nothing that is here is missing in a snapshot. If so, what it has of others is kept.
    async fn compare(&mut self, snapshot: SnapshotSummary) -> Result<bool, SyncError> {
        let packed = self.open_snapshot(&snapshot).await?;
        let private = self.private.map(|(scope, _)| scope);
        let digest = snapshot.digest;
        // Should it be the end of every process that opens it, it is not opened for ever.
        self.write(move |writer, _| Tried::read(writer.db, digest)?.again().keep(writer.db))
            .await?;
        let author = self.author_of(digest).ok_or(SnapshotError::Damaged)?;
        self.write(move |writer, vault| {
            let keys = Keyring { vault, private };
            // A value that nobody has stamped yet is none that a snapshot could have.
            writer.drain()?;
            let mut coverage = Coverage::of(keys, author, snapshot.head.seq, writer)?;
            coverage.take(writer, &packed)?;
            let whole = writer.is_covered(&coverage)?;
            if whole {
                writer.take_carried(keys, snapshot, &packed)?;
                forget_refused(writer)?;
            }
            Ok(whole)
        })
        .await
    }

    /// Downloads and opens a snapshot; it is still compressed.
    async fn open_snapshot(
        &mut self,
        snapshot: &SnapshotSummary,
    ) -> Result<zeroize::Zeroizing<Vec<u8>>, SyncError> {
        let author = self.author_of(snapshot.digest).ok_or(SnapshotError::Damaged)?;
        let (shared, total) = (self.shared.clone(), snapshot.size);
        let mut got =
            move |bytes| shared.progress(Progress::of(Phase::Downloading, bytes).until(total));
        let sealed = self.vault.download_with(&mut self.wire, snapshot, &mut got).await;
        let sealed = sealed.map_err(ended)?;
        Ok(self.vault.open_state(author, &snapshot.head, &sealed)?)
    }
}

/// A snapshot that is still to be opened, and all that is behind its head was or will be read.
#[derive(Clone, Copy)]
pub(super) struct Pending {
    digest: Digest,
    /// Its head's seq: what lies below is in no entry that is read.
    seq: u64,
}

impl Pending {
    pub(super) fn of(snapshot: &SnapshotSummary) -> Self {
        Self { digest: snapshot.digest, seq: snapshot.head.seq }
    }

    /// Keeps it, in place of an earlier one: the digest, and the seq in big-endian.
    pub(super) fn keep(self, writer: &Writer<'_>) -> Result<(), SyncError> {
        let bytes = [&self.digest.0[..], &self.seq.to_be_bytes()].concat();
        set_meta(writer.db, PENDING, bytes)
    }

    /// What was kept. If there is no seq, it was kept before seqs were: no other will do.
    fn read(bytes: &[u8]) -> Option<Self> {
        let (digest, seq) = bytes.split_at_checked(Digest::LEN)?;
        let seq = seq.try_into().map_or(u64::MAX, u64::from_be_bytes);
        Some(Self { digest: Digest::from_slice(digest)?, seq })
    }

    /// It, and then those that hold as much, should it not open, or be gone.
    fn as_good_as(self, mut snapshots: Vec<SnapshotSummary>) -> Vec<SnapshotSummary> {
        let wanted = |it: &SnapshotSummary| it.digest == self.digest;
        snapshots.retain(|it| wanted(it) || it.head.seq >= self.seq);
        snapshots.sort_by_key(|it| Reverse((wanted(it), it.confirmed, it.head.seq)));
        snapshots
    }
}

/// Forgets the snapshot that is still to be opened: everything is read from the beginning.
pub(super) fn forget_pending(writer: &Writer<'_>) -> Result<(), SyncError> {
    writer.db.execute("delete from sealwire_meta where name = ?1", [PENDING])?;
    Ok(())
}

/// How often a snapshot was compared without coming to an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tried {
    digest: Digest,
    times: u8,
}

impl Tried {
    /// It lacks something, or says what is false: it is not compared again.
    fn refused(digest: Digest) -> Self {
        Self { digest, times: TRIES_MAX }
    }

    fn is_refused(self) -> bool {
        self.times >= TRIES_MAX
    }

    fn again(self) -> Self {
        Self { times: self.times.saturating_add(1), ..self }
    }

    /// What is kept of this one: nothing if another one was compared last. If there is no number, it was
    /// kept before numbers were: it was refused.
    fn read(db: &Connection, digest: Digest) -> Result<Self, SyncError> {
        let kept: Option<Vec<u8>> = meta(db, REFUSED)?;
        let times = kept.as_ref().and_then(|kept| kept.strip_prefix(&digest.0));
        let times = times.map_or(0, |times| times.first().copied().unwrap_or(TRIES_MAX));
        Ok(Self { digest, times })
    }

    /// Keeps it, in place of another one: the digest, and how often.
    fn keep(self, db: &Connection) -> Result<(), SyncError> {
        set_meta(db, REFUSED, [&self.digest.0[..], &[self.times]].concat())
    }
}

/// Forgets the snapshot that was found to lack something, for it does not.
fn forget_refused(writer: &Writer<'_>) -> Result<(), SyncError> {
    writer.db.execute("delete from sealwire_meta where name = ?1", [REFUSED])?;
    Ok(())
}

/// A state that is being merged.
struct Merge<'a> {
    keys: Keyring<'a>,
    /// Its head's seq: it cannot hold what is behind.
    seq: u64,
    done: Replayed,
    told: u64,
    shared: &'a Shared,
}

impl Visit for Merge<'_> {
    fn rows(
        &mut self,
        writer: &mut Writer<'_>,
        scope: KeyScope,
        devices: &[DeviceKey],
        rows: StateRows,
    ) -> Result<(), SyncError> {
        self.told += rows.rows.len() as u64;
        writer.merge_rows(scope, devices, rows, &mut self.done)?;
        self.shared.progress(Progress::of(Phase::Opening, self.told));
        Ok(())
    }

    fn state(&mut self, writer: &mut Writer<'_>, state: StateBox) -> Result<(), SyncError> {
        if state.head.seq > self.seq {
            return Err(SnapshotError::Damaged.into());
        }
        writer.carry(&state)
    }

    fn awaited(&mut self, writer: &mut Writer<'_>, state: StateBox) -> Result<(), SyncError> {
        self.state(writer, state)
    }

    fn sealed(&mut self, writer: &mut Writer<'_>, sealed: StateSealed) -> Result<(), SyncError> {
        let StateSealed { seq, place, author, aad, scope, epoch, sealed } = sealed;
        if seq > self.seq {
            return Err(SnapshotError::Damaged.into());
        }
        let at = At { seq, place: place as usize, author, aad: &aad };
        if let Err(kept) = writer.take_box(self.keys, &at, &sealed, &mut self.done)? {
            writer.keep_box(&at, scope, epoch, kept, &sealed)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sealwire_protocol::Head;

    use super::*;

    fn snapshot(name: u8, seq: u64, confirmed: bool) -> SnapshotSummary {
        let head = Head { incarnation: 1, seq, chain: Digest::ZERO };
        SnapshotSummary { head, digest: Digest([name; 32]), size: 1, confirmed }
    }

    #[test]
    fn an_older_snapshot_does_not_take_the_place_of_one_that_is_gone() {
        let (older, wanted, newer) =
            (snapshot(1, 400, true), snapshot(2, 500, true), snapshot(3, 600, false));
        let kept = [&wanted.digest.0[..], &500_u64.to_be_bytes()].concat();
        let pending = Pending::read(&kept).expect("kept");
        let seqs = |of: &[SnapshotSummary]| {
            let good = pending.as_good_as(of.to_vec());
            good.iter().map(|it| it.head.seq).collect::<Vec<_>>()
        };
        assert_eq!(seqs(&[older, newer, wanted]), [500, 600]);
        assert_eq!(seqs(&[older, newer]), [600]);
        assert_eq!(seqs(&[older]), [0_u64; 0], "entries 401 to 500 are read no more");
        // Kept without a seq: only itself.
        let pending = Pending::read(&wanted.digest.0).expect("kept");
        assert_eq!(pending.as_good_as(vec![older, newer, wanted]), [wanted]);
    }

    #[test]
    fn a_snapshot_whose_comparison_was_cut_off_is_compared_again_and_not_for_ever() {
        let db = Connection::open_in_memory().expect("a database");
        db.execute_batch(include_str!("tables.sql")).expect("tables");
        let [one, other] = [1, 2].map(|name| Digest([name; 32]));
        let read = |digest| Tried::read(&db, digest).expect("read");
        for _ in 0..TRIES_MAX {
            assert!(!read(one).is_refused());
            // The process ends, or nobody waits any more.
            read(one).again().keep(&db).expect("kept");
        }
        assert!(read(one).is_refused() && !read(other).is_refused());
        read(other).again().keep(&db).expect("kept");
        assert!(!read(other).is_refused());
        Tried::refused(other).keep(&db).expect("kept");
        assert!(read(other).is_refused(), "it came to an end, and lacks something");
        set_meta(&db, REFUSED, &one.0[..]).expect("kept by an older version");
        assert!(read(one).is_refused());
    }
}
