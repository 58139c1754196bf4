//! A burst to devices that sleep: how soon their doorbells ring, and what that costs those who write.
//!
//! In each group one phone posts payloads as fast as they are answered; the others have said where
//! their doorbells are, and have gone. It is done twice with one relay: first while it rings nobody,
//! then, started again, while it rings at a push service that stands in for Google's. The groups of the
//! first burst have no doorbells, so that nothing of it is rung in the second.

mod measured;
mod provider;

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use futures_util::{StreamExt, TryStreamExt, stream};
use hyper::Method;
use sealwire_client::address::RelayUrl;
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use self::measured::Measured;
use self::provider::{Manners, Provider};
use crate::ceiling::Shape;
use crate::frame::Measurement;
use crate::frame::relay::Relay;
use crate::group::random_body;
use crate::latency::Latencies;
use crate::limits::{DEVICES_MAX, DRAIN_DEADLINE, LOOK_PAUSE, SETUPS_MAX};
use crate::phones::http::{Calls, Phone};
use crate::progress;

/// Longest body of a payload, in bytes: half of its length in hex.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// Most members of a group of the app.
const GROUP_MEMBERS_MAX: usize = 64;

/// Most payloads of one group: nobody acks them, and a phone may not post more at once.
const PAYLOADS_MAX: usize = 1000;

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
    /// Length of each payload, in bytes; twice as long in hex.
    #[arg(long, default_value_t = 512)]
    body: usize,
    /// Milliseconds that the push service takes for a doorbell.
    #[arg(long, default_value_t = 50)]
    takes_ms: u64,
    /// One doorbell in so many is answered with 429; 0 for none.
    #[arg(long, default_value_t = 20)]
    limited_every: u64,
    /// One token in so many is not known to the push service; 0 for none.
    #[arg(long, default_value_t = 100)]
    dead_every: usize,
}

impl Measurement for Arguments {
    const NAME: &'static str = "doorbells";

    type Measured = Measured;

    fn shape(&self) -> Option<Shape> {
        None
    }

    fn check(&self) -> Result<()> {
        ensure!(
            (1..GROUP_MEMBERS_MAX).contains(&self.sleepers),
            "1 to {} sleepers",
            GROUP_MEMBERS_MAX - 1
        );
        let phones = 2 * self.groups * (self.sleepers + 1);
        ensure!((1..=DEVICES_MAX).contains(&phones), "1 to {DEVICES_MAX} phones, each twice");
        ensure!((1..=PAYLOADS_MAX).contains(&self.payloads), "1 to {PAYLOADS_MAX} payloads");
        ensure!((1..=BODY_BYTES_MAX).contains(&self.body), "1 to {BODY_BYTES_MAX} bytes");
        Ok(())
    }

    async fn measure(&self, relay: &mut Relay) -> Result<Measured> {
        let quiet = make_groups(self, address(relay).await?, false).await?;
        let without = burst(self, quiet).await?;
        let dead: HashSet<String> = (0..self.groups * self.sleepers)
            .filter(|number| self.dead_every > 0 && number % self.dead_every == 0)
            .map(token)
            .collect();
        let manners = Manners {
            takes: Duration::from_millis(self.takes_ms),
            limited_every: self.limited_every,
            dead,
        };
        let provider = Provider::start(manners).await?;
        relay.start_anew(provider.variables()).await?;
        let groups = make_groups(self, address(relay).await?, true).await?;
        let with = burst(self, groups).await?;
        rung(self, &provider, &without, &with).await
    }
}

async fn address(relay: &Relay) -> Result<SocketAddr> {
    let url = RelayUrl::parse(&relay.url).context("the relay's address")?;
    ensure!(url.is_plaintext(), "the load tester speaks to a relay on this machine alone");
    let address = tokio::net::lookup_host(url.authority()).await?.find(SocketAddr::is_ipv4);
    address.filter(|it| it.ip().is_loopback()).context("an IPv4 address")
}

/// The token of a device.
fn token(number: usize) -> String {
    format!("token-{number:08}")
}

/// A group: who writes, and its id.
struct Group {
    id: String,
    writer: Calls,
}

async fn make_groups(
    arguments: &Arguments,
    relay: SocketAddr,
    doorbells: bool,
) -> Result<Vec<Group>> {
    let bar = progress::bar(arguments.groups as u64, "groups of sleeping phones");
    let groups = stream::iter(0..arguments.groups)
        .map(|number| Box::pin(make_group(arguments, relay, number, doorbells)))
        .buffer_unordered(SETUPS_MAX)
        .inspect_ok(|_| bar.inc(1))
        .try_collect()
        .await?;
    bar.finish_and_clear();
    Ok(groups)
}

