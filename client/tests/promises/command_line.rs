//! The program, as it is typed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::relay::Relay;
use crate::world::until;

/// A terminal with a device of its own.
#[derive(Clone)]
struct Terminal {
    directory: PathBuf,
    relay: String,
}

impl Terminal {
    fn new(directories: &TempDir, name: &str, relay: &Relay) -> Self {
        let directory = directories.path().join(name);
        Self { directory, relay: relay.url.to_string() }
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealwire-device"));
        command
            .env_remove("RUST_LOG")
            .env_remove("SEALWIRE_PASSPHRASE")
            .stdin(Stdio::null())
            // No session with a keychain: the person who runs this is not to find keys of tests in it.
            .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nowhere")
            .env("SEALWIRE_DEVICE_DIR", &self.directory)
            .env("SEALWIRE_RELAY", &self.relay)
            .args(words);
        if !words.contains(&"--wait") {
            command.args(["--wait", "20"]);
        }
        command
    }

    fn key_file(&self) -> String {
        std::fs::read_to_string(self.directory.join("device.key")).expect("a key file")
    }

    async fn run(&self, words: &[&str]) -> Output {
        let mut command = self.command(words);
        tokio::task::spawn_blocking(move || command.output())
            .await
            .expect("a thread")
            .expect("the program")
    }

    /// What a command prints that must succeed.
    async fn types(&self, words: &[&str]) -> String {
        let output = self.run(words).await;
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{words:?}: {complaint}");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    /// What a command complains that must fail.
    async fn fails(&self, words: &[&str]) -> String {
        let output = self.run(words).await;
        assert!(!output.status.success(), "{words:?} succeeded");
        String::from_utf8(output.stderr).expect("text")
    }

    fn spawn(&self, words: &[&str], out: &Path) -> Child {
        let out = std::fs::File::options().append(true).create(true).open(out).expect("a file");
        self.command(words)
            .stdin(Stdio::piped())
            .stdout(out)
            .stderr(Stdio::null())
            .spawn()
            .expect("the program")
    }
}

/// The texts of the entries in what was printed.
fn texts(path: &Path) -> Vec<String> {
    let printed = std::fs::read_to_string(path).unwrap_or_default();
    printed
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|value| value["event"] == "entry")
        .map(|value| value["text"].as_str().expect("a text").to_owned())
        .collect()
}

#[tokio::test]
async fn two_terminals_meet_in_a_handful_of_commands() {
    let relay = Relay::start().await;
    let directories = tempfile::tempdir().expect("a directory");
    let anna = Terminal::new(&directories, "anna", &relay);
    let ben = Terminal::new(&directories, "ben", &relay);
    let key = anna.types(&["init", "--unsealed"]).await;
    assert_eq!(anna.types(&["whoami"]).await, key);
    assert!(anna.fails(&["init"]).await.contains("already"));
    ben.types(&["init", "--unsealed"]).await;

    let group = anna.types(&["group", "create"]).await;
    let link = anna.types(&["group", "invite", &group[..8]]).await;
    let out = directories.path().join("anna.out");
    let mut listening = anna.spawn(&["--json", "listen"], &out);
    assert_eq!(ben.types(&["group", "join", &link]).await, group);
    ben.types(&["send", &group, "hello from ben"]).await;
    until("hearing it", async || texts(&out) == ["hello from ben"]).await;

    // Another process of the same device, while the first one listens.
    anna.types(&["send", &group, "hello from anna"]).await;
    let heard = ben.types(&["--json", "listen", "--once"]).await;
    assert!(heard.contains("hello from anna"), "{heard}");
    let again = ben.types(&["--json", "listen", "--once"]).await;
    assert!(!again.contains("hello from anna"), "it was taken");

    let members = ben.types(&["group", "members", &group]).await;
    assert_eq!(members.lines().count(), 2);
    assert!(members.contains(&key));
    let ben_key = ben.types(&["whoami"]).await;
    anna.types(&["group", "revoke", &group, &ben_key[..8]]).await;
    assert!(ben.fails(&["send", &group, "still here?"]).await.contains("revoked"));
    anna.types(&["group", "leave", &group]).await;
    assert!(anna.types(&["group", "list"]).await.contains("left"));
    listening.kill().expect("killed");
    listening.wait().expect("ended");
}

