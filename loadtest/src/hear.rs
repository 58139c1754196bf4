//! What a device of the crowd acts on, of all that a relay can say.

use sealwire_protocol::RelayFrame;
use sealwire_protocol::frame::{Appended, Entry, Error, Stubs};

/// A frame of the relay.
pub(crate) enum Heard {
    Appended(Appended),
    Refused(Error),
    Entry(Entry),
    Stubs(Stubs),
    Drained,
    Heartbeat,
    /// What makes no difference to anything that is measured.
    Other,
}

impl From<RelayFrame> for Heard {
    fn from(frame: RelayFrame) -> Self {
        match frame {
            RelayFrame::Appended(appended) => Self::Appended(appended),
            RelayFrame::Error(error) => Self::Refused(error),
            RelayFrame::Entry(entry) => Self::Entry(entry),
            RelayFrame::Stubs(stubs) => Self::Stubs(stubs),
            RelayFrame::Drained(_) => Self::Drained,
            RelayFrame::Heartbeat(_) => Self::Heartbeat,
            RelayFrame::Greeting(_)
            | RelayFrame::Welcome(_)
            | RelayFrame::Subscribed(_)
            | RelayFrame::Floor(_)
            | RelayFrame::Members(_)
            | RelayFrame::Logs(_)
            | RelayFrame::Membership(_)
            | RelayFrame::Superseded(_)
            | RelayFrame::Draining(_)
            | RelayFrame::Done(_)
            | RelayFrame::Joined(_)
            | RelayFrame::Token(_)
            | RelayFrame::Snapshots(_)
            | RelayFrame::SnapshotChunk(_)
            | RelayFrame::QuotaReached(_)
            | RelayFrame::RecoveryFetched(_) => Self::Other,
        }
    }
}
