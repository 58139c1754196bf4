//! A push service on this machine: a token endpoint and `messages:send`, over real HTTP; if asked, over
//! TLS and HTTP/2, as the real one.
//!
//! It keeps everything that it is sent, down to the headers, and answers what it is told to. A grant
//! must be signed by the one service account that it knows.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, Version};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use ring::signature::{KeyPair, RSA_PKCS1_2048_8192_SHA256, RsaKeyPair, UnparsedPublicKey};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use super::eventually;

/// A key that only this fake believes, PKCS#8 in base64.
const KEY: &str = include_str!("fcm-key.txt");

const PROJECT: &str = "a-project";
const EMAIL: &str = "doorbells@a-project.example";

/// What it is told to answer to a doorbell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    Taken,
    /// The access token has expired: it takes none that it has granted so far.
    Expired,
    Unregistered,
    /// Too many; wait so many seconds.
    Limited(u64),
    Broken,
    /// Down for so many seconds.
    Down(u64),
    /// The project's quota is used up for so many seconds.
    Quota(u64),
    /// Apple does not know the project.
    ThirdParty,
    /// Taken, after so long.
    Slow(Duration),
    Never,
}

/// One request.
#[derive(Clone)]
pub(crate) struct Heard {
    pub(crate) at: Instant,
    pub(crate) version: Version,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
    /// What a doorbell was answered.
    pub(crate) reply: Option<Reply>,
}

impl Heard {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// The token that was rung.
    pub(crate) fn token(&self) -> String {
        self.json()["message"]["token"].as_str().expect("a token").to_owned()
    }

    /// Every byte of it, as far as HTTP shows them.
    pub(crate) fn everything(&self) -> Vec<u8> {
        let mut all = format!("{} {}\n", self.method, self.path).into_bytes();
        for (name, value) in &self.headers {
            all.extend(format!("{name}: {value}\n").into_bytes());
        }
        all.extend(&self.body);
        all
    }
}

struct Inner {
    public_key: Vec<u8>,
    token_uri: String,
    grants: Mutex<Vec<Heard>>,
    doorbells: Mutex<Vec<Heard>>,
    granted: Mutex<u64>,
    /// Access tokens up to this number are not taken.
    expired: Mutex<u64>,
    /// For how many seconds an access token is good that is granted from now on.
    lifetime: AtomicU64,
    /// How many seconds its clock is behind.
    behind: AtomicU64,
    /// What the token endpoint answers next instead of granting: a status, and seconds to wait.
    grant_failures: Mutex<VecDeque<(StatusCode, Option<u64>)>>,
    next: Mutex<VecDeque<Reply>>,
    by_token: Mutex<BTreeMap<String, Reply>>,
    always: Mutex<Reply>,
    /// Every how-manieth doorbell is one too many; 0 for none.
    limited_every: AtomicU64,
    doorbells_seen: AtomicU64,
    /// Connections over TLS so far.
    connections: AtomicU64,
}

/// See the module's header.
pub(crate) struct Fcm {
    /// Scheme, host and port.
    base: String,
    directory: tempfile::TempDir,
    inner: Arc<Inner>,
    serving: JoinHandle<()>,
}

impl Fcm {
    pub(crate) async fn start() -> Self {
        Self::start_with(false).await
    }

    /// Over TLS, with a certificate of its own, and HTTP/2 alone.
    pub(crate) async fn start_secure() -> Self {
        Self::start_with(true).await
    }

