-- The tables of one device. Keys, ids and digests are blobs of their fixed width; seqs and counts are
-- integers; times are milliseconds since the epoch.

-- The device that this file belongs to: one row.
create table device (
    key blob not null,
    -- What its person is called in totals groups, and since when.
    name text,
    name_at integer not null default 0
);

-- The key that belongs to the address of each relay that was met.
create table relays (
    url text primary key,
    key blob not null
) without rowid;

-- The logs that this device is, was or wants to be a member of.
create table logs (
    id integer primary key,
    log blob not null unique,
    -- The address of its relay.
    relay text not null,
    -- See Phase.
    phase integer not null,
    -- 1 if nothing is sent any more until a person decides.
    blocked integer not null default 0,
    -- How far it was read: the head, whose incarnation is a u64 in the bits of an integer.
    incarnation integer not null default 0,
    seq integer not null default 0,
    chain blob not null,
    -- Membership and holders of keys as of that head.
    membership blob not null,
    holders blob not null,
    -- The seed of the join key, if this device knows it.
    join_seed blob,
    -- The seed that an own revoke makes good, until that stands.
    next_seed blob,
    -- 1 if this device has made an invite.
    invited integer not null default 0,
    -- What was acked, in which incarnation.
    acked_incarnation integer not null default 0,
    acked_floor integer not null default 0,
    acked_ranges blob not null default x'',
    -- The newest entry of this device that was appended, with all before it.
    appended_count integer not null default 0,
    appended_digest blob not null,
    -- The newest seq of an own entry whose bytes are not kept any more.
    pruned_seq integer not null default 0,
    -- Entries up to here were read before the relay's history changed.
    read_before integer not null default 0,
    -- The seq of the newest own entry that made this device a member.
    joined_seq integer not null default 0,
    -- The device whose place this one takes, until that is out of the group.
    replaces blob,
    -- 1 if what was said before is still to come, or the members are to be asked for it.
    wants_history integer not null default 0,
    -- Whom this device has asked for it, when the next one is, and who has asked this device
    -- meanwhile; none if nobody was asked and nobody has.
    asking blob,
    -- Entries that came otherwise than they were written, how often they were looked at again, and when
    -- they are; none if there are none.
    spoiled blob,
    -- Whose invite this device joins or has joined by; none if it has founded the group, and where there
    -- are no invites.
    inviter blob,
    -- 1 once that one was met among the members.
    inviter_met integer not null default 0,
    -- 1 if it never was, up to this device's own joining: no key is taken, and nothing sent.
    stranger integer not null default 0
);

-- The newest part of each log's history: for heads that the relay or other members name.
create table chain (
    log integer not null references logs on delete cascade,
    seq integer not null,
    digest blob not null,
    chain blob not null,
    primary key (log, seq)
) without rowid;

-- What was read of each sender.
create table senders (
    log integer not null references logs on delete cascade,
    sender blob not null,
    -- Its newest entry that was read, and where it stands.
    count integer not null,
    digest blob not null,
    seq integer not null,
    -- The newest count that the app was given, or that was kept sealed: survives reading anew.
    delivered integer not null default 0,
    -- The newest count of an entry that names this device.
    addressed integer not null default 0,
    primary key (log, sender)
) without rowid;

-- Content keys. There can be several for one epoch: whoever delivers a wrong one must not be able to
-- keep out the right one.
create table keys (
    log integer not null references logs on delete cascade,
    scope blob not null,
    epoch integer not null,
    key blob not null,
    -- The seq of the rotation that gave it; none if a delivery did.
    rotation_seq integer,
    -- 1 if it has opened something.
    proven integer not null default 0,
    primary key (log, scope, epoch, key)
) without rowid;

