//! Nodes that are wired wrongly.

use plimsoll_protocol::bundle::DataType::Fp32;
use tract_onnx::pb::NodeProto;

use super::Add;
use super::Expect::{Ends, Says};
use crate::testing::{graph, initializer, node};

/// Adds the cases.
pub(super) fn add_all(add: Add<'_>) {
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
    let many: Vec<crate::testing::Port<'_>> =
        many.iter().map(|name| (name.as_str(), Fp32, &[1i64][..])).collect();
    add(
        "65 inputs",
        Says("65 inputs"),
        graph(&many, &[("y", Fp32, &[1])], vec![], vec![relu("a", "x0", "y")]),
    );
}
