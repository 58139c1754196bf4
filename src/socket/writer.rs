//! The writing half of a WebSocket: shared frames, written where they lie.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes};
use sealwire_protocol::close::CloseReason;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Most slices in one system call; Linux takes 1,024, and beyond this nothing is gained.
const SLICES_MAX: usize = 128;

/// Longest header of an unmasked frame, in bytes (RFC 6455 §5.2).
const HEADER_BYTES_MAX: usize = 10;

/// Frames on their way into the socket. Empty, it owns nothing.
pub(super) struct Writer {
    half: OwnedWriteHalf,
    chunks: VecDeque<Bytes>,
}

impl Writer {
    pub(super) fn new(half: OwnedWriteHalf) -> Self {
        Self { half, chunks: VecDeque::new() }
    }

    /// Queues a binary message.
    pub(super) fn queue(&mut self, payload: Bytes) {
        self.queue_frame(OpCode::Data(Data::Binary), payload);
    }

    /// Queues a close frame with the reason's code and name.
    pub(super) fn queue_close(&mut self, reason: CloseReason) {
        let mut payload = reason.code().to_be_bytes().to_vec();
        payload.extend_from_slice(reason.name().as_bytes());
        self.queue_frame(OpCode::Control(Control::Close), Bytes::from(payload));
    }

    /// Queues whole frames that are encoded already: tungstenite's pongs and close replies.
    pub(super) fn queue_raw(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.chunks.push_back(bytes);
        }
    }

    fn queue_frame(&mut self, opcode: OpCode, payload: Bytes) {
        let header = FrameHeader { is_final: true, opcode, ..FrameHeader::default() };
        let mut bytes = Vec::with_capacity(HEADER_BYTES_MAX);
        // Writing to a Vec cannot fail.
        let _ = header.format(payload.len() as u64, &mut bytes);
        self.chunks.push_back(Bytes::from(bytes));
        if !payload.is_empty() {
            self.chunks.push_back(payload);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Writes everything that is queued. Dropping the future loses nothing: what was written has
    /// been taken off the queue.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        while !self.chunks.is_empty() {
            self.half.writable().await?;
            let slices: Vec<IoSlice<'_>> =
                self.chunks.iter().take(SLICES_MAX).map(|chunk| IoSlice::new(chunk)).collect();
            match self.half.try_write_vectored(&slices) {
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        // An idle session keeps no queue: thousands of them are idle.
        self.chunks.shrink_to(0);
        Ok(())
    }

    fn advance(&mut self, mut written: usize) {
        while written > 0 {
            let Some(chunk) = self.chunks.front_mut() else {
                return;
            };
            if written < chunk.len() {
                chunk.advance(written);
                return;
            }
            written -= chunk.len();
            self.chunks.pop_front();
        }
    }

    /// Ends the writing direction of the connection.
    pub(super) async fn finish(&mut self) {
        // The peer may have gone already; there is nothing more to say to it.
        let _ = self.half.shutdown().await;
    }
}
