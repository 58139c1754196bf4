//! How much anybody may ask: a bucket for each address before a device is known, and for each device
//! after.
//!
//! An app at its start makes about 2N+10 plain calls for N groups, three logins among them, opens N+3
//! streams, and does it again when the network returns; then it acks each payload that a stream brings
//! with a call of its own. *That must never meet a limit*: a refused call is shown to a person, and a
//! refused ack ends a stream. Behind one address of a carrier there are thousands of phones. So the
//! buckets are large; they are there for whoever asks as fast as he can, for hours.
//!
//! What the app sends once and never again (a request to join, a farewell) has a bucket of its own, so
//! that nothing else can use it up.
//!
//! Holds always: every refusal says in whole seconds when to come back; memory is bounded by
//! [`KEYS_MAX`] for each kind of bucket, whoever makes up keys or addresses; no address is kept longer
//! than its bucket takes to fill.

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use metrics::counter;
use sealwire_actors::metrics::REQUESTS_LIMITED;
use sealwire_protocol::DeviceKey;

use super::Api;
use super::auth::{Device, SIGNATURE_HEADER};
use super::error::ApiError;
use super::instant::iso;
use crate::client_address::limits::SWEEP_INTERVAL;
use crate::client_address::{AddressGroup, ClientAddress, TrustedProxies};
use crate::config::AddressRequests;
use crate::gateway::Connection;

/// Keys whose buckets are known at the same time, for each kind of bucket. Beyond it a key that is not
/// known shares one bucket with all others that are not: as many at once are one attack.
pub const KEYS_MAX: usize = 65_536;

/// So many a second, and so many at once after a quiet time.
#[derive(Clone, Copy)]
struct Bucket {
    per_second: u32,
    burst: u32,
}

/// Signatures, of one address: each costs 46 µs to check, and one that is good a place in a commit. 200
/// phones that start at the same moment sign about eight times each.
const PROOFS_OF_ADDRESS: Bucket = Bucket { per_second: 1_000, burst: 20_000 };

/// Signatures in all: a fifth of one core.
const PROOFS: Bucket = Bucket { per_second: 4_000, burst: 40_000 };

/// Recovery codes, of one address. A code has 75 bits, so no rate would find one; this one keeps the
/// database from being asked all the time.
const CODES_OF_ADDRESS: Bucket = Bucket { per_second: 10, burst: 2_000 };

/// Calls of one device that are none of the others. A start with six groups is about 40 with its
/// streams; several client objects of one app, and a network that comes and goes, make it some hundred.
const CALLS: Bucket = Bucket { per_second: 200, burst: 10_000 };

/// Payloads of one device: a person who was offline for weeks sends what waited, and a snapshot of
/// years is some hundred parts. What a group may keep is bounded in bytes beside it.
const PAYLOADS: Bucket = Bucket { per_second: 200, burst: 20_000 };

/// Payloads of one device that the app sends once and never again. A request to join is one for each
/// member, so 63 at most, and a group is joined six times.
const SENT_ONCE: Bucket = Bucket { per_second: 100, burst: 10_000 };

/// Acks of one device: one for each payload that streams bring, as fast as they do.
const ACKS: Bucket = Bucket { per_second: 1_000, burst: 50_000 };

/// Which bucket was empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limited {
    /// All calls of one address.
    Address,
    /// Signatures.
    Proofs,
    /// Recovery codes.
    Codes,
    /// Calls of one device.
    Calls,
    /// Payloads of one device.
    Payloads,
    /// Payloads of one device that are sent once.
    SentOnce,
    /// Acks of one device.
    Acks,
}

impl Limited {
    /// The value of the `what` label of `sealwire_requests_limited_total`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Address => "address",
            Self::Proofs => "proofs",
            Self::Codes => "codes",
            Self::Calls => "calls",
            Self::Payloads => "payloads",
            Self::SentOnce => "sent_once",
            Self::Acks => "acks",
        }
    }
}

type Direct<C> = RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<<C as Clock>::Instant>>;
type Keyed<K, C> = RateLimiter<K, DashMapStateStore<K>, C, NoOpMiddleware<<C as Clock>::Instant>>;

/// A bucket for each key, and one for those that are too many.
struct Buckets<K: Hash + Eq + Clone, C: Clock> {
    known: Keyed<K, C>,
    others: Direct<C>,
    clock: C,
}

impl<K: Hash + Eq + Clone, C: Clock + Clone> Buckets<K, C> {
    fn new(quota: Quota, clock: &C) -> Self {
        Self {
            known: RateLimiter::dashmap_with_clock(quota, clock.clone()),
            others: RateLimiter::direct_with_clock(quota, clock.clone()),
            clock: clock.clone(),
        }
    }

    /// Takes one; if there is none, gives the time until there is.
    fn take(&self, key: &K) -> Result<(), Duration> {
        let taken = if self.known.len() < KEYS_MAX {
            self.known.check_key(key)
        } else {
            self.others.check()
        };
        taken.map_err(|until| until.wait_time_from(self.clock.now()))
    }

