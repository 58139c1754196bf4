//! Keeping a database synced in the background.
//!
//! A turn is taken when the app has written, when the relay has something new, and at least once a
//! minute. Between turns one subscription is open, as a doorbell: what comes through it is not read,
//! it only says that there is something.

use std::sync::Arc;
use std::time::Duration;

use sealwire_protocol::RelayFrame;
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::frame::{Subscribe, Unsubscribe};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::attached::Shared;
use super::error::SyncError;
use super::report::Report;
use super::turn::Turn;
use crate::backoff::{ASKED_MAX, Backoff, Bounds};
use crate::vault::VaultError;
use crate::wire::WireError;

/// Longest time between two turns.
pub const INTERVAL: Duration = Duration::from_secs(60);

/// How often it is looked whether the app has written with its own connections.
const LOOK: Duration = Duration::from_millis(250);

/// How long the relay may take to end the doorbell's subscription.
const QUIET_DEADLINE: Duration = Duration::from_secs(10);

/// How the keeping goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keeping {
    /// The first turn has not ended.
    Starting,
    /// Everything is read and sent, as of the turn with this number; this is what it did.
    Synced(u64, Box<Report>),
    /// The last turn failed, and it is tried again by itself.
    Waiting(SyncError),
    /// It is over: a person has to decide.
    Over(SyncError),
}

/// A database that is kept synced for as long as this value lives.
pub struct Keeper {
    stop: watch::Sender<bool>,
    keeping: watch::Receiver<Keeping>,
    task: JoinHandle<()>,
}

impl Keeper {
    pub(crate) fn start(shared: Arc<Shared>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let (report, keeping) = watch::channel(Keeping::Starting);
        let work = Work { shared, report, stopped, turns: 0, come_back: None };
        Self { stop, keeping, task: tokio::spawn(work.run()) }
    }

    /// How it goes now.
    #[must_use]
    pub fn now(&self) -> Keeping {
        self.keeping.borrow().clone()
    }

    /// Waits for the end of the next turn, or of the keeping. Cancel-safe.
    pub async fn next(&mut self) -> Keeping {
        // If the task is gone, what it said last stands.
        let _ = self.keeping.changed().await;
        self.keeping.borrow_and_update().clone()
    }

    /// Ends it after the turn that is under way.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        // It ends by itself; whether it was cancelled makes no difference.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Work {
    shared: Arc<Shared>,
    report: watch::Sender<Keeping>,
    stopped: watch::Receiver<bool>,
    turns: u64,
    /// How long the relay has asked this device to stay away, when it shut down.
    come_back: Option<Duration>,
}

impl Work {
    async fn run(mut self) {
        let mut backoff = Backoff::new(Bounds::default());
        loop {
            let error = match self.connected().await {
                Ok(()) => return,
                Err(error) => error,
            };
            if is_final(&error) {
                self.report.send_replace(Keeping::Over(error));
                return;
            }
            if self.turns > 0 {
                self.turns = 0;
                backoff.reset();
            }
            let pause = pause(&error, self.come_back.take(), &mut backoff);
            self.report.send_replace(Keeping::Waiting(error));
            tokio::select! {
                () = sleep(pause) => {}
                () = told(&mut self.stopped) => return,
            }
        }
    }

    /// Turns over one connection, until it is told to stop.
    async fn connected(&mut self) -> Result<(), SyncError> {
        let mut turn = Turn::begin(&self.shared).await?;
        let ended = self.turns(&mut turn).await;
        self.come_back = turn.wire.come_back();
        ended?;
        turn.end().await;
        Ok(())
    }

    async fn turns(&mut self, turn: &mut Turn) -> Result<(), SyncError> {
        let mut written = self.shared.written.subscribe();
        loop {
            written.mark_unchanged();
            let seen = self.shared.with(|engine| engine.others()).await?;
            turn.catch_up().await?;
            turn.push().await?;
            turn.catch_up().await?;
            turn.confirm().await?;
            self.turns += 1;
            let report = std::mem::take(&mut turn.report);
            self.report.send_replace(Keeping::Synced(self.turns, Box::new(report)));
            if turn.wire.come_back().is_some() {
                return Err(gone());
            }
            if self.wait(turn, &mut written, seen).await? {
                return Ok(());
            }
        }
    }

