//! The loop that accepts, and the slots that bound how many connections there are.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge};
use sealwire_actors::metrics::{ACCEPT_FAILURES, CONNECTIONS, CONNECTIONS_REFUSED};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tracing::warn;

/// First pause after a failure that is ours; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(20);

/// Longest pause: somebody is waiting in the backlog.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Shortest time between two warnings about the same trouble.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// `EMFILE`: the process has no file descriptor left. `std` has no name for it.
const EMFILE: i32 = 24;

/// `ENFILE`: the machine has none left.
const ENFILE: i32 = 23;

/// The places for connections, shared by all who accept. Cheap to clone.
#[derive(Clone)]
pub struct Slots {
    places: Arc<Semaphore>,
    counted: bool,
}

impl Slots {
    /// So many places for devices; those taken are counted in the metrics.
    #[must_use]
    pub fn new(max: usize) -> Self {
        let places = Arc::new(Semaphore::new(max.min(Semaphore::MAX_PERMITS)));
        Self { places, counted: true }
    }

    /// So many places for the operator, who does not count himself.
    #[must_use]
    pub fn uncounted(max: usize) -> Self {
        Self { counted: false, ..Self::new(max) }
    }

    /// A place, if one is free.
    #[must_use]
    pub fn take(&self) -> Option<Slot> {
        let place = Arc::clone(&self.places).try_acquire_owned().ok()?;
        if self.counted {
            gauge!(CONNECTIONS).increment(1.0);
        }
        Some(Slot { _place: place, counted: self.counted })
    }
}

/// A connection's place. Dropping it frees the place, however the connection ends.
pub struct Slot {
    _place: OwnedSemaphorePermit,
    counted: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.counted {
            gauge!(CONNECTIONS).decrement(1.0);
        }
    }
}

/// A connection that has just come in. It has no `Debug`: addresses are not logged.
pub struct Accepted {
    /// The socket, with small writes sent at once.
    pub stream: TcpStream,
    /// Who is at its other end: a device or a proxy.
    pub peer: SocketAddr,
    /// To be kept for as long as the socket is.
    pub slot: Slot,
}

/// Something that accepts; in the relay, a TCP listener.
pub trait Incoming: Send {
    /// The next connection.
    ///
    /// # Errors
    /// Whatever the system says; the loop goes on.
    fn accept(&mut self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send;
}

impl Incoming for TcpListener {
    fn accept(&mut self) -> impl Future<Output = io::Result<(TcpStream, SocketAddr)>> + Send {
        TcpListener::accept(self)
    }
}

/// Accepts until `shutdown` is ready, and gives each connection to `hand_on`, which must not wait.
/// A connection for which there is no place is closed at once: the caller learns it sooner than it
/// would in the backlog, and comes back later.
pub async fn accept_until(
    mut incoming: impl Incoming,
    slots: Slots,
    shutdown: impl Future<Output = ()>,
    mut hand_on: impl FnMut(Accepted),
) {
    let mut shutdown = std::pin::pin!(shutdown);
    let mut pause = PAUSE_MIN;
    let mut full = Warning::new("all places for connections are taken; refusing more");
    let mut failing = Warning::new("connections cannot be accepted");
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut shutdown => return,
            accepted = incoming.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                pause = PAUSE_MIN;
                match slots.take() {
                    Some(slot) => {
                        // A failure means that the peer has gone, which whoever reads will see.
                        let _ = stream.set_nodelay(true);
                        hand_on(Accepted { stream, peer, slot });
                    }
                    None => {
                        counter!(CONNECTIONS_REFUSED, "reason" => "full").increment(1);
                        full.say(None);
                    }
                }
            }
            Err(error) if is_the_callers(&error) => {
                counter!(ACCEPT_FAILURES, "reason" => "aborted").increment(1);
            }
            Err(error) => {
                let reason = match error.raw_os_error() {
                    Some(EMFILE | ENFILE) => "files",
                    _ => "other",
                };
                counter!(ACCEPT_FAILURES, "reason" => reason).increment(1);
                failing.say(Some(&error));
                tokio::select! {
                    () = &mut shutdown => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }
}

/// The connection was gone before it was accepted. The next one may be there already.
fn is_the_callers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionReset | Interrupted)
}

