//! The reading half of a WebSocket: tungstenite over a half that only lends it bytes.
//!
//! What tungstenite wants to write (pongs, the reply to a close) is kept for the writer, which puts
//! it between two frames. Its read buffer is small and stays small: after a large message, when it
//! holds nothing, the reader is made anew, because the buffer would keep its size for as long as the
//! session lives.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::limits::{FRAME_BYTES_MAX, MESSAGE_DEADLINE};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::OwnedReadHalf;
use tokio::time::{Sleep, sleep};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::framing::Framing;

/// Size of the read buffer, in bytes: most frames of an idle session are heartbeats.
const READ_BUFFER_BYTES: usize = 1024;

/// Most bytes of one read from the socket: they pass through the stack, so that a busy session needs
/// few system calls and an idle one no buffer of that size.
const READ_BYTES: usize = 16 * 1024;

/// A message longer than this makes the reader anew, in bytes.
const SHED_ABOVE_BYTES: usize = 8 * 1024;

/// Most bytes of pongs that wait to be written: a peer that sends pings and reads nothing is cut off
/// from sending more by its own silence, not by our memory.
const REPLIES_BYTES_MAX: usize = 4096;

/// What came out of the socket.
pub(super) enum Heard {
    /// A whole binary message.
    Message(Bytes),
    /// A ping or pong; there may be a reply to write.
    Control,
    /// Something that ends the session, and why.
    Bad(CloseReason),
    /// The peer has closed, or the connection has broken.
    Gone,
}

/// Reads messages from one socket.
pub(super) struct Reader {
    stream: Option<WebSocketStream<Lender>>,
    /// Messages that were given out, pings and pongs among them.
    given: u64,
    large: bool,
    over: bool,
    /// Runs while a message is begun and not finished; for which one, by [`Framing::mark`].
    deadline: Option<(u64, Pin<Box<Sleep>>)>,
}

impl Reader {
    /// Reads at most `allowance` bytes until [`Reader::allow_all`].
    pub(super) async fn new(half: OwnedReadHalf, leftover: Bytes, allowance: usize) -> Self {
        let (framing, replies) = (Framing::default(), Vec::new());
        let lender = Lender { half, leftover, allowance, framing, is_too_big: false, replies };
        Self {
            stream: Some(websocket(lender).await),
            given: 0,
            large: false,
            over: false,
            deadline: None,
        }
    }

    /// Lifts the bound on what may be read in all.
    pub(super) fn allow_all(&mut self) {
        if let Some(stream) = &mut self.stream {
            stream.get_mut().allowance = usize::MAX;
        }
    }

    /// Whether nothing more will be heard.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// The next thing that is heard. Dropping the future loses nothing.
    pub(super) async fn next(&mut self) -> Heard {
        if self.over {
            return std::future::pending().await;
        }
        let heard = poll_fn(|context| self.poll_next(context)).await;
        self.over = matches!(heard, Heard::Bad(_) | Heard::Gone);
        heard
    }

    fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Heard> {
        let Some(stream) = &mut self.stream else {
            return Poll::Ready(Heard::Gone);
        };
        let polled = stream.poll_next_unpin(context);
        if let Poll::Ready(Some(Ok(Message::Ping(_) | Message::Close(_)))) = polled {
            // The reply is due now, not when the peer speaks again. It is written into memory, which
            // cannot block; an error only says that a close was the last thing to be written.
            let _ = stream.poll_flush_unpin(context);
        }
        let framing = &stream.get_ref().framing;
        let (is_within, mark) = (framing.is_within(), framing.mark());
        if !is_within || self.deadline.as_ref().is_some_and(|(of, _)| *of != mark) {
            self.deadline = None;
        }
        match polled {
            Poll::Ready(message) => Poll::Ready(self.heard(message)),
            Poll::Pending if is_within => {
                let new = || (mark, Box::pin(sleep(MESSAGE_DEADLINE)));
                let (_, deadline) = self.deadline.get_or_insert_with(new);
                ready!(deadline.as_mut().poll(context));
                Poll::Ready(Heard::Bad(CloseReason::MessageTimeout))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn heard(&mut self, message: Option<Result<Message, Error>>) -> Heard {
        match message {
            Some(Ok(Message::Binary(bytes))) => {
                self.given += 1;
                self.large |= bytes.len() > SHED_ABOVE_BYTES;
                Heard::Message(bytes)
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {
                self.given += 1;
                let replies = self.stream.as_ref().map_or(0, |s| s.get_ref().replies.len());
                if replies > REPLIES_BYTES_MAX {
                    return Heard::Bad(CloseReason::SlowConsumer);
                }
                Heard::Control
            }
            Some(Ok(Message::Text(_) | Message::Frame(_))) => Heard::Bad(CloseReason::Protocol),
            Some(Ok(Message::Close(_))) | None => Heard::Gone,
            Some(Err(Error::Capacity(_))) => Heard::Bad(CloseReason::TooBig),
            Some(Err(Error::Protocol(_) | Error::Utf8(_))) => Heard::Bad(CloseReason::Protocol),
            Some(Err(_)) if self.stream.as_ref().is_some_and(|s| s.get_ref().is_too_big) => {
                Heard::Bad(CloseReason::TooBig)
            }
            Some(Err(_)) => Heard::Gone,
        }
    }

    /// What is to be written on behalf of the reader.
    pub(super) fn take_replies(&mut self) -> Bytes {
        let replies = self.stream.as_mut().map(|s| std::mem::take(&mut s.get_mut().replies));
        Bytes::from(replies.unwrap_or_default())
    }

    /// Gives back the memory of a large message, if the buffer holds nothing that is still needed.
    pub(super) async fn shed(&mut self) {
        let empty = |stream: &WebSocketStream<Lender>| {
            let framing = &stream.get_ref().framing;
            !framing.is_within() && framing.finished() == self.given
        };
        if self.large && self.stream.as_ref().is_some_and(empty) {
            self.large = false;
            if let Some(stream) = self.stream.take() {
                // In a box, because it is large and most messages are small.
                self.stream = Some(Box::pin(websocket(stream.into_inner())).await);
            }
        }
    }

    /// Reads and forgets until the peer has gone.
    pub(super) async fn discard(&mut self) {
        let Some(stream) = self.stream.take() else {
            return;
        };
        let lender = stream.into_inner();
        let mut bytes = [0; 1024];
        loop {
            if lender.half.readable().await.is_err() {
                return;
            }
            match lender.half.try_read(&mut bytes) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

async fn websocket(lender: Lender) -> WebSocketStream<Lender> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    WebSocketStream::from_raw_socket(lender, Role::Server, Some(config)).await
}

/// Lends tungstenite the bytes of the reading half, and keeps what it writes.
struct Lender {
    half: OwnedReadHalf,
    /// What was read and not yet lent: with the upgrade request, or beyond tungstenite's buffer.
    leftover: Bytes,
    /// How many more bytes may be lent.
    allowance: usize,
    /// Where what was lent ends.
    framing: Framing,
    /// Whether a stranger has begun a message that its allowance does not cover.
    is_too_big: bool,
    replies: Vec<u8>,
}

impl AsyncRead for Lender {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let room = into.remaining().min(this.allowance);
        if room == 0 {
            // Nothing more is heard before authentication; its deadline ends the wait.
            return Poll::Pending;
        }
        if this.leftover.is_empty() {
            let mut bytes = [const { MaybeUninit::uninit() }; READ_BYTES];
            let mut chunk = ReadBuf::uninit(&mut bytes);
            ready!(Pin::new(&mut this.half).poll_read(context, &mut chunk))?;
            let (now, later) = chunk.filled().split_at(room.min(chunk.filled().len()));
            into.put_slice(now);
            this.leftover = Bytes::copy_from_slice(later);
            return this.lent(now);
        }
        let now = this.leftover.split_to(room.min(this.leftover.len()));
        into.put_slice(&now);
        if this.leftover.is_empty() {
            // An empty view would keep all that was read with it.
            this.leftover = Bytes::new();
        }
        this.lent(&now)
    }
}

impl Lender {
    fn lent(&mut self, bytes: &[u8]) -> Poll<io::Result<()>> {
        self.framing.pass(bytes);
        if self.allowance == usize::MAX {
            return Poll::Ready(Ok(()));
        }
        self.allowance -= bytes.len();
        // tungstenite makes room for a whole frame as soon as it has its head. So the head of a
        // stranger's first message is not even shown to it, if the rest will never be read. What
        // comes behind that message is looked at once its device is known.
        self.is_too_big =
            self.framing.messages() == 0 && self.framing.left() > self.allowance as u64;
        Poll::Ready(if self.is_too_big { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) })
    }
}

impl AsyncWrite for Lender {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().replies.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
