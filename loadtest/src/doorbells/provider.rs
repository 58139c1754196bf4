//! The push service of a measurement, from outside: its process, what a relay has to be told to ring
//! there, and what came.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::json;
use tempfile::TempDir;
use ureq::Agent;

use super::service::{ALONE_PATH, Call, Manners, RUNG_PATH};
use crate::helper::Helper;
use crate::latency::{Latencies, Percentiles};
use crate::limits::ANSWER_DEADLINE;

/// Calls that are made to know how long one takes.
const CALLS_ALONE: usize = 50;

/// A key that nothing but a stand-in believes: the one of the relay's own tests, PKCS#8 in base64.
const KEY: &str = include_str!("../../../tests/support/fcm-key.txt");

/// Longest list of calls that is read at once, in bytes: more than a run of most devices makes.
const CALLS_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// See the module's header.
pub(super) struct Provider {
    helper: Helper,
    directory: TempDir,
    agent: Agent,
    /// How many calls were told.
    told: usize,
}

impl Provider {
    pub(super) async fn start(manners: Manners) -> Result<Self> {
        let arguments = [vec!["push-service".to_owned()], manners.options()].concat();
        let helper = Helper::start(&arguments).await.context("a push service")?;
        let directory = TempDir::new()?;
        let agent = Agent::config_builder()
            .timeout_global(Some(ANSWER_DEADLINE))
            .proxy(None)
            .build()
            .new_agent();
        let provider = Self { helper, directory, agent, told: 0 };
        let key: String = KEY.split_whitespace().collect();
        let file = json!({
            "type": "service_account",
            "project_id": "measured",
            "private_key": format!("-----BEGIN PRIVATE {0}-----\n{key}\n-----END PRIVATE {0}-----\n", "KEY"),
            "client_email": "doorbells@measured.example",
            "token_uri": format!("{}/token", provider.url()),
        });
        std::fs::write(provider.credentials(), file.to_string()).context("credentials")?;
        Ok(provider)
    }

    /// What a relay has to be told to ring here.
    pub(super) fn variables(&self) -> Vec<(&'static str, String)> {
        let credentials = self.credentials().display().to_string();
        vec![("GOOGLE_APPLICATION_CREDENTIALS", credentials), ("FCM_BASE_URL", self.url())]
    }

    /// The calls that came since this was last asked, in order.
    pub(super) async fn rung(&mut self) -> Result<Vec<Call>> {
        let (agent, url) = (self.agent.clone(), format!("{}{RUNG_PATH}{}", self.url(), self.told));
        let asking = tokio::task::spawn_blocking(move || {
            let mut answer = agent.get(url).call()?;
            answer.body_mut().with_config().limit(CALLS_BYTES_MAX).read_to_vec()
        });
        let calls = asking.await?.context("the push service does not answer")?;
        let calls: Vec<Call> =
            serde_json::from_slice(&calls).context("the push service's calls")?;
        self.told += calls.len();
        Ok(calls)
    }

    /// How long a call takes, one after the other, without a relay.
    pub(super) async fn call_alone(&self) -> Result<Percentiles> {
        let (agent, url) = (self.agent.clone(), format!("{}{ALONE_PATH}", self.url()));
        let calling = tokio::task::spawn_blocking(move || {
            let latencies = Latencies::new();
            for _ in 0..CALLS_ALONE {
                let begin = Instant::now();
                agent.get(&url).call()?;
                let took = u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX);
                latencies.record(&mut vec![took]);
            }
            Ok::<_, ureq::Error>(latencies.percentiles())
        });
        calling.await?.context("the push service does not answer")
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.helper.port())
    }

    fn credentials(&self) -> PathBuf {
        self.directory.path().join("account.json")
    }
}
