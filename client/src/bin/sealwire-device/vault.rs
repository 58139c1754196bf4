//! The commands that share an app's database: one function for each.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args as ClapArgs, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use sealwire_client::address::RelayUrl;
use sealwire_client::device::Device;
use sealwire_client::sync::{
    Attached, Consent, Keeping, Offer, Phase, Progress, Report, Schema, SyncError, Table, Whose,
};
use sealwire_protocol::DeviceKey;
use serde_json::{Value, json};
use tokio::signal::ctrl_c;

use crate::args::Args;
use crate::output::{Output, remark};
use crate::place::open;

#[derive(Subcommand)]
pub(crate) enum VaultCommand {
    /// Found a vault with what is in the tables of a database.
    Create {
        /// The app's SQLite database.
        database: PathBuf,
        #[command(flatten)]
        tables: Tables,
    },
    /// Share tables of a database: of a vault that another device offers, or again with other tables.
    Attach {
        /// The app's SQLite database.
        database: PathBuf,
        #[command(flatten)]
        tables: Tables,
        /// What `vault enrol` has printed on a device of the vault. Prints this device's consent.
        #[arg(long, conflicts_with = "recovered")]
        offer: Option<String>,
        /// Go on in a vault of the device that was lost, after `recovery restore`; its name, or the
        /// beginning of it, if there were several.
        #[arg(long, value_name = "VAULT", num_args = 0..=1, default_missing_value = "")]
        recovered: Option<String>,
    },
    /// Enrol another device: print an offer for it, or with its consent let it in.
    Enrol {
        /// The app's SQLite database.
        database: PathBuf,
        /// What `vault attach --offer` has printed on the other device.
        consent: Option<String>,
        /// The device is another person's: it does not get the key of what is private to you.
        #[arg(long)]
        another_persons: bool,
    },
    /// Remove a device for good.
    Revoke {
        /// The app's SQLite database.
        database: PathBuf,
        /// The device's key, or the beginning of it.
        device: String,
    },
    /// Read what is new and send what is unsent.
    Sync {
        /// The app's SQLite database.
        database: PathBuf,
        /// Go on until interrupted.
        #[arg(long)]
        watch: bool,
    },
    /// Make a snapshot, from which new devices begin.
    Snapshot {
        /// The app's SQLite database.
        database: PathBuf,
    },
    /// Print how the database stands, without asking the relay.
    Status {
        /// The app's SQLite database.
        database: PathBuf,
    },
}

/// What is shared.
#[derive(ClapArgs)]
pub(crate) struct Tables {
    /// A table that every device of the vault has. May be given several times.
    #[arg(long = "table", value_name = "TABLE")]
    shared: Vec<String>,
    /// A column of such a table that is yours alone.
    #[arg(long = "private-column", value_name = "TABLE.COLUMN")]
    columns: Vec<String>,
    /// A table that is yours alone.
    #[arg(long = "private-table", value_name = "TABLE")]
    private: Vec<String>,
    /// The version of the tables: a number that rises when they change.
    #[arg(long, default_value_t = 1)]
    schema_version: u32,
}

pub(crate) async fn run(args: &Args, out: Output, command: &VaultCommand) -> Result<()> {
    let device = open(args).await?;
    match command {
        VaultCommand::Create { database, tables } => {
            create(args, out, &device, database, tables).await
        }
        VaultCommand::Attach { database, tables, recovered: Some(name), .. } => {
            take_over(out, &device, database, tables, name).await
        }
        VaultCommand::Attach { database, tables, offer, recovered: None } => {
            attach(out, &device, database, tables, offer.as_deref()).await
        }
        VaultCommand::Enrol { database, consent, another_persons } => {
            let whose = if *another_persons { Whose::AnotherPersons } else { Whose::Mine };
            enrol(out, &device, database, consent.as_deref(), whose).await
        }
        VaultCommand::Revoke { database, device: whom } => {
            revoke(out, &device, database, whom).await
        }
        VaultCommand::Sync { database, watch } => sync(out, &device, database, *watch).await,
        VaultCommand::Snapshot { database } => snapshot(out, &device, database).await,
        VaultCommand::Status { database } => status(out, &device, database).await,
    }
}

