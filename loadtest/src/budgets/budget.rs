//! What is asked for: every budget, its bound, and why it is that.

use serde::Serialize;

use crate::ceiling::Best;
use crate::latency::Point;
use crate::report::{Against, Better, rate};

/// Entries a second that a lean server made durable and delivered in groups of four, eight of 1 KiB under
/// way in each of 250: one that neither authenticates nor hashes, with PostgreSQL 15 and its clients on
/// the same two cores of an AMD EPYC. On another machine it is another number: `--fan-out`.
pub(super) const LEAN_FAN_OUT: f64 = 60_000.0;

/// Where that number is from, for whoever reads the table.
pub(super) const LEAN_MACHINE: &str =
    "a server without keys and hashes, PostgreSQL 15 and clients on two cores of an AMD EPYC";

/// Share of the lean server's fan-out that is asked for.
const FAN_OUT_SHARE_MIN: f64 = 0.7;

/// Percent of what the store does alone.
const STORE_SHARE_MIN: f64 = 70.0;

/// Microseconds beside one commit, for a delivery at the median: reading, hashing, two sockets.
const DELIVER_BESIDE_COMMIT_US: f64 = 1000.0;

/// Commits of the slowest one in a hundred that such a delivery may take.
const DELIVER_COMMITS_MAX: f64 = 3.0;

const SATURATED_ENTRIES_MIN: f64 = 50.0;

/// One, and as much as two samples differ by that lie an entry apart.
const TRICKLE_ENTRIES_MAX: f64 = 1.05;

const KIBIBYTE: f64 = 1024.0;

const IDLE_BYTES_MAX: f64 = 12.0 * KIBIBYTE;

/// What is hoped for: no more than mosquitto needs.
pub(super) const IDLE_BYTES_GOAL: f64 = 6.0 * KIBIBYTE;

const AFTER_OVER_BEFORE_MAX: f64 = 1.2;

/// Microseconds: what NATS JetStream takes.
const CATCH_UP_US_MAX: f64 = 55_000.0;

const SIGNATURE_US_MAX: f64 = 50.0;

/// Everything that there is a budget for, in the order of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Budget {
    /// Durable appends without receivers, as a share of what the store does alone.
    StoreShare,
    /// Durable appends with three receivers for each.
    FanOut,
    /// From when an entry was due until a receiver had it, at a rate that leaves room.
    DeliverP50,
    DeliverP99,
    /// Entries in each commit, which waits for the disk once.
    SaturatedEntries,
    /// The same where hardly anything comes.
    TrickleEntries,
    IdleSession,
    AfterCrowd,
    CatchUp,
    /// What each verified signature adds to that.
    Signature,
    /// Whatever must never happen, of all that was taken.
    Faults,
}

impl Budget {
    pub(super) const ALL: [Self; 11] = [
        Self::StoreShare,
        Self::FanOut,
        Self::DeliverP50,
        Self::DeliverP99,
        Self::SaturatedEntries,
        Self::TrickleEntries,
        Self::IdleSession,
        Self::AfterCrowd,
        Self::CatchUp,
        Self::Signature,
        Self::Faults,
    ];

