//! Vaults: one device of each pushes changesets in batches, the others pull them as they come, and one
//! that was away pulls all there are in one go.
//!
//! Everything is signed and checked as a device does it: the relay verifies every entry of a vault, and
//! here every reader checks the chain, the body and the signature. With a rate, batches are due at fixed
//! times, whatever the relay does, and latency counts from then; each vault's writer has one batch under
//! way, as a device that syncs has.

mod device;
mod measured;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use sealwire_client::identity::Identity;
use sealwire_protocol::Head;
use sealwire_protocol::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, IN_FLIGHT_REQUESTS_MAX};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

use self::device::{Puller, Pusher};
use self::measured::{Away, Measured};
use crate::append::{self, Checked, Rate, Step};
use crate::catch_up::waiting::Waiting;
use crate::ceiling::Shape;
use crate::crowd::Crowd;
use crate::frame::Measurement;
use crate::frame::relay::Relay;
use crate::frame::sampler::Sampler;
use crate::frame::timeline::Timeline;
use crate::group;
use crate::limits::{LOOK_PAUSE, SECONDS_MAX, SETUPS_MAX};
use crate::reader::{Faults, Reader};
use crate::tally::{STAMP_BYTES, Tally};
use crate::{pace, progress};

/// Most devices of a vault, as a relay allows by default.
const VAULT_DEVICES_MAX: usize = 32;

/// Most changesets that wait for a device that was away: what a phone may find after years.
const AWAY_MAX: usize = 1_000_000;

/// Most pulls of them.
const PULLS_MAX: usize = 100;

/// What `vaults` is asked to do.
#[derive(Args, Serialize)]
pub(crate) struct Arguments {
    #[arg(long, default_value_t = 100)]
    vaults: usize,
    /// Devices of each vault, of which one pushes.
    #[arg(long, default_value_t = 3)]
    devices: usize,
    /// Length of each changeset, in bytes.
    #[arg(long, default_value_t = 512)]
    body: usize,
    /// Changesets that are pushed at once.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// Changesets per second that are due in all vaults together; `max` for as many as the relay takes.
    #[arg(long, default_value = "800")]
    rate: Rate,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Seconds of the same load before that.
    #[arg(long, default_value_t = 2)]
    warm_up: u64,
    /// Changesets that a device finds that was away; 0 for no such device.
    #[arg(long, default_value_t = 10_000)]
    away: usize,
    /// How often it pulls them, without and with their signatures.
    #[arg(long, default_value_t = 5)]
    pulls: usize,
}

impl Measurement for Arguments {
    const NAME: &'static str = "vaults";

    type Measured = Measured;

    fn shape(&self) -> Shape {
        let Self { vaults, devices, body, batch, .. } = *self;
        let messages = self.away.max(1);
        Shape { messages, ..Shape::talk(vaults, devices, body, batch) }
    }

    fn connections(&self) -> usize {
        self.vaults * self.devices + 1
    }

    fn check(&self) -> Result<()> {
        ensure!(self.vaults > 0, "at least one vault");
        ensure!(
            (2..=VAULT_DEVICES_MAX).contains(&self.devices),
            "2 to {VAULT_DEVICES_MAX} devices of a vault"
        );
        let most = BATCH_ENTRIES_MAX.min(IN_FLIGHT_REQUESTS_MAX);
        ensure!(
            (1..=most).contains(&self.batch)
                && (STAMP_BYTES..=BATCH_BYTES_MAX / self.batch).contains(&self.body),
            "a batch has at most {most} changesets of {STAMP_BYTES} bytes and more, and \
             {BATCH_BYTES_MAX} bytes"
        );
        ensure!(
            self.rate.per_second().is_none_or(|rate| (rate as usize).is_multiple_of(self.batch)),
            "--rate must be a multiple of --batch"
        );
        ensure!((1..=SECONDS_MAX).contains(&self.seconds), "1 to {SECONDS_MAX} seconds");
        ensure!(self.warm_up <= SECONDS_MAX, "at most {SECONDS_MAX} seconds of warm-up");
        ensure!(self.away <= AWAY_MAX, "at most {AWAY_MAX} changesets");
        ensure!((1..=PULLS_MAX).contains(&self.pulls), "1 to {PULLS_MAX} pulls");
        Ok(())
    }

    async fn measure(&self, relay: &mut Relay) -> Result<Measured> {
        let crowd = Crowd::new(&relay.url, self.vaults * self.devices + 1)?;
        let (step, mut timeline) = Box::pin(self.live(&crowd, relay)).await?;
        let mut away = None;
        if self.away > 0 {
            let waiting = self.fill(&crowd).await?;
            let sampler = Sampler::begin(relay, None, Duration::ZERO);
            let readings = Box::pin(waiting.read_all(self.pulls, true, &crowd)).await?;
            let end_s = timeline.end_s();
            timeline.mark(end_s, "away");
            timeline.extend(sampler.end()?, end_s);
            away = Some(Away { entries: self.away, readings });
        }
        Ok(Measured::new(self.batch, step, away, timeline))
    }
}

/// A vault, with its devices connected.
struct Vault {
    pusher: Pusher,
    pullers: Vec<Puller>,
}

