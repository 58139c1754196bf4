//! Entries of the vault come in: opened, replayed, or kept until they can be.
//!
//! All of a batch, the place behind it and the vault's own state are one transaction. An entry that
//! cannot be opened is kept sealed and passed; it is tried again when a key comes, or a newer version.

use rusqlite::OptionalExtension;
use sealwire_protocol::DeviceKey;
use sealwire_protocol::ids::Scope;

use super::boxes;
use super::changeset::{Changes, ChangesetError};
use super::error::SyncError;
use super::outbox;
use super::replay::Replayed;
use super::schema::KeyScope;
use super::writer::{Writer, meta, set_meta};
use crate::error::StoreError;
use crate::seal;
use crate::vault::{Arrived, Vault};

/// How many keys were held when damaged boxes were tried last.
const KEYS_TRIED: &str = "keys_tried";

/// Why a box is kept sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    /// Its key is not held.
    NoKey = 0,
    /// A newer version wrote it.
    Newer = 1,
    /// It does not open, or what is inside is no changeset.
    Damaged = 2,
}

/// What a batch held.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    pub(crate) replayed: Replayed,
    /// Boxes that do not open yet.
    pub(crate) sealed: usize,
    /// Boxes that never will.
    pub(crate) damaged: usize,
    /// The key of this device is used elsewhere.
    pub(crate) cloned: bool,
}

/// A box at its place.
pub(crate) struct At<'a> {
    pub(crate) seq: u64,
    pub(crate) place: usize,
    pub(crate) author: DeviceKey,
    pub(crate) aad: &'a [u8],
}

/// Whose keys this device has.
#[derive(Clone, Copy)]
pub(crate) struct Keyring<'a> {
    pub(crate) vault: &'a Vault,
    /// The scope that is its user's alone.
    pub(crate) private: Option<Scope>,
}

impl Keyring<'_> {
    /// What a scope is to this device; none if it is somebody else's.
    pub(crate) fn kind(&self, scope: Scope) -> Option<KeyScope> {
        if scope == self.vault.scope() {
            Some(KeyScope::Group)
        } else {
            (Some(scope) == self.private).then_some(KeyScope::UserPrivate)
        }
    }

    /// Whether it is this person's own, and its key is here.
    pub(crate) fn is_mine(&self, scope: Scope) -> bool {
        self.kind(scope) == Some(KeyScope::UserPrivate) && self.vault.holds_key(scope)
    }
}

