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
use hyper_util::rt::{TokioExecutor, TokioTimer};
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
    /// A token for one vault.
    Vault(String),
    Signed {
        challenge: String,
        signature: String,
    },
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
        // Less patient than the app with a connection that rests: this client may keep one on which it
        // has never asked anything, which no app does, and the relay closes such a one after five
        // seconds, perhaps when it is asked for the first time.
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(4))
            .build_http();
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
            Proof::Vault(token) => request = request.header("x-vault-token", token),
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

/// What a phone does with groups.
impl Phone {
    /// Makes a group.
    pub(crate) async fn create(&self) -> String {
        let group = self.post("/groups", json!({})).await.ok();
        group["id"].as_str().expect("an id").to_owned()
    }

    /// Joins a group.
    pub(crate) async fn join(&self, group: &str) -> Answer {
        self.post(&format!("/groups/{group}/join"), json!({})).await
    }

    /// Leaves a group.
    pub(crate) async fn leave(&self, group: &str) -> Answer {
        let path = format!("/groups/{group}/members/me");
        self.call("DELETE", &path, None).await.expect("an answer")
    }

    /// The groups that it is shown, as the app reads them: id, and each member with its time.
    pub(crate) async fn groups(&self) -> Vec<(String, Vec<(String, String)>)> {
        let answer = self.get("/groups").await.ok();
        let groups = answer["groups"].as_array().expect("a list");
        groups.iter().map(|group| (text(&group["id"]), members(group))).collect()
    }

    /// The members of a group, each with its time.
    pub(crate) async fn members(&self, group: &str) -> Vec<(String, String)> {
        members(&self.get(&format!("/groups/{group}/members")).await.ok())
    }

    /// Sends a payload to all members.
    pub(crate) async fn send_all(&self, group: &str, kind: &str, blob: &str) -> Answer {
        let body = json!({ "encryptedBlob": blob, "kind": kind });
        self.post(&format!("/groups/{group}/payloads"), body).await
    }

    /// Sends a payload to these.
    pub(crate) async fn send_to(
        &self,
        group: &str,
        kind: &str,
        recipients: &[&Self],
        blob: &str,
    ) -> Answer {
        let recipients: Vec<String> = recipients.iter().map(|phone| phone.name()).collect();
        let body =
            json!({ "encryptedBlob": blob, "recipientPublicKeys": recipients, "kind": kind });
        self.post(&format!("/groups/{group}/payloads/targeted"), body).await
    }

    /// A page of what waits.
    pub(crate) async fn pending(&self, group: &str) -> Vec<Value> {
        let answer = self.get(&format!("/groups/{group}/pending")).await.ok();
        answer["payloads"].as_array().expect("a list").clone()
    }

    /// The blobs of a page.
    pub(crate) async fn blobs(&self, group: &str) -> Vec<String> {
        self.pending(group).await.iter().map(|payload| text(&payload["encryptedBlob"])).collect()
    }

    /// Says where its doorbell is.
    pub(crate) async fn register(&self, token: Option<&str>) {
        let platform = token.map(|_| "fcm");
        let body = json!({ "pushToken": token, "pushPlatform": platform });
        let answer = self.call("PUT", "/groups/push-registration", Some(body)).await;
        answer.expect("an answer").ok();
    }

    /// Acks one payload.
    pub(crate) async fn ack(&self, id: &str) -> Answer {
        let path = format!("/payloads/{id}/ack");
        self.call("POST", &path, None).await.expect("an answer")
    }

    /// Acks several at once.
    pub(crate) async fn ack_all(&self, ids: &[String]) -> Answer {
        self.post("/payloads/ack", json!({ "payloadIds": ids })).await
    }

    /// Opens a stream.
    pub(crate) async fn listen(&self, path: &str) -> Listening {
        self.try_listen(path).await.expect("a stream")
    }

    /// Opens a stream, or says what was said instead.
    ///
    /// # Errors
    /// The refusal, or what went wrong below HTTP with status 0.
    pub(crate) async fn try_listen(&self, path: &str) -> Result<Listening, Answer> {
        let proof = self.proof().await.map_err(|_| broken())?;
        self.listen_with(path, proof).await
    }

    /// The same with this proof.
    ///
    /// # Errors
    /// As above.
    pub(crate) async fn listen_with(&self, path: &str, proof: Proof) -> Result<Listening, Answer> {
        match self.listen_once(path, &proof).await {
            Err(answer) if answer.status == 401 => {
                *self.token.lock() = None;
                let proof = self.signed().await.map_err(|_| broken())?;
                self.listen_once(path, &proof).await
            }
            answered => answered,
        }
    }

