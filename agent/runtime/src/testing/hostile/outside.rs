//! Weights in files that are not the model's.

use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::{StringStringEntryProto, TensorProto};

use super::Expect::{Ends, Says};
use super::{Add, with};
use crate::testing::initializer;

/// Adds the cases.
pub(super) fn add_all(add: Add<'_>) {
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
