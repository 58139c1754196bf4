-- Facts about this database, each a number.
create table meta (
    -- Which fact: store_id, incarnation, start_counter, run, system_identifier, timeline.
    name text not null primary key,
    -- The number; unsigned ones keep their bit pattern.
    value bigint not null
);

-- One row for each log: its head, and what a commit compares and changes.
create table logs (
    -- The relay's integer for this log; never used twice.
    key bigint generated always as identity primary key,
    -- The log's UUID on the wire, 16 bytes.
    id bytea not null unique,
    -- 1 for a group, 2 for a vault.
    log_type bigint not null check (log_type in (1, 2)),
    -- Seq of the newest committed entry; 0 before the first.
    seq bigint not null,
    -- The chain after that entry, 32 bytes.
    chain bytea not null,
    -- Raised by whoever changes the log without appending.
    version bigint not null,
    -- At or below this seq only control entries are kept; 0 for none.
    floor_seq bigint not null,
    -- The chain after the entry at the floor, 32 bytes.
    floor_chain bytea not null,
    -- The public join key that is good now, 32 bytes; null if nobody can join.
    join_key bytea,
    -- The newest seq of a leave, revoke, join_key or rotation.
    guard_seq bigint not null,
    -- When the first entry was ordered.
    created_at bigint not null,
    -- When the newest entry was ordered.
    last_entry_at bigint not null
) with (
    -- Every commit updates a head: room on the page keeps the new version beside the old one.
    fillfactor = 70,
    -- Dead versions of heads are cleared early, since every commit reads through them.
    autovacuum_vacuum_scale_factor = 0.05
);

-- One row for each entry that is kept.
create table entries (
    -- Its log.
    log bigint not null,
    -- Its position.
    seq bigint not null,
    -- When the relay ordered it.
    at bigint not null,
    -- The author's slot in senders; 0 for the relay itself.
    sender_slot bigint not null,
    -- Its number among its author's entries; 0 for none.
    count bigint not null,
    -- The canonical header, 203 bytes.
    header bytea not null,
    -- The author's signature, 64 bytes; null in totals groups.
    signature bytea,
    -- The named addressees, 32 bytes each, sorted; null for all.
    recipients bytea,
    -- The chain after this entry, 32 bytes.
    chain bytea not null,
    -- The clear body of a control entry; null for every other.
    control_body bytea,
    primary key (log, seq)
) with (
    -- By rows, not by share: a share of a large table is too much work at once.
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 100000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 100000
);

-- Finds an entry by its author and count, and keeps that pair unique.
create unique index entries_by_count on entries (log, sender_slot, count) where count > 0;

-- Control entries alone: membership is derived from nothing else.
create index entries_control on entries (log, seq) where control_body is not null;

-- The bodies of entries that are not control entries, for as long as they are needed.
create table bodies (
    -- Its log.
    log bigint not null,
    -- Its entry's position.
    seq bigint not null,
    -- The sealed bytes.
    body bytea not null,
    -- The kind string of Totals; null in native logs.
    totals_kind text,
    primary key (log, seq)
) with (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 100000,
    autovacuum_vacuum_insert_scale_factor = 0,
    autovacuum_vacuum_insert_threshold = 100000,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 100000
);

-- Sealed bytes do not compress.
alter table bodies alter column body set storage external;

-- Everyone who ever sent to a log; survives leaving, rejoining and the floor.
create table senders (
    -- The log.
    log bigint not null references logs on delete cascade,
    -- Small integer of this sender in this log, from 1.
    slot bigint not null,
    -- The sender's public key, 32 bytes.
    device bytea not null,
    -- Count of its newest entry; 0 if none had one.
    last_count bigint not null,
    -- Digest of that entry, 32 bytes; zeros if there is none.
    last_digest bytea not null,
    primary key (log, slot),
    unique (log, device)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- Members, and devices that are about to become members.
create table members (
    -- The log.
    log bigint not null references logs on delete cascade,
    -- The member's public key, 32 bytes.
    device bytea not null,
    -- 1 while joining, 2 once active.
    state bigint not null check (state in (1, 2)),
    -- The control entry that made it a member; 0 while joining.
    joined_seq bigint not null,
    -- When that entry was ordered; 0 while joining.
    joined_at bigint not null,
    -- When the place was reserved; 0 once active.
    reserved_at bigint not null,
    -- Every seq up to and with this one is acked.
    ack_floor bigint not null,
    -- Acked ranges above it: 16 bytes each, first and last, big-endian.
    ack_ranges bytea not null,
    primary key (log, device)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- Finds the logs of a device.
create index members_by_device on members (device, log);

-- Finds reservations that were never used.
create index members_reserved on members (reserved_at) where state = 1;

-- Devices that a log admits never again.
create table revoked (
    -- The log.
    log bigint not null references logs on delete cascade,
    -- The device's public key, 32 bytes.
    device bytea not null,
    -- The control entry that revoked it.
    seq bigint not null,
    primary key (log, device)
);

-- Devices on which something durable hangs: a membership or a push token.
create table devices (
    -- The device's public key, 32 bytes.
    key bytea not null primary key,
    -- The day on which it was last here, in days since the epoch; nothing finer is kept.
    seen_day bigint not null,
    -- Which push service rings it; null for none.
    push_platform text,
    -- Its address at that service; null for none.
    push_token text
) with (fillfactor = 70);

-- Finds devices that have not been here for long.
create index devices_seen on devices (seen_day);

-- HTTP challenges that have been used, until they expire.
create table challenges (
    -- The challenge, 32 bytes.
    challenge bytea not null primary key,
    -- When it would have expired.
    expires_at bigint not null
);

-- Finds spent challenges that have expired.
create index challenges_expired on challenges (expires_at);

-- Where needle begins in hay, from 1, or 0: SQLite's name, so that both share their queries.
create function instr(hay bytea, needle bytea) returns integer
    language sql immutable strict parallel safe
    as 'select position(needle in hay)';
