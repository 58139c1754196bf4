//! What a `totals` group owes to devices that come with single requests rather than with a session.
//!
//! The groups, their order and their members are the same logs that sessions speak to: everything
//! that changes one goes through its actor and is answered after its commit; everything that is only
//! looked at is read from the store. Nothing here knows of HTTP.
//!
//! | module | holds |
//! |---|---|
//! | [`kinds`] | what the relay does about what the app calls a payload |
//! | [`payload`] | a payload and its computed id |
//! | [`stream`] | payloads and news towards a phone that listens |

pub mod kinds;
pub mod payload;
pub mod stream;

use std::collections::BTreeMap;
use std::sync::Arc;

use metrics::counter;
use sealwire_protocol::digest::{chain_next, chain_start, entry_digest, sha256};
use sealwire_protocol::frame::Member;
use sealwire_protocol::limits::{BODY_BYTES_MAX, TOTALS_MEMBERS_MAX};
use sealwire_protocol::{Body, Control, DeviceKey, ErrorCode, Failure, Head, LogId, LogType};
use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::entry::Weight;
use crate::limits::{
    FAREWELL, ORPHAN_PAUSE, ORPHAN_TRIES, PENDING_BYTES_MAX, PENDING_ENTRIES_MAX,
    RESERVATION_LIFETIME,
};
use crate::listener::{Listening, Scope};
use crate::log::{LogMessage, NewPayload, TotalsDone, TotalsRequest, TotalsWish, relay_header};
use crate::metrics::ENTRIES;
use crate::ports::{
    FoundResult, GroupRecord, LogBrief, LogKey, LogPlace, NewEntry, NewLog, PendingRequest,
    ReserveResult, StoreError, SubscriptionRecord,
};
use crate::push::doorstep::Awake;
use crate::reply::{Credit, unavailable};
use crate::session::ask;
use crate::system::{Shared, System};
use crate::turns::Turn;
use crate::unheard::Missed;
use kinds::rule_of;
use payload::{Payload, PayloadId};
use stream::PayloadStream;

/// A membership that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Joined {
    /// Which group.
    pub group: LogId,
    /// When the device became a member, in milliseconds since the epoch; of a new group also when it
    /// was made.
    pub at: u64,
    /// The group's head.
    pub head: Head,
}

/// A payload to be sent. It has no `Debug`: its body is nobody's to print.
pub struct Outgoing {
    /// The app's blob, as bytes.
    pub body: Vec<u8>,
    /// What the app calls it.
    pub kind: String,
    /// The named recipients; none for all members.
    pub named: Option<Vec<DeviceKey>>,
}

/// A payload that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// Its id.
    pub id: PayloadId,
    /// When the relay ordered it, in milliseconds since the epoch.
    pub at: u64,
}

impl System {
    /// The `totals` groups of a device with their members: all of them, or an error.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read whole.
    pub async fn totals_groups(&self, device: DeviceKey) -> Result<Vec<GroupRecord>, StoreError> {
        self.shared.turns.ask(Turn::Request, self.shared.store.totals_groups(device)).await
    }

    /// Makes a `totals` group with this device as its only member.
    ///
    /// # Errors
    /// `group_limit_reached`, `rate_limited`, or `unavailable`; then the group, if it was made, goes again.
    pub async fn create_totals(&self, device: DeviceKey) -> Result<Joined, Failure> {
        self.shared.create_totals(device).await
    }

    /// Makes a device a member; the same if it is one.
    ///
    /// # Errors
    /// `no_such_log`, `group_full`, `group_limit_reached`, `rate_limited` or `unavailable`.
    pub async fn join_totals(&self, device: DeviceKey, group: LogId) -> Result<Joined, Failure> {
        self.shared.join_totals(device, group).await
    }

    /// A member leaves.
    ///
    /// # Errors
    /// `no_such_log` if it is no member, or `unavailable`.
    pub async fn leave_totals(&self, device: DeviceKey, group: LogId) -> Result<(), Failure> {
        self.shared.leave_totals(device, group).await
    }

