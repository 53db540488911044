//! Documents that mean harm, or were cut on the way.

use plimsoll_protocol::bundle::DataType;
use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::{
    AttributeProto, GraphProto, NodeProto, StringStringEntryProto, TensorProto, TypeProto, ValueInfoProto,
};

use super::says;
use crate::testing::{add_file, classifier, classifier_manifest, initializer, model, node, tensor_info};
use crate::{ExternalData, Model, Runtime, TractRuntime, describe, describe_bytes};

/// A graph `y = x + w` with this initializer `w`.
fn adding(w: TensorProto) -> Vec<u8> {
    model(GraphProto {
        input: vec![tensor_info("x", DataType::Fp32, &[1, 3])],
        output: vec![tensor_info("y", DataType::Fp32, &[1, 3])],
        initializer: vec![w],
        node: vec![node("Add", "add", &["x", "w"], &["y"])],
        ..Default::default()
    })
}

fn external(location: &str) -> TensorProto {
    let entry = StringStringEntryProto { key: "location".into(), value: location.into() };
    TensorProto {
        name: "w".into(),
        dims: vec![3],
        data_type: 1,
        data_location: Some(DataLocation::External as i32),
        external_data: vec![entry],
        ..Default::default()
    }
}

#[test]
fn no_prefix_of_a_model_loads_or_panics() {
    let whole = classifier(2, 2, 1.0);
    assert!(describe_bytes(&whole).is_ok());
    for end in 0..whole.len() {
        // A prefix that ends between two fields of the document may be a valid, shorter document, but then it
        // lacks what is at its end: the operator sets.
        if let Ok(description) = describe_bytes(&whole[..end]) {
            assert!(description.opsets.is_empty(), "{end} of {} bytes were accepted", whole.len());
        }
    }
}

#[test]
fn an_input_that_no_tensor_can_be_is_refused_with_the_remedy() {
    let graph = |input| {
        model(GraphProto {
            input: vec![input],
            output: vec![tensor_info("y", DataType::Fp32, &[1, 3])],
            node: vec![node("Identity", "same", &["x"], &["y"])],
            ..Default::default()
        })
    };
    // A map, as DictVectorizer takes it: field 5 of TypeProto, which tract's reader skips.
    let map = ValueInfoProto {
        name: "x".into(),
        r#type: Some(TypeProto { value: None, ..Default::default() }),
        ..Default::default()
    };
    let onnx = graph(map);
    says(describe_bytes(&onnx), "input \"x\" is not a tensor");
    says(describe_bytes(&onnx), "ColumnTransformer or OneHotEncoder");
    says(describe_bytes(&graph(tensor_info("x", DataType::Bf16, &[1, 3]))), "export it with FLOAT");
}

#[test]
fn noise_is_not_a_model() {
    says(describe_bytes(b""), "it is empty");
    says(describe_bytes(b"{\"not\": \"onnx\"}"), "not a valid ONNX document");
    says(describe_bytes(&[0xff; 4096]), "not a valid ONNX document");
    let mut flipped = classifier(3, 2, 1.0);
    for at in 0..flipped.len() {
        let good = flipped[at];
        flipped[at] ^= 0x55;
        let _ = describe_bytes(&flipped); // whatever it says, it says it without a panic
        flipped[at] = good;
    }
}

