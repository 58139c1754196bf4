//! The actor of doorbells: it wakes devices that sleep, and tells the push service nothing.
//!
//! It exists because whether a device is rung depends on all of its logs, and must be decided in one
//! place: at most one doorbell for each device in a window, whatever came. It decides by
//! [`core`] alone, has [`breaker`] say whether a push service is asked at all, and does the asking in
//! tasks. It never waits: not for the store, not for a push service; and nobody waits for it
//! ([`doorstep`]).
//!
//! What it holds is gone when the process ends, and costs nothing but a reading: whoever has not acked
//! what came in the last minutes is rung after the start ([`reread`]). What is older, and what an outage
//! of the push service outlasts, devices find when they open.
//!
//! Holds always:
//! - a push service is given a token and a [`Ring`], and nothing else;
//! - at most [`PUSH_CALLS_MAX`] calls are under way; while entries wait for a committer, few begin
//!   ([`courtesy`]);
//! - a token is forgotten only when its push service says that it is gone, and only that very token.

mod breaker;
mod core;
mod courtesy;
pub(crate) mod doorstep;
mod fair;
mod reread;
mod test_ring;

pub use self::test_ring::TestRing;

use std::sync::Arc;
use std::time::Duration;

use metrics::{counter, gauge, histogram};
use ractor::{Actor, ActorCell, ActorProcessingErr, ActorRef, SpawnErr};
use sealwire_protocol::DeviceKey;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};

use self::breaker::{Breaker, ms};
use self::core::{Call, Core, News, Outcome, Room, Spared, Still, Taken};
use self::courtesy::Courtesy;
use self::doorstep::{Acked, Awake, Named, Sleeper, Told};
use crate::limits::{
    DOORBELL_DEVICES_MAX, DOORBELL_LOOKBACK, DOORBELL_REREAD_PAUSE, DOORBELL_WAITS_MAX, PUSH_BATCH,
    PUSH_CALL_DEADLINE, PUSH_CALLS_MAX, PUSH_MAILBOX_MAX, PUSH_RETRY_MIN,
};
use crate::mailbox::{self, Mailbox, Posted, Waiting};
use crate::metrics::{
    ActorKind, Alive, DOORBELL_AGE, DOORBELLS_COALESCED, DOORBELLS_FAILED, DOORBELLS_QUEUED,
    DOORBELLS_SENT, DOORBELLS_SUPPRESSED, DOORBELLS_WAITING, PUSH_RESTING, TOKENS_FORGOTTEN,
};
use crate::ports::{Push, Rang, Ring, StoreError, Trouble};
use crate::reply::jitter;
use crate::system::Shared;
use crate::totals::payload::PayloadId;
use crate::turns::Turn;

/// Longest sleep between two looks at what is due.
const LOOK_AT_LEAST_EVERY: Duration = Duration::from_secs(1);

/// Sleep when nothing is due: word may have been lost.
const LOOK_WHEN_IDLE: Duration = Duration::from_secs(5);

/// Shortest sleep between them: what is due within it is done together.
const LOOK_AT_MOST_EVERY: Duration = Duration::from_millis(20);

/// The way in for supervision; everybody else leaves word at the [`doorstep`].
pub(crate) struct PushRef(Mailbox<Message>);

impl PushRef {
    pub(crate) async fn spawn(
        shared: Arc<Shared>,
        supervisor: ActorCell,
    ) -> Result<Self, SpawnErr> {
        let (kind, argument) = (ActorKind::Push, shared.clone());
        let mailbox =
            mailbox::start(PushActor, kind, PUSH_MAILBOX_MAX, argument, supervisor).await?;
        shared.doorstep.attend(mailbox.clone());
        Ok(Self(mailbox))
    }

    pub(crate) fn cell(&self) -> ActorCell {
        self.0.cell()
    }
}

