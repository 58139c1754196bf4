//! Bytes that no device sends: each is refused with its close code, and nobody else notices.
//!
//! All of this is decided before a store is asked, so one database is enough.

use std::ops::Range;
use std::time::Duration;

use futures_util::future::join_all;
use sealwire_client::identity::Identity;
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::codec::encode_client;
use sealwire_protocol::frame::{JoinTotals, ListLogs, ListMembers, Ping, Subscribe};
use sealwire_protocol::limits::{FRAME_BYTES_MAX, UNAUTHENTICATED_FRAME_BYTES_MAX};
use sealwire_protocol::{ErrorCode, LogId, RelayFrame};
use tokio::time::{Instant, sleep_until};

use crate::support::device::{Device, together};
use crate::support::place::Database;
use crate::support::random::Random;
use crate::support::raw::{
    BINARY, CONTINUATION, End, LAST, PING, PONG, Raw, TEXT, UPGRADE, frame, head,
};
use crate::support::world::World;

/// When something that the relay ends after five seconds may end.
const FIVE_SECONDS: Range<u64> = 4..9;

/// When something that the relay ends after ten seconds may end.
const TEN_SECONDS: Range<u64> = 9..14;

/// A relay with two devices that talk to each other and must go on doing so.
struct Scene {
    world: World,
    bystanders: Vec<Device>,
    log: LogId,
}

impl Scene {
    async fn new() -> Self {
        let world = World::start(Database::Sqlite).await;
        let mut bystanders = world.devices(2).await;
        let log = together(&mut bystanders).await.log;
        Self { world, bystanders, log }
    }

    /// An authenticated connection that will misbehave, of a device of its own.
    async fn connection(&self) -> Raw {
        let stranger = Identity::generate().expect("randomness");
        Raw::authenticated(self.world.address(), &stranger).await
    }

    /// The bystanders' sessions are there and work, and the relay takes new ones.
    async fn stays_unharmed(mut self) {
        let [first, second] = self.bystanders.as_mut_slice() else { panic!("two devices") };
        let seq = first.append(self.log, b"undisturbed").await.seq;
        second.read_to(self.log, seq).await;
        assert!(first.told.iter().chain(&second.told).all(|frame| frame.name() == "Membership"));
        let mut newcomer = self.world.device(3).await;
        newcomer.request(Ping {}).await.expect("a heartbeat");
        self.world.stop().await;
    }
}

#[tokio::test]
async fn a_frame_that_is_longer_than_the_bound_is_too_big() {
    let scene = Scene::new().await;
    for length in [FRAME_BYTES_MAX as u64 + 1, u64::from(u32::MAX), u64::MAX >> 1] {
        let mut raw = scene.connection().await;
        // The length alone is enough: nothing is allocated for what is not there.
        raw.write(&head(LAST | BINARY, length)).await;
        assert_eq!(raw.end().await, End::of(CloseReason::TooBig), "{length} bytes");
    }
    scene.stays_unharmed().await;
}

#[tokio::test]
async fn a_message_in_fragments_counts_as_a_whole() {
    let scene = Scene::new().await;
    let mut raw = scene.connection().await;
    let request = encode_client(7, &ListLogs { after: None }.into());
    let (last, most) = request.split_last().expect("not empty");
    for (number, byte) in most.iter().enumerate() {
        let opcode = if number == 0 { BINARY } else { CONTINUATION };
        raw.write(&frame(opcode, &[*byte])).await;
    }
    raw.write(&frame(LAST | CONTINUATION, &[*last])).await;
    assert_eq!(raw.receive().await.expect("an answer").request, 7);

    let piece = vec![0; 256 * 1024];
    raw.write(&frame(BINARY, &piece)).await;
    for _ in 0..FRAME_BYTES_MAX / piece.len() {
        raw.write(&frame(CONTINUATION, &piece)).await;
    }
    assert_eq!(raw.end().await, End::of(CloseReason::TooBig));
    scene.stays_unharmed().await;
}

