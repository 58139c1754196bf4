//! What a connection costs that does nothing: the time to come in, with a key proved, and the memory
//! to stay.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use futures_util::{SinkExt, StreamExt};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::fan_out::{Socket, connect, enter};
use super::raw::{ANSWER_BYTES, CHALLENGE_BYTES, Hello, LEAN, STRANGERS};
use crate::group::random;
use crate::helper::Helper;
use crate::latency::{Latencies, Percentiles};
use crate::limits::{ANSWER_DEADLINE, OPEN_FILES_RESERVE};
use crate::process::Process;
use crate::report::{self, Against, Line, Measure, Unit, line, quantity};

/// Connections that come in at the same time.
const AT_ONCE: u64 = 64;

/// Numbers of connections at which memory is read: the slope between them is free of what the server
/// needs without any.
const SESSIONS: [usize; 2] = [500, 2500];

/// How long the server is left alone before its memory is read.
const REST: Duration = Duration::from_millis(500);

/// For how long signatures are checked.
const CHECKING: Duration = Duration::from_millis(200);

/// What connections cost.
#[derive(Serialize)]
pub(super) struct Sessions {
    /// Connections a second: TCP, the upgrade, a challenge, and a signature that is checked.
    pub(super) entrances_per_second: f64,
    /// The same of one, while as many as this come at the same time.
    pub(super) entrance: Percentiles,
    at_once: u64,
    /// Memory of the server for each connection that is open and silent.
    pub(super) bytes_each: f64,
    /// What one signature takes that is checked, on one core.
    pub(super) signature_us: f64,
}

/// Lets connections come in for `time`, and then stay.
pub(super) async fn measure(time: Duration) -> Result<Sessions> {
    let signature_us = tokio::task::spawn_blocking(check_signatures).await??;
    let (entrances_per_second, entrance) = come_in(time).await?;
    let bytes_each = stay().await?;
    Ok(Sessions { entrances_per_second, entrance, at_once: AT_ONCE, bytes_each, signature_us })
}

fn check_signatures() -> Result<f64> {
    let key = SigningKey::from_bytes(&random()?);
    let message = random()?;
    let signature = key.sign(&message);
    let key = VerifyingKey::from(&key);
    let (begin, mut checked) = (Instant::now(), 0_u32);
    while begin.elapsed() < CHECKING {
        key.verify_strict(&message, &signature)?;
        checked += 1;
    }
    Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(checked))
}

async fn come_in(time: Duration) -> Result<(f64, Percentiles)> {
    let server = Helper::start(&["raw-relay".to_owned()]).await?;
    let port = server.port();
    let (latencies, number) = (Arc::new(Latencies::new()), Arc::new(AtomicU64::new(0)));
    let begin = Instant::now();
    let mut strangers = JoinSet::new();
    for _ in 0..AT_ONCE {
        let (latencies, number) = (latencies.clone(), number.clone());
        strangers.spawn(async move {
            let key = SigningKey::from_bytes(&random()?);
            while begin.elapsed() < time {
                let number = number.fetch_add(1, Ordering::Relaxed);
                let came = Instant::now();
                timeout(ANSWER_DEADLINE, prove(connect(port, number).await?, &key)).await??;
                let took = u64::try_from(came.elapsed().as_nanos()).unwrap_or(u64::MAX);
                latencies.record(&mut vec![took]);
            }
            anyhow::Ok(())
        });
    }
    while let Some(done) = strangers.join_next().await {
        done??;
    }
    let entrance = latencies.percentiles();
    Ok((entrance.count as f64 / begin.elapsed().as_secs_f64(), entrance))
}

/// What a device does that comes to a relay.
async fn prove(mut socket: Socket, key: &SigningKey) -> Result<()> {
    let hello = Hello { group: STRANGERS, messages: 0, length: 0 };
    socket.send(hello.to_message()).await?;
    let challenge = socket.next().await.context("the server has ended")??.into_data();
    ensure!(challenge.len() == CHALLENGE_BYTES, "no challenge");
    let signature = key.sign(&challenge).to_bytes();
    let proof = [&VerifyingKey::from(key).to_bytes()[..], &signature].concat();
    socket.send(Message::binary(proof)).await?;
    let answer = socket.next().await.context("the server has ended")??;
    ensure!(answer.len() == ANSWER_BYTES, "the server does not believe it");
    Ok(())
}

/// Bytes of the server for each connection that stays.
async fn stay() -> Result<f64> {
    let server = Helper::start(&["raw-relay".to_owned(), LEAN.to_owned()]).await?;
    let files = Process::own().open_files_max()?.saturating_sub(OPEN_FILES_RESERVE);
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    let mut sockets = Vec::new();
    let mut resident = Vec::new();
    for sessions in SESSIONS.map(|sessions| sessions.min(files * sessions / SESSIONS[1])) {
        while sockets.len() < sessions {
            let group = u32::try_from(sockets.len())?;
            let hello = Hello { group, messages: 0, length: 0 };
            sockets.push(enter(server.port(), sockets.len() as u64, hello).await?);
        }
        sleep(REST).await;
        resident.push((sessions, server.process().memory()?.resident as f64));
    }
    let [(few, least), (many, most)] = resident[..] else {
        anyhow::bail!("memory is read twice");
    };
    Ok((most - least) / many.saturating_sub(few).max(1) as f64)
}

impl Sessions {
    pub(super) fn lines(&self) -> Vec<Line> {
        let Self { entrances_per_second, entrance, at_once, bytes_each, signature_us } = self;
        let come = format!(
            "{} by {at_once} at the same time: {}",
            report::rate(*entrances_per_second),
            report::percentiles(entrance)
        );
        vec![
            line("handshakes, a key proved", come),
            line("a bare session", format!("{} of memory", quantity(*bytes_each, "bytes"))),
            line("a signature", format!("{signature_us:.1} µs to check")),
        ]
    }

    pub(super) fn measures(&self) -> Vec<Measure> {
        let rate = self.entrances_per_second;
        let mut measures =
            vec![Measure::higher("handshakes", Unit::PerSecond, rate, Against::Itself)];
        let itself = |_| Against::Itself;
        measures.extend(Measure::latencies("a handshake", &self.entrance, itself));
        let bytes = self.bytes_each;
        measures.push(Measure::lower("a bare session", Unit::Bytes, bytes, Against::Itself));
        let took = self.signature_us;
        measures.push(Measure::lower("a signature", Unit::Microseconds, took, Against::Itself));
        measures
    }
}
