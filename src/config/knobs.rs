//! The one table of settings: names, default, range, reason.
//!
//! Everything that names a setting is made from this table: flags and `--help`, the keys of the file,
//! `sealwire config`, and the table in docs/OPERATING.md (a test compares them).

pub mod vaults;

use sealwire_protocol::limits::SUBSCRIPTIONS_MAX;

/// One setting.
pub struct Knob {
    /// Its key in the file; with dashes, its flag.
    pub key: &'static str,
    /// Its environment variable.
    pub variable: &'static str,
    /// What holds if nobody says anything.
    pub default: Default,
    /// What it may be.
    pub shape: Shape,
    /// Where it may be given, and whether it may be shown.
    pub kind: Kind,
    /// Why it is there, and why it is what it is.
    pub why: &'static str,
}

/// What holds if nobody says anything.
pub enum Default {
    /// This value.
    Is(&'static str),
    /// Nothing, or something that depends on other settings; in words.
    Words(&'static str),
}

/// What a setting may be.
pub enum Shape {
    /// A whole number from `min` to `max`.
    Whole {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
        /// Of what.
        unit: &'static str,
    },
    /// Anything else; in words.
    Text(&'static str),
}

/// Where a setting may be given, and whether it may be shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As a flag, in the environment, in the file.
    Plain,
    /// Not in the file, because it is needed to find the file.
    FindsFile,
    /// Not as a flag, because everybody on the machine can read a process's arguments; never shown.
    Secret,
}

impl Knob {
    /// Its flag, without the dashes in front; none for secrets.
    #[must_use]
    pub fn flag(&self) -> Option<String> {
        (self.kind != Kind::Secret).then(|| self.key.replace('_', "-"))
    }

    /// What it may be, in words.
    #[must_use]
    pub fn range(&self) -> String {
        match self.shape {
            Shape::Whole { min, max, unit } => {
                format!("a whole number from {min} to {max} ({unit})")
            }
            Shape::Text(words) => words.to_owned(),
        }
    }
}

const ADDRESS: Shape = Shape::Text("an IP address and a port, such as 127.0.0.1:4000 or [::]:4000");
const SECRET: Shape = Shape::Text("at least 32 characters");

/// `SEALWIRE_CONFIG`
pub const CONFIG: Knob = Knob {
    key: "config",
    variable: "SEALWIRE_CONFIG",
    default: Default::Words("`sealwire.toml` in the data directory, if it is there"),
    shape: Shape::Text("the path of a TOML file that exists"),
    kind: Kind::FindsFile,
    why: "Settings that belong together in one place.",
};

/// `SEALWIRE_DATA_DIR`
pub const DATA_DIR: Knob = Knob {
    key: "data_dir",
    variable: "SEALWIRE_DATA_DIR",
    default: Default::Is("./data"),
    shape: Shape::Text("a directory; created if its parent exists"),
    kind: Kind::FindsFile,
    why: "Where the relay keeps its own files: database, keys, secrets.",
};

/// `DATABASE_URL`
pub const DATABASE_URL: Knob = Knob {
    key: "database_url",
    variable: "DATABASE_URL",
    default: Default::Words("SQLite, `sealwire.db` in the data directory"),
    shape: Shape::Text("sqlite:PATH or postgres://USER:PASSWORD@HOST/DATABASE"),
    kind: Kind::Secret,
    why: "Where logs are kept. It may hold a password, so it is shown without one.",
};

/// `SEALWIRE_LISTEN`
pub const LISTEN: Knob = Knob {
    key: "listen",
    variable: "SEALWIRE_LISTEN",
    default: Default::Is("127.0.0.1:4000"),
    shape: ADDRESS,
    kind: Kind::Plain,
    why: "Where devices connect, in plain HTTP: TLS belongs to the proxy in front. Ignored when \
          systemd hands a listener over.",
};

/// `SEALWIRE_OPERATOR_LISTEN`
pub const OPERATOR_LISTEN: Knob = Knob {
    key: "operator_listen",
    variable: "SEALWIRE_OPERATOR_LISTEN",
    default: Default::Is("127.0.0.1:4001"),
    shape: ADDRESS,
    kind: Kind::Plain,
    why: "Metrics, for you alone: never to be reached from outside. Ignored when systemd hands a \
          listener over.",
};

/// `DEVICE_SESSION_SECRET`
pub const DEVICE_SESSION_SECRET: Knob = Knob {
    key: "device_session_secret",
    variable: "DEVICE_SESSION_SECRET",
    default: Default::Words("made once, in `device-session.secret` in the data directory"),
    shape: SECRET,
    kind: Kind::Secret,
    why: "What tokens are made with. Whoever has it can speak for any device over HTTP.",
};

/// `DEVICE_SESSION_SECRET_PREVIOUS`
pub const DEVICE_SESSION_SECRET_PREVIOUS: Knob = Knob {
    key: "device_session_secret_previous",
    variable: "DEVICE_SESSION_SECRET_PREVIOUS",
    default: Default::Words("none"),
    shape: SECRET,
    kind: Kind::Secret,
    why: "The secret before this one: its tokens stay good. Needed for ten minutes after a change.",
};

/// `SEALWIRE_RELAY_KEY`
pub const RELAY_KEY: Knob = Knob {
    key: "relay_key",
    variable: "SEALWIRE_RELAY_KEY",
    default: Default::Words("made once, in `relay.key` in the data directory"),
    shape: Shape::Text("the seed of an Ed25519 key: 64 hexadecimal digits"),
    kind: Kind::Secret,
    why: "What the relay proves itself with. Devices pin it: with another one they stop and ask a \
          person.",
};

/// `SEALWIRE_RECOVERY_SECRET`
pub const RECOVERY_SECRET: Knob = Knob {
    key: "recovery_secret",
    variable: "SEALWIRE_RECOVERY_SECRET",
    default: Default::Words("made once, in `recovery.secret` in the data directory"),
    shape: SECRET,
    kind: Kind::Secret,
    why: "What finds recovery vaults by their codes. Without it nobody restores: keep a copy.",
};

/// `SEALWIRE_RECOVERY_SECRET_PREVIOUS`
pub const RECOVERY_SECRET_PREVIOUS: Knob = Knob {
    key: "recovery_secret_previous",
    variable: "SEALWIRE_RECOVERY_SECRET_PREVIOUS",
    default: Default::Words("none"),
    shape: SECRET,
    kind: Kind::Secret,
    why: "The secret before this one: recovery vaults stored under it are found until their owners \
          store them anew. At start the relay says how many are left.",
};

/// `TRUSTED_PROXY_IPS`
pub const TRUSTED_PROXY_IPS: Knob = Knob {
    key: "trusted_proxy_ips",
    variable: "TRUSTED_PROXY_IPS",
    default: Default::Is(""),
    shape: Shape::Text("IP addresses and networks (10.0.0.0/8), separated by commas"),
    kind: Kind::Plain,
    why: "Whose X-Forwarded-For is believed. Without the proxy's address here, all devices behind it \
          share the limits of one address.",
};

/// `MAX_GROUPS_PER_DEVICE`
pub const MAX_GROUPS_PER_DEVICE: Knob = Knob {
    key: "max_groups_per_device",
    variable: "MAX_GROUPS_PER_DEVICE",
    default: Default::Is("6"),
    shape: Shape::Whole { min: 1, max: SUBSCRIPTIONS_MAX as u64, unit: "groups" },
    kind: Kind::Plain,
    why: "Anybody can make keys; this bounds what one key can fill. A session can follow no more \
          than the upper end of the range.",
};

/// `SEALWIRE_RETENTION_DAYS`
pub const RETENTION_DAYS: Knob = Knob {
    key: "retention_days",
    variable: "SEALWIRE_RETENTION_DAYS",
    default: Default::Is("30"),
    shape: Shape::Whole { min: 1, max: 30, unit: "days" },
    kind: Kind::Plain,
    why: "How long a group keeps what an addressee has not fetched. 30 days is promised to members \
          as the most.",
};

/// `SEALWIRE_CONNECTIONS_MAX`
pub const CONNECTIONS_MAX: Knob = Knob {
    key: "connections_max",
    variable: "SEALWIRE_CONNECTIONS_MAX",
    default: Default::Is("100000"),
    shape: Shape::Whole { min: 1, max: 1_000_000, unit: "connections" },
    kind: Kind::Plain,
    why: "Bounds memory: about 10 KiB for each, half of it the kernel's. The limit of open files, \
          less a reserve, bounds it too.",
};

/// `SEALWIRE_UNAUTHENTICATED_MAX`
pub const UNAUTHENTICATED_MAX: Knob = Knob {
    key: "unauthenticated_max",
    variable: "SEALWIRE_UNAUTHENTICATED_MAX",
    default: Default::Is("16384"),
    shape: Shape::Whole { min: 1, max: 1_000_000, unit: "connections" },
    kind: Kind::Plain,
    why: "Connections that have not proved a key yet, all together. A WebSocket has ten \
          seconds to prove one; over HTTP a connection may rest for 20 seconds at once and a minute in all, so \
          strangers can hold this many places and no more.",
};

/// `SEALWIRE_UNAUTHENTICATED_PER_ADDRESS_MAX`
pub const UNAUTHENTICATED_PER_ADDRESS_MAX: Knob = Knob {
    key: "unauthenticated_per_address_max",
    variable: "SEALWIRE_UNAUTHENTICATED_PER_ADDRESS_MAX",
    default: Default::Is("4096"),
    shape: Shape::Whole { min: 1, max: 1_000_000, unit: "connections" },
    kind: Kind::Plain,
    why: "The same for one IPv4 address or one IPv6 /64. Mobile carriers put thousands of phones \
          behind one address, and a phone with the Totals app opens a dozen connections at its start.",
};

/// `SEALWIRE_CONNECTS_PER_SECOND`
pub const CONNECTS_PER_SECOND: Knob = Knob {
    key: "connects_per_second",
    variable: "SEALWIRE_CONNECTS_PER_SECOND",
    default: Default::Is("4000"),
    shape: RATE,
    kind: Kind::Plain,
    why: "New unauthenticated connections, all together. A signature takes 46 µs to check: this is a \
          fifth of one core.",
};

/// `SEALWIRE_CONNECTS_BURST`
pub const CONNECTS_BURST: Knob = Knob {
    key: "connects_burst",
    variable: "SEALWIRE_CONNECTS_BURST",
    default: Default::Is("40000"),
    shape: BURST,
    kind: Kind::Plain,
    why: "What may come at once after a quiet time: ten seconds' worth.",
};

/// `SEALWIRE_CONNECTS_PER_ADDRESS_PER_SECOND`
pub const CONNECTS_PER_ADDRESS_PER_SECOND: Knob = Knob {
    key: "connects_per_address_per_second",
    variable: "SEALWIRE_CONNECTS_PER_ADDRESS_PER_SECOND",
    default: Default::Is("1000"),
    shape: RATE,
    kind: Kind::Plain,
    why: "The same for one IPv4 address or one IPv6 /64: four such addresses fill the rate of all.",
};

/// `SEALWIRE_CONNECTS_PER_ADDRESS_BURST`
pub const CONNECTS_PER_ADDRESS_BURST: Knob = Knob {
    key: "connects_per_address_burst",
    variable: "SEALWIRE_CONNECTS_PER_ADDRESS_BURST",
    default: Default::Is("10000"),
    shape: BURST,
    kind: Kind::Plain,
    why: "What may come at once from one address: a carrier's phones after a break in the network, a \
          dozen connections each.",
};

/// `SEALWIRE_REQUESTS_PER_ADDRESS_PER_SECOND`
pub const REQUESTS_PER_ADDRESS_PER_SECOND: Knob = Knob {
    key: "requests_per_address_per_second",
    variable: "SEALWIRE_REQUESTS_PER_ADDRESS_PER_SECOND",
    default: Default::Is("5000"),
    shape: Shape::Whole { min: 1, max: 1_000_000, unit: "requests per second" },
    kind: Kind::Plain,
    why: "Requests over HTTP from one IPv4 address or one IPv6 /64: about half of what two cores can \
          answer. Each device has limits of its own beside it.",
};

/// `SEALWIRE_REQUESTS_PER_ADDRESS_BURST`
pub const REQUESTS_PER_ADDRESS_BURST: Knob = Knob {
    key: "requests_per_address_burst",
    variable: "SEALWIRE_REQUESTS_PER_ADDRESS_BURST",
    default: Default::Is("100000"),
    shape: Shape::Whole { min: 1, max: 10_000_000, unit: "requests" },
    kind: Kind::Plain,
    why: "What may come at once after a quiet time. An app at its start makes some 50 requests, and \
          hundreds of phones behind one address start when the network returns.",
};

/// `GOOGLE_APPLICATION_CREDENTIALS`
pub const GOOGLE_APPLICATION_CREDENTIALS: Knob = Knob {
    key: "google_application_credentials",
    variable: "GOOGLE_APPLICATION_CREDENTIALS",
    default: Default::Words("none: nobody is rung"),
    shape: Shape::Text("the path of a service account's JSON file"),
    kind: Kind::Plain,
    why: "Who you are to Firebase Cloud Messaging, which wakes phones that sleep. The file is a secret; \
          its path is not. Its `token_uri` is where access tokens are fetched.",
};

/// `FCM_BASE_URL`
pub const FCM_BASE_URL: Knob = Knob {
    key: "fcm_base_url",
    variable: "FCM_BASE_URL",
    default: Default::Is("https://fcm.googleapis.com"),
    shape: Shape::Text("an https URL, or an http URL of this very machine"),
    kind: Kind::Plain,
    why: "Where doorbells are rung: Google's, or a stand-in of yours for tests.",
};

/// `SEALWIRE_SHUTDOWN_DEADLINE_SECONDS`
pub const SHUTDOWN_DEADLINE_SECONDS: Knob = Knob {
    key: "shutdown_deadline_seconds",
    variable: "SEALWIRE_SHUTDOWN_DEADLINE_SECONDS",
    default: Default::Is("25"),
    shape: Shape::Whole { min: 1, max: 600, unit: "seconds" },
    kind: Kind::Plain,
    why: "How long stopping may take before what is left is cut off. Kubernetes kills after 30, \
          systemd after 90.",
};

/// `SEALWIRE_LOG_FORMAT`
pub const LOG_FORMAT: Knob = Knob {
    key: "log_format",
    variable: "SEALWIRE_LOG_FORMAT",
    default: Default::Is("human"),
    shape: Shape::Text("human or json"),
    kind: Kind::Plain,
    why: "Lines for people, or one JSON object per line.",
};

/// `RUST_LOG`
pub const LOG_FILTER: Knob = Knob {
    key: "log_filter",
    variable: "RUST_LOG",
    default: Default::Words("info"),
    shape: Shape::Text(
        "a level (error, warn, info, debug, trace, off) or TARGET=LEVEL, separated by commas",
    ),
    kind: Kind::Plain,
    why: "How much is said. Only Sealwire's own lines are ever written, whatever this asks for.",
};

/// `ENABLE_DEBUG`
pub const ENABLE_DEBUG: Knob = Knob {
    key: "enable_debug",
    variable: "ENABLE_DEBUG",
    default: Default::Is("false"),
    shape: Shape::Text("true or false"),
    kind: Kind::Plain,
    why: "Says more: the level is debug unless RUST_LOG names one.",
};

const RATE: Shape = Shape::Whole { min: 1, max: 1_000_000, unit: "connections per second" };
const BURST: Shape = Shape::Whole { min: 1, max: 1_000_000, unit: "connections" };

/// Every setting, in the order of the documentation.
pub const ALL: &[&Knob] = &[
    &CONFIG,
    &DATA_DIR,
    &DATABASE_URL,
    &LISTEN,
    &OPERATOR_LISTEN,
    &DEVICE_SESSION_SECRET,
    &DEVICE_SESSION_SECRET_PREVIOUS,
    &RELAY_KEY,
    &RECOVERY_SECRET,
    &RECOVERY_SECRET_PREVIOUS,
    &TRUSTED_PROXY_IPS,
    &MAX_GROUPS_PER_DEVICE,
    &RETENTION_DAYS,
    &vaults::ENTRIES_MAX,
    &vaults::MIB_MAX,
    &vaults::SNAPSHOTS_MIB_MAX,
    &vaults::DEVICES_MAX,
    &CONNECTIONS_MAX,
    &UNAUTHENTICATED_MAX,
    &UNAUTHENTICATED_PER_ADDRESS_MAX,
    &CONNECTS_PER_SECOND,
    &CONNECTS_BURST,
    &CONNECTS_PER_ADDRESS_PER_SECOND,
    &CONNECTS_PER_ADDRESS_BURST,
    &REQUESTS_PER_ADDRESS_PER_SECOND,
    &REQUESTS_PER_ADDRESS_BURST,
    &GOOGLE_APPLICATION_CREDENTIALS,
    &FCM_BASE_URL,
    &SHUTDOWN_DEADLINE_SECONDS,
    &LOG_FORMAT,
    &LOG_FILTER,
    &ENABLE_DEBUG,
];

/// The table of docs/OPERATING.md.
#[must_use]
pub fn markdown() -> String {
    let mut table = String::from(
        "| file | environment | flag | default | must be | why |\n|---|---|---|---|---|---|\n",
    );
    for knob in ALL {
        let file = match knob.kind {
            Kind::FindsFile => "–".to_owned(),
            Kind::Plain | Kind::Secret => format!("`{}`", knob.key),
        };
        let flag = knob.flag().map_or("–".to_owned(), |flag| format!("`--{flag}`"));
        let default = match knob.default {
            Default::Is("") => "none".to_owned(),
            Default::Is(value) => format!("`{value}`"),
            Default::Words(words) => words.to_owned(),
        };
        let line =
            [&file, &format!("`{}`", knob.variable), &flag, &default, &knob.range(), knob.why]
                .map(str::to_owned)
                .join(" | ");
        table.push_str(&format!("| {line} |\n"));
    }
    table
}
