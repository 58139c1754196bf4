//! Where the key of a new device is kept: in the system's keychain, or in a file that a passphrase seals.
//!
//! Whoever names neither gets the keychain if one answers, and is asked for a passphrase if none does. A
//! key is left in the clear only where that is asked for in so many words, and each choice is said.

use std::io::IsTerminal;

use anyhow::{Context, Result, bail};
use clap::Args;
use sealwire_client::device::KeyKeeping;
use sealwire_client::identity::keychain_answers;
use zeroize::Zeroizing;

use crate::output::remark;
use crate::place::{PASSPHRASE, new_secret};

/// What was typed.
#[derive(Args)]
#[group(multiple = false)]
pub(crate) struct KeepingArgs {
    /// Keep the key in a file under a passphrase, which is asked for (or taken from
    /// SEALWIRE_PASSPHRASE).
    #[arg(long)]
    passphrase: bool,
    /// Keep the key in the system's keychain.
    #[arg(long)]
    keychain: bool,
    /// Keep the key in a file in the clear: whoever reads it is this device.
    #[arg(long)]
    unsealed: bool,
}

/// What was chosen.
pub(crate) enum Keeping {
    /// In the system's keychain.
    Keychain,
    /// In a file, under this passphrase.
    Sealed(Zeroizing<String>),
    /// In a file, in the clear.
    Unsealed,
}

impl KeepingArgs {
    /// Decides, and asks if it has to.
    pub(crate) async fn choose(&self) -> Result<Keeping> {
        if self.keychain {
            return Ok(Keeping::Keychain);
        }
        if self.unsealed {
            return Ok(Keeping::Unsealed);
        }
        if !self.passphrase && std::env::var_os(PASSPHRASE).is_none() {
            if tokio::task::spawn_blocking(keychain_answers).await? {
                return Ok(Keeping::Keychain);
            }
            if !std::io::stdin().is_terminal() {
                bail!(
                    "no keychain answers in this session, and nobody can be asked for a passphrase: \
                     set {PASSPHRASE}, or leave the key in the clear with --unsealed"
                );
            }
            remark("no keychain answers in this session; a passphrase seals the key instead");
        }
        let passphrase = new_secret(PASSPHRASE, "new passphrase: ")
            .context("nothing seals the key, and no device was made")?;
        if passphrase.is_empty() {
            bail!(
                "an empty passphrase seals nothing; to leave the key in the clear, say --unsealed"
            );
        }
        Ok(Keeping::Sealed(passphrase))
    }
}

impl Keeping {
    /// As the library takes it.
    pub(crate) fn of_key(&self) -> KeyKeeping<'_> {
        match self {
            Self::Keychain => KeyKeeping::Keychain,
            Self::Sealed(passphrase) => KeyKeeping::Sealed(passphrase),
            Self::Unsealed => KeyKeeping::Unsealed,
        }
    }

    /// Says where the key is, and what follows from that.
    pub(crate) fn say(&self) {
        remark(match self {
            Self::Keychain => {
                "its key is in the system's keychain, which answers in sessions like this one; \
                 --passphrase makes a device that can be used without"
            }
            Self::Sealed(_) => {
                "its key is in a file under the passphrase, which every command needs"
            }
            Self::Unsealed => {
                "its key is in the clear, in a file that only you may read: whoever gets a copy is \
                 this device"
            }
        });
    }
}
