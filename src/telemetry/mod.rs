//! Logs and metrics: set up once per process, used everywhere through `tracing` and `metrics`.
//!
//! Logs go only to standard error; the service manager stores them. Metrics are rendered on request, on a separate
//! route.

use std::{io::IsTerminal, sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;

mod series;

use series::{LimitedSeries, SERIES_PER_METRIC};

use crate::platform::{
    clock,
    settings::{SettingType, section},
    version,
};

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

impl SettingType for LogFormat {
    const KIND: &'static str = "`text` or `json`";
}

section! {
    /// The service's log, on standard error.
    pub struct LogSection {
        /// Lowest level that is written, or a filter by module such as `info,mayfly::http=debug`.
        level: String = "info".to_owned();
        /// `text` for people, `json` for machines (one object per line).
        format: LogFormat = LogFormat::Text;
    }
}

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("the log filter {filter:?} is not usable: {cause}")]
    Filter { filter: String, cause: String },
    #[error("this process logs already")]
    Twice,
}

/// Starts logging. Once per process, before anything that has something to say.
pub fn start_logging(log: &LogSection) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(&log.level)
        .map_err(|cause| TelemetryError::Filter { filter: log.level.clone(), cause: cause.to_string() })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Otherwise a failed write of a line would be reported on standard error, which panics if it is closed.
        .log_internal_errors(false);
    let started = match log.format {
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init(),
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
            lines.with_ansi(colour).try_init()
        }
    };
    started.map_err(|_| TelemetryError::Twice)
}

/// A line for the log that its level does not leave out, in its format.
pub fn line(log: &LogSection, message: &str) -> String {
    match log.format {
        LogFormat::Json => serde_json::json!({
            "timestamp": clock::now(), "level": "INFO", "message": message, "target": "mayfly",
        })
        .to_string(),
        LogFormat::Text => format!("mayfly: {message}"),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    Counter,
    Gauge,
    Histogram,
}

/// One metric of the service.
#[derive(Debug)]
pub struct Metric {
    pub kind: MetricKind,
    pub name: &'static str,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

macro_rules! metrics_list {
    ($( $kind:ident $name:literal [$($label:literal),*] $help:literal; )+) => {
        /// Every metric, with its labels: what dashboards are made from.
        pub const METRICS: &[Metric] = &[ $( Metric {
            kind: MetricKind::$kind, name: $name, labels: &[$($label),*], help: $help,
        }, )+ ];
    };
}

metrics_list! {
    Gauge "mayfly_build_info" ["version", "commit"] "Always 1; version and commit are its labels.";
    Counter "mayfly_http_requests_total" ["method", "route", "status"] "Requests answered.";
    Histogram "mayfly_http_request_duration_seconds" ["method", "route"] "Time from a request to its answer.";
    Counter "mayfly_over_limit_total" ["sender", "limit"] "Requests and connections that were refused or ended because their sender (`vm`, `token`, `address`) had its share of a limit (`requests`, `waiting`, `bodies`, `connections`).";
    Gauge "mayfly_vms" ["state"] "Vms by state, without deleted ones.";
    Gauge "mayfly_queue_length" ["reason"] "Queued vms, by queue reason.";
    Gauge "mayfly_slots" ["os"] "Slots of this host.";
    Gauge "mayfly_slots_leased" ["os"] "Slots held by vms of this service.";
    Gauge "mayfly_slots_foreign" ["os"] "Slots held by foreign instances.";
    Counter "mayfly_vms_created_total" ["template"] "Vms accepted, by the template's name; `(image)` for image references.";
    Counter "mayfly_vms_ended_total" ["result"] "Deleted vms, by outcome.";
    Counter "mayfly_vm_end_signals_total" ["signal"] "Deleted vms, by end signal.";
    Histogram "mayfly_vm_state_seconds" ["state"] "Time that vms spent in a state.";
    Histogram "mayfly_guest_ready_seconds" ["check"] "Time from the start of a guest until its template's readiness check succeeded, by the kind of check.";
    Counter "mayfly_guest_check_failures_total" ["check"] "Guests whose readiness check did not succeed in time, by the kind of check.";
    Counter "mayfly_step_failures_total" ["step", "code"] "Steps that failed, retried or not.";
    Gauge "mayfly_driver_usable" ["driver"] "1 if the driver can run guests on this host.";
    Gauge "mayfly_database_usable" [] "1 if the database accepts writes.";
    Counter "mayfly_database_faults_total" [] "Number of times that the database stopped accepting writes.";
    Counter "mayfly_template_pulls_total" ["state"] "Ended pulls, by final state.";
    Counter "mayfly_template_pruned_bytes_total" [] "Bytes removed by pruning; shared blocks are counted in full.";
    Gauge "mayfly_pool_vms" ["pool", "state"] "Vms of a pool: `queued`, and `live`, the queued ones included.";
    Gauge "mayfly_pool_jobs_waiting" ["pool"] "Jobs that match a pool and have no runner yet.";
    Gauge "mayfly_pool_vms_max" ["pool"] "Vms that a pool may have at once.";
    Gauge "mayfly_github_rate_limit" ["credential", "resource"] "Requests that GitHub allows in one window.";
    Gauge "mayfly_github_rate_limit_remaining" ["credential", "resource"] "Requests that are left in this window.";
    Gauge "mayfly_github_rate_limit_reset_time" ["credential", "resource"] "When the next window begins, in Unix time.";
    Gauge "mayfly_github_closed_until_time" ["credential"] "End of a secondary rate limit of GitHub that blocks all requests, in Unix time; 0 if there is none.";
    Counter "mayfly_github_requests_total" ["credential"] "Requests that GitHub answered.";
    Counter "mayfly_github_not_modified_total" ["credential"] "Requests that GitHub answered with 304 (not modified), which do not count against the rate limit.";
    Counter "mayfly_github_limited_total" ["credential"] "Requests that GitHub refused because of a rate limit.";
    Counter "mayfly_strays_destroyed_total" [] "Stray instances that were destroyed.";
    Counter "mayfly_runner_registrations_total" ["source", "result"] "Requests to a source of jobs to register a runner.";
    Counter "mayfly_runner_removals_total" ["source", "result"] "Requests to a source of jobs to remove a runner.";
    Gauge "mayfly_orphaned_runners" ["source"] "Runners that are registered, or possibly registered, and whose vm has ended.";
    Gauge "mayfly_source_scopes_away" ["source"] "Scopes for which the server of a source of jobs cannot be reached.";
    Gauge "mayfly_host_limit_fault_age_seconds" ["os"] "Age of the fault that the host's system refuses guests although slots are free; absent without such a fault.";
    Gauge "mayfly_jobs" ["status"] "Jobs that match a pool and have not ended.";
    Counter "mayfly_jobs_heard_total" ["source", "wanted"] "New jobs, by what reported them first and by whether they match a pool.";
    Counter "mayfly_webhooks_total" ["event", "result"] "Received webhooks: `stored`, `known`, `ignored`, or the error code.";
    Counter "mayfly_webhooks_worked_total" ["result"] "Processed webhooks, by result.";
    Counter "mayfly_webhooks_redelivered_total" [] "Missed webhooks that GitHub was asked to redeliver.";
    Counter "mayfly_source_polls_total" ["source", "result"] "Polls of a source of jobs for what webhooks missed.";
}

/// Upper bounds in seconds: an answer from memory at one end, a long job at the other.
const REQUEST_BUCKETS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0];
const STATE_BUCKETS: &[f64] =
    &[0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0, 7200.0, 21600.0];

static RECORDER: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Starts collecting. Calls after the first do nothing, so that one process may hold several services, as tests do.
pub fn start_metrics() {
    RECORDER.get_or_init(|| {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Full("mayfly_http_request_duration_seconds".into()), REQUEST_BUCKETS)
            .and_then(|b| b.set_buckets_for_metric(Matcher::Full("mayfly_vm_state_seconds".into()), STATE_BUCKETS))
            .and_then(|b| b.set_buckets_for_metric(Matcher::Full("mayfly_guest_ready_seconds".into()), STATE_BUCKETS))
            .map(PrometheusBuilder::build_recorder)
            .map_err(|error| tracing::error!(%error, "cannot collect metrics"))
            .ok()?;
        let handle = recorder.handle();
        if let Err(error) = metrics::set_global_recorder(LimitedSeries::new(recorder, SERIES_PER_METRIC)) {
            tracing::error!(%error, "cannot collect metrics");
            return None;
        }
        for metric in METRICS {
            match metric.kind {
                MetricKind::Counter => metrics::describe_counter!(metric.name, metric.help),
                MetricKind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
                MetricKind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
            }
        }
        let commit = version::COMMIT.unwrap_or("unknown");
        metrics::gauge!("mayfly_build_info", "version" => version::NUMBER, "commit" => commit).set(1.0);
        // Without it, samples of histograms accumulate until the metrics are collected.
        let upkeep = handle.clone();
        let _ = std::thread::Builder::new().name("metrics-upkeep".into()).spawn(move || {
            loop {
                std::thread::sleep(Duration::from_secs(10));
                upkeep.run_upkeep();
            }
        });
        Some(handle)
    });
}

