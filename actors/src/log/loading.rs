//! How a log comes to know what the store holds, and forgets what it only believed.

use std::collections::VecDeque;

use sealwire_protocol::frame::MembershipState;
use sealwire_protocol::{ErrorCode, Failure};
use tokio::time::Instant;

use super::state::State;
use super::{LogActor, LogMessage, Memory};
use crate::ports::{LogRecord, StoreError};

impl LogActor {
    /// Forgets everything that is not known to be committed, and loads anew.
    pub(super) fn drop_memory(&mut self) {
        // Dropping the replies answers them.
        self.in_flight.clear();
        self.memory = Memory::Lost(Instant::now());
        self.load();
    }

    pub(super) fn load(&mut self) {
        if let Memory::Loading(_) = self.memory {
            return;
        }
        // A load that is not taken is dropped, which answers as a failed one does.
        self.memory = Memory::Loading(VecDeque::new());
        self.shared.committer(self.key).load(self.key, self.myself.clone());
    }

    pub(super) fn loaded(&mut self, result: Result<Option<Box<LogRecord>>, StoreError>) {
        let Memory::Loading(waiting) = &mut self.memory else {
            return;
        };
        let waiting = std::mem::take(waiting);
        self.last_work = Instant::now();
        match result {
            Ok(Some(record)) => {
                let limits = self.shared.options.vaults;
                let state = State::new(*record, self.shared.store.incarnation(), limits);
                let position = state.head;
                self.memory = Memory::Ready(Box::new(state));
                self.committed = Some(position);
                self.shared.registry.publish_loaded(self.key, &self.presence, position);
                self.reconcile();
                if self.next_part > 1 {
                    // What was under way may have been committed, and nobody was told.
                    self.shared.doorstep.missed(0);
                }
                for message in waiting {
                    self.receive(message);
                }
            }
            Ok(None) => {
                for message in waiting {
                    let failure = Failure::new(ErrorCode::NoSuchLog);
                    if let LogMessage::Append(request) = message {
                        request.reply.refuse(failure);
                    } else if let LogMessage::Totals(request) = message {
                        let _ = request.reply.send(Err(failure));
                    }
                }
                let seq = self.presence.head().seq;
                for device in self.presence.devices() {
                    let left = MembershipState::Left;
                    self.shared.registry.member_gone(device, self.key, left, seq);
                }
                self.ended = true;
            }
            Err(_) => {
                // Dropping what waits answers it; acks come again with the next subscribe.
                drop(waiting);
                self.memory = Memory::Lost(Instant::now());
            }
        }
    }

    /// Brings sessions up to what the store holds. A commit whose outcome was unknown may have
    /// admitted a device or removed one, and nobody has told its sessions.
    pub(super) fn reconcile(&mut self) {
        let Memory::Ready(state) = &mut self.memory else {
            return;
        };
        let registry = &self.shared.registry;
        for device in self.presence.devices() {
            if state.member_since(device).is_none() {
                let (how, seq) = state.gone(device);
                registry.member_gone(device, self.key, how, seq);
            }
        }
        for (device, seq) in state.members() {
            registry.member_joined(device, state.place(), seq);
        }
        if state.id.is_totals() && self.next_part > 1 {
            // What was under way when the memory was dropped may have changed the group.
            let here = self.presence.devices().into_iter();
            let devices = state.members().map(|(device, _)| device).chain(here);
            registry.groups_changed(devices, &[]);
        }
        // The last member may have left, and the end that was to follow may not have come.
        self.go_on_ending();
    }
}
