//! One turn: over one connection, everything new is read and everything unsent is sent.
//!
//! A turn may end anywhere, by an error or because nobody waits for it any more: what was read and
//! what was numbered is in the database, and the next turn goes on from there. A write of the one before
//! that had not begun by then is not made any more: it would be of what that one knew.

use std::fs::{File, OpenOptions, TryLockError};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rusqlite::Connection;
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::frame::Subscribe;
use sealwire_protocol::ids::Scope;
use sealwire_protocol::{ClientFrame, DeviceKey, Digest, LogId};

use super::attached::Shared;
use super::bootstrap::{Pending, forget_pending};
use super::clock::now_ms;
use super::engine::Engine;
use super::error::SyncError;
use super::intake::{Keyring, Taken};
use super::outbox;
use super::report::{Phase, Progress, Report};
use super::writer::{Writer, meta, set_meta};
use crate::address::RelayUrl;
use crate::error::StoreError;
use crate::numbering::Mark;
use crate::vault::{Reading, Vault, VaultError, new_scope};
use crate::wire::{self, Wire};

/// Bytes of entries that are replayed in one transaction.
const BATCH_BYTES: usize = 1024 * 1024;

/// The number of the newest turn.
const TURN: &str = "turn";

/// What the database says of its vault.
pub(crate) struct Place {
    pub(crate) log: LogId,
    pub(crate) relay: RelayUrl,
    pub(crate) relay_key: Option<DeviceKey>,
    /// The scope that is its user's alone, and whether this device is to make its first key.
    pub(crate) private: Option<(Scope, bool)>,
    saved: Option<Vec<u8>>,
    pub(crate) cloned: bool,
}

impl Place {
    /// None if the database belongs to no vault.
    pub(crate) fn read(db: &Connection) -> Result<Option<Self>, SyncError> {
        let Some(log) = meta::<Vec<u8>>(db, "log")? else { return Ok(None) };
        let relay: Option<String> = meta(db, "relay")?;
        let relay_key: Option<Vec<u8>> = meta(db, "relay_key")?;
        let private: Option<Vec<u8>> = meta(db, "private_scope")?;
        let own: Option<bool> = meta(db, "private_is_new")?;
        let damaged = StoreError::Damaged;
        Ok(Some(Self {
            log: LogId::from_slice(&log).ok_or(damaged)?,
            relay: relay.and_then(|it| RelayUrl::parse(&it).ok()).ok_or(damaged)?,
            relay_key: relay_key.and_then(|key| DeviceKey::from_slice(&key)),
            private: private
                .and_then(|scope| Scope::from_slice(&scope))
                .map(|scope| (scope, own == Some(true))),
            saved: meta(db, "vault")?,
            cloned: meta(db, "cloned")? == Some(true),
        }))
    }
}

impl Place {
    /// Whether this device was enrolled: only then it has read anything of the vault.
    pub(crate) fn is_enrolled(&self) -> bool {
        self.saved.is_some()
    }
}

/// Begins the next turn. Gives its number.
fn next_turn(db: &Connection) -> Result<i64, SyncError> {
    let number = meta::<i64>(db, TURN)?.unwrap_or(0).wrapping_add(1);
    set_meta(db, TURN, number)?;
    Ok(number)
}

