//! One connection of the relay.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use sealwire_protocol::bounded::{Bounded, BoundedBytes};
use sealwire_protocol::close::CloseReason;
use sealwire_protocol::codec;
use sealwire_protocol::error::ErrorCode;
use sealwire_protocol::frame::{
    self, Appended, Authenticate, Done, Drained, Draining, Greeting, Heartbeat, LogSummary,
    Membership, MembershipState, Names, Subscribe, Subscribed, Superseded, Welcome,
};
use sealwire_protocol::limits::WEBSOCKET_SUBPROTOCOL;
use sealwire_protocol::{
    ClientFrame, DeviceKey, Digest, Failure, LogId, RelayFrame, handshake, signing,
};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::{Fault, Shared};

/// The heartbeat interval, in seconds: short, so that silence shows soon.
const HEARTBEAT_S: u16 = 1;

type Socket = WebSocketStream<TcpStream>;

/// The connection is over.
struct Over;

struct Subscription {
    /// Everything up to here was sent.
    sent: u64,
    /// The head that a `Drained` is owed at.
    owed: Option<u64>,
    /// Stubs that wait for something to precede.
    stubs: Vec<RelayFrame>,
}

struct Session {
    shared: Arc<Shared>,
    socket: Socket,
    device: DeviceKey,
    subscriptions: BTreeMap<LogId, Subscription>,
}

pub(super) async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let accept = |_: &Request, mut response: Response| {
        let name = HeaderValue::from_static(WEBSOCKET_SUBPROTOCOL);
        response.headers_mut().insert("sec-websocket-protocol", name);
        Ok(response)
    };
    let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, accept).await else { return };
    let device = DeviceKey::ZERO;
    let mut session = Session { shared, socket, device, subscriptions: BTreeMap::new() };
    let _ = session.run().await;
}

impl Session {
    async fn run(&mut self) -> Result<(), Over> {
        let mut kicked = self.shared.kicked.subscribe();
        let mut changed = self.shared.changed.subscribe();
        if self.shared.switches.mute.load(Ordering::SeqCst) {
            let _ = kicked.changed().await;
            return Err(Over);
        }
        self.greet().await?;
        let incarnation = self.shared.state.lock().incarnation;
        let beat = Duration::from_secs(u64::from(HEARTBEAT_S));
        let mut beat_at = Instant::now() + beat;
        loop {
            let switches = &self.shared.switches;
            if switches.mute_after_welcome.load(Ordering::SeqCst) {
                let _ = kicked.changed().await;
                return Err(Over);
            }
            if switches.supersede.load(Ordering::SeqCst) {
                self.say(0, Superseded {}).await?;
                return self.close(CloseReason::Superseded).await;
            }
            if switches.drain.load(Ordering::SeqCst) {
                let resume_token = self.token();
                self.say(0, Draining { reconnect_after_ms: 100, resume_token }).await?;
                return self.close(CloseReason::GoingAway).await;
            }
            if self.shared.state.lock().incarnation != incarnation {
                // A relay is not restored while it runs.
                return Err(Over);
            }
            self.publish().await?;
            tokio::select! {
                _ = kicked.changed() => return Err(Over),
                _ = changed.changed() => {}
                () = sleep_until(beat_at) => {
                    beat_at += beat;
                    self.heartbeat(0).await?;
                }
                message = self.socket.next() => match message {
                    Some(Ok(Message::Binary(bytes))) => self.on_bytes(&bytes).await?,
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                    _ => return Err(Over),
                },
            }
        }
    }

    async fn greet(&mut self) -> Result<(), Over> {
        let key = &self.shared.key;
        let challenge = {
            let mut state = self.shared.state.lock();
            state.next_session += 1;
            sealwire_protocol::digest::sha256(&state.next_session.to_be_bytes())
        };
        let greeting = RelayFrame::Greeting(Greeting {
            challenge,
            relay: signing::device_key(key),
            versions: (1, 1),
            capabilities: Names::default(),
            now: 0,
        });
        let greeting_frame = codec::encode_relay(0, &greeting);
        self.send(Message::Binary(Bytes::from(greeting_frame.clone()))).await?;
        let Some(Ok(Message::Binary(bytes))) = self.socket.next().await else { return Err(Over) };
        let envelope = codec::decode_client(&bytes).map_err(|_| Over)?;
        let Ok(ClientFrame::Authenticate(authenticate)) = envelope.frame else { return Err(Over) };
        if !self.admits(&authenticate, &greeting_frame) {
            let failure = Failure::new(ErrorCode::AuthenticationFailed);
            self.say(envelope.request, frame::Error::from(failure)).await?;
            return self.close(CloseReason::AuthenticationFailed).await;
        }
        self.device = authenticate.device;
        let false_proof = self.shared.switches.false_proof.load(Ordering::SeqCst);
        let over = if false_proof { Digest([9; 32]) } else { authenticate.challenge };
        let proof = handshake::prove_relay(&self.shared.key, &greeting_frame, self.device, over);
        let incarnation = self.shared.state.lock().incarnation;
        let welcome = Welcome {
            proof,
            incarnation,
            heartbeat_s: HEARTBEAT_S,
            resume_token: self.token(),
            logs: Bounded::new(self.heads()).expect("few"),
        };
        self.say(envelope.request, welcome).await
    }