    fn sweep(&self) {
        self.known.retain_recent();
        self.known.shrink_to_fit();
    }
}

/// Every bucket of one relay.
pub struct RequestLimits<C: Clock = DefaultClock> {
    proxies: TrustedProxies,
    addresses: Buckets<AddressGroup, C>,
    proofs_of_addresses: Buckets<AddressGroup, C>,
    proofs: Direct<C>,
    codes_of_addresses: Buckets<AddressGroup, C>,
    calls: Buckets<DeviceKey, C>,
    payloads: Buckets<DeviceKey, C>,
    sent_once: Buckets<DeviceKey, C>,
    acks: Buckets<DeviceKey, C>,
    clock: C,
}

impl RequestLimits {
    /// Buckets that run on the machine's clock.
    #[must_use]
    pub fn new(addresses: AddressRequests, proxies: TrustedProxies) -> Self {
        Self::with_clock(addresses, proxies, DefaultClock::default())
    }
}

impl<C: Clock + Clone> RequestLimits<C> {
    /// Buckets that run on this clock.
    #[must_use]
    pub fn with_clock(addresses: AddressRequests, proxies: TrustedProxies, clock: C) -> Self {
        let of_addresses = Quota::per_second(addresses.rate).allow_burst(addresses.burst);
        Self {
            proxies,
            addresses: Buckets::new(of_addresses, &clock),
            proofs_of_addresses: Buckets::new(quota(PROOFS_OF_ADDRESS), &clock),
            proofs: RateLimiter::direct_with_clock(quota(PROOFS), clock.clone()),
            codes_of_addresses: Buckets::new(quota(CODES_OF_ADDRESS), &clock),
            calls: Buckets::new(quota(CALLS), &clock),
            payloads: Buckets::new(quota(PAYLOADS), &clock),
            sent_once: Buckets::new(quota(SENT_ONCE), &clock),
            acks: Buckets::new(quota(ACKS), &clock),
            clock,
        }
    }

    /// Lets a payload of this device pass, or says when one will.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn payload(&self, device: DeviceKey, sent_once: bool) -> Result<(), Refused> {
        if sent_once {
            refused(Limited::SentOnce, self.sent_once.take(&device))
        } else {
            refused(Limited::Payloads, self.payloads.take(&device))
        }
    }

    /// Lets a request pass by its address, or says when one will.
    fn by_address(&self, address: AddressGroup, path: &str, signed: bool) -> Result<(), Refused> {
        refused(Limited::Address, self.addresses.take(&address))?;
        if signed || path == "/auth/session" {
            refused(Limited::Proofs, self.proofs_of_addresses.take(&address))?;
            let taken = self.proofs.check();
            let wait = taken.map_err(|until| until.wait_time_from(self.clock.now()));
            refused(Limited::Proofs, wait)?;
        }
        match path {
            "/identity/vault/fetch" | "/identity/vault/report-failure" => {
                refused(Limited::Codes, self.codes_of_addresses.take(&address))
            }
            _ => Ok(()),
        }
    }

    /// Lets a request of a known device pass, or says when one will. Payloads are known by their
    /// bodies: their handlers ask [`RequestLimits::payload`].
    fn by_device(&self, device: DeviceKey, path: &str) -> Result<(), Refused> {
        match path {
            "/payloads/ack" | "/payloads/{id}/ack" => {
                refused(Limited::Acks, self.acks.take(&device))
            }
            "/groups/{id}/payloads" | "/groups/{id}/payloads/targeted" | "/groups/{id}/nudges" => {
                Ok(())
            }
            _ => refused(Limited::Calls, self.calls.take(&device)),
        }
    }

    fn sweep(&self) {
        self.addresses.sweep();
        self.proofs_of_addresses.sweep();
        self.codes_of_addresses.sweep();
        self.calls.sweep();
        self.payloads.sweep();
        self.sent_once.sweep();
        self.acks.sweep();
    }

    /// Forgets, for ever, those whose buckets are full again.
    pub async fn keep_swept(&self) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            self.sweep();
        }
    }
}

fn quota(bucket: Bucket) -> Quota {
    let one = NonZeroU32::MIN;
    Quota::per_second(NonZeroU32::new(bucket.per_second).unwrap_or(one))
        .allow_burst(NonZeroU32::new(bucket.burst).unwrap_or(one))
}

/// A bucket was empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Which.
    pub what: Limited,
    /// In so many seconds there is something in it again.
    pub retry_after_s: u64,
}

fn refused(what: Limited, taken: Result<(), Duration>) -> Result<(), Refused> {
    taken.map_err(|wait| {
        counter!(REQUESTS_LIMITED, "what" => what.name()).increment(1);
        // A whole second more than the part of one that is cut off.
        Refused { what, retry_after_s: wait.as_secs() + 1 }
    })
}

