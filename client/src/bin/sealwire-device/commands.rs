//! One function for each command.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::CommandFactory;
use sealwire_client::address::RelayUrl;
use sealwire_client::device::{Device, LogInfo, Options, Outgoing, Phase};
use sealwire_client::error::Error;
use sealwire_client::identity::file::KeyFileError;
use sealwire_client::identity::fingerprint;
use sealwire_client::numbering::DraftId;
use sealwire_client::session::{Connection, Status};
use sealwire_protocol::{DeviceKey, LogId};
use serde_json::json;

use crate::args::{Args, Command};
use crate::keeping::KeepingArgs;
use crate::output::{Output, remark, short};
use crate::place::{directory, group as find_group, member, open, taken};
use crate::{chat, expenses, group, recovery, vault};

pub(crate) async fn run(args: Args) -> Result<()> {
    let out = Output { json: args.json };
    match &args.command {
        Command::Init { keeping, name } => init(&args, out, keeping, name.as_deref()).await,
        Command::Whoami { name } => whoami(&open(&args).await?, out, name.as_deref()).await,
        Command::Group(command) => group::run(&args, out, &open(&args).await?, command).await,
        Command::Money(command) => Box::pin(expenses::run(&args, out, command)).await,
        Command::Send { group, text, to } => {
            send(&args, out, &open(&args).await?, group, text, to).await
        }
        Command::Listen { group, once } => {
            chat::listen(&args, out, &open(&args).await?, group.as_deref(), *once).await
        }
        Command::Chat { group } => chat::chat(&args, out, &open(&args).await?, group).await,
        Command::Recovery(command) => recovery::run(&args, out, command).await,
        Command::Trust { key } => trust(&args, out, &open(&args).await?, key).await,
        Command::Completions { shell } => {
            // The generator does not bear a pipe that ends early.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Args::command(), "sealwire-device", &mut script);
            match std::io::stdout().write_all(&script) {
                Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
                _ => Ok(()),
            }
        }
        Command::Vault(command) => vault::run(&args, out, command).await,
    }
}

async fn init(args: &Args, out: Output, keeping: &KeepingArgs, name: Option<&str>) -> Result<()> {
    let directory = directory(args)?;
    let there = Device::open(&directory, None, Options::default()).await;
    // What cannot even be looked at is said when it is made.
    if !matches!(there, Err(Error::KeyFile(KeyFileError::Missing | KeyFileError::Io(_)))) {
        bail!(taken(&directory));
    }
    let keeping = keeping.choose().await?;
    let device = Device::create(&directory, keeping.of_key(), Options::default())
        .await
        .with_context(|| format!("no device was made in {}", directory.display()))?;
    remark(&format!("made a device in {}", directory.display()));
    keeping.say();
    whoami(&device, out, name).await
}

pub(crate) async fn whoami(device: &Device, out: Output, name: Option<&str>) -> Result<()> {
    if let Some(name) = name {
        device.set_name(name).await?;
    }
    let key = device.key().to_hex();
    let (print, name) = (fingerprint(device.key()), device.name().await?);
    if !out.json {
        remark(&format!("fingerprint {print}"));
    }
    out.line(&key, &json!({ "device": key, "fingerprint": print, "name": name }))
}

async fn send(
    args: &Args,
    out: Output,
    device: &Device,
    name: &str,
    text: &str,
    to: &[String],
) -> Result<()> {
    let group = find_group(device, name).await?;
    let mut recipients = Vec::with_capacity(to.len());
    for name in to {
        recipients.push(member(device, &group, name).await?);
    }
    let outgoing =
        if recipients.is_empty() { Outgoing::to_all(text) } else { Outgoing::to(recipients, text) };
    let id = device.send(group.log, outgoing).await?;
    settle(args, out, device, &group, id, Unreached::Waits, "sent").await
}

/// How long a relay may refuse to be reached before a command goes on without it. One that is only
/// slow is waited for.
const REACH: Duration = Duration::from_secs(3);

/// Waits for what a connection brings, unless its relay cannot be reached, or never will be as things
/// stand: [`Error::Timeout`] then.
pub(crate) async fn unless_unreached<T>(
    connection: &Connection,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let unreached = async {
        let reached = connection.wait_connected(REACH).await;
        match connection.status() {
            Status::Waiting(_) if reached == Err(Error::Timeout) => return,
            Status::Over(_) | Status::Failed(_) => return,
            Status::Waiting(_)
            | Status::Standby
            | Status::Connecting
            | Status::Connected
            | Status::Stopped => {}
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        // What it was waited for knows better why.
        biased;
        done = work => done,
        () = unreached => Err(Error::Timeout),
    }
}

/// Why a relay is not reached before somebody does something about it; none if it may be.
fn lasting(status: &Status) -> Option<Error> {
    match status {
        Status::Over(error) => Some(error.clone().into()),
        Status::Failed(error) => Some((*error).into()),
        Status::Waiting(_)
        | Status::Standby
        | Status::Connecting
        | Status::Connected
        | Status::Stopped => None,
    }
}

/// Why a relay is not reached, in words.
fn why(status: Status) -> String {
    match status {
        Status::Waiting(error) | Status::Over(error) => error.to_string(),
        Status::Failed(error) => error.to_string(),
        Status::Standby | Status::Connecting | Status::Connected | Status::Stopped => {
            "it has not answered in time".to_owned()
        }
    }
}

/// What it means if the relay is not reached.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreached {
    /// The entry waits, and that is enough.
    Waits,
    /// The entry waits, and until it is sent nothing is as it was asked for: who was to be out is not.
    Fails,
}

