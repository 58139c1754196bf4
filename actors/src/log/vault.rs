//! How much a vault holds, its snapshots, and what they let go.
//!
//! A vault's entries stay until a snapshot covers them that another device has opened; of a vault of
//! one device, until one that it has made since it is alone has stood for long enough. Control entries and keys stay for ever.
//! The two newest confirmed snapshots stay, so that a device that begins with the one while the other
//! comes is not left without.

use sealwire_protocol::{DeviceKey, Digest, ErrorCode, Failure, Kind};

use crate::entry::{CheckedEntry, Content};
use crate::limits::VaultLimits;
use crate::ports::{CompactStep, SnapshotRecord, VaultChange, VaultCounts, VaultRecord};

/// How many confirmed snapshots stay.
const CONFIRMED_KEPT: usize = 2;

/// What is known of one vault beside its order and its devices.
pub(super) struct Vault {
    limits: VaultLimits,
    counts: VaultCounts,
    /// By the seq of their control entries.
    snapshots: Vec<SnapshotRecord>,
    /// What the next commit has to say of it.
    change: Option<VaultChange>,
}

impl Vault {
    pub(super) fn new(record: VaultRecord, limits: VaultLimits) -> Self {
        Self { limits, counts: record.counts, snapshots: record.snapshots, change: None }
    }

    /// The snapshot of this name, if it is real.
    pub(super) fn snapshot(&self, digest: Digest) -> Option<&SnapshotRecord> {
        self.snapshots.iter().find(|snapshot| snapshot.digest == digest)
    }

    /// Whether another device, or another snapshot, may be added to so many.
    pub(super) fn check_devices(&self, devices: usize) -> Result<(), Failure> {
        check(devices < self.limits.devices_max, ErrorCode::DevicesLimitReached, || {
            self.limits.devices_max as u64
        })
    }

    /// Whether another snapshot may become real.
    pub(super) fn check_snapshots(&self) -> Result<(), Failure> {
        check(
            self.snapshots.len() < self.limits.snapshots_max,
            ErrorCode::SnapshotsLimitReached,
            || self.limits.snapshots_max as u64,
        )
    }

    /// Whether there is room for these entries. What brings a full vault back (a snapshot, keys,
    /// devices that open it) may use the reserve, and whoever goes is never kept.
    pub(super) fn check_room(&self, entries: &[CheckedEntry]) -> Result<(), Failure> {
        let mut leaves = true;
        let mut reserved = true;
        let mut bytes = 0;
        for entry in entries {
            leaves &= matches!(&entry.content, Content::Control(control) if control.removes());
            reserved &= matches!(entry.header.kind, Kind::Control | Kind::Key);
            bytes += entry.body.len() as u64;
        }
        if leaves {
            return Ok(());
        }
        let limits = &self.limits;
        let (entries_kept, bytes_kept) =
            if reserved { (0, 0) } else { (limits.entries_reserve, limits.bytes_reserve) };
        let entries_max = limits.entries_max.saturating_sub(entries_kept);
        let bytes_max = limits.bytes_max.saturating_sub(bytes_kept);
        let entries_fit = self.counts.entries + entries.len() as u64 <= entries_max;
        check(entries_fit, ErrorCode::EntriesLimitReached, || limits.entries_max)?;
        let bytes_fit = self.counts.bytes + bytes <= bytes_max;
        check(bytes_fit, ErrorCode::BytesLimitReached, || limits.bytes_max)
    }

    /// An entry was appended.
    pub(super) fn add(&mut self, bytes: usize) {
        self.counts.entries += 1;
        self.counts.bytes += bytes as u64;
        self.changed();
    }

    /// A snapshot has become real.
    pub(super) fn made(&mut self, snapshot: SnapshotRecord) {
        self.snapshots.push(snapshot);
        self.changed().snapshots.push(snapshot);
    }

    /// Another device has opened a snapshot.
    pub(super) fn opened(&mut self, digest: Digest) {
        self.confirm(|snapshot| snapshot.digest == digest);
    }

    /// A device has gone: the snapshots that it alone vouches for go with it, so that they do not take the
    /// others' room.
    pub(super) fn removed(&mut self, device: DeviceKey) {
        let goes = |snapshot: &SnapshotRecord| snapshot.author == device && !snapshot.confirmed;
        let dropped: Vec<Digest> =
            self.snapshots.iter().filter(|it| goes(it)).map(|it| it.digest).collect();
        if !dropped.is_empty() {
            self.snapshots.retain(|snapshot| !goes(snapshot));
            self.changed().dropped.extend(dropped);
        }
    }

    /// Nobody but `device` is there to open snapshots, and so it has been since `since` at the latest:
    /// those that it has made after that and before `before` have stood for long enough. What somebody
    /// else has made, or it before the others went, is nobody's word but its author's.
    pub(super) fn stood(&mut self, device: DeviceKey, since: u64, before: u64) {
        self.confirm(|snapshot| {
            snapshot.author == device && snapshot.seq > since && snapshot.at < before
        });
    }

    /// Up to which seq confirmed snapshots cover the vault; 0 without one.
    pub(super) fn covered(&self) -> u64 {
        let confirmed = self.snapshots.iter().filter(|snapshot| snapshot.confirmed);
        confirmed.map(|snapshot| snapshot.head.seq).max().unwrap_or(0)
    }

    /// A step of compaction was decided.
    pub(super) fn compacted(&mut self, step: &CompactStep) {
        self.counts.entries = self.counts.entries.saturating_sub(step.gone.entries);
        self.counts.bytes = self.counts.bytes.saturating_sub(step.gone.bytes);
        self.changed();
    }

