-- Facts about this database, each a number.
create table meta (
    -- Which fact: store_id, incarnation, start_counter, run.
    name text not null primary key,
    -- The number; unsigned ones keep their bit pattern.
    value integer not null
) strict;

-- One row for each log: its head, and what a commit compares and changes.
create table logs (
    -- The relay's integer for this log; never used twice.
    key integer primary key autoincrement,
    -- The log's UUID on the wire, 16 bytes.
    id blob not null unique,
    -- 1 for a group, 2 for a vault.
    log_type integer not null check (log_type in (1, 2)),
    -- Seq of the newest committed entry; 0 before the first.
    seq integer not null,
    -- The chain after that entry, 32 bytes.
    chain blob not null,
    -- Raised by whoever changes the log without appending.
    version integer not null,
    -- At or below this seq only control entries are kept; 0 for none.
    floor_seq integer not null,
    -- The chain after the entry at the floor, 32 bytes.
    floor_chain blob not null,
    -- The public join key that is good now, 32 bytes; null if nobody can join.
    join_key blob,
    -- The newest seq of a leave, revoke, join_key or rotation.
    guard_seq integer not null,
    -- When the first entry was ordered.
    created_at integer not null,
    -- When the newest entry was ordered.
    last_entry_at integer not null
) strict;

-- One row for each entry that is kept.
create table entries (
    -- Its log.
    log integer not null,
    -- Its position.
    seq integer not null,
    -- When the relay ordered it.
    at integer not null,
    -- The author's slot in senders; 0 for the relay itself.
    sender_slot integer not null,
    -- Its number among its author's entries; 0 for none.
    count integer not null,
    -- The canonical header, 203 bytes.
    header blob not null,
    -- The author's signature, 64 bytes; null in totals groups.
    signature blob,
    -- The named addressees, 32 bytes each, sorted; null for all.
    recipients blob,
    -- The chain after this entry, 32 bytes.
    chain blob not null,
    -- The clear body of a control entry; null for every other.
    control_body blob,
    primary key (log, seq)
) strict;

-- Finds an entry by its author and count, and keeps that pair unique.
create unique index entries_by_count on entries (log, sender_slot, count) where count > 0;

-- Control entries alone: membership is derived from nothing else.
create index entries_control on entries (log, seq) where control_body is not null;

-- The bodies of entries that are not control entries, for as long as they are needed.
create table bodies (
    -- Its log.
    log integer not null,
    -- Its entry's position.
    seq integer not null,
    -- The sealed bytes.
    body blob not null,
    -- The kind string of Totals; null in native logs.
    totals_kind text,
    primary key (log, seq)
) strict;

-- Everyone who ever sent to a log; survives leaving, rejoining and the floor.
create table senders (
    -- The log.
    log integer not null references logs on delete cascade,
    -- Small integer of this sender in this log, from 1.
    slot integer not null,
    -- The sender's public key, 32 bytes.
    device blob not null,
    -- Count of its newest entry; 0 if none had one.
    last_count integer not null,
    -- Digest of that entry, 32 bytes; zeros if there is none.
    last_digest blob not null,
    primary key (log, slot),
    unique (log, device)
) strict;

-- Members, and devices that are about to become members.
create table members (
    -- The log.
    log integer not null references logs on delete cascade,
    -- The member's public key, 32 bytes.
    device blob not null,
    -- 1 while joining, 2 once active.
    state integer not null check (state in (1, 2)),
    -- The control entry that made it a member; 0 while joining.
    joined_seq integer not null,
    -- When that entry was ordered; 0 while joining.
    joined_at integer not null,
    -- When the place was reserved; 0 once active.
    reserved_at integer not null,
    -- Every seq up to and with this one is acked.
    ack_floor integer not null,
    -- Acked ranges above it: 16 bytes each, first and last, big-endian.
    ack_ranges blob not null,
    primary key (log, device)
) strict;

-- Finds the logs of a device.
create index members_by_device on members (device, log);

-- Finds reservations that were never used.
create index members_reserved on members (reserved_at) where state = 1;

-- Devices that a log admits never again.
create table revoked (
    -- The log.
    log integer not null references logs on delete cascade,
    -- The device's public key, 32 bytes.
    device blob not null,
    -- The control entry that revoked it.
    seq integer not null,
    primary key (log, device)
) strict;

-- Devices on which something durable hangs: a membership or a push token.
create table devices (
    -- The device's public key, 32 bytes.
    key blob not null primary key,
    -- The day on which it was last here, in days since the epoch; nothing finer is kept.
    seen_day integer not null,
    -- Which push service rings it; null for none.
    push_platform text,
    -- Its address at that service; null for none.
    push_token text
) strict;

-- Finds devices that have not been here for long.
create index devices_seen on devices (seen_day);

-- HTTP challenges that have been used, until they expire.
create table challenges (
    -- The challenge, 32 bytes.
    challenge blob not null primary key,
    -- When it would have expired.
    expires_at integer not null
) strict;

-- Finds spent challenges that have expired.
create index challenges_expired on challenges (expires_at);
