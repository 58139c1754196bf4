//! A report as the file that programs read.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::machine::Machine;
use super::{Document, Figures, Measure, Ratio, Run};
use crate::ceiling::Ceilings;
use crate::frame::relay::About;

/// The file of a report.
#[derive(Serialize)]
pub(super) struct Written<'a, A, F> {
    version: &'static str,
    scenario: &'a str,
    command: &'static str,
    arguments: &'a A,
    relay: Option<About>,
    machine: Machine,
    ceilings: Option<&'a Ceilings>,
    ratios: Vec<Vec<Ratio>>,
    measures: Vec<Measure>,
    runs: &'a [Run<F>],
}

impl<'a, A: Serialize, F: Figures> Written<'a, A, F> {
    pub(super) fn of(
        document: &Document<'a, A, F>,
        ratios: Vec<Vec<Ratio>>,
        measures: Vec<Measure>,
    ) -> Self {
        let Document { scenario, command, arguments, relay, ceilings, runs } = document;
        Self {
            version: env!("CARGO_PKG_VERSION"),
            scenario,
            command,
            arguments,
            relay: relay.clone(),
            machine: Machine::this(),
            ceilings: *ceilings,
            ratios,
            measures,
            runs,
        }
    }

    pub(super) fn to_file(&self, path: &Path) -> Result<()> {
        let file = File::create(path).with_context(|| format!("writing {}", path.display()))?;
        let mut file = BufWriter::new(file);
        serde_json::to_writer_pretty(&mut file, self)?;
        writeln!(file)?;
        Ok(file.flush()?)
    }
}
