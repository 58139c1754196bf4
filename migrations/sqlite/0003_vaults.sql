-- How much each vault holds: counting would walk through all of it.
create table vaults (
    -- The log.
    log integer not null primary key references logs on delete cascade,
    -- Entries that are kept, control entries among them.
    entries integer not null,
    -- Bytes of their bodies.
    bytes integer not null
) strict;

-- Snapshots of vaults, uploads that may become one, and what is still to be swept of either.
create table snapshots (
    -- The relay's integer for this upload; never used twice.
    key integer primary key autoincrement,
    -- The vault. It may be gone, and the bytes not yet.
    log integer not null,
    -- SHA-256 of the sealed bytes.
    digest blob not null,
    -- How many bytes there are to be.
    size integer not null,
    -- How many are there, from the beginning on.
    received integer not null,
    -- In how many chunks.
    chunks integer not null,
    -- 1 once the bytes were found to be those of the digest.
    verified integer not null,
    -- When something was last done with it while it was no snapshot yet.
    touched_at integer not null,
    -- The control entry that made it real; 0 for an upload, -1 for what is being swept.
    seq integer not null,
    -- The incarnation of the head that it holds; unsigned, keeps its bit pattern.
    head_incarnation integer not null,
    -- The seq of that head.
    head_seq integer not null,
    -- The chain of that head, 32 bytes; empty for an upload.
    head_chain blob not null,
    -- Who made it real, 32 bytes; empty for an upload.
    author blob not null,
    -- When it was made real; 0 for an upload.
    made_at integer not null,
    -- 1 once another device has opened it, or it has stood for long enough.
    confirmed integer not null
) strict;

-- One snapshot or upload of a digest in a vault; finds it.
create unique index snapshots_by_digest on snapshots (log, digest) where seq >= 0;

-- Finds uploads that nobody finished, and what is being swept.
create index snapshots_swept on snapshots (touched_at) where seq <= 0;

-- The sealed bytes of snapshots, as they were uploaded.
create table snapshot_chunks (
    -- The upload.
    snapshot integer not null,
    -- Where the chunk begins.
    start integer not null,
    -- The chunk.
    bytes blob not null,
    primary key (snapshot, start)
) strict;
