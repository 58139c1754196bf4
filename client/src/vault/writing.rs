//! Writing: changesets, devices, keys.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::frame::{Append, AppendBatch, Appended};
use sealwire_protocol::ids::{Scope, Signature};
use sealwire_protocol::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX};
use sealwire_protocol::{Control, DeviceKey, Head, Kind, RelayFrame};
use zeroize::Zeroizing;

use super::keys;
use super::{Vault, VaultError};
use crate::entry::{Outline, Signed};
use crate::numbering::Mark;
use crate::seal::{self, EpochKey, KeyName, Place, SealError};
use crate::wire::Wire;

/// Keeps entries before they are sent.
pub(crate) type Journal =
    Arc<dyn Fn(Vec<Signed>) -> BoxFuture<'static, Result<(), VaultError>> + Send + Sync>;

/// How often a conditional entry, or a snapshot, is made anew because another entry came before it.
pub(super) const REBASES_MAX: usize = 16;

impl Vault {
    /// Enrols another device, which has signed for it ([`Vault::consent`]), and gives it every content
    /// key that this device holds.
    ///
    /// # Errors
    /// A [`VaultError`].
    pub async fn enrol(
        &mut self,
        wire: &mut Wire,
        device: DeviceKey,
        signature: Signature,
    ) -> Result<u64, VaultError> {
        let control = Control::Enrol { device, signature };
        let signed = self.sign(Kind::Control, &[], &control.encode())?;
        let seq = self.append(wire, vec![signed]).await?.seq;
        self.deliver(wire, device).await?;
        Ok(seq)
    }

    /// Puts a device in the place of this one, which is lost: enrols it, if it is not, and gives it
    /// every key that this device was given, those that are private to its person among them. Only for
    /// another device of the same person. What this device has written and does not know any more, the
    /// relay tells.
    ///
    /// # Errors
    /// A [`VaultError`]; [`VaultError::OldScope`] if what this device has written could not be read by the
    /// other one: then nothing was sent.
    pub async fn hand_over(
        &mut self,
        wire: &mut Wire,
        device: DeviceKey,
        signature: Signature,
    ) -> Result<(), VaultError> {
        self.check_held()?;
        if !self.devices.has(device) {
            let first = self.enrol(wire, device, signature).await;
            let failure = first.as_ref().err().and_then(VaultError::refusal);
            match failure.and_then(|failure| Some((failure.count?, failure.digest?))) {
                Some((count, digest)) => {
                    self.own = Mark { count, digest };
                    self.enrol(wire, device, signature).await?;
                }
                None => {
                    first?;
                }
            }
        }
        for scope in self.held_scopes() {
            self.deliver_scope(wire, device, scope).await?;
        }
        Ok(())
    }

    /// The scopes besides the vault's first one of which this device holds a key: its person's own, and
    /// whatever others have given it.
    fn held_scopes(&self) -> Vec<Scope> {
        let first = self.scope();
        self.keys.scopes().into_iter().filter(|scope| *scope != first).collect()
    }

    /// Gives an enrolled device every content key that this device holds.
    ///
    /// # Errors
    /// A [`VaultError`].
    pub async fn deliver(&mut self, wire: &mut Wire, to: DeviceKey) -> Result<(), VaultError> {
        self.deliver_scope(wire, to, self.scope()).await
    }

    /// Gives an enrolled device every key of a scope that this device holds.
    pub(crate) async fn deliver_scope(
        &mut self,
        wire: &mut Wire,
        to: DeviceKey,
        scope: Scope,
    ) -> Result<(), VaultError> {
        for (epoch, key) in self.keys.all(scope) {
            let name = KeyName { scope, epoch };
            let outline = self.outline(Kind::Key, &[to]);
            let sender = self.device.key();
            let aad = outline.aad(sender);
            let place = Place { log: self.log, sender, aad: &aad };
            let body = keys::seal(&key, name, &place, &[to])?;
            let signed = self.sign_outline(outline, &body)?;
            self.append(wire, vec![signed]).await?;
        }
        Ok(())
    }

    /// Revokes a device for good, and makes a content key that it does not get.
    ///
    /// # Errors
    /// A [`VaultError`].
    pub async fn revoke(&mut self, wire: &mut Wire, device: DeviceKey) -> Result<u64, VaultError> {
        let control = Control::Revoke { device, join_key: None };
        let signed = self.sign(Kind::Control, &[], &control.encode())?;
        let seq = self.append(wire, vec![signed]).await?.seq;
        self.read_on(wire).await?;
        self.rotate(wire).await?;
        Ok(seq)
    }

    /// Makes another content key, sealed to every enrolled device. If another device was quicker, this
    /// one reads what it did and makes its own anew. Gives the new epoch.
    ///
    /// # Errors
    /// A [`VaultError`].
    pub async fn rotate(&mut self, wire: &mut Wire) -> Result<u32, VaultError> {
        self.rotate_scope(wire, self.scope()).await
    }

