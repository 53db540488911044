//! Models that mean harm, or were broken on the way: what a process that opens models must survive. Each is made here,
//! so that what is wrong with it can be read.

mod attributes;
mod documents;
mod graphs;
mod outside;
mod shapes;

use plimsoll_protocol::bundle::DataType::{Fp32, Int64};
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::{AttributeProto, NodeProto, TensorProto};

use super::{graph, node};
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
    /// Its process dies of a stack that is full, and says so.
    Overflows,
    /// It runs, or is refused, or takes its process with it: whatever it is, it is told and ends.
    Ends,
}

/// Length of a list that no machine has memory for.
const HUGE: i64 = 1 << 40;

/// All of them.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let mut add = |name: &str, expect: Expect, onnx: Vec<u8>| {
        all.push(Case { name: name.to_owned(), onnx, expect });
    };
    documents::add_all(&mut add);
    graphs::add_all(&mut add);
    shapes::add_all(&mut add);
    attributes::add_all(&mut add);
    outside::add_all(&mut add);
    all
}

type Add<'a> = &'a mut dyn FnMut(&str, Expect, Vec<u8>);

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

/// Poolings for [`nested_sizes`] after which the divisor of the size, 2^100, does not fit 64 bits any more.
pub const TOO_DEEP: usize = 100;

/// Poolings in a row over an input of unknown size, each of which halves it, rounded up: the size of each result is
/// written in terms of the one before. Sixty are served; from 64 on the engine recurses without end over such a term, in
/// every process (with an even padding it found a way around in one of a hundred). [`TOO_DEEP`] fill any stack.
pub fn nested_sizes(times: usize) -> Vec<u8> {
    let pair = |name: &str, values: [i64; 2]| AttributeProto {
        ints: values.to_vec(),
        ..attribute(name, AttributeType::Ints)
    };
    let pads = AttributeProto { ints: vec![1, 0, 0, 0], ..attribute("pads", AttributeType::Ints) };
    let pool = |at: usize| {
        let from = if at == 0 { "x".to_owned() } else { format!("p{at}") };
        let to = if at + 1 == times { "y".to_owned() } else { format!("p{}", at + 1) };
        NodeProto {
            attribute: vec![pair("kernel_shape", [2, 1]), pair("strides", [2, 1]), pads.clone()],
            ..node("MaxPool", &format!("pool{at}"), &[&from], &[&to])
        }
    };
    let nodes = (0..times).map(pool).collect();
    graph(&[("x", Fp32, &[1, 1, -1, 1])], &[("y", Fp32, &[1, 1, -1, 1])], vec![], nodes)
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
