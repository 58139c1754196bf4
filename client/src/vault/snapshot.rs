//! Snapshots: serialised by the app, compressed, then sealed. In this order, because sealed bytes do
//! not compress.
//!
//! Who opens one does not believe what it says of its own size: a few bytes that decompress to
//! gigabytes end at [`STATE_BYTES_MAX`]. The additional data names the vault, the author and the head,
//! so that a snapshot cannot be shown as another one's, or as that of another head.

use std::io::{self, Read, Write};

use sealwire_protocol::bounded::BoundedBytes;
use sealwire_protocol::digest::{Sha256Stream, sha256};
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::frame::{
    GetSnapshotChunk, ListSnapshots, PutSnapshotChunk, SnapshotSummary, SubscribeFrom,
};
use sealwire_protocol::ids::Scope;
use sealwire_protocol::limits::{SNAPSHOT_BYTES_MAX, SNAPSHOT_CHUNK_BYTES_MAX};
use sealwire_protocol::{Control, DeviceKey, Digest, Head, Kind, LogId, RelayFrame};
use thiserror::Error;
use zeroize::Zeroizing;

use super::writing::REBASES_MAX;
use super::{Pulled, Vault, VaultError};
use crate::chain::Track;
use crate::entry::Outline;
use crate::seal::{self, KeyName, Place, SNAPSHOT};
use crate::wire::Wire;

/// Longest state that a snapshot may open to, in bytes, unless [`Vault::open_at_most`] says otherwise:
/// what a phone can hold beside its database.
pub const STATE_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Bytes of a chunk: a bad network brings it within a message's deadline.
const CHUNK_BYTES: usize = 256 * 1024;

/// How hard is compressed. A snapshot is made seldom, kept for long and read by every new device, so it
/// may cost its author something. Of a state of 100,000 rows (16,662 KiB, a part of it random ids and
/// boxes that do not compress) `sync_measured` made 6,156 KiB at level 9 in 0.3 s, 5,994 at 12 in 0.7 s,
/// 5,811 at 15 in 3.2 s and 5,543 at 19 in 14 s: behind 12 each percent costs a phone seconds.
const LEVEL: i32 = 12;

/// Most memory that decompressing takes for what was before, as a power of two: 32 MiB. Compressing at
/// [`LEVEL`] looks back less far.
const WINDOW_LOG_MAX: u32 = 25;

/// Why a snapshot was not made or not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SnapshotError {
    /// Longer than allowed, sealed or opened.
    #[error("the snapshot is too long")]
    TooLong,
    /// Its bytes are not those of its digest.
    #[error("the snapshot's bytes are not those of its digest")]
    Digest,
    /// It does not open, or what is inside is damaged.
    #[error("the snapshot does not open")]
    Damaged,
    /// It is of a head that is not on the chain that was read.
    #[error("the snapshot is of another history")]
    Head,
}

/// Compresses what is written to it.
pub(crate) struct Packer(zstd::stream::write::Encoder<'static, Vec<u8>>);

impl Packer {
    pub(crate) fn new() -> Result<Self, SnapshotError> {
        zstd::stream::write::Encoder::new(Vec::new(), LEVEL)
            .map(Self)
            .map_err(|_| SnapshotError::TooLong)
    }

    /// The compressed bytes.
    pub(crate) fn finish(self) -> Result<Vec<u8>, SnapshotError> {
        self.0.finish().map_err(|_| SnapshotError::TooLong)
    }
}

impl Write for Packer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Decompresses as it is read, up to so many bytes, whatever the frame says of its own size.
pub(crate) struct Unpacked<'a> {
    decoder: zstd::stream::read::Decoder<'a, io::BufReader<&'a [u8]>>,
    left: u64,
}

impl<'a> Unpacked<'a> {
    pub(crate) fn new(packed: &'a [u8], bytes_max: u64) -> Result<Self, SnapshotError> {
        let mut decoder =
            zstd::stream::read::Decoder::new(packed).map_err(|_| SnapshotError::Damaged)?;
        decoder.window_log_max(WINDOW_LOG_MAX).map_err(|_| SnapshotError::Damaged)?;
        Ok(Self { decoder, left: bytes_max })
    }
}

impl Read for Unpacked<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        // One more than is left shows that there is more.
        let wanted = out.len().min(usize::try_from(self.left).unwrap_or(usize::MAX).max(1));
        let read = self.decoder.read(&mut out[..wanted])?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        Ok(read)
    }
}