    pub(super) fn take_change(&mut self) -> Option<VaultChange> {
        self.change.take()
    }

    fn changed(&mut self) -> &mut VaultChange {
        let change = self.change.get_or_insert_default();
        change.counts = self.counts;
        change
    }

    fn confirm(&mut self, which: impl Fn(&SnapshotRecord) -> bool) {
        let mut confirmed = Vec::new();
        for snapshot in self.snapshots.iter_mut().filter(|it| !it.confirmed && which(it)) {
            snapshot.confirmed = true;
            confirmed.push(*snapshot);
        }
        if !confirmed.is_empty() {
            self.changed().snapshots.extend(confirmed);
            self.drop_superseded();
        }
    }

    /// Lets go what is older than the confirmed snapshots that stay.
    fn drop_superseded(&mut self) {
        let mut heads: Vec<u64> =
            self.snapshots.iter().filter(|it| it.confirmed).map(|it| it.head.seq).collect();
        heads.sort_unstable_by(|a, b| b.cmp(a));
        let Some(oldest) = heads.get(CONFIRMED_KEPT - 1).copied() else {
            return;
        };
        let mut spare = heads.iter().skip(CONFIRMED_KEPT).filter(|seq| **seq == oldest).count();
        let mut dropped = Vec::new();
        self.snapshots.retain(|snapshot| {
            let older = snapshot.head.seq < oldest;
            let twin = snapshot.head.seq == oldest && snapshot.confirmed && spare > 0;
            spare -= usize::from(twin);
            if older || twin {
                dropped.push(snapshot.digest);
            }
            !(older || twin)
        });
        let change = self.changed();
        change.snapshots.retain(|snapshot| !dropped.contains(&snapshot.digest));
        change.dropped.extend(dropped);
    }
}

fn check(holds: bool, code: ErrorCode, limit: impl FnOnce() -> u64) -> Result<(), Failure> {
    if holds { Ok(()) } else { Err(Failure::limit(code, limit())) }
}

#[cfg(test)]
mod tests {
    use sealwire_protocol::Head;

    use super::*;

    fn snapshot(number: u8, head_seq: u64) -> SnapshotRecord {
        SnapshotRecord {
            digest: Digest([number; 32]),
            head: Head { incarnation: 1, seq: head_seq, chain: Digest::ZERO },
            size: 10,
            author: DeviceKey([1; 32]),
            seq: head_seq + 1,
            at: u64::from(number) * 100,
            confirmed: false,
        }
    }

    fn names(vault: &Vault) -> Vec<u8> {
        vault.snapshots.iter().map(|snapshot| snapshot.digest.0[0]).collect()
    }

    fn vault(snapshots: &[(u8, u64)]) -> Vault {
        let mut vault = Vault::new(VaultRecord::default(), VaultLimits::default());
        for (number, head_seq) in snapshots {
            vault.made(snapshot(*number, *head_seq));
        }
        vault
    }

    #[test]
    fn the_two_newest_confirmed_snapshots_stay_and_what_is_newer() {
        let mut vault = vault(&[(1, 10), (2, 20), (3, 30), (4, 40), (5, 50)]);
        assert_eq!(vault.covered(), 0, "nothing is confirmed");
        vault.opened(Digest([2; 32]));
        assert_eq!((vault.covered(), names(&vault)), (20, vec![1, 2, 3, 4, 5]));
        vault.opened(Digest([4; 32]));
        assert_eq!((vault.covered(), names(&vault)), (40, vec![2, 3, 4, 5]));
        vault.opened(Digest([3; 32]));
        assert_eq!((vault.covered(), names(&vault)), (40, vec![3, 4, 5]));
        let change = vault.take_change().expect("a change");
        assert_eq!(change.dropped, [Digest([1; 32]), Digest([2; 32])]);
        assert!(change.snapshots.iter().all(|it| !change.dropped.contains(&it.digest)));
    }

    #[test]
    fn snapshots_of_one_head_take_each_others_place() {
        let mut vault = vault(&[(1, 10), (2, 10), (3, 10)]);
        for number in 1..=3 {
            vault.opened(Digest([number; 32]));
        }
        assert_eq!(names(&vault).len(), CONFIRMED_KEPT);
    }

    #[test]
    fn with_a_device_go_the_snapshots_that_nobody_else_has_opened() {
        let mut vault = vault(&[(1, 10), (2, 20), (3, 30)]);
        vault.opened(Digest([2; 32]));
        vault.take_change();
        vault.removed(DeviceKey([9; 32]));
        assert!(vault.take_change().is_none());
        vault.removed(DeviceKey([1; 32]));
        assert_eq!((vault.covered(), names(&vault)), (20, vec![2]));
        let change = vault.take_change().expect("a change");
        assert_eq!(change.dropped, [Digest([1; 32]), Digest([3; 32])]);
    }

    #[test]
    fn alone_only_snapshots_that_have_stood_count() {
        let mut vault = vault(&[(1, 10), (2, 20), (3, 30)]);
        vault.stood(DeviceKey([2; 32]), 0, 250);
        assert_eq!(vault.covered(), 0, "they are somebody else's");
        vault.stood(DeviceKey([1; 32]), 21, 250);
        assert_eq!(vault.covered(), 0, "they were made when there were others");
        vault.stood(DeviceKey([1; 32]), 20, 250);
        assert_eq!(vault.covered(), 20);
        let confirmed = |number| vault.snapshot(Digest([number; 32])).expect("there").confirmed;
        assert!(!confirmed(1) && !confirmed(3));
    }
}
