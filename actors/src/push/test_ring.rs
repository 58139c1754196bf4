//! An operator's question: can this device be rung?

use sealwire_protocol::{DeviceKey, LogId};
use tokio::time::timeout;

use crate::limits::PUSH_CALL_DEADLINE;
use crate::ports::{LogKey, Rang, Ring, StoreError, Trouble, Urgency};
use crate::system::System;
use crate::totals::payload::PayloadId;

/// The answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TestRing {
    /// There is no push service.
    Off,
    /// The device has not said where its doorbell is.
    NoDoorbell,
    /// This is what its push service said.
    Said(Rang),
}

impl System {
    /// Rings a device once, now, for no log and no entry. A token that is gone is not forgotten: that is
    /// for real doorbells to find.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    pub async fn ring_for_test(&self, device: DeviceKey) -> Result<TestRing, StoreError> {
        let services = &self.shared.options.push;
        if services.is_empty() {
            return Ok(TestRing::Off);
        }
        let Some((platform, token)) = self.shared.store.push_token(device).await? else {
            return Ok(TestRing::NoDoorbell);
        };
        let Some(push) = services.iter().find(|push| push.platform() == platform) else {
            return Ok(TestRing::Off);
        };
        let payload = PayloadId::new(LogKey(0), 0, 0);
        let ring = Ring { log: LogId::ZERO, payload, urgency: Urgency::High };
        let rang = timeout(PUSH_CALL_DEADLINE, push.ring(&token, &ring)).await;
        Ok(TestRing::Said(rang.unwrap_or(Rang::Later(Trouble::Unreachable, None))))
    }
}
