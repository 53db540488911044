//! What an engine elsewhere was asked and answered, as one document: the tensors of a request and of its answer.

use std::collections::BTreeMap;
use std::time::Duration;

use plimsoll_protocol::bundle::Manifest;
use plimsoll_runtime::Tensor;
use serde::Deserialize;

use super::request::{AskError, RequestInput, read_json, read_tensors, refuse, split_json};
use crate::serve::hosted::Observation;

/// An hour: whatever takes longer is no inference.
const MAX_LATENCY_US: u64 = 3_600_000_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Observed {
    inputs: Vec<RequestInput>,
    #[serde(default)]
    outputs: Option<Vec<RequestInput>>,
    latency_us: u64,
    /// Why there was no answer.
    #[serde(default)]
    error: Option<String>,
}

/// Reads the body of an observation; binary tensors follow the JSON in the order inputs, outputs. Safe on any bytes.
///
/// That the tensors have the model's shapes and datatypes is checked where they are counted.
pub fn read_observation(
    body: &[u8],
    json_len: Option<usize>,
    manifest: &Manifest,
) -> Result<Observation, AskError> {
    let (json, mut binary) = split_json(body, json_len)?;
    let observed: Observed = read_json(json, "an observation")?;
    if observed.latency_us > MAX_LATENCY_US {
        return refuse(format!("`latency_us` is more than an hour ({MAX_LATENCY_US})"));
    }
    let names = |specs: Vec<&str>| specs.into_iter().map(str::to_owned).collect::<Vec<_>>();
    let known = names(manifest.inputs.iter().map(|i| i.name.as_str()).collect());
    let inputs = in_order(read_tensors(observed.inputs, &mut binary, "an input", &known)?, &known)?;
    let known = names(manifest.outputs.iter().map(|o| o.name.as_str()).collect());
    let outputs = match (observed.outputs, observed.error) {
        (Some(_), Some(_)) => return refuse("has both `outputs` and an `error`"),
        (None, None) => return refuse("has neither `outputs` nor an `error`"),
        (None, Some(_)) => None,
        (Some(outputs), None) => {
            Some(in_order(read_tensors(outputs, &mut binary, "an output", &known)?, &known)?)
        }
    };
    if !binary.is_empty() {
        return refuse(format!("{} bytes follow the tensors that the observation describes", binary.len()));
    }
    Ok(Observation { inputs, outputs, latency: Duration::from_micros(observed.latency_us) })
}

fn in_order(mut tensors: BTreeMap<String, Tensor>, names: &[String]) -> Result<Vec<Tensor>, AskError> {
    let take =
        |name: &String| tensors.remove(name).ok_or_else(|| AskError(format!("tensor {name:?} is missing")));
    names.iter().map(take).collect()
}

#[cfg(test)]
mod tests {
    use plimsoll_runtime::testing::classifier_manifest;
    use serde_json::{Value, json};

    use super::*;

    fn read(document: &Value) -> Result<Observation, String> {
        let manifest = classifier_manifest(2, 2);
        read_observation(document.to_string().as_bytes(), None, &manifest).map_err(|e| e.to_string())
    }

    fn tensor(name: &str) -> Value {
        json!({ "name": name, "shape": [1, 2], "datatype": "FP32", "data": [0.25, 0.75] })
    }

    #[test]
    fn an_observation_is_a_question_and_its_answer_or_its_error() {
        let seen =
            read(&json!({ "inputs": [tensor("x")], "outputs": [tensor("y")], "latency_us": 1500 })).unwrap();
        assert_eq!((seen.latency.as_micros(), seen.inputs.len()), (1500, 1));
        assert_eq!(seen.outputs.unwrap()[0].to_f32(), [0.25, 0.75]);
        let seen =
            read(&json!({ "inputs": [tensor("x")], "error": "out of memory", "latency_us": 9 })).unwrap();
        assert!(seen.outputs.is_none());
        for (document, words) in [
            (json!({ "inputs": [tensor("x")], "latency_us": 1 }), "neither `outputs` nor"),
            (json!({ "inputs": [tensor("x")], "outputs": [], "error": "e", "latency_us": 1 }), "both"),
            (json!({ "inputs": [tensor("x")], "outputs": [], "latency_us": 1 }), "tensor \"y\" is missing"),
            (json!({ "inputs": [], "error": "e", "latency_us": 1 }), "tensor \"x\" is missing"),
            (
                json!({ "inputs": [tensor("z")], "error": "e", "latency_us": 1 }),
                "is not an input of this model",
            ),
            (
                json!({ "inputs": [tensor("x")], "outputs": [tensor("x")], "latency_us": 1 }),
                "is not an output",
            ),
            (json!({ "inputs": [tensor("x")], "error": "e", "latency_us": u64::MAX }), "more than an hour"),
            (json!({ "inputs": [tensor("x")], "error": "e" }), "latency_us"),
            (json!({ "inputs": [tensor("x")], "error": "e", "latency_us": 1, "speed": 2 }), "speed"),
        ] {
            let error = read(&document).unwrap_err();
            assert!(error.contains(words), "{error:?} does not say {words:?}");
        }
    }
}
