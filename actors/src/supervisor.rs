//! Who is restarted, and why.
//!
//! The root owns the committers, retention and doorbells and replaces one that fails; `Logs` owns the log
//! actors and has the registry replace one that fails. Neither has any other state or duty, so that
//! a storm in one does not delay the other.
//!
//! ractor stops a supervisor, and with it all its children, when any child ends, unless the
//! supervisor says otherwise: that is why both override the event handler.

use std::sync::Arc;

use metrics::counter;
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent};

use crate::committer::CommitterRef;
use crate::mailbox::Handling;
use crate::metrics::{ACTOR_RESTARTS, ActorKind, Alive};
use crate::push::PushRef;
use crate::retention::RetentionRef;
use crate::system::Shared;

/// Starts the tree; gives its root.
pub(crate) async fn start(shared: Arc<Shared>) -> Result<ActorCell, SpawnErr> {
    let (root, _) = Actor::spawn(None, Root, shared).await?;
    Ok(root.get_cell())
}

struct Root;

struct RootState {
    shared: Arc<Shared>,
    retention: RetentionRef,
    push: Option<PushRef>,
    _ended: Ended,
    _alive: Alive,
}

/// Says that the tree has ended, however it did.
struct Ended(Arc<Shared>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ended.send_replace(true);
    }
}

impl Actor for Root {
    type Msg = ();
    type State = RootState;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        myself: ActorRef<()>,
        shared: Arc<Shared>,
    ) -> Result<RootState, ActorProcessingErr> {
        let mut committers = Vec::new();
        for _ in 0..shared.store.committers().max(1) {
            committers.push(CommitterRef::spawn(shared.store.clone(), myself.get_cell()).await?);
        }
        *shared.committers.write() = committers;
        let (logs, _) = Actor::spawn_linked(None, Logs, shared.clone(), myself.get_cell()).await?;
        *shared.logs_supervisor.write() = Some(logs.get_cell());
        let retention = RetentionRef::spawn(shared.clone(), myself.get_cell()).await?;
        let push = match shared.doorstep.is_on() {
            true => Some(PushRef::spawn(shared.clone(), myself.get_cell()).await?),
            false => None,
        };
        let (ended, alive) = (Ended(shared.clone()), Alive::new(ActorKind::Supervisor));
        Ok(RootState { shared, retention, push, _ended: ended, _alive: alive })
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<()>,
        event: SupervisionEvent,
        state: &mut RootState,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = Handling::begin(ActorKind::Supervisor);
        let failed = match event {
            SupervisionEvent::ActorFailed(failed, _)
            | SupervisionEvent::ActorTerminated(failed, ..) => failed,
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {
                return Ok(());
            }
        };
        let index = state
            .shared
            .committers
            .read()
            .iter()
            .position(|one| one.cell().get_id() == failed.get_id());
        if let Some(index) = index {
            counter!(ACTOR_RESTARTS, "actor" => ActorKind::Committer.name()).increment(1);
            tracing::error!("a committer failed and is replaced");
            let next = CommitterRef::spawn(state.shared.store.clone(), myself.get_cell()).await?;
            state.shared.committers.write()[index] = next;
        } else if state.retention.cell().get_id() == failed.get_id() {
            counter!(ACTOR_RESTARTS, "actor" => ActorKind::Retention.name()).increment(1);
            tracing::error!("retention failed and is replaced");
            state.retention = RetentionRef::spawn(state.shared.clone(), myself.get_cell()).await?;
        } else if state.push.as_ref().is_some_and(|push| push.cell().get_id() == failed.get_id()) {
            counter!(ACTOR_RESTARTS, "actor" => ActorKind::Push.name()).increment(1);
            tracing::error!("the actor of doorbells failed and is replaced");
            state.push = Some(PushRef::spawn(state.shared.clone(), myself.get_cell()).await?);
        } else {
            // Without `Logs` no log can start: better to end, and be restarted as a process.
            tracing::error!("the supervisor of logs failed");
            myself.stop(None);
        }
        Ok(())
    }
}

struct Logs;

struct LogsState {
    shared: Arc<Shared>,
    _alive: Alive,
}

impl Actor for Logs {
    type Msg = ();
    type State = LogsState;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        _: ActorRef<()>,
        shared: Arc<Shared>,
    ) -> Result<LogsState, ActorProcessingErr> {
        Ok(LogsState { shared, _alive: Alive::new(ActorKind::Supervisor) })
    }

    async fn handle_supervisor_evt(
        &self,
        _: ActorRef<()>,
        event: SupervisionEvent,
        state: &mut LogsState,
    ) -> Result<(), ActorProcessingErr> {
        let _handling = Handling::begin(ActorKind::Supervisor);
        match event {
            SupervisionEvent::ActorTerminated(ended, ..) => {
                state.shared.started_logs.remove(&ended.get_id());
            }
            SupervisionEvent::ActorFailed(failed, _) => {
                let Some((_, (key, log))) = state.shared.started_logs.remove(&failed.get_id())
                else {
                    return Ok(());
                };
                counter!(ACTOR_RESTARTS, "actor" => ActorKind::Log.name()).increment(1);
                tracing::error!(log = key.0, "a log's actor failed and is replaced");
                state.shared.registry.replace_log(state.shared.as_ref(), key, &log);
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }
}
