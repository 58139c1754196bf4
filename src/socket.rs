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

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use metrics::counter;
use sealwire_actors::metrics::{CONNECTIONS_REFUSED, SESSIONS_ENDED};
use sealwire_actors::{Greeter, Rejected, Session, Step, System};
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

/// Serves an upgraded connection until it ends. `admission` holds the connection's place among the
/// unauthenticated ones and is dropped when the device is known.
pub(crate) async fn serve<A>(
    stream: TcpStream,
    leftover: Bytes,
    system: Arc<System>,
    admission: A,
) {
    let (read, write) = stream.into_split();
    let mut writer = Writer::new(write);
    // The future of the handshake is large and short-lived: it must not stay in the session's task.
    let opened = Box::pin(async {
        let mut reader = Reader::new(read, leftover, UNAUTHENTICATED_FRAME_BYTES_MAX).await;
        match authenticate(&mut reader, &mut writer, &system).await {
            Ok(session) => Ok((session, reader)),
            Err(reason) => Err((reason, reader)),
        }
    })
    .await;
    drop(admission);
    match opened {
        Ok((session, mut reader)) => {
            reader.allow_all();
            let ending = Ending(None);
            run(session, reader, writer, ending).await;
        }
        Err((reason, reader)) => {
            counter!(CONNECTIONS_REFUSED, "reason" => reason.map_or("gone", CloseReason::name))
                .increment(1);
            if let Some(reason) = reason {
                close(&mut writer, reader, reason).await;
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
    let bytes = timeout(AUTHENTICATION_DEADLINE, first)
        .await
        .unwrap_or(Err(Some(CloseReason::AuthenticationTimeout)))?;
    greeter.authenticate(&bytes).await.map_err(|Rejected { frame, reason }| {
        writer.queue(frame);
        Some(reason)
    })
}

/// Counts how a session ended, even if it panicked: that costs this session and no other.
struct Ending(Option<CloseReason>);

impl Drop for Ending {
    fn drop(&mut self) {
        let reason = if std::thread::panicking() {
            tracing::error!("a session panicked");
            CloseReason::Internal.name()
        } else {
            self.0.map_or("device", CloseReason::name)
        };
        counter!(SESSIONS_ENDED, "reason" => reason).increment(1);
    }
}

async fn run(session: Session, mut reader: Reader, mut writer: Writer, mut ending: Ending) {
    let outbox = session.outbox().clone();
    let mut pending = None;
    let mut taken = Vec::new();
    let mut last_words: Option<Pin<Box<Sleep>>> = None;
    let reason = loop {
        if writer.is_empty() {
            // Only now: pongs that wait for the writer are bounded where they wait.
            writer.queue_raw(reader.take_replies());
            outbox.take(FRAMES_PER_WRITE, BYTES_PER_WRITE, &mut taken);
            for frame in taken.drain(..) {
                writer.queue(frame);
            }
            session.writing(!writer.is_empty());
            session.catch_up();
        }
        if let Some(reason) = outbox.closing() {
            if writer.is_empty() {
                break Some(reason);
            }
            // What is queued goes out first, if the peer takes it in time.
            last_words.get_or_insert_with(|| Box::pin(sleep(CLOSE_DEADLINE)));
        }
        if writer.is_empty() {
            taken = Vec::new();
        }
        // A device that asks and does not listen is heard no further: its requests wait in its own
        // socket.
        let listening = pending.is_none() && !outbox.answers_are_full();
        tokio::select! {
            written = writer.flush(), if !writer.is_empty() => {
                if written.is_err() {
                    break None;
                }
            }
            // A request that asks the store holds back those behind it, so that order is kept.
            heard = reader.next(), if listening => match heard {
                Heard::Message(bytes) => {
                    let step = session.receive(&bytes);
                    drop(bytes);
                    reader.shed().await;
                    match step {
                        Step::Done => {}
                        Step::Later(work) => pending = Some(work),
                        Step::Close(reason) => outbox.close(reason),
                    }
                }
                Heard::Control => session.heard(),
                Heard::Bad(reason) => outbox.close(reason),
                Heard::Gone => {
                    writer.queue_raw(reader.take_replies());
                    let _ = timeout(CLOSE_DEADLINE, writer.flush()).await;
                    break None;
                }
            },
            () = finish(&mut pending), if pending.is_some() => pending = None,
            () = finish(&mut last_words), if last_words.is_some() => break outbox.closing(),
            () = outbox.woken() => {}
        }
        if reader.is_over()
            && let Some(reason) = outbox.closing()
        {
            break Some(reason);
        }
    };
    ending.0 = reason;
    drop(session);
    if let Some(reason) = reason {
        // What was queued before the reason goes out first, as far as the peer takes it.
        outbox.take(usize::MAX, usize::MAX, &mut taken);
        for frame in taken.drain(..) {
            writer.queue(frame);
        }
        close(&mut writer, reader, reason).await;
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
async fn close(writer: &mut Writer, mut reader: Reader, reason: CloseReason) {
    let goodbye = async {
        writer.queue_close(reason);
        if writer.flush().await.is_ok() {
            writer.finish().await;
            reader.discard().await;
        }
    };
    let _ = timeout(CLOSE_DEADLINE, goodbye).await;
}
