//! One WebSocket: bytes in, frames out.
//!
//! The loop here decides nothing. It reads messages and hands them to the [`Session`], and writes
//! what the session's outbox holds. tungstenite reads: framing, masks, fragments, pings. Writing goes
//! past it: a frame of an entry is encoded once and shared by every session, so it is written from
//! where it lies, many frames to a system call, rather than copied into a buffer of each socket that
//! would keep the size of the largest frame it ever held.
//!
//! A slow reader stops its own outbox and nothing else: while the socket takes no bytes the loop goes
//! on reading, and what does not fit in the outbox is read from the store later.

mod framing;
mod reader;
mod writer;

use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use metrics::counter;
use sealwire_actors::metrics::{AuthFailure, CONNECTIONS_REFUSED, SESSIONS_ENDED};
use sealwire_actors::{Greeter, Outbox, Rejected, Session, Step, System};
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::limits::{AUTHENTICATION_DEADLINE, UNAUTHENTICATED_FRAME_BYTES_MAX};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep, timeout};

use reader::{Heard, Reader};
use writer::Writer;

/// Most frames that are taken from the outbox at once: what one system call can write.
const FRAMES_PER_WRITE: usize = 64;

/// Most bytes that are taken from the outbox at once, but for the last frame: what is taken has left
/// the outbox's bound, so it must be little.
const BYTES_PER_WRITE: usize = 256 * 1024;

/// How long a socket that is being closed may take to swallow what is queued and say goodbye.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// Greets a connection that was upgraded, and serves it from a task of its own once its device is
/// known. `admission` holds the connection's place among the unauthenticated ones and is dropped
/// then; `slot` is held for as long as the socket is.
pub(crate) async fn serve<A, S: Send + 'static>(
    stream: TcpStream,
    leftover: Bytes,
    system: Arc<System>,
    admission: A,
    slot: S,
) {
    let (read, write) = stream.into_split();
    let mut writer = Writer::new(write);
    let mut reader = Reader::new(read, leftover, UNAUTHENTICATED_FRAME_BYTES_MAX).await;
    // As with a session: a panic costs this connection, which is told whose fault it is.
    let greeted = AssertUnwindSafe(authenticate(&mut reader, &mut writer, &system)).catch_unwind();
    let authenticated = greeted.await.unwrap_or_else(|_| {
        tracing::error!("greeting a connection panicked");
        Err(Some(CloseReason::Internal))
    });
    drop(admission);
    match authenticated {
        Ok(session) => {
            reader.allow_all();
            let served = Served {
                outbox: session.outbox().clone(),
                session,
                reader,
                writer,
                pending: None,
                taken: Vec::new(),
                last_words: None,
            };
            // Greeting and proof need a large future for a short time. The session gets a task that
            // holds little more than where its parts lie: thousands of them are idle.
            tokio::spawn(run(Box::new(served), slot));
        }
        Err(reason) => {
            counter!(CONNECTIONS_REFUSED, "reason" => reason.map_or("gone", CloseReason::name))
                .increment(1);
            if let Some(reason) = reason {
                close(&mut writer, &mut reader, reason).await;
            }
        }
    }
}

/// Greets, and waits for the proof. No reason means that the peer has gone.
async fn authenticate(
    reader: &mut Reader,
    writer: &mut Writer,
    system: &System,
) -> Result<Session, Option<CloseReason>> {
    let greeter = Greeter::new(system).ok_or(Some(CloseReason::Internal))?;
    writer.queue(greeter.greeting());
    let first = async {
        writer.flush().await.map_err(|_| None)?;
        loop {
            match reader.next().await {
                Heard::Message(bytes) => return Ok(bytes),
                Heard::Control => {
                    writer.queue_raw(reader.take_replies());
                    writer.flush().await.map_err(|_| None)?;
                }
                Heard::Bad(reason) => return Err(Some(reason)),
                Heard::Gone => return Err(None),
            }
        }
    };
    let bytes = timeout(AUTHENTICATION_DEADLINE, first).await.unwrap_or_else(|_| {
        AuthFailure::Timeout.count();
        Err(Some(CloseReason::AuthenticationTimeout))
    })?;
    greeter.authenticate(&bytes).await.map_err(|Rejected { frame, reason }| {
        writer.queue(frame);
        Some(reason)
    })
}

/// Counts how a session ended.
fn count_ended(reason: Option<CloseReason>) {
    counter!(SESSIONS_ENDED, "reason" => reason.map_or("device", CloseReason::name)).increment(1);
}

/// What the task of a session works with. In a box of its own: a future keeps what it is given
/// twice, once as it came and once where it is used.
struct Served {
    session: Session,
    outbox: Arc<Outbox>,
    reader: Reader,
    writer: Writer,
    /// A request that asks the store and holds back those behind it.
    pending: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// Frames between the outbox and the writer.
    taken: Vec<Bytes>,
    /// Runs once the session is closing.
    last_words: Option<Pin<Box<Sleep>>>,
}

