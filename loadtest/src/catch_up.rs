//! How long a device that was away takes to have everything: from its `Subscribe` to the last byte.
//!
//! The chain is checked on the way, entry for entry; signatures only if asked for, since they cost
//! the device as much on every relay. The same entries are read several times, each time by a new
//! connection, and never acked. Several devices read all of them at the same time, and other groups
//! may talk meanwhile.

mod measured;
pub(crate) mod waiting;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{ArgAction, Args};
use sealwire_client::identity::Identity;
use sealwire_protocol::limits::BODY_BYTES_MAX;
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::sleep;
use tokio::try_join;

pub(crate) use self::measured::{Measured, Readings};
use self::waiting::Waiting;
use crate::append::{self, Rate, TALK_IN_FLIGHT, TALK_MEMBERS};
use crate::ceiling::Shape;
use crate::crowd::Crowd;
use crate::frame::Measurement;
use crate::frame::relay::Relay;
use crate::frame::sampler::Sampler;
use crate::group;
use crate::limits::{DRAIN_DEADLINE, MEMBERS_MAX, SECONDS_MAX};

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

    fn shape(&self) -> Shape {
        let talk = Shape::talk(self.live_groups, TALK_MEMBERS, self.body, TALK_IN_FLIGHT);
        Shape { readers: self.devices, messages: self.entries, ..talk }
    }

    fn connections(&self) -> usize {
        let talk = self.live_rate.map_or(0, |_| self.live_groups * TALK_MEMBERS);
        self.devices + 1 + talk
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
        let waiting = self.fill(&crowd).await?;
        let mut measured = Measured::new(self.entries, self.devices);
        let Some(live) = self.live() else {
            let sampler = Sampler::begin(relay, None, DRAIN_DEADLINE);
            measured.readings =
                Box::pin(waiting.read_all(self.runs, self.signatures, &crowd)).await?;
            measured.timeline = sampler.end()?;
            return Ok(measured);
        };
        let (began, begin) = oneshot::channel();
        let reading = async {
            begin.await.context("the other groups have failed")?;
            sleep(Duration::from_secs(LIVE_WARM_UP)).await;
            waiting.read_all(self.runs, self.signatures, &crowd).await
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

    /// A group in which entries wait for devices that are away.
    async fn fill(&self, crowd: &Crowd) -> Result<Waiting> {
        let founder = Identity::generate()?;
        let (mut wire, _) = crowd.enter(&founder).await?;
        let (author, seed, _) = group::found(&mut wire, &founder).await?;
        let mut devices = Vec::with_capacity(self.devices);
        for _ in 0..self.devices {
            let device = Identity::generate()?;
            let (mut wire, _) = crowd.enter(&device).await?;
            group::join(&mut wire, &device, author.log, &seed).await?;
            wire.close().await;
            devices.push(device);
        }
        Waiting::fill(wire, &founder, author, devices, self.entries, self.body).await
    }
}
