use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::body::{Body, to_bytes};
use axum::http::Request;
use serde_json::Value;
use tower::ServiceExt as _;

use super::*;

#[derive(Default)]
struct Fake {
    ready: AtomicBool,
    hangs: AtomicBool,
    counted: AtomicU64,
}

#[async_trait]
impl Observed for Fake {
    async fn ready(&self) -> bool {
        if self.hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        self.ready.load(Ordering::Relaxed)
    }

    async fn stats(&self) -> Option<Stats> {
        let groups = self.counted.fetch_add(1, Ordering::Relaxed) + 1;
        self.ready.load(Ordering::Relaxed).then_some(Stats { groups, ..Stats::default() })
    }

    fn metrics(&self) -> String {
        "sealwire_connections 0\n".to_owned()
    }
}

struct Answer {
    status: u16,
    headers: axum::http::HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap()
    }
}

async fn ask(router: &Router, method: &str, path: &str) -> Answer {
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    let response = router.clone().oneshot(request).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = to_bytes(body, 64 * 1024).await.unwrap();
    Answer {
        status: head.status.as_u16(),
        headers: head.headers,
        text: String::from_utf8(bytes.to_vec()).unwrap(),
    }
}

fn relay() -> (Arc<Fake>, Operator) {
    let fake = Arc::new(Fake::default());
    (Arc::clone(&fake), Operator::new(fake))
}

#[tokio::test(start_paused = true)]
async fn health_is_told_whatever_the_store_does() {
    let (fake, operator) = relay();
    fake.hangs.store(true, Ordering::Relaxed);
    let answer = ask(&operator.public_routes(), "GET", "/health").await;
    assert_eq!((answer.status, answer.text.as_str()), (200, r#"{"status":"ok"}"#));
}

#[tokio::test(start_paused = true)]
async fn ready_is_told_only_while_the_store_answers_in_time() {
    let (fake, operator) = relay();
    let router = operator.public_routes();
    let answer = ask(&router, "GET", "/ready").await;
    assert_eq!((answer.status, answer.json()["error"].as_str()), (503, Some("unavailable")));
    assert!(answer.headers[header::RETRY_AFTER].to_str().unwrap().parse::<u64>().unwrap() > 0);

    fake.ready.store(true, Ordering::Relaxed);
    let answer = ask(&router, "GET", "/ready").await;
    assert_eq!((answer.status, answer.text.as_str()), (200, r#"{"status":"ready"}"#));

    fake.hangs.store(true, Ordering::Relaxed);
    tokio::time::advance(READY_KEPT).await;
    let asked = Instant::now();
    assert_eq!(ask(&router, "GET", "/ready").await.status, 503);
    assert!(asked.elapsed() < READY_DEADLINE + Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn sums_are_counted_once_in_a_while_however_many_ask() {
    let (fake, operator) = relay();
    let router = operator.public_routes();
    assert_eq!(ask(&router, "GET", "/stats").await.status, 503);
    fake.ready.store(true, Ordering::Relaxed);
    for _ in 0..5 {
        assert_eq!(ask(&router, "GET", "/stats").await.json()["groups"], 2);
    }
    tokio::time::advance(STATS_KEPT).await;
    assert_eq!(ask(&router, "GET", "/stats").await.json()["groups"], 3);
}

#[tokio::test]
async fn sums_name_nobody() {
    let (fake, operator) = relay();
    fake.ready.store(true, Ordering::Relaxed);
    let stats = ask(&operator.public_routes(), "GET", "/stats").await.json();
    let mut keys: Vec<&String> = stats.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["entries", "groups", "memberships", "sessions", "undelivered", "vaults"]);
    assert!(stats.as_object().unwrap().values().all(Value::is_u64));
}

#[tokio::test]
async fn metrics_are_for_the_operator_alone() {
    let (_, operator) = relay();
    assert_eq!(ask(&operator.public_routes(), "GET", "/metrics").await.status, 404);
    let answer = ask(&operator.operator_routes(), "GET", "/metrics").await;
    assert_eq!((answer.status, answer.text.as_str()), (200, "sealwire_connections 0\n"));
    let kind = answer.headers[header::CONTENT_TYPE].to_str().unwrap();
    assert!(kind.starts_with("text/plain; version=0.0.4"));
}

#[tokio::test]
async fn what_is_not_there_is_refused_in_json() {
    let (_, operator) = relay();
    let router = operator.operator_routes();
    let missing = ask(&router, "GET", "/nothing").await;
    assert_eq!((missing.status, missing.json()["error"].as_str()), (404, Some("not_found")));
    let wrong = ask(&router, "POST", "/metrics").await;
    assert_eq!((wrong.status, wrong.json()["error"].as_str()), (405, Some("method_not_allowed")));
    assert_eq!(wrong.headers[header::ALLOW], "GET,HEAD");
    assert!(wrong.json()["message"].is_string());
}
