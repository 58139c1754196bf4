//! A thread of its own for what is said to the push service.
//!
//! A thousand sleeping devices are a thousand requests, each with its TLS, its headers and its answer,
//! and a doorbell may be a second late where an append may not. So all of it happens on one thread that
//! has less of a claim to the processors than those that serve devices: where there is processor time
//! left, nobody notices; where there is none, doorbells wait.
//!
//! Holds always: a call whose caller has gone is given up; the thread ends when this is dropped.

use std::future::Future;
use std::io;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// How much less of a claim, as `nice` counts it: a tenth of the time of a thread that is as busy. The
/// full 19 would be a seventieth, and on a busy relay calls would end by their deadline.
#[cfg(target_os = "linux")]
const NICENESS: i32 = 10;

/// See the module's header.
pub(super) struct Calls {
    thread: Handle,
    /// Dropped, it ends the thread.
    _end: oneshot::Sender<()>,
}

impl Calls {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let thread = runtime.handle().clone();
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new().name("push".to_owned()).spawn(move || {
            step_back();
            // It ends by being dropped.
            let _ = runtime.block_on(ended);
        })?;
        Ok(Self { thread, _end: end })
    }

    /// Runs a call there. None if it could not be run to its end.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        call: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        // Dropped, it takes the call with it.
        let mut calls = JoinSet::new();
        calls.spawn_on(call, &self.thread);
        calls.join_next().await?.ok()
    }
}

/// Lowers the claim of this thread to processors. Elsewhere `nice` is the whole process's.
fn step_back() {
    #[cfg(target_os = "linux")]
    // Whoever may not become less important rings with the same claim as everybody.
    let _ = rustix::process::nice(NICENESS);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    /// The niceness of the thread that asks.
    #[cfg(target_os = "linux")]
    fn niceness() -> i32 {
        let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
        // Behind the name, which may hold anything, it is the 17th.
        let (_, behind) = stat.rsplit_once(") ").unwrap();
        behind.split(' ').nth(16).unwrap().parse().unwrap()
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn calls_run_on_a_thread_that_steps_back_and_nobody_else_does() {
        let before = niceness();
        let calls = Calls::start().unwrap();
        assert_eq!(calls.run(async { niceness() }).await, Some((before + NICENESS).min(19)));
        assert_eq!(niceness(), before);
    }

    #[tokio::test]
    async fn a_call_whose_caller_has_gone_is_given_up() {
        let calls = Calls::start().unwrap();
        let (held, mut given_up) = oneshot::channel::<()>();
        let call = async move {
            let _held = held;
            sleep(SOON * 10).await;
        };
        assert!(timeout(Duration::from_millis(1), calls.run(call)).await.is_err());
        assert!(timeout(SOON, &mut given_up).await.expect("it is given up").is_err());
    }

    #[tokio::test]
    async fn a_call_that_panics_costs_that_call() {
        let calls = Calls::start().unwrap();
        assert_eq!(calls.run(async { std::hint::black_box(None::<u8>).expect("no") }).await, None);
        assert_eq!(calls.run(async { 7 }).await, Some(7));
    }
}
