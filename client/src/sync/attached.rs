//! An attached database: what an app holds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rusqlite::Connection;
use sealwire_protocol::{DeviceKey, LogId};
use tokio::sync::watch;

use super::code::{Consent, Offer, RecoveredVault, Whose};
use super::engine::Engine;
use super::error::SyncError;
use super::keeper::Keeper;
use super::outbox;
use super::report::{Progress, Report, Status, VaultStatus};
use super::schema::Schema;
use super::turn::{Place, Turn, ended, private_scope};
use super::writer::{Writer, meta, set_meta};
use crate::address::RelayUrl;
use crate::error::StoreError;
use crate::identity::Identity;
use crate::vault::{STATE_BYTES_MAX, Vault};

type OnProgress = Arc<dyn Fn(Progress) + Send + Sync>;

pub(crate) struct Shared {
    engine: Arc<Mutex<Engine>>,
    pub(crate) identity: Arc<Identity>,
    pub(crate) path: PathBuf,
    on_progress: Mutex<Option<OnProgress>>,
    /// Longest state that a snapshot may open to, in bytes.
    pub(crate) state_bytes_max: AtomicU64,
    /// Raised when the app says that it has written.
    pub(crate) written: watch::Sender<u64>,
}

impl Shared {
    /// Works with the database on a thread that may block. Once begun it is done whole.
    pub(crate) async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Engine) -> Result<T, SyncError> + Send + 'static,
    ) -> Result<T, SyncError> {
        let engine = self.engine.clone();
        let work = tokio::task::spawn_blocking(move || work(&mut engine.lock()));
        work.await.map_err(|_| SyncError::Stopped)?
    }

    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Writer<'_>) -> Result<T, SyncError> + Send + 'static,
    ) -> Result<T, SyncError> {
        self.with(move |engine| engine.write(work)).await
    }

    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, SyncError> + Send + 'static,
    ) -> Result<T, SyncError> {
        self.with(move |engine| engine.read(work)).await
    }

    pub(crate) fn progress(&self, progress: Progress) {
        let tell = self.on_progress.lock().clone();
        if let Some(tell) = tell {
            tell(progress);
        }
    }
}

/// An app's database whose registered tables are the same on all devices of its vault. Clones are the
/// same one.
///
/// The app goes on using its own connections; this type never hands out rows. Every future may be
/// dropped at any point: what was committed stays, and the next call goes on from there.
#[derive(Clone)]
pub struct Attached {
    shared: Arc<Shared>,
}

impl Attached {
    /// Attaches a database file, which must exist, and registers its tables. To be called at every
    /// start of the app, after its own migrations. Rows that are there are taken over.
    ///
    /// # Errors
    /// [`SyncError::Schema`] if a table cannot be shared, [`SyncError::OtherDevice`] if the file
    /// belongs to another device, [`SyncError::Store`].
    pub async fn attach(
        path: impl AsRef<Path>,
        device: Arc<Identity>,
        schema: &Schema,
    ) -> Result<Self, SyncError> {
        let (path, key, schema) = (path.as_ref().to_owned(), device.key(), schema.clone());
        Self::start(path, device, move |path| Engine::attach(path, key, &schema)).await
    }

    /// Opens a database that was attached before, with the tables that were registered then.
    ///
    /// # Errors
    /// [`SyncError::NotAttached`], and as of [`Attached::attach`].
    pub async fn open(path: impl AsRef<Path>, device: Arc<Identity>) -> Result<Self, SyncError> {
        let (path, key) = (path.as_ref().to_owned(), device.key());
        Self::start(path, device, move |path| Engine::open(path, key)).await
    }

    async fn start(
        path: PathBuf,
        identity: Arc<Identity>,
        open: impl FnOnce(&Path) -> Result<Engine, SyncError> + Send + 'static,
    ) -> Result<Self, SyncError> {
        let opened = tokio::task::spawn_blocking(move || {
            let engine = open(&path)?;
            let shared = Shared {
                engine: Arc::new(Mutex::new(engine)),
                identity,
                path,
                on_progress: Mutex::new(None),
                state_bytes_max: AtomicU64::new(STATE_BYTES_MAX),
                written: watch::Sender::new(0),
            };
            Ok(Self { shared: Arc::new(shared) })
        });
        opened.await.map_err(|_| SyncError::Stopped)?
    }

