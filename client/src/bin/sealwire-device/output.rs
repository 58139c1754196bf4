//! What is printed: a line for people, or a JSON object for scripts.

use std::io::{self, Write};

use anyhow::Result;
use sealwire_client::address::AddressError;
use sealwire_client::advice::Advice;
use sealwire_client::device::{LogInfo, Member, Phase};
use sealwire_client::error::Error;
use sealwire_client::event::{Event, Received, Unreadable};
use sealwire_client::identity::file::KeyFileError;
use sealwire_client::identity::fingerprint;
use sealwire_client::invite::InviteError;
use sealwire_client::ledger::money::MoneyError;
use sealwire_client::recovery::{CodeError, RecoveryError};
use sealwire_client::sync::SyncError;
use sealwire_client::wire::WireError;
use sealwire_protocol::DeviceKey;
use serde_json::{Value, json};

/// How results are printed.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// Prints one result.
    pub(crate) fn line(self, text: &str, value: &Value) -> Result<()> {
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{value}")?;
        } else {
            writeln!(out, "{text}")?;
        }
        out.flush()?;
        Ok(())
    }

    /// Says that something is done that has no result: to people beside it, to scripts as one.
    pub(crate) fn done(self, text: &str, value: &Value) -> Result<()> {
        if self.json {
            return self.line("", value);
        }
        remark(text);
        Ok(())
    }

    /// Prints an entry.
    pub(crate) fn entry(self, received: &Received) -> Result<()> {
        let text = String::from_utf8_lossy(&received.payload);
        let shown = clean(&text);
        let aside = if received.recipients.is_empty() { "" } else { " (to you)" };
        let line = format!("{}{aside}: {shown}", short(received.sender));
        let value = json!({
            "event": "entry",
            "log": received.log.to_uuid_text(),
            "seq": received.seq,
            "at": received.at,
            "sender": received.sender.to_hex(),
            "count": received.count,
            "recipients": received.recipients.iter().map(DeviceKey::to_hex).collect::<Vec<_>>(),
            "text": text,
        });
        self.line(&line, &value)
    }

    /// Prints what else has happened, if a person would want to know.
    pub(crate) fn event(self, event: &Event) -> Result<()> {
        let (text, name) = match event {
            Event::Entry(received) => return self.entry(received),
            Event::Joined { device, .. } => (format!("* {} has joined", short(*device)), "joined"),
            Event::Left { device, .. } => (format!("* {} has left", short(*device)), "left"),
            Event::Revoked { device, .. } => {
                (format!("* {} was removed", short(*device)), "revoked")
            }
            Event::KeyReceived { epoch, from, .. } => (key_given(*epoch, *from), "key_received"),
            Event::InviterGone { inviter, .. } => (
                format!("! {}, who invited you, is no member any more", short(*inviter)),
                "inviter_gone",
            ),
            Event::InviterUnknown { inviter, .. } => (
                format!(
                    "! {}, who invited you, was never a member of the group that the relay shows; \
                     nothing is sent there",
                    short(*inviter)
                ),
                "inviter_unknown",
            ),
            Event::Unreadable { sender, reason, .. } => {
                let why = match reason {
                    Unreadable::NoKey => "its key has not come yet",
                    Unreadable::Damaged => "it is damaged",
                };
                (format!("* an entry of {} cannot be read: {why}", short(*sender)), "unreadable")
            }
            Event::Rejected { seq, reason, .. } => {
                (format!("! entry {seq} is not believed: {reason}"), "rejected")
            }
            Event::Missing { sender, .. } => {
                (format!("! an entry of {} to you is missing", short(*sender)), "missing")
            }
            Event::Refused { code, .. } => {
                (format!("! an entry was refused: {}", code.sentence()), "refused")
            }
            Event::HistoryChanged { .. } => {
                ("! the relay has lost history; nothing is deleted here".into(), "history_changed")
            }
            Event::Forked { .. } => {
                ("! two histories of this group exist: the relay may be lying".into(), "forked")
            }
            Event::Cloned { .. } => (
                "! this device was cloned, or restored from a backup; it sends nothing more".into(),
                "cloned",
            ),
            Event::Ended { code, .. } => {
                (format!("! the relay does not serve this group: {}", code.sentence()), "ended")
            }
            Event::Ledger { sender, .. } => {
                (format!("* {} has changed the ledger", short(*sender)), "ledger")
            }
            Event::Connected { relay } => (format!("* connected to {relay}"), "connected"),
            Event::Disconnected { reason, retry_in, .. } => {
                let next = if retry_in.is_some() { "trying again" } else { "not trying again" };
                (format!("* disconnected: {reason}; {next}"), "disconnected")
            }
            Event::QuotaReached { .. } => {
                ("! the group is full of entries that somebody has not taken".into(), "quota")
            }
            Event::Drained { head, .. } => {
                (format!("* read to the end, entry {}", head.seq), "drained")
            }
            Event::JoinRequested { device, name, .. } => {
                let name = name.as_deref().map(clean).unwrap_or_default();
                let text =
                    format!("? {} {name} asks to be let in: see `group approve`", short(*device));
                (text, "join_requested")
            }
            Event::KeyOffered { sender, .. } => {
                let text = format!("? {} offers another key: see `group approve`", short(*sender));
                (text, "key_offered")
            }
            Event::RecoveryFetched { .. } => {
                ("! somebody has fetched this device's recovery vault".into(), "recovery_fetched")
            }
            // What a newer version of the library may tell.
            _ => return Ok(()),
        };
        let log = event.log().map(|log| log.to_uuid_text());
        self.line(&text, &json!({ "event": name, "log": log, "text": text }))
    }

    /// Prints a group.
    pub(crate) fn group(self, info: &LogInfo) -> Result<()> {
        let phase = phase_name(info.phase);
        let name = info.log.to_uuid_text();
        let note = if info.cloned {
            ", cloned"
        } else if info.phase == Phase::Member && !info.holds_key {
            ", waiting for the key"
        } else {
            ""
        };
        let seq = info.head.map_or(0, |head| head.seq);
        let text = format!(
            "{name}  {phase}{note}, {} members, {seq} entries, {} unsent, {}",
            info.members, info.unsent, info.relay
        );
        let value = json!({
            "log": name,
            "format": if info.log.is_totals() { "totals" } else { "native" },
            "relay": info.relay.as_str(),
            "phase": phase,
            "seq": seq,
            "members": info.members,
            "epoch": info.epoch,
            "holds_key": info.holds_key,
            "holds_history": info.holds_history,
            "unsent": info.unsent,
            "cloned": info.cloned,
        });
        self.line(&text, &value)
    }

    /// Prints a member.
    pub(crate) fn member(
        self,
        member: &Member,
        name: Option<&str>,
        me: DeviceKey,
        asks: bool,
    ) -> Result<()> {
        let key = member.device.to_hex();
        let print = fingerprint(member.device);
        let you = if member.device == me { "  (you)" } else { "" };
        let note = if asks { "  (asks to be let in)" } else { you };
        let value = json!({
            "device": key,
            "joined_seq": member.joined_seq,
            "joined_at": member.joined_at,
            "fingerprint": print,
            "name": name,
            "you": member.device == me,
            "asks": asks,
        });
        let name = name.map(|name| format!("  {}", clean(name))).unwrap_or_default();
        self.line(&format!("{key}  {print}{name}{note}"), &value)
    }
}

