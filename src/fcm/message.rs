//! What is said to the push service, all of it, and what its answers mean.
//!
//! A doorbell has no words in it: which log, and which entry. It is the same for everybody and of the
//! same size, and one takes the place of another. There is no notification: the device wakes up,
//! fetches what is sealed, and says itself what its owner sees.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, StatusCode, header};
use sealwire_actors::ports::{Rang, Ring, Trouble, Urgency};
use serde::{Deserialize, Serialize};

/// What every doorbell is called; the Totals app knows no other.
const TYPE: &str = "shared_expense_activity";

/// Of several doorbells that wait for a device, the push service keeps one.
const COLLAPSE_KEY: &str = "doorbell";

/// How long the push service may keep a doorbell: after a day, the app has looked by itself.
const TTL: &str = "86400s";

const DAY_SECONDS: u64 = 86_400;

#[derive(Serialize)]
struct Envelope<'a> {
    message: Message<'a>,
}

#[derive(Serialize)]
struct Message<'a> {
    token: &'a str,
    data: Data<'a>,
    android: Android,
    apns: Apns,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Data<'a> {
    r#type: &'static str,
    group_id: &'a str,
    payload_id: &'a str,
}

#[derive(Serialize)]
struct Android {
    collapse_key: &'static str,
    priority: &'static str,
    ttl: &'static str,
}

