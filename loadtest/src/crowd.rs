//! How many devices reach one relay: one socket each, from several addresses, at a bounded rate.
//!
//! Holds always: nothing is sent anywhere but to loopback.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sealwire_client::address::RelayUrl;
use sealwire_client::identity::Identity;
use sealwire_client::wire::{self, Options, Session, Wire, WireError};
use sealwire_protocol::limits::HEARTBEAT_MAX;
use tokio::sync::Mutex;
use tokio::time::{Interval, interval, sleep};

use crate::limits::{
    ATTEMPTS_MAX, CONNECTS_PER_SECOND, DEVICES_MAX, OPEN_FILES_RESERVE, RETURN_PAUSE, SOURCES,
};
use crate::parts::Share;
use crate::process::Process;

/// How long a device waits that was refused by an HTTP status: the shortest `Retry-After`.
const UPGRADE_PATIENCE: Duration = Duration::from_secs(1);

/// Devices that read as a device of its own does; more of them read through less memory.
const FEW: usize = 64;

/// Read buffer of each device of a large crowd, in bytes.
const READ_BUFFER_BYTES: usize = 4 * 1024;

/// The way to the relay, shared by all devices of a run.
pub(crate) struct Crowd {
    relay: RelayUrl,
    /// Whether devices come from addresses of their own: loopback has 16 million in IPv4, one in IPv6.
    many_sources: bool,
    is_large: bool,
    entered: AtomicU64,
    pace: Mutex<Interval>,
}

impl Crowd {
    /// Prepares for `devices` connections at the same time to the relay at `url`.
    pub(crate) fn new(url: &str, devices: usize) -> Result<Self> {
        Self::part(url, devices, Share::WHOLE)
    }

    /// The same for one part of so many devices: it holds its share of them, and makes its share of the
    /// new connections of a second.
    pub(crate) fn part(url: &str, devices: usize, share: Share) -> Result<Self> {
        let relay = on_this_machine(url)?;
        ensure!(devices <= DEVICES_MAX, "at most {DEVICES_MAX} devices");
        let open_files_max = Process::own().open_files_max()?;
        ensure!(
            share.of(devices) as u64 + OPEN_FILES_RESERVE <= open_files_max,
            "{devices} connections need more open files than {open_files_max}: raise `ulimit -n`"
        );
        let many_sources = relay.authority().0.parse::<Ipv4Addr>().is_ok();
        let parts = u32::try_from(share.parts).unwrap_or(u32::MAX);
        let pace = Mutex::new(interval(Duration::from_secs(1) * parts / CONNECTS_PER_SECOND));
        // Each part begins at another address.
        let first = SOURCES * share.number as u64 / share.parts as u64;
        let is_large = devices > FEW;
        Ok(Self { relay, many_sources, is_large, entered: AtomicU64::new(first), pace })
    }

    /// Connects and authenticates a device, in its turn. A relay that asks for patience gets it.
    pub(crate) async fn enter(&self, device: &Identity) -> Result<(Wire, Session)> {
        for _ in 0..ATTEMPTS_MAX {
            self.pace.lock().await.tick().await;
            match self.attempt(device).await {
                Err(error) if let Some(wait) = patience(&error) => sleep(wait).await,
                entered => return entered.context("connecting"),
            }
        }
        bail!("the relay let no device in for {ATTEMPTS_MAX} attempts")
    }

    /// Connects and authenticates a device that was there before, at once and again and again, until
    /// the relay is there and lets it in. The caller bounds it.
    pub(crate) async fn enter_again(&self, device: &Identity) -> Result<(Wire, Session)> {
        loop {
            match self.attempt(device).await {
                Err(error) if let Some(wait) = patience(&error) => sleep(wait).await,
                Err(WireError::Refused(failure)) => return Err(WireError::Refused(failure).into()),
                Err(_) => sleep(RETURN_PAUSE).await,
                Ok(entered) => return Ok(entered),
            }
        }
    }

    async fn attempt(&self, device: &Identity) -> Result<(Wire, Session), WireError> {
        let number = self.entered.fetch_add(1, Ordering::Relaxed);
        let mut options = Options {
            heartbeat: HEARTBEAT_MAX,
            source: self.many_sources.then(|| source(number)),
            ..Options::default()
        };
        if self.is_large {
            options.read_buffer_bytes = READ_BUFFER_BYTES;
        }
        Box::pin(wire::connect(&self.relay, device, &options)).await
    }
}

/// The address of a relay, which is refused if it leaves this machine.
pub(crate) fn on_this_machine(url: &str) -> Result<RelayUrl> {
    let relay = RelayUrl::parse(url).context("the relay's address")?;
    ensure!(relay.is_plaintext(), "the load tester speaks to a relay on this machine alone: ws://");
    Ok(relay)
}

/// How long to wait, if the relay has asked for patience.
fn patience(error: &WireError) -> Option<Duration> {
    if let WireError::Refused(failure) = error {
        return failure.retry_after_ms.map(Duration::from_millis);
    }
    matches!(error, WireError::Upgrade(429 | 503)).then_some(UPGRADE_PATIENCE)
}

/// The address that the connection with this number comes from: `127.0.1.1` and on.
pub(crate) fn source(number: u64) -> IpAddr {
    let host = u8::try_from(number % SOURCES + 1).unwrap_or(1);
    IpAddr::V4(Ipv4Addr::new(127, 0, 1, host))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_load_stays_on_this_machine() {
        assert!(Crowd::new("ws://127.0.0.1:4000", 10).is_ok());
        assert!(Crowd::new("wss://127.0.0.1:4000", 10).is_err());
        assert!(Crowd::new("wss://relay.example", 10).is_err());
        assert!(Crowd::new("ws://relay.example", 10).is_err());
        assert!(Crowd::new("ws://127.0.0.1:4000", DEVICES_MAX + 1).is_err());
    }

    #[test]
    fn connections_come_from_many_loopback_addresses() {
        let sources: std::collections::HashSet<_> = (0..1000).map(source).collect();
        assert_eq!(sources.len() as u64, SOURCES);
        assert!(sources.iter().all(IpAddr::is_loopback));
    }
}
