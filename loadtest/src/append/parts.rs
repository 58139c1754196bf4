//! The load in several processes, where its devices are too many for the open files of one.
//!
//! Each part has some of the groups, whole, and a share of the rate. All begin at the same nanosecond of
//! the machine's clock and end by themselves; what they count is counted here as one crowd's.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};

use super::load::Load;
use super::{Arguments, Checked, Rate, setup};
use crate::crowd::Crowd;
use crate::limits::SAMPLE_PAUSE;
use crate::parts::{self, Ended, Hand, Order, Orders, Share, Word};
use crate::process::machine_ns;
use crate::progress;
use crate::reader::Faults;
use crate::tally::Tally;

/// How long all parts are told before the load begins.
const NOTICE: Duration = Duration::from_millis(200);

/// What a part is.
#[derive(Serialize, Deserialize)]
pub(crate) struct Part {
    url: String,
    devices: usize,
    share: Share,
    /// With its own number of groups.
    arguments: Arguments,
    /// Its own share, too.
    rate: Rate,
}

/// All parts, at work.
pub(super) struct Parts {
    hands: Vec<Hand>,
    ends: JoinSet<Result<Ended>>,
    ended: Vec<Ended>,
}

impl Parts {
    /// Starts them and waits until all groups are made.
    pub(super) async fn prepare(
        arguments: &Arguments,
        rate: Rate,
        url: &str,
        parts: usize,
    ) -> Result<Self> {
        let devices = arguments.groups * arguments.members;
        let line = progress::wait("groups are made in several processes");
        let mut hands = Vec::with_capacity(parts);
        for number in 0..parts {
            let share = Share { number, parts };
            let arguments = share_of(arguments, rate, share)?;
            let rate = arguments.first_rate();
            let part = Part { url: url.to_owned(), devices, share, arguments, rate };
            hands.push(Hand::start(&Order::Append(Box::new(part))).await?);
        }
        for hand in &mut hands {
            hand.is_done().await?;
        }
        line.finish_and_clear();
        Ok(Self { hands, ends: JoinSet::new(), ended: Vec::new() })
    }

    /// Has all of them begin, and counts what they count.
    pub(super) async fn begin(&mut self, tally: &Arc<Tally>) -> Result<()> {
        let notice_ns = u64::try_from(NOTICE.as_nanos()).unwrap_or_default();
        let at = machine_ns() + notice_ns;
        tally.begin_at(Instant::now() + NOTICE);
        for hand in &mut self.hands {
            hand.tell(&Order::Begin(at)).await?;
        }
        for hand in &mut self.hands {
            let (mut words, tally) = (hand.take_words()?, tally.clone());
            self.ends.spawn(async move {
                loop {
                    match words.next().await? {
                        Word::Counted(counted) => tally.absorb(&counted),
                        Word::Ended(ended) => return Ok(ended),
                        Word::Done => bail!("a part of the crowd has done nothing"),
                    }
                }
            });
        }
        sleep(NOTICE).await;
        Ok(())
    }

    /// All connections are cut.
    pub(super) async fn cut(&mut self) -> Result<()> {
        for hand in &mut self.hands {
            hand.tell(&Order::Cut).await?;
        }
        Ok(())
    }

    /// Waits for a part that fails, which ends the run.
    pub(super) async fn fails(&mut self) -> Result<()> {
        while let Some(ended) = self.ends.join_next().await {
            // By its own clock it may be done a moment sooner.
            self.ended.push(ended.context("a part of the crowd was not heard")??);
        }
        std::future::pending().await
    }

    /// Waits until all have ended.
    pub(super) async fn finish(mut self, tally: &Tally) -> Result<Checked> {
        while let Some(ended) = self.ends.join_next().await {
            self.ended.push(ended.context("a part of the crowd was not heard")??);
        }
        let (mut faults, mut checked, mut silence_ns) = (Faults::default(), 0, u64::MAX);
        for ended in &self.ended {
            faults.add(ended.faults);
            checked += ended.checked;
            // When all were silent, each was.
            silence_ns = silence_ns.min(ended.silence_ns);
        }
        tally.was_silent(silence_ns);
        for hand in self.hands {
            hand.end().await?;
        }
        Ok(Checked { faults, checked })
    }
}

/// What one part has to do, of everything.
fn share_of(arguments: &Arguments, rate: Rate, share: Share) -> Result<Arguments> {
    let before: usize =
        (0..share.number).map(|number| Share { number, ..share }.of(arguments.groups)).sum();
    let groups = share.of(arguments.groups);
    // As its groups are of all: together the shares are the whole.
    let part = |all: u32| -> Result<u32> {
        let up_to = |groups: usize| u64::from(all) * groups as u64 / arguments.groups as u64;
        Ok(u32::try_from(up_to(before + groups) - up_to(before))?.max(1))
    };
    let rate = match rate {
        Rate::PerSecond(all) => Rate::PerSecond(part(all)?),
        Rate::Max => Rate::Max,
    };
    let churn = arguments.churn.map(part).transpose()?;
    Ok(Arguments { groups, rate: vec![rate], churn, ..arguments.clone() })
}

impl Part {
    /// Does as it is told.
    pub(crate) async fn run(self, mut orders: Orders) -> Result<()> {
        let Self { url, devices, share, arguments, rate } = self;
        let crowd = Arc::new(Crowd::part(&url, devices, share)?);
        let groups = setup::make_groups(&arguments, &crowd).await?;
        parts::say(&Word::Done)?;
        let Some(Order::Begin(at_ns)) = orders.next().await? else { bail!("nothing begins") };
        let wait = Duration::from_nanos(at_ns.saturating_sub(machine_ns()));
        let tally = Arc::new(Tally::new(arguments.warm_up, arguments.seconds));
        tally.begin_at(Instant::now() + wait);
        sleep(wait).await;
        let mut load = Load::begin(&arguments, rate, crowd, groups, &tally)?;
        let mut looks = interval(SAMPLE_PAUSE);
        while tally.now() < tally.window().end {
            tokio::select! {
                _ = looks.tick() => say_counts(&tally)?,
                order = orders.next() => match order? {
                    Some(Order::Cut) => load.cut(),
                    Some(_) => bail!("an order that a load does not follow"),
                    None => return Ok(()),
                },
                ended = load.ends_too_soon() => return ended,
            }
        }
        let finish = load.finish();
        tokio::pin!(finish);
        let checked = loop {
            tokio::select! {
                checked = &mut finish => break checked?,
                _ = looks.tick() => say_counts(&tally)?,
            }
        };
        say_counts(&tally)?;
        let Checked { faults, checked } = checked;
        let silence_ns = tally.counts().silence_ns;
        parts::say(&Word::Ended(Ended { faults, checked, silence_ns }))?;
        // It ends with its last order, so that nobody takes its end for a failure.
        while orders.next().await?.is_some() {}
        Ok(())
    }
}

fn say_counts(tally: &Tally) -> Result<()> {
    parts::say(&Word::Counted(Box::new(tally.take_counted())))
}
