//! Devices whose turn has come, served log by log in turn: the thousand members of one group wait for
//! each other and delay nobody else.

use std::collections::{BTreeMap, HashMap};

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
    /// The logs that have a device here, in the order of their turns.
    turns: BTreeMap<u64, LogKey>,
    queues: HashMap<LogKey, Queue>,
    /// The devices, log by log and in the order in which they came.
    devices: BTreeMap<(LogKey, u64), DeviceKey>,
    next: u64,
}

/// The devices of a log; there is always one.
struct Queue {
    turn: u64,
    len: usize,
}

impl Fair {
    /// Adds a device to those of a log.
    pub(super) fn push(&mut self, log: LogKey, device: DeviceKey) -> Ticket {
        let number = self.number();
        let turns = &mut self.turns;
        let queue = self.queues.entry(log).or_insert_with(|| {
            turns.insert(number, log);
            Queue { turn: number, len: 0 }
        });
        queue.len += 1;
        self.devices.insert((log, number), device);
        Ticket { log, number }
    }

    /// Takes a device out again.
    pub(super) fn remove(&mut self, ticket: Ticket) {
        let Ticket { log, number } = ticket;
        let Some(queue) = self.queues.get_mut(&log) else {
            return;
        };
        queue.len -= usize::from(self.devices.remove(&(log, number)).is_some());
        if queue.len == 0 {
            self.turns.remove(&queue.turn);
            self.queues.remove(&log);
        }
    }

    /// The next device of the next log.
    pub(super) fn pop(&mut self) -> Option<(LogKey, DeviceKey)> {
        let (_, log) = self.turns.pop_first()?;
        let turn = self.number();
        let queue = self.queues.get_mut(&log)?;
        let (place, _) = self.devices.range((log, 0)..).next()?;
        let place = *place;
        let device = self.devices.remove(&place)?;
        queue.len -= 1;
        queue.turn = turn;
        if queue.len == 0 {
            self.queues.remove(&log);
        } else {
            self.turns.insert(turn, log);
        }
        Some((log, device))
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// How many devices there are.
    pub(super) fn len(&self) -> usize {
        self.devices.len()
    }

    /// Bytes of what is kept of a device that is alone in its log's queue, which is the most: in the two
    /// trees and in the map.
    #[cfg(test)]
    pub(super) const SIZES: ([usize; 2], usize) = (
        [size_of::<((LogKey, u64), DeviceKey)>(), size_of::<(u64, LogKey)>()],
        size_of::<(LogKey, Queue)>(),
    );
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

    #[test]
    fn nothing_is_kept_of_devices_that_were_taken_out() {
        let mut fair = Fair::default();
        for log in 0..100 {
            let ticket = fair.push(LogKey(log), DeviceKey([7; 32]));
            fair.remove(ticket);
            fair.remove(ticket);
        }
        assert_eq!((fair.len(), fair.queues.len(), fair.turns.len()), (0, 0, 0));
    }
}
