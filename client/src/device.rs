//! A device: the paved path.
//!
//! A [`Device`] is a directory on this machine. It founds and joins groups, sends and receives, and
//! does all of it without a relay in reach: what it has to say waits in its outbox. A
//! [`Connection`] to a relay, for as long as it lives, sends what waits and receives what is there.
//!
//! Several processes may open one directory at once. One of them talks to each relay; the others
//! write to the same outbox and are told the same events.

pub mod events;
mod handover;
mod ledger;
mod reading;
mod recovery;
mod restoring;
mod sending;
pub(crate) mod shared;
mod totals;
mod types;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::Connection as Db;
use sealwire_protocol::bounded::BoundedText;
use sealwire_protocol::digest::native_log_id;
use sealwire_protocol::frame::SetPushToken;
use sealwire_protocol::{Control, DeviceKey, LogId, LogType};
use shared::Shared;
use zeroize::Zeroizing;

pub use events::Events;
pub use ledger::Written;
pub use types::{KeyKeeping, LogInfo, Member, Options, Outgoing};

pub use crate::engine::patience;
pub use crate::store::logs::Phase;
pub use crate::store::outbox::{Sending, Unsent};
pub use crate::store::requests::JoinRequest;
pub use totals::NAME_BYTES_MAX;

use crate::address::RelayUrl;
use crate::entry::Outline;
use crate::error::Error;
use crate::identity::{Identity, JoinSeed, random};
use crate::invite::Invite;
use crate::session::Connection;
use crate::store::logs::LogRow;
use crate::store::outbox::Draft;
use crate::store::{self, Store, logs, outbox};

const KEY_FILE: &str = "device.key";
const STORE_FILE: &str = "device.db";

/// A device. Clones are the same device.
#[derive(Clone)]
pub struct Device {
    shared: Arc<Shared>,
}

impl Device {
    /// Makes a new device in a directory, which is made if it is not there, and keeps its key where
    /// `keeping` says.
    ///
    /// # Errors
    /// [`KeyFileError::Exists`](crate::identity::file::KeyFileError::Exists) if there is one already,
    /// [`StoreError::OtherDevice`](crate::error::StoreError::OtherDevice) if the file of one is there.
    pub async fn create(
        directory: impl AsRef<Path>,
        keeping: KeyKeeping<'_>,
        options: Options,
    ) -> Result<Self, Error> {
        let keeping = keeping.owned();
        Self::on_thread(directory.as_ref().to_owned(), options, move |directory| {
            make_private(directory).map_err(|_| Error::Directory)?;
            restoring::must_be_free(directory)?;
            restoring::discard(directory)?;
            let identity = Identity::generate()?;
            keeping.keep(&identity, &directory.join(KEY_FILE))?;
            Ok(identity)
        })
        .await
    }

    /// Opens the device in a directory.
    ///
    /// # Errors
    /// [`KeyFileError::Missing`](crate::identity::file::KeyFileError::Missing) if there is none,
    /// [`KeyFileError::PassphraseNeeded`](crate::identity::file::KeyFileError::PassphraseNeeded) if its key is
    /// sealed and no passphrase was given.
    pub async fn open(
        directory: impl AsRef<Path>,
        passphrase: Option<&str>,
        options: Options,
    ) -> Result<Self, Error> {
        let passphrase = passphrase.map(|text| Zeroizing::new(text.to_owned()));
        Self::on_thread(directory.as_ref().to_owned(), options, move |directory| {
            let passphrase = passphrase.as_ref().map(|text| text.as_str());
            let identity = Identity::load(&directory.join(KEY_FILE), passphrase)?;
            restoring::finish(directory)?;
            Ok(identity)
        })
        .await
    }

    async fn on_thread(
        directory: PathBuf,
        options: Options,
        identity: impl FnOnce(&Path) -> Result<Identity, Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let open = move || {
            let identity = identity(&directory)?;
            let store = Store::open(&directory.join(STORE_FILE), identity.key())?;
            let shared = Arc::new(Shared::new(identity, store, directory, options));
            Ok(Self { shared })
        };
        tokio::task::spawn_blocking(open).await.map_err(|_| Error::Stopped)?
    }

    /// The device's name.
    #[must_use]
    pub fn key(&self) -> DeviceKey {
        self.shared.identity.key()
    }

    /// The key pair, for the parts of this crate that sign and open.
    pub(crate) fn identity(&self) -> Arc<Identity> {
        self.shared.identity.clone()
    }

    /// Stays connected to a relay for as long as the value lives. Must be called within a Tokio
    /// runtime.
    #[must_use]
    pub fn connect(&self, relay: &RelayUrl) -> Connection {
        Connection::start(self.shared.clone(), relay.clone())
    }

