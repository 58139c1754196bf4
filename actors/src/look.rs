//! What is no count but a look at all that lives: who waits longest, and which session is furthest
//! behind.
//!
//! It is taken when somebody asks for metrics, and not again within [`LOOK_PAUSE`]: it passes over all
//! sessions and active logs.
//!
//! Holds always: nothing waits for it but a session or a log whose part of a map it passes over.

use std::time::Duration;

use metrics::gauge;
use tokio::time::Instant;

use crate::committer::CommitterRef;
use crate::limits::LOOK_PAUSE;
use crate::metrics::{
    ActorKind, MAILBOX_DEPTH, OLDEST_MESSAGE, OUTBOX_BYTES_MOST, SESSIONS_BEHIND,
};
use crate::system::{Shared, System};

impl System {
    /// Sets the metrics that are a look at all that lives.
    pub fn look(&self) {
        let shared = &self.shared;
        let mut looked = shared.looked.lock();
        if looked.is_none_or(|at| at.elapsed() >= LOOK_PAUSE) {
            *looked = Some(Instant::now());
            look_at_sessions(shared);
            look_at_actors(shared);
        }
    }
}

fn look_at_sessions(shared: &Shared) {
    let uptime_s = shared.uptime_s();
    let (mut requests, mut most, mut behind, mut stalled) = (0, 0, 0_u64, 0);
    shared.registry.each_session(|outbox| {
        let (bytes, is_behind) = outbox.load();
        requests += outbox.in_flight().requests();
        most = most.max(bytes);
        behind += u64::from(is_behind);
        stalled = stalled.max(outbox.stalled_for(uptime_s));
    });
    gauge!(MAILBOX_DEPTH, "actor" => ActorKind::Session.name()).set(requests as f64);
    gauge!(OUTBOX_BYTES_MOST).set(most as f64);
    gauge!(SESSIONS_BEHIND).set(behind as f64);
    waited(ActorKind::Session, Duration::from_secs(stalled));
}

fn look_at_actors(shared: &Shared) {
    let mut oldest = Duration::ZERO;
    shared.registry.each_log(|log| oldest = oldest.max(log.oldest()));
    waited(ActorKind::Log, oldest);
    let committers = shared.committers.read();
    let oldest = committers.iter().map(CommitterRef::oldest).max();
    waited(ActorKind::Committer, oldest.unwrap_or_default());
    waited(ActorKind::Push, shared.doorstep.oldest());
}

fn waited(kind: ActorKind, oldest: Duration) {
    gauge!(OLDEST_MESSAGE, "actor" => kind.name()).set(oldest.as_secs_f64());
}
