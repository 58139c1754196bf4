//! The devices of three people, each with an app, a file and a line to the relay: they do what is asked of
//! them ([`super::steps`]), and whatever goes wrong on the way, only that may fail which it explains.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sealwire_client::device::{Device, KeyKeeping, Options};
use sealwire_client::sync::{Attached, Consent, Offer, Report, SyncError, Whose};
use sealwire_client::vault::VaultError;
use sealwire_protocol::{DeviceKey, Head, LogId};
use tempfile::TempDir;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::app::{self, App, schema};
use super::cli::Terminal;
use super::line::{Fault, Line};
use super::needles::{contains, everything_in};
use super::place::Database;
use super::steps::{CLEO, NEWCOMERS_MAX, PEOPLE, PLANTED, Step, Trouble, Write};
use super::verdict::Person;
use super::world::World;
use super::{DEADLINE, holds_within};

/// How long the relay may take to let go of what a snapshot holds: it looks every 20 ms. It may have done so
/// already, or have nothing to let go of.
const COMPACTION: Duration = Duration::from_millis(300);

/// Most turns of everybody until nothing is left to be sent or read.
const ROUNDS_MAX: usize = 8;

/// A device with an app.
pub(crate) struct Phone {
    directory: PathBuf,
    pub(crate) person: Person,
    pub(crate) key: DeviceKey,
    pub(crate) app: App,
    running: Option<Attached>,
    away: bool,
}

impl Phone {
    async fn new(directory: PathBuf, person: Person) -> Self {
        let device = Device::create(&directory, KeyKeeping::Unsealed, Options::default()).await;
        let device = device.expect("a device");
        let key = device.key();
        let app = App::new(directory.join("app.db"));
        let mut phone = Self { directory, person, key, app, running: None, away: false };
        phone.running().await;
        phone.app.judged();
        phone
    }

    /// The device's process, which is started if it does not run.
    pub(crate) async fn running(&mut self) -> Attached {
        if let Some(running) = &self.running {
            return running.clone();
        }
        let device = Device::open(&self.directory, None, Options::default()).await;
        let attached = device.expect("a device").attach(self.app.path(), &schema()).await;
        self.running.insert(attached.expect("attached")).clone()
    }

    /// Looks for what is private to others in every file of the device.
    pub(crate) fn holds_nothing_of_others(&self) {
        let files = everything_in(&self.directory);
        for (person, planted) in PLANTED.iter().enumerate() {
            let holds = contains(&files, planted.as_bytes());
            assert!(person == self.person || !holds, "{:?} holds what is {planted}", self.key);
        }
    }
}

/// A device that is to be let in, for as long as it is not.
struct Waiting {
    by: usize,
    consent: Consent,
    whose: Whose,
}

/// What a device does with the relay.
#[derive(Clone)]
pub(crate) enum Turn {
    Sync,
    Snapshot,
    Enrol(Consent, Whose),
    Revoke(DeviceKey),
}

async fn take(turn: Turn, device: Attached) -> Result<Option<Report>, SyncError> {
    match turn {
        Turn::Sync => device.sync().await.map(Some),
        Turn::Snapshot => device.snapshot().await.map(|_| None),
        Turn::Enrol(consent, whose) => device.enrol(&consent, whose).await.map(Some),
        Turn::Revoke(key) => device.revoke(key).await.map(Some),
    }
}

/// How much has happened, so that it can be seen that something has.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) turns: u32,
    /// Turns that were cut off, and devices that crashed in one.
    pub(crate) cut: u32,
    pub(crate) crashed: u32,
    /// Processes that were killed.
    pub(crate) killed: u32,
    /// Relays that had let go of what a snapshot holds.
    pub(crate) compacted: u32,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.turns += other.turns;
        self.cut += other.cut;
        self.crashed += other.crashed;
        self.killed += other.killed;
        self.compacted += other.compacted;
    }
}

pub(crate) struct Family {
    pub(crate) world: World,
    pub(crate) line: Line,
    files: TempDir,
    pub(crate) phones: Vec<Phone>,
    waiting: Vec<Waiting>,
    guests: Vec<(usize, DeviceKey)>,
    /// Whose each device is that ever was.
    owners: HashMap<DeviceKey, Person>,
    number: u32,
    pub(crate) tally: Tally,
}

