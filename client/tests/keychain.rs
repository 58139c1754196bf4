//! A key in the system's keychain: the real program, in a session with a keychain of its own.
//!
//! The session is `dbus-run-session`'s, the keychain `gnome-keyring-daemon`'s; both end with the test.
//! Where one of them is not installed the test passes and says so.

use std::path::Path;
use std::process::{Command, Output};

/// Runs a script in a session whose keychain is unlocked and empty, and gives what it printed.
fn in_session(home: &Path, script: &str) -> Output {
    let unlock = "printf pw | gnome-keyring-daemon --unlock --components=secrets >/dev/null 2>&1\n";
    Command::new("dbus-run-session")
        .args(["--", "sh", "-euc", &format!("{unlock}{script}")])
        .env("HOME", home)
        .env("XDG_DATA_HOME", home)
        .env("XDG_RUNTIME_DIR", home)
        .env("DEVICE", env!("CARGO_BIN_EXE_sealwire-device"))
        .env("SEALWIRE_DEVICE_DIR", home.join("device"))
        .output()
        .expect("it runs")
}

/// Whether the programs of such a session are there.
fn have_programs() -> bool {
    ["dbus-run-session", "gnome-keyring-daemon"].iter().all(|program| {
        let found = Command::new(program).arg("--version").output();
        found.is_ok_and(|output| output.status.success())
    })
}

#[test]
fn a_device_whose_key_is_in_the_keychain_is_the_same_in_every_process_and_no_file_holds_the_key() {
    if !have_programs() {
        println!("not asked: dbus-run-session or gnome-keyring-daemon is not installed");
        return;
    }
    let home = tempfile::tempdir().expect("a directory");
    // Nobody has to name the keychain where one answers.
    let output =
        in_session(home.path(), "\"$DEVICE\" init\n\"$DEVICE\" whoami\n\"$DEVICE\" whoami\n");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("its key is in the system's keychain"), "{said}");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let keys: Vec<&str> = printed.lines().collect();
    assert_eq!(keys.len(), 3, "{printed}");
    assert!(keys.iter().all(|key| *key == keys[0] && key.len() == 64), "{printed}");
    let file = std::fs::read_to_string(home.path().join("device/device.key")).expect("a key file");
    assert_eq!(file, format!("sealwire device key v1\nkeychain {}\n", keys[0]));

    // Whoever names a passphrase, or nothing at all, is taken at their word.
    for (name, arguments, line) in
        [("sealed", "init --passphrase", "argon2id "), ("clear", "init --unsealed", "clear ")]
    {
        let home = tempfile::tempdir().expect("a directory");
        let script = format!("SEALWIRE_PASSPHRASE=sesame \"$DEVICE\" {arguments}\n");
        assert!(in_session(home.path(), &script).status.success(), "{name}");
        let file = std::fs::read_to_string(home.path().join("device/device.key")).expect("a file");
        assert!(file.lines().nth(1).is_some_and(|it| it.starts_with(line)), "{name}");
    }

    // Without a session, and in one whose keychain does not know it, it is not made anew.
    let lost = Command::new(env!("CARGO_BIN_EXE_sealwire-device"))
        .arg("whoami")
        .env("SEALWIRE_DEVICE_DIR", home.path().join("device"))
        .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere")
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&lost.stderr).into_owned();
    assert!(!lost.status.success() && said.contains("this session has none"), "{said}");
    let other = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(other.path().join("device")).expect("a directory");
    let key_file = other.path().join("device/device.key");
    std::fs::copy(home.path().join("device/device.key"), key_file).expect("copied");
    let unknown = in_session(other.path(), "\"$DEVICE\" whoami\n");
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(!unknown.status.success() && said.contains("does not have this device"), "{said}");
}
