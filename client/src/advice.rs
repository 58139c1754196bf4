//! What a person does next after an error: one table, so that no error is without.
//!
//! The texts of errors say what is so; an app in its own words says what to do. These are the words of
//! the command line, which an app may use as well.
//!
//! Holds always: every `match` here names every error. Whoever adds one says what to do about it, or
//! the crate does not build.

use sealwire_protocol::close::CloseReason;
use sealwire_protocol::error::ErrorCode;

use crate::address::AddressError;
use crate::error::{Error, StoreError};
use crate::identity::file::KeyFileError;
use crate::invite::InviteError;
use crate::ledger::LedgerError;
use crate::ledger::money::MoneyError;
use crate::recovery::{CodeError, RecoveryError, VaultError as RecoveryVaultError};
use crate::sync::changeset::ChangesetError;
use crate::sync::{SchemaError, SyncError};
use crate::vault::{SnapshotError, VaultError};
use crate::wire::WireError;

const AGAIN: &str = "try again in a while; what you have written is kept";
const RANDOMNESS: &str = "restart the machine; without randomness nothing can be sealed";
const REPORT: &str = "this is a fault of the program: report it, with what you did";
const ADDRESS: &str = "write the relay's address as it was given to you, like wss://relay.example";
const UPDATE: &str = "install a newer version of this program";
const RELAY_KEY: &str = "ask the relay's operator which key is right, over another way; if it is the \
    new one, run `trust` with it, else somebody is in the way";
const CLONE: &str = "use one copy of this device only; this one sends nothing more: make a new device \
    with `init` in another directory and have it let in";
const MEMBERS: &str = "look at `group members`, and type the beginning of a member's key";
const INVITE: &str = "ask a member for a new invite, and copy the link whole, in quotes";

/// What a person does next.
pub trait Advice {
    /// A sentence without its full stop, in the words of the command line.
    fn advice(&self) -> &'static str;
}

impl Advice for Error {
    fn advice(&self) -> &'static str {
        match self {
            Self::Store(error) => error.advice(),
            Self::KeyFile(error) => error.advice(),
            Self::Address(error) => error.advice(),
            Self::Invite(error) => error.advice(),
            Self::NoRandomness(_) => RANDOMNESS,
            Self::Directory => {
                "see that the directory may be written and its disk has room, or name another one \
                 with --dir"
            }
            Self::NoSuchLog => "look at `group list` for the groups of this device",
            Self::NotAMember => "look at `group list`; to come back, ask a member for an invite",
            Self::AlreadyMember => "nothing is left to do; `group list` shows the group",
            Self::Revoked => {
                "make a new device with `init` in another directory, and have it invited"
            }
            Self::RelayKeyChanged { .. } => RELAY_KEY,
            Self::UnknownRelay => "reach the relay once, with `listen` or `watch`, and try again",
            Self::TooLong => "write less at once, in several messages",
            Self::OutboxFull => "connect with `watch` until the outbox is empty, and try again",
            Self::Recipients => MEMBERS,
            Self::NoJoinKey | Self::NoKey => {
                "stay connected with `listen` or `watch` until a member who is there gives it"
            }
            Self::Format(_) => {
                "do it in a group of the other kind; `group list` shows which is which"
            }
            Self::NoSuchRequest => {
                "look at `group members` for who asks, or wait until they ask again"
            }
            Self::Recovery(error) => error.advice(),
            Self::Wire(error) => error.advice(),
            Self::Refused(code) => of_code(*code),
            Self::Cloned => CLONE,
            Self::InviterUnknown => {
                "leave it with `group leave`, ask whoever invited you for the link by another way, and \
                 compare fingerprints: the link was changed, or the relay lies"
            }
            Self::Timeout => {
                "see that the relay is reached, give it longer with --wait, or try again"
            }
            Self::Unknown => "look at `group list` and the inbox for whether it was sent",
            Self::Ledger(error) => error.advice(),
            Self::Stopped => AGAIN,
        }
    }
}

