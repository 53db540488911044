//! `bundle.json`: what a model version is, what it needs, and how it must answer.
//!
//! Strict: an unknown field, an unknown step or a value outside its limit refuses the whole document, because
//! it is signed and a device must not run what it only half understands. New fields come with a new `format`.

mod policy;
mod validate;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::SafePath;
use crate::{Digest, ModelName};
pub use policy::{OnValue, ValuePolicy, ValueRule};

/// The only format there is.
pub const FORMAT: u32 = 1;
/// Largest `bundle.json`: 1,024 files of ~300 bytes each and room for labels; read whole into memory on a device.
pub const MAX_MANIFEST_BYTES: u64 = 1024 * 1024;
/// Most files of a bundle: golden samples are a few files each, models one or a few.
pub const MAX_FILES: usize = 1024;
/// Largest single file: a 4 GiB model is beyond the devices Plimsoll is for.
pub const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024 * 1024;
/// Most inputs or outputs of a model.
pub const MAX_TENSORS: usize = 64;
/// Most operators that a variant lists: ONNX has 200, `ai.onnx.ml` 20, and a vendor's domain is not larger.
pub const MAX_OPERATORS: usize = 1024;
/// Most dimensions of a tensor.
pub const MAX_RANK: usize = 8;
/// Most categories that a feature lists: countries, tariffs and device types have at most some hundreds; an identifier
/// is no category.
pub const MAX_LISTED_CATEGORIES: usize = 1024;
/// Most elements that the fixed dimensions of one tensor may multiply to: 256 M elements are 1 GiB of FP32.
pub const MAX_ELEMENTS: u64 = 256 * 1024 * 1024;

/// A manifest that was not accepted, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Longer than [`MAX_MANIFEST_BYTES`].
    #[error("bundle.json has {0} bytes; at most {MAX_MANIFEST_BYTES} are read")]
    TooBig(u64),
    /// Not JSON of this schema.
    #[error("bundle.json does not parse: {0}")]
    Parse(String),
    /// A newer or unknown format.
    #[error(
        "bundle.json has format {0}; this version reads format {FORMAT}: update Plimsoll on this machine"
    )]
    Format(u32),
    /// Parses, but contradicts itself or breaks a limit.
    #[error("bundle.json: {0}")]
    Invalid(String),
}

/// The contents of `bundle.json`, validated by [`Manifest::parse`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Which model this is a version of.
    pub model: ModelName,
    /// Semantic version.
    pub version: semver::Version,
    /// When it was packed, RFC 3339, for people; nothing decides on it.
    pub created: String,
    /// Source commit, data digest, author, licence, model card: free text for lineage.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Every file of the bundle but `bundle.json` itself.
    pub files: Vec<FileEntry>,
    /// The builds of the model that this version carries; most bundles have one.
    pub variants: Vec<Variant>,
    /// Declarative steps before the model, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pre: Vec<Step>,
    /// Declarative steps after the model, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub post: Vec<Step>,
    /// What a request must bring, in order.
    pub inputs: Vec<InputSpec>,
    /// What a response carries, in order.
    pub outputs: Vec<OutputSpec>,
    /// Expected outputs that every device checks on its own hardware before it activates.
    pub golden: Golden,
    /// The drift reference: a file of the bundle that holds a [`crate::drift::Baseline`] as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<SafePath>,
    /// What a device must have.
    #[serde(default)]
    pub requires: Requires,
    /// How the model is served.
    #[serde(default)]
    pub limits: ServeLimits,
}

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Where it lies in the bundle.
    pub path: SafePath,
    /// Bytes.
    pub size: u64,
    /// Of its contents.
    pub sha256: Digest,
}

/// One build of the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// For people: `default`, `int8`, `jetson`.
    pub name: String,
    /// The file that the runtime opens.
    pub entry: SafePath,
    /// What runs it.
    pub runtime: RuntimeKind,
    /// Architectures it suits (`x86_64`, `aarch64`, `armv7`), empty for all.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub architectures: BTreeSet<String>,
}

/// What runs a variant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum RuntimeKind {
    /// The agent's own runtime.
    Onnx {
        /// Version of each operator set that the model imports, by domain (`""` is `ai.onnx`).
        opsets: BTreeMap<String, i64>,
        /// Operators that the model uses, by domain (`""` is `ai.onnx`), so that a device whose runtime lacks one says
        /// so before it fetches anything. Empty for a bundle of before they were listed: nothing is known of it.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        operators: BTreeMap<String, BTreeSet<String>>,
    },
    /// The owner's process loads it from the slot; the agent delivers, verifies and rolls back.
    External {
        /// For people: `tensorrt-10`, `rknn`.
        engine: String,
    },
}

