//! What is done about each frame of a session: one line per frame, then a function for each.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use metrics::counter;
use sealwire_protocol::bounded::Bounded;
use sealwire_protocol::digest::{chain_next, chain_start, native_log_id};
use sealwire_protocol::frame::{self, Appended, Done, Logs, Members};
use sealwire_protocol::limits::{BATCH_BYTES_MAX, SUBSCRIPTIONS_MAX};
use sealwire_protocol::signing::{admissible, join_message, verify};
use sealwire_protocol::{
    Audience, ClientFrame, Control, DeviceKey, Digest, EntryIn, ErrorCode, Failure, Head, Kind,
    LogId, LogType,
};

use super::{Core, Step, briefs, known, summaries, vaults};
use crate::catch_up::FloorMark;
use crate::entry::{CheckedEntry, Content, Weight};
use crate::limits::RESERVATION_LIFETIME;
use crate::log::{AckRequest, LogMessage};
use crate::metrics::ENTRIES;
use crate::outbox::{Phase, Subscription};
use crate::ports::{
    FoundResult, LogKey, LogPlace, NewEntry, NewLog, Position, ReserveResult, StoreError,
    SubscriptionRecord,
};
use crate::push::doorstep::Awake;
use crate::reply::{Reply, unavailable};
use crate::system::Shared;
use crate::turns::Turn;

/// Acts on a frame. Once the relay is shutting down, nothing new begins: it would only keep those waiting
/// who are to be answered and to go. What has been read may still be acked.
pub(super) fn act(core: &Arc<Core>, request: u32, frame: ClientFrame) -> Step {
    let ends = matches!(frame, ClientFrame::Ack(_) | ClientFrame::Ping(_) | ClientFrame::Grant(_));
    if !ends && core.shared.draining.load(Ordering::SeqCst) {
        core.refuse(request, unavailable());
        return Step::Done;
    }
    match frame {
        ClientFrame::Append(frame) => append(core, request, vec![frame.entry]),
        ClientFrame::AppendBatch(frame) => append(core, request, frame.entries.into_vec()),
        ClientFrame::Ack(frame) => ack(core, request, &frame),
        ClientFrame::Subscribe(frame) => later(subscribe(core.clone(), request, frame)),
        ClientFrame::Unsubscribe(frame) => unsubscribe(core, request, frame.log),
        ClientFrame::ListMembers(frame) => later(list_members(core.clone(), request, frame.log)),
        ClientFrame::ListLogs(frame) => later(list_logs(core.clone(), request, frame.after)),
        ClientFrame::Ping(_) => {
            core.outbox.heartbeat(request, core.shared.clock.now_ms());
            Step::Done
        }
        ClientFrame::Grant(frame) => {
            core.outbox.grant(frame.bytes);
            Step::Done
        }
        ClientFrame::Authenticate(_) => refuse(core, request, ErrorCode::Malformed),
        ClientFrame::CreateTotals(_) => later(create_totals(core.clone(), request)),
        ClientFrame::JoinTotals(frame) => later(join_totals(core.clone(), request, frame.log)),
        ClientFrame::LeaveTotals(frame) => later(leave_totals(core.clone(), request, frame.log)),
        ClientFrame::SetPushToken(frame) => later(set_push_token(core.clone(), request, frame)),
        ClientFrame::SubscribeFrom(frame) => later(subscribe_from(core.clone(), request, frame)),
        ClientFrame::GetVaultToken(frame) => {
            later(vaults::get_token(core.clone(), request, frame.log))
        }
        ClientFrame::ListSnapshots(frame) => {
            later(vaults::list_snapshots(core.clone(), request, frame.log))
        }
        ClientFrame::PutSnapshotChunk(frame) => vaults::put_chunk(core, request, frame),
        ClientFrame::GetSnapshotChunk(frame) => {
            later(vaults::get_chunk(core.clone(), request, frame))
        }
    }
}

pub(super) fn later(work: impl Future<Output = ()> + Send + 'static) -> Step {
    Step::Later(Box::pin(work))
}

