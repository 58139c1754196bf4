//! What the Totals app's kinds mean to the relay: one table, and nothing else looks at a kind.
//!
//! The app says in clear what a payload is called; what it *is* stands inside the ciphertext. The
//! relay acts on the name in three ways: whether it is worth waking a phone for, whether the app would
//! send it a second time, and whether somebody who has just left may still say it.

use crate::ports::Urgency;

/// What the relay does about one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KindRule {
    /// What the app calls it.
    pub name: &'static str,
    /// Whether a doorbell is rung for it, and how soon the device should wake: at once for what the app
    /// shows a notification for.
    pub rings: Option<Urgency>,
    /// Whether the app sends it once and never again, whatever the answer: such a kind has a generous
    /// rate of its own, and may use the part of a group's undelivered bytes that is kept for it.
    pub sent_once: bool,
    /// Whether it may still be sent for [`crate::limits::FAREWELL`] after leaving: the app says
    /// goodbye and leaves at the same time.
    pub farewell: bool,
}

const HIGH: Option<Urgency> = Some(Urgency::High);
const NORMAL: Option<Urgency> = Some(Urgency::Normal);

const fn rule(
    name: &'static str,
    rings: Option<Urgency>,
    sent_once: bool,
    farewell: bool,
) -> KindRule {
    KindRule { name, rings, sent_once, farewell }
}

/// Every kind that the app sends. docs/HTTP.md shows this table.
///
/// A phone is woken for what the app shows a notification for: a request to join, an approval, an
/// expense, a nudge, a new name, a farewell, and for `snapshot_request`, because a phone that was
/// restored waits for the answer of any other. It is not woken for `member_meta`, which each member
/// sends at the sight of each other and which comes along with the next pull; nor for the parts of a
/// snapshot, or for a request that was withdrawn.
pub const KINDS: &[KindRule] = &[
    rule("key_exchange", HIGH, true, false),
    rule("join_request", HIGH, true, false),
    rule("join_cancel", None, true, true),
    rule("member_left", HIGH, true, true),
    rule("member_approved", HIGH, true, false),
    rule("group_meta", HIGH, false, false),
    rule("member_meta", None, false, false),
    rule("expense", HIGH, false, false),
    rule("nudge", HIGH, false, false),
    rule("group_snapshot", None, false, false),
    rule("snapshot_request", NORMAL, true, false),
    rule(DEFAULT_KIND, NORMAL, false, false),
];

/// What a payload is called whose sender gave it no kind: the oldest apps give none.
pub const DEFAULT_KIND: &str = "group";

/// A kind that the relay does not know: a newer app's, so it rings.
const OTHER: KindRule = rule("other", NORMAL, false, false);

/// What to do about this kind.
#[must_use]
pub fn rule_of(kind: &str) -> &'static KindRule {
    KINDS.iter().find(|rule| rule.name == kind).unwrap_or(&OTHER)
}
