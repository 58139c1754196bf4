//! Where a device's doorbell is. A token is a device's address at a push service: it is stored, never
//! shown to anybody else, and never logged.

use sealwire_protocol::{DeviceKey, ErrorCode, Failure};

use crate::limits::PUSH_TOKEN_STORED_BYTES_MAX;
use crate::ports::StoreError;
use crate::reply::unavailable;
use crate::session::ask;
use crate::system::{Shared, System};

/// The push services that can be rung.
const PLATFORMS: &[&str] = &["fcm"];

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
        &self,
        device: DeviceKey,
        place: Option<(String, String)>,
    ) -> Result<(), Failure> {
        if let Some((platform, token)) = &place {
            let known = PLATFORMS.contains(&platform.as_str());
            if !known || token.len() > PUSH_TOKEN_STORED_BYTES_MAX || token.contains('\0') {
                return Err(Failure::new(ErrorCode::Malformed));
            }
        }
        let now = self.clock.now_ms();
        let set = self.run_job(move |store| {
            Box::pin(async move { ask(store.set_push_token(device, place, now)).await })
        });
        set.await.map_err(|error| match error {
            StoreError::Refused => Failure::new(ErrorCode::Malformed),
            StoreError::Unavailable | StoreError::Corrupt => unavailable(),
        })
    }
}
