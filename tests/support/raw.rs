//! A connection that may do what no device does: bytes as a test writes them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use sealwire_client::identity::Identity;
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::codec::{self, Envelope};
use sealwire_protocol::frame::{Authenticate, Names};
use sealwire_protocol::ids::Instance;
use sealwire_protocol::{ClientFrame, Digest, RelayFrame};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout, timeout_at};

use super::DEADLINE;

pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xa;

/// The bit of a frame's first byte that says that it is the last one of its message.
pub(crate) const LAST: u8 = 0x80;

/// What the payload of every frame is masked with (RFC 6455 §5.3).
const MASK: [u8; 4] = [0x5a, 0x01, 0xfe, 0x33];

/// What every well-behaved upgrade begins with.
pub(crate) const UPGRADE: &str = "GET /v1/ws HTTP/1.1\r\nHost: relay\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: sealwire.v1\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A TCP connection to a relay.
pub(crate) struct Raw {
    stream: TcpStream,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// By a close frame with this code.
    Closed(u16),
    /// Without one.
    Gone,
}

impl End {
    pub(crate) const fn of(reason: CloseReason) -> Self {
        Self::Closed(reason.code())
    }
}

impl Raw {
    pub(crate) async fn connect(relay: SocketAddr) -> Self {
        Self::connect_from(relay, [127, 0, 0, 1]).await
    }

    /// Connects from another address of this machine.
    pub(crate) async fn connect_from(relay: SocketAddr, from: [u8; 4]) -> Self {
        let socket = TcpSocket::new_v4().expect("a socket");
        socket.bind(SocketAddr::new(IpAddr::from(from), 0)).expect("an address of this machine");
        let stream = timeout(DEADLINE, socket.connect(relay)).await.expect("in time");
        Self { stream: stream.expect("a connection") }
    }

    /// Connects and upgrades.
    pub(crate) async fn upgraded(relay: SocketAddr) -> Self {
        let mut raw = Self::connect(relay).await;
        raw.upgrade("").await;
        raw
    }

    /// Upgrades, with further lines in the head.
    pub(crate) async fn upgrade(&mut self, lines: &str) {
        self.write(format!("{UPGRADE}{lines}\r\n").as_bytes()).await;
        let head = self.head().await.expect("an answer");
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    }

    /// Connects, upgrades and authenticates.
    pub(crate) async fn authenticated(relay: SocketAddr, identity: &Identity) -> Self {
        let mut raw = Self::upgraded(relay).await;
        raw.authenticate(identity).await;
        raw
    }

    pub(crate) async fn authenticate(&mut self, identity: &Identity) {
        let proof = self.proof(identity).await;
        self.send_bytes(&proof).await;
        self.welcomed().await;
    }

    /// Takes the greeting and gives the frame that proves the device.
    pub(crate) async fn proof(&mut self, identity: &Identity) -> Vec<u8> {
        let greeting = self.payload().await.expect("a greeting");
        let frame = Authenticate {
            version: 1,
            device: identity.key(),
            instance: Instance([1; 16]),
            challenge: Digest([2; 32]),
            signature: Some(identity.prove(&greeting)),
            token: None,
            heartbeat_s: 300,
            window: None,
            capabilities: Names::default(),
        };
        codec::encode_client(1, &frame.into())
    }

    /// Takes the welcome.
    pub(crate) async fn welcomed(&mut self) {
        let welcome = self.receive().await.expect("a welcome");
        assert_eq!(welcome.frame.map(|frame| frame.name()), Ok("Welcome"));
    }

    // ---- writing

