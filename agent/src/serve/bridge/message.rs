//! Messages as values: a reading to the cells of a row, a prediction to JSON.

use std::collections::BTreeMap;
use std::fmt;

use plimsoll_runtime::Tensor;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::serve::hosted::Hosted;
use crate::serve::oip::Outputs;
use crate::serve::rows::{Cell, Columns};

/// Where a value stands in a JSON document: `$.sensors[0].flow`, `$['air flow']`. One place, no wildcards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JsonPath {
    text: String,
    steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

impl JsonPath {
    /// `$.<key>`
    fn of_key(key: &str) -> Self {
        Self { text: format!("$['{key}']"), steps: vec![Step::Key(key.to_owned())] }
    }

    fn find<'a>(&self, document: &'a Value) -> Option<&'a Value> {
        self.steps.iter().try_fold(document, |value, step| match step {
            Step::Key(key) => value.get(key),
            Step::Index(at) => value.get(at),
        })
    }
}

impl TryFrom<String> for JsonPath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let steps = parse(&text).ok_or_else(|| {
            format!("{text:?} is not a JSON path to one value, as in $.sensors[0].flow or $['air flow']")
        })?;
        Ok(Self { text, steps })
    }
}

impl From<JsonPath> for String {
    fn from(path: JsonPath) -> Self {
        path.text
    }
}

impl fmt::Display for JsonPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn parse(text: &str) -> Option<Vec<Step>> {
    let mut rest = text.strip_prefix('$')?;
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('.') {
            let end = after.find(['.', '[']).unwrap_or(after.len());
            let (key, tail) = after.split_at(end);
            if key.is_empty() || key.contains(['*', ']', '\'', '"']) {
                return None;
            }
            steps.push(Step::Key(key.to_owned()));
            rest = tail;
        } else {
            let inside = rest.strip_prefix('[')?;
            let quote = inside.chars().next().filter(|c| matches!(c, '\'' | '"'));
            let (step, tail) = match quote {
                Some(quote) => {
                    let (key, tail) = inside[1..].split_once(quote)?;
                    (Step::Key(key.to_owned()), tail.strip_prefix(']')?)
                }
                None => {
                    let (index, tail) = inside.split_once(']')?;
                    (Step::Index(index.parse().ok()?), tail)
                }
            };
            steps.push(step);
            rest = tail;
        }
    }
    (!steps.is_empty()).then_some(steps)
}

/// The cells of a model's row out of a reading; the error names the column and where it was looked for. `null` is a
/// missing value, a place that does not exist is an error.
pub fn cells(
    payload: &[u8],
    columns: &Columns,
    fields: &BTreeMap<String, JsonPath>,
) -> Result<Vec<Cell>, String> {
    let document: Value = serde_json::from_slice(payload).map_err(|e| format!("it is not JSON: {e}"))?;
    let cell = |name: &str| {
        let path = fields.get(name).cloned().unwrap_or_else(|| JsonPath::of_key(name));
        match path.find(&document) {
            None => Err(format!("column {name:?}: there is nothing at {path}")),
            Some(Value::Null) => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value.to_string())),
            Some(Value::Number(value)) => Ok(Some(value.to_string())),
            Some(Value::String(value)) => Ok(Some(value.clone())),
            Some(_) => Err(format!("column {name:?}: what stands at {path} is not a single value")),
        }
    };
    columns.names().map(cell).collect()
}

/// What is published for a reading: who answered, what, and by which id it can be found again.
#[derive(Serialize)]
struct Answer<'a> {
    model: &'a str,
    version: &'a str,
    prediction_id: &'a str,
    topic: &'a str,
    outputs: Outputs<'a>,
}

/// The answer to a reading of `topic` as JSON.
pub fn prediction(
    hosted: &Hosted,
    prediction_id: &str,
    topic: &str,
    tensors: &[Tensor],
) -> Result<Vec<u8>, String> {
    let manifest = hosted.manifest();
    let outputs = Outputs { specs: &manifest.outputs, tensors };
    let model = manifest.model.as_str();
    let answer = Answer { model, version: hosted.version(), prediction_id, topic, outputs };
    serde_json::to_vec(&answer).map_err(|e| format!("the answer could not be written: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_runtime::testing::classifier_manifest;
    use serde_json::json;

    fn path(text: &str) -> JsonPath {
        JsonPath::try_from(text.to_owned()).unwrap()
    }

    #[test]
    fn a_path_names_one_place() {
        let document = json!({ "a": { "b c": [10, { "d": 20 }] }, "e": null });
        for (text, expect) in [
            ("$.a['b c'][0]", Some(json!(10))),
            ("$[\"a\"]['b c'][1].d", Some(json!(20))),
            ("$.e", Some(Value::Null)),
            ("$.a.x", None),
            ("$.e[0]", None),
        ] {
            assert_eq!(path(text).find(&document).cloned(), expect, "{text}");
        }
        for text in ["", "$", "a.b", "$.", "$..a", "$.*", "$[x]", "$[0", "$['a", "$['a'", "$[-1]"] {
            assert!(JsonPath::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_reading_becomes_a_row_or_says_which_column_it_lacks() {
        let columns = Columns::of(&classifier_manifest(2, 2)).unwrap();
        let fields =
            BTreeMap::from([("x[0]".to_owned(), path("$.flow[0]")), ("x[1]".to_owned(), path("$.temp"))]);
        let read = |text: &str| cells(text.as_bytes(), &columns, &fields);
        assert_eq!(read(r#"{"flow": [1.5], "temp": null}"#), Ok(vec![Some("1.5".into()), None]));
        for (text, words) in [
            ("", "not JSON"),
            (r#"{"flow": [1]}"#, "column \"x[1]\": there is nothing at $.temp"),
            (r#"{"flow": [[1]], "temp": 1}"#, "$.flow[0] is not a single value"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(words), "{error:?} does not say {words:?}");
        }
    }
}
