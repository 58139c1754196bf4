//! Where the device is kept, and how names that a person types are understood.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use sealwire_client::device::{Device, LogInfo, Options};
use sealwire_client::error::Error;
use sealwire_client::identity::file::KeyFileError;
use sealwire_protocol::DeviceKey;
use zeroize::Zeroizing;

use crate::args::Args;

/// The variable that holds a passphrase, for scripts.
pub(crate) const PASSPHRASE: &str = "SEALWIRE_PASSPHRASE";

/// The variable that holds an invite, for scripts.
pub(crate) const INVITE: &str = "SEALWIRE_INVITE";

/// The device's directory.
pub(crate) fn directory(args: &Args) -> Result<PathBuf> {
    if let Some(directory) = &args.dir {
        return Ok(directory.clone());
    }
    let data = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")))
        .context("no home directory; name one with --dir")?;
    Ok(data.join("sealwire-device"))
}

/// Opens the device, asking for its passphrase if it has one.
pub(crate) async fn open(args: &Args) -> Result<Device> {
    let directory = directory(args)?;
    match Device::open(&directory, None, Options::default()).await {
        Err(Error::KeyFile(KeyFileError::PassphraseNeeded)) => {
            let passphrase = secret(PASSPHRASE, "passphrase: ")?;
            Ok(Device::open(&directory, Some(&passphrase), Options::default()).await?)
        }
        Err(Error::KeyFile(KeyFileError::Missing)) => {
            bail!("there is no device in {}; make one with `init`", directory.display())
        }
        other => Ok(other?),
    }
}

/// What is said where a new device was to be made and one is already.
pub(crate) fn taken(directory: &Path) -> String {
    format!(
        "there is a device in {} already; name another directory with --dir",
        directory.display()
    )
}

/// A secret from the environment or the terminal.
pub(crate) fn secret(variable: &str, prompt: &str) -> Result<Zeroizing<String>> {
    match std::env::var(variable) {
        Ok(text) => Ok(Zeroizing::new(text)),
        Err(_) => rpassword::prompt_password(prompt)
            .map(Zeroizing::new)
            .with_context(|| format!("nothing was typed; a script sets {variable}")),
    }
}

/// A secret that is typed for the first time: twice.
pub(crate) fn new_secret(variable: &str, prompt: &str) -> Result<Zeroizing<String>> {
    let first = secret(variable, prompt)?;
    let second = secret(variable, "again: ")?;
    if *first != *second {
        bail!("these were not the same; try again");
    }
    Ok(first)
}

/// The group that begins with these letters.
pub(crate) async fn group(device: &Device, name: &str) -> Result<LogInfo> {
    let wanted: String =
        name.chars().filter(|c| *c != '-').map(|c| c.to_ascii_lowercase()).collect();
    let mut found: Vec<LogInfo> = device
        .logs()
        .await?
        .into_iter()
        .filter(|info| info.log.to_hex().starts_with(&wanted))
        .collect();
    match found.len() {
        1 => found.pop().ok_or_else(|| anyhow!("no group")),
        0 => bail!("no group begins with {name}; `group list` shows them"),
        many => bail!("{many} groups begin with {name}; type more of it"),
    }
}

/// The member whose key begins with these letters, or who is called so.
pub(crate) async fn member(device: &Device, group: &LogInfo, name: &str) -> Result<DeviceKey> {
    let wanted = name.to_lowercase();
    let members = device.members(group.log).await?.into_iter().map(|member| member.device);
    let members: Vec<DeviceKey> = members.collect();
    let ledger = device.ledger(group.log).await?;
    let called = |key: &&DeviceKey| {
        let person = ledger.person(&(**key).into());
        person.and_then(|it| it.name.as_ref()).is_some_and(|it| it.to_lowercase() == wanted)
    };
    let mut found: Vec<&DeviceKey> = members.iter().filter(called).collect();
    if found.is_empty() {
        found = members.iter().filter(|key| key.to_hex().starts_with(&wanted)).collect();
    }
    match found[..] {
        [key] => Ok(*key),
        [] => bail!(
            "no member is called {name} or has a key that begins so; `group members` shows them"
        ),
        _ => bail!("{} members fit {name}; use the beginning of a key", found.len()),
    }
}
