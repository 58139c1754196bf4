//! What the relay says about itself: log lines on standard output, and metrics.
//!
//! **Only Sealwire's own lines are written.** What another crate puts into an event is not ours to
//! vouch for: sqlx knows statements, tungstenite knows frames, hyper knows headers and addresses. So
//! whatever `RUST_LOG` asks for, targets that are not ours are shut, and panics name their place but
//! not a message with values in it.
//!
//! The metrics recorder belongs to the process, because that is how the `metrics` macros find it.
//! Two relays in one process (in tests) add to the same numbers; tests compare differences.

use std::io::{self, IsTerminal};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use sealwire_actors::metrics::DOORBELL_AGE;
use thiserror::Error;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::SetGlobalDefaultError;
use tracing::{Subscriber, error};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry};

use crate::config::{LogFormat, LogSettings};

/// The beginning of every target of ours; a target is the path of the module that speaks.
const OWN_TARGETS: &str = "sealwire";

/// Bounds of the buckets of durations, in seconds: from a cast to an actor (microseconds) to the
/// longest deadline of the store.
const SECONDS_BUCKETS: &[f64] = &[
    0.000_01, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0,
];

/// Bounds of the buckets of everything else that has a size: entries in a commit, for example.
const COUNT_BUCKETS: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0, 16_384.0];

/// Bounds of the buckets of the age of doorbells, in seconds: from a sleeping device, which is rung at
/// once, over one that has ten seconds to ack, to an outage of the push service.
const AGE_BUCKETS: &[f64] =
    &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 12.5, 30.0, 60.0, 300.0, 3600.0, 86_400.0];

/// How often samples that nobody has asked for are folded into their buckets: between two of them,
/// they take memory.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Why there is no log.
#[derive(Debug, Error)]
pub enum TelemetryError {
    /// Something else in this process writes the log already.
    #[error("the log belongs to somebody else already")]
    Log(#[from] SetGlobalDefaultError),
    /// Something else in this process counts already.
    #[error("the metrics belong to somebody else already")]
    Metrics,
}

/// Sends the process's log to standard output. Once per process.
///
/// # Errors
/// [`TelemetryError::Log`] the second time.
pub fn start_log(settings: &LogSettings) -> Result<(), TelemetryError> {
    let colours = io::stdout().is_terminal();
    tracing::subscriber::set_global_default(subscriber(settings, colours, io::stdout))?;
    std::panic::set_hook(Box::new(log_panic));
    Ok(())
}

/// The process's metrics. The first call installs the recorder.
///
/// # Errors
/// [`TelemetryError::Metrics`] if another recorder was there first.
pub fn metrics() -> Result<Metrics, TelemetryError> {
    static RECORDER: OnceLock<Option<Metrics>> = OnceLock::new();
    RECORDER.get_or_init(install_recorder).clone().ok_or(TelemetryError::Metrics)
}

fn install_recorder() -> Option<Metrics> {
    let recorder = PrometheusBuilder::new()
        .set_buckets(COUNT_BUCKETS)
        .and_then(|builder| {
            let durations = Matcher::Suffix("_seconds".to_owned());
            builder.set_buckets_for_metric(durations, SECONDS_BUCKETS)
        })
        .and_then(|builder| {
            let age = Matcher::Full(DOORBELL_AGE.to_owned());
            builder.set_buckets_for_metric(age, AGE_BUCKETS)
        })
        .ok()?
        .build_recorder();
    let metrics = Metrics(recorder.handle());
    metrics::set_global_recorder(recorder).ok()?;
    sealwire_actors::metrics::describe();
    Some(metrics)
}

/// The process's metrics.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// All of them, in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Keeps the memory of samples bounded, for ever.
    pub async fn keep_up(&self) {
        loop {
            tokio::time::sleep(UPKEEP_INTERVAL).await;
            self.0.run_upkeep();
        }
    }
}

fn subscriber<W>(settings: &LogSettings, colours: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_ansi(colours).with_writer(writer);
    let lines: Box<dyn Layer<Registry> + Send + Sync> = match settings.format {
        LogFormat::Human => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    Registry::default().with(lines.with_filter(own_targets(settings)))
}

/// What was asked for, as far as it is ours to say.
fn own_targets(settings: &LogSettings) -> Targets {
    let quiet = if settings.debug { LevelFilter::DEBUG } else { LevelFilter::INFO };
    let Some(asked) = &settings.filter else {
        return Targets::new().with_target(OWN_TARGETS, quiet);
    };
    let own = asked.iter().filter(|(target, _)| target.starts_with(OWN_TARGETS));
    let default = asked.default_level().unwrap_or(quiet);
    Targets::new()
        .with_target(OWN_TARGETS, default)
        .with_targets(own.map(|(target, level)| (target.to_owned(), level)))
}

/// A panic is a bug of ours. Its message is written only if it is fixed text: one that was put
/// together may hold a value.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let place = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = panic.payload().downcast_ref::<&'static str>().unwrap_or(&"(not shown)");
    error!(place, message, "panicked");
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{debug, info};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(format: LogFormat, filter: Option<&str>, speak: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let filter = filter.map(|text| text.parse().unwrap());
        let settings = LogSettings { format, filter, debug: false };
        let subscriber = subscriber(&settings, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, speak);
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn no_other_crate_can_write_to_the_log_whatever_is_asked_for() {
        for filter in [None, Some("trace"), Some("sqlx=trace,hyper=trace,tungstenite=trace,info")] {
            let log = written(LogFormat::Human, filter, || {
                error!(target: "sqlx::query", "select 'planted'");
                error!(target: "hyper::proto", "planted");
                debug!(target: "tungstenite::protocol", "planted");
                info!(target: "sealwire_actors::log", "ours");
            });
            assert!(log.contains("ours") && !log.contains("planted"), "{filter:?}: {log}");
        }
    }

    #[test]
    fn the_filter_chooses_among_our_own_lines() {
        let log = written(LogFormat::Human, Some("warn,sealwire_actors::log=debug"), || {
            debug!(target: "sealwire_actors::log", "one");
            info!(target: "sealwire::listener", "two");
        });
        assert!(log.contains("one") && !log.contains("two"), "{log}");
        assert_eq!(written(LogFormat::Human, Some("off"), || error!("three")), "");
    }

    #[test]
    fn a_json_line_is_one_object_with_its_fields_on_top() {
        let log = written(LogFormat::Json, None, || info!(logs = 7, "loaded"));
        let line: serde_json::Value = serde_json::from_str(log.trim()).unwrap();
        assert_eq!((&line["logs"], &line["message"]), (&7.into(), &"loaded".into()));
    }

    #[test]
    fn relays_in_one_process_count_together_and_durations_have_buckets() {
        let metrics = (metrics().unwrap(), metrics().unwrap());
        metrics::histogram!("sealwire_test_seconds").record(0.004);
        metrics::counter!("sealwire_test_total").increment(1);
        for metrics in [metrics.0, metrics.1] {
            let text = metrics.render();
            assert!(text.contains("sealwire_test_seconds_bucket{le=\"0.005\"} 1"), "{text}");
            assert!(text.contains("sealwire_test_total 1"), "{text}");
        }
    }
}
