//! Who is calling, for rate limits and nothing else.
//!
//! The address is the peer's, unless the peer is a trusted proxy: then it is the right-most entry of
//! `X-Forwarded-For` that is not a trusted proxy itself. *Entries further left were written by the
//! caller and may say anything.* `Forwarded` and `X-Real-IP` are never read: two headers that say the
//! same can differ, and whoever can send the one that the proxy does not overwrite chooses his own
//! address.
//!
//! Addresses are never stored and cannot be logged: the types here have a `Debug` that prints
//! nothing and no `Display`.

pub mod limits;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::HeaderMap;
use ipnet::IpNet;

pub use limits::{AddressLimits, Admission, Refused};

/// The one header that is read from trusted proxies.
const FORWARDED_FOR: &str = "x-forwarded-for";

/// Most entries of the header that are looked at, from the right. A longer chain of one's own
/// proxies is a mistake; longer lists are the caller's.
const HOPS_MAX: usize = 16;

/// The part of an IPv6 address that one customer has, at least: 64 bits.
const IPV6_GROUP_MASK: u128 = u128::MAX << 64;

/// The address that a connection or request comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(IpAddr);

impl ClientAddress {
    /// The address of whoever is at the other end of the socket.
    #[must_use]
    pub fn of_peer(peer: SocketAddr) -> Self {
        // An IPv4 caller on an IPv6 socket is an IPv4 caller.
        Self(peer.ip().to_canonical())
    }

    /// The address of the device: the peer's, or what the trusted proxy says.
    #[must_use]
    pub fn of_request(peer: SocketAddr, headers: &HeaderMap, proxies: &TrustedProxies) -> Self {
        let mut client = Self::of_peer(peer);
        let entries = headers.get_all(FORWARDED_FOR).iter().rev().flat_map(|line| {
            // A line that is not text ends the walk like any entry that is no address.
            line.to_str().unwrap_or("?").rsplit(',')
        });
        for entry in entries.take(HOPS_MAX) {
            if !proxies.trust(client) {
                break;
            }
            match parse_entry(entry.trim()) {
                Some(address) => client = Self(address.to_canonical()),
                None => break,
            }
        }
        client
    }

    /// Whose limits apply: the IPv4 address, or the IPv6 /64.
    #[must_use]
    pub fn group(self) -> AddressGroup {
        match self.0 {
            IpAddr::V4(_) => AddressGroup(self.0),
            IpAddr::V6(address) => {
                let network = u128::from(address) & IPV6_GROUP_MASK;
                AddressGroup(IpAddr::V6(Ipv6Addr::from(network)))
            }
        }
    }
}

impl fmt::Debug for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientAddress")
    }
}

/// Addresses that share their limits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressGroup(IpAddr);

impl fmt::Debug for AddressGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AddressGroup")
    }
}

/// The proxies whose word is believed.
#[derive(Clone, Default)]
pub struct TrustedProxies(Vec<IpNet>);

impl TrustedProxies {
    /// Reads addresses and networks, separated by commas. None if one of them is neither.
    #[must_use]
    pub fn parse(list: &str) -> Option<Self> {
        list.split(',')
            .map(str::trim)
            .filter(|entry| !entry.is_empty())
            .map(|entry| match entry.parse::<IpAddr>() {
                Ok(address) => Some(IpNet::from(address.to_canonical())),
                Err(_) => entry.parse::<IpNet>().ok(),
            })
            .collect::<Option<Vec<_>>>()
            .map(Self)
    }

    /// Whether this is one of them: then the device's own address is known only with the request.
    #[must_use]
    pub fn trust(&self, address: ClientAddress) -> bool {
        self.0.iter().any(|network| network.contains(&address.0))
    }
}

