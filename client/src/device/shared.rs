//! What the parts of one device in one process share.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use rusqlite::Connection as Db;
use sealwire_protocol::Instance;
use sealwire_protocol::frame::SetPushToken;
use tokio::sync::{Mutex, broadcast, watch};
use tokio::time::{Instant, sleep, timeout_at};

use super::Options;
use crate::engine::Now;
use crate::error::{Error, StoreError};
use crate::event::Event;
use crate::identity::Identity;
use crate::store::Store;

/// Most events of connections that a slow listener may lag behind before it misses some.
const LIVE_EVENTS_MAX: usize = 256;

pub(crate) struct Shared {
    pub(crate) identity: Arc<Identity>,
    pub(crate) store: Arc<Store>,
    pub(crate) directory: PathBuf,
    pub(crate) instance: Instance,
    pub(crate) options: Options,
    /// Where the device is rung, once the app has said so in this process.
    pub(crate) doorbell: watch::Sender<Option<SetPushToken>>,
    /// Whether the vaults of a lost device were handed over in this process while its groups waited.
    pub(crate) handed_over: AtomicBool,
    /// Held by whoever changes the recovery vault: which of two the relay has would not be known.
    pub(crate) recovery: Mutex<()>,
    /// Raised when the app has something to send.
    pub(crate) outgoing: watch::Sender<u64>,
    /// Raised when the file has changed.
    stored: watch::Sender<u64>,
    /// Events that are not stored.
    live: broadcast::Sender<Event>,
}

impl Shared {
    pub(crate) fn new(
        identity: Identity,
        store: Store,
        directory: PathBuf,
        options: Options,
    ) -> Self {
        Self {
            identity: Arc::new(identity),
            store: Arc::new(store),
            directory,
            instance: crate::wire::random_instance(),
            options,
            doorbell: watch::Sender::new(None),
            handed_over: AtomicBool::new(false),
            recovery: Mutex::new(()),
            outgoing: watch::Sender::new(0),
            stored: watch::Sender::new(0),
            live: broadcast::Sender::new(LIVE_EVENTS_MAX),
        }
    }

    /// Reads, on a thread that may block.
    pub(crate) async fn read<
        T: Send + 'static,
        E: Into<Error> + From<StoreError> + Send + 'static,
    >(
        &self,
        work: impl FnOnce(&Db) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Error> {
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || store.read(work))
            .await
            .map_err(|_| Error::Stopped)?
            .map_err(Into::into)
    }

    /// Writes, on a thread that may block. Once begun it is done whole, even if nobody waits for it
    /// any more.
    pub(crate) async fn write<
        T: Send + 'static,
        E: Into<Error> + From<StoreError> + Send + 'static,
    >(
        &self,
        work: impl FnOnce(&Db) -> Result<T, E> + Send + 'static,
    ) -> Result<T, Error> {
        let store = self.store.clone();
        let (outgoing, stored) = (self.outgoing.clone(), self.stored.clone());
        let write = move || {
            let result = store.write(work);
            if result.is_ok() {
                outgoing.send_modify(|turn| *turn = turn.wrapping_add(1));
                stored.send_modify(|turn| *turn = turn.wrapping_add(1));
            }
            result
        };
        tokio::task::spawn_blocking(write).await.map_err(|_| Error::Stopped)?.map_err(Into::into)
    }

    /// Does what must not stop halfway: to its end, even if nobody waits for it any more.
    pub(crate) async fn whole<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        tokio::spawn(work).await.map_err(|_| Error::Stopped)?
    }

    /// Forgets what was kept for long enough.
    pub(crate) async fn prune(&self) -> Result<(), Error> {
        let now = Now::read().ms;
        let store = self.store.clone();
        tokio::task::spawn_blocking(move || store.prune(now))
            .await
            .map_err(|_| Error::Stopped)??;
        Ok(())
    }

    /// The file has changed.
    pub(crate) fn changed(&self) {
        self.stored.send_modify(|turn| *turn = turn.wrapping_add(1));
    }

    /// Tells whoever listens now.
    pub(crate) fn tell(&self, event: Event) {
        // It is no matter if nobody listens.
        let _ = self.live.send(event);
    }

    /// Tells whoever listens now.
    pub(crate) fn tell_all(&self, events: Vec<Event>) {
        for event in events {
            self.tell(event);
        }
    }

    pub(crate) fn live(&self) -> broadcast::Receiver<Event> {
        self.live.subscribe()
    }

    pub(crate) fn stored(&self) -> watch::Receiver<u64> {
        self.stored.subscribe()
    }

    /// Waits until another process has written to the file. `seen` is what was seen of it before.
    pub(crate) async fn others_changed(&self, seen: &mut Option<i64>) -> Result<(), Error> {
        loop {
            let Some(pause) = self.options.watch_others else {
                return std::future::pending().await;
            };
            sleep(pause).await;
            let store = self.store.clone();
            let now = tokio::task::spawn_blocking(move || store.others())
                .await
                .map_err(|_| Error::Stopped)??;
            if seen.replace(now) != Some(now) {
                return Ok(());
            }
        }
    }

    /// Waits until `work` finds something in the file.
    pub(crate) async fn wait_for<T: Send + 'static>(
        &self,
        deadline: Duration,
        work: impl Fn(&Db) -> Result<Option<T>, Error> + Clone + Send + 'static,
    ) -> Result<T, Error> {
        // None for longer than there is time.
        let until = Instant::now().checked_add(deadline);
        let mut stored = self.stored();
        let mut seen = None;
        loop {
            stored.mark_unchanged();
            if let Some(found) = self.read(work.clone()).await? {
                return Ok(found);
            }
            let change = async {
                tokio::select! {
                    // The sender lives in self.
                    _ = stored.changed() => Ok(()),
                    changed = self.others_changed(&mut seen) => changed,
                }
            };
            match until {
                Some(until) => timeout_at(until, change).await.map_err(|_| Error::Timeout)??,
                None => change.await?,
            }
        }
    }
}
