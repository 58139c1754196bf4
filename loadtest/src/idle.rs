//! What a session costs while nothing happens.
//!
//! Devices come in circles of a few members. Each circle has a few groups, to which every member
//! subscribes; each member sends one entry of the largest body to the next one, gets one from the one
//! before, and falls silent. When the relay has come to rest, its memory is read; then more devices
//! come. The slope between the steps is the cost of a session, free of what the relay needs without
//! any.

mod circle;
pub(crate) mod rest;
mod silent;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use sealwire_protocol::limits::{BODY_BYTES_MAX, SUBSCRIPTIONS_MAX};
use serde::Serialize;
use tokio::time::sleep;

pub(crate) use self::silent::Part;
use self::silent::Silent;
use crate::append::{TALK_IN_FLIGHT, TALK_MEMBERS};
use crate::ceiling::{Best, Shape};
use crate::frame::Measurement;
use crate::frame::relay::Relay;
use crate::frame::sampler::Sampler;
use crate::frame::timeline::Timeline;
use crate::limits::{DEVICES_MAX, MEMBERS_MAX, SECONDS_MAX};
use crate::process::Memory;
use crate::progress;
use crate::report::{
    Against, Better, Figures, Line, Measure, Plain, Unit, line, mebibytes, memory, whole,
};

/// About how long it takes: what samples are spread over.
const LENGTH: Duration = Duration::from_secs(600);

/// The talk of a crowd that is not silent, for what the machine does at best: idle sessions have none.
const TALK_GROUPS: usize = 250;
const TALK_BODY_BYTES: usize = 1024;

/// What `idle` is asked to do.
#[derive(Args, Serialize)]
pub(crate) struct Arguments {
    /// Numbers of sessions at which memory is read, rising.
    #[arg(long, value_delimiter = ',', default_value = "1000,5000,10000")]
    pub(crate) sessions: Vec<usize>,
    /// Groups that each device is in and subscribed to. A relay allows 6 unless it is told otherwise.
    #[arg(long, default_value_t = 3)]
    pub(crate) groups: usize,
    /// Members of each group.
    #[arg(long, default_value_t = 4)]
    pub(crate) members: usize,
    /// Length in bytes of the entry that each device sends and receives before it falls silent; 0 for
    /// none.
    #[arg(long, default_value_t = BODY_BYTES_MAX)]
    pub(crate) body: usize,
    /// Least seconds of silence before memory is read. A relay keeps a log's actor for ten seconds
    /// after its last work, and flushes acks within one.
    #[arg(long, default_value_t = 15)]
    pub(crate) rest: u64,
    /// Seconds between the disconnect of everybody and the last look at the memory.
    #[arg(long, default_value_t = 60)]
    pub(crate) after: u64,
    /// Most devices of one process of this program; more are spread over several. By default as many as
    /// its open files allow.
    #[arg(long, value_name = "DEVICES")]
    pub(crate) process_max: Option<usize>,
}

/// What `idle` has seen.
#[derive(Serialize)]
pub(crate) struct Measured {
    /// Before the first device came.
    pub(crate) before: Memory,
    steps: Vec<Step>,
    /// Between the first step and the last.
    pub(crate) bytes_per_session: Option<f64>,
    pub(crate) anonymous_bytes_per_session: Option<f64>,
    /// Cores that a thousand more idle sessions cost.
    pub(crate) resting_cores_per_thousand: Option<f64>,
    /// Some time after all were gone.
    pub(crate) after: Memory,
    /// Resident memory then, over that before the first device came.
    pub(crate) after_over_before: f64,
    #[serde(skip)]
    pub(crate) timeline: Timeline,
}

/// The relay's memory with this many sessions.
#[derive(Serialize)]
struct Step {
    sessions: usize,
    memory: Memory,
    /// Seconds from the end of the work of this step to the moment at which the relay was at rest.
    rest_s: f64,
    /// Of these, how many were waited in any case.
    least_rest_s: f64,
    /// Whether it came to rest before patience ended.
    rested: bool,
    /// Cores that it used in the last seconds of that.
    resting_cores: f64,
    /// Per session that has come since the step before.
    bytes_per_session: f64,
    anonymous_bytes_per_session: f64,
}

