//! The groups of a run, with their members connected as the run wants them.

use anyhow::{Result, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::ProgressBar;
use sealwire_client::identity::Identity;
use sealwire_client::wire::Wire;
use sealwire_protocol::{Head, LogId};

use super::Arguments;
use crate::crowd::Crowd;
use crate::group::{self, Author};
use crate::limits::SETUPS_MAX;
use crate::progress;
use crate::reader::Reader;

/// A group of a run.
pub(super) struct Group {
    pub(super) log: LogId,
    /// Its head when all of its members had joined.
    pub(super) head: Head,
    /// Those who take part in the run.
    pub(super) connected: Vec<Seat>,
    /// A member that is not connected, if there is one.
    pub(super) absent: Option<Identity>,
}

/// A connected member.
pub(super) struct Seat {
    /// Its number among all of the run.
    pub(super) number: usize,
    pub(super) device: Identity,
    pub(super) wire: Wire,
    pub(super) incarnation: u64,
    /// If it sends.
    pub(super) author: Option<Author>,
    /// If it is subscribed.
    pub(super) reader: Option<Reader>,
    /// Whether it reads more slowly than entries come.
    pub(super) is_slow: bool,
}

/// Makes all groups of a run.
pub(super) async fn make_groups(arguments: &Arguments, crowd: &Crowd) -> Result<Vec<Group>> {
    let bar = progress::bar((arguments.groups * arguments.members) as u64, "members");
    let groups = stream::iter(0..arguments.groups)
        .map(|number| Box::pin(make_group(arguments, crowd, number, &bar)))
        .buffered(SETUPS_MAX)
        .try_collect()
        .await?;
    bar.finish_and_clear();
    Ok(groups)
}

/// Makes a group. Members follow it from the head that it has when all of them have joined: what came
/// before is not what is measured.
async fn make_group(
    arguments: &Arguments,
    crowd: &Crowd,
    number: usize,
    bar: &ProgressBar,
) -> Result<Group> {
    let mut founded = None;
    let mut connected = Vec::new();
    let mut absent = None;
    let mut head = Head::NONE;
    for member in 0..arguments.members {
        let device = Identity::generate()?;
        let (mut wire, session) = crowd.enter(&device).await?;
        let author = match &founded {
            None => {
                let (author, seed, first) = group::found(&mut wire, &device).await?;
                founded = Some((author.log, seed));
                head = first;
                author
            }
            Some((log, seed)) => {
                let (author, joined) = group::join(&mut wire, &device, *log, seed).await?;
                head = joined;
                author
            }
        };
        bar.inc(1);
        let sends = member < arguments.senders;
        if !arguments.receivers && !sends {
            wire.close().await;
            absent = Some(device);
            continue;
        }
        let is_slow = arguments.members - member <= arguments.slow;
        connected.push(Seat {
            number: number * arguments.members + member,
            device,
            wire,
            incarnation: session.welcome.incarnation,
            author: sends.then_some(author),
            reader: None,
            is_slow,
        });
    }
    let Some((log, _)) = founded else {
        bail!("a group has members");
    };
    if arguments.receivers {
        for seat in &mut connected {
            group::subscribe(&mut seat.wire, log, Some(head)).await?;
            seat.reader = Some(Reader::at(log, head));
        }
    }
    Ok(Group { log, head, connected, absent })
}