    /// Tells `tell` of every step of long work from now on. It is called often and must be quick.
    pub fn on_progress(&self, tell: impl Fn(Progress) + Send + Sync + 'static) {
        *self.shared.on_progress.lock() = Some(Arc::new(tell));
    }

    /// Longest state that a snapshot may open to, in bytes, from now on: [`STATE_BYTES_MAX`] is what
    /// most devices can hold. A longer one is refused: with [`SnapshotError::TooLong`] by a device that
    /// cannot do without it, else with [`Report::refused_snapshot`].
    ///
    /// [`SnapshotError::TooLong`]: crate::vault::SnapshotError::TooLong
    pub fn open_at_most(&self, bytes_max: u64) {
        self.shared.state_bytes_max.store(bytes_max, Ordering::Relaxed);
    }

    /// Writes to the app's tables in one transaction, which becomes one changeset of its own. An app
    /// may as well write with its own connections: then writes that are found together travel
    /// together.
    ///
    /// # Errors
    /// [`SyncError::Store`]; what `work` returns as an error rolls everything back.
    pub async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T, SyncError> {
        let written = self.shared.write(move |writer| {
            writer.drain()?;
            let value = work(writer.db)?;
            writer.drain()?;
            Ok(value)
        });
        let value = written.await?;
        self.written();
        Ok(value)
    }

    /// Says that the app has written: a [`Keeper`] sends it at once. Without this it finds out by
    /// itself a little later.
    pub fn written(&self) {
        self.shared.written.send_modify(|turn| *turn = turn.wrapping_add(1));
    }

    /// Founds a vault with what is in the registered tables, at a relay that must be in reach.
    ///
    /// # Errors
    /// [`SyncError::OtherVault`] if the database belongs to one, [`SyncError::Vault`].
    pub async fn found(&self, relay: &RelayUrl) -> Result<LogId, SyncError> {
        Turn::found(&self.shared, relay).await
    }

    /// An offer to enrol another device: to be shown to it. Nothing is sent.
    ///
    /// # Errors
    /// [`SyncError::NoVault`].
    pub async fn offer(&self, whose: Whose) -> Result<Offer, SyncError> {
        let by = self.shared.identity.key();
        let offer = self.shared.write(move |writer| {
            let place = Place::read(writer.db)?.ok_or(SyncError::NoVault)?;
            let private = match whose {
                Whose::AnotherPersons => None,
                Whose::Mine => Some(private_scope(writer.db, place.log, writer.me)?.0),
            };
            let (relay, vault) = (place.relay, place.log);
            let relay_key = place.relay_key.ok_or(SyncError::NoVault)?;
            Ok(Offer { relay, relay_key, vault, by, private })
        });
        offer.await
    }

    /// Takes an offer on a new device: gives its consent, to be shown to the device that made the
    /// offer. Nothing is sent; until that device has enrolled this one, it reads and sends nothing. Of
    /// several offers, the one that was taken last counts: take the one that this device is enrolled by
    /// once more if another one was taken since.
    ///
    /// # Errors
    /// [`SyncError::OtherVault`] if the database belongs to another vault, [`SyncError::OtherScope`] if
    /// this device is enrolled and writes under another private scope than the offer's.
    pub async fn accept(&self, offer: &Offer) -> Result<Consent, SyncError> {
        let Offer { relay, relay_key, vault, by, private } = offer.clone();
        let device = self.shared.identity.key();
        let signature = Vault::consent(&self.shared.identity, vault, by);
        let to = self.shared.identity.sign_offer(offer.digest());
        self.belong_to(RecoveredVault { relay, relay_key, vault, private }).await?;
        Ok(Consent { device, vault, signature, to })
    }

