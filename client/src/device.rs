//! A device: the paved path.
//!
//! A [`Device`] is a directory on this machine. It founds and joins groups, sends and receives, and
//! does all of it without a relay in reach: what it has to say waits in its outbox. A
//! [`Connection`] to a relay, for as long as it lives, sends what waits and receives what is there.
//!
//! Several processes may open one directory at once. One of them talks to each relay; the others
//! write to the same outbox and are told the same events.

pub mod events;
pub(crate) mod shared;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection as Db;
use sealwire_protocol::digest::native_log_id;
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::limits::RECIPIENTS_MAX;
use sealwire_protocol::{Control, DeviceKey, Digest, Head, Kind, LogId, LogType};
use shared::Shared;
use zeroize::Zeroizing;

pub use events::Events;

pub use crate::store::logs::Phase;
pub use crate::store::outbox::{Sending, Unsent};

use crate::address::RelayUrl;
use crate::backoff::Bounds;
use crate::content::PAYLOAD_BYTES_MAX;
use crate::engine::Now;
use crate::entry::Outline;
use crate::error::{Error, StoreError};
use crate::event::{Event, Received};
use crate::identity::{Identity, JoinSeed, random};
use crate::invite::Invite;
use crate::numbering::DraftId;
use crate::seal::KeyName;
use crate::session::Connection;
use crate::store::logs::LogRow;
use crate::store::outbox::Draft;
use crate::store::{self, Store, inbox, keys, logs, outbox};

const KEY_FILE: &str = "device.key";
const STORE_FILE: &str = "device.db";

/// How a device behaves.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The heartbeat interval that is wished for; the relay clamps it.
    pub heartbeat: Duration,
    /// The waits between attempts to reach a relay.
    pub backoff: Bounds,
    /// How often it is looked whether another process of this device has written; none for never,
    /// when there is no other.
    pub watch_others: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(60),
            backoff: Bounds::default(),
            watch_others: Some(Duration::from_millis(250)),
        }
    }
}

/// A payload to be sent.
#[derive(Clone)]
pub struct Outgoing {
    payload: Vec<u8>,
    recipients: Vec<DeviceKey>,
    kind: Kind,
}

impl Outgoing {
    /// To all members, ringing for those who are away.
    #[must_use]
    pub fn to_all(payload: impl Into<Vec<u8>>) -> Self {
        Self { payload: payload.into(), recipients: Vec::new(), kind: Kind::Ring }
    }

    /// To these members, at most 64, ringing for those who are away.
    #[must_use]
    pub fn to(recipients: impl Into<Vec<DeviceKey>>, payload: impl Into<Vec<u8>>) -> Self {
        Self { payload: payload.into(), recipients: recipients.into(), kind: Kind::Ring }
    }

    /// Without ringing.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.kind = Kind::Quiet;
        self
    }

    /// Without ringing, and behind everything else.
    #[must_use]
    pub fn bulk(mut self) -> Self {
        self.kind = Kind::Bulk;
        self
    }
}

/// What is known of a log.
#[derive(Clone, Debug)]
pub struct LogInfo {
    /// Its name.
    pub log: LogId,
    /// Where it is.
    pub relay: RelayUrl,
    /// What it is to this device.
    pub phase: Phase,
    /// How far it was read; none if nothing was.
    pub head: Option<Head>,
    /// How many members it has.
    pub members: usize,
    /// The newest generation of its content key; 0 for none.
    pub epoch: u32,
    /// Whether this device holds that key.
    pub holds_key: bool,
    /// How many payloads are not in the log: they wait, or were refused.
    pub unsent: usize,
    /// Whether nothing is sent any more because this device was cloned or restored.
    pub cloned: bool,
}

/// A member of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub device: DeviceKey,
    /// The seq of the entry that made it one.
    pub joined_seq: u64,
    /// When, in milliseconds since the epoch, by the relay's clock.
    pub joined_at: u64,
}

