//! Groups that talk through a peer: as `append` does with a relay, as far as the peer can.
//!
//! A body begins with the nanosecond at which it was due and its number in its group, so that lost and
//! doubled ones are seen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::Load;
use super::peer::{Device, Peer, Sink, topic};
use crate::append::Rate;
use crate::group::random_body;
use crate::latency::Percentiles;
use crate::limits::{DRAIN_DEADLINE, LOOK_PAUSE, SETUPS_MAX};
use crate::process::Process;
use crate::tally::{Tally, Unsaid};
use crate::{pace, progress};

/// Length of what a body begins with.
pub(super) const HEAD_BYTES: usize = 16;

/// Seconds of the same load before anything counts.
pub(super) const WARM_UP: u64 = 2;

/// What a system did under load.
#[derive(Serialize)]
pub(super) struct Talk {
    pub(super) rate: Rate,
    pub(super) answered_per_second: f64,
    pub(super) delivered_per_second: f64,
    pub(super) push_to_answer: Percentiles,
    pub(super) push_to_deliver: Percentiles,
    /// Copies of answered messages that did not come, and that came again.
    pub(super) lost: u64,
    pub(super) duplicate: u64,
    /// Messages that were due and never sent; they count in the latencies as long as they waited.
    pub(super) unsent: u64,
    /// Cores that the system used.
    pub(super) cores: f64,
}

/// What all receivers have found.
#[derive(Default)]
struct Found {
    received: AtomicU64,
    duplicate: AtomicU64,
}

/// As many publishes as the peer takes, or so many a second.
pub(super) async fn talk(peer: &dyn Peer, load: &Load, rate: Rate) -> Result<Talk> {
    let tally = Arc::new(Tally::new(WARM_UP, load.seconds));
    let found = Arc::new(Found::default());
    let bar = progress::bar((load.groups * load.members) as u64, "members");
    let devices: Vec<Box<dyn Device>> = stream::iter(0..load.groups * load.members)
        .map(|number| {
            let receives = !number.is_multiple_of(load.members);
            let topics = if receives { vec![topic(number / load.members)] } else { Vec::new() };
            peer.connect(number as u64, topics, sink(tally.clone(), found.clone()))
        })
        .buffered(SETUPS_MAX)
        .inspect_ok(|_| bar.inc(1))
        .try_collect()
        .await?;
    bar.finish_and_clear();

    let over = Arc::new(AtomicBool::new(false));
    let (mut senders, mut receivers, mut ticks) = (JoinSet::new(), Vec::new(), Vec::new());
    for (number, device) in devices.into_iter().enumerate() {
        if !number.is_multiple_of(load.members) {
            receivers.push(device);
            continue;
        }
        let due = rate.per_second().map(|_| {
            let (sender, due) = mpsc::channel(pace::TICKS_MAX);
            ticks.push(sender);
            due
        });
        let filler = Bytes::from(random_body(load.body - HEAD_BYTES)?);
        let topic = topic(number / load.members);
        let sender = Sender { device, topic, filler, in_flight: load.in_flight, due };
        senders.spawn(sender.run(tally.clone(), over.clone()));
    }
    tally.begin();
    let pacer = rate.per_second().map(|rate| pace::start(rate, ticks, &tally));
    let cores = watch(&tally, peer.process(), load.seconds, &mut senders).await?;
    over.store(true, Ordering::Relaxed);
    while let Some(sender) = senders.join_next().await {
        sender.context("a sender has panicked")??;
    }
    if let Some(pacer) = pacer {
        pacer.join().map_err(|_| anyhow!("the pacer has panicked"))?;
    }
    tally.give_up(tally.now(), 1, load.members - 1);

    let copies = tally.counts().appended * (load.members as u64 - 1);
    let deadline = Instant::now() + DRAIN_DEADLINE;
    while found.received.load(Ordering::Relaxed) < copies && Instant::now() < deadline {
        sleep(LOOK_PAUSE).await;
    }
    drop(receivers);
    let counts = tally.counts();
    Ok(Talk {
        rate,
        unsent: counts.unsent,
        answered_per_second: counts.appended_in_window as f64 / load.seconds as f64,
        delivered_per_second: counts.delivered_in_window as f64 / load.seconds as f64,
        push_to_answer: tally.push_to_appended(),
        push_to_deliver: tally.push_to_deliver(),
        lost: copies.saturating_sub(found.received.load(Ordering::Relaxed)),
        duplicate: found.duplicate.load(Ordering::Relaxed),
        cores,
    })
}

