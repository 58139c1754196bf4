//! What a client asks of a vault without a session: one request, one answer.
//!
//! Holds always: requests of one device that write to one vault are acted on one after the other, so
//! that its entries reach the log in the order in which they came.

use std::sync::Arc;

use dashmap::DashMap;
use sealwire_protocol::bounded::BoundedBytes;
use sealwire_protocol::frame::{Appended, Member};
use sealwire_protocol::limits::{BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, TOKEN_LIFETIME};
use sealwire_protocol::token::{Claims, Purpose, TOKEN_BYTES};
use sealwire_protocol::{
    Control, DeviceKey, Digest, EntryIn, ErrorCode, Failure, Head, LogId, LogType,
};
use tokio::time::timeout;

use super::{NewPiece, Piece, append, enrolled, keep_piece, read_piece, snapshots};
use crate::entry::{CheckedEntry, Content, Weight};
use crate::limits::STORE_DEADLINE;
use crate::ports::{LogPlace, SnapshotRecord};
use crate::reply::{Credit, Reply, unavailable};
use crate::session::requests::found;
use crate::system::{Shared, System};
use crate::turns::Turn;

/// Whose turn it is: one request of a device to a vault at a time.
#[derive(Default)]
pub(crate) struct PushTurns(DashMap<(DeviceKey, LogId), Arc<tokio::sync::Mutex<()>>>);

impl PushTurns {
    async fn take<T>(
        &self,
        whose: (DeviceKey, LogId),
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let waiting =
            Queueing { turns: self, whose, turn: self.0.entry(whose).or_default().clone() };
        let taken = timeout(STORE_DEADLINE, waiting.turn.lock()).await;
        match taken {
            Ok(_held) => work.await,
            Err(_) => Err(unavailable()),
        }
    }
}

/// Somebody who waits for a turn or has it. A client that hangs up is dropped in the middle, and leaves
/// nothing behind either.
struct Queueing<'a> {
    turns: &'a PushTurns,
    whose: (DeviceKey, LogId),
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Drop for Queueing<'_> {
    fn drop(&mut self) {
        // The map's and this one: nobody else waits.
        self.turns.0.remove_if(&self.whose, |_, turn| Arc::strong_count(turn) == 2);
    }
}

impl Shared {
    /// A token for the routes of one vault, and until when it is good, in seconds since the epoch.
    pub(crate) fn vault_token(
        &self,
        device: DeviceKey,
        log: LogId,
    ) -> (BoundedBytes<TOKEN_BYTES>, u64) {
        let issued = self.clock.now_ms() / 1000;
        let expires = issued + TOKEN_LIFETIME.as_secs();
        let claims = Claims { purpose: Purpose::Vault, device, log, issued, expires };
        (self.issue(&claims), expires)
    }

    /// Where a vault is, if there is one of this name.
    pub(super) async fn vault_place(&self, log: LogId) -> Result<LogPlace, Failure> {
        let brief = self
            .turns
            .ask(Turn::Request, self.store.find_log(log))
            .await
            .map_err(|_| unavailable())?;
        let vault = brief.filter(|brief| brief.log_type == LogType::Vault);
        Ok(vault.ok_or(Failure::new(ErrorCode::NoSuchLog))?.place())
    }

    /// Why a device is no member of a log. One that was revoked is told so; everybody else is told what is
    /// told of a log that does not exist, after the same one question.
    pub(crate) async fn why_no_member(&self, turn: Turn, device: DeviceKey, log: LogId) -> Failure {
        match self.turns.ask(turn, self.store.revoked_at(log, device)).await {
            Ok(Some(seq)) => Failure::revoked(seq),
            Ok(None) => Failure::new(ErrorCode::NoSuchLog),
            Err(_) => unavailable(),
        }
    }

    /// Where a vault is that the device is enrolled in now.
    pub(super) async fn own_vault(
        &self,
        device: DeviceKey,
        log: LogId,
    ) -> Result<LogPlace, Failure> {
        let place = self.vault_place(log).await?;
        enrolled(self, Turn::Request, device, place).await?;
        Ok(place)
    }
}

impl System {
    /// Whether a token is good for requests of this device to this vault now. Whether it is enrolled,
    /// each request asks.
    #[must_use]
    pub fn check_vault_token(&self, device: DeviceKey, log: LogId, token: &[u8]) -> bool {
        let now = self.shared.clock.now_ms() / 1000;
        self.shared
            .options
            .token_keys
            .iter()
            .filter_map(|key| key.check(token, Purpose::Vault, now).ok())
            .any(|claims| claims.device == device && claims.log == log)
    }

    /// A token for the routes of one vault, and until when it is good, in seconds since the epoch.
    ///
    /// # Errors
    /// `no_such_log`, `revoked` or `unavailable`.
    pub async fn vault_token(
        &self,
        device: DeviceKey,
        log: LogId,
    ) -> Result<(Vec<u8>, u64), Failure> {
        self.shared.own_vault(device, log).await?;
        let (token, expires) = self.shared.vault_token(device, log);
        Ok((token.to_vec(), expires))
    }

