//! Full batches, as a committer of the relay makes them when it is saturated.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use sealwire_actors::ports::{
    Clock, CommitResult, FoundResult, LogCommit, LogKey, MemberChange, NewEntry, NewLog,
    ReserveResult, SenderRecord, Store, SystemClock,
};
use sealwire_client::entry::Outline;
use sealwire_client::identity::{Identity, JoinSeed};
use sealwire_protocol::digest::{chain_next, chain_start, entry_digest, native_log_id};
use sealwire_protocol::{AckSet, Control, DeviceKey, Digest, EntryIn, LogType};

use super::Shape;
use crate::group::{self, Author};

/// Groups that one device founds, each a log of its own.
const GROUPS_OF_A_DEVICE: usize = 6;

/// Makes batch after batch, for logs of its own.
pub(super) struct Batches {
    logs: Vec<Log>,
    /// Entries in a batch.
    batch: usize,
    /// Of these, entries of one log.
    per_log: usize,
    filler: Bytes,
    /// Which log comes next.
    turn: usize,
}

struct Log {
    key: LogKey,
    author: Author,
    seq: u64,
    chain: Digest,
    /// Members that ack everything one commit later; none if nobody is connected.
    readers: Vec<DeviceKey>,
    /// Up to where they have acked.
    acked: u64,
}

impl Batches {
    /// Founds `groups` logs, as many as one batch needs, or more, with so many members that read.
    pub(super) async fn found(
        store: &Arc<dyn Store>,
        groups: usize,
        shape: &Shape,
        batch: usize,
        readers: usize,
    ) -> Result<Self> {
        let mut logs = Vec::with_capacity(groups);
        let mut founder = Identity::generate()?;
        for number in 0..groups {
            if number % GROUPS_OF_A_DEVICE == 0 {
                founder = Identity::generate()?;
            }
            logs.push(Log::found(store, &founder, readers).await?);
        }
        let filler = Bytes::from(group::random_body(shape.body)?);
        Ok(Self { logs, batch, per_log: shape.per_log, filler, turn: 0 })
    }

    /// The next batch: logs in turn, with some entries each.
    pub(super) fn next(&mut self) -> Vec<LogCommit> {
        let Self { batch, per_log, .. } = *self;
        let mut left = batch;
        let mut parts = Vec::with_capacity(batch.div_ceil(per_log));
        while left > 0 {
            let entries = left.min(per_log);
            left -= entries;
            parts.push(self.logs[self.turn].next(entries, &self.filler));
            self.turn = (self.turn + 1) % self.logs.len();
        }
        parts
    }
}

impl Log {
    async fn found(store: &Arc<dyn Store>, founder: &Identity, readers: usize) -> Result<Self> {
        let join_key = Some(JoinSeed::generate()?.public());
        let found = Control::Found { log_type: LogType::Group, random: group::random()?, join_key };
        let first = Outline::first().sign(founder, &found.encode())?;
        let id = native_log_id(&first.entry.header);
        let chain = chain_next(chain_start(id), 1, first.digest);
        let author = Author::founder(founder, id, first.digest);
        let new = NewLog {
            id,
            log_type: LogType::Group,
            join_key,
            founder: founder.key(),
            digest: first.digest,
            entry: stored(first.entry, 1, 1, chain, true),
        };
        let limit = u32::try_from(GROUPS_OF_A_DEVICE).context("a small number")?;
        let FoundResult::Created(key) = store.found(&new, limit).await? else {
            bail!("a log could not be founded");
        };
        let readers = (0..readers).map(|_| Ok(DeviceKey(group::random()?)));
        let readers = readers.collect::<Result<Vec<_>>>()?;
        if !readers.is_empty() {
            let now = SystemClock.now_ms();
            for device in &readers {
                let reserved = store.reserve(key, *device, 1, now, now).await?;
                ensure!(reserved == ReserveResult::Reserved, "no place was kept");
            }
            let mut commit = LogCommit::new(key, 1, 0);
            let joined = readers.iter().map(|device| MemberChange::Joined {
                device: *device,
                seq: 1,
                at: SystemClock.now_ms(),
            });
            commit.members.extend(joined);
            ensure!(store.commit(&[commit]).await? == [CommitResult::Committed], "nobody joined");
        }
        Ok(Self { key, author, seq: 1, chain, readers, acked: 1 })
    }

