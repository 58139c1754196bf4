//! What holds back those who have not proved a key.
//!
//! Anybody can make keys and open sockets, so what costs a stranger nothing must cost the relay
//! little: a connection passes four gates before its first byte is read, and holds an [`Admission`]
//! until it has authenticated or is gone. The gates of its own address come first, so that one
//! address cannot use up what belongs to all.
//!
//! Holds always: every count falls again however a connection ends; memory is bounded by
//! [`ADDRESSES_MAX`] and by the number of admissions; no address is kept longer than its limits need
//! it (seconds).

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use governor::clock::{Clock, DefaultClock};
use governor::middleware::NoOpMiddleware;
use governor::state::keyed::DashMapStateStore;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{AddressGroup, ClientAddress};
use crate::config::UnauthenticatedLimits;

/// Most addresses whose rate is known at the same time. Beyond it, an address counts only towards
/// the rate of all: as many addresses at once are one attack, and that rate stops it.
pub const ADDRESSES_MAX: usize = 65_536;

/// Time between two sweeps of addresses that have been quiet for long enough to be forgotten.
pub const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// What a stranger who was refused should wait, in seconds.
pub const RETRY_AFTER_SECONDS: u64 = 2;

/// Which gate was shut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Too many unauthenticated connections from this address.
    AddressBusy,
    /// Too many unauthenticated connections in all.
    RelayBusy,
    /// New connections from this address come too fast.
    AddressRate,
    /// New connections come too fast in all.
    RelayRate,
}

impl Refused {
    /// The value of the `reason` label of `sealwire_connections_refused_total`.
    #[must_use]
    pub const fn reason(self) -> &'static str {
        match self {
            Self::AddressBusy => "address_busy",
            Self::RelayBusy => "relay_busy",
            Self::AddressRate => "address_rate",
            Self::RelayRate => "relay_rate",
        }
    }
}

type Direct<C> = RateLimiter<NotKeyed, InMemoryState, C, NoOpMiddleware<<C as Clock>::Instant>>;
type Keyed<C> = RateLimiter<
    AddressGroup,
    DashMapStateStore<AddressGroup>,
    C,
    NoOpMiddleware<<C as Clock>::Instant>,
>;

/// The four gates, shared by all listeners of a relay.
pub struct AddressLimits<C: Clock = DefaultClock> {
    rate: Direct<C>,
    address_rate: Keyed<C>,
    places: Arc<Semaphore>,
    per_address_max: usize,
    /// Unauthenticated connections by address; an entry at zero does not exist.
    held: Arc<DashMap<AddressGroup, usize>>,
}

impl AddressLimits {
    /// Gates that run on the machine's clock.
    #[must_use]
    pub fn new(limits: &UnauthenticatedLimits) -> Self {
        Self::with_clock(limits, DefaultClock::default())
    }
}

impl<C: Clock + Clone> AddressLimits<C> {
    /// Gates that run on this clock.
    #[must_use]
    pub fn with_clock(limits: &UnauthenticatedLimits, clock: C) -> Self {
        let quota = |rate: NonZeroU32, burst| Quota::per_second(rate).allow_burst(burst);
        Self {
            rate: RateLimiter::direct_with_clock(quota(limits.rate, limits.burst), clock.clone()),
            address_rate: RateLimiter::dashmap_with_clock(
                quota(limits.per_address_rate, limits.per_address_burst),
                clock,
            ),
            places: Arc::new(Semaphore::new(limits.max)),
            per_address_max: limits.per_address_max,
            held: Arc::default(),
        }
    }

    /// Lets a connection in until it authenticates, or says which gate was shut.
    ///
    /// # Errors
    /// [`Refused`]; nothing is held then.
    pub fn admit(&self, address: ClientAddress) -> Result<Admission, Refused> {
        let group = address.group();
        let address_place = self.hold(group).ok_or(Refused::AddressBusy)?;
        if self.address_rate.len() < ADDRESSES_MAX && self.address_rate.check_key(&group).is_err() {
            return Err(Refused::AddressRate);
        }
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Refused::RelayBusy)?;
        if self.rate.check().is_err() {
            return Err(Refused::RelayRate);
        }
        Ok(Admission { _address_place: address_place, _place: place })
    }

    /// Forgets addresses that have been quiet for as long as their limits look back.
    pub fn sweep(&self) {
        self.address_rate.retain_recent();
        self.address_rate.shrink_to_fit();
    }

    /// Sweeps for ever.
    pub async fn keep_swept(&self) {
        loop {
            tokio::time::sleep(SWEEP_INTERVAL).await;
            self.sweep();
        }
    }

    fn hold(&self, group: AddressGroup) -> Option<AddressPlace> {
        match self.held.entry(group) {
            Entry::Occupied(count) if *count.get() >= self.per_address_max => return None,
            Entry::Occupied(mut count) => *count.get_mut() += 1,
            Entry::Vacant(count) => drop(count.insert(1)),
        }
        Some(AddressPlace { held: Arc::clone(&self.held), group })
    }
}

