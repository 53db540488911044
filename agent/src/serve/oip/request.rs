//! An inference request: JSON, JSON with binary tensors behind it, or one raw tensor.

use std::collections::{BTreeMap, BTreeSet};

use plimsoll_protocol::bundle::{DataType, InputSpec, Manifest};
use plimsoll_runtime::Tensor;
use serde::Deserialize;
use serde_json::Value;

use super::data::{Flat, typed};

/// Longest `id` that is echoed: a UUID has 36 characters, trace ids 64.
const MAX_ID: usize = 256;

/// The JSON of a request, before anything is checked against a model.
#[derive(Debug, Deserialize)]
pub struct InferRequest {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    parameters: BTreeMap<String, Value>,
    inputs: Vec<RequestInput>,
    #[serde(default)]
    outputs: Vec<RequestOutput>,
}

#[derive(Debug, Deserialize)]
struct RequestInput {
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
    /// Which outputs (positions in the manifest) in which order, and whether as binary.
    pub outputs: Vec<(usize, bool)>,
}

/// Why a request was refused; every case is the caller's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AskError(pub String);

fn refuse<T>(why: impl Into<String>) -> Result<T, AskError> {
    Err(AskError(why.into()))
}

/// Reads a request body. `json_len` is the binary extension's header: how much of the body is JSON.
pub fn parse(body: &[u8], json_len: Option<usize>, manifest: &Manifest) -> Result<Ask, AskError> {
    let json_len = json_len.unwrap_or(body.len());
    let Some((json, mut binary)) = body.split_at_checked(json_len) else {
        return refuse(format!(
            "header Inference-Header-Content-Length says {json_len} bytes of JSON, but the body has {}",
            body.len()
        ));
    };
    if json.is_empty() {
        return refuse("the body is empty; an inference request is JSON with `inputs`");
    }
    let request: InferRequest = serde_json::from_slice(json)
        .map_err(|e| AskError(format!("the body is not an inference request: {e}")))?;
    if request.id.as_ref().is_some_and(|id| id.len() > MAX_ID) {
        return refuse(format!("`id` is longer than {MAX_ID} bytes"));
    }
    let mut tensors: BTreeMap<String, Tensor> = BTreeMap::new();
    for input in request.inputs {
        let name = input.name.clone();
        if !manifest.inputs.iter().any(|spec| spec.name == name) {
            let known: Vec<&str> = manifest.inputs.iter().map(|i| i.name.as_str()).collect();
            return refuse(format!(
                "tensor {:?} is not an input of this model; it has {known:?}",
                short(&name)
            ));
        }
        let tensor =
            read_input(input, &mut binary).map_err(|why| AskError(format!("tensor {name:?}: {why}")))?;
        if tensors.insert(name.clone(), tensor).is_some() {
            return refuse(format!("tensor {name:?} is given twice"));
        }
    }
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

/// Reads a body that is one raw tensor and nothing else: for models of one input with at most one variable dimension,
/// which the length then tells. Everything is answered as binary.
pub fn parse_raw(body: &[u8], manifest: &Manifest) -> Result<Ask, AskError> {
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
            "datatype {:?} is unknown: BOOL, UINT8 … UINT64, INT8 … INT64, FP16, FP32, FP64, BYTES",
            short(text)
        )
    })
}

fn select(
    asked: &[RequestOutput],
    all_binary: bool,
    manifest: &Manifest,
) -> Result<Vec<(usize, bool)>, AskError> {
    if asked.is_empty() {
        return Ok((0..manifest.outputs.len()).map(|at| (at, all_binary)).collect());
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
        Ok((at, binary))
    };
    asked.iter().map(pick).collect()
}

/// A caller's text, cut so that an error stays a line.
fn short(text: &str) -> String {
    text.chars().take(80).collect()
}
