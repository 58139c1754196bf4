use std::collections::BTreeMap;

use super::*;

#[derive(Default)]
struct Given {
    flags: BTreeMap<&'static str, String>,
    variables: BTreeMap<String, String>,
    directory: Option<tempfile::TempDir>,
}

impl Given {
    fn flag(mut self, key: &'static str, value: &str) -> Self {
        self.flags.insert(key, value.to_owned());
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// A file in a data directory of its own.
    fn file(mut self, text: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("sealwire.toml"), text).unwrap();
        let path = directory.path().display().to_string();
        self.directory = Some(directory);
        self.variable("SEALWIRE_DATA_DIR", &path)
    }

    fn settings(&self) -> Result<Settings, ConfigError> {
        Settings::gather(&self.flags, &self.variables)
    }

    fn config(&self) -> Config {
        Config::read(&self.settings().unwrap()).map_err(|error| error.to_string()).unwrap()
    }

    fn refusal(&self) -> String {
        let read = self.settings().and_then(|settings| Config::read(&settings).map(drop));
        read.unwrap_err().to_string()
    }
}

fn given() -> Given {
    Given::default().variable("SEALWIRE_DATA_DIR", "/nowhere")
}

#[test]
fn the_defaults_are_those_of_the_documentation() {
    let config = given().config();
    assert_eq!(config.listen.to_string(), "127.0.0.1:4000");
    assert_eq!(config.operator_listen.to_string(), "127.0.0.1:4001");
    assert_eq!(config.database.redacted(), "sqlite:/nowhere/sealwire.db");
    assert_eq!(config.groups_max, 6);
    assert_eq!(config.retention, Duration::from_secs(30 * 86_400));
    assert_eq!(config.vaults, VaultLimits::default());
    assert_eq!(config.log.format, LogFormat::Human);
    assert!(config.device_session_secret.is_none() && config.relay_key.is_none());
}

#[test]
fn a_flag_wins_over_the_environment_and_the_environment_over_the_file() {
    let file = "max_groups_per_device = 10\nretention_days = 10\nconnections_max = 10\n";
    let given = Given::default()
        .file(file)
        .variable("MAX_GROUPS_PER_DEVICE", "20")
        .variable("SEALWIRE_RETENTION_DAYS", "20")
        .flag("max_groups_per_device", "30");
    let config = given.config();
    assert_eq!(config.groups_max, 30);
    assert_eq!(config.retention, Duration::from_secs(20 * 86_400));
    assert_eq!(config.connections_max, 10);

    let shown = given.settings().unwrap().to_toml();
    let line = |key: &str| shown.lines().find(|line| line.starts_with(key)).unwrap().to_owned();
    assert!(line("max_groups_per_device = \"30\"").ends_with("# flag --max-groups-per-device"));
    assert!(line("retention_days = \"20\"").ends_with("# environment SEALWIRE_RETENTION_DAYS"));
    assert!(line("connections_max = \"10\"").ends_with("sealwire.toml"));
    assert!(line("listen = \"127.0.0.1:4000\"").ends_with("# default"));
}

#[test]
fn what_is_shown_is_a_file_that_says_the_same() {
    let first =
        Given::default().file("trusted_proxy_ips = [\"10.0.0.0/8\", \"::1\"]\nenable_debug = true");
    let shown = first.settings().unwrap().to_toml();
    let second = Given::default().file(&shown).config();
    assert!(second.log.debug);
    assert!(
        second
            .trusted_proxies
            .trust(crate::client_address::ClientAddress::of_peer("10.1.2.3:1".parse().unwrap()))
    );
}

#[test]
fn a_secret_is_never_shown() {
    let planted = "planted-planted-planted-planted-planted";
    let given = given()
        .variable("DEVICE_SESSION_SECRET", planted)
        .variable("DEVICE_SESSION_SECRET_PREVIOUS", planted)
        .variable("DATABASE_URL", &format!("postgres://user:{planted}@db.example/sealwire"))
        .variable("SEALWIRE_RELAY_KEY", &hex::encode([7; 32]));
    let shown = given.settings().unwrap().to_toml();
    assert!(!shown.contains("planted") && !shown.contains("0707"), "{shown}");
    assert!(shown.contains("postgres://db.example/sealwire"));
    given.config();

    for (variable, value) in [
        ("DEVICE_SESSION_SECRET", "planted"),
        ("SEALWIRE_RELAY_KEY", "planted"),
        ("DATABASE_URL", "planted://user:planted@host"),
    ] {
        let refusal = self::given().variable(variable, value).refusal();
        assert!(refusal.contains(variable) && !refusal.contains("planted"), "{refusal}");
    }
    let refusal = Given::default().file("device_session_secret = planted").refusal();
    assert!(refusal.contains("line 1") && !refusal.contains("planted"), "{refusal}");
}

