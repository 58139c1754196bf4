//! Phones and devices with a session are members of one group, at once and alike.

use sealwire_protocol::bounded::BoundedText;
use sealwire_protocol::frame::{
    Append, CreateTotals, JoinTotals, Joined, LeaveTotals, ListMembers, SetPushToken,
};
use sealwire_protocol::{Control, DeviceKey, ErrorCode, Kind, LogId, RelayFrame};
use serde_json::json;

use crate::support::device::Device;
use crate::support::on_both_databases;
use crate::support::phone::Phone;
use crate::support::place::Database;
use crate::support::view::Item;
use crate::support::world::World;

on_both_databases!(
    a_phone_and_a_session_share_a_group,
    a_group_that_a_session_made_is_one_like_any_other,
    what_does_not_belong_into_a_totals_group_is_refused,
    a_body_goes_when_phones_and_sessions_have_acked_it,
);

async fn joined(device: &mut Device, log: LogId) -> Joined {
    match device.request(JoinTotals { log }).await {
        Ok(RelayFrame::Joined(joined)) => joined,
        other => panic!("joining was answered with {other:?}"),
    }
}

/// Sends a payload of the app over a session.
async fn send(
    device: &mut Device,
    log: LogId,
    kind: &str,
    recipients: &[DeviceKey],
    body: &[u8],
) -> Result<u64, ErrorCode> {
    let before = device.view_mut(log).own;
    let mut signed = device.sign(log, Kind::Totals, recipients, body);
    signed.entry.signature = None;
    signed.entry.totals_kind = BoundedText::new(kind);
    match device.request(Append { entry: signed.entry.clone() }).await {
        Ok(RelayFrame::Appended(first)) => {
            // The same again is known by its count, as in every log.
            match device.request(Append { entry: signed.entry }).await {
                Ok(RelayFrame::Appended(again)) => {
                    assert!(again.duplicate && again.seq == first.seq);
                }
                other => panic!("a resend was answered with {other:?}"),
            }
            Ok(first.seq)
        }
        Ok(other) => panic!("a payload was answered with {}", other.name()),
        Err(failure) => {
            device.view_mut(log).own = before;
            Err(failure.code)
        }
    }
}

async fn a_phone_and_a_session_share_a_group(database: Database) {
    let world = World::start(database).await;
    let (alice, bob) = (Phone::new(world.address(), 1), Phone::new(world.address(), 2));
    let mut laptop = world.device(3).await;
    let group = alice.create().await;
    let log = LogId::from_uuid_text(&group).expect("an id");
    bob.join(&group).await.ok();
    alice.send_all(&group, "expense", "00").await.ok();
    let at = joined(&mut laptop, log).await.at;
    assert_eq!(joined(&mut laptop, log).await.at, at, "joining twice changes nothing");
    let members = alice.members(&group).await;
    assert_eq!(members[2].0, laptop.key().to_hex());
    let Ok(RelayFrame::Members(listed)) = laptop.request(ListMembers { log }).await else {
        panic!("no members")
    };
    let times: Vec<u64> = listed.members.iter().map(|member| member.joined_at).collect();
    assert_eq!((times.len(), times[2]), (3, at));

    let mut bobs = bob.listen(&format!("/groups/{group}/pending/stream")).await;
    assert_eq!(bobs.blobs(1).await, ["00"]);
    laptop.follow(log).await;
    // The relay's own entries come first to whoever reads from the beginning.
    let Some(Item::Entry { body, .. }) = laptop.view(log).item(1) else { panic!("no beginning") };
    let found = Control::decode(body).expect("a control entry");
    assert!(matches!(found, Control::TotalsFound { creator, .. } if creator == alice.key()));

    alice.send_all(&group, "expense", "01").await.ok();
    alice.send_to(&group, "key_exchange", &[&bob], "02").await.ok();
    let sent = send(&mut laptop, log, "expense", &[], &[3]).await.expect("appended");
    let to_bob = send(&mut laptop, log, "nudge", &[bob.key()], &[4]).await.expect("appended");
    assert_eq!(to_bob, sent + 1);
    assert_eq!(bobs.blobs(4).await, ["01", "02", "03", "04"]);
    let pending = alice.pending(&group).await;
    assert_eq!(pending.len(), 1);
    assert_eq!(pending[0]["senderPublicKey"], laptop.key().to_hex());
    assert_eq!(
        (&pending[0]["kind"], &pending[0]["encryptedBlob"]),
        (&json!("expense"), &json!("03"))
    );
    laptop.read_to(log, to_bob).await;
    assert_eq!(laptop.view(log).bodies(), [&[1][..]], "not what is its own, or for bob");
    // Over HTTP and over a session, the same acks.
    alice.ack(pending[0]["id"].as_str().expect("an id")).await.ok();
    assert_eq!(alice.pending(&group).await.len(), 0);

    laptop.request(LeaveTotals { log }).await.expect("left");
    assert_eq!(alice.members(&group).await.len(), 2);
    assert_eq!(send(&mut laptop, log, "expense", &[], &[5]).await, Err(ErrorCode::NoSuchLog));
    let again = joined(&mut laptop, log).await;
    assert!(again.at > at);
}

