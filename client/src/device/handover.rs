//! Ending the device whose place this one has taken, after a native restore.
//!
//! Native groups are not here: the new device revokes the old one there by itself, over its
//! connection. What only the old key can do is done with it: enrolling the new device in vaults,
//! leaving `totals` groups, deleting the old recovery vault. Each step may be repeated. Which vaults
//! there were is kept, so that an app's database can go on in them.
//!
//! Holds always: the old key is erased only when each log that it is in was read to where it says what
//! it is, and each vault is handed over with all that the old device has written there.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use sealwire_protocol::frame::LeaveTotals;
use sealwire_protocol::{ErrorCode, LogId, LogType};

use super::{Device, Phase};
use crate::address::RelayUrl;
use crate::error::Error;
use crate::identity::Identity;
use crate::recovery::RecoveryError;
use crate::recovery::calls;
use crate::store::recovered::{self, Recovered};
use crate::store::{self, logs};
use crate::vault::{Vault, VaultError};
use crate::wire::{self, Session, Wire};

/// A group in which this device takes the place of another one.
struct Taken {
    id: i64,
    log: LogId,
    relay: RelayUrl,
    phase: Phase,
}

impl Device {
    /// Ends the old device, whose recovery vault is at `relay`. Says whether it is done: not before
    /// this one is in its groups, for which another member may be needed. The vaults wait for nobody.
    pub(super) async fn end_old(&self, relay: &RelayUrl, old: Identity) -> Result<bool, Error> {
        let old = Arc::new(old);
        let taken = self.taken().await?;
        let waits = |one: &Taken| one.phase == Phase::Joining || !one.log.is_totals();
        let waits = taken.iter().any(waits);
        // Once in a process is enough while the groups wait: this is called again and again then.
        if !waits || !self.shared.handed_over.load(Ordering::Relaxed) {
            for relay in self.relays(relay).await?.values() {
                Box::pin(self.hand_over_vaults(relay, &old)).await?;
            }
            self.shared.handed_over.store(true, Ordering::Relaxed);
        }
        if waits {
            return Ok(false);
        }
        for Taken { id, log, relay, .. } in taken {
            let (mut wire, _) = self.connect_as(&relay, &old).await?;
            match wire.request(&LeaveTotals { log }.into()).await {
                Ok(_) => {}
                // It had left before.
                Err(error) if error.code() == Some(ErrorCode::NoSuchLog) => {}
                Err(error) => return Err(error.into()),
            }
            wire.close().await;
            self.shared.write(move |db| logs::set_replaces(db, id, None)).await?;
        }
        calls::delete(relay, &calls::prove(relay, &old).await?).await?;
        let me = self.shared.identity.clone();
        self.shared.write(move |db| store::recovery::forget_old(db, &me)).await?;
        Ok(true)
    }

    /// Has the old key enrol this device in each of its vaults and give it the keys, and revokes the
    /// old key there. Which vaults there are the relay knows.
    async fn hand_over_vaults(&self, relay: &RelayUrl, old: &Arc<Identity>) -> Result<(), Error> {
        let (mut wire, session) = self.connect_as(relay, old).await?;
        let groups = self.shared.read(logs::list).await?;
        let known = |log: LogId| groups.iter().any(|row| row.log == log);
        let mine = session.welcome.logs.iter().map(|summary| summary.log);
        let candidates: Vec<LogId> = mine.filter(|log| log.is_native() && !known(*log)).collect();
        let mut old_scope = false;
        for log in candidates {
            let mut vault = Vault::new(old.clone(), log);
            vault.note_own_scopes();
            let read = vault.pull(&mut wire).await;
            match vault.founded_as() {
                // It cannot be read like a vault; the recovery vault did not know of it.
                Some(LogType::Group) => {
                    tracing::debug!(?log, "the lost device was in a group that was not saved");
                    continue;
                }
                Some(LogType::Vault) => read.map_err(failed)?,
                // What it is nobody knows. To go on would erase the only key to it.
                None => {
                    read.map_err(failed)?;
                    return Err(failed(VaultError::Forked));
                }
            };
            let me = &self.shared.identity;
            let consent = Vault::consent(me, log, old.key());
            match vault.hand_over(&mut wire, me.key(), consent).await {
                // The old key is all that opens it; the other vaults need not wait for that.
                Err(VaultError::OldScope) => {
                    old_scope = true;
                    continue;
                }
                handed => handed.map_err(failed)?,
            }
            // Before the old key is out: after that nobody is told of this vault any more.
            let relay_key = session.relay;
            let private = vault.private_scope();
            let known = Recovered { log, relay: relay.clone(), relay_key, private };
            self.shared.write(move |db| recovered::save(db, &known)).await?;
            let (mut own, _) = self.connect_as(relay, me).await?;
            let mut vault = Vault::new(me.clone(), log);
            vault.pull(&mut own).await.map_err(failed)?;
            if vault.devices().has(old.key()) {
                vault.revoke(&mut own, old.key()).await.map_err(failed)?;
            }
            own.close().await;
        }
        wire.close().await;
        if old_scope { Err(failed(VaultError::OldScope)) } else { Ok(()) }
    }

    /// A short connection, beside any other.
    async fn connect_as(
        &self,
        relay: &RelayUrl,
        device: &Identity,
    ) -> Result<(Wire, Session), Error> {
        let pinned = self.relay_key(relay).await?;
        let options = wire::Options { relay: pinned, ..wire::Options::default() };
        Ok(Box::pin(wire::connect(relay, device, &options)).await?)
    }

    /// The groups in which this device still takes the place of another one.
    async fn taken(&self) -> Result<Vec<Taken>, Error> {
        self.shared
            .read(|db| {
                let mut taken = Vec::new();
                for row in logs::list(db)? {
                    if row.phase.is_open() && logs::replaces(db, row.id)?.is_some() {
                        let logs::LogRow { id, log, relay, phase, .. } = row;
                        taken.push(Taken { id, log, relay, phase });
                    }
                }
                Ok::<_, Error>(taken)
            })
            .await
    }

    /// The vaults in which this device has taken the place of another one.
    pub(crate) async fn recovered(&self) -> Result<Vec<Recovered>, Error> {
        self.shared.read(|db| Ok::<_, Error>(recovered::list(db)?)).await
    }

    /// The relays on which the old device may have been.
    async fn relays(&self, first: &RelayUrl) -> Result<BTreeMap<String, RelayUrl>, Error> {
        let groups = self.shared.read(logs::list).await?;
        let all = groups.into_iter().map(|row| row.relay).chain([first.clone()]);
        Ok(all.map(|relay| (relay.as_str().to_owned(), relay)).collect())
    }
}

fn failed(error: VaultError) -> Error {
    if let VaultError::Wire(error) = error {
        error.into()
    } else {
        RecoveryError::Handover(error).into()
    }
}
