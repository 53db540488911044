//! Models that load, and what they answer.

use plimsoll_protocol::bundle::{DataType, OutputKind, OutputSpec, Step};
use tract_onnx::pb::GraphProto;

use super::{f32s, says};
use crate::testing::{add_file, classifier, classifier_manifest, initializer, model, node, tensor_info};
use crate::{Data, Model, Tensor, arg_max, describe_bytes};

fn load(onnx: &[u8], manifest: plimsoll_protocol::bundle::Manifest) -> Result<Model, crate::RuntimeError> {
    let dir = tempfile::tempdir().unwrap();
    let mut manifest = manifest;
    add_file(dir.path(), &mut manifest, "model.onnx", onnx);
    Model::load(dir.path(), &manifest, &manifest.variants[0])
}

#[test]
fn a_model_describes_itself_in_protocol_terms() {
    let d = describe_bytes(&classifier(4, 3, 1.0)).unwrap();
    let short = |infos: &[crate::TensorInfo]| {
        infos.iter().map(|i| (i.name.clone(), i.datatype, i.shape.clone())).collect::<Vec<_>>()
    };
    assert_eq!(short(&d.inputs), [("x".to_owned(), DataType::Fp32, vec![-1, 4])]);
    assert_eq!(short(&d.outputs), [("y".to_owned(), DataType::Fp32, vec![-1, 3])]);
    assert_eq!(d.opsets.get(""), Some(&13));
    assert_eq!(d.operators.keys().collect::<Vec<_>>(), ["Gemm", "Softmax"]);
    assert_eq!(d.producer, "plimsoll-testing");
}

#[test]
fn any_batch_runs_and_each_row_is_answered_as_if_alone() {
    let model = load(&classifier(4, 3, 1.0), classifier_manifest(4, 3)).unwrap();
    let rows: Vec<f32> = (0..28).map(|i| (i % 5) as f32 - 2.0).collect();
    let batch = model.infer(vec![f32s(&[7, 4], rows.clone())]).unwrap().remove(0);
    assert_eq!(batch.shape(), [7, 3]);
    for row in 0..7 {
        let alone = model.infer(vec![f32s(&[1, 4], rows[row * 4..row * 4 + 4].to_vec())]).unwrap().remove(0);
        let values = alone.to_f32();
        assert!((values.iter().sum::<f32>() - 1.0).abs() < 1e-5, "a softmax sums to one: {values:?}");
        for (a, b) in values.iter().zip(batch.slice_rows(row, row + 1).unwrap().to_f32()) {
            assert!((a - b).abs() < 1e-6);
        }
    }
}

#[test]
fn a_model_of_fp32_is_asked_and_answers_in_bf16_when_its_manifest_says_so() {
    let mut manifest = classifier_manifest(4, 3);
    manifest.inputs[0].datatype = DataType::Bf16;
    manifest.outputs[0].datatype = DataType::Bf16;
    let half = load(&classifier(4, 3, 1.0), manifest).unwrap();
    let full = load(&classifier(4, 3, 1.0), classifier_manifest(4, 3)).unwrap();
    let row = vec![0.5, -1.0, 2.0, 0.25]; // exact in both
    let expected = full.infer(vec![f32s(&[1, 4], row.clone())]).unwrap();
    let bits = row.into_iter().map(crate::bf16_bits).collect();
    let got = half.infer(vec![Tensor::new(vec![1, 4], Data::Bf16(bits)).unwrap()]).unwrap();
    assert_eq!((got[0].datatype(), got[0].shape()), (DataType::Bf16, &[1, 3][..]));
    for (got, expected) in got[0].to_f32().into_iter().zip(expected[0].to_f32()) {
        assert!((got - expected).abs() <= expected / 256.0, "{got} is not {expected} to eight bits");
    }
    // The other way round there is nothing to save.
    let mut manifest = classifier_manifest(4, 3);
    manifest.inputs[0].datatype = DataType::Fp64;
    says(load(&classifier(4, 3, 1.0), manifest), "arrives as FP64, the model takes FP32");
}

#[test]
fn a_shared_model_runs_on_several_threads_at_once() {
    let model = std::sync::Arc::new(load(&classifier(4, 3, 1.0), classifier_manifest(4, 3)).unwrap());
    let expected = model.infer(vec![f32s(&[1, 4], vec![1.0; 4])]).unwrap();
    let runs: Vec<_> = (0..4)
        .map(|_| {
            let (model, expected) = (model.clone(), expected.clone());
            std::thread::spawn(move || {
                for _ in 0..50 {
                    assert_eq!(model.infer(vec![f32s(&[1, 4], vec![1.0; 4])]).unwrap(), expected);
                }
            })
        })
        .collect();
    runs.into_iter().for_each(|run| run.join().unwrap());
}

#[test]
fn steps_run_inside_the_model() {
    let mut manifest = classifier_manifest(4, 3);
    manifest.inputs[0].datatype = DataType::Uint8;
    manifest.pre = vec![Step::Scale { tensor: "x".into(), factor: 1.0 / 255.0, offset: 0.0 }];
    manifest.post = vec![Step::ArgMax { tensor: "y".into(), name: "class".into() }];
    manifest.outputs.push(OutputSpec {
        name: "class".into(),
        datatype: DataType::Int64,
        shape: vec![-1],
        kind: OutputKind::Raw,
        labels: vec![],
    });
    let stepped = load(&classifier(4, 3, 5.0), manifest).unwrap();
    let plain = load(&classifier(4, 3, 5.0), classifier_manifest(4, 3)).unwrap();
    let pixels = Tensor::new(vec![1, 4], Data::Uint8(vec![0, 51, 102, 255])).unwrap();
    let answer = stepped.infer(vec![pixels]).unwrap();
    let expected = plain.infer(vec![f32s(&[1, 4], vec![0.0, 0.2, 0.4, 1.0])]).unwrap();
    for (a, b) in answer[0].to_f32().iter().zip(expected[0].to_f32()) {
        assert!((a - b).abs() < 1e-6, "{a} {b}");
    }
    assert_eq!(answer[1].data(), &Data::Int64(vec![arg_max(&expected[0].to_f32()) as i64]));
}

