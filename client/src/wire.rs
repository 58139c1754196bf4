//! One WebSocket to a relay: frames out, frames in.
//!
//! This is the floor that the SDK stands on, and all that a test or a crowd of simulated devices
//! needs: connect, prove who one is, send frames, receive frames. It keeps no state of logs, stores
//! nothing, spawns nothing and reconnects to nothing.
//!
//! Holds always:
//! - nothing is signed for a relay whose key is not the expected one;
//! - every wait has a deadline, but for [`Wire::receive`], which is the caller's to bound;
//! - waiting for frames also writes what is queued: two ends that both have much to say cannot
//!   block each other for ever.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use sealwire_client::identity::Identity;
//! use sealwire_client::address::RelayUrl;
//! use sealwire_client::wire::{self, Options};
//! use sealwire_protocol::frame::Ping;
//!
//! let relay = RelayUrl::parse("ws://127.0.0.1:4000")?;
//! let device = Identity::generate()?;
//! let (mut wire, session) = wire::connect(&relay, &device, &Options::default()).await?;
//! println!("{} logs", session.welcome.logs.len());
//! let answer = wire.request(&Ping {}.into()).await?;
//! assert_eq!(answer.name(), "Heartbeat");
//! # Ok(())
//! # }
//! ```

mod dial;
mod error;
mod handshake;

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::net::IpAddr;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::codec::{self, Envelope};
use sealwire_protocol::{ClientFrame, DeviceKey, Instance, RelayFrame};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use error::from_socket;

pub(crate) use dial::{Stream, stream};
pub use error::{Step, WireError};
pub use handshake::{Session, connect};

use crate::limits::{
    CONNECT_DEADLINE, HANDSHAKE_STEP_DEADLINE, READ_BUFFER_BYTES, SET_ASIDE_FRAMES_MAX,
    WRITE_DEADLINE,
};

/// How a connection is to be made. `Debug` says neither the token nor an address.
#[derive(Clone)]
pub struct Options {
    /// The running process; random by default. The same device and instance supersedes.
    pub instance: Instance,
    /// The relay's key, if it is known; any other one ends the connection before anything is
    /// signed.
    pub relay: Option<DeviceKey>,
    /// A resume token of an earlier session. If it is refused, the signature is used.
    pub resume_token: Option<Vec<u8>>,
    /// Bytes of entries that the relay may send before a `Grant`; none for no window.
    pub window: Option<u64>,
    /// The heartbeat interval that is wished for.
    pub heartbeat: Duration,
    /// The local address to connect from; none for the system's choice.
    pub source: Option<IpAddr>,
    /// Read buffer of the connection, in bytes.
    pub read_buffer_bytes: usize,
    /// How long reaching the relay may take, TLS and the upgrade included.
    pub connect_deadline: Duration,
    /// How long the relay may take from one step of the handshake to the next.
    pub step_deadline: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            instance: random_instance(),
            relay: None,
            resume_token: None,
            window: None,
            heartbeat: Duration::from_secs(60),
            source: None,
            read_buffer_bytes: READ_BUFFER_BYTES,
            connect_deadline: CONNECT_DEADLINE,
            step_deadline: HANDSHAKE_STEP_DEADLINE,
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("instance", &self.instance)
            .field("relay", &self.relay)
            .field("has_resume_token", &self.resume_token.is_some())
            .field("window", &self.window)
            .field("heartbeat", &self.heartbeat)
            .field("has_source", &self.source.is_some())
            .finish_non_exhaustive()
    }
}

/// A name for a running process that nobody else has.
#[must_use]
pub fn random_instance() -> Instance {
    let mut bytes = [0; 16];
    // Only a name: without randomness the process id still tells two processes of a device apart.
    if getrandom::fill(&mut bytes).is_err() {
        bytes[..4].copy_from_slice(&std::process::id().to_be_bytes());
    }
    Instance(bytes)
}

/// One WebSocket to a relay.
pub struct Wire {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    /// What was queued and not yet handed to the socket.
    queue: VecDeque<Message>,
    /// Whether something was handed to the socket and not yet flushed.
    unflushed: bool,
    /// Frames that came while a caller waited for one particular answer.
    set_aside: VecDeque<Envelope<RelayFrame>>,
    last_request: u32,
    come_back: Option<Duration>,
}