    pub(super) fn what(self) -> &'static str {
        match self {
            Self::StoreShare => "durable appends without receivers",
            Self::FanOut => "durable fan-out, groups of 4",
            Self::DeliverP50 => "push to deliver at 5,000/s, p50",
            Self::DeliverP99 => "push to deliver at 5,000/s, p99",
            Self::SaturatedEntries => "publishes per fsync at saturation",
            Self::TrickleEntries => "publishes per fsync at 10/s",
            Self::IdleSession => "memory of an idle session",
            Self::AfterCrowd => "memory 60 s after all left, over before",
            Self::CatchUp => "catching up with 10,000 × 1 KiB",
            Self::Signature => "each signature on the way",
            Self::Faults => "lost, doubled, disordered or altered",
        }
    }

    /// As `report::quantity` reads it.
    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::StoreShare => "%",
            Self::FanOut => "/s",
            Self::DeliverP50 | Self::DeliverP99 | Self::CatchUp | Self::Signature => "µs",
            Self::SaturatedEntries | Self::TrickleEntries | Self::AfterCrowd => "",
            Self::IdleSession => "bytes",
            Self::Faults => "copies",
        }
    }

    /// On which side of its bound the figure has to be; the bound itself is within.
    pub(super) fn better(self) -> Better {
        match self {
            Self::StoreShare | Self::FanOut | Self::SaturatedEntries => Better::Higher,
            Self::DeliverP50
            | Self::DeliverP99
            | Self::TrickleEntries
            | Self::IdleSession
            | Self::AfterCrowd
            | Self::CatchUp
            | Self::Signature
            | Self::Faults => Better::Lower,
        }
    }

    /// What is asked for, in words.
    pub(super) fn asked(self, lean_fan_out: f64) -> String {
        match self {
            Self::StoreShare => format!("at least {STORE_SHARE_MIN} % of the store alone"),
            Self::FanOut => {
                let share = FAN_OUT_SHARE_MIN * 100.0;
                let [least, lean] = [self.bound(lean_fan_out), lean_fan_out].map(rate);
                format!("at least {least}, {share} % of {lean}")
            }
            Self::DeliverP50 => "at most a mean commit and 1 ms".to_owned(),
            Self::DeliverP99 => format!("at most {DELIVER_COMMITS_MAX} commits at p99"),
            Self::SaturatedEntries => format!("at least {SATURATED_ENTRIES_MIN}"),
            Self::TrickleEntries => "1".to_owned(),
            Self::IdleSession => {
                let [most, goal] = [IDLE_BYTES_MAX, IDLE_BYTES_GOAL].map(|it| it / KIBIBYTE);
                format!("at most {most} KiB, goal {goal} KiB")
            }
            Self::AfterCrowd => format!("at most {AFTER_OVER_BEFORE_MAX}"),
            Self::CatchUp => format!("at most {} ms", CATCH_UP_US_MAX / 1000.0),
            Self::Signature => format!("at most {SIGNATURE_US_MAX} µs"),
            Self::Faults => "0".to_owned(),
        }
    }

    /// The value that the figure must not pass. `basis` is what it is made of, where it is another
    /// figure: what a lean server does, or a commit of the same run in microseconds.
    pub(super) fn bound(self, basis: f64) -> f64 {
        match self {
            Self::StoreShare => STORE_SHARE_MIN,
            Self::FanOut => basis * FAN_OUT_SHARE_MIN,
            Self::DeliverP50 => basis + DELIVER_BESIDE_COMMIT_US,
            Self::DeliverP99 => basis * DELIVER_COMMITS_MAX,
            Self::SaturatedEntries => SATURATED_ENTRIES_MIN,
            Self::TrickleEntries => TRICKLE_ENTRIES_MAX,
            Self::IdleSession => IDLE_BYTES_MAX,
            Self::AfterCrowd => AFTER_OVER_BEFORE_MAX,
            Self::CatchUp => CATCH_UP_US_MAX,
            Self::Signature => SIGNATURE_US_MAX,
            Self::Faults => 0.0,
        }
    }

    /// What of this machine the figure is told as a ratio to; none of what is a ratio already, or a
    /// count.
    pub(super) fn against(self) -> Option<Against> {
        let best = match self {
            Self::StoreShare
            | Self::SaturatedEntries
            | Self::TrickleEntries
            | Self::AfterCrowd
            | Self::Faults => return None,
            Self::FanOut => Best::Store { acked: true },
            Self::DeliverP50 => Best::Sync(Point::P50),
            Self::DeliverP99 => Best::Sync(Point::P99),
            Self::IdleSession => Best::Sessions(1),
            Self::CatchUp => Best::StreamLast { signatures: 0 },
            Self::Signature => Best::Signature,
        };
        Some(Against::Best(best))
    }

    /// Whether the bound is another figure of the same run, so that it stands beside the figure.
    pub(super) fn is_bound_by_its_run(self) -> bool {
        matches!(self, Self::DeliverP50 | Self::DeliverP99)
    }
}
