//! The relay among its peers: measured by the same scenarios as always, which check more.

use std::path::Path;

use anyhow::{Context, Result};
use async_trait::async_trait;

use super::load::{Talk, WARM_UP};
use super::peer::{READINGS, SILENT_GROUPS};
use super::{Contender, Load};
use crate::append::{self, Rate};
use crate::frame::Measurement;
use crate::frame::relay::{Relay, Target};
use crate::{catch_up, idle};

struct Sealwire {
    relay: Relay,
}

/// Starts it.
pub(super) async fn start(program: &Path, database: Option<String>) -> Result<Box<dyn Contender>> {
    let target = Target {
        relay: Some(program.to_owned()),
        database,
        directory: None,
        url: String::new(),
        pid: None,
        operator: None,
        disk: None,
    };
    Ok(Box::new(Sealwire { relay: Relay::reach(&target).await? }))
}

#[async_trait(?Send)]
impl Contender for Sealwire {
    fn name(&self) -> String {
        self.relay.about().to_string()
    }

    fn durability(&self) -> &'static str {
        "on disk before the answer"
    }

    async fn talk(&mut self, load: &Load, rate: Rate) -> Result<Talk> {
        let arguments = append::Arguments {
            members: load.members,
            in_flight: load.in_flight,
            ..append::Arguments::talk(load.groups, rate, load.body, (WARM_UP, load.seconds))
        };
        let measured = append::measure_rate(&arguments, rate, &mut self.relay, None);
        let (step, _) = Box::pin(measured).await?;
        let relay = step.server.as_ref().and_then(|server| server.relay);
        Ok(Talk {
            rate,
            unsent: step.unsent,
            answered_per_second: step.appended_per_second,
            delivered_per_second: step.delivered_per_second,
            push_to_answer: step.push_to_appended,
            push_to_deliver: step.push_to_deliver.context("receivers were connected")?,
            lost: step.faults.lost,
            duplicate: step.faults.duplicate,
            cores: relay.map_or(0.0, |relay| relay.cores_user + relay.cores_system),
        })
    }

    async fn idle(&mut self, load: &Load) -> Result<(f64, f64)> {
        let arguments = idle::Arguments {
            sessions: load.sessions.clone(),
            groups: SILENT_GROUPS,
            members: load.members,
            body: load.silent_body,
            rest: load.rest,
            after: load.after,
            process_max: None,
        };
        let measured = Box::pin(arguments.measure(&mut self.relay)).await?;
        let per_session = measured.bytes_per_session.context("memory is read twice")?;
        Ok((per_session, measured.after_over_before))
    }

    async fn catch_up(&mut self, load: &Load) -> Result<Vec<f64>> {
        let arguments = catch_up::Arguments {
            entries: load.entries,
            body: load.body,
            devices: 1,
            runs: READINGS,
            signatures: false,
            live_rate: None,
            live_groups: 1,
            live_seconds: 1,
        };
        let measured = Box::pin(arguments.measure(&mut self.relay)).await?;
        Ok(measured.readings.into_iter().flat_map(|readings| readings.last_ms).collect())
    }

    async fn stop(self: Box<Self>) -> Result<()> {
        self.relay.stop().await
    }
}