/// A transaction of the turn with this number.
///
/// # Errors
/// [`SyncError::Stopped`] if another turn has begun since: then nothing was done.
fn write_in<T>(
    engine: &mut Engine,
    number: i64,
    work: impl FnOnce(&mut Writer<'_>) -> Result<T, SyncError>,
) -> Result<T, SyncError> {
    engine.write(|writer| {
        if meta(writer.db, TURN)? != Some(number) {
            return Err(SyncError::Stopped);
        }
        work(writer)
    })
}

/// The scope that is its user's alone, and whether this device is to make its first key. It is named now if
/// it has no name yet.
pub(super) fn private_scope(
    db: &Connection,
    log: LogId,
    me: DeviceKey,
) -> Result<(Scope, bool), SyncError> {
    if let Some(private) = Place::read(db)?.and_then(|place| place.private) {
        return Ok(private);
    }
    let scope = new_scope(log, me).map_err(VaultError::from)?;
    set_meta(db, "private_scope", &scope.0[..])?;
    set_meta(db, "private_is_new", true)?;
    Ok((scope, true))
}

/// A turn that is under way.
pub(crate) struct Turn {
    pub(super) shared: Arc<Shared>,
    pub(super) wire: Wire,
    /// In a box: it is lent back and forth, and would make every future as large as itself.
    pub(super) vault: Box<Vault>,
    pub(super) private: Option<(Scope, bool)>,
    pub(super) report: Report,
    number: i64,
    _lock: File,
}

impl Turn {
    /// Connects to the relay of the database's vault.
    pub(crate) async fn begin(shared: &Arc<Shared>) -> Result<Self, SyncError> {
        let lock = lock(shared)?;
        let begun = shared.write(|writer| Ok((Place::read(writer.db)?, next_turn(writer.db)?)));
        let (place, number) = begun.await?;
        let place = place.ok_or(SyncError::NoVault)?;
        if place.cloned {
            return Err(SyncError::Cloned);
        }
        let wire = connect(shared, &place.relay, place.relay_key).await?;
        let identity = shared.identity.clone();
        let vault = match &place.saved {
            None => Vault::new(identity, place.log),
            Some(saved) => Vault::restore(identity, saved).ok_or(StoreError::Damaged)?,
        };
        Ok(Self::with(shared, wire, vault, place.private, (number, lock)))
    }

    /// Founds a vault at a relay.
    pub(crate) async fn found(shared: &Arc<Shared>, relay: &RelayUrl) -> Result<LogId, SyncError> {
        let lock = lock(shared)?;
        let begun = shared.write(|writer| Ok((Place::read(writer.db)?, next_turn(writer.db)?)));
        let (place, number) = begun.await?;
        if place.is_some() {
            return Err(SyncError::OtherVault);
        }
        let mut wire = connect(shared, relay, None).await?;
        let vault = Vault::create(shared.identity.clone(), &mut wire).await?;
        let (log, relay) = (vault.log(), relay.as_str().to_owned());
        let mut turn = Self::with(shared, wire, vault, None, (number, lock));
        turn.write(move |writer, vault| {
            set_meta(writer.db, "log", &log.0[..])?;
            set_meta(writer.db, "relay", &relay)?;
            writer.keep_vault(vault)
        })
        .await?;
        Ok(log)
    }

    fn with(
        shared: &Arc<Shared>,
        wire: Wire,
        vault: Vault,
        private: Option<(Scope, bool)>,
        (number, lock): (i64, File),
    ) -> Self {
        let mut vault = Box::new(vault);
        vault.keep_arrived();
        vault.open_at_most(shared.state_bytes_max.load(Ordering::Relaxed));
        // What is written besides changesets is kept before it is sent, too.
        let journal = shared.clone();
        vault.set_journal(Arc::new(move |entries| {
            let shared = journal.clone();
            Box::pin(async move {
                let keep = move |writer: &mut Writer<'_>| -> Result<(), SyncError> {
                    let header = |entry: &crate::entry::Signed| entry.entry.header.decode();
                    for entry in &entries {
                        let count = header(entry).map_err(|_| StoreError::Damaged)?.count;
                        let mark = Mark { count, digest: entry.digest };
                        outbox::number(writer.db, None, mark, count, entry)?;
                    }
                    Ok(())
                };
                let keep = shared.with(move |engine| write_in(engine, number, keep));
                keep.await.map_err(|_| VaultError::Store)
            })
        }));
        let shared = shared.clone();
        let report = Report::default();
        Self { shared, wire, vault, private, report, number, _lock: lock }
    }

    /// Reads everything that is new.
    pub(crate) async fn catch_up(&mut self) -> Result<(), SyncError> {
        self.vault.go_back_to_spoiled(now_ms());
        if self.vault.head().is_none() && self.bootstrap().await? {
            return Ok(());
        }
        let subscribe = |vault: &Vault| {
            Subscribe { log: vault.log(), cursor: vault.head(), acked: None }.into()
        };
        let frame = subscribe(&self.vault);
        match self.read(frame).await {
            Err(SyncError::Vault(error)) if error.code() == Some(ErrorCode::HistoryChanged) => {
                // Nothing is deleted: what is read again changes nothing that is newer here.
                self.report.history_changed = true;
                self.vault.start_over();
                // It may be gone with the history that it was of.
                self.write(|writer, _| forget_pending(writer)).await?;
                let frame = subscribe(&self.vault);
                self.read(frame).await?;
                let read = self.vault.read_of_own();
                if read.count < self.vault.own().count {
                    self.send_again(read).await?;
                }
            }
            other => other?,
        }
        self.finish_bootstrap().await
    }

    /// Subscribes as `frame` says, and takes in what comes until the end.
    pub(super) async fn read(&mut self, frame: ClientFrame) -> Result<(), SyncError> {
        let before = self.vault.head();
        let mut reading = self.vault.begin(&mut self.wire, &frame);
        loop {
            let read = self.vault.read_some(&mut self.wire, &mut reading, BATCH_BYTES).await;
            let finished = match read {
                Ok(finished) => finished,
                Err(error) => return Err(ended(error)),
            };
            self.take_in(&reading).await?;
            self.shared.progress(Progress::of(Phase::Reading, self.report.replayed.rows as u64));
            if finished {
                break;
            }
        }
        let read = self.vault.take_read();
        self.report.rejected += read.rejected.len();
        let spoiled = read.rejected.iter().filter(|(_, rejection)| rejection.is_spoiled());
        self.report.spoiled += spoiled.count();
        self.report.forked |= read.forked.is_some();
        if self.vault.head() != before {
            // If it is not heard, this device is woken once too often.
            let _ = self.vault.acknowledge(&mut self.wire).await;
        }
        Ok(())
    }

    async fn take_in(&mut self, reading: &Reading) -> Result<(), SyncError> {
        let arrived = self.vault.take_arrived();
        let private = self.private.map(|(scope, _)| scope);
        let floor = reading.floor.as_ref().map(Pending::of);
        let taken = self
            .write(move |writer, vault| {
                let mut taken = Taken::default();
                if let Some(pending) = floor {
                    pending.keep(writer)?;
                }
                writer.take_in(Keyring { vault, private }, &arrived, &mut taken)?;
                Ok(taken)
            })
            .await?;
        self.report.take(taken.replayed, taken.sealed, taken.damaged);
        if taken.cloned { Err(SyncError::Cloned) } else { Ok(()) }
    }

    /// Takes in what came besides, and keeps what the vault knows.
    pub(super) async fn settle(&mut self) -> Result<(), SyncError> {
        let arrived = self.vault.take_arrived();
        let private = self.private.map(|(scope, _)| scope);
        let taken = self.write(move |writer, vault| {
            let mut taken = Taken::default();
            writer.take_in(Keyring { vault, private }, &arrived, &mut taken)?;
            Ok(taken)
        });
        let taken = taken.await?;
        self.report.take(taken.replayed, taken.sealed, taken.damaged);
        Ok(())
    }

    /// A transaction that may look at the vault.
    pub(super) async fn write<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Writer<'_>, &Vault) -> Result<T, SyncError> + Send + 'static,
    ) -> Result<T, SyncError> {
        let number = self.number;
        self.lend(move |engine, vault| write_in(engine, number, |writer| work(writer, vault))).await
    }

    /// A long reading of one state of the database.
    pub(super) async fn look<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Writer<'_>, &Vault) -> Result<T, SyncError> + Send + 'static,
    ) -> Result<T, SyncError> {
        self.lend(move |engine, vault| engine.look(|writer| work(writer, vault))).await
    }

    /// Lends the vault to the thread that may block; a turn that is dropped meanwhile has no use for it.
    async fn lend<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Engine, &Vault) -> Result<T, SyncError> + Send + 'static,
    ) -> Result<T, SyncError> {
        let stand_in = Box::new(Vault::new(self.shared.identity.clone(), self.vault.log()));
        let vault = std::mem::replace(&mut self.vault, stand_in);
        let lent = self.shared.with(move |engine| {
            let done = work(engine, &vault);
            Ok((vault, done))
        });
        let (vault, done) = lent.await?;
        self.vault = vault;
        done
    }

    /// The turn is over.
    pub(crate) async fn end(self) -> Report {
        let Self { wire, report, .. } = self;
        wire.close().await;
        report
    }

    pub(super) fn author_of(&self, snapshot: Digest) -> Option<DeviceKey> {
        self.vault.devices().author(snapshot)
    }
}

