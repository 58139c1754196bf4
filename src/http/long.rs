//! Answers that are long, and whoever takes them slowly.
//!
//! A full pending page is some MiB. It is held until the phone has taken it, and a phone that takes a
//! byte a second would hold it for weeks; many of those would fill the memory. So long answers have a
//! budget, of each device and of all together, and a deadline by their length; when it is over, the
//! answer is dropped and its connection closed. What is not long stands in the kernel's buffers soon.
//!
//! Holds always: what the answers that are under way hold is bounded by [`HELD_BYTES_MAX`]; a body that
//! was cut off never looks complete, because its length was said before.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use bytes::Bytes;
use dashmap::DashMap;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use metrics::counter;
use parking_lot::Mutex;
use sealwire_actors::metrics::REQUESTS_LIMITED;
use sealwire_protocol::DeviceKey;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio::time::sleep;

use super::Api;
use super::auth::Device;
use super::error::ApiError;
use crate::gateway::Connection;

/// From which length on an answer is long, in bytes: shorter ones fit the kernel's buffers, or cost no
/// more than a connection does.
const LONG_BYTES_MIN: usize = 64 * 1024;

/// Most bytes that all long answers hold: fifty full pending pages.
const HELD_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Most bytes that the long answers of one device hold: a full pending page of each of six groups, and
/// one more. A phone has two client objects that ask for them, one group after the other.
const HELD_BYTES_OF_DEVICE_MAX: usize = 32 * 1024 * 1024;

/// How long any answer may take to be taken.
const DEADLINE: Duration = Duration::from_secs(60);

/// How much longer for each [`SLOWEST_BYTES_PER_SECOND`] of its length.
const SLOWEST_BYTES_PER_SECOND: usize = 16 * 1024;

/// What is handed on at once, in bytes: all that is held of an answer after its deadline.
const PIECE_BYTES: usize = 16 * 1024;

/// The room for long answers.
pub struct Room {
    all: Arc<Semaphore>,
    devices: Arc<DashMap<DeviceKey, usize>>,
}

impl Default for Room {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(HELD_BYTES_MAX)), devices: Arc::default() }
    }
}

impl Room {
    /// Room for so many bytes, if there is any.
    fn take(&self, device: DeviceKey, bytes: usize) -> Option<Place> {
        let permits = u32::try_from(bytes).ok()?;
        let of_all = self.all.clone().try_acquire_many_owned(permits).ok()?;
        let mut held = self.devices.entry(device).or_insert(0);
        if *held + bytes > HELD_BYTES_OF_DEVICE_MAX {
            return None;
        }
        *held += bytes;
        Some(Place { devices: self.devices.clone(), device, bytes, _of_all: of_all })
    }
}

/// A part of the room, until it is dropped.
struct Place {
    devices: Arc<DashMap<DeviceKey, usize>>,
    device: DeviceKey,
    bytes: usize,
    _of_all: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(mut held) = self.devices.get_mut(&self.device) {
            *held = held.saturating_sub(self.bytes);
        }
        self.devices.remove_if(&self.device, |_, held| *held == 0);
    }
}

/// Stands behind authentication: gives a long answer its room and its deadline.
pub(super) async fn bounded(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let connection = request.extensions().get::<Connection>().cloned();
    let answer = next.run(request).await;
    let length = answer.body().size_hint().exact().and_then(|length| usize::try_from(length).ok());
    // Streams have no length; what they hold is bounded where they are made.
    let Some(length) = length.filter(|length| *length >= LONG_BYTES_MIN) else { return Ok(answer) };
    let Some(place) = api.room.take(device, length) else {
        counter!(REQUESTS_LIMITED, "what" => "long_answers").increment(1);
        return Err(ApiError::unavailable());
    };
    let (head, body) = answer.into_parts();
    // It is whole already: nothing is waited for.
    let bytes = body.collect().await.map_err(|_| ApiError::unavailable())?.to_bytes();
    let cut = move || {
        if let Some(connection) = connection {
            connection.cut();
        }
    };
    Ok(Response::from_parts(head, Body::new(Long::new(bytes, place, cut))))
}

/// The body of a long answer.
struct Long {
    left: Arc<Mutex<Option<(Bytes, Place)>>>,
    length: u64,
    deadline: AbortHandle,
}

