//! Models that mean harm, or were broken on the way: what a process that opens models must survive. Each is made here,
//! so that what is wrong with it can be read.

use plimsoll_protocol::bundle::DataType::{Fp32, Int64};
use prost::Message;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto,
};

use super::{classifier, graph, initializer, node, tensor_info};
use crate::proto::onnx_type;

/// One model.
#[derive(Debug, Clone)]
pub struct Case {
    /// For a test's messages.
    pub name: String,
    /// The file.
    pub onnx: Vec<u8>,
    /// What becomes of it.
    pub expect: Expect,
}

/// What becomes of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// It is refused with these words.
    Says(&'static str),
    /// It runs, or is refused, or takes its process with it: whatever it is, it is told and ends.
    Ends,
}

use Expect::{Ends, Says};

/// Length of a list that no machine has memory for.
const HUGE: i64 = 1 << 40;

/// All of them.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |name: &str, expect: Expect, onnx: Vec<u8>| {
        all.push(Case { name: name.to_owned(), onnx, expect });
    };
    documents(&mut add);
    graphs(&mut add);
    shapes(&mut add);
    attributes(&mut add);
    outside(&mut add);
    all
}

type Add<'a> = &'a mut dyn FnMut(&str, Expect, Vec<u8>);

/// Bytes that are no document, or lie about their sizes.
fn documents(add: Add<'_>) {
    let whole = classifier(3, 2, 1.0);
    for part in 0..50 {
        add(&format!("cut at {part}/50"), Ends, whole[..whole.len() * part / 50].to_vec());
    }
    add("nothing", Says("it is empty"), Vec::new());
    add("noise", Says("not a valid ONNX document"), vec![0xff; 4096]);
    add("graphs in graphs, 10,000 deep", Says("recursion"), nested_graphs(10_000));
    add("groups in an unknown field, 100,000 deep", Says("recursion"), vec![0xfb, 0x3f].repeat(100_000));
    add("a length of 2^63", Says("not a valid"), [&[0x3a][..], &[0xff; 8], &[0x7f]].concat());
    let weights = |dims: &[i64], values: usize| with(initializer("w", dims, vec![1.0; values]));
    add("weights of 2^80 elements", Says("more than"), weights(&[HUGE, HUGE], 1));
    add("weights shorter than their shape", Says("has 1 values"), weights(&[1000], 1));
    add("weights longer than their shape", Says("has 9 values"), weights(&[3], 9));
    add("weights of a negative size", Says("negative shape"), weights(&[-3], 0));
    add("weights of no element", Ends, weights(&[0], 0));
    let raw = |bytes: usize| TensorProto { raw_data: vec![0; bytes], ..initializer("w", &[3], Vec::new()) };
    add("raw weights cut in an element", Says("bytes of data"), with(raw(11)));
    let kind = |data_type: i32| TensorProto { data_type, ..initializer("w", &[3], vec![1.0; 3]) };
    add("weights of an unknown type", Says("datatype 99"), with(kind(99)));
    add("weights of type 0", Says("Undefined"), with(kind(0)));
    add("weights of complex numbers", Says("Complex64"), with(kind(14)));
    let numbered = |opset: i64| {
        let mut proto = ModelProto::decode(whole.as_slice()).expect("our own document");
        proto.opset_import = vec![OperatorSetIdProto { domain: String::new(), version: opset }];
        proto.encode_to_vec()
    };
    add("opset 9999", Says("operator set 9999"), numbered(9999));
    add("opset -1", Says("operator set -1"), numbered(-1));
}