    /// Makes another key of a scope, or its first one, sealed to the devices that hold it.
    pub(crate) async fn rotate_scope(
        &mut self,
        wire: &mut Wire,
        scope: Scope,
    ) -> Result<u32, VaultError> {
        let key = EpochKey::generate()?;
        let mut epoch = 0;
        let seal = |vault: &Self, outline: &Outline| {
            epoch = vault.newest_epoch(scope).checked_add(1).ok_or(VaultError::Contended)?;
            let sender = vault.device.key();
            let aad = outline.aad(sender);
            let place = Place { log: vault.log, sender, aad: &aad };
            keys::seal(&key, KeyName { scope, epoch }, &place, &vault.holders(scope))
        };
        self.write_conditional(wire, Kind::Key, seal).await?;
        self.read_on(wire).await?;
        Ok(epoch)
    }

    /// Appends changesets, each sealed under the newest content key, in batches that are all or
    /// nothing. If a device was removed since that key was made, another one is made first.
    ///
    /// # Errors
    /// A [`VaultError`]. Batches before the one that failed are appended.
    pub async fn push(
        &mut self,
        wire: &mut Wire,
        payloads: &[Vec<u8>],
    ) -> Result<Appended, VaultError> {
        if self.scope_wants_rotation(self.scope()) {
            self.rotate(wire).await?;
        }
        let mut last = None;
        let mut rest = payloads;
        while !rest.is_empty() {
            let batch = self.batch(&mut rest)?;
            last = Some(self.append(wire, batch).await?);
        }
        last.ok_or(VaultError::TooLong)
    }

    /// Tells `journal` of every entry before it is sent.
    pub(crate) fn set_journal(&mut self, journal: Journal) {
        self.journal = Some(journal);
    }

    /// The newest entry of this device that was appended.
    pub(crate) fn own(&self) -> Mark {
        self.own
    }

    /// An entry of this device was appended, with all before it.
    pub(crate) fn set_own(&mut self, own: Mark) {
        if own.count > self.own.count {
            self.own = own;
        }
    }

    /// The relay has lost what this device had appended behind `mark`.
    pub(crate) fn set_back_own(&mut self, mark: Mark) {
        self.own = mark;
    }

    /// The newest entry of this device that was read.
    pub(crate) fn read_of_own(&self) -> Mark {
        self.senders.get(&self.device.key()).copied().unwrap_or(Mark::NONE)
    }

    /// The newest epoch of a scope that a rotation has made; 0 for none.
    pub(super) fn newest_epoch(&self, scope: Scope) -> u32 {
        self.epochs.get(&scope).copied().unwrap_or(0)
    }

    /// Whether whoever writes under a scope rotates first: a holder was removed, or this device holds
    /// older keys and not the newest one, or only as somebody gave it who need not have it right.
    pub(crate) fn scope_wants_rotation(&self, scope: Scope) -> bool {
        let epoch = self.keys.epoch(scope);
        if epoch > 0 && (epoch < self.newest_epoch(scope) || !self.keys.is_trusted(scope, epoch)) {
            return true;
        }
        if scope == self.scope() {
            self.devices.wants_rotation()
        } else {
            self.scopes.wants_rotation(scope)
        }
    }

    /// Whether this device holds a key of a scope.
    pub(crate) fn holds_key(&self, scope: Scope) -> bool {
        self.keys.epoch(scope) > 0
    }

    /// How many keys this device holds.
    pub(crate) fn keys_held(&self) -> usize {
        self.keys.len()
    }

    /// Whether this device holds this key.
    pub(crate) fn holds_epoch(&self, scope: Scope, epoch: u32) -> bool {
        self.keys.get(scope, epoch).is_some()
    }

    /// Whether a device holds a scope.
    pub(crate) fn is_holder(&self, scope: Scope, device: DeviceKey) -> bool {
        scope == self.scope() || self.scopes.holds(scope, device)
    }

    fn holders(&self, scope: Scope) -> Vec<DeviceKey> {
        let enrolled = self.devices.enrolled().map(|(device, _)| device);
        if scope == self.scope() {
            return enrolled.collect();
        }
        let me = self.device.key();
        enrolled.filter(|device| *device == me || self.scopes.holds(scope, *device)).collect()
    }

    /// Seals the boxes of a changeset, each under the newest key of its scope, and signs the entry that
    /// comes after `after`.
    pub(crate) fn seal_boxes(
        &self,
        after: Mark,
        contents: &[(Scope, &[u8])],
    ) -> Result<Signed, VaultError> {
        let sender = self.device.key();
        let outline = self.outline_after(after, Kind::Ring, &[]);
        let aad = outline.aad(sender);
        let place = Place { log: self.log, sender, aad: &aad };
        let mut boxes = Vec::with_capacity(contents.len());
        for (scope, content) in contents {
            let name = KeyName { scope: *scope, epoch: self.keys.epoch(*scope) };
            let key = self.keys.get(*scope, name.epoch).ok_or(VaultError::NoKey)?;
            let sealed = seal::seal(key, name, &place, content).map_err(|_| VaultError::TooLong)?;
            boxes.push(serde_bytes::ByteBuf::from(sealed));
        }
        let body = rmp_serde::to_vec(&boxes).map_err(|_| VaultError::TooLong)?;
        self.sign_outline(outline, &body)
    }