    /// Writes bytes as they stand. A relay that has closed meanwhile is noticed when it is read.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        let _ = timeout(DEADLINE, self.stream.write_all(bytes)).await.expect("written in time");
    }

    /// Writes as much as the relay takes until it takes no more for so long; how much that was.
    pub(crate) async fn write_until_stuck(
        &mut self,
        bytes: &[u8],
        most: usize,
        stuck: Duration,
    ) -> usize {
        let mut written = 0;
        while written < most {
            match timeout(stuck, self.stream.write(&bytes[written % bytes.len()..])).await {
                Ok(Ok(count)) => written += count,
                Ok(Err(_)) | Err(_) => break,
            }
        }
        written
    }

    /// Writes a whole binary message.
    pub(crate) async fn send_bytes(&mut self, payload: &[u8]) {
        self.write(&frame(LAST | BINARY, payload)).await;
    }

    pub(crate) async fn send(&mut self, request: u32, client_frame: &ClientFrame) {
        self.send_bytes(&codec::encode_client(request, client_frame)).await;
    }

    // ---- reading

    /// The head of an HTTP answer; none if the connection ends before.
    pub(crate) async fn head(&mut self) -> Option<String> {
        let mut head = Vec::new();
        let read = async {
            while !head.ends_with(b"\r\n\r\n") {
                head.push(self.stream.read_u8().await.ok()?);
            }
            Some(())
        };
        timeout(DEADLINE, read).await.expect("an answer in time")?;
        Some(String::from_utf8_lossy(&head).into_owned())
    }

    /// Takes this many bytes, whatever they are.
    pub(crate) async fn take(&mut self, bytes: usize) {
        let mut taken = vec![0; bytes];
        let read = timeout(DEADLINE, self.stream.read_exact(&mut taken)).await;
        read.expect("bytes in time").expect("a connection");
    }

    /// The next frame: its opcode and payload; none if the connection has ended.
    pub(crate) async fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        let read = async {
            let first = self.stream.read_u8().await.ok()?;
            let length = match self.stream.read_u8().await.ok()? {
                126 => u64::from(self.stream.read_u16().await.ok()?),
                127 => self.stream.read_u64().await.ok()?,
                short => u64::from(short),
            };
            let mut payload = vec![0; usize::try_from(length).ok()?];
            self.stream.read_exact(&mut payload).await.ok()?;
            Some((first & 0x0f, payload))
        };
        timeout(DEADLINE, read).await.expect("a frame in time")
    }

    /// The payload of the next binary message.
    async fn payload(&mut self) -> Option<Vec<u8>> {
        loop {
            match self.frame().await? {
                (BINARY, payload) => return Some(payload),
                (CLOSE, _) => return None,
                _ => {}
            }
        }
    }

    /// The next frame of the protocol; none if the connection has ended.
    pub(crate) async fn receive(&mut self) -> Option<Envelope<RelayFrame>> {
        Some(codec::decode_relay(&self.payload().await?).expect("a frame"))
    }

    /// Reads until the connection ends.
    pub(crate) async fn end(&mut self) -> End {
        loop {
            match self.frame().await {
                Some((CLOSE, payload)) => {
                    let code = payload.first_chunk().expect("a close frame has a code");
                    return End::Closed(u16::from_be_bytes(*code));
                }
                Some(_) => {}
                None => return End::Gone,
            }
        }
    }

    /// Waits until then; whether the connection has ended before. Nothing is read but the end.
    pub(crate) async fn ends_before(&mut self, deadline: Instant) -> bool {
        timeout_at(deadline, self.stream.read_u8()).await.is_ok_and(|read| read.is_err())
    }

    /// Says that nothing more is coming.
    pub(crate) async fn finish_writing(&mut self) {
        // The relay may have ended the connection already.
        let _ = self.stream.shutdown().await;
    }

    /// Reads until the connection ends, and how long that took.
    pub(crate) async fn timed_end(&mut self) -> (End, Duration) {
        let begun = Instant::now();
        let end = self.end().await;
        (end, begun.elapsed())
    }
}

/// A masked frame. `first` is its first byte: [`LAST`] and opcode.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = head(first, payload.len() as u64);
    bytes.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    bytes
}

/// The head of a masked frame that says that so much follows.
pub(crate) fn head(first: u8, length: u64) -> Vec<u8> {
    let mut bytes = vec![first];
    match length {
        0..=125 => bytes.push(0x80 | length as u8),
        126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            bytes.push(0x80 | 127);
            bytes.extend_from_slice(&length.to_be_bytes());
        }
    }
    bytes.extend_from_slice(&MASK);
    bytes
}
