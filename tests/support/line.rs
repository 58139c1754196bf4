//! The line between devices and a relay, and what goes wrong on it.
//!
//! It carries WebSocket messages as they are, in both directions, and keeps what devices have sent. What
//! goes wrong with the next connection is said before it is made ([`Line::next`]). When it has, the line
//! is cut, or goes dead and says so ([`Line::struck`]): then whoever runs the device ends it there.

use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use sealwire_client::address::RelayUrl;
use sealwire_protocol::keys::KeyBody;
use sealwire_protocol::limits::WEBSOCKET_SUBPROTOCOL;
use sealwire_protocol::{ClientFrame, DeviceKey, Kind, RelayFrame, codec};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::{WebSocketStream, accept_hdr_async, client_async};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Nobody is reached.
    Away,
    /// After so many pushes the next one reaches the relay, and its answer never comes back.
    AnswerLost(usize),
    /// After so many pushes the next one is lost.
    PushLost(usize),
    /// The line is gone after so many messages of the relay.
    Gone(usize),
    /// Every entry comes twice.
    Doubled,
}

/// What becomes of the next connection.
#[derive(Clone, Copy)]
struct Plan {
    fault: Fault,
    /// When it has gone wrong, the line goes dead instead of being cut.
    dead: bool,
}

struct Shared {
    relay: SocketAddr,
    next: Mutex<Option<Plan>>,
    struck: watch::Sender<u64>,
    carried: Mutex<Vec<u8>>,
    keys: Mutex<Vec<(DeviceKey, KeyBody)>>,
}

/// A port of its own, behind which a relay is.
pub(crate) struct Line {
    shared: Arc<Shared>,
    url: RelayUrl,
    accept: JoinHandle<()>,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.accept.abort();
    }
}

impl Line {
    pub(crate) async fn to(relay: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("ws://{}", listener.local_addr().expect("an address"));
        let (next, carried, keys) = Default::default();
        let shared = Arc::new(Shared { relay, next, struck: watch::Sender::new(0), carried, keys });
        let serving = shared.clone();
        let accept = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(carry(serving.clone(), stream));
            }
        });
        Self { shared, url: RelayUrl::parse(&url).expect("an address"), accept }
    }

    pub(crate) fn url(&self) -> &RelayUrl {
        &self.url
    }

    /// What goes wrong with the next connection, and with no other. With `dead` the line goes dead then,
    /// and stays so until the device has ended its side.
    pub(crate) fn next(&self, fault: Option<Fault>, dead: bool) {
        *self.shared.next.lock() = fault.map(|fault| Plan { fault, dead });
    }

    /// Waits, from now on, until a line has gone dead.
    pub(crate) fn struck(&self) -> impl Future<Output = ()> + use<> {
        let mut struck = self.shared.struck.subscribe();
        async move {
            // The line outlives its connections.
            let _ = struck.changed().await;
        }
    }

    /// The keys that devices have given, in order: who, and what to whom.
    pub(crate) fn given_keys(&self) -> Vec<(DeviceKey, KeyBody)> {
        self.shared.keys.lock().clone()
    }

    /// Whether any message of a device held these bytes.
    pub(crate) fn has_carried(&self, holds: impl Fn(&[u8]) -> bool) -> bool {
        holds(&self.shared.carried.lock())
    }
}

type Socket = WebSocketStream<TcpStream>;

/// One connection.
struct Carried {
    shared: Arc<Shared>,
    device: Socket,
    relay: Socket,
    plan: Option<Plan>,
    pushes: usize,
    received: usize,
    /// The request whose answer is to be lost.
    awaited: Option<u32>,
}

/// The connection is over, by itself or by plan.
enum End {
    Over,
    Struck,
}

