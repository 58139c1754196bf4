//! What the load tester never exceeds, with units and reasons. It is made to be run on a machine that
//! somebody needs.

use std::time::Duration;

/// Most devices of one run: what the ports and open files of one machine hold.
pub(crate) const DEVICES_MAX: usize = 60_000;

/// Longest that a run may load a relay, in seconds, warm-up not counted: an hour, for a soak.
pub(crate) const SECONDS_MAX: u64 = 3600;

/// Most repetitions of a measurement: more than are needed to know the spread.
pub(crate) const REPEATS_MAX: usize = 20;

/// Most processes of one crowd.
pub(crate) const PARTS_MAX: usize = 64;

/// Most rounds of a measurement that compares two sides in turn: more than are needed to know the
/// spread.
pub(crate) const ROUNDS_MAX: usize = 20;

/// Most rates of one ramp.
pub(crate) const RATES_MAX: usize = 32;

/// How long a relay may take to be ready: a database may be slow to come.
pub(crate) const RELAY_START_DEADLINE: Duration = Duration::from_secs(30);

/// How long a relay may take to stop: its own deadline is 25 seconds unless it was told otherwise.
pub(crate) const RELAY_STOP_DEADLINE: Duration = Duration::from_secs(40);

/// Most members of one group: what a relay allows in a native group.
pub(crate) const MEMBERS_MAX: usize = 1000;

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

/// How often everything is looked at: an eye can tell no more apart on a page, and the relay spends
/// next to nothing on the answers.
pub(crate) const SAMPLE_PAUSE: Duration = Duration::from_millis(250);

/// About how many samples a run may have: as many as a page has points. Longer runs are looked at
/// less often.
pub(crate) const SAMPLES_MAX: u32 = 2400;

/// How often a measurement looks whether its time is over and its devices are well.
pub(crate) const LOOK_PAUSE: Duration = Duration::from_millis(50);

/// How long a device may take to come back after its connection was lost, with a relay that starts
/// again meanwhile.
pub(crate) const RETURN_DEADLINE: Duration = Duration::from_secs(60);

/// Between two attempts to reach a relay that is not there.
pub(crate) const RETURN_PAUSE: Duration = Duration::from_millis(50);

/// Most entries that one reader lacks and remembers, to tell late ones from lost ones.
pub(crate) const MISSING_MAX: usize = 100_000;
