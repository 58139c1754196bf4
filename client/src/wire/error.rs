//! Everything that can end a connection, or keep it from being made.

use std::{fmt, io};

use sealwire_protocol::close::CloseReason;
use sealwire_protocol::codec::DecodeError;
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::{DeviceKey, Failure};
use thiserror::Error;
use tokio_tungstenite::tungstenite;

/// Why a connection could not be made, or has ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// The name of the relay has no address that may be used.
    #[error("the relay's name has no usable address")]
    NoAddress,
    /// The relay could not be reached, or the socket failed.
    #[error("the connection failed: {0}")]
    Io(io::ErrorKind),
    /// Something took longer than its deadline.
    #[error("{0} took too long")]
    Timeout(Step),
    /// The answer to the upgrade was another HTTP status than 101.
    #[error("the relay answered the upgrade with HTTP status {0}")]
    Upgrade(u16),
    /// `wss://`, and this build has no TLS.
    #[error("this build has no TLS")]
    NoTls,
    /// The relay's certificate is not trusted, or TLS failed in another way.
    #[error("TLS failed")]
    Tls,
    /// What is there does not speak Sealwire's protocol.
    #[error("what answers there is not a relay")]
    NotARelay,
    /// No version is spoken by both.
    #[error("the relay speaks versions {lowest} to {highest}")]
    Version {
        /// The lowest version that the relay speaks.
        lowest: u16,
        /// The highest.
        highest: u16,
    },
    /// The relay presents another key than the one that belongs to its address. Only a person can
    /// decide whether it was moved or is another one.
    #[error("the relay's key has changed")]
    RelayKeyChanged {
        /// The key that was expected.
        pinned: DeviceKey,
        /// The key that was presented, without proof.
        presented: DeviceKey,
    },
    /// The relay could not prove the key that it presented.
    #[error("the relay did not prove its key")]
    RelayProof,
    /// The relay refused; [`Failure::code`] says why.
    #[error("the relay refused: {0}")]
    Refused(Box<Failure>),
    /// The relay closed the connection.
    #[error("the relay closed the connection ({})", .0.map_or("no reason", CloseReason::name))]
    Closed(Option<CloseReason>),
    /// The relay sent bytes that are not a frame.
    #[error("the relay sent what is not a frame")]
    Frame(DecodeError),
    /// The system has no randomness to give.
    #[error("the system gives no random bytes")]
    NoRandomness,
    /// Nothing was heard for two heartbeat intervals.
    #[error("the relay is silent")]
    Silent,
    /// More frames came than may be set aside while one answer was waited for.
    #[error("too many frames came before the answer")]
    SetAside,
}

impl WireError {
    /// The code of a refusal; none if this is something else.
    #[must_use]
    pub fn code(&self) -> Option<ErrorCode> {
        if let Self::Refused(failure) = self { Some(failure.code) } else { None }
    }
}

impl From<Failure> for WireError {
    fn from(failure: Failure) -> Self {
        Self::Refused(Box::new(failure))
    }
}

/// What took too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Reaching the relay.
    Connect,
    /// The greeting.
    Greeting,
    /// The answer to `Authenticate`.
    Welcome,
    /// Writing.
    Write,
    /// The answer to a request.
    Answer,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connecting",
            Self::Greeting => "the relay's greeting",
            Self::Welcome => "the relay's welcome",
            Self::Write => "writing",
            Self::Answer => "the relay's answer",
        })
    }
}

/// What an error of the WebSocket library means. Its text may quote what came, and is dropped.
pub(super) fn from_socket(error: &tungstenite::Error) -> WireError {
    use tungstenite::Error;
    use tungstenite::error::ProtocolError;
    match error {
        Error::ConnectionClosed
        | Error::AlreadyClosed
        | Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => WireError::Closed(None),
        Error::Io(error) => WireError::Io(error.kind()),
        Error::Tls(_) => WireError::Tls,
        Error::Url(_) => WireError::NoTls,
        Error::Http(response) => WireError::Upgrade(response.status().as_u16()),
        Error::Capacity(_) => WireError::Frame(DecodeError::TooLong),
        Error::WriteBufferFull(_) => WireError::Timeout(Step::Write),
        Error::Protocol(_) | Error::Utf8(_) | Error::AttackAttempt | Error::HttpFormat(_) => {
            WireError::NotARelay
        }
    }
}
