//! The writing half of a WebSocket: shared frames, written where they lie.

use std::collections::VecDeque;
use std::io::{self, IoSlice};

use bytes::{Buf, Bytes};
use sealwire_protocol::close::CloseReason;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedWriteHalf;
use tokio_tungstenite::tungstenite::protocol::frame::FrameHeader;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Control, Data, OpCode};

/// Most frames in one system call, two slices for each; Linux takes 1,024 slices, and beyond this
/// nothing is gained.
const FRAMES_MAX: usize = 64;

/// Longest header of an unmasked frame, in bytes (RFC 6455 §5.2).
const HEADER_BYTES_MAX: usize = 10;

/// Frames on their way into the socket. Empty, it owns nothing.
pub(super) struct Writer {
    half: OwnedWriteHalf,
    frames: VecDeque<Frame>,
}

/// What is left of one frame: its header, which is this socket's, and its payload, which others may
/// be writing as well.
struct Frame {
    header: [u8; HEADER_BYTES_MAX],
    /// Where in `header` that begins and ends which is not written yet.
    begin: u8,
    end: u8,
    payload: Bytes,
}

impl Frame {
    fn new(opcode: OpCode, payload: Bytes) -> Self {
        let mut header = [0; HEADER_BYTES_MAX];
        let mut room = &mut header[..];
        let fields = FrameHeader { is_final: true, opcode, ..FrameHeader::default() };
        // The longest header fits.
        let _ = fields.format(payload.len() as u64, &mut room);
        let end = (HEADER_BYTES_MAX - room.len()) as u8;
        Self { header, begin: 0, end, payload }
    }

    /// Bytes that hold their headers already.
    fn raw(payload: Bytes) -> Self {
        Self { header: [0; HEADER_BYTES_MAX], begin: 0, end: 0, payload }
    }

    fn header(&self) -> &[u8] {
        &self.header[usize::from(self.begin)..usize::from(self.end)]
    }

    /// Takes off what was written; gives how much of it was not of this frame.
    fn advance(&mut self, written: usize) -> usize {
        let of_header = written.min(self.header().len());
        self.begin += of_header as u8;
        let of_payload = (written - of_header).min(self.payload.len());
        self.payload.advance(of_payload);
        written - of_header - of_payload
    }

    fn is_written(&self) -> bool {
        self.begin == self.end && self.payload.is_empty()
    }
}

impl Writer {
    pub(super) fn new(half: OwnedWriteHalf) -> Self {
        Self { half, frames: VecDeque::new() }
    }

    /// Queues a binary message.
    pub(super) fn queue(&mut self, payload: Bytes) {
        self.frames.push_back(Frame::new(OpCode::Data(Data::Binary), payload));
    }

    /// Queues a close frame with the reason's code and name.
    pub(super) fn queue_close(&mut self, reason: CloseReason) {
        let mut payload = reason.code().to_be_bytes().to_vec();
        payload.extend_from_slice(reason.name().as_bytes());
        let frame = Frame::new(OpCode::Control(Control::Close), Bytes::from(payload));
        self.frames.push_back(frame);
    }

    /// Queues whole frames that are encoded already: tungstenite's pongs and close replies.
    pub(super) fn queue_raw(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.frames.push_back(Frame::raw(bytes));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Writes everything that is queued. Dropping the future loses nothing: what was written has
    /// been taken off the queue.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        while !self.frames.is_empty() {
            self.half.writable().await?;
            match self.half.try_write_vectored(&slices(&self.frames)) {
                Ok(written) => self.advance(written),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        // An idle session keeps no queue: thousands of them are idle.
        self.frames.shrink_to(0);
        Ok(())
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(frame) = self.frames.front_mut() {
            written = frame.advance(written);
            if !frame.is_written() {
                return;
            }
            self.frames.pop_front();
        }
    }

    /// Ends the writing direction of the connection.
    pub(super) async fn finish(&mut self) {
        // The peer may have gone already; there is nothing more to say to it.
        let _ = self.half.shutdown().await;
    }
}

/// Header and payload of the first frames, where they lie.
fn slices(frames: &VecDeque<Frame>) -> Vec<IoSlice<'_>> {
    let mut slices = Vec::with_capacity(2 * frames.len().min(FRAMES_MAX));
    for frame in frames.iter().take(FRAMES_MAX) {
        for part in [frame.header(), &frame.payload[..]] {
            if !part.is_empty() {
                slices.push(IoSlice::new(part));
            }
        }
    }
    slices
}
