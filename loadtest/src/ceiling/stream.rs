//! One WebSocket after the other, or several at once, that are sent as many messages in a row as wait
//! for a device that was away: without a store, and without a check.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use tokio::time::timeout;

use super::Shape;
use super::fan_out::{Socket, connect, frame_bytes};
use super::raw::Hello;
use crate::helper::Helper;
use crate::limits::DRAIN_DEADLINE;
use crate::report::{self, Against, Line, Measure, Unit, line, median, whole};

/// How often they are sent, if there is time.
const ROUNDS: usize = 5;

/// What was sent, and how soon it was there.
#[derive(Serialize)]
pub(super) struct Streams {
    /// Connections that were sent them at the same time.
    readers: usize,
    messages: usize,
    /// From the request to the first message, the middle one of all readers and rounds.
    pub(super) first_us: f64,
    /// The same to the last message.
    pub(super) last_us: f64,
}

/// Sends them again and again for `time`, and once at least.
pub(super) async fn measure(shape: &Shape, time: Duration) -> Result<Streams> {
    let server = Helper::start(&["raw-relay".to_owned()]).await?;
    let Shape { readers, messages, .. } = *shape;
    let hello = Hello {
        group: 0,
        messages: u32::try_from(messages)?,
        length: u32::try_from(frame_bytes(shape.body))?,
    };
    let (mut first, mut last) = (Vec::new(), Vec::new());
    let begin = Instant::now();
    for round in 0..ROUNDS {
        if round > 0 && begin.elapsed() > time {
            break;
        }
        let mut sockets = Vec::with_capacity(readers);
        for number in 0..readers {
            sockets.push(connect(server.port(), number as u64).await?);
        }
        let reading = sockets.into_iter().map(|socket| tokio::spawn(read(socket, hello)));
        for reading in try_join_all(reading).await? {
            let reading = reading?;
            first.push(reading.0);
            last.push(reading.1);
        }
    }
    Ok(Streams { readers, messages, first_us: median(&first), last_us: median(&last) })
}

/// Microseconds to the first message, and to the last.
async fn read(mut socket: Socket, hello: Hello) -> Result<(f64, f64)> {
    let begin = Instant::now();
    let microseconds = || begin.elapsed().as_secs_f64() * 1e6;
    socket.send(hello.to_message()).await?;
    let mut first = None;
    let reading = async {
        for _ in 0..hello.messages {
            let message = socket.next().await.context("the server has ended")??;
            first.get_or_insert_with(microseconds);
            ensure!(message.len() == hello.length as usize, "another message");
        }
        anyhow::Ok(())
    };
    timeout(DRAIN_DEADLINE, reading).await.context("messages did not come in time")??;
    Ok((first.unwrap_or_else(microseconds), microseconds()))
}

impl Streams {
    pub(super) fn lines(&self) -> Vec<Line> {
        let Self { readers, messages, first_us, last_us } = self;
        let per_second = *messages as f64 * 1e6 / last_us;
        let [first, last] = [*first_us, *last_us].map(report::duration);
        let text = format!(
            "{} messages to {readers} at the same time: the first after {first}, the last after \
             {last}; {} to each",
            whole(*messages as u64),
            report::rate(per_second)
        );
        vec![line("in a row", text)]
    }

    pub(super) fn measures(&self) -> Vec<Measure> {
        let measure =
            |name: &str, value| Measure::lower(name, Unit::Microseconds, value, Against::Itself);
        vec![
            measure("messages in a row, to the first", self.first_us),
            measure("messages in a row, to the last", self.last_us),
        ]
    }
}
