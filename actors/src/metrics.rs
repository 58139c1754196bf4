//! Everything that the relay counts. A metric's doc comment is its help text.
//!
//! No label carries a device, a log or an address: labels are closed sets, and the enums below are
//! the only arguments that the functions take. The recorder belongs to the process, so two relays
//! in one process (in tests) add up.

use metrics::{Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge};

/// Defines metric names with their help texts, and a function that describes them all.
macro_rules! metrics_table {
    ($( $(#[doc = $doc:literal])* $kind:ident $name:ident = $text:literal, $unit:ident; )*) => {
        $( $(#[doc = $doc])* pub const $name: &str = $text; )*

        /// Every metric: name, kind, unit and help text, in the order of docs/METRICS.md.
        pub const TABLE: &[(&str, &str, &str, &str)] = &[
            $( ($text, stringify!($kind), stringify!($unit), concat!($($doc),*)), )*
        ];

        /// Tells the recorder what each metric means.
        pub fn describe() {
            $( describe_one!($kind, $text, $unit, concat!($($doc),*)); )*
        }
    };
}

macro_rules! describe_one {
    (counter, $name:literal, $unit:ident, $help:expr) => {
        describe_counter!($name, Unit::$unit, $help)
    };
    (gauge, $name:literal, $unit:ident, $help:expr) => {
        describe_gauge!($name, Unit::$unit, $help)
    };
    (histogram, $name:literal, $unit:ident, $help:expr) => {
        describe_histogram!($name, Unit::$unit, $help)
    };
}

metrics_table! {
    /// Actors alive now, by `actor`.
    gauge ACTORS_LIVE = "sealwire_actors_live", Count;
    /// Messages waiting in mailboxes now, by `actor`. Of committers: the queue of what is to become
    /// durable. Of sessions, which read from their sockets and have none: requests that are not answered.
    gauge MAILBOX_DEPTH = "sealwire_mailbox_depth", Count;
    /// Age of the oldest message that waits now, by `actor`: of all actors of this kind, the one that
    /// is furthest behind. Of sessions: for how long a socket has not taken what is written to it.
    gauge OLDEST_MESSAGE = "sealwire_oldest_message_seconds", Seconds;
    /// Messages handled since the start, by `actor`: of sessions, frames.
    counter MESSAGES_HANDLED = "sealwire_messages_handled_total", Count;
    /// Time from a message's arrival in a mailbox to the start of its handling, by `actor`.
    histogram MESSAGE_AGE = "sealwire_message_age_seconds", Seconds;
    /// Time that handling a message took, by `actor`.
    histogram HANDLING_TIME = "sealwire_message_handling_seconds", Seconds;
    /// Actors that ended by a panic or an error and were replaced, by `actor`.
    counter ACTOR_RESTARTS = "sealwire_actor_restarts_total", Count;
    /// Messages refused because a mailbox was full, by `actor`.
    counter MAILBOX_REFUSALS = "sealwire_mailbox_refusals_total", Count;
    /// Sessions open now.
    gauge SESSIONS = "sealwire_sessions", Count;
    /// Event streams of phones open now.
    gauge STREAMS = "sealwire_streams", Count;
    /// Sessions that ended, by `reason`: the close reason's name, or `device` if the device left.
    counter SESSIONS_ENDED = "sealwire_sessions_ended_total", Count;
    /// Connections of devices open now, before and after authentication, WebSocket and HTTP alike.
    gauge CONNECTIONS = "sealwire_connections", Count;
    /// Times that accepting a connection failed, by `reason`: `aborted` (the caller's doing),
    /// `files` (no file descriptor left) or `other`.
    counter ACCEPT_FAILURES = "sealwire_accept_failures_total", Count;
    /// Connections that were refused or failed before they were sessions, by `reason`.
    counter CONNECTIONS_REFUSED = "sealwire_connections_refused_total", Count;
    /// Devices that did not prove themselves, by `reason`: `timeout` (nothing came), `malformed` (no
    /// such frame or header), `version`, `missing` (neither proof nor token), `token` (expired, forged
    /// or another's) or `proof` (a wrong signature, or a challenge that is old or used).
    counter AUTH_FAILURES = "sealwire_auth_failures_total", Count;
    /// Requests over HTTP that met an empty bucket, by `what`: `address`, `proofs` (signatures),
    /// `codes` (recovery codes), `calls`, `payloads`, `sent_once` or `acks` of one device; or whose long
    /// answer found no room (`long_answers`).
    counter REQUESTS_LIMITED = "sealwire_requests_limited_total", Count;
    /// Bytes of frames waiting in all outboxes now.
    gauge OUTBOX_BYTES = "sealwire_outbox_bytes", Bytes;
    /// Bytes of frames waiting in the outbox of one session now: the most of all sessions.
    gauge OUTBOX_BYTES_MOST = "sealwire_outbox_bytes_most", Bytes;
    /// Sessions that are behind in a log now, and read it from the store.
    gauge SESSIONS_BEHIND = "sealwire_sessions_behind", Count;
    /// Subscriptions that became behind and read from the store.
    counter BEHIND = "sealwire_behind_total", Count;
    /// Pages read for catching up, by `source`: `store` or `ring`.
    counter PAGES = "sealwire_catch_up_pages_total", Count;
    /// Frames received from devices, by `frame`.
    counter FRAMES_IN = "sealwire_frames_received_total", Count;
    /// Refusals sent to devices, by `code`.
    counter ERRORS_SENT = "sealwire_errors_sent_total", Count;
    /// Entries that became durable, by `kind`.
    counter ENTRIES = "sealwire_entries_appended_total", Count;
    /// Copies of entries put into outboxes, live and by catching up. Not in it: stubs.
    counter COPIES_OFFERED = "sealwire_copies_offered_total", Count;
    /// The one end of each addressed copy of a group entry, by `outcome`: delivered, fetched,
    /// expired or left. Counted when the transaction that ends it commits.
    counter OUTCOMES = "sealwire_outcomes_total", Count;
    /// Entries per transaction.
    histogram COMMIT_ENTRIES = "sealwire_commit_entries", Count;
    /// Time that a transaction took, from its start to its commit.
    histogram COMMIT_TIME = "sealwire_commit_seconds", Seconds;
    /// Parts of batches that met another head in the store, and loaded their log anew.
    counter COMMITS_STALE = "sealwire_commits_stale_total", Count;
    /// Transactions that failed, by `error`.
    counter COMMITS_FAILED = "sealwire_commits_failed_total", Count;
    /// Logs loaded from the store.
    counter LOGS_LOADED = "sealwire_logs_loaded_total", Count;
    /// Time that a step of SQLite's checkpoints took, by `step`: `passive` (pages are moved while
    /// commits go on), `flush` (so is what was moved to the disk) or `alone` (no commit runs).
    histogram CHECKPOINT_TIME = "sealwire_checkpoint_seconds", Seconds;
    /// Log actors that were passivated.
    counter LOGS_PASSIVATED = "sealwire_logs_passivated_total", Count;
    /// Rows that retention swept: reservations, devices, challenges and counters of recovery vaults
    /// whose time was over, uploads that nobody finished, and chunks of snapshots that went.
    counter SWEPT = "sealwire_retention_swept_total", Count;
    /// What became of requests about recovery vaults, by `what`: `stored`, `taken` (by another
    /// device), `fetched`, `failure_reported`, `locked`, `unknown` (no vault under this code) or
    /// `deleted`. Many `unknown` are somebody who guesses codes.
    counter RECOVERY = "sealwire_recovery_total", Count;
    /// Doorbells that were asked for: a device and a log in which something new waits for it.
    counter DOORBELLS_QUEUED = "sealwire_doorbells_queued_total", Count;
    /// Entries for a device that was to be rung anyway, or was told of already.
    counter DOORBELLS_COALESCED = "sealwire_doorbells_coalesced_total", Count;
    /// Doorbells that became needless before they were rung, by `reason`: `here` (the device had a session
    /// or a stream when the entry came, and has acked it), or `fetched` (it slept, and came by itself).
    counter DOORBELLS_SUPPRESSED = "sealwire_doorbells_suppressed_total", Count;
    /// Doorbells that a push service has taken.
    counter DOORBELLS_SENT = "sealwire_doorbells_sent_total", Count;
    /// Calls to a push service that failed, by `reason`: `limited`, `quota` (the project's is used up),
    /// `unavailable`, `unreachable`, `unauthorised`, `third_party` (Apple does not know the project; all
    /// of these are tried again) or `refused`.
    counter DOORBELLS_FAILED = "sealwire_doorbells_failed_total", Count;
    /// Devices of which the actor of doorbells could not be told; what they miss is re-read.
    counter DOORBELLS_DROPPED = "sealwire_doorbells_dropped_total", Count;
    /// Devices that are to be rung now, the ones that are being rung among them.
    gauge DOORBELLS_WAITING = "sealwire_doorbells_waiting", Count;
    /// Time from the moment an entry became visible, also to a relay before this one, to the moment a push
    /// service took the doorbell for it. A device that is here has ten seconds of it to ack.
    histogram DOORBELL_AGE = "sealwire_doorbell_age_seconds", Seconds;
    /// Push services that are left alone now because they fail.
    gauge PUSH_RESTING = "sealwire_push_services_resting", Count;
    /// Push tokens forgotten because their push service did not know them any more.
    counter TOKENS_FORGOTTEN = "sealwire_push_tokens_forgotten_total", Count;
    /// Groups that ended: the last member left, or there was no entry for a year.
    counter GROUPS_ENDED = "sealwire_groups_ended_total", Count;
}

/// The kinds of actors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActorKind {
    /// A connection's session.
    Session,
    /// An active log.
    Log,
    /// A committer.
    Committer,
    /// Retention.
    Retention,
    /// Doorbells.
    Push,
    /// The supervisors.
    Supervisor,
}

impl ActorKind {
    /// How many kinds there are.
    pub(crate) const COUNT: usize = Self::Supervisor as usize + 1;

    /// The value of the `actor` label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Log => "log",
            Self::Committer => "committer",
            Self::Retention => "retention",
            Self::Push => "push",
            Self::Supervisor => "supervisor",
        }
    }
}

/// Why a device was not let in. Devices and phones are told none of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthFailure {
    /// Nothing came in time.
    Timeout,
    /// What came is no proof, or names no key.
    Malformed,
    /// Another version of the protocol.
    Version,
    /// Neither proof nor token.
    Missing,
    /// A token that is expired, forged or another device's.
    Token,
    /// A wrong signature, or a challenge that is old or used.
    Proof,
}

