//! What the pages in docs/ say of the code is what the code says of itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::support::http::get;
use crate::support::place::Database;
use crate::support::world::World;

/// A table and one of its columns.
type Column = (String, String);

#[test]
fn the_privacy_page_names_every_column_and_no_other() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut stored = BTreeSet::new();
    for file in fs::read_dir(root.join("migrations/sqlite")).expect("migrations") {
        let sql = fs::read_to_string(file.expect("a file").path()).expect("text");
        stored.extend(columns_of_migration(&sql));
    }
    let page = fs::read_to_string(root.join("docs/PRIVACY.md")).expect("the page");
    let told = columns_of_page(&page);
    assert!(!stored.is_empty());
    let untold: Vec<_> = stored.difference(&told).collect();
    let unknown: Vec<_> = told.difference(&stored).collect();
    assert!(untold.is_empty() && unknown.is_empty(), "untold: {untold:?}, unknown: {unknown:?}");
}

#[test]
fn every_version_and_lint_of_the_workspace_stands_in_the_root_manifest() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| -> toml::Table {
        fs::read_to_string(root.join(path)).expect("a manifest").parse().expect("TOML")
    };
    let workspace = &read("Cargo.toml")["workspace"];
    assert_eq!(workspace["lints"]["rust"]["unsafe_code"].as_str(), Some("forbid"));
    let members = workspace["members"].as_array().expect("members");
    let members = members.iter().filter_map(toml::Value::as_str);
    let mut looked_at = 0;
    for path in members.map(|member| format!("{member}/Cargo.toml")).chain(["Cargo.toml".into()]) {
        let manifest = read(&path);
        assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "{path}");
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let named = manifest.get(kind).and_then(toml::Value::as_table);
            for (name, wish) in named.into_iter().flatten() {
                let inherited = wish.get("workspace").and_then(toml::Value::as_bool);
                assert_eq!(inherited, Some(true), "{name} in {path}");
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 50, "{looked_at}");
}

/// What the relay decides is decided without a database, a socket or HTTP, whatever the crates that
/// the actors use come to need.
#[test]
fn the_actors_know_no_database_no_socket_and_no_http() {
    let lock = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock"));
    let lock: toml::Table = lock.expect("the lock file").parse().expect("TOML");
    let packages = lock["package"].as_array().expect("packages");
    let (mut known, mut asked) = (BTreeSet::new(), vec!["sealwire-actors"]);
    while let Some(name) = asked.pop() {
        if !known.insert(name) {
            continue;
        }
        // A crate of which there are several versions stands as all of them.
        for package in packages.iter().filter(|package| package["name"].as_str() == Some(name)) {
            let needed = package.get("dependencies").and_then(|it| it.as_array());
            let names = needed.into_iter().flatten().filter_map(|it| it.as_str());
            asked.extend(names.filter_map(|it| it.split(' ').next()));
        }
    }
    assert!(known.contains("sealwire-protocol"), "{known:?}");
    let outside = ["sqlx", "rusqlite", "tungstenite", "axum", "hyper"];
    let met: Vec<_> =
        known.iter().filter(|name| outside.iter().any(|it| name.contains(it))).collect();
    assert!(met.is_empty(), "{met:?}");
}

/// The page is made from the table in the code: a difference is written into it, and fails the test
/// once.
#[test]
fn the_metrics_page_is_what_the_code_says_of_its_metrics() {
    let mut made = String::from(
        "# Metrics\n\nEverything that `/metrics` on the operator's listener tells. Made from \
         [`actors/src/metrics.rs`](../actors/src/metrics.rs) by a test. No label carries a device, a log \
         or an address.\n\n| metric | kind | unit | what it tells |\n|---|---|---|---|\n",
    );
    for (name, kind, unit, help) in sealwire_actors::metrics::TABLE {
        let unit = if *unit == "Count" { "" } else { unit };
        made.push_str(&format!(
            "| `{name}` | {kind} | {} | {} |\n",
            unit.to_lowercase(),
            help.trim()
        ));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/METRICS.md");
    let page = fs::read_to_string(&path).unwrap_or_default();
    if page != made {
        fs::write(&path, &made).expect("the page");
    }
    assert_eq!(page, made, "docs/METRICS.md has been made anew: look at it and commit it");
}

/// The same for the description of the HTTP API.
#[test]
fn the_description_of_the_api_is_what_the_code_says_of_its_routes() {
    let made = sealwire::http::document().to_pretty_json().expect("JSON") + "\n";
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json");
    let kept = fs::read_to_string(&path).unwrap_or_default();
    if kept != made {
        fs::write(&path, &made).expect("the description");
    }
    assert!(kept == made, "docs/openapi.json has been made anew: look at it and commit it");
}

#[test]
fn whatever_the_description_refers_to_is_in_it() {
    let document = serde_json::to_value(sealwire::http::document()).expect("JSON");
    let mut names = Vec::new();
    references(&document, &mut names);
    assert!(!names.is_empty());
    for name in names {
        let path = name.strip_prefix('#').expect("in the same document");
        assert!(document.pointer(path).is_some(), "{name}");
    }
}

fn references(value: &serde_json::Value, names: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(fields) => {
            names.extend(fields.get("$ref").and_then(|it| it.as_str()).map(str::to_owned));
            fields.values().for_each(|field| references(field, names));
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| references(item, names)),
        _ => {}
    }
}

#[tokio::test]
async fn the_relay_serves_the_description_of_its_api() {
    let world = World::start(Database::Sqlite).await;
    let answer = get(world.address(), "/openapi.json").await.expect("an answer");
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let served: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    let made = serde_json::to_value(sealwire::http::document()).expect("JSON");
    assert_eq!(served, made);
    for path in
        ["/groups/{id}/payloads", "/identity/vault", "/vaults/{id}/changesets", "/openapi.json"]
    {
        assert!(served["paths"].get(path).is_some(), "{path}");
    }
}

/// Columns stand on lines of their own, indented by four spaces; keys and checks begin otherwise.
fn columns_of_migration(sql: &str) -> BTreeSet<Column> {
    let mut columns = BTreeSet::new();
    let mut table = None;
    for line in sql.lines() {
        if let Some(rest) = line.strip_prefix("create table ") {
            table = rest.split_whitespace().next().map(str::to_owned);
        } else if line.starts_with(')') {
            table = None;
        } else if let (Some(table), Some(definition)) = (&table, line.strip_prefix("    ")) {
            let mut words = definition.split_whitespace();
            let (Some(name), Some(kind)) = (words.next(), words.next()) else { continue };
            if ["integer", "blob", "text"].contains(&kind.trim_end_matches(',')) {
                columns.insert((table.clone(), name.to_owned()));
            }
        }
    }
    columns
}

/// Rows of the page's first table with four cells: table, columns, what they hold, when they go.
fn columns_of_page(page: &str) -> BTreeSet<Column> {
    let (_, rest) = page.split_once("| table | column |").expect("the table");
    let mut columns = BTreeSet::new();
    let mut table = String::new();
    for line in rest.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let names = |cell: &str| -> Vec<String> {
            cell.split(',').map(|name| name.trim().trim_matches('`').to_owned()).collect()
        };
        if !cells[1].is_empty() {
            table = names(cells[1]).remove(0);
        }
        columns.extend(names(cells[2]).into_iter().map(|column| (table.clone(), column)));
    }
    columns
}
