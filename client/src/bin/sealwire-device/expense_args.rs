//! The command line of the commands for shared expenses.

use clap::Subcommand;

/// What can be done about money.
#[derive(Subcommand)]
pub(crate) enum MoneyCommand {
    /// Write down, change, delete or list what was paid.
    #[command(subcommand)]
    Expense(ExpenseCommand),
    /// Write down that you have paid somebody back.
    Settle {
        /// The group's name, or the beginning of it.
        group: String,
        /// Whom you paid: a name, or the beginning of a key.
        member: String,
        /// How much [default: what you owe].
        amount: Option<String>,
        /// In which currency [default: the group's].
        #[arg(long)]
        currency: Option<String>,
        /// It was the other way round: the member has paid you.
        #[arg(long)]
        received: bool,
    },
    /// Print who owes whom, as far as this device has read.
    Balances {
        /// The group's name, or the beginning of it.
        group: String,
        /// With as few payments as possible, also between people who never shared anything.
        #[arg(long)]
        simplified: bool,
        /// Read first what the relay has.
        #[arg(long)]
        sync: bool,
    },
    /// Remind those who owe you.
    Nudge {
        /// The group's name, or the beginning of it.
        group: String,
        /// In which currency [default: the group's].
        #[arg(long)]
        currency: Option<String>,
    },
    /// Print what happens in the ledgers, and go on until interrupted.
    Watch {
        /// Only this group.
        group: Option<String>,
        /// End when everything that the relay has was read.
        #[arg(long)]
        once: bool,
    },
}

/// What can be done about an expense.
#[derive(Subcommand)]
pub(crate) enum ExpenseCommand {
    /// Write down what was paid. All members share it equally unless some are named.
    Add {
        /// The group's name, or the beginning of it.
        group: String,
        /// How much, for instance 12.50.
        amount: String,
        /// What it was for.
        reason: String,
        /// In which currency [default: the group's].
        #[arg(long)]
        currency: Option<String>,
        #[command(flatten)]
        who: Who,
    },
    /// Change an expense. What is not named stays.
    Edit {
        /// The group's name, or the beginning of it.
        group: String,
        /// The expense's name, or the beginning of it.
        expense: String,
        /// How much.
        #[arg(long)]
        amount: Option<String>,
        /// In which currency; needs the amount.
        #[arg(long, requires = "amount")]
        currency: Option<String>,
        /// What it was for.
        #[arg(long)]
        reason: Option<String>,
        #[command(flatten)]
        who: Who,
    },
    /// Delete an expense or a settlement.
    Delete {
        /// The group's name, or the beginning of it.
        group: String,
        /// The expense's name, or the beginning of it.
        expense: String,
    },
    /// List what was paid, the newest first.
    List {
        /// The group's name, or the beginning of it.
        group: String,
        /// Read first what the relay has.
        #[arg(long)]
        sync: bool,
    },
}

/// Who has paid, for whom, and when.
#[derive(clap::Args)]
pub(crate) struct Who {
    /// Who has paid: a name, or the beginning of a key [default: you].
    #[arg(long)]
    pub(crate) paid_by: Option<String>,
    /// Who share it, with commas between [default: all members].
    #[arg(long, value_delimiter = ',')]
    pub(crate) split: Vec<String>,
    /// The day, like 2026-01-31 [default: today].
    #[arg(long)]
    pub(crate) on: Option<String>,
}