async fn carry(shared: Arc<Shared>, stream: TcpStream) {
    let plan = shared.next.lock().take();
    if plan.is_some_and(|plan| plan.fault == Fault::Away) {
        return;
    }
    // Nothing is to wait for an acknowledgement of the kernel's.
    let _ = stream.set_nodelay(true);
    let protocol = HeaderValue::from_static(WEBSOCKET_SUBPROTOCOL);
    let accept = |_: &Request, mut response: Response| {
        response.headers_mut().insert("sec-websocket-protocol", protocol.clone());
        Ok(response)
    };
    let Ok(device) = accept_hdr_async(stream, accept).await else { return };
    let mut request = format!("ws://{}/v1/ws", shared.relay)
        .into_client_request()
        .expect("an address is a request");
    request.headers_mut().insert("sec-websocket-protocol", protocol.clone());
    let Ok(stream) = TcpStream::connect(shared.relay).await else { return };
    let _ = stream.set_nodelay(true);
    let Ok((relay, _)) = client_async(request, stream).await else { return };
    let (pushes, received, awaited) = (0, 0, None);
    let mut carried = Carried { shared, device, relay, plan, pushes, received, awaited };
    if matches!(carried.run().await, End::Struck) && plan.is_some_and(|plan| plan.dead) {
        let Carried { shared, mut device, relay, .. } = carried;
        drop(relay);
        shared.struck.send_modify(|count| *count += 1);
        while let Some(Ok(_)) = device.next().await {}
    }
}

impl Carried {
    async fn run(&mut self) -> End {
        loop {
            let end = tokio::select! {
                said = self.device.next() => match said {
                    Some(Ok(message)) => self.pass_up(message).await,
                    _ => Err(End::Over),
                },
                said = self.relay.next() => match said {
                    Some(Ok(message)) => self.pass_down(message).await,
                    _ => Err(End::Over),
                },
            };
            if let Err(end) = end {
                return end;
            }
        }
    }

    async fn pass_up(&mut self, message: Message) -> Result<(), End> {
        if let Message::Binary(bytes) = &message {
            self.shared.carried.lock().extend_from_slice(bytes);
            let envelope = codec::decode_client(bytes).map_err(|_| End::Over)?;
            let frame = envelope.frame.as_ref().ok();
            let entries = match frame {
                Some(ClientFrame::Append(append)) => std::slice::from_ref(&append.entry),
                Some(ClientFrame::AppendBatch(batch)) => &batch.entries[..],
                _ => &[],
            };
            for entry in entries {
                let header = entry.header.decode().map_err(|_| End::Over)?;
                if header.kind == Kind::Key {
                    let body = KeyBody::decode(entry.body.as_ref()).map_err(|_| End::Over)?;
                    self.shared.keys.lock().push((header.sender, body));
                }
            }
            if matches!(frame, Some(ClientFrame::Append(_) | ClientFrame::AppendBatch(_))) {
                let fault = self.plan.map(|plan| plan.fault);
                if fault == Some(Fault::PushLost(self.pushes)) {
                    return Err(End::Struck);
                }
                if fault == Some(Fault::AnswerLost(self.pushes)) {
                    self.awaited = Some(envelope.request);
                }
                self.pushes += 1;
            }
        }
        self.relay.send(message).await.map_err(|_| End::Over)
    }

    async fn pass_down(&mut self, message: Message) -> Result<(), End> {
        let mut again = None;
        if let Message::Binary(bytes) = &message {
            let envelope = codec::decode_relay(bytes).map_err(|_| End::Over)?;
            let fault = self.plan.map(|plan| plan.fault);
            let answered = envelope.request != 0 && Some(envelope.request) == self.awaited;
            if answered || fault == Some(Fault::Gone(self.received)) {
                return Err(End::Struck);
            }
            self.received += 1;
            if fault == Some(Fault::Doubled) && matches!(envelope.frame, Ok(RelayFrame::Entry(_))) {
                again = Some(message.clone());
            }
        }
        for message in [Some(message), again].into_iter().flatten() {
            self.device.send(message).await.map_err(|_| End::Over)?;
        }
        Ok(())
    }
}