#[tokio::test]
async fn what_is_not_the_websocket_protocol_ends_the_connection() {
    let scene = Scene::new().await;
    let unmasked = [LAST | BINARY, 3, 1, 2, 3];
    let long_ping = frame(LAST | PING, &[0; 126]);
    let cases: [(&str, Vec<u8>); 8] = [
        ("text", frame(LAST | TEXT, b"[9, 1, {}]")),
        ("unmasked", unmasked.to_vec()),
        ("reserved bit", frame(LAST | 0x40 | BINARY, b"x")),
        ("unknown opcode", frame(LAST | 0x3, b"x")),
        ("unknown control opcode", frame(LAST | 0xb, b"x")),
        ("continuation of nothing", frame(LAST | CONTINUATION, b"x")),
        ("ping in fragments", frame(PING, b"x")),
        ("ping that is too long", long_ping),
    ];
    for (what, bytes) in cases {
        let mut raw = scene.connection().await;
        raw.write(&bytes).await;
        assert_eq!(raw.end().await, End::of(CloseReason::Protocol), "{what}");
    }
    let mut raw = scene.connection().await;
    raw.write(&frame(BINARY, b"begun")).await;
    raw.write(&frame(LAST | BINARY, b"another")).await;
    assert_eq!(raw.end().await, End::of(CloseReason::Protocol), "a message within a message");
    scene.stays_unharmed().await;
}

#[tokio::test]
async fn a_few_malformed_frames_are_answered_and_more_end_the_session() {
    let scene = Scene::new().await;
    let mut raw = scene.connection().await;
    // A frame of a type that does not exist is a newer device's, however many come.
    for request in 1..=20 {
        raw.send_bytes(&[0x93, 127, request, 0x80]).await;
        assert_eq!(refusal(&mut raw).await, (u32::from(request), ErrorCode::UnknownFrame));
    }
    // No fields at all, fields that are no map, an unknown kind of bytes, and nothing.
    let malformed: [&[u8]; 4] = [&[0x93, 2, 5, 0x80], &[0x93, 9, 5, 0x90], &[0xc1], &[]];
    for bytes in malformed.iter().cycle().take(7) {
        raw.send_bytes(bytes).await;
        assert_eq!(refusal(&mut raw).await.1, ErrorCode::Malformed);
    }
    raw.send_bytes(&[0xc1]).await;
    assert_eq!(raw.end().await, End::of(CloseReason::Malformed));
    scene.stays_unharmed().await;
}

#[tokio::test]
async fn lengths_that_lie_allocate_nothing() {
    let scene = Scene::new().await;
    let mut raw = scene.connection().await;
    // An array, a map, a string and a byte string that claim four thousand million elements.
    for lie in [0xdd, 0xdf, 0xdb, 0xc6] {
        raw.send_bytes(&[0x93, 5, 1, 0x81, 0xa7, b'e', b'n', b't', b'r', b'i', b'e', b's', lie])
            .await;
        assert_eq!(refusal(&mut raw).await.1, ErrorCode::Malformed);
        let mut bytes = vec![0x93, 5, 1, 0x81, 0xa7, b'e', b'n', b't', b'r', b'i', b'e', b's', lie];
        bytes.extend_from_slice(&[0xff; 4]);
        let mut raw = scene.connection().await;
        raw.send_bytes(&bytes).await;
        let code = refusal(&mut raw).await.1;
        assert!(matches!(code, ErrorCode::Malformed | ErrorCode::TooLarge), "{code:?}");
    }
    scene.stays_unharmed().await;
}

#[tokio::test]
async fn random_bytes_are_answered_or_end_the_connection() {
    const CONNECTIONS: usize = 60;
    let scene = Scene::new().await;
    let mut random = Random::new(Random::seed("SEALWIRE_TEST_SEED"));
    for _ in 0..CONNECTIONS {
        let mut raw = if random.one_in(3) {
            Raw::upgraded(scene.world.address()).await
        } else {
            scene.connection().await
        };
        for _ in 0..random.below(40) {
            let length = random.below(300);
            let payload = match random.below(3) {
                0 => random.bytes(length),
                1 => mutated(&mut random),
                _ => [&[0x93, random.below(256) as u8, 1][..], &random.bytes(length)].concat(),
            };
            let bytes = if random.one_in(8) {
                random.bytes(length)
            } else {
                frame(LAST | BINARY, &payload)
            };
            raw.write(&bytes).await;
        }
        // Whatever it was, the relay goes on to say something, or to end it, when the rest is cut off.
        raw.finish_writing().await;
        raw.end().await;
    }
    scene.stays_unharmed().await;
}

