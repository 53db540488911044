//! `GET /metrics`: what this process counts of its models, as Prometheus text. Base units; a version of a model is two
//! labels, and a device serves at most eight models.

use std::fmt::Write;

use plimsoll_protocol::bundle::ValueRule;
use plimsoll_protocol::wire::v1::{ModelHealth, ShadowTotals};

use super::Endpoint;

/// Metrics: name, type, help and how to read one of a model.
type Metric = (&'static str, &'static str, &'static str, fn(&ModelHealth) -> Vec<(String, f64)>);

/// One without further labels.
fn plain(value: f64) -> Vec<(String, f64)> {
    vec![(String::new(), value)]
}

const METRICS: [Metric; 10] = [
    ("plimsoll_inference_requests_total", "counter", "Requests answered, well or badly.", |m| {
        plain(m.requests as f64)
    }),
    ("plimsoll_inference_failed_total", "counter", "Requests that the model or the runtime failed.", |m| {
        plain(m.failed as f64)
    }),
    ("plimsoll_inference_busy_total", "counter", "Requests refused because the queue was full.", |m| {
        plain(m.busy as f64)
    }),
    (
        "plimsoll_inference_refused_total",
        "counter",
        "Requests refused for the caller's fault, by reason.",
        |m| {
            let by_rule =
                ValueRule::ALL.map(|rule| (reason(rule.as_str()), m.quality.refused.of(rule) as f64));
            by_rule.into_iter().chain([(reason("malformed"), m.quality.malformed as f64)]).collect()
        },
    ),
    (
        "plimsoll_input_values_total",
        "counter",
        "Values that a rule of the input policy caught, by rule.",
        |m| {
            ValueRule::ALL
                .map(|rule| (format!(",rule=\"{}\"", rule.as_str()), m.quality.values.of(rule) as f64))
                .into()
        },
    ),
    ("plimsoll_inference_duration_seconds", "gauge", "Latency of the recent requests, by quantile.", |m| {
        let seconds = |us: u64| us as f64 / 1e6;
        vec![
            (",quantile=\"0.5\"".into(), seconds(m.p50_us)),
            (",quantile=\"0.99\"".into(), seconds(m.p99_us)),
        ]
    }),
    ("plimsoll_model_memory_bytes", "gauge", "Most memory that its load or one request needed.", |m| {
        plain(m.memory_bytes as f64)
    }),
    ("plimsoll_labels_total", "counter", "Answers that got a label or a true value.", |m| {
        plain((m.truth.labelled + m.truth.numbers) as f64)
    }),
    ("plimsoll_labels_correct_total", "counter", "Labelled answers whose best class was the label.", |m| {
        plain(m.truth.correct as f64)
    }),
    ("plimsoll_labels_unknown_total", "counter", "Labels whose answer was not known any more.", |m| {
        plain(m.truth.unknown as f64)
    }),
];

fn reason(text: &str) -> String {
    format!(",reason=\"{text}\"")
}

/// The page of numbers.
pub fn render(endpoint: &Endpoint) -> String {
    let models: Vec<(String, ModelHealth)> = {
        let registry = endpoint.registry();
        registry.all_served().map(|h| (h.version().to_owned(), h.account().health())).collect()
    };
    let mut page = String::new();
    for (name, kind, help, read) in METRICS {
        // Writing to a text cannot fail.
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (version, model) in &models {
            for (labels, value) in read(model) {
                let _ = writeln!(
                    page,
                    "{name}{{model=\"{}\",version=\"{version}\"{labels}}} {value}",
                    model.model
                );
            }
        }
    }
    write_shadows(endpoint, &mut page);
    page
}

/// What candidates in shadow were compared by; nothing while there is none.
fn write_shadows(endpoint: &Endpoint, page: &mut String) {
    let shadows: Vec<(String, String, ShadowTotals)> = {
        let registry = endpoint.registry();
        let all = registry.shadows();
        all.map(|(model, s)| (model.to_string(), s.version(), s.totals())).collect()
    };
    type Read = fn(&ShadowTotals) -> u64;
    let metrics: [(&str, &str, Read); 3] = [
        ("plimsoll_shadow_rows_total", "Rows that a version in shadow was asked too.", |t| t.rows),
        ("plimsoll_shadow_differ_total", "Of those, answered otherwise than by the running version.", |t| {
            t.differ
        }),
        ("plimsoll_shadow_skipped_total", "Rows that a version in shadow was too busy for.", |t| t.skipped),
    ];
    for (name, help, read) in metrics.into_iter().filter(|_| !shadows.is_empty()) {
        // Writing to a text cannot fail.
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} counter");
        for (model, version, totals) in &shadows {
            let _ = writeln!(page, "{name}{{model=\"{model}\",version=\"{version}\"}} {}", read(totals));
        }
    }
}