    /// Founds a vault with its first entry, or appends entries to the vault `log`: all or none.
    ///
    /// # Errors
    /// As over a session.
    pub async fn push_to_vault(
        &self,
        device: DeviceKey,
        log: Option<LogId>,
        entries: Vec<EntryIn>,
    ) -> Result<Appended, Failure> {
        let shared = &self.shared;
        let weight = Weight::of(&entries);
        if entries.len() > BATCH_ENTRIES_MAX || weight.bodies > BATCH_BYTES_MAX {
            return Err(Failure::new(ErrorCode::TooLarge));
        }
        let (reply, answer) = Reply::to_caller(&shared.budget, weight)?;
        let named = log.unwrap_or(LogId::ZERO);
        let work = async {
            let checked: Result<Vec<CheckedEntry>, Failure> =
                entries.into_iter().map(|entry| CheckedEntry::check(entry, device)).collect();
            let entries = checked?;
            let first = entries.first().ok_or(Failure::new(ErrorCode::Malformed))?;
            if entries.iter().any(|entry| entry.header.log != named) {
                return Err(Failure::new(ErrorCode::BadHeader));
            }
            match (&first.content, log) {
                (Content::Control(Control::Found { log_type: LogType::Vault, .. }), None) => {
                    found(shared.clone(), device, entries, reply).await;
                }
                (_, None) => return Err(Failure::new(ErrorCode::BadControl)),
                (_, Some(log)) => {
                    let LogPlace { key, .. } = shared.own_vault(device, log).await?;
                    append(shared.clone(), device, key, entries, reply).await;
                }
            }
            // Dropped only with the actor that should have answered.
            answer.await.unwrap_or_else(|_| Err(unavailable()))
        };
        shared.vault_turns.take((device, named), work).await
    }

    /// The devices of a vault, and the head at which they are.
    ///
    /// # Errors
    /// `no_such_log`, `revoked` or `unavailable`.
    pub async fn vault_devices(
        &self,
        device: DeviceKey,
        log: LogId,
    ) -> Result<(Head, Vec<Member>), Failure> {
        let LogPlace { key, .. } = self.shared.own_vault(device, log).await?;
        let members = self
            .shared
            .turns
            .ask(Turn::Request, self.shared.store.members(key))
            .await
            .map_err(|_| unavailable())?;
        let (position, members) = members.ok_or(Failure::new(ErrorCode::NoSuchLog))?;
        Ok((self.shared.head(position), members))
    }

    /// The real snapshots of a vault, newest first.
    ///
    /// # Errors
    /// `no_such_log`, `revoked` or `unavailable`.
    pub async fn vault_snapshots(
        &self,
        device: DeviceKey,
        log: LogId,
    ) -> Result<Vec<SnapshotRecord>, Failure> {
        let place = self.shared.vault_place(log).await?;
        snapshots(&self.shared, Turn::Request, device, place).await
    }

    /// Bytes of a snapshot, at most 512 KiB.
    ///
    /// # Errors
    /// Also `no_such_snapshot`.
    pub async fn vault_piece(
        &self,
        device: DeviceKey,
        log: LogId,
        digest: Digest,
        offset: u64,
        length: usize,
    ) -> Result<Vec<u8>, Failure> {
        let place = self.shared.vault_place(log).await?;
        let piece = Piece { digest, offset, length };
        read_piece(&self.shared, Turn::Request, device, place, piece).await
    }

    /// Keeps a piece of an upload.
    ///
    /// # Errors
    /// `bad_snapshot`, `out_of_order` with the next offset, `snapshots_limit_reached`, and as above.
    pub async fn put_vault_piece(
        &self,
        device: DeviceKey,
        log: LogId,
        piece: NewPiece,
    ) -> Result<(), Failure> {
        let _credit = Credit::take(&self.shared.budget, Weight::of_bytes(piece.bytes.len()))?;
        let place = self.shared.own_vault(device, log).await?;
        keep_piece(&self.shared, Turn::Request, device, place, piece).await
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tokio::time::sleep;

    use super::*;

    const WHOSE: (DeviceKey, LogId) = (DeviceKey([1; 32]), LogId([2; 16]));

    #[tokio::test(start_paused = true)]
    async fn nothing_is_left_of_whoever_hangs_up_in_the_middle() {
        let turns = PushTurns::default();
        let never = || pending::<Result<(), Failure>>();
        let soon = std::time::Duration::from_millis(10);
        // One that has its turn, and one that waits for it.
        let both = async {
            let waits = async {
                sleep(soon).await;
                turns.take(WHOSE, never()).await
            };
            let _ = tokio::join!(turns.take(WHOSE, never()), waits);
        };
        let meanwhile = async {
            sleep(soon * 2).await;
            turns.0.len()
        };
        let held = tokio::select! {
            () = both => None,
            held = meanwhile => Some(held),
        };
        assert_eq!(held, Some(1));
        assert!(turns.0.is_empty());
        // Who hangs up does not take the turn from whoever waits.
        let first = Box::pin(turns.take(WHOSE, never()));
        let second = turns.take(WHOSE, async { Ok(7) });
        let hangs_up = async {
            let _ = timeout(soon, first).await;
        };
        let ((), done) = tokio::join!(hangs_up, second);
        assert_eq!(done.map_err(|failure| failure.code), Ok(7));
        assert!(turns.0.is_empty());
    }
}