impl AuthFailure {
    /// The value of the `reason` label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::Missing => "missing",
            Self::Token => "token",
            Self::Proof => "proof",
        }
    }

    /// Counts one.
    pub fn count(self) {
        counter!(AUTH_FAILURES, "reason" => self.name()).increment(1);
    }
}

/// The one way in which each addressed copy of a group entry ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Acked over the native protocol.
    Delivered,
    /// Acked over HTTP.
    Fetched,
    /// Deleted by retention without an ack.
    Expired,
    /// The addressee left, was revoked, or the group ended.
    Left,
}

/// How many copies ended in which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcomes {
    /// See [`Outcome::Delivered`].
    pub delivered: u64,
    /// See [`Outcome::Fetched`].
    pub fetched: u64,
    /// See [`Outcome::Expired`].
    pub expired: u64,
    /// See [`Outcome::Left`].
    pub left: u64,
}

impl Outcomes {
    /// Counts one copy.
    pub fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Delivered => self.delivered += 1,
            Outcome::Fetched => self.fetched += 1,
            Outcome::Expired => self.expired += 1,
            Outcome::Left => self.left += 1,
        }
    }

    /// Publishes the counts, now that the transaction has committed.
    pub(crate) fn count(self) {
        let all = [
            ("delivered", self.delivered),
            ("fetched", self.fetched),
            ("expired", self.expired),
            ("left", self.left),
        ];
        for (name, copies) in all {
            if copies > 0 {
                counter!(OUTCOMES, "outcome" => name).increment(copies);
            }
        }
    }
}

/// Counts an actor for as long as it lives, however it ends.
pub struct Alive(ActorKind);

impl Alive {
    /// One more of this kind.
    #[must_use]
    pub fn new(kind: ActorKind) -> Self {
        gauge!(ACTORS_LIVE, "actor" => kind.name()).increment(1.0);
        Self(kind)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        gauge!(ACTORS_LIVE, "actor" => self.0.name()).decrement(1.0);
    }
}
