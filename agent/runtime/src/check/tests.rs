use plimsoll_protocol::bundle::DataType;
use tract_onnx::pb::{GraphProto, NodeProto};

use super::*;
use crate::testing::{classifier, initializer, model, node, tensor_info};
use crate::{Data, encode_tensor};

fn try_it(onnx: &[u8], trial: &Trial) -> Result<CheckReport, RuntimeError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    std::fs::write(&path, onnx).unwrap();
    check(&path, trial)
}

fn graph(nodes: Vec<NodeProto>) -> Vec<u8> {
    model(GraphProto {
        input: vec![tensor_info("x", DataType::Fp32, &[1, 3])],
        output: vec![tensor_info("y", DataType::Fp32, &[1, 3])],
        initializer: vec![initializer("w", &[3], vec![1.0; 3])],
        node: nodes,
        ..Default::default()
    })
}

#[test]
fn a_model_that_runs_is_described_and_measured() {
    let report = try_it(&classifier(4, 3, 1.0), &Trial::default()).unwrap();
    assert!(report.runs && report.problems.is_empty() && report.notes.is_empty(), "{report:?}");
    let description = report.description.unwrap();
    assert_eq!(description.operators.keys().collect::<Vec<_>>(), ["Gemm", "Softmax"]);
    let measured = report.measured.unwrap();
    assert_eq!((measured.runs as usize, measured.shapes), (RUNS, vec![vec![1, 4]]));
    assert!(measured.peak_rss_bytes > 0 && measured.base_rss_bytes > 0);
}

#[test]
fn shapes_are_those_that_were_asked_for_and_must_fit() {
    let trial = |name: &str, shape: &[usize]| Trial {
        shapes: BTreeMap::from([(name.to_owned(), shape.to_vec())]),
        ..Trial::default()
    };
    let report = try_it(&classifier(4, 3, 1.0), &trial("x", &[7, 4])).unwrap();
    assert_eq!(report.measured.unwrap().shapes, [vec![7, 4]]);
    for (name, shape, words) in [
        ("z", &[7, 4][..], "is no input; the model has x"),
        ("x", &[7, 5], "the model's is [-1, 4]"),
        ("x", &[4], "cannot have shape [4]"),
        ("x", &[0, 4], "has 0 elements"),
        ("x", &[usize::MAX, 4], "elements in shape"),
    ] {
        let error = try_it(&classifier(4, 3, 1.0), &trial(name, shape)).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn every_node_that_is_not_supported_is_named_with_its_remedy() {
    let strange =
        NodeProto { domain: "com.microsoft".into(), ..node("FusedMatMul", "fused", &["x", "w"], &["b"]) };
    let nodes =
        vec![node("Frobnicate", "first", &["x"], &["a"]), strange, node("Frobnicate", "", &["a"], &["y"])];
    let report = try_it(&graph(nodes), &Trial::default()).unwrap();
    assert!(!report.runs && report.measured.is_none());
    let seen: Vec<_> = report
        .problems
        .iter()
        .map(|p| (p.node.as_deref().unwrap(), p.domain.as_deref().unwrap(), p.operator.as_deref().unwrap()))
        .collect();
    assert_eq!(
        seen,
        [("first", "", "Frobnicate"), ("fused", "com.microsoft", "FusedMatMul"), ("y", "", "Frobnicate")]
    );
    assert!(report.problems[1].remedy.as_ref().unwrap().contains("optimiser"), "{report:?}");
}

#[test]
fn nodes_whose_form_is_not_supported_are_all_named_too() {
    // Without its shape attribute, and with a target type that does not exist.
    let nodes = vec![node("Cast", "no-type", &["x"], &["a"]), node("Cast", "no-type-either", &["a"], &["y"])];
    let report = try_it(&graph(nodes), &Trial::default()).unwrap();
    let names: Vec<_> = report.problems.iter().map(|p| p.node.as_deref().unwrap_or("")).collect();
    assert_eq!(names, ["no-type", "no-type-either"], "{report:?}");
}

#[test]
fn samples_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, shape: &[usize], values: Vec<f32>| {
        let path = dir.path().join(name);
        let tensor = Tensor::new(shape.to_vec(), Data::Fp32(values)).unwrap();
        std::fs::write(&path, encode_tensor("", &tensor)).unwrap();
        path
    };
    let inputs = vec![file("input_0.pb", &[1, 3], vec![-1.0, 0.0, 2.0])];
    let relu = graph(vec![node("Relu", "relu", &["x"], &["y"])]);
    let with = |values: Vec<f32>| Trial {
        samples: vec![SampleFiles {
            inputs: inputs.clone(),
            outputs: vec![file("output_0.pb", &[1, 3], values)],
        }],
        ..Trial::default()
    };
    let report = try_it(&relu, &with(vec![0.0, 0.0, 2.0])).unwrap();
    assert!(report.runs && report.measured.unwrap().samples == 1);
    let report = try_it(&relu, &with(vec![0.0, 0.0, 3.0])).unwrap();
    assert!(!report.runs && report.problems[0].why.contains("element 2 is 2, expected 3"), "{report:?}");
}

#[test]
fn what_cannot_be_read_is_an_error_and_what_is_no_model_a_problem() {
    assert!(matches!(check(Path::new("/nowhere/m.onnx"), &Trial::default()), Err(RuntimeError::Io { .. })));
    let report = try_it(b"no model", &Trial::default()).unwrap();
    assert!(!report.runs && report.problems[0].why.contains("not a valid ONNX"), "{report:?}");
}