/// What an error of [`Unpacked`] means.
pub(crate) fn unpacking(error: &io::Error) -> SnapshotError {
    if error.kind() == io::ErrorKind::FileTooLarge {
        SnapshotError::TooLong
    } else {
        SnapshotError::Damaged
    }
}

/// Decompresses, up to so many bytes.
fn unpack(packed: &[u8], bytes_max: u64) -> Result<Vec<u8>, SnapshotError> {
    let mut state = Vec::new();
    Unpacked::new(packed, bytes_max)?.read_to_end(&mut state).map_err(|it| unpacking(&it))?;
    Ok(state)
}

fn aad(log: LogId, author: DeviceKey, head: &Head) -> Vec<u8> {
    let Head { incarnation, seq, chain } = head;
    [&log.0[..], &author.0, &incarnation.to_be_bytes(), &seq.to_be_bytes(), &chain.0].concat()
}

impl Vault {
    /// Seals a compressed state under the newest key of a scope.
    pub(crate) fn seal_state(
        &self,
        scope: Scope,
        head: &Head,
        packed: &[u8],
    ) -> Result<Vec<u8>, VaultError> {
        let name = KeyName { scope, epoch: self.keys.epoch(scope) };
        let key = self.keys.get(scope, name.epoch).ok_or(VaultError::NoKey)?;
        let sender = self.device.key();
        let aad = aad(self.log, sender, head);
        let place = Place { log: self.log, sender, aad: &aad };
        let sealed = seal::seal_for(SNAPSHOT, key, name, &place, packed);
        Ok(sealed.map_err(|_| SnapshotError::TooLong)?)
    }

    /// Opens a state of `author` at `head`; it is still compressed.
    pub(crate) fn open_state(
        &self,
        author: DeviceKey,
        head: &Head,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let name = seal::key_name(sealed).map_err(|_| SnapshotError::Damaged)?;
        if self.keys.get(name.scope, name.epoch).is_none() {
            return Err(VaultError::NoKey);
        }
        if self.chains.differs(&self.track, u64::MAX, head) {
            return Err(SnapshotError::Head.into());
        }
        let aad = aad(self.log, author, head);
        let place = Place { log: self.log, sender: author, aad: &aad };
        let mut candidates = self.keys.candidates(name.scope, name.epoch);
        let packed = candidates.find_map(|key| seal::open_for(SNAPSHOT, key, &place, sealed).ok());
        Ok(packed.ok_or(SnapshotError::Damaged)?)
    }

    /// Longest state that a snapshot may open to, in bytes, from now on.
    pub fn open_at_most(&mut self, bytes_max: u64) {
        self.state_bytes_max = bytes_max;
    }

