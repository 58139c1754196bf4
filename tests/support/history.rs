//! The judge: what happened to a crowd of devices, and whether a log may behave so.
//!
//! It is pure. The crowd writes down what it sent, what it was told and what it read; [`History::check`]
//! compares that with what every member reads in the end, when the relay has been killed and started
//! for the last time. Its own tests below feed it broken histories and see it object.
//!
//! What a log owes, and what each [`Objection`] is about:
//! - an appended entry is there, once, at the seq that was told (`Lost`, `Twice`, `Retold`);
//! - every member reads the same order, and nobody's entries change places (`Disagree`, `Shuffled`);
//! - nothing is there that nobody sent (`Invented`);
//! - a reader gets seq after seq, without a gap and without a repetition (`Skipped`);
//! - what was ever visible stays (`TakenBack`), and so does every head that was told (`FalseHead`);
//! - nothing of a revoked device stands behind its revocation (`AfterRevocation`);
//! - an entry that was sent after another one had been answered comes behind it (`Overtaken`).

use std::collections::{BTreeMap, HashMap, HashSet};

use sealwire_protocol::digest::{chain_next, chain_start};
use sealwire_protocol::{DeviceKey, Digest, Head, LogId};

/// Something that a device did or saw, in the order in which it happened to that device.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    /// An entry leaves the device, for the first time or again.
    Sent { digest: Digest, count: u64 },
    /// The relay says that an entry is durable.
    Appended { digest: Digest, seq: u64 },
    /// A subscription begins after this seq.
    Subscribed { after: u64 },
    /// An entry, or the stub of one, was read.
    Read { seq: u64, digest: Digest },
    /// The relay names a head.
    Told { head: Head },
    /// The relay says that the revocation of another device stands at `seq`.
    Revoked { device: DeviceKey, seq: u64 },
    /// What this device reads in the end, from the first entry to the last.
    End { order: Vec<Digest> },
}

/// One event of one device in one log.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    /// Position in the history of all: a later one happened later.
    pub(crate) at: u64,
    pub(crate) device: DeviceKey,
    pub(crate) log: LogId,
    pub(crate) event: Event,
}

/// What is wrong with a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Objection {
    /// It was answered as appended at `seq`, and something else, or nothing, stands there.
    Lost { log: LogId, seq: u64 },
    /// It stands at two places.
    Twice { log: LogId, seq: u64 },
    /// It was answered with two seqs.
    Retold { log: LogId, first: u64, then: u64 },
    /// Two members do not read the same at `seq`.
    Disagree { log: LogId, seq: u64 },
    /// It follows an entry of its sender that it does not follow, or one between is missing.
    Shuffled { log: LogId, seq: u64 },
    /// Nobody sent it.
    Invented { log: LogId, seq: u64 },
    /// A reader that expected `expected` got `seq`.
    Skipped { log: LogId, expected: u64, seq: u64 },
    /// A reader had seen something at `seq` that is not there in the end.
    TakenBack { log: LogId, seq: u64 },
    /// The relay had named a head that the log does not have.
    FalseHead { log: LogId, seq: u64 },
    /// It was sent after a later entry had been answered.
    Overtaken { log: LogId, seq: u64 },
    /// It stands behind the revocation of its sender.
    AfterRevocation { log: LogId, seq: u64 },
    /// No member has read the log in the end: nothing can be said of it.
    Unread { log: LogId },
}

/// Everything that happened, in order.
#[derive(Default)]
pub(crate) struct History {
    records: Vec<Record>,
}

impl History {
    /// A history of these records, in any order.
    pub(crate) fn new(mut records: Vec<Record>) -> Self {
        records.sort_by_key(|record| record.at);
        Self { records }
    }

    /// How many entries were answered as appended, each counted once.
    pub(crate) fn appended(&self) -> usize {
        let appended = self.records.iter().filter_map(|record| match record.event {
            Event::Appended { digest, .. } => Some((record.log, digest)),
            _ => None,
        });
        appended.collect::<HashSet<_>>().len()
    }

    /// How many devices were revoked.
    pub(crate) fn revocations(&self) -> usize {
        let revoked = self.records.iter().filter_map(|record| match record.event {
            Event::Revoked { device, .. } => Some((record.log, device)),
            _ => None,
        });
        revoked.collect::<HashSet<_>>().len()
    }

    /// How many entries and stubs were read before the end.
    pub(crate) fn reads(&self) -> usize {
        self.records.iter().filter(|record| matches!(record.event, Event::Read { .. })).count()
    }

    /// Everything that is wrong, log by log.
    pub(crate) fn check(&self) -> Vec<Objection> {
        let mut logs: BTreeMap<LogId, Vec<&Record>> = BTreeMap::new();
        for record in &self.records {
            logs.entry(record.log).or_default().push(record);
        }
        logs.iter().flat_map(|(log, records)| LogHistory::new(*log, records).check()).collect()
    }
}

/// One log's part of a history.
struct LogHistory<'a> {
    log: LogId,
    records: &'a [&'a Record],
    /// What stands at each seq in the end, from seq 1; empty if nobody read it.
    order: &'a [Digest],
    objections: Vec<Objection>,
}