/// A warning that is written at most once in a while.
struct Warning {
    text: &'static str,
    last: Option<Instant>,
    unsaid: u64,
}

impl Warning {
    fn new(text: &'static str) -> Self {
        Self { text, last: None, unsaid: 0 }
    }

    fn say(&mut self, error: Option<&io::Error>) {
        self.unsaid += 1;
        if self.last.is_some_and(|last| last.elapsed() < WARNING_INTERVAL) {
            return;
        }
        let error = error.map(tracing::field::display);
        warn!(times = self.unsaid, error, "{}", self.text);
        self.last = Some(Instant::now());
        self.unsaid = 0;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use tokio::io::AsyncReadExt;
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    /// Answers with these errors first, then accepts.
    struct Troubled {
        errors: VecDeque<io::Error>,
        listener: TcpListener,
    }

    impl Incoming for Troubled {
        async fn accept(&mut self) -> io::Result<(TcpStream, SocketAddr)> {
            match self.errors.pop_front() {
                Some(error) => Err(error),
                None => self.listener.accept().await,
            }
        }
    }

    struct Running {
        address: SocketAddr,
        accepted: mpsc::Receiver<Accepted>,
        stop: oneshot::Sender<()>,
        ended: tokio::task::JoinHandle<()>,
    }

    async fn run(errors: Vec<io::Error>, slots: usize) -> Running {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, accepted) = mpsc::channel(16);
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(accept_until(
            Troubled { errors: errors.into(), listener },
            Slots::new(slots),
            async { drop(stopped.await) },
            move |accepted| assert!(sender.try_send(accepted).is_ok()),
        ));
        Running { address, accepted, stop, ended }
    }

    async fn soon<T>(what: impl Future<Output = T>) -> T {
        tokio::time::timeout(Duration::from_secs(10), what).await.expect("in time")
    }

    #[tokio::test]
    async fn the_loop_outlives_a_process_without_file_descriptors() {
        let mut errors: Vec<_> = [EMFILE, ENFILE, EMFILE].map(io::Error::from_raw_os_error).into();
        errors.push(io::ErrorKind::ConnectionAborted.into());
        let mut running = run(errors, 1).await;
        let _device = soon(TcpStream::connect(running.address)).await.unwrap();
        let accepted = soon(running.accepted.recv()).await.unwrap();
        assert!(accepted.stream.nodelay().unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_while_nothing_can_be_accepted() {
        let errors = (0..8).map(|_| io::Error::from_raw_os_error(EMFILE)).collect();
        let start = Instant::now();
        let mut running = run(errors, 1).await;
        let _device = TcpStream::connect(running.address).await.unwrap();
        running.accepted.recv().await.unwrap();
        // 20, 40, 80, … 640, then twice the longest: 3.26 s; at least that.
        assert!(start.elapsed() >= Duration::from_millis(1260 + 2000), "{:?}", start.elapsed());
    }

    #[tokio::test]
    async fn a_connection_too_many_is_closed_and_a_free_place_is_used_again() {
        let mut running = run(Vec::new(), 1).await;
        let _first_device = soon(TcpStream::connect(running.address)).await.unwrap();
        let first = soon(running.accepted.recv()).await.unwrap();
        let mut second_device = soon(TcpStream::connect(running.address)).await.unwrap();
        assert_eq!(soon(second_device.read(&mut [0; 1])).await.unwrap_or(0), 0);
        drop(first);
        let _third_device = soon(TcpStream::connect(running.address)).await.unwrap();
        assert!(soon(running.accepted.recv()).await.is_some());
    }

    #[tokio::test]
    async fn the_loop_stops_when_it_is_told() {
        let running = run(Vec::new(), 1).await;
        running.stop.send(()).unwrap();
        soon(running.ended).await.unwrap();
        assert!(TcpStream::connect(running.address).await.is_err(), "the listener is closed");
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_trouble_is_said_once_in_a_while() {
        let mut warning = Warning::new("trouble");
        for _ in 0..1000 {
            warning.say(None);
        }
        assert_eq!(warning.unsaid, 999);
        tokio::time::advance(WARNING_INTERVAL).await;
        warning.say(None);
        assert_eq!(warning.unsaid, 0);
    }
}
