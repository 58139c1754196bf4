//! Every queue, batch and deadline of the relay's own work, with its unit and reason.
//!
//! What both ends of the wire must know stands in `sealwire_protocol::limits`.

use std::time::Duration;

use sealwire_protocol::limits::{
    BATCH_BYTES_MAX, BATCH_ENTRIES_MAX, BODY_BYTES_MAX, FRAME_BYTES_MAX, IN_FLIGHT_REQUESTS_MAX,
    NATIVE_MEMBERS_MAX, SNAPSHOT_BYTES_MAX, SNAPSHOTS_MAX,
};

use crate::ports::VaultCounts;

/// Most bytes of frames that wait in one session's outbox before its logs become behind and are
/// read from the store instead. Two frames of the largest body and some small ones.
pub const OUTBOX_BYTES_MAX: usize = 768 * 1024;

/// Bytes in an outbox below which the next page of a catch-up is fetched: the socket still has work
/// while the store reads.
pub const OUTBOX_BYTES_LOW: usize = 128 * 1024;

/// Most frames in one outbox: small frames cost more in bookkeeping than in bytes.
pub const OUTBOX_FRAMES_MAX: usize = 4096;

/// Most stubs that wait for the next frame of a log before the log becomes behind.
pub const STUBS_PENDING_MAX: usize = 256;

/// Most entries in one page of a catch-up.
pub const PAGE_ENTRIES_MAX: usize = 256;

/// Most bytes of bodies and of addressees' names in one page of a catch-up; a page has at least one
/// entry.
pub const PAGE_BYTES_MAX: usize = 256 * 1024;

/// Pages that are read from the store at the same time, over all sessions: first come, first
/// served, so that a device with a long way to go takes turns with everybody else.
pub const PAGE_READS_MAX: usize = 4;

/// Devices whose logs are looked up at the same time, when their sessions begin. With the kinds below
/// and all pages these are seven times the connections for reading that SQLite has: enough to keep
/// them busy, few enough that none waits past the store's own deadline for a connection.
pub const ARRIVAL_READS_MAX: usize = 4;

/// Subscriptions whose beginning is looked up at the same time.
pub const SUBSCRIPTION_READS_MAX: usize = 4;

/// Resends that are looked up at the same time.
pub const RESEND_READS_MAX: usize = 2;

/// Other questions of sessions that the store is asked at the same time.
pub const QUESTION_READS_MAX: usize = 2;

/// What is asked at the same time for those who have no session, such as phones: as much as for
/// sessions that arrive, and never in their place.
pub const REQUEST_READS_MAX: usize = 4;

/// Small writes (founding, reserving) at the same time, where the store takes more than one: half of
/// PostgreSQL's connections for everything but commits.
pub const WRITES_MAX: usize = 4;

/// Small writes in one turn of a committer, where it alone writes: a batch of entries then waits some
/// tens of milliseconds for them, and a crowd that joins does not wait for a batch each.
pub const JOBS_PER_TURN_MAX: usize = 4;

/// Most entries in a log's ring of last frames, which serves readers that are slightly late.
pub const RING_ENTRIES_MAX: usize = 64;

/// Most bytes in a log's ring of last frames.
pub const RING_BYTES_MAX: usize = 256 * 1024;

/// Most rows of entries in one transaction: enough for saturation, and few enough that a commit
/// stays in the tens of milliseconds.
pub const COMMIT_ENTRIES_MAX: usize = 512;

/// Most bytes of bodies in one transaction.
pub const COMMIT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Most logs in one load.
pub const LOAD_LOGS_MAX: usize = 64;

/// How long a transaction or a read may take before it counts as failed.
pub const STORE_DEADLINE: Duration = Duration::from_secs(10);

/// Shortest time between two looks at all that lives, for metrics: with a hundred thousand sessions a
/// look takes some milliseconds.
pub const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// How long a log's actor lives after its last work.
pub const LOG_IDLE: Duration = Duration::from_secs(10);

/// How long acks may wait for a batch of their log to go with.
pub const ACK_FLUSH: Duration = Duration::from_secs(1);

