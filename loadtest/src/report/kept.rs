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
        let measures = document.measures();
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

#[cfg(test)]
mod tests {
    use super::super::{Against, Line, Measure, Run, Unit, line};
    use super::*;

    #[derive(Serialize)]
    struct Broken;

    impl Figures for Broken {
        fn lines(&self) -> Vec<Line> {
            vec![line("a figure", "1 < 2")]
        }

        fn measures(&self) -> Vec<Measure> {
            vec![Measure::higher("a", Unit::PerSecond, 1.0, Against::Cores)]
        }

        fn warnings(&self) -> Vec<String> {
            vec!["noise".to_owned()]
        }

        fn broken_promise(&self) -> Option<String> {
            Some("one lost".to_owned())
        }
    }

    #[test]
    fn a_report_among_others_is_kept_whole_and_what_it_says_with_its_name() {
        let runs = [Run::new(Broken, None)];
        let document = Document {
            scenario: "one",
            command: "append",
            arguments: &(),
            relay: None,
            ceilings: None,
            runs: &runs,
        };
        let kept = Kept::new("first".to_owned(), &document).expect("a report");
        assert_eq!(kept.warnings(), ["first: noise"]);
        assert_eq!(kept.broken_promise(), Some("first: one lost"));
        assert_eq!(kept.report["measures"][0]["name"], "a");
        assert_eq!(kept.report["runs"][0]["broken_promise"], "one lost");
        assert!(kept.page().contains("1 &lt; 2") && !kept.page().contains("<html"));
    }
}
