//! What a system has to be able to do to be driven by this program, and how it is driven.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::{sleep, timeout};

use super::load::{self, Talk};
use super::{Contender, Load};
use crate::append::Rate;
use crate::group::random_body;
use crate::idle::rest;
use crate::limits::{DRAIN_DEADLINE, LOOK_PAUSE, SETUPS_MAX};
use crate::process::Process;
use crate::progress;

/// How often the entries are read that wait.
pub(super) const READINGS: usize = 5;

/// Entries under way while what is to wait is written.
const WAITING_IN_FLIGHT: usize = 64;

/// Groups that a silent device follows.
pub(super) const SILENT_GROUPS: usize = 3;

/// How long all that is said before the silence may take.
const SAYING_DEADLINE: Duration = Duration::from_secs(600);

/// Takes what a device has received.
pub(super) type Sink = Box<dyn FnMut(&[u8]) + Send>;

/// Ends when the system has answered a publish.
pub(super) type Answer = BoxFuture<'static, Result<()>>;

/// A system that carries messages.
#[async_trait]
pub(super) trait Peer: Send + Sync {
    /// Its name and version.
    fn name(&self) -> String;

    /// What its answer to a publish is worth.
    fn durability(&self) -> &'static str;

    fn process(&self) -> Process;

    /// A new connection, that has subscribed to these topics from now on. Its place among all
    /// devices decides the address that it comes from, where that can be chosen.
    async fn connect(
        &self,
        number: u64,
        topics: Vec<String>,
        sink: Sink,
    ) -> Result<Box<dyn Device>>;

    /// Lets a device be known that will be away, where that is necessary for anything to wait for it.
    async fn expect(&self, topic: &str) -> Result<()>;

    /// Lets it read so many messages that wait, and tells how long that took.
    async fn read_waiting(&self, topic: &str, messages: usize) -> Result<Duration>;

    async fn stop(self: Box<Self>) -> Result<()>;
}

/// A connected device; dropped, it is gone without a word.
#[async_trait]
pub(super) trait Device: Send + Sync {
    /// Sends a message.
    async fn publish(&self, topic: &str, body: Bytes) -> Result<Answer>;
}

/// The topic of a group.
pub(super) fn topic(group: usize) -> String {
    format!("sw.{group}")
}

/// The place of a program in a message about it.
pub(super) fn shown(directory: &Path) -> String {
    directory.display().to_string()
}

#[async_trait(?Send)]
impl Contender for Box<dyn Peer> {
    fn name(&self) -> String {
        self.as_ref().name()
    }

    fn durability(&self) -> &'static str {
        self.as_ref().durability()
    }

    async fn talk(&mut self, load: &Load, rate: Rate) -> Result<Talk> {
        load::talk(self.as_ref(), load, rate).await
    }

    async fn idle(&mut self, load: &Load) -> Result<(f64, f64)> {
        let process = self.process();
        let before = process.memory()?;
        let received = Arc::new(AtomicUsize::new(0));
        let mut devices: Vec<Box<dyn Device>> = Vec::new();
        let mut memory = Vec::new();
        let bar = progress::bar(load.sessions.last().map_or(0, |most| *most as u64), "devices");
        for &sessions in &load.sessions {
            let new = devices.len()..sessions;
            let come = stream::iter(new.clone())
                .map(|number| {
                    let circle = number / load.members * SILENT_GROUPS;
                    let topics = (circle..circle + SILENT_GROUPS).map(topic).collect();
                    let received = received.clone();
                    let sink = move |_: &[u8]| {
                        received.fetch_add(1, Ordering::Relaxed);
                    };
                    self.connect(number as u64, topics, Box::new(sink))
                })
                .buffered(SETUPS_MAX)
                .inspect_ok(|_| bar.inc(1))
                .try_collect::<Vec<_>>()
                .await?;
            if load.silent_body > 0 {
                let all_said = say(&come, new.start, load, &received);
                timeout(SAYING_DEADLINE, all_said).await.context("not everything came")??;
            }
            devices.extend(come);
            let rest = Duration::from_secs(load.rest);
            memory.push((sessions, rest::reach(process, rest).await?.memory));
        }
        bar.finish_and_clear();
        drop(devices);
        sleep(Duration::from_secs(load.after)).await;
        let after = process.memory()?;
        let [(few, first), .., (many, last)] = memory[..] else {
            anyhow::bail!("memory is read twice at least");
        };
        let bytes = last.resident as f64 - first.resident as f64;
        let per_session = bytes / (many - few) as f64;
        Ok((per_session, after.resident as f64 / before.resident as f64))
    }

    async fn catch_up(&mut self, load: &Load) -> Result<Vec<f64>> {
        let mut times_ms = Vec::with_capacity(READINGS);
        for reading in 0..READINGS {
            let topic = format!("sw.waiting{reading}");
            self.expect(&topic).await?;
            let writer = self.connect(0, Vec::new(), Box::new(|_| {})).await?;
            let body = Bytes::from(random_body(load.body)?);
            let mut waiting = std::pin::pin!(
                stream::iter(0..load.entries)
                    .then(|_| writer.publish(&topic, body.clone()))
                    .try_buffer_unordered(WAITING_IN_FLIGHT)
            );
            while waiting.try_next().await?.is_some() {}
            let read = self.read_waiting(&topic, load.entries);
            let time = timeout(DRAIN_DEADLINE, read).await.context("not everything came")??;
            times_ms.push(time.as_secs_f64() * 1000.0);
        }
        Ok(times_ms)
    }

    async fn stop(self: Box<Self>) -> Result<()> {
        (*self).stop().await
    }
}

/// Each device says something in the first of its groups, and everybody has what was said. The number of
/// the first device is its place among all.
async fn say(
    devices: &[Box<dyn Device>],
    first: usize,
    load: &Load,
    received: &AtomicUsize,
) -> Result<()> {
    let before = received.load(Ordering::Relaxed);
    let body = Bytes::from(random_body(load.silent_body)?);
    let saying = stream::iter(devices.iter().enumerate()).map(|(place, device)| {
        let topic = topic((first + place) / load.members * SILENT_GROUPS);
        let body = body.clone();
        async move { device.publish(&topic, body).await?.await }
    });
    saying.buffer_unordered(SETUPS_MAX).try_collect::<()>().await?;
    // These systems give everybody what is said in a group, the one who says it too.
    let copies = devices.len() * load.members;
    while received.load(Ordering::Relaxed) - before < copies {
        sleep(LOOK_PAUSE).await;
    }
    Ok(())
}

/// Counts messages, and wakes whoever waits for the last of them.
pub(super) struct Counter {
    begin: Instant,
    received: usize,
    wanted: usize,
    done: Option<tokio::sync::oneshot::Sender<Duration>>,
}

impl Counter {
    /// Time counts from now.
    pub(super) fn new(wanted: usize) -> (Self, tokio::sync::oneshot::Receiver<Duration>) {
        let (done, all) = tokio::sync::oneshot::channel();
        (Self { begin: Instant::now(), received: 0, wanted, done: Some(done) }, all)
    }

    pub(super) fn count(&mut self) {
        self.received += 1;
        if self.received == self.wanted
            && let Some(done) = self.done.take()
        {
            // Who has stopped waiting does not want to know.
            let _ = done.send(self.begin.elapsed());
        }
    }
}
