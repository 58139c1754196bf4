//! What time takes away: bodies, headers below the floor, silent groups, idle devices, uploads that
//! nobody finished; and what snapshots of vaults have made superfluous.
//!
//! Retention works in small steps with a pause between them and never blocks an append. It looks in
//! the store for what is due and has the log's own actor decide, so that what is deleted, who still
//! waited for it and how that is counted agree with the log's memory. A step that fails is taken
//! again at the next turn: nothing here is urgent.
//!
//! Where a [`crate::worker::Worker`] does it beside the relay, this one rests, but for what is overdue.

use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};
use sealwire_protocol::DeviceKey;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::limits::{
    COMPACT_VAULTS_MAX, DEVICE_IDLE, GROUP_IDLE, RESERVATION_LIFETIME, RETENTION_LOGS_MAX,
    RETENTION_OVERDUE, RETENTION_ROWS_MAX, STORE_DEADLINE, SWEPT_CHUNKS_MAX, UPLOAD_LIFETIME,
};
use crate::log::LogMessage;
use crate::mailbox::{self, Mailbox, Posted, Waiting};
use crate::metrics::{ActorKind, Alive, SWEPT};
use crate::ports::{LogKey, StoreError};
use crate::system::Shared;

/// The way into retention: only supervision needs it, it drives itself.
pub(crate) struct RetentionRef(Mailbox<Message>);

impl RetentionRef {
    pub(crate) async fn spawn(
        shared: Arc<Shared>,
        supervisor: ActorCell,
    ) -> Result<Self, SpawnErr> {
        let started = mailbox::start(Retention, ActorKind::Retention, 1, shared, supervisor);
        Ok(Self(started.await?))
    }

    pub(crate) fn cell(&self) -> ActorCell {
        self.0.cell()
    }
}

enum Message {
    Step,
}

struct State {
    shared: Arc<Shared>,
    myself: Mailbox<Message>,
    /// The last log that was looked at; the next step goes on after it.
    after: LogKey,
    /// The last vault that was looked at.
    after_vault: LogKey,
    _alive: Alive,
}

struct Retention;

impl Actor for Retention {
    type Msg = Posted<Message>;
    type State = State;
    type Arguments = (Arc<Shared>, Arc<Waiting>);

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (shared, waiting): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let myself = Mailbox::new(myself, ActorKind::Retention, 1, waiting);
        let state = State {
            shared,
            myself,
            after: LogKey(0),
            after_vault: LogKey(0),
            _alive: Alive::new(ActorKind::Retention),
        };
        state.step_later();
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        posted: Self::Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (Message::Step, _handling) = posted.open(ActorKind::Retention);
        if let Err(error) = state.step().await {
            tracing::warn!(%error, "a step of retention failed and is taken again");
        }
        state.step_later();
        Ok(())
    }
}

impl State {
    fn step_later(&self) {
        let myself = self.myself.clone();
        let pause = self.shared.options.retention_pause;
        tokio::spawn(async move {
            sleep(pause).await;
            // Refused only if retention has ended.
            let _ = myself.post(Message::Step);
        });
    }

    async fn step(&mut self) -> Result<(), StoreError> {
        let now = self.shared.clock.now_ms();
        let elsewhere = deadline(self.shared.store.retention_is_elsewhere()).await?;
        // A worker leaves what never rests; that stays the relay's, or it would stay for ever.
        let overdue = if elsewhere { RETENTION_OVERDUE } else { Duration::ZERO };
        self.expire(before(now, self.shared.options.body_lifetime + overdue)).await?;
        self.end_groups(before(now, GROUP_IDLE + overdue)).await?;
        // A worker knows nothing of vaults.
        self.compact(before(now, self.shared.options.snapshot_stands)).await?;
        self.sweep_snapshots(before(now, UPLOAD_LIFETIME)).await;
        self.note_devices(now).await;
        if !elsewhere {
            self.sweep(now).await;
        }
        Ok(())
    }

    /// Looks at the next logs for entries that are too old.
    async fn expire(&mut self, before: u64) -> Result<(), StoreError> {
        let due = self.shared.store.due_for_expiry(self.after, before, RETENTION_LOGS_MAX);
        let (due, last) = deadline(due).await?;
        for log in &due {
            self.shared.cast_log(log.key, LogMessage::Expire(log.up_to, before));
        }
        // At the end it begins again with the first log.
        self.after = last.unwrap_or(LogKey(0));
        Ok(())
    }

    /// Looks at the next vaults for entries that a confirmed snapshot covers.
    async fn compact(&mut self, alone_before: u64) -> Result<(), StoreError> {
        let store = &self.shared.store;
        let due = store.due_for_compaction(self.after_vault, alone_before, COMPACT_VAULTS_MAX);
        let (due, last) = deadline(due).await?;
        for step in due {
            self.shared.cast_log(step.key, LogMessage::Compact(step, alone_before));
        }
        self.after_vault = last.unwrap_or(LogKey(0));
        Ok(())
    }

    async fn end_groups(&self, before: u64) -> Result<(), StoreError> {
        let idle = deadline(self.shared.store.idle_groups(before, RETENTION_LOGS_MAX)).await?;
        for key in idle {
            self.shared.cast_log(key, LogMessage::EndIfIdle(before));
        }
        Ok(())
    }

    /// Notes to the day which devices were here since the last step.
    async fn note_devices(&self, now: u64) {
        let seen: Vec<DeviceKey> = self.shared.seen.lock().drain().collect();
        let (done, noted) = oneshot::channel();
        let queued = self.shared.committer(LogKey(0)).job(Box::new(move |store| {
            Box::pin(async move {
                for device in seen {
                    if deadline(store.touch_device(device, now)).await.is_err() {
                        break;
                    }
                }
                let _ = done.send(());
            })
        }));
        if queued {
            // What is not noted in time is noted all the same; retention only goes on.
            let _ = timeout(STORE_DEADLINE, noted).await;
        }
    }

    async fn sweep_snapshots(&self, before: u64) {
        let (done, swept) = oneshot::channel();
        let queued = self.shared.committer(LogKey(0)).job(Box::new(move |store| {
            Box::pin(async move {
                let chunks = deadline(store.sweep_snapshots(before, SWEPT_CHUNKS_MAX)).await;
                let _ = done.send(chunks.unwrap_or(0));
            })
        }));
        if queued && let Ok(Ok(rows)) = timeout(STORE_DEADLINE, swept).await {
            counter!(SWEPT).increment(rows);
        }
    }

    async fn sweep(&self, now: u64) {
        let (done, swept) = oneshot::channel();
        let reservations = before(now, RESERVATION_LIFETIME);
        let devices = before(now, DEVICE_IDLE);
        let queued = self.shared.committer(LogKey(0)).job(Box::new(move |store| {
            Box::pin(async move {
                let rows = store.sweep(reservations, devices, now, RETENTION_ROWS_MAX);
                let rows = deadline(rows).await.unwrap_or(0);
                let counts = store.forget_recovery_counts(now, RETENTION_ROWS_MAX);
                let _ = done.send(rows + deadline(counts).await.unwrap_or(0));
            })
        }));
        if queued && let Ok(Ok(rows)) = timeout(STORE_DEADLINE, swept).await {
            counter!(SWEPT).increment(rows);
        }
    }
}

pub(crate) fn before(now: u64, lifetime: Duration) -> u64 {
    now.saturating_sub(u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX))
}

async fn deadline<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    timeout(STORE_DEADLINE, work).await.unwrap_or(Err(StoreError::Unavailable))
}
