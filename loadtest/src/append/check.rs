//! Whether everything that was answered is there, where nobody was connected to receive it.

use anyhow::{Context, Result, bail};
use futures_util::{StreamExt, TryStreamExt, stream};
use sealwire_client::identity::Identity;
use sealwire_protocol::{Head, LogId};
use tokio::time::timeout;

use super::member::Done;
use super::setup::Group;
use crate::crowd::Crowd;
use crate::group;
use crate::hear::Heard;
use crate::limits::DRAIN_DEADLINE;
use crate::progress;
use crate::reader::Reader;

/// Groups that are read at the same time.
const READERS_MAX: usize = 16;

/// One member of each group comes back and reads all of it.
pub(super) async fn read_again(crowd: &Crowd, groups: Vec<Group>, heads: &[Head]) -> Result<Done> {
    let bar = progress::bar(groups.len() as u64, "groups read again");
    let mut sum = Done::default();
    let work = groups.into_iter().zip(heads).filter_map(|(group, head)| {
        let device = group.absent?;
        Some(Box::pin(read_group(crowd, device, group.log, *head)))
    });
    let mut read = stream::iter(work).buffer_unordered(READERS_MAX);
    while let Some(done) = read.try_next().await? {
        sum.faults.add(done.faults);
        sum.delivered += done.delivered;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(sum)
}

async fn read_group(crowd: &Crowd, device: Identity, log: LogId, head: Head) -> Result<Done> {
    let (mut wire, _) = crowd.enter(&device).await?;
    group::subscribe(&mut wire, log, None).await?;
    let mut reader = Reader::new(log);
    let reading = async {
        loop {
            match Heard::from(wire.receive().await?.frame?) {
                Heard::Entry(entry) => {
                    reader.entry(&entry);
                }
                Heard::Stubs(stubs) => reader.stubs(&stubs),
                Heard::Drained => return anyhow::Ok(()),
                Heard::Refused(error) => bail!("the relay refused: {}", error.failure()),
                Heard::Appended(_) | Heard::Heartbeat | Heard::Other => {}
            }
        }
    };
    timeout(DRAIN_DEADLINE, reading).await.context("a group could not be read in time")??;
    wire.close().await;
    Ok(Done { delivered: reader.delivered, faults: reader.conclude(head) })
}