impl Wire {
    fn new(socket: WebSocketStream<MaybeTlsStream<TcpStream>>) -> Self {
        Self {
            socket,
            queue: VecDeque::new(),
            unflushed: false,
            set_aside: VecDeque::new(),
            last_request: 0,
            come_back: None,
        }
    }

    /// How long the relay has asked this device to stay away, if it has said that it shuts down.
    #[must_use]
    pub fn come_back(&self) -> Option<Duration> {
        self.come_back
    }

    /// Queues a frame under a request id of its own and gives that id. Nothing is written before
    /// [`Wire::flush`] or [`Wire::receive`] is awaited.
    pub fn queue(&mut self, frame: &ClientFrame) -> u32 {
        let request = self.next_request();
        self.queue_bytes(codec::encode_client(request, frame));
        request
    }

    /// Queues a frame under a request id of the caller's choice.
    pub fn queue_as(&mut self, request: u32, frame: &ClientFrame) {
        self.queue_bytes(codec::encode_client(request, frame));
    }

    /// Queues bytes as one binary message, whatever they are.
    pub fn queue_bytes(&mut self, bytes: impl Into<Bytes>) {
        self.queue.push_back(Message::Binary(bytes.into()));
    }

    /// Queues a WebSocket message of any kind: for tests of what a relay refuses.
    pub fn queue_message(&mut self, message: Message) {
        self.queue.push_back(message);
    }

    /// The request id that comes next; never 0, which is nobody's.
    pub fn next_request(&mut self) -> u32 {
        self.last_request = self.last_request.checked_add(1).unwrap_or(1);
        self.last_request
    }

    /// Writes all that is queued.
    ///
    /// # Errors
    /// [`WireError::Timeout`] after [`WRITE_DEADLINE`], or that the connection has ended.
    pub async fn flush(&mut self) -> Result<(), WireError> {
        let write = poll_fn(|context| match self.poll_write(context) {
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
            Err(error) => Poll::Ready(Err(error)),
        });
        tokio::time::timeout(WRITE_DEADLINE, write)
            .await
            .unwrap_or(Err(WireError::Timeout(Step::Write)))
    }

    /// Sends a frame and gives its request id.
    ///
    /// # Errors
    /// As [`Wire::flush`].
    pub async fn send(&mut self, frame: &ClientFrame) -> Result<u32, WireError> {
        let request = self.queue(frame);
        self.flush().await?;
        Ok(request)
    }

    /// The next frame, while queued frames are written. Cancel-safe.
    ///
    /// A frame of a type that is not known comes as an envelope whose frame is an error; the
    /// connection goes on.
    ///
    /// # Errors
    /// [`WireError::Closed`] when the relay has ended the connection, [`WireError::Frame`] for
    /// bytes that are not a frame, or that the socket failed.
    pub async fn receive(&mut self) -> Result<Envelope<RelayFrame>, WireError> {
        if let Some(envelope) = self.set_aside.pop_front() {
            return Ok(envelope);
        }
        self.receive_fresh().await
    }

    async fn receive_fresh(&mut self) -> Result<Envelope<RelayFrame>, WireError> {
        let bytes = self.receive_bytes().await?;
        let envelope = codec::decode_relay(&bytes).map_err(WireError::Frame)?;
        if let Ok(RelayFrame::Draining(draining)) = &envelope.frame {
            self.come_back = Some(Duration::from_millis(draining.reconnect_after_ms));
        }
        Ok(envelope)
    }

    /// The bytes of the next frame as they came. Cancel-safe.
    ///
    /// # Errors
    /// As [`Wire::receive`], but that the bytes are not looked at.
    pub async fn receive_bytes(&mut self) -> Result<Bytes, WireError> {
        match self.receive_message().await? {
            Message::Binary(bytes) => Ok(bytes),
            Message::Text(_)
            | Message::Ping(_)
            | Message::Pong(_)
            | Message::Close(_)
            | Message::Frame(_) => Err(WireError::NotARelay),
        }
    }

