//! What may be appended, before anything is changed.

use sealwire_protocol::limits::NATIVE_MEMBERS_MAX;
use sealwire_protocol::signing::{join_message, verify};
use sealwire_protocol::{Audience, Control, DeviceKey, ErrorCode, Failure};

use super::{NotAppended, State, refused};
use crate::entry::{CheckedEntry, Content};
use crate::log::policy::Policy;

impl State {
    /// Checks that the counts are the sender's next ones, in order and linked.
    pub(super) fn check_counts(
        &self,
        sender: DeviceKey,
        entries: &[CheckedEntry],
    ) -> Result<(), NotAppended> {
        let (last_count, last_digest) = self.last_of(sender);
        let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
            return refused(ErrorCode::Malformed);
        };
        for pair in entries.windows(2) {
            if pair[1].header.count != pair[0].header.count + 1
                || pair[1].header.prev != pair[0].digest
            {
                return refused(ErrorCode::BadHeader);
            }
        }
        if last.header.count <= last_count {
            return Err(NotAppended::Known);
        }
        if first.header.count != last_count + 1 {
            return Err(Failure::out_of_order(last_count + 1).into());
        }
        if first.header.prev != last_digest {
            return Err(Failure::conflict(last_count, last_digest).into());
        }
        Ok(())
    }

    /// Checks what the entries ask. `pace` says whether their sender may write what stays, now.
    pub(super) fn check_contents(
        &self,
        sender: DeviceKey,
        entries: &[CheckedEntry],
        pace: Result<(), Failure>,
    ) -> Result<(), NotAppended> {
        let single = entries.len() == 1;
        for entry in entries {
            match &entry.content {
                Content::Control(control) => {
                    // Each may change who may do what: one at a time, so that none is half done.
                    if !single {
                        return refused(ErrorCode::BadControl);
                    }
                    self.check_control(sender, entry, control)?;
                }
                Content::Rotation => {
                    if !single {
                        return refused(ErrorCode::BadControl);
                    }
                    self.check_seen(entry)?;
                }
                Content::Plain => {
                    if let Audience::Named(_) = entry.header.audience
                        && !entry.recipients.iter().all(|key| self.members.contains_key(key))
                    {
                        return refused(ErrorCode::BadAudience);
                    }
                }
            }
        }
        pace?;
        self.policy.check_room(entries, self.head.seq - self.floor.seq)?;
        Ok(())
    }

    /// Whether the group takes another body of this [`cost`](crate::log::queue::cost).
    pub(super) fn has_room(&self, cost: u64, may_use_reserve: bool) -> bool {
        let queue = self.policy.queue();
        queue.is_some_and(|queue| queue.has_room(1, cost, may_use_reserve, self.above_floor()))
    }

    /// Conditional entries must have seen the newest change of membership or key.
    fn check_seen(&self, entry: &CheckedEntry) -> Result<(), NotAppended> {
        let seen = &entry.header.seen;
        if seen.incarnation != self.incarnation || seen.seq < self.guard_seq {
            return Err(Failure::at_head(ErrorCode::Stale, self.head_of(self.head)).into());
        }
        Ok(())
    }

    fn check_control(
        &self,
        sender: DeviceKey,
        entry: &CheckedEntry,
        control: &Control,
    ) -> Result<(), NotAppended> {
        if control.is_conditional() {
            self.check_seen(entry)?;
        }
        match &self.policy {
            Policy::Group(_) => self.check_group_control(sender, control),
            Policy::Vault(vault) => self.check_vault_control(vault, sender, control),
        }
    }

    fn check_group_control(&self, sender: DeviceKey, control: &Control) -> Result<(), NotAppended> {
        match control {
            Control::Join { signature } => {
                if self.members.contains_key(&sender) {
                    return refused(ErrorCode::AlreadyMember);
                }
                let message = join_message(self.id, sender);
                let valid =
                    self.join_key.is_some_and(|key| verify(key, &message, signature).is_ok());
                if !valid {
                    return refused(ErrorCode::InviteInvalid);
                }
                if self.members.len() >= NATIVE_MEMBERS_MAX {
                    let limit = NATIVE_MEMBERS_MAX as u64;
                    return Err(Failure::limit(ErrorCode::GroupFull, limit).into());
                }
                Ok(())
            }
            Control::Leave | Control::JoinKey { .. } => Ok(()),
            Control::Revoke { device, .. } => {
                if *device == sender || self.revoked.contains_key(device) {
                    return refused(ErrorCode::BadControl);
                }
                Ok(())
            }
            // What only vaults have, what only the relay writes, and a second beginning.
            Control::Found { .. }
            | Control::Enrol { .. }
            | Control::Snapshot { .. }
            | Control::SnapshotOpened { .. }
            | Control::TotalsFound { .. }
            | Control::TotalsJoin { .. }
            | Control::TotalsLeave { .. } => refused(ErrorCode::BadControl),
        }
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::SigningKey;
    use sealwire_protocol::bounded::Bounded;
    use sealwire_protocol::digest::{entry_digest, sha256};
    use sealwire_protocol::frame::Member;
    use sealwire_protocol::signing::{device_key, entry_message, sign};
    use sealwire_protocol::{AckSet, Body, Digest, EntryIn, Head, Header, Kind, LogId, LogType};

    use super::*;
    use crate::limits::{GROUP_ENTRIES_MAX, VaultLimits};
    use crate::ports::{LogKey, LogRecord, MemberRecord, Position, VaultRecord};

    fn group(seq: u64, floor: u64, members: &[DeviceKey]) -> State {
        let at = |seq| Position { seq, chain: Digest::ZERO };
        let member = |device: &DeviceKey| MemberRecord {
            member: Member { device: *device, joined_seq: 1, joined_at: 0 },
            acked: AckSet::new(),
        };
        let record = LogRecord {
            key: LogKey(1),
            id: LOG,
            log_type: LogType::Group,
            head: at(seq),
            version: 0,
            floor: at(floor),
            join_key: None,
            guard_seq: 0,
            last_entry_at: 0,
            members: members.iter().map(member).collect(),
            revoked: Vec::new(),
            senders: Vec::new(),
            live: Vec::new(),
            vault: VaultRecord::default(),
        };
        State::new(record, 1, VaultLimits::default())
    }

    const LOG: LogId = LogId([0x83; 16]);

    #[test]
    fn a_group_keeps_so_many_entries_above_its_floor_even_if_nobody_waits_for_them() {
        let signing = SigningKey::from_bytes(&[1; 32]);
        let device = device_key(&signing);
        let header = Header {
            log: LOG,
            sender: device,
            count: 1,
            prev: Digest::ZERO,
            kind: Kind::Quiet,
            audience: Audience::All,
            seen: Head::NONE,
            body: sha256(b""),
        }
        .encode();
        let entry = || EntryIn {
            header,
            body: Body::copy_from(b""),
            signature: Some(sign(&signing, &entry_message(entry_digest(&header)))),
            recipients: Bounded::default(),
            totals_kind: None,
        };
        let appended = |seq, floor| {
            let entry = CheckedEntry::check(entry(), device).expect("an entry");
            group(seq, floor, &[device]).append(device, vec![entry], Ok(()), 0).is_ok()
        };
        assert!(appended(GROUP_ENTRIES_MAX - 1, 0));
        assert!(!appended(GROUP_ENTRIES_MAX, 0));
        assert!(appended(GROUP_ENTRIES_MAX, 1));
    }

    #[test]
    fn a_native_group_has_no_more_members_than_it_may() {
        let join_key = SigningKey::from_bytes(&[2; 32]);
        let joiner = device_key(&SigningKey::from_bytes(&[1; 32]));
        let join = Control::Join { signature: sign(&join_key, &join_message(LOG, joiner)) };
        let answer = |members: usize| {
            let members: Vec<_> = (1..=members as u64)
                .map(|number| {
                    let mut key = [0; 32];
                    key[..8].copy_from_slice(&number.to_be_bytes());
                    DeviceKey(key)
                })
                .collect();
            let mut state = group(1, 0, &members);
            state.join_key = Some(device_key(&join_key));
            state.check_group_control(joiner, &join)
        };
        assert!(answer(NATIVE_MEMBERS_MAX - 1).is_ok());
        let Err(NotAppended::Refused(failure)) = answer(NATIVE_MEMBERS_MAX) else {
            panic!("one too many was admitted");
        };
        assert_eq!(failure.code, ErrorCode::GroupFull);
        assert_eq!(failure.limit, Some(NATIVE_MEMBERS_MAX as u64));
    }
}