/// A device. Clones are the same device.
#[derive(Clone)]
pub struct Device {
    shared: Arc<Shared>,
}

impl Device {
    /// Makes a new device in a directory, which is made if it is not there. With a passphrase its
    /// key is kept sealed.
    ///
    /// # Errors
    /// [`KeyFileError::Exists`] if there is one already.
    ///
    /// [`KeyFileError::Exists`]: crate::identity::file::KeyFileError::Exists
    pub async fn create(
        directory: impl AsRef<Path>,
        passphrase: Option<&str>,
        options: Options,
    ) -> Result<Self, Error> {
        let passphrase = passphrase.map(|text| Zeroizing::new(text.to_owned()));
        Self::on_thread(directory.as_ref().to_owned(), options, move |directory| {
            make_private(directory).map_err(|_| Error::Directory)?;
            let identity = Identity::generate()?;
            let passphrase = passphrase.as_ref().map(|text| text.as_str());
            identity.save(&directory.join(KEY_FILE), passphrase)?;
            Ok(identity)
        })
        .await
    }

    /// Opens the device in a directory.
    ///
    /// # Errors
    /// [`KeyFileError::Missing`] if there is none, [`KeyFileError::PassphraseNeeded`] if its key is
    /// sealed and no passphrase was given.
    ///
    /// [`KeyFileError::Missing`]: crate::identity::file::KeyFileError::Missing
    /// [`KeyFileError::PassphraseNeeded`]: crate::identity::file::KeyFileError::PassphraseNeeded
    pub async fn open(
        directory: impl AsRef<Path>,
        passphrase: Option<&str>,
        options: Options,
    ) -> Result<Self, Error> {
        let passphrase = passphrase.map(|text| Zeroizing::new(text.to_owned()));
        Self::on_thread(directory.as_ref().to_owned(), options, move |directory| {
            let passphrase = passphrase.as_ref().map(|text| text.as_str());
            Ok(Identity::load(&directory.join(KEY_FILE), passphrase)?)
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
            let now = Now::read().ms;
            store.write(|db| {
                inbox::prune(db, now)?;
                outbox::prune(db, now)
            })?;
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
                let id = logs::insert(db, log, &relay, &seed)?;
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

    /// Joins the group of an invite, once the relay is reached.
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
                let id = match logs::find(db, invite.log)? {
                    None => logs::insert(db, invite.log, &invite.relay, &invite.seed)?,
                    Some(row) => {
                        match row.phase {
                            Phase::Joining | Phase::Member => return Err(Error::AlreadyMember),
                            Phase::Revoked => return Err(Error::Revoked),
                            Phase::Left | Phase::Refused => {}
                        }
                        logs::set_phase(db, row.id, Phase::Joining)?;
                        logs::set_join_seed(db, row.id, &invite.seed)?;
                        row.id
                    }
                };
                outbox::insert(db, id, &Draft::Join)?;
                Ok(invite.log)
            })
            .await
    }

    /// Waits until this device is a member of a group and holds its key, so that it can read and
    /// write there.
    ///
    /// # Errors
    /// [`Error::Refused`] if the relay does not let it in, [`Error::Timeout`].
    pub async fn wait_ready(&self, log: LogId, deadline: Duration) -> Result<(), Error> {
        let ready = move |db: &Db| {
            let row = logs::find(db, log)?.ok_or(Error::NoSuchLog)?;
            match row.phase {
                Phase::Joining => Ok(None),
                Phase::Member => Ok(holds_key(db, &row)?.then_some(())),
                Phase::Left => Err(Error::NotAMember),
                Phase::Revoked => Err(Error::Revoked),
                Phase::Refused => Err(Error::Refused(
                    outbox::newest_refusal(db, row.id)?.unwrap_or(ErrorCode::Unknown),
                )),
            }
        };
        self.shared.wait_for(deadline, ready).await
    }

