//! `recovery`: the way back after losing a device.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use sealwire_client::address::RelayUrl;
use sealwire_client::device::{Device, Options, Phase, patience};
use sealwire_client::error::Error;
use sealwire_client::identity::file::KeyFileError;
use sealwire_client::recovery::{Format, RecoveryCode, RecoveryError};
use sealwire_client::session::Connection;
use sealwire_protocol::LogId;
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
            device.change_pin(&old, &new).await.context("the PIN is not changed")?;
            out.done("the PIN is changed; the code stays", &json!({ "pin": "changed" }))
        }
        RecoveryCommand::Delete => {
            match open(args).await?.delete_recovery().await {
                // That one is deleted, and may not be all.
                Err(error @ Error::Recovery(RecoveryError::Elsewhere(_))) => bail!(error),
                deleted => deleted.context("the recovery vault is there as before")?,
            }
            out.done("the recovery vault is deleted", &json!({ "recovery_vault": "deleted" }))
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
    let before = device.recovery().await?;
    let format = if totals { Format::Totals } else { Format::Native };
    let pin = new_secret(PIN, "new PIN, at least six digits: ")?;
    let made = device.set_up_recovery(&relay, format, &pin).await;
    let code = made.with_context(|| format!("no recovery vault was made at {relay}"))?;
    if before.is_some_and(|(_, before)| before == relay) {
        remark(if device.is_restoring().await? {
            "this code takes the place of the earlier one; the lost device's own code opens what that device \
             had stored until it is out of everything that it was in, which later commands see to"
        } else {
            "this code takes the place of the earlier one, which opens nothing any more"
        });
    }
    remark(&format!(
        "write this code down, and the relay, {relay}; keep it away from the PIN, it is shown once"
    ));
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
    let key = keeping.of_key();
    let restored = Device::restore(&place, key, &relay, &code, &pin, Options::default()).await;
    let device = restored.with_context(|| format!("nothing was restored from {relay}"))?;
    remark(&format!("made a device in {}", place.display()));
    keeping.say();
    settle(args, out, &device).await?;
    whoami(&device, out, None).await
}

/// Goes on with a restore that was interrupted.
async fn go_on(args: &Args, out: Output) -> Result<()> {
    let device = open(args).await?;
    if !device.is_restoring().await? {
        bail!(taken(&directory(args)?));
    }
    remark("going on with the restore that was begun here");
    settle(args, out, &device).await?;
    whoami(&device, out, None).await
}

/// Lets the new device join its groups and take the old one's place.
async fn settle(args: &Args, out: Output, device: &Device) -> Result<()> {
    let groups = device.logs().await?;
    let relays: BTreeMap<&str, &RelayUrl> =
        groups.iter().map(|group| (group.relay.as_str(), &group.relay)).collect();
    let connections: Vec<Connection> =
        relays.into_values().map(|relay| device.connect(relay)).collect();
    let mut until = Instant::now() + args.deadline();
    let waiting = Waiting::begin(out, args);
    for group in &groups {
        let name = group.log.to_uuid_text();
        waiting.say(&format!("reaching the relay of {name}"));
        wait_entered(device, group.log, until).await?;
        let info = device.log(group.log).await?;
        // Whoever is connected has given what is lacking by then; the others will, later.
        let patience =
            if info.phase == Phase::Member { patience(info.members) } else { Duration::ZERO };
        let left = until.saturating_duration_since(Instant::now());
        waiting.say(&format!("waiting for a member of {name} who is connected, for its key"));
        match device.wait_ready(group.log, left.min(patience)).await {
            Ok(()) => waiting.remark(&format!("back in {name}")),
            Err(Error::Timeout) if patience.is_zero() => waiting.remark(&format!(
                "not yet in {name}: its relay was not reached; it goes on with `listen`"
            )),
            Err(Error::Timeout) => waiting.remark(&format!(
                "in {name}, but no member is connected who could give its key: it comes when one is, \
                 while `listen` or `watch` runs"
            )),
            Err(error) => waiting.remark(&format!(
                "{name} does not let this device in ({error}): ask a member for a new invite"
            )),
        }
    }
    // What is in the outbox and in the other groups ends the old device; its vault is replaced then.
    waiting.say("waiting for the lost device to be out of all groups");
    until = until.min(Instant::now() + patience(0));
    loop {
        match device.keep_recovery().await {
            Ok(true) => break,
            // Another command was quicker, or has stored it anew since.
            Ok(false) if !device.is_restoring().await? => break,
            Ok(false) if Instant::now() >= until => {
                waiting.remark(
                    "the lost device is not out of all groups yet; later commands see to it",
                );
                break;
            }
            Ok(false) => {}
            Err(error) => {
                waiting.remark(&format!("the recovery vault could not be brought up to date: {error}; the next command tries again"));
                break;
            }
        }
        sleep(LOOK_PAUSE).await;
    }
    for vault in device.recovered_vaults().await? {
        waiting.remark(&format!(
            "in the vault {} in place of the lost device: `vault attach --recovered` goes on there",
            vault.vault.to_uuid_text()
        ));
    }
    waiting.say("sending what is left");
    until_sent(device, until).await?;
    waiting.end();
    for connection in connections {
        connection.stop().await;
    }
    Ok(())
}

/// Waits until this device is a member of a group again, and has read it, or is not let in.
async fn wait_entered(device: &Device, log: LogId, until: Instant) -> Result<()> {
    while Instant::now() < until {
        let info = device.log(log).await?;
        if info.phase != Phase::Joining && (info.phase != Phase::Member || info.head.is_some()) {
            break;
        }
        sleep(LOOK_PAUSE).await;
    }
    Ok(())
}

/// What is waited for, on standard error, if a person is looking there.
struct Waiting(ProgressBar);

impl Waiting {
    fn begin(out: Output, args: &Args) -> Self {
        let bar = if out.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        let longest = args.deadline().as_secs();
        let text = format!("{{spinner}} {{msg}} ({{elapsed}} of at most {longest} s; see --wait)");
        if let Ok(style) = ProgressStyle::with_template(&text) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(LOOK_PAUSE);
        Self(bar)
    }

    fn say(&self, what: &str) {
        self.0.set_message(what.to_owned());
    }

    /// Says something for good: above what is waited for, not behind it.
    fn remark(&self, text: &str) {
        self.0.suspend(|| remark(text));
    }

    fn end(self) {
        self.0.finish_and_clear();
    }
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