    /// Whether there is such a group.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub async fn totals_exists(&self, group: LogId) -> Result<bool, StoreError> {
        Ok(self.shared.totals_brief(group).await?.is_some())
    }

    /// The members of a group; `None` if the device is none of them.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub async fn totals_members(
        &self,
        device: DeviceKey,
        group: LogId,
    ) -> Result<Option<Vec<Member>>, StoreError> {
        let Some(brief) = self.shared.totals_brief(group).await? else { return Ok(None) };
        let members =
            self.shared.turns.ask(Turn::Request, self.shared.store.members(brief.key)).await?;
        let members = members.map(|(_, members)| members).unwrap_or_default();
        Ok(members.iter().any(|member| member.device == device).then_some(members))
    }

    /// Sends a payload. Gives nothing if it names nobody who is there to receive it.
    ///
    /// # Errors
    /// `no_such_log` if the device is no member, `too_large`, `quota` or `unavailable`.
    pub async fn send_totals(
        &self,
        device: DeviceKey,
        group: LogId,
        outgoing: Outgoing,
    ) -> Result<Option<Sent>, Failure> {
        let shared = &self.shared;
        if outgoing.body.len() > BODY_BYTES_MAX {
            return Err(Failure::new(ErrorCode::TooLarge));
        }
        let named = outgoing.named.as_ref().map_or(0, Vec::len);
        let weight = Weight::of_payload(outgoing.body.len(), named, outgoing.kind.len());
        let _credit = Credit::take(&shared.budget, weight)?;
        let brief = shared.totals_brief(group).await.map_err(|_| unavailable())?;
        let key = brief.ok_or(Failure::new(ErrorCode::NoSuchLog))?.key;
        let hash = sha256(&outgoing.body);
        let Outgoing { body, kind, named } = outgoing;
        let body = Body(body.into());
        let wish = |farewell| {
            let (body, kind, named) = (body.clone(), kind.clone(), named.clone());
            TotalsWish::Send(Box::new(NewPayload { body, hash, kind, named, farewell }))
        };
        let mut sent = shared.ask_log(key, device, wish(false)).await;
        if let Err(failure) = &sent
            && failure.code == ErrorCode::NoSuchLog
            && rule_of(&kind).farewell
            && shared.has_just_left(key, device).await?
        {
            // The log has been loaded since, and does not remember.
            sent = shared.ask_log(key, device, wish(true)).await;
        }
        let done = sent?;
        let id = PayloadId::new(key, done.seq, shared.store.incarnation());
        Ok((done.seq > 0).then_some(Sent { id, at: done.at }))
    }

    /// A page of what a device has not acked; `None` if it is no member. A page that does not hold
    /// everything holds what is for this device alone first, then the rest, each oldest first.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub async fn pending(
        &self,
        device: DeviceKey,
        group: LogId,
    ) -> Result<Option<Vec<Payload>>, StoreError> {
        let shared = &self.shared;
        let Some(brief) = shared.totals_brief(group).await? else { return Ok(None) };
        let request = PendingRequest {
            key: brief.key,
            reader: device,
            entries_max: PENDING_ENTRIES_MAX,
            bytes_max: PENDING_BYTES_MAX,
        };
        let read = async {
            // The semaphore is never closed; if it were, reading without a turn is still correct.
            let _turn = shared.pending_reads.acquire().await;
            shared.store.read_pending(&request).await
        };
        let incarnation = shared.store.incarnation();
        let payload = |entry| Payload::stored(brief.key, group, incarnation, entry);
        let entries = ask(read).await?;
        if entries.is_some() {
            shared.doorstep.awake(Awake { log: brief.key, device, read: None });
        }
        Ok(entries.map(|entries| entries.into_iter().filter_map(payload).collect()))
    }

    /// Acks payloads. Answered when that is durable; gives how many of them are known.
    ///
    /// # Errors
    /// `unavailable`: some of them may be acked.
    pub async fn ack_totals(&self, device: DeviceKey, ids: &[PayloadId]) -> Result<u64, Failure> {
        let shared = &self.shared;
        let incarnation = shared.store.incarnation();
        let mut by_log: BTreeMap<LogKey, Vec<u64>> = BTreeMap::new();
        for id in ids.iter().filter(|id| id.is_of(incarnation)) {
            by_log.entry(id.key).or_default().push(id.seq);
        }
        // Only logs of its own are asked: no actor is started for a number that somebody made up.
        let own = shared.store.memberships(device);
        let own = shared.turns.ask(Turn::Request, own).await.map_err(|_| unavailable())?;
        by_log.retain(|key, _| own.iter().any(|log| log.key == *key && log.id.is_totals()));
        let mut waiting = Vec::new();
        for (key, seqs) in by_log {
            waiting.push(shared.cast_wish(key, device, TotalsWish::Ack(seqs)));
        }
        let mut known = 0;
        for answer in waiting {
            match answered(answer).await {
                Ok(done) => known += done.seq,
                // It has left meanwhile: there is nothing to ack.
                Err(failure) if failure.code == ErrorCode::NoSuchLog => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(known)
    }

    /// A stream of a group's payloads; `None` if the device is no member.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub async fn follow_group(
        &self,
        device: DeviceKey,
        group: LogId,
    ) -> Result<Option<PayloadStream>, StoreError> {
        let shared = &self.shared;
        let Some(brief) = shared.totals_brief(group).await? else { return Ok(None) };
        let member = shared.store.subscription(brief.key, device);
        if shared.turns.ask(Turn::Request, member).await?.is_none() {
            return Ok(None);
        }
        let listening = shared.listen(device, Scope::One(brief.key));
        listening.begin(brief.key, group).await?;
        Ok(Some(PayloadStream::new(listening)))
    }

    /// A stream of the payloads of all groups of a device, those to come among them.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot be read.
    pub async fn follow_all(&self, device: DeviceKey) -> Result<PayloadStream, StoreError> {
        let shared = &self.shared;
        // First a listener, then the question which groups there are: one that is joined in between
        // is in both.
        let listening = shared.listen(device, Scope::All);
        for log in shared.turns.ask(Turn::Request, shared.store.memberships(device)).await? {
            if log.id.is_totals() {
                listening.begin(log.key, log.id).await?;
            }
        }
        Ok(PayloadStream::new(listening))
    }

    /// A stream that tells when the device's groups change.
    pub async fn follow_changes(&self, device: DeviceKey) -> PayloadStream {
        let shared = &self.shared;
        let listening = shared.listen(device, Scope::Changes);
        let unknown = shared.registry.missed_by(device) == Missed::Unknown;
        if unknown && shared.had_groups_before(device).await {
            listening.listener.changed();
        }
        PayloadStream::new(listening)
    }
}

