//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::vault::VaultCommand;

/// A Sealwire device: sealed groups from the command line.
#[derive(Parser)]
#[command(version, about)]
pub(crate) struct Args {
    /// The device's directory [default: the user's data directory].
    #[arg(long, env = "SEALWIRE_DEVICE_DIR", global = true)]
    pub(crate) dir: Option<PathBuf>,
    /// The relay for new groups.
    #[arg(long, env = "SEALWIRE_RELAY", default_value = "ws://127.0.0.1:4000", global = true)]
    pub(crate) relay: String,
    /// One JSON object per line, for scripts.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// Longest time to wait for the relay and for other members, in seconds.
    #[arg(long, default_value_t = 30, global = true)]
    wait: u64,
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Args {
    pub(crate) fn deadline(&self) -> Duration {
        Duration::from_secs(self.wait)
    }
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a new device.
    Init {
        /// Ask for a passphrase and keep the key sealed under it (or take it from
        /// SEALWIRE_PASSPHRASE).
        #[arg(long)]
        passphrase: bool,
    },
    /// Print the device's key: its only name.
    Id,
    /// Found a group and print its name.
    Found,
    /// Print a link by which others can join a group.
    Invite {
        /// The group's name, or the beginning of it.
        group: String,
    },
    /// Join a group by a link.
    Join {
        /// The link.
        link: String,
    },
    /// Send a text to a group.
    Send {
        /// The group's name, or the beginning of it.
        group: String,
        /// The text.
        text: String,
        /// To these members only (their keys, or the beginnings of them).
        #[arg(long = "to")]
        to: Vec<String>,
    },
    /// Print what is sent to this device, and go on until interrupted.
    Listen {
        /// Only this group.
        group: Option<String>,
        /// End when everything that the relay has was printed.
        #[arg(long)]
        once: bool,
    },
    /// Send every line that is typed, and print what the others send.
    Chat {
        /// The group's name, or the beginning of it.
        group: String,
    },
    /// Print the members of a group.
    Members {
        /// The group's name, or the beginning of it.
        group: String,
    },
    /// Leave a group.
    Leave {
        /// The group's name, or the beginning of it.
        group: String,
    },
    /// Remove a member for good.
    Revoke {
        /// The group's name, or the beginning of it.
        group: String,
        /// The member's key, or the beginning of it.
        device: String,
    },
    /// Print the groups that this device is or was in.
    Logs,
    /// Accept another key for a relay whose key has changed.
    Trust {
        /// The relay's new key, as the error message and the relay's operator say.
        key: String,
    },
    /// Share tables of an app's own database with your devices, or with a household.
    #[command(subcommand)]
    Vault(VaultCommand),
}
