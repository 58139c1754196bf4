//! What a relay is asked to do with the device's recovery vault, by whichever process of the device.
//!
//! It exists because a relay's answer may be lost or late, and because two processes may ask at once: a
//! relay has one recovery vault of a device, and nobody can ask which.
//!
//! Holds always: a relay that may have a recovery vault of this device stands in the file, from before it
//! is asked until it has answered; and what one process has kept, another one that knows nothing of it does
//! not replace.

use rusqlite::{Connection, OptionalExtension, Row};
use sealwire_protocol::Digest;

use super::{Kept, find, save};
use crate::address::RelayUrl;
use crate::identity::{Identity, random};
use crate::store::StoreError;

/// Which recovery vault it is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Which {
    relay: String,
    salt: Vec<u8>,
}

/// What an asking is known by: random.
type Mark = [u8; 16];

/// A relay that was asked to change what it has, and has not answered yet.
pub(crate) struct Asked {
    relay: RelayUrl,
    /// What was kept when it was asked.
    read: Option<Which>,
    mark: Mark,
}

/// What is found when a relay has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was asked for nothing else meanwhile: it has what it was given.
    Alone,
    /// It was asked for something else too, and which of the two was last is not known.
    Met,
    /// Another recovery vault is kept by now: it stays, and must be given to its relay again.
    Other,
}

impl Kept {
    /// Which one this is.
    pub(crate) fn which(&self) -> Which {
        Which { relay: self.relay.as_str().to_owned(), salt: self.salt.clone() }
    }
}

/// Which recovery vault is kept, if any is: each code and each PIN has a salt of its own.
pub(crate) fn which(db: &Connection) -> Result<Option<Which>, StoreError> {
    let row = |row: &Row<'_>| Ok(Which { relay: row.get(0)?, salt: row.get(1)? });
    Ok(db.query_row("select relay, salt from recovery", [], row).optional()?)
}

/// A relay is about to be asked to change what it has, by whoever has read that `read` is kept: what it
/// has is not known until it has answered ([`end_put`], [`end_delete`]). Nothing, if another one is kept by
/// now: that was done by another process, and counts.
pub(crate) fn begin(
    db: &Connection,
    relay: RelayUrl,
    read: Option<Which>,
) -> Result<Option<Asked>, StoreError> {
    if which(db)? != read {
        return Ok(None);
    }
    let mark = random().map_err(|_| StoreError::Io)?;
    note(db, &relay, &mark)?;
    Ok(Some(Asked { relay, read, mark }))
}

/// The relay has taken a recovery vault whose contents have this digest: it is the one that is kept from
/// now on, unless another process has kept another one meanwhile.
pub(crate) fn end_put(
    db: &Connection,
    me: &Identity,
    asked: &Asked,
    kept: &Kept,
    digest: Digest,
) -> Result<Ended, StoreError> {
    let ended = end(db, asked)?;
    if ended != Ended::Other {
        let uploaded = (ended == Ended::Alone).then_some(digest);
        // Whether a lost device is left is not for whoever stores a vault to say.
        let old_seed = find(db, me)?.and_then(|now| now.old_seed);
        save(db, me, &Kept { old_seed, ..kept.again(uploaded) })?;
    }
    Ok(ended)
}

/// The relay has deleted what it had: what is kept there is kept no more.
pub(crate) fn end_delete(db: &Connection, asked: &Asked) -> Result<Ended, StoreError> {
    let ended = end(db, asked)?;
    if ended == Ended::Alone {
        db.execute("delete from recovery where relay = ?1", [asked.relay.as_str()])?;
    }
    Ok(ended)
}

/// Where a recovery vault may be beside the one that is kept: relays that were asked and whose answers did
/// not come, or came when another one was kept.
pub(crate) fn asked_elsewhere(db: &Connection) -> Result<Vec<RelayUrl>, StoreError> {
    let mut statement = db.prepare_cached(
        "select relay from recovery_asked where relay not in (select relay from recovery)",
    )?;
    let relays = statement.query_map([], |row| row.get::<_, String>(0))?;
    relays.map(|relay| RelayUrl::parse(&relay?).map_err(|_| StoreError::Damaged)).collect()
}

/// What a relay has is not known, nor what the one has that keeps the kept vault: it may be the same under
/// another name.
fn note(db: &Connection, relay: &RelayUrl, mark: &Mark) -> Result<(), StoreError> {
    db.execute(
        "insert into recovery_asked (relay, mark, met) values (?1, ?2, 0)
         on conflict (relay) do update set mark = excluded.mark, met = 1",
        (relay.as_str(), &mark[..]),
    )?;
    db.execute("update recovery set uploaded = null", [])?;
    Ok(())
}

/// The relay has answered.
fn end(db: &Connection, asked: &Asked) -> Result<Ended, StoreError> {
    let Asked { relay, read, mark } = asked;
    if which(db)? != *read {
        note(db, relay, mark)?;
        return Ok(Ended::Other);
    }
    let alone: Option<bool> = db
        .query_row(
            "delete from recovery_asked where relay = ?1 returning mark = ?2 and not met",
            (relay.as_str(), &mark[..]),
            |row| row.get(0),
        )
        .optional()?;
    if alone == Some(true) {
        return Ok(Ended::Alone);
    }
    db.execute("update recovery set uploaded = null", [])?;
    Ok(Ended::Met)
}

#[cfg(test)]
mod tests {
    use zeroize::Zeroizing;

    use super::*;
    use crate::recovery::Format;
    use crate::store::Store;
    use crate::stretch::Cost;

    /// A device's file, and who writes to it: several processes may.
    struct Place {
        me: Identity,
        store: Store,
        _directory: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("a directory");
            let me = Identity::from_seed(&[7; 32]);
            let file = directory.path().join("device.db");
            Self {
                store: Store::open(&file, me.key()).expect("a store"),
                me,
                _directory: directory,
            }
        }