#[tokio::test]
async fn two_who_are_never_there_at_the_same_time_share_all_that_was_paid() {
    let relay = Relay::start().await;
    let directories = tempfile::tempdir().expect("a directory");
    let anna = Terminal::new(&directories, "anna", &relay);
    let ben = Terminal::new(&directories, "ben", &relay);
    anna.types(&["init", "--unsealed", "--name", "Anna"]).await;
    let group = anna.types(&["group", "create"]).await;
    let link = anna.types(&["group", "invite", &group]).await;
    anna.types(&["expense", "add", &group, "30", "Lunch", "--split", "me"]).await;
    ben.types(&["init", "--unsealed", "--name", "Ben"]).await;
    ben.types(&["--wait", "1", "group", "join", &link]).await;
    let alone = ben.run(&["--wait", "1", "balances", &group, "--sync"]).await;
    let said = String::from_utf8_lossy(&alone.stderr);
    assert!(alone.status.success() && said.contains("key has not come yet"), "{said}");
    // Ben has gone before Anna comes, and she before he is back.
    anna.types(&["balances", &group, "--sync"]).await;
    let listed = ben.types(&["expense", "list", &group, "--sync"]).await;
    assert!(listed.contains("Lunch") && listed.contains("Anna"), "{listed}");
    let added = ben.types(&["expense", "add", &group, "12", "Coffee"]).await;
    assert!(added.contains("shared by") && added.contains("Anna"), "{added}");
    let balances = anna.types(&["--json", "balances", &group, "--sync"]).await;
    assert_eq!(balances, ben.types(&["--json", "balances", &group, "--sync"]).await);
    let balances: Value = serde_json::from_str(&balances).expect("JSON");
    assert_eq!(balances["plan"][0]["minor"], 600);
    // People are called by their names, also where no money is concerned.
    assert!(anna.types(&["group", "members", &group]).await.contains("Ben"));
    anna.types(&["send", &group, "hello", "--to", "ben"]).await;
    assert_eq!(balances["whole"], true);
}

