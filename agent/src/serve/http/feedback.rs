//! `POST …/feedback`: ground truth that comes late, by prediction id.
//!
//! One label or a list. A list is taken label by label: what fits counts, and the answer says of the others why not.
//! The version that answered gets the label, whichever version answers now.

use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Answer, Endpoint, Refusal, body, ok, refuse};
use crate::serve::truth::{LabelError, Outcome};

/// Refusals that are told of one list: enough to see what is wrong with it.
const TOLD: usize = 20;

/// One label.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    prediction_id: String,
    /// Which row of the answer; may be left out when it has one.
    #[serde(default)]
    row: Option<u32>,
    /// The class, by name or index.
    #[serde(default)]
    label: Option<Value>,
    /// The true number.
    #[serde(default)]
    value: Option<Value>,
}

/// What a list came to.
#[derive(Default)]
struct Sum {
    labelled: u64,
    correct: u64,
    numbers: u64,
    absolute_error: f64,
    versions: Vec<String>,
    refused: Vec<(usize, Refusal)>,
}

/// Takes labels for a model, or for one version of it.
pub async fn feedback(
    endpoint: &Endpoint,
    model: &str,
    version: Option<&str>,
    request: Request<Incoming>,
) -> Answer {
    let body = body::read(endpoint, request).await?;
    let mut sum = Sum::default();
    for (at, item) in read(&body.bytes)?.into_iter().enumerate() {
        match take(endpoint, model, version, &item) {
            Ok((version, outcome)) => sum.add(version, outcome),
            Err(refusal) => sum.refused.push((at, refusal)),
        }
    }
    if sum.labelled + sum.numbers == 0 && !sum.refused.is_empty() {
        return Err(sum.refused.swap_remove(0).1);
    }
    Ok(ok(&sum.document()))
}

fn read(bytes: &[u8]) -> Result<Vec<Item>, Refusal> {
    let parsed = serde_json::from_slice::<Value>(bytes).and_then(|value| match value {
        Value::Array(_) => serde_json::from_value::<Vec<Item>>(value),
        one => serde_json::from_value::<Item>(one).map(|item| vec![item]),
    });
    match parsed {
        Ok(items) if items.is_empty() => refuse(StatusCode::BAD_REQUEST, "the list holds no label"),
        Ok(items) => Ok(items),
        Err(error) => {
            let why: String = error.to_string().chars().take(200).collect();
            refuse(
                StatusCode::BAD_REQUEST,
                format!(
                    "the body is no feedback: {why}; {{\"prediction_id\": …, \"label\": …}} is expected (or \"value\", \
                     a number), or a list of such"
                ),
            )
        }
    }
}

/// Finds who gave an answer, and compares.
fn take(
    endpoint: &Endpoint,
    model: &str,
    version: Option<&str>,
    item: &Item,
) -> Result<(String, Outcome), Refusal> {
    let id: String = item.prediction_id.chars().take(80).collect();
    let refused = |status, why: String| refuse(status, format!("prediction {id:?}: {why}"));
    let ((Some(label), None) | (None, Some(label))) = (&item.label, &item.value) else {
        return refused(StatusCode::BAD_REQUEST, "exactly one of `label` and `value` is expected".into());
    };
    let Some((short, nonce, count)) = parts(&item.prediction_id) else {
        let why = "it is no prediction id; one stands in the `parameters` of every answer".into();
        return refused(StatusCode::BAD_REQUEST, why);
    };
    let (account, now) = {
        let registry = endpoint.registry();
        (registry.account(model, short), registry.now())
    };
    let Some(account) = account else {
        let why = format!("no version of model {model:?} that is known here gave it");
        return refused(StatusCode::NOT_FOUND, why);
    };
    if version.is_some_and(|version| version != account.version()) {
        let why = format!("version {} gave it, not {}", account.version(), version.unwrap_or_default());
        return refused(StatusCode::BAD_REQUEST, why);
    }
    if nonce != endpoint.nonce {
        account.late();
        return refused(StatusCode::GONE, LabelError::Expired.to_string());
    }
    account.label(count, item.row, label, now).map(|outcome| (account.version(), outcome)).or_else(|error| {
        let status = match error {
            LabelError::Unknown => StatusCode::NOT_FOUND,
            LabelError::Expired => StatusCode::GONE,
            LabelError::Twice => StatusCode::CONFLICT,
            LabelError::Nothing | LabelError::Row(_) | LabelError::Label(_) => StatusCode::BAD_REQUEST,
        };
        refused(status, error.to_string())
    })
}

/// `<first 12 digits of the bundle's digest>-<life of the process>-<counter>`
fn parts(id: &str) -> Option<(&str, u32, u64)> {
    let mut parts = id.split('-');
    let (short, nonce, count) = (parts.next()?, parts.next()?, parts.next()?);
    let hex = short.len() == 12 && short.bytes().all(|b| b.is_ascii_hexdigit());
    let (nonce, count) = (u32::from_str_radix(nonce, 16).ok()?, u64::from_str_radix(count, 16).ok()?);
    (hex && parts.next().is_none()).then_some((short, nonce, count))
}

impl Sum {
    fn add(&mut self, version: String, outcome: Outcome) {
        match outcome {
            Outcome::Class(right) => {
                self.labelled += 1;
                self.correct += u64::from(right);
            }
            Outcome::Error(error) => {
                self.numbers += 1;
                self.absolute_error += error.abs();
            }
        }
        if !self.versions.contains(&version) {
            self.versions.push(version);
        }
    }

    fn document(&self) -> Value {
        let told = self.refused.iter().take(TOLD);
        let told: Vec<Value> = told.map(|(at, refusal)| json!({ "at": at, "error": refusal.why })).collect();
        let mut document = json!({ "taken": self.labelled + self.numbers, "versions": self.versions });
        if self.labelled > 0 {
            document["correct"] = json!(self.correct);
        }
        if self.numbers > 0 {
            document["mean_absolute_error"] = json!(self.absolute_error / self.numbers as f64);
        }
        if !told.is_empty() {
            document["refused"] = json!({ "count": self.refused.len(), "first": told });
        }
        document
    }
}