impl Tables {
    fn schema(&self) -> Result<Schema> {
        let mut shared: Vec<Table> = self.shared.iter().map(Table::group).collect();
        for name in &self.columns {
            let (table, column) =
                name.split_once('.').context("a private column is named as TABLE.COLUMN")?;
            let at = self.shared.iter().position(|shared| shared == table);
            let at =
                at.with_context(|| format!("--private-column {name} needs --table {table}"))?;
            shared[at] = shared[at].clone().user_private_column(column);
        }
        let private = self.private.iter().map(Table::user_private);
        let schema = Schema::version(self.schema_version);
        Ok(shared.into_iter().chain(private).fold(schema, Schema::table))
    }

    fn is_empty(&self) -> bool {
        self.shared.is_empty() && self.private.is_empty()
    }

    async fn attach(&self, device: &Device, database: &Path) -> Result<Attached> {
        if self.is_empty() || !database.exists() {
            return reopen(device, database).await;
        }
        device.attach(database, &self.schema()?).await.map_err(|error| explain(&error))
    }
}

async fn reopen(device: &Device, database: &Path) -> Result<Attached> {
    if !database.exists() {
        bail!("there is no database at {}: the app makes it and its tables", database.display());
    }
    device.open_attached(database).await.map_err(|error| explain(&error))
}

async fn create(
    args: &Args,
    out: Output,
    device: &Device,
    database: &Path,
    tables: &Tables,
) -> Result<()> {
    let attached = tables.attach(device, database).await?;
    let relay = RelayUrl::parse(&args.relay)?;
    let vault = attached.found(&relay).await.map_err(|error| explain(&error))?.to_uuid_text();
    out.line(&vault, &json!({ "vault": vault }))
}

async fn attach(
    out: Output,
    device: &Device,
    database: &Path,
    tables: &Tables,
    offer: Option<&str>,
) -> Result<()> {
    let attached = tables.attach(device, database).await?;
    let Some(offer) = offer else { return print_status(out, &attached).await };
    let offer = Offer::parse(offer)?;
    let consent = attached.accept(&offer).await.map_err(|error| explain(&error))?;
    remark(&format!("this device is {}; compare it where it is enrolled", consent.device.to_hex()));
    let (code, device) = (consent.code(), consent.device.to_hex());
    out.line(&code, &json!({ "consent": code, "device": device }))
}

async fn take_over(
    out: Output,
    device: &Device,
    database: &Path,
    tables: &Tables,
    name: &str,
) -> Result<()> {
    let mut vaults = device.recovered_vaults().await.map_err(|error| explain(&error))?;
    vaults.retain(|it| it.vault.to_uuid_text().starts_with(&name.to_ascii_lowercase()));
    let [vault] = &vaults[..] else {
        let names: Vec<String> = vaults.iter().map(|it| it.vault.to_uuid_text()).collect();
        if names.is_empty() {
            bail!(
                "no vault of a lost device that begins so waits for this one; `recovery restore` says \
                 which there are, and a device that is in the vault lets this one in by `vault enrol`"
            );
        }
        bail!("several vaults of the lost device are like that, name one: {}", names.join(", "));
    };
    let attached = tables.attach(device, database).await?;
    let has_private = !tables.columns.is_empty() || !tables.private.is_empty();
    if has_private && !vault.knows_private_key() {
        remark(
            "which key is private to you cannot be told from what the lost device has written; a new \
             one is made when it is needed. If another device of yours is in the vault, `vault enrol` \
             there and `vault attach --offer` here say which it is, before anything private is written \
             here",
        );
    }
    attached.take_over(vault).await.map_err(|error| explain(&error))?;
    let bar = Bar::watch(out, &attached);
    let report = attached.sync().await.map_err(|error| explain(&error))?;
    bar.end();
    print_report(out, &report)
}

