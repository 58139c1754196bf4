//! Access tokens of a service account: signed for, fetched, kept until shortly before they expire.
//!
//! One call fetches while the others wait for it, and for a moment after a failure all of them are told
//! so without asking: a token endpoint that is down is asked once in a while and not once per doorbell, and
//! not before the time that it has asked for.
//! The cryptography is *ring*'s; what is made here is the text that it signs (RFC 7523).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::Full;
use ring::rand::SystemRandom;
use ring::signature::RSA_PKCS1_SHA256;
use sealwire_actors::limits::PUSH_RETRY_ASKED_MAX;
use sealwire_actors::ports::Trouble;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

use super::Failed;
use super::client::Client;
use super::credentials::Credentials;
use super::message::retry_after;
use crate::secrets::Secret;

/// What the token is for: sending messages, and nothing else of the project.
const SCOPE: &str = "https://www.googleapis.com/auth/firebase.messaging";

const GRANT_TYPE: &str = "urn:ietf:params:oauth:grant-type:jwt-bearer";

/// How long our signature is good; Google allows no longer.
const ASSERTION_LIFETIME: Duration = Duration::from_secs(3600);

/// How long ago we say that we have signed it: Google refuses what was signed in its future, and our clock
/// may be that much ahead of its own.
const CLOCK_AHEAD_MAX: Duration = Duration::from_secs(60);

/// How long before it expires a token is renewed; one that is good for less than twice as long, at half
/// of its time.
const RENEWED_BEFORE: Duration = Duration::from_secs(300);

/// How long before it expires it is not used any more; of one that is good for less than ten times as
/// long, a tenth of its time.
const UNUSED_BEFORE: Duration = Duration::from_secs(10);

/// Longest lifetime of a token that is believed.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);

/// How long after a failure the endpoint is not asked, unless it asks for longer.
const FAILED_PAUSE: Duration = Duration::from_secs(2);

/// How long the endpoint may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// A token, and a number that tells it from others.
#[derive(Clone)]
pub(super) struct AccessToken {
    pub(super) bearer: Secret,
    number: u64,
}

#[derive(Default)]
struct Kept {
    token: Option<Usable>,
    /// Why the last one was not granted, and until when none is asked for.
    failed: Option<(Failed, Instant)>,
    number: u64,
}

/// A token that was granted.
struct Usable {
    token: AccessToken,
    /// From when on another one is asked for.
    renewed: Instant,
    /// From when on it is not used.
    unused: Instant,
}

impl Usable {
    fn new(token: AccessToken, granted: Instant, lifetime: Duration) -> Self {
        let expires = granted + lifetime;
        let renewed = expires - RENEWED_BEFORE.min(lifetime / 2);
        let unused = expires - UNUSED_BEFORE.min(lifetime / 10);
        Self { token, renewed, unused }
    }
}

/// The tokens of one service account.
pub(super) struct Tokens {
    credentials: Credentials,
    client: Client,
    random: SystemRandom,
    kept: Mutex<Kept>,
}

#[derive(Serialize)]
struct Header<'a> {
    alg: &'static str,
    typ: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<&'a str>,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    scope: &'static str,
    aud: &'a str,
    iat: u64,
    exp: u64,
}

#[derive(Deserialize)]
struct Granted {
    access_token: String,
    expires_in: u64,
}

impl Tokens {
    pub(super) fn new(credentials: Credentials, client: Client) -> Self {
        let random = SystemRandom::new();
        Self { credentials, client, random, kept: Mutex::default() }
    }

    /// A token that is good for a while.
    pub(super) async fn get(&self) -> Result<AccessToken, Failed> {
        let mut kept = self.kept.lock().await;
        let now = Instant::now();
        if let Some(usable) = &kept.token
            && now < usable.renewed
        {
            return Ok(usable.token.clone());
        }
        let failed = match kept.failed {
            Some((failed, until)) if now < until => {
                Failed { asked: failed.asked.map(|_| until - now), ..failed }
            }
            Some(_) | None => match self.fetch().await {
                Ok((bearer, lifetime)) => {
                    kept.number += 1;
                    let token = AccessToken { bearer, number: kept.number };
                    kept.token = Some(Usable::new(token.clone(), now, lifetime));
                    kept.failed = None;
                    return Ok(token);
                }
                Err(failed) => {
                    let asked = failed.asked.unwrap_or_default().min(PUSH_RETRY_ASKED_MAX);
                    kept.failed = Some((failed, Instant::now() + asked.max(FAILED_PAUSE)));
                    failed
                }
            },
        };
        match &kept.token {
            // The old one is still good.
            Some(usable) if Instant::now() < usable.unused => Ok(usable.token.clone()),
            Some(_) | None => Err(failed),
        }
    }

    /// The push service does not know this token: it is not used again.
    pub(super) async fn forget(&self, token: &AccessToken) {
        let mut kept = self.kept.lock().await;
        if kept.token.as_ref().is_some_and(|other| other.token.number == token.number) {
            kept.token = None;
        }
    }

    async fn fetch(&self) -> Result<(Secret, Duration), Failed> {
        let wrong = Failed::of(Trouble::Unauthorised);
        let assertion = self.assertion().ok_or(wrong)?;
        // Neither has a character that a form would have to escape, but for the colons.
        let grant = GRANT_TYPE.replace(':', "%3A");
        let form = format!("grant_type={grant}&assertion={}", assertion.expose());
        let request = Request::post(&self.credentials.token_uri)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(Full::new(Bytes::from(form)))
            .map_err(|_| wrong)?;
        let answer = timeout(DEADLINE, self.client.send(request)).await;
        let answer = answer.map_err(|_| Failed::of(Trouble::Unreachable))?;
        let answer = answer.map_err(Failed::of)?;
        let later = |trouble| Failed { trouble, asked: retry_after(&answer.headers) };
        match answer.status {
            StatusCode::OK => {
                let granted: Granted = serde_json::from_slice(&answer.body).map_err(|_| wrong)?;
                let lifetime = Duration::from_secs(granted.expires_in).min(LIFETIME_MAX);
                Ok((Secret::new(granted.access_token), lifetime))
            }
            // Nobody can be rung without it, whatever is said of it.
            StatusCode::TOO_MANY_REQUESTS => Err(later(Trouble::Quota)),
            status if status.is_server_error() => Err(later(Trouble::Unavailable)),
            _ => Err(wrong),
        }
    }

    /// What says that we are this service account, signed.
    fn assertion(&self) -> Option<Secret> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let signed = now.saturating_sub(CLOCK_AHEAD_MAX).as_secs();
        let Credentials { email, key, key_id, token_uri, .. } = &self.credentials;
        let header = Header { alg: "RS256", typ: "JWT", kid: key_id.as_deref() };
        let claims = Claims {
            iss: email,
            scope: SCOPE,
            aud: &token_uri.to_string(),
            iat: signed,
            exp: signed + ASSERTION_LIFETIME.as_secs(),
        };
        let mut text = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&header).ok()?);
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(serde_json::to_vec(&claims).ok()?, &mut text);
        let mut signature = vec![0; key.public().modulus_len()];
        key.sign(&RSA_PKCS1_SHA256, &self.random, text.as_bytes(), &mut signature).ok()?;
        text.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut text);
        Some(Secret::new(text))
    }
}
