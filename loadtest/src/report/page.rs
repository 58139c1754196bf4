//! A report as a page: the table, what it should be taken with, and what happened over time.
//!
//! One file without scripts, that shows the same wherever it is opened.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use super::machine::Machine;
use super::plot::{self, Axis, COLOURS, Series};
use super::{Document, Figures, Line, Measure, RATIOS, Ratio, Run};
use crate::frame::sampler::Sample;
use crate::frame::timeline::Timeline;
use crate::process::Cpu;

const STYLE: &str = "
:root { color-scheme: light; --ink: #1d2127; --soft: #5b626b; --line: #e3e6ea; --warn: #8a4b00; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 2rem auto; padding: 0 1.2rem;
       max-width: 84rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
p.about { color: var(--soft); margin: .2rem 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .6rem 0; }
td { padding: .18rem 1.2rem .18rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td:first-child { color: var(--soft); white-space: nowrap; }
tr.part td { color: var(--ink); font-weight: 600; padding-top: .8rem; }
ul.warnings { color: var(--warn); padding-left: 1.2rem; }
div.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(32rem, 1fr)); gap: 1.2rem 2rem;
            margin: 1rem 0; }
figure { margin: 0; } figure svg { width: 100%; height: auto; display: block; }
figcaption { font-weight: 600; } figcaption span { font-weight: 400; color: var(--soft);
             margin-left: .9rem; font-size: .9em; white-space: nowrap; }
i.key { display: inline-block; width: .9rem; height: .2rem; margin-right: .35rem;
        vertical-align: middle; }
";

/// Writes the page of a report.
pub(super) fn write<A: Serialize, F: Figures>(
    path: &Path,
    document: &Document<'_, A, F>,
    ratios: &[Vec<Ratio>],
    measures: &[Measure],
) -> Result<()> {
    let page = page(document, ratios, measures)?;
    std::fs::write(path, page).with_context(|| format!("writing {}", path.display()))
}

fn page<A: Serialize, F: Figures>(
    document: &Document<'_, A, F>,
    ratios: &[Vec<Ratio>],
    measures: &[Measure],
) -> Result<String> {
    let title = escape(document.scenario);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n\
         <title>{title} – Sealwire under load</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>\n"
    );
    page.push_str(&body(document, ratios, measures)?);
    page.push_str("</html>\n");
    Ok(page)
}

/// What a page shows below its title.
pub(super) fn body<A: Serialize, F: Figures>(
    document: &Document<'_, A, F>,
    ratios: &[Vec<Ratio>],
    measures: &[Measure],
) -> Result<String> {
    let mut page = String::new();
    let relay = document.relay.as_ref().map(ToString::to_string).unwrap_or_default();
    let arguments = parameters(document.command, &serde_json::to_value(document.arguments)?);
    for about in [&relay, &Machine::this().to_string(), &arguments] {
        writeln!(page, "<p class=\"about\">{}</p>", escape(about))?;
    }
    if let Some(ceilings) = document.ceilings {
        page.push_str("<h2>What this machine does at best</h2>\n");
        table(&mut page, &ceilings.lines())?;
    }
    for ((number, run), ratios) in (1..).zip(document.runs).zip(ratios) {
        if document.runs.len() > 1 {
            writeln!(page, "<h2>Run {number} of {}</h2>", document.runs.len())?;
        }
        show_run(&mut page, run, ratios)?;
    }
    if let Some(lacks) = document.lacks() {
        writeln!(page, "<p class=\"about\">{}</p>", escape(lacks))?;
    }
    if document.runs.len() > 1 {
        page.push_str("<h2>All runs: median (lowest to highest)</h2>\n");
        table(&mut page, &measures.iter().map(Measure::line).collect::<Vec<_>>())?;
    }
    Ok(page)
}

