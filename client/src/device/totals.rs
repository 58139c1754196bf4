//! `totals` groups: made at the relay, joined by their id, let in by a person.
//!
//! The id of the group is the whole invitation: whoever knows it becomes a member in the relay's
//! eyes, and sees who the others are and sealed bytes. What lets somebody read is the group's key,
//! which a member gives after comparing fingerprints ([`Device::approve`]). It is never changed, and
//! nobody can be removed: that is how the Totals app has it. A group's format is told by its id and
//! stays for life.

use sealwire_protocol::frame::CreateTotals;
use sealwire_protocol::{DeviceKey, Kind, LogId, RelayFrame};

use super::ledger::take_own_payload;
use super::{Device, Phase, member_row};
use crate::address::RelayUrl;
use crate::engine::{GROUP_KEY, Now, history};
use crate::error::Error;
use crate::numbering::DraftId;
use crate::seal::EpochKey;
use crate::store::outbox::Draft;
use crate::store::requests::{self, JoinRequest};
use crate::store::{self, keys, ledger, logs, outbox};
use crate::totals::payload::{
    Activity, JoinCancel, KeyExchange, MemberApproved, MemberLeft, Payload,
};
use crate::totals::seal::GroupKey;
use crate::wire::{self, WireError};

/// Longest name of a person, in bytes.
pub const NAME_BYTES_MAX: usize = 256;

impl Device {
    /// Makes a `totals` group. Its id is the relay's to choose, so the relay must be in reach: this
    /// makes a short connection of its own, beside any other. Once begun it is done whole, even if
    /// nobody waits for it any more.
    ///
    /// # Errors
    /// [`Error::Wire`] if the relay was not reached or refuses, [`Error::RelayKeyChanged`].
    pub async fn create_totals_group(&self, relay: &RelayUrl) -> Result<LogId, Error> {
        let (device, relay) = (self.clone(), relay.clone());
        self.shared.whole(async move { device.create_totals(&relay).await }).await
    }

    async fn create_totals(&self, relay: &RelayUrl) -> Result<LogId, Error> {
        let key = EpochKey::generate()?;
        let pinned = self.relay_key(relay).await?;
        let options = wire::Options { relay: pinned, ..wire::Options::default() };
        let connected = Box::pin(wire::connect(relay, &self.shared.identity, &options)).await;
        let (mut wire, session) = connected.map_err(from_wire)?;
        let answer = wire.request(&CreateTotals {}.into()).await.map_err(from_wire)?;
        let RelayFrame::Joined(joined) = answer else { return Err(WireError::NotARelay.into()) };
        if !joined.log.is_totals() {
            return Err(WireError::NotARelay.into());
        }
        let (relay, relay_key) = (relay.clone(), session.relay);
        self.shared
            .write(move |db| {
                if pinned.is_none() {
                    store::pin_relay(db, &relay, relay_key)?;
                }
                let id = logs::insert(db, joined.log, &relay, None)?;
                keys::insert(db, id, GROUP_KEY, &key, None)?;
                logs::set_joined(db, id, joined.head.seq)?;
                logs::set_phase(db, id, Phase::Member)?;
                Ok::<_, Error>(())
            })
            .await?;
        wire.close().await;
        Ok(joined.log)
    }

    /// Joins a `totals` group by its id, once the relay is reached. The members are asked then to let
    /// this device in.
    ///
    /// # Errors
    /// [`Error::AlreadyMember`]; [`Error::Format`] if this is the id of a native group.
    pub async fn join_totals(&self, relay: &RelayUrl, log: LogId) -> Result<(), Error> {
        if !log.is_totals() {
            return Err(Error::Format("this is not the code of a Totals group"));
        }
        let relay = relay.clone();
        self.shared
            .write(move |db| {
                let id = match logs::find(db, log)? {
                    None => logs::insert(db, log, &relay, None)?,
                    Some(row) if row.phase.is_open() => return Err(Error::AlreadyMember),
                    Some(row) => {
                        logs::set_phase(db, row.id, Phase::Joining)?;
                        row.id
                    }
                };
                outbox::insert(db, id, &Draft::Join)?;
                Ok(())
            })
            .await
    }