/// The place of a connection that has not authenticated. Dropping it gives the place back.
pub struct Admission {
    _address_place: AddressPlace,
    _place: OwnedSemaphorePermit,
}

struct AddressPlace {
    held: Arc<DashMap<AddressGroup, usize>>,
    group: AddressGroup,
}

impl Drop for AddressPlace {
    fn drop(&mut self) {
        self.held.remove_if_mut(&self.group, |_, count| {
            *count -= 1;
            *count == 0
        });
    }
}

#[cfg(test)]
mod tests {
    use governor::clock::FakeRelativeClock;

    use super::*;

    const ONE: NonZeroU32 = NonZeroU32::MIN;

    fn per_second(number: u32) -> NonZeroU32 {
        NonZeroU32::new(number).unwrap()
    }

    fn generous() -> UnauthenticatedLimits {
        UnauthenticatedLimits {
            max: 1000,
            per_address_max: 1000,
            rate: per_second(1000),
            burst: per_second(1000),
            per_address_rate: per_second(1000),
            per_address_burst: per_second(1000),
        }
    }

    fn limits(
        limits: &UnauthenticatedLimits,
    ) -> (AddressLimits<FakeRelativeClock>, FakeRelativeClock) {
        let clock = FakeRelativeClock::default();
        (AddressLimits::with_clock(limits, clock.clone()), clock)
    }

    fn address(last: u8) -> ClientAddress {
        ClientAddress::of_peer(([192, 0, 2, last], 9).into())
    }

    fn refusal<C: Clock + Clone>(
        limits: &AddressLimits<C>,
        from: ClientAddress,
    ) -> Option<Refused> {
        limits.admit(from).err()
    }

    #[test]
    fn places_are_given_back_and_nothing_is_remembered() {
        let (limits, _) =
            limits(&UnauthenticatedLimits { max: 3, per_address_max: 2, ..generous() });
        let first = limits.admit(address(1)).unwrap();
        let _second = limits.admit(address(1)).unwrap();
        assert_eq!(refusal(&limits, address(1)), Some(Refused::AddressBusy));
        let third = limits.admit(address(2)).unwrap();
        assert_eq!(refusal(&limits, address(3)), Some(Refused::RelayBusy));
        drop(first);
        assert_eq!(refusal(&limits, address(1)), None);
        drop(third);
        drop(_second);
        assert!(limits.held.is_empty());
        assert_eq!(limits.places.available_permits(), 3);
    }

    #[test]
    fn a_refusal_holds_no_place() {
        let (limits, _) = limits(&UnauthenticatedLimits { rate: ONE, burst: ONE, ..generous() });
        drop(limits.admit(address(1)).unwrap());
        assert_eq!(refusal(&limits, address(2)), Some(Refused::RelayRate));
        assert!(limits.held.is_empty());
        assert_eq!(limits.places.available_permits(), 1000);
    }

    #[test]
    fn one_fast_address_leaves_the_rate_of_all_to_others() {
        let (limits, clock) = limits(&UnauthenticatedLimits {
            rate: per_second(10),
            burst: per_second(10),
            per_address_rate: per_second(2),
            per_address_burst: per_second(2),
            ..generous()
        });
        let refused: Vec<_> = (0..20).map(|_| refusal(&limits, address(1))).collect();
        assert_eq!(refused.iter().filter(|it| it.is_none()).count(), 2);
        assert_eq!(refused[19], Some(Refused::AddressRate));
        assert_eq!(refusal(&limits, address(2)), None);
        clock.advance(Duration::from_millis(600));
        assert_eq!(refusal(&limits, address(1)), None);
        assert_eq!(refusal(&limits, address(1)), Some(Refused::AddressRate));
    }

    #[test]
    fn quiet_addresses_are_forgotten() {
        let (limits, clock) = limits(&generous());
        for last in 0..100 {
            drop(limits.admit(address(last)).unwrap());
        }
        assert_eq!(limits.address_rate.len(), 100);
        clock.advance(Duration::from_secs(5));
        limits.sweep();
        assert_eq!(limits.address_rate.len(), 0);
    }

    #[test]
    fn more_addresses_than_can_be_remembered_share_the_rate_of_all() {
        let (limits, _) = limits(&UnauthenticatedLimits {
            rate: per_second(1_000_000),
            burst: per_second(ADDRESSES_MAX as u32 + 10),
            per_address_rate: ONE,
            per_address_burst: ONE,
            ..generous()
        });
        let network = |number: usize| {
            let number = u16::try_from(number % ADDRESSES_MAX).unwrap();
            let bytes = [0x2001, 0xdb8, 0, number, 0, 0, 0, (number % 7) + 1];
            ClientAddress::of_peer((bytes, 9).into())
        };
        for number in 0..ADDRESSES_MAX {
            drop(limits.admit(network(number)).unwrap());
        }
        assert_eq!(limits.address_rate.len(), ADDRESSES_MAX);
        for last in 0..10 {
            assert_eq!(refusal(&limits, address(last)), None);
        }
        assert_eq!(refusal(&limits, address(99)), Some(Refused::RelayRate));
        assert_eq!(limits.address_rate.len(), ADDRESSES_MAX);
    }
}