impl Advice for StoreError {
    fn advice(&self) -> &'static str {
        match self {
            Self::Busy => "end the other program that has the file open, or try again",
            Self::Full => "make room on the disk, and try again",
            Self::Damaged => {
                "keep a copy of the file; then restore this device with `recovery restore` in another \
                 directory, or make a new one and have it let in"
            }
            Self::Newer => UPDATE,
            Self::OtherDevice => {
                "put the files of one device together again, or name it with --dir"
            }
            Self::Io => "see that the file is there, may be written, and its disk works",
        }
    }
}

impl Advice for KeyFileError {
    fn advice(&self) -> &'static str {
        match self {
            Self::Missing => "make a device with `init`, or name its directory with --dir",
            Self::Exists => "name another directory with --dir, or use the device that is there",
            Self::Exposed => "run `chmod 600` on the file, and consider who may have read it",
            Self::Damaged => "put the file back from a backup, or restore with `recovery restore`",
            Self::PassphraseNeeded => "type the passphrase, or set SEALWIRE_PASSPHRASE",
            Self::PassphraseWrong => "type the passphrase again",
            Self::NoKeychain => "unlock the keychain and try again, or use --passphrase",
            Self::KeychainLeftOut => "use --passphrase, or a build with the feature `keychain`",
            Self::NotInKeychain => {
                "use the account and machine on which the device was made, or `recovery restore` in \
                 another directory"
            }
            Self::Io(_) => "see that the directory may be read and written, and its disk works",
            Self::NoRandomness(_) => RANDOMNESS,
        }
    }
}

impl Advice for AddressError {
    fn advice(&self) -> &'static str {
        match self {
            Self::Malformed | Self::Scheme | Self::Extra | Self::TooLong => ADDRESS,
            Self::Plaintext => "use the relay's wss:// address",
        }
    }
}

impl Advice for InviteError {
    fn advice(&self) -> &'static str {
        match self {
            Self::Malformed => "copy the link whole, from sealwire:// to its end, in quotes",
            Self::Version => UPDATE,
            Self::Relay(_) => INVITE,
            Self::Log => {
                "ask for an invite to a native group; one of the Totals app is joined by its id"
            }
        }
    }
}

impl Advice for LedgerError {
    fn advice(&self) -> &'static str {
        match self {
            Self::Amount => "name an amount above zero; what was paid back is written by `settle`",
            Self::Split => "name who shares it with --split",
            Self::Reason => "say in fewer words what it was for",
            Self::NoSuchExpense => "look at `expense list` for the expenses that there are",
            Self::NothingToChange => "look at `expense list`: it is as you want it already",
            Self::EndOfTime => {
                "write down the opposite with `expense add`: nobody can change or delete this one any more"
            }
            Self::Oneself => "name another member; `group members` shows them",
            Self::NobodyOwes => "look at `balances` for who owes whom",
            Self::NoRandomness(_) => RANDOMNESS,
        }
    }
}

impl Advice for MoneyError {
    fn advice(&self) -> &'static str {
        match self {
            Self::Number | Self::Digits => {
                "write the amount like 12 or 12.50, as the currency has it"
            }
            Self::TooLarge => "write a smaller amount, or several",
            Self::Currency => "write the currency as three letters, like ETB",
        }
    }
}

impl Advice for CodeError {
    fn advice(&self) -> &'static str {
        match self {
            Self::Malformed | Self::Check => {
                "compare it with what was written down, and type it again"
            }
        }
    }
}

impl Advice for RecoveryVaultError {
    fn advice(&self) -> &'static str {
        match self {
            Self::Pin | Self::Digits => "choose a longer PIN, of digits alone for the Totals app",
            Self::Format => {
                "add --totals for a code of the Totals app, and leave it out for another"
            }
            Self::WrongPin => {
                "try again, but not often: after five wrong ones nobody gets at it for an hour"
            }
            Self::Newer => UPDATE,
            Self::Damaged => {
                "make a new one with `recovery setup` on a device that still works, or ask the members \
                 for a new invite"
            }
            Self::TooLong => "leave groups that you do not need any more, and try again",
            Self::NoRandomness(_) => RANDOMNESS,
        }
    }
}