#[test]
fn a_value_that_cannot_be_used_is_refused_with_its_name_and_source() {
    for (variable, value) in [
        ("MAX_GROUPS_PER_DEVICE", "0"),
        ("MAX_GROUPS_PER_DEVICE", "257"),
        ("MAX_GROUPS_PER_DEVICE", "six"),
        ("SEALWIRE_RETENTION_DAYS", "31"),
        ("SEALWIRE_CONNECTS_BURST", "-1"),
        ("SEALWIRE_LISTEN", "localhost"),
        ("SEALWIRE_LOG_FORMAT", "xml"),
        ("TRUSTED_PROXY_IPS", "10.0.0.1/33"),
        ("ENABLE_DEBUG", "perhaps"),
        ("RUST_LOG", "sealwire=loud"),
        ("FCM_BASE_URL", "http://fcm.googleapis.com"),
        ("FCM_BASE_URL", "fcm.googleapis.com"),
        ("FCM_BASE_URL", "https://fcm.googleapis.com/?x=y"),
    ] {
        let refusal = given().variable(variable, value).refusal();
        assert!(
            refusal.contains(&format!("\"{value}\" (environment {variable}): must be ")),
            "{refusal}"
        );
    }
    let refusal = given().flag("listen", "here").refusal();
    assert!(refusal.starts_with("listen = \"here\" (flag --listen): must be an IP"), "{refusal}");
}

#[test]
fn nobody_is_rung_unless_there_are_credentials() {
    assert!(given().variable("FCM_BASE_URL", "http://127.0.0.1:9").config().push.is_none());
    let push =
        given().variable("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json").config().push;
    let push = push.unwrap();
    assert_eq!(push.credentials.display().to_string(), "/nowhere/key.json");
    assert_eq!(push.base, "https://fcm.googleapis.com");
}

#[test]
fn a_file_with_a_mistake_is_refused_with_its_place() {
    let refusal = |text: &str| Given::default().file(text).refusal();
    assert!(refusal("listne = \"x\"").contains("sealwire.toml: unknown key `listne`"));
    assert!(refusal("data_dir = \"x\"").contains("`data_dir` can only be a flag or a variable"));
    assert!(refusal("listen = 1.5").contains("`listen` must be a string"));
    assert!(refusal("[listen]\na = 1").contains("`listen` must be a string"));
    assert!(refusal("\n\nlisten 5").contains("line 3"));
    let refusal = given().variable("SEALWIRE_CONFIG", "/nowhere/else.toml").refusal();
    assert!(refusal.starts_with("/nowhere/else.toml: "), "{refusal}");
}

#[test]
fn empty_variables_are_absent_and_misspelt_ones_are_noticed() {
    let given = given()
        .variable("DEVICE_SESSION_SECRET", "")
        .variable("MAX_GROUPS_PER_DEVICE", "")
        .variable("SEALWIRE_LISTNE", "x")
        .variable("SEALWIRE_TEST_POSTGRES", "x");
    assert_eq!(given.config().groups_max, 6);
    assert_eq!(given.settings().unwrap().unknown_variables(), ["SEALWIRE_LISTNE"]);
    // A switch of debug builds is misspelt where it means nothing.
    let given = given.variable("SEALWIRE_DEBUG_NO_FSYNC", "1");
    let debug = given.settings().unwrap().unknown_variables().len() == 1;
    assert_eq!(debug, cfg!(debug_assertions));
}

#[test]
fn every_default_is_within_its_range() {
    for knob in knobs::ALL {
        let (knobs::Shape::Whole { min, max, .. }, knobs::Default::Is(default)) =
            (&knob.shape, &knob.default)
        else {
            continue;
        };
        assert!((*min..=*max).contains(&default.parse().unwrap()), "{}", knob.key);
    }
}

#[test]
fn the_documentation_holds_the_table_of_the_code() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/OPERATING.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- settings: begin -->\n", "<!-- settings: end -->");
    let (before, rest) = text.split_once(begin).unwrap();
    let (table, after) = rest.split_once(end).unwrap();
    let wanted = knobs::markdown();
    if table != wanted {
        std::fs::write(path, format!("{before}{begin}{wanted}{end}{after}")).unwrap();
        panic!(
            "docs/OPERATING.md was out of date and has been written anew; look at it and commit it"
        );
    }
}

#[test]
fn how_much_a_vault_may_hold_is_the_operators() {
    let vaults = given()
        .variable("SEALWIRE_VAULT_ENTRIES_MAX", "20000")
        .variable("SEALWIRE_VAULT_MIB_MAX", "100")
        .flag("vault_snapshots_mib_max", "200")
        .flag("vault_devices_max", "3")
        .config()
        .vaults;
    assert_eq!((vaults.entries_max, vaults.devices_max), (20_000, 3));
    assert_eq!((vaults.bytes_max, vaults.snapshot_bytes_max), (100 << 20, 200 << 20));
    // What is kept for control entries and keys leaves room for others, at the least too.
    assert!(vaults.entries_reserve < 10_000 && vaults.bytes_reserve < 16 << 20);
    let refusal = given().variable("SEALWIRE_VAULT_MIB_MAX", "1").refusal();
    assert!(refusal.contains("from 16 to 1048576"), "{refusal}");
}
