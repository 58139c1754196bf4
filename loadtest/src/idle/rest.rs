//! When a relay has come to rest: it uses next to no processor time, and its memory stands still.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::time::sleep;

use crate::process::{Memory, Process};
use crate::progress;

/// A relay keeps a log's actor for ten seconds after its last work, and flushes acks within one:
/// before this time, silence means nothing.
const SILENCE_MIN: Duration = Duration::from_secs(15);

/// Patience.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Between two looks at the process.
const LOOK_PAUSE: Duration = Duration::from_secs(5);

/// Share of one core that a relay at rest may use: heartbeats and timers.
const RESTING_CORES_MAX: f64 = 0.03;

/// Share of its memory by which a relay at rest may differ from one look to the next.
const RESTING_CHANGE_MAX: f64 = 0.002;

/// A relay that rests, or that never did.
pub(super) struct Rest {
    pub(super) memory: Memory,
    pub(super) after: Duration,
    pub(super) rested: bool,
}

/// Waits until the process rests.
pub(super) async fn reach(process: Process) -> Result<Rest> {
    let begin = Instant::now();
    let line = progress::wait("waiting until the relay rests");
    sleep(SILENCE_MIN).await;
    let (mut memory, mut cpu) = (process.memory()?, process.cpu()?);
    loop {
        let looked = Instant::now();
        sleep(LOOK_PAUSE).await;
        let (memory_now, cpu_now) = (process.memory()?, process.cpu()?);
        let change = memory_now.resident.abs_diff(memory.resident) as f64;
        let rested = cpu_now.since(cpu).cores(looked.elapsed()) <= RESTING_CORES_MAX
            && change <= RESTING_CHANGE_MAX * memory.resident as f64;
        (memory, cpu) = (memory_now, cpu_now);
        if rested || begin.elapsed() >= SILENCE_MAX {
            line.finish_and_clear();
            return Ok(Rest { memory, after: begin.elapsed(), rested });
        }
    }
}