    /// Puts a payload into the outbox: from then on it is on the disk, and is sent when it can be.
    ///
    /// # Errors
    /// [`Error::TooLong`], [`Error::Recipients`], [`Error::NotAMember`].
    pub async fn send(&self, log: LogId, outgoing: Outgoing) -> Result<DraftId, Error> {
        let Outgoing { payload, mut recipients, kind } = outgoing;
        if payload.len() > PAYLOAD_BYTES_MAX {
            return Err(Error::TooLong);
        }
        recipients.sort_unstable();
        recipients.dedup();
        if recipients.len() > RECIPIENTS_MAX || recipients.contains(&self.key()) {
            return Err(Error::Recipients);
        }
        let draft = Draft::Content { kind: kind.to_u8(), payload: Some(payload), to: recipients };
        self.put(log, move |_| Ok(draft)).await
    }

    /// What has become of an entry of this device.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn sending(&self, id: DraftId) -> Result<Sending, Error> {
        self.shared.read(move |db| outbox::sending(db, id)).await
    }

    /// Waits until the relay has appended an entry of this device, and gives its seq: it is on the
    /// relay's disk then.
    ///
    /// # Errors
    /// [`Error::Refused`] if the relay refuses it for good, [`Error::Timeout`] if it has not
    /// answered in time; the entry is still sent later. [`Error::Cloned`] if nothing of this device
    /// is sent to the group any more.
    pub async fn wait_appended(&self, id: DraftId, deadline: Duration) -> Result<u64, Error> {
        let appended = move |db: &Db| match outbox::sending(db, id)? {
            Sending::Waiting if outbox::is_blocked(db, id)? => Err(Error::Cloned),
            Sending::Waiting => Ok(None),
            Sending::Appended { seq } => Ok(Some(seq)),
            Sending::Refused(code) => Err(Error::Refused(code)),
            Sending::Unknown => Err(Error::Unknown),
        };
        self.shared.wait_for(deadline, appended).await
    }

    /// Leaves a group, after all that is still to be sent to it.
    ///
    /// # Errors
    /// [`Error::NotAMember`].
    pub async fn leave(&self, log: LogId) -> Result<DraftId, Error> {
        self.put(log, |_| Ok(Draft::Leave)).await
    }

    /// Removes a member for good, makes another join key, and another content key.
    ///
    /// # Errors
    /// [`Error::NotAMember`], [`Error::Recipients`] if the other one is no member, or is this
    /// device.
    pub async fn revoke(&self, log: LogId, device: DeviceKey) -> Result<DraftId, Error> {
        if device == self.key() {
            return Err(Error::Recipients);
        }
        self.shared
            .write(move |db| {
                let row = member_row(db, log)?;
                if !row.membership.has(device) {
                    return Err(Error::Recipients);
                }
                let seed = Digest(*JoinSeed::generate()?.bytes());
                let id = outbox::insert(db, row.id, &Draft::Revoke { device, seed })?;
                outbox::insert(db, row.id, &Draft::Rotate { asked: true })?;
                Ok(id)
            })
            .await
    }

    /// Makes another content key. This happens by itself when it must: after a removal.
    ///
    /// # Errors
    /// [`Error::NotAMember`], [`Error::NoKey`].
    pub async fn rotate(&self, log: LogId) -> Result<DraftId, Error> {
        self.put(log, |row| {
            if row.holders.epoch() == 0 {
                Err(Error::NoKey)
            } else {
                Ok(Draft::Rotate { asked: true })
            }
        })
        .await
    }

    /// The members of a group, as far as it was read.
    ///
    /// # Errors
    /// [`Error::NoSuchLog`].
    pub async fn members(&self, log: LogId) -> Result<Vec<Member>, Error> {
        self.shared
            .read(move |db| {
                let row = logs::find(db, log)?.ok_or(Error::NoSuchLog)?;
                let members = row.membership.members();
                Ok::<_, Error>(
                    members
                        .map(|(device, since)| Member {
                            device,
                            joined_seq: since.seq,
                            joined_at: since.at,
                        })
                        .collect(),
                )
            })
            .await
    }

    /// The logs that this device is or was a member of.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn logs(&self) -> Result<Vec<LogInfo>, Error> {
        self.shared
            .read(|db| {
                logs::list(db)?.into_iter().map(|row| info(db, row)).collect::<Result<_, Error>>()
            })
            .await
    }

    /// What is known of a log.
    ///
    /// # Errors
    /// [`Error::NoSuchLog`].
    pub async fn log(&self, log: LogId) -> Result<LogInfo, Error> {
        self.shared.read(move |db| info(db, logs::find(db, log)?.ok_or(Error::NoSuchLog)?)).await
    }

    /// Entries that the app has not taken, of one group or of all, oldest first, at most `limit`.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn inbox(&self, log: Option<LogId>, limit: usize) -> Result<Vec<Received>, Error> {
        self.shared
            .read(move |db| {
                let told = inbox::untaken(db, log, limit)?;
                Ok::<_, Error>(
                    told.into_iter()
                        .filter_map(|told| {
                            if let Event::Entry(received) = told.event {
                                Some(received)
                            } else {
                                None
                            }
                        })
                        .collect(),
                )
            })
            .await
    }

    /// The app has taken an entry: it keeps it itself, or needs it no more.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn take(&self, received: &Received) -> Result<(), Error> {
        let (log, seq) = (received.log, received.seq);
        self.shared.write(move |db| inbox::take(db, log, seq)).await
    }

    /// Payloads that are not in the log: they wait, or were refused.
    ///
    /// # Errors
    /// [`Error::NoSuchLog`].
    pub async fn unsent(&self, log: LogId) -> Result<Vec<Unsent>, Error> {
        self.shared
            .read(move |db| {
                let row = logs::find(db, log)?.ok_or(Error::NoSuchLog)?;
                Ok::<_, Error>(outbox::unsent(db, row.id)?)
            })
            .await
    }

    /// Drops an entry that was refused, or that waits and was not sent yet. Says whether it did.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn discard(&self, id: DraftId) -> Result<bool, Error> {
        self.shared.write(move |db| outbox::discard(db, id)).await
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

    /// Puts a draft into the outbox of a log that this device is a member of, or is joining.
    async fn put(
        &self,
        log: LogId,
        draft: impl FnOnce(&LogRow) -> Result<Draft, Error> + Send + 'static,
    ) -> Result<DraftId, Error> {
        self.shared
            .write(move |db| {
                let row = member_row(db, log)?;
                let draft = draft(&row)?;
                Ok::<_, Error>(outbox::insert(db, row.id, &draft)?)
            })
            .await
    }
}

fn member_row(db: &Db, log: LogId) -> Result<LogRow, Error> {
    let row = logs::find(db, log)?.ok_or(Error::NoSuchLog)?;
    match row.phase {
        _ if row.blocked => Err(Error::Cloned),
        Phase::Joining | Phase::Member => Ok(row),
        Phase::Left | Phase::Refused => Err(Error::NotAMember),
        Phase::Revoked => Err(Error::Revoked),
    }
}

fn holds_key(db: &Db, row: &LogRow) -> Result<bool, StoreError> {
    let Some(scope) = row.membership.scope() else { return Ok(false) };
    keys::has(db, row.id, KeyName { scope, epoch: row.holders.epoch() })
}

fn info(db: &Db, row: LogRow) -> Result<LogInfo, Error> {
    Ok(LogInfo {
        log: row.log,
        phase: row.phase,
        head: row.track.head(),
        members: row.membership.members().len(),
        epoch: row.holders.epoch(),
        holds_key: holds_key(db, &row)?,
        unsent: outbox::unsent(db, row.id)?.len(),
        cloned: row.blocked,
        relay: row.relay,
    })
}

/// Makes a directory that only its owner may enter.
fn make_private(directory: &Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(directory)
}
