//! A burst to devices that sleep: how soon their doorbells ring, and what that costs those who write.
//!
//! In each group one phone posts payloads; the others have said where their doorbells are, and have
//! gone. It is done in rounds of three bursts: a relay that rings nobody, one that rings at a push
//! service that stands in for Google's, and again one that rings nobody. What the middle one differs by
//! from the two beside it is what doorbells cost; what those two differ by is the noise. The push
//! service is a process of its own, as it is in the world: what it takes from the machine is not the
//! relay's.
//!
//! Holds always:
//! - each burst has a relay of its own, with an empty database where that is in its directory;
//! - the groups of one burst are left before the next begins, so that nothing of it is read again or
//!   rung in the next;
//! - the bursts of a round are prepared alike: who sleeps says where its doorbell is also to a relay
//!   that rings nobody.

mod burst;
mod groups;
mod measured;
mod provider;
pub(crate) mod service;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until};

use self::burst::Burst;
use self::measured::{Measured, Rung, Seen};
use self::provider::Provider;
use self::service::Manners;
use crate::ceiling::Shape;
use crate::crowd::on_this_machine;
use crate::frame::Measurement;
use crate::frame::relay::Relay;
use crate::frame::timeline::Timeline;
use crate::limits::{DEVICES_MAX, DRAIN_DEADLINE, LOOK_PAUSE, ROUNDS_MAX, SECONDS_MAX, SETUPS_MAX};
use crate::progress;

/// Longest body of a payload, in bytes: half of its length in hex.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// Most members of a group of the app.
const GROUP_MEMBERS_MAX: usize = 64;

/// Most payloads of one group: nobody acks them, and a phone may not post more at once.
const PAYLOADS_MAX: usize = 1000;

/// Payloads a second that a relay lets a phone post.
const POSTS_PER_SECOND: usize = 200;

/// Longest burst of a rate, in seconds: a phone's token is good for ten minutes.
const BURST_SECONDS_MAX: usize = 500;

/// What `doorbells` is asked to do.
#[derive(Args, Serialize)]
pub(crate) struct Arguments {
    #[arg(long, default_value_t = 500)]
    groups: usize,
    /// Devices of each group that sleep.
    #[arg(long, default_value_t = 4)]
    sleepers: usize,
    /// Payloads in each group.
    #[arg(long, default_value_t = 40)]
    payloads: usize,
    /// Payloads per second that are due in all groups together; 0 for as fast as they are answered.
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// How often a burst with doorbells is measured, each time between two without.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Length of each payload, in bytes; twice as long in hex.
    #[arg(long, default_value_t = 512)]
    body: usize,
    /// Seconds between a relay's start and a burst, at least: it reads again whom it had to ring, and
    /// that is not what is measured.
    #[arg(long, default_value_t = 0)]
    settle: u64,
    #[command(flatten)]
    #[serde(flatten)]
    manners: Manners,
}

impl Measurement for Arguments {
    const NAME: &'static str = "doorbells";

    type Measured = Measured;

    fn shape(&self) -> Shape {
        Shape::talk(self.groups, self.sleepers + 1, self.body, 1)
    }

    fn connections(&self) -> usize {
        // Who sleeps comes, says where it is rung, and goes.
        self.groups + SETUPS_MAX
    }

    fn check(&self) -> Result<()> {
        ensure!(
            (1..GROUP_MEMBERS_MAX).contains(&self.sleepers),
            "1 to {} sleepers",
            GROUP_MEMBERS_MAX - 1
        );
        let phones = self.groups * (self.sleepers + 1);
        ensure!((1..=DEVICES_MAX).contains(&phones), "1 to {DEVICES_MAX} phones");
        ensure!((1..=PAYLOADS_MAX).contains(&self.payloads), "1 to {PAYLOADS_MAX} payloads");
        ensure!((1..=BODY_BYTES_MAX).contains(&self.body), "1 to {BODY_BYTES_MAX} bytes");
        ensure!((1..=ROUNDS_MAX).contains(&self.rounds), "1 to {ROUNDS_MAX} rounds");
        ensure!(self.settle <= SECONDS_MAX, "--settle is at most {SECONDS_MAX}");
        if let Ok(rate @ 1..) = usize::try_from(self.rate) {
            ensure!(
                rate <= self.groups * POSTS_PER_SECOND,
                "a phone may post {POSTS_PER_SECOND} payloads a second"
            );
            ensure!(
                self.total().div_ceil(rate) <= BURST_SECONDS_MAX,
                "a burst takes {BURST_SECONDS_MAX} seconds at most"
            );
        }
        Ok(())
    }

