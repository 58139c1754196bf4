//! Listening to a device.
//!
//! Stored events are read from the device's file, in pages, by each listener for itself: a slow one
//! costs a place in the file and no memory. Events of the connection come as they happen; of those a
//! slow listener may miss some.

use std::collections::VecDeque;
use std::sync::Arc;

use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, watch};

use super::shared::Shared;
use crate::error::Error;
use crate::event::Event;
use crate::store::inbox;

/// Events that are read at a time.
const PAGE: usize = 128;

/// The events of a device, from some moment on.
pub struct Events {
    shared: Arc<Shared>,
    /// The newest event that was read from the file.
    after: i64,
    page: VecDeque<Event>,
    /// An event of a connection, which is told after what was stored before it.
    waiting: Option<Event>,
    stored: watch::Receiver<u64>,
    live: broadcast::Receiver<Event>,
    seen_others: Option<i64>,
}

impl Events {
    pub(crate) async fn begin(shared: Arc<Shared>) -> Result<Self, Error> {
        let (stored, live) = (shared.stored(), shared.live());
        let after = shared.read(inbox::newest_event).await?;
        Ok(Self {
            shared,
            after,
            page: VecDeque::new(),
            waiting: None,
            stored,
            live,
            seen_others: None,
        })
    }

    /// The next event. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Store`] if the device's file cannot be read.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.page.pop_front() {
                return Ok(event);
            }
            self.stored.mark_unchanged();
            let after = self.after;
            let page = self.shared.read(move |db| inbox::events_after(db, after, PAGE)).await?;
            if let Some(last) = page.last() {
                self.after = last.id;
                self.page = page.into_iter().map(|told| told.event).collect();
                continue;
            }
            if let Some(event) = self.waiting.take() {
                return Ok(event);
            }
            tokio::select! {
                biased;
                live = self.live.recv() => match live {
                    Ok(event) => self.waiting = Some(event),
                    // What was missed spoke of a connection that has changed since.
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Err(Error::Stopped),
                },
                _ = self.stored.changed() => {}
                changed = self.shared.others_changed(&mut self.seen_others) => changed?,
            }
        }
    }
}
