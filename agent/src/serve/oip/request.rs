//! An inference request: JSON, JSON with binary tensors behind it, or one raw tensor.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use plimsoll_protocol::bundle::{DataType, InputSpec, MAX_RANK, Manifest, OutputSpec};
use plimsoll_runtime::Tensor;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::classes;
use super::data::{Flat, quote_literals, typed};

/// Longest `id` that is echoed: a UUID has 36 characters, trace ids 64.
const MAX_ID: usize = 256;

/// The JSON of a request, before anything is checked against a model.
#[derive(Debug, Deserialize)]
struct InferRequest {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: BTreeMap<String, Value>,
    inputs: Vec<RequestInput>,
    #[serde(default)]
    outputs: Vec<RequestOutput>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RequestInput {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    #[serde(default)]
    parameters: BTreeMap<String, Value>,
    #[serde(default)]
    data: Option<Flat>,
}

#[derive(Debug, Deserialize)]
struct RequestOutput {
    name: String,
    #[serde(default)]
    parameters: BTreeMap<String, Value>,
}

/// What a request asks of a model.
#[derive(Debug)]
pub struct Ask {
    /// To echo.
    pub id: Option<String>,
    /// In the manifest's order.
    pub inputs: Vec<Tensor>,
    /// In the order of the answer.
    pub outputs: Vec<Wanted>,
}

/// One output that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Position in the manifest.
    at: usize,
    /// Behind the JSON instead of in it.
    binary: bool,
    /// The best so many classes instead of all scores.
    classes: Option<usize>,
}

impl Wanted {
    /// What is asked for, out of the manifest's outputs and what the model gave for them.
    pub fn of<'a>(
        &self,
        specs: &'a [OutputSpec],
        outputs: &'a [Tensor],
    ) -> Option<(&'a OutputSpec, Cow<'a, Tensor>, bool)> {
        let (spec, tensor) = (specs.get(self.at)?, outputs.get(self.at)?);
        let tensor = match self.classes {
            None => Cow::Borrowed(tensor),
            Some(count) => Cow::Owned(classes::best(tensor, &spec.labels, count)),
        };
        Some((spec, tensor, self.binary))
    }
}

/// Why a request was refused; every case is the caller's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AskError(pub String);

pub(super) fn refuse<T>(why: impl Into<String>) -> Result<T, AskError> {
    Err(AskError(why.into()))
}

/// Reads the body of an inference request for the model of `manifest`: bytes in, tensors or a reason out, and nothing
/// else. Safe on any bytes. `json_len` is the binary extension's header: how much of the body is JSON; 0 means one raw
/// tensor, `None` that all of it is JSON.
///
/// That the tensors have the model's shapes and datatypes is for [`plimsoll_runtime::Model::check_inputs`].
pub fn read(body: &[u8], json_len: Option<usize>, manifest: &Manifest) -> Result<Ask, AskError> {
    match json_len {
        Some(0) => parse_raw(body, manifest),
        json_len => parse(body, json_len, manifest),
    }
}

fn parse(body: &[u8], json_len: Option<usize>, manifest: &Manifest) -> Result<Ask, AskError> {
    let (json, mut binary) = split_json(body, json_len)?;
    let request: InferRequest = read_json(json, "an inference request")?;
    if request.id.as_ref().is_some_and(|id| id.len() > MAX_ID) {
        return refuse(format!("`id` is longer than {MAX_ID} bytes"));
    }
    let known: Vec<String> = manifest.inputs.iter().map(|i| i.name.clone()).collect();
    let mut tensors = read_tensors(request.inputs, &mut binary, "an input", &known)?;
    if !binary.is_empty() {
        return refuse(format!("{} bytes follow the tensors that the request describes", binary.len()));
    }
    let take = |spec: &InputSpec| {
        tensors.remove(&spec.name).ok_or_else(|| AskError(format!("tensor {:?} is missing", spec.name)))
    };
    let inputs = manifest.inputs.iter().map(take).collect::<Result<Vec<_>, _>>()?;
    let all_binary = request.parameters.get("binary_data_output").and_then(Value::as_bool).unwrap_or(false);
    let outputs = select(&request.outputs, all_binary, manifest)?;
    Ok(Ask { id: request.id, inputs, outputs })
}