/// Everything that it can be told.
pub(crate) enum Message {
    /// From a log: something became visible.
    Told(Told, Named),
    /// From a log: a device has acked.
    Acked(Acked),
    /// From a session or a request: a device has asked what there is.
    Awake(Awake),
    /// From the re-reading: something is unseen, which may be known.
    Again(Told, oneshot::Sender<()>),
    /// From the re-reading: it has ended.
    Reread,
    /// From the store: where these devices' doorbells are, or that it could not be asked.
    Found(Vec<Call>, Result<Vec<Place>, StoreError>, u64),
    /// From a call: what became of it.
    Ended(Ended),
    /// It is time to look at what is due, as was said at that time of the actor's clock.
    Look(u64),
}

/// Where a device's doorbell is: platform and token, or nowhere.
type Place = Option<(String, String)>;

/// A call that has ended.
#[derive(Clone, Copy)]
pub(crate) struct Ended {
    call: Call,
    /// The number of its push service.
    service: usize,
    /// Whether it decides how that one goes on.
    probe: bool,
    /// How often devices had said where their doorbells are when its token was looked up.
    registrations: u64,
    said: Said,
}

/// What became of a call, in the end.
#[derive(Clone, Copy)]
enum Said {
    /// It was taken.
    Taken,
    /// The token was gone, and is forgotten.
    Gone,
    /// The token was gone, but the device has another one by now.
    Moved,
    /// It will never be taken.
    Refused,
    /// The token was gone, and the store could not be told.
    NotForgotten,
    /// Not now.
    Later(Trouble, Option<Duration>),
}

struct Service {
    push: Arc<dyn Push>,
    breaker: Breaker,
}

struct State {
    shared: Arc<Shared>,
    myself: Mailbox<Message>,
    core: Core,
    services: Vec<Service>,
    started: Instant,
    /// Calls under way.
    calls: usize,
    courtesy: Courtesy,
    /// Whether a look is on its way, and for when.
    looking: Option<u64>,
    rereading: bool,
    /// When the last re-reading ended.
    reread_at: u64,
    _alive: Alive,
}

struct PushActor;

impl Actor for PushActor {
    type Msg = Posted<Message>;
    type State = State;
    type Arguments = (Arc<Shared>, Arc<Waiting>);

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (shared, waiting): Self::Arguments,
    ) -> Result<State, ActorProcessingErr> {
        let myself = Mailbox::new(myself, ActorKind::Push, PUSH_MAILBOX_MAX, waiting);
        let services = shared.options.push.iter();
        let services = services
            .map(|push| Service { push: push.clone(), breaker: Breaker::default() })
            .collect();
        let mut state = State {
            core: Core::new(Room { devices: DOORBELL_DEVICES_MAX, waits: DOORBELL_WAITS_MAX }),
            services,
            started: Instant::now(),
            calls: 0,
            courtesy: Courtesy::default(),
            looking: None,
            rereading: false,
            reread_at: 0,
            _alive: Alive::new(ActorKind::Push),
            shared,
            myself,
        };
        state.reread(state.shared.options.doorbell_settle);
        state.look_later(state.now());
        Ok(state)
    }

    async fn handle(
        &self,
        _: ActorRef<Self::Msg>,
        posted: Self::Msg,
        state: &mut State,
    ) -> Result<(), ActorProcessingErr> {
        let (message, _handling) = posted.open(ActorKind::Push);
        match message {
            Message::Told(told, _named) => state.told(told, false),
            Message::Acked(acked) => state.acked(&acked),
            Message::Awake(awake) => state.awake(awake),
            Message::Again(told, heard) => {
                state.told(told, true);
                // Whoever reads may have gone with the system.
                let _ = heard.send(());
            }
            Message::Reread => {
                state.rereading = false;
                state.reread_at = state.now();
            }
            Message::Found(calls, places, registrations) => {
                state.found(calls, places, registrations);
            }
            Message::Ended(ended) => state.ended(&ended),
            // One that was overtaken by an earlier one changes nothing.
            Message::Look(at) => state.looking = state.looking.filter(|looking| *looking != at),
        }
        state.go_on();
        Ok(())
    }
}