impl Family {
    pub(crate) async fn gather(database: Database) -> Self {
        let often = |options: &mut sealwire_actors::Options| {
            options.retention_pause = Duration::from_millis(20);
        };
        let world = World::start_with(database, often).await;
        let line = Line::to(world.address()).await;
        let (phones, waiting, guests) = (Vec::new(), Vec::new(), Vec::new());
        let files = directory();
        let (owners, number, tally) = (HashMap::new(), 0, Tally::default());
        let mut family =
            Self { world, line, files, phones, waiting, guests, owners, number, tally };
        for person in PEOPLE {
            family.add(person).await;
        }
        let first = family.phones[0].running().await;
        first.found(family.line.url()).await.expect("founded");
        for other in 1..PEOPLE.len() {
            family.invite(0, other).await;
            family.let_in(Trouble::NONE).await;
        }
        family
    }

    pub(crate) async fn add(&mut self, person: Person) -> usize {
        let name = format!("device-{}", self.phones.len());
        let phone = Phone::new(self.files.path().join(name), person).await;
        self.owners.insert(phone.key, person);
        self.phones.push(phone);
        self.phones.len() - 1
    }

    /// A device accepts what another one offers.
    pub(crate) async fn invite(&mut self, by: usize, new: usize) {
        let own = self.phones[by].person == self.phones[new].person;
        let whose = self.whose(by, own);
        let offer = self.phones[by].running().await.offer(whose).await.expect("an offer");
        let offer = Offer::parse(&offer.code()).expect("an offer");
        let consent = self.phones[new].running().await.accept(&offer).await.expect("a consent");
        self.waiting.push(Waiting { by, consent, whose });
    }

    /// How a device lets in another one, which is of the same person or not. Who has no key of her own gives
    /// none.
    fn whose(&self, by: usize, own: bool) -> Whose {
        if own && self.phones[by].person != CLEO { Whose::Mine } else { Whose::AnotherPersons }
    }

    /// Lets in the device that has waited longest.
    pub(crate) async fn let_in(&mut self, trouble: Trouble) {
        let Some(Waiting { by, consent, whose }) = self.waiting.first() else { return };
        let (by, turn) = (*by, Turn::Enrol(consent.clone(), *whose));
        if self.turn(by, turn, trouble).await {
            self.waiting.remove(0);
        }
    }

    /// Throws out the guest that has been there longest.
    async fn throw_out(&mut self, trouble: Trouble) {
        let Some((by, guest)) = self.guests.first().copied() else { return };
        if self.turn(by, Turn::Revoke(guest), trouble).await {
            self.guests.remove(0);
        }
    }

    /// A device works with the relay. Says whether it came to an end and succeeded.
    pub(crate) async fn turn(&mut self, at: usize, turn: Turn, trouble: Trouble) -> bool {
        let away = self.phones[at].away;
        let fault = if away { Some(Fault::Away) } else { trouble.fault };
        self.line.next(fault, trouble.crashes);
        let running = self.phones[at].running().await;
        let struck = self.line.struck();
        let keyless = at >= PEOPLE.len() && matches!(turn, Turn::Snapshot);
        let work = timeout(2 * DEADLINE, Box::pin(take(turn, running)));
        let ended = tokio::select! {
            ended = work => Some(ended.expect("an end in time")),
            () = struck => None,
        };
        self.line.next(None, false);
        self.tally.turns += 1;
        match ended {
            None => {
                self.tally.crashed += 1;
                self.phones[at].running = None;
                false
            }
            Some(Ok(report)) => {
                assert!(!away, "it was away");
                report.iter().for_each(is_clean);
                if report.is_some_and(|report| report.confirmed) {
                    self.is_compacted().await;
                }
                true
            }
            Some(Err(error)) => {
                let troubled = fault.is_some_and(|fault| fault != Fault::Doubled);
                self.tally.cut += u32::from(troubled);
                // Whoever was let in and not given the key yet can make no snapshot, and is told so.
                let lacks_key = keyless && error == SyncError::Vault(VaultError::NoKey);
                assert!(
                    lacks_key || passes(&error) && (troubled || self.retries(at, &error)),
                    "{at}: {error:?}"
                );
                false
            }
        }
    }