    async fn start_with(secure: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let directory = tempfile::tempdir().expect("a directory");
        let base = match secure {
            true => format!("https://localhost:{}", address.port()),
            false => format!("http://{address}"),
        };
        let key: String = KEY.split_whitespace().collect();
        let der = STANDARD.decode(&key).expect("base64");
        let pair = RsaKeyPair::from_pkcs8(&der).expect("a key");
        let token_uri = format!("{base}/token");
        let file = json!({
            "type": "service_account",
            "project_id": PROJECT,
            "private_key_id": "a-key",
            "private_key": format!("-----BEGIN PRIVATE {0}-----\n{key}\n-----END PRIVATE {0}-----\n", "KEY"),
            "client_email": EMAIL,
            "token_uri": token_uri,
        });
        std::fs::write(directory.path().join("account.json"), file.to_string()).expect("written");
        let inner = Arc::new(Inner {
            public_key: pair.public_key().as_ref().to_vec(),
            token_uri,
            grants: Mutex::default(),
            doorbells: Mutex::default(),
            granted: Mutex::new(0),
            expired: Mutex::new(0),
            lifetime: AtomicU64::new(3599),
            behind: AtomicU64::new(0),
            grant_failures: Mutex::default(),
            next: Mutex::default(),
            by_token: Mutex::default(),
            always: Mutex::new(Reply::Taken),
            limited_every: AtomicU64::new(0),
            doorbells_seen: AtomicU64::new(0),
            connections: AtomicU64::new(0),
        });
        let routes = Router::new().fallback(answer).with_state(inner.clone());
        let serving = if secure {
            let tls = acceptor(&directory.path().join("certificate.pem"));
            tokio::spawn(serve_securely(listener, tls, routes, inner.clone()))
        } else {
            tokio::spawn(async move { axum::serve(listener, routes).await.expect("it serves") })
        };
        Self { base, directory, inner, serving }
    }

    /// The file with the certificate that a relay has to trust.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.directory.path().join("certificate.pem")
    }

    /// Connections over TLS so far.
    pub(crate) fn connections(&self) -> u64 {
        self.inner.connections.load(Ordering::Relaxed)
    }

    /// The service account's file.
    pub(crate) fn credentials(&self) -> PathBuf {
        self.directory.path().join("account.json")
    }

    /// Where doorbells are rung.
    pub(crate) fn base(&self) -> String {
        self.base.clone()
    }

    /// What a relay's process is told.
    pub(crate) fn variables(&self) -> [(String, String); 2] {
        let credentials = self.credentials().display().to_string();
        [
            ("GOOGLE_APPLICATION_CREDENTIALS".to_owned(), credentials),
            ("FCM_BASE_URL".to_owned(), self.base()),
        ]
    }

    /// The relay's own client of it.
    pub(crate) fn client(&self) -> Arc<sealwire::fcm::Fcm> {
        let base = self.base().parse().expect("a URL");
        Arc::new(sealwire::fcm::Fcm::open(&self.credentials(), &base).expect("credentials"))
    }

    /// What it answers next, to whichever doorbell, after what it was told before.
    pub(crate) fn reply(&self, reply: Reply) {
        self.inner.next.lock().push_back(reply);
    }

    /// What it answers from now on to doorbells at this token.
    pub(crate) fn reply_to(&self, token: &str, reply: Reply) {
        self.inner.by_token.lock().insert(token.to_owned(), reply);
    }

    /// What it answers from now on, where nothing else is said.
    pub(crate) fn reply_always(&self, reply: Reply) {
        *self.inner.always.lock() = reply;
    }

    /// Every how-manieth doorbell it calls one too many.
    pub(crate) fn limit_every(&self, every: u64) {
        self.inner.limited_every.store(every, Ordering::Relaxed);
    }

    /// Access tokens are good for so many seconds from now on.
    pub(crate) fn grant_for(&self, seconds: u64) {
        self.inner.lifetime.store(seconds, Ordering::Relaxed);
    }

    /// Its clock is so many seconds behind from now on.
    pub(crate) fn set_behind(&self, seconds: u64) {
        self.inner.behind.store(seconds, Ordering::Relaxed);
    }

    /// The token endpoint answers so instead of the next grant.
    pub(crate) fn refuse_grant(&self, status: StatusCode, retry_after: Option<u64>) {
        self.inner.grant_failures.lock().push_back((status, retry_after));
    }

    /// The doorbells so far.
    pub(crate) fn doorbells(&self) -> Vec<Heard> {
        self.inner.doorbells.lock().clone()
    }

    /// The grants so far.
    pub(crate) fn grants(&self) -> Vec<Heard> {
        self.inner.grants.lock().clone()
    }

    /// The tokens that were rung so far, sorted.
    pub(crate) fn rung(&self) -> Vec<String> {
        let mut tokens: Vec<String> = self.doorbells().iter().map(Heard::token).collect();
        tokens.sort_unstable();
        tokens
    }

    /// Waits until so many doorbells have come.
    pub(crate) async fn until_doorbells(&self, count: usize) {
        let what = format!("{count} doorbells");
        eventually(&what, async || self.inner.doorbells.lock().len() >= count).await;
    }
}

