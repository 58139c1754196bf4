//! The answer that a request is owed, as a value.
//!
//! Whoever holds a [`Reply`] owes an answer; dropping it unanswered answers `unavailable` with a
//! time to wait. So a log actor that panics, a committer that is replaced and a mailbox that is full
//! all leave no device waiting, however the code around them changes. The reply also holds the
//! request's credit: what a session may have in flight is bounded by what has not been answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use sealwire_protocol::frame::{Appended, Done, Error};
use sealwire_protocol::limits::{IN_FLIGHT_BYTES_MAX, IN_FLIGHT_REQUESTS_MAX};
use sealwire_protocol::{ErrorCode, Failure, RelayFrame};

use crate::entry::Weight;
use crate::limits::{
    IN_FLIGHT_BYTES_GLOBAL_MAX, IN_FLIGHT_WHOLE_MAX, RETRY_AFTER_MS_MAX, RETRY_AFTER_MS_MIN,
    TOO_MANY_RETRY_MS,
};
use crate::outbox::Outbox;
use tokio::sync::oneshot;

/// Bytes of entries that all sessions together have unanswered.
#[derive(Default)]
pub(crate) struct Budget(AtomicUsize);

#[cfg(test)]
impl Budget {
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// The share of that which a request without a session takes, for as long as it is under way.
pub(crate) struct Credit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Credit {
    /// Takes credit for what a request carries.
    ///
    /// # Errors
    /// `unavailable` if all together have too much unanswered.
    pub(crate) fn take(budget: &Arc<Budget>, weight: Weight) -> Result<Self, Failure> {
        let bytes = weight.whole;
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
    bodies: AtomicUsize,
    whole: AtomicUsize,
}

impl InFlight {
    /// Whether anything is unanswered.
    pub(crate) fn any(&self) -> bool {
        self.requests() > 0
    }

    /// Requests that are unanswered.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

/// An answer owed.
pub(crate) struct Reply {
    to: To,
    answered: bool,
}

/// To whom.
enum To {
    /// A session, which may have so many of them.
    Session { outbox: Arc<Outbox>, budget: Arc<Budget>, request: u32, weight: Weight },
    /// Whoever waits for one request without a session.
    Caller { caller: Option<Caller>, _credit: Credit },
}

type Caller = oneshot::Sender<Result<Appended, Failure>>;

impl Reply {
    /// Takes the credit for what a request carries.
    ///
    /// # Errors
    /// `too_many_in_flight` if the session has too much unanswered, `unavailable` if all sessions
    /// together do.
    pub(crate) fn begin(
        outbox: &Arc<Outbox>,
        budget: &Arc<Budget>,
        request: u32,
        weight: Weight,
    ) -> Result<Self, Failure> {
        let in_flight = outbox.in_flight();
        let requests = in_flight.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let Weight { bodies, whole } = weight;
        let session_bodies = in_flight.bodies.fetch_add(bodies, Ordering::Relaxed) + bodies;
        let session_whole = in_flight.whole.fetch_add(whole, Ordering::Relaxed) + whole;
        let global_bytes = budget.0.fetch_add(whole, Ordering::Relaxed) + whole;
        // From here on the guard gives everything back.
        let (outbox, budget) = (outbox.clone(), budget.clone());
        let to = To::Session { outbox, budget, request, weight };
        let mut reply = Self { to, answered: true };
        if requests > IN_FLIGHT_REQUESTS_MAX
            || session_bodies > IN_FLIGHT_BYTES_MAX
            || session_whole > IN_FLIGHT_WHOLE_MAX
        {
            return Err(Failure::after_ms(ErrorCode::TooManyInFlight, TOO_MANY_RETRY_MS));
        }
        if global_bytes > IN_FLIGHT_BYTES_GLOBAL_MAX {
            return Err(unavailable());
        }
        reply.answered = false;
        Ok(reply)
    }

    /// Takes the credit for what a single request carries. Gives where its answer comes.
    ///
    /// # Errors
    /// `unavailable` if all together have too much unanswered.
    pub(crate) fn to_caller(
        budget: &Arc<Budget>,
        weight: Weight,
    ) -> Result<(Self, oneshot::Receiver<Result<Appended, Failure>>), Failure> {
        let credit = Credit::take(budget, weight)?;
        let (caller, answer) = oneshot::channel();
        let to = To::Caller { caller: Some(caller), _credit: credit };
        Ok((Self { to, answered: false }, answer))
    }

    /// Answers that the entries are durable.
    pub(crate) fn appended(mut self, appended: Appended) {
        self.answer(Ok(appended));
    }

    /// Answers with a refusal.
    pub(crate) fn refuse(mut self, failure: Failure) {
        self.answer(Err(failure));
    }

    /// Answers a session that it is done.
    pub(crate) fn done(mut self) {
        if let To::Session { outbox, request, .. } = &self.to {
            self.answered = true;
            outbox.answer(*request, &Done {}.into());
        }
    }

    fn answer(&mut self, result: Result<Appended, Failure>) {
        self.answered = true;
        match &mut self.to {
            To::Session { outbox, request, .. } => {
                let frame = match result {
                    Ok(appended) => RelayFrame::from(appended),
                    Err(failure) => Error::from(failure).into(),
                };
                outbox.answer(*request, &frame);
            }
            To::Caller { caller, .. } => {
                if let Some(caller) = caller.take() {
                    // Whoever has gone meanwhile asks again.
                    let _ = caller.send(result);
                }
            }
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let To::Session { outbox, budget, weight, .. } = &self.to {
            let in_flight = outbox.in_flight();
            in_flight.requests.fetch_sub(1, Ordering::Relaxed);
            in_flight.bodies.fetch_sub(weight.bodies, Ordering::Relaxed);
            in_flight.whole.fetch_sub(weight.whole, Ordering::Relaxed);
            budget.0.fetch_sub(weight.whole, Ordering::Relaxed);
        }
        if !self.answered {
            self.answer(Err(unavailable()));
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