impl State {
    /// The actor's clock. It begins where entries are re-read from, so that they have their age.
    fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    /// A moment on the actor's clock; what was before its start counts as its start.
    fn at(&self, instant: Instant) -> u64 {
        ms(DOORBELL_LOOKBACK + instant.saturating_duration_since(self.started))
    }

    fn told(&mut self, told: Told, again: bool) {
        let now = self.now();
        let said = self.at(told.since);
        let (mut queued, mut coalesced, mut full) = (0, 0, 0);
        for Sleeper { device, seq, urgency, age_ms, word } in told.sleepers {
            let news = News {
                log: told.log,
                id: told.id,
                seq,
                urgency,
                since: said.saturating_sub(u64::from(age_ms)),
                here: self.shared.registry.is_here(device),
                again,
            };
            match self.core.waits(device, &news, word, now) {
                Taken::Queued => queued += 1,
                Taken::Coalesced => coalesced += u64::from(!again),
                Taken::Full => full += 1,
            }
        }
        counter!(DOORBELLS_QUEUED).increment(queued);
        counter!(DOORBELLS_COALESCED).increment(coalesced);
        if full > 0 {
            self.shared.doorstep.missed(full);
        }
    }

    fn acked(&mut self, acked: &Acked) {
        let left = acked.left.map(|(seq, since)| (seq, self.at(since)));
        let spared = self.core.acked(acked.device, acked.log, left, self.now());
        count_spared(spared);
    }

    fn awake(&mut self, awake: Awake) {
        let Awake { device, log, read } = awake;
        let spared = self.core.awake(device, log, read, self.now());
        count_spared(spared);
    }

    /// Rings whoever's turn has come, as far as there is room, and sees to it that it is looked again.
    fn go_on(&mut self) {
        let now = self.now();
        // What is missed while a reading is under way may be behind it: that waits for the next one.
        if !self.rereading && self.shared.doorstep.take_missed() {
            let pause = ms(DOORBELL_REREAD_PAUSE).saturating_sub(now - self.reread_at.min(now));
            self.reread(Duration::from_millis(pause));
        }
        let room = self.room(now);
        let registry = self.shared.registry.clone();
        let calls = self.core.take(now, room, |device| registry.is_here(device));
        if !calls.is_empty() {
            self.calls += calls.len();
            self.courtesy.began(now);
            self.look_up(calls);
        }
        gauge!(DOORBELLS_WAITING).set(self.core.waiting() as f64);
        self.look_later(now);
    }

    /// How many calls may begin now.
    fn room(&mut self, now: u64) -> usize {
        self.courtesy.see(self.shared.busiest_committer(), now);
        let (free, ready) = (PUSH_CALLS_MAX.saturating_sub(self.calls), self.core.ready());
        if free < PUSH_BATCH && ready > free {
            // Many wait: their tokens are looked up together, when there is room for some.
            return 0;
        }
        let free = self.courtesy.room(free, ready, now);
        self.services.iter().map(|one| one.breaker.room(now, free)).max().unwrap_or(0)
    }

    /// Asks the store where the doorbells of these are.
    fn look_up(&self, calls: Vec<Call>) {
        let registrations = self.shared.doorstep.registrations();
        let shared = self.shared.clone();
        let mut lookup = Lookup { calls, myself: self.myself.clone() };
        tokio::spawn(async move {
            let devices: Vec<DeviceKey> = lookup.calls.iter().map(|call| call.device).collect();
            let places = shared.turns.ask(Turn::Question, shared.store.push_tokens(&devices)).await;
            let calls = std::mem::take(&mut lookup.calls);
            // Refused only if the actor has ended.
            let _ = lookup.myself.post(Message::Found(calls, places, registrations));
        });
    }

