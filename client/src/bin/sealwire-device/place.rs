//! Where the device is kept, and how names that a person types are understood.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use sealwire_client::device::{Device, LogInfo, Options};
use sealwire_client::error::Error;
use sealwire_client::identity::file::KeyFileError;
use sealwire_protocol::DeviceKey;

use crate::args::Args;

/// The variable that holds a passphrase, for scripts.
const PASSPHRASE: &str = "SEALWIRE_PASSPHRASE";

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
            let passphrase = passphrase("passphrase: ")?;
            Ok(Device::open(&directory, Some(&passphrase), Options::default()).await?)
        }
        Err(Error::KeyFile(KeyFileError::Missing)) => {
            bail!("there is no device in {}; make one with `init`", directory.display())
        }
        other => Ok(other?),
    }
}

/// The passphrase from the environment or the terminal.
pub(crate) fn passphrase(prompt: &str) -> Result<String> {
    match std::env::var(PASSPHRASE) {
        Ok(passphrase) => Ok(passphrase),
        Err(_) => rpassword::prompt_password(prompt).context("no passphrase was given"),
    }
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
        0 => bail!("no group begins with {name}"),
        many => bail!("{many} groups begin with {name}"),
    }
}

/// The member whose key begins with these letters.
pub(crate) async fn member(device: &Device, group: &LogInfo, name: &str) -> Result<DeviceKey> {
    let wanted = name.to_ascii_lowercase();
    let mut found: Vec<DeviceKey> = device
        .members(group.log)
        .await?
        .into_iter()
        .map(|member| member.device)
        .filter(|key| key.to_hex().starts_with(&wanted))
        .collect();
    match found.len() {
        1 => found.pop().ok_or_else(|| anyhow!("no member")),
        0 => bail!("no member's key begins with {name}"),
        many => bail!("the keys of {many} members begin with {name}"),
    }
}
