//! Phones that speak HTTP and listen to event streams, as the Totals app does.
//!
//! In each group one phone posts payloads at fixed times and the others listen, and ack what came.
//! Latency counts from when a payload was due. HTTP has no chain: a payload carries its number in its
//! group, so that what is lost, doubled or out of order is counted all the same.

pub(crate) mod http;
mod measured;
mod start;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use clap::{ArgAction, Args};
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use self::http::{Answer, Calls};
use self::measured::Measured;
use self::start::{Started, Unread};
use crate::ceiling::Shape;
use crate::crowd::on_this_machine;
use crate::frame::Measurement;
use crate::frame::relay::Relay;
use crate::frame::sampler::Sampler;
use crate::group::random_body;
use crate::limits::{DEVICES_MAX, DRAIN_DEADLINE, LOOK_PAUSE, SETUPS_MAX};
use crate::reader::Faults;
use crate::tally::{Tally, Unsaid};
use crate::{pace, progress};

/// Length of what a payload begins with: when it was due, and its number.
const HEAD_BYTES: usize = 16;

/// Longest body of a payload, in bytes: half of its length in hex.
const BODY_BYTES_MAX: usize = 256 * 1024;

/// Most members of a group of the app.
const GROUP_MEMBERS_MAX: usize = 64;

/// Most groups of a phone, as a relay allows by default.
const SHARED_MAX: usize = 6;

/// Longest run, in seconds: a token is good for ten minutes, and this program does not renew it.
const TOKEN_SECONDS: u64 = 500;

/// What `phones` is asked to do.
#[derive(Args, Serialize)]
pub(crate) struct Arguments {
    #[arg(long, default_value_t = 100)]
    groups: usize,
    /// Members of each group, of whom one posts.
    #[arg(long, default_value_t = 4)]
    members: usize,
    /// Length of each payload, in bytes; twice as long in hex.
    #[arg(long, default_value_t = 512)]
    body: usize,
    /// Payloads per second that are due in all groups together.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Seconds of the same load before that.
    #[arg(long, default_value_t = 2)]
    warm_up: u64,
    /// Payloads that a phone takes before it acks them.
    #[arg(long, default_value_t = 8)]
    ack_every: usize,
    /// Before that, all phones start at the same moment, as the app does: each logs in three times,
    /// asks for everything twice, and opens a stream for each group and three more.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false")]
    start: bool,
    /// Groups that the members of a group share. One posts in the first of them.
    #[arg(long, default_value_t = 1)]
    shared: usize,
}

impl Measurement for Arguments {
    const NAME: &'static str = "phones";

    type Measured = Measured;

    fn shape(&self) -> Shape {
        Shape::talk(self.groups, self.members, self.body, 1)
    }

    fn connections(&self) -> usize {
        self.groups * self.members * self.connections_each()
    }

    fn check(&self) -> Result<()> {
        ensure!(
            (2..=GROUP_MEMBERS_MAX).contains(&self.members),
            "2 to {GROUP_MEMBERS_MAX} members"
        );
        ensure!((1..=SHARED_MAX).contains(&self.shared), "1 to {SHARED_MAX} shared groups");
        let (phones, most) = (self.groups * self.members, DEVICES_MAX / self.connections_each());
        ensure!((1..=most).contains(&phones), "1 to {most} phones");
        ensure!((HEAD_BYTES..=BODY_BYTES_MAX).contains(&self.body), "16 to {BODY_BYTES_MAX} bytes");
        ensure!(self.rate > 0 && self.ack_every > 0, "a rate, and acks");
        ensure!(
            self.seconds > 0 && self.seconds + self.warm_up <= TOKEN_SECONDS,
            "at most {TOKEN_SECONDS} seconds: a token is good for ten minutes"
        );
        Ok(())
    }

    async fn measure(&self, relay: &mut Relay) -> Result<Measured> {
        let url = on_this_machine(&relay.url)?;
        let address = tokio::net::lookup_host(url.authority()).await?.find(SocketAddr::is_ipv4);
        let address = address.filter(|it| it.ip().is_loopback()).context("an IPv4 address")?;
        let before = relay.process().and_then(|process| process.memory().ok());
        let circles = make_circles(self, address).await?;
        let (started, groups, _unread) = Box::pin(listen(self, circles)).await?;
        let after = relay.process().and_then(|process| process.memory().ok());
        let mut measured = Box::pin(talk(self, relay, groups)).await?;
        measured.started = started;
        measured.connections = self.connections_each();
        let phones = (self.groups * self.members) as f64;
        measured.bytes_per_phone = before
            .zip(after)
            .map(|(before, after)| (after.resident as f64 - before.resident as f64) / phones);
        Ok(measured)
    }
}

impl Arguments {
    /// Connections of a phone: two; with a start, one for each client object and stream.
    fn connections_each(&self) -> usize {
        if self.start { self.shared + 7 } else { 2 }
    }
}

/// Phones that share groups, before they listen.
struct Circle {
    groups: Arc<Vec<String>>,
    phones: Vec<Calls>,
}

/// A group of phones; the first one posts.
struct Group {
    id: String,
    poster: Calls,
    listeners: Vec<(Calls, Incoming)>,
}