    /// Rings those that have a doorbell.
    fn found(
        &mut self,
        calls: Vec<Call>,
        places: Result<Vec<Place>, StoreError>,
        registrations: u64,
    ) {
        let now = self.now();
        let Ok(places) = places else {
            for call in calls {
                self.calls -= 1;
                self.core.rang(call.device, call.log, Outcome::Failed(None), now, share());
            }
            return;
        };
        let mut deaf = Vec::new();
        for (call, place) in calls.into_iter().zip(places) {
            let service = place.as_ref().and_then(|(platform, _)| {
                self.services.iter().position(|one| one.push.platform() == platform)
            });
            let (Some((platform, token)), Some(service)) = (place, service) else {
                self.calls -= 1;
                self.core.rang(call.device, call.log, Outcome::NoDoorbell, now, 0);
                deaf.push(call.device);
                continue;
            };
            match self.core.still(&call, now) {
                Still::Wanted => {}
                later @ (Still::Later | Still::Needless(_)) => {
                    if let Still::Needless(spared) = later {
                        count_spared(spared);
                    }
                    self.calls -= 1;
                    self.core.rang(call.device, call.log, Outcome::NotTried(now), now, 0);
                    continue;
                }
            }
            let Service { push, breaker } = &mut self.services[service];
            if breaker.room(now, 1) == 0 {
                let until = breaker.rests_until(now).unwrap_or(now + ms(PUSH_RETRY_MIN));
                self.calls -= 1;
                self.core.rang(call.device, call.log, Outcome::NotTried(until), now, 0);
                continue;
            }
            let probe = breaker.begin();
            // If it is dropped, there was no answer.
            let said = Said::Later(Trouble::Unreachable, None);
            let ended = Ended { call, service, probe, registrations, said };
            let ringing = Ringing { ended, myself: self.myself.clone() };
            let place = (platform, token);
            tokio::spawn(ring(self.shared.clone(), push.clone(), place, ringing));
        }
        if !deaf.is_empty() {
            self.shared.doorstep.are_deaf(&deaf, registrations);
        }
    }

    fn ended(&mut self, ended: &Ended) {
        let Ended { call, service, probe, registrations, said } = *ended;
        let now = self.now();
        self.calls -= 1;
        let breaker = &mut self.services[service].breaker;
        let rested = breaker.is_open();
        let outcome = match said {
            Said::Taken => {
                breaker.succeeded(probe);
                counter!(DOORBELLS_SENT).increment(1);
                histogram!(DOORBELL_AGE).record(now.saturating_sub(call.since) as f64 / 1000.0);
                Outcome::Taken
            }
            Said::Gone => {
                breaker.succeeded(probe);
                counter!(TOKENS_FORGOTTEN).increment(1);
                Outcome::NoDoorbell
            }
            Said::Moved => {
                breaker.succeeded(probe);
                Outcome::NotTried(now)
            }
            // It is asked again, and will say so again.
            Said::NotForgotten => {
                breaker.succeeded(probe);
                Outcome::Failed(None)
            }
            Said::Refused => {
                breaker.succeeded(probe);
                counter!(DOORBELLS_FAILED, "reason" => "refused").increment(1);
                // Its token is kept, and no doorbell tries it again until the device has said where
                // its doorbell is.
                self.shared.doorstep.are_deaf(&[call.device], registrations);
                Outcome::Refused
            }
            Said::Later(trouble, asked) => {
                breaker.failed(now, trouble, asked, probe, share());
                counter!(DOORBELLS_FAILED, "reason" => trouble.name()).increment(1);
                Outcome::Failed(asked)
            }
        };
        let rests = breaker.is_open();
        match (rested, rests, said) {
            (false, true, Said::Later(trouble, _)) => {
                tracing::warn!(reason = trouble.name(), "a push service fails and is left alone");
            }
            (true, false, _) => tracing::info!("a push service works again"),
            _ => {}
        }
        gauge!(PUSH_RESTING)
            .set(self.services.iter().filter(|one| one.breaker.is_open()).count() as f64);
        self.core.rang(call.device, call.log, outcome, now, share());
    }

