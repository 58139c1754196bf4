//! WebSockets alone: messages as long as the relay's frames, between as many connections, through a
//! process that does nothing else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
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
use crate::limits::{ANSWER_DEADLINE, OPEN_FILES_RESERVE};
use crate::process::Process;
use crate::report::{self, Against, Line, Measure, Unit, line};

/// Before anything is counted.
const WARM_UP: Duration = Duration::from_secs(1);

/// Most connections: more than are needed to keep every core busy, and few enough to be made at once.
const CONNECTIONS_MAX: usize = 4000;

/// What WebSockets did.
#[derive(Serialize)]
pub(super) struct FanOut {
    /// Length of each message, in bytes.
    length: usize,
    connections: usize,
    pub(super) messages_per_second: f64,
    /// Copies that reached a member, without the senders' own.
    pub(super) deliveries_per_second: f64,
    /// How often the threads of the process in between have waited for something.
    pub(super) switches_per_second: f64,
}

#[derive(Default)]
struct Counts {
    answered: AtomicU64,
    delivered: AtomicU64,
}

pub(super) type Socket = WebSocketStream<TcpStream>;

/// As many groups and members as the shape has, or as one process holds, one sender in each, as fast as
/// it goes.
pub(super) async fn measure(shape: &Shape, time: Duration) -> Result<FanOut> {
    let server = Helper::start(&["raw-relay".to_owned()]).await?;
    let port = server.port();
    let length = frame_bytes(shape.body);
    let counts = Arc::new(Counts::default());
    let mut members = JoinSet::new();
    let groups = shape.groups.min(most_connections()? / shape.members).max(1);
    let connections = groups * shape.members;
    let mut sockets = Vec::with_capacity(connections);
    for number in 0..connections {
        let hello = Hello { group: u32::try_from(number / shape.members)?, messages: 0, length: 0 };
        sockets.push(enter(port, number as u64, hello).await?);
    }
    for (number, socket) in sockets.into_iter().enumerate() {
        let in_flight = if number % shape.members == 0 { shape.per_log } else { 0 };
        members.spawn(Box::pin(take_part(socket, in_flight, length, counts.clone())));
    }
    sleep(WARM_UP).await;
    let before = counts.read();
    let switches = server.process().voluntary_switches()?;
    let begin = Instant::now();
    sleep(time).await;
    let after = counts.read();
    let switches = server.process().voluntary_switches()?.saturating_sub(switches);
    let elapsed_s = begin.elapsed().as_secs_f64();
    if let Some(ended) = members.try_join_next() {
        ended??;
        bail!("a connection has ended before its time");
    }
    members.shutdown().await;
    Ok(FanOut {
        length,
        connections,
        messages_per_second: (after.0 - before.0) as f64 / elapsed_s,
        deliveries_per_second: (after.1 - before.1) as f64 / elapsed_s,
        switches_per_second: switches as f64 / elapsed_s,
    })
}

/// How many connections this process may have.
fn most_connections() -> Result<usize> {
    let files = Process::own().open_files_max()?.saturating_sub(OPEN_FILES_RESERVE);
    Ok(CONNECTIONS_MAX.min(usize::try_from(files).unwrap_or(usize::MAX)))
}

/// Length of the frame of an entry with such a body.
pub(super) fn frame_bytes(body: usize) -> usize {
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

/// A connection, the one with this number.
pub(super) async fn connect(port: u16, number: u64) -> Result<Socket> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((source(number), 0).into())?;
    let stream = socket.connect(([127, 0, 0, 1], port).into()).await?;
    stream.set_nodelay(true)?;
    let url = format!("ws://127.0.0.1:{port}/");
    let (socket, _) =
        tokio_tungstenite::client_async_with_config(url, stream, Some(config())).await?;
    Ok(socket)
}

/// A connection that belongs to its group.
pub(super) async fn enter(port: u16, number: u64, hello: Hello) -> Result<Socket> {
    let mut socket = connect(port, number).await?;
    socket.send(hello.to_message()).await?;
    timeout(ANSWER_DEADLINE, socket.next()).await?.context("the server has ended")??;
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

impl Counts {
    fn read(&self) -> (u64, u64) {
        (self.answered.load(Ordering::Relaxed), self.delivered.load(Ordering::Relaxed))
    }
}

impl FanOut {
    pub(super) fn lines(&self) -> Vec<Line> {
        let Self { length, connections, switches_per_second, .. } = self;
        let messages = report::rate(self.messages_per_second);
        let deliveries = report::rate(self.deliveries_per_second);
        let switches = report::rate(*switches_per_second);
        let text = format!(
            "{deliveries} of {messages} messages of {length} bytes, by {connections} connections; \
             {switches} voluntary switches"
        );
        vec![line("fan-out", text)]
    }

    pub(super) fn measures(&self) -> Vec<Measure> {
        let measure =
            |name: &str, value| Measure::higher(name, Unit::PerSecond, value, Against::Itself);
        vec![
            measure("WebSocket fan-out", self.deliveries_per_second),
            measure("WebSocket messages", self.messages_per_second),
        ]
    }
}
