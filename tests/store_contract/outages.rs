//! A database that hangs, goes away and comes back, and a lock that is lost: PostgreSQL only.
//!
//! The server is everybody's, so it is never stopped here. What stops is a relay of bytes on the
//! loopback between the store and the server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sealwire::store::{Lock, OpenStore, Standing, open};
use sealwire_actors::ports::{CommitResult, Position, Store, StoreError};
use sealwire_protocol::{AckSet, LogType};
use sqlx::{Connection, Executor, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::scribe::{Draft, Scribe, commit, device, found};
use crate::support::databases::{CLOSE_DEADLINE, Database};

/// How long anything in these tests may take to come about.
const PATIENCE: Duration = Duration::from_secs(30);

/// How quickly a hanging database must have become an answer.
const QUICKLY: Duration = Duration::from_secs(8);

/// The relay's lock, as docs and `pg_locks` show it: "sealwire" in ASCII.
const LOCK_KEY: i64 = i64::from_be_bytes(*b"sealwire");

/// A way to the server that can be closed so that nothing passes any more and nobody is told.
struct Strait {
    port: u16,
    open: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Strait {
    async fn to(database: &Database) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (open, is_open) = watch::channel(true);
        let socket = database.socket();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut ferries = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                let far = UnixStream::connect(&socket).await.expect("the server listens");
                ferries.spawn(ferry(near, far, is_open.clone()));
            }
        });
        Self { port, open, _tasks: tasks }
    }

    fn close(&self) {
        self.open.send_replace(false);
    }

    fn reopen(&self) {
        self.open.send_replace(true);
    }
}

/// Carries bytes both ways while the strait is open.
async fn ferry(near: TcpStream, far: UnixStream, open: watch::Receiver<bool>) {
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    tokio::join!(carry(near_read, far_write, open.clone()), carry(far_read, near_write, open));
}