    /// What happens from now on.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn events(&self) -> Result<Events, Error> {
        Events::begin(self.shared.clone()).await
    }

    /// Founds a group and makes this device its first member. The group has its name at once; the
    /// relay learns of it when it is reached.
    ///
    /// # Errors
    /// [`Error::Store`] or [`Error::NoRandomness`].
    pub async fn found_group(&self, relay: &RelayUrl) -> Result<LogId, Error> {
        let (shared, relay) = (self.shared.clone(), relay.clone());
        self.shared
            .write(move |db| {
                let seed = JoinSeed::generate()?;
                let found = Control::Found {
                    log_type: LogType::Group,
                    random: random()?,
                    join_key: Some(seed.public()),
                };
                let signed = Outline::first()
                    .sign(&shared.identity, &found.encode())
                    .map_err(|_| Error::TooLong)?;
                let log = native_log_id(&signed.entry.header);
                let id = logs::insert(db, log, &relay, Some(&seed))?;
                let draft = outbox::insert(db, id, &Draft::Found)?;
                outbox::number(db, draft, 1, &signed, true, None)?;
                outbox::insert(db, id, &Draft::Rotate { asked: false })?;
                Ok::<_, Error>(log)
            })
            .await
    }

    /// Makes an invite to a group. Whoever reads its link can join.
    ///
    /// # Errors
    /// [`Error::UnknownRelay`] before the relay was reached for the first time, [`Error::NoJoinKey`]
    /// if this device was not given the newest join key.
    pub async fn invite(&self, log: LogId) -> Result<Invite, Error> {
        let me = self.key();
        self.shared
            .write(move |db| {
                let row = member_row(db, log)?;
                if log.is_totals() {
                    return Err(Error::Format("the invitation to a Totals group is its id"));
                }
                let relay_key = store::relay_key(db, &row.relay)?.ok_or(Error::UnknownRelay)?;
                let seed = row.join_seed.ok_or(Error::NoJoinKey)?;
                // Before the first entry was read, this device has founded the group itself.
                let good = row.membership.join_key() == Some(seed.public())
                    || !row.membership.is_founded();
                if !good {
                    return Err(Error::NoJoinKey);
                }
                logs::set_invited(db, row.id)?;
                Ok(Invite { relay: row.relay, relay_key, log, inviter: me, seed })
            })
            .await
    }

    /// Joins the group of an invite, once the relay is reached. Whoever made the invite must be among the
    /// members up to this device's own joining: if it never was, the link or the relay lies, no key is
    /// taken and nothing sent ([`Event::InviterUnknown`](crate::event::Event::InviterUnknown)); if it is
    /// none any more, that is told ([`Event::InviterGone`](crate::event::Event::InviterGone)).
    ///
    /// # Errors
    /// [`Error::RelayKeyChanged`] if the relay's address is known with another key,
    /// [`Error::AlreadyMember`], [`Error::Revoked`].
    pub async fn join(&self, invite: &Invite) -> Result<LogId, Error> {
        let invite = invite.clone();
        self.shared
            .write(move |db| {
                match store::relay_key(db, &invite.relay)? {
                    None => store::pin_relay(db, &invite.relay, invite.relay_key)?,
                    Some(pinned) if pinned == invite.relay_key => {}
                    Some(pinned) => {
                        let presented = invite.relay_key;
                        return Err(Error::RelayKeyChanged { pinned, presented });
                    }
                }
                let (id, read) = match logs::find(db, invite.log)? {
                    None => {
                        (logs::insert(db, invite.log, &invite.relay, Some(&invite.seed))?, false)
                    }
                    Some(row) => {
                        match row.phase {
                            Phase::Joining | Phase::Member => return Err(Error::AlreadyMember),
                            Phase::Revoked => return Err(Error::Revoked),
                            Phase::Left | Phase::Refused => {}
                        }
                        logs::set_phase(db, row.id, Phase::Joining)?;
                        logs::set_join_seed(db, row.id, &invite.seed)?;
                        (row.id, row.membership.is_founded())
                    }
                };
                logs::set_inviter(db, id, invite.inviter, read)?;
                outbox::insert(db, id, &Draft::Join)?;
                Ok(invite.log)
            })
            .await
    }

    /// Says where this device is rung while it sleeps: its token at a push service such as `fcm`, or
    /// none to be rung no more. Every relay that it is connected to is told, now and at each connection
    /// for as long as this process lives: an app says it at its start and when its token changes.
    ///
    /// # Errors
    /// [`Error::TooLong`].
    pub fn set_push_token(&self, platform: &str, token: Option<&str>) -> Result<(), Error> {
        let token = token.map(|token| BoundedText::new(token).ok_or(Error::TooLong)).transpose()?;
        let platform = BoundedText::new(platform).ok_or(Error::TooLong)?;
        self.shared.doorbell.send_replace(Some(SetPushToken { platform, token }));
        Ok(())
    }

    /// The key that belongs to a relay's address; none if it was never met.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn relay_key(&self, relay: &RelayUrl) -> Result<Option<DeviceKey>, Error> {
        let relay = relay.clone();
        self.shared.read(move |db| store::relay_key(db, &relay)).await
    }

    /// A person has decided that from now on this key belongs to a relay's address.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn trust_relay(&self, relay: &RelayUrl, key: DeviceKey) -> Result<(), Error> {
        let relay = relay.clone();
        self.shared.write(move |db| store::pin_relay(db, &relay, key)).await
    }
}

/// A group that this device is, or is about to be, a member of, and may write to.
fn member_row(db: &Db, log: LogId) -> Result<LogRow, Error> {
    let row = open_row(db, log)?;
    if logs::is_stranger(db, row.id)? { Err(Error::InviterUnknown) } else { Ok(row) }
}

/// A group that this device is, or is about to be, a member of.
fn open_row(db: &Db, log: LogId) -> Result<LogRow, Error> {
    let row = logs::find(db, log)?.ok_or(Error::NoSuchLog)?;
    match row.phase {
        _ if row.blocked => Err(Error::Cloned),
        Phase::Joining | Phase::Member => Ok(row),
        Phase::Left | Phase::Refused => Err(Error::NotAMember),
        Phase::Revoked => Err(Error::Revoked),
    }
}

/// Makes a directory that only its owner may enter.
fn make_private(directory: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}
