//! Tiny ONNX models and whole bundles, for tests of this crate and of those that use it (feature `testing`).

pub mod hostile;

use std::collections::BTreeMap;
use std::path::Path;

use plimsoll_protocol::Digest;
use plimsoll_protocol::bundle::{
    DataType, FileEntry, Golden, GoldenOrigin, GoldenSample, InputSpec, Manifest, OutputKind, OutputSpec,
    RuntimeKind, SafePath, Tolerance, Variant,
};
use plimsoll_protocol::drift::Order;
use prost::Message;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension::Value as DimValue};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, type_proto,
};

use crate::features;
use crate::golden::record_golden;
use crate::model::Model;
use crate::proto::{encode_tensor, onnx_type};
use crate::tensor::Tensor;

/// `[batch, inputs] -> Gemm -> Softmax -> [batch, classes]`, with a batch of any size. Weights are a fixed pattern
/// times `gain`: another gain is another version of the model, with the same tensors.
pub fn classifier(inputs: usize, classes: usize, gain: f32) -> Vec<u8> {
    let pattern = |at: usize| gain * ((at * 37 % 19) as f32 / 9.5 - 1.0);
    let weights: Vec<f32> = (0..inputs * classes).map(pattern).collect();
    let bias: Vec<f32> = (0..classes).map(|c| c as f32 * 0.1).collect();
    model(GraphProto {
        name: "classifier".into(),
        input: vec![tensor_info("x", DataType::Fp32, &[-1, inputs as i64])],
        output: vec![tensor_info("y", DataType::Fp32, &[-1, classes as i64])],
        initializer: vec![
            initializer("w", &[inputs as i64, classes as i64], weights),
            initializer("b", &[classes as i64], bias),
        ],
        node: vec![
            node("Gemm", "gemm", &["x", "w", "b"], &["scores"]),
            NodeProto {
                attribute: vec![AttributeProto {
                    name: "axis".into(),
                    r#type: AttributeType::Int as i32,
                    i: -1,
                    ..Default::default()
                }],
                ..node("Softmax", "softmax", &["scores"], &["y"])
            },
        ],
        ..GraphProto::default()
    })
}

/// `[batch, inputs] -> Gemm -> Relu -> Gemm -> Softmax -> [batch, classes]`: a perceptron with one hidden layer, as
/// scikit-learn's `MLPClassifier` trains it. Weights are a fixed pattern.
pub fn mlp(inputs: usize, hidden: usize, classes: usize) -> Vec<u8> {
    let weights =
        |count: usize| (0..count).map(|at| (at * 37 % 19) as f32 / 95.0 - 0.1).collect::<Vec<f32>>();
    model(GraphProto {
        name: "mlp".into(),
        input: vec![tensor_info("x", DataType::Fp32, &[-1, inputs as i64])],
        output: vec![tensor_info("y", DataType::Fp32, &[-1, classes as i64])],
        initializer: vec![
            initializer("w1", &[inputs as i64, hidden as i64], weights(inputs * hidden)),
            initializer("b1", &[hidden as i64], weights(hidden)),
            initializer("w2", &[hidden as i64, classes as i64], weights(hidden * classes)),
            initializer("b2", &[classes as i64], weights(classes)),
        ],
        node: vec![
            node("Gemm", "hidden", &["x", "w1", "b1"], &["h"]),
            node("Relu", "relu", &["h"], &["r"]),
            node("Gemm", "output", &["r", "w2", "b2"], &["s"]),
            node("Softmax", "softmax", &["s"], &["y"]),
        ],
        ..GraphProto::default()
    })
}