impl Advice for RecoveryError {
    fn advice(&self) -> &'static str {
        match self {
            Self::Code(error) => error.advice(),
            Self::Vault(error) => error.advice(),
            Self::Wire(error) => error.advice(),
            Self::Missing => {
                "compare code and relay with what was written down; a device that still works makes a \
                 new one with `recovery setup`"
            }
            Self::Locked(_) => {
                "wait until then; whoever still has the device ends it with `recovery change-pin`"
            }
            Self::Taken => "make another code with `recovery setup`",
            Self::Unfinished => {
                "run `recovery restore` for this device again while another member of each group is there, \
                 and then try again"
            }
            Self::Changed => {
                "see whether another program of this device does the same, and try again"
            }
            Self::Elsewhere(_) => "run `recovery delete` again when that relay is reached",
            Self::Handover(error) => error.advice(),
            Self::Refused(_) => "ask the relay's operator, or name another relay with --relay",
        }
    }
}

impl Advice for WireError {
    fn advice(&self) -> &'static str {
        match self {
            Self::NoAddress => {
                "see that the relay's address is spelled right and the network is there"
            }
            Self::Io(_) | Self::Timeout(_) | Self::Silent | Self::SetAside => {
                "see that the network and the relay are there, and try again"
            }
            Self::Upgrade(_) | Self::NotARelay | Self::Frame(_) => {
                "see that the address is that of a relay, and that no sign-in page is in the way"
            }
            Self::NoTls => "use a build with the feature `tls`",
            Self::Tls => {
                "see that this machine's clock is right and the address is the relay's own; then ask its \
                 operator about the certificate"
            }
            Self::Version { .. } => UPDATE,
            Self::RelayKeyChanged { .. } | Self::RelayProof => RELAY_KEY,
            Self::Refused(failure) => of_code(failure.code),
            Self::Closed(Some(CloseReason::Superseded)) => {
                "let one program of this device be connected at a time"
            }
            Self::Closed(_) => AGAIN,
            Self::NoRandomness => RANDOMNESS,
        }
    }
}

impl Advice for SyncError {
    fn advice(&self) -> &'static str {
        match self {
            Self::Store(error) => match error {
                StoreError::Busy => "end the long transaction of the app, and try again",
                StoreError::Full => "make room on the disk, and try again",
                StoreError::Damaged => {
                    "keep a copy of the app's database, and have SQLite check it (PRAGMA \
                     integrity_check)"
                }
                StoreError::Newer => UPDATE,
                StoreError::OtherDevice => "use the device that has attached it, named with --dir",
                StoreError::Io => "see that the app's database is there and may be written",
            },
            Self::Schema(error) => error.advice(),
            Self::Vault(error) => error.advice(),
            Self::Changeset(error) => error.advice(),
            Self::OtherDevice => "use the device that has attached it, named with --dir",
            Self::OtherVault => "leave it in its vault, or take another database",
            Self::OtherOffer => {
                "have the new device accept the offer anew, straight from this one; ask for it, and \
                 enrol, with the same --another-persons or both without"
            }
            Self::OtherScope => {
                "leave this database as it is, or take the offer with another one of the app's"
            }
            Self::NoVault => "make one with `vault create`, or take an offer with `vault attach`",
            Self::NotAttached => "attach it with `vault attach`, and name its tables with --table",
            Self::Code => "copy the code whole, in quotes, as the other device has printed it",
            Self::Running => "a `vault sync --watch` may be running: end it, or leave it to that",
            Self::Cloned => CLONE,
            Self::NotEnrolled => {
                "if this device is new, enrol it with `vault enrol` where the vault is"
            }
            Self::RolledBack => "have the app's trigger pass rows that come from other devices",
            Self::Stopped => AGAIN,
        }
    }
}

impl Advice for SchemaError {
    fn advice(&self) -> &'static str {
        match self {
            Self::NoTable(_) => "let the app make its tables first, and spell the name as it does",
            Self::TooLarge(_) => "name each table once, with fewer columns and shorter names",
            Self::NoKey(_) => "give the table a primary key of random ids",
            Self::IntegerKey(_) => {
                "give the rows random ids, or say that the app chooses the numbers"
            }
            Self::Collation(_) => "make the key compare byte by byte, without `collate`",
            Self::Unique(_) => "drop the unique index, or make its columns the primary key",
            Self::NoColumn(..) => "spell the column as the table has it; the key cannot be private",
            Self::PrivateNeedsDefault(..) => {
                "let the column be null, or give it a constant default"
            }
            Self::ScopeChanged(_) => "make a new column or table, and move what is in the old one",
        }
    }
}