impl Listening {
    /// Has a stream begin in one log, if its device is still a member of it.
    async fn begin(&self, key: LogKey, id: LogId) -> Result<(), StoreError> {
        let (shared, listener) = (&self.shared, &self.listener);
        let presence = shared.registry.follow(key, listener);
        let record = shared.store.subscription(key, listener.device);
        let record: Option<SubscriptionRecord> = shared.turns.ask(Turn::Request, record).await?;
        match record {
            Some(record) => {
                presence.raise_head(record.head);
                listener.begin(key, id, presence, &record, false);
                shared.doorstep.awake(Awake { log: key, device: listener.device, read: None });
            }
            None => {
                drop(presence);
                shared.registry.unfollow(key, listener);
            }
        }
        Ok(())
    }
}

impl Shared {
    /// Whether a device was in a group before this relay started, as far as can be said.
    async fn had_groups_before(&self, device: DeviceKey) -> bool {
        let groups = self.turns.ask(Turn::Request, self.store.totals_groups(device)).await;
        let before =
            |member: &Member| member.device == device && member.joined_at < self.started_ms;
        groups.map_or(true, |groups| groups.iter().any(|group| group.members.iter().any(before)))
    }

    async fn totals_brief(&self, group: LogId) -> Result<Option<LogBrief>, StoreError> {
        if !group.is_totals() {
            return Ok(None);
        }
        self.turns.ask(Turn::Request, self.store.find_log(group)).await
    }

