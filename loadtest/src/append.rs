//! How many entries a second become durable, and how soon: many small groups, a few entries of each
//! under way.
//!
//! Without `--rate` every group always has `--in-flight` entries under way: the relay is saturated,
//! and latency is how long the queue is. With `--rate` entries are due at fixed times, whatever the
//! relay does, and latency counts from when an entry was due: a relay that stalls cannot hide it.
//!
//! Everything that was answered is checked afterwards, by chain, entry for entry: by every receiver,
//! or, where none was connected, by one member of each group that comes back.

mod check;
mod member;
mod pace;
mod setup;
mod tally;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use sealwire_protocol::Head;
use sealwire_protocol::limits::{BODY_BYTES_MAX, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_REQUESTS_MAX};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use self::member::{Done, Phase};
use self::tally::{Tally, Window};
use crate::crowd::Crowd;
use crate::latency::Percentiles;
use crate::limits::{DRAIN_DEADLINE, MEMBERS_MAX, SAMPLE_PAUSE, SECONDS_MAX};
use crate::process::{Cpu, Memory, Process, machine_busy};
use crate::progress;
use crate::reader::Faults;
use crate::report::{self, Figures, Line, line, memory, whole};

/// What `append` is asked to do.
#[derive(Args, Serialize)]
pub(crate) struct Arguments {
    /// The relay, on this machine.
    #[arg(long, default_value = "ws://127.0.0.1:4000")]
    url: String,
    /// Process id of the relay, to see its memory and processor time.
    #[arg(long)]
    pid: Option<u32>,
    #[arg(long, default_value_t = 250)]
    groups: usize,
    /// Members of each group.
    #[arg(long, default_value_t = 4)]
    members: usize,
    /// Members of each group that send.
    #[arg(long, default_value_t = 1)]
    senders: usize,
    /// Length of each body, in bytes.
    #[arg(long, default_value_t = 1024)]
    body: usize,
    /// Entries of each sender that may be under way: all the time without a rate, at most with one.
    #[arg(long, default_value_t = 8)]
    in_flight: usize,
    /// Entries per second that are due in all groups together; without it, as many as the relay takes.
    #[arg(long)]
    rate: Option<u32>,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Seconds of the same load before that.
    #[arg(long, default_value_t = 2)]
    warm_up: u64,
    /// All members are connected and subscribed, the senders too; otherwise the senders alone are
    /// connected, and nobody is subscribed.
    #[arg(long)]
    receivers: bool,
    /// Entries that a receiver reads before it acks them; 0 for never.
    #[arg(long, default_value_t = 32)]
    ack_every: u64,
}

/// What `append` has seen.
#[derive(Serialize)]
pub(crate) struct Measured {
    /// Entries that were answered as durable in the time that was measured, per second.
    appended_per_second: f64,
    /// Entries that reached a member in that time, per second, without the senders' own.
    delivered_per_second: f64,
    /// From when an entry was due until it was answered as durable.
    push_to_appended: Percentiles,
    /// From when an entry was due until a member had it.
    push_to_deliver: Option<Percentiles>,
    /// Entries that were answered as durable, warm-up and end included.
    appended: u64,
    /// Copies of them that were read by members and found whole.
    checked: u64,
    faults: Faults,
    /// Answers that asked to wait and send again.
    refused: u64,
    /// Entries that were due and not sent before the end.
    unsent: u64,
    relay: Option<Relay>,
    /// Cores that this load tester used: on a small machine, they are the relay's loss.
    tester_cores: f64,
    /// Cores that everything else used, the relay's database included; with a relay process to tell
    /// them apart from.
    other_cores: Option<f64>,
}

/// The relay's process while it was measured.
#[derive(Serialize)]
struct Relay {
    cores_user: f64,
    cores_system: f64,
    memory_before: Memory,
    memory_most: Memory,
}