impl Measurement for Arguments {
    const NAME: &'static str = "idle";

    type Measured = Measured;

    fn shape(&self) -> Shape {
        Shape::talk(TALK_GROUPS, TALK_MEMBERS, TALK_BODY_BYTES, TALK_IN_FLIGHT)
    }

    fn connections(&self) -> usize {
        0
    }

    fn check(&self) -> Result<()> {
        check(self)
    }

    async fn measure(&self, relay: &mut Relay) -> Result<Measured> {
        watch_memory(self, relay).await
    }
}

async fn watch_memory(arguments: &Arguments, relay: &Relay) -> Result<Measured> {
    let process = relay.process().context("its memory can only be read with --pid or --relay")?;
    let mut silent = Silent::prepare(arguments, &relay.url).await?;
    let mut sampler = Sampler::begin(relay, None, LENGTH);

    let before = process.memory()?;
    let mut steps: Vec<Step> = Vec::new();
    for &sessions in &arguments.sessions {
        sampler.mark(format!("to {}", whole(sessions as u64)));
        let (was, had) = steps.last().map_or((before, 0), |step| (step.memory, step.sessions));
        silent.arrive(sessions - had, arguments.members).await?;
        let rest = rest::reach(process, Duration::from_secs(arguments.rest)).await?;
        silent.are_all_here()?;
        let per_session =
            |now: u64, then: u64| (now as f64 - then as f64) / (sessions - had) as f64;
        steps.push(Step {
            sessions,
            memory: rest.memory,
            rest_s: rest.after.as_secs_f64(),
            least_rest_s: arguments.rest as f64,
            rested: rest.rested,
            resting_cores: rest.cores,
            bytes_per_session: per_session(rest.memory.resident, was.resident),
            anonymous_bytes_per_session: per_session(rest.memory.anonymous, was.anonymous),
        });
    }

    sampler.mark("all leave");
    silent.leave().await?;
    let line = progress::wait("everybody has left");
    sleep(Duration::from_secs(arguments.after)).await;
    line.finish_and_clear();
    let after = process.memory()?;
    Ok(Measured {
        before,
        bytes_per_session: slope(&steps, |memory| memory.resident),
        anonymous_bytes_per_session: slope(&steps, |memory| memory.anonymous),
        resting_cores_per_thousand: cores_slope(&steps),
        steps,
        after,
        timeline: sampler.end()?,
        after_over_before: after.resident as f64 / before.resident as f64,
    })
}

fn check(arguments: &Arguments) -> Result<()> {
    let rising = arguments.sessions.windows(2).all(|pair| pair[0] < pair[1]);
    ensure!(
        rising && arguments.sessions.first().is_some_and(|first| *first > 0),
        "--sessions must be numbers that rise"
    );
    let whole_circles =
        arguments.sessions.iter().all(|n| n.is_multiple_of(arguments.members.max(1)));
    ensure!(whole_circles, "--sessions must be multiples of --members");
    let most = arguments.sessions.last().copied().unwrap_or_default();
    ensure!(most <= DEVICES_MAX, "at most {DEVICES_MAX} sessions");
    ensure!((2..=MEMBERS_MAX).contains(&arguments.members), "2 to {MEMBERS_MAX} members");
    ensure!((1..=SUBSCRIPTIONS_MAX).contains(&arguments.groups), "1 to {SUBSCRIPTIONS_MAX} groups");
    ensure!(arguments.body <= BODY_BYTES_MAX, "a body has at most {BODY_BYTES_MAX} bytes");
    ensure!(arguments.rest <= SECONDS_MAX, "--rest is at most {SECONDS_MAX}");
    ensure!(arguments.after <= SECONDS_MAX, "--after is at most {SECONDS_MAX}");
    Ok(())
}

/// Bytes per session between the first step and the last.
fn slope(steps: &[Step], of: impl Fn(Memory) -> u64) -> Option<f64> {
    let (first, last) = (steps.first()?, steps.last()?);
    let sessions = last.sessions.checked_sub(first.sessions).filter(|n| *n > 0)?;
    Some((of(last.memory) as f64 - of(first.memory) as f64) / sessions as f64)
}

