//! The two sides of a vault: a device that pushes changesets, and one that pulls and checks them.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::{BufMut, BytesMut};
use futures_util::FutureExt;
use sealwire_client::entry::judge;
use sealwire_client::identity::Identity;
use sealwire_client::wire::{Wire, WireError};
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::codec::Envelope;
use sealwire_protocol::frame::{AppendBatch, Ping};
use sealwire_protocol::{ClientFrame, Head, RelayFrame};
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, sleep, sleep_until};

use crate::group::{self, Author, random_body};
use crate::hear::Heard;
use crate::limits::DRAIN_DEADLINE;
use crate::reader::{Faults, Reader};
use crate::tally::{STAMP_BYTES, Tally, Unsaid};

/// Frames that are read before anything is counted.
const FRAMES_AT_ONCE: usize = 256;

/// A device that pushes.
pub(super) struct Pusher {
    device: Identity,
    wire: Wire,
    author: Author,
    /// The vault's end, as far as it was told.
    head: Head,
}

/// A device that pulls.
pub(super) struct Puller {
    wire: Wire,
    reader: Reader,
    unsaid: Unsaid,
}

impl Pusher {
    pub(super) fn new(device: Identity, wire: Wire, author: Author, head: Head) -> Self {
        Self { device, wire, author, head }
    }

    /// Pushes a batch whenever one is due, or all the time, and gives where the vault ends.
    pub(super) async fn run(
        mut self,
        batch: usize,
        body: usize,
        mut due: Option<mpsc::Receiver<u64>>,
        tally: Arc<Tally>,
    ) -> Result<Head> {
        let filler = random_body(body - STAMP_BYTES)?;
        loop {
            let due = match &mut due {
                Some(due) => match due.recv().await {
                    Some(due) => due,
                    None => break,
                },
                None if tally.now() < tally.window().end => tally.now(),
                None => break,
            };
            let mut body = BytesMut::with_capacity(body);
            body.put_u64(due);
            body.put_slice(&filler);
            let entries: Result<Vec<_>> =
                (0..batch).map(|_| self.author.sign(&self.device, Vec::new(), &body)).collect();
            let entries = Bounded::new(entries?).context("a batch has a bound")?;
            self.push(&AppendBatch { entries }.into(), &tally).await?;
            let mut unsaid = Unsaid::default();
            let now = tally.now();
            for _ in 0..batch {
                tally.appended(&mut unsaid, due, now);
            }
            tally.add(&mut unsaid);
        }
        self.wire.close().await;
        Ok(self.head)
    }

    /// Pushes one batch, and again as often as the relay asks to wait.
    async fn push(&mut self, frame: &ClientFrame, tally: &Tally) -> Result<()> {
        loop {
            match self.wire.request(frame).await {
                Ok(answer) => {
                    self.head = group::appended(answer)?.head;
                    return Ok(());
                }
                Err(WireError::Refused(failure)) if let Some(wait) = failure.retry_after_ms => {
                    tally.refused();
                    sleep(Duration::from_millis(wait)).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl Puller {
    pub(super) fn new(wire: Wire, reader: Reader) -> Self {
        Self { wire, reader, unsaid: Unsaid::default() }
    }

    /// Pulls what comes, until everything has come that was answered. Gives what was wrong, and how
    /// many changesets came.
    pub(super) async fn run(
        mut self,
        vault: usize,
        tally: Arc<Tally>,
        mut finished: watch::Receiver<Option<Arc<Vec<Head>>>>,
    ) -> Result<(Faults, u64)> {
        let mut head = None;
        let mut deadline = Instant::now();
        while head.is_none_or(|head: Head| self.reader.seq() < head.seq) {
            tokio::select! {
                envelope = self.wire.receive() => {
                    self.take(envelope?, &tally)?;
                    self.take_ready(&tally)?;
                }
                changed = finished.changed(), if head.is_none() => {
                    changed.context("the run has ended")?;
                    head = finished.borrow().as_ref().map(|heads| heads[vault]);
                    deadline = Instant::now() + DRAIN_DEADLINE;
                }
                // What is missing is counted.
                () = sleep_until(deadline), if head.is_some() => break,
            }
            tally.add(&mut self.unsaid);
        }
        let read = self.reader.delivered;
        Ok((self.reader.conclude(head.unwrap_or(Head::NONE)), read))
    }

    fn take_ready(&mut self, tally: &Tally) -> Result<()> {
        for _ in 1..FRAMES_AT_ONCE {
            match self.wire.receive().now_or_never() {
                Some(envelope) => self.take(envelope?, tally)?,
                None => break,
            }
        }
        Ok(())
    }

    fn take(&mut self, envelope: Envelope<RelayFrame>, tally: &Tally) -> Result<()> {
        match Heard::from(envelope.frame?) {
            Heard::Entry(entry) => {
                // As a device does: it is nobody's before it was checked.
                let judged = judge(self.reader.log(), &entry);
                let is_new = self.reader.entry(&entry);
                if judged.is_err() {
                    self.reader.disbelieve();
                } else if is_new {
                    tally.delivered(&mut self.unsaid, entry.body.as_ref(), tally.now(), false);
                }
                Ok(())
            }
            Heard::Stubs(stubs) => {
                self.reader.stubs(&stubs);
                Ok(())
            }
            Heard::Heartbeat if envelope.request == 0 => {
                self.wire.queue(&Ping {}.into());
                Ok(())
            }
            Heard::Refused(error) => bail!("the relay refused: {}", error.failure()),
            Heard::Appended(_) | Heard::Drained | Heard::Heartbeat | Heard::Other => Ok(()),
        }
    }
}