-- Entries of this device: drafts to be sent, and signed bytes for as long as they are kept.
create table outbox (
    id integer primary key autoincrement,
    log integer not null references logs on delete cascade,
    -- 0 waiting, 1 numbered, 2 appended, 3 refused.
    state integer not null default 0,
    -- The higher goes first.
    urgent integer not null,
    -- 1 if it is a payload of the app.
    content integer not null,
    -- What is to be sent; none once it is appended.
    draft blob,
    -- Not to be numbered before the log was read up to here.
    after_seq integer not null default 0,
    -- From here on none while it waits.
    count integer,
    digest blob,
    header blob,
    signature blob,
    body blob,
    recipients blob,
    -- What the Totals app calls it; none in native groups.
    totals_kind text,
    -- 1 if nothing is numbered behind it before it is answered.
    barrier integer not null default 0,
    -- The content key that a rotation makes.
    secret blob,
    -- Where and when it was appended.
    seq integer,
    appended_at integer,
    -- The code with which it was refused.
    refusal text
);
create index outbox_of_log on outbox (log, state, urgent desc, id);
create index outbox_by_digest on outbox (log, digest);
create index outbox_unsent on outbox (log, id) where content = 1 and draft is not null;

-- The newest count of an own entry that names each recipient.
create table addressed (
    log integer not null references logs on delete cascade,
    recipient blob not null,
    count integer not null,
    primary key (log, recipient)
) without rowid;

-- What the app is to be told, in the order in which it happened.
create table events (
    id integer primary key autoincrement,
    log integer references logs on delete cascade,
    -- An opened entry's seq, else none.
    seq integer,
    event blob not null,
    at integer not null,
    -- 1 if the app has taken it; it goes after a while.
    taken integer not null default 0
);
create index events_by_seq on events (log, seq);
create index events_untaken on events (taken, id) where seq is not null;

-- Entries that could not be opened or believed, as they came.
create table sealed (
    log integer not null references logs on delete cascade,
    sender blob not null,
    count integer not null,
    seq integer not null,
    at integer not null,
    header blob not null,
    body blob not null,
    recipients blob not null,
    -- The key that opens it; none if no key will.
    epoch integer,
    -- The newest count of its sender that named this device when it came.
    before integer not null,
    kept_at integer not null,
    primary key (log, sender, count, seq)
) without rowid;
create index sealed_by_epoch on sealed (log, epoch);

-- The records of shared-expense ledgers: the group itself, people, expenses, what has happened,
-- messages that are not known yet, and who has taken the place of lost devices.
create table ledger (
    log integer not null references logs on delete cascade,
    -- 0 group, 1 person, 2 expense, 3 activity, 4 unknown, 5 succession.
    shelf integer not null,
    name text not null,
    record blob not null,
    primary key (log, shelf, name)
) without rowid;

-- Members of totals groups who have asked to be let in.
create table requests (
    log integer not null references logs on delete cascade,
    device blob not null,
    -- What the person calls itself.
    name text,
    asked_at integer not null,
    primary key (log, device)
) without rowid;

-- Members of totals groups whom this device has asked to let it in.
create table asked (
    log integer not null references logs on delete cascade,
    device blob not null,
    primary key (log, device)
) without rowid;

-- Keys that members offer for a totals group that has another one: a person decides.
create table offers (
    log integer not null references logs on delete cascade,
    sender blob not null,
    key blob not null,
    primary key (log, sender)
) without rowid;

-- The device's recovery vault: at most one row. What it is sealed with, so that it can be sealed anew
-- without asking for the PIN.
create table recovery (
    relay text not null,
    -- 0 as the Totals app makes it, 1 native.
    format integer not null,
    -- Sealed to this device's own key: what the relay is given in the place of a code, the half of the
    -- key that comes from a native code, what the PIN gives, and the seed of the device whose place this
    -- one has taken, until that one's vault is gone.
    secrets blob not null,
    salt blob not null,
    memory_kib integer not null,
    passes integer not null,
    lanes integer not null,
    -- The digest of what the relay has; none if it must be given something.
    uploaded blob
);

-- Relays that were asked to store or delete a recovery vault of this device and whose answers have not
-- come, or came when another one was kept: what they have is not known.
create table recovery_asked (
    relay text primary key,
    -- Random: who has asked last.
    mark blob not null,
    -- 1 if somebody else had asked before and had not been answered.
    met integer not null
) without rowid;

-- Vaults in which this device has taken the place of a lost one.
create table recovered_vaults (
    log blob primary key,
    relay text not null,
    relay_key blob not null,
    -- The scope that is the person's own; none if there was none, or it cannot be told.
    private_scope blob
) without rowid;