#[tokio::test]
async fn pings_are_answered_one_by_one() {
    let scene = Scene::new().await;
    let mut raw = scene.connection().await;
    for number in 0..2000_u32 {
        raw.write(&frame(LAST | PING, &number.to_be_bytes())).await;
        assert_eq!(raw.frame().await, Some((PONG, number.to_be_bytes().to_vec())));
    }
    scene.stays_unharmed().await;
}

#[tokio::test]
async fn a_handshake_that_is_too_slow_is_ended() {
    let scene = Scene::new().await;
    let address = scene.world.address();
    let half = async |bytes: &[u8]| {
        let mut raw = Raw::connect(address).await;
        raw.write(bytes).await;
        raw.timed_end().await.1
    };
    let silent = half(b"");
    let begun = half(b"GET /v1/ws HTTP/1.1\r\nHost: re");
    let dribbling = async {
        let mut raw = Raw::connect(address).await;
        let begun = Instant::now();
        for (second, byte) in (1..).zip(UPGRADE.bytes()) {
            raw.write(&[byte]).await;
            if raw.ends_before(begun + Duration::from_secs(second)).await {
                break;
            }
        }
        begun.elapsed()
    };
    let unproved = async {
        let mut raw = Raw::upgraded(address).await;
        let (end, after) = raw.timed_end().await;
        assert_eq!(end, End::of(CloseReason::AuthenticationTimeout));
        after
    };
    let chatting = async {
        let mut raw = Raw::upgraded(address).await;
        let begun = Instant::now();
        for half_second in 1..=8 {
            raw.write(&frame(LAST | PING, b"wait")).await;
            sleep_until(begun + Duration::from_millis(500 * half_second)).await;
        }
        assert_eq!(raw.end().await, End::of(CloseReason::AuthenticationTimeout));
        begun.elapsed()
    };
    let (silent, begun, dribbling, unproved, chatting) =
        tokio::join!(silent, begun, dribbling, unproved, chatting);
    for (what, after) in [
        ("silent", silent),
        ("a head that was begun", begun),
        ("a head byte by byte", dribbling),
        ("no proof", unproved),
        ("pings and no proof", chatting),
    ] {
        assert!(FIVE_SECONDS.contains(&after.as_secs()), "{what}: {after:?}");
    }
    scene.stays_unharmed().await;
}

#[tokio::test]
async fn a_message_that_is_begun_and_never_finished_ends_the_session() {
    let scene = Scene::new().await;
    let whole = frame(LAST | BINARY, &encode_client(7, &Ping {}.into()));
    let part = head(LAST | BINARY, 1000);
    let behind = [whole.clone(), part.clone()].concat();
    let cases: [(&str, Vec<u8>); 4] = [
        ("a head", part),
        ("half a head", vec![LAST | BINARY]),
        ("a fragment", frame(BINARY, b"begun")),
        ("behind a whole message", behind),
    ];
    let ends = cases.map(|(what, bytes)| {
        let scene = &scene;
        async move {
            let mut raw = scene.connection().await;
            raw.write(&bytes).await;
            let (end, after) = raw.timed_end().await;
            (what, end, after)
        }
    });
    let pinging = async {
        let mut raw = scene.connection().await;
        let begun = Instant::now();
        raw.write(&frame(BINARY, b"begun")).await;
        for second in 1..=8 {
            raw.write(&frame(LAST | PING, b"still here")).await;
            sleep_until(begun + Duration::from_secs(second)).await;
        }
        ("a fragment and pings", raw.end().await, begun.elapsed())
    };
    let (ends, pinging) = tokio::join!(join_all(ends), pinging);
    for (what, end, after) in ends.into_iter().chain([pinging]) {
        assert_eq!(end, End::of(CloseReason::MessageTimeout), "{what}");
        assert!(TEN_SECONDS.contains(&after.as_secs()), "{what}: {after:?}");
    }
    scene.stays_unharmed().await;
}

