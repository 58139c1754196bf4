//! The least that could be called a relay: a WebSocket server, in a process of its own, that hands
//! what one member of a group says to the others. No order, no storage, and no identity but where a
//! connection asks to prove one.
//!
//! It is written like the relay where that decides its speed: one task for each connection, everything
//! that is ready is read before anything is written, and everything that waits is written at once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use ed25519_dalek::{Signature, VerifyingKey};
use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use crate::helper;

/// Read buffer of a connection, in bytes.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// The same of a server whose memory is looked at, not its speed: the relay's.
const LEAN_READ_BUFFER_BYTES: usize = 1024;

/// Messages that are read before anything is written.
const MESSAGES_AT_ONCE: usize = 64;

/// Length of the answer to a sender, in bytes: that of an `Appended`.
pub(super) const ANSWER_BYTES: usize = 96;

/// Length of what has to be signed, in bytes: that of a relay's challenge.
pub(super) const CHALLENGE_BYTES: usize = 32;

/// Length of a key, in bytes; a signature follows it.
const KEY_BYTES: usize = 32;

/// The group of those who want to prove a key, and nothing else.
pub(super) const STRANGERS: u32 = u32::MAX;

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

/// Has the relay's buffers, for little memory.
pub(super) const LEAN: &str = "--lean";

pub(super) fn config() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(READ_BUFFER_BYTES)
}

fn lean_config() -> WebSocketConfig {
    WebSocketConfig::default().read_buffer_size(LEAN_READ_BUFFER_BYTES).write_buffer_size(0)
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
pub(crate) async fn serve(lean: bool) -> Result<()> {
    let groups = Arc::new(Groups::default());
    let config = if lean { lean_config() } else { config() };
    helper::serve(|stream| {
        // A connection that fails is missed by whoever counts.
        tokio::spawn(Box::pin(welcome(stream, config, groups.clone())));
    })
    .await
}

/// What happens once; who stays has a task that does not remember it.
async fn welcome(stream: TcpStream, config: WebSocketConfig, groups: Arc<Groups>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut socket = tokio_tungstenite::accept_async_with_config(stream, Some(config)).await?;
    let hello = socket.next().await.context("nobody there")??;
    let hello = Hello::read(&hello).context("not a beginning")?;
    if hello.group == STRANGERS {
        return believe(&mut socket).await;
    }
    if hello.messages > 0 {
        return send_at_once(&mut socket, hello).await;
    }
    tokio::spawn(Box::pin(connection(socket, hello.group, groups)));
    Ok(())
}

async fn connection(mut socket: Socket, group: u32, groups: Arc<Groups>) -> Result<()> {
    let own = Arc::new(Outbox::default());
    lock(&groups.0).entry(group).or_default().push(own.clone());
    // Says that it belongs to the group now.
    own.push(Bytes::from_static(&[0; ANSWER_BYTES]));
    loop {
        tokio::select! {
            message = socket.next() => {
                pass_on(message, &own, group, &groups)?;
                for _ in 1..MESSAGES_AT_ONCE {
                    let Some(message) = socket.next().now_or_never() else { break };
                    pass_on(message, &own, group, &groups)?;
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

/// Has a connection sign something new with its key, as the relay does, and answers when it has.
async fn believe(socket: &mut Socket) -> Result<()> {
    let mut challenge = [0; CHALLENGE_BYTES];
    getrandom::fill(&mut challenge)?;
    socket.send(Message::binary(challenge.to_vec())).await?;
    let proof = socket.next().await.context("nobody there")??.into_data();
    ensure!(proof.len() == KEY_BYTES + Signature::BYTE_SIZE, "no key and signature");
    let (key, signature) = proof.split_at(KEY_BYTES);
    let key = VerifyingKey::from_bytes(key.try_into()?)?;
    key.verify_strict(&challenge, &Signature::from_slice(signature)?)?;
    Ok(socket.send(Message::Binary(Bytes::from_static(&[0; ANSWER_BYTES]))).await?)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
