//! The answer that a request is owed, as a value.
//!
//! Whoever holds a [`Reply`] owes an answer; dropping it unanswered answers `unavailable` with a
//! time to wait. So a log actor that panics, a committer that is replaced and a mailbox that is full
//! all leave no device waiting, however the code around them changes. The reply also holds the
//! request's credit: what a session may have in flight is bounded by what has not been answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sealwire_protocol::frame::{Appended, Error};
use sealwire_protocol::limits::{IN_FLIGHT_BYTES_MAX, IN_FLIGHT_REQUESTS_MAX};
use sealwire_protocol::{ErrorCode, Failure, RelayFrame};

use crate::limits::{
    IN_FLIGHT_BYTES_GLOBAL_MAX, RETRY_AFTER_MS_MAX, RETRY_AFTER_MS_MIN, TOO_MANY_RETRY_MS,
};
use crate::outbox::Outbox;

/// Bytes of bodies that all sessions together have unanswered.
#[derive(Default)]
pub(crate) struct Budget(AtomicUsize);

/// The share of that which a request without a session takes, for as long as it is under way.
pub(crate) struct Credit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Credit {
    /// Takes credit for `bytes` of bodies.
    ///
    /// # Errors
    /// `unavailable` if all together have too much unanswered.
    pub(crate) fn take(budget: &Arc<Budget>, bytes: usize) -> Result<Self, Failure> {
        let all = budget.0.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let credit = Self { budget: budget.clone(), bytes };
        if all > IN_FLIGHT_BYTES_GLOBAL_MAX { Err(unavailable()) } else { Ok(credit) }
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// What one session has unanswered.
#[derive(Default)]
pub(crate) struct InFlight {
    requests: AtomicUsize,
    bytes: AtomicUsize,
}

impl InFlight {
    /// Whether anything is unanswered.
    pub(crate) fn any(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 0
    }
}

/// An answer owed.
pub(crate) struct Reply {
    outbox: Arc<Outbox>,
    budget: Arc<Budget>,
    request: u32,
    bytes: usize,
    answered: bool,
}

impl Reply {
    /// Takes the credit for a request with `bytes` of bodies.
    ///
    /// # Errors
    /// `too_many_in_flight` if the session has too much unanswered, `unavailable` if all sessions
    /// together do.
    pub(crate) fn begin(
        outbox: &Arc<Outbox>,
        budget: &Arc<Budget>,
        request: u32,
        bytes: usize,
    ) -> Result<Self, Failure> {
        let in_flight = outbox.in_flight();
        let requests = in_flight.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let session_bytes = in_flight.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let global_bytes = budget.0.fetch_add(bytes, Ordering::Relaxed) + bytes;
        // From here on the guard gives everything back.
        let mut reply =
            Self { outbox: outbox.clone(), budget: budget.clone(), request, bytes, answered: true };
        if requests > IN_FLIGHT_REQUESTS_MAX || session_bytes > IN_FLIGHT_BYTES_MAX {
            return Err(Failure::after_ms(ErrorCode::TooManyInFlight, TOO_MANY_RETRY_MS));
        }
        if global_bytes > IN_FLIGHT_BYTES_GLOBAL_MAX {
            return Err(unavailable());
        }
        reply.answered = false;
        Ok(reply)
    }

    /// Answers that the entries are durable.
    pub(crate) fn appended(self, appended: Appended) {
        self.frame(&appended.into());
    }

    /// Answers with a refusal.
    pub(crate) fn refuse(self, failure: Failure) {
        self.frame(&Error::from(failure).into());
    }

    /// Answers with any frame.
    pub(crate) fn frame(mut self, frame: &RelayFrame) {
        self.answered = true;
        self.outbox.answer(self.request, frame);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        let in_flight = self.outbox.in_flight();
        in_flight.requests.fetch_sub(1, Ordering::Relaxed);
        in_flight.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget.0.fetch_sub(self.bytes, Ordering::Relaxed);
        if !self.answered {
            self.outbox.answer(self.request, &Error::from(unavailable()).into());
        }
    }
}

/// `unavailable`, with a jittered time to wait, so that those who were refused together do not come
/// back together.
pub(crate) fn unavailable() -> Failure {
    let wait = jitter(RETRY_AFTER_MS_MIN, RETRY_AFTER_MS_MAX);
    Failure::after_ms(ErrorCode::Unavailable, wait)
}

/// A number between the two, evenly; the middle if there is no randomness to be had.
pub(crate) fn jitter(min: u64, max: u64) -> u64 {
    getrandom::u32().map_or((min + max) / 2, |random| min + u64::from(random) % (max - min + 1))
}
