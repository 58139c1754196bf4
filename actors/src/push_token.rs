//! Where a device's doorbell is. A token is a device's address at a push service: it is stored, never
//! shown to anybody else, and never logged.
//!
//! Every phone says its token at every start, and phones start in waves: what is known already is not
//! written, and what comes while something is being written goes together.

use std::sync::Arc;

use parking_lot::Mutex;
use sealwire_protocol::{DeviceKey, ErrorCode, Failure};
use tokio::sync::oneshot;

use crate::limits::{DOORBELLS_BATCH_MAX, PUSH_TOKEN_STORED_BYTES_MAX};
use crate::ports::{Doorbell, LogKey, Store, StoreError};
use crate::reply::unavailable;
use crate::session::ask;
use crate::system::{Shared, System};

/// The push services that can be rung.
const PLATFORMS: &[&str] = &["fcm"];

/// What waits to be noted, and who asks.
pub(crate) type WaitingDoorbells = Mutex<Vec<(Doorbell, oneshot::Sender<Result<(), StoreError>>)>>;

impl System {
    /// Notes where a device's doorbell is: a platform and a token there, or nowhere. A token that
    /// another device had is that device's no more.
    ///
    /// # Errors
    /// `malformed` for a platform that is not known or a token that is too long, or `unavailable`.
    pub async fn set_push_token(
        &self,
        device: DeviceKey,
        place: Option<(String, String)>,
    ) -> Result<(), Failure> {
        self.shared.set_push_token(device, place).await
    }
}

impl Shared {
    pub(crate) async fn set_push_token(
        self: &Arc<Self>,
        device: DeviceKey,
        place: Option<(String, String)>,
    ) -> Result<(), Failure> {
        if let Some((platform, token)) = &place {
            let known = PLATFORMS.contains(&platform.as_str());
            if !known || token.len() > PUSH_TOKEN_STORED_BYTES_MAX || token.contains('\0') {
                return Err(Failure::new(ErrorCode::Malformed));
            }
        }
        let kept = ask(self.store.push_token(device)).await.map_err(|_| unavailable())?;
        if kept == place {
            // It may have been given up on meanwhile.
            self.doorstep.registered(device);
            return Ok(());
        }
        let (answer, noted) = oneshot::channel();
        self.doorbells.lock().push((Doorbell { device, place }, answer));
        let shared = self.clone();
        let queued = self.committer(LogKey(0)).job(Box::new(move |store| {
            Box::pin(async move { note_waiting(&shared, &store).await })
        }));
        if !queued {
            // No job will take it.
            drop(noted);
            let mut waiting = self.doorbells.lock();
            if let Some(place) = waiting.iter().rposition(|(_, answer)| answer.is_closed()) {
                waiting.remove(place);
            }
            return Err(unavailable());
        }
        let noted = ask(async { noted.await.unwrap_or(Err(StoreError::Unavailable)) });
        let noted = noted.await;
        if noted.is_ok() {
            self.doorstep.registered(device);
        }
        noted.map_err(|error| match error {
            StoreError::Refused => Failure::new(ErrorCode::Malformed),
            StoreError::Unavailable | StoreError::Corrupt => unavailable(),
        })
    }
}

/// Notes what waits, as many as fit one transaction; the jobs of those that are left take the rest.
async fn note_waiting(shared: &Shared, store: &Arc<dyn Store>) {
    let taken: Vec<_> = {
        let mut waiting = shared.doorbells.lock();
        waiting.retain(|(_, answer)| !answer.is_closed());
        let count = waiting.len().min(DOORBELLS_BATCH_MAX);
        waiting.drain(..count).collect()
    };
    if taken.is_empty() {
        return;
    }
    let doorbells: Vec<Doorbell> = taken.iter().map(|(doorbell, _)| doorbell.clone()).collect();
    let noted = ask(store.set_push_tokens(&doorbells, shared.clock.now_ms())).await;
    for (_, answer) in taken {
        // Whoever has gone meanwhile says it again at its next start.
        let _ = answer.send(noted);
    }
}