/// The answer was not taken in time.
#[derive(Debug, thiserror::Error)]
#[error("the answer was not taken in time")]
struct TooSlow;

impl Long {
    /// A body that is dropped at its deadline; then `cut` is called.
    fn new(bytes: Bytes, place: Place, cut: impl FnOnce() + Send + 'static) -> Self {
        let length = bytes.len();
        let left = Arc::new(Mutex::new(Some((bytes, place))));
        let held = left.clone();
        let patience = DEADLINE + Duration::from_secs((length / SLOWEST_BYTES_PER_SECOND) as u64);
        let deadline = tokio::spawn(async move {
            sleep(patience).await;
            drop(held.lock().take());
            cut();
        });
        Self { left, length: length as u64, deadline: deadline.abort_handle() }
    }
}

impl HttpBody for Long {
    type Data = Bytes;
    type Error = TooSlow;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TooSlow>>> {
        if self.length == 0 {
            return Poll::Ready(None);
        }
        let piece = {
            let mut left = self.left.lock();
            let Some((bytes, _)) = left.as_mut() else { return Poll::Ready(Some(Err(TooSlow))) };
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
            // A copy: a part of the whole would hold the whole.
            Bytes::copy_from_slice(&piece)
        };
        self.length = self.length.saturating_sub(piece.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.length == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

impl Drop for Long {
    fn drop(&mut self) {
        self.deadline.abort();
        // The task that is aborted holds it too, until it is gone.
        drop(self.left.lock().take());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use tokio::time::advance;

    use super::*;

    const DEVICE: DeviceKey = DeviceKey([1; 32]);

    fn free(room: &Room) -> (usize, usize) {
        (room.all.available_permits(), room.devices.len())
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_comes_whole_and_gives_its_room_back() {
        let room = Room::default();
        let bytes = Bytes::from((0..300_000_u32).map(|at| at as u8).collect::<Vec<u8>>());
        let place = room.take(DEVICE, bytes.len()).unwrap();
        let long = Long::new(bytes.clone(), place, || {});
        assert_eq!(long.size_hint().exact(), Some(300_000));
        assert!(long.collect().await.unwrap().to_bytes() == bytes);
        assert_eq!(free(&room), (HELD_BYTES_MAX, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_takes_is_dropped_at_its_deadline() {
        let room = Room::default();
        let place = room.take(DEVICE, 300_000).unwrap();
        let was_cut = Arc::new(AtomicBool::new(false));
        let cut = was_cut.clone();
        let cut = move || cut.store(true, Ordering::Relaxed);
        let mut long = Long::new(Bytes::from(vec![7; 300_000]), place, cut);
        let first = long.frame().await.unwrap().unwrap();
        assert_eq!(first.data_ref().map(Bytes::len), Some(PIECE_BYTES));
        tokio::task::yield_now().await;
        advance(DEADLINE).await;
        tokio::task::yield_now().await;
        assert!(!was_cut.load(Ordering::Relaxed), "it is long, and has longer");
        advance(Duration::from_secs(300_000 / SLOWEST_BYTES_PER_SECOND as u64 + 1)).await;
        tokio::task::yield_now().await;
        assert!(was_cut.load(Ordering::Relaxed));
        assert_eq!(free(&room), (HELD_BYTES_MAX, 0));
        assert!(long.frame().await.unwrap().is_err(), "it never looks complete");
    }

    #[test]
    fn one_device_cannot_take_the_room_of_all() {
        let room = Room::default();
        let half = HELD_BYTES_OF_DEVICE_MAX / 2;
        let _held = [room.take(DEVICE, half).unwrap(), room.take(DEVICE, half).unwrap()];
        assert!(room.take(DEVICE, 1).is_none());
        let mut others = Vec::new();
        for device in 2..=8 {
            others.push(room.take(DeviceKey([device; 32]), HELD_BYTES_OF_DEVICE_MAX).unwrap());
        }
        assert!(room.take(DeviceKey([9; 32]), 1).is_none(), "nor all together more than there is");
        others.pop();
        assert!(room.take(DeviceKey([9; 32]), 1).is_some());
    }
}