/// A declarative step around the model. What was fitted with the model ships and is signed with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// `x * factor + offset`, every element.
    Scale {
        /// The tensor.
        tensor: String,
        /// Multiplied first.
        factor: f32,
        /// Added second.
        offset: f32,
    },
    /// `(x - mean[c]) / std[c]` along `axis`.
    Normalize {
        /// The tensor.
        tensor: String,
        /// Which axis the lists run along.
        axis: usize,
        /// One a channel.
        mean: Vec<f32>,
        /// One a channel, none zero.
        std: Vec<f32>,
    },
    /// Soft-max along the last axis.
    Softmax {
        /// The tensor.
        tensor: String,
    },
    /// Adds an INT64 output `name`: the index of the largest value along the last axis.
    ArgMax {
        /// The tensor read.
        tensor: String,
        /// The output added.
        name: String,
    },
}

/// Datatypes of the Open Inference Protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs)] // the names are the protocol's own
pub enum DataType {
    Bool,
    Uint8,
    Uint16,
    Uint32,
    Uint64,
    Int8,
    Int16,
    Int32,
    Int64,
    Fp16,
    Bf16,
    Fp32,
    Fp64,
    Bytes,
}

impl DataType {
    /// Bytes of one element in binary form; `None` for BYTES, whose elements carry their own length.
    pub const fn width(self) -> Option<usize> {
        Some(match self {
            Self::Bool | Self::Uint8 | Self::Int8 => 1,
            Self::Uint16 | Self::Int16 | Self::Fp16 | Self::Bf16 => 2,
            Self::Uint32 | Self::Int32 | Self::Fp32 => 4,
            Self::Uint64 | Self::Int64 | Self::Fp64 => 8,
            Self::Bytes => return None,
        })
    }
    /// The protocol's name: `FP32`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Bool => "BOOL",
            Self::Uint8 => "UINT8",
            Self::Uint16 => "UINT16",
            Self::Uint32 => "UINT32",
            Self::Uint64 => "UINT64",
            Self::Int8 => "INT8",
            Self::Int16 => "INT16",
            Self::Int32 => "INT32",
            Self::Int64 => "INT64",
            Self::Fp16 => "FP16",
            Self::Bf16 => "BF16",
            Self::Fp32 => "FP32",
            Self::Fp64 => "FP64",
            Self::Bytes => "BYTES",
        }
    }
}

/// One input of the model, in Open Inference Protocol terms.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputSpec {
    /// Tensor name.
    pub name: String,
    /// Element type.
    pub datatype: DataType,
    /// Dimensions; -1 is variable (the batch).
    pub shape: Vec<i64>,
    /// What the elements of one row mean; empty when nothing is known of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<Feature>,
    /// What this input is, which decides how its drift is measured.
    #[serde(default)]
    pub content: InputContent,
    /// What happens to values that are missing, infinite, out of range or of an unknown category.
    #[serde(default, skip_serializing_if = "ValuePolicy::is_default")]
    pub policy: ValuePolicy,
}

/// What an input is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InputContent {
    /// Columns, each a feature of its own.
    #[default]
    Tabular,
    /// Pixels: measured by pseudo-features (mean, contrast, sharpness, …), not pixel by pixel.
    Image,
    /// Not measured.
    Opaque,
}

/// One column of a tabular input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// Name, unique in its input.
    pub name: String,
    /// Numeric or categorical.
    pub kind: FeatureKind,
    /// Smallest and largest valid value; outside is a data-quality event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<(f64, f64)>,
    /// `°C`, `V`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Every valid value of a category, as text (of a numeric datatype the number: `"3"`); another one is a data-quality
    /// event. Empty when they are not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub categories: Vec<String>,
    /// Instead of the input's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<ValuePolicy>,
}

impl Feature {
    /// A column of which only name and kind are known.
    pub fn new(name: impl Into<String>, kind: FeatureKind) -> Self {
        Self { name: name.into(), kind, range: None, unit: None, categories: Vec::new(), policy: None }
    }
}

/// Numeric or categorical.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum FeatureKind {
    Numeric,
    Categorical,
}

/// One output of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// Tensor name.
    pub name: String,
    /// Element type.
    pub datatype: DataType,
    /// Dimensions; -1 is variable (the batch).
    pub shape: Vec<i64>,
    /// What it means, which decides how it is measured.
    #[serde(default)]
    pub kind: OutputKind,
    /// Class names, in order, when it scores classes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
}

