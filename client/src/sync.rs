//! Vault sync: the registered tables of an app's own SQLite database, the same on all devices of a
//! vault.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use sealwire_client::address::RelayUrl;
//! use sealwire_client::device::{Device, Options};
//! use sealwire_client::sync::{Schema, Table, Whose};
//!
//! let device = Device::open("/home/anna/.local/share/app", None, Options::default()).await?;
//! let schema = Schema::version(1)
//!     .table(Table::group("transactions").user_private_column("card_number"))
//!     .table(Table::user_private("accounts"));
//! let database = device.attach("/home/anna/finance.db", &schema).await?;
//!
//! // The first device founds the vault. Another one attaches its own file, accepts an offer, and is
//! // enrolled by its consent.
//! database.found(&RelayUrl::parse("wss://relay.example")?).await?;
//! println!("{}", database.offer(Whose::Mine).await?.code());
//!
//! // From here on the app writes to its tables as it always has, with its own connections.
//! let mut keeper = database.keep_synced();
//! loop {
//!     println!("{:?}", keeper.next().await);
//! }
//! # }
//! ```
//!
//! # The life of one change
//!
//! 1. The app writes a row. A trigger writes down what was there before and after, in the same
//!    transaction ([`mod@capture`]).
//! 2. Before anything of another device is read, and before anything is sent, what was written down is
//!    stamped ([`clock`]), split by scope ([`schema`]) and put into the outbox ([`changeset`]).
//! 3. Over a connection ([`turn`]) it gets its number, one sealed box for each scope and the device's
//!    signature, is kept with all of that, and is sent until the relay says that it is on its disk.
//! 4. Another device checks the entry as part of the vault, opens the boxes that it has the keys of,
//!    and writes every cell that is newer than its own into its own table ([`replay`](Replayed)), while
//!    the triggers write nothing down.
//!
//! # What always holds
//!
//! - What the app has written is never discarded: it is overwritten by a later write, or it wins.
//! - Whoever has the same keys ends with the same tables, whatever was offline, sent twice or crashed
//!   in between.
//! - Whoever does not have a person's own key never has what is private to that person.
//! - Nothing stops a vault: what cannot be opened, shown or understood is kept, and tried again.
//!
//! [docs/SYNC.md](../../../docs/SYNC.md) says it from an app's point of view.

mod attached;
mod bootstrap;
mod boxes;
mod capture;
mod carried;
pub mod changeset;
pub mod clock;
mod code;
mod coverage;
mod drain;
mod engine;
mod error;
mod intake;
mod keeper;
mod making;
mod names;
mod outbox;
mod pack;
mod record;
mod replay;
mod report;
mod schema;
mod sending;
pub mod snapshot;
mod state;
#[cfg(test)]
mod tests;
mod turn;
mod value;
mod writer;

pub use attached::Attached;
pub use code::{Consent, Offer, RecoveredVault, Whose};
pub use error::SyncError;
pub use keeper::{INTERVAL, Keeper, Keeping};
pub use replay::Replayed;
pub use report::{Phase, Progress, Report, Status, VaultStatus};
pub use schema::{KeyScope, Schema, SchemaError, TABLES_MAX, Table};
pub use value::Value;

use std::path::Path;

use crate::device::Device;
use crate::error::StoreError;
use crate::store::recovered::Recovered;

impl Device {
    /// Attaches an app's database to this device: see [`Attached::attach`].
    ///
    /// # Errors
    /// As of [`Attached::attach`].
    pub async fn attach(
        &self,
        path: impl AsRef<Path>,
        schema: &Schema,
    ) -> Result<Attached, SyncError> {
        Attached::attach(path, self.identity(), schema).await
    }

    /// The vaults in which this device has taken the place of a lost one, after a native restore
    /// ([`Device::keep_recovery`]): an app's database goes on in one by [`Attached::take_over`].
    ///
    /// # Errors
    /// [`SyncError::Store`].
    pub async fn recovered_vaults(&self) -> Result<Vec<RecoveredVault>, SyncError> {
        let recovered = self.recovered().await.map_err(|_| StoreError::Io)?;
        let vault = |it: Recovered| RecoveredVault {
            relay: it.relay,
            relay_key: it.relay_key,
            vault: it.log,
            private: it.private,
        };
        Ok(recovered.into_iter().map(vault).collect())
    }

    /// Opens an app's database that was attached before: see [`Attached::open`].
    ///
    /// # Errors
    /// As of [`Attached::open`].
    pub async fn open_attached(&self, path: impl AsRef<Path>) -> Result<Attached, SyncError> {
        Attached::open(path, self.identity()).await
    }
}
