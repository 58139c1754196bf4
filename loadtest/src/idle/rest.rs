//! When a relay has come to rest: it uses next to no processor time, and its memory stands still.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::time::sleep;

use crate::process::{Memory, Process};
use crate::progress;

/// Patience, after the least silence.
const PATIENCE: Duration = Duration::from_secs(120);

/// Between two looks at the process.
const LOOK_PAUSE: Duration = Duration::from_secs(3);

/// Share of one core that a relay at rest may use: heartbeats and timers.
const RESTING_CORES_MAX: f64 = 0.03;

/// Share of its memory by which a relay at rest may differ from one look to the next.
const RESTING_CHANGE_MAX: f64 = 0.002;

/// A relay that rests, or that never did.
pub(crate) struct Rest {
    pub(crate) memory: Memory,
    pub(crate) after: Duration,
    pub(crate) rested: bool,
    /// Cores that it used in the last seconds.
    pub(crate) cores: f64,
}

/// Waits until the process rests, and for `silence` at least.
pub(crate) async fn reach(process: Process, silence: Duration) -> Result<Rest> {
    let begin = Instant::now();
    let line = progress::wait("waiting until the relay rests");
    sleep(silence).await;
    let (mut memory, mut cpu) = (process.memory()?, process.cpu()?);
    loop {
        let looked = Instant::now();
        sleep(LOOK_PAUSE).await;
        let (memory_now, cpu_now) = (process.memory()?, process.cpu()?);
        let change = memory_now.resident.abs_diff(memory.resident) as f64;
        let cores = cpu_now.since(cpu).cores(looked.elapsed());
        let rested =
            cores <= RESTING_CORES_MAX && change <= RESTING_CHANGE_MAX * memory.resident as f64;
        (memory, cpu) = (memory_now, cpu_now);
        if rested || begin.elapsed() >= silence + PATIENCE {
            line.finish_and_clear();
            return Ok(Rest { memory, after: begin.elapsed(), rested, cores });
        }
    }
}
