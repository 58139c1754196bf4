//! What can be done to a running system that nobody could do from outside: an actor that fails, and
//! mailboxes that are full.

use sealwire_protocol::{DeviceKey, LogId};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::limits::{JOBS_PER_TURN_MAX, LOG_MAILBOX_MAX, PUSH_MAILBOX_MAX, PUSH_YIELD_DEPTH};
use crate::log::LogMessage;
use crate::ports::{LogKey, Urgency};
use crate::push::doorstep::{Sleeper, Told};
use crate::system::System;

/// Ends the first committer as a bug would.
///
/// # Panics
/// If there is none.
pub fn fail_a_committer(system: &System) {
    system.shared.committers.read()[0].cell().kill();
}

/// Has so much wait for a committer that is not this log's that doorbells step back, until `gate` opens.
pub fn crowd_another_committer(system: &System, key: LogKey, gate: oneshot::Receiver<()>) {
    let committer = system.shared.committer(LogKey(key.0 + 1));
    // Whoever holds the other end may have gone: then it is open.
    committer.job(Box::new(|_| Box::pin(async { drop(gate.await) })));
    // The first of them are taken together, and wait no more.
    for _ in 0..PUSH_YIELD_DEPTH + JOBS_PER_TURN_MAX {
        committer.job(Box::new(|_| Box::pin(async {})));
    }
}

/// Has as much wait for the committer of small writes as it takes, until `gate` opens.
pub fn fill_a_committer(system: &System, gate: oneshot::Receiver<()>) {
    let committer = system.shared.committer(LogKey(0));
    committer.job(Box::new(|_| Box::pin(async { drop(gate.await) })));
    while committer.job(Box::new(|_| Box::pin(async {}))) {}
}

/// Ends the actor of doorbells as a bug would.
pub fn fail_doorbells(system: &System) {
    system.shared.doorstep.kill();
}

/// Asks more of a log at once than its actor's mailbox takes. The actor must not run meanwhile: the
/// runtime has one thread.
pub fn crowd_a_log(system: &System, key: LogKey) {
    for _ in 0..=LOG_MAILBOX_MAX {
        let (done, _) = oneshot::channel();
        system.shared.cast_log(key, LogMessage::Flush(done));
    }
}

/// Leaves more word for one device at once than the mailbox of the actor of doorbells takes; as above.
pub fn crowd_doorbells(system: &System, key: LogKey, id: LogId, device: DeviceKey) {
    for _ in 0..=PUSH_MAILBOX_MAX {
        let urgency = Urgency::Normal;
        let sleepers = vec![Sleeper { device, seq: 1, urgency, age_ms: 0, word: None }];
        system.shared.doorstep.tell(Told { log: key, id, since: Instant::now(), sleepers });
    }
}