/// How long a log that could not be loaded waits before it tries again by itself.
pub const LOAD_RETRY: Duration = Duration::from_secs(1);

/// Most messages that wait for one log's actor. A full group of 1,000 with several acks each.
pub const LOG_MAILBOX_MAX: usize = 8192;

/// Most messages that wait for one committer: beyond it, senders are told to come back.
pub const COMMITTER_MAILBOX_MAX: usize = 65_536;

/// Most bytes of entries of one session that may be unanswered, with everything that is beside their
/// bodies: a frame of the largest fits.
pub const IN_FLIGHT_WHOLE_MAX: usize = FRAME_BYTES_MAX;

/// Most bytes of entries that all sessions together may have unanswered, counted in the same way.
pub const IN_FLIGHT_BYTES_GLOBAL_MAX: usize = 256 * 1024 * 1024;

/// Shortest time that a device is asked to wait after `unavailable`, in milliseconds.
pub const RETRY_AFTER_MS_MIN: u64 = 500;

/// Longest time that a device is asked to wait after `unavailable`, in milliseconds.
pub const RETRY_AFTER_MS_MAX: u64 = 2_000;

/// How long a device waits when it has too much in flight, in milliseconds.
pub const TOO_MANY_RETRY_MS: u64 = 200;

/// How long a sender waits when a group holds too many undelivered bytes, in milliseconds: until
/// somebody has been online.
pub const QUOTA_RETRY_MS: u64 = 60_000;

/// Shortest time between two markers that tell the readers of a group that it is full.
pub const QUOTA_MARKER_PAUSE: Duration = Duration::from_secs(60);

/// Most undelivered bytes of one group, counted once per body.
pub const GROUP_UNDELIVERED_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What is added to each body's length when it is counted, in bytes: headers and rows are not free,
/// and a group of empty bodies must end somewhere too.
pub const BODY_OVERHEAD_BYTES: u64 = 256;

/// Most undelivered bodies of one group, however small they are: loading the log reads a row for each,
/// which for so many takes about a tenth of a second.
pub const GROUP_UNDELIVERED_BODIES_MAX: usize = 65_536;

/// The part of these that is kept for the same kinds as [`GROUP_RESERVE_BYTES`].
pub const GROUP_RESERVE_BODIES: usize = 1024;

/// Most entries that a group keeps above its floor. Delivered bodies go, and headers stay until their
/// time has come: without a bound, two devices that ack each other's entries, or one that writes for
/// nobody, would fill the disk. About 2 GiB; more than one entry a second for a month.
pub const GROUP_ENTRIES_MAX: u64 = 1 << 22;

/// Control entries that one device may write to one log at once: a person who tidies up a large group.
pub const CONTROL_BURST: u32 = 64;

/// After these, one in so long.
pub const CONTROL_PERIOD: Duration = Duration::from_secs(60);

/// Control entries that all devices together may write to one log at once: twice, everybody joins.
pub const LOG_CONTROL_BURST: u32 = 2048;

/// After these, one in so long.
pub const LOG_CONTROL_PERIOD: Duration = Duration::from_secs(1);

/// Keys that one device may write to one vault at once, in units of [`KEYS_UNIT_BYTES`]: a newcomer is
/// given the keys of many years, each in an entry of its own.
pub const KEYS_BURST: u32 = 4096;

/// After these, one unit in so long: keys of a vault never go, and this is some 70 MiB a day.
pub const KEYS_PERIOD: Duration = Duration::from_secs(10);

/// What one unit holds: a key that is sealed to every device of a vault of the usual limit.
pub const KEYS_UNIT_BYTES: usize = 8 * 1024;

/// Logs that one device may found at once: twice as many as it can be a member of at the most.
pub const FOUND_BURST: u32 = 512;

/// After these, one in so long.
pub const FOUND_PERIOD: Duration = Duration::from_secs(60);

/// Most devices and logs whose pace is remembered, each for an hour at most: about 8 MiB.
pub const PACES_MAX: usize = 65_536;