pub(crate) async fn run(arguments: &Arguments) -> Result<Measured> {
    check_arguments(arguments)?;
    let process = arguments.pid.map(Process::find).transpose().context("the relay's process")?;
    let memory_before = process.map(Process::memory).transpose()?;
    let crowd = Arc::new(Crowd::new(&arguments.url, arguments.groups * arguments.members)?);
    let mut groups = setup::make_groups(arguments, &crowd).await?;

    let tally = Arc::new(Tally::new(arguments.warm_up, arguments.seconds));
    let (phase_sender, phase) = watch::channel(Phase::Run);
    let (done_sender, mut done) = mpsc::channel(arguments.groups * arguments.members);
    let mut members = JoinSet::new();
    let mut ticks = Vec::new();
    for (index, group) in groups.iter_mut().enumerate() {
        for seat in group.connected.drain(..) {
            let (member, tick) =
                member::Member::new(arguments, index, seat, tally.clone(), phase.clone())?;
            ticks.extend(tick);
            members.spawn(Box::pin(member.run(done_sender.clone())));
        }
    }
    drop(done_sender);
    let senders = arguments.groups * arguments.senders;
    tally.begin();
    let pacer = arguments.rate.map(|rate| pace::start(rate, ticks, &tally));

    let window = watch_load(arguments, &tally, process, &mut members).await?;
    phase_sender.send_replace(Phase::Drain);
    let heads = timeout(DRAIN_DEADLINE, answered(&mut done, senders, arguments.groups))
        .await
        .map_err(|_| anyhow!("the relay has not answered everything in time"))?;
    phase_sender.send_replace(Phase::Finish(Arc::new(heads.clone())));
    let (mut faults, mut checked) = (Faults::default(), 0);
    while let Some(member) = members.join_next().await {
        let read = member.context("a member has panicked")??;
        faults.add(read.faults);
        checked += read.delivered;
    }
    if let Some(pacer) = pacer {
        pacer.join().map_err(|_| anyhow!("the pacer has panicked"))?;
    }
    if !arguments.receivers {
        let read = check::read_again(&crowd, groups, &heads).await?;
        faults.add(read.faults);
        checked += read.delivered;
    }
    Ok(measured(arguments, &tally, window, memory_before, Checked { faults, checked }))
}

fn check_arguments(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.groups > 0, "at least one group");
    ensure!((2..=MEMBERS_MAX).contains(&arguments.members), "2 to {MEMBERS_MAX} members");
    let most = if arguments.receivers { arguments.members } else { arguments.members - 1 };
    ensure!(
        (1..=most).contains(&arguments.senders),
        "at least one sender, and without --receivers one member that does not send"
    );
    ensure!(
        (tally::STAMP_BYTES..=BODY_BYTES_MAX).contains(&arguments.body),
        "8 to {BODY_BYTES_MAX} bytes"
    );
    ensure!(
        (1..=IN_FLIGHT_REQUESTS_MAX).contains(&arguments.in_flight)
            && arguments.in_flight * arguments.body <= IN_FLIGHT_BYTES_MAX,
        "a relay lets a session have {IN_FLIGHT_REQUESTS_MAX} requests and {IN_FLIGHT_BYTES_MAX} \
         bytes under way"
    );
    ensure!(arguments.rate != Some(0), "a rate of nothing is no load");
    ensure!((1..=SECONDS_MAX).contains(&arguments.seconds), "1 to {SECONDS_MAX} seconds");
    ensure!(arguments.warm_up <= SECONDS_MAX, "at most {SECONDS_MAX} seconds of warm-up");
    Ok(())
}

/// The processes while they were measured.
#[derive(Clone, Copy)]
struct Observed {
    elapsed: Duration,
    relay: Option<Cpu>,
    tester: Cpu,
    /// Seconds.
    machine: f64,
    memory_most: Option<Memory>,
}

/// Watches warm-up and measured time go by. A member that ends before them ends the run.
async fn watch_load(
    arguments: &Arguments,
    tally: &Tally,
    process: Option<Process>,
    members: &mut JoinSet<Result<Done>>,
) -> Result<Observed> {
    let Window { begin, end } = tally.window();
    let bar = progress::bar(arguments.warm_up + arguments.seconds, "seconds of load");
    let mut at_begin = None;
    let mut memory_most: Option<Memory> = None;
    loop {
        tokio::select! {
            () = sleep(SAMPLE_PAUSE) => {}
            ended = members.join_next() => match ended {
                Some(Ok(Err(error))) => return Err(error),
                Some(_) | None => bail!("a member has ended before its time"),
            },
        }
        let now = tally.now();
        bar.set_position(now / 1_000_000_000);
        if let Some(memory) = process.map(Process::memory).transpose()? {
            let most = memory_most.get_or_insert(memory);
            if memory.resident > most.resident {
                *most = memory;
            }
        }
        if now < begin {
            continue;
        }
        let relay = process.map(Process::cpu).transpose()?;
        let (tester, machine) = (Process::own().cpu()?, machine_busy()?);
        let (then, relay_then, tester_then, machine_then) =
            *at_begin.get_or_insert((now, relay, tester, machine));
        if now >= end {
            bar.finish_and_clear();
            return Ok(Observed {
                elapsed: Duration::from_nanos(now - then),
                relay: relay.zip(relay_then).map(|(now, then)| now.since(then)),
                tester: tester.since(tester_then),
                machine: machine - machine_then,
                memory_most,
            });
        }
    }
}

