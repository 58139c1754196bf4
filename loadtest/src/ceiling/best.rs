//! What a figure can be held against, of all that this machine does at best.

use super::Ceilings;
use super::store::Committed;
use crate::latency::Point;

/// Something that this machine does at best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Best {
    /// How long the disk takes to keep 8 KiB: what a commit waits for.
    Sync(Point),
    /// How often it does so in a second.
    Syncs,
    /// Bytes a second to the disk.
    DiskBytes,
    /// Entries a second that the store makes durable, also with the acks of those who receive them. In a
    /// build without the store, messages a second through WebSockets.
    Store { acked: bool },
    /// Copies a second that reach those for whom they are, through WebSockets.
    FanOut,
    /// How long messages in a row take, to the first of them.
    StreamFirst,
    /// The same to the last; where each is signed, with the time to check so many signatures.
    StreamLast { signatures: usize },
    /// How long a handshake takes with a key proved, while many do so.
    Entrance(Point),
    /// How long it takes until this share of so many devices is in that come at the same moment.
    Entrances { devices: usize, point: Point },
    /// Memory of so many sessions that do nothing.
    Sessions(usize),
    /// How long a signature takes to be checked.
    Signature,
    /// How often a process waits that hands on messages as fast as it goes.
    Switches,
}

impl Ceilings {
    /// Its name, and its value in the unit of what is held against it.
    pub(crate) fn best(&self, best: Best) -> (String, f64) {
        let Self { disk, fan_out, streams, sessions, store, .. } = self;
        let of = |name: &str, value| (name.to_owned(), value);
        let at = |name: &str, point: Point| format!("{name}, {}", point.name());
        match best {
            Best::Sync(point) => (at("fdatasync alone", point), disk.overwrite.at(point)),
            Best::Syncs => of("fdatasync alone", disk.syncs_per_second()),
            Best::DiskBytes => of("the disk alone", disk.bytes_per_second),
            Best::Store { acked } => {
                let committed = |store: &Committed| store.entries_per_second(acked);
                match (store.as_ref().map(committed), acked) {
                    (Some(value), true) => of("the store alone, with acks", value),
                    (Some(value), false) => of("the store alone", value),
                    (None, _) => {
                        of("messages through WebSockets alone", fan_out.messages_per_second)
                    }
                }
            }
            Best::FanOut => of("WebSockets alone", fan_out.deliveries_per_second),
            Best::StreamFirst => of("a WebSocket alone", streams.first_us),
            Best::StreamLast { signatures: 0 } => of("a WebSocket alone", streams.last_us),
            Best::StreamLast { signatures } => {
                let checked = signatures as f64 * sessions.signature_us;
                of("a WebSocket and signatures alone", streams.last_us + checked)
            }
            Best::Entrance(point) => (at("a handshake alone", point), sessions.entrance.at(point)),
            Best::Entrances { devices, point } => {
                let came = devices as f64 * point.share();
                let took_us = came * 1e6 / sessions.entrances_per_second;
                (at(&format!("{devices} handshakes alone"), point), took_us)
            }
            Best::Sessions(1) => of("a bare session", sessions.bytes_each),
            Best::Sessions(many) => {
                (format!("{many} bare sessions"), sessions.bytes_each * many as f64)
            }
            Best::Signature => of("a signature alone", sessions.signature_us),
            Best::Switches => of("WebSockets alone", fan_out.switches_per_second),
        }
    }
}
