//! Snapshots over a connection: making one, beginning with one, and comparing one with what is here.

use sealwire_protocol::Digest;
use sealwire_protocol::frame::{SnapshotSummary, SubscribeFrom};
use sealwire_protocol::ids::Scope;

use super::coverage::Coverage;
use super::error::SyncError;
use super::intake::{At, Keyring};
use super::replay::Replayed;
use super::report::{Phase, Progress};
use super::schema::KeyScope;
use super::state::{self, Frame, StateBox};
use super::turn::{Turn, ended};
use super::writer::{Writer, meta, set_meta};
use crate::vault::{Packer, STATE_BYTES_MAX, SnapshotError, Unpacked, Vault};

/// The digest of the snapshot that is still to be opened.
const PENDING: &str = "pending_snapshot";

/// The digest of the newest snapshot that was compared and found to lack something.
const REFUSED: &str = "refused_snapshot";

/// Rows between two reports of how far it is.
const TOLD_ROWS: u64 = 1000;

impl Turn {
    /// Makes a snapshot of what is here at the head that was read.
    pub(crate) async fn snapshot(&mut self) -> Result<SnapshotSummary, SyncError> {
        let head = self.vault.head().ok_or(SyncError::NotEnrolled)?;
        let private = self.private.map(|(scope, _)| scope);
        let shared = self.shared.clone();
        let sealed = self
            .look(move |writer, vault| {
                let mut rows = 0;
                let mut told = || {
                    rows += 1;
                    if rows % TOLD_ROWS == 0 {
                        shared.progress(Progress::of(Phase::Packing, rows));
                    }
                };
                let mut packer = Packer::new()?;
                writer.write_state(KeyScope::Group, &mut packer, &mut told)?;
                if let Some(scope) = private.filter(|scope| vault.holds_key(*scope)) {
                    let mut own = Packer::new()?;
                    writer.write_state(KeyScope::UserPrivate, &mut own, &mut told)?;
                    let sealed = vault.seal_state(scope, &head, &own.finish()?)?;
                    let author = writer.me;
                    state::put(&mut packer, &Frame::Box(StateBox { scope, author, head, sealed }))?;
                }
                writer.write_carried(&mut packer)?;
                Ok(vault.seal_state(vault.scope(), &head, &packer.finish()?)?)
            })
            .await?;
        let (shared, total) = (self.shared.clone(), sealed.len() as u64);
        let mut sent =
            move |bytes| shared.progress(Progress::of(Phase::Uploading, bytes).until(total));
        let made = self.vault.put_snapshot(&mut self.wire, &sealed, head, &mut sent).await;
        let made = made.map_err(ended)?;
        self.settle().await?;
        Ok(made)
    }

    /// Begins a database that has read nothing with the newest snapshot that is confirmed, or else with
    /// the newest. Says whether there was one.
    pub(super) async fn bootstrap(&mut self) -> Result<bool, SyncError> {
        let Some(snapshot) = self.newest_snapshot(None).await? else { return Ok(false) };
        let digest = snapshot.digest;
        self.shared.write(move |writer| set_meta(writer.db, PENDING, &digest.0[..])).await?;
        // Entries behind it may be replayed before it is: the order makes no difference.
        let frame = SubscribeFrom { log: self.vault.log(), snapshot: digest };
        self.read(frame.into()).await?;
        self.finish_bootstrap().await?;
        Ok(true)
    }

