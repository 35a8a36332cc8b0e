//! The counts of a replica in a form that can be added over time and over replicas.
//!
//! This file reads metrics and computes; [`super::sampler`] stores the counts.

use std::collections::BTreeMap;

use prometheus::core::Collector;
use serde::{Deserialize, Serialize};

use super::metrics::{BUCKETS, Metrics};

/// Counts since the start of the process, or of one period.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counted {
    /// Requests by status class: `2xx`, `4xx`; `0` if the client disconnected before an answer.
    pub requests: BTreeMap<String, u64>,
    /// Decisions of filters: `filter reason outcome`.
    pub decisions: BTreeMap<String, u64>,
    /// Refusals by the gate, by reason.
    pub refused: BTreeMap<String, u64>,
    /// Times to the first byte by bucket of [`BUCKETS`]; the last bucket has no upper bound.
    pub first_byte: Vec<u64>,
    /// Failures of upstreams.
    pub upstream_errors: u64,
}

impl Counted {
    /// The counts of these metrics since the start of the process.
    pub fn from_metrics(metrics: &Metrics) -> Self {
        let mut counted = Self::default();
        for (labels, value) in counters(&metrics.requests) {
            let status = labels.into_iter().find(|(name, _)| name == "status").map(|(_, value)| value).unwrap_or_default();
            let class = status.chars().next().filter(|_| status.len() == 3).map_or("0".into(), |digit| format!("{digit}xx"));
            *counted.requests.entry(class).or_default() += value;
        }
        for (labels, value) in counters(&metrics.decisions) {
            let label = |wanted: &str| labels.iter().find(|(name, _)| name == wanted).map_or("", |(_, value)| value.as_str());
            *counted.decisions.entry(format!("{} {} {}", label("filter"), label("reason"), label("outcome"))).or_default() += value;
        }
        for (labels, value) in counters(&metrics.refused) {
            *counted.refused.entry(labels.into_iter().map(|(_, value)| value).collect()).or_default() += value;
        }
        counted.upstream_errors = counters(&metrics.upstream_errors).into_iter().map(|(_, value)| value).sum();
        counted.first_byte = vec![0; BUCKETS.len() + 1];
        for family in metrics.first_byte.collect() {
            for metric in family.get_metric() {
                let histogram = metric.get_histogram();
                let mut before = 0;
                let ends = histogram.get_bucket().iter().map(prometheus::proto::Bucket::cumulative_count);
                for (slot, until) in counted.first_byte.iter_mut().zip(ends.chain([histogram.get_sample_count()])) {
                    *slot += until.saturating_sub(before);
                    before = until;
                }
            }
        }
        counted
    }

    /// The difference from `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let less = |now: &BTreeMap<String, u64>, then: &BTreeMap<String, u64>| {
            let left = now.iter().map(|(name, value)| (name.clone(), value.saturating_sub(then.get(name).copied().unwrap_or(0))));
            left.filter(|(_, value)| *value > 0).collect()
        };
        let first_byte = self.first_byte.iter().enumerate();
        Self {
            requests: less(&self.requests, &before.requests),
            decisions: less(&self.decisions, &before.decisions),
            refused: less(&self.refused, &before.refused),
            first_byte: first_byte.map(|(at, value)| value.saturating_sub(before.first_byte.get(at).copied().unwrap_or(0))).collect(),
            upstream_errors: self.upstream_errors.saturating_sub(before.upstream_errors),
        }
    }

    /// Adds the counts of another replica or period.
    pub fn add(&mut self, other: &Self) {
        for (mine, theirs) in
            [(&mut self.requests, &other.requests), (&mut self.decisions, &other.decisions), (&mut self.refused, &other.refused)]
        {
            theirs.iter().for_each(|(name, value)| *mine.entry(name.clone()).or_default() += value);
        }
        self.first_byte.resize(self.first_byte.len().max(other.first_byte.len()), 0);
        self.first_byte.iter_mut().zip(&other.first_byte).for_each(|(mine, theirs)| *mine += theirs);
        self.upstream_errors += other.upstream_errors;
    }

    /// The number of all requests.
    pub fn total(&self) -> u64 {
        self.requests.values().sum()
    }

    /// A quantile of the time to the first byte, in seconds, interpolated linearly within a bucket. `share` is 0 to 1. `None`
    /// without requests.
    pub fn first_byte_quantile(&self, share: f64) -> Option<f64> {
        let all: u64 = self.first_byte.iter().sum();
        #[expect(clippy::cast_precision_loss, reason = "counts of requests fit")]
        let wanted = all as f64 * share;
        let (mut before, mut from) = (0.0, 0.0);
        for (at, count) in self.first_byte.iter().enumerate().filter(|(_, count)| **count > 0) {
            #[expect(clippy::cast_precision_loss, reason = "counts of requests fit")]
            let count = *count as f64;
            let until = BUCKETS.get(at).copied().unwrap_or(BUCKETS[BUCKETS.len() - 1]);
            from = if at == 0 { from } else { BUCKETS.get(at - 1).copied().unwrap_or(until) };
            if before + count >= wanted {
                return Some(from + (until - from) * ((wanted - before) / count).clamp(0.0, 1.0));
            }
            before += count;
        }
        (all > 0).then_some(from)
    }
}

type Labels = Vec<(String, String)>;

fn counters(counters: &impl Collector) -> Vec<(Labels, u64)> {
    let families = counters.collect();
    let metrics = families.iter().flat_map(|family| family.get_metric());
    let labels = |metric: &prometheus::proto::Metric| {
        metric.get_label().iter().map(|label| (label.name().to_owned(), label.value().to_owned())).collect()
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counters are whole and never less than 0")]
    metrics.map(|metric| (labels(metric), metric.get_counter().get_value() as u64)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_read_subtracted_and_added() {
        let metrics = Metrics::new().unwrap();
        let count = |status: &str| metrics.requests.with_label_values(&["api", status]).inc();
        count("200");
        let before = Counted::from_metrics(&metrics);
        ["200", "201", "403", "0"].into_iter().for_each(count);
        metrics.decisions.with_label_values(&["key_binding", "elsewhere", "refused"]).inc_by(3);
        [0.02, 0.02, 0.2, 4000.0].into_iter().for_each(|seconds| metrics.first_byte.with_label_values(&["api"]).observe(seconds));
        let counted = Counted::from_metrics(&metrics).since(&before);
        let map = |pairs: &[(&str, u64)]| pairs.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect::<BTreeMap<_, _>>();
        assert_eq!(counted.requests, map(&[("0", 1), ("2xx", 2), ("4xx", 1)]));
        assert_eq!(counted.decisions, map(&[("key_binding elsewhere refused", 3)]));
        assert_eq!((counted.first_byte[3], counted.first_byte[5], counted.first_byte[BUCKETS.len()]), (2, 1, 1));
        assert_eq!((counted.first_byte_quantile(0.5), counted.first_byte_quantile(1.0)), (Some(0.05), Some(1800.0)));
        let mut twice: Counted = serde_json::from_value(serde_json::to_value(&counted).unwrap()).unwrap();
        twice.add(&counted);
        assert_eq!((twice.total(), twice.since(&counted)), (8, counted));
        assert_eq!(Counted::default().first_byte_quantile(0.5), None);
    }
}