async fn make_circles(arguments: &Arguments, relay: SocketAddr) -> Result<Vec<Circle>> {
    let bar = progress::bar(arguments.groups as u64, "groups of phones");
    let circles = stream::iter(0..arguments.groups)
        .map(|number| Box::pin(make_circle(arguments, relay, number)))
        .buffer_unordered(SETUPS_MAX)
        .inspect_ok(|_| bar.inc(1))
        .try_collect()
        .await?;
    bar.finish_and_clear();
    Ok(circles)
}

async fn make_circle(arguments: &Arguments, relay: SocketAddr, number: usize) -> Result<Circle> {
    let first = (number * arguments.members) as u64;
    let mut poster = http::Phone::enter(relay, first).await?;
    let mut groups = Vec::with_capacity(arguments.shared);
    for _ in 0..arguments.shared {
        let made = poster.insist(Method::POST, "/groups", json!({})).await?;
        groups.push(made["id"].as_str().context("a group has an id")?.to_owned());
    }
    let mut phones = vec![poster];
    for member in 1..arguments.members as u64 {
        let mut phone = http::Phone::enter(relay, first + member).await?;
        for group in &groups {
            phone.insist(Method::POST, &format!("/groups/{group}/join"), json!({})).await?;
        }
        phones.push(phone);
    }
    Ok(Circle { groups: Arc::new(groups), phones })
}

/// Has all phones but the posters listen, or all of them start.
async fn listen(
    arguments: &Arguments,
    circles: Vec<Circle>,
) -> Result<(Option<Started>, Vec<Group>, Option<Unread>)> {
    let (started, streams, unread) = if arguments.start {
        let phones = circles.iter().flat_map(|circle| {
            circle.phones.iter().map(|calls| (calls.phone().clone(), circle.groups.clone()))
        });
        let (started, all, mut unread) = start::all_at_once(phones.collect()).await?;
        let mut streams = Vec::with_capacity(all.len());
        for (number, stream) in all.into_iter().enumerate() {
            // Those who post have a stream as well, and nothing comes on it.
            if number % arguments.members == 0 {
                unread.add(stream);
            } else {
                streams.push(stream);
            }
        }
        (Some(started), streams, Some(unread))
    } else {
        let phones = circles.iter().flat_map(|circle| circle.phones.iter().skip(1));
        let opening = phones.map(|calls| Box::pin(calls.phone().listen("/groups/pending/stream")));
        (None, stream::iter(opening).buffered(SETUPS_MAX).try_collect().await?, None)
    };
    let mut streams = streams.into_iter();
    let mut groups = Vec::with_capacity(circles.len());
    for Circle { groups: ids, phones } in circles {
        let mut phones = phones.into_iter();
        let poster = phones.next().context("a circle has members")?;
        let id = ids.first().context("a circle has a group")?.clone();
        groups.push(Group { id, poster, listeners: phones.zip(streams.by_ref()).collect() });
    }
    Ok((started, groups, unread))
}

async fn talk(arguments: &Arguments, relay: &Relay, groups: Vec<Group>) -> Result<Measured> {
    let tally = Arc::new(Tally::new(arguments.warm_up, arguments.seconds));
    let (finish, finished) = watch::channel(None::<Arc<Vec<u64>>>);
    let (mut posters, mut listeners, mut ticks) = (JoinSet::new(), JoinSet::new(), Vec::new());
    for (number, group) in groups.into_iter().enumerate() {
        let (tick, due) = mpsc::channel(pace::TICKS_MAX);
        ticks.push(tick);
        let filler = random_body(arguments.body - HEAD_BYTES)?;
        let posting = post(number, group.poster, group.id, filler, due, tally.clone());
        posters.spawn(Box::pin(posting));
        for (calls, stream) in group.listeners {
            let listener = Listener {
                group: number,
                calls,
                ack_every: arguments.ack_every,
                tally: tally.clone(),
                seen: Vec::new(),
                last: 0,
                received: 0,
                faults: Faults::default(),
            };
            listeners.spawn(Box::pin(listener.run(stream, finished.clone())));
        }
    }
    tally.begin();
    let length = Duration::from_secs(arguments.warm_up + arguments.seconds);
    let sampler = Sampler::begin(relay, Some(tally.clone()), length);
    let pacer = pace::start(arguments.rate, ticks, &tally);
    let mut posted = vec![0; arguments.groups];
    let bar = progress::bar(length.as_secs(), "seconds of load");
    while !posters.is_empty() {
        bar.set_position(tally.now() / 1_000_000_000);
        tokio::select! {
            () = sleep(LOOK_PAUSE) => {}
            Some(ended) = posters.join_next() => {
                let (group, count) = ended.context("a phone has panicked")??;
                posted[group] = count;
            }
            Some(ended) = listeners.join_next() => {
                ended.context("a phone has panicked")??;
                bail!("an event stream has ended before its time");
            }
        }
    }
    bar.finish_and_clear();
    pacer.join().map_err(|_| anyhow!("the pacer has panicked"))?;
    tally.give_up(tally.now(), 1, arguments.members - 1);
    finish.send_replace(Some(Arc::new(posted)));
    let mut faults = Faults::default();
    let mut checked = 0;
    while let Some(ended) = listeners.join_next().await {
        let (found, received) = ended.context("a phone has panicked")??;
        faults.add(found);
        checked += received;
    }
    let timeline = sampler.end()?;
    let server = timeline
        .between(arguments.warm_up as f64, length.as_secs_f64())
        .map(|server| server.with_database_apart(relay.has_database_apart()));
    Ok(Measured::new(arguments, &tally, faults, checked, server, timeline))
}

