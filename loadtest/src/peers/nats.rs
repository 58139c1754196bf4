//! NATS with JetStream: one stream in files, fsynced for every message, and an ordered consumer for
//! each subscription.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use async_nats::jetstream::consumer::DeliverPolicy;
use async_nats::jetstream::consumer::push::OrderedConfig;
use async_nats::jetstream::stream::{Config, StorageType};
use async_nats::jetstream::{self, Context as JetStream};
use async_nats::{Client, ConnectOptions};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::task::{AbortHandle, JoinHandle};

use super::peer::{Answer, Counter, Device, Peer, Sink, shown};
use super::server::Server;
use crate::crowd::source;
use crate::limits::{ANSWER_DEADLINE, DEVICES_MAX};
use crate::process::Process;

/// The one stream that holds everything.
const STREAM: &str = "sealwire-loadtest";

/// A running server.
pub(super) struct Nats {
    server: Server,
}

/// Consumers of its stream: three for each silent device. By default the server allows fewer.
const CONSUMERS_MAX: usize = 3 * DEVICES_MAX;

/// Starts it.
pub(super) async fn start(program: &Path) -> Result<Nats> {
    let server = Server::start(program, "--version", |directory, [port, _]| {
        format!(
            "host: 127.0.0.1\nport: {port}\nmax_connections: 65536\n\
             jetstream {{ store_dir: \"{}\", sync_interval: always, max_file_store: 8GB, \
             limits {{ default_max_consumers: {CONSUMERS_MAX} }} }}\n",
            shown(directory)
        )
    })
    .await?;
    let nats = Nats { server };
    let client = nats.client(0).await?;
    let config = Config {
        name: STREAM.to_owned(),
        subjects: vec!["sw.>".to_owned()],
        storage: StorageType::File,
        ..Config::default()
    };
    jetstream::new(client).create_stream(config).await.context("making the stream")?;
    Ok(nats)
}

impl Nats {
    async fn client(&self, number: u64) -> Result<Client> {
        ConnectOptions::new()
            .local_address(SocketAddr::new(source(number), 0))
            .connection_timeout(ANSWER_DEADLINE)
            .connect(format!("nats://127.0.0.1:{}", self.server.port))
            .await
            .context("connecting to NATS")
    }
}

/// Reads a subject, until it is dropped.
async fn follow(
    client: &Client,
    context: &JetStream,
    subject: &str,
    from: DeliverPolicy,
    mut sink: impl FnMut(&[u8]) + Send + 'static,
) -> Result<JoinHandle<()>> {
    let config = OrderedConfig {
        deliver_subject: client.new_inbox(),
        filter_subject: subject.to_owned(),
        deliver_policy: from,
        ..OrderedConfig::default()
    };
    let consumer = context.create_consumer_on_stream(config, STREAM).await?;
    let mut messages = consumer.messages().await?;
    Ok(tokio::spawn(async move {
        while let Some(Ok(message)) = messages.next().await {
            sink(&message.payload);
        }
    }))
}

#[async_trait]
impl Peer for Nats {
    fn name(&self) -> String {
        let version = self.server.version.rsplit(' ').next().unwrap_or_default();
        format!("NATS {version}")
    }

    fn durability(&self) -> &'static str {
        "on disk before the answer"
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
        let client = self.client(number).await?;
        let context = jetstream::new(client.clone());
        let mut reading = Vec::with_capacity(topics.len());
        let sink = std::sync::Arc::new(std::sync::Mutex::new(sink));
        for topic in topics {
            let sink = sink.clone();
            let take = move |body: &[u8]| {
                if let Ok(mut sink) = sink.lock() {
                    sink(body);
                }
            };
            let follow = follow(&client, &context, &topic, DeliverPolicy::New, take).await?;
            reading.push(Reading(follow.abort_handle()));
        }
        Ok(Box::new(NatsDevice { context, _reading: reading }))
    }

    async fn expect(&self, _topic: &str) -> Result<()> {
        // The stream keeps everything for everybody.
        Ok(())
    }

    async fn read_waiting(&self, topic: &str, messages: usize) -> Result<Duration> {
        let client = self.client(0).await?;
        let context = jetstream::new(client.clone());
        let (mut counter, all) = Counter::new(messages);
        let reading =
            follow(&client, &context, topic, DeliverPolicy::All, move |_| counter.count()).await?;
        let _reading = Reading(reading.abort_handle());
        all.await.context("the consumer has ended")
    }

    async fn stop(self: Box<Self>) -> Result<()> {
        self.server.stop().await
    }
}

/// A subscription, until it is dropped.
struct Reading(AbortHandle);

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct NatsDevice {
    context: JetStream,
    _reading: Vec<Reading>,
}

#[async_trait]
impl Device for NatsDevice {
    async fn publish(&self, topic: &str, body: Bytes) -> Result<Answer> {
        let answer = self.context.publish(topic.to_owned(), body).await?;
        Ok(Box::pin(async {
            answer.await?;
            Ok(())
        }))
    }
}