async fn make_group(
    arguments: &Arguments,
    relay: SocketAddr,
    number: usize,
    doorbells: bool,
) -> Result<Group> {
    let first = number * (arguments.sleepers + 1);
    let mut writer = Phone::enter(relay, first as u64).await?;
    let made = writer.insist(Method::POST, "/groups", json!({})).await?;
    let id = made["id"].as_str().context("a group has an id")?.to_owned();
    for sleeper in 0..arguments.sleepers {
        // It comes, joins, says where it is rung, and goes.
        let mut phone = Phone::enter(relay, (first + 1 + sleeper) as u64).await?;
        phone.insist(Method::POST, &format!("/groups/{id}/join"), json!({})).await?;
        if doorbells {
            let token = token(number * arguments.sleepers + sleeper);
            let place = json!({ "pushToken": token, "pushPlatform": "fcm" });
            phone.insist(Method::PUT, "/groups/push-registration", place).await?;
        }
    }
    Ok(Group { id, writer })
}

/// What one burst has shown.
struct Burst {
    answers: Latencies,
    seconds: f64,
    /// When the first payload of each group was answered.
    first: BTreeMap<String, Instant>,
}

async fn burst(arguments: &Arguments, groups: Vec<Group>) -> Result<Burst> {
    let bar = progress::bar(groups.len() as u64, "bursts");
    let answers = Latencies::new();
    let mut first = BTreeMap::new();
    let mut writers = JoinSet::new();
    let blob = hex::encode(random_body(arguments.body)?);
    let begun = Instant::now();
    for group in groups {
        writers.spawn(write(group, arguments.payloads, blob.clone()));
    }
    while let Some(written) = writers.join_next().await {
        let (group, at, mut took) = written.context("a phone has panicked")??;
        answers.record(&mut took);
        first.insert(group, at);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(Burst { answers, seconds: begun.elapsed().as_secs_f64(), first })
}

async fn write(
    mut group: Group,
    payloads: usize,
    blob: String,
) -> Result<(String, Instant, Vec<u64>)> {
    let path = format!("/groups/{}/payloads", group.id);
    let (mut took, mut first) = (Vec::with_capacity(payloads), None);
    for _ in 0..payloads {
        let payload = json!({ "encryptedBlob": blob, "kind": "expense" });
        let at = Instant::now();
        group.writer.insist(Method::POST, &path, payload).await?;
        took.push(u64::try_from(at.elapsed().as_nanos()).unwrap_or(u64::MAX));
        first.get_or_insert_with(Instant::now);
    }
    Ok((group.id, first.context("a group has payloads")?, took))
}

/// Waits until every device was rung once, and says how soon.
async fn rung(
    arguments: &Arguments,
    provider: &Provider,
    without: &Burst,
    with: &Burst,
) -> Result<Measured> {
    let devices = (arguments.groups * arguments.sleepers) as u64;
    let deadline = Instant::now() + DRAIN_DEADLINE;
    let bar = progress::bar(devices, "devices rung");
    let mut soonest: BTreeMap<String, u64> = BTreeMap::new();
    while (soonest.len() as u64) < devices && Instant::now() < deadline {
        sleep(LOOK_PAUSE).await;
        for rung in provider.rung().into_iter().filter(|rung| !rung.limited) {
            let since = with.first.get(&rung.group).context("a doorbell of no group")?;
            let age = rung.at.saturating_duration_since(*since);
            let age = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
            soonest.entry(rung.token).or_insert(age);
        }
        bar.set_position(soonest.len() as u64);
    }
    bar.finish_and_clear();
    let calls = provider.rung();
    let ages = Latencies::new();
    let never_rung = devices - soonest.len() as u64;
    ages.record(&mut soonest.into_values().collect());
    Ok(Measured {
        devices,
        never_rung,
        calls: calls.len() as u64,
        limited: calls.iter().filter(|rung| rung.limited).count() as u64,
        commit_to_doorbell: ages.percentiles(),
        answer_without: without.answers.percentiles(),
        answer_with: with.answers.percentiles(),
        seconds_without: without.seconds,
        seconds_with: with.seconds,
    })
}