    /// Waits for what the relay does when a snapshot was confirmed, if there is anything to do.
    async fn is_compacted(&mut self) {
        let before = self.floor().await;
        let log = self.log().await;
        let rises = async || self.world.stored(log).await.floor.seq > before;
        let _ = holds_within(COMPACTION, rises).await;
    }

    /// Up to where the relay has let go of changesets.
    pub(crate) async fn floor(&mut self) -> u64 {
        let log = self.log().await;
        self.world.stored(log).await.floor.seq
    }

    /// The newest key of the vault that a device holds.
    pub(crate) async fn epoch(&mut self, at: usize) -> u32 {
        let status = self.phones[at].running().await.status().await.expect("a status");
        status.vault.expect("a vault").epoch
    }

    async fn log(&mut self) -> LogId {
        let status = self.phones[0].running().await.status().await.expect("a status");
        status.vault.expect("a vault").log
    }

    /// Whether a device that nothing has happened to may fail like this, and try again.
    fn retries(&self, at: usize, error: &SyncError) -> bool {
        *error == SyncError::NotEnrolled && at >= PEOPLE.len()
    }

    fn there(&self, at: usize) -> Option<usize> {
        (at < self.phones.len()).then_some(at)
    }

    fn sql(&mut self, at: usize, write: Write) -> Option<String> {
        self.number += 1;
        write.sql(self.phones[at].person, self.number)
    }

    pub(crate) async fn step(&mut self, step: Step) {
        match step {
            Step::Restart => {
                self.world.stop().await;
                self.world.run().await;
            }
            Step::Both(one, other) => {
                let (Some(one), Some(other)) = (self.there(one), self.there(other)) else { return };
                self.both(one, other).await;
            }
            Step::Write(at, _)
            | Step::InVain(at, _)
            | Step::Sync(at, _)
            | Step::Meanwhile(at, _)
            | Step::Kill(at, _)
            | Step::Crash(at)
            | Step::Away(at)
            | Step::Back(at)
            | Step::Snapshot(at, _)
            | Step::Rotate(at, _, _)
            | Step::Newcomer(at, _) => {
                let Some(at) = self.there(at) else { return };
                self.step_of(at, step).await;
            }
        }
    }

    async fn step_of(&mut self, at: usize, step: Step) {
        match step {
            Step::Write(_, write) => {
                let Some(sql) = self.sql(at, write) else { return };
                self.phones[at].app.write(&sql);
            }
            Step::InVain(_, write) => {
                let Some(sql) = self.sql(at, write) else { return };
                self.phones[at].app.write_in_vain(&sql);
                self.phones[at].running = None;
            }
            Step::Sync(_, trouble) => {
                self.turn(at, Turn::Sync, trouble).await;
            }
            Step::Meanwhile(_, write) => {
                let Some(sql) = self.sql(at, write) else { return };
                let path = self.phones[at].app.path().to_owned();
                let writing = spawn_blocking(move || app::write(&path, &sql));
                self.turn(at, Turn::Sync, Trouble::NONE).await;
                let (id, change) = writing.await.expect("written");
                self.phones[at].app.note(id, change);
            }
            Step::Kill(_, after) => self.kill(at, after).await,
            Step::Crash(_) => {
                self.phones[at].running = None;
                self.phones[at].holds_nothing_of_others();
            }
            Step::Away(_) => self.phones[at].away = true,
            Step::Back(_) => self.phones[at].away = false,
            Step::Snapshot(_, trouble) => {
                self.turn(at, Turn::Snapshot, trouble).await;
            }
            Step::Rotate(_, own, trouble) => self.rotate(at, own, trouble).await,
            Step::Newcomer(_, trouble) => {
                // Whoever has not been let in yet lets nobody in.
                if self.phones.len() < PEOPLE.len() + NEWCOMERS_MAX && at < PEOPLE.len() {
                    let new = self.add(self.phones[at].person).await;
                    self.invite(at, new).await;
                    self.let_in(trouble).await;
                }
            }
            Step::Both(..) | Step::Restart => {}
        }
    }