    fn next(&mut self, entries: usize, body: &Bytes) -> LogCommit {
        let mut commit = LogCommit::new(self.key, self.seq, 0);
        if !self.readers.is_empty() && self.acked < self.seq {
            // What the commit before has made durable was delivered, acked by everybody, and is free.
            let acks = self.readers.iter().map(|device| (*device, AckSet::up_to(self.seq)));
            commit.acks.extend(acks);
            commit.freed.push((self.acked + 1, self.seq));
            self.acked = self.seq;
        }
        for _ in 0..entries {
            let entry = self.author.write(body.clone());
            self.seq += 1;
            self.chain = chain_next(self.chain, self.seq, entry_digest(&entry.header));
            commit.entries.push(stored(entry, self.seq, self.author.count, self.chain, false));
        }
        commit.senders.push(SenderRecord {
            slot: 1,
            device: self.author.device,
            last_count: self.author.count,
            last_digest: self.author.prev,
        });
        commit
    }
}

fn stored(entry: EntryIn, seq: u64, count: u64, chain: Digest, control: bool) -> NewEntry {
    NewEntry {
        seq,
        at: SystemClock.now_ms(),
        header: entry.header,
        body: entry.body,
        control,
        signature: entry.signature,
        recipients: Vec::new(),
        totals_kind: None,
        chain,
        sender_slot: 1,
        count,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;

    fn log(number: i64) -> Log {
        let id = sealwire_protocol::LogId([number as u8; 16]);
        let founder = Identity::from_seed(&[number as u8; 32]);
        let author = Author::founder(&founder, id, Digest::ZERO);
        let readers = vec![DeviceKey([1; 32]), DeviceKey([2; 32])];
        Log { key: LogKey(number), author, seq: 1, chain: chain_start(id), readers, acked: 1 }
    }

    #[test]
    fn batches_are_full_and_every_log_goes_on_where_it_was() {
        for (groups, batch, per_log) in [(3, 8, 3), (8, 3, 1), (4, 4, 4), (5, 10, 2)] {
            let logs = (0..groups).map(log).collect();
            let filler = Bytes::from_static(b"body");
            let mut batches = Batches { logs, batch, per_log, filler, turn: 0 };
            let (mut heads, mut freed) = (HashMap::new(), HashMap::new());
            for _ in 0..10 {
                let made = batches.next();
                assert_eq!(made.iter().map(|part| part.entries.len()).sum::<usize>(), batch);
                let logs: HashSet<_> = made.iter().map(|part| part.key).collect();
                assert_eq!(logs.len(), made.len(), "no log stands in a commit twice");
                for part in made {
                    let head = heads.entry(part.key).or_insert(1);
                    assert_eq!(part.expected_seq, *head);
                    // All that stood in the log before is acked by both, and each body freed once.
                    let before = freed.entry(part.key).or_insert(1);
                    if *before < *head {
                        let acked = part.acks.iter().map(|(_, acked)| acked.floor());
                        assert_eq!(acked.collect::<Vec<_>>(), [*head, *head]);
                        assert_eq!(part.freed, [(*before + 1, *head)]);
                        *before = *head;
                    } else {
                        assert!(part.acks.is_empty() && part.freed.is_empty());
                    }
                    for entry in &part.entries {
                        *head += 1;
                        assert_eq!((entry.seq, entry.count), (*head, *head));
                    }
                }
            }
            assert_eq!(heads.len(), groups as usize, "every log has its turn");
        }
    }
}