    /// Who asks to be let into a `totals` group, the first one first.
    ///
    /// # Errors
    /// [`Error::NoSuchLog`].
    pub async fn join_requests(&self, log: LogId) -> Result<Vec<JoinRequest>, Error> {
        self.shared
            .read(move |db| {
                let row = logs::find(db, log)?.ok_or(Error::NoSuchLog)?;
                Ok::<_, Error>(requests::list(db, row.id)?)
            })
            .await
    }

    /// Lets a member of a `totals` group in: gives it the group's key. A person has compared the
    /// fingerprint before ([`crate::identity::fingerprint`]): the relay could have put in another
    /// device's key. `group_name` is what the newcomer's app calls the group until it knows better.
    ///
    /// # Errors
    /// [`Error::NoSuchRequest`] if that device does not ask, [`Error::NoKey`] if this device was not
    /// let in itself.
    pub async fn approve(
        &self,
        log: LogId,
        device: DeviceKey,
        group_name: Option<String>,
    ) -> Result<DraftId, Error> {
        let me = self.key();
        self.shared
            .write(move |db| {
                let row = member_row(db, log)?;
                if !log.is_totals() {
                    return Err(Error::Format(
                        "whoever has the invite of a native group is let in by it",
                    ));
                }
                if !requests::list(db, row.id)?.iter().any(|request| request.device == device) {
                    return Err(Error::NoSuchRequest);
                }
                let key = keys::find(db, row.id, GROUP_KEY)?.into_iter().next();
                let key = GroupKey::from_bytes(*key.ok_or(Error::NoKey)?.bytes());
                let (name, name_at) = store::name(db)?;
                let kept = ledger::load(db, row.id)?;
                // This device's clock may be behind: nobody is let in before it has asked.
                let asked_at = kept.person(&device.into()).map_or(0, |asks| asks.asked_at);
                let now = now().max(asked_at);
                let backfill = kept.group().backfill.unwrap_or(false);
                let mut exchange = KeyExchange::new(log, key, device, me, backfill, now);
                exchange.group_name = group_name.or_else(|| kept.group().name.clone());
                exchange.approver_member_meta_updated_at =
                    name.as_ref().and(i64::try_from(name_at).ok());
                exchange.approver_display_name = name;
                let exchange = Payload::KeyExchange(exchange);
                insert(db, &row, me, &exchange, vec![device], true)?;
                // As the app does it: who is in the group; and what was, if the group wants that.
                let parts = if backfill { usize::MAX } else { 1 };
                let kept = ledger::load(db, row.id)?;
                let history = history(&kept, log, &row.membership, me, Now::read())?;
                for part in history.into_iter().take(parts) {
                    outbox::insert_ledger(db, row.id, log, &part, Kind::Bulk, vec![device])?;
                }
                let approved = approval(log, device, me, now);
                let id = insert(db, &row, me, &approved, Vec::new(), false)?;
                requests::remove(db, row.id, device)?;
                Ok(id)
            })
            .await
    }

    /// Who offers another key for a `totals` group than this device has.
    ///
    /// # Errors
    /// [`Error::NoSuchLog`].
    pub async fn offered_keys(&self, log: LogId) -> Result<Vec<DeviceKey>, Error> {
        self.shared
            .read(move |db| {
                let row = logs::find(db, log)?.ok_or(Error::NoSuchLog)?;
                Ok::<_, Error>(requests::offering(db, row.id)?)
            })
            .await
    }

