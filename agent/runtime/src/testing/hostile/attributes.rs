//! Attributes that are of the wrong kind, or whose values make no sense.

use plimsoll_protocol::bundle::DataType::{Fp32, Int64};
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto};

use super::Expect::{Ends, Says};
use super::{Add, HUGE, attribute, int, ints};
use crate::testing::{graph, initializer, node, tensor_info};

/// Adds the cases.
pub(super) fn add_all(add: Add<'_>) {
    let of = |op: &str, shape: &[i64], attributes: Vec<AttributeProto>| {
        let bomb = NodeProto { attribute: attributes, ..node(op, "bomb", &["x"], &["y"]) };
        graph(&[("x", Fp32, shape)], &[("y", Fp32, &[-1])], vec![], vec![bomb])
    };
    let text = |name: &str| AttributeProto { s: b"text".to_vec(), ..attribute(name, AttributeType::String) };
    let list = |name: &str, values: &[i64]| AttributeProto {
        ints: values.to_vec(),
        ..attribute(name, AttributeType::Ints)
    };
    add("text where a type belongs", Ends, of("Cast", &[1], vec![text("to")]));
    add("text where integers belong", Ends, of("Transpose", &[1, 2], vec![text("perm")]));
    add("text where a number belongs", Ends, of("Softmax", &[1, 2], vec![text("axis")]));
    add("a type that does not exist", Ends, of("Cast", &[1], vec![int("to", 99)]));
    add("an axis that does not exist", Ends, of("Softmax", &[1, 2], vec![int("axis", HUGE)]));
    add("a permutation of nothing", Ends, of("Transpose", &[1, 2], vec![list("perm", &[7, 7])]));
    add("a split of one element into 2^40", Ends, of("Split", &[1], vec![list("split", &[HUGE, -HUGE])]));
    for (name, stride, group) in
        [("a stride of 0", 0, 1), ("a stride of -1", -1, 1), ("no group", 1, 0), ("2^40 groups", 1, HUGE)]
    {
        let conv = NodeProto {
            attribute: vec![
                list("strides", &[stride, stride]),
                int("group", group),
                list("kernel_shape", &[2, 2]),
            ],
            ..node("Conv", "bomb", &["x", "w"], &["y"])
        };
        let kernel = initializer("w", &[1, 1, 2, 2], vec![1.0; 4]);
        add(
            &format!("Conv with {name}"),
            Ends,
            graph(&[("x", Fp32, &[1, 1, 4, 4])], &[("y", Fp32, &[1, 1, -1, -1])], vec![kernel], vec![conv]),
        );
    }
    let pool = |kernel: i64, pad: i64| {
        of("MaxPool", &[1, 1, 4, 4], vec![list("kernel_shape", &[kernel, kernel]), list("pads", &[pad; 4])])
    };
    add("MaxPool of a kernel of 2^40", Ends, pool(HUGE, 0));
    add("MaxPool of no kernel", Ends, pool(0, 0));
    add("MaxPool padded by 2^40", Ends, pool(2, HUGE));
    let random = NodeProto {
        attribute: vec![list("shape", &[HUGE, HUGE])],
        ..node("RandomNormal", "bomb", &[], &["r"])
    };
    add(
        "random numbers, 2^80 of them",
        Ends,
        graph(
            &[("x", Fp32, &[1])],
            &[("y", Fp32, &[-1])],
            vec![],
            vec![random, node("Add", "a", &["x", "r"], &["y"])],
        ),
    );
    let body = GraphProto {
        input: vec![tensor_info("i", Fp32, &[3])],
        output: vec![tensor_info("o", Fp32, &[3])],
        node: vec![node("Relu", "inner", &["i"], &["o"])],
        ..Default::default()
    };
    let scan = |inputs: i64| {
        let body = AttributeProto { g: Some(body.clone()), ..attribute("body", AttributeType::Graph) };
        of("Scan", &[4, 3], vec![body, int("num_scan_inputs", inputs)])
    };
    add("Scan over 2^40 inputs", Ends, scan(HUGE));
    add("Scan over -1 inputs", Ends, scan(-1));
    let lstm = NodeProto {
        attribute: vec![int("hidden_size", HUGE)],
        ..node("LSTM", "bomb", &["x", "w", "w"], &["y"])
    };
    add(
        "LSTM of 2^40 hidden units",
        Ends,
        graph(
            &[("x", Fp32, &[1, 1, 1])],
            &[("y", Fp32, &[-1])],
            vec![initializer("w", &[1, 4, 1], vec![1.0; 4])],
            vec![lstm],
        ),
    );
    let equation = AttributeProto { s: b"ij,".repeat(5000), ..attribute("equation", AttributeType::String) };
    add("Einsum of 5,000 inputs that it does not have", Ends, of("Einsum", &[1, 1], vec![equation]));
    let divided = |op: &str| {
        graph(
            &[("x", Int64, &[1])],
            &[("y", Int64, &[1])],
            vec![ints("z", &[0])],
            vec![node(op, "bomb", &["x", "z"], &["y"])],
        )
    };
    add("integers divided by zero", Ends, divided("Div"));
    add("the rest of a division by zero", Ends, divided("Mod"));
    add(
        "Gather beyond the end",
        Ends,
        graph(
            &[("x", Fp32, &[3])],
            &[("y", Fp32, &[1])],
            vec![ints("i", &[HUGE])],
            vec![node("Gather", "bomb", &["x", "i"], &["y"])],
        ),
    );
    add("a tree whose children are their parents", Says("bomb"), cyclic_tree());
}

/// Two nodes of one tree, each the other's child.
fn cyclic_tree() -> Vec<u8> {
    let list = |name: &str, values: &[i64]| AttributeProto {
        ints: values.to_vec(),
        ..attribute(name, AttributeType::Ints)
    };
    let floats = |name: &str, values: &[f32]| AttributeProto {
        floats: values.to_vec(),
        ..attribute(name, AttributeType::Floats)
    };
    let modes = AttributeProto {
        strings: vec![b"BRANCH_LEQ".to_vec(); 2],
        ..attribute("nodes_modes", AttributeType::Strings)
    };
    let tree = NodeProto {
        domain: "ai.onnx.ml".into(),
        attribute: vec![
            list("nodes_treeids", &[0, 0]),
            list("nodes_nodeids", &[0, 1]),
            list("nodes_featureids", &[0, 0]),
            floats("nodes_values", &[0.5, 0.5]),
            modes,
            list("nodes_truenodeids", &[1, 0]),
            list("nodes_falsenodeids", &[1, 0]),
            list("target_treeids", &[0]),
            list("target_nodeids", &[0]),
            list("target_ids", &[0]),
            floats("target_weights", &[1.0]),
            int("n_targets", 1),
        ],
        ..node("TreeEnsembleRegressor", "bomb", &["x"], &["y"])
    };
    graph(&[("x", Fp32, &[1, 1])], &[("y", Fp32, &[1, 1])], vec![], vec![tree])
}
