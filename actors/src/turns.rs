//! Whose question the store is asked next.
//!
//! Sessions that arrive, subscriptions, resends, other questions and requests without a session share
//! the store's few reading connections with each other and with the pages of those who catch up. Each kind asks only a few at
//! a time, first come, first served: a flood of one kind waits for itself, and the others find a
//! connection within the store's own deadline.

use std::future::Future;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::limits::{
    ARRIVAL_READS_MAX, PAGE_READS_MAX, QUESTION_READS_MAX, REQUEST_READS_MAX, RESEND_READS_MAX,
    STORE_DEADLINE, SUBSCRIPTION_READS_MAX, WRITES_MAX,
};
use crate::ports::StoreError;

/// What the store is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The logs of a device whose session begins.
    Arrival,
    /// Where a subscription begins.
    Subscription,
    /// An entry that is sent a second time.
    Resend,
    /// Anything else that a session wants to know.
    Question,
    /// What somebody wants to know who has no session.
    Request,
    /// A small write, where several can be made at once.
    Write,
}

/// How many of each kind are asked at once.
pub(crate) struct Turns {
    /// Pages of those who catch up, which wait for as long as it takes.
    pub(crate) pages: Semaphore,
    arrivals: Semaphore,
    subscriptions: Semaphore,
    resends: Semaphore,
    questions: Semaphore,
    requests: Semaphore,
    writes: Semaphore,
}

impl Turns {
    pub(crate) fn new() -> Self {
        Self {
            pages: Semaphore::new(PAGE_READS_MAX),
            arrivals: Semaphore::new(ARRIVAL_READS_MAX),
            subscriptions: Semaphore::new(SUBSCRIPTION_READS_MAX),
            resends: Semaphore::new(RESEND_READS_MAX),
            questions: Semaphore::new(QUESTION_READS_MAX),
            requests: Semaphore::new(REQUEST_READS_MAX),
            writes: Semaphore::new(WRITES_MAX),
        }
    }

    /// Asks the store in turn, with one deadline for the wait and the answer.
    pub(crate) async fn ask<T>(
        &self,
        turn: Turn,
        question: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let turns = match turn {
            Turn::Arrival => &self.arrivals,
            Turn::Subscription => &self.subscriptions,
            Turn::Resend => &self.resends,
            Turn::Question => &self.questions,
            Turn::Request => &self.requests,
            Turn::Write => &self.writes,
        };
        let in_turn = async {
            // The semaphore is never closed; if it were, asking without a turn is still correct.
            let _turn = turns.acquire().await;
            question.await
        };
        timeout(STORE_DEADLINE, in_turn).await.unwrap_or(Err(StoreError::Unavailable))
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_one_kind_holds_up_itself_and_nobody_else() {
        let turns = Turns::new();
        let flood = async {
            let stuck = (0..RESEND_READS_MAX)
                .map(|_| turns.ask(Turn::Resend, pending::<Result<(), StoreError>>()));
            // One of them is enough to end the wait: all have the same deadline.
            let mut stuck: Vec<_> = stuck.map(Box::pin).collect();
            std::future::poll_fn(|context| {
                for one in &mut stuck {
                    assert!(one.as_mut().poll(context).is_pending());
                }
                std::task::Poll::Ready(())
            })
            .await;
            let late = turns.ask(Turn::Resend, async { Ok(()) });
            assert_eq!(late.await, Err(StoreError::Unavailable), "it waits for its own kind");
        };
        let others = async {
            for turn in
                [Turn::Arrival, Turn::Subscription, Turn::Question, Turn::Request, Turn::Write]
            {
                assert_eq!(turns.ask(turn, async { Ok(turn) }).await, Ok(turn));
            }
        };
        tokio::join!(flood, others);
    }
}
