//! How often one device may write what stays for as long as its log: control entries, and new logs.
//!
//! Content falls under a group's quota until it is delivered, and goes by itself. Control entries are
//! never refused for a quota and never go, so a member who writes nothing else would fill the disk
//! unseen. Keys of a vault count in its limits, and never go either: a device that wrote nothing else
//! would take the room from the others, and revoking it would not give it back. Each device has a number of them at once in each log, and then one from time to time; all
//! devices of a log together have more, but for leaving and revoking, which nobody may keep another
//! from. Nothing of it is stored: a restart forgives.
//!
//! Holds always: memory is bounded; where there is no room to remember, nobody is held back.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use sealwire_protocol::{Control, DeviceKey, ErrorCode, Failure};
use tokio::time::Instant;

use crate::limits::{
    CONTROL_BURST, CONTROL_PERIOD, FOUND_BURST, FOUND_PERIOD, KEYS_BURST, KEYS_PERIOD,
    KEYS_UNIT_BYTES, LOG_CONTROL_BURST, LOG_CONTROL_PERIOD, PACES_MAX,
};
use crate::ports::LogKey;

/// What is counted apart from everything else.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Lane {
    /// Logs that a device founds.
    Founding(DeviceKey),
    /// Control entries of a device in a log.
    Device(LogKey, DeviceKey),
    /// Control entries of a log.
    Log(LogKey),
    /// Keys of a device in a vault, in units of [`KEYS_UNIT_BYTES`].
    Keys(LogKey, DeviceKey),
}

impl Lane {
    /// How many at once, and how long it takes to earn another.
    fn allowance(self) -> (u32, Duration) {
        match self {
            Self::Founding(_) => (FOUND_BURST, FOUND_PERIOD),
            Self::Device(..) => (CONTROL_BURST, CONTROL_PERIOD),
            Self::Log(_) => (LOG_CONTROL_BURST, LOG_CONTROL_PERIOD),
            Self::Keys(..) => (KEYS_BURST, KEYS_PERIOD),
        }
    }
}

/// Who has written how much lately.
#[derive(Default)]
pub(crate) struct Paces {
    /// When each will have earned back all that it has used; one that has is not here.
    earned_back: Mutex<HashMap<Lane, Instant>>,
}

impl Paces {
    /// Whether a device may found another log now.
    pub(crate) fn may_found(&self, device: DeviceKey) -> Result<(), Failure> {
        self.check(&[Lane::Founding(device)], 1)
    }

    /// A device has founded a log.
    pub(crate) fn founded(&self, device: DeviceKey) {
        self.take(&[Lane::Founding(device)], 1);
    }

    /// Whether a device may write this control entry to a log now.
    pub(crate) fn may_control(
        &self,
        log: LogKey,
        device: DeviceKey,
        control: &Control,
    ) -> Result<(), Failure> {
        let both = [Lane::Device(log, device), Lane::Log(log)];
        let own_alone = matches!(control, Control::Leave | Control::Revoke { .. });
        self.check(if own_alone { &both[..1] } else { &both }, 1)
    }

    /// Whether a device may become a member of a group now. It may leave a `totals` group at any time:
    /// who leaves has joined before.
    pub(crate) fn may_join(&self, log: LogKey, device: DeviceKey) -> Result<(), Failure> {
        self.check(&[Lane::Device(log, device), Lane::Log(log)], 1)
    }

    /// A device has written a control entry to a log.
    pub(crate) fn controlled(&self, log: LogKey, device: DeviceKey) {
        self.take(&[Lane::Device(log, device), Lane::Log(log)], 1);
    }

    /// Whether a device may write keys of so many units to a vault now.
    pub(crate) fn may_keep_keys(
        &self,
        log: LogKey,
        device: DeviceKey,
        units: u32,
    ) -> Result<(), Failure> {
        self.check(&[Lane::Keys(log, device)], units)
    }

    /// A device has written keys to a vault.
    pub(crate) fn kept_keys(&self, log: LogKey, device: DeviceKey, units: u32) {
        self.take(&[Lane::Keys(log, device)], units);
    }

    fn check(&self, lanes: &[Lane], units: u32) -> Result<(), Failure> {
        let now = Instant::now();
        let earned_back = self.earned_back.lock();
        for lane in lanes {
            let (burst, period) = lane.allowance();
            let owed = earned_back.get(lane).map_or(Duration::ZERO, |at| *at - now);
            let wait = (owed + period * units).saturating_sub(period * burst);
            if !wait.is_zero() {
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
                return Err(Failure::after_ms(ErrorCode::RateLimited, wait_ms));
            }
        }
        Ok(())
    }