#[test]
fn a_model_whose_batch_cannot_stay_symbolic_still_runs_with_any_batch() {
    // Reshaping to [2, -1] needs the batch to be even: no plan holds for all.
    let shape = tract_onnx::pb::TensorProto {
        name: "s".into(),
        dims: vec![2],
        data_type: 7,
        int64_data: vec![2, -1],
        ..Default::default()
    };
    let onnx = model(GraphProto {
        input: vec![tensor_info("x", DataType::Fp32, &[-1, 3])],
        output: vec![tensor_info("y", DataType::Fp32, &[2, -1])],
        initializer: vec![shape],
        node: vec![node("Reshape", "r", &["x", "s"], &["y"])],
        ..Default::default()
    });
    let mut manifest = classifier_manifest(3, 3);
    manifest.outputs[0].shape = vec![2, -1];
    let model = load(&onnx, manifest).unwrap();
    for batch in [2usize, 4, 2, 6, 8, 10, 12, 2] {
        let values: Vec<f32> = (0..batch * 3).map(|i| i as f32).collect();
        let answer = model.infer(vec![f32s(&[batch, 3], values.clone())]).unwrap();
        assert_eq!((answer[0].shape(), answer[0].to_f32()), (&[2, batch * 3 / 2][..], values));
    }
    says(model.infer(vec![f32s(&[3, 3], vec![0.0; 9])]), "");
}

#[test]
fn what_a_request_gets_wrong_is_named() {
    let model = load(&classifier(4, 3, 1.0), classifier_manifest(4, 3)).unwrap();
    let ints = Tensor::new(vec![1, 4], Data::Int32(vec![0; 4])).unwrap();
    says(model.infer(vec![]), "there are 0 of 1");
    says(model.infer(vec![ints]), "\"x\": has datatype INT32; FP32 is expected");
    says(model.infer(vec![f32s(&[1, 5], vec![0.0; 5])]), "\"x\": has shape [1, 5]; [-1, 4] is expected");
    says(model.infer(vec![f32s(&[4], vec![0.0; 4])]), "\"x\": has shape [4]");
    says(model.infer(vec![f32s(&[0, 4], vec![])]), "holds no element");
    says(model.infer(vec![f32s(&[65, 4], vec![0.0; 260])]), "at most 64");
}

#[test]
fn a_manifest_that_tells_of_another_model_is_refused_by_name() {
    let onnx = classifier(4, 3, 1.0);
    let check = |change: fn(&mut plimsoll_protocol::bundle::Manifest), expect: &str| {
        let mut manifest = classifier_manifest(4, 3);
        change(&mut manifest);
        says(load(&onnx, manifest), expect);
    };
    check(|m| m.inputs[0].name = "z".into(), "lists inputs [\"z\"]");
    check(|m| m.inputs[0].datatype = DataType::Int64, "arrives as INT64");
    check(|m| m.inputs[0].shape = vec![-1, 5], "has shape [-1, 5]");
    check(|m| m.outputs[0].name = "z".into(), "lists output \"z\"");
    check(|m| m.outputs[0].datatype = DataType::Fp64, "is FP32, not FP64");
    check(|m| m.pre = vec![Step::Softmax { tensor: "q".into() }], "\"q\"");
    check(|m| m.variants[0].entry = "nothing.onnx".to_owned().try_into().unwrap(), "cannot read");
    let external = |m: &mut plimsoll_protocol::bundle::Manifest| {
        m.variants[0].runtime = plimsoll_protocol::bundle::RuntimeKind::External { engine: "rknn".into() };
    };
    check(external, "rknn");
}

#[test]
fn an_operator_that_does_not_exist_is_named_with_its_node() {
    let graph = |op: &str, domain: &str| {
        let mut n = node(op, "the-node", &["x"], &["y"]);
        n.domain = domain.into();
        model(GraphProto {
            input: vec![tensor_info("x", DataType::Fp32, &[1, 3])],
            output: vec![tensor_info("y", DataType::Fp32, &[1, 3])],
            node: vec![n],
            ..Default::default()
        })
    };
    says(describe_bytes(&graph("Frobnicate", "")), "operator Frobnicate of node \"the-node\"");
    says(describe_bytes(&graph("Relu", "com.example")), "operator com.example.Relu of node \"the-node\"");
    assert!(describe_bytes(&graph("Relu", "")).is_ok());
}

#[test]
fn a_model_whose_shapes_cannot_fit_is_refused_with_its_node() {
    let onnx = model(GraphProto {
        input: vec![tensor_info("x", DataType::Fp32, &[1, 3])],
        output: vec![tensor_info("y", DataType::Fp32, &[1, 2])],
        initializer: vec![initializer("w", &[4, 2], vec![0.0; 8])],
        node: vec![node("MatMul", "bad-matmul", &["x", "w"], &["y"])],
        ..Default::default()
    });
    says(describe_bytes(&onnx), "bad-matmul");
}