async fn carry(
    mut from: impl AsyncReadExt + Unpin,
    mut to: impl AsyncWriteExt + Unpin,
    mut open: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(length) = from.read(&mut buffer).await {
        if length == 0 || open.wait_for(|open| *open).await.is_err() {
            break;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

async fn until(open: &OpenStore, wanted: Standing) {
    let mut standing = open.standing();
    let came = timeout(PATIENCE, standing.wait_for(|standing| *standing == wanted)).await;
    came.expect("in time").expect("the store lives");
}

/// The head, as soon as a connection that lives is found: one that was ended shows only in its use.
async fn head_in_the_end(store: &dyn Store, log: &Scribe) -> Position {
    let begun = Instant::now();
    loop {
        match store.find_log(log.id).await {
            Ok(brief) => return brief.expect("the log is there").head,
            Err(error) => assert_eq!(error, StoreError::Unavailable),
        }
        assert!(begun.elapsed() < PATIENCE, "still unavailable");
        tokio::task::yield_now().await;
    }
}

/// Commits until it is committed; an answer that got lost is found out by the next try.
async fn commit_in_the_end(store: &dyn Store, log: &mut Scribe, body: &[u8]) {
    let part = log.write(&[Draft::of(device(1), body)]);
    let begun = Instant::now();
    loop {
        match commit(store, part.clone()).await {
            Ok(CommitResult::Committed) => return,
            Ok(CommitResult::Stale) => {
                assert_eq!(head_in_the_end(store, log).await, log.head, "it was committed");
                return;
            }
            Err(error) => {
                assert_eq!(error, StoreError::Unavailable);
                assert!(begun.elapsed() < PATIENCE, "still unavailable");
            }
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_hangs_is_soon_unavailable_and_then_serves_again() {
    let database = Database::postgres().await;
    let strait = Strait::to(&database).await;
    let open = open(&database.options_through(strait.port, Lock::Try)).await.expect("opens");
    let store = open.store();
    let mut log = found(&*store, 1, LogType::Group, device(1)).await;
    log.commit(&*store, &[Draft::of(device(1), b"before")]).await;

    strait.close();
    let begun = Instant::now();
    let part = log.clone().write(&[Draft::of(device(1), b"during")]);
    let request = log.page(device(2), 0);
    let (committed, page, brief) =
        tokio::join!(commit(&*store, part), store.read_page(&request), store.find_log(log.id));
    assert_eq!(committed, Err(StoreError::Unavailable));
    assert!(matches!(page, Err(StoreError::Unavailable)));
    assert_eq!(brief, Err(StoreError::Unavailable));
    assert!(begun.elapsed() < QUICKLY, "took {:?}", begun.elapsed());
    until(&open, Standing::Waiting).await;
    let begun = Instant::now();
    assert_eq!(store.ready().await, Err(StoreError::Unavailable));
    assert!(begun.elapsed() < Duration::from_secs(1), "without the lock nobody is asked");

    strait.reopen();
    until(&open, Standing::Serving).await;
    // What was sent before the strait closed may have reached the server after all.
    log = match head_in_the_end(&*store, &log).await.seq {
        2 => log,
        _ => {
            log.write(&[Draft::of(device(1), b"during")]);
            log
        }
    };
    commit_in_the_end(&*store, &mut log, b"after").await;
    open.close(CLOSE_DEADLINE).await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_that_another_session_locks_does_not_hold_a_commit_for_long() {
    let database = Database::postgres().await;
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let mut free = found(store, 2, LogType::Group, device(1)).await;
    let mut beside = database.beside().await;
    beside.execute("begin").await.expect("begun");
    beside.execute("select 1 from logs where key = 1 for update").await.expect("locked");
    let begun = Instant::now();
    let part = log.clone().write(&[Draft::of(device(1), b"waits")]);
    let waiting = commit(store, part);
    let drafts = [Draft::of(device(1), b"passes")];
    let (waited, ()) = tokio::join!(waiting, free.commit(store, &drafts));
    assert_eq!(waited, Err(StoreError::Unavailable));
    assert!(begun.elapsed() < QUICKLY, "took {:?}", begun.elapsed());
    beside.execute("rollback").await.expect("free again");
    log.commit(store, &[Draft::of(device(1), b"goes through")]).await;
    opened.close().await;
}

/// Some errors come only when a transaction commits: when its statements have all been answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_fails_at_its_very_end_is_not_committed() {
    const FAILS_AT_THE_END: &str = "\
        create function fails() returns trigger language plpgsql as \
            $$ begin raise exception 'no' using errcode = '53100'; end $$; \
        create constraint trigger fails after insert on entries \
            deferrable initially deferred for each row execute function fails()";
    let database = Database::postgres().await;
    let opened = database.open().await;
    let store = &*opened.store;
    let mut log = found(store, 1, LogType::Group, device(1)).await;
    let mut beside = database.beside().await;
    beside.execute(sqlx::raw_sql(FAILS_AT_THE_END)).await.expect("made");
    let start = log.clone();
    let appends = start.clone().write(&[Draft::of(device(1), b"only appends")]);
    let mut acks = start.clone().write(&[Draft::of(device(1), b"acks as well")]);
    acks.acks.push((device(1), AckSet::up_to(1)));
    for part in [appends, acks] {
        assert_eq!(commit(store, part).await, Err(StoreError::Unavailable));
        assert_eq!(start.load(store).await.head, start.head);
    }
    beside.execute("drop function fails cascade").await.expect("dropped");
    commit_in_the_end(store, &mut log, b"goes through").await;
    opened.close().await;
}

/// Ends every session of the store, and gives the lock to `heir`, who has been waiting for it.
async fn disinherit(database: &Database, heir: &mut PgConnection) {
    let mut beside = database.beside().await;
    let pid: i32 =
        sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *heir).await.expect("a pid");
    let wait = sqlx::query("select pg_advisory_lock($1)").bind(LOCK_KEY);
    let queue = async {
        // The heir stands in the lock's queue before anybody is sent away.
        loop {
            let waits: bool = sqlx::query_scalar(
                "select exists (select 1 from pg_locks where pid = $1 and not granted)",
            )
            .bind(pid)
            .fetch_one(&mut beside)
            .await
            .expect("looked");
            if waits {
                break;
            }
        }
        let end = "select pg_terminate_backend(pid) from pg_stat_activity \
            where datname = current_database() and pid not in (pg_backend_pid(), $1)";
        sqlx::query(end).bind(pid).execute(&mut beside).await.expect("ended");
    };
    let (locked, ()) = tokio::join!(wait.execute(&mut *heir), queue);
    locked.expect("inherited");
    beside.close().await.expect("closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_whose_lock_was_lost_writes_nothing_until_it_has_it_again() {
    let database = Database::postgres().await;
    let opened = database.open().await;
    let open = opened.open().expect("a database");
    let mut log = found(&*opened.store, 1, LogType::Group, device(1)).await;
    let mut heir = database.beside().await;
    disinherit(&database, &mut heir).await;
    until(open, Standing::Waiting).await;
    let part = log.clone().write(&[Draft::of(device(1), b"not now")]);
    assert_eq!(commit(&*opened.store, part).await, Err(StoreError::Unavailable));
    assert_eq!(opened.store.ready().await, Err(StoreError::Unavailable));
    assert_eq!(head_in_the_end(&*opened.store, &log).await, log.head, "reading goes on");
    heir.close().await.expect("the lock is free");
    until(open, Standing::Serving).await;
    commit_in_the_end(&*opened.store, &mut log, b"now").await;
    opened.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_that_was_replaced_meanwhile_does_not_go_on() {
    let database = Database::postgres().await;
    let opened = database.open().await;
    let open = opened.open().expect("a database");
    let log = found(&*opened.store, 1, LogType::Group, device(1)).await;
    let mut heir = database.beside().await;
    disinherit(&database, &mut heir).await;
    until(open, Standing::Waiting).await;
    let serve = "update meta set value = value + 1 where name = 'run'";
    heir.execute(serve).await.expect("as another relay does at its start");
    heir.close().await.expect("the lock is free");
    until(open, Standing::Superseded).await;
    let part = log.clone().write(&[Draft::of(device(1), b"never")]);
    assert_eq!(commit(&*opened.store, part).await, Err(StoreError::Unavailable));
    // It has given up the lock, so the next one need not wait for its end.
    let next = timeout(PATIENCE, database.try_open(Lock::Wait)).await.expect("in time");
    next.expect("opens").close().await;
    opened.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_that_the_server_ends_are_replaced() {
    let database = Database::postgres().await;
    let opened = database.open().await;
    let store = Arc::clone(&opened.store);
    let mut log = found(&*store, 1, LogType::Group, device(1)).await;
    for round in 0..3_u8 {
        commit_in_the_end(&*store, &mut log, &[round]).await;
        let mut beside = database.beside().await;
        let end = "select pg_terminate_backend(pid) from pg_stat_activity \
            where datname = current_database() and pid <> pg_backend_pid()";
        beside.execute(end).await.expect("ended");
        beside.close().await.expect("closed");
        until(opened.open().expect("a database"), Standing::Waiting).await;
        until(opened.open().expect("a database"), Standing::Serving).await;
    }
    commit_in_the_end(&*store, &mut log, b"last").await;
    opened.close().await;
}
