//! Firebase Cloud Messaging, HTTP v1: the push service that rings phones.
//!
//! What to say, to whom and when is the actors' business; this says it. A relay that has no credentials
//! has no push service. The crate of this name speaks an endpoint that Google has switched off:
//! docs/decisions/0008 says what was looked at and why this stands here.
//!
//! Holds always: nothing leaves but what [`message`] writes, and it goes to the places that the
//! operator named, over TLS or on this machine. Tokens and credentials are never logged.

mod calls;
mod client;
mod credentials;
mod message;
mod oauth;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Uri, header};
use http_body_util::Full;
use sealwire_actors::ports::{Push, Rang, Ring, Trouble};
use tokio::time::timeout;

use self::calls::Calls;
use self::client::Client;
use self::credentials::Credentials;
pub use self::credentials::FcmError;
pub(crate) use self::credentials::is_private;
use self::oauth::Tokens;

/// How long FCM may take to answer: its own answers take a tenth of a second.
const DEADLINE: Duration = Duration::from_secs(8);

/// See the module's header.
pub struct Fcm {
    calls: Calls,
    sender: Arc<Sender>,
}

/// What a call needs.
struct Sender {
    client: Client,
    tokens: Tokens,
    send: Uri,
}

impl Fcm {
    /// Reads the credentials, starts the thread for calls, and asks nobody yet. `base` is Google's, or
    /// that of a fake.
    ///
    /// # Errors
    /// [`FcmError`] says what is wrong with which file, or that there is no thread.
    pub fn open(credentials: &Path, base: &Uri) -> Result<Self, FcmError> {
        let malformed = || FcmError::Malformed { path: credentials.to_owned() };
        let account = Credentials::read(credentials)?;
        let base_text = base.to_string();
        let send = format!(
            "{}/v1/projects/{}/messages:send",
            base_text.trim_end_matches('/'),
            account.project
        );
        let send: Uri = send.parse().map_err(|_| malformed())?;
        let client = Client::new(&[&send, &account.token_uri])?;
        let tokens = Tokens::new(account, client.clone());
        let sender = Arc::new(Sender { client, tokens, send });
        Ok(Self { calls: Calls::start().map_err(FcmError::Thread)?, sender })
    }
}

impl Sender {
    async fn ring(&self, body: Bytes) -> Result<Rang, Failed> {
        // A token can be withdrawn before it expires: then a new one is tried, once.
        for _ in 0..2 {
            let token = self.tokens.get().await?;
            let request = Request::post(&self.send)
                .header(header::AUTHORIZATION, format!("Bearer {}", token.bearer.expose()))
                .header(header::CONTENT_TYPE, "application/json")
                .body(Full::new(body.clone()))
                .map_err(|_| Failed::of(Trouble::Unauthorised))?;
            let answer = timeout(DEADLINE, self.client.send(request)).await;
            let answer = answer.map_err(|_| Failed::of(Trouble::Unreachable))?;
            let answer = answer.map_err(Failed::of)?;
            match message::meaning(answer.status, &answer.headers, &answer.body) {
                Some(rang) => return Ok(rang),
                None => self.tokens.forget(&token).await,
            }
        }
        Err(Failed::of(Trouble::Unauthorised))
    }
}

/// Why a call came to no answer, and for how long the next one would not, if that was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Failed {
    trouble: Trouble,
    asked: Option<Duration>,
}

impl Failed {
    const fn of(trouble: Trouble) -> Self {
        Self { trouble, asked: None }
    }
}

#[async_trait]
impl Push for Fcm {
    fn platform(&self) -> &'static str {
        "fcm"
    }

    async fn ring(&self, token: &str, ring: &Ring) -> Rang {
        let Some(body) = message::body(token, ring, SystemTime::now()) else {
            return Rang::Refused;
        };
        let sender = self.sender.clone();
        let call = async move { sender.ring(body.into()).await };
        let lost = Err(Failed::of(Trouble::Unreachable));
        let rang = self.calls.run(call).await.unwrap_or(lost);
        rang.unwrap_or_else(|Failed { trouble, asked }| Rang::Later(trouble, asked))
    }
}
