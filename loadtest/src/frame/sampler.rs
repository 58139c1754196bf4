//! Looks at everything at once, again and again, while a measurement runs: the devices' counts, the
//! relay's process, its own counts, the disk, and this program.
//!
//! It is a thread of its own, so that a busy runtime does not hold it up.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde::Serialize;

use super::disk::{Disk, DiskCounts};
use super::metrics::{Counts, Operator};
use super::relay::{self, Relay};
use super::timeline::Timeline;
use crate::limits::{SAMPLE_PAUSE, SAMPLES_MAX};
use crate::process::{Cpu, Memory, Process, machine_busy, own_cpu};
use crate::tally::{Interval, Tally};

/// Everything at one moment. Counts and processor times are sums since something began: figures are
/// differences of two samples.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    /// Seconds since the run began.
    pub(crate) at_s: f64,
    /// What devices have counted since the sample before.
    #[serde(flatten)]
    pub(crate) devices: Option<Interval>,
    pub(crate) relay: Option<RelaySample>,
    /// What the relay says of itself.
    pub(crate) counts: Option<Counts>,
    pub(crate) disk: Option<DiskCounts>,
    pub(crate) tester: Cpu,
    /// Seconds of processor time of all programs on the machine.
    pub(crate) machine: f64,
}

/// The relay's process.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct RelaySample {
    pub(crate) memory: Memory,
    pub(crate) cpu: Cpu,
    /// How often its threads have waited for something.
    pub(crate) voluntary_switches: u64,
}

/// A thread that samples until it is told to end.
pub(crate) struct Sampler {
    stop: Sender<()>,
    thread: JoinHandle<Result<Vec<Sample>>>,
    began: Instant,
    marks: Vec<(f64, String)>,
}

struct Sources {
    pid: Arc<AtomicU32>,
    operator: Option<Operator>,
    disk: Option<Disk>,
    tally: Option<Arc<Tally>>,
}

impl Sampler {
    /// Begins to sample a run that will take about `length`. Time counts from the tally's beginning,
    /// or from now.
    pub(crate) fn begin(relay: &Relay, tally: Option<Arc<Tally>>, length: Duration) -> Self {
        let sources = Sources {
            pid: relay.pid(),
            operator: relay.operator.clone(),
            disk: relay.disk.clone(),
            tally,
        };
        let pause = SAMPLE_PAUSE.max(length / SAMPLES_MAX);
        let (stop, stopped) = channel();
        let began = sources.tally.as_ref().map_or_else(Instant::now, |tally| tally.began());
        let thread = thread::spawn(move || {
            let mut samples = vec![sources.look(began)?];
            loop {
                let end = stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout);
                samples.push(sources.look(began)?);
                if end {
                    return Ok(samples);
                }
            }
        });
        Self { stop, thread, began, marks: Vec::new() }
    }

    /// Names what begins now.
    pub(crate) fn mark(&mut self, name: impl Into<String>) {
        self.marks.push((self.began.elapsed().as_secs_f64(), name.into()));
    }

    /// Ends, with a last sample.
    pub(crate) fn end(self) -> Result<Timeline> {
        // A thread that has ended already has said why.
        let _ = self.stop.send(());
        let samples = self.thread.join().map_err(|_| anyhow!("the sampler has panicked"))??;
        Ok(Timeline { samples, marks: self.marks })
    }
}

impl Sources {
    fn look(&self, began: Instant) -> Result<Sample> {
        // Asked first: a relay that does not answer takes half a second, and the rest should belong
        // together.
        let counts = self.operator.as_ref().and_then(Operator::counts);
        Ok(Sample {
            at_s: began.elapsed().as_secs_f64(),
            devices: self.tally.as_ref().map(|tally| tally.take_interval()),
            relay: relay::process_of(&self.pid).and_then(|process| look_at(process).ok()),
            counts,
            disk: self.disk.as_ref().and_then(Disk::counts),
            tester: own_cpu()?,
            machine: machine_busy()?,
        })
    }
}

/// A process that has ended has no sample; that it has ended is for the measurement to say.
fn look_at(process: Process) -> Result<RelaySample> {
    Ok(RelaySample {
        memory: process.memory()?,
        cpu: process.cpu()?,
        voluntary_switches: process.voluntary_switches()?,
    })
}
