//! What the promises are kept with: databases, relays, devices, and the judge of their histories.

pub(crate) mod app;
pub(crate) mod backup;
pub(crate) mod cli;
pub(crate) mod cluster;
pub(crate) mod crowd;
pub(crate) mod databases;
pub(crate) mod device;
pub(crate) mod family;
pub(crate) mod fcm;
pub(crate) mod history;
pub(crate) mod household;
pub(crate) mod http;
pub(crate) mod line;
pub(crate) mod needles;
pub(crate) mod person;
pub(crate) mod phone;
pub(crate) mod phones;
pub(crate) mod place;
pub(crate) mod process;
pub(crate) mod random;
pub(crate) mod raw;
pub(crate) mod steps;
pub(crate) mod vault_client;
pub(crate) mod verdict;
pub(crate) mod view;
pub(crate) mod world;

use std::time::Duration;

use tokio::time::{sleep, timeout};

/// Longest that a test waits for anything that should be immediate. Generous, because the machine may
/// be busy; nothing ever waits for it to pass.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// How often a condition that cannot be waited for is asked.
const ASK_PAUSE: Duration = Duration::from_millis(5);

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFnMut() -> bool) {
    assert!(holds_within(DEADLINE, condition).await, "not in time: {what}");
}

/// Whether a condition comes to hold within so long.
pub(crate) async fn holds_within(
    deadline: Duration,
    mut condition: impl AsyncFnMut() -> bool,
) -> bool {
    let holds = async {
        while !condition().await {
            sleep(ASK_PAUSE).await;
        }
    };
    timeout(deadline, holds).await.is_ok()
}

/// Makes two tests of each promise, one for each database: `promise::on_sqlite` and
/// `promise::on_postgres`.
macro_rules! on_both_databases {
    ($($promise:ident),* $(,)?) => {$(
        mod $promise {
            use crate::support::place::Database;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite() {
                Box::pin(super::$promise(Database::Sqlite)).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() {
                Box::pin(super::$promise(Database::Postgres)).await;
            }
        }
    )*};
}
pub(crate) use on_both_databases;
