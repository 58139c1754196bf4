//! A report that is a part of another one: whole, as if it had been taken alone.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::written::Written;
use super::{Document, Figures, page};

/// A report among others.
#[derive(Serialize)]
pub(crate) struct Kept {
    title: String,
    /// What `--json` would have written.
    report: Value,
    /// What a page shows of it.
    #[serde(skip)]
    page: String,
    #[serde(skip)]
    warnings: Vec<String>,
    #[serde(skip)]
    broken_promise: Option<String>,
}

impl Kept {
    /// All of a document, under this title.
    pub(crate) fn new<A: Serialize, F: Figures>(
        title: String,
        document: &Document<'_, A, F>,
    ) -> Result<Self> {
        let ratios = document.ratios();
        let measures = document.measures(&ratios);
        let page = page::body(document, &ratios, &measures)?;
        let runs = document.runs.iter();
        let said = runs.clone().flat_map(|run| &run.warnings);
        let warnings = said.map(|warning| format!("{title}: {warning}")).collect();
        let broken = runs.clone().find_map(|run| run.broken_promise.as_ref());
        let broken_promise = broken.map(|promise| format!("{title}: {promise}"));
        let report = serde_json::to_value(Written::of(document, ratios, measures))?;
        Ok(Self { title, report, page, warnings, broken_promise })
    }

    pub(super) fn title(&self) -> &str {
        &self.title
    }

    pub(super) fn page(&self) -> &str {
        &self.page
    }

    /// What should not be believed of it without a second look.
    pub(crate) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// What the relay did that it must never do; none if it did nothing such.
    pub(crate) fn broken_promise(&self) -> Option<&str> {
        self.broken_promise.as_deref()
    }
}