#[test]
fn sizes_that_lie_are_refused_before_anything_is_allocated() {
    let huge = i64::MAX / 2;
    says(describe_bytes(&adding(initializer("w", &[huge, huge], vec![1.0]))), "initializer \"w\" has shape");
    says(describe_bytes(&adding(initializer("w", &[1_000], vec![1.0]))), "has 1 values, but its shape");
    says(describe_bytes(&adding(initializer("w", &[-3], vec![]))), "negative shape");
    let short = TensorProto {
        name: "w".into(),
        dims: vec![3],
        data_type: 1,
        raw_data: vec![0; 8],
        ..Default::default()
    };
    says(describe_bytes(&adding(short)), "has 8 bytes of data");
    let input = model(GraphProto {
        input: vec![tensor_info("x", DataType::Fp32, &[huge, 3])],
        output: vec![tensor_info("y", DataType::Fp32, &[huge, 3])],
        node: vec![node("Relu", "r", &["x"], &["y"])],
        ..Default::default()
    });
    says(describe_bytes(&input), "input \"x\" has");
    let shape = TensorProto {
        name: "s".into(),
        dims: vec![2],
        data_type: 7,
        int64_data: vec![1 << 30, 1 << 30],
        ..Default::default()
    };
    let made = model(GraphProto {
        input: vec![tensor_info("x", DataType::Fp32, &[1])],
        output: vec![tensor_info("y", DataType::Fp32, &[-1])],
        initializer: vec![shape],
        node: vec![
            node("ConstantOfShape", "make", &["s"], &["big"]),
            node("Add", "a", &["x", "big"], &["y"]),
        ],
        ..Default::default()
    });
    says(describe_bytes(&made), "node \"make\" (ConstantOfShape)");
}

#[test]
fn graphs_nested_without_end_are_refused() {
    let mut graph = GraphProto { node: vec![node("Relu", "leaf", &["x"], &["y"])], ..Default::default() };
    for level in 0..20 {
        let body = AttributeProto { name: "body".into(), g: Some(graph), ..Default::default() };
        let outer =
            NodeProto { attribute: vec![body], ..node("Scan", &format!("scan{level}"), &["x"], &["y"]) };
        graph = GraphProto { node: vec![outer], ..Default::default() };
    }
    graph.input = vec![tensor_info("x", DataType::Fp32, &[1, 3])];
    graph.output = vec![tensor_info("y", DataType::Fp32, &[1, 3])];
    let error = describe_bytes(&model(graph)).unwrap_err().to_string();
    assert!(error.contains("nested deeper") || error.contains("recursion"), "{error}");
}

#[test]
fn weights_come_only_from_files_that_the_manifest_lists() {
    let dir = tempfile::tempdir().unwrap();
    let weights: Vec<u8> = [1.0f32, 2.0, 3.0].iter().flat_map(|w| w.to_le_bytes()).collect();
    let outside = dir.path().join("secret.bin");
    std::fs::write(&outside, &weights).unwrap();
    let bundle = dir.path().join("bundle");
    let mut manifest = classifier_manifest(3, 3);
    manifest.inputs[0].shape = vec![1, 3];
    manifest.outputs[0].shape = vec![1, 3];

    for location in ["../secret.bin", outside.to_str().unwrap(), "a/../../secret.bin", ""] {
        let mut manifest = manifest.clone();
        add_file(&bundle, &mut manifest, "model.onnx", &adding(external(location)));
        says(Model::load(&bundle, &manifest, &manifest.variants[0]), "keeps its data outside the model");
    }
    std::fs::write(bundle.join("weights.bin"), &weights).unwrap();
    let mut unlisted = manifest.clone();
    add_file(&bundle, &mut unlisted, "model.onnx", &adding(external("weights.bin")));
    says(Model::load(&bundle, &unlisted, &unlisted.variants[0]), "which bundle.json does not list");
    says(TractRuntime.open(&bundle.join("model.onnx"), &ExternalData::None), "no such file is allowed");

    let mut listed = unlisted;
    add_file(&bundle, &mut listed, "weights.bin", &weights);
    let model = Model::load(&bundle, &listed, &listed.variants[0]).unwrap();
    let answer = model.infer(vec![super::f32s(&[1, 3], vec![1.0; 3])]).unwrap();
    assert_eq!(answer[0].to_f32(), [2.0, 3.0, 4.0]);
    let description = describe(&bundle.join("model.onnx")).unwrap();
    assert_eq!(description.external_data.iter().map(|p| p.as_str()).collect::<Vec<_>>(), ["weights.bin"]);

    std::os::unix::fs::symlink(&outside, bundle.join("link.bin")).unwrap();
    std::fs::write(bundle.join("model.onnx"), adding(external("link.bin"))).unwrap();
    says(describe(&bundle.join("model.onnx")), "resolves outside");
}