    /// The next text or binary message. Pings are answered; a close ends the connection.
    /// Cancel-safe.
    ///
    /// # Errors
    /// As [`Wire::receive`], but that the message is not looked at.
    pub async fn receive_message(&mut self) -> Result<Message, WireError> {
        poll_fn(|context| self.poll_message(context)).await
    }

    /// Sends a request and waits for its answer. What comes meanwhile is kept for
    /// [`Wire::receive`].
    ///
    /// # Errors
    /// [`WireError::Refused`] if the answer is an error, [`WireError::Timeout`] if there is none
    /// in the time of a step, or that the connection has ended.
    pub async fn request(&mut self, frame: &ClientFrame) -> Result<RelayFrame, WireError> {
        let request = self.queue(frame);
        tokio::time::timeout(HANDSHAKE_STEP_DEADLINE, self.answer_to(request))
            .await
            .unwrap_or(Err(WireError::Timeout(Step::Answer)))
    }

    /// Waits for the answer to a request that was sent. What comes meanwhile is kept for
    /// [`Wire::receive`].
    ///
    /// # Errors
    /// As [`Wire::request`], without a deadline.
    pub async fn answer_to(&mut self, request: u32) -> Result<RelayFrame, WireError> {
        if let Some(found) = self.set_aside.iter().position(|kept| kept.request == request)
            && let Some(envelope) = self.set_aside.remove(found)
        {
            return answer(envelope);
        }
        loop {
            let envelope = self.receive_fresh().await?;
            if envelope.request == request {
                return answer(envelope);
            }
            if self.set_aside.len() == SET_ASIDE_FRAMES_MAX {
                return Err(WireError::SetAside);
            }
            self.set_aside.push_back(envelope);
        }
    }

    /// Says goodbye and waits, within the deadline of a write, until the relay has taken it.
    pub async fn close(mut self) {
        self.queue_message(Message::Close(Some(CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        })));
        // Whether it arrives makes no difference to either end.
        let _ = self.flush().await;
    }

    fn poll_message(&mut self, context: &mut Context<'_>) -> Poll<Result<Message, WireError>> {
        // A write that fails is reported only when there is nothing left to read: the relay's last
        // words say more than a broken pipe.
        let written = self.poll_write(context);
        loop {
            return match self.socket.poll_next_unpin(context) {
                Poll::Ready(Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)))) => {
                    continue;
                }
                Poll::Ready(Some(Ok(Message::Close(frame)))) => {
                    Poll::Ready(Err(WireError::Closed(
                        frame.and_then(|frame| CloseReason::from_code(frame.code.into())),
                    )))
                }
                Poll::Ready(Some(Ok(message @ (Message::Binary(_) | Message::Text(_))))) => {
                    Poll::Ready(Ok(message))
                }
                Poll::Ready(Some(Err(error))) => Poll::Ready(Err(from_socket(&error))),
                Poll::Ready(None) => Poll::Ready(Err(WireError::Closed(None))),
                Poll::Pending => match written {
                    Ok(_) => Poll::Pending,
                    Err(error) => Poll::Ready(Err(error)),
                },
            };
        }
    }

    /// Hands the queue to the socket as far as it takes it; whether all is written.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Result<bool, WireError> {
        while !self.queue.is_empty() {
            match self.socket.poll_ready_unpin(context) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => return Err(from_socket(&error)),
                Poll::Pending => return Ok(false),
            }
            if let Some(message) = self.queue.pop_front() {
                self.unflushed = true;
                self.socket.start_send_unpin(message).map_err(|error| from_socket(&error))?;
            }
        }
        if self.unflushed {
            match self.socket.poll_flush_unpin(context) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(from_socket(&error)),
                Poll::Pending => return Ok(false),
            }
        }
        Ok(true)
    }
}

fn answer(envelope: Envelope<RelayFrame>) -> Result<RelayFrame, WireError> {
    let frame = envelope.frame.map_err(WireError::Frame)?;
    if let RelayFrame::Error(error) = &frame { Err(error.failure().into()) } else { Ok(frame) }
}
