//! How often one device may write what stays for as long as its log: control entries, and new logs.
//!
//! Content falls under a group's quota until it is delivered, and goes by itself. Control entries are
//! never refused for a quota and never go, so a member who writes nothing else would fill the disk
//! unseen. Each device has a number of them at once in each log, and then one from time to time; all
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
    CONTROL_BURST, CONTROL_PERIOD, FOUND_BURST, FOUND_PERIOD, LOG_CONTROL_BURST,
    LOG_CONTROL_PERIOD, PACES_MAX,
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
}

impl Lane {
    /// How many at once, and how long it takes to earn another.
    fn allowance(self) -> (u32, Duration) {
        match self {
            Self::Founding(_) => (FOUND_BURST, FOUND_PERIOD),
            Self::Device(..) => (CONTROL_BURST, CONTROL_PERIOD),
            Self::Log(_) => (LOG_CONTROL_BURST, LOG_CONTROL_PERIOD),
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
        self.check(&[Lane::Founding(device)])
    }

    /// A device has founded a log.
    pub(crate) fn founded(&self, device: DeviceKey) {
        self.take(&[Lane::Founding(device)]);
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
        self.check(if own_alone { &both[..1] } else { &both })
    }

    /// Whether a device may become a member of a `totals` group now. It may leave at any time: who
    /// leaves has joined before.
    pub(crate) fn may_join(&self, log: LogKey, device: DeviceKey) -> Result<(), Failure> {
        self.check(&[Lane::Device(log, device), Lane::Log(log)])
    }

    /// A device has written a control entry to a log.
    pub(crate) fn controlled(&self, log: LogKey, device: DeviceKey) {
        self.take(&[Lane::Device(log, device), Lane::Log(log)]);
    }

    fn check(&self, lanes: &[Lane]) -> Result<(), Failure> {
        let now = Instant::now();
        let earned_back = self.earned_back.lock();
        for lane in lanes {
            let (burst, period) = lane.allowance();
            let owed = earned_back.get(lane).map_or(Duration::ZERO, |at| *at - now);
            let wait = (owed + period).saturating_sub(period * burst);
            if !wait.is_zero() {
                let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
                return Err(Failure::after_ms(ErrorCode::RateLimited, wait_ms));
            }
        }
        Ok(())
    }

    fn take(&self, lanes: &[Lane]) {
        let now = Instant::now();
        let mut earned_back = self.earned_back.lock();
        for lane in lanes {
            if earned_back.len() >= PACES_MAX {
                earned_back.retain(|_, at| *at > now);
            }
            if earned_back.len() < PACES_MAX {
                let at = earned_back.entry(*lane).or_insert(now);
                *at = (*at).max(now) + lane.allowance().1;
            }
        }
    }
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
