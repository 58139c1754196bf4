//! Handles of the metrics that every message and every frame touch.
//!
//! A metric is found by its name and labels each time it is asked for, which costs more than what it
//! counts. Those of the busiest places are found once and kept.
//!
//! The process's recorder is there before its first actor. Where there is none, as in unit tests, the
//! handles count nothing.

use std::sync::OnceLock;
use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::metrics::{
    ActorKind, COPIES_OFFERED, HANDLING_TIME, MAILBOX_DEPTH, MESSAGE_AGE, MESSAGES_HANDLED,
    OUTBOX_BYTES,
};

/// What is counted for each kind of actor.
pub(crate) struct ActorMeters {
    /// Messages that wait.
    pub(crate) depth: Gauge,
    handled: Counter,
    age: Histogram,
    handling: Histogram,
}

impl ActorMeters {
    /// A message was handled, after it had waited if it came by a mailbox.
    pub(crate) fn handled(&self, waited: Option<Duration>, took: Duration) {
        self.handled.increment(1);
        if let Some(waited) = waited {
            self.age.record(waited.as_secs_f64());
        }
        self.handling.record(took.as_secs_f64());
    }
}

/// The meters of one kind of actor.
pub(crate) fn actor(kind: ActorKind) -> &'static ActorMeters {
    static KINDS: [OnceLock<ActorMeters>; ActorKind::COUNT] =
        [const { OnceLock::new() }; ActorKind::COUNT];
    KINDS[kind as usize].get_or_init(|| ActorMeters {
        depth: gauge!(MAILBOX_DEPTH, "actor" => kind.name()),
        handled: counter!(MESSAGES_HANDLED, "actor" => kind.name()),
        age: histogram!(MESSAGE_AGE, "actor" => kind.name()),
        handling: histogram!(HANDLING_TIME, "actor" => kind.name()),
    })
}

/// Copies of entries that were put into outboxes.
pub(crate) fn copies_offered() -> &'static Counter {
    static OFFERED: OnceLock<Counter> = OnceLock::new();
    OFFERED.get_or_init(|| counter!(COPIES_OFFERED))
}

/// Bytes that wait in outboxes.
pub(crate) fn outbox_bytes() -> &'static Gauge {
    static BYTES: OnceLock<Gauge> = OnceLock::new();
    BYTES.get_or_init(|| gauge!(OUTBOX_BYTES))
}
