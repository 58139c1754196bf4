//! What a `totals` group owes to devices that come with single requests rather than with a session.
//!
//! The groups, their order and their members are the same logs that sessions speak to: everything
//! that changes one goes through its actor, everything that is only looked at is read from the store.
//! Nothing here knows of HTTP.

use sealwire_protocol::DeviceKey;

use crate::ports::{GroupRecord, StoreError};
use crate::session::ask;
use crate::system::System;

impl System {
    /// The `totals` groups of a device with their members: all of them, or an error.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read whole.
    pub async fn totals_groups(&self, device: DeviceKey) -> Result<Vec<GroupRecord>, StoreError> {
        ask(self.shared.store.totals_groups(device)).await
    }
}