/// The part of a group's undelivered bytes that is kept for control entries, keys and the small
/// kinds that the Totals app never sends twice.
pub const GROUP_RESERVE_BYTES: u64 = 1024 * 1024;

/// Bodies that one flush of a log deletes: the rest goes with the next ones, so that a deletion never
/// holds a transaction for long.
pub const FREED_BODIES_MAX: usize = 2048;

/// Most ranges of a member's acks over HTTP, where payloads that the app cannot open stay between
/// those that it has acked: 16 bytes each, written with each of its acks.
pub const ACK_RANGES_STORED_MAX: usize = 16_384;

/// How long somebody who has left a `totals` group may still say goodbye: the app leaves and says so
/// at the same time, over two connections.
pub const FAREWELL: Duration = Duration::from_secs(30);

/// Most payloads in one pending page. Far more than a plausible pile of payloads that an app cannot
/// open, behind which it would find nothing new.
pub const PENDING_ENTRIES_MAX: usize = 8192;

/// Most bytes of bodies in one pending page, which is twice that in hex; a page has at least one.
pub const PENDING_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Un-acked bodies that are looked at for one pending page.
pub const PENDING_SCAN_MAX: usize = 65_536;

/// Pending pages that are read at the same time, over all devices.
pub const PENDING_READS_MAX: usize = 4;

/// Most streams of one device. The app needs nine with six groups, twice that while it reconnects;
/// beyond it, the oldest one ends, because it is the one whose phone is gone.
pub const STREAMS_PER_DEVICE_MAX: usize = 32;

/// Most bytes of bodies that one stream reads from the store at once, but for the first. Phones have
/// nine streams each, and each may rest with a page that nobody takes: this bounds what they cost.
pub const STREAM_PAGE_BYTES_MAX: usize = 32 * 1024;

/// Most entries that one stream reads from the store at once.
pub const STREAM_PAGE_ENTRIES_MAX: usize = 256;

/// Pages that streams read from the store at the same time: theirs alone, so that a crowd of phones
/// does not stand before a session that catches up.
pub const STREAM_READS_MAX: usize = 4;

/// Pause before devices are told that their groups have changed: what follows at once is told along.
pub const CHANGES_PAUSE: Duration = Duration::from_millis(250);

/// Shortest time between two such tellings on one stream: each makes a phone ask for everything.
pub const CHANGES_INTERVAL: Duration = Duration::from_secs(1);

/// How long a change is kept for a device whose stream has just ended: the app is back after three
/// seconds, and asks for nothing by itself.
pub const CHANGES_KEPT: Duration = Duration::from_secs(120);

/// Most devices for which changes are kept.
pub const CHANGES_DEVICES_MAX: usize = 65_536;

/// After how long, and how often, it is looked whether a group was made whose creator was told that it
/// may not have been: by then, what was under way has ended.
pub const ORPHAN_PAUSE: Duration = Duration::from_secs(15);

/// How many times that is looked at, while the store cannot be asked.
pub const ORPHAN_TRIES: u32 = 240;

/// Most push tokens that are noted in one transaction.
pub const DOORBELLS_BATCH_MAX: usize = 128;

/// How long a device that is here may take to ack what it was offered before it is rung: its socket may
/// be half open.
pub const DOORBELL_GRACE: Duration = Duration::from_secs(10);

/// Shortest time between two doorbells of a device that has acked something since the first.
pub const DOORBELL_PAUSE: Duration = Duration::from_secs(2);

/// How long a device that was rung and has acked nothing since is not rung again; doubled with each
/// doorbell that is not answered.
pub const DOORBELL_WINDOW: Duration = Duration::from_secs(60);

/// The longest of these windows: what lies in wait at a push service is one doorbell all the same.
pub const DOORBELL_WINDOW_MAX: Duration = Duration::from_secs(20 * 60);

/// Logs of one device in which something waits for it and that are told apart. A device that is rung
/// for one of so many looks at them all.
pub const DOORBELL_LOGS_MAX: usize = 32;

/// Most devices whose doorbells wait or are remembered: 59 MiB at most, with the places in which they are
/// queued. Beyond it the ones that were rung are forgotten first.
pub const DOORBELL_DEVICES_MAX: usize = 131_072;

