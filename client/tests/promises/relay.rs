//! A relay for tests: the protocol's rules in memory, and a switch for every failure.

mod log;
mod session;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ed25519_dalek::SigningKey;
use parking_lot::Mutex;
use sealwire_client::address::RelayUrl;
use sealwire_protocol::digest::{chain_next, chain_start};
use sealwire_protocol::frame::StubReason;
use sealwire_protocol::{AckSet, DeviceKey, Failure, Head, LogId, signing};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use log::FakeLog;
pub(crate) use log::Stored;

/// What goes wrong with the next append that is the next of its sender.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// It is refused with this, and not appended.
    Refuse(Failure),
    /// It is appended, and refused with this all the same.
    AppendAndRefuse(Failure),
    /// It is appended, and the connection breaks before the answer.
    AppendAndBreak,
    /// The connection breaks before it is looked at.
    Break,
}

pub(crate) struct State {
    pub(crate) incarnation: u64,
    logs: BTreeMap<LogId, FakeLog>,
    tokens: HashMap<Vec<u8>, DeviceKey>,
    pub(crate) faults: VecDeque<Fault>,
    /// Every append that was looked at, as (sender, count, digest).
    pub(crate) appends: Vec<(DeviceKey, u64, sealwire_protocol::Digest)>,
    /// How connections were authenticated.
    pub(crate) by_token: u32,
    pub(crate) by_signature: u32,
    /// Seqs that are shown to this device as not addressed to it.
    withheld: Vec<(DeviceKey, LogId, u64)>,
    /// Bodies that are shown to this device with a bit flipped.
    spoiled: Vec<(DeviceKey, LogId, u64)>,
    /// The chain is shown to these devices as another one.
    forked: Vec<DeviceKey>,
    next_session: u64,
}

/// Switches of the connection.
#[derive(Default)]
pub(crate) struct Switches {
    /// The relay proves another key than it presents.
    pub(crate) false_proof: AtomicBool,
    /// Tokens are refused.
    pub(crate) refuse_tokens: AtomicBool,
    /// Nothing is said after the upgrade.
    pub(crate) mute: AtomicBool,
    /// Nothing is said after the welcome.
    pub(crate) mute_after_welcome: AtomicBool,
    /// Every session is told that another one has taken its place.
    pub(crate) supersede: AtomicBool,
    /// Every session is told to come back after this many milliseconds.
    pub(crate) drain: AtomicBool,
}

pub(crate) struct Shared {
    key: SigningKey,
    pub(crate) state: Mutex<State>,
    pub(crate) switches: Switches,
    /// Raised when a log has changed.
    changed: watch::Sender<u64>,
    /// Raised to break every connection.
    kicked: watch::Sender<u64>,
}

/// A relay on a loopback port of its own.
pub(crate) struct Relay {
    pub(crate) shared: Arc<Shared>,
    pub(crate) url: RelayUrl,
    accept: JoinHandle<()>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accept.abort();
        self.kick();
    }
}

impl Relay {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Self::on(listener, 0x77).await
    }

    /// A relay with another key, where one was before.
    pub(crate) async fn on(listener: TcpListener, seed: u8) -> Self {
        let url = format!("ws://{}", listener.local_addr().expect("an address"));
        let shared = Arc::new(Shared {
            key: SigningKey::from_bytes(&[seed; 32]),
            state: Mutex::new(State {
                incarnation: 1000 + u64::from(seed),
                logs: BTreeMap::new(),
                tokens: HashMap::new(),
                faults: VecDeque::new(),
                appends: Vec::new(),
                by_token: 0,
                by_signature: 0,
                withheld: Vec::new(),
                spoiled: Vec::new(),
                forked: Vec::new(),
                next_session: 0,
            }),
            switches: Switches::default(),
            changed: watch::Sender::new(0),
            kicked: watch::Sender::new(0),
        });
        let serving = shared.clone();
        let accept = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(session::serve(serving.clone(), stream));
            }
        });
        Self { shared, url: RelayUrl::parse(&url).expect("an address"), accept }
    }

    pub(crate) fn key(&self) -> DeviceKey {
        signing::device_key(&self.shared.key)
    }

    /// Breaks every connection.
    pub(crate) fn kick(&self) {
        self.shared.kicked.send_modify(|turn| *turn += 1);
    }

    /// Sets a switch that sessions look at, and wakes them.
    pub(crate) fn switch(&self, which: impl Fn(&Switches) -> &AtomicBool, on: bool) {
        which(&self.shared.switches).store(on, Ordering::SeqCst);
        self.shared.changed.send_modify(|turn| *turn += 1);
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.shared.state.lock().faults.push_back(fault);
    }

    /// The head of a log.
    pub(crate) fn head(&self, log: LogId) -> Head {
        let state = self.shared.state.lock();
        state.logs[&log].head(state.incarnation)
    }

    /// The entries of a log, as they are stored.
    pub(crate) fn entries(&self, log: LogId) -> Vec<Stored> {
        self.shared.state.lock().logs.get(&log).map(|log| log.entries.clone()).unwrap_or_default()
    }

    /// What a device has acked of a log.
    pub(crate) fn acked(&self, log: LogId, device: DeviceKey) -> AckSet {
        let state = self.shared.state.lock();
        state.logs.get(&log).and_then(|log| log.acked.get(&device).cloned()).unwrap_or_default()
    }

    /// Forgets the entries above `seq`, as a restore from a backup does.
    pub(crate) fn restore_to(&self, log: LogId, seq: u64) {
        {
            let mut state = self.shared.state.lock();
            state.incarnation += 1;
            let log = state.logs.get_mut(&log).expect("a log");
            log.truncate(seq);
        }
        self.kick();
    }

    /// Keeps only control entries up to `seq`.
    pub(crate) fn raise_floor(&self, log: LogId, seq: u64) {
        self.shared.state.lock().logs.get_mut(&log).expect("a log").floor = seq;
    }

    /// Deletes a body that somebody has not acked.
    pub(crate) fn expire(&self, log: LogId, seq: u64) {
        let mut state = self.shared.state.lock();
        let log = state.logs.get_mut(&log).expect("a log");
        log.entries[seq as usize - 1].gone = Some(StubReason::Expired);
    }

    /// Shows an entry to a device as not addressed to it.
    pub(crate) fn withhold(&self, from: DeviceKey, log: LogId, seq: u64) {
        self.shared.state.lock().withheld.push((from, log, seq));
    }

    /// Shows the body of an entry to a device with a bit flipped.
    pub(crate) fn spoil(&self, to: DeviceKey, log: LogId, seq: u64) {
        self.shared.state.lock().spoiled.push((to, log, seq));
    }

    /// Shows it as it is again.
    pub(crate) fn mend(&self, to: DeviceKey, log: LogId, seq: u64) {
        self.shared.state.lock().spoiled.retain(|it| *it != (to, log, seq));
    }

    /// Shows a device another chain in heads.
    pub(crate) fn fork(&self, device: DeviceKey) {
        self.shared.state.lock().forked.push(device);
    }
}

/// When this relay says that it ordered the entry at `seq`, in milliseconds since the epoch: a time
/// that no clock shows.
pub(crate) fn ordered_at(seq: u64) -> u64 {
    1_700_000_000_000 + seq
}

/// The chain after `digests`.
pub(crate) fn chain_of(
    log: LogId,
    digests: impl Iterator<Item = sealwire_protocol::Digest>,
) -> sealwire_protocol::Digest {
    (1u64..)
        .zip(digests)
        .fold(chain_start(log), |before, (seq, digest)| chain_next(before, seq, digest))
}
