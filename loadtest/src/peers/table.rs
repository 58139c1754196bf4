//! What was seen of all of them, side by side.

use serde::Serialize;

use super::load::Talk;
use crate::append::{KEPT_UP, Rate};
use crate::ceiling::Best;
use crate::report::{
    Against, Better, Figures, Line, Measure, Plain, Unit, duration, line, median, quantity, rate,
    row, whole,
};

/// One system.
#[derive(Serialize)]
pub(super) struct Column {
    pub(super) name: String,
    pub(super) durability: &'static str,
    /// Memory per silent device, subscribed to three groups.
    pub(super) idle_bytes: f64,
    pub(super) after_over_before: f64,
    /// At each rate.
    pub(super) talks: Vec<Talk>,
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
        let mut lines = vec![
            self.row("", |it| it.name.clone()),
            self.row("an answer means", |it| it.durability.to_owned()),
            self.row("memory per silent device", |it| quantity(it.idle_bytes, "bytes")),
            self.row("memory after all left, over before", |it| {
                format!("{:.2}", it.after_over_before)
            }),
        ];
        let rates = self.columns.first().map_or(0, |column| column.talks.len());
        for place in 0..rates {
            let of = |name: &str, of: &dyn Fn(&Talk) -> String| {
                self.row(name, |it| it.talks.get(place).map(of).unwrap_or_default())
            };
            let title = self.columns.first().and_then(|it| it.talks.get(place)).map(Talk::title);
            lines.extend([
                line(format!("-- {}", title.unwrap_or_default()), ""),
                of("publishes answered", &|it| rate(it.answered_per_second)),
                of("deliveries", &|it| rate(it.delivered_per_second)),
                of("push to answer, p50 / p99", &|it| p50_p99(&it.push_to_answer)),
                of("push to deliver, p50 / p99", &|it| p50_p99(&it.push_to_deliver)),
                of("its cores", &|it| format!("{:.2}", it.cores)),
                of("lost / doubled", &wrong),
                of("due, and never sent", &|it| whole(it.unsent)),
            ]);
        }
        lines.extend([
            line("-- a device that was away", ""),
            self.row("to the last of what waited", |it| duration(median(&it.catch_up_ms) * 1000.0)),
        ]);
        lines
    }

    fn measures(&self) -> Vec<Measure> {
        self.columns.iter().flat_map(Column::measures).collect()
    }

    fn warnings(&self) -> Vec<String> {
        let of = |it: &Column| it.talks.iter().flat_map(|talk| talk.warnings(&it.name)).collect();
        self.columns.iter().flat_map(|it| -> Vec<String> { of(it) }).collect()
    }
}

impl Talk {
    fn title(&self) -> String {
        match self.rate {
            Rate::PerSecond(rate) => format!("{} publishes/s due", whole(rate.into())),
            Rate::Max => "as fast as it goes".to_owned(),
        }
    }

    fn measures(&self, system: &str) -> Vec<Measure> {
        let part = match self.rate {
            Rate::PerSecond(rate) => format!("{system} at {rate}/s: "),
            Rate::Max => format!("{system} saturated: "),
        };
        let per_second = |name: &str, value, best| {
            Measure::higher(format!("{part}{name}"), Unit::PerSecond, value, Against::Best(best))
        };
        let mut measures = vec![
            per_second("publishes answered", self.answered_per_second, Best::Store { acked: true }),
            per_second("deliveries", self.delivered_per_second, Best::FanOut),
            Measure::lower(format!("{part}cores"), Unit::Cores, self.cores, Against::Cores),
        ];
        let (answer, deliver) = (&self.push_to_answer, &self.push_to_deliver);
        let name = format!("{part}push to answer");
        measures.extend(Measure::latencies(&name, answer, Against::sync));
        let name = format!("{part}push to deliver");
        measures.extend(Measure::latencies(&name, deliver, Against::sync));
        measures
    }

    fn warnings(&self, system: &str) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.lost > 0 || self.duplicate > 0 {
            let (lost, doubled, at) = (self.lost, self.duplicate, self.title());
            warnings.push(format!("{system}, {at}: {lost} lost, {doubled} doubled"));
        }
        if let Rate::PerSecond(rate) = self.rate
            && self.answered_per_second < f64::from(rate) * KEPT_UP
        {
            let answered = self.answered_per_second.round();
            warnings.push(format!(
                "{system}: more than it takes: {answered} of {rate} publishes a second were answered; \
                 latencies are those of a queue"
            ));
        }
        warnings
    }
}

impl Column {
    fn measures(&self) -> Vec<Measure> {
        let named = |name: &str| format!("{}: {name}", self.name);
        let session = Against::Best(Best::Sessions(1));
        let (bytes, ratio) = (self.idle_bytes, self.after_over_before);
        let over_before = named("memory after all left, over before");
        let mut measures = vec![
            Measure::lower(named("memory per silent device"), Unit::Bytes, bytes, session),
            Measure::plain(over_before, Plain::Number, Better::Lower, ratio),
        ];
        measures.extend(self.talks.iter().flat_map(|talk| talk.measures(&self.name)));
        let waited: Vec<f64> = self.catch_up_ms.iter().map(|ms| ms * 1000.0).collect();
        let stream = Against::Best(Best::StreamLast { signatures: 0 });
        let name = named("to the last of what waited");
        measures.push(Measure::lower_middle(name, Unit::Microseconds, &waited, stream));
        measures
    }
}
