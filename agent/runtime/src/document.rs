//! Reads an ONNX document and refuses what is hostile or unsupported before an engine sees it: sizes that lie, data
//! in files that nobody listed, operators that do not exist here. An engine that is handed a shape of 10^12 elements
//! aborts in its allocator, which nothing can catch.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use plimsoll_protocol::bundle::{DataType, MAX_ELEMENTS, MAX_FILE_BYTES, MAX_RANK, MAX_TENSORS, SafePath};
use prost::Message;
use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension::Value as DimValue};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, type_proto,
};

use crate::engine::TensorInfo;
use crate::error::{MissingOperator, RuntimeError, full_name};
use crate::proto::our_type;
use crate::tensor::element_count;

/// Largest ONNX document: protobuf itself ends at 2 GiB, and larger models keep their weights in other files.
pub const MAX_DOCUMENT_BYTES: u64 = 2 * 1024 * 1024 * 1024 - 1;
/// Most nodes of all graphs of a model: GPT-2 exports have 3,000, the largest detector measured 1,900.
pub const MAX_NODES: usize = 100_000;
/// Newest `ai.onnx` operator set that the runtime is known to answer rightly (`tests/bench/onnx-backend`). An operator
/// may mean something else in a newer one, and a wrong answer is worse than none.
pub const MAX_OPSET: i64 = 24;
/// Deepest graph inside a graph (If, Loop, Scan): exporters write two or three.
pub const MAX_NESTING: usize = 16;

/// Which files beside the model may carry its weights. An ONNX document names such files itself, and a hostile one
/// names `/etc/shadow` (CVE-2024-27318).
#[derive(Debug, Clone)]
pub enum ExternalData {
    /// None.
    None,
    /// These, relative to the folder of the model.
    Listed(BTreeSet<SafePath>),
    /// Any file under the folder of the model: for packing one's own model, never for a bundle.
    Beside,
}

/// A document that passed every check of this module.
pub(crate) struct Document {
    pub(crate) proto: ModelProto,
    /// Folder that external data is relative to.
    pub(crate) folder: Option<String>,
    pub(crate) opsets: BTreeMap<String, i64>,
    pub(crate) operators: BTreeMap<String, u64>,
    pub(crate) external: BTreeSet<SafePath>,
    /// Class names of outputs that are made by `ZipMap`.
    pub(crate) labels: BTreeMap<String, Vec<String>>,
    pub(crate) input_names: Vec<String>,
    pub(crate) output_names: Vec<String>,
}

impl Document {
    /// Opens a file.
    pub(crate) fn read(path: &Path, external: &ExternalData) -> Result<Self, RuntimeError> {
        let io = |source| RuntimeError::Io { path: path.to_owned(), source };
        let size = std::fs::metadata(path).map_err(io)?.len();
        if size > MAX_DOCUMENT_BYTES.min(MAX_FILE_BYTES) {
            return Err(RuntimeError::Refused(format!(
                "{} has {size} bytes; an ONNX document has at most {MAX_DOCUMENT_BYTES} (keep weights in external data)",
                path.display()
            )));
        }
        let bytes = std::fs::read(path).map_err(io)?;
        let folder = path.parent().and_then(Path::to_str).map(str::to_owned);
        Self::parse(&bytes, &path.display().to_string(), folder, external)
    }

    /// Parses bytes; `what` names them in errors.
    pub(crate) fn parse(
        bytes: &[u8],
        what: &str,
        folder: Option<String>,
        external: &ExternalData,
    ) -> Result<Self, RuntimeError> {
        let malformed = |why: String| RuntimeError::Malformed { what: what.to_owned(), why };
        if bytes.is_empty() {
            return Err(malformed("it is empty".into()));
        }
        let proto = ModelProto::decode(bytes).map_err(|e| malformed(last_words(&e.to_string())))?;
        let graph = proto.graph.as_ref().ok_or_else(|| malformed("it has no graph".into()))?;
        let mut screen = Screen {
            allowed: external,
            nodes: 0,
            operators: BTreeMap::new(),
            missing: Vec::new(),
            external: BTreeSet::new(),
        };
        screen.graph(graph, 0)?;
        if !screen.missing.is_empty() {
            return Err(RuntimeError::Operators(screen.missing));
        }
        let (operators, external) = (screen.operators, screen.external);
        let initialised: BTreeSet<&str> = graph.initializer.iter().map(|t| t.name.as_str()).collect();
        let inputs: Vec<&ValueInfoProto> =
            graph.input.iter().filter(|i| !initialised.contains(i.name.as_str())).collect();
        inputs.iter().try_for_each(|input| check_input(input))?;
        let input_names = names("input", inputs.into_iter())?;
        let output_names = names("output", graph.output.iter())?;
        let labels = zip_map_labels(graph);
        let opsets: BTreeMap<String, i64> =
            proto.opset_import.iter().map(|o| (domain(&o.domain).to_owned(), o.version)).collect();
        if let Some(opset) = opsets.get("").filter(|opset| !(1..=MAX_OPSET).contains(*opset)) {
            return Err(RuntimeError::Unsupported(format!(
                "it is written in operator set {opset} of ai.onnx; 1 to {MAX_OPSET} are known here: export it with \
                 another (17 suits), or convert it with onnx.version_converter"
            )));
        }
        Ok(Self { folder, opsets, operators, external, labels, input_names, output_names, proto })
    }
}

