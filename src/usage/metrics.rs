//! Metrics of usage by route and model, with a bounded number of models. Knows no store.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use keylatch_filters::contract::{Cost, CountSource, Currency, UsageRecord};
use parking_lot::RwLock;
use prometheus::{Counter, CounterVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry, core::Collector};

use super::pending::{NAME_BYTES_MAX, OTHER};

/// The maximum number of models with metrics of their own. Further ones are counted as `other`.
pub const MODELS_MAX: usize = 100;
/// The label of a request without a model.
const NO_MODEL: &str = "-";
/// The shortest time from the first text to the end that gives a speed.
const GENERATION_MIN: Duration = Duration::from_millis(10);
/// The upper bounds of the buckets of times to first token, in seconds.
pub const FIRST_TOKEN_BUCKETS: [f64; 15] = [0.05, 0.075, 0.11, 0.17, 0.25, 0.38, 0.57, 0.86, 1.3, 2.0, 3.0, 5.0, 8.0, 15.0, 40.0];
/// The upper bounds of the buckets of output tokens per second.
pub const SPEED_BUCKETS: [f64; 14] = [1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 75.0, 100.0, 150.0, 200.0, 300.0, 500.0, 1000.0];

/// The metrics of usage.
pub struct UsageMetrics {
    requests: IntCounterVec,
    tokens: IntCounterVec,
    cost: CounterVec,
    first_token: HistogramVec,
    speed: HistogramVec,
    series: RwLock<SeriesMap>,
}

/// The series that exist, by route and model.
#[derive(Default)]
struct SeriesMap {
    routes: HashMap<Arc<str>, HashMap<Arc<str>, Arc<Series>>>,
    models: HashSet<Arc<str>>,
}

impl SeriesMap {
    fn get(&self, route: &str, model: &str) -> Option<Arc<Series>> {
        self.routes.get(route)?.get(model).cloned()
    }

    /// The label of a model. A model without counts gets none of its own: clients can make up names.
    fn label<'m>(&self, model: &'m str, has_counts: bool) -> &'m str {
        let is_own = [NO_MODEL, OTHER].contains(&model) || self.models.contains(model);
        if is_own || (has_counts && self.models.len() < MODELS_MAX) { model } else { OTHER }
    }
}

/// The handles of one route and model.
struct Series {
    labels: [Arc<str>; 2],
    reported: IntCounter,
    estimated: IntCounter,
    none: IntCounter,
    input: IntCounter,
    cached_input: IntCounter,
    cache_write: IntCounter,
    output: IntCounter,
    reasoning: IntCounter,
    first_token: Histogram,
    speed: Histogram,
    /// Usually one: all prices have the same currency until it is changed.
    cost: RwLock<Vec<(Currency, Counter)>>,
}

