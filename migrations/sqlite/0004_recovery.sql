-- The PIN-sealed backups of devices' identities, one for each device that has one.
create table recovery_vaults (
    -- Whose it is: the device's public key, 32 bytes.
    device blob not null primary key,
    -- HMAC of the recovery code, 32 bytes; the code itself is nowhere.
    id blob not null unique,
    -- Which of the relay's recovery secrets made that HMAC.
    key_id integer not null,
    -- The vault, sealed once more under the code.
    sealed blob not null,
    -- The day on which the device stored it, in days since the epoch.
    stored_day integer not null,
    -- Failures reported since the last lock.
    failures integer not null,
    -- Locks since the last quiet day.
    locks integer not null,
    -- When the last failure was reported; 0 for never.
    failed_at integer not null,
    -- Until when failures have locked it; 0 for never.
    locked_until integer not null,
    -- Fetches granted in the window.
    fetches integer not null,
    -- When that window began; 0 for never.
    fetches_since integer not null,
    -- From when on nothing counted here matters; 0 if nothing is counted.
    forgotten_at integer not null
) strict;

-- Finds counters that matter no more.
create index recovery_vaults_forgotten on recovery_vaults (forgotten_at) where forgotten_at > 0;

-- Counts the vaults under each secret.
create index recovery_vaults_key on recovery_vaults (key_id);
