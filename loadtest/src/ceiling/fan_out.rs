//! WebSockets alone: messages as long as the relay's frames, between as many connections, through a
//! process that does nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use sealwire_protocol::codec::encode_relay;
use sealwire_protocol::frame::Entry;
use sealwire_protocol::{Body, DeviceKey, Digest, LogId};
use serde::Serialize;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::Shape;
use super::raw::{ANSWER_BYTES, Hello, config};
use crate::crowd::source;
use crate::group::Author;
use crate::helper::Helper;
use crate::limits::ANSWER_DEADLINE;
use crate::report::{self, Line, Measure, line};

/// Before anything is counted.
const WARM_UP: Duration = Duration::from_secs(1);

/// Messages that one connection is sent at once: as many as wait for a device in `catch-up`.
const STREAM_MESSAGES: u32 = 10_000;

/// How often they are sent.
const STREAMS: usize = 5;

/// What WebSockets did.
#[derive(Serialize)]
pub(super) struct FanOut {
    /// Length of each message, in bytes.
    length: usize,
    messages_per_second: f64,
    /// Copies that reached a member, without the senders' own.
    pub(super) deliveries_per_second: f64,
    /// Messages to one connection, in a row.
    pub(super) stream_per_second: f64,
}

#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    delivered: AtomicU64,
}

type Socket = WebSocketStream<TcpStream>;

/// As many groups and members as the shape has, one sender in each, as fast as it goes.
pub(super) async fn measure(shape: &Shape, time: Duration) -> Result<FanOut> {
    let server = Helper::start(&["raw-relay".to_owned()]).await?;
    let port = server.port();
    let length = frame_bytes(shape.body);
    let counts = Arc::new(Counts::default());
    let mut members = JoinSet::new();
    let mut sockets = Vec::with_capacity(shape.groups * shape.members);
    for number in 0..shape.groups * shape.members {
        let hello = Hello { group: u32::try_from(number / shape.members)?, messages: 0, length: 0 };
        sockets.push(enter(port, number as u64, hello).await?);
    }
    for (number, socket) in sockets.into_iter().enumerate() {
        let in_flight = if number % shape.members == 0 { shape.per_log } else { 0 };
        members.spawn(Box::pin(take_part(socket, in_flight, length, counts.clone())));
    }
    sleep(WARM_UP).await;
    let before = counts.read();
    let begin = Instant::now();
    sleep(time).await;
    let after = counts.read();
    let elapsed_s = begin.elapsed().as_secs_f64();
    if let Some(ended) = members.try_join_next() {
        ended??;
        bail!("a connection has ended before its time");
    }
    members.shutdown().await;
    Ok(FanOut {
        length,
        messages_per_second: (after.0 - before.0) as f64 / elapsed_s,
        deliveries_per_second: (after.1 - before.1) as f64 / elapsed_s,
        stream_per_second: stream(port, length).await?,
    })
}

/// Length of the frame of an entry with such a body.
fn frame_bytes(body: usize) -> usize {
    let log = LogId([1; 16]);
    let device = DeviceKey([2; 32]);
    let mut author = Author { log, device, count: 1000, prev: Digest::ZERO };
    let entry = author.write(Bytes::from(vec![0; body]));
    let frame = Entry {
        log,
        seq: 1000,
        at: 1_800_000_000_000,
        header: entry.header,
        body: Body(Bytes::from(vec![0; body])),
        signature: entry.signature,
        recipients: entry.recipients,
        totals_kind: None,
    };
    encode_relay(0, &frame.into()).len()
}

async fn enter(port: u16, number: u64, hello: Hello) -> Result<Socket> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source(number), 0).into())?;
    let stream = socket.connect(([127, 0, 0, 1], port).into()).await?;
    stream.set_nodelay(true)?;
    let url = format!("ws://127.0.0.1:{port}/");
    let (mut socket, _) =
        tokio_tungstenite::client_async_with_config(url, stream, Some(config())).await?;
    socket.send(hello.to_message()).await?;
    if hello.messages == 0 {
        timeout(ANSWER_DEADLINE, socket.next()).await?.context("the server has ended")??;
    }
    Ok(socket)
}

/// Reads everything, and always has so many messages under way.
async fn take_part(
    mut socket: Socket,
    in_flight: usize,
    length: usize,
    counts: Arc<Counts>,
) -> Result<()> {
    let message = Bytes::from(vec![0x5a; length]);
    let mut to_send = in_flight;
    loop {
        for _ in 0..std::mem::take(&mut to_send) {
            socket.feed(Message::Binary(message.clone())).await?;
        }
        socket.flush().await?;
        let mut next = Some(socket.next().await);
        let mut delivered = 0;
        while let Some(received) = next {
            let received = received.context("the server has ended")??;
            if received.len() == ANSWER_BYTES {
                to_send += 1;
            } else {
                delivered += 1;
            }
            next = socket.next().now_or_never();
        }
        counts.answered.fetch_add(to_send as u64, Ordering::Relaxed);
        counts.delivered.fetch_add(delivered, Ordering::Relaxed);
    }
}

/// Messages to one connection per second, the best of a few times.
async fn stream(port: u16, length: usize) -> Result<f64> {
    let mut best: f64 = 0.0;
    for number in 0..STREAMS {
        let length = u32::try_from(length)?;
        let hello = Hello { group: 0, messages: STREAM_MESSAGES, length };
        let begin = Instant::now();
        let mut socket = enter(port, number as u64, hello).await?;
        let read = async {
            for _ in 0..STREAM_MESSAGES {
                let message = socket.next().await.context("the server has ended")??;
                ensure!(message.len() == length as usize, "another message");
            }
            anyhow::Ok(())
        };
        timeout(ANSWER_DEADLINE, read).await??;
        best = best.max(f64::from(STREAM_MESSAGES) / begin.elapsed().as_secs_f64());
    }
    Ok(best)
}

impl Counts {
    fn read(&self) -> (u64, u64) {
        (self.answered.load(Ordering::Relaxed), self.delivered.load(Ordering::Relaxed))
    }
}

impl FanOut {
    pub(super) fn lines(&self) -> Vec<Line> {
        let Self { length, .. } = self;
        let messages = report::rate(self.messages_per_second);
        let deliveries = report::rate(self.deliveries_per_second);
        vec![
            line("fan-out", format!("{deliveries} of {messages} messages of {length} bytes")),
            line("to one", report::rate(self.stream_per_second)),
        ]
    }

    pub(super) fn measures(&self) -> Vec<Measure> {
        vec![
            Measure::higher("WebSocket fan-out", "/s", self.deliveries_per_second),
            Measure::higher("one WebSocket", "/s", self.stream_per_second),
        ]
    }
}
