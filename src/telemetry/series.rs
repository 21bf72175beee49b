//! Limits the time series of each metric.
//!
//! A series stays in memory until the process ends, and each distinct set of label values is one. The code uses only
//! label values from fixed lists and from the configuration. This limit holds even where a value turns out to come from
//! a client or a remote server: further sets of values are counted together, as `(other)`.

use std::collections::{HashMap, HashSet};

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Label, Metadata, Recorder, SharedString, Unit};
use parking_lot::Mutex;

/// Series of one metric. The largest legitimate one, requests by method, route and status, has some hundred.
pub const SERIES_PER_METRIC: usize = 1000;

/// The label value of everything above the limit.
pub const OTHER: &str = "(other)";

pub struct LimitedSeries<R> {
    inner: R,
    limit: usize,
    known: Mutex<HashMap<KeyName, HashSet<Key>>>,
}

impl<R> LimitedSeries<R> {
    pub fn new(inner: R, limit: usize) -> Self {
        Self { inner, limit, known: Mutex::default() }
    }

    fn admit(&self, key: &Key) -> Key {
        let mut known = self.known.lock();
        let series = known.entry(KeyName::from(key.name().to_owned())).or_default();
        if series.contains(key) {
            return key.clone();
        }
        if series.len() < self.limit {
            series.insert(key.clone());
            return key.clone();
        }
        let other = |label: &Label| Label::new(label.key().to_owned(), OTHER);
        Key::from_parts(key.name().to_owned(), key.labels().map(other).collect::<Vec<_>>())
    }
}

impl<R: Recorder> Recorder for LimitedSeries<R> {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe_counter(key, unit, description);
    }

    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe_gauge(key, unit, description);
    }

    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, description: SharedString) {
        self.inner.describe_histogram(key, unit, description);
    }

    fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> Counter {
        self.inner.register_counter(&self.admit(key), metadata)
    }

    fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> Gauge {
        self.inner.register_gauge(&self.admit(key), metadata)
    }

    fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> Histogram {
        self.inner.register_histogram(&self.admit(key), metadata)
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;

    #[test]
    fn a_metric_has_a_limited_number_of_series_and_counts_the_rest_together() {
        let prometheus = PrometheusBuilder::new().build_recorder();
        let handle = prometheus.handle();
        metrics::with_local_recorder(&LimitedSeries::new(prometheus, 3), || {
            for n in 0..100 {
                metrics::counter!("a_total", "who" => n.to_string(), "what" => "x").increment(1);
                metrics::counter!("a_total", "who" => "0", "what" => "x").increment(1);
                metrics::gauge!("b", "who" => n.to_string()).set(1.0);
            }
        });
        let text = handle.render();
        let lines = |name: &str| text.lines().filter(|line| line.starts_with(name)).count();
        assert_eq!((lines("a_total{"), lines("b{")), (4, 4), "{text}");
        assert!(text.contains(r#"a_total{who="0",what="x"} 101"#), "{text}");
        assert!(text.contains(r#"a_total{who="(other)",what="(other)"} 97"#), "{text}");
    }
}