/// Nodes that are wired wrongly.
fn graphs(add: Add<'_>) {
    let relu = |name: &str, from: &str, to: &str| node("Relu", name, &[from], &[to]);
    let of = |nodes: Vec<NodeProto>| graph(&[("x", Fp32, &[1, 3])], &[("y", Fp32, &[1, 3])], vec![], nodes);
    add(
        "a cycle of two nodes",
        Ends,
        of(vec![node("Add", "a", &["x", "q"], &["p"]), relu("b", "p", "q"), relu("c", "q", "y")]),
    );
    add("a node that reads itself", Ends, of(vec![node("Add", "a", &["x", "y"], &["y"])]));
    add("two nodes make one tensor", Ends, of(vec![relu("a", "x", "y"), relu("b", "x", "y")]));
    add("two nodes of one name", Ends, of(vec![relu("a", "x", "p"), relu("a", "p", "y")]));
    add(
        "a node reads what nothing makes",
        Says("which nothing produces"),
        of(vec![node("Add", "a", &["x", "nowhere"], &["y"])]),
    );
    add("an output that nothing makes", Ends, of(vec![relu("a", "x", "p")]));
    add("no node", Ends, of(vec![]));
    add("an operator without its inputs", Ends, of(vec![node("Conv", "c", &[], &["y"])]));
    add("an operator with too many inputs", Ends, of(vec![node("Relu", "r", &["x"; 400], &["y"])]));
    add("an operator without outputs", Ends, of(vec![node("Relu", "r", &["x"], &[])]));
    add("a name of 4 MB", Ends, of(vec![relu(&"n".repeat(4_000_000), "x", "y")]));
    add(
        "an operator that does not exist",
        Says("node \"n\""),
        of(vec![node("Frobnicate", "n", &["x"], &["y"])]),
    );
    add("a loop", Says("Loop"), of(vec![node("Loop", "l", &["x"], &["y"])]));
    let chain = |length: usize| -> Vec<NodeProto> {
        let name = |at: usize| {
            if at == 0 {
                "x".into()
            } else if at == length {
                "y".into()
            } else {
                format!("t{at}")
            }
        };
        (0..length).map(|at| relu("", &name(at), &name(at + 1))).collect()
    };
    add("a chain of 1,000 nodes", Ends, of(chain(1_000)));
    add("more nodes than any model has", Says("more than 100000 nodes"), of(chain(100_001)));
    let twice = |of: &str| vec![initializer(of, &[3], vec![1.0; 3]), initializer(of, &[3], vec![2.0; 3])];
    let one = ("x", Fp32, &[1i64, 3][..]);
    let result = ("y", Fp32, &[1i64, 3][..]);
    add(
        "two initializers of one name",
        Ends,
        graph(&[one], &[result], twice("w"), vec![node("Add", "a", &["x", "w"], &["y"])]),
    );
    add("two inputs of one name", Ends, graph(&[one, one], &[result], vec![], vec![relu("a", "x", "y")]));
    add("two outputs of one name", Ends, graph(&[one], &[result, result], vec![], vec![relu("a", "x", "y")]));
    add("no input", Says("0 inputs"), graph(&[], &[result], twice("w"), vec![relu("a", "w", "y")]));
    add("no output", Says("0 outputs"), graph(&[one], &[], vec![], vec![relu("a", "x", "y")]));
    let many: Vec<String> = (0..65).map(|n| format!("x{n}")).collect();
    let many: Vec<super::Port<'_>> = many.iter().map(|name| (name.as_str(), Fp32, &[1i64][..])).collect();
    add(
        "65 inputs",
        Says("65 inputs"),
        graph(&many, &[("y", Fp32, &[1])], vec![], vec![relu("a", "x0", "y")]),
    );
}