impl Writer<'_> {
    /// Takes a batch, and keeps what the vault knows behind it.
    pub(crate) fn take_in(
        &mut self,
        keys: Keyring<'_>,
        arrived: &[Arrived],
        taken: &mut Taken,
    ) -> Result<(), SyncError> {
        self.drain()?;
        self.silently(|writer| {
            for entry in arrived {
                if entry.author != writer.me || writer.is_news_of_mine(entry, taken)? {
                    writer.take_entry(keys, entry, taken)?;
                }
            }
            writer.open_again(keys, taken)
        })?;
        self.keep_vault(keys.vault)
    }

    /// Keeps what the vault knows, and settles what it has found of this device's own.
    pub(crate) fn keep_vault(&mut self, vault: &Vault) -> Result<(), SyncError> {
        let me = self.names.device(self.db, self.me)?;
        outbox::appended(self.db, vault.own().count, None, me, self.now)?;
        set_meta(self.db, "vault", vault.save())
    }

    /// An entry of this device: settles it if it is known. If not, this database was set back, and the
    /// entry is as good as anybody's.
    fn is_news_of_mine(&mut self, entry: &Arrived, taken: &mut Taken) -> Result<bool, SyncError> {
        let Some((digest, settled)) = outbox::find(self.db, entry.count)? else { return Ok(true) };
        if digest != entry.digest {
            taken.cloned = true;
            set_meta(self.db, "cloned", true)?;
            return Ok(true);
        }
        if !settled {
            let me = self.names.device(self.db, self.me)?;
            outbox::appended(self.db, entry.count, Some((entry.count, entry.seq)), me, self.now)?;
        }
        Ok(false)
    }

    fn take_entry(
        &mut self,
        keys: Keyring<'_>,
        entry: &Arrived,
        taken: &mut Taken,
    ) -> Result<(), SyncError> {
        let Arrived { seq, author, aad, .. } = entry;
        let at = |place| At { seq: *seq, place, author: *author, aad };
        let Some(boxes) = boxes::split(&entry.body) else {
            taken.damaged += 1;
            return self.keep_box(&at(0), Scope::ZERO, 0, Kept::Damaged, &entry.body);
        };
        taken.replayed.changesets += 1;
        for (place, sealed) in boxes.iter().enumerate() {
            if let Err(kept) = self.take_box(keys, &at(place), sealed, &mut taken.replayed)? {
                match kept {
                    Kept::NoKey | Kept::Newer => taken.sealed += 1,
                    Kept::Damaged => taken.damaged += 1,
                }
                let name = seal::key_name(sealed).ok().filter(|name| name.scope != Scope::ZERO);
                let (scope, epoch) = name.map_or((Scope::ZERO, 0), |it| (it.scope, it.epoch));
                self.keep_box(&at(place), scope, epoch, kept, sealed)?;
            }
        }
        Ok(())
    }

    /// Opens and replays one box, or says why not.
    pub(crate) fn take_box(
        &mut self,
        keys: Keyring<'_>,
        at: &At<'_>,
        sealed: &[u8],
        replayed: &mut Replayed,
    ) -> Result<Result<(), Kept>, SyncError> {
        let name = seal::key_name(sealed).ok().filter(|name| name.scope != Scope::ZERO);
        let Some(name) = name else { return Ok(Err(Kept::Damaged)) };
        let Some(scope) = keys.kind(name.scope) else { return Ok(Err(Kept::NoKey)) };
        if !keys.vault.holds_epoch(name.scope, name.epoch) {
            return Ok(Err(Kept::NoKey));
        }
        let Ok(bytes) = keys.vault.open_box(at.author, at.aad, sealed) else {
            return Ok(Err(Kept::Damaged));
        };
        let changes = match Changes::decode(&bytes) {
            Ok(changes) => changes,
            Err(ChangesetError::Newer) => return Ok(Err(Kept::Newer)),
            Err(ChangesetError::Malformed) => return Ok(Err(Kept::Damaged)),
        };
        self.replay(at.author, scope, &changes, replayed)?;
        let author = self.names.device(self.db, at.author)?;
        self.db
            .prepare_cached(
                "insert or replace into sealwire_history (seq, author, reading) values (?1, ?2, ?3)",
            )?
            .execute((at.seq.cast_signed(), author, changes.reading.0.cast_signed()))?;
        Ok(Ok(()))
    }

    pub(crate) fn keep_box(
        &self,
        at: &At<'_>,
        scope: Scope,
        epoch: u32,
        kept: Kept,
        sealed: &[u8],
    ) -> Result<(), SyncError> {
        let place = i64::try_from(at.place).map_err(|_| StoreError::Damaged)?;
        self.db
            .prepare_cached(
                "insert or ignore into sealwire_sealed
                     (seq, place, author, aad, scope, epoch, reason, box)
                 values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            )?
            .execute((
                at.seq.cast_signed(),
                place,
                &at.author.0[..],
                at.aad,
                &scope.0[..],
                epoch,
                kept as i64,
                sealed,
            ))?;
        Ok(())
    }

    /// Tries again what is kept, where the key is held now.
    fn open_again(&mut self, keys: Keyring<'_>, taken: &mut Taken) -> Result<(), SyncError> {
        let db = self.db;
        // What no key of its epoch has opened may be opened by one that came since.
        let held = i64::try_from(keys.vault.keys_held()).unwrap_or(i64::MAX);
        if meta(db, KEYS_TRIED)? != Some(held) {
            db.execute("update sealwire_sealed set reason = 0 where reason = 2 and epoch > 0", [])?;
            set_meta(db, KEYS_TRIED, held)?;
        }
        let mut statement = db
            .prepare_cached("select distinct scope, epoch from sealwire_sealed where reason = 0")?;
        let names: Vec<(Vec<u8>, u32)> = statement
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect::<rusqlite::Result<_>>()?;
        for (scope, epoch) in names {
            let Some(scope) = Scope::from_slice(&scope) else { continue };
            if keys.kind(scope).is_none() || !keys.vault.holds_epoch(scope, epoch) {
                continue;
            }
            while let Some(sealed) = self.next_sealed(scope, epoch)? {
                let Sealed { seq, place, author, aad, bytes } = sealed;
                let at = At { seq, place, author, aad: &aad };
                let reason = match self.take_box(keys, &at, &bytes, &mut taken.replayed)? {
                    Ok(()) => None,
                    Err(kept) => Some(if kept == Kept::NoKey { Kept::Damaged } else { kept }),
                };
                self.settle_sealed(&at, reason)?;
            }
        }
        self.open_carried(keys, taken)
    }

    fn next_sealed(&self, scope: Scope, epoch: u32) -> Result<Option<Sealed>, SyncError> {
        let found = self
            .db
            .prepare_cached(
                "select seq, place, author, aad, box from sealwire_sealed
                 where reason = 0 and scope = ?1 and epoch = ?2 order by seq, place limit 1",
            )?
            .query_row((&scope.0[..], epoch), |row| {
                let author: Vec<u8> = row.get(2)?;
                Ok((row.get::<_, i64>(0)?, row.get(1)?, author, row.get(3)?, row.get(4)?))
            })
            .optional()?;
        let Some((seq, place, author, aad, bytes)) = found else { return Ok(None) };
        let place: u32 = place;
        Ok(Some(Sealed {
            seq: seq.cast_unsigned(),
            place: place as usize,
            author: DeviceKey::from_slice(&author).ok_or(StoreError::Damaged)?,
            aad,
            bytes,
        }))
    }

    fn settle_sealed(&self, at: &At<'_>, reason: Option<Kept>) -> Result<(), SyncError> {
        let place = i64::try_from(at.place).map_err(|_| StoreError::Damaged)?;
        let key = (at.seq.cast_signed(), place);
        match reason {
            None => self
                .db
                .prepare_cached("delete from sealwire_sealed where seq = ?1 and place = ?2")?
                .execute(key)?,
            Some(kept) => self
                .db
                .prepare_cached(
                    "update sealwire_sealed set reason = ?3 where seq = ?1 and place = ?2",
                )?
                .execute((key.0, key.1, kept as i64))?,
        };
        Ok(())
    }
}

/// A box that is kept.
struct Sealed {
    seq: u64,
    place: usize,
    author: DeviceKey,
    aad: Vec<u8>,
    bytes: Vec<u8>,
}
