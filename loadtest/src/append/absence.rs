//! Members that lose their connection and come back: all at once, with the relay, or now and then.
//!
//! Who comes back subscribes from where it has read, and sends again, byte for byte, what has no
//! answer yet. It is back when the relay says that it has everything.

use anyhow::{Context, Result};
use sealwire_client::wire::WireError;
use sealwire_protocol::frame::Subscribe;
use tokio::time::{Duration, Instant, timeout};

use super::member::Member;
use super::{Arguments, Disturbance};
use crate::limits::RETURN_DEADLINE;

/// When a member is away, and since when.
pub(super) struct Absence {
    /// Whether losing the connection is part of the run.
    expected: bool,
    /// Cuts that it has seen.
    cuts: u32,
    /// When it leaves by itself, and how long it stays each time.
    leaves: Option<(Instant, Duration)>,
    /// Nanosecond of the run at which its connection was lost, until it has caught up.
    since: Option<u64>,
}

impl Absence {
    /// Of the member with this number.
    pub(super) fn new(arguments: &Arguments, number: usize) -> Self {
        let members = arguments.groups * arguments.members;
        let leaves = arguments.churn.map(|churn| {
            let stay = Duration::from_secs(members as u64) / churn;
            // Not all at once: each has its own place in the first round.
            let first = stay.mul_f64((number % members) as f64 / members as f64);
            (Instant::now() + first, stay)
        });
        let expected = matches!(
            arguments.disturb,
            Some(Disturbance::Cut | Disturbance::Kill | Disturbance::Stop)
        );
        Self { expected, cuts: 0, leaves, since: None }
    }

    /// Whether its connection is to be cut now.
    pub(super) fn is_cut(&mut self, cuts: u32) -> bool {
        std::mem::replace(&mut self.cuts, cuts) < cuts
    }

    /// Whether this is a lost connection, where that is part of the run.
    pub(super) fn is_expected(&self, error: &anyhow::Error) -> bool {
        let lost = error.downcast_ref::<WireError>();
        self.expected && lost.is_some_and(|error| !matches!(error, WireError::Refused(_)))
    }

    /// When it leaves by itself.
    pub(super) fn leaves_at(&self) -> Option<Instant> {
        self.leaves.map(|(at, _)| at)
    }

    /// It stays from now on.
    pub(super) fn ends(&mut self) {
        self.leaves = None;
    }
}

impl Member {
    /// Drops its connection and makes a new one.
    pub(super) async fn come_back(&mut self) -> Result<()> {
        if let Some((at, stay)) = &mut self.absence.leaves {
            *at = Instant::now() + *stay;
        }
        let lost = self.tally.now();
        self.absence.since.get_or_insert(lost);
        let (wire, session) = timeout(RETURN_DEADLINE, self.crowd.enter_again(&self.device))
            .await
            .context("a device could not come back in time")??;
        self.wire = wire;
        self.incarnation = session.welcome.incarnation;
        match &self.reader {
            Some(reader) => {
                let (log, cursor) = (reader.log(), reader.head());
                self.wire.queue(&Subscribe { log, cursor, acked: None }.into());
            }
            // There is nothing that it could lack.
            None => self.is_back(),
        }
        self.resend();
        Ok(())
    }

    /// It has everything.
    pub(super) fn is_back(&mut self) {
        if let Some(since) = self.absence.since.take() {
            self.tally.returned(since);
        }
    }
}
