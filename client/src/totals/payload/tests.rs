//! The app's JSON, there and back.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::totals::seal::tests::{EXPENSE, JOIN_REQUEST};

fn decode(value: &Value) -> Result<Payload, PayloadError> {
    Payload::decode(value.to_string().as_bytes())
}

fn text(payload: &Payload) -> String {
    String::from_utf8(payload.encode().expect("encoded").to_vec()).expect("UTF-8")
}

#[test]
fn what_the_app_writes_is_written_byte_for_byte() {
    for json in [JOIN_REQUEST, EXPENSE] {
        let payload = Payload::decode(json.as_bytes()).expect("readable");
        assert_eq!(text(&payload), json);
    }
}

#[test]
fn every_message_comes_back_as_it_was_written() {
    let activity = json!({
        "id": "x", "timestamp": 5, "actor": "a", "kind": "member_left", "data": { "n": 1.5 },
    });
    let messages = [
        json!({ "type": "key_exchange", "groupId": "g", "groupName": "Trip",
                "groupKey": "11".repeat(32), "approvedPublicKey": "b", "approvedBy": "a",
                "approverDisplayName": "Anna",
                "approverPaymentAddress": { "bankId": 3, "accountNumber": "1000" },
                "approverMemberMetaUpdatedAt": 4, "backfillNewMembers": true, "timestamp": 9 }),
        json!({ "type": "group_snapshot", "snapshotId": "s", "timestamp": 1, "groupId": "g",
                "part": "meta", "groupName": "Trip", "backfillNewMembers": false, "createdAt": 7,
                "members": [{ "devicePublicKey": "a", "joinedAt": "2026-01-01T00:00:00.000Z" },
                            { "devicePublicKey": "b", "joinedAt": null }],
                "approvedMemberKeys": ["a"], "displayNames": { "a": "Anna" },
                "memberMetaUpdatedAt": { "a": 3 },
                "paymentAddresses": { "a": { "bankId": 1, "accountNumber": "2",
                                             "accountHolderName": "Anna A." } } }),
        json!({ "type": "group_snapshot", "snapshotId": "s", "timestamp": 1, "groupId": "g",
                "part": "expenses", "expenses": [
                    { "id": "e", "amount": 12.34, "currency": "ETB", "reason": "Taxi",
                      "paidBy": "a", "splitAmong": ["a", "b"], "timestamp": 1, "revisedAt": 2,
                      "deleted": true, "kind": "settlement", "linkedTxRef": "t",
                      "status": "synced" }] }),
        json!({ "type": "group_snapshot", "snapshotId": "s", "timestamp": 1, "groupId": "g",
                "part": "activity", "activity": [activity] }),
        json!({ "type": "member_approved", "approvedPublicKey": "b", "approvedBy": "a",
                "timestamp": 1, "activity": activity }),
        json!({ "type": "member_meta", "displayName": "Anna", "memberMetaUpdatedAt": 1,
                "timestamp": 2 }),
        json!({ "type": "group_meta", "name": "Trip", "backfillNewMembers": true, "timestamp": 2,
                "activity": activity }),
        json!({ "type": "expense", "id": "e", "amount": 0.1, "currency": "USD", "reason": "",
                "paidBy": "a", "splitAmong": [], "timestamp": 1, "kind": "expense",
                "status": "pending", "activity": activity, "activities": [activity] }),
        json!({ "type": "nudge", "id": "n", "timestamp": 1, "actor": "a", "amount": 5.0,
                "debtorPks": ["b"], "amountByDebtorPk": { "b": 5.0 } }),
        json!({ "type": "snapshot_request", "publicKey": "a", "timestamp": 1 }),
        json!({ "type": "member_left", "publicKey": "a", "leftAt": 1, "activity": activity }),
        json!({ "type": "join_cancel", "publicKey": "a", "timestamp": 1 }),
    ];
    for message in messages {
        let payload = decode(&message).expect("readable");
        assert_eq!(Some(payload.kind()), message["type"].as_str());
        let written: Value = serde_json::from_str(&text(&payload)).expect("JSON");
        assert_eq!(written, message);
    }
}

#[test]
fn the_older_name_of_a_key_exchange_is_understood() {
    let short = json!({ "type": "group_key", "groupKey": "11".repeat(32) });
    assert!(matches!(decode(&short), Ok(Payload::KeyExchange(_))));
    for key in [json!("11"), json!(null), json!(7), json!("zz".repeat(32))] {
        let bad = json!({ "type": "key_exchange", "groupKey": key });
        assert!(decode(&bad).err() == Some(PayloadError::Malformed));
    }
}