pub(super) fn refuse(core: &Core, request: u32, code: ErrorCode) -> Step {
    core.refuse(request, Failure::new(code));
    Step::Done
}

fn head(core: &Core, position: Position) -> Head {
    core.shared.head(position)
}

// ---- appending

fn append(core: &Arc<Core>, request: u32, entries: Vec<EntryIn>) -> Step {
    let weight = Weight::of(&entries);
    if weight.bodies > BATCH_BYTES_MAX {
        return refuse(core, request, ErrorCode::TooLarge);
    }
    // Before anything is verified: these are refused in any case, and each would cost a signature.
    if entries.len() > 1 && entries.iter().any(stands_alone) {
        return refuse(core, request, ErrorCode::BadControl);
    }
    let reply = match Reply::begin(&core.outbox, &core.shared.budget, request, weight) {
        Ok(reply) => reply,
        Err(failure) => {
            core.refuse(request, failure);
            return Step::Done;
        }
    };
    let checked: Result<Vec<CheckedEntry>, Failure> =
        entries.into_iter().map(|entry| CheckedEntry::check(entry, core.outbox.device)).collect();
    let entries = match checked {
        Ok(entries) => entries,
        Err(failure) => {
            reply.refuse(failure);
            return Step::Done;
        }
    };
    let Some(log) = entries.first().map(|entry| entry.header.log) else {
        reply.refuse(Failure::new(ErrorCode::Malformed));
        return Step::Done;
    };
    if entries.iter().any(|entry| entry.header.log != log) {
        reply.refuse(Failure::new(ErrorCode::BadHeader));
        return Step::Done;
    }
    match entries.first().map(|entry| &entry.content) {
        Some(Content::Control(Control::Found { .. })) => {
            later(found(core.shared.clone(), core.outbox.device, entries, reply))
        }
        Some(Content::Control(Control::Join { .. })) => later(join(core.clone(), entries, reply)),
        _ => match known(core, log) {
            Some(place) => match place.log_type {
                LogType::Group => {
                    cast_append(core, place.key, entries, reply);
                    Step::Done
                }
                LogType::Vault => later(crate::vaults::append(
                    core.shared.clone(),
                    core.outbox.device,
                    place.key,
                    entries,
                    reply,
                )),
            },
            None => later(append_to_unknown(core.clone(), log, reply)),
        },
    }
}

/// Whether an entry cannot be part of a batch: it may change who may do what.
fn stands_alone(entry: &EntryIn) -> bool {
    entry.header.decode().is_ok_and(|header| match header.kind {
        Kind::Control => true,
        Kind::Key => header.audience == Audience::All,
        Kind::Ring | Kind::Quiet | Kind::Bulk | Kind::Totals => false,
    })
}

fn cast_append(core: &Core, key: LogKey, entries: Vec<CheckedEntry>, reply: Reply) {
    core.shared.cast_append(core.outbox.device, key, entries, reply);
}

async fn append_to_unknown(core: Arc<Core>, log: LogId, reply: Reply) {
    reply.refuse(why_unknown(&core, log).await);
}

/// Answers a request about a log that is none of the device's, as far as its session knows.
async fn refuse_unknown(core: Arc<Core>, request: u32, log: LogId) {
    let failure = why_unknown(&core, log).await;
    core.answer(request, &frame::Error { log: Some(log), ..failure.into() }.into());
}

/// Why a device is no member of a log.
pub(super) async fn why_unknown(core: &Core, log: LogId) -> Failure {
    core.shared.why_no_member(Turn::Question, core.outbox.device, log).await
}