/// Logs in which something waits for these devices, in all: 32 MiB at most. Beyond it a device is rung for
/// those that are remembered.
pub const DOORBELL_WAITS_MAX: usize = 262_144;

/// How far back entries are re-read at the start, for devices that were not rung for them.
pub const DOORBELL_LOOKBACK: Duration = Duration::from_secs(15 * 60);

/// How long after the start that is done: by then the devices that were here are here again.
pub const DOORBELL_SETTLE: Duration = Duration::from_secs(10);

/// Shortest time between two such readings.
pub const DOORBELL_REREAD_PAUSE: Duration = Duration::from_secs(60);

/// Logs that one step of it looks at.
pub const DOORBELL_LOGS_PAGE: usize = 256;

/// Entries that one step of it reads of one log.
pub const DOORBELL_ENTRIES_PAGE: usize = 256;

/// Messages that wait for the actor of doorbells.
pub const PUSH_MAILBOX_MAX: usize = 16_384;

/// Devices that these messages name: 6 MiB. What does not fit is re-read.
pub const PUSH_TOLD_MAX: usize = 65_536;

/// Devices of which it is remembered that they have no doorbell: about 6 MiB.
pub const DEAF_DEVICES_MAX: usize = 131_072;

/// Devices that have said where their doorbells are and are remembered for it: 256 KiB. More than say so
/// while a doorbell is rung.
pub const REGISTRATIONS_KEPT: usize = 8192;

/// Doorbells that are being rung at the same time: with 50 ms each, 2,560 in a second. Over HTTP/1 each
/// is a connection, and half as many files as are kept in reserve.
pub const PUSH_CALLS_MAX: usize = 128;

/// Doorbells whose tokens are looked up at least together, while more of them wait than can be rung: a
/// quarter of those that are rung at the same time.
pub const PUSH_BATCH: usize = 32;

/// Requests that wait for one committer, from which on appends go first and doorbells step back. During a
/// commit of a relay that has time to spare, hardly ever a second one comes.
pub const PUSH_YIELD_DEPTH: usize = 2;

/// For how long they step back when that was seen: many small commits, and several of the largest size.
pub const PUSH_YIELD: Duration = Duration::from_millis(100);

/// Doorbells that begin together meanwhile, at least.
pub const PUSH_YIELD_CALLS: usize = 16;

/// Pause between those and the next ones: 320 in a second, for as long as appends go first.
pub const PUSH_YIELD_PAUSE: Duration = Duration::from_millis(50);

/// One in so many of those that wait begins after each pause, where that is more: of many, 63 % in 64 pauses,
/// which are 3.2 seconds. Never more than [`PUSH_CALLS_MAX`] are under way, so that this keeps up with 2,560
/// in a second where each takes 50 ms; what comes faster waits, and beyond its bound is read again later.
pub const PUSH_YIELD_STEPS: usize = 64;

/// How long a push service may take.
pub const PUSH_CALL_DEADLINE: Duration = Duration::from_secs(15);

/// Shortest pause before a doorbell that failed is tried again; doubled with each failure.
pub const PUSH_RETRY_MIN: Duration = Duration::from_secs(1);

/// Longest such pause, unless the push service asks for a longer one.
pub const PUSH_RETRY_MAX: Duration = Duration::from_secs(10 * 60);

/// Longest pause that a push service may ask for.
pub const PUSH_RETRY_ASKED_MAX: Duration = Duration::from_secs(3600);

/// Failures in a row after which a push service is left alone for a while.
pub const PUSH_FAILURES_MAX: u32 = 16;

/// Where this is reached, a push service has called at least sixteen doorbells too many, and every third
/// or more of the last ones.
pub const PUSH_LIMITED_MAX: u32 = 32;

/// How long a push service is left alone that says that our quota is used up, and not for how long: quotas
/// are filled again each minute.
pub const PUSH_QUOTA_REST: Duration = Duration::from_secs(60);

/// For how long a push service that fails is left alone at first; doubled each time that it fails again.
pub const PUSH_REST_MIN: Duration = Duration::from_secs(1);