#[tokio::test]
async fn a_passphrase_is_asked_for_when_there_is_one() {
    let relay = Relay::start().await;
    let directories = tempfile::tempdir().expect("a directory");
    let anna = Terminal::new(&directories, "anna", &relay);
    let with = |phrase: &str, words: &[&str]| {
        let mut command = anna.command(words);
        command.env("SEALWIRE_PASSPHRASE", phrase);
        command.output().expect("the program")
    };
    let complaint = |output: Output| {
        assert!(!output.status.success());
        String::from_utf8(output.stderr).expect("text")
    };
    let empty = complaint(with("", &["init", "--passphrase"]));
    assert!(empty.contains("an empty passphrase seals nothing"), "{empty}");
    // The variable is enough to say so.
    let made = with("open sesame", &["init"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(anna.key_file().contains("argon2id"));
    assert!(with("open sesame", &["whoami"]).status.success());
    let wrong = complaint(with("open says me", &["whoami"]));
    assert!(wrong.contains("the passphrase is wrong"), "{wrong}");
}

// The keychains of these two need no session, and are a person's own.
#[cfg(not(any(target_os = "macos", target_os = "windows")))]
#[tokio::test]
async fn no_key_is_left_in_the_clear_unless_that_is_asked_for() {
    let relay = Relay::start().await;
    let directories = tempfile::tempdir().expect("a directory");
    let anna = Terminal::new(&directories, "anna", &relay);
    // Neither a keychain nor anybody who could be asked.
    let said = anna.fails(&["init"]).await;
    assert!(said.contains("SEALWIRE_PASSPHRASE") && said.contains("--unsealed"), "{said}");
    assert!(!anna.directory.exists(), "nothing was made");
    let said = anna.fails(&["init", "--keychain"]).await;
    let why = if cfg!(feature = "keychain") { "this session has none" } else { "built without" };
    assert!(said.contains(why), "{said}");
    let both = anna.fails(&["init", "--unsealed", "--passphrase"]).await;
    assert!(both.contains("cannot be used with"), "{both}");
    let made = anna.run(&["init", "--unsealed"]).await;
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success() && said.contains("in the clear"), "{said}");
    assert!(anna.key_file().contains("clear"));
}

#[tokio::test]
async fn what_is_mistyped_is_explained() {
    let relay = Relay::start().await;
    let directories = tempfile::tempdir().expect("a directory");
    let anna = Terminal::new(&directories, "anna", &relay);
    assert!(anna.fails(&["whoami"]).await.contains("init"));
    anna.types(&["init", "--unsealed"]).await;
    assert!(anna.fails(&["send", "12345678", "x"]).await.contains("no group begins with"));
    assert!(anna.fails(&["send", "12345678", "x"]).await.contains("`group list` shows them"));
    let torn = anna.fails(&["group", "join", "sealwire://join#nonsense"]).await;
    assert!(torn.contains("invite") && torn.contains("copy the link whole"), "{torn}");
    let group = anna.types(&["group", "create"]).await;
    let nobody = anna.fails(&["group", "revoke", &group, "zoe"]).await;
    assert!(nobody.contains("`group members` shows them"), "{nobody}");
    let missing = directories.path().join("none.db");
    let missing = missing.to_str().expect("a path");
    for words in [&["vault", "status", missing][..], &["vault", "create", missing, "--table", "x"]]
    {
        let said = anna.fails(words).await;
        assert!(said.contains("there is no database at"), "{said}");
    }
    let nowhere = Terminal { directory: anna.directory.join("device.key"), ..anna.clone() };
    let said = nowhere.fails(&["init", "--unsealed"]).await;
    assert!(said.contains("no device was made in") && said.contains("device.key"), "{said}");
    let plain = anna.fails(&["--relay", "ws://192.0.2.1:4000", "group", "create"]).await;
    assert!(plain.contains("without TLS"), "{plain}");
}

#[tokio::test]
async fn what_can_be_done_without_a_relay_is_done_without_it() {
    let relay = Relay::start().await;
    let directories = tempfile::tempdir().expect("a directory");
    let anna = Terminal::new(&directories, "anna", &relay);
    anna.types(&["init", "--unsealed"]).await;
    // Nothing listens there.
    let made = anna.types(&["--relay", "ws://127.0.0.1:1", "group", "create"]).await;
    anna.types(&["expense", "add", &made, "30", "Lunch"]).await;
    assert!(anna.types(&["expense", "list", &made]).await.contains("Lunch"));
    let sent: Value =
        serde_json::from_str(&anna.types(&["--json", "send", &made, "hello"]).await).expect("JSON");
    assert_eq!((sent["log"].as_str(), &sent["seq"]), (Some(made.as_str()), &Value::Null));
    let said = anna.fails(&["group", "invite", &made]).await;
    assert!(said.contains("connection refused") && said.contains("try again"), "{said}");
}

#[tokio::test]
async fn what_is_not_done_is_not_said_to_be() {
    let relay = Relay::start().await;
    let directories = tempfile::tempdir().expect("a directory");
    let anna = Terminal::new(&directories, "anna", &relay);
    anna.types(&["init", "--unsealed"]).await;
    // Nobody is out before the relay has it.
    let made = anna.types(&["--relay", "ws://127.0.0.1:1", "group", "create"]).await;
    let said = anna.fails(&["group", "leave", &made]).await;
    assert!(said.contains("not done yet") && said.contains("outbox"), "{said}");
    // A relay with another key than before is sent nothing, however often it is tried.
    let group = anna.types(&["group", "create"]).await;
    anna.types(&["trust", &"5a".repeat(32)]).await;
    for words in [&["send", &group, "hello"][..], &["group", "rotate", &group]] {
        let said = anna.fails(words).await;
        assert!(said.contains("the relay's key has changed"), "{said}");
        assert!(!said.contains("any command that connects"), "{said}");
    }
}

#[tokio::test]
async fn a_device_that_is_killed_while_it_talks_loses_and_doubles_nothing() {
    let relay = Relay::start().await;
    let directories = tempfile::tempdir().expect("a directory");
    let anna = Terminal::new(&directories, "anna", &relay);
    let ben = Terminal::new(&directories, "ben", &relay);
    anna.types(&["init", "--unsealed"]).await;
    ben.types(&["init", "--unsealed"]).await;
    let group = anna.types(&["group", "create"]).await;
    let link = anna.types(&["group", "invite", &group]).await;
    let out = directories.path().join("ben.out");
    let silence = directories.path().join("anna.out");
    let mut answering = anna.spawn(&["listen"], &silence);
    ben.types(&["group", "join", &link]).await;
    answering.kill().expect("killed");
    answering.wait().expect("ended");

    let mut listening = ben.spawn(&["--json", "listen"], &out);
    let mut typed = 0;
    for _ in 0..6 {
        let before = texts_of(&relay, &group);
        let mut chat = anna.spawn(&["chat", &group], &silence);
        let stdin = chat.stdin.as_mut().expect("a pipe");
        for _ in 0..20 {
            writeln!(stdin, "{typed}").expect("typed");
            typed += 1;
        }
        stdin.flush().expect("flushed");
        // Once the first of it has got there: much of the rest is not even in the outbox.
        until("a word of this round", async || texts_of(&relay, &group) > before).await;
        chat.kill().expect("killed");
        chat.wait().expect("ended");
        // So is the other one, which prints before it takes: it may print one twice.
        listening.kill().expect("killed");
        listening.wait().expect("ended");
        listening = ben.spawn(&["--json", "listen"], &out);
    }
    anna.types(&["send", &group, "the end"]).await;
    until("the end", async || texts(&out).last().is_some_and(|text| text == "the end")).await;
    listening.kill().expect("killed");
    listening.wait().expect("ended");

    let log = sealwire_protocol::LogId::from_uuid_text(&group).expect("a group");
    let key = anna.types(&["whoami"]).await;
    let counts: Vec<u64> = relay
        .entries(log)
        .iter()
        .filter(|stored| stored.header.sender.to_hex() == key)
        .map(|stored| stored.header.count)
        .collect();
    assert_eq!(counts, (1..=counts.len() as u64).collect::<Vec<_>>(), "no number is used twice");
    let mut heard = texts(&out);
    heard.pop();
    heard.dedup();
    let numbers: Vec<u64> = heard.iter().map(|text| text.parse().expect("a number")).collect();
    assert!(numbers.is_sorted(), "in the order in which it was typed: {numbers:?}");
    assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "each once: {numbers:?}");
    assert!(!numbers.is_empty());
}

