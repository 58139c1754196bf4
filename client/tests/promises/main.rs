//! What the SDK promises, each a sentence, against a small relay on a real loopback socket.
//!
//! The relay here orders and delivers as the protocol says and can be told to fail in every way. It
//! keeps everything in memory and has none of a real relay's worries; the promises that need those
//! are tested with the relay itself.
//!
//! | file | holds |
//! |---|---|
//! | `wire.rs` | proving keys, pins, resume tokens, deadlines |
//! | `groups.rs` | founding, joining, sending, reading, leaving, removing |
//! | `keys.rs` | who is given which content key, and when another one is made |
//! | `sending.rs` | refusals, lost answers, reconnects: each entry once |
//! | `hostile.rs` | relays and members that lie, lose or withhold |
//! | `command_line.rs` | the program, also when it is killed |
//! | `convergence.rs` | many things at once, and what all agree on afterwards |
//! | `interop.rs` | what another program opens and seals |
//! | `ledger.rs` | shared expenses: balances, history, reminders |
//! | `foreign_bytes.rs` | whatever bytes come from others, they are read or refused |
//! | `processes.rs` | several processes of one device, and clones |

mod command_line;
mod convergence;
mod foreign_bytes;
mod groups;
mod hostile;
mod interop;
mod keys;
mod ledger;
mod processes;
mod relay;
mod sending;
mod wire;
mod world;