/// For how long at most.
pub const PUSH_REST_MAX: Duration = Duration::from_secs(5 * 60);

/// Longest push token that is kept, in bytes: FCM's are about 200, and an index must hold it.
pub const PUSH_TOKEN_STORED_BYTES_MAX: usize = 2048;

/// Acks that wait while a log is loaded; others come again with the next `Subscribe`.
pub const WAITING_ACKS_MAX: usize = 1024;

/// Most bytes of answers that wait in an outbox before its session reads no more requests: a device
/// that asks and does not listen fills its own socket, not our memory.
pub const ANSWER_BYTES_MAX: usize = 128 * 1024;

/// What is added to each answer's length when it is counted, in bytes: its place in the queue and its
/// allocation. Most answers are shorter than that.
pub const FRAME_OVERHEAD_BYTES: usize = 64;

/// How long a socket may take nothing of what is being written to it. Far longer than a minute in a
/// tunnel; shorter than for ever.
pub const STALLED_MAX: Duration = Duration::from_secs(300);

/// Silent heartbeat intervals after which a session is over.
pub const SILENT_INTERVALS_MAX: u64 = 2;

/// Shortest time after which a device that is being drained should reconnect, in milliseconds.
pub const RECONNECT_AFTER_MS_MIN: u64 = 500;

/// Longest time after which a device that is being drained should reconnect, in milliseconds: a
/// relay's restart takes less, and 10⁵ devices over eight seconds are a queue that it can serve.
pub const RECONNECT_AFTER_MS_MAX: u64 = 8_000;

/// How long a joining device holds its reservation.
pub const RESERVATION_LIFETIME: Duration = Duration::from_secs(60);

/// Most HTTP challenges that are claimed in one transaction.
pub const CLAIMS_BATCH_MAX: usize = 512;

/// Devices that retention may still have to note as seen.
pub const SEEN_DEVICES_MAX: usize = 100_000;

/// Pause between two steps of retention.
pub const RETENTION_PAUSE: Duration = Duration::from_secs(60);

/// Logs that one step of retention looks at.
pub const RETENTION_LOGS_MAX: usize = 256;

/// Rows that one step of retention deletes in a sweep.
pub const RETENTION_ROWS_MAX: usize = 1000;

/// How long a log must have been without entry and ack before the worker, which has no actor to ask,
/// touches it: far longer than an actor lives after its last work.
pub const RESTING: Duration = Duration::from_secs(3600);

/// What must be overdue by so much before a relay takes it from a worker: the worker waits for a log
/// to rest, and some never do.
pub const RETENTION_OVERDUE: Duration = Duration::from_secs(2 * 3600);

/// Logs that are due and that the worker remembers until they have rested. 65,536 of them take 3 MiB.
pub const WORKER_LOGS_MAX: usize = 65_536;

/// Groups end one year after their last entry.
pub const GROUP_IDLE: Duration = Duration::from_secs(365 * 24 * 3600);

/// A device that was not seen for this long loses its push token and its row, never a membership.
pub const DEVICE_IDLE: Duration = Duration::from_secs(90 * 24 * 3600);

/// Most entries of a vault that are kept: five years of 200,000 changesets without one snapshot.
pub const VAULT_ENTRIES_MAX: u64 = 1_000_000;

/// The part of a vault's entries that is kept for control entries and keys: what brings a full vault
/// back must fit.
pub const VAULT_ENTRIES_RESERVE: u64 = 1000;

/// Most bytes of bodies of a vault: what a self-hoster's disk has for one household.
pub const VAULT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// The part of a vault's bytes that is kept for control entries and keys.
pub const VAULT_BYTES_RESERVE: u64 = 1024 * 1024;

/// Most devices of a vault: one household's, and the ones it has replaced.
pub const VAULT_DEVICES_MAX: usize = 32;

/// Most bytes of a vault's snapshots and uploads, as they were announced: four of the largest.
pub const VAULT_SNAPSHOT_BYTES_MAX: u64 = 4 * SNAPSHOT_BYTES_MAX;

