//! The load itself, in one process: members that send and receive, from the first entry to the last
//! check.

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, bail};
use sealwire_protocol::Head;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::member::{Answered, Done, Member, Phase, Shared};
use super::setup::Group;
use super::{Arguments, Checked, Rate, check};
use crate::crowd::Crowd;
use crate::limits::DRAIN_DEADLINE;
use crate::pace;
use crate::reader::Faults;
use crate::tally::Tally;

/// Members at work.
pub(super) struct Load {
    crowd: Arc<Crowd>,
    groups: Vec<Group>,
    members: JoinSet<Result<Done>>,
    phase: watch::Sender<Phase>,
    done: mpsc::Receiver<(usize, Answered)>,
    pacer: Option<JoinHandle<()>>,
    senders: usize,
    receivers: bool,
    /// Members that receive each entry and do not read slowly on purpose.
    copies: usize,
    tally: Arc<Tally>,
}

impl Load {
    /// Begins. The clock of the tally runs already.
    pub(super) fn begin(
        arguments: &Arguments,
        rate: Rate,
        crowd: Arc<Crowd>,
        mut groups: Vec<Group>,
        tally: &Arc<Tally>,
    ) -> Result<Self> {
        let (phase_sender, phase) = watch::channel(Phase::Run { cuts: 0 });
        let (done_sender, done) = mpsc::channel(arguments.groups * arguments.members);
        let (mut members, mut ticks) = (JoinSet::new(), Vec::new());
        let shared = Shared { crowd: crowd.clone(), tally: tally.clone(), phase };
        for (index, group) in groups.iter_mut().enumerate() {
            for seat in group.connected.drain(..) {
                let (member, tick) = Member::new(arguments, rate, index, seat, shared.clone())?;
                ticks.extend(tick);
                members.spawn(Box::pin(member.run(done_sender.clone())));
            }
        }
        Ok(Self {
            crowd,
            groups,
            members,
            phase: phase_sender,
            done,
            pacer: rate.per_second().map(|rate| pace::start(rate, ticks, tally)),
            senders: arguments.groups * arguments.senders,
            receivers: arguments.receivers,
            copies: if arguments.receivers { arguments.members - 1 - arguments.slow } else { 0 },
            tally: tally.clone(),
        })
    }

    /// All connections are cut.
    pub(super) fn cut(&self) {
        self.phase.send_replace(Phase::Run { cuts: 1 });
    }

    /// Waits for a member that ends before its time, which ends the run.
    pub(super) async fn ends_too_soon(&mut self) -> Result<()> {
        match self.members.join_next().await {
            Some(Ok(Err(error))) => Err(error),
            Some(_) | None => bail!("a member has ended before its time"),
        }
    }

    /// Waits for all answers, has everybody read what there is, and gives what was wrong.
    pub(super) async fn finish(mut self) -> Result<Checked> {
        self.phase.send_replace(Phase::Drain);
        let answered = timeout(DRAIN_DEADLINE, self.answered())
            .await
            .map_err(|_| anyhow!("the relay has not answered everything in time"))?;
        let given_up = self.tally.now();
        let (mut faults, mut checked) = (Faults::default(), 0);
        for (group, answered) in self.groups.iter().zip(&answered) {
            faults.add(unordered(group.head, *answered));
        }
        let heads: Vec<Head> = answered.iter().map(|answered| answered.head).collect();
        self.phase.send_replace(Phase::Finish(Arc::new(heads.clone())));
        while let Some(member) = self.members.join_next().await {
            let read = member.context("a member has panicked")??;
            faults.add(read.faults);
            checked += read.delivered;
        }
        if let Some(pacer) = self.pacer {
            pacer.join().map_err(|_| anyhow!("the pacer has panicked"))?;
        }
        self.tally.give_up(given_up, 1, self.copies);
        if !self.receivers {
            let read = check::read_again(&self.crowd, self.groups, &heads).await?;
            faults.add(read.faults);
            checked += read.delivered;
        }
        Ok(Checked { faults, checked })
    }

    /// What the senders of each group were told, once every one has all its answers.
    async fn answered(&mut self) -> Vec<Answered> {
        let mut groups = vec![Answered::NOTHING; self.groups.len()];
        for _ in 0..self.senders {
            let Some((group, told)) = self.done.recv().await else {
                // A member has failed; whoever joins it learns why.
                break;
            };
            let answered = &mut groups[group];
            answered.entries += told.entries;
            if told.head.seq > answered.head.seq {
                answered.head = told.head;
            }
        }
        groups
    }
}

/// Whether as many entries were answered as have a place in the log, since `start`: nothing else is
/// ordered during a run. An answer that names a place which another entry has is an entry lost, whatever
/// readers see; a place more than there are answers is an entry that was ordered twice.
fn unordered(start: Head, answered: Answered) -> Faults {
    let places = answered.head.seq.saturating_sub(start.seq);
    Faults {
        lost: answered.entries.saturating_sub(places),
        duplicate: places.saturating_sub(answered.entries),
        ..Faults::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_answer_needs_a_place_of_its_own() {
        let head = |seq| Head { seq, ..Head::NONE };
        let faults = |seq, entries| unordered(head(9), Answered { head: head(seq), entries });
        assert_eq!(faults(19, 10), Faults::default());
        assert_eq!(faults(18, 10), Faults { lost: 1, ..Faults::default() });
        assert_eq!(faults(20, 10), Faults { duplicate: 1, ..Faults::default() });
        assert_eq!(unordered(head(9), Answered::NOTHING), Faults::default(), "nobody has sent");
    }
}
