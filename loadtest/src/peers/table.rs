//! What was seen of all of them, side by side.

use serde::Serialize;

use super::load::Talk;
use crate::ceiling::Best;
use crate::report::{
    Against, Better, Figures, Line, Measure, Plain, Unit, duration, line, median, quantity, rate,
    row,
};

/// One system.
#[derive(Serialize)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) durability: &'static str,
    /// Memory per silent device, subscribed to three groups.
    pub(super) idle_bytes: f64,
    pub(super) after_over_before: f64,
    pub(super) paced: Talk,
    pub(super) saturated: Talk,
    pub(super) catch_up_ms: Vec<f64>,
}

/// All of them.
#[derive(Serialize)]
pub(super) struct Measured {
    columns: Vec<Column>,
}

impl Measured {
    pub(super) fn new(columns: Vec<Column>) -> Self {
        Self { columns }
    }

    fn row(&self, name: &str, of: impl Fn(&Column) -> String) -> Line {
        row(name, self.columns.iter().map(of).collect())
    }
}

impl Figures for Measured {
    fn lines(&self) -> Vec<Line> {
        let p50_p99 = |of: &crate::latency::Percentiles| {
            format!("{} / {}", duration(of.p50_us), duration(of.p99_us))
        };
        let wrong = |talk: &Talk| format!("{} / {}", talk.lost, talk.duplicate);
        vec![
            self.row("", |it| it.name.clone()),
            self.row("an answer means", |it| it.durability.to_owned()),
            self.row("memory per silent device", |it| quantity(it.idle_bytes, "bytes")),
            self.row("memory after all left, over before", |it| {
                format!("{:.2}", it.after_over_before)
            }),
            line("-- at the rate that was asked for", ""),
            self.row("publishes answered", |it| rate(it.paced.answered_per_second)),
            self.row("push to answer, p50 / p99", |it| p50_p99(&it.paced.push_to_answer)),
            self.row("push to deliver, p50 / p99", |it| p50_p99(&it.paced.push_to_deliver)),
            self.row("its cores", |it| format!("{:.2}", it.paced.cores)),
            self.row("lost / doubled", |it| wrong(&it.paced)),
            line("-- as fast as it goes", ""),
            self.row("publishes answered", |it| rate(it.saturated.answered_per_second)),
            self.row("deliveries", |it| rate(it.saturated.delivered_per_second)),
            self.row("its cores", |it| format!("{:.2}", it.saturated.cores)),
            self.row("lost / doubled", |it| wrong(&it.saturated)),
            line("-- a device that was away", ""),
            self.row("to the last of what waited", |it| duration(median(&it.catch_up_ms) * 1000.0)),
        ]
    }

    fn measures(&self) -> Vec<Measure> {
        self.columns.iter().flat_map(Column::measures).collect()
    }
}

impl Column {
    fn measures(&self) -> Vec<Measure> {
        let Self { name: system, paced, saturated, .. } = self;
        let named = |name: &str| format!("{system}: {name}");
        let cores =
            |name: &str, cores| Measure::lower(named(name), Unit::Cores, cores, Against::Cores);
        let per_second = |name: &str, value, best| {
            Measure::higher(named(name), Unit::PerSecond, value, Against::Best(best))
        };
        let waited: Vec<f64> = self.catch_up_ms.iter().map(|ms| ms * 1000.0).collect();
        let stream = Against::Best(Best::StreamLast { signatures: 0 });
        let session = Against::Best(Best::Sessions(1));
        let sync = Against::sync;
        let (store, sockets) = (Best::Store { acked: true }, Best::FanOut);
        let mut measures = vec![
            Measure::lower(
                named("memory per silent device"),
                Unit::Bytes,
                self.idle_bytes,
                session,
            ),
            Measure::plain(
                named("memory after all left, over before"),
                Plain::Number,
                Better::Lower,
                self.after_over_before,
            ),
        ];
        let answer = named("push to answer");
        measures.extend(Measure::latencies(&answer, &paced.push_to_answer, sync));
        let deliver = named("push to deliver");
        measures.extend(Measure::latencies(&deliver, &paced.push_to_deliver, sync));
        measures.extend([
            per_second("publishes answered at a rate", paced.answered_per_second, store),
            cores("cores at a rate", paced.cores),
            per_second("publishes answered", saturated.answered_per_second, store),
            per_second("deliveries", saturated.delivered_per_second, sockets),
            cores("cores", saturated.cores),
            Measure::lower_middle(
                named("to the last of what waited"),
                Unit::Microseconds,
                &waited,
                stream,
            ),
        ]);
        measures
    }
}
