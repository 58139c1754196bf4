//! From an address to an open WebSocket: resolve, connect, TLS, upgrade.

use std::net::SocketAddr;

use sealwire_protocol::limits::{FRAME_BYTES_MAX, WEBSOCKET_SUBPROTOCOL};
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use super::{Options, Step, Wire, WireError, from_socket};
use crate::address::RelayUrl;
use crate::limits::{WRITE_BUFFER_BYTES, WRITE_BUFFER_BYTES_MAX};

impl Wire {
    /// Opens a WebSocket and does nothing on it: the relay's greeting is the first frame.
    ///
    /// # Errors
    /// That the relay could not be reached, or what answers there is not one.
    pub async fn open(relay: &RelayUrl, options: &Options) -> Result<Self, WireError> {
        // Boxed: the TLS handshake's state is large and is needed once.
        let open = Box::pin(async {
            let stream = stream(relay, options).await?;
            upgrade(relay, options, stream).await
        });
        let socket = tokio::time::timeout(options.connect_deadline, open)
            .await
            .unwrap_or(Err(WireError::Timeout(Step::Connect)))?;
        Ok(Self::new(socket))
    }
}

/// A connection to a relay's address, with TLS or on this machine.
pub(crate) type Stream = MaybeTlsStream<TcpStream>;

/// Connects, and does nothing on it.
///
/// # Errors
/// As [`Wire::open`].
pub(crate) async fn stream(relay: &RelayUrl, options: &Options) -> Result<Stream, WireError> {
    let stream = reach(relay, options).await?;
    if relay.is_plaintext() {
        Ok(MaybeTlsStream::Plain(stream))
    } else {
        tls::wrap(relay, stream).await
    }
}

/// Connects to the first address that answers.
async fn reach(relay: &RelayUrl, options: &Options) -> Result<TcpStream, WireError> {
    let (host, port) = relay.authority();
    let addresses = tokio::net::lookup_host((host.as_str(), port))
        .await
        .map_err(|error| WireError::Io(error.kind()))?;
    let mut result = Err(WireError::NoAddress);
    for address in addresses.filter(|address| relay.permits(address)) {
        result = connect_from(options, address).await;
        if result.is_ok() {
            break;
        }
    }
    result
}

async fn connect_from(options: &Options, address: SocketAddr) -> Result<TcpStream, WireError> {
    let connect = async {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        if let Some(source) = options.source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let stream = socket.connect(address).await?;
        // Frames are small and somebody waits for each of them.
        stream.set_nodelay(true)?;
        Ok(stream)
    };
    connect.await.map_err(|error: std::io::Error| WireError::Io(error.kind()))
}

async fn upgrade(
    relay: &RelayUrl,
    options: &Options,
    stream: Stream,
) -> Result<WebSocketStream<Stream>, WireError> {
    let mut request =
        relay.websocket().into_client_request().map_err(|error| from_socket(&error))?;
    request
        .headers_mut()
        .insert("sec-websocket-protocol", HeaderValue::from_static(WEBSOCKET_SUBPROTOCOL));
    let config = WebSocketConfig::default()
        .read_buffer_size(options.read_buffer_bytes)
        .write_buffer_size(WRITE_BUFFER_BYTES)
        .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
        .max_message_size(Some(FRAME_BYTES_MAX))
        .max_frame_size(Some(FRAME_BYTES_MAX));
    tokio_tungstenite::client_async_with_config(request, stream, Some(config))
        .await
        .map(|(socket, _)| socket)
        .map_err(|error| from_socket(&error))
}

#[cfg(feature = "tls")]
mod tls {
    //! TLS by rustls with ring, trusting Mozilla's roots.

    use std::sync::{Arc, OnceLock};

    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, RootCertStore};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;
    use tokio_tungstenite::MaybeTlsStream;

    use crate::address::RelayUrl;
    use crate::wire::WireError;

    pub(super) async fn wrap(
        relay: &RelayUrl,
        stream: TcpStream,
    ) -> Result<MaybeTlsStream<TcpStream>, WireError> {
        let name = ServerName::try_from(relay.authority().0).map_err(|_| WireError::Tls)?;
        let connector = TlsConnector::from(config()?);
        let stream = connector.connect(name, stream).await.map_err(|error| {
            // rustls reports an untrusted certificate, or a broken protocol, as invalid data.
            if error.kind() == std::io::ErrorKind::InvalidData {
                WireError::Tls
            } else {
                WireError::Io(error.kind())
            }
        })?;
        Ok(MaybeTlsStream::Rustls(stream))
    }

    /// One configuration for all connections, so that sessions are resumed.
    fn config() -> Result<Arc<ClientConfig>, WireError> {
        static CONFIG: OnceLock<Option<Arc<ClientConfig>>> = OnceLock::new();
        CONFIG.get_or_init(build).clone().ok_or(WireError::Tls)
    }

    fn build() -> Option<Arc<ClientConfig>> {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .ok()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Some(Arc::new(config))
    }
}

#[cfg(not(feature = "tls"))]
mod tls {
    //! No TLS in this build: nothing but loopback can be reached.

    use tokio::net::TcpStream;
    use tokio_tungstenite::MaybeTlsStream;

    use crate::address::RelayUrl;
    use crate::wire::WireError;

    pub(super) async fn wrap(
        _relay: &RelayUrl,
        _stream: TcpStream,
    ) -> Result<MaybeTlsStream<TcpStream>, WireError> {
        Err(WireError::NoTls)
    }
}
