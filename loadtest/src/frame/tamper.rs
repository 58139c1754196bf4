//! Somebody between the devices and the relay who tampers with deliveries: to see whether this program
//! would notice.
//!
//! A relay that loses one delivery in ten thousand looks like any other. So here is a proxy that makes
//! one of it, and the report has to show it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use futures_util::{FutureExt, SinkExt, StreamExt};
use sealwire_client::address::RelayUrl;
use sealwire_protocol::codec::{decode_relay, encode_relay};
use sealwire_protocol::limits::{FRAME_BYTES_MAX, WEBSOCKET_SUBPROTOCOL};
use sealwire_protocol::{Body, RelayFrame};
use serde::Serialize;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;

use super::relay::Relay;

/// Read buffer of a connection, in bytes.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// Messages that are read before anything is written.
const MESSAGES_AT_ONCE: usize = 64;

/// Whether deliveries are tampered with.
#[derive(Args, Serialize)]
pub(crate) struct Tampering {
    /// To see whether this program would notice: tamper with deliveries on their way to devices.
    #[arg(long, value_enum)]
    tamper: Option<Tamper>,
    /// With --tamper: one delivery in so many.
    #[arg(long, value_name = "DELIVERIES", default_value_t = 10_000)]
    tamper_one_in: u64,
}

/// What is done to a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Tamper {
    /// It is left out.
    Drop,
    /// It comes twice.
    Double,
    /// It comes after what should come after it.
    Swap,
    /// Its body is another one.
    Alter,
}

/// A proxy, for as long as this is kept.
pub(crate) struct Proxy(AbortHandle);

impl Drop for Proxy {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// One delivery in so many, over all connections.
struct Plan {
    tamper: Tamper,
    one_in: u64,
    deliveries: AtomicU64,
    relay: SocketAddr,
}

impl Tampering {
    /// Puts a proxy before the relay, if that is asked for: from now on its URL is the proxy's.
    pub(crate) async fn begin(&self, relay: &mut Relay) -> Result<Option<Proxy>> {
        let Some(tamper) = self.tamper else { return Ok(None) };
        ensure!(self.tamper_one_in > 0, "one in none is none");
        let url = RelayUrl::parse(&relay.url).context("the relay's address")?;
        let (host, port) = url.authority();
        let address = tokio::net::lookup_host((host, port)).await?.find(SocketAddr::is_ipv4);
        let plan = Arc::new(Plan {
            tamper,
            one_in: self.tamper_one_in,
            deliveries: AtomicU64::new(0),
            relay: address.context("the proxy speaks IPv4 alone")?,
        });
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        relay.url = format!("ws://{}", listener.local_addr()?);
        Ok(Some(Proxy(tokio::spawn(serve(listener, plan)).abort_handle())))
    }
}

async fn serve(listener: TcpListener, plan: Arc<Plan>) {
    let mut connections = JoinSet::new();
    // What fails here is a connection that the devices miss.
    while let Ok((stream, from)) = listener.accept().await {
        connections.spawn(Box::pin(pass_on(stream, from, plan.clone())));
        while connections.try_join_next().is_some() {}
    }
}

type Socket = WebSocketStream<TcpStream>;

async fn pass_on(stream: TcpStream, from: SocketAddr, plan: Arc<Plan>) -> Result<()> {
    let (mut device, mut relay) = connect(stream, from, plan.relay).await?;
    let mut held_back = None;
    loop {
        tokio::select! {
            message = device.next() => {
                relay.feed(message.context("the device has left")??).await?;
                for _ in 1..MESSAGES_AT_ONCE {
                    let Some(message) = device.next().now_or_never() else { break };
                    relay.feed(message.context("the device has left")??).await?;
                }
                relay.flush().await?;
            }
            message = relay.next() => {
                let mut next = Some(message);
                let mut room = MESSAGES_AT_ONCE;
                while let Some(message) = next {
                    let message = message.context("the relay has left")??;
                    plan.deliver(message, &mut held_back, &mut device).await?;
                    room -= 1;
                    next = if room > 0 { relay.next().now_or_never() } else { None };
                }
                device.flush().await?;
            }
        }
    }
}

/// A WebSocket to each side; to the relay from the address that the device has.
async fn connect(
    stream: TcpStream,
    from: SocketAddr,
    relay: SocketAddr,
) -> Result<(Socket, Socket)> {
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    let protocol = HeaderValue::from_static(WEBSOCKET_SUBPROTOCOL);
    let mut path = String::new();
    let answer = |request: &Request, mut response: Response| -> Result<Response, ErrorResponse> {
        request.uri().path().clone_into(&mut path);
        response.headers_mut().insert("sec-websocket-protocol", protocol.clone());
        Ok(response)
    };
    stream.set_nodelay(true)?;
    let device =
        tokio_tungstenite::accept_hdr_async_with_config(stream, answer, Some(config)).await?;

    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from.ip(), 0))?;
    let stream = socket.connect(relay).await?;
    stream.set_nodelay(true)?;
    let mut request = format!("ws://{relay}{path}").into_client_request()?;
    request.headers_mut().insert("sec-websocket-protocol", protocol);
    let (relay, _) =
        tokio_tungstenite::client_async_with_config(request, stream, Some(config)).await?;
    Ok((device, relay))
}

impl Plan {
    fn is_its_turn(&self) -> bool {
        self.deliveries.fetch_add(1, Ordering::Relaxed) % self.one_in == self.one_in - 1
    }

    /// Passes a message on to the device, or tampers with it if it is its turn.
    async fn deliver(
        &self,
        message: Message,
        held_back: &mut Option<Message>,
        device: &mut Socket,
    ) -> Result<()> {
        let tamper = match &message {
            Message::Binary(bytes) if is_entry(bytes) => self.is_its_turn(),
            Message::Binary(_)
            | Message::Text(_)
            | Message::Ping(_)
            | Message::Pong(_)
            | Message::Close(_)
            | Message::Frame(_) => false,
        };
        let mut messages = match self.tamper {
            Tamper::Drop if tamper => Vec::new(),
            Tamper::Double if tamper => vec![message.clone(), message],
            Tamper::Swap if tamper && held_back.is_none() => {
                *held_back = Some(message);
                return Ok(());
            }
            Tamper::Alter if tamper => vec![alter(&message).context("an entry has a body")?],
            Tamper::Drop | Tamper::Double | Tamper::Swap | Tamper::Alter => vec![message],
        };
        messages.extend(held_back.take());
        for message in messages {
            device.feed(message).await?;
        }
        Ok(())
    }
}

fn is_entry(bytes: &[u8]) -> bool {
    let frame = decode_relay(bytes).map(|envelope| envelope.frame);
    matches!(frame, Ok(Ok(RelayFrame::Entry(_))))
}

/// The same entry with another body.
fn alter(message: &Message) -> Option<Message> {
    let Message::Binary(bytes) = message else { return None };
    let envelope = decode_relay(bytes).ok()?;
    let RelayFrame::Entry(mut entry) = envelope.frame.ok()? else { return None };
    let mut body = entry.body.as_ref().to_vec();
    *body.last_mut()? ^= 1;
    entry.body = Body(body.into());
    Some(Message::binary(encode_relay(envelope.request, &entry.into())))
}
