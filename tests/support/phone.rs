//! A phone with the Totals app: what it sends, what it reads of an answer, and when it tries again.
//!
//! It speaks HTTP over real sockets, as the app does, by the rules that docs/HTTP.md gives: which calls are
//! repeated, what a 401 leads to, which headers replace a token.

use std::net::SocketAddr;
use std::time::Duration;

use axum::body::Bytes;
use ed25519_dalek::SigningKey;
use http_body_util::{BodyExt, Full};
use hyper::HeaderMap;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use parking_lot::Mutex;
use sealwire_protocol::DeviceKey;
use sealwire_protocol::signing::{device_key, sign};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

/// How long the app waits for the head of an answer.
const REQUEST_DEADLINE: Duration = Duration::from_secs(12);

/// What the app waits before its second and third try of a call that may be repeated.
const RETRY_PAUSES: [Duration; 2] = [Duration::from_millis(450), Duration::from_millis(1200)];

/// An answer, read as the app reads it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) json: Value,
}

impl Answer {
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The machine's code of a refusal.
    pub(crate) fn error(&self) -> &str {
        self.json["error"].as_str().unwrap_or_default()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The answer, which must be a success.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!(self.is_success(), "{} {}", self.status, self.json);
        self.json
    }

    /// The answer, which must be this refusal, in the one form that refusals have.
    #[track_caller]
    pub(crate) fn refused(self, status: u16, code: &str) -> Value {
        assert_eq!((self.status, self.error()), (status, code), "{}", self.json);
        assert!(self.json["message"].as_str().is_some_and(|text| !text.is_empty()));
        if matches!(status, 429 | 503) {
            let wait = self.header("retry-after").and_then(|text| text.parse::<u64>().ok());
            assert!(wait.is_some_and(|seconds| seconds > 0), "{:?}", self.headers);
        }
        self.json
    }
}

/// What a request is proved with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    None,
    Token(String),
    Signed { challenge: String, signature: String },
}

/// One phone: one key, and one client object of the app.
pub(crate) struct Phone {
    pub(crate) signing: SigningKey,
    base: SocketAddr,
    client: Client<HttpConnector, Full<Bytes>>,
    token: Mutex<Option<String>>,
}

impl Phone {
    pub(crate) fn new(relay: SocketAddr, seed: u8) -> Self {
        let mut bytes = [seed; 32];
        bytes[0] = 0xf0;
        Self::with_key(relay, SigningKey::from_bytes(&bytes))
    }

    pub(crate) fn with_key(relay: SocketAddr, signing: SigningKey) -> Self {
        let client = Client::builder(TokioExecutor::new()).build_http();
        Self { signing, base: relay, client, token: Mutex::new(None) }
    }

    /// Another client object of the same app: same key, a token of its own.
    pub(crate) fn beside(&self) -> Self {
        Self::with_key(self.base, self.signing.clone())
    }

    pub(crate) fn key(&self) -> DeviceKey {
        device_key(&self.signing)
    }

    /// The key as the app writes it.
    pub(crate) fn name(&self) -> String {
        self.key().to_hex()
    }

    pub(crate) fn token(&self) -> Option<String> {
        self.token.lock().clone()
    }

    // ---- requests as they stand

    /// One request, once.
    ///
    /// # Errors
    /// What went wrong below HTTP, or with the time.
    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        proof: &Proof,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, String> {
        let mut request = hyper::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.base))
            .header("content-type", "application/json")
            .header("x-device-public-key", self.name());
        match proof {
            Proof::None => {}
            Proof::Token(token) => request = request.header("x-device-session", token),
            Proof::Signed { challenge, signature } => {
                request = request.header("x-challenge", challenge).header("x-signature", signature);
            }
        }
        let body = Full::new(Bytes::from(body.unwrap_or_default()));
        let request = request.body(body).map_err(|error| error.to_string())?;
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|error| error.to_string())?;
            let (head, body) = answer.into_parts();
            let bytes = body.collect().await.map_err(|error| error.to_string())?.to_bytes();
            let json = serde_json::from_slice(&bytes).unwrap_or_else(|_| json!({}));
            Ok(Answer { status: head.status.as_u16(), headers: head.headers, json })
        };
        timeout(REQUEST_DEADLINE, exchange).await.unwrap_or_else(|_| Err("too late".to_owned()))
    }

    /// A challenge, signed.
    pub(crate) async fn signed(&self) -> Result<Proof, String> {
        let answer = self.repeated("POST", "/auth/challenge", &Proof::None).await?;
        let challenge = answer.ok()["challenge"].as_str().expect("a challenge").to_owned();
        let bytes = hex::decode(&challenge).map_err(|error| error.to_string())?;
        let signature = sign(&self.signing, &bytes).to_hex();
        Ok(Proof::Signed { challenge, signature })
    }

    /// A token, got anew.
    pub(crate) async fn open_session(&self) -> Result<Answer, String> {
        let Proof::Signed { challenge, signature } = self.signed().await? else {
            return Err("not signed".to_owned());
        };
        let body = json!({ "challenge": challenge, "signature": signature }).to_string();
        self.send("POST", "/auth/session", &Proof::None, Some(body.into_bytes())).await
    }

    /// A call that the app repeats by itself: three tries in all.
    async fn repeated(&self, method: &str, path: &str, proof: &Proof) -> Result<Answer, String> {
        for pause in RETRY_PAUSES {
            match self.send(method, path, proof, None).await {
                Ok(answer) if !matches!(answer.status, 408 | 502 | 503 | 504) => return Ok(answer),
                Ok(_) | Err(_) => sleep(pause).await,
            }
        }
        self.send(method, path, proof, None).await
    }

    // ---- requests as the app makes them

    /// A call with whatever proof the app has or gets.
    ///
    /// # Errors
    /// What went wrong below HTTP, or with the time, or getting a token.
    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> Result<Answer, String> {
        let proof = self.proof().await?;
        let answer = self.once(method, path, &proof, body.as_ref()).await?;
        if answer.status != 401 || !matches!(proof, Proof::Token(_)) {
            return Ok(self.adopted(answer));
        }
        // The token is not taken: it is dropped, and the request is signed.
        *self.token.lock() = None;
        let proof = self.signed().await?;
        let answer = self.once(method, path, &proof, body.as_ref()).await?;
        Ok(self.adopted(answer))
    }

    async fn once(
        &self,
        method: &str,
        path: &str,
        proof: &Proof,
        body: Option<&Value>,
    ) -> Result<Answer, String> {
        match (method, body) {
            ("GET", _) => self.repeated(method, path, proof).await,
            (_, body) => {
                let body = body.map(|body| body.to_string().into_bytes());
                self.send(method, path, proof, body).await
            }
        }
    }

    /// The token that the app has, or a new one.
    pub(crate) async fn proof(&self) -> Result<Proof, String> {
        if let Some(token) = self.token() {
            return Ok(Proof::Token(token));
        }
        let answer = self.open_session().await?;
        if !answer.is_success() {
            return Err(format!("no session: {} {}", answer.status, answer.json));
        }
        let token = answer.json["token"].as_str().ok_or("no token")?.to_owned();
        *self.token.lock() = Some(token.clone());
        Ok(Proof::Token(token))
    }

    fn adopted(&self, answer: Answer) -> Answer {
        if let Some(token) = answer.header("x-device-session") {
            *self.token.lock() = Some(token.to_owned());
        }
        answer
    }

    /// A call that must be answered.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, None).await.expect("an answer")
    }

    /// A call that must be answered.
    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.call("POST", path, Some(body)).await.expect("an answer")
    }
}
