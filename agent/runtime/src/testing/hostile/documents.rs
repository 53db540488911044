//! Bytes that are no document, or lie about their sizes.

use prost::Message;
use tract_onnx::pb::{ModelProto, OperatorSetIdProto, TensorProto};

use super::Expect::{Ends, Says};
use super::{Add, HUGE, with};
use crate::testing::{classifier, initializer};

/// Adds the cases.
pub(super) fn add_all(add: Add<'_>) {
    let whole = classifier(3, 2, 1.0);
    for part in 0..50 {
        add(&format!("cut at {part}/50"), Ends, whole[..whole.len() * part / 50].to_vec());
    }
    add("nothing", Says("it is empty"), Vec::new());
    add("noise", Says("not a valid ONNX document"), vec![0xff; 4096]);
    add("graphs in graphs, 10,000 deep", Says("recursion"), nested_graphs(10_000));
    add("groups in an unknown field, 100,000 deep", Says("recursion"), [0xfb, 0x3f].repeat(100_000));
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
