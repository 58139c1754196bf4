//! The machine that a report was made on: without it, its figures cannot be compared.

use std::{fmt, fs};

use serde::Serialize;

/// What is said about the machine.
#[derive(Serialize)]
pub(super) struct Machine {
    pub(super) cores: usize,
    processor: Option<String>,
    pub(super) memory_bytes: Option<u64>,
    kernel: Option<String>,
}

impl Machine {
    /// The one that this runs on.
    pub(super) fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).ok();
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        let meminfo = read("/proc/meminfo").unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
            processor: field(&cpuinfo, "model name").map(str::to_owned),
            memory_bytes: field(&meminfo, "MemTotal")
                .and_then(|value| value.strip_suffix("kB")?.trim().parse::<u64>().ok())
                .map(|kibibytes| kibibytes * 1024),
            kernel: read("/proc/sys/kernel/osrelease").map(|text| text.trim().to_owned()),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} cores", self.cores)?;
        if let Some(processor) = &self.processor {
            write!(f, ", {processor}")?;
        }
        if let Some(bytes) = self.memory_bytes {
            write!(f, ", {} GiB", bytes / (1024 * 1024 * 1024))?;
        }
        if let Some(kernel) = &self.kernel {
            write!(f, ", Linux {kernel}")?;
        }
        Ok(())
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start().strip_prefix(':')?.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_name() {
        let text = "processor\t: 0\nmodel name\t: A B\nMemTotal:   7 kB\n";
        assert_eq!(field(text, "model name"), Some("A B"));
        assert_eq!(field(text, "MemTotal"), Some("7 kB"));
        assert_eq!(field(text, "x"), None);
        assert!(Machine::this().cores > 0);
    }
}
