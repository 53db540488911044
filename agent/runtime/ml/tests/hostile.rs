//! Nodes whose attributes lie: each is an error that says how, when the model is read, and none is a panic.

use tract_onnx::Onnx;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto, type_proto,
};

fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    let kind = AttributeType::Ints as i32;
    AttributeProto { name: name.into(), r#type: kind, ints: ints.to_vec(), ..Default::default() }
}

fn floats(name: &str, floats: &[f32]) -> AttributeProto {
    let kind = AttributeType::Floats as i32;
    AttributeProto { name: name.into(), r#type: kind, floats: floats.to_vec(), ..Default::default() }
}

fn texts(name: &str, texts: &[&str]) -> AttributeProto {
    let kind = AttributeType::Strings as i32;
    let strings = texts.iter().map(|t| t.as_bytes().to_vec()).collect();
    AttributeProto { name: name.into(), r#type: kind, strings, ..Default::default() }
}

fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Int as i32, i: value, ..Default::default() }
}

fn text(name: &str, value: &str) -> AttributeProto {
    let kind = AttributeType::String as i32;
    AttributeProto { name: name.into(), r#type: kind, s: value.as_bytes().to_vec(), ..Default::default() }
}

/// Reads a model of one node; the error on one line, or nothing.
fn refusal(op: &str, attributes: Vec<AttributeProto>) -> Option<String> {
    let mut onnx: Onnx = tract_onnx::onnx();
    plimsoll_runtime_ml::register(&mut onnx.op_register);
    let tensor = type_proto::Tensor { elem_type: 1, shape: None };
    let kind = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    let graph = GraphProto {
        input: vec![ValueInfoProto { name: "x".into(), r#type: Some(kind), ..Default::default() }],
        node: vec![NodeProto {
            op_type: op.into(),
            domain: "ai.onnx.ml".into(),
            input: vec!["x".into()],
            output: vec!["y".into()],
            attribute: attributes,
            ..Default::default()
        }],
        ..Default::default()
    };
    let model = ModelProto { graph: Some(graph), ..Default::default() };
    onnx.parse(&model, None).err().map(|error| format!("{error:#}"))
}

/// A root (node 0) with two leaves, and what `change` makes of it.
fn tree(change: impl Fn(&mut Vec<AttributeProto>)) -> Vec<AttributeProto> {
    let mut attributes = vec![
        int("n_targets", 1),
        ints("nodes_treeids", &[0, 0, 0]),
        ints("nodes_nodeids", &[0, 1, 2]),
        ints("nodes_featureids", &[0, 0, 0]),
        ints("nodes_truenodeids", &[1, 0, 0]),
        ints("nodes_falsenodeids", &[2, 0, 0]),
        floats("nodes_values", &[0.5, 0.0, 0.0]),
        texts("nodes_modes", &["BRANCH_LEQ", "LEAF", "LEAF"]),
        ints("target_treeids", &[0, 0]),
        ints("target_nodeids", &[1, 2]),
        ints("target_ids", &[0, 0]),
        floats("target_weights", &[1.0, 2.0]),
    ];
    change(&mut attributes);
    attributes
}

fn with(attribute: AttributeProto) -> Vec<AttributeProto> {
    tree(|all| {
        all.retain(|a| a.name != attribute.name);
        all.push(attribute.clone());
    })
}

#[test]
fn what_is_no_tree_is_refused() {
    assert_eq!(refusal("TreeEnsembleRegressor", tree(|_| {})), None);
    for (changed, says) in [
        (ints("nodes_truenodeids", &[0, 0, 0]), "two parents, or is the child of its own child"),
        (ints("nodes_truenodeids", &[2, 0, 0]), "two parents"),
        (ints("nodes_truenodeids", &[7, 0, 0]), "refers to node 7 of tree 0, which is not there"),
        (ints("nodes_truenodeids", &[-1, 0, 0]), "refers to node -1"),
        (ints("nodes_nodeids", &[0, 1, 1]), "lists node 1 of tree 0 twice"),
        (ints("nodes_treeids", &[]), "no tree"),
        (ints("nodes_featureids", &[-1, 0, 0]), "reads column -1"),
        (ints("nodes_featureids", &[1 << 40, 0, 0]), "reads column 1099511627776"),
        (ints("nodes_featureids", &[0]), "\"nodes_featureids\" has 1 elements; 3 are expected"),
        (floats("nodes_values", &[]), "\"nodes_values\" has 0 elements"),
        (texts("nodes_modes", &["BRANCH_ODD", "LEAF", "LEAF"]), "mode \"BRANCH_ODD\""),
        (ints("target_nodeids", &[1, 9]), "refers to node 9"),
        (ints("target_ids", &[0, 1]), "target or class 1 of 1"),
        (floats("target_weights", &[1.0]), "\"target_weights\" has 1 elements"),
        (int("n_targets", 0), "0 targets"),
        (int("n_targets", 1 << 50), "1125899906842624 targets"),
        (text("aggregate_function", "MEDIAN"), "MEDIAN"),
        (text("post_transform", "TANH"), "TANH"),
        (floats("base_values", &[1.0, 2.0]), "2 \"base_values\" for 1 targets"),
    ] {
        let name = changed.name.clone();
        let why = refusal("TreeEnsembleRegressor", with(changed)).expect(says);
        assert!(why.contains(says), "{name}: {why:?} does not say {says:?}");
    }
}

#[test]
fn attributes_that_contradict_each_other_are_refused() {
    let svm = |supports, coefficients: &[f32]| {
        vec![
            ints("classlabels_ints", &[0, 1]),
            ints("vectors_per_class", &[1, 1]),
            floats("support_vectors", supports),
            floats("coefficients", coefficients),
            floats("rho", &[0.0]),
        ]
    };
    assert_eq!(refusal("SVMClassifier", svm(&[1.0, 2.0], &[1.0, 1.0])), None);
    for (op, attributes, says) in [
        ("SVMClassifier", svm(&[1.0, 2.0], &[1.0]), "\"coefficients\" has 1 elements; 2 are expected"),
        ("SVMClassifier", svm(&[1.0, 2.0, 3.0], &[1.0, 1.0]), "3 numbers for 2 vectors"),
        ("SVMRegressor", vec![int("n_supports", -4), floats("rho", &[0.0])], "out of range"),
        ("SVMRegressor", vec![floats("coefficients", &[1.0])], "no \"rho\""),
        (
            "LinearRegressor",
            vec![int("targets", 3), floats("coefficients", &[1.0, 2.0])],
            "no \"coefficients\"",
        ),
        ("LinearClassifier", vec![floats("coefficients", &[1.0])], "neither \"classlabels_ints\""),
        (
            "Scaler",
            vec![floats("offset", &[1.0, 2.0]), floats("scale", &[1.0, 2.0, 3.0])],
            "2 offsets for 3 scales",
        ),
        ("Imputer", vec![], "neither \"imputed_value_floats\""),
        ("Normalizer", vec![text("norm", "L3")], "L3"),
        ("OneHotEncoder", vec![ints("cats_int64s", &[1]), texts("cats_strings", &["a"])], "one is meant"),
        (
            "LabelEncoder",
            vec![ints("keys_int64s", &[1, 2]), texts("values_strings", &["a"])],
            "\"keys\" has 2",
        ),
        ("LabelEncoder", vec![], "no \"keys\""),
        ("FeatureVectorizer", vec![ints("inputdimensions", &[-1])], "out of range"),
    ] {
        let why = refusal(op, attributes).expect(says);
        assert!(why.contains(says), "{op}: {why:?} does not say {says:?}");
    }
}