    /// Opens one box of a changeset.
    ///
    /// # Errors
    /// [`SealError::WrongKey`] if its key is not held.
    pub(crate) fn open_box(
        &self,
        author: DeviceKey,
        aad: &[u8],
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealError> {
        let name = seal::key_name(sealed)?;
        let place = Place { log: self.log, sender: author, aad };
        let mut opened = Err(SealError::WrongKey);
        for key in self.keys.candidates(name.scope, name.epoch) {
            opened = seal::open(key, &place, sealed);
            if opened.is_ok() {
                break;
            }
        }
        opened
    }

    /// Seals and signs as many as one batch holds.
    pub(super) fn batch(&self, rest: &mut &[Vec<u8>]) -> Result<Vec<Signed>, VaultError> {
        let name = KeyName { scope: self.scope(), epoch: self.epoch() };
        let key = self.keys.get(name.scope, name.epoch).ok_or(VaultError::NoKey)?;
        let sender = self.device.key();
        let mut batch: Vec<Signed> = Vec::new();
        let mut bytes = 0;
        let mut own = self.own;
        while let Some((payload, others)) = rest.split_first() {
            let outline = self.outline_after(own, Kind::Ring, &[]);
            let aad = outline.aad(sender);
            let place = Place { log: self.log, sender, aad: &aad };
            let body = seal::seal(key, name, &place, payload).map_err(|_| VaultError::TooLong)?;
            bytes += body.len();
            let full = batch.len() == BATCH_ENTRIES_MAX || bytes > BATCH_BYTES_MAX;
            if full && !batch.is_empty() {
                break;
            }
            let signed = self.sign_outline(outline, &body)?;
            own = Mark { count: own.count + 1, digest: signed.digest };
            batch.push(signed);
            *rest = others;
        }
        Ok(batch)
    }

    /// Appends entries: one as it is, several as a batch.
    pub(super) async fn append(
        &mut self,
        wire: &mut Wire,
        entries: Vec<Signed>,
    ) -> Result<Appended, VaultError> {
        if let Some(journal) = &self.journal {
            journal(entries.clone()).await?;
        }
        let count = entries.len() as u64;
        let newest = entries.last().ok_or(VaultError::TooLong)?.digest;
        let mut frames: Vec<_> = entries.into_iter().map(|signed| signed.entry).collect();
        let answer = if count == 1 {
            Self::request(wire, Append { entry: frames.remove(0) }).await?
        } else {
            let entries = Bounded::new(frames).ok_or(VaultError::TooLong)?;
            Self::request(wire, AppendBatch { entries }).await?
        };
        let RelayFrame::Appended(appended) = answer else { return Err(VaultError::Answer) };
        if appended.log != self.log {
            return Err(VaultError::Answer);
        }
        self.own = Mark { count: self.own.count + count, digest: newest };
        Ok(appended)
    }

    /// Writes an entry that must have seen the newest change of devices and keys; makes it anew, after
    /// reading, for as long as it has not.
    pub(super) async fn write_conditional(
        &mut self,
        wire: &mut Wire,
        kind: Kind,
        mut body: impl FnMut(&Self, &Outline) -> Result<Vec<u8>, VaultError>,
    ) -> Result<Appended, VaultError> {
        for _ in 0..REBASES_MAX {
            let outline = self.outline(kind, &[]);
            let bytes = body(self, &outline)?;
            let signed = self.sign_outline(outline, &bytes)?;
            match self.append(wire, vec![signed]).await {
                Err(error) if error.code() == Some(ErrorCode::Stale) => {
                    self.read_on(wire).await?;
                }
                result => return result,
            }
        }
        Err(VaultError::Contended)
    }

    /// Numbers and signs this device's next entry.
    pub(super) fn sign(
        &self,
        kind: Kind,
        recipients: &[DeviceKey],
        body: &[u8],
    ) -> Result<Signed, VaultError> {
        self.sign_outline(self.outline(kind, recipients), body)
    }

    fn sign_outline(&self, outline: Outline, body: &[u8]) -> Result<Signed, VaultError> {
        outline.sign(&self.device, body).map_err(|_| VaultError::TooLong)
    }

    fn outline(&self, kind: Kind, recipients: &[DeviceKey]) -> Outline {
        self.outline_after(self.own, kind, recipients)
    }

    fn outline_after(&self, own: Mark, kind: Kind, recipients: &[DeviceKey]) -> Outline {
        Outline {
            log: self.log,
            count: own.count + 1,
            prev: own.digest,
            kind,
            recipients: recipients.to_vec(),
            seen: self.head().unwrap_or(Head::NONE),
        }
    }
}
