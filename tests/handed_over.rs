//! A listener that is handed over outlives its relays: whoever comes while none runs waits, and is served
//! by the next.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sealwire_client::identity::Identity;
use sealwire_protocol::frame::Ping;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use crate::support::place::{Database, Place};
use crate::support::process::RelayProcess;
use crate::support::raw::{Raw, UPGRADE};
use crate::support::{DEADLINE, eventually, on_both_databases};

on_both_databases!(
    who_comes_while_no_relay_runs_is_served_by_the_next_one,
    restarts_turn_nobody_away,
);

/// How many try to reach the relay at the same time, one attempt after the other each.
const CALLERS: usize = 8;

/// Pause of a caller between two attempts.
const PAUSE: Duration = Duration::from_millis(3);

/// A relay that is not started yet, and is handed the listener whenever it is.
async fn relay(database: Database) -> RelayProcess {
    let mut relay = RelayProcess::prepare(Place::new(database).await, &[]);
    relay.keep_listener();
    relay
}

async fn who_comes_while_no_relay_runs_is_served_by_the_next_one(database: Database) {
    let mut relay = relay(database).await;
    let device = Identity::generate().expect("randomness");
    for stop in [false, true] {
        // The kernel takes the connection and what is said on it, and keeps both.
        let mut waiting = Raw::connect(relay.public()).await;
        waiting.write(format!("{UPGRADE}\r\n").as_bytes()).await;
        relay.run().await;
        let head = waiting.head().await.expect("an answer");
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        waiting.authenticate(&device).await;
        waiting.send(2, &Ping {}.into()).await;
        assert_eq!(waiting.receive().await.map(|answer| answer.request), Some(2));
        if stop {
            assert!(relay.stop().await.status.success());
        } else {
            relay.kill();
        }
    }
}

/// How an attempt to reach the relay went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Went {
    Answered,
    /// Nobody was there to connect to.
    Refused,
    /// It was connected, and the connection ended without an answer.
    Cut,
}

/// An attempt that has ended.
#[derive(Clone, Copy)]
struct Attempt {
    begun: Instant,
    ended: Instant,
    went: Went,
}

/// Those that have.
#[derive(Clone, Default)]
struct Attempts(Arc<Mutex<Vec<Attempt>>>);

impl Attempts {
    /// Calls again and again until told to stop.
    async fn call(self, relay: SocketAddr, stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let begun = Instant::now();
            let went = attempt(relay).await;
            self.0.lock().push(Attempt { begun, ended: Instant::now(), went });
            sleep(PAUSE).await;
        }
    }

    /// Those that went like this.
    fn that(&self, went: Went) -> Vec<Attempt> {
        self.0.lock().iter().filter(|it| it.went == went).copied().collect()
    }

    /// Waits until every caller has been answered that began after this moment.
    async fn answered_since(&self, then: Instant) {
        eventually("callers are answered", async || {
            let answered = self.that(Went::Answered);
            answered.iter().filter(|it| it.begun > then).count() >= 4 * CALLERS
        })
        .await;
    }
}

async fn attempt(relay: SocketAddr) -> Went {
    let Ok(mut stream) = TcpStream::connect(relay).await else { return Went::Refused };
    let mut answer = Vec::new();
    let asked = async {
        stream
            .write_all(b"GET /health HTTP/1.1\r\nHost: relay\r\nConnection: close\r\n\r\n")
            .await?;
        stream.read_to_end(&mut answer).await
    };
    match timeout(DEADLINE, asked).await {
        Ok(Ok(_)) if answer.starts_with(b"HTTP/1.1 200 ") => Went::Answered,
        _ => Went::Cut,
    }
}

async fn restarts_turn_nobody_away(database: Database) {
    let mut relay = relay(database).await;
    relay.run().await;
    let attempts = Attempts::default();
    let (stop, stopped) = watch::channel(false);
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| tokio::spawn(attempts.clone().call(relay.public(), stopped.clone())))
        .collect();
    attempts.answered_since(Instant::now()).await;
    let mut kills = Vec::new();
    for killed in [false, true, false, true] {
        let before = Instant::now();
        if killed {
            relay.kill();
            kills.push((before, Instant::now()));
        } else {
            assert!(relay.stop().await.status.success());
        }
        relay.run().await;
        attempts.answered_since(Instant::now()).await;
    }
    stop.send_replace(true);
    for caller in callers {
        timeout(DEADLINE, caller).await.expect("a caller ends").expect("no panic");
    }
    let cut = attempts.that(Went::Cut);
    println!("{} attempts, {} of them cut by a kill", attempts.0.lock().len(), cut.len());
    assert_eq!(attempts.that(Went::Refused).len(), 0);
    // Only a killed relay takes with it whom it was just answering.
    for Attempt { begun, ended, .. } in cut {
        let by = |(before, after): &(Instant, Instant)| begun <= *after && ended >= *before;
        assert!(kills.iter().any(by), "cut, and by no kill");
    }
}