/// Posts what is due, and gives how many payloads were answered.
async fn post(
    group: usize,
    mut calls: Calls,
    id: String,
    filler: Vec<u8>,
    mut due: mpsc::Receiver<u64>,
    tally: Arc<Tally>,
) -> Result<(usize, u64)> {
    let path = format!("/groups/{id}/payloads");
    let mut number: u64 = 0;
    while let Some(due) = due.recv().await {
        number += 1;
        let body = [&due.to_be_bytes()[..], &number.to_be_bytes()[..], &filler].concat();
        let body = json!({ "encryptedBlob": hex::encode(body), "kind": "member_meta" });
        while let Answer::Later(wait) = calls.call(Method::POST, &path, &body).await? {
            tally.refused();
            sleep(wait).await;
        }
        let mut unsaid = Unsaid::default();
        tally.appended(&mut unsaid, due, tally.now());
        tally.add(&mut unsaid);
    }
    Ok((group, number))
}

/// A phone that listens.
struct Listener {
    group: usize,
    calls: Calls,
    ack_every: usize,
    tally: Arc<Tally>,
    /// Ids of what was taken and not acked.
    seen: Vec<Value>,
    /// Number of the newest payload.
    last: u64,
    received: u64,
    faults: Faults,
}

impl Listener {
    /// Takes events until everything has come that was answered. Gives what was wrong, and how many
    /// payloads came.
    async fn run(
        mut self,
        mut stream: Incoming,
        mut finished: watch::Receiver<Option<Arc<Vec<u64>>>>,
    ) -> Result<(Faults, u64)> {
        let mut text = Vec::new();
        let mut wanted = None;
        let mut deadline = Instant::now() + DRAIN_DEADLINE;
        while wanted.is_none_or(|wanted| self.received < wanted) {
            tokio::select! {
                frame = stream.frame() => {
                    let frame = frame.context("an event stream has ended")??;
                    if let Ok(data) = frame.into_data() {
                        self.take(&mut text, &data).await?;
                    }
                }
                _ = finished.changed(), if wanted.is_none() => {
                    wanted = finished.borrow().as_ref().map(|posted| posted[self.group]);
                    deadline = Instant::now() + DRAIN_DEADLINE;
                }
                () = tokio::time::sleep_until(deadline), if wanted.is_some() => break,
            }
        }
        self.faults.lost = wanted.unwrap_or_default().saturating_sub(self.received);
        // What is acked late is acked all the same.
        self.ack().await?;
        Ok((self.faults, self.received))
    }

    /// Takes bytes of the stream; an event ends with an empty line.
    async fn take(&mut self, text: &mut Vec<u8>, data: &Bytes) -> Result<()> {
        text.extend_from_slice(data);
        while let Some(end) = text.windows(2).position(|pair| pair == b"\n\n") {
            let event: Vec<u8> = text.drain(..end + 2).collect();
            let now = self.tally.now();
            let data =
                event.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"data: "));
            // A comment is a sign of life.
            if let Some(data) = data {
                self.payload(&serde_json::from_slice(data).context("an event is JSON")?, now)?;
            }
        }
        if self.seen.len() >= self.ack_every {
            self.ack().await?;
        }
        Ok(())
    }

    fn payload(&mut self, payload: &Value, now: u64) -> Result<()> {
        let blob = payload["encryptedBlob"].as_str().context("a payload has a blob")?;
        let mut head = [0; HEAD_BYTES];
        let hex = blob.get(..HEAD_BYTES * 2).context("a payload of another")?;
        hex::decode_to_slice(hex, &mut head).map_err(|error| anyhow!("a blob: {error}"))?;
        let (due, number) = head.split_at(8);
        let number = u64::from_be_bytes(number.try_into()?);
        match number {
            known if known <= self.last => self.faults.duplicate += 1,
            next => {
                self.received += 1;
                self.faults.disorder += u64::from(next != self.last + 1);
                self.last = next;
            }
        }
        let mut unsaid = Unsaid::default();
        self.tally.delivered(&mut unsaid, due, now, false);
        self.tally.add(&mut unsaid);
        self.seen.push(payload["id"].clone());
        Ok(())
    }

    async fn ack(&mut self) -> Result<()> {
        if self.seen.is_empty() {
            return Ok(());
        }
        let ids = json!({ "payloadIds": std::mem::take(&mut self.seen) });
        let ack = self.calls.insist(Method::POST, "/payloads/ack", ids);
        timeout(DRAIN_DEADLINE, ack).await.context("an ack has no answer")??;
        Ok(())
    }
}
