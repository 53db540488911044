//! scikit-learn's exports through the whole of this crate: screened, described, planned and run. Their numbers are held
//! to onnxruntime's by the crate of the operators; the cases are its.

use std::path::PathBuf;

use plimsoll_protocol::bundle::DataType;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto};

use super::says;
use crate::testing::{model, node, tensor_info};
use crate::{
    Data, Engine, ExternalData, Runtime, RuntimeError, Tensor, TractRuntime, describe_bytes, read_tensor,
};

fn cases() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/ml/tests/models"))
}

fn open(case: &str) -> Box<dyn Engine> {
    let path = cases().join(case).join("model.onnx");
    TractRuntime.open(&path, &ExternalData::None).unwrap_or_else(|e| panic!("{case}: {e}"))
}

fn tensors(case: &str, kind: &str) -> Vec<Tensor> {
    let files = (0..).map(|at| cases().join(format!("{case}/test_data_set_0/{kind}_{at}.pb")));
    files.take_while(|file| file.exists()).map(|file| read_tensor(&file).unwrap().1).collect()
}

#[test]
fn every_export_is_served_as_described_and_answers_the_reference_labels() {
    let mut served = 0;
    for case in std::fs::read_dir(cases()).unwrap() {
        let case = case.unwrap().file_name().into_string().unwrap();
        let engine = open(&case);
        let got = engine.run(tensors(&case, "input")).unwrap_or_else(|e| panic!("{case}: {e}"));
        let expected = tensors(&case, "output");
        assert_eq!(got.len(), expected.len(), "{case}");
        for ((got, expected), info) in got.iter().zip(&expected).zip(&engine.description().outputs) {
            assert_eq!((got.datatype(), got.shape()), (expected.datatype(), expected.shape()), "{case}");
            assert_eq!(info.datatype, got.datatype(), "{case}: output {}", info.name);
            let fits = info.shape.iter().zip(got.shape()).all(|(d, has)| *d == -1 || *d == *has as i64);
            assert!(fits && info.shape.len() == got.shape().len(), "{case}: {info:?}, got {:?}", got.shape());
            if matches!(expected.data(), Data::Int64(_) | Data::Bytes(_)) {
                assert_eq!(got, expected, "{case}: output {}", info.name);
            }
        }
        served += 1;
    }
    assert!(served > 200, "only {served} cases");
}

#[test]
fn a_zip_map_is_served_as_the_matrix_of_probabilities_with_its_labels() {
    let engine = open("logistic_zipmap_strings");
    let description = engine.description();
    let output = &description.outputs[1];
    assert_eq!((output.name.as_str(), output.datatype), ("output_probability", DataType::Fp32));
    assert_eq!(output.shape, [-1, 3]);
    assert_eq!(description.labels["output_probability"], ["setosa", "versicolor", "virginica"]);
    assert_eq!(description.operators["ai.onnx.ml.ZipMap"], 1);

    let ints = open("random_forest_zipmap_ints");
    assert_eq!(ints.description().labels["output_probability"], ["0", "1", "2"]);
    assert!(open("random_forest_strings").description().labels.is_empty());
}

/// A one-hot encoder of the categories 3 and 4.
fn encoder(zeros: i64) -> Vec<u8> {
    let attribute = |name: &str, kind: AttributeType| AttributeProto {
        name: name.into(),
        r#type: kind as i32,
        ..Default::default()
    };
    let categories = AttributeProto { ints: vec![3, 4], ..attribute("cats_int64s", AttributeType::Ints) };
    let zeros = AttributeProto { i: zeros, ..attribute("zeros", AttributeType::Int) };
    model(GraphProto {
        input: vec![tensor_info("machine", DataType::Int64, &[-1])],
        output: vec![tensor_info("y", DataType::Fp32, &[-1, 2])],
        node: vec![NodeProto {
            domain: "ai.onnx.ml".into(),
            attribute: vec![categories, zeros],
            ..node("OneHotEncoder", "encode", &["machine"], &["y"])
        }],
        ..Default::default()
    })
}

#[test]
fn a_category_that_the_model_never_saw_is_the_callers_fault() {
    let dir = tempfile::tempdir().unwrap();
    let ask = |zeros, value| {
        let path = dir.path().join("model.onnx");
        std::fs::write(&path, encoder(zeros)).unwrap();
        let engine = TractRuntime.open(&path, &ExternalData::None).unwrap();
        engine.run(vec![Tensor::new(vec![1], Data::Int64(vec![value])).unwrap()])
    };
    assert_eq!(ask(0, 4).unwrap()[0].data(), &Data::Fp32(vec![0.0, 1.0]));
    assert_eq!(ask(1, 9).unwrap()[0].data(), &Data::Fp32(vec![0.0, 0.0]));
    match ask(0, 9) {
        Err(RuntimeError::Input(error)) => {
            assert_eq!(error.tensor, "machine");
            assert!(error.why.contains("category 9"), "{error}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_operator_is_known_by_its_domain_too_and_a_missing_one_comes_with_a_remedy() {
    let one = |domain: &str, op: &str| {
        let node = NodeProto { domain: domain.into(), ..node(op, "n", &["x"], &["y"]) };
        describe_bytes(&model(GraphProto {
            input: vec![tensor_info("x", DataType::Fp32, &[-1, 3])],
            output: vec![tensor_info("y", DataType::Fp32, &[-1, 3])],
            node: vec![node],
            ..Default::default()
        }))
    };
    assert!(one("", "Relu").is_ok() && one("ai.onnx.ml", "Normalizer").is_ok());
    for (domain, op, words) in [
        ("ai.onnx.ml", "Relu", "operator ai.onnx.ml.Relu of node \"n\" is not supported"),
        ("", "Normalizer", "operator Normalizer of node \"n\" is not supported"),
        ("com.microsoft", "FusedMatMul", "export without its optimiser's fusions"),
        ("ai.onnx.ml", "DictVectorizer", "inputs are tensors, not maps"),
        ("", "SequenceAt", "sequences are not served"),
        ("", "StringNormalizer", "texts are not processed on the device"),
        ("my.company", "Magic", "ship an external engine"),
    ] {
        says(one(domain, op), words);
    }
}
