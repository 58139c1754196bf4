//! How long a device that was away takes to have everything: from its `Subscribe` to the last byte.
//!
//! The chain is checked on the way, entry for entry; signatures only if asked for, since they cost
//! the device as much on every relay. The same entries are read several times, each time by a new
//! connection, and never acked.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{ArgAction, Args};
use sealwire_client::entry::judge;
use sealwire_client::identity::Identity;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::codec::decode_relay;
use sealwire_protocol::frame::{AppendBatch, Subscribe};
use sealwire_protocol::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, BODY_BYTES_MAX};
use sealwire_protocol::{Head, LogId};
use serde::Serialize;
use tokio::time::timeout;

use crate::crowd::Crowd;
use crate::frame::Measurement;
use crate::frame::relay::Relay;
use crate::frame::sampler::Sampler;
use crate::frame::timeline::Timeline;
use crate::group::{self, random_body};
use crate::hear::Heard;
use crate::limits::DRAIN_DEADLINE;
use crate::progress;
use crate::reader::{Faults, Reader};
use crate::report::{Figures, Line, Measure, duration, line, mebibytes, median, rate, whole};

/// Bytes that a relay keeps for a member that is away, as it counts them: each body and a little more.
const UNDELIVERED_BYTES_MAX: usize = 62 * 1024 * 1024;

/// What a relay adds to each body when it counts them.
const OVERHEAD_BYTES: usize = 256;

/// Most readings of one run.
const RUNS_MAX: usize = 1000;

/// What `catch-up` is asked to do.
#[derive(Args, Serialize)]
pub(crate) struct Arguments {
    /// Entries that are waiting.
    #[arg(long, default_value_t = 10_000)]
    entries: usize,
    /// Length of each body, in bytes.
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// How often they are read.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Also check every signature.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false")]
    signatures: bool,
}

/// What `catch-up` has seen.
#[derive(Serialize)]
pub(crate) struct Measured {
    entries: usize,
    /// Bytes of all frames with entries, of one reading.
    bytes: u64,
    /// From `Subscribe` to the first entry, in milliseconds, of each reading.
    first_ms: Vec<f64>,
    /// From `Subscribe` to the last byte of the last entry.
    last_ms: Vec<f64>,
    /// The median of these.
    median_ms: f64,
    faults: Faults,
    #[serde(skip)]
    timeline: Timeline,
}

/// One reading.
struct Reading {
    first: Duration,
    last: Duration,
    bytes: u64,
    faults: Faults,
}

impl Measurement for Arguments {
    const NAME: &'static str = "catch-up";

    type Measured = Measured;

    fn check(&self) -> Result<()> {
        ensure!(self.body <= BODY_BYTES_MAX, "a body has at most {BODY_BYTES_MAX} bytes");
        ensure!((1..=RUNS_MAX).contains(&self.runs), "1 to {RUNS_MAX} runs");
        ensure!(
            self.entries > 0
                && self.entries * (self.body + OVERHEAD_BYTES) <= UNDELIVERED_BYTES_MAX,
            "a relay keeps no more than about {UNDELIVERED_BYTES_MAX} bytes for a member that is \
             away"
        );
        Ok(())
    }

    async fn measure(&self, relay: &mut Relay) -> Result<Measured> {
        read_again_and_again(self, relay).await
    }
}

async fn read_again_and_again(arguments: &Arguments, relay: &Relay) -> Result<Measured> {
    let crowd = Crowd::new(&relay.url, 2)?;
    let reader = Identity::generate()?;
    let (log, head) = fill(arguments, &crowd, &reader).await?;
    let bar = progress::bar(arguments.runs as u64, "readings");
    let sampler = Sampler::begin(relay, None, DRAIN_DEADLINE);
    let mut readings = Vec::with_capacity(arguments.runs);
    for _ in 0..arguments.runs {
        let reading = read(&crowd, &reader, log, head, arguments.signatures);
        let reading = timeout(DRAIN_DEADLINE, reading)
            .await
            .context("the entries did not come in time")??;
        readings.push(reading);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(measured(arguments, &readings, sampler.end()?))
}

/// A group in which these many entries wait for the reader.
async fn fill(arguments: &Arguments, crowd: &Crowd, reader: &Identity) -> Result<(LogId, Head)> {
    let founder = Identity::generate()?;
    let (mut wire, _) = crowd.enter(&founder).await?;
    let (mut author, seed) = group::found(&mut wire, &founder).await?;
    let log = author.log;
    let (mut reader_wire, _) = crowd.enter(reader).await?;
    group::join(&mut reader_wire, reader, log, &seed).await?;
    reader_wire.close().await;

    let bar = progress::bar(arguments.entries as u64, "entries");
    let at_once = (BATCH_BYTES_MAX / arguments.body.max(1)).clamp(1, BATCH_ENTRIES_MAX);
    let mut head = Head::NONE;
    let mut left = arguments.entries;
    while left > 0 {
        let count = left.min(at_once);
        let entries: Result<Vec<_>> = (0..count)
            .map(|_| author.sign(&founder, Vec::new(), &random_body(arguments.body)?))
            .collect();
        let entries = Bounded::new(entries?).context("a batch has a bound")?;
        let answer = group::request(&mut wire, &AppendBatch { entries }.into()).await?;
        head = group::appended(answer)?.head;
        left -= count;
        bar.inc(count as u64);
    }
    wire.close().await;
    bar.finish_and_clear();
    Ok((log, head))
}

async fn read(
    crowd: &Crowd,
    device: &Identity,
    log: LogId,
    head: Head,
    signatures: bool,
) -> Result<Reading> {
    let (mut wire, _) = crowd.enter(device).await?;
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

fn measured(arguments: &Arguments, readings: &[Reading], timeline: Timeline) -> Measured {
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let last_ms: Vec<f64> = readings.iter().map(|reading| milliseconds(reading.last)).collect();
    let mut faults = Faults::default();
    for reading in readings {
        faults.add(reading.faults);
    }
    Measured {
        entries: arguments.entries,
        bytes: readings.first().map_or(0, |reading| reading.bytes),
        first_ms: readings.iter().map(|reading| milliseconds(reading.first)).collect(),
        median_ms: median(&last_ms),
        last_ms,
        faults,
        timeline,
    }
}

impl Figures for Measured {
    fn lines(&self) -> Vec<Line> {
        let all = |times: &[f64]| {
            times.iter().map(|ms| duration(ms * 1000.0)).collect::<Vec<_>>().join(", ")
        };
        let per_second = self.entries as f64 / (self.median_ms / 1000.0);
        vec![
            line("entries", format!("{}, {}", whole(self.entries as u64), mebibytes(self.bytes))),
            line("to the first", all(&self.first_ms)),
            line("to the last", all(&self.last_ms)),
            line("median", format!("{}, {}", duration(self.median_ms * 1000.0), rate(per_second))),
            line("checked", self.faults.to_string()),
        ]
    }

    fn measures(&self) -> Vec<Measure> {
        let mut measure = Measure::lower("to the last byte", "µs", 0.0);
        measure.values = self.last_ms.iter().map(|ms| ms * 1000.0).collect();
        vec![measure]
    }

    fn broken_promise(&self) -> Option<String> {
        self.faults.broken_promise()
    }

    fn take_timeline(&mut self) -> Timeline {
        std::mem::take(&mut self.timeline)
    }
}
