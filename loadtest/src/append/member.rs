//! One connected member of a run: it sends, or receives, or both.
//!
//! It reads everything that has come before it writes anything, and writes all that it has to say at
//! once: what is counted should be the relay's system calls, not this program's.
//!
//! A refusal that asks for patience is answered by patience: when all that is under way has been
//! answered, the refused entries are sent again, byte for byte and in order. Any other refusal ends
//! the run: a relay under load has to stay polite.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use bytes::{BufMut, Bytes, BytesMut};
use futures_util::FutureExt;
use sealwire_client::identity::Identity;
use sealwire_client::wire::Wire;
use sealwire_protocol::ack::AckWire;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::codec::Envelope;
use sealwire_protocol::frame::{Ack, AckState, Append, Appended, Error, Ping};
use sealwire_protocol::{EntryIn, ErrorCode, Head, RelayFrame};
use tokio::sync::{mpsc, watch};
use tokio::time::{Duration, Instant, sleep_until, timeout_at};

use super::absence::Absence;
use super::setup::Seat;
use super::{Arguments, Rate};
use crate::crowd::Crowd;
use crate::group::{Author, random_body};
use crate::hear::Heard;
use crate::limits::DRAIN_DEADLINE;
use crate::pace::TICKS_MAX;
use crate::reader::{Faults, Reader};
use crate::tally::{STAMP_BYTES, Tally, Unsaid};

/// Frames that are read before anything is written.
const FRAMES_AT_ONCE: usize = 256;

/// What everybody is doing.
#[derive(Clone)]
pub(super) enum Phase {
    /// Senders send. Who sees the number of cuts rise loses its connection.
    Run { cuts: u32 },
    /// Senders wait for their answers.
    Drain,
    /// Receivers read up to the head of their group, and end.
    Finish(Arc<Vec<Head>>),
}

/// What a member has read.
#[derive(Default)]
pub(super) struct Done {
    pub(super) faults: Faults,
    pub(super) delivered: u64,
}

pub(super) struct Member {
    group: usize,
    pub(super) device: Identity,
    pub(super) crowd: Arc<Crowd>,
    pub(super) wire: Wire,
    pub(super) incarnation: u64,
    pub(super) sender: Option<Sender>,
    pub(super) reader: Option<Reader>,
    ack_every: u64,
    /// Entries that were read and not acked.
    unacked: u64,
    pub(super) tally: Arc<Tally>,
    unsaid: Unsaid,
    phase: watch::Receiver<Phase>,
    pub(super) absence: Absence,
    /// Whether it reads slowly on purpose.
    is_slow: bool,
    /// How long it rests after each frame, as long as it does so, and when it reads again.
    slow: Option<(Duration, Instant)>,
}

pub(super) struct Sender {
    author: Author,
    /// What every body ends with.
    filler: Bytes,
    in_flight_max: usize,
    /// Sent and not answered as durable, in order.
    pub(super) in_flight: VecDeque<Flight>,
    /// Of those, how many have not been answered at all.
    pub(super) unanswered: usize,
    /// When what was refused may be sent again.
    pub(super) again: Option<Instant>,
    /// When entries are due; none if one is always due.
    ticks: Option<mpsc::Receiver<u64>>,
    answered: Answered,
}

/// What a sender was told.
#[derive(Clone, Copy)]
pub(super) struct Answered {
    /// The newest head that an answer has named.
    pub(super) head: Head,
    /// How many entries were answered as durable.
    pub(super) entries: u64,
}

impl Answered {
    pub(super) const NOTHING: Self = Self { head: Head::NONE, entries: 0 };
}

/// What all members share.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) crowd: Arc<Crowd>,
    pub(super) tally: Arc<Tally>,
    pub(super) phase: watch::Receiver<Phase>,
}

pub(super) struct Flight {
    request: u32,
    due: u64,
    entry: EntryIn,
}

impl Member {
    /// A member, and where it is to be told what is due.
    pub(super) fn new(
        arguments: &Arguments,
        rate: Rate,
        group: usize,
        seat: Seat,
        shared: Shared,
    ) -> Result<(Self, Option<mpsc::Sender<u64>>)> {
        let mut tick_sender = None;
        let mut sender = None;
        if let Some(author) = seat.author {
            let ticks = rate.per_second().map(|_| {
                let (sender, ticks) = mpsc::channel(TICKS_MAX);
                tick_sender = Some(sender);
                ticks
            });
            sender = Some(Sender {
                author,
                filler: Bytes::from(random_body(arguments.body - STAMP_BYTES)?),
                in_flight_max: arguments.in_flight,
                in_flight: VecDeque::with_capacity(arguments.in_flight),
                unanswered: 0,
                again: None,
                ticks,
                answered: Answered::NOTHING,
            });
        }
        let Shared { crowd, tally, phase } = shared;
        let slow = Duration::from_millis(arguments.slow_pause_ms);
        let member = Self {
            group,
            device: seat.device,
            crowd,
            wire: seat.wire,
            incarnation: seat.incarnation,
            sender,
            reader: seat.reader,
            ack_every: arguments.ack_every,
            unacked: 0,
            tally,
            unsaid: Unsaid::default(),
            phase,
            absence: Absence::new(arguments, seat.number),
            is_slow: seat.is_slow,
            slow: seat.is_slow.then(|| (slow, Instant::now())),
        };
        Ok((member, tick_sender))
    }