/// One dense layer for each of `rows` rows of [`COLUMNS`] values, and the mean of all rows: work in proportion to the
/// input, for measuring what moves it. Without batch: `x` is `[-1, rows, COLUMNS]`, `y` is `[-1, classes]`.
pub fn mean_of_rows(rows: usize, classes: usize) -> Vec<u8> {
    let pattern = |at: usize| (at * 37 % 19) as f32 / 9.5 - 1.0;
    let weights =
        initializer("w", &[COLUMNS as i64, classes as i64], (0..COLUMNS * classes).map(pattern).collect());
    let of = |name: &str, r#type: AttributeType| AttributeProto {
        name: name.into(),
        r#type: r#type as i32,
        ..Default::default()
    };
    let axes = AttributeProto { ints: vec![1], ..of("axes", AttributeType::Ints) };
    let keepdims = AttributeProto { i: 0, ..of("keepdims", AttributeType::Int) };
    graph(
        &[("x", DataType::Fp32, &[-1, rows as i64, COLUMNS as i64])],
        &[("y", DataType::Fp32, &[-1, classes as i64])],
        vec![weights],
        vec![
            node("MatMul", "layer", &["x", "w"], &["each"]),
            NodeProto { attribute: vec![axes, keepdims], ..node("ReduceMean", "mean", &["each"], &["y"]) },
        ],
    )
}

/// The product of the row `x` (`[1, -1]`) and itself as a column, squared so often: memory that grows with the square of
/// the elements, work with their cube for each square. `y` (`[1, 1]`) is its largest element. With [`squares_manifest`].
pub fn squares(times: usize) -> Vec<u8> {
    let mut nodes =
        vec![node("Transpose", "column", &["x"], &["c"]), node("MatMul", "product", &["c", "x"], &["p0"])];
    for at in 0..times {
        let (from, to) = (format!("p{at}"), format!("p{}", at + 1));
        nodes.push(node("MatMul", &format!("square{at}"), &[&from, &from], &[&to]));
    }
    nodes.push(node("ReduceMax", "max", &[&format!("p{times}")], &["y"]));
    graph(&[("x", DataType::Fp32, &[1, -1])], &[("y", DataType::Fp32, &[1, 1])], vec![], nodes)
}

/// The manifest of [`squares`], without files or golden samples.
pub fn squares_manifest() -> Manifest {
    let mut manifest = classifier_manifest(4, 1);
    manifest.inputs[0].shape = vec![1, -1];
    manifest.outputs[0].shape = vec![1, 1];
    manifest.outputs[0].kind = OutputKind::Regression;
    manifest
}

/// Values of a row of [`mean_of_rows`].
pub const COLUMNS: usize = 256;

/// Name, datatype and shape of an input or output; -1 is any size, the same for all.
pub type Port<'a> = (&'a str, DataType, &'a [i64]);

/// Nodes between inputs and outputs as the bytes of a document.
pub fn graph(
    inputs: &[Port<'_>],
    outputs: &[Port<'_>],
    initializer: Vec<TensorProto>,
    node: Vec<NodeProto>,
) -> Vec<u8> {
    let ports = |ports: &[Port<'_>]| ports.iter().map(|(n, d, s)| tensor_info(n, *d, s)).collect();
    let (input, output) = (ports(inputs), ports(outputs));
    model(GraphProto { name: "graph".into(), input, output, initializer, node, ..Default::default() })
}

/// A graph as the bytes of a document of opset 13.
pub fn model(graph: GraphProto) -> Vec<u8> {
    let opset = OperatorSetIdProto { domain: String::new(), version: 13 };
    let producer_name = "plimsoll-testing".into();
    ModelProto {
        ir_version: 7,
        opset_import: vec![opset],
        graph: Some(graph),
        producer_name,
        ..Default::default()
    }
    .encode_to_vec()
}

/// A node.
pub fn node(op: &str, name: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let texts = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    NodeProto {
        op_type: op.into(),
        name: name.into(),
        input: texts(inputs),
        output: texts(outputs),
        ..Default::default()
    }
}

/// An FP32 initializer.
pub fn initializer(name: &str, dims: &[i64], values: Vec<f32>) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: onnx_type(DataType::Fp32) as i32,
        float_data: values,
        ..Default::default()
    }
}

/// An input or output; -1 is a dimension called `batch`.
pub fn tensor_info(name: &str, datatype: DataType, shape: &[i64]) -> ValueInfoProto {
    let dim = |d: &i64| Dimension {
        value: Some(if *d == -1 { DimValue::DimParam("batch".into()) } else { DimValue::DimValue(*d) }),
        ..Default::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: onnx_type(datatype) as i32,
        shape: Some(TensorShapeProto { dim: shape.iter().map(dim).collect() }),
    };
    let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), r#type: Some(kind), ..Default::default() }
}

