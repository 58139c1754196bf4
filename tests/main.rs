//! What Sealwire promises, each promise a sentence, kept by devices over real sockets.
//!
//! Most of them hold on both databases: `…::on_sqlite`, `…::on_postgres`. The latter need a PostgreSQL
//! server, which `scripts/test` starts and names.

mod support;

// Entries arrive live, in one order, and what was missed is there on return.
mod delivery;
// A body is kept until all whom it is for have acked it, and no longer.
mod acks;
// Who is a member, who is not any more, and who never was.
mod members;
// Nobody is heard before they prove their key; a device may be here several times.
mod sessions;
// Bytes that no device sends: each is refused with its close code, and nobody else notices.
mod hostile_bytes;
// A crowd writes and reads while the relay is killed again and again: what it was told stays true.
mod histories;
// When an older copy of the database is put back, devices are told, and nothing is skipped.
mod restored;
// Stopping loses nothing, ends on time, and tells the devices when to come back.
mod shutdown;
// What one device does costs that device, never others, and never memory.
mod memory;
// Requests that are well-formed and wrong, or too many: a typed answer each, nothing appended.
mod hostile_requests;
// The program does what is typed.
mod commands;
// The documents say what the code does.
mod documents;
// What every store promises: the same tests against memory, SQLite and PostgreSQL.
mod store_contract;
