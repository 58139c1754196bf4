-- What sync keeps beside the app's own tables, in the same file, so that one transaction covers both.

-- Single values: the format, the schema's version, the clock, what is known of the vault.
create table sealwire_meta (
    name text primary key,
    value any
) strict, without rowid;

-- Names that stand in many rows: of tables with their key columns (kind 0), columns (1), devices (2).
create table sealwire_names (
    id integer primary key,
    kind integer not null,
    name blob not null,
    unique (kind, name)
) strict;

-- The registered tables as the triggers know them.
create table sealwire_tables (
    id integer primary key references sealwire_names,
    shape blob not null
) strict;

-- For each row of a registered or unknown table: who wrote what last, and values that are kept here.
create table sealwire_rows (
    tbl integer not null,
    key blob not null,
    record blob not null,
    primary key (tbl, key)
) strict, without rowid;

-- Rows that are there and that a constraint of the app's table forbids. They are kept, not shown.
create table sealwire_withheld (
    tbl integer not null,
    key blob not null,
    primary key (tbl, key)
) strict, without rowid;

-- Holds a row while changes of other devices are written: the triggers look here. Never committed.
create table sealwire_replaying (
    marker integer primary key
) strict;

-- What the triggers write down, in order: op 1 inserted, 2 updated, 3 deleted, 4 about to be replaced.
-- Columns c0, c1, ... are added as they are needed: the image before and the image after.
create table sealwire_capture (
    id integer primary key autoincrement,
    tbl integer not null,
    op integer not null,
    at integer not null
);

-- What this device has still to send, and what it has sent.
-- state: 0 waits, 1 has its number and bytes, 2 is appended.
create table sealwire_outbox (
    id integer primary key autoincrement,
    state integer not null default 0,
    group_part blob,
    private_part blob,
    rows integer not null default 0,
    reading integer,
    count integer,
    cut integer,
    digest blob,
    header blob,
    signature blob,
    body blob,
    recipients blob,
    seq integer,
    appended_at integer
) strict;
create index sealwire_outbox_state on sealwire_outbox (state, id);
create unique index sealwire_outbox_count on sealwire_outbox (count) where count is not null;

-- Boxes that do not open yet. reason: 0 its key is not held, 1 a newer version wrote it, 2 damaged.
create table sealwire_sealed (
    seq integer not null,
    place integer not null,
    author blob not null,
    aad blob not null,
    scope blob not null,
    epoch integer not null,
    reason integer not null,
    box blob not null,
    primary key (seq, place)
) strict, without rowid;

-- Sealed states of other people, from snapshots: what this device cannot open it hands on.
create table sealwire_carried (
    scope blob primary key,
    author blob not null,
    head blob not null,
    box blob not null
) strict, without rowid;

-- Changesets that were replayed, so that a snapshot can be compared with what it must hold.
create table sealwire_history (
    seq integer primary key,
    author integer not null,
    reading integer not null
) strict;

-- Cells that are too long to be sent.
create table sealwire_oversized (
    tbl integer not null,
    key blob not null,
    column_name integer not null,
    primary key (tbl, key, column_name)
) strict, without rowid;
