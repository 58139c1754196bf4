//! How many entries a second become durable, and how soon: groups, and a few entries of each under
//! way.
//!
//! Without times every sender always has `--in-flight` entries under way: the relay is saturated, and
//! latency is how long the queue is. With a rate entries are due at fixed times, whatever the relay
//! does, and latency counts from when an entry was due: a relay that stalls cannot hide it. Several
//! rates are measured one after the other, each with groups of its own.
//!
//! Everything that was answered is checked afterwards, by chain, entry for entry: by every receiver,
//! or, where none was connected, by one member of each group that comes back.

mod absence;
mod check;
mod load;
mod measured;
mod member;
mod parts;
mod setup;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::{ArgAction, Args, ValueEnum};
use sealwire_protocol::limits::{BODY_BYTES_MAX, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_REQUESTS_MAX};
use serde::{Deserialize, Serialize, Serializer};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use self::load::Load;
use self::measured::Disturbed;
#[cfg(any(feature = "nats", feature = "mosquitto"))]
pub(crate) use self::measured::KEPT_UP;
pub(crate) use self::measured::{Checked, Measured, Step};
pub(crate) use self::parts::Part;
use self::parts::Parts;
use self::setup::Group;
use crate::ceiling::Shape;
use crate::crowd::Crowd;
use crate::frame::Measurement;
use crate::frame::relay::Relay;
use crate::frame::sampler::Sampler;
use crate::frame::timeline::Timeline;
use crate::limits::{DEVICES_MAX, LOOK_PAUSE, MEMBERS_MAX, RATES_MAX, SECONDS_MAX};
use crate::parts::needed;
use crate::progress;
use crate::tally::{STAMP_BYTES, Tally, Window};

/// How long the relay's process stands still, where that is asked for.
const PAUSE: Duration = Duration::from_secs(1);

/// Members of each group that talks beside something else.
pub(crate) const TALK_MEMBERS: usize = 4;

/// Entries of each of its senders that may be under way.
pub(crate) const TALK_IN_FLIGHT: usize = 8;

/// What `append` is asked to do.
#[derive(Args, Clone, Serialize, Deserialize)]
pub(crate) struct Arguments {
    #[arg(long, default_value_t = 250)]
    pub(crate) groups: usize,
    /// Members of each group.
    #[arg(long, default_value_t = 4)]
    pub(crate) members: usize,
    /// Members of each group that send.
    #[arg(long, default_value_t = 1)]
    pub(crate) senders: usize,
    /// Length of each body, in bytes.
    #[arg(long, default_value_t = 1024)]
    pub(crate) body: usize,
    /// Entries of each sender that may be under way: all the time at `max`, at most with a rate.
    #[arg(long, default_value_t = 8)]
    pub(crate) in_flight: usize,
    /// Entries per second that are due in all groups together, one rate after the other; `max` for as
    /// many as the relay takes.
    #[arg(long, value_delimiter = ',', default_value = "max")]
    pub(crate) rate: Vec<Rate>,
    /// Seconds that are measured, of each rate.
    #[arg(long, default_value_t = 10)]
    pub(crate) seconds: u64,
    /// Seconds of the same load before that.
    #[arg(long, default_value_t = 2)]
    pub(crate) warm_up: u64,
    /// All members are connected and subscribed, the senders too; otherwise the senders alone are
    /// connected, and nobody is subscribed.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false")]
    pub(crate) receivers: bool,
    /// Entries that a receiver reads before it acks them; 0 for never.
    #[arg(long, default_value_t = 32)]
    pub(crate) ack_every: u64,
    /// Members of each group, the last ones, that read slowly on purpose. Their latencies are told
    /// apart.
    #[arg(long, default_value_t = 0)]
    pub(crate) slow: usize,
    /// Milliseconds that a slow one rests after each frame.
    #[arg(long, default_value_t = 200)]
    pub(crate) slow_pause_ms: u64,
    /// Devices per second, each in its turn, that lose their connection and come back at once.
    #[arg(long)]
    pub(crate) churn: Option<u32>,
    /// What happens to the devices or the relay in the middle of it all.
    #[arg(long, value_enum)]
    pub(crate) disturb: Option<Disturbance>,
    /// Second of the time that is measured at which that happens.
    #[arg(long, default_value_t = 3)]
    pub(crate) disturb_at: u64,
    /// Most devices of one process of this program; more are spread over several. By default as many as
    /// its open files allow.
    #[arg(long, value_name = "DEVICES")]
    pub(crate) process_max: Option<usize>,
}

/// What can happen in the middle of it all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Disturbance {
    /// All devices lose their connections and come back at once.
    Cut,
    /// The relay's process is killed and started again; with --relay.
    Kill,
    /// The relay is stopped in order and started again; with --relay.
    Stop,
    /// The relay's process stands still for one second; with --relay.
    Pause,
}

