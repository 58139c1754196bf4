//! What the load tester never exceeds, with units and reasons. It is made to be run on a machine that
//! somebody needs.

use std::time::Duration;

/// Most devices of one run: what the ports and open files of one machine hold.
pub(crate) const DEVICES_MAX: usize = 60_000;

/// Longest that a run may load a relay, in seconds, warm-up not counted.
pub(crate) const SECONDS_MAX: u64 = 600;

/// Most members of one group of a run: the load is meant to be many groups, not one.
pub(crate) const MEMBERS_MAX: usize = 64;

/// New connections per second: below what a relay lets strangers do with its default settings.
pub(crate) const CONNECTS_PER_SECOND: u32 = 1000;

/// Loopback addresses that devices connect from. Relays limit strangers by address, and each address
/// has its own ports: 250 are enough for both.
pub(crate) const SOURCES: u64 = 250;

/// Groups that are set up at the same time.
pub(crate) const SETUPS_MAX: usize = 32;

/// How often a request is repeated that the relay asks to repeat, while groups are set up.
pub(crate) const ATTEMPTS_MAX: u32 = 8;

/// Open files that the load tester needs beside its connections.
pub(crate) const OPEN_FILES_RESERVE: u64 = 64;

/// How long a device may take to hear of what it waits for.
pub(crate) const ANSWER_DEADLINE: Duration = Duration::from_secs(60);

/// How long the relay may take, after the load has ended, to answer and deliver what was sent.
pub(crate) const DRAIN_DEADLINE: Duration = Duration::from_secs(60);

/// How often the relay's process is looked at.
pub(crate) const SAMPLE_PAUSE: Duration = Duration::from_millis(200);
