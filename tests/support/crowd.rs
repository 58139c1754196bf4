//! Many devices in many groups that write and read as they like, are cut off, send twice, and write
//! down everything for the judge ([`super::history`]).
//!
//! A device here keeps what every device must keep over a crash of the relay: its entries that were
//! not answered, signed, in order; its cursors; its acks. It never waits for an answer before it goes
//! on, so whatever happens to the relay happens in the middle of something.

mod device;

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use sealwire_client::address::RelayUrl;
use sealwire_protocol::{DeviceKey, LogId};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::DEADLINE;
use super::device::Device;
use super::history::{Event, History, Record};
use super::random::Random;
use device::{Membership, Walker};

/// How large a crowd.
pub(crate) struct Size {
    pub(crate) devices: usize,
    pub(crate) groups: usize,
    /// Members of each group.
    pub(crate) members: usize,
}

/// What happens, in order.
#[derive(Clone, Default)]
pub(crate) struct Recorder(Arc<Mutex<Vec<Record>>>);

impl Recorder {
    /// The history of what was noted.
    pub(crate) fn take(&self) -> History {
        History::new(std::mem::take(&mut *self.0.lock()))
    }

    pub(crate) fn note(&self, device: DeviceKey, log: LogId, event: Event) {
        let mut records = self.0.lock();
        let at = records.len() as u64;
        records.push(Record { at, device, log, event });
    }
}

/// A device that has written and read as it liked, and comes to an end.
pub(crate) trait Walks: Send + 'static {
    /// Sends everything that was not answered until it is.
    async fn settle(&mut self);

    /// Reads everything from the beginning.
    async fn read_all(&mut self);
}

/// Waits until devices that walk have stopped, which they are told after `beside` has happened, then has
/// them settle and read everything, and gives them back.
pub(crate) async fn walk_to_the_end<W: Walks>(
    walking: Vec<JoinHandle<W>>,
    stop: &watch::Sender<bool>,
    beside: impl Future<Output = ()>,
) -> Vec<W> {
    beside.await;
    stop.send_replace(true);
    let mut walkers = Vec::new();
    for walker in walking {
        let walker = timeout(DEADLINE, walker).await.expect("a device stops in time");
        walkers.push(walker.expect("a device does not panic"));
    }
    let settled = join_all(walkers.iter_mut().map(W::settle));
    timeout(DEADLINE * 2, settled).await.expect("everything is answered in the end");
    let read = join_all(walkers.iter_mut().map(W::read_all));
    timeout(DEADLINE * 2, read).await.expect("everything is read in the end");
    walkers
}

/// A crowd of devices.
pub(crate) struct Crowd {
    walkers: Vec<Walker>,
    recorder: Recorder,
}

impl Crowd {
    /// Lets the devices found their groups and join them.
    pub(crate) async fn gather(relay: RelayUrl, size: &Size, seed: u64) -> Self {
        let recorder = Recorder::default();
        let mut random = Random::new(seed);
        let mut devices = Vec::new();
        for number in 0..size.devices {
            devices.push(Device::connected(relay.clone(), number as u8).await);
        }
        let mut memberships: Vec<Vec<Membership>> = Vec::new();
        memberships.resize_with(size.devices, Vec::new);
        for _ in 0..size.groups {
            let members = choose(&mut random, size.members, &memberships);
            let group = devices[members[0]].found().await;
            for (number, member) in members.iter().enumerate() {
                let device = &mut devices[*member];
                let seq = if number == 0 { 1 } else { device.join(&group).await };
                let own = device.view(group.log).own;
                recorder.note(
                    device.key(),
                    group.log,
                    Event::Sent { digest: own.digest, count: own.count },
                );
                recorder.note(device.key(), group.log, Event::Appended { digest: own.digest, seq });
                memberships[*member].push(Membership::new(group.log, own));
            }
            let keys: Vec<DeviceKey> = members.iter().map(|it| devices[*it].key()).collect();
            for member in members {
                if let Some(membership) = memberships[member].last_mut() {
                    membership.others = keys.clone();
                    membership.others.retain(|key| *key != devices[member].key());
                }
            }
        }
        let walkers = devices
            .into_iter()
            .zip(memberships)
            .filter(|(_, memberships)| !memberships.is_empty())
            .map(|(device, memberships)| {
                Walker::new(device, memberships, recorder.clone(), Random::new(random.next()))
            })
            .collect();
        Self { walkers, recorder }
    }

    /// Lets everybody write and read until told to stop, while `beside` happens. Then everything
    /// that was not answered is sent until it is, everybody reads everything from the beginning, and
    /// the history is given.
    pub(crate) async fn run(self, beside: impl Future<Output = ()>) -> History {
        let (stop, stopped) = watch::channel(false);
        let walking: Vec<_> = self
            .walkers
            .into_iter()
            .map(|mut walker| {
                let stopped = stopped.clone();
                tokio::spawn(async move {
                    walker.walk(stopped).await;
                    walker
                })
            })
            .collect();
        walk_to_the_end(walking, &stop, beside).await;
        self.recorder.take()
    }
}

/// Chooses the members of a group among those who are in the fewest, so that nobody is in too many.
fn choose(random: &mut Random, count: usize, memberships: &[Vec<Membership>]) -> Vec<usize> {
    let mut devices: Vec<(usize, u64, usize)> = memberships
        .iter()
        .enumerate()
        .map(|(device, groups)| (groups.len(), random.next(), device))
        .collect();
    devices.sort_unstable();
    devices.into_iter().take(count).map(|(_, _, device)| device).collect()
}

/// A time up to this.
fn moment(random: &mut Random, most: Duration) -> Duration {
    most.mul_f64(random.below(1000) as f64 / 1000.0)
}