/// Everything collected, in Prometheus' text format. Empty before `start_metrics`.
pub fn render_metrics() -> String {
    RECORDER.get().and_then(Option::as_ref).map(PrometheusHandle::render).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_rendered_and_starting_twice_is_harmless() {
        start_metrics();
        start_metrics();
        metrics::histogram!("mayfly_http_request_duration_seconds", "method" => "GET", "route" => "/vms").record(0.004);
        let text = render_metrics();
        assert!(text.contains("# HELP mayfly_build_info Always 1"), "{text}");
        assert!(
            text.contains(r#"mayfly_http_request_duration_seconds_bucket{method="GET",route="/vms",le="0.005"} 1"#),
            "{text}"
        );
    }

    #[test]
    fn every_metric_has_a_unit_or_counts_something() {
        for m in METRICS {
            assert!(m.name.starts_with("mayfly_"), "{}", m.name);
            assert_eq!(m.kind == MetricKind::Counter, m.name.ends_with("_total"), "{}", m.name);
            assert!(m.kind != MetricKind::Histogram || m.name.ends_with("_seconds"), "{}", m.name);
        }
    }

    /// What is counted somewhere and described nowhere would come without help and without a kind.
    #[test]
    fn every_metric_that_is_used_is_described() {
        let name = regex::Regex::new(r#"(?:counter|gauge|histogram)!\(\s*"(mayfly_[a-z_]+)""#).unwrap();
        let mut used = std::collections::BTreeSet::new();
        let mut dirs = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
        while let Some(dir) = dirs.pop() {
            for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()) {
                if entry.is_dir() {
                    dirs.push(entry);
                } else if entry.extension().is_some_and(|extension| extension == "rs") {
                    let text = std::fs::read_to_string(&entry).unwrap();
                    used.extend(name.captures_iter(&text).map(|c| c[1].to_owned()));
                }
            }
        }
        assert!(used.len() > 20, "{used:?}");
        let described: std::collections::BTreeSet<String> = METRICS.iter().map(|m| m.name.to_owned()).collect();
        assert_eq!(used.difference(&described).collect::<Vec<_>>(), Vec::<&String>::new());
    }
}
