//! Relays and members that lie, lose or withhold.

use sealwire_client::device::Outgoing;
use sealwire_client::entry::{Outline, Rejection};
use sealwire_client::error::Error;
use sealwire_client::event::{Event, Unreadable};
use sealwire_client::identity::Identity;
use sealwire_client::wire::{self, Options, Wire};
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::frame::Append;
use sealwire_protocol::header::HeaderBytes;
use sealwire_protocol::{Audience, Digest, Head, Kind, LogId, RelayFrame};

use crate::relay::Relay;
use crate::world::{Person, SOON, World, until};

async fn rejection(person: &mut Person) -> Rejection {
    person
        .event("a rejection", |event| {
            if let Event::Rejected { reason, .. } = event { Some(*reason) } else { None }
        })
        .await
}

#[tokio::test]
async fn a_body_that_was_changed_on_the_way_is_rejected_and_the_log_goes_on() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    ben.disconnect().await;
    let seq = anna.say_for_good(log, "spoiled").await;
    anna.say_for_good(log, "whole").await;
    world.relay.spoil(ben.key(), log, seq);
    ben.connect().await;
    assert_eq!(rejection(&mut ben).await, Rejection::Body);
    assert_eq!(ben.hears().await, "whole");
    let head = world.relay.head(log).seq;
    until("an ack", async || world.relay.acked(log, ben.key()).highest() >= head).await;
    assert_eq!(world.relay.acked(log, ben.key()).floor(), seq - 1, "its body is kept");
}

#[tokio::test]
async fn an_entry_that_came_spoiled_is_given_when_a_later_copy_is_whole() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    ben.disconnect().await;
    let seq = anna.say_for_good(log, "spoiled").await;
    anna.say_for_good(log, "whole").await;
    world.relay.spoil(ben.key(), log, seq);
    ben.connect().await;
    assert_eq!(rejection(&mut ben).await, Rejection::Body);
    assert_eq!(ben.hears().await, "whole");
    world.relay.mend(ben.key(), log, seq);
    assert_eq!(ben.hears().await, "spoiled", "on the same connection, without being asked");
    let head = world.relay.head(log).seq;
    until("an ack", async || world.relay.acked(log, ben.key()).floor() >= head).await;
    assert_eq!(ben.inbox(log).await, ["whole", "spoiled"], "and once");
    anna.say(log, "and on").await;
    assert_eq!(ben.hears().await, "and on");
}

#[tokio::test]
async fn a_member_whose_joining_came_spoiled_is_one_when_a_later_copy_is_whole() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let before = anna.say_for_good(log, "before").await;
    assert_eq!(ben.hears().await, "before");
    ben.disconnect().await;
    world.relay.spoil(ben.key(), log, before + 1);
    let mut cleo = world.online("cleo").await;
    let invite = anna.device.invite(log).await.expect("an invite");
    cleo.join(&invite).await;
    ben.connect().await;
    assert_eq!(rejection(&mut ben).await, Rejection::Body);
    assert_eq!(ben.members(log).await.len(), 2);
    world.relay.mend(ben.key(), log, before + 1);
    ben.sees_members(log, &[anna.key(), ben.key(), cleo.key()]).await;
    cleo.say(log, "hello").await;
    assert_eq!(ben.hears().await, "hello");
    assert_eq!(ben.inbox(log).await, ["before", "hello"], "nothing is told twice");
}

