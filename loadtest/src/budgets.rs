//! Everything that there is a budget for, in one run: on SQLite, and beside it on PostgreSQL.
//!
//! The parts are scenarios that exist for their own sake. Each has a relay and an empty database of its
//! own, and they come one after the other, so that none is measured beside another, or beside what
//! another has left for the disk. A budget that is
//! missed is a figure like others; what was not taken, or a promise that was broken, is a failure.

mod budget;
mod database;
mod figures;
mod judge;
mod part;
mod table;

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;
use serde::Serialize;

use self::database::{Fresh, Server};
use self::part::{Manner, Part, Shown};
use self::table::{Column, Table};
use crate::frame::relay::About;
use crate::limits::REPEATS_MAX;
use crate::progress;
use crate::report::{self, Document, Run};

/// What `budgets` is asked to do.
#[derive(Args, Serialize)]
pub(crate) struct Arguments {
    /// The relay's program.
    #[arg(long, value_name = "PROGRAM")]
    #[serde(skip)]
    relay: PathBuf,
    /// A database of a PostgreSQL server, whose user may make others: the same is taken there, in empty
    /// ones that are made for it and dropped afterwards. This one is left alone.
    #[arg(long, value_name = "URL")]
    #[serde(skip)]
    database: Option<String>,
    /// A directory on that server's disk, to see how often the disk is made to keep what it was given.
    #[arg(long, value_name = "DIRECTORY", requires = "database")]
    #[serde(skip)]
    disk: Option<PathBuf>,
    /// Where the relays' directories are made, and SQLite's files with them. By default where the system
    /// keeps what is temporary.
    #[arg(long, value_name = "DIRECTORY")]
    #[serde(skip)]
    directory: Option<PathBuf>,
    /// Entries a second that a server without keys and hashes makes durable and delivers in groups of
    /// four on this machine, if that is known. Otherwise it is a number of the machine on which the
    /// budgets were made.
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    fan_out: Option<u32>,
    /// Take all but idle sessions so many times, and judge the middle of them.
    #[arg(long, default_value_t = 1)]
    repeat: usize,
    /// Fail if a budget is missed.
    #[arg(long)]
    #[serde(skip)]
    strict: bool,
    /// Few devices, for moments: to see whether everything can be taken. Nothing is judged.
    #[arg(long, conflicts_with = "strict")]
    short: bool,
    /// Also write everything to this file, as JSON, with the reports of all parts.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    json: Option<PathBuf>,
    /// Also write a page to this file, with the plots of all parts.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    html: Option<PathBuf>,
}

/// Takes everything, and reports.
pub(crate) async fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { fan_out, repeat, short, .. } = *arguments;
    ensure!((1..=REPEATS_MAX).contains(&repeat), "1 to {REPEATS_MAX} repetitions");
    ensure!(
        short || cfg!(feature = "ceiling"),
        "what the store does alone is not in this build: build it with the feature `ceiling`"
    );
    let manner = Manner { fan_out, short };
    // What cannot be done shows before half an hour is over.
    let about = About::of_program(&arguments.relay).await?;
    let server = match &arguments.database {
        Some(url) => Some(Server::at(url).await?),
        None => None,
    };
    let mut columns = vec![take_all(arguments, manner, "SQLite", None).await];
    if let Some(server) = &server {
        columns.push(take_all(arguments, manner, "PostgreSQL", Some(server)).await);
    }
    let table = Table::new(manner, columns);
    let conclusion = table.conclusion(arguments.strict);
    let document = Document {
        scenario: "budgets",
        command: "budgets",
        arguments,
        relay: Some(about),
        ceilings: None,
        runs: &[Run::new(table, None)],
    };
    report::publish(&document, arguments.json.as_deref(), arguments.html.as_deref())?;
    conclusion
}

/// All parts on one database.
async fn take_all(
    arguments: &Arguments,
    manner: Manner,
    name: &'static str,
    server: Option<&Server>,
) -> Column {
    let mut column = Column::new(name);
    for part in Part::ALL {
        let takings = if part.is_repeated() { arguments.repeat } else { 1 };
        for taking in 1..=takings {
            let title = if takings > 1 {
                format!("{name}, {}, {taking} of {takings}", part.scenario())
            } else {
                format!("{name}, {}", part.scenario())
            };
            progress::say(&title);
            let mut made = Vec::new();
            match take(arguments, manner, part, &title, server, &mut made).await {
                Ok(shown) => column.add(shown),
                Err(error) => column.says(format!("{title}: not taken: {error:#}")),
            }
            for database in made {
                if let Err(error) = database.drop_now().await {
                    column.says(format!("{title}: {error:#}"));
                }
            }
        }
    }
    column
}

/// One part, with databases that are made for it.
async fn take(
    arguments: &Arguments,
    manner: Manner,
    part: Part,
    title: &str,
    server: Option<&Server>,
    made: &mut Vec<Fresh>,
) -> Result<Shown> {
    let mut given = vec!["--relay".into(), arguments.relay.clone().into_os_string()];
    if let Some(directory) = &arguments.directory {
        given.extend(["--directory".into(), directory.clone().into_os_string()]);
    }
    given.push(format!("--ceilings={}", part.has_ceilings(manner)).into());
    if let Some(server) = server {
        if let Some(disk) = &arguments.disk {
            given.extend(["--disk".into(), disk.clone().into_os_string()]);
        }
        made.push(server.fresh().await?);
        if part.has_ceilings(manner) {
            made.push(server.fresh().await?);
        }
    }
    for (option, database) in ["--database", "--ceiling-database"].into_iter().zip(made) {
        given.extend([OsString::from(option), database.url().into()]);
    }
    part.take(manner, title.to_owned(), given).await
}
