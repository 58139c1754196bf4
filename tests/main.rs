//! What Sealwire promises, each promise a sentence, kept by devices over real sockets.
//!
//! Most of them hold on both databases: `…::on_sqlite`, `…::on_postgres`. The latter need a PostgreSQL
//! server, which `scripts/test` starts and names.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "a test names the frames that it expects, and fails by any other"
)]
#![expect(clippy::print_stdout, reason = "seeds and figures are shown when a test fails")]

mod support;

// People with the real SDK found, invite, join, talk, leave and remove each other.
mod people;
// Entries arrive live, in one order, and what was missed is there on return.
mod delivery;
// A body is kept until all whom it is for have acked it, and no longer.
mod acks;
// Who is a member, who is not any more, and who never was.
mod members;
// Nobody is heard before they prove their key; a device may be here several times.
mod sessions;
// Whoever has not proved a key holds few places, and none that others need.
mod strangers;
// Bytes that no device sends: each is refused with its close code, and nobody else notices.
mod hostile_bytes;
// A session that panics costs its device a connection, and nobody else anything.
mod panics;
// A crowd writes and reads while the relay is killed and its database restarted, again and again: what it
// was told stays true.
mod histories;
// When the database fails, senders are told to come back, and everything goes on when it is there.
mod database_down;
// What the relay must not know it does not keep, does not log and does not count.
mod secrecy;
// When an older copy of the database is put back, devices are told, and nothing is skipped.
mod restored;
// A code and a PIN bring an identity back, and nobody can try them for long.
mod recovery;
// A person who has lost a device comes back with a code and a PIN.
mod recovered;
// Stopping loses nothing, ends on time, and tells the devices when to come back.
mod shutdown;
// A listener that is handed over outlives its relays: whoever comes while none runs waits.
mod handed_over;
// Whoever asks too much is told when to come back, and nobody else notices.
mod limits;
// What one device does costs that device, never others, and never memory.
mod memory;
// Requests that are well-formed and wrong, or too many: a typed answer each, nothing appended.
mod hostile_requests;
// A phone with the Totals app proves its key by a signed challenge or a token, and nobody else can.
mod totals_auth;
// Phones make, join, list and leave groups, and everybody sees the same.
mod totals_groups;
// Payloads reach those whom they are for, stay until they are acked, and no longer.
mod totals_payloads;
// A phone that listens is given what waits, then what comes, and hears when its groups change.
mod totals_streams;
// Devices that sleep are woken, and whoever wakes them learns nothing.
mod doorbells;
// What ringing two thousand of them costs those who append: a measurement.
mod doorbells_measured;
// Two hundred phones start at once, and every request is answered.
mod totals_start;
// Phones and devices with a session are members of one group, at once and alike.
mod totals_mixed;
// Devices with the SDK and phones with the Totals app let each other in, and understand each other.
mod totals_devices;
// Phones are told the truth while the relay is killed, or its database stopped, again and again.
mod totals_histories;
// The operator sees whether the relay lives and works, and what it is doing, actor by actor.
mod operator;
// Every metric moves, and no label tells of a device, a log or an address.
mod metrics;
// Retention beside a relay takes nothing from anybody who is there.
mod worker;
// The program does what is typed.
mod commands;
// The tour of the README, as it stands there, and what else `sealwire-device` does.
mod tour;
// The documents say what the code does.
mod documents;
// One encrypted database on every device: enrolled, revoked, from a snapshot on.
mod vaults;
// The same for clients that ask over HTTP now and then.
mod vaults_http;
// Writes, turns, cuts, crashes and new keys on four devices, in any order, end with the same tables.
mod interleavings;
// A small snapshot that opens to a huge one costs whoever opens it nothing but an error.
mod bombs;
// An app's own database is the same on all devices, and what is private to one person is that person's.
mod successors;
mod sync;
// How long a database of 50,000 rows takes to a second device: a measurement.
mod sync_measured;
// What a new device of an old vault has to do: a measurement.
mod vault_streams;
mod vault_year;
// What every store promises: the same tests against memory, SQLite and PostgreSQL.
mod store_contract;
