-- How much each vault holds: counting would walk through all of it.
create table vaults (
    -- The log.
    log bigint not null primary key references logs on delete cascade,
    -- Entries that are kept, control entries among them.
    entries bigint not null,
    -- Bytes of their bodies.
    bytes bigint not null
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

-- Snapshots of vaults, uploads that may become one, and what is still to be swept of either.
create table snapshots (
    -- The relay's bigint for this upload; never used twice.
    key bigint generated always as identity primary key,
    -- The vault. It may be gone, and the bytes not yet.
    log bigint not null,
    -- SHA-256 of the sealed bytes.
    digest bytea not null,
    -- How many bytes there are to be.
    size bigint not null,
    -- How many are there, from the beginning on.
    received bigint not null,
    -- In how many chunks.
    chunks bigint not null,
    -- 1 once the bytes were found to be those of the digest.
    verified bigint not null,
    -- When something was last done with it while it was no snapshot yet.
    touched_at bigint not null,
    -- The control entry that made it real; 0 for an upload, -1 for what is being swept.
    seq bigint not null,
    -- The incarnation of the head that it holds; unsigned, keeps its bit pattern.
    head_incarnation bigint not null,
    -- The seq of that head.
    head_seq bigint not null,
    -- The chain of that head, 32 bytes; empty for an upload.
    head_chain bytea not null,
    -- Who made it real, 32 bytes; empty for an upload.
    author bytea not null,
    -- When it was made real; 0 for an upload.
    made_at bigint not null,
    -- 1 once another device has opened it, or it has stood for long enough.
    confirmed bigint not null
);

-- One snapshot or upload of a digest in a vault; finds it.
create unique index snapshots_by_digest on snapshots (log, digest) where seq >= 0;

-- Finds uploads that nobody finished, and what is being swept.
create index snapshots_swept on snapshots (touched_at) where seq <= 0;

-- The sealed bytes of snapshots, as they were uploaded.
create table snapshot_chunks (
    -- The upload.
    snapshot bigint not null,
    -- Where the chunk begins.
    start bigint not null,
    -- The chunk.
    bytes bytea not null,
    primary key (snapshot, start)
);

-- Sealed bytes do not compress.
alter table snapshot_chunks alter column bytes set storage external;
