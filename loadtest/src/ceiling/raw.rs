//! The least that could be called a relay: a WebSocket server, in a process of its own, that hands
//! what one member of a group says to the others. No identity, no order, no storage.
//!
//! It is written like the relay where that decides its speed: one task for each connection, everything
//! that is ready is read before anything is written, and everything that waits is written at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::helper;

/// Read buffer of a connection, in bytes.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// Messages that are read before anything is written.
const MESSAGES_AT_ONCE: usize = 64;

/// Length of the answer to a sender, in bytes: that of an `Appended`.
pub(super) const ANSWER_BYTES: usize = 96;

/// What a connection says first.
#[derive(Clone, Copy)]
pub(super) struct Hello {
    /// The group that it belongs to.
    pub(super) group: u32,
    /// Messages that it wants to be sent at once, instead of belonging to a group.
    pub(super) messages: u32,
    /// Length of each of these, in bytes.
    pub(super) length: u32,
}

impl Hello {
    pub(super) fn to_message(self) -> Message {
        let words = [self.group, self.messages, self.length].map(u32::to_be_bytes);
        Message::binary(words.concat())
    }

    fn read(message: &Message) -> Option<Self> {
        let Message::Binary(bytes) = message else { return None };
        let word = |index: usize| Some(u32::from_be_bytes(*bytes.get(index * 4..)?.first_chunk()?));
        Some(Self { group: word(0)?, messages: word(1)?, length: word(2)? })
    }
}

pub(super) fn config() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES)
}

type Socket = WebSocketStream<TcpStream>;

/// What waits for one connection.
#[derive(Default)]
struct Outbox {
    messages: Mutex<VecDeque<Bytes>>,
    ready: Notify,
}

impl Outbox {
    fn push(&self, message: Bytes) {
        lock(&self.messages).push_back(message);
        self.ready.notify_one();
    }
}

#[derive(Default)]
struct Groups(Mutex<HashMap<u32, Vec<Arc<Outbox>>>>);

/// Serves until nobody holds its standard input open.
pub(crate) async fn serve() -> Result<()> {
    let groups = Arc::new(Groups::default());
    helper::serve(|stream| {
        // A connection that fails is missed by whoever counts.
        tokio::spawn(Box::pin(connection(stream, groups.clone())));
    })
    .await
}

async fn connection(stream: TcpStream, groups: Arc<Groups>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut socket = tokio_tungstenite::accept_async_with_config(stream, Some(config())).await?;
    let hello = socket.next().await.context("nobody there")??;
    let hello = Hello::read(&hello).context("not a beginning")?;
    if hello.messages > 0 {
        return send_at_once(&mut socket, hello).await;
    }
    let own = Arc::new(Outbox::default());
    lock(&groups.0).entry(hello.group).or_default().push(own.clone());
    // Says that it belongs to the group now.
    own.push(Bytes::from_static(&[0; ANSWER_BYTES]));
    loop {
        tokio::select! {
            message = socket.next() => {
                pass_on(message, &own, hello.group, &groups)?;
                for _ in 1..MESSAGES_AT_ONCE {
                    let Some(message) = socket.next().now_or_never() else { break };
                    pass_on(message, &own, hello.group, &groups)?;
                }
            }
            () = own.ready.notified() => {}
        }
        write_all(&mut socket, &own).await?;
    }
}

type Received = Option<Result<Message, tokio_tungstenite::tungstenite::Error>>;

fn pass_on(message: Received, own: &Arc<Outbox>, group: u32, groups: &Groups) -> Result<()> {
    let Message::Binary(bytes) = message.context("it has left")?? else {
        bail!("it has left");
    };
    for other in lock(&groups.0).get(&group).into_iter().flatten() {
        if !Arc::ptr_eq(other, own) {
            other.push(bytes.clone());
        }
    }
    own.push(Bytes::from_static(&[0; ANSWER_BYTES]));
    Ok(())
}

async fn write_all(socket: &mut Socket, outbox: &Outbox) -> Result<()> {
    let waiting = std::mem::take(&mut *lock(&outbox.messages));
    if waiting.is_empty() {
        return Ok(());
    }
    for message in waiting {
        socket.feed(Message::Binary(message)).await?;
    }
    Ok(socket.flush().await?)
}

async fn send_at_once(socket: &mut Socket, hello: Hello) -> Result<()> {
    let message = Bytes::from(vec![0x5a; hello.length as usize]);
    for _ in 0..hello.messages {
        socket.feed(Message::Binary(message.clone())).await?;
    }
    Ok(socket.flush().await?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
