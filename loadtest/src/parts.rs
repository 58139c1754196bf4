//! A crowd that is too large for the open files of one process: parts of it, each a process of this
//! program.
//!
//! Orders go in and words come out as lines of JSON, over standard input and output. A part connects from
//! its share of the pace at which one crowd would, counts and checks for itself, and tells what it has
//! counted, so that whoever started it reports all parts as one crowd.
//!
//! Holds always: a part ends with whoever started it, however that ends: its standard input closes.

use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines, Stdin};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::limits::{OPEN_FILES_RESERVE, PARTS_MAX};
use crate::process::{Process, count_as_own};
use crate::reader::Faults;
use crate::tally::Counted;
use crate::{append, idle, progress};

/// Which part of a crowd it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Share {
    pub(crate) number: usize,
    pub(crate) parts: usize,
}

impl Share {
    /// All of it.
    pub(crate) const WHOLE: Self = Self { number: 0, parts: 1 };

    /// Its part of so many things.
    pub(crate) fn of(self, things: usize) -> usize {
        things / self.parts + usize::from(self.number < things % self.parts)
    }
}

/// How many processes it takes to hold so many groups of so many devices: as few as the open files of one
/// process allow, or as were asked for.
pub(crate) fn needed(groups: usize, members: usize, process_max: Option<usize>) -> Result<usize> {
    let files = Process::own().open_files_max()?.saturating_sub(OPEN_FILES_RESERVE);
    let most = process_max.unwrap_or(usize::MAX).min(usize::try_from(files).unwrap_or(usize::MAX));
    ensure!(most >= members, "one process holds {most} devices: fewer than a group has");
    let parts = groups.div_ceil(most / members.max(1)).max(1);
    ensure!(parts <= PARTS_MAX, "at most {PARTS_MAX} processes");
    Ok(parts)
}

/// What a part is told.
#[derive(Serialize, Deserialize)]
pub(crate) enum Order {
    /// First: to be a part of `idle`.
    Idle(idle::Part),
    /// First: to be a part of `append`.
    Append(Box<append::Part>),
    /// So many more devices come.
    Arrive(usize),
    /// The load begins at this nanosecond of the machine's clock.
    Begin(u64),
    /// All connections are cut.
    Cut,
}

/// What a part says.
#[derive(Serialize, Deserialize)]
pub(crate) enum Word {
    /// What was ordered is done.
    Done,
    /// What was counted since it was said last.
    Counted(Box<Counted>),
    /// Everything was sent, answered, read and checked.
    Ended(Ended),
}

/// What is known at the end of a part's load.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) faults: Faults,
    pub(crate) checked: u64,
    /// Longest time in which none of its devices had anything, in nanoseconds.
    pub(crate) silence_ns: u64,
}

/// A part, seen by whoever started it.
pub(crate) struct Hand {
    child: Child,
    orders: Option<ChildStdin>,
    words: Option<Words>,
}

/// What a part says, line by line.
pub(crate) struct Words(Lines<BufReader<ChildStdout>>);

impl Hand {
    /// Starts a part, which is told this first.
    pub(crate) async fn start(first: &Order) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("crowd-part")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting a part of the crowd")?;
        count_as_own(child.id().context("it has ended at once")?)?;
        let output = child.stdout.take().context("its output")?;
        let words = Some(Words(BufReader::new(output).lines()));
        let mut hand = Self { orders: child.stdin.take(), child, words };
        hand.tell(first).await?;
        Ok(hand)
    }

    pub(crate) async fn tell(&mut self, order: &Order) -> Result<()> {
        let line = serde_json::to_string(order)? + "\n";
        let orders = self.orders.as_mut().context("a part of the crowd is to end")?;
        orders.write_all(line.as_bytes()).await.context("a part of the crowd has ended")
    }

    /// Waits until it has done what it was told.
    pub(crate) async fn is_done(&mut self) -> Result<()> {
        match self.words.as_mut().context("somebody else listens")?.next().await? {
            Word::Done => Ok(()),
            Word::Counted(_) | Word::Ended(_) => bail!("a part of the crowd counts too soon"),
        }
    }

    /// What it says from now on, for somebody else to hear.
    pub(crate) fn take_words(&mut self) -> Result<Words> {
        self.words.take().context("somebody else listens")
    }

    /// Refuses if it has ended.
    pub(crate) fn is_here(&mut self) -> Result<()> {
        let ended = self.child.try_wait()?;
        ended.map_or(Ok(()), |status| bail!("a part of the crowd has ended: {status}"))
    }

    /// Has it end, and its connections with it.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.orders = None;
        let status = self.child.wait().await?;
        ensure!(status.success(), "a part of the crowd has ended: {status}");
        Ok(())
    }
}

impl Words {
    pub(crate) async fn next(&mut self) -> Result<Word> {
        let line = self.0.next_line().await?.context("a part of the crowd has ended")?;
        serde_json::from_str(&line).context("a part of the crowd says something else")
    }
}

/// What a part hears.
pub(crate) struct Orders(Lines<BufReader<Stdin>>);

impl Orders {
    /// The next order; none if nobody gives any more.
    pub(crate) async fn next(&mut self) -> Result<Option<Order>> {
        let line = self.0.next_line().await?;
        line.map(|line| serde_json::from_str(&line).context("an order")).transpose()
    }
}

/// What a part does, in its own process.
pub(crate) async fn serve() -> Result<()> {
    progress::hide();
    let mut orders = Orders(BufReader::new(tokio::io::stdin()).lines());
    match orders.next().await? {
        Some(Order::Idle(part)) => part.run(orders).await,
        Some(Order::Append(part)) => Box::pin(part.run(orders)).await,
        Some(Order::Arrive(_) | Order::Begin(_) | Order::Cut) => bail!("an order to nobody"),
        None => Ok(()),
    }
}

/// Says a word to whoever started this part.
pub(crate) fn say(word: &Word) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, word)?;
    writeln!(out)?;
    Ok(out.flush()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_is_cut_into_parts_that_are_about_as_large() {
        assert_eq!(needed(10, 4, Some(40)).expect("parts"), 1);
        assert_eq!(needed(10, 4, Some(39)).expect("parts"), 2);
        assert_eq!(needed(10, 4, Some(4)).expect("parts"), 10);
        assert!(needed(10, 4, Some(3)).is_err());
        let parts: Vec<usize> = (0..3).map(|number| Share { number, parts: 3 }.of(10)).collect();
        assert_eq!(parts, [4, 3, 3]);
        assert_eq!(Share::WHOLE.of(7), 7);
    }
}