/// The first entry of a new log.
pub(crate) async fn found(
    shared: Arc<Shared>,
    device: DeviceKey,
    mut entries: Vec<CheckedEntry>,
    reply: Reply,
) {
    let (Some(entry), true) = (entries.pop(), entries.is_empty()) else {
        return reply.refuse(Failure::new(ErrorCode::BadControl));
    };
    let Content::Control(Control::Found { log_type, join_key, .. }) = entry.content else {
        return reply.refuse(Failure::new(ErrorCode::BadControl));
    };
    let is_first =
        entry.header.count == 1 && entry.header.prev.is_zero() && entry.header.seen == Head::NONE;
    if !is_first {
        return reply.refuse(Failure::new(ErrorCode::BadHeader));
    }
    // Groups are joined by an invitation, vaults by a signature of a device.
    let join_key_fits = match log_type {
        LogType::Group => join_key.is_some_and(|key| admissible(key).is_ok()),
        LogType::Vault => join_key.is_none(),
    };
    if !join_key_fits {
        return reply.refuse(Failure::new(ErrorCode::BadControl));
    }
    let id = native_log_id(&entry.bytes);
    let chain = chain_next(chain_start(id), 1, entry.digest);
    let new = NewLog {
        id,
        log_type,
        join_key,
        founder: device,
        digest: entry.digest,
        entry: NewEntry {
            seq: 1,
            at: shared.clock.now_ms(),
            header: entry.bytes,
            body: entry.body,
            control: true,
            signature: entry.signature,
            recipients: Vec::new(),
            totals_kind: None,
            chain,
            sender_slot: 1,
            count: 1,
        },
    };
    let groups_max = shared.options.groups_max;
    if let Err(failure) = shared.paces.may_found(device) {
        return reply.refuse(failure);
    }
    let result =
        shared.run_job(move |store| Box::pin(async move { store.found(&new, groups_max).await }));
    match result.await {
        Ok(FoundResult::Created(key)) => {
            shared.paces.founded(device);
            counter!(ENTRIES, "kind" => "control").increment(1);
            let place = LogPlace { id, key, log_type };
            shared.registry.member_joined(device, place, 1);
            let head = shared.head(Position { seq: 1, chain });
            reply.appended(Appended { log: id, seq: 1, duplicate: false, head });
        }
        Ok(FoundResult::Exists(key)) => {
            founded_before(&shared, device, LogPlace { id, key, log_type }, reply).await;
        }
        Ok(FoundResult::LimitReached) => {
            let limit = u64::from(groups_max);
            reply.refuse(Failure::limit(ErrorCode::GroupLimitReached, limit));
        }
        Err(StoreError::Refused) => {
            tracing::error!("the store refused the data of a first entry");
            reply.refuse(Failure::new(ErrorCode::Internal));
        }
        Err(_) => drop(reply),
    }
}

/// The same first entry again, as after a lost answer. Only a founder who is still a member is told
/// where the log stands.
async fn founded_before(shared: &Shared, device: DeviceKey, place: LogPlace, reply: Reply) {
    let question = shared.store.subscription(place.key, device);
    match shared.turns.ask(Turn::Question, question).await {
        Ok(Some(record)) => {
            shared.registry.member_joined(device, place, 1);
            let head = shared.head(record.head);
            reply.appended(Appended { log: place.id, seq: 1, duplicate: true, head });
        }
        Ok(None) => reply.refuse(Failure::new(ErrorCode::NoSuchLog)),
        Err(_) => drop(reply),
    }
}