impl Document {
    /// Outputs with datatype and shape as the file declares them; `None` unless it declares all.
    pub(crate) fn declared_outputs(&self) -> Option<Vec<TensorInfo>> {
        let info = |value: &ValueInfoProto| {
            // A sequence of maps in the file, a matrix of probabilities here.
            if let Some(labels) = self.labels.get(&value.name) {
                let shape = vec![-1, labels.len() as i64];
                return Some(TensorInfo { name: value.name.clone(), datatype: DataType::Fp32, shape });
            }
            let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_ref()?.value.as_ref() else {
                return None;
            };
            let size = |dim: &Dimension| match dim.value {
                Some(DimValue::DimValue(size)) if size > 0 => size,
                _ => -1,
            };
            let shape = tensor.shape.as_ref()?.dim.iter().map(size).collect();
            Some(TensorInfo { name: value.name.clone(), datatype: our_type(tensor.elem_type).ok()?, shape })
        };
        self.proto.graph.as_ref()?.output.iter().map(info).collect()
    }
}

/// The end of a decoder's error: it begins with the path of fields, which in a nested document is longer than all else.
fn last_words(error: &str) -> String {
    const KEPT: usize = 200;
    match error.char_indices().rev().nth(KEPT) {
        Some((at, _)) => format!("…{}", &error[at..]),
        None => error.to_owned(),
    }
}

/// `""` and `ai.onnx` are one domain.
pub(crate) fn domain(text: &str) -> &str {
    if text == "ai.onnx" { "" } else { text }
}

fn names<'a>(
    kind: &str,
    infos: impl Iterator<Item = &'a ValueInfoProto>,
) -> Result<Vec<String>, RuntimeError> {
    let names: Vec<String> = infos.map(|i| i.name.clone()).collect();
    if names.is_empty() || names.len() > MAX_TENSORS {
        let count = names.len();
        return Err(RuntimeError::Refused(format!("it has {count} {kind}s; 1 to {MAX_TENSORS} are served")));
    }
    Ok(names)
}

fn check_input(input: &ValueInfoProto) -> Result<(), RuntimeError> {
    let refuse = |why: String| Err(RuntimeError::Refused(format!("input {:?} {why}", input.name)));
    let Some(type_proto::Value::TensorType(tensor)) = input.r#type.as_ref().and_then(|t| t.value.as_ref())
    else {
        return refuse(NOT_A_TENSOR.into());
    };
    match our_type(tensor.elem_type) {
        Err(why) => return refuse(format!("has a {why}")),
        Ok(DataType::Bf16) => {
            return refuse(
                "has datatype BF16, in which the runtime does not compute: export it with FLOAT (its bundle can \
                 still carry it as BF16: `bundle pack --bf16`)"
                    .into(),
            );
        }
        Ok(_) => {}
    }
    let Some(shape) = &tensor.shape else {
        return refuse("declares no shape; export the model with at least its number of dimensions".into());
    };
    if shape.dim.len() > MAX_RANK {
        return refuse(format!("has {} dimensions; at most {MAX_RANK}", shape.dim.len()));
    }
    let mut elements = 1u64;
    for dim in &shape.dim {
        if let Some(DimValue::DimValue(value)) = dim.value
            && value > 0
        {
            elements = elements.saturating_mul(value as u64);
        }
    }
    if elements > MAX_ELEMENTS {
        return refuse(format!("has {elements} elements; at most {MAX_ELEMENTS}"));
    }
    Ok(())
}