/// That a key has come, and from whom: the relay of a Totals group could have put in another device, and
/// only people can tell.
pub(crate) fn key_given(epoch: u32, from: DeviceKey) -> String {
    let print = fingerprint(from);
    format!("* was given key {epoch} of the group by {}, fingerprint {print}", short(from))
}

/// What another person has written must not steer the terminal.
pub(crate) fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// The beginning of a key: enough to tell people apart on a screen.
pub(crate) fn short(key: DeviceKey) -> String {
    key.to_hex()[..8].to_owned()
}

/// Says on standard error what went wrong, and what to do next; nothing if whoever reads what is printed
/// has had enough of it.
pub(crate) fn complain(error: &anyhow::Error) {
    let io_error = error.downcast_ref::<io::Error>();
    if io_error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
        return;
    }
    // There is nowhere left to say that this did not work.
    let _ = writeln!(io::stderr(), "sealwire-device: {error:#}");
    if let Some(next) = error.chain().find_map(advice) {
        let _ = writeln!(io::stderr(), "What to do: {next}.");
    }
}

/// What to do about an error of the library's; what this program finds itself says it in its own text.
fn advice(error: &(dyn std::error::Error + 'static)) -> Option<&'static str> {
    fn of<E: std::error::Error + Advice + 'static>(
        error: &(dyn std::error::Error + 'static),
    ) -> Option<&'static str> {
        error.downcast_ref::<E>().map(Advice::advice)
    }
    of::<Error>(error)
        .or_else(|| of::<SyncError>(error))
        .or_else(|| of::<RecoveryError>(error))
        .or_else(|| of::<KeyFileError>(error))
        .or_else(|| of::<AddressError>(error))
        .or_else(|| of::<InviteError>(error))
        .or_else(|| of::<CodeError>(error))
        .or_else(|| of::<MoneyError>(error))
        .or_else(|| of::<WireError>(error))
}

/// Says something on standard error.
pub(crate) fn remark(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn phase_name(phase: Phase) -> &'static str {
    match phase {
        Phase::Joining => "joining",
        Phase::Member => "member",
        Phase::Left => "left",
        Phase::Revoked => "revoked",
        Phase::Refused => "refused",
    }
}