    /// Sees to it that it is looked again when something is due.
    fn look_later(&mut self, now: u64) {
        let due = self.core.next_due();
        // Those whose turn has come wait for a push service that is left alone, or for appends that go
        // first; for room, the end of a call is enough.
        let ready = self.core.ready() > 0;
        let rests = ready
            .then(|| self.services.iter().filter_map(|one| one.breaker.rests_until(now)).min());
        let yields = ready.then(|| self.courtesy.next(now)).flatten();
        let due = [due, rests.flatten(), yields].into_iter().flatten().min();
        let pause = due.map_or(LOOK_WHEN_IDLE, |due| {
            let pause = Duration::from_millis(due.saturating_sub(now));
            pause.clamp(LOOK_AT_MOST_EVERY, LOOK_AT_LEAST_EVERY)
        });
        let at = now + ms(pause);
        if self.looking.is_some_and(|looking| looking <= at) {
            return;
        }
        self.looking = Some(at);
        let myself = self.myself.clone();
        tokio::spawn(async move {
            sleep(pause).await;
            // Refused only if the actor has ended.
            let _ = myself.post(Message::Look(at));
        });
    }

    fn reread(&mut self, after: Duration) {
        self.rereading = true;
        let reading = reread::reread(Arc::downgrade(&self.shared), self.myself.clone(), after);
        tokio::spawn(reading);
    }
}

/// Calls whose tokens are being looked up: dropped with any of them, it says that they were not found.
struct Lookup {
    calls: Vec<Call>,
    myself: Mailbox<Message>,
}

impl Drop for Lookup {
    fn drop(&mut self) {
        let calls = std::mem::take(&mut self.calls);
        if !calls.is_empty() {
            let failed = Err(StoreError::Unavailable);
            let _ = self.myself.post(Message::Found(calls, failed, 0));
        }
    }
}

/// A call under way: says how it has ended when it is dropped.
struct Ringing {
    ended: Ended,
    myself: Mailbox<Message>,
}

impl Drop for Ringing {
    fn drop(&mut self) {
        // Refused only if the actor has ended.
        let _ = self.myself.post(Message::Ended(self.ended));
    }
}

/// Rings once, and forgets a token that is gone.
async fn ring(
    shared: Arc<Shared>,
    push: Arc<dyn Push>,
    (platform, token): (String, String),
    mut ringing: Ringing,
) {
    let Call { device, log, id, seq, urgency, .. } = ringing.ended.call;
    let payload = PayloadId::new(log, seq, shared.store.incarnation());
    let ring = Ring { log: id, payload, urgency };
    let rang = timeout(PUSH_CALL_DEADLINE, push.ring(&token, &ring)).await;
    ringing.ended.said = match rang.unwrap_or(Rang::Later(Trouble::Unreachable, None)) {
        Rang::Taken => Said::Taken,
        Rang::Refused => Said::Refused,
        Rang::Later(trouble, asked) => Said::Later(trouble, asked),
        Rang::Unregistered => {
            let forgotten = shared.run_job(move |store| {
                Box::pin(async move { store.forget_push_token(device, &platform, &token).await })
            });
            match forgotten.await {
                Ok(true) => Said::Gone,
                Ok(false) => Said::Moved,
                Err(_) => Said::NotForgotten,
            }
        }
    };
}

fn count_spared(spared: Spared) {
    for (reason, count) in [("here", spared.here), ("fetched", spared.fetched)] {
        if count > 0 {
            counter!(DOORBELLS_SUPPRESSED, "reason" => reason).increment(count);
        }
    }
}

/// A random number of thousandths.
fn share() -> u64 {
    jitter(0, 1000)
}