/// Waits until an entry is on the relay's disk, and says that it is `done` then. If the relay cannot be reached now, the entry waits; it
/// is an error if the relay never will be as things stand, or if that was said to be one.
pub(crate) async fn settle(
    args: &Args,
    out: Output,
    device: &Device,
    group: &LogInfo,
    id: DraftId,
    unreached: Unreached,
    done: &str,
) -> Result<()> {
    let connection = device.connect(&group.relay);
    let wait = device.wait_appended(id, args.deadline());
    let appended = unless_unreached(&connection, wait).await;
    let status = connection.status();
    connection.stop().await;
    match appended {
        Ok(seq) => {
            let log = group.log.to_uuid_text();
            // The relay tells those who have left nothing more.
            let place = if seq > 0 { format!(", entry {seq}") } else { String::new() };
            out.line(&format!("{done}{place}"), &json!({ "log": log, "seq": seq }))
        }
        Err(Error::Timeout) => {
            if let Some(error) = lasting(&status) {
                return Err(explain(&error).context("it waits in the outbox and was not sent"));
            }
            let waits = format!(
                "it waits in the outbox, and any command that connects will send it ({})",
                why(status)
            );
            if unreached == Unreached::Fails {
                bail!("not done yet: {waits}");
            }
            remark(&waits);
            if out.json {
                let log = group.log.to_uuid_text();
                out.line("", &json!({ "log": log, "seq": null }))?;
            }
            Ok(())
        }
        Err(error) => bail!(error),
    }
}

async fn trust(args: &Args, out: Output, device: &Device, key: &str) -> Result<()> {
    let relay = RelayUrl::parse(&args.relay)?;
    let key = DeviceKey::from_hex(key).ok_or_else(|| {
        anyhow!("a key is 64 hex digits; copy it whole from the message that named it")
    })?;
    device.trust_relay(&relay, key).await?;
    let value = json!({ "relay": relay.as_str(), "key": key.to_hex() });
    out.done(&format!("{relay} is {} from now on", short(key)), &value)
}

/// Connects, and says what to do if the relay is another one than before.
pub(crate) async fn connect(args: &Args, device: &Device, relay: &RelayUrl) -> Result<Connection> {
    let connection = device.connect(relay);
    let wait = connection.wait_connected(args.deadline());
    unless_unreached(&connection, wait).await.map_err(|error| {
        if error == Error::Timeout {
            let why = why(connection.status());
            anyhow!(
                "{relay} was not reached: {why}; try again when it is, or name one with --relay"
            )
        } else {
            explain(&error)
        }
    })?;
    Ok(connection)
}

pub(crate) fn explain(error: &Error) -> anyhow::Error {
    if let Error::RelayKeyChanged { pinned, presented } = error {
        return anyhow!(
            "the relay's key has changed from {} to {}. If its operator says that this is right, \
             run `trust {}`; else somebody is in the way",
            pinned.to_hex(),
            presented.to_hex(),
            presented.to_hex()
        );
    }
    anyhow!(error.clone())
}

/// How long a command stays for the key and the history of a group, which come only if a member is there.
const FOR_ITSELF: Duration = Duration::from_secs(6);

/// How long a command stays to give them to others: longer than any turn that it waits for.
const FOR_OTHERS: Duration = Duration::from_secs(20);

/// Stays connected, after a group was read to its end, while this device and the others have something
/// to give each other, and sees to the recovery vault.
pub(crate) async fn linger(args: &Args, device: &Device, log: LogId) -> Result<()> {
    let info = device.log(log).await?;
    let whole = info.holds_key && info.holds_history;
    let wait = if whole { FOR_OTHERS } else { FOR_ITSELF };
    match device.wait_settled(log, wait.min(args.deadline())).await {
        // What is lacking is said where something is shown.
        Ok(()) | Err(Error::Timeout) => {}
        Err(error) => bail!(error),
    }
    keep_recovery(device).await;
    Ok(())
}

/// Says what is not in what a group shows, if this device was not given all of it yet.
pub(crate) fn say_lacking(info: &LogInfo) {
    let lacking = match info.phase {
        Phase::Joining => {
            "this device is not in this group yet: nothing that others wrote is in this"
        }
        Phase::Member if !info.holds_key => {
            "the group's key has not come yet: nothing that others wrote since is in this"
        }
        Phase::Member if !info.holds_history => {
            "what was written before this device joined has not come yet, and is not in this"
        }
        Phase::Member | Phase::Left | Phase::Revoked | Phase::Refused => return,
    };
    remark(&format!("{lacking}; it comes when another member is there, with --sync or `watch`"));
}

/// A connection to every relay that the device's groups are on.
pub(crate) fn connect_all(device: &Device, groups: &[LogInfo]) -> Vec<Connection> {
    let relays: BTreeMap<&str, &RelayUrl> =
        groups.iter().map(|group| (group.relay.as_str(), &group.relay)).collect();
    relays.into_values().map(|relay| device.connect(relay)).collect()
}

/// Brings the recovery vault up to date after something has changed. If that does not work now, the
/// next command does it.
pub(crate) async fn keep_recovery(device: &Device) {
    if let Err(error) = device.keep_recovery().await {
        remark(&format!(
            "the recovery vault could not be brought up to date: {error}; the next command tries again"
        ));
    }
}

/// How long what was typed last may take when the input ends.
pub(crate) const FAREWELL: Duration = Duration::from_secs(10);
