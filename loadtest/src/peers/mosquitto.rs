//! mosquitto over WebSocket: QoS 1 and persistent sessions, which it keeps in memory.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use rumqttc::{
    AsyncClient, Event, EventLoop, MqttOptions, Packet, QoS, SubscribeFilter, Transport,
};
use sealwire_protocol::limits::BODY_BYTES_MAX;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::peer::{Answer, Counter, Device, Peer, Sink, shown};
use super::server::Server;
use crate::limits::ANSWER_DEADLINE;
use crate::process::Process;

/// Requests that wait for the connection's task.
const REQUESTS_MAX: usize = 64;

/// Publishes that may be under way in one connection.
const IN_FLIGHT_MAX: u16 = 256;

/// Longest packet, in bytes: the longest body, and what stands before it.
const PACKET_BYTES_MAX: usize = BODY_BYTES_MAX + 1024;

/// The device that is away.
const ABSENT: &str = "absent";

/// A running server.
pub(super) struct Mosquitto {
    server: Server,
}

/// Starts it.
pub(super) async fn start(program: &Path) -> Result<Mosquitto> {
    // 2.0.11 does not start with a WebSocket listener alone. Without the two limits it would drop what waits for a device beyond a hundred kilobytes, and
    // wait for acks after twenty messages. Run as root, it becomes another user that has no place in
    // the directory: so it may stay.
    let server = Server::start(program, "-h", |directory, [port, plain]| {
        format!(
            "listener {plain} 127.0.0.1\nlistener {port} 127.0.0.1\nprotocol websockets\n\
             allow_anonymous true\n\
             persistence true\npersistence_location {}/\nmax_queued_messages 0\n\
             max_inflight_messages 0\nset_tcp_nodelay true\nlog_dest stderr\nlog_type error\nuser root\n",
            shown(directory)
        )
    })
    .await?;
    Ok(Mosquitto { server })
}

impl Mosquitto {
    fn options(&self, id: &str) -> MqttOptions {
        let port = self.server.port;
        let mut options = MqttOptions::new(id, format!("ws://127.0.0.1:{port}/mqtt"), port);
        options
            .set_transport(Transport::Ws)
            .set_keep_alive(Duration::from_secs(300))
            .set_clean_session(false)
            .set_max_packet_size(PACKET_BYTES_MAX, PACKET_BYTES_MAX)
            .set_inflight(IN_FLIGHT_MAX)
            .set_request_channel_capacity(REQUESTS_MAX);
        options
    }

    /// A connection that has subscribed.
    async fn enter(&self, id: &str, topics: Vec<String>, sink: Sink) -> Result<MqttDevice> {
        let (client, connection) = AsyncClient::new(self.options(id), REQUESTS_MAX);
        let waiting = Waiting::default();
        let (subscribed, is_subscribed) = oneshot::channel();
        let task = tokio::spawn(Box::pin(drive(connection, sink, waiting.clone(), subscribed)));
        let device = MqttDevice { client, waiting, task: task.abort_handle() };
        if topics.is_empty() {
            return Ok(device);
        }
        let filters = topics.into_iter().map(|topic| SubscribeFilter::new(topic, QoS::AtLeastOnce));
        device.client.subscribe_many(filters).await?;
        timeout(ANSWER_DEADLINE, is_subscribed).await.context("no answer to a subscription")??;
        Ok(device)
    }
}

/// Those who wait for the answers to their publishes, in order: that is how mosquitto answers.
type Waiting = Arc<Mutex<VecDeque<oneshot::Sender<()>>>>;

/// Reads and writes a connection until it fails.
async fn drive(
    mut connection: EventLoop,
    mut sink: Sink,
    waiting: Waiting,
    subscribed: oneshot::Sender<()>,
) {
    let mut subscribed = Some(subscribed);
    while let Ok(event) = connection.poll().await {
        let Event::Incoming(packet) = event else { continue };
        if let Packet::Publish(publish) = &packet {
            sink(&publish.payload);
        }
        if matches!(packet, Packet::PubAck(_))
            && let Some(first) = waiting.lock().ok().and_then(|mut waiting| waiting.pop_front())
        {
            // Who has stopped waiting does not want to know.
            let _ = first.send(());
        }
        if matches!(packet, Packet::SubAck(_))
            && let Some(subscribed) = subscribed.take()
        {
            let _ = subscribed.send(());
        }
    }
}

#[async_trait]
impl Peer for Mosquitto {
    fn name(&self) -> String {
        self.server.version.replace(" version", "")
    }

    fn durability(&self) -> &'static str {
        "in memory, not on disk"
    }

    fn process(&self) -> Process {
        self.server.process
    }

    async fn connect(
        &self,
        number: u64,
        topics: Vec<String>,
        sink: Sink,
    ) -> Result<Box<dyn Device>> {
        // Each run has sessions of its own.
        let id = format!(
            "{number}-{:016x}",
            u64::from_ne_bytes(crate::group::random()?[..8].try_into()?)
        );
        Ok(Box::new(self.enter(&id, topics, sink).await?))
    }

    async fn expect(&self, topic: &str) -> Result<()> {
        let device = self.enter(ABSENT, vec![topic.to_owned()], Box::new(|_| {})).await?;
        device.client.disconnect().await?;
        // The connection's task ends when the server has closed it.
        let gone = async {
            while !device.task.is_finished() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(ANSWER_DEADLINE, gone).await.context("a session that does not end")
    }

    async fn read_waiting(&self, _topic: &str, messages: usize) -> Result<Duration> {
        let (mut counter, all) = Counter::new(messages);
        let _device = self.enter(ABSENT, Vec::new(), Box::new(move |_| counter.count())).await?;
        all.await.context("the connection has ended")
    }

    async fn stop(self: Box<Self>) -> Result<()> {
        self.server.stop().await
    }
}

struct MqttDevice {
    client: AsyncClient,
    waiting: Waiting,
    task: AbortHandle,
}

impl Drop for MqttDevice {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[async_trait]
impl Device for MqttDevice {
    async fn publish(&self, topic: &str, body: Bytes) -> Result<Answer> {
        let (answered, answer) = oneshot::channel();
        ensure!(!self.task.is_finished(), "the connection has ended");
        if let Ok(mut waiting) = self.waiting.lock() {
            waiting.push_back(answered);
        }
        self.client.publish_bytes(topic, QoS::AtLeastOnce, false, body).await?;
        Ok(Box::pin(async { answer.await.context("the connection has ended") }))
    }
}