/// What to do about an input that is a map or a sequence. Which of them it is, the engine's reader of documents does
/// not keep.
const NOT_A_TENSOR: &str = "is not a tensor: maps (a dictionary for each row, as DictVectorizer takes them), sequences \
                            and optionals are not served; fit and export with columns instead, by ColumnTransformer \
                            or OneHotEncoder";

struct Screen<'a> {
    allowed: &'a ExternalData,
    nodes: usize,
    operators: BTreeMap<String, u64>,
    missing: Vec<MissingOperator>,
    external: BTreeSet<SafePath>,
}

impl Screen<'_> {
    fn graph(&mut self, graph: &GraphProto, depth: usize) -> Result<(), RuntimeError> {
        if depth > MAX_NESTING {
            return Err(RuntimeError::Refused(format!("its graphs are nested deeper than {MAX_NESTING}")));
        }
        self.nodes += graph.node.len();
        if self.nodes > MAX_NODES {
            return Err(RuntimeError::Refused(format!("it has more than {MAX_NODES} nodes")));
        }
        let place = |t: &TensorProto| format!("initializer {:?}", t.name);
        graph.initializer.iter().try_for_each(|t| self.tensor(&place(t), t))?;
        if !graph.sparse_initializer.is_empty() {
            return Err(RuntimeError::Unsupported("sparse initializers are not supported".into()));
        }
        let constants: BTreeMap<&str, &TensorProto> =
            graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
        for node in &graph.node {
            self.operator(node);
            check_made_shape(node, &constants)?;
            node.attribute.iter().try_for_each(|a| self.attribute(node, a, depth))?;
        }
        Ok(())
    }

    /// Counts the operator, or notes that it is missing: whoever exports the model again wants to know all of them.
    fn operator(&mut self, node: &NodeProto) {
        let (domain, operator) = (domain(&node.domain), node.op_type.as_str());
        if !crate::engine::knows_operator(domain, operator) {
            self.missing.push(MissingOperator {
                node: node_name(node).to_owned(),
                domain: domain.to_owned(),
                operator: operator.to_owned(),
                remedy: remedy(domain, operator),
            });
        }
        *self.operators.entry(full_name(domain, operator)).or_default() += 1;
    }

    fn attribute(&mut self, node: &NodeProto, a: &AttributeProto, depth: usize) -> Result<(), RuntimeError> {
        let place = || format!("attribute {:?} of node {:?}", a.name, node_name(node));
        a.t.iter().chain(&a.tensors).try_for_each(|t| self.tensor(&place(), t))?;
        a.g.iter().chain(&a.graphs).try_for_each(|g| self.graph(g, depth + 1))
    }

    fn tensor(&mut self, place: &str, tensor: &TensorProto) -> Result<(), RuntimeError> {
        let refuse = |why: String| Err(RuntimeError::Refused(format!("{place} {why}")));
        let datatype = match our_type(tensor.data_type) {
            Ok(datatype) => datatype,
            Err(why) => return Err(RuntimeError::Unsupported(format!("{place}: {why}"))),
        };
        let shape: Option<Vec<usize>> = tensor.dims.iter().map(|d| usize::try_from(*d).ok()).collect();
        let Some(shape) = shape else { return refuse(format!("has the negative shape {:?}", tensor.dims)) };
        let Some(count) = element_count(&shape) else {
            return refuse(format!("has shape {shape:?}, more than {MAX_ELEMENTS} elements"));
        };
        if tensor.data_location == Some(DataLocation::External as i32) {
            return self.external_file(place, tensor);
        }
        let width = datatype.width().unwrap_or(0);
        if !tensor.raw_data.is_empty() && tensor.raw_data.len() != count * width {
            let (has, needs) = (tensor.raw_data.len(), count * width);
            return refuse(format!("has {has} bytes of data, but its shape {shape:?} needs {needs}"));
        }
        let typed = tensor.float_data.len()
            + tensor.int32_data.len()
            + tensor.int64_data.len()
            + tensor.double_data.len()
            + tensor.uint64_data.len()
            + tensor.string_data.len();
        if tensor.raw_data.is_empty() && typed != count {
            return refuse(format!("has {typed} values, but its shape {shape:?} needs {count}"));
        }
        Ok(())
    }

    fn external_file(&mut self, place: &str, tensor: &TensorProto) -> Result<(), RuntimeError> {
        let refuse = |why: String| Err(RuntimeError::Refused(format!("{place} {why}")));
        let Some(location) = tensor.external_data.iter().find(|e| e.key == "location") else {
            return refuse("has external data without a location".into());
        };
        let path = match SafePath::new(&location.value) {
            Ok(path) => path,
            Err(why) => return refuse(format!("keeps its data outside the model: {why}")),
        };
        match self.allowed {
            ExternalData::None => {
                refuse(format!("keeps its data in {path}, and no such file is allowed here"))
            }
            ExternalData::Listed(files) if !files.contains(&path) => {
                refuse(format!("keeps its data in {path}, which bundle.json does not list"))
            }
            ExternalData::Listed(_) | ExternalData::Beside => {
                self.external.insert(path);
                Ok(())
            }
        }
    }
}