/// How long to go on.
enum Turn {
    Again,
    End(Option<CloseReason>),
}

/// Serves a session to its end. A panic costs this session and no other: everything that it holds is
/// let go as at any other end, and its device is told that the fault is the relay's.
async fn run<S>(mut served: Box<Served>, slot: S) {
    let reason = loop {
        // Nothing that was under way is gone on with after a panic, so nothing half done is looked at.
        match AssertUnwindSafe(served.turn()).catch_unwind().await {
            Ok(Turn::Again) => {}
            Ok(Turn::End(reason)) => break reason,
            Err(_) => {
                tracing::error!("a session panicked");
                break Some(CloseReason::Internal);
            }
        }
    };
    count_ended(reason);
    // In a box, because it is large and happens once.
    Box::pin(served.end(reason)).await;
    drop(slot);
}

impl Served {
    /// Moves what is ready from the outbox to the socket, and waits for the next thing to happen.
    async fn turn(&mut self) -> Turn {
        self.refill();
        if let Some(reason) = self.outbox.closing() {
            if self.writer.is_empty() {
                return Turn::End(Some(reason));
            }
            // What is queued goes out first, if the peer takes it in time.
            self.last_words.get_or_insert_with(|| Box::pin(sleep(CLOSE_DEADLINE)));
        }
        // A device that asks and does not listen is heard no further: its requests wait in its own
        // socket.
        let listening = self.pending.is_none() && !self.outbox.answers_are_full();
        let mut heard = None;
        tokio::select! {
            written = self.writer.flush(), if !self.writer.is_empty() => {
                if written.is_err() {
                    return Turn::End(None);
                }
            }
            // A request that asks the store holds back those behind it, so that order is kept.
            next = self.reader.next(), if listening => heard = Some(next),
            () = finish(&mut self.pending), if self.pending.is_some() => self.pending = None,
            () = finish(&mut self.last_words), if self.last_words.is_some() => {
                return Turn::End(self.outbox.closing());
            }
            () = self.outbox.woken() => {}
        }
        match heard {
            None => {}
            Some(Heard::Message(bytes)) => {
                self.receive(&bytes);
                drop(bytes);
                self.reader.shed().await;
            }
            Some(Heard::Control) => self.session.heard(),
            Some(Heard::Bad(reason)) => self.outbox.close(reason),
            Some(Heard::Gone) => return Turn::End(None),
        }
        match self.outbox.closing() {
            Some(reason) if self.reader.is_over() => Turn::End(Some(reason)),
            _ => Turn::Again,
        }
    }

    /// Fills the writer from the outbox, if it has written everything.
    fn refill(&mut self) {
        if !self.writer.is_empty() {
            return;
        }
        // Only now: pongs that wait for the writer are bounded where they wait.
        self.writer.queue_raw(self.reader.take_replies());
        self.outbox.take(FRAMES_PER_WRITE, BYTES_PER_WRITE, &mut self.taken);
        for frame in self.taken.drain(..) {
            self.writer.queue(frame);
        }
        self.session.writing(!self.writer.is_empty());
        self.session.catch_up();
        if self.writer.is_empty() {
            self.taken = Vec::new();
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        match self.session.receive(bytes) {
            Step::Done => {}
            Step::Later(work) => self.pending = Some(work),
            Step::Close(reason) => self.outbox.close(reason),
        }
    }

    /// Ends the session, then says goodbye to its socket. No reason means that the peer has gone, or
    /// closes: it gets the reply to its close frame.
    async fn end(self, reason: Option<CloseReason>) {
        let Self { session, outbox, mut reader, mut writer, mut taken, .. } = self;
        drop(session);
        let Some(reason) = reason else {
            writer.queue_raw(reader.take_replies());
            let _ = timeout(CLOSE_DEADLINE, writer.flush()).await;
            return;
        };
        // What was queued before the reason goes out first, as far as the peer takes it.
        outbox.take(usize::MAX, usize::MAX, &mut taken);
        for frame in taken.drain(..) {
            writer.queue(frame);
        }
        close(&mut writer, &mut reader, reason).await;
    }
}

/// Waits for work that is under way; dropping the wait leaves it under way.
async fn finish<F: Future<Output = ()> + ?Sized>(pending: &mut Option<Pin<Box<F>>>) {
    if let Some(work) = pending {
        work.await;
    }
}

/// Says goodbye: writes the close frame, and reads until the peer has gone, so that the kernel does
/// not throw away what the peer has not read yet.
async fn close(writer: &mut Writer, reader: &mut Reader, reason: CloseReason) {
    let goodbye = async {
        writer.queue_close(reason);
        if writer.flush().await.is_ok() {
            writer.finish().await;
            reader.discard().await;
        }
    };
    let _ = timeout(CLOSE_DEADLINE, goodbye).await;
}
