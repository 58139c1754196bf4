//! Recovery vaults: a device's identity, found again with a code.
//!
//! Storing and deleting are the owner's calls and are authenticated. Fetching and reporting a wrong PIN
//! are the calls of a device that has lost everything and has no key to sign with: whoever knows the code
//! may make them, a limited number of times.
//!
//! Holds always: whether a code has a vault shows in the answer and in nothing else: both calls are
//! answered at whole steps of [`ANSWER_STEP`] after they came; every 429 says until when, since the app
//! tells that to the person.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sealwire_actors::ports::RecoveryPut;
use sealwire_actors::recovery::vault::VAULT_VERSION;
use sealwire_actors::recovery::{
    Answer, KdfParams, Locked, Recovery, RecoveryCode, RecoveryVault, Unfit,
};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::time::{Instant, sleep_until};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use super::Api;
use super::auth::Device;
use super::body::Given;
use super::error::{ApiError, Refusal};
use super::instant::iso;
use super::openapi::Nothing;
use crate::operator::json_answer;

/// Calls by code are answered at whole multiples of this: longer than counting and committing take, so
/// that a code with a vault is answered no later than one without.
const ANSWER_STEP: Duration = Duration::from_millis(50);

/// The owner's calls.
pub(super) fn router() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(store, delete))
}

/// The calls of a device that has lost everything.
pub(super) fn open_router() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(fetch)).routes(routes!(report_failure))
}

/// How a PIN becomes a key, by Argon2id.
#[derive(Clone, Copy, Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KdfParamsJson {
    /// Memory in KiB.
    #[schema(minimum = 19_456, maximum = 2_097_152)]
    memory_kb: u32,
    /// Passes over the memory.
    #[schema(minimum = 2, maximum = 100)]
    iterations: u32,
    /// Lanes.
    #[schema(minimum = 1, maximum = 64)]
    parallelism: u32,
}

/// Body of `PUT /identity/vault`.
#[derive(Deserialize, ToSchema, Zeroize, ZeroizeOnDrop)]
#[serde(rename_all = "camelCase")]
pub struct StoreRequest {
    /// 16 characters.
    #[schema(pattern = "^[0-9A-HJKMNP-TV-Z]{16}$")]
    recovery_code: String,
    /// 1.
    #[schema(minimum = 1, maximum = 1)]
    version: u64,
    /// 16 to 64 bytes in base64.
    #[schema(
        min_length = 24,
        max_length = 88,
        pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
    )]
    salt: String,
    /// How the PIN becomes a key.
    #[zeroize(skip)]
    kdf_params: KdfParamsJson,
    /// Sealed under that key, in base64: 29 bytes to 16 KiB.
    #[schema(
        min_length = 40,
        max_length = 21_848,
        pattern = "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"
    )]
    encrypted_blob: String,
}

/// Body of the calls by code.
#[derive(Deserialize, ToSchema, Zeroize, ZeroizeOnDrop)]
#[serde(rename_all = "camelCase")]
pub struct CodeRequest {
    /// 16 characters.
    #[schema(pattern = "^[0-9A-HJKMNP-TV-Z]{16}$")]
    recovery_code: String,
}

/// Answer to `POST /identity/vault/fetch`.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FetchedVault {
    /// In base64.
    salt: String,
    /// How the PIN becomes a key.
    kdf_params: KdfParamsJson,
    /// In base64.
    encrypted_blob: String,
    /// 1.
    version: u8,
}

/// Stores the device's recovery vault, in place of the one before.
#[utoipa::path(
    put, path = "/identity/vault", operation_id = "store_vault", tag = "recovery",
    request_body = StoreRequest,
    responses(
        (status = 200, body = Nothing, description = "Stored; nothing is counted against it"),
        (status = 409, body = Refusal, description = "`recovery_code_taken`: by another device"),
    ),
)]
async fn store(
    State(api): State<Arc<Api>>,
    Device(device): Device,
    Given(request): Given<StoreRequest>,
) -> Result<Response, ApiError> {
    let code = code(&request.recovery_code)?;
    let vault = vault(&request)?;
    match api.recovery.put(device, &code, &vault).await? {
        RecoveryPut::Stored => Ok(done()),
        RecoveryPut::Taken => {
            let message = "another device uses this recovery code";
            Err(ApiError::new(StatusCode::CONFLICT, "recovery_code_taken", message))
        }
    }
}

/// Deletes the device's recovery vault, if it has one.
#[utoipa::path(
    delete, path = "/identity/vault", operation_id = "delete_vault", tag = "recovery",
    responses(
        (status = 200, body = Nothing, description = "It has none now"),
    ),
)]
async fn delete(State(api): State<Arc<Api>>, Device(device): Device) -> Result<Response, ApiError> {
    api.recovery.delete(device).await?;
    Ok(done())
}