impl Advice for ChangesetError {
    fn advice(&self) -> &'static str {
        match self {
            Self::Newer => UPDATE,
            Self::Malformed => REPORT,
        }
    }
}

impl Advice for VaultError {
    fn advice(&self) -> &'static str {
        match self {
            Self::Wire(error) => error.advice(),
            Self::Answer => "see that the address is that of a relay, and that it is up to date",
            Self::Forked => {
                "stop here, compare `vault status` on all devices, and ask the relay's operator: it may \
                 have been set back, or lies"
            }
            Self::Withheld => {
                "ask the relay's operator, and sync again while another device of the vault is there"
            }
            Self::Spoiled => {
                "sync again in a while; if it goes on, ask the relay's operator, whose disk may be damaged"
            }
            Self::NoKey => "sync while another device of the vault is there, which gives it",
            Self::OldScope => {
                "found the vault anew with a database that still has what is private; until then the lost \
                 device's key is kept, and it is not ended in this vault"
            }
            Self::TooLong => "write smaller rows, or fewer in one transaction",
            Self::Contended | Self::Outdated => AGAIN,
            Self::Snapshot(error) => error.advice(),
            Self::Store => "see that the app's database may be written and its disk has room",
            Self::NoRandomness(_) => RANDOMNESS,
        }
    }
}

impl Advice for SnapshotError {
    fn advice(&self) -> &'static str {
        match self {
            Self::TooLong => "use a device with more room, or delete rows that nobody needs",
            Self::Digest | Self::Damaged | Self::Head => {
                "sync while another device of the vault is there: it makes another one"
            }
        }
    }
}

