//! Where the bytes that were read end: between two messages, or within one.
//!
//! The WebSocket library gives whole messages and does not say whether another one has begun. A
//! message that is begun and never finished must end, though, and a buffer must not be given back
//! while something is in it. So the heads of frames are followed here, and nothing but the heads.

/// First byte of a frame's head: whether it is the last one of its message.
const FINAL: u8 = 0x80;

/// First byte of a frame's head: its opcode, and in it the bit of control frames.
const CONTROL: u8 = 0x08;

/// Second byte of a frame's head: whether a mask follows, and the length or what stands for it.
const MASKED: u8 = 0x80;
const LENGTH: u8 = 0x7f;

/// Length of a mask, in bytes.
const MASK_BYTES: u64 = 4;

/// Longest head without its mask, in bytes (RFC 6455 §5.2).
const HEAD_BYTES_MAX: usize = 10;

/// Follows frames.
#[derive(Default)]
pub(super) struct Framing {
    head: [u8; HEAD_BYTES_MAX],
    head_bytes: u8,
    /// What is left of the mask and the payload of the frame whose head is known.
    left: u64,
    /// Whether the last fragment of a message is still to come.
    is_fragmented: bool,
    finished: u64,
    messages: u64,
    marks: u64,
}

impl Framing {
    /// Passes over bytes that were read.
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.left == 0 {
                self.add_to_head(*first);
                bytes = rest;
            } else {
                let passed = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
                self.left -= passed as u64;
                bytes = &bytes[passed..];
                if self.left == 0 {
                    self.end_frame();
                }
            }
        }
    }

    /// Whether a message or a frame is begun and not finished.
    pub(super) fn is_within(&self) -> bool {
        self.is_fragmented || self.head_bytes > 0
    }

    /// A number that stands for as long as what is begun now is the same. A ping within a message
    /// does not finish that message.
    pub(super) fn mark(&self) -> u64 {
        self.marks
    }

    /// How many messages were finished, pings and pongs among them.
    pub(super) fn finished(&self) -> u64 {
        self.finished
    }

    /// How many messages were finished, without pings and pongs.
    pub(super) fn messages(&self) -> u64 {
        self.messages
    }

    /// What is still to come of the frame whose head is known, in bytes; 0 between two frames.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    fn add_to_head(&mut self, byte: u8) {
        let index = usize::from(self.head_bytes);
        // A head is ended before it is longer than the longest.
        if let Some(place) = self.head.get_mut(index) {
            *place = byte;
        }
        self.head_bytes += 1;
        let [_, second, extended @ ..] = &self.head;
        if index == 0 {
            return;
        }
        let length = match second & LENGTH {
            126 if index == 3 => u64::from(u16::from_be_bytes([extended[0], extended[1]])),
            127 if index == 9 => u64::from_be_bytes(*extended),
            126 | 127 => return,
            short => u64::from(short),
        };
        let mask = if second & MASKED == 0 { 0 } else { MASK_BYTES };
        self.left = length.saturating_add(mask);
        if self.left == 0 {
            self.end_frame();
        }
    }

    fn end_frame(&mut self) {
        self.head_bytes = 0;
        let first = self.head[0];
        let is_control = first & CONTROL != 0;
        if !is_control {
            self.is_fragmented = first & FINAL == 0;
        }
        let is_message = !self.is_fragmented;
        self.marks += u64::from(is_message);
        self.finished += u64::from(is_message || is_control);
        self.messages += u64::from(is_message && !is_control);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A masked frame with this first byte and so much payload.
    fn frame(first: u8, payload: usize) -> Vec<u8> {
        let mut bytes = match payload {
            0..=125 => vec![first, MASKED | payload as u8],
            126..=65_535 => [&[first, MASKED | 126], &(payload as u16).to_be_bytes()[..]].concat(),
            _ => [&[first, MASKED | 127], &(payload as u64).to_be_bytes()[..]].concat(),
        };
        bytes.resize(bytes.len() + 4 + payload, 0x81);
        bytes
    }

    const BINARY: u8 = FINAL | 2;
    const PING: u8 = FINAL | 9;

    #[test]
    fn the_end_of_every_frame_is_seen_however_the_bytes_are_cut() {
        let frames = [
            frame(BINARY, 0),
            frame(BINARY, 125),
            frame(PING, 3),
            frame(BINARY, 126),
            frame(BINARY, 65_536),
        ];
        for piece in [1, 2, 3, 7, 1000, 100_000] {
            let mut framing = Framing::default();
            for (number, bytes) in (1..).zip(&frames) {
                let (last, most) = bytes.split_last().expect("not empty");
                most.chunks(piece).for_each(|chunk| framing.pass(chunk));
                assert!(framing.is_within());
                assert_eq!((framing.finished(), framing.mark()), (number - 1, number - 1));
                framing.pass(&[*last]);
                assert!(!framing.is_within());
                assert_eq!((framing.finished(), framing.mark()), (number, number));
            }
        }
    }

    #[test]
    fn a_ping_within_a_message_does_not_finish_it() {
        let mut framing = Framing::default();
        framing.pass(&frame(2, 10));
        assert!(framing.is_within());
        let begun = framing.mark();
        framing.pass(&frame(PING, 0));
        framing.pass(&frame(0, 10));
        assert!(framing.is_within());
        assert_eq!((framing.mark(), framing.finished()), (begun, 1));
        framing.pass(&frame(FINAL, 10));
        assert!(!framing.is_within());
        assert_eq!((framing.mark(), framing.finished(), framing.messages()), (begun + 1, 2, 1));
    }

    #[test]
    fn a_message_behind_another_is_another() {
        let mut framing = Framing::default();
        framing.pass(&[frame(BINARY, 5), vec![BINARY]].concat());
        assert!(framing.is_within());
        assert_eq!((framing.mark(), framing.finished()), (1, 1));
    }

    #[test]
    fn the_longest_length_that_can_be_claimed_does_not_overflow() {
        let mut framing = Framing::default();
        framing.pass(&[&[BINARY, MASKED | 127][..], &[0xff; 8]].concat());
        assert_eq!(framing.left(), u64::MAX);
        framing.pass(&[0; 100]);
        assert!(framing.is_within());
    }
}
