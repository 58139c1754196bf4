//! `sealwire push test DEVICE`: the question to the relay that runs, and its answer.
//!
//! The running relay is asked, on the operator's listener, because it holds the store's lock and the
//! credentials: what is tested is what rings. The question is JSON, which no web page can send to this
//! machine without asking first.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{Request, StatusCode, header};
use axum::response::Response;
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use sealwire_actors::ports::{Rang, Trouble};
use sealwire_actors::push::TestRing;
use sealwire_protocol::DeviceKey;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::{Operator, json_answer, unavailable};
use crate::commands::CommandError;

/// Where the question is asked.
pub(super) const PATH: &str = "/push/test";

/// How long the answer may take: a push service has fifteen seconds.
const DEADLINE: Duration = Duration::from_secs(20);

/// Longest answer that is read, in bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;

#[derive(Deserialize, Serialize)]
pub(super) struct Question {
    /// The device's key, in hexadecimal.
    device: String,
}

#[derive(Deserialize, Serialize)]
struct Answer {
    /// Whether a push service has taken the doorbell.
    rang: bool,
    /// What that means.
    message: String,
}

/// Answers the question.
pub(super) async fn ring(
    State(operator): State<Operator>,
    Json(question): Json<Question>,
) -> Response {
    let bytes = hex::decode(&question.device).unwrap_or_default();
    let Some(device) = DeviceKey::from_slice(&bytes) else {
        let message = "device must be 64 hexadecimal digits";
        return super::error_response(StatusCode::BAD_REQUEST, "malformed", message);
    };
    let Some(answer) = operator.0.relay.ring(device).await else {
        return unavailable("the store does not answer");
    };
    let rang = answer == TestRing::Said(Rang::Taken);
    json_answer(StatusCode::OK, &Answer { rang, message: meaning(answer).to_owned() })
}

fn meaning(answer: TestRing) -> &'static str {
    let said = match answer {
        TestRing::Off => return "the relay has no push service: set GOOGLE_APPLICATION_CREDENTIALS",
        TestRing::NoDoorbell => return "the device has not said where its doorbell is",
        TestRing::Said(said) => said,
    };
    match said {
        Rang::Taken => "rung: the push service has taken the doorbell",
        Rang::Unregistered => "the push service does not know the device's token any more",
        Rang::Refused => "the push service refused: the token is another project's, or is none",
        Rang::Later(Trouble::Limited, _) => "the push service says that there are too many",
        Rang::Later(Trouble::Quota, _) => {
            "the push service says that the project's quota is used up"
        }
        Rang::Later(Trouble::ThirdParty, _) => {
            "Apple does not know the project's key: see the Firebase console"
        }
        Rang::Later(Trouble::Unavailable, _) => "the push service says that it cannot do it now",
        Rang::Later(Trouble::Unreachable, _) => "the push service could not be reached in time",
        Rang::Later(Trouble::Unauthorised, _) => {
            "the push service refused the credentials: the account must be of the app's project and may \
             send messages"
        }
    }
}

/// Asks the relay whose operator's listener is here, and says on standard output what it answers.
///
/// # Errors
/// [`CommandError::NotRung`] if the device was not rung, or nobody could be asked.
pub async fn ask(operator: SocketAddr, device: DeviceKey) -> Result<(), CommandError> {
    let not_rung = |message: &str| CommandError::NotRung(message.to_owned());
    let question = serde_json::to_vec(&Question { device: hex::encode(device.0) });
    let request = Request::post(format!("http://{operator}{PATH}"))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(question.unwrap_or_default())))
        .map_err(|_| not_rung("the operator's listener has no address"))?;
    let asked = async {
        let answer =
            Client::builder(TokioExecutor::new()).build_http().request(request).await.ok()?;
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await.ok()?;
        serde_json::from_slice::<Answer>(&body.to_bytes()).ok()
    };
    match timeout(DEADLINE, asked).await.ok().flatten() {
        Some(answer) if answer.rang => Ok(crate::commands::say(&answer.message)?),
        Some(answer) => Err(CommandError::NotRung(answer.message)),
        None => Err(not_rung(&format!("no relay answers at {operator} (operator_listen)"))),
    }
}