/// The manifest of [`classifier`], without files or golden samples.
pub fn classifier_manifest(inputs: usize, classes: usize) -> Manifest {
    Manifest {
        format: plimsoll_protocol::bundle::FORMAT,
        model: "meter".parse().expect("a valid name"),
        version: semver(1),
        created: "2026-01-01T00:00:00Z".into(),
        annotations: BTreeMap::new(),
        files: Vec::new(),
        variants: vec![Variant {
            name: "default".into(),
            entry: path("model.onnx"),
            runtime: RuntimeKind::Onnx {
                opsets: BTreeMap::from([(String::new(), 13)]),
                operators: BTreeMap::new(),
            },
            architectures: Default::default(),
        }],
        pre: Vec::new(),
        post: Vec::new(),
        inputs: vec![InputSpec {
            name: "x".into(),
            datatype: DataType::Fp32,
            shape: vec![-1, inputs as i64],
            features: Vec::new(),
            content: Default::default(),
            policy: Default::default(),
        }],
        outputs: vec![OutputSpec {
            name: "y".into(),
            datatype: DataType::Fp32,
            shape: vec![-1, classes as i64],
            kind: OutputKind::ClassScores,
            labels: Vec::new(),
        }],
        golden: Golden {
            origin: GoldenOrigin::Recorded,
            samples: Vec::new(),
            tolerance: Tolerance::default(),
            per_architecture: BTreeMap::new(),
        },
        baseline: None,
        requires: Default::default(),
        limits: Default::default(),
    }
}

/// Writes a whole bundle of `onnx` into `dir`: model, two golden samples, a drift baseline of 200 drawn rows and
/// `bundle.json`. Returns its manifest and the digest of `bundle.json`.
pub fn write_bundle(dir: &Path, onnx: &[u8], mut manifest: Manifest) -> (Manifest, Digest) {
    add_file(dir, &mut manifest, "model.onnx", onnx);
    let model = Model::load(dir, &manifest, &manifest.variants[0]).expect("the model loads");
    let samples = record_golden(&model, 200, 7).expect("the model runs");
    for (at, (inputs, outputs)) in samples.iter().take(2).enumerate() {
        let mut write = |kind: &str, tensors: &[Tensor]| -> Vec<SafePath> {
            let each = tensors.iter().enumerate().map(|(k, tensor)| {
                let name = format!("golden/test_data_set_{at}/{kind}_{k}.pb");
                add_file(dir, &mut manifest, &name, &encode_tensor("", tensor));
                path(&name)
            });
            each.collect()
        };
        let sample = GoldenSample { inputs: write("input", inputs), outputs: write("output", outputs) };
        manifest.golden.samples.push(sample);
    }
    if let Some(baseline) =
        features::fit_baseline(&manifest, &samples, Order::Unordered).expect("a baseline fits")
    {
        add_file(dir, &mut manifest, "baseline.json", &baseline.to_bytes());
        manifest.baseline = Some(path("baseline.json"));
    }
    let bytes = manifest.to_bytes();
    std::fs::write(dir.join("bundle.json"), &bytes).expect("the folder is writable");
    (Manifest::parse(&bytes).expect("a valid manifest"), Digest::of(&bytes))
}

/// Writes one file and lists it.
pub fn add_file(dir: &Path, manifest: &mut Manifest, name: &str, bytes: &[u8]) {
    let target = dir.join(name);
    std::fs::create_dir_all(target.parent().expect("a file has a folder")).expect("the folder is writable");
    std::fs::write(target, bytes).expect("the folder is writable");
    manifest.files.push(FileEntry { path: path(name), size: bytes.len() as u64, sha256: Digest::of(bytes) });
}

fn path(text: &str) -> SafePath {
    SafePath::new(text).expect("a valid path")
}

fn semver(major: u64) -> semver::Version {
    semver::Version::new(major, 0, 0)
}
