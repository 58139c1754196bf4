//! What a device does in a group, as plainly as it can be done: found, join, follow, write.
//!
//! Bodies are random bytes, as sealed ones look like from outside; nobody here opens them.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use sealwire_client::entry::{Outline, Signed};
use sealwire_client::identity::{Identity, JoinSeed};
use sealwire_client::wire::{Wire, WireError};
use sealwire_protocol::digest::{entry_digest, native_log_id, sha256};
use sealwire_protocol::frame::{Append, Appended, Recipients, Subscribe};
use sealwire_protocol::ids::Signature;
use sealwire_protocol::{
    Audience, Body, ClientFrame, Control, DeviceKey, Digest, EntryIn, Head, Header, Kind, LogId,
    LogType, RelayFrame,
};
use tokio::time::{Duration, sleep};

use crate::hear::Heard;
use crate::limits::ATTEMPTS_MAX;

/// A device's place among the authors of a log: which of its entries is the next.
#[derive(Clone, Copy)]
pub(crate) struct Author {
    pub(crate) log: LogId,
    pub(crate) device: DeviceKey,
    /// Count of its newest entry.
    pub(crate) count: u64,
    /// Digest of that entry.
    pub(crate) prev: Digest,
}

impl Author {
    /// The founder of a log, after its first entry.
    pub(crate) fn founder(device: &Identity, log: LogId, first: Digest) -> Self {
        Self { log, device: device.key(), count: 1, prev: first }
    }

    /// The next entry, signed.
    pub(crate) fn sign(
        &mut self,
        device: &Identity,
        recipients: Vec<DeviceKey>,
        body: &[u8],
    ) -> Result<EntryIn> {
        let outline = self.outline(Kind::Ring, recipients);
        Ok(self.take(outline.sign(device, body)?))
    }

    /// The next entry, to all, with bytes in place of the signature.
    ///
    /// The relay does not check signatures of a group's content: the session vouches for them, and
    /// receivers check. To sign at full load would measure this tester instead.
    pub(crate) fn write(&mut self, body: Bytes) -> EntryIn {
        let header = Header {
            log: self.log,
            sender: self.device,
            count: self.count + 1,
            prev: self.prev,
            kind: Kind::Ring,
            audience: Audience::All,
            seen: Head::NONE,
            body: sha256(&body),
        }
        .encode();
        let entry = EntryIn {
            header,
            body: Body(body),
            signature: Some(Signature([0x5a; 64])),
            recipients: Recipients::default(),
            totals_kind: None,
        };
        self.take(Signed { entry, digest: entry_digest(&header) })
    }

    /// The next entry, which says something about members, signed.
    pub(crate) fn control(&mut self, device: &Identity, control: &Control) -> Result<EntryIn> {
        let outline = self.outline(Kind::Control, Vec::new());
        Ok(self.take(outline.sign(device, &control.encode())?))
    }

    fn outline(&self, kind: Kind, recipients: Vec<DeviceKey>) -> Outline {
        Outline {
            log: self.log,
            count: self.count + 1,
            prev: self.prev,
            kind,
            recipients,
            seen: Head::NONE,
        }
    }

    fn take(&mut self, signed: Signed) -> EntryIn {
        self.count += 1;
        self.prev = signed.digest;
        signed.entry
    }
}

/// Founds a group, and gives the key by which others join it, and its head.
pub(crate) async fn found(wire: &mut Wire, device: &Identity) -> Result<(Author, JoinSeed, Head)> {
    let seed = JoinSeed::generate()?;
    let (author, head) = found_log(wire, device, LogType::Group, Some(seed.public())).await?;
    Ok((author, seed, head))
}

/// Founds a vault. Gives its head, too.
pub(crate) async fn found_vault(wire: &mut Wire, device: &Identity) -> Result<(Author, Head)> {
    found_log(wire, device, LogType::Vault, None).await
}

async fn found_log(
    wire: &mut Wire,
    device: &Identity,
    log_type: LogType,
    join_key: Option<DeviceKey>,
) -> Result<(Author, Head)> {
    let body = Control::Found { log_type, random: random()?, join_key }.encode();
    let first = Outline::first().sign(device, &body)?;
    let log = native_log_id(&first.entry.header);
    let author = Author::founder(device, log, first.digest);
    let appended = append(wire, first.entry).await.context("founding a log")?;
    Ok((author, appended.head))
}

