//! Every reason for which the relay closes a WebSocket, its code, and what the device should do.

/// Why a WebSocket was closed by the relay. Codes below 4000 are RFC 6455's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloseReason {
    /// 1001: the relay is going away; reconnect after the time that `Draining` gave.
    GoingAway,
    /// 1002: bytes that are not WebSocket, or a text frame. A bug in the device; do not repeat.
    Protocol,
    /// 1009: a message longer than the bound. Do not repeat.
    TooBig,
    /// 4000: no valid `Authenticate` in time. Reconnect with backoff.
    AuthenticationTimeout,
    /// 4001: the proof or token was not accepted. Authenticate by signature; else do not repeat.
    AuthenticationFailed,
    /// 4002: a newer session of the same device and instance is here. Do not reconnect.
    Superseded,
    /// 4003: too many instances of this device. Close one of them first.
    TooManyInstances,
    /// 4004: a message was begun and not finished in time. Reconnect with backoff.
    MessageTimeout,
    /// 4005: nothing was heard for two heartbeat intervals. Reconnect.
    Silent,
    /// 4006: too many unauthenticated connections from this address, or in all. Reconnect with
    /// backoff.
    RateLimited,
    /// 4007: the device did not take what it was sent. Reconnect; resume from the cursor.
    SlowConsumer,
    /// 4008: frames that could not be decoded, more than a few. A bug in the device.
    Malformed,
    /// 1011: a bug in the relay ended this session. Reconnect.
    Internal,
}

impl CloseReason {
    /// Every reason, in the order of the table in docs/PROTOCOL.md.
    pub const ALL: [Self; 13] = [
        Self::GoingAway,
        Self::Protocol,
        Self::TooBig,
        Self::Internal,
        Self::AuthenticationTimeout,
        Self::AuthenticationFailed,
        Self::Superseded,
        Self::TooManyInstances,
        Self::MessageTimeout,
        Self::Silent,
        Self::RateLimited,
        Self::SlowConsumer,
        Self::Malformed,
    ];

    /// The close code.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::GoingAway => 1001,
            Self::Protocol => 1002,
            Self::TooBig => 1009,
            Self::Internal => 1011,
            Self::AuthenticationTimeout => 4000,
            Self::AuthenticationFailed => 4001,
            Self::Superseded => 4002,
            Self::TooManyInstances => 4003,
            Self::MessageTimeout => 4004,
            Self::Silent => 4005,
            Self::RateLimited => 4006,
            Self::SlowConsumer => 4007,
            Self::Malformed => 4008,
        }
    }

    /// The close reason's text and the value of the metric label. A name leaks nothing.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::GoingAway => "going_away",
            Self::Protocol => "protocol",
            Self::TooBig => "too_big",
            Self::Internal => "internal",
            Self::AuthenticationTimeout => "authentication_timeout",
            Self::AuthenticationFailed => "authentication_failed",
            Self::Superseded => "superseded",
            Self::TooManyInstances => "too_many_instances",
            Self::MessageTimeout => "message_timeout",
            Self::Silent => "silent",
            Self::RateLimited => "rate_limited",
            Self::SlowConsumer => "slow_consumer",
            Self::Malformed => "malformed",
        }
    }

    /// The reason with this code.
    #[must_use]
    pub fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }
}