#[derive(Serialize)]
struct Apns {
    headers: ApnsHeaders,
    payload: ApnsPayload,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct ApnsHeaders {
    apns_collapse_id: &'static str,
    /// Until when Apple may keep it, in seconds since the epoch: to the end of the day (UTC) after this
    /// one, so that it is the same for everybody who is rung on a day.
    apns_expiration: String,
    /// Apple allows no other for what shows nothing.
    apns_priority: &'static str,
    apns_push_type: &'static str,
}

#[derive(Serialize)]
struct ApnsPayload {
    aps: Aps,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Aps {
    content_available: u8,
}

/// The body of a request at this time; none if it cannot be written, which it can.
pub(super) fn body(token: &str, ring: &Ring, now: SystemTime) -> Option<Vec<u8>> {
    let days = now.duration_since(UNIX_EPOCH).ok()?.as_secs() / DAY_SECONDS;
    let message = Message {
        token,
        data: Data {
            r#type: TYPE,
            group_id: &ring.log.to_uuid_text(),
            payload_id: &ring.payload.to_text(),
        },
        android: Android {
            collapse_key: COLLAPSE_KEY,
            priority: match ring.urgency {
                Urgency::Normal => "NORMAL",
                Urgency::High => "HIGH",
            },
            ttl: TTL,
        },
        apns: Apns {
            headers: ApnsHeaders {
                apns_collapse_id: COLLAPSE_KEY,
                apns_expiration: ((days + 2) * DAY_SECONDS).to_string(),
                apns_priority: "5",
                apns_push_type: "background",
            },
            payload: ApnsPayload { aps: Aps { content_available: 1 } },
        },
    };
    serde_json::to_vec(&Envelope { message }).ok()
}

#[derive(Deserialize)]
struct Refusal {
    error: Problem,
}

#[derive(Deserialize)]
struct Problem {
    #[serde(default)]
    details: Vec<Detail>,
}

#[derive(Deserialize)]
struct Detail {
    #[serde(default, rename = "errorCode")]
    code: Option<String>,
    /// Of an `ErrorInfo`.
    #[serde(default)]
    reason: Option<String>,
}

/// What an answer means. An access token that is not known is no answer for the doorbell: none.
pub(super) fn meaning(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Option<Rang> {
    let details = details(body);
    let code = details.iter().find_map(|detail| detail.code.as_deref());
    let later = |trouble| Rang::Later(trouble, retry_after(headers));
    Some(match status {
        StatusCode::OK => Rang::Taken,
        // The operator's key for Apple is wrong. That can be mended, and the token is not to blame.
        StatusCode::UNAUTHORIZED if code == Some("THIRD_PARTY_AUTH_ERROR") => {
            later(Trouble::ThirdParty)
        }
        StatusCode::UNAUTHORIZED => return None,
        StatusCode::NOT_FOUND if code == Some("UNREGISTERED") => Rang::Unregistered,
        // It is the project that is not found or not ours, not the device.
        StatusCode::NOT_FOUND => Rang::Later(Trouble::Unauthorised, None),
        StatusCode::FORBIDDEN if code != Some("SENDER_ID_MISMATCH") => {
            Rang::Later(Trouble::Unauthorised, None)
        }
        // So all of Google's services say that a project has used up its quota of calls; FCM itself says
        // `QUOTA_EXCEEDED`, which may be of one device.
        StatusCode::TOO_MANY_REQUESTS
            if details.iter().any(|one| one.reason.as_deref() == Some("RATE_LIMIT_EXCEEDED")) =>
        {
            later(Trouble::Quota)
        }
        StatusCode::TOO_MANY_REQUESTS => later(Trouble::Limited),
        // Another project's token, or a token that is none.
        status if status.is_client_error() && status != StatusCode::REQUEST_TIMEOUT => {
            Rang::Refused
        }
        // It is down, or somebody else answers in its place: that says nothing of the token.
        _ => later(Trouble::Unavailable),
    })
}

fn details(body: &[u8]) -> Vec<Detail> {
    let refusal: Option<Refusal> = serde_json::from_slice(body).ok();
    refusal.map(|refusal| refusal.error.details).unwrap_or_default()
}

/// Seconds, or a date.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use sealwire_actors::ports::LogKey;
    use sealwire_actors::totals::payload::PayloadId;
    use sealwire_protocol::LogId;

    use super::*;

    fn ring(log: u8, seq: u64) -> Ring {
        let payload = PayloadId::new(LogKey(i64::from(log)), seq, 7);
        Ring { log: LogId([log; 16]), payload, urgency: Urgency::High }
    }

    /// The third hour of a day, so many seconds on.
    fn at(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(20_000 * DAY_SECONDS + 3 * 3600 + seconds)
    }

    #[test]
    fn a_doorbell_holds_three_words_and_how_to_deliver_them() {
        let text = String::from_utf8(body("a-token", &ring(0x11, 5), at(0)).unwrap()).unwrap();
        let payload = ring(0x11, 5).payload.to_text();
        let expected = format!(
            "{{\"message\":{{\"token\":\"a-token\",\"data\":{{\"type\":\"shared_expense_activity\",\
             \"groupId\":\"11111111-1111-1111-1111-111111111111\",\"payloadId\":\"{payload}\"}},\
             \"android\":{{\"collapse_key\":\"doorbell\",\"priority\":\"HIGH\",\"ttl\":\"86400s\"}},\
             \"apns\":{{\"headers\":{{\"apns-collapse-id\":\"doorbell\",\"apns-expiration\":\"1728172800\",\"apns-priority\":\"5\",\
             \"apns-push-type\":\"background\"}},\"payload\":{{\"aps\":{{\"content-available\":1}}}}}}}}}}"
        );
        assert_eq!(text, expected);
        assert_eq!(body("b-token", &ring(0x99, 1 << 40), at(0)).unwrap().len(), text.len());
        // When in a day it is rung does not show.
        assert_eq!(body("a-token", &ring(0x11, 5), at(12 * 3600)).unwrap(), text.as_bytes());
        assert_ne!(body("a-token", &ring(0x11, 5), at(21 * 3600)).unwrap(), text.as_bytes());
    }

    #[test]
    fn only_unregistered_forgets_and_only_refusals_are_final() {
        let meant = |status: u16, body: &str| {
            meaning(StatusCode::from_u16(status).unwrap(), &HeaderMap::new(), body.as_bytes())
        };
        let error = |code: &str| {
            format!(
                r#"{{"error":{{"code":404,"status":"NOT_FOUND","details":[{{"@type":"x"}},
                {{"@type":"type.googleapis.com/google.firebase.fcm.v1.FcmError","errorCode":"{code}"}}]}}}}"#
            )
        };
        let later = |trouble| Some(Rang::Later(trouble, None));
        assert_eq!(meant(200, "{}"), Some(Rang::Taken));
        assert_eq!(meant(404, &error("UNREGISTERED")), Some(Rang::Unregistered));
        assert_eq!(meant(404, "<html>"), later(Trouble::Unauthorised));
        assert_eq!(meant(410, &error("UNREGISTERED")), Some(Rang::Refused));
        assert_eq!(meant(400, &error("UNREGISTERED")), Some(Rang::Refused));
        assert_eq!(meant(400, &error("INVALID_ARGUMENT")), Some(Rang::Refused));
        assert_eq!(meant(401, ""), None);
        assert_eq!(meant(401, &error("THIRD_PARTY_AUTH_ERROR")), later(Trouble::ThirdParty));
        let quota = r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED","details":[{"@type":
            "type.googleapis.com/google.rpc.ErrorInfo","reason":"RATE_LIMIT_EXCEEDED"}]}}"#;
        assert_eq!(meant(429, quota), later(Trouble::Quota));
        assert_eq!(meant(429, &error("QUOTA_EXCEEDED")), later(Trouble::Limited));
        assert_eq!(meant(403, &error("SENDER_ID_MISMATCH")), Some(Rang::Refused));
        assert_eq!(meant(403, ""), later(Trouble::Unauthorised));
        assert_eq!(meant(429, ""), later(Trouble::Limited));
        assert_eq!(meant(500, ""), later(Trouble::Unavailable));
        assert_eq!(meant(503, ""), later(Trouble::Unavailable));
        // What FCM never says: a proxy, or a page that wants a password.
        for status in [204, 302, 307, 408] {
            assert_eq!(meant(status, ""), later(Trouble::Unavailable), "{status}");
        }
    }

    #[test]
    fn what_is_asked_for_may_be_seconds_or_a_date() {
        let after = |text: &str| {
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, text.parse().unwrap())]);
            retry_after(&headers)
        };
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::ZERO));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        assert!(after(&date).is_some_and(|pause| pause > Duration::from_secs(50)));
        assert_eq!(after("soon"), None);
    }
}