/// Has another device enrolled in the vault of an author. Gives the vault's head.
pub(crate) async fn enrol(
    wire: &mut Wire,
    device: &Identity,
    author: &mut Author,
    other: &Identity,
) -> Result<Head> {
    let signature = other.consent(author.log, device.key());
    let entry = author.control(device, &Control::Enrol { device: other.key(), signature })?;
    Ok(append(wire, entry).await.context("enrolling a device")?.head)
}

/// Joins a group. Gives its head, too.
pub(crate) async fn join(
    wire: &mut Wire,
    device: &Identity,
    log: LogId,
    seed: &JoinSeed,
) -> Result<(Author, Head)> {
    let mut author = Author { log, device: device.key(), count: 0, prev: Digest::ZERO };
    let join = Control::Join { signature: seed.admit(log, device.key()) };
    let entry = author.control(device, &join)?;
    let appended = append(wire, entry).await.context("joining a group")?;
    Ok((author, appended.head))
}

/// Follows a log from this head on, or from its first entry.
pub(crate) async fn subscribe(wire: &mut Wire, log: LogId, cursor: Option<Head>) -> Result<()> {
    let frame = Subscribe { log, cursor, acked: None }.into();
    let answer = request(wire, &frame).await.context("subscribing")?;
    ensure!(
        matches!(answer, RelayFrame::Subscribed(_)),
        "a subscription was answered by {}",
        answer.name()
    );
    Ok(())
}

/// Appends one entry and waits until it is durable.
pub(crate) async fn append(wire: &mut Wire, entry: EntryIn) -> Result<Appended> {
    appended(request(wire, &Append { entry }.into()).await?)
}

/// Reads the answer to an append.
pub(crate) fn appended(answer: RelayFrame) -> Result<Appended> {
    let name = answer.name();
    let Heard::Appended(appended) = Heard::from(answer) else {
        bail!("an append was answered by {name}");
    };
    Ok(appended)
}

/// Asks, and asks again as often as the relay says that waiting helps.
pub(crate) async fn request(wire: &mut Wire, frame: &ClientFrame) -> Result<RelayFrame> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match wire.request(frame).await {
            Err(WireError::Refused(failure)) if attempts < ATTEMPTS_MAX => {
                let Some(wait) = failure.retry_after_ms else {
                    return Err(WireError::Refused(failure).into());
                };
                sleep(Duration::from_millis(wait)).await;
            }
            answer => return Ok(answer?),
        }
    }
}

/// Random bytes: what sealed content looks like.
pub(crate) fn random_body(length: usize) -> Result<Vec<u8>> {
    let mut body = vec![0; length];
    fill(&mut body)?;
    Ok(body)
}

pub(crate) fn random() -> Result<[u8; 32]> {
    let mut bytes = [0; 32];
    fill(&mut bytes)?;
    Ok(bytes)
}

fn fill(bytes: &mut [u8]) -> Result<()> {
    getrandom::fill(bytes).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))
}

#[cfg(test)]
mod tests {
    use sealwire_client::entry::judge;
    use sealwire_protocol::frame::Entry;

    use super::*;

    #[test]
    fn what_an_author_writes_is_one_history() {
        let device = Identity::from_seed(&[1; 32]);
        let log = LogId([9; 16]);
        let mut author = Author { log, device: device.key(), count: 0, prev: Digest::ZERO };
        let first = author.sign(&device, Vec::new(), b"first").expect("an entry");
        let second = author.write(Bytes::from_static(b"second"));
        let third = author.sign(&device, vec![DeviceKey([5; 32])], b"third").expect("an entry");
        let mut prev = Digest::ZERO;
        for (count, entry) in (1..).zip([&first, &second, &third]) {
            let header = entry.header.decode().expect("a header");
            assert_eq!((header.count, header.prev), (count, prev));
            prev = entry_digest(&entry.header);
        }
        let received = Entry {
            log,
            seq: 9,
            at: 0,
            header: third.header,
            body: third.body,
            signature: third.signature,
            recipients: third.recipients,
            totals_kind: None,
        };
        assert!(judge(log, &received).is_ok());
    }
}
