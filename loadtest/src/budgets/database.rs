//! An empty database for each part of the run, on a PostgreSQL server that runs already.
//!
//! Nothing is ever done to the database that was named, but to connect to it. What is made here is
//! dropped here, also where a part fails.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor};
use tokio::time::timeout;

/// How long the server may take to make or drop a database. It writes down what all of its databases
/// hold before it does, which may be some gigabytes after a load.
const SERVER_DEADLINE: Duration = Duration::from_secs(120);

/// A server that allows databases to be made.
pub(super) struct Server(PgConnectOptions);

/// A database that was made here, and is dropped with this.
pub(super) struct Fresh {
    server: PgConnectOptions,
    /// None once it was dropped.
    name: Option<String>,
}

impl Server {
    /// The server of this database, asked whether it does what is needed of it.
    pub(super) async fn at(url: &str) -> Result<Self> {
        let server = Self(PgConnectOptions::from_str(url).context("the URL of --database")?);
        server.fresh().await?.drop_now().await?;
        Ok(server)
    }

    /// An empty database.
    pub(super) async fn fresh(&self) -> Result<Fresh> {
        // Random, so that it cannot be one that somebody needs.
        let mut number = [0; 8];
        getrandom::fill(&mut number)?;
        let name = format!("sealwire_budgets_{}", hex::encode(number));
        execute(&self.0, format!("create database {name}"))
            .await
            .context("making an empty database beside that of --database")?;
        Ok(Fresh { server: self.0.clone(), name: Some(name) })
    }
}

impl Fresh {
    /// What a relay is given.
    pub(super) fn url(&self) -> String {
        let name = self.name.as_deref().unwrap_or_default();
        self.server.clone().database(name).to_url_lossy().to_string()
    }

    /// Drops it, with whatever is still connected to it.
    pub(super) async fn drop_now(mut self) -> Result<()> {
        let Some(name) = self.name.take() else { return Ok(()) };
        let sql = format!("drop database if exists {name} with (force)");
        execute(&self.server, sql).await.with_context(|| format!("dropping the database {name}"))
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let Some(name) = self.name.take() else { return };
        let rest = Self { server: self.server.clone(), name: Some(name) };
        // A runtime cannot be entered from within another one, so this has a thread of its own.
        let dropping = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(rest.drop_now())
        });
        // Something else has failed, and is what will be told.
        let _ = dropping.join();
    }
}

async fn execute(server: &PgConnectOptions, sql: String) -> Result<()> {
    let work = async {
        let mut connection = server.connect().await?;
        connection.execute(AssertSqlSafe(sql)).await?;
        connection.close().await
    };
    timeout(SERVER_DEADLINE, work).await.context("the server has not answered")??;
    Ok(())
}