    /// Waits until there is something to do. Says whether it was told to stop.
    async fn wait(
        &mut self,
        turn: &mut Turn,
        written: &mut watch::Receiver<u64>,
        seen: i64,
    ) -> Result<bool, SyncError> {
        let log = turn.vault.log();
        let subscribe = Subscribe { log, cursor: turn.vault.head(), acked: None };
        turn.wire.queue(&subscribe.into());
        let until = Instant::now() + INTERVAL;
        let stop = loop {
            tokio::select! {
                received = turn.wire.receive() => {
                    let frame = received?.frame.map_err(WireError::Frame)?;
                    if matches!(&frame, RelayFrame::Entry(entry) if entry.log == log) {
                        break false;
                    }
                    if matches!(frame, RelayFrame::Draining(_)) {
                        return Err(gone());
                    }
                    if let RelayFrame::Error(error) = frame {
                        return Err(WireError::Refused(Box::new(error.failure())).into());
                    }
                }
                _ = written.changed() => break false,
                () = sleep(LOOK) => {
                    if self.shared.with(|engine| engine.others()).await? != seen {
                        break false;
                    }
                }
                () = sleep_until(until) => break false,
                () = told(&mut self.stopped) => break true,
            }
        };
        // What is still under way in the doorbell's subscription must not be taken for the next one's.
        let leaving = turn.wire.queue(&Unsubscribe { log }.into());
        let quiet = async {
            loop {
                let envelope = turn.wire.receive().await?;
                if envelope.request == leaving {
                    return Ok::<_, WireError>(());
                }
            }
        };
        timeout(QUIET_DEADLINE, quiet)
            .await
            .unwrap_or(Err(WireError::Timeout(crate::wire::Step::Answer)))?;
        Ok(stop)
    }
}

/// Waits until it is told to stop; also when nobody can tell it any more.
async fn told(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// The relay shuts down.
fn gone() -> SyncError {
    WireError::Closed(Some(CloseReason::GoingAway)).into()
}

/// How long to wait after an error. A relay that shuts down has spread its devices itself; one that
/// refuses may say how long it wants to be left alone.
fn pause(error: &SyncError, come_back: Option<Duration>, backoff: &mut Backoff) -> Duration {
    if let Some(come_back) = come_back {
        return come_back.min(ASKED_MAX);
    }
    let refusal = if let SyncError::Vault(error) = error { error.refusal() } else { None };
    let asked = refusal.and_then(|failure| failure.retry_after_ms);
    backoff.next(asked.map_or(Duration::ZERO, Duration::from_millis).min(ASKED_MAX))
}

/// Whether trying again would not help.
fn is_final(error: &SyncError) -> bool {
    match error {
        SyncError::Cloned
        | SyncError::NotEnrolled
        | SyncError::NoVault
        | SyncError::OtherDevice => true,
        SyncError::Vault(VaultError::Wire(WireError::RelayKeyChanged { .. }))
        | SyncError::Vault(VaultError::Forked) => true,
        SyncError::Store(_)
        | SyncError::Schema(_)
        | SyncError::Vault(_)
        | SyncError::Changeset(_)
        | SyncError::OtherVault
        | SyncError::OtherOffer
        | SyncError::OtherScope
        | SyncError::NotAttached
        | SyncError::Code
        | SyncError::Running
        | SyncError::RolledBack
        | SyncError::Stopped => false,
    }
}

#[cfg(test)]
mod tests {
    use sealwire_protocol::{ErrorCode, Failure};

    use super::*;

    const FIRST: Duration = Duration::from_millis(500);

    fn backoff() -> Backoff {
        Backoff::new(Bounds { first: FIRST, max: FIRST })
    }

    #[test]
    fn the_keeper_stays_away_for_as_long_as_the_relay_has_asked() {
        let minute = Duration::from_secs(60);
        assert_eq!(pause(&gone(), Some(minute), &mut backoff()), minute, "to the moment");
        let mut failure = Failure::new(ErrorCode::Unavailable);
        failure.retry_after_ms = Some(60_000);
        let refused: SyncError = WireError::from(failure).into();
        let wait = pause(&refused, None, &mut backoff());
        assert!((minute..=minute + FIRST).contains(&wait), "{wait:?}");
        assert!(pause(&gone(), None, &mut backoff()) <= FIRST);
        let for_ever = Some(Duration::from_millis(u64::MAX));
        assert_eq!(pause(&gone(), for_ever, &mut backoff()), ASKED_MAX);
    }
}