/// An entry of the header: an address, with a port or without.
fn parse_entry(entry: &str) -> Option<IpAddr> {
    let bare = entry.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(entry);
    bare.parse().ok().or_else(|| entry.parse::<SocketAddr>().ok().map(|address| address.ip()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen_as(peer: &str, lines: &[&str], trusted: &str) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED_FOR, line.parse().unwrap());
        }
        let proxies = TrustedProxies::parse(trusted).unwrap();
        ClientAddress::of_request(peer.parse().unwrap(), &headers, &proxies).0.to_string()
    }

    #[test]
    fn a_stranger_cannot_choose_his_address() {
        assert_eq!(seen_as("192.0.2.1:9", &["10.1.1.1"], ""), "192.0.2.1");
        assert_eq!(seen_as("192.0.2.1:9", &["10.1.1.1"], "10.0.0.0/8"), "192.0.2.1");
        // What he wrote himself stands left of what the proxy wrote.
        assert_eq!(seen_as("10.0.0.1:9", &["198.51.100.7, 192.0.2.1"], "10.0.0.1"), "192.0.2.1");
        assert_eq!(seen_as("10.0.0.1:9", &["198.51.100.7", "192.0.2.1"], "10.0.0.1"), "192.0.2.1");
    }

    #[test]
    fn own_proxies_are_passed_over_from_the_right() {
        let chain = ["203.0.113.9, 192.0.2.1, 10.0.0.3", "10.0.0.2"];
        assert_eq!(seen_as("10.0.0.1:9", &chain, "10.0.0.0/8"), "192.0.2.1");
        assert_eq!(seen_as("10.0.0.1:9", &["10.0.0.2"], "10.0.0.0/8"), "10.0.0.2");
        assert_eq!(seen_as("10.0.0.1:9", &[], "10.0.0.0/8"), "10.0.0.1");
    }

    #[test]
    fn nonsense_ends_the_walk_at_the_last_address_that_is_known() {
        assert_eq!(seen_as("10.0.0.1:9", &["192.0.2.1, unknown"], "10.0.0.0/8"), "10.0.0.1");
        assert_eq!(seen_as("10.0.0.1:9", &["unknown, 10.0.0.2"], "10.0.0.0/8"), "10.0.0.2");
        assert_eq!(seen_as("10.0.0.1:9", &["192.0.2.1,"], "10.0.0.0/8"), "10.0.0.1");
        let long = "10.0.0.9,".repeat(1000) + "10.0.0.9";
        assert_eq!(seen_as("10.0.0.1:9", &[&long], "10.0.0.0/8"), "10.0.0.9");
    }

    #[test]
    fn entries_may_have_a_port_and_brackets() {
        for entry in ["192.0.2.1:4711", "192.0.2.1", "::ffff:192.0.2.1", "[::ffff:192.0.2.1]:80"] {
            assert_eq!(seen_as("10.0.0.1:9", &[entry], "10.0.0.1"), "192.0.2.1", "{entry}");
        }
        assert_eq!(seen_as("[::1]:9", &["[2001:db8::7]"], "::1"), "2001:db8::7");
    }

    #[test]
    fn no_other_header_says_who_is_calling() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("forwarded", "for=192.0.2.1"),
            ("x-real-ip", "192.0.2.1"),
            ("x-client-ip", "192.0.2.1"),
            ("cf-connecting-ip", "192.0.2.1"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let proxies = TrustedProxies::parse("10.0.0.1").unwrap();
        let seen = ClientAddress::of_request("10.0.0.1:9".parse().unwrap(), &headers, &proxies);
        assert_eq!(seen.0.to_string(), "10.0.0.1");
    }

    #[test]
    fn an_ipv4_proxy_on_an_ipv6_socket_is_trusted() {
        assert_eq!(seen_as("[::ffff:10.0.0.1]:9", &["192.0.2.1"], "10.0.0.1"), "192.0.2.1");
    }

    #[test]
    fn a_group_is_an_ipv4_address_or_an_ipv6_network() {
        let group = |peer: &str| ClientAddress::of_peer(peer.parse().unwrap()).group();
        assert!(group("[2001:db8::1]:1") == group("[2001:db8::ffff:0:0:2]:2"));
        assert!(group("[2001:db8::1]:1") != group("[2001:db8:0:1::1]:1"));
        assert!(group("192.0.2.1:1") != group("192.0.2.2:1"));
        assert!(group("[::ffff:192.0.2.1]:1") == group("192.0.2.1:2"));
    }

    #[test]
    fn a_list_with_a_mistake_is_refused_whole() {
        assert!(TrustedProxies::parse(" 10.0.0.1 , 2001:db8::/32, ").is_some());
        for list in ["10.0.0.1/33", "proxy.example", "10.0.0.1;10.0.0.2"] {
            assert!(TrustedProxies::parse(list).is_none(), "{list}");
        }
    }

    #[test]
    fn nothing_prints_an_address() {
        let address = ClientAddress::of_peer("192.0.2.1:9".parse().unwrap());
        assert_eq!(format!("{address:?} {:?}", address.group()), "ClientAddress AddressGroup");
    }
}
