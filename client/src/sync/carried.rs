//! Sealed states of people, as they came in snapshots.
//!
//! Those of others are handed on in the next snapshot: this device cannot open them, and yet new devices
//! of theirs begin with them. This person's own one is here only until its key is: a device may be
//! enrolled, and read a snapshot, before it was given the key that it needs for all of it.
//!
//! Holds always: of each scope the newest one is kept, and of the own one none that was opened.

use rusqlite::OptionalExtension;
use sealwire_protocol::ids::Scope;
use sealwire_protocol::{DeviceKey, Head};

use super::error::SyncError;
use super::intake::{Keyring, Taken};
use super::replay::Replayed;
use super::schema::KeyScope;
use super::state::{StateBox, StateRows, StateSealed, Visit, read};
use super::writer::Writer;
use crate::error::StoreError;
use crate::vault::{SnapshotError, VaultError};

impl Writer<'_> {
    /// Keeps somebody's sealed state, if it is newer than what is kept of that scope.
    pub(crate) fn carry(&self, state: &StateBox) -> Result<(), SyncError> {
        let known: Option<Vec<u8>> = self
            .db
            .prepare_cached("select head from sealwire_carried where scope = ?1")?
            .query_row([&state.scope.0[..]], |row| row.get(0))
            .optional()?;
        let known: Option<Head> = known.and_then(|head| rmp_serde::from_slice(&head).ok());
        if known.is_some_and(|known| known.seq >= state.head.seq) {
            return Ok(());
        }
        let head = rmp_serde::to_vec(&state.head).map_err(|_| StoreError::Damaged)?;
        self.db
            .prepare_cached(
                "insert or replace into sealwire_carried (scope, author, head, box)
                 values (?1, ?2, ?3, ?4)",
            )?
            .execute((&state.scope.0[..], &state.author.0[..], head, &state.sealed))?;
        Ok(())
    }

    /// Opens this person's own state, which came in a snapshot before its key did. What does not open with its
    /// key never will, and is forgotten: a later snapshot of theirs has it again.
    pub(crate) fn open_carried(
        &mut self,
        keys: Keyring<'_>,
        taken: &mut Taken,
    ) -> Result<(), SyncError> {
        let Some(scope) = keys.private.filter(|scope| keys.vault.holds_key(*scope)) else {
            return Ok(());
        };
        let Some(StateBox { author, head, sealed, .. }) = self.carried(scope)? else {
            return Ok(());
        };
        let opened = match keys.vault.open_state(author, &head, &sealed) {
            Err(VaultError::NoKey) => return Ok(()),
            Err(error) => Err(error.into()),
            Ok(packed) => {
                let mut own = Own(&mut taken.replayed);
                read(self, keys, KeyScope::UserPrivate, &packed, &mut own)
            }
        };
        match opened {
            // A newer version wrote it, and will read it.
            Err(SyncError::Store(StoreError::Newer)) => return Ok(()),
            Err(SyncError::Vault(VaultError::Snapshot(_))) => taken.damaged += 1,
            other => other?,
        }
        self.db
            .prepare_cached("delete from sealwire_carried where scope = ?1")?
            .execute([&scope.0[..]])?;
        Ok(())
    }

    /// The sealed state of a scope that is kept.
    fn carried(&self, scope: Scope) -> Result<Option<StateBox>, SyncError> {
        let found: Option<(Vec<u8>, Vec<u8>, Vec<u8>)> = self
            .db
            .prepare_cached("select author, head, box from sealwire_carried where scope = ?1")?
            .query_row([&scope.0[..]], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        let Some((author, head, sealed)) = found else { return Ok(None) };
        let author = DeviceKey::from_slice(&author).ok_or(StoreError::Damaged)?;
        let head = rmp_serde::from_slice(&head).map_err(|_| StoreError::Damaged)?;
        Ok(Some(StateBox { scope, author, head, sealed }))
    }
}

/// This person's own state, read for itself: rows, and nothing that another one may hold.
struct Own<'a>(&'a mut Replayed);

impl Visit for Own<'_> {
    fn rows(
        &mut self,
        writer: &mut Writer<'_>,
        scope: KeyScope,
        devices: &[DeviceKey],
        rows: StateRows,
    ) -> Result<(), SyncError> {
        writer.merge_rows(scope, devices, rows, self.0)
    }

    fn state(&mut self, _: &mut Writer<'_>, _: StateBox) -> Result<(), SyncError> {
        Err(SnapshotError::Damaged.into())
    }

    fn sealed(&mut self, _: &mut Writer<'_>, _: StateSealed) -> Result<(), SyncError> {
        Err(SnapshotError::Damaged.into())
    }
}
