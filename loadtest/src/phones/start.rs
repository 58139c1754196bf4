//! The start of an app, of all phones at the same moment, as after a break in a network.
//!
//! The app has two client objects that ask for everything and one that says where its doorbell is; each
//! proves the key anew. It opens two streams of changes, one of all payloads, and one of each group.
//! Calls are timed one by one, from the request to the end of its answer, and whatever the relay asks to
//! wait is part of it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures_util::future::{try_join_all, try_join3};
use http_body_util::BodyExt;
use hyper::Method;
use hyper::body::Incoming;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::Barrier;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::http::{Calls, Phone};
use crate::ceiling::Best;
use crate::latency::{Latencies, Percentiles, Point};
use crate::report::{Against, Measure, Unit};

/// What the start has shown.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Started {
    pub(super) phones: usize,
    pub(super) streams: usize,
    /// From the request to its answer, of plain calls, logins among them.
    pub(super) calls: Percentiles,
    /// From the request for a stream to the head of its answer.
    pub(super) opened: Percentiles,
    /// Until all had everything.
    pub(super) took_ms: f64,
}

impl Started {
    pub(super) fn measures(&self) -> Vec<Measure> {
        let entrance = |point| Against::Best(Best::Entrance(point));
        let mut measures = Measure::latencies("start: plain calls", &self.calls, entrance);
        measures.extend(Measure::latencies("start: streams open", &self.opened, entrance));
        // Each call and each stream is one question at least.
        let devices = usize::try_from(self.calls.count).unwrap_or(usize::MAX) + self.streams;
        let all = Against::Best(Best::Entrances { devices, point: Point::Max });
        let took = self.took_ms * 1000.0;
        measures.push(Measure::lower("start: all have everything", Unit::Microseconds, took, all));
        measures
    }
}

/// Streams that are read for nobody, until this is dropped.
pub(super) struct Unread(Vec<AbortHandle>);

impl Unread {
    /// Another one.
    pub(super) fn add(&mut self, stream: Incoming) {
        self.0.push(tokio::spawn(drain(stream)).abort_handle());
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        self.0.iter().for_each(AbortHandle::abort);
    }
}

/// A phone that has started: the stream of all its payloads.
type Begun = (usize, Incoming, Vec<Incoming>);

#[derive(Default)]
struct Times {
    calls: Vec<u64>,
    opened: Vec<u64>,
}

/// Starts all phones at once, each with its groups. Gives the stream of all payloads of each, in the
/// same order.
pub(super) async fn all_at_once(
    phones: Vec<(Phone, Arc<Vec<String>>)>,
) -> Result<(Started, Vec<Incoming>, Unread)> {
    let (calls, opened) = (Latencies::new(), Latencies::new());
    let barrier = Arc::new(Barrier::new(phones.len() + 1));
    let count = phones.len();
    let mut starting: JoinSet<Result<(Begun, Times)>> = JoinSet::new();
    for (number, (phone, groups)) in phones.into_iter().enumerate() {
        let barrier = barrier.clone();
        starting.spawn(Box::pin(async move {
            barrier.wait().await;
            let (all, others, times) = start(&phone, &groups).await?;
            Ok(((number, all, others), times))
        }));
    }
    barrier.wait().await;
    let began = Instant::now();
    let mut streams: Vec<Option<Incoming>> = (0..count).map(|_| None).collect();
    let (mut unread, mut many) = (Unread(Vec::new()), 0);
    while let Some(started) = starting.join_next().await {
        let ((number, all, others), mut times) = started.context("a phone has panicked")??;
        calls.record(&mut times.calls);
        opened.record(&mut times.opened);
        many += others.len() + 1;
        streams[number] = Some(all);
        others.into_iter().for_each(|stream| unread.add(stream));
    }
    let started = Started {
        phones: count,
        streams: many,
        calls: calls.percentiles(),
        opened: opened.percentiles(),
        took_ms: began.elapsed().as_secs_f64() * 1000.0,
    };
    Ok((started, streams.into_iter().flatten().collect(), unread))
}

/// One phone's start: the stream of all its payloads, and its others.
async fn start(phone: &Phone, groups: &[String]) -> Result<(Incoming, Vec<Incoming>, Times)> {
    let registration = async {
        let mut times = Times::default();
        let mut client = login(phone, &mut times).await?;
        let place = json!({ "pushToken": phone.name(), "pushPlatform": "fcm" });
        call(&mut client, Method::PUT, "/groups/push-registration", place, &mut times).await?;
        Ok(times)
    };
    let page = async {
        let mut times = Times::default();
        let mut client = login(phone, &mut times).await?;
        look(&mut client, groups, &mut times).await?;
        let all = listen(client.phone(), "/groups/pending/stream", &mut times).await?;
        let changes = listen(client.phone(), "/groups/stream", &mut times).await?;
        Ok((all, changes, times))
    };
    let coordinator = async {
        let mut times = Times::default();
        let mut client = login(phone, &mut times).await?;
        look(&mut client, groups, &mut times).await?;
        let mut streams = vec![listen(client.phone(), "/groups/stream", &mut times).await?];
        let opening = groups.iter().map(async |group| {
            let mut times = Times::default();
            let path = format!("/groups/{group}/pending/stream");
            let stream = listen(client.phone(), &path, &mut times).await?;
            anyhow::Ok((stream, times))
        });
        for (stream, more) in try_join_all(opening).await? {
            streams.push(stream);
            times.opened.extend(more.opened);
        }
        anyhow::Ok((streams, times))
    };
    let (mut times, (all, changes, of_page), (mut streams, of_coordinator)) =
        try_join3(registration, page, coordinator).await?;
    streams.push(changes);
    for more in [of_page, of_coordinator] {
        times.calls.extend(more.calls);
        times.opened.extend(more.opened);
    }
    Ok((all, streams, times))
}

/// What a client object asks for at first.
async fn look(client: &mut Calls, groups: &[String], times: &mut Times) -> Result<()> {
    call(client, Method::GET, "/groups", json!({}), times).await?;
    for group in groups {
        let path = format!("/groups/{group}/pending");
        call(client, Method::GET, &path, json!({}), times).await?;
    }
    Ok(())
}

async fn login(phone: &Phone, times: &mut Times) -> Result<Calls> {
    let mut each = |took: Duration| times.calls.push(nanoseconds(took));
    phone.beside(&mut each).await
}

async fn call(
    client: &mut Calls,
    method: Method,
    path: &str,
    body: Value,
    times: &mut Times,
) -> Result<()> {
    let begun = Instant::now();
    client.insist(method, path, body).await?;
    times.calls.push(nanoseconds(begun.elapsed()));
    Ok(())
}

async fn listen(phone: &Phone, path: &str, times: &mut Times) -> Result<Incoming> {
    let begun = Instant::now();
    let stream = phone.listen(path).await?;
    times.opened.push(nanoseconds(begun.elapsed()));
    Ok(stream)
}

async fn drain(mut stream: Incoming) {
    while let Some(Ok(_)) = stream.frame().await {}
}

fn nanoseconds(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
}