impl UsageMetrics {
    /// Registers the metrics. An error is a mistake in this file.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let (route_model, labels) = (["route", "model"], |last| ["route", "model", last]);
        let metrics = Self {
            requests: IntCounterVec::new(
                Opts::new("keylatch_usage_requests_total", "Requests that the filter usage read, by the source of their counts."),
                &labels("source"),
            )?,
            tokens: IntCounterVec::new(Opts::new("keylatch_tokens_total", "Tokens by kind."), &labels("kind"))?,
            cost: CounterVec::new(Opts::new("keylatch_cost_total", "The cost of requests."), &labels("currency"))?,
            first_token: HistogramVec::new(
                HistogramOpts::new("keylatch_time_to_first_token_seconds", "From a complete header to the first text of a stream.")
                    .buckets(FIRST_TOKEN_BUCKETS.to_vec()),
                &route_model,
            )?,
            speed: HistogramVec::new(
                HistogramOpts::new("keylatch_output_tokens_per_second", "Output tokens per second, from the first text of a stream on.")
                    .buckets(SPEED_BUCKETS.to_vec()),
                &route_model,
            )?,
            series: RwLock::default(),
        };
        let all: [Box<dyn Collector>; 5] = [
            Box::new(metrics.requests.clone()),
            Box::new(metrics.tokens.clone()),
            Box::new(metrics.cost.clone()),
            Box::new(metrics.first_token.clone()),
            Box::new(metrics.speed.clone()),
        ];
        all.into_iter().try_for_each(|metric| registry.register(metric))?;
        Ok(metrics)
    }

    /// Counts one request.
    pub fn record(&self, record: &UsageRecord) {
        let series = self.series(record);
        match record.source {
            CountSource::Reported => &series.reported,
            CountSource::Estimated => &series.estimated,
            CountSource::None => &series.none,
        }
        .inc();
        let tokens = &record.tokens;
        for (counter, count) in [
            (&series.input, tokens.input),
            (&series.cached_input, tokens.cached_input),
            (&series.cache_write, tokens.cache_write),
            (&series.output, tokens.output),
            (&series.reasoning, tokens.reasoning),
        ] {
            if count > 0 {
                counter.inc_by(count);
            }
        }
        if let Some(cost) = record.cost {
            self.add_cost(&series, cost);
        }
        if let Some(after) = record.first_token {
            series.first_token.observe(after.as_secs_f64());
            let generation = record.duration.saturating_sub(after);
            if tokens.output > 0 && generation >= GENERATION_MIN {
                #[expect(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^52")]
                series.speed.observe(tokens.output as f64 / generation.as_secs_f64());
            }
        }
    }

    /// The series of a request.
    fn series(&self, record: &UsageRecord) -> Arc<Series> {
        let model = match &record.model {
            None => NO_MODEL,
            Some(model) if model.len() > NAME_BYTES_MAX => OTHER,
            Some(model) => model,
        };
        let has_counts = record.source != CountSource::None;
        {
            let all = self.series.read();
            if let Some(series) = all.get(&record.route, all.label(model, has_counts)) {
                return series;
            }
        }
        let mut all = self.series.write();
        let label: Arc<str> = all.label(model, has_counts).into();
        if ![NO_MODEL, OTHER].contains(&&*label) {
            all.models.insert(Arc::clone(&label));
        }
        let route = all.routes.entry(Arc::clone(&record.route)).or_default();
        Arc::clone(route.entry(Arc::clone(&label)).or_insert_with(|| Arc::new(self.resolve(&record.route, &label))))
    }

    fn resolve(&self, route: &str, model: &str) -> Series {
        let requests = |source: CountSource| self.requests.with_label_values(&[route, model, source.as_str()]);
        let tokens = |kind| self.tokens.with_label_values(&[route, model, kind]);
        Series {
            labels: [route.into(), model.into()],
            reported: requests(CountSource::Reported),
            estimated: requests(CountSource::Estimated),
            none: requests(CountSource::None),
            input: tokens("input"),
            cached_input: tokens("cached_input"),
            cache_write: tokens("cache_write"),
            output: tokens("output"),
            reasoning: tokens("reasoning"),
            first_token: self.first_token.with_label_values(&[route, model]),
            speed: self.speed.with_label_values(&[route, model]),
            cost: RwLock::new(Vec::new()),
        }
    }

    fn add_cost(&self, series: &Series, cost: Cost) {
        #[expect(clippy::cast_precision_loss, reason = "a counter of money is a float")]
        let amount = cost.micros as f64 / 1e6;
        let add = |known: &[(Currency, Counter)]| match known.iter().find(|(currency, _)| *currency == cost.currency) {
            Some((_, counter)) => {
                counter.inc_by(amount);
                true
            }
            None => false,
        };
        if add(&series.cost.read()) {
            return;
        }
        let mut known = series.cost.write();
        if !add(&known) {
            let [route, model] = &series.labels;
            let counter = self.cost.with_label_values(&[route, model, cost.currency.as_str()]);
            counter.inc_by(amount);
            known.push((cost.currency, counter));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    use keylatch_filters::contract::{OtherUnits, TokenCounts};

    fn record(model: Option<&str>, source: CountSource) -> UsageRecord {
        UsageRecord {
            at: SystemTime::UNIX_EPOCH,
            key: None,
            subject: None,
            model: model.map(Into::into),
            route: "r".into(),
            upstream: "u".into(),
            status: 200,
            tokens: TokenCounts { input: 10, output: 4, ..TokenCounts::default() },
            units: OtherUnits::default(),
            source,
            cost: Some(Cost { micros: 250_000, currency: Currency(*b"USD") }),
            streamed: true,
            first_token: Some(Duration::from_secs(1)),
            duration: Duration::from_secs(3),
        }
    }

    fn text(registry: &Registry) -> String {
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    }

    #[test]
    fn requests_are_counted_by_route_and_model() {
        let registry = Registry::new();
        let metrics = UsageMetrics::new(&registry).unwrap();
        metrics.record(&record(Some("m"), CountSource::Reported));
        metrics.record(&record(Some("m"), CountSource::Estimated));
        let text = text(&registry);
        for line in [
            "keylatch_usage_requests_total{model=\"m\",route=\"r\",source=\"estimated\"} 1",
            "keylatch_tokens_total{kind=\"input\",model=\"m\",route=\"r\"} 20",
            "keylatch_cost_total{currency=\"USD\",model=\"m\",route=\"r\"} 0.5",
            "keylatch_time_to_first_token_seconds_sum{model=\"m\",route=\"r\"} 2",
            "keylatch_output_tokens_per_second_sum{model=\"m\",route=\"r\"} 4",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn further_and_made_up_models_are_other() {
        let registry = Registry::new();
        let metrics = UsageMetrics::new(&registry).unwrap();
        metrics.record(&record(Some("made-up"), CountSource::None));
        metrics.record(&record(None, CountSource::Reported));
        metrics.record(&record(Some(&"x".repeat(NAME_BYTES_MAX + 1)), CountSource::Reported));
        for number in 0..=MODELS_MAX {
            metrics.record(&record(Some(&format!("m{number}")), CountSource::Reported));
        }
        let text = text(&registry);
        let requests = |model: &str, source: &str| format!("requests_total{{model=\"{model}\",route=\"r\",source=\"{source}\"}} ");
        for line in [
            requests("other", "none") + "1",
            requests("other", "reported") + "2",
            requests("-", "reported") + "1",
            requests("m99", "reported") + "1",
            "keylatch_cost_total{currency=\"USD\",model=\"other\",route=\"r\"} 0.75".into(),
        ] {
            assert!(text.contains(&line), "{line}\n{text}");
        }
        assert!(!text.contains("m100") && !text.contains("made-up") && !text.contains("xxx"));
    }
}
