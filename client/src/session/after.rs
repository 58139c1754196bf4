//! What the end of a connection asks for: another one, when, or a person.

use std::time::Duration;

use sealwire_protocol::Failure;
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::error::ErrorCode;

use crate::backoff::ASKED_MAX;
use crate::engine::End;
use crate::error::{Error, StoreError};
use crate::wire::{Step, WireError};

/// What happens after a connection.
pub(super) enum After {
    /// Again, not before this long.
    Again(WireError, Duration),
    /// Again, at this time exactly: the relay has spread its devices itself.
    At(WireError, Duration),
    /// Not again.
    Over(WireError),
    Failed(StoreError),
    Stopped,
}

/// Whether the device's file may work again by itself.
pub(super) fn passes(error: StoreError) -> bool {
    matches!(error, StoreError::Busy | StoreError::Full | StoreError::Io)
}

pub(super) fn failed(error: &Error) -> After {
    if let Error::Store(error) = error { After::Failed(*error) } else { After::Stopped }
}

pub(super) fn after_end(end: End, come_back: Option<Duration>) -> After {
    match end {
        End::Superseded => After::Over(WireError::Closed(Some(CloseReason::Superseded))),
        End::Drained => After::At(
            WireError::Closed(Some(CloseReason::GoingAway)),
            come_back.unwrap_or(Duration::ZERO).min(ASKED_MAX),
        ),
        End::Refused(failure) => after_refusal(*failure),
        End::Unanswered => After::Again(WireError::Timeout(Step::Answer), Duration::ZERO),
    }
}

fn after_refusal(failure: Failure) -> After {
    let asked = failure.retry_after_ms.map_or(Duration::ZERO, Duration::from_millis).min(ASKED_MAX);
    let for_good = matches!(
        failure.code,
        ErrorCode::AuthenticationFailed
            | ErrorCode::VersionUnsupported
            | ErrorCode::Unsupported
            | ErrorCode::NotAuthenticated
            | ErrorCode::Malformed
    );
    let reason = WireError::from(failure);
    if for_good { After::Over(reason) } else { After::Again(reason, asked) }
}

/// What follows if a connection ends like this after the relay has said when to come back, or has not.
pub(super) fn after_break(error: WireError, come_back: Option<Duration>) -> After {
    match come_back {
        Some(wait) => After::At(error, wait.min(ASKED_MAX)),
        None => after_error(error),
    }
}

/// Whether it makes sense to try again after this.
pub(super) fn after_error(error: WireError) -> After {
    match error {
        WireError::Refused(failure) => after_refusal(*failure),
        WireError::RelayKeyChanged { .. }
        | WireError::RelayProof
        | WireError::Version { .. }
        | WireError::NoTls
        | WireError::Closed(Some(
            CloseReason::Superseded
            | CloseReason::AuthenticationFailed
            | CloseReason::Protocol
            | CloseReason::TooBig
            | CloseReason::Malformed,
        )) => After::Over(error),
        // Most of these are the network's doing, and pass. What is not a relay may be a café's
        // sign-in page.
        WireError::NoAddress
        | WireError::Io(_)
        | WireError::Timeout(_)
        | WireError::Upgrade(_)
        | WireError::Tls
        | WireError::NotARelay
        | WireError::Closed(_)
        | WireError::Frame(_)
        | WireError::NoRandomness
        | WireError::Silent
        | WireError::SetAside => After::Again(error, Duration::ZERO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_relay_keeps_a_device_away_for_ever() {
        let for_ever = Duration::from_millis(u64::MAX);
        let mut failure = Failure::new(ErrorCode::Unavailable);
        failure.retry_after_ms = Some(u64::MAX);
        let said = WireError::from(failure);
        let waits = [
            (after_end(End::Drained, Some(for_ever)), ASKED_MAX),
            (after_break(WireError::Silent, Some(for_ever)), ASKED_MAX),
            (after_end(End::Refused(Box::new(failure)), None), ASKED_MAX),
            (after_error(said), ASKED_MAX),
            (after_end(End::Drained, Some(Duration::from_secs(60))), Duration::from_secs(60)),
        ];
        for (after, longest) in waits {
            let (After::Again(_, wait) | After::At(_, wait)) = after else { panic!("it ends") };
            assert_eq!(wait, longest);
        }
    }
}
