//! What the kernel says of a process: memory and processor time, from `/proc`.
//!
//! The relay is a stranger to the load tester; this is how an operator would look at it as well.

use std::fs;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::limits::OPEN_FILES_RESERVE;

/// Clock ticks per second in `/proc/PID/stat`: fixed for programs by the kernel's interface, whatever
/// the kernel's own clock is.
const TICKS_PER_SECOND: u64 = 100;

/// Memory of a process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Memory {
    /// `VmRSS`, in bytes.
    pub(crate) resident: u64,
    /// `RssAnon`, in bytes: without mapped files, such as the program itself.
    pub(crate) anonymous: u64,
}

/// Processor time that a process has used since it began.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Cpu {
    /// In the program, in seconds.
    pub(crate) user: f64,
    /// In the kernel for it, in seconds.
    pub(crate) system: f64,
}

impl std::ops::Add for Cpu {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { user: self.user + other.user, system: self.system + other.system }
    }
}

impl Cpu {
    /// What was used since `before`; all of it, if this is another process.
    pub(crate) fn since(self, before: Self) -> Self {
        if self.user < before.user || self.system < before.system {
            return self;
        }
        Self { user: self.user - before.user, system: self.system - before.system }
    }

    /// Cores that were busy on average.
    pub(crate) fn cores(self, elapsed: Duration) -> f64 {
        (self.user + self.system) / elapsed.as_secs_f64()
    }
}

/// Nanoseconds of the machine's own clock, which all of its processes share.
pub(crate) fn machine_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
    seconds * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or_default()
}

/// Seconds of processor time that all programs and the kernel have used on this machine, all cores
/// together.
pub(crate) fn machine_busy() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    parse_busy(&stat).context("/proc/stat has another form")
}

/// A running process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Process {
    id: u32,
}

impl Process {
    /// The process with this id, if it can be looked at.
    pub(crate) fn find(id: u32) -> Result<Self> {
        let process = Self { id };
        process.memory().with_context(|| format!("no process {id} to look at"))?;
        Ok(process)
    }

    /// This process.
    pub(crate) fn own() -> Self {
        Self { id: std::process::id() }
    }

    pub(crate) fn memory(self) -> Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id))
            .context("the process has ended, or is not ours to look at")?;
        parse_memory(&status).context("/proc/PID/status has no VmRSS")
    }

    pub(crate) fn cpu(self) -> Result<Cpu> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.id))
            .context("the process has ended, or is not ours to look at")?;
        parse_cpu(&stat).context("/proc/PID/stat has another form")
    }

    /// How often its threads have waited for something, those not counted that have ended.
    pub(crate) fn voluntary_switches(self) -> Result<u64> {
        let threads = fs::read_dir(format!("/proc/{}/task", self.id))
            .context("the process has ended, or is not ours to look at")?;
        let mut sum = 0;
        for thread in threads {
            // A thread may end at any time.
            let Ok(status) = fs::read_to_string(thread?.path().join("status")) else { continue };
            sum += parse_switches(&status).context("/proc/PID/task/*/status has another form")?;
        }
        Ok(sum)
    }

    /// How many files it may have open.
    pub(crate) fn open_files_max(self) -> Result<u64> {
        let limits = fs::read_to_string(format!("/proc/{}/limits", self.id))
            .context("the process has ended, or is not ours to look at")?;
        parse_open_files(&limits).context("/proc/PID/limits has another form")
    }
}

/// Refuses more connections than this process may have at the same time.
pub(crate) fn may_open(connections: usize) -> Result<()> {
    let most = Process::own().open_files_max()?;
    ensure!(
        connections as u64 + OPEN_FILES_RESERVE <= most,
        "{connections} connections need more open files than the {most} that one process may have: \
         raise `ulimit -n`, or take fewer devices"
    );
    Ok(())
}

/// Processes that do a part of this one's work, and the time that each was last seen to have used: one
/// that has ended has used it all the same.
static PARTS: Mutex<Vec<(Process, Cpu)>> = Mutex::new(Vec::new());

/// From now on, what this process uses is counted as this program's.
pub(crate) fn count_as_own(id: u32) -> Result<()> {
    let process = Process::find(id)?;
    let cpu = process.cpu()?;
    PARTS.lock().unwrap_or_else(PoisonError::into_inner).push((process, cpu));
    Ok(())
}

/// Processor time of this process and of those that do a part of its work.
pub(crate) fn own_cpu() -> Result<Cpu> {
    let mut sum = Process::own().cpu()?;
    for (process, last) in PARTS.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
        *last = process.cpu().unwrap_or(*last);
        sum = sum + *last;
    }
    Ok(sum)
}

fn parse_memory(status: &str) -> Option<Memory> {
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kibibytes * 1024)
    };
    Some(Memory { resident: field("VmRSS:")?, anonymous: field("RssAnon:")? })
}

fn parse_switches(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
    line.trim().parse().ok()
}

fn parse_cpu(stat: &str) -> Option<Cpu> {
    // The name stands in parentheses and may hold anything; the fields after it are counted from 3.
    let fields = &stat[stat.rfind(')')? + 1..];
    let seconds = |number: usize| {
        let ticks: u64 = fields.split_whitespace().nth(number - 3)?.parse().ok()?;
        Some(ticks as f64 / TICKS_PER_SECOND as f64)
    };
    Some(Cpu { user: seconds(14)?, system: seconds(15)? })
}

fn parse_busy(stat: &str) -> Option<f64> {
    let fields = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> =
        fields.split_whitespace().take(8).map(str::parse).collect::<Result<_, _>>().ok()?;
    // user, nice, system, idle, iowait, irq, softirq, steal.
    let [user, nice, system, _, _, irq, softirq, steal] = ticks[..] else { return None };
    let busy = user + nice + system + irq + softirq + steal;
    Some(busy as f64 / TICKS_PER_SECOND as f64)
}

fn parse_open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_read_whatever_the_process_is_called() {
        let status = "Name:\tx\nVmRSS:\t    2048 kB\nRssAnon:\t     512 kB\n";
        let memory = Memory { resident: 2048 * 1024, anonymous: 512 * 1024 };
        assert_eq!(parse_memory(status), Some(memory));
        assert_eq!(parse_memory("Name:\tx\n"), None);
        assert_eq!(parse_switches("voluntary_ctxt_switches:\t42\nnonvol"), Some(42));

        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 250 50 0 0 20 0 1 0 5 6 7";
        assert_eq!(parse_cpu(stat), Some(Cpu { user: 2.5, system: 0.5 }));

        let busy = parse_busy("cpu  100 20 30 9999 9999 1 2 7 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n");
        assert_eq!(busy, Some(1.6));

        let limits = "Max processes  1  2  processes\nMax open files   20000   20000   files\n";
        assert_eq!(parse_open_files(limits), Some(20_000));
    }

    #[test]
    fn this_process_can_be_looked_at() {
        let memory = Process::own().memory().expect("memory");
        assert!(memory.resident >= memory.anonymous && memory.anonymous > 0);
        assert!(Process::own().cpu().is_ok());
        assert!(Process::own().voluntary_switches().is_ok());
        assert!(Process::own().open_files_max().expect("a limit") > 0);
        assert!(Process::find(u32::MAX).is_err());
    }
}