/// The first entry of a new member: its membership is reserved before its log is asked.
async fn join(core: Arc<Core>, entries: Vec<CheckedEntry>, reply: Reply) {
    let device = core.outbox.device;
    let [CheckedEntry { header, content: Content::Control(Control::Join { signature }), .. }] =
        entries.as_slice()
    else {
        return reply.refuse(Failure::new(ErrorCode::BadControl));
    };
    let (log, signature) = (header.log, *signature);
    let Ok(brief) = core.ask(Turn::Question, core.shared.store.find_log(log)).await else {
        return drop(reply);
    };
    // One answer, after the same work, for a log that does not exist and for an invitation that is
    // not valid: an outsider learns nothing of what exists.
    let message = join_message(log, device);
    let join_key = brief.filter(|brief| brief.log_type == LogType::Group).and_then(|b| b.join_key);
    let checked = verify(join_key.unwrap_or(core.shared.relay_device()), &message, &signature);
    let invited = join_key.is_some() && checked.is_ok();
    let Some(brief) = brief else {
        return reply.refuse(Failure::new(ErrorCode::InviteInvalid));
    };
    if known(&core, log).is_some() {
        // Perhaps the same entry again, after a lost answer: the log knows. Or the device has left,
        // and that is not durable yet: then it must come back, and reserve.
        return core.shared.cast_join(device, brief.key, entries, false, reply);
    }
    if !invited {
        return reply.refuse(Failure::new(ErrorCode::InviteInvalid));
    }
    let key = brief.key;
    if core.shared.paces.may_join(key, device).is_err() {
        // Who has to wait is given no place, which would count among the device's for a minute: the log
        // says so, or that it knows the entry.
        return core.shared.cast_join(device, key, entries, false, reply);
    }
    let groups_max = core.shared.options.groups_max;
    let now = core.shared.clock.now_ms();
    let since = now.saturating_sub(RESERVATION_LIFETIME.as_millis() as u64);
    let reserved = core.shared.run_job(move |store| {
        Box::pin(async move { store.reserve(key, device, groups_max, now, since).await })
    });
    match reserved.await {
        Ok(result @ (ReserveResult::Reserved | ReserveResult::AlreadyMember)) => {
            let reserved = result == ReserveResult::Reserved;
            core.shared.cast_join(device, key, entries, reserved, reply);
        }
        Ok(ReserveResult::LimitReached) => {
            let limit = u64::from(groups_max);
            reply.refuse(Failure::limit(ErrorCode::GroupLimitReached, limit));
        }
        Ok(ReserveResult::Revoked(seq)) => reply.refuse(Failure::revoked(seq)),
        Ok(ReserveResult::NoSuchLog) => reply.refuse(Failure::new(ErrorCode::InviteInvalid)),
        Err(_) => drop(reply),
    }
}

// ---- totals groups

async fn create_totals(core: Arc<Core>, request: u32) {
    match core.shared.create_totals(core.outbox.device).await {
        Ok(joined) => core.answer(request, &joined_frame(joined).into()),
        Err(failure) => core.refuse(request, failure),
    }
}

async fn join_totals(core: Arc<Core>, request: u32, log: LogId) {
    match core.shared.join_totals(core.outbox.device, log).await {
        Ok(joined) => core.answer(request, &joined_frame(joined).into()),
        Err(failure) => core.refuse(request, failure),
    }
}

async fn leave_totals(core: Arc<Core>, request: u32, log: LogId) {
    match core.shared.leave_totals(core.outbox.device, log).await {
        Ok(()) => core.answer(request, &Done {}.into()),
        Err(failure) => core.refuse(request, failure),
    }
}

async fn set_push_token(core: Arc<Core>, request: u32, frame: frame::SetPushToken) {
    let token = frame.token.filter(|token| !token.is_empty());
    let place = token.map(|token| (frame.platform.to_string(), token.to_string()));
    match core.shared.set_push_token(core.outbox.device, place).await {
        Ok(()) => core.answer(request, &Done {}.into()),
        Err(failure) => core.refuse(request, failure),
    }
}

fn joined_frame(joined: crate::totals::Joined) -> frame::Joined {
    frame::Joined { log: joined.group, at: joined.at, head: joined.head }
}

// ---- acks

fn ack(core: &Arc<Core>, request: u32, frame: &frame::Ack) -> Step {
    let Some(LogPlace { key, log_type, .. }) = known(core, frame.log) else {
        return later(refuse_unknown(core.clone(), request, frame.log));
    };
    if frame.state.incarnation != core.shared.store.incarnation() {
        return Step::Done;
    }
    if log_type == LogType::Vault {
        // It frees nothing: whatever it says, it stops this device's own doorbell and no more.
        is_awake(core, key, Some(frame.state.acked.floor));
        return Step::Done;
    }
    // A number alone does not say which history it means. That of a subscription was compared, chain
    // and all, when it began, and has been shown from here since.
    let Some(shown) = core.outbox.shown(key) else {
        return refuse_ack(core, request, frame.log, ErrorCode::NotSubscribed);
    };
    if frame.state.acked.highest() > shown.head {
        return refuse_ack(core, request, frame.log, ErrorCode::AckPastHead);
    }
    cast_ack(core, key, shown.losses, &frame.state, shown.up_to);
    Step::Done
}