    fn admits(&self, authenticate: &Authenticate, greeting_frame: &[u8]) -> bool {
        let mut state = self.shared.state.lock();
        if let Some(token) = &authenticate.token {
            let refuse = self.shared.switches.refuse_tokens.load(Ordering::SeqCst);
            let owner = state.tokens.remove(&token.to_vec());
            let good = !refuse && owner == Some(authenticate.device);
            state.by_token += u32::from(good);
            return good;
        }
        let Some(signature) = &authenticate.signature else { return false };
        state.by_signature += 1;
        handshake::check_device(authenticate.device, greeting_frame, signature).is_ok()
    }

    fn token<const MAX: usize>(&self) -> BoundedBytes<MAX> {
        let mut state = self.shared.state.lock();
        state.next_session += 1;
        let token = state.next_session.to_be_bytes().to_vec();
        state.tokens.insert(token.clone(), self.device);
        BoundedBytes::new(token).expect("short")
    }

    async fn on_bytes(&mut self, bytes: &[u8]) -> Result<(), Over> {
        let envelope = codec::decode_client(bytes).map_err(|_| Over)?;
        let request = envelope.request;
        let Ok(frame) = envelope.frame else {
            let failure = Failure::new(ErrorCode::UnknownFrame);
            return self.say(request, frame::Error::from(failure)).await;
        };
        match frame {
            ClientFrame::Subscribe(subscribe) => self.on_subscribe(request, &subscribe).await,
            ClientFrame::Unsubscribe(unsubscribe) => {
                self.subscriptions.remove(&unsubscribe.log);
                self.say(request, Done {}).await
            }
            ClientFrame::Append(append) => self.on_append(request, &append.entry).await,
            ClientFrame::Ack(ack) => {
                let mut state = self.shared.state.lock();
                if ack.state.incarnation == state.incarnation
                    && let Some(log) = state.logs.get_mut(&ack.log)
                {
                    log.acked.entry(self.device).or_default().merge(&ack.state.acked);
                }
                Ok(())
            }
            ClientFrame::Ping(_) => self.heartbeat(request).await,
            ClientFrame::Authenticate(_)
            | ClientFrame::AppendBatch(_)
            | ClientFrame::ListMembers(_)
            | ClientFrame::ListLogs(_)
            | ClientFrame::Grant(_)
            | ClientFrame::CreateTotals(_)
            | ClientFrame::JoinTotals(_)
            | ClientFrame::LeaveTotals(_)
            | ClientFrame::GetVaultToken(_)
            | ClientFrame::SetPushToken(_)
            | ClientFrame::ListSnapshots(_)
            | ClientFrame::PutSnapshotChunk(_)
            | ClientFrame::GetSnapshotChunk(_)
            | ClientFrame::SubscribeFrom(_) => {
                let failure = Failure::new(ErrorCode::Unsupported);
                self.say(request, frame::Error::from(failure)).await
            }
        }
    }

    async fn on_subscribe(&mut self, request: u32, subscribe: &Subscribe) -> Result<(), Over> {
        let answer = {
            let mut state = self.shared.state.lock();
            let incarnation = state.incarnation;
            let device = self.device;
            match state.logs.get_mut(&subscribe.log) {
                Some(log) if log.members.contains_key(&device) => {
                    if let Some(acked) = &subscribe.acked
                        && acked.incarnation == incarnation
                    {
                        log.acked.entry(device).or_default().merge(&acked.acked);
                    }
                    let head = log.head(incarnation);
                    let after = subscribe.cursor.map_or(0, |cursor| cursor.seq);
                    let fits = subscribe.cursor.is_none_or(|cursor| {
                        cursor.seq <= head.seq && cursor.chain == log.chain_at(cursor.seq)
                    });
                    if fits {
                        Ok((head, after))
                    } else {
                        Err(Failure::at_head(ErrorCode::HistoryChanged, head))
                    }
                }
                Some(log) if log.revoked.contains(&device) => {
                    Err(Failure::revoked(log.removal_of(device)))
                }
                Some(_) | None => Err(Failure::new(ErrorCode::NoSuchLog)),
            }
        };
        match answer {
            Ok((head, after)) => {
                let subscription =
                    Subscription { sent: after, owed: Some(head.seq), stubs: Vec::new() };
                self.subscriptions.insert(subscribe.log, subscription);
                self.say(request, Subscribed { log: subscribe.log, head }).await
            }
            Err(failure) => self.say(request, frame::Error::from(failure)).await,
        }
    }

