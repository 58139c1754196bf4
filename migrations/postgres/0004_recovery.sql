-- The PIN-sealed backups of devices' identities, one for each device that has one.
create table recovery_vaults (
    -- Whose it is: the device's public key, 32 bytes.
    device bytea not null primary key,
    -- HMAC of the recovery code, 32 bytes; the code itself is nowhere.
    id bytea not null unique,
    -- Which of the relay's recovery secrets made that HMAC.
    key_id bigint not null,
    -- The vault, sealed once more under the code.
    sealed bytea not null,
    -- The day on which the device stored it, in days since the epoch.
    stored_day bigint not null,
    -- Failures reported since the last lock.
    failures bigint not null,
    -- Locks since the last quiet day.
    locks bigint not null,
    -- When the last failure was reported; 0 for never.
    failed_at bigint not null,
    -- Until when failures have locked it; 0 for never.
    locked_until bigint not null,
    -- Fetches granted in the window.
    fetches bigint not null,
    -- When that window began; 0 for never.
    fetches_since bigint not null,
    -- From when on nothing counted here matters; 0 if nothing is counted.
    forgotten_at bigint not null
);

-- Finds counters that matter no more.
create index recovery_vaults_forgotten on recovery_vaults (forgotten_at) where forgotten_at > 0;

-- Counts the vaults under each secret.
create index recovery_vaults_key on recovery_vaults (key_id);

-- Sealed bytes do not compress.
alter table recovery_vaults alter column sealed set storage external;