/// The JSON of a body, and the binary tensors behind it.
pub(super) fn split_json(body: &[u8], json_len: Option<usize>) -> Result<(&[u8], &[u8]), AskError> {
    let json_len = json_len.unwrap_or(body.len());
    let Some((json, binary)) = body.split_at_checked(json_len) else {
        return refuse(format!(
            "header Inference-Header-Content-Length says {json_len} bytes of JSON, but the body has {}",
            body.len()
        ));
    };
    if json.is_empty() {
        return refuse("the body is empty; an inference request is JSON with `inputs`");
    }
    Ok((json, binary))
}

/// JSON as the standard has it; or, when that fails, with the bare `NaN` and `Infinity` of Python's encoders.
pub(super) fn read_json<T: DeserializeOwned>(json: &[u8], what: &str) -> Result<T, AskError> {
    let read = serde_json::from_slice(json).or_else(|error| match quote_literals(json) {
        Some(quoted) => serde_json::from_slice(&quoted),
        None => Err(error),
    });
    read.map_err(|e| AskError(format!("the body is not {what}: {}", cut(&e.to_string()))))
}

/// Tensors by name, each once and each of those that the model has.
pub(super) fn read_tensors(
    given: Vec<RequestInput>,
    binary: &mut &[u8],
    what: &str,
    known: &[String],
) -> Result<BTreeMap<String, Tensor>, AskError> {
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for input in given {
        let name = input.name.clone();
        if !known.contains(&name) {
            return refuse(format!(
                "tensor {:?} is not {what} of this model; it has {known:?}",
                short(&name)
            ));
        }
        let tensor = read_input(input, binary).map_err(|why| AskError(format!("tensor {name:?}: {why}")))?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return refuse(format!("tensor {name:?} is given twice"));
        }
    }
    Ok(tensors)
}

/// A body that is one raw tensor and nothing else: for models of one input with at most one variable dimension,
/// which the length then tells. Everything is answered as binary.
fn parse_raw(body: &[u8], manifest: &Manifest) -> Result<Ask, AskError> {
    let [spec] = manifest.inputs.as_slice() else {
        return refuse(format!(
            "a raw binary request is for models of one input; this has {}",
            manifest.inputs.len()
        ));
    };
    let Some(width) = spec.datatype.width() else {
        return refuse("a raw binary request cannot carry BYTES: their lengths would be unknown");
    };
    let fixed: usize = spec.shape.iter().filter_map(|d| usize::try_from(*d).ok()).product();
    let variable = spec.shape.iter().filter(|d| **d == -1).count();
    let row = fixed * width;
    if variable > 1
        || row == 0
        || body.is_empty()
        || !body.len().is_multiple_of(row)
        || (variable == 0 && body.len() != row)
    {
        let shape = &spec.shape;
        return refuse(format!(
            "{} bytes do not fill shape {shape:?} of {}",
            body.len(),
            spec.datatype.as_str()
        ));
    }
    let rows = body.len() / row;
    let shape = spec.shape.iter().map(|d| usize::try_from(*d).unwrap_or(rows)).collect();
    let tensor = Tensor::from_le_bytes(spec.datatype, shape, body).map_err(AskError)?;
    Ok(Ask { id: None, inputs: vec![tensor], outputs: select(&[], true, manifest)? })
}

