//! What an outbox does under its lock.

use bytes::Bytes;
use metrics::counter;
use sealwire_protocol::Head;
use sealwire_protocol::codec::encode_relay;
use sealwire_protocol::frame;

use super::subscription::State;
use super::{Inner, Queued, answer_cost};
use crate::limits::{OUTBOX_BYTES_MAX, OUTBOX_FRAMES_MAX};
use crate::meters;
use crate::metrics::BEHIND;
use crate::ports::LogKey;

impl Inner {
    pub(super) fn find(&self, key: LogKey) -> Result<usize, usize> {
        self.logs.binary_search_by_key(&key, |log| log.key)
    }

    /// The index of a log whose page with this generation is being read.
    pub(super) fn reading(&self, key: LogKey, generation: u64) -> Option<usize> {
        let index = self.find(key).ok()?;
        let subscription = self.logs[index].subscription.as_deref()?;
        (subscription.state == State::Reading && subscription.generation == generation)
            .then_some(index)
    }

    pub(super) fn push(&mut self, frame: Bytes) {
        self.enqueue(Queued { frame, answer: false });
    }

    pub(super) fn push_answer(&mut self, frame: Bytes) {
        self.answer_bytes += answer_cost(&frame);
        self.enqueue(Queued { frame, answer: true });
    }

    pub(super) fn enqueue(&mut self, queued: Queued) {
        meters::outbox_bytes().increment(queued.frame.len() as f64);
        self.queued_bytes += queued.frame.len();
        self.queue.push_back(queued);
    }

    /// Pushes a frame with an entry, and takes it from the device's window.
    pub(super) fn push_counted(&mut self, frame: Bytes) {
        if let Some(window) = &mut self.window {
            *window = window.saturating_sub(frame.len() as u64);
        }
        self.push(frame);
    }

    pub(super) fn release(&mut self, bytes: usize) {
        meters::outbox_bytes().decrement(bytes as f64);
        self.queued_bytes -= bytes;
    }

    pub(super) fn fits(&self, bytes: usize) -> bool {
        let room = self.queue.is_empty()
            || (self.queued_bytes + bytes <= OUTBOX_BYTES_MAX
                && self.queue.len() < OUTBOX_FRAMES_MAX);
        // An entry may be larger than what is left of the window, and even than all of it.
        room && self.window != Some(0)
    }

    /// Takes a live entry of a log, after the stubs before it, if it fits.
    pub(super) fn push_entry(&mut self, index: usize, frame: Bytes) -> bool {
        if !self.fits(frame.len()) {
            return false;
        }
        self.flush_stubs(index);
        self.push_counted(frame);
        if let Some(subscription) = self.logs[index].subscription.as_deref_mut() {
            subscription.next += 1;
        }
        true
    }

    /// Queues the stubs of a log that wait, in one frame.
    pub(super) fn flush_stubs(&mut self, index: usize) {
        let id = self.logs[index].id;
        if let Some(subscription) = self.logs[index].subscription.as_deref_mut()
            && let Some(frame) = subscription.take_stubs(id)
        {
            self.push(frame);
        }
    }

    /// As [`Self::flush_stubs`], for a heartbeat: a device can ask for those as often as it likes.
    pub(super) fn flush_stubs_as_answer(&mut self, index: usize) {
        let id = self.logs[index].id;
        if let Some(subscription) = self.logs[index].subscription.as_deref_mut()
            && let Some(frame) = subscription.take_stubs(id)
        {
            self.push_answer(frame);
        }
    }

    /// Marks a log as behind and gives it a place in the queue for pages.
    pub(super) fn fall_behind(&mut self, index: usize) {
        let key = self.logs[index].key;
        if let Some(subscription) = self.logs[index].subscription.as_deref_mut() {
            if subscription.state == State::Live {
                counter!(BEHIND).increment(1);
            }
            subscription.fall_behind();
            if !self.waiting.contains(&key) {
                self.waiting.push_back(key);
            }
        }
    }

    /// After a page: live and drained if it ended at the published head, behind otherwise.
    pub(super) fn arrive(&mut self, index: usize, incarnation: u64) {
        let Some(subscription) = self.logs[index].subscription.as_deref_mut() else {
            return;
        };
        let position = subscription.presence.head();
        if subscription.next != position.seq + 1 {
            // What this page gave is kept: a page of nothing but stubs must bring the reader on.
            self.flush_stubs(index);
            self.fall_behind(index);
            return;
        }
        subscription.state = State::Live;
        let log = self.logs[index].id;
        let head = Head { incarnation, seq: position.seq, chain: position.chain };
        self.flush_stubs(index);
        self.push(Bytes::from(encode_relay(0, &frame::Drained { log, head }.into())));
    }
}