/// What the end of a vault's work means.
pub(super) fn ended(error: VaultError) -> SyncError {
    match error.code() {
        Some(ErrorCode::NoSuchLog | ErrorCode::Revoked) => SyncError::NotEnrolled,
        _ => error.into(),
    }
}

async fn connect(
    shared: &Arc<Shared>,
    relay: &RelayUrl,
    key: Option<DeviceKey>,
) -> Result<Wire, SyncError> {
    let options = wire::Options { relay: key, ..wire::Options::default() };
    let (wire, session) = wire::connect(relay, &shared.identity, &options).await?;
    if key.is_none() {
        let met = session.relay;
        shared.write(move |writer| set_meta(writer.db, "relay_key", &met.0[..])).await?;
    }
    Ok(wire)
}

/// One process takes turns: it numbers what is sent.
fn lock(shared: &Shared) -> Result<File, SyncError> {
    let mut name = shared.path.clone().into_os_string();
    name.push(".sealwire-lock");
    let open = OpenOptions::new().create(true).truncate(false).write(true).open(name);
    let file = open.map_err(StoreError::from)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(SyncError::Running),
        Err(TryLockError::Error(error)) => Err(StoreError::from(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::Schema;

    #[test]
    fn a_write_that_was_left_waiting_is_not_made_when_another_turn_has_begun() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("app.db");
        Connection::open(&path).expect("a database").execute_batch("vacuum").expect("a file");
        let me = DeviceKey([1; 32]);
        let mut engine = Engine::attach(&path, me, &Schema::version(1)).expect("attached");
        let first = engine.write(|writer| next_turn(writer.db)).expect("a turn");
        let says =
            |what: &'static str| move |writer: &mut Writer<'_>| set_meta(writer.db, "a", what);
        write_in(&mut engine, first, says("one")).expect("its own");
        let second = engine.write(|writer| next_turn(writer.db)).expect("a turn");
        write_in(&mut engine, second, says("two")).expect("its own");
        let late = write_in(&mut engine, first, says("what the first one knew"));
        assert_eq!(late.err(), Some(SyncError::Stopped));
        let stands: Option<String> = engine.read(|db| meta(db, "a")).expect("read");
        assert_eq!(stands.as_deref(), Some("two"));
    }
}