/// The head of each group, once every sender has all its answers.
async fn answered(
    done: &mut mpsc::Receiver<(usize, Head)>,
    senders: usize,
    groups: usize,
) -> Vec<Head> {
    let mut heads = vec![Head::NONE; groups];
    for _ in 0..senders {
        let Some((group, head)) = done.recv().await else {
            // A member has failed; whoever joins it learns why.
            break;
        };
        if head.seq > heads[group].seq {
            heads[group] = head;
        }
    }
    heads
}

#[derive(Clone, Copy)]
struct Checked {
    faults: Faults,
    checked: u64,
}

fn measured(
    arguments: &Arguments,
    tally: &Tally,
    observed: Observed,
    memory_before: Option<Memory>,
    checked: Checked,
) -> Measured {
    let seconds = arguments.seconds as f64;
    let counts = tally.counts();
    let relay = observed.relay.zip(memory_before).zip(observed.memory_most);
    Measured {
        appended_per_second: counts.appended_in_window as f64 / seconds,
        delivered_per_second: counts.delivered_in_window as f64 / seconds,
        push_to_appended: tally.push_to_appended(),
        push_to_deliver: arguments.receivers.then(|| tally.push_to_deliver()),
        appended: counts.appended,
        checked: checked.checked,
        faults: checked.faults,
        refused: counts.refused,
        unsent: counts.unsent,
        relay: relay.map(|((cpu, memory_before), memory_most)| Relay {
            cores_user: cpu.user / observed.elapsed.as_secs_f64(),
            cores_system: cpu.system / observed.elapsed.as_secs_f64(),
            memory_before,
            memory_most,
        }),
        tester_cores: observed.tester.cores(observed.elapsed),
        other_cores: observed.relay.map(|relay| {
            let known = relay.cores(observed.elapsed) + observed.tester.cores(observed.elapsed);
            (observed.machine / observed.elapsed.as_secs_f64() - known).max(0.0)
        }),
    }
}

impl Figures for Measured {
    fn lines(&self) -> Vec<Line> {
        let faults = &self.faults;
        let mut lines = vec![
            line("durable appends", report::rate(self.appended_per_second)),
            line("deliveries", report::rate(self.delivered_per_second)),
            line("push to Appended", report::percentiles(&self.push_to_appended)),
        ];
        if let Some(deliver) = &self.push_to_deliver {
            lines.push(line("push to deliver", report::percentiles(deliver)));
        }
        lines.push(line(
            "checked",
            format!(
                "{} entries, {} copies: {} lost, {} duplicate, {} out of order, {} altered",
                whole(self.appended),
                whole(self.checked),
                faults.lost,
                faults.duplicate,
                faults.disorder,
                faults.altered
            ),
        ));
        lines.push(line(
            "held back",
            format!("{} answers asked to wait, {} entries not sent", self.refused, self.unsent),
        ));
        if let Some(relay) = &self.relay {
            lines.push(line(
                "relay",
                format!(
                    "{:.2} cores user, {:.2} system; at most {}",
                    relay.cores_user,
                    relay.cores_system,
                    memory(relay.memory_most)
                ),
            ));
        }
        lines.push(line("load tester", format!("{:.2} cores", self.tester_cores)));
        if let Some(other) = self.other_cores {
            lines.push(line("everything else", format!("{other:.2} cores")));
        }
        lines
    }

    fn broken_promise(&self) -> Option<String> {
        self.faults.any().then(|| "the relay has broken its promise: see `checked`".to_owned())
    }
}