    /// Takes part in the run until it is over.
    pub(super) async fn run(mut self, done: mpsc::Sender<(usize, Answered)>) -> Result<Done> {
        while matches!(*self.phase.borrow(), Phase::Run { .. }) {
            self.fill();
            self.step(true).await?;
        }
        while self.sender.as_ref().is_some_and(|sender| !sender.in_flight.is_empty()) {
            self.step(false).await?;
        }
        if let Some(mut sender) = self.sender.take() {
            if let Some(ticks) = &mut sender.ticks {
                // What is not told any more is counted by whoever tells.
                ticks.close();
                while let Some(due) = ticks.recv().await {
                    self.tally.never_sent(due);
                }
            }
            // The run has failed if nobody listens.
            let _ = done.send((self.group, sender.answered)).await;
        }
        drop(done);
        self.finish().await
    }

    /// Does one thing, and comes back if the connection is lost where that is part of the run.
    async fn step(&mut self, may_send: bool) -> Result<()> {
        let is_cut = match &*self.phase.borrow() {
            Phase::Run { cuts } => self.absence.is_cut(*cuts),
            Phase::Drain | Phase::Finish(_) => false,
        };
        if is_cut {
            Box::pin(self.come_back()).await?;
        }
        match self.read_or_send(may_send).await {
            Err(error) if self.absence.is_expected(&error) => Box::pin(self.come_back()).await?,
            done => done?,
        }
        self.tally.add(&mut self.unsaid);
        Ok(())
    }

