//! Whether a device's groups have changed while nobody was there to hear it.
//!
//! The app asks for nothing when its stream of changes comes back, so what it missed must be told when
//! it does. The relay remembers for a while whose stream has ended, and what has changed since. About
//! the time before its own start it knows nothing: whoever comes back soon after is told to look.
//!
//! Holds always: memory is bounded; whoever is not remembered within [`CHANGES_KEPT`] of the start is
//! taken for somebody who may have missed something, never for somebody who has not.

use dashmap::DashMap;
use sealwire_protocol::DeviceKey;
use tokio::time::Instant;

use crate::limits::{CHANGES_DEVICES_MAX, CHANGES_KEPT};

/// What is known of a device whose stream opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missed {
    /// Something has changed that it was not told.
    Something,
    /// Nothing, as far as anybody remembers.
    Nothing,
    /// The relay has not been here for long enough to say.
    Unknown,
}

/// Devices that were there lately, or would have been told something.
pub(crate) struct Unheard {
    /// Since when a device is away, and what it has missed.
    devices: DashMap<DeviceKey, (Instant, Missed)>,
    started: Instant,
}

impl Unheard {
    pub(crate) fn new() -> Self {
        Self { devices: DashMap::new(), started: Instant::now() }
    }

    /// What a device has missed.
    pub(crate) fn missed_by(&self, device: DeviceKey) -> Missed {
        let kept = self.devices.get(&device).map(|kept| *kept);
        match kept.filter(|(since, _)| is_recent(*since)) {
            Some((_, missed)) => missed,
            None => self.missed_by_others(),
        }
    }

    /// What whoever is not remembered has missed.
    fn missed_by_others(&self) -> Missed {
        if is_recent(self.started) { Missed::Unknown } else { Missed::Nothing }
    }

    /// A device's stream has ended. It has others, which may not have been told what it was.
    pub(crate) fn gone(&self, device: DeviceKey) {
        if self.has_room(device) && self.missed_by(device) != Missed::Something {
            self.devices.insert(device, (Instant::now(), self.missed_by_others()));
        }
    }

    /// A device's groups have changed. `away`: it is not listening, and has not done it itself.
    pub(crate) fn changed(&self, device: DeviceKey, away: bool) {
        if let Some(mut kept) = self.devices.get_mut(&device) {
            kept.1 = Missed::Something;
            return;
        }
        // It may have been listening to the relay before this one.
        if away && is_recent(self.started) && self.has_room(device) {
            self.devices.insert(device, (Instant::now(), Missed::Something));
        }
    }

    /// Whether another device can be remembered.
    fn has_room(&self, device: DeviceKey) -> bool {
        if self.devices.len() >= CHANGES_DEVICES_MAX {
            self.devices.retain(|_, (since, _)| is_recent(*since));
        }
        self.devices.len() < CHANGES_DEVICES_MAX || self.devices.contains_key(&device)
    }
}

fn is_recent(since: Instant) -> bool {
    since.elapsed() < CHANGES_KEPT
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const DEVICE: DeviceKey = DeviceKey([1; 32]);

    #[tokio::test(start_paused = true)]
    async fn what_changes_while_a_stream_is_away_is_missed() {
        let unheard = Unheard::new();
        advance(CHANGES_KEPT).await;
        unheard.gone(DEVICE);
        assert_eq!(unheard.missed_by(DEVICE), Missed::Nothing);
        unheard.changed(DEVICE, true);
        assert_eq!(unheard.missed_by(DEVICE), Missed::Something);
        unheard.gone(DEVICE);
        assert_eq!(unheard.missed_by(DEVICE), Missed::Something, "by its other stream");
        advance(CHANGES_KEPT).await;
        assert_eq!(unheard.missed_by(DEVICE), Missed::Nothing);
    }

    #[tokio::test(start_paused = true)]
    async fn a_relay_that_has_just_started_does_not_know() {
        let unheard = Unheard::new();
        assert_eq!(unheard.missed_by(DEVICE), Missed::Unknown);
        // What it did itself, it knows.
        unheard.changed(DEVICE, false);
        assert_eq!(unheard.missed_by(DEVICE), Missed::Unknown);
        unheard.changed(DEVICE, true);
        assert_eq!(unheard.missed_by(DEVICE), Missed::Something);
        advance(CHANGES_KEPT).await;
        assert_eq!(unheard.missed_by(DEVICE), Missed::Nothing);
        unheard.changed(DeviceKey([2; 32]), true);
        assert_eq!(
            unheard.missed_by(DeviceKey([2; 32])),
            Missed::Nothing,
            "it was away for longer"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded() {
        let unheard = Unheard::new();
        for number in 0..CHANGES_DEVICES_MAX + 10 {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_be_bytes());
            unheard.changed(DeviceKey(key), true);
        }
        assert_eq!(unheard.devices.len(), CHANGES_DEVICES_MAX);
        assert_eq!(unheard.missed_by(DEVICE), Missed::Unknown, "and is not taken for nothing");
    }
}