/// How long a snapshot stands before it counts as confirmed in a vault of one device: of those that it
/// has made since it is alone.
pub const SNAPSHOT_STANDS: Duration = Duration::from_secs(30 * 24 * 3600);

/// How long an upload that was not made a snapshot is kept after its last chunk.
pub const UPLOAD_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Vaults that one step of retention looks at: each that is due reads up to 2,048 rows.
pub const COMPACT_VAULTS_MAX: usize = 64;

/// Chunks of snapshots that one step of retention deletes: at most 32 MiB.
pub const SWEPT_CHUNKS_MAX: usize = 64;

/// Signatures that a session verifies before it lets others go on: less than a millisecond.
pub const VERIFIED_AT_ONCE: usize = 16;

/// How much a vault may hold: what an operator decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VaultLimits {
    /// See [`VAULT_ENTRIES_MAX`].
    pub entries_max: u64,
    /// See [`VAULT_ENTRIES_RESERVE`].
    pub entries_reserve: u64,
    /// See [`VAULT_BYTES_MAX`].
    pub bytes_max: u64,
    /// See [`VAULT_BYTES_RESERVE`].
    pub bytes_reserve: u64,
    /// See [`VAULT_DEVICES_MAX`].
    pub devices_max: usize,
    /// See [`SNAPSHOTS_MAX`].
    pub snapshots_max: usize,
    /// See [`VAULT_SNAPSHOT_BYTES_MAX`].
    pub snapshot_bytes_max: u64,
}

impl Default for VaultLimits {
    fn default() -> Self {
        Self {
            entries_max: VAULT_ENTRIES_MAX,
            entries_reserve: VAULT_ENTRIES_RESERVE,
            bytes_max: VAULT_BYTES_MAX,
            bytes_reserve: VAULT_BYTES_RESERVE,
            devices_max: VAULT_DEVICES_MAX,
            snapshots_max: SNAPSHOTS_MAX,
            snapshot_bytes_max: VAULT_SNAPSHOT_BYTES_MAX,
        }
    }
}

impl VaultLimits {
    /// Whether a vault that holds so much has no room for another changeset of the largest size.
    pub(crate) fn is_full(&self, counts: VaultCounts) -> bool {
        let entries_max = self.entries_max.saturating_sub(self.entries_reserve);
        let bytes_max = self.bytes_max.saturating_sub(self.bytes_reserve);
        counts.entries >= entries_max || counts.bytes + BODY_BYTES_MAX as u64 > bytes_max
    }
}

const _: () = {
    assert!(BODY_BYTES_MAX + 64 * 1024 < OUTBOX_BYTES_MAX);
    assert!(OUTBOX_BYTES_LOW + PAGE_BYTES_MAX + BODY_BYTES_MAX < OUTBOX_BYTES_MAX);
    assert!(BATCH_BYTES_MAX <= COMMIT_BYTES_MAX);
    assert!(IN_FLIGHT_REQUESTS_MAX < LOG_MAILBOX_MAX);
    assert!(IN_FLIGHT_WHOLE_MAX < IN_FLIGHT_BYTES_GLOBAL_MAX);
    assert!(GROUP_RESERVE_BYTES < GROUP_UNDELIVERED_BYTES_MAX);
    // A rotation for all devices of a full vault fits the reserve.
    assert!((BODY_BYTES_MAX as u64) < VAULT_BYTES_RESERVE);
    assert!(GROUP_RESERVE_BODIES < GROUP_UNDELIVERED_BODIES_MAX);
    assert!(LOG_CONTROL_BURST as usize >= NATIVE_MEMBERS_MAX);
    // Whatever fits one batch may be written at once by whoever has written nothing.
    assert!(BATCH_BYTES_MAX / KEYS_UNIT_BYTES + BATCH_ENTRIES_MAX < KEYS_BURST as usize);
    assert!(RESTING.as_secs() < RETENTION_OVERDUE.as_secs());
    assert!(LOG_IDLE.as_secs() < RESTING.as_secs());
    assert!(RECONNECT_AFTER_MS_MAX < DOORBELL_SETTLE.as_secs() * 1000);
};