#[test]
fn a_field_of_another_type_counts_as_missing_and_a_number_may_have_a_fraction() {
    let odd = json!({
        "type": "expense", "id": 7, "amount": "3", "currency": null, "reason": ["x"],
        "paidBy": {}, "splitAmong": ["a", 1, null, "b"], "timestamp": 1767225600000.0,
        "revisedAt": "soon", "deleted": "yes", "kind": false, "status": 1,
        "activities": [3, { "id": "x", "data": 4 }], "activity": "none", "colour": "red",
    });
    let Ok(Payload::Expense(message)) = decode(&odd) else { panic!("not an expense") };
    let expense = &message.expense;
    assert_eq!((expense.id.as_str(), expense.currency.as_str()), ("", "ETB"));
    assert_eq!((expense.kind.as_str(), expense.amount), ("expense", 0.0));
    assert_eq!(expense.split_among, [Party("a".into()), Party("b".into())]);
    assert_eq!((expense.timestamp, expense.revised_at), (1_767_225_600_000, None));
    assert!(!expense.deleted && message.activity.is_none());
    assert_eq!(message.activities.len(), 1);
    let whole = json!({ "type": "expense", "id": "e", "amount": 3000 });
    let Ok(Payload::Expense(message)) = decode(&whole) else { panic!("not an expense") };
    assert!(text(&Payload::Expense(message)).contains("\"amount\":3000.0,"));
}

#[test]
fn a_type_that_is_not_known_is_told_from_what_is_no_message() {
    assert!(decode(&json!({ "type": "dance" })).err() == Some(PayloadError::Unknown));
    for bad in [json!([]), json!({}), json!({ "type": 4 }), json!("expense"), json!(null)] {
        assert!(decode(&bad).err() == Some(PayloadError::Malformed), "{bad}");
    }
    assert!(Payload::decode(b"\xff").err() == Some(PayloadError::Malformed));
    let deep = "[".repeat(100_000);
    assert!(Payload::decode(deep.as_bytes()).err() == Some(PayloadError::Malformed));
    let long = vec![b' '; PLAINTEXT_BYTES_MAX + 1];
    assert!(Payload::decode(&long).err() == Some(PayloadError::TooLong));
}

/// Any JSON whose objects have the names that the app uses.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        "[a-z]{0,6}",
        proptest::sample::select(vec![
            "id",
            "amount",
            "currency",
            "reason",
            "paidBy",
            "splitAmong",
            "timestamp",
            "revisedAt",
            "deleted",
            "kind",
            "activity",
            "activities",
            "data",
            "actor",
            "members",
            "expenses",
            "displayNames",
            "paymentAddresses",
            "memberMetaUpdatedAt",
            "approvedMemberKeys",
            "groupKey",
            "publicKey",
            "devicePublicKey",
            "joinedAt",
            "debtorPks",
            "amountByDebtorPk",
            "bankId",
            "accountNumber",
        ])
        .prop_map(str::to_owned),
    ];
    leaf.prop_recursive(4, 40, 8, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(name.clone(), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

pub(crate) fn any_message() -> impl Strategy<Value = Value> {
    let kind = proptest::sample::select(vec![
        "join_request",
        "key_exchange",
        "group_snapshot",
        "member_approved",
        "member_meta",
        "group_meta",
        "expense",
        "nudge",
        "snapshot_request",
        "member_left",
        "join_cancel",
        "other",
    ]);
    (kind, any_json()).prop_map(|(kind, value)| {
        if let Value::Object(mut object) = value {
            object.insert("type".to_owned(), kind.into());
            return Value::Object(object);
        }
        json!({ "type": kind, "expenses": value, "id": "e", "splitAmong": ["a"] })
    })
}

proptest! {
    #[test]
    fn any_bytes_can_be_read_without_a_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        let _ = Payload::decode(&bytes);
    }

    #[test]
    fn whatever_is_understood_is_understood_again_when_it_is_passed_on(message in any_message()) {
        if let Ok(payload) = decode(&message) {
            let again = Payload::decode(&payload.encode().expect("encoded"));
            prop_assert!(again == Ok(payload));
        }
    }
}
