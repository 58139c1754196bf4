//! What a device shows with a request that belongs to no session: a token, or a signed challenge.
//!
//! A challenge is made without storing anything and claimed once: the claim is one atomic statement,
//! made after everything else about the request was found right, so that a stranger writes no rows.
//! Claims that come while one is being written go together: one fsync for a wave of phones.
//!
//! Holds always: what is unknown, expired, forged, foreign or used before is refused alike; when the
//! store cannot be asked, that is said, and never taken for a refusal.

use std::sync::Arc;

use parking_lot::Mutex;
use sealwire_protocol::challenge::CHALLENGE_BYTES;
use sealwire_protocol::ids::Signature;
use sealwire_protocol::limits::TOKEN_LIFETIME;
use sealwire_protocol::signing::{admissible, verify};
use sealwire_protocol::token::{Claims, Purpose, TOKEN_BYTES};
use sealwire_protocol::{DeviceKey, LogId};
use thiserror::Error;
use tokio::sync::oneshot;

use crate::limits::CLAIMS_BATCH_MAX;
use crate::ports::{LogKey, Store, StoreError};
use crate::session::ask;
use crate::system::System;

/// Why a signed challenge opens nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum NotProved {
    /// It is not good, for whatever reason.
    #[error("the challenge or its signature is not good")]
    Refused,
    /// Whether it was used before cannot be said now.
    #[error("the store is unavailable")]
    Unavailable,
}

/// A token, and until when it is good.
pub struct HttpSession {
    /// The token's bytes. They have no `Debug` of their own: never print them.
    pub token: [u8; TOKEN_BYTES],
    /// Milliseconds since the epoch.
    pub expires_at: u64,
}

/// Challenges that wait to be claimed, and who asks.
pub(crate) type WaitingClaims = Mutex<Vec<Claim>>;

pub(crate) struct Claim {
    challenge: [u8; CHALLENGE_BYTES],
    expires_at: u64,
    answer: oneshot::Sender<Result<bool, StoreError>>,
}

impl System {
    /// A fresh challenge; `None` if there is no randomness to be had.
    #[must_use]
    pub fn challenge(&self) -> Option<[u8; CHALLENGE_BYTES]> {
        let mut random = [0; 12];
        getrandom::fill(&mut random).ok()?;
        let issued = u32::try_from(self.shared.clock.now_ms() / 1000).ok()?;
        self.shared.options.token_keys.first().map(|key| key.challenge(issued, random))
    }

    /// Checks that `device` has signed a challenge of this relay that is fresh, and claims it.
    ///
    /// # Errors
    /// [`NotProved`].
    pub async fn prove(
        &self,
        device: DeviceKey,
        challenge: &[u8; CHALLENGE_BYTES],
        signature: &Signature,
    ) -> Result<(), NotProved> {
        let now = self.shared.clock.now_ms() / 1000;
        let keys = &self.shared.options.token_keys;
        let expires = keys.iter().find_map(|key| key.challenge_expiry(challenge, now));
        // Checked whatever the challenge is: every refusal takes as long as any other.
        let signed = admissible(device).is_ok() && verify(device, challenge, signature).is_ok();
        let (Some(expires), true) = (expires, signed) else {
            return Err(NotProved::Refused);
        };
        match self.claim(*challenge, expires * 1000).await {
            Ok(true) => {
                self.shared.note_seen(device);
                Ok(())
            }
            Ok(false) => Err(NotProved::Refused),
            Err(_) => Err(NotProved::Unavailable),
        }
    }

    async fn claim(
        &self,
        challenge: [u8; CHALLENGE_BYTES],
        expires_at: u64,
    ) -> Result<bool, StoreError> {
        let (answer, claimed) = oneshot::channel();
        self.shared.claims.lock().push(Claim { challenge, expires_at, answer });
        let shared = self.shared.clone();
        let queued = self.shared.committer(LogKey(0)).job(Box::new(move |store| {
            Box::pin(async move { claim_waiting(&shared.claims, &store).await })
        }));
        if !queued {
            // What waits is taken by the next claim that finds a place.
            return Err(StoreError::Unavailable);
        }
        ask(async { claimed.await.unwrap_or(Err(StoreError::Unavailable)) }).await
    }

    /// A token for requests of this device.
    ///
    /// # Errors
    /// [`NotProved::Unavailable`] if there is no key to make it with.
    pub fn open_http(&self, device: DeviceKey) -> Result<HttpSession, NotProved> {
        let issued = self.shared.clock.now_ms() / 1000;
        let expires = issued + TOKEN_LIFETIME.as_secs();
        let claims = Claims { purpose: Purpose::Http, device, log: LogId::ZERO, issued, expires };
        let key = self.shared.options.token_keys.first().ok_or(NotProved::Unavailable)?;
        Ok(HttpSession { token: key.issue(&claims), expires_at: expires * 1000 })
    }

    /// Whether a token is good for requests of this device now; gives the share of its lifetime that
    /// is left, in percent.
    #[must_use]
    pub fn check_http(&self, device: DeviceKey, token: &[u8]) -> Option<u64> {
        let now = self.shared.clock.now_ms() / 1000;
        let keys = &self.shared.options.token_keys;
        let claims = keys.iter().find_map(|key| key.check(token, Purpose::Http, now).ok())?;
        if claims.device != device {
            return None;
        }
        self.shared.note_seen(device);
        Some((claims.expires - now) * 100 / TOKEN_LIFETIME.as_secs().max(1))
    }
}

/// Claims what waits, as many as fit one statement; the jobs of those that are left take the rest.
async fn claim_waiting(waiting: &WaitingClaims, store: &Arc<dyn Store>) {
    let mut claims = {
        let mut waiting = waiting.lock();
        // Whoever does not wait any more must not use up its challenge.
        waiting.retain(|claim| !claim.answer.is_closed());
        let taken = waiting.len().min(CLAIMS_BATCH_MAX);
        waiting.drain(..taken).collect::<Vec<_>>()
    };
    if claims.is_empty() {
        return;
    }
    let rows: Vec<_> = claims.iter().map(|claim| (claim.challenge, claim.expires_at)).collect();
    let claimed = ask(store.claim_challenges(&rows)).await;
    for (place, claim) in claims.drain(..).enumerate() {
        let answer = claimed.as_ref().map(|all| all.get(place).copied().unwrap_or(false));
        // Nobody waits: the challenge is used up all the same, and a new one costs nothing.
        let _ = claim.answer.send(answer.map_err(|error| *error));
    }
}