    pub(crate) async fn create_totals(
        self: &Arc<Self>,
        device: DeviceKey,
    ) -> Result<Joined, Failure> {
        let mut random = [0; 16];
        getrandom::fill(&mut random).map_err(|_| unavailable())?;
        let id = LogId::totals(random);
        let at = self.clock.now_ms();
        let new = first_entry(id, device, at);
        let chain = new.entry.chain;
        let groups_max = self.options.groups_max;
        self.paces.may_found(device)?;
        let found = self.run_job(move |store| {
            Box::pin(async move { ask(store.found(&new, groups_max)).await })
        });
        let created = found.await;
        match created {
            Ok(FoundResult::Created(key)) => {
                self.paces.founded(device);
                counter!(ENTRIES, "kind" => "control").increment(1);
                let place = LogPlace { id, key, log_type: LogType::Group };
                self.registry.member_joined(device, place, 1);
                self.registry.groups_changed(std::iter::once(device), &[device]);
                let head = Head { incarnation: self.store.incarnation(), seq: 1, chain };
                Ok(Joined { group: id, at, head })
            }
            Ok(FoundResult::LimitReached) => {
                let limit = u64::from(groups_max);
                Err(Failure::limit(ErrorCode::GroupLimitReached, limit))
            }
            // 122 random bits are not met twice.
            Ok(FoundResult::Exists(_)) => Err(Failure::new(ErrorCode::Internal)),
            Err(StoreError::Refused) => {
                tracing::error!("the store refused the data of a first entry");
                Err(Failure::new(ErrorCode::Internal))
            }
            Err(_) => {
                // Nobody was told its id: if it was made after all, it must not count.
                tokio::spawn(self.clone().end_orphan(id, device));
                Err(unavailable())
            }
        }
    }

    /// Ends a group of which only its creator is a member and nobody knows.
    async fn end_orphan(self: Arc<Self>, id: LogId, device: DeviceKey) {
        for _ in 0..ORPHAN_TRIES {
            sleep(ORPHAN_PAUSE).await;
            match ask(self.store.find_log(id)).await {
                Ok(Some(brief)) => {
                    let left = self.ask_log(brief.key, device, TotalsWish::Leave).await;
                    if left.is_ok() {
                        return;
                    }
                }
                // It was not made. What was under way when the answer was given has ended since.
                Ok(None) => return,
                Err(_) => {}
            }
        }
    }

    pub(crate) async fn join_totals(
        &self,
        device: DeviceKey,
        group: LogId,
    ) -> Result<Joined, Failure> {
        let no_such_log = Failure::new(ErrorCode::NoSuchLog);
        let brief = self.totals_brief(group).await.map_err(|_| unavailable())?;
        let key = brief.ok_or(no_such_log)?.key;
        let reserved = self.reserve_totals(key, device).await?;
        let done = self.ask_log(key, device, TotalsWish::Join { reserved }).await?;
        Ok(Joined { group, at: done.at, head: done.head })
    }