#[tokio::test]
async fn a_stranger_is_heard_for_no_more_than_a_proof_is_long() {
    const MOST: u64 = UNAUTHENTICATED_FRAME_BYTES_MAX as u64;
    let scene = Scene::new().await;
    let address = scene.world.address();
    // The length alone is enough, wherever it stands and however it comes: room is made for nothing.
    let short = frame(BINARY, b"begun");
    let long = head(LAST | BINARY, FRAME_BYTES_MAX as u64);
    let behind_a_ping = [frame(LAST | PING, b"wait"), long.clone()].concat();
    let behind_a_fragment = [short, head(LAST | CONTINUATION, MOST - 10)].concat();
    for (what, bytes) in [
        ("as long as a device's may be", long.clone()),
        ("a little too long", head(LAST | BINARY, MOST - 7)),
        ("behind a ping", behind_a_ping),
        ("behind a fragment", behind_a_fragment),
        ("all of it", frame(LAST | BINARY, &vec![0; 2 * UNAUTHENTICATED_FRAME_BYTES_MAX])),
    ] {
        let mut raw = Raw::upgraded(address).await;
        raw.write(&bytes).await;
        let (end, after) = raw.timed_end().await;
        assert_eq!(end, End::of(CloseReason::TooBig), "{what}");
        assert!(after < Duration::from_secs(FIVE_SECONDS.start), "{what}: {after:?}");
    }
    let mut raw = Raw::upgraded(address).await;
    for byte in &long {
        raw.write(&[*byte]).await;
    }
    assert_eq!(raw.end().await, End::of(CloseReason::TooBig), "byte by byte");
    // Whatever fits is heard: this is no proof, and is refused as such.
    let mut raw = Raw::upgraded(address).await;
    raw.write(&frame(LAST | BINARY, &vec![0; UNAUTHENTICATED_FRAME_BYTES_MAX - 8])).await;
    assert_eq!(raw.end().await, End::of(CloseReason::Malformed));
    // Many small pieces are too many in the end.
    let mut raw = Raw::upgraded(address).await;
    raw.write(&frame(BINARY, b"x")).await;
    for _ in 0..UNAUTHENTICATED_FRAME_BYTES_MAX / 7 {
        raw.write(&frame(CONTINUATION, b"x")).await;
    }
    assert_eq!(raw.end().await, End::of(CloseReason::AuthenticationTimeout));
    scene.stays_unharmed().await;
}

#[tokio::test]
async fn what_comes_right_behind_a_proof_may_be_long() {
    let scene = Scene::new().await;
    let stranger = Identity::generate().expect("randomness");
    let mut raw = Raw::upgraded(scene.world.address()).await;
    let proof = raw.proof(&stranger).await;
    let long = frame(LAST | BINARY, &[0xc1; 100 * 1024]);
    raw.write(&[frame(LAST | BINARY, &proof), long].concat()).await;
    raw.welcomed().await;
    assert_eq!(refusal(&mut raw).await.1, ErrorCode::Malformed);
    scene.stays_unharmed().await;
}

/// The request and the code of the refusal that comes next.
async fn refusal(raw: &mut Raw) -> (u32, ErrorCode) {
    let envelope = raw.receive().await.expect("an answer");
    match envelope.frame {
        Ok(RelayFrame::Error(error)) => (envelope.request, error.code),
        other => panic!("expected a refusal, not {other:?}"),
    }
}

/// A frame that is one, but for some bytes.
fn mutated(random: &mut Random) -> Vec<u8> {
    let log = LogId([0x88; 16]);
    let frames = [
        encode_client(1, &Ping {}.into()),
        encode_client(2, &ListMembers { log }.into()),
        encode_client(3, &Subscribe { log, cursor: None, acked: None }.into()),
        encode_client(4, &JoinTotals { log }.into()),
    ];
    let mut bytes = frames[random.below(frames.len())].clone();
    for _ in 0..random.below(4) {
        let place = random.below(bytes.len());
        bytes[place] = random.bytes(1)[0];
    }
    bytes
}
