//! What every store promises: the same tests against memory, SQLite and PostgreSQL.
//!
//! `sealwire_actors::ports::Store` says it in words; this says it so that it can fail. The last of
//! them runs long random histories on a database and on the store in memory side by side, and
//! compares every answer.

mod commits;
mod history;
mod members;
mod opening;
mod outages;
mod pages;
mod push;
mod recovery;
mod resting;
mod retention;
mod scribe;
mod vaults;

/// Makes three tests of each promise.
macro_rules! on_every_store {
    ($($promise:ident)*) => {
        mod memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise(&crate::support::databases::Database::memory()).await;
            })*
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise(&crate::support::databases::Database::sqlite()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise(&crate::support::databases::Database::postgres().await).await;
            })*
        }
    };
}

/// Makes two tests of each promise that a store in memory cannot give.
macro_rules! on_every_database {
    ($($promise:ident)*) => {
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise(&crate::support::databases::Database::sqlite()).await;
            })*
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                super::$promise(&crate::support::databases::Database::postgres().await).await;
            })*
        }
    };
}

pub(crate) use {on_every_database, on_every_store};