impl<'a> LogHistory<'a> {
    fn new(log: LogId, records: &'a [&'a Record]) -> Self {
        let order = records.iter().find_map(|record| match &record.event {
            Event::End { order } => Some(order.as_slice()),
            _ => None,
        });
        Self { log, records, order: order.unwrap_or_default(), objections: Vec::new() }
    }

    fn check(mut self) -> Vec<Objection> {
        if self.order.is_empty() {
            return vec![Objection::Unread { log: self.log }];
        }
        self.check_agreement();
        self.check_origin();
        self.check_answers();
        self.check_real_time();
        self.check_readers();
        self.check_heads();
        self.objections
    }

    fn object(&mut self, objection: Objection) {
        self.objections.push(objection);
    }

    /// What stands at `seq` in the end.
    fn at(&self, seq: u64) -> Option<Digest> {
        let index = usize::try_from(seq.checked_sub(1)?).ok()?;
        self.order.get(index).copied()
    }

    fn check_agreement(&mut self) {
        for record in self.records {
            if let Event::End { order } = &record.event
                && order.as_slice() != self.order
            {
                let same = order.iter().zip(self.order).take_while(|(a, b)| a == b).count();
                self.object(Objection::Disagree { log: self.log, seq: same as u64 + 1 });
            }
        }
    }

    /// Every entry was sent by somebody, stands once, and each sender's entries stand in order.
    fn check_origin(&mut self) {
        let sent: HashMap<Digest, (DeviceKey, u64)> = self
            .records
            .iter()
            .filter_map(|record| match record.event {
                Event::Sent { digest, count } => Some((digest, (record.device, count))),
                _ => None,
            })
            .collect();
        let revoked: HashMap<DeviceKey, u64> = self
            .records
            .iter()
            .filter_map(|record| match record.event {
                Event::Revoked { device, seq } => Some((device, seq)),
                _ => None,
            })
            .collect();
        let mut counts: HashMap<DeviceKey, u64> = HashMap::new();
        let mut seen = HashSet::new();
        for (digest, seq) in self.order.iter().zip(1_u64..) {
            if !seen.insert(*digest) {
                self.object(Objection::Twice { log: self.log, seq });
                continue;
            }
            let Some((sender, count)) = sent.get(digest) else {
                self.object(Objection::Invented { log: self.log, seq });
                continue;
            };
            if revoked.get(sender).is_some_and(|at| seq > *at) {
                self.object(Objection::AfterRevocation { log: self.log, seq });
            }
            let last = counts.entry(*sender).or_default();
            if *count != *last + 1 {
                self.object(Objection::Shuffled { log: self.log, seq });
            }
            let last = counts.entry(*sender).or_default();
            *last = *count;
        }
    }

    fn check_answers(&mut self) {
        let mut told: HashMap<Digest, u64> = HashMap::new();
        for record in self.records {
            let Event::Appended { digest, seq } = record.event else { continue };
            let first = *told.entry(digest).or_insert(seq);
            if first != seq {
                self.object(Objection::Retold { log: self.log, first, then: seq });
            }
            if self.at(seq) != Some(digest) {
                self.object(Objection::Lost { log: self.log, seq });
            }
        }
    }

    /// An entry that was first sent when a later one had been answered would have gone back in time.
    fn check_real_time(&mut self) {
        let places: HashMap<Digest, u64> = self.order.iter().copied().zip(1..).collect();
        let mut answered = 0;
        let mut begun = HashSet::new();
        for record in self.records {
            match record.event {
                Event::Sent { digest, .. } if begun.insert(digest) => {
                    if let Some(seq) = places.get(&digest)
                        && *seq < answered
                    {
                        self.object(Objection::Overtaken { log: self.log, seq: *seq });
                    }
                }
                Event::Appended { seq, .. } => answered = answered.max(seq),
                _ => {}
            }
        }
    }

    fn check_readers(&mut self) {
        let mut expected: HashMap<DeviceKey, u64> = HashMap::new();
        for record in self.records {
            match record.event {
                Event::Subscribed { after } => {
                    expected.insert(record.device, after + 1);
                }
                Event::Read { seq, digest } => {
                    let next = expected.entry(record.device).or_insert(1);
                    if *next != seq {
                        let expected = *next;
                        self.objections.push(Objection::Skipped { log: self.log, expected, seq });
                    }
                    *next = seq + 1;
                    if self.at(seq) != Some(digest) {
                        self.object(Objection::TakenBack { log: self.log, seq });
                    }
                }
                _ => {}
            }
        }
    }

    fn check_heads(&mut self) {
        let mut chains = vec![chain_start(self.log)];
        for (digest, seq) in self.order.iter().zip(1_u64..) {
            chains.push(chain_next(chains[chains.len() - 1], seq, *digest));
        }
        let incarnation = self.records.iter().find_map(|record| match record.event {
            Event::Told { head } => Some(head.incarnation),
            _ => None,
        });
        for record in self.records {
            let Event::Told { head } = record.event else { continue };
            let chain = usize::try_from(head.seq).ok().and_then(|seq| chains.get(seq));
            if chain != Some(&head.chain) || Some(head.incarnation) != incarnation {
                self.object(Objection::FalseHead { log: self.log, seq: head.seq });
            }
        }
    }
}

#[cfg(test)]
mod tests;