impl Arguments {
    /// Pushes and pulls for as long as was asked.
    async fn live(&self, crowd: &Crowd, relay: &Relay) -> Result<(Step, Timeline)> {
        let vaults = self.make_vaults(crowd).await?;
        let tally = Arc::new(Tally::new(self.warm_up, self.seconds));
        let (finish, finished) = watch::channel(None::<Arc<Vec<Head>>>);
        let (mut pushing, mut pulling, mut ticks) = (JoinSet::new(), JoinSet::new(), Vec::new());
        tally.begin();
        for (number, vault) in vaults.into_iter().enumerate() {
            let due = self.rate.per_second().map(|_| {
                let (tick, due) = mpsc::channel(pace::TICKS_MAX);
                ticks.push(tick);
                due
            });
            let pushed = vault.pusher.run(self.batch, self.body, due, tally.clone());
            pushing.spawn(async move { anyhow::Ok((number, Box::pin(pushed).await?)) });
            for puller in vault.pullers {
                pulling.spawn(Box::pin(puller.run(number, tally.clone(), finished.clone())));
            }
        }
        let length = Duration::from_secs(self.warm_up + self.seconds);
        let sampler = Sampler::begin(relay, Some(tally.clone()), length);
        // What is due is a batch.
        let pacer = self
            .rate
            .per_second()
            .map(|rate| pace::start(rate / u32::try_from(self.batch).unwrap_or(1), ticks, &tally));
        let heads = self.until_pushed(&tally, &mut pushing, &mut pulling).await?;
        let given_up = tally.now();
        finish.send_replace(Some(Arc::new(heads)));
        let (mut faults, mut checked) = (Faults::default(), 0);
        while let Some(pulled) = pulling.join_next().await {
            let (found, read) = pulled.context("a device has panicked")??;
            faults.add(found);
            checked += read;
        }
        if let Some(pacer) = pacer {
            pacer.join().map_err(|_| anyhow!("the pacer has panicked"))?;
        }
        tally.give_up(given_up, self.batch, self.batch * (self.devices - 1));
        let timeline = sampler.end()?;
        let server = timeline
            .between(self.warm_up as f64, length.as_secs_f64())
            .map(|server| server.with_database_apart(relay.has_database_apart()));
        let talk = append::Arguments::talk(
            self.vaults,
            self.rate,
            self.body,
            (self.warm_up, self.seconds),
        );
        let step = Step::new(&talk, self.rate, &tally, server, Checked { faults, checked }, None);
        Ok((step, timeline))
    }

    /// Waits until all pushers have ended, and gives where their vaults end. A puller that ends before
    /// them ends the run.
    async fn until_pushed(
        &self,
        tally: &Tally,
        pushing: &mut JoinSet<Result<(usize, Head)>>,
        pulling: &mut JoinSet<Result<(Faults, u64)>>,
    ) -> Result<Vec<Head>> {
        let mut heads = vec![Head::NONE; self.vaults];
        let bar = progress::bar(self.warm_up + self.seconds, "seconds of load");
        while !pushing.is_empty() {
            bar.set_position(tally.now() / 1_000_000_000);
            tokio::select! {
                () = sleep(LOOK_PAUSE) => {}
                Some(pushed) = pushing.join_next() => {
                    let (number, head) = pushed.context("a device has panicked")??;
                    heads[number] = head;
                }
                Some(pulled) = pulling.join_next() => {
                    pulled.context("a device has panicked")??;
                    bail!("a device has ended before its time");
                }
            }
        }
        bar.finish_and_clear();
        Ok(heads)
    }

    async fn make_vaults(&self, crowd: &Crowd) -> Result<Vec<Vault>> {
        let bar = progress::bar(self.vaults as u64, "vaults");
        let vaults = stream::iter(0..self.vaults)
            .map(|_| Box::pin(self.make_vault(crowd)))
            .buffered(SETUPS_MAX)
            .inspect_ok(|_| bar.inc(1))
            .try_collect()
            .await?;
        bar.finish_and_clear();
        Ok(vaults)
    }

    /// Makes a vault. Its devices follow it from the head that it has when all are enrolled.
    async fn make_vault(&self, crowd: &Crowd) -> Result<Vault> {
        let device = Identity::generate()?;
        let (mut wire, _) = crowd.enter(&device).await?;
        let (mut author, mut head) = group::found_vault(&mut wire, &device).await?;
        let others: Result<Vec<_>, _> = (1..self.devices).map(|_| Identity::generate()).collect();
        let others = others?;
        for other in &others {
            head = group::enrol(&mut wire, &device, &mut author, other).await?;
        }
        let mut pullers = Vec::with_capacity(others.len());
        for other in &others {
            let (mut wire, _) = crowd.enter(other).await?;
            group::subscribe(&mut wire, author.log, Some(head)).await?;
            pullers.push(Puller::new(wire, Reader::at(author.log, head)));
        }
        Ok(Vault { pusher: Pusher::new(device, wire, author, head), pullers })
    }

    /// A vault with changesets for a device that is away.
    async fn fill(&self, crowd: &Crowd) -> Result<Waiting> {
        let (device, other) = (Identity::generate()?, Identity::generate()?);
        let (mut wire, _) = crowd.enter(&device).await?;
        let (mut author, _) = group::found_vault(&mut wire, &device).await?;
        group::enrol(&mut wire, &device, &mut author, &other).await?;
        Waiting::fill(wire, &device, author, vec![other], self.away, self.body).await
    }
}