/// Tensors that no machine has memory for, however they are asked for.
fn shapes(add: Add<'_>) {
    let of = |shape: &[i64], constants: Vec<TensorProto>, nodes: Vec<NodeProto>| {
        graph(&[("x", Fp32, shape)], &[("y", Fp32, &[-1])], constants, nodes)
    };
    let relu = || vec![node("Relu", "r", &["x"], &["y"])];
    add("an input of 2^80 elements", Says("elements; at most"), of(&[HUGE, HUGE], vec![], relu()));
    add("an input of nine dimensions", Says("9 dimensions"), of(&[1; 9], vec![], relu()));
    add("an input of no element", Ends, of(&[1, 0], vec![], relu()));
    add("an input of a negative size", Ends, of(&[-7, 3], vec![], relu()));
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

/// Attributes that are of the wrong kind, or whose values make no sense.
fn attributes(add: Add<'_>) {
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

/// Weights in files that are not the model's.
fn outside(add: Add<'_>) {
    let entry = |key: &str, value: &str| StringStringEntryProto { key: key.into(), value: value.into() };
    let elsewhere = |entries: Vec<StringStringEntryProto>| {
        with(TensorProto {
            data_location: Some(DataLocation::External as i32),
            external_data: entries,
            ..initializer("w", &[3], Vec::new())
        })
    };
    for place in ["/etc/passwd", "../secret.bin", "a/../../secret.bin", "", "C:\\secret.bin", "a\0b"] {
        add(
            &format!("weights in {place:?}"),
            Says("outside the model"),
            elsewhere(vec![entry("location", place)]),
        );
    }
    add("weights in a file that is not there", Ends, elsewhere(vec![entry("location", "nowhere.bin")]));
    add("weights without a place", Says("without a location"), elsewhere(vec![entry("offset", "0")]));
    for (key, value) in [
        ("offset", "-1"),
        ("offset", "9223372036854775807"),
        ("length", "-1"),
        ("length", "1099511627776"),
        ("offset", "text"),
    ] {
        let entries = vec![entry("location", "weights.bin"), entry(key, value)];
        add(&format!("weights whose {key} is {value}"), Ends, elsewhere(entries));
    }
    add(
        "weights behind a link that leads outside",
        Says("outside"),
        elsewhere(vec![entry("location", "link.bin")]),
    );
}

/// `y = x + w` with these weights.
fn with(w: TensorProto) -> Vec<u8> {
    let nodes = vec![node("Add", "add", &["x", "w"], &["y"])];
    graph(&[("x", Fp32, &[1, 3])], &[("y", Fp32, &[1, 3])], vec![w], nodes)
}

fn ints(name: &str, values: &[i64]) -> TensorProto {
    let dims = vec![values.len() as i64];
    TensorProto {
        name: name.into(),
        dims,
        data_type: onnx_type(Int64) as i32,
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

fn scalar(name: &str, value: i64) -> TensorProto {
    TensorProto { dims: Vec::new(), ..ints(name, &[value]) }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: kind as i32, ..Default::default() }
}

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i, ..attribute(name, AttributeType::Int) }
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

/// A document whose graph holds a node that holds a graph, and so on. Written from the inside out, because encoding a
/// tree of values so deep would overflow the stack of whoever makes it.
fn nested_graphs(depth: usize) -> Vec<u8> {
    /// Field numbers with the wire type of bytes: `graph` of the model, `node` of a graph, `attribute` of a node, `g` of
    /// an attribute.
    const MODEL_GRAPH: u8 = 7 << 3 | 2;
    const INNER: [u8; 3] = [6 << 3 | 2, 5 << 3 | 2, 1 << 3 | 2];
    let mut reversed: Vec<u8> = Vec::new();
    let wrap = |tag: u8, reversed: &mut Vec<u8>| {
        let mut length = Vec::new();
        prost::encoding::encode_varint(reversed.len() as u64, &mut length);
        reversed.extend(length.iter().rev());
        reversed.push(tag);
    };
    for _ in 0..depth {
        INNER.iter().for_each(|tag| wrap(*tag, &mut reversed));
    }
    wrap(MODEL_GRAPH, &mut reversed);
    reversed.reverse();
    reversed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_many_and_their_names_are_used_once() {
        let all = cases();
        let names: std::collections::BTreeSet<&str> = all.iter().map(|c| c.name.as_str()).collect();
        assert!(all.len() == names.len() && all.len() > 120, "{} of {}", names.len(), all.len());
    }
}
