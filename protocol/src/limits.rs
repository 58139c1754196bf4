//! Every bound that both ends must know, with its unit and its reason.
//!
//! Bounds that only the relay enforces on itself (queue lengths, batch sizes, deadlines of its own
//! work) stand in `sealwire_actors::limits`.

use std::time::Duration;

/// The version of the native protocol that this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// The WebSocket path of the native protocol.
pub const WEBSOCKET_PATH: &str = "/v1/ws";

/// The WebSocket subprotocol that both ends name in the upgrade.
pub const WEBSOCKET_SUBPROTOCOL: &str = "sealwire.v1";

/// Longest body of one entry, in bytes. A Totals snapshot part in Amharic is about 135 KiB sealed;
/// the next power of two above it leaves room.
pub const BODY_BYTES_MAX: usize = 256 * 1024;

/// Most entries in one batch: a batch is atomic, so it must fit one commit with room for others.
pub const BATCH_ENTRIES_MAX: usize = 256;

/// Most bytes of bodies in one batch.
pub const BATCH_BYTES_MAX: usize = 1024 * 1024;

/// Longest frame in either direction, in bytes: a full batch, its headers, signatures and key
/// lists, or the key lists of 256 addressed entries.
pub const FRAME_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Longest frame of a connection that has not yet authenticated, in bytes.
pub const UNAUTHENTICATED_FRAME_BYTES_MAX: usize = 4 * 1024;

/// Most addressees that an entry may name. More is a case for an entry to all.
pub const RECIPIENTS_MAX: usize = 64;

/// Most members of a native group: the recipients of one rotation must fit one body.
pub const NATIVE_MEMBERS_MAX: usize = 1000;

/// Most members of a `totals` group.
pub const TOTALS_MEMBERS_MAX: usize = 64;

/// Most disjoint ranges above the floor of an [`AckSet`](crate::AckSet). What does not fit is acked
/// again later: the device repeats its whole state with every `Subscribe`.
pub const ACK_RANGES_MAX: usize = 256;

/// Highest seq and count: what a database's signed 64-bit integer holds.
pub const SEQ_MAX: u64 = i64::MAX as u64;

/// Most requests of one session that may be unanswered. A batch is one request.
pub const IN_FLIGHT_REQUESTS_MAX: usize = 64;

/// Most bytes of bodies of one session that may be unanswered.
pub const IN_FLIGHT_BYTES_MAX: usize = 1024 * 1024;

/// Most live sessions of one device key, each with an instance of its own.
pub const INSTANCES_MAX: usize = 4;

/// Most logs that one session may subscribe to.
pub const SUBSCRIPTIONS_MAX: usize = 256;

/// Most capabilities that either end may name; longer lists are a mistake or an attack.
pub const CAPABILITIES_MAX: usize = 32;

/// Longest capability name, platform name or Totals kind, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Longest push token, in bytes. FCM's are about 200.
pub const PUSH_TOKEN_BYTES_MAX: usize = 4096;

/// Largest chunk of a snapshot in one frame, in bytes.
pub const SNAPSHOT_CHUNK_BYTES_MAX: usize = 512 * 1024;

/// Smallest chunk of a snapshot but its last, in bytes: small enough for a bad network, large enough
/// that a snapshot is not a crowd of rows.
pub const SNAPSHOT_CHUNK_BYTES_MIN: usize = 16 * 1024;

/// Largest sealed snapshot, in bytes. A year of a busy household, compressed, is a few MiB; a relay
/// holds at least two of each vault.
pub const SNAPSHOT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Most snapshots of one vault, uploads that are not real yet among them.
pub const SNAPSHOTS_MAX: usize = 16;

/// Longest key ciphertext for one recipient in a rotation or delivery, in bytes: a 32-byte key, a
/// join seed, a head and the tag, with room.
pub const KEY_CIPHERTEXT_BYTES_MAX: usize = 160;

/// Shortest heartbeat interval that a device may choose.
pub const HEARTBEAT_MIN: Duration = Duration::from_secs(25);

/// Longest heartbeat interval: carrier NATs forget a silent flow after about five minutes.
pub const HEARTBEAT_MAX: Duration = Duration::from_secs(300);

/// How long a connection has from its first byte to the end of the WebSocket handshake.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// How long a connection has from the greeting to a valid `Authenticate`.
pub const AUTHENTICATION_DEADLINE: Duration = Duration::from_secs(5);

/// How long a message may take from its first fragment to its last.
pub const MESSAGE_DEADLINE: Duration = Duration::from_secs(10);

/// How long an HTTP challenge is good for: one round trip, with a bad network between.
pub const CHALLENGE_LIFETIME: Duration = Duration::from_secs(60);

/// How long a token is good for.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(600);

const _: () = {
    assert!(BODY_BYTES_MAX <= BATCH_BYTES_MAX);
    assert!(BATCH_BYTES_MAX <= IN_FLIGHT_BYTES_MAX);
    assert!(BATCH_BYTES_MAX < FRAME_BYTES_MAX);
    // A full batch of addressed entries: header, signature, recipients and field names each.
    assert!(
        BATCH_BYTES_MAX + BATCH_ENTRIES_MAX * (203 + 64 + RECIPIENTS_MAX * 34 + 128)
            < FRAME_BYTES_MAX
    );
    // A rotation for a full group fits one body.
    assert!(NATIVE_MEMBERS_MAX * (32 + 32 + KEY_CIPHERTEXT_BYTES_MAX + 8) < BODY_BYTES_MAX);
    assert!(SNAPSHOT_CHUNK_BYTES_MAX < FRAME_BYTES_MAX);
};