    /// Goes on in the vault of a lost device, in which this one has taken its place
    /// ([`Device::recovered_vaults`]). Nothing is sent; the next sync reads what the lost device had.
    ///
    /// [`Device::recovered_vaults`]: crate::device::Device::recovered_vaults
    ///
    /// # Errors
    /// [`SyncError::OtherVault`] if the database belongs to another vault, [`SyncError::OtherScope`] if
    /// it writes under another private scope.
    pub async fn take_over(&self, vault: &RecoveredVault) -> Result<(), SyncError> {
        self.belong_to(vault.clone()).await
    }

    /// From now on the database belongs to a vault that this device is, or will be, enrolled in.
    async fn belong_to(&self, vault: RecoveredVault) -> Result<(), SyncError> {
        let RecoveredVault { relay, relay_key, vault, private } = vault;
        let joined = self.shared.write(move |writer| {
            let place = Place::read(writer.db)?;
            if place.as_ref().is_some_and(|place| place.log != vault) {
                return Err(SyncError::OtherVault);
            }
            let enrolled = place.filter(Place::is_enrolled);
            let own = enrolled.as_ref().and_then(|place| place.private).map(|(scope, _)| scope);
            if own.is_some() && private.is_some_and(|scope| Some(scope) != own) {
                return Err(SyncError::OtherScope);
            }
            set_meta(writer.db, "log", &vault.0[..])?;
            set_meta(writer.db, "relay", relay.as_str())?;
            set_meta(writer.db, "relay_key", &relay_key.0[..])?;
            if enrolled.is_none() {
                // Of an offer that came to nothing, nothing may stay.
                writer.db.execute(
                    "delete from sealwire_meta where name in ('private_scope', 'private_is_new')",
                    [],
                )?;
            }
            if let Some(scope) = private.filter(|_| own.is_none()) {
                set_meta(writer.db, "private_scope", &scope.0[..])?;
                set_meta(writer.db, "private_is_new", false)?;
            }
            Ok(())
        });
        joined.await
    }

    /// Enrols a device that has consented, and gives it the vault's keys; if it is this person's own,
    /// also those of what is private. To be called again if it was cut off: it goes on from there.
    ///
    /// # Errors
    /// [`SyncError::OtherVault`] if the consent is for another vault, [`SyncError::OtherOffer`] if it was
    /// given to another offer than that of `whose`, [`SyncError::Vault`] if the relay refuses.
    pub async fn enrol(&self, consent: &Consent, whose: Whose) -> Result<Report, SyncError> {
        let offer = self.offer(whose).await?;
        if offer.vault != consent.vault {
            return Err(SyncError::OtherVault);
        }
        if !consent.is_to(&offer) {
            return Err(SyncError::OtherOffer);
        }
        let mut turn = Turn::begin(&self.shared).await?;
        turn.catch_up().await?;
        turn.push().await?;
        let (device, signature) = (consent.device, consent.signature);
        if turn.vault.devices().has(device) {
            // An earlier try was cut off: it may have ended before the keys were given.
            turn.vault.deliver(&mut turn.wire, device).await.map_err(ended)?;
        } else {
            turn.vault.enrol(&mut turn.wire, device, signature).await.map_err(ended)?;
        }
        if whose == Whose::Mine
            && turn.ready_private().await?
            && let Some((scope, _)) = turn.private
        {
            turn.vault.deliver_scope(&mut turn.wire, device, scope).await.map_err(ended)?;
        }
        turn.settle().await?;
        turn.catch_up().await?;
        Ok(turn.end().await)
    }

    /// Removes a device for good, and makes keys that it does not get. What it had read it keeps. To be
    /// called again if it was cut off: it goes on from there.
    ///
    /// # Errors
    /// [`SyncError::Vault`] if the relay refuses.
    pub async fn revoke(&self, device: DeviceKey) -> Result<Report, SyncError> {
        let mut turn = Turn::begin(&self.shared).await?;
        turn.catch_up().await?;
        turn.push().await?;
        if turn.vault.devices().revoked_at(device).is_none() {
            turn.vault.revoke(&mut turn.wire, device).await.map_err(ended)?;
        } else if turn.vault.scope_wants_rotation(turn.vault.scope()) {
            // An earlier try was cut off.
            turn.vault.rotate(&mut turn.wire).await.map_err(ended)?;
        }
        turn.settle().await?;
        if let Some((scope, _)) = turn.private
            && turn.vault.scope_wants_rotation(scope)
        {
            turn.ready_private().await?;
        }
        turn.catch_up().await?;
        Ok(turn.end().await)
    }

