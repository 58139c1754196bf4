//! One connection: proofs, pins, tokens and deadlines.

use std::time::Duration;

use sealwire_client::identity::Identity;
use sealwire_client::wire::{self, Options, Step, Wire, WireError};
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::frame::{Ping, SetPushToken};
use sealwire_protocol::{ClientFrame, DeviceKey};
use tokio::net::TcpListener;

use crate::relay::Relay;

fn device() -> Identity {
    Identity::from_seed(&[3; 32])
}

#[tokio::test]
async fn a_device_and_a_relay_prove_their_keys_to_each_other() {
    let relay = Relay::start().await;
    let options = Options { relay: Some(relay.key()), ..Options::default() };
    let (mut wire, session) =
        wire::connect(&relay.url, &device(), &options).await.expect("connected");
    assert_eq!(session.relay, relay.key());
    assert!(!session.resumed);
    let answer = wire.request(&Ping {}.into()).await.expect("an answer");
    assert_eq!(answer.name(), "Heartbeat");
    wire.close().await;
}

#[tokio::test]
async fn nothing_is_signed_for_a_relay_with_another_key() {
    let relay = Relay::start().await;
    let pinned = DeviceKey([7; 32]);
    let options = Options { relay: Some(pinned), ..Options::default() };
    let error = wire::connect(&relay.url, &device(), &options).await.err();
    let presented = relay.key();
    assert_eq!(error, Some(WireError::RelayKeyChanged { pinned, presented }));
    assert_eq!(relay.shared.state.lock().by_signature, 0);
}

#[tokio::test]
async fn a_relay_that_cannot_prove_its_key_is_not_believed() {
    let relay = Relay::start().await;
    relay.switch(|switches| &switches.false_proof, true);
    let error = wire::connect(&relay.url, &device(), &Options::default()).await.err();
    assert_eq!(error, Some(WireError::RelayProof));
}

#[tokio::test]
async fn a_token_resumes_and_a_refused_one_gives_way_to_the_signature() {
    let relay = Relay::start().await;
    let first = wire::connect(&relay.url, &device(), &Options::default()).await;
    let (_, session) = first.expect("connected");
    let options =
        Options { resume_token: Some(session.welcome.resume_token.to_vec()), ..Options::default() };
    let (_, session) = wire::connect(&relay.url, &device(), &options).await.expect("resumed");
    assert!(session.resumed);
    // A token is good once; and this one was used.
    let (_, session) = wire::connect(&relay.url, &device(), &options).await.expect("signed");
    assert!(!session.resumed);
    let state = relay.shared.state.lock();
    assert_eq!((state.by_token, state.by_signature), (1, 2));
}

#[tokio::test]
async fn a_mute_relay_is_given_up_at_every_step() {
    let relay = Relay::start().await;
    relay.switch(|switches| &switches.mute, true);
    let brief = Duration::from_millis(100);
    let options = Options { step_deadline: brief, ..Options::default() };
    let error = wire::connect(&relay.url, &device(), &options).await.err();
    assert_eq!(error, Some(WireError::Timeout(Step::Greeting)));

    // A port that takes connections and never speaks HTTP.
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("ws://{}", listener.local_addr().expect("an address"));
    let url = sealwire_client::address::RelayUrl::parse(&url).expect("an address");
    let options = Options { connect_deadline: brief, ..Options::default() };
    let error = Wire::open(&url, &options).await.err();
    assert_eq!(error, Some(WireError::Timeout(Step::Connect)));
}

#[tokio::test]
async fn what_comes_while_an_answer_is_awaited_is_not_lost() {
    let relay = Relay::start().await;
    let (mut wire, _) =
        wire::connect(&relay.url, &device(), &Options::default()).await.expect("connected");
    let first = wire.queue(&Ping {}.into());
    let second = wire.queue(&Ping {}.into());
    assert_eq!(wire.answer_to(second).await.expect("an answer").name(), "Heartbeat");
    assert_eq!(wire.answer_to(first).await.expect("set aside").name(), "Heartbeat");
}

#[tokio::test]
async fn a_refusal_keeps_the_connection_and_a_close_says_why_it_ended() {
    let relay = Relay::start().await;
    let (mut wire, _) =
        wire::connect(&relay.url, &device(), &Options::default()).await.expect("connected");
    let platform = sealwire_protocol::bounded::BoundedText::new("fcm").expect("short");
    let frame = ClientFrame::from(SetPushToken { platform, token: None });
    let error = wire.request(&frame).await.err();
    assert_eq!(error.and_then(|error| error.code()), Some(ErrorCode::Unsupported));
    relay.switch(|switches| &switches.supersede, true);
    let end = loop {
        if let Err(error) = wire.receive().await {
            break error;
        }
    };
    assert_eq!(end, WireError::Closed(Some(CloseReason::Superseded)));
}

#[tokio::test]
async fn bytes_that_are_no_frame_can_be_sent_by_tests() {
    let relay = Relay::start().await;
    let (mut wire, _) =
        wire::connect(&relay.url, &device(), &Options::default()).await.expect("connected");
    wire.queue_bytes(vec![0xc1, 0xff]);
    let end = loop {
        match wire.receive().await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(end, WireError::Closed(None));
}

#[tokio::test]
async fn a_connection_knows_how_long_a_relay_that_shuts_down_wants_it_to_stay_away() {
    let relay = Relay::start().await;
    let options = Options::default();
    let (wire, _) = wire::connect(&relay.url, &device(), &options).await.expect("connected");
    assert_eq!(wire.come_back(), None);
    wire.close().await;
    relay.switch(|switches| &switches.drain, true);
    let (mut wire, _) = wire::connect(&relay.url, &device(), &options).await.expect("connected");
    let error = loop {
        if let Err(error) = wire.receive().await {
            break error;
        }
    };
    assert_eq!(error, WireError::Closed(Some(CloseReason::GoingAway)));
    assert_eq!(wire.come_back(), Some(Duration::from_millis(100)));
}