/// What was asked for, in one line.
fn parameters(command: &str, arguments: &Value) -> String {
    let mut text = command.to_owned();
    for (name, value) in arguments.as_object().into_iter().flatten() {
        let value = match value {
            Value::Null | Value::Object(_) => continue,
            Value::String(text) => text.clone(),
            Value::Array(list) => {
                let plain = |it: &Value| it.as_str().map_or_else(|| it.to_string(), str::to_owned);
                list.iter().map(plain).collect::<Vec<_>>().join(",")
            }
            Value::Bool(_) | Value::Number(_) => value.to_string(),
        };
        text.push_str(&format!(" --{} {value}", name.replace('_', "-")));
    }
    text
}

fn show_run<F: Figures>(page: &mut String, run: &Run<F>, ratios: &[Ratio]) -> Result<()> {
    let warnings = run.broken_promise.iter().chain(&run.warnings);
    let items: String = warnings.map(|warning| format!("<li>{}</li>\n", escape(warning))).collect();
    if !items.is_empty() {
        writeln!(page, "<ul class=\"warnings\">\n{items}</ul>")?;
    }
    page.push_str("<div class=\"plots\">\n");
    for (title, axis, series) in plots(&run.timeline) {
        let Some(svg) = plot::draw(&series, axis, &run.timeline.marks)? else { continue };
        let keys: String = series
            .iter()
            .zip(COLOURS.iter().cycle())
            .map(|(series, colour)| {
                let plotters::style::RGBColor(red, green, blue) = colour;
                let name = escape(series.name);
                format!(
                    "<span><i class=\"key\" style=\"background:rgb({red},{green},{blue})\"></i>{name}</span>"
                )
            })
            .collect();
        writeln!(page, "<figure><figcaption>{title}{keys}</figcaption>{svg}</figure>")?;
    }
    page.push_str("</div>\n");
    table(page, &run.figures.lines())?;
    if !ratios.is_empty() {
        writeln!(page, "<h2>{}</h2>", escape(RATIOS))?;
        table(page, &ratios.iter().map(Ratio::line).collect::<Vec<_>>())?;
    }
    for kept in &run.reports {
        let (title, body) = (escape(kept.title()), kept.page());
        writeln!(page, "<section>\n<h2>{title}</h2>\n{body}</section>")?;
    }
    Ok(())
}

fn table(page: &mut String, lines: &[Line]) -> Result<()> {
    let columns = lines.iter().map(|line| line.values.len()).max().unwrap_or(1);
    page.push_str("<table>\n");
    for Line { label, values } in lines {
        let label = escape(label);
        if let Some(part) = label.strip_prefix("-- ") {
            let all = columns + 1;
            writeln!(page, "<tr class=\"part\"><td colspan=\"{all}\">{part}</td></tr>")?;
        } else if let [value] = &values[..] {
            let value = escape(value);
            writeln!(page, "<tr><td>{label}</td><td colspan=\"{columns}\">{value}</td></tr>")?;
        } else {
            let cells = values.iter().map(|value| format!("<td>{}</td>", escape(value)));
            writeln!(page, "<tr><td>{label}</td>{}</tr>", cells.collect::<String>())?;
        }
    }
    page.push_str("</table>\n");
    Ok(())
}

/// Two samples less apart than this, in seconds, belong to two parts of a run, or to its end.
const APART_S_MIN: f64 = 0.1;

const MEBIBYTE: f64 = 1024.0 * 1024.0;