async fn enrol(
    out: Output,
    device: &Device,
    database: &Path,
    consent: Option<&str>,
    whose: Whose,
) -> Result<()> {
    let attached = reopen(device, database).await?;
    let Some(consent) = consent else {
        let offer = attached.offer(whose).await.map_err(|error| explain(&error))?.code();
        return out.line(&offer, &json!({ "offer": offer }));
    };
    let consent = Consent::parse(consent)?;
    let bar = Bar::watch(out, &attached);
    attached.enrol(&consent, whose).await.map_err(|error| explain(&error))?;
    bar.end();
    let key = consent.device.to_hex();
    out.line(&format!("enrolled {key}"), &json!({ "enrolled": key }))
}

async fn revoke(out: Output, device: &Device, database: &Path, whom: &str) -> Result<()> {
    let attached = reopen(device, database).await?;
    let status = attached.status().await?;
    let vault = status.vault.ok_or_else(|| explain(&SyncError::NoVault))?;
    let wanted = whom.to_ascii_lowercase();
    let found: Vec<DeviceKey> = vault
        .devices
        .into_iter()
        .map(|(key, _)| key)
        .filter(|key| key.to_hex().starts_with(&wanted))
        .collect();
    let [key] = found[..] else {
        bail!("{} devices of the vault begin with {whom}; `vault status` shows them", found.len())
    };
    attached.revoke(key).await.map_err(|error| explain(&error))?;
    let key = key.to_hex();
    out.line(&format!("revoked {key}"), &json!({ "revoked": key }))
}

async fn sync(out: Output, device: &Device, database: &Path, watch: bool) -> Result<()> {
    let attached = reopen(device, database).await?;
    let bar = Bar::watch(out, &attached);
    if !watch {
        let report = attached.sync().await.map_err(|error| explain(&error))?;
        bar.end();
        return print_report(out, &report);
    }
    let mut keeper = attached.keep_synced();
    loop {
        tokio::select! {
            keeping = keeper.next() => match keeping {
                Keeping::Starting => {}
                Keeping::Synced(_, report) => {
                    bar.end();
                    if report.sent > 0 || report.replayed.changesets > 0 {
                        print_report(out, &report)?;
                    }
                }
                Keeping::Waiting(error) => bar.remark(&format!("{error}; trying again")),
                Keeping::Over(error) => return Err(explain(&error)),
            },
            _ = ctrl_c() => break,
        }
    }
    keeper.stop().await;
    Ok(())
}

async fn snapshot(out: Output, device: &Device, database: &Path) -> Result<()> {
    let attached = reopen(device, database).await?;
    let bar = Bar::watch(out, &attached);
    let made = attached.snapshot().await.map_err(|error| explain(&error))?;
    bar.end();
    let text = format!("made a snapshot of {} bytes at entry {}", made.size, made.head.seq);
    let value =
        json!({ "digest": hex::encode(made.digest.0), "bytes": made.size, "seq": made.head.seq });
    out.line(&text, &value)
}

async fn status(out: Output, device: &Device, database: &Path) -> Result<()> {
    print_status(out, &reopen(device, database).await?).await
}

async fn print_status(out: Output, attached: &Attached) -> Result<()> {
    let status = attached.status().await?;
    let mut lines = vec![format!("tables: {}", status.tables.join(", "))];
    let mut value = json!({
        "device": status.device.to_hex(),
        "tables": status.tables,
        "unsent_rows": status.unsent_rows,
        "sealed": status.sealed,
        "withheld": status.withheld,
        "oversized": status.oversized,
        "vault": Value::Null,
    });
    match &status.vault {
        None => lines.push("no vault yet: `vault create`, or `vault attach --offer`".into()),
        Some(vault) => {
            let seq = vault.head.map_or(0, |head| head.seq);
            let name = vault.log.to_uuid_text();
            lines.push(format!("vault {name} at {}, read to entry {seq}", vault.relay));
            if vault.cloned {
                lines.push("this device's key is used elsewhere: nothing more is sent".into());
            }
            for (device, _) in &vault.devices {
                let you = if *device == status.device { "  (you)" } else { "" };
                lines.push(format!("  {}{you}", device.to_hex()));
            }
            value["vault"] = json!({
                "log": name,
                "relay": vault.relay.as_str(),
                "seq": seq,
                "epoch": vault.epoch,
                "holds_private_key": vault.holds_private_key,
                "cloned": vault.cloned,
                "devices": vault.devices.iter().map(|(it, _)| it.to_hex()).collect::<Vec<_>>(),
            });
        }
    }
    lines.push(format!("{} rows are unsent", status.unsent_rows));
    for (count, what) in [
        (status.sealed, "boxes are sealed under keys that are not here"),
        (status.withheld, "rows are withheld: a constraint of the table forbids them"),
        (status.oversized, "cells are too long to be sent"),
    ] {
        if count > 0 {
            lines.push(format!("{count} {what}"));
        }
    }
    out.line(&lines.join("\n"), &value)
}