    /// Two devices work with the relay at once.
    async fn both(&mut self, one: usize, other: usize) {
        if one == other || self.phones[one].away || self.phones[other].away {
            return;
        }
        let first = Box::pin(take(Turn::Sync, self.phones[one].running().await));
        let second = Box::pin(take(Turn::Sync, self.phones[other].running().await));
        let ended = timeout(2 * DEADLINE, async { tokio::join!(first, second) }).await;
        let (first, second) = ended.expect("an end in time");
        for (at, ended) in [(one, first), (other, second)] {
            match ended {
                Ok(report) => report.iter().for_each(is_clean),
                Err(error) => {
                    assert!(passes(&error) && self.retries(at, &error), "{at}: {error:?}");
                }
            }
        }
    }

    /// A device's process is killed when it has received so much.
    async fn kill(&mut self, at: usize, after: usize) {
        self.phones[at].running = None;
        let fault = if self.phones[at].away { Fault::Away } else { Fault::Gone(after) };
        self.line.next(Some(fault), true);
        let struck = self.line.struck();
        let path = |path: &Path| path.to_str().expect("text").to_owned();
        let (device, file) = (path(&self.phones[at].directory), path(self.phones[at].app.path()));
        let terminal = Terminal::new(self.line.url());
        let process = terminal.start(&["--dir", &device, "vault", "sync", &file]);
        let killed = timeout(2 * DEADLINE, process.killed_when(struck)).await;
        self.tally.killed += u32::from(killed.expect("an end in time"));
        self.line.next(None, false);
    }

    async fn rotate(&mut self, at: usize, own: bool, trouble: Trouble) {
        if at >= PEOPLE.len() {
            return;
        }
        let name = format!("guest-{}", self.number);
        self.number += 1;
        let mut guest = Phone::new(self.files.path().join(name), self.phones[at].person).await;
        let key = guest.key;
        let whose = self.whose(at, own);
        if whose == Whose::Mine {
            self.owners.insert(key, self.phones[at].person);
        }
        let offer = self.phones[at].running().await.offer(whose).await.expect("an offer");
        let consent = guest.running().await.accept(&offer).await.expect("a consent");
        if self.turn(at, Turn::Enrol(consent, whose), Trouble::NONE).await {
            self.guests.push((at, key));
            self.throw_out(trouble).await;
        }
    }

    // ---- the end

    /// Everybody is online, and goes on until nothing is left to be done.
    pub(crate) async fn settle(&mut self) {
        for phone in &mut self.phones {
            phone.away = false;
        }
        for _ in 0..ROUNDS_MAX {
            self.let_in(Trouble::NONE).await;
            self.throw_out(Trouble::NONE).await;
            let mut quiet = self.waiting.is_empty() && self.guests.is_empty();
            for at in 0..self.phones.len() {
                let heads = self.status(at).await;
                quiet &= self.turn(at, Turn::Sync, Trouble::NONE).await;
                quiet &= self.status(at).await == heads;
            }
            if quiet {
                return;
            }
        }
        panic!("it does not come to an end");
    }

    /// Whoever has given a key that is not the vault's has given it to devices of the same person alone.
    pub(crate) fn private_keys_stay_with_their_person(&self) {
        let given = self.line.given_keys();
        // The founder has made the vault's first.
        let vaults = given.first().map(|(_, body)| body.scope);
        for (by, body) in given.iter().filter(|(_, body)| Some(body.scope) != vaults) {
            let owner = self.owners.get(by);
            for sealed in body.keys.iter() {
                assert_eq!(
                    self.owners.get(&sealed.recipient),
                    owner,
                    "{by:?} has given a key away"
                );
            }
        }
    }

    /// What a device has read, and has to send.
    pub(crate) async fn status(&mut self, at: usize) -> (Option<Head>, u64) {
        let status = self.phones[at].running().await.status().await.expect("a status");
        let vault = status.vault.expect("a vault");
        assert!(!vault.cloned && status.withheld == 0 && status.oversized == 0);
        (vault.head, status.unsent_rows)
    }
}

/// Nothing that came was unsound, and the relay has shown one history.
fn is_clean(report: &Report) {
    assert_eq!((report.rejected, report.damaged), (0, 0), "{report:?}");
    assert!(!report.forked && !report.history_changed && !report.refused_snapshot, "{report:?}");
}

/// Whether an error is one of a line or a relay that is gone, and says nothing of what is here.
fn passes(error: &SyncError) -> bool {
    matches!(error, SyncError::NotEnrolled | SyncError::Vault(VaultError::Wire(_)))
}

/// Files of a test need not survive the machine: in memory if that can be.
fn directory() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }
        .expect("a directory")
}
