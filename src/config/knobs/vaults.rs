//! How much a vault may hold: an operator's disk decides. What is stored is never refused to its
//! readers, whatever these say.

use super::{Default, Kind, Knob, Shape};

/// `SEALWIRE_VAULT_ENTRIES_MAX`
pub const ENTRIES_MAX: Knob = Knob {
    key: "vault_entries_max",
    variable: "SEALWIRE_VAULT_ENTRIES_MAX",
    default: Default::Is("1000000"),
    shape: Shape::Whole { min: 10_000, max: 100_000_000, unit: "entries" },
    kind: Kind::Plain,
    why: "Entries that one vault keeps; the last 1,000 are for control entries and keys. Five years \
          of a busy household without one snapshot: with snapshots, old entries go.",
};

/// `SEALWIRE_VAULT_MIB_MAX`
pub const MIB_MAX: Knob = Knob {
    key: "vault_mib_max",
    variable: "SEALWIRE_VAULT_MIB_MAX",
    default: Default::Is("1024"),
    shape: Shape::Whole { min: 16, max: 1_048_576, unit: "MiB" },
    kind: Kind::Plain,
    why: "Bodies that one vault keeps; the last MiB is for control entries and keys.",
};

/// `SEALWIRE_VAULT_SNAPSHOTS_MIB_MAX`
pub const SNAPSHOTS_MIB_MAX: Knob = Knob {
    key: "vault_snapshots_mib_max",
    variable: "SEALWIRE_VAULT_SNAPSHOTS_MIB_MAX",
    default: Default::Is("1024"),
    shape: Shape::Whole { min: 16, max: 4096, unit: "MiB" },
    kind: Kind::Plain,
    why: "Snapshots of one vault and uploads that are under way, together. Two stay, a third comes: \
          a household whose state is larger than a third of this cannot shed its old entries.",
};

/// `SEALWIRE_VAULT_DEVICES_MAX`
pub const DEVICES_MAX: Knob = Knob {
    key: "vault_devices_max",
    variable: "SEALWIRE_VAULT_DEVICES_MAX",
    default: Default::Is("32"),
    shape: Shape::Whole { min: 2, max: 1000, unit: "devices" },
    kind: Kind::Plain,
    why: "Devices that are enrolled in one vault at the same time. A rotation of keys is sealed to \
          each of them and has to fit one entry.",
};