/// Cores per thousand sessions between the first step and the last.
fn cores_slope(steps: &[Step]) -> Option<f64> {
    let (first, last) = (steps.first()?, steps.last()?);
    let sessions = last.sessions.checked_sub(first.sessions).filter(|n| *n > 0)?;
    Some((last.resting_cores - first.resting_cores) * 1000.0 / sessions as f64)
}

impl Figures for Measured {
    fn lines(&self) -> Vec<Line> {
        let mut lines = vec![line("before anybody came", memory(self.before))];
        for step in &self.steps {
            let restless = if step.rested { "" } else { " (never came to rest)" };
            lines.push(line(
                format!("{} sessions", whole(step.sessions as u64)),
                format!(
                    "{}; {} per new session, {} of it anonymous; {:.3} cores{restless}",
                    memory(step.memory),
                    kibibytes(step.bytes_per_session),
                    kibibytes(step.anonymous_bytes_per_session),
                    step.resting_cores,
                ),
            ));
        }
        if let (Some(all), Some(anonymous)) =
            (self.bytes_per_session, self.anonymous_bytes_per_session)
        {
            let text = format!("{}, {} of it anonymous", kibibytes(all), kibibytes(anonymous));
            lines.push(line("per session, first to last", text));
        }
        if let Some(cores) = self.resting_cores_per_thousand {
            lines.push(line("per 1,000 sessions, idle", format!("{cores:.4} cores")));
        }
        let ratio = self.after_over_before;
        let text = format!("{}; {ratio:.2} of before", mebibytes(self.after.resident));
        lines.push(line("after all have left", text));
        lines
    }

    fn measures(&self) -> Vec<Measure> {
        let session = || Against::Best(Best::Sessions(1));
        let bytes =
            |name: String, bytes: f64, against| Measure::lower(name, Unit::Bytes, bytes, against);
        let memory =
            |name: &str, bytes_now: u64| bytes(name.to_owned(), bytes_now as f64, Against::Memory);
        let mut measures = vec![
            memory("memory before", self.before.resident),
            memory("memory before, anonymous", self.before.anonymous),
        ];
        for step in &self.steps {
            let at = |what: &str| format!("{} sessions: {what}", step.sessions);
            let rest = step.rest_s * 1e6;
            let silence = Against::figure("the least silence", step.least_rest_s.max(1.0) * 1e6);
            measures.extend([
                memory(&at("memory"), step.memory.resident),
                memory(&at("memory, anonymous"), step.memory.anonymous),
                bytes(at("per new session"), step.bytes_per_session, session()),
                bytes(
                    at("per new session, anonymous"),
                    step.anonymous_bytes_per_session,
                    session(),
                ),
                Measure::lower(at("cores"), Unit::Cores, step.resting_cores, Against::Cores),
                Measure::lower(at("until it rested"), Unit::Microseconds, rest, silence),
            ]);
        }
        if let Some(all) = self.bytes_per_session {
            measures.push(bytes("memory per session".to_owned(), all, session()));
        }
        if let Some(anonymous) = self.anonymous_bytes_per_session {
            let name = "memory per session, anonymous".to_owned();
            measures.push(bytes(name, anonymous, session()));
        }
        if let Some(cores) = self.resting_cores_per_thousand {
            let name = "cores per 1,000 idle sessions";
            measures.push(Measure::lower(name, Unit::Cores, cores, Against::Cores));
        }
        let before = Against::figure("memory before", self.before.resident as f64);
        let after = self.after.resident as f64;
        measures.push(bytes("memory after all have left".to_owned(), after, before));
        let ratio = self.after_over_before;
        let name = "memory after all have left, over before";
        measures.push(Measure::plain(name, Plain::Number, Better::Lower, ratio));
        measures
    }

    fn warnings(&self) -> Vec<String> {
        let restless = self.steps.iter().filter(|step| !step.rested);
        restless
            .map(|step| format!("the relay never came to rest with {} sessions", step.sessions))
            .collect()
    }

    fn take_timeline(&mut self) -> Timeline {
        std::mem::take(&mut self.timeline)
    }
}

fn kibibytes(bytes: f64) -> String {
    format!("{:.2} KiB", bytes / 1024.0)
}