#[tokio::test]
async fn a_newcomer_takes_no_key_where_its_inviter_never_was() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let mut invite = anna.device.invite(log).await.expect("an invite");
    // The relay cannot make such a link for its own members; and it cannot show a member that is none.
    invite.inviter = Identity::generate().expect("randomness").key();
    let mut cleo = world.online("cleo").await;
    cleo.device.join(&invite).await.expect("joining");
    let stranger = cleo.device.wait_ready(log, SOON).await;
    assert!(matches!(stranger, Err(Error::InviterUnknown)), "{stranger:?}");
    cleo.event("a warning", |event| matches!(event, Event::InviterUnknown { .. }).then_some(()))
        .await;
    let sent = cleo.device.send(log, Outgoing::to_all("secret")).await;
    assert!(matches!(sent, Err(Error::InviterUnknown)), "{sent:?}");
    // Those who are there give it the key, and it is not taken.
    assert_eq!(rejection(&mut cleo).await, Rejection::Keys);
    let info = cleo.device.log(log).await.expect("a log");
    assert!(!info.holds_key && info.unsent == 0);
    let left = cleo.device.leave(log).await.expect("leaving");
    cleo.device.wait_appended(left, SOON).await.expect("left");
    anna.sees_members(log, &[anna.key(), ben.key()]).await;
}

#[tokio::test]
async fn a_newcomer_is_told_that_its_inviter_is_gone() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let invite = ben.device.invite(log).await.expect("an invite");
    let left = ben.device.leave(log).await.expect("leaving");
    ben.device.wait_appended(left, SOON).await.expect("left");
    let mut cleo = world.online("cleo").await;
    cleo.join(&invite).await;
    let gone = cleo
        .event("a warning", |event| {
            if let Event::InviterGone { inviter, .. } = event { Some(*inviter) } else { None }
        })
        .await;
    assert_eq!(gone, ben.key());
    anna.say(log, "hello").await;
    assert_eq!(cleo.hears().await, "hello");
}

/// A member that speaks for itself, past the SDK's rules.
struct Rogue {
    device: Identity,
    wire: Wire,
    log: LogId,
    count: u64,
    prev: Digest,
}

impl Rogue {
    /// Joins by an invite.
    async fn join(relay: &Relay, person: &Person, log: LogId) -> Self {
        let invite = person.device.invite(log).await.expect("an invite");
        let device = Identity::generate().expect("randomness");
        let (wire, _) =
            wire::connect(&relay.url, &device, &Options::default()).await.expect("connected");
        let signature = invite.seed.admit(log, device.key());
        let mut rogue = Self { device, wire, log, count: 0, prev: Digest::ZERO };
        let join = sealwire_protocol::Control::Join { signature };
        rogue.append(Kind::Control, Head::NONE, &join.encode()).await;
        rogue
    }

    async fn append(&mut self, kind: Kind, seen: Head, body: &[u8]) {
        let outline = Outline {
            log: self.log,
            count: self.count + 1,
            prev: self.prev,
            kind,
            recipients: Vec::new(),
            seen,
        };
        let signed = outline.sign(&self.device, body).expect("short");
        let answer = self.wire.request(&Append { entry: signed.entry }.into()).await;
        assert!(matches!(answer, Ok(RelayFrame::Appended(_))), "{answer:?}");
        self.count += 1;
        self.prev = signed.digest;
    }
}

#[tokio::test]
async fn a_poisoned_entry_stops_nothing() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let mut rogue = Rogue::join(&world.relay, &anna, log).await;
    rogue.append(Kind::Ring, Head::NONE, b"").await;
    rogue.append(Kind::Ring, Head::NONE, b"no sealed body at all").await;
    rogue.append(Kind::Ring, Head::NONE, &[1; 400]).await;
    rogue.append(Kind::Bulk, Head::NONE, &vec![0; 100_000]).await;
    anna.say(log, "undisturbed").await;
    for _ in 0..4 {
        let reason = ben
            .event("an unreadable entry", |event| {
                if let Event::Unreadable { reason, .. } = event { Some(*reason) } else { None }
            })
            .await;
        assert_eq!(reason, Unreadable::Damaged);
    }
    assert_eq!(ben.hears().await, "undisturbed");
}

#[tokio::test]
async fn a_rotation_by_somebody_who_had_not_seen_the_newest_is_not_believed() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let mut rogue = Rogue::join(&world.relay, &anna, log).await;
    // The relay here does not look into key bodies: the receivers do.
    let garbage = [0xc1; 50];
    let head = world.relay.head(log);
    rogue.append(Kind::Key, head, &garbage).await;
    assert_eq!(rejection(&mut ben).await, Rejection::Keys);
    anna.say(log, "undisturbed").await;
    assert_eq!(ben.hears().await, "undisturbed");
    let epoch = ben.device.log(log).await.expect("a log").epoch;
    assert_eq!(epoch, 1);
}

