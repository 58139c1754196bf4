//! Every bound that the device sets itself, with its unit and its reason.
//!
//! Bounds that both ends must know stand in [`sealwire_protocol::limits`].

use std::time::Duration;

use sealwire_protocol::limits::FRAME_BYTES_MAX;

/// How long finding, reaching and upgrading a connection may take, TLS included. A phone on a bad
/// network needs several seconds; longer than this, a new attempt is the better bet.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(15);

/// How long the relay may take from one step of the handshake to the next.
pub const HANDSHAKE_STEP_DEADLINE: Duration = Duration::from_secs(10);

/// How long queued frames may wait for the socket to take them.
pub const WRITE_DEADLINE: Duration = Duration::from_secs(30);

/// Read buffer of one connection, in bytes, allocated at once: what a device has missed comes as one
/// stream, and each buffer that it fills is a system call. Whoever holds thousands of connections asks
/// for less ([`crate::wire::Options`]); larger frames grow it while they arrive.
pub const READ_BUFFER_BYTES: usize = 32 * 1024;

/// How much is written into one buffer before it goes to the socket, in bytes.
pub const WRITE_BUFFER_BYTES: usize = 16 * 1024;

/// Most bytes that wait inside one connection for the socket to take them.
pub const WRITE_BUFFER_BYTES_MAX: usize = 2 * FRAME_BYTES_MAX;

/// Most frames that wait inside one connection while a caller waits for one particular answer.
pub const SET_ASIDE_FRAMES_MAX: usize = 4096;

const _: () = {
    assert!(WRITE_BUFFER_BYTES + FRAME_BYTES_MAX < WRITE_BUFFER_BYTES_MAX);
};
