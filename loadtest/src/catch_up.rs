//! How long a device that was away takes to have everything: from its `Subscribe` to the last byte.
//!
//! The chain is checked on the way, entry for entry; signatures only if asked for, since they cost
//! the device as much on every relay. The same entries are read several times, each time by a new
//! connection, and never acked. Several devices read all of them at the same time, and other groups
//! may talk meanwhile.

mod measured;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{ArgAction, Args};
use futures_util::future::try_join_all;
use sealwire_client::entry::judge;
use sealwire_client::identity::Identity;
use sealwire_client::wire::Wire;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::codec::decode_relay;
use sealwire_protocol::frame::{AppendBatch, Subscribe};
use sealwire_protocol::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, BODY_BYTES_MAX};
use sealwire_protocol::{Head, LogId};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};
use tokio::try_join;

use self::measured::{Measured, Readings};
use crate::append::{self, Rate, TALK_IN_FLIGHT, TALK_MEMBERS};
use crate::ceiling::Shape;
use crate::crowd::Crowd;
use crate::frame::Measurement;
use crate::frame::relay::Relay;
use crate::frame::sampler::Sampler;
use crate::group::{self, random_body};
use crate::hear::Heard;
use crate::limits::{DRAIN_DEADLINE, MEMBERS_MAX, SECONDS_MAX};
use crate::progress;
use crate::reader::{Faults, Reader};

/// Bytes that a relay keeps for a member that is away, as it counts them: each body and a little more.
const UNDELIVERED_BYTES_MAX: usize = 62 * 1024 * 1024;

/// What a relay adds to each body when it counts them.
const OVERHEAD_BYTES: usize = 256;

/// Most readings of one run.
const RUNS_MAX: usize = 1000;

/// Seconds of other groups' talk before the first reading.
const LIVE_WARM_UP: u64 = 2;

/// What `catch-up` is asked to do.
#[derive(Args, Serialize)]
pub(crate) struct Arguments {
    /// Entries that are waiting.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) entries: usize,
    /// Length of each body, in bytes.
    #[arg(long, default_value_t = 1024)]
    pub(crate) body: usize,
    /// Devices that read all of them at the same time.
    #[arg(long, default_value_t = 1)]
    pub(crate) devices: usize,
    /// How often they are read.
    #[arg(long, default_value_t = 5)]
    pub(crate) runs: usize,
    /// Read them as often again, and check every signature.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false")]
    pub(crate) signatures: bool,
    /// Entries per second that other groups of four append meanwhile, of the same length.
    #[arg(long)]
    pub(crate) live_rate: Option<u32>,
    /// How many such groups.
    #[arg(long, default_value_t = 50)]
    pub(crate) live_groups: usize,
    /// For how many seconds they are measured; the readings begin with them.
    #[arg(long, default_value_t = 10)]
    pub(crate) live_seconds: u64,
}

impl Measurement for Arguments {
    const NAME: &'static str = "catch-up";

    type Measured = Measured;

    fn shape(&self) -> Option<Shape> {
        let (groups, body) = (self.live_groups, self.body);
        Some(Shape { groups, members: TALK_MEMBERS, body, per_log: TALK_IN_FLIGHT, batch: None })
    }

    fn check(&self) -> Result<()> {
        ensure!(self.body <= BODY_BYTES_MAX, "a body has at most {BODY_BYTES_MAX} bytes");
        ensure!((1..=RUNS_MAX).contains(&self.runs), "1 to {RUNS_MAX} runs");
        ensure!((1..MEMBERS_MAX).contains(&self.devices), "fewer than {MEMBERS_MAX} devices");
        ensure!(
            self.entries > 0
                && self.entries * (self.body + OVERHEAD_BYTES) <= UNDELIVERED_BYTES_MAX,
            "a relay keeps no more than about {UNDELIVERED_BYTES_MAX} bytes for a member that is \
             away"
        );
        ensure!(
            self.live_rate != Some(0) && (1..=SECONDS_MAX).contains(&self.live_seconds),
            "a live rate of nothing is none, and it lasts 1 to {SECONDS_MAX} seconds"
        );
        self.live().map_or(Ok(()), |live| live.check())
    }

    async fn measure(&self, relay: &mut Relay) -> Result<Measured> {
        let crowd = Crowd::new(&relay.url, self.devices + 1)?;
        let waiting = Waiting::fill(self, &crowd).await?;
        let mut measured = Measured::new(self.entries, self.devices);
        let Some(live) = self.live() else {
            let sampler = Sampler::begin(relay, None, DRAIN_DEADLINE);
            measured.readings = Box::pin(waiting.read_all(self, &crowd)).await?;
            measured.timeline = sampler.end()?;
            return Ok(measured);
        };
        let (began, begin) = oneshot::channel();
        let reading = async {
            begin.await.context("the other groups have failed")?;
            sleep(Duration::from_secs(LIVE_WARM_UP)).await;
            waiting.read_all(self, &crowd).await
        };
        let talk = append::measure_rate(&live, live.first_rate(), relay, Some(began));
        let ((live, timeline), readings) = Box::pin(async { try_join!(talk, reading) }).await?;
        (measured.live, measured.timeline, measured.readings) = (Some(live), timeline, readings);
        Ok(measured)
    }
}

impl Arguments {
    /// What other groups do meanwhile.
    fn live(&self) -> Option<append::Arguments> {
        let rate = Rate::PerSecond(self.live_rate?);
        let seconds = (LIVE_WARM_UP, self.live_seconds);
        Some(append::Arguments::talk(self.live_groups, rate, self.body, seconds))
    }
}

/// A group in which entries wait for devices that are away.
struct Waiting {
    devices: Vec<Identity>,
    log: LogId,
    head: Head,
}

/// One reading.
struct Reading {
    first: Duration,
    last: Duration,
    bytes: u64,
    faults: Faults,
}

impl Waiting {
    async fn fill(arguments: &Arguments, crowd: &Crowd) -> Result<Self> {
        let founder = Identity::generate()?;
        let (mut wire, _) = crowd.enter(&founder).await?;
        let (mut author, seed, _) = group::found(&mut wire, &founder).await?;
        let log = author.log;
        let mut devices = Vec::with_capacity(arguments.devices);
        for _ in 0..arguments.devices {
            let device = Identity::generate()?;
            let (mut wire, _) = crowd.enter(&device).await?;
            group::join(&mut wire, &device, log, &seed).await?;
            wire.close().await;
            devices.push(device);
        }

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
        Ok(Self { devices, log, head })
    }

    /// All readings: without signatures, and with them if that is asked for.
    async fn read_all(&self, arguments: &Arguments, crowd: &Crowd) -> Result<Vec<Readings>> {
        let mut all = vec![self.read_again_and_again(arguments, crowd, false).await?];
        if arguments.signatures {
            all.push(self.read_again_and_again(arguments, crowd, true).await?);
        }
        Ok(all)
    }

    async fn read_again_and_again(
        &self,
        arguments: &Arguments,
        crowd: &Crowd,
        signatures: bool,
    ) -> Result<Readings> {
        let bar = progress::bar(arguments.runs as u64, "readings");
        let mut readings = Readings::new(signatures);
        for _ in 0..arguments.runs {
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