#[tokio::test]
async fn an_entry_that_was_withheld_shows_in_the_next_one() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    ben.disconnect().await;
    anna.say_to(log, &[&ben], "first").await;
    let withheld = anna.say_to(log, &[&ben], "withheld").await;
    let seq = anna.appended(withheld).await;
    world.relay.withhold(ben.key(), log, seq);
    let last = anna.say_to(log, &[&ben], "third").await;
    anna.appended(last).await;
    let count = world.relay.entries(log)[seq as usize - 1].header.count;
    ben.connect().await;
    assert_eq!(ben.hears().await, "first");
    let missing = ben
        .event("a missing entry", |event| {
            if let Event::Missing { sender, count, .. } = event {
                Some((*sender, *count))
            } else {
                None
            }
        })
        .await;
    assert_eq!(missing, (anna.key(), count));
    assert_eq!(ben.hears().await, "third");
}

#[tokio::test]
async fn a_relay_that_shows_another_chain_is_caught() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    world.relay.fork(ben.key());
    world.relay.kick();
    let sender = ben
        .event("a fork", |event| {
            if let Event::Forked { sender, .. } = event { Some(*sender) } else { None }
        })
        .await;
    assert_eq!(sender, None, "the relay's own word shows it");
    let _ = anna.say(log, "x").await;
}

#[tokio::test]
async fn a_member_that_was_shown_another_history_gives_itself_away() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let mut rogue = Rogue::join(&world.relay, &anna, log).await;
    let head = world.relay.head(log);
    let elsewhere = Head { chain: Digest([7; 32]), ..head };
    anna.say_for_good(log, "in between").await;
    rogue.append(Kind::Quiet, elsewhere, b"?").await;
    let by = ben
        .event("a fork", |event| {
            if let Event::Forked { sender, seq, .. } = event { Some((*sender, *seq)) } else { None }
        })
        .await;
    assert_eq!(by, (Some(rogue.device.key()), head.seq));
}

#[tokio::test]
async fn a_relay_that_lost_history_deletes_nothing_here_and_is_given_it_again() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let kept = anna.say_for_good(log, "before the backup").await;
    anna.say_for_good(log, "lost 1").await;
    anna.say_for_good(log, "lost 2").await;
    assert_eq!(ben.hears().await, "before the backup");
    assert_eq!(ben.hears().await, "lost 1");
    assert_eq!(ben.hears().await, "lost 2");
    ben.catches_up(&world.relay, log).await;

    world.relay.restore_to(log, kept);
    for person in [&mut anna, &mut ben] {
        person
            .event("the change", |event| {
                matches!(event, Event::HistoryChanged { .. }).then_some(())
            })
            .await;
    }
    assert_eq!(ben.inbox(log).await, ["before the backup", "lost 1", "lost 2"]);
    // The next entry brings back those that the relay had lost; nobody is told them twice.
    anna.say_for_good(log, "after the restore").await;
    assert_eq!(ben.hears().await, "after the restore");
    let texts = ben.inbox(log).await;
    assert_eq!(texts, ["before the backup", "lost 1", "lost 2", "after the restore"]);
    let counts: Vec<u64> = world
        .relay
        .entries(log)
        .iter()
        .filter(|stored| stored.header.sender == anna.key())
        .map(|stored| stored.header.count)
        .collect();
    assert_eq!(counts, (1..=counts.len() as u64).collect::<Vec<_>>());
    anna.sees_members(log, &[anna.key(), ben.key()]).await;
    ben.say(log, "all well").await;
    assert_eq!(anna.hears().await, "all well");
}

