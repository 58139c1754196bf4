//! A few devices that share a few groups and have each sent and received one entry.

use anyhow::{Context, Result, bail, ensure};
use sealwire_client::identity::Identity;
use sealwire_client::wire::Wire;
use sealwire_protocol::LogId;
use sealwire_protocol::ack::AckWire;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::frame::{Ack, AckState};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::crowd::Crowd;
use crate::group::{self, Author};
use crate::hear::Heard;
use crate::limits::ANSWER_DEADLINE;
use crate::reader::{Faults, Reader};

/// What a circle is made of.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) members: usize,
    pub(super) groups: usize,
    /// Bytes of the entry that goes from each member to the next; 0 for none.
    pub(super) body: usize,
}

struct Device {
    identity: Identity,
    wire: Wire,
    /// Its place in the first group, in which the entries go round.
    author: Option<Author>,
}

/// Makes a circle, and gives its connections once all is said.
pub(super) async fn gather(crowd: &Crowd, plan: Plan) -> Result<Vec<Wire>> {
    let mut devices = Vec::with_capacity(plan.members);
    let mut incarnation = 0;
    for _ in 0..plan.members {
        let identity = Identity::generate()?;
        let (wire, session) = crowd.enter(&identity).await?;
        incarnation = session.welcome.incarnation;
        devices.push(Device { identity, wire, author: None });
    }
    let mut logs = Vec::with_capacity(plan.groups);
    for _ in 0..plan.groups {
        logs.push(make_group(&mut devices).await?);
    }
    for device in &mut devices {
        for log in &logs {
            group::subscribe(&mut device.wire, *log, None).await?;
        }
    }
    if plan.body > 0 {
        let first = logs.first().copied().unwrap_or(LogId::ZERO);
        go_round(&mut devices, first, plan.body, incarnation).await?;
    }
    Ok(devices.into_iter().map(|device| device.wire).collect())
}

/// A group of all devices, founded by the first.
async fn make_group(devices: &mut [Device]) -> Result<LogId> {
    let Some((founder, joiners)) = devices.split_first_mut() else {
        bail!("a group has members");
    };
    let (author, seed, _) = group::found(&mut founder.wire, &founder.identity).await?;
    founder.author.get_or_insert(author);
    for joiner in joiners {
        let (wire, identity) = (&mut joiner.wire, &joiner.identity);
        let (author, _) = group::join(wire, identity, author.log, &seed).await?;
        joiner.author.get_or_insert(author);
    }
    Ok(author.log)
}

/// Each device sends an entry to the next one, which reads and acks it.
async fn go_round(devices: &mut [Device], log: LogId, body: usize, incarnation: u64) -> Result<()> {
    let mut readers: Vec<Reader> = devices.iter().map(|_| Reader::of_named(log)).collect();
    for sender in 0..devices.len() {
        let receiver = (sender + 1) % devices.len();
        let addressee = devices[receiver].identity.key();
        let body = group::random_body(body)?;
        let device = &mut devices[sender];
        let Some(author) = &mut device.author else {
            bail!("every device is in the first group");
        };
        let entry = author.sign(&device.identity, vec![addressee], &body)?;
        let appended = group::append(&mut device.wire, entry).await?;

        let (wire, reader) = (&mut devices[receiver].wire, &mut readers[receiver]);
        timeout(ANSWER_DEADLINE, read_to(wire, reader, log, appended.seq))
            .await
            .context("an entry was not delivered in time")??;
        ensure!(reader.faults() == Faults::default(), "an entry was not delivered as it was sent");
        let acked = AckWire { floor: appended.seq, ranges: Bounded::default() };
        wire.send(&Ack { log, state: AckState { incarnation, acked } }.into()).await?;
    }
    Ok(())
}

/// Reads the log until this entry has come.
async fn read_to(wire: &mut Wire, reader: &mut Reader, log: LogId, seq: u64) -> Result<()> {
    while reader.seq() < seq {
        match Heard::from(wire.receive().await?.frame?) {
            Heard::Entry(entry) if entry.log == log => {
                reader.entry(&entry);
            }
            Heard::Stubs(stubs) if stubs.log == log => reader.stubs(&stubs),
            Heard::Refused(error) => bail!("the relay refused: {}", error.failure()),
            Heard::Entry(_)
            | Heard::Stubs(_)
            | Heard::Appended(_)
            | Heard::Drained
            | Heard::Heartbeat
            | Heard::Other => {}
        }
    }
    Ok(())
}
