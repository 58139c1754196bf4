//! Making a snapshot over a connection.
//!
//! Holds always:
//! - what it holds was stamped, and, unless the app does not stop writing, sent before;
//! - no device that was removed before it became real has a key that opens it.

use sealwire_protocol::Head;
use sealwire_protocol::frame::SnapshotSummary;
use sealwire_protocol::ids::Scope;

use super::attached::Shared;
use super::capture;
use super::error::SyncError;
use super::outbox;
use super::report::{Phase, Progress};
use super::schema::KeyScope;
use super::state::{self, Frame, StateBox};
use super::turn::{Turn, ended};
use super::writer::Writer;
use crate::vault::{Packer, Vault, VaultError};

/// How often a snapshot is tried beside an app that writes, before the app has to wait for it.
const BESIDE_MAX: u32 = 8;

/// How often a snapshot is sealed anew because a device was removed while it was uploaded.
const SEALED_MAX: u32 = 8;

/// Rows between two reports of how far it is.
const TOLD_ROWS: u64 = 1000;

impl Turn {
    /// Makes a snapshot of what is here at the head that was read.
    pub(crate) async fn snapshot(&mut self) -> Result<SnapshotSummary, SyncError> {
        if self.is_pending().await? {
            // What it would be of is not here yet.
            return Err(VaultError::NoKey.into());
        }
        for _ in 0..SEALED_MAX {
            let (sealed, head) = self.seal_all().await?;
            let (shared, total) = (self.shared.clone(), sealed.len() as u64);
            let mut sent =
                move |bytes| shared.progress(Progress::of(Phase::Uploading, bytes).until(total));
            let made = self.vault.put_snapshot(&mut self.wire, &sealed, head, &mut sent).await;
            match made {
                Err(VaultError::Outdated) => self.settle().await?,
                made => {
                    let made = made.map_err(ended)?;
                    self.settle().await?;
                    return Ok(made);
                }
            }
        }
        Err(VaultError::Contended.into())
    }

    /// Makes the keys that no removed device has, where they are wanted. Says whether none is wanted any
    /// more: another device may be removed meanwhile.
    async fn renew_keys(&mut self) -> Result<bool, SyncError> {
        for scope in self.scopes() {
            if self.wants_rotation(scope) {
                self.rotate(scope).await?;
            }
        }
        Ok(!self.scopes().any(|scope| self.wants_rotation(scope)))
    }

    fn wants_rotation(&self, scope: Scope) -> bool {
        self.vault.holds_key(scope) && self.vault.scope_wants_rotation(scope)
    }

    /// The scopes under which a snapshot is sealed.
    fn scopes(&self) -> impl Iterator<Item = Scope> + use<> {
        let private = self.private.map(|(scope, _)| scope);
        [Some(self.vault.scope()), private].into_iter().flatten()
    }

    /// Everything that is here, sealed, and as of which head. What the app has written since must not be
    /// among it: it would stand there under the stamps of what it takes the place of. So it is stamped and
    /// sent first; what the app goes on writing for ever is at least stamped.
    async fn seal_all(&mut self) -> Result<(Vec<u8>, Head), SyncError> {
        for _ in 0..BESIDE_MAX {
            if !self.renew_keys().await? {
                continue;
            }
            let head = self.vault.head().ok_or(SyncError::NotEnrolled)?;
            // It may have been made for what was just sent.
            let private = self.private.map(|(scope, _)| scope);
            let shared = self.shared.clone();
            let sealed = self.look(move |writer, vault| {
                let unsent = outbox::unsent(writer.db)?.entries > 0;
                let quiet = !unsent && !capture::has_any(writer.db)?;
                let all = All { shared: &shared, vault, private, head };
                quiet.then(|| all.seal(writer)).transpose()
            });
            if let Some(sealed) = sealed.await? {
                return Ok((sealed, head));
            }
            if !self.push().await? {
                return Err(VaultError::NoKey.into());
            }
            self.catch_up().await?;
        }
        if !self.renew_keys().await? {
            return Err(VaultError::Contended.into());
        }
        let head = self.vault.head().ok_or(SyncError::NotEnrolled)?;
        let private = self.private.map(|(scope, _)| scope);
        let shared = self.shared.clone();
        let sealed = self.write(move |writer, vault| {
            writer.drain()?;
            All { shared: &shared, vault, private, head }.seal(writer)
        });
        Ok((sealed.await?, head))
    }
}

/// What a snapshot is made of.
struct All<'a> {
    shared: &'a Shared,
    vault: &'a Vault,
    private: Option<Scope>,
    head: Head,
}

impl All<'_> {
    fn seal(&self, writer: &mut Writer<'_>) -> Result<Vec<u8>, SyncError> {
        let Self { shared, vault, private, head } = self;
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
            let sealed = vault.seal_state(scope, head, &own.finish()?)?;
            let (author, head) = (writer.me, *head);
            state::put(&mut packer, &Frame::Box(StateBox { scope, author, head, sealed }))?;
        }
        writer.write_carried(&mut packer)?;
        Ok(vault.seal_state(vault.scope(), head, &packer.finish()?)?)
    }
}