    /// Reads what has come, or sends what is due, or waits.
    async fn read_or_send(&mut self, may_send: bool) -> Result<()> {
        let may_send = may_send && self.sender.as_ref().is_some_and(Sender::has_room);
        let again = self.sender.as_ref().and_then(|sender| sender.again);
        let ticks = self.sender.as_mut().and_then(|sender| sender.ticks.as_mut());
        let rests_until = self.slow.map(|(_, until)| until).filter(|until| *until > Instant::now());
        let leaves = self.absence.leaves_at();
        tokio::select! {
            biased;
            envelope = self.wire.receive(), if rests_until.is_none() => {
                self.take(envelope?)?;
                self.take_ready()?;
            }
            Some(due) = next_tick(ticks), if may_send => self.send(due),
            () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                self.send_again();
            }
            () = sleep_until(rests_until.unwrap_or_else(Instant::now)), if rests_until.is_some() => {}
            () = sleep_until(leaves.unwrap_or_else(Instant::now)), if leaves.is_some() => {
                Box::pin(self.come_back()).await?;
            }
            changed = self.phase.changed() => changed.context("the run has ended")?,
        }
        Ok(())
    }

    /// Takes what has come already.
    fn take_ready(&mut self) -> Result<()> {
        if let Some((pause, until)) = &mut self.slow {
            *until = Instant::now() + *pause;
            return Ok(());
        }
        for _ in 1..FRAMES_AT_ONCE {
            match self.wire.receive().now_or_never() {
                Some(envelope) => self.take(envelope?)?,
                None => break,
            }
        }
        Ok(())
    }

    fn take(&mut self, envelope: Envelope<RelayFrame>) -> Result<()> {
        match Heard::from(envelope.frame?) {
            Heard::Appended(appended) => self.take_appended(envelope.request, &appended),
            Heard::Refused(error) => self.take_refusal(envelope.request, &error),
            Heard::Entry(entry) => {
                let now = self.tally.now();
                if let Some(reader) = &mut self.reader
                    && reader.entry(&entry)
                {
                    let body = entry.body.as_ref();
                    self.tally.delivered(&mut self.unsaid, body, now, self.is_slow);
                    self.unacked += 1;
                    self.ack();
                }
                Ok(())
            }
            Heard::Stubs(stubs) => {
                if let Some(reader) = &mut self.reader {
                    reader.stubs(&stubs);
                }
                Ok(())
            }
            // A sign of life for a sign of life.
            Heard::Heartbeat if envelope.request == 0 => {
                self.wire.queue(&Ping {}.into());
                Ok(())
            }
            Heard::Drained => {
                self.is_back();
                Ok(())
            }
            Heard::Heartbeat | Heard::Other => Ok(()),
        }
    }

    fn take_appended(&mut self, request: u32, appended: &Appended) -> Result<()> {
        let now = self.tally.now();
        let sender = self.sender.as_mut().context("an answer to nothing")?;
        let found = sender.in_flight.iter().position(|flight| flight.request == request);
        let flight = found.and_then(|index| sender.in_flight.remove(index));
        let flight = flight.context("an answer to nothing")?;
        sender.unanswered -= 1;
        sender.answered.entries += 1;
        if appended.head.seq > sender.answered.head.seq {
            sender.answered.head = appended.head;
        }
        self.tally.appended(&mut self.unsaid, flight.due, now);
        Ok(())
    }

    /// A refusal that says that waiting helps, or one that follows from such a one, is waited out.
    fn take_refusal(&mut self, request: u32, error: &Error) -> Result<()> {
        let refusal = error.failure();
        let sender = self
            .sender
            .as_mut()
            .filter(|sender| sender.in_flight.iter().any(|flight| flight.request == request));
        let follows = refusal.code == ErrorCode::OutOfOrder;
        let Some(sender) = sender.filter(|_| follows || refusal.retry_after_ms.is_some()) else {
            bail!("the relay refused: {refusal}");
        };
        self.tally.refused();
        sender.unanswered -= 1;
        let wait = Duration::from_millis(refusal.retry_after_ms.unwrap_or_default());
        let again = Instant::now() + wait;
        sender.again = Some(sender.again.map_or(again, |before| before.max(again)));
        Ok(())
    }

    /// Without due times, something is always due.
    fn fill(&mut self) {
        while self.sender.as_ref().is_some_and(|sender| sender.ticks.is_none() && sender.has_room())
        {
            self.send(self.tally.now());
        }
    }

    fn send(&mut self, due: u64) {
        let Some(sender) = &mut self.sender else {
            return;
        };
        let mut body = BytesMut::with_capacity(STAMP_BYTES + sender.filler.len());
        body.put_u64(due);
        body.put_slice(&sender.filler);
        let entry = sender.author.write(body.freeze());
        let request = self.wire.queue(&Append { entry: entry.clone() }.into());
        sender.in_flight.push_back(Flight { request, due, entry });
        sender.unanswered += 1;
    }

    /// Sends what was refused, as it was, once nothing that was sent before is unanswered.
    fn send_again(&mut self) {
        let Some(sender) = &mut self.sender else {
            return;
        };
        if sender.unanswered > 0 {
            // The answers come; until then there is nothing to do.
            sender.again = Some(Instant::now() + Duration::from_millis(1));
            return;
        }
        self.resend();
    }

    /// Sends everything again that has no answer, as it was.
    pub(super) fn resend(&mut self) {
        let Some(sender) = &mut self.sender else {
            return;
        };
        sender.again = None;
        for flight in &mut sender.in_flight {
            flight.request = self.wire.queue(&Append { entry: flight.entry.clone() }.into());
        }
        sender.unanswered = sender.in_flight.len();
    }

    /// Acks what was read, if it is enough.
    fn ack(&mut self) {
        if self.ack_every == 0 || self.unacked < self.ack_every {
            return;
        }
        self.unacked = 0;
        if let Some(reader) = &self.reader {
            let acked = AckWire { floor: reader.seq(), ranges: Bounded::default() };
            let state = AckState { incarnation: self.incarnation, acked };
            self.wire.queue(&Ack { log: reader.log(), state }.into());
        }
    }

    /// Reads up to the head of the group, which is known when all have their answers.
    async fn finish(mut self) -> Result<Done> {
        let heads = loop {
            if let Phase::Finish(heads) = &*self.phase.borrow_and_update() {
                break heads.clone();
            }
            self.step(false).await?;
        };
        let head = heads[self.group];
        self.slow = None;
        self.absence.ends();
        // The sender's own entries come as stubs, and stubs wait for something to come along with.
        self.wire.queue(&Ping {}.into());
        let deadline = Instant::now() + DRAIN_DEADLINE;
        while self.reader.as_ref().is_some_and(|reader| reader.seq() < head.seq) {
            match timeout_at(deadline, self.step(false)).await {
                Ok(step) => step?,
                // What is missing is counted.
                Err(_) => break,
            }
        }
        Ok(self.reader.map_or_else(Done::default, |reader| Done {
            delivered: reader.delivered,
            faults: reader.conclude(head),
        }))
    }
}

impl Sender {
    fn has_room(&self) -> bool {
        self.again.is_none() && self.in_flight.len() < self.in_flight_max
    }
}

/// The next due time; never, where entries are not due at times.
async fn next_tick(ticks: Option<&mut mpsc::Receiver<u64>>) -> Option<u64> {
    match ticks {
        Some(ticks) => ticks.recv().await,
        None => std::future::pending().await,
    }
}