/// How many entries are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) enum Rate {
    PerSecond(u32),
    /// As many as the relay takes.
    Max,
}

impl Measurement for Arguments {
    const NAME: &'static str = "append";

    type Measured = Measured;

    fn shape(&self) -> Shape {
        let Self { groups, members, body, in_flight, .. } = *self;
        Shape::talk(groups, members, body, in_flight)
    }

    fn connections(&self) -> usize {
        0
    }

    fn check(&self) -> Result<()> {
        check_arguments(self)
    }

    async fn measure(&self, relay: &mut Relay) -> Result<Measured> {
        let mut measured = Measured::default();
        for rate in &self.rate {
            let (step, timeline) = Box::pin(measure_rate(self, *rate, relay, None)).await?;
            measured.add(step, timeline);
        }
        Ok(measured)
    }
}

impl Arguments {
    /// Groups of which one member talks, for so many seconds of warm-up and of measured time.
    pub(crate) fn talk(groups: usize, rate: Rate, body: usize, seconds: (u64, u64)) -> Self {
        Self {
            groups,
            members: TALK_MEMBERS,
            senders: 1,
            body,
            in_flight: TALK_IN_FLIGHT,
            rate: vec![rate],
            seconds: seconds.1,
            warm_up: seconds.0,
            receivers: true,
            ack_every: 32,
            slow: 0,
            slow_pause_ms: 0,
            churn: None,
            disturb: None,
            disturb_at: 0,
            process_max: None,
        }
    }

    /// The rate that is measured first.
    pub(crate) fn first_rate(&self) -> Rate {
        self.rate.first().copied().unwrap_or(Rate::Max)
    }
}

/// Measures one rate. `began` is told when the load begins.
pub(crate) async fn measure_rate(
    arguments: &Arguments,
    rate: Rate,
    relay: &mut Relay,
    began: Option<oneshot::Sender<()>>,
) -> Result<(Step, Timeline)> {
    let tally = Arc::new(Tally::new(arguments.warm_up, arguments.seconds));
    let mut loads = Loads::prepare(arguments, rate, &relay.url).await?;
    loads.begin(arguments, rate, &tally).await?;
    if let Some(began) = began {
        // Nobody has to wait for it.
        let _ = began.send(());
    }
    let length = Duration::from_secs(arguments.warm_up + arguments.seconds);
    let sampler = Sampler::begin(relay, Some(tally.clone()), length);
    let disturbed = watch_load(arguments, &tally, &mut loads, relay).await?;
    let checked = loads.finish(&tally).await?;
    let mut timeline = sampler.end()?;
    if let Some(disturbed) = disturbed {
        let at = arguments.warm_up + arguments.disturb_at;
        timeline.mark(at as f64, disturbed.mark());
    }
    let server = timeline
        .between(arguments.warm_up as f64, length.as_secs_f64())
        .map(|server| server.with_database_apart(relay.has_database_apart()));
    let step = Step::new(arguments, rate, &tally, server, checked, disturbed);
    Ok((step, timeline))
}

/// The load, in this process or in several.
enum Loads {
    /// With its groups made.
    Prepared(Arc<Crowd>, Vec<Group>),
    Here(Load),
    Apart(Parts),
}

impl Loads {
    async fn prepare(arguments: &Arguments, rate: Rate, url: &str) -> Result<Self> {
        let Arguments { groups, members, process_max, .. } = *arguments;
        let parts = needed(groups, members, process_max)?;
        if parts > 1 {
            return Ok(Self::Apart(Parts::prepare(arguments, rate, url, parts).await?));
        }
        let crowd = Arc::new(Crowd::new(url, groups * members)?);
        let groups = setup::make_groups(arguments, &crowd).await?;
        Ok(Self::Prepared(crowd, groups))
    }

    /// Begins, and the tally's clock with it.
    async fn begin(&mut self, arguments: &Arguments, rate: Rate, tally: &Arc<Tally>) -> Result<()> {
        match self {
            Self::Prepared(crowd, groups) => {
                tally.begin();
                let (crowd, groups) = (crowd.clone(), std::mem::take(groups));
                *self = Self::Here(Load::begin(arguments, rate, crowd, groups, tally)?);
            }
            Self::Apart(parts) => parts.begin(tally).await?,
            Self::Here(_) => bail!("the load has begun"),
        }
        Ok(())
    }

    async fn cut(&mut self) -> Result<()> {
        match self {
            Self::Here(load) => load.cut(),
            Self::Apart(parts) => parts.cut().await?,
            Self::Prepared(..) => bail!("the load has not begun"),
        }
        Ok(())
    }

    /// Waits for what ends the run before its time.
    async fn fails(&mut self) -> Result<()> {
        match self {
            Self::Here(load) => load.ends_too_soon().await,
            Self::Apart(parts) => parts.fails().await,
            Self::Prepared(..) => bail!("the load has not begun"),
        }
    }

