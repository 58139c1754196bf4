//! Where a relay is, and which relays may be spoken to without TLS.
//!
//! The bodies are sealed, but who speaks to whom is not: plain `ws://` is for loopback alone, where
//! nobody listens in. That is decided here, when the address is read, and again for the addresses
//! that a name resolves to, so that `localhost` cannot lead elsewhere.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use sealwire_protocol::limits::WEBSOCKET_PATH;
use thiserror::Error;
use url::{Host, Url};

/// Longest address that is accepted, in bytes: it must fit an invite.
pub const ADDRESS_BYTES_MAX: usize = 512;

/// Why a text is not the address of a relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum AddressError {
    /// Not a URL with a host.
    #[error("not a URL of a relay")]
    Malformed,
    /// Another scheme than `ws`, `wss`, `http` and `https`.
    #[error("a relay's URL begins with wss:// or https://, on this machine with ws:// or http://")]
    Scheme,
    /// Has a user name, a query or a fragment.
    #[error("a relay's URL has no user name, query or fragment")]
    Extra,
    /// Without TLS, and not on this machine.
    #[error("without TLS only a relay on this machine may be used")]
    Plaintext,
    /// Longer than [`ADDRESS_BYTES_MAX`].
    #[error("a relay's URL is at most {ADDRESS_BYTES_MAX} bytes long")]
    TooLong,
}

/// The address of a relay: `wss://host[:port][/prefix]`, or `ws://` on loopback.
///
/// One relay has one spelling: `https` is read as `wss` and `http` as `ws`, a default port and a
/// trailing slash are dropped. The device's pins are kept under this spelling.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RelayUrl(Url);

impl RelayUrl {
    /// Reads an address.
    ///
    /// # Errors
    /// An [`AddressError`] that says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.len() > ADDRESS_BYTES_MAX {
            return Err(AddressError::TooLong);
        }
        let url = Url::parse(text.trim()).map_err(|_| AddressError::Malformed)?;
        let scheme = match url.scheme() {
            "wss" | "https" => "wss",
            "ws" | "http" => "ws",
            _ => return Err(AddressError::Scheme),
        };
        if !url.username().is_empty()
            || url.password().is_some()
            || url.query().is_some()
            || url.fragment().is_some()
        {
            return Err(AddressError::Extra);
        }
        let host = url.host().ok_or(AddressError::Malformed)?;
        if scheme == "ws" && !is_loopback(&host) {
            return Err(AddressError::Plaintext);
        }
        // Built anew: a URL's scheme cannot be changed in place from http to ws, and the port that
        // is the default of one is the default of the other.
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let path = url.path().trim_end_matches('/');
        let text = format!("{scheme}://{host}{port}{path}");
        let url = Url::parse(&text).map_err(|_| AddressError::Malformed)?;
        // What has no ASCII spelling of its own is longer now.
        if url.as_str().len() > ADDRESS_BYTES_MAX {
            return Err(AddressError::TooLong);
        }
        Ok(Self(url))
    }

    /// The one spelling.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str().trim_end_matches('/')
    }

    /// Whether the connection is without TLS.
    #[must_use]
    pub fn is_plaintext(&self) -> bool {
        self.0.scheme() == "ws"
    }

    /// The URL of the WebSocket.
    #[must_use]
    pub fn websocket(&self) -> String {
        format!("{}{WEBSOCKET_PATH}", self.as_str())
    }

    /// The path of an HTTP call, with the address's own before it.
    pub(crate) fn http_path(&self, path: &str) -> String {
        format!("{}{path}", self.0.path().trim_end_matches('/'))
    }

    /// Host and port as the `Host` header has them.
    pub(crate) fn http_host(&self) -> String {
        let host = self.0.host_str().unwrap_or_default();
        self.0.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
    }

    /// Host and port, as a resolver takes them.
    #[must_use]
    pub fn authority(&self) -> (String, u16) {
        let host = match self.0.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => String::new(),
        };
        (host, self.0.port_or_known_default().unwrap_or(443))
    }

    /// Whether a connection may be made to this address, to which the host was resolved.
    #[must_use]
    pub fn permits(&self, address: &SocketAddr) -> bool {
        !self.is_plaintext() || address.ip().to_canonical().is_loopback()
    }
}

impl fmt::Display for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for RelayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn is_loopback(host: &Host<&str>) -> bool {
    match host {
        Host::Domain(name) => {
            let name = name.trim_end_matches('.');
            name == "localhost" || name.ends_with(".localhost")
        }
        Host::Ipv4(address) => address.is_loopback(),
        Host::Ipv6(address) => IpAddr::V6(*address).to_canonical().is_loopback(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_relay_has_one_spelling() {
        for text in ["wss://Relay.example", "https://relay.example:443/", "wss://relay.example/"] {
            let url = RelayUrl::parse(text).expect("an address");
            assert_eq!(url.as_str(), "wss://relay.example", "{text}");
            assert_eq!(url.websocket(), "wss://relay.example/v1/ws");
            assert_eq!(url.authority(), ("relay.example".to_owned(), 443));
        }
        let prefixed = RelayUrl::parse("https://example.org:8443/relay/").expect("an address");
        assert_eq!(prefixed.websocket(), "wss://example.org:8443/relay/v1/ws");
        let local = RelayUrl::parse("http://[::1]:4000").expect("an address");
        assert_eq!(local.as_str(), "ws://[::1]:4000");
        assert_eq!(local.authority(), ("::1".to_owned(), 4000));
    }

    #[test]
    fn without_tls_only_loopback_is_spoken_to() {
        for text in ["ws://127.0.0.1:4000", "http://localhost:1", "ws://[::1]", "ws://127.9.9.9"] {
            assert!(RelayUrl::parse(text).is_ok(), "{text}");
        }
        for text in [
            "ws://relay.example",
            "http://10.0.0.1",
            "ws://127.0.0.1.example",
            "ws://0.0.0.0:4000",
            "http://localhost.example",
        ] {
            assert_eq!(RelayUrl::parse(text), Err(AddressError::Plaintext), "{text}");
        }
        let local = RelayUrl::parse("ws://localhost:4000").expect("an address");
        assert!(local.permits(&"127.0.0.1:4000".parse().expect("an address")));
        assert!(!local.permits(&"192.0.2.1:4000".parse().expect("an address")));
    }

    #[test]
    fn what_is_not_a_relay_is_refused() {
        assert_eq!(RelayUrl::parse("relay.example"), Err(AddressError::Malformed));
        assert_eq!(RelayUrl::parse("ftp://relay.example"), Err(AddressError::Scheme));
        assert_eq!(RelayUrl::parse("wss://a@relay.example"), Err(AddressError::Extra));
        assert_eq!(RelayUrl::parse("wss://relay.example/?q"), Err(AddressError::Extra));
        assert_eq!(RelayUrl::parse("wss://relay.example/#f"), Err(AddressError::Extra));
        // It is written with three characters for each byte, and must fit an invite so.
        let grows = format!("wss://relay.example/{}", "é".repeat(200));
        assert!(grows.len() < ADDRESS_BYTES_MAX);
        assert_eq!(RelayUrl::parse(&grows), Err(AddressError::TooLong));
    }
}