async fn a_group_that_a_session_made_is_one_like_any_other(database: Database) {
    let world = World::start(database).await;
    let bob = Phone::new(world.address(), 2);
    let mut laptop = world.device(3).await;
    let mut changes = bob.listen("/groups/stream").await;
    let Ok(RelayFrame::Joined(made)) = laptop.request(CreateTotals {}).await else {
        panic!("not made")
    };
    assert!(made.log.is_totals());
    assert_eq!(made.head.seq, 1);
    let group = made.log.to_uuid_text();
    let joined = bob.join(&group).await.ok();
    changes.change().await;
    laptop.follow(made.log).await;
    let listed = bob.groups().await;
    assert_eq!(listed[0].1[0].0, laptop.key().to_hex());
    assert_eq!(joined["joinedAt"], listed[0].1[1].1.as_str());
    bob.send_all(&group, "expense", "aa").await.ok();
    laptop.read_to(made.log, 3).await;
    assert_eq!(laptop.view(made.log).bodies(), [&[0xaa][..]]);
    for _ in 0..5 {
        laptop.request(CreateTotals {}).await.expect("made");
    }
    assert_eq!(laptop.refusal(CreateTotals {}).await, ErrorCode::GroupLimitReached);
    let missing = LogId::totals([7; 16]);
    assert_eq!(laptop.refusal(JoinTotals { log: missing }).await, ErrorCode::NoSuchLog);
    assert_eq!(laptop.refusal(LeaveTotals { log: missing }).await, ErrorCode::NoSuchLog);
    let push = |token| SetPushToken {
        platform: BoundedText::new("fcm").expect("short"),
        token: BoundedText::new(token),
    };
    laptop.request(push("a token")).await.expect("noted");
    let kept = world.store().push_token(laptop.key()).await.expect("read");
    assert_eq!(kept, Some(("fcm".to_owned(), "a token".to_owned())));
}

async fn what_does_not_belong_into_a_totals_group_is_refused(database: Database) {
    let world = World::start(database).await;
    let alice = Phone::new(world.address(), 1);
    let mut laptop = world.device(3).await;
    let group = alice.create().await;
    let log = LogId::from_uuid_text(&group).expect("an id");
    joined(&mut laptop, log).await;
    let before = laptop.view_mut(log).own;
    // Kinds and control entries of native groups, and a signature where nothing is signed.
    let join = Control::TotalsJoin { device: laptop.key(), at: 1 }.encode();
    for (kind, body) in [(Kind::Ring, &b"x"[..]), (Kind::Control, &join[..])] {
        let signed = laptop.sign(log, kind, &[], body);
        assert_eq!(
            laptop.send_signed(&signed).await.expect_err("refused").code,
            ErrorCode::Unsupported
        );
        laptop.view_mut(log).own = before;
    }
    let signed = laptop.sign(log, Kind::Totals, &[], b"x");
    assert_eq!(
        laptop.send_signed(&signed).await.expect_err("refused").code,
        ErrorCode::BadSignature
    );
    laptop.view_mut(log).own = before;
    let stranger = DeviceKey([9; 32]);
    let named = send(&mut laptop, log, "nudge", &[stranger], b"x").await;
    assert_eq!(named, Err(ErrorCode::BadAudience));
    assert_eq!(send(&mut laptop, log, "a\0b", &[], b"x").await, Err(ErrorCode::Malformed));
    let native = laptop.found().await.log;
    assert_eq!(send(&mut laptop, native, "expense", &[], b"x").await, Err(ErrorCode::Unsupported));
    assert_eq!(laptop.refusal(JoinTotals { log: native }).await, ErrorCode::NoSuchLog);
    send(&mut laptop, log, "expense", &[], b"x").await.expect("appended");
    assert_eq!(alice.blobs(&group).await, ["78"]);
}

async fn a_body_goes_when_phones_and_sessions_have_acked_it(database: Database) {
    let world = World::start(database).await;
    let (alice, bob) = (Phone::new(world.address(), 1), Phone::new(world.address(), 2));
    let mut laptop = world.device(3).await;
    let group = alice.create().await;
    let log = LogId::from_uuid_text(&group).expect("an id");
    bob.join(&group).await.ok();
    joined(&mut laptop, log).await;
    laptop.follow(log).await;
    alice.send_all(&group, "expense", "01").await.ok();
    let sent = send(&mut laptop, log, "expense", &[], &[2]).await.expect("appended");
    world.until_bodies(log, &[sent - 1, sent]).await;
    let ids: Vec<String> = bob
        .pending(&group)
        .await
        .iter()
        .map(|payload| payload["id"].as_str().expect("an id").to_owned())
        .collect();
    bob.ack_all(&ids).await.ok();
    laptop.read_to(log, sent).await;
    world.until_bodies(log, &[sent - 1, sent]).await;
    laptop.ack_all(log).await;
    world.until_bodies(log, &[sent]).await;
    alice.ack(&ids[1]).await.ok();
    world.until_bodies(log, &[]).await;
}