    async fn finish(self, tally: &Tally) -> Result<Checked> {
        match self {
            Self::Here(load) => load.finish().await,
            Self::Apart(parts) => parts.finish(tally).await,
            Self::Prepared(..) => bail!("the load has not begun"),
        }
    }
}

fn check_arguments(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.groups > 0, "at least one group");
    ensure!((2..=MEMBERS_MAX).contains(&arguments.members), "2 to {MEMBERS_MAX} members");
    ensure!(arguments.groups * arguments.members <= DEVICES_MAX, "at most {DEVICES_MAX} devices");
    let most = if arguments.receivers { arguments.members } else { arguments.members - 1 };
    ensure!(
        (1..=most).contains(&arguments.senders),
        "at least one sender, and without --receivers one member that does not send"
    );
    ensure!(
        (STAMP_BYTES..=BODY_BYTES_MAX).contains(&arguments.body),
        "8 to {BODY_BYTES_MAX} bytes"
    );
    ensure!(
        (1..=IN_FLIGHT_REQUESTS_MAX).contains(&arguments.in_flight)
            && arguments.in_flight * arguments.body <= IN_FLIGHT_BYTES_MAX,
        "a relay lets a session have {IN_FLIGHT_REQUESTS_MAX} requests and {IN_FLIGHT_BYTES_MAX} \
         bytes under way"
    );
    ensure!(
        arguments.slow == 0
            || arguments.receivers && arguments.slow + arguments.senders < arguments.members,
        "slow ones are receivers that do not send, and one of a group is not slow"
    );
    ensure!(arguments.churn != Some(0), "no device per second is no churn");
    ensure!(
        arguments.disturb.is_none() || arguments.disturb_at < arguments.seconds,
        "what happens has to happen in the time that is measured"
    );
    ensure!((1..=RATES_MAX).contains(&arguments.rate.len()), "1 to {RATES_MAX} rates");
    ensure!((1..=SECONDS_MAX).contains(&arguments.seconds), "1 to {SECONDS_MAX} seconds");
    ensure!(arguments.warm_up <= SECONDS_MAX, "at most {SECONDS_MAX} seconds of warm-up");
    Ok(())
}

/// Watches warm-up and measured time go by, and disturbs where that is asked for. A member that ends
/// before them ends the run.
async fn watch_load(
    arguments: &Arguments,
    tally: &Tally,
    loads: &mut Loads,
    relay: &mut Relay,
) -> Result<Option<Disturbed>> {
    let Window { begin, end } = tally.window();
    let bar = progress::bar(arguments.warm_up + arguments.seconds, "seconds of load");
    let disturb_at = begin + arguments.disturb_at * 1_000_000_000;
    let mut disturbed = None;
    while tally.now() < end {
        if let Some(kind) = arguments.disturb
            && disturbed.is_none()
            && tally.now() >= disturb_at
        {
            disturbed = Some(disturb(kind, relay, loads).await?);
        }
        tokio::select! {
            () = sleep(LOOK_PAUSE) => {}
            failed = loads.fails() => failed?,
        }
        bar.set_position(tally.now() / 1_000_000_000);
    }
    bar.finish_and_clear();
    Ok(disturbed)
}

async fn disturb(kind: Disturbance, relay: &mut Relay, loads: &mut Loads) -> Result<Disturbed> {
    let begin = Instant::now();
    match kind {
        Disturbance::Cut => loads.cut().await?,
        Disturbance::Kill => {
            relay.kill().await?;
            relay.start_again().await?;
        }
        Disturbance::Stop => {
            relay.end().await?;
            relay.start_again().await?;
        }
        Disturbance::Pause => relay.pause(PAUSE).await?,
    }
    let took_ms = begin.elapsed().as_secs_f64() * 1000.0;
    Ok(Disturbed { kind, took_ms, first_start_ms: relay.first_start_ms() })
}

impl Rate {
    pub(crate) fn per_second(self) -> Option<u32> {
        match self {
            Self::PerSecond(rate) => Some(rate),
            Self::Max => None,
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            _ if text == "max" => Ok(Self::Max),
            Ok(rate) if rate > 0 => Ok(Self::PerSecond(rate)),
            Ok(_) | Err(_) => Err("entries per second, or `max`".to_owned()),
        }
    }
}

impl TryFrom<String> for Rate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PerSecond(rate) => write!(f, "{rate}"),
            Self::Max => f.write_str("max"),
        }
    }
}

impl Serialize for Rate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_number_or_all_there_is() {
        assert_eq!("max".parse(), Ok(Rate::Max));
        assert_eq!("250".parse(), Ok(Rate::PerSecond(250)));
        for text in ["0", "-1", "1.5", "many", ""] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }
}