impl From<Refused> for ApiError {
    fn from(refused: Refused) -> Self {
        let message = "too many requests: please wait";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", message)
            .after(refused.retry_after_s)
    }
}

impl Refused {
    /// The refusal as it is said on this path. About a recovery vault the app tells a person of every
    /// 429 as of a lock, until when it says.
    fn on(self, path: &str, api: &Api) -> ApiError {
        let error = ApiError::from(self);
        if path.starts_with("/identity/vault") {
            return error.with("lockedUntil", iso(api.recovery.in_seconds(self.retry_after_s)));
        }
        error
    }
}

/// Stands before everything: whoever asks, by his address.
pub(super) async fn by_address(
    State(api): State<Arc<Api>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    // Without a connection there is nobody: only tests of the router alone ask so.
    if let Some(connection) = request.extensions().get::<Connection>() {
        let headers = request.headers();
        let address = ClientAddress::of_request(connection.peer(), headers, &api.limits.proxies);
        let (path, signed) = (path(&request), headers.contains_key(SIGNATURE_HEADER));
        let passed = api.limits.by_address(address.group(), path, signed);
        passed.map_err(|refused| refused.on(path, &api))?;
    }
    Ok(next.run(request).await)
}

/// Stands behind authentication: the calls of a device.
pub(super) async fn by_device(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let path = path(&request);
    api.limits.by_device(device, path).map_err(|refused| refused.on(path, &api))?;
    Ok(next.run(request).await)
}

/// The route, as it was written down.
fn path(request: &Request) -> &str {
    request.extensions().get::<MatchedPath>().map_or("", MatchedPath::as_str)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use governor::clock::FakeRelativeClock;

    use super::*;
    use crate::config::{Config, Settings};

    fn limits(rate: u32, burst: u32) -> (RequestLimits<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        let number = |number| NonZeroU32::new(number).unwrap();
        let addresses = AddressRequests { rate: number(rate), burst: number(burst) };
        let proxies = TrustedProxies::default();
        (RequestLimits::with_clock(addresses, proxies, clock.clone()), clock)
    }

    fn address(last: u8) -> AddressGroup {
        ClientAddress::of_peer(([192, 0, 2, last], 9).into()).group()
    }

    fn passed<T>(times: usize, take: impl Fn() -> Result<T, Refused>) -> usize {
        (0..times).take_while(|_| take().is_ok()).count()
    }

    #[test]
    fn one_address_leaves_others_alone_and_is_told_when_to_come_back() {
        let (limits, clock) = limits(2, 10);
        let ask = |last| limits.by_address(address(last), "/groups", false);
        assert_eq!(passed(20, || ask(1)), 10);
        assert_eq!(ask(1), Err(Refused { what: Limited::Address, retry_after_s: 1 }));
        assert_eq!(passed(20, || ask(2)), 10);
        clock.advance(Duration::from_secs(1));
        assert_eq!(passed(20, || ask(1)), 2);
    }

    #[test]
    fn what_is_sent_once_has_a_bucket_that_nothing_else_empties() {
        let (limits, _) = limits(1_000, 1_000);
        let device = DeviceKey([1; 32]);
        let most = PAYLOADS.burst as usize;
        assert_eq!(passed(most + 10, || limits.payload(device, false)), most);
        let most = CALLS.burst as usize;
        assert_eq!(passed(most + 10, || limits.by_device(device, "/groups")), most);
        assert_eq!(passed(1000, || limits.payload(device, true)), 1000);
        assert_eq!(passed(1000, || limits.by_device(device, "/payloads/{id}/ack")), 1000);
    }

    #[test]
    fn two_hundred_phones_behind_one_address_start_at_once() {
        let settings = Settings::gather(&BTreeMap::new(), &BTreeMap::new()).unwrap();
        let addresses = Config::read(&settings).unwrap().address_requests;
        let limits = RequestLimits::with_clock(
            addresses,
            TrustedProxies::default(),
            FakeRelativeClock::default(),
        );
        for phone in 0..200 {
            let device = DeviceKey([phone; 32]);
            for _ in 0..8 {
                limits.by_address(address(1), "/auth/session", false).unwrap();
            }
            for call in 0..80 {
                let path = if call % 2 == 0 { "/groups" } else { "/payloads/{id}/ack" };
                limits.by_address(address(1), path, false).unwrap();
                limits.by_device(device, path).unwrap();
            }
        }
    }

    #[test]
    fn what_is_quiet_is_forgotten_and_what_is_too_much_shares() {
        let (limits, clock) = limits(1, 1);
        for number in 0..KEYS_MAX + 10 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_be_bytes());
            let _ = limits.payload(DeviceKey(key), true);
        }
        assert_eq!(limits.sent_once.known.len(), KEYS_MAX);
        clock.advance(Duration::from_secs(1));
        limits.sweep();
        assert_eq!(limits.sent_once.known.len(), 0);
    }
}