#[tokio::test]
async fn what_happens_in_the_place_of_lost_history_is_news() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    let invite = anna.device.invite(log).await.expect("an invite");
    let kept = anna.say_for_good(log, "kept").await;
    for n in 0..10 {
        anna.say_for_good(log, &n.to_string()).await;
    }
    ben.catches_up(&world.relay, log).await;
    ben.disconnect().await;
    world.relay.restore_to(log, kept);
    // While ben is away, others go on where the relay was set back to.
    let mut cleo = world.online("cleo").await;
    cleo.join(&invite).await;
    anna.disconnect().await;
    ben.connect().await;
    let newcomer = cleo.key();
    let seq = ben
        .event("a new member", |event| {
            if let Event::Joined { device, seq, .. } = event {
                (*device == newcomer).then_some(*seq)
            } else {
                None
            }
        })
        .await;
    assert!(seq <= kept + 10, "where something else had stood");
    ben.sees_members(log, &[anna.key(), ben.key(), cleo.key()]).await;
    ben.say(log, "hello, cleo").await;
    // What the relay had lost is sent again, too, and cleo is a member by now.
    while cleo.hears().await != "hello, cleo" {}
}

#[tokio::test]
async fn below_a_floor_members_are_known_from_control_entries_alone() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    for n in 0..5 {
        anna.say_for_good(log, &n.to_string()).await;
        ben.hears().await;
    }
    let mut cleo = world.offline("cleo").await;
    let invite = anna.device.invite(log).await.expect("an invite");
    world.relay.raise_floor(log, world.relay.head(log).seq);
    cleo.connect().await;
    cleo.join(&invite).await;
    cleo.sees_members(log, &[anna.key(), ben.key(), cleo.key()]).await;
    anna.say(log, "above the floor").await;
    assert_eq!(cleo.hears().await, "above the floor");
    cleo.catches_up(&world.relay, log).await;
    cleo.say(log, "heard").await;
    assert_eq!(anna.hears().await, "heard");
}

#[tokio::test]
async fn a_device_that_comes_back_below_the_floor_goes_on_from_it() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    ben.disconnect().await;
    let mut seq = 0;
    for n in 0..5 {
        seq = anna.say_for_good(log, &n.to_string()).await;
    }
    for n in 3..=seq {
        world.relay.expire(log, n);
    }
    world.relay.raise_floor(log, seq - 1);
    ben.connect().await;
    anna.say(log, "after the floor").await;
    assert_eq!(ben.hears().await, "after the floor");
    ben.catches_up(&world.relay, log).await;
    ben.say(log, "heard").await;
    assert_eq!(anna.hears().await, "heard");
}

#[tokio::test]
async fn a_relay_that_forgot_the_group_takes_nothing_away() {
    let world = World::start().await;
    let (mut anna, mut ben) = (world.online("anna").await, world.online("ben").await);
    let log = world.group(&mut [&mut anna, &mut ben]).await;
    anna.say_for_good(log, "remembered").await;
    ben.hears().await;
    // Ben's joining is lost: the relay knows no such member.
    world.relay.restore_to(log, 2);
    let code =
        ben.event("the end", |event| {
            if let Event::Ended { code, .. } = event { Some(*code) } else { None }
        })
        .await;
    assert_eq!(code, ErrorCode::NoSuchLog);
    assert_eq!(ben.inbox(log).await, ["remembered"]);
    assert_eq!(ben.members(log).await.len(), 2);
    let _ = SOON;
}

#[test]
fn a_header_says_no_more_than_it_must() {
    // What the relay reads of an entry: nothing of the body, and of the audience only a hash.
    let device = Identity::from_seed(&[1; 32]);
    let outline = Outline {
        log: LogId([1; 16]),
        count: 1,
        prev: Digest::ZERO,
        kind: Kind::Ring,
        recipients: vec![device.key()],
        seen: Head::NONE,
    };
    let signed = outline.sign(&device, b"body").expect("short");
    let header = HeaderBytes(signed.entry.header.0).decode().expect("a header");
    assert_eq!(header.audience, Audience::of(&[device.key()]));
}