    /// Decompresses a state as it is read.
    pub(crate) fn unpacked<'a>(&self, packed: &'a [u8]) -> Result<Unpacked<'a>, SnapshotError> {
        Unpacked::new(packed, self.state_bytes_max)
    }

    /// Makes a snapshot of `state`, which must be what this device holds at its head, uploads it, and
    /// makes it real. It is sealed anew if a device is removed meanwhile: none that was removed before it
    /// became real has a key that opens it.
    ///
    /// # Errors
    /// A [`VaultError`]. An upload that was broken off goes on where it was when this is called with
    /// the same sealed bytes; a new call seals anew.
    pub async fn snapshot(
        &mut self,
        wire: &mut Wire,
        state: &[u8],
    ) -> Result<SnapshotSummary, VaultError> {
        self.check_whole()?;
        let head = self.head().ok_or(VaultError::NoKey)?;
        let mut packer = Packer::new()?;
        packer.write_all(state).map_err(|_| SnapshotError::TooLong)?;
        let packed = packer.finish()?;
        for _ in 0..REBASES_MAX {
            if self.scope_wants_rotation(self.scope()) {
                self.rotate(wire).await?;
            }
            let sealed = self.seal_state(self.scope(), &head, &packed)?;
            match self.put_snapshot(wire, &sealed, head, &mut |_| {}).await {
                Err(VaultError::Outdated) => {}
                made => return made,
            }
        }
        Err(VaultError::Contended)
    }

    /// Uploads a sealed state at `head` and makes it real. `sent` is told of the bytes.
    ///
    /// # Errors
    /// [`VaultError::Outdated`] if it is sealed under a key that a device has which was removed since.
    pub(crate) async fn put_snapshot(
        &mut self,
        wire: &mut Wire,
        sealed: &[u8],
        head: Head,
        sent: &mut (dyn FnMut(u64) + Send),
    ) -> Result<SnapshotSummary, VaultError> {
        self.check_whole()?;
        let size = sealed.len() as u64;
        if size > SNAPSHOT_BYTES_MAX {
            return Err(SnapshotError::TooLong.into());
        }
        let digest = sha256(sealed);
        self.upload_with(wire, digest, sealed, sent).await?;
        let chunks = u32::try_from(sealed.len().div_ceil(CHUNK_BYTES)).unwrap_or(u32::MAX);
        let name = seal::key_name(sealed).map_err(|_| SnapshotError::Damaged)?;
        let control = Control::Snapshot { head, digest, size, chunks }.encode();
        // The relay takes it only if everything that removes a device was read before; what is private in
        // it is sealed under a key that was the newest when this one was.
        let real = |vault: &Self, _: &Outline| {
            let newest = vault.keys.epoch(name.scope) == name.epoch;
            let outdated = !newest || vault.scope_wants_rotation(name.scope);
            if outdated { Err(VaultError::Outdated) } else { Ok(control.clone()) }
        };
        self.write_conditional(wire, Kind::Control, real).await?;
        Ok(SnapshotSummary { head, digest, size, confirmed: false })
    }

    /// Makes an upload that is complete a snapshot of `head`.
    ///
    /// # Errors
    /// A [`VaultError`].
    pub async fn make_real(
        &mut self,
        wire: &mut Wire,
        digest: Digest,
        size: u64,
        chunks: u32,
        head: Head,
    ) -> Result<(), VaultError> {
        let control = Control::Snapshot { head, digest, size, chunks };
        self.write_conditional(wire, Kind::Control, |_, _| Ok(control.encode())).await.map(|_| ())
    }

    /// Uploads sealed bytes, from where an upload of them was broken off.
    ///
    /// # Errors
    /// A [`VaultError`].
    pub async fn upload(
        &self,
        wire: &mut Wire,
        digest: Digest,
        sealed: &[u8],
    ) -> Result<(), VaultError> {
        self.upload_with(wire, digest, sealed, &mut |_| {}).await
    }

    async fn upload_with(
        &self,
        wire: &mut Wire,
        digest: Digest,
        sealed: &[u8],
        sent: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), VaultError> {
        let mut offset = 0;
        while offset < sealed.len() {
            let end = sealed.len().min(offset + CHUNK_BYTES);
            let frame = PutSnapshotChunk {
                log: self.log,
                digest,
                size: sealed.len() as u64,
                offset: offset as u64,
                bytes: BoundedBytes::new(sealed[offset..end].to_vec())
                    .ok_or(SnapshotError::TooLong)?,
            };
            offset = match Self::request(wire, frame).await {
                Ok(RelayFrame::Done(_)) => end,
                Ok(_) => return Err(VaultError::Answer),
                Err(error) => match error.refusal() {
                    Some(failure) if failure.code == ErrorCode::OutOfOrder => {
                        let next = failure.expected.and_then(|next| usize::try_from(next).ok());
                        next.filter(|next| *next > offset).ok_or(VaultError::Answer)?
                    }
                    _ => return Err(error),
                },
            };
            sent(offset as u64);
        }
        Ok(())
    }

    /// The snapshots that can be downloaded, newest first.
    ///
    /// # Errors
    /// A [`VaultError`].
    pub async fn snapshots(&self, wire: &mut Wire) -> Result<Vec<SnapshotSummary>, VaultError> {
        let answer = Self::request(wire, ListSnapshots { log: self.log }).await?;
        let RelayFrame::Snapshots(snapshots) = answer else { return Err(VaultError::Answer) };
        Ok(snapshots.snapshots.into_vec())
    }

    /// The sealed bytes of a snapshot.
    ///
    /// # Errors
    /// A [`VaultError`]; [`SnapshotError::Digest`] if the relay gives others.
    pub async fn download(
        &self,
        wire: &mut Wire,
        snapshot: &SnapshotSummary,
    ) -> Result<Vec<u8>, VaultError> {
        self.download_with(wire, snapshot, &mut |_| {}).await
    }

    /// The sealed bytes of a snapshot. `got` is told of them.
    pub(crate) async fn download_with(
        &self,
        wire: &mut Wire,
        snapshot: &SnapshotSummary,
        got: &mut (dyn FnMut(u64) + Send),
    ) -> Result<Vec<u8>, VaultError> {
        if snapshot.size > SNAPSHOT_BYTES_MAX {
            return Err(SnapshotError::TooLong.into());
        }
        let (digest, mut hash) = (snapshot.digest, Sha256Stream::default());
        let mut sealed = Vec::new();
        while (sealed.len() as u64) < snapshot.size {
            let offset = sealed.len() as u64;
            let length = SNAPSHOT_CHUNK_BYTES_MAX as u32;
            let frame = GetSnapshotChunk { log: self.log, digest, offset, length };
            let RelayFrame::SnapshotChunk(chunk) = Self::request(wire, frame).await? else {
                return Err(VaultError::Answer);
            };
            if chunk.offset != offset || chunk.bytes.is_empty() {
                return Err(VaultError::Answer);
            }
            hash.update(&chunk.bytes);
            sealed.extend_from_slice(&chunk.bytes);
            got(sealed.len() as u64);
        }
        if hash.finish() != digest { Err(SnapshotError::Digest.into()) } else { Ok(sealed) }
    }

    /// Begins a device that has nothing with the newest confirmed snapshot, or the newest one if none
    /// is: its state, and the changesets after its head. Without a snapshot the state is none, and
    /// everything is read from the first entry.
    ///
    /// # Errors
    /// A [`VaultError`]; begin anew with a new [`Vault`] then.
    pub async fn bootstrap(
        &mut self,
        wire: &mut Wire,
    ) -> Result<(Option<Vec<u8>>, Pulled), VaultError> {
        let snapshots = self.snapshots(wire).await?;
        let newest = snapshots.iter().max_by_key(|it| (it.confirmed, it.head.seq)).copied();
        let Some(snapshot) = newest else {
            return Ok((None, self.pull(wire).await?));
        };
        let sealed = self.download(wire, &snapshot).await?;
        self.track = Track::new(self.log);
        let frame = SubscribeFrom { log: self.log, snapshot: snapshot.digest };
        self.read(wire, frame.into()).await?;
        let mut pulled = self.take_read();
        pulled.floor = None;
        // Entries from below the head that are kept have been read: the keys are there, and who made
        // it is known by a signed entry, which lies above its head.
        let author = self.devices.author(snapshot.digest).ok_or(SnapshotError::Damaged)?;
        let packed = self.open_state(author, &snapshot.head, &sealed)?;
        Ok((Some(unpack(&packed, self.state_bytes_max)?), pulled))
    }

    /// Downloads and opens a snapshot of another device, to compare it with what this one holds.
    ///
    /// # Errors
    /// A [`VaultError`].
    pub async fn open_snapshot(
        &self,
        wire: &mut Wire,
        snapshot: &SnapshotSummary,
    ) -> Result<Vec<u8>, VaultError> {
        let author = self.devices.author(snapshot.digest).ok_or(SnapshotError::Damaged)?;
        let sealed = self.download(wire, snapshot).await?;
        let packed = self.open_state(author, &snapshot.head, &sealed)?;
        Ok(unpack(&packed, self.state_bytes_max)?)
    }

    /// Says that this device has opened a snapshot of another one and found what it has itself. From
    /// then on the entries that it covers may go.
    ///
    /// # Errors
    /// A [`VaultError`].
    pub async fn confirm(&mut self, wire: &mut Wire, digest: Digest) -> Result<(), VaultError> {
        self.check_whole()?;
        let opened = Control::SnapshotOpened { digest };
        let signed = self.sign(Kind::Control, &[], &opened.encode())?;
        self.append(wire, vec![signed]).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_snapshot_that_opens_to_a_huge_one_is_given_up_in_time() {
        let zeros = vec![0; 64 * 1024 * 1024];
        let bomb = zstd::bulk::compress(&zeros, LEVEL).expect("compressed");
        assert!(bomb.len() < 64 * 1024, "{} bytes", bomb.len());
        assert_eq!(unpack(&bomb, 1024 * 1024), Err(SnapshotError::TooLong));
        assert_eq!(unpack(&bomb, zeros.len() as u64), Ok(zeros));
    }

    #[test]
    fn what_is_not_compressed_state_is_damaged() {
        let whole = zstd::bulk::compress(b"a state", LEVEL).expect("compressed");
        assert_eq!(unpack(&whole, 100), Ok(b"a state".to_vec()));
        assert_eq!(unpack(&whole[..whole.len() - 1], 100), Err(SnapshotError::Damaged));
        assert_eq!(unpack(b"something else", 100), Err(SnapshotError::Damaged));
    }
}