type Plot = (&'static str, Axis, Vec<Series>);

/// What happened over time.
fn plots(timeline: &Timeline) -> Vec<Plot> {
    let samples = &timeline.samples;
    let of = |name, value: &dyn Fn(&Sample) -> Option<f64>| {
        let points = samples.iter().map(|sample| (sample.at_s, value(sample))).collect();
        Series { name, points }
    };
    // What is a sum is shown as its rise, per second.
    let rise = |name, value: &dyn Fn(&Sample, &Sample) -> Option<f64>| {
        let per_second = |pair: &[Sample]| {
            let elapsed_s = pair[1].at_s - pair[0].at_s;
            let rise = value(&pair[0], &pair[1]).filter(|_| elapsed_s > APART_S_MIN);
            (pair[1].at_s, rise.map(|rise| rise.max(0.0) / elapsed_s))
        };
        Series { name, points: samples.windows(2).map(per_second).collect() }
    };
    let latency = |sample: &Sample, pick: fn(&crate::latency::Percentiles) -> f64| {
        let devices = sample.devices.as_ref()?;
        devices.push_to_deliver.as_ref().or(devices.push_to_appended.as_ref()).map(pick)
    };
    let seconds = |before: Cpu, after: Cpu| {
        let used = after.since(before);
        used.user + used.system
    };
    vec![
        (
            "Latency since due",
            Axis::Logarithmic(decade),
            vec![
                of("p50", &|sample| latency(sample, |of| of.p50_us)),
                of("p99", &|sample| latency(sample, |of| of.p99_us)),
                of("max", &|sample| latency(sample, |of| of.max_us)),
            ],
        ),
        (
            "Throughput",
            Axis::Linear(super::rate),
            vec![
                rise("durable appends", &|_, after| Some(after.devices.as_ref()?.appended as f64)),
                rise("deliveries", &|_, after| Some(after.devices.as_ref()?.delivered as f64)),
            ],
        ),
        (
            "The relay's memory",
            Axis::Linear(|mebibytes| format!("{mebibytes:.0} MiB")),
            vec![
                of("resident", &|sample| Some(sample.relay?.memory.resident as f64 / MEBIBYTE)),
                of("anonymous", &|sample| Some(sample.relay?.memory.anonymous as f64 / MEBIBYTE)),
                of("in outboxes", &|sample| {
                    Some(sample.counts.as_ref()?.outbox_bytes as f64 / MEBIBYTE)
                }),
            ],
        ),
        (
            "Processor time",
            Axis::Linear(|cores| format!("{cores:.2} cores")),
            vec![
                rise("relay", &|before, after| Some(seconds(before.relay?.cpu, after.relay?.cpu))),
                rise("load tester", &|before, after| Some(seconds(before.tester, after.tester))),
                rise("whole machine", &|before, after| Some(after.machine - before.machine)),
            ],
        ),
        (
            "Commits and flushes of the disk",
            Axis::Linear(super::rate),
            vec![
                rise("commits", &|before, after| {
                    let (before, after) = (before.counts.as_ref()?, after.counts.as_ref()?);
                    Some(after.since(before).commits as f64)
                }),
                rise("flushes", &|before, after| {
                    Some(after.disk?.flushes?.saturating_sub(before.disk?.flushes?) as f64)
                }),
            ],
        ),
        (
            "Sessions",
            Axis::Linear(|sessions| super::whole(sessions.round() as u64)),
            vec![of("open", &|sample| Some(sample.counts.as_ref()?.sessions as f64))],
        ),
    ]
}

/// A power of ten of microseconds, as short as it can be read.
fn decade(microseconds: f64) -> String {
    match microseconds.round() as u64 {
        less @ ..1_000 => format!("{less} µs"),
        less @ ..1_000_000 => format!("{} ms", less / 1_000),
        more => format!("{} s", more / 1_000_000),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::row;
    use super::*;

    #[test]
    fn what_was_typed_cannot_become_markup() {
        assert_eq!(escape("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }

    #[test]
    fn what_was_asked_for_can_be_typed_again() {
        let arguments = serde_json::json!({
            "groups": 2, "rate": ["10", "max"], "frame": {"repeat": 1}, "churn": null,
        });
        assert_eq!(parameters("append", &arguments), "append --groups 2 --rate 10,max");
    }

    #[test]
    fn parts_of_a_table_are_headings() {
        let mut page = String::new();
        let lines = [super::super::line("-- saturated", ""), super::super::line("a<b", "1")];
        table(&mut page, &lines).expect("a table");
        assert!(page.contains("<tr class=\"part\"><td colspan=\"2\">saturated</td></tr>"));
        assert!(page.contains("<td>a&lt;b</td><td colspan=\"1\">1</td>"));
        let mut page = String::new();
        let lines = [super::super::line("a", "1"), row("b", vec!["2".into(), "3<".into()])];
        table(&mut page, &lines).expect("a table");
        assert!(page.contains("<td>a</td><td colspan=\"2\">1</td>"), "{page}");
        assert!(page.contains("<td>b</td><td>2</td><td>3&lt;</td>"), "{page}");
    }
}
