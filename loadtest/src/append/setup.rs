//! The groups of a run, with their members connected as the run wants them.

use anyhow::{Result, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use sealwire_client::identity::Identity;
use sealwire_client::wire::Wire;
use sealwire_protocol::LogId;

use super::Arguments;
use crate::crowd::Crowd;
use crate::group::{self, Author};
use crate::limits::SETUPS_MAX;
use crate::progress;
use crate::reader::Reader;

/// A group of a run.
pub(super) struct Group {
    pub(super) log: LogId,
    /// Those who take part in the run.
    pub(super) connected: Vec<Seat>,
    /// A member that is not connected, if there is one.
    pub(super) absent: Option<Identity>,
}

/// A connected member.
pub(super) struct Seat {
    pub(super) wire: Wire,
    pub(super) incarnation: u64,
    /// If it sends.
    pub(super) author: Option<Author>,
    /// If it is subscribed.
    pub(super) reader: Option<Reader>,
}

/// Makes all groups of a run.
pub(super) async fn make_groups(arguments: &Arguments, crowd: &Crowd) -> Result<Vec<Group>> {
    let bar = progress::bar(arguments.groups as u64, "groups");
    let groups = stream::iter(0..arguments.groups)
        .map(|_| Box::pin(make_group(arguments, crowd)))
        .buffered(SETUPS_MAX)
        .inspect_ok(|_| bar.inc(1))
        .try_collect()
        .await?;
    bar.finish_and_clear();
    Ok(groups)
}

async fn make_group(arguments: &Arguments, crowd: &Crowd) -> Result<Group> {
    let mut founded = None;
    let mut connected = Vec::new();
    let mut absent = None;
    for number in 0..arguments.members {
        let device = Identity::generate()?;
        let (mut wire, session) = crowd.enter(&device).await?;
        let author = match &founded {
            None => {
                let (author, seed) = group::found(&mut wire, &device).await?;
                founded = Some((author.log, seed));
                author
            }
            Some((log, seed)) => group::join(&mut wire, &device, *log, seed).await?,
        };
        let sends = number < arguments.senders;
        if !arguments.receivers && !sends {
            wire.close().await;
            absent = Some(device);
            continue;
        }
        let mut reader = None;
        if arguments.receivers {
            group::subscribe(&mut wire, author.log).await?;
            reader = Some(Reader::new(author.log));
        }
        let incarnation = session.welcome.incarnation;
        connected.push(Seat { wire, incarnation, author: sends.then_some(author), reader });
    }
    let Some((log, _)) = founded else {
        bail!("a group has members");
    };
    Ok(Group { log, connected, absent })
}
