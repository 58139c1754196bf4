//! `recovery`: the way back after losing a device.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use sealwire_client::address::RelayUrl;
use sealwire_client::device::{Device, Options, Phase};
use sealwire_client::error::Error;
use sealwire_client::identity::file::KeyFileError;
use sealwire_client::recovery::{Format, RecoveryCode};
use sealwire_client::session::Connection;
use serde_json::json;
use tokio::time::{Duration, Instant, sleep};

use crate::args::{Args, RecoveryCommand};
use crate::commands::whoami;
use crate::keeping::KeepingArgs;
use crate::output::{Output, remark};
use crate::place::{directory, new_secret, open, secret, taken};

/// The variables that hold secrets, for scripts.
const CODE: &str = "SEALWIRE_RECOVERY_CODE";
const PIN: &str = "SEALWIRE_PIN";
const NEW_PIN: &str = "SEALWIRE_NEW_PIN";

/// How often it is looked whether the new device has taken the old one's place.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

pub(crate) async fn run(args: &Args, out: Output, command: &RecoveryCommand) -> Result<()> {
    match command {
        RecoveryCommand::Setup { totals } => set_up(args, out, &open(args).await?, *totals).await,
        RecoveryCommand::Restore { totals, keeping } => restore(args, out, *totals, keeping).await,
        RecoveryCommand::ChangePin => {
            let device = open(args).await?;
            if device.recovery().await?.is_none() {
                bail!("there is no such recovery vault; make one with `recovery setup`");
            }
            let (old, new) = (secret(PIN, "PIN: ")?, new_secret(NEW_PIN, "new PIN: ")?);
            device.change_pin(&old, &new).await.context("the PIN is the old one")?;
            remark("the PIN is changed; the code stays");
            Ok(())
        }
        RecoveryCommand::Delete => {
            let deleted = open(args).await?.delete_recovery().await;
            deleted.context("the recovery vault is there as before")?;
            remark("the recovery vault is deleted");
            Ok(())
        }
    }
}

async fn set_up(args: &Args, out: Output, device: &Device, totals: bool) -> Result<()> {
    let relay = RelayUrl::parse(&args.relay)?;
    let mut of_app = 0;
    for info in device.logs().await? {
        of_app += usize::from(info.phase.is_open() && info.log.is_totals());
    }
    if of_app > 0 && !totals {
        remark(
            "this device is in groups of the Totals app, whose members know it by its key; a new \
             one is a new person to them. With --totals the same key comes back",
        );
    }
    let format = if totals { Format::Totals } else { Format::Native };
    let pin = new_secret(PIN, "new PIN, at least six digits: ")?;
    let made = device.set_up_recovery(&relay, format, &pin).await;
    let code = made.with_context(|| format!("no recovery vault was made at {relay}"))?;
    remark("write this code down and keep it away from the PIN; it is shown once");
    let name = if totals { "totals" } else { "native" };
    out.line(&code.shown(), &json!({ "code": code.shown().as_str(), "format": name }))
}

async fn restore(args: &Args, out: Output, totals: bool, keeping: &KeepingArgs) -> Result<()> {
    let relay = RelayUrl::parse(&args.relay)?;
    let place = directory(args)?;
    let there = Device::open(&place, None, Options::default()).await;
    if !matches!(there, Err(Error::KeyFile(KeyFileError::Missing))) {
        drop(there);
        return go_on(args, out).await;
    }
    let code = RecoveryCode::parse(&secret(CODE, "recovery code: ")?)?;
    match (code.format(), totals) {
        (Format::Native, false) | (Format::Totals, true) => {}
        (Format::Totals, false) => bail!(
            "this is a code of the Totals app, or it is mistyped; if it is the app's, add --totals"
        ),
        (Format::Native, true) => bail!("this is not a code of the Totals app; leave --totals out"),
    }
    let pin = secret(PIN, "PIN: ")?;
    let keeping = keeping.choose().await?;
    let (passphrase, options) = (keeping.passphrase(), keeping.options());
    let restored = Device::restore(&place, passphrase, &relay, &code, &pin, options).await;
    let device = restored.with_context(|| format!("nothing was restored from {relay}"))?;
    remark(&format!("made a device in {}", place.display()));
    keeping.say();
    settle(args, &device).await?;
    whoami(&device, out, None).await
}

/// Goes on with a restore that was interrupted.
async fn go_on(args: &Args, out: Output) -> Result<()> {
    let device = open(args).await?;
    if !device.is_restoring().await? {
        bail!(taken(&directory(args)?));
    }
    remark("going on with the restore that was begun here");
    settle(args, &device).await?;
    whoami(&device, out, None).await
}

/// Lets the new device join its groups and take the old one's place.
async fn settle(args: &Args, device: &Device) -> Result<()> {
    let groups = device.logs().await?;
    let relays: BTreeMap<&str, &RelayUrl> =
        groups.iter().map(|group| (group.relay.as_str(), &group.relay)).collect();
    let connections: Vec<Connection> =
        relays.into_values().map(|relay| device.connect(relay)).collect();
    let until = Instant::now() + args.deadline();
    for group in &groups {
        let left = until.saturating_duration_since(Instant::now());
        match device.wait_ready(group.log, left).await {
            Ok(()) => remark(&format!("back in {}", group.log.to_uuid_text())),
            Err(Error::Timeout) => remark(&format!(
                "not yet back in {}: it goes on with `listen`",
                group.log.to_uuid_text()
            )),
            Err(error) => remark(&format!(
                "{} does not let this device in ({error}): ask a member for a new invite",
                group.log.to_uuid_text()
            )),
        }
    }
    // What is in the outbox and in the other groups ends the old device; its vault is replaced then.
    loop {
        match device.keep_recovery().await {
            Ok(true) => break,
            Ok(false) if Instant::now() >= until => {
                remark("the lost device is not out of all groups yet; later commands see to it");
                break;
            }
            Ok(false) => {}
            Err(error) => {
                remark(&format!("the recovery vault could not be brought up to date: {error}"));
                break;
            }
        }
        sleep(LOOK_PAUSE).await;
    }
    for vault in device.recovered_vaults().await? {
        remark(&format!(
            "in the vault {} in place of the lost device: `vault attach --recovered` goes on there",
            vault.vault.to_uuid_text()
        ));
    }
    until_sent(device, until).await?;
    for connection in connections {
        connection.stop().await;
    }
    Ok(())
}

/// Waits until the outbox is empty.
async fn until_sent(device: &Device, until: Instant) -> Result<()> {
    while Instant::now() < until {
        let open = device.logs().await?.into_iter().filter(|info| info.phase == Phase::Member);
        if open.map(|info| info.unsent).sum::<u64>() == 0 {
            break;
        }
        sleep(LOOK_PAUSE).await;
    }
    Ok(())
}
