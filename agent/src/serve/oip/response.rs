//! An inference response.

use std::borrow::Cow;

use plimsoll_protocol::bundle::{DataType, OutputSpec};
use plimsoll_runtime::{Data, Tensor, bf16_value, f16_value};
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};

/// What a model answered.
pub struct Prediction<'a> {
    /// Model.
    pub model: &'a str,
    /// Version that answered.
    pub version: &'a str,
    /// The request's, echoed.
    pub id: Option<&'a str>,
    /// By which the bundle and, later, a label can be found.
    pub prediction_id: &'a str,
    /// Name, tensor and whether it goes as binary, in the order asked for.
    pub outputs: Vec<(&'a OutputSpec, Cow<'a, Tensor>, bool)>,
}

/// The body of a response, and how much of it is JSON when binary tensors follow.
pub fn encode(prediction: &Prediction<'_>) -> Result<(Vec<u8>, Option<usize>), serde_json::Error> {
    let binary: Vec<Vec<u8>> =
        prediction.outputs.iter().filter(|(_, _, binary)| *binary).map(|(_, t, _)| t.to_le_bytes()).collect();
    let mut sizes = binary.iter().map(Vec::len);
    let outputs = prediction
        .outputs
        .iter()
        .map(|(spec, tensor, binary)| Output {
            spec,
            tensor,
            binary_size: binary.then(|| sizes.next().unwrap_or(0)),
        })
        .collect();
    let mut body = serde_json::to_vec(&Body { prediction, outputs })?;
    let json_len = (!binary.is_empty()).then_some(body.len());
    binary.iter().for_each(|bytes| body.extend_from_slice(bytes));
    Ok((body, json_len))
}

struct Body<'a> {
    prediction: &'a Prediction<'a>,
    outputs: Vec<Output<'a>>,
}

struct Output<'a> {
    spec: &'a OutputSpec,
    tensor: &'a Tensor,
    /// Bytes behind the JSON, when it goes there.
    binary_size: Option<usize>,
}

/// Elements as a JSON array. NaN and infinities become `null`: JSON has nothing else for them.
struct Elements<'a>(&'a Data);

/// Outputs as one JSON object, each name with its elements.
pub struct Outputs<'a> {
    /// In the manifest's order.
    pub specs: &'a [OutputSpec],
    /// In the same order.
    pub tensors: &'a [Tensor],
}

impl Serialize for Outputs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let named = self.specs.iter().zip(self.tensors);
        serializer.collect_map(named.map(|(spec, tensor)| (&spec.name, Elements(tensor.data()))))
    }
}

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("model_name", self.prediction.model)?;
        map.serialize_entry("model_version", self.prediction.version)?;
        if let Some(id) = self.prediction.id {
            map.serialize_entry("id", id)?;
        }
        map.serialize_entry("parameters", &Pair("prediction_id", self.prediction.prediction_id))?;
        map.serialize_entry("outputs", &self.outputs)?;
        map.end()
    }
}

impl Serialize for Output<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("name", &self.spec.name)?;
        map.serialize_entry("datatype", DataType::as_str(self.tensor.datatype()))?;
        map.serialize_entry("shape", self.tensor.shape())?;
        match self.binary_size {
            Some(size) => map.serialize_entry("parameters", &Pair("binary_data_size", size))?,
            None => map.serialize_entry("data", &Elements(self.tensor.data()))?,
        }
        map.end()
    }
}

struct Pair<T>(&'static str, T);

impl<T: Serialize> Serialize for Pair<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(self.0, &self.1)?;
        map.end()
    }
}

impl Serialize for Elements<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Data::Bool(v) => v.serialize(serializer),
            Data::Uint8(v) => v.serialize(serializer),
            Data::Uint16(v) => v.serialize(serializer),
            Data::Uint32(v) => v.serialize(serializer),
            Data::Uint64(v) => v.serialize(serializer),
            Data::Int8(v) => v.serialize(serializer),
            Data::Int16(v) => v.serialize(serializer),
            Data::Int32(v) => v.serialize(serializer),
            Data::Int64(v) => v.serialize(serializer),
            Data::Fp32(v) => v.serialize(serializer),
            Data::Fp64(v) => v.serialize(serializer),
            Data::Fp16(v) => serializer.collect_seq(v.iter().map(|bits| f16_value(*bits))),
            Data::Bf16(v) => serializer.collect_seq(v.iter().map(|bits| bf16_value(*bits))),
            Data::Bytes(v) => {
                let mut seq = serializer.serialize_seq(Some(v.len()))?;
                // Bytes that are not text survive only as binary tensors.
                v.iter().try_for_each(|x| seq.serialize_element(&String::from_utf8_lossy(x)))?;
                seq.end()
            }
        }
    }
}