fn print_report(out: Output, report: &Report) -> Result<()> {
    let replayed = &report.replayed;
    let tables: Vec<&String> = replayed.tables.iter().collect();
    let text = format!(
        "sent {} rows in {} entries, read {} rows in {} changesets",
        report.sent_rows, report.sent, replayed.rows, replayed.changesets
    );
    for (is, what) in [
        (report.waits_for_key, "enrolled, but no device has given the key yet"),
        (report.history_changed, "the relay had lost history; nothing was deleted here"),
        (report.forked, "the relay shows its readers two histories; ask whoever runs it"),
        (
            report.confirmed,
            "compared a snapshot of another device with what is here, and confirmed it",
        ),
        (
            report.refused_snapshot,
            "a snapshot lacks something that is here, or does not open; it was not confirmed",
        ),
        (report.damaged > 0, "some entries are damaged; they are kept sealed"),
        (
            report.spoiled > 0,
            "the relay has given some entries spoiled; they are asked for again, and no snapshot is made \
             or confirmed here before they are whole",
        ),
        (report.rejected > report.spoiled, "some entries are not believed"),
    ] {
        if is {
            remark(what);
        }
    }
    let value = json!({
        "sent_rows": report.sent_rows,
        "sent_entries": report.sent,
        "rows": replayed.rows,
        "changesets": replayed.changesets,
        "cells": replayed.cells,
        "superseded": replayed.superseded,
        "conflicts": replayed.conflicts,
        "withheld": replayed.withheld,
        "tables": tables,
        "sealed": report.sealed,
        "damaged": report.damaged,
        "rejected": report.rejected,
        "spoiled": report.spoiled,
        "waits_for_key": report.waits_for_key,
        "history_changed": report.history_changed,
        "forked": report.forked,
        "confirmed_snapshot": report.confirmed,
        "refused_snapshot": report.refused_snapshot,
    });
    out.line(&text, &value)
}

/// How far long work is, on standard error, if a person is looking there.
struct Bar(ProgressBar);

impl Bar {
    fn watch(out: Output, attached: &Attached) -> Self {
        let bar = if out.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        let style = |text| ProgressStyle::with_template(text).ok();
        let open = style("{spinner} {human_pos} {msg}");
        let closed = style("{wide_bar} {human_pos} of {human_len} {msg}");
        let shown = bar.clone();
        let last = std::sync::Mutex::new(None::<(Phase, bool)>);
        attached.on_progress(move |Progress { phase, done, total }| {
            let is = Some((phase, total.is_some()));
            if let Ok(mut last) = last.lock()
                && *last != is
            {
                *last = is;
                shown.set_message(phase.to_string());
                if let Some(style) = if total.is_some() { closed.clone() } else { open.clone() } {
                    shown.set_style(style);
                }
            }
            if let Some(total) = total {
                shown.set_length(total);
            }
            shown.set_position(done);
        });
        Self(bar)
    }

    /// Says something for good: above how far it is, not behind it.
    fn remark(&self, text: &str) {
        self.0.suspend(|| remark(text));
    }

    fn end(&self) {
        self.0.finish_and_clear();
    }
}

/// An error as it is said: what to do about it is said below it.
fn explain(error: &SyncError) -> anyhow::Error {
    anyhow!(error.clone())
}
