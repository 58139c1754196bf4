//! The commands, each from its beginning to its end.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{self, Write};
use std::pin::pin;
use std::sync::Arc;

use listenfd::ListenFd;
use sealwire_actors::Options;
use sealwire_actors::ports::{Push, StoreError, SystemClock};
use sealwire_protocol::signing;
use thiserror::Error;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{info, warn};

use crate::cli::Command;
use crate::config::{Config, Settings};
use crate::fcm::{Fcm, FcmError};
use crate::listener::{self, ListenError, Listeners};
use crate::memory;
use crate::operator::push_test;
use crate::relay::{Relay, RelayError, RelayOptions};
use crate::secrets::{self, SecretError, Secrets};
use crate::store::{self, Lock, OpenError, StoreOptions};
use crate::telemetry::{self, TelemetryError};
use crate::worker::{self, WorkerOptions};

/// Under this name systemd says which of the listeners that it hands over is which.
const LISTENER_NAMES: &str = "LISTEN_FDNAMES";

/// Why a command did not do what it says.
#[derive(Debug, Error)]
pub enum CommandError {
    /// There is no listener.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The relay could not be started.
    #[error(transparent)]
    Relay(#[from] RelayError),
    /// Another relay has served the store, or the actors have ended: this one must be started anew.
    #[error(
        "another relay has served this store, or an actor failed for good: start this one anew"
    )]
    Superseded,
    /// There are no secrets.
    #[error(transparent)]
    Secrets(#[from] SecretError),
    /// The store could not be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store could not be closed in time.
    #[error("the store could not be closed in time; nothing that was answered is lost")]
    Close(#[source] StoreError),
    /// The push service cannot be used.
    #[error(transparent)]
    Push(#[from] FcmError),
    /// A device was not rung.
    #[error("{0}")]
    NotRung(String),
    /// There is no log or there are no metrics.
    #[error(transparent)]
    Telemetry(#[from] TelemetryError),
    /// The system refused threads, signals or output.
    #[error(transparent)]
    System(#[from] io::Error),
}

/// Writes all settings with their sources to standard output.
///
/// # Errors
/// If standard output is gone.
pub fn show(settings: &Settings) -> io::Result<()> {
    io::stdout().write_all(settings.to_toml().as_bytes())
}

/// Writes a line to standard output.
pub(crate) fn say(line: &str) -> io::Result<()> {
    writeln!(io::stdout(), "{line}")
}

/// Runs a command to its end. Serving and working end by SIGTERM or SIGINT.
///
/// # Errors
/// [`CommandError`]; the process should then end with a status that is not 0.
pub fn run(
    command: Command,
    settings: &Settings,
    config: Config,
    variables: &BTreeMap<String, String>,
    inherited: ListenFd,
) -> Result<(), CommandError> {
    for variable in settings.unknown_variables() {
        warn!(variable, "this variable means nothing to the relay; is it misspelt?");
    }
    if !matches!(command, Command::PushTest(_)) {
        secrets::create_directory(&config.data_dir)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::spawn(memory::keep_giving_back());
        match command {
            Command::Serve => {
                let names = variables.get(LISTENER_NAMES).map(String::as_str);
                serve(config, inherited, names).await
            }
            Command::Worker => work(config, inherited).await,
            Command::Migrate => migrate(&config).await,
            Command::Restored => restored(&config).await,
            Command::PushTest(device) => push_test::ask(config.operator_listen, device).await,
            Command::Config => Ok(show(settings)?),
        }
    })
}

async fn serve(
    config: Config,
    inherited: ListenFd,
    names: Option<&str>,
) -> Result<(), CommandError> {
    let mut stop = pin!(stop_signal()?);
    let secrets = Secrets::open(&config)?;
    let push = push_services(&config)?;
    let connections_max = listener::connections_allowed(config.connections_max)?;
    let listeners = Listeners::open(config.listen, config.operator_listen, inherited, names)?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        database = config.database.redacted(),
        public = %listeners.public.local_addr()?,
        operator = %listeners.operator.local_addr()?,
        relay_key = hex::encode(signing::device_key(&secrets.relay_key).0),
        connections_max,
        "starting"
    );
    let options = RelayOptions {
        store: store_options(&config, Lock::Wait),
        actors: Options {
            groups_max: config.groups_max,
            body_lifetime: config.retention,
            push,
            vaults: config.vaults,
            ..Options::new(secrets.relay_key, secrets.token_keys)
        },
        recovery_keys: secrets.recovery_keys,
        unauthenticated: config.unauthenticated,
        address_requests: config.address_requests,
        proxies: config.trusted_proxies,
        connections_max,
        shutdown_deadline: config.shutdown_deadline,
        metrics: telemetry::metrics()?,
    };
    // A standby waits here for as long as the other relay serves.
    let starting =
        Relay::start(options, Arc::new(SystemClock), listeners.public, Some(listeners.operator));
    let relay = tokio::select! {
        () = &mut stop => return Ok(()),
        relay = starting => relay?,
    };
    info!("serving");
    let superseded = tokio::select! {
        () = stop => false,
        () = relay.superseded() => true,
    };
    info!("stopping");
    relay.shutdown().await.map_err(CommandError::Close)?;
    info!("stopped");
    if superseded { Err(CommandError::Superseded) } else { Ok(()) }
}

async fn work(config: Config, mut inherited: ListenFd) -> Result<(), CommandError> {
    let stop = stop_signal()?;
    let operator = listener::open_operator(config.operator_listen, &mut inherited)?;
    info!(
        version = env!("CARGO_PKG_VERSION"),
        database = config.database.redacted(),
        operator = %operator.local_addr()?,
        "starting a worker"
    );
    let options = WorkerOptions {
        store: store_options(&config, Lock::Wait),
        body_lifetime: config.retention,
        metrics: telemetry::metrics()?,
    };
    worker::run(options, Arc::new(SystemClock), operator, stop).await?;
    info!("stopped");
    Ok(())
}

async fn migrate(config: &Config) -> Result<(), CommandError> {
    store::migrate(&store_options(config, Lock::Try)).await?;
    info!(database = config.database.redacted(), "the database is up to date");
    Ok(())
}

async fn restored(config: &Config) -> Result<(), CommandError> {
    store::restored(&store_options(config, Lock::Try)).await?;
    info!(
        database = config.database.redacted(),
        "the database has a new incarnation: devices will compare what they have with it"
    );
    Ok(())
}

/// Whom the relay can ask to wake a device. Says once if it is nobody.
fn push_services(config: &Config) -> Result<Vec<Arc<dyn Push>>, FcmError> {
    let Some(push) = &config.push else {
        info!("no push service: devices that sleep are not woken");
        return Ok(Vec::new());
    };
    Ok(vec![Arc::new(Fcm::open(&push.credentials, &push.base)?)])
}

fn store_options(config: &Config, lock: Lock) -> StoreOptions {
    StoreOptions { url: config.database.to_url(), data_dir: config.data_dir.clone(), lock }
}

/// Resolves at the first SIGTERM or SIGINT. From the call on, neither ends the process by itself.
fn stop_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