    fn take(&self, lanes: &[Lane], units: u32) {
        let now = Instant::now();
        let mut earned_back = self.earned_back.lock();
        for lane in lanes {
            if earned_back.len() >= PACES_MAX {
                earned_back.retain(|_, at| *at > now);
            }
            if earned_back.len() < PACES_MAX {
                let at = earned_back.entry(*lane).or_insert(now);
                *at = (*at).max(now) + lane.allowance().1 * units;
            }
        }
    }
}

/// What the body of a key entry uses of its author's pace.
pub(crate) fn key_units(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(KEYS_UNIT_BYTES).max(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    const LOG: LogKey = LogKey(1);

    fn device(number: u32) -> DeviceKey {
        let mut key = [0; 32];
        key[..4].copy_from_slice(&number.to_be_bytes());
        DeviceKey(key)
    }

    fn join_key() -> Control {
        Control::JoinKey { join_key: device(0) }
    }

    #[tokio::test(start_paused = true)]
    async fn one_has_some_at_once_and_then_one_from_time_to_time() {
        let paces = Paces::default();
        for _ in 0..CONTROL_BURST {
            paces.may_control(LOG, device(1), &join_key()).expect("at once");
            paces.controlled(LOG, device(1));
        }
        let failure = paces.may_control(LOG, device(1), &join_key()).expect_err("too many");
        let period_ms = CONTROL_PERIOD.as_millis() as u64;
        assert_eq!(
            (failure.code, failure.retry_after_ms),
            (ErrorCode::RateLimited, Some(period_ms))
        );
        // Not in another log, and not another device.
        paces.may_control(LogKey(2), device(1), &join_key()).expect("another log");
        paces.may_control(LOG, device(2), &join_key()).expect("another device");
        advance(CONTROL_PERIOD).await;
        paces.may_control(LOG, device(1), &join_key()).expect("one was earned");
    }

    #[tokio::test(start_paused = true)]
    async fn many_devices_together_are_held_back_but_not_from_leaving_and_revoking() {
        let paces = Paces::default();
        for number in 0..LOG_CONTROL_BURST {
            paces.may_control(LOG, device(number), &join_key()).expect("at once");
            paces.controlled(LOG, device(number));
        }
        let late = device(LOG_CONTROL_BURST);
        assert!(paces.may_control(LOG, late, &join_key()).is_err());
        paces.may_control(LOG, late, &Control::Leave).expect("leaving");
        let revoke = Control::Revoke { device: device(1), join_key: None };
        paces.may_control(LOG, late, &revoke).expect("revoking");
    }

    #[tokio::test(start_paused = true)]
    async fn long_keys_use_more_of_the_pace_than_short_ones() {
        let (paces, one) = (Paces::default(), device(1));
        assert_eq!((key_units(0), key_units(KEYS_UNIT_BYTES + 1)), (1, 2));
        paces.may_keep_keys(LOG, one, KEYS_BURST).expect("at once");
        paces.kept_keys(LOG, one, KEYS_BURST - 1);
        paces.may_keep_keys(LOG, one, 1).expect("a short one");
        let failure = paces.may_keep_keys(LOG, one, 3).expect_err("a long one");
        let wait_ms = 2 * KEYS_PERIOD.as_millis() as u64;
        assert_eq!((failure.code, failure.retry_after_ms), (ErrorCode::RateLimited, Some(wait_ms)));
        // Nobody else is held back, nor is this one from revoking.
        paces.may_keep_keys(LOG, device(2), 3).expect("another device");
        paces.may_control(LOG, one, &join_key()).expect("something else");
        advance(KEYS_PERIOD * 2).await;
        paces.may_keep_keys(LOG, one, 3).expect("it was earned");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_is_bounded_and_forgotten() {
        let paces = Paces::default();
        for number in 0..=PACES_MAX as u32 {
            paces.founded(device(number));
        }
        assert_eq!(paces.earned_back.lock().len(), PACES_MAX);
        advance(FOUND_PERIOD * 2).await;
        paces.founded(device(0));
        assert_eq!(paces.earned_back.lock().len(), 1);
        paces.may_found(device(0)).expect("one of many");
    }
}
