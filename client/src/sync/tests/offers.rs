//! Offers, as a device takes them before it is enrolled and after: of one that came to nothing, nothing
//! stays, and what an enrolled device writes under is not changed by another one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension};
use sealwire_protocol::ids::Scope;
use sealwire_protocol::{DeviceKey, LogId};
use tempfile::TempDir;

use crate::address::RelayUrl;
use crate::identity::Identity;
use crate::sync::{Attached, Offer, RecoveredVault, Schema, SyncError, Whose};

const VAULT: LogId = LogId([2; 16]);
const MINE: Scope = Scope([4; 16]);
const OTHER: Scope = Scope([6; 16]);

fn relay() -> RelayUrl {
    RelayUrl::parse("wss://relay.example").expect("an address")
}

fn offer(private: Option<Scope>) -> Offer {
    let (relay_key, by) = (DeviceKey([1; 32]), DeviceKey([3; 32]));
    Offer { relay: relay(), relay_key, vault: VAULT, by, private }
}

async fn device() -> (TempDir, PathBuf, Attached) {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("app.db");
    Connection::open(&path).expect("a database").execute_batch("vacuum").expect("a file");
    let identity = Arc::new(Identity::from_seed(&[9; 32]));
    let attached = Attached::attach(&path, identity, &Schema::version(1)).await;
    (directory, path, attached.expect("attached"))
}

/// The scope under which what is private is sealed, and whether the device is to make its first key.
fn private(path: &Path) -> Option<(Scope, bool)> {
    let db = Connection::open(path).expect("a database");
    let scope: Option<Vec<u8>> = value(&db, "private_scope");
    let is_new: Option<bool> = value(&db, "private_is_new");
    assert_eq!(scope.is_some(), is_new.is_some(), "both or none");
    scope.map(|scope| (Scope::from_slice(&scope).expect("a scope"), is_new == Some(true)))
}

fn value<T: rusqlite::types::FromSql>(db: &Connection, name: &str) -> Option<T> {
    let sql = "select value from sealwire_meta where name = ?1";
    db.query_row(sql, [name], |row| row.get(0)).optional().expect("read")
}

/// The device reads the vault for the first time: it was enrolled.
fn enrolled(path: &Path) {
    let db = Connection::open(path).expect("a database");
    let sql = "insert into sealwire_meta (name, value) values ('vault', x'00')";
    db.execute(sql, []).expect("kept");
}

#[tokio::test]
async fn of_an_offer_that_came_to_nothing_no_private_scope_stays() {
    let (_directory, path, device) = device().await;
    device.accept(&offer(Some(OTHER))).await.expect("a consent");
    assert_eq!(private(&path), Some((OTHER, false)));
    // Nobody enrols by it, and the true one is of somebody who shares nothing private.
    device.accept(&offer(None)).await.expect("a consent");
    assert_eq!(private(&path), None);
    device.accept(&offer(Some(OTHER))).await.expect("a consent");
    device.accept(&offer(Some(MINE))).await.expect("a consent");
    assert_eq!(private(&path), Some((MINE, false)));
    // It names one itself in an offer of its own, and takes another one then.
    device.accept(&offer(None)).await.expect("a consent");
    device.offer(Whose::Mine).await.expect("an offer");
    assert!(private(&path).is_some_and(|(_, is_new)| is_new));
    device.accept(&offer(None)).await.expect("a consent");
    assert_eq!(private(&path), None);
    let (relay_key, vault) = (DeviceKey([1; 32]), VAULT);
    device.accept(&offer(Some(OTHER))).await.expect("a consent");
    let lost = RecoveredVault { relay: relay(), relay_key, vault, private: None };
    device.take_over(&lost).await.expect("taken over");
    assert_eq!(private(&path), None);
}

#[tokio::test]
async fn an_enrolled_device_keeps_its_private_scope_whatever_is_offered() {
    let (_directory, path, device) = device().await;
    device.accept(&offer(Some(MINE))).await.expect("a consent");
    enrolled(&path);
    let other = device.accept(&offer(Some(OTHER))).await;
    assert_eq!(other.err(), Some(SyncError::OtherScope));
    device.accept(&offer(None)).await.expect("a consent");
    device.accept(&offer(Some(MINE))).await.expect("a consent");
    assert_eq!(private(&path), Some((MINE, false)));
    // One that it has named itself stays its own to make.
    let (_directory, path, device) = self::device().await;
    device.accept(&offer(None)).await.expect("a consent");
    enrolled(&path);
    let own = device.offer(Whose::Mine).await.expect("an offer");
    let named = private(&path).expect("named");
    assert!(named.1);
    device.accept(&own).await.expect("a consent");
    assert_eq!(private(&path), Some(named));
    assert_eq!(device.accept(&offer(Some(OTHER))).await.err(), Some(SyncError::OtherScope));
    // Who has none is told by another device which it is.
    let (_directory, path, device) = self::device().await;
    device.accept(&offer(None)).await.expect("a consent");
    enrolled(&path);
    device.accept(&offer(Some(MINE))).await.expect("a consent");
    assert_eq!(private(&path), Some((MINE, false)));
}