fn read_input(input: RequestInput, binary: &mut &[u8]) -> Result<Tensor, String> {
    let datatype = datatype(&input.datatype)?;
    if input.shape.len() > MAX_RANK {
        return Err(format!("has {} dimensions; at most {MAX_RANK} are possible", input.shape.len()));
    }
    let shape = input
        .shape
        .iter()
        .map(|d| usize::try_from(*d).map_err(|_| format!("shape {:?} has a negative dimension", input.shape)))
        .collect::<Result<Vec<_>, _>>()?;
    let size = match input.parameters.get("binary_data_size") {
        None => None,
        Some(value) => {
            let size = value.as_u64().and_then(|v| usize::try_from(v).ok());
            Some(size.ok_or("`binary_data_size` is not a number of bytes")?)
        }
    };
    match (input.data, size) {
        (Some(_), Some(_)) => Err("has both `data` and `binary_data_size`".into()),
        (None, None) => Err("has no `data`".into()),
        (Some(flat), None) => Tensor::new(shape, typed(flat, datatype)?),
        (None, Some(size)) => {
            let (bytes, rest) = binary
                .split_at_checked(size)
                .ok_or_else(|| format!("says {size} binary bytes, but only {} follow", binary.len()))?;
            *binary = rest;
            Tensor::from_le_bytes(datatype, shape, bytes)
        }
    }
}

fn datatype(text: &str) -> Result<DataType, String> {
    serde_json::from_value(Value::from(text)).map_err(|_| {
        format!(
            "datatype {:?} is unknown: BOOL, UINT8 … UINT64, INT8 … INT64, FP16, BF16, FP32, FP64, BYTES",
            short(text)
        )
    })
}

fn select(asked: &[RequestOutput], all_binary: bool, manifest: &Manifest) -> Result<Vec<Wanted>, AskError> {
    if asked.is_empty() {
        let all = 0..manifest.outputs.len();
        return Ok(all.map(|at| Wanted { at, binary: all_binary, classes: None }).collect());
    }
    let mut seen = BTreeSet::new();
    let pick = |output: &RequestOutput| {
        let Some(at) = manifest.outputs.iter().position(|o| o.name == output.name) else {
            let known: Vec<&str> = manifest.outputs.iter().map(|o| o.name.as_str()).collect();
            let name = short(&output.name);
            return refuse(format!("output {name:?} does not exist; this model has {known:?}"));
        };
        if !seen.insert(at) {
            return refuse(format!("output {:?} is asked for twice", output.name));
        }
        let binary = output.parameters.get("binary_data").and_then(Value::as_bool).unwrap_or(all_binary);
        let classes = classes_wanted(output, manifest.outputs.get(at).map(|o| o.datatype))?;
        Ok(Wanted { at, binary, classes })
    };
    asked.iter().map(pick).collect()
}

/// The `classification` parameter of an output: 0, as Triton's client sends by default, asks for nothing.
fn classes_wanted(output: &RequestOutput, datatype: Option<DataType>) -> Result<Option<usize>, AskError> {
    let Some(value) = output.parameters.get("classification") else { return Ok(None) };
    let name = &output.name;
    let Some(count) = value.as_u64().and_then(|count| usize::try_from(count).ok()) else {
        return refuse(format!("output {name:?}: `classification` is not a number of classes"));
    };
    if count > 0 && datatype.is_none_or(|d| d.width().is_none()) {
        return refuse(format!("output {name:?}: `classification` needs scores, and this output is BYTES"));
    }
    Ok((count > 0).then_some(count))
}

/// The JSON parser's words, cut: they may quote a whole text of the caller's.
fn cut(words: &str) -> String {
    let place = words.rfind(" at line ").filter(|at| words.len() - at < 60).map_or("", |at| &words[at..]);
    match words.char_indices().nth(200) {
        Some((end, _)) if end + place.len() < words.len() => format!("{}…{place}", &words[..end]),
        _ => words.to_owned(),
    }
}

/// A caller's text, cut so that an error stays a line.
fn short(text: &str) -> String {
    text.chars().take(80).collect()
}
