//! Devices whose turn has come, served log by log in turn: the thousand members of one group wait for
//! each other and delay nobody else.

use std::collections::{BTreeMap, HashMap, VecDeque};

use sealwire_protocol::DeviceKey;

use crate::ports::LogKey;

/// A place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    log: LogKey,
    number: u64,
}

/// See the module's header.
#[derive(Default)]
pub(super) struct Fair {
    turns: VecDeque<LogKey>,
    /// An empty one stands for a turn that is still to be passed over.
    queues: HashMap<LogKey, BTreeMap<u64, DeviceKey>>,
    next: u64,
    len: usize,
}

impl Fair {
    /// Adds a device to those of a log.
    pub(super) fn push(&mut self, log: LogKey, device: DeviceKey) -> Ticket {
        let number = self.next;
        self.next += 1;
        let turns = &mut self.turns;
        let queue = self.queues.entry(log).or_insert_with(|| {
            turns.push_back(log);
            BTreeMap::new()
        });
        queue.insert(number, device);
        self.len += 1;
        Ticket { log, number }
    }

    /// Takes a device out again.
    pub(super) fn remove(&mut self, ticket: Ticket) {
        let removed = self.queues.get_mut(&ticket.log).and_then(|one| one.remove(&ticket.number));
        self.len -= usize::from(removed.is_some());
    }

    /// The next device of the next log.
    pub(super) fn pop(&mut self) -> Option<(LogKey, DeviceKey)> {
        while let Some(log) = self.turns.pop_front() {
            let Some(queue) = self.queues.get_mut(&log) else {
                continue;
            };
            let Some((_, device)) = queue.pop_first() else {
                self.queues.remove(&log);
                continue;
            };
            self.len -= 1;
            self.turns.push_back(log);
            return Some((log, device));
        }
        None
    }

    /// How many devices there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_take_turns_whatever_their_size() {
        let mut fair = Fair::default();
        let device = |n: u8| DeviceKey([n; 32]);
        let tickets: Vec<Ticket> = (1..=5).map(|n| fair.push(LogKey(1), device(n))).collect();
        fair.push(LogKey(2), device(10));
        fair.push(LogKey(3), device(20));
        fair.remove(tickets[1]);
        fair.remove(tickets[1]);
        let served: Vec<u8> = std::iter::from_fn(|| fair.pop()).map(|(_, d)| d.0[0]).collect();
        assert_eq!(served, [1, 10, 20, 3, 4, 5]);
        assert!(fair.len() == 0 && fair.queues.is_empty() && fair.turns.is_empty());
        fair.push(LogKey(1), device(1));
        assert_eq!(fair.pop(), Some((LogKey(1), device(1))));
    }
}