        fn kept(&self) -> Option<Kept> {
            self.store.read(|db| find(db, &self.me)).expect("read")
        }

        fn uploaded(&self) -> Option<Digest> {
            self.kept().expect("some").uploaded
        }

        fn begin(&self, relay: &RelayUrl, read: Option<&Kept>) -> Option<Asked> {
            let (relay, read) = (relay.clone(), read.map(Kept::which));
            self.store.write(|db| begin(db, relay, read)).expect("begun")
        }

        fn asks(&self, relay: &RelayUrl, read: Option<&Kept>) -> Asked {
            self.begin(relay, read).expect("it is what is kept")
        }

        fn end(&self, asked: &Asked, kept: &Kept, digest: u8) -> Ended {
            let digest = Digest([digest; 32]);
            self.store.write(|db| end_put(db, &self.me, asked, kept, digest)).expect("ended")
        }

        fn end_delete(&self, asked: &Asked) -> Ended {
            self.store.write(|db| end_delete(db, asked)).expect("ended")
        }

        fn elsewhere(&self) -> Vec<RelayUrl> {
            self.store.read(asked_elsewhere).expect("read")
        }
    }

    /// One with a code and a PIN of its own.
    fn made(relay: &str, number: u8) -> Kept {
        Kept {
            relay: RelayUrl::parse(relay).expect("an address"),
            format: Format::Native,
            code: Zeroizing::new(format!("0123456789ABCDE{number}")),
            code_key: Some(Zeroizing::new([number; 32])),
            key: Zeroizing::new([number; 32]),
            salt: vec![number; 16],
            cost: Cost::USUAL,
            uploaded: None,
            old_seed: None,
        }
    }

    const RELAY: &str = "wss://relay.example";

    #[test]
    fn what_the_relay_has_is_known_only_to_whoever_asked_it_alone() {
        let (place, kept) = (Place::new(), made(RELAY, 1));
        let asks = |read| place.asks(&kept.relay, read);
        assert_eq!(place.end(&asks(None), &kept, 1), Ended::Alone);
        assert_eq!(place.uploaded(), Some(Digest([1; 32])));
        let lost = asks(Some(&kept));
        assert_eq!(place.uploaded(), None, "its answer may be lost");
        drop(lost);
        assert_eq!(place.end(&asks(Some(&kept)), &kept, 2), Ended::Met);
        assert_eq!(place.uploaded(), None, "what was lost may come late");
        assert_eq!(place.end(&asks(Some(&kept)), &kept, 2), Ended::Alone);
        assert_eq!(place.uploaded(), Some(Digest([2; 32])));
        for turn in 0..2 {
            let mut both = [asks(Some(&kept)), asks(Some(&kept))];
            both.rotate_left(turn);
            for asked in both {
                assert_eq!(place.end(&asked, &kept, 3), Ended::Met);
                assert_eq!(place.uploaded(), None, "another process has asked meanwhile");
            }
        }
        // Also if that one is done before.
        let slow = asks(Some(&kept));
        assert_eq!(place.end(&asks(Some(&kept)), &kept, 4), Ended::Met);
        assert_eq!(place.end(&asks(Some(&kept)), &kept, 4), Ended::Alone);
        assert_eq!(place.end(&slow, &kept, 3), Ended::Met);
        assert_eq!(place.uploaded(), None);
    }

    #[test]
    fn what_a_person_was_shown_is_not_undone_by_a_slower_process() {
        let place = Place::new();
        let (first, second) = (made(RELAY, 1), made(RELAY, 2));
        place.end(&place.asks(&first.relay, None), &first, 1);
        // One process brings the first up to date, slowly; another one makes the second.
        let slow = place.asks(&first.relay, Some(&first));
        let quick = place.asks(&first.relay, Some(&first));
        assert_ne!(place.end(&quick, &second, 2), Ended::Other);
        assert_eq!(place.end(&slow, &first, 1), Ended::Other);
        let kept = place.kept().expect("some");
        assert!(kept.which() == second.which(), "the second stays");
        assert_eq!(kept.uploaded, None, "and the relay is given it again");
        // Nor does one that begins with what it has read before.
        assert!(place.begin(&first.relay, Some(&first)).is_none());
        assert!(place.begin(&first.relay, None).is_none());
        // Nor does one come back that was deleted meanwhile.
        let slow = place.asks(&first.relay, Some(&second));
        while place.end_delete(&place.asks(&first.relay, Some(&second))) != Ended::Alone {}
        assert_eq!(place.end(&slow, &second, 2), Ended::Other);
        assert!(place.kept().is_none());
        assert_eq!(place.elsewhere(), [first.relay], "it is deleted there once more");
    }

    #[test]
    fn a_relay_that_may_have_a_recovery_vault_is_known_until_it_has_deleted_it() {
        let (place, here) = (Place::new(), made(RELAY, 1));
        let there = RelayUrl::parse("wss://other.example").expect("an address");
        drop(place.asks(&there, None));
        assert_eq!(place.elsewhere(), std::slice::from_ref(&there), "its answer is lost");
        place.end(&place.asks(&here.relay, None), &here, 1);
        assert_eq!(place.elsewhere(), std::slice::from_ref(&there));
        let asked = place.asks(&there, Some(&here));
        assert_eq!(place.uploaded(), None, "it may be the same relay by another name");
        place.end_delete(&asked);
        assert!(place.elsewhere().is_empty() && place.kept().is_some());
        // Where the kept one is, it is stored again.
        drop(place.asks(&here.relay, Some(&here)));
        assert!(place.elsewhere().is_empty());
    }
}