    /// Reads everything that is new and sends everything that is unsent, once.
    ///
    /// # Errors
    /// [`SyncError::NotEnrolled`], [`SyncError::Cloned`], [`SyncError::Vault`] if the relay is not in
    /// reach. What was read and sent before stays.
    pub async fn sync(&self) -> Result<Report, SyncError> {
        let mut turn = Turn::begin(&self.shared).await?;
        turn.catch_up().await?;
        turn.push().await?;
        turn.catch_up().await?;
        turn.confirm().await?;
        Ok(turn.end().await)
    }

    /// Makes a snapshot of everything, from which new devices begin, and below which the relay lets go
    /// of changesets once another device has confirmed it.
    ///
    /// # Errors
    /// As of [`Attached::sync`]; [`VaultError::NoKey`] if this device was not
    /// given the vault's key yet, or cannot send what it has because its person's own key is missing.
    ///
    /// [`VaultError::NoKey`]: crate::vault::VaultError::NoKey
    pub async fn snapshot(&self) -> Result<sealwire_protocol::frame::SnapshotSummary, SyncError> {
        let mut turn = Turn::begin(&self.shared).await?;
        turn.catch_up().await?;
        turn.push().await?;
        turn.catch_up().await?;
        let made = turn.snapshot().await?;
        turn.end().await;
        Ok(made)
    }

    /// Syncs for as long as the value lives: at once when the app or another device has written, and at
    /// least once a minute. Must be called within a Tokio runtime. Meanwhile [`Attached::sync`] and what
    /// else works with the relay is [`SyncError::Running`]: stop it for as long as that takes.
    #[must_use]
    pub fn keep_synced(&self) -> Keeper {
        Keeper::start(self.shared.clone())
    }

    /// How things stand.
    ///
    /// # Errors
    /// [`SyncError::Store`].
    pub async fn status(&self) -> Result<Status, SyncError> {
        let identity = self.shared.identity.clone();
        self.shared
            .with(move |engine| {
                let mut tables: Vec<String> =
                    engine.shapes().map(|shape| shape.name.clone()).collect();
                tables.sort();
                engine.read(|db| status(db, identity, tables))
            })
            .await
    }

    /// Removes everything of sync from the database. The app's tables stay as they are; what was not
    /// sent is not sent any more.
    ///
    /// # Errors
    /// [`SyncError::Store`].
    pub async fn detach(self) -> Result<(), SyncError> {
        self.shared.write(|writer| super::engine::detach(writer.db)).await
    }
}

fn status(
    db: &Connection,
    identity: Arc<Identity>,
    tables: Vec<String>,
) -> Result<Status, SyncError> {
    let count = |sql: &str| -> Result<u64, SyncError> {
        let count: i64 = db.query_row(sql, [], |row| row.get(0))?;
        Ok(u64::try_from(count).unwrap_or(0))
    };
    let device = identity.key();
    let vault = Place::read(db)?.map(|place| -> Result<VaultStatus, SyncError> {
        let saved: Option<Vec<u8>> = meta(db, "vault")?;
        let vault = match saved {
            None => Vault::new(identity, place.log),
            Some(saved) => Vault::restore(identity, &saved).ok_or(StoreError::Damaged)?,
        };
        Ok(VaultStatus {
            log: place.log,
            relay: place.relay,
            head: vault.head(),
            devices: vault.devices().enrolled().collect(),
            epoch: vault.epoch(),
            holds_private_key: place.private.is_some_and(|(scope, _)| vault.holds_key(scope)),
            cloned: place.cloned,
        })
    });
    Ok(Status {
        device,
        vault: vault.transpose()?,
        tables,
        unsent_rows: outbox::unsent(db)?.rows + count("select count(*) from sealwire_capture")?,
        sealed: count("select count(*) from sealwire_sealed")?,
        withheld: count("select count(*) from sealwire_withheld")?,
        oversized: count("select count(*) from sealwire_oversized")?,
    })
}