/// What an output means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputKind {
    /// A score for each class along the last axis: classes, confidence and entropy are measured.
    ClassScores,
    /// A number: measured like a numeric feature.
    Regression,
    /// A vector: measured by its norm.
    Embedding,
    /// Not measured.
    #[default]
    Raw,
}

/// Golden samples: expected outputs, checked on the device's own hardware.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    /// Where the outputs come from.
    pub origin: GoldenOrigin,
    /// In order.
    pub samples: Vec<GoldenSample>,
    /// How far an output may be from the expected one.
    pub tolerance: Tolerance,
    /// Where an architecture needs another tolerance.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub per_architecture: BTreeMap<String, Tolerance>,
}

/// Where golden outputs come from, which is what they prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GoldenOrigin {
    /// From the training framework: they prove that the device answers as the notebook does.
    Supplied,
    /// Recorded by `bundle pack` with the agent's own runtime: they prove stability across devices, not agreement
    /// with the training framework.
    Recorded,
}

/// One golden sample: one ONNX TensorProto file for each input and each output, in the model's order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenSample {
    /// `golden/test_data_set_0/input_0.pb`, …
    pub inputs: Vec<SafePath>,
    /// `golden/test_data_set_0/output_0.pb`, …
    pub outputs: Vec<SafePath>,
}

/// `|got - expected| <= absolute + relative * |expected|`, element by element.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerance {
    /// In the output's unit.
    pub absolute: f64,
    /// A share of the expected value.
    pub relative: f64,
    /// Whether the largest class must be the same (int8 results differ by CPU: onnxruntime#20479).
    #[serde(default)]
    pub top1: bool,
}

impl Default for Tolerance {
    /// 1e-4 and 1e-3: what FP32 kernels that sum in different orders stay within on the models measured.
    fn default() -> Self {
        Self { absolute: 1e-4, relative: 1e-3, top1: true }
    }
}

/// What a device must have; checked before a byte is fetched.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requires {
    /// Empty for all.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub architectures: BTreeSet<String>,
    /// Peak memory of load and first inference, measured at pack time, in bytes.
    #[serde(default)]
    pub min_ram_bytes: u64,
    /// Oldest agent that can run it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<semver::Version>,
}

/// How a model is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServeLimits {
    /// An inference that takes longer is answered 504.
    pub timeout_ms: u32,
    /// Rows of one request.
    pub max_batch: u32,
    /// Requests that wait; one more is answered 503.
    pub queue: u32,
    /// Memory that the model may take, bytes: what opening it and running its golden samples adds to a process at most.
    /// A device on which it takes more refuses it in its self-test.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram_bytes: Option<u64>,
}

impl Default for ServeLimits {
    /// 5 s is 25 times ResNet-50 on a slow core; 64 rows; 64 waiting requests are a few MB of input.
    fn default() -> Self {
        Self { timeout_ms: 5_000, max_batch: 64, queue: 64, ram_bytes: None }
    }
}

impl Manifest {
    /// Parses and validates a `bundle.json`.
    ///
    /// Does not say whether anybody signed it: that is [`crate::trust`]'s to prove.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooBig(bytes.len() as u64));
        }
        // The format is read first and leniently, so that a newer bundle is refused for what it is.
        #[derive(Deserialize)]
        struct Peek {
            format: u32,
        }
        let parse = |e: serde_json::Error| ManifestError::Parse(e.to_string());
        let peek: Peek = serde_json::from_slice(bytes).map_err(parse)?;
        if peek.format != FORMAT {
            return Err(ManifestError::Format(peek.format));
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(parse)?;
        manifest.validate().map_err(ManifestError::Invalid)?;
        Ok(manifest)
    }

    /// The document as it is signed: JSON, two spaces, a newline at the end.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self).unwrap_or_default(); // no map with non-text keys: cannot fail
        bytes.push(b'\n');
        bytes
    }

    /// Bytes of all files together, the manifest not counted.
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|f| f.size).sum()
    }

    /// The entry of a path.
    pub fn file(&self, path: &SafePath) -> Option<&FileEntry> {
        self.files.iter().find(|f| f.path == *path)
    }

    /// The first variant that suits an architecture (`x86_64`, `aarch64`, `armv7`).
    pub fn variant_for(&self, architecture: &str) -> Option<&Variant> {
        self.variants.iter().find(|v| v.architectures.is_empty() || v.architectures.contains(architecture))
    }

    /// The tolerance that holds on an architecture.
    pub fn tolerance_for(&self, architecture: &str) -> Tolerance {
        *self.golden.per_architecture.get(architecture).unwrap_or(&self.golden.tolerance)
    }
}

#[cfg(test)]
mod tests;
