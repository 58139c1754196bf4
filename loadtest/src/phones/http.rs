//! One connection of a phone: requests one after the other, or an event stream.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use ed25519_dalek::{Signer, SigningKey};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sealwire_protocol::signing::device_key;
use serde_json::{Value, json};
use tokio::net::TcpSocket;
use tokio::time::{Instant, sleep, timeout};

use crate::crowd::source;
use crate::limits::{ANSWER_DEADLINE, ATTEMPTS_MAX};

/// How long a refused call waits at most, in seconds, whatever the relay says.
const RETRY_AFTER_MAX: u64 = 60;

/// A phone: a key and a token, and where the relay is.
#[derive(Clone)]
pub(crate) struct Phone {
    key: SigningKey,
    number: u64,
    relay: SocketAddr,
    token: String,
}

/// A connection for requests.
pub(crate) struct Calls {
    phone: Phone,
    sender: SendRequest<Full<Bytes>>,
}

/// What a call was answered by.
pub(crate) enum Answer {
    Done(Value),
    /// The relay asks to wait so long.
    Later(Duration),
}

impl Phone {
    /// A new key, proved, and a connection for its requests.
    pub(crate) async fn enter(relay: SocketAddr, number: u64) -> Result<Calls> {
        let key = SigningKey::from_bytes(&crate::group::random()?);
        Self { key, number, relay, token: String::new() }.beside(&mut |_| {}).await
    }

    /// Another client object of the same app: a connection and a token of its own. `each` is told how
    /// long each of the two calls took.
    pub(super) async fn beside(&self, each: &mut (dyn FnMut(Duration) + Send)) -> Result<Calls> {
        let phone = Self { token: String::new(), ..self.clone() };
        let mut calls = Calls { sender: phone.connect().await?, phone };
        let begun = Instant::now();
        let challenge = calls.insist(Method::POST, "/auth/challenge", json!({})).await?;
        each(begun.elapsed());
        let challenge = challenge["challenge"].as_str().context("a challenge")?.to_owned();
        let mut bytes = [0; 32];
        hex::decode_to_slice(&challenge, &mut bytes).map_err(|error| anyhow!("{error}"))?;
        let signature = hex::encode(calls.phone.key.sign(&bytes).to_bytes());
        let proof = json!({ "challenge": challenge, "signature": signature });
        let begun = Instant::now();
        let session = calls.insist(Method::POST, "/auth/session", proof).await?;
        each(begun.elapsed());
        session["token"].as_str().context("a token")?.clone_into(&mut calls.phone.token);
        Ok(calls)
    }

    /// A connection for requests, with the token that it has.
    pub(crate) async fn calls(&self) -> Result<Calls> {
        Ok(Calls { sender: self.connect().await?, phone: self.clone() })
    }

    /// Its key, as the app writes it.
    pub(super) fn name(&self) -> String {
        device_key(&self.key).to_hex()
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::new(source(self.number), 0))?;
        let stream = timeout(ANSWER_DEADLINE, socket.connect(self.relay)).await??;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Its end shows in the next request.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn request(&self, method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", self.relay.to_string())
            .header("x-device-public-key", device_key(&self.key).to_hex());
        if !self.token.is_empty() {
            request = request.header("x-device-session", &self.token);
        }
        Ok(request.body(Full::new(body))?)
    }

    /// Begins to listen to a stream.
    pub(crate) async fn listen(&self, path: &str) -> Result<Incoming> {
        let mut sender = self.connect().await?;
        for _ in 0..ATTEMPTS_MAX {
            sender.ready().await?;
            let request = self.request(Method::GET, path, Bytes::new())?;
            let answer = timeout(ANSWER_DEADLINE, sender.send_request(request)).await??;
            match patience(&answer) {
                Some(wait) => sleep(wait).await,
                None => {
                    ensure!(answer.status() == StatusCode::OK, "a stream: {}", answer.status());
                    return Ok(answer.into_body());
                }
            }
            sender = self.connect().await?;
        }
        bail!("the relay let no stream begin for {ATTEMPTS_MAX} attempts")
    }
}

impl Calls {
    pub(crate) fn phone(&self) -> &Phone {
        &self.phone
    }

    /// One call.
    pub(crate) async fn call(
        &mut self,
        method: Method,
        path: &str,
        body: &Value,
    ) -> Result<Answer> {
        // A connection that has rested for too long is gone.
        if self.sender.ready().await.is_err() {
            self.sender = self.phone.connect().await?;
            self.sender.ready().await?;
        }
        let request = self.phone.request(method, path, serde_json::to_vec(body)?.into())?;
        let exchange = async {
            let answer = self.sender.send_request(request).await?;
            let (status, later) = (answer.status(), patience(&answer));
            let body = answer.into_body().collect().await?.to_bytes();
            anyhow::Ok((status, later, body))
        };
        let (status, later, body) = timeout(ANSWER_DEADLINE, exchange).await??;
        if let Some(wait) = later {
            return Ok(Answer::Later(wait));
        }
        let json: Value = serde_json::from_slice(&body).unwrap_or_default();
        ensure!(status.is_success(), "the relay refused {path}: {status} {}", json["error"]);
        Ok(Answer::Done(json))
    }

    /// The same, as often as the relay says that waiting helps.
    pub(crate) async fn insist(
        &mut self,
        method: Method,
        path: &str,
        body: Value,
    ) -> Result<Value> {
        for _ in 0..ATTEMPTS_MAX {
            match self.call(method.clone(), path, &body).await? {
                Answer::Done(json) => return Ok(json),
                Answer::Later(wait) => sleep(wait).await,
            }
        }
        bail!("the relay has refused {path} {ATTEMPTS_MAX} times")
    }
}

/// How long to wait, if the relay asks for patience.
fn patience(answer: &Response<Incoming>) -> Option<Duration> {
    let busy = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
    busy.contains(&answer.status()).then(|| {
        let seconds = answer.headers().get("retry-after").and_then(|it| it.to_str().ok());
        let seconds = seconds.and_then(|it| it.parse().ok()).unwrap_or(1);
        Duration::from_secs(seconds.min(RETRY_AFTER_MAX))
    })
}