impl Drop for Fcm {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// Writes a certificate for this machine into `file`, and accepts with it whoever speaks HTTP/2.
fn acceptor(file: &Path) -> TlsAcceptor {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
    std::fs::write(file, made.cert.pem()).expect("written");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let provider = tokio_rustls::rustls::crypto::ring::default_provider();
    let mut config = ServerConfig::builder_with_provider(provider.into())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .expect("a certificate and its key");
    config.alpn_protocols = vec![b"h2".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

async fn serve_securely(
    listener: TcpListener,
    tls: TlsAcceptor,
    routes: Router,
    inner: Arc<Inner>,
) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, routes, inner) = (tls.clone(), routes.clone(), inner.clone());
        connections.spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            inner.connections.fetch_add(1, Ordering::Relaxed);
            let service = TowerToHyperService::new(routes);
            // However it ends, the relay is the one that has to notice.
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    State(inner): State<Arc<Inner>>,
    version: Version,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let text = |value: &axum::http::HeaderValue| value.to_str().expect("text").to_owned();
    let mut heard = Heard {
        at: Instant::now(),
        version,
        method: method.to_string(),
        // HTTP/2 says scheme and host in the same place.
        path: uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        headers: headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body: body.to_vec(),
        reply: None,
    };
    if heard.path == "/token" {
        inner.grants.lock().push(heard.clone());
        return inner.grant(&heard);
    }
    assert_eq!(heard.path, format!("/v1/projects/{PROJECT}/messages:send"));
    let bearer = heard.headers["authorization"].strip_prefix("Bearer access-").map(str::to_owned);
    let number: u64 = bearer.and_then(|text| text.parse().ok()).expect("a token that was granted");
    let reply = inner.choose(&heard, number);
    heard.reply = Some(reply);
    inner.doorbells.lock().push(heard);
    match reply {
        Reply::Taken => Json::taken(),
        Reply::Slow(pause) => {
            sleep(pause).await;
            Json::taken()
        }
        Reply::Never => std::future::pending().await,
        Reply::Expired => Json::error(StatusCode::UNAUTHORIZED, None),
        Reply::Unregistered => Json::error(StatusCode::NOT_FOUND, Some("UNREGISTERED")),
        Reply::Broken => Json::error(StatusCode::INTERNAL_SERVER_ERROR, Some("INTERNAL")),
        Reply::ThirdParty => Json::error(StatusCode::UNAUTHORIZED, Some("THIRD_PARTY_AUTH_ERROR")),
        Reply::Limited(seconds) => {
            let answer = Json::error(StatusCode::TOO_MANY_REQUESTS, Some("QUOTA_EXCEEDED"));
            ([("retry-after", seconds.to_string())], answer).into_response()
        }
        Reply::Down(seconds) => {
            let answer = Json::error(StatusCode::SERVICE_UNAVAILABLE, Some("UNAVAILABLE"));
            ([("retry-after", seconds.to_string())], answer).into_response()
        }
        Reply::Quota(seconds) => {
            let answer = Json::quota();
            ([("retry-after", seconds.to_string())], answer).into_response()
        }
    }
}

/// FCM's own forms of answers.
struct Json;

impl Json {
    fn taken() -> Response {
        axum::Json(json!({ "name": "projects/a-project/messages/1" })).into_response()
    }

