//! Everything that there is a budget for, in one run: shortened, so that it can be a test.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;

use super::{document, honest};

/// Names the server for the PostgreSQL half, with a database that exists.
const SERVER: &str = "SEALWIRE_TEST_POSTGRES";

/// Runs it with this relay, and gives what it wrote.
async fn budgets(relay: &Path, options: &[&str], directory: &Path) -> (Output, Value) {
    let json = directory.join("budgets.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealwire-loadtest"));
    command.args(["budgets", "--short", "--relay"]).arg(relay).args(options);
    command.arg("--json").arg(&json).arg("--html").arg(directory.join("budgets.html"));
    let ended = tokio::task::spawn_blocking(move || command.output());
    let output = ended.await.expect("it ends").expect("it runs");
    (output, document(&json))
}

/// The verdicts of one database, by budget.
fn verdicts(figures: &Value, column: usize) -> Vec<(&str, &str)> {
    let rows = figures["rows"].as_array().expect("rows");
    rows.iter()
        .map(|row| {
            let verdict = row["judged"][column]["verdict"].as_str().expect("a verdict");
            (row["budget"].as_str().expect("a name"), verdict)
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_budget_is_taken_on_both_databases_and_a_shortened_run_judges_none() {
    let Ok(server) = std::env::var(SERVER) else {
        panic!("{SERVER} names no server: run ./scripts/test, which starts one");
    };
    let directory = TempDir::new().expect("a directory");
    let directory = directory.path();
    let options = ["--database", &server];
    let (output, written) = budgets(&honest::relay(), &options, directory).await;
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");

    let run = &written["runs"][0];
    let figures = &run["figures"];
    assert_eq!(figures["columns"], serde_json::json!(["SQLite", "PostgreSQL"]));
    for column in 0..2 {
        let verdicts = verdicts(figures, column);
        assert_eq!(verdicts.len(), 11);
        for (budget, verdict) in verdicts {
            let known = cfg!(feature = "ceiling") || budget != "store-share";
            let expected = if known { "not-judged" } else { "not-taken" };
            assert_eq!(verdict, expected, "{budget} in column {column}: {}", run["warnings"]);
        }
    }
    let rows = figures["rows"].as_array().expect("rows");
    let faults = rows.iter().find(|row| row["budget"] == "faults").expect("a row");
    for judged in faults["judged"].as_array().expect("two") {
        assert_eq!(judged["taken"]["value"].as_f64(), Some(0.0));
        assert_eq!(judged["all"].as_array().map(Vec::len), Some(3));
    }
    let warnings = run["warnings"].as_array().expect("a list");
    assert!(warnings[0].as_str().is_some_and(|it| it.contains("shortened")), "{warnings:?}");

    // Every part is kept whole.
    let reports = run["reports"].as_array().expect("reports");
    let parts = ["saturation", "group-chat", "catch-up", "idle"];
    let titles: Vec<_> = reports.iter().map(|it| it["title"].as_str().expect("text")).collect();
    let expected = ["SQLite", "PostgreSQL"].map(|name| parts.map(|part| format!("{name}, {part}")));
    assert_eq!(titles, expected.concat());
    for report in reports {
        let report = &report["report"];
        assert!(report["relay"]["version"].is_string() && report["measures"].is_array());
        let samples = report["runs"][0]["timeline"]["samples"].as_array().expect("samples");
        assert!(samples.len() > 1, "{}", report["scenario"]);
    }
    let page = std::fs::read_to_string(directory.join("budgets.html")).expect("a page");
    assert_eq!(page.matches("<section>").count(), 8);
    assert!(page.contains("<td>durable fan-out, groups of 4</td>"));

    let json = directory.join("budgets.json");
    let compared = Command::new(env!("CARGO_BIN_EXE_sealwire-loadtest"))
        .args(["compare".as_ref(), json.as_os_str(), json.as_os_str()])
        .output()
        .expect("it runs");
    let text = String::from_utf8(compared.stdout).expect("text");
    assert!(compared.status.success() && text.contains("PostgreSQL: durable fan-out"), "{text}");
    assert!(!text.contains("WORSE") && !text.contains("better?"), "{text}");

    let mut connection = PgConnection::connect(&server).await.expect("the server answers");
    let left: i64 = sqlx::query_scalar(
        "select count(*) from pg_database where datname like 'sealwire_budgets_%'",
    )
    .fetch_one(&mut connection)
    .await
    .expect("a count");
    assert_eq!(left, 0, "a database that was made for a part is dropped after it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_taken_is_named_and_a_failure_and_never_met() {
    let directory = TempDir::new().expect("a directory");
    // It ends at once, whatever it is asked.
    let (output, written) = budgets(Path::new("/bin/true"), &[], directory.path()).await;
    assert!(!output.status.success());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("SQLite, idle: not taken"), "{told}");
    let figures = &written["runs"][0]["figures"];
    assert!(verdicts(figures, 0).iter().all(|(_, verdict)| *verdict == "not-taken"), "{figures}");
    assert_eq!(figures["failures"].as_array().map(Vec::len), Some(4));
    assert_eq!(written["measures"], serde_json::json!([]));
}