    /// Reserves a membership, if the device has none as far as the store knows. Gives whether it did.
    async fn reserve_totals(&self, key: LogKey, device: DeviceKey) -> Result<bool, Failure> {
        // Before anything is reserved: a place that is kept for a minute counts among the device's.
        let members = self.turns.ask(Turn::Request, self.store.members(key)).await;
        let members = members.map_err(|_| unavailable())?;
        let (_, members) = members.ok_or(Failure::new(ErrorCode::NoSuchLog))?;
        if members.iter().any(|member| member.device == device) {
            return Ok(false);
        }
        if members.len() >= TOTALS_MEMBERS_MAX {
            return Err(Failure::limit(ErrorCode::GroupFull, TOTALS_MEMBERS_MAX as u64));
        }
        self.paces.may_join(key, device)?;
        let groups_max = self.options.groups_max;
        let now = self.clock.now_ms();
        let since = now.saturating_sub(RESERVATION_LIFETIME.as_millis() as u64);
        let reserved = self.run_job(move |store| {
            Box::pin(async move { ask(store.reserve(key, device, groups_max, now, since)).await })
        });
        match reserved.await {
            Ok(ReserveResult::Reserved) => Ok(true),
            Ok(ReserveResult::AlreadyMember) => Ok(false),
            Ok(ReserveResult::LimitReached) => {
                Err(Failure::limit(ErrorCode::GroupLimitReached, u64::from(groups_max)))
            }
            Ok(ReserveResult::Revoked(seq)) => Err(Failure::revoked(seq)),
            Ok(ReserveResult::NoSuchLog) => Err(Failure::new(ErrorCode::NoSuchLog)),
            Err(_) => Err(unavailable()),
        }
    }

    pub(crate) async fn leave_totals(
        &self,
        device: DeviceKey,
        group: LogId,
    ) -> Result<(), Failure> {
        let brief = self.totals_brief(group).await.map_err(|_| unavailable())?;
        let key = brief.ok_or(Failure::new(ErrorCode::NoSuchLog))?.key;
        self.ask_log(key, device, TotalsWish::Leave).await.map(|_| ())
    }

    /// Whether a device has left a group so recently that it may still say goodbye.
    async fn has_just_left(&self, key: LogKey, device: DeviceKey) -> Result<bool, Failure> {
        let leave = Control::TotalsLeave { device }.encode();
        let left_at = self.turns.ask(Turn::Request, self.store.control_at(key, &leave)).await;
        let left_at = left_at.map_err(|_| unavailable())?;
        let now = self.clock.now_ms();
        let recent = |at: u64| now < at.saturating_add(FAREWELL.as_millis() as u64);
        Ok(left_at.is_some_and(recent))
    }

    fn cast_wish(
        &self,
        key: LogKey,
        device: DeviceKey,
        wish: TotalsWish,
    ) -> oneshot::Receiver<Result<TotalsDone, Failure>> {
        let (reply, answer) = oneshot::channel();
        self.cast_log(key, LogMessage::Totals(TotalsRequest { device, wish, reply }));
        answer
    }

    async fn ask_log(
        &self,
        key: LogKey,
        device: DeviceKey,
        wish: TotalsWish,
    ) -> Result<TotalsDone, Failure> {
        answered(self.cast_wish(key, device, wish)).await
    }
}

/// Waits for a log's answer. One that is dropped says that the outcome is unknown.
async fn answered(
    answer: oneshot::Receiver<Result<TotalsDone, Failure>>,
) -> Result<TotalsDone, Failure> {
    let answer = ask(async { answer.await.map_err(|_| StoreError::Unavailable) }).await;
    answer.unwrap_or_else(|_| Err(unavailable()))
}

/// A group with the one entry that makes it: the creation time is also when its creator joined.
fn first_entry(id: LogId, creator: DeviceKey, at: u64) -> NewLog {
    let body = Control::TotalsFound { creator, at }.encode();
    let header = relay_header(id, &body).encode();
    let digest = entry_digest(&header);
    let chain = chain_next(chain_start(id), 1, digest);
    NewLog {
        id,
        log_type: LogType::Group,
        join_key: None,
        founder: creator,
        digest,
        entry: NewEntry {
            seq: 1,
            at,
            header,
            body: Body::copy_from(&body),
            control: true,
            signature: None,
            recipients: Vec::new(),
            totals_kind: None,
            chain,
            sender_slot: 0,
            count: 0,
        },
    }
}