    fn quota() -> Response {
        let kind = "type.googleapis.com/google.rpc.ErrorInfo";
        let details = json!([{ "@type": kind, "reason": "RATE_LIMIT_EXCEEDED" }]);
        let error = json!({ "code": 429, "message": "no", "details": details });
        (StatusCode::TOO_MANY_REQUESTS, axum::Json(json!({ "error": error }))).into_response()
    }

    fn error(status: StatusCode, code: Option<&str>) -> Response {
        let details: Vec<Value> = code
            .map(|code| {
                let kind = "type.googleapis.com/google.firebase.fcm.v1.FcmError";
                json!({ "@type": kind, "errorCode": code })
            })
            .into_iter()
            .collect();
        let error = json!({ "code": status.as_u16(), "message": "no", "details": details });
        (status, axum::Json(json!({ "error": error }))).into_response()
    }
}

impl Inner {
    fn choose(&self, heard: &Heard, number: u64) -> Reply {
        if number <= *self.expired.lock() {
            return Reply::Expired;
        }
        let every = self.limited_every.load(Ordering::Relaxed);
        if every > 0 && self.doorbells_seen.fetch_add(1, Ordering::Relaxed) % every == every - 1 {
            return Reply::Limited(1);
        }
        let next = self.next.lock().pop_front();
        let reply = next
            .or_else(|| self.by_token.lock().get(&heard.token()).copied())
            .unwrap_or(*self.always.lock());
        if reply == Reply::Expired {
            *self.expired.lock() = *self.granted.lock();
        }
        reply
    }

    /// Grants an access token to whoever proves to be the service account.
    fn grant(&self, heard: &Heard) -> Response {
        let form = std::str::from_utf8(&heard.body).expect("text");
        let assertion = form
            .strip_prefix(
                "grant_type=urn%3Aietf%3Aparams%3Aoauth%3Agrant-type%3Ajwt-bearer&assertion=",
            )
            .expect("the form of RFC 7523");
        let (signed, signature) = assertion.rsplit_once('.').expect("three parts");
        let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
        UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &self.public_key)
            .verify(signed.as_bytes(), &signature)
            .expect("signed by the service account");
        let parts: Vec<Value> = signed
            .split('.')
            .map(|part| {
                let bytes = URL_SAFE_NO_PAD.decode(part).expect("base64");
                serde_json::from_slice(&bytes).expect("JSON")
            })
            .collect();
        assert_eq!(parts[0], json!({ "alg": "RS256", "typ": "JWT", "kid": "a-key" }));
        let (iat, exp) = (parts[1]["iat"].as_u64(), parts[1]["exp"].as_u64());
        let expected = json!({
            "iss": EMAIL,
            "scope": "https://www.googleapis.com/auth/firebase.messaging",
            "aud": self.token_uri,
            "iat": iat,
            "exp": iat.map(|iat| iat + 3600),
        });
        assert_eq!((&parts[1], exp.is_some()), (&expected, true));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after the epoch").as_secs();
        let now = now - self.behind.load(Ordering::Relaxed);
        // As Google: not signed in the future, and good for now.
        if iat > Some(now) || exp <= Some(now) {
            let error = json!({ "error": "invalid_grant" });
            return (StatusCode::BAD_REQUEST, axum::Json(error)).into_response();
        }
        if let Some((status, seconds)) = self.grant_failures.lock().pop_front() {
            let mut answer = status.into_response();
            if let Some(seconds) = seconds {
                answer.headers_mut().insert("retry-after", seconds.into());
            }
            return answer;
        }
        let mut granted = self.granted.lock();
        *granted += 1;
        let (token, lifetime) =
            (format!("access-{granted}"), self.lifetime.load(Ordering::Relaxed));
        axum::Json(json!({ "access_token": token, "expires_in": lifetime, "token_type": "Bearer" }))
            .into_response()
    }
}