    /// A person has decided: the key that this member offers is the group's. The one before it is
    /// forgotten.
    ///
    /// # Errors
    /// [`Error::NoSuchRequest`] if that member offers none.
    pub async fn accept_key(&self, log: LogId, sender: DeviceKey) -> Result<(), Error> {
        self.shared
            .write(move |db| {
                let row = member_row(db, log)?;
                let key = requests::take_offer(db, row.id, sender)?;
                keys::replace(db, row.id, GROUP_KEY, &key.ok_or(Error::NoSuchRequest)?)?;
                Ok::<_, Error>(())
            })
            .await
    }

    /// What this device's person is called in `totals` groups.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn name(&self) -> Result<Option<String>, Error> {
        self.shared.read(|db| Ok::<_, Error>(store::name(db)?.0)).await
    }

    /// Says what this device's person is called in `totals` groups: in requests and approvals from
    /// now on.
    ///
    /// # Errors
    /// [`Error::TooLong`].
    pub async fn set_name(&self, name: &str) -> Result<(), Error> {
        if name.len() > NAME_BYTES_MAX {
            return Err(Error::TooLong);
        }
        let name = name.to_owned();
        self.shared
            .write(move |db| Ok::<_, Error>(store::set_name(db, &name, Now::read().ms)?))
            .await
    }
}

/// Says goodbye: to all if this device was let in, else to those whom it has asked.
pub(super) fn say_goodbye(
    db: &rusqlite::Connection,
    row: &logs::LogRow,
    me: DeviceKey,
) -> Result<(), Error> {
    let now = now();
    if keys::has(db, row.id, GROUP_KEY)? {
        let left = farewell(row.log, me, now);
        insert(db, row, me, &left, Vec::new(), false)?;
        return Ok(());
    }
    for member in requests::asked(db, row.id)? {
        let cancel = Payload::JoinCancel(JoinCancel { public_key: me.into(), timestamp: now });
        insert(db, row, me, &cancel, vec![member], true)?;
    }
    Ok(())
}

fn approval(log: LogId, device: DeviceKey, by: DeviceKey, at: i64) -> Payload {
    let mut data = serde_json::Map::new();
    data.insert("memberPublicKey".to_owned(), device.to_hex().into());
    let activity = activity("member_approved", log, device, by, at, data);
    Payload::MemberApproved(MemberApproved {
        approved_public_key: device.into(),
        approved_by: by.into(),
        timestamp: at,
        activity: Some(activity),
    })
}

fn farewell(log: LogId, me: DeviceKey, at: i64) -> Payload {
    let activity = activity("member_left", log, me, me, at, serde_json::Map::new());
    Payload::MemberLeft(MemberLeft { public_key: me.into(), left_at: at, activity: Some(activity) })
}

fn activity(
    kind: &str,
    log: LogId,
    device: DeviceKey,
    actor: DeviceKey,
    at: i64,
    data: serde_json::Map<String, serde_json::Value>,
) -> Activity {
    Activity {
        // The same on every device that makes one of the same thing.
        id: format!("{kind}:{}:{}:{at}", log.to_uuid_text(), device.to_hex()),
        timestamp: at,
        actor: actor.into(),
        kind: kind.to_owned(),
        data,
    }
}

/// Milliseconds since the epoch, as the app's messages have them.
fn now() -> i64 {
    i64::try_from(Now::read().ms).unwrap_or(i64::MAX)
}

fn insert(
    db: &rusqlite::Connection,
    row: &logs::LogRow,
    me: DeviceKey,
    message: &Payload,
    to: Vec<DeviceKey>,
    alone: bool,
) -> Result<DraftId, Error> {
    take_own_payload(db, row, me, message)?;
    let payload = message.encode().map_err(|_| Error::TooLong)?.to_vec();
    let draft = Draft::Totals { name: message.kind().to_owned(), payload, to, alone };
    Ok(outbox::insert(db, row.id, &draft)?)
}

fn from_wire(error: WireError) -> Error {
    if let WireError::RelayKeyChanged { pinned, presented } = error {
        return Error::RelayKeyChanged { pinned, presented };
    }
    error.into()
}