/// What to do about a refusal of the relay's.
fn of_code(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::Unavailable
        | ErrorCode::Draining
        | ErrorCode::RateLimited
        | ErrorCode::TooManyInFlight
        | ErrorCode::Stale
        | ErrorCode::OutOfOrder
        | ErrorCode::AckPastHead
        | ErrorCode::NotSubscribed => AGAIN,
        ErrorCode::TooManyInstances => "end other programs of this device, and try again",
        ErrorCode::TooManySubscriptions | ErrorCode::GroupLimitReached => {
            "leave groups that you do not need any more"
        }
        ErrorCode::TooLarge => "write less at once",
        ErrorCode::VersionUnsupported | ErrorCode::UnknownFrame | ErrorCode::Unsupported => {
            "install newer versions of this program and of the relay"
        }
        ErrorCode::AuthenticationFailed | ErrorCode::NotAuthenticated => {
            "see that this machine's clock and the relay's address are right, and try again"
        }
        ErrorCode::NoSuchLog => {
            "see that the relay is the right one, and ask a member whether this device is still in"
        }
        ErrorCode::InviteInvalid => INVITE,
        ErrorCode::BadAudience => MEMBERS,
        ErrorCode::Conflict => CLONE,
        ErrorCode::Revoked => {
            "make a new device with `init` in another directory, and have it let in"
        }
        ErrorCode::AlreadyMember => "nothing is left to do",
        ErrorCode::GroupFull => "have somebody leave, or found another group",
        ErrorCode::Quota => "have the members who were away connect: what they take is freed",
        ErrorCode::EntriesLimitReached
        | ErrorCode::BytesLimitReached
        | ErrorCode::SnapshotsLimitReached => {
            "sync on two devices, so that a snapshot is made and confirmed; then ask the relay's operator"
        }
        ErrorCode::DevicesLimitReached => "remove a device with `vault revoke`",
        ErrorCode::NoSuchSnapshot | ErrorCode::BadSnapshot => {
            "sync while another device of the vault is there: it makes another one"
        }
        ErrorCode::HistoryChanged => {
            "read again with `listen` or `vault sync`, and ask the relay's operator what was restored"
        }
        ErrorCode::Malformed
        | ErrorCode::BadHeader
        | ErrorCode::BadBody
        | ErrorCode::BadControl
        | ErrorCode::BadSignature => REPORT,
        ErrorCode::Internal => "look at the relay's log, or ask its operator",
        // And what a newer relay may say.
        ErrorCode::Unknown | _ => UPDATE,
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use sealwire_protocol::{DeviceKey, Failure};

    use super::*;
    use crate::address::RelayUrl;
    use crate::identity::NoRandomness;
    use crate::recovery::Format;
    use crate::wire::Step;

    /// Whether it is a sentence that fits behind another one.
    fn is_advice(text: &str) -> bool {
        text.len() > 15 && !text.ends_with('.') && text == text.trim() && !text.contains("  ")
    }

    #[test]
    fn every_refusal_of_a_relay_says_what_to_do_next() {
        assert_eq!(Error::Refused(ErrorCode::Unknown).advice(), UPDATE);
        for code in ErrorCode::ALL.iter().copied() {
            let refused = Error::Refused(code).advice();
            let known = code == ErrorCode::Unknown || refused != UPDATE;
            assert!(is_advice(refused) && known, "{}", code.name());
            assert_eq!(WireError::from(Failure::new(code)).advice(), refused);
        }
    }

    #[test]
    fn every_error_of_a_device_says_what_to_do_next() {
        let key = DeviceKey([1; 32]);
        let mut errors = vec![
            Error::NoRandomness(NoRandomness),
            Error::Directory,
            Error::NoSuchLog,
            Error::NotAMember,
            Error::AlreadyMember,
            Error::Revoked,
            Error::RelayKeyChanged { pinned: key, presented: key },
            Error::UnknownRelay,
            Error::TooLong,
            Error::OutboxFull,
            Error::Recipients,
            Error::NoJoinKey,
            Error::NoKey,
            Error::Format("not here"),
            Error::NoSuchRequest,
            Error::Cloned,
            Error::Timeout,
            Error::Unknown,
            Error::Stopped,
        ];
        errors.extend(stores().map(Error::Store));
        errors.extend(wires().into_iter().map(Error::Wire));
        let files = [
            KeyFileError::Missing,
            KeyFileError::Exists,
            KeyFileError::Exposed,
            KeyFileError::Damaged,
            KeyFileError::PassphraseNeeded,
            KeyFileError::PassphraseWrong,
            KeyFileError::NoKeychain,
            KeyFileError::KeychainLeftOut,
            KeyFileError::NotInKeychain,
            KeyFileError::Io(ErrorKind::Other),
            KeyFileError::NoRandomness(NoRandomness),
        ];
        errors.extend(files.map(Error::KeyFile));
        let addresses = [
            AddressError::Malformed,
            AddressError::Scheme,
            AddressError::Extra,
            AddressError::Plaintext,
            AddressError::TooLong,
        ];
        errors.extend(addresses.map(Error::Address));
        let relay = InviteError::Relay(AddressError::Scheme);
        let invites = [InviteError::Malformed, InviteError::Version, relay, InviteError::Log];
        errors.extend(invites.map(Error::Invite));
        let vaults = [
            RecoveryVaultError::Pin,
            RecoveryVaultError::Digits,
            RecoveryVaultError::Format,
            RecoveryVaultError::WrongPin,
            RecoveryVaultError::Newer,
            RecoveryVaultError::Damaged,
            RecoveryVaultError::TooLong,
            RecoveryVaultError::NoRandomness(NoRandomness),
        ];
        errors.extend(vaults.map(|error| Error::Recovery(RecoveryError::Vault(error))));
        let recoveries = [
            RecoveryError::Code(CodeError::Malformed),
            RecoveryError::Code(CodeError::Check),
            RecoveryError::Wire(WireError::Silent),
            RecoveryError::Missing,
            RecoveryError::Locked(None),
            RecoveryError::Taken,
            RecoveryError::Unfinished,
            RecoveryError::Changed,
            RecoveryError::Elsewhere(RelayUrl::parse("wss://relay.example").expect("an address")),
            RecoveryError::Handover(VaultError::Forked),
            RecoveryError::Refused("teapot".to_owned()),
        ];
        errors.extend(recoveries.map(Error::Recovery));
        let ledger = [
            LedgerError::Amount,
            LedgerError::Split,
            LedgerError::Reason,
            LedgerError::NoSuchExpense,
            LedgerError::NothingToChange,
            LedgerError::EndOfTime,
            LedgerError::Oneself,
            LedgerError::NobodyOwes,
            LedgerError::NoRandomness(NoRandomness),
        ];
        errors.extend(ledger.map(Error::Ledger));
        for error in errors {
            assert!(is_advice(error.advice()), "{error}: {}", error.advice());
        }
        use MoneyError::{Currency, Digits, Number, TooLarge};
        for error in [Number, Digits, TooLarge, Currency] {
            assert!(is_advice(error.advice()), "{error}: {}", error.advice());
        }
    }

    #[test]
    fn every_error_of_a_vault_says_what_to_do_next() {
        let name = || "tasks".to_owned();
        let mut errors = vec![
            SyncError::OtherDevice,
            SyncError::OtherVault,
            SyncError::OtherOffer,
            SyncError::OtherScope,
            SyncError::NoVault,
            SyncError::NotAttached,
            SyncError::Code,
            SyncError::Running,
            SyncError::Cloned,
            SyncError::NotEnrolled,
            SyncError::RolledBack,
            SyncError::Stopped,
            SyncError::Changeset(ChangesetError::Newer),
            SyncError::Changeset(ChangesetError::Malformed),
        ];
        errors.extend(stores().map(SyncError::Store));
        let schemas = [
            SchemaError::NoTable(name()),
            SchemaError::TooLarge(name()),
            SchemaError::NoKey(name()),
            SchemaError::IntegerKey(name()),
            SchemaError::Collation(name()),
            SchemaError::Unique(name()),
            SchemaError::NoColumn(name(), name()),
            SchemaError::PrivateNeedsDefault(name(), name()),
            SchemaError::ScopeChanged(name()),
        ];
        errors.extend(schemas.map(SyncError::Schema));
        let snapshots = [
            SnapshotError::TooLong,
            SnapshotError::Digest,
            SnapshotError::Damaged,
            SnapshotError::Head,
        ];
        errors.extend(snapshots.map(|error| SyncError::Vault(VaultError::Snapshot(error))));
        let vaults = [
            VaultError::Wire(WireError::Silent),
            VaultError::Answer,
            VaultError::Forked,
            VaultError::NoKey,
            VaultError::OldScope,
            VaultError::TooLong,
            VaultError::Contended,
            VaultError::Outdated,
            VaultError::Store,
            VaultError::NoRandomness(NoRandomness),
        ];
        errors.extend(vaults.map(SyncError::Vault));
        for error in errors {
            assert!(is_advice(error.advice()), "{error}: {}", error.advice());
        }
    }

    #[test]
    fn what_is_wrong_with_the_apps_database_is_not_blamed_on_the_devices_file() {
        let error = SyncError::Store(StoreError::Io);
        assert!(error.to_string().contains("database"), "{error}");
        assert!(error.advice().contains("app's database"));
        assert!(!error.to_string().contains("device's file"), "{error}");
    }

    #[test]
    fn a_code_of_the_wrong_kind_says_which_word_is_missing() {
        let code = crate::recovery::RecoveryCode::generate(Format::Totals).expect("randomness");
        let error = crate::recovery::sealed::Locator::of(&code).err().expect("of the app");
        assert!(error.advice().contains("--totals"));
    }

    fn stores() -> impl Iterator<Item = StoreError> {
        use StoreError::{Busy, Damaged, Full, Io, Newer, OtherDevice};
        [Busy, Full, Damaged, Newer, OtherDevice, Io].into_iter()
    }

    fn wires() -> Vec<WireError> {
        let key = DeviceKey([1; 32]);
        vec![
            WireError::NoAddress,
            WireError::Io(ErrorKind::Other),
            WireError::Timeout(Step::Answer),
            WireError::Upgrade(404),
            WireError::NoTls,
            WireError::Tls,
            WireError::NotARelay,
            WireError::Version { lowest: 2, highest: 3 },
            WireError::RelayKeyChanged { pinned: key, presented: key },
            WireError::RelayProof,
            WireError::Closed(None),
            WireError::Closed(Some(CloseReason::Superseded)),
            WireError::NoRandomness,
            WireError::Silent,
            WireError::SetAside,
        ]
    }
}