/// A recovery vault, by its code. Ten times an hour.
#[utoipa::path(
    post, path = "/identity/vault/fetch", operation_id = "fetch_vault", tag = "recovery",
    request_body = CodeRequest,
    responses(
        (status = 200, body = FetchedVault, description = "As it was stored"),
        (status = 404, body = Refusal, description = "`no_such_vault`"),
        (status = 429, body = Refusal, description = "`locked`, or `rate_limited`: until `lockedUntil`"),
    ),
)]
async fn fetch(
    State(api): State<Arc<Api>>,
    Given(request): Given<CodeRequest>,
) -> Result<Response, ApiError> {
    let code = code(&request.recovery_code)?;
    let answer = in_steps(api.recovery.fetch(&code)).await?;
    match answer {
        Answer::Granted((_, vault)) => Ok(json_answer(StatusCode::OK, &fetched(&vault))),
        Answer::Locked(lock) => Err(locked(&api.recovery, lock)),
        Answer::Unknown => {
            let message = "there is no recovery vault under this code";
            Err(ApiError::new(StatusCode::NOT_FOUND, "no_such_vault", message))
        }
    }
}

/// Tells that a PIN was wrong. The fifth locks for an hour, later ones for longer, a day at most.
///
/// A code without a vault is answered as one with a vault.
#[utoipa::path(
    post, path = "/identity/vault/report-failure", operation_id = "report_vault_failure", tag = "recovery",
    request_body = CodeRequest,
    responses(
        (status = 200, body = Nothing, description = "Counted, if there is such a vault"),
        (status = 429, body = Refusal, description = "`locked`, or `rate_limited`: until `lockedUntil`"),
    ),
)]
async fn report_failure(
    State(api): State<Arc<Api>>,
    Given(request): Given<CodeRequest>,
) -> Result<Response, ApiError> {
    let code = code(&request.recovery_code)?;
    match in_steps(api.recovery.report_failure(&code)).await? {
        Answer::Granted(()) | Answer::Unknown => Ok(done()),
        Answer::Locked(lock) => Err(locked(&api.recovery, lock)),
    }
}

fn done() -> Response {
    json_answer(StatusCode::OK, &json!({}))
}

/// Waits for a result, and then for the next whole step since the beginning.
async fn in_steps<T>(work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let result = work.await;
    let steps = begun.elapsed().as_millis() / ANSWER_STEP.as_millis() + 1;
    let steps = u32::try_from(steps).unwrap_or(u32::MAX);
    sleep_until(begun + ANSWER_STEP.saturating_mul(steps)).await;
    result
}

fn locked(recovery: &Recovery, lock: Locked) -> ApiError {
    let message = "locked after too many tries";
    ApiError::new(StatusCode::TOO_MANY_REQUESTS, "locked", message)
        .with("lockedUntil", iso(lock.until))
        .after(recovery.seconds_until(lock))
}

fn code(text: &str) -> Result<RecoveryCode, ApiError> {
    RecoveryCode::parse(text).ok_or_else(|| {
        ApiError::bad_request("a recovery code has 16 characters of 0-9 A-H J K M N P-T V-Z")
    })
}

fn vault(request: &StoreRequest) -> Result<RecoveryVault, ApiError> {
    if request.version != u64::from(VAULT_VERSION) {
        return Err(ApiError::bad_request("the version of a recovery vault is 1"));
    }
    let decoded = |text: &str| STANDARD.decode(text);
    let not_base64 = |_| ApiError::bad_request("salt and encryptedBlob must be padded base64");
    let KdfParamsJson { memory_kb, iterations, parallelism } = request.kdf_params;
    let vault = RecoveryVault {
        salt: decoded(&request.salt).map_err(not_base64)?,
        kdf: KdfParams { memory_kib: memory_kb, iterations, parallelism },
        blob: Zeroizing::new(decoded(&request.encrypted_blob).map_err(not_base64)?),
    };
    vault.check().map_err(|unfit| match unfit {
        Unfit::Salt => ApiError::bad_request("the salt must have 16 to 64 bytes"),
        Unfit::TooShort => ApiError::bad_request("the blob is too short to be sealed"),
        Unfit::TooLarge => ApiError::too_large(),
        Unfit::Kdf => {
            let message =
                "kdfParams are weaker than anybody should use, or more than a phone can do";
            ApiError::new(StatusCode::BAD_REQUEST, "kdf_params", message)
        }
    })?;
    Ok(vault)
}

fn fetched(vault: &RecoveryVault) -> FetchedVault {
    let KdfParams { memory_kib, iterations, parallelism } = vault.kdf;
    FetchedVault {
        salt: STANDARD.encode(&vault.salt),
        kdf_params: KdfParamsJson { memory_kb: memory_kib, iterations, parallelism },
        encrypted_blob: STANDARD.encode(&vault.blob),
        version: VAULT_VERSION,
    }
}
