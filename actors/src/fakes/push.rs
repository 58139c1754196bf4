//! What the in-memory store knows of doorbells, and a push service that only listens.

use std::collections::VecDeque;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use sealwire_protocol::DeviceKey;
use tokio::time::sleep;

use super::MemoryStore;
use super::log::{Log, Membership};
use crate::ports::{
    LogKey, MemberRecord, Push, PushStore, Rang, RecentEntry, RecentLog, Ring, StoreError,
};

impl Log {
    fn recent_entries(&self, before: u64, limit: usize) -> Result<Vec<RecentEntry>, StoreError> {
        let kept = self.entries.range(..before).rev().filter(|(_, entry)| entry.lives());
        kept.take(limit)
            .map(|(seq, entry)| {
                let header = entry.new.header.decode().map_err(|_| StoreError::Corrupt)?;
                Ok(RecentEntry {
                    seq: *seq,
                    at: entry.new.at,
                    sender: header.sender,
                    kind: header.kind,
                    totals_kind: entry.new.totals_kind.clone(),
                    recipients: entry.new.recipients.clone(),
                })
            })
            .collect()
    }
}

#[async_trait]
impl PushStore for MemoryStore {
    async fn push_tokens(
        &self,
        devices: &[DeviceKey],
    ) -> Result<Vec<Option<(String, String)>>, StoreError> {
        let (takes, unreadable) = {
            let hooks = self.hooks.lock();
            (hooks.token_lookups_take, hooks.tokens_unreadable)
        };
        if takes > Duration::ZERO {
            sleep(takes).await;
        }
        if unreadable {
            return Err(StoreError::Unavailable);
        }
        self.read(|state| devices.iter().map(|device| state.push_token(*device)).collect())
    }

    async fn forget_push_token(
        &self,
        device: DeviceKey,
        platform: &str,
        token: &str,
    ) -> Result<bool, StoreError> {
        {
            let mut hooks = self.hooks.lock();
            if hooks.forget_failures > 0 {
                hooks.forget_failures -= 1;
                return Err(StoreError::Unavailable);
            }
        }
        let mut state = self.state.lock();
        let there = state
            .push_token(device)
            .is_some_and(|place| (place.0.as_str(), place.1.as_str()) == (platform, token));
        if there {
            state.set_push_token(device, None, 0);
        }
        Ok(there)
    }

    async fn recent_logs(
        &self,
        after: LogKey,
        since: u64,
        limit: usize,
    ) -> Result<(Vec<RecentLog>, Option<LogKey>), StoreError> {
        self.read(|state| {
            let looked: Vec<_> =
                state.logs.iter().filter(|(key, _)| **key > after).take(limit).collect();
            let last = looked.last().filter(|_| looked.len() == limit).map(|(key, _)| **key);
            let recent = looked.iter().filter(|(_, log)| log.last_entry_at >= since);
            let recent = recent.map(|(key, log)| RecentLog {
                key: **key,
                id: log.id,
                log_type: log.log_type,
            });
            (recent.collect(), last)
        })
    }

    async fn recent_entries(
        &self,
        key: LogKey,
        before: u64,
        limit: usize,
    ) -> Result<Vec<RecentEntry>, StoreError> {
        {
            let mut hooks = self.hooks.lock();
            if let Some(reads) = &mut hooks.spoiled {
                *reads += 1;
                return Err(StoreError::Corrupt);
            }
            if hooks.recent_failures > 0 {
                hooks.recent_failures -= 1;
                return Err(StoreError::Unavailable);
            }
        }
        self.read(|state| {
            state.logs.get(&key).map_or(Ok(Vec::new()), |log| log.recent_entries(before, limit))
        })?
    }

    async fn members_with_doorbells(&self, key: LogKey) -> Result<Vec<MemberRecord>, StoreError> {
        self.read(|state| {
            let Some(log) = state.logs.get(&key) else {
                return Vec::new();
            };
            let members = log.members.iter().filter_map(|(device, membership)| {
                let Membership::Active { joined_seq, joined_at, acked } = membership else {
                    return None;
                };
                let member = sealwire_protocol::frame::Member {
                    device: *device,
                    joined_seq: *joined_seq,
                    joined_at: *joined_at,
                };
                Some(MemberRecord { member, acked: acked.clone() })
            });
            members.filter(|one| state.push_token(one.member.device).is_some()).collect()
        })
    }
}

impl MemoryStore {
    /// So many times the store is unavailable when entries are looked at for doorbells.
    pub fn fail_recent_entries(&self, times: u32) {
        self.hooks.lock().recent_failures = times;
    }

    /// While on, the store is unavailable when it is asked where doorbells are that are to be rung.
    pub fn fail_token_lookups(&self, on: bool) {
        self.hooks.lock().tokens_unreadable = on;
    }

    /// How long it takes from now on to look up where doorbells are that are to be rung.
    pub fn take_long_for_tokens(&self, long: Duration) {
        self.hooks.lock().token_lookups_take = long;
    }

    /// So many times the store is unavailable when a token is to be forgotten.
    pub fn fail_forgetting(&self, times: u32) {
        self.hooks.lock().forget_failures = times;
    }

    /// From now on no entry decodes that is looked at for doorbells.
    pub fn spoil_recent_entries(&self) {
        self.hooks.lock().spoiled = Some(0);
    }

    /// How often that was tried since then.
    #[must_use]
    pub fn recent_reads(&self) -> u64 {
        self.hooks.lock().spoiled.unwrap_or(0)
    }
}

/// A push service that keeps what it was told, and says what it was told to say: [`Rang::Taken`], if
/// nothing else.
#[derive(Default)]
pub struct FakePush {
    heard: Mutex<Vec<(String, Ring)>>,
    says: Mutex<VecDeque<Rang>>,
    always: Mutex<Option<Rang>>,
    takes: Mutex<Duration>,
}

impl FakePush {
    /// What it was told since it was asked last: token and ring.
    pub fn take_heard(&self) -> Vec<(String, Ring)> {
        std::mem::take(&mut self.heard.lock())
    }

    /// How many times it was rung since then.
    #[must_use]
    pub fn heard(&self) -> usize {
        self.heard.lock().len()
    }

    /// What it says next, after what it was told to say before.
    pub fn say(&self, rang: Rang) {
        self.says.lock().push_back(rang);
    }

    /// What it says from now on, whenever nothing else comes first.
    pub fn always_say(&self, rang: Option<Rang>) {
        *self.always.lock() = rang;
    }

    /// How long it takes from now on.
    pub fn take_long(&self, long: Duration) {
        *self.takes.lock() = long;
    }
}

#[async_trait]
impl Push for FakePush {
    fn platform(&self) -> &'static str {
        "fcm"
    }

    async fn ring(&self, token: &str, ring: &Ring) -> Rang {
        let long = *self.takes.lock();
        if long > Duration::ZERO {
            sleep(long).await;
        }
        self.heard.lock().push((token.to_owned(), *ring));
        let next = self.says.lock().pop_front();
        next.or(*self.always.lock()).unwrap_or(Rang::Taken)
    }
}