    /// The same with this proof and no other.
    ///
    /// # Errors
    /// As above.
    pub(crate) async fn listen_once(&self, path: &str, proof: &Proof) -> Result<Listening, Answer> {
        let mut request = hyper::Request::builder()
            .method("GET")
            .uri(format!("http://{}{path}", self.base))
            .header("content-type", "application/json")
            .header("x-device-public-key", self.name());
        match proof {
            Proof::None => {}
            Proof::Token(token) => request = request.header("x-device-session", token),
            Proof::Vault(token) => request = request.header("x-vault-token", token),
            Proof::Signed { challenge, signature } => {
                request = request.header("x-challenge", challenge).header("x-signature", signature);
            }
        }
        let request = request.body(Full::new(Bytes::new())).expect("a request");
        let answer = self.client.request(request).await.map_err(|_| broken())?;
        let status = answer.status().as_u16();
        if status == 200 {
            return Ok(Listening::new(answer.into_body()));
        }
        let (head, body) = answer.into_parts();
        // It must come to an end, or the app would wait for ever.
        let collected = timeout(REQUEST_DEADLINE, body.collect()).await;
        let bytes = collected.expect("an end").map_err(|_| broken())?;
        let json = serde_json::from_slice(&bytes.to_bytes()).unwrap_or_else(|_| json!({}));
        Err(Answer { status, headers: head.headers, json })
    }
}

/// What is said where no answer came.
fn broken() -> Answer {
    Answer { status: 0, headers: HeaderMap::new(), json: json!({}) }
}

fn text(value: &Value) -> String {
    value.as_str().expect("a string").to_owned()
}

fn members(of: &Value) -> Vec<(String, String)> {
    let members = of["members"].as_array().expect("a list");
    members.iter().map(|one| (text(&one["devicePublicKey"]), text(&one["joinedAt"]))).collect()
}

/// An event that the app acts on.
#[derive(Debug, PartialEq)]
pub(crate) enum Event {
    /// A payload has come.
    Payload(Value),
    /// The groups have changed.
    GroupsChanged,
}

/// A stream, read by the app's rules.
pub(crate) struct Listening {
    body: hyper::body::Incoming,
    unread: Vec<u8>,
    event: String,
    data: Vec<String>,
    /// Lines that were comments: signs of life.
    pub(crate) comments: usize,
    /// Events that the app does not know, each with its data.
    pub(crate) passed_over: Vec<(String, String)>,
}

impl Listening {
    fn new(body: hyper::body::Incoming) -> Self {
        Self {
            body,
            unread: Vec::new(),
            event: String::new(),
            data: Vec::new(),
            comments: 0,
            passed_over: Vec::new(),
        }
    }

    /// The next event that the app acts on; none when the stream has ended.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        loop {
            let (event, data) = self.next_raw().await?;
            match event.as_str() {
                "payload" => {
                    let payload = serde_json::from_str(&data);
                    return Some(Event::Payload(payload.expect("a payload in JSON")));
                }
                "groups_changed" => return Some(Event::GroupsChanged),
                "error" => {}
                _ => self.passed_over.push((event, data)),
            }
        }
    }

    /// The next event with data, its name and its data; none when the stream has ended.
    pub(crate) async fn next_raw(&mut self) -> Option<(String, String)> {
        loop {
            while let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                let line =
                    std::str::from_utf8(&line).expect("UTF-8").trim_end_matches(['\n', '\r']);
                if let Some(event) = self.line(line) {
                    return Some(event);
                }
            }
            match self.body.frame().await {
                Some(Ok(frame)) => {
                    self.unread.extend_from_slice(frame.data_ref().map_or(&[][..], |data| data));
                }
                // What stands at the end without an empty line is still an event.
                Some(Err(_)) | None => return self.dispatch(),
            }
        }
    }

    fn line(&mut self, line: &str) -> Option<(String, String)> {
        if line.is_empty() {
            return self.dispatch();
        }
        if line.starts_with(':') {
            self.comments += 1;
            return None;
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.event = value.to_owned(),
            "data" => self.data.push(value.to_owned()),
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<(String, String)> {
        let (event, data) = (std::mem::take(&mut self.event), std::mem::take(&mut self.data));
        (!data.is_empty()).then(|| (event, data.join("\n")))
    }

    /// The next payload, which must come.
    pub(crate) async fn payload(&mut self) -> Value {
        loop {
            match timeout(super::DEADLINE, self.next()).await.expect("an event in time") {
                Some(Event::Payload(payload)) => return payload,
                Some(Event::GroupsChanged) => {}
                None => panic!("the stream has ended"),
            }
        }
    }

    /// The blobs of the next payloads.
    pub(crate) async fn blobs(&mut self, count: usize) -> Vec<String> {
        let mut blobs = Vec::new();
        for _ in 0..count {
            blobs.push(text(&self.payload().await["encryptedBlob"]));
        }
        blobs
    }

    /// The news that the groups have changed, which must come.
    pub(crate) async fn change(&mut self) {
        let event = timeout(super::DEADLINE, self.next()).await.expect("an event in time");
        assert_eq!(event, Some(Event::GroupsChanged));
    }

    /// Reads until the stream ends.
    pub(crate) async fn until_ended(&mut self) {
        let ended = async { while self.next().await.is_some() {} };
        timeout(super::DEADLINE, ended).await.expect("an end in time");
    }
}