/// The device need not be rung for what it has, or is being given, of a log.
fn is_awake(core: &Core, log: LogKey, read: Option<u64>) {
    core.shared.doorstep.awake(Awake { log, device: core.outbox.device, read });
}

fn refuse_ack(core: &Core, request: u32, log: LogId, code: ErrorCode) -> Step {
    let error = frame::Error { log: Some(log), ..Failure::new(code).into() };
    core.answer(request, &error.into());
    Step::Done
}

/// Hands on what an ack says of seqs up to and with `up_to`: those for which the device has shown
/// that it means this history.
fn cast_ack(core: &Core, key: LogKey, losses: u64, state: &frame::AckState, up_to: u64) {
    let ack = AckRequest {
        device: core.outbox.device,
        incarnation: state.incarnation,
        acked: state.acked.up_to(up_to),
        losses: Some(losses),
    };
    core.shared.cast_log(key, LogMessage::Ack(Box::new(ack)));
}

// ---- subscriptions

async fn subscribe(core: Arc<Core>, request: u32, frame: frame::Subscribe) {
    let acked = frame.acked.clone();
    begin_reading(core, request, frame.log, acked, Start::Cursor(frame.cursor)).await;
}

/// As if the floor stood at the head of a snapshot.
async fn subscribe_from(core: Arc<Core>, request: u32, frame: frame::SubscribeFrom) {
    begin_reading(core, request, frame.log, None, Start::Snapshot(frame.snapshot)).await;
}

/// Where a device wants to begin.
#[derive(Clone, Copy)]
enum Start {
    /// After this head; with none, at the first entry.
    Cursor(Option<Head>),
    /// With this snapshot.
    Snapshot(Digest),
}

async fn begin_reading(
    core: Arc<Core>,
    request: u32,
    log: LogId,
    acked: Option<frame::AckState>,
    start: Start,
) {
    let Some(LogPlace { key, log_type, .. }) = known(&core, log) else {
        return refuse_unknown(core, request, log).await;
    };
    if core.outbox.subscriptions_beside(key) >= SUBSCRIPTIONS_MAX {
        return core.refuse(request, Failure::new(ErrorCode::TooManySubscriptions));
    }
    // First a subscriber, then the question where the log stands: what is published in between is
    // offered, refused as behind, and found by the first page.
    let Some(ground) = core.outbox.ground(key) else {
        return refuse_unknown(core, request, log).await;
    };
    let unfinished = Unfinished { core: &core, key };
    let presence = core.shared.registry.subscribe(key, &core.outbox);
    let losses = presence.losses();
    let (record, from, phase, floor) = match begin(&core, log, key, start).await {
        Ok(start) => start,
        Err(failure) => {
            if failure.code == ErrorCode::HistoryChanged {
                // What it was shown is not this history: it has no subscription, old or new.
                core.outbox.unsubscribe(key);
            }
            return core.refuse(request, failure);
        }
    };
    presence.raise_head(record.head);
    // The cursor's chain stands for everything before it, and for nothing behind it.
    let compared = match start {
        Start::Cursor(cursor) => cursor.map_or(0, |cursor| cursor.seq),
        Start::Snapshot(_) => 0,
    };
    is_awake(&core, key, (log_type == LogType::Vault).then_some(record.head.seq));
    if let Some(state) = acked.filter(|_| log_type == LogType::Group)
        && state.incarnation == core.shared.store.incarnation()
        && !record.acked.clone().merge(&state.acked.up_to(compared)).is_empty()
    {
        cast_ack(&core, key, losses, &state, compared);
    }
    let subscription = Subscription::new(presence, from, phase, record.joined_seq);
    if core.outbox.subscribe(request, ground, key, record.head, floor, subscription) {
        std::mem::forget(unfinished);
    } else {
        // The membership changed while the store was asked: what it said may be wrong by now.
        core.refuse(request, unavailable());
    }
}

