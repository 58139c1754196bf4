//! Entries that wait for devices that are away, and how long these take to read all of them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::future::try_join_all;
use sealwire_client::entry::judge;
use sealwire_client::identity::Identity;
use sealwire_client::wire::Wire;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::codec::decode_relay;
use sealwire_protocol::frame::{AppendBatch, Subscribe};
use sealwire_protocol::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX};
use sealwire_protocol::{Head, LogId};
use tokio::time::timeout;

use super::Readings;
use crate::crowd::Crowd;
use crate::group::{self, Author, random_body};
use crate::hear::Heard;
use crate::limits::DRAIN_DEADLINE;
use crate::progress;
use crate::reader::{Faults, Reader};

/// A log in which entries wait for devices that are away.
pub(crate) struct Waiting {
    devices: Vec<Identity>,
    log: LogId,
    head: Head,
}

/// One reading.
pub(super) struct Reading {
    pub(super) first: Duration,
    pub(super) last: Duration,
    pub(super) bytes: u64,
    pub(super) faults: Faults,
}

impl Waiting {
    /// Has an author write so many entries, signed, and leave.
    pub(crate) async fn fill(
        mut wire: Wire,
        device: &Identity,
        mut author: Author,
        devices: Vec<Identity>,
        entries: usize,
        body: usize,
    ) -> Result<Self> {
        let bar = progress::bar(entries as u64, "entries");
        let at_once = (BATCH_BYTES_MAX / body.max(1)).clamp(1, BATCH_ENTRIES_MAX);
        let mut head = Head::NONE;
        let mut left = entries;
        while left > 0 {
            let count = left.min(at_once);
            let entries: Result<Vec<_>> =
                (0..count).map(|_| author.sign(device, Vec::new(), &random_body(body)?)).collect();
            let entries = Bounded::new(entries?).context("a batch has a bound")?;
            let answer = group::request(&mut wire, &AppendBatch { entries }.into()).await?;
            head = group::appended(answer)?.head;
            left -= count;
            bar.inc(count as u64);
        }
        wire.close().await;
        bar.finish_and_clear();
        Ok(Self { devices, log: author.log, head })
    }

    /// All readings: without signatures, and with them if that is asked for.
    pub(crate) async fn read_all(
        &self,
        runs: usize,
        signatures: bool,
        crowd: &Crowd,
    ) -> Result<Vec<Readings>> {
        let mut all = vec![self.read_again_and_again(runs, crowd, false).await?];
        if signatures {
            all.push(self.read_again_and_again(runs, crowd, true).await?);
        }
        Ok(all)
    }

    async fn read_again_and_again(
        &self,
        runs: usize,
        crowd: &Crowd,
        signatures: bool,
    ) -> Result<Readings> {
        let bar = progress::bar(runs as u64, "readings");
        let mut readings = Readings::new(signatures);
        for _ in 0..runs {
            let mut wires = Vec::with_capacity(self.devices.len());
            for device in &self.devices {
                wires.push(crowd.enter(device).await?.0);
            }
            let all = wires.into_iter().map(|wire| tokio::spawn(self.read(wire, signatures)));
            for reading in try_join_all(all).await? {
                readings.add(&reading?);
            }
            bar.inc(1);
        }
        bar.finish_and_clear();
        Ok(readings)
    }

    /// Reads everything once.
    fn read(&self, wire: Wire, signatures: bool) -> impl Future<Output = Result<Reading>> + use<> {
        let reading = read(wire, self.log, self.head, signatures);
        async {
            timeout(DRAIN_DEADLINE, reading).await.context("the entries did not come in time")?
        }
    }
}

async fn read(mut wire: Wire, log: LogId, head: Head, signatures: bool) -> Result<Reading> {
    let mut reader = Reader::new(log);
    let (mut first, mut bytes) = (None, 0);
    let begin = Instant::now();
    wire.queue(&Subscribe { log, cursor: None, acked: None }.into());
    while reader.seq() < head.seq {
        let frame = wire.receive_bytes().await?;
        match Heard::from(decode_relay(&frame)?.frame?) {
            Heard::Entry(entry) => {
                first.get_or_insert_with(|| begin.elapsed());
                bytes += frame.len() as u64;
                if signatures {
                    judge(log, &entry)?;
                }
                reader.entry(&entry);
            }
            Heard::Stubs(stubs) => reader.stubs(&stubs),
            Heard::Drained => break,
            Heard::Refused(error) => bail!("the relay refused: {}", error.failure()),
            Heard::Appended(_) | Heard::Heartbeat | Heard::Other => {}
        }
    }
    let last = begin.elapsed();
    wire.close().await;
    Ok(Reading { first: first.unwrap_or(last), last, bytes, faults: reader.conclude(head) })
}