    /// Opens the snapshot that is still to be opened, if there is one.
    pub(super) async fn finish_bootstrap(&mut self) -> Result<(), SyncError> {
        let pending: Option<Vec<u8>> = self.shared.read(|db| meta(db, PENDING)).await?;
        let Some(wanted) = pending.and_then(|digest| Digest::from_slice(&digest)) else {
            return Ok(());
        };
        // If it is gone there is a newer one, which holds as much.
        let snapshot = self.newest_snapshot(Some(wanted)).await?.ok_or(SnapshotError::Damaged)?;
        let packed = self.open_snapshot(&snapshot).await?;
        let private = self.private.map(|(scope, _)| scope);
        let shared = self.shared.clone();
        let replayed = self.write(move |writer, vault| {
            let keys = Keyring { vault, private };
            let mut done = Replayed::default();
            writer.drain()?;
            writer.silently(|writer| {
                let mut merge = Merge { keys, done: &mut done, told: 0, shared: &shared };
                merge.state(writer, KeyScope::Group, &packed)
            })?;
            writer.db.execute("delete from sealwire_meta where name = ?1", [PENDING])?;
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
        let foreign = self.author_of(snapshot.digest).is_some_and(|author| author != me);
        let refused: Option<Vec<u8>> = self.shared.read(|db| meta(db, REFUSED)).await?;
        let known = refused.is_some_and(|digest| digest == snapshot.digest.0);
        if !foreign || known || snapshot.head.seq > read {
            return Ok(());
        }
        let packed = self.open_snapshot(&snapshot).await?;
        let private = self.private.map(|(scope, _)| scope);
        let whole = self.write(move |writer, vault| {
            let keys = Keyring { vault, private };
            let mut coverage = Coverage::of(keys);
            coverage.state(writer, KeyScope::Group, &packed)?;
            if writer.is_covered(&coverage, snapshot.head.seq)? {
                writer.take_carried(keys, snapshot, &packed)?;
                return Ok(true);
            }
            set_meta(writer.db, REFUSED, &snapshot.digest.0[..])?;
            Ok(false)
        });
        if whole.await? {
            self.vault.confirm(&mut self.wire, snapshot.digest).await.map_err(ended)?;
            self.report.confirmed = true;
            self.settle().await
        } else {
            self.report.refused_snapshot = true;
            Ok(())
        }
    }

    /// The wanted snapshot if it is there, else the one to begin with.
    async fn newest_snapshot(
        &mut self,
        wanted: Option<Digest>,
    ) -> Result<Option<SnapshotSummary>, SyncError> {
        let snapshots = self.vault.snapshots(&mut self.wire).await.map_err(ended)?;
        let found = snapshots.iter().find(|it| Some(it.digest) == wanted);
        let newest = snapshots.iter().max_by_key(|it| (it.confirmed, it.head.seq));
        Ok(found.or(newest).copied())
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

/// A state that is being merged.
struct Merge<'a> {
    keys: Keyring<'a>,
    done: &'a mut Replayed,
    told: u64,
    shared: &'a super::attached::Shared,
}

impl Merge<'_> {
    fn state(
        &mut self,
        writer: &mut Writer<'_>,
        scope: KeyScope,
        packed: &[u8],
    ) -> Result<(), SyncError> {
        let mut unpacked = Unpacked::new(packed, STATE_BYTES_MAX)?;
        let devices = state::start(state::next(&mut unpacked)?)?;
        while let Some(frame) = state::next(&mut unpacked)? {
            match frame {
                Frame::Start(..) => return Err(SnapshotError::Damaged.into()),
                Frame::Rows(rows) => {
                    self.told += rows.rows.len() as u64;
                    writer.merge_rows(scope, &devices, rows, self.done)?;
                    self.shared.progress(Progress::of(Phase::Opening, self.told));
                }
                Frame::Box(own) if is_mine(self.keys, own.scope) => {
                    let packed = open(self.keys.vault, &own)?;
                    self.state(writer, KeyScope::UserPrivate, &packed)?;
                }
                Frame::Box(state) => writer.carry(&state)?,
                Frame::Sealed(sealed) => {
                    let at = At {
                        seq: sealed.seq,
                        place: sealed.place as usize,
                        author: sealed.author,
                        aad: &sealed.aad,
                    };
                    let kept = writer.take_box(self.keys, &at, &sealed.sealed, self.done)?;
                    if let Err(kept) = kept {
                        writer.keep_box(&at, sealed.scope, sealed.epoch, kept, &sealed.sealed)?;
                    }
                }
            }
        }
        Ok(())
    }
}

pub(super) fn is_mine(keys: Keyring<'_>, scope: Scope) -> bool {
    keys.kind(scope) == Some(KeyScope::UserPrivate) && keys.vault.holds_key(scope)
}

pub(super) fn open(
    vault: &Vault,
    state: &StateBox,
) -> Result<zeroize::Zeroizing<Vec<u8>>, SyncError> {
    Ok(vault.open_state(state.author, &state.head, &state.sealed)?)
}