/// How many words stand in a group.
fn texts_of(relay: &Relay, group: &str) -> usize {
    let log = sealwire_protocol::LogId::from_uuid_text(group).expect("a group");
    let entries = relay.entries(log).into_iter();
    entries.filter(|it| it.header.kind == sealwire_protocol::Kind::Ring).count()
}

/// What each owes, as `balances` prints it for scripts: from, to, amount.
async fn plan(terminal: &Terminal, group: &str, how: &[&str]) -> Vec<(String, String, String)> {
    let words = [&["--json", "balances", group], how].concat();
    let printed: Value = serde_json::from_str(&terminal.types(&words).await).expect("JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let plan = printed["plan"].as_array().expect("a plan").iter();
    plan.map(|it| (text(&it["from"]), text(&it["to"]), text(&it["amount"]))).collect()
}

#[tokio::test]
async fn two_terminals_share_a_lunch_and_pay_it_back() {
    let relay = Relay::start().await;
    let directories = tempfile::tempdir().expect("a directory");
    let anna = Terminal::new(&directories, "anna", &relay);
    let ben = Terminal::new(&directories, "ben", &relay);
    let anna_key = anna.types(&["init", "--unsealed"]).await;
    let ben_key = ben.types(&["init", "--unsealed"]).await;
    let group = anna.types(&["group", "create"]).await;
    let link = anna.types(&["group", "invite", &group]).await;
    let out = directories.path().join("anna.out");
    let mut watching = anna.spawn(&["--json", "watch"], &out);
    ben.types(&["group", "join", &link]).await;

    anna.types(&["expense", "add", &group, "30", "Lunch"]).await;
    let owes = [(ben_key.clone(), anna_key.clone(), "15.00 ETB".to_owned())];
    assert_eq!(plan(&ben, &group, &["--sync"]).await, owes);
    assert_eq!(plan(&anna, &group, &[]).await, owes);
    let listed = ben.types(&["expense", "list", &group]).await;
    assert!(listed.contains("Lunch") && listed.contains("30.00 ETB"), "{listed}");
    let table = ben.types(&["balances", &group]).await;
    assert!(table.contains("(you)") && table.contains("-15.00 ETB"), "{table}");

    let line = ben.types(&["--json", "expense", "list", &group]).await;
    let expense: Value = serde_json::from_str(&line).expect("JSON");
    let id = expense["expense"].as_str().expect("a name").to_owned();
    ben.types(&["expense", "edit", &group, &id[..8], "--amount", "40", "--on", "2026-01-31"]).await;
    anna.types(&["nudge", &group]).await;
    ben.types(&["settle", &group, &anna_key[..8]]).await;
    assert_eq!(plan(&ben, &group, &["--simplified"]).await, []);
    assert!(ben.fails(&["settle", &group, &anna_key[..8]]).await.contains("nothing"));
    assert!(anna.fails(&["nudge", &group]).await.contains("nobody owes"));
    anna.types(&["expense", "delete", &group, &id[..8]]).await;
    let back = [(anna_key.clone(), ben_key.clone(), "20.00 ETB".to_owned())];
    assert_eq!(plan(&anna, &group, &["--sync"]).await, back);

    let seen = || std::fs::read_to_string(&out).unwrap_or_default();
    until("watching it all", async || seen().contains("expense_deleted")).await;
    let whats = ["expense_created", "expense_amount_changed", "settlement_created", "nudge_sent"];
    assert!(whats.iter().all(|what| seen().contains(what)), "{}", seen());
    watching.kill().expect("killed");
    watching.wait().expect("ended");
}

#[tokio::test]
async fn what_is_mistyped_about_money_is_explained_and_what_cannot_be_sent_is_kept() {
    let relay = Relay::start().await;
    let directories = tempfile::tempdir().expect("a directory");
    let anna = Terminal::new(&directories, "anna", &relay);
    anna.types(&["init", "--unsealed"]).await;
    let group = anna.types(&["group", "create"]).await;
    let add =
        async |words: &[&str]| anna.fails(&[&["expense", "add", &group], words].concat()).await;
    assert!(add(&["twelve", "Lunch"]).await.contains("twelve is no amount of ETB"));
    assert!(add(&["1.234", "Lunch"]).await.contains("no such small part"));
    assert!(add(&["12", "Lunch", "--split", "nobody"]).await.contains("called nobody"));
    assert!(add(&["12", "Lunch", "--on", "tomorrow"]).await.contains("write it like"));
    let missing = anna.fails(&["expense", "delete", &group, "12345678"]).await;
    assert!(missing.contains("expense list"), "{missing}");

    drop(relay);
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealwire-device"));
    command.env("SEALWIRE_DEVICE_DIR", &anna.directory).args(["--wait", "1"]);
    command.args(["expense", "add", &group, "12", "Lunch"]);
    let written = tokio::task::spawn_blocking(move || command.output());
    let written = written.await.expect("a thread").expect("the program");
    assert!(written.status.success());
    let remark = String::from_utf8_lossy(&written.stderr).into_owned();
    assert!(remark.contains("when the relay is reached"), "{remark}");
    let listed = anna.types(&["expense", "list", &group]).await;
    assert!(listed.contains("12.00 ETB"), "{listed}");
}

#[tokio::test]
async fn what_went_wrong_is_followed_by_what_to_do() {
    let relay = Relay::start().await;
    let directories = tempfile::tempdir().expect("a directory");
    let anna = Terminal::new(&directories, "anna", &relay);
    anna.types(&["init", "--unsealed"]).await;
    let missing = directories.path().join("nowhere.db");
    let missing = missing.to_str().expect("text");
    let said = anna.fails(&["vault", "create", missing, "--table", "tasks"]).await;
    assert!(said.contains("database") && !said.contains("device's file"), "{said}");
    let said = anna.fails(&["group", "join", "sealwire://join#cut-off"]).await;
    let last = said.trim_end().lines().last().unwrap_or_default();
    assert!(last.starts_with("What to do: ") && last.ends_with('.'), "{said}");
}

#[tokio::test]
async fn what_others_will_not_get_is_said_with_what_to_do() {
    let relay = Relay::start().await;
    let directories = tempfile::tempdir().expect("a directory");
    let anna = Terminal::new(&directories, "anna", &relay);
    let ben = Terminal::new(&directories, "ben", &relay);
    anna.types(&["init", "--unsealed"]).await;
    let ben_key = ben.types(&["init", "--unsealed"]).await;
    let group = anna.types(&["group", "create"]).await;
    let link = anna.types(&["group", "invite", &group]).await;
    let silence = directories.path().join("anna.out");
    let mut answering = anna.spawn(&["listen"], &silence);
    ben.types(&["group", "join", &link]).await;
    answering.kill().expect("killed");
    answering.wait().expect("ended");
    anna.types(&["group", "revoke", &group, &ben_key[..8]]).await;
    let said = ben.fails(&["expense", "add", &group, "12", "Coffee"]).await;
    assert!(said.contains("the others will not get it") && said.contains("revoked"), "{said}");
    assert!(said.contains("What to do: make a new device"), "{said}");
}

#[tokio::test]
async fn whatever_is_done_is_told_to_scripts_as_well() {
    let relay = Relay::start().await;
    let directories = tempfile::tempdir().expect("a directory");
    let anna = Terminal::new(&directories, "anna", &relay);
    anna.types(&["init", "--unsealed"]).await;
    let listed = anna.run(&["group", "list"]).await;
    assert!(listed.status.success() && listed.stdout.is_empty());
    assert!(String::from_utf8_lossy(&listed.stderr).contains("`group create` makes one"));
    let key = "5a".repeat(32);
    let trusted = anna.types(&["--json", "trust", &key]).await;
    let trusted: Value = serde_json::from_str(&trusted).expect("JSON");
    assert_eq!((&trusted["key"], trusted["relay"].is_string()), (&Value::from(key), true));
}

#[tokio::test]
async fn whoever_stops_reading_is_told_nothing_more() {
    let relay = Relay::start().await;
    let directories = tempfile::tempdir().expect("a directory");
    let anna = Terminal::new(&directories, "anna", &relay);
    anna.types(&["init", "--unsealed"]).await;
    anna.types(&["group", "create"]).await;
    let mut command = anna.command(&["group", "list"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program");
    drop(child.stdout.take());
    let output = tokio::task::spawn_blocking(move || child.wait_with_output());
    let output = output.await.expect("a thread").expect("ended");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
