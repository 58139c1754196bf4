//! A request's body that is read to its end whatever becomes of the request.
//!
//! A request can be refused before its body is read: its token has expired, its group is not there. If
//! the connection were closed then, the kernel would throw away what the device has not read yet, and
//! with it the very answer that tells the app to sign the request and send it again. So what is left
//! of a body is read and dropped, within a bound and a deadline.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::timeout;

/// Most bytes that are read for nothing: several times the largest request, so that whoever sends too
/// much is still told so.
const BYTES_MAX: usize = 8 * 1024 * 1024;

/// How long that may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// See the module's header.
pub(crate) struct Drained(Option<Incoming>);

impl Drained {
    pub(crate) fn new(body: Incoming) -> Self {
        Self(Some(body))
    }
}

impl Body for Drained {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = self.0.as_mut() else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            self.0 = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        let Some(mut body) = self.0.take().filter(|body| !body.is_end_stream()) else { return };
        // A body that says that it is longer is not worth reading.
        if body.size_hint().lower() > BYTES_MAX as u64 {
            return;
        }
        tokio::spawn(timeout(DEADLINE, async move {
            let mut bytes = 0;
            while let Some(Ok(frame)) = body.frame().await {
                bytes += frame.data_ref().map_or(0, Bytes::len);
                if bytes > BYTES_MAX {
                    break;
                }
            }
        }));
    }
}
