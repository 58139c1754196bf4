//! Promises about what one session may hold.

use sealwire_protocol::limits::SUBSCRIPTIONS_MAX;
use sealwire_protocol::{Control, Digest, ErrorCode, Head, LogId, LogType, RelayFrame, frame};

use super::device::{Device, World, code};

#[tokio::test]
async fn a_session_follows_so_many_logs_and_no_more() {
    let world = World::new().await;
    let mut device = Device::connected(1, &world).await;
    let mut logs = Vec::new();
    for number in 0..=SUBSCRIPTIONS_MAX as u64 {
        (device.count, device.prev) = (1, Digest::ZERO);
        let mut random = [0; 32];
        random[..8].copy_from_slice(&number.to_be_bytes());
        let found = Control::Found { log_type: LogType::Vault, random, join_key: None };
        let entry = device.control(LogId::ZERO, &found, Head::NONE);
        logs.push(device.append(entry).await.expect("founded").log);
    }
    let (last, most) = logs.split_last().expect("some");
    for log in most {
        device.subscribe(*log, None).await.expect("subscribed");
    }
    assert_eq!(code(device.subscribe(*last, None).await), ErrorCode::TooManySubscriptions);
    // One that is followed may be begun anew, and one that is given up makes room.
    device.subscribe(most[0], None).await.expect("subscribed anew");
    let request = device.send(frame::Unsubscribe { log: most[0] }).await;
    assert!(matches!(device.answer_to(request).await, RelayFrame::Done(_)));
    device.subscribe(*last, None).await.expect("subscribed");
}