/// A subscriber that has no subscription yet. Dropping it takes the subscriber back, also when the
/// session ends while the store is being asked; one that was to begin anew keeps what it had.
struct Unfinished<'a> {
    core: &'a Core,
    key: LogKey,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        if self.core.outbox.shown(self.key).is_none() {
            self.core.shared.registry.unsubscribe(self.key, &self.core.outbox);
        }
    }
}

type Begun = (SubscriptionRecord, u64, Phase, Option<FloorMark>);

/// Where a subscription begins, if the cursor is on this log's chain.
async fn begin(core: &Core, log: LogId, key: LogKey, start: Start) -> Result<Begun, Failure> {
    let store = &core.shared.store;
    let record = core
        .ask(Turn::Subscription, store.subscription(key, core.outbox.device))
        .await
        .map_err(|_| unavailable())?;
    let Some(record) = record else { return Err(why_unknown(core, log).await) };
    let cursor = match start {
        Start::Cursor(cursor) => cursor,
        Start::Snapshot(digest) => {
            let floor =
                crate::vaults::start_from(&core.shared, key, digest, record.floor.seq).await?;
            let seq = floor.position.seq;
            return Ok((record, seq, Phase::Controls(0, seq), Some(floor)));
        }
    };
    let changed = Failure::at_head(ErrorCode::HistoryChanged, head(core, record.head));
    let (from, chain) = cursor.map_or((0, None), |head| (head.seq, Some(head.chain)));
    if from > record.head.seq {
        return Err(changed);
    }
    let known = if from == 0 || from < record.floor.seq {
        // There is no entry to compare with: the reader begins, or is told of the floor.
        None
    } else if from == record.head.seq {
        Some(record.head.chain)
    } else if from == record.floor.seq {
        Some(record.floor.chain)
    } else {
        let chain = core
            .ask(Turn::Subscription, store.chain_at(key, from))
            .await
            .map_err(|_| unavailable())?;
        Some(chain.ok_or(changed)?)
    };
    if known.is_some() && known != chain {
        return Err(changed);
    }
    if from < record.floor.seq {
        let seq = record.floor.seq;
        let floor =
            core.ask(Turn::Question, FloorMark::of(store.as_ref(), key, record.floor)).await;
        let floor = floor.map_err(|_| unavailable())?;
        return Ok((record, seq, Phase::Controls(from, seq), Some(floor)));
    }
    Ok((record, from, Phase::Entries, None))
}

fn unsubscribe(core: &Arc<Core>, request: u32, log: LogId) -> Step {
    let Some(LogPlace { key, .. }) = known(core, log) else {
        return later(refuse_unknown(core.clone(), request, log));
    };
    core.shared.registry.unsubscribe(key, &core.outbox);
    core.answer(request, &Done {}.into());
    Step::Done
}

// ---- lists

async fn list_members(core: Arc<Core>, request: u32, log: LogId) {
    let Some(LogPlace { key, .. }) = known(&core, log) else {
        return refuse_unknown(core, request, log).await;
    };
    match core.ask(Turn::Question, core.shared.store.members(key)).await {
        Ok(Some((position, members)))
            if members.iter().any(|member| member.device == core.outbox.device) =>
        {
            let members = Bounded::new(members).unwrap_or_default();
            core.answer(request, &Members { log, head: head(&core, position), members }.into());
        }
        Ok(_) => refuse_unknown(core, request, log).await,
        Err(_) => core.refuse(request, unavailable()),
    }
}

async fn list_logs(core: Arc<Core>, request: u32, after: Option<LogId>) {
    match briefs(&core.shared, Turn::Question, core.outbox.device).await {
        Ok(logs) => {
            let logs = summaries(core.shared.store.incarnation(), &logs, after);
            core.answer(request, &Logs { logs }.into());
        }
        Err(_) => core.refuse(request, unavailable()),
    }
}