/// Cores that the process uses in the time that is measured.
async fn watch(
    tally: &Tally,
    process: Process,
    seconds: u64,
    senders: &mut JoinSet<Result<Box<dyn Device>>>,
) -> Result<f64> {
    let window = tally.window();
    let bar = progress::bar(WARM_UP + seconds, "seconds of load");
    let mut at_begin = None;
    while tally.now() < window.end {
        tokio::select! {
            () = sleep(LOOK_PAUSE) => {}
            Some(ended) = senders.join_next() => {
                ended.context("a sender has panicked")??;
                return Err(anyhow!("a sender has ended before its time"));
            }
        }
        if tally.now() >= window.begin && at_begin.is_none() {
            at_begin = Some((process.cpu()?, Instant::now()));
        }
        bar.set_position(tally.now() / 1_000_000_000);
    }
    bar.finish_and_clear();
    let (cpu, begin) = at_begin.context("no time was measured")?;
    Ok(process.cpu()?.since(cpu).cores(begin.elapsed()))
}

fn sink(tally: Arc<Tally>, found: Arc<Found>) -> Sink {
    let mut last = 0;
    Box::new(move |body| {
        let mut unsaid = Unsaid::default();
        tally.delivered(&mut unsaid, body, tally.now(), false);
        tally.add(&mut unsaid);
        let number = body.get(8..HEAD_BYTES).and_then(<[u8]>::first_chunk);
        let number = number.map_or(0, |bytes| u64::from_be_bytes(*bytes));
        if number > last {
            last = number;
            found.received.fetch_add(1, Ordering::Relaxed);
        } else {
            found.duplicate.fetch_add(1, Ordering::Relaxed);
        }
    })
}

/// The one of a group that talks.
struct Sender {
    device: Box<dyn Device>,
    topic: String,
    filler: Bytes,
    in_flight: usize,
    /// When messages are due; none if one always is.
    due: Option<mpsc::Receiver<u64>>,
}

impl Sender {
    /// Talks until it is over, and waits for all answers. Gives back the device, to be kept as long as
    /// the others need.
    async fn run(mut self, tally: Arc<Tally>, over: Arc<AtomicBool>) -> Result<Box<dyn Device>> {
        let room = Arc::new(Semaphore::new(self.in_flight));
        let failed = Arc::new(AtomicBool::new(false));
        let mut number = 0_u64;
        while !over.load(Ordering::Relaxed) && !failed.load(Ordering::Relaxed) {
            let place = room.clone().acquire_owned().await?;
            let due = match &mut self.due {
                None => tally.now(),
                Some(due) => match due.recv().await {
                    Some(due) => due,
                    // The pacer has nothing more to tell.
                    None => break,
                },
            };
            number += 1;
            let mut body = BytesMut::with_capacity(HEAD_BYTES + self.filler.len());
            body.put_u64(due);
            body.put_u64(number);
            body.put_slice(&self.filler);
            let answer = self.device.publish(&self.topic, body.freeze()).await?;
            let (tally, failed) = (tally.clone(), failed.clone());
            tokio::spawn(async move {
                if answer.await.is_ok() {
                    let mut unsaid = Unsaid::default();
                    tally.appended(&mut unsaid, due, tally.now());
                    tally.add(&mut unsaid);
                } else {
                    failed.store(true, Ordering::Relaxed);
                }
                drop(place);
            });
        }
        let all = u32::try_from(self.in_flight)?;
        let answered = tokio::time::timeout(DRAIN_DEADLINE, room.acquire_many(all));
        drop(answered.await.context("a message has no answer")??);
        anyhow::ensure!(!failed.load(Ordering::Relaxed), "a message was refused");
        if let Some(due) = &mut self.due {
            // What is not told any more is counted by whoever tells.
            due.close();
            while let Some(due) = due.recv().await {
                tally.never_sent(due);
            }
        }
        while !over.load(Ordering::Relaxed) {
            sleep(LOOK_PAUSE).await;
        }
        Ok(self.device)
    }
}