    async fn on_append(&mut self, request: u32, entry: &frame::EntryIn) -> Result<(), Over> {
        let header = entry.header.decode().map_err(|_| Over)?;
        let answer = {
            let mut state = self.shared.state.lock();
            let digest = sealwire_protocol::digest::entry_digest(&entry.header);
            state.appends.push((header.sender, header.count, digest));
            let fault = state.faults.pop_front();
            if matches!(fault, Some(Fault::Break)) {
                return Err(Over);
            }
            if let Some(Fault::Refuse(failure)) = &fault {
                Err(Box::new(*failure))
            } else {
                let answer = state.append(self.device, entry);
                if matches!(fault, Some(Fault::AppendAndBreak)) {
                    self.shared.changed.send_modify(|turn| *turn += 1);
                    return Err(Over);
                }
                match fault {
                    Some(Fault::AppendAndRefuse(failure)) => Err(Box::new(failure)),
                    _ => answer.map(|done| {
                        let head = state.logs[&done.log].head(state.incarnation);
                        Appended { log: done.log, seq: done.seq, duplicate: done.duplicate, head }
                    }),
                }
            }
        };
        match answer {
            Ok(appended) => {
                self.say(request, appended).await?;
                self.shared.changed.send_modify(|turn| *turn += 1);
                Ok(())
            }
            Err(failure) => self.say(request, frame::Error::from(*failure)).await,
        }
    }

    /// Sends what each subscription has not had.
    async fn publish(&mut self) -> Result<(), Over> {
        let mut frames = Vec::new();
        let mut ended = Vec::new();
        {
            let state = self.shared.state.lock();
            for (id, subscription) in &mut self.subscriptions {
                let Some(log) = state.logs.get(id) else { continue };
                if !log.members.contains_key(&self.device) {
                    let revoked = log.revoked.contains(&self.device);
                    ended.push((*id, revoked, log.removal_of(self.device)));
                    continue;
                }
                for (seq, frame) in log.read(&state, self.device, subscription.sent) {
                    subscription.sent = seq.max(subscription.sent);
                    if matches!(frame, RelayFrame::Stubs(_)) {
                        subscription.stubs.push(frame);
                    } else {
                        frames.append(&mut subscription.stubs);
                        frames.push(frame);
                    }
                }
                subscription.sent = subscription.sent.max(log.floor);
                if subscription.owed.is_some_and(|seq| seq <= subscription.sent) {
                    subscription.owed = None;
                    frames.append(&mut subscription.stubs);
                    let head = log.head_for(&state, self.device);
                    frames.push(Drained { log: *id, head }.into());
                }
            }
        }
        for (log, revoked, seq) in ended {
            self.subscriptions.remove(&log);
            let state = if revoked { MembershipState::Revoked } else { MembershipState::Left };
            frames.push(Membership { log, state, seq }.into());
        }
        for frame in frames {
            self.say(0, frame).await?;
        }
        Ok(())
    }

    async fn heartbeat(&mut self, request: u32) -> Result<(), Over> {
        let stubs: Vec<RelayFrame> = self
            .subscriptions
            .values_mut()
            .flat_map(|subscription| std::mem::take(&mut subscription.stubs))
            .collect();
        for frame in stubs {
            self.say(0, frame).await?;
        }
        let heads = self.heads();
        self.say(request, Heartbeat { now: 0, heads: Bounded::new(heads).expect("few") }).await
    }

    fn heads(&self) -> Vec<LogSummary> {
        let state = self.shared.state.lock();
        state
            .logs
            .iter()
            .filter(|(_, log)| log.members.contains_key(&self.device))
            .map(|(id, log)| LogSummary { log: *id, head: log.head_for(&state, self.device) })
            .collect()
    }

    async fn say(&mut self, request: u32, frame: impl Into<RelayFrame>) -> Result<(), Over> {
        let bytes = codec::encode_relay(request, &frame.into());
        self.send(Message::Binary(Bytes::from(bytes))).await
    }

    async fn send(&mut self, message: Message) -> Result<(), Over> {
        self.socket.send(message).await.map_err(|_| Over)
    }

    async fn close(&mut self, reason: CloseReason) -> Result<(), Over> {
        let frame = CloseFrame { code: reason.code().into(), reason: reason.name().into() };
        let _ = self.socket.close(Some(frame)).await;
        Err(Over)
    }
}
