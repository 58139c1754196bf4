//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

use crate::expense_args::MoneyCommand;
use crate::keeping::KeepingArgs;
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

/// Longest time that a command waits, in seconds: a day. Nobody waits longer for one.
const WAIT_SECONDS_MAX: u64 = 24 * 3600;

impl Args {
    pub(crate) fn deadline(&self) -> Duration {
        Duration::from_secs(self.wait.min(WAIT_SECONDS_MAX))
    }
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a new device. Its key is kept in the system's keychain, or, where none answers, in a file
    /// under a passphrase.
    Init {
        #[command(flatten)]
        keeping: KeepingArgs,
        /// What to be called in groups that share expenses.
        #[arg(long)]
        name: Option<String>,
    },
    /// Print the device's key, which is its only name, and its fingerprint.
    Whoami {
        /// What to be called in groups that share expenses from now on.
        #[arg(long)]
        name: Option<String>,
    },
    /// Make, join and leave groups, and let others in.
    #[command(subcommand)]
    Group(GroupCommand),
    #[command(flatten)]
    Money(MoneyCommand),
    /// Send a text to a group.
    Send {
        /// The group's name, or the beginning of it.
        group: String,
        /// The text.
        text: String,
        /// To these members only (their names, or their keys, or the beginnings of them).
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
    /// The way back after losing this device: a code on paper and a PIN in the head.
    #[command(subcommand)]
    Recovery(RecoveryCommand),
    /// Accept another key for a relay whose key has changed.
    Trust {
        /// The relay's new key, as the error message and the relay's operator say.
        key: String,
    },
    /// Print a script that completes these commands in a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Share tables of an app's own database with your devices, or with a household.
    #[command(subcommand)]
    Vault(VaultCommand),
}

#[derive(Subcommand)]
pub(crate) enum GroupCommand {
    /// Make a group and print its name.
    Create {
        /// A group of the Totals app, which phones can join; its format stays for life.
        #[arg(long)]
        totals: bool,
    },
    /// Print a link, or of a Totals group the code, by which others can join.
    Invite {
        /// The group's name, or the beginning of it.
        group: String,
    },
    /// Join a group by a link, or a Totals group of the relay by its code.
    Join {
        /// The link or code. Left out, it is asked for (or taken from SEALWIRE_INVITE): others on this
        /// machine see what stands in a command, and whoever has the link can join.
        invite: Option<String>,
    },
    /// Print who asks to be let into a Totals group, or let somebody in.
    Approve {
        /// The group's name, or the beginning of it.
        group: String,
        /// The one to be let in: its fingerprint, in quotes, or its key, or at least 16 digits of it.
        /// Compare the fingerprint first.
        device: Option<String>,
        /// What the newcomer's app calls the group at first.
        #[arg(long)]
        name: Option<String>,
    },
    /// Take the key that a member offers in place of the one that this device has (Totals groups).
    AcceptKey {
        /// The group's name, or the beginning of it.
        group: String,
        /// The member: its fingerprint, in quotes, or its key, or at least 16 digits of it.
        device: String,
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
        /// The member's name, or its key, or the beginning of it.
        device: String,
    },
    /// Make another content key, which happens by itself after a removal.
    Rotate {
        /// The group's name, or the beginning of it.
        group: String,
    },
    /// Print the groups that this device is or was in.
    List,
    /// Print the members of a group with their fingerprints.
    Members {
        /// The group's name, or the beginning of it.
        group: String,
    },
}

#[derive(Subcommand)]
pub(crate) enum RecoveryCommand {
    /// Store a recovery vault at the relay and print its code: write it down, it is not kept. The PIN
    /// is asked for (or taken from SEALWIRE_PIN).
    Setup {
        /// As the Totals app makes it: brings the same key back, and knows Totals groups alone.
        #[arg(long)]
        totals: bool,
    },
    /// Make a device out of a recovery vault. Code and PIN are asked for (or taken from
    /// SEALWIRE_RECOVERY_CODE and SEALWIRE_PIN). Its key is kept as `init` keeps it.
    Restore {
        /// The code is one of the Totals app.
        #[arg(long)]
        totals: bool,
        #[command(flatten)]
        keeping: KeepingArgs,
    },
    /// Change the PIN (from SEALWIRE_PIN to SEALWIRE_NEW_PIN); the code stays.
    ChangePin,
    /// Delete the recovery vault.
    Delete,
}