    async fn measure(&self, relay: &mut Relay) -> Result<Measured> {
        let mut provider = Provider::start(self.manners).await?;
        let mut timeline = Timeline::default();
        let mut seen = Seen::new(self.total(), provider.call_alone().await?);
        for number in 0..self.rounds {
            if number > 0 {
                relay.start_anew(Vec::new()).await?;
            }
            let before = Box::pin(self.side(relay, 0, None, &mut timeline)).await?.burst;
            relay.start_anew(provider.variables()).await?;
            let (first, rings) = (number * self.devices(), Some(&mut provider));
            let ringing = Box::pin(self.side(relay, first, rings, &mut timeline)).await?;
            relay.start_anew(Vec::new()).await?;
            let after = Box::pin(self.side(relay, 0, None, &mut timeline)).await?.burst;
            seen.add([&before, &after], &ringing.burst, ringing.rung);
        }
        Ok(seen.measured(timeline))
    }
}

/// One burst, and what was rung for it.
struct Side {
    burst: Burst,
    rung: Rung,
}

impl Arguments {
    fn total(&self) -> usize {
        self.groups * self.payloads
    }

    /// Devices that sleep.
    fn devices(&self) -> usize {
        self.groups * self.sleepers
    }

    /// One burst, in groups of its own, whose devices have tokens from this number on. With a push
    /// service, until all of them are rung.
    async fn side(
        &self,
        relay: &Relay,
        first_token: usize,
        provider: Option<&mut Provider>,
        timeline: &mut Timeline,
    ) -> Result<Side> {
        let started = Instant::now();
        let address = address(relay).await?;
        let groups = groups::make(self, address, first_token).await?;
        sleep_until(started + Duration::from_secs(self.settle)).await;
        let (groups, burst, samples) = Box::pin(burst::run(self, relay, groups)).await?;
        let end_s = timeline.end_s();
        timeline.mark(end_s, if provider.is_some() { "doorbells" } else { "nobody rung" });
        timeline.extend(samples, end_s);
        let rung = match provider {
            Some(provider) => rung(self, provider, &burst).await?,
            None => Rung::default(),
        };
        groups::leave(groups).await?;
        Ok(Side { burst, rung })
    }
}

async fn address(relay: &Relay) -> Result<SocketAddr> {
    let url = on_this_machine(&relay.url)?;
    let address = tokio::net::lookup_host(url.authority()).await?.find(SocketAddr::is_ipv4);
    address.filter(|it| it.ip().is_loopback()).context("an IPv4 address")
}

/// Waits until every device was rung once, and says how soon.
async fn rung(arguments: &Arguments, provider: &mut Provider, burst: &Burst) -> Result<Rung> {
    let devices = arguments.devices();
    let deadline = Instant::now() + DRAIN_DEADLINE;
    let bar = progress::bar(devices as u64, "devices rung");
    let mut soonest: BTreeMap<String, u64> = BTreeMap::new();
    let mut rung = Rung::default();
    loop {
        for call in provider.rung().await? {
            let since = burst.first.get(&call.group).context("a doorbell of no group")?;
            rung.calls += 1;
            rung.limited += u64::from(call.limited);
            if !call.limited {
                rung.last = rung.last.max(call.at_ns.saturating_sub(burst.began_ns));
                soonest.entry(call.token).or_insert(call.at_ns.saturating_sub(*since));
            }
        }
        bar.set_position(soonest.len() as u64);
        if soonest.len() >= devices || Instant::now() >= deadline {
            break;
        }
        sleep(LOOK_PAUSE).await;
    }
    bar.finish_and_clear();
    rung.never = devices.saturating_sub(soonest.len()) as u64;
    rung.ages = soonest.into_values().collect();
    Ok(rung)
}
