//! One function for each command.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use sealwire_client::address::RelayUrl;
use sealwire_client::device::{Device, LogInfo, Options, Outgoing};
use sealwire_client::error::Error;
use sealwire_client::invite::Invite;
use sealwire_client::numbering::DraftId;
use sealwire_client::session::Connection;
use sealwire_protocol::DeviceKey;
use serde_json::json;

use crate::args::{Args, Command};
use crate::chat;
use crate::output::{Output, remark, short};
use crate::place::{directory, group, member, open, passphrase};
use crate::vault;

pub(crate) async fn run(args: Args) -> Result<()> {
    let out = Output { json: args.json };
    match &args.command {
        Command::Init { passphrase } => init(&args, out, *passphrase).await,
        Command::Id => id(&open(&args).await?, out),
        Command::Found => found(&args, out, &open(&args).await?).await,
        Command::Invite { group } => invite(&args, out, &open(&args).await?, group).await,
        Command::Join { link } => join(&args, out, &open(&args).await?, link).await,
        Command::Send { group, text, to } => {
            send(&args, out, &open(&args).await?, group, text, to).await
        }
        Command::Listen { group, once } => {
            chat::listen(&args, out, &open(&args).await?, group.as_deref(), *once).await
        }
        Command::Chat { group } => chat::chat(&args, out, &open(&args).await?, group).await,
        Command::Members { group } => members(out, &open(&args).await?, group).await,
        Command::Leave { group } => leave(&args, out, &open(&args).await?, group).await,
        Command::Revoke { group, device } => {
            revoke(&args, out, &open(&args).await?, group, device).await
        }
        Command::Logs => logs(out, &open(&args).await?).await,
        Command::Trust { key } => trust(&args, &open(&args).await?, key).await,
        Command::Vault(command) => vault::run(&args, out, command).await,
    }
}

async fn init(args: &Args, out: Output, sealed: bool) -> Result<()> {
    let passphrase = sealed.then(|| passphrase("new passphrase: ")).transpose()?;
    let directory = directory(args)?;
    let device = Device::create(&directory, passphrase.as_deref(), Options::default()).await?;
    remark(&format!("made a device in {}", directory.display()));
    id(&device, out)
}

fn id(device: &Device, out: Output) -> Result<()> {
    let key = device.key().to_hex();
    out.line(&key, &json!({ "device": key }))
}

async fn found(args: &Args, out: Output, device: &Device) -> Result<()> {
    let relay = RelayUrl::parse(&args.relay)?;
    let log = device.found_group(&relay).await?;
    let name = log.to_uuid_text();
    let connection = device.connect(&relay);
    match device.wait_ready(log, args.deadline()).await {
        Ok(()) => {}
        Err(Error::Timeout) => {
            remark("the relay was not reached; the group is made there when it is");
        }
        Err(error) => bail!(error),
    }
    connection.stop().await;
    out.line(&name, &json!({ "log": name }))
}

async fn invite(args: &Args, out: Output, device: &Device, name: &str) -> Result<()> {
    let group = group(device, name).await?;
    let invite = match device.invite(group.log).await {
        Err(Error::UnknownRelay) => {
            let connection = connect(args, device, &group.relay).await?;
            let invite = device.invite(group.log).await;
            connection.stop().await;
            invite?
        }
        invite => invite?,
    };
    let link = invite.link();
    out.line(&link, &json!({ "link": link.as_str() }))
}

async fn join(args: &Args, out: Output, device: &Device, link: &str) -> Result<()> {
    let invite = Invite::parse(link)?;
    let log = device.join(&invite).await.map_err(|error| explain(&error))?;
    let name = log.to_uuid_text();
    let connection = connect(args, device, &invite.relay).await?;
    match device.wait_ready(log, args.deadline()).await {
        Ok(()) => {}
        Err(Error::Timeout) => remark(
            "joined, but no member was there to give the group's key; it comes when one is, while \
             `listen` or `chat` runs",
        ),
        Err(error) => bail!(error),
    }
    connection.stop().await;
    out.line(&name, &json!({ "log": name }))
}

async fn send(
    args: &Args,
    out: Output,
    device: &Device,
    name: &str,
    text: &str,
    to: &[String],
) -> Result<()> {
    let group = group(device, name).await?;
    let mut recipients = Vec::with_capacity(to.len());
    for name in to {
        recipients.push(member(device, &group, name).await?);
    }
    let outgoing =
        if recipients.is_empty() { Outgoing::to_all(text) } else { Outgoing::to(recipients, text) };
    let id = device.send(group.log, outgoing).await?;
    settle(args, out, device, &group, id).await
}

async fn leave(args: &Args, out: Output, device: &Device, name: &str) -> Result<()> {
    let group = group(device, name).await?;
    let id = device.leave(group.log).await?;
    settle(args, out, device, &group, id).await
}

async fn revoke(args: &Args, out: Output, device: &Device, name: &str, whom: &str) -> Result<()> {
    let group = group(device, name).await?;
    let whom = member(device, &group, whom).await?;
    let id = device.revoke(group.log, whom).await?;
    settle(args, out, device, &group, id).await
}

/// Waits until an entry is on the relay's disk.
async fn settle(
    args: &Args,
    out: Output,
    device: &Device,
    group: &LogInfo,
    id: DraftId,
) -> Result<()> {
    let connection = device.connect(&group.relay);
    let appended = device.wait_appended(id, args.deadline()).await;
    let status = connection.status();
    connection.stop().await;
    match appended {
        Ok(seq) => {
            let log = group.log.to_uuid_text();
            out.line(&format!("appended as entry {seq}"), &json!({ "log": log, "seq": seq }))
        }
        Err(Error::Timeout) => {
            bail!("it waits in the outbox and is sent when the relay is reached ({status:?})")
        }
        Err(error) => bail!(error),
    }
}

async fn members(out: Output, device: &Device, name: &str) -> Result<()> {
    let group = group(device, name).await?;
    for member in device.members(group.log).await? {
        out.member(&member, device.key())?;
    }
    Ok(())
}

async fn logs(out: Output, device: &Device) -> Result<()> {
    for info in device.logs().await? {
        out.group(&info)?;
    }
    Ok(())
}

async fn trust(args: &Args, device: &Device, key: &str) -> Result<()> {
    let relay = RelayUrl::parse(&args.relay)?;
    let key = DeviceKey::from_hex(key).ok_or_else(|| anyhow!("a key is 64 hex digits"))?;
    device.trust_relay(&relay, key).await?;
    remark(&format!("{relay} is {} from now on", short(key)));
    Ok(())
}

/// Connects, and says what to do if the relay is another one than before.
pub(crate) async fn connect(args: &Args, device: &Device, relay: &RelayUrl) -> Result<Connection> {
    let connection = device.connect(relay);
    connection.wait_connected(args.deadline()).await.map_err(|error| {
        if error == Error::Timeout {
            anyhow!("{relay} was not reached: {:?}", connection.status())
        } else {
            explain(&error)
        }
    })?;
    Ok(connection)
}

fn explain(error: &Error) -> anyhow::Error {
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

/// A connection to every relay that the device's groups are on.
pub(crate) fn connect_all(device: &Device, groups: &[LogInfo]) -> Vec<Connection> {
    let relays: BTreeMap<&str, &RelayUrl> =
        groups.iter().map(|group| (group.relay.as_str(), &group.relay)).collect();
    relays.into_values().map(|relay| device.connect(relay)).collect()
}

/// How long what was typed last may take when the input ends.
pub(crate) const FAREWELL: Duration = Duration::from_secs(10);
