//! Tensors that no machine has memory for, however they are asked for.

use plimsoll_protocol::bundle::DataType::{Fp32, Int64};
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto};

use super::Expect::{Ends, Overflows, Says};
use super::{Add, HUGE, TOO_DEEP, attribute, int, ints, nested_sizes, scalar};
use crate::testing::{graph, initializer, node};

/// Adds the cases.
pub(super) fn add_all(add: Add<'_>) {
    let of = |shape: &[i64], constants: Vec<TensorProto>, nodes: Vec<NodeProto>| {
        graph(&[("x", Fp32, shape)], &[("y", Fp32, &[-1])], constants, nodes)
    };
    let relu = || vec![node("Relu", "r", &["x"], &["y"])];
    add("an input of 2^80 elements", Says("elements; at most"), of(&[HUGE, HUGE], vec![], relu()));
    add("an input of nine dimensions", Says("9 dimensions"), of(&[1; 9], vec![], relu()));
    add("an input of no element", Ends, of(&[1, 0], vec![], relu()));
    add("an input of a negative size", Ends, of(&[-7, 3], vec![], relu()));
    add("60 sizes in terms of each other", Ends, nested_sizes(60));
    add("100 sizes in terms of each other", Overflows, nested_sizes(TOO_DEEP));
    let huge = || ints("s", &[HUGE, HUGE]);
    let made = |op: &str, inputs: &[&str]| of(&[1, 1], vec![huge()], vec![node(op, "bomb", inputs, &["y"])]);
    for (op, inputs) in [("ConstantOfShape", &["s"][..]), ("Expand", &["x", "s"]), ("Tile", &["x", "s"])] {
        add(&format!("{op} of 2^80 elements"), Says("node \"bomb\""), made(op, inputs));
    }
    add("Reshape to 2^80 elements", Ends, made("Reshape", &["x", "s"]));
    add(
        "Pad by 2^40 on every side",
        Ends,
        of(&[1, 1], vec![ints("s", &[HUGE; 4])], vec![node("Pad", "bomb", &["x", "s"], &["y"])]),
    );
    let constant = NodeProto {
        attribute: vec![AttributeProto { t: Some(huge()), ..attribute("value", AttributeType::Tensor) }],
        ..node("Constant", "k", &[], &["s"])
    };
    for (op, inputs) in [("ConstantOfShape", &["s"][..]), ("Expand", &["x", "s"]), ("Tile", &["x", "s"])] {
        let nodes = vec![constant.clone(), node(op, "bomb", inputs, &["y"])];
        add(&format!("{op} of a computed 2^80 elements"), Ends, of(&[1, 1], vec![], nodes));
    }
    let range = |from: i64, to: i64, step: i64| {
        let all = vec![scalar("a", from), scalar("b", to), scalar("c", step)];
        let nodes = vec![
            node("Range", "bomb", &["a", "b", "c"], &["r"]),
            node("ReduceSum", "s", &["r"], &["q"]),
            node("Relu", "r", &["x"], &["y"]),
        ];
        graph(&[("x", Fp32, &[1])], &[("y", Fp32, &[1]), ("q", Int64, &[1])], all, nodes)
    };
    add("Range to 10^12", Ends, range(0, 1_000_000_000_000, 1));
    add("Range by 0", Ends, range(0, 10, 0));
    add("Range from one end of the integers to the other", Ends, range(i64::MIN, i64::MAX, 1));
    let column = |n: usize| initializer("w", &[1, n as i64], vec![1.0; n]);
    add(
        "Gemm of 2^34 elements",
        Says("node \"bomb\""),
        of(&[1 << 17, 1], vec![column(1 << 17)], vec![node("Gemm", "bomb", &["x", "w"], &["y"])]),
    );
    let row = initializer("v", &[1 << 14, 1], vec![1.0; 1 << 14]);
    add(
        "a constant product of 1 GiB",
        Ends,
        of(
            &[1, 1],
            vec![column(1 << 14), row],
            vec![node("MatMul", "bomb", &["v", "w"], &["p"]), node("Add", "a", &["p", "x"], &["y"])],
        ),
    );
    let doubled: Vec<NodeProto> = (0..40)
        .map(|at| {
            let from = if at == 0 { "x".into() } else { format!("t{at}") };
            let to = if at == 39 { "y".into() } else { format!("t{}", at + 1) };
            NodeProto {
                attribute: vec![int("axis", 0)],
                ..node("Concat", &format!("c{at}"), &[&from, &from], &[&to])
            }
        })
        .collect();
    add("forty doublings", Says("makes a tensor"), of(&[1], vec![], doubled));
    add(
        "OneHot of a depth of 2^40",
        Ends,
        graph(
            &[("x", Int64, &[3])],
            &[("y", Fp32, &[-1, -1])],
            vec![scalar("d", HUGE), initializer("v", &[2], vec![0.0, 1.0])],
            vec![node("OneHot", "bomb", &["x", "d", "v"], &["y"])],
        ),
    );
    add(
        "TopK of 2^40",
        Ends,
        of(&[1, 3], vec![ints("k", &[HUGE])], vec![node("TopK", "bomb", &["x", "k"], &["y", "i"])]),
    );
    add(
        "a window of 2^40",
        Ends,
        graph(
            &[("x", Fp32, &[1])],
            &[("y", Fp32, &[-1])],
            vec![scalar("n", HUGE)],
            vec![node("HannWindow", "bomb", &["n"], &["h"]), node("Mul", "m", &["h", "x"], &["y"])],
        ),
    );
    add(
        "Resize by 10^9",
        Ends,
        of(
            &[1, 1, 2, 2],
            vec![initializer("s", &[4], vec![1.0, 1.0, 1e9, 1e9])],
            vec![node("Resize", "bomb", &["x", "", "s"], &["y"])],
        ),
    );
}