/// What the owner of a model can do about an operator that is missing here.
fn remedy(domain: &str, operator: &str) -> &'static str {
    match (domain, operator) {
        ("", name) if name.contains("Sequence") || name.starts_with("Optional") => {
            "sequences are not served: export the step that makes tensors only"
        }
        ("", name) if name.starts_with("String") || matches!(name, "TfIdfVectorizer" | "RegexFullMatch") => {
            "texts are not processed on the device: tokenise before the model, and export what follows"
        }
        ("", _) => {
            "export with an older opset (17 suits), or run onnxsim over it; or ship an external engine"
        }
        ("ai.onnx.ml", "DictVectorizer") => {
            "inputs are tensors, not maps: fit and export with columns, by ColumnTransformer or OneHotEncoder"
        }
        ("com.microsoft" | "com.microsoft.nchwc", _) => {
            "it is onnxruntime's own: export without its optimiser's fusions, with the operators of ai.onnx"
        }
        ("ai.onnx.training" | "ai.onnx.preview.training", _) => {
            "export the model for inference, not for training"
        }
        _ => "export without it, or ship an external engine",
    }
}

/// Class names that `ZipMap` gives to the columns of outputs of the model.
fn zip_map_labels(graph: &GraphProto) -> BTreeMap<String, Vec<String>> {
    let outputs: BTreeSet<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
    let labels = |node: &NodeProto| -> Option<(String, Vec<String>)> {
        let output = node.output.first().filter(|name| outputs.contains(name.as_str()))?;
        let named = |name: &str| node.attribute.iter().find(|a| a.name == name);
        let texts = named("classlabels_strings").map(|a| &a.strings).filter(|texts| !texts.is_empty());
        let labels: Vec<String> = match texts {
            Some(texts) => texts.iter().map(|t| String::from_utf8_lossy(t).into_owned()).collect(),
            None => named("classlabels_int64s")?.ints.iter().map(i64::to_string).collect(),
        };
        Some((output.clone(), labels))
    };
    graph.node.iter().filter(|node| node.op_type == "ZipMap").filter_map(labels).collect()
}

/// Operators that make a tensor of whatever shape a constant says.
fn check_made_shape(node: &NodeProto, constants: &BTreeMap<&str, &TensorProto>) -> Result<(), RuntimeError> {
    let position = match node.op_type.as_str() {
        "ConstantOfShape" => 0,
        "Expand" | "Tile" | "RandomNormal" | "RandomUniform" => 1,
        _ => return Ok(()),
    };
    let Some(shape) = node.input.get(position).and_then(|name| constants.get(name.as_str())) else {
        return Ok(());
    };
    let from_raw = shape.raw_data.as_chunks::<8>().0.iter().map(|c| i64::from_le_bytes(*c));
    let product = shape
        .int64_data
        .iter()
        .copied()
        .chain(from_raw)
        .map(|d| d.unsigned_abs().max(1))
        .fold(1u64, u64::saturating_mul);
    if product > MAX_ELEMENTS {
        return Err(RuntimeError::Refused(format!(
            "node {:?} ({}) makes a tensor of {product} elements; at most {MAX_ELEMENTS}",
            node_name(node),
            node.op_type
        )));
    }
    Ok(())
}

/// A node's name, or that of its first output: exporters leave names out.
pub(crate) fn node_name(node: &NodeProto) -> &str {
    if node.name.is_empty() { node.output.first().map_or("", String::as_str) } else { &node.name }
}
